/* Elastic-Cache for masked diffusion: the step beside a plain double-precision copy of the method, the reference mode
   beside an uncached decoder, what the thresholds promise, windows, ends of text, bytes, failures. The model is a tiny
   bidirectional transformer with random weights whose rows depend on nothing but themselves. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"

enum { L = 8, H = 4, G = 2, D = 8, E = 24, V = 40, MASK = 39, MAXN = 128 };
typedef struct net {
    float token[V][E], place[MAXN][E], wq[L][H * D][E], wk[L][G * D][E], wv[L][G * D][E], wo[L][E][H * D], up[L][E][E],
        head[V][E];
    float sharp[L];        /* on q */
    int rows[L], calls[L]; /* that went through qkv since they were set to 0 */
    int fail_at, seen;     /* fail the call of that number; 0: none */
} net;

static void product(float *y, const float *w, const float *x, int rows, int cols) {
    int i, j;
    for (i = 0; i < rows; i++) {
        float s = 0;
        for (j = 0; j < cols; j++) s += w[i * cols + j] * x[j];
        y[i] = s;
    }
}
static kvmem_status net_embed(void *user, int n, const int *ids, const int32_t *pos, float *x) {
    net *m = (net *)user;
    int i, e;
    if (++m->seen == m->fail_at) return KVMEM_IO;
    for (i = 0; i < n; i++)
        for (e = 0; e < E; e++) x[i * E + e] = m->token[ids[i]][e] + m->place[pos[i]][e];
    return KVMEM_OK;
}
static kvmem_status net_qkv(void *user, int layer, int n, const float *x, const int32_t *pos, float *q, float *k,
                            float *v) {
    net *m = (net *)user;
    int i, c;
    (void)pos;
    if (++m->seen == m->fail_at) return KVMEM_IO;
    m->rows[layer] += n;
    m->calls[layer]++;
    for (i = 0; i < n; i++) {
        product(q + i * H * D, &m->wq[layer][0][0], x + i * E, H * D, E);
        product(k + i * G * D, &m->wk[layer][0][0], x + i * E, G * D, E);
        product(v + i * G * D, &m->wv[layer][0][0], x + i * E, G * D, E);
        for (c = 0; c < H * D; c++) q[i * H * D + c] *= m->sharp[layer];
    }
    return KVMEM_OK;
}
static kvmem_status net_rest(void *user, int layer, int n, const float *out, float *x) {
    net *m = (net *)user;
    int i, e;
    if (++m->seen == m->fail_at) return KVMEM_IO;
    for (i = 0; i < n; i++) {
        float y[E];
        product(y, &m->wo[layer][0][0], out + i * H * D, E, H * D);
        for (e = 0; e < E; e++) x[i * E + e] += y[e];
        product(y, &m->up[layer][0][0], x + i * E, E, E);
        for (e = 0; e < E; e++) x[i * E + e] += 0.3f * tanhf(y[e]);
    }
    return KVMEM_OK;
}
static kvmem_status net_logits(void *user, int n, const float *x, float *logits) {
    net *m = (net *)user;
    int i;
    if (++m->seen == m->fail_at) return KVMEM_IO;
    for (i = 0; i < n; i++) product(logits + i * V, &m->head[0][0], x + i * E, V, E);
    return KVMEM_OK;
}
static net *net_new(void) {
    net *m = (net *)calloc(1, sizeof *m);
    float *f = &m->token[0][0];
    size_t i;
    for (i = 0; i < offsetof(net, sharp) / sizeof(float); i++) f[i] = (float)(0.2 * test_normal());
    for (i = 0; i < V * E; i++) (&m->head[0][0])[i] *= 2;
    for (i = 0; i < sizeof m->wo / sizeof(float); i++) (&m->wo[0][0][0])[i] *= 0.5f;
    for (i = 0; i < sizeof m->token / sizeof(float); i++) (&m->token[0][0])[i] *= 4;
    for (i = 0; i < L; i++) m->sharp[i] = 1;
    return m;
}
static kvmem_diffusion_config config_of(net *m) {
    kvmem_diffusion_config c = kvmem_diffusion_config_default();
    c.model.user = m;
    c.model.n_layers = L; c.model.n_heads = H; c.model.n_kv_heads = G; c.model.head_dim = D;
    c.model.n_embd = E; c.model.n_vocab = V;
    c.model.embed = net_embed; c.model.qkv = net_qkv; c.model.rest = net_rest; c.model.logits = net_logits;
    c.max_rows = MAXN;
    c.mask = MASK;
    c.window = 6;
    c.backend = kvmem_backend_cpu("plain");
    return c;
}
/* A text of n tokens, `told` of them in front and each later one with probability p, the rest masks. */
static void text_of(int *ids, int n, int told, double p) {
    int i;
    for (i = 0; i < n; i++) ids[i] = i < told || test_unit() < p ? (int)(test_unit() * MASK) : MASK;
}

/* ---- the method once more, in double precision and without any economy ---- */

typedef struct slow {
    const net *m;
    int n, b, ids[MAXN], masked[MAXN], told[MAXN], track[L][4], tracks, window, n_m, at[MAXN], begun;
    double gamma, sure, sigma[L], x[L][MAXN][E], q[L][MAXN][H * D], k[L][MAXN][G * D], v[L][MAXN][G * D],
        logits[MAXN][V];
} slow;

static void row_of(const double *q, double k[MAXN][G * D], int h, int n, double *p) {
    double sum = 0;
    int j, c;
    for (j = 0; j < n; j++) {
        for (c = 0, p[j] = 0; c < D; c++) p[j] += q[h * D + c] * k[j][h / (H / G) * D + c];
        sum += p[j] = exp(p[j] / sqrt((double)D));
    }
    for (j = 0; j < n; j++) p[j] /= sum;
}
static void times(double *y, const float *w, const double *x, int rows, int cols) {
    int i, j;
    for (i = 0; i < rows; i++)
        for (j = 0, y[i] = 0; j < cols; j++) y[i] += (double)w[i * cols + j] * x[j];
}
static void slow_forward(slow *s) {
    static double now[MAXN][E], old_q[MAXN][H * D], old_k[MAXN][G * D];
    int i, j, l, h, c, run[MAXN], is_m[MAXN], watched[MAXN];
    s->b = s->begun ? L : 0;
    for (s->n_m = 0, i = 0; i < s->n; i++) {
        is_m[i] = s->masked[i] && s->n_m < s->window;
        if (is_m[i]) s->at[s->n_m++] = i;
        watched[i] = 0;
        for (l = 0; l < L; l++)
            for (j = 0; j < s->tracks; j++) watched[i] |= s->begun && s->track[l][j] == i;
        run[i] = !s->begun || is_m[i] || watched[i] || s->told[i];
        s->told[i] = 0;
        for (c = 0; c < E; c++) now[i][c] = (double)s->m->token[s->ids[i]][c] + (double)s->m->place[i][c];
    }
    for (l = 0; l < L; l++) {
        double seen[MAXN] = { 0 }, alike = 0, many = 0;
        if (l == s->b && s->begun) /* from here on all rows, with what is cached where nothing ran */
            for (i = 0; i < s->n; i++) {
                if (!run[i]) memcpy(now[i], s->x[l][i], sizeof now[i]);
                run[i] = 1;
            }
        memcpy(old_q, s->q[l], sizeof old_q);
        memcpy(old_k, s->k[l], sizeof old_k);
        for (i = 0; i < s->n; i++) {
            if (!run[i]) continue;
            memcpy(s->x[l][i], now[i], sizeof now[i]);
            times(s->q[l][i], &s->m->wq[l][0][0], now[i], H * D, E);
            times(s->k[l][i], &s->m->wk[l][0][0], now[i], G * D, E);
            times(s->v[l][i], &s->m->wv[l][0][0], now[i], G * D, E);
            for (c = 0; c < H * D; c++) s->q[l][i][c] *= (double)s->m->sharp[l];
        }
        for (i = 0; i < s->n; i++) {
            double out[H * D] = { 0 }, y[E], p[MAXN], o[MAXN];
            if (!run[i]) continue;
            for (h = 0; h < H; h++) {
                row_of(s->q[l][i], s->k[l], h, s->n, p);
                for (j = 0; j < s->n; j++)
                    for (c = 0; c < D; c++) out[h * D + c] += p[j] * s->v[l][j][h / (H / G) * D + c];
                for (j = 0; is_m[i] && j < s->n; j++) seen[j] += p[j];
                if (watched[i] && l < s->b) {
                    double ab = 0, aa = 0, bb = 0;
                    row_of(old_q[i], old_k, h, s->n, o);
                    for (j = 0; j < s->n; j++) { ab += o[j] * p[j]; aa += o[j] * o[j]; bb += p[j] * p[j]; }
                    alike += ab / sqrt(aa * bb);
                    many++;
                }
            }
            times(y, &s->m->wo[l][0][0], out, E, H * D);
            for (c = 0; c < E; c++) now[i][c] += y[c];
            times(y, &s->m->up[l][0][0], now[i], E, E);
            for (c = 0; c < E; c++) now[i][c] += 0.3 * tanh(y[c]);
        }
        s->sigma[l] = l < s->b ? (many > 0 ? alike / many : 0) : -1;
        if (l < s->b && s->sigma[l] < s->gamma) s->b = l + 1;
        for (c = 0; c < s->tracks; c++) {
            s->track[l][c] = -1;
            for (j = 0; j < s->n; j++) {
                for (h = 0; h < c && s->track[l][h] != j; h++) {}
                if (h < c || s->masked[j]) continue;
                if (s->track[l][c] < 0 || seen[j] > seen[s->track[l][c]]) s->track[l][c] = j;
            }
        }
    }
    for (i = 0; i < s->n_m; i++) times(s->logits[i], &s->m->head[0][0], now[s->at[i]], V, E);
    s->begun = 1;
}
static void slow_start(slow *s, const net *m, const kvmem_diffusion_config *c, const int *ids, int n) {
    int i;
    memset(s, 0, sizeof *s);
    s->m = m;
    s->n = n;
    s->tracks = c->track;
    s->window = c->window;
    s->gamma = c->drift;
    s->sure = c->sure;
    for (i = 0; i < n; i++) { s->ids[i] = ids[i]; s->masked[i] = ids[i] == MASK; }
}
/* Both go on with what the cache has chosen, so that rounding cannot part them. */
static void beside_the_definition(double gamma, int track, int told, double sure) {
    static slow s;
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d;
    int ids[40], i, l, j, steps = 0;
    cfg.drift = gamma;
    cfg.track = track;
    cfg.sure = sure;
    text_of(ids, 40, told, told ? 0.1 : 0);
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    REQUIRE_OK(kvmem_diffusion_start(&d, ids, 40));
    slow_start(&s, m, &cfg, ids, 40);
    for (; d.n_masks && steps < 60; steps++) {
        REQUIRE_OK(kvmem_diffusion_forward(&d));
        slow_forward(&s);
        if (d.boundary != s.b || d.n_window != s.n_m) {
            FAIL_AT("step %d: boundary %d, not %d; window %d, not %d", steps, d.boundary, s.b, d.n_window, s.n_m);
            break;
        }
        for (i = 0; i < s.n_m; i++) {
            CHECK(d.at[i] == s.at[i]);
            for (j = 0; j < V; j++) CHECK_NEAR(d.logits[i * V + j], s.logits[i][j], 2e-4);
        }
        for (l = 0; l < L; l++) {
            CHECK_NEAR(d.sigma[l], s.sigma[l], 2e-5);
            for (j = 0; j < track; j++) CHECK(d.tracked[l * track + j] == s.track[l][j]);
        }
        REQUIRE_OK(kvmem_diffusion_unmask(&d));
        for (i = 0, j = 0; i < 40; i++) {
            s.told[i] = s.masked[i] && d.state[i] == 0;
            j += s.told[i];
            s.ids[i] = d.ids[i];
            s.masked[i] = d.state[i] == 1;
        }
        CHECK(j >= 1);
    }
    CHECK(!d.n_masks && d.count.steps == steps);
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(steps_equal_the_definition) { beside_the_definition(0.9, 1, 10, 0.9); }
TEST(steps_equal_the_definition_with_a_middle_threshold) { beside_the_definition(0.95, 1, 10, 0.2); }
TEST(steps_equal_the_definition_with_two_watched) { beside_the_definition(0.985, 2, 5, 0.9); }
TEST(steps_equal_the_definition_without_a_prompt) { beside_the_definition(0.9, 1, 0, 0.9); }
TEST(steps_equal_the_definition_when_all_is_refreshed) { beside_the_definition(1.5, 1, 10, 0.9); }
TEST(steps_equal_the_definition_when_nothing_is) { beside_the_definition(0, 1, 10, 0.9); }

/* ---- what must hold ---- */

/* Rows that each layer runs in a second step, for some threshold. */
static void second_step(net *m, double gamma, kvmem_diffusion *d, int *rows) {
    kvmem_diffusion_config cfg = config_of(m);
    int ids[40], i, l, n = 0, seen[40] = { 0 };
    cfg.drift = gamma;
    test_state = 77;
    text_of(ids, 40, 12, 0);
    CHECK_OK(kvmem_diffusion_init(d, &cfg));
    CHECK_OK(kvmem_diffusion_start(d, ids, 40));
    memset(m->rows, 0, sizeof m->rows);
    CHECK_OK(kvmem_diffusion_step(d));
    for (l = 0; l < L; l++) CHECK(m->rows[l] == 40);
    CHECK(d->boundary == 0 && d->count.rows == 40 * L && d->count.refreshed == L);
    for (l = 0; l < L; l++) seen[d->tracked[l]] = 1;
    for (i = 0; i < 40; i++) seen[i] |= d->state[i] == 0 && ids[i] == MASK; /* told in the first step */
    for (i = 0, l = 0; i < 40 && l < 6; i++)
        if (d->state[i] == 1) { seen[i] = 1; l++; }
    for (i = 0; i < 40; i++) n += seen[i];
    memset(m->rows, 0, sizeof m->rows);
    CHECK_OK(kvmem_diffusion_forward(d));
    CHECK(m->rows[0] == n);
    *rows = n;
}
TEST(a_threshold_above_1_refreshes_all_layers_but_the_first) {
    net *m = net_new();
    kvmem_diffusion d;
    int n, l;
    second_step(m, 1.01, &d, &n);
    CHECK(d.boundary == 1);
    for (l = 1; l < L; l++) CHECK(m->rows[l] == 40);
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(a_threshold_of_0_never_refreshes) {
    net *m = net_new();
    kvmem_diffusion d;
    int n, l;
    second_step(m, 0, &d, &n);
    for (l = 0; l < L; l++) CHECK(m->rows[l] == n && d.sigma[l] >= 0 && d.sigma[l] <= 1);
    while (d.n_masks) {
        CHECK(d.boundary == L);
        REQUIRE_OK(kvmem_diffusion_unmask(&d));
        if (d.n_masks) REQUIRE_OK(kvmem_diffusion_forward(&d));
    }
    CHECK(d.count.refreshed == L);
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(a_break_at_layer_3_runs_the_layers_4_to_7_again) {
    net *m = net_new();
    kvmem_diffusion d;
    int n, l;
    for (l = 0; l < 3; l++) m->sharp[l] = 0; /* even attention cannot drift */
    m->sharp[3] = 40;
    second_step(m, 0.9999, &d, &n);
    CHECK(d.boundary == 4);
    for (l = 0; l < L; l++) {
        CHECK(m->rows[l] == (l < 4 ? n : 40));
        CHECK(l < 3 ? d.sigma[l] > 0.99999 : l == 3 ? d.sigma[l] < 0.9999 : d.sigma[l] == -1);
    }
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(without_reuse_the_logits_are_those_of_an_uncached_decoder) { /* bit for bit, at every step */
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d, fresh;
    int ids[50], steps = 0;
    cfg.every_layer = 1;
    text_of(ids, 50, 8, 0.2);
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    REQUIRE_OK(kvmem_diffusion_init(&fresh, &cfg));
    REQUIRE_OK(kvmem_diffusion_start(&d, ids, 50));
    for (; d.n_masks && steps < 60; steps++) {
        REQUIRE_OK(kvmem_diffusion_start(&fresh, d.ids, 50));
        REQUIRE_OK(kvmem_diffusion_forward(&fresh));
        REQUIRE_OK(kvmem_diffusion_forward(&d));
        CHECK(d.boundary == 0 && d.n_window == fresh.n_window);
        CHECK(!memcmp(d.logits, fresh.logits, (size_t)(d.n_window * V) * sizeof(float)));
        REQUIRE_OK(kvmem_diffusion_unmask(&d));
    }
    CHECK(d.count.refreshed == (int64_t)L * steps);
    kvmem_diffusion_free(&d);
    kvmem_diffusion_free(&fresh);
    free(m);
}
TEST(the_first_layers_keys_and_values_are_always_exact) {
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d;
    float x[E], q[H * D], k[G * D], v[G * D];
    int ids[30], i;
    int32_t pos;
    cfg.drift = 0;
    text_of(ids, 30, 5, 0.2);
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    REQUIRE_OK(kvmem_diffusion_start(&d, ids, 30));
    while (d.n_masks) {
        REQUIRE_OK(kvmem_diffusion_forward(&d));
        for (i = 0; i < 30; i++) {
            pos = i;
            net_embed(m, 1, &d.ids[i], &pos, x);
            net_qkv(m, 0, 1, x, &pos, q, k, v);
            CHECK(!memcmp(k, d.k + i * G * D, sizeof k) && !memcmp(v, d.v + i * G * D, sizeof v));
            CHECK(!memcmp(q, d.q + i * H * D, sizeof q) && !memcmp(x, d.x + i * E, sizeof x));
        }
        REQUIRE_OK(kvmem_diffusion_unmask(&d));
    }
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(the_sure_and_the_surest_are_told_inside_the_window_only) {
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d;
    int ids[60], before[60], i, j;
    cfg.sure = 0.06;
    text_of(ids, 60, 4, 0);
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    REQUIRE_OK(kvmem_diffusion_start(&d, ids, 60));
    while (d.n_masks) {
        double p[6], most = 0;
        int best[6], told = 0, at[6], n;
        REQUIRE_OK(kvmem_diffusion_forward(&d));
        n = d.n_window;
        CHECK(n == KVMEM__MIN(6, d.n_masks));
        for (i = 0, j = 0; i < n; j++) /* the leftmost masks */
            if (d.state[j] == 1) { CHECK(d.at[i] == j); at[i++] = j; }
        for (i = 0; i < n; i++) {
            double sum = 0;
            best[i] = 0;
            for (j = 0; j < MASK; j++) {
                sum += exp((double)d.logits[i * V + j]);
                if (d.logits[i * V + j] > d.logits[i * V + best[i]]) best[i] = j;
            }
            p[i] = exp((double)d.logits[i * V + best[i]]) / sum;
            if (p[i] > most) most = p[i];
        }
        memcpy(before, d.ids, sizeof before);
        REQUIRE_OK(kvmem_diffusion_unmask(&d));
        for (i = 0; i < n; i++) {
            const int should = p[i] >= KVMEM__MIN(0.06, most) * (1 - 1e-9);
            CHECK((d.state[at[i]] == 0) == should);
            if (should) { CHECK(d.ids[at[i]] == best[i]); before[at[i]] = best[i]; told++; }
        }
        CHECK(told >= 1 && !memcmp(before, d.ids, sizeof before));
    }
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(behind_the_end_of_the_text_masks_are_gone) { /* and the rest is as if they had never been */
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d, little;
    int ids[40], i;
    cfg.eos = 3;
    cfg.every_layer = 1;
    text_of(ids, 40, 10, 0);
    for (i = 0; i < 10; i++) if (ids[i] == 3) ids[i] = 4;
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    REQUIRE_OK(kvmem_diffusion_init(&little, &cfg));
    REQUIRE_OK(kvmem_diffusion_start(&d, ids, 40));
    REQUIRE_OK(kvmem_diffusion_forward(&d));
    REQUIRE_OK(kvmem_diffusion_set(&d, 15, 3));
    CHECK(d.n_masks == 5 && d.state[14] == 1 && d.state[16] == 2 && d.state[39] == 2);
    REQUIRE_OK(kvmem_diffusion_start(&little, d.ids, 16));
    memset(m->rows, 0, sizeof m->rows);
    REQUIRE_OK(kvmem_diffusion_forward(&d));
    CHECK(d.n_window == 5 && d.at[4] == 14 && m->rows[0] == 16 && m->rows[7] == 16);
    REQUIRE_OK(kvmem_diffusion_forward(&little));
    for (i = 0; i < 5 * V; i++) CHECK_NEAR(d.logits[i], little.logits[i], 1e-5);
    CHECK(kvmem_diffusion_set(&d, 20, 5) == KVMEM_BAD_ARGUMENT); /* it is no mask any more */
    cfg.every_layer = 0;
    d.config.every_layer = 0;
    REQUIRE_OK(kvmem_diffusion_unmask(&d));
    while (d.n_masks) REQUIRE_OK(kvmem_diffusion_step(&d));
    for (i = 0; i < 16; i++) CHECK(d.ids[i] != MASK);
    for (i = 16; i < 40; i++) CHECK(d.ids[i] == MASK);
    kvmem_diffusion_free(&d);
    kvmem_diffusion_free(&little);
    free(m);
}
TEST(bytes_are_four_rows_a_token_and_layer_and_are_taken_once) {
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d;
    test_heap h;
    size_t cache, layer;
    int ids[MAXN];
    memset(&h, 0, sizeof h);
    cfg.allocator = test_allocator(&h);
    text_of(ids, MAXN, 20, 0.5);
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    CHECK(h.live == d.block_size && h.calls == 1);
    layer = (size_t)(MAXN * (E + H * D + 2 * G * D)) * sizeof(float);
    cache = L * layer;
    CHECK(d.block_size > cache && d.block_size < cache + 3 * layer + (size_t)(MAXN * (3 * H + 8) + 6 * V) * 4);
    REQUIRE_OK(kvmem_diffusion_start(&d, ids, MAXN));
    while (d.n_masks) REQUIRE_OK(kvmem_diffusion_step(&d));
    CHECK(h.calls == 1 && h.live == d.block_size);
    kvmem_diffusion_free(&d);
    CHECK(h.live == 0 && !h.wrong);
    h.fail_at = h.calls + 1;
    CHECK(kvmem_diffusion_init(&d, &cfg) == KVMEM_NO_MEMORY && strstr(d.error.text, "bytes"));
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(any_number_of_threads_gives_the_same_bits) {
    net *m = net_new();
    int ids[MAXN], i, steps = 0;
    kvmem_diffusion d[2];
    text_of(ids, MAXN, 20, 0.6);
    for (i = 0; i < 2; i++) {
        kvmem_diffusion_config cfg = config_of(m);
        cfg.threads = i ? 4 : 1;
        cfg.drift = 0.999;
        REQUIRE_OK(kvmem_diffusion_init(&d[i], &cfg));
        REQUIRE_OK(kvmem_diffusion_start(&d[i], ids, MAXN));
    }
    for (; d[0].n_masks && steps < 6; steps++) {
        REQUIRE_OK(kvmem_diffusion_forward(&d[0]));
        REQUIRE_OK(kvmem_diffusion_forward(&d[1]));
        CHECK(!memcmp(d[0].logits, d[1].logits, (size_t)(d[0].n_window * V) * sizeof(float)));
        CHECK(!memcmp(d[0].sigma, d[1].sigma, L * sizeof(double)));
        REQUIRE_OK(kvmem_diffusion_unmask(&d[0]));
        REQUIRE_OK(kvmem_diffusion_unmask(&d[1]));
    }
    kvmem_diffusion_free(&d[0]);
    kvmem_diffusion_free(&d[1]);
    free(m);
}
TEST(after_a_failure_of_the_model_everything_runs_again) {
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d;
    int ids[30], at;
    cfg.drift = 0;
    text_of(ids, 30, 10, 0);
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    for (at = 1; at <= 2 * L + 2; at++) {
        REQUIRE_OK(kvmem_diffusion_start(&d, ids, 30));
        m->fail_at = 0;
        REQUIRE_OK(kvmem_diffusion_step(&d));
        m->seen = 0;
        m->fail_at = at;
        CHECK(kvmem_diffusion_step(&d) == KVMEM_IO && d.error.text[0]);
        CHECK(kvmem_diffusion_unmask(&d) == KVMEM_BAD_STATE);
        m->fail_at = 0;
        memset(m->rows, 0, sizeof m->rows);
        CHECK_OK(kvmem_diffusion_step(&d));
        CHECK(d.boundary == 0 && m->rows[0] == 30 && m->rows[L - 1] == 30);
    }
    kvmem_diffusion_free(&d);
    free(m);
}
TEST(misuse_is_named) {
    net *m = net_new();
    kvmem_diffusion_config cfg = config_of(m);
    kvmem_diffusion d;
    int ids[4] = { 1, MASK, 2, MASK }, bad[2] = { 1, V };
    memset(&d, 0, sizeof d);
    CHECK(kvmem_diffusion_start(&d, ids, 4) == KVMEM_BAD_STATE && kvmem_diffusion_step(&d) == KVMEM_BAD_STATE);
    cfg.model.rest = NULL;
    CHECK(kvmem_diffusion_init(&d, &cfg) == KVMEM_BAD_ARGUMENT);
    cfg = config_of(m);
    cfg.model.n_kv_heads = 3;
    CHECK(kvmem_diffusion_init(&d, &cfg) == KVMEM_BAD_ARGUMENT && strstr(d.error.text, "multiple"));
    cfg = config_of(m);
    cfg.eos = MASK;
    CHECK(kvmem_diffusion_init(&d, &cfg) == KVMEM_BAD_ARGUMENT);
    cfg = config_of(m);
    cfg.max_rows = 0;
    CHECK(kvmem_diffusion_init(&d, &cfg) == KVMEM_BAD_ARGUMENT);
    cfg = config_of(m);
    cfg.max_rows = INT_MAX;
    cfg.model.n_layers = 65536;
    cfg.model.n_embd = 1 << 24;
    CHECK(kvmem_diffusion_init(&d, &cfg) == KVMEM_BAD_ARGUMENT && strstr(d.error.text, "overflow"));
    kvmem_diffusion_free(&d);
    kvmem_diffusion_free(NULL);
    cfg = config_of(m);
    REQUIRE_OK(kvmem_diffusion_init(&d, &cfg));
    CHECK(kvmem_diffusion_step(&d) == KVMEM_BAD_STATE);
    CHECK(kvmem_diffusion_start(&d, bad, 2) == KVMEM_BAD_ARGUMENT && kvmem_diffusion_start(&d, ids, 0) != KVMEM_OK);
    CHECK(kvmem_diffusion_start(&d, ids, MAXN + 1) == KVMEM_BAD_ARGUMENT);
    REQUIRE_OK(kvmem_diffusion_start(&d, ids, 4));
    CHECK(kvmem_diffusion_set(&d, 0, 1) == KVMEM_BAD_ARGUMENT && kvmem_diffusion_set(&d, 1, MASK) != KVMEM_OK);
    CHECK(kvmem_diffusion_unmask(&d) == KVMEM_BAD_STATE);
    REQUIRE_OK(kvmem_diffusion_forward(&d));
    d.logits[V] = NAN;
    CHECK(kvmem_diffusion_unmask(&d) == KVMEM_BAD_VALUE && d.n_masks == 2);
    REQUIRE_OK(kvmem_diffusion_set(&d, 1, 7));
    REQUIRE_OK(kvmem_diffusion_set(&d, 3, 7));
    CHECK(kvmem_diffusion_forward(&d) == KVMEM_BAD_STATE && strstr(d.error.text, "no masks"));
    kvmem_diffusion_free(&d);
    free(m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "elastic_dllm");
    RUN(steps_equal_the_definition);
    RUN(steps_equal_the_definition_with_a_middle_threshold);
    RUN(steps_equal_the_definition_with_two_watched);
    RUN(steps_equal_the_definition_without_a_prompt);
    RUN(steps_equal_the_definition_when_all_is_refreshed);
    RUN(steps_equal_the_definition_when_nothing_is);
    RUN(a_threshold_above_1_refreshes_all_layers_but_the_first);
    RUN(a_threshold_of_0_never_refreshes);
    RUN(a_break_at_layer_3_runs_the_layers_4_to_7_again);
    RUN(without_reuse_the_logits_are_those_of_an_uncached_decoder);
    RUN(the_first_layers_keys_and_values_are_always_exact);
    RUN(the_sure_and_the_surest_are_told_inside_the_window_only);
    RUN(behind_the_end_of_the_text_masks_are_gone);
    RUN(bytes_are_four_rows_a_token_and_layer_and_are_taken_once);
    RUN(any_number_of_threads_gives_the_same_bits);
    RUN(after_a_failure_of_the_model_everything_runs_again);
    RUN(misuse_is_named);
    return test_end();
}
