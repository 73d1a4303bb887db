/* Model files: shapes read right, every llama2.c layout, and files that are wrong in one place. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "tiny.h"
#include "net.h"

static const char model_path[] = "../shared/models/stories260K.bin";

TEST(the_shape_of_every_architecture_is_read) {
    static const char *const arch[6] = { "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3" };
    int i, l;
    for (i = 0; i < 6; i++) {
        net t = net_default(arch[i]);
        size_t size;
        uint8_t *p;
        kvmem_model m;
        net_build(&t);
        p = net_gguf(&t, &size);
        REQUIRE_OK(kvmem_model_open(&m, p, size, NULL, 0, NULL));
        CHECK(m.arch == (kvmem_arch)i && !strcmp(m.arch_name, arch[i]) && m.llama2c == -1);
        CHECK(m.n_vocab == t.V && m.n_embd == t.E && m.n_layers == t.L && m.n_heads == t.H);
        CHECK(m.n_kv_heads == t.G && m.head_dim == t.d && m.n_ff == t.F && m.n_ctx_train == t.ctx);
        CHECK(m.gelu == t.gelu && m.tied == t.tied && m.rope.neox == t.neox && m.rope.n_rot == t.n_rot);
        CHECK_NEAR(m.rope.base, t.base, 0);
        CHECK_NEAR(m.attn_softcap, t.softcap, 0);
        CHECK_NEAR(m.logit_softcap, t.final_cap, 0);
        CHECK(m.tokenizer.kind == KVMEM_VOCAB_NONE);
        for (l = 0; l < t.L; l++) {
            const kvmem_layer *y = &m.layer[l];
            const int global = t.pattern && (l + 1) % t.pattern == 0;
            CHECK(y->window == (global ? 0 : t.window));
            CHECK((y->q_norm != NULL) == t.qk_norm && (y->attn_post_norm != NULL) == t.post);
            CHECK((y->q_bias != NULL) == t.bias && y->o_bias == NULL);
            CHECK(kvmem__lef32(y->k.data) == t.layer[l].qkv[t.H * t.d * t.E]);
            CHECK(kvmem__lef32(y->up.data) == t.layer[l].gate_up[t.F * t.E]);
            CHECK(y->attn_norm[3] == t.layer[l].attn_norm[3] && y->down.ne[0] == t.F && y->down.ne[1] == t.E);
        }
        kvmem_model_close(&m);
        kvmem_model_close(&m);
        free(p);
        net_free(&t);
    }
}

TEST(the_fingerprint_follows_weights_and_shape) {
    net t = net_default("llama");
    size_t size;
    uint8_t *p;
    kvmem_model a, b;
    net_build(&t);
    p = net_gguf(&t, &size);
    REQUIRE_OK(kvmem_model_open(&a, p, size, NULL, 0, NULL));
    REQUIRE_OK(kvmem_model_open(&b, p, size, NULL, 0, NULL));
    CHECK(a.id == b.id);
    kvmem_model_close(&b);
    p[a.layer[1].v.data - p] ^= 1;
    REQUIRE_OK(kvmem_model_open(&b, p, size, NULL, 0, NULL));
    CHECK(a.id != b.id);
    kvmem_model_close(&a);
    kvmem_model_close(&b);
    free(p);
    net_free(&t);
}

/* Opens g's file and expects this refusal; nothing may be left behind. */
static void refused(uint8_t *p, size_t size, kvmem_status status, const char *words, int line) {
    test_heap heap;
    kvmem_allocator a = test_allocator(&heap);
    kvmem_model m;
    kvmem_status got;
    memset(&heap, 0, sizeof heap);
    got = kvmem_model_open(&m, p, size, NULL, 0, &a);
    if (got != status || !strstr(m.error.text, words))
        FAIL_AT("line %d: status %d '%s' instead of %d '%s'", line, (int)got, m.error.text, (int)status, words);
    kvmem_model_close(&m);
    if (heap.live || heap.wrong) FAIL_AT("line %d: %lu bytes left", line, (unsigned long)heap.live);
}
static uint8_t *find(uint8_t *p, size_t size, const char *text) {
    const size_t len = strlen(text);
    size_t i;
    for (i = 0; i + len <= size; i++) if (!memcmp(p + i, text, len)) return p + i;
    return NULL;
}

TEST(every_missing_tensor_and_key_is_named) {
    static const char *const need[] = { "token_embd.weight", "output_norm.weight", "blk.1.attn_norm.weight",
        "blk.2.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.1.attn_output.weight",
        "blk.1.ffn_norm.weight", "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight", "blk.2.ffn_down.weight",
        "blk.1.attn_q_norm.weight", "blk.6.attn_k_norm.weight", "blk.5.post_attention_norm.weight",
        "blk.4.post_ffw_norm.weight", "gemma3.context_length", "gemma3.embedding_length", "gemma3.block_count",
        "gemma3.feed_forward_length", "gemma3.attention.head_count", "gemma3.attention.layer_norm_rms_epsilon",
        "gemma3.attention.sliding_window", "general.architecture" };
    net t = net_default("gemma3");
    size_t size, i;
    uint8_t *p;
    net_build(&t);
    p = net_gguf(&t, &size);
    for (i = 0; i < sizeof need / sizeof need[0]; i++) {
        char words[96];
        uint8_t *at = find(p, size, need[i]);
        REQUIRE(at != NULL);
        snprintf(words, sizeof words, "'%s' is missing", need[i]);
        at[0] ^= 32;
        refused(p, size, KVMEM_BAD_FILE, words, (int)i);
        at[0] ^= 32;
    }
    free(p);
    net_free(&t);
}

/* A llama file with one difference: key `name` is u32 `value` instead (or besides). */
static uint8_t *with(const net *n, const char *arch, int layers, uint32_t embd, uint32_t heads, const char *name,
                     uint32_t value, size_t *size) {
    tiny_gguf g;
    net t = *n;
    char key[64];
    memset(&g, 0, sizeof g);
    t.arch = arch;
    tiny_set_text(&g, "general.architecture", arch);
    tiny_set_u32(&g, net_key(&t, "context_length"), 64);
    tiny_set_u32(&g, net_key(&t, "embedding_length"), embd);
    tiny_set_u32(&g, net_key(&t, "block_count"), (uint32_t)layers);
    tiny_set_u32(&g, net_key(&t, "feed_forward_length"), (uint32_t)n->F);
    tiny_set_u32(&g, net_key(&t, "attention.head_count"), heads);
    tiny_set_f32(&g, net_key(&t, "attention.layer_norm_rms_epsilon"), 1e-5f);
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (name[0]) tiny_set_u32(&g, key, value);
    net_put(&g, "token_embd.weight", n->embd, n->E, n->V);
    net_put(&g, "output_norm.weight", n->out_norm, n->E, 1);
    return tiny_finish(&g, size);
}

TEST(wrong_numbers_and_unsupported_shapes_are_named) {
    static const struct {
        const char *arch; int layers; uint32_t embd, heads; const char *name; uint32_t value;
        kvmem_status status; const char *words;
    } c[] = {
        { "mamba", 1, 24, 4, "", 0, KVMEM_UNSUPPORTED, "'mamba'" },
        { "llama", 1, 24, 4, "expert_count", 8, KVMEM_UNSUPPORTED, "expert" },
        { "llama", 0, 24, 4, "", 0, KVMEM_BAD_FILE, "llama.block_count" },
        { "llama", 2000000, 24, 4, "", 0, KVMEM_BAD_FILE, "llama.block_count" },
        { "llama", 1, 0, 4, "", 0, KVMEM_BAD_FILE, "llama.embedding_length" },
        { "llama", 1, 32, 4, "", 0, KVMEM_BAD_FILE, "'token_embd.weight' is 24 x 50, not 32 x 50" },
        { "llama", 1, 24, 0, "", 0, KVMEM_BAD_FILE, "llama.attention.head_count" },
        { "llama", 1, 24, 25, "", 0, KVMEM_BAD_FILE, "llama.attention.key_length' is missing" },
        { "llama", 1, 24, 4, "attention.head_count_kv", 3, KVMEM_BAD_FILE, "head_count_kv" },
        { "llama", 1, 24, 4, "attention.head_count_kv", 8, KVMEM_BAD_FILE, "head_count_kv" },
        { "llama", 1, 24, 4, "attention.head_count_kv", 0, KVMEM_BAD_FILE, "head_count_kv" },
        { "llama", 1, 24, 4, "attention.value_length", 8, KVMEM_UNSUPPORTED, "value_length" },
        { "llama", 1, 24, 4, "rope.dimension_count", 5, KVMEM_BAD_FILE, "rope.dimension_count" },
        { "llama", 1, 24, 4, "rope.dimension_count", 8, KVMEM_BAD_FILE, "rope.dimension_count" },
        { "llama", 1, 24, 4, "rope.freq_base", 0, KVMEM_BAD_FILE, "rope.freq_base" },
        { "llama", 1, 24, 4, "", 0, KVMEM_BAD_FILE, "'blk.0.attn_norm.weight' is missing" } };
    net t = net_default("llama");
    size_t size, i;
    net_build(&t);
    for (i = 0; i < sizeof c / sizeof c[0]; i++) {
        uint8_t *p = with(&t, c[i].arch, c[i].layers, c[i].embd, c[i].heads, c[i].name, c[i].value, &size);
        refused(p, size, c[i].status, c[i].words, (int)i);
        free(p);
    }
    net_free(&t);
}

/* The file of t with one more piece added by the test. */
static void put_start(tiny_gguf *g, const char *arch) {
    memset(g, 0, sizeof *g);
    tiny_set_text(g, "general.architecture", arch);
}

TEST(other_refusals_name_their_cause) {
    net t = net_default("llama");
    tiny_gguf g;
    size_t size;
    uint8_t *p;
    put_start(&g, "llama");
    tiny_set_u32(&g, "split.count", 3);
    p = tiny_finish(&g, &size);
    refused(p, size, KVMEM_UNSUPPORTED, "split.count", __LINE__);
    free(p);
    put_start(&g, "llama");
    tiny_set_text(&g, "llama.block_count", "many");
    p = tiny_finish(&g, &size);
    refused(p, size, KVMEM_BAD_FILE, "'llama.block_count' holds no number", __LINE__);
    free(p);
    put_start(&g, "llama");
    tiny_set_u32(&g, "llama.block_count", 2);
    tiny_set_u32(&g, "llama.context_length", 2);
    tiny_set_u32(&g, "llama.embedding_length", 8);
    tiny_set_u32(&g, "llama.feed_forward_length", 8);
    tiny_set_u32(&g, "llama.attention.head_count", 2);
    tiny_set_array(&g, "llama.attention.head_count_kv", 4, 2);
    tiny_u32(&g.kv, 2);
    tiny_u32(&g.kv, 1);
    p = tiny_finish(&g, &size);
    refused(p, size, KVMEM_UNSUPPORTED, "'llama.attention.head_count_kv' differs", __LINE__);
    free(p);
    t.scaling = "dynamic";
    net_build(&t);
    p = net_gguf(&t, &size);
    refused(p, size, KVMEM_UNSUPPORTED, "'dynamic'", __LINE__);
    free(p);
    t.scaling = NULL;
    t.bias = 0;
    t.post = 1; /* llama has no post norms: a tensor without a place */
    t.layer[0].attn_post = t.layer[0].ffn_post = t.layer[1].attn_post = t.out_norm;
    t.layer[1].ffn_post = t.layer[2].attn_post = t.layer[2].ffn_post = t.out_norm;
    p = net_gguf(&t, &size);
    refused(p, size, KVMEM_UNSUPPORTED, "'blk.0.post_attention_norm.weight' has no place", __LINE__);
    free(p);
    net_free(&t);
    t = net_default("llama");
    t.llama3 = 1;
    net_build(&t);
    t.freqs[1] = 0;
    p = net_gguf(&t, &size);
    refused(p, size, KVMEM_BAD_VALUE, "'rope_freqs.weight'", __LINE__);
    free(p);
    net_free(&t);
}

TEST(head_counts_may_be_equal_arrays) {
    net t = net_default("llama");
    tiny_gguf g;
    size_t size, at;
    uint8_t *p;
    kvmem_model m;
    t.L = 1;
    net_build(&t);
    memset(&g, 0, sizeof g);
    p = net_gguf(&t, &size); /* the same keys again, head_count_kv as an array: build the file by hand */
    at = (size_t)(find(p, size, "token_embd") - 8 - p);
    tiny_add(&g.kv, p + 24, at - 24);
    g.n_kv = kvmem__le64(p + 16);
    find(g.kv.p, g.kv.n, "head_count_kv")[0] = 'H';
    tiny_set_array(&g, "llama.attention.head_count_kv", 4, 1);
    tiny_u32(&g.kv, 2);
    net_put(&g, "token_embd.weight", t.embd, t.E, t.V);
    net_put(&g, "output_norm.weight", t.out_norm, t.E, 1);
    net_put(&g, "output.weight", t.head, t.E, t.V);
    net_put_layer(&t, &g, 0);
    free(p);
    p = tiny_finish(&g, &size);
    REQUIRE_OK(kvmem_model_open(&m, p, size, NULL, 0, NULL));
    CHECK(m.n_kv_heads == 2);
    kvmem_model_close(&m);
    free(p);
    net_free(&t);
}

TEST(a_changed_byte_of_the_header_is_refused_or_harmless) {
    net t = net_default("gemma3");
    size_t size, i, end;
    uint8_t *p;
    test_heap heap;
    kvmem_allocator a = test_allocator(&heap);
    int opened = 0, refused_ = 0, round;
    memset(&heap, 0, sizeof heap);
    t.L = 1;
    net_build(&t);
    p = net_gguf(&t, &size);
    end = (size_t)(find(p, size, "blk.0.ffn_down.weight") - p) + 60;
    for (round = 0; round < 4; round++)
        for (i = 0; i < end; i++) {
            kvmem_model m;
            const uint8_t old = p[i];
            p[i] = (uint8_t)(round ? (int)(test_unit() * 256) : 255);
            if (kvmem_model_open(&m, p, size, NULL, 0, &a) == KVMEM_OK) opened++;
            else {
                refused_++;
                if (!m.error.text[0]) FAIL_AT("no reason given");
            }
            kvmem_model_close(&m);
            p[i] = old;
        }
    CHECK(opened > 20 && refused_ > 100 && heap.live == 0 && heap.wrong == 0);
    free(p);
    net_free(&t);
}

TEST(an_unusable_tokenizer_is_said_and_a_broken_one_refused) {
    net t = net_default("llama");
    size_t size, vocab_size;
    uint8_t *p, *v;
    kvmem_model m;
    tiny_gguf g;
    int kind;
    net_build(&t);
    for (kind = 0; kind < 3; kind++) {
        memset(&g, 0, sizeof g);
        p = net_gguf(&t, &size);
        tiny_add(&g.kv, p + 24, (size_t)(find(p, size, "token_embd") - 8 - p) - 24);
        g.n_kv = kvmem__le64(p + 16);
        free(p);
        if (kind == 0) tiny_set_text(&g, "tokenizer.ggml.model", "bert");
        if (kind == 1) tiny_set_text(&g, "tokenizer.ggml.model", "llama"); /* and no tokens */
        if (kind == 2) tiny_vocab_spm(&g);                                 /* 264 tokens, 50 embeddings */
        net_put(&g, "token_embd.weight", t.embd, t.E, t.V);
        net_put(&g, "output_norm.weight", t.out_norm, t.E, 1);
        net_put(&g, "output.weight", t.head, t.E, t.V);
        net_put_layer(&t, &g, 0);
        net_put_layer(&t, &g, 1);
        net_put_layer(&t, &g, 2);
        p = tiny_finish(&g, &size);
        if (kind == 0) {
            REQUIRE_OK(kvmem_model_open(&m, p, size, NULL, 0, NULL));
            CHECK(m.tokenizer.kind == KVMEM_VOCAB_NONE && strstr(m.tokenizer.error.text, "bert"));
            kvmem_model_close(&m);
        } else if (kind == 1) refused(p, size, KVMEM_BAD_FILE, "tokenizer.ggml.tokens", __LINE__);
        else refused(p, size, KVMEM_BAD_FILE, "264 tokens", __LINE__);
        free(p);
    }
    net_free(&t);
    p = tiny_llama2c(&size);
    v = tiny_llama2c_vocab(&vocab_size);
    REQUIRE_OK(kvmem_model_open(&m, p, size, v, vocab_size, NULL));
    CHECK(m.tokenizer.kind == KVMEM_VOCAB_LLAMA2C && m.tokenizer.n_vocab == m.n_vocab);
    kvmem_model_close(&m);
    CHECK(kvmem_model_open(&m, p, size, v, vocab_size / 2, NULL) == KVMEM_BAD_FILE && m.error.text[0]);
    kvmem_model_close(&m);
    free(p);
    free(v);
}

/* ---- llama2.c ---- */

/* A net in llama2.c's layout of that version; group for version 2. */
static void l2c_floats(tiny_bytes *b, const float *x, int n) {
    int i;
    for (i = 0; i < n; i++) tiny_f32(b, x[i]);
}
static void l2c_matrix(tiny_bytes *b, const float *x, int n, int group) {
    int i, j;
    float *scale;
    if (!group) { l2c_floats(b, x, n); return; }
    scale = (float *)malloc((size_t)(n / group) * sizeof *scale);
    for (i = 0; i < n / group; i++) {
        float most = 0;
        for (j = 0; j < group; j++) most = (float)fmax((double)most, fabs((double)x[i * group + j]));
        scale[i] = most / 127;
        for (j = 0; j < group; j++) {
            const signed char v = (signed char)floor((double)x[i * group + j] / (double)scale[i] + 0.5);
            tiny_add(b, &v, 1);
        }
    }
    l2c_floats(b, scale, n / group);
    free(scale);
}
static uint8_t *l2c_file(const net *t, int version, int group, size_t *size) {
    tiny_bytes b = { NULL, 0, 0 };
    const int q = t->H * t->d, k = t->G * t->d;
    int l, kind;
    if (version) { tiny_u32(&b, 0x616b3432u); tiny_u32(&b, (uint32_t)version); }
    tiny_u32(&b, (uint32_t)t->E); tiny_u32(&b, (uint32_t)t->F); tiny_u32(&b, (uint32_t)t->L);
    tiny_u32(&b, (uint32_t)t->H); tiny_u32(&b, (uint32_t)t->G);
    tiny_u32(&b, version || t->tied ? (uint32_t)t->V : (uint32_t)-t->V);
    tiny_u32(&b, (uint32_t)t->ctx);
    if (version) {
        tiny_add(&b, t->tied ? "\1" : "\0", 1);
        tiny_u32(&b, (uint32_t)group);
        while (b.n < 256) tiny_add(&b, "", 1);
        for (l = 0; l < t->L; l++) l2c_floats(&b, t->layer[l].attn_norm, t->E);
        for (l = 0; l < t->L; l++) l2c_floats(&b, t->layer[l].ffn_norm, t->E);
        l2c_floats(&b, t->out_norm, t->E);
    }
    l2c_matrix(&b, t->embd, t->V * t->E, group);
    for (l = 0; !version && l < t->L; l++) l2c_floats(&b, t->layer[l].attn_norm, t->E);
    for (kind = 0; kind < 7; kind++) {
        for (l = 0; l < t->L; l++) {
            const net_layer *y = &t->layer[l];
            if (kind == 0) l2c_matrix(&b, y->qkv, q * t->E, group);
            if (kind == 1) l2c_matrix(&b, y->qkv + q * t->E, k * t->E, group);
            if (kind == 2) l2c_matrix(&b, y->qkv + (q + k) * t->E, k * t->E, group);
            if (kind == 3) l2c_matrix(&b, y->o, t->E * q, group);
            if (kind == 4) l2c_matrix(&b, y->gate_up, t->F * t->E, group);
            if (kind == 5) l2c_matrix(&b, y->down, t->E * t->F, group);
            if (kind == 6) l2c_matrix(&b, y->gate_up + t->F * t->E, t->F * t->E, group);
        }
        for (l = 0; kind == 3 && !version && l < t->L; l++) l2c_floats(&b, t->layer[l].ffn_norm, t->E);
    }
    if (!version) {
        l2c_floats(&b, t->out_norm, t->E);
        for (l = 0; l < t->ctx * t->d; l++) tiny_f32(&b, 1e30f); /* the tables that nobody reads */
    }
    if (!t->tied) l2c_matrix(&b, t->head, t->V * t->E, group);
    *size = b.n;
    return b.p;
}
static net l2c_net(int tied, int kv_heads) {
    net t = net_default("llama");
    t.E = 32;
    t.F = 64;
    t.G = kv_heads;
    t.tied = tied;
    net_build(&t);
    return t;
}
/* The largest difference of the logits of 12 tokens from the oracle's. */
static double l2c_error(const net *t, const uint8_t *p, size_t size, int version) {
    int ids[12], i;
    double *want = NULL, worst = 1e9;
    kvmem_model m;
    kvmem_session s;
    kvmem_session_config cfg = kvmem_session_config_default();
    memset(&s, 0, sizeof s);
    cfg.backend = kvmem_backend_cpu("plain");
    for (i = 0; i < 12; i++) ids[i] = (i * 5 + 1) % t->V;
    if (kvmem_model_open(&m, p, size, NULL, 0, NULL) != KVMEM_OK) { FAIL_AT("%s", m.error.text); return worst; }
    if (m.llama2c != version || m.tied != t->tied) FAIL_AT("version %d read as %d", version, m.llama2c);
    if (kvmem_session_init(&s, &m, &cfg) == KVMEM_OK &&
        kvmem_session_feed(&s, ids, 12, KVMEM_PROMPT_END, NULL, NULL) == KVMEM_OK) {
        worst = 0;
        want = net_logits(t, ids, 12);
        for (i = 0; i < t->V; i++) worst = fmax(worst, fabs(want[11 * t->V + i] - (double)s.logits[i]));
    }
    free(want);
    kvmem_session_free(&s);
    kvmem_model_close(&m);
    return worst;
}

TEST(llama2c_layouts_agree_with_the_oracle) {
    int tied, kv;
    for (tied = 0; tied < 2; tied++)
        for (kv = 2; kv <= 4; kv += 2) {
            net t = l2c_net(tied, kv);
            size_t size;
            uint8_t *p = l2c_file(&t, 0, 0, &size);
            CHECK(l2c_error(&t, p, size, 0) < 1e-4);
            free(p);
            p = l2c_file(&t, 1, 0, &size);
            CHECK(l2c_error(&t, p, size, 1) < 1e-4);
            free(p);
            net_free(&t);
        }
}

/* Replaces the net's matrices by what their int8 form stands for, so that only arithmetic differs. */
static void l2c_round(float *x, int n, int group) {
    int i, j;
    for (i = 0; i < n; i += group) {
        float most = 0, scale;
        for (j = 0; j < group; j++) most = (float)fmax((double)most, fabs((double)x[i + j]));
        scale = most / 127;
        for (j = 0; j < group; j++) x[i + j] = (float)floor((double)x[i + j] / (double)scale + 0.5) * scale;
    }
}
TEST(llama2c_version_2_agrees_for_any_group_size) {
    static const int group[5] = { 1, 2, 8, 16, 32 };
    int i, l, tied;
    for (i = 0; i < 5; i++)
        for (tied = 0; tied < 2; tied++) {
            net t = l2c_net(tied, 2);
            const int rows = (t.H + 2 * t.G) * t.d;
            size_t size;
            uint8_t *p;
            double e;
            l2c_round(t.embd, t.V * t.E, group[i]);
            if (!tied) l2c_round(t.head, t.V * t.E, group[i]);
            for (l = 0; l < t.L; l++) {
                l2c_round(t.layer[l].qkv, rows * t.E, group[i]);
                l2c_round(t.layer[l].o, t.E * t.E, group[i]);
                l2c_round(t.layer[l].gate_up, 2 * t.F * t.E, group[i]);
                l2c_round(t.layer[l].down, t.F * t.E, group[i]);
            }
            if (group[i] >= 16) t.act_group = 32; /* then activations are 8-bit integers, too */
            p = l2c_file(&t, 2, group[i], &size);
            e = l2c_error(&t, p, size, 2);
            if (!(e < (t.act_group ? 0.02 : 1e-4))) FAIL_AT("group %d: logits differ by %g", group[i], e);
            free(p);
            net_free(&t);
        }
}

TEST(llama2c_matrices_lie_in_the_file) {
    net t = l2c_net(0, 2);
    size_t size;
    uint8_t *p = l2c_file(&t, 2, 16, &size);
    kvmem_model m;
    REQUIRE_OK(kvmem_model_open(&m, p, size, NULL, 0, NULL));
    CHECK(m.embd.type == KVMEM_Q8_SPLIT && m.embd.group == 16 && m.embd.data == p + 256 + (2 * 3 + 1) * 32 * 4);
    CHECK(m.embd.scales == m.embd.data + t.V * t.E);
    CHECK(m.layer[0].q.data == m.embd.scales + t.V * t.E / 16 * 4);
    CHECK(m.head.scales + t.V * t.E / 16 * 4 == p + size);
    kvmem_model_close(&m);
    free(p);
    net_free(&t);
}

TEST(llama2c_files_that_lie_are_refused) {
    static const struct { int at; uint32_t value; kvmem_status status; const char *words; } c[] = {
        { 0, 0, KVMEM_BAD_FILE, "dim would be 0" },          { 0, 0x7fffffff, KVMEM_BAD_FILE, "dim" },
        { 4, 0x80000000u, KVMEM_BAD_FILE, "hidden_dim" },    { 8, 1u << 20, KVMEM_BAD_FILE, "n_layers" },
        { 8, 4, KVMEM_BAD_FILE, "bytes, not" },              { 12, 5, KVMEM_BAD_FILE, "n_heads 5" },
        { 16, 3, KVMEM_BAD_FILE, "n_kv_heads 3" },           { 12, 32, KVMEM_BAD_FILE, "n_heads 32" },
        { 20, 0, KVMEM_BAD_FILE, "vocab_size" },             { 20, 0x80000000u, KVMEM_BAD_FILE, "vocab_size" },
        { 20, 0x7fffffff, KVMEM_BAD_FILE, "bytes, not" },    { 24, 0, KVMEM_BAD_FILE, "seq_len" },
        { 24, 0x7fffffff, KVMEM_BAD_FILE, "bytes, not" } };
    net t = l2c_net(1, 2);
    size_t size, i;
    uint8_t *p = l2c_file(&t, 0, 0, &size);
    for (i = 0; i < sizeof c / sizeof c[0]; i++) {
        const uint32_t old = kvmem__le32(p + c[i].at);
        kvmem__put32(p + c[i].at, c[i].value);
        refused(p, size, c[i].status, c[i].words, (int)i);
        kvmem__put32(p + c[i].at, old);
    }
    for (i = 0; i < size; i += i < 40 ? 1 : 997) {
        uint8_t *cut = (uint8_t *)malloc(i + 1);
        memcpy(cut, p, i);
        refused(cut, i, i ? KVMEM_BAD_FILE : KVMEM_BAD_ARGUMENT, "model: ", (int)i);
        free(cut);
    }
    free(p);
    p = l2c_file(&t, 2, 16, &size);
    kvmem__put32(p + 4, 3);
    refused(p, size, KVMEM_UNSUPPORTED, "version 3", __LINE__);
    kvmem__put32(p + 4, 0);
    refused(p, size, KVMEM_UNSUPPORTED, "version 0", __LINE__);
    kvmem__put32(p + 4, 2);
    kvmem__put32(p + 37, 0);
    refused(p, size, KVMEM_BAD_FILE, "group size 0", __LINE__);
    kvmem__put32(p + 37, 24);
    refused(p, size, KVMEM_UNSUPPORTED, "group size 24", __LINE__);
    kvmem__put32(p + 37, 8);
    refused(p, size, KVMEM_BAD_FILE, "bytes, not", __LINE__);
    free(p);
    net_free(&t);
}

TEST(stories260K_has_its_published_shape) {
    size_t size;
    unsigned char *p = test_file(model_path, &size);
    kvmem_model m;
    if (!p) SKIP("../shared/models is not there");
    REQUIRE_OK(kvmem_model_open(&m, p, size, NULL, 0, NULL));
    CHECK(m.n_embd == 64 && m.n_ff == 172 && m.n_layers == 5 && m.n_heads == 8 && m.n_kv_heads == 4);
    CHECK(m.n_vocab == 512 && m.n_ctx_train == 512 && m.tied && m.llama2c == 0);
    kvmem_model_close(&m);
    free(p);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "model");
    RUN(the_shape_of_every_architecture_is_read);
    RUN(the_fingerprint_follows_weights_and_shape);
    RUN(every_missing_tensor_and_key_is_named);
    RUN(wrong_numbers_and_unsupported_shapes_are_named);
    RUN(other_refusals_name_their_cause);
    RUN(head_counts_may_be_equal_arrays);
    RUN(a_changed_byte_of_the_header_is_refused_or_harmless);
    RUN(an_unusable_tokenizer_is_said_and_a_broken_one_refused);
    RUN(llama2c_layouts_agree_with_the_oracle);
    RUN(llama2c_version_2_agrees_for_any_group_size);
    RUN(llama2c_matrices_lie_in_the_file);
    RUN(llama2c_files_that_lie_are_refused);
    RUN(stories260K_has_its_published_shape);
    return test_end();
}
