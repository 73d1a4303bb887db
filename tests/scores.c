/* Scores that look at keys, values and queries: against vectors of kvpress, slow oracles in double precision, and
   the facts of their cards. tools/vectors_scores.py made the vectors and compares itself with kvpress. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"
#include "golden/scores.h"

enum { N = GOLDEN_N, GD = 8, GH = 4, GG = 2, MAXN = 256 };

/* ---- the rows of tools/vectors_scores.py ---- */
static float cell(unsigned what, unsigned t, unsigned h, unsigned c) {
    uint32_t x = (uint32_t)(what * 0x9E3779B1u + t * 0x85EBCA6Bu + h * 0xC2B2AE35u + c * 0x27D4EB2Fu);
    float v;
    x ^= x >> 15;
    x *= 0x2C1B3C6Du;
    x ^= x >> 12;
    x *= 0x297A2D39u;
    x ^= x >> 15;
    v = (float)((int)(x % 4097u) - 2048) / 1024.0f;
    if (what == 0 && c % 3 == h % 3) v += 1.0f;
    if (what == 2) v *= 1.0f + (float)t / 64.0f;
    return v;
}
/* neox 1: channel c of the vectors; 0: the same pairs side by side. */
static int channel(int neox, int c) { return neox ? c : c < GD / 2 ? 2 * c : 2 * (c - GD / 2) + 1; }
static int golden_world(world *w, const char *recipe, int neox) {
    int t, h, c;
    if (!world_init(w, 1, GH, GG, GD, N, recipe)) return 0;
    for (c = 0; c < GD / 2; c++) w->inv[c] = (float)pow(0.25, c);
    w->rope[0].neox = neox;
    w->cfg.shape.rope = w->rope;
    for (t = 0; t < N; t++)
        for (h = 0; h < GH; h++)
            for (c = 0; c < GD; c++) {
                const int at = channel(neox, c);
                row_q(w, t, 0)[h * GD + at] = cell(0, (unsigned)t, (unsigned)h, (unsigned)c);
                if (h >= GG) continue;
                row_k(w, w->k, t, 0)[h * GD + at] = cell(1, (unsigned)t, (unsigned)h, (unsigned)c);
                row_k(w, w->v, t, 0)[h * GD + at] = cell(2, (unsigned)t, (unsigned)h, (unsigned)c);
            }
    return 1;
}
/* Feed tokens from..T of every layer in blocks; the last one is not committed: its scores can be asked for. */
static int hold(world *w, kvmem_cache *c, int from, int T, int block) {
    static float out[64 * MAXN];
    int l;
    if (T - 1 > from && feed(w, c, from, T - 1, block, KVMEM_PREFILL, NULL)) return 0;
    for (l = 0; l < w->L; l++)
        if (kvmem_cache_append(c, l, 1, row_k(w, w->k, T - 1, l), row_k(w, w->v, T - 1, l), NULL) ||
            kvmem_cache_attend(c, l, 1, row_q(w, T - 1, l), out)) {
            FAIL_AT("%s", c->error.text);
            return 0;
        }
    c->phase = KVMEM_PROMPT_END;
    for (l = 0; l < w->L; l++)
        if (kvmem__update_layer(c, l)) { FAIL_AT("%s", c->error.text); return 0; }
    return 1;
}
static int scores_of(kvmem_cache *c, int layer, int g, float *score) {
    if (kvmem__score_lane(c, layer, g, score) == KVMEM_OK) return 1;
    FAIL_AT("%s", c->error.text);
    return 0;
}
/* Scores of the golden rows under `recipe` against want, entries [first, N - last); the others are to be one more
   than the best of their lane. */
static void golden(const char *recipe, const double (*want)[N], int first, int last, double tol) {
    static const int blocks[] = { 1, 7, 40 };
    int neox, b, g, t;
    for (neox = 0; neox < 2; neox++)
        for (b = 0; b < 3; b++) {
            static float score[N];
            world w;
            kvmem_cache c;
            if (!golden_world(&w, recipe, neox)) { FAIL_AT("%s", recipe); return; }
            if (kvmem_cache_init(&c, &w.cfg)) { FAIL_AT("%s: %s", recipe, c.error.text); return; }
            if (!hold(&w, &c, 0, N, blocks[b])) { FAIL_AT("%s", recipe); return; }
            for (g = 0; g < GG; g++) {
                double worst = 0, top = -1e300;
                if (!scores_of(&c, 0, g, score)) return;
                for (t = first; t < N - last; t++) {
                    const double e = fabs((double)score[t] - want[g][t]);
                    if (!(e <= worst)) worst = e;
                    if ((double)score[t] > top) top = (double)score[t];
                }
                if (!(worst <= tol)) FAIL_AT("%s, neox %d, blocks of %d: off by %g", recipe, neox, blocks[b], worst);
                for (t = 0; t < N; t++)
                    if (t < first || t >= N - last) CHECK_NEAR(score[t], top + 1, 1e-5);
            }
            kvmem_cache_free(&c);
            world_free(&w);
        }
}
TEST(scores_equal_the_vectors_of_kvpress) {
    golden("score=expected budget=50%", golden_expected, 4, 0, 1e-5);
    golden("score=expected(future=3,sinks=2,covariance=0,vnorm=0) budget=50%", golden_expected_plain, 2, 0, 1e-5);
    golden("score=expected(future=64,eps=0.02) budget=50%", golden_expected_eps, 4, 0, 1e-5);
    golden("score=qfilter budget=50%", golden_qfilter, 0, 0, 1e-4);
    golden("score=lagkv(lag=8) budget=50%", golden_lagkv, 0, 0, 1e-6);
    golden("score=lagkv(lag=8,cross=1) budget=50%", golden_lagkv_cross, 0, 0, 1e-6);
    golden("score=keydiff budget=50%", golden_keydiff, 0, 0, 1e-6);
    golden("score=noncausal(chunk=16) budget=50%", golden_noncausal, 0, 0, 1e-4);
    golden("score=noncausal(chunk=16,pad=1) budget=50%", golden_noncausal_pad, 0, 0, 1e-4);
    golden("score=leverage(sketch=0) budget=50%", golden_leverage, 0, 0, 1e-4);
    golden("score=compactor(chunk=16,sketch=0) budget=50%", golden_compactor, 8, 4, 1e-4);
    golden("score=compactor(chunk=16,sketch=0,pad=1,blend=0.5) budget=50%", golden_compactor_pad, 8, 4, 1e-4);
    golden("score=cur budget=50%", golden_cur, 0, 0, 1e-6);
    golden("score=cur(of=average,block=7,sinks=2) budget=50%", golden_cur_average, 0, 0, 1e-6);
    golden("score=cap budget=50%", golden_cap, 4, 0, 1e-5);
    golden("score=cap(tau=0,future=1) budget=50%", golden_cap_flat, 4, 0, 1e-5);
}

TEST(think_keeps_the_channels_of_kvpress) {
    int neox, g, i;
    for (neox = 0; neox < 2; neox++) {
        world w;
        kvmem_cache c;
        REQUIRE(golden_world(&w, "codec.k=think(ratio=0.5,window=32) codec.v=f16 page=8", neox));
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        REQUIRE_OK(feed(&w, &c, 0, N, 13, KVMEM_PROMPT_END, NULL));
        for (g = 0; g < GG; g++) {
            int kept[GD] = { 0 };
            REQUIRE(c.lane[g].lesson[0] && c.lane[g].lesson[0]->learned);
            for (i = 0; i < GD / 2; i++) kept[(int)kvmem__lesson_state(c.lane[g].lesson[0])[i]] = 1;
            for (i = 0; i < GD / 2; i++) CHECK(kept[channel(neox, golden_think[g][i])]);
        }
        kvmem_cache_free(&c);
        world_free(&w);
    }
}

/* ---- pieces that need no cache ---- */
TEST(mean_rotation_is_the_mean_of_rotations) {
    static const int futures[] = { 1, 2, 7, 512 };
    float inv[4] = { 1.0f, 0.3f, 1e-4f, 0.0f }, co[4], si[4];
    kvmem_rope r;
    int f, i, p;
    r.n_rot = 8;
    r.neox = 1;
    r.mscale = 1.25f;
    r.inv_freq = inv;
    for (f = 0; f < 4; f++) {
        kvmem__mean_rotation(&r, 1000, futures[f], co, si);
        for (i = 0; i < 4; i++) {
            double a = 0, b = 0;
            for (p = 1000; p < 1000 + futures[f]; p++) {
                a += cos(p * (double)inv[i]) / futures[f];
                b += sin(p * (double)inv[i]) / futures[f];
            }
            CHECK_NEAR(co[i], 1.25 * a, 1e-6);
            CHECK_NEAR(si[i], 1.25 * b, 1e-6);
        }
    }
}
TEST(ranks_of_ties_rise_with_the_index) {
    static const float x[7] = { 2, 1, 2, 0, 1, 2, -1 }, want[7] = { 4, 2, 5, 1, 3, 6, 0 };
    float rank[7], scratch[14];
    int t;
    kvmem__ranks(rank, x, 7, scratch);
    for (t = 0; t < 7; t++) CHECK(rank[t] == want[t]);
    kvmem__ranks(rank, x, 1, scratch);
    CHECK(rank[0] == 0);
}
TEST(moments_of_a_stream_are_mean_and_covariance) {
    enum { T = 300, D = 6 };
    world w;
    kvmem_cache c;
    kvmem_view v;
    double mean[D] = { 0 }, cov;
    float full[D * D];
    int t, i, j;
    REQUIRE(world_init(&w, 1, 4, 2, D, T, "score=expected(sinks=10) budget=50%"));
    for (t = 0; t < T; t++)
        for (i = 0; i < 4 * D; i++) row_q(&w, t, 0)[i] += (float)(i % 5) + (t < 10 ? 1000.0f : 0.0f);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(feed(&w, &c, 0, T, 37, KVMEM_PREFILL, NULL));
    v = kvmem__view_of(&c, 0, KVMEM_SCORE);
    CHECK(kvmem_view_state(&v, 1)[0] == T - 10);
    for (t = 10; t < T; t++) for (i = 0; i < D; i++) mean[i] += (double)row_q(&w, t, 0)[3 * D + i] / (T - 10);
    kvmem__unpack_symmetric(full, kvmem__moments_of(&v, 1, 1, 1) + D, D, 1.0f / (T - 10));
    for (i = 0; i < D; i++) {
        CHECK_NEAR(kvmem__moments_of(&v, 1, 1, 1)[i], mean[i], 1e-5);
        for (j = 0; j < D; j++) {
            for (cov = 0, t = 10; t < T; t++)
                cov += ((double)row_q(&w, t, 0)[3 * D + i] - mean[i]) * ((double)row_q(&w, t, 0)[3 * D + j] - mean[j]);
            CHECK_NEAR(full[i * D + j], cov / (T - 10), 1e-4);
        }
    }
    kvmem_cache_free(&c);
    world_free(&w);
}

/* ---- a lane of given rows: keys, values, queries (n, d) ---- */
static world lane_world;
static kvmem_cache lane_cache;
static int lane_begin(const char *recipe, int H, int G, int d, int n) {
    if (!world_init(&lane_world, 1, H, G, d, n, recipe)) { FAIL_AT("%s", recipe); return 0; }
    return 1;
}
static int lane_scores(float *score, int n) { /* of KV head 0 */
    if (kvmem_cache_init(&lane_cache, &lane_world.cfg)) { FAIL_AT("%s", lane_cache.error.text); return 0; }
    return hold(&lane_world, &lane_cache, 0, n, 9) && scores_of(&lane_cache, 0, 0, score);
}
static void lane_end(void) {
    kvmem_cache_free(&lane_cache);
    world_free(&lane_world);
}
static void lane_set(float *rows, int n, int width, const float *x) { memcpy(rows, x, (size_t)(n * width) * 4); }

TEST(expected_with_one_position_and_equal_queries_is_attention) {
    enum { T = 30, D = 8 };
    float score[T];
    double q[D], k[D], z[T], top = -1e300, sum = 0;
    int t, i;
    REQUIRE(lane_begin("score=expected(future=1,sinks=0,vnorm=0) budget=50%", 1, 1, D, T));
    lane_world.cfg.shape.rope = lane_world.rope;
    for (t = 1; t < T; t++) memcpy(row_q(&lane_world, t, 0), row_q(&lane_world, 0, 0), D * 4);
    REQUIRE(lane_scores(score, T));
    for (i = 0; i < D; i++) q[i] = (double)row_q(&lane_world, 0, 0)[i];
    turn(q, D, lane_world.rope, T); /* the query at the position after the prompt */
    for (t = 0; t < T; t++) {
        for (z[t] = 0, i = 0; i < D; i++) k[i] = (double)row_k(&lane_world, lane_world.k, t, 0)[i];
        turn(k, D, lane_world.rope, t);
        for (i = 0; i < D; i++) z[t] += q[i] * k[i] / sqrt((double)D);
        top = fmax(top, z[t]);
    }
    for (t = 0; t < T; t++) sum += z[t] = exp(z[t] - top);
    for (t = 0; t < T; t++) CHECK_NEAR(score[t], z[t] / sum, 1e-6);
    lane_end();
}
TEST(expected_probabilities_sum_to_one) {
    float score[50];
    double sum = 0;
    int t;
    REQUIRE(lane_begin("score=expected(sinks=4,vnorm=0) budget=50%", 6, 2, 8, 50));
    lane_world.cfg.shape.rope = lane_world.rope;
    REQUIRE(lane_scores(score, 50));
    for (t = 4; t < 50; t++) sum += (double)score[t];
    CHECK_NEAR(sum, 1, 1e-5);
    lane_end();
}
TEST(qfilter_of_equal_queries_orders_keys_by_their_product) {
    enum { T = 25, D = 6 };
    float score[T];
    double a, b, size = 0;
    int t, i, u;
    REQUIRE(lane_begin("score=qfilter budget=50%", 2, 2, D, T));
    for (t = 1; t < T; t++) memcpy(row_q(&lane_world, t, 0), row_q(&lane_world, 0, 0), 2 * D * 4);
    REQUIRE(lane_scores(score, T));
    for (i = 0; i < D; i++) size += pow((double)row_q(&lane_world, 0, 0)[i], 2);
    for (t = 0; t < T; t++)
        for (u = 0; u < T; u++) {
            for (a = b = 0, i = 0; i < D; i++) {
                a += (double)row_q(&lane_world, 0, 0)[i] * (double)row_k(&lane_world, lane_world.k, t, 0)[i];
                b += (double)row_q(&lane_world, 0, 0)[i] * (double)row_k(&lane_world, lane_world.k, u, 0)[i];
            }
            if (fabs(a - b) > 1e-4) CHECK((a > b) == (score[t] > score[u]));
            CHECK_NEAR(score[t], a / sqrt(size), 1e-5); /* v1 is the unit vector of q */
        }
    lane_end();
}
TEST(qfilter_is_linear_in_the_keys_and_takes_filters_made_elsewhere) {
    enum { T = 20, D = 4 };
    static float filters[2 * D] = { 1, 2, 3, 4, -1, 0, 0, 0 };
    float one[T], two[T];
    int t, i;
    REQUIRE(lane_begin("score=qfilter budget=50%", 4, 2, D, T));
    REQUIRE(lane_scores(one, T));
    for (t = 0; t < T; t++) for (i = 0; i < 2 * D; i++) row_k(&lane_world, lane_world.k, t, 0)[i] *= -3.0f;
    kvmem_cache_free(&lane_cache);
    REQUIRE(lane_scores(two, T));
    for (t = 0; t < T; t++) CHECK_NEAR(two[t], -3 * one[t], 1e-4);
    kvmem_cache_free(&lane_cache);
    lane_world.recipe.stage[KVMEM_SCORE].user = filters;
    REQUIRE(lane_scores(one, T));
    for (t = 0; t < T; t++) {
        const float *k = row_k(&lane_world, lane_world.k, t, 0);
        CHECK_NEAR(one[t], -(k[0] + 2 * k[1] + 3 * k[2] + 4 * k[3]), 1e-5);
    }
    REQUIRE(scores_of(&lane_cache, 0, 1, one));
    for (t = 0; t < T; t++) CHECK_NEAR(one[t], row_k(&lane_world, lane_world.k, t, 0)[D], 1e-6);
    lane_end();
}
TEST(qfilter_stays_once_the_prompt_has_ended) {
    enum { T = 60, D = 4 };
    kvmem_view v;
    float before[D + 1];
    REQUIRE(lane_begin("score=qfilter budget=16 recent=8 when=step", 2, 1, D, T));
    REQUIRE_OK(kvmem_cache_init(&lane_cache, &lane_world.cfg));
    REQUIRE_OK(feed(&lane_world, &lane_cache, 0, 30, 30, KVMEM_PROMPT_END, NULL));
    v = kvmem__view_of(&lane_cache, 0, KVMEM_SCORE);
    memcpy(before, kvmem__qfilter_of(&v, 0), sizeof before);
    CHECK(before[D] == 1 && kvmem_cache_lane_len(&lane_cache, 0, 0) == 16);
    REQUIRE_OK(feed(&lane_world, &lane_cache, 30, T, 1, KVMEM_DECODE, NULL));
    CHECK(!memcmp(before, kvmem__qfilter_of(&v, 0), sizeof before) && kvmem_view_state(&v, 0)[0] == T);
    CHECK(kvmem_cache_lane_len(&lane_cache, 0, 0) == 16);
    lane_end();
}

/* ---- lagkv ---- */
TEST(lagkv_short_texts_keep_sinks_and_the_newest) {
    float score[19];
    int t;
    REQUIRE(lane_begin("score=lagkv(sinks=4,lag=8) budget=50%", 1, 1, 4, 19)); /* < 4 + 16 */
    REQUIRE(lane_scores(score, 19));
    for (t = 0; t < 19; t++) CHECK_NEAR(score[t], t < 4 ? 1.0 : (t - 4) / 15.0, 1e-7);
    lane_end();
    REQUIRE(lane_begin("score=lagkv(sinks=4,lag=8) budget=50%", 1, 1, 4, 3));
    REQUIRE(lane_scores(score, 3));
    for (t = 0; t < 3; t++) CHECK(score[t] == 1);
    lane_end();
}
TEST(lagkv_gives_every_block_the_same_scores) {
    enum { T = 61 };
    float score[T];
    int t, b, i;
    REQUIRE(lane_begin("score=lagkv(sinks=4,lag=8) budget=50%", 1, 1, 6, T)); /* 4 + 7 * 8 + 1 */
    REQUIRE(lane_scores(score, T));
    for (b = 0; b < 6; b++) {
        int seen[8] = { 0 };
        for (i = 0; i < 8; i++) seen[(int)(score[4 + b * 8 + i] * 8)]++;
        for (i = 0; i < 8; i++) CHECK(seen[i] == 1);
    }
    for (t = 0; t < T; t++) if (t < 4 || t >= 4 + 48) CHECK(score[t] == 1);
    lane_end();
}
TEST(lagkv_is_the_same_when_channels_are_stretched_and_shifted) {
    enum { T = 40, D = 5 };
    float a[T], b[T];
    int t, i;
    REQUIRE(lane_begin("score=lagkv(sinks=2,lag=6,cross=1) budget=50%", 1, 1, D, T));
    REQUIRE(lane_scores(a, T));
    for (t = 0; t < T; t++)
        for (i = 0; i < D; i++) {
            row_k(&lane_world, lane_world.k, t, 0)[i] *= (float)(i + 2);
            row_k(&lane_world, lane_world.k, t, 0)[i] += (float)(3 * i) - 7;
            row_k(&lane_world, lane_world.v, t, 0)[i] *= 0.25f;
        }
    kvmem_cache_free(&lane_cache);
    REQUIRE(lane_scores(b, T));
    for (t = 0; t < T; t++) CHECK_NEAR(a[t], b[t], 2e-6);
    lane_end();
}
TEST(lagkv_constant_channels_count_nothing) {
    enum { T = 40, D = 3 };
    float a[T];
    int t;
    REQUIRE(lane_begin("score=lagkv(sinks=0,lag=4) budget=50%", 1, 1, D, T));
    memset(lane_world.k, 0, T * D * 4);
    memset(lane_world.v, 0, T * D * 4);
    REQUIRE(lane_scores(a, T));
    for (t = 0; t < T - 4; t++) CHECK_NEAR(a[t], (t % 4) / 4.0, 1e-7); /* all tie: by index */
    lane_end();
}

/* ---- keydiff, cur ---- */
TEST(keydiff_example_of_the_card) {
    static const float k[6] = { 1, 0, 1, 0, 0, 1 };
    float s[4];
    REQUIRE(lane_begin("score=keydiff budget=50%", 1, 1, 2, 4));
    lane_set(lane_world.k, 3, 2, k);
    REQUIRE(lane_scores(s, 3));
    CHECK_NEAR(s[0], -.894427, 1e-6);
    CHECK_NEAR(s[1], -.894427, 1e-6);
    CHECK_NEAR(s[2], -.447214, 1e-6);
    kvmem_cache_free(&lane_cache);
    lane_world.k[4] = 0; lane_world.k[5] = 70; /* the length of a key does not matter */
    lane_world.k[6] = lane_world.k[7] = 0;     /* and a key without one has no direction */
    REQUIRE(lane_scores(s, 4));
    CHECK_NEAR(s[0], -.894427, 1e-6);
    CHECK_NEAR(s[2], -.447214, 1e-6);
    CHECK(s[3] == 0);
    lane_end();
}
TEST(keydiff_cosines_sum_to_no_less_than_zero) {
    int trial, t;
    for (trial = 0; trial < 20; trial++) {
        float s[20];
        double sum = 0;
        REQUIRE(lane_begin("score=keydiff budget=50%", 1, 1, 3, 20));
        REQUIRE(lane_scores(s, 20));
        for (t = 0; t < 20; t++) sum -= (double)s[t];
        CHECK(sum >= -1e-5);
        lane_end();
    }
}
TEST(cur_example_of_the_card) {
    static const double k2[4] = { 1, 3, 2, 2 }, v2[4] = { 4, 4, 1, 3 }, want[4] = { .125, .375, .125, .375 };
    float s[4], more[4];
    int t;
    REQUIRE(lane_begin("score=cur(block=2,sinks=0) budget=50%", 1, 1, 2, 4));
    for (t = 0; t < 4; t++) {
        lane_world.k[2 * t] = (float)sqrt(k2[t]);
        lane_world.v[2 * t + 1] = -(float)sqrt(v2[t]);
        lane_world.k[2 * t + 1] = lane_world.v[2 * t] = 0;
    }
    REQUIRE(lane_scores(s, 4));
    for (t = 0; t < 4; t++) CHECK_NEAR(s[t], want[t], 1e-6);
    kvmem_cache_free(&lane_cache);
    for (t = 0; t < 4; t++) { lane_world.k[t] *= 7.0f; lane_world.v[4 + t] *= 0.1f; } /* one block of K, one of V */
    REQUIRE(lane_scores(more, 4));
    for (t = 0; t < 4; t++) CHECK_NEAR(more[t], s[t], 1e-6);
    kvmem_cache_free(&lane_cache);
    memset(lane_world.k, 0, 4 * 2 * 4);
    REQUIRE(lane_scores(s, 4));
    for (t = 0; t < 4; t++) CHECK(s[t] == 0);
    lane_end();
}
TEST(cur_projected_on_many_columns_nears_the_norms) {
    float a[32], b[32];
    int t;
    double worst = 0;
    REQUIRE(lane_begin("score=cur(sinks=0,of=key) budget=50%", 1, 1, 8, 32));
    REQUIRE(lane_scores(a, 32));
    kvmem_cache_free(&lane_cache);
    REQUIRE_OK(kvmem_recipe_parse(&lane_world.recipe, "score=cur(sinks=0,of=key,project=4096) budget=50%", NULL));
    REQUIRE(lane_scores(b, 32));
    for (t = 0; t < 32; t++) worst = fmax(worst, fabs((double)(a[t] - b[t]) / (double)a[t]));
    CHECK(worst > 0 && worst < 0.2);
    lane_end();
}

/* ---- attention in chunks ---- */
/* A[t] of KV head g over tokens [first, T - last) by chunks, in double. */
static void chunk_sums(const world *w, int g, int T, int chunk, int first, int last, double *A) {
    const int d = w->d, r = w->H / w->G;
    int c, i, j, h, t;
    double q[64], k[64], z[MAXN];
    for (t = 0; t < T; t++) A[t] = 0;
    for (c = first; c < T - last; c += chunk) {
        const int end = KVMEM__MIN(c + chunk, T - last);
        for (h = g * r; h < g * r + r; h++)
            for (i = c; i < end; i++) {
                double top = -1e300, sum = 0;
                for (t = 0; t < d; t++) q[t] = (double)row_q(w, i, 0)[h * d + t];
                if (w->cfg.shape.rope) turn(q, d, w->rope, i);
                for (j = c; j < end; j++) {
                    for (t = 0; t < d; t++) k[t] = (double)row_k(w, w->k, j, 0)[g * d + t];
                    if (w->cfg.shape.rope) turn(k, d, w->rope, j);
                    for (z[j] = 0, t = 0; t < d; t++) z[j] += q[t] * k[t];
                    top = fmax(top, z[j]);
                }
                for (j = c; j < end; j++) sum += z[j] = exp(z[j] - top);
                for (j = c; j < end; j++) A[j] += z[j] / sum / r;
            }
    }
}
TEST(noncausal_sums_of_a_chunk_are_its_size) {
    static const int blocks[] = { 1, 5, 16, 33, 90 };
    enum { T = 90 };
    double A[T];
    int b, g, t;
    for (b = 0; b < 5; b++) {
        double sum = 0;
        kvmem_view v;
        REQUIRE(lane_begin("score=noncausal(chunk=16) budget=50%", 6, 2, 8, T));
        lane_world.cfg.shape.rope = lane_world.rope;
        REQUIRE_OK(kvmem_cache_init(&lane_cache, &lane_world.cfg));
        REQUIRE(hold(&lane_world, &lane_cache, 0, T, blocks[b]));
        v = kvmem__view_of(&lane_cache, 0, KVMEM_SCORE);
        for (g = 0; g < 2; g++) {
            chunk_sums(&lane_world, g, T, 16, 0, 0, A);
            for (t = 0; t < T; t++) {
                float own;
                kvmem_view_own(&v, g, t, &own);
                CHECK_NEAR(own, A[t], 1e-4);
                sum += (double)own;
                if (t % 16 == 15) { CHECK_NEAR(sum, 16, 1e-4); sum = 0; }
            }
            CHECK_NEAR(sum, T % 16, 1e-4); /* the last chunk has 10 */
            sum = 0;
        }
        lane_end();
    }
}
TEST(noncausal_z_scores_have_mean_0_and_deviation_1) {
    enum { T = 70 };
    float s[T];
    double mean = 0, m2 = 0;
    int g, t;
    REQUIRE(lane_begin("score=noncausal(chunk=32) budget=50%", 4, 2, 8, T));
    REQUIRE_OK(kvmem_cache_init(&lane_cache, &lane_world.cfg));
    REQUIRE(hold(&lane_world, &lane_cache, 0, T, 20));
    for (g = 0; g < 2; g++) {
        REQUIRE(scores_of(&lane_cache, 0, g, s));
        for (t = 0; t < T; t++) { mean += (double)s[t] / (2 * T); m2 += (double)s[t] * (double)s[t]; }
    }
    CHECK_NEAR(mean, 0, 1e-5);
    CHECK_NEAR(m2 / (2 * T - 1), 1, 1e-4);
    lane_end();
}
TEST(compactor_leaves_its_ends_out_of_every_chunk) {
    static const int ends[] = { 44, 45, 46, 47, 48, 60 }; /* chunks close at 8 + 16, 8 + 32, ... plus 4 */
    double A[MAXN];
    int i, t;
    for (i = 0; i < 6; i++) {
        kvmem_view v;
        REQUIRE(lane_begin("score=compactor(chunk=16,sketch=0) budget=50%", 2, 1, 8, ends[i]));
        lane_world.cfg.shape.rope = lane_world.rope;
        REQUIRE_OK(kvmem_cache_init(&lane_cache, &lane_world.cfg));
        REQUIRE(hold(&lane_world, &lane_cache, 0, ends[i], 11));
        v = kvmem__view_of(&lane_cache, 0, KVMEM_SCORE);
        chunk_sums(&lane_world, 0, ends[i], 16, 8, 4, A);
        for (t = 8; t < ends[i] - 4; t++) {
            float own[2];
            kvmem_view_own(&v, 0, t, own);
            CHECK_NEAR(own[0], A[t], 1e-4);
        }
        lane_end();
    }
}
TEST(compactor_with_blend_0_orders_like_noncausal_on_the_same_slice) {
    enum { T = 60 };
    float a[T], b[T];
    int t;
    REQUIRE(lane_begin("score=compactor(chunk=16,blend=0,first=0,last=0) budget=50%", 2, 1, 8, T));
    REQUIRE(lane_scores(a, T));
    kvmem_cache_free(&lane_cache);
    REQUIRE_OK(kvmem_recipe_parse(&lane_world.recipe, "score=noncausal(chunk=16) budget=50%", NULL));
    REQUIRE(lane_scores(b, T));
    for (t = 0; t < T; t++) CHECK_NEAR(a[t], b[t], 1e-5);
    lane_end();
}
TEST(noncausal_survives_jumps_truncation_and_early_eviction) {
    enum { T = 80, D = 4 };
    static float out[64], q[D], k[D], v[D];
    static const int32_t at[] = { 0, 1, 2, 5, 6, 7, 8, 9, 30, 31, 33, 100, 101, 1000000000 };
    float s[20];
    int32_t p;
    int i, t;
    REQUIRE(lane_begin("score=noncausal(chunk=4) budget=50%", 1, 1, D, T));
    REQUIRE_OK(kvmem_cache_init(&lane_cache, &lane_world.cfg));
    for (i = 0; i < 14; i++) {
        p = at[i];
        for (t = 0; t < D; t++) q[t] = k[t] = v[t] = (float)((i * 7 + t * 3) % 5 - 2);
        REQUIRE_OK(kvmem_cache_append(&lane_cache, 0, 1, k, v, &p));
        REQUIRE_OK(kvmem_cache_attend(&lane_cache, 0, 1, q, out));
        if (i < 13) REQUIRE_OK(kvmem_cache_commit(&lane_cache, KVMEM_PREFILL));
    }
    lane_cache.phase = KVMEM_PROMPT_END;
    REQUIRE_OK(kvmem__update_layer(&lane_cache, 0));
    REQUIRE(scores_of(&lane_cache, 0, 0, s));
    {   /* every entry was in a chunk that was summed: 0 1 2 | 5 6 7 | 8 9 | 30 31 | 33 | 100 101 | 10^9 */
        const kvmem_view view = kvmem__view_of(&lane_cache, 0, KVMEM_SCORE);
        static const int size[14] = { 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 1, 2, 2, 1 };
        double sum = 0;
        for (i = 0; i < 14; i++) {
            float own;
            kvmem_view_own(&view, 0, i, &own);
            CHECK(own > 0 && own <= (float)size[i] + 1e-4f);
            sum += (double)own;
        }
        CHECK_NEAR(sum, 14, 1e-4);
    }
    kvmem_cache_free(&lane_cache);
    REQUIRE_OK(kvmem_recipe_parse(&lane_world.recipe, "score=noncausal(chunk=16) budget=12 when=block", NULL));
    REQUIRE_OK(kvmem_cache_init(&lane_cache, &lane_world.cfg));
    REQUIRE_OK(feed(&lane_world, &lane_cache, 0, 50, 7, KVMEM_PREFILL, NULL));
    REQUIRE_OK(kvmem_cache_truncate(&lane_cache, 40));
    REQUIRE_OK(feed(&lane_world, &lane_cache, 40, 70, 3, KVMEM_PROMPT_END, NULL));
    CHECK(kvmem_cache_lane_len(&lane_cache, 0, 0) == 12);
    lane_end();
}

/* ---- leverage, cap ---- */
static double invert(double *a, int n) { /* in place, by Gauss and Jordan; returns the smallest pivot */
    double least = 1e300;
    int i, j, k;
    for (i = 0; i < n; i++) {
        const double p = a[i * n + i];
        least = fmin(least, fabs(p));
        a[i * n + i] = 1;
        for (j = 0; j < n; j++) a[i * n + j] /= p;
        for (k = 0; k < n; k++) {
            const double f = a[k * n + i];
            if (k == i) continue;
            a[k * n + i] = 0;
            for (j = 0; j < n; j++) a[k * n + j] -= f * a[i * n + j];
        }
    }
    return least;
}
static void raw_leverage(double *a, int n) { /* of KV head 0 of the cache in hand */
    const kvmem_view v = kvmem__view_of(&lane_cache, 0, KVMEM_SCORE);
    int t;
    for (t = 0; t < n; t++) {
        float own;
        kvmem_view_own(&v, 0, t, &own);
        a[t] = (double)own;
    }
}
TEST(leverage_without_sketch_sums_to_the_rank) {
    enum { T = 50, D = 6 };
    double a[T], sum = 0;
    float s[T];
    int t, i, rank;
    for (rank = 1; rank <= D; rank += 5) {
        REQUIRE(lane_begin("score=leverage(sketch=0,jitter=0.000001) budget=50%", 1, 1, D, T));
        lane_world.cfg.shape.rope = lane_world.rope;
        for (t = 0; t < T && rank == 1; t++) /* all keys on a line before RoPE */
            for (i = 1; i < D; i++)
                row_k(&lane_world, lane_world.k, t, 0)[i] = 2 * row_k(&lane_world, lane_world.k, t, 0)[0] + 3;
        memcpy(row_k(&lane_world, lane_world.k, 7, 0), row_k(&lane_world, lane_world.k, 20, 0), D * 4);
        REQUIRE(lane_scores(s, T));
        raw_leverage(a, T);
        for (sum = 0, t = 0; t < T; t++) {
            CHECK(a[t] >= 0 && a[t] <= 1 + 1e-4);
            sum += a[t];
        }
        CHECK_NEAR(sum, rank, 2e-3);
        CHECK_NEAR(a[7], a[20], 1e-4); /* like keys share */
        lane_end();
    }
}
TEST(leverage_of_an_odd_key_is_near_one) {
    enum { T = 60, D = 8 };
    double a[T];
    float s[T];
    int t, i;
    REQUIRE(lane_begin("score=leverage(sketch=0) budget=50%", 1, 1, D, T));
    for (t = 0; t < T; t++) for (i = 3; i < D; i++) row_k(&lane_world, lane_world.k, t, 0)[i] = 0;
    row_k(&lane_world, lane_world.k, 31, 0)[6] = 5;
    REQUIRE(lane_scores(s, T));
    raw_leverage(a, T);
    for (t = 0; t < T; t++) if (t != 31) CHECK(a[t] < a[31] && s[t] < s[31]);
    CHECK(a[31] > 0.95);
    lane_end();
}
TEST(leverage_through_a_sketch_equals_the_oracle) {
    enum { T = 40, D = 8, K = 5 };
    const uint64_t seed = kvmem__random(9, 0, 0, 48);
    double a[T], y[T][K], m[K * K], mean[D], phi[D][K];
    float s[T];
    int t, i, j;
    REQUIRE(lane_begin("score=leverage(sketch=5) seed=9 budget=50%", 2, 1, D, T));
    lane_world.cfg.shape.rope = lane_world.rope;
    REQUIRE(lane_scores(s, T));
    raw_leverage(a, T);
    for (i = 0; i < D; i++) {
        for (mean[i] = 0, t = 0; t < T; t++) mean[i] += (double)row_k(&lane_world, lane_world.k, t, 0)[i] / T;
        for (j = 0; j < K; j++) phi[i][j] = (double)kvmem__gauss(seed, (uint64_t)(j * D + i)) / sqrt((double)K);
    }
    for (t = 0; t < T; t++)
        for (j = 0; j < K; j++)
            for (y[t][j] = 0, i = 0; i < D; i++)
                y[t][j] += ((double)row_k(&lane_world, lane_world.k, t, 0)[i] - mean[i]) * phi[i][j];
    for (i = 0; i < K; i++)
        for (j = 0; j < K; j++)
            for (m[i * K + j] = i == j ? 0.01 : 0, t = 0; t < T; t++) m[i * K + j] += y[t][i] * y[t][j];
    invert(m, K);
    for (t = 0; t < T; t++) {
        double want = 0;
        for (i = 0; i < K; i++) for (j = 0; j < K; j++) want += y[t][i] * m[i * K + j] * y[t][j];
        CHECK_NEAR(a[t], want, 1e-4);
    }
    lane_end();
}
TEST(cap_is_a_ridge_leverage_of_values) {
    enum { T = 30, D = 5 };
    float s[T], again[T];
    double A[D * D], v[D];
    int t, i, j;
    REQUIRE(lane_begin("score=cap(tau=0,sinks=0) budget=50%", 2, 1, D, T));
    memcpy(row_k(&lane_world, lane_world.v, 3, 0), row_k(&lane_world, lane_world.v, 11, 0), D * 4);
    REQUIRE(lane_scores(s, T));
    for (i = 0; i < D; i++)
        for (j = 0; j < D; j++)
            for (A[i * D + j] = i == j, t = 0; t < T; t++)
                A[i * D + j] += (1 + 1e-6) * (double)row_k(&lane_world, lane_world.v, t, 0)[i] *
                                (double)row_k(&lane_world, lane_world.v, t, 0)[j];
    CHECK(invert(A, D) > 0);
    for (t = 0; t < T; t++) {
        double want = 0;
        for (i = 0; i < D; i++) v[i] = (double)row_k(&lane_world, lane_world.v, t, 0)[i];
        for (i = 0; i < D; i++) for (j = 0; j < D; j++) want += v[i] * A[i * D + j] * v[j];
        CHECK_NEAR(s[t], want, 1e-5);
        CHECK(s[t] > 0 && s[t] < 1);
    }
    CHECK_NEAR(s[3], s[11], 1e-6);
    kvmem_cache_free(&lane_cache);
    REQUIRE_OK(kvmem_recipe_parse(&lane_world.recipe, "score=cap(tau=5,sinks=0) budget=50%", NULL));
    REQUIRE(lane_scores(again, T));
    for (t = 0; t < T; t++) CHECK(again[t] > 0 && again[t] < 1);
    lane_end();
}
TEST(cap_weights_are_one_at_the_key_nearest_to_the_query) {
    enum { T = 20, D = 6 };
    float s[T], x[33 * D], w[T];
    kvmem_view v;
    int t, ones = 0;
    REQUIRE(lane_begin("score=cap(sinks=0) budget=50%", 1, 1, D, T));
    REQUIRE(lane_scores(s, T));
    v = kvmem__view_of(&lane_cache, 0, KVMEM_SCORE);
    kvmem__cap_weights(&v, 0, 0, T, kvmem__moments_of(&v, 0, 0, 0), x, w);
    for (t = 0; t < T; t++) { CHECK(w[t] > 0 && w[t] <= 1); ones += w[t] == 1; }
    CHECK(ones == 1);
    lane_end();
}

/* ---- what every eviction must show ---- */
static const char *const methods[] = { "expected-attention", "qfilter", "lagkv score=lagkv(lag=6)", "keydiff",
    "noncausal-attn score=noncausal(chunk=8)", "leverage", "compactor score=compactor(chunk=8)", "cur", "cap",
    "score=expected when=step", "score=compactor(chunk=16,pad=1) when=block recent=2",
    "score=cur(project=20,block=0) when=every(5)", "score=cap when=block", "score=keydiff when=block recent=1",
    "score=leverage(sketch=0) when=step", "score=noncausal(chunk=100) when=step", "think" };
enum { N_METHODS = sizeof methods / sizeof *methods };
static float out_a[2 * MAXN * 8 * 8], out_b[2 * MAXN * 8 * 8];
static int run(const char *recipe, int H, int G, int T, int more, int block, int threads, float *out,
               int32_t pos[2][8][MAXN], int n[2][8]) {
    world w;
    kvmem_cache c;
    int l, g, ok;
    test_state = 77; /* the same rows every time */
    if (!world_init(&w, 2, H, G, 8, T + more, recipe)) return 0;
    w.cfg.shape.rope = w.rope;
    w.rope[1].neox = 1;
    w.cfg.threads = threads;
    w.cfg.max_block = 64;
    if (kvmem_cache_init(&c, &w.cfg)) { FAIL_AT("%s: %s", recipe, c.error.text); return 0; }
    ok = !feed(&w, &c, 0, T, block, KVMEM_PROMPT_END, out) &&
         !feed(&w, &c, T, T + more, 1, KVMEM_DECODE, out ? out + (size_t)T * (size_t)(2 * H * 8) : NULL);
    if (!ok) FAIL_AT("%s", recipe);
    for (l = 0; l < 2; l++)
        for (g = 0; g < G; g++) {
            n[l][g] = kvmem_cache_lane_len(&c, l, g);
            if (kvmem_cache_read(&c, l, g, 0, n[l][g], NULL, NULL, pos[l][g])) ok = 0;
        }
    kvmem_cache_free(&c);
    world_free(&w);
    return ok;
}
static int32_t pos_a[2][8][MAXN], pos_b[2][8][MAXN];
static int n_a[2][8], n_b[2][8];
TEST(a_budget_that_covers_the_tokens_changes_no_bit) {
    int m;
    for (m = 0; m < N_METHODS - 1; m++) { /* think is a codec */
        char text[200];
        sprintf(text, "%s budget=%s", methods[m], m % 2 ? "100%" : "70");
        REQUIRE(run("full", 4, 2, 40, 20, 20, 1, out_a, pos_a, n_a));
        REQUIRE(run(text, 4, 2, 40, 20, 20, 1, out_b, pos_b, n_b));
        if (memcmp(out_a, out_b, (size_t)(60 * 2 * 4 * 8) * 4)) FAIL_AT("%s changes outputs", text);
        CHECK(n_b[1][1] == 60);
    }
}
TEST(lanes_hold_what_they_may_in_every_group_and_block) {
    int m, shape, l, g, t;
    for (m = 0; m < N_METHODS - 1; m++)
        for (shape = 0; shape < 3; shape++) { /* groups of 1, 2 and H */
            const int G = shape == 0 ? 4 : shape == 1 ? 2 : 1, due = strstr(methods[m], "when=step") != NULL;
            char text[200];
            kvmem_recipe r;
            sprintf(text, "%s budget=17", methods[m]);
            REQUIRE_OK(kvmem_recipe_parse(&r, text, NULL));
            REQUIRE(run(text, 4, G, 45, due ? 3 : 0, 20, 1, NULL, pos_a, n_a));
            for (l = 0; l < 2; l++)
                for (g = 0; g < G; g++) {
                    if (n_a[l][g] != 17) FAIL_AT("%s: %d entries", text, n_a[l][g]);
                    for (t = 1; t < n_a[l][g]; t++) CHECK(pos_a[l][g][t] > pos_a[l][g][t - 1]);
                    for (t = 0; t < r.sink; t++) CHECK(pos_a[l][g][t] == t);
                    if (r.recent.value >= 1) CHECK(pos_a[l][g][16] == 45 + (due ? 3 : 0) - 1);
                }
            if (r.when != KVMEM_WHEN_PROMPT) continue; /* the choice at the prompt's end does not know its blocks */
            REQUIRE(run(text, 4, G, 45, 0, 7, 2, NULL, pos_b, n_b));
            if (memcmp(pos_a, pos_b, sizeof pos_a) && m != 5) FAIL_AT("%s: other blocks, other entries", text);
        }
}
TEST(tiny_budgets_and_one_token_are_fine) {
    static const char *const amounts[] = { "budget=1", "budget=2", "budget=12", "budget=0.1%" };
    int m, a, T;
    for (m = 0; m < N_METHODS - 1; m++)
        for (a = 0; a < 4; a++)
            for (T = 1; T < 30; T += 14) {
                char text[200];
                kvmem_recipe r;
                sprintf(text, "%s %s", methods[m], amounts[a]);
                if (kvmem_recipe_parse(&r, text, NULL)) continue; /* less than sinks and window */
                REQUIRE(run(text, 2, 1, T, 2, 9, 1, NULL, pos_a, n_a));
                CHECK(n_a[0][0] >= 1);
            }
}
TEST(rows_of_zeros_and_equal_rows_keep_the_first) {
    int m, zero, t, i;
    for (m = 0; m < N_METHODS - 1; m++)
        for (zero = 0; zero < 2; zero++) {
            char text[200];
            world w;
            kvmem_cache c;
            int32_t pos[MAXN];
            sprintf(text, "%s budget=14", methods[m]);
            REQUIRE(world_init(&w, 1, 2, 1, 4, 30, text));
            for (t = 0; t < 30; t++)
                for (i = 0; i < 8; i++) {
                    row_q(&w, t, 0)[i] = zero ? 0.0f : 1.0f;
                    if (i < 4) row_k(&w, w.k, t, 0)[i] = row_k(&w, w.v, t, 0)[i] = zero ? 0.0f : 1.0f;
                }
            REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
            if (feed(&w, &c, 0, 30, 10, KVMEM_PROMPT_END, NULL)) FAIL_AT("%s", text);
            CHECK(kvmem_cache_lane_len(&c, 0, 0) == 14);
            REQUIRE_OK(kvmem_cache_read(&c, 0, 0, 0, 14, NULL, NULL, pos));
            if (strstr(methods[m], "keydiff") && !strstr(methods[m], "recent"))
                for (t = 0; t < 14; t++) CHECK(pos[t] == t);
            kvmem_cache_free(&c);
            world_free(&w);
        }
}
TEST(huge_rows_end_in_numbers_or_in_an_error_that_names_them) {
    int m, t, i;
    for (m = 0; m < N_METHODS - 1; m++) {
        char text[200];
        world w;
        kvmem_cache c;
        kvmem_status st;
        sprintf(text, "%s budget=14", methods[m]);
        REQUIRE(world_init(&w, 1, 2, 1, 4, 30, text));
        for (t = 0; t < 30; t++)
            for (i = 0; i < 8; i++) {
                row_q(&w, t, 0)[i] *= 1e18f;
                if (i < 4) { row_k(&w, w.k, t, 0)[i] *= 1e18f; row_k(&w, w.v, t, 0)[i] *= 1e30f; }
            }
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        quiet = 1;
        st = feed(&w, &c, 0, 30, 10, KVMEM_PROMPT_END, NULL);
        quiet = 0;
        if (st != KVMEM_OK && st != KVMEM_BAD_VALUE) FAIL_AT("%s: %s", text, c.error.text);
        if (st == KVMEM_OK) CHECK(kvmem_cache_lane_len(&c, 0, 0) == 14);
        kvmem_cache_free(&c);
        world_free(&w);
    }
}
TEST(saved_in_the_middle_of_a_prompt_and_copied_they_go_on_alike) {
    int m, t;
    for (m = 0; m < N_METHODS; m++) {
        char text[200];
        world w;
        kvmem_cache a, b, c;
        bytes file = { NULL, 0, 0 };
        float *oa, *ob;
        sprintf(text, "%s budget=15", methods[m]);
        test_state = 5;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 60, text));
        w.cfg.shape.rope = w.rope;
        REQUIRE_OK(kvmem_cache_init(&a, &w.cfg));
        REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
        REQUIRE_OK(feed(&w, &a, 0, 23, 6, KVMEM_PREFILL, NULL));
        REQUIRE_OK(kvmem_cache_save(&a, bytes_write, &file));
        REQUIRE_OK(kvmem_cache_load(&b, file.p, file.n));
        REQUIRE_OK(kvmem_cache_copy(&c, &a));
        for (t = 0; t < 3; t++) {
            kvmem_cache *x = t == 0 ? &a : t == 1 ? &b : &c;
            oa = outs(&w, 60);
            ob = outs(&w, 60);
            REQUIRE_OK(feed(&w, x, 23, 50, 6, KVMEM_PROMPT_END, NULL));
            REQUIRE_OK(feed(&w, x, 50, 60, 1, KVMEM_DECODE, t ? ob : out_a));
            if (t && !same_out(&w, out_a, ob, 10)) FAIL_AT("%s: %s differs", text, t == 1 ? "loaded" : "copied");
            free(oa);
            free(ob);
        }
        kvmem_cache_free(&a);
        kvmem_cache_free(&b);
        kvmem_cache_free(&c);
        free(file.p);
        world_free(&w);
    }
}
TEST(byte_limits_hold_and_no_allocation_leaks) {
    int m;
    for (m = 0; m < N_METHODS; m++) {
        char text[200];
        world w;
        kvmem_cache c;
        kvmem_bytes b;
        test_heap heap;
        memset(&heap, 0, sizeof heap);
        sprintf(text, "%s budget=200KiB", methods[m]);
        REQUIRE(world_init(&w, 2, 4, 2, 16, 400, text));
        w.cfg.shape.rope = w.rope;
        w.cfg.allocator = test_allocator(&heap);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        if (feed(&w, &c, 0, 380, 32, KVMEM_PROMPT_END, NULL) || feed(&w, &c, 380, 400, 1, KVMEM_DECODE, NULL))
            FAIL_AT("%s: %s", text, c.error.text);
        kvmem_cache_bytes(&c, &b);
        CHECK(b.peak.total <= 200 * 1024 && heap.peak <= 200 * 1024 && b.live.total == heap.live);
        kvmem_cache_free(&c);
        CHECK(heap.live == 0 && !heap.wrong);
        world_free(&w);
    }
}
TEST(what_fits_under_a_byte_limit_fits_to_the_end) {
    int m, lim, ran = 0;
    for (m = 0; m < N_METHODS; m++)
        for (lim = 60; lim < 300; lim += 45) {
            char text[200];
            world w;
            kvmem_cache c;
            sprintf(text, "%s budget=%dKiB", methods[m], lim);
            REQUIRE(world_init(&w, 1, 2, 1, 64, 100, text));
            if (!kvmem_cache_init(&c, &w.cfg)) {
                ran++;
                if (feed(&w, &c, 0, 97, 32, KVMEM_PROMPT_END, NULL) || feed(&w, &c, 97, 100, 1, KVMEM_DECODE, NULL))
                    FAIL_AT("%s", text);
            }
            kvmem_cache_free(&c);
            world_free(&w);
        }
    CHECK(ran > 40);
}
TEST(a_failed_allocation_leaves_an_error_and_no_leak) {
    int m;
    size_t k;
    for (m = 0; m < N_METHODS; m++) {
        char text[200];
        sprintf(text, "%s budget=14", methods[m]);
        for (k = 1;; k++) {
            world w;
            kvmem_cache c;
            test_heap heap;
            kvmem_status st;
            memset(&heap, 0, sizeof heap);
            heap.fail_at = k;
            REQUIRE(world_init(&w, 1, 2, 1, 4, 20, text));
            w.cfg.allocator = test_allocator(&heap);
            quiet = 1;
            st = kvmem_cache_init(&c, &w.cfg);
            if (!st) st = feed(&w, &c, 0, 20, 10, KVMEM_PROMPT_END, NULL);
            quiet = 0;
            CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY);
            kvmem_cache_free(&c);
            CHECK(heap.live == 0 && !heap.wrong);
            world_free(&w);
            if (heap.calls < k) break;
        }
    }
}
TEST(presets_expand_to_what_their_cards_say) {
    static const char *const words[] = { "expected-attention", "qfilter", "lagkv", "keydiff", "noncausal-attn",
                                         "leverage", "compactor", "cur", "cap", "think" };
    char text[512];
    kvmem_recipe r, again;
    kvmem_error e;
    int i;
    for (i = 0; i < 10; i++) {
        if (kvmem_recipe_parse(&r, words[i], &e)) { FAIL_AT("%s: %s", words[i], e.text); continue; }
        kvmem_recipe_print(&r, text, sizeof text);
        CHECK(kvmem_recipe_parse(&again, text, NULL) == KVMEM_OK);
    }
    REQUIRE_OK(kvmem_recipe_parse(&r, "expected-attention", NULL));
    CHECK(r.stage[KVMEM_SCORE].par[0] == 512 && r.stage[KVMEM_SCORE].par[1] == 4 && r.sink == 4);
    REQUIRE_OK(kvmem_recipe_parse(&r, "compactor", NULL));
    CHECK(r.sink == 8 && r.recent.value == 4 && r.stage[KVMEM_SCORE].par[3] == 256);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "scores");
    RUN(scores_equal_the_vectors_of_kvpress);
    RUN(think_keeps_the_channels_of_kvpress);
    RUN(mean_rotation_is_the_mean_of_rotations);
    RUN(ranks_of_ties_rise_with_the_index);
    RUN(moments_of_a_stream_are_mean_and_covariance);
    RUN(expected_with_one_position_and_equal_queries_is_attention);
    RUN(expected_probabilities_sum_to_one);
    RUN(qfilter_of_equal_queries_orders_keys_by_their_product);
    RUN(qfilter_is_linear_in_the_keys_and_takes_filters_made_elsewhere);
    RUN(qfilter_stays_once_the_prompt_has_ended);
    RUN(lagkv_short_texts_keep_sinks_and_the_newest);
    RUN(lagkv_gives_every_block_the_same_scores);
    RUN(lagkv_is_the_same_when_channels_are_stretched_and_shifted);
    RUN(lagkv_constant_channels_count_nothing);
    RUN(keydiff_example_of_the_card);
    RUN(keydiff_cosines_sum_to_no_less_than_zero);
    RUN(cur_example_of_the_card);
    RUN(cur_projected_on_many_columns_nears_the_norms);
    RUN(noncausal_sums_of_a_chunk_are_its_size);
    RUN(noncausal_z_scores_have_mean_0_and_deviation_1);
    RUN(compactor_leaves_its_ends_out_of_every_chunk);
    RUN(compactor_with_blend_0_orders_like_noncausal_on_the_same_slice);
    RUN(noncausal_survives_jumps_truncation_and_early_eviction);
    RUN(leverage_without_sketch_sums_to_the_rank);
    RUN(leverage_of_an_odd_key_is_near_one);
    RUN(leverage_through_a_sketch_equals_the_oracle);
    RUN(cap_is_a_ridge_leverage_of_values);
    RUN(cap_weights_are_one_at_the_key_nearest_to_the_query);
    RUN(a_budget_that_covers_the_tokens_changes_no_bit);
    RUN(lanes_hold_what_they_may_in_every_group_and_block);
    RUN(tiny_budgets_and_one_token_are_fine);
    RUN(rows_of_zeros_and_equal_rows_keep_the_first);
    RUN(huge_rows_end_in_numbers_or_in_an_error_that_names_them);
    RUN(saved_in_the_middle_of_a_prompt_and_copied_they_go_on_alike);
    RUN(byte_limits_hold_and_no_allocation_leaks);
    RUN(what_fits_under_a_byte_limit_fits_to_the_end);
    RUN(a_failed_allocation_leaves_an_error_and_no_leak);
    RUN(presets_expand_to_what_their_cards_say);
    return test_end();
}
