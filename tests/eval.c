/* eval: intervals and tests against known values; cells against each other on a model of noise whose
   own answers under the full cache are taken for the right ones. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* small models: no fast path is needed */
#endif
#include "test.h"
#define MKGGUF_NO_MAIN
#include "../tools/mkgguf.c"
#include "tool.h"

/* --- statistics --- */

TEST(wilson_is_the_published_interval) {
    const interval a = wilson(8, 10), b = wilson(0, 10), c = wilson(10, 10), d = wilson(81, 263);
    CHECK_NEAR(a.lo, 0.4901625, 1e-6);
    CHECK_NEAR(a.hi, 0.9433178, 1e-6);
    CHECK(b.lo == 0);
    CHECK_NEAR(b.hi, 0.2775328, 1e-6);
    CHECK_NEAR(c.lo, 0.7224672, 1e-6);
    CHECK(c.hi == 1);
    CHECK_NEAR(d.lo, 0.2553, 5e-5); /* Newcombe 1998, table 1: 81 of 263 */
    CHECK_NEAR(d.hi, 0.3662, 5e-5);
}
TEST(wilson_of_nothing_is_everything) {
    const interval a = wilson(0, 0);
    CHECK(a.lo == 0 && a.hi == 1);
}
TEST(mcnemar_is_the_exact_binomial_test) {
    CHECK_NEAR(mcnemar(10, 2), 158.0 / 4096, 1e-12);
    CHECK_NEAR(mcnemar(2, 10), 158.0 / 4096, 1e-12);
    CHECK_NEAR(mcnemar(0, 5), 0.0625, 1e-12);
    CHECK_NEAR(mcnemar(6, 16), 2 * 110056.0 / 4194304, 1e-12);
    CHECK(mcnemar(0, 0) == 1);
    CHECK(mcnemar(5, 5) == 1);
}
TEST(mcnemar_holds_for_large_counts) { /* normal approximation with continuity: z = 199 / sqrt(2200) */
    const double p = mcnemar(1000, 1200);
    CHECK(p > 2.0e-5 && p < 2.4e-5);
}
TEST(paired_interval_is_bonett_price) { /* (12 + 1) / 32 and (2 + 1) / 32 */
    const interval a = paired(12, 2, 30);
    const double half = 1.959964 * sqrt((16.0 / 32 - 100.0 / 1024) / 32);
    CHECK_NEAR(a.lo, 10.0 / 32 - half, 1e-6);
    CHECK_NEAR(a.hi, 10.0 / 32 + half, 1e-6);
}
TEST(bootstrap_of_a_ramp_is_its_normal_interval) {
    double x[100];
    interval a, b;
    int i;
    for (i = 0; i < 100; i++) x[i] = i;
    a = bootstrap(x, 100);
    b = bootstrap(x, 100);
    CHECK_NEAR(a.lo, 49.5 - 1.96 * 2.886, 0.6);
    CHECK_NEAR(a.hi, 49.5 + 1.96 * 2.886, 0.6);
    CHECK(a.lo == b.lo && a.hi == b.hi);
}
TEST(bootstrap_of_one_value_has_no_width) {
    const double x = 3;
    const interval a = bootstrap(&x, 1);
    CHECK(a.lo == 3 && a.hi == 3);
}

/* --- cells --- */

static unsigned char *model_bytes;
static size_t model_size, model_cap;
static int keep(void *user, const void *bytes, size_t n) {
    (void)user;
    if (n > model_cap - model_size)
        model_bytes = (unsigned char *)grow(model_bytes, model_cap = 2 * model_cap + n, 1);
    memcpy(model_bytes + model_size, bytes, n);
    model_size += n;
    return 0;
}
/* A planned eval on the model of noise; argv is what stands behind `kvmem eval`. */
static const command *eval_command(void) {
    int i;
    for (i = 0; strcmp(commands[i].name, "eval"); i++) {}
    return &commands[i];
}
static char plan_text[2][2048];
static int plan(eval *e, args *a, int which, const char *const *word, int n) {
    char *argv[32];
    int i;
    for (i = 0; i < n; i++) { union { const char *c; char *p; } u; u.c = word[i]; argv[i] = u.p; }
    if (parse_args(eval_command(), a, n, argv)) return 1;
    eval_begin(e, a);
    e->own.threads = 1;
    if (eval_options(e, plan_text[which], sizeof plan_text[which])) return 1;
    if (kvmem_model_open(&e->l.model, model_bytes, model_size, NULL, 0, NULL)) return 1;
    e->l.tokenizer = &e->l.model.tokenizer;
    return check_lengths(e) || check_vocabulary(e) || take_memory(e);
}
static void done(eval *e, args *a) {
    free(a->word);
    eval_close(e);
}
/* What the full cache answers becomes the right answer. */
static void adopt_answers(eval *e) {
    eval_cell c = e->r.cell[0];
    eval_base b;
    int i, k, given[CORPUS_NOTE];
    REQUIRE(base_open(e, &c, &b));
    REQUIRE(cell_feed(&c, &b.s, e->test.ids, e->test.n - 1, KVMEM_PREFILL, NULL));
    REQUIRE(cell_feed(&c, &b.s, e->test.ids + e->test.n - 1, 1, KVMEM_PROMPT_END, NULL));
    for (i = 0; i < e->test.n_q; i++) {
        corpus_prompt *q = e->test.q + i;
        REQUIRE(cell_ask(e, &c, &b, q, 0, given));
        for (k = 0; k < q->n_answer; k++) q->answer[k] = given[k];
    }
    base_close(&b);
    free(c.right);
}
static void run_cells(eval *e, int stream) {
    int i, n;
    for (i = 0; i < e->r.n_cells; i += n) {
        for (n = 1; i + n < e->r.n_cells && e->r.cell[i + n].method == e->r.cell[i].method;) n++;
        run_method(e, e->r.cell + i, n, stream);
    }
}
TEST(covering_budgets_answer_as_the_full_cache_does) {
    static const char *const w[] = { "--ctx", "256", "--kv", "h2o", "--kv", "window", "--kv",
        "snapkv", "--kv", "tova budget=64MiB", "--budgets", "100%,300,16MiB", "--suite", "copy" };
    static eval e;
    args a;
    int i;
    REQUIRE(!plan(&e, &a, 0, w, 14));
    REQUIRE(!make_stream(&e, e.r.group, 0));
    REQUIRE(e.test.n_q > 0);
    adopt_answers(&e);
    note_questions(&e, e.r.group, 0);
    run_cells(&e, 0);
    run_cells(&e, 1);
    for (i = 0; i < e.r.n_cells; i++) {
        const eval_cell *c = e.r.cell + i;
        if (c->error[0] || c->n_right != 2 * e.test.n_q)
            FAIL_AT("%s: %d of %d, %s", c->text, c->n_right, c->n_q, c->error);
    }
    done(&e, &a);
}
TEST(small_budgets_answer_otherwise) {
    static const char *const w[] = { "--ctx", "256", "--kv", "h2o", "--kv", "window", "--budgets",
                                     "5%", "--suite", "copy" };
    static eval e;
    args a;
    int i;
    REQUIRE(!plan(&e, &a, 0, w, 10));
    REQUIRE(!make_stream(&e, e.r.group, 0));
    adopt_answers(&e);
    run_cells(&e, 0);
    CHECK(e.r.cell[0].n_right == e.test.n_q);
    for (i = 1; i < 3; i++) CHECK(e.r.cell[i].n_right < e.test.n_q);
    done(&e, &a);
}
TEST(a_question_known_before_is_the_same_to_the_full_cache) {
    static const char *const w[] = { "--ctx", "256", "--kv", "snapkv", "--budgets", "100%",
                                     "--suite", "copy" };
    static eval e;
    args a;
    int i;
    REQUIRE(!plan(&e, &a, 0, w, 8));
    REQUIRE(!make_stream(&e, e.r.group, 0));
    adopt_answers(&e);
    e.r.aware = 1;
    run_cells(&e, 0);
    for (i = 0; i < 2; i++) CHECK(e.r.cell[i].n_right == e.test.n_q);
    done(&e, &a);
}
/* Logits at the prompt's end come from before the compression: a one-word answer must not. */
TEST(a_question_known_before_is_answered_from_what_is_kept) {
    static const char *const w[] = { "--ctx", "512", "--kv", "window", "--kv",
                                     "score=random when=prompt", "--budgets", "2" };
    static eval e;
    args a;
    int i;
    REQUIRE(!plan(&e, &a, 0, w, 8));
    REQUIRE(!make_stream(&e, e.r.group, 0));
    adopt_answers(&e);
    e.r.aware = 1;
    run_cells(&e, 0);
    CHECK(e.r.cell[0].n_right == e.test.n_q);
    for (i = 1; i < 3; i++) CHECK(!e.r.cell[i].error[0] && e.r.cell[i].n_right < e.test.n_q);
    done(&e, &a);
}
/* Cells that start from one shared context count what cells with a context of their own count. */
TEST(a_shared_context_changes_nothing) {
    static const char *const w[] = { "--ctx", "256", "--kv", "h2o", "--kv", "snapkv", "--kv",
        "tova", "--kv", "pyramidkv", "--budgets", "50%,40,12.5%", "--suite", "ppl", "--seeds", "2" };
    static eval e[2];
    args a[2];
    int i, k;
    for (k = 0; k < 2; k++) {
        REQUIRE(!plan(&e[k], &a[k], k, w, 16));
        e[k].alone = k;
        REQUIRE(!eval_streams(&e[k], 0));
    }
    CHECK(e[0].r.n_cells == 13);
    for (i = 0; i < e[0].r.n_cells; i++) {
        const eval_cell *x = e[0].r.cell + i, *y = e[1].r.cell + i;
        CHECK(!x->error[0] && x->n_s == 2 && y->n_s == 2);
        for (k = 0; k < 2; k++)
            if (x->nll[k] != y->nll[k] || x->kl[k] != y->kl[k])
                FAIL_AT("%s: kl %.17g alone %.17g", x->text, x->kl[k], y->kl[k]);
        CHECK(i == 0 || x->kl[1] > 0);
    }
    for (k = 0; k < 2; k++) done(&e[k], &a[k]);
}
TEST(bytes_are_those_of_the_compressed_context) {
    static const char *const w[] = { "--ctx", "512", "--kv", "window", "--budgets", "50%,12.5%",
                                     "--seeds", "1" };
    static eval e;
    args a;
    REQUIRE(!plan(&e, &a, 0, w, 8));
    REQUIRE(!eval_streams(&e, 0));
    CHECK(cell_share(&e, e.r.cell) == 1);
    CHECK_NEAR(cell_share(&e, e.r.cell + 1), 0.5, 0.05);
    CHECK_NEAR(cell_share(&e, e.r.cell + 2), 0.125, 0.05);
    CHECK(eval_mean(&e.r.cell[2].entries) == 64 * 2 * e.l.model.n_layers);
    CHECK(eval_mean(&e.r.cell[2].peak) >= eval_mean(&e.r.cell[2].live));
    done(&e, &a);
}
TEST(notes_say_when_the_score_has_no_say) {
    static const char *const w[] = { "--ctx", "256", "--kv", "snapkv", "--budgets", "6.25%,256,25%" };
    static eval e;
    args a;
    REQUIRE(!plan(&e, &a, 0, w, 6));
    CHECK(strstr(e.r.cell[1].note, "recent=32") != NULL);
    CHECK(strstr(e.r.cell[2].note, "keeps all") != NULL);
    CHECK(!e.r.cell[3].note[0]);
    done(&e, &a);
}
TEST(a_label_is_the_recipe_without_its_budget) {
    CHECK(!strcmp(method_label("snapkv budget=12.5%"), "snapkv"));
    CHECK(!strcmp(method_label("pyramidkv budget=85% codec=q4_0"), "pyramidkv+q4_0"));
    CHECK(!strcmp(method_label("score=random  budget=64"), "score=random"));
    CHECK(!strcmp(method_label("budget=pyramid(64) score=h2o"), "budget=pyramid(64) score=h2o"));
    CHECK(!strcmp(method_label("codec=q8_0/q4_0"), "codec=q8_0/q4_0"));
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "eval");
    if (mkgguf("--preset tiny --vocab-kind corpus --ctx 512 --seed 3", keep, NULL)) return 1;
    RUN(wilson_is_the_published_interval);
    RUN(wilson_of_nothing_is_everything);
    RUN(mcnemar_is_the_exact_binomial_test);
    RUN(mcnemar_holds_for_large_counts);
    RUN(paired_interval_is_bonett_price);
    RUN(bootstrap_of_a_ramp_is_its_normal_interval);
    RUN(bootstrap_of_one_value_has_no_width);
    RUN(covering_budgets_answer_as_the_full_cache_does);
    RUN(small_budgets_answer_otherwise);
    RUN(a_question_known_before_is_the_same_to_the_full_cache);
    RUN(a_question_known_before_is_answered_from_what_is_kept);
    RUN(a_shared_context_changes_nothing);
    RUN(bytes_are_those_of_the_compressed_context);
    RUN(notes_say_when_the_score_has_no_say);
    RUN(a_label_is_the_recipe_without_its_budget);
    free(model_bytes);
    free(out.text);
    return test_end();
}
