/* Scales that are read in both directions, and HACK: column variance, types of heads, the division of the budget, what
   each type keeps. The oracles compute attention and the whole method in double precision beside the cache. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"

/* Tokens [from, from + n) as one scale. */
static kvmem_status scale(world *w, kvmem_cache *c, int from, int n, float *out) {
    const kvmem_status st = kvmem_cache_mark(c, KVMEM_MARK_SCALE);
    return st ? st : feed(w, c, from, from + n, n, KVMEM_PREFILL, out);
}
static int holds(const kvmem_cache *c, int l, int g, int32_t *pos) { /* positions; returns their number */
    const int n = kvmem_cache_lane_len(c, l, g);
    if (kvmem_cache_read(c, l, g, 0, n, NULL, NULL, pos)) return -1;
    return n;
}

/* ---- attention inside a scale ---- */

/* out of tokens [from, to) against all tokens below `sees`, or below themselves where sees is 0. */
static double worst_scale(const world *w, const float *out, int from, int to, int sees) {
    double worst = 0, o[64];
    int *set = (int *)malloc((size_t)(to + 1) * sizeof *set), t, l, h, x, n, i;
    for (t = from; t < to; t++)
        for (l = 0; l < w->L; l++) {
            const int win = w->cfg.shape.window ? w->window[l] : 0;
            for (n = 0, i = 0; i < (sees ? sees : t + 1); i++) if (!win || t - i < win) set[n++] = i;
            for (h = 0; h < w->H; h++) {
                oracle(w, t, l, h, set, n, NULL, t, o);
                for (x = 0; x < w->d; x++) {
                    const size_t at = (((size_t)(t - from) * (size_t)w->L + (size_t)l) * (size_t)w->H + (size_t)h) *
                                          (size_t)w->d + (size_t)x;
                    const double e = fabs(o[x] - (double)out[at]);
                    if (!(e <= worst)) worst = e;
                }
            }
        }
    free(set);
    return worst;
}
TEST(tokens_of_a_scale_see_the_whole_scale) {
    static const int size[5] = { 3, 1, 9, 40, 77 };
    int form, i, at;
    for (form = 0; form < 6; form++) {
        world w;
        kvmem_cache c;
        float *out;
        REQUIRE(world_init(&w, 2, 4, form & 1 ? 1 : 2, 8, 160, "full page=16"));
        if (form != 2) w.cfg.shape.rope = w.rope;
        if (form == 3) { w.cfg.shape.window = w.window; w.window[1] = 12; }
        if (form == 4) w.cfg.shape.softcap = 4;
        if (form == 5) {
            for (i = 0; i < 8; i++) w.bias[i] = (float)test_normal();
            w.cfg.shape.sink_bias = w.bias;
            w.cfg.threads = 2;
        }
        out = outs(&w, 100);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        REQUIRE_OK(feed(&w, &c, 0, 10, 4, KVMEM_PREFILL, out)); /* a text before them is causal */
        CHECK(worst_scale(&w, out, 0, 10, 0) < 2e-5);
        for (i = 0, at = 10; i < 5; at += size[i++]) {
            REQUIRE_OK(scale(&w, &c, at, size[i], out));
            CHECK(worst_scale(&w, out, at, at + size[i], at + size[i]) < 2e-5);
        }
        REQUIRE_OK(kvmem_cache_mark(&c, KVMEM_MARK_TEXT));
        REQUIRE_OK(feed(&w, &c, at, at + 12, 5, KVMEM_PREFILL, out)); /* and so is one after them */
        CHECK(worst_scale(&w, out, at, at + 12, 0) < 2e-5);
        kvmem_cache_free(&c);
        free(out);
        world_free(&w);
    }
}
TEST(long_lanes_cut_into_chunks_see_the_whole_scale) { /* 1400 entries, three threads share a lane */
    world w;
    kvmem_cache c;
    float *out;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 1400, "full"));
    w.cfg.threads = 3;
    w.cfg.max_block = 1400;
    out = outs(&w, 1392);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(feed(&w, &c, 0, 1392, 1392, KVMEM_PREFILL, out));
    REQUIRE_OK(scale(&w, &c, 1392, 8, out));
    CHECK(worst_scale(&w, out, 1392, 1400, 1400) < 2e-5);
    kvmem_cache_free(&c);
    free(out);
    world_free(&w);
}
TEST(observed_rows_of_a_scale_are_those_of_attention) { /* acc, and the ring read again after the block */
    world w;
    kvmem_cache c;
    kvmem_view v;
    float acc[30], seen[30];
    double want[30], sum = 0;
    int t, i, x, j;
    memset(&v, 0, sizeof v);
    REQUIRE(world_init(&w, 1, 2, 1, 8, 30, "score=snapkv(window=20) budget=all page=8"));
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(scale(&w, &c, 0, 10, NULL));
    REQUIRE_OK(scale(&w, &c, 10, 20, NULL));
    for (t = 0; t < 30; t++) want[t] = 0;
    for (i = 10; i < 30; i++)
        for (j = 0; j < 2; j++) {
            double s[30], l = 0;
            for (t = 0; t < 30; t++) {
                for (x = 0, s[t] = 0; x < 8; x++)
                    s[t] += (double)row_q(&w, i, 0)[j * 8 + x] * (double)row_k(&w, w.k, t, 0)[x];
                l += s[t] = exp(s[t] / sqrt(8.0));
            }
            for (t = 0; t < 30; t++) want[t] += s[t] / l / 2;
        }
    v.cache = &c;
    CHECK_OK(kvmem_view_attention(&v, 0, 20, seen));
    for (t = 0; t < 30; t++) { CHECK_NEAR(seen[t], want[t], 1e-5); sum += (double)seen[t]; }
    CHECK_NEAR(sum, 20, 1e-4);
    kvmem__view_scratch_end(&c);
    kvmem_cache_free(&c);
    REQUIRE_OK(kvmem_recipe_parse(&w.recipe, "score=h2o budget=all page=8", NULL));
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(scale(&w, &c, 0, 30, NULL));
    v.cache = &c;
    kvmem_view_acc(&v, 0, acc);
    for (t = 0, sum = 0; t < 30; t++) sum += (double)acc[t];
    CHECK_NEAR(sum, 30, 1e-4); /* 30 rows, and the first key was seen by no more of them than the last */
    CHECK(acc[29] > 0.01f && acc[0] < 20);
    kvmem_cache_free(&c);
    world_free(&w);
}
TEST(a_scale_survives_copy_save_and_truncate) {
    world w;
    kvmem_cache c, copy, back;
    bytes file = { NULL, 0, 0 };
    float *a, *b;
    REQUIRE(world_init(&w, 2, 2, 1, 8, 60, "full page=8"));
    w.cfg.shape.rope = w.rope;
    a = outs(&w, 20);
    b = outs(&w, 20);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(kvmem_cache_init(&back, &w.cfg));
    REQUIRE_OK(scale(&w, &c, 0, 20, a));
    REQUIRE_OK(kvmem_cache_mark(&c, KVMEM_MARK_SCALE)); /* begun, nothing of it told yet */
    REQUIRE_OK(kvmem_cache_copy(&copy, &c));
    REQUIRE_OK(kvmem_cache_save(&c, bytes_write, &file));
    REQUIRE_OK(kvmem_cache_load(&back, file.p, file.n));
    REQUIRE_OK(feed(&w, &c, 20, 40, 20, KVMEM_PREFILL, a));
    CHECK(worst_scale(&w, a, 20, 40, 40) < 2e-5);
    REQUIRE_OK(feed(&w, &copy, 20, 40, 20, KVMEM_PREFILL, b));
    CHECK(same_out(&w, a, b, 20));
    REQUIRE_OK(feed(&w, &back, 20, 40, 20, KVMEM_PREFILL, b));
    CHECK(same_out(&w, a, b, 20));
    REQUIRE_OK(kvmem_cache_truncate(&c, 20)); /* the second mark goes with its scale */
    REQUIRE_OK(scale(&w, &c, 20, 20, b));
    CHECK(same_out(&w, a, b, 20));
    kvmem_cache_clear(&c);
    REQUIRE_OK(feed(&w, &c, 0, 20, 20, KVMEM_PREFILL, a));
    CHECK(worst_scale(&w, a, 0, 20, 0) < 2e-5); /* nothing is marked any more */
    kvmem_cache_free(&c);
    kvmem_cache_free(&copy);
    kvmem_cache_free(&back);
    free(file.p);
    free(a);
    free(b);
    world_free(&w);
}
TEST(demoted_entries_are_seen_from_a_scale) { /* f32 as the lower codec: nothing is lost */
    world w;
    kvmem_cache c;
    float *out;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 60, "score=recency budget=10 when=block reduce=demote(f32) page=8"));
    w.cfg.shape.rope = w.rope;
    out = outs(&w, 30);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(scale(&w, &c, 0, 30, NULL));
    CHECK(kvmem_cache_lane_len(&c, 0, 0) == 30 && c.lane[0].n == 10);
    REQUIRE_OK(scale(&w, &c, 30, 30, out));
    CHECK(worst_scale(&w, out, 30, 60, 60) < 2e-5);
    kvmem_cache_free(&c);
    free(out);
    world_free(&w);
}

/* ---- variance, types, budgets ---- */

/* One head whose attention row i over keys j is p[i * m + j]: keys are unit vectors, queries logarithms. */
static double variance_of(const double *p, int m) {
    world w;
    kvmem_cache c;
    float v = -1;
    int i, j;
    if (!world_init(&w, 1, 1, 1, 16, m, "score=hack budget=all")) return -1;
    w.cfg.shape.scale = 1;
    for (i = 0; i < m; i++)
        for (j = 0; j < 16; j++) {
            w.k[i * 16 + j] = j == i ? 1.0f : 0.0f;
            w.q[i * 16 + j] = j < m && p[i * m + j] > 0 ? (float)log(p[i * m + j]) : -80.0f;
        }
    if (kvmem_cache_init(&c, &w.cfg) || scale(&w, &c, 0, m, NULL) || kvmem_hack_variance(&c, &v)) v = -1;
    kvmem_cache_free(&c);
    world_free(&w);
    return (double)v;
}
TEST(identical_rows_have_no_variance_and_a_moving_key_has_the_most) {
    double same[64], eye[64];
    int n, i;
    for (n = 2; n <= 8; n++) {
        for (i = 0; i < n * n; i++) {
            same[i] = i % n == 1 ? 0.7 : 0.3 / (n - 1);
            eye[i] = i / n == i % n;
        }
        CHECK(variance_of(same, n) == 0);
        CHECK_NEAR(variance_of(eye, n), 1.0 / n * (1 - 1.0 / n), 1e-6);
    }
}
TEST(types_by_share_and_by_gap) {
    const float v[5] = { .5f, .01f, .4f, .02f, .01f }, flat[3] = { 2, 2, 2 }, zero[4] = { 0, 3, 0, 0 };
    unsigned char s[5];
    CHECK(kvmem_hack_types(v, 5, 0.6, s) == 3 && s[0] && !s[1] && s[2] && !s[3] && !s[4]);
    CHECK(kvmem_hack_types(v, 5, 0.2, s) == 1 && !s[1] && s[3] && s[4]); /* ties: lower index */
    CHECK(kvmem_hack_types(v, 5, 0, s) == 0 && s[1] && s[4]);
    CHECK(kvmem_hack_types(v, 5, 1, s) == 5 && !s[0] && !s[2]);
    CHECK(kvmem_hack_types(v, 5, -1, s) == 3 && s[0] && !s[1] && s[2] && !s[3] && !s[4]); /* .02 to .4 */
    CHECK(kvmem_hack_types(flat, 3, -1, s) == 0 && s[0] && s[1] && s[2]); /* no gap: none is contextual */
    CHECK(kvmem_hack_types(zero, 4, -1, s) == 3 && !s[0] && s[1]);
    CHECK(kvmem_hack_types(v, 1, -1, s) == 0 && s[0]);
}
TEST(budgets_keep_the_total_exactly) {
    const unsigned char type[4] = { 0, 0, 1, 1 };
    const int lots[4] = { 900, 900, 900, 900 }, some[4] = { 900, 900, 120, 120 };
    int keep[40], n[40], trial, i;
    unsigned char s[40];
    kvmem__hack_divide(100, 0.25, type, lots, 4, keep);
    CHECK(keep[0] == 25 && keep[1] == 25 && keep[2] == 175 && keep[3] == 175);
    kvmem__hack_divide(100, 0.25, type, some, 4, keep);
    CHECK(keep[0] == 80 && keep[1] == 80 && keep[2] == 120 && keep[3] == 120);
    for (trial = 0; trial < 2000; trial++) {
        const int lanes = 1 + (int)(test_unit() * 39), B = 1 + (int)(test_unit() * 500);
        const double share = test_unit();
        int64_t sum = 0, most = 0, C = 0;
        for (i = 0; i < lanes; i++) {
            s[i] = test_unit() < 0.4;
            n[i] = 1 + (int)(test_unit() * 3000);
            C += !s[i];
            if (s[i]) most = KVMEM__MAX(most, n[i]);
        }
        kvmem__hack_divide(B, share, s, n, lanes, keep);
        for (i = 0; i < lanes; i++) {
            CHECK(keep[i] >= 1);
            sum += keep[i];
            const int few = KVMEM__MAX(1, (int)(share * B + 1e-9));
            if (C && C < lanes && !s[i] && (lanes - C) * most >= (int64_t)lanes * B - C * few) CHECK(keep[i] == few);
            if (C && C < lanes && s[i]) CHECK(keep[i] <= most);
        }
        if (sum != (int64_t)lanes * B) { FAIL_AT("lanes %d, B %d: sum %d", lanes, B, (int)sum); return; }
    }
}

/* ---- the whole method beside the cache ---- */

enum { LANES = 4, MOST = 400 };
typedef struct shadow { int pos[MOST], n; double acc[MOST], now[MOST], v; int scales; } shadow;

/* What watch does, in double precision: tokens [from, to) have come. */
static void shadow_watch(const world *w, shadow *s, int l, int g, int from, int to, int obs) {
    const int m = to - from, N = KVMEM__MIN(obs, m), r = w->H / w->G, d = w->d;
    double *p = (double *)calloc((size_t)(N * r) * MOST, sizeof *p), var = 0;
    int i, x, j, t, ch;
    for (t = from; t < to; t++) { s->acc[s->n] = 0; s->pos[s->n++] = t; }
    for (x = 0; x < N; x++) {
        i = from + (int)floor((x + 0.5) * m / N);
        for (j = 0; j < r; j++) {
            double *row = p + (size_t)(x * r + j) * MOST, sum = 0;
            for (t = 0; t < s->n; t++) {
                double q[64], k[64];
                for (ch = 0; ch < d; ch++) {
                    q[ch] = (double)row_q(w, i, l)[(g * r + j) * d + ch];
                    k[ch] = (double)row_k(w, w->k, s->pos[t], l)[g * d + ch];
                }
                turn(q, d, &w->rope[l], i);
                turn(k, d, &w->rope[l], s->pos[t]);
                for (ch = 0; ch < d; ch++) row[t] += q[ch] * k[ch];
                sum += row[t] = exp(row[t] / sqrt((double)d));
            }
            for (t = 0; t < s->n; t++) row[t] /= sum;
        }
    }
    for (t = 0; t < s->n; t++) {
        s->now[t] = 0;
        for (j = 0; j < r; j++) {
            double mean = 0, sq = 0;
            for (x = 0; x < N; x++) mean += p[(size_t)(x * r + j) * MOST + (size_t)t] / N;
            for (x = 0; x < N; x++) {
                const double e = p[(size_t)(x * r + j) * MOST + (size_t)t] - mean;
                sq += e * e / N;
            }
            s->now[t] += mean / r;
            var += sq / r / s->n;
        }
        s->acc[t] += s->now[t];
    }
    if (N > 1) { s->v += var; s->scales++; }
    free(p);
}
/* Keep the best `keep` by (class, score), in place. */
static void shadow_keep(shadow *s, int structural, const int *start, int n_scales, int keep) {
    int chosen[MOST], t, x, m = 0, cls[MOST];
    if (keep >= s->n) return;
    memset(chosen, 0, sizeof chosen);
    for (t = 0; t < s->n; t++) {
        int sc = 0;
        while (sc < n_scales && start[sc] <= s->pos[t]) sc++;
        cls[t] = !structural ? 0 : sc == 1 || sc == 2 ? 2 : sc == n_scales;
    }
    for (x = 0; x < keep; x++) {
        int best = -1;
        for (t = 0; t < s->n; t++) {
            const double a = structural ? s->now[t] : s->acc[t];
            const double b = best < 0 ? 0 : structural ? s->now[best] : s->acc[best];
            if (!chosen[t] && (best < 0 || cls[t] > cls[best] || (cls[t] == cls[best] && a > b))) best = t;
        }
        chosen[best] = 1;
    }
    for (t = 0; t < s->n; t++)
        if (chosen[t]) {
            s->pos[m] = s->pos[t];
            s->acc[m] = s->acc[t];
            s->now[m++] = s->now[t];
        }
    s->n = m;
}
static void run_shadow(int fixed_types, int mean, double alpha, double share) {
    static const int size[7] = { 1, 4, 9, 16, 25, 36, 49 };
    static shadow s[LANES];
    char text[160];
    world w;
    kvmem_cache c;
    unsigned char type[LANES] = { 1, 0, 0, 1 };
    float v[LANES];
    int start[7], i, g, at = 0, known = 0;
    memset(s, 0, sizeof s);
    snprintf(text, sizeof text, "hack budget=hack(%d,alpha=%g,contextual=%g) score=hack(obs=8) page=8", mean, alpha,
             share);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 140, text));
    w.cfg.shape.rope = w.rope;
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    if (fixed_types) REQUIRE_OK(kvmem_hack_set_types(&c, type));
    for (i = 0; i < 7; at += size[i++]) {
        int keep[LANES], len[LANES];
        start[i] = at;
        REQUIRE_OK(scale(&w, &c, at, size[i], NULL));
        for (g = 0; g < LANES; g++) {
            shadow_watch(&w, &s[g], g / 2, g % 2, at, at + size[i], 8);
            v[g] = (float)(s[g].scales ? s[g].v / s[g].scales : 0);
            known |= s[g].scales;
            len[g] = s[g].n;
        }
        if (at + size[i] > mean) { /* the card's own words: sort, take alpha, B_S from the identity */
            if (!fixed_types && known) kvmem_hack_types(v, LANES, alpha, type);
            if (!fixed_types && !known) memset(type, 1, sizeof type);
            kvmem__hack_divide(mean, share, type, len, LANES, keep);
            for (g = 0; g < LANES; g++) shadow_keep(&s[g], type[g], start, i + 1, keep[g]);
        }
        for (g = 0; g < LANES; g++) {
            int32_t pos[MOST];
            const int n = holds(&c, g / 2, g % 2, pos);
            int t;
            if (n != s[g].n) { FAIL_AT("scale %d lane %d: %d entries, not %d", i, g, n, s[g].n); continue; }
            for (t = 0; t < n && pos[t] == s[g].pos[t]; t++) {}
            if (t < n) FAIL_AT("scale %d lane %d: entry %d is token %d, not %d", i, g, t, (int)pos[t], s[g].pos[t]);
        }
    }
    REQUIRE_OK(kvmem_hack_variance(&c, v));
    for (g = 0; g < LANES; g++) CHECK_NEAR(v[g], s[g].v / s[g].scales, 1e-6);
    kvmem_cache_free(&c);
    world_free(&w);
}
TEST(choices_equal_the_definition_with_given_types) { run_shadow(1, 40, -1, 0.25); }
TEST(choices_equal_the_definition_with_types_by_share) { run_shadow(0, 40, 0.5, 0.25); }
TEST(choices_equal_the_definition_with_types_by_gap) { run_shadow(0, 24, -1, 0.5); }
TEST(tiny_budgets_equal_the_definition) { run_shadow(1, 2, -1, 0.25); }

TEST(structural_lanes_keep_first_and_newest_scales) {
    static const int size[5] = { 1, 4, 9, 16, 25 };
    const unsigned char type[2] = { 1, 0 };
    world w;
    kvmem_cache c;
    int32_t pos[80];
    int i, at = 0, n, t;
    REQUIRE(world_init(&w, 1, 2, 2, 8, 55, "hack budget=hack(22,contextual=0.5)")); /* 11 and 33 */
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(kvmem_hack_set_types(&c, type));
    for (i = 0; i < 5; at += size[i++]) {
        int have[80] = { 0 };
        REQUIRE_OK(scale(&w, &c, at, size[i], NULL));
        REQUIRE((n = holds(&c, 0, 0, pos)) > 0);
        for (t = 0; t < n; t++) have[pos[t]] = 1;
        for (t = 0; t < at + size[i]; t++)
            if (t < 5 || t >= at) CHECK(have[t]); /* scales 1 and 2 are tokens 0 to 4 */
    }
    CHECK(n == 33 && kvmem_cache_lane_len(&c, 0, 1) == 11);
    kvmem_cache_free(&c);
    REQUIRE_OK(kvmem_recipe_parse(&w.recipe, "hack budget=hack(8,contextual=0.5)", NULL)); /* 4 and 12 */
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(kvmem_hack_set_types(&c, type));
    for (i = 0, at = 0; i < 5; at += size[i++]) REQUIRE_OK(scale(&w, &c, at, size[i], NULL));
    REQUIRE(holds(&c, 0, 0, pos) == 12);
    for (t = 0; t < 12; t++) CHECK(t < 5 ? pos[t] == t : pos[t] >= 30); /* and the top of the newest */
    kvmem_cache_free(&c);
    world_free(&w);
}
/* Head 0 looks at the same two keys from everywhere, head 1 at the key with its own number inside the scale; rows of
   larger scales look at their place in the scale before, too. Mean squared error of the last scale's output. */
static double drawing_error(const unsigned char *type, float *v) {
    static const int size[4] = { 4, 8, 16, 32 };
    world w;
    kvmem_cache c, full;
    kvmem_recipe all = kvmem_recipe_default();
    float *a, *b;
    double e = 0;
    int i, t, x, at = 0;
    test_state = 1000; /* the same values each time */
    if (!world_init(&w, 1, 2, 2, 32, 60, "hack budget=hack(20,alpha=0.5,contextual=0.2)")) return -1;
    a = outs(&w, 32);
    b = outs(&w, 32);
    for (i = 0; i < 4; at += size[i++])
        for (t = 0; t < size[i]; t++) {
            float *k = row_k(&w, w.k, at + t, 0), *q = row_q(&w, at + t, 0);
            for (x = 0; x < 64; x++) k[x] = q[x] = 0;
            k[at + t == 2 || at + t == 7 ? 0 : 1] = 4; /* head 0: two keys that all queries want */
            q[0] = 8;
            k[32 + t * 32 / size[i]] = 6; /* head 1: by place */
            q[32 + t * 32 / size[i]] = 8;
        }
    w.cfg.recipe = &all;
    if (kvmem_cache_init(&full, &w.cfg)) return -1;
    w.cfg.recipe = &w.recipe;
    if (kvmem_cache_init(&c, &w.cfg)) return -1;
    if (type && kvmem_hack_set_types(&c, type)) return -1;
    for (i = 0, at = 0; i < 4; at += size[i++]) {
        if (scale(&w, &full, at, size[i], a) || scale(&w, &c, at, size[i], b)) return -1;
        for (x = 0; i == 3 && x < 32 * 64; x++)
            e += ((double)a[x] - (double)b[x]) * ((double)a[x] - (double)b[x]) / (32 * 64);
    }
    if (kvmem_hack_variance(&c, v)) e = -1;
    kvmem_cache_free(&c);
    kvmem_cache_free(&full);
    free(a);
    free(b);
    world_free(&w);
    return e;
}
TEST(the_classifier_separates_stripes_from_diagonals_and_swapping_them_hurts) {
    const unsigned char right[2] = { 0, 1 }, wrong[2] = { 1, 0 };
    float v[2];
    const double found = drawing_error(NULL, v), good = drawing_error(right, v), bad = drawing_error(wrong, v);
    CHECK(v[1] > 10 * v[0]);
    CHECK(found >= 0 && found == good);
    CHECK(bad > 100 * good);
}

/* ---- facts of every eviction ---- */

TEST(a_budget_of_all_gives_the_bits_of_full) {
    world w;
    kvmem_cache c;
    float *a, *b;
    int i, form;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 120, "full"));
    w.cfg.shape.rope = w.rope;
    a = outs(&w, 40);
    b = outs(&w, 40);
    for (form = 0; form < 3; form++) {
        REQUIRE_OK(kvmem_recipe_parse(&w.recipe, form == 0 ? "full" : form == 1 ? "hack budget=hack(120)"
                                                                                : "hack budget=100%", NULL));
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        for (i = 0; i < 3; i++) REQUIRE_OK(scale(&w, &c, 40 * i, 40, form ? b : a));
        CHECK(form == 0 || same_out(&w, a, b, 40));
        kvmem_cache_free(&c);
    }
    free(a);
    free(b);
    world_free(&w);
}
TEST(threads_copies_and_files_go_on_with_the_same_bits) {
    world w;
    kvmem_cache c[4];
    bytes file = { NULL, 0, 0 };
    float *a, *b;
    int i;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 150, "hack budget=hack(20) page=8"));
    w.cfg.shape.rope = w.rope;
    a = outs(&w, 50);
    b = outs(&w, 50);
    for (i = 0; i < 3; i++) {
        w.cfg.threads = i == 1 ? 4 : 1;
        REQUIRE_OK(kvmem_cache_init(&c[i], &w.cfg));
        if (i == 2) break;
        REQUIRE_OK(scale(&w, &c[i], 0, 50, NULL));
        REQUIRE_OK(scale(&w, &c[i], 50, 50, NULL));
    }
    REQUIRE_OK(kvmem_cache_save(&c[0], bytes_write, &file));
    REQUIRE_OK(kvmem_cache_load(&c[2], file.p, file.n));
    REQUIRE_OK(kvmem_cache_copy(&c[3], &c[0]));
    for (i = 0; i < 4; i++) {
        REQUIRE_OK(scale(&w, &c[i], 100, 50, i ? b : a));
        CHECK(!i || same_out(&w, a, b, 50));
    }
    for (i = 1; i < 4; i++) {
        int32_t x[80], y[80];
        int l;
        for (l = 0; l < 4; l++) {
            const int n = holds(&c[0], l / 2, l % 2, x), m = holds(&c[i], l / 2, l % 2, y);
            CHECK(n == m && !memcmp(x, y, (size_t)n * sizeof *x));
        }
    }
    for (i = 0; i < 4; i++) kvmem_cache_free(&c[i]);
    free(file.p);
    free(a);
    free(b);
    world_free(&w);
}
TEST(odd_streams_are_fine) { /* nothing marked, one token a scale, one head, equal keys, a byte limit */
    static const char *const text[4] = { "hack budget=hack(7)", "hack budget=hack(1)",
                                         "hack budget=hack(50%,alpha=1) sink=2 recent=3",
                                         "hack budget=hack(96KiB,alpha=0.5)" };
    int form, i, t;
    for (form = 0; form < 8; form++) {
        world w;
        kvmem_cache c;
        kvmem_bytes b;
        REQUIRE(world_init(&w, 2, form & 1 ? 1 : 3, form & 1 ? 1 : 3, 8, 90, text[form / 2]));
        if (form == 4)
            for (t = 0; t < 90 * 2 * 3 * 8; t++) w.k[t] = 1;
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        for (i = 0; i < 9; i++) {
            if (form >= 2) REQUIRE_OK(kvmem_cache_mark(&c, KVMEM_MARK_SCALE));
            REQUIRE_OK(feed(&w, &c, 10 * i, 10 * i + 10, form == 3 ? 1 : 10, i % 2 ? KVMEM_DECODE : KVMEM_PREFILL,
                            NULL));
        }
        kvmem_cache_bytes(&c, &b);
        CHECK(b.entries >= 6u / (form & 1 ? 3 : 1));
        if (form < 2) CHECK(b.entries <= 7u * (form & 1 ? 2 : 6));
        kvmem_cache_free(&c);
        world_free(&w);
    }
}
TEST(byte_limits_hold_when_a_group_has_many_heads) { /* the rows that watching takes are counted */
    static const char *const text[2] = { "hack budget=hack(200KiB) page=16",
                                          "hack budget=hack(150KiB,alpha=0.7) page=8" };
    int i;
    for (i = 0; i < 2; i++) {
        world w;
        kvmem_cache c;
        kvmem_bytes b;
        int at, n;
        REQUIRE(world_init(&w, 2, 16, 1, 8, 900, text[i]));
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        for (at = 0; at < 900; at += n) {
            n = KVMEM__MIN(kvmem_cache_room(&c), 900 - at);
            REQUIRE(n > 0);
            REQUIRE_OK(scale(&w, &c, at, n, NULL));
        }
        kvmem_cache_bytes(&c, &b);
        CHECK(b.peak.total <= b.limit && b.entries > 100);
        kvmem_cache_free(&c);
        world_free(&w);
    }
}
TEST(no_memory_is_an_error_and_nothing_leaks) {
    size_t at;
    int ended = 0;
    for (at = 1; at < 200 && !ended; at++) {
        test_heap h;
        world w;
        kvmem_cache c;
        memset(&h, 0, sizeof h);
        h.fail_at = at;
        quiet = 1;
        REQUIRE(world_init(&w, 1, 2, 1, 8, 40, "hack budget=hack(10) page=8"));
        w.cfg.allocator = test_allocator(&h);
        if (kvmem_cache_init(&c, &w.cfg) == KVMEM_OK) {
            kvmem_status st = scale(&w, &c, 0, 20, NULL);
            if (st == KVMEM_OK) st = scale(&w, &c, 20, 20, NULL);
            CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY);
            ended = st == KVMEM_OK && h.calls < at;
        }
        kvmem_cache_free(&c);
        world_free(&w);
        CHECK(h.live == 0 && !h.wrong);
    }
    quiet = 0;
    CHECK(ended);
}
TEST(misuse_is_named) {
    world w;
    kvmem_cache c;
    kvmem_recipe r;
    kvmem_error e;
    float v[4];
    REQUIRE(world_init(&w, 1, 2, 2, 8, 20, "h2o budget=10"));
    CHECK(kvmem_recipe_parse(&r, "h2o budget=hack(10)", &e) == KVMEM_BAD_RECIPE && strstr(e.text, "score=hack"));
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(kvmem_hack_variance(&c, v) == KVMEM_BAD_STATE && strstr(c.error.text, "h2o"));
    kvmem_cache_free(&c);
    REQUIRE_OK(kvmem_recipe_parse(&w.recipe, "hack", NULL));
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(kvmem_hack_set_types(&c, NULL) == KVMEM_BAD_ARGUMENT && kvmem_hack_variance(&c, NULL) == KVMEM_BAD_ARGUMENT);
    REQUIRE_OK(kvmem_hack_variance(&c, v));
    CHECK(v[0] == 0 && v[1] == 0);
    CHECK(kvmem_cache_commit_layer(&c, 0, KVMEM_PREFILL) == KVMEM_UNSUPPORTED);
    kvmem_cache_free(&c);
    REQUIRE_OK(kvmem_recipe_parse(&w.recipe, "kvdirect", NULL));
    if (kvmem_cache_init(&c, &w.cfg) == KVMEM_OK)
        CHECK(kvmem_cache_mark(&c, KVMEM_MARK_SCALE) == KVMEM_UNSUPPORTED);
    kvmem_cache_free(&c);
    world_free(&w);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "hack");
    RUN(tokens_of_a_scale_see_the_whole_scale);
    RUN(long_lanes_cut_into_chunks_see_the_whole_scale);
    RUN(observed_rows_of_a_scale_are_those_of_attention);
    RUN(a_scale_survives_copy_save_and_truncate);
    RUN(demoted_entries_are_seen_from_a_scale);
    RUN(identical_rows_have_no_variance_and_a_moving_key_has_the_most);
    RUN(types_by_share_and_by_gap);
    RUN(budgets_keep_the_total_exactly);
    RUN(choices_equal_the_definition_with_given_types);
    RUN(choices_equal_the_definition_with_types_by_share);
    RUN(choices_equal_the_definition_with_types_by_gap);
    RUN(tiny_budgets_equal_the_definition);
    RUN(structural_lanes_keep_first_and_newest_scales);
    RUN(the_classifier_separates_stripes_from_diagonals_and_swapping_them_hurts);
    RUN(a_budget_of_all_gives_the_bits_of_full);
    RUN(threads_copies_and_files_go_on_with_the_same_bits);
    RUN(odd_streams_are_fine);
    RUN(byte_limits_hold_when_a_group_has_many_heads);
    RUN(no_memory_is_an_error_and_nothing_leaks);
    RUN(misuse_is_named);
    return test_end();
}
