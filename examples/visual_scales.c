/* visual_scales.c - shows next-scale generation, in which an image grows from 1 x 1 to 16 x 16 tokens: every scale is
   marked and appended as one block, its tokens see each other, and HACK keeps of each head what its kind needs.

   Build  cc -O2 -I. -o scales examples/visual_scales.c -lm
   Run    ./scales
   One layer with four heads that stand for a drawing model: two look at the same few tokens from everywhere
   (contextual), two at their own place in the scale before and in this one (structural). First a calibration run
   measures how much the rows of each head differ down a column, then images are drawn with a part of the cache.
   The error is that of the last scale's attention output against a full cache, relative.
   Explained in kvmem.h, sections api_cache (kvmem_cache_mark), score_hack and budget_hack. */
#define KVMEM_NO_DECODER
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include <stdio.h>

enum { H = 4, D = 32, SCALES = 6, LAST = 256, TOKENS = 1 + 4 + 16 + 36 + 100 + LAST };
static const int side[SCALES] = { 1, 2, 4, 6, 10, 16 };

static double noise(void) { /* uniform in +-1 */
    static unsigned state = 7;
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / 8388608.0 - 1;
}
/* Place (x, y) of a side x side grid as 16 + 16 channels; near places have similar rows. */
static void place(float *row, int at, int n, double gain) {
    const double x = (at % n + 0.5) / n, y = (at / n + 0.5) / n;
    int i;
    for (i = 0; i < 16; i++) {
        row[i] = (float)(gain * exp(-60 * (x - i / 15.0) * (x - i / 15.0)));
        row[16 + i] = (float)(gain * exp(-60 * (y - i / 15.0) * (y - i / 15.0)));
    }
}
/* One scale: q, k, v (n * n, H, D). */
static void draw(int n, float *q, float *k, float *v) {
    int t, h, i;
    for (t = 0; t < n * n; t++)
        for (h = 0; h < H; h++) {
            const size_t at = (size_t)(t * H + h) * D;
            for (i = 0; i < D; i++) {
                v[at + (size_t)i] = (float)noise();
                k[at + (size_t)i] = (float)(0.3 * noise());
                q[at + (size_t)i] = (float)(0.3 * noise());
            }
            if (h < 2) { /* every query wants what few keys have */
                q[at] += 7;
                k[at] += (t * 7 + n) % 23 == 0 ? 6.0f : 0.0f;
            } else {
                place(q + at, t, n, 4);
                place(k + at, t, n, 4);
            }
        }
}
/* All scales through two caches; the relative error of the last scale's output, or -1. */
static double play(kvmem_cache *c, kvmem_cache *full) {
    static float q[LAST * H * D], k[LAST * H * D], v[LAST * H * D], a[LAST * H * D], b[LAST * H * D];
    double off = 0, all = 0;
    int s, i;
    for (s = 0; s < SCALES; s++) {
        const int n = side[s] * side[s];
        draw(side[s], q, k, v);
        if (kvmem_cache_mark(c, KVMEM_MARK_SCALE) || kvmem_cache_append(c, 0, n, k, v, NULL) ||
            kvmem_cache_attend(c, 0, n, q, a) || kvmem_cache_commit(c, KVMEM_PREFILL) ||
            kvmem_cache_mark(full, KVMEM_MARK_SCALE) || kvmem_cache_append(full, 0, n, k, v, NULL) ||
            kvmem_cache_attend(full, 0, n, q, b) || kvmem_cache_commit(full, KVMEM_PREFILL)) return -1;
        for (i = 0; s == SCALES - 1 && i < n * H * D; i++) {
            off += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
            all += (double)b[i] * (double)b[i];
        }
    }
    return off / all;
}
/* One recipe; types NULL: none are given. v (H) gets the variances if the recipe measures them. */
static int show(const char *name, const char *text, const unsigned char *types, float *v) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe recipe, all = kvmem_recipe_default();
    kvmem_cache c, full;
    double error = -1;
    int h;
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = cfg.shape.n_kv_heads = H;
    cfg.shape.head_dim = D;
    cfg.recipe = &all;
    if (kvmem_recipe_parse(&recipe, text, NULL) || kvmem_cache_init(&full, &cfg)) return 1;
    cfg.recipe = &recipe;
    if (kvmem_cache_init(&c, &cfg) || (types && kvmem_hack_set_types(&c, types))) printf("%s\n", c.error.text);
    else if ((error = play(&c, &full)) < 0) printf("%s\n", c.error.text);
    if (v && kvmem_hack_variance(&c, v)) error = -1;
    printf("%-28s error %8.5f   kept", name, error);
    for (h = 0; h < H; h++) printf(" %d", kvmem_cache_lane_len(&c, 0, h));
    printf(" of %d\n", TOKENS);
    kvmem_cache_free(&c);
    kvmem_cache_free(&full);
    return error < 0;
}

int main(void) {
    float v[H];
    unsigned char types[H], swapped[H];
    int h, bad;
    bad = show("calibration, all kept", "hack budget=all", NULL, v);
    printf("contextual heads: %d; variances", kvmem_hack_types(v, H, -1, types));
    for (h = 0; h < H; h++) {
        printf(" %.1e%s", (double)v[h], types[h] ? " (structural)" : "");
        swapped[h] = !types[h];
    }
    printf("\n");
    bad |= show("hack, half", "hack budget=hack(50%)", types, NULL);
    bad |= show("hack, half, types swapped", "hack budget=hack(50%)", swapped, NULL);
    bad |= show("h2o, half", "h2o budget=50% when=block recent=0", NULL, NULL);
    bad |= show("newest half", "window budget=50% sink=5", NULL, NULL);
    return bad;
}
