/* The recipe line: what it accepts, what it refuses and why, printing back, presets, checks. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"

static kvmem_recipe parsed(const char *text) { /* a recipe that must parse */
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error e;
    if (kvmem_recipe_parse(&r, text, &e)) FAIL_AT("\"%s\": %s", text, e.text);
    return r;
}
/* The text must fail with BAD_RECIPE, say `part`, and leave the recipe alone. */
static void refused(int line, const char *text, const char *part) {
    kvmem_recipe r, before;
    kvmem_error e;
    memset(&r, 0x5a, sizeof r);
    before = r;
    memset(&e, 0, sizeof e);
    if (kvmem_recipe_parse(&r, text, &e) != KVMEM_BAD_RECIPE) {
        FAIL_AT("line %d: \"%s\" was accepted", line, text);
        return;
    }
    if (e.status != KVMEM_BAD_RECIPE || !strstr(e.text, part))
        FAIL_AT("line %d: \"%s\" says \"%s\", not \"%s\"", line, text, e.text, part);
    if (memcmp(&r, &before, sizeof r)) FAIL_AT("line %d: \"%s\" changed the recipe", line, text);
    CHECK(kvmem_recipe_parse(&r, text, NULL) == KVMEM_BAD_RECIPE);
}
#define BAD(text, part) refused(__LINE__, text, part)

static int same(const kvmem_recipe *a, const kvmem_recipe *b) {
    int s, i;
    for (s = 0; s < KVMEM_N_STAGES; s++) {
        if (a->stage[s].entry != b->stage[s].entry || a->stage[s].user != b->stage[s].user) return 0;
        for (i = 0; i < KVMEM_MAX_PARAMS; i++)
            if (memcmp(&a->stage[s].par[i], &b->stage[s].par[i], sizeof(double))) return 0;
    }
    return !strcmp(a->preset, b->preset) && a->amount.kind == b->amount.kind &&
           a->recent.kind == b->recent.kind && !memcmp(&a->amount.value, &b->amount.value, sizeof(double)) &&
           !memcmp(&a->recent.value, &b->recent.value, sizeof(double)) && a->sink == b->sink &&
           a->when == b->when && a->every == b->every && a->page == b->page && a->seed == b->seed;
}
static const char *word(const kvmem_recipe *r, int stage) { return r->stage[stage].entry->word; }

TEST(the_default_is_full) {
    const kvmem_recipe r = kvmem_recipe_default(), f = parsed("full");
    CHECK(same(&r, &f));
    CHECK(!strcmp(r.preset, "full") && r.amount.kind == KVMEM_ALL && r.page == 64 && r.sink == 0);
    CHECK(!strcmp(word(&r, KVMEM_CODEC_K), "f32") && !strcmp(word(&r, KVMEM_CODEC_V), "f32"));
    CHECK(!strcmp(word(&r, KVMEM_SEGMENT), "fixed") && !strcmp(word(&r, KVMEM_REDUCE), "drop") &&
          !strcmp(word(&r, KVMEM_RETRIEVE), "all") && !strcmp(word(&r, KVMEM_PLACE), "original") &&
          !strcmp(word(&r, KVMEM_BUDGET), "uniform"));
    CHECK_OK(kvmem_recipe_check(&r, NULL));
}
TEST(no_terms_mean_full_without_a_preset) {
    kvmem_recipe r = parsed(" \t\n"), d = kvmem_recipe_default();
    CHECK(!*r.preset);
    memset(d.preset, 0, sizeof d.preset);
    CHECK(same(&r, &d));
}
TEST(every_term_lands_in_its_field) {
    const kvmem_recipe r = parsed("segment=fixed(size=100) score=snapkv(kernel=7,window=16,pool=max) "
        "budget=pyramid(25%,beta=10,exact=0) reduce=drop codec=q8_0/q4_0 retrieve=all place=cache "
        "sink=4 recent=16 when=every(32) page=128 seed=18446744073709551615");
    CHECK(!*r.preset);
    CHECK(r.stage[KVMEM_SEGMENT].par[0] == 100);
    CHECK(!strcmp(word(&r, KVMEM_SCORE), "snapkv") && r.stage[KVMEM_SCORE].par[0] == 16 &&
          r.stage[KVMEM_SCORE].par[1] == 7 && r.stage[KVMEM_SCORE].par[2] == 1);
    CHECK(!strcmp(word(&r, KVMEM_BUDGET), "pyramid") && r.stage[KVMEM_BUDGET].par[0] == 10 &&
          r.stage[KVMEM_BUDGET].par[1] == 0);
    CHECK(r.amount.kind == KVMEM_SHARE && r.amount.value == 0.25);
    CHECK(!strcmp(word(&r, KVMEM_CODEC_K), "q8_0") && !strcmp(word(&r, KVMEM_CODEC_V), "q4_0"));
    CHECK(!strcmp(word(&r, KVMEM_PLACE), "cache") && r.sink == 4 && r.recent.kind == KVMEM_COUNT &&
          r.recent.value == 16 && r.when == KVMEM_WHEN_EVERY && r.every == 32 && r.page == 128);
    CHECK(r.seed == UINT64_MAX);
}
TEST(seeds_keep_all_64_bits) {
    CHECK(parsed("seed=9007199254740993").seed == 9007199254740993u);
    CHECK(parsed("seed=18446744073709551615").seed == UINT64_MAX);
    CHECK(parsed("seed=0").seed == 0);
}
TEST(amounts_are_counts_shares_and_bytes) {
    CHECK(parsed("budget=all").amount.kind == KVMEM_ALL);
    CHECK(parsed("budget=512").amount.kind == KVMEM_COUNT && parsed("budget=512").amount.value == 512);
    CHECK(parsed("budget=12.5%").amount.value == 0.125 && parsed("budget=100%").amount.value == 1);
    CHECK(parsed("budget=8MiB").amount.kind == KVMEM_BYTES && parsed("budget=8MiB").amount.value == 8388608);
    CHECK(parsed("budget=1.5GiB").amount.value == 1610612736.0 && parsed("budget=3KB").amount.value == 3000);
    CHECK(parsed("budget=7B").amount.value == 7 && parsed("budget=2MB").amount.value == 2e6);
    CHECK(parsed("budget=1GB").amount.value == 1e9 && parsed("budget=1KiB").amount.value == 1024);
    CHECK(parsed("budget=1e3").amount.value == 1000 && parsed("budget=2147483647").amount.value == 2147483647.0);
    CHECK(parsed("h2o recent=25%").recent.kind == KVMEM_SHARE && parsed("h2o recent=25%").recent.value == 0.25);
    CHECK(parsed("recent=0%").recent.kind == KVMEM_SHARE && parsed("recent=7").recent.value == 7);
}
TEST(white_space_is_free) {
    const kvmem_recipe a = parsed("snapkv score=snapkv(window=8,kernel=3) codec=q8_0/q4_0 budget=64"),
        b = parsed("\n snapkv\t score = snapkv ( window =8 , kernel= 3 )  codec= q8_0 / q4_0\r\n budget =64 ");
    CHECK(same(&a, &b));
}
TEST(budget_amount_and_allocation_are_set_apart) {
    const kvmem_recipe a = parsed("pyramidkv budget=512"), b = parsed("snapkv budget=pyramid(beta=5)"),
                       c = parsed("budget=pyramid budget=64"), d = parsed("pyramidkv budget=uniform(7%)");
    CHECK(!strcmp(word(&a, KVMEM_BUDGET), "pyramid") && a.amount.value == 512);
    CHECK(!strcmp(word(&b, KVMEM_BUDGET), "pyramid") && b.amount.value == 2048 &&
          b.stage[KVMEM_BUDGET].par[0] == 5 && b.stage[KVMEM_BUDGET].par[1] == 1);
    CHECK(!strcmp(word(&c, KVMEM_BUDGET), "pyramid") && c.amount.value == 64);
    CHECK(!strcmp(word(&d, KVMEM_BUDGET), "uniform") && d.amount.value == 0.07);
}
TEST(codec_sets_both_and_its_parts_one) {
    const kvmem_recipe a = parsed("codec=q8_0"), b = parsed("codec.k=f16"), c = parsed("codec.v=bf16 codec.k=q4_0");
    CHECK(!strcmp(word(&a, KVMEM_CODEC_K), "q8_0") && !strcmp(word(&a, KVMEM_CODEC_V), "q8_0"));
    CHECK(!strcmp(word(&b, KVMEM_CODEC_K), "f16") && !strcmp(word(&b, KVMEM_CODEC_V), "f32"));
    CHECK(!strcmp(word(&c, KVMEM_CODEC_K), "q4_0") && !strcmp(word(&c, KVMEM_CODEC_V), "bf16"));
}
TEST(a_term_replaces_the_presets_whole_choice) {
    const kvmem_recipe r = parsed("pyramidkv score=snapkv(window=4)");
    CHECK(r.stage[KVMEM_SCORE].par[0] == 4 && r.stage[KVMEM_SCORE].par[1] == 5); /* not the preset's 7 */
    CHECK(!strcmp(r.preset, "pyramidkv") && r.recent.value == 8);
}
TEST(unknown_words_are_named_with_the_nearest_known_one) {
    BAD("snapvk", "unknown preset 'snapvk'; did you mean 'snapkv'?");
    BAD("nonsense", "unknown preset 'nonsense'; known: full window streamingllm h2o tova snapkv pyramidkv");
    BAD("score=snapkb", "unknown score entry 'snapkb'; did you mean 'snapkv'?; known: recency random");
    BAD("score=foo", "unknown score entry 'foo'");
    BAD("budget=pyramyd", "budget");
    BAD("budget=pyramyd", "did you mean 'pyramid'");
    BAD("codec=q8", "unknown codec.k entry 'q8'");
    BAD("codec.v=q4_2", "unknown codec.v entry 'q4_2'; did you mean 'q4_0'");
    BAD("codec=f16/nope", "unknown codec.v entry 'nope'");
    BAD("retrieve=some", "unknown retrieve entry 'some'; known: all");
    BAD("place=slot", "unknown place entry 'slot'; known: original cache");
    BAD("reduce=merge", "unknown reduce entry 'merge'; known: drop");
    BAD("segment=turns", "unknown segment entry 'turns'");
    BAD("scor=h2o", "unknown term 'scor'; did you mean 'score'?");
    BAD("codek=f16", "did you mean 'codec'");
    BAD("when=stepp", "unknown value of when 'stepp'; did you mean 'step'");
    BAD("score=snapkv(windw=3)",
        "unknown parameter of snapkv 'windw'; did you mean 'window'?; known: window kernel pool");
    BAD("score=knorm(x=3)", "unknown parameter of knorm 'x'; known: none");
    BAD("SNAPKV", "unknown preset 'SNAPKV'");
    BAD("\x01\x02\xff", "unknown preset '\?\?\?'");
    BAD("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'");
}
TEST(words_in_the_wrong_place_are_explained) {
    BAD("knorm", "'knorm' is not a preset but an entry: write score=knorm");
    BAD("q8_0 budget=5", "'q8_0' is not a preset but an entry: write codec=q8_0");
    BAD("pyramid", "write budget=pyramid");
    BAD("budget=5 snapkv", "preset 'snapkv' must be the first word");
    BAD("h2o snapkv", "preset 'snapkv' must be the first word, and the only one");
    BAD("snapkv snapkv", "must be the first word");
    BAD("budget", "'budget' needs '=' and a value, found the end");
    BAD("snapkv sink 4", "'sink' needs '=' and a value, found '4'");
    BAD("snapkv wibble", "'wibble' is not a term");
    BAD("snapkv 12", "'12' is not a term");
    BAD("=", "a term should begin where '=' stands");
    BAD("(", "a term should begin where '(' stands");
    BAD("snapkv,h2o", "a term should begin where ',h2o' stands");
    BAD("snapkv(window=3)", "a term should begin where '(window=3)' stands");
    BAD("snapkv )", "a term should begin where ')' stands");
    BAD("codec=q8_0/q4_0/f16", "a term should begin where '/f16' stands");
    BAD("score=knorm/h2o", "a term should begin where '/h2o' stands");
    BAD("budget=8 MiB", "'MiB' is not a term");
    BAD("sink=4)", "a term should begin where ')' stands");
    BAD("score=knorm)", "a term should begin where ')' stands");
    BAD("budget=5(beta=2)", "a term should begin where '(beta=2)'");
}
TEST(the_same_thing_twice_is_an_error) {
    BAD("score=h2o score=h2o", "score is given twice");
    BAD("snapkv score=h2o score=tova", "score is given twice");
    BAD("sink=1 sink=1", "sink is given twice");
    BAD("recent=1 recent=2", "recent is given twice");
    BAD("seed=1 seed=2", "seed is given twice");
    BAD("page=1 page=2", "page is given twice");
    BAD("when=step when=step", "when is given twice");
    BAD("budget=1 budget=2", "the amount of budget is given twice");
    BAD("budget=pyramid(10%) budget=5", "the amount of budget is given twice");
    BAD("budget=5 budget=pyramid(10%)", "the amount of budget is given twice");
    BAD("budget=uniform budget=pyramid", "the allocation of budget is given twice");
    BAD("codec=f16 codec=f16", "codec.k is given twice");
    BAD("codec=f16 codec.v=f32", "codec.v is given twice");
    BAD("codec.k=f16 codec=f32", "codec.k is given twice");
    BAD("codec.k=f16 codec.k=f32", "codec.k is given twice");
    BAD("score=snapkv(window=3,window=3)", "snapkv: parameter window is given twice");
}
TEST(values_that_do_not_fit_are_refused_with_the_range) {
    BAD("score=snapkv(window=0)", "snapkv(window=0): allowed are whole numbers from 1 to 4096");
    BAD("score=snapkv(window=4097)", "allowed are whole numbers from 1 to 4096");
    BAD("score=snapkv(window=-3)", "snapkv(window=-3)");
    BAD("score=snapkv(window=2.5)", "whole numbers");
    BAD("score=snapkv(kernel=4)", "snapkv(kernel=4): allowed are odd whole numbers from 1 to 255");
    BAD("score=snapkv(pool=median)", "snapkv(pool=median): allowed are avg|max");
    BAD("score=snapkv(pool=av)", "allowed are avg|max");
    BAD("score=snapkv(pool=avg|max)", "allowed are avg|max");
    BAD("score=snapkv(pool=0)", "allowed are avg|max");
    BAD("score=snapkv(window=abc)", "window=abc: not a number");
    BAD("score=snapkv(window=1x)", "window=1x: not a number");
    BAD("score=snapkv(window=1e)", "not a number");
    BAD("score=snapkv(window=.)", "not a number");
    BAD("score=snapkv(window=nan)", "not a number");
    BAD("score=snapkv(window=inf)", "not a number");
    BAD("score=snapkv(window=0x10)", "not a number");
    BAD("score=snapkv(window=1e400)", "more digits than can be held exactly");
    BAD("score=snapkv(window=99999999999999999999)", "more digits than can be held exactly");
    BAD("score=snapkv(window=1.00000000001)", "more digits than can be held exactly");
    BAD("score=h2o(normalize=2)", "allowed are whole numbers from 0 to 1");
    BAD("budget=pyramid(beta=0)", "pyramid(beta=0): allowed are whole numbers from 1 to 1000000");
    BAD("segment=fixed(size=-1)", "fixed(size=-1)");
    BAD("sink=-1", "sink=-1: allowed are 0 to 1000000000");
    BAD("sink=1.5", "sink=1.5: must be a whole number");
    BAD("sink=many", "sink=many: not a number");
    BAD("sink=1000000001", "sink=1000000001: allowed are 0 to");
    BAD("page=0", "page=0: allowed are 1 to 1024");
    BAD("page=1025", "page=1025: allowed are 1 to 1024");
    BAD("seed=-1", "seed=-1: not a number");
    BAD("seed=1.5", "seed=1.5: not a number");
    BAD("seed=18446744073709551616", "seed=18446744073709551616: allowed are 0 to 18446744073709551615");
    BAD("when=every", "when=every needs a number of tokens");
    BAD("when=every(0)", "every=0: allowed are 1 to");
    BAD("when=decode", "when=decode needs a number of tokens");
    BAD("when=decode(0)", "decode=0: allowed are 1 to");
    BAD("when=decode(2", "when=decode: ')' is missing before the end");
    BAD("when=every(2.5)", "must be a whole number");
    BAD("when=every()", "every has no value");
    BAD("when=every(3", "')' is missing before the end");
    BAD("when=step(3)", "a term should begin where '(3)' stands");
    BAD("recent=101%", "recent=101%: a share lies between 0% and 100%");
    BAD("recent=-1", "recent=-1: allowed are 0 to");
    BAD("recent=8MiB", "recent=8MiB: unknown unit; known: %");
    BAD("recent=all", "recent=all: neither a count nor a share");
}
TEST(budgets_of_nothing_or_nonsense_are_refused) {
    BAD("budget=0", "budget=0: a budget keeps at least 1 entry; budget=all keeps everything");
    BAD("budget=0%", "budget=0%: a budget keeps at least 1 entry");
    BAD("budget=0MiB", "budget keeps at least 1 entry");
    BAD("budget=0.4B", "budget keeps at least 1 entry");
    BAD("budget=-5", "budget=-5: allowed are 0 to");
    BAD("budget=-5%", "between 0% and 100%");
    BAD("budget=-1MiB", "bytes are between 1 and 2^53");
    BAD("budget=100.1%", "a share lies between 0% and 100%");
    BAD("budget=12.5", "budget=12.5: must be a whole number");
    BAD("budget=2147483648", "allowed are 0 to 2147483647");
    BAD("budget=8XiB", "budget=8XiB: unknown unit; known: % KiB MiB GiB KB MB GB B");
    BAD("budget=8mib", "unknown unit");
    BAD("budget=8%%", "unknown unit");
    BAD("budget=%", "budget=%: not a number");
    BAD("budget=9999999GiB", "bytes are between 1 and 2^53");
    BAD("budget=", "budget= has no value before the end");
    BAD("budget=1..5%", "not a number");
    BAD("budget=--5", "not a number");
    BAD("budget=pyramid(0)", "a budget keeps at least 1 entry");
    BAD("budget=pyramid(x)", "budget=x: neither an amount");
    BAD("budget=uniform(all,5)", "uniform: '5' is not of the form name=value");
}
TEST(brackets_and_empty_values_are_checked) {
    BAD("score=", "score= has no value before the end");
    BAD("score= budget=5", "unknown score entry 'budget'");
    BAD("score=(window=3)", "score= has no value before '(window=3)'");
    BAD("score=snapkv(", "snapkv: a parameter is missing before the end");
    BAD("score=snapkv(window", "snapkv: 'window' is not of the form name=value");
    BAD("score=snapkv(window=", "snapkv: parameter window has no value");
    BAD("score=snapkv(window=3", "snapkv: ')' is missing before the end");
    BAD("score=snapkv(window=3 kernel=5)", "snapkv: ')' is missing before 'kernel=5)'");
    BAD("score=snapkv(window=3,)", "snapkv: a parameter is missing before ')'");
    BAD("score=snapkv(,window=3)", "snapkv: a parameter is missing before ',window=3)'");
    BAD("score=snapkv(16)", "snapkv: '16' is not of the form name=value");
    BAD("score=snapkv(window==3)", "parameter window has no value");
    BAD("score=snapkv(=3)", "a parameter is missing before '=3)'");
    BAD("codec=/f16", "codec.k= has no value before '/f16'");
    BAD("codec=f16/", "codec.v= has no value before the end");
    BAD("codec.k=f16/f32", "a term should begin where '/f32' stands");
    BAD("sink=", "sink has no value");
    BAD("recent=", "recent has no value");
    BAD("seed=", "seed has no value");
    BAD("page=", "page has no value");
    BAD("when=", "when has no value");
    BAD("when=every(", "every has no value");
}
TEST(contradictions_are_refused) {
    BAD("snapkv budget=16", "budget=16 is less than sink=0 and recent=32 together protect");
    BAD("sink=4 recent=5 budget=8", "budget=8 is less than sink=4 and recent=5");
    BAD("sink=1 recent=100% budget=8", "budget=8 is less than sink=1 and recent=8");
    BAD("snapkv budget=16 recent=16", "snapkv(window=32): the window is longer than budget=16 keeps");
    parsed("sink=4 recent=4 budget=8");
    parsed("snapkv budget=16 recent=16 score=snapkv(window=16)");
    parsed("snapkv budget=100%");
    parsed("snapkv budget=1%");
    parsed("budget=1");
    parsed("budget=2000000000");
}
TEST(too_long_a_text_is_refused) {
    char *text = (char *)malloc(70000);
    REQUIRE(text);
    memset(text, ' ', 70000);
    text[4096] = 0;
    parsed(text);
    text[4096] = ' ';
    text[4097] = 0;
    BAD(text, "recipe: longer than 4096 characters");
    text[4097] = ' ';
    text[69999] = 0;
    BAD(text, "recipe: longer than 4096 characters");
    free(text);
}
TEST(null_arguments_are_refused) {
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error e;
    CHECK(kvmem_recipe_parse(NULL, "full", &e) == KVMEM_BAD_ARGUMENT && strstr(e.text, "r is NULL"));
    CHECK(kvmem_recipe_parse(&r, NULL, &e) == KVMEM_BAD_ARGUMENT && strstr(e.text, "text is NULL"));
    CHECK(kvmem_recipe_check(NULL, NULL) == KVMEM_BAD_ARGUMENT);
}
static void number(char *out, const char *what, int lo, int hi) {
    sprintf(out, "%s%d", what, lo + (int)(test_unit() * (hi - lo + 1)));
}
/* A random valid recipe text; about half of the terms are given. */
static void random_text(char *out) {
    static const char *const codecs[] = { "f32", "f16", "bf16", "q8_0", "q4_0" };
    static const char *const amounts[] = { "all", "70000", "4097", "33.3333333%", "12.5%", "1e-5%", "100%",
                                           "8MiB", "1.5GiB", "12345B", "3KB", "9007199254740992B", "0.7MB" };
    static const char *const plain[] = { "recency", "random", "knorm", "tova", "h2o" };
    char b[64];
    *out = 0;
    if (test_unit() < 0.4) strcat(out, "pyramidkv ");
    if (test_unit() < 0.5) { number(b, "segment=fixed(size=", 0, 100000); strcat(out, b); strcat(out, ") "); }
    if (test_unit() < 0.7) {
        if (test_unit() < 0.5) { strcat(out, "score="); strcat(out, plain[(int)(test_unit() * 5)]); strcat(out, " "); }
        else {
            number(b, "score=snapkv(window=", 1, 4096); strcat(out, b);
            if (test_unit() < 0.5) { sprintf(b, ",kernel=%d", 1 + 2 * (int)(test_unit() * 128)); strcat(out, b); }
            if (test_unit() < 0.5) strcat(out, test_unit() < 0.5 ? ",pool=max" : ",pool=avg");
            strcat(out, ") ");
        }
    }
    if (test_unit() < 0.5) { number(b, "budget=pyramid(beta=", 1, 1000000); strcat(out, b); strcat(out, ") "); }
    strcat(out, "budget=");
    strcat(out, amounts[(int)(test_unit() * 13)]);
    sprintf(b, " codec=%s/%s ", codecs[(int)(test_unit() * 5)], codecs[(int)(test_unit() * 5)]);
    if (test_unit() < 0.6) strcat(out, b); else strcat(out, " ");
    if (test_unit() < 0.5) strcat(out, "place=cache ");
    if (test_unit() < 0.5) { number(b, "sink=", 0, 9); strcat(out, b); strcat(out, " "); }
    if (test_unit() < 0.5) { number(b, "recent=", 0, 90); strcat(out, b); strcat(out, test_unit() < 0.5 ? " " : "% "); }
    if (test_unit() < 0.5) { number(b, "when=every(", 1, 1000000000); strcat(out, b); strcat(out, ") "); }
    else if (test_unit() < 0.5) strcat(out, "when=block ");
    if (test_unit() < 0.5) { number(b, "page=", 1, 1024); strcat(out, b); strcat(out, " "); }
    if (test_unit() < 0.5) { sprintf(b, "seed=%llu", (unsigned long long)kvmem__mix(test_state)); strcat(out, b); }
}
TEST(printed_recipes_parse_back_to_the_same_bits) {
    int i;
    for (i = 0; i < 3000; i++) {
        char text[600], once[900], twice[900];
        kvmem_recipe a, b;
        kvmem_error e;
        random_text(text);
        if (kvmem_recipe_parse(&a, text, &e)) { FAIL_AT("\"%s\": %s", text, e.text); return; }
        REQUIRE(kvmem_recipe_print(&a, once, sizeof once) < sizeof once);
        if (kvmem_recipe_parse(&b, once, &e)) { FAIL_AT("\"%s\": %s", once, e.text); return; }
        kvmem_recipe_print(&b, twice, sizeof twice);
        if (!same(&a, &b) || strcmp(once, twice)) {
            FAIL_AT("\"%s\" printed \"%s\", then \"%s\"", text, once, twice);
            return;
        }
    }
}
TEST(numbers_of_nine_digits_survive_printing) {
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 0
    const double rounding = 0;
#else
    const double rounding = 3e-16;
#endif
    int i;
    for (i = 0; i < 20000; i++) {
        char text[40], out[40];
        kvmem__word w;
        kvmem__text t;
        double v = 0, u = 0;
        const unsigned m = (unsigned)(test_unit() * (i % 3 ? 1e9 : 1e4));
        sprintf(text, "%s%ue%d", i & 1 ? "" : "-", m, (int)(test_unit() * 24) - 18);
        w.s = text; w.n = (int)strlen(text);
        REQUIRE(kvmem__decimal(w, 0, &v) == 0);
        /* correctly rounded, but for machines that may round twice (x87) */
        if (fabs(v - strtod(text, NULL)) > rounding * fabs(v)) { FAIL_AT("%s read as %.17g", text, v); return; }
        t = kvmem__text_into(out, sizeof out);
        kvmem__put_number(&t, v);
        w.s = out; w.n = (int)strlen(out);
        if (kvmem__decimal(w, 0, &u) || u != v) { FAIL_AT("%s printed as %s", text, out); return; }
    }
}
TEST(shares_survive_printing) {
    int i;
    for (i = 1; i < 100000; i++) {
        char text[40], out[40];
        kvmem_recipe r, back;
        kvmem__text t;
        const unsigned m = 1 + (unsigned)(test_unit() * 999999998);
        sprintf(text, "budget=%u.%07u%%", m / 10000000, m % 10000000);
        REQUIRE_OK(kvmem_recipe_parse(&r, text, NULL));
        t = kvmem__text_into(out, sizeof out);
        kvmem__format(&t, "budget=");
        kvmem__put_amount(&t, r.amount);
        REQUIRE_OK(kvmem_recipe_parse(&back, out, NULL));
        if (back.amount.value != r.amount.value) { FAIL_AT("%s printed as %s", text, out); return; }
        if (i > 3000) break;
    }
}
TEST(print_writes_like_snprintf) {
    const kvmem_recipe r = parsed("streamingllm");
    char all[600], part[600];
    const size_t n = kvmem_recipe_print(&r, all, sizeof all);
    size_t size;
    CHECK(n == strlen(all) && kvmem_recipe_print(&r, NULL, 0) == n && kvmem_recipe_print(&r, NULL, 99) == n);
    CHECK(kvmem_recipe_explain(&r, NULL, 0) == kvmem_recipe_explain(&r, part, 10) && strlen(part) == 9);
    for (size = 1; size <= n + 1; size++) {
        memset(part, 'x', sizeof part);
        CHECK(kvmem_recipe_print(&r, part, size) == n);
        CHECK(strlen(part) == size - 1 && !memcmp(part, all, size - 1) && part[size] == 'x');
    }
}
TEST(the_canonical_text_names_every_stage_and_parameter) {
    const kvmem_recipe r = parsed("snapkv budget=12.5% codec=f16/bf16"), e = parsed("when=every(7) budget=8MiB");
    char text[600];
    kvmem_recipe_print(&r, text, sizeof text);
    CHECK(!strcmp(text, "snapkv segment=fixed(size=0) score=snapkv(window=32,kernel=5,pool=avg) "
                        "budget=uniform(12.5%) select=topk(ties=old) reduce=drop codec.k=f16 codec.v=bf16 retrieve=all "
                        "place=original sink=0 recent=32 when=prompt page=64 seed=0"));
    kvmem_recipe_print(&e, text, sizeof text);
    CHECK(!strcmp(text, "segment=fixed(size=0) score=recency budget=uniform(8MiB) select=topk(ties=old) reduce=drop "
                        "codec.k=f32 codec.v=f32 retrieve=all place=original sink=0 recent=0 when=every(7) page=64 "
                        "seed=0"));
}
TEST(presets_are_their_text) {
    static const char *const words[] = { "full", "window", "streamingllm", "h2o", "tova", "snapkv", "pyramidkv" };
    int i;
    for (i = 0; i < 7; i++) CHECK(kvmem_preset_at(i) && !strcmp(kvmem_preset_at(i)->word, words[i]));
    for (i = 0; kvmem_preset_at(i); i++) {
        const kvmem_preset *p = kvmem_preset_at(i);
        kvmem_recipe a, b;
        char text[4000];
        REQUIRE(p->what && p->cite);
        a = parsed(p->word);
        b = parsed(p->text);
        CHECK(!strcmp(a.preset, p->word) && !*b.preset);
        memset(a.preset, 0, sizeof a.preset);
        CHECK(same(&a, &b));
        a = parsed(p->word);
        CHECK(kvmem_recipe_explain(&a, text, sizeof text) < sizeof text);
        CHECK(strstr(text, p->text) && strstr(text, p->what) &&
              (!strcmp(p->cite, "-") || strstr(text, p->cite)));
    }
    CHECK(!kvmem_preset_at(999) && !kvmem_preset_at(-1));
}
TEST(presets_carry_the_papers_defaults) {
    kvmem_recipe r = parsed("streamingllm");
    CHECK(r.sink == 4 && r.amount.value == 4 + 512 && !strcmp(word(&r, KVMEM_PLACE), "cache") &&
          r.when == KVMEM_WHEN_BLOCK && !strcmp(word(&r, KVMEM_SCORE), "recency"));
    r = parsed("window");
    CHECK(r.sink == 0 && !strcmp(word(&r, KVMEM_SCORE), "recency") && !strcmp(word(&r, KVMEM_PLACE), "original"));
    r = parsed("h2o");
    CHECK(r.amount.kind == KVMEM_SHARE && r.amount.value == 0.2 && r.recent.kind == KVMEM_SHARE &&
          r.recent.value == 0.5 && r.when == KVMEM_WHEN_STEP && r.stage[KVMEM_SCORE].par[0] == 0);
    r = parsed("tova");
    CHECK(r.amount.value == 512 && r.recent.value == 0 && r.sink == 0 && r.when == KVMEM_WHEN_STEP);
    r = parsed("snapkv");
    CHECK(r.amount.value == 2048 && r.recent.value == 32 && r.when == KVMEM_WHEN_PROMPT &&
          r.stage[KVMEM_SCORE].par[0] == 32 && r.stage[KVMEM_SCORE].par[1] == 5 && r.stage[KVMEM_SCORE].par[2] == 0);
    r = parsed("pyramidkv");
    CHECK(r.amount.value == 2048 && r.recent.value == 8 && !strcmp(word(&r, KVMEM_BUDGET), "pyramid") &&
          r.stage[KVMEM_BUDGET].par[0] == 20 && r.stage[KVMEM_SCORE].par[0] == 8 && r.stage[KVMEM_SCORE].par[1] == 7);
}
TEST(explain_shows_each_stage_with_citation_and_parameters) {
    static const char *const parts[] = { "preset    pyramidkv: ", "[Cai 2024, arXiv 2406.02069]",
        "means     score=snapkv(window=8,kernel=7,pool=avg)", "recipe    segment=fixed(size=0) score=snapkv(",
        "segment   fixed: ", "score     snapkv: ", "[Li 2024, arXiv 2404.14469]", "window=8 ", "(1 to 4096)",
        "pool=avg ", "(avg|max)", "budget    pyramid: ", "beta=20 ", "reduce    drop: ", "codec.k   f32: ",
        "codec.v   f32: ", "retrieve  all: ", "place     original: ", "amount    2048: ", "sink      0: ",
        "recent    8: ", "when      prompt: ", "page      64: ", "seed      0: " };
    const kvmem_recipe r = parsed("pyramidkv");
    char text[3000];
    size_t i;
    CHECK(kvmem_recipe_explain(&r, text, sizeof text) == strlen(text));
    for (i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(text, parts[i])) FAIL_AT("\"%s\" is missing in\n%s", parts[i], text);
}
TEST(tables_have_unique_words_defaults_in_range_and_texts) {
    int s, i, k;
    for (s = 0; s < KVMEM_N_STAGES; s++) {
        const kvmem_entry *e;
        REQUIRE(kvmem_stage_word((kvmem_stage)s) != NULL && kvmem_stage_entry((kvmem_stage)s, 0) != NULL);
        for (i = 0; (e = kvmem_stage_entry((kvmem_stage)s, i)) != NULL; i++) {
            kvmem_recipe r = kvmem_recipe_default();
            kvmem_error err;
            CHECK(e->word && e->what && e->cite && *e->what && *e->cite && strlen(e->word) < 32);
            for (k = 0; k < i; k++) CHECK(strcmp(e->word, kvmem_stage_entry((kvmem_stage)s, k)->word));
            kvmem__choose(&r.stage[s], e);
            if (e->reads & KVMEM_TAKES_CODEC) r.low[0] = r.low[1] = r.stage[KVMEM_CODEC_K];
            if (s == KVMEM_CODEC_K || s == KVMEM_CODEC_V) { /* some are for keys or for values only */
                const kvmem_codec *c = (const kvmem_codec *)(const void *)e;
                if (c->flags & (s == KVMEM_CODEC_K ? KVMEM_CODEC_VALUES : KVMEM_CODEC_KEYS)) {
                    CHECK(kvmem_recipe_check(&r, &err) == KVMEM_BAD_RECIPE && strstr(err.text, "only"));
                    continue;
                }
                if (c->flags & KVMEM_CODEC_SHARED)
                    CHECK(!kvmem_recipe_parse(&r, "codec.k=f16_pre codec.v=key", &err));
            }
            if (!strcmp(e->word, "hack") && s == KVMEM_BUDGET) { /* its types come from the score of that name */
                CHECK(kvmem_recipe_check(&r, &err) == KVMEM_BAD_RECIPE && strstr(err.text, "score=hack"));
                CHECK(!kvmem_recipe_parse(&r, "score=hack budget=hack(50%)", &err));
            }
            if (kvmem_recipe_check(&r, &err)) FAIL_AT("%s: %s", e->word, err.text);
            for (k = 0; e->params && e->params[k].name; k++) CHECK(k < KVMEM_MAX_PARAMS && e->params[k].what);
        }
        CHECK(!kvmem_stage_entry((kvmem_stage)s, -1) && !kvmem_stage_entry((kvmem_stage)s, 1000));
    }
    CHECK(!kvmem_stage_word(KVMEM_N_STAGES) && !kvmem_stage_entry(KVMEM_N_STAGES, 0));
}

static kvmem_status own_score(const kvmem_view *v, int g, float *score) {
    (void)v; (void)g; (void)score;
    return KVMEM_OK;
}
TEST(a_users_own_entry_passes_the_check_and_prints_as_its_word) {
    static const kvmem_param params[] = { { "heat", 0.5, 0, 1, NULL, 0, "how hot" },
                                          { NULL, 0, 0, 0, NULL, 0, NULL } };
    static const kvmem_score_entry mine = { { "mine", "my own", "-", params, 0 }, own_score, NULL },
        empty = { { "empty", "no function", "-", NULL, 0 }, NULL, NULL },
        blind = { { "blind", "reads queries", "-", params, KVMEM_READS_QUERIES }, own_score, NULL },
        greedy = { { "greedy", "compares layers", "-", NULL, KVMEM_READS_LAYERS }, own_score, NULL };
    kvmem_recipe r = parsed("tova budget=10%");
    kvmem_error e;
    char text[600];
    r.stage[KVMEM_SCORE].entry = &mine.e;
    r.stage[KVMEM_SCORE].par[0] = 0.25;
    CHECK_OK(kvmem_recipe_check(&r, &e));
    kvmem_recipe_print(&r, text, sizeof text);
    CHECK(strstr(text, " score=mine(heat=0.25) "));
    CHECK(kvmem_recipe_parse(&r, text, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "unknown score entry 'mine'"));
    r.stage[KVMEM_SCORE].par[0] = 2;
    CHECK(kvmem_recipe_check(&r, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "mine(heat=2): allowed are 0 to 1"));
    r.stage[KVMEM_SCORE].par[0] = NAN;
    CHECK(kvmem_recipe_check(&r, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "mine(heat=nan)"));
    r.stage[KVMEM_SCORE].par[0] = 0;
    r.stage[KVMEM_SCORE].entry = &empty.e;
    CHECK(kvmem_recipe_check(&r, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "score=empty: the entry lacks a function"));
    r.stage[KVMEM_SCORE].entry = &blind.e;
    CHECK(kvmem_recipe_check(&r, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "needs a parameter 'window'"));
    r.stage[KVMEM_SCORE].entry = &greedy.e;
    CHECK(kvmem_recipe_check(&r, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "only a budget entry"));
    r.stage[KVMEM_SCORE].entry = NULL;
    CHECK(kvmem_recipe_check(&r, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "score: no entry"));
}
TEST(a_recipe_filled_by_hand_is_checked) {
    const kvmem_recipe good = kvmem_recipe_default();
    kvmem_recipe r;
    kvmem_error e;
#define HAND(change, part) do { r = good; change; \
        CHECK(kvmem_recipe_check(&r, &e) == KVMEM_BAD_RECIPE); \
        if (!strstr(e.text, part)) FAIL_AT("\"%s\" instead of \"%s\"", e.text, part); } while (0)
    HAND(r.page = 0, "page=0");
    HAND(r.page = 1025, "page=1025");
    HAND(r.sink = -1, "sink=-1");
    HAND(r.when = (kvmem_when)7, "when: unknown value 7");
    HAND(r.when = KVMEM_WHEN_EVERY, "when=every(0)");
    HAND(r.when = KVMEM_WHEN_DECODE, "when=decode(0)");
    HAND(r.amount.kind = KVMEM_COUNT, "a budget keeps at least 1 entry");
    HAND((r.amount.kind = KVMEM_COUNT, r.amount.value = NAN), "a budget keeps at least 1 entry");
    HAND((r.amount.kind = KVMEM_COUNT, r.amount.value = 2.5), "amount 2.5 is out of range");
    HAND((r.amount.kind = KVMEM_SHARE, r.amount.value = 1.5), "amount 1.5 is out of range");
    HAND((r.amount.kind = KVMEM_BYTES, r.amount.value = INFINITY), "out of range");
    HAND(r.amount.kind = (kvmem_amount_kind)9, "unknown kind of amount 9");
    HAND(r.recent.kind = KVMEM_BYTES, "recent=0");
    HAND(r.recent.value = -1, "recent=-1");
    HAND(r.recent.value = NAN, "recent=nan");
    HAND(memset(r.preset, 'x', sizeof r.preset), "preset");
    HAND(memset(&r, 0, sizeof r), "segment: no entry");
}
TEST(one_entry_is_read_from_its_own_text) {
    kvmem_choice c;
    kvmem_error e;
    REQUIRE_OK(kvmem__parse_choice(&c, KVMEM_CODEC_K, " q8_0 ", &e));
    CHECK(!strcmp(c.entry->word, "q8_0"));
    REQUIRE_OK(kvmem__parse_choice(&c, KVMEM_SCORE, "snapkv(window=3)", &e));
    CHECK(c.par[0] == 3 && c.par[1] == 5);
    CHECK(kvmem__parse_choice(&c, KVMEM_CODEC_V, "q8_0/f16", &e) == KVMEM_BAD_RECIPE && strstr(e.text, "'/f16'"));
    CHECK(kvmem__parse_choice(&c, KVMEM_CODEC_V, "", &e) == KVMEM_BAD_RECIPE &&
          strstr(e.text, "codec.v= has no value"));
    CHECK(kvmem__parse_choice(&c, KVMEM_CODEC_V, "f64", &e) == KVMEM_BAD_RECIPE && strstr(e.text, "'f64'"));
}

static const char *const samples[] = {
    "snapkv budget=12.5% codec=q8_0/q4_0 recent=32",
    "score=snapkv(window=16,kernel=7,pool=max) budget=pyramid(25%,beta=10,exact=0) reduce=drop sink=4",
    "h2o score=h2o(normalize=1) recent=50% when=every(32) page=128 seed=18446744073709551615 budget=8MiB",
    "pyramidkv segment = fixed ( size = 100 ) place=cache codec.k=f16 codec.v=bf16 retrieve=all" };
/* Exactly n bytes and a NUL in their own block, so that a sanitizer sees any step past the end. */
static void try_text(const char *text, size_t n) {
    char *own = (char *)malloc(n + 1), out[900];
    kvmem_recipe r, back;
    kvmem_error e;
    kvmem_status s;
    if (!own) return;
    memcpy(own, text, n);
    own[n] = 0;
    memset(&e, 'x', sizeof e);
    s = kvmem_recipe_parse(&r, own, &e);
    if (s == KVMEM_OK) {
        CHECK(kvmem_recipe_print(&r, out, sizeof out) < sizeof out);
        CHECK(kvmem_recipe_parse(&back, out, &e) == KVMEM_OK && same(&r, &back));
    } else {
        CHECK(s == KVMEM_BAD_RECIPE && e.status == s);
        CHECK(memchr(e.text, 0, sizeof e.text) != NULL && *e.text);
    }
    free(own);
}
TEST(every_prefix_parses_or_says_why) {
    size_t i, n;
    for (i = 0; i < sizeof samples / sizeof *samples; i++)
        for (n = 0; n <= strlen(samples[i]); n++) try_text(samples[i], n);
}
TEST(every_single_byte_change_parses_or_says_why) {
    size_t i, n;
    for (i = 0; i < sizeof samples / sizeof *samples; i++) {
        char text[256];
        const size_t len = strlen(samples[i]);
        for (n = 0; n < len; n++) {
            int ch;
            for (ch = 1; ch < 256; ch++) {
                memcpy(text, samples[i], len);
                text[n] = (char)ch;
                try_text(text, len);
            }
            memcpy(text, samples[i], len); /* one byte left out, one doubled */
            memmove(text + n, text + n + 1, len - n - 1);
            try_text(text, len - 1);
            memcpy(text, samples[i], n);
            memcpy(text + n + 1, samples[i] + n, len - n);
            text[n] = samples[i][n];
            try_text(text, len + 1);
        }
    }
}
TEST(random_pieces_parse_or_say_why) {
    static const char *const pieces[] = { "snapkv", "score", "=", "(", ")", ",", "/", " ", "budget", "1", "25%",
        "window", "codec", "q8_0", "pyramid", "8MiB", "beta", "every", "when", "recent", "0", "-", ".", "e9",
        "all", "h2o", "=snapkv(", "=pyramid(", "999999999999999999999", "pool=max" };
    int i, k;
    for (i = 0; i < 20000; i++) {
        char text[600];
        const int n = 1 + (int)(test_unit() * 14);
        *text = 0;
        for (k = 0; k < n; k++) strcat(text, pieces[(int)(test_unit() * (sizeof pieces / sizeof *pieces))]);
        try_text(text, strlen(text));
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "recipes");
    RUN(the_default_is_full);
    RUN(no_terms_mean_full_without_a_preset);
    RUN(every_term_lands_in_its_field);
    RUN(seeds_keep_all_64_bits);
    RUN(amounts_are_counts_shares_and_bytes);
    RUN(white_space_is_free);
    RUN(budget_amount_and_allocation_are_set_apart);
    RUN(codec_sets_both_and_its_parts_one);
    RUN(a_term_replaces_the_presets_whole_choice);
    RUN(unknown_words_are_named_with_the_nearest_known_one);
    RUN(words_in_the_wrong_place_are_explained);
    RUN(the_same_thing_twice_is_an_error);
    RUN(values_that_do_not_fit_are_refused_with_the_range);
    RUN(budgets_of_nothing_or_nonsense_are_refused);
    RUN(brackets_and_empty_values_are_checked);
    RUN(contradictions_are_refused);
    RUN(too_long_a_text_is_refused);
    RUN(null_arguments_are_refused);
    RUN(printed_recipes_parse_back_to_the_same_bits);
    RUN(numbers_of_nine_digits_survive_printing);
    RUN(shares_survive_printing);
    RUN(print_writes_like_snprintf);
    RUN(the_canonical_text_names_every_stage_and_parameter);
    RUN(presets_are_their_text);
    RUN(presets_carry_the_papers_defaults);
    RUN(explain_shows_each_stage_with_citation_and_parameters);
    RUN(tables_have_unique_words_defaults_in_range_and_texts);
    RUN(a_users_own_entry_passes_the_check_and_prints_as_its_word);
    RUN(a_recipe_filled_by_hand_is_checked);
    RUN(one_entry_is_read_from_its_own_text);
    RUN(every_prefix_parses_or_says_why);
    RUN(every_single_byte_change_parses_or_says_why);
    RUN(random_pieces_parse_or_say_why);
    return test_end();
}
