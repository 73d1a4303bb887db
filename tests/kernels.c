/* Every fast op against its plain twin, matrix products of every type against decoded weights. */
#include "test.h"

static const kvmem_type all_types[14] = { KVMEM_F32, KVMEM_F16, KVMEM_BF16, KVMEM_Q8_0, KVMEM_Q4_0,
    KVMEM_Q4_1, KVMEM_Q5_0, KVMEM_Q5_1, KVMEM_Q2_K, KVMEM_Q3_K, KVMEM_Q4_K, KVMEM_Q5_K, KVMEM_Q6_K,
    KVMEM_Q8_SPLIT };
static const char *fast_names[3] = { "neon", "avx2", "avx512" };

static void fill(float *x, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) x[i] = (float)test_normal();
}
static int near(float a, float b, float tol) { return fabsf(a - b) <= tol * (1 + fabsf(b)); }

TEST(plain_is_always_there_and_unknown_paths_are_not) {
    const kvmem_backend *best = kvmem_backend_cpu(NULL);
    REQUIRE(best != NULL);
    CHECK(kvmem_backend_cpu(best->name) == best);
    CHECK(!strcmp(kvmem_backend_name(NULL), best->name));
    CHECK(!strcmp(kvmem_backend_name(kvmem_backend_cpu("plain")), "plain"));
    CHECK(kvmem_backend_cpu("") == NULL && kvmem_backend_cpu("cuda") == NULL);
    printf("  best path here: %s\n", best->name);
}
TEST(vector_ops_equal_their_twins_at_any_length_and_start) {
    const kvmem_backend *p = kvmem_backend_cpu("plain");
    float a[80], b[80], y[80], z[80];
    int f, n, at, i;
    for (f = 0; f < 3; f++) {
        const kvmem_backend *q = kvmem_backend_cpu(fast_names[f]);
        if (!q) continue;
        for (n = 0; n <= 67; n++) {
            at = n % 5;
            fill(a, 80); fill(b, 80);
            CHECK(near(q->dot(a + at, b + 1, n), p->dot(a + at, b + 1, n), 1e-4f));
            CHECK(q->max(a + at, n) == p->max(a + at, n));
            memcpy(y, b, sizeof y); memcpy(z, b, sizeof z);
            q->axpy(y + at, 0.3f, a + 2, n); p->axpy(z + at, 0.3f, a + 2, n);
            for (i = 0; i < 80; i++) CHECK(near(y[i], z[i], 1e-6f));
            q->scale(y + at, -1.7f, n); p->scale(z + at, -1.7f, n);
            for (i = 0; i < 80; i++) CHECK(near(y[i], z[i], 1e-5f));
            CHECK(near(q->exp_sum(y + at, a + 3, 2.0f, n), p->exp_sum(z + at, a + 3, 2.0f, n), 1e-5f));
            for (i = 0; i < 80; i++) CHECK(near(y[i], z[i], 1e-5f));
        }
    }
}
TEST(exp_sum_knows_infinities_and_nan) {
    static const char *names[4] = { "plain", "neon", "avx2", "avx512" };
    int f, i;
    for (f = 0; f < 4; f++) {
        const kvmem_backend *q = kvmem_backend_cpu(names[f]);
        float s[24], p[24];
        if (!q) continue;
        for (i = 0; i < 24; i++) s[i] = -INFINITY;
        s[3] = 0; s[17] = -100; s[20] = -87;
        CHECK(q->exp_sum(p, s, 0, 24) == p[3] + p[20] && p[3] == 1 && p[17] == 0 && p[0] == 0);
        CHECK(fabsf(p[20] / 1.6458115e-38f - 1) < 1e-4f);
        s[5] = NAN;
        q->exp_sum(p, s, 0, 24);
        CHECK(p[5] != p[5] && p[4] == 0);
        for (i = 0; i < 24; i++) s[i] = 88.5f;
        q->exp_sum(p, s, 0, 24);
        CHECK(fabsf(p[7] / expf(88.5f) - 1) < 1e-4f && p[23] == p[7]);
        for (i = 0; i < 24; i++) s[i] = 90;
        q->exp_sum(p, s, 0, 24);
        CHECK(p[7] == INFINITY && p[23] == INFINITY);
    }
}
TEST(softcap_is_cap_tanh) {
    static const char *names[4] = { "plain", "neon", "avx2", "avx512" };
    float x[67], y[67];
    int f, i, n;
    for (f = 0; f < 4; f++) {
        const kvmem_backend *q = kvmem_backend_cpu(names[f]);
        if (!q) continue;
        for (n = 0; n <= 67; n++) {
            for (i = 0; i < 67; i++) y[i] = x[i] = (float)(test_normal() * (i % 7 == 0 ? 300 : i % 3 == 0 ? 1 : 30));
            q->softcap(y, 30, (size_t)n);
            for (i = 0; i < n; i++) CHECK_NEAR(y[i], 30 * tanh((double)x[i] / 30), 2e-5);
            for (; i < 67; i++) CHECK(y[i] == x[i]);
        }
    }
}
TEST(rope_turns_pairs_in_both_layouts_and_leaves_the_rest) {
    const kvmem_backend *b = kvmem_backend_cpu(NULL);
    float inv[3], x[2 * 2 * 8], y[2 * 2 * 8];
    const int32_t pos[2] = { 3, 100000 };
    kvmem_rope r;
    int neox, i, h, j, at;
    inv[0] = 1; inv[1] = 0.1f; inv[2] = 0.01f;
    r.n_rot = 6; r.mscale = 2; r.inv_freq = inv;
    fill(x, 32);
    for (neox = 0; neox < 2; neox++) {
        r.neox = neox;
        for (at = 0; at < 2; at++) { /* at: with mscale */
            b->rope(y, x, 2, 2, 8, &r, pos, at, 1);
            for (i = 0; i < 2; i++) for (h = 0; h < 2; h++) {
                const float *u = x + (i * 2 + h) * 8, *v = y + (i * 2 + h) * 8;
                for (j = 0; j < 3; j++) {
                    const int p = neox ? j : 2 * j, q = neox ? j + 3 : 2 * j + 1;
                    const double a = (double)pos[i] * (double)inv[j], m = at ? 2 : 1;
                    CHECK_NEAR(v[p], m * ((double)u[p] * cos(a) - (double)u[q] * sin(a)), 2e-6);
                    CHECK_NEAR(v[q], m * ((double)u[p] * sin(a) + (double)u[q] * cos(a)), 2e-6);
                }
                CHECK(v[6] == u[6] && v[7] == u[7]);
            }
        }
    }
    memcpy(y, x, sizeof y);
    b->rope(y, y, 2, 2, 8, &r, pos, 0, 1);
    b->rope(x, x, 2, 2, 8, &r, pos, 0, 2);
    CHECK(!memcmp(x, y, sizeof x));
}
TEST(rope_handles_more_pairs_than_its_table) {
    const kvmem_backend *b = kvmem_backend_cpu(NULL);
    static float inv[100], x[220], y[220];
    const int32_t pos = 7;
    kvmem_rope r;
    int i;
    for (i = 0; i < 100; i++) inv[i] = 1.0f / (float)(i + 1);
    r.n_rot = 200; r.neox = 1; r.mscale = 1; r.inv_freq = inv;
    fill(x, 220);
    b->rope(y, x, 1, 1, 220, &r, &pos, 1, 1);
    for (i = 0; i < 100; i++)
        CHECK_NEAR(y[i],
                   (double)x[i] * cos(7.0 * (double)inv[i]) -
                       (double)x[i + 100] * sin(7.0 * (double)inv[i]),
                   2e-6);
    for (i = 200; i < 220; i++) CHECK(y[i] == x[i]);
}

#ifndef KVMEM_NO_DECODER
TEST(norm_glu_and_add_equal_their_twins) {
    const kvmem_backend *p = kvmem_backend_cpu("plain");
    float a[3 * 67], b[3 * 67], w[67], y[3 * 67], z[3 * 67];
    int f, n, i, act;
    for (f = 0; f < 3; f++) {
        const kvmem_backend *q = kvmem_backend_cpu(fast_names[f]);
        if (!q) continue;
        for (n = 1; n <= 67; n++) {
            fill(a, 201); fill(b, 201); fill(w, 67);
            q->rmsnorm(y, a, n % 2 ? w : NULL, 3, n, 1e-5f, 2);
            p->rmsnorm(z, a, n % 2 ? w : NULL, 3, n, 1e-5f, 1);
            for (i = 0; i < 3 * n; i++) CHECK(near(y[i], z[i], 1e-5f));
            for (act = 0; act < 2; act++) {
                a[n / 2] = -200; a[n / 3] = 200;
                q->glu(y, a, b, (size_t)n, (kvmem_act)act, 1);
                p->glu(z, a, b, (size_t)n, (kvmem_act)act, 1);
                for (i = 0; i < n; i++) CHECK(near(y[i], z[i], 1e-5f));
            }
            q->add(y, b, (size_t)n); p->add(z, b, (size_t)n);
            for (i = 0; i < n; i++) CHECK(near(y[i], z[i], 1e-5f));
        }
    }
}
TEST(glu_is_silu_or_tanh_gelu_times_up) {
    const kvmem_backend *p = kvmem_backend_cpu("plain");
    float g[9] = { -30, -3, -1, -1e-3f, 0, 1e-3f, 1, 3, 30 }, up[9], y[9];
    int i;
    for (i = 0; i < 9; i++) up[i] = 2;
    p->glu(y, g, up, 9, KVMEM_SILU, 1);
    for (i = 0; i < 9; i++)
        CHECK_NEAR(y[i], 2 * (double)g[i] / (1 + exp(-(double)g[i])),
                   1e-6 * (1 + fabs((double)g[i])));
    p->glu(y, g, up, 9, KVMEM_GELU_TANH, 1);
    for (i = 0; i < 9; i++) {
        const double x = (double)g[i];
        CHECK_NEAR(y[i], x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x))), 1e-6 * (1 + fabs(x)));
    }
}
TEST(activation_blocks_are_the_same_bits_on_every_path) {
#if KVMEM__X86 || KVMEM__NEON
    float x[33]; int8_t a[33], b[33]; int32_t sa[2], sb[2];
    int t, i;
#if KVMEM__NEON
#define FAST_QUANTIZE kvmem__quantize32_neon
#else
#define FAST_QUANTIZE kvmem__quantize32_avx2
    if (!kvmem_backend_cpu("avx2")) SKIP("no AVX2 here");
#endif
    for (t = 0; t < 2000; t++) {
        float da, db;
        fill(x, 33);
        for (i = 0; i < 33; i++) x[i] *= ldexpf(1, t % 250 - 125);
        if (t % 9 == 0) x[1 + t % 32] = t % 2 ? INFINITY : NAN;
        if (t % 7 == 0) for (i = 0; i < 33; i++) x[i] = (float)((int)(test_unit() * 9) - 4) * 0.5f; /* ties */
        da = kvmem__quantize32_plain(a + 1, x + 1, sa);
        db = FAST_QUANTIZE(b + 1, x + 1, sb);
        CHECK(!memcmp(&da, &db, 4) && !memcmp(a + 1, b + 1, 32) && sa[0] == sb[0] && sa[1] == sb[1]);
        for (i = 1; i < 33; i++) if (da > 0 && da < 1e30f) CHECK(fabsf(x[i] - da * (float)a[i]) <= da * 0.5001f);
    }
#else
    SKIP("no fast path in this build");
#endif
}

/* A random matrix of a type: quantized where the library can, else random blocks with sane scales. */
typedef struct matrix { kvmem_tensor w; unsigned char *data, *scales; float *f; } matrix;
static void put_half(unsigned char *p, double v) { kvmem__put16(p, kvmem__f32_to_f16((float)v)); }
static int make(matrix *m, kvmem_type type, int cols, int rows, int group) {
    size_t bytes, n = (size_t)cols * (size_t)rows, i, j;
    const int block = type == KVMEM_Q8_SPLIT ? (bytes = 1, 1) : kvmem_type_block(type, &bytes);
    memset(m, 0, sizeof *m);
    m->w.type = type; m->w.n_dims = 2; m->w.ne[0] = cols; m->w.ne[1] = rows; m->w.ne[2] = m->w.ne[3] = 1;
    m->w.size = n / (size_t)block * bytes;
    m->data = (unsigned char *)malloc(m->w.size + 1);
    m->f = (float *)malloc(n * sizeof(float));
    m->w.data = m->data + 1; /* unaligned */
    fill(m->f, n);
    if (type == KVMEM_Q8_SPLIT) {
        m->w.group = group;
        m->scales = (unsigned char *)malloc(n / (size_t)group * 4 + 1);
        m->w.scales = m->scales + 1;
        for (i = 0; i < n; i++) m->data[1 + i] = (unsigned char)(test_unit() * 256);
        for (i = 0; i < n / (size_t)group; i++)
            kvmem__putf32(m->scales + 1 + 4 * i, (float)(0.01 + 0.02 * test_unit()));
    } else if (kvmem_quantize(type, m->data + 1, m->f, n) != KVMEM_OK) {
        for (i = 0; i < m->w.size; i++) m->data[1 + i] = (unsigned char)(test_unit() * 256);
        for (i = 0; i < n / 256; i++) {
            unsigned char *p = m->data + 1 + i * bytes;
            const double d = 0.01 * (test_unit() + 0.2);
            if (type == KVMEM_Q4_K || type == KVMEM_Q5_K) { put_half(p, d); put_half(p + 2, d); }
            else put_half(p + bytes - 2, d);
            if (type == KVMEM_Q2_K) put_half(p + 80, 3 * d);
        }
    }
    for (j = 0; j < (size_t)rows; j++) kvmem__tensor_row(m->f + j * (size_t)cols, &m->w, (int64_t)j);
    return 1;
}
static void drop(matrix *m) { free(m->data); free(m->scales); free(m->f); }
static void product(const kvmem_backend *b, float *out, const matrix *m, const float *x, int n, int threads) {
    const size_t size = b->matmul_scratch(b, &m->w, n, threads);
    unsigned char *scratch = (unsigned char *)malloc(size + 1);
    b->matmul(b, out, &m->w, x, n, scratch + 1, threads);
    free(scratch);
}
/* Largest error relative to |x| |w| of a row pair. */
static double worst_error(const float *out, const matrix *m, const float *x, int n) {
    const int cols = (int)m->w.ne[0], rows = (int)m->w.ne[1];
    double worst = 0;
    int i, r, k;
    for (i = 0; i < n; i++) for (r = 0; r < rows; r++) {
        double s = 0, a = 1e-30, b = 1e-30, e;
        for (k = 0; k < cols; k++) {
            const double u = (double)x[i * cols + k], v = (double)m->f[r * cols + k];
            s += u * v; a += u * u; b += v * v;
        }
        e = fabs((double)out[i * rows + r] - s) / sqrt(a * b);
        if (!(e <= worst)) worst = e;
    }
    return worst;
}
static void check_product(kvmem_type type, int cols, int rows, int n, int group) {
    static const char *names[4] = { "plain", "neon", "avx2", "avx512" };
    const int quantized = type != KVMEM_F32 && type != KVMEM_F16 && type != KVMEM_BF16;
    const size_t count = (size_t)n * (size_t)rows;
    float *x = (float *)malloc(sizeof(float) * (size_t)(n * cols)), *out = (float *)malloc(sizeof(float) * (count + 1));
    float *plain = (float *)malloc(sizeof(float) * count), *two = (float *)malloc(sizeof(float) * count);
    matrix m;
    size_t i;
    int f;
    fill(x, (size_t)(n * cols));
    if (n > 1) for (i = 0; i < (size_t)cols; i++) x[(size_t)cols + i] = 0; /* a row of zeros */
    make(&m, type, cols, rows, group);
    for (f = 0; f < 4; f++) {
        const kvmem_backend *b = kvmem_backend_cpu(names[f]);
        double worst;
        if (!b) continue;
        out[count] = 42;
        product(b, out, &m, x, n, 1);
        worst = worst_error(out, &m, x, n);
        if (!(worst < (quantized ? 0.02 : 1e-6)))
            FAIL_AT("%s %s: %d x %d, n %d, group %d: error %g", b->name, kvmem_type_name(type),
                    rows, cols, n, group, worst);
        if (f == 0) memcpy(plain, out, sizeof(float) * count);
        for (i = 0; i < count; i++)
            if (!(fabsf(out[i] - plain[i]) <= 2e-5f * sqrtf((float)cols) * (1 + fabsf(plain[i])))) {
                FAIL_AT("%s %s: %d x %d, n %d, group %d: [%d] %g, twin %g", b->name, kvmem_type_name(type), rows, cols,
                        n, group, (int)i, (double)out[i], (double)plain[i]);
                break;
            }
        CHECK(out[count] == 42);
        product(b, two, &m, x, n, 2);
        CHECK(!memcmp(two, out, sizeof(float) * count));
        if (n > 1) for (i = 0; i < (size_t)rows; i++) CHECK(out[(size_t)rows + i] == 0);
    }
    drop(&m);
    free(x); free(out); free(plain); free(two);
}
TEST(matmul_of_every_type_equals_decoded_weights_and_its_twin) {
    static const int rows[6] = { 1, 2, 15, 16, 17, 37 };
    int t, n, k;
    for (t = 0; t < 14; t++)
        for (n = 1; n <= 9; n++) {
            const int wide = all_types[t] == KVMEM_Q8_SPLIT ? 1 : kvmem_type_block(all_types[t], NULL);
            for (k = 1; k <= 3; k++)
                check_product(all_types[t], wide == 1 ? 32 * k + 64 : wide * k, rows[(n + k + t) % 6], n, 32);
        }
}
TEST(matmul_of_long_rows_crosses_panels) {
    int t;
    for (t = 0; t < 14; t++) {
        check_product(all_types[t], 1024 + 256, 18, 13, 64);
        check_product(all_types[t], 2304, 3, 1, 256);
    }
    check_product(KVMEM_Q8_0, 1024 + 32, 33, 17, 0);
    check_product(KVMEM_Q4_1, 1024 + 288, 16, 8, 0);
}
TEST(matmul_of_float_rows_takes_any_length) {
    int t, cols;
    for (t = 0; t < 3; t++)
        for (cols = 1; cols <= 67; cols += 1 + (cols > 20) * 3) {
            check_product(all_types[t], cols, 1 + cols % 19, 1 + cols % 3, 0);
            check_product(all_types[t], cols, 1 + cols % 19, 4 + cols % 6, 0);
        }
}
TEST(matmul_of_split_rows_takes_any_group) {
    static const int group[9] = { 1, 4, 8, 16, 20, 48, 80, 96, 160 };
    int g;
    for (g = 0; g < 9; g++) {
        check_product(KVMEM_Q8_SPLIT, group[g] * 4, 17, 1, group[g]);
        check_product(KVMEM_Q8_SPLIT, group[g] * 6, 17, 6, group[g]);
        check_product(KVMEM_Q8_SPLIT, 480, 5, 9, KVMEM__MIN(group[g] * 3, 480));
    }
}
TEST(matmul_of_nan_and_infinity_is_nan) {
    static const char *names[4] = { "plain", "neon", "avx2", "avx512" };
    int f, n, t, i;
    for (f = 0; f < 4; f++) for (n = 1; n <= 5; n += 4) for (t = 3; t < 5; t++) {
        const kvmem_backend *b = kvmem_backend_cpu(names[f]);
        float x[5 * 64], out[5 * 4];
        matrix m;
        if (!b) continue;
        make(&m, all_types[t], 64, 4, 0);
        fill(x, 320);
        x[40] = n == 1 ? NAN : INFINITY;
        product(b, out, &m, x, n, 1);
        for (i = 0; i < 4; i++) CHECK(out[i] != out[i]);
        for (i = 4; i < 4 * n; i++) CHECK(out[i] == out[i]);
        drop(&m);
    }
}
TEST(rows_of_x_do_not_change_each_other) {
    static const char *names[4] = { "plain", "neon", "avx2", "avx512" };
    int f, t, n;
    for (f = 0; f < 4; f++) for (t = 0; t < 14; t += 3) {
        const kvmem_backend *b = kvmem_backend_cpu(names[f]);
        static float x[21 * 512], out[21 * 19], part[21 * 19];
        matrix m;
        if (!b) continue;
        make(&m, all_types[t], 512, 19, 64);
        fill(x, 21 * 512);
        product(b, out, &m, x, 21, 1);
        for (n = 4; n < 21; n += 3) { /* the path for many rows starts at 4 */
            product(b, part, &m, x, n, 1);
            CHECK(!memcmp(part, out, sizeof(float) * (size_t)(n * 19)));
        }
        product(b, out, &m, x, 3, 1);
        product(b, part, &m, x, 2, 1);
        CHECK(!memcmp(part, out, sizeof(float) * 2 * 19));
        drop(&m);
    }
}
TEST(scratch_that_no_address_holds_is_refused) {
    const kvmem_backend *b = kvmem_backend_cpu(NULL);
    kvmem_tensor w;
    memset(&w, 0, sizeof w);
    w.type = KVMEM_Q8_0; w.ne[0] = INT_MAX - 255; w.ne[1] = 1;
    CHECK(b->matmul_scratch(b, &w, INT_MAX, 1) == SIZE_MAX);
    w.ne[0] = 64;
    CHECK(b->matmul_scratch(b, &w, 1, 1) < 4096);
}
TEST(rows_decodes_what_ids_name) {
    const kvmem_backend *b = kvmem_backend_cpu(NULL);
    const int ids[4] = { 3, 0, 3, 4 };
    float out[4 * 64];
    matrix m;
    int i;
    make(&m, KVMEM_Q4_0, 64, 5, 0);
    b->rows(b, out, &m.w, ids, 4, 1);
    for (i = 0; i < 4; i++) CHECK(!memcmp(out + i * 64, m.f + ids[i] * 64, sizeof(float) * 64));
    drop(&m);
}
#endif

int main(int argc, char **argv) {
    test_begin(argc, argv, "kernels");
    RUN(plain_is_always_there_and_unknown_paths_are_not);
    RUN(vector_ops_equal_their_twins_at_any_length_and_start);
    RUN(exp_sum_knows_infinities_and_nan);
    RUN(softcap_is_cap_tanh);
    RUN(rope_turns_pairs_in_both_layouts_and_leaves_the_rest);
    RUN(rope_handles_more_pairs_than_its_table);
#ifndef KVMEM_NO_DECODER
    RUN(norm_glu_and_add_equal_their_twins);
    RUN(glu_is_silu_or_tanh_gelu_times_up);
    RUN(activation_blocks_are_the_same_bits_on_every_path);
    RUN(matmul_of_every_type_equals_decoded_weights_and_its_twin);
    RUN(matmul_of_long_rows_crosses_panels);
    RUN(matmul_of_float_rows_takes_any_length);
    RUN(matmul_of_split_rows_takes_any_group);
    RUN(matmul_of_nan_and_infinity_is_nan);
    RUN(rows_of_x_do_not_change_each_other);
    RUN(scratch_that_no_address_holds_is_refused);
    RUN(rows_decodes_what_ids_name);
#endif
    return test_end();
}
