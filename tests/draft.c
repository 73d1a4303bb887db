/* draft.c - a second, smaller model beside a session: it takes every token first, and what it looks at is what the
   larger one reads (retrieve=specontext(of=draft), kvmem_session_draft); and TidalDecode's cache correction, which
   needs a model to be seen. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "tiny.h"

typedef struct two { uint8_t *bytes[2], *words; size_t size[2], words_size; kvmem_model m[2]; } two;
static int two_open(two *t) { /* 2 layers of 4 heads; 1 layer of 2 heads; both of 264 tokens */
    memset(t, 0, sizeof *t);
    t->bytes[0] = tiny_model(KVMEM_F32, 0, &t->size[0]);
    t->bytes[1] = tiny_llama2c(&t->size[1]);
    t->words = tiny_llama2c_vocab(&t->words_size);
    CHECK_OK(kvmem_model_open(&t->m[0], t->bytes[0], t->size[0], NULL, 0, NULL));
    CHECK_OK(kvmem_model_open(&t->m[1], t->bytes[1], t->size[1], t->words, t->words_size, NULL));
    return !test_bad;
}
static void two_close(two *t) {
    int i;
    for (i = 0; i < 2; i++) { kvmem_model_close(&t->m[i]); free(t->bytes[i]); }
    free(t->words);
}
static kvmem_status start(kvmem_session *s, const kvmem_model *m, const char *recipe) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error e;
    if (kvmem_recipe_parse(&r, recipe, &e) != KVMEM_OK) FAIL_AT("%s", e.text);
    cfg.recipe = &r;
    cfg.threads = 1;
    cfg.max_block = 16;
    return kvmem_session_init(s, m, &cfg);
}
static int id_of(int i) { return (i * i * 7 + i * 3) % 256; }
static void say(kvmem_session *s, int from, int to, kvmem_phase phase) {
    int i, ids[256];
    for (i = from; i < to; i++) ids[i - from] = id_of(i);
    CHECK_OK(kvmem_session_feed(s, ids, to - from, phase, NULL, NULL));
}
static const char mine[] = "retrieve=specontext(budget=12,of=draft)", its[] = "score=snapkv(window=4) budget=all";
TEST(a_draft_takes_every_token_and_chooses) {
    two t;
    kvmem_session s, d;
    kvmem_view v;
    int64_t chosen, loaded;
    int i, n;
    REQUIRE(two_open(&t));
    REQUIRE_OK(start(&s, &t.m[0], mine));
    REQUIRE_OK(start(&d, &t.m[1], its));
    CHECK_OK(kvmem_session_draft(&s, &d));
    say(&s, 0, 40, KVMEM_PROMPT_END); /* in blocks of 16 */
    CHECK(d.cache.tokens == 40);
    for (i = 40; i < 60; i++) {
        float row[2 * 80];
        const int32_t *list;
        int k, better, worse;
        say(&s, i, i + 1, KVMEM_DECODE);
        CHECK(d.cache.tokens == i + 1 && s.cache.tokens == i + 1);
        v = kvmem__view_of(&d.cache, 0, KVMEM_SCORE); /* what the draft saw: the largest of its heads */
        n = kvmem_view_count(&v, 0);
        REQUIRE(n == i + 1);
        for (better = worse = k = 0; k < 2; k++) { /* its two heads have a KV head each */
            kvmem_view_row(&v, k, kvmem_view_queries(&v) - 1, row + k * n);
        }
        list = (const int32_t *)s.cache.lane[0].index + KVMEM__SPEC_HEAD;
        CHECK(list[-KVMEM__SPEC_HEAD + KVMEM__SPEC_N] == 12);
        for (k = 0; k < i; k++) { /* nothing that was left out is above anything that was taken */
            const float p = KVMEM__MAX(row[k], row[n + k]);
            int x, in = 0;
            for (x = 0; x < 12; x++) in |= list[x] == k;
            for (x = 0; x < 12 && !in; x++) better += p > KVMEM__MAX(row[list[x]], row[n + list[x]]);
        }
        CHECK(better == 0 && worse == 0);
    }
    kvmem_cache_loads(&s.cache, &chosen, &loaded);
    CHECK(chosen == 20 * 2 * 12 && loaded >= 24 && loaded < chosen);
    kvmem_session_free(&s); kvmem_session_free(&d); two_close(&t);
}
TEST(a_draft_that_picks_everything_changes_no_bit) {
    two t;
    kvmem_session s, d, full;
    int i;
    REQUIRE(two_open(&t));
    REQUIRE_OK(start(&s, &t.m[0], "retrieve=specontext(budget=200,of=draft)"));
    REQUIRE_OK(start(&full, &t.m[0], "full"));
    REQUIRE_OK(start(&d, &t.m[1], its));
    CHECK_OK(kvmem_session_draft(&s, &d));
    say(&s, 0, 30, KVMEM_PROMPT_END);
    say(&full, 0, 30, KVMEM_PROMPT_END);
    for (i = 30; i < 50; i++) {
        say(&s, i, i + 1, KVMEM_DECODE);
        say(&full, i, i + 1, KVMEM_DECODE);
        CHECK(!memcmp(s.logits, full.logits, (size_t)t.m[0].n_vocab * sizeof(float)));
    }
    kvmem_session_free(&s); kvmem_session_free(&d); kvmem_session_free(&full); two_close(&t);
}
TEST(a_draft_is_cut_cleared_and_not_copied) {
    two t;
    kvmem_session s, d, copy;
    int id = 5;
    REQUIRE(two_open(&t));
    REQUIRE_OK(start(&s, &t.m[0], mine));
    REQUIRE_OK(start(&d, &t.m[1], its));
    CHECK_OK(kvmem_session_draft(&s, &d));
    say(&s, 0, 30, KVMEM_PROMPT_END);
    CHECK_OK(kvmem_session_truncate(&s, 25));
    CHECK(d.cache.tokens == 25);
    say(&s, 25, 35, KVMEM_DECODE);
    CHECK_OK(kvmem_session_copy(&copy, &s));
    CHECK(kvmem_session_feed(&copy, &id, 1, KVMEM_DECODE, NULL, NULL) == KVMEM_BAD_STATE); /* it has none */
    CHECK(strstr(copy.error.text, "second model"));
    kvmem_session_free(&copy);
    kvmem_session_clear(&s);
    CHECK(d.cache.tokens == 0);
    say(&s, 0, 20, KVMEM_PROMPT_END);
    CHECK_OK(kvmem_session_draft(&s, NULL));
    CHECK(kvmem_session_feed(&s, &id, 1, KVMEM_DECODE, NULL, NULL) == KVMEM_BAD_STATE);
    CHECK(s.cache.tokens == 20);
    kvmem_session_free(&s); kvmem_session_free(&d); two_close(&t);
}
TEST(drafts_that_cannot_serve_are_refused) {
    two t;
    kvmem_session s, d, none, plain;
    REQUIRE(two_open(&t));
    REQUIRE_OK(start(&s, &t.m[0], mine));
    REQUIRE_OK(start(&plain, &t.m[0], "full"));
    REQUIRE_OK(start(&d, &t.m[1], its));
    REQUIRE_OK(start(&none, &t.m[1], "full"));
    CHECK(kvmem_session_draft(&s, &none) == KVMEM_UNSUPPORTED && strstr(s.error.text, "keeps no queries"));
    CHECK(kvmem_session_draft(&s, &s) == KVMEM_UNSUPPORTED);
    CHECK(kvmem_session_draft(&plain, &d) == KVMEM_UNSUPPORTED && strstr(plain.error.text, "asks no draft"));
    say(&d, 0, 3, KVMEM_PREFILL);
    CHECK(kvmem_session_draft(&s, &d) == KVMEM_BAD_STATE && strstr(s.error.text, "3 tokens, not 0"));
    kvmem_session_clear(&d);
    t.m[1].n_vocab--; /* as if it were another */
    CHECK(kvmem_session_draft(&s, &d) == KVMEM_UNSUPPORTED && strstr(s.error.text, "vocabulary"));
    t.m[1].n_vocab++;
    CHECK_OK(kvmem_session_draft(&s, &d));
    CHECK_OK(kvmem_session_draft(&s, NULL));
    kvmem_session_free(&s); kvmem_session_free(&d); kvmem_session_free(&none); kvmem_session_free(&plain);
    two_close(&t);
}
/* Every T tokens the last T once more, as a block that reads everything: K and V are then those of the full cache. */
TEST(tidal_correction_is_truncate_and_feed) {
    enum { FROM = 60, T = 8, D = 8 };
    two t;
    kvmem_session s, full;
    float a[(FROM + T) * D], b[(FROM + T) * D];
    int i, off = 0;
    REQUIRE(two_open(&t));
    REQUIRE_OK(start(&s, &t.m[0], "retrieve=tidal(s0=0,r=0,k=2,blocks=0)"));
    REQUIRE_OK(start(&full, &t.m[0], "full"));
    say(&s, 0, FROM, KVMEM_PROMPT_END);
    say(&full, 0, FROM, KVMEM_PROMPT_END);
    for (i = FROM; i < FROM + T; i++) { say(&s, i, i + 1, KVMEM_DECODE); say(&full, i, i + 1, KVMEM_DECODE); }
    CHECK(memcmp(s.logits, full.logits, (size_t)t.m[0].n_vocab * sizeof(float)));
    CHECK_OK(kvmem_session_truncate(&s, FROM));
    say(&s, FROM, FROM + T, KVMEM_DECODE);
    CHECK_OK(kvmem_session_truncate(&full, FROM));
    say(&full, FROM, FROM + T, KVMEM_DECODE);
    for (i = 0; i < 4; i++) {
        CHECK_OK(kvmem_cache_read(&s.cache, i / 2, i % 2, 0, FROM + T, a, NULL, NULL));
        CHECK_OK(kvmem_cache_read(&full.cache, i / 2, i % 2, 0, FROM + T, b, NULL, NULL));
        off += memcmp(a, b, sizeof a) != 0;
    }
    CHECK(off == 0);
    CHECK(!memcmp(s.logits, full.logits, (size_t)t.m[0].n_vocab * sizeof(float)));
    kvmem_session_free(&s); kvmem_session_free(&full); two_close(&t);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "draft");
    RUN(a_draft_takes_every_token_and_chooses);
    RUN(a_draft_that_picks_everything_changes_no_bit);
    RUN(a_draft_is_cut_cleared_and_not_copied);
    RUN(drafts_that_cannot_serve_are_refused);
    RUN(tidal_correction_is_truncate_and_feed);
    return test_end();
}
