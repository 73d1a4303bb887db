/* coded.h - drive a codec without a cache: one block of rows, coded, decoded, scored, summed.

       coded c;
       if (!coded_make(&c, "kivi(bits=2)", NULL, d, x, n)) ...   build, learn, encode (x (n, d))
       coded_decode(&c, y);                        y (n, d)
       coded_dot(&c, s, q, nq);                    s (nq, n), queries q (nq, d) as the caller has them
       coded_axpy(&c, out, w, nq);                 out (nq, d) = sum_t w (nq, n) * row
       coded_bits(&c)                              bits a value: rows and head, all of them
       coded_cut(&c, kept, m);                     keep rows kept (rising); no value is coded again
       coded_free(&c);
       coded_reads_error(text, path, d, n, nq)     scores and sums on the coded block against those over the
                                                   decoded rows: the largest difference, relative to the
                                                   operands' sizes (0: no such path; 9: no such codec)
       coded_run(recipe, n, more, out, &bytes)     a whole recipe in a small cache: its last output

   The generic parameters center, residual, flush and sinks are the cache's business and do nothing here.
   raw_* call one function of a row codec on bytes of the caller. */
#ifndef KVMEM_CODED_H
#define KVMEM_CODED_H

typedef struct coded {
    kvmem_codec_use u;
    kvmem_coded b;      /* head, rows, state are owned */
    float *state;
    kvmem_choice choice;
} coded;

static KVMEM__UNUSED void *coded_alloc(size_t size) { return calloc(size + 1, 1); }
/* A path by backend name, NULL: the plain twins. 0: no such codec, or no such path on this machine; the
   parser's message is printed for the first. */
static KVMEM__UNUSED int coded_begin(coded *c, const char *text, const char *path, int d) {
    const kvmem_backend *b = kvmem_backend_cpu(path ? path : "plain");
    kvmem_error e;
    memset(c, 0, sizeof *c);
    if (!b) return 0;
    if (kvmem__parse_choice(&c->choice, KVMEM_CODEC_K, text, &e) != KVMEM_OK) {
        printf("  codec %s: %s\n", text, e.text);
        return 0;
    }
    kvmem__use_init(&c->u, (const kvmem_codec *)(const void *)c->choice.entry, c->choice.par, d, b->isa);
    if (c->u.table_bytes) {
        c->u.table = coded_alloc(c->u.table_bytes);
        c->u.fn.build(c->u.par, d, c->u.table);
    }
    if (c->u.state_floats) c->state = (float *)coded_alloc((size_t)c->u.state_floats * sizeof(float));
    c->b = kvmem__coded_of(&c->u, c->state, NULL, 0, NULL, 0);
    return 1;
}
static KVMEM__UNUSED void coded_watch(coded *c, const float *q, int n) {
    if (c->u.fn.watch) c->u.fn.watch(&c->b, c->state, q, n);
}
static KVMEM__UNUSED float *coded_scratch(coded *c, int n) {
    const int floats = c->u.fn.scratch_floats ? c->u.fn.scratch_floats(c->u.par, c->u.d, n) : 0;
    return (float *)coded_alloc((size_t)floats * sizeof(float));
}
static KVMEM__UNUSED void coded_learn(coded *c, const float *x, int n) {
    float *scratch = coded_scratch(c, n);
    c->b.scratch = scratch;
    if (c->u.fn.learn) c->u.fn.learn(&c->b, c->state, x, n);
    c->b.scratch = NULL;
    free(scratch);
}
static KVMEM__UNUSED void coded_encode(coded *c, const float *x, int n) {
    float *scratch = coded_scratch(c, n);
    c->b.n = n;
    c->b.head_bytes = c->u.fn.head_bytes ? c->u.fn.head_bytes(&c->b, x) : 0;
    c->b.head = (uint8_t *)coded_alloc(c->b.head_bytes);
    c->b.rows = (uint8_t *)coded_alloc(c->b.row_bytes * (size_t)n);
    c->b.scratch = scratch;
    c->u.fn.encode(&c->b, x, 0, n);
    c->b.scratch = NULL;
    free(scratch);
}
static KVMEM__UNUSED int coded_make(coded *c, const char *text, const char *path, int d, const float *x, int n) {
    if (!coded_begin(c, text, path, d)) return 0;
    coded_learn(c, x, n);
    coded_encode(c, x, n);
    return 1;
}
static KVMEM__UNUSED void coded_decode(const coded *c, float *y) { kvmem__coded_decode(&c->u, &c->b, y, 0, c->b.n); }
static KVMEM__UNUSED void coded_dot(const coded *c, float *s, const float *q, int nq) {
    float *qp = (float *)coded_alloc((size_t)nq * (size_t)c->u.q_floats * sizeof(float));
    const kvmem_coded none = kvmem__coded_of(&c->u, c->state, NULL, 0, NULL, 0);
    int i;
    for (i = 0; i < nq; i++)
        kvmem__coded_prepare(&c->u, &none, qp + (size_t)i * (size_t)c->u.q_floats, q + (size_t)i * (size_t)c->u.d);
    kvmem__coded_dot(&c->u, &c->b, s, c->b.n, 0, c->b.n, qp, nq);
    free(qp);
}
static KVMEM__UNUSED void coded_axpy(const coded *c, float *out, const float *w, int nq) {
    const size_t width = (size_t)c->u.width, d = (size_t)c->u.d;
    float *acc = (float *)coded_alloc((size_t)nq * width * sizeof(float));
    const kvmem_coded none = kvmem__coded_of(&c->u, c->state, NULL, 0, NULL, 0);
    int i;
    kvmem__coded_axpy(&c->u, &c->b, acc, 0, c->b.n, w, c->b.n, nq);
    for (i = 0; i < nq; i++) {
        if (c->u.fn.finish) c->u.fn.finish(&none, out + (size_t)i * d, acc + (size_t)i * width);
        else memcpy(out + (size_t)i * d, acc + (size_t)i * width, d * sizeof(float));
    }
    free(acc);
}
static KVMEM__UNUSED double coded_bits(const coded *c) {
    return 8.0 * ((double)c->b.head_bytes + (double)c->b.row_bytes * c->b.n) / ((double)c->b.n * c->u.d);
}
static KVMEM__UNUSED void coded_cut(coded *c, const int *kept, int m) {
    kvmem_coded to = c->b;
    to.n = m;
    to.rows = (uint8_t *)coded_alloc(c->b.row_bytes * (size_t)m);
    to.head = (uint8_t *)coded_alloc(c->b.head_bytes);
    kvmem__coded_cut(&c->u, &to, &c->b, kept);
    free(c->b.rows);
    free(c->b.head);
    c->b = to;
}
static KVMEM__UNUSED void coded_free(coded *c) {
    free(c->u.table);
    free(c->state);
    free(c->b.head);
    free(c->b.rows);
    memset(c, 0, sizeof *c);
}

/* A row whose channels differ in size and centre, as those of keys do. */
static KVMEM__UNUSED float coded_value(int t, int c) {
    const float u = (float)kvmem__unit(kvmem__mix((uint64_t)t * 4096u + (uint64_t)c)) - 0.5f;
    return u * (c % 7 ? 3.0f : 20.0f) + (c % 3 ? 0.0f : 4.0f);
}
static KVMEM__UNUSED double coded_reads_error(const char *text, const char *path, int d, int n, int nq) {
    const size_t row = (size_t)d;
    float *x = (float *)coded_alloc((size_t)n * row * 4), *y = (float *)coded_alloc((size_t)n * row * 4);
    float *q = (float *)coded_alloc((size_t)nq * row * 4), *o = (float *)coded_alloc((size_t)nq * row * 4);
    float *s = (float *)coded_alloc((size_t)(nq * n) * 4), *w = (float *)coded_alloc((size_t)(nq * n) * 4);
    double worst = 0, a, size;
    coded c;
    int i, t, k;
    if (path && !kvmem_backend_cpu(path)) goto done;
    for (i = 0; i < n * d; i++) x[i] = coded_value(i / d, i % d);
    for (i = 0; i < nq * d; i++) q[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 1000003)) - 0.5f;
    for (i = 0; i < nq * n; i++) w[i] = (float)kvmem__unit(kvmem__mix((uint64_t)i + 7)) * (i % 5 ? 0.01f : 1.0f);
    worst = 9;
    if (!coded_begin(&c, text, path, d)) goto done;
    coded_watch(&c, q, nq);
    coded_learn(&c, x, n);
    coded_encode(&c, x, n);
    coded_decode(&c, y);
    coded_dot(&c, s, q, nq);
    coded_axpy(&c, o, w, nq);
    worst = 0;
    for (i = 0; i < nq; i++) {
        for (t = 0; t < n; t++) {
            double qq = 0, yy = 0;
            for (k = 0, a = 0; k < d; k++) {
                const double qk = (double)q[i * d + k], yk = (double)y[t * d + k];
                a += qk * yk;
                qq += qk * qk;
                yy += yk * yk;
            }
            a = fabs(a - (double)s[i * n + t]) / (sqrt(qq * yy) + 1e-30);
            worst = a <= worst ? worst : a;
        }
        for (k = 0; k < d; k++) {
            for (t = 0, a = 0, size = 1e-30; t < n; t++) {
                double yy = 0; /* a channel's share of its row: rotations mix them all */
                int j;
                for (j = 0; j < d; j++) yy += (double)y[t * d + j] * (double)y[t * d + j];
                a += (double)w[i * n + t] * (double)y[t * d + k];
                size += (double)w[i * n + t] * KVMEM__MAX(fabs((double)y[t * d + k]), sqrt(yy / d));
            }
            a = fabs(a - (double)o[i * d + k]) / size;
            worst = a <= worst ? worst : a;
        }
    }
    coded_free(&c);
done:
    free(x); free(y); free(q); free(o); free(s); free(w);
    return worst;
}

/* --- a recipe in a cache: one layer, 2 KV heads with 2 query heads each, keys with large channels ---
   A prompt of n tokens and `more` decoded ones; out (4, CODED_RUN_D) is the last output. Returns the entries of
   KV head 0, -1 if a call failed (its message is printed). */
enum { CODED_RUN_D = 16 };
static KVMEM__UNUSED double coded_unit(int what, int t, int i) {
    return kvmem__unit(kvmem__random((uint64_t)what, (uint64_t)t, (uint64_t)i, 0));
}
static KVMEM__UNUSED int coded_run(const char *recipe, int n, int more, float *out, kvmem_bytes *bytes) {
    enum { D = CODED_RUN_D };
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error e;
    kvmem_cache c;
    float q[4 * D], k[2 * D], v[2 * D];
    int t, i, len = -1;
    if (kvmem_recipe_parse(&r, recipe, &e)) { printf("  %s: %s\n", recipe, e.text); return -1; }
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = 4;
    cfg.shape.n_kv_heads = 2;
    cfg.shape.head_dim = D;
    cfg.recipe = &r;
    if (kvmem_cache_init(&c, &cfg)) { printf("  %s: %s\n", recipe, c.error.text); return -1; }
    for (t = 0; t < n + more; t++) {
        for (i = 0; i < 4 * D; i++)
            q[i] = (float)(6 * coded_unit(1, t, i) - 3) * (i % D == 3 ? 0.2f : 1.0f);
        for (i = 0; i < 2 * D; i++) {
            k[i] = (float)(3 * coded_unit(2, t, i) - 1.5) * (i % D == 3 ? 6.0f : 1.0f);
            v[i] = (float)(3 * coded_unit(3, t, i) - 1.5);
        }
        if (kvmem_cache_append(&c, 0, 1, k, v, NULL) || kvmem_cache_attend(&c, 0, 1, q, out) ||
            kvmem_cache_commit(&c, t < n - 1 ? KVMEM_PREFILL : t == n - 1 ? KVMEM_PROMPT_END : KVMEM_DECODE)) {
            printf("  %s, token %d: %s\n", recipe, t, c.error.text);
            break;
        }
    }
    if (t == n + more) len = kvmem_cache_lane_len(&c, 0, 0);
    kvmem_cache_bytes(&c, bytes);
    kvmem_cache_free(&c);
    return len;
}

/* --- row codecs on bytes of the caller --- */
static KVMEM__UNUSED kvmem_coded raw_block(const kvmem_codec *c, const void *rows, int n, int d) {
    static const double par[KVMEM_MAX_PARAMS];
    kvmem_coded b;
    memset(&b, 0, sizeof b);
    b.par = par;
    b.d = d;
    b.n = n;
    b.rows = (uint8_t *)(uintptr_t)rows;
    b.row_bytes = c->row_bytes(par, d);
    return b;
}
static KVMEM__UNUSED void raw_encode(const kvmem_codec *c, void *rows, const float *x, int n, int d) {
    const kvmem_coded b = raw_block(c, rows, n, d);
    c->encode(&b, x, 0, n);
}
static KVMEM__UNUSED void raw_decode(const kvmem_codec *c, float *x, const void *rows, int n, int d) {
    const kvmem_coded b = raw_block(c, rows, n, d);
    c->expand(&b, x, 0, n);
}
static KVMEM__UNUSED void raw_prepare(const kvmem_codec *c, float *out, const float *q, int d) {
    const kvmem_coded b = raw_block(c, NULL, 0, d);
    if (c->q_prepare) c->q_prepare(&b, out, q);
    else memcpy(out, q, (size_t)d * sizeof *q);
}
static KVMEM__UNUSED void raw_dot(const kvmem_codec *c, float *s, int ld, const void *rows, int n, const float *q,
                                  int nq, int d) {
    const kvmem_coded b = raw_block(c, rows, n, d);
    c->dot(&b, s, ld, 0, n, q, nq);
}
static KVMEM__UNUSED void raw_axpy(const kvmem_codec *c, float *acc, const void *rows, int n, const float *w, int ld,
                                   int nq, int d) {
    const kvmem_coded b = raw_block(c, rows, n, d);
    c->axpy(&b, acc, 0, n, w, ld, nq);
}
#endif
