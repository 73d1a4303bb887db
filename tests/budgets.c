/* Budgets: whole numbers from shares, the k best of several lists, and the methods that divide a budget by what
   scores and queries say; each beside its definition in double precision, by counting. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "world.h"
#include "table.h"

/* ---- whole numbers ---- */

TEST(round_total_gives_the_largest_remainders_and_ties_to_the_lower_index) { /* the LU-KV card's example */
    double q[3] = { 6, 4.5, 2.5 }, ties[4] = { .5, .5, .5, .5 }, noisy[2] = { 2.5 - 1e-12, 2.5 + 1e-12 };
    int out[4];
    kvmem__round_total(q, NULL, NULL, 3, 13, out);
    CHECK(out[0] == 6 && out[1] == 5 && out[2] == 2);
    kvmem__round_total(ties, NULL, NULL, 4, 2, out);
    CHECK(out[0] == 1 && out[1] == 1 && out[2] == 0 && out[3] == 0);
    kvmem__round_total(noisy, NULL, NULL, 2, 5, out); /* an error of rounding decides nothing */
    CHECK(out[0] == 3 && out[1] == 2);
}
TEST(round_total_keeps_limits_and_total_and_is_the_nearest_vector) {
    int trial;
    for (trial = 0; trial < 3000; trial++) {
        const int n = 1 + draw(4);
        double quota[4], copy[4], err = 0, least = 1e300, sum = 0;
        int lo[4], hi[4], out[4], i, x[4], lows = 0, highs = 0, got = 0;
        int64_t total;
        for (i = 0; i < n; i++) {
            lo[i] = draw(3);
            hi[i] = lo[i] + draw(6);
            copy[i] = quota[i] = test_unit() * 7;
            if (draw(4) == 0) copy[i] = quota[i] = draw(7); /* whole ones, too */
            sum += quota[i];
            lows += lo[i];
            highs += hi[i];
        }
        total = (int64_t)floor(sum + .5) + draw(5) - 2;
        kvmem__round_total(copy, lo, hi, n, total, out);
        for (i = 0; i < n; i++) {
            CHECK(out[i] >= lo[i] && out[i] <= hi[i]);
            got += out[i];
            err += (out[i] - quota[i]) * (out[i] - quota[i]);
        }
        total = KVMEM__MIN(KVMEM__MAX(total, lows), highs);
        if (got != total) { FAIL_AT("trial %d: %d instead of %d", trial, got, (int)total); return; }
        for (x[0] = lo[0]; x[0] <= hi[0]; x[0]++) /* every vector of that total */
            for (x[1] = n > 1 ? lo[1] : 0; x[1] <= (n > 1 ? hi[1] : 0); x[1]++)
                for (x[2] = n > 2 ? lo[2] : 0; x[2] <= (n > 2 ? hi[2] : 0); x[2]++)
                    for (x[3] = n > 3 ? lo[3] : 0; x[3] <= (n > 3 ? hi[3] : 0); x[3]++) {
                        double e = 0;
                        int s = 0;
                        for (i = 0; i < n; i++) { s += x[i]; e += (x[i] - quota[i]) * (x[i] - quota[i]); }
                        if (s == total && e < least) least = e;
                    }
        CHECK(err <= least + 1e-6); /* squared distance from the quotas: no vector is nearer */
    }
}
TEST(apportion_is_proportional_but_for_its_limits) {
    int trial;
    for (trial = 0; trial < 4000; trial++) {
        const int n = 1 + draw(9);
        double share[9], copy[9], most = 0, least = 0;
        int lo[9], hi[9], out[9], i, k;
        int64_t total, sum = 0;
        for (i = 0; i < n; i++) {
            lo[i] = draw(4);
            hi[i] = lo[i] + draw(30);
            copy[i] = share[i] = draw(6) == 0 ? 0 : test_unit() * (trial % 3 ? 1 : 1e-9);
            least += lo[i];
            most += hi[i];
        }
        total = (int64_t)(least + floor(test_unit() * (most - least + 1)));
        kvmem__apportion(copy, lo, hi, n, total, out);
        for (i = 0; i < n; i++) {
            sum += out[i];
            CHECK(out[i] >= lo[i] && out[i] <= hi[i]);
        }
        if (sum != total) { FAIL_AT("trial %d: %d instead of %d", trial, (int)sum, (int)total); return; }
        for (i = 0; i < n; i++) /* whoever is not at a limit has what its share asks for beside the others */
            for (k = 0; k < n; k++) {
                if (out[i] <= lo[i] || out[k] >= hi[k] || share[i] <= 0) continue;
                if (share[k] > 0) CHECK((out[i] - 1) / share[i] <= (out[k] + 1) / share[k] * (1 + 1e-6));
            }
    }
}
TEST(apportion_takes_any_scale_and_bad_input) {
    double huge[3] = { 1e300, 2e300, 1e300 }, tiny[3] = { 1e-300, 2e-300, 1e-300 }, none[3] = { 0, 0, 0 };
    double odd[3] = { NAN, -3, INFINITY }, empty[2] = { 0, 1 }, far[3] = { 1, 1e-25, 1e-25 }, one[1] = { .3 };
    static const int cap[3] = { 2, 9, 9 }, low[3] = { 1, 1, 1 }, top[3] = { 4, 4, 4 };
    int out[3];
    kvmem__apportion(huge, NULL, NULL, 3, 8, out);
    CHECK(out[0] == 2 && out[1] == 4 && out[2] == 2);
    kvmem__apportion(tiny, NULL, NULL, 3, 8, out);
    CHECK(out[0] == 2 && out[1] == 4 && out[2] == 2);
    kvmem__apportion(none, NULL, NULL, 3, 7, out);
    CHECK(out[0] == 3 && out[1] == 2 && out[2] == 2);
    kvmem__apportion(odd, low, top, 3, 7, out); /* the infinite one is filled, the others share the rest */
    CHECK(out[2] == 4 && out[0] == 2 && out[1] == 1);
    kvmem__apportion(empty, NULL, top, 2, 6, out); /* without a share, but the others are full */
    CHECK(out[0] == 2 && out[1] == 4);
    kvmem__apportion(far, NULL, cap, 3, 8, out);
    CHECK(out[0] == 2 && out[1] == 3 && out[2] == 3);
    kvmem__apportion(one, NULL, NULL, 1, 1000000000, out);
    CHECK(out[0] == 1000000000);
    far[0] = 1; far[1] = 1; far[2] = 1;
    kvmem__apportion(far, low, top, 3, 100, out);
    CHECK(out[0] == 4 && out[1] == 4 && out[2] == 4);
    far[0] = 1; far[1] = 1; far[2] = 1;
    kvmem__apportion(far, low, top, 3, -5, out);
    CHECK(out[0] == 1 && out[1] == 1 && out[2] == 1);
    kvmem__apportion(far, NULL, NULL, 0, 5, out);
}
TEST(global_top_counts_the_best_of_all_lists) {
    int trial;
    for (trial = 0; trial < 4000; trial++) {
        const int lists = 1 + draw(5), ties = draw(2);
        float score[5][12];
        const float *row[5];
        float sorted[5][13]; /* the numbers that list i has given, in order */
        int from[5], to[5], lo[5], count[5], want[5], i, j, t, all = 0, floors = 0;
        int64_t k, got;
        for (i = 0; i < lists; i++) {
            row[i] = score[i];
            from[i] = draw(3);
            to[i] = from[i] + draw(10);
            lo[i] = draw(4);
            floors += want[i] = KVMEM__MIN(lo[i], to[i] - from[i]);
            all += to[i] - from[i];
            for (t = 0; t < 12; t++) score[i][t] = ties ? (float)(draw(4) - 2) : (float)test_normal();
            if (draw(3) == 0) score[i][from[i]] = -INFINITY;
            if (draw(3) == 0) score[i][from[i]] = -0.0f;
        }
        k = draw(all + 3);
        got = kvmem__global_top(row, from, to, lo, lists, k, count);
        while (floors < k && floors < all) { /* the best of what no list has yet, one by one; of equal ones the list's
                                                that has had the fewest of them */
            int best = -1, turns = 0;
            float top = 0;
            for (i = 0; i < lists; i++) { /* the next of list i in order */
                int idx[12], out[12], m = to[i] - from[i];
                float x;
                if (want[i] >= m) continue;
                kvmem__topk(out, score[i] + from[i], m, want[i] + 1, idx);
                x = INFINITY;
                for (t = 0; t <= want[i]; t++)
                    if (score[i][from[i] + out[t]] < x) x = score[i][from[i] + out[t]];
                for (t = 0, j = 0; t < want[i]; t++) j += t >= lo[i] && sorted[i][t] == x;
                sorted[i][want[i]] = x;
                if (best < 0 || x > top || (x == top && j < turns)) { best = i; top = x; turns = j; }
            }
            want[best]++;
            floors++;
        }
        CHECK(got == floors);
        for (i = 0; i < lists; i++)
            if (count[i] != want[i]) {
                FAIL_AT("trial %d list %d: %d instead of %d", trial, i, count[i], want[i]);
                return;
            }
    }
}

/* ---- budgets that divide by scores: asked directly, with scores by hand ---- */

static int start(const char *text, int L, int H, int G, int T, int by_table) {
    return table_start(text, L, H, G, T, by_table, 0);
}
/* Ask the budget stage of the cache in hand. */
static void ask(int layer, int mean, const int *n, const float *const *score, int *keep) {
    const kvmem_budget_entry *e = (const kvmem_budget_entry *)(const void *)C.recipe.stage[KVMEM_BUDGET].entry;
    const kvmem_view v = kvmem__view_of(&C, layer, KVMEM_BUDGET);
    CHECK_OK(e->fn(&v, mean, n, score, keep));
    kvmem__view_scratch_end(&C);
}
static double sum_best(const float *x, int n, int k) { /* the sum of the k largest */
    static int out[MAXT], idx[MAXT];
    const int m = kvmem__topk(out, x, n, k, idx);
    double s = 0;
    int i;
    for (i = 0; i < m; i++) s += (double)x[out[i]];
    return s;
}

TEST(adakv_official_rounding_does_not_keep_the_total_and_kvpress_does) { /* B=4, c = 7 and 1 */
    static const float a[10] = { 9, 9, 9, 9, 9, 9, 9, 1, 1, 1 }, b[10] = { 8, 2, 2, 2, 2, 2, 2, 2, 2, 2 };
    static const struct { const char *text; int keep[2]; } want[6] = {
        { "budget=adakv(4,alpha=0.25,form=round)", { 6, 2 } }, { "budget=adakv(4,alpha=0.2,form=round)", { 6, 1 } },
        { "budget=adakv(4,alpha=0.25)", { 7, 1 } }, { "budget=adakv(4,alpha=0.5)", { 6, 2 } },
        { "budget=adakv(4,alpha=1)", { 4, 4 } }, { "budget=adakv(4,alpha=1,form=round)", { 4, 4 } } };
    const float *row[2];
    const int n[2] = { 10, 10 };
    int i, keep[2];
    row[0] = a;
    row[1] = b;
    for (i = 0; i < 6; i++) {
        if (!start(want[i].text, 1, 2, 2, 10, 0)) return;
        ask(0, 4, n, row, keep);
        if (keep[0] != want[i].keep[0] || keep[1] != want[i].keep[1])
            FAIL_AT("%s: %d and %d", want[i].text, keep[0], keep[1]);
        stop();
    }
}
/* kvpress: every lane's best `safe` become the maximum, then the worst of all go, one by one. */
static void adakv_oracle(float x[4][MAXT], int G, int n, int B, int safe, int *keep) {
    static unsigned char gone[4][MAXT], sure[4][MAXT];
    int g, t, i;
    memset(gone, 0, sizeof gone);
    memset(sure, 0, sizeof sure);
    for (g = 0; g < G; g++)
        for (i = 0; i < safe; i++) {
            int top = -1;
            for (t = 0; t < n; t++)
                if (!sure[g][t] && (top < 0 || x[g][t] > x[g][top])) top = t;
            sure[g][top] = 1;
        }
    for (g = 0; g < G; g++) keep[g] = n;
    for (i = 0; i < G * (n - B); i++) {
        int worst = -1, at = 0;
        for (g = 0; g < G; g++)
            for (t = 0; t < n; t++)
                if (!gone[g][t] && !sure[g][t] && (worst < 0 || x[g][t] < x[worst][at])) { worst = g; at = t; }
        gone[worst][at] = 1;
        keep[worst]--;
    }
}
TEST(adakv_equals_kvpress_keeps_its_floors_and_is_the_best_division) {
    int trial;
    for (trial = 0; trial < 120; trial++) {
        const int G = 1 + trial % 4, n = 12 + draw(20), B = 1 + draw(n - 1), sink = draw(3), recent = draw(3);
        const double alpha = trial % 5 * .25;
        static float x[4][MAXT];
        const float *row[4];
        int len[4], keep[4], want[4], g, t, sum = 0;
        char text[120];
        sprintf(text, "budget=adakv(%d,alpha=%g) sink=%d recent=%d", B + sink + recent, alpha, sink, recent);
        for (g = 0; g < G; g++) {
            for (t = 0; t < n + sink + recent; t++) table[0][g][t] = (float)(test_unit() * (g ? 1 : 2));
            memcpy(x[g], table[0][g] + sink, (size_t)n * sizeof(float));
            row[g] = table[0][g];
            len[g] = n + sink + recent;
        }
        if (!start(text, 1, G, G, 10, 0)) return;
        ask(0, B + sink + recent, len, row, keep);
        adakv_oracle(x, G, n, B, (int)(B * alpha), want);
        for (g = 0; g < G; g++) {
            if (keep[g] != want[g] + sink + recent) FAIL_AT("%s: head %d keeps %d", text, g, keep[g]);
            CHECK(keep[g] - sink - recent >= (int)(B * alpha));
            sum += keep[g] - sink - recent;
        }
        CHECK(sum == G * B);
        if (G == 2 && alpha == 0) /* no other division of the total holds more of the scores */
            for (t = KVMEM__MAX(0, 2 * B - n); t <= KVMEM__MIN(n, 2 * B); t++)
                CHECK(sum_best(x[0], n, want[0]) + sum_best(x[1], n, want[1]) >=
                      sum_best(x[0], n, t) + sum_best(x[1], n, 2 * B - t) - 1e-6);
        stop();
    }
}
TEST(adakv_divides_equal_rows_equally) {
    int kind, g, t, keep[3], n[3] = { 40, 40, 40 };
    const float *row[3];
    for (kind = 0; kind < 3; kind++) { /* one row for all, all numbers equal, all -INFINITY */
        for (t = 0; t < 40; t++) table[0][0][t] = kind == 0 ? (float)test_unit() : kind == 1 ? 0.0f : -INFINITY;
        for (g = 0; g < 3; g++) row[g] = table[0][0];
        if (!start("budget=adakv(13)", 1, 3, 3, 10, 0)) return;
        ask(0, 13, n, row, keep);
        CHECK(keep[0] == 13 && keep[1] == 13 && keep[2] == 13);
        stop();
        if (!start("budget=adakv(13,normalize=1)", 1, 3, 3, 10, 0)) return;
        ask(0, 13, n, row, keep);
        CHECK(keep[0] == 13 && keep[1] == 13 && keep[2] == 13);
        stop();
    }
}
TEST(adakv_normalize_skip_and_pyramid) {
    static float x[4][MAXT];
    const float *row[2];
    const int n[2] = { 30, 30 };
    int keep[2], want[2], g, t, l, total = 0;
    for (g = 0; g < 2; g++) {
        for (t = 0; t < 30; t++) table[0][g][t] = (float)(g ? test_unit() : pow(test_unit(), 6));
        row[g] = table[0][g];
    }
    if (!start("budget=adakv(8,alpha=0,normalize=1)", 1, 2, 2, 10, 0)) return;
    ask(0, 8, n, row, keep);
    for (g = 0; g < 2; g++) {
        const double f = sum_best(table[0][g], 30, 8) / sum_best(table[0][g], 30, 30);
        for (t = 0; t < 30; t++) x[g][t] = (float)(f * (double)table[0][g][t]);
    }
    adakv_oracle(x, 2, 30, 8, 0, want);
    CHECK(keep[0] == want[0] && keep[1] == want[1]);
    stop();
    if (!start("budget=adakv(8,skip=2)", 4, 2, 2, 10, 0)) return;
    ask(1, 8, n, row, keep);
    CHECK(keep[0] == 8 && keep[1] == 8);
    ask(2, 8, n, row, keep);
    CHECK(keep[0] != 8 && keep[0] + keep[1] == 16);
    stop();
    if (!start("budget=adakv(8,beta=4)", 4, 2, 2, 30, 0)) return;
    C.tokens = 30;
    for (l = 0; l < 4; l++) { /* the total of a layer is the pyramid's */
        ask(l, 8, n, row, keep);
        CHECK(keep[0] + keep[1] == 2 * kvmem__pyramid(l, 4, 8, 30, 4, 1));
        total += keep[0] + keep[1];
    }
    CHECK(total == 4 * 2 * 8);
    C.tokens = 0;
    stop();
}
TEST(adakv_run_keeps_the_layers_best_norms) { /* through a cache: knorm needs no attention */
    int l, g, t, i;
    if (!start("score=knorm budget=adakv(12,alpha=0) when=prompt", 2, 4, 4, 50, 0)) return;
    CHECK_OK(feed(&W, &C, 0, 50, 50, KVMEM_PROMPT_END, NULL));
    for (l = 0; l < 2; l++) {
        double worst_in = 0, best_out = 1e9; /* norms: short ones stay */
        int total = 0;
        for (g = 0; g < 4; g++) {
            int32_t pos[MAXT];
            const int n = kvmem_cache_lane_len(&C, l, g);
            CHECK_OK(kvmem_cache_read(&C, l, g, 0, n, NULL, NULL, pos));
            total += n;
            for (t = 0, i = 0; t < 50; t++) {
                double s = 0;
                int c;
                for (c = 0; c < 8; c++) s += pow((double)row_k(&W, W.k, t, l)[g * 8 + c], 2);
                if (i < n && pos[i] == t) { i++; worst_in = KVMEM__MAX(worst_in, s); }
                else best_out = KVMEM__MIN(best_out, s);
            }
        }
        CHECK(total == 4 * 12 && worst_in < best_out);
    }
    stop();
}

/* ---- dynamickv ---- */

static float rows[16][MAXT];
static const float *row_of[16];
static int lens[16], kept[16];
static void table_rows(int lanes, int n) {
    int i;
    for (i = 0; i < lanes; i++) { row_of[i] = rows[i]; lens[i] = n; }
}
/* The definition: at each division sort all scores of the layers so far, count, divide, cut. No ties. */
static void dynamickv_oracle(int L, int G, int n, int B, double ratio, int every, int *f) {
    static double all[16 * MAXT];
    int l, g, t, m, hi[16], lo[16];
    for (l = 0; l < L; l++) { hi[l] = ratio * B < n ? (int)(ratio * B) : n; lo[l] = 1; }
    for (m = every ? KVMEM__MIN(every, L) : L;; m = KVMEM__MIN(m + every, L)) {
        double share[16], cut;
        int k = 0, i;
        for (l = 0; l < m * G; l++)
            for (t = 0; t < n; t++) all[k++] = (double)rows[l][t];
        for (i = 0; i < KVMEM__MIN(B * G * m, k); i++) { /* the largest come first */
            int top = i;
            double x;
            for (t = i; t < k; t++) if (all[t] > all[top]) top = t;
            x = all[i]; all[i] = all[top]; all[top] = x;
        }
        cut = all[KVMEM__MIN(B * G * m, k) - 1];
        for (l = 0; l < m; l++)
            for (g = 0, share[l] = 0; g < G; g++)
                for (t = 0; t < n; t++) share[l] += (double)rows[l * G + g][t] >= cut;
        kvmem__apportion(share, lo, hi, m, (int64_t)B * m, f);
        for (l = 0; l < m; l++) hi[l] = f[l];
        if (m == L) return;
    }
}
TEST(dynamickv_equals_its_definition_and_keeps_the_total) {
    int trial;
    for (trial = 0; trial < 60; trial++) {
        const int L = 1 + draw(4), G = 1 + draw(3), n = 10 + draw(40), B = 1 + draw(n - 1), every = draw(4);
        const double ratio = 1 + draw(4);
        char text[120];
        int i, t, f[16], sum = 0;
        for (i = 0; i < L * G; i++)
            for (t = 0; t < n + 2; t++) rows[i][t] = (float)pow(test_unit(), 1 + i / G);
        table_rows(L * G, n);
        sprintf(text, "budget=dynamickv(%d,ratio=%g,every=%d)", B, ratio, every);
        if (!start(text, L, G, G, 10, 0)) return;
        ask(0, B, lens, row_of, kept);
        dynamickv_oracle(L, G, n, B, ratio, every, f);
        for (i = 0; i < L * G; i++) {
            if (kept[i] != f[i / G]) FAIL_AT("%s: lane %d keeps %d, not %d", text, i, kept[i], f[i / G]);
            CHECK(kept[i] >= 1 && kept[i] <= ratio * B && kept[i] <= n);
            sum += kept[i];
        }
        CHECK(sum == L * G * B);
        stop();
    }
}
TEST(dynamickv_equal_rows_give_equal_budgets) {
    int kind, i, t;
    for (kind = 0; kind < 2; kind++) {
        for (t = 0; t < 60; t++) rows[0][t] = kind ? 0.0f : (float)test_unit();
        for (i = 1; i < 8; i++) memcpy(rows[i], rows[0], sizeof rows[0]);
        table_rows(8, 60);
        if (!start("budget=dynamickv(11,every=3) sink=2 recent=1", 4, 2, 2, 10, 0)) return;
        ask(0, 11, lens, row_of, kept);
        for (i = 0; i < 8; i++) CHECK(kept[i] == 11);
        stop();
    }
}
TEST(dynamickv_never_gives_back_what_a_layer_has_lost) { /* layer 0 is poor beside 1, rich beside 2 and 3 */
    int i, t, once, again;
    for (i = 0; i < 4; i++)
        for (t = 0; t < 50; t++)
            rows[i][t] = (float)((i == 0 ? 5 : i == 1 ? 9 : 0) + test_unit() + (i == 0 && t < 3 ? 9 : 0));
    table_rows(4, 50);
    if (!start("budget=dynamickv(20,every=2)", 4, 1, 1, 10, 0)) return;
    ask(0, 20, lens, row_of, kept);
    again = kept[0];
    CHECK(again + kept[1] + kept[2] + kept[3] == 80);
    stop();
    if (!start("budget=dynamickv(20,every=0)", 4, 1, 1, 10, 0)) return;
    ask(0, 20, lens, row_of, kept);
    once = kept[0];
    CHECK(once + kept[1] + kept[2] + kept[3] == 80);
    stop();
    CHECK(again < once);
}

/* ---- prefixkv ---- */

TEST(prefixkv_card_example) { /* .7 .1 .1 .1 and .25 .25 .25 .25, half of the cache */
    static const float peak[4] = { .1f, .7f, .1f, .1f }, flat[4] = { .25f, .25f, .25f, .25f };
    row_of[0] = peak;
    row_of[1] = flat;
    lens[0] = lens[1] = 4;
    if (!start("budget=prefixkv(2)", 2, 1, 1, 10, 0)) return;
    ask(0, 2, lens, row_of, kept);
    CHECK(kept[0] == 1 && kept[1] == 3);
    stop();
    row_of[1] = peak; /* equal curves */
    if (!start("budget=prefixkv(2)", 2, 1, 1, 10, 0)) return;
    ask(0, 2, lens, row_of, kept);
    CHECK(kept[0] == 2 && kept[1] == 2);
    ask(0, 4, lens, row_of, kept);
    CHECK(kept[0] == 4 && kept[1] == 4);
    stop();
}
TEST(prefixkv_forgets_less_for_a_higher_threshold) {
    float cum[MAXT];
    int order[MAXT], i, before = INT_MAX;
    const int n = 100;
    for (i = 0; i < n; i++) rows[0][i] = (float)pow(test_unit(), 4);
    row_of[0] = rows[0];
    kvmem__prefix_curve(cum, n, row_of, &n, 1, order);
    for (i = 0; i < n; i++) CHECK(cum[i] >= (i ? cum[i - 1] : 0));
    CHECK_NEAR(cum[n - 1], 1, 1e-6);
    for (i = 0; i <= 100; i++) {
        const int f = kvmem__prefix_forget(cum, n, i / 100.0, 3);
        CHECK(f <= before && f >= 0 && f <= n - 4);
        if (f > 0) CHECK((double)cum[n - f - 4] >= i / 100.0 - 1e-9); /* the prefix alone holds that share */
        before = f;
    }
    for (i = 0; i < n; i++) rows[0][i] = 0; /* no mass at all: as if all had the same */
    kvmem__prefix_curve(cum, n, row_of, &n, 1, order);
    CHECK_NEAR(cum[49], .5, 1e-6);
}
/* By counting, in double: one threshold for all layers, then what is too much is given back in proportion. */
static void prefixkv_oracle(int L, int n, int mean, int w, int *keep) {
    static double c[4][MAXT];
    double a = 0, b = 1, share[4];
    int hi[4], forget[4], l, t, i, step, sum, target = L * (n - mean);
    for (l = 0; l < L; l++) {
        double all = 0, run = 0;
        for (t = 0; t < n; t++) all += (double)rows[l][t];
        for (i = 0; i < n; i++) { /* the i-th largest */
            int best = -1;
            for (t = 0; t < n; t++)
                if (rows[l][t] >= 0 && (best < 0 || rows[l][t] > rows[l][best])) best = t;
            run += (double)rows[l][best];
            rows[l][best] = -1 - rows[l][best];
            c[l][i] = (double)(float)(run / all);
        }
        for (t = 0; t < n; t++) rows[l][t] = -1 - rows[l][t];
        hi[l] = n - KVMEM__MAX(w, 1);
    }
    for (step = 0; step < 60; step++) {
        const double p = (a + b) / 2;
        for (l = 0, sum = 0; l < L; l++) {
            for (i = 0; i < n - 1 && c[l][i] < p; i++) {}
            sum += KVMEM__MAX(0, n - i - 1 - w);
        }
        if (sum < target) b = p;
        else a = p;
    }
    for (l = 0; l < L; l++) {
        for (i = 0; i < n - 1 && c[l][i] < a; i++) {}
        share[l] = KVMEM__MAX(0, n - i - 1 - w);
    }
    kvmem__apportion(share, NULL, hi, L, target, forget);
    for (l = 0; l < L; l++) keep[l] = n - forget[l];
}
TEST(prefixkv_equals_its_definition_and_keeps_the_total) {
    int trial;
    for (trial = 0; trial < 60; trial++) {
        const int L = 1 + draw(4), n = 12 + draw(50), mean = 4 + draw(n - 4), w = draw(3);
        char text[120];
        int want[4], l, t, sum = 0;
        for (l = 0; l < L; l++)
            for (t = 0; t < n; t++) rows[l][t] = (float)pow(test_unit(), 1 + 2 * l) / 256;
        table_rows(L, n);
        sprintf(text, "budget=prefixkv(%d) sink=%d recent=%d", mean, w > 0, w > 1);
        if (!start(text, L, 1, 1, 10, 0)) return;
        ask(0, mean, lens, row_of, kept);
        prefixkv_oracle(L, n, mean, w, want);
        for (l = 0; l < L; l++) {
            if (kept[l] != want[l]) FAIL_AT("%s: layer %d keeps %d, not %d", text, l, kept[l], want[l]);
            CHECK(kept[l] >= KVMEM__MAX(1, w) && kept[l] <= n);
            sum += kept[l];
        }
        CHECK(sum == L * mean);
        stop();
    }
}
TEST(prefixkv_keeps_one_set_a_layer_and_tracks_its_share) {
    int l, g, step, first[2], T = 60;
    if (!start("prefixkv", 2, 4, 2, 160, 0)) return;
    CHECK_OK(feed(&W, &C, 0, T, 30, KVMEM_PROMPT_END, NULL));
    for (l = 0; l < 2; l++) first[l] = kvmem_cache_lane_len(&C, l, 0);
    CHECK(first[0] + first[1] == T);
    for (step = T; step <= 160; step++) {
        for (l = 0; l < 2; l++) {
            int32_t a[MAXT], b[MAXT];
            const int n = kvmem_cache_lane_len(&C, l, 0);
            CHECK(fabs(n - (double)step * first[l] / T) <= 1);
            for (g = 0; g < 2; g++) {
                CHECK(kvmem_cache_lane_len(&C, l, g) == n);
                CHECK_OK(kvmem_cache_read(&C, l, g, 0, n, NULL, NULL, g ? b : a));
            }
            CHECK(!memcmp(a, b, (size_t)n * sizeof *a) && a[0] == 0 && a[n - 1] == step - 1);
        }
        if (step < 160) CHECK_OK(feed(&W, &C, step, step + 1, 1, KVMEM_DECODE, NULL));
    }
    stop();
}
TEST(prefixkv_score_is_the_mean_of_the_layers_sums) {
    int l, g, t;
    if (!start("score=prefixkv budget=100", 2, 4, 2, 50, 0)) return;
    CHECK_OK(feed(&W, &C, 0, 50, 20, KVMEM_PROMPT_END, NULL));
    for (l = 0; l < 2; l++) {
        static float s[2][MAXT], acc[2][MAXT];
        double sum = 0;
        for (g = 0; g < 2; g++) {
            const kvmem_view v = kvmem__view_of(&C, l, KVMEM_SCORE);
            CHECK_OK(kvmem__score_prefixkv(&v, g, s[g]));
            kvmem__view_scratch_end(&C);
            kvmem_view_acc(&v, g, acc[g]);
        }
        for (t = 0; t < 50; t++) {
            CHECK(s[0][t] == s[1][t]);
            CHECK_NEAR(s[0][t], (acc[0][t] + acc[1][t]) / 2, 1e-5);
            sum += (double)s[0][t];
        }
        CHECK_NEAR(sum, 50, 1e-3); /* every query's probabilities sum to 1 */
    }
    stop();
}

/* ---- simlayerkv ---- */

/* Layer 0 looks everywhere alike (mass of S + R of n keys: (S + R) / n), layer 1 at one key in the middle. */
static int sim_start(const char *text, int n) {
    int t, c;
    if (!start(text, 2, 2, 2, n, 0)) return 0;
    for (t = 0; t < n; t++) {
        memset(row_q(&W, t, 0), 0, 16 * sizeof(float));
        for (c = 0; c < 16; c++) {
            if (!t) row_k(&W, W.k, 15, 1)[c] *= 3;
            row_q(&W, t, 1)[c] = row_k(&W, W.k, 15, 1)[c];
        }
    }
    return 1;
}
TEST(simlayerkv_lazy_layers_keep_both_ends_and_the_others_all) {
    static const struct { double threshold; int window, lazy[2]; } want[6] = {
        { 1, 1, { 0, 0 } }, { 0, 1, { 1, 1 } }, { .29, 1, { 1, 0 } }, { .31, 1, { 0, 0 } }, { .2, 3, { 1, 0 } },
        { 0, 5, { 1, 1 } } };
    int i, l, g, t;
    for (i = 0; i < 6; i++) { /* n=40, S=3, R=9: 12 of 40 keys hold .3 of an even look */
        char text[160];
        sprintf(text, "simlayerkv budget=simlayerkv(12,threshold=%g,window=%d) sink=3", want[i].threshold,
                want[i].window);
        if (!sim_start(text, 50)) return;
        CHECK_OK(feed(&W, &C, 0, 40, 20, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                int32_t pos[MAXT];
                const int n = kvmem_cache_lane_len(&C, l, g), least = 12 - want[i].window;
                CHECK(n == (want[i].lazy[l] ? least : 40)); /* S + R - window */
                CHECK_OK(kvmem_cache_read(&C, l, g, 0, n, NULL, NULL, pos));
                for (t = 0; t < n; t++) CHECK(pos[t] == (n == 40 || t < 3 ? t : 40 - n + t));
            }
        CHECK_OK(feed(&W, &C, 40, 50, 1, KVMEM_DECODE, NULL)); /* only the prompt's end is asked */
        CHECK(kvmem_cache_lane_len(&C, 0, 0) == (want[i].lazy[0] ? 12 - want[i].window : 40) + 10);
        stop();
    }
}
TEST(simlayerkv_leaves_short_streams_alone) { /* n <= S + R + window */
    int n;
    for (n = 12; n <= 15; n++) {
        if (!start("simlayerkv budget=simlayerkv(12,threshold=0,window=2) sink=3", 2, 2, 2, n, 0)) return;
        CHECK_OK(feed(&W, &C, 0, n, n, KVMEM_PROMPT_END, NULL));
        CHECK(kvmem_cache_lane_len(&C, 0, 0) == (n <= 14 ? n : 10));
        stop();
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "budgets");
    RUN(round_total_gives_the_largest_remainders_and_ties_to_the_lower_index);
    RUN(round_total_keeps_limits_and_total_and_is_the_nearest_vector);
    RUN(apportion_is_proportional_but_for_its_limits);
    RUN(apportion_takes_any_scale_and_bad_input);
    RUN(global_top_counts_the_best_of_all_lists);
    RUN(adakv_official_rounding_does_not_keep_the_total_and_kvpress_does);
    RUN(adakv_equals_kvpress_keeps_its_floors_and_is_the_best_division);
    RUN(adakv_divides_equal_rows_equally);
    RUN(adakv_normalize_skip_and_pyramid);
    RUN(adakv_run_keeps_the_layers_best_norms);
    RUN(dynamickv_equals_its_definition_and_keeps_the_total);
    RUN(dynamickv_equal_rows_give_equal_budgets);
    RUN(dynamickv_never_gives_back_what_a_layer_has_lost);
    RUN(prefixkv_card_example);
    RUN(prefixkv_forgets_less_for_a_higher_threshold);
    RUN(prefixkv_equals_its_definition_and_keeps_the_total);
    RUN(prefixkv_keeps_one_set_a_layer_and_tracks_its_share);
    RUN(prefixkv_score_is_the_mean_of_the_layers_sums);
    RUN(simlayerkv_lazy_layers_keep_both_ends_and_the_others_all);
    RUN(simlayerkv_leaves_short_streams_alone);
    return test_end();
}
