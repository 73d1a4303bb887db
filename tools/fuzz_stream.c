/* Fuzz target: caches saved in chunks. The first byte chooses the recipe of the loading cache, the second what
   is done: bit 0 puts the checksums right after the change, so that the checks behind them are reached; bit 1
   loads chunk by chunk. The rest is the file. A file or chunk is loaded or refused with a reason, a refused
   one leaves the cache as it was; afterwards the cache works. */
#define KVMEM_NO_DECODER
#include "fuzz_saved.h"
#include "mend.h"

static void one_by_one(kvmem_cache *c, const kvmem_chunks *s) {
    kvmem_error err;
    int i, ids[64];
    size_t n;
    for (i = 0; i < s->n_chunks; i++) {
        const int32_t next = c->next_pos;
        const int had = kvmem_cache_lane_len(c, 1, 1), level = s->levels & 1 ? 1 : s->levels & 2 ? 2 : 3;
        kvmem_status st = kvmem_chunks_text(s, i, ids, 64, &n, &err);
        fuzz_explained(st, &err);
        st = kvmem_cache_load_chunk(c, s, i, level);
        fuzz_explained(st, &c->error);
        if (st != KVMEM_OK) FUZZ_MUST(c->next_pos == next && kvmem_cache_lane_len(c, 1, 1) == had);
    }
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)64 << 20);
    kvmem_cache c;
    kvmem_chunks s;
    kvmem_error err;
    kvmem_status st;
    uint8_t *file;
    size_t n;
    if (size < 2) return 0;
    n = size - 2;
    file = (uint8_t *)malloc(n + 1);
    if (!file) return 0;
    memcpy(file, data + 2, n);
    if (data[1] & 1) mend(file, n);
    FUZZ_MUST(start(&c, data[0] % N_RECIPES, &a) == KVMEM_OK);
    inspect(file, n);
    st = kvmem_chunks_open(&s, file, n, &err);
    fuzz_explained(st, &err);
    if (!(data[1] & 2)) load(&c, file, n);
    else if (st == KVMEM_OK) one_by_one(&c, &s);
    finish(&c, &heap);
    free(file);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    static int ids[64];
    fuzz_heap heap;
    kvmem_level_options o = kvmem_level_options_default();
    kvmem_cache c;
    if (i >= 4 * N_RECIPES) return 0;
    seed_cache(&c, &heap, i, 3);
    out[0] = (uint8_t)(i % N_RECIPES);
    out[1] = (uint8_t)(i >= N_RECIPES ? 1 + 2 * (i % 3 == 0) : 0); /* the first with the checksums as they come */
    seed_size = 2;
    seed_cap = cap;
    o.level = 1 + i % 3;
    o.all = i == 3;
    o.group = i % 2 ? 4 : 1;
    o.models = i % 3;
    o.chunk = 4 + i;
    o.ids = i % 2 ? ids : NULL;
    o.n_ids = i % 2 ? 64 : 0;
    FUZZ_MUST(kvmem_cache_save_level(&c, &o, keep, out) == KVMEM_OK);
    kvmem_cache_free(&c);
    return seed_size;
}
#endif
