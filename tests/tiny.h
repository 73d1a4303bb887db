/* tiny.h - a GGUF writer in memory and a tiny random llama model with a vocabulary, for tests and fuzz
   seeds that must not depend on a file. Include after kvmem.h. */
#ifndef KVMEM_TINY_H
#define KVMEM_TINY_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tiny_bytes { uint8_t *p; size_t n, cap; } tiny_bytes;
typedef struct tiny_gguf { tiny_bytes kv, infos, data; uint64_t n_kv, n_tensors; } tiny_gguf;

static KVMEM__UNUSED void tiny_add(tiny_bytes *b, const void *p, size_t n) {
    if (b->n + n > b->cap) {
        uint8_t *q;
        b->cap = (b->n + n) * 2 + 64;
        q = (uint8_t *)realloc(b->p, b->cap);
        if (!q) { fprintf(stderr, "tiny.h: no memory\n"); exit(2); }
        b->p = q;
    }
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}
static KVMEM__UNUSED void tiny_u32(tiny_bytes *b, uint32_t v) { uint8_t t[4]; kvmem__put32(t, v); tiny_add(b, t, 4); }
static KVMEM__UNUSED void tiny_u64(tiny_bytes *b, uint64_t v) { uint8_t t[8]; kvmem__put64(t, v); tiny_add(b, t, 8); }
static KVMEM__UNUSED void tiny_f32(tiny_bytes *b, float v) { uint8_t t[4]; kvmem__putf32(t, v); tiny_add(b, t, 4); }
static KVMEM__UNUSED void tiny_text(tiny_bytes *b, const char *s) { tiny_u64(b, strlen(s)); tiny_add(b, s, strlen(s)); }

/* Metadata: a key, then GGUF value type 4 uint32, 6 float32, 7 bool, 8 string, 9 array. */
static KVMEM__UNUSED void tiny_key(tiny_gguf *g, const char *key, uint32_t type) {
    tiny_text(&g->kv, key);
    tiny_u32(&g->kv, type);
    g->n_kv++;
}
static KVMEM__UNUSED void tiny_set_u32(tiny_gguf *g, const char *key, uint32_t v) {
    tiny_key(g, key, 4);
    tiny_u32(&g->kv, v);
}
static KVMEM__UNUSED void tiny_set_f32(tiny_gguf *g, const char *key, float v) {
    tiny_key(g, key, 6);
    tiny_f32(&g->kv, v);
}
static KVMEM__UNUSED void tiny_set_text(tiny_gguf *g, const char *key, const char *v) {
    tiny_key(g, key, 8);
    tiny_text(&g->kv, v);
}
static KVMEM__UNUSED void tiny_set_array(tiny_gguf *g, const char *key, uint32_t item, uint64_t n) {
    tiny_key(g, key, 9);
    tiny_u32(&g->kv, item);
    tiny_u64(&g->kv, n);
}
/* A tensor (ne1 rows of ne0 values) of seeded numbers in +-scale, or of ones when scale is 0. */
static KVMEM__UNUSED void tiny_tensor(tiny_gguf *g, const char *name, kvmem_type type, int ne0, int ne1, float scale) {
    const size_t n = (size_t)ne0 * (size_t)ne1;
    float *x = (float *)malloc(n * sizeof *x);
    size_t i, bytes, block_bytes = 0;
    const int block = kvmem_type_block(type, &block_bytes);
    uint8_t *q;
    bytes = n / (size_t)block * block_bytes;
    q = (uint8_t *)malloc(bytes);
    if (!x || !q) { fprintf(stderr, "tiny.h: no memory\n"); exit(2); }
    for (i = 0; i < n; i++) {
        const double u = kvmem__unit(kvmem__random(7, g->n_tensors, i, 0));
        x[i] = scale > 0 ? scale * (float)(2 * u - 1) : 1.0f;
    }
    if (kvmem_quantize(type, q, x, n) != KVMEM_OK) { fprintf(stderr, "tiny.h: cannot quantize\n"); exit(2); }
    tiny_text(&g->infos, name);
    tiny_u32(&g->infos, ne1 > 1 ? 2 : 1);
    tiny_u64(&g->infos, (uint64_t)ne0);
    if (ne1 > 1) tiny_u64(&g->infos, (uint64_t)ne1);
    tiny_u32(&g->infos, (uint32_t)type);
    tiny_u64(&g->infos, g->data.n);
    tiny_add(&g->data, q, bytes);
    while (g->data.n % 32) tiny_add(&g->data, "", 1);
    g->n_tensors++;
    free(x);
    free(q);
}
/* The file's bytes; the caller frees them. The writer is emptied. */
static KVMEM__UNUSED uint8_t *tiny_finish(tiny_gguf *g, size_t *size) {
    tiny_bytes out = { NULL, 0, 0 };
    tiny_add(&out, "GGUF", 4);
    tiny_u32(&out, 3);
    tiny_u64(&out, g->n_tensors);
    tiny_u64(&out, g->n_kv);
    tiny_add(&out, g->kv.p, g->kv.n);
    tiny_add(&out, g->infos.p, g->infos.n);
    while (out.n % 32) tiny_add(&out, "", 1);
    tiny_add(&out, g->data.p, g->data.n);
    free(g->kv.p);
    free(g->infos.p);
    free(g->data.p);
    memset(g, 0, sizeof *g);
    *size = out.n;
    return out.p;
}

/* The character that byte-level BPE writes for byte b, as UTF-8 in out (3). */
static KVMEM__UNUSED void tiny_byte_char(int b, char *out) {
    int i, extra = 0, c = b;
    const int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    if (!printable) {
        for (i = 0; i < b; i++) extra += !((i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174);
        c = 256 + extra;
    }
    if (c < 128) { out[0] = (char)c; out[1] = 0; return; }
    out[0] = (char)(0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 63));
    out[2] = 0;
}
/* Byte-level BPE of 264 tokens: bytes, six merges, two control tokens. pre: a pre-tokenizer's name. */
enum { TINY_VOCAB = 264 };
static KVMEM__UNUSED void tiny_vocab_bpe(tiny_gguf *g, const char *pre) {
    static const char *const merged[6] = { "he", "\xC4\xA0t", "\xC4\xA0the", "in", "er", "\xC4\xA0" "a" };
    static const char *const merges[6] = { "h e", "\xC4\xA0 t", "\xC4\xA0t he", "i n", "e r", "\xC4\xA0 a" };
    char c[4];
    int i;
    tiny_set_text(g, "tokenizer.ggml.model", "gpt2");
    tiny_set_text(g, "tokenizer.ggml.pre", pre);
    tiny_set_array(g, "tokenizer.ggml.tokens", 8, TINY_VOCAB);
    for (i = 0; i < 256; i++) { tiny_byte_char(i, c); tiny_text(&g->kv, c); }
    for (i = 0; i < 6; i++) tiny_text(&g->kv, merged[i]);
    tiny_text(&g->kv, "<|begin|>");
    tiny_text(&g->kv, "<|end|>");
    tiny_set_array(g, "tokenizer.ggml.token_type", 5, TINY_VOCAB);
    for (i = 0; i < TINY_VOCAB; i++) tiny_u32(&g->kv, i < 262 ? 1 : 3);
    tiny_set_array(g, "tokenizer.ggml.merges", 8, 6);
    for (i = 0; i < 6; i++) tiny_text(&g->kv, merges[i]);
    tiny_set_u32(g, "tokenizer.ggml.bos_token_id", 262);
    tiny_set_u32(g, "tokenizer.ggml.eos_token_id", 263);
}
/* SentencePiece of 264 tokens: <unk> <s> </s>, the 256 byte tokens, five pieces. */
static KVMEM__UNUSED void tiny_vocab_spm(tiny_gguf *g) {
    static const char *const piece[5] = { "\xE2\x96\x81", "t", "h", "\xE2\x96\x81t", "th" };
    char c[8];
    int i;
    tiny_set_text(g, "tokenizer.ggml.model", "llama");
    tiny_set_array(g, "tokenizer.ggml.tokens", 8, TINY_VOCAB);
    tiny_text(&g->kv, "<unk>");
    tiny_text(&g->kv, "<s>");
    tiny_text(&g->kv, "</s>");
    for (i = 0; i < 256; i++) { snprintf(c, sizeof c, "<0x%02X>", (unsigned)i); tiny_text(&g->kv, c); }
    for (i = 0; i < 5; i++) tiny_text(&g->kv, piece[i]);
    tiny_set_array(g, "tokenizer.ggml.scores", 6, TINY_VOCAB);
    for (i = 0; i < TINY_VOCAB; i++) tiny_f32(&g->kv, (float)-i);
    tiny_set_array(g, "tokenizer.ggml.token_type", 5, TINY_VOCAB);
    for (i = 0; i < TINY_VOCAB; i++) tiny_u32(&g->kv, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1);
    tiny_set_u32(g, "tokenizer.ggml.bos_token_id", 1);
    tiny_set_u32(g, "tokenizer.ggml.eos_token_id", 2);
}
/* llama: 2 layers, 4 heads over 2 KV heads of 8 channels, width 32, hidden 64. The caller frees it. */
static KVMEM__UNUSED uint8_t *tiny_model(kvmem_type type, int spm, size_t *size) {
    tiny_gguf g;
    char name[64];
    int l;
    memset(&g, 0, sizeof g);
    tiny_set_text(&g, "general.architecture", "llama");
    tiny_set_u32(&g, "llama.context_length", 256);
    tiny_set_u32(&g, "llama.embedding_length", 32);
    tiny_set_u32(&g, "llama.block_count", 2);
    tiny_set_u32(&g, "llama.feed_forward_length", 64);
    tiny_set_u32(&g, "llama.attention.head_count", 4);
    tiny_set_u32(&g, "llama.attention.head_count_kv", 2);
    tiny_set_f32(&g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    tiny_set_f32(&g, "llama.rope.freq_base", 10000.0f);
    if (spm) tiny_vocab_spm(&g);
    else tiny_vocab_bpe(&g, "llama-bpe");
    tiny_tensor(&g, "token_embd.weight", type, 32, TINY_VOCAB, 0.5f);
    for (l = 0; l < 2; l++) {
#define TINY_ADD(part, kind, ne0, ne1, scale)                                                           \
        do {                                                                                            \
            snprintf(name, sizeof name, "blk.%d." part ".weight", l);                                   \
            tiny_tensor(&g, name, kind, ne0, ne1, scale);                                               \
        } while (0)
        TINY_ADD("attn_norm", KVMEM_F32, 32, 1, 0);
        TINY_ADD("attn_q", type, 32, 32, 0.5f);
        TINY_ADD("attn_k", type, 32, 16, 0.5f);
        TINY_ADD("attn_v", type, 32, 16, 0.5f);
        TINY_ADD("attn_output", type, 32, 32, 0.5f);
        TINY_ADD("ffn_norm", KVMEM_F32, 32, 1, 0);
        TINY_ADD("ffn_gate", type, 32, 64, 0.3f);
        TINY_ADD("ffn_up", type, 32, 64, 0.3f);
        TINY_ADD("ffn_down", type, 64, 32, 0.3f);
#undef TINY_ADD
    }
    tiny_tensor(&g, "output_norm.weight", KVMEM_F32, 32, 1, 0);
    return tiny_finish(&g, size);
}
/* llama2.c, legacy layout: width 16, hidden 32, 1 layer, 2 heads, 264 tokens, 32 positions. */
static KVMEM__UNUSED uint8_t *tiny_llama2c(size_t *size) {
    const int dim = 16, hidden = 32, heads = 2, seq = 32;
    tiny_bytes b = { NULL, 0, 0 };
    size_t i, n;
    tiny_u32(&b, (uint32_t)dim);
    tiny_u32(&b, (uint32_t)hidden);
    tiny_u32(&b, 1);
    tiny_u32(&b, (uint32_t)heads);
    tiny_u32(&b, (uint32_t)heads);
    tiny_u32(&b, TINY_VOCAB);
    tiny_u32(&b, (uint32_t)seq);
    n = (size_t)(TINY_VOCAB * dim + dim + 4 * dim * dim + dim + 3 * dim * hidden + dim + seq * (dim / heads));
    for (i = 0; i < n; i++) tiny_f32(&b, (float)(kvmem__unit(kvmem__random(9, i, 0, 0)) - 0.5));
    *size = b.n;
    return b.p;
}
/* llama2.c's tokenizer.bin for the same 264 tokens. The caller frees it. */
static KVMEM__UNUSED uint8_t *tiny_llama2c_vocab(size_t *size) {
    tiny_bytes b = { NULL, 0, 0 };
    char c[8];
    int i;
    tiny_u32(&b, 8);
    for (i = 0; i < TINY_VOCAB; i++) {
        if (i < 3) snprintf(c, sizeof c, "%s", i == 0 ? "<unk>" : i == 1 ? "\n<s>\n" : "\n</s>\n");
        else if (i < 259) snprintf(c, sizeof c, "<0x%02X>", (unsigned)(i - 3));
        else snprintf(c, sizeof c, "%s", i == 259 ? " " : i == 260 ? "t" : i == 261 ? "h" : i == 262 ? " t" : "th");
        tiny_f32(&b, (float)-i);
        tiny_u32(&b, (uint32_t)strlen(c));
        tiny_add(&b, c, strlen(c));
    }
    *size = b.n;
    return b.p;
}
#endif
