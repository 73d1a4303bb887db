/* Attention kernels: the dot and axpy of every codec on one thread, for pages of 64 rows, in cache and
   streamed from memory, as GB/s of coded bytes and as a share of the measured read bandwidth (one
   thread). Every kernel is first compared with its plain twin.
       make bench, or: build/bench_attention [--csv] [--repeat N] [--path avx2] [--codec q8_0] */
#include "bench.h"

enum { PAGE = 64 };
typedef struct job {
    kvmem_codec c;
    unsigned char *rows;
    size_t rb, bytes;
    int n, nq, d, is_axpy;
    float *q, *acc, *s, *w;
} job;

/* All pages once. */
static void run(void *user) {
    job *j = (job *)user;
    int t;
    for (t = 0; t < j->n; t += PAGE) {
        const unsigned char *p = j->rows + j->rb * (size_t)t;
        if (j->is_axpy) j->c.axpy(NULL, j->acc, p, PAGE, j->w, PAGE, j->nq, j->d);
        else j->c.dot(NULL, j->s, PAGE, p, PAGE, j->q, j->nq, j->d);
    }
    bench_sink = (double)j->acc[0] + (double)j->s[0];
}
/* Largest difference to the plain twin on the first page, relative to the sizes of the operands. */
static double check(job *j, const kvmem_codec *plain, const float *q) {
    float s[PAGE * 8], acc[8 * 128], x[PAGE * 128];
    double worst = 0;
    int i, t, c;
    plain->decode(NULL, x, j->rows, PAGE, j->d);
    plain->dot(NULL, s, PAGE, j->rows, PAGE, q, j->nq, j->d);
    j->c.dot(NULL, j->s, PAGE, j->rows, PAGE, j->q, j->nq, j->d);
    for (i = 0; i < j->nq; i++) {
        for (t = 0; t < PAGE; t++) {
            double a = 0, b = 0, e = fabs((double)s[i * PAGE + t] - (double)j->s[i * PAGE + t]);
            for (c = 0; c < j->d; c++) {
                a += (double)q[i * j->d + c] * (double)q[i * j->d + c];
                b += (double)x[t * j->d + c] * (double)x[t * j->d + c];
            }
            e /= sqrt(a * b);
            if (e > worst) worst = e;
        }
    }
    memset(acc, 0, sizeof acc);
    memset(j->acc, 0, sizeof acc);
    plain->axpy(NULL, acc, j->rows, PAGE, j->w, PAGE, j->nq, j->d);
    j->c.axpy(NULL, j->acc, j->rows, PAGE, j->w, PAGE, j->nq, j->d);
    for (i = 0; i < j->nq * j->d; i++) {
        const double e = fabs((double)acc[i] - (double)j->acc[i]) / PAGE;
        if (e > worst) worst = e;
    }
    return worst;
}
int main(int argc, char **argv) {
    const int dims[2] = { 64, 128 }, groups[3] = { 1, 4, 8 };
    const size_t big = (size_t)256 << 20, small = (size_t)192 << 10;
    const char *path, *only;
    const kvmem_backend *b;
    unsigned char *rows = (unsigned char *)malloc(big);
    float *x = (float *)malloc(sizeof(float) * 4096 * 128), q[8 * 128], *mem = (float *)malloc(sizeof(float) * 65536);
    int i, k, g, m;
    double one;
    bench_begin(argc, argv, "attention", 0);
    path = bench_option("--path", "");
    only = bench_option("--codec", "");
    b = kvmem_backend_cpu(*path ? path : NULL);
    if (!rows || !x || !mem || !b) { fprintf(stderr, "no memory, or no such path\n"); return 1; }
    bench_threads = 1;
    one = bench_bandwidth();
    printf("# path %s, read bandwidth of one thread %.1f GB/s\n", b->name, one / 1e9);
    bench_header("<codec |<op  |   d| nq|<data  |   GB/s| of read|Mrow/s|  error");
    for (i = 0; i < 4096 * 128; i++) x[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i)) - 0.5f;
    for (i = 0; i < 8 * 128; i++) q[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 77)) - 0.5f;
    for (k = 0; kvmem__codec_table(k); k++) {
        const kvmem_codec *plain = kvmem__codec_table(k);
        if (*only && strcmp(only, plain->e.word)) continue;
        for (m = 0; m < 2; m++) {
            job j;
            size_t at, part;
            j.c = *plain;
            kvmem__codec_fast(&j.c, b);
            j.d = dims[m];
            j.rb = plain->row_bytes(NULL, j.d);
            j.rows = rows;
            j.acc = mem;
            j.s = mem + 8 * 128;
            j.w = j.s + 8 * PAGE;
            j.q = j.w + 8 * PAGE;
            for (i = 0; i < 8 * PAGE; i++) j.w[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 5));
            part = 4096 * j.rb;
            plain->encode(NULL, rows, x, 4096, j.d);
            for (at = part; at + part <= big; at += part) memcpy(rows + at, rows, part);
            for (g = 0; g < 3; g++) {
                const size_t qf = (size_t)(j.c.q_floats ? j.c.q_floats(NULL, j.d) : j.d);
                double error;
                j.nq = groups[g];
                for (i = 0; i < j.nq; i++) {
                    if (j.c.q_prepare) j.c.q_prepare(NULL, j.q + qf * (size_t)i, q + i * j.d, j.d);
                    else memcpy(j.q + qf * (size_t)i, q + i * j.d, (size_t)j.d * sizeof *q);
                }
                error = check(&j, plain, q);
                if (error > 1e-4) { fprintf(stderr, "%s differs from its plain twin: %g\n", plain->e.word, error); return 1; }
                for (i = 0; i < 4; i++) {
                    const size_t size = i & 1 ? big / part * part : small;
                    bench_sample t;
                    double rate;
                    j.is_axpy = i >> 1;
                    j.n = (int)(size / j.rb / PAGE) * PAGE;
                    t = bench_samples(run, &j, 0.02);
                    rate = (double)j.n * (double)j.rb / t.median;
                    bench_row("%s|%s|%d|%d|%s|%.2f|%.2f|%.1f|%.1e", plain->e.word, j.is_axpy ? "axpy" : "dot", j.d,
                              j.nq, i & 1 ? "memory" : "cache", rate / 1e9, rate / one, (double)j.n / t.median / 1e6, error);
                }
            }
        }
    }
    free(rows); free(x); free(mem);
    return 0;
}
