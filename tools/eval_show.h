/* eval_show.h - what eval.h has counted, as tables, JSON, CSV and an HTML report; the command
 * itself. */
#ifndef KVMEM_EVAL_SHOW_H
#define KVMEM_EVAL_SHOW_H

/* ==== >>eval_count : what the cells say ======================================================= */

/* Right and asked of a cell's questions of one kind (-1: all) from streams of one depth (-1: all).
 */
static void cell_count(const eval *e, const eval_cell *c, int kind, int depth, int *right,
                       int *asked) {
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
    grid_head(&t,
              "suite|ctx|recipe|budget|ppl|95 % interval|KL|95 % interval|top-1|" GRID_MEASURED);
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
/* "snapkv 0.91  >  h2o 0.80 (p 0.002)": who is separated from the next one, on the same questions.
 */
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
/* Right answers by turn: what was chosen for one question serves the next ones how well? */
static void table_turns(const eval *e, int suite) {
    static const int from[] = { 0, 1, 2, 4, 8, 12, 1000000 };
    int i, k, j;
    put("\nby turn: 1, 2, 3-4, 5-8, 9-12, 13 and later\n");
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        const eval_group *g = group_of(e, c);
        int right[6], asked[6], turn = 0;
        if (g->suite != suite || !c->n_q) continue;
        for (k = 0; k < 6; k++) right[k] = asked[k] = 0;
        for (j = 0; j < c->n_q && j < g->n_q; j++) {
            turn = j && g->q[j].stream == g->q[j - 1].stream ? turn + 1 : 0;
            for (k = 0; turn >= from[k + 1]; k++) {}
            right[k] += c->right[j];
            asked[k]++;
        }
        for (k = 0; k < 6; k++) {
            if (asked[k]) put("%5.1f %%", 100.0 * right[k] / asked[k]);
            else put("      -");
        }
        put("   %d  %s\n", g->ctx, c->text);
    }
}
static void eval_table(const eval *e) {
    int s, i, any = 0, streams = 0;
    for (i = 0; i < e->r.n_groups; i++) streams += e->r.group[i].streams;
    put("model    %s, trained for contexts up to %d\n", e->a->model, e->l.model.n_ctx_train);
    put("asked    %s; %d contexts, seeds %lld to %lld; %.1f s\n\n",
        e->r.aware ? "with the question known when the context was compressed"
        : e->a->turns ? "one after the other, each as a turn after the answers before it"
                   : "after the context was compressed",
        streams, (long long)e->r.seed, (long long)e->r.seed + e->r.seeds - 1, e->r.seconds);
    for (s = 0; s < EVAL_SUITES; s++) {
        int here = 0;
        for (i = 0; i < e->r.n_groups; i++) here |= e->r.group[i].suite == s;
        if (!here) continue;
        if (any++) put("\n");
        if (s == EVAL_PPL) table_ppl(e);
        else table_questions(e, s);
        if (s != EVAL_PPL && e->a->turns) table_turns(e, s);
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
    json_bool("multi_turn", e->a->turns);
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

/* ==== >>eval_md : markdown for README: nothing in it depends on the machine's speed =========== */

/* Is a kind asked in this suite at any length? */
static int md_asked(const eval *e, int suite, int kind) {
    int i, k;
    for (i = 0; i < e->r.n_groups; i++)
        for (k = 0; k < e->r.group[i].n_q && e->r.group[i].suite == suite; k++)
            if (kind < 0 || e->r.group[i].q[k].kind == kind) return 1;
    return 0;
}
/* The cell of another suite for the same length, recipe and budget. */
static const eval_cell *md_cell(const eval *e, const eval_cell *like, int suite) {
    int i;
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        if (group_of(e, c)->suite == suite && group_of(e, c)->ctx == group_of(e, like)->ctx &&
            !strcmp(c->text, like->text))
            return c;
    }
    return like;
}
static void md_share(const eval *e, const eval_cell *c, int kind) {
    int right, asked;
    interval w;
    cell_count(e, c, kind, -1, &right, &asked);
    w = wilson(right, asked);
    if (c->error[0]) put(" failed |");
    else if (!asked) put(" - |");
    else
        put(" %.1f %% [%.1f, %.1f] of %d |", 100.0 * right / asked, 100 * w.lo, 100 * w.hi, asked);
}
static void md_scores(const eval_cell *c) {
    const interval w = bootstrap(c->nll, c->n_s), x = bootstrap(c->kl, c->n_s);
    if (c->error[0]) { put(" failed | failed | failed |"); return; }
    put(" %.3f [%.3f, %.3f] | %.4f [%.4f, %.4f] | %.1f %% |", exp(mean_of(c->nll, c->n_s)),
        exp(w.lo), exp(w.hi), mean_of(c->kl, c->n_s), x.lo, x.hi, 100 * mean_of(c->top1, c->n_s));
}
/* One row, or with c NULL the head, or with rule the line below it. Kinds of single suites have
   their own names, needle and multi that of the suite; conv has a column for all its kinds when
   recipes are compared. */
static void md_row(const eval *e, const eval_cell *c, int rule) {
    const int recipes = e->r.n_methods > 1;
    int s, k;
    if (c) put("| %d |", group_of(e, c)->ctx);
    else put(rule ? "|---|" : "| ctx |");
    if (recipes && c) put(" `%s` | %s |", e->r.method[c->method], c->amount);
    else if (recipes) put(rule ? "---|---|" : " recipe | budget |");
    for (s = 0; s < EVAL_SUITES; s++) {
        const eval_cell *of = c ? md_cell(e, c, s) : NULL;
        const int parts = s == EVAL_CONV || s == EVAL_ORDER || s == EVAL_COPY;
        for (k = s == EVAL_CONV && !recipes ? 0 : -1; k < CORPUS_KINDS; k++) {
            if (!md_asked(e, s, k) || (k >= 0) != (s == EVAL_CONV ? k >= 0 : parts)) continue;
            if (of) md_share(e, of, k);
            else if (rule) put("---|");
            else put(" %s |", k < 0 ? eval_suites[s].word : eval_kinds[k]);
        }
        for (k = 0; k < e->r.n_groups && s == EVAL_PPL; k++) {
            if (e->r.group[k].suite != EVAL_PPL) continue;
            if (of) md_scores(of);
            else put(rule ? "---|---|---|" : " ppl | KL | top-1 |");
            break;
        }
    }
    if (recipes && c) {
        if (eval_mean(&c->live) >= 0) put(" %.0f |", eval_mean(&c->live) / 1024);
        else put(" - |");
    } else if (recipes) put(rule ? "---|" : " KiB |");
    put("\n");
}
static void eval_md(const eval *e) {
    int i, j;
    size_t from;
    md_row(e, NULL, 0);
    md_row(e, NULL, 1);
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        for (j = 0; j < i; j++)
            if (group_of(e, e->r.cell + j)->ctx == group_of(e, c)->ctx &&
                !strcmp(e->r.cell[j].text, c->text))
                break;
        if (j == i) md_row(e, c, 0);
    }
    put("\n```");
    from = out.len;
    table_ranking(e);
    table_notes(e);
    if (out.len == from) out.len -= 4; /* nothing to say: no fence */
    else put("```\n");
}

/* ==== >>eval_report : the HTML file =========================================================== */

static double budget_share(const eval_cell *c, int ctx, double full) {
    const kvmem_amount am = c->recipe.amount;
    double share = 1;
    if (am.kind == KVMEM_COUNT) share = am.value / ctx;
    if (am.kind == KVMEM_SHARE) share = am.value;
    if (am.kind == KVMEM_BYTES && full > 0) share = am.value / full;
    return share < 1 ? share : 1;
}
static void show_cell(const eval *e, report_data *d, const eval_cell *c, int kind, int depth) {
    const eval_group *g = group_of(e, c);
    const double full = eval_mean(&full_cell(e, c)->live);
    const eval_sum *all = &full_cell(e, c)->entries;
    report_cell r;
    memset(&r, 0, sizeof r);
    r.suite = eval_suites[g->suite].word;
    r.kind = kind < 0 ? NULL : eval_kinds[kind];
    r.method = method_label(c->text);
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
static void show_cells(const eval *e, report_data *d) {
    int i, j, k, a, b, both;
    for (i = 0; i < e->r.n_cells; i++) {
        const eval_cell *c = e->r.cell + i;
        const int suite = group_of(e, c)->suite;
        if (c->error[0]) continue;
        show_cell(e, d, c, -1, -1);
        for (k = 0; suite == EVAL_CONV && k < CORPUS_KINDS; k++) show_cell(e, d, c, k, -1);
        for (k = 0; suite == EVAL_NEEDLE && k < e->r.depths; k++) show_cell(e, d, c, -1, k);
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
/* The text of ids on one line: without a space in front, line ends and bytes that are no text. */
static const char *ids_text(const eval *e, const int *id, int n, char *buf, size_t size) {
    size_t len = kvmem_detokenize(e->l.tokenizer, id, (size_t)n, 0, buf, size - 1), i, m = 0;
    if (len > size - 1) len = size - 1;
    for (i = 0; i < len; i++) {
        const unsigned char ch = (unsigned char)buf[i];
        if (ch >= 32 && (m || ch != ' ')) buf[m++] = ch < 127 ? (char)ch : '?';
    }
    buf[m] = 0;
    return buf;
}
/* The other tellings of the fact that answers q, and the first link of a chain: lines end with
   " city of Mia is Paris", so that the four tokens before a value name its fact. */
static void audit_tellings(const corpus_test *t, const corpus_prompt *q, report_question *r) {
    const int chain = q->kind == CORPUS_CHAIN && q->n > 4;
    int i, first = -1;
    if (q->told < 4 || q->told >= t->n || q->kind == CORPUS_COPY || q->kind == CORPUS_ORDER) return;
    r->n_told = 0;
    for (i = 4; i < t->n; i++) {
        const int *at = t->ids + i - 4, *own = t->ids + q->told - 4;
        if (chain && !memcmp(at, q->ids + q->n - 4, 3 * sizeof *at) && at[3] == own[3] &&
            t->ids[i] == own[2])
            first = i;
        if (memcmp(at, own, 4 * sizeof *at) || i == q->told) continue;
        if (t->ids[i] == t->ids[q->told] && r->n_told < 2) r->told[r->n_told++] = i;
        if (t->ids[i] != t->ids[q->told] && r->n_stale < 4) r->stale[r->n_stale++] = i;
    }
    if (first >= 0) r->told[r->n_told++] = first;
    r->told[r->n_told++] = q->told;
}
/* The conversation in e->test and its questions. */
static report_audit *audit_begin(const eval *e, report_data *d) {
    const kvmem_model *m = &e->l.model;
    report_audit *a = report_audit_begin(d, m->n_layers, m->n_kv_heads, m->head_dim);
    char text[512], want[256];
    int i;
    for (i = 0; i < e->test.n; i++) {
        const size_t n = kvmem_token_bytes(e->l.tokenizer, e->test.ids[i], KVMEM_SHOW_SPECIAL, text,
                                           sizeof text);
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
        audit_tellings(&e->test, q, &r);
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
    report_run *run = report_run_begin(a, method_label(of->text), of->text,
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
        kvmem_session_bytes(&b.s, &bytes);
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
/* The first conversation, at the shortest length if none is named, under every recipe at one budget (the one nearest
   to an eighth), or under the recipes of --audit. */
static int show_conversation(eval *e, report_data *d) {
    const eval_group *g = NULL;
    report_audit *a;
    int i, j, status;
    for (i = 0; i < e->r.n_groups; i++)
        if (e->r.group[i].suite == EVAL_CONV && (!g || e->r.group[i].ctx < g->ctx))
            g = e->r.group + i;
    if (e->r.shown) g = e->r.group + e->r.shown - 1;
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
        if (e->r.group + c->group != g || c->error[0] ||
            (i && c[-1].group == c->group && c[-1].method == c->method))
            continue;
        for (j = i;
             j < e->r.n_cells && e->r.cell[j].group == c->group && e->r.cell[j].method == c->method;
             j++)
            if (!e->r.cell[j].error[0] && fabs(budget_share(e->r.cell + j, g->ctx, 0) - 0.125) <
                                              fabs(budget_share(best, g->ctx, 0) - 0.125))
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
    show_cells(e, &d);
    status = show_conversation(e, &d);
    if (status == OK && report_write(&d, e->a->report, &why))
        status = fail("--report %s: %s", e->a->report, why);
    report_free(&d);
    return status;
}

/* ==== >>eval_command ========================================================================== */

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
        else if (a->md) eval_md(&e);
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
#endif
