/* methods.c - every preset that keeps fewer entries, on the questions and texts of `./kvmem eval`, ranked.

   A row is one preset at one budget, asked without and with the question known when the cache is compressed:
   answers right out of asked (recall: facts told once or twice; update: facts told anew; copy; order), nearness to
   the full cache's predictions (KL, same likeliest token), bytes, milliseconds. A new preset is measured by being
   there; one that needs a file or a session of its own is named below the table with what it said.

   Build  make build/bench_methods        Run  make bench-methods, or build/bench_methods --help
   Many machines: build/bench_methods --part 1/4 --csv > 1.csv (2/4, ...), then build/bench_methods --from all.csv */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "../tests/tool.h"

enum { RECALL, UPDATE, COPY, ORDER, N_WHAT, CHUNK = 12, MAX_PRESETS = 1024 };
#define TINY_PROFILE "examples/models/tiny.profile"
static const char *const what_word[N_WHAT] = { "recall", "update", "copy", "order" };
static const char *const budget_word[4] = { "50%", "25%", "12.5%", "6.25%" };

typedef struct row {
    char preset[40], budget[24];
    int aware;
    int right[N_WHAT], asked[N_WHAT], texts;
    double kl, kl_lo, kl_hi, top1, top1_lo, top1_hi; /* texts > 0 */
    double live, peak, full;                         /* bytes; full: live ones of the full cache */
    double entries;                                  /* as a share of the full cache's */
    double prefill, decode;                          /* milliseconds per 1000 tokens, per token */
    char note[200];
} row;
static row *rows;
static int n_rows;
static char *missing; /* sentences about presets that were not measured */

static void miss(const char *preset, const char *why) {
    const size_t n = missing ? strlen(missing) : 0;
    missing = (char *)grow(missing, n + strlen(preset) + strlen(why) + 8, 1);
    sprintf(missing + n, "%s: %s\n", preset, why);
}
static row *row_of(const char *preset, const char *budget, int aware) {
    row *r;
    int i;
    for (i = 0; i < n_rows; i++)
        if (!strncmp(rows[i].preset, preset, strcspn(preset, " ")) && !rows[i].preset[strcspn(preset, " ")] &&
            !strcmp(rows[i].budget, budget) && rows[i].aware == aware) return rows + i;
    rows = (row *)grow(rows, (size_t)n_rows + 1, sizeof *rows);
    r = rows + n_rows++;
    memset(r, 0, sizeof *r);
    snprintf(r->preset, sizeof r->preset, "%.*s", (int)strcspn(preset, " "), preset);
    snprintf(r->budget, sizeof r->budget, "%.23s", budget);
    r->aware = aware;
    r->kl = r->top1 = r->live = r->peak = r->full = r->entries = r->prefill = r->decode = -1;
    return r;
}

/* ==== >>methods_measure ======================================================================= */

static int kind_of(int suite, int kind) { /* -1: not counted: the full cache, too, fails at chains */
    if (suite == EVAL_COPY) return COPY;
    if (suite == EVAL_ORDER) return ORDER;
    return !strcmp(eval_kinds[kind], "updated") ? UPDATE : !strcmp(eval_kinds[kind], "chain") ? -1 : RECALL;
}
static void take_cell(const eval *e, const eval_cell *c, const eval_cell *full) {
    const eval_group *g = group_of(e, c);
    row *r = row_of(e->r.method[c->method], c->amount, e->r.aware);
    int i, k;
    if (c->error[0] || c->note[0]) snprintf(r->note, sizeof r->note, "%.199s", c->error[0] ? c->error : c->note);
    for (i = 0; i < c->n_q; i++)
        if ((k = kind_of(g->suite, g->q[i].kind)) >= 0) {
            r->asked[k]++;
            r->right[k] += c->right[i];
        }
    if (c->n_s > 0) {
        const interval kl = bootstrap(c->kl, c->n_s), top = bootstrap(c->top1, c->n_s);
        r->texts = c->n_s;
        r->kl = mean_of(c->kl, c->n_s);
        r->kl_lo = kl.lo;
        r->kl_hi = kl.hi;
        r->top1 = mean_of(c->top1, c->n_s);
        r->top1_lo = top.lo;
        r->top1_hi = top.hi;
    }
    if (g->suite != EVAL_CONV) return;
    r->live = eval_mean(&c->live);
    r->peak = eval_mean(&c->peak);
    r->full = eval_mean(&full->live);
    r->entries = eval_mean(&full->entries) > 0 ? eval_mean(&c->entries) / eval_mean(&full->entries) : -1;
    r->prefill = c->prefill.n > 0 ? 1e6 * c->prefill.sum / c->prefill.n : -1;
    r->decode = c->decode.n > 0 ? 1e3 * c->decode.sum / c->decode.n : -1;
}
/* The presets word[0..n) beside full. */
static int run_chunk(const args *given, const char *const *word, int n, int aware) {
    static char list[2048];
    args a = *given;
    eval e;
    int i, status;
    a.suite = aware ? "conv,copy,order" : "conv,copy,order,ppl";
    a.aware = aware;
    a.kvs.n = n;
    for (i = 0; i < n; i++) a.kvs.item[i] = word[i];
    a.csv = a.md = a.json = 0; /* of this table, not of the evaluation's */
    eval_begin(&e, &a);
    status = eval_options(&e, list, sizeof list);
    if (status == OK) status = eval_open(&e);
    if (status == OK) status = eval_streams(&e, 0);
    for (i = 0; i < e.r.n_cells && status == OK; i++) {
        const eval_cell *full = e.r.cell + i;
        while (full->method) full--;
        if (e.r.cell[i].method || !strcmp(word[0], "full")) take_cell(&e, e.r.cell + i, full);
    }
    eval_close(&e);
    return status;
}
static int is_chosen(const char *word, const char *only) { /* one of "a,b,c" */
    const size_t n = strlen(word);
    const char *s = only;
    while (s && *s) {
        const size_t m = strcspn(s, ",");
        if (m == n && !memcmp(s, word, n)) return 1;
        s += m + (s[m] == ',');
    }
    return !only;
}
static int keeps_fewer(const kvmem_recipe *r) {
    int s;
    for (s = 0; s < (int)KVMEM_N_STAGES && !(r->stage[s].entry->reads & KVMEM_CHOOSES_COUNT); s++) {}
    return r->amount.kind != KVMEM_ALL || s < (int)KVMEM_N_STAGES;
}
/* Which presets keep fewer entries? The share part of of. Those that go by a profile get a->tokens. */
static int presets(const char **word, const args *a, int part, int of) {
    static char with[MAX_PRESETS][160];
    int i, j, n = 0, all = 0;
    for (i = 0; kvmem_preset_at(i); i++) {
        const kvmem_preset *p = kvmem_preset_at(i);
        kvmem_recipe r;
        kvmem_error e;
        char why[300];
        const int bad = kvmem_recipe_parse(&r, p->word, &e) != KVMEM_OK;
        if (!is_chosen(p->word, a->text)) continue;
        if (!bad && !keeps_fewer(&r)) continue;
        if (n == MAX_PRESETS || all++ % of != part - 1) continue;
        snprintf(why, sizeof why, "%s", bad ? e.text : "");
        for (j = 0; j < KVMEM_N_STAGES && !bad; j++) {
            const kvmem_param *q = r.stage[j].entry->params;
            for (; q && q->name; q++)
                if (q->choices && !strcmp(q->choices, "*") && !r.stage[j].text[0] &&
                    !(r.stage[j].entry->reads & KVMEM_READS_PROFILE))
                    snprintf(why, sizeof why, "%s=%s reads a file: %s", kvmem_stage_word((kvmem_stage)j),
                             r.stage[j].entry->word, q->what);
        }
        if (!bad && kvmem__needs_profile(&r) && !a->tokens)
            snprintf(why, sizeof why, "goes by a profile of the model: --profile FILE");
        if (why[0]) { miss(p->word, why); continue; }
        snprintf(with[n], sizeof with[n], kvmem__needs_profile(&r) ? "%.40s profile=%.100s" : "%.40s", p->word,
                 a->tokens ? a->tokens : "");
        word[n] = with[n];
        n++;
    }
    return n;
}
/* Every preset is asked once whether a session takes it, so that one that none takes stops nobody. */
static int drop_refused(const args *a, const char **word, int n) {
    loaded l;
    kvmem_session_config cfg = kvmem_session_config_default();
    int i, m = 0;
    if (load_model(&l, a, 1) != OK) return -1;
    for (i = 0; i < n; i++) {
        kvmem_session s;
        kvmem_recipe r;
        kvmem_recipe_parse(&r, word[i], NULL);
        cfg.recipe = &r;
        memset(&s, 0, sizeof s);
        if (kvmem_session_init(&s, &l.model, &cfg) == KVMEM_OK) word[m++] = word[i];
        else miss(word[i], s.error.text[0] ? s.error.text : "refused");
        kvmem_session_free(&s);
    }
    unload(&l);
    return m;
}

/* ==== >>methods_show ========================================================================== */

static void show_csv_head(void) {
    int k;
    put("preset,budget,question_known");
    for (k = 0; k < N_WHAT; k++)
        put(",%s_right,%s_asked,%s_lo,%s_hi", what_word[k], what_word[k], what_word[k], what_word[k]);
    put(",texts,kl,kl_lo,kl_hi,top1,top1_lo,top1_hi,live_bytes,peak_bytes,full_bytes,entries");
    put(",prefill_ms_per_1k,decode_ms");
    put(",note\n");
}
static void show_csv_row(const row *r) {
    int k;
    put("%s,%s,%d,", r->preset, r->budget, r->aware);
    for (k = 0; k < N_WHAT; k++) {
        const interval w = wilson(r->right[k], r->asked[k]);
        put("%d,%d,", r->right[k], r->asked[k]);
        csv_real(w.lo, r->asked[k] > 0);
        csv_real(w.hi, r->asked[k] > 0);
    }
    put("%d,", r->texts);
    csv_real(r->kl, r->texts > 0);
    csv_real(r->kl_lo, r->texts > 0);
    csv_real(r->kl_hi, r->texts > 0);
    csv_real(r->top1, r->texts > 0);
    csv_real(r->top1_lo, r->texts > 0);
    csv_real(r->top1_hi, r->texts > 0);
    csv_real(r->live, r->live >= 0);
    csv_real(r->peak, r->peak >= 0);
    csv_real(r->full, r->full >= 0);
    csv_real(r->entries, r->entries >= 0);
    csv_real(r->prefill, r->prefill >= 0);
    csv_real(r->decode, r->decode >= 0);
    csv_text(r->note);
    out.len--; /* the comma at the line's end */
    put("\n");
}
static void json_share(const char *key, int right, int asked) {
    const interval w = wilson(right, asked);
    if (!asked) return;
    json_open(key, '{');
    json_int("right", right);
    json_int("asked", asked);
    json_real("lo", w.lo);
    json_real("hi", w.hi);
    json_close();
}
static void show_json(void) {
    int i, k;
    json_open(NULL, '[');
    for (i = 0; i < n_rows; i++) {
        const row *r = rows + i;
        json_open(NULL, '{');
        json_text("preset", r->preset);
        json_text("budget", r->budget);
        json_bool("question_known", r->aware);
        for (k = 0; k < N_WHAT; k++) json_share(what_word[k], r->right[k], r->asked[k]);
        if (r->texts) {
            json_int("texts", r->texts);
            json_real("kl", r->kl);
            json_real("kl_lo", r->kl_lo);
            json_real("kl_hi", r->kl_hi);
            json_real("top1", r->top1);
        }
        json_real("live_bytes", r->live);
        json_real("peak_bytes", r->peak);
        json_real("full_bytes", r->full);
        json_real("entries", r->entries);
        json_real("prefill_ms_per_1k", r->prefill);
        json_real("decode_ms", r->decode);
        json_text("note", r->note);
        json_close();
    }
    json_close();
    put("\n");
}
/* A row of show_csv_row back: its numbers stand between commas, the note in quotes at the end. */
static double csv_next(const char **s) {
    const double v = **s == ',' || !**s ? -1 : strtod(*s, NULL);
    *s += strcspn(*s, ",");
    *s += **s == ',';
    return v;
}
static int read_csv(const char *path) {
    FILE *f = fopen(path, "r");
    char line[1024], preset[40], budget[24];
    if (!f) return fail("%s: cannot open: %s", path, strerror(errno));
    while (fgets(line, sizeof line, f)) {
        const char *s = line;
        row *r;
        int k, at = 0, aware;
        if (!strncmp(line, "preset,", 7)) continue;
        if (sscanf(line, "%39[^,],%23[^,],%d,%n", preset, budget, &aware, &at) != 3 || !at) {
            fclose(f);
            return fail("%s: no row of this table: %.60s", path, line);
        }
        r = row_of(preset, budget, aware != 0);
        for (s += at, k = 0; k < N_WHAT; k++) {
            r->right[k] = (int)csv_next(&s);
            r->asked[k] = (int)csv_next(&s);
            csv_next(&s);
            csv_next(&s);
        }
        r->texts = (int)csv_next(&s);
        r->kl = csv_next(&s);
        r->kl_lo = csv_next(&s);
        r->kl_hi = csv_next(&s);
        r->top1 = csv_next(&s);
        r->top1_lo = csv_next(&s);
        r->top1_hi = csv_next(&s);
        r->live = csv_next(&s);
        r->peak = csv_next(&s);
        r->full = csv_next(&s);
        r->entries = csv_next(&s);
        r->prefill = csv_next(&s);
        r->decode = csv_next(&s);
        if (*s == '"') snprintf(r->note, sizeof r->note, "%.*s", (int)strcspn(s + 1, "\"\n"), s + 1);
    }
    fclose(f);
    return OK;
}

/* A preset over all its budgets. */
typedef struct place { const char *preset; int right, asked, own; double share, kl; } place;
static void pool(const row *r, int *right, int *asked) { /* without order, where a coin is right every other time */
    int k;
    for (k = 0; k < ORDER; k++) { *right += r->right[k]; *asked += r->asked[k]; }
}
static int by_share(const void *a, const void *b) {
    const place *x = (const place *)a, *y = (const place *)b;
    if (x->own != y->own) return x->own - y->own; /* those with a budget of their own cannot be compared: last */
    if (x->share < y->share || x->share > y->share) return x->share < y->share ? 1 : -1;
    if (x->kl < y->kl || x->kl > y->kl) return x->kl > y->kl ? 1 : -1;
    return strcmp(x->preset, y->preset);
}
static const row *find_row(const char *preset, const char *budget, int aware) {
    int i;
    for (i = 0; i < n_rows; i++)
        if (!strcmp(rows[i].preset, preset) && rows[i].aware == aware && (!budget || !strcmp(rows[i].budget, budget)))
            return rows + i;
    return NULL;
}
static void put_share(const row *r) {
    int right = 0, asked = 0;
    if (r) pool(r, &right, &asked);
    if (asked) put(" %.0f |", 100.0 * right / asked);
    else put(" - |");
}
static void put_number(const char *f, double v, double unit) {
    put(" ");
    if (v >= 0) put(f, v / unit);
    else put("-");
    put(" |");
}
static int rank_rows(place *list) {
    int i, j, n = 0;
    for (i = 0; i < n_rows; i++) {
        const row *r = rows + i;
        for (j = 0; j < n && strcmp(list[j].preset, r->preset); j++) {}
        if (j == n) {
            if (n == MAX_PRESETS) continue;
            memset(&list[n], 0, sizeof list[n]);
            list[n++].preset = r->preset;
        }
        pool(r, &list[j].right, &list[j].asked);
        list[j].own |= !find_row(r->preset, "25%", r->aware) ||
                       (!strcmp(r->budget, "25%") && r->full > 0 && r->live > r->full / 2 && r->entries > 0.5);
        if (r->texts) list[j].kl += r->kl;
    }
    for (j = 0; j < n; j++) list[j].share = list[j].asked ? (double)list[j].right / list[j].asked : -1;
    qsort(list, (size_t)n, sizeof *list, by_share);
    return n;
}
static void show_ranked(const args *a) {
    static place list[MAX_PRESETS];
    const int n = rank_rows(list);
    int i, b, k;
    put("Right answers in %% of those asked (recall, update, copy), with the question unknown and known when the\n"
        "cache is compressed, at four budgets; `all` is over all eight, with its 95 %% interval, and ranks. KL,\n"
        "top-1, bytes and times at 25 %% with the question unknown. Contexts of %s tokens. Order questions, where\n"
        "a coin is right every other time, and each kind alone stand in the CSV. Without a rank: who decides alone\n"
        "how much stays, or holds more than half of the entries and bytes at 25 %%.\n\n", a->lengths);
    put("| # | preset | all %% |");
    for (k = 0; k < 2; k++)
        for (b = 0; b < 4; b++) put(" %s%s |", k ? "known " : "", budget_word[b]);
    put(" KL | top-1 | live %% | peak KiB | prefill ms/1k | decode ms |\n|---|---|---|");
    for (i = 0; i < 14; i++) put("---|");
    put("\n");
    for (i = 0; i < n; i++) {
        const interval w = wilson(list[i].right, list[i].asked);
        const row *at25 = find_row(list[i].preset, "25%", 0), *r = at25 ? at25 : find_row(list[i].preset, NULL, 0);
        if (list[i].own) put("| - |");
        else put("| %d |", i + 1);
        put(" `%s` | %.1f [%.1f, %.1f] |", list[i].preset, 100 * list[i].share, 100 * w.lo, 100 * w.hi);
        for (k = 0; k < 2; k++)
            for (b = 0; b < 4; b++)
                put_share(find_row(list[i].preset, !at25 && !b ? NULL : budget_word[b], k));
        if (r && r->texts) put(" %.3f [%.3f, %.3f] | %.3f |", r->kl, r->kl_lo, r->kl_hi, r->top1);
        else put(" - | - |");
        if (r && r->full > 0) put_number("%.1f", r->live, r->full / 100);
        else put(" - |");
        put_number("%.0f", r ? r->peak : -1, 1024);
        put_number("%.0f", r ? r->prefill : -1, 1);
        put_number("%.2f", r ? r->decode : -1, 1);
        put("\n");
    }
    if (missing) put("\nNot measured:\n\n```\n%s```\n", missing);
}

/* ==== >>methods_main ========================================================================== */

static int cmd_methods(const args *given) {
    static const char *word[MAX_PRESETS + 1];
    args a = *given;
    FILE *own;
    int part = 1, of = 1, n, i, aware, from, status = OK;
    default_model(&a);
    if (!a.tokens && !given->model && (own = fopen(TINY_PROFILE, "rb")) != NULL) {
        fclose(own);
        a.tokens = TINY_PROFILE;
    }
    a.depths = 1;
    if (a.csv + a.md + a.json > 1) return misuse("--csv, --json and --md cannot be given together");
    if (a.as && (sscanf(a.as, "%d/%d", &part, &of) != 2 || part < 1 || of < 1 || part > of))
        return misuse("--part %s: K/N with K from 1 to N", a.as);
    if (a.input) status = read_csv(a.input);
    else {
        word[0] = "full";
        n = presets(word + 1, &a, part, of);
        a.text = a.tokens = NULL; /* of eval they are something else */
        if ((n = drop_refused(&a, word + 1, n)) < 0) return FAILED;
        if (a.csv) show_csv_head();
        for (i = 0; i <= n && status == OK; i += i ? CHUNK : 1) { /* full alone, then chunks beside it */
            const int m = !i ? 1 : n + 1 - i < CHUNK ? n + 1 - i : CHUNK;
            for (from = n_rows, aware = 0; aware < 2 && status == OK; aware++)
                status = run_chunk(&a, word + i, m, aware);
            for (; a.csv && from < n_rows; from++) show_csv_row(rows + from);
            if (a.csv && status == OK) status = flush_out(stdout); /* so that a long run can be cut short */
        }
    }
    if (status == OK && a.input && a.csv) {
        show_csv_head();
        for (i = 0; i < n_rows; i++) show_csv_row(rows + i);
    }
    if (status == OK && a.json) show_json();
    if (status == OK && !a.json && !a.csv) show_ranked(&a);
    if (a.csv && missing) fputs(missing, stderr);
    free(missing);
    free(rows);
    return status;
}
static const option methods_options[] = {
    O_DEFAULT_MODEL,
    O_TEXT_OF("--ctx", lengths, "N", "1k", "length of every context in tokens"),
    O_TEXT_OF("--budgets", budgets, "LIST", "50%,25%,12.5%,6.25%", "shares of the tokens seen"),
    O_INT("--seeds", seeds, "N", "13", 1, 100000, "contexts of each suite"),
    O_INT("--questions", questions, "N", "0", 0, 1000, "about each context; 0: the suite's number"),
    O_INT("--seed", seed, "S", "1", 0, 9e15, "the first seed"),
    O_TEXT("--only", text, "LIST", "these presets: snapkv,h2o"),
    O_TEXT("--profile", tokens, "FILE", "of the model, for presets that go by one (default model: " TINY_PROFILE ")"),
    O_TEXT("--part", as, "K/N", "every N-th preset, from the K-th on: for N machines"),
    O_TEXT("--from", input, "FILE", "rows that --csv has printed, instead of measuring"),
    O_FLAG("--csv", csv, "print CSV, a line for each preset, budget and mode, as they are done"),
    O_FLAG("--md", md, "print the ranked markdown table (default)"),
    O_JSON,
    O_READ_BLOCK,
    O_THREADS,
    O_BACKEND,
    O_END};
static const command methods_command = {
    "methods", cmd_methods, methods_options, 0, 0, "[-m MODEL] [options]",
    "every preset that keeps fewer entries: answers, nearness, bytes, times",
    "Rows with their 95 % intervals (Wilson for answers, bootstrap over texts for KL and top-1).\n"
    "The ranking is by right answers over all budgets, with the question unknown and known.",
    { "build/bench_methods --only snapkv,h2o --seeds 3", "build/bench_methods --part 1/4 --csv > part1.csv" } };

int main(int argc, char **argv) {
    const int status = run_command(&methods_command, argc - 1, argv + 1);
    free(out.text);
    return status;
}
