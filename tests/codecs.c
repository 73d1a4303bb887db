/* Codecs of K and V rows: the formats, their error figures, dot and axpy against decode, fast twins. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "coded.h"

static const char *const path_names[] = { "plain", "neon", "avx2", "avx512" };
#define N_PATHS 4
#define N_ROWS 5 /* f32 f16 bf16 q8_0 q4_0 */

/* Codec `i` as path `name` runs it; 0 if this machine lacks the path. */
static int codec_on(kvmem_codec *c, int i, const char *name) {
    const kvmem_backend *b = kvmem_backend_cpu(name);
    if (!b) return 0;
    *c = *kvmem__codec_table(i);
    if (c->fast) c->fast(c, b->isa);
    return 1;
}
static const kvmem_codec *plain(const char *word) {
    int i;
    for (i = 0; kvmem__codec_table(i); i++) {
        if (!strcmp(kvmem__codec_table(i)->e.word, word)) return kvmem__codec_table(i);
    }
    return NULL;
}
/* The cards' example row: x_j = (((7 j) mod 32) - 16) / 4. */
static void example(float *x) {
    int j;
    for (j = 0; j < 32; j++) x[j] = (float)((7 * j) % 32 - 16) / 4.0f;
}
static double rel_mse(const float *x, const float *y, size_t n) {
    double e = 0, s = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        e += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        s += (double)x[i] * (double)x[i];
    }
    return e / s;
}

TEST(table_starts_with_f32_and_ends_with_null) {
    REQUIRE(kvmem__codec_table(0) && !strcmp(kvmem__codec_table(0)->e.word, "f32"));
    CHECK(plain("f16") && plain("bf16") && plain("q8_0") && plain("q4_0"));
    CHECK(kvmem__codec_table(-1) == NULL && kvmem__codec_table(999) == NULL);
}
TEST(row_bytes_are_those_of_the_pieces) {
    CHECK(plain("f32")->row_bytes(NULL, 67) == 268 && plain("f16")->row_bytes(NULL, 67) == 134);
    CHECK(plain("bf16")->row_bytes(NULL, 1) == 2);
    CHECK(plain("q8_0")->row_bytes(NULL, 64) == 68 && plain("q8_0")->row_bytes(NULL, 128) == 136);
    CHECK(plain("q8_0")->row_bytes(NULL, 33) == 34 + 3 && plain("q8_0")->row_bytes(NULL, 80) == 86);
    CHECK(plain("q4_0")->row_bytes(NULL, 64) == 36 && plain("q4_0")->row_bytes(NULL, 33) == 18 + 3);
    CHECK(plain("q4_0")->row_bytes(NULL, 80) == 46 && plain("q4_0")->row_bytes(NULL, 7) == 6);
}
TEST(encode_writes_row_bytes_and_no_more) {
    int i, d, j;
    for (i = 0; i < N_ROWS; i++) {
        for (d = 1; d <= 67; d++) {
            const kvmem_codec *c = kvmem__codec_table(i);
            const size_t rb = c->row_bytes(NULL, d);
            unsigned char out[3 * 67 * 4 + 8];
            float x[3 * 67];
            for (j = 0; j < 3 * d; j++) x[j] = (float)test_normal();
            memset(out, 0xa5, sizeof out);
            raw_encode(c, out, x, 3, d);
            CHECK(out[3 * rb] == 0xa5 && out[3 * rb + 1] == 0xa5);
        }
    }
}
TEST(q4_0_example_of_the_card) {
    const int codes[8] = { 0, 4, 7, 11, 14, 2, 5, 9 };
    unsigned char out[18];
    float x[32], y[32];
    int j;
    example(x);
    raw_encode(plain("q4_0"), out, x, 1, 32);
    raw_decode(plain("q4_0"), y, out, 1, 32);
    CHECK(kvmem__le16(out) == 0x3800); /* 0.5 */
    CHECK(out[2] == 0x80 && out[3] == 0xc4 && out[4] == 0xf7 && out[5] == 0x3b);
    for (j = 0; j < 8; j++) CHECK((out[2 + j] & 15) == codes[j]);
    CHECK_NEAR(rel_mse(x, y, 32), .005848, 1e-6);
}
TEST(q8_0_example_of_the_card) {
    const int codes[8] = { -127, -71, -16, 40, 95, -103, -48, 8 };
    unsigned char out[34];
    float x[32], y[32];
    int j;
    example(x);
    raw_encode(plain("q8_0"), out, x, 1, 32);
    raw_decode(plain("q8_0"), y, out, 1, 32);
    CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(out)), .0314941, 1e-7);
    for (j = 0; j < 8; j++) CHECK((int)(signed char)out[2 + j] == codes[j]);
    CHECK_NEAR(rel_mse(x, y, 32), .000016, 1e-6);
}
TEST(q8_0_rounds_half_away_from_zero) {
    float x[32]; /* scale 1 */
    unsigned char out[34];
    memset(x, 0, sizeof x);
    x[0] = 127; x[1] = 0.5f; x[2] = -0.5f; x[3] = 2.5f; x[4] = -2.5f; x[5] = 0.49999997f; x[6] = 1.5f;
    raw_encode(plain("q8_0"), out, x, 1, 32);
    CHECK(out[2] == 127 && out[3] == 1 && out[4] == 255 && out[5] == 3 && out[6] == 253 && out[7] == 0 && out[8] == 2);
}
TEST(q4_0_takes_the_first_of_two_equal_extremes) {
    float x[32], y[32];
    unsigned char out[18];
    memset(x, 0, sizeof x);
    x[3] = 4; x[9] = -4;
    raw_encode(plain("q4_0"), out, x, 1, 32);
    raw_decode(plain("q4_0"), y, out, 1, 32);
    CHECK(y[3] == 4.0f && y[9] == -3.5f); /* the other sign is clipped at 7/8 */
}
TEST(q4_0_short_piece_packs_its_own_halves) {
    float x[5] = { -8, 1, 2, 3, 4 }, y[5];
    unsigned char out[5];
    raw_encode(plain("q4_0"), out, x, 1, 5); /* scale 1: codes 0 9 10 11 12, (5 + 1) / 2 bytes */
    CHECK(out[2] == 0xb0 && out[3] == 0xc9 && out[4] == 0x0a);
    raw_decode(plain("q4_0"), y, out, 1, 5);
    CHECK(!memcmp(x, y, sizeof x));
}
TEST(zero_rows_decode_to_zeros_and_score_zero) {
    int i, d, j;
    for (i = 0; i < N_ROWS; i++) {
        for (d = 1; d <= 66; d += 13) {
            const kvmem_codec *c = kvmem__codec_table(i);
            unsigned char out[66 * 4];
            float x[66], y[66], s, acc[66];
            for (j = 0; j < d; j++) { x[j] = 0; acc[j] = 0; }
            raw_encode(c, out, x, 1, d);
            raw_decode(c, y, out, 1, d);
            for (j = 0; j < d; j++) { CHECK(y[j] == 0); x[j] = 1; }
            raw_dot(c, &s, 1, out, 1, x, 1, d);
            raw_axpy(c, acc, out, 1, x, 1, 1, d);
            CHECK(s == 0);
            for (j = 0; j < d; j++) CHECK(acc[j] == 0);
        }
    }
}
TEST(zero_block_has_codes_8_in_q4_0) {
    float x[32];
    unsigned char out[18];
    int j;
    memset(x, 0, sizeof x);
    raw_encode(plain("q4_0"), out, x, 1, 32);
    for (j = 2; j < 18; j++) CHECK(out[j] == 0x88);
}
TEST(tiny_and_huge_rows_stay_finite) {
    const float size[5] = { 1e-45f, 1e-38f, 1e-9f, 1e6f, 3e38f };
    int i, k, j;
    for (i = 0; i < N_ROWS; i++) {
        for (k = 0; k < 5; k++) {
            const kvmem_codec *c = kvmem__codec_table(i);
            unsigned char out[32 * 4];
            float x[32], y[32];
            for (j = 0; j < 32; j++) x[j] = size[k] * ((float)(j % 5 - 2) / 2);
            raw_encode(c, out, x, 1, 32);
            raw_decode(c, y, out, 1, 32);
            for (j = 0; j < 32; j++)
                if (!(y[j] - y[j] == 0) || y[j] * x[j] < 0)
                    FAIL_AT("%s of %g gives %g", c->e.word, (double)x[j], (double)y[j]);
        }
    }
}
TEST(f32_is_exact_and_the_halves_round_to_nearest) {
    float x[50], y[50];
    unsigned char out[200];
    int j;
    for (j = 0; j < 50; j++) x[j] = (float)test_normal();
    raw_encode(plain("f32"), out, x, 1, 50);
    raw_decode(plain("f32"), y, out, 1, 50);
    CHECK(!memcmp(x, y, sizeof x));
    raw_encode(plain("f16"), out, x, 1, 50);
    raw_decode(plain("f16"), y, out, 1, 50);
    for (j = 0; j < 50; j++) CHECK(y[j] == kvmem__f16_to_f32(kvmem__f32_to_f16(x[j])));
    raw_encode(plain("bf16"), out, x, 1, 50);
    raw_decode(plain("bf16"), y, out, 1, 50);
    for (j = 0; j < 50; j++) CHECK(y[j] == kvmem__bf16_to_f32(kvmem__f32_to_bf16(x[j])));
}

static double gauss(void) { /* Box-Muller: true tails, unlike test_normal */
    const double u = 1 - test_unit(), v = test_unit();
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}
/* Gaussian rows, rows with offset outliers (K-like) and with scale outliers, as the card's table has them. */
static float *rows_of(int what, int d, int n) {
    const int at[2][4] = { { 3, 17, 38, 59 }, { 3, 38, 77, 118 } };
    float *x = (float *)malloc(sizeof(float) * (size_t)n * (size_t)d);
    int t, c, k;
    for (t = 0; t < n && x; t++) {
        for (c = 0; c < d; c++) x[t * d + c] = (float)gauss();
        for (k = 0; k < 4 && what; k++)
            x[t * d + at[d == 128][k]] = what == 1 ? (float)((k % 2 ? -1 : 1) * (10 + 2 * gauss()))
                                                   : (float)(10 * gauss());
    }
    return x;
}
TEST(rel_mse_is_that_of_the_reference_table) {
    const double want8[2][3] = { { 3e-5, 9e-5, 1.1e-4 }, { 3e-5, 1.2e-4, 1.2e-4 } };
    const double want4[2][3] = { { .0073, .0221, .0273 }, { .0074, .0311, .0298 } };
    int k, what;
    for (k = 0; k < 2; k++) {
        for (what = 0; what < 3; what++) {
            const int d = k ? 128 : 64, n = 4096;
            const size_t count = (size_t)n * (size_t)d;
            float *x = rows_of(what, d, n), *y = (float *)malloc(count * sizeof *y);
            void *out = malloc(count * 2);
            double e8, e4;
            REQUIRE(x && y && out);
            raw_encode(plain("q8_0"), out, x, n, d);
            raw_decode(plain("q8_0"), y, out, n, d);
            e8 = rel_mse(x, y, count);
            raw_encode(plain("q4_0"), out, x, n, d);
            raw_decode(plain("q4_0"), y, out, n, d);
            e4 = rel_mse(x, y, count);
            CHECK_NEAR(e8, want8[k][what], what ? .6e-5 + .05 * want8[k][what] : .5e-5); /* printed digits */
            CHECK_NEAR(e4, want4[k][what], (what ? .05 : .02) * want4[k][what]);
            free(x); free(y); free(out);
        }
    }
}

/* dot and axpy of one path against decode in double, for one shape. Rows start at an odd address. */
static void check_shape(const kvmem_codec *c, const char *path, int d, int n, int nq, double tol) {
    const size_t rb = c->row_bytes(NULL, d);
    const int ld = n + 3;
    const size_t qf = (size_t)(c->q_floats ? c->q_floats(NULL, d) : d);
    const size_t nd = (size_t)n * (size_t)d, qd = (size_t)nq * (size_t)d;
    unsigned char *rows = (unsigned char *)malloc(rb * (size_t)n + 1);
    float *x = (float *)malloc((nd + 1) * sizeof *x), *q = (float *)malloc(qd * sizeof *q);
    float *qp = (float *)malloc(qf * (size_t)nq * sizeof *qp), *acc = (float *)malloc(qd * sizeof *acc);
    float *acc0 = (float *)malloc(qd * sizeof *acc0);
    float *s = (float *)malloc((size_t)(nq * ld) * sizeof *s), *w = (float *)malloc((size_t)(nq * ld) * sizeof *w);
    int i, t, j, bad = 0;
    double most_w = 0, most_x = 0, whole; /* whole: what 16-bit weights may cost, for n rows */
    for (i = 0; i < n * d; i++) x[i] = (float)(test_normal() * (i % 7 == 3 ? 5 : 1));
    for (i = 0; i < nq * d; i++) { q[i] = (float)(test_normal() * (i % 11 == 3 ? 9 : 1));
                                    acc[i] = acc0[i] = (float)test_normal(); }
    for (i = 0; i < nq * ld; i++) { w[i] = (float)(i % 6 == 1 ? -test_unit() : test_unit()); s[i] = 77; }
    raw_encode(c, rows + 1, x, n, d);
    raw_decode(c, x, rows + 1, n, d);
    for (i = 0; i < nq; i++) {
        raw_prepare(c, qp + qf * (size_t)i, q + i * d, d);
    }
    raw_dot(c, s, ld, rows + 1, n, qp, nq, d);
    raw_axpy(c, acc, rows + 1, n, w, ld, nq, d);
    for (i = 0; i < n * d; i++) if (fabs((double)x[i]) > most_x) most_x = fabs((double)x[i]);
    for (i = 0; i < nq * ld; i++) if (fabs((double)w[i]) > most_w) most_w = fabs((double)w[i]);
    whole = c->q_prepare ? 1.6e-5 * most_w * most_x * sqrt((double)n) : 0;
    for (i = 0; i < nq; i++) {
        for (t = 0; t < n; t++) {
            double dot = 0, qq = 0, kk = 0;
            for (j = 0; j < d; j++) {
                const double a = (double)q[i * d + j], b = (double)x[t * d + j];
                dot += a * b; qq += a * a; kk += b * b;
            }
            if (!(fabs((double)s[i * ld + t] - dot) <= tol * sqrt(qq * kk) + 1e-30)) bad++;
        }
        for (t = n; t < ld; t++) if (s[i * ld + t] != 77) bad++;
        for (j = 0; j < d; j++) {
            double sum = (double)acc0[i * d + j], size = fabs(sum);
            for (t = 0; t < n; t++) {
                const double a = (double)w[i * ld + t] * (double)x[t * d + j];
                sum += a; size += fabs(a);
            }
            if (!(fabs((double)acc[i * d + j] - sum) <= 1e-5 * size + whole)) bad++;
        }
    }
    if (bad) FAIL_AT("%s on %s: d %d, n %d, nq %d: %d values differ", c->e.word, path, d, n, nq, bad);
    free(rows); free(x); free(q); free(qp); free(acc); free(acc0); free(s); free(w);
}
TEST(dot_and_axpy_equal_decode_at_every_shape_and_path) {
    int p, i, d, n, nq;
    kvmem_codec c;
    for (p = 0; p < N_PATHS; p++) {
        for (i = 0; i < N_ROWS; i++) {
            double tol;
            if (!codec_on(&c, i, path_names[p])) continue;
            tol = 1e-5 + (c.q_prepare ? 2e-5 : 0);
            for (d = 1; d <= 67; d++) check_shape(&c, path_names[p], d, 5 + d % 16, 1 + d % 9, tol);
            for (n = 0; n <= 70; n++) check_shape(&c, path_names[p], n % 2 ? 64 : 48, n, 1 + n % 5, tol);
            for (nq = 1; nq <= 9; nq++) {
                check_shape(&c, path_names[p], 80, 33, nq, tol);
                check_shape(&c, path_names[p], 96, 17, nq, tol);
                check_shape(&c, path_names[p], 128, 64, nq, tol);
                check_shape(&c, path_names[p], 256, 130, nq, tol);
            }
        }
    }
}
TEST(fast_decode_and_encode_equal_plain_bit_for_bit) {
    int p, i, d, j;
    for (p = 1; p < N_PATHS; p++) {
        for (i = 0; i < N_ROWS; i++) {
            kvmem_codec c;
            if (!codec_on(&c, i, path_names[p])) continue;
            for (d = 1; d <= 260; d += d < 67 ? 1 : d < 80 ? 13 : 16) {
                const double size[5] = { 1, 1e-7, 3e4, 1e-41, 1e37 };
                const kvmem_codec *r = kvmem__codec_table(i);
                static float x[3 * 260], a[3 * 260], b[3 * 260];
                static unsigned char u[3 * 260 * 4 + 1], v[3 * 260 * 4 + 1];
                for (j = 0; j < 3 * d; j++) {
                    x[j] = (float)(test_normal() * size[d % 5]);
                    if (d % 3 == 0) x[j] = (float)(int)(4 * x[j]) / 4; /* ties */
                    if (j >= d && j < 2 * d) x[j] = 0;
                }
                memset(u, 1, sizeof u);
                memset(v, 1, sizeof v);
                raw_encode(r, u + 1, x, 3, d);
                raw_encode(&c, v + 1, x, 3, d);
                raw_decode(r, a, u + 1, 3, d);
                raw_decode(&c, b, u + 1, 3, d);
                if (memcmp(u, v, sizeof u)) FAIL_AT("%s encode on %s, d %d", c.e.word, path_names[p], d);
                for (j = 0; j < 3 * d && a[j] == b[j]; j++) {}
                if (j < 3 * d) FAIL_AT("%s decode on %s, d %d", c.e.word, path_names[p], d);
            }
        }
    }
}
TEST(a_score_does_not_depend_on_its_company) {
    int p, i;
    for (p = 0; p < N_PATHS; p++) {
        for (i = 0; i < N_ROWS; i++) {
            enum { D = 96, N = 37, NQ = 7 };
            static float x[N * D], q[NQ * D], qp[NQ * D], s[NQ * N], one, acc[NQ * D], acc1[D];
            static unsigned char rows[N * D * 4];
            kvmem_codec c;
            size_t qf, rb;
            int a, t, j;
            if (!codec_on(&c, i, path_names[p])) continue;
            qf = (size_t)(c.q_floats ? c.q_floats(NULL, D) : D);
            rb = c.row_bytes(NULL, D);
            REQUIRE(qf <= D);
            for (j = 0; j < N * D; j++) x[j] = (float)test_normal();
            for (j = 0; j < NQ * D; j++) { q[j] = (float)test_normal(); acc[j] = 0; }
            for (a = 0; a < NQ; a++) {
                raw_prepare(&c, qp + qf * (size_t)a, q + a * D, D);
            }
            raw_encode(&c, rows, x, N, D);
            raw_dot(&c, s, N, rows, N, qp, NQ, D);
            raw_axpy(&c, acc, rows, N, s, N, NQ, D);
            for (a = 0; a < NQ; a++) {
                for (j = 0; j < D; j++) acc1[j] = 0;
                for (t = 0; t < N; t++) {
                    raw_dot(&c, &one, 1, rows + rb * (size_t)t, 1, qp + qf * (size_t)a, 1, D);
                    CHECK(one == s[a * N + t]);
                }
                raw_axpy(&c, acc1, rows, N, s + a * N, N, 1, D);
                CHECK(!memcmp(acc1, acc + a * D, sizeof acc1));
            }
        }
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codecs");
    RUN(table_starts_with_f32_and_ends_with_null);
    RUN(row_bytes_are_those_of_the_pieces);
    RUN(encode_writes_row_bytes_and_no_more);
    RUN(q4_0_example_of_the_card);
    RUN(q8_0_example_of_the_card);
    RUN(q8_0_rounds_half_away_from_zero);
    RUN(q4_0_takes_the_first_of_two_equal_extremes);
    RUN(q4_0_short_piece_packs_its_own_halves);
    RUN(zero_rows_decode_to_zeros_and_score_zero);
    RUN(zero_block_has_codes_8_in_q4_0);
    RUN(tiny_and_huge_rows_stay_finite);
    RUN(f32_is_exact_and_the_halves_round_to_nearest);
    RUN(rel_mse_is_that_of_the_reference_table);
    RUN(dot_and_axpy_equal_decode_at_every_shape_and_path);
    RUN(fast_decode_and_encode_equal_plain_bit_for_bit);
    RUN(a_score_does_not_depend_on_its_company);
    return test_end();
}
