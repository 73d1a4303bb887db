/* Arithmetic coder, levels, chunks, the controller: sections entropy, stream, stream_plan. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "../tools/mend.h"

/* --- a stream of tokens whose channels go on from token to token: AR(1), log-normal scales --------- */
typedef struct world {
    kvmem_config cfg;
    kvmem_recipe recipe;
    kvmem_rope rope[8];
    float inv[128];
    int L, H, G, d;
    double rho;
    float *state, *scale; /* (2, L, G, d) */
} world;

static int world_init(world *w, int L, int H, int G, int d, double rho, const char *recipe) {
    const size_t n = (size_t)(2 * L * G * d);
    kvmem_error e;
    size_t x;
    int i;
    memset(w, 0, sizeof *w);
    w->L = L; w->H = H; w->G = G; w->d = d; w->rho = rho;
    w->state = (float *)malloc(n * 4);
    w->scale = (float *)malloc(n * 4);
    for (x = 0; x < n; x++) {
        w->scale[x] = (float)exp(0.5 * test_normal());
        w->state[x] = (float)test_normal();
    }
    w->cfg = kvmem_config_default();
    if (kvmem_recipe_parse(&w->recipe, recipe, &e) != KVMEM_OK) { printf("  recipe: %s\n", e.text); return 0; }
    w->cfg.shape.n_layers = L; w->cfg.shape.n_heads = H; w->cfg.shape.n_kv_heads = G; w->cfg.shape.head_dim = d;
    w->cfg.recipe = &w->recipe;
    w->cfg.backend = kvmem_backend_cpu("plain");
    w->cfg.threads = 1;
    for (i = 0; i < d / 2; i++) w->inv[i] = (float)pow(100.0, -2.0 * i / d);
    for (i = 0; i < L; i++) { w->rope[i].n_rot = d & ~1; w->rope[i].mscale = 1; w->rope[i].inv_freq = w->inv; }
    return 1;
}
static void world_free(world *w) { free(w->state); free(w->scale); }
/* Feed n tokens one by one; out (n, L, H, d) may be NULL. Same seed state, same tokens. */
static kvmem_status feed(world *w, kvmem_cache *c, int n, kvmem_phase end, float *out) {
    const size_t row = (size_t)(w->G * w->d);
    float q[256], o[256], k[256], v[256];
    kvmem_status st = KVMEM_OK;
    int t, l, i;
    for (t = 0; st == KVMEM_OK && t < n; t++) {
        for (l = 0; st == KVMEM_OK && l < w->L; l++) {
            for (i = 0; i < w->G * w->d; i++) {
                const size_t a = (size_t)l * row + (size_t)i, b = a + (size_t)w->L * row;
                w->state[a] = (float)(w->rho * (double)w->state[a] + sqrt(1 - w->rho * w->rho) * test_normal());
                w->state[b] = (float)(w->rho * (double)w->state[b] + sqrt(1 - w->rho * w->rho) * test_normal());
                k[i] = w->state[a] * w->scale[a];
                v[i] = w->state[b] * w->scale[b];
            }
            for (i = 0; i < w->H * w->d; i++) q[i] = (float)test_normal();
            st = kvmem_cache_append(c, l, 1, k, v, NULL);
            if (st == KVMEM_OK) st = kvmem_cache_attend(c, l, 1, q, o);
            if (out) memcpy(out + (size_t)(t * w->L + l) * (size_t)(w->H * w->d), o, (size_t)(w->H * w->d) * 4);
        }
        if (st == KVMEM_OK) st = kvmem_cache_commit(c, t + 1 < n && end != KVMEM_DECODE ? KVMEM_PREFILL : end);
    }
    if (st != KVMEM_OK) printf("  feed: %s\n", c->error.text);
    return st;
}
typedef struct bytes { unsigned char *p; size_t n, cap; } bytes;
static int bytes_write(void *user, const void *p, size_t n) {
    bytes *b = (bytes *)user;
    if (b->n + n > b->cap) b->p = (unsigned char *)realloc(b->p, b->cap = 2 * (b->n + n));
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 0;
}
static kvmem_level_options at_level(int level, int group) {
    kvmem_level_options o = kvmem_level_options_default();
    o.level = level;
    o.group = group;
    return o;
}
/* Same lengths and positions; *k, *v: relative squared errors of b's rows. */
static int compare(const world *w, const kvmem_cache *a, const kvmem_cache *b, double *k, double *v) {
    double e[2] = { 0, 0 }, sum[2] = { 0, 0 };
    float x[4][256];
    int l, g, t, i, ok = a->tokens == b->tokens && a->next_pos == b->next_pos;
    for (l = 0; l < w->L; l++)
        for (g = 0; g < w->G; g++) {
            const int n = kvmem_cache_lane_len(a, l, g);
            ok = ok && n == kvmem_cache_lane_len(b, l, g);
            for (t = 0; ok && t < n; t++) {
                int32_t p, q;
                kvmem_cache_read(a, l, g, t, 1, x[0], x[1], &p);
                kvmem_cache_read(b, l, g, t, 1, x[2], x[3], &q);
                ok = p == q;
                for (i = 0; i < 2 * w->d; i++) {
                    const double u = (double)x[i % 2][i / 2], z = (double)x[2 + i % 2][i / 2];
                    e[i % 2] += (u - z) * (u - z);
                    sum[i % 2] += u * u;
                }
            }
        }
    *k = sum[0] > 0 ? e[0] / sum[0] : 0;
    *v = sum[1] > 0 ? e[1] / sum[1] : 0;
    return ok;
}

/* --- entropy --------------------------------------------------------------------------------------- */
static kvmem_arena free_arena(void) {
    kvmem_arena a;
    memset(&a, 0, sizeof a);
    a.a = kvmem__allocator(NULL);
    return a;
}
TEST(coder_gives_the_bytes_of_the_cards_example) {
    static const int symbol[8] = { 1, 0, 1, 1, 2, 1, 0, 1 };
    static const uint64_t count[3] = { 2, 5, 1 };
    kvmem_arena a = free_arena();
    kvmem__model m;
    kvmem__bytes b;
    kvmem__coder k;
    kvmem__uncoder u;
    int i;
    double bits = 0;
    kvmem__model_make(&m, count, 3);
    CHECK(m.cdf[0] == 0 && m.cdf[1] == 0x4000 && m.cdf[2] == 0xdffe && m.cdf[3] == 0x10000);
    kvmem__bytes_init(&b, &a);
    kvmem__coder_begin(&k, &b);
    for (i = 0; i < 8; i++) {
        kvmem__coder_put(&k, &m, symbol[i]);
        bits -= log((double)count[symbol[i]] / 8) / log(2.0);
    }
    kvmem__coder_end(&k);
    CHECK(b.n == 2 && b.p[0] == 0x5e && b.p[1] == 0x80);
    CHECK_NEAR(bits, 10.39, 0.005);
    kvmem__uncoder_begin(&u, b.p, b.n);
    for (i = 0; i < 8; i++) CHECK(kvmem__uncoder_get(&u, &m) == symbol[i]);
    kvmem__bytes_free(&b);
    CHECK(a.live.total == 0);
}
TEST(decoded_symbols_are_the_coded_ones_and_take_their_entropy) {
    static const int sizes[] = { 2, 3, 15, 31, 255 };
    static unsigned char s[5000];
    int which, shape, i;
    for (which = 0; which < 5; which++)
        for (shape = 0; shape < 5; shape++) {
            const int n = sizes[which], T = shape == 4 ? 1 : 5000;
            uint64_t count[KVMEM__SYMBOLS], back[KVMEM__SYMBOLS];
            kvmem_arena a = free_arena();
            kvmem__model m;
            kvmem__bytes b;
            kvmem__coder k;
            kvmem__uncoder u;
            kvmem__bit_out o;
            kvmem__bit_in in;
            size_t head;
            double bits = 0;
            int wrong = 0;
            memset(count, 0, sizeof count);
            for (i = 0; i < T; i++) { /* even, normal, one alone, one rare */
                int x = shape == 0 ? (int)(test_unit() * n) : shape == 1 ? n / 2 + (int)(test_normal() * n / 8)
                      : shape == 2 ? n - 1 : test_unit() < 0.001 ? 0 : n / 2;
                x = x < 0 ? 0 : x >= n ? n - 1 : x;
                s[i] = (unsigned char)x;
                count[x]++;
            }
            for (i = 0; i < n; i++)
                if (count[i]) bits -= (double)count[i] * log((double)count[i] / T) / log(2.0);
            kvmem__bytes_init(&b, &a);
            memset(&o, 0, sizeof o);
            o.b = &b;
            kvmem__counts_put(&o, count, n);
            kvmem__bit_end(&o);
            head = b.n;
            kvmem__model_make(&m, count, n);
            kvmem__coder_begin(&k, &b);
            for (i = 0; i < T; i++) kvmem__coder_put(&k, &m, s[i]);
            kvmem__coder_end(&k);
            CHECK(8.0 * (double)(b.n - head) <= bits * 1.01 + 0.01 * T + 16); /* 16-bit models, the end */
            CHECK_NEAR(kvmem__counts_bits(count, n), 8.0 * (double)b.n, 24 + 0.001 * T);
            memset(&in, 0, sizeof in);
            in.p = b.p;
            in.left = b.n;
            CHECK(kvmem__counts_get(&in, back, n, (uint64_t)T) && !memcmp(back, count, (size_t)n * sizeof *count));
            CHECK(in.p == b.p + head);
            kvmem__uncoder_begin(&u, in.p, in.left);
            for (i = 0; i < T; i++) wrong += kvmem__uncoder_get(&u, &m) != s[i];
            CHECK(!wrong);
            kvmem__bytes_free(&b);
        }
}
TEST(decoder_of_any_bytes_stays_inside_them) {
    static const uint64_t count[4] = { 1, 0, 900, 3 };
    kvmem__model m;
    int i, j, n;
    kvmem__model_make(&m, count, 4);
    for (i = 0; i < 200; i++) {
        unsigned char *p;
        kvmem__uncoder u;
        kvmem__bit_in in;
        n = i % 7;
        p = (unsigned char *)malloc((size_t)n + 1); /* a sanitizer sees reads past n */
        for (j = 0; j < n; j++) p[j] = (unsigned char)(test_unit() * 256);
        kvmem__uncoder_begin(&u, p, (size_t)n);
        for (j = 0; j < 300; j++) {
            const int s = kvmem__uncoder_get(&u, &m);
            CHECK(s >= 0 && s < 4 && u.low <= u.high);
        }
        memset(&in, 0, sizeof in);
        in.p = p;
        in.left = (size_t)n;
        for (j = 0; j < 60; j++) kvmem__gamma_get(&in);
        CHECK(in.bad && in.left == 0);
        free(p);
    }
}
TEST(numbers_of_seven_bits_a_byte_come_back) {
    static const uint32_t v[] = { 0, 1, 127, 128, 16383, 16384, 0x7fffffffu, 0xffffffffu };
    static const uint8_t over[] = { 0xff, 0xff, 0xff, 0xff, 0x10 }, endless[] = { 0x80, 0x80 };
    kvmem_arena a = free_arena();
    kvmem__bytes b;
    kvmem__in in;
    int i;
    kvmem__bytes_init(&b, &a);
    for (i = 0; i < 8; i++) kvmem__bytes_var(&b, v[i]);
    in.p = b.p; in.left = b.n; in.bad = 0;
    for (i = 0; i < 8; i++) CHECK(kvmem__in_var(&in) == v[i]);
    CHECK(!in.left && !in.bad);
    kvmem__bytes_free(&b);
    in.p = over; in.left = sizeof over;
    CHECK(kvmem__in_var(&in) == 0 && in.bad);
    in.p = endless; in.left = sizeof endless; in.bad = 0;
    CHECK(kvmem__in_var(&in) == 0 && in.bad);
}

/* --- quantizers ------------------------------------------------------------------------------------ */
TEST(scaled_symbols_are_those_of_the_cards_example) {
    static const float x[4] = { 0.7f, -1.4f, 0.1f, 2.1f };
    static const int want[4] = { 9, 2, 7, 14 };
    static const double back[4] = { 0.6, -1.5, 0, 2.1 };
    int i;
    for (i = 0; i < 4; i++) {
        const int s = kvmem__scaled_symbol(x[i], 2.1f, 16 / 2 - 1);
        CHECK(s == want[i]);
        CHECK_NEAR(kvmem__scaled_value(s, 2.1f, 7), back[i], 1e-6);
    }
    CHECK(kvmem__scaled_symbol(5, 0, 7) == 7 && kvmem__scaled_symbol(NAN, 1, 7) == 7);
    CHECK(kvmem__scaled_symbol(9, 1, 7) == 14 && kvmem__scaled_symbol(-9, 1, 7) == 0);
    CHECK(kvmem__scaled_symbol(INFINITY, 1, 7) == 7);
}
TEST(levels_of_32_layers_are_the_published_ones) {
    static const int k[3][3] = { { 16, 16, 12 }, { 32, 16, 16 }, { 32, 32, 32 } };
    int l, level;
    for (level = 1; level <= 3; level++)
        for (l = 0; l < 32; l++) {
            CHECK(kvmem__level_bins(level, 0, l, 32) == k[level - 1][l < 10 ? 0 : l < 20 ? 1 : 2]);
            CHECK(kvmem__level_bins(level, 1, l, 32) == (level == 3 || (level == 2 && l < 2) ? 32
                                                         : level == 2 || l < 2               ? 16
                                                                                             : 12));
        }
}
/* Files of the card's own simulation: C = 256 channels, T = 1500 tokens, three layers (so that all numbers of
   bins occur). rate: bits a value of K of a layer, all included; error: relative. */
static void simulate(double rho, int level, int group, double rate[3], double error[3], double *ratio) {
    enum { T = 1500, C = 256 };
    world w;
    kvmem_cache c, d;
    bytes s;
    kvmem_chunks f;
    kvmem_level_options o = at_level(level, group);
    double var[2] = { 0, 0 };
    float zero[C];
    int l, t, i;
    memset(zero, 0, sizeof zero);
    memset(&s, 0, sizeof s);
    test_state = 7;
    if (!world_init(&w, 3, 1, 1, C, rho, "full codec=f32")) return;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(kvmem_cache_init(&d, &w.cfg));
    for (t = 0; t < T; t++) { /* no attention: only rows */
        float k[C];
        for (l = 0; l < 3; l++) {
            for (i = 0; i < C; i++) {
                float *x = &w.state[l * C + i];
                *x = (float)(rho * (double)*x + sqrt(1 - rho * rho) * test_normal());
                k[i] = *x * w.scale[l * C + i];
            }
            CHECK_OK(kvmem_cache_append(&c, l, 1, k, zero, NULL));
            c.layer_state[l] = 2;
        }
        CHECK_OK(kvmem_cache_commit(&c, KVMEM_PREFILL));
    }
    o.chunk = T;
    CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
    CHECK_OK(kvmem_chunks_open(&f, s.p, s.n, NULL));
    CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
    {
        kvmem__in in;
        CHECK_OK(kvmem__chunks_part(&f, 0, 1 + level, &in, NULL));
        for (l = 0; l < 3; l++) {
            uint32_t n = kvmem__in_u32(&in);
            rate[l] = 8.0 * (n + 4) / (T * (double)C);
            kvmem__in_bytes(&in, n);
            n = kvmem__in_u32(&in);
            kvmem__in_bytes(&in, n);
        }
    }
    for (l = 0; l < 3; l++) {
        double e = 0, sum = 0;
        float x[C], y[C], a[C];
        for (t = 0; t < T; t++) {
            kvmem_cache_read(&c, l, 0, t, 1, x, NULL, NULL);
            kvmem_cache_read(&d, l, 0, t, 1, y, NULL, NULL);
            if (t % 10 == 0) memcpy(a, x, sizeof a);
            for (i = 0; i < C; i++) {
                e += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
                sum += (double)x[i] * (double)x[i];
                if (t % 10) {
                    var[0] += (double)x[i] * (double)x[i];
                    var[1] += ((double)x[i] - (double)a[i]) * ((double)x[i] - (double)a[i]);
                }
            }
        }
        error[l] = e / sum;
    }
    *ratio = var[0] / var[1];
    free(s.p);
    kvmem_cache_free(&c);
    kvmem_cache_free(&d);
    world_free(&w);
}

TEST(the_cards_simulation_comes_out) {
    double rate[3], error[3], ratio;
    simulate(0.9, 3, 1, rate, error, &ratio);
    CHECK_NEAR(ratio, 1.3, 0.06); /* variance of rows over that of differences from anchors */
    CHECK_NEAR(error[1], 0.0090, 0.0025); /* Q = 32; the scales of channels are drawn anew here */
    CHECK_NEAR(rate[1], 3.40, 0.3);       /* with the models, scales and ends that the card counts apart */
    simulate(0.9, 1, 1, rate, error, &ratio);
    CHECK_NEAR(error[0], 0.041, 0.01); /* Q = 16 */
    CHECK_NEAR(rate[0], 2.36, 0.3);
    CHECK_NEAR(error[2], 0.079, 0.02); /* Q = 12 */
    CHECK_NEAR(rate[2], 1.91, 0.15);
    simulate(0.9, 3, 10, rate, error, &ratio);
    CHECK_NEAR(error[0], 0.0145, 0.0005); /* b = .5 */
    CHECK_NEAR(rate[0], 3.32, 0.25);
    simulate(0.9, 1, 10, rate, error, &ratio);
    CHECK_NEAR(error[0], 0.058, 0.002); /* b = 1 */
    CHECK_NEAR(rate[0], 2.47, 0.25);
    CHECK_NEAR(error[1], 0.127, 0.006); /* b = 1.5 */
    CHECK_NEAR(rate[1], 1.99, 0.25);
    simulate(0.95, 1, 10, rate, error, &ratio);
    CHECK_NEAR(ratio, 2.3, 0.1);
    CHECK_NEAR(error[0], 0.032, 0.002);
    simulate(0, 1, 10, rate, error, &ratio);
    CHECK_NEAR(ratio, 0.5, 0.02); /* without correlation differences only double the variance */
    CHECK_NEAR(error[0], 0.150, 0.006);
}
TEST(models_take_what_the_card_says_and_less_as_counts) {
    uint64_t count[KVMEM__SYMBOLS];
    int T;
    CHECK_NEAR(16.0 * 33 / 1500, 0.35, 0.005); /* 33 entries of a cdf, bits a value of one channel */
    CHECK_NEAR(16.0 * 33 / 256, 2.06, 0.005);
    for (T = 256; T <= 1500; T += 1244) {
        int i, bits = 0;
        memset(count, 0, sizeof count);
        for (i = 0; i < T; i++) count[kvmem__scaled_symbol((float)test_normal(), 3.5f, 15)]++;
        for (i = 0; i < 31; i++) bits += kvmem__gamma_bits(count[i] + 1);
        CHECK(bits < (T == 256 ? 170 : 290)); /* of 528 */
    }
}

/* --- files ----------------------------------------------------------------------------------------- */
TEST(finer_levels_are_larger_and_nearer) {
    static const char *const recipe[] = { "full codec=f16", "h2o budget=40 sink=2 recent=8",
                                          "snapkv budget=30 recent=8 score=snapkv(window=8) codec=q8_0" };
    int r, group, level;
    for (r = 0; r < 3; r++)
        for (group = 1; group <= 10; group += 9) {
            world w; kvmem_cache c, d; double k, v, last_k = 1, last_v = 1; size_t size = 0;
            test_state = 99;
            REQUIRE(world_init(&w, 4, 4, 2, 16, 0.9, recipe[r]));
            w.cfg.shape.rope = w.rope;
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 170, KVMEM_PROMPT_END, NULL));
            for (level = 1; level <= 3; level++) {
                kvmem_level_options o = at_level(level, group); kvmem_cache_info info; kvmem_error e; bytes s;
                memset(&s, 0, sizeof s);
                o.chunk = 64;
                CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
                CHECK_OK(kvmem_cache_inspect(s.p, s.n, &info, &e));
                CHECK(info.tokens == 170 && info.level == level && info.levels == 1u << (level - 1));
                CHECK(info.n_layers == 4 && info.head_dim == 16 && info.file_bytes == s.n);
                CHECK(info.k_bytes + info.v_bytes > size);
                size = info.k_bytes + info.v_bytes;
                CHECK_OK(kvmem_cache_init(&d, &w.cfg));
                CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
                CHECK(compare(&w, &c, &d, &k, &v));
                CHECK(k < last_k && v < last_v && k > 0);
                last_k = k; last_v = v;
                CHECK(d.ring_n == c.ring_n && d.n_events == c.n_events && d.since_reduce == c.since_reduce);
                CHECK_OK(feed(&w, &d, 5, KVMEM_DECODE, NULL)); /* it goes on */
                kvmem_cache_free(&d); free(s.p);
            }
            CHECK(last_k < 0.06 && last_v < 0.06);
            kvmem_cache_free(&c); world_free(&w);
        }
}
TEST(level_0_is_the_save_of_entries_as_stored) {
    world w; kvmem_cache c; bytes a, b; kvmem_level_options o = at_level(0, 10);
    memset(&a, 0, sizeof a); memset(&b, 0, sizeof b);
    REQUIRE(world_init(&w, 2, 2, 1, 8, 0.9, "full codec=q8_0"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 20, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_save(&c, bytes_write, &a));
    CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &b));
    CHECK(a.n == b.n && !memcmp(a.p, b.p, a.n));
    free(a.p); free(b.p); kvmem_cache_free(&c); world_free(&w);
}
TEST(a_file_loads_into_a_cache_of_any_codec) {
    static const char *const to[] = { "full", "full codec=f16", "full codec=q8_0", "full codec=q4_0/q8_0 page=7",
                                      "window budget=500" };
    world w, z; kvmem_cache c, d; bytes s; double k, v; int i;
    kvmem_level_options o = at_level(3, 10);
    memset(&s, 0, sizeof s);
    REQUIRE(world_init(&w, 3, 2, 2, 32, 0.95, "full codec=bf16 page=16"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 90, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
    for (i = 0; i < 5; i++) {
        REQUIRE(world_init(&z, 3, 2, 2, 32, 0.95, to[i]));
        CHECK_OK(kvmem_cache_init(&d, &z.cfg));
        CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
        CHECK(compare(&w, &c, &d, &k, &v) && k < 0.03 && v < 0.03);
        kvmem_cache_free(&d); world_free(&z);
    }
    REQUIRE(world_init(&z, 3, 2, 2, 32, 0.95, "h2o budget=50"));
    CHECK_OK(kvmem_cache_init(&d, &z.cfg)); /* it reads sums that the file has not */
    CHECK(kvmem_cache_load(&d, s.p, s.n) == KVMEM_MISMATCH && strstr(d.error.text, "attention sums"));
    kvmem_cache_free(&d); z.cfg.model_id = 3;
    CHECK_OK(kvmem_cache_init(&d, &z.cfg));
    CHECK(kvmem_cache_load(&d, s.p, s.n) == KVMEM_MISMATCH && strstr(d.error.text, "another model"));
    kvmem_cache_free(&d); z.cfg.model_id = 0; z.cfg.shape.n_kv_heads = 1;
    CHECK_OK(kvmem_cache_init(&d, &z.cfg));
    CHECK(kvmem_cache_load(&d, s.p, s.n) == KVMEM_MISMATCH);
    kvmem_cache_free(&d); kvmem_cache_free(&c); world_free(&z); world_free(&w); free(s.p);
}
TEST(block_codecs_and_keys_before_rope_take_files_and_make_them) {
    static const char *const recipe[] = { "kivi(bits=4)", "kvquant(bits=4)/kvquant_v(bits=4)", "turboquant(bits=4)",
                                          "zip(bits=4)", "rotatekv(bits=4)", "lowrank" };
    char text[100];
    int i, j;
    for (i = 0; i < 6; i++) {
        world w, z; kvmem_cache c, d, e; bytes s, s2; double k, v, k2, v2; kvmem_error err; kvmem_bytes full, coded;
        kvmem_recipe r = kvmem_recipe_default();
        memset(&s, 0, sizeof s); memset(&s2, 0, sizeof s2);
        snprintf(text, sizeof text, "full codec=%s page=16", recipe[i]);
        if (kvmem_recipe_parse(&r, text, &err) != KVMEM_OK) { printf("  %s: %s\n", text, err.text); continue; }
        test_state = 3;
        REQUIRE(world_init(&w, 2, 2, 2, 32, 0.95, "full codec=f32"));
        test_state = 3;
        REQUIRE(world_init(&z, 2, 2, 2, 32, 0.95, text));
        w.cfg.shape.rope = w.rope; z.cfg.shape.rope = z.rope;
        CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(kvmem_cache_init(&d, &z.cfg));
        CHECK_OK(feed(&w, &c, 100, KVMEM_PROMPT_END, NULL));
        for (j = 0; j < 2; j++) { /* exact entries to the codec's cache, and the codec's to another file */
            kvmem_level_options o = at_level(3, 1);
            s.n = 0;
            CHECK_OK(kvmem_cache_save_level(j ? &d : &c, &o, bytes_write, &s));
            if (!j) {
                CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
                CHECK(compare(&w, &c, &d, &k, &v) && k < 0.08 && v < 0.08);
                kvmem_cache_bytes(&c, &full); kvmem_cache_bytes(&d, &coded);
                CHECK(coded.live.k + coded.live.v < (full.live.k + full.live.v) / 3); /* they are coded again at once */
            } else {
                CHECK_OK(kvmem_cache_init(&e, &w.cfg));
                CHECK_OK(kvmem_cache_load(&e, s.p, s.n));
                CHECK(compare(&w, &d, &e, &k2, &v2) && k2 < 0.03 && v2 < 0.03);
                kvmem_cache_free(&e);
            }
        }
        CHECK_OK(feed(&z, &d, 3, KVMEM_DECODE, NULL));
        kvmem_cache_free(&c); kvmem_cache_free(&d); free(s.p); free(s2.p); world_free(&w); world_free(&z);
    }
}
TEST(lanes_with_holes_empty_lanes_and_short_chunks_come_back) {
    static const int chunk[] = { 1, 2, 7, 65536 };
    int i, group;
    for (i = 0; i < 4; i++)
        for (group = 1; group <= 3; group++) {
            world w; kvmem_cache c, d; bytes s; double k, v; int kept[64], n = 0, t; kvmem_chunks f;
            kvmem_level_options o = at_level(3, group);
            memset(&s, 0, sizeof s);
            REQUIRE(world_init(&w, 2, 4, 4, 7, 0.9, "full page=8"));
            CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 60, KVMEM_PROMPT_END, NULL));
            for (t = 0; t < 60; t++) if (test_unit() < 0.4) kept[n++] = t;
            CHECK_OK(kvmem__lane_keep(&c, kvmem__lane_at(&c, 0, 1), kept, n));
            CHECK_OK(kvmem__lane_keep(&c, kvmem__lane_at(&c, 0, 2), kept, 0));
            kept[0] = 59;
            CHECK_OK(kvmem__lane_keep(&c, kvmem__lane_at(&c, 1, 0), kept, 1));
            o.chunk = chunk[i];
            CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
            CHECK_OK(kvmem_chunks_open(&f, s.p, s.n, NULL));
            CHECK(f.n_chunks == (60 + KVMEM__MIN(60, chunk[i]) - 1) / KVMEM__MIN(60, chunk[i]));
            CHECK_OK(kvmem_cache_init(&d, &w.cfg)); CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
            CHECK(compare(&w, &c, &d, &k, &v) && k < 0.1 && v < 0.1);
            CHECK(kvmem_cache_lane_len(&d, 0, 2) == 0 && kvmem_cache_lane_len(&d, 1, 0) == 1);
            kvmem_cache_free(&c); kvmem_cache_free(&d); free(s.p); world_free(&w);
        }
}
TEST(an_empty_cache_and_one_whose_entries_are_all_gone_come_back) {
    int round, l, g;
    for (round = 0; round < 2; round++) {
        world w; kvmem_cache c, d; bytes s; double k, v;
        memset(&s, 0, sizeof s);
        REQUIRE(world_init(&w, 2, 2, 2, 4, 0.9, "full"));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(kvmem_cache_init(&d, &w.cfg));
        if (round) CHECK_OK(feed(&w, &c, 9, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) CHECK_OK(kvmem__lane_keep(&c, kvmem__lane_at(&c, l, g), NULL, 0));
        CHECK_OK(kvmem_cache_save_level(&c, NULL, bytes_write, &s));
        CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
        CHECK(compare(&w, &c, &d, &k, &v) && d.tokens == 9 * round);
        CHECK_OK(feed(&w, &d, 2, KVMEM_DECODE, NULL));
        kvmem_cache_free(&c); kvmem_cache_free(&d); free(s.p); world_free(&w);
    }
}
TEST(zeros_huge_and_tiny_values_stay_finite) {
    static const float value[] = { 0, 1e-42f, 3e38f, -3e38f, 1e-20f, 65505 };
    int i, group, x;
    for (group = 1; group <= 10; group += 9)
        for (i = 0; i < 6; i++) {
            world w; kvmem_cache c, d; bytes s; float k[8], v[8]; int32_t pos; int t, finite = 1; double e, u;
            kvmem_level_options o = at_level(3, group);
            memset(&s, 0, sizeof s); memset(k, 0, sizeof k);
            REQUIRE(world_init(&w, 1, 1, 1, 8, 0.9, "full"));
            CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(kvmem_cache_init(&d, &w.cfg));
            for (t = 0; t < 12; t++) {
                for (x = 0; x < 8; x++) v[x] = x == 7 - t % 8 ? value[i] : x % 3 ? 1.0f : value[i];
                CHECK_OK(kvmem_cache_append(&c, 0, 1, k, v, NULL));
                c.layer_state[0] = 2;
                CHECK_OK(kvmem_cache_commit(&c, KVMEM_PREFILL));
            }
            CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
            CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
            CHECK(compare(&w, &c, &d, &e, &u) && e <= 0);
            for (t = 0; t < 12; t++) {
                kvmem_cache_read(&d, 0, 0, t, 1, k, v, &pos);
                for (x = 0; x < 8; x++) finite = finite && kvmem__is_finite(v[x]) && !(k[x] > 0) && !(k[x] < 0);
            }
            CHECK(finite);
            if (value[i] < 1e36f && value[i] > -1e36f) CHECK(u < 0.05);
            memset(k, 0, sizeof k);
            kvmem_cache_free(&c); kvmem_cache_free(&d); free(s.p); world_free(&w);
        }
}
TEST(statistics_and_the_ring_come_back_so_that_generation_goes_on_alike) {
    world w; kvmem_cache c, d; bytes s; int t, l, g, i, same = 0, all = 0;
    double worst = 0; float state[2 * 2 * 2 * 16];
    kvmem_level_options o = at_level(3, 10);
    memset(&s, 0, sizeof s);
    REQUIRE(world_init(&w, 2, 4, 2, 16, 0.95, "h2o budget=30 sink=1 recent=10 when=step"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 80, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
    CHECK_OK(kvmem_cache_init(&d, &w.cfg)); CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
    for (l = 0; l < 2; l++)
        for (g = 0; g < 2; g++)
            for (t = 0; t < c.lane[l * 2 + g].n; t++) {
                const int P = c.recipe.page;
                const double a = (double)kvmem__stat(&c, c.lane[l * 2 + g].pages[t / P], KVMEM_READS_ACC)[t % P];
                const double b = (double)kvmem__stat(&d, d.lane[l * 2 + g].pages[t / P], KVMEM_READS_ACC)[t % P];
                worst = KVMEM__MAX(worst, fabs(a - b) / (a + 1e-3));
            }
    CHECK(worst < 0.001);
    t = (int)test_state;
    memcpy(state, w.state, sizeof state);
    CHECK_OK(feed(&w, &c, 5, KVMEM_DECODE, NULL));
    memcpy(w.state, state, sizeof state); /* the same tokens again */
    test_state = (unsigned long long)t;
    CHECK_OK(feed(&w, &d, 5, KVMEM_DECODE, NULL));
    for (l = 0; l < 2; l++) /* most of what stays is the same: 20 old entries a lane at stake */
        for (g = 0; g < 2; g++)
            for (t = 0; t < c.lane[l * 2 + g].n; t++, all++) {
                int32_t p, q;
                kvmem_cache_read(&c, l, g, t, 1, NULL, NULL, &p);
                for (i = 0; i < d.lane[l * 2 + g].n; i++) {
                    kvmem_cache_read(&d, l, g, i, 1, NULL, NULL, &q);
                    same += p == q;
                }
            }
    CHECK(same >= all * 9 / 10);
    free(s.p); kvmem_cache_free(&c); kvmem_cache_free(&d); world_free(&w);
}

TEST(chunks_can_be_loaded_alone_and_texts_be_computed_between_them) {
    world w; kvmem_cache c, d, e; bytes s; kvmem_chunks f; kvmem_chunk ch; double k, v; int ids[50], back[50], i, level;
    size_t n; float *a, *b; float state[2 * 2 * 8 * 2]; kvmem_error err;
    kvmem_level_options o = at_level(2, 10);
    memset(&s, 0, sizeof s);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 0.95, "full page=16"));
    w.cfg.shape.rope = w.rope;
    a = (float *)malloc(50 * 2 * 32 * 4); b = (float *)malloc(50 * 2 * 32 * 4);
    test_state = 5;
    memcpy(state, w.state, sizeof state);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 50, KVMEM_PROMPT_END, a));
    for (i = 0; i < 50; i++) ids[i] = i * 1001;
    o.all = 1; o.chunk = 20; o.ids = ids; o.n_ids = 50;
    CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
    CHECK_OK(kvmem_chunks_open(&f, s.p, s.n, &err));
    CHECK(f.n_chunks == 3 && f.levels == 7);
    for (i = 0; i < 3; i++) {
        CHECK_OK(kvmem_chunks_at(&f, i, &ch));
        CHECK(ch.tokens == (i < 2 ? 20 : 10) && ch.first == 20 * i && ch.from == 20 * i &&
              ch.end == KVMEM__MIN(50, 20 * i + 20));
        CHECK(ch.level_bytes[0] < ch.level_bytes[1] && ch.level_bytes[1] < ch.level_bytes[2]);
        CHECK(ch.entries == (size_t)ch.tokens * 4);
        CHECK_OK(kvmem_chunks_text(&f, i, back, 50, &n, &err));
        CHECK(n == (size_t)ch.tokens && !memcmp(back, ids + 20 * i, n * sizeof(int)));
    }
    CHECK(kvmem_chunks_at(&f, 3, &ch) == KVMEM_BAD_ARGUMENT);
    /* all at the finest level, as kvmem_cache_load does, one by one at others */
    CHECK_OK(kvmem_cache_init(&d, &w.cfg)); CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
    CHECK_OK(kvmem_cache_init(&e, &w.cfg));
    CHECK_OK(kvmem_cache_load_chunk(&e, &f, 0, 3));
    CHECK(kvmem_cache_load_chunk(&e, &f, 0, 3) == KVMEM_BAD_STATE && e.tokens == 20); /* it is there */
    CHECK_OK(kvmem_cache_load_chunk(&e, &f, 1, 3)); CHECK_OK(kvmem_cache_load_chunk(&e, &f, 2, 3));
    CHECK(compare(&w, &d, &e, &k, &v) && k <= 0 && v <= 0);
    kvmem_cache_clear(&e);
    for (level = 1; level <= 3; level++) CHECK_OK(kvmem_cache_load_chunk(&e, &f, level - 1, level));
    CHECK(compare(&w, &c, &e, &k, &v) && k < 0.1 && k > 0);
    kvmem_cache_clear(&e);
    CHECK_OK(kvmem_cache_load_chunk(&e, &f, 2, 1)); /* alone: positions 40..49 */
    CHECK(kvmem_cache_lane_len(&e, 1, 1) == 10 && e.next_pos == 50);
    /* text everywhere: nothing is lost */
    kvmem_cache_clear(&e);
    test_state = 5;
    memcpy(w.state, state, sizeof state);
    CHECK_OK(feed(&w, &e, 20, KVMEM_PREFILL, b)); CHECK_OK(feed(&w, &e, 30, KVMEM_PROMPT_END, b + 20 * 2 * 32));
    CHECK(!memcmp(a, b, 50 * 2 * 32 * 4));
    CHECK(compare(&w, &c, &e, &k, &v) && k <= 0 && v <= 0);
    /* text between chunks */
    kvmem_cache_clear(&e);
    CHECK_OK(kvmem_cache_load_chunk(&e, &f, 0, 3));
    CHECK_OK(feed(&w, &e, 20, KVMEM_PREFILL, NULL));
    CHECK_OK(kvmem_cache_load_chunk(&e, &f, 2, 3));
    CHECK(e.tokens == 50 && kvmem_cache_lane_len(&e, 0, 0) == 50);
    CHECK(kvmem_cache_load_chunk(&e, &f, 1, 4) == KVMEM_BAD_ARGUMENT);
    free(a); free(b); free(s.p);
    kvmem_cache_free(&c); kvmem_cache_free(&d); kvmem_cache_free(&e); world_free(&w);
}
static unsigned char *small_file(world *w, kvmem_cache *c, bytes *s,
                                 const char *recipe) { /* 26 tokens, 2 levels of holes */
    kvmem_level_options o = at_level(2, 4);
    static int ids[26];
    memset(s, 0, sizeof *s);
    if (!world_init(w, 2, 2, 2, 3, 0.9, recipe)) return NULL;
    CHECK_OK(kvmem_cache_init(c, &w->cfg)); CHECK_OK(feed(w, c, 26, KVMEM_PROMPT_END, NULL));
    o.chunk = 9; o.ids = ids; o.n_ids = 26;
    CHECK_OK(kvmem_cache_save_level(c, &o, bytes_write, s));
    return s->p;
}
TEST(cut_and_changed_files_are_refused_and_leave_an_empty_cache) {
    static const char *const recipe[] = { "full", "h2o budget=12 sink=1 recent=3 page=4" };
    int r;
    for (r = 0; r < 2; r++) {
        world w;
        kvmem_cache c, d;
        bytes s;
        test_heap h;
        kvmem_cache_info info;
        kvmem_error e;
        size_t i;
        unsigned char *cut;
        int survived = 0;
        memset(&h, 0, sizeof h);
        REQUIRE(small_file(&w, &c, &s, recipe[r]));
        w.cfg.allocator = test_allocator(&h);
        CHECK_OK(kvmem_cache_init(&d, &w.cfg));
        for (i = 0; i < s.n; i++) { /* every prefix, from a buffer of its own */
            cut = (unsigned char *)malloc(i ? i : 1);
            memcpy(cut, s.p, i);
            CHECK(kvmem_cache_load(&d, cut, i) != KVMEM_OK && d.error.text[0] && !d.tokens);
            CHECK(kvmem_cache_inspect(cut, i, &info, &e) != KVMEM_OK && e.text[0]);
            free(cut);
        }
        for (i = 0; i < s.n; i++) {
            unsigned char *p = (unsigned char *)malloc(s.n);
            memcpy(p, s.p, s.n);
            p[i] ^= (unsigned char)(1u << (i % 8));
            CHECK(kvmem_cache_load(&d, p, s.n) != KVMEM_OK && d.error.text[0] && kvmem_cache_lane_len(&d, 0, 0) == 0);
            mend(p, s.n);
            if (kvmem_cache_load(&d, p, s.n) != KVMEM_OK) CHECK(d.error.text[0] && kvmem_cache_lane_len(&d, 0, 0) == 0);
            else survived++;
            kvmem_cache_inspect(p, s.n, &info, &e);
            free(p);
        }
        CHECK(survived > 0);
        CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
        kvmem_cache_free(&d);
        CHECK(h.live == 0 && !h.wrong);
        kvmem_cache_free(&c); free(s.p); world_free(&w);
    }
}
TEST(wrong_arguments_are_named) {
    world w; kvmem_cache c, z; bytes s; kvmem_level_options o; static const int ids[3] = { 1, -2, 3 };
    memset(&s, 0, sizeof s); memset(&z, 0, sizeof z);
    REQUIRE(world_init(&w, 1, 1, 1, 4, 0.9, "full"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 3, KVMEM_PROMPT_END, NULL));
    CHECK(kvmem_cache_save_level(&z, NULL, bytes_write, &s) == KVMEM_BAD_STATE);
    CHECK(kvmem_cache_save_level(&c, NULL, NULL, &s) == KVMEM_BAD_ARGUMENT);
#define REFUSED(change, word) o = kvmem_level_options_default(); change; \
    CHECK(kvmem_cache_save_level(&c, &o, bytes_write, &s) == KVMEM_BAD_ARGUMENT && strstr(c.error.text, word))
    REFUSED(o.level = 4, "level 4");
    REFUSED(o.level = -1, "level -1");
    REFUSED(o.group = 0, "group 0");
    REFUSED(o.group = 256, "group 256");
    REFUSED(o.chunk = 0, "chunk 0");
    REFUSED(o.chunk = 65537, "chunk 65537");
    REFUSED(o.models = 3, "models 3");
    REFUSED((o.ids = ids, o.n_ids = 2), "2 token ids");
    REFUSED((o.ids = ids, o.n_ids = 3), "token id -2 of position 1");
    CHECK(s.n == 0);
    kvmem_cache_free(&c); world_free(&w);
}
static int refuse_write(void *user, const void *p, size_t n) {
    (void)p;
    *(size_t *)user += n;
    return *(size_t *)user > 400;
}
TEST(failures_of_memory_and_writers_are_told_and_leak_nothing) {
    world w; kvmem_cache c, d; bytes s; test_heap h; size_t k, told = 0; kvmem_bytes b;
    memset(&h, 0, sizeof h);
    REQUIRE(small_file(&w, &c, &s, "full"));
    kvmem_cache_free(&c);
    w.cfg.allocator = test_allocator(&h);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 26, KVMEM_PROMPT_END, NULL));
    CHECK(kvmem_cache_save_level(&c, NULL, refuse_write, &told) == KVMEM_IO);
    for (k = 1; k < 1000; k++) {
        bytes t; kvmem_status st;
        memset(&t, 0, sizeof t);
        h.fail_at = h.calls + k;
        st = kvmem_cache_save_level(&c, NULL, bytes_write, &t);
        h.fail_at = 0;
        free(t.p);
        CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY);
        if (st == KVMEM_OK) break;
    }
    CHECK(k > 2 && k < 1000);
    for (k = 1; k < 1000; k++) {
        kvmem_status st;
        CHECK_OK(kvmem_cache_init(&d, &w.cfg));
        h.fail_at = h.calls + k;
        st = kvmem_cache_load(&d, s.p, s.n);
        h.fail_at = 0;
        CHECK(st == KVMEM_OK || (st == KVMEM_NO_MEMORY && kvmem_cache_lane_len(&d, 0, 0) == 0));
        kvmem_cache_bytes(&d, &b);
        kvmem_cache_free(&d);
        if (st == KVMEM_OK) break;
    }
    CHECK(k > 5 && k < 1000);
    kvmem_cache_free(&c);
    CHECK(h.live == 0 && !h.wrong);
    free(s.p); world_free(&w);
}
TEST(a_byte_limit_holds_while_a_file_is_written_and_read) {
    world w; kvmem_cache c; bytes s; kvmem_bytes b; kvmem_level_options o = at_level(1, 10);
    memset(&s, 0, sizeof s);
    REQUIRE(world_init(&w, 2, 2, 2, 64, 0.9, "full codec=q4_0"));
    w.cfg.max_bytes = 200000;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 400, KVMEM_PREFILL, NULL));
    CHECK(kvmem_cache_save_level(&c, &o, bytes_write, &s) == KVMEM_OVER_BUDGET && strstr(c.error.text, "shorter"));
    s.n = 0; /* what had come of the file before */
    o.chunk = 16;
    CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
    CHECK_OK(kvmem_cache_load(&c, s.p, s.n));
    kvmem_cache_bytes(&c, &b);
    CHECK(b.peak.total <= 200000 && c.tokens == 400);
    free(s.p); kvmem_cache_free(&c); world_free(&w);
}
TEST(the_bytes_are_the_same_on_every_machine) {
    world w; kvmem_cache c; bytes s; int t, l, x, group; float k[12], v[12];
    static const uint32_t crc[2] = { 0xcb37a30bu, 0x50674680u };
    kvmem_chunks ch;
    kvmem_chunk first;
    uint32_t got;
    for (group = 1; group <= 4; group += 3) {
        kvmem_level_options o = at_level(2, group);
        memset(&s, 0, sizeof s);
        REQUIRE(world_init(&w, 2, 2, 2, 6, 0.9, "full codec=f32"));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        for (t = 0; t < 40; t++)
            for (l = 0; l < 2; l++) {
                for (x = 0; x < 12; x++) {
                    k[x] = (float)((t * 7 + x * x * 5 + l) % 33 - 16) * 0.25f;
                    v[x] = (float)((t * t + x * 3 + l * 2) % 65 - 32) * 0.125f;
                }
                CHECK_OK(kvmem_cache_append(&c, l, 1, k, v, NULL));
                c.layer_state[l] = 2;
                if (l) CHECK_OK(kvmem_cache_commit(&c, KVMEM_PREFILL));
            }
        o.all = 1; o.models = 1; o.chunk = 25;
        CHECK_OK(kvmem_cache_save_level(&c, &o, bytes_write, &s));
        CHECK_OK(kvmem_chunks_open(&ch, s.p, s.n, NULL)); /* of the chunks: the head has the recipe's text */
        CHECK_OK(kvmem_chunks_at(&ch, 0, &first));
        got = kvmem__crc32(0, s.p + first.offset, ch.index_at - first.offset);
        if (got != crc[group > 1]) printf("  group %d: 0x%08lx\n", group, (unsigned long)got);
        CHECK(got == crc[group > 1]);
        CHECK_OK(kvmem_cache_load(&c, s.p, s.n));
        free(s.p); kvmem_cache_free(&c); world_free(&w);
    }
}

/* --- the controller -------------------------------------------------------------------------------- */
TEST(controller_keeps_the_cards_facts) {
    static const size_t size[9] = { 10000000, 20000000, 30000000, 10000000, 20000000,
                                    30000000, 10000000, 20000000, 30000000 };
    double gbps[3] = { 1, 1, 1 };
    int choice[3];
    kvmem_plan_job j;
    memset(&j, 0, sizeof j);
    j.n = 3; j.bytes = size; j.gbps = gbps;
    j.slo = INFINITY; /* no hurry: the finest */
    CHECK_NEAR(kvmem_chunks_plan(&j, choice), 0.72, 1e-9);
    CHECK(choice[0] == 3 && choice[1] == 3 && choice[2] == 3);
    j.slo = 0.6; /* 0.2 s each: 0.24 s is too long, 0.16 is not */
    CHECK_NEAR(kvmem_chunks_plan(&j, choice), 0.48, 1e-9);
    CHECK(choice[0] == 2 && choice[1] == 2 && choice[2] == 2);
    j.slo = 0.3;
    kvmem_chunks_plan(&j, choice);
    CHECK(choice[0] == 1 && choice[2] == 1);
    j.slo = 0.72; /* must be less than its share, as the released code compares */
    kvmem_chunks_plan(&j, choice);
    CHECK(choice[0] == 2);
    gbps[1] = 10; gbps[2] = 0.01;
    j.slo = 0.3;
    CHECK_NEAR(kvmem_chunks_plan(&j, choice), 0.08 + 0.024 + 0.2, 1e-9);
    CHECK(choice[0] == 1 && choice[1] == 3 && choice[2] == 0); /* text */
    gbps[0] = gbps[1] = gbps[2] = 0;
    for (j.paper = 0; j.paper < 2; j.paper++) {
        for (j.slo = 0.1; j.slo < 1e9; j.slo *= 1e6) {
            CHECK_NEAR(kvmem_chunks_plan(&j, choice), 0.6, 1e-9);
            CHECK(!choice[0] && !choice[1] && !choice[2]);
        }
    }
    j.n = 0;
    CHECK(kvmem_chunks_plan(&j, choice) <= 0);
}
TEST(controller_of_the_paper_looks_ahead_with_the_last_bandwidth) {
    static const size_t size[12] = { 10000000, 20000000, 30000000, 10000000, 20000000, 30000000,
                                      10000000, 20000000, 30000000, 10000000, 20000000, 0 };
    double gbps[4] = { 1, 0.1, 1, 1 }, text[4] = { 5, 5, 5, 5 };
    int choice[4];
    kvmem_plan_job j;
    memset(&j, 0, sizeof j);
    j.n = 3; j.bytes = size; j.gbps = gbps; j.text = text; j.paper = 1;
    j.slo = 100;
    kvmem_chunks_plan(&j, choice);
    CHECK(!choice[0] && !choice[1] && !choice[2]); /* the text is in time and loses nothing */
    j.slo = 2.6;
    CHECK_NEAR(kvmem_chunks_plan(&j, choice), 0.16 + 2.4 + 0.8 * 0 + 0.08, 1e-9);
    CHECK(choice[0] == 2); /* nothing is known yet: the middle */
    CHECK(choice[1] == 3); /* at 1 Gbps both would take .48 of 2.44 s */
    CHECK(choice[2] == 1); /* .04 s left, at .1 Gbps nothing is in time: the quickest */
    j.n = 4; j.slo = 0.7; /* a chunk that has no level 3 keeps all from it */
    gbps[1] = 1;
    kvmem_chunks_plan(&j, choice);
    CHECK(choice[1] == 2 && choice[2] == 2 && choice[3] == 2);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "stream");
    RUN(coder_gives_the_bytes_of_the_cards_example);
    RUN(decoded_symbols_are_the_coded_ones_and_take_their_entropy);
    RUN(decoder_of_any_bytes_stays_inside_them);
    RUN(numbers_of_seven_bits_a_byte_come_back);
    RUN(scaled_symbols_are_those_of_the_cards_example);
    RUN(levels_of_32_layers_are_the_published_ones);
    RUN(the_cards_simulation_comes_out);
    RUN(models_take_what_the_card_says_and_less_as_counts);
    RUN(finer_levels_are_larger_and_nearer);
    RUN(level_0_is_the_save_of_entries_as_stored);
    RUN(a_file_loads_into_a_cache_of_any_codec);
    RUN(block_codecs_and_keys_before_rope_take_files_and_make_them);
    RUN(lanes_with_holes_empty_lanes_and_short_chunks_come_back);
    RUN(an_empty_cache_and_one_whose_entries_are_all_gone_come_back);
    RUN(zeros_huge_and_tiny_values_stay_finite);
    RUN(statistics_and_the_ring_come_back_so_that_generation_goes_on_alike);
    RUN(chunks_can_be_loaded_alone_and_texts_be_computed_between_them);
    RUN(cut_and_changed_files_are_refused_and_leave_an_empty_cache);
    RUN(wrong_arguments_are_named);
    RUN(failures_of_memory_and_writers_are_told_and_leak_nothing);
    RUN(a_byte_limit_holds_while_a_file_is_written_and_read);
    RUN(the_bytes_are_the_same_on_every_machine);
    RUN(controller_keeps_the_cards_facts);
    RUN(controller_of_the_paper_looks_ahead_with_the_last_bandwidth);
    return test_end();
}
