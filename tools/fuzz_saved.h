/* fuzz_saved.h - what the targets of saved caches share: caches to load into, and what must hold after. */
#ifndef KVMEM_FUZZ_SAVED_H
#define KVMEM_FUZZ_SAVED_H
#include "fuzz.h"

static const char *const recipes[] = { "full", "h2o budget=9 sink=1 recent=3 page=4 when=block",
    "score=snapkv(window=4) budget=8 recent=4 codec=q8_0 page=8",
    "full codec.k=q4_0 codec.v=f16 page=5",
    "full codec.k=kvquant(residual=2) codec.v=kivi(bits=2,axis=token,group=8,residual=3) page=8" };
enum { N_RECIPES = 5, L = 2, H = 4, G = 2, D = 8 };
static const float inv_freq[D / 2] = { 1, 0.1f, 0.01f, 0.001f };

static kvmem_status start(kvmem_cache *c, int which, const kvmem_allocator *a) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe recipe = kvmem_recipe_default();
    kvmem_rope rope[L];
    int l;
    memset(rope, 0, sizeof rope);
    for (l = 0; l < L; l++) { rope[l].n_rot = D; rope[l].mscale = 1; rope[l].inv_freq = inv_freq; }
    FUZZ_MUST(kvmem_recipe_parse(&recipe, recipes[which], NULL) == KVMEM_OK);
    cfg.shape.n_layers = L;
    cfg.shape.n_heads = H;
    cfg.shape.n_kv_heads = G;
    cfg.shape.head_dim = D;
    cfg.shape.rope = rope;
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
/* A file was loaded or refused: bytes add up, the cache works on and gives all back. */
static void finish(kvmem_cache *c, fuzz_heap *heap) {
    kvmem_bytes b;
    kvmem_status s;
    kvmem_cache_bytes(c, &b);
    FUZZ_MUST(b.live.total == heap->live);
    s = block(c, 3, KVMEM_PREFILL); /* may be refused, when the loaded position leaves no room */
    fuzz_explained(s, &c->error);
    kvmem_cache_clear(c);
    FUZZ_MUST(block(c, 3, KVMEM_PREFILL) == KVMEM_OK && block(c, 1, KVMEM_DECODE) == KVMEM_OK);
    kvmem_cache_free(c);
    FUZZ_MUST(heap->live == 0);
}
/* What inspect says of any bytes. */
static void inspect(const uint8_t *file, size_t n) {
    kvmem_cache_info info;
    kvmem_error err;
    const kvmem_status s = kvmem_cache_inspect(file, n, &info, &err);
    fuzz_explained(s, &err);
    if (s == KVMEM_OK) FUZZ_MUST(memchr(info.recipe, 0, sizeof info.recipe) && info.file_bytes <= n);
}
static void load(kvmem_cache *c, const uint8_t *file, size_t n) {
    const kvmem_status s = kvmem_cache_load(c, file, n);
    fuzz_explained(s, &c->error);
    if (s != KVMEM_OK) FUZZ_MUST(c->tokens == 0 && kvmem_cache_lane_len(c, 0, 0) == 0);
}
#ifdef KVMEM_FUZZ_MAIN
static size_t seed_size, seed_cap;
static int keep(void *user, const void *bytes, size_t size) {
    if (seed_size + size > seed_cap) return 1;
    memcpy((uint8_t *)user + seed_size, bytes, size);
    seed_size += size;
    return 0;
}
/* A cache that has read i blocks of so many tokens under recipe i. */
static void seed_cache(kvmem_cache *c, fuzz_heap *heap, int i, int tokens) {
    const kvmem_allocator a = fuzz_allocator(heap, (size_t)64 << 20);
    int n;
    FUZZ_MUST(start(c, i % N_RECIPES, &a) == KVMEM_OK);
    for (n = 0; n < i; n++) FUZZ_MUST(block(c, tokens, n + 1 < i ? KVMEM_PREFILL : KVMEM_PROMPT_END) == KVMEM_OK);
}
#endif
#endif
