/* The codec polark (Wu et al.): RoPE pairs as radius and angle over a page. */
#define KVMEM_NO_DECODER
#define FIGURE_ROWS 2048
#include "test.h"
#include "coded.h"
#include "coded_check.h"
#include "figures.h"

TEST(sine_and_cosine_are_right_to_2e_7) {
    double worst = 0;
    int i;
    for (i = 0; i < 160000; i++) {
        const float x = 1e-4f * (float)i;
        float s, c;
        kvmem__sincos(x, &s, &c);
        worst = KVMEM__MAX(worst, KVMEM__MAX(fabs((double)s - sin((double)x)), fabs((double)c - cos((double)x))));
    }
    CHECK(worst < 2e-7);
}
TEST(the_card_s_pairs_decode_as_printed) {
    static const float x[4] = { 3, 4, 1, .2f };
    static const double want[4] = { 3.01843, 3.34086, 1.45456, .4319 };
    static const double head[4] = { (5 - 1.0198) / 4, 1.0198, (.9273 - .1974) / 4, .1974 };
    float y[4];
    uint8_t code[1];
    coded c;
    int i, t;
    REQUIRE(coded_make(&c, "polark(angle=2,radius=2)", NULL, 2, x, 2));
    coded_decode(&c, y);
    for (i = 0; i < 4; i++) CHECK_NEAR(y[i], want[i], 2e-3); /* the card's scales are no halves */
    for (i = 0; i < 4; i++) CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(c.b.head + 2 * i)), head[i], 1e-3 * head[i]);
    for (t = 0; t < 2; t++) {
        for (i = 0; i < 2; i++) {
            kvmem__bits_get(code, kvmem__row_at(&c.b, t) + i, 0, 1, 2);
            CHECK(code[0] == (t == 0 ? 3 : 0));
        }
    }
    coded_free(&c);
}
TEST(bits_a_value_count_the_head) {
    static float x[128 * 128];
    static const int dims[] = { 64, 80, 128 };
    coded c;
    int i;
    check_rows(x, 128, 128, 3);
    for (i = 0; i < 3; i++) {
        REQUIRE(coded_make(&c, "polark", NULL, dims[i], x, 128));
        CHECK_NEAR(coded_bits(&c), 4.25, 1e-9);
        coded_free(&c);
    }
    REQUIRE(coded_make(&c, "polark(angle=3,radius=2)", NULL, 64, x, 128));
    CHECK_NEAR(coded_bits(&c), 2.75, 1e-9);
    coded_free(&c);
}
static double angle_of(double y, double x) { const double a = atan2(y, x); return a < 0 ? a + 2 * KVMEM__PI : a; }
static void check_bounds(const char *text, const float *x, int d, int n) { /* half a step each, pairs (j, j + d/2) */
    float *y = (float *)malloc((size_t)n * (size_t)d * sizeof *y);
    coded c;
    int t, j, bad = 0;
    REQUIRE(y && coded_make(&c, text, NULL, d, x, n));
    coded_decode(&c, y);
    for (j = 0; j < d / 2; j++) {
        const double rs = (double)kvmem__f16_to_f32(kvmem__le16(c.b.head + 8 * j));
        const double ts = (double)kvmem__f16_to_f32(kvmem__le16(c.b.head + 8 * j + 4));
        for (t = 0; t < n; t++) {
            const double a = x[t * d + j], b = x[t * d + j + d / 2], u = y[t * d + j], v = y[t * d + j + d / 2];
            const double dr = fabs(hypot(u, v) - hypot(a, b)), da = fabs(angle_of(b, a) - angle_of(v, u));
            if (dr > rs / 2 + 2e-5 * hypot(a, b)) bad++;
            if (KVMEM__MIN(da, 2 * KVMEM__PI - da) > ts / 2 + 4e-6) bad++;
        }
    }
    CHECK(bad == 0);
    coded_free(&c);
    free(y);
}
TEST(angle_and_radius_err_by_half_a_step_at_most) {
    static float x[128 * 64];
    check_rows(x, 128, 64, 5);
    check_bounds("polark", x, 64, 128);
    check_bounds("polark(cut=zero)", x, 64, 128);
    check_bounds("polark(angle=8,radius=7)", x, 64, 128);
    check_bounds("polark(angle=1,radius=1)", x, 64, 100);
    figure_rows(x, 'O', 128, 64, 8);
    check_bounds("polark(angle=2,radius=2)", x, 64, 128);
}
TEST(a_constant_pair_is_exact_up_to_the_step_of_a_half) {
    static float x[128 * 2];
    float y[2 * 128];
    coded c;
    int t;
    for (t = 0; t < 128; t++) { x[2 * t] = -3.3f; x[2 * t + 1] = .7f; }
    REQUIRE(coded_make(&c, "polark(angle=2,radius=2)", NULL, 2, x, 128));
    coded_decode(&c, y);
    for (t = 0; t < 128; t++) {
        CHECK_NEAR(y[2 * t], -3.3, 2e-3);
        CHECK_NEAR(y[2 * t + 1], .7, 2e-3);
    }
    coded_free(&c);
}
TEST(the_cut_lies_after_the_widest_gap) { /* against all gaps of the sorted angles */
    float phi[40], lo[40], hi[40];
    int n, i, j, round;
    for (round = 0; round < 300; round++) {
        double widest = -1, got = 1e9;
        float start;
        n = 1 + round % 40;
        for (i = 0; i < n; i++)
            phi[i] = (float)(kvmem__unit(kvmem__random(3, (uint64_t)round, (uint64_t)i, 0)) *
                             (round % 3 ? 6.28 : 1.0));
        start = kvmem__polark_start(phi, n, lo, hi);
        for (i = 0; i < n; i++) { /* the gap in front of angle i */
            double gap = 2 * KVMEM__PI;
            for (j = 0; j < n; j++) {
                const double back = fmod((double)phi[i] - (double)phi[j] + 4 * KVMEM__PI, 2 * KVMEM__PI);
                if (j != i && back < gap) gap = back;
            }
            widest = KVMEM__MAX(widest, gap);
            if (phi[i] == start) got = gap;
        }
        CHECK_NEAR(got, widest, 1e-5);
    }
}
TEST(a_ring_round_angle_0_is_cut_elsewhere) {
    static float x[128 * 2];
    double gap, zero;
    float y[2 * 128];
    coded c;
    int t;
    for (t = 0; t < 128; t++) {
        x[2 * t] = 10;
        x[2 * t + 1] = .02f * (float)t - 1.27f;
    }
    REQUIRE(coded_make(&c, "polark", NULL, 2, x, 128));
    coded_decode(&c, y);
    coded_free(&c);
    gap = figure_ratio(x, y, 128, 2, FIGURE_REL);
    REQUIRE(coded_make(&c, "polark(cut=zero)", NULL, 2, x, 128));
    coded_decode(&c, y);
    coded_free(&c);
    zero = figure_ratio(x, y, 128, 2, FIGURE_REL);
    CHECK(gap < 5e-5 && zero > 1e-2);
}
static void check_line(const char *text, int d, double g, double o, double s) {
    FIGURE(text, 'G', d, 128, g, .03);
    FIGURE(text, 'O', d, 128, o, .03);
    FIGURE(text, 'S', d, 128, s, .03);
}
TEST(reference_figures) { /* the card's figures are the released code's: plain min and max */
    check_line("polark(angle=2,radius=2,cut=zero)", 64, .224, .141, .386);
    check_line("polark(angle=3,radius=3,cut=zero)", 64, .0574, .0315, .0856);
    check_line("polark(angle=4,radius=4,cut=zero)", 64, .0145, .0062, .0184);
    check_line("polark(angle=2,radius=2,cut=zero)", 128, .224, .150, .370);
    check_line("polark(angle=3,radius=3,cut=zero)", 128, .0575, .0343, .0835);
    check_line("polark(angle=4,radius=4,cut=zero)", 128, .0145, .0072, .0178);
}
TEST(the_widest_gap_cut_is_never_worse) {
    static const int kinds[3] = { 'G', 'O', 'S' };
    int i, d;
    for (d = 64; d <= 128; d *= 2) {
        for (i = 0; i < 3; i++) {
            const double gap = figure_error("polark", kinds[i], d, 128, FIGURE_REL);
            const double zero = figure_error("polark(cut=zero)", kinds[i], d, 128, FIGURE_REL);
            CHECK(gap < (i == 0 ? .98 : i == 1 ? .5 : .7) * zero);
        }
    }
}
/* Keys whose pairs 1, 5, 9, 13 have a constant part before RoPE: rings and arcs after it. */
static void ring_rows(float *x, int n, int d) {
    int t, j;
    for (t = 0; t < n; t++, x += d) {
        for (j = 0; j < d / 2; j++) {
            const double a = t * pow(10000, -2.0 * j / d), m = j % 4 == 1 && j < 16 ? 10 : 0;
            const double u = m + figure_normal(5, (unsigned long long)(t * d + 2 * j));
            const double v = m + figure_normal(5, (unsigned long long)(t * d + 2 * j + 1));
            x[j] = (float)(u * cos(a) - v * sin(a));
            x[j + d / 2] = (float)(u * sin(a) + v * cos(a));
        }
    }
}
static double ring_error(const char *text) {
    static float x[1024 * 64], y[1024 * 64];
    coded c;
    int t;
    ring_rows(x, 1024, 64);
    for (t = 0; t < 1024; t += 128) {
        if (!coded_make(&c, text, NULL, 64, x + 64 * t, 128)) return -1;
        coded_decode(&c, y + 64 * t);
        coded_free(&c);
    }
    return figure_ratio(x, y, 1024, 64, FIGURE_REL);
}
TEST(on_rings_more_bits_for_the_angle_beat_scalar_codecs_of_the_same_bits) { /* 4.25 bits a value all */
    const double fine = ring_error("polark(angle=5,radius=3)");
    CHECK(fine < .9 * ring_error("kivi(bits=4)"));
    CHECK(fine < .45 * ring_error("turboquant(bits=4)"));
    CHECK(fine < .35 * ring_error("polark"));
    CHECK(ring_error("polark") < .65 * ring_error("q4_0"));
}
static const int sizes[] = { 1, 2, 7, 33, 64, 80, 128 };
TEST(scores_are_those_of_the_decoded_rows) {
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        coded_check_sums("polark", NULL, sizes[i], 128);
        coded_check_sums("polark(angle=8,radius=8)", NULL, sizes[i], 19);
        coded_check_sums("polark(angle=3,radius=5,pairs=norm,cut=zero)", NULL, sizes[i], 1);
        coded_check_sums("polark(angle=1,radius=2,pairs=norm)", NULL, sizes[i], 33);
    }
}
TEST(neighbours_are_pairs_with_pairs_norm) { /* the same numbers in the other order */
    float x[5 * 8], z[5 * 8], y[5 * 8], w[5 * 8];
    coded c;
    int t, j;
    check_rows(x, 5, 8, 6);
    for (t = 0; t < 5; t++)
        for (j = 0; j < 4; j++) {
            z[8 * t + 2 * j] = x[8 * t + j];
            z[8 * t + 2 * j + 1] = x[8 * t + 4 + j];
        }
    REQUIRE(coded_make(&c, "polark", NULL, 8, x, 5));
    coded_decode(&c, y);
    coded_free(&c);
    REQUIRE(coded_make(&c, "polark(pairs=norm)", NULL, 8, z, 5));
    coded_decode(&c, w);
    coded_free(&c);
    for (t = 0; t < 5; t++)
        for (j = 0; j < 4; j++) CHECK(w[8 * t + 2 * j] == y[8 * t + j] && w[8 * t + 2 * j + 1] == y[8 * t + 4 + j]);
}
TEST(bad_input_gives_finite_rows_and_zeros_stay) {
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        coded_check_bad("polark", sizes[i]);
        coded_check_bad("polark(angle=8,radius=8,cut=zero)", sizes[i]);
    }
}
TEST(fast_twins_give_the_plain_ones_scores) {
    static const char *const text[] = { "polark", "polark(pairs=norm)", "polark(angle=3)" };
    static const char *const path[] = { "avx2", "avx512" };
    static const int rows[] = { 1, 5, 16, 31, 32, 50, 128 };
    int d, i, k, p, found = 0;
    for (p = 0; p < 2; p++)
        for (k = 0; k < 3; k++)
            for (d = 16; d <= 192; d += d < 64 ? 24 : 32)
                for (i = 0; i < 7; i++) found += coded_check_twin(text[k], path[p], d, rows[i]);
    if (!found) SKIP("no AVX2 here");
}
TEST(a_head_that_no_encoder_makes_is_not_valid) {
    static float x[16 * 64];
    coded c;
    check_rows(x, 16, 64, 3);
    REQUIRE(coded_make(&c, "polark", NULL, 64, x, 16));
    CHECK(c.u.fn.valid(&c.b));
    kvmem__put16(c.b.head + 6, 0x7e00); /* not a number */
    CHECK(!c.u.fn.valid(&c.b));
    kvmem__put16(c.b.head + 6, 0x4c00); /* an angle of 16 */
    CHECK(!c.u.fn.valid(&c.b));
    coded_free(&c);
}
TEST(it_is_for_keys_only) { CHECK(check_is("polark", KVMEM_CODEC_KEYS, 64)); }
TEST(the_preset_is_the_card_s_composition) {
    kvmem_recipe r = kvmem_recipe_default();
    REQUIRE_OK(kvmem_recipe_parse(&r, "polark", NULL));
    CHECK(r.page == 128 && r.amount.kind == KVMEM_ALL);
    CHECK(!strcmp(r.stage[KVMEM_CODEC_K].entry->word, "polark"));
    CHECK(!strcmp(r.stage[KVMEM_CODEC_V].entry->word, "f16"));
    CHECK(kvmem__param_of(r.stage[KVMEM_CODEC_K].entry, r.stage[KVMEM_CODEC_K].par, "residual", 0) == 128);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_polark");
    RUN(sine_and_cosine_are_right_to_2e_7);
    RUN(the_card_s_pairs_decode_as_printed);
    RUN(bits_a_value_count_the_head);
    RUN(angle_and_radius_err_by_half_a_step_at_most);
    RUN(a_constant_pair_is_exact_up_to_the_step_of_a_half);
    RUN(the_cut_lies_after_the_widest_gap);
    RUN(a_ring_round_angle_0_is_cut_elsewhere);
    RUN(reference_figures);
    RUN(the_widest_gap_cut_is_never_worse);
    RUN(on_rings_more_bits_for_the_angle_beat_scalar_codecs_of_the_same_bits);
    RUN(scores_are_those_of_the_decoded_rows);
    RUN(neighbours_are_pairs_with_pairs_norm);
    RUN(bad_input_gives_finite_rows_and_zeros_stay);
    RUN(fast_twins_give_the_plain_ones_scores);
    RUN(a_head_that_no_encoder_makes_is_not_valid);
    RUN(it_is_for_keys_only);
    RUN(the_preset_is_the_card_s_composition);
    return test_end();
}
