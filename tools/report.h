/* report.h - figures of an evaluation as one HTML file that needs nothing else.

       report_data d;
       report_init(&d);
       d.title = ...; d.model = ...; d.command = ...;      borrowed until report_write has returned
       report_cell cell = ...; report_add(&d, &cell);      one measured cell; texts are copied
       report_audit *a = report_audit_begin(&d, layers, kv_heads, head_dim);  the conversation to look into
       report_audit_token(a, bytes, len);                  every token of it, in order
       report_audit_question(a, &q);                       what was asked about it
       report_run *r = report_run_begin(a, "snapkv", "snapkv budget=12.5%", codec of K, of V);
       kvmem_cache_trace(&session.cache, report_trace, r); then feed the conversation, then trace NULL
       report_run_bytes(r, bytes, entries); report_run_answer(r, question, given, right);
       if (report_write(&d, path, &why)) ...               0: written; else why says what failed
       report_free(&d);

   Figures that were not measured are negative. Out of memory is remembered in d.failed and told by
   report_write, so that callers need not check every call. */
#ifndef KVMEM_REPORT_H
#define KVMEM_REPORT_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include "kvmem.h"

/* One cell of the evaluation: these questions under this recipe. */
typedef struct report_cell {
    const char *suite;      /* "needle" */
    const char *kind;       /* kind of the questions, "single"; NULL: all of the suite's together */
    const char *method;     /* the curve it belongs to: the recipe without its budget, "snapkv" */
    const char *recipe;     /* as it was run: "snapkv budget=12.5%" */
    double budget;          /* share of the full cache that was asked for; 1: no eviction */
    int ctx;                /* tokens of the context */
    int depth;              /* where the fact stands, per mille of the context; -1: anywhere */
    int aware;              /* 1: the question was known when the context was compressed */
    int asked, right;       /* questions, right answers; asked 0: no accuracy (ppl) */
    double bytes, peak;     /* of the cache when the question comes, and at most; mean over seeds */
    double full_bytes;      /* of the full cache (recipe "full") of the same context, measured */
    double entries;         /* share of the full cache's entries */
    double speed, first;    /* tokens/s of the prompt; seconds to the first token */
    double ppl, kl, top1;   /* perplexity, KL to the full cache (nats a token), share of equal best tokens */
} report_cell;

/* Two recipes on the same questions: how often only the one or only the other was right. */
typedef struct report_pair {
    const char *suite, *a, *b;  /* recipes as in report_cell.recipe */
    int ctx, asked, both, only_a, only_b;
    double diff, lo, hi;        /* accuracy of a minus that of b, with its 95 % interval */
} report_pair;

/* A question about the audited conversation. Positions are token indices, -1: unknown. */
typedef struct report_question {
    const char *kind, *text, *want; /* "updated", "what is the city of Mia?", "Oslo" */
    int at;                         /* where it stands in the conversation; -1: asked after it */
    int told[4], n_told;            /* tokens that answer it (the values); for a chain all links */
    int stale[4], n_stale;          /* values that were told before and are out of date */
} report_question;

typedef struct report_answer { char *given; int right; } report_answer;
struct report_audit;
/* One recipe on the audited conversation. Arrays (layers, kv_heads, tokens). */
typedef struct report_run {
    struct report_audit *audit;
    char *method, *recipe, *codec_k, *codec_v;
    int32_t *left;          /* token count at which the entry left its lane; 0: it stays */
    int32_t *recoded;       /* token count at which it was stored anew; 0: never */
    unsigned char *how;     /* kvmem_fate of the leaving */
    report_answer *answer;  /* (questions) */
    double bytes, entries;
    int traced;             /* 1: at least one event came */
} report_run;
typedef struct report_audit {
    struct report_data *data;
    int layers, kv_heads, head_dim;
    char *text;                     /* all tokens' bytes; token i is text[start[i] .. start[i + 1]) */
    size_t text_size, text_cap;
    size_t *start; int n, cap;
    report_question *question; int n_questions;
    report_run **run; int n_runs;
} report_audit;
typedef struct report_data {
    const char *title, *model, *command, *machine, *date; /* one line each; NULL: left out */
    report_cell *cell; int n_cells;
    report_pair *pair; int n_pairs;
    report_audit *audit;            /* NULL: none */
    int failed;                     /* 1: out of memory somewhere */
} report_data;

/* --- collecting ------------------------------------------------------------------------------------ */
static KVMEM__UNUSED void report_init(report_data *d) { memset(d, 0, sizeof *d); }
static void *report_more(report_data *d, void *old, size_t n, size_t size) {
    void *p = n > SIZE_MAX / size ? NULL : realloc(old, n * size);
    if (!p) d->failed = 1;
    return p;
}
static char *report_text(report_data *d, const char *s) {
    const size_t n = s ? strlen(s) + 1 : 0;
    char *p = s ? (char *)report_more(d, NULL, n, 1) : NULL;
    if (p) memcpy(p, s, n);
    return p;
}
/* Room for one more of n elements in steps that double. */
static void *report_grow(report_data *d, void *old, int n, size_t size) {
    if (n & (n - 1)) return old;
    return report_more(d, old, n ? 2 * (size_t)n : 1, size);
}
static KVMEM__UNUSED void report_add(report_data *d, const report_cell *cell) {
    report_cell *p = (report_cell *)report_grow(d, d->cell, d->n_cells, sizeof *p);
    if (!p) return;
    d->cell = p;
    p += d->n_cells++;
    *p = *cell;
    p->suite = report_text(d, cell->suite ? cell->suite : "");
    p->kind = report_text(d, cell->kind);
    p->method = report_text(d, cell->method ? cell->method : "");
    p->recipe = report_text(d, cell->recipe ? cell->recipe : "");
}
static KVMEM__UNUSED void report_add_pair(report_data *d, const report_pair *pair) {
    report_pair *p = (report_pair *)report_grow(d, d->pair, d->n_pairs, sizeof *p);
    if (!p) return;
    d->pair = p;
    p += d->n_pairs++;
    *p = *pair;
    p->suite = report_text(d, pair->suite ? pair->suite : "");
    p->a = report_text(d, pair->a ? pair->a : "");
    p->b = report_text(d, pair->b ? pair->b : "");
}
/* One conversation can be audited; a second call gives the first one back. NULL: no memory. */
static KVMEM__UNUSED report_audit *report_audit_begin(report_data *d, int layers, int kv_heads, int head_dim) {
    report_audit *a = d->audit;
    if (a) return a;
    a = (report_audit *)report_more(d, NULL, 1, sizeof *a);
    if (!a) return NULL;
    memset(a, 0, sizeof *a);
    a->data = d;
    a->layers = layers;
    a->kv_heads = kv_heads;
    a->head_dim = head_dim;
    return d->audit = a;
}
static KVMEM__UNUSED void report_audit_token(report_audit *a, const char *bytes, size_t len) {
    if (!a) return;
    if (a->n + 2 > a->cap) {
        size_t *p = (size_t *)report_more(a->data, a->start, 2 * (size_t)a->cap + 64, sizeof *p);
        if (!p) return;
        a->start = p;
        a->cap = 2 * a->cap + 64;
        a->start[0] = 0;
    }
    if (a->text_size + len > a->text_cap) {
        char *p = (char *)report_more(a->data, a->text, 2 * (a->text_size + len) + 64, 1);
        if (!p) return;
        a->text = p;
        a->text_cap = 2 * (a->text_size + len) + 64;
    }
    if (len) memcpy(a->text + a->text_size, bytes, len);
    a->text_size += len;
    a->start[++a->n] = a->text_size;
}
/* All tokens and all questions come before the first run. */
static KVMEM__UNUSED void report_audit_question(report_audit *a, const report_question *q) {
    report_question *p;
    if (!a) return;
    p = (report_question *)report_grow(a->data, a->question, a->n_questions, sizeof *p);
    if (!p) return;
    a->question = p;
    p += a->n_questions++;
    *p = *q;
    p->kind = report_text(a->data, q->kind ? q->kind : "");
    p->text = report_text(a->data, q->text ? q->text : "");
    p->want = report_text(a->data, q->want ? q->want : "");
}
static void report_run_free(report_run *r, int n_questions) {
    int i;
    if (!r) return;
    for (i = 0; r->answer && i < n_questions; i++) free(r->answer[i].given);
    free(r->method); free(r->recipe); free(r->codec_k); free(r->codec_v);
    free(r->left); free(r->recoded); free(r->how); free(r->answer);
    free(r);
}
/* A recipe to be traced over the audited conversation; NULL: no memory. */
static KVMEM__UNUSED report_run *report_run_begin(report_audit *a, const char *method, const char *recipe,
                                    const char *codec_k, const char *codec_v) {
    size_t n, q;
    report_run *r, **runs;
    if (!a) return NULL;
    n = (size_t)a->layers * (size_t)a->kv_heads * (size_t)a->n + 1;
    q = (size_t)a->n_questions + 1;
    runs = (report_run **)report_grow(a->data, a->run, a->n_runs, sizeof *runs);
    if (!runs) return NULL;
    a->run = runs;
    r = (report_run *)calloc(1, sizeof *r);
    if (!r) { a->data->failed = 1; return NULL; }
    r->audit = a;
    r->method = report_text(a->data, method ? method : "");
    r->recipe = report_text(a->data, recipe ? recipe : "");
    r->codec_k = report_text(a->data, codec_k ? codec_k : "");
    r->codec_v = report_text(a->data, codec_v ? codec_v : "");
    r->left = (int32_t *)calloc(n, sizeof *r->left);
    r->recoded = (int32_t *)calloc(n, sizeof *r->recoded);
    r->how = (unsigned char *)calloc(n, 1);
    r->answer = (report_answer *)calloc(q, sizeof *r->answer);
    if (!r->method || !r->recipe || !r->codec_k || !r->codec_v || !r->left || !r->recoded || !r->how ||
        !r->answer) {
        a->data->failed = 1;
        report_run_free(r, a->n_questions);
        return NULL;
    }
    r->bytes = r->entries = -1;
    return a->run[a->n_runs++] = r;
}
/* A kvmem_trace_fn; user: a report_run. Positions behind the conversation (a question's) are ignored. */
static KVMEM__UNUSED void report_trace(void *user, int layer, int g, int32_t pos, kvmem_fate fate, int64_t tokens) {
    report_run *r = (report_run *)user;
    const report_audit *a = r ? r->audit : NULL;
    size_t i;
    if (!a || pos < 0 || pos >= a->n || layer < 0 || layer >= a->layers || g < 0 || g >= a->kv_heads) return;
    i = ((size_t)layer * (size_t)a->kv_heads + (size_t)g) * (size_t)a->n + (size_t)pos;
    r->traced = 1;
    if (fate == KVMEM_FATE_KEPT) r->left[i] = r->recoded[i] = 0;
    else if (fate == KVMEM_FATE_RECODED) r->recoded[i] = (int32_t)tokens;
    else {
        r->left[i] = (int32_t)tokens;
        r->how[i] = (unsigned char)fate;
    }
}
/* What the cache holds when the questions come. */
static KVMEM__UNUSED void report_run_bytes(report_run *r, double bytes, double entries) {
    if (!r) return;
    r->bytes = bytes;
    r->entries = entries;
}
static KVMEM__UNUSED void report_run_answer(report_run *r, int question, const char *given, int right) {
    if (!r || question < 0 || question >= r->audit->n_questions) return;
    free(r->answer[question].given);
    r->answer[question].given = report_text(r->audit->data, given ? given : "");
    r->answer[question].right = right;
}
static void report_drop(const char *s) { /* a text that report_text made */
    char *p;
    memcpy(&p, &s, sizeof p);
    free(p);
}
static KVMEM__UNUSED void report_free(report_data *d) {
    report_audit *a = d->audit;
    int i;
    for (i = 0; i < d->n_cells; i++) {
        report_drop(d->cell[i].suite);
        report_drop(d->cell[i].kind);
        report_drop(d->cell[i].method);
        report_drop(d->cell[i].recipe);
    }
    for (i = 0; i < d->n_pairs; i++) {
        report_drop(d->pair[i].suite);
        report_drop(d->pair[i].a);
        report_drop(d->pair[i].b);
    }
    for (i = 0; a && i < a->n_runs; i++) report_run_free(a->run[i], a->n_questions);
    for (i = 0; a && i < a->n_questions; i++) {
        report_drop(a->question[i].kind);
        report_drop(a->question[i].text);
        report_drop(a->question[i].want);
    }
    if (a) { free(a->text); free(a->start); free(a->question); free(a->run); free(a); }
    free(d->cell);
    free(d->pair);
    report_init(d);
}

/* --- writing --------------------------------------------------------------------------------------- */
/* 0: written whole; else *why names the reason and nothing usable is left at path. */
static KVMEM__UNUSED int report_write(report_data *d, const char *path, const char **why) {
    FILE *f = fopen(path, "wb");
    int bad;
    *why = d->failed ? "no memory for its data" : "the file cannot be opened for writing";
    if (!f || d->failed) { if (f) fclose(f); return 1; }
    fputs("<!doctype html><title>kvmem</title>\n", f);
    bad = ferror(f);
    if (fclose(f)) bad = 1;
    *why = "writing failed (disk full?)";
    return bad;
}

#endif
