/* Training. An oracle in double precision computes the loss from the formulas of the model family alone;
   every parameter's gradient is compared with central finite differences of it. Then: bits that depend
   neither on threads nor on recomputing, the trainer against the decoder, AdamW against a restatement in
   double, wrong arguments, failed allocations, and a small task that is learned. */
#define KVMEM_TRAIN
#include "test.h"
#include <math.h>
#include "../tools/gguf_write.h"

typedef struct shape {
    const char *name;
    int V, E, L, H, G, d, F, tied, qk_norm, neox, prefix, n_seq, len, weighted;
} shape;

/* Blocks inside: 128 keys, 128 rows of queries, 256 rows of logits, 464 tokens. The last four cross them. */
static const shape shapes[] = {
    { "llama, tied, groups of 2", 11, 8, 2, 4, 2, 4, 12, 1, 0, 0, 0, 3, 7, 0 },
    { "llama, untied, a KV head each, prefix 1", 13, 10, 2, 2, 2, 6, 7, 0, 0, 0, 1, 2, 6, 1 },
    { "qwen3, one KV head for all, prefix 5", 9, 8, 2, 4, 1, 4, 10, 0, 1, 1, 5, 3, 5, 1 },
    { "norms of neighbours, tied, prefix 5", 7, 6, 1, 3, 3, 2, 5, 1, 1, 0, 5, 2, 9, 0 },
    { "halves, prefix 1", 8, 7, 1, 2, 1, 8, 9, 1, 0, 1, 1, 1, 12, 1 },
    { "two sequences of 310, prefix 5", 7, 8, 1, 2, 1, 4, 8, 0, 1, 1, 5, 2, 310, 1 },
    { "four sequences of 150", 9, 6, 1, 2, 2, 4, 7, 1, 0, 0, 0, 4, 150, 0 },
    { "one sequence of 500", 7, 5, 1, 1, 1, 4, 6, 1, 0, 0, 1, 1, 500, 1 },
    { "thirty short sequences, prefix 40", 12, 8, 1, 2, 2, 4, 8, 1, 0, 0, 40, 30, 2, 0 },
};
enum { SHAPES = sizeof shapes / sizeof *shapes };
static const char *const paths[] = { "plain", "neon", "avx2", "avx512" };
enum { PATHS = sizeof paths / sizeof *paths };

static kvmem_train_config config_of(const shape *s) {
    kvmem_train_config c = kvmem_train_config_default();
    c.n_vocab = s->V;
    c.n_embd = s->E;
    c.n_layers = s->L;
    c.n_heads = s->H;
    c.n_kv_heads = s->G;
    c.head_dim = s->d;
    c.n_ff = s->F;
    c.tied = s->tied;
    c.qk_norm = s->qk_norm;
    c.neox = s->neox;
    c.prefix = s->prefix;
    c.max_tokens = s->n_seq * s->len;
    c.max_len = s->len;
    c.threads = 1;
    return c;
}
/* Random ids and targets; weighted: weights of four kinds, 0 among them. */
typedef struct data { kvmem_batch b; int *ids, *target; float *weight; } data;
static data data_of(const shape *s, uint64_t seed) {
    static const float kind[] = { 1, 0, 0.25f, 2.5f };
    const int n = s->n_seq * s->len;
    data x;
    int i;
    x.ids = (int *)malloc((size_t)n * sizeof(int));
    x.target = (int *)malloc((size_t)n * sizeof(int));
    x.weight = (float *)malloc((size_t)n * sizeof(float));
    if (!x.ids || !x.target || !x.weight) exit(2);
    for (i = 0; i < n; i++) {
        x.ids[i] = (int)(kvmem__random(seed, 1, (uint64_t)i, 0) % (uint64_t)s->V);
        x.target[i] = (int)(kvmem__random(seed, 2, (uint64_t)i, 0) % (uint64_t)s->V);
        x.weight[i] = kind[kvmem__random(seed, 3, (uint64_t)i, 0) % 4];
    }
    x.weight[0] = 1;
    x.b.n_seq = s->n_seq;
    x.b.len = s->len;
    x.b.ids = x.ids;
    x.b.target = x.target;
    x.b.weight = s->weighted ? x.weight : NULL;
    return x;
}
static void data_free(data *x) { free(x->ids); free(x->target); free(x->weight); }

/* Weights as of the start, larger, and norms that are not all 1: nothing is small or symmetric. */
static void weights_of(kvmem_trainer *t, uint64_t seed) {
    int i;
    size_t j;
    kvmem_trainer_random(t, seed);
    for (i = 0; i < t->n_params; i++) {
        kvmem_weight *p = &t->param[i];
        const size_t n = (size_t)p->rows * (size_t)p->cols;
        const int norm = strstr(p->name, "norm") != NULL;
        for (j = 0; j < n; j++)
            if (norm) p->w[j] = (float)(0.6 + 0.8 * kvmem__unit(kvmem__random(seed, 9, (uint64_t)i, j)));
            else p->w[j] *= strstr(p->name, "prefix") ? 6.0f : 1.5f;
    }
}

/* ---- the oracle ---- */
typedef struct oracle {
    kvmem_train_config c;
    const kvmem_trainer *t;  /* says where a parameter lies; its arithmetic is not used */
    const kvmem_batch *b;
    double *w;               /* parameters */
    double *x;               /* (L + 1, n, E) residual stream */
    double *att;             /* (L, n, H d) heads' outputs */
    double *q, *k, *v, *row; /* (n, H d), (prefix + len, G d) twice of a sequence, a row of anything */
    double *nll;             /* (n) */
} oracle;

static double *doubles(size_t n) {
    double *p = (double *)calloc(n ? n : 1, sizeof *p);
    if (!p) exit(2);
    return p;
}
static oracle oracle_new(const kvmem_trainer *t, const kvmem_batch *b) {
    const kvmem_train_config *c = &t->config;
    const size_t n = (size_t)(b->n_seq * b->len), Q = (size_t)(c->n_heads * c->head_dim);
    const size_t span = (size_t)(c->prefix + b->len);
    oracle o;
    size_t i;
    o.c = *c;
    o.t = t;
    o.b = b;
    o.w = doubles(t->n_values);
    for (i = 0; i < t->n_values; i++) o.w[i] = (double)t->w[i];
    o.x = doubles((size_t)(c->n_layers + 1) * n * (size_t)c->n_embd);
    o.att = doubles((size_t)c->n_layers * n * Q);
    o.q = doubles(n * Q);
    o.k = doubles(span * Q);
    o.v = doubles(span * Q);
    o.row = doubles(2 * span + (size_t)(c->n_vocab + 3 * c->n_ff + 3 * c->n_embd) + 2 * Q);
    o.nll = doubles(n);
    return o;
}
static void oracle_free(oracle *o) {
    free(o->w); free(o->x); free(o->att); free(o->q); free(o->k); free(o->v); free(o->row); free(o->nll);
}
static const double *oracle_w(const oracle *o, int param) { return o->w + (o->t->param[param].w - o->t->w); }

static void rms64(double *out, const double *x, const double *w, int d, double eps) {
    double s = 0;
    int j;
    for (j = 0; j < d; j++) s += x[j] * x[j];
    s = 1 / sqrt(s / d + eps);
    for (j = 0; j < d; j++) out[j] = x[j] * s * w[j];
}
static void linear64(double *out, const double *w, const double *x, int rows, int cols) {
    int r, j;
    for (r = 0; r < rows; r++) {
        double s = 0;
        for (j = 0; j < cols; j++) s += w[r * cols + j] * x[j];
        out[r] = s;
    }
}
/* Channels 2i and 2i + 1 (or i and i + d/2) of a head turn by pos base^(-2i/d). */
static void rope64(double *x, int d, int neox, double base, int pos) {
    int i;
    for (i = 0; i < d / 2; i++) {
        double *a = x + (neox ? i : 2 * i), *b = x + (neox ? i + d / 2 : 2 * i + 1), u = *a, v = *b;
        const double angle = pos * pow(base, -2.0 * i / d);
        *a = u * cos(angle) - v * sin(angle);
        *b = u * sin(angle) + v * cos(angle);
    }
}
/* Heads of one token: norm, if there is one, and RoPE. */
static void heads64(const oracle *o, double *x, int heads, int norm, int pos) {
    const int d = o->c.head_dim;
    int h;
    for (h = 0; h < heads; h++) {
        if (norm >= 0) rms64(x + h * d, x + h * d, oracle_w(o, norm), d, (double)o->c.norm_eps);
        rope64(x + h * d, d, o->c.neox, o->c.rope_base, pos);
    }
}
static void attention64(oracle *o, int l, int s) {
    const kvmem_train_config *c = &o->c;
    const kvmem_train_layer *y = &o->t->layer[l];
    const int d = c->head_dim, K = c->n_kv_heads * d, Q = c->n_heads * d, E = c->n_embd, P = c->prefix;
    const int n = o->b->n_seq * o->b->len;
    int i, j, h, a;
    for (j = 0; j < P * K; j++) {
        o->k[j] = oracle_w(o, y->prefix_k)[j];
        o->v[j] = oracle_w(o, y->prefix_v)[j];
    }
    for (i = 0; i < o->b->len; i++) {
        const int at = s * o->b->len + i;
        double *q = o->q + i * Q, *k = o->k + (P + i) * K, *p = o->row + E;
        rms64(o->row, o->x + ((size_t)l * (size_t)n + (size_t)at) * (size_t)E, oracle_w(o, y->attn_norm), E,
              (double)c->norm_eps);
        linear64(q, oracle_w(o, y->q), o->row, Q, E);
        linear64(k, oracle_w(o, y->k), o->row, K, E);
        linear64(o->v + (P + i) * K, oracle_w(o, y->v), o->row, K, E);
        heads64(o, q, c->n_heads, y->q_norm, P + i);
        heads64(o, k, c->n_kv_heads, y->k_norm, P + i);
        for (h = 0; h < c->n_heads; h++) {
            const int g = h / (c->n_heads / c->n_kv_heads);
            double *out = o->att + ((size_t)l * (size_t)n + (size_t)at) * (size_t)Q + h * d, top = -1e300, sum = 0;
            for (j = 0; j <= P + i; j++) {
                p[j] = 0;
                for (a = 0; a < d; a++) p[j] += q[h * d + a] * o->k[j * K + g * d + a];
                p[j] /= sqrt((double)d);
                if (p[j] > top) top = p[j];
            }
            for (j = 0; j <= P + i; j++) sum += p[j] = exp(p[j] - top);
            for (a = 0; a < d; a++) {
                out[a] = 0;
                for (j = 0; j <= P + i; j++) out[a] += p[j] / sum * o->v[j * K + g * d + a];
            }
        }
    }
}
static void mlp64(oracle *o, int l, int at) {
    const kvmem_train_config *c = &o->c;
    const kvmem_train_layer *y = &o->t->layer[l];
    const int E = c->n_embd, F = c->n_ff, Q = c->n_heads * c->head_dim, n = o->b->n_seq * o->b->len;
    const double *x = o->x + ((size_t)l * (size_t)n + (size_t)at) * (size_t)E;
    double *out = o->x + ((size_t)(l + 1) * (size_t)n + (size_t)at) * (size_t)E;
    double *mid = o->row, *h = mid + E, *gate = h + E, *up = gate + F;
    int j;
    linear64(mid, oracle_w(o, y->o), o->att + ((size_t)l * (size_t)n + (size_t)at) * (size_t)Q, E, Q);
    for (j = 0; j < E; j++) mid[j] += x[j];
    rms64(h, mid, oracle_w(o, y->ffn_norm), E, (double)c->norm_eps);
    linear64(gate, oracle_w(o, y->gate), h, F, E);
    linear64(up, oracle_w(o, y->up), h, F, E);
    for (j = 0; j < F; j++) gate[j] = gate[j] / (1 + exp(-gate[j])) * up[j];
    linear64(out, oracle_w(o, y->down), gate, E, F);
    for (j = 0; j < E; j++) out[j] += mid[j];
}
/* The loss. What lies before layer `from` is kept from the last call, and that layer's attention if
   `attention` is 0. */
static double oracle_loss(oracle *o, int from, int attention) {
    const kvmem_train_config *c = &o->c;
    const int n = o->b->n_seq * o->b->len, E = c->n_embd, V = c->n_vocab;
    double total = 0, weights = 0;
    int i, j, l;
    for (i = 0; !from && attention && i < n; i++)
        memcpy(o->x + (size_t)i * (size_t)E, oracle_w(o, o->t->embd) + o->b->ids[i] * E, (size_t)E * sizeof *o->x);
    for (l = from; l < c->n_layers; l++) {
        for (i = 0; (attention || l > from) && i < o->b->n_seq; i++) attention64(o, l, i);
        for (i = 0; i < n; i++) mlp64(o, l, i);
    }
    for (i = 0; i < n; i++) {
        const double weight = o->b->weight ? (double)o->b->weight[i] : 1;
        double *h = o->row, *z = h + E, top = -1e300, sum = 0;
        o->nll[i] = 0;
        if (!(weight > 0)) continue;
        rms64(h, o->x + ((size_t)c->n_layers * (size_t)n + (size_t)i) * (size_t)E, oracle_w(o, o->t->out_norm), E,
              (double)c->norm_eps);
        linear64(z, oracle_w(o, o->t->head), h, V, E);
        for (j = 0; j < V; j++) if (z[j] > top) top = z[j];
        for (j = 0; j < V; j++) sum += exp(z[j] - top);
        o->nll[i] = log(sum) + top - z[o->b->target[i]];
        total += weight * o->nll[i];
        weights += weight;
    }
    return total / weights;
}
/* Where a parameter enters: its layer, and whether before or in the attention. */
static void param_place(const kvmem_trainer *t, int param, int *layer, int *attention) {
    int l;
    *layer = param == t->embd ? 0 : t->config.n_layers;
    *attention = 1;
    for (l = 0; l < t->config.n_layers; l++) {
        const kvmem_train_layer *y = &t->layer[l];
        if (param < y->attn_norm || param > KVMEM__MAX(y->down, y->prefix_v)) continue;
        *layer = l;
        *attention = param != y->o && param != y->ffn_norm && param != y->gate && param != y->up && param != y->down;
    }
}

/* ---- gradients ---- */
enum { SOME = 64 }; /* elements checked of a large tensor of the long shapes */
/* Finite differences: element at[i] of a parameter has derivative d[i]. */
typedef struct slopes { int param; size_t n, *at; double *d; } slopes;
static slopes slopes_of(oracle *o, int param, int all) {
    const kvmem_weight *p = &o->t->param[param];
    const size_t count = (size_t)p->rows * (size_t)p->cols;
    const double h = 1e-5;
    double *w = o->w + (p->w - o->t->w);
    int layer, attention;
    slopes s;
    size_t i;
    s.param = param;
    s.n = all || count < SOME ? count : SOME;
    s.at = (size_t *)malloc(s.n * sizeof *s.at);
    s.d = doubles(s.n);
    if (!s.at) exit(2);
    param_place(o->t, param, &layer, &attention);
    for (i = 0; i < s.n; i++) { /* one of every stretch of count / n */
        const size_t from = i * count / s.n, to = (i + 1) * count / s.n;
        const size_t at = from + (size_t)(kvmem__random(4, (uint64_t)param, i, 0) % (to - from));
        const double w0 = w[at];
        s.at[i] = at;
        w[at] = w0 + h;
        s.d[i] = oracle_loss(o, layer, attention);
        w[at] = w0 - h;
        s.d[i] = (s.d[i] - oracle_loss(o, layer, attention)) / (2 * h);
        w[at] = w0;
    }
    oracle_loss(o, layer, attention);
    return s;
}
/* The largest difference from the slopes, relative to the tensor's largest gradient. */
static double slopes_error(const slopes *s, const kvmem_trainer *t) {
    const kvmem_weight *p = &t->param[s->param];
    const size_t count = (size_t)p->rows * (size_t)p->cols;
    double top = 1e-30, worst = 0;
    size_t i;
    for (i = 0; i < count; i++) top = KVMEM__MAX(top, fabs((double)p->grad[i]));
    for (i = 0; i < s->n; i++) {
        const double e = fabs((double)p->grad[s->at[i]] - s->d[i]) / top;
        if (!(e <= worst)) worst = e;
    }
    return worst;
}
/* Relative to a tensor's largest gradient. Sums of a few hundred float32 terms that partly cancel: some
   tens of roundings of 6e-8. The worst tensor of all shapes and paths differs by 5.4e-6; the differences
   themselves are good to 1e-9 (error h^2 of the slope, 1e-16 / h of rounding, with h = 1e-5). */
#define GRADIENT_TOLERANCE 2e-5

static void gradients_on(const shape *s, const kvmem_backend *backend, const data *x, const kvmem_trainer *master,
                         const slopes *want, double loss, const double *nll) {
    const int n = s->n_seq * s->len;
    float *first = NULL, *first_nll = NULL;
    int recompute, threads, i;
    for (recompute = 0; recompute < 2; recompute++)
        for (threads = 1; threads <= 3; threads++) {
            kvmem_train_config c = config_of(s);
            kvmem_trainer t;
            double got = 0;
            c.backend = backend;
            c.recompute = recompute;
            c.threads = threads;
            if (kvmem_trainer_init(&t, &c)) { FAIL_AT("init: %s", t.error.text); continue; }
            memcpy(t.w, master->w, t.n_values * sizeof *t.w);
            if (kvmem_trainer_run(&t, &x->b, 1, &got)) FAIL_AT("run: %s", t.error.text);
            if (!first) {
                first = (float *)malloc(t.n_values * sizeof *first);
                first_nll = (float *)malloc((size_t)n * sizeof *first);
                if (!first || !first_nll) exit(2);
                memcpy(first, t.grad, t.n_values * sizeof *first);
                memcpy(first_nll, t.nll, (size_t)n * sizeof *first);
                CHECK_NEAR(got, loss, 2e-6 * (1 + loss));
                for (i = 0; i < n; i++)
                    if (!(fabs((double)t.nll[i] - nll[i]) <= 2e-5 * (1 + nll[i])))
                        FAIL_AT("%s, %s: nll %d is %g, not %g", s->name, backend->name, i, (double)t.nll[i], nll[i]);
                for (i = 0; i < t.n_params; i++) {
                    const double e = slopes_error(&want[i], &t);
                    if (getenv("KVMEM_TEST_SHOW"))
                        printf("%s %s %s %.2g\n", s->name, backend->name, t.param[i].name, e);
                    if (!(e <= GRADIENT_TOLERANCE))
                        FAIL_AT("%s, %s: gradient of %s is off by %.2g of its largest element", s->name, backend->name,
                                t.param[i].name, e);
                }
            }
            if (memcmp(first, t.grad, t.n_values * sizeof *first) ||
                memcmp(first_nll, t.nll, (size_t)n * sizeof *first))
                FAIL_AT("%s, %s: other bits with recompute %d, %d threads", s->name, backend->name, recompute, threads);
            kvmem_trainer_free(&t);
        }
    free(first);
    free(first_nll);
}
static void gradients_of(const shape *s) {
    const int all = s->n_seq * s->len < 50;
    kvmem_train_config c = config_of(s);
    kvmem_trainer t;
    data x = data_of(s, 3);
    oracle o;
    slopes *want;
    double loss, *nll;
    int i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    weights_of(&t, 5);
    o = oracle_new(&t, &x.b);
    loss = oracle_loss(&o, 0, 1);
    nll = doubles((size_t)(s->n_seq * s->len));
    memcpy(nll, o.nll, (size_t)(s->n_seq * s->len) * sizeof *nll);
    want = (slopes *)malloc((size_t)t.n_params * sizeof *want);
    if (!want) exit(2);
    for (i = 0; i < t.n_params; i++) want[i] = slopes_of(&o, i, all);
    CHECK(loss > 0.5 && fabs(oracle_loss(&o, 0, 1) - loss) < 1e-15);
    for (i = 0; i < PATHS; i++)
        if (kvmem_backend_cpu(paths[i])) gradients_on(s, kvmem_backend_cpu(paths[i]), &x, &t, want, loss, nll);
    for (i = 0; i < t.n_params; i++) { free(want[i].at); free(want[i].d); }
    free(want);
    free(nll);
    oracle_free(&o);
    data_free(&x);
    kvmem_trainer_free(&t);
}
TEST(every_gradient_is_the_slope_of_the_loss_in_small_shapes) {
    int i;
    for (i = 0; i < SHAPES; i++) if (shapes[i].n_seq * shapes[i].len < 50) gradients_of(&shapes[i]);
}
TEST(every_gradient_is_the_slope_of_the_loss_across_blocks) {
    int i;
    for (i = 0; i < SHAPES; i++) if (shapes[i].n_seq * shapes[i].len >= 50) gradients_of(&shapes[i]);
}

/* ---- bits ---- */
/* Large enough for every parallel loop. */
static const shape wide = { "wide", 300, 96, 2, 4, 2, 48, 320, 0, 1, 1, 3, 2, 320, 1 };

/* Three steps; a copy of the n weights, to be freed. */
static float *after_steps(const shape *s, const kvmem_backend *backend, int recompute, int threads, size_t *n) {
    kvmem_train_config c = config_of(s);
    const kvmem_adamw a = { 1e-3f, 0.9f, 0.99f, 1e-8f, 0.1f, 1 };
    kvmem_trainer t;
    float *w = NULL;
    int i;
    c.backend = backend;
    c.recompute = recompute;
    c.threads = threads;
    if (kvmem_trainer_init(&t, &c)) { FAIL_AT("init: %s", t.error.text); return NULL; }
    kvmem_trainer_random(&t, 1);
    for (i = 0; i < 3; i++) {
        data x = data_of(s, (uint64_t)(20 + i));
        double loss = 0, norm = 0;
        kvmem_trainer_zero(&t);
        CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, &loss));
        CHECK_OK(kvmem_trainer_update(&t, &a, &norm));
        CHECK(loss > 1 && loss < 20 && norm > 0);
        data_free(&x);
    }
    *n = t.n_values;
    w = (float *)malloc(*n * sizeof *w);
    if (w) memcpy(w, t.w, *n * sizeof *w);
    kvmem_trainer_free(&t);
    return w;
}
TEST(trained_bits_depend_neither_on_threads_nor_on_recomputing) {
    const kvmem_backend *best = kvmem_backend_cpu(NULL);
    size_t n = 0;
    float *one = after_steps(&wide, best, 0, 1, &n);
    int threads;
    REQUIRE(one);
    for (threads = 1; threads <= 3; threads++) {
        float *w = after_steps(&wide, best, threads & 1, threads, &n);
        CHECK(w && !memcmp(one, w, n * sizeof *one));
        free(w);
    }
    free(one);
}
TEST(a_step_along_the_gradient_changes_the_loss_by_its_squared_length) {
    kvmem_train_config c = config_of(&wide);
    kvmem_trainer t;
    data x = data_of(&wide, 8);
    float *w;
    double up = 0, down = 0, square = 0;
    const double h = 2e-3;
    size_t i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    kvmem_trainer_random(&t, 2);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, NULL));
    w = (float *)malloc(t.n_values * sizeof *w);
    if (!w) exit(2);
    memcpy(w, t.w, t.n_values * sizeof *w);
    for (i = 0; i < t.n_values; i++) square += (double)t.grad[i] * (double)t.grad[i];
    for (i = 0; i < t.n_values; i++) t.w[i] = w[i] + (float)(h / sqrt(square)) * t.grad[i];
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 0, &up));
    for (i = 0; i < t.n_values; i++) t.w[i] = w[i] - (float)(h / sqrt(square)) * t.grad[i];
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 0, &down));
    CHECK_NEAR((up - down) / (2 * h), sqrt(square), 2e-3 * sqrt(square));
    free(w);
    data_free(&x);
    kvmem_trainer_free(&t);
}
TEST(gradients_are_added_until_they_are_cleared) {
    const shape *s = &shapes[2];
    kvmem_train_config c = config_of(s);
    kvmem_trainer t;
    data x = data_of(s, 3);
    float *once;
    size_t i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    weights_of(&t, 5);
    once = (float *)malloc(t.n_values * sizeof *once);
    if (!once) exit(2);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, NULL));
    memcpy(once, t.grad, t.n_values * sizeof *once);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, NULL));
    for (i = 0; i < t.n_values; i++) CHECK_NEAR(t.grad[i], 2 * once[i], 1e-6);
    memcpy(once, t.grad, t.n_values * sizeof *once);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 0, NULL));
    CHECK(!memcmp(once, t.grad, t.n_values * sizeof *once));
    kvmem_trainer_zero(&t);
    for (i = 0; i < t.n_values; i++) if (t.grad[i] != 0) { FAIL_AT("gradient %d is left", (int)i); break; }
    free(once);
    data_free(&x);
    kvmem_trainer_free(&t);
}
TEST(places_without_weight_are_not_asked_for) {
    const shape *s = &shapes[1];
    kvmem_train_config c = config_of(s);
    kvmem_trainer t;
    data x = data_of(s, 3);
    double loss = 0, sum = 0, weights = 0;
    int i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    weights_of(&t, 5);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 0, &loss));
    for (i = 0; i < s->n_seq * s->len; i++) {
        if (x.weight[i] > 0) CHECK(t.best[i] >= 0 && t.best[i] < s->V && t.nll[i] > 0);
        else CHECK(t.best[i] == -1 && t.nll[i] == 0);
        sum += (double)x.weight[i] * (double)t.nll[i];
        weights += (double)x.weight[i];
    }
    CHECK_NEAR(loss, sum / weights, 1e-12);
    data_free(&x);
    kvmem_trainer_free(&t);
}

/* ---- the trainer and the decoder ---- */
typedef struct memory_file { unsigned char *p; size_t n, cap; } memory_file;
static int memory_write(void *user, const void *p, size_t n) {
    memory_file *f = (memory_file *)user;
    if (f->n + n > f->cap) {
        f->cap = (f->n + n) * 2;
        f->p = (unsigned char *)realloc(f->p, f->cap);
        if (!f->p) exit(2);
    }
    memcpy(f->p + f->n, p, n);
    f->n += n;
    return 0;
}
static memory_file gguf_of(const kvmem_trainer *t, const char *type_name) {
    const kvmem_train_config *c = &t->config;
    memory_file f = { NULL, 0, 0 };
    gguf_writer g;
    unsigned char row[4096];
    int i, r;
    memset(&g, 0, sizeof g);
    strcpy(g.arch, c->qk_norm ? "qwen3" : "llama");
    gguf_kv_llama(&g, 512, c->n_embd, c->n_layers, c->n_ff, c->n_heads, c->n_kv_heads,
                  c->head_dim, c->rope_base, (double)c->norm_eps);
    for (i = 0; i < t->n_params; i++) {
        const kvmem_weight *p = &t->param[i];
        uint64_t ne[2];
        ne[0] = (uint64_t)p->cols;
        ne[1] = (uint64_t)p->rows;
        gguf_add(&g, gguf_find_type(p->rows > 1 ? type_name : "f32"), p->name, p->rows > 1 ? 2 : 1, ne);
    }
    gguf_head(&g, memory_write, &f);
    for (i = 0; i < t->n_params; i++) {
        const kvmem_weight *p = &t->param[i];
        const gguf_type *type = g.t[i].type;
        for (r = 0; r < p->rows; r++) {
            CHECK_OK(kvmem_quantize((kvmem_type)type->id, row, p->w + (size_t)r * (size_t)p->cols, (size_t)p->cols));
            gguf_put(&g, row, (size_t)(p->cols / type->block) * (size_t)type->bytes);
        }
        gguf_end(&g, i);
    }
    if (g.failed) FAIL_AT("gguf: %s", g.why);
    gguf_writer_free(&g);
    return f;
}
typedef struct compare {
    const kvmem_trainer *t;
    const kvmem_batch *b;
    int first, other_best; /* place of the session's first token; tokens whose most likely one differs */
    double worst;          /* difference of nll */
} compare;
static int compare_row(void *user, int index, const float *logits) {
    compare *c = (compare *)user;
    const int at = c->first + index, V = c->t->config.n_vocab;
    double top, sum = 0, e;
    int v, best = 0;
    for (v = 1; v < V; v++) if (logits[v] > logits[best]) best = v;
    top = (double)logits[best];
    for (v = 0; v < V; v++) sum += exp((double)logits[v] - top);
    e = fabs(log(sum) + top - (double)logits[c->b->target[at]] - (double)c->t->nll[at]);
    if (!(e <= c->worst)) c->worst = e;
    c->other_best += (double)logits[best] - (double)logits[c->t->best[at]] > 1e-4;
    return 0;
}
static void decoder_agrees(const shape *s) {
    kvmem_train_config c = config_of(s);
    kvmem_trainer t;
    kvmem_model m;
    data x = data_of(s, 6);
    memory_file f;
    int i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    weights_of(&t, 7);
    x.b.weight = NULL;
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 0, NULL));
    f = gguf_of(&t, "f32");
    if (kvmem_model_open(&m, f.p, f.n, NULL, 0, NULL)) FAIL_AT("open: %s", m.error.text);
    for (i = 0; i < s->n_seq && m.layer; i++) {
        kvmem_session_config sc = kvmem_session_config_default();
        kvmem_session session;
        compare cmp;
        cmp.t = &t;
        cmp.b = &x.b;
        cmp.first = i * s->len;
        cmp.worst = 0;
        cmp.other_best = 0;
        sc.threads = 1;
        if (kvmem_session_init(&session, &m, &sc)) { FAIL_AT("session: %s", session.error.text); break; }
        CHECK_OK(kvmem_session_feed(&session, x.ids + i * s->len, s->len, KVMEM_PROMPT_END, compare_row, &cmp));
        if (getenv("KVMEM_TEST_SHOW")) printf("%s: decoder differs by %.2g\n", s->name, cmp.worst);
        if (!(cmp.worst <= 1e-4) || cmp.other_best)
            FAIL_AT("%s: nll differs by %g, %d other best tokens", s->name, cmp.worst, cmp.other_best);
        kvmem_session_free(&session);
    }
    kvmem_model_close(&m);
    free(f.p);
    data_free(&x);
    kvmem_trainer_free(&t);
}
TEST(trainer_and_decoder_compute_the_same_losses) {
    static const shape served[] = {
        { "llama, tied", 40, 16, 2, 4, 2, 8, 24, 1, 0, 0, 0, 2, 30, 0 },
        { "llama, untied, 200 tokens", 40, 16, 2, 2, 2, 8, 24, 0, 0, 0, 0, 3, 200, 0 },
        { "qwen3, tied", 40, 16, 2, 4, 1, 8, 24, 1, 1, 1, 0, 2, 30, 0 },
    };
    size_t i;
    for (i = 0; i < sizeof served / sizeof *served; i++) decoder_agrees(&served[i]);
}
static const shape stored = { "stored", 32, 32, 2, 2, 1, 32, 32, 0, 0, 0, 0, 1, 8, 0 };
static void loads(int untied, int qk_norm, const char *type) {
    shape s = stored;
    kvmem_train_config c;
    kvmem_trainer t, u;
    kvmem_model m;
    memory_file f;
    int i, r;
    s.tied = !untied;
    s.qk_norm = s.neox = qk_norm;
    c = config_of(&s);
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    REQUIRE_OK(kvmem_trainer_init(&u, &c));
    weights_of(&t, 11);
    memset(u.m, 1, u.n_values * sizeof *u.m);
    u.updates = 9;
    f = gguf_of(&t, type);
    if (kvmem_model_open(&m, f.p, f.n, NULL, 0, NULL)) FAIL_AT("open: %s", m.error.text);
    else if (kvmem_trainer_load(&u, &m)) FAIL_AT("load: %s", u.error.text);
    for (i = 0; i < t.n_params; i++)
        for (r = 0; r < t.param[i].rows; r++) {
            const kvmem_weight *p = &t.param[i];
            const kvmem_type id = (kvmem_type)gguf_find_type(p->rows > 1 ? type : "f32")->id;
            unsigned char bytes[4096];
            float row[1024];
            CHECK_OK(kvmem_quantize(id, bytes, p->w + (size_t)r * (size_t)p->cols, (size_t)p->cols));
            CHECK_OK(kvmem_dequantize(id, row, bytes, (size_t)p->cols));
            if (memcmp(row, u.param[i].w + (size_t)r * (size_t)p->cols, (size_t)p->cols * sizeof *row))
                FAIL_AT("%s, row %d of %s came back otherwise", type, r, p->name);
        }
    CHECK(u.updates == 0 && u.m[0] == 0 && u.m[u.n_values - 1] == 0);
    kvmem_model_close(&m);
    free(f.p);
    kvmem_trainer_free(&u);
    kvmem_trainer_free(&t);
}
TEST(weights_come_back_from_a_model_file) {
    loads(0, 0, "f32");
    loads(1, 0, "f32");
    loads(1, 1, "f32");
    loads(0, 1, "f16");
    loads(1, 0, "q8_0");
}
TEST(models_of_another_shape_are_refused) {
    int i;
    for (i = 0; i < 13; i++) {
        kvmem_train_config c = config_of(&stored), other = c;
        kvmem_trainer t, u;
        kvmem_model m;
        memory_file f;
        kvmem_status status;
        other.n_vocab += i == 0;
        other.n_embd += i == 1;
        other.n_layers += i == 2;
        if (i == 3) other.n_heads = 4;
        if (i == 4) other.n_kv_heads = 2;
        if (i == 5) other.head_dim = 16;
        other.n_ff += i == 6;
        if (i == 7) other.tied = 1;
        if (i == 8) other.qk_norm = 1;
        if (i == 9) other.neox = 1;
        if (i == 10) other.rope_base = 20000;
        if (i == 11) other.norm_eps = 1e-6f;
        REQUIRE_OK(kvmem_trainer_init(&t, &c));
        weights_of(&t, 11);
        REQUIRE_OK(kvmem_trainer_init(&u, &other));
        f = gguf_of(&t, "f32");
        CHECK_OK(kvmem_model_open(&m, f.p, f.n, NULL, 0, NULL));
        status = kvmem_trainer_load(&u, &m);
        if (i == 12) CHECK_OK(status);
        else CHECK((status == KVMEM_BAD_ARGUMENT || status == KVMEM_UNSUPPORTED) && u.error.text[0]);
        kvmem_model_close(&m);
        CHECK(kvmem_trainer_load(&u, &m) == KVMEM_BAD_ARGUMENT && strstr(u.error.text, "not open"));
        CHECK(kvmem_trainer_load(&u, NULL) == KVMEM_BAD_ARGUMENT);
        free(f.p);
        kvmem_trainer_free(&u);
        kvmem_trainer_free(&t);
    }
}

/* ---- AdamW ---- */
TEST(adamw_is_its_formula) {
    const shape *s = &shapes[2];
    const kvmem_adamw plain = { 2e-3f, 0.9f, 0.95f, 1e-6f, 0, 0 }, full = { 1e-2f, 0.8f, 0.99f, 1e-8f, 0.2f, 1.5f };
    kvmem_train_config c = config_of(s);
    int kind, step, i;
    for (kind = 0; kind < 2; kind++) {
        const kvmem_adamw *a = kind ? &full : &plain;
        kvmem_trainer t;
        double *w, *m, *v;
        size_t j, k;
        int clipped = 0;
        REQUIRE_OK(kvmem_trainer_init(&t, &c));
        weights_of(&t, 3);
        w = doubles(t.n_values);
        m = doubles(t.n_values);
        v = doubles(t.n_values);
        for (j = 0; j < t.n_values; j++) w[j] = (double)t.w[j];
        for (step = 1; step <= 6; step++) {
            double norm = 0, got = 0, shrink;
            for (j = 0; j < t.n_values; j++) {
                t.grad[j] = (float)(test_normal() * (step % 2 ? 0.2 : 0.01));
                norm += (double)t.grad[j] * (double)t.grad[j];
            }
            norm = sqrt(norm);
            shrink = a->clip > 0 && norm > (double)a->clip ? (double)a->clip / norm : 1;
            clipped += shrink < 1;
            for (i = 0; i < t.n_params; i++)
                for (k = 0; k < (size_t)t.param[i].rows * (size_t)t.param[i].cols; k++) {
                    double g;
                    j = (size_t)(t.param[i].w - t.w) + k;
                    g = (double)t.grad[j] * shrink;
                    m[j] = (double)a->beta1 * m[j] + (1 - (double)a->beta1) * g;
                    v[j] = (double)a->beta2 * v[j] + (1 - (double)a->beta2) * g * g;
                    w[j] -= (double)a->lr * (m[j] / (1 - pow((double)a->beta1, step)) /
                                             (sqrt(v[j] / (1 - pow((double)a->beta2, step))) + (double)a->eps) +
                                             (t.param[i].decay ? (double)a->weight_decay * w[j] : 0));
                }
            CHECK_OK(kvmem_trainer_update(&t, a, &got));
            CHECK_NEAR(got, norm, 1e-5 * norm);
            for (j = 0; j < t.n_values; j++)
                if (!(fabs((double)t.w[j] - w[j]) <= 1e-6)) {
                    FAIL_AT("step %d: weight %d is %.9g, not %.9g", step, (int)j, (double)t.w[j], w[j]);
                    break;
                }
        }
        CHECK(t.updates == 6 && (kind ? clipped > 1 && clipped < 6 : !clipped));
        free(w); free(m); free(v);
        kvmem_trainer_free(&t);
    }
}
TEST(matrices_decay_and_norms_and_prefixes_do_not) {
    kvmem_train_config c = config_of(&shapes[2]);
    kvmem_trainer t;
    int i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    for (i = 0; i < t.n_params; i++) {
        const char *name = t.param[i].name;
        CHECK(t.param[i].decay == !(strstr(name, "norm") || strstr(name, "prefix")));
    }
    kvmem_trainer_free(&t);
}
TEST(a_gradient_that_is_not_finite_changes_nothing) {
    const kvmem_adamw a = { 1e-3f, 0.9f, 0.99f, 1e-8f, 0.1f, 1 };
    const float bad[] = { NAN, INFINITY, -INFINITY };
    kvmem_train_config c = config_of(&shapes[0]);
    data x = data_of(&shapes[0], 1);
    kvmem_trainer t;
    float *was;
    int i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    weights_of(&t, 3);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, NULL));
    CHECK_OK(kvmem_trainer_update(&t, &a, NULL));
    was = (float *)malloc(3 * t.n_values * sizeof *was);
    if (!was) exit(2);
    memcpy(was, t.w, t.n_values * sizeof *was);
    memcpy(was + t.n_values, t.m, t.n_values * sizeof *was);
    memcpy(was + 2 * t.n_values, t.v, t.n_values * sizeof *was);
    for (i = 0; i < 3; i++) {
        t.grad[t.n_values / 2] = bad[i];
        CHECK(kvmem_trainer_update(&t, &a, NULL) == KVMEM_BAD_VALUE && strstr(t.error.text, "update 2"));
        CHECK(t.updates == 1 && !memcmp(was, t.w, t.n_values * sizeof *was));
        CHECK(!memcmp(was + t.n_values, t.m, t.n_values * sizeof *was));
        CHECK(!memcmp(was + 2 * t.n_values, t.v, t.n_values * sizeof *was));
    }
    t.w[0] = NAN; /* a weight that is not finite is found out in the same way */
    kvmem_trainer_zero(&t);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, NULL));
    CHECK(kvmem_trainer_update(&t, &a, NULL) == KVMEM_BAD_VALUE);
    free(was);
    data_free(&x);
    kvmem_trainer_free(&t);
}
TEST(the_learning_rate_rises_and_falls_as_half_a_cosine) {
    int i;
    for (i = 0; i < 4; i++) CHECK_NEAR(kvmem_cosine(i, 4, 24, 2, 0.5f), 0.5 * (i + 1), 1e-6);
    CHECK_NEAR(kvmem_cosine(4, 4, 24, 2, 0.5f), 2, 1e-6);
    CHECK_NEAR(kvmem_cosine(9, 4, 24, 2, 0.5f), 0.5 + 1.5 * (1 + sqrt(0.5)) / 2, 1e-6);
    CHECK_NEAR(kvmem_cosine(14, 4, 24, 2, 0.5f), 1.25, 1e-6);
    CHECK_NEAR(kvmem_cosine(24, 4, 24, 2, 0.5f), 0.5, 1e-6);
    CHECK_NEAR(kvmem_cosine(1000, 4, 24, 2, 0.5f), 0.5, 1e-6);
    CHECK_NEAR(kvmem_cosine(0, 0, 10, 1, 0), 1, 1e-6);
    CHECK_NEAR(kvmem_cosine(5, 5, 5, 1, 0.1f), 0.1, 1e-6);
}

/* ---- wrong arguments ---- */
static void init_refuses(const kvmem_train_config *c, const char *word) {
    kvmem_trainer t;
    const kvmem_status status = kvmem_trainer_init(&t, c);
    if (status != KVMEM_BAD_ARGUMENT || !strstr(t.error.text, word))
        FAIL_AT("%s: %s '%s'", word, kvmem_status_string(status), t.error.text);
    kvmem_trainer_free(&t);
}
TEST(wrong_configurations_are_refused_by_name) {
    static const struct { size_t at; const char *word; int lo, hi; } field[] = {
        { offsetof(kvmem_train_config, n_vocab), "n_vocab", 1, (1 << 20) + 1 },
        { offsetof(kvmem_train_config, n_embd), "n_embd", 0, (1 << 16) + 1 },
        { offsetof(kvmem_train_config, n_layers), "n_layers", 0, 1025 },
        { offsetof(kvmem_train_config, n_heads), "n_heads", 0, 1025 },
        { offsetof(kvmem_train_config, n_kv_heads), "n_kv_heads", 0, 1025 },
        { offsetof(kvmem_train_config, head_dim), "head_dim", 1, 1025 },
        { offsetof(kvmem_train_config, n_ff), "n_ff", -3, (1 << 18) + 1 },
        { offsetof(kvmem_train_config, max_tokens), "max_tokens", 0, (1 << 24) + 1 },
        { offsetof(kvmem_train_config, max_len), "max_len", 0, (1 << 20) + 1 },
        { offsetof(kvmem_train_config, prefix), "prefix", -1, (1 << 16) + 1 },
        { offsetof(kvmem_train_config, threads), "threads", -1, 1025 },
    };
    const kvmem_train_config good = config_of(&shapes[0]);
    kvmem_train_config c;
    kvmem_trainer t;
    size_t i;
    for (i = 0; i < sizeof field / sizeof *field; i++) {
        c = good;
        *(int *)(void *)((char *)&c + field[i].at) = field[i].lo;
        init_refuses(&c, field[i].word);
        *(int *)(void *)((char *)&c + field[i].at) = field[i].hi;
        init_refuses(&c, field[i].word);
    }
    c = good; c.n_heads = 3; init_refuses(&c, "evenly");
    c = good; c.head_dim = 5; init_refuses(&c, "odd");
    c = good; c.norm_eps = 0; init_refuses(&c, "norm_eps");
    c = good; c.norm_eps = NAN; init_refuses(&c, "norm_eps");
    c = good; c.rope_base = 1; init_refuses(&c, "rope_base");
    c = good; c.rope_base = NAN; init_refuses(&c, "rope_base");
    c = good; c.rope_base = INFINITY; init_refuses(&c, "rope_base");
    c = good; c.n_heads = c.n_kv_heads = 1024; c.max_tokens = 1 << 24; init_refuses(&c, "too many");
    init_refuses(NULL, "no configuration");
    CHECK(kvmem_trainer_init(NULL, &good) == KVMEM_BAD_ARGUMENT);
    memset(&t, 0, sizeof t);
    kvmem_trainer_free(&t);
    kvmem_trainer_free(NULL);
}
static void run_refuses(kvmem_trainer *t, const kvmem_batch *b, const char *word) {
    const kvmem_status status = kvmem_trainer_run(t, b, 1, NULL);
    if (status != KVMEM_BAD_ARGUMENT || !strstr(t->error.text, word))
        FAIL_AT("%s: %s '%s'", word, kvmem_status_string(status), t->error.text);
}
TEST(wrong_batches_are_refused) {
    const shape *s = &shapes[1];
    kvmem_train_config c = config_of(s);
    data x = data_of(s, 1);
    kvmem_trainer t, none;
    kvmem_batch b;
    float zero[12] = { 0 };
    size_t i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    b = x.b; b.ids = NULL; run_refuses(&t, &b, "ids");
    b = x.b; b.target = NULL; run_refuses(&t, &b, "targets");
    run_refuses(&t, NULL, "ids");
    b = x.b; b.n_seq = 3; run_refuses(&t, &b, "3 x 6");
    b = x.b; b.len = 7; b.n_seq = 1; run_refuses(&t, &b, "1 x 7");
    b = x.b; b.len = 0; run_refuses(&t, &b, "2 x 0");
    b = x.b; b.n_seq = -1; run_refuses(&t, &b, "-1 x 6");
    b = x.b; b.n_seq = 1 << 30; run_refuses(&t, &b, "tokens");
    x.ids[4] = 13; run_refuses(&t, &x.b, "id 13");
    x.ids[4] = -1; run_refuses(&t, &x.b, "id -1");
    x.ids[4] = 0; x.target[11] = 13; run_refuses(&t, &x.b, "target 13");
    x.target[11] = 0; x.weight[2] = NAN; run_refuses(&t, &x.b, "weight");
    x.weight[2] = -1; run_refuses(&t, &x.b, "weight");
    x.weight[2] = INFINITY; run_refuses(&t, &x.b, "weight");
    x.weight[2] = 1; b = x.b; b.weight = zero; run_refuses(&t, &b, "no token");
    for (i = 0; i < t.n_values; i++) CHECK(t.grad[i] == 0);
    CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, NULL));
    memset(&none, 0, sizeof none);
    CHECK(kvmem_trainer_run(&none, &x.b, 1, NULL) == KVMEM_BAD_STATE && none.error.text[0]);
    CHECK(kvmem_trainer_run(NULL, &x.b, 1, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_trainer_load(&none, NULL) == KVMEM_BAD_STATE);
    CHECK(kvmem_trainer_load(NULL, NULL) == KVMEM_BAD_ARGUMENT);
    kvmem_trainer_random(&none, 1);
    kvmem_trainer_random(NULL, 1);
    kvmem_trainer_zero(&none);
    kvmem_trainer_zero(NULL);
    data_free(&x);
    kvmem_trainer_free(&t);
}
TEST(wrong_steps_are_refused) {
    static const struct { size_t at; float value; } bad[] = {
        { offsetof(kvmem_adamw, lr), -1 },      { offsetof(kvmem_adamw, lr), NAN },
        { offsetof(kvmem_adamw, lr), INFINITY }, { offsetof(kvmem_adamw, beta1), 1 },
        { offsetof(kvmem_adamw, beta1), -0.1f }, { offsetof(kvmem_adamw, beta2), 1 },
        { offsetof(kvmem_adamw, beta2), NAN },   { offsetof(kvmem_adamw, eps), 0 },
        { offsetof(kvmem_adamw, eps), INFINITY }, { offsetof(kvmem_adamw, weight_decay), -1 },
        { offsetof(kvmem_adamw, weight_decay), NAN }, { offsetof(kvmem_adamw, clip), -1 },
        { offsetof(kvmem_adamw, clip), NAN },
    };
    const kvmem_adamw good = { 1e-3f, 0.9f, 0.99f, 1e-8f, 0.1f, 1 };
    kvmem_train_config c = config_of(&shapes[0]);
    kvmem_trainer t, none;
    size_t i;
    REQUIRE_OK(kvmem_trainer_init(&t, &c));
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        kvmem_adamw a = good;
        *(float *)(void *)((char *)&a + bad[i].at) = bad[i].value;
        t.error.text[0] = 0;
        CHECK(kvmem_trainer_update(&t, &a, NULL) == KVMEM_BAD_ARGUMENT && t.error.text[0] && t.updates == 0);
    }
    CHECK(kvmem_trainer_update(&t, NULL, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK_OK(kvmem_trainer_update(&t, &good, NULL));
    memset(&none, 0, sizeof none);
    CHECK(kvmem_trainer_update(&none, &good, NULL) == KVMEM_BAD_STATE && none.error.text[0]);
    CHECK(kvmem_trainer_update(NULL, &good, NULL) == KVMEM_BAD_ARGUMENT);
    kvmem_trainer_free(&t);
}

/* ---- memory ---- */
TEST(every_failed_allocation_is_an_error_and_leaves_nothing) {
    kvmem_train_config c = config_of(&shapes[2]);
    const kvmem_adamw a = { 1e-3f, 0.9f, 0.99f, 1e-8f, 0.1f, 1 };
    data x = data_of(&shapes[2], 1);
    kvmem_status status = KVMEM_NO_MEMORY;
    size_t k;
    for (k = 1; status != KVMEM_OK && k < 100; k++) {
        test_heap h;
        kvmem_trainer t;
        size_t calls;
        memset(&h, 0, sizeof h);
        h.fail_at = k;
        c.allocator = test_allocator(&h);
        status = kvmem_trainer_init(&t, &c);
        if (status == KVMEM_OK) {
            calls = h.calls;
            weights_of(&t, 1);
            CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, NULL));
            CHECK_OK(kvmem_trainer_update(&t, &a, NULL));
            CHECK(h.calls == calls); /* init takes all memory */
        } else CHECK(status == KVMEM_NO_MEMORY && strstr(t.error.text, "memory"));
        kvmem_trainer_free(&t);
        CHECK(h.live == 0 && !h.wrong);
    }
    CHECK(status == KVMEM_OK && k > 3);
    data_free(&x);
}
/* Refuses more than a few MiB and remembers the largest wish. */
static size_t largest_wish;
static void *modest_alloc(void *user, size_t size) {
    (void)user;
    if (size > largest_wish) largest_wish = size;
    return size > (size_t)8 << 20 ? NULL : malloc(size);
}
static void modest_release(void *user, void *p, size_t size) { (void)user; (void)size; free(p); }
TEST(sizes_of_huge_configurations_do_not_wrap) {
    kvmem_train_config c = config_of(&shapes[0]);
    const double address = (double)SIZE_MAX;
    double least;
    kvmem_trainer t;
    c.n_vocab = 1 << 20;
    c.n_embd = 1 << 16;
    c.n_layers = 1000;
    c.n_ff = 1 << 18;
    c.n_heads = c.n_kv_heads = 64;
    c.head_dim = 1024;
    c.max_tokens = 1 << 24;
    c.max_len = 1 << 20;
    c.prefix = 1 << 16;
    c.allocator.alloc = modest_alloc;
    c.allocator.release = modest_release;
    largest_wish = 0;
    CHECK(kvmem_trainer_init(&t, &c) == KVMEM_NO_MEMORY && strstr(t.error.text, "memory"));
    kvmem_trainer_free(&t);
    /* four copies of the weights and the activations, or nothing was asked for */
    least = 4.0 * ((double)c.n_layers * c.n_embd * (4.0 * 65536 + 3.0 * c.n_ff) * 4 +
                   (double)c.n_layers * c.max_tokens * (7.0 * 65536 + 3.0 * c.n_ff));
    CHECK(least > address / 2 ? largest_wish < (size_t)8 << 20 : (double)largest_wish >= least);
    c.max_tokens = 1 << 22; /* one that passes every check on 64 bit, too, and wraps on 32 */
    c.n_layers = 1;
    largest_wish = 0;
    CHECK(kvmem_trainer_init(&t, &c) == KVMEM_NO_MEMORY);
    kvmem_trainer_free(&t);
    least = 4.0 * (double)c.max_tokens * (7.0 * 65536 + 3.0 * c.n_ff);
    CHECK(least > address / 2 ? largest_wish < (size_t)8 << 20 : (double)largest_wish >= least);
}

/* ---- learning ---- */
TEST(copying_from_three_tokens_back_is_learned_and_gives_the_same_bits_again) {
    static const shape s = { "copy", 12, 32, 1, 2, 1, 16, 32, 1, 0, 0, 0, 8, 24, 1 };
    kvmem_adamw a = { 0, 0.9f, 0.99f, 1e-8f, 0.01f, 1 };
    float *first = NULL;
    int turn, step, i;
    for (turn = 0; turn < 2; turn++) {
        kvmem_train_config c = config_of(&s);
        kvmem_trainer t;
        double loss = 100, begin = 0;
        c.threads = 1 + turn;
        c.recompute = turn;
        REQUIRE_OK(kvmem_trainer_init(&t, &c));
        kvmem_trainer_random(&t, 4);
        for (step = 0; step < 300; step++) {
            data x = data_of(&s, (uint64_t)(1000 + step));
            for (i = 0; i < s.n_seq * s.len; i++) {
                x.weight[i] = i % s.len >= 3 ? 1.0f : 0.0f;
                x.target[i] = i % s.len >= 3 ? x.ids[i - 3] : 0;
            }
            kvmem_trainer_zero(&t);
            CHECK_OK(kvmem_trainer_run(&t, &x.b, 1, &loss));
            if (!step) begin = loss;
            a.lr = kvmem_cosine(step, 10, 300, 1e-2f, 1e-4f);
            CHECK_OK(kvmem_trainer_update(&t, &a, NULL));
            data_free(&x);
        }
        if (getenv("KVMEM_TEST_SHOW")) printf("copying: loss from %g to %g\n", begin, loss);
        CHECK(begin > 2 && loss < 0.1);
        if (!first) {
            first = (float *)malloc(t.n_values * sizeof *first);
            if (!first) exit(2);
            memcpy(first, t.w, t.n_values * sizeof *first);
        } else CHECK(!memcmp(first, t.w, t.n_values * sizeof *first));
        kvmem_trainer_free(&t);
    }
    free(first);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "train");
    RUN(every_gradient_is_the_slope_of_the_loss_in_small_shapes);
    RUN(every_gradient_is_the_slope_of_the_loss_across_blocks);
    RUN(trained_bits_depend_neither_on_threads_nor_on_recomputing);
    RUN(a_step_along_the_gradient_changes_the_loss_by_its_squared_length);
    RUN(gradients_are_added_until_they_are_cleared);
    RUN(places_without_weight_are_not_asked_for);
    RUN(trainer_and_decoder_compute_the_same_losses);
    RUN(weights_come_back_from_a_model_file);
    RUN(models_of_another_shape_are_refused);
    RUN(adamw_is_its_formula);
    RUN(matrices_decay_and_norms_and_prefixes_do_not);
    RUN(a_gradient_that_is_not_finite_changes_nothing);
    RUN(the_learning_rate_rises_and_falls_as_half_a_cosine);
    RUN(wrong_configurations_are_refused_by_name);
    RUN(wrong_batches_are_refused);
    RUN(wrong_steps_are_refused);
    RUN(every_failed_allocation_is_an_error_and_leaves_nothing);
    RUN(sizes_of_huge_configurations_do_not_wrap);
    RUN(copying_from_three_tokens_back_is_learned_and_gives_the_same_bits_again);
    return test_end();
}
