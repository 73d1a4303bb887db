/* coded_check.h - what every codec must hold, for one codec text and size. Include test.h and coded.h first.

       coded_check_sums(text, path, d, n);  scores = <q, decoded>, sums = decoded then added, rows cut out
       coded_check_bad(text, d);            zeros, constants, NaN, infinity, denormals, huge: finite results
       coded_check_twin(text, path, d, n);  the path's scores and sums of the same bytes against the plain twins';
                                            0: no such path
*/
#ifndef KVMEM_CODED_CHECK_H
#define KVMEM_CODED_CHECK_H
#include <math.h>

/* Values of a fixed stream in (-1, 1), some channels 20 times larger. */
static KVMEM__UNUSED void check_rows(float *x, int n, int d, unsigned long long stream) {
    int i;
    for (i = 0; i < n * d; i++) {
        x[i] = (float)(2 * kvmem__unit(kvmem__random(stream, (uint64_t)i, 3, 5)) - 1);
        if (i % d % 11 == 3) x[i] = 20 * x[i] + 15;
    }
}
/* Every |a - b| within tol of the largest |b|. */
static KVMEM__UNUSED void check_close(const char *what, const char *text, int d, const float *a, const float *b,
                                      int n, double tol) {
    double most = 1e-30, worst = 0;
    int i;
    for (i = 0; i < n; i++) most = KVMEM__MAX(most, fabs((double)b[i]));
    for (i = 0; i < n; i++) {
        const double e = fabs((double)a[i] - (double)b[i]);
        if (!(e <= worst)) worst = e;
    }
    if (!(worst <= tol * most)) FAIL_AT("%s, d=%d: %s differ by %g of %g", text, d, what, worst, most);
}
static KVMEM__UNUSED void check_finite(const char *what, const char *text, int d, const float *a, int n) {
    int i;
    for (i = 0; i < n; i++)
        if (!(fabs((double)a[i]) <= 3e38)) { FAIL_AT("%s, d=%d: %s %d is %g", text, d, what, i, (double)a[i]); return; }
}
/* s (nq, n) = queries times decoded rows, o (nq, d) = weighted decoded rows; in double. */
static KVMEM__UNUSED void check_direct(float *s, float *o, const float *y, const float *q, const float *w, int n,
                                       int d, int nq) {
    int i, t, c;
    for (i = 0; i < nq; i++) {
        for (t = 0; t < n; t++) {
            double sum = 0;
            for (c = 0; c < d; c++) sum += (double)q[i * d + c] * (double)y[t * d + c];
            s[i * n + t] = (float)sum;
        }
        for (c = 0; c < d; c++) {
            double sum = 0;
            for (t = 0; t < n; t++) sum += (double)w[i * n + t] * (double)y[t * d + c];
            o[i * d + c] = (float)sum;
        }
    }
}
#define CHECK_NQ 5
typedef struct check_room { float *x, *y, *q, *w, *s, *o, *s2, *o2; int *kept; } check_room;
static KVMEM__UNUSED check_room check_alloc(int d, int n) {
    check_room r;
    const size_t row = (size_t)n * (size_t)d, out = (size_t)CHECK_NQ * (size_t)d, sc = (size_t)CHECK_NQ * (size_t)n;
    r.x = (float *)calloc(2 * row + 3 * out + 3 * sc, sizeof(float));
    r.kept = (int *)calloc((size_t)n, sizeof(int));
    if (!r.x || !r.kept) exit(1);
    r.y = r.x + row;
    r.q = r.y + row;
    r.o = r.q + out;
    r.o2 = r.o + out;
    r.w = r.o2 + out;
    r.s = r.w + sc;
    r.s2 = r.s + sc;
    check_rows(r.x, n, d, 1);
    check_rows(r.q, CHECK_NQ, d, 2);
    check_rows(r.w, CHECK_NQ, n, 3);
    return r;
}
static KVMEM__UNUSED void check_free(check_room *r) {
    free(r->x);
    free(r->kept);
}
static KVMEM__UNUSED int check_is(const char *text, unsigned flag, int d) { /* has the codec this flag? */
    coded c;
    int yes = 0;
    if (coded_begin(&c, text, NULL, d)) yes = (c.u.fn.flags & flag) != 0;
    coded_free(&c);
    return yes;
}
static KVMEM__UNUSED void coded_check_sums(const char *text, const char *path, int d, int n) {
    check_room r = check_alloc(d, n);
    coded c;
    int t, m = 0, keys = check_is(text, KVMEM_CODEC_KEYS, d);
    if (coded_make(&c, text, path, d, r.x, n)) {
        coded_decode(&c, r.y);
        check_direct(r.s2, r.o2, r.y, r.q, r.w, n, d, CHECK_NQ);
        coded_dot(&c, r.s, r.q, CHECK_NQ);
        check_close("scores and <q, decoded>", text, d, r.s, r.s2, CHECK_NQ * n, 1e-5);
        if (!keys) coded_axpy(&c, r.o, r.w, CHECK_NQ);
        if (!keys) check_close("sums and decoded rows", text, d, r.o, r.o2, CHECK_NQ * d, 1e-5);
        for (t = 0; t < n; t++)
            if (t % 3 != 1) r.kept[m++] = t;
        coded_cut(&c, r.kept, m);
        coded_decode(&c, r.x);
        for (t = 0; t < m; t++)
            if (memcmp(r.x + t * d, r.y + r.kept[t] * d, (size_t)d * sizeof(float)))
                { FAIL_AT("%s, d=%d: row %d changed when others were cut out", text, d, r.kept[t]); break; }
        coded_free(&c);
    } else test_bad++;
    check_free(&r);
}
static KVMEM__UNUSED double check_fast = 2e-5; /* set higher where queries and weights have 16 bits */
static KVMEM__UNUSED int coded_check_twin(const char *text, const char *path, int d, int n) {
    check_room r = check_alloc(d, n);
    int keys = check_is(text, KVMEM_CODEC_KEYS, d), there;
    coded a, b;
    if (!coded_make(&a, text, NULL, d, r.x, n)) { test_bad++; check_free(&r); return 1; }
    there = coded_make(&b, text, path, d, r.x, n);
    if (there && a.b.head_bytes) memcpy(b.b.head, a.b.head, a.b.head_bytes); /* the same bytes for both */
    if (there) {
        memcpy(b.b.rows, a.b.rows, a.b.row_bytes * (size_t)n);
        coded_dot(&a, r.s, r.q, CHECK_NQ);
        coded_dot(&b, r.s2, r.q, CHECK_NQ);
        check_close("fast scores", text, d, r.s2, r.s, CHECK_NQ * n, check_fast);
        if (!keys) coded_axpy(&a, r.o, r.w, CHECK_NQ);
        if (!keys) coded_axpy(&b, r.o2, r.w, CHECK_NQ);
        if (!keys) check_close("fast sums", text, d, r.o2, r.o, CHECK_NQ * d, check_fast);
        coded_decode(&a, r.x);
        coded_decode(&b, r.y);
        check_close("fast decoded rows", text, d, r.y, r.x, n * d, 1e-5);
        coded_free(&b);
    }
    coded_free(&a);
    check_free(&r);
    return there;
}
static KVMEM__UNUSED void coded_check_bad(const char *text, int d) {
    const int n = 5;
    check_room r = check_alloc(d, n);
    const float put[6] = { NAN, INFINITY, -INFINITY, 1e-42f, 3e38f, -1e30f };
    int i, kind;
    coded c;
    for (kind = 0; kind < 9; kind++) { /* 0..5: one such value a row; 6: zeros; 7: a constant; 8: denormals */
        check_rows(r.x, n, d, 9);
        for (i = 0; kind < 6 && i < n; i++) r.x[i * d + (3 * i + 1) % d] = put[kind];
        for (i = 0; kind >= 6 && i < n * d; i++) r.x[i] = kind == 6 ? 0.0f : kind == 7 ? 2.5f : 1e-41f;
        if (!coded_make(&c, text, NULL, d, r.x, kind == 5 ? 1 : n)) { test_bad++; break; }
        coded_decode(&c, r.y);
        check_finite("a decoded value", text, d, r.y, c.b.n * d);
        coded_dot(&c, r.s, r.q, CHECK_NQ);
        check_finite("a score", text, d, r.s, CHECK_NQ * c.b.n);
        for (i = 0; kind == 6 && i < n * d; i++)
            if (r.y[i] != 0) { FAIL_AT("%s, d=%d: zeros decode to %g", text, d, (double)r.y[i]); break; }
        coded_free(&c);
    }
    check_free(&r);
}
/* All of these on every path for head sizes that no block divides, of n codecs. */
static KVMEM__UNUSED void coded_check_all(const char *const *text, int n, int most) {
    static const int dims[7] = { 1, 7, 33, 64, 80, 128, 300 };
    int k, s;
    for (k = 0; k < n; k++) {
        for (s = 0; s < 7 && dims[s] <= most; s++) {
            coded_check_sums(text[k], NULL, dims[s], 37);
            coded_check_bad(text[k], dims[s]);
            coded_check_twin(text[k], "neon", dims[s], 37);
            coded_check_twin(text[k], "avx2", dims[s], 37);
            coded_check_twin(text[k], "avx512", dims[s], 37);
        }
    }
}
#endif
