/* The codec zip and the score zipcache: the card's facts and figures. */
#define KVMEM_NO_DECODER
#include "test.h"
#include "coded.h"
#define FIGURE_ROWS 4096
#include "figures.h"
#include "codec_facts.h"

/* 3 %; 5 % on S, whose four channels carry nearly all of the energy. */
TEST(zip_reproduces_the_figures_of_the_card) {
    static const double d64[3][3] = { { .206, .163, .107 }, { .0375, .0266, .0197 }, { .0081, .0058, .0043 } };
    static const double d128[3][3] = { { .254, .288, .172 }, { .0463, .0460, .0320 }, { .0101, .0100, .0070 } };
    int bits, k;
    for (bits = 2; bits <= 4; bits++) {
        for (k = 0; k < 3; k++) {
            char text[64];
            snprintf(text, sizeof text, "zip(bits=%d)", bits);
            FIGURE(text, "GOS"[k], 64, 0, d64[bits - 2][k], k == 2 ? 0.05 : 0.03);
            FIGURE(text, "GOS"[k], 128, 0, d128[bits - 2][k], 0.03);
        }
    }
}
TEST(zip_beats_plain_rows_on_channels_of_different_size) {
    const double zip = figure_error("zip(bits=2)", 'S', 64, 0, FIGURE_REL);
    FIGURE("kivi(bits=2,axis=token,group=64)", 'S', 64, 0, .674, 0.03);
    CHECK(figure_error("kivi(bits=2,axis=token,group=64)", 'S', 64, 0, FIGURE_REL) > 6 * zip);
}
TEST(zip_with_equal_channels_is_plain_rows) {
    enum { N = 20, D = 24 };
    float x[N * D], y[N * D], z[N * D];
    coded a, b;
    int i;
    figure_rows(x, 'G', N, D, 4);
    for (i = 0; i < N * D; i++) x[i] = i < D ? 16.0f : x[i]; /* c = 4 in every channel */
    REQUIRE(coded_make(&a, "zip(bits=3)", NULL, D, x, N) && coded_make(&b, "kivi(bits=3,axis=token,group=24)",
                                                            NULL, D, x, N));
    coded_decode(&a, y);
    coded_decode(&b, z);
    CHECK(!memcmp(y, z, sizeof y));
    coded_free(&a);
    coded_free(&b);
}
TEST(zip_bits_a_value_are_b_plus_32_over_the_head_size) {
    float x[4 * 128] = { 0 };
    coded c;
    REQUIRE(coded_make(&c, "zip(bits=2)", NULL, 64, x, 4));
    CHECK(coded_bits(&c) == 2.5 && !c.u.fn.head_bytes);
    coded_free(&c);
    REQUIRE(coded_make(&c, "zip", NULL, 128, x, 4));
    CHECK(coded_bits(&c) == 4.25);
    coded_free(&c);
}
TEST(zip_any_input_and_any_path) {
    codec_facts("zip(bits=2)", 2e-3);
    codec_facts("zip(bits=4)", 2e-3);
    codec_facts("zip(bits=8,group=32)", 2e-3);
}
/* One layer, one head: query i gives entry t the probability row[i][t], keys are unit vectors. */
static void score_rows(const double (*row)[8], int n, const char *recipe, float *score) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_cache c;
    kvmem_view v;
    float q[8], k[8], out[8];
    int i, t;
    REQUIRE_OK(kvmem_recipe_parse(&r, recipe, NULL));
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = 8;
    cfg.recipe = &r;
    REQUIRE_OK(kvmem_cache_init(&c, &cfg));
    for (i = 0; i < n; i++) {
        for (t = 0; t < 8; t++) {
            q[t] = t <= i ? (float)(log(row[i][t]) * sqrt(8)) : 0;
            k[t] = t == i;
        }
        CHECK_OK(kvmem_cache_append(&c, 0, 1, k, k, NULL));
        CHECK_OK(kvmem_cache_attend(&c, 0, 1, q, out));
        if (i + 1 < n) CHECK_OK(kvmem_cache_commit(&c, KVMEM_PREFILL));
    }
    memset(&v, 0, sizeof v);
    v.cache = &c;
    v.par = c.recipe.stage[KVMEM_SCORE].par;
    CHECK_OK(((const kvmem_score_entry *)(const void *)c.recipe.stage[KVMEM_SCORE].entry)->fn(&v, 0, score));
    kvmem__view_scratch_end(&c);
    CHECK_OK(kvmem_cache_commit(&c, KVMEM_PROMPT_END));
    kvmem_cache_free(&c);
}
static const double rows4[4][8] = { { 1 }, { .6, .4 }, { .5, .2, .3 }, { .4, .1, .2, .3 } };
TEST(score_example_of_the_card) {
    static const double want[4] = { .625, .2333, .25, .3 };
    float s[8];
    int t;
    score_rows(rows4, 4, "score=zipcache budget=100", s);
    for (t = 0; t < 4; t++) CHECK_NEAR(s[t], want[t], 1e-4);
    CHECK(s[0] > s[3] && s[3] > s[2] && s[2] > s[1]); /* the sums rank 0 1 2 3 */
}
TEST(score_counts_only_the_probes_but_divides_by_all_who_could_see) {
    static const double want[4] = { .9 / 4, .3 / 3, .5 / 2, .3 };
    float s[8];
    int t;
    score_rows(rows4, 4, "score=zipcache(window=2) budget=100", s);
    for (t = 0; t < 4; t++) CHECK_NEAR(s[t], want[t], 1e-4);
}
TEST(score_with_every_query_as_a_probe_is_the_normalised_sum) {
    float s[8], u[8];
    int t;
    score_rows(rows4, 4, "score=zipcache(window=4) budget=100", s);
    score_rows(rows4, 4, "score=h2o(normalize=1) budget=100", u);
    for (t = 0; t < 4; t++) CHECK_NEAR(s[t], u[t], 1e-6);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_zipcache");
    codec_facts_fast = codec_facts_avx2 = 2e-4;
    RUN(zip_reproduces_the_figures_of_the_card);
    RUN(zip_beats_plain_rows_on_channels_of_different_size);
    RUN(zip_with_equal_channels_is_plain_rows);
    RUN(zip_bits_a_value_are_b_plus_32_over_the_head_size);
    RUN(zip_any_input_and_any_path);
    RUN(score_example_of_the_card);
    RUN(score_counts_only_the_probes_but_divides_by_all_who_could_see);
    RUN(score_with_every_query_as_a_probe_is_the_normalised_sum);
    return test_end();
}
