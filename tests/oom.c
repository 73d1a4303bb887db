/* Failing the k-th allocation, for every k, in a short session and in the memory layer alone: the call says
   KVMEM_NO_MEMORY, nothing leaks, sizes of releases are right, and the objects work on afterwards. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "tiny.h"
#include "profiled.h"

typedef struct saved { uint8_t p[1 << 18]; size_t n; } saved;
static saved file;
static int keep(void *user, const void *bytes, size_t size) {
    saved *s = (saved *)user;
    if (s->n + size > sizeof s->p) return 1;
    memcpy(s->p + s->n, bytes, size);
    s->n += size;
    return 0;
}

/* Open, feed, sample, copy, save, load, recode, truncate, go on. Stops at the first failure. */
static kvmem_status session_steps(kvmem_model *m, kvmem_session *s, kvmem_session *copy, kvmem_sampler *pick,
                                  const uint8_t *gguf, size_t size, const uint8_t *vocab, size_t vocab_size,
                                  const char *text, const kvmem_allocator *a) {
    static const char prompt[] = "he in the her";
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error err;
    int ids[64], i;
    size_t n = 0;
    cfg.recipe = &r;
    cfg.allocator = *a;
    cfg.max_block = 4;
    cfg.threads = 1;
    cfg.n_ctx = 64;
    KVMEM__TRY(kvmem_recipe_parse(&r, text, &err));
    KVMEM__TRY(kvmem_model_open(m, gguf, size, vocab, vocab_size, a));
    if (m->tokenizer.kind == KVMEM_VOCAB_NONE) return m->tokenizer.error.status;
    KVMEM__TRY(kvmem_session_init(s, m, &cfg));
    KVMEM__TRY(kvmem_tokenize(&m->tokenizer, prompt, strlen(prompt), KVMEM_ADD_SPECIAL, ids, 64, &n, &err));
    KVMEM__TRY(kvmem_session_feed(s, ids, (int)n, KVMEM_PROMPT_END, NULL, NULL));
    KVMEM__TRY(kvmem_sampler_init(pick, NULL, m->n_vocab, a));
    for (i = 0; i < 4; i++) {
        KVMEM__TRY(kvmem_sample(pick, s->logits, ids));
        KVMEM__TRY(kvmem_session_feed(s, ids, 1, KVMEM_DECODE, NULL, NULL));
    }
    KVMEM__TRY(kvmem_session_copy(copy, s));
    KVMEM__TRY(kvmem_session_feed(copy, ids, 1, KVMEM_DECODE, NULL, NULL));
    file.n = 0;
    KVMEM__TRY(kvmem_session_save(s, keep, &file));
    KVMEM__TRY(kvmem_session_feed(s, ids, 1, KVMEM_DECODE, NULL, NULL));
    KVMEM__TRY(kvmem_session_load(s, file.p, file.n));
    KVMEM__TRY(kvmem_cache_recode(&s->cache, "f16", "q8_0"));
    KVMEM__TRY(kvmem_session_truncate(s, 5));
    return kvmem_session_feed(s, ids, 1, KVMEM_DECODE, NULL, NULL);
}
static void session_with(const char *text, int llama2c) {
    size_t size = 0, vocab_size = 0, k;
    uint8_t *gguf = llama2c ? tiny_llama2c(&size) : tiny_model(KVMEM_Q8_0, 0, &size);
    uint8_t *vocab = llama2c ? tiny_llama2c_vocab(&vocab_size) : NULL;
    kvmem_status status = KVMEM_NO_MEMORY;
    for (k = 1; status != KVMEM_OK && k < 2000; k++) {
        kvmem_model m;
        kvmem_session s, copy;
        kvmem_sampler pick;
        test_heap h;
        kvmem_allocator a;
        memset(&m, 0, sizeof m);
        memset(&s, 0, sizeof s);
        memset(&copy, 0, sizeof copy);
        memset(&pick, 0, sizeof pick);
        memset(&h, 0, sizeof h);
        a = test_allocator(&h);
        h.fail_at = k;
        status = session_steps(&m, &s, &copy, &pick, gguf, size, vocab, vocab_size, text, &a);
        if (status != KVMEM_OK && status != KVMEM_NO_MEMORY) {
            FAIL_AT("allocation %d: %s: %s %s", (int)k, kvmem_status_string(status), m.error.text, s.error.text);
            k = 2000;
        }
        if (status == KVMEM_NO_MEMORY && s.logits) { /* the heap works again: so does the session */
            const int id = 1;
            kvmem_session_clear(&s);
            CHECK_OK(kvmem_session_feed(&s, &id, 1, KVMEM_PROMPT_END, NULL, NULL));
        }
        kvmem_sampler_free(&pick);
        kvmem_session_free(&copy);
        kvmem_session_free(&s);
        kvmem_model_close(&m);
        if (h.live || h.wrong) {
            FAIL_AT("allocation %d: %d bytes left, %d wrong sizes", (int)k, (int)h.live, h.wrong);
            break;
        }
    }
    CHECK(status == KVMEM_OK && k > 10);
    free(gguf);
    free(vocab);
}
TEST(session_survives_every_failed_allocation) {
    session_with("h2o budget=9 sink=1 recent=3 page=4 codec=q8_0", 0);
}
TEST(session_with_query_window_survives_every_failed_allocation) {
    session_with("score=snapkv(window=4) budget=8 recent=4 page=4 when=prompt", 0);
}
TEST(session_of_llama2c_file_survives_every_failed_allocation) { session_with("full", 1); }

enum { L = 2, H = 4, G = 2, D = 8 };
static kvmem_status cache_block(kvmem_cache *c, int n, kvmem_phase phase);
static kvmem_status cache_probe(kvmem_cache *c) {
    kvmem_probe o = { 1, 1, 2, 3, 20, 0, 0 };
    kvmem_cache p;
    kvmem_status st;
    KVMEM__TRY(kvmem_cache_probe(&p, c, &o));
    st = cache_block(&p, 3, KVMEM_DECODE);
    kvmem_cache_free(&p);
    KVMEM__TRY(st);
    return kvmem_cache_reduce(c);
}
static kvmem_status cache_block(kvmem_cache *c, int n, kvmem_phase phase) {
    static float q[16 * H * D], k[16 * G * D], v[16 * G * D], out[16 * H * D];
    int l, i;
    for (i = 0; i < 16 * H * D; i++) q[i] = (float)(i % 7) - 3;
    for (i = 0; i < 16 * G * D; i++) { k[i] = (float)(i % 5) - 2; v[i] = (float)(i % 11) - 5; }
    for (l = 0; l < L; l++) {
        KVMEM__TRY(kvmem_cache_append(c, l, n, k, v, NULL));
        KVMEM__TRY(kvmem_cache_hidden(c, l, n, q, H * D));
        KVMEM__TRY(kvmem_cache_attend(c, l, n, q, out));
    }
    KVMEM__TRY(kvmem_cache_surprise(c, n, v + 5));
    KVMEM__TRY(kvmem_cache_commit(c, phase));
    return c->awaits ? cache_probe(c) : KVMEM_OK;
}
static kvmem_status output(void *user, int layer, int h, int n, const float *x, float *l1, float *l2) {
    int i;
    (void)user;
    for (i = 0; i < n; i++) {
        if (l1) l1[i] = (float)(layer + h) + fabsf(x[i * D]);
        if (l2) l2[i] = 1;
    }
    return KVMEM_OK;
}
static kvmem_status cache_steps(kvmem_cache *c, kvmem_cache *copy, const kvmem_recipe *r, const kvmem_allocator *a) {
    static const float inv_freq[D / 2] = { 1, 0.1f, 0.01f, 0.001f };
    kvmem_config cfg = kvmem_config_default();
    kvmem_rope rope[L];
    int i;
    for (i = 0; i < L; i++) {
        rope[i].n_rot = D;
        rope[i].neox = 0;
        rope[i].mscale = 1;
        rope[i].inv_freq = inv_freq;
    }
    cfg.shape.rope = rope;
    cfg.shape.n_layers = L;
    cfg.shape.n_heads = H;
    cfg.shape.n_kv_heads = G;
    cfg.shape.head_dim = D;
    cfg.recipe = r;
    cfg.allocator = *a;
    cfg.max_block = 16;
    cfg.threads = 1;
    KVMEM__TRY(kvmem_cache_init(c, &cfg));
    kvmem_cache_output(c, output, NULL);
    for (i = 0; i < 3; i++) KVMEM__TRY(cache_block(c, 16, i < 2 ? KVMEM_PREFILL : KVMEM_PROMPT_END));
    for (i = 0; i < 4; i++) KVMEM__TRY(cache_block(c, 1, KVMEM_DECODE));
    KVMEM__TRY(kvmem_cache_copy(copy, c));
    KVMEM__TRY(cache_block(copy, 1, KVMEM_DECODE));
    file.n = 0;
    KVMEM__TRY(kvmem_cache_save(c, keep, &file));
    KVMEM__TRY(cache_block(c, 1, KVMEM_DECODE));
    KVMEM__TRY(kvmem_cache_load(c, file.p, file.n));
    KVMEM__TRY(kvmem_cache_recode(c, "bf16", "q4_0"));
    KVMEM__TRY(kvmem_cache_truncate(c, 20));
    return cache_block(c, 2, KVMEM_PREFILL);
}
TEST(cache_of_every_preset_survives_every_failed_allocation) {
    profiled f;
    int p;
    profiled_make(&f, L, H, G, D);
    for (p = 0; kvmem_preset_at(p); p++) {
        const char *const word = kvmem_preset_at(p)->word;
        kvmem_recipe r = kvmem_recipe_default();
        kvmem_status status = KVMEM_NO_MEMORY;
        kvmem_error err;
        char text[128];
        size_t k;
        if (strstr(kvmem_preset_at(p)->text, "recompute")) continue; /* needs a session: tests/direct.c */
        if (strstr(kvmem_preset_at(p)->text, "codec.v=key")) continue; /* its V is K: tests/transform.c */
        snprintf(text, sizeof text, strcmp(word, "full") ? "%s budget=40 sink=2 recent=4 page=8%s" : "%s page=8", word,
                 strcmp(word, "zipcache") ? "" : " score=zipcache(window=16)");
        if (kvmem_recipe_parse(&r, text, &err) != KVMEM_OK) { FAIL_AT("%s: %s", text, err.text); continue; }
        profiled_give(&r, &f);
        for (k = 1; status != KVMEM_OK && k < 3000; k++) {
            kvmem_cache c, copy;
            test_heap h;
            kvmem_allocator a;
            memset(&c, 0, sizeof c);
            memset(&copy, 0, sizeof copy);
            memset(&h, 0, sizeof h);
            a = test_allocator(&h);
            h.fail_at = k;
            status = cache_steps(&c, &copy, &r, &a);
            if (status != KVMEM_OK && status != KVMEM_NO_MEMORY) {
                FAIL_AT("%s, allocation %d: %s: %s", text, (int)k, kvmem_status_string(status), c.error.text);
                k = 3000;
            }
            if (status == KVMEM_NO_MEMORY && c.lane) {
                kvmem_cache_clear(&c);
                CHECK_OK(cache_block(&c, 2, KVMEM_PREFILL));
            }
            kvmem_cache_free(&copy);
            kvmem_cache_free(&c);
            if (h.live || h.wrong) { FAIL_AT("%s, allocation %d: %d bytes left", text, (int)k, (int)h.live); break; }
        }
        CHECK(status == KVMEM_OK && k > 10);
    }
    profiled_free(&f);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "oom");
    RUN(session_survives_every_failed_allocation);
    RUN(session_with_query_window_survives_every_failed_allocation);
    RUN(session_of_llama2c_file_survives_every_failed_allocation);
    RUN(cache_of_every_preset_survives_every_failed_allocation);
    return test_end();
}
