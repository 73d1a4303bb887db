/* codec_facts.h - what holds for every codec: coded scores and sums are those of the decoded rows, hard
   inputs give finite results, fast twins agree with the plain ones. Include test.h and coded.h first.

       codec_facts("kivi(bits=2)", 1e-3);           constant: relative error allowed on constant rows
       codec_facts_at("kivi(bits=2)", 1e-3, 300);   at one head size
       codec_facts_fast = 4e-5;                     where the avx512 path has queries and weights of 16 bits */
#ifndef KVMEM_CODEC_FACTS_H
#define KVMEM_CODEC_FACTS_H
static KVMEM__UNUSED double codec_facts_fast = 1e-5; /* error allowed on avx512 */
static KVMEM__UNUSED double codec_facts_avx2 = 1e-5; /* and on avx2 */

static KVMEM__UNUSED void codec_facts_fill(float *x, int n, int d, int kind) {
    int t, c;
    for (t = 0; t < n; t++) {
        for (c = 0; c < d; c++) {
            float *v = x + (size_t)t * (size_t)d + (size_t)c;
            *v = (float)(test_normal() + (c % 5 == 2 ? 8 : 0));
            if (kind == 1) *v = 0;
            if (kind == 2) *v = 3.5f;                                         /* constant channels, equal rows */
            if (kind == 3) *v *= 1e-41f;
            if (kind == 4 && (t + c) % 7 == 0) *v = (t + c) % 3 ? NAN : t % 2 ? INFINITY : -INFINITY;
            if (kind == 5) *v *= 1e37f;
        }
    }
}
/* Scores and sums of a coded block against the same of its decoded rows. */
static KVMEM__UNUSED void codec_facts_sums(const coded *c, const char *text, const char *path) {
    const int d = c->u.d, n = c->b.n, nq = 3;
    float *y = (float *)coded_alloc((size_t)(n * d) * 4), *q = (float *)coded_alloc((size_t)(nq * d) * 4);
    float *s = (float *)coded_alloc((size_t)(nq * n) * 4), *w = (float *)coded_alloc((size_t)(nq * n) * 4);
    float *out = (float *)coded_alloc((size_t)(nq * d) * 4);
    const double tol = !strcmp(path, "avx512") ? codec_facts_fast : !strcmp(path, "avx2") ? codec_facts_avx2 : 1e-5;
    double worst = 0, scale = 1e-30;
    int i, t, k;
    for (i = 0; i < nq * d; i++) q[i] = (float)test_normal();
    for (i = 0; i < nq * n; i++) w[i] = (float)test_unit();
    coded_decode(c, y);
    coded_dot(c, s, q, nq);
    coded_axpy(c, out, w, nq);
    for (i = 0; i < nq; i++) {
        for (t = 0; t < n; t++) {
            double v = 0, m = 0;
            for (k = 0; k < d; k++) {
                v += (double)q[i * d + k] * (double)y[t * d + k];
                m += fabs((double)q[i * d + k] * (double)y[t * d + k]);
            }
            worst = fmax(worst, fabs(v - (double)s[i * n + t]));
            scale = fmax(scale, m);
        }
    }
    if (!(worst <= tol * scale)) FAIL_AT("%s on %s, d=%d: scores differ by %g of %g", text, path, d, worst, scale);
    worst = 0;
    scale = 1e-30;
    for (i = 0; i < nq; i++) {
        for (k = 0; k < d; k++) {
            double v = 0, m = 0;
            for (t = 0; t < n; t++) {
                v += (double)w[i * n + t] * (double)y[t * d + k];
                m += fabs((double)w[i * n + t] * (double)y[t * d + k]);
            }
            worst = fmax(worst, fabs(v - (double)out[i * d + k]));
            scale = fmax(scale, m);
        }
    }
    if (!(worst <= tol * scale)) FAIL_AT("%s on %s, d=%d: sums differ by %g of %g", text, path, d, worst, scale);
    free(y); free(q); free(s); free(w); free(out);
}
/* The block x (n, d) coded on a path; what plain learned, if it is given, is taken over. */
static KVMEM__UNUSED int codec_facts_make(coded *c, const char *text, const char *path, int d, const float *x, int n,
                                          const coded *plain) {
    if (!plain) return coded_make(c, text, path, d, x, n);
    if (!coded_begin(c, text, path, d)) return 0;
    if (c->state) memcpy(c->state, plain->state, (size_t)c->u.state_floats * sizeof(float));
    coded_encode(c, x, n);
    return 1;
}
/* y (n, d) is finite, zeros for zeros, near 3.5 for constants, near `want` (unless NULL). */
static KVMEM__UNUSED int codec_facts_row(const float *y, const float *want, int count, int kind, double constant,
                                         const char *text, const char *path, int d) {
    int i;
    for (i = 0; i < count; i++) {
        const double v = (double)y[i], u = want ? (double)want[i] : v;
        if (v <= (double)FLT_MAX && v >= -(double)FLT_MAX && (kind != 1 || v == 0) &&
            (kind != 2 || fabs(v - 3.5) <= constant * 3.5) && fabs(v - u) <= 1e-5 * (fabs(u) + 1e-3)) continue;
        FAIL_AT("%s on %s, d=%d, input %d: %g (plain twin %g)", text, path, d, kind, v, u);
        return 0;
    }
    return 1;
}
static KVMEM__UNUSED void codec_facts_at(const char *text, double constant, int d) {
    static const char *const paths[4] = { "plain", "neon", "avx2", "avx512" };
    float *x = (float *)coded_alloc((size_t)(40 * d) * 4), *y = (float *)coded_alloc((size_t)(40 * d) * 4);
    float *z = (float *)coded_alloc((size_t)(40 * d) * 4);
    int k, p;
    for (k = 0; k < 6; k++) {
        const int n = k ? 40 : 33;
        coded plain, c;
        codec_facts_fill(x, n, d, k);
        if (!coded_make(&plain, text, NULL, d, x, n)) { FAIL_AT("%s: cannot be made", text); break; }
        coded_decode(&plain, y);
        codec_facts_row(y, NULL, n * d, k, constant, text, "plain", d);
        if (k == 0) codec_facts_sums(&plain, text, "plain");
        for (p = 1; p < 4; p++) {
            if (!kvmem_backend_cpu(paths[p]) || !codec_facts_make(&c, text, paths[p], d, x, n, &plain)) continue;
            coded_decode(&c, z);
            codec_facts_row(z, y, n * d, k, constant, text, paths[p], d);
            if (k == 0) codec_facts_sums(&c, text, paths[p]);
            coded_free(&c);
        }
        coded_free(&plain);
        if (!coded_make(&c, text, NULL, d, x, 1)) break; /* a block of one row */
        coded_decode(&c, y);
        codec_facts_row(y, NULL, d, k == 2 ? 0 : k, constant, text, "plain, one row", d);
        coded_free(&c);
    }
    free(x); free(y); free(z);
}
static KVMEM__UNUSED void codec_facts(const char *text, double constant) {
    static const int dims[6] = { 1, 7, 33, 64, 80, 128 };
    int s;
    for (s = 0; s < 6; s++) codec_facts_at(text, constant, dims[s]);
}
#endif
