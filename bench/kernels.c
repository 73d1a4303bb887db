/* Matrix products of every tensor type. n = 1 (decoding) streams 256 MiB of weights and is told as GB/s and
   as a share of the measured read bandwidth; n = 512 (a prompt) is told as 10^9 multiply-adds a second and
   as a share of the measured peak: int8 dot products for quantized types where the processor has them,
   else float32. The rows of every product are first compared with decoded weights in double.
       make bench, or: build/bench_kernels [--csv] [--threads N] [--repeat N] [--path avx2] [--type q8_0] */
#include "bench.h"

enum { COLS = 2048, ROWS = 2048, MANY = 512 };
typedef struct job {
    const kvmem_backend *b;
    kvmem_tensor w;
    float *x, *out;
    void *scratch;
    int n;
} job;

static void run(void *user) {
    job *j = (job *)user;
    j->b->matmul(j->b, j->out, &j->w, j->x, j->n, j->scratch, bench_threads);
    bench_sink = (double)j->out[0];
}
/* Random weights: encoded where the library can, else random blocks with small scales. */
static void fill(kvmem_tensor *w, unsigned char *data, unsigned char *scales) {
    size_t bytes = 1, i, n = (size_t)(COLS * ROWS);
    const int block = w->type == KVMEM_Q8_SPLIT ? 1 : kvmem_type_block(w->type, &bytes);
    float row[COLS];
    uint64_t r = 1;
    for (i = 0; i < n / (size_t)block * bytes; i++) data[i] = (unsigned char)((r = kvmem__mix(r)) >> 40);
    for (i = 0; i < n / 64; i++) kvmem__putf32(scales + 4 * i, 0.01f);
    if (block == 256) {
        for (i = 0; i < n / 256; i++) {
            unsigned char *p = data + i * bytes;
            const int at = w->type == KVMEM_Q4_K || w->type == KVMEM_Q5_K ? 0 : (int)bytes - 2;
            kvmem__put16(p + at, 0x1c00);
            if (at == 0) kvmem__put16(p + 2, 0x1c00);
            if (w->type == KVMEM_Q2_K) kvmem__put16(p + 80, 0x1c00);
        }
    } else if (w->type != KVMEM_Q8_SPLIT) {
        for (i = 0; i < ROWS; i++) {
            int k;
            for (k = 0; k < COLS; k++) row[k] = (float)kvmem__unit(kvmem__random(1, i, (uint64_t)k, 0)) - 0.5f;
            kvmem_quantize(w->type, data + i * (COLS / (size_t)block * bytes), row, COLS);
        }
    }
}
/* Largest error of the rows of a product, relative to the sizes of both vectors. */
static double check(const job *j) {
    double worst = 0;
    float w[COLS];
    int i, r, k;
    for (r = 0; r < ROWS; r += 37) {
        kvmem__tensor_row(w, &j->w, r);
        for (i = 0; i < j->n; i += 61) {
            double s = 0, a = 0, b = 0, e;
            for (k = 0; k < COLS; k++) {
                const double u = (double)j->x[i * COLS + k], v = (double)w[k];
                s += u * v; a += u * u; b += v * v;
            }
            e = fabs((double)j->out[(size_t)i * (size_t)j->w.ne[1] + (size_t)r] - s) / sqrt(a * b);
            if (!(e <= worst)) worst = e;
        }
    }
    return worst;
}
int main(int argc, char **argv) {
    static const kvmem_type types[14] = { KVMEM_F32, KVMEM_F16, KVMEM_BF16, KVMEM_Q8_0, KVMEM_Q4_0, KVMEM_Q4_1,
        KVMEM_Q5_0, KVMEM_Q5_1, KVMEM_Q2_K, KVMEM_Q3_K, KVMEM_Q4_K, KVMEM_Q5_K, KVMEM_Q6_K, KVMEM_Q8_SPLIT };
    const size_t big = (size_t)256 << 20;
    unsigned char *data = (unsigned char *)malloc(big), *scales = (unsigned char *)malloc(big / 16);
    job j;
    const char *path, *only;
    int t, i;
    bench_begin(argc, argv, "kernels", 1);
    path = bench_option("--path", "");
    only = bench_option("--type", "");
    memset(&j, 0, sizeof j);
    j.b = kvmem_backend_cpu(*path ? path : NULL);
    j.x = (float *)malloc(sizeof(float) * MANY * COLS);
    j.out = (float *)malloc(sizeof(float) * MANY * ROWS > big / 64 ? sizeof(float) * MANY * ROWS : big / 64);
    if (!data || !scales || !j.b || !j.x || !j.out) { fprintf(stderr, "no memory, or no such path\n"); return 1; }
    printf("# path %s\n", j.b->name);
    for (i = 0; i < MANY * COLS; i++) j.x[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i)) - 0.5f;
    bench_header("<type    | n=1 GB/s|   min|   max|of read|n=512 G/s|   min|   max|of peak|  error");
    for (t = 0; t < 14; t++) {
        size_t bytes = 1, matrix, at;
        const int block = types[t] == KVMEM_Q8_SPLIT ? 1 : kvmem_type_block(types[t], &bytes);
        bench_sample one, many;
        double rate, peak, error, work = (double)MANY * COLS * ROWS, size;
        if (*only && strcmp(only, kvmem_type_name(types[t]))) continue;
        memset(&j.w, 0, sizeof j.w);
        j.w.type = types[t];
        j.w.ne[0] = COLS;
        j.w.ne[1] = ROWS;
        j.w.data = data;
        j.w.scales = scales;
        j.w.group = 64;
        matrix = (size_t)(ROWS * COLS) / (size_t)block * bytes;
        fill(&j.w, data, scales);
        for (at = matrix; at + matrix <= big; at += matrix) memcpy(data + at, data, matrix);
        for (at = ROWS * COLS / 16; at + ROWS * COLS / 16 <= big / 16; at += ROWS * COLS / 16)
            memcpy(scales + at, scales, ROWS * COLS / 16);
        j.n = MANY;
        j.scratch = malloc(j.b->matmul_scratch(j.b, &j.w, MANY, bench_threads));
        if (!j.scratch) return 1;
        run(&j);
        error = check(&j);
        if (!(error < 0.01)) { fprintf(stderr, "%s: error %g\n", kvmem_type_name(types[t]), error); return 1; }
        many = bench_samples(run, &j, 0.01);
        j.n = 1;
        run(&j);
        error = check(&j);
        if (!(error < 0.01)) { fprintf(stderr, "%s: error %g\n", kvmem_type_name(types[t]), error); return 1; }
        j.w.ne[1] = (int64_t)(big / matrix * ROWS);
        one = bench_samples(run, &j, 0.01);
        free(j.scratch);
        size = (double)(big / matrix * matrix);
        if (types[t] == KVMEM_Q8_SPLIT) size *= 1 + 4.0 / 64;
        rate = work / many.median;
        peak = bench_vnni > 0 && j.b->isa == 3 && bytes != 4 && types[t] != KVMEM_F16 &&
                       types[t] != KVMEM_BF16
                   ? bench_vnni
                   : bench_fma;
        bench_row("%s|%.2f|%.2f|%.2f|%.2f|%.1f|%.1f|%.1f|%.2f|%.1e", kvmem_type_name(types[t]),
                  size / one.median / 1e9, size / one.max / 1e9, size / one.min / 1e9,
                  size / one.median / bench_gbs, rate / 1e9, work / many.max / 1e9,
                  work / many.min / 1e9, rate / peak, error);
    }
    free(data); free(scales); free(j.x); free(j.out);
    return 0;
}
