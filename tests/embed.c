/* A text as one vector: counts of tokens by BM25 against the formula, and the model's own vectors against what a
   session computes: single tokens, layer by layer. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "tiny.h"
#include <math.h>

/* ---- bag */

TEST(bm25_of_the_worked_example) {
    static const int ab[2] = { 10, 11 }, acc[3] = { 10, 12, 12 }, c[1] = { 12 };
    kvmem_bag b;
    REQUIRE_OK(kvmem_bag_init(&b, 4096, NULL));
    CHECK(kvmem_bag_score(&b, ab, 2, c, 1) == 0); /* nothing is known yet */
    kvmem_bag_count(&b, ab, 2, 1);
    kvmem_bag_count(&b, acc, 3, 1);
    CHECK(b.docs == 2 && b.tokens == 5);
    CHECK_NEAR(kvmem_bag_score(&b, acc, 3, c, 1), 0.902322, 1e-6);
    CHECK(kvmem_bag_score(&b, ab, 2, c, 1) == 0);
    CHECK(kvmem_bag_score(&b, acc, 3, ab, 2) > 0); /* the common token counts a little */
    kvmem_bag_count(&b, ab, 2, -1);
    kvmem_bag_count(&b, acc, 3, -1);
    CHECK(b.docs == 0 && b.tokens == 0);
    kvmem_bag_free(&b);
    CHECK(kvmem_bag_init(&b, 0, NULL) == KVMEM_BAD_ARGUMENT);
    kvmem_bag_free(&b);
    kvmem_bag_free(NULL);
}
TEST(the_product_of_two_bags_is_the_score) {
    float d[512], q[512];
    int doc[40], ask[6], t, i;
    kvmem_bag b;
    REQUIRE_OK(kvmem_bag_init(&b, 512, NULL));
    for (t = 0; t < 50; t++) {
        for (i = 0; i < 40; i++) doc[i] = (int)(test_unit() * test_unit() * 300);
        kvmem_bag_count(&b, doc, 5 + t % 36, 1);
    }
    for (t = 0; t < 20; t++) {
        double sum = 0;
        for (i = 0; i < 40; i++) doc[i] = (int)(test_unit() * test_unit() * 300);
        for (i = 0; i < 6; i++) ask[i] = (int)(test_unit() * 300);
        ask[5] = ask[0]; /* twice asked counts twice */
        kvmem_bag_vector(&b, doc, 40, 0, d);
        kvmem_bag_vector(&b, ask, 6, 1, q);
        for (i = 0; i < 512; i++) sum += (double)d[i] * (double)q[i];
        CHECK_NEAR(sum, kvmem_bag_score(&b, doc, 40, ask, 6), 1e-4);
    }
    kvmem_bag_free(&b);
}
TEST(a_rare_token_finds_its_document_among_many) {
    kvmem_bag b;
    static int doc[200][30];
    int i, j, right = 0, best;
    REQUIRE_OK(kvmem_bag_init(&b, 1 << 16, NULL));
    for (i = 0; i < 200; i++) {
        for (j = 0; j < 30; j++) doc[i][j] = (int)(test_unit() * 50);
        doc[i][7] = 1000 + i / 2; /* two documents share it */
        doc[i][19] = 2000 + i % 20;
        kvmem_bag_count(&b, doc[i], 30, 1);
    }
    for (i = 0; i < 200; i++) {
        int ask[5];
        for (j = 0; j < 3; j++) ask[j] = (int)(test_unit() * 50);
        ask[3] = 1000 + i / 2;
        ask[4] = 2000 + i % 20;
        for (best = 0, j = 1; j < 200; j++)
            if (kvmem_bag_score(&b, doc[j], 30, ask, 5) > kvmem_bag_score(&b, doc[best], 30, ask, 5)) best = j;
        right += best == i;
    }
    CHECK(right == 200);
    kvmem_bag_free(&b);
}
TEST(normalise_makes_length_one_and_leaves_zeros) {
    float x[3] = { 3, 0, -4 }, z[2] = { 0, 0 };
    kvmem_normalise(x, 3);
    CHECK_NEAR(x[0], 0.6, 1e-7);
    CHECK_NEAR(x[2], -0.8, 1e-7);
    kvmem_normalise(z, 2);
    CHECK(z[0] == 0 && z[1] == 0);
}

/* ---- of a model */

static kvmem_model m;
static kvmem_session s;
static uint8_t *bytes;
static int begin(int max_block) {
    kvmem_session_config cfg = kvmem_session_config_default();
    size_t size;
    cfg.max_block = max_block;
    cfg.threads = 1;
    bytes = tiny_model(KVMEM_F32, 0, &size);
    return kvmem_model_open(&m, bytes, size, NULL, 0, NULL) == KVMEM_OK && kvmem_session_init(&s, &m, &cfg) == KVMEM_OK;
}
static void end(void) {
    kvmem_session_free(&s);
    kvmem_model_close(&m);
    free(bytes);
}
static kvmem_embedder kind(kvmem_embed_kind k, int layer) {
    kvmem_embedder e;
    memset(&e, 0, sizeof e);
    e.kind = k;
    e.layer = layer;
    return e;
}
static const int text[9] = { 72, 101, 3, 3, 250, 17, 200, 5, 91 };

TEST(input_is_the_mean_of_the_embeddings) {
    kvmem_embedder e = kind(KVMEM_EMBED_INPUT, 0);
    float out[32], row[32];
    double mean[32] = { 0 };
    int i, j;
    REQUIRE(begin(4));
    for (i = 0; i < 9; i++) {
        s.backend->rows(s.backend, row, &m.embd, text + i, 1, 1);
        for (j = 0; j < 32; j++) mean[j] += (double)row[j] / 9;
    }
    e.raw = 1;
    CHECK(kvmem_embed_dim(&m, &e) == 32);
    REQUIRE_OK(kvmem_embed(&s, &e, text, 9, out));
    for (j = 0; j < 32; j++) CHECK_NEAR(out[j], mean[j], 1e-6);
    e.raw = 0;
    REQUIRE_OK(kvmem_embed(&s, &e, text, 9, row));
    kvmem_normalise(out, 32);
    for (j = 0; j < 32; j++) CHECK_NEAR(out[j], row[j], 1e-6);
    CHECK_NEAR(kvmem__dot_plain(row, row, 32), 1, 1e-6);
    end();
}
TEST(hidden_after_all_layers_gives_the_logits_and_after_none_the_input) {
    kvmem_embedder e = kind(KVMEM_EMBED_HIDDEN, -1), in = kind(KVMEM_EMBED_INPUT, 0);
    float out[32], other[32], logits[TINY_VOCAB];
    int j, n;
    REQUIRE(begin(16));
    e.raw = 1;
    for (n = 0; n < 3; n++) { /* alone, and on top of what the session has read */
        kvmem_bytes before, after;
        const int64_t tokens = s.cache.tokens;
        kvmem_session_bytes(&s, &before);
        REQUIRE_OK(kvmem_embed(&s, &e, text + n, 1, out));
        kvmem_session_bytes(&s, &after);
        CHECK(s.cache.tokens == tokens && kvmem_cache_lane_len(&s.cache, 0, 0) == (int)tokens);
        CHECK(before.entries == after.entries);
        memcpy(s.x, out, sizeof out);
        kvmem__head_part(&s, logits, s.x, 1);
        REQUIRE_OK(kvmem_session_feed(&s, text + n, 1, KVMEM_DECODE, NULL, NULL));
        for (j = 0; j < TINY_VOCAB; j++) CHECK_NEAR(logits[j], s.logits[j], 1e-5);
    }
    e.layer = 0;
    in.raw = 1;
    REQUIRE_OK(kvmem_embed(&s, &e, text, 9, out));
    REQUIRE_OK(kvmem_embed(&s, &in, text, 9, other));
    for (j = 0; j < 32; j++) CHECK_NEAR(out[j], other[j], 1e-6);
    end();
}
TEST(keys_are_those_of_the_cache_turned_back) {
    int l, g, i, j;
    REQUIRE(begin(16));
    for (l = 0; l < 2; l++) {
        kvmem_embedder e = kind(KVMEM_EMBED_KEYS, l);
        float out[16], k[9 * 8], want[16] = { 0 };
        int32_t pos[9];
        CHECK(kvmem_embed_dim(&m, &e) == 16);
        e.raw = 1;
        kvmem_session_clear(&s);
        REQUIRE_OK(kvmem_embed(&s, &e, text, 9, out));
        REQUIRE_OK(kvmem_session_feed(&s, text, 9, KVMEM_PREFILL, NULL, NULL));
        for (g = 0; g < 2; g++) {
            REQUIRE_OK(kvmem_cache_read(&s.cache, l, g, 0, 9, k, NULL, pos));
            for (i = 0; i < 9; i++) pos[i] = -pos[i];
            s.backend->rope(k, k, 9, 1, 8, &s.cache.shape.rope[l], pos, 0, 1);
            for (i = 0; i < 9; i++) for (j = 0; j < 8; j++) want[8 * g + j] += k[8 * i + j] / 9;
        }
        for (j = 0; j < 16; j++) CHECK_NEAR(out[j], want[j], 1e-5);
    }
    end();
}
TEST(a_longer_text_is_read_block_by_block) {
    kvmem_embedder e = kind(KVMEM_EMBED_HIDDEN, 1);
    float out[32], a[32], b[32], c[32];
    int j;
    REQUIRE(begin(4));
    e.raw = 1;
    REQUIRE_OK(kvmem_embed(&s, &e, text, 9, out));
    REQUIRE_OK(kvmem_embed(&s, &e, text, 4, a));
    REQUIRE_OK(kvmem_embed(&s, &e, text + 4, 4, b));
    REQUIRE_OK(kvmem_embed(&s, &e, text + 8, 1, c));
    for (j = 0; j < 32; j++) CHECK_NEAR(out[j], (4 * a[j] + 4 * b[j] + c[j]) / 9, 1e-5);
    end();
}
static kvmem_status length_of(void *user, const int *ids, int n, float *out) {
    (void)ids;
    out[0] = (float)n;
    out[1] = 0;
    return *(int *)user ? KVMEM_IO : KVMEM_OK;
}
TEST(bags_and_the_callers_function_and_what_is_refused) {
    kvmem_embedder e = kind(KVMEM_EMBED_BAG, 0);
    kvmem_bag bag;
    float out[64];
    int bad = 0, ids[1] = { 9999 };
    REQUIRE(begin(4));
    REQUIRE_OK(kvmem_bag_init(&bag, 64, NULL));
    CHECK(kvmem_embed(&s, &e, text, 9, out) == KVMEM_BAD_ARGUMENT); /* no bag */
    e.bag = &bag;
    REQUIRE_OK(kvmem_embed(&s, &e, text, 9, out));
    CHECK_NEAR(kvmem__dot_plain(out, out, 64), 1, 1e-6);
    kvmem_bag_free(&bag);
    e = kind(KVMEM_EMBED_USER, 0);
    CHECK(kvmem_embed_dim(&m, &e) == 0);
    e.fn = length_of;
    e.user = &bad;
    e.dim = 2;
    REQUIRE_OK(kvmem_embed(&s, &e, text, 9, out));
    CHECK(out[0] == 1 && out[1] == 0);
    bad = 1;
    CHECK(kvmem_embed(&s, &e, text, 9, out) == KVMEM_IO);
    e = kind(KVMEM_EMBED_HIDDEN, 3); /* two layers: 0, 1, 2 */
    CHECK(kvmem_embed(&s, &e, text, 9, out) == KVMEM_BAD_ARGUMENT);
    e = kind(KVMEM_EMBED_KEYS, 2);
    CHECK(kvmem_embed(&s, &e, text, 9, out) == KVMEM_BAD_ARGUMENT && strstr(s.error.text, "layer 2"));
    e = kind(KVMEM_EMBED_INPUT, 0);
    CHECK(kvmem_embed(&s, &e, text, 0, out) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_embed(&s, &e, ids, 1, out) == KVMEM_BAD_ARGUMENT && strstr(s.error.text, "9999"));
    CHECK(!strcmp(kvmem_embed_name(KVMEM_EMBED_KEYS), "keys") && !kvmem_embed_name(KVMEM_N_EMBEDS));
    end();
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "embed");
    RUN(bm25_of_the_worked_example);
    RUN(the_product_of_two_bags_is_the_score);
    RUN(a_rare_token_finds_its_document_among_many);
    RUN(normalise_makes_length_one_and_leaves_zeros);
    RUN(input_is_the_mean_of_the_embeddings);
    RUN(hidden_after_all_layers_gives_the_logits_and_after_none_the_input);
    RUN(keys_are_those_of_the_cache_turned_back);
    RUN(a_longer_text_is_read_block_by_block);
    RUN(bags_and_the_callers_function_and_what_is_refused);
    return test_end();
}
