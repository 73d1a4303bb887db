/* world.h - a stream of random rows, a cache's shape and recipe, and attention over it in double precision.
   For tests of the memory layer; include test.h first. */
#ifndef KVMEM_WORLD_H
#define KVMEM_WORLD_H
#define MAXT 700
typedef struct world {
    kvmem_config cfg;
    kvmem_recipe recipe;
    kvmem_rope rope[4];
    float inv[32], bias[64];
    int window[4], L, H, G, d, T;
    float *k, *v, *q; /* (T, L, G|H, d) before RoPE */
} world;

static KVMEM__UNUSED float *row_k(const world *w, const float *x, int t, int l) {
    return (float *)(void *)(uintptr_t)(const void *)(x + ((size_t)t * (size_t)w->L + (size_t)l) *
                                                              (size_t)(w->G * w->d));
}
static KVMEM__UNUSED float *row_q(const world *w, int t, int l) {
    return w->q + ((size_t)t * (size_t)w->L + (size_t)l) * (size_t)(w->H * w->d);
}

static KVMEM__UNUSED int world_init(world *w, int L, int H, int G, int d, int T, const char *recipe) {
    kvmem_error e;
    int i;
    size_t nk = (size_t)T * (size_t)(L * G * d), nq = (size_t)T * (size_t)(L * H * d), x;
    memset(w, 0, sizeof *w);
    w->L = L; w->H = H; w->G = G; w->d = d; w->T = T;
    w->k = (float *)malloc(nk * 4); w->v = (float *)malloc(nk * 4); w->q = (float *)malloc(nq * 4);
    for (x = 0; x < nk; x++) { w->k[x] = (float)test_normal(); w->v[x] = (float)test_normal(); }
    for (x = 0; x < nq; x++) w->q[x] = (float)test_normal();
    if (kvmem_recipe_parse(&w->recipe, recipe, &e) != KVMEM_OK) { printf("  recipe: %s\n", e.text); return 0; }
    w->cfg = kvmem_config_default();
    w->cfg.shape.n_layers = L; w->cfg.shape.n_heads = H; w->cfg.shape.n_kv_heads = G; w->cfg.shape.head_dim = d;
    w->cfg.recipe = &w->recipe;
    w->cfg.backend = kvmem_backend_cpu("plain");
    w->cfg.threads = 1;
    for (i = 0; i < d / 2; i++) w->inv[i] = (float)pow(100.0, -2.0 * i / d);
    for (i = 0; i < L; i++) { w->rope[i].n_rot = d; w->rope[i].mscale = 1; w->rope[i].inv_freq = w->inv; }
    return 1;
}
static KVMEM__UNUSED void world_free(world *w) { free(w->k); free(w->v); free(w->q); }

/* A made-up output projection: head h of layer l makes (1 + l + h) x of a value x. The hidden states of the stream
   are its queries. */
static KVMEM__UNUSED kvmem_status world_output(void *user, int l, int h, int n, const float *x, float *l1, float *l2) {
    const world *w = (const world *)user;
    int i, c;
    for (i = 0; i < n; i++) {
        float a = 0, b = 0;
        for (c = 0; c < w->d; c++) {
            a += fabsf(x[i * w->d + c]);
            b += x[i * w->d + c] * x[i * w->d + c];
        }
        if (l1) l1[i] = (float)(1 + l + h) * a;
        if (l2) l2[i] = (float)(1 + l + h) * sqrtf(b);
    }
    return KVMEM_OK;
}

/* Tokens [from, to) of the stream once more, as probe tokens on top of a cache that waits for them. */
static KVMEM__UNUSED kvmem_status world_probe(const world *w, kvmem_cache *c, const kvmem_probe *o, int from, int to) {
    const size_t kd = (size_t)(w->G * w->d), qd = (size_t)(w->H * w->d), n = (size_t)(to - from);
    float *k = (float *)malloc(n * kd * 8), *q = (float *)malloc(n * qd * 8), *v = k + n * kd, *out = q + n * qd;
    kvmem_cache p;
    kvmem_status st = kvmem_cache_probe(&p, c, o);
    size_t i;
    int l;
    for (l = 0; st == KVMEM_OK && l < w->L; l++) {
        for (i = 0; i < n; i++) {
            memcpy(k + i * kd, row_k(w, w->k, from + (int)i, l), kd * 4);
            memcpy(v + i * kd, row_k(w, w->v, from + (int)i, l), kd * 4);
            memcpy(q + i * qd, row_q(w, from + (int)i, l), qd * 4);
        }
        st = kvmem_cache_append(&p, l, (int)n, k, kvmem__shares(&c->recipe.stage[KVMEM_CODEC_V]) ? k : v, NULL);
        if (st == KVMEM_OK) st = kvmem_cache_hidden(&p, l, (int)n, q, w->H * w->d);
        if (st == KVMEM_OK) st = kvmem_cache_attend(&p, l, (int)n, q, out);
    }
    if (st == KVMEM_OK) st = kvmem_cache_commit(&p, KVMEM_DECODE);
    if (st != KVMEM_OK && p.arena) c->error = p.error;
    kvmem_cache_free(&p);
    free(k); free(q);
    return st;
}

/* Every 23rd token is one that nobody expected. */
static KVMEM__UNUSED float world_surprise(int t) { return t ? (float)(t % 5) * 0.25f + (t % 23 ? 0.0f : 9.0f) : -1.0f; }
/* Feed tokens [from, to) in blocks; out (to - from, L, H, d) may be NULL. */
static int quiet;
static KVMEM__UNUSED kvmem_status feed(world *w, kvmem_cache *c, int from, int to, int block, kvmem_phase end,
                                       float *out) {
    float *k = (float *)malloc((size_t)(block * w->G * w->d) * 4),
          *v = (float *)malloc((size_t)(block * w->G * w->d) * 4);
    float *q = (float *)malloc((size_t)(block * w->H * w->d) * 4),
          *o = (float *)malloc((size_t)(block * w->H * w->d) * 4);
    const size_t kd = (size_t)(w->G * w->d), qd = (size_t)(w->H * w->d);
    kvmem_status st = KVMEM_OK;
    int t, l, i, n;
    if (!c->output) kvmem_cache_output(c, world_output, w);
    for (t = from; st == KVMEM_OK && t < to; t += n) {
        n = KVMEM__MIN(block, to - t);
        n = KVMEM__MIN(n, kvmem_cache_room(c));
        if (n < 1) { st = KVMEM_OVER_BUDGET; break; }
        for (l = 0; st == KVMEM_OK && l < w->L; l++) {
            for (i = 0; i < n; i++) {
                memcpy(k + (size_t)i * kd, row_k(w, w->k, t + i, l), kd * 4);
                memcpy(v + (size_t)i * kd, row_k(w, w->v, t + i, l), kd * 4);
                memcpy(q + (size_t)i * qd, row_q(w, t + i, l), qd * 4);
            }
            st = kvmem_cache_append(c, l, n, k, v, NULL);
            if (st == KVMEM_OK) st = kvmem_cache_hidden(c, l, n, q, w->H * w->d);
            if (st == KVMEM_OK) st = kvmem_cache_attend(c, l, n, q, o);
            for (i = 0; out && i < n; i++)
                memcpy(out + ((size_t)(t - from + i) * (size_t)w->L + (size_t)l) * qd, o + (size_t)i * qd, qd * 4);
        }
        for (i = 0; i < n; i++) k[i] = world_surprise(t + i);
        if (st == KVMEM_OK) st = kvmem_cache_surprise(c, n, k);
        if (st == KVMEM_OK)
            st = kvmem_cache_commit(
                c, t + n < to ? (end == KVMEM_DECODE ? KVMEM_DECODE : KVMEM_PREFILL) : end);
        if (st == KVMEM_OK && c->awaits) {
            st = world_probe(w, c, NULL, 0, KVMEM__MIN(6, t + n));
            if (st == KVMEM_OK) st = kvmem_cache_reduce(c);
        }
    }
    if (st != KVMEM_OK && !quiet) printf("  feed: %s\n", c->error.text);
    free(k); free(v); free(q); free(o);
    return st;
}
static KVMEM__UNUSED void turn(double *x, int d, const kvmem_rope *r, double pos) {
    int i;
    for (i = 0; i < r->n_rot / 2; i++) {
        const int a = r->neox ? i : 2 * i, b = r->neox ? i + r->n_rot / 2 : 2 * i + 1;
        const double co = cos(pos * (double)r->inv_freq[i]) * (double)r->mscale,
                     si = sin(pos * (double)r->inv_freq[i]) * (double)r->mscale;
        const double u = x[a], v = x[b];
        x[a] = u * co - v * si; x[b] = u * si + v * co;
    }
    (void)d;
}
/* Attention of token t, layer l, head h over the tokens set[0..n), read at places (or NULL: own). */
static KVMEM__UNUSED void oracle(const world *w, int t, int l, int h, const int *set, int n, const int *place,
                   int qplace, double *out) {
    const int d = w->d, g = h / (w->H / w->G);
    const kvmem_shape *s = &w->cfg.shape;
    double q[256], k[256], m = -1e300, sum = 0, *z = (double *)malloc((size_t)(n + 1) * sizeof *z);
    int i, c;
    for (c = 0; c < d; c++) { q[c] = (double)row_q(w, t, l)[h * d + c]; out[c] = 0; }
    if (s->rope) turn(q, d, &s->rope[l], qplace);
    for (i = 0; i < n; i++) {
        z[i] = 0;
        for (c = 0; c < d; c++) k[c] = (double)row_k(w, w->k, set[i], l)[g * d + c];
        if (s->rope) turn(k, d, &s->rope[l], place ? place[i] : set[i]);
        for (c = 0; c < d; c++) z[i] += q[c] * k[c];
        z[i] *= s->scale > 0 ? (double)s->scale : 1 / sqrt((double)d);
        if (s->softcap > 0) z[i] = (double)s->softcap * tanh(z[i] / (double)s->softcap);
        if (z[i] > m) m = z[i];
    }
    if (s->sink_bias) { const double b = (double)s->sink_bias[l * w->H + h]; if (b > m) m = b; sum = exp(b - m); }
    for (i = 0; i < n; i++) { z[i] = exp(z[i] - m); sum += z[i]; }
    for (i = 0; i < n; i++)
        for (c = 0; c < d; c++) out[c] += z[i] / sum * (double)row_k(w, w->v, set[i], l)[g * d + c];
    free(z);
}
/* Largest difference of `out` (tokens from..to) from the oracle with the whole past visible. */
static KVMEM__UNUSED double worst_full(const world *w, const float *out, int from, int to) {
    double worst = 0, o[256];
    int *set = (int *)malloc((size_t)to * sizeof *set), t, l, h, c, n, i;
    for (t = from; t < to; t++)
        for (l = 0; l < w->L; l++) {
            const int win = w->cfg.shape.window ? w->window[l] : 0;
            for (n = 0, i = 0; i <= t; i++) if (!win || t - i < win) set[n++] = i;
            for (h = 0; h < w->H; h++) {
                oracle(w, t, l, h, set, n, NULL, t, o);
                for (c = 0; c < w->d; c++) {
                    const double e =
                        fabs(o[c] - (double)out[((size_t)(t - from) * (size_t)w->L + (size_t)l) *
                                                    (size_t)(w->H * w->d) +
                                                (size_t)(h * w->d + c)]);
                    if (!(e <= worst)) worst = e;
                }
            }
        }
    free(set);
    return worst;
}
static KVMEM__UNUSED float *outs(const world *w, int n) {
    return (float *)calloc((size_t)n * (size_t)(w->L * w->H * w->d), 4);
}
static KVMEM__UNUSED int same_out(const world *w, const float *a, const float *b, int n) {
    return !memcmp(a, b, (size_t)n * (size_t)(w->L * w->H * w->d) * 4);
}
/* A saved cache in memory. */
typedef struct bytes { unsigned char *p; size_t n, cap; } bytes;
static KVMEM__UNUSED int bytes_write(void *user, const void *p, size_t n) {
    bytes *b = (bytes *)user;
    if (b->n + n > b->cap) { b->cap = 2 * (b->n + n); b->p = (unsigned char *)realloc(b->p, b->cap); }
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 0;
}
#endif
