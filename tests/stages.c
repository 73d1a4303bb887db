/* The stages: each method's worked example, the facts that every eviction must show, and a slow oracle in
   double precision that keeps, drops and attends beside the cache. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"

/* ---- pieces that need no cache ---- */

TEST(pool_divides_by_the_kernel_at_the_ends_too) {
    const float a[7] = { 1, 0, 0, 0, 0, 0, 5 }, want[7] = { .2f, .2f, .2f, 0, 1, 1, 1 };
    float out[7];
    int t;
    kvmem__pool(out, a, 7, 5, 0);
    for (t = 0; t < 7; t++) CHECK_NEAR(out[t], want[t], 1e-7);
    kvmem__pool(out, a, 7, 1, 0);
    CHECK(!memcmp(out, a, sizeof a)); /* kernel 1 is no pooling */
    kvmem__pool(out, a, 7, 3, 1);
    CHECK(out[0] == 1 && out[1] == 1 && out[2] == 0 && out[5] == 5 && out[6] == 5);
    kvmem__pool(out, a, 1, 255, 0);
    CHECK_NEAR(out[0], 1.0 / 255, 1e-9);
}
TEST(pool_equals_the_definition) {
    int trial, t, i;
    for (trial = 0; trial < 200; trial++) {
        float x[40], out[40];
        const int n = 1 + (int)(test_unit() * 39), k = 1 + 2 * (int)(test_unit() * 8), use_max = trial & 1;
        for (t = 0; t < n; t++) x[t] = (float)test_normal();
        kvmem__pool(out, x, n, k, use_max);
        for (t = 0; t < n; t++) {
            double sum = 0, top = -1e30;
            for (i = -(k / 2); i <= k / 2; i++) {
                if (t + i < 0 || t + i >= n) continue;
                sum += (double)x[t + i];
                if ((double)x[t + i] > top) top = (double)x[t + i];
            }
            CHECK_NEAR(out[t], use_max ? top : sum / k, 1e-5);
        }
    }
}
TEST(pyramid_floors_its_step_as_the_code_does) { /* L=4 cap=72 w=8 beta=20 */
    CHECK(kvmem__pyramid(0, 4, 64, 1000, 20, 0) == 125 && kvmem__pyramid(1, 4, 64, 1000, 20, 0) == 85);
    CHECK(kvmem__pyramid(2, 4, 64, 1000, 20, 0) == 45 && kvmem__pyramid(3, 4, 64, 1000, 20, 0) == 5);
    CHECK(kvmem__pyramid(0, 4, 64, 1000, 20, 1) == 125 && kvmem__pyramid(1, 4, 64, 1000, 20, 1) == 84);
    CHECK(kvmem__pyramid(2, 4, 64, 1000, 20, 1) == 44 && kvmem__pyramid(3, 4, 64, 1000, 20, 1) == 3);
    CHECK(kvmem__pyramid(0, 1, 64, 1000, 20, 0) == 64 && kvmem__pyramid(0, 1, 64, 1000, 20, 1) == 64);
    CHECK(kvmem__pyramid(0, 4, 64, 128, 20, 0) == 125 && kvmem__pyramid(0, 4, 64, 120, 20, 0) == 120);
}
TEST(pyramid_with_exact_1_spends_the_budget_and_never_rises) {
    int trial, l;
    for (trial = 0; trial < 3000; trial++) {
        const int L = 1 + (int)(test_unit() * 40), B = 1 + (int)(test_unit() * 300);
        const int m = B + (int)(test_unit() * 3 * B), beta = 1 + (int)(test_unit() * test_unit() * 60);
        int64_t sum = 0;
        int before = INT_MAX;
        for (l = 0; l < L; l++) {
            const int k = kvmem__pyramid(l, L, B, m, beta, 1), code = kvmem__pyramid(l, L, B, m, beta, 0);
            CHECK(k >= 0 && k <= before && k <= (L > 1 ? m : B) && code <= (L > 1 ? m : B));
            if (beta == 1) CHECK(k == B && code == B);
            before = k;
            sum += k;
        }
        if (sum != (int64_t)L * B) { FAIL_AT("L=%d B=%d m=%d beta=%d: sum %d", L, B, m, beta, (int)sum); return; }
    }
}

/* ---- a cache under test: rows come from a hash of (seed, layer, head, position, channel) or by hand ---- */

enum { MAX_D = 32, MAX_N = 256 };
typedef struct world {
    kvmem_cache c;
    kvmem_recipe r;
    int L, H, G, d, n; /* n: tokens told so far */
    float gain;        /* of the random queries */
    const double (*prob)[MAX_D]; /* row h * prob_n + i: wanted probabilities of query i of head h, keys
                                    are unit vectors; or NULL */
    int prob_n;
    const float *keys; /* (n, d) keys of every lane, or NULL */
    float out[4 * 64 * 8 * MAX_D]; /* (layer, token, head, channel) of the last block */
    kvmem_rope rope[4];
    float inv_freq[MAX_D / 2];
} world;

static float cell(int what, int layer, int head, int pos, int ch) {
    int i;
    double s = 0;
    uint64_t u = kvmem__random((uint64_t)test_seed * 64 + (uint64_t)what, (uint64_t)layer * 64 + (uint64_t)head,
                               (uint64_t)pos, (uint64_t)ch);
    for (i = 0; i < 6; i++) { s += kvmem__unit(u); u = kvmem__mix(u); }
    return (float)((s - 3) * 1.4);
}
static float value_of(const world *w, int what, int layer, int head, int pos, int ch) {
    if (w->prob && what == 0) {
        const double p = w->prob[head * w->prob_n + pos][ch];
        return p > 0 ? (float)log(p) : -80.0f;
    }
    if (w->prob && what == 1) return ch == pos ? 1.0f : 0.0f;
    if (w->keys && what == 1) return w->keys[pos * w->d + ch];
    return cell(what, layer, head, pos, ch) * (what == 0 ? w->gain : 1.0f);
}
/* A cache of that shape in an all-zero world but for prob, prob_n and keys. */
static int begin_with(world *w, const char *text, int L, int H, int G, int d, int rope, int threads) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_error e;
    int i;
    w->L = L; w->H = H; w->G = G; w->d = d;
    w->gain = 1.5f;
    if (kvmem_recipe_parse(&w->r, text, &e)) { FAIL_AT("%s: %s", text, e.text); return 0; }
    cfg.shape.n_layers = L; cfg.shape.n_heads = H; cfg.shape.n_kv_heads = G; cfg.shape.head_dim = d;
    cfg.shape.scale = w->prob ? 1.0f : 0.0f;
    cfg.recipe = &w->r;
    cfg.max_block = 64;
    cfg.threads = threads;
    for (i = 0; i < d / 2; i++) w->inv_freq[i] = (float)pow(10000.0, -2.0 * i / d);
    for (i = 0; i < L; i++) {
        w->rope[i].n_rot = d; w->rope[i].neox = i & 1; w->rope[i].mscale = 1; w->rope[i].inv_freq = w->inv_freq;
    }
    if (rope) cfg.shape.rope = w->rope;
    if (kvmem_cache_init(&w->c, &cfg)) { FAIL_AT("%s: %s", text, w->c.error.text); return 0; }
    return 1;
}
static int begin(world *w, const char *text, int L, int H, int G, int d, int rope, int threads) {
    memset(w, 0, sizeof *w);
    return begin_with(w, text, L, H, G, d, rope, threads);
}
/* One layer in which attention row i of head h is prob[h * n + i]. */
static int begin_prob(world *w, const char *text, int H, int G, const double (*prob)[MAX_D], int n) {
    memset(w, 0, sizeof *w);
    w->prob = prob;
    w->prob_n = n;
    return begin_with(w, text, 1, H, G, MAX_D, 0, 1);
}
static kvmem_view view_of(world *w, int layer) {
    kvmem_view v;
    v.cache = &w->c;
    v.layer = layer;
    v.par = w->r.stage[KVMEM_SCORE].par;
    v.user = NULL;
    v.seed = w->r.seed;
    return v;
}
/* Tell n tokens in one block. */
static kvmem_status tell(world *w, int n, kvmem_phase phase) {
    static float q[64 * 8 * MAX_D], k[64 * 8 * MAX_D], v[64 * 8 * MAX_D];
    int l, t, h, ch;
    for (l = 0; l < w->L; l++) {
        for (t = 0; t < n; t++)
            for (h = 0; h < w->H; h++)
                for (ch = 0; ch < w->d; ch++) {
                    q[(t * w->H + h) * w->d + ch] = value_of(w, 0, l, h, w->n + t, ch);
                    if (h >= w->G) continue;
                    k[(t * w->G + h) * w->d + ch] = value_of(w, 1, l, h, w->n + t, ch);
                    v[(t * w->G + h) * w->d + ch] = value_of(w, 2, l, h, w->n + t, ch);
                }
        KVMEM__TRY(kvmem_cache_append(&w->c, l, n, k, v, NULL));
        KVMEM__TRY(kvmem_cache_attend(&w->c, l, n, q, w->out + (size_t)l * (size_t)(n * w->H * w->d)));
    }
    w->n += n;
    return kvmem_cache_commit(&w->c, phase);
}
static int told(world *w, int n, kvmem_phase phase) {
    if (tell(w, n, phase) == KVMEM_OK) return 1;
    FAIL_AT("%s", w->c.error.text);
    return 0;
}
/* Positions left in a lane; returns their number. */
static int left(const world *w, int layer, int g, int32_t *pos) {
    const int n = kvmem_cache_lane_len(&w->c, layer, g);
    if (kvmem_cache_read(&w->c, layer, g, 0, n, NULL, NULL, pos)) FAIL_AT("read of lane %d %d", layer, g);
    return n;
}
static int lane_is(const world *w, int layer, int g, int n, const int *want) {
    int32_t pos[MAX_N];
    const int have = left(w, layer, g, pos);
    int t;
    for (t = 0; have == n && t < n && pos[t] == want[t]; t++) {}
    if (have == n && t == n) return 1;
    printf("  lane %d %d holds", layer, g);
    for (t = 0; t < have; t++) printf(" %d", (int)pos[t]);
    printf("\n");
    return 0;
}

/* ---- the oracle: attention in double precision over given positions ---- */

static void turn(double *x, int d, const world *w, int layer, int pos) { /* RoPE */
    int i;
    for (i = 0; i < d / 2; i++) {
        const int a = w->rope[layer].neox ? i : 2 * i, b = w->rope[layer].neox ? i + d / 2 : 2 * i + 1;
        const double angle = pos * (double)w->inv_freq[i], c = cos(angle), s = sin(angle), x0 = x[a], x1 = x[b];
        x[a] = x0 * c - x1 * s;
        x[b] = x0 * s + x1 * c;
    }
}
/* p (n): probabilities that head h's query at position qpos gives the entries at pos (n). rope: rows are
   rotated, by position, or by slot. */
static void oracle_row(const world *w, int layer, int h, int qpos, int n, const int32_t *pos, int rope, int by_slot,
                       double *p) {
    const int g = h / (w->H / w->G), d = w->d;
    double q[MAX_D], k[MAX_D], top = -1e300, sum = 0;
    int t, c, qslot = 0;
    for (t = 0; t < n; t++) if (pos[t] <= qpos) qslot = t;
    for (c = 0; c < d; c++) q[c] = (double)value_of(w, 0, layer, h, qpos, c);
    if (rope) turn(q, d, w, layer, by_slot ? qslot : qpos);
    for (t = 0; t < n; t++) {
        p[t] = 0;
        for (c = 0; c < d; c++) k[c] = (double)value_of(w, 1, layer, g, pos[t], c);
        if (rope) turn(k, d, w, layer, by_slot ? t : pos[t]);
        for (c = 0; c < d; c++) p[t] += q[c] * k[c];
        if (!w->prob) p[t] /= sqrt((double)d);
        if (pos[t] <= qpos && p[t] > top) top = p[t];
    }
    for (t = 0; t < n; t++) sum += p[t] = pos[t] <= qpos ? exp(p[t] - top) : 0;
    for (t = 0; t < n; t++) p[t] /= sum;
}
/* Largest difference between the outputs of the last single-token block and the oracle over pos (n). */
static double oracle_error(const world *w, int layer, int g, int n, const int32_t *pos, int rope, int by_slot) {
    const int r = w->H / w->G;
    double p[MAX_N], worst = 0;
    int h, c, t;
    for (h = g * r; h < (g + 1) * r; h++) {
        oracle_row(w, layer, h, w->n - 1, n, pos, rope, by_slot, p);
        for (c = 0; c < w->d; c++) {
            double o = 0, e;
            for (t = 0; t < n; t++) o += p[t] * (double)value_of(w, 2, layer, g, pos[t], c);
            e = fabs(o - (double)w->out[(layer * w->H + h) * w->d + c]);
            if (!(e <= worst)) worst = e;
        }
    }
    return worst;
}
/* The k best of x (n) by counting, rising, ties to the lower index. Returns how far the last one in stands
   above the first one out. */
static double best(const double *x, int n, int k, int *out) {
    double in = 1e300, rest = -1e300;
    int i, j, m = 0;
    for (i = 0; i < n; i++) {
        int better = 0;
        for (j = 0; j < n; j++) better += x[j] > x[i] || (x[j] == x[i] && j < i);
        if (better < k) { out[m++] = i; if (x[i] < in) in = x[i]; }
        else if (x[i] > rest) rest = x[i];
    }
    return in - rest;
}

/* A slow copy of the memory: positions and sums per lane, reduced by the papers' rules. */
typedef struct lane_sim { int n; int32_t pos[MAX_N]; double acc[MAX_N], last[MAX_N]; } lane_sim;
static lane_sim sim[4][8];
static double score[4][8][MAX_N];

static void sim_tell(const world *w, int from, int n) { /* before the world tells them */
    double p[MAX_N];
    int l, g, t, j, h;
    for (l = 0; l < w->L; l++)
        for (g = 0; g < w->G; g++) {
            lane_sim *s = &sim[l][g];
            const int r = w->H / w->G;
            for (t = 0; t < n; t++) { s->pos[s->n] = from + t; s->acc[s->n++] = 0; }
            for (t = 0; t < n; t++) {
                for (j = 0; j < s->n; j++) s->last[j] = 0;
                for (h = g * r; h < (g + 1) * r; h++) {
                    oracle_row(w, l, h, from + t, s->n, s->pos, 0, 0, p);
                    for (j = 0; j < s->n; j++) { s->acc[j] += p[j] / r; s->last[j] += p[j] / r; }
                }
            }
        }
}
/* Keep `keep` entries of every lane: the first, the recent, the best of the rest by score (L, G, n). Returns
   the smallest step between kept and dropped scores. */
static double sim_reduce(const world *w, int keep, int first, int recent) {
    double gap = 1e300;
    int l, g, t;
    for (l = 0; l < w->L; l++)
        for (g = 0; g < w->G; g++) {
            lane_sim *s = &sim[l][g];
            const int m = keep - first - recent;
            int kept[MAX_N];
            double now;
            if (s->n <= keep) continue;
            now = best(score[l][g] + first, s->n - first - recent, m, kept + first);
            if (now < gap) gap = now;
            for (t = 0; t < m; t++) kept[first + t] += first;
            for (t = 0; t < first; t++) kept[t] = t;
            for (t = 0; t < recent; t++) kept[keep - recent + t] = s->n - recent + t;
            for (t = 0; t < keep; t++) { s->pos[t] = s->pos[kept[t]]; s->acc[t] = s->acc[kept[t]]; }
            s->n = keep;
        }
    return gap;
}
static int sim_agrees(const world *w) {
    int l, g, t;
    for (l = 0; l < w->L; l++)
        for (g = 0; g < w->G; g++) {
            int32_t pos[MAX_N];
            if (left(w, l, g, pos) != sim[l][g].n) return 0;
            for (t = 0; t < sim[l][g].n; t++) if (pos[t] != sim[l][g].pos[t]) return 0;
        }
    return 1;
}

/* ---- facts of every eviction ---- */

static const char *const methods[] = { "window", "streamingllm", "h2o recent=5", "tova",
    "snapkv recent=8 score=snapkv(window=8)", "pyramidkv", "score=random", "score=knorm",
    "score=h2o(normalize=1) recent=2 sink=1 when=block",
    "score=snapkv(window=4,kernel=3,pool=max) recent=4 when=every(5)", "score=recency sink=3 when=block place=cache" };
enum { N_METHODS = sizeof methods / sizeof *methods };
static world A, B;

TEST(a_budget_that_covers_the_tokens_changes_no_bit) {
    static const char *const amounts[] = { "budget=60", "budget=1000000", "budget=100%", "budget=all" };
    int m, a, step;
    for (m = 0; m < N_METHODS; m++)
        for (a = 0; a < 4; a++) {
            char text[200];
            sprintf(text, "%s %s", methods[m], amounts[a]);
            if (!begin(&A, "full", 2, 4, 2, 16, 1, 1) || !begin(&B, text, 2, 4, 2, 16, 1, 1)) return;
            for (step = 0; step < 22; step++) {
                const int n = step < 2 ? 20 : 1;
                const kvmem_phase phase = step == 0 ? KVMEM_PREFILL : step == 1 ? KVMEM_PROMPT_END : KVMEM_DECODE;
                if (!told(&A, n, phase) || !told(&B, n, phase)) { FAIL_AT("%s", text); return; }
                if (memcmp(A.out, B.out, (size_t)(2 * n * 4 * 16) * sizeof(float))) {
                    FAIL_AT("%s differs at step %d", text, step);
                    return;
                }
            }
            CHECK(kvmem_cache_lane_len(&B.c, 1, 1) == 60);
            kvmem_cache_free(&A.c);
            kvmem_cache_free(&B.c);
        }
}
/* Does a commit at this step reduce? Step 0 is a block of the prompt, step 1 its last one. */
static int due_at(const kvmem_recipe *r, int step) {
    if (step == 1 || r->when == KVMEM_WHEN_BLOCK) return 1;
    if (step == 0 || r->when == KVMEM_WHEN_PROMPT) return 0;
    return r->when == KVMEM_WHEN_STEP || (step - 1) % r->every == 0;
}
TEST(kept_positions_rise_and_hold_sinks_window_and_count) {
    int m, step, l, g, t, shape;
    for (m = 0; m < N_METHODS; m++)
        for (shape = 0; shape < 3; shape++) { /* groups of 1, 2 and H */
            char text[200];
            const kvmem_recipe *r = &A.r;
            sprintf(text, "%s budget=%s", methods[m], shape == 1 ? "25%" : "17");
            if (!begin(&A, text, 2, 4, shape == 0 ? 4 : shape == 1 ? 2 : 1, 8, 1, 1)) return;
            for (step = 0; step < 40; step++) {
                const int n = step < 2 ? 30 : 1, uniform = !strcmp(r->stage[KVMEM_BUDGET].entry->word, "uniform");
                const int recent = r->recent.kind == KVMEM_COUNT ? (int)r->recent.value : 0;
                const kvmem_phase phase = step == 0 ? KVMEM_PREFILL : step == 1 ? KVMEM_PROMPT_END : KVMEM_DECODE;
                if (!told(&A, n, phase)) { FAIL_AT("%s", text); return; }
                for (l = 0; l < A.L; l++)
                    for (g = 0; g < A.G; g++) {
                        int32_t pos[MAX_N];
                        const int have = left(&A, l, g, pos), budget = shape == 1 ? A.n / 4 : 17;
                        for (t = 0; t < have; t++) CHECK(pos[t] >= 0 && pos[t] < A.n && (!t || pos[t] > pos[t - 1]));
                        if (due_at(r, step) && uniform && have != KVMEM__MIN(budget, A.n))
                            FAIL_AT("%s: %d entries at step %d, not %d", text, have, step, budget);
                        for (t = 0; t < r->sink && t < have; t++) CHECK(pos[t] == t);
                        for (t = 0; t < recent && t < have - r->sink; t++) CHECK(pos[have - 1 - t] == A.n - 1 - t);
                    }
            }
            kvmem_cache_free(&A.c);
        }
}
TEST(attention_after_eviction_is_full_attention_with_the_evicted_masked) {
    int m, step, l, g;
    for (m = 0; m < N_METHODS; m++) {
        char text[200];
        sprintf(text, "%s budget=17", methods[m]);
        if (!begin(&A, text, 2, 4, 2, 16, 1, 1) || !told(&A, 40, KVMEM_PROMPT_END)) return;
        for (step = 0; step < 12; step++) {
            const int by_slot = !strcmp(A.r.stage[KVMEM_PLACE].entry->word, "cache");
            int32_t pos[2][2][MAX_N];
            int n[2][2];
            for (l = 0; l < 2; l++)
                for (g = 0; g < 2; g++) {
                    n[l][g] = left(&A, l, g, pos[l][g]);
                    pos[l][g][n[l][g]++] = A.n; /* the token to come */
                }
            if (!told(&A, 1, KVMEM_DECODE)) return;
            for (l = 0; l < 2; l++)
                for (g = 0; g < 2; g++) {
                    const double e = oracle_error(&A, l, g, n[l][g], pos[l][g], 1, by_slot);
                    if (!(e < 1e-5)) FAIL_AT("%s: step %d lane %d %d off by %g", text, step, l, g, e);
                }
        }
        kvmem_cache_free(&A.c);
    }
}
TEST(one_thread_keeps_what_two_keep) {
    int m, step, l, g;
    for (m = 0; m < N_METHODS; m++) {
        char text[200];
        sprintf(text, "%s budget=17", methods[m]);
        if (!begin(&A, text, 2, 4, 2, 16, 1, 1) || !begin(&B, text, 2, 4, 2, 16, 1, 2)) return;
        for (step = 0; step < 30; step++) {
            const int n = step ? 1 : 50;
            const kvmem_phase phase = step ? KVMEM_DECODE : KVMEM_PROMPT_END;
            if (!told(&A, n, phase) || !told(&B, n, phase)) return;
            if (memcmp(A.out, B.out, (size_t)(2 * n * 4 * 16) * sizeof(float))) {
                    FAIL_AT("%s differs at step %d", text, step);
                    return;
                }
        }
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                int32_t a[MAX_N], b[MAX_N];
                const int n = left(&A, l, g, a);
                CHECK(left(&B, l, g, b) == n && !memcmp(a, b, (size_t)n * sizeof *a));
            }
        kvmem_cache_free(&A.c);
        kvmem_cache_free(&B.c);
    }
}
TEST(a_budget_below_one_entry_keeps_one) {
    int m, step;
    for (m = 0; m < N_METHODS; m++) {
        char text[200];
        sprintf(text, "%s budget=1%%", methods[m]);
        if (!begin(&A, text, 2, 2, 1, 8, 1, 1) || !told(&A, 20, KVMEM_PROMPT_END)) return;
        CHECK(kvmem_cache_lane_len(&A.c, 0, 0) == 1 && kvmem_cache_lane_len(&A.c, 1, 0) == 1);
        for (step = 0; step < 5; step++) if (!told(&A, 1, KVMEM_DECODE)) return;
        CHECK(kvmem_cache_lane_len(&A.c, 0, 0) >= 1);
        kvmem_cache_free(&A.c);
    }
}

/* ---- the methods ---- */

TEST(streamingllm_keeps_two_sinks_and_three_recent_of_ten) {
    static const int want[5] = { 0, 1, 7, 8, 9 };
    int t;
    if (!begin(&A, "streamingllm budget=5 sink=2", 2, 2, 1, 8, 1, 1)) return;
    for (t = 0; t < 10; t++) {
        if (!told(&A, 1, t ? KVMEM_DECODE : KVMEM_PROMPT_END)) return;
        CHECK(kvmem_cache_lane_len(&A.c, 0, 0) == KVMEM__MIN(t + 1, 5));
    }
    CHECK(lane_is(&A, 0, 0, 5, want) && lane_is(&A, 1, 0, 5, want));
    kvmem_cache_free(&A.c);
}
TEST(streamingllm_without_sinks_is_window) {
    static const int want[4] = { 16, 17, 18, 19 };
    int t;
    if (!begin(&A, "streamingllm budget=4 sink=0", 1, 2, 2, 8, 1, 1) ||
        !begin(&B, "window budget=4", 1, 2, 2, 8, 1, 1)) return;
    for (t = 0; t < 20; t++) if (!told(&A, 1, KVMEM_DECODE) || !told(&B, 1, KVMEM_DECODE)) return;
    CHECK(lane_is(&A, 0, 0, 4, want) && lane_is(&B, 0, 1, 4, want));
    for (t = 0; t < 16; t++) CHECK_NEAR(A.out[t], B.out[t], 1e-5); /* only differences of positions matter */
    kvmem_cache_free(&A.c);
    kvmem_cache_free(&B.c);
}
TEST(recency_tells_neighbours_apart_beyond_two_to_the_24) {
    static float x[8];
    kvmem_config cfg = kvmem_config_default();
    kvmem_cache c;
    kvmem_recipe r;
    int32_t pos[4] = { 0, 1 << 25, (1 << 25) + 1, (1 << 25) + 2 }, got[2];
    REQUIRE_OK(kvmem_recipe_parse(&r, "window budget=2", NULL));
    cfg.recipe = &r;
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = 2;
    REQUIRE_OK(kvmem_cache_init(&c, &cfg));
    CHECK_OK(kvmem_cache_append(&c, 0, 4, x, x, pos));
    CHECK_OK(kvmem_cache_commit(&c, KVMEM_PROMPT_END));
    CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, 2, NULL, NULL, got));
    CHECK(got[0] == pos[2] && got[1] == pos[3]);
    kvmem_cache_free(&c);
}

static const double h2o_rows[3][MAX_D] = { { 1 }, { .5, .5 }, { .2, .3, .5 } };
TEST(h2o_accumulates_columns_and_keeps_the_heavy_hitter_and_the_newest) {
    static const int want[2] = { 0, 2 };
    float acc[3];
    kvmem_view v;
    if (!begin_prob(&A, "h2o budget=3", 1, 1, h2o_rows, 3) || !told(&A, 3, KVMEM_PROMPT_END)) return;
    v = view_of(&A, 0);
    kvmem_view_acc(&v, 0, acc);
    CHECK_NEAR(acc[0], 1.7, 1e-5);
    CHECK_NEAR(acc[1], 0.8, 1e-5);
    CHECK_NEAR(acc[2], 0.5, 1e-5);
    kvmem_cache_free(&A.c);
    if (!begin_prob(&A, "h2o budget=2 recent=1", 1, 1, h2o_rows, 3) || !told(&A, 3, KVMEM_PROMPT_END)) return;
    CHECK(lane_is(&A, 0, 0, 2, want));
    kvmem_cache_free(&A.c);
}
TEST(h2o_normalized_divides_by_the_queries_that_could_see) {
    float s[3];
    kvmem_view v;
    if (!begin_prob(&A, "score=h2o(normalize=1) budget=3", 1, 1, h2o_rows, 3) ||
        !told(&A, 3, KVMEM_PROMPT_END)) return;
    v = view_of(&A, 0);
    CHECK_OK(kvmem__score_h2o(&v, 0, s));
    kvmem__view_scratch_end(&A.c);
    CHECK_NEAR(s[0], 1.7 / 3, 1e-5);
    CHECK_NEAR(s[1], 0.8 / 2, 1e-5);
    CHECK_NEAR(s[2], 0.5, 1e-5);
    kvmem_cache_free(&A.c);
}
TEST(h2o_sums_equal_the_number_of_queries) {
    int step, l, g, t;
    if (!begin(&A, "h2o budget=100", 2, 4, 2, 16, 1, 1)) return;
    for (step = 0; step < 12; step++) {
        const kvmem_phase phase = step == 0 ? KVMEM_PREFILL : step == 1 ? KVMEM_PROMPT_END : KVMEM_DECODE;
        if (!told(&A, step < 2 ? 23 : 1, phase)) return;
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                const kvmem_view v = view_of(&A, l);
                float acc[MAX_N];
                double sum = 0;
                kvmem_view_acc(&v, g, acc);
                for (t = 0; t < A.n; t++) sum += (double)acc[t];
                CHECK_NEAR(sum, A.n, 1e-3);
            }
    }
    kvmem_cache_free(&A.c);
}
static const double tova_rows[6][MAX_D] = { { 1 }, { .5, .5 }, { .6, .1, .3 }, { 1 }, { .5, .5 }, { .2, .3, .5 } };
TEST(tova_keeps_the_same_two_of_three_in_every_lane) {
    static const int want[2] = { 0, 2 };
    int G;
    for (G = 1; G <= 2; G++) {
        float s[3];
        kvmem_view v;
        int g;
        if (!begin_prob(&A, "tova budget=3", 2, G, tova_rows, 3) || !told(&A, 3, KVMEM_PROMPT_END)) return;
        v = view_of(&A, 0);
        for (g = 0; g < G; g++) {
            CHECK_OK(kvmem__score_tova(&v, g, s));
            kvmem__view_scratch_end(&A.c);
            CHECK_NEAR(s[0], 0.4, 1e-6);
            CHECK_NEAR(s[1], 0.2, 1e-6);
            CHECK_NEAR(s[2], 0.4, 1e-6);
        }
        kvmem_cache_free(&A.c);
        if (!begin_prob(&A, "tova budget=2", 2, G, tova_rows, 3) || !told(&A, 3, KVMEM_PROMPT_END)) return;
        CHECK(lane_is(&A, 0, 0, 2, want) && lane_is(&A, 0, G - 1, 2, want));
        kvmem_cache_free(&A.c);
    }
}
TEST(tova_lanes_of_a_layer_hold_the_same_tokens_always) {
    int step, l, g;
    if (!begin(&A, "tova budget=11", 2, 8, 4, 8, 1, 1)) return;
    for (step = 0; step < 60; step++) {
        if (!told(&A, step ? 1 : 30, step ? KVMEM_DECODE : KVMEM_PROMPT_END)) return;
        for (l = 0; l < 2; l++) {
            int32_t a[MAX_N], b[MAX_N];
            const int n = left(&A, l, 0, a);
            for (g = 1; g < 4; g++) CHECK(left(&A, l, g, b) == n && !memcmp(a, b, (size_t)n * sizeof *a));
        }
    }
    kvmem_cache_free(&A.c);
}
/* Every query from `at` on gives x to entry `at` and shares the rest among the others. */
static void spike_rows(double (*rows)[MAX_D], int n, int at, double x) {
    int i, j;
    memset(rows, 0, (size_t)n * sizeof *rows);
    for (i = 0; i < n; i++)
        for (j = 0; j <= i; j++) rows[i][j] = i < at ? 1.0 / (i + 1) : i == 0 ? 1 : j == at ? x : (1 - x) / i;
}
static void snapkv_keeps(const double (*rows)[MAX_D], const char *text, int n, const int *want) {
    if (!begin_prob(&A, text, 1, 1, rows, 12) || !told(&A, 12, KVMEM_PROMPT_END)) return;
    if (!lane_is(&A, 0, 0, n, want)) FAIL_AT("%s", text);
    kvmem_cache_free(&A.c);
}
TEST(snapkv_spreads_a_spike_over_the_kernel) {
    static double rows[12][MAX_D];
    static const int mid[7] = { 2, 3, 4, 5, 6, 10, 11 }, low[5] = { 0, 1, 2, 10, 11 }, one[3] = { 4, 10, 11 };
    const double rest = 0.11 / 10 + 0.11 / 11; /* what the two queries of the window give any other entry */
    float s[12];
    kvmem_view v;
    int t;
    spike_rows(rows, 12, 4, 0.89);
    if (!begin_prob(&A, "score=snapkv(window=2,kernel=5) budget=12", 1, 1, (const double (*)[MAX_D])rows, 12) ||
        !told(&A, 12, KVMEM_PROMPT_END)) return;
    v = view_of(&A, 0);
    CHECK_OK(kvmem_view_attention(&v, 0, 2, s));
    kvmem__view_scratch_end(&A.c);
    CHECK_NEAR(s[4], 2 * 0.89, 1e-5);
    CHECK_OK(kvmem__score_snapkv(&v, 0, s));
    kvmem__view_scratch_end(&A.c);
    for (t = 2; t <= 6; t++) CHECK_NEAR(s[t], (2 * 0.89 + 4 * rest) / 5, 1e-5);
    CHECK_NEAR(s[0], 3 * rest / 5, 1e-5); /* divided by 5, though only 3 are there */
    CHECK(s[10] > 2 && s[11] > s[10]);
    kvmem_cache_free(&A.c);
    snapkv_keeps((const double (*)[MAX_D])rows, "score=snapkv(window=2,kernel=5) budget=7", 7, mid);
    snapkv_keeps((const double (*)[MAX_D])rows, "score=snapkv(window=2,kernel=1) budget=3", 3, one);
    spike_rows(rows, 12, 0, 0.89);
    snapkv_keeps((const double (*)[MAX_D])rows, "score=snapkv(window=2,kernel=5) budget=5", 5, low);
}
TEST(snapkv_never_evicts_while_decoding) {
    int step;
    if (!begin(&A, "snapkv budget=17 recent=8 score=snapkv(window=8)", 2, 4, 2, 8, 1, 1) ||
        !told(&A, 40, KVMEM_PROMPT_END)) return;
    for (step = 1; step < 20; step++) {
        if (!told(&A, 1, KVMEM_DECODE)) return;
        CHECK(kvmem_cache_lane_len(&A.c, 1, 1) == 17 + step);
    }
    kvmem_cache_free(&A.c);
}
TEST(snapkv_votes_sum_to_the_number_of_voters) {
    const int windows[3] = { 1, 8, 40 };
    int i, g, t;
    if (!begin(&A, "snapkv budget=100 recent=0 score=snapkv(window=40)", 1, 4, 2, 8, 1, 1) ||
        !told(&A, 30, KVMEM_PROMPT_END)) return;
    for (i = 0; i < 3; i++)
        for (g = 0; g < 2; g++) {
            const kvmem_view v = view_of(&A, 0);
            float s[MAX_N];
            double sum = 0;
            CHECK_OK(kvmem_view_attention(&v, g, windows[i], s));
            kvmem__view_scratch_end(&A.c);
            for (t = 0; t < 30; t++) sum += (double)s[t];
            CHECK_NEAR(sum, KVMEM__MIN(windows[i], 30), 1e-4); /* all, if fewer were told */
        }
    kvmem_cache_free(&A.c);
}
TEST(knorm_keeps_short_keys_first) { /* (3,4) (1,0) (0,2): order 1, 2, 0 */
    static const float keys[6] = { 3, 4, 1, 0, 0, 2 };
    static const int two[2] = { 1, 2 }, one[1] = { 1 };
    int rope, budget;
    for (rope = 0; rope < 2; rope++) /* a rotation keeps the norm */
        for (budget = 1; budget <= 2; budget++) {
            memset(&A, 0, sizeof A);
            A.keys = keys;
            if (!begin_with(&A, budget == 1 ? "score=knorm budget=1" : "score=knorm budget=2", 1, 1, 1, 2, rope, 1) ||
                !told(&A, 3, KVMEM_PROMPT_END)) return;
            CHECK(lane_is(&A, 0, 0, budget, budget == 1 ? one : two));
            kvmem_cache_free(&A.c);
        }
}
TEST(random_keeps_every_token_equally_often) {
    int hits[40], seed, t, n;
    memset(hits, 0, sizeof hits);
    for (seed = 0; seed < 400; seed++) {
        char text[80];
        int32_t pos[MAX_N];
        sprintf(text, "score=random budget=10 seed=%d", seed);
        if (!begin(&A, text, 1, 1, 1, 2, 0, 1) || !told(&A, 40, KVMEM_PROMPT_END)) return;
        n = left(&A, 0, 0, pos);
        for (t = 0; t < n; t++) hits[pos[t]]++;
        kvmem_cache_free(&A.c);
    }
    for (t = 0; t < 40; t++) CHECK(hits[t] > 100 - 52 && hits[t] < 100 + 52); /* 6 sigma of Binomial(400, 1/4) */
}
TEST(random_depends_on_seed_layer_head_and_position_alone) {
    int32_t a[MAX_N], b[MAX_N];
    int i, same_sets = 0;
    if (!begin(&A, "score=random budget=10 seed=5 when=prompt", 2, 2, 2, 4, 0, 1) ||
        !begin(&B, "score=random budget=10 seed=5 when=prompt page=3", 2, 2, 2, 4, 0, 2)) return;
    if (!told(&A, 40, KVMEM_PROMPT_END)) return;
    for (i = 0; i < 8; i++) if (!told(&B, 5, i == 7 ? KVMEM_PROMPT_END : KVMEM_PREFILL)) return;
    for (i = 0; i < 4; i++) {
        CHECK(left(&A, i / 2, i % 2, a) == 10 && left(&B, i / 2, i % 2, b) == 10);
        CHECK(!memcmp(a, b, 10 * sizeof *a));
        left(&A, 0, 0, b);
        same_sets += !memcmp(a, b, 10 * sizeof *a);
    }
    CHECK(same_sets == 1); /* lanes choose apart */
    kvmem_cache_free(&A.c);
    kvmem_cache_free(&B.c);
}
TEST(pyramid_gives_layers_the_cards_lengths) {
    static const int floored[4] = { 133, 93, 53, 13 }, exact[4] = { 133, 92, 52, 11 },
                     clipped[4] = { 130, 91, 53, 14 };
    int e, l, i;
    for (e = 0; e < 2; e++) {
        const char *text = e ? "pyramidkv budget=pyramid(72,beta=20)" : "pyramidkv budget=pyramid(72,beta=20,exact=0)";
        if (!begin(&A, text, 4, 2, 1, 4, 1, 1)) return;
        for (i = 0; i < 4; i++) if (!told(&A, 50, i == 3 ? KVMEM_PROMPT_END : KVMEM_PREFILL)) return;
        for (l = 0; l < 4; l++) CHECK(kvmem_cache_lane_len(&A.c, l, 0) == (e ? exact[l] : floored[l]));
        kvmem_cache_free(&A.c);
    }
    if (!begin(&A, "pyramidkv budget=pyramid(72,beta=20)", 4, 2, 1, 4, 1, 1)) return; /* 72 < 100 < 2B: uniform */
    for (i = 0; i < 2; i++) if (!told(&A, 50, i ? KVMEM_PROMPT_END : KVMEM_PREFILL)) return;
    for (l = 0; l < 4; l++) CHECK(kvmem_cache_lane_len(&A.c, l, 0) == 72);
    kvmem_cache_free(&A.c);
    if (!begin(&A, "pyramidkv budget=pyramid(72,beta=20)", 4, 2, 1, 4, 1, 1)) return;
    for (i = 0; i < 3; i++) if (!told(&A, i < 2 ? 50 : 30, i == 2 ? KVMEM_PROMPT_END : KVMEM_PREFILL)) return;
    for (l = 0; l < 4; l++) CHECK(kvmem_cache_lane_len(&A.c, l, 0) == clipped[l]); /* mx = N - w = 122, mn = 6 */
    kvmem_cache_free(&A.c);
}
TEST(pyramid_holds_its_shape_when_it_reduces_at_every_step) {
    int step, l;
    if (!begin(&A, "pyramidkv budget=20 recent=4 score=knorm when=step", 4, 2, 1, 4, 1, 1)) return;
    for (step = 0; step < 60; step++) if (!told(&A, step ? 1 : 50, step ? KVMEM_DECODE : KVMEM_PROMPT_END)) return;
    for (l = 0; l < 4; l++)
        CHECK(kvmem_cache_lane_len(&A.c, l, 0) == 4 + kvmem__pyramid(l, 4, 16, 1000, 20, 1));
    kvmem_cache_free(&A.c);
}
TEST(fixed_segments_start_at_multiples_of_their_size) {
    int i;
    if (!begin(&A, "segment=fixed(size=4)", 1, 1, 1, 2, 0, 1) || !told(&A, 3, KVMEM_PREFILL) ||
        !told(&A, 1, KVMEM_PREFILL) || !told(&A, 9, KVMEM_PROMPT_END)) return;
    CHECK(A.c.n_events == 4);
    for (i = 0; i < A.c.n_events; i++) CHECK(A.c.event[i] == 4 * i);
    kvmem_cache_free(&A.c);
    if (!begin(&A, "full", 1, 1, 1, 2, 0, 1) || !told(&A, 9, KVMEM_PROMPT_END)) return;
    CHECK(A.c.n_events == 0);
    kvmem_cache_free(&A.c);
}
TEST(place_is_the_position_or_the_slot) {
    CHECK(!kvmem__places[0].fn && kvmem__places[1].fn(NULL, 7, 900) == 7);
    CHECK(!kvmem__retrieves[0].fn);
}

/* ---- whole runs beside the oracle ---- */

static void sim_scores(const world *w, int which) { /* 0 h2o, 1 normalized, 2 tova */
    int l, g, t, g2;
    for (l = 0; l < w->L; l++)
        for (g = 0; g < w->G; g++) {
            const lane_sim *s = &sim[l][g];
            for (t = 0; t < s->n; t++) {
                double x = s->acc[t];
                if (which == 1) x /= s->pos[s->n - 1] - s->pos[t] + 1;
                if (which == 2) for (x = 0, g2 = 0; g2 < w->G; g2++) x += sim[l][g2].last[t] / w->G;
                score[l][g][t] = x;
            }
        }
}
TEST(h2o_and_tova_equal_the_oracle_over_a_whole_run) {
    static const char *const texts[] = { "h2o budget=15 recent=6 sink=1",
        "score=h2o(normalize=1) budget=15 recent=6 sink=1", "tova budget=15" };
    int which, step, compared = 0;
    for (which = 0; which < 3; which++) {
        if (!begin(&A, texts[which], 2, 4, 2, 8, 0, 1)) return;
        memset(sim, 0, sizeof sim);
        for (step = 0; step < 45; step++) {
            const int n = step < 2 ? 12 : 1;
            double gap;
            sim_tell(&A, A.n, n);
            if (!told(&A, n, step == 0 ? KVMEM_PREFILL : step == 1 ? KVMEM_PROMPT_END : KVMEM_DECODE)) return;
            if (step == 0) continue;
            sim_scores(&A, which);
            gap = sim_reduce(&A, 15, which < 2 ? 1 : 0, which < 2 ? 6 : 0);
            if (gap < 1e-5) break; /* too close for float32 to tell */
            if (!sim_agrees(&A)) { FAIL_AT("%s: step %d, gap %g", texts[which], step, gap); break; }
            compared++;
        }
        kvmem_cache_free(&A.c);
    }
    CHECK(compared > 20);
}
/* Scores of lane (l, g) by SnapKV's steps 2 to 5, nothing evicted yet. */
static void snapkv_oracle(const world *w, int l, int g, int n, int window, int kernel, int use_max) {
    const int r = w->H / w->G;
    double p[MAX_N], a[MAX_N];
    int h, i, j, t;
    sim[l][g].n = n;
    for (t = 0; t < n; t++) { sim[l][g].pos[t] = t; a[t] = 0; }
    for (i = n - window; i < n; i++)
        for (h = r * g; h < r * (g + 1); h++) {
            oracle_row(w, l, h, i, n, sim[l][g].pos, 0, 0, p);
            for (j = 0; j < n; j++) a[j] += p[j] / r;
        }
    for (t = 0; t < n; t++) {
        double sum = 0, top = -1;
        for (j = t - kernel / 2; j <= t + kernel / 2; j++) {
            if (j < 0 || j >= n - window) continue;
            sum += a[j];
            if (a[j] > top) top = a[j];
        }
        score[l][g][t] = t >= n - window ? 1000 + t : use_max ? top : sum / kernel;
    }
}
TEST(snapkv_equals_the_oracle) {
    int trial, l, g, compared = 0;
    for (trial = 0; trial < 6; trial++) {
        const int window = 1 + trial * 3, kernel = 1 + 2 * (trial % 4), use_max = trial & 1;
        char text[160];
        double gap;
        sprintf(text, "score=snapkv(window=%d,kernel=%d,pool=%s) budget=21 when=prompt", window, kernel,
                use_max ? "max" : "avg");
        if (!begin(&A, text, 2, 4, 2, 8, 0, 1)) return;
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) snapkv_oracle(&A, l, g, 50, window, kernel, use_max);
        if (!told(&A, 50, KVMEM_PROMPT_END)) return;
        gap = sim_reduce(&A, 21, 0, 0);
        if (gap > 1e-5 || gap == 0) { /* pooled maxima tie exactly: then the lower index must win in both */
            CHECK(sim_agrees(&A));
            compared++;
        }
        kvmem_cache_free(&A.c);
    }
    CHECK(compared > 2);
}

/* ---- a user's own entry ---- */

typedef struct mine { const float *weight; int calls, bad; uint64_t seed; double heat; } mine;
static const kvmem_param mine_params[] = { { "heat", 0.5, 0, 9, NULL, 0, "a number" },
                                           { NULL, 0, 0, 0, NULL, 0, NULL } };
static kvmem_status score_mine(const kvmem_view *v, int g, float *out) {
    mine *m = (mine *)v->user;
    int32_t pos[MAX_N];
    const int n = kvmem_view_count(v, g);
    int t;
    m->calls++;
    m->seed = v->seed;
    m->heat = v->par[0];
    kvmem_view_positions(v, g, pos);
    for (t = 0; t < n; t++) out[t] = m->bad == 3 ? -INFINITY : m->weight[pos[t]];
    if (m->bad == 1) out[3] = NAN;
    return m->bad == 2 ? KVMEM_UNSUPPORTED : KVMEM_OK;
}
static const kvmem_score_entry mine_entry = { { "mine", "weights by hand", "-", mine_params, 0 }, score_mine, NULL };
TEST(a_users_own_score_function_chooses) {
    static const int want[4] = { 0, 7, 13, 19 }, low[4] = { 0, 1, 2, 19 };
    static float x[20 * 2];
    kvmem_config cfg = kvmem_config_default();
    float weight[20];
    int bad, t;
    for (t = 0; t < 20; t++) weight[t] = (float)(t == 7 || t == 13 ? 1 : -t);
    for (bad = 0; bad < 4; bad++) { /* 1: NaN, 2: it fails, 3: -INFINITY everywhere */
        kvmem_recipe r;
        kvmem_cache c;
        kvmem_status s;
        int32_t pos[4];
        mine m;
        memset(&m, 0, sizeof m);
        m.weight = weight;
        m.bad = bad;
        REQUIRE_OK(kvmem_recipe_parse(&r, "budget=4 sink=1 recent=1 seed=77", NULL));
        r.stage[KVMEM_SCORE].entry = &mine_entry.e;
        r.stage[KVMEM_SCORE].par[0] = 2.5;
        r.stage[KVMEM_SCORE].user = &m;
        cfg.recipe = &r;
        cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
        cfg.shape.head_dim = 2;
        REQUIRE_OK(kvmem_cache_init(&c, &cfg));
        CHECK_OK(kvmem_cache_append(&c, 0, 20, x, x, NULL));
        s = kvmem_cache_commit(&c, KVMEM_PROMPT_END);
        CHECK(m.calls == 1 && m.seed == 77 && m.heat == 2.5);
        if (bad == 1) CHECK(s == KVMEM_BAD_VALUE && strstr(c.error.text, "score=mine gives NaN for entry 3"));
        else if (bad == 2) CHECK(s == KVMEM_UNSUPPORTED && strstr(c.error.text, "score=mine failed in layer 0"));
        else {
            CHECK_OK(s);
            REQUIRE(kvmem_cache_lane_len(&c, 0, 0) == 4);
            CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, 4, NULL, NULL, pos));
            for (t = 0; t < 4; t++) CHECK(pos[t] == (bad ? low : want)[t]); /* ties go to the lower index */
        }
        kvmem_cache_free(&c);
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "stages");
    RUN(pool_divides_by_the_kernel_at_the_ends_too);
    RUN(pool_equals_the_definition);
    RUN(pyramid_floors_its_step_as_the_code_does);
    RUN(pyramid_with_exact_1_spends_the_budget_and_never_rises);
    RUN(a_budget_that_covers_the_tokens_changes_no_bit);
    RUN(kept_positions_rise_and_hold_sinks_window_and_count);
    RUN(attention_after_eviction_is_full_attention_with_the_evicted_masked);
    RUN(one_thread_keeps_what_two_keep);
    RUN(a_budget_below_one_entry_keeps_one);
    RUN(streamingllm_keeps_two_sinks_and_three_recent_of_ten);
    RUN(streamingllm_without_sinks_is_window);
    RUN(recency_tells_neighbours_apart_beyond_two_to_the_24);
    RUN(h2o_accumulates_columns_and_keeps_the_heavy_hitter_and_the_newest);
    RUN(h2o_normalized_divides_by_the_queries_that_could_see);
    RUN(h2o_sums_equal_the_number_of_queries);
    RUN(tova_keeps_the_same_two_of_three_in_every_lane);
    RUN(tova_lanes_of_a_layer_hold_the_same_tokens_always);
    RUN(snapkv_spreads_a_spike_over_the_kernel);
    RUN(snapkv_never_evicts_while_decoding);
    RUN(snapkv_votes_sum_to_the_number_of_voters);
    RUN(knorm_keeps_short_keys_first);
    RUN(random_keeps_every_token_equally_often);
    RUN(random_depends_on_seed_layer_head_and_position_alone);
    RUN(pyramid_gives_layers_the_cards_lengths);
    RUN(pyramid_holds_its_shape_when_it_reduces_at_every_step);
    RUN(fixed_segments_start_at_multiples_of_their_size);
    RUN(place_is_the_position_or_the_slot);
    RUN(h2o_and_tova_equal_the_oracle_over_a_whole_run);
    RUN(snapkv_equals_the_oracle);
    RUN(a_users_own_score_function_chooses);
    return test_end();
}
