/* net.h - a tiny transformer of any supported architecture: random weights, its GGUF file, and its
   logits in double precision computed the plain way (no cache, no blocks, all positions at once), from
   the description alone. Nothing of the library but byte stores and random numbers is used.
   Include after test.h and tiny.h. */
#ifndef KVMEM_NET_H
#define KVMEM_NET_H
#include <math.h>

typedef struct net_layer {
    float *attn_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *o, *attn_post, *ffn_norm, *gate_up, *down, *ffn_post;
} net_layer;
enum { NET_MAX_LAYERS = 46, NET_MAX_TENSORS = 512 };
typedef struct net {
    const char *arch, *scaling;   /* scaling: text of rope.scaling.type or NULL */
    int E, F, L, H, G, d, V, ctx, orig_ctx;
    int tied, bias, qk_norm, post, fused, gelu, neox, n_rot, window, pattern;
    double base, base_local, factor, attn_factor, softcap, final_cap, attn_scale, eps;
    int yarn, llama3, longrope;   /* longrope: 1 uses the short factors, 2 the long ones */
    int act_group;                /* > 0: what a matrix is multiplied with is rounded to 8 bits in such groups */
    float *embd, *head, *out_norm, *freqs, *freqs_long, *freqs_short;
    net_layer layer[NET_MAX_LAYERS];
    float *owned[NET_MAX_TENSORS];
    int n_owned;
    uint64_t seed;
} net;

/* The architecture as published, tiny. A test changes fields, then calls net_build. */
static KVMEM__UNUSED net net_default(const char *arch) {
    net n;
    const int gemma = !strncmp(arch, "gemma", 5);
    memset(&n, 0, sizeof n);
    n.arch = arch;
    n.E = 24; n.F = 40; n.L = 3; n.H = 4; n.G = 2; n.d = 8; n.V = 50; n.ctx = 64; n.orig_ctx = 64;
    n.neox = strcmp(arch, "llama") != 0;
    n.n_rot = n.d;
    n.base = n.base_local = 10000;
    n.factor = n.attn_factor = 1;
    n.eps = 1e-5;
    n.attn_scale = 1 / sqrt((double)n.d);
    n.bias = !strcmp(arch, "qwen2");
    n.qk_norm = !strcmp(arch, "qwen3") || !strcmp(arch, "gemma3");
    n.post = n.gelu = n.tied = gemma;
    if (!strcmp(arch, "gemma2")) { n.softcap = 50; n.final_cap = 30; n.window = 7; n.pattern = 2; }
    if (!strcmp(arch, "gemma3")) { n.window = 5; n.pattern = 6; n.L = 7; n.base = 1e6; }
    if (!strcmp(arch, "phi3")) { n.fused = 1; n.window = 9; n.E = 32; }
    n.seed = 1;
    return n;
}
/* count numbers of mean `mean` and deviation dev */
static KVMEM__UNUSED float *net_random(net *n, size_t count, double mean, double dev) {
    float *p = (float *)malloc(count * sizeof *p);
    size_t i, j;
    if (!p || n->n_owned == NET_MAX_TENSORS) { fprintf(stderr, "net.h: no room\n"); exit(2); }
    for (i = 0; i < count; i++) {
        double s = -2;
        for (j = 0; j < 4; j++) s += kvmem__unit(kvmem__random(n->seed, (uint64_t)n->n_owned, i, j));
        p[i] = (float)(mean + dev * s * 1.7320508);
    }
    n->owned[n->n_owned++] = p;
    return p;
}
static KVMEM__UNUSED float *net_matrix(net *n, int rows, int cols) {
    return net_random(n, (size_t)rows * (size_t)cols, 0, 1.2 / sqrt((double)cols));
}
static KVMEM__UNUSED void net_build(net *n) {
    const int q = n->H * n->d, k = n->G * n->d;
    int l;
    n->embd = net_random(n, (size_t)n->V * (size_t)n->E, 0, 1);
    n->head = n->tied ? n->embd : net_matrix(n, n->V, n->E);
    n->out_norm = net_random(n, (size_t)n->E, 1, 0.2);
    if (n->llama3) n->freqs = net_random(n, (size_t)n->n_rot / 2, 3, 0.5);
    if (n->longrope) {
        n->freqs_long = net_random(n, (size_t)n->n_rot / 2, 3, 0.5);
        n->freqs_short = net_random(n, (size_t)n->n_rot / 2, 1.5, 0.2);
    }
    for (l = 0; l < n->L; l++) {
        net_layer *y = &n->layer[l];
        y->attn_norm = net_random(n, (size_t)n->E, 1, 0.2);
        y->qkv = net_matrix(n, q + 2 * k, n->E);
        if (n->bias) y->qkv_bias = net_random(n, (size_t)(q + 2 * k), 0, 0.5);
        if (n->qk_norm) {
            y->q_norm = net_random(n, (size_t)n->d, 1, 0.3);
            y->k_norm = net_random(n, (size_t)n->d, 1, 0.3);
        }
        y->o = net_matrix(n, n->E, q);
        y->ffn_norm = net_random(n, (size_t)n->E, 1, 0.2);
        if (n->post) {
            y->attn_post = net_random(n, (size_t)n->E, 1, 0.2);
            y->ffn_post = net_random(n, (size_t)n->E, 1, 0.2);
        }
        y->gate_up = net_matrix(n, 2 * n->F, n->E);
        y->down = net_matrix(n, n->E, n->F);
    }
}
static KVMEM__UNUSED void net_free(net *n) {
    while (n->n_owned) free(n->owned[--n->n_owned]);
}

/* ---- the file ---- */
static KVMEM__UNUSED void net_put(tiny_gguf *g, const char *name, const float *x, int ne0, int ne1) {
    const size_t n = (size_t)ne0 * (size_t)ne1;
    size_t i;
    tiny_text(&g->infos, name);
    tiny_u32(&g->infos, ne1 > 1 ? 2 : 1);
    tiny_u64(&g->infos, (uint64_t)ne0);
    if (ne1 > 1) tiny_u64(&g->infos, (uint64_t)ne1);
    tiny_u32(&g->infos, 0);
    tiny_u64(&g->infos, g->data.n);
    for (i = 0; i < n; i++) tiny_f32(&g->data, x[i]);
    while (g->data.n % 32) tiny_add(&g->data, "", 1);
    g->n_tensors++;
}
static KVMEM__UNUSED const char *net_key(const net *n, const char *part) {
    static char key[96];
    snprintf(key, sizeof key, "%s.%s", n->arch, part);
    return key;
}
static KVMEM__UNUSED void net_put_layer(const net *n, tiny_gguf *g, int l) {
    const net_layer *y = &n->layer[l];
    const int q = n->H * n->d, k = n->G * n->d;
    char name[64];
#define NET_PUT(part, x, ne0, ne1) \
    do { snprintf(name, sizeof name, "blk.%d." part, l); net_put(g, name, x, ne0, ne1); } while (0)
    NET_PUT("attn_norm.weight", y->attn_norm, n->E, 1);
    if (n->fused) {
        NET_PUT("attn_qkv.weight", y->qkv, n->E, q + 2 * k);
        if (n->bias) NET_PUT("attn_qkv.bias", y->qkv_bias, q + 2 * k, 1);
        NET_PUT("ffn_up.weight", y->gate_up, n->E, 2 * n->F);
    } else {
        NET_PUT("attn_q.weight", y->qkv, n->E, q);
        NET_PUT("attn_k.weight", y->qkv + q * n->E, n->E, k);
        NET_PUT("attn_v.weight", y->qkv + (q + k) * n->E, n->E, k);
        if (n->bias) {
            NET_PUT("attn_q.bias", y->qkv_bias, q, 1);
            NET_PUT("attn_k.bias", y->qkv_bias + q, k, 1);
            NET_PUT("attn_v.bias", y->qkv_bias + q + k, k, 1);
        }
        NET_PUT("ffn_gate.weight", y->gate_up, n->E, n->F);
        NET_PUT("ffn_up.weight", y->gate_up + n->F * n->E, n->E, n->F);
    }
    if (n->qk_norm) {
        NET_PUT("attn_q_norm.weight", y->q_norm, n->d, 1);
        NET_PUT("attn_k_norm.weight", y->k_norm, n->d, 1);
    }
    NET_PUT("attn_output.weight", y->o, q, n->E);
    NET_PUT("ffn_norm.weight", y->ffn_norm, n->E, 1);
    if (n->post) {
        NET_PUT("post_attention_norm.weight", y->attn_post, n->E, 1);
        NET_PUT("post_ffw_norm.weight", y->ffn_post, n->E, 1);
    }
    NET_PUT("ffn_down.weight", y->down, n->F, n->E);
#undef NET_PUT
}
/* The caller frees the bytes. */
static KVMEM__UNUSED uint8_t *net_gguf(const net *n, size_t *size) {
    tiny_gguf g;
    int l;
    memset(&g, 0, sizeof g);
    tiny_set_text(&g, "general.architecture", n->arch);
    tiny_set_u32(&g, net_key(n, "context_length"), (uint32_t)n->ctx);
    tiny_set_u32(&g, net_key(n, "embedding_length"), (uint32_t)n->E);
    tiny_set_u32(&g, net_key(n, "block_count"), (uint32_t)n->L);
    tiny_set_u32(&g, net_key(n, "feed_forward_length"), (uint32_t)n->F);
    tiny_set_u32(&g, net_key(n, "attention.head_count"), (uint32_t)n->H);
    tiny_set_u32(&g, net_key(n, "attention.head_count_kv"), (uint32_t)n->G);
    tiny_set_u32(&g, net_key(n, "attention.key_length"), (uint32_t)n->d);
    tiny_set_u32(&g, net_key(n, "attention.value_length"), (uint32_t)n->d);
    tiny_set_f32(&g, net_key(n, "attention.layer_norm_rms_epsilon"), (float)n->eps);
    tiny_set_f32(&g, net_key(n, "rope.freq_base"), (float)n->base);
    tiny_set_u32(&g, net_key(n, "rope.dimension_count"), (uint32_t)n->n_rot);
    if (n->window) tiny_set_u32(&g, net_key(n, "attention.sliding_window"), (uint32_t)n->window);
    if (n->softcap > 0) tiny_set_f32(&g, net_key(n, "attn_logit_softcapping"), (float)n->softcap);
    if (n->final_cap > 0) tiny_set_f32(&g, net_key(n, "final_logit_softcapping"), (float)n->final_cap);
    if (n->scaling) tiny_set_text(&g, net_key(n, "rope.scaling.type"), n->scaling);
    if (n->factor > 1) tiny_set_f32(&g, net_key(n, "rope.scaling.factor"), (float)n->factor);
    if (n->attn_factor > 1) tiny_set_f32(&g, net_key(n, "rope.scaling.attn_factor"), (float)n->attn_factor);
    if (n->orig_ctx != n->ctx)
        tiny_set_u32(&g, net_key(n, "rope.scaling.original_context_length"), (uint32_t)n->orig_ctx);
    net_put(&g, "token_embd.weight", n->embd, n->E, n->V);
    if (!n->tied) net_put(&g, "output.weight", n->head, n->E, n->V);
    net_put(&g, "output_norm.weight", n->out_norm, n->E, 1);
    if (n->freqs) net_put(&g, "rope_freqs.weight", n->freqs, n->n_rot / 2, 1);
    if (n->longrope) {
        net_put(&g, "rope_factors_long.weight", n->freqs_long, n->n_rot / 2, 1);
        net_put(&g, "rope_factors_short.weight", n->freqs_short, n->n_rot / 2, 1);
    }
    for (l = 0; l < n->L; l++) net_put_layer(n, &g, l);
    return tiny_finish(&g, size);
}

/* ---- the oracle ---- */
static KVMEM__UNUSED double *net_new(int count) {
    double *p = (double *)calloc((size_t)count, sizeof *p);
    if (!p) { fprintf(stderr, "net.h: no memory\n"); exit(2); }
    return p;
}
static KVMEM__UNUSED void net_norm(double *out, const double *x, const float *w, int n, double eps) {
    double s = 0;
    int i;
    for (i = 0; i < n; i++) s += x[i] * x[i];
    s = 1 / sqrt(s / n + eps);
    for (i = 0; i < n; i++) out[i] = x[i] * s * (double)w[i];
}
static KVMEM__UNUSED void net_mul(const net *n, double *out, const float *w, const double *vector, int rows, int cols) {
    double *x = net_new(cols);
    int i, j;
    for (i = 0; i < cols; i++) x[i] = vector[i];
    for (i = 0; n->act_group && i < cols; i += n->act_group) {
        double most = 0;
        for (j = i; j < i + n->act_group; j++) most = fmax(most, fabs(x[j]));
        for (j = i; j < i + n->act_group && most > 0; j++) x[j] = floor(x[j] * 127 / most + 0.5) * most / 127;
    }
    for (i = 0; i < rows; i++) {
        double s = 0;
        for (j = 0; j < cols; j++) s += (double)w[i * cols + j] * x[j];
        out[i] = s;
    }
    free(x);
}
static KVMEM__UNUSED double net_corr(const net *n, double base, double turns) {
    return n->n_rot * log(n->orig_ctx / (turns * 2 * 3.14159265358979323846)) / (2 * log(base));
}
static KVMEM__UNUSED void net_rope(const net *n, double *x, int pos, int local) {
    const double base = local && !strcmp(n->arch, "gemma3") ? n->base_local : n->base;
    const double scale = local && !strcmp(n->arch, "gemma3") ? 1 : 1 / n->factor;
    const float *ff = n->longrope ? (n->longrope == 2 ? n->freqs_long : n->freqs_short) : n->freqs;
    const double m = n->attn_factor * (n->yarn ? 1 + 0.1 * log(1 / scale) : 1);
    int i;
    for (i = 0; i < n->n_rot / 2; i++) {
        const int a = n->neox ? i : 2 * i, b = n->neox ? i + n->n_rot / 2 : 2 * i + 1;
        const double extra = pos * pow(base, -2.0 * i / n->n_rot) / (ff ? (double)ff[i] : 1.0);
        double t = extra * scale, u, v;
        if (n->yarn) {
            const double lo = fmax(0, floor(net_corr(n, base, 32)));
            const double hi = fmin(n->n_rot - 1, ceil(net_corr(n, base, 1)));
            const double mix = 1 - fmin(1, fmax(0, (i - lo) / fmax(0.001, hi - lo)));
            t = t * (1 - mix) + extra * mix;
        }
        u = x[a]; v = x[b];
        x[a] = (u * cos(t) - v * sin(t)) * m;
        x[b] = (u * sin(t) + v * cos(t)) * m;
    }
}
/* One attention head of token t over all earlier ones; k, v rows are `stride` apart. */
static KVMEM__UNUSED void net_head(const net *n, const double *q, const double *k, const double *v, int stride,
                                   int t, int window, double *out) {
    const int from = window > 0 && t - window + 1 > 0 ? t - window + 1 : 0;
    double *p = net_new(t + 1), top = -1e300, sum = 0;
    int i, j;
    for (i = from; i <= t; i++) {
        double s = 0;
        for (j = 0; j < n->d; j++) s += q[j] * k[i * stride + j];
        s *= n->attn_scale;
        if (n->softcap > 0) s = n->softcap * tanh(s / n->softcap);
        p[i] = s;
        if (s > top) top = s;
    }
    for (i = from; i <= t; i++) sum += p[i] = exp(p[i] - top);
    for (j = 0; j < n->d; j++) {
        double s = 0;
        for (i = from; i <= t; i++) s += p[i] * v[i * stride + j];
        out[j] = s / sum;
    }
    free(p);
}
static KVMEM__UNUSED double net_act(const net *n, double g) {
    return n->gelu ? 0.5 * g * (1 + tanh(0.79788456080286535588 * (g + 0.044715 * g * g * g))) : g / (1 + exp(-g));
}
static KVMEM__UNUSED void net_run_layer(const net *n, int l, double *x, int count) {
    const net_layer *y = &n->layer[l];
    const int q = n->H * n->d, k = n->G * n->d, all = q + 2 * k;
    const int global = n->pattern ? (l + 1) % n->pattern == 0 : 0, window = global ? 0 : n->window;
    const int local = n->pattern && !global;
    double *rows = net_new(count * all), *h = net_new(n->E), *att = net_new(q), *gu = net_new(2 * n->F);
    int t, i;
    for (t = 0; t < count; t++) {
        double *r = rows + t * all;
        net_norm(h, x + t * n->E, y->attn_norm, n->E, n->eps);
        net_mul(n, r, y->qkv, h, all, n->E);
        for (i = 0; n->bias && i < all; i++) r[i] += (double)y->qkv_bias[i];
        for (i = 0; i < n->H + n->G; i++) {
            if (n->qk_norm) net_norm(r + i * n->d, r + i * n->d, i < n->H ? y->q_norm : y->k_norm, n->d, n->eps);
            net_rope(n, r + i * n->d, t, local);
        }
    }
    for (t = 0; t < count; t++) {
        for (i = 0; i < n->H; i++) {
            const int g = i / (n->H / n->G);
            net_head(n, rows + t * all + i * n->d, rows + q + g * n->d, rows + q + k + g * n->d, all, t, window,
                     att + i * n->d);
        }
        net_mul(n, h, y->o, att, n->E, q);
        if (n->post) net_norm(h, h, y->attn_post, n->E, n->eps);
        for (i = 0; i < n->E; i++) x[t * n->E + i] += h[i];
        net_norm(h, x + t * n->E, y->ffn_norm, n->E, n->eps);
        net_mul(n, gu, y->gate_up, h, 2 * n->F, n->E);
        for (i = 0; i < n->F; i++) gu[i] = net_act(n, gu[i]) * gu[n->F + i];
        net_mul(n, h, y->down, gu, n->E, n->F);
        if (n->post) net_norm(h, h, y->ffn_post, n->E, n->eps);
        for (i = 0; i < n->E; i++) x[t * n->E + i] += h[i];
    }
    free(rows); free(h); free(att); free(gu);
}
/* Logits of all tokens: (count, V). The caller frees them. */
static KVMEM__UNUSED double *net_logits(const net *n, const int *ids, int count) {
    double *x = net_new(count * n->E), *out = net_new(count * n->V), *h = net_new(n->E);
    const double scale = !strncmp(n->arch, "gemma", 5) ? sqrt((double)n->E) : 1;
    int t, l, i;
    for (t = 0; t < count; t++)
        for (i = 0; i < n->E; i++) x[t * n->E + i] = (double)n->embd[ids[t] * n->E + i] * scale;
    for (l = 0; l < n->L; l++) net_run_layer(n, l, x, count);
    for (t = 0; t < count; t++) {
        net_norm(h, x + t * n->E, n->out_norm, n->E, n->eps);
        net_mul(n, out + t * n->V, n->head, h, n->V, n->E);
        for (i = 0; n->final_cap > 0 && i < n->V; i++)
            out[t * n->V + i] = n->final_cap * tanh(out[t * n->V + i] / n->final_cap);
    }
    free(x); free(h);
    return out;
}

/* A llama2.c legacy file in float32 as a net: the pointers go into one owned copy of its numbers. */
static KVMEM__UNUSED int net_llama2c(net *n, const uint8_t *b, size_t size) {
    size_t count = (size - 28) / 4, i;
    float *p, *w = (float *)malloc(count * sizeof *w);
    int l, q, k;
    if (!w) return 0;
    *n = net_default("llama");
    n->E = (int)kvmem__le32(b); n->F = (int)kvmem__le32(b + 4); n->L = (int)kvmem__le32(b + 8);
    n->H = (int)kvmem__le32(b + 12); n->G = (int)kvmem__le32(b + 16); n->V = (int)kvmem__le32(b + 20);
    n->d = n->n_rot = n->E / n->H;
    n->attn_scale = 1 / sqrt((double)n->d);
    n->tied = 1;
    n->owned[n->n_owned++] = w;
    for (i = 0; i < count; i++) w[i] = kvmem__lef32(b + 28 + i * 4);
    q = n->E; k = n->G * n->d;
    p = w; n->embd = n->head = p; p += n->V * n->E;
    for (l = 0; l < n->L; l++, p += n->E) n->layer[l].attn_norm = p;
    for (l = 0; l < n->L; l++) { /* the oracle wants q, k, v and gate, up side by side */
        float *y = (float *)malloc((size_t)((q + 2 * k) * n->E) * sizeof *y);
        float *gu = (float *)malloc((size_t)(2 * n->F * n->E) * sizeof *gu);
        const float *mq = p + l * q * q, *mk = p + n->L * q * q + l * k * q, *mv = mk + n->L * k * q;
        float *mo = p + n->L * (q * q + 2 * k * q), *f = mo + n->L * q * q;
        if (!y || !gu) return 0;
        n->owned[n->n_owned++] = y; n->owned[n->n_owned++] = gu;
        memcpy(y, mq, (size_t)(q * q) * 4);
        memcpy(y + q * q, mk, (size_t)(k * q) * 4);
        memcpy(y + q * q + k * q, mv, (size_t)(k * q) * 4);
        n->layer[l].qkv = y;
        n->layer[l].o = mo + l * q * q;
        n->layer[l].ffn_norm = f + l * q;
        f += n->L * q;
        memcpy(gu, f + l * n->F * q, (size_t)(n->F * q) * 4);
        n->layer[l].down = f + n->L * n->F * q + l * n->F * q;
        memcpy(gu + n->F * q, f + 2 * n->L * n->F * q + l * n->F * q, (size_t)(n->F * q) * 4);
        n->layer[l].gate_up = gu;
        n->out_norm = f + 3 * n->L * n->F * q;
    }
    return 1;
}
#endif
