/* report.h - figures of an evaluation as one HTML file that needs nothing else.

       report_data d;
       report_init(&d);
       d.title = ...; d.model = ...; d.command = ...;      borrowed until report_write has returned
       report_cell cell = ...; report_add(&d, &cell);      one measured cell; texts are copied
       report_audit *a = report_audit_begin(&d, layers, kv_heads, head_dim);  the conversation to
   look into report_audit_token(a, bytes, len);                  every token of it, in order
       report_audit_question(a, &q);                       what was asked about it
       report_run *r = report_run_begin(a, "snapkv", "snapkv budget=12.5%", codec of K, of V);
       kvmem_cache_trace(&session.cache, report_trace, r); then feed the conversation, then trace
   NULL report_run_bytes(r, bytes, entries); report_run_answer(r, question, given, right); if
   (report_write(&d, path, &why)) ...               0: written; else why says what failed
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
    double ppl, kl,
        top1; /* perplexity, KL to the full cache (nats a token), share of equal best tokens */
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
    char *text; /* all tokens' bytes; token i is text[start[i] .. start[i + 1]) */
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

/* --- collecting ------------------------------------------------------------------------------- */
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
static KVMEM__UNUSED report_audit *report_audit_begin(report_data *d, int layers, int kv_heads,
                                                      int head_dim) {
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
static KVMEM__UNUSED report_run *report_run_begin(report_audit *a, const char *method,
                                                  const char *recipe, const char *codec_k,
                                                  const char *codec_v) {
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
    if (!r->method || !r->recipe || !r->codec_k || !r->codec_v || !r->left || !r->recoded ||
        !r->how || !r->answer) {
        a->data->failed = 1;
        report_run_free(r, a->n_questions);
        return NULL;
    }
    r->bytes = r->entries = -1;
    return a->run[a->n_runs++] = r;
}
/* A kvmem_trace_fn; user: a report_run. Positions behind the conversation (a question's) are
 * ignored. */
static KVMEM__UNUSED void report_trace(void *user, int layer, int g, int32_t pos, kvmem_fate fate,
                                       int64_t tokens) {
    report_run *r = (report_run *)user;
    const report_audit *a = r ? r->audit : NULL;
    size_t i;
    if (!a || pos < 0 || pos >= a->n || layer < 0 || layer >= a->layers || g < 0 ||
        g >= a->kv_heads)
        return;
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
static KVMEM__UNUSED void report_run_answer(report_run *r, int question, const char *given,
                                            int right) {
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

/* --- style and script of the page: a literal for each line ------------------------------------ */
static const char *const report_css[] = {
    ":root{--bg:#fbfaf7;--pane:#fff;--ink:#1c1d20;--mute:#5f6066;--faint:#8b8a86;--line:#e2dfd7;\n",
    "--keep:11 88 160;--tell:#a8470a;\n",
    "--ok:#00705a;--no:#b3261e;--warm:196 84 16;--front:#d9d5ca;--s0:#1c1d20;--s1:#0b58a0;\n",
    "--s2:#b85c00;--s3:#00795f;--s4:#a03c8c;\n",
    "--s5:#7a6a00;--s6:#3f8fc4;--s7:#b3261e;--on:#fff}\n",
    "@media(prefers-color-scheme:dark){:root{--bg:#131519;--pane:#191c21;--ink:#e9e7e2;\n",
    "--mute:#a5a6ab;--faint:#7d7e84;--line:#2d3037;\n",
    "--keep:86 164 236;--tell:#f2a65a;--ok:#4cc7a5;--no:#ff8b78;--warm:236 140 70;\n",
    "--front:#393c44;--s0:#e9e7e2;--s1:#62aef0;--s2:#f0a04b;\n",
    "--s3:#45c4a0;--s4:#e08bcb;--s5:#cdbb4a;--s6:#9fd0ee;--s7:#ff8b78;--on:#0d1420}}\n",
    "*{box-sizing:border-box}\n",
    "html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}\n",
    "@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}\n",
    "body{margin:0;background:var(--bg);color:var(--ink);\n",
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}\n",
    "main{max-width:1240px;margin:0 auto;padding:40px 28px 60px}\n",
    "h1,h2,h3{font-family:Charter,'Bitstream Charter','Iowan Old Style',Palatino,Georgia,\n",
    "'Times New Roman',serif;font-weight:600;line-height:1.18;text-wrap:balance}\n",
    "h1{font-size:clamp(27px,4.2vw,46px);margin:0 0 14px;max-width:23em;letter-spacing:-.012em;\n",
    "font-weight:500}\n",
    "h1 b{font-weight:700}\n",
    "h1 .num{font-variant-numeric:tabular-nums}\n",
    "h2{font-size:clamp(22px,2.6vw,30px);margin:0 0 8px}\n",
    "h3{font-size:19px;margin:30px 0 10px}\n",
    "section{margin-top:58px}\n",
    ".kick{margin:0 0 10px;color:var(--mute);font-size:13px;letter-spacing:.04em}\n",
    ".sub,.how{color:var(--mute);max-width:68ch;margin:0 0 18px}\n",
    ".facts{display:flex;flex-wrap:wrap;gap:14px 40px;margin:22px 0 18px;padding:16px 0;\n",
    "border-top:1px solid var(--line);border-bottom:1px solid var(--line)}\n",
    ".facts dt{font-size:12.5px;color:var(--mute)}\n",
    ".facts dd{margin:1px 0 0;font-variant-numeric:tabular-nums}\n",
    "nav a,a{color:rgb(var(--keep));text-underline-offset:3px;margin-right:18px}\n",
    "figure{margin:0}\n",
    "figcaption{font-size:14px;margin-bottom:6px}\n",
    "svg{display:block;width:100%;height:auto;overflow:visible}\n",
    "svg text{font:11px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif;\n",
    "fill:var(--ink)}\n",
    ".small{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));\n",
    "gap:30px 34px;margin-top:20px}\n",
    ".lead{display:grid;grid-template-columns:minmax(0,2.1fr) minmax(0,1fr);gap:20px 44px;\n",
    "align-items:start}\n",
    "@media(max-width:900px){.lead{grid-template-columns:1fr}}\n",
    ".forest figcaption{font-weight:600}\n",
    ".ci{stroke:currentColor;stroke-width:5;opacity:.28}\n",
    "svg .pc{fill:currentColor;font-size:13px;font-weight:600;font-variant-numeric:tabular-nums}\n",
    ".plot figcaption,.heat figcaption{font-weight:600}\n",
    "svg .tk{fill:var(--mute);font-size:10.5px;font-variant-numeric:tabular-nums}\n",
    "svg .e{text-anchor:end}svg .m,svg .vt{text-anchor:middle}\n",
    "svg .lo{fill:var(--faint);font-size:9.5px}\n",
    ".gl{stroke:var(--line);stroke-width:1;fill:none}\n",
    ".front{fill:none;stroke:var(--front);stroke-width:7;stroke-linejoin:round}\n",
    ".legend .front{stroke-width:5}\n",
    ".cv{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}\n",
    ".er{stroke:currentColor;stroke-width:1.2;opacity:.5}\n",
    ".mk{fill:currentColor;stroke:var(--bg);stroke-width:.8}\n",
    "svg .lb{fill:currentColor;font-size:12.5px;font-weight:600}\n",
    ".s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}\n",
    ".s4{color:var(--s4)}.s5{color:var(--s5)}.s6{color:var(--s6)}.s7{color:var(--s7)}\n",
    ".plot:has(.sr:hover) .sr:not(:hover){opacity:.2}\n",
    ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;margin:0 0 12px;padding:0;\n",
    "font-size:13.5px}\n",
    ".legend li{display:flex;align-items:center;gap:6px}\n",
    ".legend svg{width:16px;height:16px;flex:none}\n",
    ".hc rect{fill:rgb(var(--keep))}\n",
    "svg .hc text{font-size:11px;font-variant-numeric:tabular-nums}\n",
    "svg .h1 text{fill:var(--on)}\n",
    "details{margin-top:22px}summary{cursor:pointer;color:rgb(var(--keep))}\n",
    ".wide{overflow-x:auto;margin-top:8px}\n",
    "table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}\n",
    "caption{text-align:left;color:var(--mute);padding-bottom:8px;max-width:90ch}\n",
    "th,td{padding:5px 12px 5px 0;text-align:left;border-bottom:1px solid var(--line);\n",
    "white-space:nowrap}\n",
    "th{font-weight:600;color:var(--mute);font-size:12.5px;vertical-align:bottom}\n",
    "td.r{text-align:right}\n",
    "th button{all:unset;cursor:pointer}\n",
    "th button:hover{text-decoration:underline}\n",
    "th[aria-sort=ascending] button::after{content:' \\2191'}\n",
    "th[aria-sort=descending] button::after{content:' \\2193'}\n",
    ".ok{color:var(--ok)}.no{color:var(--no)}\n",
    "td.ok::after{content:' \\2713'}td.no::after{content:' \\2717'}\n",
    ":focus-visible{outline:2px solid rgb(var(--keep));outline-offset:2px}\n",
    "footer{margin-top:60px;padding-top:14px;border-top:1px solid var(--line);color:var(--mute);\n",
    "font-size:13px}\n",
    "code{font:12.5px ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}\n",
    ".lf{stroke:rgb(var(--keep));fill:none;shape-rendering:crispEdges}\n",
    ".lf.k1{opacity:.2}.lf.k2{opacity:.42}.lf.k3{opacity:.7}\n",
    ".dg{fill:rgb(var(--keep)/.035);stroke:none}\n",
    ".life .nm{display:flex;justify-content:space-between;gap:10px;align-items:center;\n",
    "min-height:32px}\n",
    ".nm .b{font-size:12.5px;padding:2px 8px;min-height:26px}\n",
    ".sum{color:var(--mute);font-size:13px;font-variant-numeric:tabular-nums}\n",
    ".cur{stroke:var(--tell);stroke-width:1;visibility:hidden}\n",
    ".an.ok circle{fill:var(--ok)}\n",
    ".an .x{stroke:var(--no);stroke-width:1.8;fill:none}\n",
    ".an .th{stroke:none}\n",
    ".an.sel .th{stroke:var(--tell);stroke-width:1.4}\n",
    ".an[tabindex]{cursor:pointer}\n",
    ".an.sel circle{stroke:var(--tell);stroke-width:2}\n",
    ".coded{--keep:0 112 104}\n",
    "@media(prefers-color-scheme:dark){.coded{--keep:62 186 166}}\n",
    "#lens{margin-top:40px}\n",
    ".pane{min-width:0}\n",
    ".ph{color:var(--mute);font-size:13.5px;margin:0 0 6px}\n",
    ".flow{background:var(--pane);border:1px solid var(--line);border-radius:3px;\n",
    "padding:16px 18px;max-height:min(78vh,800px);overflow-y:auto;\n",
    "font:14px/1.62 system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif;\n",
    "position:relative;hyphens:none;overscroll-behavior:contain}\n",
    ".flow i{font-style:normal;padding:1.5px 0;border-radius:1px}\n",
    ".ln.ses{display:block;margin:.9em 0 .2em;font-weight:600;font-size:13px}\n",
    ".ln.ses:first-child{margin-top:0}\n",
    ".flow i.sp{font-weight:700}\n",
    ".k0{color:var(--faint)}\n",
    ".k1{background:rgb(var(--keep)/.1);color:var(--mute)}.k2{background:rgb(var(--keep)/.32)}\n",
    ".k3{background:rgb(var(--keep)/.55)}.k4{background:rgb(var(--keep)/.92);color:var(--on)}\n",
    "\n",
    ".u{color:var(--line)}\n",
    ".w0{background:rgb(var(--warm)/.08)}.w1{background:rgb(var(--warm)/.19)}\n",
    ".w2{background:rgb(var(--warm)/.3)}.w3{background:rgb(var(--warm)/.44)}\n",
    ".w4{background:rgb(var(--warm)/.6)}\n",
    ".mg{background:repeating-linear-gradient(135deg,rgb(var(--keep)/.28) 0 2px,\n",
    "transparent 2px 5px)}\n",
    ".rq{box-shadow:inset 0 -2px 0 var(--s3)}\n",
    ".flow .f{box-shadow:inset 0 -2px 0 var(--tell);font-weight:600}\n",
    ".flow .f::after{content:attr(data-n);font-size:9.5px;font-weight:700;color:var(--tell);\n",
    "background:var(--pane);vertical-align:super;line-height:1;padding:0 1px}\n",
    ".flow .u.f{box-shadow:none;font-weight:400}.flow .u.f::after{content:none}\n",
    ".flow .st{text-decoration:line-through;text-decoration-color:var(--tell)}\n",
    ".ln.hit{outline:2px solid var(--tell);outline-offset:2px;border-radius:2px}\n",
    ".flow i.at{outline:2px solid var(--ink);outline-offset:1px}\n",
    ".js .ph,.js #qa{display:none}\n",
    ".bar{display:flex;flex-wrap:wrap;gap:10px 26px;align-items:center;padding:10px 0 12px;\n",
    "position:sticky;top:0;background:var(--bg);z-index:2;border-bottom:1px solid var(--line);\n",
    "margin-bottom:16px}\n",
    ".bar label{display:flex;align-items:center;gap:8px;font-size:13.5px}\n",
    "select,button.b{font:inherit;font-size:13.5px;color:var(--ink);background:var(--pane);\n",
    "border:1px solid var(--line);border-radius:4px;padding:5px 9px;min-height:32px;\n",
    "max-width:100%}\n",
    "button.b{cursor:pointer}\n",
    "button.b:hover,select:hover{border-color:var(--faint)}\n",
    ".time{flex:1 1 320px;display:flex;gap:10px;align-items:center;font-size:13.5px;\n",
    "font-variant-numeric:tabular-nums}\n",
    ".time input{flex:1;min-width:80px;accent-color:rgb(var(--keep))}\n",
    ".time output{min-width:11.5em}\n",
    ".cols{display:grid;grid-template-columns:minmax(230px,270px) minmax(0,1fr) minmax(0,1fr);\n",
    "gap:22px}\n",
    ".pt{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center;margin-bottom:8px;\n",
    "min-height:92px;align-content:flex-start}\n",
    ".pt select{font-weight:600}\n",
    ".pt .sum{flex-basis:100%}\n",
    ".lanes{display:grid;gap:2px;margin-left:auto}\n",
    ".lanes button{all:unset;width:17px;height:14px;border:1px solid var(--faint);\n",
    "cursor:pointer;position:relative;background:linear-gradient(rgb(var(--keep)/var(--v,0)),\n",
    "rgb(var(--keep)/var(--v,0)))}\n",
    ".lanes button[aria-pressed=true]{outline:2px solid var(--ink);outline-offset:1px;z-index:1}\n",
    ".lanes button:focus-visible{outline:2px solid var(--tell);outline-offset:1px;z-index:1}\n",
    ".lanes span{font-size:9.5px;line-height:1;color:var(--mute);text-align:center}\n",
    ".lanes.many button{width:9px;height:8px}\n",
    ".where{font-size:12.5px;color:var(--mute);flex-basis:100%}\n",
    ".qs h3{margin:0 0 4px}\n",
    ".qs p{margin:0 0 8px;font-size:13px;color:var(--mute)}\n",
    ".qs ol{list-style:none;margin:0;padding:0;max-height:min(86vh,820px);overflow-y:auto;\n",
    "border-top:1px solid var(--line)}\n",
    ".qs li button{all:unset;display:block;width:100%;box-sizing:border-box;\n",
    "padding:7px 6px 7px 10px;border-bottom:1px solid var(--line);\n",
    "border-left:3px solid transparent;cursor:pointer;font-size:13.5px;line-height:1.38}\n",
    ".qs li button:hover{background:rgb(var(--keep)/.06)}\n",
    ".qs li button:focus-visible{outline:2px solid rgb(var(--keep));outline-offset:-2px}\n",
    ".qs li button[aria-pressed=true]{border-left-color:var(--tell);background:var(--pane)}\n",
    ".qs .nr{color:var(--tell);font-weight:700;font-size:11.5px;margin-right:5px}\n",
    ".qs .kd{color:var(--mute);font-size:12px}\n",
    ".ans{display:grid;grid-template-columns:auto 1fr;gap:0 8px;margin-top:3px;font-size:13px}\n",
    ".ans span:nth-child(odd){color:var(--mute)}\n",
    ".key{display:flex;flex-wrap:wrap;gap:5px 18px;font-size:13px;color:var(--mute);\n",
    "margin:12px 0 0}\n",
    ".key i{font-style:normal;padding:1px 6px;border-radius:1px;margin-right:6px;\n",
    "color:var(--ink)}\n",
    ".key .k0{color:var(--faint)}.key .k1{color:var(--mute)}.key .k4{color:var(--on)}\n",
    ".key .sw{margin:0}\n",
    ".key .f{box-shadow:inset 0 -2px 0 var(--tell);font-weight:600;padding:1px 1px}\n",
    ".key .st{text-decoration:line-through;text-decoration-color:var(--tell);padding:1px 1px}\n",
    ".say{min-height:1.6em;margin:10px 0 0;font-size:13.5px}\n",
    ".ab{display:none}\n",
    ".life.on figcaption b{border-bottom:3px solid rgb(var(--keep))}\n",
    ".life svg{cursor:pointer}\n",
    "@media(max-width:900px){.cols{grid-template-columns:1fr}.ab{display:flex;gap:6px}\n",
    ".pane.a{display:none}.lens.showa .pane.a{display:block}.lens.showa .pane.b{display:none}\n",
    ".bar{position:static}\n",
    ".lives{grid-template-columns:none;grid-auto-flow:column;grid-auto-columns:min(84%,340px);\n",
    "overflow-x:auto;gap:26px;scroll-snap-type:x proximity;padding-bottom:10px}\n",
    ".lives figure{scroll-snap-align:start}\n",
    ".qs ol{max-height:250px}.flow{max-height:62vh;font-size:14px;padding:12px}.pt{min-height:0}\n",
    ".ab button[aria-pressed=true]{background:var(--ink);color:var(--bg)}}\n",
    "@media(max-width:600px){main{padding:24px 16px 40px}section{margin-top:46px}\n",
    ".plot.big svg text{font-size:17px}.plot.big svg .tk{font-size:16px}\n",
    ".plot.big svg .lo,.plot.big svg .lb{display:none}\n",
    ".facts{gap:12px 24px}.bar{gap:8px 12px}.time output{min-width:0}\n",
    ".facts>div{flex-basis:100%}}\n",
    "@media print{.flow{max-height:none}.bar{position:static}}\n",
    NULL };
static const char *const report_js[] = {
    "(function () {\n",
    "'use strict';\n",
    "function all(q, at) {\n",
    "  return Array.prototype.slice.call((at || document).querySelectorAll(q));\n",
    "}\n",
    "function el(tag, cls, text) {\n",
    "  var e = document.createElement(tag);\n",
    "  if (cls) e.className = cls;\n",
    "  if (text !== undefined) e.textContent = text;\n",
    "  return e;\n",
    "}\n",
    "/* tables sort by a click on a head */\n",
    "all('table.sort').forEach(function (table) {\n",
    "  all('th', table).forEach(function (th, col) {\n",
    "    var b = el('button', '', th.textContent), up = false;\n",
    "    b.type = 'button';\n",
    "    th.textContent = '';\n",
    "    th.appendChild(b);\n",
    "    function value(row) {\n",
    "      var c = row.cells[col], v = c.getAttribute('data-v'),\n",
    "          x = parseFloat(v === null ? c.textContent : v);\n",
    "      return isNaN(x) ? c.textContent : x;\n",
    "    }\n",
    "    b.addEventListener('click', function () {\n",
    "      var rows = all('tbody tr', table);\n",
    "      up = !up;\n",
    "      rows.sort(function (x, y) {\n",
    "        var a = value(x), c = value(y), r;\n",
    "        if (a === '' || c === '') return (a === '') - (c === '');\n",
    "        if (typeof a !== typeof c) { a = String(a); c = String(c); }\n",
    "        r = a < c ? -1 : a > c ? 1 : 0;\n",
    "        return up ? r : -r;\n",
    "      });\n",
    "      all('th', table).forEach(function (o) { o.removeAttribute('aria-sort'); });\n",
    "      th.setAttribute('aria-sort', up ? 'ascending' : 'descending');\n",
    "      rows.forEach(function (r) { table.tBodies[0].appendChild(r); });\n",
    "    });\n",
    "  });\n",
    "});\n",
    "\n",
    "/* the audit: D the data, T the moment shown, lane -1 or one lane, sel the chosen question\n",
    " */\n",
    "var source = document.getElementById('audit-data'), lens = document.getElementById('lens');\n",
    "if (!source || !lens) return;\n",
    "var D = JSON.parse(source.textContent), n = D.n, N = D.layers * D.heads;\n",
    "var T = n, lane = -1, sel = -1, when = false, timer = 0, panes = [];\n",
    "function count(x) {\n",
    "  return x < 10000 ? String(x) : String(x).replace(/\\B(?=(\\d{3})+$)/g, '\\u202f');\n",
    "}\n",
    "function size(b) {\n",
    "  var u = ['B', 'KiB', 'MiB', 'GiB'], k = 0;\n",
    "  while (b >= 1000 && k < 3) { b /= 1024; k++; }\n",
    "  return (k && b < 10    ? b.toFixed(2)\n",
    "          : k && b < 100 ? b.toFixed(1)\n",
    "                         : b.toFixed(0)) +\n",
    "         ' ' + u[k];\n",
    "}\n",
    "/* token count at which each entry left its lane, 0: it stays; below 0: merged */\n",
    "function decode(text, times) {\n",
    "  var out = new Int32Array(n), raw = atob(text), i = 0, p = 0, code, run;\n",
    "  function number() {\n",
    "    var x = 0, s = 0, b;\n",
    "    do { b = raw.charCodeAt(i++); x |= (b & 127) << s; s += 7; } while (b > 127);\n",
    "    return x;\n",
    "  }\n",
    "  while (p < n && i < raw.length) {\n",
    "    code = number(); run = number();\n",
    "    out.fill(code ? times[(code >> 1) - 1] * (code & 1 ? -1 : 1) : 0, p, p + run);\n",
    "    p += run;\n",
    "  }\n",
    "  return out;\n",
    "}\n",
    "D.runs.forEach(function (r) {\n",
    "  r.left = r.lanes.map(function (s) { return decode(s, r.times); });\n",
    "  r.anew = r.rlanes ? r.rlanes.map(function (s) { return decode(s, r.rtimes); }) : null;\n",
    "  r.right = r.answers.filter(function (a) { return a && a[0]; }).length;\n",
    "  r.asked = r.answers.filter(function (a) { return a; }).length;\n",
    "});\n",
    "function alive(r, l, p) { var x = r.left[l][p]; return !x || (x < 0 ? -x : x) > T; }\n",
    "function lanesOf(p, r) {\n",
    "  var k = 0, l;\n",
    "  for (l = 0; l < N; l++) k += alive(r, l, p) ? 1 : 0;\n",
    "  return k;\n",
    "}\n",
    "function laneName(l) {\n",
    "  return 'layer ' + Math.floor(l / D.heads) * D.step + ', head ' + l % D.heads;\n",
    "}\n",
    "function level(s) { return s <= 0 ? 0 : s >= 0.999 ? 4 : s > 0.6 ? 3 : s > 0.3 ? 2 : 1; }\n",
    "/* class of token p in run r at moment T */\n",
    "function look(r, p) {\n",
    "  var from = lane < 0 ? 0 : lane, to = lane < 0 ? N : lane + 1;\n",
    "  var l, x, k = 0, gone = 0, sum = 0, merged = 0, anew = 0;\n",
    "  if (p >= T) return 'u';\n",
    "  for (l = from; l < to; l++) {\n",
    "    if (alive(r, l, p)) {\n",
    "      k++;\n",
    "      if (r.anew && r.anew[l][p] && r.anew[l][p] <= T) anew++;\n",
    "    } else {\n",
    "      x = r.left[l][p];\n",
    "      gone++;\n",
    "      sum += x < 0 ? -x : x;\n",
    "      if (x < 0) merged++;\n",
    "    }\n",
    "  }\n",
    "  if (when && gone) return 'w' + Math.min(4, Math.floor(5 * sum / gone / (n + 1)));\n",
    "  if (!k && merged) return 'k0 mg';\n",
    "  return 'k' + level(k / (to - from)) + (anew ? ' rq' : '');\n",
    "}\n",
    "\n",
    "/* --- parts of the view --- */\n",
    "var flow = document.getElementById('flow');\n",
    "document.documentElement.className = 'js';\n",
    "lens.className = 'lens';\n",
    "var bar = el('div', 'bar'), cols = el('div', 'cols'), say = el('p', 'say'),\n",
    "    key = el('div', 'key'), qs = el('div', 'qs');\n",
    "say.setAttribute('aria-live', 'polite');\n",
    "\n",
    "function pick(name, options, value, change) {\n",
    "  var s = el('select');\n",
    "  s.setAttribute('aria-label', name);\n",
    "  options.forEach(function (o) {\n",
    "    var x = el('option', '', o[1]);\n",
    "    x.value = o[0];\n",
    "    s.appendChild(x);\n",
    "  });\n",
    "  s.value = value;\n",
    "  s.addEventListener('change', function () { change(+s.value); });\n",
    "  return s;\n",
    "}\n",
    "function pane(run, name, body) {\n",
    "  var P = {\n",
    "    run: run,\n",
    "    el: el('div', 'pane ' + name),\n",
    "    head: el('div', 'pt'),\n",
    "    sum: el('div', 'sum'),\n",
    "    where: el('div', 'where'),\n",
    "    grid: el('div', N > 48 ? 'lanes many' : 'lanes'),\n",
    "    flow: body,\n",
    "    cells: []\n",
    "  };\n",
    "  P.select = pick('Recipe ' + name, D.runs.map(function(r, i) {\n",
    "    return [i, r.recipe];\n",
    "  }),\n",
    "                  run, function(v) {\n",
    "                    P.run = v;\n",
    "                    paint();\n",
    "                  });\n",
    "  P.grid.style.gridTemplateColumns = 'repeat(' + D.layers + ',auto)';\n",
    "  P.grid.setAttribute('role', 'group');\n",
    "  P.grid.setAttribute('aria-label', 'Layers (columns) and heads (rows); arrow keys move');\n",
    "  for (var c = 0; D.layers <= 12 && c < D.layers; c++)\n",
    "    P.grid.appendChild(el('span', '', 'L' + c * D.step));\n",
    "  for (var g = 0; g < D.heads; g++)\n",
    "    for (var l = 0; l < D.layers; l++) (function (i) {\n",
    "      var b = el('button');\n",
    "      b.type = 'button';\n",
    "      b.tabIndex = P.cells.length ? -1 : 0;\n",
    "      b.addEventListener('click', function () { setLane(lane === i ? -1 : i); });\n",
    "      b.addEventListener('keydown', function (e) { laneKey(e, P, i); });\n",
    "      P.cells[i] = b;\n",
    "      P.grid.appendChild(b);\n",
    "    })(l * D.heads + g);\n",
    "  P.head.appendChild(P.select);\n",
    "  P.head.appendChild(P.grid);\n",
    "  P.head.appendChild(P.sum);\n",
    "  P.head.appendChild(P.where);\n",
    "  P.el.appendChild(P.head);\n",
    "  P.el.appendChild(P.flow);\n",
    "  P.tok = all('i', P.flow);\n",
    "  P.base = P.tok.map(function (t) { return t.className.replace(/^k\\d/, ''); });\n",
    "  P.now = P.tok.map(function (t) { return t.className; });\n",
    "  P.flow.tabIndex = 0;\n",
    "  P.flow.setAttribute('role', 'region');\n",
    "  P.flow.setAttribute('aria-label',\n",
    "                      'The conversation; left and right arrow go from token to token');\n",
    "  P.caret = -1;\n",
    "  P.flow.addEventListener('mouseover', function (e) { tell(P, P.tok.indexOf(e.target)); });\n",
    "  P.flow.addEventListener('click', function(e) {\n",
    "    var p = P.tok.indexOf(e.target),\n",
    "        q = e.target.getAttribute && e.target.getAttribute('data-n');\n",
    "    tell(P, p);\n",
    "    if (q) choose(parseInt(q, 10) - 1, true);\n",
    "  });\n",
    "  P.flow.addEventListener('mouseleave', function () { tell(P, -1); });\n",
    "  P.flow.addEventListener('keydown', function (e) {\n",
    "    var step = e.key === 'ArrowRight' ? 1 : e.key === 'ArrowLeft' ? -1 : 0;\n",
    "    if (!step) return;\n",
    "    e.preventDefault();\n",
    "    tell(P, Math.min(n - 1, Math.max(0, P.caret + step)));\n",
    "    reveal(P, P.caret, false);\n",
    "  });\n",
    "  P.flow.addEventListener('scroll', function() {\n",
    "    panes.forEach(function(o) {\n",
    "      if (o !== P && Math.abs(o.flow.scrollTop - P.flow.scrollTop) > 1)\n",
    "        o.flow.scrollTop = P.flow.scrollTop;\n",
    "    });\n",
    "  });\n",
    "  return P;\n",
    "}\n",
    "function reveal(P, p, middle) {\n",
    "  var t = P.tok[p], top = t.offsetTop, f = P.flow;\n",
    "  if (middle || top < f.scrollTop || top > f.scrollTop + f.clientHeight - 30)\n",
    "    f.scrollTop = top - f.clientHeight / 2;\n",
    "}\n",
    "function setLane(i) {\n",
    "  lane = i;\n",
    "  laneSelect.value = i;\n",
    "  paint();\n",
    "}\n",
    "function laneKey(e, P, i) {\n",
    "  var l = Math.floor(i / D.heads), g = i % D.heads, to;\n",
    "  if (e.key === 'ArrowRight') l++;\n",
    "  else if (e.key === 'ArrowLeft') l--;\n",
    "  else if (e.key === 'ArrowDown') g++;\n",
    "  else if (e.key === 'ArrowUp') g--;\n",
    "  else if (e.key === 'Escape') { setLane(-1); return; }\n",
    "  else return;\n",
    "  e.preventDefault();\n",
    "  if (l < 0 || l >= D.layers || g < 0 || g >= D.heads) return;\n",
    "  to = l * D.heads + g;\n",
    "  P.cells[i].tabIndex = -1;\n",
    "  P.cells[to].tabIndex = 0;\n",
    "  P.cells[to].focus();\n",
    "  setLane(to);\n",
    "}\n",
    "/* share of the tokens `set` that each lane of the pane holds */\n",
    "function gridOf(P, set, what) {\n",
    "  var r = D.runs[P.run], held = 0, l, k, i, held_text;\n",
    "  for (l = 0; l < N; l++) {\n",
    "    k = 0;\n",
    "    for (i = 0; i < set.length; i++) k += set[i] < T && alive(r, l, set[i]) ? 1 : 0;\n",
    "    held += k === set.length ? 1 : 0;\n",
    "    P.cells[l].style.setProperty('--v', set.length ? (k / set.length).toFixed(2) : 0);\n",
    "    P.cells[l].setAttribute('aria-pressed', lane === l ? 'true' : 'false');\n",
    "    held_text = set.length ? ': holds ' + k + ' of ' + set.length + ' tokens' : '';\n",
    "    P.cells[l].setAttribute('aria-label', laneName(l) + held_text);\n",
    "    P.cells[l].title = laneName(l);\n",
    "  }\n",
    "  P.where.textContent = what + ': held in ' + held + ' of ' + N + ' KV heads';\n",
    "}\n",
    "function gridRest(P) {\n",
    "  if (sel >= 0 && D.questions[sel].told.length)\n",
    "    gridOf(P, D.questions[sel].told, 'Answer ' + (sel + 1));\n",
    "  else gridOf(P, [], 'No telling chosen');\n",
    "}\n",
    "function tell(P, p) {\n",
    "  panes.forEach(function (o) {\n",
    "    if (o.caret >= 0) o.tok[o.caret].classList.remove('at');\n",
    "    o.caret = p;\n",
    "    if (p < 0) { gridRest(o); return; }\n",
    "    o.tok[p].classList.add('at');\n",
    "    gridOf(o, [p], 'Token ' + p);\n",
    "  });\n",
    "  if (p < 0) { say.textContent = '\\u00a0'; return; }\n",
    "  var r = D.runs[P.run], text = 'Token ' + count(p) + ' \\u201c';\n",
    "  text += P.tok[p].textContent.replace(/\\n/g, '') + '\\u201d under ' + r.recipe + ': ';\n",
    "  if (p >= T) text += 'not read yet';\n",
    "  else if (lane >= 0) {\n",
    "    var x = r.left[lane][p];\n",
    "    text += alive(r, lane, p)\n",
    "                ? 'held in ' + laneName(lane)\n",
    "                : (x < 0 ? 'merged into others in ' : 'dropped in ') + laneName(lane) +\n",
    "                      ' after ' + count(x < 0 ? -x : x) + ' tokens';\n",
    "  } else {\n",
    "    var first = 0, last = 0, k = lanesOf(p, r);\n",
    "    for (var l = 0; l < N; l++) if (!alive(r, l, p)) {\n",
    "      var y = Math.abs(r.left[l][p]);\n",
    "      first = first ? Math.min(first, y) : y;\n",
    "      last = Math.max(last, y);\n",
    "    }\n",
    "    text += 'held in ' + k + ' of ' + N + ' KV heads';\n",
    "    if (k < N)\n",
    "      text += ', dropped after ' + count(first) +\n",
    "              (last > first ? ' to ' + count(last) : '') + ' tokens';\n",
    "  }\n",
    "  say.textContent = text + '.';\n",
    "}\n",
    "/* question i: its telling is marked in both texts and in the triangles */\n",
    "function choose(i, scroll) {\n",
    "  sel = i;\n",
    "  all('.ln.hit', lens).forEach(function (e) { e.classList.remove('hit'); });\n",
    "  all('li button', qs).forEach(function (b, k) {\n",
    "    b.setAttribute('aria-pressed', k === i ? 'true' : 'false');\n",
    "  });\n",
    "  all('.an').forEach(function (a) {\n",
    "    var on = +a.getAttribute('data-q') === i, th = a.querySelector('.th');\n",
    "    a.classList.toggle('sel', on);\n",
    "    if (on && D.questions[i].told.length) {\n",
    "      var p = D.questions[i].told[D.questions[i].told.length - 1],\n",
    "          x = (32 + 320 * p / n).toFixed(1);\n",
    "      th.setAttribute('d', 'M' + x + ' ' + (12 + 126 * p / n).toFixed(1) + 'V150');\n",
    "    }\n",
    "  });\n",
    "  if (i >= 0)\n",
    "    panes.forEach(function(P) {\n",
    "      D.questions[i].told.forEach(function(p) {\n",
    "        if (P.tok[p]) P.tok[p].parentNode.classList.add('hit');\n",
    "      });\n",
    "      if (scroll && D.questions[i].told.length)\n",
    "        reveal(P, D.questions[i].told[D.questions[i].told.length - 1], true);\n",
    "    });\n",
    "  panes.forEach(gridRest);\n",
    "}\n",
    "function answerLine(box, name, a) {\n",
    "  box.appendChild(el('span', '', name));\n",
    "  box.appendChild(\n",
    "      el('span',\n",
    "         !a     ? ''\n",
    "         : a[0] ? 'ok'\n",
    "                : 'no',\n",
    "         !a ? 'not asked' : (a[1] || 'nothing') + (a[0] ? ' \\u2713' : ' \\u2717')));\n",
    "}\n",
    "function shortName(i) { return D.runs[i].recipe.split(' ')[0]; }\n",
    "function paintQuestions() {\n",
    "  all('.ans', qs).forEach(function (box, i) {\n",
    "    box.textContent = '';\n",
    "    box.appendChild(el('span', '', 'right'));\n",
    "    box.appendChild(el('span', '', D.questions[i].want));\n",
    "    panes.forEach(function(\n",
    "        P) { answerLine(box, shortName(P.run), D.runs[P.run].answers[i]); });\n",
    "  });\n",
    "}\n",
    "function coded(r) {\n",
    "  function plain(c) { return c === '' || c === 'f32' || c === 'f16' || c === 'bf16'; }\n",
    "  return !plain(r.k) || !plain(r.v);\n",
    "}\n",
    "function paintPane(P) {\n",
    "  var r = D.runs[P.run], p, c, kept = 0, l, from = lane < 0 ? 0 : lane,\n",
    "      to = lane < 0 ? N : lane + 1;\n",
    "  for (p = 0; p < n; p++) {\n",
    "    c = look(r, p) + P.base[p];\n",
    "    if (P.now[p] !== c) P.tok[p].className = P.now[p] = c;\n",
    "    for (l = from; p < T && l < to; l++) kept += alive(r, l, p) ? 1 : 0;\n",
    "  }\n",
    "  P.caret = -1;\n",
    "  P.el.classList.toggle('coded', coded(r));\n",
    "  P.select.value = P.run;\n",
    "  P.sum.textContent = count(kept) + ' of ' + count((to - from) * T) + ' entries (' +\n",
    "                      (100 * kept / Math.max(1, (to - from) * T)).toFixed(1) + ' %)' +\n",
    "                      (r.bytes >= 0 && T >= n && lane < 0 ? ', ' + size(r.bytes) : '') +\n",
    "                      (r.k ? ', ' + (r.k === r.v ? r.k : r.k + '/' + r.v) : '') +\n",
    "                      (r.asked ? '; ' + r.right + ' of ' + r.asked + ' right' : '');\n",
    "}\n",
    "function paintKey() {\n",
    "  var warm = [['w0', 'w1', 'w2', 'w3', 'w4'], 'dropped, early to late in the talk'];\n",
    "  var t = when ? [[['k4'], 'held'], warm] :\n",
    "    lane >= 0 ? [[['k4'], 'held'], [['k0'], 'dropped']] :\n",
    "    [[['k0', 'k1', 'k2', 'k3', 'k4'], 'held in none, a few, some, most, all KV heads']];\n",
    "  if (D.runs.some(function(r) { return r.anew; }))\n",
    "    t.push([['rq'], 'stored anew, smaller']);\n",
    "  if (D.runs.some(function(r) {\n",
    "        return r.left.some(function(a) { return a.some(function(x) { return x < 0; }); });\n",
    "      }))\n",
    "    t.push([['mg'], 'merged into others']);\n",
    "  if (D.runs.some(coded)) t.push([['k4 coded'], 'held in fewer bits (quantized)']);\n",
    "  if (T < n) t.push([['u'], 'not read yet']);\n",
    "  t.push([['f'], 'value that a question asks for'], [['st'], 'value that is out of date']);\n",
    "  key.textContent = '';\n",
    "  t.forEach(function (x) {\n",
    "    var s = el('span');\n",
    "    x[0].forEach(function(\n",
    "        c, i) { s.appendChild(el('i', c + (i + 1 < x[0].length ? ' sw' : ''), 'word')); });\n",
    "    s.appendChild(document.createTextNode(x[1]));\n",
    "    key.appendChild(s);\n",
    "  });\n",
    "}\n",
    "function paint() {\n",
    "  panes.forEach(paintPane);\n",
    "  panes.forEach(gridRest);\n",
    "  paintQuestions();\n",
    "  paintKey();\n",
    "  choose(sel, false);\n",
    "  abName();\n",
    "  slider.value = T;\n",
    "  clock.textContent =\n",
    "      T >= n ? 'all ' + count(n) + ' tokens read' : count(T) + ' of ' + count(n) + ' read';\n",
    "  all('.life').forEach(function (f) {\n",
    "    var i = +f.getAttribute('data-run'), y = 12 + 126 * T / n, c = f.querySelector('.cur');\n",
    "    c.setAttribute('d', 'M32 ' + y.toFixed(1) + 'h320');\n",
    "    c.style.visibility = T < n ? 'visible' : 'hidden';\n",
    "    f.classList.toggle('on', panes.some(function (P) { return P.run === i; }));\n",
    "  });\n",
    "}\n",
    "\n",
    "/* --- controls --- */\n",
    "var lanesList = [[-1, 'all layers and heads']];\n",
    "for (var i = 0; i < N; i++) lanesList.push([i, laneName(i)]);\n",
    "var laneSelect = pick('Layer and head', lanesList, -1, setLane);\n",
    "var label = el('label', '', 'Show ');\n",
    "label.appendChild(laneSelect);\n",
    "bar.appendChild(label);\n",
    "var mode =\n",
    "    pick('Colour', [[0, 'what is held'], [1, 'when it was dropped']], 0, function(v) {\n",
    "      when = !!v;\n",
    "      paint();\n",
    "    });\n",
    "label = el('label', '', 'coloured by ');\n",
    "label.appendChild(mode);\n",
    "bar.appendChild(label);\n",
    "var time = el('div', 'time'), play = el('button', 'b', 'Play'), slider = el('input'),\n",
    "    clock = el('output');\n",
    "play.type = 'button';\n",
    "slider.type = 'range';\n",
    "slider.min = 1;\n",
    "slider.max = n;\n",
    "slider.step = 1;\n",
    "slider.setAttribute('aria-label', 'Moment: tokens read');\n",
    "slider.addEventListener('input', function () { stop(); T = +slider.value; paint(); });\n",
    "function stop() {\n",
    "  clearInterval(timer);\n",
    "  timer = 0;\n",
    "  play.textContent = 'Play';\n",
    "}\n",
    "play.addEventListener('click', function () {\n",
    "  if (timer) { stop(); return; }\n",
    "  var calm = window.matchMedia && matchMedia('(prefers-reduced-motion: reduce)').matches;\n",
    "  if (T >= n) T = 1;\n",
    "  play.textContent = 'Pause';\n",
    "  timer = setInterval(function () {\n",
    "    T = Math.min(n, T + Math.ceil(n / (calm ? 8 : 90)));\n",
    "    if (T >= n) stop();\n",
    "    paint();\n",
    "    panes.forEach(function (P) { reveal(P, T - 1, false); });\n",
    "  }, calm ? 1200 : 90);\n",
    "});\n",
    "time.appendChild(play);\n",
    "time.appendChild(slider);\n",
    "time.appendChild(clock);\n",
    "bar.appendChild(time);\n",
    "var ab = el('div', 'ab'), abButtons = ['a', 'b'].map(function (x) {\n",
    "  var b = el('button', 'b');\n",
    "  b.type = 'button';\n",
    "  b.addEventListener('click', function() {\n",
    "    lens.classList.toggle('showa', x === 'a');\n",
    "    abName();\n",
    "    if (sel >= 0) choose(sel, true);\n",
    "  });\n",
    "  ab.appendChild(b);\n",
    "  return b;\n",
    "});\n",
    "function abName() {\n",
    "  abButtons.forEach(function (b, i) {\n",
    "    b.textContent = shortName(panes[i].run);\n",
    "    b.setAttribute('aria-pressed',\n",
    "                   lens.classList.contains('showa') === (i === 0) ? 'true' : 'false');\n",
    "  });\n",
    "}\n",
    "\n",
    "/* --- put together --- */\n",
    "var other = flow.cloneNode(true);\n",
    "other.removeAttribute('id');\n",
    "panes = [pane(D.a, 'a', other), pane(D.b, 'b', flow)];\n",
    "lens.textContent = '';\n",
    "qs.appendChild(el('h3', '', 'Questions'));\n",
    "qs.appendChild(el('p', '',\n",
    "                  D.questions.length ? 'Choose one: its telling is marked in the text.'\n",
    "                                     : 'None were asked.'));\n",
    "var list = el('ol');\n",
    "D.questions.forEach(function (q, i) {\n",
    "  var li = el('li'), b = el('button');\n",
    "  b.type = 'button';\n",
    "  b.appendChild(el('span', 'nr', String(i + 1)));\n",
    "  b.appendChild(document.createTextNode(q.text + ' '));\n",
    "  b.appendChild(el('span', 'kd', q.kind));\n",
    "  b.appendChild(el('span', 'ans'));\n",
    "  b.addEventListener('click', function () { choose(i, true); });\n",
    "  li.appendChild(b);\n",
    "  list.appendChild(li);\n",
    "});\n",
    "qs.appendChild(list);\n",
    "cols.appendChild(qs);\n",
    "cols.appendChild(panes[0].el);\n",
    "cols.appendChild(panes[1].el);\n",
    "bar.appendChild(ab);\n",
    "lens.appendChild(bar);\n",
    "lens.appendChild(cols);\n",
    "lens.appendChild(key);\n",
    "lens.appendChild(say);\n",
    "all('.an').forEach(function (a) {\n",
    "  function go(e) { e.stopPropagation(); choose(+a.getAttribute('data-q'), true); }\n",
    "  a.addEventListener('click', go);\n",
    "});\n",
    "all('.life').forEach(function (f) {\n",
    "  var i = +f.getAttribute('data-run'), b = el('button', 'b', 'read it');\n",
    "  b.type = 'button';\n",
    "  b.setAttribute('aria-label', 'Show ' + D.runs[i].recipe + ' in the right-hand text');\n",
    "  function go() {\n",
    "    if (panes[0].run === i) panes[0].run = panes[1].run;\n",
    "    panes[1].run = i;\n",
    "    paint();\n",
    "  }\n",
    "  b.addEventListener('click', function () { go(); lens.scrollIntoView(); });\n",
    "  f.querySelector('.nm').appendChild(b);\n",
    "  f.querySelector('svg').addEventListener('click', function(e) {\n",
    "    var box = this.getBoundingClientRect(),\n",
    "        p = Math.round(((e.clientX - box.left) / box.width * 360 - 32) / 320 * n);\n",
    "    go();\n",
    "    if (p >= 0 && p < n) panes.forEach(function (P) { reveal(P, p, true); });\n",
    "  });\n",
    "});\n",
    "/* begin with a question that the better recipe answers and the other does not */\n",
    "D.questions.forEach(function (q, i) {\n",
    "  var a = D.runs[D.a].answers[i], b = D.runs[D.b].answers[i];\n",
    "  if (sel < 0 && q.told.length && a && b && !a[0] && b[0]) sel = i;\n",
    "});\n",
    "paint();\n",
    "if (sel >= 0) choose(sel, true);\n",
    "})();\n",
    NULL };

/* --- text and numbers ------------------------------------------------------------------------- */
/* Length of the valid UTF-8 sequence at s (left bytes), 0: none. */
static int report_utf8(const unsigned char *s, size_t left) {
    static const unsigned lowest[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const int n = s[0] < 0x80   ? 1
                  : s[0] < 0xc2 ? 0
                  : s[0] < 0xe0 ? 2
                  : s[0] < 0xf0 ? 3
                  : s[0] < 0xf5 ? 4
                                : 0;
    unsigned c = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    int i;
    if (!n || (size_t)n > left) return 0;
    for (i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    return n > 1 && (c < lowest[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) ? 0 : n;
}
/* Any bytes as text of HTML or, json, inside a JSON string within a script element. */
static void report_bytes(FILE *f, const char *s, size_t len, int json) {
    const unsigned char *p = (const unsigned char *)s;
    size_t i = 0;
    while (i < len) {
        const int n = report_utf8(p + i, len - i), c = n == 1 ? p[i] : 0;
        if (!n) fputs(json ? "\\ufffd" : "&#xfffd;", f);
        else if (n > 1) fwrite(p + i, 1, (size_t)n, f);
        else if (json && (c < 32 || c == '<' || c == '>' || c == '&' || c == '"' || c == '\\'))
            fprintf(f, "\\u%04x", (unsigned)c);
        else if (c < 32 && c != '\n' && c != '\t') fputs("&#xfffd;", f);
        else if (!json && (c == '<' || c == '>' || c == '&' || c == '"' || c == '\''))
            fprintf(f, "&#%d;", c);
        else fputc(c, f);
        i += n ? (size_t)n : 1;
    }
}
static void report_esc(FILE *f, const char *s) { if (s) report_bytes(f, s, strlen(s), 0); }
static void report_json(FILE *f, const char *s) {
    fputc('"', f);
    if (s) report_bytes(f, s, strlen(s), 1);
    fputc('"', f);
}
/* "1.5 MiB": three figures. Returns out. */
static const char *report_size(char out[32], double b) {
    static const char *const unit[5] = { "B", "KiB", "MiB", "GiB", "TiB" };
    int u = 0;
    while (b >= 1000 && u < 4) { b /= 1024; u++; }
    if (!(b >= 0)) snprintf(out, 32, "?");
    else
        snprintf(out, 32,
                 u && b < 10    ? "%.2f %s"
                 : u && b < 100 ? "%.1f %s"
                                : "%.0f %s",
                 b, unit[u]);
    return out;
}
static const char *report_share(char out[32], double x) { /* "12.5 %", "6.25 %", "50 %" */
    int digits = 0;
    double p = 100 * x;
    while (digits < 2 && fabs(p - floor(p + 0.5)) > 1e-6) { p *= 10; digits++; }
    snprintf(out, 32, "%.*f %%", digits, 100 * x);
    return out;
}
/* Wilson's 95 % interval of right out of asked (Wilson 1927), z = 1.96:
   (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) */
static void report_wilson(int right, int asked, double *lo, double *hi) {
    const double z = 1.959964, n = asked > 0 ? asked : 1, p = right / n;
    const double mid = p + z * z / (2 * n), half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    *lo = asked > 0 ? fmax(0, (mid - half) / (1 + z * z / n)) : 0;
    *hi = asked > 0 ? fmin(1, (mid + half) / (1 + z * z / n)) : 1;
}
static int report_same(const char *a, const char *b) {
    return (!a && !b) || (a && b && !strcmp(a, b));
}

/* --- points: cells summed to what the pictures show ------------------------------------------- */
/* kind NULL: all questions of the suite, from the cell that says so or, without one, summed from
   the cells of its kinds or depths. */
typedef struct report_point {
    const char *suite, *kind, *method, *recipe;
    int ctx, aware, asked, right, series, exact, parts;
    double budget, bytes, full, kl;
    double value;             /* what is drawn, 0..1, up is better: accuracy, or 1 - KL / top */
} report_point;
typedef struct report_points {
    int metric;                           /* 0: accuracy, 1: KL to the full cache */
    double top;                           /* KL at the bottom of its pictures */
    report_point *p; int n;
    const char *series[64]; int n_series; /* methods in order of appearance */
    int main; /* the point whose suite, ctx, aware the report leads with; -1 */
    double budget;                        /* and the budget */
} report_points;

static report_point *report_point_of(report_points *P, const report_cell *c, const char *kind) {
    int i;
    report_point *p;
    for (i = 0; i < P->n; i++) {
        p = &P->p[i];
        if (p->ctx == c->ctx && p->aware == c->aware && report_same(p->suite, c->suite) &&
            report_same(p->recipe, c->recipe) && report_same(p->kind, kind)) return p;
    }
    p = &P->p[P->n++];
    memset(p, 0, sizeof *p);
    p->suite = c->suite; p->kind = kind; p->method = c->method; p->recipe = c->recipe;
    p->ctx = c->ctx; p->aware = c->aware; p->budget = c->budget;
    p->full = p->kl = -1;
    for (i = 0; i < P->n_series && strcmp(P->series[i], c->method); i++) {}
    if (i == P->n_series && i < 64) P->series[P->n_series++] = c->method;
    p->series = i < 64 ? i : 63;
    return p;
}
static void report_point_add(report_point *p, const report_cell *c, int exact) {
    if (p->exact && !exact) return;
    if (exact && !p->exact) p->asked = p->right = p->parts = 0, p->bytes = 0;
    p->exact = exact;
    p->asked += c->asked;
    p->right += c->right;
    if (c->bytes > 0) p->bytes = (p->bytes * p->parts + c->bytes) / (p->parts + 1), p->parts++;
    if (c->full_bytes > 0) p->full = c->full_bytes;
    if (c->kl >= 0) p->kl = c->kl;
}
/* 1 if a and b belong to one panel. */
static int report_mate(const report_point *a, const report_point *b) {
    return a->ctx == b->ctx && a->aware == b->aware && report_same(a->suite, b->suite) &&
           report_same(a->kind, b->kind);
}
/* What the report leads with: conv, question unknown, the context of most recipes, the longest. */
static void report_choose(report_points *P) {
    int i, j, best = -1;
    double far = 1e9;
    P->main = -1;
    for (i = 0; i < P->n; i++) {
        const report_point *p = &P->p[i];
        int score = (strcmp(p->suite, "conv") ? 0 : 1000000) + (p->aware ? 0 : 100000), mates = 0;
        if (p->kind) continue;
        for (j = 0; j < P->n; j++) mates += report_mate(p, &P->p[j]);
        score += 100 * (mates < 900 ? mates : 900) + (p->ctx < 90000 ? p->ctx / 1000 : 90);
        if (score > best) best = score, P->main = i;
    }
    P->budget = 1;
    for (i = 0; P->main >= 0 && i < P->n;
         i++) { /* the budget nearest to one eighth that two recipes have */
        const report_point *p = &P->p[i];
        int mates = 0;
        double d;
        if (!report_mate(p, &P->p[P->main]) || p->budget >= 1 || p->budget <= 0) continue;
        for (j = 0; j < P->n; j++)
            mates += report_mate(p, &P->p[j]) && fabs(P->p[j].budget - p->budget) < 1e-9;
        d = fabs(log(p->budget / 0.125)) + (mates < 2 ? 100 : 0);
        if (d < far - 1e-9) far = d, P->budget = p->budget;
    }
}
static int report_points_make(report_points *P, const report_data *d, int metric) {
    int i;
    memset(P, 0, sizeof *P);
    P->metric = metric;
    P->p = (report_point *)malloc((2 * (size_t)d->n_cells + 1) * sizeof *P->p);
    if (!P->p) return 1;
    for (i = 0; i < d->n_cells && !P->n_series;
         i++) /* the yardstick is drawn in the colour of the text */
        if (!strcmp(d->cell[i].method, "full")) P->series[P->n_series++] = d->cell[i].method;
    for (i = 0; i < d->n_cells; i++) {
        const report_cell *c = &d->cell[i];
        if (metric ? c->kl < 0 : c->asked <= 0) continue;
        report_point_add(report_point_of(P, c, NULL), c, !c->kind && c->depth < 0);
        if (c->kind) report_point_add(report_point_of(P, c, c->kind), c, c->depth < 0);
        P->top = fmax(P->top, c->kl);
    }
    P->top = fmax(ceil(P->top * 20) / 20, 0.05);
    for (i = 0; i < P->n; i++) {
        report_point *p = &P->p[i];
        p->value = metric ? 1 - p->kl / P->top : p->asked > 0 ? (double)p->right / p->asked : 0;
    }
    report_choose(P);
    return 0;
}
static double report_acc(const report_point *p) { return p->value; }
/* How far it is from there, as the log of a factor. */
static double report_off(const report_points *P, const report_point *p) {
    return fabs(log(p->bytes / (P->budget * p->full)));
}
/* Does the point use about the leading budget's share of the full cache? Its bytes decide,
   codec and all; without bytes the share that was asked for. The full cache itself does not. */
static int report_near(const report_points *P, const report_point *p) {
    int i;
    if (!strcmp(p->method, "full") && p->budget >= 1) return 0;
    if (!(p->bytes > 0 && p->full > 0)) return p->budget < 1 && fabs(p->budget - P->budget) < 1e-9;
    if (p->bytes > 1.35 * P->budget * p->full || p->bytes < 0.7 * P->budget * p->full) return 0;
    for (i = 0; i < P->n; i++) { /* of a method's points only the nearest */
        const report_point *o = &P->p[i];
        if (report_mate(o, p) && !strcmp(o->method, p->method) && o->bytes > 0 &&
            report_off(P, o) < report_off(P, p)) return 0;
    }
    return 1;
}

/* --- pictures: accuracy against memory -------------------------------------------------------- */
/* A panel in its own coordinates; CSS scales it. x: cache bytes, logarithmic, less to the right. */
typedef struct report_axes { double x0, y0, w, h, lo, hi; } report_axes;
static double report_x(const report_axes *a, double bytes) {
    return a->x0 + a->w * (log(a->hi) - log(bytes)) / (log(a->hi) - log(a->lo));
}
static double report_y(const report_axes *a, double acc) { return a->y0 + a->h * (1 - acc); }
/* Marker shapes differ as well as colours, for readers who do not tell the colours apart. */
static void report_marker(FILE *f, int s, double x, double y) {
    static const char *const shape[6] = { "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
                                          "M-3.6-3.6h7.2v7.2h-7.2z",
                                          "M0-4.6L4.4 3.4H-4.4z",
                                          "M0-5L5 0L0 5L-5 0z",
                                          "M0 4.6L4.4-3.4H-4.4z",
                                          "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z" };
    fprintf(f, "<path class=\"mk\" transform=\"translate(%.1f %.1f)\" d=\"%s\"/>", x, y,
            shape[s % 6]);
}
static int report_in(const report_point *p, const report_point *of) {
    return report_mate(p, of) && p->bytes > 0;
}
/* Best point of the panel with fewer bytes than `below`, by bytes; for the front. */
static void report_front(FILE *f, const report_points *P, const report_point *of,
                         const report_axes *a) {
    double acc = -1, x = a->x0 + a->w, y = 0;
    int first = 1, i;
    double from = 0;
    fputs("<path class=\"front\" d=\"", f);
    for (;;) { /* from the smallest cache to the largest, whenever accuracy rises */
        const report_point *best = NULL;
        for (i = 0; i < P->n; i++) {
            const report_point *p = &P->p[i];
            if (!report_in(p, of) || p->bytes <= from || report_acc(p) <= acc) continue;
            if (!best || p->bytes < best->bytes ||
                (p->bytes <= best->bytes && report_acc(p) > report_acc(best)))
                best = p;
        }
        if (!best) break;
        from = best->bytes;
        acc = report_acc(best);
        x = report_x(a, best->bytes);
        if (first) fprintf(f, "M%.1f %.1fH%.1f", a->x0 + a->w, report_y(a, acc), x);
        else fprintf(f, "H%.1fV%.1f", x, report_y(a, acc));
        y = report_y(a, acc);
        first = 0;
    }
    if (!first) fprintf(f, "V%.1fH%.1f", y, a->x0);
    fputs("\"/>", f);
}
static void report_grid(FILE *f, const report_points *P, const report_axes *a, double full) {
    char text[32];
    int i;
    for (i = 0; i <= 4; i++) {
        const double y = report_y(a, i / 4.0);
        fprintf(f, "<path class=\"gl\" d=\"M%.1f %.1fh%.1f\"/>", a->x0, y, a->w);
        fprintf(f, "<text class=\"tk e\" x=\"%.1f\" y=\"%.1f\">", a->x0 - 6, y + 3.5);
        fprintf(f, P->metric ? "%.2g</text>" : "%.0f</text>",
                P->metric ? P->top * (1 - i / 4.0) : 25.0 * i);
    }
    if (!(full > 0)) full = a->hi;
    for (i = 0; i < 12; i++) {
        const double b = full / (double)(1 << i), x = report_x(a, b);
        if (b > a->hi * 1.001) continue;
        if (b < a->lo * 0.999) break;
        fprintf(f, "<path class=\"gl\" d=\"M%.1f %.1fv4\"/>", x, a->y0 + a->h);
        if (i)
            fprintf(f, "<text class=\"tk m\" x=\"%.1f\" y=\"%.1f\">1/%d</text>", x,
                    a->y0 + a->h + 15, 1 << i);
        else
            fprintf(f, "<text class=\"tk m\" x=\"%.1f\" y=\"%.1f\">full</text>", x,
                    a->y0 + a->h + 15);
        fprintf(f, "<text class=\"tk m lo\" x=\"%.1f\" y=\"%.1f\">%s</text>", x, a->y0 + a->h + 27,
                report_size(text, b));
    }
}
/* Curve, intervals and markers of one method; points by falling bytes. */
static void report_curve(FILE *f, const report_points *P, const report_point *of,
                         const report_axes *a, int s) {
    char size[32];
    double from = 1e300, lo, hi;
    int i, first = 1, all = 1;
    fprintf(f, "<g class=\"sr s%d\"><path class=\"cv\" d=\"", s % 8);
    for (;;) {
        const report_point *next = NULL;
        for (i = 0; i < P->n; i++)
            if (report_in(&P->p[i], of) && P->p[i].series == s && P->p[i].bytes < from &&
                (!next || P->p[i].bytes > next->bytes)) next = &P->p[i];
        if (!next) break;
        from = next->bytes;
        all &= next->budget >= 1;
        fprintf(f, "%c%.1f %.1f", first ? 'M' : 'L', report_x(a, from),
                report_y(a, report_acc(next)));
        first = 0;
        if (all)
            fprintf(f, "H%.1f\"/><path class=\"cv\" d=\"",
                    a->x0 + a->w); /* a level to compare with */
        if (all) first = 1;
    }
    fputs("\"/>", f);
    for (i = 0; i < P->n; i++) {
        const report_point *p = &P->p[i];
        if (!report_in(p, of) || p->series != s) continue;
        report_wilson(p->right, p->asked, &lo, &hi);
        fprintf(f, "<g><title>");
        report_esc(f, p->recipe);
        if (P->metric) fprintf(f, ": KL %.4f, %s</title>", p->kl, report_size(size, p->bytes));
        else
            fprintf(f, ": %d of %d right, %.0f %% (95 %% interval %.0f to %.0f), %s</title>",
                    p->right, p->asked, 100 * report_acc(p), 100 * lo, 100 * hi,
                    report_size(size, p->bytes));
        if (!P->metric)
            fprintf(f, "<path class=\"er\" d=\"M%.1f %.1fV%.1f\"/>", report_x(a, p->bytes),
                    report_y(a, lo), report_y(a, hi));
        report_marker(f, s, report_x(a, p->bytes), report_y(a, report_acc(p)));
        fputs("</g>", f);
    }
    fputs("</g>", f);
}
/* Names at the right ends of the curves, pushed apart. */
static void report_labels(FILE *f, const report_points *P, const report_point *of,
                          const report_axes *a) {
    double y[64], at[64];
    int s, i, k, n = 0, order[64];
    for (s = 0; s < P->n_series; s++) {
        const report_point *end = NULL;
        for (i = 0; i < P->n; i++)
            if (report_in(&P->p[i], of) && P->p[i].series == s &&
                (!end || P->p[i].bytes < end->bytes))
                end = &P->p[i];
        if (!end) continue;
        at[s] = report_y(a, report_acc(end));
        for (k = n++; k > 0 && at[order[k - 1]] > at[s]; k--) order[k] = order[k - 1];
        order[k] = s;
    }
    for (k = 0; k < n; k++) y[k] = fmax(at[order[k]], k ? y[k - 1] + 15 : a->y0);
    if (n && y[n - 1] > a->y0 + a->h + 4) {
        y[n - 1] = a->y0 + a->h + 4;
        for (k = n - 2; k >= 0; k--) y[k] = fmin(y[k], y[k + 1] - 15);
    }
    for (k = 0; k < n; k++) {
        fprintf(f, "<text class=\"lb s%d\" x=\"%.1f\" y=\"%.1f\">", order[k] % 8, a->x0 + a->w + 9,
                y[k] + 4);
        report_esc(f, P->series[order[k]]);
        fputs("</text>", f);
    }
}
/* What the points of a panel span. 0: nothing to show. */
static int report_span(const report_points *P, const report_point *of, report_axes *a,
                       double *full) {
    int i, n = 0;
    *full = -1;
    a->lo = 1e300;
    a->hi = 0;
    for (i = 0; i < P->n; i++) {
        const report_point *p = &P->p[i];
        if (!report_in(p, of)) continue;
        n++;
        a->lo = fmin(a->lo, p->bytes);
        a->hi = fmax(a->hi, p->bytes);
        if (p->full > 0) *full = p->full;
    }
    for (i = 0; *full <= 0 && i < P->n; i++)
        if (report_in(&P->p[i], of) && P->p[i].budget >= 1) *full = fmax(*full, P->p[i].bytes);
    a->hi *= 1.06;
    a->lo = a->lo > a->hi * 0.6 ? a->hi * 0.5 : a->lo / 1.06;
    return n;
}
static void report_length(FILE *f, int ctx) {
    if (ctx >= 1024 && ctx % 1024 == 0) fprintf(f, "%dk", ctx / 1024);
    else fprintf(f, "%d", ctx);
}
static void report_panel(FILE *f, const report_points *P, const report_point *of, int big) {
    report_axes a;
    double full;
    int s;
    const int W = big ? 640 : 360, H = big ? 360 : 250;
    a.x0 = 34; a.y0 = 12; a.w = W - (big ? 146 : 54); a.h = H - 54;
    if (!report_span(P, of, &a, &full)) return;
    fprintf(f, "<figure class=\"%s\"><figcaption>", big ? "plot big" : "plot");
    report_esc(f, of->kind ? of->kind : of->suite);
    fputs(", ", f);
    report_length(f, of->ctx);
    fprintf(f, " tokens%s</figcaption><svg viewBox=\"0 0 %d %d\" role=\"img\"><title>%s "
            "against cache bytes, ", of->aware ? ", question known" : "", W, H,
            P->metric ? "KL to the full cache" : "Accuracy in per cent");
    report_esc(f, of->kind ? of->kind : of->suite);
    fprintf(f,
            ", %d tokens</title><desc>One curve for each method, with 95 %% intervals; less memory "
            "to the "
            "right. The figures stand in the table of all cells.</desc>",
            of->ctx);
    report_grid(f, P, &a, full);
    report_front(f, P, of, &a);
    for (s = 0; s < P->n_series; s++) report_curve(f, P, of, &a, s);
    if (big) report_labels(f, P, of, &a);
    fputs("</svg></figure>\n", f);
}
static void report_legend(FILE *f, const report_points *P) {
    int s;
    fputs("<ul class=\"legend\">", f);
    for (s = 0; s < P->n_series; s++) {
        fprintf(f, "<li class=\"s%d\"><svg viewBox=\"-8 -8 16 16\" aria-hidden=\"true\">", s % 8);
        report_marker(f, s, 0, 0);
        fputs("</svg>", f);
        report_esc(f, P->series[s]);
        fputs("</li>", f);
    }
    fputs("<li><svg viewBox=\"-8 -8 16 16\" aria-hidden=\"true\"><path class=\"front\" d=\"M-8 "
          "3H0V-4H8\"/></svg>"
          "best at its memory or less (Pareto front)</li></ul>\n",
          f);
}
/* Every recipe at the leading budget, best first: accuracy as a dot, its interval as a bar. */
static void report_forest(FILE *f, const report_points *P) {
    const report_point *m = &P->p[P->main], *row[64];
    char text[32];
    double lo, hi;
    int i, k, n = 0;
    for (i = 0; i < P->n && n < 64; i++) {
        const report_point *p = &P->p[i];
        if (!report_mate(p, m) || (strcmp(p->method, "full") && !report_near(P, p)))
            continue;
        for (k = n++; k > 0 && (row[k - 1]->budget >= 1 ? 2 : report_acc(row[k - 1])) <
                               (p->budget >= 1 ? 2 : report_acc(p)); k--) row[k] = row[k - 1];
        row[k] = p;
    }
    if (n < 2) return;
    fprintf(f,
            "<figure class=\"forest\"><figcaption>At about %s of the memory</figcaption>"
            "<svg viewBox=\"0 "
            "0 320 %d\" "
            "role=\"img\"><title>Accuracy of every recipe at this budget with its interval</title>",
            report_share(text, P->budget), 34 * n + 26);
    for (i = 0; i <= 4; i++)
        fprintf(f,
                "<path class=\"gl\" d=\"M%.1f 4V%d\"/><text class=\"tk m\" x=\"%.1f\" "
                "y=\"%d\">%d</text>",
                112 + 42.5 * i, 34 * n + 4, 112 + 42.5 * i, 34 * n + 20, 25 * i);
    for (k = 0; k < n; k++) {
        const double y = 34 * k + 22, x = 112 + 170 * report_acc(row[k]);
        report_wilson(row[k]->right, row[k]->asked, &lo, &hi);
        fprintf(f, "<g class=\"sr s%d\"><title>", row[k]->series % 8);
        report_esc(f, row[k]->recipe);
        fprintf(f, ": %d of %d right</title><text class=\"lb e\" x=\"100\" y=\"%.1f\">",
                row[k]->right, row[k]->asked, y + 4);
        report_esc(f, row[k]->method);
        fprintf(f, "</text><path class=\"ci\" d=\"M%.1f %.1fH%.1f\"/>", 112 + 170 * lo, y,
                112 + 170 * hi);
        report_marker(f, row[k]->series, x, y);
        fprintf(f, "<text class=\"pc\" x=\"292\" y=\"%.1f\">%.0f</text></g>", y + 4,
                100 * report_acc(row[k]));
    }
    fputs("</svg></figure>\n", f);
}
/* 1 if point i is the first of its panel. */
static int report_leads(const report_points *P, int i) {
    int j;
    for (j = 0; j < i; j++) if (report_mate(&P->p[j], &P->p[i])) return 0;
    return 1;
}
static void report_curves(FILE *f, const report_points *P) {
    if (P->main < 0) return;
    fputs("<section id=\"curves\"><h2>Accuracy against memory</h2><p class=\"how\">Per cent of "
          "right answers "
          "(up) against the bytes of the cache when the question comes (less to the right, each "
          "step a half). "
          "Bars are 95 % Wilson intervals.</p>\n",
          f);
    report_legend(f, P);
    fputs("<div class=\"lead\">\n", f);
    report_panel(f, P, &P->p[P->main], 1);
    report_forest(f, P);
    fputs("</div></section>\n", f);
}
/* The other panels: kinds of the leading suite, then the other suites and lengths. */
static void report_others(FILE *f, const report_points *P) {
    const report_point *m = P->main >= 0 ? &P->p[P->main] : NULL;
    int i, round, n;
    for (round = 0; m && round < 2; round++) {
        for (n = 0, i = 0; i < P->n; i++) {
            const report_point *p = &P->p[i];
            if (!p->kind == !round || !report_leads(P, i) || p->bytes <= 0) continue;
            if (round
                    ? report_mate(m, p)
                    : p->ctx != m->ctx || p->aware != m->aware || !report_same(p->suite, m->suite))
                continue;
            if (!n++) {
                fputs(round ? "<section><h2>Other suites and lengths</h2>\n"
                            : "<section><h2>By kind of question</h2>\n",
                      f);
                report_legend(f, P);
                fputs("<div class=\"small\">\n", f);
            }
            report_panel(f, P, p, 0);
        }
        if (n) fputs("</div></section>\n", f);
    }
}
/* Distance from the full cache on streams without questions. */
static void report_distances(FILE *f, const report_data *d) {
    report_points P;
    int i;
    if (report_points_make(&P, d, 1)) return;
    for (i = 0; i < P.n && P.p[i].bytes <= 0; i++) {}
    if (i < P.n) {
        fputs("<section id=\"distance\"><h2>Distance from the full cache</h2><p class=\"how\">KL "
              "divergence of the "
              "predictions from those with everything kept, in nats a token, against the bytes of "
              "the cache; "
              "zero is at the top.</p>\n",
              f);
        report_legend(f, &P);
        fputs("<div class=\"small\">\n", f);
        for (i = 0; i < P.n; i++)
            if (!P.p[i].kind && report_leads(&P, i)) report_panel(f, &P, &P.p[i], 0);
        fputs("</div></section>\n", f);
    }
    free(P.p);
}

/* --- pictures: depth by length ---------------------------------------------------------------- */
static int report_grid_of(const report_data *d, const char *suite, const char *recipe, int aware,
                          int *ctx, int *depth, int *n_depth) {
    int i, j, k, n = 0;
    *n_depth = 0;
    for (i = 0; i < d->n_cells; i++) {
        const report_cell *c = &d->cell[i];
        if (c->depth < 0 || c->asked <= 0 || !report_same(c->suite, suite) || c->aware != aware)
            continue;
        if (recipe && !report_same(c->recipe, recipe)) continue;
        for (j = 0; j < n && ctx[j] != c->ctx; j++) {}
        if (j == n && n < 16) {
            for (k = n++; k > 0 && ctx[k - 1] > c->ctx; k--) ctx[k] = ctx[k - 1];
            ctx[k] = c->ctx;
        }
        for (j = 0; j < *n_depth && depth[j] != c->depth; j++) {}
        if (j == *n_depth && *n_depth < 32) {
            for (k = (*n_depth)++; k > 0 && depth[k - 1] > c->depth; k--) depth[k] = depth[k - 1];
            depth[k] = c->depth;
        }
    }
    return n;
}
static void report_heat(FILE *f, const report_data *d, const report_cell *of) {
    int ctx[16], depth[32], n_depth, i, x, y;
    const int n = report_grid_of(d, of->suite, NULL, of->aware, ctx, depth, &n_depth);
    const double cw = 300.0 / (n > 0 ? n : 1),
                 ch = fmin(30, fmax(16, 190.0 / (n_depth > 0 ? n_depth : 1)));
    const double H = ch * n_depth;
    fputs("<figure class=\"heat\"><figcaption>", f);
    report_esc(f, of->recipe);
    fprintf(f,
            "%s</figcaption><svg viewBox=\"0 0 360 %.0f\" role=\"img\"><title>Right answers in per "
            "cent by depth "
            "and length, ",
            of->aware ? ", question known" : "", H + 26);
    report_esc(f, of->recipe);
    fputs("</title>", f);
    for (i = 0; i < d->n_cells; i++) {
        const report_cell *c = &d->cell[i];
        const double v = c->asked > 0 ? (double)c->right / c->asked : 0;
        if (c->depth < 0 || c->asked <= 0 || !report_same(c->suite, of->suite) ||
            c->aware != of->aware || !report_same(c->recipe, of->recipe))
            continue;
        for (x = 0; x < n && ctx[x] != c->ctx; x++) {}
        for (y = 0; y < n_depth && depth[y] != c->depth; y++) {}
        if (x == n || y == n_depth) continue;
        fprintf(f,
                "<g class=\"hc h%d\"><title>depth %.1f %%, %d tokens: %d of %d right</title><rect "
                "x=\"%.1f\" y=\"%.1f\" "
                "width=\"%.1f\" height=\"%.1f\" style=\"fill-opacity:%.2f\"/><text class=\"m\" "
                "x=\"%.1f\" y=\"%.1f\">%.0f"
                "</text></g>",
                v > 0.55, c->depth / 10.0, c->ctx, c->right, c->asked, 50 + x * cw, y * ch, cw - 2,
                ch - 2, 0.04 + 0.92 * v, 49 + (x + 0.5) * cw, y * ch + ch / 2 + 3, 100 * v);
    }
    for (y = 0; y < n_depth; y++)
        fprintf(f, "<text class=\"tk e\" x=\"44\" y=\"%.1f\">%.0f %%</text>", y * ch + ch / 2 + 3,
                depth[y] / 10.0);
    for (x = 0; x < n; x++) {
        fprintf(f, "<text class=\"tk m\" x=\"%.1f\" y=\"%.1f\">", 49 + (x + 0.5) * cw, H + 14);
        report_length(f, ctx[x]);
        fputs("</text>", f);
    }
    fputs("</svg></figure>\n", f);
}
/* Maps at full memory and at the leading budget first; the others fold away. */
static void report_heats(FILE *f, const report_data *d, const report_points *P) {
    int i, j, round, any = 0;
    for (round = 0; round < 2; round++) {
        int n = 0;
        for (i = 0; i < d->n_cells; i++) {
            const report_cell *c = &d->cell[i];
            const int lead = c->budget >= 1 || fabs(c->budget - P->budget) < 1e-9;
            if (c->depth < 0 || c->asked <= 0 || lead == round) continue;
            for (j = 0; j < i; j++)
                if (d->cell[j].depth >= 0 && d->cell[j].asked > 0 && d->cell[j].aware == c->aware &&
                    report_same(d->cell[j].suite, c->suite) &&
                    report_same(d->cell[j].recipe, c->recipe))
                    break;
            if (j < i) continue;
            if (!any++)
                fputs("<section id=\"depth\"><h2>Where in the context does a fact survive?</h2><p "
                      "class=\"how\">"
                      "One fact, told at a depth (rows: share of the context before it) of a "
                      "context of some "
                      "length (columns, tokens). Per cent of right answers.</p>\n",
                      f);
            if (!n++)
                fputs(round ? "<details><summary>Other budgets</summary><div class=\"small\">\n"
                            : "<div class=\"small\">\n",
                      f);
            report_heat(f, d, c);
        }
        if (n) fputs(round ? "</div></details>\n" : "</div>\n", f);
    }
    if (any) fputs("</section>\n", f);
}
/* --- audit: what each recipe remembers of one conversation ------------------------------------ */
static size_t report_at(const report_audit *a, int lane, int pos) {
    return (size_t)lane * (size_t)a->n + (size_t)pos;
}
static int report_right(const report_run *r) {
    int i, n = 0;
    for (i = 0; i < r->audit->n_questions; i++) n += r->answer[i].given && r->answer[i].right > 0;
    return n;
}
static int report_answered(const report_run *r) {
    int i, n = 0;
    for (i = 0; i < r->audit->n_questions; i++) n += r->answer[i].given != NULL;
    return n;
}
/* Entries that are there at the end, and lanes that hold token pos then. */
static double report_kept(const report_run *r) {
    const size_t all = (size_t)r->audit->layers * (size_t)r->audit->kv_heads * (size_t)r->audit->n;
    size_t i;
    double n = 0;
    for (i = 0; i < all; i++) n += !r->left[i];
    return n;
}
static int report_lanes(const report_run *r, int pos) {
    int l, n = 0;
    for (l = 0; l < r->audit->layers * r->audit->kv_heads; l++)
        n += !r->left[report_at(r->audit, l, pos)];
    return n;
}
/* 0 no lane, 1..4 rising shares, 4: all lanes. */
static int report_level(double share) {
    return share <= 0 ? 0 : share >= 0.999 ? 4 : share > 0.6 ? 3 : share > 0.3 ? 2 : 1;
}
/* Are entries stored in fewer than 16 bits a value? */
static int report_coded(const report_run *r) {
    static const char *const plain[4] = { "", "f32", "f16", "bf16" };
    int i, k = 0, v = 0;
    for (i = 0; i < 4; i++) {
        k |= !strcmp(r->codec_k, plain[i]);
        v |= !strcmp(r->codec_v, plain[i]);
    }
    return !k || !v;
}
/* Entries that both hold, as a share of those that one of them holds. */
static double report_overlap(const report_run *x, const report_run *y) {
    const size_t all = (size_t)x->audit->layers * (size_t)x->audit->kv_heads * (size_t)x->audit->n;
    double both = 0, any = 1;
    size_t i;
    for (i = 0; i < all; i++) {
        both += !x->left[i] && !y->left[i];
        any += !x->left[i] || !y->left[i];
    }
    return both / any;
}
/* Bytes if they are known, else entries. */
static double report_memory(const report_run *r) {
    return r->bytes >= 0 ? r->bytes : report_kept(r);
}
/* The two recipes whose pictures differ most: in answers, then in what they hold; both compressed
   and of equal memory if there are such. */
static void report_contrast(const report_audit *a, int *worse, int *better) {
    double best = -1e9, all = 0;
    int i, j;
    *worse = *better = 0;
    for (i = 0; i < a->n_runs; i++) all = fmax(all, 0.99 * report_memory(a->run[i]));
    for (i = 0; i < a->n_runs; i++)
        for (j = 0; j < a->n_runs; j++) {
            const report_run *x = a->run[i], *y = a->run[j];
            const double kx = report_memory(x), ky = report_memory(y);
            double score = 3.0 * (report_right(y) - report_right(x)) / (a->n_questions + 1) -
                           report_overlap(x, y);
            score -= 10 * ((kx >= all) + (ky >= all)) + 4 * fabs(kx - ky) / (kx + ky + 1) +
                     30 * (i == j);
            if (score > best) best = score, *worse = i, *better = j;
        }
}

/* The life of a memory: position to the right, time downward, ink where entries are alive. Rows of
   equal ink are drawn as runs, one path for each of four shades. */
enum { REPORT_LX = 200, REPORT_LY = 84 };
static void report_life(FILE *f, const report_run *r) {
    const report_audit *a = r->audit;
    const int lanes = a->layers * a->kv_heads, n = a->n;
    int *grid = (int *)calloc((size_t)(REPORT_LY + 1) * REPORT_LX, sizeof *grid), *size, x, y, v, l,
        p;
    size = (int *)calloc(REPORT_LX, sizeof *size);
    for (p = 0; grid && size && p < n; p++) {
        const int col = (int)((int64_t)p * REPORT_LX / n);
        size[col] += lanes;
        for (l = 0; l < lanes; l++) {
            const int left = r->left[report_at(a, l, p)];
            /* row y is the time t = (y + 1) n / LY: alive if p < t and (never left or t < left) */
            int from = (int)((int64_t)p * REPORT_LY / n);
            int to = left ? (int)(((int64_t)left * REPORT_LY + n - 1) / n) - 1 : REPORT_LY;
            if (to > REPORT_LY) to = REPORT_LY;
            if (to <= from) continue;
            grid[from * REPORT_LX + col]++;
            grid[to * REPORT_LX + col]--;
        }
    }
    for (y = 1; grid && y < REPORT_LY; y++)
        for (x = 0; x < REPORT_LX; x++) grid[y * REPORT_LX + x] += grid[(y - 1) * REPORT_LX + x];
    for (v = 1; grid && size && v <= 4; v++) {
        int px = 0, py = 0;
        fprintf(f, "<path class=\"lf k%d\" d=\"M0 .5", v);
        for (y = 0; y < REPORT_LY; y++)
            for (x = 0; x < REPORT_LX;) {
                int run = 0;
                while (x + run < REPORT_LX &&
                       report_level((double)grid[y * REPORT_LX + x + run] /
                                    (size[x + run] ? size[x + run] : 1)) == v)
                    run++;
                if (run) {
                    fprintf(f, "m%d %dh%d", x - px, y - py, run);
                    px = x + run;
                    py = y;
                }
                x += run ? run : 1;
            }
        fputs("\"/>", f);
    }
    free(grid);
    free(size);
}
/* The lanes at the end, one row each, ink by the share of entries alive in a column. */
static void report_barcode(FILE *f, const report_run *r, double row) {
    const report_audit *a = r->audit;
    const int lanes = a->layers * a->kv_heads, cols = 400;
    int v, l, x;
    for (v = 1; v <= 4; v++) {
        fprintf(f, "<path class=\"lf k%d\" stroke-width=\"%.2f\" d=\"", v, row > 2 ? row - 1 : row);
        for (l = 0; l < lanes; l++) {
            int start = -1;
            for (x = 0; x <= cols; x++) {
                const int p0 = (int)((int64_t)x * a->n / cols),
                          p1 = (int)((int64_t)(x + 1) * a->n / cols);
                int p, n = 0, on = 0;
                for (p = p0; x < cols && p < (p1 > p0 ? p1 : p0 + 1) && p < a->n; p++, n++)
                    on += !r->left[report_at(a, l, p)];
                n = x < cols && n && report_level((double)on / n) == v;
                if (n && start < 0) start = x;
                if (!n && start >= 0) {
                    fprintf(f, "M%.1f %.2fh%.1f", start / 2.0, (l + 0.5) * row, (x - start) / 2.0);
                    start = -1;
                }
            }
        }
        fputs("\"/>", f);
    }
}
static void report_marks(FILE *f, const report_run *r, double top, double bottom) {
    const report_audit *a = r->audit;
    int i;
    for (i = 0; i < a->n_questions; i++) {
        const report_question *q = &a->question[i];
        const int at = q->n_told > 0 ? q->told[q->n_told - 1] : -1;
        const double x = 32 + 320.0 * at / (a->n > 0 ? a->n : 1);
        if (at < 0 || at >= a->n || !r->answer[i].given) continue;
        fprintf(f, "<g class=\"an %s\" data-q=\"%d\"><title>", r->answer[i].right ? "ok" : "no", i);
        report_esc(f, q->text);
        fputs(r->answer[i].right ? " right: " : " wrong: ", f);
        report_esc(f, r->answer[i].given);
        fprintf(f, "</title><path class=\"th\" d=\"M%.1f %.1fV%.1f\"/>", x, top, bottom);
        if (r->answer[i].right)
            fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.2\"/></g>", x, bottom);
        else
            fprintf(f, "<path class=\"x\" d=\"M%.1f %.1fl5.2 5.2m0-5.2l-5.2 5.2\"/></g>", x - 2.6,
                    bottom - 2.6);
    }
}
static void report_sum(FILE *f, const report_run *r, const char *tag) {
    const report_audit *a = r->audit;
    const double all = (double)a->layers * a->kv_heads * a->n, kept = report_kept(r);
    char text[32];
    fprintf(f, "<%s class=\"sum\">%.0f entries, %.1f %%", tag, kept,
            all > 0 ? 100 * kept / all : 0);
    if (r->bytes >= 0) fprintf(f, ", %s", report_size(text, r->bytes));
    if (report_coded(r)) {
        fputs(" as ", f);
        report_esc(f, r->codec_k);
        if (strcmp(r->codec_k, r->codec_v)) { fputc('/', f); report_esc(f, r->codec_v); }
    }
    if (report_answered(r)) fprintf(f, "; %d of %d right", report_right(r), report_answered(r));
    fprintf(f, "</%s>", tag);
}
static void report_life_panel(FILE *f, const report_run *r, int index) {
    const report_audit *a = r->audit;
    const int lanes = a->layers * a->kv_heads;
    const double row = fmin(10, 96.0 / (lanes > 0 ? lanes : 1)), bar = 164, end = bar + row * lanes;
    int l;
    fprintf(f, "<figure class=\"life%s\" data-run=\"%d\"><figcaption><div class=\"nm\"><b>",
            report_coded(r) ? " coded" : "", index);
    report_esc(f, r->recipe);
    fputs("</b></div>", f);
    report_sum(f, r, "div");
    fprintf(f,
            "</figcaption><svg viewBox=\"0 0 360 %.0f\" role=\"img\"><title>Which tokens are "
            "remembered over time under ",
            end + 18);
    report_esc(f, r->recipe);
    fputs("</title><desc>Triangle: position of a token to the right, time downward, ink where "
          "lanes still hold it. "
          "Below: what each layer and KV head holds at the end. Dots: facts whose question was "
          "answered right; "
          "crosses: wrong.</desc>",
          f);
    fprintf(f, "<path class=\"dg\" d=\"M32 12L352 138V12z\"/><g transform=\"translate(32 12) "
               "scale(1.6 1.5)\">");
    report_life(f, r);
    if (!index) fputs("</g><text class=\"tk e\" x=\"346\" y=\"30\">not read yet</text><g>", f);
    fputs("</g><path class=\"cur\" d=\"M32 138h320\"/>", f);
    report_marks(f, r, 142, 153);
    fprintf(f, "<g transform=\"translate(32 %.0f) scale(1.6 1)\">", bar);
    report_barcode(f, r, row);
    fputs("</g>", f);
    for (l = 0; l < a->layers; l++)
        if (row * a->kv_heads >= 9 || l == 0 || l == a->layers - 1)
            fprintf(f, "<text class=\"tk e\" x=\"27\" y=\"%.1f\">L%d</text>",
                    bar + row * (l + 0.5) * a->kv_heads + 3.5, l);
    fprintf(f,
            "<text class=\"tk e\" x=\"27\" y=\"20\">0</text><text class=\"tk e\" x=\"27\" "
            "y=\"138\">%d</text>",
            a->n);
    fprintf(f, "<text class=\"tk vt\" transform=\"translate(20 80) rotate(-90)\">tokens "
               "read</text>");
    fprintf(f,
            "<text class=\"tk\" x=\"32\" y=\"%.1f\">0</text><text class=\"tk m\" x=\"192\" "
            "y=\"%.1f\">position in the "
            "conversation</text><text class=\"tk e\" x=\"352\" "
            "y=\"%.1f\">%d</text></svg></figure>\n",
            end + 13, end + 13, end + 13, a->n);
}

/* The text: a span for each line, an element for each token, shaded as the better recipe has it. */
static int report_has(const int *set, int n, int x) {
    int i;
    for (i = 0; i < n; i++) if (set[i] == x) return 1;
    return 0;
}
static void report_token_marks(FILE *f, const report_audit *a, int t) {
    int i, any = 0;
    for (i = 0; i < a->n_questions; i++) {
        if (!report_has(a->question[i].told, a->question[i].n_told, t)) continue;
        fprintf(f, any++ ? ",%d" : " data-n=\"%d", i + 1);
    }
    if (any) fputc('"', f);
}
static const char *report_token_class(const report_audit *a, int t) {
    int i, told = 0, stale = 0;
    for (i = 0; i < a->n_questions; i++) {
        told |= report_has(a->question[i].told, a->question[i].n_told, t);
        stale |= report_has(a->question[i].stale, a->question[i].n_stale, t);
    }
    return told ? " f" : stale ? " st" : "";
}
/* A line ends with its newline; a token like <|bos|> stands alone. */
static int report_line_end(const report_audit *a, int t) {
    const size_t len = a->start[t + 1] - a->start[t];
    if (len > 4 && !memcmp(a->text + a->start[t], "<|", 2) &&
        !memcmp(a->text + a->start[t + 1] - 2, "|>", 2))
        return 1;
    return a->start[t + 1] > a->start[t] && a->text[a->start[t + 1] - 1] == '\n';
}
static void report_flow(FILE *f, const report_audit *a, const report_run *r) {
    const int lanes = a->layers * a->kv_heads;
    int t, open = 0, head = 0;
    for (t = 0; t < a->n; t++) {
        const char *s = a->text + a->start[t];
        const size_t len = a->start[t + 1] - a->start[t];
        size_t size = len;
        if (!open) {
            const int session = len >= 7 && !memcmp(s, "Session", 7);
            fprintf(f, "<span class=\"ln%s\">", session ? " ses" : "");
            open = 1;
            head = !session && t + 1 < a->n && a->start[t + 2] - a->start[t + 1] == 1 &&
                   a->text[a->start[t + 1]] == ':';
        }
        if (report_token_class(a, t)[0] && len &&
            s[0] == ' ') { /* a mark does not begin under a space */
            fputc(' ', f);
            s++;
            size--;
        }
        fprintf(f, "<i class=\"k%d%s%s\"",
                report_level((double)report_lanes(r, t) / (lanes > 0 ? lanes : 1)),
                report_token_class(a, t), head ? " sp" : "");
        report_token_marks(f, a, t);
        fputc('>', f);
        head = 0;
        report_bytes(f, s, size && s[size - 1] == '\n' ? size - 1 : size, 0);
        fputs("</i>", f);
        if (report_line_end(a, t) || t + 1 == a->n) {
            fputs("</span> ", f);
            open = 0;
        }
    }
}
/* Questions with the answers of every recipe: a table that script turns into the list beside the
 * text. */
static void report_questions(FILE *f, const report_audit *a) {
    int i, k;
    fputs("<div class=\"wide\"><table id=\"qa\"><caption>Questions about this "
          "conversation</caption><thead><tr><th>#</th>"
          "<th>Kind</th><th>Question</th><th>Right answer</th>",
          f);
    for (k = 0; k < a->n_runs; k++) {
        fputs("<th>", f);
        report_esc(f, a->run[k]->recipe);
        fputs("</th>", f);
    }
    fputs("</tr></thead><tbody>\n", f);
    for (i = 0; i < a->n_questions; i++) {
        const report_question *q = &a->question[i];
        fprintf(f, "<tr><td>%d</td><td>", i + 1);
        report_esc(f, q->kind);
        fputs("</td><td>", f);
        report_esc(f, q->text);
        fputs("</td><td>", f);
        report_esc(f, q->want);
        fputs("</td>", f);
        for (k = 0; k < a->n_runs; k++) {
            const report_answer *w = &a->run[k]->answer[i];
            fprintf(f, "<td class=\"%s\">", !w->given ? "" : w->right ? "ok" : "no");
            if (w->given) report_esc(f, w->given);
            fputs("</td>", f);
        }
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* Data for the script: for each lane runs of equal fate as pairs of numbers (7 bits a byte, low
   first, the high bit says that more follows) in base64: a code, then how many tokens. Code 0:
   stays; otherwise 2 * (1 + index of the moment) + (1 if merged). */
typedef struct report_b64 { FILE *f; unsigned long held; int n; size_t count; } report_b64;
static void report_b64_byte(report_b64 *o, unsigned b) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    o->count++;
    o->held = o->held << 8 | b;
    if (++o->n < 3) return;
    if (o->f) fprintf(o->f, "%c%c%c%c", digit[o->held >> 18 & 63], digit[o->held >> 12 & 63],
                      digit[o->held >> 6 & 63], digit[o->held & 63]);
    o->held = 0;
    o->n = 0;
}
static void report_b64_number(report_b64 *o, unsigned long x) {
    while (x > 127) { report_b64_byte(o, (unsigned)(x & 127) | 128); x >>= 7; }
    report_b64_byte(o, (unsigned)x);
}
static void report_b64_end(report_b64 *o) {
    while (o->n) report_b64_byte(o, 0);
} /* zeros: no run is empty */
static int report_by_number(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}
/* Distinct numbers above 0 of v, rising, into moment; returns how many. */
static int report_moments(const int32_t *v, size_t n, int32_t *moment) {
    size_t i, m = 0, k = 0;
    for (i = 0; i < n; i++) if (v[i] > 0 && (!m || moment[m - 1] != v[i])) moment[m++] = v[i];
    qsort(moment, m, sizeof *moment, report_by_number);
    for (i = 0; i < m; i++) if (!i || moment[i] != moment[k - 1]) moment[k++] = moment[i];
    return (int)k;
}
static void report_lane(report_b64 *o, const int32_t *v, const unsigned char *how, int n,
                        const int32_t *moment, int n_moments) {
    unsigned long code = 0, run = 0;
    int t;
    for (t = 0; t <= n; t++) {
        unsigned long now = 0;
        if (t < n && v[t] > 0) {
            const int32_t *m = (const int32_t *)bsearch(&v[t], moment, (size_t)n_moments,
                                                        sizeof *moment, report_by_number);
            now = m ? 2 * (1 + (unsigned long)(m - moment)) + (how && how[t] == KVMEM_FATE_MERGED)
                    : 0;
        }
        if (t == n || (run && now != code)) {
            if (run) { report_b64_number(o, code); report_b64_number(o, run); }
            run = 0;
        }
        code = now;
        run++;
    }
    report_b64_end(o);
}
/* The lanes of every `step`th layer; f NULL only counts. Returns bytes. */
static size_t report_fates(FILE *f, const report_run *r, int step, int recoded) {
    const report_audit *a = r->audit;
    const size_t n = (size_t)a->layers * (size_t)a->kv_heads * (size_t)a->n;
    const int32_t *v = recoded ? r->recoded : r->left;
    int32_t *moment = (int32_t *)malloc((n + 1) * sizeof *moment);
    size_t count = 0;
    int k, l, g, first = 1;
    if (!moment) { a->data->failed = 1; return 0; }
    k = report_moments(v, n, moment);
    if (f) fprintf(f, "\"%s\":[", recoded ? "rtimes" : "times");
    for (l = 0; f && l < k; l++) fprintf(f, l ? ",%ld" : "%ld", (long)moment[l]);
    if (f) fprintf(f, "],\"%s\":[", recoded ? "rlanes" : "lanes");
    for (l = 0; l < a->layers; l += step)
        for (g = 0; g < a->kv_heads; g++) {
            const size_t at = report_at(a, l * a->kv_heads + g, 0);
            report_b64 o;
            memset(&o, 0, sizeof o);
            o.f = f;
            if (f) fputs(first ? "\"" : ",\"", f);
            report_lane(&o, v + at, recoded ? NULL : r->how + at, a->n, moment, k);
            if (f) fputc('"', f);
            first = 0;
            count += o.count / 3 * 4 + 3;
        }
    if (f) fputc(']', f);
    free(moment);
    return count;
}
static int report_any(const report_run *r) {
    const size_t n = (size_t)r->audit->layers * (size_t)r->audit->kv_heads * (size_t)r->audit->n;
    size_t i;
    for (i = 0; i < n; i++) if (r->recoded[i]) return 1;
    return 0;
}
static void report_numbers(FILE *f, const char *name, const int *v, int n) {
    int i;
    fprintf(f, ",\"%s\":[", name);
    for (i = 0; i < n; i++) fprintf(f, i ? ",%d" : "%d", v[i]);
    fputc(']', f);
}
static void report_run_json(FILE *f, const report_run *r, int step) {
    const report_audit *a = r->audit;
    int i;
    fputs("{\"recipe\":", f);
    report_json(f, r->recipe);
    fputs(",\"k\":", f);
    report_json(f, r->codec_k);
    fputs(",\"v\":", f);
    report_json(f, r->codec_v);
    fprintf(f, ",\"bytes\":%.0f,", r->bytes);
    report_fates(f, r, step, 0);
    if (report_any(r)) {
        fputc(',', f);
        report_fates(f, r, step, 1);
    }
    fputs(",\"answers\":[", f);
    for (i = 0; i < a->n_questions; i++) {
        if (i) fputc(',', f);
        if (!r->answer[i].given) { fputs("null", f); continue; }
        fprintf(f, "[%d,", r->answer[i].right > 0);
        report_json(f, r->answer[i].given);
        fputc(']', f);
    }
    fputs("]}\n", f);
}
/* Every layer if that makes less than 1.2 MB, else every second, fourth ... */
static int report_step(const report_audit *a) {
    int step = 1, i;
    for (; step < a->layers; step *= 2) {
        size_t sum = 0;
        for (i = 0; i < a->n_runs; i++) {
            sum += report_fates(NULL, a->run[i], step, 0);
            if (report_any(a->run[i])) sum += report_fates(NULL, a->run[i], step, 1);
        }
        if (sum < 1200000) break;
    }
    return step;
}
static void report_audit_json(FILE *f, const report_audit *a, int worse, int better) {
    const int step = report_step(a);
    int i;
    fprintf(f,
            "<script type=\"application/json\" "
            "id=\"audit-data\">{\"n\":%d,\"heads\":%d,\"step\":%d,\"a\":%d,\"b\":%d,"
            "\"layers\":%d,\n\"questions\":[",
            a->n, a->kv_heads, step, worse, better, (a->layers + step - 1) / step);
    for (i = 0; i < a->n_questions; i++) {
        const report_question *q = &a->question[i];
        fputs(i ? ",\n{\"kind\":" : "{\"kind\":", f);
        report_json(f, q->kind);
        fputs(",\"text\":", f);
        report_json(f, q->text);
        fputs(",\"want\":", f);
        report_json(f, q->want);
        fprintf(f, ",\"at\":%d", q->at);
        report_numbers(f, "told", q->told, q->n_told);
        report_numbers(f, "stale", q->stale, q->n_stale);
        fputc('}', f);
    }
    fputs("],\n\"runs\":[", f);
    for (i = 0; i < a->n_runs; i++) {
        if (i) fputc(',', f);
        report_run_json(f, a->run[i], step);
    }
    fputs("]}</script>\n", f);
}
static void report_audit_html(FILE *f, const report_audit *a) {
    int i, worse, better;
    if (!a || !a->n_runs || !a->n) return;
    report_contrast(a, &worse, &better);
    fprintf(f,
            "<section id=\"audit\"><h2>What is left of a conversation</h2><p class=\"how\">One "
            "conversation of %d tokens through %d layers of %d KV heads, as each recipe remembers "
            "it. In each triangle a token enters on the diagonal and its column goes on downward "
            "for as long as the cache holds it; the bands below show every layer (L) and head when "
            "the questions come. <span class=\"ok\">Dots</span> mark facts that were then "
            "recalled, <span class=\"no\">crosses</span> facts that were not.",
            a->n, a->layers, a->kv_heads);
    for (i = 0; i < a->n_runs && !report_coded(a->run[i]); i++) {}
    if (i < a->n_runs) fputs(" What is green instead of blue is stored in fewer bits.", f);
    fputs("</p>\n<div class=\"small lives\">\n", f);
    for (i = 0; i < a->n_runs; i++) report_life_panel(f, a->run[i], i);
    fputs("</div>\n<div id=\"lens\"><div class=\"pane", f);
    fputs(report_coded(a->run[better]) ? " coded\">" : "\">", f);
    fputs("<p class=\"ph\">As ", f);
    report_esc(f, a->run[better]->recipe);
    fputs(" leaves it: the deeper the colour, the more KV heads of all layers hold the "
          "token.</p><div class=\"flow\" id=\"flow\">",
          f);
    report_flow(f, a, a->run[better]);
    fputs("</div></div></div>\n", f);
    report_questions(f, a);
    report_audit_json(f, a, worse, better);
    fputs("</section>\n", f);
}
/* --- head, tables, the whole page ------------------------------------------------------------- */
static const char *report_percent(char out[32], double x) { /* whole; a tenth below ten */
    snprintf(out, 32, 100 * x < 9.95 ? "%.1f %%" : "%.0f %%", 100 * x);
    return out;
}
static const report_point *report_pick(const report_points *P, int best) {
    const report_point *m = P->main >= 0 ? &P->p[P->main] : NULL, *found = NULL;
    int i;
    for (i = 0; m && i < P->n; i++) {
        const report_point *p = &P->p[i];
        if (!report_mate(p, m) || !report_near(P, p)) continue;
        if (!found ||
            (best ? report_acc(p) > report_acc(found) : report_acc(p) < report_acc(found)))
            found = p;
    }
    return found;
}
static const report_point *report_full(const report_points *P) {
    int i;
    for (i = 0; P->main >= 0 && i < P->n; i++)
        if (report_mate(&P->p[i], &P->p[P->main]) && P->p[i].budget >= 1) return &P->p[i];
    return NULL;
}
static void report_claim(FILE *f, const report_point *p, const char *verb) {
    fputs("<b>", f);
    report_esc(f, p->method);
    fprintf(f, "</b> %s <b class=\"num\">%.0f&nbsp;%%</b>", verb, 100 * report_acc(p));
}
static void report_fact(FILE *f, const char *what, const report_point *p) {
    char text[32];
    double lo, hi;
    report_wilson(p->right, p->asked, &lo, &hi);
    fprintf(f, "<div><dt>%s</dt><dd><b>", what);
    report_esc(f, p->recipe);
    fprintf(f, "</b> %d of %d right (%.0f to %.0f %%)", p->right, p->asked, 100 * lo, 100 * hi);
    if (p->bytes > 0) fprintf(f, " in %s", report_size(text, p->bytes));
    fputs("</dd></div>", f);
}
static void report_lead(FILE *f, const report_data *d, const report_points *P) {
    const report_point *best = report_pick(P, 1), *worst = report_pick(P, 0),
                       *full = report_full(P);
    const report_point *m = P->main >= 0 ? &P->p[P->main] : NULL;
    char text[32];
    int said = 0;
    fputs("<header><p class=\"kick\">", f);
    report_esc(f, d->title ? d->title : "kvmem evaluation");
    fputs("</p><h1>", f);
    if (best) {
        double lo, hi, low, high;
        const int well = !full || report_acc(best) >= 0.8 * report_acc(full);
        fprintf(f, "With %s of the memory, ",
                best->bytes > 0 && best->full > 0 ? report_percent(text, best->bytes / best->full)
                                                  : report_share(text, best->budget));
        report_claim(f, best, well ? "still answers" : "answers only");
        fputs(" of the questions", f);
        report_wilson(best->right, best->asked, &lo, &high);
        report_wilson(worst->right, worst->asked, &low, &hi);
        if (hi < lo) { /* the intervals are apart */
            fputs("; ", f);
            report_claim(f, worst, "answers");
        } else if (full && ++said)
            fprintf(f, "; with all of it the model answers <b class=\"num\">%.0f&nbsp;%%</b>",
                    100 * report_acc(full));
        fputs(".", f);
    } else if (full) {
        report_claim(f, full, "answers");
        fputs(" of the questions.", f);
    } else fputs(d->n_cells ? "Measured without questions." : "Nothing was measured.", f);
    fputs("</h1>\n", f);
    if (m) {
        fputs("<p class=\"sub\">Suite ", f);
        report_esc(f, m->suite);
        fprintf(f, ", contexts of %d tokens, compressed %s the questions are known.", m->ctx,
                m->aware ? "after" : "before");
        if (full && !said) fprintf(f, " The full cache answers %.0f %%.", 100 * report_acc(full));
        fputs("</p>\n", f);
    }
    fputs("<dl class=\"facts\">", f);
    if (full) report_fact(f, "Everything kept", full);
    if (best) report_fact(f, "Best at this memory", best);
    if (worst && worst != best) report_fact(f, "Worst at this memory", worst);
    if (d->model) {
        fputs("<div><dt>Model</dt><dd>", f);
        report_esc(f, d->model);
        fputs("</dd></div>", f);
    }
    fputs("</dl>\n<nav aria-label=\"Sections\"><a href=\"#curves\">Accuracy and memory</a> ", f);
    if (d->audit) fputs("<a href=\"#audit\">The conversation</a> ", f);
    fputs("<a href=\"#cells\">All cells</a></nav></header>\n", f);
}
static void report_figure(FILE *f, double v, const char *format) {
    if (v >= 0) { fputs("<td class=\"r\">", f); fprintf(f, format, v); fputs("</td>", f); }
    else fputs("<td></td>", f);
}
static void report_cell_row(FILE *f, const report_cell *c) {
    char text[32];
    double lo, hi;
    fputs("<tr><td>", f);
    report_esc(f, c->suite);
    fputs("</td><td>", f);
    report_esc(f, c->kind ? c->kind : "all");
    fprintf(f, "</td><td class=\"r\">%d</td>", c->ctx);
    if (c->depth >= 0) fprintf(f, "<td class=\"r\">%.1f %%</td>", c->depth / 10.0);
    else fputs("<td></td>", f);
    fputs("<td>", f);
    report_esc(f, c->recipe);
    fputs(c->aware ? " (question known)</td>" : "</td>", f);
    if (c->asked > 0) {
        report_wilson(c->right, c->asked, &lo, &hi);
        fprintf(f,
                "<td class=\"r\" data-v=\"%.5f\"><b>%.1f</b></td><td class=\"r\" "
                "data-v=\"%.5f\">%.0f to %.0f</td><td class=\"r\">%d</td>",
                (double)c->right / c->asked, 100.0 * c->right / c->asked, lo, 100 * lo, 100 * hi,
                c->asked);
    } else fputs("<td></td><td></td><td></td>", f);
    if (c->bytes > 0)
        fprintf(f, "<td class=\"r\" data-v=\"%.0f\">%s</td>", c->bytes,
                report_size(text, c->bytes));
    else fputs("<td></td>", f);
    if (c->peak > 0)
        fprintf(f, "<td class=\"r\" data-v=\"%.0f\">%s</td>", c->peak, report_size(text, c->peak));
    else fputs("<td></td>", f);
    report_figure(f, c->entries >= 0 ? 100 * c->entries : -1, "%.1f");
    report_figure(f, c->speed, "%.0f");
    report_figure(f, c->first >= 0 ? 1000 * c->first : -1, "%.1f");
    report_figure(f, c->ppl, "%.3f");
    report_figure(f, c->kl, "%.4f");
    report_figure(f, c->top1 >= 0 ? 100 * c->top1 : -1, "%.1f");
    fputs("</tr>\n", f);
}
/* Totals in sight, their parts (kinds, depths) folded away. Without totals all are in sight. */
static void report_cell_tables(FILE *f, const report_data *d) {
    int i, round, totals = 0, n;
    for (i = 0; i < d->n_cells; i++) totals += !d->cell[i].kind && d->cell[i].depth < 0;
    for (round = 0; round < 2; round++) {
        for (n = 0, i = 0; i < d->n_cells; i++) {
            const report_cell *c = &d->cell[i];
            if ((totals && (c->kind || c->depth >= 0)) != round) continue;
            if (!n++)
                fprintf(f,
                        "%s<div class=\"wide\"><table class=\"sort\"><caption>Accuracy in per cent "
                        "with 95 %% Wilson "
                        "intervals; bytes when the question comes and at the peak; entries in per "
                        "cent of the full cache; "
                        "KL in nats a token against the full "
                        "cache</caption><thead><tr><th>Suite</th><th>Kind</th>"
                        "<th>Tokens</th><th>Depth</th><th>Recipe</th><th>Right "
                        "%%</th><th>Interval</th><th>Asked</th>"
                        "<th>Bytes</th><th>Peak</th><th>Entries %%</th><th>Tokens/s</th><th>First "
                        "token ms</th>"
                        "<th>Perplexity</th><th>KL</th><th>Same best %%</th></tr></thead><tbody>\n",
                        round ? "<details><summary>By kind and by depth</summary>" : "");
            report_cell_row(f, c);
        }
        if (n) fputs(round ? "</tbody></table></div></details>\n" : "</tbody></table></div>\n", f);
    }
}
static void report_tables(FILE *f, const report_data *d) {
    int i;
    fputs("<section id=\"cells\"><h2>All cells</h2>\n", f);
    if (!d->n_cells) fputs("<p>No cell was measured.</p>\n", f);
    report_cell_tables(f, d);
    if (d->n_pairs)
        fprintf(f, "<details%s><summary>Pairs of recipes on the same questions</summary>"
                "<div class=\"wide\"><table class=\"sort\"><caption>How often only one of the two "
                "was right; difference of accuracy with its 95 %% interval</caption><thead><tr>"
                "<th>Suite</th><th>Tokens</th><th>A</th><th>B</th><th>Asked</th><th>Both</th>"
                "<th>Only A</th><th>Only B</th><th>A - B, points</th><th>Interval</th></tr></thead>"
                "<tbody>\n", d->n_pairs > 24 ? "" : " open");
    for (i = 0; i < d->n_pairs; i++) {
        const report_pair *p = &d->pair[i];
        fputs("<tr><td>", f);
        report_esc(f, p->suite);
        fprintf(f, "</td><td class=\"r\">%d</td><td>", p->ctx);
        report_esc(f, p->a);
        fputs("</td><td>", f);
        report_esc(f, p->b);
        fprintf(f,
                "</td><td class=\"r\">%d</td><td class=\"r\">%d</td><td class=\"r\">%d</td><td "
                "class=\"r\">%d</td>"
                "<td class=\"r\" data-v=\"%.5f\"><b>%+.1f</b></td><td class=\"r\" "
                "data-v=\"%.5f\">%+.1f to %+.1f</td></tr>\n",
                p->asked, p->both, p->only_a, p->only_b, p->diff, 100 * p->diff, p->lo, 100 * p->lo,
                100 * p->hi);
    }
    fputs(d->n_pairs ? "</tbody></table></div></details></section>\n" : "</section>\n", f);
}
static void report_foot(FILE *f, const report_data *d) {
    fputs("<footer>", f);
    if (d->command) {
        fputs("<p>Made by <code>", f);
        report_esc(f, d->command);
        fputs("</code></p>", f);
    }
    fputs("<p>", f);
    report_esc(f, d->date);
    if (d->date && d->machine) fputs(" on ", f);
    report_esc(f, d->machine);
    fputs("</p></footer>\n", f);
}
static void report_page(FILE *f, report_data *d, const report_points *P) {
    int i;
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
          "<meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" "
          "href=\"data:,\"><title>",
          f);
    report_esc(f, d->title ? d->title : "kvmem evaluation");
    fputs("</title>\n<style>\n", f);
    for (i = 0; report_css[i]; i++) fputs(report_css[i], f);
    fputs("</style></head><body><main>\n", f);
    report_lead(f, d, P);
    report_curves(f, P);
    report_audit_html(f, d->audit);
    report_others(f, P);
    report_heats(f, d, P);
    report_distances(f, d);
    report_tables(f, d);
    report_foot(f, d);
    fputs("</main>\n<script>\n", f);
    for (i = 0; report_js[i]; i++) fputs(report_js[i], f);
    fputs("</script></body></html>\n", f);
}
/* 0: written whole; else *why names the reason. A file that could not be finished is removed. */
static KVMEM__UNUSED int report_write(report_data *d, const char *path, const char **why) {
    report_points P;
    FILE *f;
    int bad;
    *why = "no memory for its data";
    if (d->failed || report_points_make(&P, d, 0)) return 1;
    *why = "the file cannot be opened for writing";
    f = fopen(path, "wb");
    if (f) {
        report_page(f, d, &P);
        bad = ferror(f);
        if (fclose(f)) bad = 1;
        *why = d->failed ? "no memory for its data" : "writing failed (disk full?)";
        if (bad || d->failed) remove(path);
        bad |= d->failed;
    } else bad = 1;
    free(P.p);
    return bad;
}

#endif
