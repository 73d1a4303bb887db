/* Principal directions: optimal, nested, exact at full rank; coded scores and sums in the latent space. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "coded.h"
#include "figures.h"
#include "coded_check.h"

/* Rows that lie near a few directions: energy of direction i falls as 2^-i. */
static void rows_near(float *x, int n, int d, int directions) {
    static float basis[16 * 128];
    int t, c, i;
    for (i = 0; i < 16 * 128; i++) basis[i] = (float)test_normal();
    for (t = 0; t < n; t++) {
        for (c = 0; c < d; c++) x[t * d + c] = (float)(0.01 * test_normal());
        for (i = 0; i < directions; i++) {
            const double a = test_normal() * pow(2, -i);
            for (c = 0; c < d; c++) x[t * d + c] += (float)(a * (double)basis[i * 128 + c]);
        }
    }
}
static double squares(const float *x, const float *y, int n) {
    double s = 0;
    int i;
    for (i = 0; i < n; i++) s += ((double)x[i] - (double)(y ? y[i] : 0)) * ((double)x[i] - (double)(y ? y[i] : 0));
    return s;
}
static double error_of(const char *text, const float *x, int n, int d) {
    static float y[256 * 128];
    coded c;
    double e = -1;
    if (!coded_make(&c, text, NULL, d, x, n)) return e;
    coded_decode(&c, y);
    e = squares(x, y, n * d);
    coded_free(&c);
    return e;
}

TEST(full_rank_gives_the_rows_back) {
    static float x[100 * 80], y[100 * 80];
    const int dims[5] = { 1, 7, 33, 64, 80 };
    int s, i;
    for (s = 0; s < 5; s++) {
        coded c;
        for (i = 0; i < 100 * dims[s]; i++) x[i] = (float)test_normal();
        REQUIRE(coded_make(&c, "lowrank(rank=1,store=f32)", NULL, dims[s], x, 100));
        coded_decode(&c, y);
        for (i = 0; i < 100 * dims[s]; i++) CHECK_NEAR(x[i], y[i], 2e-5);
        CHECK(coded_bits(&c) == 32);
        coded_free(&c);
    }
}
TEST(error_is_the_sum_of_the_eigenvalues_left_out) {
    enum { N = 200, D = 24 };
    static float x[N * D];
    float m[D * D], u[D * D], e[D];
    char text[64];
    double last = 1e30;
    int r, t, i, j;
    rows_near(x, N, D, 6);
    memset(m, 0, sizeof m);
    for (t = 0; t < N; t++)
        for (i = 0; i < D; i++)
            for (j = 0; j < D; j++) m[i * D + j] += x[t * D + i] * x[t * D + j];
    kvmem__eigen(u, e, m, D);
    for (r = 2; r <= D; r++) {
        double want = 0, got;
        for (i = r; i < D; i++) want += (double)e[i];
        snprintf(text, sizeof text, "lowrank(rank=%d,store=f32)", r);
        got = error_of(text, x, N, D);
        CHECK_NEAR(got, want, 1e-6 * squares(x, NULL, N * D) + 1e-3 * want);
        CHECK(got <= last * 1.0001 + 1e-6);
        last = got;
    }
}
TEST(a_smaller_rank_keeps_the_same_first_directions) {
    static float x[100 * 40];
    coded a, b;
    int i;
    rows_near(x, 100, 40, 5);
    REQUIRE(coded_make(&a, "lowrank(rank=4,store=f32)", NULL, 40, x, 100));
    REQUIRE(coded_make(&b, "lowrank(rank=0.5,store=f32)", NULL, 40, x, 100));
    CHECK(a.u.width == 4 && b.u.width == 20 && a.u.q_floats == 4);
    CHECK(!memcmp(a.state, b.state, 4 * 40 * sizeof(float)));
    for (i = 0; i < 100; i++) CHECK(!memcmp(a.b.rows + 16 * i, b.b.rows + 80 * i, 16));
    coded_free(&a);
    coded_free(&b);
}
TEST(few_directions_beat_fewer_bits_at_equal_bytes) { /* 16 of 128 channels in halves: 2 bits a value */
    static float x[256 * 128];
    double full, a, b;
    rows_near(x, 256, 128, 8);
    full = squares(x, NULL, 256 * 128);
    a = error_of("lowrank(rank=16)", x, 256, 128);
    b = error_of("q4_0", x, 256, 128);
    CHECK(a / full < 1e-3 && b / full > 3e-3);
    CHECK(error_of("lowrank(rank=32,store=q8_0)", x, 256, 128) / full < 1e-3);
    CHECK(error_of("lowrank(rank=32,store=q4_0)", x, 256, 128) / full < 1e-2);
}
TEST(bits_are_those_of_the_store_times_the_share) {
    static float x[8 * 128];
    coded c;
    REQUIRE(coded_make(&c, "lowrank(rank=0.25,store=q8_0)", NULL, 128, x, 8));
    CHECK(coded_bits(&c) == 8.5 / 4);
    coded_free(&c);
    REQUIRE(coded_make(&c, "lowrank", NULL, 64, x, 8));
    CHECK(coded_bits(&c) == 8);
    coded_free(&c);
}
TEST(a_lesson_of_fewer_rows_than_directions_is_exact_on_them) {
    float x[3 * 32], y[3 * 32];
    int i, j, k;
    coded c;
    for (i = 0; i < 3 * 32; i++) x[i] = (float)test_normal();
    REQUIRE(coded_make(&c, "lowrank(rank=8,store=f32)", NULL, 32, x, 3));
    coded_decode(&c, y);
    for (i = 0; i < 3 * 32; i++) CHECK_NEAR(x[i], y[i], 1e-5);
    for (i = 0; i < 8; i++) {
        for (j = 0; j < 8; j++) {
            double s = 0;
            for (k = 0; k < 32; k++) s += (double)c.state[i * 32 + k] * (double)c.state[j * 32 + k];
            CHECK_NEAR(s, i == j, 1e-5);
        }
    }
    coded_free(&c);
}
TEST(preset_runs_in_a_cache) {
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    kvmem_bytes x, y;
    double e;
    CHECK(coded_run("full codec=f16", 300, 20, b, &y) == 320);
    CHECK(coded_run("lowrank", 300, 20, a, &x) == 320);
    e = figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL);
    CHECK(e > 0 && e < 1 && x.live.k + x.live.v < .7 * (double)(y.live.k + y.live.v));
    CHECK(coded_run("full codec=lowrank(rank=1)", 300, 20, a, &x) == 320); /* all directions: nothing is lost */
    CHECK(figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL) < 1e-4);
}
/* What holds for every codec: odd sizes, hard inputs, cut blocks, fast twins. */
static const char *const checked[5] = { "lowrank(rank=1,store=f32)",
                                         "lowrank",
                                         "lowrank(rank=48,store=q8_0)",
                                         "lowrank(rank=0.3,store=q4_0)",
                                         "lowrank(store=bf16)" };
TEST(facts_of_every_codec) {
    check_fast = 1e-4; /* 16-bit queries and weights */
    coded_check_all(checked, 5, 128);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_lowrank");
    RUN(full_rank_gives_the_rows_back);
    RUN(error_is_the_sum_of_the_eigenvalues_left_out);
    RUN(a_smaller_rank_keeps_the_same_first_directions);
    RUN(few_directions_beat_fewer_bits_at_equal_bytes);
    RUN(bits_are_those_of_the_store_times_the_share);
    RUN(a_lesson_of_fewer_rows_than_directions_is_exact_on_them);
    RUN(preset_runs_in_a_cache);
    RUN(facts_of_every_codec);
    return test_end();
}
