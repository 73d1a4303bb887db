/* codec_facts.h - what holds for every codec: coded scores and sums are those of the decoded rows, hard
   inputs give finite results, fast twins agree with the plain ones. Include test.h and coded.h first.

       codec_facts("kivi(bits=2)", 1e-3);     constant: relative error allowed on constant rows */
#ifndef KVMEM_CODEC_FACTS_H
#define KVMEM_CODEC_FACTS_H

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
    if (!(worst <= 1e-5 * scale)) FAIL_AT("%s on %s, d=%d: scores differ by %g of %g", text, path, d, worst, scale);
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
    if (!(worst <= 1e-5 * scale)) FAIL_AT("%s on %s, d=%d: sums differ by %g of %g", text, path, d, worst, scale);
    free(y); free(q); free(s); free(w); free(out);
}
static KVMEM__UNUSED void codec_facts(const char *text, double constant) {
    static const char *const paths[4] = { "plain", "neon", "avx2", "avx512" };
    static const int dims[7] = { 1, 7, 33, 64, 80, 128, 300 };
    int s, k, p, i;
    for (s = 0; s < 7; s++) {
        const int d = dims[s];
        float *x = (float *)coded_alloc((size_t)(40 * d) * 4), *y = (float *)coded_alloc((size_t)(40 * d) * 4);
        float *z = (float *)coded_alloc((size_t)(40 * d) * 4);
        for (k = 0; k < 6; k++) {
            const int n = k ? 40 : 33;
            codec_facts_fill(x, n, d, k);
            for (p = 0; p < 4; p++) {
                coded c;
                if (!kvmem_backend_cpu(paths[p])) continue;
                if (!coded_make(&c, text, paths[p], d, x, n)) { FAIL_AT("%s: cannot be made", text); break; }
                coded_decode(&c, p ? z : y);
                for (i = 0; i < n * d; i++) {
                    const float v = (p ? z : y)[i];
                    if (!(v <= FLT_MAX && v >= -FLT_MAX)) { FAIL_AT("%s, d=%d, input %d: %g", text, d, k, (double)v); break; }
                    if (k == 1 && v != 0) { FAIL_AT("%s, d=%d: zeros give %g", text, d, (double)v); break; }
                    if (k == 2 && !(fabs((double)v - 3.5) <= constant * 3.5)) {
                        FAIL_AT("%s, d=%d: constant 3.5 gives %g", text, d, (double)v);
                        break;
                    }
                    if (p && !(fabs((double)v - (double)y[i]) <= 1e-5 * (fabs((double)y[i]) + 1e-3))) {
                        FAIL_AT("%s, d=%d, input %d: %s gives %g, plain %g", text, d, k, paths[p], (double)v, (double)y[i]);
                        break;
                    }
                }
                if (k == 0) codec_facts_sums(&c, text, paths[p]);
                coded_free(&c);
            }
        }
        for (k = 0; k < 6; k++) { /* a block of one row */
            coded c;
            codec_facts_fill(x, 1, d, k);
            if (!coded_make(&c, text, NULL, d, x, 1)) break;
            coded_decode(&c, y);
            for (i = 0; i < d; i++) CHECK(y[i] <= FLT_MAX && y[i] >= -FLT_MAX);
            coded_free(&c);
        }
        free(x); free(y); free(z);
    }
}
#endif
