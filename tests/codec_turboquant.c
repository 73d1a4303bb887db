/* TurboQuant: the card's facts, worked examples and table; attention on codes against decoded rows. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "coded.h"
#include "codec_facts.h"
#include "figures.h"

static const float example[8] = { 1, -2, 0.5f, 3, -1.5f, 0.25f, 2, -0.75f };
/* The example's signs in place of a seed's. */
static void example_signs(coded *c) {
    static const float r[8] = { 1, -1, 1, 1, -1, 1, -1, -1 }, s[8] = { -1, 1, 1, -1, 1, 1, 1, -1 };
    float *signs = (float *)(void *)((kvmem__turbo *)c->u.table + 1);
    memcpy(signs, r, sizeof r);
    if (c->u.par[KVMEM__TQ_FORM] > 0) memcpy(signs + 16, s, sizeof s);
}
static double example_error(const char *text, float *y) {
    coded c;
    if (!coded_begin(&c, text, NULL, 8)) return -1;
    example_signs(&c);
    coded_encode(&c, example, 1);
    coded_decode(&c, y);
    coded_free(&c);
    return figure_ratio(example, y, 1, 8, FIGURE_REL);
}
TEST(worked_example_of_the_card) {
    static const double two[8] = { 1.127, -2.154, 0, 3.281, -1.026, 0, 2.154, -1.127 };
    static const int idx[8] = { 3, 0, 2, 3, 3, 1, 1, 1 };
    unsigned char code[8];
    coded c;
    float y[8];
    int j;
    /* the card keeps |x| exact, a row keeps a half */
    CHECK_NEAR(example_error("turboquant(bits=1)", y), 0.15529, 1e-4);
    CHECK_NEAR(example_error("turboquant(bits=3)", y), 0.02648, 1e-4);
    CHECK_NEAR(example_error("turboquant(bits=2)", y), 0.03891, 1e-4);
    for (j = 0; j < 8; j++) CHECK_NEAR(y[j], two[j], 1.5e-3);
    REQUIRE(coded_begin(&c, "turboquant(bits=2)", NULL, 8));
    example_signs(&c);
    coded_encode(&c, example, 1);
    kvmem__weave_get(code, c.b.rows, 8, 2);
    for (j = 0; j < 8; j++) CHECK(code[j] == idx[j]);
    CHECK(c.b.row_bytes == 4);
    CHECK_NEAR(((const kvmem__turbo *)c.u.table)->level[0], -0.50482, 3e-5);
    CHECK_NEAR(((const kvmem__turbo *)c.u.table)->level[2], 0.15792, 3e-5);
    coded_free(&c);
}
TEST(worked_example_of_the_card_with_a_sketched_rest) {
    static const double want[8] = { 1.13492, -3.02667, 1.135, 3.02667, -1.89167, 0, 1.89167, 0 };
    double sum = 0;
    float y[8];
    int j;
    REQUIRE(example_error("turboquant(bits=2,form=prod,sketch=rht)", y) > 0);
    for (j = 0; j < 8; j++) {
        CHECK_NEAR(y[j], want[j], 2e-3); /* the card keeps lengths exact, a row halves */
        sum += (double)y[j];
    }
    CHECK_NEAR(sum, 2.26992, 3e-3);
    {
        coded c;
        unsigned char z[8];
        static const int minus[8] = { 1, 0, 1, 1, 1, 0, 1, 1 };
        REQUIRE(coded_begin(&c, "turboquant(bits=2,form=prod)", NULL, 8));
        example_signs(&c);
        coded_encode(&c, example, 1);
        kvmem__weave_get(z, c.b.rows + 2, 8, 1);
        for (j = 0; j < 8; j++) CHECK(z[j] == minus[j]);
        CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(c.b.rows + 4)), sqrt(21.375 - 1.5), 3);
        CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(c.b.rows + 6)), 0.394064, 2e-4);
        coded_free(&c);
    }
}
TEST(codebooks_are_those_of_the_card) {
    static const double d64[4][8] = { { 0.8010 }, { 0.4520, 1.4999 }, { 0.2436, 0.7503, 1.3290, 2.1110 },
        { 0.1269, 0.3838, 0.6492, 0.9303, 1.2377, 1.5891, 2.0217, 2.6451 } };
    static const double d128[4][8] = { { 0.7994 }, { 0.4523, 1.5050 }, { 0.2441, 0.7527, 1.3358, 2.1307 },
        { 0.1273, 0.3850, 0.6517, 0.9349, 1.2454, 1.6020, 2.0436, 2.6868 } };
    int bits, k;
    for (bits = 1; bits <= 4; bits++) { /* its levels of 4 bits stopped short of the fixed point */
        const int half = 1 << (bits - 1);
        double a[16], b[16];
        kvmem__sphere_levels(a, 2 * half, 64);
        kvmem__sphere_levels(b, 2 * half, 128);
        for (k = 0; k < half; k++) {
            CHECK_NEAR(8 * a[half + k], d64[bits - 1][k], bits < 4 ? 5e-4 : 2.5e-3);
            CHECK_NEAR(sqrt(128) * b[half + k], d128[bits - 1][k], bits < 4 ? 9e-4 : 2.5e-3);
        }
    }
}
TEST(bits_a_value_are_those_of_the_card) {
    static const int dims[2] = { 64, 128 };
    float x[128];
    char text[80];
    coded c;
    int i, bits;
    memset(x, 0, sizeof x);
    for (i = 0; i < 2; i++) {
        for (bits = 1; bits <= 8; bits++) {
            snprintf(text, sizeof text, "turboquant(bits=%d)", bits);
            REQUIRE(coded_make(&c, text, NULL, dims[i], x, 1));
            CHECK_NEAR(coded_bits(&c), bits + 16.0 / dims[i], 1e-9);
            coded_free(&c);
            snprintf(text, sizeof text, "turboquant(bits=%d,form=prod)", bits);
            REQUIRE(coded_make(&c, text, NULL, dims[i], x, 1));
            CHECK_NEAR(coded_bits(&c), bits + 32.0 / dims[i], 1e-9);
            coded_free(&c);
        }
    }
}
TEST(table_of_the_card) {
    static const double mse[2][3][3] = {
        { { 0.1141, 0.1068, 0.0914 }, { 0.0333, 0.0289, 0.0294 }, { 0.0091, 0.0084, 0.0081 } },
        { { 0.1158, 0.1066, 0.0975 }, { 0.0339, 0.0306, 0.0300 }, { 0.0093, 0.0086, 0.0083 } } };
    static const double prod[2][3] = { { 0.202, 0.064, 0.019 }, { 0.204, 0.065, 0.019 } };
    char text[80];
    int i, bits, k;
    for (i = 0; i < 2; i++) {
        for (bits = 2; bits <= 4; bits++) {
            snprintf(text, sizeof text, "turboquant(bits=%d,seed=%%d)", bits);
            for (k = 0; k < 3; k++)
                FIGURE_MEAN(text, "GOS"[k], 64 << i, 0, k ? 16 : 1, mse[i][bits - 2][k], 0.03);
            snprintf(text, sizeof text, "turboquant(bits=%d,form=prod,seed=%%d)", bits);
            FIGURE_MEAN(text, 'G', 64 << i, 0, 1, prod[i][bits - 2], 0.03);
        }
    }
}
/* Exact errors of the code books on random directions. */
static const double exact[2][4] = { { 0.3584, 0.1145, 0.0334, 0.0091 }, { 0.3609, 0.1160, 0.0340, 0.0093 } };
TEST(error_is_exact_and_within_the_bounds_of_the_paper_and_of_shannon) {
    char text[80];
    int i, bits;
    for (i = 0; i < 2; i++) {
        for (bits = 1; bits <= 8; bits++) {
            double e;
            snprintf(text, sizeof text, "turboquant(bits=%d)", bits);
            e = figure_error(text, 'G', 64 << i, 0, FIGURE_REL);
            CHECK(e > pow(4, -bits) && e < 2.7207 * pow(4, -bits));
            if (bits <= 4) CHECK_NEAR(e / exact[i][bits - 1], 1, 0.02);
        }
    }
}
/* slope = sum <q,x><q,x^> / sum <q,x>^2 and d * mean (<q,x^> - <q,x>)^2 for unit q, x about unit. */
static void scores(const char *text, int d, double *slope, double *error) {
    enum { N = 512, Q = 16 };
    float *x = (float *)malloc((size_t)(N * d) * sizeof *x), *q = (float *)malloc((size_t)(Q * d) * sizeof *q);
    float *s = (float *)malloc((size_t)(N * Q) * sizeof *s);
    double a = 0, b = 0, e = 0;
    coded c;
    int i, t, j;
    *slope = *error = -1;
    if (!x || !q || !s) return;
    figure_rows(x, 'G', N, d, 5);
    figure_rows(q, 'G', Q, d, 6);
    if (!coded_make(&c, text, NULL, d, x, N)) return;
    coded_dot(&c, s, q, Q);
    for (i = 0; i < Q; i++) {
        for (t = 0; t < N; t++) {
            double want = 0, got = (double)s[i * N + t], n = 0, m = 0;
            for (j = 0; j < d; j++) {
                want += (double)q[i * d + j] * (double)x[t * d + j];
                n += (double)q[i * d + j] * (double)q[i * d + j];
                m += (double)x[t * d + j] * (double)x[t * d + j];
            }
            a += want * got;
            b += want * want;
            e += (got - want) * (got - want) / n / m * d;
        }
    }
    *slope = a / b;
    *error = e / (N * Q);
    coded_free(&c);
    free(x);
    free(q);
    free(s);
}
TEST(scores_shrink_by_the_error_and_prod_and_rescale_do_not) {
    char text[80];
    double slope, error;
    int bits;
    for (bits = 1; bits <= 4; bits++) {
        snprintf(text, sizeof text, "turboquant(bits=%d)", bits);
        scores(text, 64, &slope, &error);
        CHECK_NEAR(slope, 1 - exact[0][bits - 1], bits < 3 ? 0.02 : 0.01);
        snprintf(text, sizeof text, "turboquant(bits=%d,rescale=1)", bits);
        scores(text, 64, &slope, &error);
        CHECK_NEAR(slope, 1, bits < 3 ? 0.03 : 0.01);
        snprintf(text, sizeof text, "turboquant(bits=%d,form=prod)", bits);
        scores(text, 64, &slope, &error);
        CHECK_NEAR(slope, 1, 0.05);
    }
    CHECK_NEAR(figure_error("turboquant(bits=2,rescale=1)", 'G', 128, 0, FIGURE_REL), 0.131, 0.004);
    scores("turboquant(bits=2,rescale=1)", 128, &slope, &error);
    CHECK_NEAR(error, 0.131, 0.008);
}
TEST(gaussian_sketch_has_the_error_of_the_paper) {
    static const double cell[2][3] = { { 0.586, 0.187, 0.054 }, { 0.572, 0.184, 0.054 } };
    char text[80];
    int i, bits, k;
    for (i = 0; i < 2; i++) {
        for (bits = 2; bits <= 4; bits++) { /* (pi / 2 - 1 / d) D(b - 1), b bits: the card's cells are one S */
            const double want = (1.5708 - 1.0 / (64 << i)) * exact[i][bits - 2];
            double sum = 0, slope, error;
            for (k = 1; k <= 8; k++) {
                snprintf(text, sizeof text, "turboquant(bits=%d,form=prod,sketch=gauss,seed=%d)", bits, k);
                scores(text, 64 << i, &slope, &error);
                CHECK_NEAR(slope, 1, 0.08);
                sum += error / 8;
            }
            CHECK_NEAR(sum / want, 1, 0.05);
            CHECK_NEAR(sum / cell[i][bits - 2], 1, 0.08);
            CHECK(sum < 17.0949 * pow(4, -bits)); /* sqrt(3) pi^2 4^-b */
        }
    }
}
TEST(rows_scale_exactly_and_zero_rows_stay_zero) {
    float x[64], y[2][64];
    coded c;
    int j;
    for (j = 0; j < 64; j++) x[j] = (float)test_normal();
    REQUIRE(coded_make(&c, "turboquant(bits=3)", NULL, 64, x, 1));
    coded_decode(&c, y[0]);
    coded_free(&c);
    for (j = 0; j < 64; j++) x[j] *= 0.25f;
    REQUIRE(coded_make(&c, "turboquant(bits=3)", NULL, 64, x, 1));
    coded_decode(&c, y[1]);
    coded_free(&c);
    for (j = 0; j < 64; j++) CHECK(y[1][j] == 0.25f * y[0][j]);
    memset(x, 0, sizeof x);
    REQUIRE(coded_make(&c, "turboquant(bits=4,form=prod)", NULL, 64, x, 1));
    coded_decode(&c, y[0]);
    for (j = 0; j < 64; j++) CHECK(y[0][j] == 0);
    coded_free(&c);
}
TEST(wild_values_give_finite_rows) {
    static const char *const texts[4] = { "turboquant", "turboquant(bits=2,form=prod)", "turboquant(rescale=1,bits=1)",
                                          "turboquant(bits=3,form=prod,sketch=gauss)" };
    static const int dims[4] = { 1, 7, 64, 80 };
    float x[80], y[80];
    coded c;
    int i, k, kind, j;
    for (i = 0; i < 4; i++) {
        for (k = 0; k < 4; k++) {
            for (kind = 0; kind < 6; kind++) {
                for (j = 0; j < 80; j++)
                    x[j] = kind == 0 ? NAN : kind == 1 ? INFINITY : kind == 2 ? -3e38f : kind == 3 ? 1e-42f
                         : kind == 4 ? (j % 3 ? NAN : 2.0f) : 7.0f;
                REQUIRE(coded_make(&c, texts[i], NULL, dims[k], x, 1));
                coded_decode(&c, y);
                for (j = 0; j < dims[k]; j++) CHECK(fabsf(y[j]) <= 1e6f);
                coded_free(&c);
            }
        }
    }
}
TEST(one_value_is_coded_exactly) {
    const float x[1] = { -3.5f };
    float y[1];
    coded c;
    int bits;
    char text[40];
    for (bits = 1; bits <= 8; bits++) {
        snprintf(text, sizeof text, "turboquant(bits=%d)", bits);
        REQUIRE(coded_make(&c, text, NULL, 1, x, 1));
        coded_decode(&c, y);
        CHECK_NEAR(y[0], -3.5, 1e-5);
        coded_free(&c);
    }
}
TEST(woven_codes_come_back_and_fill_their_bytes) {
    unsigned char code[200], got[200], out[220];
    int bits, n, c;
    for (bits = 1; bits <= 8; bits++) {
        CHECK(kvmem__weave_bytes(128, bits) == (size_t)(16 * bits));
        for (n = 1; n <= 200; n += n < 70 ? 1 : 43) {
            uint8_t *to = out;
            const uint8_t *from = out;
            memset(out, 0xee, sizeof out);
            for (c = 0; c < n; c++)
                code[c] = (unsigned char)(kvmem__mix((uint64_t)(c + 31 * bits)) & ((1u << bits) - 1));
            for (c = 0; c < n; c += 64) to = kvmem__weave_put(to, code + c, KVMEM__MIN(64, n - c), bits);
            CHECK((size_t)(to - out) == kvmem__weave_bytes(n, bits) && *to == 0xee);
            for (c = 0; c < n; c += 64) from = kvmem__weave_get(got + c, from, KVMEM__MIN(64, n - c), bits);
            CHECK(from == to && !memcmp(code, got, (size_t)n));
        }
    }
}
TEST(attention_on_codes_equals_decoded_rows) {
    static const char *const texts[] = { "turboquant(bits=4)", "turboquant(bits=3)", "turboquant(bits=2)",
        "turboquant(bits=1)", "turboquant(bits=6)", "turboquant(bits=8,rescale=1)", "turboquant(bits=4,form=prod)",
        "turboquant(bits=3,form=prod)", "turboquant(bits=1,form=prod)", "turboquant(bits=2,form=prod,sketch=gauss)" };
    static const char *const paths[] = { NULL, "avx2", "avx512", "neon" };
    static const int dims[] = { 1, 7, 33, 64, 80, 128, 192 };
    size_t i, p, k;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (p = 0; p < 4; p++) {
            for (k = 0; k < 7; k++) { /* AVX-512 rounds queries and weights to 16 bits */
                const double e = KVMEM__MAX(coded_reads_error(texts[i], paths[p], dims[k], 37, 5),
                                            coded_reads_error(texts[i], paths[p], dims[k], 1, 1));
                if (!(e <= (p == 2 ? 1e-4 : 1e-5)))
                    FAIL_AT("%s, %s, d=%d: %g", texts[i], paths[p] ? paths[p] : "plain", dims[k], e);
            }
        }
    }
}
TEST(fast_encoding_is_the_plain_one_bit_for_bit) {
    static const char *const texts[] = { "turboquant(bits=1)", "turboquant(bits=2)", "turboquant(bits=3)",
        "turboquant(bits=4)", "turboquant(bits=6)", "turboquant(bits=2,rescale=1)", "turboquant(bits=1,form=prod)",
        "turboquant(bits=3,form=prod)", "turboquant(bits=5,form=prod,sketch=gauss)" };
    static const char *const paths[] = { "avx2", "avx512", "neon" };
    static const int dims[] = { 64, 80, 128, 192 };
    float *x = (float *)malloc(32 * 192 * sizeof *x);
    size_t i, p, k;
    REQUIRE(x);
    figure_rows(x, 'O', 32, 192, 9);
    memset(x + 3 * 192, 0, 192 * sizeof *x);
    x[5 * 192] = NAN;
    x[5 * 192 + 70] = -INFINITY;
    x[6 * 192 + 1] = 3e38f;
    for (k = 7 * 192; k < 8 * 192; k++) x[k] *= 1e-41f;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (p = 0; p < 3; p++) {
            for (k = 0; k < 4; k++) {
                coded a, b;
                if (!kvmem_backend_cpu(paths[p])) continue;
                REQUIRE(coded_make(&a, texts[i], NULL, dims[k], x, 32));
                REQUIRE(coded_make(&b, texts[i], paths[p], dims[k], x, 32));
                if (memcmp(a.b.rows, b.b.rows, 32 * a.b.row_bytes))
                    FAIL_AT("%s, %s, d=%d", texts[i], paths[p], dims[k]);
                coded_free(&a);
                coded_free(&b);
            }
        }
    }
    free(x);
}
TEST(heads_too_wide_for_two_halves_are_read_as_one) {
    CHECK(coded_reads_error("turboquant(bits=2,form=prod)", NULL, 2560, 3, 2) <= 1e-5);
    CHECK(coded_reads_error("turboquant(bits=2)", NULL, 4096, 3, 2) <= 1e-5);
}
TEST(facts_of_every_codec_hold) {
    codec_facts("turboquant(bits=8)", 1);
    codec_facts("turboquant(bits=3)", 3);
    codec_facts("turboquant(bits=2,form=prod)", 5);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_turboquant");
    RUN(worked_example_of_the_card);
    RUN(worked_example_of_the_card_with_a_sketched_rest);
    RUN(codebooks_are_those_of_the_card);
    RUN(bits_a_value_are_those_of_the_card);
    RUN(table_of_the_card);
    RUN(error_is_exact_and_within_the_bounds_of_the_paper_and_of_shannon);
    RUN(scores_shrink_by_the_error_and_prod_and_rescale_do_not);
    RUN(gaussian_sketch_has_the_error_of_the_paper);
    RUN(rows_scale_exactly_and_zero_rows_stay_zero);
    RUN(wild_values_give_finite_rows);
    RUN(one_value_is_coded_exactly);
    RUN(woven_codes_come_back_and_fill_their_bytes);
    RUN(attention_on_codes_equals_decoded_rows);
    RUN(fast_encoding_is_the_plain_one_bit_for_bit);
    RUN(heads_too_wide_for_two_halves_are_read_as_one);
    RUN(facts_of_every_codec_hold);
    return test_end();
}
