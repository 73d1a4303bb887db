/* record.h - keys, values and queries of a real model, recorded once and given to caches of any
   recipe.

       record_open(model, words, text, backend)     FED + SEEN tokens through the model, exactly
       record_run(&recipe, &c, &x, why, size)       FED of them into a cache; its rows read back
   into x record_block(&c, FED, SEEN, KVMEM_DECODE, o) the rest: what attention gives over the coded
   ones record_free()

   So every recipe is shown the same rows, and differences are those of coding alone. Included
   behind tools/kvmem.c. */
#ifndef KVMEM_RECORD_H
#define KVMEM_RECORD_H

#ifndef RECORD_FED /* a bench may say others before it includes this */
#define RECORD_FED 1024
#define RECORD_SEEN 64
#endif
enum { FED = RECORD_FED, SEEN = RECORD_SEEN };

/* What a model gives its cache, recorded on the way: k, v (layers, n, kv heads, d), q (.., heads,
 * d). */
typedef struct record {
    kvmem_shape shape;
    loaded l;
    kvmem_session s;      /* of the exact run: keeps shape's arrays */
    int n;
    float *k, *v, *q;
} record;
static record recorded;
static const kvmem_backend *real; /* the path that computes */

static kvmem_status record_encode(kvmem_cache *c, int layer, int n, const float *k,
                                  const float *raw, const float *v) {
    const size_t w = (size_t)c->shape.n_kv_heads * (size_t)c->shape.head_dim;
    const size_t where = ((size_t)layer * (size_t)recorded.n + (size_t)c->tokens) * w;
    memcpy(recorded.k + where, raw, (size_t)n * w * sizeof *k); /* as the model gave them */
    memcpy(recorded.v + where, v, (size_t)n * w * sizeof *v);
    return real->encode(c, layer, n, k, raw, v);
}
static kvmem_status record_attend(kvmem_cache *c, int layer, int n, const float *q, float *o,
                                  float *lse) {
    const size_t w = (size_t)c->shape.n_heads * (size_t)c->shape.head_dim;
    memcpy(recorded.q + ((size_t)layer * (size_t)recorded.n + (size_t)c->tokens) * w, q,
           (size_t)n * w * sizeof *q);
    return real->attend(c, layer, n, q, o, lse);
}
/* FED + SEEN tokens through the model; it stays open for its shape. */
static int record_model(const int *id) {
    kvmem_session_config cfg = kvmem_session_config_default();
    static kvmem_backend watch;
    const kvmem_model *m = &recorded.l.model;
    const size_t n = FED + SEEN,
                 kv = (size_t)m->n_layers * n * (size_t)m->n_kv_heads * (size_t)m->head_dim;
    watch = *real;
    watch.encode = record_encode;
    watch.attend = record_attend;
    recorded.n = FED + SEEN;
    recorded.k = (float *)grow(NULL, kv, sizeof(float));
    recorded.v = (float *)grow(NULL, kv, sizeof(float));
    recorded.q =
        (float *)grow(NULL, kv / (size_t)m->n_kv_heads * (size_t)m->n_heads, sizeof(float));
    cfg.backend = &watch;
    cfg.threads = 1;
    cfg.n_ctx = FED + SEEN;
    if (kvmem_session_init(&recorded.s, m, &cfg) ||
        kvmem_session_feed(&recorded.s, id, FED + SEEN, KVMEM_PROMPT_END, NULL, NULL))
        return fail("%s", recorded.s.error.text);
    recorded.shape = recorded.s.cache.shape;
    return OK;
}
static void record_free(void) {
    kvmem_session_free(&recorded.s);
    free(recorded.k);
    free(recorded.v);
    free(recorded.q);
    unload(&recorded.l);
    memset(&recorded, 0, sizeof recorded);
}
/* Tokens [from, from + n) of the record as one block; out (layers, n, heads, d). */
static int record_block(kvmem_cache *c, int from, int n, kvmem_phase phase, float *to) {
    const size_t G = (size_t)c->shape.n_kv_heads, H = (size_t)c->shape.n_heads,
                 d = (size_t)c->shape.head_dim;
    int l;
    for (l = 0; l < c->shape.n_layers; l++) {
        const size_t where = (size_t)l * (size_t)recorded.n + (size_t)from;
        if (kvmem_cache_append(c, l, n, recorded.k + where * G * d, recorded.v + where * G * d,
                               NULL) ||
            kvmem_cache_attend(c, l, n, recorded.q + where * H * d,
                               to + (size_t)l * (size_t)n * H * d))
            return 1;
    }
    return kvmem_cache_commit(c, phase) != KVMEM_OK;
}
typedef struct exact {
    float *k, *v, *o;
} exact; /* (lanes, FED, d) as read; (layers, SEEN, heads, d) */

/* A lane's rows in the order of their positions: demoted ones stand behind the others. */
static int record_read(kvmem_cache *c, int layer, int head, float *k, float *v) {
    const size_t d = (size_t)c->shape.head_dim;
    float *rows = (float *)grow(NULL, 2 * FED * d, sizeof *rows);
    int32_t pos[FED];
    int i, bad = kvmem_cache_read(c, layer, head, 0, FED, rows, rows + FED * d, pos) != KVMEM_OK;
    for (i = 0; i < FED && !bad; i++) {
        memcpy(k + (size_t)pos[i] * d, rows + (size_t)i * d, d * sizeof *k);
        memcpy(v + (size_t)pos[i] * d, rows + (FED + (size_t)i) * d, d * sizeof *v);
    }
    free(rows);
    return bad;
}
static KVMEM__UNUSED int record_run(const kvmem_recipe *r, kvmem_cache *c, exact *x, char *why, size_t size) {
    kvmem_config cfg = kvmem_config_default();
    const size_t H = (size_t)recorded.shape.n_heads, d = (size_t)recorded.shape.head_dim;
    const int lanes = recorded.shape.n_layers * recorded.shape.n_kv_heads;
    float *o;
    int g, bad;
    cfg.shape = recorded.shape;
    cfg.recipe = r;
    cfg.max_block = FED;
    cfg.threads = 1;
    cfg.backend = real;
    x->k = (float *)grow(NULL, (size_t)lanes * FED * d, sizeof(float));
    x->v = (float *)grow(NULL, (size_t)lanes * FED * d, sizeof(float));
    x->o = (float *)grow(NULL, (size_t)recorded.shape.n_layers * SEEN * H * d, sizeof(float));
    o = (float *)grow(NULL, (size_t)recorded.shape.n_layers * FED * H * d, sizeof(float));
    bad = kvmem_cache_init(c, &cfg) || record_block(c, 0, FED, KVMEM_PROMPT_END, o);
    for (g = 0; g < lanes && !bad; g++) {
        const int layer = g / recorded.shape.n_kv_heads, head = g % recorded.shape.n_kv_heads;
        if (kvmem_cache_lane_len(c, layer, head) == FED) /* else it drops: rows have no match */
            bad =
                record_read(c, layer, head, x->k + (size_t)g * FED * d, x->v + (size_t)g * FED * d);
    }
    free(o);
    if (bad) snprintf(why, size, "%s", c->error.text);
    return bad;
}
static KVMEM__UNUSED void exact_free(exact *x) {
    free(x->k);
    free(x->v);
    free(x->o);
}
static KVMEM__UNUSED double squares(const float *x, const float *y, size_t n) {
    double e = 0, s = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        const double a = (double)x[i], diff = a - (double)y[i];
        e += diff * diff;
        s += a * a;
    }
    return s > 0 ? e / s : -1;
}
/* The model's own corpus, or the file `text` if it is not NULL; words: a tokenizer of its own or
 * NULL. */
static int record_open(const char *model, const char *words, const char *text,
                       const kvmem_backend *b) {
    loaded *l = &recorded.l;
    args a;
    ids list = { NULL, 0, 0 };
    corpus_test t;
    corpus_eval_params p;
    int status;
    memset(&a, 0, sizeof a);
    memset(&t, 0, sizeof t);
    memset(&p, 0, sizeof p);
    real = b;
    a.model = model;
    a.tokenizer = words;
    a.file = text;
    status = load_model(l, &a, text != NULL);
    if (status == OK && text) status = tokenize_args(l->tokenizer, &a, KVMEM_ADD_SPECIAL, &list);
    p.suite = CORPUS_PPL;
    p.ctx = FED + SEEN;
    p.seed = 77;
    if (status == OK && !text && corpus_test_make(&t, &p)) status = fail("no text of the corpus");
    if (status == OK && text && list.n < FED + SEEN) status = fail("%s: too short", text);
    if (status == OK) status = record_model(text ? list.id : t.ids);
    corpus_test_free(&t);
    free(list.id);
    return status;
}
#endif
