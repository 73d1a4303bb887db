/* RotateKV: the card's example and table, order and rotation undone, hard inputs. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#define FIGURE_ROWS 4096
#include "test.h"
#include "coded.h"
#include "figures.h"
#include "coded_check.h"

TEST(example_of_the_card) { /* in the codec's own space: turned rows are what the group sees */
    const float row[4] = { -1, .2f, .9f, 2 }, want[4] = { -.8f, 0, .8f, 1.6f };
    float x[4], y[4];
    coded c;
    int i;
    memcpy(x, row, sizeof x);
    kvmem__rht_back(x, NULL, 4, 4);
    REQUIRE(coded_begin(&c, "rotatekv(bits=2,clip=0.8,order=0)", NULL, 4));
    coded_encode(&c, x, 1);
    c.u.fn.expand(&c.b, y, 0, 1);
    for (i = 0; i < 4; i++) CHECK_NEAR(y[i], want[i], 1e-3);
    CHECK(kvmem__le16(c.b.rows + 2) == 1 && c.b.rows[4] == (0 | 1 << 2 | 2 << 4 | 3 << 6)); /* z, codes */
    CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(c.b.rows)), .8, 1e-3);
    coded_free(&c);
}
TEST(order_is_a_permutation_by_signed_sums) {
    static float x[64 * 64], y[64];
    float sum[64];
    char seen[64];
    coded c;
    int t, i;
    figure_rows(x, 'O', 64, 64, 2);
    REQUIRE(coded_begin(&c, "rotatekv", NULL, 64));
    coded_learn(&c, x, 64);
    memset(sum, 0, sizeof sum);
    memset(seen, 0, sizeof seen);
    for (t = 0; t < 64; t++) {
        memcpy(y, x + t * 64, sizeof y);
        kvmem__fwht(y, 64);
        for (i = 0; i < 64; i++) sum[i] += y[i];
    }
    for (i = 0; i < 64; i++) {
        seen[(int)c.state[i]]++;
        CHECK(!i || sum[(int)c.state[i]] >= sum[(int)c.state[i - 1]]);
    }
    for (i = 0; i < 64; i++) CHECK(seen[i] == 1);
    coded_free(&c);
}
TEST(way_back_undoes_order_and_rotation) {
    const int dims[6] = { 1, 7, 33, 64, 80, 128 };
    static float x[32 * 128], y[128], z[128];
    int s, i;
    for (s = 0; s < 6; s++) {
        const int d = dims[s];
        double qx = 0, yz = 0;
        coded c;
        figure_rows(x, 'O', 32, d, 3);
        REQUIRE(coded_begin(&c, "rotatekv", NULL, d));
        coded_learn(&c, x, 32);
        c.u.fn.q_prepare(&c.b, y, x);
        c.u.fn.finish(&c.b, z, y);
        for (i = 0; i < d; i++) CHECK_NEAR(z[i], x[i], 1e-5);
        c.u.fn.q_prepare(&c.b, z, x + d);
        for (i = 0; i < d; i++) { qx += (double)x[i] * (double)x[d + i]; yz += (double)y[i] * (double)z[i]; }
        CHECK_NEAR(qx, yz, 1e-4 * (1 + fabs(qx)));
        coded_free(&c);
    }
}
TEST(many_bits_are_near_the_rows) {
    static float x[64 * 128], y[64 * 128];
    coded c;
    figure_rows(x, 'S', 64, 128, 4);
    REQUIRE(coded_make(&c, "rotatekv(bits=8,group=32)", NULL, 128, x, 64));
    coded_decode(&c, y);
    CHECK(figure_ratio(x, y, 64, 128, FIGURE_REL) < 5e-5);
    coded_free(&c);
}
TEST(bits_are_those_of_the_card) {
    static float x[8 * 128];
    coded c;
    REQUIRE(coded_make(&c, "rotatekv", NULL, 128, x, 8));
    CHECK(coded_bits(&c) == 2.25);
    coded_free(&c);
    REQUIRE(coded_make(&c, "rotatekv", NULL, 64, x, 8));
    CHECK(coded_bits(&c) == 2.5);
    coded_free(&c);
    REQUIRE(coded_make(&c, "rotatekv(group=32,bits=4)", NULL, 80, x, 8)); /* groups of 32, 32, 16 */
    CHECK_NEAR(coded_bits(&c), 4 + 3 * 32.0 / 80, 1e-9);
    coded_free(&c);
}
/* The card's rows use random signs, mean over 16 seeds: signs first, the codec turns without. */
static double signed_error(const char *text, int kind, int d) {
    static float x[1024 * 128], y[1024 * 128], s[128];
    double sum = 0;
    int seed, t, i;
    for (seed = 1; seed <= 16; seed++) {
        coded c;
        figure_rows(x, kind, 1024, d, 77);
        kvmem__signs(s, d, (uint64_t)seed);
        for (t = 0; t < 1024; t++) for (i = 0; i < d; i++) x[t * d + i] *= s[i];
        if (!coded_make(&c, text, NULL, d, x, 1024)) return -1;
        coded_decode(&c, y);
        sum += figure_ratio(x, y, 1024, d, FIGURE_REL);
        coded_free(&c);
    }
    return sum / 16;
}
#define NEAR_CARD(text, kind, d, want) do {                                                          \
    const double got_ = signed_error(text, kind, d);                                                 \
    if (!(fabs(got_ - (want)) <= .03 * (want)))                                                      \
        FAIL_AT("%s on %c, d=%d: %.5f, the card says %.5f", text, kind, d, got_, (double)(want)); } while (0)
TEST(errors_are_those_of_the_card) { /* rotation and affine per token, clipped at 2 bits */
    NEAR_CARD("rotatekv(order=0,zero=half)", 'G', 64, .133);
    NEAR_CARD("rotatekv(order=0,zero=half)", 'O', 64, .122);
    NEAR_CARD("rotatekv(order=0,zero=half)", 'S', 64, .097);
    NEAR_CARD("rotatekv(order=0,zero=half)", 'G', 128, .162);
    NEAR_CARD("rotatekv(order=0,zero=half)", 'O', 128, .142);
    NEAR_CARD("rotatekv(order=0,zero=half)", 'S', 128, .124);
    NEAR_CARD("rotatekv(order=0,zero=half,clip=1)", 'G', 64, .202);
    NEAR_CARD("rotatekv(order=0,zero=half,clip=1)", 'G', 128, .250);
    NEAR_CARD("rotatekv(order=0,zero=half,bits=3)", 'G', 64, .0369);
    NEAR_CARD("rotatekv(order=0,zero=half,bits=4)", 'G', 64, .0080);
    NEAR_CARD("rotatekv(order=0,zero=half,bits=4,group=32)", 'O', 128, .0060);
}
TEST(a_whole_zero_point_costs_a_few_percent) {
    const double whole = signed_error("rotatekv(order=0)", 'G', 64);
    const double half = signed_error("rotatekv(order=0,zero=half)", 'G', 64);
    CHECK(whole > 1.03 * half && whole < 1.15 * half);
}
TEST(order_helps_where_turned_channels_keep_their_means) {
    const double plain = figure_error("rotatekv(order=0,group=16)", 'O', 128, 0, FIGURE_REL);
    const double ordered = figure_error("rotatekv(group=16)", 'O', 128, 0, FIGURE_REL);
    const double g0 = figure_error("rotatekv(order=0,group=16)", 'G', 128, 0, FIGURE_REL);
    const double g1 = figure_error("rotatekv(group=16)", 'G', 128, 0, FIGURE_REL);
    CHECK(ordered < .8 * plain && fabs(g1 / g0 - 1) < .02);
}
TEST(narrow_ranges_far_from_zero_keep_their_place) {
    float x[4], y[4];
    coded c;
    int i;
    for (i = 0; i < 4; i++) y[i] = 1000 + .001f * (float)i; /* in the codec's own space */
    memcpy(x, y, sizeof x);
    kvmem__rht_back(x, NULL, 4, 4);
    REQUIRE(coded_begin(&c, "rotatekv(clip=1,order=0)", NULL, 4));
    coded_encode(&c, x, 1);
    c.u.fn.expand(&c.b, y, 0, 1);
    for (i = 0; i < 4; i++) CHECK_NEAR(y[i], 1000, 1);
    coded_free(&c);
}
TEST(damaged_orders_stay_inside_the_row) {
    static float x[8 * 64], y[8 * 64];
    int i;
    coded c;
    figure_rows(x, 'G', 8, 64, 5);
    REQUIRE(coded_make(&c, "rotatekv", NULL, 64, x, 8));
    CHECK(c.u.fn.valid(&c.b));
    c.state[3] = c.state[4];
    CHECK(!c.u.fn.valid(&c.b));
    for (i = 0; i < 64; i++) c.state[i] = i % 3 ? (i % 2 ? -1e30f : 1e30f) : NAN;
    CHECK(!c.u.fn.valid(&c.b));
    coded_decode(&c, y);
    coded_free(&c);
}
TEST(preset_runs_in_a_cache) {
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    kvmem_bytes x, y;
    double e;
    CHECK(coded_run("full codec=f16", 300, 20, b, &y) == 320);
    CHECK(coded_run("rotatekv", 300, 20, a, &x) == 320);
    e = figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL);
    CHECK(e > 0 && e < 1);
    CHECK(x.live.k + x.live.v < .8 * (double)(y.live.k + y.live.v)); /* 4 bits at d = 16, 20 sinks */
    CHECK(coded_run("full codec=rotatekv(bits=6,sinks=20)", 300, 20, a, &x) == 320);
    CHECK(figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL) < .05 * e);
}
/* What holds for every codec: odd sizes, hard inputs, cut blocks, fast twins. */
static const char *const checked[5] = { "rotatekv",
                                         "rotatekv(zero=half)",
                                         "rotatekv(bits=3,group=5)",
                                         "rotatekv(bits=8,order=0,group=16)",
                                         "rotatekv(bits=4)" };
TEST(facts_of_every_codec) {
    coded_check_all(checked, 5, 300);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_rotatekv");
    RUN(example_of_the_card);
    RUN(order_is_a_permutation_by_signed_sums);
    RUN(way_back_undoes_order_and_rotation);
    RUN(many_bits_are_near_the_rows);
    RUN(bits_are_those_of_the_card);
    RUN(errors_are_those_of_the_card);
    RUN(a_whole_zero_point_costs_a_few_percent);
    RUN(order_helps_where_turned_channels_keep_their_means);
    RUN(narrow_ranges_far_from_zero_keep_their_place);
    RUN(damaged_orders_stay_inside_the_row);
    RUN(preset_runs_in_a_cache);
    RUN(facts_of_every_codec);
    return test_end();
}
