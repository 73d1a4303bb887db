/* The codec qjl: signs of a random sketch of a key, and its norm. */
#define KVMEM_NO_DECODER
#include "test.h"
#include "coded.h"
#include "coded_check.h"
#include "figures.h"

TEST(the_card_s_key_scores_as_printed) {
    static const float s[8] = { 1.41421f, 0, 1, 1, 0, 1.41421f, 1, -1 }, k[2] = { 3, 1 }, q[2] = { 1, 2 };
    float score;
    coded c;
    REQUIRE(coded_begin(&c, "qjl(m=2,outliers=0)", NULL, 2));
    REQUIRE(c.u.table_bytes == sizeof s);
    memcpy((float *)c.u.table, s, sizeof s);
    coded_encode(&c, k, 1);
    coded_dot(&c, &score, q, 1);
    CHECK((c.b.rows[2] & 15) == 15);
    CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(c.b.rows)), 3.16228, 1e-3);
    CHECK_NEAR(score, 6.18541, 6.18541 * 5e-4); /* the norm is a half */
    coded_free(&c);
}
TEST(columns_are_orthogonal_of_length_sqrt_d) {
    static const char *text[2] = { "qjl(m=2.5,outliers=0)", "qjl(m=2.5,outliers=0,sketch=rht)" };
    int d, k, i, j, c;
    for (k = 0; k < 2; k++) {
        for (d = 48; d <= 64; d += 16) {
            const int m = 5 * d / 2;
            const float *s;
            coded a;
            REQUIRE(coded_begin(&a, text[k], NULL, d));
            s = (const float *)a.u.table;
            for (i = 0; i < m; i += 7) {
                for (j = i - i % d; j < m && j < i - i % d + d; j++) {
                    double sum = 0;
                    for (c = 0; c < d; c++) sum += (double)s[c * m + i] * (double)s[c * m + j];
                    CHECK_NEAR(sum, i == j ? d : 0, 1e-3);
                }
            }
            coded_free(&a);
        }
    }
}
TEST(bits_a_value_are_the_card_s) {
    static const struct { const char *text; int d; double bits; } want[] = {
        { "qjl", 128, 4.265625 }, { "qjl(m=4,mo=1)", 128, 5.265625 },
        { "qjl(m=1,outliers=0)", 64, 1.25 }, { "qjl(m=1,outliers=0)", 128, 1.125 }
    };
    static float x[32 * 128];
    size_t i;
    check_rows(x, 32, 128, 2);
    for (i = 0; i < sizeof want / sizeof want[0]; i++) {
        coded c;
        REQUIRE(coded_make(&c, want[i].text, NULL, want[i].d, x, 32));
        CHECK_NEAR(coded_bits(&c), want[i].bits, 1e-9);
        coded_free(&c);
    }
}
/* Keys and queries of normal values over `seeds` sketches: D = mean of err^2 d / (|q|^2 |k|^2), and the slope
   of estimates on true scores. */
static void measure(const char *text, int kind, int d, int seeds, double *spread, double *slope) {
    const int n = 32, nq = 8;
    float *x = (float *)malloc((size_t)(n * d + nq * d + n * nq) * sizeof *x), *q = x + n * d, *s = q + nq * d;
    double sum = 0, xy = 0, xx = 0;
    int seed, t, i, c;
    char full[100];
    for (seed = 1; seed <= seeds; seed++) {
        coded a;
        figure_rows(x, kind, n, d, (unsigned long long)seed);
        figure_rows(q, 'G', nq, d, 1000u + (unsigned long long)seed);
        snprintf(full, sizeof full, text, seed);
        if (!coded_make(&a, full, NULL, d, x, n)) { test_bad++; break; }
        coded_dot(&a, s, q, nq);
        for (i = 0; i < nq; i++) {
            for (t = 0; t < n; t++) {
                double want = 0, qq = 0, kk = 0, e;
                for (c = 0; c < d; c++) {
                    want += (double)q[i * d + c] * (double)x[t * d + c];
                    qq += (double)q[i * d + c] * (double)q[i * d + c];
                    kk += (double)x[t * d + c] * (double)x[t * d + c];
                }
                e = (double)s[i * n + t] - want;
                sum += e * e * d / (qq * kk);
                xy += want * (double)s[i * n + t];
                xx += want * want;
            }
        }
        coded_free(&a);
    }
    *spread = sum / (seeds * n * nq);
    *slope = xy / xx;
    free(x);
}
TEST(scores_are_right_on_average_and_spread_as_the_card_says) {
    static const struct { const char *text; double want; } line[] = {
        { "qjl(m=1,outliers=0,sketch=gauss,seed=%d)", 1.55 }, { "qjl(m=2,outliers=0,sketch=gauss,seed=%d)", .77 },
        { "qjl(m=4,outliers=0,sketch=gauss,seed=%d)", .39 }, { "qjl(m=1,outliers=0,seed=%d)", .57 },
        { "qjl(m=2,outliers=0,seed=%d)", .285 }, { "qjl(m=4,outliers=0,seed=%d)", .143 }
    };
    double spread[6], slope;
    int i;
    for (i = 0; i < 6; i++) {
        measure(line[i].text, 'G', 64, 60, &spread[i], &slope);
        CHECK_NEAR(spread[i], line[i].want, .05 * line[i].want);
        CHECK_NEAR(slope, 1 + 1 / (4.0 * 64), .03);
    }
    for (i = 0; i < 3; i++) CHECK_NEAR(spread[i] / spread[i + 3], 2.75, .2); /* (pi/2) / (pi/2 - 1) */
}
TEST(the_outliers_own_sketch_lowers_the_error_on_keys_with_outlier_channels) {
    double with, without, slope;
    measure("qjl(m=2,mo=2,outliers=8,seed=%d)", 'O', 64, 40, &with, &slope);
    CHECK_NEAR(slope, 1, .04);
    measure("qjl(m=4,outliers=0,seed=%d)", 'O', 64, 40, &without, &slope); /* as many signs in one sketch */
    CHECK(with < .5 * without);
}
/* Share of queries whose best of 64 keys is the best by the estimate, too. */
static double top1(const char *text) {
    enum { D = 64, N = 64, NQ = 200 };
    static float x[N * D], q[NQ * D], s[NQ * N], y[NQ * N];
    int i, t, c, same = 0;
    coded a;
    figure_rows(x, 'G', N, D, 1);
    figure_rows(q, 'G', NQ, D, 2);
    if (!coded_make(&a, text, NULL, D, x, N)) return -1;
    coded_dot(&a, s, q, NQ);
    coded_free(&a);
    for (i = 0; i < NQ; i++) {
        int best = 0, guess = 0;
        for (t = 0; t < N; t++) {
            y[t] = 0;
            for (c = 0; c < D; c++) y[t] += q[i * D + c] * x[t * D + c];
            if (y[t] > y[best]) best = t;
            if (s[i * N + t] > s[i * N + guess]) guess = t;
        }
        same += best == guess;
    }
    return (double)same / NQ;
}
TEST(a_longer_sketch_finds_the_best_key_more_often) {
    const double one = top1("qjl(m=1,outliers=0)"), two = top1("qjl(m=2,outliers=0)");
    const double eight = top1("qjl(m=8,outliers=0)");
    CHECK(one > .25 && two > one + .05 && eight > two + .1); /* 1 of 64 by chance */
}
TEST(the_head_names_the_channels_of_largest_norm) {
    static float x[32 * 64];
    static const int want[4] = { 3, 17, 38, 59 };
    coded c;
    int i, j, found = 0;
    figure_rows(x, 'O', 32, 64, 5);
    REQUIRE(coded_make(&c, "qjl(outliers=4)", NULL, 64, x, 32));
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++) found += c.b.head[i] == want[j];
    CHECK(found == 4);
    coded_free(&c);
    memset(x, 0, sizeof x);
    REQUIRE(coded_make(&c, "qjl(outliers=4)", NULL, 64, x, 32)); /* equal norms: lower channels first */
    for (i = 0; i < 4; i++) CHECK(c.b.head[i] == i);
    coded_free(&c);
}
static const int sizes[] = { 1, 2, 7, 33, 64, 80, 128, 300 };
TEST(scores_are_those_of_the_decoded_rows) {
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        coded_check_sums("qjl", NULL, sizes[i], 32);
        coded_check_sums("qjl(m=1,outliers=0,sketch=rht)", NULL, sizes[i], 5);
        coded_check_sums("qjl(m=1.3,mo=0.7,outliers=3,sketch=gauss)", NULL, sizes[i], 1);
    }
}
TEST(bad_input_gives_finite_rows_and_zeros_stay) {
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) coded_check_bad("qjl(m=1,mo=1)", sizes[i]);
}
TEST(fast_twins_give_the_plain_ones_scores) {
    static const char *const text[] = { "qjl(sketch=rht)", "qjl(m=4,mo=1,sketch=rht)",
                                        "qjl(m=1,outliers=0,sketch=rht)", "qjl(m=5,mo=3,sketch=rht)",
                                        "qjl(m=1.3,mo=0.7,sketch=rht)" };
    static const char *const path[] = { "avx2", "avx512" };
    static const int rows[] = { 1, 5, 16, 31, 32, 50, 128 };
    int d, i, k, p, found = 0;
    for (p = 0; p < 2; p++)
        for (k = 0; k < 5; k++)
            for (d = 16; d <= 192; d += d < 64 ? 24 : 32)
                for (i = 0; i < 7; i++) found += coded_check_twin(text[k], path[p], d, rows[i]);
    if (!found) SKIP("no AVX2 here");
}
TEST(a_head_that_names_no_channel_is_not_valid) {
    static float x[32 * 64];
    coded c;
    check_rows(x, 32, 64, 3);
    REQUIRE(coded_make(&c, "qjl", NULL, 64, x, 32));
    CHECK(c.u.fn.valid(&c.b));
    c.b.head[7] = 64;
    CHECK(!c.u.fn.valid(&c.b));
    coded_free(&c);
}
TEST(it_is_for_keys_only) { CHECK(check_is("qjl", KVMEM_CODEC_KEYS, 64)); }
TEST(the_preset_is_the_card_s_composition) {
    kvmem_recipe r = kvmem_recipe_default();
    REQUIRE_OK(kvmem_recipe_parse(&r, "qjl", NULL));
    CHECK(r.page == 32 && r.amount.kind == KVMEM_ALL);
    CHECK(!strcmp(r.stage[KVMEM_CODEC_K].entry->word, "qjl"));
    CHECK(!strcmp(r.stage[KVMEM_CODEC_V].entry->word, "kivi"));
    CHECK(kvmem__param_of(r.stage[KVMEM_CODEC_K].entry, r.stage[KVMEM_CODEC_K].par, "residual", 0) == 128);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_qjl");
    RUN(the_card_s_key_scores_as_printed);
    RUN(columns_are_orthogonal_of_length_sqrt_d);
    RUN(bits_a_value_are_the_card_s);
    RUN(scores_are_right_on_average_and_spread_as_the_card_says);
    RUN(the_outliers_own_sketch_lowers_the_error_on_keys_with_outlier_channels);
    RUN(a_longer_sketch_finds_the_best_key_more_often);
    RUN(the_head_names_the_channels_of_largest_norm);
    RUN(scores_are_those_of_the_decoded_rows);
    RUN(bad_input_gives_finite_rows_and_zeros_stay);
    RUN(fast_twins_give_the_plain_ones_scores);
    RUN(a_head_that_names_no_channel_is_not_valid);
    RUN(it_is_for_keys_only);
    RUN(the_preset_is_the_card_s_composition);
    return test_end();
}
