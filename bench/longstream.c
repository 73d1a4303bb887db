/* longstream.c - a stream far longer than any working set: what is still known of it, by the age of the fact, and what
   it costs.

   The default model reads a conversation of --length tokens (about 500 facts, each told once, all of them never seen in
   training, spread evenly) under several recipes that hold the same bytes of K and V in memory: --keep entries a KV
   head. Recipes that evict keep so many; recipes that retrieve keep the rest in a file (kvmem_spill) and bring back
   what they read. At --stops places along the stream, --ask facts of ages drawn evenly on a logarithmic scale are
   asked, each to a copy of the session; an answer is right if its word comes first.

   Tables: right answers by age; milliseconds a token, resident and spilled bytes, share of pages that attention read,
   at growing lengths. --svg FILE draws them.

   Build  make build/bench_longstream     Run  build/bench_longstream --length 64k [--kv RECIPE]... [--csv] [--svg F] */
#include "bench.h"
#include "../tools/corpus.h"

enum { MAX_METHODS = 12, MAX_STOPS = 64, AGES = 11, FIRST_AGE = 6 }; /* ages 2^6..2^7, ..., 2^16.. and older */
typedef struct method {
    const char *name, *recipe;
    int spills, n_stops, asked[AGES], right[AGES];
    double ms[MAX_STOPS], ask_ms, resident[MAX_STOPS], all[MAX_STOPS], spilled[MAX_STOPS], read[MAX_STOPS];
} method;
typedef struct fact { int at, person, attr, value; } fact;
static method methods[MAX_METHODS];
static int n_methods, length = 65536, keep = 1024, stops = 16, ask = 8, block = 256;
static kvmem_model model;
static corpus_stream stream;
static fact *facts;
static int n_facts;
static corpus_prompt shape; /* a question whose person and attribute are replaced */

static void die(const char *what, const char *why) {
    fprintf(stderr, "longstream: %s: %s\n", what, why);
    exit(1);
}
static int number(const char *text, int lo, int hi, const char *name) {
    char *end;
    double x = strtod(text, &end);
    if (*end == 'k' || *end == 'K') { x *= 1024; end++; }
    else if (*end == 'm' || *end == 'M') { x *= 1048576; end++; }
    if (*end || !(x >= lo && x <= hi)) die(name, "not a number in its range");
    return (int)x;
}
static unsigned char *whole(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    unsigned char *p;
    long n;
    if (!f || fseek(f, 0, SEEK_END) || (n = ftell(f)) < 0 || fseek(f, 0, SEEK_SET)) die(path, "cannot be read");
    p = (unsigned char *)malloc((size_t)n + 1);
    if (!p || fread(p, 1, (size_t)n, f) != (size_t)n) die(path, "cannot be read");
    fclose(f);
    *size = (size_t)n;
    return p;
}
/* The stream, where its facts stand, and the form of a question. */
static void make_stream(uint64_t seed) {
    corpus_params p;
    corpus_test t;
    corpus_eval_params e;
    int i, a, k;
    memset(&p, 0, sizeof p); memset(&t, 0, sizeof t); memset(&e, 0, sizeof e);
    p.length = length; p.persons = CORPUS_PERSONS; p.attrs = CORPUS_ATTRS; p.facts = KVMEM__MIN(480, length / 64);
    p.filler = 70; p.held_out = 1; p.seed = seed | (uint64_t)1 << 63;
    if (corpus_make(&stream, &p)) die("stream", corpus_check(&p) ? corpus_check(&p) : "no memory");
    e.suite = CORPUS_MULTI; e.ctx = 256; e.seed = 1;
    if (corpus_test_make(&t, &e) || !t.n_q) die("question", "no memory");
    shape = t.q[0];
    corpus_test_free(&t);
    facts = (fact *)malloc((size_t)stream.n * sizeof *facts);
    if (!facts) die("facts", "no memory");
    for (i = 0; i + 4 < stream.n; i++) { /* the CITY of MIA is PARIS */
        const int *x = stream.ids + i;
        const int attr = x[0] - corpus_attr_id(0), person = x[2] - corpus_person_id(0);
        if (attr < 0 || attr >= CORPUS_ATTRS || person < 0 || person >= CORPUS_PERSONS || x[3] != CORPUS_w_is) continue;
        for (k = 0; k < CORPUS_VALUES && x[4] != corpus_value_id(attr, k); k++) {}
        if (k == CORPUS_VALUES) continue;
        for (a = 0; a < n_facts && (facts[a].person != person || facts[a].attr != attr); a++) {}
        if (a < n_facts) { facts[a].at = -1; continue; } /* told again: not asked */
        facts[n_facts].at = i + 4; facts[n_facts].person = person; facts[n_facts].attr = attr;
        facts[n_facts++].value = x[4];
    }
    for (i = a = 0; i < n_facts; i++) if (facts[i].at >= 0) facts[a++] = facts[i];
    n_facts = a;
}
static int age_of(int age) {
    int a = 0;
    while (a + 1 < AGES && age >= 1 << (FIRST_AGE + a + 1)) a++;
    return a;
}
/* Ask for fact f on a copy of the session. */
static int right(const kvmem_session *s, const fact *f, double *ms) {
    kvmem_session c;
    int ids[CORPUS_LINE], i, best = 0;
    double t;
    for (i = 0; i < shape.n; i++) {
        ids[i] = shape.ids[i];
        if (ids[i] == corpus_attr_id(shape.attr)) ids[i] = corpus_attr_id(f->attr);
        if (ids[i] == corpus_person_id(shape.person)) ids[i] = corpus_person_id(f->person);
    }
    if (kvmem_session_copy(&c, s)) die("copy", c.error.text);
    t = bench_now();
    if (kvmem_session_feed(&c, ids, shape.n, KVMEM_DECODE, NULL, NULL)) die("question", c.error.text);
    *ms += 1e3 * (bench_now() - t) / shape.n;
    for (i = 1; i < model.n_vocab; i++) if (c.logits[i] > c.logits[best]) best = i;
    kvmem_session_free(&c);
    return best == f->value;
}
static void ask_some(method *m, const kvmem_session *s, int now, int stop) {
    int i, k;
    double ms = 0;
    for (k = 0; k < ask; k++) {
        const double u = (k + kvmem__unit(kvmem__random(7, (uint64_t)stop, (uint64_t)k, 0))) / ask;
        const double want = exp2(FIRST_AGE + u * log2((double)now / (1 << FIRST_AGE)));
        int best = -1;
        for (i = 0; i < n_facts && facts[i].at < now - (1 << FIRST_AGE); i++)
            if (best < 0 || fabs(now - facts[i].at - want) < fabs(now - facts[best].at - want)) best = i;
        if (best < 0) continue;
        m->asked[age_of(now - facts[best].at)]++;
        m->right[age_of(now - facts[best].at)] += right(s, &facts[best], &ms);
    }
    m->ask_ms += ms / ask / stops;
}
static void run(method *m) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r;
    kvmem_error e;
    kvmem_session s;
    kvmem_spill spill;
    FILE *f = m->spills ? tmpfile() : NULL;
    int at = 0, stop, n;
    int64_t read0 = 0, there0 = 0, read, there;
    if (kvmem_recipe_parse(&r, m->recipe, &e)) die(m->recipe, e.text);
    cfg.recipe = &r;
    cfg.n_ctx = length + 64;
    cfg.max_block = block;
    cfg.threads = bench_threads;
    if (m->spills) {
        if (!f) die("spill", "no temporary file");
        spill = kvmem_spill_stdio(f, (size_t)keep * (size_t)(model.n_layers * model.n_kv_heads * model.head_dim) * 4);
        cfg.spill = &spill;
    }
    if (kvmem_session_init(&s, &model, &cfg)) die(m->recipe, s.error.text);
    for (stop = 0; stop < stops; stop++) {
        const int end = (int)((double)length * (stop + 1) / stops);
        const int from = at;
        kvmem_bytes b;
        double t = bench_now();
        for (; at < end; at += n) {
            n = KVMEM__MIN(block, end - at);
            if (kvmem_session_feed(&s, stream.ids + at, n, KVMEM_PROMPT_END, NULL, NULL)) die(m->name, s.error.text);
        }
        m->ms[stop] = 1e3 * (bench_now() - t) / (end - from);
        kvmem_cache_bytes(&s.cache, &b);
        kvmem_cache_pages(&s.cache, &read, &there);
        m->resident[stop] = (double)(b.live.k + b.live.v);
        m->all[stop] = (double)b.live.total;
        m->spilled[stop] = (double)b.spilled;
        m->read[stop] = there > there0 ? (double)(read - read0) / (double)(there - there0) : 1;
        read0 = read; there0 = there;
        m->n_stops = stop + 1;
        ask_some(m, &s, end, stop);
        if (!bench_csv && !bench_json) fprintf(stderr, "\r%-40.40s %3d %%", m->name, 100 * (stop + 1) / stops);
    }
    if (!bench_csv && !bench_json) fprintf(stderr, "\r%60s\r", "");
    kvmem_session_free(&s);
    if (f) fclose(f);
}
static const char *span(int a, char *out) {
    const int lo = FIRST_AGE + a;
    if (lo < 10) snprintf(out, 24, "%d+", 1 << lo);
    else snprintf(out, 24, "%dk+", 1 << (lo - 10));
    return out;
}
static void tables(void) {
    char name[24];
    int a, i, k;
    bench_header("<recipe                      |age of the fact| right|   of");
    for (i = 0; i < n_methods; i++)
        for (a = 0; a < AGES; a++)
            if (methods[i].asked[a])
                bench_row("%s|%s|%.3f|%d", methods[i].name, span(a, name),
                    (double)methods[i].right[a] / methods[i].asked[a],
                          methods[i].asked[a]);
    bench_header("<recipe                      |  tokens|ms a token|K and V MiB|all MiB|spilled MiB|pages read");
    for (i = 0; i < n_methods; i++)
        for (k = 0; k < methods[i].n_stops; k++) {
            const method *m = &methods[i];
            if (stops > 8 && (k + 1) & k && k + 1 < stops) continue; /* stops 1, 2, 4, ... and the last */
            bench_row("%s|%d|%.4f|%.3f|%.3f|%.2f|%.4f", m->name, (int)((double)length * (k + 1) / stops), m->ms[k],
                      m->resident[k] / 1048576, m->all[k] / 1048576, m->spilled[k] / 1048576, m->read[k]);
        }
}
/* ---- the picture: right answers against age, and below it time and memory against length ---- */
static const char *const colour[] = { "#1f6fb4", "#b3541e", "#1d7a46", "#8a3fa0", "#b8860b", "#c0392b", "#16808a",
    "#555555",
                                      "#7a5c00", "#3949ab", "#00695c", "#ad1457" };
static void axis(FILE *f, int x, int y, int w, int h, const char *title, const char *up, const char *across) {
    fprintf(f, "<rect x='%d' y='%d' width='%d' height='%d' class='box'/><text x='%d' y='%d' class='t'>%s</text>"
               "<text x='%d' y='%d' class='s' text-anchor='middle'>%s</text>"
               "<text transform='translate(%d,%d) rotate(-90)' class='s' text-anchor='middle'>%s</text>\n",
            x, y, w, h, x, y - 10, title, x + w / 2, y + h + 34, across, x - 44, y + h / 2, up);
}
static void curve(FILE *f, int i, const double *x, const double *y, int n) {
    int k;
    fprintf(f, "<polyline fill='none' stroke='%s' stroke-width='2' points='", colour[i]);
    for (k = 0; k < n; k++) fprintf(f, "%.1f,%.1f ", x[k], y[k]);
    fprintf(f, "'/>");
    for (k = 0; k < n; k++) fprintf(f, "<circle cx='%.1f' cy='%.1f' r='2.6' fill='%s'/>", x[k], y[k], colour[i]);
    fprintf(f, "\n");
}
static void picture(const char *path) {
    FILE *f = fopen(path, "w");
    const int X = 70, W = 560, Y = 50, HH = 250, top = KVMEM__MIN(AGES - 1, age_of(length));
    double x[MAX_STOPS], y[MAX_STOPS], most = 0, ms = 0;
    char name[24];
    int i, k, a;
    if (!f) die(path, "cannot be written");
    for (i = 0; i < n_methods; i++)
        for (k = 0; k < methods[i].n_stops; k++) {
            ms = KVMEM__MAX(ms, methods[i].ms[k]);
            most = KVMEM__MAX(most, methods[i].all[k] / 1048576);
        }
    fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' width='920' height='760' viewBox='0 0 920 760'>\n<style>"
               "svg{background:#fff;font-family:sans-serif}.box{fill:none;stroke:#999}.g{stroke:#ddd}.t{font-size:15px;"
               "font-weight:bold;fill:#222}.s{font-size:12px;fill:#444}"
               "@media(prefers-color-scheme:dark){svg{background:#161616}.t{fill:#eee}.s{fill:#bbb}.g{stroke:#333}}"
               "</style>\n");
    axis(f, X, Y, W, HH, "Right answers by age of the fact", "right answers", "age in tokens");
    for (k = 0; k <= 4; k++)
        fprintf(f,
            "<line x1='%d' x2='%d' y1='%d' y2='%d' class='g'/><text x='%d' y='%d' class='s' text-anchor='end'>%d%%"
                   "</text>", X, X + W, Y + HH - k * HH / 4, Y + HH - k * HH / 4, X - 6, Y + HH - k * HH / 4 + 4,
                       25 * k);
    for (a = 0; a <= top; a++)
        fprintf(f, "<text x='%d' y='%d' class='s' text-anchor='middle'>%s</text>",
            X + 20 + a * (W - 40) / KVMEM__MAX(top, 1),
                Y + HH + 16, span(a, name));
    for (i = 0; i < n_methods; i++) {
        int n = 0;
        for (a = 0; a <= top; a++) {
            if (!methods[i].asked[a]) continue;
            x[n] = X + 20 + a * (W - 40) / KVMEM__MAX(top, 1);
            y[n++] = Y + HH - (double)HH * methods[i].right[a] / methods[i].asked[a];
        }
        curve(f, i, x, y, n);
        fprintf(f, "<circle cx='%d' cy='%d' r='5' fill='%s'/><text x='%d' y='%d' class='s'>%s</text>\n", X + W + 30,
                Y + 16 + 22 * i, colour[i], X + W + 42, Y + 20 + 22 * i, methods[i].name);
    }
    for (a = 0; a < 2; a++) {
        const int x0 = X + a * 430, w = 360, y0 = 430, h = 240;
        const double hi = a ? most : ms;
        axis(f, x0, y0, w, h, a ? "Memory in use" : "Time", a ? "MiB in memory" : "ms a token", "tokens read");
        for (k = 0; k <= 4; k++)
            fprintf(f,
                "<line x1='%d' x2='%d' y1='%d' y2='%d' class='g'/><text x='%d' y='%d' class='s' text-anchor='end'>%.3g"
                       "</text><text x='%d' y='%d' class='s' text-anchor='middle'>%dk</text>", x0, x0 + w,
                           y0 + h - k * h / 4,
                    y0 + h - k * h / 4, x0 - 6, y0 + h - k * h / 4 + 4, hi * 1.1 * k / 4, x0 + k * w / 4, y0 + h + 16,
                    length / 1024 * k / 4);
        for (i = 0; i < n_methods; i++) {
            for (k = 0; k < methods[i].n_stops; k++) {
                x[k] = x0 + (double)w * (k + 1) / stops;
                y[k] = y0 + h - h * (a ? methods[i].all[k] / 1048576 : methods[i].ms[k]) / (hi * 1.1);
            }
            curve(f, i, x, y, methods[i].n_stops);
        }
    }
    fprintf(f,
        "<text x='%d' y='744' class='s'>make long: --length %dk --keep %d; model "
            "examples/models/tiny.gguf; %s</text></svg>\n",
            X, length / 1024, keep, "equal bytes of K and V in memory");
    if (fclose(f)) die(path, "cannot be written");
}
static void add(const char *name, const char *recipe, int spills) {
    char *text = (char *)malloc(strlen(recipe) + 1);
    if (n_methods == MAX_METHODS || !text) die(name, "too many recipes");
    strcpy(text, recipe);
    methods[n_methods].name = name ? name : text;
    methods[n_methods].recipe = text;
    methods[n_methods++].spills = spills;
}
/* Six memories that hold `keep` entries: a window, two that score and evict, three that retrieve. */
static void usual(void) {
    char t[400];
    const int local = keep / 4, mem = keep / 2;
    snprintf(t, sizeof t, "score=recency sink=4 budget=%d when=block(%d) place=cache codec=f16", keep, block);
    add("streamingllm", t, 0);
    snprintf(t, sizeof t, "score=snapkv(window=32) budget=%d recent=32 when=block(%d) place=cache codec=f16", keep,
             block);
    add("snapkv", t, 0);
    snprintf(t, sizeof t, "score=knorm budget=%d recent=%d when=block(%d) place=cache codec=f16", keep, keep / 4, block);
    add("knorm", t, 0);
    snprintf(t, sizeof t, "infllm retrieve=infllm(init=16,local=%d,block=32,topk=%d,repr=0) place=far(at=%d) page=32 "
             "codec=f16", local, mem / 32, local - 1);
    add("infllm", t, 1);
    snprintf(t, sizeof t, "em-llm segment=surprise(min=4,max=32) retrieve=em-llm(init=16,local=%d,mem=%d,chunk=0,"
             "least=4,most=32,repr=0,contiguity=0.3) place=far(at=%d) page=16 codec=f16", local, mem, local - 1);
    add("em-llm", t, 1);
    snprintf(t, sizeof t, "retr-attn retrieve=nearest(index=flat,first=16,last=%d,topk=%d) place=far(at=%d) page=16 "
             "codec=f16", local, mem / 2, mem - 1);
    add("retr-attn", t, 1);
}
int main(int argc, char **argv) {
    unsigned char *bytes;
    size_t size;
    const char *path;
    int i, own = 0;
    bench_begin(argc, argv, "longstream", 0);
    path = bench_option("--model", "examples/models/tiny.gguf");
    length = number(bench_option("--length", "64k"), 2048, 1 << 24, "--length");
    keep = number(bench_option("--keep", "1k"), 128, 1 << 20, "--keep");
    stops = number(bench_option("--stops", "16"), 1, MAX_STOPS, "--stops");
    ask = number(bench_option("--ask", "8"), 1, 1000, "--ask");
    block = number(bench_option("--block", "256"), 1, 4096, "--block");
    bytes = whole(path, &size);
    if (kvmem_model_open(&model, bytes, size, NULL, 0, NULL)) die(path, model.error.text);
    make_stream((uint64_t)number(bench_option("--seed", "1"), 0, INT_MAX, "--seed"));
    for (i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], "--kv")) {
            const char *r = argv[i + 1];
            add(r, r, strstr(r, "retrieve=") || !strncmp(r, "infllm", 6) || !strncmp(r, "em-llm", 6));
            own = 1;
        }
    if (!own) usual();
    for (i = 0; i < n_methods; i++) run(&methods[i]);
    tables();
    if (*bench_option("--svg", "")) picture(bench_option("--svg", ""));
    kvmem_model_close(&model);
    corpus_free(&stream);
    free(facts); free(bytes);
    return 0;
}
