/* The parts >>affine and the codec kivi: the card's examples and figures, guards, cuts, fast twins. */
#define KVMEM_NO_DECODER
#include "test.h"
#include "coded.h"
#define FIGURE_ROWS 4096
#include "figures.h"

static float *floats(size_t n) { return (float *)coded_alloc(n * sizeof(float)); }
#define CHECK_READS(text, d, n, nq, path, tol) do { const double e_ = coded_reads_error(text, path, d, n, nq); \
    if (!(e_ <= (tol))) FAIL_AT("%s d=%d n=%d nq=%d: reads differ by %g", text, d, n, nq, e_); } while (0)

TEST(affine_codes_round_half_to_even) {
    CHECK(kvmem__affine_code(0.5f, 0, 1, 15) == 0 && kvmem__affine_code(1.5f, 0, 1, 15) == 2);
    CHECK(kvmem__affine_code(2.5f, 0, 1, 15) == 2 && kvmem__affine_code(2.51f, 0, 1, 15) == 3);
    CHECK(kvmem__affine_code(-3, 0, 1, 15) == 0 && kvmem__affine_code(99, 0, 1, 15) == 15);
    CHECK(kvmem__affine_code(INFINITY, 0, 1, 15) == 15 && kvmem__affine_code(-INFINITY, 0, 1, 15) == 0);
    CHECK(kvmem__affine_code(NAN, 0, 1, 15) == 0 && kvmem__affine_code(INFINITY, 0, 0, 15) == 0);
}
TEST(kivi_example_of_the_card) {
    static const float x[8] = { 0.1f, 5, 0.4f, 7, -0.2f, 6.5f, 0.3f, 5.5f }; /* 4 tokens, 2 channels */
    static const double want[8] = { .2, 5, .4, 7, -.2, 6.333, .4, 5.667 };
    static const int code[8] = { 2, 0, 3, 3, 0, 2, 3, 1 };
    float y[8];
    coded c;
    int t;
    REQUIRE(coded_make(&c, "kivi(bits=2)", NULL, 2, x, 4));
    CHECK(c.b.row_bytes == 1 && c.b.head_bytes == 8);
    for (t = 0; t < 4; t++) CHECK(c.b.rows[t] == code[2 * t] + 4 * code[2 * t + 1]);
    CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(c.b.head)), .2, 1e-4);
    CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(c.b.head + 2)), .6667, 3e-4);
    coded_decode(&c, y);
    for (t = 0; t < 8; t++) CHECK_NEAR(y[t], want[t], 1e-3);
    coded_free(&c);
}
TEST(kivi_bits_a_value_are_b_plus_32_over_the_group) {
    static const int dims[3] = { 64, 128, 80 };
    int i, bits;
    for (i = 0; i < 3; i++) {
        for (bits = 2; bits <= 8; bits *= 2) {
            float *x = floats(32 * 128);
            char text[80];
            coded c;
            snprintf(text, sizeof text, "kivi(bits=%d,axis=channel)", bits);
            REQUIRE(coded_make(&c, text, NULL, dims[i], x, 32));
            CHECK_NEAR(coded_bits(&c), bits + 1, 0);
            coded_free(&c);
            snprintf(text, sizeof text, "kivi(bits=%d,axis=token,group=%d)", bits, dims[i] == 80 ? 16 : 32);
            REQUIRE(coded_make(&c, text, NULL, dims[i], x, 32));
            CHECK(!c.u.fn.head_bytes); /* rows are coded one at a time */
            CHECK_NEAR(coded_bits(&c), dims[i] == 80 ? bits + 2 : bits + 1, 0);
            coded_free(&c);
            free(x);
        }
    }
}
/* 3 %, and half a unit of the card's last digit */
#define TOL(bits) ((bits) < 4 ? 0.03 : 0.038)
TEST(kivi_reproduces_the_figures_of_the_card) {
    static const double k64[3][3] = { { .154, .0246, .152 }, { .0280, .0045, .0277 }, { .0061, .0010, .0060 } };
    static const double v64[3][3] = { { .154, .647, .363 }, { .0281, .0880, .0626 }, { .0061, .0191, .0133 } };
    static const double k128[3][3] = { { .154, .0399, .150 }, { .0280, .0073, .0272 }, { .0061, .0016, .0060 } };
    static const double v128[3][3] = { { .154, .410, .349 }, { .0281, .0571, .0569 }, { .0061, .0123, .0118 } };
    int bits, k;
    for (bits = 2; bits <= 4; bits++) {
        for (k = 0; k < 3; k++) {
            char text[64];
            snprintf(text, sizeof text, "kivi(bits=%d,axis=channel)", bits);
            FIGURE(text, "GOS"[k], 64, 32, k64[bits - 2][k], TOL(bits));
            FIGURE(text, "GOS"[k], 128, 32, k128[bits - 2][k], TOL(bits));
            snprintf(text, sizeof text, "kivi(bits=%d,axis=token,group=32)", bits);
            FIGURE(text, "GOS"[k], 64, 1024, v64[bits - 2][k], TOL(bits));
            FIGURE(text, "GOS"[k], 128, 1024, v128[bits - 2][k], TOL(bits));
        }
    }
}
TEST(kivi_keys_by_channel_beat_keys_by_token_on_offset_outliers) {
    const double k = figure_error("kivi(bits=2)", 'O', 64, 32, FIGURE_REL);
    const double t = figure_error("kivi(bits=2,axis=token)", 'O', 64, 0, FIGURE_REL);
    CHECK(t > 10 * k && t < 40 * k);
}
TEST(kivi_constant_channel_is_exact) {
    float x[12 * 3], y[12 * 3];
    coded c;
    int t;
    for (t = 0; t < 12; t++) { x[3 * t] = 1.5f; x[3 * t + 1] = 0; x[3 * t + 2] = (float)t; }
    REQUIRE(coded_make(&c, "kivi(bits=4)", NULL, 3, x, 12));
    coded_decode(&c, y);
    for (t = 0; t < 12; t++) CHECK(y[3 * t] == 1.5f && y[3 * t + 1] == 0);
    coded_free(&c);
    for (t = 0; t < 36; t++) x[t] = -3.25f;
    REQUIRE(coded_make(&c, "kivi(bits=1,axis=token,group=2)", NULL, 3, x, 12));
    coded_decode(&c, y);
    for (t = 0; t < 36; t++) CHECK(y[t] == -3.25f);
    coded_free(&c);
}
TEST(kivi_key_codes_do_not_change_when_channels_are_scaled_and_shifted) {
    enum { N = 64, D = 16 };
    float x[N * D], y[N * D];
    coded a, b;
    int i;
    for (i = 0; i < N * D; i++) { /* multiples of 1/8 in [-4, 3.5]: shifts and powers of two are exact in halves */
        x[i] = (float)(int)(kvmem__mix((uint64_t)i) % 61) / 8 - 4;
        if (i < D) x[i] = -4;
        else if (i < 2 * D) x[i] = 3.5f; /* range 7.5: s = 0.5 at 4 bits */
        y[i] = x[i] * (i % D % 3 ? 4.0f : 0.25f) + (float)(i % D - 5);
    }
    REQUIRE(coded_make(&a, "kivi(bits=4)", NULL, D, x, N) && coded_make(&b, "kivi(bits=4)", NULL, D, y, N));
    CHECK(!memcmp(a.b.rows, b.b.rows, a.b.row_bytes * N));
    coded_free(&a);
    coded_free(&b);
}
TEST(kivi_any_input_gives_finite_rows) {
    static const float odd[8] = { NAN, INFINITY, -INFINITY, 1e-42f, -3e38f, 3e38f, 1e-7f, 65520 };
    static const char *const text[4] = { "kivi(bits=2)", "kivi(bits=8)", "kivi(bits=3,axis=token,group=5)",
                                         "kivi(bits=8,axis=token)" };
    float x[9 * 33], y[9 * 33];
    coded c;
    int i, k, only;
    for (only = 0; only < 9; only++) {
        for (k = 0; k < 4; k++) {
            for (i = 0; i < 9 * 33; i++) x[i] = only < 8 ? odd[only] : odd[(i + i / 33) % 8];
            REQUIRE(coded_make(&c, text[k], NULL, 33, x, 9));
            coded_decode(&c, y);
            for (i = 0; i < 9 * 33; i++) CHECK(y[i] - y[i] == 0);
            for (i = 0; i < 9 * 33 && only == 3; i++) CHECK(y[i] == 0); /* denormals fade to zero */
            coded_free(&c);
        }
    }
}
TEST(kivi_reads_codes_as_decoded_at_odd_sizes) {
    static const int dims[7] = { 1, 7, 33, 64, 80, 128, 255 };
    int i, bits;
    for (i = 0; i < 7; i++) {
        for (bits = 1; bits <= 8; bits++) {
            char text[80];
            snprintf(text, sizeof text, "kivi(bits=%d)", bits);
            CHECK_READS(text, dims[i], 1, 1, NULL, 1e-6);
            CHECK_READS(text, dims[i], 37, 3, NULL, 1e-6);
            snprintf(text, sizeof text, "kivi(bits=%d,axis=token,group=%d)", bits, bits % 2 ? 32 : 12);
            CHECK_READS(text, dims[i], 19, 2, NULL, 1e-6);
        }
    }
}
TEST(kivi_fast_twins_agree_with_the_decoded_rows) {
    static const char *const path[2] = { "avx2", "avx512" };
    static const int dims[6] = { 16, 64, 80, 128, 192, 256 };
    int i, p, bits, nq, axis;
    for (p = 0; p < 2; p++)
        for (i = 0; i < 6; i++)
            for (bits = 2; bits <= 8; bits *= 2)
                for (nq = 1; nq <= 7; nq += nq == 4 ? 3 : 1)
                    for (axis = 0; axis < 4; axis++) {
                        static const int group[4] = { 0, 32, 64, 4096 };
                        char text[80];
                        snprintf(text, sizeof text, axis ? "kivi(bits=%d,axis=token,group=%d)" : "kivi(bits=%d)", bits,
                                 group[axis]);
                        CHECK_READS(text, dims[i], nq * 13 % 30 + 1, nq, path[p], 2.5e-4);
                        if (nq == 2 && i == 1) CHECK_READS(text, dims[i], 150, 1, path[p], 2.5e-4);
                    }
}
TEST(kivi_cut_leaves_the_other_rows_as_they_were) {
    static const int kept[5] = { 0, 3, 4, 10, 31 };
    float *x = floats(32 * 48), *y = floats(32 * 48), *z = floats(32 * 48);
    int axis, i;
    figure_rows(x, 'G', 32, 48, 3);
    for (axis = 0; axis < 2; axis++) {
        coded c;
        REQUIRE(coded_make(&c, axis ? "kivi(axis=token)" : "kivi(axis=channel)", NULL, 48, x, 32));
        coded_decode(&c, y);
        coded_cut(&c, kept, 5);
        coded_decode(&c, z);
        for (i = 0; i < 5; i++) CHECK(!memcmp(z + 48 * i, y + 48 * kept[i], 48 * sizeof(float)));
        coded_free(&c);
    }
    free(x); free(y); free(z);
}
TEST(kivi_preset_is_exact_until_its_window_is_full) {
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    kvmem_bytes x, y;
    CHECK(coded_run("kivi", 100, 27, a, &x) == 127 && coded_run("full codec=f16 page=32", 100, 27, b, &y) == 127);
    CHECK(!memcmp(a, b, sizeof a));
    CHECK(coded_run("kivi", 300, 20, a, &x) == 320 && coded_run("full codec=f16 page=32", 300, 20, b, &y) == 320);
    CHECK(memcmp(a, b, sizeof a));
    CHECK_NEAR(figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL), 0, 0.3);
    CHECK(x.live.k + x.live.v < 0.75 * (double)(y.live.k + y.live.v));
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_kivi");
    RUN(affine_codes_round_half_to_even);
    RUN(kivi_example_of_the_card);
    RUN(kivi_bits_a_value_are_b_plus_32_over_the_group);
    RUN(kivi_reproduces_the_figures_of_the_card);
    RUN(kivi_keys_by_channel_beat_keys_by_token_on_offset_outliers);
    RUN(kivi_constant_channel_is_exact);
    RUN(kivi_key_codes_do_not_change_when_channels_are_scaled_and_shifted);
    RUN(kivi_any_input_gives_finite_rows);
    RUN(kivi_reads_codes_as_decoded_at_odd_sizes);
    RUN(kivi_fast_twins_agree_with_the_decoded_rows);
    RUN(kivi_cut_leaves_the_other_rows_as_they_were);
    RUN(kivi_preset_is_exact_until_its_window_is_full);
    return test_end();
}
