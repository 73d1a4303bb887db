/* OCTOPUS: the card's facts, worked example and table; attention on codes against decoded rows. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "coded.h"
#include "codec_facts.h"
#include "figures.h"

TEST(worked_example_of_the_card) {
    static const float x[8] = { 1, -2, 0.5f, 3, -1.5f, 0.25f, 2, -0.75f }, signs[8] = { 1, -1, 1, 1, -1, 1, -1, -1 };
    static const double want[8] = { 0.618, -2.243, -0.013, 3.272, -1.837, 0.212, 2.442, -0.394 };
    static const unsigned xi[3] = { 5, 6, 1 }, eta[3] = { 2, 6, 2 }, rho[3] = { 1, 1, 0 };
    const float u[3] = { -0.26923f, -0.19231f, 0 };
    float y[8], a, e;
    unsigned k;
    coded c;
    REQUIRE(coded_begin(&c, "octopus(bits=2)", NULL, 8));
    memcpy(kvmem__oct_unit(c.u.table) + 3 * 64, signs, sizeof signs);
    coded_encode(&c, x, 1);
    coded_decode(&c, y);
    CHECK(c.b.row_bytes == 3 + 2); /* 21 bits, gamma */
    for (k = 0; k < 3; k++) CHECK(kvmem__oct_get(c.b.rows, (int)k, 7) == (xi[k] | eta[k] << 3 | rho[k] << 6));
    for (k = 0; k < 8; k++) CHECK_NEAR(y[k], want[k], 1.5e-3);
    CHECK_NEAR(figure_ratio(x, y, 1, 8, FIGURE_REL), 0.04635, 1e-4);
    CHECK_NEAR(((const kvmem__octo *)c.u.table)->rho[0], 0.40728, 3e-5);
    CHECK_NEAR(((const kvmem__octo *)c.u.table)->rho[1], 0.72392, 3e-5);
    kvmem__oct_fold(u, &a, &e);
    CHECK_NEAR(a, -0.58333, 1e-5);
    CHECK_NEAR(e, -0.41667, 1e-5);
    coded_free(&c);
}
TEST(codebooks_are_those_of_the_card) {
    static const double xi[3][8] = { { 0.1430, 0.3840, 0.6160, 0.8570 },
        { 0.0722, 0.2022, 0.3238, 0.4416, 0.5584, 0.6762, 0.7978, 0.9278 },
        { 0.0362, 0.1047, 0.1699, 0.2326, 0.2935, 0.3532, 0.4122, 0.4708 } };
    static const double rho[2][3][8] = {
        { { 0.1426, 0.2773 }, { 0.0991, 0.1758, 0.2509, 0.3453 },
          { 0.0675, 0.1156, 0.1566, 0.1958, 0.2359, 0.2798, 0.3321, 0.4055 } },
        { { 0.1007, 0.1971 }, { 0.0701, 0.1246, 0.1786, 0.2473 },
          { 0.0478, 0.0819, 0.1111, 0.1391, 0.1680, 0.1998, 0.2380, 0.2925 } } };
    char text[60];
    int i, bits, k;
    for (i = 0; i < 2; i++) {
        for (bits = 2; bits <= 4; bits++) {
            const kvmem__octo *o;
            const int n = 2 << bits;
            coded c;
            snprintf(text, sizeof text, "octopus(bits=%d)", bits);
            REQUIRE(coded_begin(&c, text, NULL, 64 << i));
            o = (const kvmem__octo *)c.u.table;
            for (k = 0; k < 8 && k < n / 2; k++) CHECK_NEAR(o->xi[n / 2 + k], xi[bits - 2][k], 3e-4);
            for (k = 0; k < n; k++) CHECK(o->xi[k] == -o->xi[n - 1 - k]);
            for (k = 0; k < 1 << (bits - 1); k++) CHECK_NEAR(o->rho[k], rho[i][bits - 2][k], 3e-4);
            coded_free(&c);
        }
    }
}
TEST(folding_and_unfolding_are_inverse) {
    static const float up[3] = { 0, 0, 1 }, down[3] = { 0, 0, -1 };
    float xi, eta, t[3];
    double back[3];
    int i, k;
    kvmem__oct_fold(up, &xi, &eta);
    CHECK(xi == 0 && eta == 0);
    kvmem__oct_fold(down, &xi, &eta);
    CHECK(fabsf(xi) == 1 && fabsf(eta) == 1);
    kvmem__oct_unfold((double)xi, (double)eta, back);
    CHECK(back[0] == 0 && back[1] == 0 && back[2] == -1);
    for (i = 0; i < 2000; i++) {
        double norm = 0;
        for (k = 0; k < 3; k++) {
            t[k] = (float)figure_normal(3, (unsigned long long)(3 * i + k));
            if (i % 7 == k) t[k] = 0;
            norm += (double)t[k] * (double)t[k];
        }
        kvmem__oct_fold(t, &xi, &eta);
        CHECK(fabsf(xi) <= 1 && fabsf(eta) <= 1);
        kvmem__oct_unfold((double)xi, (double)eta, back);
        for (k = 0; k < 3; k++) CHECK_NEAR(back[k], (double)t[k] / sqrt(norm), 2e-6);
    }
}
TEST(density_of_a_random_direction_on_the_square_is_exact) {
    double mass, cdf = 0;
    int bin[20], i, k;
    kvmem__cell_mean(kvmem__oct_xi_density, 0, 0, 1, 200, &mass);
    CHECK_NEAR(2 * mass / 3.14159265358979, 1, 1e-6);
    CHECK_NEAR(kvmem__oct_xi_density(0.5, 0) / 3.14159265358979, 0.6002, 1e-4);
    memset(bin, 0, sizeof bin);
    for (i = 0; i < 40000; i++) {
        float t[3], xi, eta;
        for (k = 0; k < 3; k++) t[k] = (float)figure_normal(4, (unsigned long long)(3 * i + k));
        kvmem__oct_fold(t, &xi, &eta);
        bin[(int)(10 * KVMEM__MIN(fabsf(xi), 0.9999f))]++;
        bin[10 + (int)(10 * KVMEM__MIN(fabsf(eta), 0.9999f))]++;
    }
    for (k = 0; k < 10; k++) {
        kvmem__cell_mean(kvmem__oct_xi_density, 0, 0.1 * k, 0.1 * (k + 1), 20, &mass);
        mass *= 2 / 3.14159265358979;
        cdf += mass;
        CHECK_NEAR(bin[k] / 40000.0, mass, 0.008);
        CHECK_NEAR(bin[10 + k] / 40000.0, mass, 0.008);
    }
    CHECK_NEAR(cdf, 1, 1e-6);
}
TEST(bits_a_value_are_those_of_the_card_up_to_whole_bytes) {
    static const double card[2][3] = { { 2.656, 3.688, 4.719 }, { 2.477, 3.484, 4.492 } };
    float x[128];
    char text[60];
    int i, bits;
    coded c;
    memset(x, 0, sizeof x);
    for (i = 0; i < 2; i++) {
        for (bits = 2; bits <= 4; bits++) {
            snprintf(text, sizeof text, "octopus(bits=%d)", bits);
            REQUIRE(coded_make(&c, text, NULL, 64 << i, x, 1));
            CHECK(coded_bits(&c) >= card[i][bits - 2] - 1e-3 && coded_bits(&c) < card[i][bits - 2] + 8.0 / (64 << i));
            coded_free(&c);
        }
    }
}
TEST(table_of_the_card) {
    static const double joint[2][3][3] = {
        { { 0.0858, 0.0721, 0.0751 }, { 0.0254, 0.0225, 0.0228 }, { 0.0071, 0.0063, 0.0063 } },
        { { 0.0833, 0.0776, 0.0748 }, { 0.0244, 0.0226, 0.0221 }, { 0.0067, 0.0062, 0.0061 } } };
    static const double plain[2][3][3] = {
        { { 0.0923, 0.0788, 0.0821 }, { 0.0271, 0.0243, 0.0246 }, { 0.0075, 0.0067, 0.0068 } },
        { { 0.0898, 0.0843, 0.0818 }, { 0.0261, 0.0244, 0.0239 }, { 0.0071, 0.0067, 0.0065 } } };
    char text[60];
    int i, bits, k;
    for (i = 0; i < 2; i++) {
        for (bits = 2; bits <= 4; bits++) {
            for (k = 0; k < 3; k++) {
                snprintf(text, sizeof text, "octopus(bits=%d,seed=%%d)", bits);
                FIGURE_MEAN(text, "GOS"[k], 64 << i, 0, k ? 16 : 1, joint[i][bits - 2][k], 0.03);
                snprintf(text, sizeof text, "octopus(bits=%d,rounding=plain,seed=%%d)", bits);
                FIGURE_MEAN(text, "GOS"[k], 64 << i, 0, k ? 16 : 1, plain[i][bits - 2][k], 0.03);
            }
        }
    }
}
TEST(joint_rounding_never_loses_and_a_sketch_of_the_rest_takes_the_bias) {
    CHECK(figure_error("octopus(bits=2)", 'G', 96, 0, FIGURE_REL) <
          figure_error("octopus(bits=2,rounding=plain)", 'G', 96, 0, FIGURE_REL));
    /* (pi / 2 - 1) of the error that is left, as in turboquant */
    CHECK_NEAR(figure_error("octopus(bits=2,qjl=1)", 'G', 128, 0, FIGURE_REL), 0.5708 * 0.0833, 0.002);
}
TEST(attention_on_codes_equals_decoded_rows) {
    static const char *const texts[] = { "octopus(bits=2)", "octopus(bits=3)", "octopus(bits=4)", "octopus(bits=1)",
                                         "octopus(bits=5)", "octopus(bits=2,rounding=plain,qjl=1)" };
    static const char *const paths[] = { NULL, "avx2", "avx512", "neon" };
    static const int dims[] = { 1, 3, 7, 33, 64, 80, 128, 192 };
    size_t i, p, k;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (p = 0; p < 4; p++) {
            for (k = 0; k < 8; k++) {
                const double e = KVMEM__MAX(coded_reads_error(texts[i], paths[p], dims[k], 37, 5),
                                            coded_reads_error(texts[i], paths[p], dims[k], 1, 1));
                if (!(e <= 1e-5)) FAIL_AT("%s, %s, d=%d: %g", texts[i], paths[p] ? paths[p] : "plain", dims[k], e);
            }
        }
    }
}
TEST(facts_of_every_codec_hold) {
    codec_facts("octopus(bits=4)", 3);
    codec_facts("octopus(bits=2,qjl=1)", 5);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_octopus");
    RUN(worked_example_of_the_card);
    RUN(codebooks_are_those_of_the_card);
    RUN(folding_and_unfolding_are_inverse);
    RUN(density_of_a_random_direction_on_the_square_is_exact);
    RUN(bits_a_value_are_those_of_the_card_up_to_whole_bytes);
    RUN(table_of_the_card);
    RUN(joint_rounding_never_loses_and_a_sketch_of_the_rest_takes_the_bias);
    RUN(attention_on_codes_equals_decoded_rows);
    RUN(facts_of_every_codec_hold);
    return test_end();
}
