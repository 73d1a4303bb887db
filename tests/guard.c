/* Which recalled memories agree (memguard: DBSCAN, consensus, lessons) and which are looked at (sdr). DBSCAN is
   compared with a plain one that follows its definition; a search that may look at everything is the exact one. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include <math.h>

/* ---- memguard */

static int label[64];
static unsigned char believed[64];

TEST(three_near_equal_rows_outvote_an_orthogonal_one) {
    static const float x[4][3] = { { 1, 0, 0 }, { 0.99f, 0.1f, 0 }, { 0, 0, 2 }, { 1, -0.05f, 0 } };
    const kvmem_guard g = kvmem_guard_default();
    CHECK(g.eps == 0.5 && g.min_samples == 2 && !g.fail_open);
    CHECK(kvmem_consensus(&g, x[0], 4, 3, believed, label) == 3);
    CHECK(believed[0] && believed[1] && !believed[2] && believed[3] && label[2] == -1);
}
TEST(one_row_is_no_cluster_and_failing_is_closed_or_open) {
    static const float x[2] = { 1, 0 };
    kvmem_guard g = kvmem_guard_default();
    CHECK(kvmem_dbscan(x, 1, 2, 0.5, 2, label) == 0 && label[0] == -1);
    CHECK(kvmem_consensus(&g, x, 1, 2, believed, label) == 0 && !believed[0]);
    CHECK(kvmem_consensus(&g, x, 0, 2, believed, label) == 0);
    g.fail_open = 1;
    CHECK(kvmem_consensus(&g, x, 1, 2, believed, label) == 1 && believed[0]);
    CHECK(kvmem_dbscan(x, 1, 2, 0.5, 1, label) == 1 && label[0] == 0);
}
TEST(of_two_clusters_of_equal_size_the_one_with_the_lowest_row_wins) {
    static const float x[4][2] = { { 0, 1 }, { 1, 0 }, { 1, 0.01f }, { 0.01f, 1 } };
    const kvmem_guard g = kvmem_guard_default();
    CHECK(kvmem_consensus(&g, x[0], 4, 2, believed, label) == 2 && believed[0] && believed[3]);
    CHECK(kvmem_consensus(&g, x[1], 3, 2, believed, label) == 2 && believed[0] && believed[1]);
}
TEST(equal_rows_are_all_believed_and_zeros_are_not) {
    float x[10][4];
    const kvmem_guard g = kvmem_guard_default();
    int i, j;
    for (i = 0; i < 10; i++) for (j = 0; j < 4; j++) x[i][j] = 0.3f * (float)(j - 1);
    CHECK(kvmem_consensus(&g, x[0], 10, 4, believed, label) == 10);
    memset(x, 0, sizeof x);
    CHECK(kvmem_consensus(&g, x[0], 10, 4, believed, label) == 0);
}
/* By definition: cores are connected if a chain of cores within eps joins them; clusters are numbered by their lowest
   core; another row is in the cluster of the core that a growing cluster would reach first: the lowest-numbered. */
static void plain_dbscan(const double *near, int n, double eps, int least, int *to) {
    int root[64], core[64], i, j, pass, number = 0;
    for (i = 0; i < n; i++) {
        int count = 0;
        for (j = 0; j < n; j++) count += near[i * n + j] <= eps + 1e-12;
        core[i] = count >= least;
        root[i] = i;
        to[i] = -1;
    }
    for (pass = 0; pass < n; pass++)
        for (i = 0; i < n; i++)
            for (j = 0; j < n; j++)
                if (core[i] && core[j] && near[i * n + j] <= eps + 1e-12 && root[j] < root[i]) root[i] = root[j];
    for (i = 0; i < n; i++) {
        if (!core[i] || root[i] != i) continue;
        for (j = 0; j < n; j++) if (core[j] && root[j] == i) to[j] = number;
        for (j = 0; j < n; j++) {
            int k, reached = 0;
            for (k = 0; k < n; k++) reached |= core[k] && root[k] == i && near[j * n + k] <= eps + 1e-12;
            if (!core[j] && reached && to[j] < 0) to[j] = number;
        }
        number++;
    }
}
TEST(dbscan_agrees_with_its_definition) {
    float x[40][3];
    double near[1600];
    int want[64], t, i, j, k;
    for (t = 0; t < 60; t++) {
        const int n = 1 + (int)(test_unit() * 40), least = 1 + t % 5;
        const double eps = 0.002 + 0.1 * test_unit();
        for (i = 0; i < n; i++) for (k = 0; k < 3; k++) x[i][k] = (float)test_normal();
        for (i = 0; i < n; i++)
            for (j = 0; j < n; j++) {
                double a = 0, b = 0, c = 0;
                for (k = 0; k < 3; k++) {
                    a += (double)x[i][k] * (double)x[i][k];
                    b += (double)x[j][k] * (double)x[j][k];
                    c += (double)x[i][k] * (double)x[j][k];
                }
                near[i * n + j] = i == j ? 0 : 1 - c / sqrt(a * b);
            }
        plain_dbscan(near, n, eps, least, want);
        (void)kvmem_dbscan(x[0], n, 3, eps, least, label);
        CHECK(!memcmp(label, want, (size_t)n * sizeof *want));
    }
}
/* k memories tell a fact truly, one falsely: what each leads to is a distribution of 24 answers with noise. */
TEST(copies_of_the_truth_expose_a_false_one_and_a_single_copy_cannot) {
    float x[6][24], sum[24];
    const kvmem_guard g = kvmem_guard_default();
    int k, i, j, best, right[6] = { 0 }, t;
    for (k = 1; k <= 5; k++)
        for (t = 0; t < 20; t++) {
            const int lie = t % (k + 1);
            for (i = 0; i <= k; i++)
                for (j = 0; j < 24; j++) x[i][j] = (j == (i == lie ? 3 : 17)) * 0.8f + 0.1f * (float)test_unit();
            for (j = 0; j < 24; j++) x[lie][j] *= 4; /* it is surer than the others: their sum says so */
            kvmem_consensus(&g, x[0], k + 1, 24, believed, label);
            memset(sum, 0, sizeof sum);
            for (i = 0; i <= k; i++) for (j = 0; j < 24; j++) sum[j] += believed[i] ? x[i][j] : 0;
            for (best = 0, j = 1; j < 24; j++) if (sum[j] > sum[best]) best = j;
            right[k] += best == 17;
        }
    CHECK(right[1] == 0);
    for (k = 2; k <= 5; k++) CHECK(right[k] == 20);
}
TEST(lessons_warn_of_the_same_memory_at_a_similar_question_until_overwritten) {
    float sign[2 * 3];
    uint64_t id[2];
    static const float q[3] = { 1, 0, 0 }, like[3] = { 2, 0.1f, 0 }, other[3] = { 0, 1, 0 };
    kvmem_lessons l;
    memset(&l, 0, sizeof l);
    l.sign = sign; l.id = id; l.d = 3;
    kvmem_lessons_learn(&l, q, 7);
    CHECK(l.n == 0 && !kvmem_lessons_warn(&l, q, 7, 0.9));
    l.cap = 2;
    kvmem_lessons_learn(&l, q, 7);
    CHECK(kvmem_lessons_warn(&l, q, 7, 0.9) && kvmem_lessons_warn(&l, like, 7, 0.9));
    CHECK(!kvmem_lessons_warn(&l, other, 7, 0.9) && !kvmem_lessons_warn(&l, q, 8, 0.9));
    kvmem_lessons_learn(&l, other, 8);
    kvmem_lessons_learn(&l, other, 9);
    CHECK(l.n == 2 && !kvmem_lessons_warn(&l, q, 7, 0.9) && kvmem_lessons_warn(&l, other, 8, 0.9));
}

/* ---- sdr */

enum { DIM = 32, ROWS = 1500 };
static float row[ROWS][DIM];
/* Rows around 60 centres, unit length. */
static void clustered(void) {
    float centre[60][DIM];
    int i, j;
    for (i = 0; i < 60; i++) for (j = 0; j < DIM; j++) centre[i][j] = (float)test_normal();
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < DIM; j++) row[i][j] = centre[i % 60][j] + 0.5f * (float)test_normal();
        kvmem_normalise(row[i], DIM);
    }
}
static void like_row(float *q, int i) {
    int j;
    for (j = 0; j < DIM; j++) q[j] = row[i][j] + 0.08f * (float)test_normal();
}
TEST(an_identical_vector_shares_all_winners_and_scaling_changes_none) {
    kvmem_sdr s;
    unsigned short a[16], b[16];
    float x[DIM];
    int j;
    clustered();
    REQUIRE_OK(kvmem_sdr_init(&s, DIM, 0, 0, 1, NULL));
    CHECK(s.modules == 16 && s.units == 16);
    kvmem_sdr_code(&s, row[0], a);
    for (j = 0; j < DIM; j++) x[j] = 4 * row[0][j];
    kvmem_sdr_code(&s, x, b);
    CHECK(!memcmp(a, b, sizeof a));
    REQUIRE_OK(kvmem_sdr_add(&s, row[0]));
    CHECK(!memcmp(s.code, a, sizeof a));
    kvmem_sdr_free(&s);
    kvmem_sdr_free(&s);
}
TEST(with_all_candidates_the_search_is_exact_with_ties_to_the_lower_index) {
    kvmem_sdr s;
    kvmem_hit hit[20];
    float q[DIM];
    int i, j, t, n, scanned;
    clustered();
    REQUIRE_OK(kvmem_sdr_init(&s, DIM, 4, 8, 1, NULL));
    for (i = 0; i < 300; i++) REQUIRE_OK(kvmem_sdr_add(&s, row[i / 2])); /* every vector twice */
    for (t = 0; t < 10; t++) {
        like_row(q, t * 11);
        REQUIRE_OK(kvmem_sdr_search(&s, q, 20, 300, hit, &n, &scanned));
        CHECK(n == 20 && scanned == 300);
        for (i = 0; i < n; i++) {
            int above = 0;
            for (j = 0; j < 300; j++) {
                const float y = kvmem__dot_plain(q, s.x + j * DIM, DIM);
                above += y > hit[i].score || (!(y < hit[i].score) && j < hit[i].index);
            }
            CHECK(above == i);
        }
    }
    REQUIRE_OK(kvmem_sdr_search(&s, q, 0, 0, hit, &n, NULL));
    CHECK(n == 0);
    CHECK(kvmem_sdr_search(&s, q, -1, 0, hit, &n, NULL) == KVMEM_BAD_ARGUMENT);
    q[0] = NAN;
    CHECK(kvmem_sdr_add(&s, q) == KVMEM_BAD_VALUE && s.n == 300);
    kvmem_sdr_free(&s);
    CHECK(kvmem_sdr_init(&s, 0, 4, 8, 1, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_sdr_init(&s, 4, 4, 2000, 1, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_sdr_add(&s, q) == KVMEM_BAD_STATE);
}
TEST(recall_rises_with_the_number_of_modules_at_a_fixed_share_of_comparisons) {
    static const int modules[4] = { 1, 4, 16, 64 };
    double recall[4], share[4];
    int m, i, j, t;
    clustered();
    for (m = 0; m < 4; m++) {
        kvmem_sdr s;
        kvmem_hit hit[8], exact[8];
        int n, ne, scanned = 0, right = 0, looked = 0;
        REQUIRE_OK(kvmem_sdr_init(&s, DIM, modules[m], 16, 1, NULL));
        for (i = 0; i < ROWS; i++) REQUIRE_OK(kvmem_sdr_add(&s, row[i]));
        for (t = 0; t < 60; t++) {
            float q[DIM];
            like_row(q, t * 17);
            REQUIRE_OK(kvmem_sdr_search(&s, q, 8, 0, hit, &n, &scanned));
            REQUIRE_OK(kvmem_sdr_search(&s, q, 8, ROWS, exact, &ne, NULL));
            for (i = 0; i < ne; i++) for (j = 0; j < n; j++) right += exact[i].index == hit[j].index;
            looked += scanned;
        }
        recall[m] = right / (60.0 * 8);
        share[m] = looked / (60.0 * ROWS);
        if (getenv("KVMEM_SHOW")) printf("Q %d: recall@8 %.3f, compared %.3f\n", modules[m], recall[m], share[m]);
        kvmem_sdr_free(&s);
    }
    CHECK(recall[0] < recall[1] && recall[1] < recall[2] && recall[2] < recall[3]);
    CHECK(recall[2] > 0.85 && share[2] < 0.03);
}
TEST(no_memory_is_an_error_and_leaks_nothing) {
    size_t k;
    int i, n;
    clustered();
    for (k = 1; k < 12; k++) {
        test_heap heap;
        kvmem_allocator a = test_allocator(&heap);
        kvmem_sdr s;
        kvmem_hit hit[4];
        memset(&heap, 0, sizeof heap);
        heap.fail_at = k;
        if (kvmem_sdr_init(&s, DIM, 4, 4, 1, &a) == KVMEM_OK) {
            for (i = 0; i < 70; i++) {
                const int before = s.n;
                if (kvmem_sdr_add(&s, row[i]) != KVMEM_OK) {
                    CHECK(s.n == before && s.error.status == KVMEM_NO_MEMORY);
                    CHECK(kvmem_sdr_add(&s, row[i]) == KVMEM_OK);
                }
            }
            (void)kvmem_sdr_search(&s, row[0], 4, 0, hit, &n, NULL);
        } else CHECK(s.error.status == KVMEM_NO_MEMORY);
        kvmem_sdr_free(&s);
        CHECK(heap.live == 0 && !heap.wrong);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "guard");
    RUN(three_near_equal_rows_outvote_an_orthogonal_one);
    RUN(one_row_is_no_cluster_and_failing_is_closed_or_open);
    RUN(of_two_clusters_of_equal_size_the_one_with_the_lowest_row_wins);
    RUN(equal_rows_are_all_believed_and_zeros_are_not);
    RUN(dbscan_agrees_with_its_definition);
    RUN(copies_of_the_truth_expose_a_false_one_and_a_single_copy_cannot);
    RUN(lessons_warn_of_the_same_memory_at_a_similar_question_until_overwritten);
    RUN(an_identical_vector_shares_all_winners_and_scaling_changes_none);
    RUN(with_all_candidates_the_search_is_exact_with_ties_to_the_lower_index);
    RUN(recall_rises_with_the_number_of_modules_at_a_fixed_share_of_comparisons);
    RUN(no_memory_is_an_error_and_leaks_nothing);
    return test_end();
}
