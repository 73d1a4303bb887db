/* What codecs learn with: k-means on a line and in d dimensions, eigenvectors, Cholesky. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"

static void normals(float *x, int n) {
    int i;
    for (i = 0; i < n; i++) x[i] = (float)test_normal();
}
static double level_error(const float *level, int k, const float *x, const float *w, int n) {
    double e = 0;
    int i;
    for (i = 0; i < n; i++) {
        const double v = (double)x[i] - (double)level[kvmem__nearest_level(level, k, x[i])];
        e += (w ? (double)w[i] : 1.0) * v * v;
    }
    return e;
}

/* Squared distance of x to the row of c (k, d) nearest to it, its index in *at. */
static double nearest(const float *c, int k, const float *x, int d, int *at) {
    double least = 1e300;
    int j;
    for (j = 0; j < k; j++) {
        const double e = (double)kvmem__distance2(c + j * d, x, d);
        if (e < least && at) *at = j;
        least = fmin(least, e);
    }
    return least;
}

TEST(sorting_floats_carries_the_weights) {
    float x[100], w[100], y[100];
    int n, i;
    for (n = 0; n <= 100; n += 7) {
        for (i = 0; i < n; i++) { x[i] = (float)(test_unit() * 10 < 5 ? i % 3 : i); w[i] = 2 * x[i] + 1; }
        memcpy(y, x, sizeof x);
        kvmem__sort_floats(x, w, n);
        kvmem__sort_floats(y, NULL, n);
        for (i = 0; i < n; i++) CHECK(w[i] == 2 * x[i] + 1 && x[i] == y[i] && (!i || x[i - 1] <= x[i]));
    }
}
TEST(percentile_is_linear_between_neighbours) {
    const float x[5] = { 1, 2, 4, 8, 16 };
    CHECK(kvmem__percentile(x, 5, 0) == 1 && kvmem__percentile(x, 5, 1) == 16);
    CHECK(kvmem__percentile(x, 5, .5) == 4);
    CHECK_NEAR(kvmem__percentile(x, 5, .375), 3, 1e-6);
    CHECK_NEAR(kvmem__percentile(x, 5, .995), 15.84, 1e-5);
    CHECK(kvmem__percentile(x, 1, .3) == 1);
}
TEST(nearest_level_takes_the_upper_one_on_a_tie) {
    const float level[4] = { -1, -.35f, .25f, .9f };
    CHECK(kvmem__nearest_level(level, 4, .15f) == 2 && kvmem__nearest_level(level, 4, -9) == 0);
    CHECK(kvmem__nearest_level(level, 4, .75f) == 3 && kvmem__nearest_level(level, 4, 9) == 3);
    CHECK(kvmem__nearest_level(level, 2, -.675f) == 1);
    CHECK(kvmem__nearest_level(level, 1, 5) == 0);
}
TEST(levels_of_a_normal_are_those_of_lloyd_and_max) {
    enum { N = 20001 };
    static float x[N];
    float level[4];
    int i; /* the quantiles of the normal, by bisection of its distribution function */
    for (i = 0; i < N; i++) {
        double lo = -6, hi = 6;
        while (hi - lo > 1e-9) {
            const double m = (lo + hi) / 2;
            if (0.5 * erfc(-m / sqrt(2.0)) < (i + .5) / N) lo = m;
            else hi = m;
        }
        x[i] = (float)lo;
    }
    kvmem__kmeans1(level, 4, x, NULL, N, 500);
    CHECK_NEAR(level[0], -1.5104, 2e-3);
    CHECK_NEAR(level[1], -.4528, 2e-3);
    CHECK_NEAR(level[2], .4528, 2e-3);
    CHECK_NEAR(level[3], 1.5104, 2e-3);
    CHECK_NEAR(level_error(level, 4, x, NULL, N) / N, .11748, 3e-4);
}
TEST(kmeans_on_a_line_finds_separate_groups) {
    float x[9] = { 9, 1, 5, 1.5f, 9.5f, .5f, 5.5f, 8.5f, 4.5f }, level[3];
    kvmem__kmeans1(level, 3, x, NULL, 9, 50);
    CHECK(level[0] == 1 && level[1] == 5 && level[2] == 9);
}
TEST(weights_count_as_repeats) {
    float x[6] = { 3, 0, 1, 7, 2, 9 }, w[6] = { 2, 1, 3, 1, 1, 2 }, y[10], a[3], b[3];
    int i, j, n = 0;
    for (i = 0; i < 6; i++) for (j = 0; j < (int)w[i]; j++) y[n++] = x[i];
    kvmem__kmeans1(a, 3, x, w, 6, 50);
    kvmem__kmeans1(b, 3, y, NULL, n, 50);
    for (i = 0; i < 3; i++) CHECK_NEAR(a[i], b[i], 1e-6);
}
TEST(every_distinct_value_gets_a_level_if_there_are_enough) {
    float x[103], level[8];
    int i, k;
    for (k = 4; k <= 8; k++) {
        memset(x, 0, sizeof x); /* a hundred zeros hold all quantiles */
        x[100] = 1; x[101] = 2; x[102] = 3;
        kvmem__kmeans1(level, k, x, NULL, 103, 50);
        CHECK(level_error(level, k, x, NULL, 103) < 1e-12);
        for (i = 1; i < k; i++) CHECK(level[i - 1] <= level[i]);
    }
}
TEST(levels_of_hard_inputs_are_finite_and_rise) {
    float x[8] = { -3e38f, 3e38f, 0, 1e-45f, -1e-45f, 1, 1, 1 }, w[8] = { 0, 0, 0, 0, 0, 0, 0, 0 }, level[16];
    int i;
    kvmem__kmeans1(level, 4, x, NULL, 8, 50);
    for (i = 0; i < 4; i++) CHECK(fabsf(level[i]) <= FLT_MAX && (!i || level[i - 1] <= level[i]));
    kvmem__kmeans1(level, 4, x, w, 8, 50); /* no weight at all */
    for (i = 0; i < 4; i++) CHECK(fabsf(level[i]) <= FLT_MAX);
    kvmem__kmeans1(level, 16, x, NULL, 1, 50); /* one value */
    for (i = 0; i < 16; i++) CHECK(level[i] == x[0]);
    kvmem__kmeans1(level, 2, x, NULL, 0, 50);
    CHECK(level[0] == 0 && level[1] == 0);
}
TEST(kmeans_finds_separate_groups_and_repeats_itself) {
    enum { N = 300, D = 5, K = 6 };
    static float x[N * D], a[K * D], b[K * D], scratch[2 * N + 2 * K + K * D];
    double e = 0;
    int i, j;
    for (i = 0; i < N; i++)
        for (j = 0; j < D; j++) x[i * D + j] = (float)(20 * ((i % K) == j) + 0.1 * test_normal());
    kvmem__kmeans(a, K, x, N, D, 50, 3, scratch);
    kvmem__kmeans(b, K, x, N, D, 50, 3, scratch);
    CHECK(!memcmp(a, b, sizeof a) && kvmem__kmeans_floats(K, N, D) == 2 * N + 2 * K + K * D);
    for (i = 0; i < N; i++) e += nearest(a, K, x + i * D, D, NULL);
    CHECK(e / (N * D) < .0125);
}
TEST(kmeans_with_as_many_centres_as_rows_is_exact) {
    float x[12], c[20], scratch[64];
    int i, k, at;
    normals(x, 12);
    for (k = 4; k <= 5; k++) {
        kvmem__kmeans(c, k, x, 4, 3, 50, 1, scratch);
        for (i = 0; i < 4; i++) { CHECK(nearest(c, k, x + 3 * i, 3, &at) == 0); CHECK(at == i); }
    }
    memcpy(x + 3, x, 12); memcpy(x + 6, x, 12); memcpy(x + 9, x, 12); /* all rows the same, fewer centres */
    kvmem__kmeans(c, 3, x, 4, 3, 50, 1, scratch);
    CHECK(nearest(c, 3, x, 3, &at) == 0 && at == 0);
    for (i = 0; i < 9; i++) CHECK(c[i] == c[i]);
}
TEST(nearest_column_is_the_nearest_row) {
    enum { D = 5, K = 37 };
    float c[K * D], ct[K * D], bias[K], x[D];
    int t, j, at = 0;
    normals(c, K * D);
    kvmem__columns(ct, c, K, D);
    for (j = 0; j < K; j++) bias[j] = kvmem__dot_plain(c + j * D, c + j * D, D);
    for (t = 0; t < 200; t++) {
        normals(x, D);
        nearest(c, K, x, D, &at);
        CHECK(kvmem__nearest_column(ct, bias, K, x, D) == at);
    }
}
TEST(a_round_of_kmeans_never_raises_the_error) {
    enum { N = 200, D = 7, K = 9 };
    static float x[N * D], c[K * D], scratch[2 * N + 2 * K + K * D];
    double last = 1e30;
    int r, i;
    normals(x, N * D);
    for (r = 1; r <= 8; r++) {
        double e = 0;
        kvmem__kmeans(c, K, x, N, D, r, 5, scratch);
        for (i = 0; i < N; i++) e += nearest(c, K, x + i * D, D, NULL);
        CHECK(e <= last * 1.000001);
        last = e;
    }
}
TEST(eigenvectors_of_a_known_matrix) {
    float a[4] = { 2, 1, 1, 2 }, vec[4], val[2];
    kvmem__eigen(vec, val, a, 2);
    CHECK_NEAR(val[0], 3, 1e-6);
    CHECK_NEAR(val[1], 1, 1e-6);
    CHECK_NEAR(vec[0], sqrt(.5), 1e-6);
    CHECK_NEAR(vec[1], sqrt(.5), 1e-6);
    CHECK_NEAR(vec[2] * vec[3], -.5, 1e-6);
}
TEST(eigenvectors_rebuild_the_matrix_and_are_orthonormal) {
    static float m[96 * 96], a[96 * 96], was[96 * 96], vec[96 * 96], val[96];
    const int dims[6] = { 1, 2, 7, 33, 64, 96 };
    int s, i, j, k;
    for (s = 0; s < 6; s++) {
        const int d = dims[s];
        double worst = 0, off = 0;
        normals(m, d * d);
        for (i = 0; i < d; i++) {
            for (j = 0; j < d; j++) {
                double v = 0;
                for (k = 0; k < d / 2 + 1; k++) v += (double)m[i * d + k] * (double)m[j * d + k]; /* half of the rank */
                a[i * d + j] = was[i * d + j] = (float)v;
            }
        }
        kvmem__eigen(vec, val, a, d);
        for (i = 0; i < d; i++) {
            for (j = 0; j < d; j++) {
                double v = 0, o = 0;
                for (k = 0; k < d; k++) {
                    v += (double)val[k] * (double)vec[k * d + i] * (double)vec[k * d + j];
                    o += (double)vec[i * d + k] * (double)vec[j * d + k];
                }
                worst = fmax(worst, fabs(v - (double)was[i * d + j]));
                off = fmax(off, fabs(o - (i == j)));
            }
            CHECK(i == 0 || val[i - 1] >= val[i]);
        }
        CHECK(worst < 2e-5 * (double)val[0]);
        CHECK(off < 1e-5);
    }
}
TEST(eigenvectors_of_zero_and_of_the_identity_are_the_axes) {
    float a[9] = { 0, 0, 0, 0, 0, 0, 0, 0, 0 }, vec[9], val[3];
    int i, t;
    for (t = 0; t < 2; t++) {
        a[0] = a[4] = a[8] = (float)t;
        kvmem__eigen(vec, val, a, 3);
        for (i = 0; i < 9; i++) CHECK(vec[i] == (i % 4 == 0));
        CHECK(val[0] == (float)t && val[2] == (float)t);
    }
}
TEST(cholesky_examples_of_the_card) {
    const float h[4] = { 4, 2, 2, 3 }, diag[4] = { 4, 0, 0, 1 };
    float l[4];
    CHECK(kvmem__cholesky(l, h, 2, 0) == 0);
    CHECK(l[0] == 2 && l[1] == 0 && l[2] == 1);
    CHECK_NEAR(l[3], 1.41421, 1e-5);
    kvmem__cholesky(l, diag, 2, 0);
    CHECK(l[0] == 2 && l[1] == 0 && l[2] == 0 && l[3] == 1);
}
TEST(cholesky_of_a_singular_matrix_takes_a_jitter) {
    float h[16], l[16];
    double jitter;
    int i, j;
    for (i = 0; i < 16; i++) h[i] = 1; /* rank 1 */
    jitter = kvmem__cholesky(l, h, 4, 1e-6);
    CHECK(jitter >= 1e-6 && jitter < 1e-3);
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++) CHECK(l[4 * i + j] == l[4 * i + j] && (j <= i || l[4 * i + j] == 0));
    memset(h, 0, sizeof h);
    CHECK(kvmem__cholesky(l, h, 4, 0) > 0 && l[0] > 0 && l[15] > 0);
}
TEST(weighted_distance_is_a_plain_one_behind_the_factor) {
    enum { D = 6 };
    float g[D * D], h[D * D], l[D * D], x[D], y[D], z[D];
    double want = 0, got = 0;
    int i, j, k;
    normals(g, D * D);
    normals(x, D);
    for (i = 0; i < D; i++) for (j = 0; j < D; j++)
        for (h[i * D + j] = 0, k = 0; k < D; k++) h[i * D + j] += g[i * D + k] * g[j * D + k];
    kvmem__cholesky(l, h, D, 0);
    for (i = 0; i < D; i++) for (j = 0; j < D; j++) want += (double)x[i] * (double)h[i * D + j] * (double)x[j];
    kvmem__lower_mul(y, x, l, D);
    for (i = 0; i < D; i++) got += (double)y[i] * (double)y[i];
    CHECK_NEAR(got / want, 1, 1e-5);
    kvmem__lower_solve(z, y, l, D); /* and back */
    for (i = 0; i < D; i++) CHECK_NEAR(z[i], x[i], 1e-3);
    kvmem__lower_mul(y, y, l, D);   /* in place, too: y = x l l, then two solves */
    kvmem__lower_solve(y, y, l, D);
    kvmem__lower_solve(y, y, l, D);
    for (i = 0; i < D; i++) CHECK_NEAR(y[i], x[i], 2e-2);
    kvmem__lower_solve_t(z, x, l, D); /* <z, x l> = <x, x>: z l^T = x */
    kvmem__lower_mul(y, x, l, D);
    for (want = got = 0, i = 0; i < D; i++) {
        want += (double)x[i] * (double)x[i];
        got += (double)z[i] * (double)y[i];
    }
    CHECK_NEAR(got / want, 1, 1e-3);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "calibrate");
    RUN(sorting_floats_carries_the_weights);
    RUN(percentile_is_linear_between_neighbours);
    RUN(nearest_level_takes_the_upper_one_on_a_tie);
    RUN(levels_of_a_normal_are_those_of_lloyd_and_max);
    RUN(kmeans_on_a_line_finds_separate_groups);
    RUN(weights_count_as_repeats);
    RUN(every_distinct_value_gets_a_level_if_there_are_enough);
    RUN(levels_of_hard_inputs_are_finite_and_rise);
    RUN(kmeans_finds_separate_groups_and_repeats_itself);
    RUN(kmeans_with_as_many_centres_as_rows_is_exact);
    RUN(nearest_column_is_the_nearest_row);
    RUN(a_round_of_kmeans_never_raises_the_error);
    RUN(eigenvectors_of_a_known_matrix);
    RUN(eigenvectors_rebuild_the_matrix_and_are_orthonormal);
    RUN(eigenvectors_of_zero_and_of_the_identity_are_the_axes);
    RUN(cholesky_examples_of_the_card);
    RUN(cholesky_of_a_singular_matrix_takes_a_jitter);
    RUN(weighted_distance_is_a_plain_one_behind_the_factor);
    return test_end();
}
