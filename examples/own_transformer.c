/* own_transformer.c - shows the memory layer alone under a transformer of your own: append, attend,
   commit; no model file, no tokenizer, no decoder.

   Build  cc -O2 -I. -o own examples/own_transformer.c -lm
   Run    ./own
   Prints, for several recipes, the bytes of keys and values (live), the largest total the cache ever took
   (peak), and how far the outputs of 64 decoded tokens are from those of the full cache.
   Explained in kvmem.h, sections api_cache and api_recipe. */
#define KVMEM_NO_DECODER
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include <math.h>
#include <stdio.h>

/* The toy: L layers that only attend, random weights, 50 words, of which every tenth is one that all
   queries look for (channel 0 marks it, channel 1 asks for it). */
enum { L = 2, H = 4, G = 2, D = 32, WIDTH = H * D, PROMPT = 448, DECODED = 64, BLOCK = 64, VOCAB = 50 };
static float inv_freq[D / 2], embedding[VOCAB][WIDTH];
static float wq[L][WIDTH][H * D], wk[L][WIDTH][G * D], wv[L][WIDTH][G * D];

static double noise(void) { /* uniform in +-1 */
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / 8388608.0 - 1;
}
static void fill(float *x, int n, double scale) {
    int i;
    for (i = 0; i < n; i++) x[i] = (float)(scale * noise());
}
/* y (n, out) = norm(x) (n, WIDTH) * w (WIDTH, out) */
static void project(float *y, const float *x, const float *w, int n, int out) {
    int t, i, j;
    for (t = 0; t < n; t++) {
        float sum = 0, r;
        for (i = 0; i < WIDTH; i++) sum += x[t * WIDTH + i] * x[t * WIDTH + i];
        r = 1 / sqrtf(sum / WIDTH + 1e-6f);
        for (j = 0; j < out; j++) y[t * out + j] = 0;
        for (i = 0; i < WIDTH; i++)
            for (j = 0; j < out; j++) y[t * out + j] += r * x[t * WIDTH + i] * w[i * out + j];
    }
}
/* n tokens through all layers; x (n, WIDTH) is changed in place. This is all a transformer has to do. */
static kvmem_status forward(kvmem_cache *c, float *x, int n, kvmem_phase phase) {
    static float q[BLOCK * H * D], k[BLOCK * G * D], v[BLOCK * G * D], out[BLOCK * H * D];
    kvmem_status status;
    int l, i;
    for (l = 0; l < L; l++) {
        project(q, x, &wq[l][0][0], n, H * D);
        project(k, x, &wk[l][0][0], n, G * D);
        project(v, x, &wv[l][0][0], n, G * D);
        if ((status = kvmem_cache_append(c, l, n, k, v, NULL)) != KVMEM_OK) return status;
        if ((status = kvmem_cache_attend(c, l, n, q, out)) != KVMEM_OK) return status;
        for (i = 0; i < n * WIDTH; i++) x[i] += out[i];
    }
    return kvmem_cache_commit(c, phase);
}
/* Feed the whole stream; the decoded tokens' final states go to result (DECODED, WIDTH). */
static kvmem_status play(kvmem_cache *c, float *result) {
    static float x[BLOCK * WIDTH];
    kvmem_status status;
    int at, t, n, i;
    for (at = 0; at < PROMPT + DECODED; at += n) {
        n = at < PROMPT ? BLOCK : 1;
        for (t = 0; t < n; t++)
            for (i = 0; i < WIDTH; i++) x[t * WIDTH + i] = embedding[(at + t) * (at + t) / 7 % VOCAB][i];
        status = forward(c, x, n, at + n < PROMPT ? KVMEM_PREFILL : at < PROMPT ? KVMEM_PROMPT_END : KVMEM_DECODE);
        if (status != KVMEM_OK) return status;
        if (at >= PROMPT) for (i = 0; i < WIDTH; i++) result[(at - PROMPT) * WIDTH + i] = x[i];
    }
    return KVMEM_OK;
}
int main(void) {
    static const char *const recipes[] = { "full", "full codec=f16", "full codec=q8_0", "full codec=q4_0",
        "streamingllm budget=25%", "h2o budget=25%", "tova budget=25%", "snapkv budget=25%",
        "snapkv budget=12.5% codec=q8_0" };
    static float want[DECODED * WIDTH], got[DECODED * WIDTH];
    kvmem_config cfg = kvmem_config_default();
    kvmem_rope rope[L];
    kvmem_recipe recipe;
    kvmem_cache cache;
    kvmem_bytes b;
    kvmem_error err;
    size_t i, j;
    fill(&wq[0][0][0], (int)(sizeof wq / sizeof(float)), 0.25);
    fill(&wk[0][0][0], (int)(sizeof wk / sizeof(float)), 0.25);
    fill(&wv[0][0][0], (int)(sizeof wv / sizeof(float)), 0.1);
    fill(&embedding[0][0], (int)(sizeof embedding / sizeof(float)), 1);
    for (i = 0; i < VOCAB; i++) {
        embedding[i][0] = i % 10 == 0 ? 8.0f : 0.0f;
        embedding[i][1] = 8;
    }
    for (i = 0; i < L * H; i++) wq[i / H][1][i % H * D + D - 2] = 0.8f;
    for (i = 0; i < L * G; i++) wk[i / G][0][i % G * D + D - 2] = 0.8f;
    cfg.shape.n_layers = L;
    cfg.shape.n_heads = H;
    cfg.shape.n_kv_heads = G;
    cfg.shape.head_dim = D;
    for (i = 0; i < D / 2; i++) inv_freq[i] = powf(10000, -2.0f * (float)i / D);
    for (i = 0; i < L; i++) {
        rope[i].n_rot = D;
        rope[i].neox = 0;
        rope[i].mscale = 1;
        rope[i].inv_freq = inv_freq;
    }
    cfg.shape.rope = rope; /* the cache rotates; NULL if your rows come rotated */
    cfg.max_block = BLOCK;
    cfg.recipe = &recipe;
    printf("%-32s %10s %10s %8s\n", "recipe", "live K+V", "peak", "error");
    for (i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        double diff = 0, norm = 0;
        recipe = kvmem_recipe_default();
        if (kvmem_recipe_parse(&recipe, recipes[i], &err)) { fprintf(stderr, "%s\n", err.text); return 1; }
        if (kvmem_cache_init(&cache, &cfg) || play(&cache, i ? got : want)) {
            fprintf(stderr, "%s: %s\n", recipes[i], cache.error.text);
            kvmem_cache_free(&cache);
            return 1;
        }
        for (j = 0; i && j < DECODED * WIDTH; j++) {
            diff += (double)((got[j] - want[j]) * (got[j] - want[j]));
            norm += (double)(want[j] * want[j]);
        }
        kvmem_cache_bytes(&cache, &b);
        printf("%-32s %10lu %10lu %7.2f%%\n", recipes[i], (unsigned long)(b.live.k + b.live.v),
               (unsigned long)b.peak.total, i ? 100 * sqrt(diff / norm) : 0.0);
        kvmem_cache_free(&cache);
    }
    return 0;
}
