/* Attention of blocks: tiles against the token-by-token loop and a double-precision oracle; the same
   bits for any cut of the prompt and any number of threads. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"

typedef struct setup {
    int heads, kv, d, page, n, window, rope, neox;
    float softcap;
    int sinks;
    const char *recipe;
} setup;

static float *numbers(size_t n, unsigned long long seed) {
    float *x = (float *)malloc(n * sizeof *x);
    size_t i;
    for (i = 0; i < n && x; i++) x[i] = (float)(4 * kvmem__unit(kvmem__mix(seed * 1000003u + i)) - 2);
    return x;
}
static int scales; /* 1: every block is a scale, whose tokens see all of it */
/* out (n, heads, d) of a one-layer cache fed in blocks of `block` tokens. */
static kvmem_status feed(const setup *s, const kvmem_backend *b, int threads, int block, float *out) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe rec;
    kvmem_cache c;
    kvmem_rope rope;
    float freq[64], bias[128];
    float *q = numbers((size_t)(s->n * s->heads * s->d), 1), *k = numbers((size_t)(s->n * s->kv * s->d), 2);
    float *v = numbers((size_t)(s->n * s->kv * s->d), 3);
    int t, i;
    char text[200];
    kvmem_status st;
    memset(&c, 0, sizeof c);
    snprintf(text, sizeof text, "%s page=%d", s->recipe, s->page);
    st = kvmem_recipe_parse(&rec, text, &c.error);
    for (i = 0; i < 64; i++) freq[i] = (float)pow(10000.0, -2.0 * i / s->d);
    for (i = 0; i < 128; i++) bias[i] = (float)(i % 5) - 2;
    rope.n_rot = s->d / 2 * 2;
    rope.neox = s->neox;
    rope.mscale = 1;
    rope.inv_freq = freq;
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = s->heads;
    cfg.shape.n_kv_heads = s->kv;
    cfg.shape.head_dim = s->d;
    cfg.shape.softcap = s->softcap;
    cfg.shape.window = s->window ? &s->window : NULL;
    cfg.shape.rope = s->rope ? &rope : NULL;
    cfg.shape.sink_bias = s->sinks ? bias : NULL;
    cfg.recipe = &rec;
    cfg.backend = b;
    cfg.threads = threads;
    cfg.max_block = s->n;
    if (st == KVMEM_OK) st = kvmem_cache_init(&c, &cfg);
    for (t = 0; t < s->n && st == KVMEM_OK; t += block) {
        const int m = s->n - t < block ? s->n - t : block;
        if (scales) st = kvmem_cache_mark(&c, KVMEM_MARK_SCALE);
        if (st == KVMEM_OK) st = kvmem_cache_append(&c, 0, m, k + t * s->kv * s->d, v + t * s->kv * s->d, NULL);
        if (st == KVMEM_OK) st = kvmem_cache_attend(&c, 0, m, q + t * s->heads * s->d, out + t * s->heads * s->d);
        if (st == KVMEM_OK) st = kvmem_cache_commit(&c, t + m == s->n ? KVMEM_PROMPT_END : KVMEM_PREFILL);
    }
    if (st != KVMEM_OK) printf("  %s: %s\n", text, c.error.text);
    kvmem_cache_free(&c);
    free(q); free(k); free(v);
    return st;
}
static double worst(const float *a, const float *b, size_t n) {
    double w = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        const double e = fabs((double)a[i] - (double)b[i]);
        if (!(e <= w)) w = e;
    }
    return w;
}
/* The fast paths of this machine, or NULL. */
static const kvmem_backend *path(int i) {
    const char *const names[3] = { "avx512", "avx2", "neon" };
    return kvmem_backend_cpu(names[i]);
}
static const setup setups[] = {
    { 4, 1, 64, 64, 300, 0, 0, 0, 0, 0, "full" },
    { 8, 8, 40, 64, 100, 0, 1, 0, 0, 0, "full" },
    { 6, 2, 80, 20, 150, 0, 1, 1, 0, 0, "full" },
    { 9, 3, 64, 100, 260, 0, 1, 1, 30, 0, "full codec.k=f16 codec.v=bf16" },
    { 8, 2, 128, 64, 200, 50, 1, 1, 0, 0, "full" },
    { 8, 1, 32, 16, 90, 33, 0, 0, 0, 1, "full" },
    { 70, 1, 12, 64, 70, 0, 1, 0, 0, 1, "full" },
    { 4, 2, 64, 64, 200, 0, 1, 1, 0, 0, "full codec.k=q8_0 codec.v=q4_0" },
    { 4, 2, 48, 64, 200, 0, 1, 1, 0, 0, "full codec.k=q4_0 codec.v=q8_0" },
    { 4, 2, 64, 16, 300, 0, 1, 1, 0, 0, "streamingllm budget=80 when=block" }
};
enum { N_SETUPS = (int)(sizeof setups / sizeof setups[0]) };

TEST(tiles_equal_the_token_loop_within_rounding) {
    int p, i;
    for (p = 0; p < 3; p++) {
        const kvmem_backend *b = path(p);
        for (i = 0; b && i < N_SETUPS; i++) {
            const setup *s = &setups[i];
            const size_t n = (size_t)(s->n * s->heads * s->d);
            float *x = (float *)malloc(n * sizeof *x), *y = (float *)malloc(n * sizeof *y);
            REQUIRE_OK(feed(s, b, 1, 50, x));
            REQUIRE_OK(feed(s, kvmem_backend_cpu("plain"), 1, 50, y));
            if (!(worst(x, y, n) < 2e-5)) FAIL_AT("%s, setup %d: differ by %g", b->name, i, worst(x, y, n));
            free(x); free(y);
        }
    }
}
TEST(tiles_of_scales_equal_the_token_loop_and_any_threads_agree) { /* tests/hack.c holds the loop to an oracle */
    int p, i;
    scales = 1;
    for (p = 0; p < 3; p++) {
        const kvmem_backend *b = path(p);
        for (i = 0; b && i < N_SETUPS; i++) {
            const setup *s = &setups[i];
            const size_t n = (size_t)(s->n * s->heads * s->d);
            float *x = (float *)malloc(n * sizeof *x), *y = (float *)malloc(n * sizeof *y);
            CHECK(feed(s, b, 1, 50, x) == KVMEM_OK && feed(s, kvmem_backend_cpu("plain"), 1, 50, y) == KVMEM_OK);
            if (!(worst(x, y, n) < 2e-5)) FAIL_AT("%s, setup %d: differ by %g", b->name, i, worst(x, y, n));
            CHECK(feed(s, b, 3, 50, y) == KVMEM_OK && !memcmp(x, y, n * sizeof *x));
            free(x); free(y);
        }
    }
    scales = 0;
}
TEST(any_cut_of_the_prompt_and_any_threads_give_the_same_bits) {
    int p, i;
    for (p = 0; p < 3; p++) {
        const kvmem_backend *b = path(p);
        for (i = 0; b && i < N_SETUPS - 1; i++) {
            const setup *s = &setups[i];
            const size_t n = (size_t)(s->n * s->heads * s->d);
            float *x = (float *)malloc(n * sizeof *x), *y = (float *)malloc(n * sizeof *y);
            const int cut = i % 2 ? 10 : 25; /* no rest of fewer than 8 tokens */
            REQUIRE_OK(feed(s, b, 1, s->n, x));
            REQUIRE_OK(feed(s, b, 1, s->n % cut && s->n % cut < KVMEM__TILE_MIN ? s->n / 2 : cut, y));
            if (memcmp(x, y, n * sizeof *x))
                FAIL_AT("%s, setup %d: blocks of %d change bits by %g", b->name, i, cut, worst(x, y, n));
            REQUIRE_OK(feed(s, b, 2, s->n, y));
            if (memcmp(x, y, n * sizeof *x)) FAIL_AT("%s, setup %d: two threads change bits", b->name, i);
            free(x); free(y);
        }
    }
}
TEST(attention_equals_a_double_precision_oracle) {
    const setup s = { 6, 2, 24, 16, 75, 20, 0, 0, 5, 1, "full" };
    const char *const names[4] = { "plain", "avx512", "avx2", "neon" };
    float *q = numbers((size_t)(s.n * s.heads * s.d), 1), *k = numbers((size_t)(s.n * s.kv * s.d), 2);
    float *v = numbers((size_t)(s.n * s.kv * s.d), 3);
    float *out = (float *)malloc(sizeof(float) * (size_t)(s.n * s.heads * s.d));
    int p, t, h, e, j;
    for (p = 0; p < 4; p++) {
        double most = 0;
        if (!kvmem_backend_cpu(names[p])) continue;
        REQUIRE_OK(feed(&s, kvmem_backend_cpu(names[p]), 1, s.n, out));
        for (t = 0; t < s.n; t++) {
            for (h = 0; h < s.heads; h++) {
                double sum = exp((double)(h % 5) - 2), o[24] = { 0 };
                for (e = t - s.window + 1 > 0 ? t - s.window + 1 : 0; e <= t; e++) {
                    double x = 0;
                    for (j = 0; j < s.d; j++)
                        x += (double)q[(t * s.heads + h) * s.d + j] * (double)k[(e * s.kv + h / 3) * s.d + j];
                    x = exp(5 * tanh(x / sqrt(24.0) / 5));
                    sum += x;
                    for (j = 0; j < s.d; j++) o[j] += x * (double)v[(e * s.kv + h / 3) * s.d + j];
                }
                for (j = 0; j < s.d; j++) {
                    const double d = fabs(o[j] / sum - (double)out[(t * s.heads + h) * s.d + j]);
                    if (!(d <= most)) most = d;
                }
            }
        }
        if (!(most < 2e-6)) FAIL_AT("%s: differs by %g", names[p], most);
    }
    free(q); free(k); free(v); free(out);
}
TEST(product_equals_plain_for_every_rest) {
    enum { M = 13, K = 21, N = 112 };
    static float a[M * K], b[K * N], c[M * N], r[M * N];
    int m, n, k, p, i, add;
    for (i = 0; i < M * K; i++) a[i] = (float)test_normal();
    for (i = 0; i < K * N; i++) b[i] = (float)test_normal();
    for (p = 0; p < 3; p++) {
        const kvmem_backend *be = path(p);
        for (m = 0; be && m <= M; m++)
            for (n = 16; n <= N; n += 16)
                for (k = 0; k <= K; k += 7)
                    for (add = 0; add < 2; add++) {
                        for (i = 0; i < M * N; i++) c[i] = r[i] = (float)i;
                        kvmem__product(be, c, N, a, K, b, N, m, k, n, add);
                        kvmem__product_plain(r, N, a, K, b, N, m, k, n, add);
                        if (!(worst(c, r, M * N) < 2e-3)) FAIL_AT("%s: m %d n %d k %d add %d", be->name, m, n, k, add);
                    }
    }
}
TEST(lanes_cut_for_more_threads_give_the_same_bits) {
    const setup one = { 8, 1, 64, 64, 2603, 0, 1, 1, 0, 1, "full codec.k=f16 codec.v=q8_0" };
    const setup windowed = { 6, 2, 64, 64, 2201, 1200, 1, 1, 0, 0, "full" };
    int p, i, threads;
    for (p = 0; p < 3; p++) {
        const kvmem_backend *b = path(p);
        for (i = 0; b && i < 2; i++) {
            const setup *s = i ? &windowed : &one;
            const size_t n = (size_t)(s->n * s->heads * s->d);
            float *x = (float *)malloc(n * sizeof *x), *y = (float *)malloc(n * sizeof *y);
            REQUIRE_OK(feed(s, b, 1, 500, x)); /* the rest of 3 or 1 goes token by token */
            for (threads = 2; threads <= 5; threads += 3) {
                REQUIRE_OK(feed(s, b, threads, 500, y));
                if (memcmp(x, y, n * sizeof *x))
                    FAIL_AT("%s: %d threads differ by %g", b->name, threads, worst(x, y, n));
            }
            free(x); free(y);
        }
    }
}
TEST(live_bytes_stay_under_the_limit_and_the_estimate_knows_the_tiles) {
    const char *const names[3] = { "avx512", "avx2", "neon" };
    int p, k;
    for (p = 0; p < 3; p++) {
        for (k = 0; k < 2; k++) { /* without and with a byte limit that leaves room for tiles */
            const int H = 8, G = 2, d = 64, L = 2, N = 1200;
            kvmem_config cfg = kvmem_config_default();
            kvmem_recipe rec;
            kvmem_cache c;
            kvmem_bytes b, est;
            kvmem_error e;
            test_heap heap = { 0, 0, 0, 0, 0 };
            float *q = numbers((size_t)(512 * H * d), 1), *o = numbers((size_t)(512 * H * d), 1);
            int t, l, n;
            cfg.backend = kvmem_backend_cpu(names[p]);
            if (!cfg.backend) { free(q); free(o); continue; }
            REQUIRE_OK(kvmem_recipe_parse(&rec, k ? "h2o budget=200" : "full", &e));
            cfg.shape.n_layers = L; cfg.shape.n_heads = H; cfg.shape.n_kv_heads = G; cfg.shape.head_dim = d;
            cfg.recipe = &rec;
            cfg.threads = 1;
            cfg.max_bytes = k ? (size_t)3 << 20 : 0;
            cfg.allocator = test_allocator(&heap);
            REQUIRE_OK(kvmem_cache_init(&c, &cfg));
            for (t = 0; t < N; t += n) {
                n = KVMEM__MIN(KVMEM__MIN(kvmem_cache_room(&c), 512), N - t);
                REQUIRE(n > 0);
                for (l = 0; l < L; l++) {
                    if (kvmem_cache_append(&c, l, n, q, q, NULL) || kvmem_cache_attend(&c, l, n, q, o))
                        FAIL_AT("%s", c.error.text);
                }
                REQUIRE_OK(kvmem_cache_commit(&c, t + n == N ? KVMEM_PROMPT_END : KVMEM_PREFILL));
                CHECK(!k || heap.live <= cfg.max_bytes);
            }
            kvmem_cache_bytes(&c, &b);
            CHECK(b.peak.total == heap.peak);
            CHECK(!k || heap.peak <= cfg.max_bytes);
            REQUIRE_OK(kvmem_estimate(&cfg, N, 0, &est, &e));
            if (!k) CHECK(est.peak.total == b.peak.total && est.live.total == b.live.total);
            kvmem_cache_free(&c);
            CHECK(heap.live == 0 && heap.wrong == 0);
            free(q); free(o);
        }
    }
}
/* out: a block of 40 tokens by tiles, then 3 single ones, over a lane with holes whose entries have biases. */
static kvmem_status biased(const kvmem_backend *b, int threads, const char *recipe, int d, float *out) {
    const int H = 4, G = 2, N = 1500;
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe rec;
    kvmem_cache c;
    kvmem_status st;
    float *q = numbers((size_t)((N + 43) * H * d), 1), *k = numbers((size_t)((N + 43) * G * d), 2);
    float *v = numbers((size_t)((N + 43) * G * d), 3);
    int kept[1500], t, g, n = 0;
    memset(&c, 0, sizeof c);
    st = kvmem_recipe_parse(&rec, recipe, &c.error);
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = H;
    cfg.shape.n_kv_heads = G;
    cfg.shape.head_dim = d;
    cfg.recipe = &rec;
    cfg.backend = b;
    cfg.threads = threads;
    cfg.max_block = N;
    if (st == KVMEM_OK) st = kvmem_cache_init(&c, &cfg);
    if (st == KVMEM_OK) st = kvmem_cache_append(&c, 0, N, k, v, NULL);
    if (st == KVMEM_OK) st = kvmem_cache_commit(&c, KVMEM_PROMPT_END);
    for (t = 0; t < N; t++) if (t % 7 != 3) kept[n++] = t;
    for (g = 0; st == KVMEM_OK && g < G; g++) {
        kvmem_lane *ln = kvmem__lane_at(&c, 0, g);
        st = kvmem__lane_keep(&c, ln, kept, n);
        for (t = 0; t < n; t++) *kvmem__stat_at(&c, ln, KVMEM_WRITES_BIAS, t) = (float)((t * 31 + g) % 9) * 0.4f;
    }
    for (t = 0, n = 40; st == KVMEM_OK && t < 43; t += n, n = 1) {
        st = kvmem_cache_append(&c, 0, n, k + (N + t) * G * d, v + (N + t) * G * d, NULL);
        if (st == KVMEM_OK) st = kvmem_cache_attend(&c, 0, n, q + (N + t) * H * d, out + t * H * d);
        if (st == KVMEM_OK) st = kvmem_cache_commit(&c, KVMEM_DECODE);
    }
    if (st != KVMEM_OK) printf("  %s: %s\n", recipe, c.error.text);
    kvmem_cache_free(&c);
    free(q); free(k); free(v);
    return st;
}
TEST(biases_are_added_on_every_path) { /* tests/merge.c compares the plain path with brute force */
    static const char *const recipes[] = { "reduce=compensate", "reduce=compensate codec=q8_0 page=50",
                                           "reduce=compensate codec=turboquant(bits=4)" };
    const char *const names[3] = { "avx512", "avx2", "neon" };
    static float want[43 * 4 * 64], got[43 * 4 * 64], split[43 * 4 * 64];
    int i, p, x;
    for (i = 0; i < 3; i++) {
        REQUIRE_OK(biased(kvmem_backend_cpu("plain"), 1, recipes[i], 64, want));
        for (p = 0; p < 3; p++) {
            const kvmem_backend *b = kvmem_backend_cpu(names[p]);
            double worst = 0;
            if (!b) continue;
            REQUIRE_OK(biased(b, 1, recipes[i], 64, got));
            REQUIRE_OK(biased(b, 4, recipes[i], 64, split)); /* single tokens: lanes are cut for the threads */
            CHECK(!memcmp(got, split, sizeof got));
            for (x = 0; x < 43 * 4 * 64; x++) worst = KVMEM__MAX(worst, fabs((double)got[x] - (double)want[x]));
            if (!(worst < 1e-4)) FAIL_AT("%s on %s: off by %g", recipes[i], names[p], worst);
        }
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "attention");
    RUN(product_equals_plain_for_every_rest);
    RUN(attention_equals_a_double_precision_oracle);
    RUN(tiles_equal_the_token_loop_within_rounding);
    RUN(tiles_of_scales_equal_the_token_loop_and_any_threads_agree);
    RUN(any_cut_of_the_prompt_and_any_threads_give_the_same_bits);
    RUN(lanes_cut_for_more_threads_give_the_same_bits);
    RUN(live_bytes_stay_under_the_limit_and_the_estimate_knows_the_tiles);
    RUN(biases_are_added_on_every_path);
    return test_end();
}
