/* Reading by clusters: RetroInfer's wave index, LouisKV's units and trigger, A2ATS's query-weighted codebook and S3's
   inverted index of features. Worked examples of the cards, oracles in double, recall, bad input. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"

static kvmem_view view_at(kvmem_cache *c, int layer) { return kvmem__view_of(c, layer, KVMEM_RETRIEVE); }
static kvmem__unit_index *units_of(kvmem_cache *c, int layer, int g) {
    kvmem_view v = view_at(c, layer);
    return (kvmem__unit_index *)kvmem_view_index(&v, g, 0, NULL, NULL);
}
/* Run i of a lane's index; 0 past the last. */
static int run_of(kvmem_cache *c, int layer, int g, int i, kvmem__run *r) {
    kvmem__unit_index *x = units_of(c, layer, g);
    size_t at = x ? (size_t)x->head : 0;
    for (; x && at < (size_t)x->used; i--) {
        at = kvmem__run_at(x, at, c->shape.head_dim, x->values, r);
        if (!i) return 1;
    }
    return 0;
}
/* One layer, G = 1: rows k, v, q (n, d) of r heads as they are read (no RoPE), softmax scale 1. */
static int tiny_world(world *w, int r, int d, int n, const char *recipe) {
    if (!world_init(w, 1, r, 1, d, n, recipe)) return 0;
    w->cfg.shape.scale = 1;
    return 1;
}
static void set_row(float *x, float a, float b) { x[0] = a; x[1] = b; }
/* Decodes the tokens from `at` on after a prompt, by the recipe and by full; 1 if all bits are equal. */
static int as_full(world *w, int at, int block) {
    kvmem_recipe full = kvmem_recipe_default(), mine = w->recipe;
    kvmem_cache c;
    float *a = outs(w, w->T), *b = outs(w, w->T);
    int k, same;
    full.page = mine.page;
    for (k = 0; k < 2; k++) {
        w->recipe = k ? full : mine;
        CHECK_OK(kvmem_cache_init(&c, &w->cfg));
        CHECK_OK(feed(w, &c, 0, at, 64, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(w, &c, at, w->T, block, KVMEM_DECODE, k ? b : a));
        kvmem_cache_free(&c);
    }
    w->recipe = mine;
    same = same_out(w, a, b, w->T - at);
    free(a);
    free(b);
    return same;
}

/* ---- shared ---- */

TEST(fill_takes_the_nearer_number) {
    static const float score[4] = { 1, 3, 2, 3 };
    static const int four[3] = { 4, 4, 4 }, three[3] = { 3, 4, 4 }, any[4] = { 1, 2, 3, 4 };
    int order[4];
    CHECK(kvmem__fill_nearest(order, score, four, 3, 10) == 2 && order[0] == 1 && order[1] == 2);
    CHECK(kvmem__fill_nearest(order, score, three, 3, 10) == 3 && order[2] == 0);
    CHECK(kvmem__fill_nearest(order, score, any, 4, 100) == 4 && order[0] == 1 && order[1] == 3 && order[2] == 2);
    CHECK(kvmem__fill_nearest(order, score, any, 4, 10) == 4);
    CHECK(kvmem__fill_nearest(order, score, any, 4, 0) == 0);
    CHECK(kvmem__fill_nearest(order, score, any, 0, 5) == 0);
    CHECK(kvmem__fill_nearest(order, score, any, 4, 1) == 0); /* 0 and 2 are as near: without */
}
TEST(ranking_sorts_as_a_slow_sort_does) {
    float s[60];
    int a[60], n, i, j;
    for (n = 0; n < 60; n++) {
        for (i = 0; i < n; i++) { s[i] = (float)(int)(test_unit() * 9); a[i] = i; }
        kvmem__sort_ranked(a, s, n);
        for (i = 0; i < n; i++) {
            int rank = 0;
            for (j = 0; j < n; j++) rank += s[j] > s[a[i]] || (s[j] == s[a[i]] && j < a[i]);
            CHECK(rank == i);
        }
    }
}

/* ---- retro ---- */

TEST(retro_estimates_the_cards_numbers) {
    static const float key[4][2] = { { 1, -5 }, { 4, 5 }, { 3, -5 }, { -200, 0 } }, value[4] = { 10, 5, 20, 0 };
    static const char *const recipe[2] = {
        "full", "retro retrieve=retro(size=2,update=3,estimate=0.5,sink=0,window=0)" };
    static const double want[2] = { 9.068042, 7.130140 };
    int k, t;
    for (k = 0; k < 2; k++) {
        world w; kvmem_cache c;
        float out[2];
        REQUIRE(tiny_world(&w, 1, 2, 4, recipe[k]));
        for (t = 0; t < 4; t++) {
            set_row(w.k + 2 * t, key[t][0], key[t][1]);
            set_row(w.v + 2 * t, value[t], 1);
            set_row(w.q + 2 * t, 1, 0);
        }
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 3, 3, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 3, 4, 1, KVMEM_DECODE, out));
        CHECK_NEAR(out[0], want[k], 2e-6);
        CHECK_NEAR(out[1], 1, 1e-6);
        kvmem_cache_free(&c);
        world_free(&w);
    }
}
/* Step 1 once more in double, step by step as the banner says. */
static void spherical_again(int *own, int k, const float *x, int n, int d, int segments, int rounds, int cross) {
    static double c[64 * 16], sum[64 * 16];
    const int each = k / segments;
    int s, i, j, u, round, count[64];
    for (s = 0; s < segments; s++) {
        const int from = n * s / segments, to = n * (s + 1) / segments;
        for (u = 0; u < each; u++)
            for (j = 0; j < d; j++)
                c[(s * each + u) * d + j] = (double)x[(from + (2 * u + 1) * (to - from) / (2 * each)) * d + j];
        for (round = 1; round <= rounds - (cross ? 1 : 0); round++) {
            for (i = 0; i < 64 * 16; i++) sum[i] = 0;
            memset(count, 0, sizeof count);
            for (i = from; i < to; i++) {
                double best = -1e300;
                for (u = s * each; u < (s + 1) * each; u++) {
                    double dot = 0;
                    for (j = 0; j < d; j++) dot += c[u * d + j] * (double)x[i * d + j];
                    if (dot > best + 1e-9) { best = dot; own[i] = u; }
                }
                count[own[i]]++;
                for (j = 0; j < d; j++) sum[own[i] * d + j] += (double)x[i * d + j];
            }
            if (!cross && round == rounds) break;
            for (u = s * each; u < (s + 1) * each; u++) {
                double norm = 0;
                for (j = 0; j < d; j++) norm += sum[u * d + j] * sum[u * d + j];
                for (j = 0; j < d && count[u]; j++) c[u * d + j] = sum[u * d + j] / sqrt(norm);
            }
        }
    }
    for (i = 0; cross && i < n; i++) {
        double best = -1e300;
        for (u = 0; u < k; u++) {
            double dot = 0;
            for (j = 0; j < d; j++) dot += c[u * d + j] * (double)x[i * d + j];
            if (dot > best + 1e-9) { best = dot; own[i] = u; }
        }
    }
}
TEST(retro_clusters_as_its_rule_says) {
    static const int shape[5][6] = { /* n, d, k, segments, rounds, cross */
        { 90, 8, 6, 1, 10, 1 }, { 100, 4, 12, 3, 10, 1 }, { 100, 4, 12, 3, 4, 0 }, { 7, 3, 7, 1, 1, 1 },
        { 1, 2, 1, 1, 9, 1 } };
    static float x[100 * 8], c[12 * 8], scratch[2 * 12 * 8 + 24];
    int i, t, trial, own[100], again[100], differ = 0;
    for (i = 0; i < 5; i++)
        for (trial = 0; trial < 4; trial++) {
            const int *s = shape[i];
            for (t = 0; t < s[0] * s[1]; t++) x[t] = (float)test_normal();
            kvmem__spherical(c, own, s[2], x, s[0], s[1], s[3], s[4], s[5], scratch);
            spherical_again(again, s[2], x, s[0], s[1], s[3], s[4], s[5]);
            for (t = 0; t < s[0]; t++) differ += own[t] != again[t];
        }
    CHECK(differ == 0);
    for (t = 0; t < 40; t++) x[t] = 0; /* zero rows: all to the first centre, nothing divides by 0 */
    kvmem__spherical(c, own, 4, x, 20, 2, 2, 5, 1, scratch);
    for (t = 0; t < 20; t++) CHECK(own[t] == 0);
}
static const char small_retro[] = "retro retrieve=retro(size=4,segment=40,read=0.1,estimate=0.3,update=24,sink=2,"
                                  "window=8) page=16";
/* The index of every lane against the keys and values themselves, and Jensen's inequality for random queries. */
TEST(retro_index_holds_every_entry_once) {
    world w; kvmem_cache c; kvmem__run r;
    static float k[300 * 8], v[300 * 8];
    int l, g, i, u, j, t, seen[300], from;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 300, small_retro));
    w.cfg.shape.rope = w.rope;
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 210, 50, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 210, 300, 1, KVMEM_DECODE, NULL));
    for (l = 0; l < 2; l++)
        for (g = 0; g < 2; g++) {
            const kvmem__unit_index *x = units_of(&c, l, g);
            double sum[8] = { 0 }, all[8] = { 0 };
            REQUIRE(x && x->n > 0);
            CHECK_OK(kvmem_cache_read(&c, l, g, 0, 300, k, v, NULL));
            memset(seen, 0, sizeof seen);
            for (i = 0, from = 2; run_of(&c, l, g, i, &r); i++) {
                CHECK(r.from == from && r.to - r.from == (i ? 24 : 200) && r.begin[0] == 0);
                CHECK(r.begin[r.n] == r.to - r.from);
                from = r.to;
                for (u = 0; u < r.n; u++) {
                    double mean[8] = { 0 }, part = 0, q[8], est = 0;
                    const int m = r.begin[u + 1] - r.begin[u];
                    CHECK(m > 0);
                    for (j = 0; j < 8; j++) q[j] = test_normal();
                    for (t = r.begin[u]; t < r.begin[u + 1]; t++) {
                        double dot = 0;
                        seen[r.member[t]]++;
                        CHECK(t == r.begin[u] || r.member[t] > r.member[t - 1]);
                        for (j = 0; j < 8; j++) {
                            mean[j] += (double)k[r.member[t] * 8 + j] / m;
                            dot += q[j] * (double)k[r.member[t] * 8 + j];
                        }
                        part += exp(dot);
                    }
                    for (j = 0; j < 8; j++) {
                        CHECK_NEAR(mean[j], r.mean[u * 8 + j], 1e-5);
                        est += q[j] * mean[j];
                        sum[j] += m * (double)r.value[u * 8 + j];
                    }
                    CHECK(m * exp(est) <= part * (1 + 1e-9)); /* Jensen */
                }
            }
            CHECK(i == 4 && from == x->to && x->to == 2 + 200 + 3 * 24);
            for (t = 0; t < 300; t++) CHECK(seen[t] == (t >= 2 && t < x->to));
            for (t = 2; t < x->to; t++) for (j = 0; j < 8; j++) all[j] += (double)v[t * 8 + j];
            for (j = 0; j < 8; j++) CHECK_NEAR(sum[j], all[j], 1e-3);
            /* 50 clusters: 5 read, 15 estimated; then three times 6: 1 and 2 more */
            CHECK(x->exact == 5 + 3 * 1 && x->estimate == 15 + 3 * 2);
        }
    kvmem_cache_free(&c); world_free(&w);
}
/* Attention with summands: the chosen of the index are trusted, scores and sums are done again in double. */
static double retro_worst(world *w, kvmem_cache *c, const float *out, int t, int n, int l) {
    static float k[MAXT * 16], v[MAXT * 16];
    const int d = w->d, r = w->H / w->G;
    double worst = 0;
    int g, h, i, u, j, x, b;
    for (g = 0; g < w->G; g++) {
        kvmem__unit_index *index = units_of(c, l, g);
        static double score[MAXT];
        static int zone[MAXT];
        int total = 0;
        CHECK_OK(kvmem_cache_read(c, l, g, 0, t + n, k, v, NULL));
        for (b = 0; b < n; b++) {
            for (h = g * r, total = 0; h < (g + 1) * r; h++) {
                double q[64], z[MAXT], top = -1e300, all = 0;
                kvmem__run run;
                for (x = 0; x < d; x++) q[x] = (double)row_q(w, t + b, l)[h * d + x];
                turn(q, d, &w->rope[l], t + b);
                for (i = total = 0; run_of(c, l, g, i, &run); i++)
                    for (u = 0; u < run.n; u++, total++) {
                        for (x = 0, z[total] = 0; x < d; x++)
                            z[total] += q[x] * (double)run.mean[u * d + x] / sqrt((double)d);
                        top = KVMEM__MAX(top, z[total]);
                    }
                for (i = 0; i < total; i++) all += exp(z[i] - top);
                for (i = 0; i < total; i++) {
                    if (h == g * r) score[b * 100 + i] = 0;
                    score[b * 100 + i] += exp(z[i] - top) / all;
                }
            }
        }
        for (i = 0; i < total; i++) for (b = 1; b < n; b++) score[i] = KVMEM__MAX(score[i], score[b * 100 + i]);
        for (i = 0; i < total; i++) {
            int rank = 0;
            for (j = 0; j < total; j++) rank += score[j] > score[i] || (score[j] == score[i] && j < i);
            zone[i] = rank < index->exact ? 2 : rank < index->exact + index->estimate ? 1 : 0;
        }
        for (b = 0; b < n; b++)
            for (h = g * r; h < (g + 1) * r; h++) {
                double q[64], o[64] = { 0 }, sum = 0;
                static unsigned char left[MAXT];
                kvmem__run run;
                int at = 0;
                memset(left, 0, sizeof left);
                for (x = 0; x < d; x++) q[x] = (double)row_q(w, t + b, l)[h * d + x] / sqrt((double)d);
                turn(q, d, &w->rope[l], t + b);
                for (i = 0; run_of(c, l, g, i, &run); i++)
                    for (u = 0; u < run.n; u++, at++) {
                        double z = 0;
                        const int m = run.begin[u + 1] - run.begin[u];
                        for (j = run.begin[u]; j < run.begin[u + 1] && zone[at] != 2; j++) left[run.member[j]] = 1;
                        if (zone[at] != 1) continue;
                        for (x = 0; x < d; x++) z += q[x] * (double)run.mean[u * d + x];
                        sum += m * exp(z);
                        for (x = 0; x < d; x++) o[x] += m * exp(z) * (double)run.value[u * d + x];
                    }
                for (i = 0; i <= t + b; i++) {
                    double z = 0;
                    if (left[i]) continue;
                    for (x = 0; x < d; x++) z += q[x] * (double)k[i * d + x];
                    sum += exp(z);
                    for (x = 0; x < d; x++) o[x] += exp(z) * (double)v[i * d + x];
                }
                for (x = 0; x < d; x++) {
                    const double e = fabs(o[x] / sum - (double)out[((size_t)b * (size_t)w->L + (size_t)l) *
                                                                   (size_t)(w->H * d) + (size_t)(h * d + x)]);
                    if (!(e <= worst)) worst = e;
                }
            }
    }
    return worst;
}
TEST(retro_reads_estimates_and_leaves_out_as_its_rule_says) {
    world w; kvmem_cache c; float *out;
    int64_t read, there;
    int t, l, n, k;
    for (k = 0; k < 2; k++) {
        double worst = 0;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 300, small_retro));
        w.cfg.shape.rope = w.rope;
        w.cfg.threads = 1 + k;
        out = outs(&w, 5);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 210, 50, KVMEM_PROMPT_END, NULL));
        for (t = 210; t < 295; t += n) {
            n = k ? 5 : 1; /* blocks: the largest score of their queries */
            CHECK_OK(feed(&w, &c, t, t + n, n, KVMEM_DECODE, out));
            if (t > 216 && t % 15) continue;
            for (l = 0; l < 2; l++) worst = KVMEM__MAX(worst, retro_worst(&w, &c, out, t, n, l));
        }
        CHECK_NEAR(worst, 0, 3e-5);
        kvmem_cache_pages(&c, &read, &there);
        CHECK(read <= there);
        kvmem_cache_free(&c); free(out); world_free(&w);
    }
}
TEST(retro_is_exact_when_it_reads_everything) {
    static const char *const recipe[] = {
        "retro",                                                     /* fewer than `update` entries: no index */
        "retro retrieve=retro(read=1,size=4,update=16,sink=0,window=0)",
        "retro retrieve=retro(read=1,estimate=1,size=1,update=1,sink=0,window=0) page=7",
        "retro retrieve=retro(read=0,estimate=0,sink=1000)",
        "retro retrieve=retro(read=0,estimate=0,window=1000,update=1)" };
    int i;
    for (i = 0; i < 5; i++) {
        world w;
        REQUIRE(world_init(&w, 2, 4, i == 2 ? 4 : 1, 8, 150, recipe[i]));
        w.cfg.shape.rope = w.rope;
        CHECK(as_full(&w, 120, i == 3 ? 7 : 1));
        world_free(&w);
    }
}
/* All clusters of one entry: the estimate is the entry. */
TEST(retro_clusters_of_one_entry_are_estimated_without_error) {
    world w; kvmem_cache c; float *a, *b;
    kvmem__unit_index *x;
    int i, j, k;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 17,
                       "retro retrieve=retro(size=1,rounds=1,read=0,estimate=1,update=1,sink=0,window=0)"));
    for (i = 0; i < 16; i++) for (j = 0; j < 8; j++) w.k[i * 8 + j] = i / 2 == j ? (i % 2 ? -2.0f : 2.0f) : 0;
    a = outs(&w, 1); b = outs(&w, 1);
    for (k = 0; k < 2; k++) {
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 16, 16, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 16, 17, 1, KVMEM_DECODE, k ? b : a));
        x = units_of(&c, 0, 0);
        CHECK(k || (x->n == 16 && x->exact == 1 && x->estimate == 15));
        w.recipe = kvmem_recipe_default();
        kvmem_cache_free(&c);
    }
    for (i = 0; i < 16; i++) CHECK_NEAR(a[i], b[i], 1e-6);
    CHECK(!same_out(&w, a, b, 1));
    free(a); free(b); world_free(&w);
}
/* Keys of `kinds` kinds (0: no kinds), queries near one of them: mean error of the output, share of the true top 32
   that is read. */
static double error_of(const char *recipe, int kinds, double spread, double *recall) {
    world w; kvmem_cache c; float *out;
    double err = 0, hit = 0;
    int t, j, i;
    static float centre[32 * 16];
    test_state = 4242;
    *recall = 0;
    if (!world_init(&w, 1, 1, 1, 16, 600, recipe)) return 1e9;
    for (i = 0; i < 32 * 16; i++) centre[i] = (float)test_normal();
    for (t = 0; t < 600 && kinds; t++) {
        const int kind = (int)(test_unit() * kinds);
        for (j = 0; j < 16; j++) {
            w.k[t * 16 + j] = centre[kind * 16 + j] + (float)(.3 * test_normal());
            w.q[t * 16 + j] = (float)spread * (centre[(t % kinds) * 16 + j] + (float)(.3 * test_normal()));
        }
    }
    out = outs(&w, 20);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 580, 64, KVMEM_PROMPT_END, NULL));
    for (t = 580; t < 600; t++) {
        double o[256], part = 0, norm = 0, z[600];
        static int set[600];
        kvmem__run r;
        CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, out));
        for (i = 0; i <= t; i++) set[i] = i;
        oracle(&w, t, 0, 0, set, t + 1, NULL, t, o);
        for (j = 0; j < 16; j++) {
            part += (o[j] - (double)out[j]) * (o[j] - (double)out[j]);
            norm += o[j] * o[j];
        }
        err += sqrt(part / norm) / 20;
        if (!run_of(&c, 0, 0, 0, &r)) continue;
        for (i = 0; i < r.to; i++)
            for (j = 0, z[i] = 0; j < 16; j++) z[i] += (double)w.q[t * 16 + j] * (double)w.k[i * 16 + j];
        for (i = 0; i < r.n; i++)
            for (j = r.begin[i]; j < r.begin[i + 1] && r.chosen[i] == 2; j++) {
                int rank = 0, x;
                for (x = r.from; x < r.to; x++) rank += z[x] > z[r.member[j]];
                hit += rank < 32;
            }
    }
    *recall = hit / 20 / 32;
    kvmem_cache_free(&c); free(out); world_free(&w);
    return err;
}
TEST(retro_finds_clusters_and_estimation_helps_flat_attention) {
    static const char with[] = "retro retrieve=retro(read=0.1,estimate=0.3,update=16,window=16)";
    static const char without[] = "retro retrieve=retro(read=0.1,estimate=0,update=16,window=16)";
    double clustered, flat, a, b;
    a = error_of(with, 16, 1, &clustered);
    b = error_of(without, 16, 1, &clustered);
    CHECK(clustered > .6); /* share of the true top 32 among 10 % of the clusters */
    CHECK(a < b);
    a = error_of(with, 0, 1, &flat);
    b = error_of(without, 0, 1, &flat);
    CHECK(flat < clustered && flat > .1);
    CHECK(a < .7 * b);
}
/* A copy goes on alike, for any number of threads; one that was loaded makes the index again. */
static void goes_on_alike(const char *recipe, int loaded_alike) {
    world w; kvmem_cache a, b, copy; bytes f = { 0, 0, 0 };
    kvmem_bytes x;
    test_heap heap;
    float *p, *q;
    memset(&heap, 0, sizeof heap);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 220, recipe));
    w.cfg.shape.rope = w.rope;
    w.cfg.allocator = test_allocator(&heap);
    p = outs(&w, 30); q = outs(&w, 30);
    REQUIRE_OK(kvmem_cache_init(&a, &w.cfg));
    w.cfg.threads = 3;
    REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
    CHECK_OK(feed(&w, &a, 0, 150, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &a, 150, 190, 1, KVMEM_DECODE, NULL));
    CHECK_OK(kvmem_cache_save(&a, bytes_write, &f));
    REQUIRE_OK(kvmem_cache_copy(&copy, &a));
    CHECK_OK(feed(&w, &a, 190, 220, 1, KVMEM_DECODE, p));
    CHECK_OK(feed(&w, &copy, 190, 220, 1, KVMEM_DECODE, q));
    CHECK(same_out(&w, p, q, 30));
    CHECK_OK(kvmem_cache_load(&b, f.p, f.n));
    CHECK_OK(feed(&w, &b, 190, 220, 1, KVMEM_DECODE, q));
    if (loaded_alike) CHECK(same_out(&w, p, q, 30));
    kvmem_cache_clear(&b);
    CHECK_OK(feed(&w, &b, 0, 150, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &b, 150, 190, 1, KVMEM_DECODE, NULL));
    CHECK_OK(feed(&w, &b, 190, 220, 1, KVMEM_DECODE, q));
    CHECK(same_out(&w, p, q, 30)); /* cleared: as new */
    CHECK_OK(kvmem_cache_truncate(&b, 190));
    CHECK_OK(feed(&w, &b, 190, 220, 1, KVMEM_DECODE, NULL));
    kvmem_cache_free(&copy);
    kvmem_cache_free(&b);
    kvmem_cache_bytes(&a, &x);
    CHECK(x.live.total == heap.live);
    kvmem_cache_free(&a);
    CHECK(!heap.live && !heap.wrong);
    free(f.p); free(p); free(q); world_free(&w);
}
/* Runs beside evictions, odd shapes, hard rows; memory that ends is an error and leaks nothing. */
static void survives(const char *recipe) {
    static const char *const more[4] = { "", " score=recency budget=60 sink=4 when=step",
                                         " score=random budget=50 when=every(9)", " codec=q8_0/f16" };
    world w; kvmem_cache c;
    test_heap heap;
    int k, i, t;
    size_t fail;
    for (k = 0; k < 8; k++) {
        char text[400];
        sprintf(text, "%s%s", recipe, more[k % 4]);
        REQUIRE(world_init(&w, 1 + k % 2, k % 3 ? 4 : 2, k % 3 == 1 ? 4 : 1, 32, 130, text));
        if (k % 2) w.cfg.shape.rope = w.rope;
        if (k >= 4) { /* equal keys, zero queries */
            for (i = 0; i < 130 * w.L * w.G * 32; i++) w.k[i] = k == 4 ? 0 : k == 5 ? 1 : w.k[i % (w.L * w.G * 32)];
            for (i = 0; i < 130 * w.L * w.H * 32 && k == 6; i++) w.q[i] = 0;
        }
        w.cfg.max_block = 32;
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 1, 1, KVMEM_PROMPT_END, NULL)); /* a prompt of one token */
        CHECK_OK(feed(&w, &c, 1, 90, 32, KVMEM_PROMPT_END, NULL)); /* and another one */
        CHECK_OK(feed(&w, &c, 90, 110, 1, KVMEM_DECODE, NULL));
        CHECK_OK(feed(&w, &c, 110, 130, 9, KVMEM_PROMPT_END, NULL));
        kvmem_cache_free(&c); world_free(&w);
    }
    for (fail = 1; fail < 4000; fail += 1 + fail / 16) {
        kvmem_status st;
        memset(&heap, 0, sizeof heap);
        heap.fail_at = fail;
        test_state = 77;
        REQUIRE(world_init(&w, 1, 2, 2, 8, 70, recipe));
        w.cfg.allocator = test_allocator(&heap);
        quiet = 1;
        st = kvmem_cache_init(&c, &w.cfg);
        if (st == KVMEM_OK) st = feed(&w, &c, 0, 60, 60, KVMEM_PROMPT_END, NULL);
        for (t = 60; t < 70 && st == KVMEM_OK; t++) st = feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, NULL);
        quiet = 0;
        CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY);
        kvmem_cache_free(&c);
        CHECK(!heap.live && !heap.wrong);
        world_free(&w);
        if (st == KVMEM_OK) break;
    }
    CHECK(fail > 10 && fail < 4000);
}
TEST(retro_goes_on_alike_and_survives) {
    goes_on_alike(small_retro, 0);
    survives("retro retrieve=retro(size=3,segment=20,read=0.2,estimate=0.3,update=5,sink=1,window=3) page=8");
}

/* ---- louiskv ---- */

static const char small_louis[] = "louiskv retrieve=louiskv(tau=0.1,size=4,budget=24,sink=2,window=8) page=16";
TEST(louiskv_mean_cosine_is_the_cards) {
    float a[4] = { 1, 0, 2, 0 }, b[4], zero[4] = { 0, 0, 0, 0 };
    b[0] = .9f; b[1] = (float)sqrt(1 - .81); b[2] = .4f * 3; b[3] = (float)sqrt(1 - .16) * 3;
    CHECK_NEAR(kvmem__mean_cosine(a, b, 2, 2), .65, 1e-6); /* below .7: a boundary */
    CHECK_NEAR(kvmem__mean_cosine(a, a, 2, 2), 1, 1e-6);
    CHECK(kvmem__mean_cosine(a, zero, 2, 2) == 0 && kvmem__mean_cosine(zero, zero, 2, 2) == 0);
}
static int louis_times(const char *recipe, int decode, int64_t *loaded) {
    world w; kvmem_cache c;
    int n;
    if (!world_init(&w, 1, 4, 2, 8, 200, recipe)) return -1;
    w.cfg.shape.rope = w.rope;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 150, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 150, 150 + decode, 1, KVMEM_DECODE, NULL));
    n = units_of(&c, 0, 1)->times;
    kvmem_cache_loads(&c, NULL, loaded);
    kvmem_cache_free(&c); world_free(&w);
    return n;
}
TEST(louiskv_tau_says_how_often_it_chooses) {
    int64_t all, some;
    CHECK(louis_times("louiskv retrieve=louiskv(tau=1.1,size=4,budget=20,window=8)", 40, &all) == 40);
    CHECK(louis_times("louiskv retrieve=louiskv(tau=-1.1,size=4,budget=20,window=8)", 40, &some) == 1);
    CHECK(some > 0 && some < all);
}
/* Units and what is in none yet are all entries, each once; a unit's mean is that of its keys. */
TEST(louiskv_units_partition_the_entries) {
    world w; kvmem_cache c;
    static float k[200 * 8];
    int t, u, j, x, i, seen[200], segments = 0;
    kvmem__run r;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 200, small_louis));
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 120, 40, KVMEM_PROMPT_END, NULL));
    for (t = 120; t < 200; t++) {
        const kvmem__unit_index *index;
        CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, NULL));
        CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, t + 1, k, NULL, NULL));
        index = units_of(&c, 0, 0);
        memset(seen, 0, sizeof seen);
        for (i = 0; run_of(&c, 0, 0, i, &r); i++) {
            CHECK(i == 0 ? r.to == 112 && r.n <= 28 : r.n == 1);
            segments = i;
            for (u = 0; u < r.n; u++) {
                for (j = r.begin[u]; j < r.begin[u + 1]; j++) seen[r.member[j]]++;
                for (x = 0; x < 8; x++) {
                    double mean = 0;
                    for (j = r.begin[u]; j < r.begin[u + 1]; j++) mean += (double)k[r.member[j] * 8 + x];
                    CHECK_NEAR(mean / (r.begin[u + 1] - r.begin[u]), r.mean[u * 8 + x], 1e-5);
                }
            }
        }
        for (j = 0; j <= t; j++) CHECK(seen[j] == (j >= 2 && j < index->to));
        CHECK(index->open <= t && index->to <= index->open && index->closed >= 0);
        CHECK(!index->closed || t - index->to <= 8 || index->open < t); /* closed ones wait in the window */
    }
    CHECK(segments > 3);
    kvmem_cache_free(&c); world_free(&w);
}
/* The choice at every boundary and what is read between them, in double. */
TEST(louiskv_equals_its_rule_over_a_run) {
    world w; kvmem_cache c; float *out;
    static int chosen[2][200], size[200], order[200];
    int t, g, h, x, i, u, j, boundaries = 0, kept = 0;
    double worst = 0;
    REQUIRE(world_init(&w, 1, 4, 2, 8, 200,
                       "louiskv retrieve=louiskv(tau=0.55,size=4,budget=24,sink=2,window=8) page=16"));
    w.cfg.shape.rope = w.rope;
    for (t = 1; t < 200; t++) /* queries that walk */
        for (x = 0; x < 32; x++) w.q[t * 32 + x] = .7f * w.q[(t - 1) * 32 + x] + .7f * w.q[t * 32 + x];
    out = outs(&w, 1);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 120, 40, KVMEM_PROMPT_END, NULL));
    for (t = 120; t < 200; t++) {
        double q[2][32], r = 0;
        for (i = 0; i < 2; i++)
            for (x = 0; x < 32; x++) q[i][x] = (double)w.q[(t - i) * 32 + x];
        for (i = 0; i < 2; i++) for (h = 0; h < 4; h++) turn(&q[i][8 * h], 8, &w.rope[0], t - i);
        for (h = 0; h < 4; h++) {
            double a = 0, b = 0, ab = 0;
            for (x = 8 * h; x < 8 * h + 8; x++) {
                a += q[0][x] * q[0][x];
                b += q[1][x] * q[1][x];
                ab += q[0][x] * q[1][x];
            }
            r += ab / sqrt(a * b) / 4;
        }
        CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, out));
        boundaries += t == 120 || r < .55;
        CHECK(units_of(&c, 0, 0)->times == boundaries);
        CHECK(units_of(&c, 0, 0)->open == t || !(t == 120 || r < .55));
        for (g = 0; g < 2; g++) {
            const kvmem__unit_index *index = units_of(&c, 0, g);
            static int left[200], set[200];
            static float score[200];
            kvmem__run run;
            int n = 0, total = 0, sum = 0;
            memset(score, 0, sizeof score);
            for (h = 2 * g; h < 2 * g + 2; h++) {
                double z[200], all = 0;
                for (i = total = 0; run_of(&c, 0, g, i, &run); i++)
                    for (u = 0; u < run.n; u++, total++) {
                        for (x = 0, z[total] = 0; x < 8; x++)
                            z[total] += q[0][8 * h + x] * (double)run.mean[u * 8 + x] / sqrt(8.0);
                        all += exp(z[total]);
                        size[total] = run.begin[u + 1] - run.begin[u];
                    }
                for (u = 0; u < total; u++) score[u] += (float)(exp(z[u]) / all / 2);
            }
            if (t == 120 || r < .55) {
                memset(chosen[g], 0, sizeof chosen[g]);
                for (u = kvmem__fill_nearest(order, score, size, total, 24); u > 0; u--) {
                    chosen[g][order[u - 1]] = 1;
                    sum += size[order[u - 1]];
                }
                CHECK(sum > 0 && sum < 60);
            } else kept++;
            memset(left, 0, sizeof left);
            for (i = total = 0; run_of(&c, 0, g, i, &run); i++)
                for (u = 0; u < run.n; u++, total++) {
                    CHECK(run.chosen[u] == chosen[g][total]);
                    for (j = run.begin[u]; j < run.begin[u + 1] && !chosen[g][total]; j++) left[run.member[j]] = 1;
                }
            for (i = 0; i <= t; i++) if (!left[i]) set[n++] = i;
            CHECK(n < t && index->n == total);
            for (h = 2 * g; h < 2 * g + 2; h++) {
                double o[256];
                oracle(&w, t, 0, h, set, n, NULL, t, o);
                for (x = 0; x < 8; x++) worst = KVMEM__MAX(worst, fabs(o[x] - (double)out[h * 8 + x]));
            }
        }
    }
    CHECK_NEAR(worst, 0, 3e-5);
    if (!(boundaries > 3 && kept > 20)) FAIL_AT("%d boundaries, %d kept", boundaries, kept);
    kvmem_cache_free(&c); free(out); world_free(&w);
}
TEST(louiskv_is_exact_with_room_for_everything) {
    static const char *const recipe[] = { "louiskv", "louiskv retrieve=louiskv(size=4,budget=150,window=8) page=9",
                                          "louiskv retrieve=louiskv(size=4,budget=0,window=1000)",
                                          "louiskv retrieve=louiskv(size=1,budget=150,sink=0,window=0,tau=2)" };
    int i;
    for (i = 0; i < 4; i++) {
        world w;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 150, recipe[i]));
        w.cfg.shape.rope = w.rope;
        CHECK(as_full(&w, 120, i == 1 ? 5 : 1));
        world_free(&w);
    }
}
TEST(louiskv_equal_heads_choose_as_one_head) {
    world w, one; kvmem_cache c; float *a, *b;
    int t, i, x;
    REQUIRE(world_init(&w, 1, 4, 1, 8, 160, small_louis));
    REQUIRE(world_init(&one, 1, 1, 1, 8, 160, small_louis));
    memcpy(one.k, w.k, 160 * 8 * 4);
    memcpy(one.v, w.v, 160 * 8 * 4);
    for (t = 0; t < 160; t++)
        for (i = 0; i < 32; i++) w.q[t * 32 + i] = one.q[t * 8 + i % 8];
    a = outs(&w, 40); b = outs(&one, 40);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 120, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 120, 160, 1, KVMEM_DECODE, a));
    kvmem_cache_free(&c);
    REQUIRE_OK(kvmem_cache_init(&c, &one.cfg));
    CHECK_OK(feed(&one, &c, 0, 120, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&one, &c, 120, 160, 1, KVMEM_DECODE, b));
    kvmem_cache_free(&c);
    for (t = 0; t < 40; t++) for (x = 0; x < 8; x++) CHECK_NEAR(a[t * 32 + x], b[t * 8 + x], 1e-5);
    free(a); free(b); world_free(&w); world_free(&one);
}
/* Topics that change now and then: boundaries fall on the changes. */
TEST(louiskv_chooses_where_the_topic_changes) {
    world w; kvmem_cache c;
    int t, x, before, wrong = 0;
    float topic[8] = { 0 };
    REQUIRE(world_init(&w, 1, 1, 1, 8, 300, "louiskv retrieve=louiskv(size=4,budget=16,window=8)"));
    for (t = 0; t < 300; t++) {
        for (x = 0; x < 8 && t % 20 == 0; x++) topic[x] = (float)test_normal() * (t / 20 % 8 == x ? 5 : 1);
        for (x = 0; x < 8; x++) w.q[t * 8 + x] = topic[x] + (float)(.05 * test_normal());
    }
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 110, 40, KVMEM_PROMPT_END, NULL));
    for (t = 110, before = 0; t < 300; t++) {
        int now;
        CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, NULL));
        now = units_of(&c, 0, 0)->times;
        wrong += (now > before) != (t == 110 || t % 20 == 0);
        before = now;
    }
    CHECK(wrong == 0);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(louiskv_goes_on_alike_and_survives) {
    goes_on_alike(small_louis, 0);
    survives("louiskv retrieve=louiskv(tau=0.5,size=3,budget=9,sink=1,window=3,piece=30) page=8");
}

/* ---- a2ats ---- */

static const char small_a2ats[] = "a2ats retrieve=a2ats(centroids=12,sink=3,window=9,ratio=0.1,at=6) page=16";
TEST(a2ats_metric_is_the_cards) {
    static const float l[4] = { 2, 0, 0, 1 }, k[2] = { 1, 1 }, c[2][2] = { { 0, 1 }, { 1, -.5f } };
    float x[2], y[2][2];
    int i;
    kvmem__lower_mul(x, k, l, 2);
    for (i = 0; i < 2; i++) kvmem__lower_mul(y[i], c[i], l, 2);
    CHECK_NEAR(kvmem__distance2(x, y[0], 2), 4, 1e-6);
    CHECK_NEAR(kvmem__distance2(x, y[1], 2), 2.25, 1e-6);
    CHECK_NEAR(kvmem__distance2(k, c[0], 2), 1, 1e-6);
    CHECK_NEAR(kvmem__distance2(k, c[1], 2), 2.25, 1e-6);
}
static kvmem__a2_index *a2_of(kvmem_cache *c, int layer, int g) {
    kvmem_view v = view_at(c, layer);
    return (kvmem__a2_index *)kvmem_view_index(&v, g, 0, NULL, NULL);
}
/* H of the prompt's queries in double, as the codebook is learned with it: over the rms of its entries, + 1e-6. */
static void a2_metric(const world *w, int prompt, int at, int l, int g, double *H) {
    const int d = w->d, r = w->H / w->G;
    double q[64], ms = 0;
    int t, h, i, j;
    for (i = 0; i < d * d; i++) H[i] = 0;
    for (t = 0; t < prompt; t++)
        for (h = g * r; h < (g + 1) * r; h++) {
            for (i = 0; i < d; i++) q[i] = (double)row_q(w, t, l)[h * d + i];
            if (w->cfg.shape.rope) turn(q, d, &w->rope[l], at);
            for (i = 0; i < d; i++) for (j = 0; j < d; j++) H[i * d + j] += q[i] * q[j];
        }
    for (i = 0; i < d * d; i++) ms += H[i] * H[i] / (d * d);
    for (i = 0; i < d * d; i++) H[i] = H[i] / sqrt(ms) + (i % (d + 1) ? 0 : 1e-6);
}
/* Ids by the weighted distance, tables, choice and attention in double. */
TEST(a2ats_equals_its_rule_over_a_run) {
    world w; kvmem_cache c; float *out;
    int t, l, g, h, i, j, x, n, blocks, wrong = 0, close = 0;
    double worst = 0;
    for (blocks = 1; blocks <= 3; blocks += 2) {
        REQUIRE(world_init(&w, 2, 4, 2, 8, 160, small_a2ats));
        w.cfg.shape.rope = w.rope;
        for (i = 0; i < 160 * 2 * 32; i++) w.q[i] *= i % 8 < 3 ? 3 : .3f; /* some channels matter more */
        out = outs(&w, blocks);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 120, 50, KVMEM_PROMPT_END, NULL));
        for (t = 120; t < 159; t += n) {
            n = blocks;
            CHECK_OK(feed(&w, &c, t, t + n, n, KVMEM_DECODE, out));
            for (l = 0; l < 2; l++)
                for (g = 0; g < 2; g++) {
                    const int from = 3, to = t + n - 9, places = (t + n) / 10;
                    kvmem__a2_index *index = a2_of(&c, l, g);
                    const kvmem__a2_parts p = kvmem__a2_at(index, index->k, 8);
                    static int in[200], set[200];
                    double H[64];
                    int m = 0;
                    CHECK(index->n == t && index->k == 12 && index->weighted);
                    a2_metric(&w, 120, 6, l, g, H);
                    for (i = 0; i < t; i++) {
                        double best = 1e300, second = 1e300;
                        int id = -1;
                        for (j = 0; j < 12; j++) {
                            double dist = 0, off[8];
                            for (x = 0; x < 8; x++)
                                off[x] = (double)row_k(&w, w.k, i, l)[g * 8 + x] - (double)p.c[j * 8 + x];
                            for (x = 0; x < 64; x++) dist += off[x / 8] * H[x] * off[x % 8];
                            if (dist < best) { second = best; best = dist; id = j; }
                            else second = KVMEM__MIN(second, dist);
                        }
                        if (second - best < 1e-4) close++;
                        else wrong += id != (p.id[i] & 32767);
                    }
                    for (i = 0; i < t + n; i++) in[i] = i < from || i >= to;
                    for (h = 2 * g; h < 2 * g + 2; h++) {
                        float score[200];
                        int order[200];
                        for (i = from; i < to; i++) {
                            int b;
                            for (b = 0; b < n; b++) {
                                double q[8], dot = 0;
                                for (x = 0; x < 8; x++) q[x] = (double)row_q(&w, t + b, l)[h * 8 + x];
                                turn(q, 8, &w.rope[l], 6);
                                for (x = 0; x < 8; x++) dot += q[x] * (double)p.c[(p.id[i] & 32767) * 8 + x];
                                if (!b || (float)dot > score[i]) score[i] = (float)dot;
                            }
                        }
                        for (i = from; i < to; i++) { /* equal numbers, equal scores: the lower entry first */
                            order[i] = 0;
                            for (j = from; j < to; j++)
                                order[i] += (p.id[i] & 32767) == (p.id[j] & 32767) ? j < i : score[j] > score[i];
                            if (order[i] < places) in[i] = 1;
                        }
                    }
                    for (i = 0; i < n; i++) {
                        double o[256];
                        for (j = m = 0; j <= t + i; j++) if (in[j]) set[m++] = j;
                        for (h = 2 * g; h < 2 * g + 2; h++) {
                            oracle(&w, t + i, l, h, set, m, NULL, t + i, o);
                            for (x = 0; x < 8; x++)
                                worst = KVMEM__MAX(worst, fabs(o[x] - (double)out[(i * 2 + l) * 32 + h * 8 + x]));
                        }
                    }
                    CHECK(m < t);
                }
        }
        kvmem_cache_free(&c); free(out); world_free(&w);
    }
    CHECK(wrong == 0 && close < 20);
    CHECK_NEAR(worst, 0, 3e-5);
}
TEST(a2ats_plain_weight_is_ordinary_kmeans) {
    world w; kvmem_cache c;
    kvmem__a2_index *x;
    static float keys[40 * 8], centre[5 * 8], scratch[4000];
    int i;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 41, "a2ats retrieve=a2ats(centroids=5,weight=plain)"));
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 40, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 40, 41, 1, KVMEM_DECODE, NULL));
    x = a2_of(&c, 0, 0);
    CHECK(x->k == 5 && !x->weighted);
    memcpy(keys, w.k, sizeof keys);
    kvmem__kmeans(centre, 5, keys, 40, 8, 16, kvmem__random(w.recipe.seed, 0, 0, 0), scratch);
    for (i = 0; i < 40; i++) CHECK(kvmem__a2_at(x, 5, 8).c[i] == centre[i]);
    kvmem_cache_free(&c); world_free(&w);
}
/* As many centres as keys: a score is the logit at the fixed distance, the choice that of a flat search. */
TEST(a2ats_with_a_centre_for_every_key_is_a_flat_search) {
    world w; kvmem_cache c;
    kvmem__a2_index *index;
    kvmem__a2_parts p;
    int i, j, x;
    REQUIRE(world_init(&w, 1, 1, 1, 8, 101, "a2ats retrieve=a2ats(centroids=4096,sink=0,window=1,ratio=0.2,at=50)"));
    w.cfg.shape.rope = w.rope;
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, NULL));
    index = a2_of(&c, 0, 0);
    p = kvmem__a2_at(index, index->k, 8);
    CHECK(index->k == 100);
    for (i = 0; i < 100; i++) {
        double q[8], s[100];
        int rank = 0;
        for (x = 0; x < 8; x++) q[x] = (double)w.q[100 * 8 + x];
        turn(q, 8, &w.rope[0], 50);
        for (j = 0; j < 100; j++)
            for (x = 0, s[j] = 0; x < 8; x++) s[j] += q[x] * (double)w.k[j * 8 + x];
        for (x = 0; x < 8; x++) CHECK_NEAR(p.c[(p.id[i] & 32767) * 8 + x], w.k[i * 8 + x], 1e-3);
        for (j = 0; j < 100; j++) rank += s[j] > s[i];
        CHECK((p.id[i] >> 15) == (rank < 20));
    }
    kvmem_cache_free(&c); world_free(&w);
}
TEST(a2ats_is_exact_when_it_reads_everything) {
    static const char *const recipe[] = { "a2ats retrieve=a2ats(ratio=1,centroids=7)",
                                          "a2ats retrieve=a2ats(window=500)",
                                          "a2ats retrieve=a2ats(sink=500,ratio=0,centroids=1) page=9" };
    int i;
    for (i = 0; i < 3; i++) {
        world w;
        REQUIRE(world_init(&w, 2, 4, i ? 4 : 1, 8, 150, recipe[i]));
        w.cfg.shape.rope = w.rope;
        CHECK(as_full(&w, 120, i == 1 ? 5 : 1));
        world_free(&w);
    }
}
/* Mean share of the true best that is chosen where a few channels of the queries matter. */
static double a2_recall(const char *recipe) {
    world w; kvmem_cache c;
    double hit = 0;
    int t, i, j, x;
    test_state = 99;
    if (!world_init(&w, 1, 1, 1, 16, 520, recipe)) return 0;
    for (i = 0; i < 520 * 16; i++) w.q[i] *= i % 16 < 4 ? 3 : .1f;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 500, 100, KVMEM_PROMPT_END, NULL));
    for (t = 500; t < 520; t++) {
        kvmem__a2_index *index;
        double s[520];
        CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, NULL));
        index = a2_of(&c, 0, 0);
        for (i = 0; i < t; i++)
            for (x = 0, s[i] = 0; x < 16; x++) s[i] += (double)w.q[t * 16 + x] * (double)w.k[i * 16 + x];
        for (i = 0; i < t; i++) {
            int rank = 0;
            for (j = 0; j < t; j++) rank += s[j] > s[i];
            hit += rank < 15 && (kvmem__a2_at(index, index->k, 16).id[i] & 32768);
        }
    }
    kvmem_cache_free(&c); world_free(&w);
    return hit / 20 / 15;
}
TEST(a2ats_query_weight_finds_more) {
    const double weighted = a2_recall("a2ats retrieve=a2ats(centroids=32,sink=0,window=0,ratio=0.03)");
    const double plain = a2_recall("a2ats retrieve=a2ats(centroids=32,sink=0,window=0,ratio=0.03,weight=plain)");
    if (!(weighted > plain + .1 && weighted > .3)) FAIL_AT("recall %g with H, %g without", weighted, plain);
}
TEST(a2ats_goes_on_alike_and_survives) {
    goes_on_alike(small_a2ats, 1);
    survives("a2ats retrieve=a2ats(centroids=5,rows=40,sink=1,window=3,ratio=0.1,at=9) page=8");
}

/* ---- s3 ---- */

static const char small_s3[] = "s3 retrieve=s3(layer=1,features=24,k=3,rounds=2,smooth=4,span=8,budget=24,sink=2,"
                               "window=5) page=16";
TEST(s3_rarity_is_the_cards) {
    CHECK_NEAR(kvmem__rarity(100, 1), 4.209655, 1e-6);
    CHECK_NEAR(kvmem__rarity(100, 10), 2.263745, 1e-6);
}
TEST(s3_features_are_the_largest_positive_ones) {
    enum { F = 20, D = 6, K = 4 };
    float enc[F * D], b_enc[F], b_dec[D], x[D], act[F], e[D];
    int idx[2 * F], t, i, j, n, few = 0;
    uint16_t out[K], again[K];
    for (t = 0; t < 200; t++) {
        double a[F];
        for (i = 0; i < F * D; i++) enc[i] = (float)test_normal();
        for (i = 0; i < F; i++) b_enc[i] = (float)(test_normal() - (t % 2 ? 6 : 0));
        for (i = 0; i < D; i++) { b_dec[i] = (float)test_normal(); x[i] = (float)test_normal(); }
        n = kvmem__sae_features(out, x, b_dec, b_enc, enc, F, D, K, act, e, idx);
        CHECK(n <= K);
        few += n < K;
        CHECK(kvmem__sae_features(again, x, b_dec, b_enc, enc, F, D, K, act, e, idx) == n);
        CHECK(!memcmp(out, again, sizeof out));
        for (i = 0; i < F; i++)
            for (j = 0, a[i] = (double)b_enc[i]; j < D; j++)
                a[i] += (double)enc[i * D + j] * ((double)x[j] - (double)b_dec[j]);
        for (i = 0; i < F; i++) {
            int rank = 0, in = 0;
            for (j = 0; j < F; j++) rank += a[j] > a[i];
            for (j = 0; j < n; j++) in += out[j] == i;
            CHECK(in == (rank < K && a[i] > 0));
        }
        for (i = n; i < K; i++) CHECK(out[i] == KVMEM__S3_NONE);
    }
    CHECK(few > 10);
}
TEST(s3_training_lowers_the_error) {
    enum { F = 32, D = 8, K = 3, N = 300 };
    static float x[N * D], enc[F * D], b_enc[F], scratch[F * (D + 3) + 2 * D], atom[16 * D];
    float b_dec[D], act[F], e[D];
    double err[2] = { 0, 0 }, all = 0;
    int idx[2 * F], k, t, i, j, n;
    uint16_t at[K];
    for (i = 0; i < 16 * D; i++) atom[i] = (float)test_normal();
    for (t = 0; t < N; t++) /* sums of a few of 16 vectors */
        for (j = 0; j < 2; j++) {
            const int a = (int)(test_unit() * 16);
            const float w = (float)(.5 + test_unit());
            for (i = 0; i < D; i++) x[t * D + i] = (j ? x[t * D + i] : 0) + w * atom[a * D + i];
        }
    for (k = 0; k < 2; k++) {
        kvmem__sae_learn(b_dec, b_enc, enc, x, N, D, F, K, k ? 30 : 0, 5, scratch);
        for (t = 0; t < N; t++) {
            n = kvmem__sae_features(at, x + t * D, b_dec, b_enc, enc, F, D, K, act, e, idx);
            for (i = 0; i < D; i++) {
                double y = (double)e[i];
                all += y * y / 2;
                for (j = 0; j < n; j++) y -= (double)act[at[j]] * (double)scratch[at[j] * D + i];
                err[k] += y * y;
            }
        }
    }
    if (!(err[1] < .5 * err[0] && err[1] < .3 * all)) FAIL_AT("%g -> %g of %g", err[0], err[1], all);
}
TEST(s3_bm25_and_spans_are_their_formulas) {
    static int id[100];
    static const int query[5] = { 3, 7, 3, -1, 9 };
    float score[20], s[100], out[20];
    int tf[20], i, j, t, n, span;
    for (n = 1; n < 100; n += 13)
        for (span = 1; span < 40; span += 6) {
            const int docs = (n + span - 1) / span;
            if (docs > 20) continue;
            for (t = 0; t < n; t++) { id[t] = (int)(test_unit() * 12) - 1; s[t] = (float)test_unit(); }
            kvmem__bm25_spans(score, id, n, span, query, 5, tf);
            for (i = 0; i < docs; i++) {
                static const int distinct[3] = { 3, 7, 9 };
                double want = 0, len = i + 1 < docs ? span : n - (docs - 1) * span;
                for (j = 0; j < 3; j++) {
                    double df = 0, f = 0;
                    int d, found;
                    for (d = 0; d < docs; d++, df += found)
                        for (t = d * span, found = 0; t < n && t < (d + 1) * span; t++) {
                            found |= id[t] == distinct[j];
                            f += d == i && id[t] == distinct[j];
                        }
                    want += log(1 + (docs - df + .5) / (df + .5)) * f * 2.2 /
                            (f + 1.2 * (1 - .75 + .75 * len / ((double)n / docs)));
                }
                CHECK_NEAR(score[i], want, 1e-5);
            }
            kvmem__s3_spans(out, s, n, span, 6);
            for (i = 0; i < docs; i++) {
                double best = -1;
                for (t = i * span; t < n && t < (i + 1) * span; t++) {
                    double sum = 0;
                    for (j = t - 3; j < t + 3; j++) if (j >= 0 && j < n) sum += (double)s[j] / 6;
                    best = KVMEM__MAX(best, sum);
                }
                CHECK_NEAR(out[i], best, 1e-5);
            }
        }
    for (t = 0; t < 5; t++) s[t] = 2;
    kvmem__minmax(s, 5);
    CHECK(s[0] == 0 && s[4] == 0); /* all alike */
    s[1] = 4; s[2] = -4;
    kvmem__minmax(s, 5);
    CHECK(s[1] == 1 && s[2] == 0 && s[0] == .5f);
}
static kvmem__s3_index *s3_of(kvmem_cache *c, int layer, kvmem__s3_parts *p) {
    kvmem_view v = view_at(c, layer);
    kvmem__s3_index *x = (kvmem__s3_index *)kvmem_view_index(&v, 0, 0, NULL, NULL);
    if (x) *p = kvmem__s3_at(x, (int)v.par[KVMEM__S3_FEATURES], c->shape.head_dim, (int)v.par[KVMEM__S3_K], x->n);
    return x;
}
TEST(s3_two_scans_are_one_scan) {
    world w; kvmem_cache a, b;
    kvmem__s3_parts p, q;
    kvmem__s3_index *x, *y;
    kvmem_view v;
    int t, f;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 200, "s3 retrieve=s3(features=20,k=3)"));
    w.cfg.shape.rope = w.rope;
    for (t = 0; t < 8; t++) w.k[100 * 8 + t] = w.k[50 * 8 + t]; /* one key twice */
    REQUIRE_OK(kvmem_cache_init(&a, &w.cfg));
    REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
    CHECK_OK(feed(&w, &a, 0, 200, 50, KVMEM_PREFILL, NULL));
    CHECK_OK(feed(&w, &b, 0, 200, 50, KVMEM_PREFILL, NULL));
    v = view_at(&a, 0);
    CHECK(kvmem__s3_extend(&v, 0, 60, 0) && kvmem__s3_extend(&v, 0, 130, 0) && kvmem__s3_extend(&v, 0, 200, 7));
    v = view_at(&b, 0);
    CHECK(kvmem__s3_extend(&v, 0, 60, 0) && kvmem__s3_extend(&v, 0, 200, 0));
    x = s3_of(&a, 0, &p);
    y = s3_of(&b, 0, &q);
    REQUIRE(x && y && x->n == 200 && y->n == 200);
    CHECK(!memcmp(p.begin, q.begin, 21 * sizeof(int)) && !memcmp(p.id, q.id, 600 * sizeof *p.id));
    CHECK(!memcmp(p.list, q.list, (size_t)p.begin[20] * sizeof(int)));
    CHECK(p.begin[20] <= 600 && p.begin[20] > 300);
    CHECK(!memcmp(p.id + 150, p.id + 300, 3 * sizeof *p.id)); /* one key, one list of features */
    for (f = 0; f < 20; f++)
        for (t = p.begin[f]; t < p.begin[f + 1]; t++) {
            const uint16_t *at = p.id + 3 * p.list[t];
            CHECK(at[0] == f || at[1] == f || at[2] == f);
            CHECK(t == p.begin[f] || p.list[t] > p.list[t - 1]);
        }
    kvmem_cache_free(&a); kvmem_cache_free(&b); world_free(&w);
}
/* Feeds with ids: token t has ids[t]. */
static void feed_ids(world *w, kvmem_cache *c, int from, int to, int block, kvmem_phase end, const int *ids,
                     float *out) {
    int t, n;
    for (t = from; t < to; t += n) {
        n = KVMEM__MIN(block, to - t);
        CHECK_OK(kvmem_cache_ids(c, n, ids + t));
        CHECK_OK(feed(w, c, t, t + n, n, t + n == to ? end : end == KVMEM_DECODE ? end : KVMEM_PREFILL, out));
    }
}
/* What is read from a question to the next, by the spans of the index; the words alone decide with lambda=1. */
TEST(s3_reads_the_spans_of_its_question) {
    static const char *const recipe[2] = { small_s3, "s3 retrieve=s3(layer=1,features=24,k=3,rounds=2,smooth=4,span=8,"
                                                     "budget=24,sink=2,window=5,lambda=1)" };
    int k;
    for (k = 0; k < 2; k++) {
        world w; kvmem_cache c; float *out;
        static int ids[200], set[200];
        kvmem__s3_index *x;
        kvmem__s3_parts p;
        double worst = 0;
        int t, l, h, i, j, n, sum, turn_at;
        uint8_t before[40];
        REQUIRE(world_init(&w, 3, 4, 2, 8, 200, recipe[k]));
        w.cfg.shape.rope = w.rope;
        for (t = 0; t < 200; t++) ids[t] = (int)(test_unit() * 40);
        out = outs(&w, 1);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        for (turn_at = 0; turn_at < 2; turn_at++) {
            const int from = turn_at ? 134 : 115, start = turn_at ? 150 : 120;
            feed_ids(&w, &c, turn_at ? 130 : 0, turn_at ? 134 : 120, 50, turn_at ? KVMEM_PREFILL : KVMEM_PROMPT_END,
                     ids, NULL);
            if (turn_at) { /* the second question is marked, and longer than the window */
                CHECK_OK(kvmem_cache_mark(&c, KVMEM_MARK_QUESTION));
                feed_ids(&w, &c, 134, 150, 9, KVMEM_PROMPT_END, ids, NULL);
            }
            for (t = start; t < start + 10; t++) {
                feed_ids(&w, &c, t, t + 1, 1, KVMEM_DECODE, ids, out);
                x = s3_of(&c, 1, &p);
                REQUIRE(x && x->from == from && x->spans == (from + 7) / 8);
                if (t > start) CHECK(!memcmp(before, p.read, (size_t)x->spans));
                memcpy(before, p.read, (size_t)x->spans);
                for (i = sum = 0; i < x->spans; i++) sum += p.read[i] * KVMEM__MIN(8, from - 8 * i);
                CHECK(sum >= 20 && sum <= 28);
                for (i = n = 0; i <= t; i++) if (i < 2 || i >= from || p.read[i / 8]) set[n++] = i;
                CHECK(n < t);
                for (l = 0; l < 3; l++)
                    for (h = 0; h < 4; h++) {
                        double o[256];
                        oracle(&w, t, l, h, set, n, NULL, t, o);
                        for (j = 0; j < 8; j++)
                            worst = KVMEM__MAX(worst, fabs(o[j] - (double)out[l * 32 + h * 8 + j]));
                    }
                if (k) {
                    float score[40];
                    int tf[40], rank;
                    kvmem__bm25_spans(score, ids, from, 8, ids + from, start - from, tf);
                    for (i = 0; i < x->spans; i++) {
                        for (j = rank = 0; j < x->spans; j++)
                            rank += score[j] > score[i] || (score[j] == score[i] && j < i);
                        CHECK(p.read[i] == (rank < 3) || from - 8 * i < 8 || p.read[x->spans - 1]);
                    }
                }
            }
        }
        CHECK_NEAR(worst, 0, 3e-5);
        kvmem_cache_free(&c); free(out); world_free(&w);
    }
}
/* A block that comes after the prompt is a question: read in full below the layer, by its own choice from there on. */
TEST(s3_a_later_block_asks_for_itself) {
    world w; kvmem_cache c; float *out;
    static int ids[200], set[200];
    kvmem__s3_index *x;
    kvmem__s3_parts p;
    double worst = 0;
    float score[40];
    int tf[40], t, l, h, i, j, n, rank;
    REQUIRE(world_init(&w, 3, 4, 2, 8, 200, "s3 retrieve=s3(layer=1,features=24,k=3,rounds=2,smooth=4,span=8,budget=24,"
                                            "sink=2,window=5,lambda=1)"));
    w.cfg.shape.rope = w.rope;
    for (t = 0; t < 200; t++) ids[t] = (int)(test_unit() * 40);
    out = outs(&w, 8);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    feed_ids(&w, &c, 0, 120, 50, KVMEM_PROMPT_END, ids, NULL);
    feed_ids(&w, &c, 120, 128, 8, KVMEM_PROMPT_END, ids, out);
    for (t = 120; t < 130; t++) {
        if (t >= 128) feed_ids(&w, &c, t, t + 1, 1, KVMEM_DECODE, ids, out);
        x = s3_of(&c, 1, &p);
        REQUIRE(x && x->from == 120 && x->spans == 15);
        kvmem__bm25_spans(score, ids, 120, 8, ids + 120, 8, tf);
        for (i = 0; i < 15; i++) {
            for (j = rank = 0; j < 15; j++) rank += score[j] > score[i] || (score[j] == score[i] && j < i);
            CHECK(p.read[i] == (rank < 3));
        }
        for (l = 0; l < 3; l++) {
            for (i = n = 0; i <= t; i++) if ((!l && t < 128) || i < 2 || i >= 120 || p.read[i / 8]) set[n++] = i;
            for (h = 0; h < 4; h++) {
                double o[256];
                oracle(&w, t, l, h, set, n, NULL, t, o);
                for (j = 0; j < 8; j++) {
                    const int at = ((t < 128 ? t - 120 : 0) * 3 + l) * 32 + h * 8 + j;
                    worst = KVMEM__MAX(worst, fabs(o[j] - (double)out[at]));
                }
            }
        }
    }
    CHECK_NEAR(worst, 0, 3e-5);
    kvmem_cache_free(&c); free(out); world_free(&w);
}
/* A passage has keys that the question's queries repeat: its span comes first. */
TEST(s3_finds_what_has_all_features_of_the_question) {
    int trial, hits = 0;
    for (trial = 0; trial < 10; trial++) {
        world w; kvmem_cache c;
        kvmem__s3_index *x;
        kvmem__s3_parts p;
        const int at = 8 * (2 + trial);
        int t, i;
        REQUIRE(world_init(&w, 1, 1, 1, 16, 210,
                           "s3 retrieve=s3(layer=0,features=128,k=4,rounds=3,smooth=8,span=8,budget=8,window=8)"));
        w.cfg.shape.rope = w.rope;
        for (t = 0; t < 8; t++)
            for (i = 0; i < 16; i++) w.q[(200 + t) * 16 + i] = w.k[(at + t) * 16 + i];
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 208, 52, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 208, 210, 1, KVMEM_DECODE, NULL));
        x = s3_of(&c, 0, &p);
        CHECK(x->from == 200 && x->spans == 25);
        hits += p.read[at / 8];
        kvmem_cache_free(&c); world_free(&w);
    }
    if (hits < 9) FAIL_AT("%d of 10", hits);
}
TEST(s3_ids_are_checked) {
    world w; kvmem_cache c;
    static int ids[600];
    REQUIRE(world_init(&w, 2, 2, 1, 8, 30, small_s3));
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(kvmem_cache_ids(&c, 0, ids) == KVMEM_BAD_ARGUMENT && kvmem_cache_ids(&c, 5, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_cache_ids(&c, 600, ids) == KVMEM_BAD_ARGUMENT);
    ids[1] = -2;
    CHECK(kvmem_cache_ids(&c, 3, ids) == KVMEM_BAD_VALUE);
    ids[1] = 1 << 24;
    CHECK(kvmem_cache_ids(&c, 3, ids) == KVMEM_BAD_VALUE && strstr(c.error.text, "token 1"));
    ids[1] = 1;
    CHECK_OK(kvmem_cache_ids(&c, 3, ids));
    quiet = 1;
    CHECK(feed(&w, &c, 0, 5, 5, KVMEM_PREFILL, NULL) == KVMEM_BAD_STATE && strstr(c.error.text, "told of 3 tokens"));
    quiet = 0;
    kvmem_cache_free(&c); world_free(&w);
    REQUIRE(world_init(&w, 1, 2, 1, 8, 30, "full")); /* who does not read them, ignores them */
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(kvmem_cache_ids(&c, 3, ids));
    CHECK_OK(feed(&w, &c, 0, 5, 5, KVMEM_PREFILL, NULL));
    kvmem_cache_free(&c); world_free(&w);
}
TEST(s3_is_exact_when_it_reads_everything) {
    static const char *const recipe[] = { "s3", "s3 retrieve=s3(budget=0,window=500)",
                                          "s3 retrieve=s3(budget=150,features=9,k=20,layer=99,span=7) page=9" };
    int i;
    for (i = 0; i < 3; i++) {
        world w;
        REQUIRE(world_init(&w, 2, 4, i ? 4 : 1, 8, 150, recipe[i]));
        w.cfg.shape.rope = w.rope;
        CHECK(as_full(&w, 120, i == 1 ? 1 : 5));
        world_free(&w);
    }
}
TEST(s3_goes_on_alike_and_survives) {
    goes_on_alike(small_s3, 0);
    survives("s3 retrieve=s3(features=16,k=2,rounds=1,smooth=4,span=5,budget=9,sink=1,window=3) page=8");
}

TEST(presets_are_their_cards) {
    kvmem_recipe r;
    kvmem_error e;
    REQUIRE_OK(kvmem_recipe_parse(&r, "retro", &e));
    CHECK(r.stage[KVMEM_RETRIEVE].par[KVMEM__RETRO_READ] == .018);
    CHECK(r.stage[KVMEM_RETRIEVE].par[KVMEM__RETRO_ESTIMATE] == .232);
    REQUIRE_OK(kvmem_recipe_parse(&r, "louiskv", &e));
    CHECK(r.stage[KVMEM_RETRIEVE].par[KVMEM__LOUIS_TAU] == .7);
    CHECK(kvmem_recipe_parse(&r, "retro retrieve=retro(read=1.1)", &e) != KVMEM_OK && strstr(e.text, "read"));
    CHECK(kvmem_recipe_parse(&r, "louiskv retrieve=louiskv(window=-1)", &e) != KVMEM_OK && strstr(e.text, "window"));
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "clusters");
    RUN(fill_takes_the_nearer_number);
    RUN(ranking_sorts_as_a_slow_sort_does);
    RUN(retro_estimates_the_cards_numbers);
    RUN(retro_clusters_as_its_rule_says);
    RUN(retro_index_holds_every_entry_once);
    RUN(retro_reads_estimates_and_leaves_out_as_its_rule_says);
    RUN(retro_is_exact_when_it_reads_everything);
    RUN(retro_clusters_of_one_entry_are_estimated_without_error);
    RUN(retro_finds_clusters_and_estimation_helps_flat_attention);
    RUN(retro_goes_on_alike_and_survives);
    RUN(louiskv_mean_cosine_is_the_cards);
    RUN(louiskv_tau_says_how_often_it_chooses);
    RUN(louiskv_units_partition_the_entries);
    RUN(louiskv_equals_its_rule_over_a_run);
    RUN(louiskv_is_exact_with_room_for_everything);
    RUN(louiskv_equal_heads_choose_as_one_head);
    RUN(louiskv_chooses_where_the_topic_changes);
    RUN(louiskv_goes_on_alike_and_survives);
    RUN(a2ats_metric_is_the_cards);
    RUN(a2ats_equals_its_rule_over_a_run);
    RUN(a2ats_plain_weight_is_ordinary_kmeans);
    RUN(a2ats_with_a_centre_for_every_key_is_a_flat_search);
    RUN(a2ats_is_exact_when_it_reads_everything);
    RUN(a2ats_query_weight_finds_more);
    RUN(a2ats_goes_on_alike_and_survives);
    RUN(s3_rarity_is_the_cards);
    RUN(s3_features_are_the_largest_positive_ones);
    RUN(s3_training_lowers_the_error);
    RUN(s3_bm25_and_spans_are_their_formulas);
    RUN(s3_two_scans_are_one_scan);
    RUN(s3_reads_the_spans_of_its_question);
    RUN(s3_a_later_block_asks_for_itself);
    RUN(s3_finds_what_has_all_features_of_the_question);
    RUN(s3_ids_are_checked);
    RUN(s3_is_exact_when_it_reads_everything);
    RUN(s3_goes_on_alike_and_survives);
    RUN(presets_are_their_cards);
    return test_end();
}
