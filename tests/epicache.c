/* EpiCache: probe tokens after every block of a prompt, and one compressed cache for each topic of a history. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "tiny.h"
#include "world.h"

static const kvmem_probe alone = { 1, 0, 0, 0, 0, 1, 1 };

/* Patch queries (2, 0, ..) and (0, 2, ..) find the probabilities of the card's example in keys of logarithms. */
TEST(example_of_two_patch_rows) {
    static const double p[2][3] = { { .5, .3, .2 }, { .1, .8, .1 } };
    world w; kvmem_cache c, q; float k[3][4], v[3][4], x[2][4], out[12]; int32_t pos[8]; int i, j;
    REQUIRE(world_init(&w, 1, 1, 1, 4, 4, "epicache budget=2 when=block"));
    w.cfg.shape.rope = NULL;
    memset(k, 0, sizeof k); memset(v, 0, sizeof v); memset(x, 0, sizeof x);
    for (j = 0; j < 3; j++) for (i = 0; i < 2; i++) k[j][i] = (float)log(p[i][j]);
    x[0][0] = x[1][1] = 2;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(kvmem_cache_append(&c, 0, 3, &k[0][0], &v[0][0], NULL));
    CHECK_OK(kvmem_cache_attend(&c, 0, 3, &k[0][0], out));
    CHECK_OK(kvmem_cache_commit(&c, KVMEM_PREFILL));
    CHECK(c.awaits == 1);
    CHECK_OK(kvmem_cache_probe(&q, &c, &alone));
    CHECK(q.next_pos == 2); /* the block's last position, once more */
    CHECK_OK(kvmem_cache_append(&q, 0, 2, &x[0][0], &v[0][0], NULL));
    CHECK_OK(kvmem_cache_attend(&q, 0, 2, &x[0][0], out));
    CHECK_OK(kvmem_cache_commit(&q, KVMEM_DECODE));
    kvmem_cache_free(&q);
    CHECK_NEAR(c.seen[0], .5, 1e-6); CHECK_NEAR(c.seen[1], .8, 1e-6); CHECK_NEAR(c.seen[2], .2, 1e-6);
    CHECK_OK(kvmem_cache_reduce(&c));
    CHECK(!c.awaits && kvmem_cache_lane_len(&c, 0, 0) == 2 && c.next_pos == 3);
    CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, 2, k[0], v[0], pos));
    CHECK(pos[0] == 0 && pos[1] == 1);
    kvmem_cache_free(&c); world_free(&w);
}
/* The largest probability of entry t for head h over patch tokens [from, to) of the stream, which stand at first ... */
static double oracle_seen(const world *w, int l, int h, int t, const int *set, int n, int from, int to, int first) {
    const int d = w->d, g = h / (w->H / w->G);
    double best = 0;
    int i, j, c;
    for (i = from; i < to; i++) {
        double q[64], k[64], sum = 0, mine = 0, z;
        for (c = 0; c < d; c++) q[c] = (double)row_q(w, i, l)[h * d + c];
        turn(q, d, &w->rope[l], first + i - from);
        for (j = 0; j < n; j++) {
            for (c = 0; c < d; c++) k[c] = (double)row_k(w, w->k, set[j], l)[g * d + c];
            turn(k, d, &w->rope[l], set[j]);
            for (c = 0, z = 0; c < d; c++) z += q[c] * k[c];
            z = exp(z / sqrt((double)d));
            sum += z;
            if (set[j] == t) mine = z;
        }
        best = KVMEM__MAX(best, mine / sum);
    }
    return best;
}
TEST(scores_are_probabilities_over_cached_entries_alone) {
    world w; kvmem_cache c; int l, g, h, t, block, set[MAXT];
    REQUIRE(world_init(&w, 2, 4, 2, 8, 80, "epicache budget=20 when=block(10) page=4"));
    w.cfg.shape.rope = w.rope;
    w.rope[1].neox = 1;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    for (block = 0; block < 5; block++) {
        float k[10 * 16], v[10 * 16], q[10 * 32], o[10 * 32];
        for (l = 0; l < 2; l++) {
            for (t = 0; t < 10; t++) {
                memcpy(k + t * 16, row_k(&w, w.k, block * 10 + t, l), 64);
                memcpy(v + t * 16, row_k(&w, w.v, block * 10 + t, l), 64);
                memcpy(q + t * 32, row_q(&w, block * 10 + t, l), 128);
            }
            CHECK_OK(kvmem_cache_append(&c, l, 10, k, v, NULL));
            CHECK_OK(kvmem_cache_attend(&c, l, 10, q, o));
        }
        CHECK_OK(kvmem_cache_commit(&c, block < 4 ? KVMEM_PREFILL : KVMEM_PROMPT_END));
        CHECK(c.awaits == (block > 1));
        if (!c.awaits) continue;
        CHECK_OK(world_probe(&w, &c, &alone, 60, 66));
        for (l = 0; l < 2; l++) for (g = 0; g < 2; g++) {
            const int n = kvmem_cache_lane_len(&c, l, g);
            double sum = 0;
            CHECK_OK(kvmem_cache_read(&c, l, g, 0, n, NULL, NULL, set));
            for (t = 0; t < n; t++) for (h = 2 * g; h < 2 * g + 2; h++) {
                const double want = oracle_seen(&w, l, h, set[t], set, n, 60, 66, block * 10 + 9);
                CHECK_NEAR(c.seen[(l * 4 + h) * c.seen_cap + t], want, 2e-5);
                sum += want;
            }
            CHECK(sum > 2);
        }
        CHECK_OK(kvmem_cache_reduce(&c));
        for (l = 0; l < 2; l++) /* pair: of each layer exactly the budget */
            CHECK(kvmem_cache_lane_len(&c, l, 0) + kvmem_cache_lane_len(&c, l, 1) == 40);
    }
    kvmem_cache_free(&c); world_free(&w);
}

/* ---- sessions ---- */

static uint8_t *file_bytes;
static int small_open(kvmem_model *m) {
    size_t size = 0;
    memset(m, 0, sizeof *m);
    file_bytes = tiny_model(KVMEM_F32, 0, &size);
    return kvmem_model_open(m, file_bytes, size, NULL, 0, NULL) == KVMEM_OK;
}
static void small_close(kvmem_model *m) { kvmem_model_close(m); free(file_bytes); }
static void some_ids(int *ids, int n, int vocab) {
    int i;
    for (i = 0; i < n; i++) ids[i] = 10 + (int)(test_unit() * (vocab - 10));
}
static int session_of(kvmem_session *s, const kvmem_model *m, const char *recipe) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r;
    kvmem_error e;
    if (kvmem_recipe_parse(&r, recipe, &e)) { printf("  %s\n", e.text); return 0; }
    cfg.recipe = &r;
    if (kvmem_session_init(s, m, &cfg)) { printf("  %s\n", s->error.text); return 0; }
    return 1;
}
/* Positions that a cache keeps, and its rows. */
static uint64_t kept(kvmem_cache *c) {
    const int d = c->shape.head_dim;
    uint64_t h = 14695981039346656037u;
    int l, g, i;
    for (l = 0; l < c->shape.n_layers; l++) for (g = 0; g < c->shape.n_kv_heads; g++)
        for (i = 0; i < kvmem_cache_lane_len(c, l, g); i++) {
            float k[256], v[256]; int32_t pos;
            kvmem_cache_read(c, l, g, i, 1, k, v, &pos);
            h = kvmem__fnv(h, k, (size_t)d * 4);
            h = kvmem__fnv(h, v, (size_t)d * 4);
            h = kvmem__fnv(h, &pos, sizeof pos);
        }
    return h;
}
TEST(a_budget_above_the_tokens_is_dense_whatever_the_patch) {
    kvmem_model m; kvmem_session s, full; int ids[70], i;
    REQUIRE(small_open(&m));
    some_ids(ids, 70, m.n_vocab);
    REQUIRE(session_of(&full, &m, "full"));
    CHECK_OK(kvmem_session_feed(&full, ids, 60, KVMEM_PROMPT_END, NULL, NULL));
    for (i = 0; i < 3; i++) {
        REQUIRE(session_of(&s, &m, i < 2 ? "epicache budget=60 when=block(8)" : "epicache budget=all when=block(8)"));
        CHECK_OK(kvmem_session_patch(&s, ids + 20 * i, 9));
        CHECK_OK(kvmem_session_feed(&s, ids, 60, KVMEM_PROMPT_END, NULL, NULL));
        CHECK(kept(&s.cache) == kept(&full.cache));
        kvmem_session_free(&s);
    }
    kvmem_session_free(&full); small_close(&m);
}
TEST(pair_and_pair_uniform_lengths_and_the_peak) {
    static const char *const recipe[2] = { "epicache budget=20 when=block(8) page=4 codec=f32",
                                           "epicache budget=uniform(20) when=block(8) page=4 codec=f32" };
    kvmem_model m; kvmem_session s; int ids[320], i, j, l, g, at, ragged = 0;
    REQUIRE(small_open(&m));
    some_ids(ids, 320, m.n_vocab);
    for (i = 0; i < 2; i++) {
        kvmem_bytes b, half;
        uint64_t first = 0;
        for (j = 0; j < 3; j++) { /* the same again, then another patch prompt */
            REQUIRE(session_of(&s, &m, recipe[i]));
            CHECK_OK(kvmem_session_patch(&s, ids + 100 * (j / 2), 11));
            memset(&half, 0, sizeof half);
            for (at = 0; at < 320; at += 8) {
                CHECK_OK(kvmem_session_feed(&s, ids + at, 8, at < 312 ? KVMEM_PREFILL : KVMEM_PROMPT_END, NULL, NULL));
                for (l = 0; l < m.n_layers; l++) {
                    int sum = 0;
                    for (g = 0; g < m.n_kv_heads; g++) {
                        const int n = kvmem_cache_lane_len(&s.cache, l, g);
                        CHECK(n >= 1 && (!i || n == KVMEM__MIN(20, at + 8)));
                        ragged |= n != KVMEM__MIN(20, at + 8);
                        sum += n;
                    }
                    CHECK(sum == KVMEM__MIN(20, at + 8) * m.n_kv_heads);
                }
                kvmem_cache_bytes(&s.cache, &b);
                if (at == 152) half = b;
            }
            CHECK(b.peak.k <= (size_t)(m.n_layers * m.n_kv_heads) * (20 + 8 + 11 + 3 * 4) * (size_t)m.head_dim * 4);
            CHECK(i == 0 || b.peak.total == half.peak.total); /* however long the history */
            CHECK(!b.live.stats && s.cache.next_pos == 320);
            if (!j) first = kept(&s.cache);
            else CHECK((kept(&s.cache) == first) == (j == 1));
            CHECK_OK(kvmem_session_feed(&s, ids, 5, KVMEM_DECODE, NULL, NULL)); /* removes nothing */
            CHECK(kvmem_cache_lane_len(&s.cache, 0, 0) + kvmem_cache_lane_len(&s.cache, 0, m.n_kv_heads - 1) ==
                  50 || m.n_kv_heads != 2);
            kvmem_session_free(&s);
        }
    }
    CHECK(ragged);
    small_close(&m);
}
TEST(patch_prompts_of_every_kind_run_and_a_copy_has_them) {
    static const char *const recipe[5] = {
        "epicache budget=20 when=block(8)", "epicache score=epicache(patch=summary) budget=20 when=block(8)",
        "epicache score=epicache(patch=repeat) budget=20 when=block(8)",
        "epicache score=epicache(patch=last,tail=5) budget=20 when=block(8)", "epicache budget=20 when=prompt" };
    kvmem_model m; kvmem_session s, t; int ids[90], i; uint64_t h[5];
    REQUIRE(small_open(&m));
    some_ids(ids, 90, m.n_vocab);
    for (i = 0; i < 5; i++) {
        REQUIRE(session_of(&s, &m, recipe[i]));
        CHECK_OK(kvmem_session_feed(&s, ids, 40, KVMEM_PREFILL, NULL, NULL));
        if (!i) {
            CHECK_OK(kvmem_session_patch(&s, ids, 9));
            CHECK_OK(kvmem_session_patch(&s, ids + 30, 12)); /* in its place */
        }
        CHECK_OK(kvmem_session_copy(&t, &s));
        CHECK_OK(kvmem_session_feed(&s, ids + 40, 50, KVMEM_PROMPT_END, NULL, NULL));
        CHECK_OK(kvmem_session_feed(&t, ids + 40, 50, KVMEM_PROMPT_END, NULL, NULL));
        h[i] = kept(&s.cache);
        CHECK(h[i] == kept(&t.cache));
        kvmem_session_free(&t);
        if (!i) CHECK_OK(kvmem_session_patch(&s, NULL, 0)); /* the instruction alone again */
        kvmem_session_clear(&s);
        CHECK_OK(kvmem_session_feed(&s, ids, 90, KVMEM_PROMPT_END, NULL, NULL));
        if (!i) CHECK(h[i] != kept(&s.cache));
        else CHECK(h[i] == kept(&s.cache)); /* one cache for every question */
        kvmem_session_free(&s);
    }
    CHECK(h[0] != h[1] && h[1] != h[2] && h[2] != h[3]);
    small_close(&m);
}
TEST(what_a_patch_prompt_may_not_be) {
    static const char *const bad[5] = { "epicache when=step", "epicache when=every(4)", "epicache budget=8MiB",
                                        "epicache score=epicache(most=0)", "epicache score=epicache(patch=all)" };
    kvmem_model m; kvmem_session s; int ids[40], i; kvmem_recipe r; kvmem_error e; kvmem_cache p;
    const kvmem_probe early = { 1, 0, 0, 0, 0, 1, 31 }, late = { 1, 0, 0, 0, 0, 1, -1 };
    for (i = 0; i < 5; i++) CHECK(kvmem_recipe_parse(&r, bad[i], &e) == KVMEM_BAD_RECIPE && e.text[0]);
    REQUIRE(small_open(&m));
    some_ids(ids, 40, m.n_vocab);
    REQUIRE(session_of(&s, &m, "epicache score=epicache(most=10) budget=8 when=block(8)"));
    CHECK(kvmem_session_patch(&s, ids, 11) == KVMEM_BAD_ARGUMENT && strstr(s.error.text, "most=10"));
    CHECK(kvmem_session_patch(&s, NULL, 1) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_session_patch(&s, ids, -1) == KVMEM_BAD_ARGUMENT);
    ids[3] = m.n_vocab;
    CHECK(kvmem_session_patch(&s, ids, 5) == KVMEM_BAD_ARGUMENT && strstr(s.error.text, "vocabulary"));
    ids[3] = 20;
    CHECK_OK(kvmem_session_patch(&s, ids, 10));
    CHECK_OK(kvmem_session_feed(&s, ids, 30, KVMEM_PROMPT_END, NULL, NULL));
    s.cache.awaits = 1;
    CHECK(kvmem_cache_probe(&p, &s.cache, &early) == KVMEM_BAD_ARGUMENT && strstr(s.cache.error.text, "31"));
    CHECK(kvmem_cache_probe(&p, &s.cache, &late) == KVMEM_BAD_ARGUMENT);
    s.cache.awaits = 0;
    kvmem_session_free(&s);
    REQUIRE(session_of(&s, &m, "dapq budget=8"));
    CHECK(kvmem_session_patch(&s, ids, 4) == KVMEM_BAD_STATE && strstr(s.error.text, "dapq"));
    kvmem_session_free(&s); small_close(&m);
}

/* ---- episodes ---- */

/* A history of 32 turns of 5 tokens behind 3 of a system prompt: four turns on a topic, then four on the next of four.
   A topic has 12 words of its own. */
enum { TURNS = 32, HISTORY = 3 + 5 * TURNS };
static int history[HISTORY], turns[TURNS];
static int word_of(int topic) { return 20 + 12 * topic + (int)(test_unit() * 12); }
static void tell_history(void) {
    int i, j;
    for (i = 0; i < 3; i++) history[i] = 10 + i;
    for (i = 0; i < TURNS; i++) {
        turns[i] = 3 + 5 * i;
        for (j = 0; j < 5; j++) history[3 + 5 * i + j] = word_of(i / 4 % 4);
    }
}
static kvmem_status episodes_of(kvmem_episodes *e, const kvmem_model *m, const char *recipe, const char *instruction,
                                int n_turns, int read, const kvmem_allocator *heap) {
    kvmem_episodes_config cfg; kvmem_recipe r; kvmem_error err;
    memset(&cfg, 0, sizeof cfg);
    if (kvmem_recipe_parse(&r, recipe, &err)) { printf("  %s\n", err.text); return KVMEM_BAD_RECIPE; }
    cfg.session.recipe = &r;
    cfg.instruction = instruction;
    if (heap) cfg.session.allocator = *heap;
    return (read ? kvmem_episodes_build : kvmem_episodes_plan)(e, m, &cfg, history, HISTORY, turns, n_turns);
}
TEST(topics_are_found_and_their_turns_are_the_patch_prompts) {
    kvmem_model m; kvmem_episodes e, f; int i, j, t, q[12];
    REQUIRE(small_open(&m));
    tell_history();
    REQUIRE_OK(episodes_of(&e, &m, "epicache score=epicache(episodes=4,medoids=1)", "", TURNS, 0, NULL));
    REQUIRE_OK(episodes_of(&f, &m, "epicache score=epicache(episodes=4,medoids=9)", NULL, TURNS, 0, NULL));
    CHECK(e.n == 4 && e.n_windows == 8 && e.window[0] == 3 && e.window[8] == HISTORY && e.n_cached == 0);
    for (t = 0; t < 8; t++) CHECK(e.own[t] == e.own[t % 4] && e.window[t] == 3 + 20 * t);
    for (i = 0; i < 4; i++) for (j = 0; j < i; j++) CHECK(e.own[i] != e.own[j]);
    for (i = 0; i < 4; i++) {
        const int *a = e.patch + e.patch_at[i], *b = f.patch + f.patch_at[i];
        const int n = e.patch_at[i + 1] - e.patch_at[i], m2 = f.patch_at[i + 1] - f.patch_at[i], blank = n - 20;
        const float *c = e.centroid + i * e.dim;
        int first = -1, topic = -1, head = m2 - 2 * n, d;
        for (t = 0; t < 8; t++) if (e.own[t] == i) { if (first < 0) first = t; }
        topic = first % 4;
        CHECK((blank == 0 || blank == 1) && head >= 0); /* an instruction as far as there are words */
        CHECK(!memcmp(a, history + 3 + 20 * topic, 80) || !memcmp(a, history + 3 + 20 * (topic + 4), 80));
        CHECK(!memcmp(b + head, history + 3 + 20 * topic, 80));
        CHECK(!memcmp(b + head + n, history + 3 + 20 * (topic + 4), 80)); /* in the order of the text */
        for (d = 0; d < e.dim; d++) /* a mean, of no particular length */
            CHECK_NEAR(c[d], (e.vector[topic * e.dim + d] + e.vector[(topic + 4) * e.dim + d]) / 2, 1e-6);
        for (j = 0; j < 12; j++) q[j] = 20 + 12 * topic + j;
        CHECK_OK(kvmem_episodes_match(&e, q, 12, &j));
        CHECK(j == i);
    }
    CHECK(kvmem_episodes_match(&e, q, 0, &j) == KVMEM_BAD_ARGUMENT && kvmem_episodes_open(&e, 0) == KVMEM_BAD_ARGUMENT);
    kvmem_episodes_free(&f);
    REQUIRE_OK(episodes_of(&f, &m, "epicache score=epicache(episodes=4,most=7)", "", TURNS, 0, NULL));
    for (i = 0; i < 4; i++) { /* nothing fits: the front of the best */
        for (t = 0; f.own[t] != i; t++) {}
        CHECK(f.patch_at[i + 1] == 7 * (i + 1));
        CHECK(!memcmp(f.patch + 7 * i, history + f.window[t], 28) ||
              !memcmp(f.patch + 7 * i, history + f.window[t + 4], 28));
    }
    kvmem_episodes_free(&f); kvmem_episodes_free(&e); small_close(&m);
}
/* The least inertia of n windows in two clusters, over all divisions. */
static double least_inertia(const kvmem_episodes *e) {
    double best = 1e300;
    int mask, i, d, k;
    for (mask = 1; mask < 1 << (e->n_windows - 1); mask++) {
        double sum = 0;
        for (k = 0; k < 2; k++) for (d = 0; d < e->dim; d++) {
            double s = 0, s2 = 0, n = 0;
            for (i = 0; i < e->n_windows; i++) {
                const double x = (double)e->vector[i * e->dim + d];
                if ((mask >> i & 1) == k) { s += x; s2 += x * x; n++; }
            }
            sum += s2 - s * s / n;
        }
        best = KVMEM__MIN(best, sum);
    }
    return best;
}
TEST(ten_starts_come_near_the_best_clustering_and_windows_may_be_few) {
    kvmem_model m; kvmem_episodes e, f; int i;
    REQUIRE(small_open(&m));
    tell_history();
    for (i = 0; i < HISTORY; i++) history[i] = 10 + (int)(test_unit() * (m.n_vocab - 10)); /* no topics at all */
    REQUIRE_OK(episodes_of(&e, &m, "epicache score=epicache(episodes=2,turns=3)", "", TURNS, 0, NULL));
    CHECK(e.n_windows == 11 && e.window[10] == turns[30] && e.n == 2);
    CHECK(e.inertia > least_inertia(&e) - 1e-4 && e.inertia < 1.02 * least_inertia(&e));
    REQUIRE_OK(episodes_of(&f, &m, "epicache score=epicache(episodes=2,turns=3)", "", TURNS, 0, NULL));
    CHECK(!memcmp(e.own, f.own, 11 * sizeof(int)) && !memcmp(e.centroid, f.centroid, (size_t)(2 * e.dim) * 4));
    kvmem_episodes_free(&e); kvmem_episodes_free(&f);
    REQUIRE_OK(episodes_of(&e, &m, "epicache score=epicache(episodes=9)", NULL, 9, 0, NULL));
    CHECK(e.n == 3 && e.inertia < 1e-9); /* every window an episode */
    kvmem_episodes_free(&e);
    REQUIRE_OK(episodes_of(&e, &m, "epicache score=epicache(episodes=9)", NULL, 0, 0, NULL));
    CHECK(e.n == 1 && e.n_windows == 0);
    CHECK_OK(kvmem_episodes_match(&e, history, 4, &i));
    CHECK(i == 0);
    kvmem_episodes_free(&e); small_close(&m);
}
TEST(caches_of_all_episodes) {
    static const char small[] = "epicache score=epicache(episodes=4) budget=24 when=block(16) page=4 codec=f32";
    kvmem_model m; kvmem_episodes e; kvmem_session s; kvmem_bytes b; int i, l, q[4]; uint64_t h[4], all;
    float *logits;
    REQUIRE(small_open(&m));
    tell_history();
    for (i = 0; i < 4; i++) q[i] = word_of(2);
    REQUIRE(session_of(&s, &m, "full codec=f32"));
    CHECK_OK(kvmem_session_feed(&s, history, HISTORY, KVMEM_PROMPT_END, NULL, NULL));
    all = kept(&s.cache);
    CHECK_OK(kvmem_session_feed(&s, q, 4, KVMEM_DECODE, NULL, NULL));
    REQUIRE_OK(episodes_of(&e, &m, "epicache score=epicache(episodes=4) budget=163 when=block(16) codec=f32", "", TURNS,
                           1, NULL));
    CHECK(e.n == 4 && e.n_cached == 4);
    for (i = 0; i < 4; i++) {
        CHECK_OK(kvmem_episodes_open(&e, i));
        CHECK(kept(&e.session.cache) == all); /* the budget covers the history: dense, all episodes alike */
        CHECK_OK(kvmem_session_feed(&e.session, q, 4, KVMEM_DECODE, NULL, NULL));
        CHECK(!memcmp(e.session.logits, s.logits, (size_t)m.n_vocab * 4));
    }
    kvmem_session_free(&s); kvmem_episodes_free(&e);
    REQUIRE_OK(episodes_of(&e, &m, small, "", TURNS, 1, NULL));
    logits = (float *)malloc((size_t)m.n_vocab * 4);
    for (i = 0; i < 4; i++) {
        CHECK_OK(kvmem_episodes_open(&e, i));
        h[i] = kept(&e.session.cache);
        for (l = 0; l < m.n_layers; l++) CHECK(kvmem_cache_lane_len(&e.session.cache, l, 0) +
                                               kvmem_cache_lane_len(&e.session.cache, l, 1) == 48);
        CHECK(e.session.cache.next_pos == HISTORY && e.opened == i);
        CHECK_OK(kvmem_session_feed(&e.session, q, 4, KVMEM_DECODE, NULL, NULL));
        memcpy(logits, e.session.logits, (size_t)m.n_vocab * 4);
        CHECK_OK(kvmem_episodes_open(&e, i)); /* question and answer are gone */
        CHECK(kept(&e.session.cache) == h[i]);
        CHECK_OK(kvmem_session_feed(&e.session, q, 4, KVMEM_DECODE, NULL, NULL));
        CHECK(!memcmp(logits, e.session.logits, (size_t)m.n_vocab * 4));
        for (l = 0; l < i; l++) CHECK(h[l] != h[i]);
    }
    kvmem_episodes_bytes(&e, &b); /* four caches, and while the last was made: M + B + |patch| more of each lane */
    CHECK(b.peak.k <= (size_t)(m.n_layers * m.n_kv_heads * m.head_dim) * 4 * (4 * (24 + 8) + 16 + 50 + 16));
    free(logits);
    kvmem_episodes_free(&e); small_close(&m);
}
TEST(episodes_that_cannot_be_are_errors_and_leave_nothing) {
    kvmem_model m; kvmem_episodes e; test_heap heap; kvmem_allocator a; int k; size_t calls = 0;
    static const char text[] = "epicache score=epicache(episodes=2) budget=24 when=block(64) page=16";
    REQUIRE(small_open(&m));
    tell_history();
    CHECK(episodes_of(&e, &m, "snapkv", NULL, TURNS, 0, NULL) == KVMEM_BAD_RECIPE && strstr(e.error.text, "snapkv"));
    CHECK(episodes_of(&e, &m, "epicache score=epicache(patch=last)", NULL, TURNS, 0, NULL) == KVMEM_BAD_RECIPE);
    CHECK(episodes_of(&e, &m, text, NULL, -1, 0, NULL) == KVMEM_BAD_ARGUMENT);
    turns[4] = turns[3];
    CHECK(episodes_of(&e, &m, text, NULL, TURNS, 0, NULL) == KVMEM_BAD_ARGUMENT && strstr(e.error.text, "turn 4"));
    tell_history();
    turns[31] = HISTORY;
    CHECK(episodes_of(&e, &m, text, NULL, TURNS, 0, NULL) == KVMEM_BAD_ARGUMENT && strstr(e.error.text, "turn 31"));
    tell_history();
    history[9] = m.n_vocab;
    CHECK(episodes_of(&e, &m, text, NULL, TURNS, 0, NULL) == KVMEM_BAD_ARGUMENT && strstr(e.error.text, "vocabulary"));
    tell_history();
    for (k = 0; k < 16; k++) {
        kvmem_status st;
        memset(&heap, 0, sizeof heap);
        a = test_allocator(&heap);
        if (k) heap.fail_at = 1 + (size_t)((double)calls * (k < 8 ? (double)k / 1000 : test_unit()));
        st = episodes_of(&e, &m, text, "", TURNS, 1, &a);
        if (!k) { CHECK_OK(st); CHECK_OK(kvmem_episodes_open(&e, 1)); calls = heap.calls; }
        else CHECK(st == KVMEM_NO_MEMORY && e.error.text[0] && !e.block);
        kvmem_episodes_free(&e);
        CHECK(!heap.live && !heap.wrong);
    }
    kvmem_episodes_free(NULL);
    small_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "epicache");
    RUN(example_of_two_patch_rows);
    RUN(scores_are_probabilities_over_cached_entries_alone);
    RUN(a_budget_above_the_tokens_is_dense_whatever_the_patch);
    RUN(pair_and_pair_uniform_lengths_and_the_peak);
    RUN(patch_prompts_of_every_kind_run_and_a_copy_has_them);
    RUN(what_a_patch_prompt_may_not_be);
    RUN(topics_are_found_and_their_turns_are_the_patch_prompts);
    RUN(ten_starts_come_near_the_best_clustering_and_windows_may_be_few);
    RUN(caches_of_all_episodes);
    RUN(episodes_that_cannot_be_are_errors_and_leave_nothing);
    return test_end();
}
