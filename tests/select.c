/* Selections: whole chunks, parts of the text, critical entries, thresholds, one fixed slot, blocks of a prompt, and
   keys that are turned to their new places. Scores come from a table, so that what must stay is known by counting. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "world.h"
#include "table.h"

static void fill_table(int ties) {
    int l, g, t;
    for (l = 0; l < 4; l++)
        for (g = 0; g < 4; g++)
            for (t = 0; t < MAXT; t++) table[l][g][t] = ties ? (float)draw(3) : (float)test_unit();
}
static int start(const char *text, int L, int H, int G, int T, int by_table) {
    return table_start(text, L, H, G, T, by_table, 1);
}
static int32_t left_pos[MAXT];
static int left(int l, int g) { /* positions of a lane, in left_pos */
    const int n = kvmem_cache_lane_len(&C, l, g);
    CHECK_OK(kvmem_cache_read(&C, l, g, 0, n, NULL, NULL, left_pos));
    return n;
}
static int lane_is(int l, int g, const int *want, int n) {
    int t, ok = left(l, g) == n;
    for (t = 0; ok && t < n; t++) ok = left_pos[t] == want[t];
    if (!ok) {
        const int have = left(l, g);
        printf("  lane %d %d:", l, g);
        for (t = 0; t < have; t++) printf(" %d", (int)left_pos[t]);
        printf("\n");
    }
    return ok;
}
/* The k best of x (n) by counting, rising; ties to the lower index. Returns their number. */
static int best(const double *x, int n, int k, int *out) {
    int i, j, m = 0;
    for (i = 0; i < n; i++) {
        int better = 0;
        for (j = 0; j < n; j++) better += x[j] > x[i] || (x[j] == x[i] && j < i);
        if (better < k) out[m++] = i;
    }
    return m;
}
static int compare_ints(const void *a, const void *b) {
    return *(const int *)a < *(const int *)b ? -1 : *(const int *)a > *(const int *)b;
}

/* ---- chunks ---- */

TEST(chunks_keep_the_best_whole_chunks_in_all_lanes) { /* n=10, chunks of 3: 0-2 3-5 6-8 9; means 1 3 2 5 */
    static const int seven[7] = { 3, 4, 5, 6, 7, 8, 9 }, four[4] = { 3, 4, 5, 9 }, two[2] = { 9, 0 };
    static const float mean[4] = { 1, 3, 2, 5 };
    int keep, g, t;
    for (keep = 1; keep <= 7; keep++) {
        char text[100];
        sprintf(text, "budget=%d select=chunks(size=3) when=prompt", keep);
        for (g = 0; g < 2; g++) /* only the sum of both heads has these means */
            for (t = 0; t < 10; t++) table[0][g][t] = mean[t / 3] / 2 + (g ? 1 : -1) * (float)(t % 3);
        if (!start(text, 1, 2, 2, 10, 1)) return;
        CHECK_OK(feed(&W, &C, 0, 10, 10, KVMEM_PROMPT_END, NULL));
        for (g = 0; g < 2; g++) { /* chunks 3, 1, 2, 0 of 1, 3, 3 and 3 entries */
            if (keep == 7) CHECK(lane_is(0, g, seven, 7));
            else if (keep >= 4) CHECK(lane_is(0, g, four, 4));
            else CHECK(lane_is(0, g, two, 1));
        }
        stop();
    }
}
TEST(chunks_of_one_are_the_best_entries_of_the_summed_heads) {
    int trial;
    for (trial = 0; trial < 30; trial++) {
        char text[120];
        const int n = 5 + draw(60), keep = 1 + draw(n - 1), sink = draw(2), recent = draw(2);
        double sum[MAXT];
        int want[MAXT], m, g, t;
        if (sink + recent > keep) continue;
        sprintf(text, "budget=%d select=chunks(size=1) sink=%d recent=%d when=prompt", keep, sink, recent);
        fill_table(trial & 1);
        if (!start(text, 1, 3, 3, n, 1)) return;
        CHECK_OK(feed(&W, &C, 0, n, 64, KVMEM_PROMPT_END, NULL));
        for (t = 0; t < n; t++)
            sum[t] = t < sink || t >= n - recent ? 1e9
                     : (double)table[0][0][t] + (double)table[0][1][t] + (double)table[0][2][t];
        m = best(sum, n, keep, want);
        for (g = 0; g < 3; g++)
            if (!lane_is(0, g, want, m)) { FAIL_AT("trial %d: %s, n=%d", trial, text, n); stop(); return; }
        stop();
    }
}
TEST(chunks_are_a_union_that_fits_and_is_the_best_by_counting) {
    int trial;
    for (trial = 0; trial < 60; trial++) {
        char text[120];
        const int n = 10 + draw(150), size = 2 + draw(20), sink = draw(3), recent = draw(4), m = n - sink - recent;
        const int keep = sink + recent + 1 + draw(m - 1), chunks = (m + size - 1) / size;
        double mean[MAXT];
        int order[MAXT], want[MAXT], k, i, t, n_want = 0, room = keep - sink - recent;
        sprintf(text, "budget=%d select=chunks(size=%d) sink=%d recent=%d when=prompt", keep, size, sink, recent);
        fill_table(trial % 3 == 0);
        if (!start(text, 1, 2, 2, n, 1)) return;
        CHECK_OK(feed(&W, &C, 0, n, 64, KVMEM_PROMPT_END, NULL));
        CHECK(kvmem_cache_lane_len(&C, 0, 0) <= keep && kvmem_cache_lane_len(&C, 0, 1) <= keep);
        for (i = 0; i < chunks; i++) {
            const int len = KVMEM__MIN(size, m - i * size);
            for (mean[i] = 0, t = 0; t < len; t++)
                mean[i] += (double)(table[0][0][sink + i * size + t] + table[0][1][sink + i * size + t]) / len;
            mean[i] = (double)(float)mean[i];
        }
        for (t = 0; t < sink; t++) want[n_want++] = t;
        for (t = n - recent; t < n; t++) want[n_want++] = t;
        for (k = 1; k <= chunks; k++) { /* the k best, as long as they fit */
            int sum = 0;
            const int got = best(mean, chunks, k, order);
            for (i = 0; i < got; i++) sum += KVMEM__MIN(size, m - order[i] * size);
            if (sum > room) break;
        }
        if (k > 1 && m >= size) {
            const int got = best(mean, chunks, k - 1, order);
            for (i = 0; i < got; i++)
                for (t = order[i] * size; t < KVMEM__MIN(m, (order[i] + 1) * size); t++) want[n_want++] = sink + t;
            qsort(want, (size_t)n_want, sizeof *want, compare_ints);
            if (!lane_is(0, 0, want, n_want) || !lane_is(0, 1, want, n_want)) {
                FAIL_AT("trial %d: %s, n=%d", trial, text, n);
                stop();
                return;
            }
        } else CHECK(kvmem_cache_lane_len(&C, 0, 0) == keep); /* a part of the best one */
        stop();
    }
}
TEST(chunks_of_a_short_lane_are_the_base) {
    static const int want[3] = { 2, 4, 7 };
    int t;
    for (t = 0; t < 9; t++) table[0][0][t] = t == 2 || t == 4 || t == 7 ? 1.0f : 0.0f;
    if (!start("budget=3 select=chunks(size=20) when=prompt", 1, 1, 1, 9, 1)) return;
    CHECK_OK(feed(&W, &C, 0, 9, 9, KVMEM_PROMPT_END, NULL));
    CHECK(lane_is(0, 0, want, 3));
    stop();
}

/* ---- within ---- */

TEST(within_each_chunk_keeps_its_own_best) {
    int trial;
    for (trial = 0; trial < 60; trial++) {
        char text[120];
        const int n = 10 + draw(150), size = 1 + draw(60), sink = draw(3), recent = draw(4), m = n - sink - recent;
        const int keep = sink + recent + 1 + draw(m - 1), chunks = (m + size - 1) / size, room = keep - sink - recent;
        int g, i, t, total = 0, n_want = 0, want[MAXT], idx[MAXT], at = 0;
        sprintf(text, "budget=%d select=within(size=%d) sink=%d recent=%d when=prompt", keep, size, sink, recent);
        fill_table(trial % 3 == 0);
        if (!start(text, 1, 2, 2, n, 1)) return;
        CHECK_OK(feed(&W, &C, 0, n, 64, KVMEM_PROMPT_END, NULL));
        for (g = 0; g < 2; g++) {
            const int have = left(0, g);
            CHECK(have == keep);
            n_want = 0;
            for (t = 0; t < sink; t++) want[n_want++] = t;
            for (i = 0, at = sink, total = 0; i < chunks; i++) {
                double x[MAXT];
                const int from = sink + i * size, len = KVMEM__MIN(size, m - i * size);
                int quota = 0, j;
                for (; at < have && left_pos[at] < from + len; at++) quota++;
                /* near its share of the budget, and never nothing if the budget reaches */
                CHECK(fabs(quota - (double)room * len / m) < (double)chunks + 1 && quota >= (room >= chunks));
                if (room >= 2 * chunks && len == size) CHECK(fabs(quota - (double)room * len / m) < 1 + 1e-9);
                for (t = 0; t < len; t++) x[t] = (double)table[0][g][from + t];
                j = best(x, len, quota, idx);
                for (t = 0; t < j; t++) want[n_want++] = from + idx[t];
                total += quota;
            }
            CHECK(total == room);
            for (t = n - recent; t < n; t++) want[n_want++] = t;
            if (!lane_is(0, g, want, n_want)) { FAIL_AT("trial %d: %s", trial, text); stop(); return; }
        }
        stop();
    }
}
TEST(within_a_chunk_that_holds_everything_is_topk) {
    static int32_t base[2][MAXT];
    int i, g, t;
    fill_table(0);
    for (i = 0; i < 3; i++) {
        if (!start(i == 0 ? "budget=17 sink=2 recent=3 when=prompt"
                   : i == 1 ? "budget=17 sink=2 recent=3 select=within(size=64) when=prompt"
                            : "budget=17 sink=2 recent=3 select=within(size=1000) when=prompt", 1, 2, 2, 69, 1)) return;
        CHECK_OK(feed(&W, &C, 0, 69, 30, KVMEM_PROMPT_END, NULL));
        for (g = 0; g < 2; g++) {
            CHECK(left(0, g) == 17);
            for (t = 0; t < 17; t++)
                if (i == 0) base[g][t] = left_pos[t];
                else CHECK(base[g][t] == left_pos[t]);
        }
        stop();
    }
}

/* ---- critical ---- */

TEST(critical_takes_half_by_score_and_half_by_score_times_norm) {
    /* scores .5 .4 .3 .2 .1, norms 1 1 1 5 20, B=2: stage 1 keeps 0; then s N = .4 .3 1 2: entry 4 */
    static const int want[2] = { 0, 4 }, all[2] = { 0, 1 };
    static const float s[5] = { .5f, .4f, .3f, .2f, .1f }, norm[5] = { 1, 1, 1, 5, 20 };
    int i, t, c;
    for (i = 0; i < 3; i++) {
        if (!start(i == 0 ? "budget=2 select=critical when=prompt"
                          : "budget=2 select=critical(ratio=1) when=prompt", 1, 2, 1, 5, 1)) return;
        for (t = 0; t < 5; t++) {
            table[0][0][t] = s[t] - (i == 2 ? 3.0f : 0.0f); /* 2: the base set does not change with a shift */
            for (c = 0; c < 8; c++) W.v[t * 8 + c] = c ? 0 : (t & 1 ? -1.0f : 1.0f) * norm[t];
        }
        CHECK_OK(feed(&W, &C, 0, 5, 5, KVMEM_PROMPT_END, NULL));
        CHECK(lane_is(0, 0, i ? all : want, 2));
        stop();
    }
}
/* What criticalkv keeps of lane (l, g) by the definition. world_output makes (1 + l + h) |v|_1 of v. */
static int critical_oracle(int l, int g, int n, int keep, int sink, int recent, double ratio, int *want) {
    static double x[MAXT];
    double low = 0;
    int one[MAXT], t, h, c, m, room = keep - sink - recent;
    const int r = W.H / W.G;
    for (t = 0; t < n; t++) {
        x[t] = t < sink || t >= n - recent ? -1e300 : (double)table[l][g][t];
        if (x[t] > -1e299 && x[t] < low) low = x[t];
    }
    m = best(x, n, (int)(room * ratio), one);
    for (t = 0; t < n; t++) {
        double norm = 0;
        for (h = g * r; h < (g + 1) * r; h++)
            for (c = 0; c < W.d; c++) norm += (1 + l + h) * fabs((double)row_k(&W, W.v, t, l)[g * W.d + c]) / r;
        x[t] = t < sink || t >= n - recent ? 1e300 : (x[t] - low + 1e-4) * norm;
    }
    for (t = 0; t < m; t++) x[one[t]] = 1e300;
    return best(x, n, keep, want);
}
TEST(critical_equals_its_definition) {
    int trial;
    for (trial = 0; trial < 24; trial++) {
        char text[160];
        const int n = 20 + draw(60), sink = draw(3), recent = draw(4), keep = sink + recent + 1 + draw(10);
        const double ratio = trial % 4 * .25;
        int want[MAXT], m, l, g, t;
        sprintf(text, "budget=%d select=critical(ratio=%g) sink=%d recent=%d when=prompt", keep, ratio, sink, recent);
        fill_table(0);
        for (t = 0; trial % 3 == 0 && t < n; t++) table[0][1][t] -= 2; /* scores below 0 are shifted */
        if (!start(text, 2, 4, 2, n, 1)) return;
        CHECK_OK(feed(&W, &C, 0, n, 64, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                m = critical_oracle(l, g, n, keep, sink, recent, ratio, want);
                if (!lane_is(l, g, want, m)) { FAIL_AT("trial %d: %s", trial, text); stop(); return; }
            }
        stop();
    }
}
TEST(critical_with_equal_norms_or_ratio_one_is_the_base) {
    static int32_t base[2][MAXT];
    int i, g, t;
    size_t x;
    fill_table(0);
    for (i = 0; i < 3; i++) {
        if (!start(i == 0 ? "budget=13 sink=1 recent=2 when=prompt"
                   : i == 1 ? "budget=13 sink=1 recent=2 select=critical(ratio=1) when=prompt"
                            : "budget=13 sink=1 recent=2 select=critical(ratio=0.3) when=prompt", 1, 2, 2, 50, 1))
            return;
        for (x = 0; i == 2 && x < 50 * 2 * 8; x++) W.v[x] = x & 1 ? 1.0f : -1.0f;
        CHECK_OK(feed(&W, &C, 0, 50, 30, KVMEM_PROMPT_END, NULL));
        for (g = 0; g < 2; g++) {
            CHECK(left(0, g) == 13);
            for (t = 0; t < 13; t++)
                if (i == 0) base[g][t] = left_pos[t];
                else CHECK(base[g][t] == left_pos[t]);
        }
        stop();
    }
}
TEST(critical_adakv_fills_the_budgets_of_adakv) {
    int len[2][4], i, l, g, want[MAXT], m;
    fill_table(0);
    for (i = 0; i < 2; i++) {
        if (!start(i == 0 ? "budget=adakv(14) sink=1 recent=2 when=prompt"
                          : "budget=adakv(14) select=critical sink=1 recent=2 when=prompt", 2, 4, 2, 60, 1)) return;
        CHECK_OK(feed(&W, &C, 0, 60, 30, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                len[i][l * 2 + g] = left(l, g);
                if (!i) continue;
                CHECK(len[1][l * 2 + g] == len[0][l * 2 + g]);
                m = critical_oracle(l, g, 60, len[0][l * 2 + g], 1, 2, .5, want);
                CHECK(lane_is(l, g, want, m));
            }
        stop();
    }
    CHECK(len[0][0] != len[0][1] || len[0][2] != len[0][3]);
}
TEST(critical_without_an_output_projection_is_an_error_with_a_sentence) {
    static float x[8 * 8];
    if (!start("budget=4 select=critical when=prompt", 1, 1, 1, 8, 1)) return;
    W.cfg.shape.rope = NULL;
    CHECK_OK(kvmem_cache_append(&C, 0, 8, x, x, NULL));
    CHECK_OK(kvmem_cache_attend(&C, 0, 8, x, x));
    CHECK(kvmem_cache_commit(&C, KVMEM_PROMPT_END) == KVMEM_BAD_STATE && strstr(C.error.text, "kvmem_cache_output"));
    stop();
}

/* ---- blocks of a prompt ---- */

TEST(block_size_of_the_recipe_bounds_every_block) {
    char text[600];
    kvmem_recipe again;
    kvmem_error e;
    static float x[9 * 8];
    if (!start("block budget=10 when=block(8)", 1, 1, 1, 40, 0)) return;
    CHECK(kvmem_cache_room(&C) == 8 && C.max_block == 8);
    CHECK(kvmem_cache_append(&C, 0, 9, x, x, NULL) == KVMEM_BAD_ARGUMENT);
    kvmem_recipe_print(&C.recipe, text, sizeof text);
    CHECK(strstr(text, "when=block(8)"));
    CHECK_OK(kvmem_recipe_parse(&again, text, &e));
    CHECK(again.every == 8 && again.when == KVMEM_WHEN_BLOCK);
    stop();
    if (!start("block budget=10 when=block", 1, 1, 1, 40, 0)) return;
    CHECK(kvmem_cache_room(&C) == W.cfg.max_block);
    stop();
    CHECK(kvmem_recipe_parse(&again, "when=block(0)", &e) == KVMEM_BAD_RECIPE);
    CHECK(kvmem_recipe_parse(&again, "when=block(65537)", &e) == KVMEM_BAD_RECIPE);
    CHECK(kvmem_recipe_parse(&again, "when=block(8", &e) == KVMEM_BAD_RECIPE);
}
TEST(block_of_scores_of_one_entry_gives_the_base_for_any_size) {
    static int32_t base[4][MAXT];
    static const int sizes[7] = { 300, 1, 2, 7, 16, 128, 250 };
    int i, l, g, t;
    for (i = 0; i < 7; i++) {
        char text[80];
        test_state = 77; /* the same rows each time */
        sprintf(text, "score=knorm budget=31 when=block(%d)", sizes[i]);
        if (!start(text, 2, 4, 2, 300, 0)) return;
        CHECK_OK(feed(&W, &C, 0, 300, 300, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                CHECK(left(l, g) == 31);
                for (t = 0; t < 31; t++)
                    if (i == 0) base[l * 2 + g][t] = left_pos[t];
                    else CHECK(base[l * 2 + g][t] == left_pos[t]);
            }
        stop();
    }
}
TEST(block_that_holds_what_the_budget_does_not_is_one_pass_for_every_score) { /* block >= n - B */
    static const char *const scores[3] = { "h2o", "snapkv(window=8,kernel=3)", "random" };
    static int32_t base[2][MAXT];
    int i, k, g, t;
    for (k = 0; k < 3; k++)
        for (i = 0; i < 3; i++) {
            char text[160];
            test_state = 78;
            sprintf(text, "score=%s budget=20 when=%s", scores[k], i == 0 ? "prompt" : i == 1 ? "block(64)" : "block");
            if (!start(text, 1, 4, 2, 60, 0)) return;
            if (i < 2) CHECK_OK(feed(&W, &C, 0, 60, 60, KVMEM_PROMPT_END, NULL));
            else { /* B tokens, then the rest */
                CHECK_OK(feed(&W, &C, 0, 20, 20, KVMEM_PREFILL, NULL));
                CHECK_OK(feed(&W, &C, 20, 60, 40, KVMEM_PROMPT_END, NULL));
            }
            for (g = 0; g < 2; g++) {
                CHECK(left(0, g) == 20);
                for (t = 0; t < 20; t++)
                    if (i == 0) base[g][t] = left_pos[t];
                    else CHECK(base[g][t] == left_pos[t]);
            }
            stop();
        }
}
TEST(block_attends_to_what_earlier_blocks_left_and_never_holds_more) {
    float *out;
    int t, g, h, c;
    double worst = 0;
    if (!start("block budget=10 when=block(6)", 1, 4, 2, 60, 0)) return;
    out = outs(&W, 6);
    for (t = 0; t < 60; t += 6) {
        int set[2][MAXT], n[2], i;
        for (g = 0; g < 2; g++) {
            n[g] = left(0, g);
            CHECK(n[g] == KVMEM__MIN(t, 10));
            for (i = 0; i < n[g]; i++) set[g][i] = left_pos[i];
        }
        CHECK_OK(feed(&W, &C, t, t + 6, 6, t == 54 ? KVMEM_PROMPT_END : KVMEM_PREFILL, out));
        for (i = 0; i < 6; i++)
            for (g = 0; g < 2; g++) {
                set[g][n[g]++] = t + i;
                for (h = 2 * g; h < 2 * g + 2; h++) {
                    double o[8];
                    oracle(&W, t + i, 0, h, set[g], n[g], NULL, t + i, o);
                    for (c = 0; c < 8; c++)
                        worst = KVMEM__MAX(worst, fabs(o[c] - (double)out[(i * 4 + h) * 8 + c]));
                }
            }
    }
    CHECK(worst < 1e-5);
    free(out);
    stop();
}

/* ---- threshold ---- */

/* Of n tokens told, those that a threshold leaves: sinks, window, and what scores at least `at`. */
static int threshold_oracle(int l, int g, int n, double at, int sink, int recent, int *want) {
    int t, m = 0;
    for (t = 0; t < n; t++)
        if (t < sink || t >= n - recent || (double)table[l][g][t] >= at) want[m++] = t;
    return m;
}
TEST(threshold_leaves_what_scored_enough_whatever_the_blocks) {
    static const int blocks[4] = { 90, 1, 7, 32 };
    int i, l, g, step, want[MAXT], m;
    for (i = 0; i < 8; i++) { /* every token, or only when the prompt ends and then every token */
        char text[160];
        sprintf(text, "budget=all select=threshold(at=0.6) sink=%d recent=%d when=%s", i % 2 * 2, 5 + i % 3,
                i < 4 ? "block" : "step");
        fill_table(0);
        if (!start(text, 2, 2, 2, 130, 1)) return;
        CHECK_OK(feed(&W, &C, 0, 90, blocks[i % 4], KVMEM_PROMPT_END, NULL));
        for (step = 90; step < 130; step++) {
            for (l = 0; l < 2; l++)
                for (g = 0; g < 2; g++) {
                    m = threshold_oracle(l, g, step, (double).6f, i % 2 * 2, 5 + i % 3, want);
                    if (!lane_is(l, g, want, m)) { FAIL_AT("%s, %d tokens", text, step); stop(); return; }
                }
            CHECK_OK(feed(&W, &C, step, step + 1, 1, KVMEM_DECODE, NULL));
        }
        CHECK(kvmem_cache_lane_len(&C, 0, 0) != kvmem_cache_lane_len(&C, 0, 1) ||
              kvmem_cache_lane_len(&C, 1, 0) != kvmem_cache_lane_len(&C, 1, 1));
        stop();
    }
}
TEST(threshold_decides_once_by_the_first_score) {
    int t, g, step, want[MAXT], m;
    fill_table(0);
    if (!start("budget=all select=threshold(at=0.5) recent=6 when=step", 1, 2, 2, 80, 1)) return;
    CHECK_OK(feed(&W, &C, 0, 40, 40, KVMEM_PROMPT_END, NULL));
    for (step = 40; step < 80; step++) {
        float old[2][MAXT];
        for (g = 0; g < 2; g++) { /* the score changes afterwards: nobody asks again */
            m = threshold_oracle(0, g, step, .5, 0, 6, want);
            CHECK(lane_is(0, g, want, m));
            memcpy(old[g], table[0][g], sizeof old[g]);
            for (t = 0; t < step; t++) table[0][g][t] = 1 - table[0][g][t];
        }
        CHECK_OK(feed(&W, &C, step, step + 1, 1, KVMEM_DECODE, NULL));
        for (g = 0; g < 2; g++) memcpy(table[0][g], old[g], sizeof old[g]);
    }
    stop();
}
TEST(threshold_lowest_is_full_and_highest_is_a_window) {
    int t, want[MAXT], n;
    float *a, *b;
    test_state = 5;
    if (!start("full", 1, 2, 1, 60, 0)) return;
    a = outs(&W, 60);
    b = outs(&W, 60);
    CHECK_OK(feed(&W, &C, 0, 60, 1, KVMEM_DECODE, a));
    stop();
    test_state = 5;
    if (!start("dms-threshold recent=8 select=threshold(at=-1000000)", 1, 2, 1, 60, 0)) return;
    CHECK_OK(feed(&W, &C, 0, 60, 1, KVMEM_DECODE, b));
    CHECK(kvmem_cache_lane_len(&C, 0, 0) == 60 && same_out(&W, a, b, 60));
    stop();
    free(a);
    free(b);
    if (!start("dms-threshold recent=8 sink=3 select=threshold(at=1000000)", 1, 2, 1, 60, 0)) return;
    CHECK_OK(feed(&W, &C, 0, 60, 1, KVMEM_DECODE, NULL));
    for (n = 0, t = 0; t < 60; t++) if (t < 3 || t >= 52) want[n++] = t;
    CHECK(lane_is(0, 0, want, n));
    stop();
    if (!start("dms-threshold recent=0 select=threshold(at=1000000)", 1, 2, 1, 60, 0)) return; /* never an empty lane */
    CHECK_OK(feed(&W, &C, 0, 60, 1, KVMEM_DECODE, NULL));
    want[0] = 59;
    CHECK(lane_is(0, 0, want, 1));
    stop();
}
TEST(threshold_under_a_ceiling_keeps_the_best_of_the_good) {
    double x[MAXT];
    int t, g, want[MAXT], m;
    fill_table(0);
    if (!start("budget=15 select=threshold(at=0.2) sink=1 recent=4 when=prompt", 1, 2, 2, 60, 1)) return;
    CHECK_OK(feed(&W, &C, 0, 60, 60, KVMEM_PROMPT_END, NULL));
    for (g = 0; g < 2; g++) {
        for (t = 0; t < 60; t++) x[t] = t < 1 || t >= 56 ? 9 : (double)table[0][g][t];
        m = best(x, 60, 15, want);
        CHECK(lane_is(0, g, want, m));
    }
    stop();
}

/* ---- slot ---- */

TEST(slot_follows_the_share_and_empties_one_slot) {
    int distance, g, t, step;
    for (distance = 5; distance <= 80; distance += 75) { /* 80: farther than there are entries, so the middle */
        char text[120];
        const int K = 20, T = 50, m = distance < K ? K - distance : K / 2;
        sprintf(text, "budget=prefixkv(40%%) select=slot(distance=%d) sink=1 recent=1 when=step", distance);
        fill_table(0);
        if (!start(text, 1, 2, 2, 150, 1)) return;
        CHECK_OK(feed(&W, &C, 0, T, T, KVMEM_PROMPT_END, NULL));
        for (step = T; step < 150; step++) {
            int32_t before[2][MAXT];
            int n[2];
            for (g = 0; g < 2; g++) {
                n[g] = left(0, g);
                if (step == T) CHECK(n[g] == K);
                memcpy(before[g], left_pos, sizeof left_pos);
                before[g][n[g]] = step;
            }
            CHECK_OK(feed(&W, &C, step, step + 1, 1, KVMEM_DECODE, NULL));
            for (g = 0; g < 2; g++) {
                const int gone = n[g] + 1 - (step + 1) * .4 >= 1 - 1e-9, now = left(0, g);
                int j = 0;
                CHECK(now == n[g] + 1 - gone && fabs(now - (step + 1) * .4) <= 1);
                for (t = 0; t <= n[g]; t++) {
                    if (gone && t == m) continue;
                    CHECK(left_pos[j] == before[g][t]);
                    j++;
                }
            }
        }
        stop();
    }
}
TEST(slot_never_moves_when_everything_was_kept) {
    if (!start("budget=100% select=slot when=step", 1, 1, 1, 60, 1)) return;
    CHECK_OK(feed(&W, &C, 0, 30, 30, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&W, &C, 30, 60, 1, KVMEM_DECODE, NULL));
    CHECK(kvmem_cache_lane_len(&C, 0, 0) == 60);
    stop();
}

/* ---- key-rerotation ---- */

/* Attention of token 70, head h of layer l, over n kept keys that are turned by (slot - position), and itself. */
static void rerotated(int l, int h, int n, const float *k, const float *v, const int32_t *pos, double *out) {
    static double z[MAXT];
    double q[8], own[8], m = -1e300, sum = 0;
    const int g = h / 2;
    int t, c;
    for (c = 0; c < 8; c++) {
        q[c] = (double)row_q(&W, 70, l)[h * 8 + c];
        own[c] = (double)row_k(&W, W.k, 70, l)[g * 8 + c];
        out[c] = 0;
    }
    turn(q, 8, &W.rope[l], n);
    turn(own, 8, &W.rope[l], n);
    for (t = 0; t <= n; t++) {
        double x[8], a = 0, b = 0;
        for (c = 0; c < 8; c++) x[c] = t < n ? (double)k[t * 8 + c] : own[c];
        for (c = 0; c < 8; c++) a += x[c] * x[c];
        if (t < n) turn(x, 8, &W.rope[l], t - pos[t]);
        for (c = 0, z[t] = 0; c < 8; c++) { b += x[c] * x[c]; z[t] += q[c] * x[c] / sqrt(8.0); }
        CHECK_NEAR(sqrt(a), sqrt(b), 1e-5); /* a turn keeps the norm */
        m = KVMEM__MAX(m, z[t]);
    }
    for (t = 0; t <= n; t++) sum += z[t] = exp(z[t] - m);
    for (t = 0; t <= n; t++)
        for (c = 0; c < 8; c++)
            out[c] += z[t] / sum * (double)(t < n ? v[t * 8 + c] : row_k(&W, W.v, 70, l)[g * 8 + c]);
}
TEST(rerotation_is_a_turn_by_new_slot_minus_old_position_and_goes_on_at_n_kept) {
    static float k[4][24 * 8], v[4][24 * 8];
    static int32_t pos[2][4][MAXT];
    float *out[2];
    int i, l, g, h, t, c, moved = 0, apart = 0;
    double worst = 0;
    for (i = 0; i < 2; i++) {
        test_state = 11;
        if (!start(i ? "key-rerotation budget=24 recent=8 score=snapkv(window=8)"
                     : "key-rerotation budget=24 recent=8 score=snapkv(window=8) place=original", 2, 4, 2, 71, 0))
            return;
        W.rope[1].neox = 1;
        kvmem_cache_free(&C);
        REQUIRE_OK(kvmem_cache_init(&C, &W.cfg));
        CHECK_OK(feed(&W, &C, 0, 70, 70, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                REQUIRE(left(l, g) == 24);
                memcpy(pos[i][l * 2 + g], left_pos, sizeof left_pos);
                if (!i) CHECK_OK(kvmem_cache_read(&C, l, g, 0, 24, k[l * 2 + g], v[l * 2 + g], NULL));
            }
        out[i] = outs(&W, 1);
        CHECK_OK(feed(&W, &C, 70, 71, 1, KVMEM_DECODE, out[i]));
        if (!i) stop();
    }
    for (l = 0; l < 2; l++)
        for (h = 0; h < 4; h++) {
            const int lane = l * 2 + h / 2;
            double o[8];
            for (t = 0; t < 24; t++) {
                CHECK(pos[0][lane][t] == pos[1][lane][t]); /* the same choice */
                moved += t != pos[0][lane][t];
            }
            rerotated(l, h, 24, k[lane], v[lane], pos[0][lane], o);
            for (c = 0; c < 8; c++) {
                worst = KVMEM__MAX(worst, fabs(o[c] - (double)out[1][(l * 4 + h) * 8 + c]));
                apart += fabs(o[c] - (double)out[0][(l * 4 + h) * 8 + c]) > 1e-3;
            }
        }
    CHECK_NEAR(worst, 0, 1e-4);
    CHECK(moved > 80 && apart > 20); /* where there are holes, positions in the cache are other ones */
    CHECK(memcmp(pos[0][0], pos[0][1], 24 * sizeof(int32_t))); /* every head has its own list */
    free(out[0]);
    free(out[1]);
    stop();
}
TEST(rerotation_of_a_prefix_without_holes_turns_no_key) { /* the query comes right after it, not at 50 */
    int set[25], place[25], t, h, c;
    double worst = 0;
    float *out;
    for (t = 0; t < MAXT; t++) table[0][0][t] = table[0][1][t] = (float)-t; /* the first 24 stay */
    if (!start("score=knorm budget=24 when=prompt place=cache", 1, 4, 2, 70, 1)) return;
    CHECK_OK(feed(&W, &C, 0, 50, 50, KVMEM_PROMPT_END, NULL));
    CHECK(left(0, 1) == 24 && left_pos[23] == 23);
    out = outs(&W, 1);
    CHECK_OK(feed(&W, &C, 50, 51, 1, KVMEM_DECODE, out));
    for (t = 0; t < 25; t++) { place[t] = t; set[t] = t < 24 ? t : 50; }
    for (h = 0; h < 4; h++) {
        double o[8];
        oracle(&W, 50, 0, h, set, 25, place, 24, o);
        for (c = 0; c < 8; c++) worst = KVMEM__MAX(worst, fabs(o[c] - (double)out[h * 8 + c]));
    }
    CHECK_NEAR(worst, 0, 1e-5);
    free(out);
    stop();
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "select");
    RUN(chunks_keep_the_best_whole_chunks_in_all_lanes);
    RUN(chunks_of_one_are_the_best_entries_of_the_summed_heads);
    RUN(chunks_are_a_union_that_fits_and_is_the_best_by_counting);
    RUN(chunks_of_a_short_lane_are_the_base);
    RUN(within_each_chunk_keeps_its_own_best);
    RUN(within_a_chunk_that_holds_everything_is_topk);
    RUN(critical_takes_half_by_score_and_half_by_score_times_norm);
    RUN(critical_equals_its_definition);
    RUN(critical_with_equal_norms_or_ratio_one_is_the_base);
    RUN(critical_adakv_fills_the_budgets_of_adakv);
    RUN(critical_without_an_output_projection_is_an_error_with_a_sentence);
    RUN(block_size_of_the_recipe_bounds_every_block);
    RUN(block_of_scores_of_one_entry_gives_the_base_for_any_size);
    RUN(block_that_holds_what_the_budget_does_not_is_one_pass_for_every_score);
    RUN(block_attends_to_what_earlier_blocks_left_and_never_holds_more);
    RUN(threshold_leaves_what_scored_enough_whatever_the_blocks);
    RUN(threshold_decides_once_by_the_first_score);
    RUN(threshold_lowest_is_full_and_highest_is_a_window);
    RUN(threshold_under_a_ceiling_keeps_the_best_of_the_good);
    RUN(slot_follows_the_share_and_empties_one_slot);
    RUN(slot_never_moves_when_everything_was_kept);
    RUN(rerotation_is_a_turn_by_new_slot_minus_old_position_and_goes_on_at_n_kept);
    RUN(rerotation_of_a_prefix_without_holes_turns_no_key);
    return test_end();
}
