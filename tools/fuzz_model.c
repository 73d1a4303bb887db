/* Fuzz target: model files. The first byte chooses GGUF (even) or llama2.c (odd); the rest is the file.
   A file is opened or refused with a reason; an opened one can be fed; nothing leaks. */
#include "fuzz.h"
#include "../tests/tiny.h"

/* A model that opened is small enough to be run when its rows fit the cap of the counting heap. */
static void feed(const kvmem_model *m, const kvmem_allocator *a) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_session s;
    kvmem_status status;
    int ids[3] = { 1, 0, 2 }, i;
    if (m->weight_bytes > ((size_t)1 << 20) || m->n_layers > 64) return;
    cfg.allocator = *a;
    cfg.n_ctx = 16;
    cfg.max_block = 4;
    cfg.threads = 1;
    status = kvmem_session_init(&s, m, &cfg);
    fuzz_explained(status, &s.error);
    if (status == KVMEM_OK) {
        for (i = 0; i < 3; i++) if (ids[i] >= m->n_vocab) ids[i] = 0;
        status = kvmem_session_feed(&s, ids, 3, KVMEM_PROMPT_END, NULL, NULL);
        fuzz_explained(status, &s.error);
        ids[0] = m->n_vocab;
        FUZZ_MUST(kvmem_session_feed(&s, ids, 1, KVMEM_DECODE, NULL, NULL) != KVMEM_OK && s.error.text[0]);
        ids[0] = 0;
        kvmem_session_feed(&s, ids, 1, KVMEM_DECODE, NULL, NULL);
    }
    kvmem_session_free(&s);
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)16 << 20);
    kvmem_model m;
    kvmem_status s;
    kvmem_chat chat;
    uint8_t *vocab = NULL;
    size_t vocab_size = 0;
    if (!size) return 0;
    if (data[0] & 1) vocab = tiny_llama2c_vocab(&vocab_size);
    s = kvmem_model_open(&m, data + 1, size - 1, vocab, vocab_size, &a);
    fuzz_explained(s, &m.error);
    if (s == KVMEM_OK) {
        if (m.llama2c < 0) kvmem_chat_of_gguf(&m.gguf, &chat, NULL);
        feed(&m, &a);
    }
    kvmem_model_close(&m);
    kvmem_model_close(&m); /* a closed model is zeroed */
    FUZZ_MUST(heap.live == 0);
    free(vocab);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    static const kvmem_type types[] = { KVMEM_F16, KVMEM_Q8_0, KVMEM_Q4_0, KVMEM_Q5_1 };
    uint8_t *file;
    size_t n;
    if (i > 4) return 0;
    file = i < 4 ? tiny_model(types[i], i & 1, &n) : tiny_llama2c(&n);
    if (n >= cap) { fprintf(stderr, "seed %d is too large: %lu\n", i, (unsigned long)n); exit(2); }
    out[0] = i == 4;
    memcpy(out + 1, file, n);
    free(file);
    return n + 1;
}
#endif
