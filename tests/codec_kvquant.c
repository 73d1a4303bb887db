/* KVQuant: the card's example and table, outliers, hard inputs, blocks that are cut. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#define FIGURE_ROWS 4096
#include "test.h"
#include "coded.h"
#include "figures.h"
#include "coded_check.h"

/* A codec whose state is set by hand: the card's levels and one range for all channels. */
static int by_hand(coded *c, const char *text, int d, float off, float rg) {
    const float lut[4] = { -1, -.35f, .25f, .9f };
    int i;
    if (!coded_begin(c, text, NULL, d)) return 0;
    memcpy(c->state, lut, sizeof lut);
    memcpy(c->state + 4, lut, sizeof lut);
    for (i = 0; i < d; i++) { c->state[8 + i] = off; c->state[8 + d + i] = rg; }
    return 1;
}
TEST(example_of_the_card) {
    const float x[4] = { 2.6f, -1.5f, 5.0f, 12 }, want[4] = { 3.0f, -2.0f, 5.6f, 12 };
    float y[4];
    coded c;
    int i;
    REQUIRE(by_hand(&c, "kvquant(bits=2)", 4, 2, 4));
    coded_encode(&c, x, 1);
    coded_decode(&c, y);
    for (i = 0; i < 4; i++) CHECK_NEAR(y[i], want[i], 1e-6);
    CHECK((c.b.rows[0] & 63) == (2 | 0 << 2 | 3 << 4) && c.b.head_bytes == 4 + 4 && kvmem__le32(c.b.head) == 1);
    coded_free(&c);
}
TEST(coding_decoded_values_again_changes_nothing) {
    static float x[64 * 40], y[64 * 40], z[64 * 40];
    coded c;
    int i;
    figure_rows(x, 'O', 64, 40, 3);
    REQUIRE(coded_make(&c, "kvquant(bits=3)", NULL, 40, x, 64));
    coded_decode(&c, y);
    free(c.b.head);
    free(c.b.rows);
    coded_encode(&c, y, 64);
    coded_decode(&c, z);
    for (i = 0; i < 64 * 40; i++) CHECK(y[i] == z[i]);
    coded_free(&c);
}
TEST(levels_rise_inside_the_range) {
    static float x[256 * 64];
    const char *const texts[3] = { "kvquant(bits=4)", "kvquant_v(bits=4)", "kvquant(bits=8,sparse=5)" };
    int k, i;
    figure_rows(x, 'O', 256, 64, 4);
    for (k = 0; k < 3; k++) {
        coded c;
        REQUIRE(coded_make(&c, texts[k], NULL, 64, x, 256));
        for (i = 0; i < (k == 2 ? 256 : 16); i++)
            CHECK(c.state[i] >= -1 && c.state[i] <= 1 && (!i || c.state[i] >= c.state[i - 1]));
        coded_free(&c);
    }
}
TEST(all_outliers_are_exact_halves) {
    const char *const texts[2] = { "kvquant(bits=2,sparse=100)", "kvquant_v(bits=2,sparse=100)" };
    const int dims[4] = { 1, 2, 7, 64 };
    static float x[32 * 64], y[32 * 64];
    int k, s, i;
    for (k = 0; k < 2; k++) {
        for (s = 0; s < 4; s++) {
            const int d = dims[s];
            coded c;
            figure_rows(x, 'G', 32, d, 5);
            for (i = 0; i < 32 * d; i++) x[i] = kvmem__f16_to_f32(kvmem__f32_to_f16(x[i]));
            REQUIRE(coded_make(&c, texts[k], NULL, d, x, 32));
            coded_decode(&c, y);
            for (i = 0; i < 32 * d; i++) CHECK_NEAR(x[i], y[i], 5e-4);
            coded_free(&c);
        }
    }
}
TEST(outliers_come_back_as_they_were) {
    static float x[64 * 64], y[64 * 64];
    int i, found = 0;
    coded c;
    figure_rows(x, 'G', 64, 64, 6);
    REQUIRE(coded_make(&c, "kvquant(bits=2,sparse=2)", NULL, 64, x, 64));
    coded_decode(&c, y);
    for (i = 0; i < 64 * 64; i++) {
        const float off = c.state[8 + i % 64], rg = c.state[8 + 64 + i % 64];
        if (fabsf(x[i] - off) <= rg * 1.0001f) continue;
        CHECK(y[i] == kvmem__f16_to_f32(kvmem__f32_to_f16(x[i])));
        found++;
    }
    CHECK(found == (int)(c.b.head_bytes - 4) / 4 && found > 64);
    coded_free(&c);
}
TEST(cap_keeps_the_farthest_outliers_of_a_token) {
    float x[8] = { 100, 50, -70, 20, 1, -30, 0, 100 }, y[8];
    coded c;
    int i;
    REQUIRE(by_hand(&c, "kvquant(bits=2,cap=2)", 8, 0, 1));
    coded_encode(&c, x, 1);
    coded_decode(&c, y);
    CHECK(c.b.head_bytes == 4 + 4 * 4);
    for (i = 0; i < 8; i++)
        CHECK(y[i] == (i == 0 || i == 2 || i == 5 || i == 7 ? x[i] : i == 1 || i == 3 || i == 4 ? .9f : .25f));
    coded_free(&c);
}
TEST(without_outliers_values_stop_at_the_range) {
    float x[4] = { 100, -100, .2f, .9f }, y[4];
    coded c;
    REQUIRE(by_hand(&c, "kvquant(bits=2,sparse=0)", 4, 0, 1));
    coded_encode(&c, x, 1);
    coded_decode(&c, y);
    CHECK(y[0] == .9f && y[1] == -1 && y[2] == .25f && y[3] == .9f && c.b.head_bytes == 4);
    coded_free(&c);
}
TEST(qnorm_keeps_mean_and_deviation) {
    static float x[1024 * 16], y[1024 * 16];
    int k;
    double mean[3], dev[3];
    for (k = 0; k < 3; k++) {
        const float *p = k == 2 ? x : y;
        double s = 0, ss = 0;
        int i;
        coded c;
        figure_rows(x, 'G', 1024, 16, 8);
        REQUIRE(coded_make(&c, k ? "kvquant(bits=2,qnorm=1,sparse=0)" : "kvquant(bits=2,sparse=0)", NULL, 16, x,
                           1024));
        coded_decode(&c, y);
        for (i = 0; i < 1024 * 16; i++) { s += (double)p[i]; ss += (double)p[i] * (double)p[i]; }
        mean[k] = s / (1024 * 16);
        dev[k] = sqrt(ss / (1024 * 16) - mean[k] * mean[k]);
        coded_free(&c);
    }
    CHECK(fabs(dev[0] - dev[2]) > .02 && fabs(dev[1] - dev[2]) < .01);
    CHECK(fabs(mean[1] - mean[2]) < .01);
}
TEST(bits_are_those_of_the_card) {
    static float x[1024 * 128];
    const int dims[2] = { 64, 128 };
    int s, t;
    for (s = 0; s < 2; s++) { /* pages of 64 after a lesson of 1024 rows */
        const int d = dims[s];
        double bits = 0;
        coded c;
        figure_rows(x, 'G', 1024, d, 9);
        REQUIRE(coded_begin(&c, "kvquant(bits=3)", NULL, d));
        coded_learn(&c, x, 1024);
        for (t = 0; t < 1024; t += 64) {
            coded_encode(&c, x + t * d, 64);
            bits += coded_bits(&c) / 16;
            free(c.b.head);
            free(c.b.rows);
        }
        c.b.head = c.b.rows = NULL;
        CHECK_NEAR(bits, 3 + 32 * 12.0 / 1024 + 32.0 / (64 * d), 1e-6); /* 6 of 1024 lie beyond either quantile */
        c.b.n = 64;
        CHECK_NEAR((double)c.u.fn.head_bytes(&c.b, NULL), 4 + 4 * .01 * 64 * d, 4); /* the estimate */
        coded_free(&c);
        REQUIRE(coded_make(&c, "kvquant_v(bits=3)", NULL, d, x, 64));
        CHECK_NEAR(coded_bits(&c), 3 + 32.0 / d + 2 * 24.0 / d, 1e-9);
        coded_free(&c);
    }
}
TEST(errors_are_those_of_the_card) { /* unweighted k-means, 1 % outliers */
    FIGURE("kvquant(bits=2)", 'G', 64, 0, .0963, .03);
    FIGURE("kvquant(bits=2)", 'O', 64, 0, .0154, .03);
    FIGURE("kvquant(bits=2)", 'S', 64, 0, .0956, .03);
    FIGURE("kvquant(bits=3)", 'G', 64, 0, .0262, .03);
    FIGURE("kvquant(bits=3)", 'O', 64, 0, .0042, .03);
    FIGURE("kvquant(bits=3)", 'S', 64, 0, .0261, .03);
    FIGURE("kvquant(bits=4)", 'G', 64, 0, .0069, .03);
    FIGURE("kvquant(bits=4)", 'O', 64, 0, .0011, .03);
    FIGURE("kvquant(bits=4)", 'S', 64, 0, .0068, .03);
    FIGURE("kvquant(bits=2)", 'G', 128, 0, .0965, .03);
    FIGURE("kvquant(bits=2)", 'O', 128, 0, .0250, .03);
    FIGURE("kvquant(bits=2)", 'S', 128, 0, .0959, .03);
    FIGURE("kvquant(bits=3)", 'G', 128, 0, .0262, .03);
    FIGURE("kvquant(bits=3)", 'O', 128, 0, .0068, .03);
    FIGURE("kvquant(bits=3)", 'S', 128, 0, .0260, .03);
    FIGURE("kvquant(bits=4)", 'G', 128, 0, .0069, .03);
    FIGURE("kvquant(bits=4)", 'O', 128, 0, .0018, .03);
    FIGURE("kvquant(bits=4)", 'S', 128, 0, .0068, .03);
}
TEST(learned_levels_beat_even_ones_on_normal_rows) { /* per channel both; 1.6 times at 2 bits */
    const double even = figure_error("kivi(bits=2,axis=channel)", 'G', 64, 32, FIGURE_REL);
    CHECK(even > 1.5 * figure_error("kvquant(bits=2)", 'G', 64, 0, FIGURE_REL));
}
TEST(keys_before_rope_code_better_where_channels_have_means) {
    enum { N = 512, D = 64 };
    static float x[N * D], r[N * D], y[N * D];
    float freq[D / 2];
    double before, after;
    kvmem_rope rope;
    coded c;
    int t, i;
    for (i = 0; i < D / 2; i++) freq[i] = (float)pow(10000, -2.0 * i / D);
    memset(&rope, 0, sizeof rope);
    rope.n_rot = D;
    rope.neox = 1;
    rope.mscale = 1;
    rope.inv_freq = freq;
    figure_rows(x, 'O', N, D, 12);
    for (t = 0; t < N; t++) kvmem__rope_row(r + t * D, x + t * D, 1, D, &rope, t, 1);
    REQUIRE(coded_make(&c, "kvquant(bits=2)", NULL, D, x, N));
    coded_decode(&c, y);
    before = figure_ratio(x, y, N, D, FIGURE_REL); /* the rotation that follows keeps every length */
    coded_free(&c);
    REQUIRE(coded_make(&c, "kvquant_post(bits=2)", NULL, D, r, N));
    coded_decode(&c, y);
    after = figure_ratio(r, y, N, D, FIGURE_REL);
    coded_free(&c);
    CHECK(before < .5 * after);
}
TEST(preset_runs_in_a_cache) {
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    kvmem_bytes x, y;
    double e[3];
    int i;
    const char *const texts[3] = { "full codec.k=kvquant(bits=2) codec.v=kvquant_v(bits=2)", "kvquant",
                                   "full codec.k=kvquant_post(bits=6) codec.v=kvquant_v(bits=6)" };
    CHECK(coded_run("full codec=f16", 300, 20, b, &y) == 320);
    for (i = 0; i < 3; i++) {
        CHECK(coded_run(texts[i], 300, 20, a, &x) == 320);
        e[i] = figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL);
    }
    CHECK(e[0] > e[1] && e[1] > e[2] && e[2] > 0 && e[2] < .01 && e[1] < .2);
    CHECK(coded_run("snapkv budget=100 codec.k=kvquant codec.v=kvquant_v", 300, 20, a, &x) > 0); /* cut blocks */
    for (i = 0; i < 4 * CODED_RUN_D; i++) CHECK(a[i] == a[i]);
}
TEST(cut_blocks_keep_the_outliers_of_their_rows) {
    static float x[64 * 33], y[64 * 33], z[64 * 33];
    int kept[64], m = 0, t;
    coded c;
    figure_rows(x, 'G', 64, 33, 10);
    REQUIRE(coded_make(&c, "kvquant(bits=3,sparse=10)", NULL, 33, x, 64));
    coded_decode(&c, y);
    for (t = 0; t < 64; t++) if (t % 3 && t != 10) kept[m++] = t;
    coded_cut(&c, kept, m);
    coded_decode(&c, z);
    for (t = 0; t < m; t++) CHECK(!memcmp(z + t * 33, y + kept[t] * 33, 33 * sizeof(float)));
    for (t = 0; t < 5; t++) kept[t] = 2 * t; /* once more, from the cut block */
    coded_cut(&c, kept, 5);
    coded_decode(&c, y);
    for (t = 0; t < 5; t++) CHECK(!memcmp(y + t * 33, z + 2 * t * 33, 33 * sizeof(float)));
    coded_free(&c);
}
TEST(constant_channels_come_back) {
    const char *const texts[3] = { "kvquant(bits=2)", "kvquant_v(bits=2)", "kvquant(bits=3,qnorm=1,sparse=0)" };
    float x[16 * 24], y[16 * 24];
    int k, i;
    for (k = 0; k < 3; k++) {
        coded c;
        for (i = 0; i < 16 * 24; i++) x[i] = k == 1 ? 3.25f : (float)(i % 24) - 7;
        REQUIRE(coded_make(&c, texts[k], NULL, 24, x, 16));
        coded_decode(&c, y);
        for (i = 0; i < 16 * 24; i++) CHECK(y[i] == x[i]);
        coded_free(&c);
    }
}
TEST(damaged_heads_read_nothing_beyond_them) {
    static float x[8 * 16], y[8 * 16];
    int i;
    coded c;
    figure_rows(x, 'G', 8, 16, 11);
    REQUIRE(coded_make(&c, "kvquant(bits=3,sparse=20)", NULL, 16, x, 8));
    CHECK(c.u.fn.valid(&c.b));
    for (i = 0; i < 400; i++) {
        c.b.head[(size_t)(test_unit() * (double)c.b.head_bytes)] = (uint8_t)(test_unit() * 256);
        coded_decode(&c, y);
    }
    CHECK(!c.u.fn.valid(&c.b));
    c.b.head_bytes = 3;
    CHECK(!c.u.fn.valid(&c.b));
    coded_decode(&c, y);
    coded_free(&c);
}
/* What holds for every codec: odd sizes, hard inputs, cut blocks, fast twins. */
static const char *const checked[6] = { "kvquant(bits=2)",
                                         "kvquant(bits=3,sparse=5,cap=1)",
                                         "kvquant_post(bits=4)",
                                         "kvquant_v(bits=2)",
                                         "kvquant_v(bits=3,sparse=20)",
                                         "kvquant(bits=8,qnorm=1)" };
TEST(facts_of_every_codec) {
    coded_check_all(checked, 6, 300);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_kvquant");
    RUN(example_of_the_card);
    RUN(coding_decoded_values_again_changes_nothing);
    RUN(levels_rise_inside_the_range);
    RUN(all_outliers_are_exact_halves);
    RUN(outliers_come_back_as_they_were);
    RUN(cap_keeps_the_farthest_outliers_of_a_token);
    RUN(without_outliers_values_stop_at_the_range);
    RUN(qnorm_keeps_mean_and_deviation);
    RUN(bits_are_those_of_the_card);
    RUN(errors_are_those_of_the_card);
    RUN(learned_levels_beat_even_ones_on_normal_rows);
    RUN(keys_before_rope_code_better_where_channels_have_means);
    RUN(preset_runs_in_a_cache);
    RUN(cut_blocks_keep_the_outliers_of_their_rows);
    RUN(constant_channels_come_back);
    RUN(damaged_heads_read_nothing_beyond_them);
    RUN(facts_of_every_codec);
    return test_end();
}
