/* eval.h - `kvmem eval`: what recipes remember, what they take, how fast they are.

   A suite makes contexts and questions from seeds (corpus.h); a cell is one recipe at one budget on
   all questions of one suite at one length. The context is compressed before the question is known
   (its last token has the phase PROMPT_END); then every question is asked to a copy of the
   compressed session, as a continuation (phase DECODE: recipes that reduce step by step go on doing
   so, recipes that reduce once have done it), and answered greedily. An answer is right if all of
   its tokens are. With --question-aware the context is only PREFILL and the question ends the
   prompt, so that it takes part in the choice. The perplexity suite feeds the first half as prompt
   and scores the second token by token beside the full cache.

   Everything counted goes into one eval_result, which the table, JSON, CSV and the report read.
   Included by kvmem.c, whose output, options and loading it uses. */
#ifndef KVMEM_EVAL_H
#define KVMEM_EVAL_H

/* ==== >>eval : cells, questions ================================================================ */

enum { EVAL_CONV, EVAL_NEEDLE, EVAL_MULTI, EVAL_ORDER, EVAL_COPY, EVAL_PPL, EVAL_SUITES };
typedef struct eval_suite { const char *word; int corpus, questions; const char *what; } eval_suite;
static const eval_suite eval_suites[EVAL_SUITES] = {
    { "conv", CORPUS_CONV, 16, "facts in a conversation of several sessions: single, updated, twice, chain" },
    { "needle", CORPUS_NEEDLE, 1, "one fact at a depth, all else filler and other facts" },
    { "multi", CORPUS_MULTI, 16, "many facts, all of them asked" },
    { "order", CORPUS_ORDERS, 16, "which of two facts was told first" },
    { "copy", CORPUS_COPIES, 8, "repeat a note word for word" },
    { "ppl", CORPUS_PPL, 0, "perplexity, KL divergence and top-1 beside the full cache" } };
static const char *const eval_kinds[CORPUS_KINDS] = { "single", "updated", "twice",
                                                      "chain",  "order",   "copy" };

typedef struct eval_question { int stream, kind, told; } eval_question;
/* One suite at one length: its questions, in the order in which they are asked. */
typedef struct eval_group {
    int suite, ctx, streams; /* streams: contexts, that is seeds x depths */
    eval_question *q;
    int n_q, cap_q;
} eval_group;

/* Sums of what was measured; n counts the summands. */
typedef struct eval_sum { double sum, n; } eval_sum;
static void eval_add(eval_sum *s, double x, double n) { s->sum += x; s->n += n; }
static double eval_mean(const eval_sum *s) { return s->n > 0 ? s->sum / s->n : -1; }

typedef struct eval_cell {
    int group, method;
    kvmem_recipe recipe;
    char text[320], amount[40]; /* as parsed; the budget alone, "-" if the recipe has none */
    char error[320], note[200]; /* why it could not run; what a reader should know */
    unsigned char *right;       /* one for each question of the group */
    int n_q, cap_q, n_right;
    double *nll, *kl, *top1;    /* (n_s) per stream: means over its tokens */
    int n_s;
    eval_sum live, peak, entries; /* bytes, bytes, entries over all lanes, when the question comes */
    eval_sum prefill, first, decode; /* seconds; n: tokens, answers, tokens */
} eval_cell;

typedef struct eval_result {
    const char **method;        /* recipes as given; 0 is the reference "full" */
    int n_methods;
    eval_group *group;
    int n_groups;
    eval_cell *cell;            /* a group's cells are neighbours, by method, then budget */
    int n_cells;
    int seeds, questions, depths, aware;
    int64_t seed;
    double seconds;
} eval_result;

/* What runs it. */
typedef struct eval {
    const args *a;              /* own, with what was left out filled in */
    args own;
    loaded l;
    kvmem_session_config cfg;
    eval_result r;
    const char *budget[MAX_LIST]; int n_budgets;
    corpus_test test;
    ids text;                   /* of --text */
    float *row; int rows;       /* (rows, n_vocab) log-probabilities of the full cache */
    double shown, started, done, all;
} eval;

static const eval_group *group_of(const eval *e, const eval_cell *c) { return e->r.group + c->group; }

static void eval_close(eval *e) {
    int i;
    for (i = 0; i < e->r.n_cells; i++) {
        free(e->r.cell[i].right);
        free(e->r.cell[i].nll);
        free(e->r.cell[i].kl);
        free(e->r.cell[i].top1);
    }
    for (i = 0; i < e->r.n_groups; i++) free(e->r.group[i].q);
    free(e->r.cell);
    free(e->r.group);
    free(e->r.method);
    free(e->row);
    free(e->text.id);
    corpus_test_free(&e->test);
    unload(&e->l);
}

/* ==== >>eval_plan : from options to cells ===================================================== */

/* Calls use(e, word) for each part of "a,b,c" (copied to buf); OK or the first failure. */
static int each_part(eval *e, const char *name, const char *list, char *buf, size_t size,
                     int (*use)(eval *e, const char *word)) {
    const char *s = list;
    size_t at = 0;
    int status;
    for (;;) {
        const size_t n = strcspn(s, ",");
        if (!n) return misuse("%s %s: a part of the list is empty", name, list);
        if (n + 1 > size - at) return misuse("%s: the list is too long", name);
        memcpy(buf + at, s, n);
        buf[at + n] = 0;
        if ((status = use(e, buf + at)) != OK) return status;
        at += n + 1;
        s += n;
        if (!*s++) return OK;
    }
}
static int plan_suite(eval *e, const char *word) {
    nearest near = { NULL, 0 };
    int i, j;
    for (i = 0; i < EVAL_SUITES; i++) {
        if (strcmp(word, eval_suites[i].word) && strcmp(word, "all")) continue;
        for (j = 0; j < e->r.n_groups; j++)
            if (e->r.group[j].suite == i) return misuse("--suite: %s is there twice", word);
        e->r.group = (eval_group *)grow(e->r.group, (size_t)e->r.n_groups + 1, sizeof(eval_group));
        memset(e->r.group + e->r.n_groups, 0, sizeof(eval_group));
        e->r.group[e->r.n_groups++].suite = i;
        if (strcmp(word, "all")) return OK;
    }
    if (!strcmp(word, "all")) return OK;
    for (i = 0; i < EVAL_SUITES; i++) consider(&near, word, eval_suites[i].word);
    put("--suite: '%s' is not one of", word);
    for (i = 0; i < EVAL_SUITES; i++) put(" %s", eval_suites[i].word);
    put(" all");
    if (near.word) put("; did you mean %s?", near.word);
    return misuse("%.*s", (int)out.len, out.text);
}
/* "512", "2k": a length in tokens. Groups so far have ctx 0 and are the suites: see plan_lengths. */
static int parse_ctx(const char *word, int *ctx) {
    const size_t n = strlen(word);
    char digits[16];
    int64_t v = 0;
    const int k = n && (word[n - 1] == 'k' || word[n - 1] == 'K');
    snprintf(digits, sizeof digits, "%.*s", (int)(n - (size_t)k < 12 ? n - (size_t)k : 12), word);
    if (!to_integer(digits, &v) || v < 1 || v > 1 << 20)
        return misuse("--ctx: '%s' is not a length such as 512 or 2k", word);
    *ctx = (int)v * (k ? 1024 : 1);
    return OK;
}
static int plan_budget(eval *e, const char *word) {
    kvmem_recipe r;
    kvmem_error error;
    char text[80];
    int i;
    if (e->n_budgets == MAX_LIST) return misuse("--budgets: more than %d", MAX_LIST);
    for (i = 0; i < e->n_budgets; i++)
        if (!strcmp(e->budget[i], word)) return misuse("--budgets: %s is there twice", word);
    snprintf(text, sizeof text, "score=recency budget=%.40s", word);
    if (strspn(word, "0123456789.%KMGTiBkmgtb") != strlen(word))
        return misuse("--budgets: '%s' is not an amount such as 12.5%%, 256 or 64KiB", word);
    if (kvmem_recipe_parse(&r, text, &error) != KVMEM_OK)
        return misuse("--budgets %s: %s", word, error.text);
    e->budget[e->n_budgets++] = word;
    return OK;
}

/* Does the budget leave the score a choice? What a reader of the cell should know if not. */
static void cell_note(eval_cell *c, int ctx) {
    const kvmem_amount am = c->recipe.amount, recent = c->recipe.recent;
    double keep, w;
    if (am.kind != KVMEM_COUNT && am.kind != KVMEM_SHARE) return;
    keep = am.kind == KVMEM_COUNT ? am.value : floor(am.value * ctx + 1e-9);
    w = recent.kind == KVMEM_COUNT ? recent.value : floor(recent.value * keep + 1e-9);
    if (keep < 1) keep = 1;
    if (keep >= ctx)
        snprintf(c->note, sizeof c->note, "keeps all: the budget is not below the context");
    else if (w > 0 && w + c->recipe.sink >= keep)
        snprintf(c->note, sizeof c->note,
                 "no choice left: recent=%.0f and sink=%d fill the %.0f entries that the budget keeps, "
                 "so this is a window", w, c->recipe.sink, keep);
}
static void amount_text(kvmem_amount a, char *buf, size_t size) {
    if (a.kind == KVMEM_ALL) snprintf(buf, size, "-");
    else if (a.kind == KVMEM_SHARE) snprintf(buf, size, "%.9g%%", 100 * a.value);
    else if (a.kind == KVMEM_BYTES) snprintf(buf, size, "%s", human((size_t)a.value));
    else snprintf(buf, size, "%.0f", a.value);
}
static void plan_cell(eval *e, int group, int method, const char *budget) {
    eval_cell *c;
    kvmem_error error;
    e->r.cell = (eval_cell *)grow(e->r.cell, (size_t)e->r.n_cells + 1, sizeof *c);
    c = e->r.cell + e->r.n_cells++;
    memset(c, 0, sizeof *c);
    c->group = group;
    c->method = method;
    snprintf(c->text, sizeof c->text, budget ? "%s budget=%s" : "%s%s", e->r.method[method],
             budget ? budget : "");
    if (kvmem_recipe_parse(&c->recipe, c->text, &error) != KVMEM_OK) {
        snprintf(c->error, sizeof c->error, "%s", error.text);
        c->recipe = kvmem_recipe_default();
        snprintf(c->amount, sizeof c->amount, "%s", budget);
    } else {
        amount_text(c->recipe.amount, c->amount, sizeof c->amount);
        cell_note(c, e->r.group[group].ctx);
    }
}
/* Recipes that keep everything and those that name their own budget run once. */
static int own_budget(const char *text) {
    kvmem_recipe r;
    char more[512];
    if (kvmem_recipe_parse(&r, text, NULL) != KVMEM_OK) return 1;
    if (r.amount.kind == KVMEM_ALL && !strstr(text, "score=")) return 1;
    snprintf(more, sizeof more, "%s budget=100%%", text);
    return kvmem_recipe_parse(&r, more, NULL) != KVMEM_OK;
}
static int plan_methods(eval *e) {
    static const char *const usual[] = { "window", "streamingllm", "h2o", "tova", "snapkv",
                                         "pyramidkv" };
    const int given = e->a->kvs.n;
    const int n = given ? given : (int)(sizeof usual / sizeof *usual);
    char seen[512], text[512];
    int i, j, status;
    kvmem_recipe r;
    e->r.method = (const char **)grow(NULL, (size_t)n + 1, sizeof *e->r.method);
    e->r.method[e->r.n_methods++] = "full";
    for (i = 0; i < n; i++) {
        const char *kv = given ? e->a->kvs.item[i] : usual[i];
        if ((status = parse_recipe(kv, &r)) != OK) return status;
        if (strlen(kv) > 255) return misuse("--kv: the recipe is longer than 255 characters");
        kvmem_recipe_print(&r, text, sizeof text);
        for (j = 0; j < e->r.n_methods; j++) {
            parse_recipe(e->r.method[j], &r);
            kvmem_recipe_print(&r, seen, sizeof seen);
            if (!strcmp(seen, text)) break;
        }
        if (j && j < e->r.n_methods)
            return misuse("--kv: %s and %s are the same recipe", e->r.method[j], kv);
        if (j == e->r.n_methods) e->r.method[e->r.n_methods++] = kv;
    }
    return OK;
}
/* Suites x lengths into groups. */
static int plan_lengths(eval *e, const char *list) {
    const int n = e->r.n_groups;
    int ctx[MAX_LIST], n_ctx = 0, i, j, status;
    char word[16];
    const char *s = list;
    eval_group *suite = e->r.group;
    for (;;) {
        const size_t len = strcspn(s, ",");
        snprintf(word, sizeof word, "%.*s", (int)(len < 15 ? len : 15), s);
        if (n_ctx == MAX_LIST) return misuse("--ctx: more than %d lengths", MAX_LIST);
        if ((status = parse_ctx(word, &ctx[n_ctx])) != OK) return status;
        for (i = 0; i < n_ctx; i++)
            if (ctx[i] == ctx[n_ctx]) return misuse("--ctx: %s is there twice", word);
        n_ctx++;
        s += len;
        if (!*s++) break;
    }
    e->r.group = (eval_group *)grow(NULL, (size_t)(n * n_ctx), sizeof *suite);
    e->r.n_groups = 0;
    for (i = 0; i < n; i++)
        for (j = 0; j < n_ctx; j++) {
            eval_group *g = e->r.group + e->r.n_groups++;
            memset(g, 0, sizeof *g);
            g->suite = suite[i].suite;
            g->ctx = ctx[j];
            g->streams = e->r.seeds * (g->suite == EVAL_NEEDLE ? e->r.depths : 1);
        }
    free(suite);
    return OK;
}
static void plan_cells(eval *e) {
    int g, m, b;
    for (g = 0; g < e->r.n_groups; g++)
        for (m = 0; m < e->r.n_methods; m++) {
            if (own_budget(e->r.method[m])) { plan_cell(e, g, m, NULL); continue; }
            for (b = 0; b < e->n_budgets; b++) plan_cell(e, g, m, e->budget[b]);
        }
}

/* ==== >>eval_run : streams through cells ======================================================= */

static void eval_progress(eval *e, int end) {
    const double part = e->all > 0 ? e->done / e->all : 1, spent = now() - e->started;
    char bar[32];
    int i;
    if (!is_terminal(stderr) || (!end && now() - e->shown < 0.1)) return;
    e->shown = now();
    for (i = 0; i < 30; i++) bar[i] = i < (int)(30 * part) ? '#' : '.';
    bar[30] = 0;
    if (end) fprintf(stderr, "\r%72s\r", "");
    else fprintf(stderr, "\r[%s] %3.0f %%  %.0f s, %.0f s left   ", bar, 100 * part, spent,
                 part > 0.01 ? spent * (1 - part) / part : 0);
    fflush(stderr);
}
/* 1 if all went well; else the cell's error says what did not. */
static int cell_ok(eval_cell *c, kvmem_status status, const kvmem_session *s) {
    if (status == KVMEM_OK) return 1;
    snprintf(c->error, sizeof c->error, "%s",
             s->error.status != KVMEM_OK ? s->error.text : kvmem_status_string(status));
    return 0;
}
/* Feeds and adds the time to the sum (may be NULL). */
static int cell_feed(eval_cell *c, kvmem_session *s, const int *id, int n, kvmem_phase phase,
                     eval_sum *time) {
    const double start = now();
    const kvmem_status status = kvmem_session_feed(s, id, n, phase, NULL, NULL);
    if (time) eval_add(time, now() - start, n);
    return cell_ok(c, status, s);
}
static void cell_bytes(eval_cell *c, const kvmem_session *s) {
    kvmem_bytes b;
    kvmem_cache_bytes(&s->cache, &b);
    eval_add(&c->live, (double)b.live.total, 1);
    eval_add(&c->peak, (double)b.peak.total, 1);
    eval_add(&c->entries, (double)b.entries, 1);
}

/* A session at a point to which one can come back: by copies that share its pages or, where a byte
   limit holds for both together, from its saved bytes. */
typedef struct eval_base {
    kvmem_session s;
    unsigned char *saved;
    size_t size, cap;
    int by_bytes;
} eval_base;

static int base_write(void *user, const void *bytes, size_t n) {
    eval_base *b = (eval_base *)user;
    if (n > b->cap - b->size) {
        b->cap = 2 * b->cap + n;
        b->saved = (unsigned char *)grow(b->saved, b->cap, 1);
    }
    memcpy(b->saved + b->size, bytes, n);
    b->size += n;
    return 0;
}
static int base_open(eval *e, eval_cell *c, eval_base *b) {
    memset(b, 0, sizeof *b);
    e->cfg.recipe = &c->recipe;
    b->by_bytes = c->recipe.amount.kind == KVMEM_BYTES;
    return cell_ok(c, kvmem_session_init(&b->s, &e->l.model, &e->cfg), &b->s);
}
static int base_mark(eval_cell *c, eval_base *b) {
    return !b->by_bytes || cell_ok(c, kvmem_session_save(&b->s, base_write, b), &b->s);
}
/* *s is the base's content to go on with: tmp or the base itself. */
static int base_fork(eval_cell *c, eval_base *b, kvmem_session *tmp, kvmem_session **s) {
    *s = b->by_bytes ? &b->s : tmp;
    if (b->by_bytes) return cell_ok(c, kvmem_session_load(&b->s, b->saved, b->size), &b->s);
    return cell_ok(c, kvmem_session_copy(tmp, &b->s), tmp);
}
static void base_join(eval_base *b, kvmem_session *tmp) {
    if (!b->by_bytes) kvmem_session_free(tmp);
}
static void base_close(eval_base *b) {
    kvmem_session_free(&b->s);
    free(b->saved);
}

/* The likeliest token (the lowest id of equals), or -1 if a logit is not a number. */
static int best_token(const float *logits, int n) {
    int i, top = 0;
    for (i = 0; i < n; i++) {
        if (!(logits[i] - logits[i] == 0)) return -1;
        if (logits[i] > logits[top]) top = i;
    }
    return top;
}
/* Greedy answer of as many tokens as the right one has; 1: all the same, 0: not, -1: failed. */
static int cell_answer(eval *e, eval_cell *c, kvmem_session *s, const corpus_prompt *q, int *given) {
    int i, id, right = 1;
    for (i = 0; i < q->n_answer; i++) {
        id = best_token(s->logits, e->l.model.n_vocab);
        if (id < 0) {
            snprintf(c->error, sizeof c->error, "the logits are not finite");
            return -1;
        }
        right &= id == q->answer[i];
        if (given) given[i] = id;
        if (!cell_feed(c, s, &id, 1, KVMEM_DECODE, &c->decode)) return -1;
    }
    return right;
}
/* One question to the base; `came`: seconds that the context took. given: the answer's tokens or NULL. */
static int cell_ask(eval *e, eval_cell *c, eval_base *b, const corpus_prompt *q, double came,
                    int *given) {
    kvmem_session tmp, *s;
    eval_sum time = { 0, 0 };
    int right = -1;
    if (!base_fork(c, b, &tmp, &s)) return 0;
    if (cell_feed(c, s, q->ids, q->n, e->r.aware ? KVMEM_PROMPT_END : KVMEM_DECODE, &time)) {
        eval_add(&c->first, came + time.sum, 1);
        right = cell_answer(e, c, s, q, given);
    }
    base_join(b, &tmp);
    if (right < 0) return 0;
    if (c->n_q == c->cap_q)
        c->right = (unsigned char *)grow(c->right, (size_t)(c->cap_q = 2 * c->cap_q + 64), 1);
    c->right[c->n_q++] = (unsigned char)right;
    c->n_right += right;
    return 1;
}
/* Bytes when the question is part of the prompt: of a session of its own, as copies share pages. */
static int aware_bytes(eval *e, eval_cell *c) {
    eval_base b;
    const corpus_test *t = &e->test;
    int ok = base_open(e, c, &b) && cell_feed(c, &b.s, t->ids, t->n, KVMEM_PREFILL, NULL) &&
             cell_feed(c, &b.s, t->q[0].ids, t->q[0].n, KVMEM_PROMPT_END, NULL);
    if (ok) cell_bytes(c, &b.s);
    base_close(&b);
    return ok;
}
/* The questions of e->test; the base has read all of the context (question-aware) or all but its
   last token, in `came` seconds. own: the base's pages are nobody else's, so bytes can be read. */
static int cell_questions(eval *e, eval_cell *c, eval_base *b, double came, int own) {
    const corpus_test *t = &e->test;
    eval_sum time = { 0, 0 };
    int i;
    if (!e->r.aware) {
        if (!cell_feed(c, &b->s, t->ids + t->n - 1, 1, KVMEM_PROMPT_END, &time)) return 0;
        if (own) cell_bytes(c, &b->s);
    }
    eval_add(&c->prefill, came + time.sum, t->n);
    if (!base_mark(c, b)) return 0;
    for (i = 0; i < t->n_q; i++)
        if (!cell_ask(e, c, b, &t->q[i], came + time.sum, NULL)) return 0;
    return 1;
}

/* --- perplexity: rows of the full cache are kept, those of the others compared with them --- */

static double row_log_sum(const float *x, int n) {
    float top = x[0];
    double sum = 0;
    int i;
    for (i = 1; i < n; i++) if (x[i] > top) top = x[i];
    for (i = 0; i < n; i++) sum += exp((double)x[i] - (double)top);
    return (double)top + log(sum);
}
/* Scores token `to` by s->logits, row i of the reference. Sums: nll, kl, same best token. */
static int score_row(eval *e, eval_cell *c, const float *q, int i, int to, double *sum) {
    const int n = e->l.model.n_vocab;
    float *p = e->row + (size_t)i * (size_t)n;
    const double z = row_log_sum(q, n);
    double kl = 0;
    int t;
    if (!(z - z == 0)) {
        snprintf(c->error, sizeof c->error, "the logits are not finite");
        return 0;
    }
    if (c->method == 0) for (t = 0; t < n; t++) p[t] = (float)((double)q[t] - z);
    for (t = 0; t < n && c->method; t++) {
        const double lp = (double)p[t];
        if (lp > -700) kl += exp(lp) * (lp - ((double)q[t] - z));
    }
    sum[0] += z - (double)q[to];
    sum[1] += kl > 0 ? kl : 0;
    sum[2] += best_token(p, n) == best_token(q, n);
    return 1;
}
static int cell_ppl(eval *e, eval_cell *c, eval_base *b, double came, int own) {
    const corpus_test *t = &e->test;
    const int half = t->n / 2, n = t->n - half;
    eval_sum time = { 0, 0 };
    double sum[3] = { 0, 0, 0 };
    int i;
    if (!cell_feed(c, &b->s, t->ids + half - 1, 1, KVMEM_PROMPT_END, &time)) return 0;
    if (own) cell_bytes(c, &b->s);
    eval_add(&c->prefill, came + time.sum, half);
    eval_add(&c->first, came + time.sum, 1);
    for (i = 0; i < n; i++) {
        if (!score_row(e, c, b->s.logits, i, t->ids[half + i], sum)) return 0;
        if (i + 1 < n && !cell_feed(c, &b->s, t->ids + half + i, 1, KVMEM_DECODE, &c->decode))
            return 0;
    }
    c->nll[c->n_s] = sum[0] / n;
    c->kl[c->n_s] = sum[1] / n;
    c->top1[c->n_s++] = sum[2] / n;
    return 1;
}

/* --- one stream through the cells of one method --- */

/* Until the prompt ends, cells of one method that differ only in how much they keep, and remove
   nothing before, do the same work: it is done once and copied. */
static int may_share(const eval_cell *c) {
    return c->recipe.when != KVMEM_WHEN_BLOCK &&
           (c->recipe.amount.kind == KVMEM_COUNT || c->recipe.amount.kind == KVMEM_SHARE);
}
static void run_method(eval *e, eval_cell *c, int n, int stream) {
    const int ppl = group_of(e, c)->suite == EVAL_PPL;
    const int prefix = ppl ? e->test.n / 2 - 1 : e->r.aware ? e->test.n : e->test.n - 1;
    int i, live = 0, share = stream > 0; /* the first stream measures bytes: nothing is shared */
    eval_base all, one;
    eval_sum time = { 0, 0 };
    memset(&all, 0, sizeof all);
    for (i = 0; i < n; i++) {
        if (c[i].error[0]) continue;
        live++;
        share = share && may_share(c + i);
    }
    share = share && live > 1;
    for (i = 0; i < n; i++, e->done += e->test.n) {
        int ok;
        eval_progress(e, 0);
        if (c[i].error[0]) continue;
        if (share && !all.s.model) {
            ok = base_open(e, c + i, &all) &&
                 cell_feed(c + i, &all.s, e->test.ids, prefix, KVMEM_PREFILL, &time);
            if (!ok) { base_close(&all); memset(&all, 0, sizeof all); continue; }
        }
        if (share) {
            memset(&one, 0, sizeof one);
            ok = cell_ok(c + i, kvmem_session_copy(&one.s, &all.s), &one.s);
            one.s.cache.recipe.amount = c[i].recipe.amount;
        } else {
            time.sum = time.n = 0;
            ok = base_open(e, c + i, &one) &&
                 cell_feed(c + i, &one.s, e->test.ids, prefix, KVMEM_PREFILL, &time);
        }
        if (ok && ppl) cell_ppl(e, c + i, &one, time.sum, !share);
        else if (ok && (!e->r.aware || stream || aware_bytes(e, c + i)))
            cell_questions(e, c + i, &one, time.sum, !share);
        base_close(&one);
    }
    if (share) base_close(&all);
}

/* The context and questions of one stream into e->test. */
static int make_stream(eval *e, const eval_group *g, int stream) {
    const eval_suite *suite = &eval_suites[g->suite];
    const int depths = g->suite == EVAL_NEEDLE ? e->r.depths : 1;
    corpus_eval_params p;
    int i;
    if (g->suite == EVAL_PPL && e->text.n) {
        int *id = e->test.ids = (int *)grow(e->test.ids, (size_t)g->ctx, sizeof *id);
        memcpy(id, e->text.id + (size_t)stream * (size_t)g->ctx, (size_t)g->ctx * sizeof *id);
        if (e->l.tokenizer->add_bos) id[0] = e->l.tokenizer->bos;
        e->test.n = g->ctx;
        e->test.n_q = 0;
        return OK;
    }
    memset(&p, 0, sizeof p);
    p.suite = suite->corpus;
    p.ctx = g->ctx;
    p.questions = e->r.questions && suite->questions > 1 ? e->r.questions : suite->questions;
    p.depth = depths > 1 ? 1000 * (stream % depths) / (depths - 1) : 500;
    p.seed = (uint64_t)e->r.seed + (uint64_t)(stream / depths);
    if ((i = corpus_test_make(&e->test, &p)) != 0)
        return fail("suite %s at %d tokens: %s", suite->word, g->ctx, corpus_error(i));
    return OK;
}
static void note_questions(eval *e, eval_group *g, int stream) {
    int i;
    for (i = 0; i < e->test.n_q; i++) {
        eval_question *q;
        if (g->n_q == g->cap_q)
            g->q = (eval_question *)grow(g->q, (size_t)(g->cap_q = 2 * g->cap_q + 64), sizeof *q);
        q = g->q + g->n_q++;
        q->stream = stream;
        q->kind = e->test.q[i].kind;
        q->told = e->test.q[i].told;
    }
}
/* All groups from `first` on. */
static int eval_streams(eval *e, int first) {
    int g, s, i, from = 0, end, status;
    e->started = now();
    while (from < e->r.n_cells && e->r.cell[from].group < first) from++;
    for (i = from; i < e->r.n_cells; i++) {
        const eval_group *of = group_of(e, e->r.cell + i);
        e->all += (double)of->streams * of->ctx;
    }
    for (g = first; g < e->r.n_groups; g++, from = end) {
        for (end = from; end < e->r.n_cells && e->r.cell[end].group == g;) end++;
        for (s = 0; s < e->r.group[g].streams; s++) {
            if ((status = make_stream(e, e->r.group + g, s)) != OK) return status;
            note_questions(e, e->r.group + g, s);
            for (i = from; i < end;) {
                int n = 1;
                while (i + n < end && e->r.cell[i + n].method == e->r.cell[i].method) n++;
                run_method(e, e->r.cell + i, n, s);
                i += n;
            }
        }
    }
    e->r.seconds = now() - e->started;
    eval_progress(e, 1);
    return OK;
}

/* ==== >>eval_count : what the cells say ======================================================== */

/* Right and asked of a cell's questions of one kind (-1: all) from streams of one depth (-1: all). */
static void cell_count(const eval *e, const eval_cell *c, int kind, int depth, int *right, int *asked) {
    const eval_group *g = group_of(e, c);
    const int depths = g->suite == EVAL_NEEDLE ? e->r.depths : 1;
    int i;
    *right = *asked = 0;
    for (i = 0; i < c->n_q && i < g->n_q; i++) {
        if (kind >= 0 && g->q[i].kind != kind) continue;
        if (depth >= 0 && g->q[i].stream % depths != depth) continue;
        ++*asked;
        *right += c->right[i];
    }
}
/* Questions that only a, only b, both answered; both cells are of one group and complete. */
static void cell_pair(const eval_cell *a, const eval_cell *b, int *only_a, int *only_b, int *both) {
    int i;
    *only_a = *only_b = *both = 0;
    for (i = 0; i < a->n_q && i < b->n_q; i++) {
        *only_a += a->right[i] && !b->right[i];
        *only_b += b->right[i] && !a->right[i];
        *both += a->right[i] && b->right[i];
    }
}
/* Are these two compared? Same group, same budget, or one of them is the full cache. */
static int cell_rivals(const eval_cell *a, const eval_cell *b) {
    if (a->group != b->group || a->error[0] || b->error[0] || a->method == b->method) return 0;
    return a->method == 0 || !strcmp(a->amount, b->amount);
}
static const eval_cell *full_cell(const eval *e, const eval_cell *c) {
    while (c > e->r.cell && c[-1].group == c->group) c--;
    return c;
}
/* Live bytes as a share of what the full cache has for the same context; -1: not measured. */
static double cell_share(const eval *e, const eval_cell *c) {
    const double full = eval_mean(&full_cell(e, c)->live), live = eval_mean(&c->live);
    return full > 0 && live >= 0 ? live / full : -1;
}
static double sum_rate(const eval_sum *s) { return s->sum > 0 ? s->n / s->sum : -1; }

/* ==== >>grid : a table whose columns are as wide as what stands in them ======================= */

typedef struct grid { char (*text)[96]; int rows, cols, at, left; } grid;

static void grid_begin(grid *t, int cols, int left) { /* `left` columns are set to the left */
    memset(t, 0, sizeof *t);
    t->cols = cols;
    t->left = left;
}
KVMEM__PRINTF(2, 3) static void grid_put(grid *t, const char *f, ...) { /* the next cell */
    va_list ap;
    if (t->at % t->cols == 0) {
        t->rows++;
        t->text = (char(*)[96])grow(t->text, (size_t)t->rows * (size_t)t->cols, sizeof *t->text);
    }
    va_start(ap, f);
    vsnprintf(t->text[t->at++], sizeof *t->text, f, ap);
    va_end(ap);
}
static void grid_skip(grid *t) { /* empty cells to the end of the row */
    while (t->at % t->cols) grid_put(t, "%s", "");
}
static int grid_width(const grid *t, int col) {
    size_t w = 0;
    int i;
    for (i = 0; i < t->rows; i++)
        if (strlen(t->text[i * t->cols + col]) > w) w = strlen(t->text[i * t->cols + col]);
    return (int)w;
}
static void grid_print(grid *t) { /* columns with nothing in them are left out; empties the grid */
    int i, j;
    int *width = (int *)grow(NULL, (size_t)t->cols, sizeof *width);
    for (j = 0; j < t->cols; j++) width[j] = grid_width(t, j);
    for (i = 0; i < t->rows; i++) {
        for (j = 0; j < t->cols; j++)
            if (width[j]) put(j < t->left ? "%-*s  " : "%*s  ", width[j], t->text[i * t->cols + j]);
        while (out.len && out.text[out.len - 1] == ' ') out.len--;
        put("\n");
    }
    free(width);
    free(t->text);
    memset(t, 0, sizeof *t);
}

/* ==== >>eval_table : for people =============================================================== */

static void grid_head(grid *t, const char *heads) { /* words separated by '|' */
    size_t n;
    for (; *heads; heads += n + (heads[n] == '|')) {
        n = strcspn(heads, "|");
        grid_put(t, "%.*s", (int)n, heads);
    }
}
static void grid_measured(const eval *e, grid *t, const eval_cell *c) {
    const double live = eval_mean(&c->live), share = cell_share(e, c), first = eval_mean(&c->first);
    if (live >= 0) grid_put(t, "%.1f", live / 1024);
    else grid_put(t, "-");
    if (share >= 0) grid_put(t, "%.1f", 100 * share);
    else grid_put(t, "-");
    grid_put(t, sum_rate(&c->prefill) < 0 ? "-" : "%.0f", sum_rate(&c->prefill));
    grid_put(t, first < 0 ? "-" : "%.0f", 1000 * first);
    grid_put(t, sum_rate(&c->decode) < 0 ? "-" : "%.0f", sum_rate(&c->decode));
}
#define GRID_MEASURED "live KiB|% of full|prefill/s|first ms|decode/s"

static void grid_row_start(const eval *e, grid *t, const eval_cell *c) {
    grid_put(t, "%s", eval_suites[group_of(e, c)->suite].word);
    grid_put(t, "%d", group_of(e, c)->ctx);
    grid_put(t, "%s", e->r.method[c->method]);
    grid_put(t, "%s", c->amount);
}
static void table_questions(const eval *e, int suite) {
    const int needle = suite == EVAL_NEEDLE, parts = needle ? e->r.depths : 4;
    grid t;
    int i, k, right, asked;
    grid_begin(&t, 12 + parts, 0);
    grid_head(&t, "suite|ctx|recipe|budget|right|accuracy|95 % interval");
    for (k = 0; k < parts; k++) {
        if (needle) grid_put(&t, "at %d%%", e->r.depths > 1 ? 100 * k / (e->r.depths - 1) : 50);
        else grid_put(&t, "%s", suite == EVAL_CONV ? eval_kinds[k] : "");
    }
    grid_head(&t, GRID_MEASURED);
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        const interval w = wilson(c->n_right, c->n_q);
        if (group_of(e, c)->suite != suite) continue;
        grid_row_start(e, &t, c);
        if (c->error[0]) { grid_put(&t, "failed"); grid_skip(&t); continue; }
        grid_put(&t, "%d/%d", c->n_right, c->n_q);
        grid_put(&t, "%.3f", c->n_q ? (double)c->n_right / c->n_q : 0);
        grid_put(&t, "[%.3f, %.3f]", w.lo, w.hi);
        for (k = 0; k < parts; k++) {
            cell_count(e, c, needle ? -1 : k, needle ? k : -1, &right, &asked);
            if (!needle && suite != EVAL_CONV) grid_put(&t, "%s", "");
            else if (asked) grid_put(&t, "%d/%d", right, asked);
            else grid_put(&t, "-");
        }
        grid_measured(e, &t, c);
    }
    t.left = 4;
    grid_print(&t);
}
static void table_ppl(const eval *e) {
    grid t;
    int i;
    grid_begin(&t, 14, 4);
    grid_head(&t, "suite|ctx|recipe|budget|ppl|95 % interval|KL|95 % interval|top-1|" GRID_MEASURED);
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        interval w;
        if (group_of(e, c)->suite != EVAL_PPL) continue;
        grid_row_start(e, &t, c);
        if (c->error[0]) { grid_put(&t, "failed"); grid_skip(&t); continue; }
        w = bootstrap(c->nll, c->n_s);
        grid_put(&t, "%.4g", exp(mean_of(c->nll, c->n_s)));
        grid_put(&t, "[%.4g, %.4g]", exp(w.lo), exp(w.hi));
        w = bootstrap(c->kl, c->n_s);
        grid_put(&t, "%.3g", mean_of(c->kl, c->n_s));
        grid_put(&t, "[%.3g, %.3g]", w.lo, w.hi);
        grid_put(&t, "%.3f", mean_of(c->top1, c->n_s));
        grid_measured(e, &t, c);
    }
    grid_print(&t);
}
/* Cells of one group and budget, best first; returns how many. */
static int ranked(const eval *e, int group, const char *amount, const eval_cell **list) {
    int i, j, n = 0;
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        if (c->group != group || !c->method || c->error[0] || strcmp(c->amount, amount)) continue;
        for (j = n++; j > 0 && list[j - 1]->n_right < c->n_right; j--) list[j] = list[j - 1];
        list[j] = c;
    }
    return n;
}
/* Is this the group's first cell with its budget? */
static int first_of_budget(const eval *e, const eval_cell *c) {
    const eval_cell *b = full_cell(e, c);
    while (b->method == 0 || strcmp(b->amount, c->amount)) b++;
    return b == c;
}
/* "snapkv 0.91  >  h2o 0.80 (p 0.002)": who is separated from the next one, on the same questions. */
static void table_ranking(const eval *e) {
    const eval_cell **list = (const eval_cell **)grow(NULL, (size_t)e->r.n_cells + 1, sizeof *list);
    int c, i, n, any = 0, only_a, only_b, both;
    for (c = 0; c < e->r.n_cells; c++) {
        const eval_cell *of = e->r.cell + c;
        const eval_group *g = group_of(e, of);
        if (g->suite == EVAL_PPL || !of->method || !first_of_budget(e, of)) continue;
        if (!strcmp(of->amount, "-") || (n = ranked(e, of->group, of->amount, list)) < 2) continue;
        if (!any++)
            put("\nranking, neighbours compared on the same questions: > separated (exact McNemar "
                "p < 0.05), ~ not\n");
        put("%s %d, %s: ", eval_suites[g->suite].word, g->ctx, of->amount);
        for (i = 0; i < n; i++) {
            if (i) {
                double p;
                cell_pair(list[i - 1], list[i], &only_a, &only_b, &both);
                p = mcnemar(only_a, only_b);
                put(" %c (p %.2g) ", p < 0.05 ? '>' : '~', p);
            }
            put("%s %.3f", e->r.method[list[i]->method],
                list[i]->n_q ? (double)list[i]->n_right / list[i]->n_q : 0);
        }
        put("\n");
    }
    free(list);
}
static void table_pairs(const eval *e) {
    grid t;
    int i, j, a, b, both;
    grid_begin(&t, 9, 5);
    grid_head(&t, "suite|ctx|budget|first|second|only first|only second|difference|McNemar p");
    for (i = 0; i < e->r.n_cells; i++)
        for (j = i + 1; j < e->r.n_cells; j++) {
            const eval_cell *x = e->r.cell + i, *y = e->r.cell + j, *swap;
            interval w;
            if (!cell_rivals(x, y) || group_of(e, x)->suite == EVAL_PPL) continue;
            if (x->n_right < y->n_right) { swap = x; x = y; y = swap; }
            cell_pair(x, y, &a, &b, &both);
            w = paired(a, b, x->n_q);
            grid_put(&t, "%s", eval_suites[group_of(e, x)->suite].word);
            grid_put(&t, "%d", group_of(e, x)->ctx);
            grid_put(&t, "%s", y->method ? y->amount : x->amount);
            grid_put(&t, "%s", e->r.method[x->method]);
            grid_put(&t, "%s", e->r.method[y->method]);
            grid_put(&t, "%d", a);
            grid_put(&t, "%d", b);
            grid_put(&t, "%.3f [%.3f, %.3f]", (double)(a - b) / (x->n_q ? x->n_q : 1), w.lo, w.hi);
            grid_put(&t, "%.2g", mcnemar(a, b));
        }
    put("\n");
    grid_print(&t);
}
static const char *cell_says(const eval_cell *c) { return c->error[0] ? c->error : c->note; }
static int same_note(const eval_cell *a, const eval_cell *b) {
    return !strcmp(a->text, b->text) && !strcmp(cell_says(a), cell_says(b));
}
static void table_notes(const eval *e) { /* each once, however many cells it is true of */
    int i, j, same, any = 0;
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        if (!cell_says(c)[0]) continue;
        for (j = 0; j < i && !same_note(e->r.cell + j, c);) j++;
        if (j < i) continue;
        for (same = 0; j < e->r.n_cells; j++) same += same_note(e->r.cell + j, c);
        if (!any++) put("\n");
        put("%s: %s", c->error[0] ? "failed" : "note", c->text);
        if (same > 1) put(" (%d cells)", same);
        else put(" (%s %d)", eval_suites[group_of(e, c)->suite].word, group_of(e, c)->ctx);
        put(": %s\n", cell_says(c));
    }
}
static void eval_table(const eval *e) {
    int s, i, any = 0, streams = 0;
    for (i = 0; i < e->r.n_groups; i++) streams += e->r.group[i].streams;
    put("model    %s, trained for contexts up to %d\n", e->a->model, e->l.model.n_ctx_train);
    put("asked    %s; %d contexts, seeds %lld to %lld; %.1f s\n\n",
        e->r.aware ? "with the question known when the context was compressed"
                   : "after the context was compressed",
        streams, (long long)e->r.seed, (long long)e->r.seed + e->r.seeds - 1, e->r.seconds);
    for (s = 0; s < EVAL_SUITES; s++) {
        int here = 0;
        for (i = 0; i < e->r.n_groups; i++) here |= e->r.group[i].suite == s;
        if (!here) continue;
        if (any++) put("\n");
        if (s == EVAL_PPL) table_ppl(e);
        else table_questions(e, s);
    }
    table_ranking(e);
    if (e->a->pairs) table_pairs(e);
    table_notes(e);
}

/* ==== >>eval_forms : for programs ============================================================= */

static void json_measured(const eval *e, const eval_cell *c) {
    json_real("live_bytes", eval_mean(&c->live));
    json_real("peak_bytes", eval_mean(&c->peak));
    json_real("entries", eval_mean(&c->entries));
    json_real("share_of_full", cell_share(e, c));
    json_real("prefill_tokens_per_second", sum_rate(&c->prefill));
    json_real("first_token_seconds", eval_mean(&c->first));
    json_real("decode_tokens_per_second", sum_rate(&c->decode));
}
static void json_answers(const eval *e, const eval_cell *c) {
    const eval_group *g = group_of(e, c);
    const interval w = wilson(c->n_right, c->n_q);
    int k, right, asked;
    json_int("asked", c->n_q);
    json_int("right", c->n_right);
    json_real("accuracy", c->n_q ? (double)c->n_right / c->n_q : 0);
    json_real("lo", w.lo);
    json_real("hi", w.hi);
    json_open("kinds", '{');
    for (k = 0; k < CORPUS_KINDS; k++) {
        cell_count(e, c, k, -1, &right, &asked);
        if (!asked) continue;
        json_open(eval_kinds[k], '{');
        json_int("asked", asked);
        json_int("right", right);
        json_close();
    }
    json_close();
    if (g->suite == EVAL_NEEDLE) {
        json_open("depths", '[');
        for (k = 0; k < e->r.depths; k++) {
            cell_count(e, c, -1, k, &right, &asked);
            json_open(NULL, '{');
            json_real("depth", e->r.depths > 1 ? (double)k / (e->r.depths - 1) : 0.5);
            json_int("asked", asked);
            json_int("right", right);
            json_close();
        }
        json_close();
    }
    json_key("answers"); /* one digit a question */
    put("\"");
    for (k = 0; k < c->n_q; k++) put("%d", c->right[k]);
    put("\"");
}
static void json_scores(const eval_cell *c) {
    interval w = bootstrap(c->nll, c->n_s);
    json_real("ppl", exp(mean_of(c->nll, c->n_s)));
    json_real("ppl_lo", exp(w.lo));
    json_real("ppl_hi", exp(w.hi));
    w = bootstrap(c->kl, c->n_s);
    json_real("kl", mean_of(c->kl, c->n_s));
    json_real("kl_lo", w.lo);
    json_real("kl_hi", w.hi);
    json_real("same_top1", mean_of(c->top1, c->n_s));
}
static void json_cell(const eval *e, const eval_cell *c) {
    json_open(NULL, '{');
    json_text("recipe", e->r.method[c->method]);
    json_text("budget", c->amount);
    json_text("text", c->text);
    if (c->error[0]) json_text("error", c->error);
    if (c->note[0]) json_text("note", c->note);
    if (!c->error[0]) {
        if (group_of(e, c)->suite == EVAL_PPL) json_scores(c);
        else json_answers(e, c);
        json_measured(e, c);
    }
    json_close();
}
static void json_pairs(const eval *e, int group) {
    int i, j, a, b, both;
    json_open("pairs", '[');
    for (i = 0; i < e->r.n_cells; i++)
        for (j = i + 1; j < e->r.n_cells; j++) {
            const eval_cell *x = e->r.cell + i, *y = e->r.cell + j;
            interval w;
            if (x->group != group || !cell_rivals(x, y)) continue;
            cell_pair(x, y, &a, &b, &both);
            w = paired(a, b, x->n_q);
            json_open(NULL, '{');
            json_text("first", x->text);
            json_text("second", y->text);
            json_int("only_first", a);
            json_int("only_second", b);
            json_int("both", both);
            json_real("lo", w.lo);
            json_real("hi", w.hi);
            json_real("p", mcnemar(a, b));
            json_close();
        }
    json_close();
}
static void eval_json(const eval *e) {
    int g, i;
    json_open(NULL, '{');
    json_text("model", e->a->model);
    json_int("n_ctx_train", e->l.model.n_ctx_train);
    json_bool("question_aware", e->r.aware);
    json_int("first_seed", e->r.seed);
    json_int("seeds", e->r.seeds);
    json_real("seconds", e->r.seconds);
    json_open("suites", '[');
    for (g = 0; g < e->r.n_groups; g++) {
        const eval_group *of = e->r.group + g;
        json_open(NULL, '{');
        json_text("suite", eval_suites[of->suite].word);
        json_int("ctx", of->ctx);
        json_int("contexts", of->streams);
        json_open("questions", '[');
        for (i = 0; i < of->n_q; i++) {
            json_open(NULL, '{');
            json_int("context", of->q[i].stream);
            json_text("kind", eval_kinds[of->q[i].kind]);
            json_int("told", of->q[i].told);
            json_close();
        }
        json_close();
        json_open("cells", '[');
        for (i = 0; i < e->r.n_cells; i++)
            if (e->r.cell[i].group == g) json_cell(e, e->r.cell + i);
        json_close();
        if (of->suite != EVAL_PPL) json_pairs(e, g);
        json_close();
    }
    json_close();
    json_close();
}
static void csv_text(const char *s) {
    put("\"");
    for (; *s; s++) put(*s == '"' ? "\"\"" : "%c", *s);
    put("\",");
}
static void csv_real(double v, int there) {
    if (there && v - v == 0) put("%.9g", v);
    put(",");
}
static void eval_csv(const eval *e) {
    int i, k, right, asked;
    put("suite,ctx,recipe,budget,asked,right,accuracy,lo,hi,");
    for (k = 0; k < CORPUS_KINDS; k++) put("%s_asked,%s_right,", eval_kinds[k], eval_kinds[k]);
    put("ppl,ppl_lo,ppl_hi,kl,kl_lo,kl_hi,same_top1,entries,live_bytes,peak_bytes,share_of_full,"
        "prefill_tokens_per_second,first_token_seconds,decode_tokens_per_second,note\n");
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        const int ok = !c->error[0], ppl = group_of(e, c)->suite == EVAL_PPL;
        const interval w = wilson(c->n_right, c->n_q), nll = bootstrap(c->nll, c->n_s),
                       kl = bootstrap(c->kl, c->n_s);
        put("%s,%d,", eval_suites[group_of(e, c)->suite].word, group_of(e, c)->ctx);
        csv_text(e->r.method[c->method]);
        csv_text(c->amount);
        put("%d,%d,", ok ? c->n_q : 0, ok ? c->n_right : 0);
        csv_real(c->n_q ? (double)c->n_right / c->n_q : 0, ok && !ppl);
        csv_real(w.lo, ok && !ppl);
        csv_real(w.hi, ok && !ppl);
        for (k = 0; k < CORPUS_KINDS; k++) {
            cell_count(e, c, k, -1, &right, &asked);
            put("%d,%d,", asked, right);
        }
        csv_real(exp(mean_of(c->nll, c->n_s)), ok && ppl);
        csv_real(exp(nll.lo), ok && ppl);
        csv_real(exp(nll.hi), ok && ppl);
        csv_real(mean_of(c->kl, c->n_s), ok && ppl);
        csv_real(kl.lo, ok && ppl);
        csv_real(kl.hi, ok && ppl);
        csv_real(mean_of(c->top1, c->n_s), ok && ppl);
        csv_real(eval_mean(&c->entries), c->entries.n > 0);
        csv_real(eval_mean(&c->live), c->live.n > 0);
        csv_real(eval_mean(&c->peak), c->peak.n > 0);
        csv_real(cell_share(e, c), cell_share(e, c) >= 0);
        csv_real(sum_rate(&c->prefill), c->prefill.n > 0);
        csv_real(eval_mean(&c->first), c->first.n > 0);
        csv_real(sum_rate(&c->decode), c->decode.n > 0);
        csv_text(ok ? c->note : c->error);
        out.len--; /* the comma at the line's end */
        put("\n");
    }
}

/* ==== >>eval_report : the HTML file ============================================================ */

static double budget_share(const eval_cell *c, int ctx, double full) {
    const kvmem_amount am = c->recipe.amount;
    double share = 1;
    if (am.kind == KVMEM_COUNT) share = am.value / ctx;
    if (am.kind == KVMEM_SHARE) share = am.value;
    if (am.kind == KVMEM_BYTES && full > 0) share = am.value / full;
    return share < 1 ? share : 1;
}
static void report_one(const eval *e, report_data *d, const eval_cell *c, int kind, int depth) {
    const eval_group *g = group_of(e, c);
    const double full = eval_mean(&full_cell(e, c)->live);
    const eval_sum *all = &full_cell(e, c)->entries;
    report_cell r;
    memset(&r, 0, sizeof r);
    r.suite = eval_suites[g->suite].word;
    r.kind = kind < 0 ? NULL : eval_kinds[kind];
    r.method = e->r.method[c->method];
    r.recipe = c->text;
    r.budget = budget_share(c, g->ctx, full);
    r.ctx = g->ctx;
    r.depth = depth < 0 ? -1 : e->r.depths > 1 ? 1000 * depth / (e->r.depths - 1) : 500;
    r.aware = e->r.aware;
    cell_count(e, c, kind, depth, &r.right, &r.asked);
    if (!r.asked && (kind >= 0 || depth >= 0)) return;
    r.bytes = eval_mean(&c->live);
    r.peak = eval_mean(&c->peak);
    r.full_bytes = full;
    r.entries = eval_mean(all) > 0 ? eval_mean(&c->entries) / eval_mean(all) : -1;
    r.speed = sum_rate(&c->prefill);
    r.first = eval_mean(&c->first);
    r.ppl = c->n_s ? exp(mean_of(c->nll, c->n_s)) : -1;
    r.kl = c->n_s ? mean_of(c->kl, c->n_s) : -1;
    r.top1 = c->n_s ? mean_of(c->top1, c->n_s) : -1;
    report_add(d, &r);
}
static void report_cells(const eval *e, report_data *d) {
    int i, j, k, a, b, both;
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        const int suite = group_of(e, c)->suite;
        if (c->error[0]) continue;
        report_one(e, d, c, -1, -1);
        for (k = 0; suite == EVAL_CONV && k < CORPUS_KINDS; k++) report_one(e, d, c, k, -1);
        for (k = 0; suite == EVAL_NEEDLE && k < e->r.depths; k++) report_one(e, d, c, -1, k);
    }
    for (i = 0; i < e->r.n_cells; i++)
        for (j = i + 1; j < e->r.n_cells; j++) {
            const eval_cell *x = e->r.cell + i, *y = e->r.cell + j;
            interval w;
            report_pair p;
            if (!cell_rivals(x, y) || group_of(e, x)->suite == EVAL_PPL) continue;
            cell_pair(x, y, &a, &b, &both);
            w = paired(a, b, x->n_q);
            p.suite = eval_suites[group_of(e, x)->suite].word;
            p.a = x->text;
            p.b = y->text;
            p.ctx = group_of(e, x)->ctx;
            p.asked = x->n_q;
            p.both = both;
            p.only_a = a;
            p.only_b = b;
            p.diff = x->n_q ? (double)(a - b) / x->n_q : 0;
            p.lo = w.lo;
            p.hi = w.hi;
            report_add_pair(d, &p);
        }
}
/* The text of ids, one space in front taken away; a buffer of the caller. */
static const char *ids_text(const eval *e, const int *id, int n, char *buf, size_t size) {
    size_t len = kvmem_detokenize(e->l.tokenizer, id, (size_t)n, 0, buf, size - 1);
    if (len > size - 1) len = size - 1;
    buf[len] = 0;
    return buf[0] == ' ' ? buf + 1 : buf;
}
/* The conversation in e->test and its questions. */
static report_audit *audit_begin(const eval *e, report_data *d) {
    const kvmem_model *m = &e->l.model;
    report_audit *a = report_audit_begin(d, m->n_layers, m->n_kv_heads, m->head_dim);
    char text[512], want[256];
    int i;
    for (i = 0; i < e->test.n; i++) {
        const size_t n =
            kvmem_token_bytes(e->l.tokenizer, e->test.ids[i], KVMEM_SHOW_SPECIAL, text, sizeof text);
        report_audit_token(a, text, n < sizeof text ? n : sizeof text);
    }
    for (i = 0; i < e->test.n_q; i++) {
        const corpus_prompt *q = e->test.q + i;
        report_question r;
        memset(&r, 0, sizeof r);
        r.kind = eval_kinds[q->kind];
        r.text = ids_text(e, q->ids, q->n, text, sizeof text);
        r.want = ids_text(e, q->answer, q->n_answer, want, sizeof want);
        r.at = -1;
        r.told[0] = q->told;
        r.n_told = q->told >= 0;
        report_audit_question(a, &r);
    }
    return a;
}
/* One recipe over the conversation, watched; its answers. c gives the recipe and takes nothing. */
static void audit_run(eval *e, report_audit *a, const eval_cell *of) {
    eval_cell c = *of;
    eval_base b;
    kvmem_bytes bytes;
    char text[256];
    int i, given[CORPUS_NOTE], was_aware = e->r.aware;
    report_run *run = report_run_begin(a, e->r.method[of->method], of->text,
                                       of->recipe.stage[KVMEM_CODEC_K].entry->word,
                                       of->recipe.stage[KVMEM_CODEC_V].entry->word);
    c.right = NULL;
    c.n_q = c.cap_q = c.n_right = 0;
    e->r.aware = 0;
    if (run && base_open(e, &c, &b)) {
        kvmem_cache_trace(&b.s.cache, report_trace, run);
        i = cell_feed(&c, &b.s, e->test.ids, e->test.n - 1, KVMEM_PREFILL, NULL) &&
            cell_feed(&c, &b.s, e->test.ids + e->test.n - 1, 1, KVMEM_PROMPT_END, NULL);
        kvmem_cache_trace(&b.s.cache, NULL, NULL);
        kvmem_cache_bytes(&b.s.cache, &bytes);
        report_run_bytes(run, (double)bytes.live.total, (double)bytes.entries);
        if (i) i = base_mark(&c, &b);
        while (i && c.n_q < e->test.n_q) {
            const corpus_prompt *q = e->test.q + c.n_q;
            const int at = c.n_q;
            if (!cell_ask(e, &c, &b, q, 0, given)) break;
            report_run_answer(run, at, ids_text(e, given, q->n_answer, text, sizeof text),
                              c.right[at]);
        }
    }
    if (run) base_close(&b);
    e->r.aware = was_aware;
    free(c.right);
}
/* The first conversation at the shortest length, under every recipe at one budget (the one nearest to
   an eighth), or under the recipes of --audit. */
static int report_conversation(eval *e, report_data *d) {
    const eval_group *g = NULL;
    report_audit *a;
    int i, j, status;
    for (i = 0; i < e->r.n_groups; i++)
        if (e->r.group[i].suite == EVAL_CONV && (!g || e->r.group[i].ctx < g->ctx))
            g = e->r.group + i;
    if (!g) return OK;
    if ((status = make_stream(e, g, 0)) != OK) return status;
    a = audit_begin(e, d);
    for (i = 0; i < e->a->audits.n; i++) {
        eval_cell c;
        memset(&c, 0, sizeof c);
        c.group = (int)(g - e->r.group);
        snprintf(c.text, sizeof c.text, "%s", e->a->audits.item[i]);
        parse_recipe(c.text, &c.recipe);
        audit_run(e, a, &c);
    }
    for (i = 0; i < e->r.n_cells && !e->a->audits.n; i++) {
        const eval_cell *c = e->r.cell + i, *best = c;
        if (e->r.group + c->group != g || c->error[0] || (i && c[-1].group == c->group && c[-1].method == c->method)) continue;
        for (j = i; j < e->r.n_cells && e->r.cell[j].group == c->group && e->r.cell[j].method == c->method; j++)
            if (!e->r.cell[j].error[0] &&
                fabs(budget_share(e->r.cell + j, g->ctx, 0) - 0.125) < fabs(budget_share(best, g->ctx, 0) - 0.125))
                best = e->r.cell + j;
        audit_run(e, a, best);
    }
    return OK;
}
static int eval_report(eval *e, const char *title) {
    report_data d;
    const char *why = "";
    char machine[160], date[32] = "";
    const time_t t = time(NULL);
    int status;
    report_init(&d);
    strftime(date, sizeof date, "%Y-%m-%d", gmtime(&t));
    snprintf(machine, sizeof machine, "%s kernels", kvmem_backend_name(e->cfg.backend));
    d.title = title;
    d.model = e->a->model;
    d.command = e->a->line;
    d.machine = machine;
    d.date = date;
    report_cells(e, &d);
    status = report_conversation(e, &d);
    if (status == OK && report_write(&d, e->a->report, &why))
        status = fail("--report %s: %s", e->a->report, why);
    report_free(&d);
    return status;
}
/* Before the long work: can the file be written? */
static int report_writable(const char *path) {
    FILE *f = fopen(path, "rb");
    const int there = f != NULL;
    if (f) fclose(f);
    f = fopen(path, "ab");
    if (!f) return misuse("--report %s: cannot be written: %s", path, strerror(errno));
    fclose(f);
    if (!there) remove(path);
    return OK;
}

/* ==== >>eval_command ========================================================================== */

/* Is the vocabulary that of corpus.h? The word that differs is named. */
static int check_vocabulary(const eval *e) {
    const kvmem_tokenizer *t = e->l.tokenizer;
    char text[16], own[16];
    int i;
    for (i = 0; i < corpus_n_vocab(); i++) {
        const int n = corpus_text(i, text);
        const size_t m = i < e->l.model.n_vocab ? kvmem_token_bytes(t, i, 0, own, sizeof own) : 99;
        if (m == (size_t)n && !memcmp(text, own, m)) continue;
        return fail("%s: its vocabulary is not that of kvmem's language (token %d is not \"%.*s\"), "
                    "which every suite but ppl with --text FILE is written in", e->a->model, i, n, text);
    }
    return OK;
}
static int check_lengths(const eval *e) {
    int i;
    for (i = 0; i < e->r.n_groups; i++)
        if (e->r.group[i].ctx > e->l.model.n_ctx_train)
            return misuse("--ctx %d: beyond the %d tokens that %s was trained for", e->r.group[i].ctx,
                          e->l.model.n_ctx_train, e->a->model);
    return OK;
}
/* The text of --text, long enough for the streams of the longest ppl group. */
static int load_text(eval *e) {
    int i, need = 0, status;
    file f;
    for (i = 0; i < e->r.n_groups; i++)
        if (e->r.group[i].suite == EVAL_PPL && e->r.group[i].ctx > need) need = e->r.group[i].ctx;
    if (!need) return misuse("--text is only used by --suite ppl");
    if (file_open(&f, e->a->text)) return FAILED;
    status = tokenize(e->l.tokenizer, f.bytes ? (const char *)f.bytes : "", f.size, 0, &e->text);
    file_close(&f);
    if (status == OK && (int64_t)e->text.n < (int64_t)need * e->r.seeds)
        status = fail("%s: %d tokens; %d streams of %d need more (--seeds, --ctx)", e->a->text,
                      e->text.n, e->r.seeds, need);
    return status;
}
static int take_memory(eval *e) {
    int i, longest = 0;
    for (i = 0; i < e->r.n_cells; i++) {
        eval_cell *c = e->r.cell + i;
        const eval_group *g = group_of(e, c);
        if (g->suite != EVAL_PPL) continue;
        if (g->ctx < 8) return misuse("--ctx %d: ppl needs at least 8 tokens", g->ctx);
        if (g->ctx > longest) longest = g->ctx;
        c->nll = (double *)grow(NULL, (size_t)g->streams, sizeof(double));
        c->kl = (double *)grow(NULL, (size_t)g->streams, sizeof(double));
        c->top1 = (double *)grow(NULL, (size_t)g->streams, sizeof(double));
    }
    e->rows = longest - longest / 2;
    if (e->rows)
        e->row = (float *)grow(NULL, (size_t)e->rows * (size_t)e->l.model.n_vocab, sizeof(float));
    return OK;
}
/* Options to cells: everything that can be wrong with them is said here, before the model is read. */
static int eval_options(eval *e, char *buf, size_t size) {
    const args *a = e->a;
    kvmem_recipe r;
    int i, status;
    e->r.seeds = (int)a->seeds;
    e->r.questions = (int)a->questions;
    e->r.depths = (int)a->depths;
    e->r.aware = a->aware;
    e->r.seed = a->seed;
    if (a->json && a->csv) return misuse("--json and --csv cannot be given together");
    if ((status = each_part(e, "--suite", a->suite, buf, size / 2, plan_suite)) != OK) return status;
    if ((status = each_part(e, "--budgets", a->budgets, buf + size / 2, size / 2, plan_budget)) != OK)
        return status;
    if ((status = plan_methods(e)) != OK) return status;
    for (i = 0; i < a->audits.n; i++)
        if ((status = parse_recipe(a->audits.item[i], &r)) != OK) return status;
    if (a->audits.n && !a->report) return misuse("--audit goes with --report FILE");
    if ((status = plan_lengths(e, a->lengths)) != OK) return status;
    plan_cells(e);
    e->cfg = kvmem_session_config_default();
    e->cfg.threads = (int)a->threads;
    e->cfg.max_block = (int)a->block;
    if (a->report && (status = report_writable(a->report)) != OK) return status;
    return find_backend(a, &e->cfg.backend);
}
static int eval_open(eval *e) {
    int i, status, corpus = 0;
    if (!e->a->model) return misuse("-m MODEL is needed: there is no %s here", DEFAULT_MODEL);
    if ((status = load_model(&e->l, e->a, 1)) != OK) return status;
    if ((status = check_lengths(e)) != OK) return status;
    if (e->a->text && (status = load_text(e)) != OK) return status;
    for (i = 0; i < e->r.n_groups; i++)
        corpus |= e->r.group[i].suite != EVAL_PPL || !e->a->text;
    if (corpus && (status = check_vocabulary(e)) != OK) return status;
    return take_memory(e);
}
static void eval_begin(eval *e, const args *a) {
    memset(e, 0, sizeof *e);
    e->own = *a;
    e->a = &e->own;
    default_model(&e->own);
}
static int cmd_eval(const args *a) {
    eval e;
    char buf[2048];
    int status, i, failed = 0;
    eval_begin(&e, a);
    status = eval_options(&e, buf, sizeof buf);
    if (status == OK) status = eval_open(&e);
    if (status == OK) status = eval_streams(&e, 0);
    if (status == OK && a->report) status = eval_report(&e, "kvmem eval");
    if (status == OK) {
        if (a->json) eval_json(&e);
        else if (a->csv) eval_csv(&e);
        else eval_table(&e);
        for (i = 0; i < e.r.n_cells; i++) failed += e.r.cell[i].error[0] != 0;
    }
    if (failed) {
        status = flush_out(stdout);
        if (status == OK)
            status = fail("%d of %d cells could not run; the output says why",
                          failed, e.r.n_cells);
    }
    eval_close(&e);
    return status;
}

/* ==== >>demo : one conversation, several memories ============================================== */

static int use_colour, use_utf8;
static void demo_look(void) {
    const char *l = getenv("LC_ALL");
    if (!l || !*l) l = getenv("LC_CTYPE");
    if (!l || !*l) l = getenv("LANG");
    use_utf8 = l && (strstr(l, "UTF-8") || strstr(l, "utf8") || strstr(l, "UTF8"));
    l = getenv("NO_COLOR");
    use_colour = is_terminal(stdout) && !(l && *l);
}
/* Text in a column of the screen, coloured: 0 plain, 1 bold, 31 red, 32 green, 2 faint. */
static void put_column(const char *text, int width, int colour) {
    if (use_colour && colour) put("\033[%dm", colour);
    put("%.*s", width, text);
    if (use_colour && colour) put("\033[0m");
    put("%*s", width > (int)strlen(text) ? width - (int)strlen(text) : 0, "");
}
static void demo_answer(const char *text, int right, int width) {
    const char *mark = use_utf8 ? (right ? "\xE2\x9C\x93 " : "\xE2\x9C\x97 ") : right ? "ok" : "no";
    if (use_colour) put("\033[%dm", right ? 32 : 31);
    put("%s %.*s", mark, width - 4, text);
    if (use_colour) put("\033[0m");
    put("%*s", width - 3 > (int)strlen(text) ? width - 3 - (int)strlen(text) : 1, "");
    flush_out(stdout);
}
/* The first lines of the conversation, then how much more there is. */
static void demo_head(const eval *e) {
    char text[128];
    int i, line = 0;
    for (i = 1; i < e->test.n && line < 6; i++) {
        const size_t n =
            kvmem_token_bytes(e->l.tokenizer, e->test.ids[i], 0, text, sizeof text);
        if (use_colour && !line) put("\033[2m");
        put_bytes(text, n < sizeof text ? n : sizeof text);
        line += n && text[n - 1] == '\n';
    }
    put("... %d tokens in all", e->test.n);
    if (use_colour) put("\033[0m");
    put("\n\n");
}
enum { DEMO_QUESTION = 46, DEMO_RIGHT = 10 };

static int demo_width(const eval *e, const eval_cell *c) {
    const int n = (int)strlen(e->r.method[c->method]);
    return n < 11 ? 13 : n > 22 ? 24 : n + 2;
}
static void demo_table(const eval *e, int n) {
    grid t;
    int i;
    grid_begin(&t, 7, 1);
    grid_head(&t, "recipe|right|accuracy|cache|% of full|prompt tokens/s|answer tokens/s");
    for (i = 0; i < n; i++) {
        const eval_cell *c = e->r.cell + i;
        grid_put(&t, "%s", c->text);
        if (c->error[0]) { grid_put(&t, "failed"); grid_skip(&t); continue; }
        grid_put(&t, "%d/%d", c->n_right, c->n_q);
        grid_put(&t, "%.0f %%", c->n_q ? 100.0 * c->n_right / c->n_q : 0);
        grid_put(&t, "%s", human((size_t)eval_mean(&c->live)));
        grid_put(&t, "%.1f", 100 * cell_share(e, c));
        grid_put(&t, "%.0f", sum_rate(&c->prefill));
        grid_put(&t, "%.0f", sum_rate(&c->decode));
    }
    put("\n");
    grid_print(&t);
}
/* Reads the context under each recipe, compresses, asks: one line a question. */
static int demo_play(eval *e, int n) {
    eval_base *b = (eval_base *)grow(NULL, (size_t)n, sizeof *b);
    const corpus_test *t = &e->test;
    char text[256];
    int i, k, given[CORPUS_NOTE], status;
    memset(b, 0, (size_t)n * sizeof *b);
    for (i = 0; i < n; i++) {
        eval_cell *c = e->r.cell + i;
        eval_sum time = { 0, 0 };
        if (!c->error[0] && base_open(e, c, &b[i]) &&
            cell_feed(c, &b[i].s, t->ids, t->n - 1, KVMEM_PREFILL, &time) &&
            cell_feed(c, &b[i].s, t->ids + t->n - 1, 1, KVMEM_PROMPT_END, &time) &&
            base_mark(c, &b[i])) {
            cell_bytes(c, &b[i].s);
            eval_add(&c->prefill, time.sum, time.n);
        }
    }
    put_column("", DEMO_QUESTION, 0);
    put_column("right", DEMO_RIGHT, 1);
    for (i = 0; i < n; i++)
        put_column(e->r.method[e->r.cell[i].method], demo_width(e, e->r.cell + i), 1);
    put("\n");
    for (k = 0; k < t->n_q; k++) {
        const corpus_prompt *q = t->q + k;
        put_column(ids_text(e, q->ids, q->n, text, sizeof text), DEMO_QUESTION - 1, 0);
        put(" ");
        put_column(ids_text(e, q->answer, q->n_answer, text, sizeof text), DEMO_RIGHT, 0);
        flush_out(stdout);
        for (i = 0; i < n; i++) {
            eval_cell *c = e->r.cell + i;
            if (!c->error[0] && cell_ask(e, c, &b[i], q, 0, given))
                demo_answer(ids_text(e, given, q->n_answer, text, sizeof text), c->right[c->n_q - 1],
                            demo_width(e, c));
            else put_column("failed", demo_width(e, c), 31);
        }
        put("\n");
        if ((status = flush_out(stdout)) != OK) break;
    }
    for (i = 0; i < n; i++) base_close(&b[i]);
    free(b);
    return flush_out(stdout);
}
static void plan_group(eval *e, int suite, int ctx, int streams) {
    eval_group *g;
    e->r.group = (eval_group *)grow(e->r.group, (size_t)e->r.n_groups + 1, sizeof *g);
    g = e->r.group + e->r.n_groups++;
    memset(g, 0, sizeof *g);
    g->suite = suite;
    g->ctx = ctx;
    g->streams = streams;
}
/* The cells that are played, then those that only the report shows. */
static int demo_plan(eval *e, char *buf, size_t size) {
    static const char *const usual[] = { "streamingllm", "snapkv", DEMO_BEST };
    args *a = &e->own;
    int i, m, status, ctx;
    for (i = 0; i < 3 && !e->a->kvs.n; i++) a->kvs.item[i] = usual[i];
    if (!a->kvs.n) a->kvs.n = 3;
    e->r.seed = a->seed;
    e->r.seeds = 1;
    e->r.questions = (int)a->questions;
    e->r.depths = 5;
    if ((status = parse_ctx(a->lengths, &ctx)) != OK) return status;
    if ((status = each_part(e, "--budget", a->budgets, buf, size, plan_budget)) != OK) return status;
    if (e->n_budgets != 1) return misuse("--budget %s: one budget is played", a->budgets);
    if ((status = plan_methods(e)) != OK) return status;
    plan_group(e, EVAL_CONV, ctx, 1);
    for (m = 0; m < e->r.n_methods; m++)
        plan_cell(e, 0, m, own_budget(e->r.method[m]) ? NULL : e->budget[0]);
    e->cfg = kvmem_session_config_default();
    e->cfg.threads = (int)a->threads;
    e->cfg.max_block = (int)a->block;
    if (a->report && *a->report && (status = report_writable(a->report)) != OK) return status;
    return find_backend(a, &e->cfg.backend);
}
/* Curves and the heat map of the report need more than one conversation. */
static int demo_more(eval *e) {
    static const char *const budgets[] = { "50%", "25%", "12.5%", "6.25%" };
    const int ctx = e->r.group[0].ctx / 4;
    int g, m, b;
    if (ctx < 256) return OK;
    plan_group(e, EVAL_CONV, ctx, 2);
    plan_group(e, EVAL_NEEDLE, ctx, e->r.depths);
    for (g = 1; g < e->r.n_groups; g++)
        for (m = 0; m < e->r.n_methods; m++) {
            const int own = own_budget(e->r.method[m]);
            for (b = 0; b < (own ? 1 : 4); b++) plan_cell(e, g, m, own ? NULL : budgets[b]);
        }
    return eval_streams(e, 1);
}
static int cmd_demo(const args *a) {
    eval e;
    char buf[512];
    int status, n;
    eval_begin(&e, a);
    demo_look();
    status = demo_plan(&e, buf, sizeof buf);
    if (status == OK) status = eval_open(&e);
    if (status == OK) status = make_stream(&e, e.r.group, 0);
    n = e.r.n_cells;
    if (status == OK) {
        note_questions(&e, e.r.group, 0);
        put("%s reads a conversation and is asked about it afterwards. full remembers all of it, the\n"
            "others keep %s, chosen before the questions were known.\n\n", e.a->model, e.budget[0]);
        demo_head(&e);
        status = demo_play(&e, n);
    }
    if (status == OK) demo_table(&e, n);
    if (status == OK) status = flush_out(stdout);
    if (status == OK && a->report && *a->report) {
        status = demo_more(&e);
        if (status == OK) status = eval_report(&e, "kvmem: one conversation, several memories");
        if (status == OK) put("\nreport: %s\n", a->report);
    }
    eval_close(&e);
    return status;
}
#endif
