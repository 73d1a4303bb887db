/* The memory layer: pages, lanes, attention against a double-precision oracle, commit, limits, copies,
   saved caches. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "world.h"
#include "profiled.h"

/* --- attention --------------------------------------------------------------------------------------- */
static void attention_case(int H, int G, int d, int T, int block, int neox, int feature, const char *backend) {
    world w; kvmem_cache c; float *out; int i;
    if (!world_init(&w, 2, H, G, d, T, "full")) { test_bad++; return; }
    w.cfg.backend = kvmem_backend_cpu(backend);
    if (!w.cfg.backend) { world_free(&w); return; }
    if (neox >= 0) { w.cfg.shape.rope = w.rope; for (i = 0; i < 2; i++) w.rope[i].neox = neox; }
    if (feature == 1) { w.cfg.shape.window = w.window; w.window[0] = 7; }
    if (feature == 2) w.cfg.shape.softcap = 2.5f;
    if (feature == 3) { for (i = 0; i < 2 * H; i++) w.bias[i] = (float)test_normal(); w.cfg.shape.sink_bias = w.bias; }
    if (feature == 4) { w.rope[1].n_rot = d / 2; w.rope[1].mscale = 1.2f; w.cfg.shape.scale = 0.3f; }
    if (feature == 5) w.recipe.page = 5;
    out = outs(&w, T);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, T, block, KVMEM_PROMPT_END, out));
    CHECK_NEAR(worst_full(&w, out, 0, T), 0, 2e-5);
    kvmem_cache_free(&c);
    free(out); world_free(&w);
}
TEST(attention_equals_a_double_oracle) {
    static const char *backend[4] = { "plain", "avx2", "avx512", "neon" };
    const int step = getenv("KVMEM_TEST_SMALL") ? 3 : 1;
    int f, b;
    for (b = 0; b < 4; b++) {
        for (f = 0; f < 6; f += step) {
            attention_case(4, 2, 8, 90, 1, 0, f, backend[b]);
            attention_case(4, 4, 16, 90, 17, 1, f, backend[b]);
            attention_case(6, 1, 8, 90, 90, -1, f, backend[b]);
            attention_case(8, 2, 64, 150, 70, 1, f, backend[b]);
        }
        attention_case(3, 1, 5, 40, 9, -1, 0, backend[b]);
        attention_case(1, 1, 1, 70, 33, -1, 0, backend[b]);
    }
}
TEST(chunked_prefill_equals_unchunked_bit_for_bit) {
    world w; kvmem_cache c; float *a, *b; int block;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 200, "full codec=q8_0"));
    w.cfg.shape.rope = w.rope;
    a = outs(&w, 200); b = outs(&w, 200);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 200, 200, KVMEM_PROMPT_END, a));
    kvmem_cache_free(&c);
    for (block = 1; block < 200; block += 33) {
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 200, block, KVMEM_PROMPT_END, b));
        kvmem_cache_free(&c);
        CHECK(same_out(&w, a, b, 200));
    }
    free(a); free(b); world_free(&w);
}
TEST(any_number_of_threads_gives_the_same_bits) {
    static const char *recipe[6] = {
        "full",           "h2o budget=40 recent=10",   "snapkv budget=50 recent=8 when=step",
        "tova budget=30", "h2o budget=48KiB recent=4", "streamingllm budget=56KiB"
    };
    int i, k;
    for (k = 0; k < 6; k++) {
        world w; kvmem_cache c; float *a, *b;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 160, recipe[k]));
        w.cfg.shape.rope = w.rope; w.cfg.backend = NULL;
        a = outs(&w, 160); b = outs(&w, 160);
        for (i = 1; i < 5; i++) {
            w.cfg.threads = i;
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 0, 100, 32, KVMEM_PROMPT_END, i == 1 ? a : b));
            CHECK_OK(feed(&w, &c, 100, 160, 1, KVMEM_DECODE,
                          (i == 1 ? a : b) + (size_t)100 * (size_t)(w.L * w.H * w.d)));
            kvmem_cache_free(&c);
            if (i > 1) CHECK(same_out(&w, a, b, 160));
        }
        free(a); free(b); world_free(&w);
    }
}
TEST(long_lanes_are_summed_in_chunks_and_merged_exactly) {
    world w;
    kvmem_cache c;
    float *k, *v, *q, *o;
    double z[4], want = 0, sum = 0, m = -1e300;
    int t, n = 3 * KVMEM__CHUNK + 77;
    double *s = (double *)malloc((size_t)n * sizeof *s);
    REQUIRE(world_init(&w, 1, 1, 1, 4, 1, "full"));
    w.cfg.max_block = 65536;
    k = (float *)malloc((size_t)n * 16);
    v = (float *)malloc((size_t)n * 16);
    q = (float *)malloc((size_t)n * 16);
    o = (float *)malloc((size_t)n * 16);
    for (t = 0; t < 4 * n; t++) {
        k[t] = (float)test_normal();
        v[t] = (float)test_normal();
        q[t] = (float)test_normal();
    }
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(kvmem_cache_append(&c, 0, n - 1, k, v, NULL));
    CHECK_OK(kvmem_cache_commit(&c, KVMEM_PROMPT_END));
    CHECK_OK(kvmem_cache_append(&c, 0, 1, k + 4 * (n - 1), v + 4 * (n - 1), NULL));
    CHECK_OK(kvmem_cache_attend(&c, 0, 1, q, o));
    (void)z;
    for (t = 0; t < n; t++) {
        int i;
        s[t] = 0;
        for (i = 0; i < 4; i++) s[t] += (double)q[i] * (double)k[4 * t + i] / 2;
        if (s[t] > m) m = s[t];
    }
    for (t = 0; t < n; t++) { sum += exp(s[t] - m); want += exp(s[t] - m) * (double)v[4 * t]; }
    CHECK_NEAR(o[0], want / sum, 1e-5);
    kvmem_cache_free(&c);
    free(k); free(v); free(q); free(o); free(s); world_free(&w);
}

/* --- eviction ---------------------------------------------------------------------------------------- */
static int lane_positions(const kvmem_cache *c, int l, int g, int *set) {
    int32_t pos[MAXT]; int n = kvmem_cache_lane_len(c, l, g), i;
    kvmem_cache_read(c, l, g, 0, n, NULL, NULL, pos);
    for (i = 0; i < n; i++) set[i] = pos[i];
    return n;
}
TEST(evicted_entries_are_as_if_masked_and_places_follow_the_recipe) {
    static const char *recipe[4] = { "snapkv budget=30 recent=8 score=snapkv(window=8)",
                                     "knorm_ place=original", "streamingllm budget=24 sink=4",
                                     "random_" };
    int k;
    for (k = 0; k < 4; k++) {
        const char *text = k == 1   ? "score=knorm budget=20 place=cache"
                           : k == 3 ? "score=random budget=33 seed=7"
                                    : recipe[k];
        world w; kvmem_cache c; float *out; int l, h, n, i, set[MAXT], place[MAXT], cc; double o[64], worst = 0;
        const int moved = k == 1 || k == 2;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 131, text));
        w.cfg.shape.rope = w.rope; w.rope[0].neox = w.rope[1].neox = k & 1;
        out = outs(&w, 1);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 130, 50, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < 2; l++)
            for (i = 0; i < 2; i++)
                CHECK(kvmem_cache_lane_len(&c, l, i) == (int)w.recipe.amount.value);
        {
            int sets[4][MAXT], len[4];
            for (l = 0; l < 2; l++)
                for (i = 0; i < 2; i++) {
                    len[l * 2 + i] = lane_positions(&c, l, i, sets[l * 2 + i]);
                }
            CHECK_OK(feed(&w, &c, 130, 131, 1, KVMEM_PREFILL, out)); /* PREFILL: attends before anything more goes */
            for (l = 0; l < 2; l++)
                for (h = 0; h < 4; h++) {
                    const int g = h / 2;
                    n = len[l * 2 + g];
                    for (i = 0; i < n; i++) { set[i] = sets[l * 2 + g][i]; place[i] = moved ? i : set[i]; }
                    set[n] = 130; place[n] = moved ? n : 130;
                    oracle(&w, 130, l, h, set, n + 1, place, moved ? n : 130, o);
                    for (cc = 0; cc < 8; cc++)
                        worst = KVMEM__MAX(worst, fabs(o[cc] - (double)out[(l * 4 + h) * 8 + cc]));
                }
        }
        CHECK_NEAR(worst, 0, 2e-5);
        kvmem_cache_free(&c); free(out); world_free(&w);
    }
}
TEST(presets_equal_full_bit_for_bit_while_the_budget_covers_the_tokens) {
    int i;
    for (i = 0; kvmem_preset_at(i); i++) {
        char text[128]; world w; kvmem_cache c; float *a, *b; profiled f;
        sprintf(text, "%s budget=400 codec=f32 page=64", kvmem_preset_at(i)->word);
        if (strstr(kvmem_preset_at(i)->text, "recompute")) continue; /* needs a session */
        if (strstr(kvmem_preset_at(i)->text, "select=threshold")) continue; /* no number is promised */
        if (strstr(kvmem_preset_at(i)->text, "retrieve=a2ats")) continue; /* reads a share of what there is */
        if (strstr(kvmem_preset_at(i)->text, "mix=hcam")) continue; /* several softmaxes */
        REQUIRE(world_init(&w, 2, 4, 2, 8, 200, text));
        profiled_make(&f, 2, 4, 2, 8);
        profiled_give(&w.recipe, &f);
        w.cfg.shape.rope = w.rope; w.cfg.backend = NULL;
        a = outs(&w, 200); b = outs(&w, 200);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 150, 64, KVMEM_PROMPT_END, a));
        CHECK_OK(feed(&w, &c, 150, 200, 1, KVMEM_DECODE, a + 150 * 64));
        kvmem_cache_free(&c);
        w.recipe = kvmem_recipe_default();
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 150, 64, KVMEM_PROMPT_END, b));
        CHECK_OK(feed(&w, &c, 150, 200, 1, KVMEM_DECODE, b + 150 * 64));
        kvmem_cache_free(&c);
        CHECK(same_out(&w, a, b, 200));
        free(a); free(b); world_free(&w); profiled_free(&f);
    }
}
TEST(accumulated_attention_sums_to_the_number_of_queries) {
    world w; kvmem_cache c; kvmem_view v; float acc[MAXT]; int g, t; double sum;
    REQUIRE(world_init(&w, 1, 4, 2, 8, 100, "h2o budget=1000"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 30, KVMEM_PROMPT_END, NULL));
    memset(&v, 0, sizeof v); v.cache = &c;
    for (g = 0; g < 2; g++) {
        kvmem_view_acc(&v, g, acc);
        for (sum = 0, t = 0; t < 100; t++) sum += (double)acc[t];
        CHECK_NEAR(sum, 100, 1e-3);
    }
    kvmem_cache_free(&c); world_free(&w);
}
TEST(window_attention_of_the_ring_equals_direct_softmax) {
    world w; kvmem_cache c; kvmem_view v; float got[MAXT]; int g, t, j, i; double want[MAXT], sum;
    REQUIRE(world_init(&w, 1, 4, 2, 8, 60, "snapkv budget=1000"));
    w.cfg.shape.rope = w.rope;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 60, 25, KVMEM_PROMPT_END, NULL));
    memset(&v, 0, sizeof v); v.cache = &c;
    for (g = 0; g < 2; g++) {
        memset(want, 0, sizeof want);
        for (t = 40; t < 60; t++)
            for (j = 0; j < 2; j++) { /* probabilities by plain softmax */
                double z[MAXT], m = -1e300, q[8], k[8]; int cc;
                for (cc = 0; cc < 8; cc++) q[cc] = (double)row_q(&w, t, 0)[(g * 2 + j) * 8 + cc];
                turn(q, 8, &w.rope[0], t);
                for (i = 0; i <= t; i++) {
                    for (cc = 0; cc < 8; cc++) k[cc] = (double)row_k(&w, w.k, i, 0)[g * 8 + cc];
                    turn(k, 8, &w.rope[0], i);
                    for (z[i] = 0, cc = 0; cc < 8; cc++) z[i] += q[cc] * k[cc] / sqrt(8.0);
                    if (z[i] > m) m = z[i];
                }
                for (sum = 0, i = 0; i <= t; i++) sum += exp(z[i] - m);
                for (i = 0; i <= t; i++) want[i] += exp(z[i] - m) / sum / 2;
            }
        REQUIRE_OK(kvmem_view_attention(&v, g, 20, got));
        kvmem__view_scratch_end(&c);
        for (i = 0; i < 60; i++) CHECK_NEAR(got[i], want[i], 1e-5);
    }
    kvmem_cache_free(&c); world_free(&w);
}
TEST(commit_by_layer_equals_commit) {
    world w; kvmem_cache a, b; int l, g, t, i; int32_t pa[MAXT], pb[MAXT]; float *k, *v, *q, *o;
    REQUIRE(world_init(&w, 3, 4, 2, 8, 90, "pyramidkv budget=30 recent=8"));
    CHECK_OK(kvmem_cache_init(&a, &w.cfg)); CHECK_OK(kvmem_cache_init(&b, &w.cfg));
    CHECK_OK(feed(&w, &a, 0, 90, 90, KVMEM_PROMPT_END, NULL));
    k = (float *)malloc(90 * 16 * 4);
    v = (float *)malloc(90 * 16 * 4);
    q = (float *)malloc(90 * 32 * 4);
    o = (float *)malloc(90 * 32 * 4);
    for (l = 0; l < 3; l++) {
        for (t = 0; t < 90; t++) {
            memcpy(k + t * 16, row_k(&w, w.k, t, l), 64);
            memcpy(v + t * 16, row_k(&w, w.v, t, l), 64);
            memcpy(q + t * 32, row_q(&w, t, l), 128);
        }
        CHECK_OK(kvmem_cache_append(&b, l, 90, k, v, NULL)); CHECK_OK(kvmem_cache_attend(&b, l, 90, q, o));
        CHECK_OK(kvmem_cache_commit_layer(&b, l, KVMEM_PROMPT_END));
    }
    CHECK_OK(kvmem_cache_commit(&b, KVMEM_PROMPT_END));
    for (l = 0; l < 3; l++) for (g = 0; g < 2; g++) {
        const int n = kvmem_cache_lane_len(&a, l, g);
        REQUIRE(n == kvmem_cache_lane_len(&b, l, g));
        kvmem_cache_read(&a, l, g, 0, n, NULL, NULL, pa); kvmem_cache_read(&b, l, g, 0, n, NULL, NULL, pb);
        for (i = 0; i < n; i++) CHECK(pa[i] == pb[i]);
    }
    CHECK(b.arena->peak.k < a.arena->peak.k); /* one full layer at a time */
    kvmem_cache_free(&a); kvmem_cache_free(&b); free(k); free(v); free(q); free(o); world_free(&w);
}

/* --- bytes ------------------------------------------------------------------------------------------- */
TEST(reported_bytes_are_what_the_allocator_counted) {
    static const char *recipe[5] = { "full", "snapkv budget=40 recent=16 codec=q8_0",
                                     "h2o budget=50 recent=20", "streamingllm budget=40 codec=f16",
                                     "tova budget=1" };
    int k;
    for (k = 0; k < 5; k++) {
        world w; kvmem_cache c; test_heap h; kvmem_bytes b;
        memset(&h, 0, sizeof h);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 300, recipe[k]));
        w.cfg.shape.rope = w.rope; w.cfg.allocator = test_allocator(&h);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 250, 64, KVMEM_PROMPT_END, NULL));
        kvmem_cache_bytes(&c, &b);
        CHECK(b.live.total == h.live && b.peak.total == h.peak);
        CHECK(b.live.total == b.live.k + b.live.v + b.live.meta + b.live.stats + b.live.scratch);
        CHECK_OK(feed(&w, &c, 250, 300, 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &b);
        CHECK(b.live.total == h.live && b.peak.total == h.peak);
        kvmem_cache_free(&c);
        CHECK(h.live == 0 && h.wrong == 0);
        world_free(&w);
    }
}
TEST(evicted_pages_go_back_to_the_allocator) {
    world w; kvmem_cache c; test_heap h; size_t before;
    memset(&h, 0, sizeof h);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 600, "snapkv budget=64 recent=8"));
    w.cfg.allocator = test_allocator(&h);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 599, 200, KVMEM_PREFILL, NULL));
    before = h.live;
    CHECK_OK(feed(&w, &c, 599, 600, 1, KVMEM_PROMPT_END, NULL));
    CHECK(h.live < before - 8 * (size_t)(4 * 64 * 32 * 2)); /* 4 lanes lost 8 whole pages each, K and V */
    kvmem_cache_free(&c); CHECK(h.live == 0); world_free(&w);
}
TEST(live_bytes_never_pass_the_limit_and_the_stream_goes_on) {
    static const char *recipe[6] = {
        "snapkv budget=96KiB recent=8", "h2o budget=96KiB recent=50%",
        "streamingllm budget=96KiB",    "pyramidkv budget=128KiB recent=8 score=snapkv(window=8)",
        "tova budget=96KiB codec=f16",  "score=random budget=25% when=prompt"
    };
    const int prompt = getenv("KVMEM_TEST_SMALL") ? 700 : 4096; /* small: under an emulator */
    int k;
    for (k = 0; k < 6; k++) {
        world w; kvmem_cache c; test_heap h; size_t limit;
        memset(&h, 0, sizeof h);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 4200, recipe[k]));
        w.cfg.shape.rope = w.rope; w.cfg.allocator = test_allocator(&h);
        w.cfg.threads = 1 + k % 3; w.cfg.backend = k % 2 ? NULL : w.cfg.backend;
        if (k == 5) w.cfg.max_bytes = 80 * 1024;
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        limit = c.arena->limit;
        CHECK_OK(feed(&w, &c, 0, prompt, 512, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, prompt, prompt + 104, 1, KVMEM_DECODE, NULL));
        CHECK(h.peak <= limit);
        CHECK(k == 5 || c.arena->live.k + c.arena->live.v > limit / 6); /* the limit is used, not only kept */
        kvmem_cache_free(&c); CHECK(h.live == 0); world_free(&w);
    }
}
TEST(a_full_cache_under_a_limit_stops_with_a_clear_error_and_stays_usable) {
    world w; kvmem_cache c; kvmem_status st; int32_t had;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 600, "full"));
    w.cfg.max_bytes = 100 * 1024;
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    quiet = 1;
    st = feed(&w, &c, 0, 600, 64, KVMEM_PROMPT_END, NULL);
    CHECK(st == KVMEM_OVER_BUDGET);
    quiet = 0;
    had = c.next_pos;
    CHECK(had > 64);
    CHECK_OK(kvmem_cache_truncate(&c, 10));
    CHECK_OK(feed(&w, &c, 10, 60, 8, KVMEM_PROMPT_END, NULL));
    kvmem_cache_free(&c);
    w.cfg.max_bytes = 1000;
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_OVER_BUDGET && strstr(c.error.text, "too small"));
    kvmem_cache_free(&c); world_free(&w);
}
TEST(estimate_equals_the_real_bytes) {
    static const char *recipe[6] = { "full",
                                     "full codec=q4_0/q8_0",
                                     "snapkv budget=40 recent=16",
                                     "streamingllm budget=40 codec=f16",
                                     "h2o budget=20%",
                                     "pyramidkv budget=60 recent=8 score=snapkv(window=8)" };
    int k;
    for (k = 0; k < 6; k++) {
        world w; kvmem_cache c; kvmem_bytes b, e; kvmem_error err;
        REQUIRE(world_init(&w, 3, 4, 2, 8, 300, recipe[k]));
        w.cfg.shape.rope = w.rope; w.cfg.max_block = 64;
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 260, 64, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 260, 300, 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &b);
        CHECK_OK(kvmem_estimate(&w.cfg, 260, 40, &e, &err));
        CHECK(e.live.k == b.live.k && e.live.v == b.live.v && e.live.stats == b.live.stats);
        CHECK(e.live.meta == b.live.meta && e.entries == b.entries && e.full == b.full);
        CHECK_NEAR((double)e.peak.total / (double)b.peak.total, 1, 0.03);
        kvmem_cache_free(&c); world_free(&w);
    }
}

/* --- truncate, copy, recode, save -------------------------------------------------------------------- */
TEST(truncated_tokens_leave_no_trace) {
    world w; kvmem_cache c; float *a, *b;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 200, "full"));
    w.cfg.shape.rope = w.rope;
    a = outs(&w, 50); b = outs(&w, 50);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 100, 150, 50, KVMEM_PROMPT_END, a));
    CHECK_OK(kvmem_cache_truncate(&c, 100));
    CHECK(c.tokens == 100 && kvmem_cache_lane_len(&c, 1, 1) == 100);
    CHECK_OK(feed(&w, &c, 100, 150, 50, KVMEM_PROMPT_END, b));
    CHECK(same_out(&w, a, b, 50));
    kvmem_cache_clear(&c);
    CHECK(c.tokens == 0 && kvmem_cache_lane_len(&c, 0, 0) == 0 && c.arena->live.k == 0);
    CHECK_OK(feed(&w, &c, 0, 20, 7, KVMEM_PROMPT_END, NULL));
    kvmem_cache_free(&c); free(a); free(b); world_free(&w);
}
TEST(copies_share_pages_until_one_changes) {
    static const char *recipe[3] = { "full", "h2o budget=60 recent=20", "streamingllm budget=50" };
    int k;
    for (k = 0; k < 3; k++) {
        world w; kvmem_cache c, d, only; float *a, *b, *x; test_heap h; size_t before;
        memset(&h, 0, sizeof h);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 200, recipe[k]));
        w.cfg.shape.rope = w.rope; w.cfg.allocator = test_allocator(&h);
        a = outs(&w, 60); b = outs(&w, 60); x = outs(&w, 60);
        CHECK_OK(kvmem_cache_init(&only, &w.cfg)); CHECK_OK(feed(&w, &only, 0, 100, 40, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &only, 100, 160, 1, KVMEM_DECODE, x));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, NULL));
        before = c.arena->live.k;
        REQUIRE_OK(kvmem_cache_copy(&d, &c));
        CHECK(c.arena->live.k == before);
        CHECK_OK(feed(&w, &c, 100, 160, 1, KVMEM_DECODE, a));
        CHECK_OK(feed(&w, &d, 100, 160, 1, KVMEM_DECODE, b)); /* untouched by what c did */
        CHECK(same_out(&w, a, x, 60) && same_out(&w, b, x, 60));
        kvmem_cache_free(&c);
        CHECK_OK(kvmem_cache_truncate(&d, 120));
        kvmem_cache_free(&d); kvmem_cache_free(&only);
        CHECK(h.live == 0 && h.wrong == 0);
        free(a); free(b); free(x); world_free(&w);
    }
}
TEST(recode_changes_the_stored_bytes_and_reading_goes_on) {
    world w; kvmem_cache c, f; float *a, *b; kvmem_bytes x;
    REQUIRE(world_init(&w, 2, 4, 2, 32, 200, "full"));
    w.cfg.shape.rope = w.rope;
    a = outs(&w, 20); b = outs(&w, 20);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_recipe_parse(&w.recipe, "full codec=q8_0/f16", NULL));
    CHECK_OK(kvmem_cache_init(&f, &w.cfg)); CHECK_OK(feed(&w, &f, 0, 100, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_recode(&c, "q8_0", "f16"));
    kvmem_cache_bytes(&c, &x);
    CHECK(x.live.k == 4 * (64 + 48) * 34 && x.live.v == 4 * (64 + 48) * 64); /* 100 rows: a page, and room for 48 */
    CHECK_OK(feed(&w, &c, 100, 120, 1, KVMEM_DECODE, a)); CHECK_OK(feed(&w, &f, 100, 120, 1, KVMEM_DECODE, b));
    CHECK(same_out(&w, a, b, 20)); /* f32 rows recoded are the rows coded at once */
    CHECK(kvmem_cache_recode(&c, "nonsense", NULL) == KVMEM_BAD_RECIPE && strstr(c.error.text, "nonsense"));
    CHECK(kvmem_cache_recode(&c, "f16 budget=3", NULL) == KVMEM_BAD_RECIPE);
    kvmem_cache_free(&c); kvmem_cache_free(&f); free(a); free(b); world_free(&w);
}
TEST(save_load_continue_is_bit_identical_to_never_having_stopped) {
    static const char *recipe[5] = { "full", "h2o budget=60 recent=20 codec=q8_0",
                                     "snapkv budget=50 recent=16 when=every(10)",
                                     "streamingllm budget=50 codec=q4_0/f16",
                                     "tova budget=40 segment=fixed(size=16)" };
    int k;
    for (k = 0; k < 5; k++) {
        world w; kvmem_cache c, d; float *a, *b; bytes s; kvmem_cache_info info; kvmem_error e;
        memset(&s, 0, sizeof s);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 200, recipe[k]));
        w.cfg.shape.rope = w.rope;
        a = outs(&w, 60); b = outs(&w, 60);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 100, 107, 1, KVMEM_DECODE, NULL));
        CHECK_OK(kvmem_cache_save(&c, bytes_write, &s));
        CHECK_OK(kvmem_cache_inspect(s.p, s.n, &info, &e));
        CHECK(info.tokens == 107 && info.n_layers == 2 && info.head_dim == 8);
        CHECK_OK(kvmem_cache_init(&d, &w.cfg)); CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
        CHECK_OK(feed(&w, &c, 107, 160, 1, KVMEM_DECODE, a)); CHECK_OK(feed(&w, &d, 107, 160, 1, KVMEM_DECODE, b));
        CHECK(same_out(&w, a, b, 53));
        kvmem_cache_free(&d);
        w.cfg.model_id = 5; CHECK_OK(kvmem_cache_init(&d, &w.cfg));
        CHECK(kvmem_cache_load(&d, s.p, s.n) == KVMEM_MISMATCH); kvmem_cache_free(&d);
        w.cfg.model_id = 0; w.cfg.shape.n_heads = 2; CHECK_OK(kvmem_cache_init(&d, &w.cfg));
        CHECK(kvmem_cache_load(&d, s.p, s.n) == KVMEM_MISMATCH); kvmem_cache_free(&d);
        kvmem_cache_free(&c); free(a); free(b); free(s.p); world_free(&w);
    }
}
TEST(damaged_cache_files_are_refused_and_leave_an_empty_cache) {
    world w; kvmem_cache c, d; bytes s; size_t i; kvmem_cache_info info; test_heap h; unsigned char *cut;
    memset(&s, 0, sizeof s); memset(&h, 0, sizeof h);
    REQUIRE(world_init(&w, 1, 2, 1, 4, 30, "snapkv budget=10 recent=2 score=snapkv(window=2)"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg)); CHECK_OK(feed(&w, &c, 0, 30, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_save(&c, bytes_write, &s));
    w.cfg.allocator = test_allocator(&h);
    CHECK_OK(kvmem_cache_init(&d, &w.cfg));
    for (i = 0; i < s.n; i++) {
        cut = (unsigned char *)malloc(i ? i : 1); memcpy(cut, s.p, i);
        CHECK(kvmem_cache_load(&d, cut, i) != KVMEM_OK && d.error.text[0]);
        CHECK(kvmem_cache_inspect(cut, i, &info, NULL) != KVMEM_OK);
        free(cut);
    }
    for (i = 0; i + 4 < s.n; i++) { /* a flipped bit with a checksum made to fit: parsed, never believed blindly */
        const unsigned char old = s.p[i]; uint8_t crc[4];
        memcpy(crc, s.p + s.n - 4, 4);
        s.p[i] ^= (unsigned char)(1u << (i % 8));
        CHECK(kvmem_cache_load(&d, s.p, s.n) != KVMEM_OK);
        kvmem__put32(s.p + s.n - 4, kvmem__crc32(0, s.p, s.n - 4));
        if (kvmem_cache_load(&d, s.p, s.n) != KVMEM_OK) CHECK(d.error.text[0] && kvmem_cache_lane_len(&d, 0, 0) == 0);
        kvmem_cache_inspect(s.p, s.n, &info, NULL);
        s.p[i] = old; memcpy(s.p + s.n - 4, crc, 4);
    }
    CHECK_OK(kvmem_cache_load(&d, s.p, s.n));
    kvmem_cache_free(&d); CHECK(h.live == 0);
    kvmem_cache_free(&c); free(s.p); world_free(&w);
}

/* --- misuse and failure ------------------------------------------------------------------------------- */
TEST(values_that_are_not_finite_are_refused_by_name) {
    world w; kvmem_cache c; float k[16], v[16], q[32], o[32];
    REQUIRE(world_init(&w, 1, 4, 2, 8, 1, "full"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    memset(k, 0, sizeof k); memset(v, 0, sizeof v); memset(q, 0, sizeof q);
    k[11] = NAN;
    CHECK(kvmem_cache_append(&c, 0, 1, k, v, NULL) == KVMEM_BAD_VALUE && strstr(c.error.text, "head 1, channel 3"));
    k[11] = 0; v[0] = INFINITY;
    CHECK(kvmem_cache_append(&c, 0, 1, k, v, NULL) == KVMEM_BAD_VALUE);
    v[0] = 0;
    CHECK_OK(kvmem_cache_append(&c, 0, 1, k, v, NULL));
    q[5] = -INFINITY;
    CHECK(kvmem_cache_attend(&c, 0, 1, q, o) == KVMEM_BAD_VALUE);
    q[5] = 0;
    CHECK_OK(kvmem_cache_attend(&c, 0, 1, q, o));
    CHECK_OK(kvmem_cache_commit(&c, KVMEM_DECODE));
    kvmem_cache_free(&c); world_free(&w);
}
TEST(calls_out_of_order_are_refused_and_change_nothing) {
    world w; kvmem_cache c, z; float k[32], q[64], o[64]; int32_t pos[2];
    memset(&z, 0, sizeof z); memset(k, 0, sizeof k); memset(q, 0, sizeof q);
    CHECK(kvmem_cache_append(&z, 0, 1, k, k, NULL) == KVMEM_BAD_STATE);
    kvmem_cache_free(&z); kvmem_cache_free(NULL);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 1, "full"));
    w.cfg.max_block = 2;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(kvmem_cache_commit(&c, KVMEM_DECODE) == KVMEM_BAD_STATE);
    CHECK(kvmem_cache_attend(&c, 0, 1, q, o) == KVMEM_BAD_STATE);
    CHECK(kvmem_cache_append(&c, 2, 1, k, k, NULL) == KVMEM_BAD_ARGUMENT && strstr(c.error.text, "layer 2"));
    CHECK(kvmem_cache_append(&c, 0, 3, k, k, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_cache_append(&c, 0, 0, k, k, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_cache_append(&c, 0, 1, NULL, k, NULL) == KVMEM_BAD_ARGUMENT);
    pos[0] = 5; pos[1] = 5;
    CHECK(kvmem_cache_append(&c, 0, 2, k, k, pos) == KVMEM_BAD_ARGUMENT);
    CHECK_OK(kvmem_cache_append(&c, 0, 1, k, k, NULL));
    CHECK(kvmem_cache_append(&c, 0, 1, k, k, NULL) == KVMEM_BAD_STATE);
    CHECK(kvmem_cache_append(&c, 1, 2, k, k, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_cache_commit(&c, KVMEM_DECODE) == KVMEM_BAD_STATE);
    CHECK_OK(kvmem_cache_truncate(&c, 0)); /* forget the half block */
    CHECK(kvmem_cache_lane_len(&c, 0, 0) == 0);
    pos[0] = 7; pos[1] = 20;
    CHECK_OK(kvmem_cache_append(&c, 0, 2, k, k, pos)); CHECK_OK(kvmem_cache_append(&c, 1, 2, k, k, pos));
    CHECK_OK(kvmem_cache_attend(&c, 0, 2, q, o)); CHECK(kvmem_cache_attend(&c, 0, 2, q, o) == KVMEM_BAD_STATE);
    CHECK_OK(kvmem_cache_commit(&c, KVMEM_PROMPT_END));
    CHECK(c.next_pos == 21 && c.tokens == 2);
    pos[0] = 20;
    CHECK(kvmem_cache_append(&c, 0, 1, k, k, pos) == KVMEM_BAD_ARGUMENT);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(shapes_out_of_range_are_refused_by_name) {
    world w; kvmem_cache c;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 1, "streamingllm"));
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_BAD_RECIPE && strstr(c.error.text, "place=cache")); /* no rope given */
    w.cfg.shape.rope = w.rope; w.cfg.shape.n_kv_heads = 3;
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_BAD_ARGUMENT && strstr(c.error.text, "multiple"));
    w.cfg.shape.n_kv_heads = 2; w.cfg.shape.head_dim = 0;
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_BAD_ARGUMENT);
    w.cfg.shape.head_dim = 8; w.rope[1].n_rot = 9;
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_BAD_ARGUMENT && strstr(c.error.text, "layer 1"));
    CHECK(kvmem_cache_init(&c, NULL) == KVMEM_BAD_ARGUMENT);
    world_free(&w);
}
TEST(every_failed_allocation_is_an_error_and_leaks_nothing) {
    static const char *recipe[2] = {
        "snapkv budget=20 recent=8 when=step score=snapkv(window=8) page=8",
        "h2o budget=20 recent=8 segment=fixed(size=4) page=8"
    };
    int k; size_t at = 0;
    quiet = 1;
    for (k = 0; k < 2; k++)
        for (at = 1; at < 400; at++) {
            world w; kvmem_cache c, d; test_heap h; int whole = 0;
            memset(&h, 0, sizeof h); h.fail_at = at;
            REQUIRE(world_init(&w, 2, 4, 2, 8, 44, recipe[k]));
            w.cfg.allocator = test_allocator(&h);
            if (kvmem_cache_init(&c, &w.cfg) == KVMEM_OK) {
                if (feed(&w, &c, 0, 40, 16, KVMEM_PROMPT_END, NULL) == KVMEM_OK &&
                    kvmem_cache_copy(&d, &c) == KVMEM_OK) {
                    if (feed(&w, &d, 40, 44, 1, KVMEM_DECODE, NULL) == KVMEM_OK &&
                        kvmem_cache_recode(&d, "q8_0", "f16") == KVMEM_OK)
                        whole = 1;
                    kvmem_cache_free(&d);
                }
            } else CHECK(c.error.text[0]);
            kvmem_cache_free(&c);
            CHECK(h.live == 0 && h.wrong == 0);
            world_free(&w);
            if (whole) break;
        }
    quiet = 0;
    CHECK(at < 400);
}
static kvmem_status read_newest_page(const kvmem_view *v, int n, const float *q, const int32_t *pos,
                                     unsigned char *const *read) {
    int g;
    (void)q; (void)n; (void)pos;
    for (g = 0; g < v->cache->shape.n_kv_heads; g++) memset(read[g], 0, (size_t)kvmem_view_pages(v, g));
    return KVMEM_OK;
}
TEST(a_users_retrieve_function_decides_which_pages_are_read) {
    static const kvmem_retrieve_entry mine = { { "newest", "the newest page only", "-", NULL, 0 }, read_newest_page,
                                               NULL, NULL };
    world w; kvmem_cache c; float *out; double o[64], worst = 0; int set[40], i, h, cc;
    REQUIRE(world_init(&w, 1, 4, 2, 8, 101, "full page=16"));
    w.recipe.stage[KVMEM_RETRIEVE].entry = &mine.e;
    out = outs(&w, 1);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 50, KVMEM_PROMPT_END, NULL)); CHECK_OK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, out));
    for (i = 0; i < 5; i++) set[i] = 96 + i;
    for (h = 0; h < 4; h++) {
        oracle(&w, 100, 0, h, set, 5, NULL, 100, o);
        for (cc = 0; cc < 8; cc++) worst = KVMEM__MAX(worst, fabs(o[cc] - (double)out[h * 8 + cc]));
    }
    CHECK_NEAR(worst, 0, 2e-5);
    kvmem_cache_free(&c); free(out); world_free(&w);
}
/* --- trace ----------------------------------------------------------------------------------------- */
/* What the told events add up to: per lane and position 0 absent, 1 kept, 2 recoded since. */
typedef struct replay {
    int L, G, T, wrong, events, recoded;
    int64_t newest;
    unsigned char *state;
} replay;
static void replay_tell(void *user, int layer, int g, int32_t pos, kvmem_fate fate, int64_t tokens) {
    replay *r = (replay *)user;
    unsigned char *s;
    r->events++;
    if (layer < 0 || layer >= r->L || g < 0 || g >= r->G || pos < 0 || pos >= r->T || tokens <= 0) {
        r->wrong++;
        return;
    }
    s = r->state + ((size_t)layer * (size_t)r->G + (size_t)g) * (size_t)r->T + (size_t)pos;
    if ((fate == KVMEM_FATE_KEPT) != (*s == 0)) r->wrong++; /* only what is there can leave or change */
    if (fate == KVMEM_FATE_KEPT && pos >= tokens) r->wrong++;
    if (fate == KVMEM_FATE_RECODED) r->recoded++;
    *s = fate == KVMEM_FATE_KEPT ? 1 : fate == KVMEM_FATE_RECODED ? 2 : 0;
    r->newest = tokens;
}
static void replay_init(replay *r, const world *w) {
    memset(r, 0, sizeof *r);
    r->L = w->L; r->G = w->G; r->T = w->T;
    r->state = (unsigned char *)calloc((size_t)(w->L * w->G * w->T), 1);
}
/* Is what was told exactly what the cache holds? */
static int replay_holds(const replay *r, const kvmem_cache *c) {
    int l, g, t;
    for (l = 0; l < r->L; l++)
        for (g = 0; g < r->G; g++) {
            const unsigned char *s = r->state + ((size_t)l * (size_t)r->G + (size_t)g) * (size_t)r->T;
            int n = 0;
            for (t = 0; t < r->T; t++) {
                int32_t pos;
                if (!s[t]) continue;
                if (kvmem_cache_read(c, l, g, n++, 1, NULL, NULL, &pos) != KVMEM_OK || pos != t) return 0;
            }
            if (n != kvmem_cache_lane_len(c, l, g)) return 0;
        }
    return !r->wrong;
}
/* A budget that gives every lane of every layer another length. */
static kvmem_status uneven_budget(const kvmem_view *v, int mean, const int *n, const float *const *score,
                                  int *keep) {
    int g;
    (void)n; (void)score;
    for (g = 0; g < 2; g++) keep[g] = mean / 2 + 7 * g + 11 * v->layer;
    return KVMEM_OK;
}
static const char *const traced_recipes[8] = {
    "full", "window budget=40", "streamingllm budget=40 codec=q8_0", "h2o budget=25%",
    "snapkv budget=40 recent=8 page=16", "pyramidkv budget=60 recent=8 score=snapkv(window=8)",
    "h2o budget=60KiB", "tova budget=40 when=every(50) seed=3"
};
TEST(the_trace_adds_up_to_the_positions_that_are_there) {
    static const kvmem_budget_entry uneven = { { "uneven", "a length for each lane", "-", NULL, 0 },
                                               uneven_budget };
    int k;
    for (k = 0; k < 9; k++) {
        world w; kvmem_cache c; replay r; int before;
        REQUIRE(world_init(&w, 3, 4, 2, 8, 400, traced_recipes[k % 8]));
        w.cfg.shape.rope = w.rope;
        if (k == 8) {
            kvmem_error e;
            REQUIRE_OK(kvmem_recipe_parse(&w.recipe, "h2o budget=50", &e));
            w.recipe.stage[KVMEM_BUDGET].entry = &uneven.e;
        }
        replay_init(&r, &w);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        kvmem_cache_trace(&c, replay_tell, &r);
        CHECK_OK(feed(&w, &c, 0, 200, 60, KVMEM_PROMPT_END, NULL));
        CHECK(replay_holds(&r, &c) && r.newest == 200);
        CHECK_OK(feed(&w, &c, 200, 290, 1, KVMEM_DECODE, NULL));
        CHECK(replay_holds(&r, &c) && r.newest == 290);
        if (k == 8) CHECK(kvmem_cache_lane_len(&c, 0, 0) != kvmem_cache_lane_len(&c, 0, 1));
        CHECK_OK(kvmem_cache_truncate(&c, 270));
        CHECK(replay_holds(&r, &c));
        CHECK_OK(feed(&w, &c, 270, 400, 33, KVMEM_PROMPT_END, NULL));
        CHECK(replay_holds(&r, &c));
        before = r.events;
        CHECK_OK(kvmem_cache_recode(&c, "q4_0", NULL));
        CHECK(replay_holds(&r, &c) && r.recoded == r.events - before);
        CHECK((size_t)r.recoded == (size_t)(r.events - before) && r.recoded > 0);
        kvmem_cache_clear(&c);
        CHECK(replay_holds(&r, &c) && kvmem_cache_lane_len(&c, 0, 0) == 0);
        CHECK_OK(feed(&w, &c, 0, 50, 50, KVMEM_PROMPT_END, NULL));
        CHECK(replay_holds(&r, &c));
        before = r.events;
        kvmem_cache_free(&c);
        CHECK(r.events == before); /* freeing tells nothing */
        free(r.state); world_free(&w);
    }
}
TEST(the_trace_covers_layerwise_commits_and_blocks_that_are_given_up) {
    world w; kvmem_cache c; replay r; int l;
    REQUIRE(world_init(&w, 3, 4, 2, 8, 200, "snapkv budget=20 score=snapkv(window=4) recent=4"));
    replay_init(&r, &w);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    kvmem_cache_trace(&c, replay_tell, &r);
    for (l = 0; l < 3; l++) { /* the rows are not the point here */
        CHECK_OK(kvmem_cache_append(&c, l, 90, w.k, w.v, NULL));
        CHECK(replay_holds(&r, &c));
        CHECK_OK(kvmem_cache_attend(&c, l, 90, w.q, w.q));
        CHECK_OK(kvmem_cache_commit_layer(&c, l, KVMEM_PROMPT_END));
        CHECK(replay_holds(&r, &c) && kvmem_cache_lane_len(&c, l, 1) == 20 && r.newest == 90);
    }
    CHECK_OK(kvmem_cache_commit(&c, KVMEM_PROMPT_END));
    CHECK_OK(kvmem_cache_append(&c, 0, 10, w.k, w.v, NULL));
    CHECK(kvmem_cache_lane_len(&c, 0, 0) == 30 && replay_holds(&r, &c));
    CHECK_OK(kvmem_cache_truncate(&c, 90)); /* the block in flight is forgotten */
    CHECK(kvmem_cache_lane_len(&c, 0, 0) == 20 && replay_holds(&r, &c));
    kvmem_cache_free(&c); free(r.state); world_free(&w);
}
TEST(a_copy_has_no_trace_and_a_loaded_cache_tells_what_it_holds) {
    world w; kvmem_cache c, d; replay r, x; bytes buf; int before;
    memset(&buf, 0, sizeof buf);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 200, "h2o budget=30"));
    replay_init(&r, &w); replay_init(&x, &w);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(!c.trace);
    kvmem_cache_trace(&c, replay_tell, &r);
    CHECK_OK(feed(&w, &c, 0, 120, 40, KVMEM_PROMPT_END, NULL));
    REQUIRE_OK(kvmem_cache_copy(&d, &c));
    CHECK(!d.trace && !d.trace_user);
    before = r.events;
    CHECK_OK(feed(&w, &d, 120, 160, 8, KVMEM_PROMPT_END, NULL));
    CHECK(r.events == before && replay_holds(&r, &c)); /* the copy's fate is its own */
    kvmem_cache_free(&d);
    CHECK_OK(kvmem_cache_save(&c, bytes_write, &buf));
    CHECK(r.events == before);
    REQUIRE_OK(kvmem_cache_init(&d, &w.cfg));
    kvmem_cache_trace(&d, replay_tell, &x);
    CHECK_OK(feed(&w, &d, 0, 60, 30, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_load(&d, buf.p, buf.n)); /* what was there is dropped, what is loaded is kept */
    CHECK(replay_holds(&x, &d) && !memcmp(x.state, r.state, (size_t)(2 * 2 * 200)));
    buf.p[buf.n - 1] ^= 1;
    CHECK(kvmem_cache_load(&d, buf.p, buf.n) != KVMEM_OK);
    CHECK(replay_holds(&x, &d) && kvmem_cache_lane_len(&d, 0, 0) == 0);
    kvmem_cache_trace(&d, NULL, NULL);
    before = x.events;
    CHECK_OK(feed(&w, &d, 0, 60, 30, KVMEM_PROMPT_END, NULL));
    CHECK(x.events == before);
    kvmem_cache_free(&c); kvmem_cache_free(&d); free(buf.p); free(r.state); free(x.state); world_free(&w);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "cache");
    RUN(attention_equals_a_double_oracle);
    RUN(chunked_prefill_equals_unchunked_bit_for_bit);
    RUN(any_number_of_threads_gives_the_same_bits);
    RUN(long_lanes_are_summed_in_chunks_and_merged_exactly);
    RUN(evicted_entries_are_as_if_masked_and_places_follow_the_recipe);
    RUN(presets_equal_full_bit_for_bit_while_the_budget_covers_the_tokens);
    RUN(accumulated_attention_sums_to_the_number_of_queries);
    RUN(window_attention_of_the_ring_equals_direct_softmax);
    RUN(commit_by_layer_equals_commit);
    RUN(reported_bytes_are_what_the_allocator_counted);
    RUN(evicted_pages_go_back_to_the_allocator);
    RUN(live_bytes_never_pass_the_limit_and_the_stream_goes_on);
    RUN(a_full_cache_under_a_limit_stops_with_a_clear_error_and_stays_usable);
    RUN(estimate_equals_the_real_bytes);
    RUN(truncated_tokens_leave_no_trace);
    RUN(copies_share_pages_until_one_changes);
    RUN(recode_changes_the_stored_bytes_and_reading_goes_on);
    RUN(save_load_continue_is_bit_identical_to_never_having_stopped);
    RUN(damaged_cache_files_are_refused_and_leave_an_empty_cache);
    RUN(values_that_are_not_finite_are_refused_by_name);
    RUN(calls_out_of_order_are_refused_and_change_nothing);
    RUN(shapes_out_of_range_are_refused_by_name);
    RUN(every_failed_allocation_is_an_error_and_leaks_nothing);
    RUN(a_users_retrieve_function_decides_which_pages_are_read);
    RUN(the_trace_adds_up_to_the_positions_that_are_there);
    RUN(the_trace_covers_layerwise_commits_and_blocks_that_are_given_up);
    RUN(a_copy_has_no_trace_and_a_loaded_cache_tells_what_it_holds);
    return test_end();
}
