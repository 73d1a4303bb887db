/* What a cache is told of the model beyond rows: hidden states, the output projection, and probe tokens, which look
   at the entries and leave no trace. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "tiny.h"
#include "world.h"

/* A user's own score entry that shows what the cache has collected. */
static float told[64], l1_told[64], l2_told[64];
static int n_told;
static kvmem_status spy(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g);
    int t;
    if (v->layer == 1 && g == 1 && n <= 64) {
        n_told = n;
        kvmem_view_hidden(v, g, told);
        KVMEM__TRY(kvmem_view_output(v, 3, l1_told, l2_told));
    }
    for (t = 0; t < n; t++) score[t] = (float)t;
    return KVMEM_OK;
}
static const kvmem_score_entry spy_entry = {
    { "spy", "for tests", "-", NULL, KVMEM_READS_HIDDEN | KVMEM_READS_OUTPUT | KVMEM_READS_LANES }, spy, NULL };

TEST(hidden_norms_follow_their_entries_and_output_norms_are_asked_for_each_head) {
    world w; kvmem_cache c; int t, i;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 60, "score=random budget=30 recent=30 page=4 when=prompt"));
    w.recipe.stage[KVMEM_SCORE].entry = &spy_entry.e;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 40, 16, KVMEM_PROMPT_END, NULL));
    CHECK(kvmem_cache_lane_len(&c, 1, 1) == 30);
    CHECK_OK(feed(&w, &c, 40, 50, 1, KVMEM_PROMPT_END, NULL)); /* 10 to 39 have moved to the front */
    CHECK(n_told == 40);
    for (t = 0; t < n_told; t++) {
        const float *q = row_q(&w, 10 + t, 1), *v = row_k(&w, w.v, 10 + t, 1) + 8;
        double a = 0, b = 0, s = 0;
        for (i = 0; i < 32; i++) s += (double)q[i] * (double)q[i];
        for (i = 0; i < 8; i++) { a += fabs((double)v[i]); b += (double)v[i] * (double)v[i]; }
        CHECK_NEAR(told[t], sqrt(s), 1e-5);
        CHECK_NEAR(l1_told[t], 5 * a, 1e-4);
        CHECK_NEAR(l2_told[t], 5 * sqrt(b), 1e-4);
    }
    kvmem_cache_free(&c); world_free(&w);
}
TEST(hidden_states_and_the_output_projection_are_missed_aloud) {
    world w; kvmem_cache c; float x[64], out[64]; int i, l;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 60, "score=random budget=5 when=prompt"));
    memset(x, 0, sizeof x);
    w.recipe.stage[KVMEM_SCORE].entry = &spy_entry.e;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(kvmem_cache_hidden(&c, 0, 1, x, 8) == KVMEM_BAD_STATE); /* nothing appended */
    CHECK_OK(kvmem_cache_append(&c, 0, 1, x, x, NULL));
    CHECK(kvmem_cache_attend(&c, 0, 1, x, out) == KVMEM_BAD_STATE && strstr(c.error.text, "kvmem_cache_hidden"));
    CHECK(kvmem_cache_hidden(&c, 0, 2, x, 8) == KVMEM_BAD_STATE);
    CHECK(kvmem_cache_hidden(&c, 0, 1, NULL, 8) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_cache_hidden(&c, 0, 1, x, 0) == KVMEM_BAD_ARGUMENT);
    x[3] = INFINITY;
    CHECK(kvmem_cache_hidden(&c, 0, 1, x, 8) == KVMEM_BAD_VALUE);
    x[3] = 0;
    CHECK_OK(kvmem_cache_hidden(&c, 0, 1, x, 8));
    CHECK_OK(kvmem_cache_attend(&c, 0, 1, x, out));
    CHECK_OK(kvmem_cache_append(&c, 1, 1, x, x, NULL));
    CHECK(kvmem_cache_attend(&c, 1, 1, x, out) == KVMEM_BAD_STATE); /* layer 1 has its own */
    kvmem_cache_clear(&c);
    for (i = 0; i < 10; i++) {
        for (l = 0; l < 2; l++) {
            CHECK_OK(kvmem_cache_append(&c, l, 1, x, x, NULL));
            CHECK_OK(kvmem_cache_hidden(&c, l, 1, x, 8));
            CHECK_OK(kvmem_cache_attend(&c, l, 1, x, out));
        }
        if (i < 9) CHECK_OK(kvmem_cache_commit(&c, KVMEM_PREFILL));
        else CHECK(kvmem_cache_commit(&c, KVMEM_PROMPT_END) == KVMEM_BAD_STATE &&
                   strstr(c.error.text, "kvmem_cache_output"));
    }
    kvmem_cache_free(&c); world_free(&w);
}

/* ---- probe tokens ---- */

/* Another spy: what probes saw, lane by lane, query head by query head. */
enum { MOST = 64 };
static float saw[4][8][MOST];
static kvmem_status probe_spy(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g), r = v->cache->shape.n_heads / v->cache->shape.n_kv_heads;
    int t, j;
    for (j = 0; j < r && n <= MOST; j++) kvmem_view_probe(v, g * r + j, saw[v->layer][g * r + j]);
    for (t = 0; t < n; t++) score[t] = (float)t;
    return KVMEM_OK;
}
static const kvmem_param window4[] = { { "window", 4, 1, 64, NULL, 1, "" }, KVMEM__END_PARAMS };
static const kvmem_score_entry probe_entry = {
    { "seer", "for tests", "-", NULL, KVMEM_READS_PROBE }, probe_spy, NULL };
static const kvmem_score_entry greedy_entry = { /* wants everything collected */
    { "greedy", "for tests", "-", window4, KVMEM_READS_PROBE | KVMEM_READS_ACC | KVMEM_READS_LAST |
      KVMEM_READS_QUERIES | KVMEM_READS_HIDDEN }, probe_spy, NULL };
static int spied(world *w, const char *recipe, const kvmem_score_entry *e) {
    if (!world_init(w, 2, 4, 2, 8, 80, recipe)) return 0;
    w->recipe.stage[KVMEM_SCORE].entry = &e->e;
    w->recipe.stage[KVMEM_SCORE].par[0] = 4;
    w->cfg.shape.rope = w->rope;
    w->rope[1].neox = 1;
    return 1;
}
/* The stream up to a prompt that waits. */
static kvmem_status prompt(world *w, kvmem_cache *c, int n) {
    float k[16], v[16], q[32], o[32];
    int t, l;
    for (t = 0; t < n; t++) {
        for (l = 0; l < w->L; l++) {
            memcpy(k, row_k(w, w->k, t, l), sizeof k);
            memcpy(v, row_k(w, w->v, t, l), sizeof v);
            memcpy(q, row_q(w, t, l), sizeof q);
            KVMEM__TRY(kvmem_cache_append(c, l, 1, k, v, NULL));
            KVMEM__TRY(kvmem_cache_hidden(c, l, 1, q, 32));
            KVMEM__TRY(kvmem_cache_attend(c, l, 1, q, o));
        }
        KVMEM__TRY(kvmem_cache_commit(c, t + 1 < n ? KVMEM_PREFILL : KVMEM_PROMPT_END));
    }
    return KVMEM_OK;
}
/* Everything in a cache that a later token could notice. */
static uint64_t digest(const kvmem_cache *c) {
    uint64_t h = 14695981039346656037u;
    int i, j, s;
    h = kvmem__fnv(h, &c->tokens, sizeof c->tokens);
    h = kvmem__fnv(h, &c->next_pos, sizeof c->next_pos);
    h = kvmem__fnv(h, &c->since_reduce, sizeof c->since_reduce);
    h = kvmem__fnv(h, &c->ring_n, sizeof c->ring_n);
    h = kvmem__fnv(h, &c->ring_at, sizeof c->ring_at);
    if (c->ring) {
        h = kvmem__fnv(h, c->ring_q, kvmem__ring_bytes(c));
        h = kvmem__fnv(h, c->ring_pos, (size_t)c->ring * 4);
    }
    if (c->state) h = kvmem__fnv(h, c->state, kvmem__state_bytes(c));
    for (i = 0; i < c->n_lanes; i++) {
        const kvmem_lane *ln = &c->lane[i];
        h = kvmem__fnv(h, &ln->n, sizeof ln->n);
        h = kvmem__fnv(h, &ln->cap_pages, sizeof ln->cap_pages);
        h = kvmem__fnv(h, ln->end, (size_t)ln->n_pages * sizeof *ln->end);
        for (j = 0; j < ln->n_pages; j++) {
            const kvmem_page *p = ln->pages[j];
            const int rows = kvmem__page_rows(ln, j);
            h = kvmem__fnv(h, &p->cap, sizeof p->cap);
            h = kvmem__fnv(h, &p->refs, sizeof p->refs);
            h = kvmem__fnv(h, p->pos, (size_t)rows * 4);
            for (s = 0; s < c->n_stats; s++) h = kvmem__fnv(h, p->stats + s * p->cap, (size_t)rows * 4);
            for (s = 0; s < 2; s++) h = kvmem__fnv(h, p->side[s].data, kvmem__side_bytes(&p->side[s], rows));
        }
    }
    return h;
}
static int told_fates;
static void count_fates(void *user, int layer, int g, int32_t pos, kvmem_fate fate, int64_t tokens) {
    (void)user; (void)layer; (void)g; (void)pos; (void)fate; (void)tokens;
    told_fates++;
}
TEST(probe_tokens_leave_no_trace) {
    static const char *const codec[3] = { "f32", "q8_0", "kivi(bits=2,group=8)" };
    int i;
    for (i = 0; i < 3; i++) {
        world w; kvmem_cache c; kvmem_bytes before, after; uint64_t h; char text[160]; test_heap heap;
        kvmem_probe o = { 1, 1, 2, 4, 20, 0, 0 };
        sprintf(text, "score=random budget=20 recent=3 page=8 when=prompt codec.k=%s codec.v=%s", codec[i],
                i == 2 ? "kivi(bits=2,axis=token,group=8)" : codec[i]);
        REQUIRE(spied(&w, text, &greedy_entry));
        memset(&heap, 0, sizeof heap);
        w.cfg.allocator = test_allocator(&heap);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        REQUIRE_OK(prompt(&w, &c, 45));
        CHECK(c.awaits == 1 && c.tokens == 45 && kvmem_cache_lane_len(&c, 0, 0) == 45);
        kvmem_cache_bytes(&c, &before);
        h = digest(&c);
        kvmem_cache_trace(&c, count_fates, NULL);
        told_fates = 0;
        CHECK_OK(world_probe(&w, &c, NULL, 10, 40));
        CHECK_OK(world_probe(&w, &c, &o, 0, 9));
        CHECK(digest(&c) == h && !told_fates);
        kvmem_cache_bytes(&c, &after);
        CHECK(after.live.total == before.live.total + 2 * 4 * 45 * sizeof(float)); /* what they saw */
        CHECK(after.peak.total == heap.peak && after.live.total == heap.live && after.peak.total > after.live.total);
        CHECK_OK(kvmem_cache_reduce(&c));
        CHECK(!c.awaits && !c.seen && kvmem_cache_lane_len(&c, 1, 1) == 20 && told_fates >= 4 * 25);
        kvmem_cache_trace(&c, NULL, NULL);
        CHECK_OK(kvmem_cache_reduce(&c)); /* nothing to do */
        CHECK_OK(feed(&w, &c, 45, 50, 1, KVMEM_DECODE, NULL));
        CHECK(kvmem_cache_lane_len(&c, 1, 1) == 25); /* when=prompt: once */
        CHECK_OK(feed(&w, &c, 50, 60, 4, KVMEM_PROMPT_END, NULL)); /* the next prompt asks again */
        CHECK(kvmem_cache_lane_len(&c, 1, 1) == 20);
        kvmem_cache_free(&c);
        CHECK(!heap.live && !heap.wrong);
        world_free(&w);
    }
}
/* P of query token q0 + i at position at[i] on entry t < n0 of head h, in double: entries [0, n0) of the stream and
   the probe tokens q0 .. q0 + i; only those with a nonzero byte in see (n0) count, and all probe tokens. */
static double probability(const world *w, int l, int h, int n0, int q0, int i, const int *at, const char *see, int t) {
    const int d = w->d, g = h / (w->H / w->G);
    double q[8], k[8], z[MOST + 16], m = -1e300, sum = 0;
    int e, c;
    for (c = 0; c < d; c++) q[c] = (double)row_q(w, q0 + i, l)[h * d + c];
    turn(q, d, &w->rope[l], at[i]);
    for (e = 0; e <= n0 + i; e++) {
        const int token = e < n0 ? e : q0 + e - n0;
        z[e] = -1e300;
        if (e < n0 && !see[e]) continue;
        for (c = 0; c < d; c++) k[c] = (double)row_k(w, w->k, token, l)[g * d + c];
        turn(k, d, &w->rope[l], e < n0 ? e : at[e - n0]);
        for (z[e] = c = 0; c < d; c++) z[e] += q[c] * k[c];
        z[e] /= sqrt((double)d);
        m = KVMEM__MAX(m, z[e]);
    }
    for (e = 0; e <= n0 + i; e++) sum += exp(z[e] - m);
    return exp(z[t] - m) / sum;
}
TEST(probes_see_what_the_definition_says) {
    static const kvmem_probe opt[4] = {
        { 0, 0, 0, 0, 0, 0, 0 }, { 1, 0, 3, 10, 30, 0, 0 }, { 0, 0, 0, 0, 12, 0, 0 }, { 1, 1, 3, 2, 45, 0, 0 } };
    int a, l, h, t, i, n0 = 45;
    for (a = 0; a < 4; a++) {
        const kvmem_probe *o = &opt[a];
        world w; kvmem_cache c; int at[12]; char see[MOST];
        const int from = o->to ? o->from : 0, to = o->to ? KVMEM__MIN(o->to, n0) : n0;
        REQUIRE(spied(&w, "score=random budget=20 page=8 when=prompt codec=f32", &probe_entry));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        REQUIRE_OK(prompt(&w, &c, n0));
        CHECK_OK(world_probe(&w, &c, o, 50, 62));
        CHECK_OK(kvmem_cache_reduce(&c));
        for (i = 0; i < 12; i++) at[i] = n0 + i;
        for (t = 0; t < n0; t++) see[t] = !o->to || t < o->sink || (t >= from && t < to);
        for (l = 0; l < 2; l++) for (h = 0; h < 4; h++) for (t = 0; t < n0; t++) {
            double sum = 0, top = 0;
            for (i = 0; i < 12 && t >= from && t < to; i++) {
                double p = probability(&w, l, h, n0, 50, i, at, see, t), norm = 0;
                int e;
                for (e = 0; e < 32; e++) norm += (double)row_q(&w, 50 + i, l)[e] * (double)row_q(&w, 50 + i, l)[e];
                if (o->hidden) p /= sqrt(norm);
                sum += p;
                top = KVMEM__MAX(top, p);
            }
            CHECK_NEAR(saw[l][h][t], t < from || t >= to ? -1 : o->max ? top : sum, 2e-6);
        }
        kvmem_cache_free(&c); world_free(&w);
    }
}
/* Probe tokens 50 .. 55 at positions first, first + 1, ...; turned: rows come rotated by `turned` already. */
static void probe_at(world *w, kvmem_cache *c, int first, int turned) {
    kvmem_cache p;
    int l, t, g;
    CHECK_OK(kvmem_cache_probe(&p, c, NULL));
    for (t = 0; t < 6; t++) {
        const int32_t pos = (int32_t)(first + t), by = (int32_t)turned;
        for (l = 0; l < w->L; l++) {
            float k[16], v[16], q[32], o[32];
            memcpy(k, row_k(w, w->k, 50 + t, l), sizeof k);
            memcpy(v, row_k(w, w->v, 50 + t, l), sizeof v);
            memcpy(q, row_q(w, 50 + t, l), sizeof q);
            for (g = 0; g < 2; g++) kvmem__rope_rows(c, l, k + g * 8, 1, &by);
            for (g = 0; g < 4; g++) kvmem__rope_rows(c, l, q + g * 8, 1, &by);
            CHECK_OK(kvmem_cache_append(&p, l, 1, k, v, &pos));
            CHECK_OK(kvmem_cache_attend(&p, l, 1, q, o));
        }
        CHECK_OK(kvmem_cache_commit(&p, KVMEM_DECODE));
    }
    CHECK(p.tokens == 46 && kvmem_cache_lane_len(&p, 0, 1) == 46);
    kvmem_cache_free(&p);
}
TEST(dapq_positions_shifted_by_D_are_queries_turned_by_D) {
    world w; kvmem_cache c; int a, l, h, t; static float first[2][4][MOST];
    REQUIRE(spied(&w, "score=random budget=20 page=8 when=prompt codec=f32", &probe_entry));
    for (a = 0; a < 2; a++) {
        double sum = 0;
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        REQUIRE_OK(prompt(&w, &c, 40));
        if (!a) probe_at(&w, &c, 47, 0);
        else probe_at(&w, &c, 40, 7);
        CHECK_OK(kvmem_cache_reduce(&c));
        for (l = 0; l < 2; l++) for (h = 0; h < 4; h++) {
            for (sum = t = 0; t < 40; t++) {
                if (!a) first[l][h][t] = saw[l][h][t];
                else CHECK_NEAR(saw[l][h][t], first[l][h][t], 2e-6);
                sum += (double)saw[l][h][t];
            }
            CHECK(sum <= 6.0001); /* the sum over entries: at most the number of probe tokens */
        }
        kvmem_cache_free(&c);
    }
    world_free(&w);
}
TEST(a_prompt_that_waits_says_so) {
    world w; kvmem_cache c, copy, p, none; bytes file = { NULL, 0, 0 }; float x[64] = { 0 };
    kvmem_probe bad = { 0, 0, 0, 5, 5, 0, 0 }, worse = { 0, 0, -1, 0, 5, 0, 0 };
    REQUIRE(spied(&w, "score=random budget=20 page=8 when=prompt", &probe_entry));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(kvmem_cache_probe(&p, &c, NULL) == KVMEM_BAD_STATE && !p.arena); /* nothing waits */
    REQUIRE_OK(prompt(&w, &c, 15));
    CHECK(!c.awaits); /* nor below the budget */
    kvmem_cache_clear(&c);
    REQUIRE_OK(prompt(&w, &c, 30));
    CHECK(c.awaits);
    CHECK(kvmem_cache_append(&c, 0, 1, x, x, NULL) == KVMEM_BAD_STATE && strstr(c.error.text, "kvmem_cache_reduce"));
    CHECK(kvmem_cache_reduce(&c) == KVMEM_BAD_STATE && strstr(c.error.text, "probe") && c.awaits);
    CHECK(kvmem_cache_save(&c, bytes_write, &file) == KVMEM_BAD_STATE && !file.n);
    CHECK(kvmem_cache_probe(&p, &c, &bad) == KVMEM_BAD_ARGUMENT && kvmem_cache_probe(&p, &c, &worse) < 0);
    CHECK_OK(kvmem_cache_copy(&copy, &c)); /* a copy has its own probes */
    CHECK_OK(world_probe(&w, &c, NULL, 0, 4));
    CHECK(kvmem_cache_reduce(&copy) == KVMEM_BAD_STATE);
    CHECK_OK(world_probe(&w, &copy, NULL, 0, 4));
    CHECK_OK(kvmem_cache_probe(&p, &copy, NULL));
    CHECK(kvmem_cache_commit_layer(&p, 0, KVMEM_DECODE) < 0 && kvmem_cache_copy(&none, &p) == KVMEM_BAD_STATE);
    CHECK_OK(kvmem_cache_reduce(&copy));
    CHECK_OK(kvmem_cache_append(&p, 0, 1, x, x, NULL)); /* too late */
    CHECK(kvmem_cache_attend(&p, 0, 1, x, x + 32) == KVMEM_BAD_STATE);
    kvmem_cache_free(&p);
    kvmem_cache_free(&copy);
    kvmem_cache_free(&c);
    world_free(&w);
}
TEST(a_prompt_that_was_cut_does_not_wait) {
    world w; kvmem_cache c; kvmem_bytes b;
    REQUIRE(spied(&w, "score=random budget=20 page=8 when=prompt", &probe_entry));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    REQUIRE_OK(prompt(&w, &c, 30));
    CHECK_OK(world_probe(&w, &c, NULL, 0, 4));
    CHECK_OK(kvmem_cache_truncate(&c, 25));
    CHECK(!c.awaits && !c.seen);
    CHECK_OK(feed(&w, &c, 25, 40, 5, KVMEM_PROMPT_END, NULL));
    CHECK(kvmem_cache_lane_len(&c, 0, 0) == 20);
    kvmem_cache_clear(&c);
    REQUIRE_OK(prompt(&w, &c, 30));
    CHECK_OK(world_probe(&w, &c, NULL, 0, 4));
    kvmem_cache_clear(&c);
    kvmem_cache_bytes(&c, &b);
    CHECK(!c.awaits && !b.live.stats);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(probes_keep_a_limit_in_bytes_or_say_that_they_cannot) {
    world w; kvmem_cache c; kvmem_bytes b; size_t limit = 0; int k, good = 0, bad = 0;
    REQUIRE(spied(&w, "score=random budget=20 page=8 when=prompt codec=f32", &probe_entry));
    for (k = 0; k < 24; k++) {
        test_heap heap; kvmem_status st; uint64_t h;
        memset(&heap, 0, sizeof heap);
        w.cfg.allocator = test_allocator(&heap);
        w.cfg.max_bytes = limit ? limit + (size_t)k * 2000 : 0;
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        REQUIRE_OK(prompt(&w, &c, 45));
        if (!limit) { kvmem_cache_bytes(&c, &b); limit = b.peak.total; kvmem_cache_free(&c); continue; }
        h = digest(&c);
        st = world_probe(&w, &c, NULL, 0, 40);
        CHECK(digest(&c) == h && heap.peak <= w.cfg.max_bytes);
        if (st == KVMEM_OK) { good++; CHECK_OK(kvmem_cache_reduce(&c)); }
        else { bad++; CHECK(st == KVMEM_OVER_BUDGET && c.awaits && c.error.text[0]); }
        kvmem_cache_free(&c);
        CHECK(!heap.live && !heap.wrong);
    }
    CHECK(good && bad);
    world_free(&w);
}
TEST(recipes_that_probe_ask_once_and_count_tokens) {
    static const char *const bad[4] = { "kvzip when=step", "dapq when=every(4)", "kvcompose when=block",
                                        "dapq budget=8MiB" };
    kvmem_recipe r; kvmem_error e; int i;
    for (i = 0; i < 4; i++)
        CHECK(kvmem_recipe_parse(&r, bad[i], &e) == KVMEM_BAD_RECIPE && strstr(e.text, "asks once"));
    CHECK_OK(kvmem_recipe_parse(&r, "kvzip score=kvzip(plus=1,chunk=100)", &e));
    CHECK_OK(kvmem_recipe_parse(&r, "score=dapq budget=composite(20%,structured=0) when=prompt", &e));
}

/* ---- the methods ---- */

/* Scores of every lane after a reduction by the method under test. */
static float scored[4][4][MOST];
static kvmem_score_fn under_test;
static kvmem_status keep_scores(const kvmem_view *v, int g, float *score) {
    const kvmem_status st = under_test(v, g, score);
    if (st == KVMEM_OK && kvmem_view_count(v, g) <= MOST)
        memcpy(scored[v->layer][g], score, (size_t)kvmem_view_count(v, g) * sizeof *score);
    return st;
}
/* A prompt of n tokens of the world, probed by o, under the recipe: the caller frees c. */
static kvmem_score_entry entry_under_test;
static int run_method(world *w, kvmem_cache *c, const char *recipe, const kvmem_probe *o, int n) {
    if (!world_init(w, 2, 4, 2, 8, 80, recipe)) return 0;
    entry_under_test = *(const kvmem_score_entry *)(const void *)w->recipe.stage[KVMEM_SCORE].entry;
    under_test = entry_under_test.fn;
    entry_under_test.fn = keep_scores;
    w->recipe.stage[KVMEM_SCORE].entry = &entry_under_test.e;
    w->cfg.shape.rope = w->rope;
    if (kvmem_cache_init(c, &w->cfg) || prompt(w, c, n)) return 0;
    kvmem_cache_output(c, world_output, w);
    if (world_probe(w, c, o, 50, 62) || kvmem_cache_reduce(c)) { printf("  %s\n", c->error.text); return 0; }
    return 1;
}
TEST(kvzip_scores_are_the_largest_probabilities_and_the_rest_stays) {
    int plus, l, g, t, i, j, at[12]; char see[MOST];
    for (i = 0; i < 12; i++) at[i] = 45 + i;
    for (t = 0; t < 45; t++) see[t] = t < 3 || (t >= 10 && t < 40);
    for (plus = 0; plus < 2; plus++) {
        const kvmem_probe o = { 1, plus, 3, 10, 40, 0, 0 };
        world w; kvmem_cache c; char text[96]; int total = 0;
        sprintf(text, "kvzip score=kvzip(plus=%d) budget=global(30) codec=f32 page=8 sink=3", plus);
        REQUIRE(run_method(&w, &c, text, &o, 45));
        for (l = 0; l < 2; l++) for (g = 0; g < 2; g++) {
            total += kvmem_cache_lane_len(&c, l, g);
            for (t = 0; t < 45; t++) {
                double best = 0, norm = 0;
                for (i = 0; i < 8; i++) norm += pow((double)row_k(&w, w.v, t, l)[g * 8 + i], 2);
                if (t < 10 || t >= 40) { CHECK(scored[l][g][t] > FLT_MAX); continue; }
                for (i = 0; i < 12; i++) for (j = 0; j < 2; j++) {
                    double p = probability(&w, l, g * 2 + j, 45, 50, i, at, see, t), x = 0;
                    int e;
                    for (e = 0; e < 32; e++) x += pow((double)row_q(&w, 50 + i, l)[e], 2);
                    if (plus) p *= (1 + l + g * 2 + j) * sqrt(norm) / sqrt(x); /* world_output */
                    best = KVMEM__MAX(best, p);
                }
                CHECK_NEAR(scored[l][g][t], best, 1e-5);
                CHECK(plus || (scored[l][g][t] >= 0 && scored[l][g][t] <= 1));
            }
        }
        CHECK(total == 2 * 2 * 30); /* over layers and heads jointly */
        CHECK(kvmem_cache_lane_len(&c, 0, 0) != 30 || kvmem_cache_lane_len(&c, 1, 1) != 30 ||
              kvmem_cache_lane_len(&c, 0, 1) != 30);
        kvmem_cache_free(&c); world_free(&w);
    }
}
TEST(global_keeps_the_best_of_all_lanes_or_of_each_layer) {
    int layerwise;
    for (layerwise = 0; layerwise < 2; layerwise++) {
        const kvmem_probe o = { 1, 0, 4, 0, 45, 0, 0 };
        world w; kvmem_cache c; char text[96]; int l, g, t, i, total[2] = { 0, 0 };
        sprintf(text, "kvzip budget=global(12,layerwise=%d) codec=f32 page=8 sink=4 recent=2", layerwise);
        REQUIRE(run_method(&w, &c, text, &o, 45));
        for (l = 0; l < 2; l++) for (g = 0; g < 2; g++) {
            int32_t pos[MOST]; char in[MOST]; float least = INFINITY;
            const int n = kvmem_cache_lane_len(&c, l, g);
            total[l] += n;
            memset(in, 0, sizeof in);
            CHECK_OK(kvmem_cache_read(&c, l, g, 0, n, NULL, NULL, pos));
            for (i = 0; i < n; i++) {
                in[pos[i]] = 1;
                if (pos[i] >= 4 && pos[i] < 43) least = KVMEM__MIN(least, scored[l][g][pos[i]]);
            }
            for (i = 0; i < 4; i++) CHECK(in[i]);
            CHECK(in[43] && in[44]);
            for (t = 4; t < 43; t++) { /* what left a lane is below all that stayed in it, and in the others */
                int l2, g2;
                if (in[t]) continue;
                CHECK(scored[l][g][t] <= least);
                for (l2 = 0; l2 < 2; l2++) for (g2 = 0; g2 < 2; g2++) {
                    int32_t other[MOST];
                    const int m = kvmem_cache_lane_len(&c, l2, g2);
                    if (layerwise && l2 != l) continue;
                    CHECK_OK(kvmem_cache_read(&c, l2, g2, 0, m, NULL, NULL, other));
                    for (i = 0; i < m; i++)
                        CHECK(other[i] < 4 || other[i] > 42 || scored[l2][g2][other[i]] >= scored[l][g][t]);
                }
            }
        }
        CHECK(total[0] + total[1] == 48 && (!layerwise || total[0] == 24));
        kvmem_cache_free(&c); world_free(&w);
    }
}
/* A budget function called with made-up scores; the view is of an empty cache of that shape. */
static void ask(kvmem_budget_fn fn, const double *par, int L, int G, int mean, const int *n, float *const *score,
                int *keep, const char *recipe) {
    world w; kvmem_cache c; kvmem_view v;
    REQUIRE(world_init(&w, L, G, G, 4, 4, recipe));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    v = kvmem__view_of(&c, 0, KVMEM_BUDGET);
    v.par = par;
    CHECK_OK(fn(&v, mean, n, (const float *const *)score, keep));
    kvmem__view_scratch_end(&c);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(composite_example) { /* two layers of two heads, ranks: 9 8 1 | 7 4 3; 6 5 5 | 4 3 1 */
    float a[3] = { 8, 1, 9 }, b[3] = { 3, 7, 4 }, c[3] = { 5, 6, 5 }, d[3] = { 1, 4, 3 };
    float *score[4]; double par = 1;
    int n[4] = { 3, 3, 3, 3 }, keep[4];
    score[0] = a; score[1] = b; score[2] = c; score[3] = d;
    /* C[0] = 8 6 2 -> 8 6 3 (the maximum over layers), C[1] = 5 4 3 */
    ask(kvmem__budget_composite, &par, 2, 2, 2, n, score, keep, "full");
    CHECK(keep[0] == 2 && keep[1] == 2 && keep[2] == 2 && keep[3] == 2); /* 8 6 5 4 */
    a[1] = 6; /* C[0] = 8 6 4.5 */
    ask(kvmem__budget_composite, &par, 2, 2, 2, n, score, keep, "full");
    CHECK(keep[0] == 3 && keep[1] == 3 && keep[2] == 1 && keep[3] == 1); /* 8 6 5 4.5 */
    par = 0; /* every lane its best: 9 7 6 4; then 8 6 5 5 */
    ask(kvmem__budget_composite, &par, 2, 2, 2, n, score, keep, "full");
    CHECK(keep[0] == 3 && keep[1] == 1 && keep[2] == 3 && keep[3] == 1);
}
TEST(composite_spends_the_budget_and_its_first_layer_is_the_largest) {
    static float x[6][40];
    int trial, i, t, l;
    for (trial = 0; trial < 300; trial++) {
        const int L = 1 + trial % 3, G = 1 + trial % 2, N = 1 + (int)(test_unit() * 39);
        const int mean = 1 + (int)(test_unit() * N);
        float *score[6]; double par = 1; int n[6], keep[6], sum = 0, glob[6]; double c[3][40];
        for (i = 0; i < L * G; i++) {
            n[i] = N;
            score[i] = x[i];
            for (t = 0; t < N; t++) x[i][t] = trial % 5 ? (float)(test_unit() * (1 + i)) : 1.0f;
        }
        ask(kvmem__budget_composite, &par, L, G, mean, n, score, keep, "full");
        for (i = 0; i < L * G; i++) {
            sum += keep[i];
            CHECK(keep[i] == keep[i / G * G] && keep[i] <= keep[0] && keep[i] >= 1);
        }
        CHECK(sum == L * G * KVMEM__MIN(mean, N));
        for (l = 0; l < L; l++) /* by definition, sorting anew for each rank */
            for (t = 0; t < N; t++) {
                c[l][t] = 0;
                for (i = l * G; i < (l + 1) * G; i++) {
                    int u, w, above;
                    for (u = 0; u < N; u++) {
                        for (above = w = 0; w < N; w++) above += x[i][w] > x[i][u] || (!(x[i][w] < x[i][u]) && w < u);
                        if (above == t) c[l][t] += (double)x[i][u] / G;
                    }
                }
                CHECK(!t || c[l][t] <= c[l][t - 1] + 1e-9);
                if (l) c[0][t] = KVMEM__MAX(c[0][t], c[l][t]);
            }
        for (l = 0; l < L && trial % 5; l++) /* what is kept is above what is not; lowest rank of a layer is kept */
            for (i = 0; i < L; i++)
                if (keep[l * G] > 1 && keep[i * G] < N) CHECK(c[l][keep[l * G] - 1] >= c[i][keep[i * G]] - 1e-6);
        par = 0;
        ask(kvmem__budget_composite, &par, L, G, mean, n, score, keep, "full");
        ask(kvmem__budget_global, &par, L, G, mean, n, score, glob, "full");
        CHECK(!memcmp(keep, glob, (size_t)(L * G) * sizeof *keep));
    }
}
TEST(composite_and_global_take_ragged_empty_and_infinite_lanes) {
    float a[4] = { 1, INFINITY, -INFINITY, 2 }, b[2] = { 5, 5 }, c[1] = { -INFINITY };
    float *score[4]; double par;
    int n[4] = { 4, 2, 0, 1 }, keep[4], i, k;
    score[0] = a; score[1] = b; score[2] = c; score[3] = c;
    for (k = 0; k < 4; k++) {
        const char *const recipe = k & 2 ? "score=random budget=2 sink=1 recent=1 when=prompt" : "full";
        par = k & 1;
        ask(kvmem__budget_composite, &par, 2, 2, 2, n, score, keep, recipe);
        for (i = 0; i < 4; i++) CHECK(keep[i] >= KVMEM__MIN(1, n[i]) && keep[i] <= n[i]);
        ask(kvmem__budget_global, &par, 2, 2, 2, n, score, keep, recipe);
        for (i = 0; i < 4; i++) CHECK(keep[i] >= KVMEM__MIN(1, n[i]) && keep[i] <= n[i]);
    }
}
TEST(kvcompose_adds_the_mean_over_heads_and_keeps_equally_many) {
    int norm, l, g, t, i, j, at[12]; char see[MOST];
    for (i = 0; i < 12; i++) at[i] = 45 + i;
    memset(see, 1, sizeof see);
    for (norm = 0; norm < 2; norm++) {
        const kvmem_probe o = { 1, 0, 0, 0, 0, 0, 0 };
        world w; kvmem_cache c; char text[96]; static double b[2][2][MOST];
        sprintf(text, "kvcompose score=kvcompose(norm=%d) budget=composite(20) codec=f32 page=8", norm);
        REQUIRE(run_method(&w, &c, text, &o, 45));
        for (l = 0; l < 2; l++) for (g = 0; g < 2; g++) for (t = 0; t < 45; t++) {
            double size = 0;
            for (i = 0; i < 8; i++) size += pow((double)row_k(&w, w.v, t, l)[g * 8 + i], 2);
            for (b[l][g][t] = j = 0; j < 2; j++) {
                double best = 0;
                for (i = 0; i < 12; i++) best = fmax(best, probability(&w, l, g * 2 + j, 45, 50, i, at, see, t));
                b[l][g][t] += best / 2;
            }
            if (norm) b[l][g][t] *= sqrt(size);
        }
        for (l = 0; l < 2; l++) for (g = 0; g < 2; g++) for (t = 0; t < 45; t++)
            CHECK_NEAR(scored[l][g][t], b[l][g][t] + (b[l][0][t] + b[l][1][t]) / 2, 1e-5);
        CHECK(kvmem_cache_lane_len(&c, 0, 0) == kvmem_cache_lane_len(&c, 0, 1));
        CHECK(kvmem_cache_lane_len(&c, 1, 0) == kvmem_cache_lane_len(&c, 1, 1));
        CHECK(kvmem_cache_lane_len(&c, 0, 0) + kvmem_cache_lane_len(&c, 1, 0) == 2 * 20);
        CHECK(kvmem_cache_lane_len(&c, 0, 0) >= kvmem_cache_lane_len(&c, 1, 0));
        kvmem_cache_free(&c); world_free(&w);
    }
}
TEST(dapq_sums_and_pools) {
    int kernel, l, g, t, i, j, at[12]; char see[MOST];
    for (i = 0; i < 12; i++) at[i] = 45 + i;
    memset(see, 1, sizeof see);
    for (kernel = 1; kernel < 4; kernel += 2) {
        world w; kvmem_cache c; char text[96]; double s[MOST], all;
        sprintf(text, "dapq score=dapq(kernel=%d) budget=20 codec=f32 page=8", kernel);
        REQUIRE(run_method(&w, &c, text, NULL, 45));
        for (l = 0; l < 2; l++) for (g = 0; g < 2; g++) {
            for (all = t = 0; t < 45; all += s[t++])
                for (s[t] = i = 0; i < 12; i++)
                    for (j = 0; j < 2; j++) s[t] += probability(&w, l, g * 2 + j, 45, 50, i, at, see, t) / 2;
            CHECK(all <= 12);
            for (t = 0; t < 45; t++) {
                double want = s[t];
                if (kernel == 3) want = ((t ? s[t - 1] : 0) + s[t] + (t < 44 ? s[t + 1] : 0)) / 3;
                CHECK_NEAR(scored[l][g][t], want, 1e-5);
            }
            CHECK(kvmem_cache_lane_len(&c, l, g) == 20);
        }
        kvmem_cache_free(&c); world_free(&w);
    }
}

/* ---- a session ---- */

/* The model of the examples, or NULL: the tests run elsewhere. */
static unsigned char *tiny_file;
static int tiny_open(kvmem_model *m) {
    size_t size = 0;
    memset(m, 0, sizeof *m);
    tiny_file = test_file("examples/models/tiny.gguf", &size);
    return tiny_file && kvmem_model_open(m, tiny_file, size, NULL, 0, NULL) == KVMEM_OK;
}
/* A smaller one with random weights, 2 layers of 4 heads over 2. */
static int small_open(kvmem_model *m) {
    size_t size = 0;
    memset(m, 0, sizeof *m);
    tiny_file = tiny_model(KVMEM_F32, 0, &size);
    return kvmem_model_open(m, tiny_file, size, NULL, 0, NULL) == KVMEM_OK;
}
static void tiny_close(kvmem_model *m) {
    kvmem_model_close(m);
    free(tiny_file);
}
TEST(a_session_knows_what_its_output_projection_makes_of_a_value) {
    kvmem_model m; kvmem_session s; kvmem_session_config cfg = kvmem_session_config_default();
    if (!tiny_open(&m)) SKIP("no examples/models/tiny.gguf");
    cfg.max_block = 3; /* W_O is decoded three rows at a time */
    CHECK_OK(kvmem_session_init(&s, &m, &cfg));
    {
        const int d = m.head_dim, H = m.n_heads, E = m.n_embd, ids[2] = { 1, 2 };
        float x[2 * 256], l1[2], l2[2], *row = (float *)malloc((size_t)(H * d) * 4);
        int l, h, t, e, i;
        CHECK_OK(kvmem_session_feed(&s, ids, 2, KVMEM_PROMPT_END, NULL, NULL)); /* tells the cache of it */
        REQUIRE(s.cache.output && s.cache.output_user == &s);
        for (i = 0; i < 2 * d; i++) x[i] = (float)test_normal();
        for (l = 0; l < m.n_layers; l += m.n_layers - 1)
            for (h = 0; h < H; h++) {
                double a[2] = { 0, 0 }, b[2] = { 0, 0 };
                CHECK_OK(s.cache.output(&s, l, h, 2, x, l1, l2));
                for (e = 0; e < E; e++) {
                    kvmem__tensor_row(row, &m.layer[l].o, e);
                    for (t = 0; t < 2; t++) {
                        double y = 0;
                        for (i = 0; i < d; i++) y += (double)row[h * d + i] * (double)x[t * d + i];
                        a[t] += fabs(y); b[t] += y * y;
                    }
                }
                for (t = 0; t < 2; t++) {
                    CHECK_NEAR((double)l1[t] / a[t], 1, 1e-5);
                    CHECK_NEAR((double)l2[t] / sqrt(b[t]), 1, 1e-5);
                }
            }
        free(row);
    }
    kvmem_session_free(&s); tiny_close(&m);
}

/* Prompt ids, any but the special ones. */
static void some_ids(int *ids, int n, int vocab) {
    int i;
    for (i = 0; i < n; i++) ids[i] = 10 + (int)(test_unit() * (vocab - 10));
}
static kvmem_score_entry session_entry;
static int session_with(kvmem_session *s, const kvmem_model *m, const char *recipe, int spy_on) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r;
    kvmem_error e;
    if (kvmem_recipe_parse(&r, recipe, &e)) { printf("  %s\n", e.text); return 0; }
    if (spy_on) {
        session_entry = *(const kvmem_score_entry *)(const void *)r.stage[KVMEM_SCORE].entry;
        under_test = session_entry.fn;
        session_entry.fn = keep_scores;
        r.stage[KVMEM_SCORE].entry = &session_entry.e;
    }
    cfg.recipe = &r;
    cfg.max_block = 16;
    if (kvmem_session_init(s, m, &cfg)) { printf("  %s\n", s->error.text); return 0; }
    return 1;
}
TEST(session_probes_change_no_logit_and_no_row_that_stays) {
    static const char *const recipe[6] = {
        "dapq budget=20 codec=f16", "kvzip score=kvzip(chunk=10) budget=20 codec=f16",
        "kvzip score=kvzip(plus=1,chunk=100) budget=global(20,layerwise=1) codec=f16",
        "kvcompose budget=composite(20) codec=f16", "kvcompose budget=composite(20,structured=0) codec=f16",
        "dapq budget=40 codec=f16" };
    kvmem_model m; kvmem_session full, s, copy;
    float *k, *v, *k2, *v2; int ids[44], i, l, g, t, wide = 0;
    REQUIRE(small_open(&m));
    some_ids(ids, 44, m.n_vocab);
    k = (float *)malloc((size_t)(4 * 64 * m.head_dim) * 4);
    v = k + 64 * m.head_dim; k2 = v + 64 * m.head_dim; v2 = k2 + 64 * m.head_dim;
    REQUIRE(session_with(&full, &m, "full codec=f16", 0));
    CHECK_OK(kvmem_session_feed(&full, ids, 40, KVMEM_PROMPT_END, NULL, NULL));
    for (i = 0; i < 6; i++) {
        kvmem_bytes b; int total = 0;
        REQUIRE(session_with(&s, &m, recipe[i], 0));
        if (i & 1) CHECK_OK(kvmem_session_feed(&s, ids, 13, KVMEM_PREFILL, NULL, NULL));
        if (kvmem_session_feed(&s, ids + (i & 1) * 13, 40 - (i & 1) * 13, KVMEM_PROMPT_END, NULL, NULL))
            FAIL_AT("%s: %s", recipe[i], s.error.text);
        CHECK(s.has_logits && !memcmp(s.logits, full.logits, (size_t)m.n_vocab * 4));
        CHECK(s.n_ids == 40 && !memcmp(s.ids, ids, 40 * sizeof *ids));
        for (l = 0; l < m.n_layers; l++) for (g = 0; g < m.n_kv_heads; g++) {
            int32_t pos[64];
            const int n = kvmem_cache_lane_len(&s.cache, l, g);
            total += n;
            wide |= n != 20;
            CHECK_OK(kvmem_cache_read(&full.cache, l, g, 0, 40, k, v, NULL));
            CHECK_OK(kvmem_cache_read(&s.cache, l, g, 0, n, k2, v2, pos));
            for (t = 0; t < n; t++) {
                const size_t row = (size_t)m.head_dim * 4;
                CHECK(!memcmp(k2 + t * m.head_dim, k + pos[t] * m.head_dim, row));
                CHECK(!memcmp(v2 + t * m.head_dim, v + pos[t] * m.head_dim, row));
            }
        }
        CHECK(total == (i < 5 ? 20 : 40) * m.n_layers * m.n_kv_heads);
        kvmem_session_bytes(&s, &b);
        CHECK(i == 5 || b.peak.stats >= (size_t)(m.n_layers * m.n_heads * 40) * 4); /* what probes saw is counted */
        CHECK(!b.live.stats && s.cache.tokens == 40 && s.cache.next_pos == 40);
        CHECK_OK(kvmem_session_copy(&copy, &s));
        CHECK_OK(kvmem_session_feed(&s, ids + 40, 2, KVMEM_DECODE, NULL, NULL));
        CHECK_OK(kvmem_session_feed(&copy, ids + 40, 2, KVMEM_DECODE, NULL, NULL));
        CHECK(!memcmp(s.logits, copy.logits, (size_t)m.n_vocab * 4));
        if (i == 5) { /* the budget covers the tokens: as full */
            CHECK_OK(kvmem_session_feed(&full, ids + 40, 2, KVMEM_DECODE, NULL, NULL));
            CHECK(!memcmp(s.logits, full.logits, (size_t)m.n_vocab * 4));
        }
        CHECK_OK(kvmem_session_feed(&s, ids, 20, KVMEM_PROMPT_END, NULL, NULL)); /* a second turn */
        CHECK_OK(kvmem_session_truncate(&s, 50));
        CHECK(s.n_ids == 50);
        kvmem_session_clear(&s);
        CHECK(!s.n_ids);
        CHECK_OK(kvmem_session_feed(&s, ids, 30, KVMEM_PROMPT_END, NULL, NULL));
        kvmem_session_free(&copy);
        kvmem_session_free(&s);
    }
    CHECK(wide); /* lanes differ */
    kvmem_session_free(&full);
    free(k);
    tiny_close(&m);
}
/* A score that only shows the attention that entries have received. */
static float received[4][4][MOST];
static kvmem_status show_acc(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g);
    int t;
    if (n <= MOST) kvmem_view_acc(v, g, received[v->layer][g]);
    for (t = 0; t < n; t++) score[t] = 0;
    return KVMEM_OK;
}
static const kvmem_score_entry acc_entry = {
    { "show", "", "-", NULL, KVMEM_READS_ACC | KVMEM_READS_LANES }, show_acc, NULL };
TEST(dapq_in_a_session_is_the_attention_of_these_tokens_fed_after_the_prompt) {
    kvmem_model m; kvmem_session s, a; kvmem_session_config cfg = kvmem_session_config_default(); kvmem_recipe r;
    static float before[4][4][MOST]; int ids[40 + 12], l, g, t, i;
    if (!tiny_open(&m)) SKIP("no examples/models/tiny.gguf");
    some_ids(ids, 40, m.n_vocab);
    for (i = 0; i < 3; i++) ids[40 + i] = ids[i];
    for (i = 0; i < 9; i++) ids[43 + i] = ids[31 + i];
    REQUIRE(session_with(&s, &m, "dapq score=dapq(first=3,last=9) budget=20 codec=f32", 1));
    CHECK_OK(kvmem_session_feed(&s, ids, 40, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_recipe_parse(&r, "score=random budget=10 when=prompt codec=f32", NULL));
    r.stage[KVMEM_SCORE].entry = &acc_entry.e;
    cfg.recipe = &r;
    for (i = 0; i < 2; i++) {
        CHECK_OK(kvmem_session_init(&a, &m, &cfg));
        CHECK_OK(kvmem_session_feed(&a, ids, 40 + 12 * i, KVMEM_PROMPT_END, NULL, NULL));
        if (!i) memcpy(before, received, sizeof before);
        kvmem_session_free(&a);
    }
    for (l = 0; l < m.n_layers; l++) for (g = 0; g < m.n_kv_heads; g++) for (t = 0; t < 40; t++)
        CHECK_NEAR(scored[l][g][t], received[l][g][t] - before[l][g][t], 1e-4);
    kvmem_session_free(&s); tiny_close(&m);
}
TEST(kvzip_in_a_session_leaves_the_question_alone) {
    kvmem_model m; kvmem_session s; int ids[40], g, l, t, seen = 0;
    if (!tiny_open(&m)) SKIP("no examples/models/tiny.gguf");
    some_ids(ids, 40, m.n_vocab);
    REQUIRE(session_with(&s, &m, "kvzip score=kvzip(chunk=12) budget=20 codec=f16", 1));
    CHECK_OK(kvmem_session_feed(&s, ids, 30, KVMEM_PREFILL, NULL, NULL));
    CHECK_OK(kvmem_cache_mark(&s.cache, KVMEM_MARK_QUESTION));
    CHECK_OK(kvmem_session_feed(&s, ids + 30, 10, KVMEM_PROMPT_END, NULL, NULL));
    for (l = 0; l < m.n_layers; l++) for (g = 0; g < m.n_kv_heads; g++) {
        for (t = 0; t < 40; t++) {
            CHECK(t < 30 ? scored[l][g][t] >= 0 && scored[l][g][t] <= 1 : scored[l][g][t] > FLT_MAX);
            seen += t < 30 && scored[l][g][t] > .5f;
        }
        CHECK(kvmem_cache_lane_len(&s.cache, l, g) >= 14);
    }
    CHECK(seen > 0);
    kvmem_session_free(&s); tiny_close(&m);
}
TEST(a_session_without_the_ids_of_its_tokens_cannot_probe) {
    kvmem_model m; kvmem_session s; bytes file = { NULL, 0, 0 }; int ids[40];
    REQUIRE(small_open(&m));
    some_ids(ids, 40, m.n_vocab);
    REQUIRE(session_with(&s, &m, "dapq budget=20", 0));
    CHECK_OK(kvmem_session_feed(&s, ids, 30, KVMEM_PROMPT_END, NULL, NULL));
    CHECK_OK(kvmem_session_save(&s, bytes_write, &file));
    CHECK_OK(kvmem_session_load(&s, file.p, file.n));
    CHECK_OK(kvmem_session_feed(&s, ids, 5, KVMEM_DECODE, NULL, NULL));
    CHECK(kvmem_session_feed(&s, ids, 5, KVMEM_PROMPT_END, NULL, NULL) == KVMEM_BAD_STATE);
    CHECK(strstr(s.error.text, "ids") != NULL);
    CHECK(s.cache.tokens == 35 && !s.cache.awaits && !s.has_logits);
    CHECK_OK(kvmem_session_feed(&s, ids, 5, KVMEM_DECODE, NULL, NULL)); /* goes on */
    kvmem_session_free(&s); tiny_close(&m);
    free(file.p);
}
TEST(session_bytes_with_probes_stay_below_the_estimate_and_a_failed_allocation_is_an_error) {
    static const char *const recipe[3] = { "dapq budget=20", "kvzip score=kvzip(chunk=15) budget=20",
                                           "kvcompose budget=20" };
    kvmem_model m; int ids[40], i, k;
    REQUIRE(small_open(&m));
    some_ids(ids, 40, m.n_vocab);
    for (i = 0; i < 3; i++) {
        kvmem_session_config cfg = kvmem_session_config_default(); kvmem_recipe r; kvmem_error e; kvmem_session s;
        kvmem_bytes est, b; test_heap h; size_t calls = 0;
        CHECK_OK(kvmem_recipe_parse(&r, recipe[i], &e));
        for (k = 0; k < 12; k++) {
            kvmem_status st;
            memset(&h, 0, sizeof h);
            cfg.allocator = test_allocator(&h);
            cfg.recipe = &r;
            cfg.max_block = 16;
            CHECK_OK(kvmem_session_init(&s, &m, &cfg));
            if (k) h.fail_at = h.calls + 1 + (size_t)(test_unit() * (double)calls);
            else calls = h.calls;
            st = kvmem_session_feed(&s, ids, 40, KVMEM_PROMPT_END, NULL, NULL);
            if (!k) {
                calls = h.calls - calls;
                CHECK_OK(st);
                kvmem_session_bytes(&s, &b);
                CHECK_OK(kvmem_session_estimate(&m, &cfg, 40, 0, &est, &e));
                if (est.peak.total + 20000 < b.peak.total)
                    FAIL_AT("%s: %d bytes foretold, %d taken", recipe[i], (int)est.peak.total, (int)b.peak.total);
            } else CHECK(st == KVMEM_NO_MEMORY && !s.cache.awaits && s.error.text[0]);
            h.fail_at = 0;
            kvmem_session_clear(&s);
            if (k > 8) CHECK_OK(kvmem_session_feed(&s, ids, 25, KVMEM_PROMPT_END, NULL, NULL));
            kvmem_session_free(&s);
            CHECK(!h.live && !h.wrong);
        }
    }
    tiny_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "probe");
    RUN(hidden_norms_follow_their_entries_and_output_norms_are_asked_for_each_head);
    RUN(hidden_states_and_the_output_projection_are_missed_aloud);
    RUN(probe_tokens_leave_no_trace);
    RUN(probes_see_what_the_definition_says);
    RUN(dapq_positions_shifted_by_D_are_queries_turned_by_D);
    RUN(a_prompt_that_waits_says_so);
    RUN(a_prompt_that_was_cut_does_not_wait);
    RUN(probes_keep_a_limit_in_bytes_or_say_that_they_cannot);
    RUN(recipes_that_probe_ask_once_and_count_tokens);
    RUN(kvzip_scores_are_the_largest_probabilities_and_the_rest_stays);
    RUN(global_keeps_the_best_of_all_lanes_or_of_each_layer);
    RUN(composite_example);
    RUN(composite_spends_the_budget_and_its_first_layer_is_the_largest);
    RUN(composite_and_global_take_ragged_empty_and_infinite_lanes);
    RUN(kvcompose_adds_the_mean_over_heads_and_keeps_equally_many);
    RUN(dapq_sums_and_pools);
    RUN(a_session_knows_what_its_output_projection_makes_of_a_value);
    RUN(session_probes_change_no_logit_and_no_row_that_stays);
    RUN(dapq_in_a_session_is_the_attention_of_these_tokens_fed_after_the_prompt);
    RUN(kvzip_in_a_session_leaves_the_question_alone);
    RUN(a_session_without_the_ids_of_its_tokens_cannot_probe);
    RUN(session_bytes_with_probes_stay_below_the_estimate_and_a_failed_allocation_is_an_error);
    return test_end();
}
