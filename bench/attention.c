/* Attention. First whole calls of kvmem_cache_attend on one layer: prompt blocks of 512 tokens at a
   depth, in GFLOP/s and as a share of the measured multiply-add peak (causal work only), then single
   tokens, in GB/s of coded bytes and as a share of the measured read bandwidth. Then the dot and axpy of
   every codec on one thread, for pages of 64 rows, in cache and streamed from memory. Results are first
   compared with the plain twins.
       make bench, or: build/bench_attention [--csv] [--repeat N] [--threads N] [--path avx2]
                                             [--codec q8_0] [--only calls|kernels] */
#include "bench.h"
#include "../tests/coded.h"

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
        if (j->is_axpy) raw_axpy(&j->c, j->acc, p, PAGE, j->w, PAGE, j->nq, j->d);
        else raw_dot(&j->c, j->s, PAGE, p, PAGE, j->q, j->nq, j->d);
    }
    bench_sink = (double)j->acc[0] + (double)j->s[0];
}
/* Largest difference to the plain twin on the first page, relative to the sizes of the operands. */
static double check(job *j, const kvmem_codec *plain, const float *q) {
    float s[PAGE * 8], acc[8 * 128], x[PAGE * 128];
    double worst = 0;
    int i, t, c;
    raw_decode(plain, x, j->rows, PAGE, j->d);
    raw_dot(plain, s, PAGE, j->rows, PAGE, q, j->nq, j->d);
    raw_dot(&j->c, j->s, PAGE, j->rows, PAGE, j->q, j->nq, j->d);
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
    raw_axpy(plain, acc, j->rows, PAGE, j->w, PAGE, j->nq, j->d);
    raw_axpy(&j->c, j->acc, j->rows, PAGE, j->w, PAGE, j->nq, j->d);
    for (i = 0; i < j->nq * j->d; i++) {
        const double e = fabs((double)acc[i] - (double)j->acc[i]) / PAGE;
        if (e > worst) worst = e;
    }
    return worst;
}
/* --- whole calls --- */
typedef struct call { kvmem_cache c; float *q, *k, *v, *o; int n, failed; } call;

static int call_init(call *x, int H, int G, int d, const char *codec, const kvmem_backend *b, int threads) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe r;
    char text[80];
    int i;
    snprintf(text, sizeof text, "full codec.k=%s codec.v=%s", codec, codec);
    memset(x, 0, sizeof *x);
    x->q = (float *)malloc(sizeof(float) * (size_t)(512 * H * d));
    x->o = (float *)malloc(sizeof(float) * (size_t)(512 * H * d));
    x->k = (float *)malloc(sizeof(float) * (size_t)(512 * G * d));
    x->v = (float *)malloc(sizeof(float) * (size_t)(512 * G * d));
    if (!x->q || !x->o || !x->k || !x->v) return 0;
    for (i = 0; i < 512 * H * d; i++) x->q[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i)) - 0.5f;
    for (i = 0; i < 512 * G * d; i++) {
        x->k[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 99)) - 0.5f;
        x->v[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 999)) - 0.5f;
    }
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = H;
    cfg.shape.n_kv_heads = G;
    cfg.shape.head_dim = d;
    cfg.recipe = &r;
    cfg.backend = b;
    cfg.threads = threads;
    return kvmem_recipe_parse(&r, text, NULL) == KVMEM_OK && kvmem_cache_init(&x->c, &cfg) == KVMEM_OK;
}
static void call_free(call *x) {
    kvmem_cache_free(&x->c);
    free(x->q); free(x->k); free(x->v); free(x->o);
}
/* One block of n tokens at the end of the lane; taken back afterwards, so that calls repeat. */
static void call_block(void *user) {
    call *x = (call *)user;
    const int64_t n = x->c.tokens;
    x->failed |= kvmem_cache_append(&x->c, 0, x->n, x->k, x->v, NULL) != KVMEM_OK;
    x->failed |= kvmem_cache_attend(&x->c, 0, x->n, x->q, x->o) != KVMEM_OK;
    x->failed |= kvmem_cache_truncate(&x->c, n) != KVMEM_OK;
}
/* Largest difference between the path and the plain twins over one block of 64 tokens. */
static double call_error(int H, int G, int d, const char *codec, const kvmem_backend *b) {
    call x, y;
    double worst = -1;
    int i;
    if (call_init(&x, H, G, d, codec, b, 1) && call_init(&y, H, G, d, codec, kvmem_backend_cpu("plain"), 1)) {
        x.n = y.n = 64;
        call_block(&x);
        call_block(&y);
        worst = x.failed || y.failed ? -1 : 0;
        for (i = 0; worst >= 0 && i < 64 * H * d; i++) {
            const double e = fabs((double)x.o[i] - (double)y.o[i]);
            if (e > worst) worst = e;
        }
        call_free(&y);
        call_free(&x);
    }
    return worst;
}
static int calls(const kvmem_backend *b, const char *only) {
    static const int shape[3][3] = { { 32, 8, 64 }, { 9, 3, 64 }, { 32, 8, 128 } };
    static const char *const codecs[3] = { "f16", "q8_0", "q4_0" };
    const int depth[2] = { 4096, 16384 };
    int s, k, i;
    bench_header("<heads/kv x d |<codec |depth|GFLOP/s|of peak|us/token|   GB/s|of read|  error");
    for (s = 0; s < 3; s++) {
        for (k = 0; k < 3; k++) {
            const int H = shape[s][0], G = shape[s][1], d = shape[s][2];
            const double error = call_error(H, G, d, codecs[k], b);
            call x;
            if (*only && strcmp(only, codecs[k])) continue;
            if (!(error >= 0 && error < 1e-4)) {
                fprintf(stderr, "%s differs from its plain twin: %g\n", codecs[k], error);
                return 1;
            }
            if (!call_init(&x, H, G, d, codecs[k], b, bench_threads)) { fprintf(stderr, "no memory\n"); return 1; }
            for (i = 0; i < 2; i++) {
                bench_sample many, one;
                kvmem_bytes bytes;
                const double work = 2.0 * H * d * 512.0 * (depth[i] + 256.5); /* multiply-adds */
                while (x.c.tokens < depth[i]) { /* filled without attending: a truncate forgets nothing older */
                    x.failed |= kvmem_cache_append(&x.c, 0, 512, x.k, x.v, NULL) != KVMEM_OK;
                    x.c.layer_state[0] = 2;
                    x.failed |= kvmem_cache_commit(&x.c, KVMEM_PREFILL) != KVMEM_OK;
                    if (x.failed) { fprintf(stderr, "%s\n", x.c.error.text); return 1; }
                }
                kvmem_cache_bytes(&x.c, &bytes);
                x.n = 512;
                many = bench_samples(call_block, &x, 0.02);
                x.n = 1;
                one = bench_samples(call_block, &x, 0.02);
                bench_row("%d/%d x %d|%s|%d|%.1f|%.2f|%.1f|%.2f|%.2f|%.1e", H, G, d, codecs[k], depth[i],
                          2 * work / many.median / 1e9, work / many.median / bench_fma, one.median * 1e6,
                          (double)(bytes.live.k + bytes.live.v) / one.median / 1e9,
                          (double)(bytes.live.k + bytes.live.v) / one.median / bench_gbs, error);
            }
            call_free(&x);
        }
    }
    return 0;
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
    bench_begin(argc, argv, "attention", 1);
    path = bench_option("--path", "");
    only = bench_option("--codec", "");
    b = kvmem_backend_cpu(*path ? path : NULL);
    if (!rows || !x || !mem || !b) { fprintf(stderr, "no memory, or no such path\n"); return 1; }
    if (strcmp(bench_option("--only", "calls"), "calls") == 0 && calls(b, only)) return 1;
    if (strcmp(bench_option("--only", "kernels"), "kernels") != 0) return 0;
    bench_threads = 1;
    one = bench_bandwidth();
    printf("# path %s, read bandwidth of one thread %.1f GB/s\n", b->name, one / 1e9);
    bench_header("<codec |<op  |   d| nq|<data  |   GB/s| of read|Mrow/s|  error");
    for (i = 0; i < 4096 * 128; i++) x[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i)) - 0.5f;
    for (i = 0; i < 8 * 128; i++) q[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 77)) - 0.5f;
    for (k = 0; k < 9; k++) { /* f32 to iq4_nl; bench/codecs has the others */
        const kvmem_codec *plain = kvmem__codec_table(k);
        if (*only && strcmp(only, plain->e.word)) continue;
        for (m = 0; m < 2; m++) {
            job j;
            size_t at, part;
            j.c = *plain;
            if (j.c.fast) j.c.fast(&j.c, b->isa);
            j.d = dims[m];
            j.rb = plain->row_bytes(NULL, j.d);
            j.rows = rows;
            j.acc = mem;
            j.s = mem + 8 * 128;
            j.w = j.s + 8 * PAGE;
            j.q = j.w + 8 * PAGE;
            for (i = 0; i < 8 * PAGE; i++) j.w[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 5));
            part = 4096 * j.rb;
            raw_encode(plain, rows, x, 4096, j.d);
            for (at = part; at + part <= big; at += part) memcpy(rows + at, rows, part);
            for (g = 0; g < 3; g++) {
                const size_t qf = (size_t)(j.c.q_floats ? j.c.q_floats(NULL, j.d) : j.d);
                double error;
                j.nq = groups[g];
                for (i = 0; i < j.nq; i++) {
                    raw_prepare(&j.c, j.q + qf * (size_t)i, q + i * j.d, j.d);
                }
                error = check(&j, plain, q);
                if (error > 1e-4) {
                    fprintf(stderr, "%s differs from its plain twin: %g\n", plain->e.word, error);
                    return 1;
                }
                for (i = 0; i < 4; i++) {
                    const size_t size = i & 1 ? big / part * part : small;
                    bench_sample t;
                    double rate;
                    j.is_axpy = i >> 1;
                    j.n = (int)(size / j.rb / PAGE) * PAGE;
                    t = bench_samples(run, &j, 0.02);
                    rate = (double)j.n * (double)j.rb / t.median;
                    bench_row("%s|%s|%d|%d|%s|%.2f|%.2f|%.1f|%.1e", plain->e.word, j.is_axpy ? "axpy" : "dot", j.d,
                              j.nq, i & 1 ? "memory" : "cache", rate / 1e9, rate / one,
                              (double)j.n / t.median / 1e6, error);
                }
            }
        }
    }
    free(rows); free(x); free(mem);
    return 0;
}
