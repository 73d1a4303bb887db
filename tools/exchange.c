/* exchange.c - do caches saved here load on another kind of machine and go on alike?
   usage: exchange save FOLDER     write caches of several recipes, as they are and at levels 1, 2, 3, and what
                                   attention gives when each is loaded and goes on
          exchange load FOLDER     load them, go on with the same tokens, compare; the last line counts
   tools/portability.sh exchange saves here and loads on a big-endian machine under qemu. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#define KVMEM_NO_DECODER
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"

enum { LAYERS = 2, HEADS = 4, GROUPS = 2, D = 32, SEEN = 200, MORE = 24, ROW = LAYERS * HEADS * D };
static const char *const recipes[] = {
    "full codec=f32", "full codec=f16", "h2o budget=64 codec=q8_0", "snapkv budget=25% codec=f16",
    "full codec=kivi(bits=2) page=32", "full codec=turboquant(bits=3)",
    "streamingllm budget=96 codec=octopus(bits=4)" };
enum { N_RECIPES = sizeof recipes / sizeof recipes[0] };

/* Largest difference that is rounding: entries come back as they were, or, from a level to be coded again by a
   recipe that stores fewer bits, on the other side of the edge between two codes. */
static double allowed(int recipe, int level) {
    return level && !strstr(recipes[recipe], "codec=f") ? 2e-2 : 1e-5;
}
/* The same numbers on every machine: no rounding depends on libm. */
static float number(uint64_t i, uint64_t which) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15u + which * 0xD1B54A32D192ED03u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (float)(int32_t)((z >> 40) & 0xffffff) * (1.0f / 8388608.0f) - 1.0f;
}
static int start(kvmem_cache *c, const char *text) {
    static kvmem_recipe r;
    static float inv[D / 2];
    static kvmem_rope rope[LAYERS];
    kvmem_config cfg = kvmem_config_default();
    kvmem_error e;
    int i;
    if (kvmem_recipe_parse(&r, text, &e) != KVMEM_OK) {
        fprintf(stderr, "exchange: %s\n", e.text);
        return 0;
    }
    inv[0] = 1;
    for (i = 1; i < D / 2; i++) inv[i] = inv[i - 1] * 0.75f;
    for (i = 0; i < LAYERS; i++) { rope[i].n_rot = D; rope[i].neox = 0; rope[i].mscale = 1; rope[i].inv_freq = inv; }
    cfg.shape.n_layers = LAYERS;
    cfg.shape.n_heads = HEADS;
    cfg.shape.n_kv_heads = GROUPS;
    cfg.shape.head_dim = D;
    cfg.shape.rope = rope;
    cfg.recipe = &r;
    cfg.threads = 1;
    return kvmem_cache_init(c, &cfg) == KVMEM_OK;
}
/* Tokens [from, to) one at a time; out (to - from, ROW). */
static int feed(kvmem_cache *c, int from, int to, float *out) {
    float k[GROUPS * D], v[GROUPS * D], q[HEADS * D], o[HEADS * D];
    int t, l, i;
    for (t = from; t < to; t++) {
        for (l = 0; l < LAYERS; l++) {
            const uint64_t at = ((uint64_t)t * LAYERS + (uint64_t)l) * (HEADS * D);
            for (i = 0; i < GROUPS * D; i++) { k[i] = number(at + (uint64_t)i, 1); v[i] = number(at + (uint64_t)i, 2); }
            for (i = 0; i < HEADS * D; i++) q[i] = number(at + (uint64_t)i, 3);
            if (kvmem_cache_append(c, l, 1, k, v, NULL) != KVMEM_OK || kvmem_cache_attend(c, l, 1, q, o) != KVMEM_OK)
                return 0;
            if (out) memcpy(out + (size_t)(t - from) * ROW + (size_t)l * HEADS * D, o, sizeof o);
        }
        if (kvmem_cache_commit(c, t == SEEN - 1 ? KVMEM_PROMPT_END : t < SEEN ? KVMEM_PREFILL : KVMEM_DECODE)) return 0;
    }
    return 1;
}
static int to_file(void *user, const void *p, size_t n) { return fwrite(p, 1, n, (FILE *)user) != n; }
static int from_file(const char *path, void **p, size_t *n) {
    FILE *f = fopen(path, "rb");
    long size;
    *p = NULL;
    if (!f) return 0;
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    *p = size > 0 ? malloc((size_t)size) : NULL;
    *n = *p ? fread(*p, 1, (size_t)size, f) : 0;
    fclose(f);
    return *p && *n == (size_t)size;
}
/* Load the file, go on, give what attention gave. */
static int go_on(const char *path, const char *recipe, float *out) {
    kvmem_cache c;
    void *p;
    size_t n;
    const int ok = start(&c, recipe) && from_file(path, &p, &n) && kvmem_cache_load(&c, p, n) == KVMEM_OK &&
                   feed(&c, SEEN, SEEN + MORE, out);
    if (!ok) fprintf(stderr, "exchange: %s: %s\n", path, c.error.text);
    else free(p);
    kvmem_cache_free(&c);
    return ok;
}
int main(int argc, char **argv) {
    static float out[MORE * ROW], want[MORE * ROW];
    const int save = argc == 3 && !strcmp(argv[1], "save");
    int r, level, passed = 0, failed = 0;
    size_t i;
    if (argc != 3 || (!save && strcmp(argv[1], "load"))) {
        fprintf(stderr, "usage: exchange save|load FOLDER\n");
        return 2;
    }
    for (r = 0; r < N_RECIPES; r++)
        for (level = 0; level <= 3; level++) {
            kvmem_level_options o = kvmem_level_options_default();
            char path[1024], numbers[1100];
            double worst = 0, size = 0;
            FILE *f;
            int ok = 1;
            snprintf(path, sizeof path, "%s/recipe%d.level%d", argv[2], r, level);
            snprintf(numbers, sizeof numbers, "%s.out", path);
            o.level = level;
            if (save) {
                kvmem_cache c;
                ok = start(&c, recipes[r]) && feed(&c, 0, SEEN, NULL) && (f = fopen(path, "wb")) != NULL;
                if (ok) {
                    ok = kvmem_cache_save_level(&c, &o, to_file, f) == KVMEM_OK;
                    ok &= !fclose(f);
                }
                if (!ok) fprintf(stderr, "exchange: %s\n", c.error.text);
                kvmem_cache_free(&c);
            }
            ok = ok && go_on(path, recipes[r], out);
            if (save && ok && (f = fopen(numbers, "w")) != NULL) {
                for (i = 0; i < MORE * ROW; i++) fprintf(f, "%.9g\n", (double)out[i]);
                ok = !fclose(f);
            } else if (ok) {
                ok = (f = fopen(numbers, "r")) != NULL;
                for (i = 0; ok && i < MORE * ROW; i++) {
                    ok = fscanf(f, "%f", &want[i]) == 1;
                    size = KVMEM__MAX(size, fabs((double)want[i]));
                    worst = KVMEM__MAX(worst, fabs((double)want[i] - (double)out[i]));
                }
                if (f) fclose(f);
                ok = ok && worst <= allowed(r, level) * size;
            }
            printf("%s %s, %s %d: largest difference %.2g of %.2g\n", ok ? "ok  " : "FAIL", recipes[r],
                   level ? "level" : "as stored, level", level, worst, size);
            if (ok) passed++;
            else failed++;
        }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
