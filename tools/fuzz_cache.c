/* Fuzz target: saved caches. The first byte chooses the recipe of the loading cache and, when odd, that the
   checksum is put right after the change, so that the checks behind it are reached; the rest is the file.
   A file is loaded or refused with a reason and leaves the cache empty; afterwards the cache works. */
#define KVMEM_NO_DECODER
#include "fuzz_saved.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)64 << 20);
    kvmem_cache c;
    uint8_t *file;
    size_t n;
    if (!size) return 0;
    n = size - 1;
    file = (uint8_t *)malloc(n + 1);
    if (!file) return 0;
    memcpy(file, data + 1, n);
    if ((data[0] & 1) && n >= 4) kvmem__put32(file + n - 4, kvmem__crc32(0, file, n - 4));
    FUZZ_MUST(start(&c, data[0] / 2 % N_RECIPES, &a) == KVMEM_OK);
    inspect(file, n);
    load(&c, file, n);
    finish(&c, &heap);
    free(file);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    fuzz_heap heap;
    kvmem_cache c;
    if (i >= 3 * N_RECIPES) return 0;
    seed_cache(&c, &heap, i, 5);
    out[0] = (uint8_t)(i % N_RECIPES * 2 + (i >= N_RECIPES)); /* the first with the checksum as it comes */
    seed_size = 1;
    seed_cap = cap;
    FUZZ_MUST(kvmem_cache_save(&c, keep, out) == KVMEM_OK);
    kvmem_cache_free(&c);
    return seed_size;
}
#endif
