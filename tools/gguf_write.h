/* gguf_write.h - writes GGUF model files: keys, arrays, tensors. For the tools; needs no kvmem.h.

       gguf_writer g = { 0 };
       strcpy(g.arch, "llama");
       gguf_kv_str(&g, "general.architecture", "llama");
       gguf_kv_u32(&g, ".block_count", 4);                  a leading '.' becomes "llama."
       i = gguf_add(&g, gguf_find_type("f32"), "output_norm.weight", 1, shape);
       gguf_head(&g, write, user);                          keys and the list of tensors
       gguf_put(&g, bytes, g.t[i].bytes);                   then each tensor in order of gguf_add
       gguf_end(&g, i);
       bad = g.failed;                                      g.why says what
       gguf_writer_free(&g);

   A file is 24 bytes of head, the keys, the list of tensors, padding to 32, then each tensor's
   bytes padded to 32; all numbers little-endian. The writer keeps keys and list in memory and
   streams the tensors. After the first failure every call does nothing. */
#ifndef GGUF_WRITE_H
#define GGUF_WRITE_H
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__GNUC__) || defined(__clang__)
#define GGUF__FN static __attribute__((unused))
#else
#define GGUF__FN static
#endif

/* 0 if all was written. */
typedef int (*gguf_write_fn)(void *user, const void *bytes, size_t size);

/* A block of `block` values takes `bytes` bytes. */
typedef struct gguf_type { const char *name; int id, block, bytes; } gguf_type;
static const gguf_type gguf_types[] = {
    { "f32", 0, 1, 4 },       { "f16", 1, 1, 2 },       { "q4_0", 2, 32, 18 },
    { "q4_1", 3, 32, 20 },    { "q5_0", 6, 32, 22 },    { "q5_1", 7, 32, 24 },
    { "q8_0", 8, 32, 34 },    { "q2_k", 10, 256, 84 },  { "q3_k", 11, 256, 110 },
    { "q4_k", 12, 256, 144 }, { "q5_k", 13, 256, 176 }, { "q6_k", 14, 256, 210 },
    { "bf16", 30, 1, 2 },     { NULL, 0, 0, 0 } };

typedef struct gguf_tensor {
    char name[64];
    const gguf_type *type;
    int n_dims;
    uint64_t ne[2], offset, bytes; /* ne[0]: values in a row; offset in the data, by gguf_head */
} gguf_tensor;

typedef struct gguf_writer {
    char arch[16];
    unsigned char *buf; /* keys, then the list of tensors */
    size_t len, cap;
    uint32_t n_kv;
    gguf_tensor *t;
    int n_t, cap_t;
    gguf_write_fn write;
    void *user;
    int failed;
    char why[640];
} gguf_writer;

GGUF__FN const gguf_type *gguf_find_type(const char *name) {
    const gguf_type *t;
    for (t = gguf_types; t->name; t++) if (!strcmp(t->name, name)) return t;
    return NULL;
}
/* The first failure is kept. */
GGUF__FN void gguf_fail(gguf_writer *g, const char *f, ...) {
    va_list ap;
    if (g->failed) return;
    g->failed = 1;
    va_start(ap, f);
    vsnprintf(g->why, sizeof g->why, f, ap);
    va_end(ap);
}
GGUF__FN void gguf_writer_free(gguf_writer *g) {
    free(g->buf);
    free(g->t);
    memset(g, 0, sizeof *g);
}

/* --- values, in memory ------------------------------------------------------------------------ */

GGUF__FN void gguf_bytes(gguf_writer *g, const void *p, size_t n) {
    if (g->failed) return;
    if (n > g->cap - g->len) {
        const size_t cap = (g->len + n) * 2 + 4096;
        unsigned char *b = (unsigned char *)realloc(g->buf, cap);
        if (!b) {
            gguf_fail(g, "no memory for %lu bytes of metadata", (unsigned long)cap);
            return;
        }
        g->buf = b;
        g->cap = cap;
    }
    memcpy(g->buf + g->len, p, n);
    g->len += n;
}
/* n bytes of v, the lowest first */
static void gguf__little(unsigned char *b, uint64_t v, int n) {
    int i;
    for (i = 0; i < n; i++) b[i] = (unsigned char)(v >> (8 * i));
}
GGUF__FN void gguf_u32(gguf_writer *g, uint32_t v) {
    unsigned char b[4];
    gguf__little(b, v, 4);
    gguf_bytes(g, b, 4);
}
GGUF__FN void gguf_u64(gguf_writer *g, uint64_t v) {
    unsigned char b[8];
    gguf__little(b, v, 8);
    gguf_bytes(g, b, 8);
}
GGUF__FN void gguf_f32(gguf_writer *g, double v) {
    const float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, 4);
    gguf_u32(g, u);
}
GGUF__FN void gguf_str(gguf_writer *g, const char *s) {
    gguf_u64(g, strlen(s));
    gguf_bytes(g, s, strlen(s));
}

/* --- keys ------------------------------------------------------------------------------------- */

enum { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_F32 = 6, GGUF_BOOL = 7, GGUF_STR = 8, GGUF_ARRAY = 9 };

/* A key and its value's type; the value must follow. '.' in front stands for the architecture. */
GGUF__FN void gguf_key(gguf_writer *g, const char *key, int type) {
    char full[96];
    snprintf(full, sizeof full, "%s%s", key[0] == '.' ? g->arch : "", key);
    gguf_str(g, full);
    gguf_u32(g, (uint32_t)type);
    g->n_kv++;
}
GGUF__FN void gguf_kv_u32(gguf_writer *g, const char *key, int v) {
    gguf_key(g, key, GGUF_U32);
    gguf_u32(g, (uint32_t)v);
}
GGUF__FN void gguf_kv_f32(gguf_writer *g, const char *key, double v) {
    gguf_key(g, key, GGUF_F32);
    gguf_f32(g, v);
}
GGUF__FN void gguf_kv_str(gguf_writer *g, const char *key, const char *v) {
    gguf_key(g, key, GGUF_STR);
    gguf_str(g, v);
}
GGUF__FN void gguf_kv_bool(gguf_writer *g, const char *key, int v) {
    const unsigned char b = (unsigned char)(v != 0);
    gguf_key(g, key, GGUF_BOOL);
    gguf_bytes(g, &b, 1);
}
/* n items must follow. */
GGUF__FN void gguf_kv_array(gguf_writer *g, const char *key, int item, int n) {
    gguf_key(g, key, GGUF_ARRAY);
    gguf_u32(g, (uint32_t)item);
    gguf_u64(g, (uint64_t)n);
}

/* Byte-level BPE ("gpt2") spells byte b as this character in UTF-8: printable Latin-1 as itself,
   the others from U+0100 on. out holds 3; returns the length. */
GGUF__FN int gguf_bpe_byte(int b, char *out) {
    int c = b, i, n = 0;
    if (!((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174)) {
        for (i = 0; i < b; i++) n += !((i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174);
        c = 256 + n;
    }
    if (c < 128) {
        out[0] = (char)c;
        out[1] = 0;
        return 1;
    }
    out[0] = (char)(0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 63));
    out[2] = 0;
    return 2;
}

/* --- tensors ---------------------------------------------------------------------------------- */

/* Lists a tensor of ne[0] values a row and, with n_dims 2, ne[1] rows. Returns its index, or -1. */
GGUF__FN int gguf_add(gguf_writer *g, const gguf_type *type, const char *name, int n_dims,
                      const uint64_t *ne) {
    gguf_tensor *t;
    if (g->failed) return -1;
    if (g->n_t == g->cap_t) {
        const int cap = g->cap_t * 2 + 64;
        t = (gguf_tensor *)realloc(g->t, (size_t)cap * sizeof *t);
        if (!t) { gguf_fail(g, "no memory for %d tensors", cap); return -1; }
        g->t = t;
        g->cap_t = cap;
    }
    t = &g->t[g->n_t];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->type = type;
    t->n_dims = n_dims;
    t->ne[0] = ne[0];
    t->ne[1] = n_dims > 1 ? ne[1] : 1;
    if (ne[0] % (uint64_t)type->block) {
        gguf_fail(g, "%s: rows of %lu values do not fill %s blocks of %d", name,
                  (unsigned long)ne[0], type->name, type->block);
        return -1;
    }
    t->bytes = ne[0] / (uint64_t)type->block * (uint64_t)type->bytes * t->ne[1];
    return g->n_t++;
}

/* Bytes to the file. */
GGUF__FN void gguf_put(gguf_writer *g, const void *p, size_t n) {
    if (!g->failed && n && g->write(g->user, p, n)) gguf_fail(g, "writing failed (disk full?)");
}
static void gguf__pad(gguf_writer *g, uint64_t written) {
    static const unsigned char zero[32] = { 0 };
    gguf_put(g, zero, (size_t)((32 - written % 32) % 32));
}
/* Everything before the tensors' bytes. */
GGUF__FN void gguf_head(gguf_writer *g, gguf_write_fn write, void *user) {
    unsigned char head[24];
    uint64_t at = 0;
    int i, j;
    g->write = write;
    g->user = user;
    for (i = 0; i < g->n_t && !g->failed; i++) {
        gguf_tensor *t = &g->t[i];
        t->offset = at;
        at += (t->bytes + 31) / 32 * 32;
        gguf_str(g, t->name);
        gguf_u32(g, (uint32_t)t->n_dims);
        for (j = 0; j < t->n_dims; j++) gguf_u64(g, t->ne[j]);
        gguf_u32(g, (uint32_t)t->type->id);
        gguf_u64(g, t->offset);
    }
    memcpy(head, "GGUF", 4);
    gguf__little(head + 4, 3, 4);
    gguf__little(head + 8, (uint64_t)g->n_t, 8);
    gguf__little(head + 16, g->n_kv, 8);
    gguf_put(g, head, sizeof head);
    gguf_put(g, g->buf, g->len);
    gguf__pad(g, sizeof head + g->len);
}
/* The shape's keys of a llama-like model, in the writer's architecture; heads have head_dim
   channels, all of them rotated. */
GGUF__FN void gguf_kv_llama(gguf_writer *g, int ctx, int embd, int layers, int ff, int heads,
                            int kv_heads, int head_dim, double rope_base, double norm_eps) {
    gguf_kv_str(g, "general.architecture", g->arch);
    gguf_kv_u32(g, ".context_length", ctx);
    gguf_kv_u32(g, ".embedding_length", embd);
    gguf_kv_u32(g, ".block_count", layers);
    gguf_kv_u32(g, ".feed_forward_length", ff);
    gguf_kv_u32(g, ".attention.head_count", heads);
    gguf_kv_u32(g, ".attention.head_count_kv", kv_heads);
    gguf_kv_u32(g, ".attention.key_length", head_dim);
    gguf_kv_u32(g, ".attention.value_length", head_dim);
    gguf_kv_u32(g, ".rope.dimension_count", head_dim);
    gguf_kv_f32(g, ".rope.freq_base", rope_base);
    gguf_kv_f32(g, ".attention.layer_norm_rms_epsilon", norm_eps);
}
/* After the last byte of tensor i. */
GGUF__FN void gguf_end(gguf_writer *g, int i) {
    if (!g->failed) gguf__pad(g, g->t[i].bytes);
}
#endif
