/* custom_score.c - shows how a score of your own takes its place among the built-in ones: a function, a
   table row, a pointer in the recipe. Nothing is registered.

   Build  cc -O2 -I. -o custom examples/custom_score.c -lm
   Run    ./custom
   512 tokens are read, 32 of them marked by values of large norm. Each line is a recipe that may keep 64
   entries, and how many of the marked tokens are still in the cache at the end.
   Explained in kvmem.h, sections api_recipe (kvmem_score_entry, kvmem_view) and api_cache. */
#define KVMEM_NO_DECODER
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include <stdio.h>

enum { D = 16, TOKENS = 512, BLOCK = 64, EVERY = 16 };

/* The score: the norm of an entry's value to the power `p`. View functions give what the row below
   declares in `reads`; v->par holds the parameters in the order of the row's list. */
static kvmem_status value_norm(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g);
    float row[D];
    int t, i;
    for (t = 0; t < n; t++) {
        double sum = 0;
        kvmem_view_values(v, g, t, 1, row);
        for (i = 0; i < D; i++) sum += (double)row[i] * (double)row[i];
        score[t] = (float)(v->par[0] == 1 ? sum : sum * sum);
    }
    return KVMEM_OK;
}
static const kvmem_param value_norm_params[] = {
    { "p", 1, 1, 2, NULL, 1, "1: squared norm, 2: its square" }, { NULL, 0, 0, 0, NULL, 0, NULL } };
static const kvmem_score_entry value_norm_entry = {
    { "valuenorm", "entries whose value is long", "-", value_norm_params, KVMEM_READS_VALUES }, value_norm, NULL };

static double noise(void) { /* uniform in +-1 */
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / 8388608.0 - 1;
}
/* Feed the stream; returns how many marked tokens are left, or -1 with the cache's error. */
static int play(kvmem_cache *c) {
    static float q[BLOCK * D], k[BLOCK * D], v[BLOCK * D], out[BLOCK * D];
    int32_t pos;
    int at, t, i, found = 0;
    for (at = 0; at < TOKENS; at += BLOCK) {
        for (t = 0; t < BLOCK; t++)
            for (i = 0; i < D; i++) {
                q[t * D + i] = (float)noise();
                k[t * D + i] = (float)noise();
                v[t * D + i] = (float)(noise() * ((at + t) % EVERY == 5 ? 3 : 1));
            }
        if (kvmem_cache_append(c, 0, BLOCK, k, v, NULL) || kvmem_cache_attend(c, 0, BLOCK, q, out) ||
            kvmem_cache_commit(c, at + BLOCK < TOKENS ? KVMEM_PREFILL : KVMEM_PROMPT_END)) return -1;
    }
    for (i = 0; i < kvmem_cache_lane_len(c, 0, 0); i++) {
        if (kvmem_cache_read(c, 0, 0, i, 1, NULL, NULL, &pos)) return -1;
        found += pos % EVERY == 5;
    }
    return found;
}
int main(void) {
    static const char *const recipes[] = { "score=random", "score=h2o", "score=knorm", "own" };
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe recipe;
    kvmem_cache cache;
    kvmem_error err;
    char text[512];
    int i, found;
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = D;
    cfg.max_block = BLOCK;
    cfg.recipe = &recipe;
    for (i = 0; i < 4; i++) {
        snprintf(text, sizeof text, "%s budget=64 recent=4 sink=0 when=block", i < 3 ? recipes[i] : "score=random");
        if (kvmem_recipe_parse(&recipe, text, &err)) { fprintf(stderr, "%s\n", err.text); return 1; }
        if (i == 3) {
            recipe.stage[KVMEM_SCORE].entry = &value_norm_entry.e;
            recipe.stage[KVMEM_SCORE].par[0] = 2;
        }
        kvmem_recipe_print(&recipe, text, sizeof text);
        if (kvmem_cache_init(&cache, &cfg) || (found = play(&cache)) < 0) {
            fprintf(stderr, "%s: %s\n", text, cache.error.text);
            kvmem_cache_free(&cache);
            return 1;
        }
        printf("%2d of %d marked tokens kept by  %s\n", found, TOKENS / EVERY, text);
        kvmem_cache_free(&cache);
    }
    return 0;
}
