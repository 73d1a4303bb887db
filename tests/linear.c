/* What codecs share: Hadamard rotations, the sign stream, packed codes. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"

static void normals(float *x, int n) {
    int i;
    for (i = 0; i < n; i++) x[i] = (float)test_normal();
}
static double dot(const float *a, const float *b, int n) {
    double s = 0;
    int i;
    for (i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
    return s;
}

TEST(mix_and_signs_are_those_of_the_card) {
    const float want[8] = { 1, 1, -1, 1, 1, -1, 1, 1 };
    float s[8];
    int i;
    CHECK(kvmem__mix(0) == 0xe220a8397b1dcdafu);
    kvmem__signs(s, 8, 1);
    for (i = 0; i < 8; i++) CHECK(s[i] == want[i] && s[i] == kvmem__sign(1, (uint64_t)i));
}
TEST(rotation_example_of_the_card) {
    const float s[8] = { 1, -1, 1, 1, -1, 1, -1, -1 };
    const float y[8] = { 2.47487f, -1.76777f, .88388f, 1.94454f,
                         2.12132f, -.70711f, -1.23744f, -.88388f };
    const float was[8] = { 1, -2, .5f, 3, -1.5f, .25f, 2, -.75f };
    float x[8];
    int i;
    memcpy(x, was, sizeof x);
    kvmem__rht(x, s, 8, 8);
    for (i = 0; i < 8; i++) CHECK_NEAR(x[i], y[i], 6e-6);
    kvmem__rht_back(x, s, 8, 8);
    for (i = 0; i < 8; i++) CHECK_NEAR(x[i], was[i], 1e-6);
}
TEST(hadamard_is_the_sylvester_matrix) {
    int n, i, j, k;
    for (n = 1; n <= 64; n *= 2) {
        for (j = 0; j < n; j++) {
            float x[64];
            memset(x, 0, sizeof x);
            x[j] = 1;
            kvmem__fwht(x, n);
            for (i = 0; i < n; i++) {
                int odd = 0;
                for (k = i & j; k; k &= k - 1) odd = !odd;
                CHECK_NEAR(x[i], (odd ? -1 : 1) / sqrt((double)n), 1e-7);
            }
        }
    }
}
TEST(rotation_is_its_own_inverse_and_keeps_inner_products) {
    static float x[4096], y[4096], a[4096], b[4096], s[4096];
    const int dims[10] = { 1, 2, 7, 33, 64, 80, 96, 128, 1024, 4096 };
    int k, i;
    for (k = 0; k < 10; k++) {
        const int d = dims[k], block = kvmem__pow2_in(d);
        normals(x, d);
        normals(y, d);
        kvmem__signs(s, d, 3);
        memcpy(a, x, sizeof a);
        memcpy(b, y, sizeof b);
        kvmem__rht(a, s, d, block);
        kvmem__rht(b, s, d, block);
        CHECK_NEAR(dot(a, b, d), dot(x, y, d), 1e-6 * sqrt(dot(x, x, d) * dot(y, y, d)) + 1e-30);
        kvmem__rht_back(a, s, d, block);
        for (i = 0; i < d; i++) CHECK_NEAR(a[i], x[i], 4e-6);
        memcpy(a, x, sizeof a);
        kvmem__rht(a, NULL, d, block);
        kvmem__rht(a, NULL, d, block);
        for (i = 0; i < d; i++) CHECK_NEAR(a[i], x[i], 4e-6);
    }
}
TEST(four_lanes_give_the_bits_of_the_plain_sums) {
    static float a[4096], b[4096];
    int n;
    for (n = 1; n <= 4096; n *= 2) {
        normals(a, n);
        memcpy(b, a, sizeof a);
        kvmem__fwht(a, n);
        kvmem__fwht_plain(b, n);
        CHECK(!memcmp(a, b, (size_t)n * sizeof *a));
    }
}
TEST(block_is_the_largest_power_of_two_in_d) {
    CHECK(kvmem__pow2_in(1) == 1 && kvmem__pow2_in(7) == 1 && kvmem__pow2_in(80) == 16);
    CHECK(kvmem__pow2_in(64) == 64 && kvmem__pow2_in(96) == 32 && kvmem__pow2_in(4096) == 4096);
}
TEST(blocks_do_not_mix) {
    float x[96];
    int i;
    for (i = 0; i < 96; i++) x[i] = i >= 32 && i < 64 ? 1.0f : 0.0f;
    kvmem__rht(x, NULL, 96, 32);
    for (i = 0; i < 96; i++) if (i != 32) CHECK(x[i] == 0);
    CHECK_NEAR(x[32], sqrt(32.0), 1e-5);
}
TEST(codes_are_packed_from_the_lowest_bit_and_nothing_else_is_touched) {
    int bits, n, i;
    for (bits = 1; bits <= 8; bits++) {
        for (n = 0; n <= 150; n += n < 67 ? 1 : 7) {
            const size_t size = kvmem__bits_bytes(n, bits);
            unsigned char code[151], got[151 + 1], *out = (unsigned char *)malloc(size + 1);
            CHECK(size == (size_t)((n * bits + 7) / 8));
            REQUIRE(out);
            for (i = 0; i < n; i++)
                code[i] = (unsigned char)((unsigned)(test_unit() * 256) & ((1u << bits) - 1));
            out[size] = 0xa5;
            kvmem__bits_put(out, code, n, bits);
            CHECK(out[size] == 0xa5);
            for (i = 0; i < (int)size * 8; i++) { /* it is bit i % bits of code i / bits */
                const int want = i / bits < n ? code[i / bits] >> i % bits & 1 : 0;
                if ((out[i / 8] >> i % 8 & 1) != want)
                    FAIL_AT("%d bits, %d codes: bit %d", bits, n, i);
            }
            for (i = 0; i < n; i++) {
                int m, k;
                for (m = 0; m <= n - i; m += m < 20 ? 1 : 9) {
                    memset(got, 0xa5, sizeof got);
                    kvmem__bits_get(got, out, i, m, bits);
                    for (k = 0; k < m && got[k] == code[i + k]; k++) {}
                    if (k < m || got[m] != 0xa5)
                        FAIL_AT("%d bits: codes %d to %d of %d", bits, i, i + m, n);
                }
            }
            free(out);
        }
    }
}
TEST(reading_codes_touches_only_their_bytes) {
    int bits, n;
    for (bits = 1; bits <= 8; bits++) {
        for (n = 1; n <= 100; n++) { /* the sanitizers see one byte too many */
            const size_t size = kvmem__bits_bytes(n, bits);
            unsigned char got[100], *row = (unsigned char *)malloc(size);
            REQUIRE(row);
            memset(row, 255, size);
            kvmem__bits_get(got, row, 0, n, bits);
            CHECK(got[n - 1] == (1 << bits) - 1);
            kvmem__bits_get(got, row, n - 1, 1, bits);
            CHECK(got[0] == (1 << bits) - 1);
            free(row);
        }
    }
}
static double normal_density(double x, double a) {
    (void)a;
    return exp(-x * x / 2);
}
static double ramp_density(double x, double a) { return x * a; }
TEST(lloyd_max_finds_the_known_levels_of_the_normal_distribution) {
    static const double max1960[8] = { 0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326 };
    double level[256];
    int bits, k;
    kvmem__lloyd_max(level, 2, normal_density, 0, -10, 10);
    CHECK_NEAR(level[1], sqrt(2 / 3.14159265358979), 1e-9);
    kvmem__lloyd_max(level, 16, normal_density, 0, -10, 10);
    for (k = 0; k < 8; k++) CHECK_NEAR(level[8 + k], max1960[k], 1e-4);
    for (bits = 1; bits <= 8; bits++) { /* each level the mean of its cell, rising, symmetric */
        const int n = 1 << bits;
        kvmem__lloyd_max(level, n, normal_density, 0, -10, 10);
        for (k = 0; k < n; k++) {
            double mass;
            const double from = k ? (level[k - 1] + level[k]) / 2 : -10,
                         to = k < n - 1 ? (level[k] + level[k + 1]) / 2 : 10;
            CHECK(k == 0 || level[k] > level[k - 1]);
            CHECK_NEAR(level[k], -level[n - 1 - k], 1e-9);
            CHECK_NEAR(level[k], kvmem__cell_mean(normal_density, 0, from, to, 400, &mass), 1e-6);
        }
    }
}
TEST(lloyd_max_of_one_level_is_the_mean_and_of_a_ramp_is_known) {
    double level[4];
    kvmem__lloyd_max(level, 1, ramp_density, 2, 0, 3);
    CHECK_NEAR(level[0], 2, 1e-9);
    kvmem__lloyd_max(level, 2, ramp_density, 1, 0, 1); /* border t: t = (2t/3 + 2(1+t+tt)/(3(1+t))) / 2 */
    CHECK_NEAR((level[0] + level[1]) / 2, 0.618033988749895, 1e-9);
}
TEST(a_border_belongs_to_the_upper_cell) {
    static const float mid[3] = { -1, 0, 2 };
    CHECK(kvmem__cell_of(mid, 4, -5) == 0 && kvmem__cell_of(mid, 4, -1) == 1 && kvmem__cell_of(mid, 4, 0) == 2);
    CHECK(kvmem__cell_of(mid, 4, 1.9f) == 2 && kvmem__cell_of(mid, 4, 2) == 3 && kvmem__cell_of(mid, 1, 9) == 0);
}
TEST(gram_schmidt_makes_columns_orthonormal_and_drops_dependent_ones) {
    enum { N = 40, R = 24 };
    float a[N * R];
    int i, j, t, some;
    for (some = 0; some < 2; some++) {
        for (i = 0; i < N * R; i++) a[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 1)) - 0.5f;
        for (t = 0; t < N && some; t++) {
            a[t * R + 5] = 2 * a[t * R + 1] - a[t * R]; /* depends on two others */
            a[t * R + 9] = 0;
            a[t * R + 7] = a[t * R + 2] + 1e-3f * a[t * R + 7]; /* nearly parallel */
        }
        kvmem__orthonormal(a, N, R, R);
        for (i = 0; i < R; i++) {
            for (j = 0; j <= i; j++) {
                const int gone = some && (i == 5 || i == 9);
                double dot = 0;
                for (t = 0; t < N; t++) dot += (double)a[t * R + i] * (double)a[t * R + j];
                CHECK_NEAR(dot, i == j && !gone, 1e-6);
            }
        }
    }
}
TEST(power_iteration_recovers_a_matrix_of_its_rank) {
    enum { N = 24, D = 16 };
    static const float rank1[6] = { 1, 1, 2, 2, -1, -1 };
    float e[N * D], p[D * D], q[N * D], l, worst = 0;
    int i, j, k, r;
    kvmem__low_rank(q, p, rank1, 3, 2, 1, 1, 0); /* the example of the card of GEAR: one round is enough */
    for (i = 0; i < 6; i++) CHECK_NEAR(q[i / 2] * p[i % 2], rank1[i], 1e-5);
    for (r = 1; r <= D; r += 5) { /* rank r, recovered with r columns or more; D columns: any matrix */
        for (i = 0; i < N * D; i++) e[i] = 0;
        for (k = 0; k < r; k++)
            for (i = 0; i < N; i++)
                for (j = 0; j < D; j++)
                    e[i * D + j] += (float)((kvmem__unit(kvmem__mix((uint64_t)(i * 99 + k))) - 0.5) *
                                            (kvmem__unit(kvmem__mix((uint64_t)(j * 77 + k + 5000))) - 0.5));
        kvmem__low_rank(q, p, e, N, D, KVMEM__MIN(D, r + 2), 3, 7);
        for (i = 0; i < N; i++) {
            for (j = 0; j < D; j++) {
                for (k = 0, l = 0; k < KVMEM__MIN(D, r + 2); k++)
                    l += q[i * KVMEM__MIN(D, r + 2) + k] * p[j * KVMEM__MIN(D, r + 2) + k];
                worst = KVMEM__MAX(worst, fabsf(l - e[i * D + j]));
            }
        }
    }
    CHECK_NEAR(worst, 0, 1e-5);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "linear");
    RUN(mix_and_signs_are_those_of_the_card);
    RUN(rotation_example_of_the_card);
    RUN(hadamard_is_the_sylvester_matrix);
    RUN(rotation_is_its_own_inverse_and_keeps_inner_products);
    RUN(four_lanes_give_the_bits_of_the_plain_sums);
    RUN(block_is_the_largest_power_of_two_in_d);
    RUN(blocks_do_not_mix);
    RUN(codes_are_packed_from_the_lowest_bit_and_nothing_else_is_touched);
    RUN(reading_codes_touches_only_their_bytes);
    RUN(lloyd_max_finds_the_known_levels_of_the_normal_distribution);
    RUN(lloyd_max_of_one_level_is_the_mean_and_of_a_ramp_is_known);
    RUN(a_border_belongs_to_the_upper_cell);
    RUN(gram_schmidt_makes_columns_orthonormal_and_drops_dependent_ones);
    RUN(power_iteration_recovers_a_matrix_of_its_rank);
    return test_end();
}
