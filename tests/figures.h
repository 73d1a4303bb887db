/* figures.h - the simulated rows behind the tables of codecs.md, and the errors in their cells.

       FIGURE("q4_0", 'O', 64, 0, 0.0221, 0.03);                   what the card says, relative tolerance
       FIGURE_MEAN("turboquant(bits=2,seed=%d)", 'S', 64, 0, 16, 0.0914, 0.03);     mean over seeds 1..16
       figure_error("kivi(bits=2)", 'O', 64, 32, FIGURE_REL)       the number itself

   Rows (n, d), d = 64 or 128 (other d: the same channels modulo d):
     G  independent normal values
     O  as G, but channels {3,17,38,59} (d=64), {3,38,77,118} (d=128) are (-1)^k (10 + 2 N(0,1)): like keys
     S  as G, but those channels are 10 N(0,1)
   A figure codes FIGURE_ROWS rows, `block` at a time (0: all in one block), and compares what comes back.
     FIGURE_REL      sum |x - y|^2 / sum |x|^2
     FIGURE_CENTRED  sum |x - y|^2 / sum |x - mean|^2, mean over the rows: what softmax can see of a key
   Include test.h and coded.h first. */
#ifndef KVMEM_FIGURES_H
#define KVMEM_FIGURES_H
#ifndef FIGURE_ROWS
#define FIGURE_ROWS 1024
#endif
enum { FIGURE_REL, FIGURE_CENTRED };

/* Normal number i of a stream: Box and Muller. */
static KVMEM__UNUSED double figure_normal(unsigned long long stream, unsigned long long i) {
    const double u = 1 - kvmem__unit(kvmem__random(stream, i, 0, 1)), v = kvmem__unit(kvmem__random(stream, i, 1, 1));
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}
static KVMEM__UNUSED void figure_rows(float *x, int kind, int n, int d, unsigned long long stream) {
    static const int at64[4] = { 3, 17, 38, 59 }, at128[4] = { 3, 38, 77, 118 };
    int t, c, k;
    for (t = 0; t < n; t++, x += d) {
        const unsigned long long i = (unsigned long long)t * (unsigned long long)d;
        for (c = 0; c < d; c++) x[c] = (float)figure_normal(stream, i + (unsigned long long)c);
        for (k = 0; k < 4 && kind != 'G'; k++) {
            c = (d == 128 ? at128 : at64)[k] % d;
            x[c] = kind == 'S' ? 10 * x[c] : (k % 2 ? -1.0f : 1.0f) * (10 + 2 * x[c]);
        }
    }
}
/* sum |x - y|^2 over sum |x|^2, or over the energy about the mean row. */
static KVMEM__UNUSED double figure_ratio(const float *x, const float *y, int n, int d, int what) {
    double error = 0, energy = 0;
    int t, c;
    for (c = 0; c < d; c++) {
        double mean = 0;
        for (t = 0; t < n && what == FIGURE_CENTRED; t++) mean += (double)x[(size_t)t * (size_t)d + (size_t)c] / n;
        for (t = 0; t < n; t++) {
            const size_t i = (size_t)t * (size_t)d + (size_t)c;
            error += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
            energy += ((double)x[i] - mean) * ((double)x[i] - mean);
        }
    }
    return energy > 0 ? error / energy : error;
}
/* -1: no such codec (the parser's message is printed). */
static KVMEM__UNUSED double figure_error(const char *text, int kind, int d, int block, int what) {
    const int n = FIGURE_ROWS;
    const size_t size = (size_t)n * (size_t)d * sizeof(float);
    float *x = (float *)malloc(size), *y = (float *)malloc(size);
    double r = -1;
    int t, ok = x && y;
    if (block <= 0) block = n;
    if (ok) figure_rows(x, kind, n, d, 77);
    for (t = 0; ok && t < n; t += block) {
        const size_t at = (size_t)t * (size_t)d;
        coded c;
        ok = coded_make(&c, text, NULL, d, x + at, KVMEM__MIN(block, n - t));
        if (ok) coded_decode(&c, y + at);
        if (ok) coded_free(&c);
    }
    if (ok) r = figure_ratio(x, y, n, d, what);
    free(x);
    free(y);
    return r;
}
/* Mean over seeds 1..seeds; %d in the text is the seed. */
static KVMEM__UNUSED double figure_mean(const char *text, int kind, int d, int block, int seeds) {
    char one[200];
    double sum = 0;
    int i;
    for (i = 1; i <= seeds; i++) {
        const char *p = strstr(text, "%d");
        if (p) snprintf(one, sizeof one, "%.*s%d%s", (int)(p - text), text, i, p + 2);
        else snprintf(one, sizeof one, "%s", text);
        sum += figure_error(one, kind, d, block, FIGURE_REL);
    }
    return sum / seeds;
}
#define FIGURE_MEAN(text, kind, d, block, seeds, want, tol) do {                                    \
    const double got_ = figure_mean(text, kind, d, block, seeds), want_ = (want);                   \
    if (!(fabs(got_ - want_) <= (tol) * want_))                                                     \
        FAIL_AT("%s on %c, d=%d: %.5f, the card says %.5f", text, kind, d, got_, want_); } while (0)
#define FIGURE(text, kind, d, block, want, tol) FIGURE_MEAN(text, kind, d, block, 1, want, tol)
#endif
