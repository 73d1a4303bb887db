/* Profiles of heads and layers: the text, hostile and not, files and copies, and the budgets and scores that go
   by them. The measuring half is tests/profile_tool.c's. */
#define KVMEM_NO_DECODER
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"
#include "profiled.h"
#include "../tools/evolve.h"
#include "../tools/sums.h"

static kvmem_status parse(kvmem_profile *p, const char *text) {
    return kvmem_profile_parse(p, text, strlen(text), NULL);
}
static const char *const sample =
    "# of a toy\nkvmem profile 1\nmodel 00000000000000ff\nshape 2 4 2 8\nlayer keysim 1 .5\n"
    "kv duo .9 .2\n .6 4e-1 # four\n"
    "head retrieval 0 0.25 1 0 0 0 .125 3\ncurve lukv 2 .1 .2 .3 .4 .5 .6 .7 -.8";

TEST(text_becomes_numbers) {
    kvmem_profile p;
    const kvmem_profile_row *r;
    REQUIRE_OK(parse(&p, sample));
    CHECK(p.model_id == 255 && p.n_layers == 2 && p.n_heads == 4 && p.n_kv_heads == 2);
    CHECK(p.head_dim == 8 && p.n_rows == 4);
    r = kvmem_profile_find(&p, "duo");
    REQUIRE(r && r->per == KVMEM_PER_KV_HEAD);
    CHECK(r->value[0] == .9f && r->value[1] == .2f && r->value[2] == .6f && r->value[3] == .4f);
    r = kvmem_profile_find(&p, "lukv");
    REQUIRE(r && r->per == KVMEM_PER_CURVE && r->points == 2);
    CHECK(r->value[7] == -.8f && r->value[4] == .5f);
    r = kvmem_profile_find(&p, "retrieval");
    REQUIRE(r && r->per == KVMEM_PER_HEAD);
    CHECK(r->value[7] == 3 && r->value[6] == .125f);
    CHECK(!kvmem_profile_find(&p, "nothing"));
    kvmem_profile_free(&p);
    kvmem_profile_free(&p);
    kvmem_profile_free(NULL);
}
TEST(what_is_printed_parses_to_the_same_numbers) {
    profiled f;
    kvmem_profile q;
    char *text;
    size_t n;
    int i, j;
    profiled_make(&f, 3, 6, 2, 16);
    f.p.model_id = 0x1234567890abcdefu;
    f.value[0] = 1e-30f; f.value[1] = -3.4e38f; f.value[2] = 16777217.0f; f.value[3] = 1.17549435e-38f;
    n = kvmem_profile_print(&f.p, NULL, 0);
    text = (char *)malloc(n + 1);
    CHECK(kvmem_profile_print(&f.p, text, n + 1) == n && strlen(text) == n);
    if (parse(&q, text)) FAIL_AT("%s", q.error.text);
    CHECK(q.model_id == f.p.model_id && q.n_rows == f.p.n_rows);
    for (i = 0; i < q.n_rows && i < f.p.n_rows; i++) {
        const int count = (int)kvmem__profile_count(&q, q.row[i].per, q.row[i].points);
        CHECK(!strcmp(q.row[i].name, f.row[i].name) && q.row[i].per == f.row[i].per);
        CHECK(q.row[i].points == f.row[i].points);
        for (j = 0; j < count; j++)
            if (q.row[i].value[j] < f.row[i].value[j] || q.row[i].value[j] > f.row[i].value[j])
                FAIL_AT("%s %d: %.9g became %.9g", f.row[i].name, j, (double)f.row[i].value[j],
                        (double)q.row[i].value[j]);
    }
    kvmem_profile_free(&q);
    free(text);
    profiled_free(&f);
}
TEST(errors_name_line_and_reason) {
    static const struct { const char *text, *says; } bad[] = {
        { "", "line 1: the text ends: a profile begins with" },
        { "kvmem profile 2", "line 1: '2': a profile begins" },
        { "kvmem profile 1\nshape 1 1 1 1", "line 2: 'shape': here stands: model" },
        { "kvmem profile 1\nmodel xyz", "line 2: 'xyz': not a number of hexadecimal" },
        { "kvmem profile 1\nmodel 11111111111111111", "16 hexadecimal digits" },
        { "kvmem profile 1\nmodel 0\nshape 0 1 1 1", "line 3: '0': the number of layers is 1 to 4096" },
        { "kvmem profile 1\nmodel 0\nshape 1 3 2 1", "query heads are a multiple" },
        { "kvmem profile 1\nmodel 0\nshape 1 2 2.5 1", "the number of KV heads is 1 to 4096" },
        { "kvmem profile 1\nmodel 0\nshape 2 2 2 4\nlayer a 1", "line 4: the text ends: number 2 of the 2 of row a" },
        { "kvmem profile 1\nmodel 0\nshape 2 2 2 4\nlayer a 1 nan", "line 4: 'nan': number 2 of the 2 of row a" },
        { "kvmem profile 1\nmodel 0\nshape 2 2 2 4\nlayer a 1 1e39", "'1e39': number 2" },
        { "kvmem profile 1\nmodel 0\nshape 2 2 2 4\nlayer a 1 2\n3",
          "line 5: '3': a row begins with layer, kv, head or curve" },
        { "kvmem profile 1\nmodel 0\nshape 2 2 2 4\ncurve a 1001", "a curve has 1 to 1000 points" },
        { "kvmem profile 1\nmodel 0\nshape 2 2 2 4\nlayer abcdefghijklmnopqrstuvwxyz0123456 1 2",
          "at most 31 characters" },
        { "kvmem profile 1\nmodel 0\nshape 2 2 2 4\nlayer \xc3\xa4 1 2", "not a printable name" },
        { "kvmem profile 1\nmodel 0\nshape 4096 4096 4096 4\ncurve a 1000 1 2", "of row a should stand here" },
        { "kvmem profile 1\nmodel 0\nshape 1 1 1 1\nlayer a 1 layer a 2", "row a is there twice" } };
    size_t i, n;
    char cut[512];
    kvmem_profile p;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(parse(&p, bad[i].text) == KVMEM_BAD_FILE && p.error.status == KVMEM_BAD_FILE);
        if (!strstr(p.error.text, bad[i].says)) FAIL_AT("'%s' says: %s", bad[i].text, p.error.text);
        kvmem_profile_free(&p);
    }
    CHECK(kvmem_profile_parse(&p, NULL, 0, NULL) == KVMEM_BAD_ARGUMENT);
    for (n = 0; n < strlen(sample); n++) { /* every prefix, in memory of its own */
        char *own = (char *)malloc(n + 1);
        memcpy(own, sample, n);
        (void)kvmem_profile_parse(&p, own, n, NULL);
        kvmem_profile_free(&p);
        free(own);
    }
    for (i = 0; i < 20000; i++) { /* bytes changed */
        int k;
        strcpy(cut, sample);
        for (k = 0; k < 2; k++) cut[(int)(test_unit() * (double)strlen(sample))] = (char)(test_unit() * 256);
        (void)kvmem_profile_parse(&p, cut, strlen(sample), NULL);
        kvmem_profile_free(&p);
    }
}
TEST(more_than_256_rows_are_refused) {
    char *text = (char *)malloc(8000), *at;
    kvmem_profile p;
    int i;
    at = text + sprintf(text, "kvmem profile 1 model 0 shape 1 1 1 1");
    for (i = 0; i < 257; i++) at += sprintf(at, " layer r%d 0", i);
    CHECK(parse(&p, text) == KVMEM_BAD_FILE && strstr(p.error.text, "more than 256 rows"));
    kvmem_profile_free(&p);
    free(text);
}

/* ---- files, copies, other models */

#define FILE_PATH "build/profile_test.txt"
static int write_file(const char *text) {
    FILE *f = fopen(FILE_PATH, "wb");
    if (!f) return 0;
    fputs(text, f);
    return fclose(f) == 0;
}
TEST(a_cache_reads_the_file_that_its_recipe_names) {
    static const char *const recipes[] = {
        "score=recency budget=heads(all,file=" FILE_PATH ") sink=1 recent=3 when=step",
        "score=recency budget=heads(all) sink=1 recent=3 when=step profile=" FILE_PATH };
    int i;
    if (!write_file(sample)) SKIP("build/ is not there");
    for (i = 0; i < 2; i++) {
        world w; kvmem_cache c, copy; test_heap heap; kvmem_bytes b; char text[600]; bytes file = { NULL, 0, 0 };
        REQUIRE(world_init(&w, 2, 4, 2, 8, 40, recipes[i]));
        memset(&heap, 0, sizeof heap);
        w.cfg.allocator = test_allocator(&heap);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        kvmem_cache_bytes(&c, &b);
        CHECK(b.live.total == heap.live && c.arena->held_bytes > 4 * 20);
        CHECK_OK(feed(&w, &c, 0, 20, 20, KVMEM_PROMPT_END, NULL));
        CHECK(kvmem_cache_lane_len(&c, 0, 0) == 20 && kvmem_cache_lane_len(&c, 0, 1) == 4); /* .9 .2 */
        CHECK(kvmem_cache_lane_len(&c, 1, 0) == 20 && kvmem_cache_lane_len(&c, 1, 1) == 4); /* .6 .4 */
        CHECK_OK(kvmem_cache_copy(&copy, &c));
        CHECK_OK(kvmem_cache_save(&c, bytes_write, &file));
        kvmem_cache_free(&c); /* the copy has the profile still */
        CHECK_OK(feed(&w, &copy, 20, 30, 1, KVMEM_DECODE, NULL));
        CHECK(kvmem_cache_lane_len(&copy, 0, 0) == 30 && kvmem_cache_lane_len(&copy, 0, 1) == 4);
        CHECK_OK(kvmem_cache_load(&copy, file.p, file.n));
        kvmem_recipe_print(&w.recipe, text, sizeof text);
        CHECK(strstr(text, i ? " profile=" FILE_PATH : "file=" FILE_PATH) != NULL);
        kvmem_cache_free(&copy);
        CHECK(heap.live == 0 && !heap.wrong);
        free(file.p); world_free(&w);
    }
    remove(FILE_PATH);
}
static void refuse(const char *recipe, const char *text, uint64_t id, kvmem_status want, const char *says) {
    world w; kvmem_cache c;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 2, recipe));
    if (text) REQUIRE(write_file(text));
    w.cfg.model_id = id;
    CHECK(kvmem_cache_init(&c, &w.cfg) == want);
    if (!strstr(c.error.text, says)) FAIL_AT("%s says: %s", recipe, c.error.text);
    kvmem_cache_free(&c);
    world_free(&w);
}
TEST(a_recipe_taken_from_a_cache_outlives_it) {
    world w; kvmem_cache c, d; kvmem_recipe r;
    if (!write_file(sample)) SKIP("build/ is not there");
    REQUIRE(world_init(&w, 2, 4, 2, 8, 40, "budget=heads(all) sink=1 recent=3 profile=" FILE_PATH));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    r = c.recipe;
    kvmem_cache_free(&c);
    w.cfg.recipe = &r;
    CHECK_OK(kvmem_cache_init(&d, &w.cfg));
    CHECK_OK(feed(&w, &d, 0, 20, 20, KVMEM_PROMPT_END, NULL));
    CHECK(kvmem_cache_lane_len(&d, 0, 0) == 20 && kvmem_cache_lane_len(&d, 0, 1) == 4);
    kvmem_cache_free(&d);
    world_free(&w);
    remove(FILE_PATH);
}
TEST(uneven_heads_stay_under_a_byte_limit) {
    static const char *const recipes[] = {
        "duo budget=64KiB sink=4 recent=16 page=8", "headkv budget=64KiB recent=8 page=8",
        "compresskv budget=64KiB recent=8 page=8 when=every(5)", "evobudget budget=64KiB recent=8 page=8 when=block" };
    size_t i;
    for (i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        world w; kvmem_cache c; profiled f; kvmem_bytes b;
        profiled_make(&f, 2, 4, 2, 8);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 600, recipes[i]));
        profiled_give(&w.recipe, &f);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 400, 32, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 400, 600, 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &b);
        CHECK(b.peak.total <= 64 << 10 && b.entries > 100);
        kvmem_cache_free(&c); world_free(&w); profiled_free(&f);
    }
}
TEST(a_profile_of_another_model_is_refused) {
    const char *const heads = "budget=heads(all,file=" FILE_PATH ")";
    if (!write_file(sample)) SKIP("build/ is not there");
    refuse(heads, sample, 7, KVMEM_MISMATCH, "of another model of the same shape");
    refuse(heads, "kvmem profile 1 model 0 shape 2 4 2 9", 7, KVMEM_MISMATCH, 
           "the profile is of a model with 2 layers, 4 heads");
    refuse(heads, "kvmem profile 1 model 0 shape 2 4 2 8", 7, KVMEM_MISMATCH, "heads: the profile has no row duo");
    refuse(heads, "kvmem profile 9", 7, KVMEM_BAD_FILE, "line 1: '9'");
    refuse("budget=headkv(9,file=" FILE_PATH ",row=echo)", sample, 0, KVMEM_MISMATCH, "no row echo");
    remove(FILE_PATH);
    refuse(heads, NULL, 0, KVMEM_IO, "cannot be opened");
    refuse("budget=heads(all,file=/)", NULL, 0, KVMEM_IO, "profile /: ");
    refuse("duo", NULL, 0, KVMEM_BAD_RECIPE, "budget=heads goes by a profile of the model: make one by `./kvmem ");
    refuse("compresskv", NULL, 0, KVMEM_BAD_RECIPE, "score=compresskv goes by a profile");
}
TEST(a_profile_that_nothing_reads_is_an_error) {
    kvmem_recipe r;
    kvmem_error e;
    CHECK(kvmem_recipe_parse(&r, "snapkv profile=x", &e) == KVMEM_BAD_RECIPE && strstr(e.text, "no stage"));
    CHECK(kvmem_recipe_parse(&r, "duo profile=", &e) == KVMEM_BAD_RECIPE && strstr(e.text, "profile has no value"));
    CHECK_OK(kvmem_recipe_parse(&r, "duo profile=a/b.profile", &e));
    CHECK(!strcmp(r.profile, "a/b.profile") && !kvmem__needs_profile(&r));
    CHECK_OK(kvmem_recipe_parse(&r, "duo", &e));
    CHECK(kvmem__needs_profile(&r));
    CHECK_OK(kvmem_recipe_parse(&r, "duo budget=heads(25%,file=x,sparsity=0.25)", &e));
    CHECK(!kvmem__needs_profile(&r) && r.amount.kind == KVMEM_SHARE);
}
TEST(memory_that_fails_leaks_nothing) {
    size_t k;
    kvmem_status st = KVMEM_NO_MEMORY;
    if (!write_file(sample)) SKIP("build/ is not there");
    for (k = 1; st != KVMEM_OK && k < 100; k++) {
        world w; kvmem_cache c; test_heap h;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 2, "budget=heads(all,file=" FILE_PATH ")"));
        memset(&h, 0, sizeof h);
        h.fail_at = k;
        w.cfg.allocator = test_allocator(&h);
        st = kvmem_cache_init(&c, &w.cfg);
        CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY);
        kvmem_cache_free(&c);
        CHECK(!h.live && !h.wrong);
        world_free(&w);
    }
    CHECK(st == KVMEM_OK && k > 5);
    remove(FILE_PATH);
}
TEST(a_profile_counts_against_the_byte_limit) {
    world w; kvmem_cache c; kvmem_bytes b; int cap;
    profiled f; char *text; size_t n; FILE *out;
    profiled_make(&f, 2, 4, 2, 8);
    n = kvmem_profile_print(&f.p, NULL, 0);
    text = (char *)malloc(n + 1);
    kvmem_profile_print(&f.p, text, n + 1);
    out = fopen(FILE_PATH, "wb");
    if (!out) { free(text); profiled_free(&f); SKIP("build/ is not there"); }
    fputs(text, out);
    fclose(out);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 600, "budget=lukv(64KiB) page=8"));
    w.recipe.stage[KVMEM_BUDGET].user = &f.p;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    cap = c.lane_cap;
    kvmem_cache_free(&c);
    world_free(&w);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 600, "budget=lukv(64KiB) page=8 profile=" FILE_PATH));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(c.lane_cap <= cap);
    CHECK_OK(feed(&w, &c, 0, 600, 32, KVMEM_PROMPT_END, NULL));
    kvmem_cache_bytes(&c, &b);
    CHECK(b.peak.total <= 64 << 10 && b.entries > 100);
    kvmem_cache_free(&c);
    world_free(&w); free(text); profiled_free(&f);
    remove(FILE_PATH);
}

/* ---- budgets */

/* Ask a budget directly: keep (L, G) for a cache that has seen `seen` tokens. */
static int ask(const char *recipe, profiled *f, int seen, int *keep) {
    world w; kvmem_cache c; kvmem_view v;
    int l, mean;
    kvmem_status st = KVMEM_OK;
    if (!world_init(&w, f->p.n_layers, f->p.n_heads, f->p.n_kv_heads, f->p.head_dim, 1, recipe)) return 0;
    profiled_give(&w.recipe, f);
    if (kvmem_cache_init(&c, &w.cfg)) { FAIL_AT("%s: %s", recipe, c.error.text); world_free(&w); return 0; }
    c.tokens = seen;
    mean = kvmem__mean_budget(&c);
    for (l = 0; l < f->p.n_layers && st == KVMEM_OK; l++) {
        const kvmem_budget_entry *e = (const kvmem_budget_entry *)(const void *)c.recipe.stage[KVMEM_BUDGET].entry;
        v = kvmem__view_of(&c, l, KVMEM_BUDGET);
        st = e->fn(&v, mean, NULL, NULL, keep + l * f->p.n_kv_heads);
        kvmem__view_scratch_end(&c);
    }
    if (st) FAIL_AT("%s: %s", recipe, c.error.text);
    c.tokens = 0;
    kvmem_cache_free(&c);
    world_free(&w);
    return st == KVMEM_OK;
}
static void set_row(profiled *f, const char *name, const float *x, int n) {
    const kvmem_profile_row *r = kvmem_profile_find(&f->p, name);
    memcpy(f->value + (r->value - f->value), x, (size_t)n * sizeof *x);
}
static int is(const int *keep, int n, int a, int b, int c, int d) {
    const int want[4] = { a, b, c, d };
    return !memcmp(keep, want, (size_t)n * sizeof *keep);
}
TEST(heads_above_the_quantile_keep_everything) { /* alpha = .9 .2 .6 .4, sparsity .5 */
    const float alpha[4] = { .9f, .2f, .6f, .4f }, one[4] = { 1, 1, 1, 1 };
    profiled f;
    int k[4];
    profiled_make(&f, 1, 8, 4, 8);
    set_row(&f, "duo", alpha, 4);
    REQUIRE(ask("budget=heads(all,sparsity=0.5) sink=2 recent=5", &f, 100, k));
    CHECK(k[0] >= 100 && k[1] == 7 && k[2] >= 100 && k[3] == 7);
    REQUIRE(ask("budget=heads(all,sparsity=0) sink=2 recent=5", &f, 100, k));
    CHECK(k[0] >= 100 && k[1] >= 100 && k[2] >= 100 && k[3] >= 100);
    REQUIRE(ask("budget=heads(all,sparsity=1) sink=2 recent=5", &f, 100, k));
    CHECK(is(k, 4, 7, 7, 7, 7));
    REQUIRE(ask("budget=heads(all,threshold=0.3) sink=2 recent=5", &f, 100, k));
    CHECK(k[0] >= 100 && k[1] == 7 && k[2] >= 100 && k[3] >= 100);
    REQUIRE(ask("budget=heads(40,sparsity=0.5) sink=2 recent=5", &f, 100, k)); /* 160 in all, 14 to the streams */
    CHECK(is(k, 4, 73, 7, 73, 7));
    REQUIRE(ask("budget=heads(60,sparsity=0.5) sink=2 recent=5", &f, 100, k)); /* more than both can fill */
    CHECK(k[0] >= 100 && k[1] == 20 && k[2] >= 100 && k[3] == 20);
    REQUIRE(ask("budget=heads(100%) sink=2 recent=5", &f, 100, k));
    CHECK(k[0] >= 100 && k[1] == 100 && k[2] >= 100 && k[3] == 100);
    REQUIRE(ask("budget=heads(7,sparsity=0.5) sink=2 recent=5", &f, 100, k));
    CHECK(is(k, 4, 7, 7, 7, 7));
    REQUIRE(ask("budget=heads(all,least=20,share=0.3) sink=2 recent=5", &f, 100, k));
    CHECK(k[1] == 32 && k[3] == 32); /* 2 + 30 newest */
    REQUIRE(ask("budget=heads(all,least=20,share=0.3) sink=2 recent=5", &f, 40, k));
    CHECK(k[1] == 22 && k[3] == 22);
    set_row(&f, "duo", one, 4); /* every gate open: full attention */
    REQUIRE(ask("budget=heads(all,threshold=0.5) sink=2 recent=5", &f, 100, k));
    CHECK(k[0] >= 100 && k[1] >= 100 && k[2] >= 100 && k[3] >= 100);
    profiled_free(&f);
}
TEST(what_covers_the_text_is_bit_identical_to_full) {
    static const char *const recipes[] = { "full", "duo sink=40 recent=60",
        "rlkv budget=heads(all,row=rlkv,sparsity=0)",
        "duo budget=heads(all,threshold=0.5) sink=1 recent=1", "razor", "lukv budget=100%", "headkv budget=120",
        "razor budget=heads(100%,row=induction,sparsity=0.9) sink=1" };
    float *want = NULL;
    size_t i;
    for (i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        world w; kvmem_cache c; profiled f; float *out;
        const float open[4] = { 1, 1, 1, 1 };
        unsigned long long state = test_state;
        profiled_make(&f, 2, 4, 2, 8);
        if (i == 3) set_row(&f, "duo", open, 4); /* every gate is open */
        test_state = 5;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 100, recipes[i]));
        test_state = state;
        profiled_give(&w.recipe, &f);
        out = outs(&w, 100);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 80, 32, KVMEM_PROMPT_END, out));
        CHECK_OK(feed(&w, &c, 80, 100, 1, KVMEM_DECODE, out + 80 * 64));
        if (want && !same_out(&w, out, want, 100)) FAIL_AT("%s is not full", recipes[i]);
        kvmem_cache_free(&c); world_free(&w); profiled_free(&f);
        if (!want) want = out;
        else free(out);
    }
    free(want);
}
TEST(razor_unites_the_leaders_of_two_rows) {
    const float induction[4] = { .1f, .9f, .2f, .3f }, echo[4] = { .5f, .1f, .2f, .7f };
    profiled f;
    int k[4];
    profiled_make(&f, 2, 2, 2, 8);
    set_row(&f, "induction", induction, 4);
    set_row(&f, "echo", echo, 4);
    REQUIRE(ask("budget=heads(all,row=induction,sparsity=0.75,echo=0.25) sink=1 recent=1", &f, 50, k));
    CHECK(k[0] == 2 && k[1] >= 50 && k[2] == 2 && k[3] >= 50);
    REQUIRE(ask("razor", &f, 50000, k)); /* 4 sinks and max(4000, n / 5): round(.14 * 4) = 1 full head, no echo */
    CHECK(k[0] == 10004 && k[1] >= 50000 && k[2] == 10004 && k[3] == 10004);
    REQUIRE(ask("razor", &f, 5000, k));
    CHECK(k[0] == 4004);
    profiled_free(&f);
}
TEST(heads_of_a_group_count_by_their_highest) {
    const float x[8] = { 0, .9f, 0, 0, .3f, 0, 0, .1f };
    profiled f;
    int k[4];
    profiled_make(&f, 2, 4, 2, 8);
    set_row(&f, "retrieval", x, 8);
    REQUIRE(ask("budget=heads(all,row=retrieval,threshold=0.1) sink=1 recent=1", &f, 50, k)); /* above, so not 0.1 */
    CHECK(k[0] >= 50 && k[1] == 2 && k[2] >= 50 && k[3] == 2);
    profiled_free(&f);
}
TEST(headkv_shares_the_pool_by_score) {
    const float x[4] = { .4f, .3f, .2f, .1f }, even[4] = { 1, 1, 1, 1 }, none[4] = { 0, 0, 0, 0 };
    const float sharp[4] = { 1, 0, 0, 0 };
    profiled f;
    int k[4], i, trial;
    profiled_make(&f, 1, 4, 4, 8);
    set_row(&f, "retrieval", x, 4);
    REQUIRE(ask("budget=headkv(101)", &f, 1000, k));
    CHECK(is(k, 4, 161, 121, 81, 41));
    REQUIRE(ask("budget=headkv(109) recent=8", &f, 1000, k));
    CHECK(is(k, 4, 169, 129, 89, 49));
    REQUIRE(ask("budget=headkv(101,exact=0)", &f, 1000, k));
    CHECK(is(k, 4, 161, 121, 81, 41));
    set_row(&f, "retrieval", even, 4);
    REQUIRE(ask("budget=headkv(77)", &f, 1000, k));
    CHECK(is(k, 4, 77, 77, 77, 77));
    set_row(&f, "retrieval", none, 4);
    REQUIRE(ask("budget=headkv(77)", &f, 1000, k));
    CHECK(is(k, 4, 77, 77, 77, 77));
    set_row(&f, "retrieval", sharp, 4); /* 100 are seen, the head would have 305 of 404: the rest goes on */
    REQUIRE(ask("budget=headkv(90)", &f, 100, k));
    CHECK(k[0] == 100 && k[1] + k[2] + k[3] == 260);
    profiled_free(&f);
    for (trial = 0; trial < 200; trial++) { /* the sum is exact, nobody has more than was seen */
        const int L = 1 + (int)(test_unit() * 4), G = 1 + (int)(test_unit() * 4), r = 1 + (int)(test_unit() * 3);
        const int seen = 20 + (int)(test_unit() * 200), mean = 5 + (int)(test_unit() * (seen - 5));
        int keep[64], sum = 0;
        char text[80];
        profiled_make(&f, L, G * r, G, 8);
        for (i = 0; i < L * G * r; i++)
            f.value[kvmem_profile_find(&f.p, "retrieval")->value - f.value + i] = (float)pow(test_unit(), 8);
        sprintf(text, "budget=headkv(%d,beta=%d) sink=1 recent=3", mean, 1 + trial % 3);
        if (!ask(text, &f, seen, keep)) return;
        for (i = 0; i < L * G; i++) { sum += keep[i]; CHECK(keep[i] >= 4 && keep[i] <= KVMEM__MAX(seen, mean)); }
        if (sum != L * G * mean) FAIL_AT("%s, %d lanes, %d seen: %d", text, L * G, seen, sum);
        profiled_free(&f);
    }
}
TEST(layers_whose_keys_change_get_more) { /* sim = 1 .75 .5, power 1, cap 100 */
    const float sim[3] = { 1, .75f, .5f }, same[3] = { .3f, .3f, .3f };
    profiled f;
    int k[3], trial, i;
    profiled_make(&f, 3, 2, 1, 8);
    set_row(&f, "keysim", sim, 3);
    REQUIRE(ask("budget=layers(100,power=1,exact=0)", &f, 1000, k));
    CHECK(k[0] == 25 && k[1] == 100 && k[2] == 200);
    REQUIRE(ask("budget=layers(100,power=1)", &f, 1000, k));
    CHECK(k[0] == 25 && k[1] == 100 && k[2] == 175);
    REQUIRE(ask("budget=layers(100,power=0)", &f, 1000, k));
    CHECK(k[0] == 100 && k[1] == 100 && k[2] == 100);
    set_row(&f, "keysim", same, 3);
    REQUIRE(ask("budget=layers(100)", &f, 1000, k));
    CHECK(k[0] == 100 && k[1] == 100 && k[2] == 100);
    profiled_free(&f);
    for (trial = 0; trial < 300; trial++) { /* exact total, floors, monotone */
        const int L = 1 + (int)(test_unit() * 12), cap = 1 + (int)(test_unit() * 60);
        float x[12];
        double raw[12];
        int b[12], sum = 0, j;
        for (i = 0; i < L; i++) x[i] = (float)test_unit();
        kvmem__layers_epicache(x, L, cap, test_unit() * 4, 4, 1, raw, b);
        for (i = 0; i < L; i++) {
            sum += b[i];
            CHECK(b[i] >= KVMEM__MAX(1, cap / 4));
            for (j = 0; j < L; j++) CHECK(!(x[i] < x[j]) || b[i] >= b[j] - 1); /* equal shares may differ by rounding */
        }
        if (sum != L * cap) { FAIL_AT("L %d cap %d: %d", L, cap, sum); return; }
    }
}
TEST(error_aware_budgets_are_exact) { /* L=4 cap=64 imp=.1 .2 .3 .4 */
    const float imp[4] = { 1, 2, 3, 4 };
    profiled f;
    int k[4], trial, i;
    profiled_make(&f, 4, 2, 1, 8);
    set_row(&f, "error", imp, 4);
    REQUIRE(ask("budget=layers(64,row=error)", &f, 1000, k));
    CHECK(is(k, 4, 45, 58, 70, 83));
    REQUIRE(ask("budget=layers(20,row=error)", &f, 1000, k)); /* lo is cut to the mean */
    CHECK(is(k, 4, 20, 20, 20, 20));
    profiled_free(&f);
    for (trial = 0; trial < 500; trial++) {
        const int L = 1 + (int)(test_unit() * 12), cap = 32 + (int)(test_unit() * 100), lo = 32, hi = 3 * cap;
        double x[12], sum = 0;
        int order[12], b[12], total = 0;
        for (i = 0; i < L; i++) { x[i] = pow(test_unit(), 6); sum += x[i]; }
        for (i = 0; i < L; i++) x[i] /= sum;
        kvmem__layers_error(x, L, cap, lo, hi, order, b);
        for (i = 0; i < L; i++) { total += b[i]; CHECK(b[i] >= lo && b[i] <= hi); }
        CHECK(total == L * cap);
    }
    CHECK(kvmem__round_even(2.5) == 2 && kvmem__round_even(3.5) == 4 && kvmem__round_even(2.51) == 3 &&
          kvmem__round_even(-0.5) == 0);
}
TEST(evolved_budgets_scale_to_any_mean) {
    const float evo[4] = { 64, 16, 32, 16 };
    profiled f;
    int k[4];
    profiled_make(&f, 4, 2, 1, 8);
    set_row(&f, "evo", evo, 4);
    REQUIRE(ask("budget=layers(32,row=evo)", &f, 1000, k));
    CHECK(is(k, 4, 64, 16, 32, 16));
    REQUIRE(ask("budget=layers(50,row=evo)", &f, 1000, k));
    CHECK(is(k, 4, 100, 25, 50, 25));
    REQUIRE(ask("budget=layers(50,row=evo)", &f, 70, k)); /* what one layer cannot hold goes to the others */
    CHECK(k[0] == 70 && k[0] + k[1] + k[2] + k[3] == 200);
    profiled_free(&f);
}
TEST(lukv_keeps_what_the_curves_say) { /* n=8, prune .25 .4375 .6875 */
    const float x[3] = { .25f, .4375f, .6875f };
    profiled f;
    float flat[27];
    int k[3], i, n;
    profiled_make(&f, 1, 3, 3, 8);
    for (i = 0; i < 27; i++) flat[i] = x[i % 3];
    set_row(&f, "lukv", flat, 27);
    REQUIRE(ask("budget=lukv(4)", &f, 8, k));
    CHECK(k[0] == 6 && k[1] == 5 && k[2] == 2);
    for (i = 0; i < 27; i++) flat[i] = (float)(i / 3 + 1) / 10; /* flat curves: the mean for everyone */
    set_row(&f, "lukv", flat, 27);
    for (n = 10; n < 300; n += 7) {
        REQUIRE(ask("budget=lukv(10%)", &f, n, k));
        CHECK(abs(k[0] - (int)floor(n * .1 + .5)) <= 1 && k[0] - k[2] <= 1 && k[0] >= k[2]);
    }
    REQUIRE(ask("budget=lukv(25,exact=1)", &f, 100, k)); /* 75 % pruned: the point for 80 % */
    CHECK(k[0] == 20 && k[1] == 20 && k[2] == 20);
    REQUIRE(ask("budget=lukv(27,exact=0)", &f, 100, k)); /* 73 %: nearest is 70 % */
    CHECK(k[0] == 30 && k[1] == 30 && k[2] == 30);
    profiled_free(&f);
}

/* ---- compresskv's vote */

TEST(compresskv_lets_the_chosen_heads_vote_for_the_layer) {
    enum { n = 60, w = 6 };
    const float sem[8] = { 0, 3, 1, 2, .1f, .9f, .8f, .2f }; /* heads 1, 3 of layer 0; 1, 2 of layer 1 */
    world wd; kvmem_cache c; profiled f;
    int l, g, t, i, j;
    profiled_make(&f, 2, 4, 2, 8);
    set_row(&f, "semantic", sem, 8);
    REQUIRE(world_init(&wd, 2, 4, 2, 8, n, "score=compresskv(window=6,kernel=3,heads=2) budget=1000"));
    profiled_give(&wd.recipe, &f);
    wd.cfg.shape.rope = wd.rope;
    REQUIRE_OK(kvmem_cache_init(&c, &wd.cfg));
    REQUIRE_OK(feed(&wd, &c, 0, n, 25, KVMEM_PROMPT_END, NULL));
    for (l = 0; l < 2; l++) {
        static const int chosen[2][2] = { { 1, 3 }, { 1, 2 } };
        double a[n], want;
        float score[n], first[n];
        memset(a, 0, sizeof a);
        for (j = 0; j < 2; j++)
            for (i = n - w; i < n; i++) {
                const int h = chosen[l][j], gg = h / 2;
                double z[n], q[8], k[8], m = -1e300, sum = 0;
                int ch;
                for (ch = 0; ch < 8; ch++) q[ch] = (double)row_q(&wd, i, l)[h * 8 + ch];
                turn(q, 8, &wd.rope[l], i);
                for (t = 0; t <= i; t++) {
                    for (ch = 0; ch < 8; ch++) k[ch] = (double)row_k(&wd, wd.k, t, l)[gg * 8 + ch];
                    turn(k, 8, &wd.rope[l], t);
                    for (z[t] = 0, ch = 0; ch < 8; ch++) z[t] += q[ch] * k[ch] / sqrt(8.0);
                    if (z[t] > m) m = z[t];
                }
                for (t = 0; t <= i; t++) sum += exp(z[t] - m);
                for (t = 0; t <= i; t++) a[t] += exp(z[t] - m) / sum / 2;
            }
        for (g = 0; g < 2; g++) {
            REQUIRE_OK(kvmem__score_lane(&c, l, g, score));
            for (t = 0; t < n - w; t++) {
                want = (t ? a[t - 1] : 0) / 3 + a[t] / 3 + (t + 1 < n - w ? a[t + 1] : 0) / 3;
                CHECK_NEAR(score[t], want, 2e-5);
            }
            for (t = n - w; t < n; t++) CHECK(score[t] > (float)w && (t == n - w || score[t] > score[t - 1]));
            if (!g) memcpy(first, score, sizeof first);
        }
        CHECK(!memcmp(first, score, sizeof first)); /* one set for the layer */
    }
    kvmem_cache_free(&c); world_free(&wd); profiled_free(&f);
}
TEST(compresskv_keeps_one_set_for_a_layer_and_takes_any_shape) {
    static const int shapes[][3] = { { 1, 1, 1 }, { 4, 4, 2 }, { 6, 1, 2 }, { 4, 2, 3 } };
    size_t s;
    for (s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        world w; kvmem_cache c; profiled f; int32_t a[64], b[64];
        const int H = shapes[s][0], G = shapes[s][1], L = shapes[s][2];
        int l, g;
        profiled_make(&f, L, H, G, 8);
        REQUIRE(world_init(&w, L, H, G, 8, 80, "compresskv budget=12 recent=8"));
        profiled_give(&w.recipe, &f);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 60, 60, KVMEM_PROMPT_END, NULL));
        for (l = 0; l < L; l++)
            for (g = 1; g < G; g++) {
                const int n = kvmem_cache_lane_len(&c, l, 0);
                REQUIRE(n == kvmem_cache_lane_len(&c, l, g) && n < 60);
                kvmem_cache_read(&c, l, 0, 0, n, NULL, NULL, a);
                kvmem_cache_read(&c, l, g, 0, n, NULL, NULL, b);
                CHECK(!memcmp(a, b, (size_t)n * sizeof *a));
            }
        kvmem_cache_free(&c);
        world_free(&w); profiled_free(&f);
    }
}
TEST(lanes_that_hold_different_entries_vote_by_position) {
    const float x[8] = { .9f, .8f, 0, .1f, .2f, .7f, .1f, 0 };
    world w; kvmem_cache c; profiled f; int i;
    profiled_make(&f, 2, 4, 2, 8);
    set_row(&f, "retrieval", x, 8);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 120, "score=compresskv(window=4) budget=headkv(16) recent=4 when=every(9)"));
    profiled_give(&w.recipe, &f);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 60, 60, KVMEM_PROMPT_END, NULL));
    for (i = 60; i < 120; i++) CHECK_OK(feed(&w, &c, i, i + 1, 1, KVMEM_DECODE, NULL));
    CHECK(kvmem_cache_lane_len(&c, 0, 0) != kvmem_cache_lane_len(&c, 0, 1));
    kvmem_cache_free(&c); world_free(&w); profiled_free(&f);
}
TEST(a_stream_keeps_to_sinks_and_recent_after_every_step) {
    world w; kvmem_cache c; profiled f; int i, l, g;
    profiled_make(&f, 2, 4, 2, 8);
    REQUIRE(world_init(&w, 2, 4, 2, 8, 100, "duo sink=4 recent=6"));
    profiled_give(&w.recipe, &f);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 50, 50, KVMEM_PROMPT_END, NULL));
    for (i = 50; i < 100; i++) {
        int full = 0, streams = 0;
        CHECK_OK(feed(&w, &c, i, i + 1, 1, KVMEM_DECODE, NULL));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                full += kvmem_cache_lane_len(&c, l, g) == i + 1;
                streams += kvmem_cache_lane_len(&c, l, g) == 10;
            }
        CHECK(full == 2 && streams == 2);
    }
    kvmem_cache_free(&c); world_free(&w); profiled_free(&f);
}

/* ---- evolution (tools/evolve.h) */

typedef struct convex { double a[6]; int n, total, bad, lo, hi; double last; int rose; } convex;
static double convex_fitness(void *user, const int *b, int stage, int generation) {
    convex *c = (convex *)user;
    double f = 0;
    int i, sum = 0;
    (void)stage;
    (void)generation;
    for (i = 0; i < c->n; i++) {
        sum += b[i];
        c->bad |= b[i] < c->lo || b[i] > c->hi;
        f += c->a[i] / b[i];
    }
    c->bad |= sum != c->total;
    return f;
}
static void convex_tell(void *user, int generation, double best) {
    convex *c = (convex *)user;
    c->rose |= generation > 0 && best > c->last;
    c->last = best;
}
/* The least of sum a_i / b_i over b in [lo, hi] with that sum, by dynamic programming over units of step. */
static double convex_best(const convex *c, int step) {
    double best[200], next[200];
    const int units = c->total / step;
    int i, u, b;
    for (u = 0; u <= units; u++) best[u] = u ? 1e300 : 0;
    for (i = 0; i < c->n; i++) {
        for (u = 0; u <= units; u++) next[u] = 1e300;
        for (u = 0; u <= units; u++)
            for (b = c->lo; b <= c->hi && u + b / step <= units; b += step)
                if (best[u] + c->a[i] / b < next[u + b / step]) next[u + b / step] = best[u] + c->a[i] / b;
        memcpy(best, next, sizeof best);
    }
    return best[units];
}
TEST(evolution_reaches_the_optimum_of_a_separable_loss) {
    int trial, i;
    for (trial = 0; trial < 20; trial++) {
        convex c;
        evolve_job j;
        int b[6], again[6], child[17 * 6];
        memset(&c, 0, sizeof c);
        memset(&j, 0, sizeof j);
        c.n = 2 + trial % 5; c.lo = 4; c.hi = 64; c.total = 24 * c.n;
        for (i = 0; i < c.n; i++) { c.a[i] = pow(test_unit(), 3) * 10; b[i] = 24; }
        j.n = c.n; j.b = b; j.step = 4; j.lo = c.lo; j.hi = c.hi; j.lambda = 16; j.survivors = 4; j.generations = 60;
        j.seed = (uint64_t)trial; j.fitness = convex_fitness; j.tell = convex_tell; j.user = &c;
        evolve(&j, child);
        CHECK(!c.bad && !c.rose); /* the sum is kept, limits hold, on one sample the best never gets worse */
        CHECK_NEAR(convex_fitness(&c, b, 0, 0), convex_best(&c, 4), 1e-9);
        for (i = 0; i < c.n; i++) again[i] = 24;
        j.b = again;
        evolve(&j, child);
        CHECK(!memcmp(b, again, (size_t)c.n * sizeof *b)); /* same seed, same result */
    }
}
TEST(evolution_of_what_cannot_move_ends) {
    convex c;
    evolve_job j;
    int b[1] = { 8 }, child[17];
    memset(&c, 0, sizeof c);
    memset(&j, 0, sizeof j);
    c.n = 1; c.lo = 1; c.hi = 9; c.total = 8; c.a[0] = 1;
    j.n = 1; j.b = b; j.step = 1; j.lo = 1; j.hi = 9; j.lambda = 16; j.survivors = 4; j.generations = 3;
    j.fitness = convex_fitness; j.user = &c;
    evolve(&j, child);
    CHECK(b[0] == 8 && !c.bad);
}

/* ---- what is added up (tools/sums.h) */

TEST(echo_and_induction_are_1_for_heads_that_do_nothing_else) { /* P[u][u - Lr + 1] = 1, P[u][u - Lr] = 1 */
    enum { Lr = 7, n = 4 * Lr };
    float row[n + 2];
    double echo[3] = { 0, 0, 0 }, induction[3] = { 0, 0, 0 };
    int u;
    for (u = Lr; u < n; u++) {
        memset(row, 0, sizeof row);
        row[1 + u - Lr + 1] = 1;
        sums_repeat(row, u, Lr, &echo[0], &induction[0]);
        memset(row, 0, sizeof row);
        row[1 + u - Lr] = 1;
        sums_repeat(row, u, Lr, &echo[1], &induction[1]);
        memset(row, 0, sizeof row);
        row[0] = 1; /* all on the begin token */
        sums_repeat(row, u, Lr, &echo[2], &induction[2]);
    }
    CHECK(echo[0] == 0 && induction[0] == n - Lr && echo[1] == n - Lr && induction[1] == 0);
    CHECK(echo[2] == 0 && induction[2] == 0);
}
TEST(three_hits_of_a_needle_of_four_score_three_quarters) {
    const int id[10] = { 1, 2, 50, 51, 52, 53, 3, 4, 52, 5 };
    float row[10];
    double r = 0, s = 0;
    int i;
    for (i = 0; i < 4; i++) {
        memset(row, 0, sizeof row);
        row[i < 3 ? 2 + i : 8] = .6f; /* the last step looks at a token outside of the needle */
        row[0] = .4f;
        sums_needle(row, 10, id, 2, 6, 50 + i, &r, &s);
    }
    CHECK_NEAR(r, .75, 1e-12);
    CHECK_NEAR(s, 1.8, 1e-6); /* the whole needle's mass, once for each matching entry */
    r = s = 0;
    memset(row, 0, sizeof row);
    row[3] = 1; /* inside, but another token than the one given: only the mass counts */
    sums_needle(row, 10, id, 2, 6, 52, &r, &s);
    CHECK(r == 0 && s == 1);
    sums_needle(row, 10, id, 2, 6, 99, &r, &s); /* not a token of the needle */
    CHECK(r == 0 && s == 1);
}
TEST(a_flat_softmax_is_half_far) {
    double s[500];
    int i;
    for (i = 0; i < 500; i++) s[i] = 3;
    CHECK_NEAR(sums_far(s, 500), 0.501, 1e-9);
    s[0] = 300;
    CHECK_NEAR(sums_far(s, 500), 1, 1e-9);
    s[0] = 3;
    s[499] = 300;
    CHECK_NEAR(sums_far(s, 500), 0.002, 1e-9);
}
TEST(order_puts_sinks_and_the_last_first) {
    const float x[6] = { 0, 5, 1, 9, 9, 2 };
    int idx[6];
    sums_order(x, 6, 1, idx);
    CHECK(idx[0] == 5 && idx[1] == 0 && idx[2] == 3 && idx[3] == 4 && idx[4] == 1 && idx[5] == 2);
}
TEST(greedy_on_concave_utilities_equals_brute_force) { /* 3 heads, 5 entries each */
    int trial, i, t, a, b, total;
    for (trial = 0; trial < 200; trial++) {
        float slope[3][5];
        const float *list[3];
        double top[3][6], u[5], sum[6];
        int idx[5], at[6], from[3] = { 0, 0, 0 }, to[3] = { 5, 5, 5 }, lo[3] = { 1, 1, 1 }, count[3];
        for (i = 0; i < 3; i++) {
            for (t = 0; t < 5; t++) { idx[t] = t; u[t] = test_unit(); }
            sums_hull(u, idx, 5, sum, at, slope[i]);
            list[i] = slope[i];
            for (t = 1; t < 5; t++) CHECK(slope[i][t] <= slope[i][t - 1] + 1e-6f);
            for (top[i][0] = 0, t = 0; t < 5; t++) top[i][t + 1] = top[i][t] + (double)slope[i][t];
            for (t = 1; t <= 5; t++) CHECK(top[i][t] >= sum[t] - 1e-5); /* the hull lies above */
            CHECK_NEAR(top[i][5], sum[5], 1e-5);
        }
        for (total = 3; total <= 15; total++) {
            double best = -1;
            kvmem__global_top(list, from, to, lo, 3, total, count);
            for (a = 1; a <= 5; a++)
                for (b = 1; b <= 5; b++)
                    if (total - a - b >= 1 && total - a - b <= 5)
                        best = KVMEM__MAX(best, top[0][a] + top[1][b] + top[2][total - a - b]);
            CHECK(count[0] + count[1] + count[2] == total);
            CHECK_NEAR(top[0][count[0]] + top[1][count[1]] + top[2][count[2]], best, 1e-5);
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "profile");
    RUN(echo_and_induction_are_1_for_heads_that_do_nothing_else);
    RUN(three_hits_of_a_needle_of_four_score_three_quarters);
    RUN(a_flat_softmax_is_half_far);
    RUN(order_puts_sinks_and_the_last_first);
    RUN(greedy_on_concave_utilities_equals_brute_force);
    RUN(evolution_reaches_the_optimum_of_a_separable_loss);
    RUN(evolution_of_what_cannot_move_ends);
    RUN(text_becomes_numbers);
    RUN(what_is_printed_parses_to_the_same_numbers);
    RUN(errors_name_line_and_reason);
    RUN(more_than_256_rows_are_refused);
    RUN(a_cache_reads_the_file_that_its_recipe_names);
    RUN(a_recipe_taken_from_a_cache_outlives_it);
    RUN(uneven_heads_stay_under_a_byte_limit);
    RUN(a_profile_of_another_model_is_refused);
    RUN(a_profile_that_nothing_reads_is_an_error);
    RUN(memory_that_fails_leaks_nothing);
    RUN(a_profile_counts_against_the_byte_limit);
    RUN(heads_above_the_quantile_keep_everything);
    RUN(what_covers_the_text_is_bit_identical_to_full);
    RUN(razor_unites_the_leaders_of_two_rows);
    RUN(heads_of_a_group_count_by_their_highest);
    RUN(headkv_shares_the_pool_by_score);
    RUN(layers_whose_keys_change_get_more);
    RUN(error_aware_budgets_are_exact);
    RUN(evolved_budgets_scale_to_any_mean);
    RUN(lukv_keeps_what_the_curves_say);
    RUN(compresskv_lets_the_chosen_heads_vote_for_the_layer);
    RUN(compresskv_keeps_one_set_for_a_layer_and_takes_any_shape);
    RUN(lanes_that_hold_different_entries_vote_by_position);
    RUN(a_stream_keeps_to_sinks_and_recent_after_every_step);
    return test_end();
}
