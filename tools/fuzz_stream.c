/* Fuzz target: caches saved in chunks. The first byte chooses the recipe of the loading cache, the second what
   is done: bit 0 puts the checksums right after the change, so that the checks behind them are reached; bit 1
   loads chunk by chunk. The rest is the file. A file or chunk is loaded or refused with a reason, a refused
   one leaves the cache as it was; afterwards the cache works. */
#define KVMEM_NO_DECODER
#include "fuzz.h"

static const char *const recipes[] = { "full", "h2o budget=9 sink=1 recent=3 page=4 when=block",
    "score=snapkv(window=4) budget=8 recent=4 codec=q8_0 page=8",
    "full codec.k=q4_0 codec.v=f16 page=5" };
enum { N_RECIPES = 4, L = 2, H = 4, G = 2, D = 6 };

static kvmem_status start(kvmem_cache *c, int which, const kvmem_allocator *a) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe recipe = kvmem_recipe_default();
    FUZZ_MUST(kvmem_recipe_parse(&recipe, recipes[which], NULL) == KVMEM_OK);
    cfg.shape.n_layers = L;
    cfg.shape.n_heads = H;
    cfg.shape.n_kv_heads = G;
    cfg.shape.head_dim = D;
    cfg.recipe = &recipe;
    cfg.allocator = *a;
    cfg.max_block = 16;
    cfg.threads = 1;
    cfg.model_id = 77;
    return kvmem_cache_init(c, &cfg);
}
static kvmem_status block(kvmem_cache *c, int n, kvmem_phase phase) {
    float q[16 * H * D], k[16 * G * D], v[16 * G * D], out[16 * H * D];
    int l, i;
    for (i = 0; i < n * H * D; i++) q[i] = (float)(i % 7) - 3;
    for (i = 0; i < n * G * D; i++) { k[i] = (float)(i % 5) - 2; v[i] = (float)(i % 3) - 1; }
    for (l = 0; l < L; l++) {
        KVMEM__TRY(kvmem_cache_append(c, l, n, k, v, NULL));
        KVMEM__TRY(kvmem_cache_attend(c, l, n, q, out));
    }
    return kvmem_cache_commit(c, phase);
}
/* Every checksum made to fit, as far as the index leads. */
static void mend(uint8_t *p, size_t n) {
    const size_t rows = n >= 116 ? (size_t)kvmem__le32(p + n - 4) * KVMEM__STREAM_ROW : 0;
    const size_t at = n >= 116 ? (size_t)kvmem__le64(p + n - 12) : 0;
    size_t i, x, head;
    if (n < 116 || at > n - KVMEM__STREAM_END || rows != n - KVMEM__STREAM_END - at) return;
    kvmem__put32(p + n - 16, kvmem__crc32(0, p + at, rows + 28));
    head = rows ? (size_t)kvmem__le64(p + at) : at;
    if (head >= 4 && head <= at) kvmem__put32(p + head - 4, kvmem__crc32(0, p, head - 4));
    for (i = 0; i < rows; i += KVMEM__STREAM_ROW) {
        size_t part = (size_t)kvmem__le64(p + at + i);
        for (x = 0; x < 5; x++) {
            const size_t size = kvmem__le32(p + at + i + 24 + 4 * x);
            if (part > at || size > at - part) return;
            if (size >= 4) kvmem__put32(p + part + size - 4, kvmem__crc32(0, p + part, size - 4));
            part += size;
        }
    }
}
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
    kvmem_cache_info info;
    kvmem_chunks s;
    kvmem_error err;
    kvmem_status st;
    kvmem_bytes b;
    uint8_t *file;
    size_t n;
    if (size < 2) return 0;
    n = size - 2;
    file = (uint8_t *)malloc(n + 1);
    if (!file) return 0;
    memcpy(file, data + 2, n);
    if (data[1] & 1) mend(file, n);
    FUZZ_MUST(start(&c, data[0] % N_RECIPES, &a) == KVMEM_OK);
    st = kvmem_cache_inspect(file, n, &info, &err);
    fuzz_explained(st, &err);
    if (st == KVMEM_OK) FUZZ_MUST(memchr(info.recipe, 0, sizeof info.recipe) && info.file_bytes <= n);
    st = kvmem_chunks_open(&s, file, n, &err);
    fuzz_explained(st, &err);
    if (data[1] & 2) {
        if (st == KVMEM_OK) one_by_one(&c, &s);
    } else {
        st = kvmem_cache_load(&c, file, n);
        fuzz_explained(st, &c.error);
        if (st != KVMEM_OK) FUZZ_MUST(c.tokens == 0 && kvmem_cache_lane_len(&c, 0, 0) == 0);
    }
    kvmem_cache_bytes(&c, &b);
    FUZZ_MUST(b.live.total == heap.live);
    st = block(&c, 3, KVMEM_PREFILL); /* may be refused, when the loaded position leaves no room */
    fuzz_explained(st, &c.error);
    kvmem_cache_clear(&c);
    FUZZ_MUST(block(&c, 3, KVMEM_PREFILL) == KVMEM_OK && block(&c, 1, KVMEM_DECODE) == KVMEM_OK);
    kvmem_cache_free(&c);
    FUZZ_MUST(heap.live == 0);
    free(file);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t seed_size, seed_cap;
static int keep(void *user, const void *bytes, size_t size) {
    if (seed_size + size > seed_cap) return 1;
    memcpy((uint8_t *)user + seed_size, bytes, size);
    seed_size += size;
    return 0;
}
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    static int ids[64];
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)64 << 20);
    kvmem_level_options o = kvmem_level_options_default();
    kvmem_cache c;
    int n;
    if (i >= 4 * N_RECIPES) return 0;
    FUZZ_MUST(start(&c, i % N_RECIPES, &a) == KVMEM_OK);
    for (n = 0; n < i; n++) FUZZ_MUST(block(&c, 3, n + 1 < i ? KVMEM_PREFILL : KVMEM_PROMPT_END) == KVMEM_OK);
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
