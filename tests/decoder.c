/* The forward pass against a double-precision oracle, for every architecture and every optional part;
   llama2.c's own text; sessions: blocks, threads, callbacks, truncate, copy, save, wrong arguments. */
#include "test.h"
#include "tiny.h"
#include "net.h"
#define MKGGUF_NO_MAIN
#include "../tools/mkgguf.c"

static const char model_path[] = "../shared/models/stories260K.bin";
static const char vocab_path[] = "../shared/models/tok512.bin";

/* Logits of all fed tokens, row by row. */
typedef struct rows { float *x; int n_vocab, n, stop_at; } rows;
static int take_row(void *user, int index, const float *logits) {
    rows *r = (rows *)user;
    if (index != r->n) FAIL_AT("row %d came as number %d", index, r->n);
    memcpy(r->x + (size_t)r->n * (size_t)r->n_vocab, logits, (size_t)r->n_vocab * sizeof(float));
    r->n++;
    return r->n == r->stop_at;
}
static rows rows_new(const kvmem_model *m, int n) {
    rows r;
    r.n_vocab = m->n_vocab;
    r.n = 0;
    r.stop_at = -1;
    r.x = (float *)calloc((size_t)n * (size_t)m->n_vocab, sizeof(float));
    if (!r.x) exit(2);
    return r;
}
static kvmem_session_config plain_config(int block, int threads) {
    kvmem_session_config c = kvmem_session_config_default();
    c.max_block = block;
    c.threads = threads;
    c.backend = kvmem_backend_cpu("plain");
    return c;
}
/* All logits of ids under cfg; x (n, n_vocab). Returns 0 and says why on failure. */
static int run(const kvmem_model *m, const kvmem_session_config *cfg, const int *ids, int n, float *x) {
    kvmem_session s;
    rows r = rows_new(m, n);
    kvmem_status st = kvmem_session_init(&s, m, cfg);
    if (st == KVMEM_OK) st = kvmem_session_feed(&s, ids, n, KVMEM_PROMPT_END, take_row, &r);
    if (st == KVMEM_OK && (r.n != n || !s.has_logits ||
                           memcmp(s.logits, r.x + (size_t)(n - 1) * (size_t)m->n_vocab, (size_t)m->n_vocab * 4)))
        FAIL_AT("%d of %d rows, or the last row is not in logits", r.n, n);
    if (st != KVMEM_OK) FAIL_AT("feed: %s", s.error.text);
    else memcpy(x, r.x, (size_t)n * (size_t)m->n_vocab * sizeof(float));
    kvmem_session_free(&s);
    free(r.x);
    return st == KVMEM_OK;
}

/* The largest difference between the decoder and the oracle over n random tokens; *spread: the largest
   logit. 1e9 on failure. n_ctx as in the session's configuration. */
enum { STEPS = 30 };
static double net_error(const net *t, const char *backend, int n_ctx, double *spread) {
    size_t size;
    uint8_t *bytes = net_gguf(t, &size);
    kvmem_model m;
    kvmem_session_config cfg = plain_config(8, 1);
    double worst = 1e9, *want;
    int ids[STEPS], i;
    float *x;
    for (i = 0; i < STEPS; i++) ids[i] = (int)(kvmem__random(5, (uint64_t)i, 0, 0) % (uint64_t)t->V);
    cfg.backend = kvmem_backend_cpu(backend);
    cfg.n_ctx = n_ctx;
    x = (float *)calloc((size_t)(STEPS * t->V), sizeof *x);
    if (kvmem_model_open(&m, bytes, size, NULL, 0, NULL) != KVMEM_OK) FAIL_AT("open: %s", m.error.text);
    else if (run(&m, &cfg, ids, STEPS, x)) {
        want = net_logits(t, ids, STEPS);
        worst = *spread = 0;
        for (i = 0; i < STEPS * t->V; i++) {
            const double d = fabs(want[i] - (double)x[i]);
            if (!(d <= worst)) worst = d;
            if (fabs(want[i]) > *spread) *spread = fabs(want[i]);
        }
        free(want);
    }
    kvmem_model_close(&m);
    free(x);
    free(bytes);
    return worst;
}
/* The oracle and the decoder agree, on plain C and on the fastest path; the spec is built and freed. */
static void agree_ctx(net *t, const char *what, int n_ctx) {
    double spread = 0, e;
    net_build(t);
    e = net_error(t, "plain", n_ctx, &spread);
    if (!(e < 3e-5 * (1 + spread))) FAIL_AT("%s: plain differs by %g of %g", what, e, spread);
    e = net_error(t, NULL, n_ctx, &spread);
    if (!(e < 6e-5 * (1 + spread))) FAIL_AT("%s: fast path differs by %g of %g", what, e, spread);
    net_free(t);
}
static void agree(net *t, const char *what) { agree_ctx(t, what, 0); }

TEST(every_architecture_agrees_with_the_oracle) {
    static const char *const arch[6] = { "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3" };
    int i;
    for (i = 0; i < 6; i++) {
        net t = net_default(arch[i]);
        t.seed = (uint64_t)i + 1;
        agree(&t, arch[i]);
    }
}

TEST(optional_parts_agree_with_the_oracle) {
    net t;
    t = net_default("llama"); t.bias = 1; agree(&t, "llama with biases");
    t = net_default("llama"); t.tied = 1; agree(&t, "llama, tied head");
    t = net_default("llama"); t.fused = 0; t.G = 4; agree(&t, "llama without groups");
    t = net_default("llama"); t.G = 1; t.d = 12; t.n_rot = 12; t.attn_scale = 1 / sqrt(12.0);
    agree(&t, "llama, one KV head, wide heads");
    t = net_default("qwen2"); t.tied = 1; t.bias = 0; agree(&t, "qwen2, tied, no biases");
    t = net_default("qwen3"); t.tied = 1; t.d = 16; t.n_rot = 16; t.attn_scale = 0.25;
    agree(&t, "qwen3, heads wider than the embedding's share");
    t = net_default("gemma2"); t.softcap = 2; t.final_cap = 3; agree(&t, "gemma2, tight caps");
    t = net_default("gemma2"); t.tied = 0; t.window = 1; agree(&t, "gemma2, window of one token");
    t = net_default("gemma3"); t.final_cap = 4; agree(&t, "gemma3 with a final cap");
    t = net_default("phi3"); t.bias = 1; t.tied = 1; agree(&t, "phi3 with biases");
    t = net_default("phi3"); t.n_rot = 4; agree(&t, "phi3, half of the channels rotated");
    t = net_default("llama"); t.n_rot = 0; agree(&t, "llama without rotation");
}

TEST(large_gemmas_scale_by_the_embedding_s_share_of_a_head) {
    net t = net_default("gemma2");
    t.L = 46; /* how the 27B model is told from the smaller ones */
    t.E = 40;
    t.attn_scale = 1 / sqrt(10.0);
    agree(&t, "gemma2 of 46 layers");
}

TEST(rope_scalings_agree_with_the_oracle) {
    net t;
    t = net_default("llama"); t.factor = 4; agree(&t, "linear, type not named");
    t = net_default("qwen2"); t.factor = 4; t.scaling = "linear"; agree(&t, "linear");
    t = net_default("llama"); t.llama3 = 1; agree(&t, "llama3 factors");
    t = net_default("llama"); t.d = t.n_rot = 16; t.attn_scale = 0.25; t.factor = 8; t.yarn = 1; t.scaling = "yarn";
    t.orig_ctx = 1024; t.ctx = 8192; agree(&t, "yarn, pairs");
    t = net_default("qwen3"); t.factor = 2; t.yarn = 1; t.scaling = "yarn"; t.orig_ctx = 32; t.attn_factor = 1.3;
    agree(&t, "yarn, halves, attention factor");
    t = net_default("gemma3"); t.factor = 8; t.scaling = "linear"; agree(&t, "gemma3: global layers only");
    t = net_default("phi3"); t.longrope = 1; t.orig_ctx = 32; t.attn_factor = 1.19;
    agree_ctx(&t, "longrope, short", 32);
    t = net_default("phi3"); t.longrope = 2; t.orig_ctx = 32; t.attn_factor = 1.19;
    agree_ctx(&t, "longrope, long", 33);
    t = net_default("phi3"); t.longrope = 2; t.orig_ctx = 32; t.n_rot = 6; t.scaling = "longrope";
    agree(&t, "longrope, long by the model's own context, partial");
}

/* ---- stories260K ---- */

static const char story[] = "Once upon a time, there was a little girl named Lily. She loved to play outside in "
                            "the park. One day, she saw a big, red ball. She wanted to play with it, but it was "
                            "too high. Lily's mom said, \"Lily, let's go to the park.\" Lily was sad.";

TEST(stories260K_agrees_with_double_precision) {
    size_t size, vocab_size, n = 0;
    unsigned char *p = test_file(model_path, &size), *v = test_file(vocab_path, &vocab_size);
    kvmem_model m;
    kvmem_session_config cfg = plain_config(64, 1);
    kvmem_error err;
    net t;
    double *want, worst = 0;
    int ids[64], i;
    float *x;
    if (!p || !v) { free(p); free(v); SKIP("../shared/models is not there"); }
    REQUIRE_OK(kvmem_model_open(&m, p, size, v, vocab_size, NULL));
    REQUIRE(m.tokenizer.kind == KVMEM_VOCAB_LLAMA2C && m.tied && m.n_vocab == 512);
    REQUIRE_OK(kvmem_tokenize(&m.tokenizer, story, strlen(story), KVMEM_ADD_SPECIAL, ids, 64, &n, &err));
    REQUIRE(n >= 64);
    x = (float *)calloc((size_t)(64 * m.n_vocab), sizeof *x);
    REQUIRE(x != NULL && net_llama2c(&t, p, size));
    want = net_logits(&t, ids, 64);
    for (i = 0; i < 2; i++) {
        int j;
        cfg.backend = kvmem_backend_cpu(i ? NULL : "plain");
        REQUIRE(run(&m, &cfg, ids, 64, x));
        for (j = 0; j < 64 * m.n_vocab; j++)
            if (!(fabs(want[j] - (double)x[j]) <= worst)) worst = fabs(want[j] - (double)x[j]);
    }
    CHECK(worst <= 1e-4);
    if (worst > 1e-4) printf("  worst %g\n", worst);
    free(want); free(x);
    net_free(&t);
    kvmem_model_close(&m);
    free(p); free(v);
}

TEST(greedy_text_is_llama2c_run_c_s) {
    /* run stories260K.bin -z tok512.bin -t 0 -n 120 -i "Once upon a time" */
    static const char expected[] =
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
        "saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to "
        "the park.\" Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but";
    size_t size, vocab_size, n = 0, len;
    unsigned char *p = test_file(model_path, &size), *v = test_file(vocab_path, &vocab_size);
    kvmem_model m;
    kvmem_session s;
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_error err;
    char text[2048];
    int ids[128], i;
    if (!p || !v) { free(p); free(v); SKIP("../shared/models is not there"); }
    REQUIRE_OK(kvmem_model_open(&m, p, size, v, vocab_size, NULL));
    REQUIRE_OK(kvmem_session_init(&s, &m, &cfg));
    REQUIRE_OK(kvmem_tokenize(&m.tokenizer, "Once upon a time", 16, KVMEM_ADD_SPECIAL, ids, 128, &n, &err));
    REQUIRE_OK(kvmem_session_feed(&s, ids, (int)n, KVMEM_PROMPT_END, NULL, NULL));
    while (n < 121) {
        int best = 0;
        for (i = 1; i < m.n_vocab; i++) if (s.logits[i] > s.logits[best]) best = i;
        ids[n++] = best;
        REQUIRE_OK(kvmem_session_feed(&s, &best, 1, KVMEM_DECODE, NULL, NULL));
    }
    len = kvmem_detokenize(&m.tokenizer, ids, n, KVMEM_TEXT_START, text, sizeof text - 1);
    REQUIRE(len < sizeof text);
    text[len] = 0;
    CHECK(!strcmp(text, expected));
    if (strcmp(text, expected)) printf("  %s\n", text);
    kvmem_session_free(&s);
    kvmem_model_close(&m);
    free(p); free(v);
}

/* ---- tensor types ---- */

typedef struct bytes { uint8_t *p; size_t n; } bytes;
static int keep(void *user, const void *p, size_t n) {
    bytes *b = (bytes *)user;
    b->p = (uint8_t *)realloc(b->p, b->n + n + 1);
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 0;
}
/* The same file with every tensor decoded to float32. */
static uint8_t *decoded(const bytes *file, size_t *size) {
    kvmem_gguf g;
    tiny_gguf out;
    int i;
    memset(&out, 0, sizeof out);
    if (kvmem_gguf_open(&g, file->p, file->n, NULL) != KVMEM_OK) return NULL;
    out.n_kv = (uint64_t)g.n_kv;
    tiny_add(&out.kv, file->p + 24, (size_t)(g.kv[g.n_kv - 1].data + g.kv[g.n_kv - 1].size - (file->p + 24)));
    for (i = 0; i < g.n_tensors; i++) {
        const kvmem_tensor *t = &g.tensor[i];
        const int ne0 = (int)t->ne[0], ne1 = (int)t->ne[1];
        float *x = (float *)malloc((size_t)ne0 * (size_t)ne1 * sizeof *x);
        char name[80];
        snprintf(name, sizeof name, "%.*s", t->name_len, t->name);
        if (!x || kvmem_dequantize(t->type, x, t->data, (size_t)ne0 * (size_t)ne1) != KVMEM_OK) FAIL_AT("%s", name);
        net_put(&out, name, x, ne0, ne1);
        free(x);
    }
    kvmem_gguf_close(&g);
    return tiny_finish(&out, size);
}
/* Differences come from 8-bit activations alone: a few percent of the logits' spread. A wrong scale, order
   or layout of any block would give differences as large as the spread. */
TEST(every_tensor_type_runs_as_its_decoded_values) {
    static const char *const type[13] = { "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k",
                                          "q4_k", "q5_k", "q6_k" };
    enum { N = 12 };
    int ids[N], i, j, path;
    for (i = 0; i < N; i++) ids[i] = 300 + i * 7;
    for (i = 0; i < 13; i++) {
        bytes file = { NULL, 0 };
        kvmem_model a, b;
        kvmem_session_config cfg = plain_config(N, 1);
        size_t size = 0;
        uint8_t *plain;
        char args[96];
        float *x, *y;
        snprintf(args, sizeof args, "--preset small --layers 2 --type %s", type[i]);
        REQUIRE(mkgguf(args, keep, &file) == 0);
        plain = decoded(&file, &size);
        REQUIRE(plain != NULL);
        REQUIRE_OK(kvmem_model_open(&a, file.p, file.n, NULL, 0, NULL));
        REQUIRE_OK(kvmem_model_open(&b, plain, size, NULL, 0, NULL));
        CHECK(!strcmp(kvmem_type_name(a.layer[0].q.type), type[i]) || i > 7);
        x = (float *)calloc((size_t)(N * a.n_vocab), sizeof *x);
        y = (float *)calloc((size_t)(N * a.n_vocab), sizeof *y);
        REQUIRE(x && y && run(&b, &cfg, ids, N, y));
        for (path = 0; path < 2; path++) {
            double worst = 0, spread = 0;
            cfg.backend = kvmem_backend_cpu(path ? NULL : "plain");
            REQUIRE(run(&a, &cfg, ids, N, x));
            for (j = 0; j < N * a.n_vocab; j++) {
                worst = fmax(worst, fabs((double)x[j] - (double)y[j]));
                spread = fmax(spread, fabs((double)y[j]));
            }
            if (!(worst < (i < 1 ? 1e-4 : i < 3 ? 2e-2 : 8e-2) * spread))
                FAIL_AT("%s on %s: %g of %g", type[i], cfg.backend->name, worst, spread);
        }
        free(x); free(y); free(plain); free(file.p);
        kvmem_model_close(&a);
        kvmem_model_close(&b);
    }
}

/* ---- sessions ---- */

/* A model of an architecture that has windows, caps and norms, for tests of sessions. */
typedef struct fixture {
    net t;
    uint8_t *bytes;
    size_t size, row; /* of the file; of one row of logits */
    kvmem_model m;
    int ids[STEPS];
    float *a, *b;     /* (STEPS) rows each */
} fixture;
static int fixture_open(fixture *f, const char *arch) {
    int i;
    f->t = net_default(arch);
    net_build(&f->t);
    f->bytes = net_gguf(&f->t, &f->size);
    for (i = 0; i < STEPS; i++) f->ids[i] = (i * 7 + 3) % f->t.V;
    f->row = (size_t)f->t.V * sizeof(float);
    f->a = (float *)calloc(STEPS, f->row);
    f->b = (float *)calloc(STEPS, f->row);
    if (kvmem_model_open(&f->m, f->bytes, f->size, NULL, 0, NULL) == KVMEM_OK) return 1;
    FAIL_AT("open: %s", f->m.error.text);
    return 0;
}
static void fixture_close(fixture *f) {
    kvmem_model_close(&f->m);
    net_free(&f->t);
    free(f->bytes); free(f->a); free(f->b);
}

TEST(blocks_of_any_size_give_the_same_bits_on_plain_c) {
    static const int block[5] = { 1, 2, 7, 29, 512 };
    static const char *const arch[3] = { "llama", "gemma2", "phi3" };
    int i, j;
    for (j = 0; j < 3; j++) {
        fixture f;
        kvmem_session_config cfg = plain_config(STEPS, 1);
        REQUIRE(fixture_open(&f, arch[j]));
        REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.a));
        for (i = 0; i < 5; i++) {
            cfg = plain_config(block[i], 1);
            REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.b));
            if (memcmp(f.a, f.b, STEPS * f.row)) FAIL_AT("%s: blocks of %d differ", arch[j], block[i]);
        }
        fixture_close(&f);
    }
}

TEST(one_thread_and_two_give_the_same_bits) {
    fixture f;
    int i;
    REQUIRE(fixture_open(&f, "gemma3"));
    for (i = 0; i < 2; i++) {
        kvmem_session_config cfg = plain_config(8, 1);
        cfg.backend = kvmem_backend_cpu(i ? NULL : "plain");
        REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.a));
        cfg.threads = 2;
        REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.b));
        CHECK(!memcmp(f.a, f.b, STEPS * f.row));
    }
    fixture_close(&f);
}

TEST(rows_and_the_last_logits_agree) {
    fixture f;
    kvmem_session s;
    kvmem_session_config cfg = plain_config(4, 1);
    int i;
    REQUIRE(fixture_open(&f, "qwen3"));
    REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.a));
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &cfg));
    CHECK(!s.has_logits);
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, 10, KVMEM_PREFILL, NULL, NULL));
    CHECK(s.has_logits && !memcmp(s.logits, f.a + 9 * f.t.V, f.row));
    REQUIRE_OK(kvmem_session_feed(&s, f.ids + 10, 5, KVMEM_PROMPT_END, NULL, NULL));
    CHECK(!memcmp(s.logits, f.a + 14 * f.t.V, f.row));
    for (i = 15; i < STEPS; i++) {
        REQUIRE_OK(kvmem_session_feed(&s, f.ids + i, 1, KVMEM_DECODE, NULL, NULL));
        CHECK(!memcmp(s.logits, f.a + i * f.t.V, f.row));
    }
    CHECK(s.cache.tokens == STEPS);
    kvmem_session_free(&s);
    fixture_close(&f);
}

TEST(a_callback_that_says_stop_ends_after_its_block) {
    fixture f;
    kvmem_session s;
    kvmem_session_config cfg = plain_config(4, 1);
    rows r;
    REQUIRE(fixture_open(&f, "llama"));
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &cfg));
    r = rows_new(&f.m, STEPS);
    r.stop_at = 6;
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, STEPS, KVMEM_PROMPT_END, take_row, &r));
    CHECK(r.n == 6 && s.cache.tokens == 8 && !s.has_logits);
    free(r.x);
    kvmem_session_free(&s);
    fixture_close(&f);
}

TEST(truncate_and_clear_forget) {
    fixture f;
    kvmem_session s;
    kvmem_session_config cfg = plain_config(8, 1);
    REQUIRE(fixture_open(&f, "gemma2"));
    REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.a));
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &cfg));
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, 12, KVMEM_PREFILL, NULL, NULL));
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, 6, KVMEM_PREFILL, NULL, NULL));
    REQUIRE_OK(kvmem_session_truncate(&s, 12));
    CHECK(!s.has_logits && s.cache.tokens == 12);
    REQUIRE_OK(kvmem_session_feed(&s, f.ids + 12, 3, KVMEM_PREFILL, NULL, NULL));
    CHECK(!memcmp(s.logits, f.a + 14 * f.t.V, f.row));
    kvmem_session_clear(&s);
    CHECK(!s.has_logits && s.cache.tokens == 0);
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, STEPS, KVMEM_PROMPT_END, NULL, NULL));
    CHECK(!memcmp(s.logits, f.a + (STEPS - 1) * f.t.V, f.row));
    CHECK(kvmem_session_truncate(&s, -1) != KVMEM_OK && s.error.text[0]);
    kvmem_session_free(&s);
    fixture_close(&f);
}

TEST(every_preset_is_full_when_its_budget_covers_the_tokens) {
    static const char *const recipe[8] = { "full", "window budget=100", "streamingllm budget=100", "h2o budget=100",
        "tova budget=100", "snapkv budget=100", "pyramidkv budget=100", "snapkv budget=100 recent=4" };
    static const char *const arch[2] = { "llama", "gemma3" };
    int i, j;
    for (j = 0; j < 2; j++) {
        fixture f;
        kvmem_session_config cfg = plain_config(8, 1);
        REQUIRE(fixture_open(&f, arch[j]));
        REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.a));
        for (i = 0; i < 8; i++) {
            kvmem_recipe r = kvmem_recipe_default();
            kvmem_error err;
            if (kvmem_recipe_parse(&r, recipe[i], &err) != KVMEM_OK) FAIL_AT("%s: %s", recipe[i], err.text);
            cfg.recipe = &r;
            cfg.max_block = i % 2 ? 64 : 8; /* in one block layers are committed one by one */
            REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.b));
            if (memcmp(f.a, f.b, STEPS * f.row)) FAIL_AT("%s: %s differs", arch[j], recipe[i]);
        }
        fixture_close(&f);
    }
}

TEST(copies_and_saved_sessions_go_on_bit_for_bit) {
    fixture f;
    kvmem_session s, c, l;
    kvmem_session_config cfg = plain_config(8, 1);
    bytes file = { NULL, 0 };
    int i;
    REQUIRE(fixture_open(&f, "phi3"));
    REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.a));
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &cfg));
    REQUIRE_OK(kvmem_session_init(&l, &f.m, &cfg));
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, 20, KVMEM_PROMPT_END, NULL, NULL));
    REQUIRE_OK(kvmem_session_save(&s, keep, &file));
    REQUIRE_OK(kvmem_session_copy(&c, &s));
    CHECK(c.has_logits && !memcmp(c.logits, s.logits, f.row));
    /* other tokens: the copy does not see them */
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, 5, KVMEM_DECODE, NULL, NULL));
    REQUIRE_OK(kvmem_session_load(&l, file.p, file.n));
    CHECK(!l.has_logits && l.cache.tokens == 20);
    for (i = 20; i < STEPS; i++) {
        REQUIRE_OK(kvmem_session_feed(&c, f.ids + i, 1, KVMEM_DECODE, NULL, NULL));
        REQUIRE_OK(kvmem_session_feed(&l, f.ids + i, 1, KVMEM_DECODE, NULL, NULL));
        CHECK(!memcmp(c.logits, f.a + i * f.t.V, f.row));
        CHECK(!memcmp(l.logits, f.a + i * f.t.V, f.row));
    }
    kvmem_session_free(&s);
    kvmem_session_free(&c);
    CHECK(kvmem_session_load(&l, file.p, file.n / 2) != KVMEM_OK && l.error.text[0]);
    kvmem_session_free(&l);
    free(file.p);
    fixture_close(&f);
}

TEST(a_byte_limit_splits_blocks_and_is_never_passed) {
    fixture f;
    kvmem_session s;
    kvmem_session_config cfg = plain_config(16, 1);
    kvmem_recipe r;
    kvmem_error err;
    kvmem_bytes b;
    int i;
    REQUIRE(fixture_open(&f, "llama"));
    REQUIRE_OK(kvmem_recipe_parse(&r, "window budget=12", &err));
    cfg.recipe = &r;
    cfg.max_bytes = 200000;
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &cfg));
    for (i = 0; i < 20; i++) REQUIRE_OK(kvmem_session_feed(&s, f.ids, STEPS, KVMEM_PREFILL, NULL, NULL));
    kvmem_cache_bytes(&s.cache, &b);
    CHECK(b.peak.total <= 200000 && b.tokens == 20 * STEPS);
    kvmem_session_free(&s);
    cfg.recipe = NULL; /* full: the limit is reached, and said */
    cfg.max_bytes = 120000;
    if (kvmem_session_init(&s, &f.m, &cfg) == KVMEM_OK) {
        kvmem_status st = KVMEM_OK;
        for (i = 0; i < 200 && st == KVMEM_OK; i++)
            st = kvmem_session_feed(&s, f.ids, STEPS, KVMEM_PREFILL, NULL, NULL);
        CHECK(st == KVMEM_OVER_BUDGET && s.error.text[0]);
        kvmem_cache_bytes(&s.cache, &b);
        CHECK(b.peak.total <= 120000);
        kvmem_session_clear(&s);
        REQUIRE_OK(kvmem_session_feed(&s, f.ids, 4, KVMEM_PREFILL, NULL, NULL));
    } else {
        CHECK(s.error.text[0] != 0);
    }
    kvmem_session_free(&s);
    fixture_close(&f);
}

TEST(an_estimate_is_what_a_session_uses) {
    fixture f;
    kvmem_session s;
    kvmem_session_config cfg = plain_config(8, 1);
    kvmem_bytes got, said;
    kvmem_error err;
    REQUIRE(fixture_open(&f, "gemma3"));
    REQUIRE_OK(kvmem_session_estimate(&f.m, &cfg, STEPS, 0, &said, &err));
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &cfg));
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, STEPS, KVMEM_PROMPT_END, NULL, NULL));
    kvmem_cache_bytes(&s.cache, &got);
    CHECK(said.live.k == got.live.k && said.live.v == got.live.v && said.tokens == got.tokens);
    kvmem_session_free(&s);
    CHECK(kvmem_session_estimate(NULL, &cfg, 1, 0, &said, &err) == KVMEM_BAD_ARGUMENT && err.text[0]);
    fixture_close(&f);
}

TEST(wrong_arguments_are_named_and_change_nothing) {
    fixture f;
    kvmem_session s;
    kvmem_session_config cfg = plain_config(8, 1);
    int bad[3] = { 1, 2, 50 };
    REQUIRE(fixture_open(&f, "llama"));
    REQUIRE(run(&f.m, &cfg, f.ids, STEPS, f.a));
    REQUIRE_OK(kvmem_session_init(&s, &f.m, &cfg));
    REQUIRE_OK(kvmem_session_feed(&s, NULL, 0, KVMEM_PROMPT_END, NULL, NULL));
    CHECK(s.cache.tokens == 0 && !s.has_logits);
    CHECK(kvmem_session_feed(&s, bad, 3, KVMEM_PREFILL, NULL, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(strstr(s.error.text, "50 at index 2") && s.cache.tokens == 0);
    bad[0] = -1;
    CHECK(kvmem_session_feed(&s, bad, 1, KVMEM_PREFILL, NULL, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_session_feed(&s, f.ids, -1, KVMEM_PREFILL, NULL, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_session_feed(&s, NULL, 1, KVMEM_PREFILL, NULL, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_session_feed(&s, f.ids, 1, (kvmem_phase)7, NULL, NULL) == KVMEM_BAD_ARGUMENT);
    REQUIRE_OK(kvmem_session_feed(&s, f.ids, STEPS, KVMEM_PROMPT_END, NULL, NULL));
    CHECK(!memcmp(s.logits, f.a + (STEPS - 1) * f.t.V, f.row));
    kvmem_session_free(&s);
    cfg.max_block = 65537;
    CHECK(kvmem_session_init(&s, &f.m, &cfg) == KVMEM_BAD_ARGUMENT && strstr(s.error.text, "max_block"));
    kvmem_session_free(&s);
    cfg.max_block = 8;
    cfg.threads = -1;
    CHECK(kvmem_session_init(&s, &f.m, &cfg) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_session_init(&s, NULL, &cfg) == KVMEM_BAD_ARGUMENT);
    kvmem_session_free(&s);
    kvmem_session_free(NULL);
    fixture_close(&f);
}

TEST(failed_allocations_leak_nothing_and_leave_a_usable_session) {
    fixture f;
    size_t k;
    kvmem_status st = KVMEM_NO_MEMORY;
    REQUIRE(fixture_open(&f, "gemma2"));
    REQUIRE((kvmem_model_close(&f.m), 1));
    for (k = 1; k < 400 && st != KVMEM_OK; k++) {
        test_heap heap;
        kvmem_session_config cfg = plain_config(8, 1);
        kvmem_session s;
        memset(&heap, 0, sizeof heap);
        heap.fail_at = k;
        cfg.allocator = test_allocator(&heap);
        memset(&s, 0, sizeof s);
        st = kvmem_model_open(&f.m, f.bytes, f.size, NULL, 0, &cfg.allocator);
        if (st == KVMEM_OK) {
            st = kvmem_session_init(&s, &f.m, &cfg);
            if (st == KVMEM_OK) {
                st = kvmem_session_feed(&s, f.ids, STEPS, KVMEM_PROMPT_END, NULL, NULL);
                if (st != KVMEM_OK) { /* the session goes on where it was */
                    const int at = (int)s.cache.tokens;
                    CHECK(at % 8 == 0);
                    REQUIRE_OK(kvmem_session_feed(&s, f.ids + at, STEPS - at, KVMEM_PROMPT_END, NULL, NULL));
                }
                if (k == 400 || st == KVMEM_OK) memcpy(f.a, s.logits, f.row);
                else memcpy(f.b, s.logits, f.row);
            }
            kvmem_session_free(&s);
        }
        if (st != KVMEM_OK && st != KVMEM_NO_MEMORY) FAIL_AT("status %d at allocation %d", (int)st, (int)k);
        kvmem_model_close(&f.m);
        if (heap.live || heap.wrong) FAIL_AT("%d bytes leaked at allocation %d", (int)heap.live, (int)k);
    }
    CHECK(st == KVMEM_OK && !memcmp(f.a, f.b, f.row));
    fixture_close(&f);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "decoder");
    RUN(every_architecture_agrees_with_the_oracle);
    RUN(optional_parts_agree_with_the_oracle);
    RUN(large_gemmas_scale_by_the_embedding_s_share_of_a_head);
    RUN(rope_scalings_agree_with_the_oracle);
    RUN(stories260K_agrees_with_double_precision);
    RUN(greedy_text_is_llama2c_run_c_s);
    RUN(every_tensor_type_runs_as_its_decoded_values);
    RUN(blocks_of_any_size_give_the_same_bits_on_plain_c);
    RUN(one_thread_and_two_give_the_same_bits);
    RUN(rows_and_the_last_logits_agree);
    RUN(a_callback_that_says_stop_ends_after_its_block);
    RUN(truncate_and_clear_forget);
    RUN(every_preset_is_full_when_its_budget_covers_the_tokens);
    RUN(copies_and_saved_sessions_go_on_bit_for_bit);
    RUN(a_byte_limit_splits_blocks_and_is_never_passed);
    RUN(an_estimate_is_what_a_session_uses);
    RUN(wrong_arguments_are_named_and_change_nothing);
    RUN(failed_allocations_leak_nothing_and_leave_a_usable_session);
    return test_end();
}
