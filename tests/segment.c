/* segment.c - where events begin: the segment stage, its one rule of lengths, surprise and refinement. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"

/* A cache of one layer and head, rows given, that segments. */
typedef struct stream {
    kvmem_cache c;
    kvmem_recipe r;
    kvmem_config cfg;
    int G, H, L, d;
} stream;
static int stream_init(stream *s, const char *recipe, int L, int H, int G, int d) {
    kvmem_error e;
    memset(s, 0, sizeof *s);
    s->L = L; s->H = H; s->G = G; s->d = d;
    if (kvmem_recipe_parse(&s->r, recipe, &e) != KVMEM_OK) { printf("  %s\n", e.text); return 0; }
    s->cfg = kvmem_config_default();
    s->cfg.recipe = &s->r;
    s->cfg.shape.n_layers = L; s->cfg.shape.n_heads = H; s->cfg.shape.n_kv_heads = G; s->cfg.shape.head_dim = d;
    s->cfg.threads = 1;
    if (kvmem_cache_init(&s->c, &s->cfg) != KVMEM_OK) { printf("  %s\n", s->c.error.text); return 0; }
    return 1;
}
/* A block: k (n, L, G, d) or NULL for zeros, q (n, H, d) for every layer or NULL, surprise (n) or NULL. */
static kvmem_status stream_feed(stream *s, int n, const float *k, const float *q, const float *surprise,
                                kvmem_phase phase) {
    const size_t kd = (size_t)(s->G * s->d), qd = (size_t)(s->H * s->d), un = (size_t)n;
    float *row = (float *)calloc(un * kd, 4), *zero = (float *)calloc(un * qd, 4), *out = (float *)calloc(un * qd, 4);
    kvmem_status st = KVMEM_OK;
    int l;
    size_t i;
    for (l = 0; l < s->L && st == KVMEM_OK; l++) {
        for (i = 0; k && i < un; i++) memcpy(row + i * kd, k + (i * (size_t)s->L + (size_t)l) * kd, kd * 4);
        st = kvmem_cache_append(&s->c, l, n, row, row, NULL);
        if (st == KVMEM_OK) st = kvmem_cache_attend(&s->c, l, n, q ? q : zero, out);
    }
    if (st == KVMEM_OK && surprise) st = kvmem_cache_surprise(&s->c, n, surprise);
    if (st == KVMEM_OK) st = kvmem_cache_commit(&s->c, phase);
    free(row); free(zero); free(out);
    return st;
}
static int events_are(const kvmem_cache *c, int n, const int *want) {
    int i;
    for (i = 0; i < c->n_events && i < n && c->event[i] == want[i]; i++) {}
    if (i == n && c->n_events == n) return 1;
    printf("  events:");
    for (i = 0; i < c->n_events; i++) printf(" %d", (int)c->event[i]);
    printf("\n");
    return 0;
}
#define EVENTS(c, ...) do { const int want_[] = { __VA_ARGS__ }; \
    CHECK(events_are(&(c), (int)(sizeof want_ / sizeof *want_), want_)); } while (0)

/* The rule of lengths, on the whole list of proposals. */
static int cut_list(const int *at, int n, int total, int min, int max, int *out) {
    int i, m = 0, b = 0;
    out[m++] = 0;
    for (i = 0; i < n; i++) { /* close the piece [b, at[i]) or join it with what follows */
        if (at[i] <= b || at[i] - b < min) continue;
        while (max && at[i] - b > max) out[m++] = b += max;
        if (at[i] - b >= min) out[m++] = b = at[i];
    }
    while (max && total - b > max) out[m++] = b += max;
    return m;
}
TEST(cut_of_a_stream_is_cut_of_the_list) {
    int trial;
    for (trial = 0; trial < 200; trial++) {
        int at[64], want[256], got[256], n = 0, m = 1, p, min = 1 + trial % 7, max = trial % 3 ? min + trial % 11 : 0;
        int b = 0, i, next, total = 60 + trial % 5;
        for (p = 1; p < total; p++) if (test_unit() < 0.15) at[n++] = p;
        got[0] = 0;
        for (i = 0; i <= n; i++) {
            const int to = i < n ? at[i] : total;
            while ((next = kvmem__cut_next(b, to, i < n, min, max)) >= 0) {
                got[m++] = b = next;
                if (b >= to) break;
            }
        }
        CHECK(m == cut_list(at, n, total, min, max, want));
        for (i = 0; i < m; i++) CHECK(got[i] == want[i]);
        for (i = 1; i < m; i++) CHECK(got[i] - got[i - 1] >= min && (!max || got[i] - got[i - 1] <= max));
    }
}
TEST(cut_carries_a_short_rest_into_the_next_piece) {
    CHECK(kvmem__cut_next(0, 3, 1, 4, 8) == -1);  /* too short: joins what follows */
    CHECK(kvmem__cut_next(0, 4, 1, 4, 8) == 4);
    CHECK(kvmem__cut_next(0, 10, 1, 4, 8) == 8);  /* too long */
    CHECK(kvmem__cut_next(8, 10, 1, 4, 8) == -1); /* the rest of 2 is carried on */
    CHECK(kvmem__cut_next(0, 8, 0, 4, 8) == -1 && kvmem__cut_next(0, 9, 0, 4, 8) == 8);
    CHECK(kvmem__cut_next(5, 5, 1, 1, 0) == -1 && kvmem__cut_next(0, INT32_MAX, 0, 1, 0) == -1);
}
TEST(cut_refuses_lengths_that_exclude_each_other) {
    kvmem_recipe r;
    kvmem_error e;
    CHECK(kvmem_recipe_parse(&r, "segment=surprise(min=9,max=8)", &e) == KVMEM_BAD_RECIPE && strstr(e.text, "min=9"));
    CHECK(kvmem_recipe_parse(&r, "segment=surprise(min=9,max=0)", &e) == KVMEM_OK);
    CHECK(kvmem_recipe_parse(&r, "segment=surprise(shift=2)", &e) == KVMEM_BAD_RECIPE);
    CHECK(kvmem_recipe_parse(&r, "segment=surprise(refine=entropy)", &e) == KVMEM_BAD_RECIPE);
    CHECK(kvmem_recipe_parse(&r, "segment=turn(every=0)", &e) == KVMEM_BAD_RECIPE);
    CHECK(kvmem_recipe_parse(&r, "segment=tdc(window=1)", &e) == KVMEM_BAD_RECIPE);
}
TEST(counts_survive_two_floats) {
    const int64_t n[] = { 0, 1, 4194303, 4194304, 2147483647, (int64_t)1 << 45 };
    float f[2] = { -1, 3 };
    int i;
    CHECK(kvmem__get_count(f) == 0);
    f[0] = NAN;
    CHECK(kvmem__get_count(f) == 0);
    for (i = 0; i < 6; i++) { kvmem__put_count(f, n[i]); CHECK(kvmem__get_count(f) == n[i]); }
}

/* ---- turns ---- */

TEST(turn_starts_events_at_marks) {
    stream s;
    int i;
    REQUIRE(stream_init(&s, "segment=turn", 1, 1, 1, 4));
    for (i = 0; i < 5; i++) {
        REQUIRE_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_TURN));
        REQUIRE_OK(stream_feed(&s, 3 + i, NULL, NULL, NULL, i < 4 ? KVMEM_PREFILL : KVMEM_PROMPT_END));
    }
    EVENTS(s.c, 0, 3, 7, 12, 18);
    kvmem_cache_free(&s.c);
    REQUIRE(stream_init(&s, "segment=turn(every=2,max=9)", 1, 1, 1, 4));
    for (i = 0; i < 5; i++) {
        REQUIRE_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_TURN));
        REQUIRE_OK(stream_feed(&s, 3 + i, NULL, NULL, NULL, KVMEM_PREFILL));
    }
    EVENTS(s.c, 0, 7, 16, 18); /* 7 .. 18 is too long */
    REQUIRE_OK(kvmem_cache_truncate(&s.c, 16));
    EVENTS(s.c, 0, 7);
    kvmem_cache_free(&s.c);
}
TEST(turn_and_another_mark_share_a_place) {
    stream s;
    int order;
    for (order = 0; order < 2; order++) {
        REQUIRE(stream_init(&s, "segment=turn", 1, 1, 1, 4));
        REQUIRE_OK(stream_feed(&s, 4, NULL, NULL, NULL, KVMEM_PREFILL));
        REQUIRE_OK(kvmem_cache_mark(&s.c, order ? KVMEM_MARK_QUESTION : KVMEM_MARK_TURN));
        REQUIRE_OK(kvmem_cache_mark(&s.c, order ? KVMEM_MARK_TURN : KVMEM_MARK_QUESTION));
        REQUIRE_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_TURN));     /* twice is once */
        REQUIRE_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_QUESTION)); /* the last word counts */
        REQUIRE(s.c.n_marks == 2);
        CHECK(s.c.mark[0].kind == KVMEM_MARK_TURN && s.c.mark[1].kind == KVMEM_MARK_QUESTION);
        CHECK(s.c.mark[0].pos == 4 && s.c.mark[1].pos == 4);
        REQUIRE_OK(stream_feed(&s, 4, NULL, NULL, NULL, KVMEM_PROMPT_END));
        EVENTS(s.c, 0, 4);
        kvmem_cache_free(&s.c);
    }
}

/* ---- surprise ---- */

static void flags_of(const float *stored, int m, const float *s, int n, double gamma, int tau, unsigned char *flag) {
    const double par[] = { gamma, tau, 0, 0, 0, 1, 0, 0, 4096, 0 };
    float ring[16];
    kvmem__surprises x;
    int i;
    for (i = 0; i < m; i++) ring[1 + i] = stored[i]; /* token 0 has none */
    ring[0] = -1;
    x.ring = ring; x.cap = 16; x.n = n; x.lo = 0; x.at = 1 + m; x.s = s;
    kvmem__surprise_flags(&x, par, 0, flag);
}
TEST(surprise_worked_example) {
    const float stored[] = { 1, 2, 3, 2 }, s[] = { 2.0f, 2.9f, 2.7f, 5.0f };
    const float ring[] = { -1, 1, 2, 3, 2 };
    unsigned char f[4];
    kvmem__surprises x;
    x.ring = ring; x.cap = 5; x.n = 0; x.lo = 0; x.at = 5; x.s = NULL;
    CHECK_NEAR(kvmem__surprise_limit(&x, 1, 5, 1), 2.816497, 1e-6);
    CHECK_NEAR(kvmem__surprise_limit(&x, 1, 5, 0.5), 2.408248, 1e-6);
    flags_of(stored, 4, s, 4, 1, 0, f);
    CHECK(!f[0] && f[1] && !f[2] && f[3]);
    flags_of(stored, 4, s, 4, 0.5, 0, f);
    CHECK(!f[0] && f[1] && f[2] && f[3]);
    flags_of(stored, 4, s, 4, 1, 4, f); /* the paper's window: limits 2.816, 2.95 (2,3,2,2), 3.0 (3,2,2,2.9), 2.85 */
    CHECK(!f[0] && f[1] && !f[2] && f[3]);
}
TEST(surprise_equal_values_and_a_huge_gamma_flag_nothing) {
    const float same[] = { 2, 2, 2, 2, 2, 2, 2, 2 }, s[] = { 1, 9, 2, 50 };
    unsigned char f[8];
    int i;
    flags_of(same, 4, same, 8, 1, 0, f);
    for (i = 0; i < 8; i++) CHECK(!f[i]);
    flags_of(same, 4, same, 8, 0, 5, f);
    for (i = 0; i < 8; i++) CHECK(!f[i]);
    flags_of(s, 4, s, 4, 1e6, 0, f);
    for (i = 0; i < 4; i++) CHECK(!f[i]);
    flags_of(same, 0, s, 1, 0, 0, f); /* one value has no deviation */
    CHECK(!f[0]);
}
/* What the released code does, by index: index t holds the surprise of token t + 1. */
static int released(const float *s, int n, int block, double gamma, int init, int local, int whole, int *at) {
    int from, m = 0, i;
    for (from = 0; from < n; from += block) {
        const int to = KVMEM__MIN(from + block, n), e = to - 1, C = from ? to - from : to - 1;
        const int a = KVMEM__MAX(e - local, 0), b = KVMEM__MAX(e - C, init), k = whole && !from ? e : KVMEM__MIN(b, e);
        double mean = 0, var = 0;
        for (i = a; i < k; i++) mean += (double)s[i + 1] / (k - a);
        for (i = a; i < k; i++) var += ((double)s[i + 1] - mean) * ((double)s[i + 1] - mean) / (k - a - 1);
        for (i = KVMEM__MAX(from - 1, 0); i < e && k - a > 1; i++)
            if ((double)s[i + 1] > mean + gamma * sqrt(var)) at[m++] = i;
    }
    return m;
}
TEST(surprise_stage_follows_the_released_rule) {
    static float s[400];
    static int at[400], want[400];
    int trial, i, n, t, shift;
    for (trial = 0; trial < 12; trial++) {
        const int block = 16 + 7 * trial, min = trial % 4 + 1, max = trial % 3 ? 30 : 0, init = 8 * trial;
        const int local = trial % 2 ? 60 : 4096;
        char recipe[200];
        stream x;
        shift = trial / 6;
        for (i = 0; i < 400; i++) s[i] = (float)(test_unit() < 0.05 ? 4 + test_unit() : test_unit());
        s[0] = -1;
        sprintf(recipe, "segment=surprise(gamma=1.5,min=%d,max=%d,init=%d,local=%d,shift=%d)", min, max, init, local,
                shift);
        REQUIRE(stream_init(&x, recipe, 1, 1, 1, 4));
        for (t = 0; t < 400; t += n) {
            n = KVMEM__MIN(block, 400 - t);
            REQUIRE_OK(stream_feed(&x, n, NULL, NULL, s + t, t + n < 400 ? KVMEM_PREFILL : KVMEM_PROMPT_END));
        }
        n = released(s, 400, block, 1.5, init, local, 0, at);
        for (i = 0; i < n; i++) at[i] += shift;
        /* at shift=0 the last token's own flag is not known: nothing is cut behind it */
        n = cut_list(at, n, 399 + shift, min, max, want);
        CHECK(n > 4 && events_are(&x.c, n, want));
        kvmem_cache_free(&x.c);
    }
}
TEST(surprise_of_generated_tokens) {
    stream s;
    float a[20];
    int i, decode;
    for (decode = 0; decode < 2; decode++) {
        REQUIRE(stream_init(&s, decode ? "segment=surprise(min=1,max=0,shift=1,decode=1)"
                                       : "segment=surprise(min=1,max=0,shift=1)", 1, 1, 1, 4));
        for (i = 0; i < 20; i++) a[i] = i == 9 ? 8.0f : (float)(i % 3);
        a[0] = -1;
        REQUIRE_OK(stream_feed(&s, 20, NULL, NULL, a, KVMEM_PROMPT_END));
        for (i = 0; i < 10; i++) {
            const float x = i == 4 ? 9.0f : 1.0f;
            REQUIRE_OK(stream_feed(&s, 1, NULL, NULL, i == 7 ? NULL : &x, KVMEM_DECODE)); /* one is not told */
        }
        if (decode) EVENTS(s.c, 0, 9, 24);
        else EVENTS(s.c, 0, 9);
        kvmem_cache_free(&s.c);
    }
}
TEST(surprise_that_nobody_tells_is_an_error) {
    stream s;
    const float bad[2] = { 1, NAN };
    REQUIRE(stream_init(&s, "segment=surprise", 1, 1, 1, 4));
    CHECK(stream_feed(&s, 2, NULL, NULL, NULL, KVMEM_PREFILL) == KVMEM_BAD_STATE &&
          strstr(s.c.error.text, "kvmem_cache_surprise"));
    REQUIRE_OK(kvmem_cache_truncate(&s.c, 0));
    CHECK(stream_feed(&s, 2, NULL, NULL, bad, KVMEM_PREFILL) == KVMEM_BAD_VALUE);
    REQUIRE_OK(kvmem_cache_truncate(&s.c, 0));
    CHECK(kvmem_cache_surprise(&s.c, 2, bad) == KVMEM_BAD_STATE);
    CHECK(kvmem_cache_surprise(&s.c, 2, NULL) == KVMEM_BAD_ARGUMENT);
    kvmem_cache_free(&s.c);
    REQUIRE(stream_init(&s, "segment=surprise(refine=modularity,from=3)", 2, 1, 1, 4)); /* no layer 3 */
    { const float x[6] = { -1, 0, 0, 0, 0, 9 };
      CHECK(stream_feed(&s, 6, NULL, NULL, x, KVMEM_PREFILL) == KVMEM_BAD_RECIPE);
      CHECK(strstr(s.c.error.text, "2 layers") != NULL); }
    kvmem_cache_free(&s.c);
}
/* A copy, a saved and loaded cache, and one that was truncated and fed again go on as the first does. */
static kvmem_cache saved_cache;
TEST(segment_memory_is_copied_saved_and_truncated) {
    static const char *const recipe[] = { "segment=surprise(min=2,max=40,local=50,refine=modularity,from=0)",
        "segment=surprise(tau=20,shift=1,min=1)", "segment=tdc(n=3,window=20,mean=2,layer=0)",
        "segment=kffocus(theta=0.3,mean=3,layer=0)", "segment=louis(tau=0,layer=0)" };
    static float s[200], k[200 * 8], q[200 * 8];
    bytes b = { NULL, 0, 0 };
    int i, j, t;
    for (i = 0; i < 200; i++) s[i] = (float)(test_unit() < 0.08 ? 3 : test_unit());
    for (i = 0; i < 1600; i++) { k[i] = (float)test_normal(); q[i] = (float)test_normal(); }
    s[0] = -1;
    for (i = 0; i < 5; i++) {
        stream x, y;
        kvmem_cache_info info;
        REQUIRE(stream_init(&x, recipe[i], 1, 2, 2, 4));
        for (t = 0; t < 120; t += 30) REQUIRE_OK(stream_feed(&x, 30, k + 8 * t, q + 8 * t, s + t, KVMEM_PREFILL));
        b.n = 0;
        REQUIRE_OK(kvmem_cache_save(&x.c, bytes_write, &b));
        REQUIRE_OK(kvmem_cache_inspect(b.p, b.n, &info, NULL));
        CHECK(info.tokens == 120);
        REQUIRE_OK(kvmem_cache_copy(&saved_cache, &x.c));
        REQUIRE(stream_init(&y, recipe[i], 1, 2, 2, 4));
        REQUIRE_OK(kvmem_cache_load(&y.c, b.p, b.n));
        for (t = 120; t < 200; t += 40) {
            REQUIRE_OK(stream_feed(&x, 40, k + 8 * t, q + 8 * t, s + t, KVMEM_PREFILL));
            REQUIRE_OK(stream_feed(&y, 40, k + 8 * t, q + 8 * t, s + t, KVMEM_PREFILL));
        }
        CHECK(x.c.n_events > 3 && x.c.n_events == y.c.n_events);
        for (j = 0; j < x.c.n_events; j++) CHECK(x.c.event[j] == y.c.event[j]);
        kvmem_cache_free(&y.c);
        y = x;
        y.c = saved_cache;
        for (t = 120; t < 200; t += 40)
            REQUIRE_OK(stream_feed(&y, 40, k + 8 * t, q + 8 * t, s + t, KVMEM_PREFILL));
        CHECK(x.c.n_events == y.c.n_events);
        for (j = 0; j < x.c.n_events; j++) CHECK(x.c.event[j] == y.c.event[j]);
        kvmem_cache_free(&y.c);
        REQUIRE_OK(kvmem_cache_truncate(&x.c, 130)); /* whatever it remembers then, events stay in order */
        REQUIRE_OK(stream_feed(&x, 70, k, q, s + 1, KVMEM_PROMPT_END));
        for (j = 1; j < x.c.n_events; j++) CHECK(x.c.event[j] > x.c.event[j - 1] && x.c.event[j] < 200);
        kvmem_cache_free(&x.c);
    }
    free(b.p);
}

/* ---- refinement ---- */

/* The two metrics as the paper's code computes them, from the whole matrix A of a window (w, w). */
static double brute_modularity(const double *A, int w, int t) {
    double S = 0, q = 0, deg[64];
    int i, j;
    for (i = 0; i < w; i++) for (deg[i] = 0, j = 0; j < w; j++) deg[i] += A[i * w + j], S += A[i * w + j];
    for (i = 0; i < w; i++)
        for (j = 0; j < w; j++)
            if ((i < t) == (j < t)) q += A[i * w + j] - deg[i] * deg[j] / S;
    return q / (2 * S);
}
static double brute_conductance(const double *A, int w, int t) {
    double S = 0, W[2] = { 0, 0 }, cut = 0, phi[2];
    int i, j;
    for (i = 0; i < w; i++)
        for (j = 0; j < w; j++) {
            S += A[i * w + j];
            if (i < t && j < t) W[0] += A[i * w + j];
            else if (i >= t && j >= t) W[1] += A[i * w + j];
            else if (i < t) cut += A[i * w + j];
        }
    for (i = 0; i < 2; i++) {
        const double least = KVMEM__MIN(W[i], S - W[i]);
        phi[i] = cut / (least == 0 ? 1e-15 : least);
    }
    return KVMEM__MIN(phi[0], phi[1]);
}
/* The refinement of the released code, by whole matrices. k (n, lanes, d); at: proposals, refined in place. */
static int brute_refine(const float *k, int lanes, int d, int *at, int m, int base, int from, int to, int min,
                        int metric) {
    int i, j, a, b, t, kept = 0, prev = 0, was = 0;
    const int off = from - base, N = to - base;
    for (i = 0; i < m; i++) {
        const int e = at[i] - base, ok = i ? at[i] - was >= min : !off || e >= min;
        was = at[i];
        if (!ok) continue;
        if (e - prev > min && e - off > min) {
            static double A[64 * 64];
            const int half = (e - prev) / 2, lo = KVMEM__MAX(0, prev - half), hi = KVMEM__MIN(N, e + half), w = hi - lo;
            double best = 0, S = 0;
            int at_best = -1;
            for (a = 0; a < w; a++)
                for (b = 0; b < w; b++) {
                    double dot = 0;
                    for (j = 0; j < lanes * d; j++)
                        dot += (double)k[(base + lo + a) * lanes * d + j] * (double)k[(base + lo + b) * lanes * d + j];
                    A[a * w + b] = dot;
                    S += dot;
                }
            for (t = KVMEM__MAX(off, prev) + min; t < e; t++) {
                const double q = metric == 1 ? brute_modularity(A, w, t - lo) : -brute_conductance(A, w, t - lo);
                if (at_best < 0 || q > best + 1e-12) best = q, at_best = t;
            }
            prev = at_best < 0 || fabs(S) < 1e-12 ? e : at_best;
        } else prev = e;
        at[kept++] = base + prev;
    }
    return kept;
}
TEST(refine_worked_example) {
    static const float k[12] = { 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1 };
    double A[36], T[2] = { 4, 2 }, P[2] = { 0, 0 }, left[6] = { 0 }, right[6] = { 0 }, vol[6] = { 0 };
    const double q[5] = { 0, 0.01, 0.04, 0.09, 0.16 }, phi[5] = { 0, 0.428571, 0.5, 0.333333, 0 };
    kvmem__gram x;
    int i, j, t;
    for (i = 0; i < 6; i++) for (j = 0; j < 6; j++)
        A[i * 6 + j] = (double)(k[2 * i] * k[2 * j] + k[2 * i + 1] * k[2 * j + 1]);
    x.total = 20; x.left = left; x.right = right; x.vol = vol;
    for (t = 0; t < 6; t++) {
        kvmem__gram_fill(&x, P, T, 2, t, t + 1);
        kvmem__gram_sum(P, k + 2 * t, 1, 2);
    }
    for (t = 1; t < 5; t++) {
        CHECK_NEAR(kvmem__modularity(&x, t), q[t], 1e-6);
        CHECK_NEAR(kvmem__conductance(&x, t), phi[t], 1e-6);
        CHECK_NEAR(brute_modularity(A, 6, t), q[t], 1e-6);
        CHECK_NEAR(brute_conductance(A, 6, t), phi[t], 1e-6);
    }
    CHECK_NEAR(kvmem__modularity(&x, 5), 0.04, 1e-6);
    CHECK(kvmem__gram_best(&x, 1, 5, 1) == 4 && kvmem__gram_best(&x, 1, 5, 2) == 4);
    x.total = 0;
    CHECK(kvmem__gram_best(&x, 1, 5, 1) == -1);
}
TEST(refine_moves_the_start_in_the_stage_whatever_the_number_of_lanes) {
    int lanes, metric, i, j;
    for (lanes = 1; lanes <= 4; lanes *= 2)
        for (metric = 1; metric <= 2; metric++) {
            float k[7 * 8];
            const float s[7] = { -1, 1, 1, 1, 1, 1, 9 }; /* index 5 is flagged */
            stream x;
            for (i = 0; i < 7; i++)
                for (j = 0; j < lanes; j++) {
                    k[2 * (i * lanes + j)] = i < 4 ? 1.0f : 0.0f;
                    k[2 * (i * lanes + j) + 1] = i < 4 ? 0.0f : 1.0f;
                }
            REQUIRE(stream_init(&x, metric == 1 ? "segment=surprise(refine=modularity,from=0,min=1)"
                                                : "segment=surprise(refine=conductance,from=0,min=1)",
                                lanes > 2 ? 2 : 1, lanes > 1 ? 2 : 1, lanes > 1 ? 2 : 1, 2));
            REQUIRE_OK(stream_feed(&x, 7, k, NULL, s, KVMEM_PROMPT_END));
            EVENTS(x.c, 0, 4);
            kvmem_cache_free(&x.c);
        }
}
TEST(refine_by_key_sums_equals_brute_force) {
    enum { N = 64, LANES = 4, D = 4 };
    static float k[N * LANES * D];
    static float s[N];
    int trial, i, n, t;
    for (trial = 0; trial < 60; trial++) {
        const int min = 1 + trial % 4, metric = 1 + trial % 2, block = trial % 3 ? 32 : 64;
        int at[N], from, m, base, last = -1, began = 0, j, want[N], nw = 0, ev[N];
        char recipe[200];
        stream x;
        for (i = 0; i < N * LANES * D; i++) k[i] = (float)test_normal() + (i / (LANES * D) / 9 % 2 ? 0.7f : -0.2f);
        for (i = 0; i < N; i++) s[i] = (float)(test_unit() < 0.12 ? 5 + test_unit() : test_unit());
        s[0] = -1;
        sprintf(recipe, "segment=surprise(refine=%s,from=0,min=%d,max=0,init=64)", metric == 1 ? "modularity"
                                                                                              : "conductance", min);
        REQUIRE(stream_init(&x, recipe, 2, 2, 2, D));
        for (t = 0; t < N; t += n) {
            n = block;
            REQUIRE_OK(stream_feed(&x, n, k + t * LANES * D, NULL, s + t, KVMEM_PREFILL));
        }
        m = released(s, N, block, 1, 64, 4096, 1, at);
        for (i = 0, from = 0; from < N; from += block) {
            const int a = from ? from - 1 : 0, b = from + block - 1;
            int part[N], np = 0;
            while (i < m && at[i] < b) part[np++] = at[i++];
            base = last >= began && last < a && last >= 0 ? last : a;
            if (np) {
                const int before = np;
                int dropped = 0, was = 0;
                for (j = 0; j < np; j++) {
                    dropped += !(j ? part[j] - was >= min : a == base || part[j] - base >= min);
                    was = part[j];
                }
                np = brute_refine(k, LANES, D, part, np, base, a, b, min, metric);
                CHECK(np == before - dropped); /* refinement itself loses none */
                for (j = 1; j < np; j++) CHECK(part[j] > part[j - 1]);
            }
            for (j = 0; j < np; j++) ev[nw++] = part[j];
            if (np) last = part[np - 1];
            began = a;
        }
        nw = cut_list(ev, nw, N - 1, min, 0, want);
        CHECK(events_are(&x.c, nw, want));
        kvmem_cache_free(&x.c);
    }
}
TEST(refine_numbers_equal_brute_force_within_1e_5) {
    static double A[40 * 40], left[40], right[40], vol[40];
    static float k[40 * 3];
    int trial, i, j, t;
    for (trial = 0; trial < 20; trial++) {
        double T[3] = { 0, 0, 0 }, P[3] = { 0, 0, 0 };
        kvmem__gram x;
        for (i = 0; i < 120; i++) k[i] = (float)test_normal() + 0.5f;
        for (i = 0; i < 40; i++) for (j = 0; j < 40; j++)
            A[i * 40 + j] = (double)k[3 * i] * (double)k[3 * j] + (double)k[3 * i + 1] * (double)k[3 * j + 1] +
                            (double)k[3 * i + 2] * (double)k[3 * j + 2];
        memset(left, 0, sizeof left); memset(right, 0, sizeof right); memset(vol, 0, sizeof vol);
        kvmem__gram_sum(T, k, 40, 3);
        x.total = T[0] * T[0] + T[1] * T[1] + T[2] * T[2]; x.left = left; x.right = right; x.vol = vol;
        for (t = 0; t < 40; t++) {
            kvmem__gram_fill(&x, P, T, 3, t, t + 1);
            kvmem__gram_sum(P, k + 3 * t, 1, 3);
        }
        for (t = 1; t < 40; t++) {
            const double q = brute_modularity(A, 40, t), phi = brute_conductance(A, 40, t);
            CHECK_NEAR(kvmem__modularity(&x, t), q, 1e-5 * fabs(q) + 1e-12);
            CHECK_NEAR(kvmem__conductance(&x, t), phi, 1e-5 * fabs(phi) + 1e-9);
        }
    }
}
TEST(refine_lives_with_evicted_keys_and_a_byte_limit) {
    static const char *const recipe[] = {
        "segment=surprise(refine=modularity,from=0,min=2) score=recency budget=20 when=block",
        "segment=surprise(refine=modularity,from=0,min=2) score=knorm budget=256KiB when=block page=8",
        "segment=tdc(n=2,window=9) score=recency budget=10 when=block",
        "segment=kffocus score=recency budget=256KiB page=8" };
    static float k[300 * 8], s[300];
    int i, t;
    for (i = 0; i < 2400; i++) k[i] = (float)test_normal();
    for (i = 0; i < 300; i++) s[i] = (float)(i % 29 ? test_unit() : 9);
    s[0] = -1;
    for (i = 0; i < 4; i++) {
        stream x;
        REQUIRE(stream_init(&x, recipe[i], 1, 2, 2, 4));
        for (t = 0; t < 300; ) {
            const int room = kvmem_cache_room(&x.c), n = KVMEM__MIN(KVMEM__MIN(30, room), 300 - t);
            REQUIRE(n > 0);
            REQUIRE_OK(stream_feed(&x, n, k + 8 * t, NULL, s + t, KVMEM_PREFILL));
            t += n;
        }
        CHECK(x.c.n_events > 3);
        kvmem_cache_free(&x.c);
    }
}

/* ---- tdc, kffocus, louis ---- */

static float unit2[2];
static const float *angle(double a) { unit2[0] = (float)cos(a); unit2[1] = (float)sin(a); return unit2; }
TEST(tdc_worked_example) {
    const float s[4] = { 0.9f, 0.2f, 0.8f, 0.1f }, same[5] = { 1, 1, 1, 1, 1 };
    int at[5], idx[5];
    float score[5], k[10];
    double a = 0;
    stream x;
    int i;
    CHECK(kvmem__tdc_lowest(s, 4, 2, at, idx, score) == 2 && at[0] == 1 && at[1] == 3);
    CHECK(kvmem__tdc_lowest(same, 5, 2, at, idx, score) == 2 && at[0] == 0 && at[1] == 1); /* ties: lower index */
    CHECK(kvmem__tdc_lowest(s, 4, 4, at, idx, score) == 4);
    CHECK(kvmem__tdc_lowest(s, 0, 4, at, idx, score) == 0 && kvmem__tdc_lowest(s, 4, 0, at, idx, score) == 0);
    for (i = 0; i < 5; i++) { /* vectors with these cosines, of any length */
        memcpy(k + 2 * i, angle(a), 8);
        k[2 * i] *= (float)(1 + i); k[2 * i + 1] *= (float)(1 + i);
        if (i < 4) a += acos((double)s[i]);
    }
    REQUIRE(stream_init(&x, "segment=tdc(n=2)", 1, 1, 1, 2));
    REQUIRE_OK(stream_feed(&x, 5, k, NULL, NULL, KVMEM_PROMPT_END));
    EVENTS(x.c, 0, 2, 4);
    kvmem_cache_free(&x.c);
    REQUIRE(stream_init(&x, "segment=tdc(n=4)", 1, 1, 1, 2)); /* n - 1 <= N: all alone */
    REQUIRE_OK(stream_feed(&x, 5, k, NULL, NULL, KVMEM_PROMPT_END));
    EVENTS(x.c, 0, 1, 2, 3, 4);
    kvmem_cache_free(&x.c);
}
/* A stream of pieces that point elsewhere, with noise: as tokens or as the mean of several. */
static int pieces(float *k, int per, int *start) {
    int i, j, n = 0, m = 0;
    for (i = 0; i < 6; i++) {
        start[m++] = n * per;
        for (j = 0; j < 5 + 2 * i; j++, n++) {
            int t;
            for (t = 0; t < per; t++) {
                float *r = k + 8 * (n * per + t);
                int x;
                for (x = 0; x < 8; x++) r[x] = (x == i ? 3.0f : 0.0f) + 0.2f * (float)test_normal();
            }
        }
    }
    start[m] = n * per;
    return m;
}
TEST(tdc_finds_the_pieces_of_a_stream_exactly) {
    static float k[400 * 8];
    int start[8], per, m, t, n, block;
    for (per = 1; per <= 3; per++)
        for (block = 7; block < 200; block += 60) {
            char recipe[80];
            stream x;
            m = pieces(k, per, start);
            sprintf(recipe, "segment=tdc(n=%d,mean=%d,layer=0)", m - 1, per);
            REQUIRE(stream_init(&x, recipe, 1, 1, 1, 8));
            for (t = 0; t < start[m]; t += n) {
                n = KVMEM__MIN(block, start[m] - t);
                REQUIRE_OK(stream_feed(&x, n, k + 8 * t, NULL, NULL,
                                       t + n < start[m] ? KVMEM_PREFILL : KVMEM_PROMPT_END));
            }
            CHECK(events_are(&x.c, m, start));
            kvmem_cache_free(&x.c);
            sprintf(recipe, "segment=kffocus(theta=0.5,gop=1000,mean=%d,layer=0)", per);
            REQUIRE(stream_init(&x, recipe, 1, 1, 1, 8));
            for (t = 0; t < start[m]; t += n) {
                n = KVMEM__MIN(block, start[m] - t);
                REQUIRE_OK(stream_feed(&x, n, k + 8 * t, NULL, NULL, KVMEM_PREFILL));
            }
            CHECK(events_are(&x.c, m, start));
            kvmem_cache_free(&x.c);
        }
}
TEST(kffocus_wins_on_slow_drift) {
    float k[2 * 180];
    stream x;
    int i;
    for (i = 0; i < 180; i++) memcpy(k + 2 * i, angle(i * 3.14159265358979 / 180), 8); /* one degree a vector */
    REQUIRE(stream_init(&x, "segment=kffocus(theta=0.8675,gop=1000)", 1, 1, 1, 2)); /* cos 30 degrees is 0.866 */
    REQUIRE_OK(stream_feed(&x, 180, k, NULL, NULL, KVMEM_PROMPT_END));
    EVENTS(x.c, 0, 30, 60, 90, 120, 150);
    kvmem_cache_free(&x.c);
}
TEST(kffocus_with_theta_below_all_cuts_by_gop_alone) {
    static float k[8 * 100];
    stream x;
    int i;
    for (i = 0; i < 800; i++) k[i] = (float)test_normal();
    REQUIRE(stream_init(&x, "segment=kffocus(theta=-1,gop=30)", 1, 1, 1, 8));
    REQUIRE_OK(stream_feed(&x, 100, k, NULL, NULL, KVMEM_PROMPT_END));
    EVENTS(x.c, 0, 30, 60, 90);
    kvmem_cache_free(&x.c);
}
TEST(vectors_are_the_keys_before_rope) {
    world w;
    kvmem_cache a, b;
    int i;
    REQUIRE(world_init(&w, 2, 2, 2, 8, 90, "segment=tdc(n=6,mean=2,layer=1)"));
    w.cfg.shape.rope = NULL;
    REQUIRE_OK(kvmem_cache_init(&a, &w.cfg));
    REQUIRE_OK(feed(&w, &a, 0, 90, 20, KVMEM_PROMPT_END, NULL));
    w.cfg.shape.rope = w.rope;
    REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
    REQUIRE_OK(feed(&w, &b, 0, 90, 33, KVMEM_PROMPT_END, NULL));
    CHECK(a.n_events == 7 && b.n_events == 7);
    for (i = 0; i < 7; i++) CHECK(a.event[i] == b.event[i]);
    kvmem_cache_free(&a);
    kvmem_cache_free(&b);
    world_free(&w);
}
TEST(louis_mean_cosine_below_tau) {
    /* two heads: cosines 0.9 and 0.4 between tokens 0 and 1, then 1 and 1 */
    float q[3 * 4];
    stream x;
    static const char *const recipe[] = { "segment=louis(tau=0.7,layer=0)", "segment=louis(tau=0.64,layer=0)",
                                          "segment=louis(tau=1.1,layer=0)", "segment=louis(tau=-1.1,layer=0)" };
    int i;
    memcpy(q, angle(0), 8); memcpy(q + 2, angle(0), 8);
    memcpy(q + 4, angle(acos(0.9)), 8); memcpy(q + 6, angle(acos(0.4)), 8);
    memcpy(q + 8, q + 4, 16);
    for (i = 0; i < 4; i++) {
        REQUIRE(stream_init(&x, recipe[i], 1, 2, 1, 2));
        REQUIRE_OK(stream_feed(&x, 2, NULL, q, NULL, KVMEM_PREFILL)); /* token 2 comes with another block */
        REQUIRE_OK(stream_feed(&x, 1, NULL, q + 8, NULL, KVMEM_DECODE));
        if (i == 0) { CHECK_NEAR(x.c.token_value[0], 1, 1e-6); EVENTS(x.c, 0, 1); }
        if (i == 1 || i == 3) EVENTS(x.c, 0);
        if (i == 2) EVENTS(x.c, 0, 1, 2);
        kvmem_cache_free(&x.c);
    }
    REQUIRE(stream_init(&x, recipe[0], 1, 2, 1, 2));
    REQUIRE_OK(stream_feed(&x, 2, NULL, q, NULL, KVMEM_PREFILL));
    CHECK_NEAR(x.c.token_value[1], 0.65, 1e-6);
    kvmem_cache_free(&x.c);
}
TEST(one_token_at_a_time_is_one_block) {
    static const char *const recipe[] = { "segment=kffocus(theta=0.2,mean=2)", "segment=louis(tau=0)",
        "segment=turn(max=9)",
        "segment=surprise(tau=12,shift=1,min=2,max=20)", "segment=surprise(tau=12,shift=0,min=2,max=20)" };
    world w;
    kvmem_cache a, b;
    int i, j;
    for (i = 0; i < 5; i++) {
        REQUIRE(world_init(&w, 2, 4, 2, 8, 100, recipe[i]));
        w.cfg.shape.rope = w.rope;
        REQUIRE_OK(kvmem_cache_init(&a, &w.cfg));
        REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
        REQUIRE_OK(feed(&w, &a, 0, 100, 1, KVMEM_PREFILL, NULL));
        REQUIRE_OK(feed(&w, &b, 0, 100, 100, KVMEM_PREFILL, NULL));
        CHECK(a.n_events > 3 && a.n_events == b.n_events);
        for (j = 0; j < a.n_events; j++) CHECK(a.event[j] == b.event[j]);
        kvmem_cache_free(&a);
        kvmem_cache_free(&b);
        world_free(&w);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "segment");
    RUN(cut_of_a_stream_is_cut_of_the_list);
    RUN(cut_carries_a_short_rest_into_the_next_piece);
    RUN(cut_refuses_lengths_that_exclude_each_other);
    RUN(counts_survive_two_floats);
    RUN(turn_starts_events_at_marks);
    RUN(turn_and_another_mark_share_a_place);
    RUN(surprise_worked_example);
    RUN(surprise_equal_values_and_a_huge_gamma_flag_nothing);
    RUN(surprise_stage_follows_the_released_rule);
    RUN(surprise_of_generated_tokens);
    RUN(surprise_that_nobody_tells_is_an_error);
    RUN(segment_memory_is_copied_saved_and_truncated);
    RUN(refine_worked_example);
    RUN(refine_moves_the_start_in_the_stage_whatever_the_number_of_lanes);
    RUN(refine_by_key_sums_equals_brute_force);
    RUN(refine_numbers_equal_brute_force_within_1e_5);
    RUN(refine_lives_with_evicted_keys_and_a_byte_limit);
    RUN(tdc_worked_example);
    RUN(tdc_finds_the_pieces_of_a_stream_exactly);
    RUN(kffocus_wins_on_slow_drift);
    RUN(kffocus_with_theta_below_all_cuts_by_gop_alone);
    RUN(vectors_are_the_keys_before_rope);
    RUN(louis_mean_cosine_below_tau);
    RUN(one_token_at_a_time_is_one_block);
    return test_end();
}
