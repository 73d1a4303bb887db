/* score.h - `kvmem score`: arrays in, arrays out, so that any method that keeps fewer entries can be checked
   from outside.

   One layer's queries, keys and values, dumped from any program, go through a cache of one layer as a prompt (and,
   behind --prompt-tokens, as decoded tokens one by one). Without --kept the score stage is asked when all have
   attended, before anything is reduced: scores (G, n). With --kept the last block is committed like any other, so
   score, budget, select and reduce all act: the indices of the rows that are left, (G, most), -1 behind the end.

   With --probe the last rows of every file are probe tokens: they attend on top of the finished prompt, and what
   they look at is what the score reads (kvmem_cache_probe). --probe-from and --probe-to name the entries that are
   asked; then the softmax is over these, the recipe's sinks and the probe tokens, as for one piece of kvzip.

   Rows are expected as other tools see them, after RoPE. With --rope they are turned back and the cache turns them
   forward again, so that methods which read rows before RoPE, or place kept keys elsewhere, have what they need;
   without --rope they are stored and read as they come. With --pre-rope they are not turned back.
   Included by kvmem.c, whose output, options and files it uses. */
#ifndef KVMEM_SCORE_H
#define KVMEM_SCORE_H
#include "arrays.h"

typedef struct score_run {
    const args *a;
    kvmem_recipe recipe;
    int n, H, G, d, width;   /* rows, heads, KV heads, head size, size of hidden states */
    int probe;               /* rows behind these n that are probe tokens */
    float *q, *k, *v, *x;    /* (n, H, d) (n, G, d) (n, G, d) (n, width), NULL: not given */
    float *wo;               /* (wide, H * d) the output projection, NULL: not given */
    int wide;
    float *o;                /* (block, H, d) outputs that nobody wants */
    int32_t *pos;            /* (n) */
    float *score;            /* (G, n) */
    int32_t *kept;           /* (G, n) */
    kvmem_rope rope;
    float *freq;
    const kvmem_backend *backend;
    kvmem_cache c;
} score_run;

/* What the recipe reads and the files do not have. */
static int score_lacks(const score_run *r) {
    const unsigned seen = KVMEM_READS_QUERIES | KVMEM_READS_ACC | KVMEM_READS_LAST;
    unsigned reads = 0;
    int s, watches = 0;
    for (s = 0; s < KVMEM_N_STAGES; s++) reads |= r->recipe.stage[s].entry->reads;
    for (s = 0; s < 2; s++) {
        const kvmem_memory *m = kvmem__memory_of(&r->recipe, s ? KVMEM_SELECT : KVMEM_SCORE);
        watches |= m && m->watch;
    }
    if (((reads & seen) || watches) && !r->q) return misuse("%s reads queries: give -q", r->a->kv);
    if ((reads & KVMEM_READS_VALUES) && !r->v) return misuse("%s reads values: give -v", r->a->kv);
    if ((reads & KVMEM_READS_HIDDEN) && !r->x) return misuse("%s reads hidden states: give --hidden", r->a->kv);
    if ((reads & KVMEM_READS_OUTPUT) && !r->wo)
        return misuse("%s reads the output projection: give --output-weights", r->a->kv);
    if ((reads & KVMEM_READS_PROBE) && (!r->probe || !r->q))
        return misuse("%s reads what probe tokens look at: give -q, and their rows as the last N: --probe N", r->a->kv);
    if (r->probe && !(reads & KVMEM_READS_PROBE)) return misuse("%s sends no probe tokens: leave --probe", r->a->kv);
    return OK;
}
/* kvmem_output_fn: norms of W_O^h x, sums in double. */
static kvmem_status score_output(void *user, int layer, int h, int n, const float *x, float *l1, float *l2) {
    const score_run *r = (const score_run *)user;
    int t, e, i;
    (void)layer;
    for (t = 0; t < n; t++) {
        double one = 0, two = 0;
        for (e = 0; e < r->wide; e++) {
            const float *row = r->wo + (size_t)e * (size_t)(r->H * r->d) + (size_t)(h * r->d);
            double y = 0;
            for (i = 0; i < r->d; i++) y += (double)row[i] * (double)x[(size_t)t * (size_t)r->d + (size_t)i];
            one += fabs(y);
            two += y * y;
        }
        if (l1) l1[t] = (float)one;
        if (l2) l2[t] = (float)sqrt(two);
    }
    return KVMEM_OK;
}
static int score_open(score_run *r) {
    kvmem_config cfg = kvmem_config_default();
    const double base = r->a->rope_base > 0 ? r->a->rope_base : 10000;
    int status;
    if ((status = find_backend(r->a, &r->backend)) != OK) return status;
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = r->H;
    cfg.shape.n_kv_heads = r->G;
    cfg.shape.head_dim = r->d;
    if (r->a->rope) {
        r->freq = (float *)grow(NULL, (size_t)r->d, sizeof *r->freq);
        array_rope(&r->rope, r->freq, r->d, base, !strcmp(r->a->rope, "neox"));
        cfg.shape.rope = &r->rope;
    }
    cfg.recipe = &r->recipe;
    cfg.max_block = r->n < 65536 ? r->n : 65536;
    if (r->a->block > 0 && r->a->block < cfg.max_block) cfg.max_block = (int)r->a->block;
    cfg.threads = (int)r->a->threads;
    cfg.backend = r->backend;
    if (kvmem_cache_init(&r->c, &cfg) != KVMEM_OK) return fail("%s", r->c.error.text);
    if (r->wo) kvmem_cache_output(&r->c, score_output, r);
    return OK;
}
/* The scores of the rows that are there now; those that are gone score -inf. */
static kvmem_status score_ask(score_run *r, kvmem_phase phase) {
    const size_t un = (size_t)r->n;
    float *s = (float *)grow(NULL, un, sizeof *s);
    int32_t *pos = (int32_t *)grow(NULL, un, sizeof *pos);
    kvmem_status st;
    int g, t, i;
    r->c.phase = (int)phase;
    st = kvmem__update_layer(&r->c, 0);
    for (g = 0; g < r->G && st == KVMEM_OK; g++) {
        const int n = kvmem_cache_lane_len(&r->c, 0, g);
        float *row = r->score + (size_t)g * un;
        st = kvmem_cache_read(&r->c, 0, g, 0, n, NULL, NULL, pos);
        if (st == KVMEM_OK && n > 0) st = kvmem__score_lane(&r->c, 0, g, s);
        for (t = i = 0; i < r->n; i++) {
            row[i] = -INFINITY;
            if (t < n && pos[t] == r->pos[i]) row[i] = s[t++];
        }
    }
    free(s);
    free(pos);
    return st;
}
/* The probe tokens on top of the prompt. */
static kvmem_status score_probe(score_run *r) {
    const size_t G = (size_t)(r->G * r->d), H = (size_t)(r->H * r->d);
    const kvmem_choice *ch = &r->recipe.stage[KVMEM_SCORE];
    kvmem_probe o;
    kvmem_cache p;
    kvmem_status st;
    int at, n;
    memset(&o, 0, sizeof o);
    o.max = kvmem__param_of(ch->entry, ch->par, "take", 0) > 0;
    o.hidden = kvmem__param_of(ch->entry, ch->par, "plus", 0) > 0;
    o.sink = r->recipe.sink;
    o.from = (int32_t)r->a->probe_from;
    o.to = (int32_t)r->a->probe_to;
    KVMEM__TRY(kvmem_cache_probe(&p, &r->c, &o));
    for (at = r->n, st = KVMEM_OK; at < r->n + r->probe && st == KVMEM_OK; at += n) {
        const size_t t = (size_t)at;
        n = r->n + r->probe - at;
        if (n > r->c.max_block) n = r->c.max_block;
        st = kvmem_cache_append(&p, 0, n, r->k + t * G, r->v + t * G, r->pos + at);
        if (st == KVMEM_OK && r->x) st = kvmem_cache_hidden(&p, 0, n, r->x + t * (size_t)r->width, r->width);
        if (st == KVMEM_OK) st = kvmem_cache_attend(&p, 0, n, r->q + t * H, r->o);
        if (st == KVMEM_OK) st = kvmem_cache_commit(&p, KVMEM_DECODE);
    }
    if (st != KVMEM_OK) r->c.error = p.error;
    kvmem_cache_free(&p);
    return st;
}
/* One block of n rows from `at` on; when it is the last one and scores are wanted, it stays uncommitted. */
static kvmem_status score_block(score_run *r, int at, int n, kvmem_phase phase) {
    const size_t G = (size_t)(r->G * r->d), H = (size_t)(r->H * r->d), t = (size_t)at;
    kvmem_cache *c = &r->c;
    KVMEM__TRY(kvmem_cache_append(c, 0, n, r->k + t * G, r->v + t * G, r->pos + at));
    if (r->x) KVMEM__TRY(kvmem_cache_hidden(c, 0, n, r->x + t * (size_t)r->width, r->width));
    KVMEM__TRY(kvmem_cache_attend(c, 0, n, r->q + t * H, r->o));
    if (!r->a->kept && at + n == r->n && !r->probe) return score_ask(r, phase);
    KVMEM__TRY(kvmem_cache_commit(c, phase));
    if (r->probe && at + n == r->n && !r->a->kept) c->awaits = 1; /* also where the budget covers all */
    if (!c->awaits) return KVMEM_OK;
    KVMEM__TRY(score_probe(r));
    return r->a->kept ? kvmem_cache_reduce(c) : score_ask(r, phase);
}
static int score_feed(score_run *r) {
    const int prompt = r->a->first > 0 && r->a->first < r->n ? (int)r->a->first : r->n;
    const int asked = r->a->question >= 0 && r->a->question < prompt ? (int)r->a->question : prompt;
    int at, n;
    for (at = 0; at < r->n; at += n) {
        const int end = at < asked ? asked : at < prompt ? prompt : at + 1, room = kvmem_cache_room(&r->c);
        if (at == asked && at < prompt && kvmem_cache_mark(&r->c, KVMEM_MARK_QUESTION) != KVMEM_OK) break;
        n = end - at < room ? end - at : room;
        if (n < 1) return fail("row %d does not fit under the limit of bytes", at);
        if (score_block(r, at, n, at >= prompt ? KVMEM_DECODE : at + n < prompt ? KVMEM_PREFILL : KVMEM_PROMPT_END))
            break;
    }
    return at < r->n ? fail("%s", r->c.error.text) : OK;
}
/* kept (G, *most): the rows that are left, as indices. What reduce=demote keeps in fewer bits is not among them. */
static int score_kept(score_run *r, int *most) {
    int32_t *pos = (int32_t *)grow(NULL, (size_t)r->n, sizeof *pos);
    int g, i, t, status = OK;
    *most = 1;
    for (g = 0; g < r->G; g++) {
        const int n = r->c.lane[g].n;
        if (n > *most) *most = n;
    }
    for (g = 0; g < r->G && status == OK; g++) {
        const int all = kvmem_cache_lane_len(&r->c, 0, g), n = r->c.lane[g].n;
        int32_t *to = r->kept + (size_t)g * (size_t)*most;
        if (kvmem_cache_read(&r->c, 0, g, all - n, n, NULL, NULL, pos)) status = fail("%s", r->c.error.text);
        for (t = i = 0; status == OK && t < n; t++) {
            while (r->pos[i] != pos[t]) i++;
            to[t] = i;
        }
        for (; t < *most; t++) to[t] = -1;
    }
    free(pos);
    return status;
}
/* The five best, so that a look at the terminal tells something. */
static void score_best(const float *s, int n) {
    int last = -1, i, t;
    for (i = 0; i < 5 && i < n; i++) {
        int best = -1;
        for (t = 0; t < n; t++) {
            if (last >= 0 && (s[t] > s[last] || (s[t] == s[last] && t <= last))) continue;
            if (best < 0 || s[t] > s[best]) best = t;
        }
        if (best < 0) break;
        put(" %d:%.6g", best, (double)s[best]);
        last = best;
    }
    put("\n");
}
static void score_show(const score_run *r, int cols) {
    int g;
    if (r->a->json) {
        json_open(NULL, '{');
        json_text("recipe", recipe_text(&r->recipe));
        json_int("rows", r->n);
        json_int("heads", r->H);
        json_int("kv_heads", r->G);
        json_int("head_dim", r->d);
        json_text("output", r->a->kept ? "kept" : "scores");
        json_int("columns", cols);
        json_open("lanes", '[');
        for (g = 0; g < r->G; g++) json_int(NULL, r->a->kept ? r->c.lane[g].n : r->n);
        json_close();
        json_close();
        return;
    }
    put("recipe  %s\n", recipe_text(&r->recipe));
    for (g = 0; g < r->G; g++) {
        if (r->a->kept) {
            put("KV head %d keeps %d of %d rows\n", g, r->c.lane[g].n, r->n);
            continue;
        }
        put("KV head %d  best", g);
        score_best(r->score + (size_t)g * (size_t)r->n, r->n);
    }
}
static int score_do(score_run *r) {
    const args *a = r->a;
    kvmem_error error;
    int status, cols;
    r->H = (int)a->heads;
    r->G = (int)a->kv_heads;
    r->d = (int)a->head_dim;
    if (!a->kv) return misuse("--kv RECIPE is needed: whose score stage is asked");
    if (r->H < 1 || r->G < 1 || r->H % r->G) return misuse("--heads %d is no multiple of --kv-heads %d", r->H, r->G);
    if (a->rope && strcmp(a->rope, "norm") && strcmp(a->rope, "neox"))
        return misuse("--rope %s: norm or neox", a->rope);
    if ((a->pre_rope || a->rope_base > 0) && !a->rope)
        return misuse("%s needs --rope norm or --rope neox", a->pre_rope ? "--pre-rope" : "--rope-base");
    r->recipe = kvmem_recipe_default();
    if (kvmem_recipe_parse(&r->recipe, a->kv, &error) != KVMEM_OK) return misuse("%s: %s", a->kv, error.text);
    if ((status = array_rows("-k", a->keys, "-k", &r->n, r->G, &r->d, &r->k)) != OK) return status;
    if (a->values && (status = array_rows("-v", a->values, "-k", &r->n, r->G, &r->d, &r->v)) != OK) return status;
    if (a->query && (status = array_rows("-q", a->query, "-k", &r->n, r->H, &r->d, &r->q)) != OK) return status;
    if (a->hidden_rows &&
        (status = array_rows("--hidden", a->hidden_rows, "-k", &r->n, 0, &r->width, &r->x)) != OK)
        return status;
    cols = r->H * r->d;
    if (a->projection &&
        (status = array_rows("--output-weights", a->projection, "-q", &r->wide, 0, &cols, &r->wo)) != OK)
        return status;
    r->probe = (int)a->probe;
    if (r->probe >= r->n) return misuse("--probe %d: -k has %d rows in all", r->probe, r->n);
    if ((status = array_positions(a->positions, r->n, &r->pos)) != OK || (status = score_lacks(r)) != OK) return status;
    if (r->probe && !a->kept && a->first > 0)
        return misuse("--probe: scores are asked at the end of the prompt; for --prompt-tokens give --kept");
    if ((status = score_open(r)) != OK) return status;
    if (a->rope && !a->pre_rope) {
        array_turn(r->backend, &r->rope, r->k, r->n, r->G, r->d, r->pos, -1);
        if (r->q) array_turn(r->backend, &r->rope, r->q, r->n, r->H, r->d, r->pos, -1);
    }
    r->o = (float *)grow(NULL, (size_t)r->c.max_block * (size_t)(r->H * r->d), sizeof *r->o);
    if (!r->v) r->v = (float *)calloc((size_t)r->n * (size_t)(r->G * r->d), sizeof *r->v);
    if (!r->q) r->q = (float *)calloc((size_t)r->n * (size_t)(r->H * r->d), sizeof *r->q);
    if (!r->v || !r->q) return fail("no memory for %d rows", r->n);
    r->n -= r->probe;
    r->score = (float *)grow(NULL, (size_t)r->n * (size_t)r->G, sizeof *r->score);
    r->kept = (int32_t *)grow(NULL, (size_t)r->n * (size_t)r->G, sizeof *r->kept);
    if ((status = score_feed(r)) != OK) return status;
    cols = r->n;
    if (a->kept && (status = score_kept(r, &cols)) != OK) return status;
    score_show(r, cols);
    return a->kept ? array_write(a->output, "<i4", r->kept, r->G, cols)
                   : array_write(a->output, "<f4", r->score, r->G, cols);
}
static int cmd_score(const args *a) {
    score_run *r = (score_run *)grow(NULL, 1, sizeof *r);
    int status;
    memset(r, 0, sizeof *r);
    r->a = a;
    status = score_do(r);
    kvmem_cache_free(&r->c);
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->x);
    free(r->wo);
    free(r->o);
    free(r->pos);
    free(r->score);
    free(r->kept);
    free(r->freq);
    free(r);
    return status;
}
#endif
