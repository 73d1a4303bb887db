/* mkgguf.c - writes GGUF files with random weights: real shapes, every architecture and tensor
   type that kvmem reads, a small working tokenizer. For tests, benchmarks and comparisons with
   other programs; the text that such a model writes is noise.

       cc -O2 -fopenmp -I. -o mkgguf tools/mkgguf.c -lm
       ./mkgguf --arch llama --preset llama-3.2-1b --type q8_0 -o /tmp/llama1b-q8_0.gguf
       ./mkgguf --from a.gguf --type f32 -o b.gguf      the same model, its matrices in another type
       ./mkgguf --help

   The same options and seed give the same bytes on every machine and for any thread count.
   Output is streamed: a 1.2 GB file needs a few MB of memory. Weights are roughly normal with
   deviation gain/sqrt(inputs), so that activations stay near 1, attention is neither flat nor a
   spike and logits have a deviation of about 3. K-quants are random blocks (every bit of every
   field varies) whose decoded values have the wanted deviation; the other types are quantized
   normals.

   Tests include this file with MKGGUF_NO_MAIN and call mkgguf("--arch qwen3 ...", write, user). */
#ifndef KVMEM_H
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#endif
#include "corpus.h"
#include "gguf_write.h"

/* --- what to write ---------------------------------------------------------------------------- */

typedef struct mkgguf_spec {
    char arch[16], type[16], vocab_kind[32], scaling[16], from[512];
    char embd_type[16]; /* of token_embd and output; "" as type */
    char chat[4096];    /* tokenizer.chat_template */
    int layers, dim, heads, kv_heads, head_dim, ffn, vocab, ctx, rot, orig_ctx;
    int tied, bias, swa;      /* -1: as the architecture has it */
    double eps, base, factor, attn_cap, logit_cap, gain;
    unsigned long long seed;
} mkgguf_spec;

typedef struct mkgguf_preset {
    const char *name;
    int layers, dim, heads, kv_heads, head_dim, ffn, vocab, ctx, tied;
    double base;
    const char *arch, *vocab_kind, *scaling;
} mkgguf_preset;
/* Shapes of published models (their config.json) and two small ones for tests: `tiny` for files
   of some hundred kB, `small` with rows that K-quants can hold (multiples of 256) and heads of
   64. layers, tied < 0: as the architecture needs it. */
static const mkgguf_preset mkgguf_presets[] = {
    { "tiny", -2, 64, 4, 2, 16, 128, 320, 256, -1, 10000, "llama", "", "" },
    { "small", -4, 256, 4, 2, 64, 512, 512, 2048, -1, 10000, "llama", "", "" },
    { "llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 1, 500000, "llama", "llama-bpe",
      "llama3" },
    { "smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 8192, 1, 100000, "llama", "smollm", "" },
    { "qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1, 1000000, "qwen2", "qwen2", "" },
    { "qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1, 1000000, "qwen3", "qwen2", "" },
    { "gemma-2-2b", 26, 2304, 8, 4, 256, 9216, 256000, 8192, 1, 10000, "gemma2", "spm", "" },
    { "gemma-3-1b", 26, 1152, 4, 1, 256, 6912, 262144, 32768, 1, 1000000, "gemma3", "spm", "" },
    { "phi-3-mini", 32, 3072, 32, 32, 96, 8192, 32064, 4096, 0, 10000, "phi3", "spm", "" },
    { NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL } };

/* What fills a tensor: normals with deviation dev; -1 is a norm weight (1 + 0.1 normal), -2 the
   same with random signs; factors is 1: rope_freqs of Llama 3, 2 and 3: short and long factors. */
typedef struct mkgguf_fills { double dev; int factors; } mkgguf_fills;

typedef struct mkgguf_state {
    mkgguf_spec s;
    gguf_writer w;
    mkgguf_fills *fill; /* (w.n_t) */
    int cap_fill;
    kvmem_gguf from;    /* --from: tensors are read there */
    unsigned char *from_bytes;
} mkgguf_state;

/* --- metadata --------------------------------------------------------------------------------- */

static int mkgguf_is(const mkgguf_state *g, const char *arch) { return !strcmp(g->s.arch, arch); }
static int mkgguf_gemma(const mkgguf_state *g) {
    return mkgguf_is(g, "gemma2") || mkgguf_is(g, "gemma3");
}

static void mkgguf_shape(mkgguf_state *g) {
    const mkgguf_spec *s = &g->s;
    char name[64];
    snprintf(name, sizeof name, "random weights %dx%d", s->layers, s->dim);
    gguf_kv_str(&g->w, "general.architecture", s->arch);
    gguf_kv_str(&g->w, "general.name", name);
    gguf_kv_u32(&g->w, "general.quantization_version", 2);
    gguf_kv_u32(&g->w, ".block_count", s->layers);
    gguf_kv_u32(&g->w, ".context_length", s->ctx);
    gguf_kv_u32(&g->w, ".embedding_length", s->dim);
    gguf_kv_u32(&g->w, ".feed_forward_length", s->ffn);
    gguf_kv_u32(&g->w, ".attention.head_count", s->heads);
    gguf_kv_u32(&g->w, ".attention.head_count_kv", s->kv_heads);
    gguf_kv_u32(&g->w, ".attention.key_length", s->head_dim);
    gguf_kv_u32(&g->w, ".attention.value_length", s->head_dim);
    gguf_kv_f32(&g->w, ".attention.layer_norm_rms_epsilon", s->eps);
    gguf_kv_u32(&g->w, ".vocab_size", s->vocab);
    gguf_kv_u32(&g->w, ".rope.dimension_count", s->rot);
    gguf_kv_f32(&g->w, ".rope.freq_base", s->base);
    if (s->swa >= 0) gguf_kv_u32(&g->w, ".attention.sliding_window", s->swa);
    if (mkgguf_is(g, "gemma2")) {
        gguf_kv_f32(&g->w, ".attn_logit_softcapping", s->attn_cap);
        gguf_kv_f32(&g->w, ".final_logit_softcapping", s->logit_cap);
    }
    if (!strcmp(s->scaling, "linear") || !strcmp(s->scaling, "yarn")) {
        gguf_kv_str(&g->w, ".rope.scaling.type", s->scaling);
        gguf_kv_f32(&g->w, ".rope.scaling.factor", s->factor);
    }
    if (!strcmp(s->scaling, "yarn") || !strcmp(s->scaling, "longrope"))
        gguf_kv_u32(&g->w, ".rope.scaling.original_context_length", s->orig_ctx);
    /* sqrt(1 + ln(ctx/orig)/ln(orig)), as the converters write it */
    if (!strcmp(s->scaling, "longrope"))
        gguf_kv_f32(&g->w, ".rope.scaling.attn_factor",
                      sqrt(1 + log((double)s->ctx / s->orig_ctx) / log((double)s->orig_ctx)));
}

/* --- tokenizer: bytes, a few letters and words, padding --------------------------------------- */

/* Pairs that are merged in this order; '_' stands for a space at the front of a word. */
static const char *const mkgguf_merges[] = {
    "_ t", "h e", "_ a", "i n", "r e", "o n", "_t he", "e r", "_ s", "a t", "_ w", "e n", "_ o",
    "n d", "i t", "o r", "e s", "i s", "o u", "_a nd", "in g", "_ b", "_ f",
    "a n", "e d", "_ m", "_ h", "_o f",
    "_t o", "l l", "_ p", "_ c", "_w as", "a s", "_ he", "_ in", "_s he", "_t h" };
#define MKGGUF_N_MERGES ((int)(sizeof mkgguf_merges / sizeof mkgguf_merges[0]))

/* "_t he" -> "\u0120t he" (byte level) or "\u2581t he" (SentencePiece); join drops the blank. */
static void mkgguf_merge_text(const char *m, int spm, int join, char *out) {
    for (; *m; m++) {
        if (*m == ' ' && join) continue;
        if (*m == '_') { strcpy(out, spm ? "\xE2\x96\x81" : "\xC4\xA0"); out += strlen(out); }
        else *out++ = *m;
    }
    *out = 0;
}

/* Token i of the vocabulary: text, GGUF token type (1 normal, 2 unknown, 3 control, 5 unused, 6
   byte), score. SentencePiece: <unk> <s> </s> <0x00>.. then pieces and printable ASCII; BPE:
   bytes, merges, the specials. */
static int mkgguf_token(const mkgguf_spec *s, int i, char *out, double *score) {
    static const char *const spm_special[3] = { "<unk>", "<s>", "</s>" };
    static const char *const bpe_special[3] = { "<|begin_of_text|>", "<|end_of_text|>",
                                                "<|eot_id|>" };
    const int spm = !strcmp(s->vocab_kind, "spm"), head = spm ? 259 : 256;
    *score = 0;
    if (spm && i < 3) { strcpy(out, spm_special[i]); return i == 0 ? 2 : 3; }
    if (spm && i < 259) { sprintf(out, "<0x%02X>", i - 3); return 6; }
    if (!spm && i < 256) { gguf_bpe_byte(i, out); return 1; }
    if (!spm && i < 259) { strcpy(out, bpe_special[i - 256]); return 3; }
    i -= head + (spm ? 0 : 3);
    *score = -(double)i;
    if (i < MKGGUF_N_MERGES) { mkgguf_merge_text(mkgguf_merges[i], spm, 1, out); return 1; }
    i -= MKGGUF_N_MERGES;
    if (spm && i == 0) { strcpy(out, "\xE2\x96\x81"); return 1; }
    i--;
    if (spm && i >= 0 && i < 94) { out[0] = (char)(33 + i); out[1] = 0; return 1; }
    sprintf(out, "[PAD%d]", i);
    *score = -1e6;
    return 5;
}

static void mkgguf_tokenizer(mkgguf_state *g) {
    const mkgguf_spec *s = &g->s;
    const int spm = !strcmp(s->vocab_kind, "spm");
    char text[128];
    double score;
    int i;
    if (!strcmp(s->vocab_kind, "corpus")) { corpus_write_vocab(&g->w); return; }
    gguf_kv_str(&g->w, "tokenizer.ggml.model", spm ? "llama" : "gpt2");
    gguf_kv_str(&g->w, "tokenizer.ggml.pre", spm ? "default" : s->vocab_kind);
    gguf_kv_array(&g->w, "tokenizer.ggml.tokens", 8, s->vocab);
    for (i = 0; i < s->vocab; i++) { mkgguf_token(s, i, text, &score); gguf_str(&g->w, text); }
    gguf_kv_array(&g->w, "tokenizer.ggml.scores", 6, s->vocab);
    for (i = 0; i < s->vocab; i++) { mkgguf_token(s, i, text, &score); gguf_f32(&g->w, score); }
    gguf_kv_array(&g->w, "tokenizer.ggml.token_type", 5, s->vocab);
    for (i = 0; i < s->vocab; i++) gguf_u32(&g->w, (uint32_t)mkgguf_token(s, i, text, &score));
    if (!spm) {
        gguf_kv_array(&g->w, "tokenizer.ggml.merges", 8, MKGGUF_N_MERGES);
        for (i = 0; i < MKGGUF_N_MERGES; i++) {
            mkgguf_merge_text(mkgguf_merges[i], 0, 0, text);
            gguf_str(&g->w, text);
        }
    }
    gguf_kv_u32(&g->w, "tokenizer.ggml.bos_token_id", spm ? 1 : 256);
    gguf_kv_u32(&g->w, "tokenizer.ggml.eos_token_id", spm ? 2 : 257);
    gguf_kv_bool(&g->w, "tokenizer.ggml.add_bos_token", spm || !strcmp(s->vocab_kind, "llama-bpe"));
    gguf_kv_bool(&g->w, "tokenizer.ggml.add_eos_token", 0);
    if (spm) {
        gguf_kv_u32(&g->w, "tokenizer.ggml.unknown_token_id", 0);
        gguf_kv_bool(&g->w, "tokenizer.ggml.add_space_prefix", !mkgguf_gemma(g));
    }
    if (s->chat[0]) gguf_kv_str(&g->w, "tokenizer.chat_template", s->chat);
}

/* --- tensors ---------------------------------------------------------------------------------- */

/* Matrix of n_out rows with n_in values, or a float32 vector when n_out is 0. Layer -1: no
   "blk.N.". */
static mkgguf_fills *mkgguf_add(mkgguf_state *g, const gguf_type *type, int layer,
                                const char *name, int n_in, int n_out, double dev) {
    char full[64];
    uint64_t ne[2];
    int i;
    if (g->w.n_t == g->cap_fill) {
        const int cap = g->cap_fill * 2 + 64;
        mkgguf_fills *f = (mkgguf_fills *)realloc(g->fill, (size_t)cap * sizeof *f);
        if (!f) { gguf_fail(&g->w, "no memory for %d tensors", cap); return NULL; }
        g->fill = f;
        g->cap_fill = cap;
    }
    if (layer < 0) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    ne[0] = (uint64_t)n_in;
    ne[1] = (uint64_t)n_out;
    i = gguf_add(&g->w, n_out ? type : &gguf_types[0], full, n_out ? 2 : 1, ne);
    if (i < 0) return NULL;
    g->fill[i].dev = dev;
    g->fill[i].factors = 0;
    return &g->fill[i];
}

static void mkgguf_layer(mkgguf_state *g, const gguf_type *ty, int l) {
    const mkgguf_spec *s = &g->s;
    const int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    const double in = 1 / sqrt((double)s->dim), qk = 1.5 * in; /* q.k scores with deviation 2.25 */
    const int post = mkgguf_gemma(g), qk_norm = mkgguf_is(g, "qwen3") || mkgguf_is(g, "gemma3");
    mkgguf_add(g, ty, l, "attn_norm.weight", s->dim, 0, -1);
    if (mkgguf_is(g, "phi3")) mkgguf_add(g, ty, l, "attn_qkv.weight", s->dim, q + 2 * kv, qk);
    else {
        mkgguf_add(g, ty, l, "attn_q.weight", s->dim, q, qk);
        mkgguf_add(g, ty, l, "attn_k.weight", s->dim, kv, qk);
        mkgguf_add(g, ty, l, "attn_v.weight", s->dim, kv, 2 * in);
        if (s->bias) {
            mkgguf_add(g, ty, l, "attn_q.bias", q, 0, 0.3);
            mkgguf_add(g, ty, l, "attn_k.bias", kv, 0, 0.3);
            mkgguf_add(g, ty, l, "attn_v.bias", kv, 0, 0.3);
        }
    }
    if (qk_norm) {
        mkgguf_add(g, ty, l, "attn_q_norm.weight", s->head_dim, 0, -1);
        mkgguf_add(g, ty, l, "attn_k_norm.weight", s->head_dim, 0, -1);
    }
    mkgguf_add(g, ty, l, "attn_output.weight", q, s->dim, 1 / sqrt((double)q));
    if (post) mkgguf_add(g, ty, l, "post_attention_norm.weight", s->dim, 0, -1);
    mkgguf_add(g, ty, l, "ffn_norm.weight", s->dim, 0, -1);
    if (mkgguf_is(g, "phi3")) mkgguf_add(g, ty, l, "ffn_up.weight", s->dim, 2 * s->ffn, 1.5 * in);
    else {
        mkgguf_add(g, ty, l, "ffn_gate.weight", s->dim, s->ffn, 1.5 * in);
        mkgguf_add(g, ty, l, "ffn_up.weight", s->dim, s->ffn, in);
    }
    mkgguf_add(g, ty, l, "ffn_down.weight", s->ffn, s->dim, 1 / sqrt((double)s->ffn));
    if (post) mkgguf_add(g, ty, l, "post_ffw_norm.weight", s->dim, 0, -1);
}

static void mkgguf_tensors(mkgguf_state *g) {
    const mkgguf_spec *s = &g->s;
    const gguf_type *ty = gguf_find_type(s->type);
    const gguf_type *te = gguf_find_type(s->embd_type[0] ? s->embd_type : s->type);
    const double logit = s->gain / sqrt((double)s->dim);
    mkgguf_fills *t;
    int l, i;
    if (!ty || !te) {
        gguf_fail(&g->w, "unknown tensor type %s", ty ? s->embd_type : s->type);
        return;
    }
    mkgguf_add(g, te, -1, "token_embd.weight", s->dim, s->vocab,
               s->tied ? logit : mkgguf_gemma(g) ? 2 * logit : 1);
    /* random signs: a tied head would else see its own embedding and repeat the last token for
       sure */
    mkgguf_add(g, ty, -1, "output_norm.weight", s->dim, 0, s->tied ? -2 : -1);
    if (!s->tied) mkgguf_add(g, te, -1, "output.weight", s->dim, s->vocab, logit);
    if (!strcmp(s->scaling, "llama3")) {
        t = mkgguf_add(g, ty, -1, "rope_freqs.weight", s->rot / 2, 0, 0);
        if (t) t->factors = 1;
    }
    for (i = 0; i < 2 && !strcmp(s->scaling, "longrope"); i++) {
        t = mkgguf_add(g, ty, -1, i ? "rope_factors_long.weight" : "rope_factors_short.weight",
                       s->rot / 2, 0, 0);
        if (t) t->factors = 2 + i;
    }
    for (l = 0; l < s->layers && !g->w.failed; l++) mkgguf_layer(g, ty, l);
}

/* --- values ----------------------------------------------------------------------------------- */

/* Roughly normal with deviation 1: the sum of four 16-bit uniforms. Depends on (key, i) alone. */
static float mkgguf_normal(uint64_t key, uint64_t i) {
    const uint64_t r = kvmem__mix(key + i);
    const int sum = (int)((r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) +
                          (r >> 48)) - 131070;
    return (float)sum * (1.0f / 37837.2f); /* 65536 * sqrt(4/12) */
}

/* Llama 3.1's factors: wavelengths above orig_ctx are divided by 8, those below orig_ctx/4 are
   kept. */
static double mkgguf_llama3_factor(const mkgguf_spec *s, int i) {
    const double wave = 2 * 3.14159265358979323846 * pow(s->base, 2.0 * i / s->rot);
    const double low = s->orig_ctx / 1.0, high = s->orig_ctx / 4.0;
    double smooth;
    if (wave < high) return 1;
    if (wave > low) return s->factor;
    smooth = (s->orig_ctx / wave - 1.0) / (4.0 - 1.0);
    return 1 / ((1 - smooth) / s->factor + smooth);
}

static float mkgguf_vector_value(const mkgguf_spec *s, const mkgguf_fills *t, uint64_t key,
                                 uint64_t i) {
    const double x = s->rot > 2 ? (double)i / (s->rot / 2 - 1) : 0;
    if (t->factors == 1) return (float)mkgguf_llama3_factor(s, (int)i);
    if (t->factors == 2) return (float)(1 + 0.5 * x);
    if (t->factors == 3) return (float)(1 + 40 * x * x);
    if (t->dev < 0) {
        const float sign = t->dev < -1 && (kvmem__mix(key ^ i) & 1) ? -1.0f : 1.0f;
        return sign * (1 + 0.1f * mkgguf_normal(key, i));
    }
    return (float)t->dev * mkgguf_normal(key, i);
}

/* One random K-quant block whose values have deviation dev and mean 0 over all blocks. Fields
   are random bytes; the half-float scales follow from the moments of the other fields:
   q2_K  d*(s&15)*q - m*(s>>4), q 0..3         q3_K  d*(s-32)*(q-4), s 0..63, q 0..7
   q4_K  d*s*q - m*t, q 0..15, s,t 0..63       q5_K  the same, q 0..31
   q6_K  d*s*(q-32), s int8 */
static void mkgguf_k_block(const gguf_type *ty, unsigned char *b, uint64_t key, double dev) {
    double d = 0, m = 0;
    const double jitter = 0.8 + 0.4 * kvmem__unit(kvmem__mix(key ^ 0x5bd1e995u));
    int i, d_at = 0, m_at = -1;
    for (i = 0; i < ty->bytes; i += 8) {
        unsigned char r[8];
        int n = ty->bytes - i < 8 ? ty->bytes - i : 8;
        kvmem__put64(r, kvmem__mix(key + (uint64_t)i));
        memcpy(b + i, r, (size_t)n);
    }
    switch (ty->id) { /* deviations of the expressions above, for d = 1 and m = mean(q) */
    case 10: d = dev / 13.87; m = 1.5 * d; d_at = 80; m_at = 82; break;
    case 11: d = dev / 43.34; d_at = 108; break;
    case 12: d = dev / 258.3; m = 7.5 * d; m_at = 2; break;
    case 13: d = dev / 526.9; m = 15.5 * d; m_at = 2; break;
    case 14: d = dev / 1365.7; d_at = 208; break;
    default: break;
    }
    kvmem__put16(b + d_at, kvmem__f32_to_f16((float)(d * jitter)));
    if (m_at >= 0) kvmem__put16(b + m_at, kvmem__f32_to_f16((float)(m * jitter)));
}

/* Values [from, from+n) of a matrix as coded bytes; from and n are multiples of the block. */
static void mkgguf_fill(const gguf_type *ty, double dev, uint64_t key, uint64_t from, int n,
                        float *x, unsigned char *out) {
    int i;
    if (ty->block == 256) {
        for (i = 0; i < n / 256; i++)
            mkgguf_k_block(ty, out + (size_t)i * (size_t)ty->bytes,
                           kvmem__mix(key + from + (uint64_t)i * 256), dev);
        return;
    }
    for (i = 0; i < n; i++) x[i] = (float)dev * mkgguf_normal(key, from + (uint64_t)i);
    kvmem_quantize((kvmem_type)ty->id, out, x, (size_t)n);
}

/* The same from the values of another file's tensor. */
static void mkgguf_refill(const mkgguf_state *g, const gguf_tensor *t, uint64_t from, int n,
                          float *x, unsigned char *out) {
    const kvmem_tensor *src = kvmem_gguf_tensor(&g->from, t->name);
    size_t bytes = 1;
    const int block = kvmem_type_block(src->type, &bytes);
    kvmem_dequantize(src->type, x, src->data + (size_t)(from / (uint64_t)block) * bytes, (size_t)n);
    kvmem_quantize((kvmem_type)t->type->id, out, x, (size_t)n);
}

#define MKGGUF_CHUNK 16384 /* values; a multiple of every block */
#define MKGGUF_PIECES 32   /* chunks made in parallel, then written */
static void mkgguf_data(mkgguf_state *g, int number) {
    const gguf_tensor *t = &g->w.t[number];
    const mkgguf_fills *fill = &g->fill[number];
    const uint64_t hash = kvmem__fnv(14695981039346656037u, t->name, strlen(t->name));
    const uint64_t key = kvmem__random(g->s.seed, hash, 0, 0);
    const uint64_t n = t->ne[0] * t->ne[1];
    const size_t coded = (size_t)(MKGGUF_CHUNK / t->type->block) * (size_t)t->type->bytes;
    float *x = (float *)malloc((size_t)MKGGUF_PIECES * MKGGUF_CHUNK * sizeof(float));
    unsigned char *out = (unsigned char *)malloc((size_t)MKGGUF_PIECES * coded);
    uint64_t at;
    if (!x || !out) gguf_fail(&g->w, "no memory for %s", t->name);
    for (at = 0; at < n && !g->w.failed;) {
        const uint64_t left = n - at;
        const int pieces = left >= (uint64_t)MKGGUF_PIECES * MKGGUF_CHUNK ? MKGGUF_PIECES
                         : (int)((left + MKGGUF_CHUNK - 1) / MKGGUF_CHUNK);
        int p;
        uint64_t made = 0;
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
        for (p = 0; p < pieces; p++) {
            const uint64_t from = at + (uint64_t)p * MKGGUF_CHUNK;
            const int m = n - from < MKGGUF_CHUNK ? (int)(n - from) : MKGGUF_CHUNK;
            float *xp = x + (size_t)p * MKGGUF_CHUNK;
            if (g->from_bytes) mkgguf_refill(g, t, from, m, xp, out + (size_t)p * coded);
            else if (t->n_dims == 1) {
                int i;
                for (i = 0; i < m; i++)
                    kvmem__putf32(out + (size_t)p * coded + 4 * (size_t)i,
                                  mkgguf_vector_value(&g->s, fill, key, from + (uint64_t)i));
            } else mkgguf_fill(t->type, fill->dev, key, from, m, xp, out + (size_t)p * coded);
        }
        made = left < (uint64_t)pieces * MKGGUF_CHUNK ? left : (uint64_t)pieces * MKGGUF_CHUNK;
        gguf_put(&g->w, out, (size_t)(made / (uint64_t)t->type->block) * (size_t)t->type->bytes);
        at += made;
    }
    gguf_end(&g->w, number);
    free(x);
    free(out);
}

/* --from: the other file's metadata as they are, its tensors with matrices in --type. */
static void mkgguf_copy(mkgguf_state *g) {
    const gguf_type *ty = gguf_find_type(g->s.type);
    const kvmem_gguf *src = &g->from;
    int64_t align = 32;
    long size = -1;
    FILE *f = fopen(g->s.from, "rb");
    int i;
    if (f && !fseek(f, 0, SEEK_END) && (size = ftell(f)) > 0 && !fseek(f, 0, SEEK_SET) &&
        (g->from_bytes = (unsigned char *)malloc((size_t)size)) != NULL &&
        fread(g->from_bytes, 1, (size_t)size, f) != (size_t)size) size = -1;
    if (f) fclose(f);
    if (size <= 0 || !g->from_bytes) { gguf_fail(&g->w, "cannot read %s", g->s.from); return; }
    if (kvmem_gguf_open(&g->from, g->from_bytes, (size_t)size, NULL)) {
        gguf_fail(&g->w, "%s: %s", g->s.from, src->error.text);
        return;
    }
    kvmem_gguf_int(src, "general.alignment", &align);
    if (!ty || align != 32) {
        gguf_fail(&g->w, ty ? "--from: alignment is not 32" : "unknown tensor type %s", g->s.type);
        return;
    }
    if (ty->block == 256) {
        gguf_fail(&g->w, "--from: %s can be read, not written", ty->name);
        return;
    }
    if (src->n_kv > 0) {
        const kvmem_gguf_kv *last = &src->kv[src->n_kv - 1];
        gguf_bytes(&g->w, g->from_bytes + 24,
                   (size_t)(last->data + last->size - g->from_bytes) - 24);
    }
    g->w.n_kv = (uint32_t)src->n_kv;
    for (i = 0; i < src->n_tensors && !g->w.failed; i++) {
        const kvmem_tensor *t = &src->tensor[i];
        char name[64];
        snprintf(name, sizeof name, "%.*s", t->name_len, t->name);
        if (t->n_dims > 2) {
            gguf_fail(&g->w, "--from: %s has %d dimensions", name, t->n_dims);
            return;
        }
        mkgguf_add(g, ty, -1, name, (int)t->ne[0], t->n_dims == 2 ? (int)t->ne[1] : 0, 0);
    }
}

static void mkgguf_file(mkgguf_state *g, kvmem_write_fn write, void *user) {
    int i;
    if (g->s.from[0]) mkgguf_copy(g);
    else {
        strcpy(g->w.arch, g->s.arch);
        mkgguf_shape(g);
        mkgguf_tokenizer(g);
        mkgguf_tensors(g);
    }
    gguf_head(&g->w, write, user);
    for (i = 0; i < g->w.n_t && !g->w.failed; i++) mkgguf_data(g, i);
}

/* --- options ---------------------------------------------------------------------------------- */

static void mkgguf_use_preset(mkgguf_state *g, const char *name) {
    const mkgguf_preset *p;
    mkgguf_spec *s = &g->s;
    for (p = mkgguf_presets; p->name && strcmp(p->name, name); p++) {}
    if (!p->name) { gguf_fail(&g->w, "unknown preset %s", name); return; }
    s->layers = p->layers; s->dim = p->dim; s->heads = p->heads; s->kv_heads = p->kv_heads;
    s->head_dim = p->head_dim; s->ffn = p->ffn; s->vocab = p->vocab; s->ctx = p->ctx;
    s->tied = p->tied; s->base = p->base;
    strcpy(s->arch, p->arch);
    strcpy(s->vocab_kind, p->vocab_kind);
    strcpy(s->scaling, p->scaling);
}

/* What the options left open, by the architecture. */
static void mkgguf_complete(mkgguf_state *g) {
    mkgguf_spec *s = &g->s;
    static const char *const archs[] = { "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3",
                                         NULL };
    int i;
    for (i = 0; archs[i] && strcmp(archs[i], s->arch); i++) {}
    if (!archs[i]) gguf_fail(&g->w, "unknown architecture %s", s->arch);
    if (!s->vocab_kind[0]) strcpy(s->vocab_kind, s->arch[0] == 'q' ? "qwen2" : "spm");
    if (!strcmp(s->vocab_kind, "corpus")) s->vocab = corpus_n_vocab();
    if (!s->head_dim) s->head_dim = s->heads > 0 ? s->dim / s->heads : 0;
    if (!s->rot) s->rot = s->head_dim;
    if (!s->orig_ctx)
        s->orig_ctx = !strcmp(s->scaling, "llama3") && s->ctx > 8192 ? 8192 : s->ctx / 4;
    if (mkgguf_gemma(g) && s->tied < 0) s->tied = 1; /* always, in the published ones */
    if (s->tied < 0) s->tied = 0;
    if (s->layers < 0)
        s->layers = mkgguf_is(g, "gemma3")
                        ? 7
                        : -s->layers; /* five local layers, a global one, a local one */
    if (s->bias < 0) s->bias = mkgguf_is(g, "qwen2");
    if (s->swa < 0 && (mkgguf_gemma(g) || mkgguf_is(g, "phi3")))
        s->swa = mkgguf_is(g, "gemma3") ? s->ctx / 8 : s->ctx / 2;
    if (s->eps <= 0) s->eps = mkgguf_is(g, "llama") ? 1e-5 : 1e-6;
    if (mkgguf_is(g, "phi3") && s->tied) gguf_fail(&g->w, "phi3 has no tied head");
    if (s->layers < 1 || s->dim < 1 || s->heads < 1 || s->kv_heads < 1 || s->head_dim < 2 ||
        s->ffn < 1 || s->vocab < 300 || s->ctx < 8 || s->heads % s->kv_heads || s->rot % 2 ||
        s->rot > s->head_dim)
        gguf_fail(&g->w, "shape: needs positive sizes, vocab >= 300, ctx >= 8, heads a multiple of "
                       "kv-heads, even rot");
    if (s->scaling[0] && strcmp(s->scaling, "linear") && strcmp(s->scaling, "yarn") &&
        strcmp(s->scaling, "llama3") && strcmp(s->scaling, "longrope"))
        gguf_fail(&g->w, "unknown rope scaling %s", s->scaling);
}

typedef struct mkgguf_option {
    const char *name;
    int *i;
    double *d;
    char *s;
    size_t size;
    const char *what;
} mkgguf_option;
#define MKGGUF_N_OPTIONS 28
static void mkgguf_option_table(mkgguf_spec *s, mkgguf_option *o) {
    int n = 0;
#define MKGGUF_OPT(nm, ip, dp, sp, sz, wh) \
    (o[n].name = nm, o[n].i = ip, o[n].d = dp, o[n].s = sp, o[n].size = sz, o[n].what = wh, n++)
    MKGGUF_OPT("--arch", NULL, NULL, s->arch, sizeof s->arch,
               "llama qwen2 qwen3 gemma2 gemma3 phi3");
    MKGGUF_OPT("--type", NULL, NULL, s->type, sizeof s->type,
               "of matrices: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k..q6_k");
    MKGGUF_OPT("--embd-type", NULL, NULL, s->embd_type, sizeof s->embd_type,
               "of token_embd and output (default: --type)");
    MKGGUF_OPT("--vocab-kind", NULL, NULL, s->vocab_kind, sizeof s->vocab_kind,
               "spm, a BPE pre-tokenizer (gpt-2 llama-bpe qwen2 smollm ...), or corpus: corpus.h's");
    MKGGUF_OPT("--rope-scaling", NULL, NULL, s->scaling, sizeof s->scaling,
               "none linear yarn llama3 longrope");
    MKGGUF_OPT("--chat", NULL, NULL, s->chat, sizeof s->chat, "text of tokenizer.chat_template");
    MKGGUF_OPT("--from", NULL, NULL, s->from, sizeof s->from,
               "rewrite this file with matrices in --type");
    MKGGUF_OPT("--layers", &s->layers, NULL, NULL, 0, "transformer blocks");
    MKGGUF_OPT("--dim", &s->dim, NULL, NULL, 0, "embedding length");
    MKGGUF_OPT("--heads", &s->heads, NULL, NULL, 0, "query heads");
    MKGGUF_OPT("--kv-heads", &s->kv_heads, NULL, NULL, 0, "key-value heads");
    MKGGUF_OPT("--head-dim", &s->head_dim, NULL, NULL, 0, "channels of a head (0: dim/heads)");
    MKGGUF_OPT("--ffn", &s->ffn, NULL, NULL, 0, "feed-forward length");
    MKGGUF_OPT("--vocab", &s->vocab, NULL, NULL, 0, "tokens, at least 300");
    MKGGUF_OPT("--ctx", &s->ctx, NULL, NULL, 0, "training context");
    MKGGUF_OPT("--rot", &s->rot, NULL, NULL, 0, "rotated channels (0: all)");
    MKGGUF_OPT("--orig-ctx", &s->orig_ctx, NULL, NULL, 0, "original context of a scaled RoPE");
    MKGGUF_OPT("--tied", &s->tied, NULL, NULL, 0, "1: the head is the embedding");
    MKGGUF_OPT("--bias", &s->bias, NULL, NULL, 0, "1: biases on q, k, v");
    MKGGUF_OPT("--swa", &s->swa, NULL, NULL, 0, "sliding window in tokens");
    MKGGUF_OPT("--eps", NULL, &s->eps, NULL, 0, "of the norms");
    MKGGUF_OPT("--rope-base", NULL, &s->base, NULL, 0, "RoPE base");
    MKGGUF_OPT("--rope-factor", NULL, &s->factor, NULL, 0,
               "factor of linear, yarn, llama3 scaling");
    MKGGUF_OPT("--attn-softcap", NULL, &s->attn_cap, NULL, 0, "gemma2");
    MKGGUF_OPT("--logit-softcap", NULL, &s->logit_cap, NULL, 0, "gemma2");
    MKGGUF_OPT("--gain", NULL, &s->gain, NULL, 0, "deviation of the logits, about (default 3)");
    MKGGUF_OPT("--seed", NULL, NULL, NULL, 0, "number");
    MKGGUF_OPT("--preset", NULL, NULL, NULL, 0,
               "tiny small llama-3.2-1b smollm2-135m qwen2.5-0.5b qwen3-0.6b gemma-2-2b gemma-3-1b "
               "phi-3-mini; put it first");
#undef MKGGUF_OPT
}

static void mkgguf_option_set(mkgguf_state *g, const char *name, const char *value) {
    mkgguf_option o[MKGGUF_N_OPTIONS];
    char *end = NULL;
    int i;
    mkgguf_option_table(&g->s, o);
    for (i = 0; i < MKGGUF_N_OPTIONS && strcmp(o[i].name, name); i++) {}
    if (i == MKGGUF_N_OPTIONS) gguf_fail(&g->w, "unknown option %s", name);
    else if (!strcmp(name, "--preset")) mkgguf_use_preset(g, value);
    else if (!strcmp(name, "--seed")) g->s.seed = strtoull(value, &end, 0);
    else if (o[i].s) {
        if (strlen(value) + 1 > o[i].size) gguf_fail(&g->w, "%s: value too long", name);
        else strcpy(o[i].s, !strcmp(name, "--rope-scaling") && !strcmp(value, "none") ? "" : value);
    } else if (o[i].i) *o[i].i = (int)strtol(value, &end, 10);
    else *o[i].d = strtod(value, &end);
    if (end && (*end || end == value)) gguf_fail(&g->w, "%s: not a number: %s", name, value);
}

/* Writes a model. args: options as on the command line, without -o. --preset is applied before
   the others, --arch too, wherever they stand. Returns 0, or -1 with why (size bytes, may be
   NULL) filled. */
static int mkgguf_argv(int argc, const char *const *argv, kvmem_write_fn write, void *user,
                       char *why, size_t size) {
    mkgguf_state *g = (mkgguf_state *)calloc(1, sizeof *g);
    int i, failed;
    if (!g) { if (why && size) snprintf(why, size, "no memory"); return -1; }
    g->s.bias = g->s.swa = -1;
    g->s.seed = 1;
    g->s.factor = 8;
    g->s.attn_cap = 50;
    g->s.logit_cap = 30;
    g->s.gain = 3;
    strcpy(g->s.type, "f32");
    mkgguf_use_preset(g, "tiny");
    for (i = 0; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "--preset")) mkgguf_use_preset(g, argv[i + 1]);
    for (i = 0; i < argc && !g->w.failed; i += 2) {
        if (i + 1 == argc) gguf_fail(&g->w, "%s: value missing", argv[i]);
        else if (strcmp(argv[i], "--preset")) mkgguf_option_set(g, argv[i], argv[i + 1]);
    }
    if (!g->w.failed) mkgguf_complete(g);
    if (!g->w.failed) mkgguf_file(g, write, user);
    if (why && size) snprintf(why, size, "%.*s", (int)size - 1, g->w.why);
    failed = g->w.failed;
    kvmem_gguf_close(&g->from);
    free(g->from_bytes);
    free(g->fill);
    gguf_writer_free(&g->w);
    free(g);
    return failed ? -1 : 0;
}

#ifdef MKGGUF_NO_MAIN
/* The same from one line of text with blanks between the words. */
static KVMEM__UNUSED int mkgguf(const char *args, kvmem_write_fn write, void *user) {
    char line[1024];
    const char *argv[64];
    int argc = 0;
    char *p;
    if (strlen(args) >= sizeof line) return -1;
    strcpy(line, args);
    for (p = strtok(line, " "); p && argc < 64; p = strtok(NULL, " ")) argv[argc++] = p;
    return mkgguf_argv(argc, argv, write, user, NULL, 0);
}
#else
static int mkgguf_to_file(void *user, const void *p, size_t n) {
    return fwrite(p, 1, n, (FILE *)user) != n;
}

static void mkgguf_usage(void) {
    mkgguf_spec s;
    mkgguf_option o[MKGGUF_N_OPTIONS];
    int i;
    mkgguf_option_table(&s, o);
    printf("mkgguf [options] -o FILE: a GGUF model with random weights\n");
    for (i = 0; i < MKGGUF_N_OPTIONS; i++) printf("  %-16s %s\n", o[i].name, o[i].what);
}

int main(int argc, char **argv) {
    const char *path = NULL, *rest[128];
    char why[640];
    FILE *f;
    int i, n = 0, bad;
    for (i = 1; i < argc && n < 126; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) { mkgguf_usage(); return 0; }
        if (!strcmp(argv[i], "-o") && i + 1 < argc) path = argv[++i];
        else rest[n++] = argv[i];
    }
    if (!path) {
        fprintf(stderr, "mkgguf: -o FILE is missing (--help lists the options)\n");
        return 2;
    }
    f = fopen(path, "wb");
    if (!f) { fprintf(stderr, "mkgguf: cannot write %s\n", path); return 1; }
    bad = mkgguf_argv(n, rest, mkgguf_to_file, f, why, sizeof why);
    if (fclose(f) && !bad) { bad = 1; snprintf(why, sizeof why, "cannot finish %s", path); }
    if (bad) { fprintf(stderr, "mkgguf: %s\n", why); remove(path); return 1; }
    return 0;
}
#endif
