/* Budgets: whole numbers from shares, the k best of several lists, and the methods that divide a budget by what
   scores and queries say; each beside its definition in double precision, by counting. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"

/* ---- whole numbers ---- */

static int draw(int n) { return (int)(test_unit() * n); } /* 0..n-1 */

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
int main(int argc, char **argv) {
    test_begin(argc, argv, "budgets");
    RUN(round_total_gives_the_largest_remainders_and_ties_to_the_lower_index);
    RUN(round_total_keeps_limits_and_total_and_is_the_nearest_vector);
    RUN(apportion_is_proportional_but_for_its_limits);
    RUN(apportion_takes_any_scale_and_bad_input);
    RUN(global_top_counts_the_best_of_all_lists);
    return test_end();
}
