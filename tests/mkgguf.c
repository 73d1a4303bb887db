/* The generator of random models: what it writes is what the library reads. */
#include "test.h"
#define MKGGUF_NO_MAIN
#include "../tools/mkgguf.c"

typedef struct memory_file { unsigned char *p; size_t n, cap; } memory_file;
static int memory_write(void *user, const void *p, size_t n) {
    memory_file *f = (memory_file *)user;
    if (f->n + n > f->cap) {
        const size_t cap = (f->n + n) * 2;
        unsigned char *q = (unsigned char *)realloc(f->p, cap);
        if (!q) return 1;
        f->p = q;
        f->cap = cap;
    }
    memcpy(f->p + f->n, p, n);
    f->n += n;
    return 0;
}

TEST(the_same_options_give_the_same_bytes_and_another_seed_others) {
    memory_file a = { NULL, 0, 0 }, b = { NULL, 0, 0 }, c = { NULL, 0, 0 };
    REQUIRE(mkgguf("--type q4_0", memory_write, &a) == 0);
    REQUIRE(mkgguf("--type q4_0 --seed 1", memory_write, &b) == 0);
    REQUIRE(mkgguf("--type q4_0 --seed 2", memory_write, &c) == 0);
    CHECK(a.n == b.n && !memcmp(a.p, b.p, a.n));
    CHECK(a.n == c.n && memcmp(a.p, c.p, a.n));
    free(a.p); free(b.p); free(c.p);
}

/* One model: opens, has a vocabulary, and three tokens give finite, not constant logits. */
static void model_runs(const char *args) {
    memory_file f = { NULL, 0, 0 };
    kvmem_model m;
    kvmem_session s;
    kvmem_session_config cfg = kvmem_session_config_default();
    const int ids[3] = { 5, 300, 70 };
    int i;
    double lo = 1e30, hi = -1e30;
    memset(&s, 0, sizeof s);
    if (mkgguf(args, memory_write, &f)) { FAIL_AT("mkgguf %s failed", args); free(f.p); return; }
    cfg.threads = 1;
    if (kvmem_model_open(&m, f.p, f.n, NULL, 0, NULL)) FAIL_AT("%s: %s", args, m.error.text);
    else if (m.tokenizer.error.status) FAIL_AT("%s: tokenizer: %s", args, m.tokenizer.error.text);
    else if (kvmem_session_init(&s, &m, &cfg) ||
             kvmem_session_feed(&s, ids, 3, KVMEM_PROMPT_END, NULL, NULL))
        FAIL_AT("%s: %s", args, s.error.text);
    else {
        for (i = 0; i < m.n_vocab; i++) {
            lo = KVMEM__MIN(lo, (double)s.logits[i]);
            hi = KVMEM__MAX(hi, (double)s.logits[i]);
        }
        if (!(hi - lo > 2 && hi - lo < 60)) FAIL_AT("%s: logits from %g to %g", args, lo, hi);
    }
    kvmem_session_free(&s);
    kvmem_model_close(&m);
    free(f.p);
}
TEST(every_architecture_opens_and_decodes) {
    static const char *const arch[] = { "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3" };
    char args[64];
    size_t i;
    for (i = 0; i < sizeof arch / sizeof *arch; i++) {
        snprintf(args, sizeof args, "--arch %s", arch[i]);
        model_runs(args);
    }
}
TEST(every_rope_scaling_and_vocabulary_opens_and_decodes) {
    static const char *const args[] = {
        "--rope-scaling linear --rope-factor 4", "--rope-scaling yarn --rope-factor 4",
        "--rope-scaling llama3", "--arch phi3 --rope-scaling longrope", "--arch phi3 --rot 12",
        "--tied 1", "--kv-heads 4", "--kv-heads 1", "--vocab-kind llama-bpe", "--vocab-kind qwen2",
        "--vocab-kind smollm", "--vocab-kind gpt-2" };
    size_t i;
    for (i = 0; i < sizeof args / sizeof *args; i++) model_runs(args[i]);
}
TEST(every_tensor_type_opens_and_decodes) {
    char args[96];
    const gguf_type *t;
    for (t = gguf_types; t->name; t++) {
        snprintf(args, sizeof args, "--preset small --layers 1 --type %s", t->name);
        model_runs(args);
    }
}
TEST(matrices_have_the_deviation_that_was_asked_for) {
    const gguf_type *t;
    for (t = gguf_types; t->name; t++) {
        static float x[4096];
        static unsigned char coded[4096 * 4];
        double s = 0, s2 = 0;
        int i;
        mkgguf_fill(t, 0.05, 99, 0, 4096, x, coded);
        REQUIRE_OK(kvmem_dequantize((kvmem_type)t->id, x, coded, 4096));
        for (i = 0; i < 4096; i++) { s += (double)x[i]; s2 += (double)x[i] * (double)x[i]; }
        CHECK_NEAR(s / 4096, 0, 0.02);
        if (!(sqrt(s2 / 4096) > 0.04 && sqrt(s2 / 4096) < 0.06))
            FAIL_AT("%s: deviation %g", t->name, sqrt(s2 / 4096));
    }
}
TEST(bad_options_are_named) {
    static const char *const bad[][3] = {
        { "--arch", "mamba", "mamba" },    { "--type", "q9_0", "q9_0" },
        { "--colour", "red", "--colour" }, { "--dim", "x", "--dim" },
        { "--vocab", "10", "vocab" },      { "--type", "q4_k", "q4_k" },
        { "--preset", "gpt-5", "gpt-5" }
    };
    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        memory_file f = { NULL, 0, 0 };
        char why[256];
        const char *argv[2];
        argv[0] = bad[i][0];
        argv[1] = bad[i][1];
        CHECK(mkgguf_argv(2, argv, memory_write, &f, why, sizeof why) != 0);
        if (!strstr(why, bad[i][2])) FAIL_AT("%s %s: message is \"%s\"", argv[0], argv[1], why);
        free(f.p);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "mkgguf");
    RUN(the_same_options_give_the_same_bytes_and_another_seed_others);
    RUN(every_architecture_opens_and_decodes);
    RUN(every_rope_scaling_and_vocabulary_opens_and_decodes);
    RUN(every_tensor_type_opens_and_decodes);
    RUN(matrices_have_the_deviation_that_was_asked_for);
    RUN(bad_options_are_named);
    return test_end();
}
