/* Fuzz target: profiles of heads and layers. Parsed or refused with a line and a reason; what is parsed prints to a
   text that parses to the same numbers; nothing leaks. */
#define KVMEM_NO_DECODER
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)1 << 24);
    kvmem_profile p, q;
    const kvmem_status s = kvmem_profile_parse(&p, data, size, &a);
    fuzz_explained(s, &p.error);
    if (s == KVMEM_OK) {
        const size_t n = kvmem_profile_print(&p, NULL, 0);
        char *text = (char *)malloc(n + 1);
        int i;
        if (!text) return 0;
        FUZZ_MUST(kvmem_profile_print(&p, text, n + 1) == n);
        FUZZ_MUST(kvmem_profile_parse(&q, text, n, NULL) == KVMEM_OK);
        FUZZ_MUST(p.n_rows == q.n_rows && p.model_id == q.model_id);
        for (i = 0; i < p.n_rows; i++) {
            const kvmem_profile_row *row = kvmem_profile_find(&q, p.row[i].name);
            const size_t count = (size_t)kvmem__profile_count(&p, p.row[i].per, p.row[i].points);
            size_t k;
            FUZZ_MUST(row && row->per == p.row[i].per && row->points == p.row[i].points);
            for (k = 0; k < count; k++)
                FUZZ_MUST(row->value[k] <= p.row[i].value[k] && row->value[k] >= p.row[i].value[k]);
        }
        kvmem_profile_free(&q);
        free(text);
    }
    kvmem_profile_free(&p);
    FUZZ_MUST(heap.live == 0);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    static const char *const own[] = {
        "kvmem profile 1\nmodel ff\nshape 2 4 2 8\nlayer keysim 1 .5 # a comment\nkv duo .9 .2\n .6 4e-1\n",
        "kvmem profile 1 model 0 shape 1 2 1 4 head retrieval -1.25e-3 7 curve lukv 3 0.1 0.2 1",
        "kvmem profile 1\nmodel 0123456789abcdef\nshape 4096 65536 4096 4096\nkv x 1" };
    const size_t n = i < 3 ? strlen(own[i]) : 0;
    if (!n || n > cap) return 0;
    memcpy(out, own[i], n);
    return n;
}
#endif
