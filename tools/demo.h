/* demo.h - `kvmem demo`, which `make run` plays: one long conversation under several recipes.

   Uses eval.h's cells and sessions, so that what is played is what eval measures. */
#ifndef KVMEM_DEMO_H
#define KVMEM_DEMO_H

/* ==== >>demo : one conversation, several memories ============================================= */

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
    if (use_colour) put("\033[2m");
    for (i = 1; i < e->test.n && line < 6; i++) {
        const size_t n = kvmem_token_bytes(e->l.tokenizer, e->test.ids[i], 0, text, sizeof text);
        put_bytes(text, n < sizeof text ? n : sizeof text);
        line += n && text[n - 1] == '\n';
    }
    put("... %d tokens in all", e->test.n);
    if (use_colour) put("\033[0m");
    put("\n\n");
}
enum { DEMO_QUESTION = 46, DEMO_RIGHT = 10 };

static int demo_width(const eval_cell *c) {
    const int n = (int)strlen(method_label(c->text));
    return n < 11 ? 14 : n > 22 ? 24 : n + 3;
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
        if (is_terminal(stderr)) fprintf(stderr, "\rreading under %-32s", method_label(c->text));
        if (!c->error[0] && base_open(e, c, &b[i]) &&
            cell_feed(c, &b[i].s, t->ids, t->n - 1, KVMEM_PREFILL, &time) &&
            cell_feed(c, &b[i].s, t->ids + t->n - 1, 1, KVMEM_PROMPT_END, &time) &&
            base_mark(c, &b[i])) {
            cell_bytes(c, &b[i].s);
            eval_add(&c->prefill, time.sum, time.n);
        }
    }
    if (is_terminal(stderr)) fprintf(stderr, "\r%48s\r", "");
    put_column("", DEMO_QUESTION, 0);
    put_column("right", DEMO_RIGHT, 1);
    for (i = 0; i < n; i++)
        put_column(method_label(e->r.cell[i].text), demo_width(e->r.cell + i), 1);
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
                demo_answer(ids_text(e, given, q->n_answer, text, sizeof text),
                            c->right[c->n_q - 1], demo_width(c));
            else put_column("failed", demo_width(c), 31);
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
    if ((status = each_part(e, "--budget", a->budgets, buf, size, plan_budget)) != OK)
        return status;
    if (e->n_budgets != 1) return misuse("--budget %s: one budget is played", a->budgets);
    if ((status = plan_methods(e)) != OK) return status;
    plan_group(e, EVAL_CONV, ctx, 1);
    e->r.shown = 1;
    for (m = 0; m < e->r.n_methods; m++)
        plan_cell(e, 0, m, own_budget(e->r.method[m]) ? NULL : e->budget[0]);
    e->cfg = kvmem_session_config_default();
    e->cfg.threads = (int)a->threads;
    e->cfg.max_block = (int)a->block;
    if (a->report && *a->report && (status = check_report(a->report)) != OK) return status;
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
        put("%s reads a conversation, then it is asked about it. full remembers all; the other\n"
            "caches were compressed (%s, or as the recipe says) before any question was known.\n\n",
            e.a->model, e.budget[0]);
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
