/* RetrievalAttention's claim: on queries that are distributed unlike the keys, a graph built from
   queries finds the nearest keys by looking at 1 to 3 % of them, where one built from keys needs
   more and k-means lists 30 to 50 %. Made-up keys of a head: K = z B + noise, z of `rank` numbers,
   and queries q = z' (B + C) / 2 + shift, whose directions and mean are others; then queries with
   the distribution of the keys, for which the difference should go. For each index the share of
   keys looked at (centres of lists count) for a recall of the best k, by the length of the
   search's queue or the number of lists; between two lengths by straight line.
       build/bench_graph [--n 16384] [--d 64] [--k 10] [--queries 4096] [--ask 100] [--rank 16]
                         [--csv] [--json] */
#define KVMEM_NO_DECODER
#include "bench.h"

static int n, d, k, samples, ask, rank_;
static const kvmem_backend *best_backend;

static float normal(uint64_t kind, size_t i) {
    double s = 0;
    uint64_t j;
    for (j = 0; j < 12; j++) s += kvmem__unit(kvmem__random(7, kind, (uint64_t)i, j));
    return (float)(s - 6);
}
static float *rows_new(size_t m) {
    float *x = (float *)malloc(m * (size_t)d * sizeof *x);
    if (!x) exit(1);
    return x;
}
/* Rows x (m, d) on the directions base (rank, d), moved by shift. */
static float *rows_on(uint64_t kind, int m, const float *base, float shift) {
    float *x = rows_new((size_t)m);
    int i, j, c;
    for (i = 0; i < m; i++) {
        float *row = x + (size_t)i * (size_t)d;
        for (c = 0; c < d; c++)
            row[c] = .3f * normal(kind + 1, (size_t)i * (size_t)d + (size_t)c) +
                     shift * normal(99, (size_t)c);
        for (j = 0; j < rank_; j++) {
            const float z = normal(kind, (size_t)i * (size_t)rank_ + (size_t)j);
            for (c = 0; c < d; c++) row[c] += z * base[j * d + c] / (float)sqrt((double)rank_);
        }
    }
    return x;
}
/* The k nearest of every question, by looking at all keys. */
static int *exact_of(const kvmem__rowset *s, const float *q) {
    int *best = (int *)malloc((size_t)(ask * k) * sizeof *best), i, j, m;
    kvmem__found *f = (kvmem__found *)malloc((size_t)k * sizeof *f);
    for (i = 0; i < ask; i++) {
        for (j = m = 0; j < n; j++)
            kvmem__found_add(f, &m, k, j,
                             s->dot(q + (size_t)i * (size_t)d, s->x + (size_t)j * (size_t)d, d));
        for (j = 0; j < k; j++) best[i * k + j] = f[j].id;
    }
    free(f);
    return best;
}
typedef struct curve {
    double share[64], recall[64];
    int points;
} curve;
static double hits(const int *best, const kvmem__found *f, int m) {
    int i, j, hit = 0;
    for (i = 0; i < k; i++)
        for (j = 0; j < m; j++) hit += best[i] == f[j].id;
    return hit;
}
static curve graph_curve(const kvmem__graph *gr, const kvmem__rowset *s, const float *q,
                         const int *best) {
    kvmem__found *f = (kvmem__found *)malloc((size_t)n * sizeof *f);
    int *mark = (int *)calloc((size_t)n, sizeof *mark), stamp = 0, cap, i, m;
    curve c;
    c.points = 0;
    for (cap = k; c.points < 40; cap = KVMEM__MIN(cap + cap / 3 + 1, n)) {
        double hit = 0;
        int seen = 0;
        for (i = 0; i < ask; i++) {
            m = kvmem__graph_search(gr, s, q + (size_t)i * (size_t)d, f, cap, mark, ++stamp, &seen);
            hit += hits(best + i * k, f, KVMEM__MIN(m, k));
        }
        c.share[c.points] = (double)seen / ask / n;
        c.recall[c.points++] = hit / (ask * k);
        if (cap == n || c.recall[c.points - 1] > .9995) break;
    }
    free(f);
    free(mark);
    return c;
}
/* Lists around k-means centres, the ones with the largest products read whole. */
static curve lists_curve(const kvmem__rowset *s, const float *q, const int *best, double *seconds) {
    const int lists = (int)sqrt((double)n);
    float *centre = rows_new((size_t)lists), *score = (float *)malloc((size_t)lists * sizeof *score);
    float *work = (float *)malloc((size_t)kvmem__kmeans_floats(lists, n, d) * sizeof *work);
    int *own = (int *)malloc((size_t)n * sizeof *own), *size = (int *)calloc((size_t)lists, 4);
    double *hit = (double *)calloc((size_t)lists, sizeof *hit), *seen, sum = 0, start = bench_now();
    int i, j, p, step = KVMEM__MAX(1, lists / 60);
    curve c;
    seen = (double *)calloc((size_t)lists, sizeof *seen);
    kvmem__kmeans(centre, lists, s->x, n, d, 10, 1, work);
    for (i = 0; i < n; i++) {
        float far, least = INFINITY;
        for (j = 0; j < lists; j++) {
            far = kvmem__distance2(s->x + (size_t)i * (size_t)d, centre + (size_t)j * (size_t)d, d);
            if (far < least) { least = far; own[i] = j; }
        }
        size[own[i]]++;
    }
    *seconds = bench_now() - start;
    for (i = 0; i < ask; i++) {
        double found = 0;
        for (j = 0; j < lists; j++)
            score[j] = s->dot(q + (size_t)i * (size_t)d, centre + (size_t)j * (size_t)d, d);
        for (p = 0, sum = lists; p < lists; p++) {
            int at = 0;
            for (j = 1; j < lists; j++) if (score[j] > score[at]) at = j;
            score[at] = -INFINITY;
            sum += size[at];
            for (j = 0; j < k; j++) found += own[best[i * k + j]] == at;
            hit[p] += found;
            seen[p] += sum;
        }
    }
    for (c.points = 0, p = 0; p < lists && c.points < 64; p += step) {
        c.share[c.points] = seen[p] / ask / n;
        c.recall[c.points++] = hit[p] / (ask * k);
    }
    free(centre); free(score); free(work); free(own); free(size); free(hit); free(seen);
    return c;
}
/* y where a rising x has the value `at`, along straight lines; NAN behind the end. */
static double along(const double *x, const double *y, int points, double at) {
    int i;
    if (points && x[0] >= at) return y[0];
    for (i = 1; i < points; i++)
        if (x[i] >= at)
            return x[i] > x[i - 1] ? y[i - 1] + (y[i] - y[i - 1]) * (at - x[i - 1]) / (x[i] - x[i - 1])
                                   : y[i];
    return NAN;
}
static void show(const char *queries, const char *index, const curve *c, double seconds) {
    static const double want[3] = { .8, .9, .95 }, at[2] = { .01, .03 };
    char cell[5][24];
    int i;
    for (i = 0; i < 5; i++) {
        const double y = i < 3 ? 100 * along(c->recall, c->share, c->points, want[i])
                               : along(c->share, c->recall, c->points, at[i - 3]);
        const int none = i < 3 ? y != y : c->share[0] > at[i - 3];
        sprintf(cell[i], none ? "-" : "%.3g", y == y ? y : 1.0);
    }
    bench_row("%s|%s|%s|%s|%s|%s|%s|%.2f", queries, index, cell[0], cell[1], cell[2], cell[3],
              cell[4], seconds);
}
static void one(const char *name, const float *x, const float *t, const float *q) {
    enum { M = 16, N = 32, LQ = 64 };
    kvmem__rowset s;
    kvmem__graph gr;
    float *scratch = (float *)malloc(kvmem__graph_floats(n, N, M, LQ) * sizeof *scratch);
    int *best, by_keys;
    curve c;
    double seconds;
    memset(&s, 0, sizeof s);
    s.x = x;
    s.d = d;
    s.dot = best_backend->dot;
    best = exact_of(&s, q);
    gr.n = n;
    gr.most = gr.step = 2 * M;
    gr.entry = 0;
    gr.edge = (int32_t *)malloc((size_t)(2 * n * M) * sizeof *gr.edge);
    for (by_keys = 0; by_keys < 2; by_keys++) {
        const int by = (n + samples - 1) / samples;
        seconds = bench_now();
        kvmem__graph_build(&gr, &s, by_keys ? x : t, by_keys ? n / by : samples,
                           (size_t)(by_keys ? by * d : d), N, M, LQ, scratch);
        seconds = bench_now() - seconds;
        c = graph_curve(&gr, &s, q, best);
        show(name, by_keys ? "graph of keys" : "graph of queries", &c, seconds);
    }
    c = lists_curve(&s, q, best, &seconds);
    show(name, "k-means lists", &c, seconds);
    free(gr.edge);
    free(scratch);
    free(best);
}
int main(int argc, char **argv) {
    float *base, *other, *x, *t, *q;
    int i;
    bench_begin(argc, argv, "graph", 0);
    n = atoi(bench_option("--n", "16384"));
    d = atoi(bench_option("--d", "64"));
    k = atoi(bench_option("--k", "10"));
    samples = atoi(bench_option("--queries", "4096"));
    ask = atoi(bench_option("--ask", "100"));
    rank_ = atoi(bench_option("--rank", "16"));
    if (n < 100 || d < 1 || d > 256 || k < 1 || k > n || samples < 1 || ask < 1 || rank_ < 1) return 2;
    best_backend = kvmem_backend_cpu(NULL);
    base = rows_new((size_t)rank_);
    other = rows_new((size_t)rank_);
    for (i = 0; i < rank_ * d; i++) {
        base[i] = normal(1, (size_t)i);
        other[i] = .5f * (base[i] + normal(2, (size_t)i));
    }
    bench_header("queries|index|keys at .8 %|at .9 %|at .95 %|recall at 1 %|at 3 %|build s");
    x = rows_on(10, n, base, 0);
    t = rows_on(20, samples, other, 1);
    q = rows_on(30, ask, other, 1);
    one("their own", x, t, q);
    free(t);
    free(q);
    t = rows_on(40, samples, base, 0);
    q = rows_on(50, ask, base, 0);
    one("as the keys", x, t, q);
    free(base); free(other); free(x); free(t); free(q);
    return 0;
}
