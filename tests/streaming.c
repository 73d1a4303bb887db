/* Methods of long streams: what they remember between steps, which entries they choose by place alone, and whole
   pages and windows. Each method's worked example, its facts, and a slow copy of its rule beside the cache. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "world.h"

/* ---- a cache whose attention is told: query i of head h gives entry j the weight weigh(l, h, i, j) ---- */

enum { SEEN = 64, HEADS = 4 };
typedef double (*weigh_fn)(int l, int h, int i, int j);
typedef struct scene {
    kvmem_cache c;
    kvmem_recipe r;
    int L, H, G, n;
    weigh_fn weigh; /* relative weights; NULL: all rows are zero */
    void (*key)(int pos, float *k); /* keys (SEEN) of their own, if not NULL */
    const float *hidden; /* norms of hidden states by position, or NULL */
} scene;
static int scene_begin(scene *s, const char *text, int L, int H, int G, weigh_fn weigh) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_error e;
    memset(s, 0, sizeof *s);
    s->L = L; s->H = H; s->G = G; s->weigh = weigh;
    if (kvmem_recipe_parse(&s->r, text, &e)) { FAIL_AT("%s: %s", text, e.text); return 0; }
    s->r.stage[KVMEM_PLACE] = kvmem_recipe_default().stage[KVMEM_PLACE]; /* these rows have no RoPE */
    cfg.shape.n_layers = L; cfg.shape.n_heads = H; cfg.shape.n_kv_heads = G; cfg.shape.head_dim = SEEN;
    cfg.shape.scale = 1;
    cfg.recipe = &s->r;
    cfg.max_block = SEEN;
    cfg.threads = 1;
    if (kvmem_cache_init(&s->c, &cfg)) { FAIL_AT("%s: %s", text, s->c.error.text); return 0; }
    return 1;
}
static kvmem_status scene_tell(scene *s, int n, kvmem_phase phase) {
    static float q[SEEN * HEADS * SEEN], k[SEEN * HEADS * SEEN], out[SEEN * HEADS * SEEN];
    int l, t, h, j;
    for (l = 0; l < s->L; l++) {
        memset(q, 0, sizeof q);
        memset(k, 0, sizeof k);
        for (t = 0; s->weigh && t < n; t++) {
            for (h = 0; h < s->H; h++)
                for (j = 0; j <= s->n + t; j++) {
                    const double w = s->weigh(l, h, s->n + t, j);
                    q[(t * s->H + h) * SEEN + j] = w > 0 ? (float)log(w) : -80.0f;
                }
            for (h = 0; h < s->G; h++) k[(t * s->G + h) * SEEN + s->n + t] = 1;
        }
        if (s->key)
            for (t = 0; t < n * s->G; t++) s->key(s->n + t / s->G, k + t * SEEN);
        KVMEM__TRY(kvmem_cache_append(&s->c, l, n, k, k, NULL));
        if (s->hidden) KVMEM__TRY(kvmem_cache_hidden(&s->c, l, n, s->hidden + s->n, 1));
        KVMEM__TRY(kvmem_cache_attend(&s->c, l, n, q, out));
    }
    s->n += n;
    return kvmem_cache_commit(&s->c, phase);
}
static int scene_told(scene *s, int n, kvmem_phase phase) {
    if (scene_tell(s, n, phase) == KVMEM_OK) return 1;
    FAIL_AT("%s", s->c.error.text);
    return 0;
}
static int left(const kvmem_cache *c, int l, int g, int32_t *pos) {
    const int n = kvmem_cache_lane_len(c, l, g);
    if (n && kvmem_cache_read(c, l, g, 0, n, NULL, NULL, pos)) FAIL_AT("read of lane %d %d", l, g);
    return n;
}
/* Does the lane hold the positions in text, "0 1 4..7"? */
static int lane_is(const kvmem_cache *c, int l, int g, const char *text) {
    int32_t pos[MAXT];
    const int n = left(c, l, g, pos);
    const char *p = text;
    int i = 0, same = 1;
    while (*p) {
        char *end;
        long a = strtol(p, &end, 10), b = a;
        if (end == p) break;
        if (end[0] == '.') b = strtol(end + 2, &end, 10);
        for (; a <= b; a++, i++) same &= i < n && pos[i] == a;
        p = end;
    }
    if (same && i == n) return 1;
    printf("  lane %d %d holds", l, g);
    for (i = 0; i < n; i++) printf(" %d", (int)pos[i]);
    printf(", not %s\n", text);
    return 0;
}
/* The k best of x (n), rising; of equals the one that `newer` says. */
static void best(const double *x, int n, int k, int newer, int *out) {
    int i, j, m = 0;
    for (i = 0; i < n; i++) {
        int better = 0;
        for (j = 0; j < n; j++) better += x[j] > x[i] || (x[j] == x[i] && (newer ? j > i : j < i));
        if (better < k) out[m++] = i;
    }
}
static double noise(int a, int b, int c, int d) {
    return kvmem__unit(kvmem__random((uint64_t)test_seed * 100 + (uint64_t)a, (uint64_t)b, (uint64_t)c, (uint64_t)d));
}

/* ---- select=topk ---- */

TEST(topk_can_give_ties_to_the_newer) {
    scene s;
    REQUIRE(scene_begin(&s, "lazyeviction select=topk(ties=new) budget=4 sink=1 recent=0 when=prompt", 1, 1, 1, NULL));
    REQUIRE(scene_told(&s, 10, KVMEM_PROMPT_END));
    CHECK(lane_is(&s.c, 0, 0, "0 7..9")); /* all scores are equal */
    kvmem_cache_free(&s.c);
    REQUIRE(scene_begin(&s, "lazyeviction select=topk budget=4 sink=1 recent=1 when=prompt", 1, 1, 1, NULL));
    REQUIRE(scene_told(&s, 10, KVMEM_PROMPT_END));
    CHECK(lane_is(&s.c, 0, 0, "0 1 2 9"));
    kvmem_cache_free(&s.c);
}
TEST(when_decode_counts_decoded_tokens_only) {
    scene s;
    int i;
    REQUIRE(scene_begin(&s, "score=recency budget=6 when=decode(5)", 1, 1, 1, NULL));
    REQUIRE(scene_told(&s, 12, KVMEM_PREFILL) && scene_told(&s, 8, KVMEM_PROMPT_END));
    for (i = 1; i <= 10; i++) {
        REQUIRE(scene_told(&s, 1, KVMEM_DECODE));
        CHECK(kvmem_cache_lane_len(&s.c, 0, 0) == (i < 5 ? 20 + i : i < 10 ? 6 + i - 5 : 6));
    }
    REQUIRE(scene_told(&s, 3, KVMEM_DECODE) && scene_told(&s, 4, KVMEM_PROMPT_END)); /* another turn: counts anew */
    for (i = 1; i <= 5; i++) {
        REQUIRE(scene_told(&s, 1, KVMEM_DECODE));
        CHECK(kvmem_cache_lane_len(&s.c, 0, 0) == (i < 5 ? 13 + i : 6));
    }
    kvmem_cache_free(&s.c);
}

/* ---- lazyeviction ---- */

TEST(lazyeviction_scores_are_the_cards) {
    CHECK_NEAR(kvmem__lazy_score(10, 10, 1), .537883 + 1, 2e-6);
    CHECK_NEAR(kvmem__lazy_score(10, 8, 2), .238407 + .537883, 2e-6);
    CHECK_NEAR(kvmem__lazy_score(10, 4, 6), .238406 + .013386, 2e-6);
    CHECK_NEAR(kvmem__lazy_score(10, 2, 2), .013386 + .537883, 2e-6);
    CHECK_NEAR(kvmem__lazy_score(10, 10, 0), .537883, 2e-6);
    CHECK(kvmem__lazy_score(10, 9, 0) == 0 && kvmem__lazy_score(1e7, 0, 0) == 0 && kvmem__lazy_score(1e7, 0, 1e7) > 0);
}
static double weigh_sparse(int l, int h, int i, int j) { /* most weights are small */
    const double u = noise(l * 8 + h, i, j, 1);
    return u > .85 ? 1 + u : .001 + .002 * u;
}
/* The rule again, beside the cache: positions, TS and MRI of each lane. */
typedef struct lazy_sim { int n, pos[SEEN]; double ts[SEEN], mri[SEEN]; } lazy_sim;
static void lazy_step(lazy_sim *s, int l, int g, int at, int step, double alpha, int budget, int w) {
    double score[SEEN], p[SEEN];
    int j, h, kept[SEEN], m = 0;
    s->pos[s->n] = at; s->ts[s->n] = step - 1; s->mri[s->n++] = 0;
    for (j = 0; j < s->n; j++) p[j] = 0;
    for (h = 2 * g; h < 2 * g + 2; h++) {
        double sum = 0;
        for (j = 0; j < s->n; j++) sum += weigh_sparse(l, h, at, s->pos[j]);
        for (j = 0; j < s->n; j++) p[j] += weigh_sparse(l, h, at, s->pos[j]) / sum / 2;
    }
    for (j = 0; j < s->n; j++) {
        if (p[j] < alpha) continue;
        if (step - s->ts[j] > s->mri[j]) s->mri[j] = step - s->ts[j];
        s->ts[j] = step;
    }
    if (s->n <= budget || step % w) return;
    for (j = 0; j < s->n; j++) {
        const double a = 1 + (step - s->ts[j]) / (s->mri[j] + 1e-5), b = s->mri[j] - 1;
        score[j] = (float)((a > 700 ? 0 : 2 / (1 + exp(a))) + (s->mri[j] > 0 ? 2 / (1 + exp(b)) : 0));
    }
    best(score, s->n - w, budget - w, 1, kept);
    for (j = budget - w; j < budget; j++) kept[j] = s->n - budget + j;
    for (m = 0; m < budget; m++) {
        s->pos[m] = s->pos[kept[m]]; s->ts[m] = s->ts[kept[m]]; s->mri[m] = s->mri[kept[m]];
    }
    s->n = budget;
}
TEST(lazyeviction_equals_its_rule_over_a_whole_run) {
    static lazy_sim sim[2][2];
    scene s;
    int l, g, i, step;
    memset(sim, 0, sizeof sim);
    REQUIRE(scene_begin(&s, "lazyeviction score=lazyeviction(alpha=0.05) budget=14 recent=4 when=decode(4)", 2, 4, 2,
                        weigh_sparse));
    REQUIRE(scene_told(&s, 20, KVMEM_PROMPT_END));
    for (l = 0; l < 2; l++)
        for (g = 0; g < 2; g++) {
            lazy_sim *z = &sim[l][g];
            CHECK(kvmem_cache_lane_len(&s.c, l, g) == 20); /* the prompt stays whole */
            for (i = 0; i < 20; i++) { z->pos[i] = i; z->ts[i] = z->mri[i] = 0; }
            z->n = 20;
        }
    for (step = 1; step <= 40; step++) {
        REQUIRE(scene_told(&s, 1, KVMEM_DECODE));
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                lazy_sim *z = &sim[l][g];
                kvmem_view v = kvmem__view_of(&s.c, l, KVMEM_SCORE);
                int32_t pos[SEEN];
                lazy_step(z, l, g, 19 + step, step, .05, 14, 4);
                REQUIRE(left(&s.c, l, g, pos) == z->n);
                for (i = 0; i < z->n; i++) {
                    float own[2];
                    kvmem_view_own(&v, g, i, own);
                    CHECK(pos[i] == z->pos[i] && (double)own[0] == z->ts[i] && (double)own[1] == z->mri[i]);
                }
            }
    }
    REQUIRE(scene_told(&s, 1, KVMEM_PROMPT_END)); /* a new prompt forgets TS and MRI */
    {
        kvmem_view v = kvmem__view_of(&s.c, 1, KVMEM_SCORE);
        float own[2];
        for (i = 0; i < kvmem_view_count(&v, 1); i++) {
            kvmem_view_own(&v, 1, i, own);
            CHECK(own[0] == 0 && own[1] == 0);
        }
    }
    kvmem_cache_free(&s.c);
}
/* Entry 3 is looked at every 10 steps, everyone else once, 8 steps later. */
static double weigh_recurring(int l, int h, int i, int j) {
    (void)l; (void)h;
    return j == 3 ? (i % 10 == 3 ? .05 : 1e-7) : j == i - 8 ? .9 : 1e-6;
}
TEST(lazyeviction_keeps_what_returns_after_a_pause) {
    static const char *const recipe[] = {
        "lazyeviction score=lazyeviction(alpha=0.01) budget=16 recent=10 when=decode(10)",
        "tova budget=16 when=decode(7)" };
    scene s;
    int32_t pos[SEEN];
    int i, k, n;
    for (k = 0; k < 2; k++) {
        REQUIRE(scene_begin(&s, recipe[k], 1, 1, 1, weigh_recurring));
        REQUIRE(scene_told(&s, 4, KVMEM_PROMPT_END));
        for (i = 0; i < 58; i++) REQUIRE(scene_told(&s, 1, KVMEM_DECODE));
        for (i = 0, n = left(&s.c, 0, 0, pos); i < n && pos[i] != 3; i++) {}
        CHECK((i < n) == (k == 0));
        kvmem_cache_free(&s.c);
    }
}

/* ---- treekv ---- */

/* Feed n tokens one by one, the first as the prompt. */
static int drip(scene *s, int n) {
    for (; n > 0; n--) if (!scene_told(s, 1, s->n ? KVMEM_DECODE : KVMEM_PROMPT_END)) return 0;
    return 1;
}
TEST(tree_sweeps_as_the_card_says) {
    scene s; /* tokens are 0.. here, 1.. there */
    REQUIRE(scene_begin(&s, "score=recency select=tree(side=new) budget=4 when=step", 1, 1, 1, NULL));
    REQUIRE(drip(&s, 8));
    CHECK(lane_is(&s.c, 0, 0, "0 2 4 6"));
    REQUIRE(drip(&s, 1));
    CHECK(lane_is(&s.c, 0, 0, "0 4 6 8"));
    REQUIRE(drip(&s, 4));
    CHECK(lane_is(&s.c, 0, 0, "0 8 10 12"));
    REQUIRE(drip(&s, 4));
    CHECK(lane_is(&s.c, 0, 0, "0 12 14 16"));
    kvmem_cache_free(&s.c);
    REQUIRE(scene_begin(&s, "score=recency select=tree(side=old) budget=4 when=step", 1, 1, 1, NULL));
    REQUIRE(drip(&s, 5));
    CHECK(lane_is(&s.c, 0, 0, "1 2 3 4"));
    REQUIRE(drip(&s, 3));
    CHECK(lane_is(&s.c, 0, 0, "1 3 5 7"));
    REQUIRE(drip(&s, 1));
    CHECK(lane_is(&s.c, 0, 0, "3 5 7 8"));
    REQUIRE(drip(&s, 8));
    CHECK(lane_is(&s.c, 0, 0, "11 13 15 16"));
    kvmem_cache_free(&s.c);
    REQUIRE(scene_begin(&s, "score=recency select=tree budget=4 when=step", 1, 1, 1, NULL)); /* newer scores higher */
    REQUIRE(drip(&s, 17));
    CHECK(lane_is(&s.c, 0, 0, "11 13 15 16"));
    kvmem_cache_free(&s.c);
}
TEST(tree_keeps_a_geometric_past) {
    static const int want[8] = { 0, 0, 0, 0, 1, 3, 12, 48 };
    int bin[8] = { 0 }, i, once, n;
    for (once = 0; once < 2; once++) { /* one by one, and all at once */
        scene s;
        int32_t pos[MAXT];
        REQUIRE(scene_begin(&s, "score=recency select=tree(side=old,block=1) budget=64 when=step", 1, 1, 1, NULL));
        if (once) {
            for (i = 0; i < 16; i++) REQUIRE(scene_told(&s, 64, i < 15 ? KVMEM_PREFILL : KVMEM_PROMPT_END));
        } else REQUIRE(drip(&s, 1024));
        n = left(&s.c, 0, 0, pos);
        memset(bin, 0, sizeof bin);
        for (i = 0; i < n; i++) bin[pos[i] / 128]++;
        for (i = 0; i < 8; i++) CHECK(bin[i] == want[i]);
        kvmem_cache_free(&s.c);
    }
}
TEST(tree_runs_between_sinks_and_recent_and_once_full_evicts_one_a_step) {
    scene s;
    int i;
    REQUIRE(scene_begin(&s, "score=recency select=tree(side=old) budget=9 sink=2 recent=3 when=step", 1, 1, 1, NULL));
    for (i = 1; i <= 30; i++) {
        REQUIRE(drip(&s, 1));
        CHECK(kvmem_cache_lane_len(&s.c, 0, 0) == (i < 9 ? i : 9));
    }
    CHECK(lane_is(&s.c, 0, 0, "0 1 21 23 25 26 27 28 29"));
    kvmem_cache_free(&s.c);
}
/* The rule again over scores in double: tokens come one by one, S and C as the paper has them. */
static double weigh_smooth(int l, int h, int i, int j) { return .2 + noise(l * 8 + h, i, j, 2); }
TEST(treekv_equals_its_rule_over_a_whole_run) {
    scene s;
    int pos[2][SEEN], n[2] = { 0, 0 }, idx[2] = { 0, 0 }, g, h, j, t;
    double sum[2][SEEN], count[2][SEEN];
    REQUIRE(scene_begin(&s, "treekv score=treekv(window=4) budget=10 sink=1 recent=2", 1, 4, 2, weigh_smooth));
    for (t = 0; t < 50; t++) {
        REQUIRE(scene_told(&s, 1, t ? KVMEM_DECODE : KVMEM_PROMPT_END));
        for (g = 0; g < 2; g++) {
            int32_t have[SEEN];
            pos[g][n[g]] = t; sum[g][n[g]] = count[g][n[g]] = 0;
            n[g]++;
            for (h = 2 * g; t && h < 2 * g + 2; h++) {
                double all = 0;
                for (j = 0; j < n[g]; j++) all += weigh_smooth(0, h, t, pos[g][j]);
                for (j = 0; j < n[g]; j++) sum[g][j] += weigh_smooth(0, h, t, pos[g][j]) / all / 2;
            }
            for (j = 0; t && j < n[g]; j++) count[g][j] += 1;
            if (n[g] > 10) { /* the middle is slots 1.. with room for 7 */
                const int a = 1 + idx[g], newer = sum[g][a] / count[g][a] > sum[g][a + 1] / count[g][a + 1];
                for (j = a + newer; j + 1 < n[g]; j++) {
                    pos[g][j] = pos[g][j + 1]; sum[g][j] = sum[g][j + 1]; count[g][j] = count[g][j + 1];
                }
                n[g]--;
                idx[g] = (idx[g] + 1) % 7;
            }
            REQUIRE(left(&s.c, 0, g, have) == n[g]);
            for (j = 0; j < n[g]; j++) CHECK(have[j] == pos[g][j]);
        }
    }
    kvmem_cache_free(&s.c);
}
/* Blocks of 4 of a prompt: 0..3 is hot, 8..11 cold; the last block stays. */
static double weigh_blocks(int l, int h, int i, int j) {
    static const double block[8] = { 9, 1, .1, 5, 4, 3, 7, .01 };
    (void)l; (void)h; (void)i;
    return block[j / 4 % 8];
}
TEST(tree_thins_a_prompt_by_blocks) {
    scene s;
    REQUIRE(scene_begin(&s, "treekv score=treekv(window=4) select=tree(block=4) budget=14 sink=0 recent=0",
                        1, 2, 1, weigh_blocks));
    REQUIRE(scene_told(&s, 30, KVMEM_PROMPT_END));
    /* room 14 = three blocks of 4 and the last, 28 and 29: 0 1 2 +3: (0 1) 1 goes; 0 2 3 +4: (2 3) 2 goes; 0 3 4 +5:
       (4 5) 5 goes; 0 3 4 +6: (0 3) 3 goes */
    CHECK(lane_is(&s.c, 0, 0, "0..3 16..19 24..27 28 29"));
    kvmem_cache_free(&s.c);
}

/* ---- lacache ---- */

TEST(lacache_keeps_the_cards_ladder) {
    static const char even[] = "0..4 12 20 28 36 38 40 42 44 46 48 50 52..59";
    static const char odd[] = "0..3 11 19 27 35 37 39 41 43 45 47 49 51 52..59";
    scene s;
    int i, l;
    REQUIRE(scene_begin(&s, "lacache select=ladder(span=2) budget=24", 4, 2, 2, NULL));
    for (i = 0; i < 60; i++) {
        REQUIRE(drip(&s, 1));
        for (l = 0; l < 4; l++) CHECK(kvmem_cache_lane_len(&s.c, l, 1) == (i < 24 ? i + 1 : 24));
        for (l = 0; l < 4; l++) {
            const float cur = s.c.lane[l * 2].state[1][0];
            if (i == 24) CHECK(cur == 5);
            if (i == 39) CHECK(cur == 20);
            if (i == 40) CHECK(cur == 5);
        }
    }
    for (l = 0; l < 4; l++) CHECK(lane_is(&s.c, l, 0, l % 2 ? odd : even) && lane_is(&s.c, l, 1, l % 2 ? odd : even));
    kvmem_cache_free(&s.c);
    REQUIRE(scene_begin(&s, "lacache budget=24", 4, 2, 2, NULL)); /* span 0 is half the layers */
    REQUIRE(drip(&s, 60));
    CHECK(lane_is(&s.c, 3, 0, odd) && lane_is(&s.c, 0, 1, even));
    kvmem_cache_free(&s.c);
}
TEST(lacache_layers_are_equally_long_and_remember_more_together) {
    static const char *const ladders[] = { "lacache select=ladder(span=3) budget=40",
        "lacache budget=33 sink=0", "lacache select=ladder(span=3,overlap=1) budget=50 sink=5",
        "lacache select=ladder(span=2,overlap=1) budget=61",
        "lacache select=ladder(span=1) budget=50 recent=9" };
    int k, block, l, i, n, any, distinct, newest;
    for (k = 0; k < 5; k++)
        for (block = 1; block < 65; block += 21) {
            static unsigned char alive[MAXT];
            scene s;
            int32_t pos[MAXT];
            REQUIRE(scene_begin(&s, ladders[k], 6, 1, 1, NULL));
            for (i = 0; i + block < 640; i += block)
                REQUIRE(scene_told(&s, block, i ? KVMEM_PREFILL : KVMEM_PROMPT_END));
            memset(alive, 0, sizeof alive);
            for (l = 0; l < 6; l++) {
                n = left(&s.c, l, 0, pos);
                CHECK(n == kvmem_cache_lane_len(&s.c, 0, 0));
                CHECK(n <= (int)s.r.amount.value && n > (int)s.r.amount.value - 12);
                for (i = 0; i < n; i++) { alive[pos[i]] = 1; CHECK(!i || pos[i] > pos[i - 1]); }
                for (i = 0; i < s.r.sink; i++) CHECK(pos[i] == i);
                newest = (int)s.r.recent.value > 2 ? (int)s.r.recent.value : 2;
                for (i = 0; i < newest; i++) CHECK(pos[n - 1 - i] == s.n - 1 - i);
            }
            for (distinct = any = i = 0; i < s.n; i++) distinct += alive[i];
            CHECK(distinct > n);
            (void)any;
            kvmem_cache_free(&s.c);
        }
}
TEST(lacache_refuses_what_is_no_ladder) {
    scene s;
    REQUIRE(scene_begin(&s, "lacache select=ladder(span=4) budget=20", 4, 1, 1, NULL));
    CHECK(scene_tell(&s, 30, KVMEM_PROMPT_END) == KVMEM_UNSUPPORTED && strstr(s.c.error.text, "frees nothing"));
    kvmem_cache_free(&s.c);
    REQUIRE(scene_begin(&s, "lacache select=ladder(span=3,overlap=1) budget=20", 4, 1, 1, NULL));
    CHECK(scene_tell(&s, 30, KVMEM_PROMPT_END) == KVMEM_UNSUPPORTED);
    kvmem_cache_free(&s.c);
    REQUIRE(scene_begin(&s, "lacache budget=8 sink=2", 4, 1, 1, NULL)); /* no room for a rung */
    REQUIRE(scene_told(&s, 30, KVMEM_PROMPT_END));
    CHECK(lane_is(&s.c, 2, 0, "0 1 24..29"));
    kvmem_cache_free(&s.c);
}

/* ---- kvcrush ---- */

TEST(crush_distances_are_the_cards) {
    static const unsigned char bit[8] = { 1, 0, 0, 1, 0, 1, 0, 1 };
    static const int want[6][4] = { { 2, 0, 0, 0 }, { 2, 0, 0, 0 }, { 0, 2, 2, 2 }, { -1, -1, -1, -1 }, { 1, 1, 1, 1 },
                                    { 1, 1, 1, 1 } };
    int anchor, i;
    for (anchor = 0; anchor < 6; anchor++) {
        int dist[4] = { 0, 0, 0, 0 }, again[4] = { 0, 0, 0, 0 };
        kvmem__crush_add(dist, bit, 4, 2, 0, 1, anchor, 5, 3);
        kvmem__crush_add(again, bit, 4, 2, 0, 1, anchor, 5, 3);
        for (i = 0; i < 4; i++) CHECK(dist[i] == again[i] && (want[anchor][0] < 0 || dist[i] == want[anchor][i]));
    }
}
TEST(crush_representatives_lie_at_even_ranks) {
    int a[7] = { 3, 0, -1, 1, 2, 0, 5 }; /* by rising distance: 1 5 3 4 0 6 */
    kvmem__crush_pick(a, 7, 5, 3); /* ranks 0, 2, 5 */
    CHECK(a[1] == -2 && a[3] == -2 && a[6] == -2 && a[0] == 3 && a[2] == -1 && a[4] == 2 && a[5] == 0);
    {
        int b[3] = { 4, 2, 2 };
        kvmem__crush_pick(b, 3, 5, 1); /* one: the nearest, of equals the first */
        CHECK(b[0] == 4 && b[1] == -2 && b[2] == 2);
        kvmem__crush_pick(b, 3, 5, 2);
        CHECK(b[0] == -2 && b[2] == -2);
    }
}
/* Four kinds of tokens by which of two KV heads finds them important, page by page; the first kind scores highest. */
static double weigh_kinds(int l, int h, int i, int j) {
    const int kind = j / 4 % 4, g = h / 2;
    (void)l;
    if (i < 56) return 1;
    return (kind >> g & 1 ? 2 : 1) * (1 + .001 * (j % 4)) * (kind == 3 && g == 0 ? 2 : 1) + (kind == 1) * .5;
}
TEST(crush_keeps_pages_that_topk_gives_up) {
    scene s;
    int kinds, k, i, n;
    int32_t pos[SEEN];
    for (k = 0; k < 2; k++) {
        REQUIRE(scene_begin(&s, k ? "score=snapkv(window=4,kernel=1) budget=28 recent=4 when=prompt"
                                  : "kvcrush score=snapkv(window=4,kernel=1) select=crush(page=4,ratio=0.67) budget=28 "
                                    "sink=0 recent=4", 1, 4, 2, weigh_kinds));
        REQUIRE(scene_told(&s, 60, KVMEM_PROMPT_END));
        n = left(&s.c, 0, 1, pos);
        CHECK(n == 28);
        for (kinds = i = 0; i < n - 4; i++) {
            kinds |= 1 << (pos[i] / 4 % 4);
            if (!k) CHECK(pos[i] / 4 == pos[i - i % 4] / 4 && pos[i] % 4 == i % 4); /* whole pages */
        }
        CHECK((kinds == 15) == !k);
        kvmem_cache_free(&s.c);
    }
}
static int same_positions(const scene *a, const scene *b) {
    int l, g, i, n;
    for (l = 0; l < a->L; l++)
        for (g = 0; g < a->G; g++) {
            int32_t x[MAXT], y[MAXT];
            n = left(&a->c, l, g, x);
            if (left(&b->c, l, g, y) != n) return 0;
            for (i = 0; i < n; i++) if (x[i] != y[i]) return 0;
        }
    return 1;
}
static double weigh_any(int l, int h, int i, int j) { return .05 + noise(l * 8 + h, i, j, 3); }
TEST(crush_without_a_share_for_others_is_topk_and_its_budget_holds) {
    static const char *const anchors[6] = { "alternate", "mean", "inv", "random", "zeros", "ones" };
    scene a, b;
    int i, g, n, t;
    REQUIRE(scene_begin(&a, "kvcrush select=crush(ratio=0) budget=30 sink=2 recent=16", 2, 4, 2, weigh_any));
    REQUIRE(scene_begin(&b, "kvcrush select=topk budget=30 sink=2 recent=16", 2, 4, 2, weigh_any));
    REQUIRE(scene_told(&a, 60, KVMEM_PROMPT_END) && scene_told(&b, 60, KVMEM_PROMPT_END));
    CHECK(same_positions(&a, &b));
    kvmem_cache_free(&a.c); kvmem_cache_free(&b.c);
    for (i = 0; i < 24; i++) {
        char text[160];
        int32_t pos[SEEN];
        const int p = 1 + i % 5, keep = 24 + i % 9, middle = (60 - 3 - 7) / p * p, rest = 60 - middle;
        sprintf(text, "kvcrush score=snapkv(window=6,kernel=1) select=crush(page=%d,ratio=0.%d,anchor=%s) budget=%d "
                "sink=3 recent=7", p, 1 + i % 9, anchors[i % 6], keep);
        REQUIRE(scene_begin(&a, text, 1, 4, 2, weigh_any));
        REQUIRE(scene_told(&a, 60, KVMEM_PROMPT_END));
        for (g = 0; g < 2; g++) {
            n = left(&a.c, 0, g, pos);
            CHECK(n == rest + (keep - rest) / p * p);
            for (t = 0; t < 3; t++) CHECK(pos[t] == t);
            for (t = 0; t < 7; t++) CHECK(pos[n - 1 - t] == 59 - t);
        }
        kvmem_cache_free(&a.c);
    }
}

/* ---- windowkv ---- */

TEST(windowkv_budgets_are_the_cards) {
    static const int cap[2] = { 2048, 512 }, want[2][4] = { { 2926, 2341, 1756, 1170 }, { 732, 586, 440, 292 } };
    int i, l, L;
    for (i = 0; i < 2; i++)
        for (l = 0; l < 32; l++) CHECK(kvmem__groups(l, 32, cap[i], 8, 14, 0) == want[i][l / 8]);
    CHECK(kvmem__groups(5, 6, 100, 8, 14, 0) == 100); /* one group */
    for (L = 1; L < 70; L++) {
        int64_t sum = 0;
        for (l = 0; l < L; l++) sum += kvmem__groups(l, L, 300 + L, 1, 14, 1);
        CHECK(sum <= (int64_t)L * (300 + L) && sum > (int64_t)L * (299 + L) - 1);
    }
}
TEST(windowkv_layers_of_a_group_keep_the_same_whole_windows) {
    scene s;
    int k, l, g, i, n;
    for (k = 0; k < 2; k++) {
        REQUIRE(scene_begin(&s, k ? "windowkv score=snapkv(window=4,kernel=1) select=windows(size=8,shared=2,by=avg) "
                                    "budget=groups(24,shared=2,beta=5) recent=4"
                                  : "windowkv score=snapkv(window=4,kernel=1) select=windows(size=5,shared=2) "
                                    "budget=groups(24,shared=2,beta=5) recent=4 sink=1", 6, 4, 2, weigh_any));
        REQUIRE(scene_told(&s, 61, KVMEM_PROMPT_END));
        for (l = 0; l < 6; l++)
            for (g = 0; g < 2; g++) {
                const int w = k ? 8 : 5, first = k ? 0 : 1;
                int32_t pos[SEEN], other[SEEN];
                const int keep = kvmem__groups(l, 6, k ? 20 : 19, 2, 5, 0) + 4 + first;
                n = left(&s.c, l, g, pos);
                CHECK(n <= keep && n > keep - w);
                CHECK(left(&s.c, l / 2 * 2, 0, other) == n); /* all heads of all layers of the group */
                for (i = 0; i < n; i++) CHECK(pos[i] == other[i]);
                for (i = first; i < n - 4; i++) { /* complete: the window's first and last entries are there */
                    const int at = (pos[i] - first) / w * w + first, to = at + w < 57 ? at + w : 57;
                    int t, seen = 0;
                    for (t = first; t < n - 4; t++) seen += pos[t] >= at && pos[t] < to;
                    CHECK(seen == to - at);
                }
            }
        kvmem_cache_free(&s.c);
    }
}
TEST(windowkv_with_windows_of_one_is_snapkv_of_the_mean_head) {
    scene s;
    double vote[SEEN];
    int kept[SEEN], h, i, j, g;
    int32_t pos[SEEN];
    REQUIRE(scene_begin(&s, "windowkv score=snapkv(window=6,kernel=1) select=windows(size=1,by=avg) "
                        "budget=20 recent=6", 1, 4, 2, weigh_any));
    REQUIRE(scene_told(&s, 50, KVMEM_PROMPT_END));
    memset(vote, 0, sizeof vote);
    for (h = 0; h < 4; h++)
        for (i = 44; i < 50; i++) {
            double all = 0;
            for (j = 0; j <= i; j++) all += weigh_any(0, h, i, j);
            for (j = 0; j < 44; j++) vote[j] += weigh_any(0, h, i, j) / all;
        }
    best(vote, 44, 14, 0, kept);
    for (g = 0; g < 2; g++) {
        REQUIRE(left(&s.c, 0, g, pos) == 20);
        for (i = 0; i < 14; i++) CHECK(pos[i] == kept[i]);
    }
    kvmem_cache_free(&s.c);
}
/* A needle of 6 neighbours, each worth less than scattered single tokens. */
static double weigh_needle(int l, int h, int i, int j) {
    (void)l; (void)h; (void)i;
    return j >= 24 && j < 30 ? 3 : j % 8 == 1 ? 4 : .1;
}
TEST(windowkv_keeps_a_needle_whole) {
    scene s;
    REQUIRE(scene_begin(&s, "windowkv score=snapkv(window=4,kernel=1) select=windows(by=avg) "
                        "budget=12 recent=4", 1, 2, 1, weigh_needle));
    REQUIRE(scene_told(&s, 60, KVMEM_PROMPT_END));
    CHECK(lane_is(&s.c, 0, 0, "24..31 56..59"));
    kvmem_cache_free(&s.c);
}

/* ---- finch ---- */

TEST(finch_counts_the_rows_of_the_question_by_what_they_see) {
    scene s;
    int k, g, h, i, j;
    for (k = 0; k < 4; k++) { /* a question of 7 tokens; one longer than the window; none; not normalized */
        const int normalize = k != 3, asked = k == 1 ? 20 : 7, from = k == 1 ? 36 : k == 2 ? 40 : 43;
        double want[SEEN];
        int kept[SEEN];
        int32_t pos[SEEN];
        char text[100];
        sprintf(text, "finch score=finch(window=10,normalize=%d) budget=%d", normalize, asked + 12);
        REQUIRE(scene_begin(&s, text, 1, 4, 2, weigh_any));
        REQUIRE(scene_told(&s, 30, KVMEM_PREFILL));
        if (k == 1) CHECK_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_QUESTION));
        REQUIRE(scene_told(&s, 13, KVMEM_PREFILL));
        if (k == 0 || k == 3) CHECK_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_QUESTION));
        REQUIRE(scene_told(&s, 7, KVMEM_PROMPT_END));
        for (g = 0; g < 2; g++) {
            const int m = k == 1 ? 30 : k == 2 ? 40 : 43, rest = asked + 12 - (50 - m);
            memset(want, 0, sizeof want);
            for (h = 2 * g; h < 2 * g + 2; h++)
                for (i = from < 40 ? 40 : from; i < 50; i++) {
                    double all = 0;
                    for (j = 0; j <= i; j++) all += weigh_any(0, h, i, j);
                    for (j = 0; j < m; j++) want[j] += (normalize ? i : 1) * weigh_any(0, h, i, j) / all;
                }
            best(want, m, rest, 0, kept);
            REQUIRE(left(&s.c, 0, g, pos) == asked + 12);
            for (i = 0; i < rest; i++) CHECK(pos[i] == kept[i]);
            for (; i < asked + 12; i++) CHECK(pos[i] == 50 - (asked + 12) + i);
        }
        kvmem_cache_free(&s.c);
    }
}
TEST(finch_without_normalizing_is_snapkv_without_pooling) {
    scene a, b;
    REQUIRE(scene_begin(&a, "finch score=finch(window=8,normalize=0) budget=20", 2, 4, 2, weigh_any));
    REQUIRE(scene_begin(&b, "snapkv score=snapkv(window=8,kernel=1) budget=20 recent=8", 2, 4, 2, weigh_any));
    REQUIRE(scene_told(&a, 60, KVMEM_PROMPT_END) && scene_told(&b, 60, KVMEM_PROMPT_END));
    CHECK(same_positions(&a, &b));
    kvmem_cache_free(&a.c); kvmem_cache_free(&b.c);
}

/* ---- gui-kv ---- */

TEST(gui_saliency_is_the_cards) {
    static const float x[4] = { 1, 2, 3, 6 };
    static const double want[4] = { .371642, .424194, .484178, .719986 };
    float score[4] = { 0, 0, 0, 1 }, one = 0, same[3] = { 0, 0, 0 };
    static const float equal[3] = { 5, 5, 5 };
    double sum = 0;
    int i;
    kvmem__gui_salient(score, x, 4, 2, 3.5);
    for (i = 0; i < 4; i++) { CHECK_NEAR(score[i] - (i == 3), want[i], 2e-6); sum += (double)score[i]; }
    CHECK_NEAR(sum, 3, 1e-6); /* alpha in all */
    kvmem__gui_salient(&one, x, 1, 2, 3.5);
    CHECK(one == 2);
    kvmem__gui_salient(same, equal, 3, 3, 3.5);
    for (i = 0; i < 3; i++) CHECK_NEAR(same[i], 1, 1e-6);
}
TEST(gui_residuals_are_the_cards) {
    static const float key[3][2] = { { 3, 0 }, { 0, 2 }, { 1, 1 } }, now[2] = { 1, 0 };
    static const double want[3] = { 0, 2, 1 };
    float basis[2 * 2], k[2], many[9 * 8], row[8];
    double norm;
    int i, r, c;
    r = kvmem__gui_extend(basis, 0, now, 2);
    CHECK(r == 1);
    for (i = 0; i < 3; i++) {
        memcpy(k, key[i], sizeof k);
        CHECK_NEAR(kvmem__gui_residual(k, basis, r, 2), want[i], 1e-6);
    }
    CHECK(kvmem__gui_extend(basis, 1, key[0], 2) == 1); /* nothing new */
    for (r = 0, i = 0; i < 6; i++) {
        for (c = 0; c < 8; c++) row[c] = (float)test_normal();
        r = kvmem__gui_extend(many, r, row, 8);
        CHECK_NEAR(kvmem__gui_residual(row, many, r, 8), 0, 1e-5); /* one of the basis */
        for (norm = 0, c = 0; c < 8; c++) { row[c] = (float)test_normal(); norm += (double)row[c] * (double)row[c]; }
        CHECK(kvmem__gui_residual(row, many, r, 8) <= sqrt(norm) + 1e-6);
    }
    CHECK(r == 6);
}
/* Two frames of 16 patches at 4 and 24: the same picture but for patches 5, 6 and 11. */
static void key_of_patch(int pos, float *k) {
    const int frame = pos >= 4 && pos < 20 ? 0 : pos >= 24 && pos < 40 ? 1 : -1, patch = frame ? pos - 24 : pos - 4;
    memset(k, 0, SEEN * sizeof *k);
    if (frame < 0) k[pos] = 1;
    else if (!frame && (patch == 5 || patch == 6 || patch == 11)) k[40 + patch] = 1;
    else k[20 + patch % 4] = 1;
}
TEST(gui_drops_of_an_earlier_frame_what_the_last_one_shows) {
    static float norm[SEEN];
    scene s;
    int i;
    for (i = 0; i < SEEN; i++) norm[i] = i == 30 ? 9 : 1;
    REQUIRE(scene_begin(&s, "gui-kv score=gui(window=4,kernel=1) budget=31 recent=4", 1, 2, 1, NULL)); /* equal votes */
    s.key = key_of_patch;
    s.hidden = norm;
    REQUIRE(scene_told(&s, 4, KVMEM_PREFILL));
    CHECK_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_FRAME));
    REQUIRE(scene_told(&s, 16, KVMEM_PREFILL));
    CHECK_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_TEXT));
    REQUIRE(scene_told(&s, 4, KVMEM_PREFILL));
    CHECK_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_FRAME));
    REQUIRE(scene_told(&s, 16, KVMEM_PREFILL));
    CHECK_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_TEXT));
    REQUIRE(scene_told(&s, 8, KVMEM_PROMPT_END));
    /* (1 - 31/48) 16 = 5 of the earlier frame are worth nothing, of equal ones the first; the last frame stands out */
    CHECK(lane_is(&s.c, 0, 0, "0..3 9..15 24..39 44..47"));
    kvmem_cache_free(&s.c);
}
TEST(gui_with_one_frame_and_alpha_0_is_snapkv) {
    static float norm[SEEN];
    scene a, b;
    int i;
    for (i = 0; i < SEEN; i++) norm[i] = (float)test_unit();
    REQUIRE(scene_begin(&a, "gui-kv score=gui(window=6,alpha=0) budget=25 recent=6", 2, 4, 2, weigh_any));
    REQUIRE(scene_begin(&b, "snapkv score=snapkv(window=6) budget=25 recent=6", 2, 4, 2, weigh_any));
    a.hidden = norm;
    CHECK_OK(kvmem_cache_mark(&a.c, KVMEM_MARK_FRAME));
    REQUIRE(scene_told(&a, 60, KVMEM_PROMPT_END) && scene_told(&b, 60, KVMEM_PROMPT_END));
    CHECK(same_positions(&a, &b));
    kvmem_cache_free(&a.c); kvmem_cache_free(&b.c);
}
TEST(gui_takes_frames_at_the_ends_and_budgets_of_nothing) {
    static const int at[4] = { 0, 28, 29, 30 };
    static const char *const recipe[3] = { "gui-kv budget=1 score=gui(window=1) recent=0", "gui-kv budget=50% recent=0",
                                           "gui-kv score=gui(window=3) budget=3 recent=3" };
    static float norm[SEEN];
    scene s;
    int i, k, t;
    for (k = 0; k < 3; k++)
        for (i = 0; i < 4; i++) { /* frames of one token, at the very end, before everything */
            REQUIRE(scene_begin(&s, recipe[k], 2, 4, 2, weigh_any));
            s.hidden = norm;
            for (t = 0; t < 30; t++) {
                if (t >= at[i]) CHECK_OK(kvmem_cache_mark(&s.c, KVMEM_MARK_FRAME));
                REQUIRE(scene_told(&s, 1, t < 29 ? KVMEM_PREFILL : KVMEM_PROMPT_END));
            }
            CHECK(kvmem_cache_lane_len(&s.c, 1, 1) == (k == 0 ? 1 : k == 1 ? 15 : 3));
            kvmem_cache_free(&s.c);
        }
}

/* ---- facts of all of them ---- */

static const char *const methods[] = {
    "lazyeviction score=lazyeviction(alpha=0.01) budget=40 recent=8 when=decode(8)",
    "treekv budget=40 sink=2 recent=8", "treekv select=tree(block=4) budget=38 sink=0 recent=25% place=original",
    "lacache budget=40", "lacache select=ladder(span=1,overlap=0) budget=36 sink=3 recent=4 place=original when=step",
    "kvcrush score=snapkv(window=4,kernel=1) select=crush(page=4,ratio=0.3) budget=40 sink=3 recent=8",
    "kvcrush score=snapkv(window=4,kernel=1) select=crush(page=1,anchor=mean) budget=40 sink=0 recent=8 when=step",
    "windowkv score=snapkv(window=8,kernel=1) select=windows(size=4,shared=2) budget=40 recent=8 when=every(3)",
    "finch score=finch(window=8) budget=40",
    "finch score=finch(window=4,normalize=0) budget=40 place=original when=step" };
enum { N_METHODS = sizeof methods / sizeof *methods };

/* After any step the entries rise, hold sinks and the recent window, and number at most the budget (plus what when=
   lets grow); attention reads exactly them. */
TEST(attention_reads_what_is_kept_and_the_kept_hold_sinks_and_window) {
    int k;
    for (k = 0; k < N_METHODS; k++) {
        world w; kvmem_cache c; float *out;
        int32_t pos[MAXT];
        int set[MAXT], place[MAXT], t, l, g, h, i, n;
        REQUIRE(world_init(&w, 3, 4, 2, 8, 200, methods[k]));
        w.cfg.shape.rope = w.rope; w.cfg.max_block = 64;
        w.cfg.shape.scale = 1 / sqrtf(8);
        out = outs(&w, 1);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 150, 64, KVMEM_PROMPT_END, NULL));
        for (t = 150; t < 200; t++) {
            static int32_t before[3][2][MAXT];
            static int n_before[3][2];
            const int slots = ((const kvmem_place_entry *)(const void *)w.recipe.stage[KVMEM_PLACE].entry)->fn != NULL;
            for (l = 0; l < 3; l++) for (g = 0; g < 2; g++) n_before[l][g] = left(&c, l, g, before[l][g]);
            CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, out));
            for (l = 0; l < 3; l++)
                for (g = 0; g < 2; g++) {
                    double o[256], worst = 0;
                    n = n_before[l][g];
                    for (i = 0; i < n; i++) set[i] = (int)before[l][g][i];
                    set[n++] = t;
                    for (i = 0; i < n; i++) place[i] = slots ? i : set[i];
                    for (h = 2 * g; h < 2 * g + 2; h++) {
                        oracle(&w, t, l, h, set, n, place, place[n - 1], o);
                        for (i = 0; i < 8; i++) {
                            const double e = fabs(o[i] - (double)out[(l * 4 + h) * 8 + i]);
                            if (!(e <= worst)) worst = e;
                        }
                    }
                    CHECK_NEAR(worst, 0, 2e-5);
                    n = left(&c, l, g, pos);
                    for (i = 1; i < n; i++) CHECK(pos[i] > pos[i - 1]);
                    for (i = 0; i < w.recipe.sink; i++) CHECK(pos[i] == i);
                    for (i = 0; w.recipe.recent.kind == KVMEM_COUNT && i < (int)w.recipe.recent.value; i++)
                        CHECK(pos[n - 1 - i] == t - i);
                    if (w.recipe.when != KVMEM_WHEN_PROMPT && t > 160) CHECK(n <= 40 + 8);
                }
        }
        kvmem_cache_free(&c); free(out); world_free(&w);
    }
}
/* Saved, loaded, copied in the middle, by two threads: the same bits come out. */
TEST(a_saved_and_a_copied_memory_go_on_alike) {
    int k;
    for (k = 0; k < N_METHODS; k++) {
        world w; kvmem_cache a, b, copy; bytes f = { 0, 0, 0 };
        float *x, *y;
        REQUIRE(world_init(&w, 3, 4, 2, 8, 200, methods[k]));
        w.cfg.shape.rope = w.rope; w.cfg.max_block = 64;
        x = outs(&w, 30); y = outs(&w, 30);
        REQUIRE_OK(kvmem_cache_init(&a, &w.cfg));
        w.cfg.threads = 2;
        REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
        CHECK_OK(feed(&w, &a, 0, 150, 64, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &a, 150, 170, 1, KVMEM_DECODE, NULL));
        CHECK_OK(kvmem_cache_save(&a, bytes_write, &f));
        CHECK_OK(kvmem_cache_load(&b, f.p, f.n));
        REQUIRE_OK(kvmem_cache_copy(&copy, &a));
        CHECK_OK(feed(&w, &a, 170, 200, 1, KVMEM_DECODE, x));
        CHECK_OK(feed(&w, &b, 170, 200, 1, KVMEM_DECODE, y));
        CHECK(same_out(&w, x, y, 30));
        CHECK_OK(feed(&w, &copy, 170, 200, 1, KVMEM_DECODE, y));
        CHECK(same_out(&w, x, y, 30));
        kvmem_cache_free(&copy); kvmem_cache_free(&a); kvmem_cache_free(&b);
        free(f.p); free(x); free(y); world_free(&w);
    }
}
/* Rows of zeros, one token, one KV head, a group of all heads, budgets of 1 and below what is protected. */
TEST(poor_inputs_are_taken) {
    static const char *const amounts[] = { "budget=1", "budget=3", "budget=5%", "budget=17" };
    int k, a, one;
    for (k = 0; k < N_METHODS; k++)
        for (a = 0; a < 4; a++)
            for (one = 0; one < 2; one++) {
                char text[200];
                scene s;
                kvmem_recipe r;
                kvmem_error e;
                int i, l, g, G = one ? 1 : 4;
                const int at = (int)(strstr(methods[k], "budget=") - methods[k]);
                snprintf(text, sizeof text, "%.*s%s%s", at, methods[k], amounts[a],
                         methods[k] + at + strcspn(methods[k] + at, " "));
                if (kvmem_recipe_parse(&r, text, &e)) continue; /* what is protected does not fit */
                REQUIRE(scene_begin(&s, text, 4, 4, G, NULL));
                for (i = 0; i < 20; i++) {
                    if (kvmem_cache_room(&s.c) < 1) break;
                    if (!scene_told(&s, 1, i < 7 ? KVMEM_PREFILL : i == 7 ? KVMEM_PROMPT_END : KVMEM_DECODE)) {
                        printf("  %s\n", text);
                        break;
                    }
                    for (l = 0; l < 4; l++) for (g = 0; g < G; g++) CHECK(kvmem_cache_lane_len(&s.c, l, g) > 0);
                }
                kvmem_cache_clear(&s.c);
                s.n = 0;
                CHECK(scene_told(&s, 1, KVMEM_PROMPT_END));
                kvmem_cache_free(&s.c);
            }
}

TEST(a_limit_of_bytes_holds) {
    int k;
    for (k = 0; k < N_METHODS; k++) {
        char text[240];
        world w; kvmem_cache c; kvmem_bytes b;
        const int at = (int)(strstr(methods[k], "budget=") - methods[k]);
        snprintf(text, sizeof text, "%.*sbudget=160KB%s page=4", at, methods[k],
                 methods[k] + at + strcspn(methods[k] + at, " "));
        REQUIRE(world_init(&w, 4, 4, 2, 8, 600, text));
        w.cfg.shape.rope = w.rope; w.cfg.max_block = 32;
        if (kvmem_cache_init(&c, &w.cfg)) { FAIL_AT("%s: %s", text, c.error.text); continue; }
        CHECK_OK(feed(&w, &c, 0, 500, 32, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 500, 600, 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &b);
        CHECK(b.peak.total <= 160000 && kvmem_cache_lane_len(&c, 0, 0) < 600);
        kvmem_cache_free(&c); world_free(&w);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "streaming");
    RUN(topk_can_give_ties_to_the_newer);
    RUN(when_decode_counts_decoded_tokens_only);
    RUN(lazyeviction_scores_are_the_cards);
    RUN(lazyeviction_equals_its_rule_over_a_whole_run);
    RUN(lazyeviction_keeps_what_returns_after_a_pause);
    RUN(tree_sweeps_as_the_card_says);
    RUN(tree_keeps_a_geometric_past);
    RUN(tree_runs_between_sinks_and_recent_and_once_full_evicts_one_a_step);
    RUN(treekv_equals_its_rule_over_a_whole_run);
    RUN(tree_thins_a_prompt_by_blocks);
    RUN(lacache_keeps_the_cards_ladder);
    RUN(lacache_layers_are_equally_long_and_remember_more_together);
    RUN(lacache_refuses_what_is_no_ladder);
    RUN(crush_distances_are_the_cards);
    RUN(crush_representatives_lie_at_even_ranks);
    RUN(crush_keeps_pages_that_topk_gives_up);
    RUN(crush_without_a_share_for_others_is_topk_and_its_budget_holds);
    RUN(windowkv_budgets_are_the_cards);
    RUN(windowkv_layers_of_a_group_keep_the_same_whole_windows);
    RUN(windowkv_with_windows_of_one_is_snapkv_of_the_mean_head);
    RUN(windowkv_keeps_a_needle_whole);
    RUN(finch_counts_the_rows_of_the_question_by_what_they_see);
    RUN(finch_without_normalizing_is_snapkv_without_pooling);
    RUN(gui_saliency_is_the_cards);
    RUN(gui_residuals_are_the_cards);
    RUN(gui_drops_of_an_earlier_frame_what_the_last_one_shows);
    RUN(gui_with_one_frame_and_alpha_0_is_snapkv);
    RUN(gui_takes_frames_at_the_ends_and_budgets_of_nothing);
    RUN(attention_reads_what_is_kept_and_the_kept_hold_sinks_and_window);
    RUN(a_saved_and_a_copied_memory_go_on_alike);
    RUN(poor_inputs_are_taken);
    RUN(a_limit_of_bytes_holds);
    return test_end();
}
