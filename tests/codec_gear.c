/* The codec gear: the card's facts and figures, cuts, guards. */
#define KVMEM_NO_DECODER
#include "test.h"
#include "coded.h"
#define FIGURE_ROWS 4096
#include "figures.h"
#include "codec_facts.h"

#define CHECK_READS(text, d, n, nq, path, tol) do { const double e_ = coded_reads_error(text, path, d, n, nq); \
    if (!(e_ <= (tol))) FAIL_AT("%s d=%d n=%d nq=%d: reads differ by %g", text, d, n, nq, e_); } while (0)

/* Error of a codec on n rows of x in one block. */
static double error_on(const char *text, const float *x, int n, int d) {
    float *y = (float *)coded_alloc((size_t)n * (size_t)d * sizeof(float));
    coded c;
    double e = -1;
    if (coded_make(&c, text, NULL, d, x, n)) {
        coded_decode(&c, y);
        e = figure_ratio(x, y, n, d, FIGURE_REL);
        coded_free(&c);
    }
    free(y);
    return e;
}
/* 3 % (5 % on S, whose four channels carry nearly all of the energy) and half a unit of the last digit. */
TEST(gear_reproduces_the_figures_of_the_card) {
    static const double d64[3][3] = { { .134, .0186, .0185 }, { .0244, .0034, .0034 }, { .0053, .0007, .0007 } };
    static const double d128[3][3] = { { .139, .0332, .0338 }, { .0252, .0060, .0061 }, { .0055, .0013, .0013 } };
    int bits, k;
    for (bits = 2; bits <= 4; bits++) {
        for (k = 0; k < 3; k++) {
            const double a = d64[bits - 2][k], b = d128[bits - 2][k], tol = k == 2 ? 0.05 : 0.03;
            char text[64];
            snprintf(text, sizeof text, "gear(bits=%d,group=64,rank=4,sparse=2)", bits);
            FIGURE(text, "GOS"[k], 64, 1024, a, tol + 5e-5 / a);
            FIGURE(text, "GOS"[k], 128, 1024, b, tol + 5e-5 / b);
        }
    }
}
TEST(gear_parts_reproduce_the_steps_of_the_card) {
    static const char *const text[4] = { "gear(rank=0,sparse=0)", "gear(rank=4,sparse=0)", "gear(rank=0,sparse=2)",
                                         "gear(rank=4,sparse=2)" };
    static const double G[4] = { .202, .189, .144, .134 }, O[4] = { .0321, .0266, .0228, .0189 };
    int i;
    for (i = 0; i < 4; i++) {
        FIGURE(text[i], 'G', 64, 1024, G[i], 0.03);
        FIGURE(text[i], 'O', 64, 1024, O[i], 0.035);
    }
}
TEST(gear_bits_a_value_are_those_of_the_card) {
    float *x = (float *)coded_alloc(1024 * 128 * 4);
    coded c;
    figure_rows(x, 'G', 1024, 128, 1);
    REQUIRE(coded_make(&c, "gear(bits=2,group=64,rank=4,sparse=2)", NULL, 64, x, 1024));
    CHECK_NEAR(coded_bits(&c), 4.20, 0.02); /* 20 of 1024 are 1.95 % */
    coded_free(&c);
    REQUIRE(coded_make(&c, "gear(bits=2,group=64,rank=4,sparse=2)", NULL, 128, x, 1024));
    CHECK_NEAR(coded_bits(&c), 3.70, 0.02);
    coded_free(&c);
    REQUIRE(coded_make(&c, "gear(bits=2,group=64,rank=2,sparse=0)", NULL, 64, x, 64));
    CHECK_NEAR(coded_bits(&c), 4.14 - .64, 0.02);
    coded_free(&c);
    REQUIRE(coded_make(&c, "gear(bits=2,axis=token,group=64,rank=4,sparse=0)", NULL, 64, x, 128));
    CHECK_NEAR(coded_bits(&c), 2 + .5 + 64 * (1 / 64. + 1 / 128.), 0.01);
    coded_free(&c);
    free(x);
}
TEST(gear_full_rank_or_all_outliers_is_exact) {
    float x[48 * 16];
    int axis;
    figure_rows(x, 'S', 48, 16, 5);
    for (axis = 0; axis < 2; axis++) {
        char text[80];
        double plain;
        snprintf(text, sizeof text, "gear(bits=2,axis=%s,rank=0,sparse=0)", axis ? "token" : "channel");
        plain = error_on(text, x, 48, 16);
        CHECK(plain > 0.01);
        snprintf(text, sizeof text, "gear(bits=2,axis=%s,rank=16,sparse=0)", axis ? "token" : "channel");
        CHECK(error_on(text, x, 48, 16) < 1e-6 * plain); /* factors are halves: 5e-4 of the error at most */
        snprintf(text, sizeof text, "gear(bits=2,axis=%s,rank=0,sparse=100)", axis ? "token" : "channel");
        CHECK(error_on(text, x, 48, 16) < 1e-6 * plain);
    }
}
TEST(gear_is_never_worse_than_its_backbone_and_depends_on_nothing_but_its_input) {
    float x[64 * 32];
    int rank;
    figure_rows(x, 'G', 64, 32, 9);
    for (rank = 1; rank <= 32; rank *= 2) {
        char text[80];
        snprintf(text, sizeof text, "gear(bits=2,rank=%d,sparse=0)", rank);
        CHECK(error_on(text, x, 64, 32) <= error_on("gear(bits=2,rank=0,sparse=0)", x, 64, 32));
        CHECK(error_on(text, x, 64, 32) == error_on(text, x, 64, 32));
    }
}
TEST(gear_error_of_rank_one_is_recovered) {
    float x[8 * 8], y[8 * 8];
    coded c;
    int t, k;
    /* codes of one bit: 0 and 3 are exact in every channel, what lies between leaves an error of rank 1 */
    for (t = 0; t < 8; t++)
        for (k = 0; k < 8; k++) x[8 * t + k] = t == 0 ? 0.0f : t == 1 ? 3.0f : 0.125f * (float)t;
    REQUIRE(coded_make(&c, "gear(bits=1,rank=1,sparse=0)", NULL, 8, x, 8));
    coded_decode(&c, y);
    for (t = 0; t < 64; t++) CHECK_NEAR(y[t], x[t], 1e-3);
    coded_free(&c);
}
TEST(gear_cut_leaves_the_other_rows_as_they_were) {
    static const int first[9] = { 0, 3, 4, 19, 20, 35, 36, 48, 49 }, second[4] = { 1, 2, 5, 8 };
    float x[50 * 24], y[50 * 24], z[50 * 24];
    int axis, i;
    figure_rows(x, 'S', 50, 24, 3);
    for (axis = 0; axis < 3; axis++) {
        coded c;
        REQUIRE(coded_make(&c,
                           axis == 0 ? "gear(group=10,rank=3,sparse=20)" : axis == 1 ? "gear(group=0,rank=3,sparse=20)"
                               : "gear(axis=token,group=10,rank=3,sparse=20)", NULL, 24, x, 50));
        coded_decode(&c, y);
        coded_cut(&c, first, 9);
        coded_decode(&c, z);
        for (i = 0; i < 9; i++) CHECK(!memcmp(z + 24 * i, y + 24 * first[i], 24 * sizeof(float)));
        coded_cut(&c, second, 4);
        coded_decode(&c, z);
        CHECK(c.u.fn.valid(&c.b));
        for (i = 0; i < 4; i++) CHECK(!memcmp(z + 24 * i, y + 24 * first[second[i]], 24 * sizeof(float)));
        coded_free(&c);
    }
}
TEST(gear_head_that_lies_is_read_inside_its_bytes) {
    float x[20 * 8], y[20 * 8];
    coded c;
    int i, k;
    figure_rows(x, 'S', 20, 8, 3);
    for (k = 0; k < 2; k++) {
        REQUIRE(coded_make(&c, k ? "gear(axis=token,rank=2,sparse=30)" : "gear(group=5,rank=2,sparse=30)",
                           NULL, 8, x, 20));
        CHECK(c.u.fn.valid(&c.b));
        for (i = 0; i < 200; i++) { /* the sanitizers see what is read */
            const size_t at = kvmem__mix((uint64_t)i) % (i < 100 ? 10 : c.b.head_bytes);
            c.b.head[at] ^= (uint8_t)(1 + kvmem__mix((uint64_t)i + 999) % 255);
            c.b.rows[kvmem__mix((uint64_t)i + 5) % (20 * c.b.row_bytes)] ^= (uint8_t)i;
            coded_decode(&c, y);
            c.u.fn.expand(&c.b, y, 13, 7);
        }
        c.b.head[0] ^= 255;
        CHECK(!c.u.fn.valid(&c.b)); /* a file with this block is refused */
        coded_free(&c);
    }
}
TEST(gear_reads_codes_as_decoded_at_odd_sizes) {
    static const int dims[5] = { 1, 7, 33, 64, 80 };
    static const char *const text[5] = { "gear(sparse=10)", "gear(group=0,rank=2,bits=4)",
        "gear(axis=token,group=16,rank=3)",
                                         "gear(axis=token,rank=0,sparse=10)", "gear(rank=0,sparse=0,group=7)" };
    static const char *const path[3] = { NULL, "avx2", "avx512" };
    int i, k, p;
    for (i = 0; i < 5; i++) {
        for (k = 0; k < 5; k++) {
            for (p = 0; p < 3; p++) {
                CHECK_READS(text[k], dims[i], 1, 1, path[p], p ? 2e-4 : 1e-5);
                CHECK_READS(text[k], dims[i], 37, 5, path[p], p ? 2e-4 : 1e-5);
            }
        }
    }
}
TEST(gear_fast_twins_agree_with_the_decoded_rows) {
    static const char *const text[5] = { "gear(bits=2,group=64,rank=4)", "gear(bits=4,group=20,rank=3,sparse=10)",
                                         "gear(bits=2,axis=token,group=64,rank=4)",
                                             "gear(bits=4,axis=token,group=0,rank=5)",
                                         "gear(bits=8,axis=token,rank=0,sparse=5)" };
    static const char *const path[2] = { "avx2", "avx512" };
    static const int dims[3] = { 32, 64, 128 };
    int i, k, p;
    for (i = 0; i < 5; i++)
        for (k = 0; k < 3; k++)
            for (p = 0; p < 2; p++) CHECK_READS(text[i], dims[k], 75, 1 + i, path[p], 2e-4);
}
TEST(gear_any_input_gives_finite_rows) {
    codec_facts("gear(bits=2,rank=2,sparse=10)", 1e-3);
    codec_facts("gear(bits=4,axis=token,group=0,rank=3,sparse=5)", 1e-3);
}
TEST(gear_presets_run_and_four_bits_are_near_lossless) {
    static const char *const text[3] = { "gear", "gear-l", "gear-kcvt" };
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    double e[3];
    kvmem_bytes x, y;
    int i;
    CHECK(coded_run("full codec=f16", 260, 10, b, &y) == 270);
    for (i = 0; i < 3; i++) {
        CHECK(coded_run(text[i], 260, 10, a, &x) == 270);
        e[i] = figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL);
        CHECK(e[i] > 0 && e[i] < 0.2);
    }
    CHECK(e[2] < 0.01);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_gear");
    codec_facts_fast = codec_facts_avx2 = 2e-4;
    RUN(gear_reproduces_the_figures_of_the_card);
    RUN(gear_parts_reproduce_the_steps_of_the_card);
    RUN(gear_bits_a_value_are_those_of_the_card);
    RUN(gear_full_rank_or_all_outliers_is_exact);
    RUN(gear_is_never_worse_than_its_backbone_and_depends_on_nothing_but_its_input);
    RUN(gear_error_of_rank_one_is_recovered);
    RUN(gear_cut_leaves_the_other_rows_as_they_were);
    RUN(gear_head_that_lies_is_read_inside_its_bytes);
    RUN(gear_reads_codes_as_decoded_at_odd_sizes);
    RUN(gear_fast_twins_agree_with_the_decoded_rows);
    RUN(gear_any_input_gives_finite_rows);
    RUN(gear_presets_run_and_four_bits_are_near_lossless);
    return test_end();
}
