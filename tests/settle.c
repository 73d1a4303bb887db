/* Rows that wait for their codec: when a page is settled, what a page of codes with a mean, exact rows, keys
   before RoPE or holes gives to attention, codecs for single lanes, demotion, saved states. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "world.h"

/* Feed one token more and compare attention with its definition over what the cache says it holds. Returns
   the largest difference over the size of the values. */
static double decode_and_check(world *w, kvmem_cache *c, int t) {
    const int r = w->H / w->G, d = w->d;
    float *o = (float *)malloc((size_t)(w->H * d) * 4), *k, *v;
    double worst = 0;
    int l, g, j, i, x, n;
    for (l = 0; l < w->L; l++) {
        if (kvmem_cache_append(c, l, 1, row_k(w, w->k, t, l), row_k(w, w->v, t, l), NULL) != KVMEM_OK ||
            kvmem_cache_attend(c, l, 1, row_q(w, t, l), o) != KVMEM_OK) {
            printf("  %s\n", c->error.text);
            free(o);
            return 1e9;
        }
        for (g = 0; g < w->G; g++) {
            n = kvmem_cache_lane_len(c, l, g);
            k = (float *)malloc((size_t)(n * d) * 4);
            v = (float *)malloc((size_t)(n * d) * 4);
            CHECK_OK(kvmem_cache_read(c, l, g, 0, n, k, v, NULL));
            for (j = 0; j < r; j++) {
                double q[256], *z = (double *)malloc((size_t)n * sizeof *z), m = -1e300, sum = 0, size = 1e-6;
                for (x = 0; x < d; x++) q[x] = (double)row_q(w, t, l)[(g * r + j) * d + x];
                if (w->cfg.shape.rope) turn(q, d, &w->rope[l], t);
                for (i = 0; i < n; i++) {
                    z[i] = 0;
                    for (x = 0; x < d; x++) z[i] += q[x] * (double)k[i * d + x];
                    z[i] /= sqrt((double)d);
                    if (z[i] > m) m = z[i];
                }
                for (i = 0; i < n; i++) { z[i] = exp(z[i] - m); sum += z[i]; }
                for (x = 0; x < d; x++) {
                    double y = 0;
                    for (i = 0; i < n; i++) {
                        y += z[i] / sum * (double)v[i * d + x];
                        size = KVMEM__MAX(size, fabs((double)v[i * d + x]));
                    }
                    worst = KVMEM__MAX(worst, fabs(y - (double)o[(g * r + j) * d + x]) / size);
                }
                free(z);
            }
            free(k); free(v);
        }
    }
    if (kvmem_cache_commit(c, KVMEM_DECODE) != KVMEM_OK) { printf("  %s\n", c->error.text); worst = 1e9; }
    free(o);
    return worst;
}
static void widen(double *worst, double e) { if (!(e <= *worst)) *worst = e; }
static int start(world *w, kvmem_cache *c, int L, int H, int G, int d, int T, const char *recipe, int rope) {
    if (!world_init(w, L, H, G, d, T, recipe)) return 0;
    if (rope) w->cfg.shape.rope = w->rope;
    w->cfg.backend = NULL;
    if (kvmem_cache_init(c, &w->cfg) == KVMEM_OK) return 1;
    printf("  %s: %s\n", recipe, c->error.text);
    return 0;
}
static void stop(world *w, kvmem_cache *c) { kvmem_cache_free(c); world_free(w); }

static int coded_pages(const kvmem_cache *c, int lane, int side) {
    const kvmem_lane *ln = &c->lane[lane];
    int i, n = 0;
    for (i = 0; i < ln->n_pages; i++) n += ln->pages[i]->side[side].use == ln->use[side];
    return n;
}

TEST(a_full_page_is_coded_when_the_prompt_ends_and_attention_before_is_exact) {
    world w; kvmem_cache c; float *a, *b; int t;
    REQUIRE(start(&w, &c, 2, 4, 2, 8, 200, "full codec=q4_0(center=block) page=32", 1));
    a = outs(&w, 100); b = outs(&w, 100);
    CHECK_OK(feed(&w, &c, 0, 64, 16, KVMEM_PREFILL, a));
    CHECK(coded_pages(&c, 0, 0) == 0 && coded_pages(&c, 0, 1) == 0);
    CHECK_OK(feed(&w, &c, 64, 100, 36, KVMEM_PROMPT_END, a + 64 * 64));
    CHECK(coded_pages(&c, 0, 0) == 3 && coded_pages(&c, 3, 1) == 3 && c.lane[0].n == 100);
    for (t = 100; t < 127; t++) CHECK(decode_and_check(&w, &c, t) < 2e-5);
    CHECK(coded_pages(&c, 0, 0) == 3);
    CHECK(decode_and_check(&w, &c, t) < 2e-5); /* entry 128 fills the page */
    CHECK(coded_pages(&c, 0, 0) == 4 && c.lane[0].n_pages == 4);
    kvmem_cache_free(&c);
    CHECK_OK(kvmem_recipe_parse(&w.recipe, "full codec=f16 page=32", NULL));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 64, 16, KVMEM_PREFILL, b));
    CHECK_OK(feed(&w, &c, 64, 100, 36, KVMEM_PROMPT_END, b + 64 * 64));
    CHECK(same_out(&w, a, b, 100)); /* nothing was read in codes yet */
    free(a); free(b); stop(&w, &c);
}
TEST(when_block_codes_during_the_prompt) {
    world w; kvmem_cache c;
    REQUIRE(start(&w, &c, 1, 2, 1, 8, 200, "full codec=q4_0(center=block) page=32 when=block", 0));
    CHECK_OK(feed(&w, &c, 0, 64, 16, KVMEM_PREFILL, NULL));
    CHECK(coded_pages(&c, 0, 0) == 2);
    stop(&w, &c);
}
TEST(a_residual_window_slides_by_pages_or_is_flushed_whole) {
    world w; kvmem_cache c; int t;
    REQUIRE(start(&w, &c, 1, 2, 1, 8, 400,
                  "full codec.k=q4_0(residual=64,flush=1) codec.v=q4_0(residual=64) page=32", 0));
    CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, NULL));
    /* keys: 150 = 2 * 64 + 22 (KIVI's n - n mod R); values: all but the newest 64, whole pages */
    CHECK(coded_pages(&c, 0, 0) == 4 && coded_pages(&c, 0, 1) == 2);
    for (t = 150; t < 159; t++) CHECK(decode_and_check(&w, &c, t) < 2e-5);
    CHECK(coded_pages(&c, 0, 0) == 4 && coded_pages(&c, 0, 1) == 2);
    CHECK(decode_and_check(&w, &c, t) < 2e-5); /* 160: 96 lie outside the newest 64 */
    CHECK(coded_pages(&c, 0, 0) == 4 && coded_pages(&c, 0, 1) == 3);
    for (t = 160; t < 192; t++) CHECK(decode_and_check(&w, &c, t) < 2e-5);
    CHECK(coded_pages(&c, 0, 0) == 6 && coded_pages(&c, 0, 1) == 4);
    stop(&w, &c);
}
TEST(fewer_rows_than_the_window_are_as_without_a_codec) {
    world w; kvmem_cache c; float *a, *b;
    REQUIRE(start(&w, &c, 2, 4, 2, 8, 200, "kivi", 1));
    a = outs(&w, 120); b = outs(&w, 120);
    CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, a));
    CHECK_OK(feed(&w, &c, 100, 120, 1, KVMEM_DECODE, a + 100 * 64));
    kvmem_cache_free(&c);
    CHECK_OK(kvmem_recipe_parse(&w.recipe, "full codec=f16 page=32", NULL));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, b));
    CHECK_OK(feed(&w, &c, 100, 120, 1, KVMEM_DECODE, b + 100 * 64));
    CHECK(same_out(&w, a, b, 120));
    free(a); free(b); stop(&w, &c);
}
TEST(sinks_stay_half_floats_in_a_coded_page) {
    world w; kvmem_cache c; float k[100 * 8], v[100 * 8]; int t, x; double first = 0, rest = 0;
    REQUIRE(start(&w, &c, 1, 2, 1, 8, 200, "full codec=q4_0(sinks=3) page=32", 0));
    CHECK_OK(feed(&w, &c, 0, 100, 50, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, 100, k, v, NULL));
    for (t = 0; t < 96; t++) {
        for (x = 0; x < 8; x++) {
            const double e =
                fabs((double)(k[t * 8 + x] - w.k[t * 8 + x])) + fabs((double)(v[t * 8 + x] - w.v[t * 8 + x]));
            if (t < 3) first = KVMEM__MAX(first, e);
            else rest += e / (93 * 8);
        }
    }
    CHECK(first < 4e-3 && rest > 2e-2);
    CHECK(c.lane[0].pages[0]->side[0].n_exact == 3 && c.lane[0].pages[1]->side[0].n_exact == 0);
    CHECK(decode_and_check(&w, &c, 100) < 2e-5);
    stop(&w, &c);
}
/* Mean squared error of the keys of lane 0 that the cache holds. */
static double key_error(const world *w, const kvmem_cache *c, int n) {
    float *k = (float *)malloc((size_t)(n * w->d) * 4);
    double e = 0;
    int i;
    kvmem_cache_read(c, 0, 0, 0, n, k, NULL, NULL);
    for (i = 0; i < n * w->d; i++)
        e += ((double)k[i] - (double)w->k[i]) * ((double)k[i] - (double)w->k[i]) / (n * w->d);
    free(k);
    return e;
}
TEST(centring_cuts_the_error_of_keys_with_an_offset) {
    static const char *const recipe[3] = { "full codec=q4_0 page=64", "full codec=q4_0(center=head) page=64",
                                           "full codec=q4_0(center=block) page=64" };
    double e[3];
    int i, j;
    for (i = 0; i < 3; i++) {
        world w; kvmem_cache c;
        test_state = 5;
        REQUIRE(start(&w, &c, 1, 1, 1, 32, 200, recipe[i], 0));
        for (j = 0; j < 200 * 32; j += 32) w.k[j + 7] += 20;
        CHECK_OK(feed(&w, &c, 0, 192, 64, KVMEM_PROMPT_END, NULL));
        e[i] = key_error(&w, &c, 192);
        CHECK(decode_and_check(&w, &c, 192) < 2e-5);
        stop(&w, &c);
    }
    CHECK(e[1] < 0.2 * e[0] && e[2] < 0.2 * e[0]);
}
TEST(keys_before_rope_are_read_where_they_belong) {
    static const char *const recipe[3] = { "full codec.k=kvquant(bits=4) page=32",
        "full codec.k=rotatekv(bits=4) page=32", "window budget=100 codec.k=kvquant(bits=4) place=cache page=32" };
    int i, t;
    for (i = 0; i < 2; i++) {
        world w; kvmem_cache c; double e;
        REQUIRE(start(&w, &c, 2, 4, 2, 32, 200, recipe[i], 1));
        CHECK_OK(feed(&w, &c, 0, 100, 50, KVMEM_PROMPT_END, NULL));
        CHECK(c.lane[0].pages[0]->pre && coded_pages(&c, 0, 0) == 3);
        for (t = 100; t < 140; t++) CHECK((e = decode_and_check(&w, &c, t)) < 3e-5);
        CHECK_OK(kvmem_cache_recode(&c, "f32", NULL)); /* rotated for good */
        CHECK(!c.lane[0].pages[0]->pre);
        for (t = 140; t < 150; t++) CHECK(decode_and_check(&w, &c, t) < 3e-5);
        CHECK_OK(kvmem_cache_recode(&c, i ? "rotatekv(bits=4)" : "kvquant(bits=4)", NULL));
        CHECK(c.lane[0].pages[0]->pre);
        for (t = 150; t < 160; t++) CHECK(decode_and_check(&w, &c, t) < 3e-5);
        stop(&w, &c);
    }
    {
        world w; kvmem_cache c;
        REQUIRE(start(&w, &c, 1, 2, 1, 32, 300, recipe[2], 1));
        CHECK_OK(feed(&w, &c, 0, 300, 50, KVMEM_PROMPT_END, NULL));
        stop(&w, &c);
    }
}
/* Every codec of both stages in one recipe text. */
static int codec_text(int i, int side, char *text, const char *more) {
    const kvmem_codec *c = kvmem__codec_table(i);
    if (!c || (c->flags & (side ? KVMEM_CODEC_KEYS : KVMEM_CODEC_VALUES))) return 0;
    if (!strcmp(c->e.word, "key")) return 0; /* values that are keys: tests/transform.c */
    sprintf(text, "%s codec.%s=%s", more, side ? "v" : "k", c->e.word);
    return 1;
}
TEST(attention_over_codes_equals_decode_then_compute_for_every_codec_and_after_eviction) {
    static const char *const how[3] = { "full page=16 when=block", "h2o budget=40 recent=10 page=16",
                                        "window budget=50 page=16" };
    static const int dims[3] = { 16, 7, 33 };
    int i, m, x, side, t;
    for (i = 0; kvmem__codec_table(i); i++) {
        for (side = 0; side < 2; side++) {
            for (m = 0; m < 3; m++) {
                for (x = 0; x < 3; x++) {
                    world w; kvmem_cache c; char text[200]; double e = 0;
                    const int rope = dims[x] % 2 == 0;
                    if (!codec_text(i, side, text, how[m])) continue;
                    REQUIRE(start(&w, &c, 1, 2, 1, dims[x], 120, text, rope));
                    CHECK_OK(feed(&w, &c, 0, 90, 45, KVMEM_PROMPT_END, NULL));
                    for (t = 90; t < 110; t++) widen(&e, decode_and_check(&w, &c, t));
                    if (!(e < 2e-4)) FAIL_AT("%s, head size %d: differs by %g", text, dims[x], e);
                    stop(&w, &c);
                }
            }
        }
    }
}
TEST(eviction_cuts_rows_out_of_coded_blocks_and_codes_nothing_again) {
    world w; kvmem_cache c; float a[8 * 150], b[8 * 150]; int32_t pa[150], pb[150]; int t, i, j, n, m, same = 0;
    REQUIRE(start(&w, &c, 1, 2, 1, 8, 200, "h2o budget=60 recent=20 page=32 codec=kivi(bits=3)", 0));
    CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, NULL));
    for (t = 150; t < 180; t++) {
        n = kvmem_cache_lane_len(&c, 0, 0);
        CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, n, a, NULL, pa));
        CHECK(decode_and_check(&w, &c, t) < 2e-5);
        m = kvmem_cache_lane_len(&c, 0, 0);
        CHECK(m == 60);
        CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, m, b, NULL, pb));
        for (i = j = 0; i < m; i++) { /* what was coded before is what it was */
            while (j < n && pa[j] < pb[i]) j++;
            if (j < n && pa[j] == pb[i] && pa[j] < 120) same += !memcmp(a + 8 * j, b + 8 * i, 32) ? 1 : -1000;
        }
    }
    CHECK(same > 300);
    stop(&w, &c);
}
TEST(freed_rows_are_freed_bytes) {
    world w; kvmem_cache c; kvmem_bytes before, after; test_heap h; size_t base;
    memset(&h, 0, sizeof h);
    REQUIRE(world_init(&w, 2, 4, 2, 16, 700, "snapkv budget=64 recent=16 codec=kivi(bits=2) page=32"));
    CHECK_OK(kvmem_recipe_parse(
        &w.recipe, "score=snapkv(window=16) budget=64 recent=16 when=every(300) codec=kivi(bits=2) page=32", NULL));
    w.cfg.allocator = test_allocator(&h);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    base = h.live;
    CHECK_OK(feed(&w, &c, 0, 64, 64, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 64, 340, 1, KVMEM_DECODE, NULL));
    kvmem_cache_bytes(&c, &before);
    CHECK_OK(feed(&w, &c, 340, 365, 1, KVMEM_DECODE, NULL)); /* reduces at 364 */
    kvmem_cache_bytes(&c, &after);
    CHECK(after.live.k + after.live.v < (before.live.k + before.live.v) / 2);
    CHECK(after.live.total == h.live && after.peak.total == h.peak);
    kvmem_cache_clear(&c);
    kvmem_cache_bytes(&c, &after);
    CHECK(after.live.k == 0 && after.live.v == 0 && h.live < base + 20000);
    kvmem_cache_free(&c);
    CHECK(h.live == 0 && !h.wrong);
    world_free(&w);
}
TEST(lanes_have_their_own_codecs) {
    world w; kvmem_cache c; kvmem_bytes b; int t, i;
    static const char *const word[8] = { "q8_0", "q8_0", "kivi", "q4_0", "kivi", "kivi", "f16", "f16" };
    REQUIRE(start(&w, &c, 4, 4, 2, 16, 200,
                  "full codec=kivi(bits=2) codec@0=q8_0 codec@1:1=q4_0 codec@-1=f16 page=32", 1));
    for (i = 0; i < 8; i++) CHECK(!strcmp(c.lane[i].use[0]->fn.e.word, word[i]));
    CHECK_OK(feed(&w, &c, 0, 100, 50, KVMEM_PROMPT_END, NULL));
    for (t = 100; t < 140; t++) CHECK(decode_and_check(&w, &c, t) < 2e-5);
    kvmem_cache_bytes(&c, &b);
    stop(&w, &c);
}
static int text_is(const char *in, const char *want) {
    kvmem_recipe r, again;
    kvmem_error e;
    char text[2000], twice[2000];
    if (kvmem_recipe_parse(&r, in, &e) != KVMEM_OK) { printf("  %s: %s\n", in, e.text); return 0; }
    kvmem_recipe_print(&r, text, sizeof text);
    if (kvmem_recipe_parse(&again, text, &e) != KVMEM_OK) { printf("  %s: %s\n", text, e.text); return 0; }
    kvmem_recipe_print(&again, twice, sizeof twice);
    if (!strstr(text, want)) printf("  %s\n", text);
    return !strcmp(text, twice) && strstr(text, want) != NULL;
}
TEST(maps_and_demotion_print_back) {
    CHECK(text_is("full codec@0..1=q8_0", "codec.k@0..1=q8_0(rot=none"));
    CHECK(text_is("full codec.v@-2..-1:0=f16", "codec.v@-2..-1:0..0=f16"));
    CHECK(text_is("h2o reduce=demote(f16/bf16)", "reduce=demote(f16/bf16)"));
    CHECK(text_is("h2o reduce=demote(kivi(bits=2,axis=token))", "reduce=demote(kivi(bits=2,"));
}
static int refused(const char *text, const char *why) {
    kvmem_recipe r;
    kvmem_error e;
    if (kvmem_recipe_parse(&r, text, &e) == KVMEM_OK) { printf("  %s was accepted\n", text); return 0; }
    if (!strstr(e.text, why)) printf("  %s: %s\n", text, e.text);
    return strstr(e.text, why) != NULL;
}
TEST(what_cannot_work_together_is_refused_with_a_sentence) {
    CHECK(refused("h2o reduce=demote", "needs a codec in brackets"));
    CHECK(refused("h2o reduce=demote(q4_0", "')' is missing"));
    CHECK(refused("h2o reduce=demote(nonsense)", "unknown codec"));
    CHECK(refused("h2o reduce=demote(q4_0) place=cache", "place=original"));
    CHECK(refused("h2o budget=8MiB reduce=demote(q4_0)", "never dropped"));
    CHECK(refused("full codec.v=polark", "keys only"));
    CHECK(refused("full codec@=q4_0", "after '@'"));
    CHECK(refused("full codec@3..1=q4_0", "lower to the higher"));
    CHECK(refused("full codec@0:-1=q4_0", "after '@'"));
    CHECK(refused("full score@1=h2o", "term before '@'"));
    CHECK(refused("full codec@0=q4_0 codec@1=q4_0 codec@2=q4_0 codec@3=q4_0 codec@4=q4_0", "more than 8"));
}
TEST(demoted_entries_are_read_and_counted) {
    static const char *const recipe[4] = { "h2o budget=40 recent=20 reduce=demote(q4_0) codec=f16 page=16",
        "h2o budget=40 recent=20 reduce=demote(kivi(bits=2)/kivi(bits=2,axis=token)) codec=f16 page=16",
        "tova budget=40 reduce=demote(kvquant/q4_0) codec=f32 page=16",
        "window budget=40 reduce=demote(f32) codec=f32 page=16" };
    int i, t;
    for (i = 0; i < 4; i++) {
        world w; kvmem_cache c; double e = 0; kvmem_bytes b;
        REQUIRE(start(&w, &c, 2, 4, 2, 16, 200, recipe[i], 1));
        CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, NULL));
        CHECK(kvmem_cache_lane_len(&c, 0, 0) == 150 && c.lane[0].n == 40 && c.lane[4].n == 110);
        for (t = 150; t < 180; t++) widen(&e, decode_and_check(&w, &c, t));
        if (!(e < 3e-5)) FAIL_AT("%s: differs by %g", recipe[i], e);
        kvmem_cache_bytes(&c, &b);
        CHECK(b.entries == 4 * 180);
        CHECK_OK(kvmem_cache_truncate(&c, 100));
        CHECK(kvmem_cache_lane_len(&c, 1, 1) == 100);
        for (t = 100; t < 120; t++) widen(&e, decode_and_check(&w, &c, t));
        if (!(e < 3e-5)) FAIL_AT("%s after truncation: differs by %g", recipe[i], e);
        stop(&w, &c);
    }
}
TEST(demotion_without_loss_is_full_attention) {
    world w; kvmem_cache c; float *a; int t;
    REQUIRE(start(&w, &c, 2, 4, 2, 8, 220, "window budget=40 reduce=demote(f32) codec=f32 page=16", 1));
    a = outs(&w, 200);
    CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, a));
    CHECK_OK(feed(&w, &c, 150, 200, 1, KVMEM_DECODE, a + 150 * 64));
    CHECK_NEAR(worst_full(&w, a, 0, 200), 0, 2e-5);
    free(a); kvmem_cache_free(&c);
    w.cfg.shape.window = w.window; w.window[0] = 70; w.window[1] = 30; /* hidden by position, not by place */
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    a = outs(&w, 200);
    CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, a));
    CHECK_OK(feed(&w, &c, 150, 200, 1, KVMEM_DECODE, a + 150 * 64));
    CHECK_NEAR(worst_full(&w, a, 0, 200), 0, 2e-5);
    (void)t;
    free(a); stop(&w, &c);
}
typedef struct tally { int n[5]; } tally;
static void count_fate(void *user, int layer, int g, int32_t pos, kvmem_fate fate, int64_t tokens) {
    (void)layer; (void)g; (void)pos; (void)tokens;
    ((tally *)user)->n[fate]++;
}
TEST(the_trace_tells_what_is_settled_and_demoted) {
    world w; kvmem_cache c; tally n;
    memset(&n, 0, sizeof n);
    REQUIRE(start(&w, &c, 1, 2, 1, 8, 200, "h2o budget=50 recent=20 reduce=demote(kivi(bits=2)) codec=f16 page=16", 0));
    kvmem_cache_trace(&c, count_fate, &n);
    CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, NULL));
    CHECK(n.n[KVMEM_FATE_KEPT] == 150 && n.n[KVMEM_FATE_DEMOTED] == 100 && n.n[KVMEM_FATE_DROPPED] == 0);
    CHECK(n.n[KVMEM_FATE_RECODED] == 96); /* six whole pages of those 100 */
    stop(&w, &c);
}
TEST(save_load_continue_is_bit_identical_for_every_codec) {
    int i, side, k;
    for (i = 0; kvmem__codec_table(i); i++) {
        for (side = 0; side < 2; side++) {
            for (k = 0; k < 2; k++) {
                world w; kvmem_cache c, d; float *a, *b; bytes s; char text[200]; kvmem_cache_info info; kvmem_error e;
                memset(&s, 0, sizeof s);
                if (!codec_text(i, side, text, k ? "h2o budget=50 recent=10 reduce=demote(q4_0) page=16"
                                                 : "h2o budget=50 recent=10 page=16")) continue;
                REQUIRE(start(&w, &c, 1, 2, 1, 16, 160, text, 1));
                a = outs(&w, 40); b = outs(&w, 40);
                CHECK_OK(feed(&w, &c, 0, 100, 40, KVMEM_PROMPT_END, NULL));
                CHECK_OK(feed(&w, &c, 100, 107, 1, KVMEM_DECODE, NULL));
                CHECK_OK(kvmem_cache_save(&c, bytes_write, &s));
                CHECK_OK(kvmem_cache_inspect(s.p, s.n, &info, &e));
                CHECK(info.entries == (size_t)kvmem_cache_lane_len(&c, 0, 0));
                CHECK_OK(kvmem_cache_init(&d, &w.cfg));
                if (kvmem_cache_load(&d, s.p, s.n) != KVMEM_OK) FAIL_AT("%s: %s", text, d.error.text);
                CHECK_OK(feed(&w, &c, 107, 140, 1, KVMEM_DECODE, a));
                CHECK_OK(feed(&w, &d, 107, 140, 1, KVMEM_DECODE, b));
                if (!same_out(&w, a, b, 33)) FAIL_AT("%s: differs after loading", text);
                kvmem_cache_free(&d); free(a); free(b); free(s.p); stop(&w, &c);
            }
        }
    }
}
TEST(hostile_blocks_are_refused_or_harmless) {
    int i, side, k;
    for (i = 0; kvmem__codec_table(i); i++) {
        for (side = 0; side < 2; side++) {
            world w; kvmem_cache c; bytes s; char text[200]; float *o;
            memset(&s, 0, sizeof s);
            if (!codec_text(i, side, text, "full page=16")) continue;
            REQUIRE(start(&w, &c, 1, 2, 1, 16, 100, text, 1));
            CHECK_OK(feed(&w, &c, 0, 60, 30, KVMEM_PROMPT_END, NULL));
            CHECK_OK(kvmem_cache_save(&c, bytes_write, &s));
            o = outs(&w, 10);
            for (k = 0; k < 150; k++) { /* any byte behind the recipe, with a checksum that fits */
                const size_t at = 500 + (size_t)(test_unit() * (double)(s.n - 504));
                const unsigned char old = s.p[at];
                s.p[at] = (unsigned char)(k % 3 ? 255 : (int)(256 * test_unit()));
                kvmem__put32(s.p + s.n - 4, kvmem__crc32(0, s.p, s.n - 4));
                if (kvmem_cache_load(&c, s.p, s.n) == KVMEM_OK) {
                    quiet = 1;
                    feed(&w, &c, 60, 64, 1, KVMEM_DECODE, o); /* may be nonsense, must not leave its memory */
                    quiet = 0;
                }
                s.p[at] = old;
            }
            free(o); free(s.p); stop(&w, &c);
        }
    }
}
TEST(a_byte_limit_holds_with_rows_that_wait) {
    static const char *const recipe[4] = { "h2o budget=96KiB codec=kivi(bits=2) page=32",
        "window budget=64KiB codec=q4_0(center=block)", "h2o budget=96KiB codec=gear(bits=4) page=32",
        "window budget=64KiB codec=turboquant(bits=3)" };
    int i;
    for (i = 0; i < 4; i++) {
        world w; kvmem_cache c; test_heap h; kvmem_bytes b;
        memset(&h, 0, sizeof h);
        REQUIRE(world_init(&w, 2, 4, 2, 16, 600, recipe[i]));
        w.cfg.allocator = test_allocator(&h);
        w.cfg.shape.rope = w.rope;
        if (kvmem_cache_init(&c, &w.cfg) != KVMEM_OK) FAIL_AT("%s: %s", recipe[i], c.error.text);
        CHECK_OK(feed(&w, &c, 0, 500, 64, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 500, 600, 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &b);
        CHECK(h.peak <= b.limit && b.live.total == h.live);
        kvmem_cache_free(&c);
        CHECK(h.live == 0 && !h.wrong);
        world_free(&w);
    }
}
TEST(an_estimate_counts_pages_that_wait) {
    static const char *const recipe[5] = { "kivi", "full codec=q4_0(center=head)",
                                           "full codec=gear(bits=4) codec@0=q8_0 page=64",
                                           "window budget=128 reduce=demote(q4_0) codec=f16",
                                           "snapkv budget=128 codec=kivi(bits=4) page=32" };
    int i;
    for (i = 0; i < 5; i++) {
        world w; kvmem_cache c; kvmem_bytes est, got; kvmem_error e;
        REQUIRE(start(&w, &c, 2, 4, 2, 16, 400, recipe[i], 1));
        CHECK_OK(kvmem_estimate(&w.cfg, 320, 40, &est, &e));
        CHECK_OK(feed(&w, &c, 0, 320, 512, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 320, 360, 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &got);
        CHECK_NEAR((double)est.live.total / (double)got.live.total, 1, 0.02);
        CHECK_NEAR((double)est.peak.total / (double)got.peak.total, 1, 0.1);
        CHECK(est.entries == got.entries);
        stop(&w, &c);
    }
}
TEST(what_was_learned_outlives_clear_and_is_shared_by_copies) {
    world w; kvmem_cache c, d; const kvmem_lesson *l;
    REQUIRE(start(&w, &c, 1, 2, 1, 16, 200, "full codec.k=kvquant(bits=3) page=32", 1));
    CHECK_OK(feed(&w, &c, 0, 100, 50, KVMEM_PROMPT_END, NULL));
    l = c.lane[0].lesson[0];
    REQUIRE(l && l->learned);
    kvmem_cache_clear(&c);
    CHECK(c.lane[0].lesson[0] == l && l->learned);
    CHECK_OK(kvmem_cache_copy(&d, &c));
    CHECK(d.lane[0].lesson[0] == l);
    CHECK_OK(feed(&w, &d, 0, 100, 50, KVMEM_PROMPT_END, NULL));
    CHECK(d.lane[0].pages[0]->side[0].lesson == l);
    kvmem_cache_free(&d);
    stop(&w, &c);
}
TEST(threads_give_the_same_bits) {
    static const char *const recipe[3] = { "kivi page=16",
                                           "h2o budget=60 recent=20 reduce=demote(q4_0) codec=turboquant",
                                           "full codec=gear(bits=4)" };
    int i, k;
    for (i = 0; i < 3; i++) {
        float *o[2];
        world w; kvmem_cache c;
        for (k = 0; k < 2; k++) {
            test_state = 99;
            REQUIRE(world_init(&w, 2, 4, 2, 16, 300, recipe[i]));
            w.cfg.threads = k ? 3 : 1;
            w.cfg.backend = NULL;
            o[k] = outs(&w, 300);
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 0, 250, 64, KVMEM_PROMPT_END, o[k]));
            CHECK_OK(feed(&w, &c, 250, 300, 1, KVMEM_DECODE, o[k] + 250 * 128));
            kvmem_cache_free(&c);
            if (!k) world_free(&w);
        }
        CHECK(same_out(&w, o[0], o[1], 300));
        free(o[0]); free(o[1]); world_free(&w);
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "settle");
    RUN(a_full_page_is_coded_when_the_prompt_ends_and_attention_before_is_exact);
    RUN(when_block_codes_during_the_prompt);
    RUN(a_residual_window_slides_by_pages_or_is_flushed_whole);
    RUN(fewer_rows_than_the_window_are_as_without_a_codec);
    RUN(sinks_stay_half_floats_in_a_coded_page);
    RUN(centring_cuts_the_error_of_keys_with_an_offset);
    RUN(keys_before_rope_are_read_where_they_belong);
    RUN(attention_over_codes_equals_decode_then_compute_for_every_codec_and_after_eviction);
    RUN(eviction_cuts_rows_out_of_coded_blocks_and_codes_nothing_again);
    RUN(freed_rows_are_freed_bytes);
    RUN(lanes_have_their_own_codecs);
    RUN(maps_and_demotion_print_back);
    RUN(what_cannot_work_together_is_refused_with_a_sentence);
    RUN(demoted_entries_are_read_and_counted);
    RUN(demotion_without_loss_is_full_attention);
    RUN(the_trace_tells_what_is_settled_and_demoted);
    RUN(save_load_continue_is_bit_identical_for_every_codec);
    RUN(hostile_blocks_are_refused_or_harmless);
    RUN(a_byte_limit_holds_with_rows_that_wait);
    RUN(an_estimate_counts_pages_that_wait);
    RUN(what_was_learned_outlives_clear_and_is_shared_by_copies);
    RUN(threads_give_the_same_bits);
    return test_end();
}
