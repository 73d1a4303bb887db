/* segment.h - `kvmem segment`: where a stream breaks into events, and how good the places are.

   A stream is one of: arrays from any program (keys, vectors, queries, surprises, token ids); a text read by a model;
   a conversation of kvmem's own language (corpus.h), whose turns and topics are known. It goes through a real cache
   whose segment stage is SPEC, block by block, as in a session; the starts that the stage marks are printed.

   Judged are the starts behind the first. Against true ones: precision, recall and their harmonic mean F1, each true
   start being hit by at most one found within +-t tokens. Against the keys (before RoPE, A_ij = k_i . k_j summed over
   layers and KV heads), as EM-LLM reports its events:
       ratio        mean A_ij inside events / mean A_ij across
       modularity   sum over events of W/S - (vol/S)^2,  S = sum of A, W inside the event, vol its rows
       conductance  mean over events of (vol - W) / min(vol, S - vol)
   all by sums of keys, O(n d). Beside them as many cuts at equal distances, and as many at random places (the mean of
   --draws draws). Included by kvmem.c, whose output, options and files it uses. */
#ifndef KVMEM_SEGMENT_H
#define KVMEM_SEGMENT_H
#include "arrays.h"

/* What is known of one kind of cuts, summed over streams and draws. */
typedef struct segment_sum { double runs, events, found, truth, hits, ratio, modularity, conductance; } segment_sum;
typedef struct segment_run {
    const args *a;
    kvmem_recipe recipe;       /* of the SPEC that runs */
    char text[512];
    int n, H, G, d;            /* tokens; query heads, KV heads, head size of arrays */
    float *k, *q, *s;          /* (n, G, d) (n, H, d) (n): of arrays, or NULL; s: surprises, also of a model */
    int *id;                   /* (n) or NULL */
    unsigned char *turn, *truth; /* (n) 1: a turn, a true start begins here; or NULL */
    int width;
    float *rows;               /* (n, width) keys before RoPE of the layers that judge; or NULL */
    int *start, m;             /* what was found */
    kvmem_rope rope;
    float *freq;
    kvmem_cache c;             /* of arrays */
    loaded l;
    kvmem_session session;     /* of a model */
    int has_model, corpus;
    const kvmem_backend *backend;
    segment_sum (*sum)[3];     /* (SPECs) found, equal distances, random */
} segment_run;

/* ---- judging */

/* Pairs of a found and a true start not farther apart than t; both rise. The most there can be. */
static int segment_hits(const int *a, int n, const int *b, int m, int t) {
    int i = 0, j = 0, hits = 0;
    while (i < n && j < m) {
        if (a[i] - b[j] > t) j++;
        else if (b[j] - a[i] > t) i++;
        else hits++, i++, j++;
    }
    return hits;
}
/* The partition of rows (n, w) into events that begin at start (m), start[0] = 0. */
static void segment_partition(const float *rows, int n, int w, const int *start, int m, segment_sum *to) {
    double *T = (double *)calloc(2 * (size_t)w, sizeof *T), *P = T ? T + w : NULL;
    double S = 0, inside = 0, q = 0, phi = 0, pairs = 0;
    int e, t, i;
    if (!T) return;
    for (t = 0; t < n; t++)
        for (i = 0; i < w; i++) T[i] += (double)rows[(size_t)t * (size_t)w + (size_t)i];
    for (i = 0; i < w; i++) S += T[i] * T[i];
    for (e = 0; e < m; e++) {
        const int to_t = e + 1 < m ? start[e + 1] : n;
        double W = 0, vol = 0, least;
        memset(P, 0, (size_t)w * sizeof *P);
        for (t = start[e]; t < to_t; t++)
            for (i = 0; i < w; i++) P[i] += (double)rows[(size_t)t * (size_t)w + (size_t)i];
        for (i = 0; i < w; i++) {
            W += P[i] * P[i];
            vol += P[i] * T[i];
        }
        least = vol < S - vol ? vol : S - vol;
        inside += W;
        pairs += (double)(to_t - start[e]) * (double)(to_t - start[e]);
        q += W / S - vol / S * (vol / S);
        phi += (vol - W) / (least == 0 ? 1e-15 : least);
    }
    to->ratio += inside / pairs / ((S - inside) / ((double)n * (double)n - pairs));
    to->modularity += q;
    to->conductance += phi / m;
    free(T);
}
/* Starts (m, the first 0) judged and added to a sum. */
static void segment_judge(const segment_run *r, const int *start, int m, segment_sum *to) {
    int *truth = (int *)grow(NULL, (size_t)r->n, sizeof *truth), k = 0, t;
    for (t = 1; r->truth && t < r->n; t++)
        if (r->truth[t]) truth[k++] = t;
    to->runs++;
    to->events += m;
    to->found += m - 1;
    to->truth += k;
    to->hits += segment_hits(start + 1, m - 1, truth, k, (int)r->a->tolerance);
    if (r->rows && r->n > 1) segment_partition(r->rows, r->n, r->width, start, m, to);
    free(truth);
}
/* As many starts at equal distances; at random places, by a number of the stream's draw. */
static void segment_equal(int n, int m, int *start) {
    int i;
    for (i = 0; i < m; i++) start[i] = (int)((int64_t)i * n / m);
}
static void segment_random(int n, int m, uint64_t seed, int *start) {
    float *key = (float *)grow(NULL, 2 * (size_t)n, sizeof *key);
    int i;
    for (i = 1; i < n; i++) key[i - 1] = (float)(kvmem__random(seed, 0, 0, (uint64_t)i) >> 40);
    start[0] = 0;
    kvmem__topk(start + 1, key, n - 1, m - 1, (int *)(void *)(key + n));
    for (i = 1; i < m; i++) start[i]++;
    free(key);
}
static void segment_judge_all(segment_run *r, int spec, uint64_t stream) {
    int *start = (int *)grow(NULL, (size_t)r->m, sizeof *start), i;
    segment_judge(r, r->start, r->m, &r->sum[spec][0]);
    segment_equal(r->n, r->m, start);
    segment_judge(r, start, r->m, &r->sum[spec][1]);
    for (i = 0; i < (int)r->a->draws; i++) {
        segment_random(r->n, r->m, 1000003u * stream + (uint64_t)i, start);
        segment_judge(r, start, r->m, &r->sum[spec][2]);
    }
    free(start);
}

/* ---- the stage */

/* SPEC: an entry of the segment stage, or the text of a recipe that has one. */
static int segment_recipe(segment_run *r, const char *spec) {
    kvmem_error error;
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(spec, "( \t"), spec);
    if (strlen(spec) + 16 > sizeof r->text) return misuse("the segmenter's text is too long");
    snprintf(r->text, sizeof r->text, "%s%s", find_entry((int)KVMEM_SEGMENT, word) ? "segment=" : "", spec);
    r->recipe = kvmem_recipe_default();
    if (kvmem_recipe_parse(&r->recipe, r->text, &error) != KVMEM_OK) return misuse("%s: %s", spec, error.text);
    if (r->recipe.amount.kind != KVMEM_ALL)
        return misuse("%s: the recipe leaves rows out; give one with budget=all", spec);
    if (!strcmp(r->recipe.stage[KVMEM_SEGMENT].entry->word, "fixed") && r->recipe.stage[KVMEM_SEGMENT].par[0] < 1)
        return misuse("%s: it never cuts; a segmenter is fixed(size=64), surprise, tdc, ...: kvmem list", spec);
    return OK;
}
static int segment_is(const segment_run *r, const char *word) {
    return !strcmp(r->recipe.stage[KVMEM_SEGMENT].entry->word, word);
}
/* What the stage reads and the stream lacks. */
static int segment_lacks(const segment_run *r, const char *spec) {
    const kvmem_memory *m = kvmem__memory_of(&r->recipe, KVMEM_SEGMENT);
    const unsigned wants = r->recipe.stage[KVMEM_SEGMENT].entry->reads;
    if (segment_is(r, "turn") && !r->turn)
        return misuse("%s needs to know turns: --turn-ends or --turn-begins, with --tokens or a model", spec);
    if (r->has_model) return OK;
    if ((wants & KVMEM_READS_SURPRISE) && !r->s) return misuse("%s reads surprises: give --surprise", spec);
    if (kvmem__segment_reads_keys(&r->recipe) && !r->k) return misuse("%s reads keys: give -k or --vectors", spec);
    if (m && m->watch && !r->q) return misuse("%s reads queries: give -q", spec);
    return OK;
}
/* Tokens of the block that begins at t: turns begin blocks if the stage asks for them. */
static int segment_block(const segment_run *r, int t) {
    const int most = KVMEM__MIN((int)r->a->block, r->n - t);
    int n = 1;
    if (!segment_is(r, "turn")) return most;
    while (n < most && !r->turn[t + n]) n++;
    return n;
}
static void segment_take(segment_run *r, const kvmem_cache *c) {
    int i;
    free(r->start);
    r->m = c->n_events;
    r->start = (int *)grow(NULL, (size_t)r->m + 1, sizeof *r->start);
    for (i = 0; i < r->m; i++) r->start[i] = (int)c->event[i];
}
static kvmem_status segment_feed_arrays(segment_run *r) {
    const size_t kd = (size_t)(r->G * r->d), qd = (size_t)(r->H * r->d), most = (size_t)r->a->block;
    float *zero = (float *)calloc(most * (kd > qd ? kd : qd), sizeof *zero), *o = (float *)grow(NULL, most * qd, 4);
    kvmem_status st = zero ? KVMEM_OK : KVMEM_NO_MEMORY;
    int t, n;
    for (t = 0; t < r->n && st == KVMEM_OK; t += n) {
        n = segment_block(r, t);
        if (r->turn && r->turn[t]) st = kvmem_cache_mark(&r->c, KVMEM_MARK_TURN);
        if (st == KVMEM_OK)
            st = kvmem_cache_append(&r->c, 0, n, r->k ? r->k + (size_t)t * kd : zero, zero, NULL);
        if (st == KVMEM_OK) st = kvmem_cache_attend(&r->c, 0, n, r->q ? r->q + (size_t)t * qd : zero, o);
        if (st == KVMEM_OK && r->s) st = kvmem_cache_surprise(&r->c, n, r->s + t);
        if (st == KVMEM_OK) st = kvmem_cache_commit(&r->c, t + n < r->n ? KVMEM_PREFILL : KVMEM_PROMPT_END);
    }
    free(zero);
    free(o);
    return st;
}
static int segment_arrays(segment_run *r) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_status st;
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = r->H;
    cfg.shape.n_kv_heads = r->G;
    cfg.shape.head_dim = r->d;
    if (r->a->rope) cfg.shape.rope = &r->rope;
    cfg.recipe = &r->recipe;
    cfg.max_block = (int)r->a->block;
    cfg.threads = (int)r->a->threads;
    cfg.backend = r->backend;
    kvmem_cache_free(&r->c);
    st = kvmem_cache_init(&r->c, &cfg);
    if (st == KVMEM_OK) st = segment_feed_arrays(r);
    if (st != KVMEM_OK) return fail("%s", r->c.error.text[0] ? r->c.error.text : kvmem_status_string(st));
    segment_take(r, &r->c);
    return OK;
}
/* The keys of the layers from --from on, as they are before RoPE: rows (n, width). */
static void segment_rows(segment_run *r) {
    kvmem_cache *c = &r->session.cache;
    const int d = c->shape.head_dim, G = c->shape.n_kv_heads, L = c->shape.n_layers;
    const int first = kvmem__segment_layer(c, r->a->from_layer), lanes = (L - first) * G;
    float k[KVMEM__RAW * 512];
    int32_t pos[KVMEM__RAW];
    int l, g, t, i, n;
    if (first < 0 || d > 512) return;
    r->width = lanes * d;
    free(r->rows);
    r->rows = (float *)grow(NULL, (size_t)r->n * (size_t)r->width, sizeof *r->rows);
    for (l = first; l < L; l++)
        for (g = 0; g < G; g++) {
            const kvmem_view v = kvmem__view_of(c, l, KVMEM_SEGMENT);
            const int lane = (l - first) * G + g, many = kvmem_view_count(&v, g);
            for (t = 0; t < many; t += n) {
                n = KVMEM__MIN(KVMEM__RAW, many - t);
                kvmem__raw_keys(&v, g, t, n, k, pos);
                for (i = 0; i < n; i++)
                    memcpy(r->rows + (size_t)(t + i) * (size_t)r->width + (size_t)(lane * d), k + i * d,
                           (size_t)d * sizeof *k);
            }
        }
}
static int segment_model(segment_run *r) {
    kvmem_session *s = &r->session;
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_status st;
    int t, n, status;
    cfg.recipe = &r->recipe;
    cfg.threads = (int)r->a->threads;
    cfg.max_block = (int)r->a->block;
    cfg.backend = r->backend;
    kvmem_session_free(s);
    if ((status = open_session(s, &r->l.model, &cfg)) != OK) return status;
    for (t = 0; t < r->n; t += n) {
        n = segment_block(r, t);
        st = r->turn && r->turn[t] ? kvmem_cache_mark(&s->cache, KVMEM_MARK_TURN) : KVMEM_OK;
        if (st != KVMEM_OK) return fail("%s", s->cache.error.text);
        st = kvmem_session_feed(s, r->id + t, n, t + n < r->n ? KVMEM_PREFILL : KVMEM_PROMPT_END, NULL, NULL);
        if (st != KVMEM_OK) return fail("%s", s->error.text);
        if (!(s->cache.reads & KVMEM_READS_SURPRISE)) continue;
        if (!r->s) r->s = (float *)grow(NULL, (size_t)r->n, sizeof *r->s);
        memcpy(r->s + t, s->cache.token_value, (size_t)n * sizeof *r->s);
    }
    segment_take(r, &s->cache);
    segment_rows(r);
    return OK;
}

/* ---- streams */

/* Whole numbers 0.. of any shape. */
static int segment_ints(const char *name, const char *path, int **to, int *n) {
    file f;
    npy a;
    int status = OK;
    size_t i;
    if (array_open(name, path, &f, &a)) return FAILED;
    if (!a.count || a.count > (size_t)ARRAY_ROWS)
        status = fail("%s %s: %lu numbers are none or too many", name, path, (unsigned long)a.count);
    else *to = (int *)grow(NULL, a.count, sizeof **to);
    for (i = 0; status == OK && i < a.count; i++) {
        const double x = npy_at(&a, i);
        if (!(x >= 0 && x < 2147483648.0 && x == floor(x)))
            status = fail("%s %s: %g is not a whole number from 0 on", name, path, x);
        else (*to)[i] = (int)x;
    }
    *n = (int)a.count;
    file_close(&f);
    return status;
}
/* --truth B.npy: true starts. */
static int segment_truth(segment_run *r) {
    int *at = NULL, n = 0, i, status;
    if (!r->a->truth) return OK;
    status = segment_ints("--truth", r->a->truth, &at, &n);
    if (status == OK && !r->truth) r->truth = (unsigned char *)grow(NULL, (size_t)r->n, 1);
    if (status == OK) memset(r->truth, 0, (size_t)r->n);
    for (i = 0; i < n && status == OK; i++) {
        if (at[i] >= r->n)
            status = fail("--truth %s: start %d is behind the last of %d tokens", r->a->truth, at[i], r->n);
        else r->truth[at[i]] = 1;
    }
    free(at);
    return status;
}
/* The id that a boundary token's option names: a number, or with a tokenizer the token of a text (\n: a line's end). */
static int segment_token(const segment_run *r, const char *name, const char *text, int *id) {
    char *end, plain[64];
    ids list;
    size_t i, n = 0;
    int status;
    const long x = strtol(text, &end, 10);
    if (*text && !*end && x >= 0 && x < INT_MAX) {
        *id = (int)x;
        return OK;
    }
    if (!r->l.tokenizer) return misuse("%s %s: a token id is needed", name, text);
    for (i = 0; text[i] && n + 1 < sizeof plain; i++)
        if (text[i] == '\\' && text[i + 1] == 'n') plain[n++] = '\n', i++;
        else plain[n++] = text[i];
    memset(&list, 0, sizeof list);
    status = tokenize(r->l.tokenizer, plain, n, KVMEM_PARSE_SPECIAL, &list);
    if (status == OK && list.n != 1)
        status = misuse("%s '%s': is %d tokens of this vocabulary, not one; give an id", name, text, list.n);
    if (status == OK) *id = list.id[0];
    free(list.id);
    return status;
}
/* Turns by their boundary token; they are the truth, too, unless it is given. */
static int segment_turns(segment_run *r) {
    const args *a = r->a;
    const char *text = a->turn_begins ? a->turn_begins : a->turn_ends;
    int id = 0, t, status;
    if (!text) return OK;
    if (a->turn_begins && a->turn_ends) return misuse("--turn-begins and --turn-ends cannot be given together");
    if (!r->id)
        return misuse("--turn-%s: token ids are needed: --tokens or a model", a->turn_begins ? "begins" : "ends");
    status = segment_token(r, a->turn_begins ? "--turn-begins" : "--turn-ends", text, &id);
    if (status != OK) return status;
    r->turn = (unsigned char *)grow(NULL, (size_t)r->n, 1);
    r->truth = (unsigned char *)grow(NULL, (size_t)r->n, 1);
    for (t = 0; t < r->n; t++) r->turn[t] = !t || (a->turn_begins ? r->id[t] == id : r->id[t - 1] == id);
    memcpy(r->truth, r->turn, (size_t)r->n);
    return OK;
}
static int segment_load(segment_run *r) {
    const args *a = r->a;
    int status = OK, n = 0, one = 1, i;
    if (a->vectors && a->keys) return misuse("-k and --vectors cannot be given together");
    if (a->keys) status = array_rows("-k", a->keys, "-k", &r->n, r->G, &r->d, &r->k);
    if (status == OK && a->vectors) status = array_rows("--vectors", a->vectors, "--vectors", &r->n, 0, &r->d, &r->k);
    if (status == OK && a->query)
        status = array_rows("-q", a->query, a->keys ? "-k" : "--vectors", &r->n, r->H, &r->d, &r->q);
    if (status == OK && a->surprise) {
        file f;
        npy x;
        if (array_open("--surprise", a->surprise, &f, &x)) return FAILED;
        if (!x.count || x.count > (size_t)ARRAY_ROWS || (r->n && x.count != (size_t)r->n))
            status = fail("--surprise %s: %lu numbers for %d tokens", a->surprise, (unsigned long)x.count, r->n);
        else {
            r->n = (int)x.count;
            r->s = (float *)grow(NULL, x.count, sizeof *r->s);
            for (i = 0; i < r->n; i++) r->s[i] = i ? (float)npy_at(&x, (size_t)i) : -1.0f; /* the first has none */
        }
        file_close(&f);
    }
    if (status == OK && a->tokens) {
        status = segment_ints("--tokens", a->tokens, &r->id, &n);
        if (status == OK && r->n && n != r->n) status = fail("--tokens %s: %d ids for %d tokens", a->tokens, n, r->n);
        r->n = n;
    }
    if (status == OK && !r->n)
        return misuse("a stream is needed: --surprise, -k, --vectors, -q or --tokens; or --text FILE; or --suite");
    if (!r->d) r->d = one;
    return status;
}
static int segment_open_arrays(segment_run *r) {
    const args *a = r->a;
    const double base = a->rope_base > 0 ? a->rope_base : 10000;
    int status, t;
    r->G = a->vectors ? 1 : (int)a->kv_heads;
    r->H = a->heads ? (int)a->heads : r->G;
    if (r->H % r->G) return misuse("--heads %d is no multiple of --kv-heads %d", r->H, r->G);
    if (a->rope && strcmp(a->rope, "norm") && strcmp(a->rope, "neox"))
        return misuse("--rope %s: norm or neox", a->rope);
    if (a->output) return misuse("-o writes the surprises that a model finds: give --text or --suite");
    if ((status = segment_load(r)) != OK || (status = segment_turns(r)) != OK) return status;
    if (a->rope) { /* rows come after RoPE; the cache turns them itself */
        int32_t *pos = (int32_t *)grow(NULL, (size_t)r->n, sizeof *pos);
        for (t = 0; t < r->n; t++) pos[t] = t;
        r->freq = (float *)grow(NULL, (size_t)r->d, sizeof *r->freq);
        array_rope(&r->rope, r->freq, r->d, base, !strcmp(a->rope, "neox"));
        if (r->k) array_turn(r->backend, &r->rope, r->k, r->n, r->G, r->d, pos, -1);
        if (r->q) array_turn(r->backend, &r->rope, r->q, r->n, r->H, r->d, pos, -1);
        free(pos);
    }
    if (r->k) {
        r->width = r->G * r->d;
        r->rows = (float *)grow(NULL, (size_t)r->n * (size_t)r->width, sizeof *r->rows);
        memcpy(r->rows, r->k, (size_t)r->n * (size_t)r->width * sizeof *r->k);
    }
    return segment_truth(r);
}
static int segment_open_model(segment_run *r) {
    const args *a = r->a;
    ids list;
    args text;
    int status;
    if (a->keys || a->vectors || a->query || a->surprise || a->tokens)
        return misuse("arrays, or a model that reads --text or --suite: not both");
    if (!a->model) return misuse("-m MODEL is needed: there is no %s here", DEFAULT_MODEL);
    if ((status = load_model(&r->l, a, 1)) != OK) return status;
    r->has_model = 1;
    if (a->suite) return OK;
    memset(&list, 0, sizeof list);
    text = *a;
    text.file = a->text;
    text.prompt = NULL;
    status = tokenize_args(r->l.tokenizer, &text, text_flags(a), &list);
    r->id = list.id;
    r->n = list.n;
    if (status == OK && !r->n) status = fail("%s: is empty", a->text);
    if (status == OK) status = segment_turns(r);
    return status == OK ? segment_truth(r) : status;
}
/* Stream `seed` of a suite, with its turns; truth: its turns or its topics. */
static int segment_conversation(segment_run *r, uint64_t seed, corpus_test *test) {
    corpus_eval_params p;
    const char *why;
    int t, i, topics = !strcmp(r->a->rule, "topics");
    memset(&p, 0, sizeof p);
    for (i = 0; i < EVAL_SUITES && strcmp(eval_suites[i].word, r->a->suite); i++) {}
    if (i == EVAL_SUITES) return misuse("--suite %s: conv, needle, multi, order, copy or ppl", r->a->suite);
    p.suite = eval_suites[i].corpus;
    p.ctx = (int)r->a->ctx;
    p.depth = 500;
    p.seed = seed;
    why = corpus_test_check(&p);
    if (why) return misuse("--suite %s --ctx %d: %s", r->a->suite, p.ctx, why);
    if (corpus_test_make(test, &p) != CORPUS_OK) return fail("no memory for a conversation of %d tokens", p.ctx);
    free(r->turn);
    free(r->truth);
    r->n = test->n;
    r->id = test->ids;
    r->turn = (unsigned char *)grow(NULL, (size_t)r->n, 1);
    r->truth = (unsigned char *)grow(NULL, (size_t)r->n, 1);
    for (t = 0; t < r->n; t++) {
        r->turn[t] = !t || test->ids[t - 1] == CORPUS__STOP;
        r->truth[t] = topics ? test->ids[t] == CORPUS__SESSION : r->turn[t];
    }
    return OK;
}

/* ---- output */

static double segment_f1(const segment_sum *s) { /* 2 hits / (found + true) */
    return s->found + s->truth > 0 ? 2 * s->hits / (s->found + s->truth) : 0;
}
static const char *const segment_kinds[3] = { "found", "equal", "random" };
static void segment_line(const segment_run *r, const char *spec, int kind, const segment_sum *s) {
    const double p = s->found > 0 ? s->hits / s->found : 0, c = s->truth > 0 ? s->hits / s->truth : 0;
    if (r->a->csv) {
        csv_text(spec);
        put("%s,%.9g,%.9g,", segment_kinds[kind], s->runs, s->events / s->runs);
        csv_real(p, r->truth != NULL);
        csv_real(c, r->truth != NULL);
        csv_real(segment_f1(s), r->truth != NULL);
        csv_real(s->ratio / s->runs, r->rows != NULL);
        csv_real(s->modularity / s->runs, r->rows != NULL);
        if (r->rows) put("%.9g", s->conductance / s->runs);
        put("\n");
        return;
    }
    put("%-34s %8.1f", kind == 1 ? "  as many at equal distances" : kind ? "  as many at random" : spec,
        s->events / s->runs);
    if (r->truth) put("  %9.3f %7.3f %7.3f", p, c, segment_f1(s));
    if (r->rows) put("  %7.4f %11.5f %12.5f", s->ratio / s->runs, s->modularity / s->runs, s->conductance / s->runs);
    put("\n");
}
static void segment_table(const segment_run *r) {
    int i, kind;
    if (r->a->csv) put("segmenter,cuts,streams,events,precision,recall,f1,ratio,modularity,conductance\n");
    else {
        put("%-34s %8s", "segmenter", "events");
        if (r->truth) put("  %9s %7s %7s", "precision", "recall", "F1");
        if (r->rows) put("  %7s %11s %12s", "ratio", "modularity", "conductance");
        put("\n");
    }
    for (i = 0; i < r->a->n_words; i++)
        for (kind = 0; kind < 3; kind++) segment_line(r, r->a->word[i], kind, &r->sum[i][kind]);
}
static void segment_starts_json(const segment_run *r) {
    int i;
    json_open("starts", '[');
    for (i = 0; i < r->m; i++) json_int(NULL, r->start[i]);
    json_close();
}
static void segment_json(const segment_run *r, int one) {
    int i, kind;
    json_open(NULL, '{');
    json_int("tokens", r->n);
    if (one) segment_starts_json(r);
    json_open("cuts", '[');
    for (i = 0; i < r->a->n_words; i++)
        for (kind = 0; kind < 3; kind++) {
            const segment_sum *s = &r->sum[i][kind];
            json_open(NULL, '{');
            json_text("segmenter", r->a->word[i]);
            json_text("cuts", segment_kinds[kind]);
            json_real("streams", s->runs);
            json_real("events", s->events / s->runs);
            if (r->truth) {
                json_real("precision", s->found > 0 ? s->hits / s->found : 0);
                json_real("recall", s->truth > 0 ? s->hits / s->truth : 0);
                json_real("f1", segment_f1(s));
            }
            if (r->rows) {
                json_real("ratio", s->ratio / s->runs);
                json_real("modularity", s->modularity / s->runs);
                json_real("conductance", s->conductance / s->runs);
            }
            json_close();
        }
    json_close();
    json_close();
}
/* The starts of one stream: numbers, or with a text what stands there. */
static void segment_starts(const segment_run *r) {
    int i, t;
    for (i = 0; i < r->m && !r->has_model; i++) put(i ? " %d" : "%d", r->start[i]);
    if (!r->has_model) put("\n");
    for (i = 0; i < r->m && r->has_model; i++) {
        const int end = i + 1 < r->m ? r->start[i + 1] : r->n;
        put("%7d %5d tokens%s  ", r->start[i], end - r->start[i],
            !r->truth ? "" : r->truth[r->start[i]] ? "  *" : "   ");
        for (t = r->start[i]; t < end && t < r->start[i] + 12; t++) {
            char piece[256];
            const size_t len = kvmem_token_bytes(r->l.tokenizer, r->id[t], 0, piece, sizeof piece);
            put_plain(piece, KVMEM__MIN(len, sizeof piece));
        }
        put("%s\n", t < end ? " ..." : "");
    }
}

/* ---- the command */

static int segment_stream(segment_run *r, uint64_t stream) {
    int i, status;
    for (i = 0; i < r->a->n_words; i++) {
        if ((status = segment_recipe(r, r->a->word[i])) != OK || (status = segment_lacks(r, r->a->word[i])) != OK)
            return status;
        if ((status = r->has_model ? segment_model(r) : segment_arrays(r)) != OK) return status;
        if (!r->m) return fail("%s: marks no event", r->a->word[i]);
        segment_judge_all(r, i, stream);
    }
    return OK;
}
static int segment_do(segment_run *r) {
    const args *a = r->a;
    const int seeds = a->suite ? (int)a->seeds : 1;
    corpus_test test;
    int status, i;
    if (strcmp(a->rule, "turns") && strcmp(a->rule, "topics")) return misuse("--true %s: turns or topics", a->rule);
    if (a->json && a->csv) return misuse("--json and --csv cannot be given together");
    for (i = 0; i < a->n_words; i++)
        if ((status = segment_recipe(r, a->word[i])) != OK) return status;
    r->sum = (segment_sum (*)[3])grow(NULL, (size_t)a->n_words, sizeof *r->sum);
    memset(r->sum, 0, (size_t)a->n_words * sizeof *r->sum);
    if ((status = find_backend(a, &r->backend)) != OK) return status;
    r->corpus = a->suite != NULL;
    if (a->text && a->suite) return misuse("--text and --suite cannot be given together");
    if ((status = a->text || a->suite ? segment_open_model(r) : segment_open_arrays(r)) != OK) return status;
    memset(&test, 0, sizeof test);
    if (r->corpus) {
        eval *e = (eval *)grow(NULL, 1, sizeof *e);
        memset(e, 0, sizeof *e);
        e->l = r->l;
        e->a = a;
        status = check_vocabulary(e);
        free(e);
    }
    for (i = 0; i < seeds && status == OK; i++) {
        if (r->corpus) status = segment_conversation(r, (uint64_t)a->seed + (uint64_t)i, &test);
        if (status == OK) status = segment_stream(r, (uint64_t)(a->seed + i));
    }
    if (status == OK && a->output) {
        if (!r->s) status = misuse("-o: no segmenter here reads surprises");
        else if (seeds > 1) status = misuse("-o is of one stream: --seeds 1");
        else status = array_write(a->output, "<f4", r->s, 1, r->n);
    }
    if (status == OK && a->json) segment_json(r, a->n_words == 1 && seeds == 1);
    else if (status == OK) {
        if (!a->csv && a->n_words == 1 && seeds == 1) segment_starts(r);
        if (a->csv || r->truth || r->rows) segment_table(r);
    }
    if (r->corpus) {
        r->id = NULL;
        corpus_test_free(&test);
    }
    return status;
}
static int cmd_segment(const args *a) {
    segment_run *r = (segment_run *)grow(NULL, 1, sizeof *r);
    args own = *a;
    int status;
    memset(r, 0, sizeof *r);
    r->a = &own;
    if (a->text || a->suite) default_model(&own);
    status = segment_do(r);
    kvmem_cache_free(&r->c);
    kvmem_session_free(&r->session);
    unload(&r->l);
    free(r->k);
    free(r->q);
    free(r->s);
    free(r->id);
    free(r->turn);
    free(r->truth);
    free(r->rows);
    free(r->start);
    free(r->freq);
    free(r->sum);
    free(r);
    return status;
}
#endif
