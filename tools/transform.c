/* transform.c - writes a model with fewer or shared key and value heads, as an ordinary GGUF file.

       transform kvheads -m IN.gguf -o OUT.gguf [--group 2] [--by svd-a|svd-w|mean] [--text FILE]
       transform share -m IN.gguf -o OUT.gguf [--what kv|qk|qkv]

   kvheads: t = --group KV heads become one (Yu et al. Effectively Compress KV Heads for LLM. 2024.
   arXiv 2406.07056; no code found). With the t heads' rows side by side, x (t d), and the Gram
   matrix M = sum x x^T over calibration text (svd-a) or the weights' columns (svd-w), the heads are
   replaced by c = D x, x ~ D^T c, where D (d, t d) has orthonormal rows:
       W_K' = D W_K    q_h' = D_i q_h       as q . (D_i^T c) = (D_i q) . c; i: h's head in the group
       W_V' = D W_V    W_O,h' = W_O,h D_i^T
   so the result is a GQA model that runs anywhere; biases are one more column. For V, and for
   channels of K without RoPE, the rows of D are the d leading eigenvectors of M. Rotated channels
   may only be mixed so that rotating commutes with mixing: the pair (a, b) of head i is a complex
   number z_i = a_i + i b_i, RoPE multiplies all z_i by the same e^(i angle), so c = sum conj(u_i)
   z_i, z_i ~ u_i c, with u the leading eigenvector of the Hermitian matrix sum z z^H (t, t). (The
   paper's way for RoPE keys is not public; this one is ours. The other, to keep c before RoPE and
   rebuild every head when it is read, costs d^2 products a head and token: the codec lowrank.)
   mean: the mean of the heads, that is u = 1/sqrt(t). Captured energy: trace(D M D^T) / trace(M),
   the largest that any D of its kind has for svd-a on the text; 1 minus it is the relative error.

   share: W_V := W_K (Q-K=V), every head's W_Q := W_K (Q=K-V), or both (Kayyam et al. Do
   Transformers Need Three Projections? 2026. arXiv 2606.04032; code
   Brainchip-Inc/Do-Transformers-Need-3-Projections). The paper trains such models from the start; a
   trained model is ruined by it, but it shows the mechanics: with V = K before RoPE one row a token
   and KV head is enough, which the recipe qkv_share keeps: half the bytes of codec=f16.

   Tests include this file with TRANSFORM_NO_MAIN. */
#include <ctype.h>
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include "gguf_write.h"

enum { TRANSFORM_SVD_A, TRANSFORM_SVD_W, TRANSFORM_MEAN, TRANSFORM_SHARE };
typedef struct transform {
    int by, group, share_q, share_v; /* group: t */
    const int *ids;                  /* (n_ids) calibration, for svd-a */
    int n_ids;
    double kept_k, kept_v; /* out: captured energy, mean over layers and groups */
    char why[320];         /* of a failure */
} transform;

/* What a layer becomes. Rows of q, k, v have n_embd weights and a bias. */
typedef struct transform_layer {
    float *q, *k, *v, *o, *gram_k, *gram_v;
} transform_layer;

static int transform_fail(transform *a, const char *what, const char *why) {
    snprintf(a->why, sizeof a->why, "%s: %s", what, why);
    return 0;
}
static float *transform_floats(size_t n) {
    float *p = (float *)calloc(n ? n : 1, sizeof *p);
    if (!p) {
        fprintf(stderr, "transform: out of memory\n");
        exit(2);
    }
    return p;
}
/* out (rows, cols + 1 with a bias column, or cols) */
static float *transform_matrix(const kvmem_tensor *w, const float *bias, int with_bias) {
    const size_t rows = (size_t)w->ne[1], cols = (size_t)w->ne[0], width = cols + (size_t)with_bias;
    const size_t bytes = w->size / rows;
    float *out = transform_floats(rows * width);
    size_t i;
    for (i = 0; i < rows; i++) {
        kvmem_dequantize(w->type, out + i * width, w->data + i * bytes, cols);
        if (with_bias && bias) out[i * width + cols] = bias[i];
    }
    return out;
}

/* ==== the basis ============================================================================== */

/* D's rows at channels ch (m): the eigenvectors of M at these channels of all heads. */
static void transform_real(float *d_out, const float *gram, int t, int d, const int *ch, int m) {
    const size_t td = (size_t)(t * d), n = (size_t)(t * m);
    float *a = transform_floats(n * n), *vec = transform_floats(n * n), *val = transform_floats(n);
    size_t i, j;
    for (i = 0; i < n; i++)
        for (j = 0; j < n; j++)
            a[i * n + j] = gram[(i / (size_t)m * (size_t)d + (size_t)ch[i % (size_t)m]) * td +
                                j / (size_t)m * (size_t)d + (size_t)ch[j % (size_t)m]];
    kvmem__eigen(vec, val, a, (int)n);
    for (i = 0; i < (size_t)m; i++)
        for (j = 0; j < n; j++)
            d_out[(size_t)ch[i] * td + j / (size_t)m * (size_t)d + (size_t)ch[j % (size_t)m]] =
                vec[i * n + j];
    free(a);
    free(vec);
    free(val);
}
/* The leading complex direction of the pair (x, y) of channels: u (t) real, imaginary. */
static void transform_complex(float *d_out, const float *gram, int t, int d, int x, int y) {
    const size_t td = (size_t)(t * d), n = 2 * (size_t)t;
    float *a = transform_floats(n * n), *vec = transform_floats(n * n), *val = transform_floats(n);
    int i, j;
    for (i = 0; i < t; i++)
        for (j = 0; j < t; j++) {
            const size_t ix = (size_t)(i * d + x), iy = (size_t)(i * d + y);
            const size_t jx = (size_t)(j * d + x), jy = (size_t)(j * d + y);
            const float re = gram[ix * td + jx] + gram[iy * td + jy];
            const float im = gram[iy * td + jx] - gram[ix * td + jy];
            a[(size_t)i * n + (size_t)j] = a[(size_t)(i + t) * n + (size_t)(j + t)] = re;
            a[(size_t)(i + t) * n + (size_t)j] = im;
            a[(size_t)i * n + (size_t)(j + t)] = -im;
        }
    kvmem__eigen(vec, val, a, (int)n); /* every eigenvalue is there twice: u and i u */
    for (i = 0; i < t; i++) {
        const float re = vec[i], im = vec[i + t];
        d_out[(size_t)x * td + (size_t)(i * d + x)] = d_out[(size_t)y * td + (size_t)(i * d + y)] =
            re;
        d_out[(size_t)x * td + (size_t)(i * d + y)] = im;
        d_out[(size_t)y * td + (size_t)(i * d + x)] = -im;
    }
    free(a);
    free(vec);
    free(val);
}
/* D (d, t d) for one group. Pairs of rotated channels: (2f, 2f+1), neox: (f, f + n_rot/2). */
static void transform_basis(float *d_out, const float *gram, int t, int d, int n_rot, int neox) {
    int *rest = (int *)(void *)transform_floats((size_t)d);
    int f, m = 0;
    memset(d_out, 0, (size_t)d * (size_t)(t * d) * sizeof(float));
    for (f = 0; f < n_rot / 2; f++)
        transform_complex(d_out, gram, t, d, neox ? f : 2 * f, neox ? f + n_rot / 2 : 2 * f + 1);
    for (f = n_rot; f < d; f++) rest[m++] = f;
    if (m) transform_real(d_out, gram, t, d, rest, m);
    free(rest);
}
static void transform_mean(float *d_out, int t, int d) {
    int i, c;
    memset(d_out, 0, (size_t)d * (size_t)(t * d) * sizeof(float));
    for (i = 0; i < t; i++)
        for (c = 0; c < d; c++)
            d_out[(size_t)c * (size_t)(t * d) + (size_t)(i * d + c)] = (float)(1 / sqrt((double)t));
}
/* trace(D M D^T) / trace(M); 1 for M = 0 */
static double transform_energy(const float *d_in, const float *gram, int t, int d) {
    const size_t td = (size_t)(t * d);
    double all = 0, kept = 0;
    size_t i, j;
    int r;
    for (i = 0; i < td; i++) all += (double)gram[i * td + i];
    for (r = 0; r < d; r++)
        for (i = 0; i < td; i++) {
            const double a = (double)d_in[(size_t)r * td + i];
            if (a == 0) continue;
            for (j = 0; j < td; j++)
                kept += a * (double)gram[i * td + j] * (double)d_in[(size_t)r * td + j];
        }
    return all > 0 ? kept / all : 1;
}

/* ==== Gram matrices =========================================================================== */

/* gram (G/t, td, td) += x (n, G d), for every group */
static void transform_add(float *gram, const float *x, int n, int stride, int groups, int td) {
    int i, g, a, b;
    for (i = 0; i < n; i++)
        for (g = 0; g < groups; g++) {
            const float *v = x + (size_t)i * (size_t)stride + (size_t)(g * td);
            float *m = gram + (size_t)g * (size_t)td * (size_t)td;
            for (a = 0; a < td; a++)
                for (b = 0; b < td; b++) m[(size_t)a * (size_t)td + (size_t)b] += v[a] * v[b];
        }
}
/* Runs the text and watches keys before RoPE and values. */
static int transform_watch(transform *a, const kvmem_model *m, transform_layer *layer) {
    const int td = a->group * m->head_dim, groups = m->n_kv_heads / a->group,
              stride = m->n_kv_heads * m->head_dim;
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_session s;
    int at, l, n, i, ok = 1;
    cfg.max_block = 128;
    if (kvmem_session_init(&s, m, &cfg)) return transform_fail(a, "calibration", s.error.text);
    for (at = 0; at < a->n_ids && ok; at += n) {
        n = a->n_ids - at < 128 ? a->n_ids - at : 128;
        s.backend->rows(s.backend, s.x, &m->embd, a->ids + at, n, s.threads);
        for (i = 0; i < n && m->embd_scale > 1.0f; i++)
            s.backend->scale(s.x + (size_t)i * (size_t)m->n_embd, m->embd_scale, m->n_embd);
        for (l = 0; l < m->n_layers && ok; l++) {
            s.backend->rmsnorm(s.h, s.x, m->layer[l].attn_norm, n, m->n_embd, m->norm_eps,
                               s.threads);
            ok = kvmem__attention_part(&s, l, n, 0, KVMEM_PREFILL) == KVMEM_OK;
            transform_add(layer[l].gram_k, s.k, n, stride, groups, td);
            transform_add(layer[l].gram_v, s.v, n, stride, groups, td);
            if (ok) kvmem__mixing_part(&s, l, n, s.x, s.att);
        }
        ok = ok && kvmem_cache_commit(&s.cache, KVMEM_PREFILL) == KVMEM_OK;
    }
    if (!ok) transform_fail(a, "calibration", s.cache.error.text);
    kvmem_session_free(&s);
    return ok;
}
/* The weights' columns are the samples. */
static void transform_weights(float *gram, const float *w, int td, int groups, int cols) {
    const size_t width = (size_t)cols + 1;
    int g, a, b, c;
    for (g = 0; g < groups; g++)
        for (a = 0; a < td; a++)
            for (b = 0; b < td; b++) {
                const float *x = w + ((size_t)(g * td) + (size_t)a) * width,
                            *y = w + ((size_t)(g * td) + (size_t)b) * width;
                double sum = 0;
                for (c = 0; c < cols; c++) sum += (double)x[c] * (double)y[c];
                gram[((size_t)g * (size_t)td + (size_t)a) * (size_t)td + (size_t)b] = (float)sum;
            }
}

/* ==== folding ================================================================================= */

/* out (d, width) = D_part (d, m: columns c0.. of D (d, td)) . in (m, width) */
static void transform_mix(float *out, const float *d_in, int td, int c0, const float *in, int m,
                          int d, int width) {
    int r, i, c;
    memset(out, 0, (size_t)d * (size_t)width * sizeof(float));
    for (r = 0; r < d; r++)
        for (i = 0; i < m; i++) {
            const float f = d_in[(size_t)r * (size_t)td + (size_t)(c0 + i)];
            for (c = 0; c < width && f != 0.0f; c++)
                out[(size_t)r * (size_t)width + (size_t)c] +=
                    f * in[(size_t)i * (size_t)width + (size_t)c];
        }
}
/* One group of a layer. q, o are changed in place; the new head of k and v goes to head g. */
static void transform_fold(const kvmem_model *m, transform_layer *y, int g, int t, const float *dk,
                           const float *dv) {
    const int d = m->head_dim, td = t * d, width = m->n_embd + 1, r = m->n_heads / m->n_kv_heads;
    const size_t cols = (size_t)m->n_heads * (size_t)d;
    float *tmp = transform_floats((size_t)d * (size_t)width);
    int h, e, a, b;
    for (h = g * t * r; h < (g + 1) * t * r; h++) {
        const int i = h / r - g * t; /* its head in the group */
        float *q = y->q + (size_t)(h * d) * (size_t)width;
        transform_mix(tmp, dk, td, i * d, q, d, d, width);
        memcpy(q, tmp, (size_t)d * (size_t)width * sizeof(float));
        for (e = 0; e < m->n_embd; e++) { /* row e of W_O, this head's columns, times D_i^T */
            float *o = y->o + (size_t)e * cols + (size_t)(h * d);
            for (a = 0; a < d; a++)
                for (tmp[a] = 0, b = 0; b < d; b++)
                    tmp[a] += o[b] * dv[(size_t)a * (size_t)td + (size_t)(i * d + b)];
            memcpy(o, tmp, (size_t)d * sizeof(float));
        }
    }
    transform_mix(tmp, dk, td, 0, y->k + (size_t)(g * td) * (size_t)width, td, d, width);
    memcpy(y->k + (size_t)(g * d) * (size_t)width, tmp, (size_t)d * (size_t)width * sizeof(float));
    transform_mix(tmp, dv, td, 0, y->v + (size_t)(g * td) * (size_t)width, td, d, width);
    memcpy(y->v + (size_t)(g * d) * (size_t)width, tmp, (size_t)d * (size_t)width * sizeof(float));
    free(tmp);
}
static void transform_layer_kv(transform *a, const kvmem_model *m, transform_layer *y) {
    const int d = m->head_dim, t = a->group, td = t * d, groups = m->n_kv_heads / t;
    const size_t part = (size_t)td * (size_t)td;
    float *dk = transform_floats((size_t)d * (size_t)td),
          *dv = transform_floats((size_t)d * (size_t)td);
    int g;
    if (a->by == TRANSFORM_SVD_W || (a->by == TRANSFORM_MEAN && !a->n_ids)) {
        transform_weights(y->gram_k, y->k, td, groups, m->n_embd);
        transform_weights(y->gram_v, y->v, td, groups, m->n_embd);
    }
    for (g = 0; g < groups; g++) {
        if (a->by == TRANSFORM_MEAN) {
            transform_mean(dk, t, d);
            transform_mean(dv, t, d);
        } else {
            transform_basis(dk, y->gram_k + (size_t)g * part, t, d, m->rope.n_rot, m->rope.neox);
            transform_basis(dv, y->gram_v + (size_t)g * part, t, d, 0, 0);
        }
        a->kept_k +=
            transform_energy(dk, y->gram_k + (size_t)g * part, t, d) / groups / m->n_layers;
        a->kept_v +=
            transform_energy(dv, y->gram_v + (size_t)g * part, t, d) / groups / m->n_layers;
        transform_fold(m, y, g, t, dk, dv);
    }
    free(dk);
    free(dv);
}
static void transform_layer_share(const transform *a, const kvmem_model *m, transform_layer *y) {
    const size_t head = (size_t)m->head_dim * (size_t)(m->n_embd + 1);
    const int r = m->n_heads / m->n_kv_heads;
    int h;
    if (a->share_v) memcpy(y->v, y->k, (size_t)m->n_kv_heads * head * sizeof(float));
    for (h = 0; a->share_q && h < m->n_heads; h++)
        memcpy(y->q + (size_t)h * head, y->k + (size_t)(h / r) * head, head * sizeof(float));
}

/* ==== the file ================================================================================ */

static int transform_check(transform *a, const kvmem_model *m) {
    int l;
    if (m->llama2c >= 0)
        return transform_fail(a, "model", "llama2.c files are not written, only GGUF");
    if (a->by != TRANSFORM_SHARE && (a->group < 1 || m->n_kv_heads % a->group)) {
        snprintf(a->why, sizeof a->why, "--group %d does not divide %d KV heads", a->group,
                 m->n_kv_heads);
        return 0;
    }
    if (a->by == TRANSFORM_SVD_A && a->n_ids < 1)
        return transform_fail(a, "svd-a", "needs calibration text");
    for (l = 0; l < m->n_layers; l++) {
        char name[64];
        if (m->layer[l].k_norm || m->layer[l].q_norm)
            return transform_fail(
                a, m->arch_name,
                "heads are normed after the projection, which nothing can be folded through");
        snprintf(name, sizeof name, "blk.%d.attn_k.weight", l);
        if (!kvmem_gguf_tensor(&m->gguf, name))
            return transform_fail(a, name, "is not there: q, k and v are one matrix in this file");
    }
    return 1;
}
static void transform_keys(const transform *a, const kvmem_model *m, gguf_writer *w) {
    char key[96];
    int i, said = 0;
    snprintf(key, sizeof key, "%s.attention.head_count_kv", m->arch_name);
    for (i = 0; i < m->gguf.n_kv; i++) {
        const kvmem_gguf_kv *kv = m->gguf.kv + i;
        char name[96];
        snprintf(name, sizeof name, "%.*s", kv->key_len, kv->key);
        if (!strcmp(name, key) && a->by != TRANSFORM_SHARE) {
            gguf_kv_u32(w, name, m->n_kv_heads / a->group);
            said = 1;
            continue;
        }
        gguf_key(w, name, kv->type);
        if (kv->type == GGUF_ARRAY) {
            gguf_u32(w, (uint32_t)kv->item_type);
            gguf_u64(w, kv->n);
        }
        if (kv->type == GGUF_STR) gguf_u64(w, kv->size);
        gguf_bytes(w, kv->data, kv->size);
    }
    if (!said && a->by != TRANSFORM_SHARE) gguf_kv_u32(w, key, m->n_kv_heads / a->group);
}
/* The matrix (*rows, *width) that replaces tensor `name`, or NULL; *bias: only its last column. */
static const float *transform_new(const transform *a, const kvmem_model *m,
                                  const transform_layer *layer, const char *name, int *rows,
                                  int *width, int *bias) {
    static const char *const part[4] = { "attn_q", "attn_k", "attn_v", "attn_output" };
    char want[64];
    int l, i, j;
    for (l = 0; l < m->n_layers; l++)
        for (i = 0; i < 4; i++)
            for (j = 0; j < 2; j++) {
                const int kv = i == 1 || i == 2;
                const float *p[4];
                p[0] = layer[l].q;
                p[1] = layer[l].k;
                p[2] = layer[l].v;
                p[3] = layer[l].o;
                snprintf(want, sizeof want, "blk.%d.%s.%s", l, part[i], j ? "bias" : "weight");
                if (strcmp(name, want) || (i == 3 && j)) continue;
                *rows =
                    i == 3 ? m->n_embd : (kv ? m->n_kv_heads / a->group : m->n_heads) * m->head_dim;
                *width = i == 3 ? m->n_heads * m->head_dim : m->n_embd + 1;
                *bias = j;
                return p[i];
            }
    return NULL;
}
static const gguf_type *transform_type(const kvmem_tensor *t, int changed) {
    const gguf_type *type;
    for (type = gguf_types; type->name; type++)
        if (type->id == (int)t->type) break;
    if (changed && !(t->type == KVMEM_F16 || t->type == KVMEM_BF16 || t->type == KVMEM_Q8_0 ||
                     t->type == KVMEM_Q4_0 || t->type == KVMEM_Q4_1 || t->type == KVMEM_Q5_0 ||
                     t->type == KVMEM_Q5_1))
        return gguf_find_type("f32");
    return type->name ? type : NULL;
}
static void transform_put(gguf_writer *w, int i, const float *x, int rows, int width, int bias,
                          int cols) {
    const gguf_type *type = w->t[i].type;
    const size_t row = (size_t)cols / (size_t)type->block * (size_t)type->bytes;
    unsigned char *p = (unsigned char *)(void *)transform_floats(row / 4 + 1);
    int r;
    if (bias)
        for (r = 0; r < rows; r++) {
            unsigned char b[4];
            kvmem_quantize(KVMEM_F32, b, x + (size_t)r * (size_t)width + (size_t)width - 1, 1);
            gguf_put(w, b, 4);
        }
    for (r = 0; !bias && r < rows; r++) {
        kvmem_quantize((kvmem_type)type->id, p, x + (size_t)r * (size_t)width, (size_t)cols);
        gguf_put(w, p, row);
    }
    free(p);
}
static int transform_write(transform *a, const kvmem_model *m, const transform_layer *layer,
                           gguf_write_fn write, void *user) {
    gguf_writer w;
    int i, rows = 0, width = 0, bias = 0, ok;
    memset(&w, 0, sizeof w);
    transform_keys(a, m, &w);
    for (i = 0; i < m->gguf.n_tensors; i++) {
        const kvmem_tensor *t = m->gguf.tensor + i;
        char name[64];
        uint64_t ne[2];
        const float *x;
        snprintf(name, sizeof name, "%.*s", t->name_len, t->name);
        x = transform_new(a, m, layer, name, &rows, &width, &bias);
        ne[0] = (uint64_t)t->ne[0];
        ne[1] = (uint64_t)t->ne[1];
        if (x) ne[bias ? 0 : 1] = (uint64_t)rows;
        if (!transform_type(t, x != NULL)) gguf_fail(&w, "%s: a type that is not written", name);
        else
            gguf_add(&w, bias && x ? gguf_find_type("f32") : transform_type(t, x != NULL), name,
                     t->n_dims, ne);
    }
    gguf_head(&w, write, user);
    for (i = 0; i < m->gguf.n_tensors && !w.failed; i++) {
        const kvmem_tensor *t = m->gguf.tensor + i;
        const float *x = transform_new(a, m, layer, w.t[i].name, &rows, &width, &bias);
        if (x) transform_put(&w, i, x, rows, width, bias, (int)t->ne[0]);
        else gguf_put(&w, t->data, t->size);
        gguf_end(&w, i);
    }
    ok = !w.failed;
    if (!ok) transform_fail(a, "output", w.why);
    gguf_writer_free(&w);
    return ok;
}
/* Everything: m is an open GGUF model. Returns 1, or 0 with a->why. */
static int transform_model(transform *a, const kvmem_model *m, gguf_write_fn write, void *user) {
    const size_t kv =
        (size_t)m->n_kv_heads * (size_t)m->head_dim * (size_t)m->head_dim * (size_t)a->group;
    transform_layer *layer;
    int l, ok;
    a->kept_k = a->kept_v = 0;
    if (a->by == TRANSFORM_SHARE) a->group = 1;
    if (!transform_check(a, m)) return 0;
    layer = (transform_layer *)calloc((size_t)m->n_layers, sizeof *layer);
    if (!layer) return transform_fail(a, "memory", "none left");
    for (l = 0; l < m->n_layers; l++) {
        const kvmem_layer *y = &m->layer[l];
        layer[l].q = transform_matrix(&y->q, y->q_bias, 1);
        layer[l].k = transform_matrix(&y->k, y->k_bias, 1);
        layer[l].v = transform_matrix(&y->v, y->v_bias, 1);
        layer[l].o = transform_matrix(&y->o, NULL, 0);
        layer[l].gram_k = transform_floats(kv);
        layer[l].gram_v = transform_floats(kv);
    }
    ok = !a->n_ids || a->by == TRANSFORM_SVD_W || a->by == TRANSFORM_SHARE ||
         transform_watch(a, m, layer);
    for (l = 0; l < m->n_layers && ok; l++) {
        if (a->by == TRANSFORM_SHARE) transform_layer_share(a, m, &layer[l]);
        else transform_layer_kv(a, m, &layer[l]);
    }
    ok = ok && transform_write(a, m, layer, write, user);
    for (l = 0; l < m->n_layers; l++) {
        free(layer[l].q);
        free(layer[l].k);
        free(layer[l].v);
        free(layer[l].o);
        free(layer[l].gram_k);
        free(layer[l].gram_v);
    }
    free(layer);
    return ok;
}

#ifndef TRANSFORM_NO_MAIN
static int transform_die(const char *what, const char *why) {
    fprintf(stderr, "transform: %s: %s\n", what, why);
    return 1;
}
static unsigned char *transform_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    unsigned char *p = NULL;
    long n;
    if (f && !fseek(f, 0, SEEK_END) && (n = ftell(f)) > 0 && !fseek(f, 0, SEEK_SET) &&
        (p = (unsigned char *)malloc((size_t)n + 1)) != NULL) {
        *size = fread(p, 1, (size_t)n, f);
        p[*size] = 0;
    }
    if (f) fclose(f);
    return p;
}
static int transform_to_file(void *user, const void *bytes, size_t n) {
    return fwrite(bytes, 1, n, (FILE *)user) != n;
}
static const char *transform_option(int argc, char **argv, const char *name, const char *def) {
    int i;
    for (i = 2; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return def;
}
int main(int argc, char **argv) {
    static const char *const ways[] = { "svd-a", "svd-w", "mean" };
    const char *in, *out, *by, *what, *text;
    transform a;
    kvmem_model m;
    size_t size = 0, text_size = 0, n = 0;
    unsigned char *bytes, *words = NULL;
    int *ids = NULL, ok, i;
    FILE *f;
    if (argc < 2 || (strcmp(argv[1], "kvheads") && strcmp(argv[1], "share")) || argc % 2)
        return transform_die("usage", "transform kvheads|share -m IN.gguf -o OUT.gguf [--group 2] "
                                      "[--by svd-a|svd-w|mean] [--text FILE] [--what kv|qk|qkv]");
    for (i = 2; i < argc; i += 2)
        if (strcmp(argv[i], "-m") && strcmp(argv[i], "-o") && strcmp(argv[i], "--group") &&
            strcmp(argv[i], "--by") && strcmp(argv[i], "--text") && strcmp(argv[i], "--what"))
            return transform_die(argv[i], "unknown option");
    memset(&a, 0, sizeof a);
    in = transform_option(argc, argv, "-m", NULL);
    out = transform_option(argc, argv, "-o", NULL);
    by = transform_option(argc, argv, "--by", "svd-a");
    what = transform_option(argc, argv, "--what", "kv");
    text = transform_option(argc, argv, "--text", NULL);
    if (!in || !out) return transform_die("-m, -o", "both files are needed");
    a.group = atoi(transform_option(argc, argv, "--group", "2"));
    for (a.by = 0; a.by < 3 && strcmp(by, ways[a.by]); a.by++) {}
    if (a.by == 3) return transform_die("--by", "svd-a, svd-w or mean");
    if (strcmp(what, "kv") && strcmp(what, "qk") && strcmp(what, "qkv"))
        return transform_die("--what", "kv, qk or qkv");
    a.share_v = strchr(what, 'v') != NULL;
    a.share_q = strchr(what, 'q') != NULL;
    if (!strcmp(argv[1], "share")) a.by = TRANSFORM_SHARE;
    bytes = transform_file(in, &size);
    if (!bytes) return transform_die(in, "cannot be read");
    if (kvmem_model_open(&m, bytes, size, NULL, 0, NULL)) return transform_die(in, m.error.text);
    if (text) {
        words = transform_file(text, &text_size);
        if (!words) return transform_die(text, "cannot be read");
        ids = (int *)malloc((text_size + 8) * sizeof *ids);
        if (!ids || kvmem_tokenize(&m.tokenizer, (const char *)words, text_size, KVMEM_ADD_SPECIAL,
                                   ids, text_size + 8, &n, &m.error))
            return transform_die(text, m.error.text);
        a.ids = ids;
        a.n_ids = (int)n;
    }
    f = fopen(out, "wb");
    if (!f) return transform_die(out, "cannot be written");
    ok = transform_model(&a, &m, transform_to_file, f);
    if (fclose(f) && ok) ok = transform_fail(&a, out, "writing failed");
    if (!ok) remove(out);
    if (!ok) return transform_die(in, a.why);
    if (a.by == TRANSFORM_SHARE) printf("%s: %s share one projection\n", out, what);
    else
        printf("%s: %d KV heads instead of %d, %s%s kept: K %.4f, V %.4f\n", out,
               m.n_kv_heads / a.group, m.n_kv_heads, ways[a.by],
               a.n_ids && a.by != TRANSFORM_SVD_W ? ", energy of the text"
                                                  : ", energy of the weights",
               a.kept_k, a.kept_v);
    kvmem_model_close(&m);
    free(bytes);
    free(words);
    free(ids);
    return 0;
}
#endif
