/* codec.h - `kvmem codec`: arrays in, arrays out, so that any codec can be checked from outside.

   The rows go through a lane as a model's would: a cache of one layer and one KV head takes them as
   a prompt and codes them when it ends (the last page, too, full or not, unless a residual window
   keeps it). Then the lane is read back, and queries are scored by the function that attention
   uses, on the coded bytes.

   Keys are expected as other tools see them, after RoPE. For a codec that stores keys before RoPE
   they are turned back first, and the decoded rows are turned forward again; queries are after RoPE
   always. So scores = Q Y^T, unless --pre-rope: then X and Y are before RoPE.
   Included by kvmem.c, whose output, options and files it uses. */
#ifndef KVMEM_CODEC_H
#define KVMEM_CODEC_H
#include "arrays.h"

typedef struct codec_run {
    const args *a;
    kvmem_recipe recipe;
    char text[512];          /* of the recipe */
    int is_v, n, d, m;       /* rows, their size, queries */
    float *x, *y, *q, *s;    /* (n, d) (n, d) (m, d) (m, n) */
    float *fed;              /* (n, d) x as the cache takes it: keys before RoPE if it rotates */
    int32_t *pos;            /* (n) */
    kvmem_rope rope;
    float *freq;
    int turns;               /* 1: the cache rotates keys */
    kvmem_backend backend;
    kvmem_cache c;
} codec_run;

/* What the lane holds of K or of V, counted from its pages. */
typedef struct codec_size {
    size_t coded_rows, exact_rows;        /* rows by the codec; rows kept finer (residual, sinks) */
    size_t rows, heads, state, exact; /* their bytes: codes, heads of pages, learned, finer rows */
    size_t total, table;                  /* all of these; constants that lanes share */
} codec_size;

/* SPEC is an entry of the codec stage with more terms, or the text of a recipe. */
static int codec_recipe(codec_run *r) {
    const char *spec = r->a->word[0];
    kvmem_error error;
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(spec, "( \t"), spec);
    if (strcmp(r->a->as, "k") && strcmp(r->a->as, "v"))
        return misuse("--as %s: k or v", r->a->as);
    r->is_v = r->a->as[0] == 'v';
    if (strlen(spec) + 16 > sizeof r->text) return misuse("the codec's text is too long");
    snprintf(r->text, sizeof r->text, "%s%s",
             !find_entry((int)KVMEM_CODEC_K, word) ? "" : r->is_v ? "codec.v=" : "codec.k=", spec);
    r->recipe = kvmem_recipe_default();
    if (kvmem_recipe_parse(&r->recipe, r->text, &error) != KVMEM_OK)
        return misuse("%s: %s", spec, error.text);
    if (r->recipe.amount.kind != KVMEM_ALL)
        return misuse("%s: the recipe leaves rows out; give one with budget=all", spec);
    return OK;
}
static const kvmem_codec *codec_chosen(const codec_run *r) {
    return codec_of(r->recipe.stage[r->is_v ? KVMEM_CODEC_V : KVMEM_CODEC_K].entry);
}

/* ---- the lane */

/* Outputs of attention are not wanted: n^2 products are saved. */
static kvmem_status codec_attend(kvmem_cache *c, int layer, int n, const float *q, float *o,
                                 float *lse) {
    const size_t H = (size_t)c->shape.n_heads, d = (size_t)c->shape.head_dim;
    (void)layer;
    (void)q;
    memset(o, 0, (size_t)n * H * d * sizeof *o);
    if (lse) memset(lse, 0, (size_t)n * H * sizeof *lse);
    return KVMEM_OK;
}
static void codec_turn(const codec_run *r, float *x, const int32_t *pos, int n, int way) {
    array_turn(&r->backend, &r->rope, x, n, 1, r->d, pos, way);
}
static int codec_open(codec_run *r) {
    kvmem_config cfg = kvmem_config_default();
    const kvmem_backend *best;
    double base = r->a->rope_base;
    int status;
    if ((status = find_backend(r->a, &best)) != OK) return status;
    r->backend = *best;
    if (codec_chosen(r)->flags & KVMEM_CODEC_PRE_ROPE && base == 0) base = 10000;
    if (r->a->pre_rope && base == 0) return misuse("--pre-rope needs --rope-base");
    r->turns = base > 0 && !r->is_v;
    r->freq = (float *)grow(NULL, (size_t)r->d, sizeof *r->freq);
    array_rope(&r->rope, r->freq, r->d, base, r->a->neox);
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = r->d;
    cfg.shape.scale = 1;
    cfg.shape.rope = r->turns ? &r->rope : NULL;
    cfg.recipe = &r->recipe;
    cfg.max_block = r->n < 1024 ? r->n : 1024;
    cfg.threads = 1;
    cfg.backend = &r->backend;
    if (kvmem_cache_init(&r->c, &cfg) != KVMEM_OK) return fail("%s", r->c.error.text);
    if (!r->c.reads) r->backend.attend = codec_attend;
    return OK;
}
/* The rows as a prompt, block by block; the other side gets zeros. Attention sees the queries of
   -q, again and again, for codecs that learn from them. */
static int codec_feed(codec_run *r) {
    const size_t d = (size_t)r->d;
    const int block = r->c.max_block;
    float *zero = (float *)grow(NULL, 3 * (size_t)block * d, sizeof *zero), *q, *o;
    int i, k, at, n, status = OK;
    memset(zero, 0, 3 * (size_t)block * d * sizeof *zero);
    q = zero + (size_t)block * d;
    o = q + (size_t)block * d;
    for (at = 0; at < r->n && status == OK; at += n) {
        const float *x = r->fed + (size_t)at * d;
        n = r->n - at < block ? r->n - at : block;
        for (i = 0; i < n && r->m; i++)
            for (k = 0; k < r->d; k++)
                q[(size_t)i * d + (size_t)k] = r->q[(size_t)((at + i) % r->m) * d + (size_t)k];
        if (r->turns) codec_turn(r, q, r->pos + at, n, -1);
        if (kvmem_cache_append(&r->c, 0, n, r->is_v ? zero : x, r->is_v ? x : zero, r->pos + at) ||
            kvmem_cache_attend(&r->c, 0, n, q, o) ||
            kvmem_cache_commit(&r->c, at + n < r->n ? KVMEM_PREFILL : KVMEM_PROMPT_END))
            status = fail("%s", r->c.error.text);
    }
    free(zero);
    /* a lane's newest rows wait until their page is full; without a window to wait in they are
     * coded now */
    if (status == OK && !r->c.lane->use[r->is_v]->residual &&
        kvmem__lane_settle(&r->c, 0, 1) != KVMEM_OK)
        status = fail("%s", r->c.error.text);
    return status;
}
/* Every query against every row, page by page, as attention scores them. */
static int codec_scores(codec_run *r) {
    const kvmem_lane *ln = r->c.lane;
    float *f = (float *)grow(NULL, r->c.worker_bytes + 64, 1), *q;
    const int32_t last = r->pos[r->n - 1];
    kvmem__worker w;
    int i, p;
    q = (float *)grow(NULL, (size_t)r->d, sizeof *q);
    kvmem__worker_init(&w, &r->c, f);
    for (i = 0; i < r->m; i++) {
        memcpy(q, r->q + (size_t)i * (size_t)r->d, (size_t)r->d * sizeof *q);
        if (r->turns) codec_turn(r, q, &last, 1, -1);
        w.kc = NULL;
        for (p = 0; p < ln->n_pages; p++) {
            const int rows = kvmem__page_rows(ln, p);
            const kvmem__side *side = &ln->pages[p]->side[1];
            if (r->is_v) { /* attention has no scores on values: the same steps, on their side */
                const kvmem_coded b = kvmem__side_coded(side);
                kvmem__worker_query(&w, &r->c, 0, q, last, side);
                kvmem__coded_dot(side->use, &b, w.s, r->c.recipe.page, 0, rows, w.qp, 1);
                kvmem__page_amend(&w, &r->c, side, 0, rows);
            } else kvmem__page_logits(&w, &r->c, 0, ln, p, 0, rows, q, r->n - 1, last);
            memcpy(r->s + (size_t)i * (size_t)r->n + kvmem__page_first(ln, p), w.s,
                   (size_t)rows * sizeof *w.s);
        }
    }
    free(q);
    free(f);
    return OK;
}
static codec_size codec_count(const kvmem_cache *c, int lane, int is_v) {
    const kvmem_lane *ln = c->lane + lane;
    codec_size z;
    int p;
    memset(&z, 0, sizeof z);
    for (p = 0; p < ln->n_pages; p++) {
        const kvmem__side *side = &ln->pages[p]->side[is_v];
        const size_t rows = (size_t)kvmem__page_rows(ln, p),
                     all = kvmem__side_bytes(side, (int)rows),
                     kept = (size_t)side->n_exact * kvmem__exact_bytes(side->use);
        if (side->use == c->fresh && side->use != ln->use[is_v]) { /* rows that wait as float16 */
            z.exact_rows += rows;
            z.exact += all;
            continue;
        }
        z.coded_rows += rows - (size_t)side->n_exact;
        z.exact_rows += (size_t)side->n_exact;
        z.exact += kept;
        z.rows += rows * side->use->row_bytes;
        z.heads += all - kept - rows * side->use->row_bytes;
    }
    if (ln->lesson[is_v]) z.state = ln->lesson[is_v]->bytes - sizeof(kvmem_lesson);
    z.table = ln->use[is_v]->table_bytes;
    z.total = z.rows + z.heads + z.state + z.exact;
    return z;
}

/* ---- what is printed */

/* Squares of x - y and of x, and the largest difference. */
static void codec_errors(const codec_run *r, double *error, double *most) {
    const size_t count = (size_t)r->n * (size_t)r->d;
    double e = 0, s = 0;
    size_t i;
    *most = 0;
    for (i = 0; i < count; i++) {
        const double x = (double)r->x[i], diff = x - (double)r->y[i];
        e += diff * diff;
        s += x * x;
        if (fabs(diff) > *most) *most = fabs(diff);
    }
    *error = s > 0 ? e / s : e > 0 ? (double)INFINITY : 0;
}
static void codec_show(const codec_run *r) {
    const codec_size z = codec_count(&r->c, 0, r->is_v);
    const double values = (double)r->n * r->d, bits = 8 * (double)z.total / values;
    double error, most;
    size_t allocated;
    kvmem_bytes b;
    kvmem_cache_bytes(&r->c, &b);
    allocated = r->is_v ? b.live.v : b.live.k;
    codec_errors(r, &error, &most);
    if (r->a->json) {
        json_open(NULL, '{');
        json_text("codec", r->a->word[0]);
        json_text("recipe", recipe_text(&r->recipe));
        json_text("as", r->a->as);
        json_int("rows", r->n);
        json_int("head_dim", r->d);
        json_int("page", r->recipe.page);
        json_int("bytes", (int64_t)z.total);
        json_real("bits_per_value", bits);
        json_real("relative_error", error);
        json_real("max_error", most);
        json_int("code_bytes", (int64_t)z.rows);
        json_int("head_bytes", (int64_t)z.heads);
        json_int("learned_bytes", (int64_t)z.state);
        json_int("exact_rows", (int64_t)z.exact_rows);
        json_int("exact_bytes", (int64_t)z.exact);
        json_int("allocated_bytes", (int64_t)allocated);
        json_int("table_bytes", (int64_t)z.table);
        json_int("queries", r->m);
        json_close();
        return;
    }
    put("recipe          %s\n", recipe_text(&r->recipe));
    put("rows            %d of %d values, as %s, in pages of %d\n", r->n, r->d,
        r->is_v ? "values" : "keys", r->recipe.page);
    put("bytes           %lu: codes %lu, heads of pages %lu, learned %lu, %lu finer rows %lu\n",
        (unsigned long)z.total, (unsigned long)z.rows, (unsigned long)z.heads,
        (unsigned long)z.state, (unsigned long)z.exact_rows, (unsigned long)z.exact);
    put("bits per value  %.6g\n", bits);
    put("relative error  %.6g (squares of x - y over those of x), largest %.6g\n", error, most);
    put("allocated       %lu bytes of whole pages; constants that lanes share: %lu\n",
        (unsigned long)allocated, (unsigned long)z.table);
}
static int codec_do(codec_run *r) {
    const args *a = r->a;
    int status;
    if (!a->query != !a->dots) return misuse("-q and --dots go together");
    if ((status = codec_recipe(r)) != OK) return status;
    if ((status = array_rows("-i", a->input, "-i", &r->n, 0, &r->d, &r->x)) != OK) return status;
    if (a->query && (status = array_rows("-q", a->query, "-i", &r->m, 0, &r->d, &r->q)) != OK) return status;
    if ((status = array_positions(a->positions, r->n, &r->pos)) != OK) return status;
    if ((status = codec_open(r)) != OK) return status;
    r->fed = (float *)grow(NULL, (size_t)r->n * (size_t)r->d, sizeof *r->fed);
    memcpy(r->fed, r->x, (size_t)r->n * (size_t)r->d * sizeof *r->fed);
    if (r->turns && !a->pre_rope) codec_turn(r, r->fed, r->pos, r->n, -1);
    if ((status = codec_feed(r)) != OK) return status;
    r->y = (float *)grow(NULL, (size_t)r->n * (size_t)r->d, sizeof *r->y);
    if (kvmem_cache_lane_len(&r->c, 0, 0) != r->n)
        return fail("the lane holds %d of %d rows", kvmem_cache_lane_len(&r->c, 0, 0), r->n);
    if (kvmem_cache_read(&r->c, 0, 0, 0, r->n, r->is_v ? NULL : r->y, r->is_v ? r->y : NULL, NULL))
        return fail("%s", r->c.error.text);
    if (r->turns && a->pre_rope) codec_turn(r, r->y, r->pos, r->n, -1);
    if (r->m) {
        r->s = (float *)grow(NULL, (size_t)r->m * (size_t)r->n, sizeof *r->s);
        if ((status = codec_scores(r)) != OK) return status;
    }
    codec_show(r);
    if ((status = array_write(a->output, "<f4", r->y, r->n, r->d)) != OK) return status;
    return r->m ? array_write(a->dots, "<f4", r->s, r->m, r->n) : OK;
}
static int cmd_codec(const args *a) {
    codec_run *r = (codec_run *)grow(NULL, 1, sizeof *r);
    int status;
    memset(r, 0, sizeof *r);
    r->a = a;
    status = codec_do(r);
    kvmem_cache_free(&r->c);
    free(r->x);
    free(r->fed);
    free(r->y);
    free(r->q);
    free(r->s);
    free(r->pos);
    free(r->freq);
    free(r);
    return status;
}
#endif
