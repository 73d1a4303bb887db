/* eval.h - `kvmem eval`: what recipes remember, what they take, how fast they are.

   A suite makes contexts and questions from seeds (corpus.h); a cell is one recipe at one budget on
   all questions of one suite at one length. The context is compressed before the question is known
   (its last token has the phase PROMPT_END); then every question is asked to a copy of the
   compressed session, as a continuation (phase DECODE: recipes that reduce step by step go on doing
   so, recipes that reduce once have done it), and answered greedily. An answer is right if all of
   its tokens are. With --question-aware the context is only PREFILL and the question ends the
   prompt, so that it takes part in the choice; its last token is then read again, as the logits at
   the prompt's end still come from the whole cache. With --multi-turn the questions are one conversation:
   each is a turn that follows the model's own answers to those before it, and ends a prompt, so that a
   recipe that chose for one question meets the next with what it has left. The perplexity suite feeds the first half as
   prompt and scores the second token by token beside the full cache.

   Everything counted goes into one eval_result, which the table, JSON, CSV and the report read.
   Included by kvmem.c, whose output, options and loading it uses. */
#ifndef KVMEM_EVAL_H
#define KVMEM_EVAL_H

/* ==== >>eval : cells, questions =============================================================== */

enum { EVAL_CONV, EVAL_NEEDLE, EVAL_MULTI, EVAL_ORDER, EVAL_COPY, EVAL_PPL, EVAL_SUITES };
typedef struct eval_suite { const char *word; int corpus, questions; const char *what; } eval_suite;
static const eval_suite eval_suites[EVAL_SUITES] = {
    { "conv", CORPUS_CONV, 16, "facts told in a conversation: single, updated, twice, chain" },
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
    eval_sum live, peak,
        entries; /* bytes, bytes, entries over all lanes, when the question comes */
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
    int shown; /* 1 + group whose first conversation the report shows; 0: the shortest */
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
    int *piece;                 /* one stream of it */
    float *row; int rows;       /* (rows, n_vocab) log-probabilities of the full cache */
    int alone;                  /* 1: no prefill is shared between cells (tests compare both) */
    double shown, started, done, all;
} eval;

static const eval_group *group_of(const eval *e, const eval_cell *c) {
    return e->r.group + c->group;
}

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
    free(e->piece);
    corpus_test_free(&e->test);
    unload(&e->l);
}

/* A method's name: its recipe without the budget, another codec put behind a plus. */
static const char *method_label(const char *s) {
    static char label[64];
    size_t at = 0;
    label[0] = 0;
    while (*(s += strspn(s, " \t\r\n"))) {
        const size_t n = strcspn(s, " \t\r\n");
        const int codec = !strncmp(s, "codec=", 6) && at > 0;
        if (strncmp(s, "budget=", 7) || !isdigit((unsigned char)s[7])) {
            snprintf(label + at, sizeof label - at, "%s%.*s", codec ? "+" : at ? " " : "",
                     (int)(n - (codec ? 6 : 0)), s + (codec ? 6 : 0));
            at = strlen(label);
        }
        s += n;
    }
    return label;
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
/* "512", "2k": a length in tokens. Groups so far have ctx 0 and are the suites: see plan_lengths.
 */
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
        snprintf(
            c->note, sizeof c->note,
            "no choice left: recent=%.0f and sink=%d fill the %.0f entries that the budget keeps, "
            "so this is a window",
            w, c->recipe.sink, keep);
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

/* ==== >>eval_run : streams through cells ====================================================== */

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
    kvmem_session_bytes(s, &b);
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
/* --- score=epicache: a cache for each topic of the context --- */

static int knows_topics(const eval *e, const eval_cell *c) {
    const kvmem_recipe *r = &c->recipe;
    return !strcmp(r->stage[KVMEM_SCORE].entry->word, "epicache") && r->stage[KVMEM_SCORE].par[0] < 1 &&
           r->amount.kind != KVMEM_ALL && !e->r.aware;
}
/* Topics and caches of the whole context; a turn ends with a token that has a line break. No instruction: the
   language of the contexts has none. */
static int topics_read(eval *e, eval_cell *c, kvmem_episodes *ep) {
    const corpus_test *t = &e->test;
    int *turn = (int *)grow(NULL, (size_t)t->n, sizeof *turn), n = 0, i, begins = 1;
    kvmem_episodes_config cfg;
    kvmem_status status;
    memset(&cfg, 0, sizeof cfg);
    for (i = 0; i < t->n; i++) {
        char text[16];
        size_t len;
        if (kvmem_token_is_special(e->l.tokenizer, t->ids[i])) continue;
        if (begins) turn[n++] = i;
        len = kvmem_token_bytes(e->l.tokenizer, t->ids[i], 0, text, sizeof text);
        begins = memchr(text, '\n', len < sizeof text ? len : sizeof text) != NULL;
    }
    cfg.session = e->cfg;
    cfg.session.recipe = &c->recipe;
    cfg.instruction = "";
    status = kvmem_episodes_build(ep, &e->l.model, &cfg, t->ids, t->n, turn, n);
    free(turn);
    if (status != KVMEM_OK) snprintf(c->error, sizeof c->error, "%s", ep->error.text);
    return status == KVMEM_OK;
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
static int cell_answer(eval *e, eval_cell *c, kvmem_session *s, const corpus_prompt *q,
                       int *given) {
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
/* The question, until the logits that the answer begins with. Those of a prompt's last token are
   made before the prompt's end compresses; if the question is in the prompt, this token is taken
   back and read again, so that the answer's first word, too, comes from what the recipe kept. */
static int cell_read(const eval *e, eval_cell *c, kvmem_session *s, const corpus_prompt *q,
                     eval_sum *time) {
    const int64_t at = s->cache.tokens;
    if (!e->r.aware) return cell_feed(c, s, q->ids, q->n, KVMEM_DECODE, time);
    return cell_ok(c, kvmem_cache_mark(&s->cache, KVMEM_MARK_QUESTION), s) &&
           cell_feed(c, s, q->ids, q->n, KVMEM_PROMPT_END, time) &&
           cell_ok(c, kvmem_session_truncate(s, at + q->n - 1), s) &&
           cell_feed(c, s, q->ids + q->n - 1, 1, KVMEM_DECODE, time);
}
static void cell_answered(eval_cell *c, int right) {
    if (c->n_q == c->cap_q)
        c->right = (unsigned char *)grow(c->right, (size_t)(c->cap_q = 2 * c->cap_q + 64), 1);
    c->right[c->n_q++] = (unsigned char)right;
    c->n_right += right;
}
/* One question to the base; `came`: seconds that the context took. given: the answer's tokens or
 * NULL. */
static int cell_ask(eval *e, eval_cell *c, eval_base *b, const corpus_prompt *q, double came,
                    int *given) {
    kvmem_session tmp, *s;
    eval_sum time = { 0, 0 };
    int right = -1;
    if (!base_fork(c, b, &tmp, &s)) return 0;
    if (cell_read(e, c, s, q, &time)) {
        eval_add(&c->first, came + time.sum, 1);
        right = cell_answer(e, c, s, q, given);
    }
    base_join(b, &tmp);
    if (right < 0) return 0;
    cell_answered(c, right);
    return 1;
}
/* All questions as one conversation after the context; the last token of each is read when its prompt has
   ended, so that the answer comes from what the recipe kept. */
static int cell_turns(eval *e, eval_cell *c, eval_base *b, double came) {
    const int stop = CORPUS__STOP;
    kvmem_session tmp, *s;
    int i, ok = 1;
    if (!base_fork(c, b, &tmp, &s)) return 0;
    for (i = 0; i < e->test.n_q && ok; i++) {
        const corpus_prompt *q = &e->test.q[i];
        eval_sum time = { 0, 0 };
        int right = -1;
        if (cell_feed(c, s, q->ids, q->n - 1, KVMEM_PROMPT_END, &time) &&
            cell_feed(c, s, q->ids + q->n - 1, 1, KVMEM_DECODE, &time))
            right = cell_answer(e, c, s, q, NULL);
        ok = right >= 0 && cell_feed(c, s, &stop, 1, KVMEM_DECODE, &c->decode);
        if (!ok) break;
        eval_add(&c->first, (i ? 0 : came) + time.sum, 1);
        cell_answered(c, right);
    }
    base_join(b, &tmp);
    return ok;
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
    if (e->a->turns) return cell_turns(e, c, b, came + time.sum);
    for (i = 0; i < t->n_q; i++)
        if (!cell_ask(e, c, b, &t->q[i], came + time.sum, NULL)) return 0;
    return 1;
}

/* The questions to the caches of topics; bytes are those of all caches together. */
static int cell_topics(eval *e, eval_cell *c) {
    const corpus_test *t = &e->test;
    const double start = now();
    kvmem_episodes ep;
    kvmem_bytes b;
    double came;
    int i, k, ok = topics_read(e, c, &ep);
    if (!ok) return 0;
    came = now() - start;
    kvmem_episodes_bytes(&ep, &b);
    ok = kvmem_episodes_open(&ep, 0) == KVMEM_OK;
    if (ok) {
        kvmem_bytes one;
        kvmem_session_bytes(&ep.session, &one);
        eval_add(&c->live, (double)b.live.total, 1);
        eval_add(&c->peak, (double)b.peak.total, 1);
        eval_add(&c->entries, (double)one.entries, 1);
    }
    eval_add(&c->prefill, came, t->n);
    for (i = 0; i < t->n_q && ok; i++) {
        ok = kvmem_episodes_match(&ep, t->q[i].ids, t->q[i].n, &k) == KVMEM_OK &&
             kvmem_episodes_open(&ep, k) == KVMEM_OK;
        if (ok) {
            eval_base b1;
            memset(&b1, 0, sizeof b1);
            ok = cell_ok(c, kvmem_session_copy(&b1.s, &ep.session), &b1.s) && cell_ask(e, c, &b1, &t->q[i], came, NULL);
            kvmem_session_free(&b1.s);
        } else snprintf(c->error, sizeof c->error, "%s", ep.error.text);
    }
    kvmem_episodes_free(&ep);
    return ok;
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
    int i, live = 0;
    int share = stream > 0 && !e->alone; /* the first stream measures bytes: nothing is shared */
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
        if (!ppl && knows_topics(e, c + i)) { cell_topics(e, c + i); continue; }
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

static corpus_eval_params stream_params(const eval *e, const eval_group *g, int stream) {
    const eval_suite *suite = &eval_suites[g->suite];
    const int depths = g->suite == EVAL_NEEDLE ? e->r.depths : 1;
    corpus_eval_params p;
    memset(&p, 0, sizeof p);
    p.suite = suite->corpus;
    p.ctx = g->ctx;
    p.questions = e->r.questions && suite->questions > 1 ? e->r.questions : suite->questions;
    p.depth = depths > 1 ? 1000 * (stream % depths) / (depths - 1) : 500;
    p.seed = (uint64_t)e->r.seed + (uint64_t)(stream / depths);
    return p;
}
/* The context and questions of one stream into e->test. */
static int make_stream(eval *e, const eval_group *g, int stream) {
    const corpus_eval_params p = stream_params(e, g, stream);
    int bad;
    if (g->suite == EVAL_PPL && e->text.n) {
        int *id = e->piece = (int *)grow(e->piece, (size_t)g->ctx, sizeof *id);
        memcpy(id, e->text.id + (size_t)stream * (size_t)g->ctx, (size_t)g->ctx * sizeof *id);
        if (e->l.tokenizer->add_bos) id[0] = e->l.tokenizer->bos;
        e->test.ids = id;
        e->test.n = g->ctx;
        e->test.n_q = 0;
        return OK;
    }
    if ((bad = corpus_test_make(&e->test, &p)) != 0)
        return fail("suite %s at %d tokens: %s", eval_suites[g->suite].word, g->ctx,
                    corpus_error(bad));
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

/* ==== >>eval_open : options checked, model read =============================================== */

/* Is the vocabulary that of corpus.h? The word that differs is named. */
static int check_vocabulary(const eval *e) {
    const kvmem_tokenizer *t = e->l.tokenizer;
    char text[16], own[16];
    int i;
    for (i = 0; i < corpus_n_vocab(); i++) {
        const int n = corpus_text(i, text);
        const size_t m = i < e->l.model.n_vocab ? kvmem_token_bytes(t, i, 0, own, sizeof own) : 99;
        if (m == (size_t)n && !memcmp(text, own, m)) continue;
        return fail(
            "%s: its vocabulary is not that of kvmem's language (token %d is not \"%.*s\"), "
            "which every suite but ppl with --text FILE is written in",
            e->a->model, i, n, text);
    }
    return OK;
}
static int check_lengths(const eval *e) {
    int i;
    for (i = 0; i < e->r.n_groups; i++) {
        const eval_group *g = e->r.group + i;
        const corpus_eval_params p = stream_params(e, g, 0);
        const char *why = g->suite == EVAL_PPL && e->a->text ? NULL : corpus_test_check(&p);
        if (g->ctx > e->l.model.n_ctx_train && !e->a->beyond)
            return misuse("--ctx %d: beyond the %d tokens that %s was trained for; --beyond allows it", g->ctx,
                          e->l.model.n_ctx_train, e->a->model);
        if (why) return misuse("--ctx %d, suite %s: %s", g->ctx, eval_suites[g->suite].word, why);
    }
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
/* Before the long work: can the file be written? */
static int check_report(const char *path) {
    FILE *f = fopen(path, "rb");
    const int there = f != NULL;
    if (f) fclose(f);
    f = fopen(path, "ab");
    if (!f) return misuse("--report %s: cannot be written: %s", path, strerror(errno));
    fclose(f);
    if (!there) remove(path);
    return OK;
}
/* Options to cells: everything that can be wrong with them is said here, before the model is read.
 */
static int eval_options(eval *e, char *buf, size_t size) {
    const args *a = e->a;
    kvmem_recipe r;
    int i, status;
    e->r.seeds = (int)a->seeds;
    e->r.questions = (int)a->questions;
    e->r.depths = (int)a->depths;
    e->r.aware = a->aware;
    e->r.seed = a->seed;
    if (a->aware && a->turns) return misuse("--question-aware and --multi-turn cannot be given together");
    if (a->json && a->csv) return misuse("--json and --csv cannot be given together");
    if (a->md && (a->json || a->csv))
        return misuse("--md and --%s cannot be given together", a->json ? "json" : "csv");
    if ((status = each_part(e, "--suite", a->suite, buf, size / 2, plan_suite)) != OK)
        return status;
    if ((status = each_part(e, "--budgets", a->budgets, buf + size / 2, size / 2, plan_budget)) !=
        OK)
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
    if (a->report && (status = check_report(a->report)) != OK) return status;
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
#endif
