/* Models with fewer or shared KV heads: what must stay the same does, the loss follows the rule. */
#include "test.h"
#include "tiny.h"
#include "net.h"
#define TRANSFORM_NO_MAIN
#include "../tools/transform.c"

enum { TOKENS = 48 };
typedef struct bytes {
    uint8_t *p;
    size_t n, cap;
} bytes;
static int keep(void *user, const void *p, size_t n) {
    bytes *b = (bytes *)user;
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->p = (uint8_t *)realloc(b->p, b->cap);
        if (!b->p) exit(2);
    }
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 0;
}
static int ids[TOKENS];
static void make_ids(int vocab) {
    int i;
    for (i = 0; i < TOKENS; i++)
        ids[i] = (int)(kvmem__random(3, (uint64_t)i, 0, 0) % (uint64_t)vocab);
}
typedef struct rows {
    float *x;
    size_t vocab, n;
} rows;
static int take_row(void *user, int index, const float *logits) {
    rows *r = (rows *)user;
    (void)index;
    memcpy(r->x + r->n++ * r->vocab, logits, r->vocab * sizeof(float));
    return 0;
}
/* The logits of all tokens under a recipe; the caller frees them. *kv: bytes of the rows. */
static float *logits_of(const uint8_t *file, size_t size, const char *recipe, size_t *kv) {
    kvmem_model m;
    kvmem_session s;
    kvmem_session_config c = kvmem_session_config_default();
    kvmem_recipe r;
    kvmem_bytes b;
    rows out;
    memset(&out, 0, sizeof out);
    if (kvmem_model_open(&m, file, size, NULL, 0, NULL)) {
        FAIL_AT("model: %s", m.error.text);
        return NULL;
    }
    out.vocab = (size_t)m.n_vocab;
    out.x = (float *)calloc((size_t)TOKENS * out.vocab, sizeof(float));
    CHECK_OK(kvmem_recipe_parse(&r, recipe, NULL));
    c.recipe = &r;
    if (kvmem_session_init(&s, &m, &c) ||
        kvmem_session_feed(&s, ids, TOKENS, KVMEM_PROMPT_END, take_row, &out))
        FAIL_AT("%s: %s", recipe, s.error.text);
    kvmem_session_bytes(&s, &b);
    if (kv) *kv = b.live.k + b.live.v;
    kvmem_session_free(&s);
    kvmem_model_close(&m);
    return out.x;
}
/* |a - b| / |a| over n values */
static double distance(const float *a, const float *b, size_t n) {
    double d = 0, all = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        all += (double)a[i] * (double)a[i];
    }
    return sqrt(d / all);
}
static int changed(const uint8_t *file, size_t size, transform *a, bytes *out) {
    kvmem_model m;
    int ok;
    memset(out, 0, sizeof *out);
    if (kvmem_model_open(&m, file, size, NULL, 0, NULL)) {
        FAIL_AT("model: %s", m.error.text);
        return 0;
    }
    ok = transform_model(a, &m, keep, out);
    kvmem_model_close(&m);
    return ok;
}
/* How far the logits are from the original's; < 0 on failure. */
static double change(const uint8_t *file, size_t size, transform *a, int vocab, double *kv_share) {
    bytes out;
    size_t before = 1, after = 1;
    double d = -1;
    float *x, *y;
    if (!changed(file, size, a, &out)) {
        FAIL_AT("%s", a->why);
        return -1;
    }
    x = logits_of(file, size, "full codec=f16 page=16", &before);
    y = logits_of(out.p, out.n, "full codec=f16 page=16", &after);
    if (x && y) d = distance(x, y, (size_t)TOKENS * (size_t)vocab);
    if (kv_share) *kv_share = (double)after / (double)before;
    free(x);
    free(y);
    free(out.p);
    return d;
}
static transform plan(int by, int group) {
    transform a;
    memset(&a, 0, sizeof a);
    a.by = by;
    a.group = group;
    a.ids = ids;
    a.n_ids = TOKENS;
    return a;
}
/* Four KV heads in groups: every head of a group is its first plus noise times another one. The
   stream is far from white: its first channels are the large ones. */
static uint8_t *related(net *t, int group, double noise, size_t *size) {
    int l, g, i;
    t->G = t->H = 4;
    net_build(t);
    for (i = 0; i < t->V * t->E; i++) t->embd[i] *= i % t->E < 6 ? 4.0f : 0.3f;
    for (l = 0; l < t->L; l++)
        for (g = 0; g < 8; g++) { /* 4 heads of K, 4 of V */
            const int at = (t->H + g) * t->d, from = at - g % group * t->d;
            for (i = 0; i < t->d * t->E && g % group; i++) {
                float *w = t->layer[l].qkv;
                w[at * t->E + i] = w[from * t->E + i] + (float)noise * w[at * t->E + i];
            }
            for (i = 0; i < t->d && g % group && t->bias; i++)
                t->layer[l].qkv_bias[at + i] = t->layer[l].qkv_bias[from + i];
        }
    return net_gguf(t, size);
}

TEST(identical_heads_become_one_without_loss) {
    static const char *const arch[3] = { "llama", "qwen2", "llama" };
    int i, by, group;
    for (i = 0; i < 3; i++)
        for (group = 2; group <= 4; group += 2)
            for (by = 0; by < 3; by++) {
                net t = net_default(arch[i]);
                transform a = plan(by, group);
                size_t size;
                uint8_t *file;
                double d, share = 0;
                if (i == 2) t.n_rot = 4; /* half of the channels are rotated */
                file = related(&t, group, 0, &size);
                make_ids(t.V);
                d = change(file, size, &a, t.V, &share);
                if (!(d >= 0 && d < 1e-3))
                    FAIL_AT("%s, %d heads, by %d: %g", arch[i], group, by, d);
                CHECK_NEAR(a.kept_k, 1, 1e-4);
                CHECK_NEAR(a.kept_v, 1, 1e-4);
                CHECK(share == 1.0 / group);
                free(file);
                net_free(&t);
            }
}
TEST(groups_of_one_head_are_the_same_model_in_another_basis) {
    int by;
    for (by = 0; by < 3; by++) {
        net t = net_default("llama");
        transform a = plan(by, 1);
        size_t size;
        uint8_t *file;
        float *x, *y;
        bytes out;
        file = related(&t, 1, 0, &size);
        make_ids(t.V);
        REQUIRE(changed(file, size, &a, &out));
        x = logits_of(file, size, "full", NULL);
        y = logits_of(out.p, out.n, "full", NULL);
        CHECK_NEAR(distance(x, y, (size_t)(TOKENS * t.V)), 0, 1e-5);
        free(x);
        free(y);
        free(out.p);
        free(file);
        net_free(&t);
    }
}
TEST(text_beats_weights_beat_the_mean) {
    int n_rot;
    for (n_rot = 8; n_rot >= 0; n_rot -= 8) {
        net t = net_default("llama");
        transform a = plan(TRANSFORM_SVD_A, 2), w = plan(TRANSFORM_SVD_W, 2),
                  m = plan(TRANSFORM_MEAN, 2);
        size_t size;
        uint8_t *file;
        double da, dw, dm;
        t.n_rot = n_rot;
        file = related(&t, 2, 0.6, &size);
        make_ids(t.V);
        da = change(file, size, &a, t.V, NULL);
        dw = change(file, size, &w, t.V, NULL);
        dm = change(file, size, &m, t.V, NULL);
        if (!(da > 0 && da < dw && dw < dm)) FAIL_AT("n_rot %d: %g, %g, %g", n_rot, da, dw, dm);
        CHECK(a.kept_k > m.kept_k && a.kept_v > m.kept_v && a.kept_v < 1);
        free(file);
        net_free(&t);
    }
}
TEST(captured_energy_is_the_leading_eigenvalues_share) {
    enum { T = 2, W = 6, N = T * W };
    float x[40 * N], gram[N * N], copy[N * N], vec[N * N], val[N], d[W * N], mean[W * N];
    double all = 0, lead = 0, lost = 0, norm = 0;
    int i, j, c;
    memset(gram, 0, sizeof gram);
    for (i = 0; i < 40 * N; i++) x[i] = (float)test_normal() * (float)(1 + i % N);
    transform_add(gram, x, 40, N, 1, N);
    memcpy(copy, gram, sizeof gram);
    kvmem__eigen(vec, val, copy, N);
    transform_basis(d, gram, T, W, 0, 0);
    transform_mean(mean, T, W);
    for (i = 0; i < N; i++) {
        all += (double)val[i];
        if (i < W) lead += (double)val[i];
    }
    CHECK_NEAR(transform_energy(d, gram, T, W), lead / all, 1e-5);
    CHECK(transform_energy(mean, gram, T, W) < transform_energy(d, gram, T, W));
    for (i = 0; i < 40; i++) { /* and 1 - energy is the relative error of D^T D x */
        double c_[W], back[N];
        for (c = 0; c < W; c++)
            for (c_[c] = 0, j = 0; j < N; j++) c_[c] += (double)d[c * N + j] * (double)x[i * N + j];
        for (j = 0; j < N; j++) {
            for (back[j] = 0, c = 0; c < W; c++) back[j] += (double)d[c * N + j] * c_[c];
            lost += (back[j] - (double)x[i * N + j]) * (back[j] - (double)x[i * N + j]);
            norm += (double)x[i * N + j] * (double)x[i * N + j];
        }
    }
    CHECK_NEAR(1 - lost / norm, lead / all, 1e-5);
}
TEST(rotating_then_projecting_is_projecting_then_rotating) {
    enum { T = 4, W = 8, N = T * W };
    static const int32_t pos[1] = { 77 };
    static const float inv[3] = { 1.0f, 0.3f, 0.05f };
    int neox, i, j, c;
    for (neox = 0; neox < 2; neox++) {
        float x[60 * N], gram[N * N], d[W * N], turned[N], one[W], two[W];
        kvmem_rope r;
        memset(&r, 0, sizeof r);
        r.n_rot = 6;
        r.neox = neox;
        r.mscale = 1;
        r.inv_freq = inv; /* two channels are not rotated */
        memset(gram, 0, sizeof gram);
        for (i = 0; i < 60 * N; i++) x[i] = (float)test_normal();
        transform_add(gram, x, 60, N, 1, N);
        transform_basis(d, gram, T, W, 6, neox);
        for (c = 0; c < W; c++) /* rows are orthonormal */
            for (i = 0; i <= c; i++) {
                double s = 0;
                for (j = 0; j < N; j++) s += (double)d[c * N + j] * (double)d[i * N + j];
                CHECK_NEAR(s, c == i, 1e-5);
            }
        kvmem_backend_cpu("plain")->rope(turned, x, 1, T, W, &r, pos, 1, 1);
        for (c = 0; c < W; c++)
            for (one[c] = two[c] = 0, j = 0; j < N; j++) {
                one[c] += d[c * N + j] * turned[j];
                two[c] += d[c * N + j] * x[j];
            }
        kvmem_backend_cpu("plain")->rope(two, two, 1, 1, W, &r, pos, 1, 1);
        for (c = 0; c < W; c++) CHECK_NEAR(one[c], two[c], 1e-5);
    }
}
TEST(types_of_the_file_stay_and_other_tensors_are_copied) {
    static const kvmem_type type[3] = { KVMEM_F16, KVMEM_Q8_0, KVMEM_F32 };
    int i, j;
    for (i = 0; i < 3; i++) {
        size_t size;
        uint8_t *file = tiny_model(type[i], 0, &size);
        transform a = plan(TRANSFORM_SVD_A, 2);
        bytes out;
        kvmem_gguf before, after;
        int64_t heads = 0;
        make_ids(200);
        REQUIRE(changed(file, size, &a, &out));
        REQUIRE_OK(kvmem_gguf_open(&before, file, size, NULL));
        REQUIRE_OK(kvmem_gguf_open(&after, out.p, out.n, NULL));
        CHECK(after.n_kv == before.n_kv && after.n_tensors == before.n_tensors);
        CHECK(kvmem_gguf_int(&after, "llama.attention.head_count_kv", &heads) && heads == 1);
        for (j = 0; j < before.n_tensors; j++) {
            const kvmem_tensor *x = before.tensor + j, *y = after.tensor + j;
            CHECK(x->type == y->type && x->name_len == y->name_len);
            if (!strstr(x->name, "attn_") || strstr(x->name, "norm")) continue;
            CHECK(y->ne[0] == x->ne[0]);
        }
        CHECK(kvmem_gguf_tensor(&after, "blk.0.attn_k.weight")->ne[1] == 8);
        CHECK(!memcmp(kvmem_gguf_tensor(&before, "blk.1.ffn_up.weight")->data,
                      kvmem_gguf_tensor(&after, "blk.1.ffn_up.weight")->data,
                      kvmem_gguf_tensor(&before, "blk.1.ffn_up.weight")->size));
        free(logits_of(out.p, out.n, "full", NULL));
        kvmem_gguf_close(&before);
        kvmem_gguf_close(&after);
        free(out.p);
        free(file);
    }
}
TEST(what_cannot_be_folded_is_refused) {
    static const char *const arch[2] = { "qwen3", "phi3" };
    static const char *const why[2] = { "normed", "one matrix" };
    int i;
    for (i = 0; i < 2; i++) {
        net t = net_default(arch[i]);
        transform a = plan(TRANSFORM_SVD_A, 2);
        size_t size;
        uint8_t *file;
        bytes out;
        net_build(&t);
        file = net_gguf(&t, &size);
        make_ids(t.V);
        CHECK(!changed(file, size, &a, &out) && strstr(a.why, why[i]) && !out.n);
        free(out.p);
        free(file);
        net_free(&t);
    }
    {
        net t = net_default("llama");
        transform a = plan(TRANSFORM_SVD_A, 3);
        size_t size;
        uint8_t *file;
        bytes out;
        net_build(&t);
        file = net_gguf(&t, &size);
        CHECK(!changed(file, size, &a, &out) && strstr(a.why, "does not divide"));
        a = plan(TRANSFORM_SVD_A, 2);
        a.n_ids = 0;
        CHECK(!changed(file, size, &a, &out) && strstr(a.why, "text"));
        free(file);
        net_free(&t);
    }
}
TEST(shared_projections_give_equal_rows_and_symmetric_logits) {
    net t = net_default("llama");
    transform a = plan(TRANSFORM_SHARE, 1);
    kvmem_model m;
    bytes out;
    size_t size, i, j;
    uint8_t *file;
    const kvmem_tensor *q, *k, *v;
    t.G = t.H;
    t.n_rot = 0;
    net_build(&t);
    file = net_gguf(&t, &size);
    make_ids(t.V);
    a.share_q = a.share_v = 1;
    REQUIRE(changed(file, size, &a, &out));
    REQUIRE_OK(kvmem_model_open(&m, out.p, out.n, NULL, 0, NULL));
    q = &m.layer[1].q;
    k = &m.layer[1].k;
    v = &m.layer[1].v;
    CHECK(k->size == v->size && !memcmp(k->data, v->data, k->size) &&
          !memcmp(k->data, q->data, k->size));
    { /* Q = K: scores before the mask are symmetric */
        float x[5 * 24], rowq[5 * 32], rowk[5 * 32];
        const kvmem_backend *b = kvmem_backend_cpu("plain");
        for (i = 0; i < sizeof x / sizeof *x; i++) x[i] = (float)test_normal();
        b->matmul(b, rowq, q, x, 5, NULL, 1);
        b->matmul(b, rowk, k, x, 5, NULL, 1);
        for (i = 0; i < 5; i++)
            for (j = 0; j < i; j++)
                CHECK(b->dot(rowq + i * 32, rowk + j * 32, 8) ==
                      b->dot(rowq + j * 32, rowk + i * 32, 8));
    }
    kvmem_model_close(&m);
    free(out.p);
    free(file);
    net_free(&t);
}
/* A model whose V is its K; n_rot 0: positions do not matter. The caller frees the bytes. */
static bytes shared_model(int n_rot) {
    net t = net_default("llama");
    transform a = plan(TRANSFORM_SHARE, 1);
    bytes out;
    size_t size;
    uint8_t *file;
    t.n_rot = n_rot;
    net_build(&t);
    file = net_gguf(&t, &size);
    make_ids(t.V);
    a.share_v = 1;
    if (!changed(file, size, &a, &out)) FAIL_AT("%s", a.why);
    free(file);
    net_free(&t);
    return out;
}
TEST(shared_rows_give_the_same_bits_in_half_the_bytes) {
    static const char *const more[3] = { "", " score=recency budget=20 when=block sink=2",
                                         " score=h2o budget=20 when=step" };
    int n_rot, i;
    for (n_rot = 0; n_rot <= 8; n_rot += 8) {
        bytes m = shared_model(n_rot);
        for (i = 0; i < 3; i++) {
            char text[128];
            size_t two = 0, one = 0, post = 0;
            float *a, *b, *c;
            snprintf(text, sizeof text, "codec.k=f16_pre codec.v=f16 page=16%s", more[i]);
            a = logits_of(m.p, m.n, text, &two);
            snprintf(text, sizeof text, "qkv_share page=16%s", more[i]);
            b = logits_of(m.p, m.n, text, &one);
            snprintf(text, sizeof text, "codec=f16 page=16%s", more[i]);
            c = logits_of(m.p, m.n, text, &post);
            CHECK(!memcmp(a, b, (size_t)TOKENS * 50 * sizeof *a));
            CHECK(two == 2 * one && post == two);
            if (i == 0 && n_rot == 0) CHECK_NEAR(distance(c, b, (size_t)TOKENS * 50), 0, 1e-5);
            if (i == 0 && n_rot)
                CHECK_NEAR(distance(c, b, (size_t)TOKENS * 50), 0, 2e-3); /* half(RoPE(k)) */
            free(a);
            free(b);
            free(c);
        }
        free(m.p);
    }
}
TEST(shared_rows_are_read_saved_and_copied) {
    bytes m = shared_model(8), file = { NULL, 0, 0 };
    kvmem_model model;
    kvmem_session s, l;
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r;
    float k[8], v[8];
    REQUIRE_OK(kvmem_model_open(&model, m.p, m.n, NULL, 0, NULL));
    REQUIRE_OK(kvmem_recipe_parse(&r, "qkv_share page=16", NULL));
    cfg.recipe = &r;
    REQUIRE_OK(kvmem_session_init(&s, &model, &cfg));
    REQUIRE_OK(kvmem_session_init(&l, &model, &cfg));
    CHECK_OK(kvmem_session_feed(&s, ids, 40, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_cache_read(&s.cache, 1, 1, 0, 1, k, v, NULL));
    CHECK(!memcmp(k, v, sizeof k)); /* position 0: RoPE turns by nothing */
    CHECK_OK(kvmem_session_save(&s, keep, &file));
    CHECK_OK(kvmem_session_load(&l, file.p, file.n));
    CHECK_OK(kvmem_session_feed(&s, ids + 40, 1, KVMEM_DECODE, NULL, NULL));
    CHECK_OK(kvmem_session_feed(&l, ids + 40, 1, KVMEM_DECODE, NULL, NULL));
    CHECK(!memcmp(s.logits, l.logits, (size_t)model.n_vocab * sizeof(float)));
    kvmem_session_free(&l);
    CHECK_OK(kvmem_session_copy(&l, &s));
    CHECK_OK(kvmem_session_truncate(&l, 30));
    CHECK_OK(kvmem_session_feed(&l, ids + 30, 11, KVMEM_PREFILL, NULL, NULL));
    CHECK(distance(s.logits, l.logits, (size_t)model.n_vocab) < 1e-4);
    kvmem_session_free(&s);
    kvmem_session_free(&l);
    kvmem_model_close(&model);
    free(file.p);
    free(m.p);
}
TEST(shared_rows_are_refused_where_values_are_not_keys) {
    static const char *const bad[3] = { "codec.k=f16 codec.v=key", "codec.k=key",
                                        "codec.v=f16_pre" };
    net t = net_default("llama");
    kvmem_model model;
    kvmem_session s;
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r;
    kvmem_error err;
    uint8_t *file;
    size_t size;
    int i;
    for (i = 0; i < 3; i++) CHECK(kvmem_recipe_parse(&r, bad[i], &err) == KVMEM_BAD_RECIPE);
    net_build(&t);
    file = net_gguf(&t, &size);
    make_ids(t.V);
    REQUIRE_OK(kvmem_model_open(&model, file, size, NULL, 0, NULL));
    REQUIRE_OK(kvmem_recipe_parse(&r, "qkv_share", &err));
    cfg.recipe = &r;
    REQUIRE_OK(kvmem_session_init(&s, &model, &cfg));
    CHECK(kvmem_session_feed(&s, ids, 5, KVMEM_PROMPT_END, NULL, NULL) == KVMEM_MISMATCH);
    CHECK(strstr(s.error.text, "not its keys") != NULL);
    kvmem_session_free(&s);
    REQUIRE_OK(kvmem_recipe_parse(&r, "full", &err));
    REQUIRE_OK(kvmem_session_init(&s, &model, &cfg));
    CHECK_OK(kvmem_session_feed(&s, ids, 5, KVMEM_PROMPT_END, NULL, NULL));
    CHECK(kvmem_cache_recode(&s.cache, "f16_pre", "key") == KVMEM_UNSUPPORTED);
    kvmem_session_free(&s);
    kvmem_model_close(&model);
    free(file);
    net_free(&t);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "transform");
    RUN(identical_heads_become_one_without_loss);
    RUN(groups_of_one_head_are_the_same_model_in_another_basis);
    RUN(text_beats_weights_beat_the_mean);
    RUN(captured_energy_is_the_leading_eigenvalues_share);
    RUN(rotating_then_projecting_is_projecting_then_rotating);
    RUN(types_of_the_file_stay_and_other_tensors_are_copied);
    RUN(what_cannot_be_folded_is_refused);
    RUN(shared_projections_give_equal_rows_and_symmetric_logits);
    RUN(shared_rows_give_the_same_bits_in_half_the_bytes);
    RUN(shared_rows_are_read_saved_and_copied);
    RUN(shared_rows_are_refused_where_values_are_not_keys);
    return test_end();
}
