/* Vector quantization: the cards' examples of the metric, exact codebooks, product codes, hard inputs. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "coded.h"
#include "figures.h"
#include "coded_check.h"

/* One piece of 2 channels, two centres and a metric, set by hand: which one is taken for k? */
static int taken(const char *text, const float *h, float k0, float k1, const float *c) {
    const float x[2] = { k0, k1 };
    coded v;
    int i, r;
    if (!coded_begin(&v, text, NULL, 2)) return -1;
    kvmem__columns(v.state, c, 2, 2);
    if (h) memcpy(v.state + 6, h, 4 * sizeof(float));
    for (i = 0; i < 2; i++) {
        const float *y = c + 2 * i;
        v.state[4 + i] = h ? y[0] * y[0] * h[0] + 2 * y[0] * y[1] * h[1] + y[1] * y[1] * h[3]
                           : y[0] * y[0] + y[1] * y[1];
    }
    coded_encode(&v, x, 1);
    r = v.b.rows[0] & 1;
    coded_free(&v);
    return r;
}
TEST(metric_examples_of_the_cards) {
    const float h[4] = { 4, 2, 2, 3 }, c[4] = { .5f, -1, 1, -.45f };
    const float diag[4] = { 4, 0, 0, 1 }, e[4] = { 0, 1, 1, -.5f };
    CHECK(taken("vq(centroids=2,parts=1)", h, 1, -1, c) == 1);                /* 1.00 against .9075 */
    CHECK(taken("vq(centroids=2,parts=1,weight=plain)", NULL, 1, -1, c) == 0); /* .25 against .3025 */
    CHECK(taken("vq(centroids=2,parts=1)", diag, 1, 1, e) == 1);              /* 4 against 2.25 */
    CHECK(taken("vq(centroids=2,parts=1,weight=plain)", NULL, 1, 1, e) == 0);
}
TEST(metric_is_that_of_the_queries) {
    enum { D = 6, N = 50 };
    float q[N * D], h[D * D], l[D * D], want[D * D];
    double rms = 0;
    int t, i, j;
    coded c;
    for (i = 0; i < N * D; i++) q[i] = (float)(test_normal() * (i % D + 1));
    REQUIRE(coded_begin(&c, "vq(centroids=4,parts=1)", NULL, D));
    coded_watch(&c, q, 20);
    coded_watch(&c, q + 20 * D, N - 20); /* in two goes */
    coded_learn(&c, q, N);
    memcpy(h, c.state + 4 * D + 4, sizeof h);
    memset(want, 0, sizeof want);
    for (t = 0; t < N; t++)
        for (i = 0; i < D; i++)
            for (j = 0; j < D; j++) want[i * D + j] += q[t * D + i] * q[t * D + j];
    for (i = 0; i < D * D; i++) rms += (double)want[i] * (double)want[i] / (D * D);
    for (i = 0; i < D * D; i++) CHECK_NEAR(h[i], (double)want[i] / sqrt(rms), 1e-4);
    CHECK(kvmem__cholesky(l, h, D, 0) == 0);
    coded_free(&c);
}
TEST(as_many_centres_as_distinct_rows_are_exact) {
    static float x[64 * 40], y[64 * 40];
    const char *const texts[3] = { "vq(centroids=64,parts=1,weight=plain)", "vq(centroids=64,parts=5,weight=plain)",
                                   "vq(centroids=128,parts=5)" };
    int k, i;
    for (i = 0; i < 64 * 40; i++) x[i] = (float)test_normal();
    for (k = 0; k < 3; k++) {
        coded c;
        REQUIRE(coded_begin(&c, texts[k], NULL, 40));
        coded_watch(&c, x, 64);
        coded_learn(&c, x, 64);
        coded_encode(&c, x, 64);
        coded_decode(&c, y);
        for (i = 0; i < 64 * 40; i++) CHECK_NEAR(x[i], y[i], k == 2 ? 1e-3 : 0);
        coded_free(&c);
    }
}
TEST(coding_decoded_rows_again_changes_nothing) {
    static float x[256 * 32], y[256 * 32], z[256 * 32];
    coded c;
    int i;
    figure_rows(x, 'O', 256, 32, 3);
    REQUIRE(coded_make(&c, "vq(centroids=16,parts=4)", NULL, 32, x, 256));
    coded_decode(&c, y);
    free(c.b.rows);
    free(c.b.head);
    coded_encode(&c, y, 256);
    coded_decode(&c, z);
    for (i = 0; i < 256 * 32; i++) CHECK(y[i] == z[i]);
    coded_free(&c);
}
TEST(bits_are_those_of_the_indices) {
    static float x[4 * 64];
    const char *const texts[5] = { "vq(centroids=4096,parts=1)", "vq(centroids=4096,parts=16)",
                                   "vq(centroids=256,parts=16)", "vq(centroids=300,parts=16)",
                                   "vq(centroids=16,parts=64)" };
    const size_t bytes[5] = { 2, 24, 16, 16, 32 }; /* 12 bits a piece; a row is whole bytes */
    int k;
    for (k = 0; k < 5; k++) {
        coded c;
        REQUIRE(coded_make(&c, texts[k], NULL, 64, x, 4));
        CHECK(c.b.row_bytes == bytes[k]);
        coded_free(&c);
    }
}
TEST(more_pieces_or_centres_mean_less_error) {
    const double a = figure_error("vq(centroids=256,parts=1,weight=plain)", 'G', 64, 0, FIGURE_REL);
    const double b = figure_error("vq(centroids=256,parts=8,weight=plain)", 'G', 64, 0, FIGURE_REL);
    const double c = figure_error("vq(centroids=16,parts=16,weight=plain)", 'G', 64, 0, FIGURE_REL);
    const double e = figure_error("vq(centroids=256,parts=16,weight=plain)", 'G', 64, 0, FIGURE_REL);
    CHECK(b < a && e < b && e < c);
    CHECK(e < .12 && e > .0625 * .75); /* 2 bits of 4-dimensional cells; the lesson is the test */
}
TEST(query_weight_lowers_the_error_of_scores) {
    enum { N = 512, D = 32 };
    static float x[N * D], y[N * D], q[N * D];
    double err[2] = { 0, 0 };
    int k, t, i, j;
    for (i = 0; i < N * D; i++) {
        x[i] = (float)test_normal();
        q[i] = (float)(test_normal() * (i % D < 4 ? 6 : .3)); /* queries look at few directions */
    }
    for (k = 0; k < 2; k++) {
        coded c;
        REQUIRE(coded_begin(&c, k ? "vq(centroids=64,parts=2,weight=plain)" : "vq(centroids=64,parts=2)", NULL,
                            D));
        coded_watch(&c, q, N);
        coded_learn(&c, x, N);
        coded_encode(&c, x, N);
        coded_decode(&c, y);
        for (i = 0; i < N; i += 8) {
            for (t = 0; t < N; t++) {
                double s = 0;
                for (j = 0; j < D; j++) s += (double)q[i * D + j] * ((double)x[t * D + j] - (double)y[t * D + j]);
                err[k] += s * s;
            }
        }
        coded_free(&c);
    }
    CHECK(err[0] < .5 * err[1]);
}
TEST(preset_runs_in_a_cache) {
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    kvmem_bytes x, y;
    CHECK(coded_run("full codec=f16", 300, 20, b, &y) == 320);
    CHECK(coded_run("full codec.k=vq(centroids=256,parts=16,residual=64,sinks=8) codec.v=f16", 300, 20, a,
        &x) == 320); /* 16 pieces of one channel: near exact */
    CHECK(figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL) < .01);
    CHECK(coded_run("full codec.k=vq(parts=4) codec.v=vq(parts=4,weight=plain)", 300, 20, a, &x) == 320);
    CHECK(figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL) < .5);
    CHECK(coded_run("full codec.k=vq(parts=1) codec.v=f16", 20, 120, a, &x) == 140);
    CHECK(figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL) >= 0);
}
/* What holds for every codec: odd sizes, hard inputs, cut blocks, fast twins. */
static const char *const checked[4] = { "vq(centroids=16)",
                                         "vq(centroids=8,parts=3,weight=plain)",
                                         "vq(centroids=2,parts=1)",
                                         "vq(centroids=1024,parts=100)" };
TEST(facts_of_every_codec) {
    coded_check_all(checked, 4, 300);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_vq");
    RUN(metric_examples_of_the_cards);
    RUN(metric_is_that_of_the_queries);
    RUN(as_many_centres_as_distinct_rows_are_exact);
    RUN(coding_decoded_rows_again_changes_nothing);
    RUN(bits_are_those_of_the_indices);
    RUN(more_pieces_or_centres_mean_less_error);
    RUN(query_weight_lowers_the_error_of_scores);
    RUN(preset_runs_in_a_cache);
    RUN(facts_of_every_codec);
    return test_end();
}
