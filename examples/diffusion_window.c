/* diffusion_window.c - shows a masked diffusion model with Elastic-Cache: at each step only a window of masks runs, and
   layers run again when what a watched token looks at has drifted.

   Build  cc -O2 -I. -o window examples/diffusion_window.c -lm
   Run    ./window
   The model is made by hand: its text repeats every PERIOD tokens. In each layer a token looks one period to the left
   and to the right, rather at told tokens than at masks, the more so the higher the layer, and takes what stands there
   as its guess. The first 2 periods are told, the other 10 are masks. Each line is a threshold gamma: steps, rows that
   went through a layer (100 % is everything at every step), layers that ran all rows again, how much of the text came
   out right, and the bytes of the caches. The lower gamma, the higher the layer from which all is run again.
   Explained in kvmem.h, sections api_diffusion and elastic_dllm. */
#define KVMEM_NO_DECODER
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include <stdio.h>

enum { PERIOD = 8, TOKENS = 12 * PERIOD, TOLD = 2 * PERIOD, IDS = 8, MASK = IDS, VOCAB = IDS + 1,
       LAYERS = 4, HEADS = 2, D = TOKENS + 1, E = 2 * VOCAB + 1 };
/* A row: the token (one of VOCAB), the guess (VOCAB sums), is it told? */

static int text(int i) {
    static const int verse[PERIOD] = { 3, 1, 4, 1, 5, 0, 7, 2 };
    return verse[i % PERIOD];
}

static kvmem_status embed(void *user, int n, const int *ids, const int32_t *pos, float *x) {
    int i;
    (void)user;
    (void)pos;
    for (i = 0; i < n; i++, x += E) {
        memset(x, 0, E * sizeof *x);
        x[ids[i]] = 1;
        x[2 * VOCAB] = ids[i] != MASK;
    }
    return KVMEM_OK;
}
/* Queries and keys are places: head 0 looks one period to the left, head 1 to both sides; told tokens draw more. */
static kvmem_status qkv(void *user, int layer, int n, const float *x, const int32_t *pos, float *q, float *k,
                        float *v) {
    int i, h, c;
    (void)user;
    for (i = 0; i < n; i++, x += E)
        for (h = 0; h < HEADS; h++, q += D, k += D, v += D) {
            memset(q, 0, D * sizeof *q);
            memset(k, 0, D * sizeof *k);
            memset(v, 0, D * sizeof *v);
            if (pos[i] >= PERIOD) q[pos[i] - PERIOD] = 9;
            if (h && pos[i] + PERIOD < TOKENS) q[pos[i] + PERIOD] = 9;
            k[pos[i]] = 1;
            q[TOKENS] = 1;
            k[TOKENS] = (float)layer * x[2 * VOCAB]; /* the more so, the higher the layer */
            for (c = 0; c < IDS; c++) v[c] = x[c] + x[VOCAB + c]; /* the token, or what is guessed for it */
        }
    return KVMEM_OK;
}
static kvmem_status rest(void *user, int layer, int n, const float *out, float *x) {
    int i, h, c;
    (void)user;
    (void)layer;
    for (i = 0; i < n; i++, x += E, out += HEADS * D)
        for (c = 0; c < IDS; c++)
            for (h = 0; h < HEADS; h++) x[VOCAB + c] += 0.5f * out[h * D + c];
    return KVMEM_OK;
}
static kvmem_status logits(void *user, int n, const float *x, float *y) {
    int i, c;
    (void)user;
    for (i = 0; i < n; i++, x += E, y += VOCAB)
        for (c = 0; c < VOCAB; c++) y[c] = 6 * x[VOCAB + c];
    return KVMEM_OK;
}
static int play(const char *name, double gamma, int reuse) {
    kvmem_diffusion_config cfg = kvmem_diffusion_config_default();
    kvmem_diffusion d;
    int ids[TOKENS], i, right = 0;
    cfg.model.n_layers = LAYERS;
    cfg.model.n_heads = cfg.model.n_kv_heads = HEADS;
    cfg.model.head_dim = D;
    cfg.model.n_embd = E;
    cfg.model.n_vocab = VOCAB;
    cfg.model.scale = 1;
    cfg.model.embed = embed;
    cfg.model.qkv = qkv;
    cfg.model.rest = rest;
    cfg.model.logits = logits;
    cfg.max_rows = TOKENS;
    cfg.mask = MASK;
    cfg.window = 8;
    cfg.drift = gamma;
    cfg.every_layer = !reuse;
    for (i = 0; i < TOKENS; i++) ids[i] = i < TOLD ? text(i) : MASK;
    if (kvmem_diffusion_init(&d, &cfg) || kvmem_diffusion_start(&d, ids, TOKENS)) {
        printf("%s\n", d.error.text);
        return 1;
    }
    while (d.n_masks)
        if (kvmem_diffusion_step(&d)) { printf("%s\n", d.error.text); return 1; }
    for (i = TOLD; i < TOKENS; i++) right += d.ids[i] == text(i);
    printf("%-12s %3d steps   rows %5.1f %%   layers run again %4d   right %d of %d   %.0f kB\n", name,
           (int)d.count.steps, 100.0 * (double)d.count.rows / ((double)d.count.steps * TOKENS * LAYERS),
           (int)d.count.refreshed - (reuse ? LAYERS : 0), right, TOKENS - TOLD, (double)d.block_size / 1e3);
    kvmem_diffusion_free(&d);
    return 0;
}
int main(void) {
    return play("no reuse", 0, 0) | play("gamma 1.01", 1.01, 1) | play("gamma 0.99", 0.99, 1) |
           play("gamma 0.95", 0.95, 1) | play("gamma 0", 0, 1);
}
