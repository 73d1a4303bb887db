/* The codec mikv: the balancer, the card's example and figures. */
#define KVMEM_NO_DECODER
#include "test.h"
#include "coded.h"
#define FIGURE_ROWS 4096
#include "figures.h"
#include "codec_facts.h"

TEST(mikv_example_of_the_card) {
    static const float q[4] = { 4, 1, 1, 1 }, k[4] = { 1, 8, -1, .5f }, most[4] = { 1, 8, 1, .5f };
    static const double bal[4] = { 2, .35355, 1, 1.41421 }, own[4] = { 2, 2.82843, -1, .70711 };
    float y[4], s;
    coded c;
    int i;
    REQUIRE(coded_begin(&c, "mikv(bits=2,group=2)", NULL, 4));
    coded_watch(&c, q, 1);
    coded_learn(&c, most, 1);
    coded_encode(&c, k, 1);
    for (i = 0; i < 4; i++) CHECK_NEAR(c.state[i], bal[i], 1e-5);
    c.u.fn.expand(&c.b, y, 0, 1);
    for (i = 0; i < 4; i++) CHECK_NEAR(y[i], own[i], 1e-3); /* both ends of a pair are exact up to halves */
    coded_dot(&c, &s, q, 1);
    CHECK_NEAR(s, 11.5, 5e-3);
    coded_free(&c);
}
TEST(mikv_reproduces_the_figures_of_the_card) {
    static const double d64[3][3] = { { .158, .108, .062 }, { .0287, .0183, .0112 }, { .0062, .0040, .0024 } };
    static const double d128[3][3] = { { .209, .205, .110 }, { .0381, .0345, .0203 }, { .0083, .0075, .0044 } };
    int bits, k;
    for (bits = 2; bits <= 4; bits++) {
        for (k = 0; k < 3; k++) {
            char text[64];
            snprintf(text, sizeof text, "mikv(bits=%d)", bits);
            FIGURE(text, "GOS"[k], 64, 0, d64[bits - 2][k], 0.03 + 5e-5 / d64[bits - 2][k]);
            FIGURE(text, "GOS"[k], 128, 0, d128[bits - 2][k], 0.03 + 5e-5 / d128[bits - 2][k]);
        }
    }
}
TEST(mikv_balancer_lowers_the_error_of_outlier_channels) {
    const double with = figure_error("mikv(bits=2)", 'S', 64, 0, FIGURE_REL);
    FIGURE("kivi(bits=2,axis=token,group=32)", 'S', 64, 0, .363, 0.03); /* without a balancer */
    CHECK(with < .2 * .363);
}
TEST(mikv_bits_a_value_are_b_plus_64_over_the_head_size) {
    float x[4 * 128] = { 0 };
    coded c;
    REQUIRE(coded_make(&c, "mikv(bits=2)", NULL, 64, x, 4));
    CHECK(coded_bits(&c) == 3.0);
    coded_free(&c);
    REQUIRE(coded_make(&c, "mikv(bits=2)", NULL, 128, x, 4));
    CHECK(coded_bits(&c) == 2.5);
    coded_free(&c);
}
TEST(mikv_product_is_kept_whatever_the_queries_are) {
    enum { N = 12, D = 16 };
    float x[N * D], q[3 * D], s[3 * N];
    coded c;
    int i, t, k;
    figure_rows(x, 'S', N, D, 4);
    figure_rows(q, 'G', 3, D, 5);
    for (i = 0; i < D; i++) q[i] *= i % 5 == 0 ? 0.0f : i % 3 ? 100.0f : 0.01f;
    for (i = 0; i < 3; i++) q[i * D + 5] = 0; /* a channel that no query uses */
    REQUIRE(coded_begin(&c, "mikv(bits=8)", NULL, D));
    coded_watch(&c, q, 2);
    coded_watch(&c, q + 2 * D, 1);
    coded_learn(&c, x, N);
    coded_encode(&c, x, N);
    coded_dot(&c, s, q, 3);
    for (i = 0; i < 3; i++) {
        for (t = 0; t < N; t++) {
            double a = 0, most = 0;
            for (k = 0; k < D; k++) {
                a += (double)q[i * D + k] * (double)x[t * D + k];
                most += fabs((double)q[i * D + k] * (double)x[t * D + k]);
            }
            CHECK_NEAR(s[i * N + t], a, 0.1 * most + 0.1);
        }
    }
    coded_free(&c);
}
TEST(mikv_any_input_and_any_path) {
    codec_facts("mikv(bits=2)", 2e-3);
    codec_facts("mikv(bits=4,group=32)", 2e-3);
}
TEST(mikv_keeps_every_token_and_all_exact_is_no_compression) {
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    kvmem_bytes x, y;
    CHECK(coded_run("mikv", 150, 5, a, &x) == 155);
    CHECK(coded_run("mikv budget=100%", 150, 5, a, &x) == 155);
    coded_run("full codec=f16 page=64", 150, 5, b, &y);
    CHECK(!memcmp(a, b, sizeof a)); /* r = 1, float16: bit for bit */
}
TEST(mikv_and_zipcache_are_nearer_to_the_truth_than_eviction) {
    static const char *const low[3] = { "mikv", "mikv reduce=demote(mikv(bits=4)/mikv(bits=4,balancer=0))",
                                        "zipcache" };
    float exact[4 * CODED_RUN_D], a[4 * CODED_RUN_D];
    double drop;
    kvmem_bytes x, full;
    int i;
    coded_run("full codec=f16 page=64", 300, 12, exact, &full);
    CHECK(coded_run("mikv reduce=drop", 300, 12, a, &x) < 70);
    drop = figure_ratio(exact, a, 4, CODED_RUN_D, FIGURE_REL);
    for (i = 0; i < 3; i++) {
        CHECK(coded_run(low[i], 300, 12, a, &x) == 312);
        CHECK(figure_ratio(exact, a, 4, CODED_RUN_D, FIGURE_REL) < 0.5 * drop);
        CHECK(x.live.k + x.live.v < 0.75 * (double)(full.live.k + full.live.v));
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_mikv");
    codec_facts_fast = codec_facts_avx2 = 2e-4;
    RUN(mikv_example_of_the_card);
    RUN(mikv_reproduces_the_figures_of_the_card);
    RUN(mikv_balancer_lowers_the_error_of_outlier_channels);
    RUN(mikv_bits_a_value_are_b_plus_64_over_the_head_size);
    RUN(mikv_product_is_kept_whatever_the_queries_are);
    RUN(mikv_any_input_and_any_path);
    RUN(mikv_keeps_every_token_and_all_exact_is_no_compression);
    RUN(mikv_and_zipcache_are_nearer_to_the_truth_than_eviction);
    return test_end();
}
