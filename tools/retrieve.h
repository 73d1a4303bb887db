/* retrieve.h - `kvmem retrieve`: arrays in, arrays out, so that any method that reads a part of what is stored can be
   checked from outside.

   One layer's keys, dumped from any program, go through a cache as a prompt, in --layers layers alike, for methods
   whose first layers read everything or choose for the others; the last one is looked at. Then each query asks once,
   as a token decoded behind them, what the recipe's retrieve entry reads for each head; beside it stand the --top
   entries that the query gives the largest softmax weights, worked out in double precision over all keys:
       recall  of those, how many are read          best   their share of the softmax
       mass    share that all entries read have     error  |o - o_full| / |o_full| of the cache's output, with -v
   Without --prompt-tokens every query asks a copy of the cache as the prompt left it, as the token behind the last
   row; what it appends itself is a row of zeros. With --prompt-tokens P the queries are those of the rows: the first P
   are the prompt, the others are decoded one by one with their own keys and values, so that what a method remembers
   from step to step takes part. Rows are given after RoPE, see score.h.
   Included by kvmem.c, whose output, options and files it uses. */
#ifndef KVMEM_RETRIEVE_H
#define KVMEM_RETRIEVE_H
#include "arrays.h"
#include "reads.h"

typedef struct retrieve_run {
    const args *a;
    kvmem_recipe recipe;
    int n, m, H, G, d, L, prompt, top; /* rows, queries, heads, KV heads, head size, layers; rows of the prompt */
    int shown;                         /* queries so far */
    float *q, *k, *v, *pq;             /* (m, H, d) (n, G, d) (n, G, d); queries of the prompt (n, H, d) */
    float *o, *zero;                   /* (block, H, d) outputs; a row of zeros (G, d) */
    float *s;                          /* (n) surprises, or NULL */
    int32_t *pos;                      /* (n + 1) */
    float *turned;                     /* (n, G, d) keys after RoPE, (m, H, d) queries after it */
    double *p, *full;                  /* (n + 1) weights of a head, (d) its full output */
    unsigned char *is_top;             /* (H, n + 1) */
    double *weight;                    /* (H, n + 1) */
    double sum[5];                     /* recall, mass, best, error, share */
    kvmem_rope rope;
    float *freq;
    const kvmem_backend *backend;
    reads reads;
    kvmem_cache c;
} retrieve_run;

/* SPEC: a preset, a recipe, or a retrieve entry with its brackets and more terms; then the page is its preset's. */
static int retrieve_parse(retrieve_run *r, const char *spec) {
    char text[1024], word[64];
    kvmem_error error;
    kvmem_recipe preset;
    size_t n = strcspn(spec, "( \t");
    r->recipe = kvmem_recipe_default();
    if (kvmem_recipe_parse(&r->recipe, spec, &error) == KVMEM_OK) return OK;
    if (strstr(spec, "retrieve=") || snprintf(text, sizeof text, "retrieve=%s", spec) >= (int)sizeof text)
        return misuse("%s: %s", spec, error.text);
    r->recipe = kvmem_recipe_default();
    if (kvmem_recipe_parse(&r->recipe, text, &error) != KVMEM_OK) return misuse("%s: %s", spec, error.text);
    if (n < sizeof word && !strstr(spec, "page=")) {
        memcpy(word, spec, n);
        word[n] = 0;
        if (kvmem_recipe_parse(&preset, word, NULL) == KVMEM_OK) r->recipe.page = preset.page;
    }
    return OK;
}
/* For recipes whose segment stage reads them. */
static int retrieve_surprise(retrieve_run *r) {
    const char *path = r->a->surprise;
    file f;
    npy x;
    int i, status = OK;
    if (!path)
        return (r->recipe.stage[KVMEM_SEGMENT].entry->reads & KVMEM_READS_SURPRISE)
                   ? misuse("%s reads surprises: give --surprise", recipe_text(&r->recipe)) : OK;
    if (array_open("--surprise", path, &f, &x)) return FAILED;
    r->s = (float *)grow(NULL, (size_t)r->n, sizeof *r->s);
    if (x.count != (size_t)r->n)
        status = fail("--surprise %s: %lu numbers for %d rows", path, (unsigned long)x.count, r->n);
    for (i = 0; i < r->n && status == OK; i++) r->s[i] = (float)npy_at(&x, (size_t)i);
    file_close(&f);
    return status;
}
static int retrieve_open(retrieve_run *r) {
    kvmem_config cfg = kvmem_config_default();
    const double base = r->a->rope_base > 0 ? r->a->rope_base : 10000;
    int i, status;
    kvmem_rope *ropes = NULL;
    if ((status = find_backend(r->a, &r->backend)) != OK) return status;
    cfg.shape.n_layers = r->L;
    cfg.shape.n_heads = r->H;
    cfg.shape.n_kv_heads = r->G;
    cfg.shape.head_dim = r->d;
    if (r->a->rope) {
        r->freq = (float *)grow(NULL, (size_t)r->d, sizeof *r->freq);
        ropes = (kvmem_rope *)grow(NULL, (size_t)r->L, sizeof *ropes);
        array_rope(&r->rope, r->freq, r->d, base, !strcmp(r->a->rope, "neox"));
        for (i = 0; i < r->L; i++) ropes[i] = r->rope;
        cfg.shape.rope = ropes;
    }
    if (!reads_around(&r->reads, &r->recipe, r->L - 1, r->H)) {
        free(ropes);
        return misuse("%s: retrieve=%s reads everything: name an entry that chooses", r->a->word[0],
                      r->recipe.stage[KVMEM_RETRIEVE].entry->word);
    }
    cfg.recipe = &r->recipe;
    cfg.max_block = r->prompt < 512 ? r->prompt : 512;
    cfg.threads = (int)r->a->threads;
    cfg.backend = r->backend;
    status = kvmem_cache_init(&r->c, &cfg) == KVMEM_OK ? OK : fail("%s", r->c.error.text);
    free(ropes);
    return status;
}
/* n tokens, the same in all layers; o is the last layer's output. s: their surprises, or NULL. */
static int retrieve_block(retrieve_run *r, kvmem_cache *c, int n, const float *q, const float *k, const float *v,
                          const float *s, const int32_t *pos, kvmem_phase phase) {
    kvmem_status st = KVMEM_OK;
    int l;
    for (l = 0; l < r->L && st == KVMEM_OK; l++) {
        st = kvmem_cache_append(c, l, n, k, v, pos);
        if (st == KVMEM_OK && (c->reads & KVMEM_READS_HIDDEN)) st = kvmem_cache_hidden(c, l, n, q, r->H * r->d);
        if (st == KVMEM_OK) st = kvmem_cache_attend(c, l, n, q, r->o);
    }
    if (st == KVMEM_OK && s) st = kvmem_cache_surprise(c, n, s);
    if (st == KVMEM_OK) st = kvmem_cache_commit(c, phase);
    return st == KVMEM_OK ? OK : fail("%s", c->error.text);
}
static int retrieve_prompt(retrieve_run *r) {
    const size_t G = (size_t)(r->G * r->d), H = (size_t)(r->H * r->d);
    int at, n, status = OK;
    for (at = 0; at < r->prompt && status == OK; at += n) {
        n = r->prompt - at < r->c.max_block ? r->prompt - at : r->c.max_block;
        status = retrieve_block(r, &r->c, n, r->pq + (size_t)at * H, r->k + (size_t)at * G, r->v + (size_t)at * G,
                                r->s ? r->s + at : NULL, r->pos + at,
                                at + n < r->prompt ? KVMEM_PREFILL : KVMEM_PROMPT_END);
    }
    return status;
}
/* Exact softmax of query i's head h over the first `there` rows, and behind them one of zeros if `own`; *norm of its
   output, *error of the cache's. */
static void retrieve_exact(retrieve_run *r, int i, int h, int there, int own, double *p, double *error) {
    const int d = r->d, g = h / (r->H / r->G);
    const float *q = r->turned + ((size_t)r->n * (size_t)r->G + (size_t)i * (size_t)r->H + (size_t)h) * (size_t)d;
    double top = own ? 0 : -HUGE_VAL, sum = 0, off = 0, all = 0;
    int t, c;
    for (t = 0; t < there; t++) {
        const float *k = r->turned + ((size_t)t * (size_t)r->G + (size_t)g) * (size_t)d;
        for (p[t] = 0, c = 0; c < d; c++) p[t] += (double)q[c] * (double)k[c];
        p[t] /= sqrt((double)d);
        if (p[t] > top) top = p[t];
    }
    for (t = 0; t < there; t++) sum += p[t] = exp(p[t] - top);
    if (own) sum += exp(-top);
    for (t = 0; t < there; t++) p[t] /= sum;
    for (c = 0; c < d; c++) {
        double full = 0, e;
        for (t = 0; t < there; t++)
            full += p[t] * (double)r->v[((size_t)t * (size_t)r->G + (size_t)g) * (size_t)d + (size_t)c];
        e = (double)r->o[h * d + c] - full;
        off += e * e;
        all += full * full;
    }
    *error = all > 0 ? sqrt(off / all) : 0;
}
static void retrieve_list(const char *name, const unsigned char *in, int n, int most, const double *p) {
    int t, m = 0, all = 0;
    for (t = 0; t < n; t++) all += in[t] != 0;
    if (js.depth) {
        json_open(name, '[');
        for (t = 0; t < n; t++) if (in[t]) json_int(NULL, t);
        json_close();
        return;
    }
    put("    %-5s", name);
    for (t = 0; t < n && m < most; t++)
        if (in[t]) { put(p ? " %d:%.3f" : " %d", t, p ? p[t] : 0.0); m++; }
    put(all > m ? " ... (%d)\n" : "\n", all);
}
/* Query i has asked with `there` rows behind it. */
static void retrieve_show(retrieve_run *r, int i, int there, int own) {
    const size_t cap = (size_t)r->n + 1;
    double sum[5] = { 0, 0, 0, 0, 0 };
    reads_score *of = (reads_score *)grow(NULL, (size_t)r->H, sizeof *of);
    int h, x;
    for (h = 0; h < r->H; h++) {
        double error;
        retrieve_exact(r, i, h, there, own, r->weight + (size_t)h * cap, &error);
        of[h] = reads_rate(r->weight + (size_t)h * cap, r->reads.in + (size_t)h * (size_t)r->reads.cap, there, r->top,
                           r->is_top + (size_t)h * cap);
        sum[0] += of[h].recall / r->H;
        sum[1] += of[h].mass / r->H;
        sum[2] += of[h].best / r->H;
        sum[3] += error / r->H;
        sum[4] += of[h].share / r->H;
    }
    for (x = 0; x < 5; x++) r->sum[x] += sum[x];
    if (r->a->json) {
        json_open(NULL, '{');
        json_int("row", there);
    } else put("query %d: recall %.3f, mass %.4f (top %d: %.4f), read %.2f %%", i, sum[0], sum[1], r->top, sum[2],
               100 * sum[4]);
    if (r->a->json) {
        json_real("recall", sum[0]);
        json_real("mass", sum[1]);
        json_real("best", sum[2]);
        if (r->a->values) json_real("error", sum[3]);
        json_real("read", sum[4]);
        json_int("stand_ins", r->reads.stands);
        json_open("heads", '[');
    } else put(r->a->values ? ", error %.4f\n" : "\n", sum[3]);
    for (h = 0; h < r->H && (r->a->json || !r->shown || r->a->all); h++) {
        const unsigned char *in = r->reads.in + (size_t)h * (size_t)r->reads.cap;
        if (r->a->json) {
            json_open(NULL, '{');
            json_real("recall", of[h].recall);
            json_real("mass", of[h].mass);
        } else
            put("  head %d reads %d of %d, recall %.3f, mass %.4f\n", h, of[h].read, there, of[h].recall, of[h].mass);
        retrieve_list(r->a->json ? "entries" : "reads", in, there, 24, NULL);
        retrieve_list("top", r->is_top + (size_t)h * cap, there, 24, r->weight + (size_t)h * cap);
        if (r->a->json) json_close();
    }
    if (r->a->json) { json_close(); json_close(); }
    r->shown++;
    free(of);
}
static int retrieve_ask(retrieve_run *r) {
    const size_t G = (size_t)(r->G * r->d), H = (size_t)(r->H * r->d);
    int i, status = OK;
    for (i = 0; i < r->m && status == OK; i++) {
        if (r->prompt < r->n) {
            const int at = r->prompt + i;
            if (at >= r->n) break;
            status = retrieve_block(r, &r->c, 1, r->pq + (size_t)at * H, r->k + (size_t)at * G, r->v + (size_t)at * G,
                                    r->s ? r->s + at : NULL, r->pos + at, KVMEM_DECODE);
            if (status == OK) retrieve_show(r, at, at + 1, 0);
        } else {
            kvmem_cache copy;
            if (kvmem_cache_copy(&copy, &r->c) != KVMEM_OK) return fail("%s", copy.error.text);
            status = retrieve_block(r, &copy, 1, r->q + (size_t)i * H, r->zero, r->zero, NULL, r->pos + r->n,
                                    KVMEM_DECODE);
            if (status == OK) retrieve_show(r, i, r->n, 1);
            kvmem_cache_free(&copy);
        }
    }
    return status;
}
static int retrieve_load(retrieve_run *r) {
    const args *a = r->a;
    int status;
    if ((status = array_rows("-k", a->keys, "-k", &r->n, r->G, &r->d, &r->k)) != OK) return status;
    if (a->values && (status = array_rows("-v", a->values, "-k", &r->n, r->G, &r->d, &r->v)) != OK) return status;
    if ((status = array_rows("-q", a->query, "-k", &r->m, r->H, &r->d, &r->q)) != OK) return status;
    if (a->input && (status = array_rows("--prompt-queries", a->input, "-k", &r->n, r->H, &r->d, &r->pq)) != OK)
        return status;
    if (a->first > 0 && (r->m != r->n || a->input || a->first >= r->n))
        return misuse("--prompt-tokens %d: -q has %d rows and -k %d; it must be below both, which are the same tokens, "
                      "without --prompt-queries", (int)a->first, r->m, r->n);
    if ((status = array_positions(a->positions, r->n, &r->pos)) != OK) return status;
    if ((status = retrieve_surprise(r)) != OK) return status;
    r->pos = (int32_t *)grow(r->pos, (size_t)r->n + 1, sizeof *r->pos);
    r->pos[r->n] = r->pos[r->n - 1] + 1;
    r->prompt = a->first > 0 ? (int)a->first : r->n;
    if (!r->v) r->v = (float *)calloc((size_t)r->n * (size_t)(r->G * r->d), sizeof *r->v);
    r->zero = (float *)calloc((size_t)(r->H * r->d), sizeof *r->zero);
    r->turned = (float *)grow(NULL, ((size_t)r->n * (size_t)r->G + (size_t)r->m * (size_t)r->H) * (size_t)r->d,
                              sizeof *r->turned);
    if (!r->v || !r->zero) return fail("no memory for %d rows", r->n);
    return OK;
}
/* Rows before RoPE for the cache, after it for the softmax beside it. */
static int retrieve_turn(retrieve_run *r) {
    const size_t nk = (size_t)r->n * (size_t)(r->G * r->d), nq = (size_t)r->m * (size_t)(r->H * r->d);
    const size_t n = (size_t)r->n * (size_t)(r->H * r->d);
    int32_t *at = (int32_t *)grow(NULL, (size_t)r->m, sizeof *at);
    int i;
    for (i = 0; i < r->m; i++) at[i] = r->prompt < r->n ? r->pos[i] : r->pos[r->n];
    memcpy(r->turned, r->k, nk * sizeof *r->k);
    memcpy(r->turned + nk, r->q, nq * sizeof *r->q);
    if (r->a->rope && r->a->pre_rope) {
        array_turn(r->backend, &r->rope, r->turned, r->n, r->G, r->d, r->pos, 1);
        array_turn(r->backend, &r->rope, r->turned + nk, r->m, r->H, r->d, at, 1);
    } else if (r->a->rope) {
        array_turn(r->backend, &r->rope, r->k, r->n, r->G, r->d, r->pos, -1);
        array_turn(r->backend, &r->rope, r->q, r->m, r->H, r->d, at, -1);
        if (r->pq) array_turn(r->backend, &r->rope, r->pq, r->n, r->H, r->d, r->pos, -1);
    }
    free(at);
    if (!r->pq) {
        r->pq = (float *)calloc(n, sizeof *r->pq);
        if (!r->pq) return fail("no memory for %d rows", r->n);
        if (r->prompt < r->n) memcpy(r->pq, r->q, n * sizeof *r->pq);
    }
    return OK;
}
static int retrieve_do(retrieve_run *r) {
    const args *a = r->a;
    const char *const name[5] = { "recall", "mass", "best", "error", "read" };
    int status, x, asked;
    r->H = (int)a->heads;
    r->G = (int)a->kv_heads;
    r->d = (int)a->head_dim;
    r->L = (int)a->layers;
    r->top = (int)a->top_k;
    if (r->H < 1 || r->G < 1 || r->H % r->G) return misuse("--heads %d is no multiple of --kv-heads %d", r->H, r->G);
    if (a->rope && strcmp(a->rope, "norm") && strcmp(a->rope, "neox"))
        return misuse("--rope %s: norm or neox", a->rope);
    if ((a->pre_rope || a->rope_base > 0) && !a->rope)
        return misuse("%s needs --rope norm or --rope neox", a->pre_rope ? "--pre-rope" : "--rope-base");
    if ((status = retrieve_parse(r, a->word[0])) != OK || (status = retrieve_load(r)) != OK) return status;
    if ((status = retrieve_open(r)) != OK || (status = retrieve_turn(r)) != OK) return status;
    r->o = (float *)grow(NULL, (size_t)r->c.max_block * (size_t)(r->H * r->d), sizeof *r->o);
    r->weight = (double *)grow(NULL, (size_t)r->H * ((size_t)r->n + 1), sizeof *r->weight);
    r->is_top = (unsigned char *)grow(NULL, (size_t)r->H * ((size_t)r->n + 1), 1);
    if (a->json) {
        json_open(NULL, '{');
        json_text("recipe", recipe_text(&r->recipe));
        json_int("rows", r->n);
        json_int("heads", r->H);
        json_int("kv_heads", r->G);
        json_int("head_dim", r->d);
        json_int("layers", r->L);
        json_int("top", r->top);
        json_open("queries", '[');
    } else put("recipe  %s\n", recipe_text(&r->recipe));
    if ((status = retrieve_prompt(r)) != OK || (status = retrieve_ask(r)) != OK) return status;
    asked = r->prompt < r->n ? r->n - r->prompt : r->m;
    if (a->json) json_close();
    else put("mean of %d:", asked);
    if (a->json) json_open("mean", '{');
    for (x = 0; x < 5; x++) {
        if (x == 3 && !a->values) continue;
        if (a->json) json_real(name[x], r->sum[x] / asked);
        else put(" %s %.4f", name[x], r->sum[x] / asked);
    }
    if (a->json) { json_close(); json_close(); }
    else put("\n");
    return OK;
}
static int cmd_retrieve(const args *a) {
    retrieve_run *r = (retrieve_run *)grow(NULL, 1, sizeof *r);
    int status;
    memset(r, 0, sizeof *r);
    r->a = a;
    status = retrieve_do(r);
    kvmem_cache_free(&r->c);
    reads_free(&r->reads);
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->pq);
    free(r->o);
    free(r->s);
    free(r->zero);
    free(r->pos);
    free(r->turned);
    free(r->is_top);
    free(r->weight);
    free(r->freq);
    free(r);
    return status;
}
#endif
