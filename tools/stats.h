/* stats.h - what may be said after counting: intervals and paired tests.

   wilson     95 % interval of a share from right answers out of asked ones (Wilson 1927)
   mcnemar    two recipes on the same questions: exact two-sided p of the discordant pairs
   paired     95 % interval of the difference of two shares on the same questions (Bonett and
              Price 2012: Wald with one pair added to each discordant count)
   bootstrap  95 % interval of a mean over seeds, by resampling them; same data, same interval

   Pure functions on plain numbers; needs libm. */
#ifndef KVMEM_STATS_H
#define KVMEM_STATS_H
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define STATS_Z 1.959963984540054 /* 97.5 % point of the normal distribution */

typedef struct interval { double lo, hi; } interval;

/* (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); all of [0, 1] when n is 0. */
static interval wilson(int64_t right, int64_t asked) {
    const double n = (double)asked, z2 = STATS_Z * STATS_Z;
    interval i;
    i.lo = 0;
    i.hi = 1;
    if (asked > 0) {
        const double p = (double)right / n, mid = p + z2 / (2 * n);
        const double half = STATS_Z * sqrt(p * (1 - p) / n + z2 / (4 * n * n));
        i.lo = right > 0 ? (mid - half) / (1 + z2 / n) : 0;
        i.hi = right < asked ? (mid + half) / (1 + z2 / n) : 1;
    }
    return i;
}

/* a: questions that only the first answered, b: only the second. Under "no difference" each of the
   a + b is a fair coin: p = 2 P(X <= min(a, b)), X binomial(a + b, 1/2), at most 1. */
static double mcnemar(int64_t a, int64_t b) {
    const int64_t n = a + b, k = a < b ? a : b;
    const double ln2 = 0.693147180559945309;
    double term = -(double)n * ln2, sum = 0; /* log of C(n, i) / 2^n */
    int64_t i;
    for (i = 0; i <= k; i++) {
        sum += exp(term);
        term += log((double)(n - i)) - log((double)(i + 1));
    }
    sum *= 2;
    return sum < 1 ? sum : 1;
}

/* Of `asked` questions only_a were answered by the first alone, only_b by the second alone. */
static interval paired(int64_t only_a, int64_t only_b, int64_t asked) {
    const double n = (double)asked + 2, a = ((double)only_a + 1) / n, b = ((double)only_b + 1) / n;
    const double half = STATS_Z * sqrt((a + b - (a - b) * (a - b)) / n);
    interval i;
    i.lo = a - b - half < -1 ? -1 : a - b - half;
    i.hi = a - b + half > 1 ? 1 : a - b + half;
    return i;
}

static double mean_of(const double *x, int n) {
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) sum += x[i];
    return n ? sum / n : 0;
}
static int stats_rising(const void *a, const void *b) {
    double x, y;
    x = *(const double *)a;
    y = *(const double *)b;
    return (x > y) - (x < y);
}
/* Percentile interval of the mean of x over STATS_DRAWS resamples; one value has no width. */
enum { STATS_DRAWS = 2000 };
static interval bootstrap(const double *x, int n) {
    static double draw[STATS_DRAWS];
    uint64_t state = 0x9e3779b97f4a7c15u;
    interval out;
    int i, j;
    out.lo = out.hi = mean_of(x, n);
    if (n < 2) return out;
    for (i = 0; i < STATS_DRAWS; i++) {
        double sum = 0;
        for (j = 0; j < n; j++) { /* splitmix64 */
            uint64_t z = state += 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            sum += x[((z ^ (z >> 31)) >> 32) * (uint64_t)n >> 32];
        }
        draw[i] = sum / n;
    }
    qsort(draw, STATS_DRAWS, sizeof *draw, stats_rising);
    out.lo = draw[STATS_DRAWS / 40];
    out.hi = draw[STATS_DRAWS - 1 - STATS_DRAWS / 40];
    return out;
}
#endif
