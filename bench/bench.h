/* bench.h - what the benchmarks share: a clock, medians, the machine's read bandwidth and
   multiply-add peak measured in the same run, and tables that print aligned, as CSV or as JSON
   (a line a row). Include
   it first: it brings kvmem.h with its implementation. Benchmarks check results before they time
   and never fail on speed.

       bench_begin(argc, argv, "kernels");     options --csv --json --threads N --repeat N
                                               --cpu-time; prints the machine
       b = bench_samples(...)                  median, min, max of N runs of a function
       bench_row(...)                          one table row; widths follow the header */
#ifndef KVMEM_BENCH_H
#define KVMEM_BENCH_H
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200112L
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"

#ifndef BENCH_FLAGS
#define BENCH_FLAGS "not told"
#endif
#if defined(__clang__)
#define BENCH_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define BENCH_COMPILER "gcc " __VERSION__
#else
#define BENCH_COMPILER "unknown"
#endif

static int bench_csv, bench_json, bench_cpu_time, bench_threads, bench_repeat = 5, bench_argc;
static char **bench_argv;

/* Value of an option `--name value`, or def. */
static KVMEM__UNUSED const char *bench_option(const char *name, const char *def) {
    int i;
    for (i = 1; i + 1 < bench_argc; i++) if (!strcmp(bench_argv[i], name)) return bench_argv[i + 1];
    return def;
}
static int bench_flag(const char *name) {
    int i;
    for (i = 1; i < bench_argc; i++) if (!strcmp(bench_argv[i], name)) return 1;
    return 0;
}

/* Seconds from an arbitrary start; with --cpu-time those that this process computed, for one
   thread on a busy machine. */
static double bench_now(void) {
    if (bench_cpu_time) return (double)clock() / CLOCKS_PER_SEC;
#if defined(_POSIX_C_SOURCE) && defined(CLOCK_MONOTONIC)
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}

typedef struct bench_sample { double median, min, max; int n; } bench_sample;

static int bench_compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
/* Sorts v (n >= 1). */
static KVMEM__UNUSED bench_sample bench_stats(double *v, int n) {
    bench_sample s;
    qsort(v, (size_t)n, sizeof *v, bench_compare);
    s.median = n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
    s.min = v[0];
    s.max = v[n - 1];
    s.n = n;
    return s;
}
/* Seconds per call of fn(user): one call to warm up, then bench_repeat samples of at least
   min_seconds each. */
static KVMEM__UNUSED bench_sample bench_samples(void (*fn)(void *), void *user,
                                                double min_seconds) {
    double v[64], t0;
    int i, calls = 1, k;
    const int n = bench_repeat < 1 ? 1 : bench_repeat > 64 ? 64 : bench_repeat;
    fn(user);
    t0 = bench_now();
    fn(user);
    t0 = bench_now() - t0;
    if (t0 < min_seconds)
        calls = t0 > 1e-7 ? (int)(min_seconds / t0) + 1 : (int)(min_seconds / 1e-7);
    for (i = 0; i < n; i++) {
        t0 = bench_now();
        for (k = 0; k < calls; k++) fn(user);
        v[i] = (bench_now() - t0) / calls;
    }
    return bench_stats(v, n);
}

/* --- the machine ------------------------------------------------------------------------------ */

#if KVMEM__X86
KVMEM__AVX2 static uint64_t bench_sum_avx2(const uint8_t *p, size_t n) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    uint64_t s[4];
    size_t i;
    for (i = 0; i + 128 <= n; i += 128) {
        a = _mm256_add_epi64(a, _mm256_loadu_si256((const __m256i *)(const void *)(p + i)));
        b = _mm256_add_epi64(b, _mm256_loadu_si256((const __m256i *)(const void *)(p + i + 32)));
        c = _mm256_add_epi64(c, _mm256_loadu_si256((const __m256i *)(const void *)(p + i + 64)));
        d = _mm256_add_epi64(d, _mm256_loadu_si256((const __m256i *)(const void *)(p + i + 96)));
    }
    a = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
    memcpy(s, &a, sizeof s);
    return s[0] + s[1] + s[2] + s[3];
}
/* n rounds of ten multiply-adds with accumulators of their own (named, so that they stay in
   registers at any optimization level). Return something that depends on all of them. */
#define BENCH_START(add) /* ten different numbers: equal ones would be computed once */ \
    a2 = add(a0, a1); a3 = add(a1, a2); a4 = add(a2, a3); a5 = add(a3, a4); a6 = add(a4, a5);  \
    a7 = add(a5, a6); a8 = add(a6, a7); a9 = add(a7, a8)
#define BENCH_TEN(OP) OP(a0); OP(a1); OP(a2); OP(a3); OP(a4); OP(a5); OP(a6); OP(a7); OP(a8); OP(a9)
KVMEM__AVX2 static float bench_fma_avx2(int n) {
    const __m256 m = _mm256_set1_ps(0.999f), x = _mm256_set1_ps(0.001f);
    __m256 a0 = x, a1 = m, a2, a3, a4, a5, a6, a7, a8, a9, sum = m;
    float out[8];
    int i;
#define BENCH_STEP(a) a = _mm256_fmadd_ps(a, m, x)
#define BENCH_ADD(a) sum = _mm256_add_ps(sum, a)
    BENCH_START(_mm256_add_ps);
    for (i = 0; i < n; i++) { BENCH_TEN(BENCH_STEP); }
    BENCH_TEN(BENCH_ADD);
#undef BENCH_STEP
#undef BENCH_ADD
    _mm256_storeu_ps(out, sum);
    return out[0];
}
KVMEM__AVX512 static float bench_fma_avx512(int n) {
    const __m512 m = _mm512_set1_ps(0.999f), x = _mm512_set1_ps(0.001f);
    __m512 a0 = x, a1 = m, a2, a3, a4, a5, a6, a7, a8, a9, sum = m;
    float out[16];
    int i;
#define BENCH_STEP(a) a = _mm512_fmadd_ps(a, m, x)
#define BENCH_ADD(a) sum = _mm512_add_ps(sum, a)
    BENCH_START(_mm512_add_ps);
    for (i = 0; i < n; i++) { BENCH_TEN(BENCH_STEP); }
    BENCH_TEN(BENCH_ADD);
#undef BENCH_STEP
#undef BENCH_ADD
    _mm512_storeu_ps(out, sum);
    return out[0];
}
/* The same for int8 dot products: 64 multiply-adds an instruction. */
KVMEM__AVX512 static float bench_vnni_avx512(int n) {
    const __m512i m = _mm512_set1_epi8(3), x = _mm512_set1_epi8(1);
    __m512i a0 = x, a1 = m, a2, a3, a4, a5, a6, a7, a8, a9, sum = m;
    int out[16], i;
#define BENCH_STEP(a) a = _mm512_dpbusd_epi32(a, m, x)
#define BENCH_ADD(a) sum = _mm512_add_epi32(sum, a)
    BENCH_START(_mm512_add_epi32);
    for (i = 0; i < n; i++) { BENCH_TEN(BENCH_STEP); }
    BENCH_TEN(BENCH_ADD);
#undef BENCH_STEP
#undef BENCH_ADD
    _mm512_storeu_si512((void *)out, sum);
    return (float)out[0];
}
#endif
static uint64_t bench_sum_plain(const uint8_t *p, size_t n) {
    uint64_t a = 0, b = 0, x;
    size_t i;
    for (i = 0; i + 16 <= n; i += 16) {
        memcpy(&x, p + i, 8); a += x;
        memcpy(&x, p + i + 8, 8); b += x;
    }
    return a + b;
}
static float bench_fma_plain(int n) {
    float a[16];
    int i, k;
    for (k = 0; k < 16; k++) a[k] = (float)k;
    for (i = 0; i < n; i++) for (k = 0; k < 16; k++) a[k] = a[k] * 0.999f + 0.001f;
    for (k = 1; k < 16; k++) a[0] += a[k];
    return a[0];
}

static volatile double bench_sink; /* results go here, so that no loop is optimized away */

/* Bytes a second that the threads together read from memory: the best of some passes over 512
   MiB. */
static KVMEM__UNUSED double bench_bandwidth(void) {
    const size_t part = ((size_t)512 << 20) / (size_t)bench_threads / 128 * 128;
    const size_t size = part * (size_t)bench_threads;
    uint8_t *p = (uint8_t *)malloc(size);
    double best = 0;
    int pass;
    if (!p) return 0;
    memset(p, 1, size);
    for (pass = 0; pass < 7; pass++) {
        const double t0 = bench_now();
        double dt;
        int t;
#ifdef _OPENMP
#pragma omp parallel for num_threads(bench_threads) schedule(static)
#endif
        for (t = 0; t < bench_threads; t++) {
            const uint8_t *q = p + (size_t)t * part;
#if KVMEM__X86
            const int avx2 = kvmem_backend_cpu("avx2") != NULL;
            const uint64_t s = avx2 ? bench_sum_avx2(q, part) : bench_sum_plain(q, part);
#else
            const uint64_t s = bench_sum_plain(q, part);
#endif
            if (s == 1) bench_sink = 1;
        }
        dt = bench_now() - t0;
        if ((double)size / dt > best) best = (double)size / dt;
    }
    free(p);
    return best;
}
/* Multiply-adds a second of all threads together, float32 or (vnni) int8 by int8 into int32; 0
   if this machine has no such instruction. One multiply-add counts as one. */
static KVMEM__UNUSED double bench_peak(int vnni) {
    float (*fn)(int) = vnni ? NULL : bench_fma_plain;
    int per = 16, n = 20000000, pass;
    double best = 0;
#if KVMEM__X86
    if (!vnni && kvmem_backend_cpu("avx2")) { fn = bench_fma_avx2; per = 80; }
    if (!vnni && kvmem_backend_cpu("avx512")) { fn = bench_fma_avx512; per = 160; }
    if (vnni && kvmem_backend_cpu("avx512")) { fn = bench_vnni_avx512; per = 640; }
#endif
    if (!fn) return 0;
    for (pass = 0; pass < 3; pass++) {
        const double t0 = bench_now();
        double rate;
        int t;
#ifdef _OPENMP
#pragma omp parallel for num_threads(bench_threads) schedule(static)
#endif
        for (t = 0; t < bench_threads; t++) if (fn(n) == 12345.0f) bench_sink = 2;
        rate = (double)per * n * bench_threads / (bench_now() - t0);
        if (rate > best) best = rate;
    }
    return best;
}

static KVMEM__UNUSED void bench_cpu_name(char *out, size_t size) {
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, size, "unknown processor");
    if (!f) return;
    while (fgets(line, sizeof line, f)) {
        char *c = strchr(line, ':');
        if (c && !strncmp(line, "model name", 10)) {
            c[strcspn(c, "\n")] = 0;
            snprintf(out, size, "%s", c + 2);
            break;
        }
    }
    fclose(f);
}

/* of this run: bytes/s, multiply-adds/s; 0: not measured */
static double bench_gbs, bench_fma, bench_vnni;

/* Reads the common options and prints what stands above every table. measure: also the machine's
   limits. */
static KVMEM__UNUSED void bench_begin(int argc, char **argv, const char *name, int measure) {
    char cpu[128];
    const kvmem_backend *b;
    bench_argc = argc;
    bench_argv = argv;
    bench_csv = bench_flag("--csv");
    bench_json = bench_flag("--json");
    bench_cpu_time = bench_flag("--cpu-time");
    bench_threads = kvmem__threads(atoi(bench_option("--threads", "0")));
    bench_repeat = atoi(bench_option("--repeat", "5"));
    b = kvmem_backend_cpu(NULL);
    bench_cpu_name(cpu, sizeof cpu);
    if (measure) {
        bench_gbs = bench_bandwidth();
        bench_fma = bench_peak(0);
        bench_vnni = bench_peak(1);
    }
    if (bench_json) return;
    printf("# %s: kvmem %d.%d.%d, path %s, %d threads, median of %d\n", name, KVMEM_VERSION_MAJOR,
           KVMEM_VERSION_MINOR, KVMEM_VERSION_PATCH, b ? b->name : "none", bench_threads,
           bench_repeat);
    printf("# %s; %s; flags %s\n", cpu, BENCH_COMPILER, BENCH_FLAGS);
    if (measure) {
        printf("# measured: read %.1f GB/s, float32 %.1f G multiply-adds/s", bench_gbs / 1e9,
               bench_fma / 1e9);
        if (bench_vnni > 0) printf(", int8 %.1f G/s", bench_vnni / 1e9);
        printf("\n");
    }
    fflush(stdout);
}

/* --- tables ----------------------------------------------------------------------------------- */

/* Cells separated by '|'. The header fixes the columns: a name is padded to its own width, and
   '<' in front of it aligns left. CSV prints the cells joined by commas. */
static char bench_columns[512];
/* {"codec":"q4_0","bits":4.5}: columns that align left hold text; "-" is null. */
static void bench_json_line(const char *cells) {
    const char *c = cells, *w = bench_columns;
    int first = 1;
    while (*c) {
        const int n = (int)strcspn(c, "|"), wn = (int)strcspn(w, "|"), left = *w == '<';
        int a = left, z = wn;
        while (a < z && w[a] == ' ') a++;
        while (z > a && w[z - 1] == ' ') z--;
        printf("%s\"%.*s\":", first ? "{" : ",", z - a, w + a);
        if (left) printf("\"%.*s\"", n, c);
        else if (n == 1 && *c == '-') printf("null");
        else printf("%.*s", n, c);
        first = 0;
        c += n + (c[n] == '|');
        w += wn + (w[wn] == '|');
    }
    printf("}\n");
    fflush(stdout);
}
static void bench_line(const char *cells, int header) {
    const char *c = cells, *w = bench_columns;
    int first = 1;
    if (bench_json) {
        if (!header) bench_json_line(cells);
        return;
    }
    while (*c) {
        const int n = (int)strcspn(c, "|"), wn = (int)strcspn(w, "|"), left = *w == '<';
        if (bench_csv) {
            int a = 0, z = n;
            while (a < z && (c[a] == ' ' || (header && c[a] == '<'))) a++;
            while (z > a && c[z - 1] == ' ') z--;
            if (memchr(c + a, ',', (size_t)(z - a))) printf("%s\"%.*s\"", first ? "" : ",", z - a, c + a);
            else printf("%s%.*s", first ? "" : ",", z - a, c + a);
        } else {
            const int skip = header && *c == '<', pad = wn - left - (n - skip);
            printf("%s", first ? "" : "  ");
            if (left) printf("%.*s%*s", n - skip, c + skip, pad > 0 ? pad : 0, "");
            else printf("%*s%.*s", pad > 0 ? pad : 0, "", n - skip, c + skip);
        }
        first = 0;
        c += n + (c[n] == '|');
        w += wn + (w[wn] == '|');
    }
    printf("\n");
    fflush(stdout);
}
static KVMEM__UNUSED void bench_header(const char *columns) {
    snprintf(bench_columns, sizeof bench_columns, "%s", columns);
    bench_line(columns, 1);
}
KVMEM__PRINTF(1, 2) static KVMEM__UNUSED void bench_row(const char *f, ...) {
    char cells[512];
    va_list ap;
    va_start(ap, f);
    vsnprintf(cells, sizeof cells, f, ap);
    va_end(ap);
    bench_line(cells, 0);
}
#endif
