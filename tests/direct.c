/* Rows that are made again: the same logits as with the full cache, bit for bit, for every kind of
   checkpoint, architecture, block length and path; exact bytes; the Markov property behind it. */
#include "test.h"
#include "tiny.h"
#include "net.h"

enum { TOKENS = 90 };
/* One conversation in feeds of all three kinds; the sum is TOKENS. */
static const int feeds[] = { 5, 1, 1, 1, 30, 1, 1, 2, 3, 6, 4, 1, 1, 12, 1, 1, 9, 1, 1, 1, 5, 2 };
enum { FEEDS = (int)(sizeof feeds / sizeof feeds[0]) };

typedef struct rows {
    float *x;
    size_t vocab, n;
} rows;
static int take_row(void *user, int index, const float *logits) {
    rows *r = (rows *)user;
    (void)index;
    memcpy(r->x + r->n++ * r->vocab, logits, r->vocab * sizeof(float));
    return 0;
}
typedef struct fixture {
    net t;
    uint8_t *bytes;
    kvmem_model m;
    int ids[TOKENS];
    float *full, *other; /* (TOKENS, n_vocab) logits, size bytes */
    size_t size;
} fixture;
static int open_model(fixture *f, uint8_t *bytes, size_t size) {
    int i;
    f->bytes = bytes;
    if (kvmem_model_open(&f->m, bytes, size, NULL, 0, NULL)) {
        FAIL_AT("model: %s", f->m.error.text);
        return 0;
    }
    for (i = 0; i < TOKENS; i++)
        f->ids[i] = (int)(kvmem__random(5, (uint64_t)i, 0, 0) % (uint64_t)f->m.n_vocab);
    f->size = (size_t)TOKENS * (size_t)f->m.n_vocab * sizeof(float);
    f->full = (float *)malloc(f->size);
    f->other = (float *)malloc(f->size);
    return f->full && f->other;
}
static int fixture_open(fixture *f, const char *arch) {
    size_t size;
    uint8_t *bytes;
    memset(f, 0, sizeof *f);
    f->t = net_default(arch);
    net_build(&f->t);
    bytes = net_gguf(&f->t, &size);
    return open_model(f, bytes, size);
}
static void fixture_close(fixture *f) {
    kvmem_model_close(&f->m);
    free(f->bytes);
    free(f->full);
    free(f->other);
    if (f->t.n_owned) net_free(&f->t);
}
static kvmem_session_config config(kvmem_recipe *r, const char *recipe, const char *backend,
                                   int block) {
    kvmem_session_config c = kvmem_session_config_default();
    kvmem_error err;
    *r = kvmem_recipe_default();
    if (kvmem_recipe_parse(r, recipe, &err)) FAIL_AT("%s: %s", recipe, err.text);
    c.recipe = r;
    c.backend = kvmem_backend_cpu(backend);
    c.max_block = block;
    c.n_ctx = 128;
    return c;
}
static kvmem_phase phase_of(int n) { return n == 1 ? KVMEM_DECODE : KVMEM_PROMPT_END; }
/* The logits of every token of the conversation into x. */
static int run(const fixture *f, const char *recipe, const char *backend, int block, float *x) {
    kvmem_recipe r;
    const kvmem_session_config c = config(&r, recipe, backend, block);
    kvmem_session s;
    rows out;
    int i, at = 0;
    kvmem_status st = kvmem_session_init(&s, &f->m, &c);
    memset(x, 0, f->size);
    out.x = x;
    out.vocab = (size_t)f->m.n_vocab;
    out.n = 0;
    for (i = 0; i < FEEDS && st == KVMEM_OK; at += feeds[i++])
        st = kvmem_session_feed(&s, f->ids + at, feeds[i], phase_of(feeds[i]), take_row, &out);
    if (st) FAIL_AT("%s: %s", recipe, s.error.text);
    CHECK(st || (at == TOKENS && out.n == TOKENS));
    kvmem_session_free(&s);
    return st == KVMEM_OK;
}
/* Where the first difference is, or -1. */
static int first_difference(const fixture *f) {
    const size_t row = (size_t)f->m.n_vocab * sizeof(float);
    int i;
    for (i = 0; i < TOKENS; i++)
        if (memcmp((char *)f->full + (size_t)i * row, (char *)f->other + (size_t)i * row, row))
            return i;
    return -1;
}
static void identical(const fixture *f, const char *codec, const char *backend, int block,
                      const char *how) {
    char text[160];
    int d;
    snprintf(text, sizeof text, "full codec=%s", codec);
    if (!run(f, text, backend, block, f->full)) return;
    snprintf(text, sizeof text, "kvdirect codec=%s %s", codec, how);
    if (!run(f, text, backend, block, f->other)) return;
    d = first_difference(f);
    if (d >= 0) FAIL_AT("%s, %s, blocks of %d: token %d differs", f->m.arch_name, text, block, d);
}
static const char *const hows[9] = { "budget=16",
                                     "budget=1",
                                     "budget=16 reduce=recompute(checkpoint=f32)",
                                     "budget=16 reduce=recompute(checkpoint=f32,every=1)",
                                     "budget=3 reduce=recompute(checkpoint=f32,every=2)",
                                     "budget=16 reduce=recompute(hold=1)",
                                     "budget=200",
                                     "budget=25% reduce=recompute(checkpoint=f32,every=1,hold=1)",
                                     "budget=20 when=prompt" };

TEST(every_mode_is_the_full_cache_bit_for_bit_on_the_fast_path) {
    fixture f;
    int i;
    REQUIRE(fixture_open(&f, "llama"));
    for (i = 0; i < 9; i++) identical(&f, i % 2 ? "f16" : "f32", NULL, 32, hows[i]);
    identical(&f, "f16", NULL, 0, hows[0]);
    identical(&f, "f16", NULL, 8, hows[0]);
    identical(&f, "bf16", NULL, 5, hows[1]);
    identical(&f, "f32", NULL, 2, hows[4]);
    fixture_close(&f);
}
TEST(every_mode_is_the_full_cache_bit_for_bit_on_the_plain_path) {
    fixture f;
    int i;
    REQUIRE(fixture_open(&f, "qwen3"));
    for (i = 0; i < 9; i++) identical(&f, i % 2 ? "f16" : "f32", "plain", 32, hows[i]);
    fixture_close(&f);
}
TEST(every_architecture_with_windows_and_caps_is_identical) {
    static const char *const arch[5] = { "qwen2", "qwen3", "gemma2", "gemma3", "phi3" };
    int i;
    for (i = 0; i < 5; i++) {
        fixture f;
        REQUIRE(fixture_open(&f, arch[i]));
        identical(&f, "f16", NULL, 32, hows[0]);
        identical(&f, "f16", NULL, 32, hows[4]);
        fixture_close(&f);
    }
}
TEST(quantized_weights_are_identical) {
    static const kvmem_type type[3] = { KVMEM_F16, KVMEM_Q8_0, KVMEM_Q4_0 };
    int i;
    for (i = 0; i < 3; i++) {
        fixture f;
        size_t size;
        uint8_t *bytes = tiny_model(type[i], 0, &size);
        memset(&f, 0, sizeof f);
        REQUIRE(open_model(&f, bytes, size));
        identical(&f, "f16", NULL, 32, hows[0]);
        identical(&f, "f16", NULL, 32, hows[3]);
        fixture_close(&f);
    }
}
TEST(another_page_size_is_identical_to_the_full_cache_of_that_page_size) {
    fixture f;
    REQUIRE(fixture_open(&f, "llama"));
    if (run(&f, "full page=5", NULL, 32, f.full) &&
        run(&f, "kvdirect page=5 budget=20 when=every(7)", NULL, 32, f.other))
        CHECK(first_difference(&f) < 0);
    fixture_close(&f);
}
TEST(half_checkpoints_are_not_identical_but_close) {
    fixture f;
    size_t i;
    double worst = 0;
    int first;
    REQUIRE(fixture_open(&f, "llama"));
    REQUIRE(run(&f, "full", NULL, 32, f.full));
    REQUIRE(
        run(&f, "kvdirect budget=16 reduce=recompute(checkpoint=f16,every=1)", NULL, 32, f.other));
    first = first_difference(&f);
    CHECK(first >= 16); /* nothing has left before */
    for (i = 0; i < f.size / sizeof(float); i++)
        worst = KVMEM__MAX(worst, fabs((double)(f.full[i] - f.other[i])));
    CHECK(worst > 0 && worst < 0.05);
    fixture_close(&f);
}
TEST(dropping_what_recompute_keeps_is_seen) {
    fixture f;
    REQUIRE(fixture_open(&f, "llama"));
    REQUIRE(run(&f, "full", NULL, 32, f.full));
    REQUIRE(run(&f, "kvdirect budget=16 reduce=drop", NULL, 32, f.other));
    CHECK(first_difference(&f) >= 16);
    fixture_close(&f);
}
/* Bytes: rows of the newest B tokens and n checkpoints, in pages of 8. The peak is taken when a
   layer attends, near what the allocator saw. */
static void bytes_are(const fixture *f, const char *entry, int budget, size_t row,
                      const char *codec, size_t kv) {
    char text[160];
    kvmem_recipe r;
    kvmem_session_config c;
    kvmem_session s;
    kvmem_bytes b, est;
    kvmem_error err;
    test_heap h;
    size_t fixed;
    const size_t lanes = (size_t)(f->m.n_layers * f->m.n_kv_heads), d = (size_t)f->m.head_dim;
    memset(&h, 0, sizeof h);
    snprintf(text, sizeof text, "kvdirect budget=%d page=8 codec=%s reduce=recompute%s", budget,
             codec, entry);
    c = config(&r, text, NULL, 32);
    c.allocator = test_allocator(&h);
    if (kvmem_session_init(&s, &f->m, &c)) {
        FAIL_AT("%s: %s", text, s.error.text);
        return;
    }
    fixed = h.live;
    CHECK_OK(kvmem_session_feed(&s, f->ids, 40, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_feed(&s, f->ids + 40, 32, KVMEM_PROMPT_END, NULL, NULL));
    kvmem_session_end_turn(&s);
    kvmem_session_bytes(&s, &b);
    CHECK(b.live.k + b.live.v == (size_t)budget * lanes * 2 * d * kv);
    CHECK(s.direct->n_chunks * s.direct->per == 72 && s.direct->row_bytes == row);
    CHECK(b.live.total + s.block_size == h.live && b.tokens == 72);
    if (b.peak.total + s.block_size + 256 < h.peak || b.peak.total > h.peak - s.block_size + 4096)
        FAIL_AT("%s: peak %d, the allocator's %d", text, (int)b.peak.total,
                (int)(h.peak - s.block_size));
    CHECK(b.live.total == b.live.k + b.live.v + b.live.meta + b.live.stats + b.live.scratch);
    CHECK(b.peak.total == b.peak.k + b.peak.v + b.peak.meta + b.peak.stats + b.peak.scratch);
    CHECK_OK(kvmem_session_estimate(&f->m, &c, 72, 0, &est, &err));
    CHECK(est.live.k + est.live.v == b.live.k + b.live.v);
    CHECK_NEAR((double)est.live.total, (double)b.live.total, 0.25 * (double)b.live.total);
    kvmem_session_clear(&s);
    kvmem_session_bytes(&s, &b);
    CHECK(!b.live.k && !b.live.v && h.live <= fixed + 512);
    kvmem_session_free(&s);
    CHECK(!h.live && !h.wrong);
}
TEST(bytes_are_budget_rows_and_a_checkpoint_a_token_exactly) {
    fixture f;
    size_t e;
    REQUIRE(fixture_open(&f, "llama"));
    e = (size_t)f.m.n_embd;
    bytes_are(&f, "", 16, 4, "f16", 2);
    bytes_are(&f, "", 8, 4, "f32", 4);
    bytes_are(&f, "(checkpoint=f32)", 16, e * 4, "f16", 2);
    bytes_are(&f, "(checkpoint=f32,every=1)", 16, 3 * e * 4, "f16", 2);
    bytes_are(&f, "(checkpoint=f32,every=2)", 16, 2 * e * 4, "f16", 2);
    bytes_are(&f, "(checkpoint=f16,every=1)", 16, 3 * e * 2, "f16", 2);
    bytes_are(&f, "(hold=1)", 16, 4, "f16", 2);
    fixture_close(&f);
}
TEST(sizes_of_gemma_3_4b_are_the_papers) {
    kvmem_model m;
    double par[3] = { 2, 1, 0 };
    memset(&m, 0, sizeof m);
    m.n_layers = 34;
    m.n_embd = 2560;
    m.n_kv_heads = 4;
    m.head_dim = 256;
    CHECK(m.n_layers * 2 * m.n_kv_heads * m.head_dim * 2 == 139264);
    CHECK(kvmem__direct_row_bytes(&m, par) == 34 * 5120); /* more than the rows */
    par[1] = 0;
    CHECK(kvmem__direct_row_bytes(&m, par) == 5120); /* 27.2 times less */
    CHECK_NEAR(139264.0 / 5120, 27.2, 1e-9);
    par[0] = 0;
    CHECK(kvmem__direct_row_bytes(&m, par) == 4);
    par[0] = 1;
    par[1] = 5;
    CHECK(kvmem__direct_row_bytes(&m, par) == 7 * 2560 * 4);
}
TEST(truncated_copied_and_cleared_sessions_stay_identical) {
    fixture f;
    kvmem_recipe r, full;
    kvmem_session s, copy, ref;
    kvmem_session_config c, cf;
    size_t row;
    REQUIRE(fixture_open(&f, "llama"));
    c = config(&r, "kvdirect budget=16 reduce=recompute(checkpoint=f32,every=2)", NULL, 32);
    cf = config(&full, "full", NULL, 32);
    row = (size_t)f.m.n_vocab * sizeof(float);
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &c));
    REQUIRE_OK(kvmem_session_init(&ref, &f.m, &cf));
    CHECK_OK(kvmem_session_feed(&s, f.ids, 60, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_truncate(&s, 20)); /* far below the window: no row is left */
    CHECK(kvmem_cache_lane_len(&s.cache, 0, 0) == 0);
    CHECK_OK(kvmem_session_feed(&s, f.ids + 30, 12, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_copy(&copy, &s));
    kvmem_session_clear(&s);
    CHECK_OK(kvmem_session_feed(&s, f.ids, 9, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_feed(&copy, f.ids + 50, 1, KVMEM_DECODE, NULL, NULL));
    CHECK_OK(kvmem_session_feed(&ref, f.ids, 20, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_feed(&ref, f.ids + 30, 12, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_feed(&ref, f.ids + 50, 1, KVMEM_DECODE, NULL, NULL));
    CHECK(!memcmp(ref.logits, copy.logits, row));
    kvmem_session_clear(&ref);
    CHECK_OK(kvmem_session_feed(&ref, f.ids, 9, KVMEM_PROMPT_END, NULL, NULL));
    CHECK(!memcmp(ref.logits, s.logits, row));
    kvmem_session_free(&s);
    kvmem_session_free(&copy);
    kvmem_session_free(&ref);
    fixture_close(&f);
}
TEST(a_failed_allocation_loses_nothing) {
    fixture f;
    kvmem_recipe r, full;
    kvmem_session_config c, cf;
    kvmem_session ref;
    size_t row, k;
    int done = 0;
    REQUIRE(fixture_open(&f, "llama"));
    row = (size_t)f.m.n_vocab * sizeof(float);
    cf = config(&full, "full", NULL, 32);
    REQUIRE_OK(kvmem_session_init(&ref, &f.m, &cf));
    CHECK_OK(kvmem_session_feed(&ref, f.ids, 30, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_feed(&ref, f.ids + 30, 3, KVMEM_PROMPT_END, NULL, NULL));
    c = config(&r, "kvdirect budget=8 reduce=recompute(checkpoint=f32,every=2)", NULL, 32);
    for (k = 1; !done && k < 3000; k++) {
        kvmem_session s;
        test_heap h;
        kvmem_status st;
        memset(&h, 0, sizeof h);
        c.allocator = test_allocator(&h);
        h.fail_at = k;
        st = kvmem_session_init(&s, &f.m, &c);
        if (st == KVMEM_OK) {
            st = kvmem_session_feed(&s, f.ids, 30, KVMEM_PROMPT_END, NULL, NULL);
            if (st != KVMEM_OK) { /* again, from where it stands */
                CHECK(st == KVMEM_NO_MEMORY && s.error.text[0] && s.cache.tokens == 0);
                st = kvmem_session_feed(&s, f.ids, 30, KVMEM_PROMPT_END, NULL, NULL);
            }
            if (st == KVMEM_OK &&
                kvmem_session_feed(&s, f.ids + 30, 3, KVMEM_PROMPT_END, NULL, NULL)) {
                CHECK(s.error.status == KVMEM_NO_MEMORY && s.cache.tokens == 30);
                st = kvmem_session_feed(&s, f.ids + 30, 3, KVMEM_PROMPT_END, NULL, NULL);
            }
            CHECK(st == KVMEM_OK && !memcmp(ref.logits, s.logits, row));
            done = h.calls < k;
        } else CHECK(st == KVMEM_NO_MEMORY && s.error.text[0]);
        kvmem_session_free(&s);
        if (h.live || h.wrong) {
            FAIL_AT("allocation %d: %d bytes left", (int)k, (int)h.live);
            break;
        }
    }
    CHECK(done && k > 20);
    kvmem_session_free(&ref);
    fixture_close(&f);
}
TEST(what_cannot_be_made_again_is_refused_with_a_sentence) {
    static const char *const bad[][2] = {
        { "kvdirect score=knorm", "recency" },          { "kvdirect sink=4", "sink=0" },
        { "kvdirect budget=pyramid(64)", "uniform" },   { "kvdirect budget=8MiB", "not bytes" },
        { "kvdirect place=cache", "original" },         { "kvdirect codec=q8_0", "codec=f32" },
        { "kvdirect reduce=recompute(every=1)", "ids" }
    };
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error err;
    kvmem_config cfg = kvmem_config_default();
    kvmem_cache c;
    fixture f;
    kvmem_session s;
    kvmem_session_config sc;
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(kvmem_recipe_parse(&r, bad[i][0], &err) == KVMEM_BAD_RECIPE);
        if (!strstr(err.text, bad[i][1])) FAIL_AT("%s: '%s'", bad[i][0], err.text);
    }
    REQUIRE_OK(kvmem_recipe_parse(&r, "kvdirect", &err));
    cfg.recipe = &r;
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = 1;
    cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = 8;
    CHECK(kvmem_cache_init(&c, &cfg) == KVMEM_UNSUPPORTED && strstr(c.error.text, "session"));
    kvmem_cache_free(&c);
    REQUIRE(fixture_open(&f, "llama"));
    sc = config(&r, "kvdirect", NULL, 32);
    sc.max_bytes = 1 << 20;
    CHECK(kvmem_session_init(&s, &f.m, &sc) == KVMEM_UNSUPPORTED &&
          strstr(s.error.text, "in tokens"));
    sc.max_bytes = 0;
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &sc));
    CHECK(kvmem_session_save(&s, NULL, NULL) == KVMEM_UNSUPPORTED &&
          strstr(s.error.text, "checkpoints"));
    CHECK(kvmem_session_load(&s, NULL, 0) == KVMEM_UNSUPPORTED);
    kvmem_session_free(&s);
    fixture_close(&f);
}
/* The residual stream before layer l, all positions of a prompt of n tokens, in out, or put in from in. */
static void patched(const fixture *f, const int *ids, int n, int at, float *out, const float *in,
                    float *logits) {
    kvmem_recipe r;
    const kvmem_session_config c = config(&r, "full", NULL, 64);
    const size_t size = (size_t)n * (size_t)f->m.n_embd * sizeof(float);
    kvmem_session s;
    int l;
    REQUIRE_OK(kvmem_session_init(&s, &f->m, &c));
    s.backend->rows(s.backend, s.x, &f->m.embd, ids, n, 1);
    for (l = 0; l < f->m.n_layers; l++) {
        if (l == at && out) memcpy(out, s.x, size);
        if (l == at && in) memcpy(s.x, in, size);
        s.backend->rmsnorm(s.h, s.x, f->m.layer[l].attn_norm, n, f->m.n_embd, f->m.norm_eps, 1);
        CHECK_OK(kvmem__attention_part(&s, l, n, 0, KVMEM_PROMPT_END));
        kvmem__mixing_part(&s, l, n, s.x, s.att);
    }
    kvmem__head_part(&s, logits, s.x + (size_t)(n - 1) * (size_t)f->m.n_embd, 1);
    kvmem_session_free(&s);
}
TEST(a_residual_patched_at_all_positions_of_any_layer_gives_the_other_prompts_logits) {
    fixture f;
    const int n = 24;
    int l;
    float *x;
    size_t row;
    REQUIRE(fixture_open(&f, "llama"));
    row = (size_t)f.m.n_vocab * sizeof(float);
    x = (float *)malloc((size_t)n * (size_t)f.m.n_embd * sizeof(float));
    REQUIRE(x != NULL);
    for (l = 0; l < f.m.n_layers; l++) {
        patched(&f, f.ids + 40, n, l, x, NULL, f.other); /* prompt B */
        patched(&f, f.ids, n, l, NULL, NULL, f.full);    /* prompt A */
        CHECK(memcmp(f.full, f.other, row));
        patched(&f, f.ids, n, l, NULL, x, f.full); /* A with the residual of B */
        CHECK(!memcmp(f.full, f.other, row));
    }
    free(x);
    fixture_close(&f);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "direct");
    RUN(every_mode_is_the_full_cache_bit_for_bit_on_the_fast_path);
    RUN(every_mode_is_the_full_cache_bit_for_bit_on_the_plain_path);
    RUN(every_architecture_with_windows_and_caps_is_identical);
    RUN(quantized_weights_are_identical);
    RUN(another_page_size_is_identical_to_the_full_cache_of_that_page_size);
    RUN(half_checkpoints_are_not_identical_but_close);
    RUN(dropping_what_recompute_keeps_is_seen);
    RUN(bytes_are_budget_rows_and_a_checkpoint_a_token_exactly);
    RUN(sizes_of_gemma_3_4b_are_the_papers);
    RUN(truncated_copied_and_cleared_sessions_stay_identical);
    RUN(a_failed_allocation_loses_nothing);
    RUN(what_cannot_be_made_again_is_refused_with_a_sentence);
    RUN(a_residual_patched_at_all_positions_of_any_layer_gives_the_other_prompts_logits);
    return test_end();
}
