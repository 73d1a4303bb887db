/* Key channels that are dropped: which, and that what is left gives the logits of keys with zeros in their place. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "coded.h"
#include "figures.h"
#include "coded_check.h"
#include "world.h"

enum { D = 16, R = 2, T = 50, W = 32 };
static float q_rows[T * R * D], k_rows[T * D];
static void fill(void) {
    int i;
    for (i = 0; i < T * R * D; i++) q_rows[i] = (float)(test_normal() * (1 + i % D % 5));
    for (i = 0; i < T * D; i++) k_rows[i] = (float)(test_normal() * (1 + i % D % 3));
}
static int made(coded *c, const char *text) { /* queries of T tokens, keys of T tokens */
    int t;
    if (!coded_begin(c, text, NULL, D)) return 0;
    for (t = 0; t < T; t++) coded_watch(c, q_rows + t * R * D, R);
    coded_learn(c, k_rows, T);
    coded_encode(c, k_rows, T);
    return 1;
}
TEST(channels_are_those_of_the_largest_product_of_mean_squares) {
    coded c;
    double e[D];
    int t, i, j, dropped;
    fill();
    for (i = 0; i < D; i++) {
        double q2 = 0, k2 = 0;
        for (t = T - W; t < T; t++)
            for (j = 0; j < R; j++) q2 += pow((double)q_rows[(t * R + j) * D + i], 2) / (W * R);
        for (t = 0; t < T; t++) k2 += pow((double)k_rows[t * D + i], 2) / T;
        e[i] = q2 * k2;
    }
    REQUIRE(made(&c, "think(ratio=0.4,window=32)"));
    dropped = (int)(D * 0.4);
    CHECK(c.u.width == D - dropped);
    for (i = 0; i < D; i++) {
        int larger = 0, is_kept = 0;
        for (j = 0; j < D; j++) larger += e[j] > e[i];
        for (j = 0; j < c.u.width; j++) is_kept += (int)c.state[j] == i;
        CHECK(is_kept == (larger < D - dropped));
    }
    coded_free(&c);
}
TEST(packed_keys_give_the_logits_of_keys_with_zeros) {
    static const char *const texts[] = { "think(ratio=0.5,store=f32)", "think(ratio=0.3,store=f32)",
                                         "think(ratio=0.95,store=f32)", "think(ratio=1,store=f32)" };
    static float y[T * D], s[3 * T], q[3 * D];
    int m, i, t, a;
    fill();
    for (i = 0; i < 3 * D; i++) q[i] = (float)test_normal();
    for (m = 0; m < 4; m++) {
        coded c;
        REQUIRE(made(&c, texts[m]));
        coded_decode(&c, y);
        coded_dot(&c, s, q, 3);
        for (t = 0; t < T; t++) {
            int zeros = 0;
            for (i = 0; i < D; i++) {
                CHECK(y[t * D + i] == 0 || y[t * D + i] == k_rows[t * D + i]);
                zeros += y[t * D + i] == 0;
            }
            CHECK(zeros == D - c.u.width && c.u.width >= 1);
            for (a = 0; a < 3; a++) {
                double want = 0;
                for (i = 0; i < D; i++) want += (double)q[a * D + i] * (double)y[t * D + i];
                CHECK_NEAR(s[a * T + t], want, 1e-5);
            }
        }
        coded_free(&c);
    }
}
TEST(nothing_dropped_is_the_plain_row_codec) {
    coded a, b;
    fill();
    REQUIRE(made(&a, "think(ratio=0,store=f16)"));
    REQUIRE(coded_make(&b, "f16", NULL, D, k_rows, T));
    CHECK(a.b.row_bytes == b.b.row_bytes && !memcmp(a.b.rows, b.b.rows, a.b.row_bytes * T));
    coded_free(&a);
    coded_free(&b);
}
TEST(bits_are_those_of_what_is_left) {
    coded c;
    fill();
    REQUIRE(made(&c, "think(ratio=0.5)"));
    CHECK(coded_bits(&c) == 8);
    coded_free(&c);
    REQUIRE(made(&c, "think(ratio=0.75,store=f32)"));
    CHECK(coded_bits(&c) == 8);
    coded_free(&c);
}
TEST(ties_keep_the_lower_channel_and_no_query_counts_keys_alone) {
    static float ones[T * D];
    coded c;
    int i;
    for (i = 0; i < T * D; i++) ones[i] = 1;
    REQUIRE(coded_make(&c, "think(ratio=0.5)", NULL, D, ones, T));
    for (i = 0; i < D / 2; i++) CHECK(c.state[i] == (float)i);
    coded_free(&c);
    for (i = 0; i < T * D; i++) ones[i] = (float)(i % D);
    REQUIRE(coded_make(&c, "think(ratio=0.5)", NULL, D, ones, T));
    for (i = 0; i < D / 2; i++) CHECK(c.state[i] == (float)(D / 2 + i));
    coded_free(&c);
}
TEST(a_file_cannot_name_channels_that_are_not_there) {
    static const float bad[] = { -1, D, 1e9f, 0.5f, NAN };
    coded c;
    int i;
    fill();
    REQUIRE(made(&c, "think(ratio=0.5)"));
    CHECK(c.u.fn.valid(&c.b));
    for (i = 0; i < 5; i++) {
        const float was = c.state[3];
        c.state[3] = bad[i];
        if (bad[i] != 0.5f) CHECK(!c.u.fn.valid(&c.b));
        c.state[3] = was;
    }
    c.state[2] = c.state[3];
    CHECK(!c.u.fn.valid(&c.b));
    coded_free(&c);
}
/* One layer without RoPE; attention over keys whose channels were set to zero by hand, in double. */
TEST(attention_is_that_over_keys_with_zeros_and_the_newest_whole) {
    enum { PROMPT = 96, MORE = 5, N = PROMPT + MORE, d = 8 };
    static float out[N * 2 * d];
    world w;
    kvmem_cache c;
    double z[N], worst = 0;
    int kept[2][d], t, i, h, j, last;
    REQUIRE(world_init(&w, 1, 2, 2, d, N, "codec.k=think(ratio=0.5,store=f32,residual=32) codec.v=f32 page=32"));
    for (i = 0; i < N * 2 * d; i++) { /* fresh rows are halves: so that these are exact */
        w.k[i] = kvmem__f16_to_f32(kvmem__f32_to_f16(w.k[i] * (float)(1 + i % 3)));
        w.q[i] *= (float)(1 + i % 5 % 2);
    }
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(feed(&w, &c, 0, PROMPT, 32, KVMEM_PROMPT_END, NULL));
    REQUIRE_OK(feed(&w, &c, PROMPT, N, 1, KVMEM_DECODE, out));
    last = N - 1;
    for (h = 0; h < 2; h++) {
        for (i = 0; i < d; i++) kept[h][i] = 0;
        for (i = 0; i < d / 2; i++) kept[h][(int)kvmem__lesson_state(c.lane[h].lesson[0])[i]] = 1;
        {
            double top = -1e300, sum = 0, o[d] = { 0 };
            for (t = 0; t < N; t++) {
                for (z[t] = 0, i = 0; i < d; i++)
                    if (t >= 64 || kept[h][i]) /* 96 - 32 rows were coded at the end of the prompt */
                        z[t] += (double)row_q(&w, last, 0)[h * d + i] * (double)row_k(&w, w.k, t, 0)[h * d + i];
                z[t] /= sqrt((double)d); /* the scale of all channels */
                top = fmax(top, z[t]);
            }
            for (t = 0; t < N; t++) sum += z[t] = exp(z[t] - top);
            for (t = 0; t < N; t++)
                for (j = 0; j < d; j++) o[j] += z[t] / sum * (double)row_k(&w, w.v, t, 0)[h * d + j];
            for (j = 0; j < d; j++) worst = fmax(worst, fabs(o[j] - (double)out[(MORE - 1) * 2 * d + h * d + j]));
        }
    }
    CHECK(worst < 1e-5);
    kvmem_cache_free(&c);
    world_free(&w);
}
TEST(preset_runs_in_a_cache_and_composes_with_eviction) {
    float a[4 * CODED_RUN_D], b[4 * CODED_RUN_D];
    kvmem_bytes x, y;
    double e;
    CHECK(coded_run("full codec=f16", 300, 20, b, &y) == 320);
    CHECK(coded_run("think", 300, 20, a, &x) == 320);
    e = figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL);
    CHECK(e > 0 && e < 1.5 && x.live.k < .65 * (double)y.live.k && x.live.v == y.live.v);
    CHECK(coded_run("full codec.k=think(ratio=0) codec.v=f16", 300, 20, a, &x) == 320);
    CHECK(figure_ratio(b, a, 4, CODED_RUN_D, FIGURE_REL) < 1e-6); /* nothing is lost */
    CHECK(coded_run("h2o budget=64 codec.k=think(residual=32) codec.v=f16", 300, 20, a, &x) == 64);
    CHECK(coded_run("think score=keydiff budget=50% when=prompt", 300, 20, a, &x) == 170);
}
static const char *const checked[4] = { "think(ratio=0,store=f32)", "think(ratio=0.5)", "think(ratio=0.4,store=q8_0)",
                                        "think(ratio=0.75,store=q4_0)" };
TEST(facts_of_every_codec) {
    check_fast = 1e-4; /* 16-bit queries and weights */
    coded_check_all(checked, 4, 128);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_think");
    RUN(channels_are_those_of_the_largest_product_of_mean_squares);
    RUN(packed_keys_give_the_logits_of_keys_with_zeros);
    RUN(nothing_dropped_is_the_plain_row_codec);
    RUN(bits_are_those_of_what_is_left);
    RUN(ties_keep_the_lower_channel_and_no_query_counts_keys_alone);
    RUN(a_file_cannot_name_channels_that_are_not_there);
    RUN(attention_is_that_over_keys_with_zeros_and_the_newest_whole);
    RUN(preset_runs_in_a_cache_and_composes_with_eviction);
    RUN(facts_of_every_codec);
    return test_end();
}
