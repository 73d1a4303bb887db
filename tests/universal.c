/* What every method that keeps fewer entries must show (U1 to U5 of the eviction cards), asked of every preset
   and of a sample of score x budget x select x reduce that kvmem_recipe_check accepts. Nothing here knows a
   method by name: a new preset, or a new row of a stage table, is covered by being there. What a method may
   be excused from, its entries declare: KVMEM_CHOOSES_COUNT (no count is promised), KVMEM_WRITES_ROWS,
   _KEYS and _BIAS (attention is not that over the kept rows), KVMEM_TAKES_CODEC (nothing is lost). What it
   reads beside queries, keys and values it gets here by the KVMEM_READS_ flags.
   Run with --only WORD to ask one recipe alone, --show to see which recipes were asked. */
#ifndef KVMEM_NO_DECODER
#define KVMEM_NO_DECODER /* the memory layer alone */
#endif
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "world.h"
#include "profiled.h"

/* ---- the recipes that are asked ---- */

#define WRITES (KVMEM_WRITES_ROWS | KVMEM_WRITES_KEYS | KVMEM_WRITES_BIAS)
enum { PROMPT = 44, MARKED = 24, STEPS = 12, TOKENS = PROMPT + STEPS, MAX_SUBJECTS = 512 };
typedef struct subject { char text[256]; int preset; } subject;
static subject subjects[MAX_SUBJECTS];
static int n_subjects;
static const char *only;
static int show;

/* A preset's windows and budgets are for thousands of tokens; here they are cut to a stream of TOKENS, so that
   there is something to choose: count windows to 6, recent to 4, intervals to 5. The amount is the caller's. */
static void make_small(kvmem_recipe *r) {
    int s, i;
    for (s = 0; s < KVMEM_N_STAGES; s++) {
        const kvmem_param *p = r->stage[s].entry->params;
        if (s == KVMEM_CODEC_K || s == KVMEM_CODEC_V) continue;
        for (i = 0; p && i < KVMEM_MAX_PARAMS && p[i].name; i++)
            if (!strcmp(p[i].name, "window") && r->stage[s].par[i] > 6 && p[i].lo <= 6) r->stage[s].par[i] = 6;
    }
    if (r->recent.kind == KVMEM_COUNT && r->recent.value > 4) r->recent.value = 4;
    if (r->sink > 3) r->sink = 3;
    if ((r->when == KVMEM_WHEN_EVERY || r->when == KVMEM_WHEN_DECODE) && r->every > 5) r->every = 5;
}
static unsigned reduce_flags(const kvmem_recipe *r) { return r->stage[KVMEM_REDUCE].entry->reads; }
static int frees_count(const kvmem_recipe *r) {
    int s;
    for (s = 0; s < KVMEM_N_STAGES && !(r->stage[s].entry->reads & KVMEM_CHOOSES_COUNT); s++) {}
    return s < KVMEM_N_STAGES;
}
static int evicts(const kvmem_recipe *r) { return r->amount.kind != KVMEM_ALL || frees_count(r); }
static int demotes(const kvmem_recipe *r) { return (reduce_flags(r) & KVMEM_TAKES_CODEC) != 0; }

/* Parse a subject and set its amount: a count, or below 0 a share; exact: rows as float32. */
static int recipe_of(kvmem_recipe *r, const char *text, double amount, int exact, kvmem_error *e) {
    char all[320];
    kvmem_recipe plain;
    if (kvmem_recipe_parse(r, text, e) != KVMEM_OK) return 0;
    if (exact) {
        sprintf(all, "%s %s page=16", demotes(r) ? "full budget=all reduce=demote(f32/f32)" : "full", "codec=f32");
        if (kvmem_recipe_parse(&plain, all, e) != KVMEM_OK) return 0;
        r->stage[KVMEM_CODEC_K] = plain.stage[KVMEM_CODEC_K];
        r->stage[KVMEM_CODEC_V] = plain.stage[KVMEM_CODEC_V];
        r->low[0] = plain.low[0];
        r->low[1] = plain.low[1];
        r->n_maps = 0;
        r->page = 16;
    }
    if (evicts(r)) {
        make_small(r);
        r->amount.kind = amount < 0 ? KVMEM_SHARE : KVMEM_COUNT;
        r->amount.value = fabs(amount);
    }
    return kvmem_recipe_check(r, e) == KVMEM_OK;
}
static void add(const char *text, int preset) {
    if (n_subjects == MAX_SUBJECTS || (only && !strstr(text, only))) return;
    sprintf(subjects[n_subjects].text, "%.250s", text);
    subjects[n_subjects++].preset = preset;
}
static int table_size(kvmem_stage s) {
    int n = 0;
    while (kvmem_stage_entry(s, n)) n++;
    return n;
}
/* ---- one cache that hears a stream of rows ---- */

typedef struct play {
    const world *w;
    kvmem_config cfg;
    kvmem_recipe r;
    kvmem_cache c;
    test_heap heap;
    profiled prof;
    int due, mean; /* of the last commit: did it reduce, and to which mean */
    int32_t pos[4][4][TOKENS + 1]; /* positions of every lane before the last commit */
    int n[4][4];
} play;

static world standard;
static size_t row_at(int t, int l, int L, int width) { return ((size_t)t * (size_t)L + (size_t)l) * (size_t)width; }
/* A model's output projection (4, H * d), by a formula: kvmem_output_fn. */
static kvmem_status project(void *user, int layer, int h, int n, const float *x, float *l1, float *l2) {
    const world *w = (const world *)user;
    int t, e, i;
    for (t = 0; t < n; t++) {
        float one = 0, two = 0;
        for (e = 0; e < 4; e++) {
            float y = 0;
            for (i = 0; i < w->d; i++) y += (float)((5 * e + 3 * h + 7 * i + layer) % 11 - 5) * x[t * w->d + i];
            one += fabsf(y);
            two += y * y;
        }
        if (l1) l1[t] = one;
        if (l2) l2[t] = sqrtf(two);
    }
    return KVMEM_OK;
}
/* 1: ready. 0: this recipe cannot run on this shape, and the cache says so; anything else fails the test. */
static int begin(play *p, const world *w, const kvmem_recipe *r, const char *text, int threads) {
    kvmem_status st;
    memset(p, 0, sizeof *p);
    p->w = w;
    p->r = *r;
    profiled_make(&p->prof, w->L, w->H, w->G, w->d);
    profiled_give(&p->r, &p->prof);
    p->cfg = w->cfg;
    p->cfg.recipe = &p->r;
    p->cfg.threads = threads;
    p->cfg.max_block = 64;
    p->cfg.allocator = test_allocator(&p->heap);
    st = kvmem_cache_init(&p->c, &p->cfg);
    if (st == KVMEM_OK) {
        if (p->c.reads & KVMEM_READS_OUTPUT) kvmem_cache_output(&p->c, project, (void *)(uintptr_t)(const void *)w);
        return 1;
    }
    if ((st != KVMEM_UNSUPPORTED && st != KVMEM_BAD_RECIPE) || !p->c.error.text[0] || p->heap.live)
        FAIL_AT("%s: init: %d %s, %d bytes left", text, (int)st, p->c.error.text, (int)p->heap.live);
    if (show) printf("  not here: %s: %s\n", text, p->c.error.text);
    profiled_free(&p->prof);
    return 0;
}
static void stop(play *p) {
    kvmem_cache_free(&p->c);
    profiled_free(&p->prof);
    if (p->heap.live || p->heap.wrong)
        FAIL_AT("%d bytes left behind, %d wrong sizes", (int)p->heap.live, p->heap.wrong);
}
/* Positions of every lane, those that reduce=demote keeps with fewer bits included. */
static void look(play *p) {
    int l, g;
    for (l = 0; l < p->w->L; l++)
        for (g = 0; g < p->w->G; g++) {
            int n = kvmem_cache_lane_len(&p->c, l, g);
            if (n > TOKENS) { FAIL_AT("lane %d %d has %d entries", l, g, n); n = TOKENS; }
            p->n[l][g] = n;
            if (kvmem_cache_read(&p->c, l, g, 0, n, NULL, NULL, p->pos[l][g])) FAIL_AT("%s", p->c.error.text);
        }
}
/* Layer l's rows of tokens [t, t + n), appended and attended; out (n, L, H * d) may be NULL. */
static kvmem_status hear_layer(play *p, kvmem_cache *c, int t, int l, int n, float *out) {
    static float k[64 * 256], v[64 * 256], q[64 * 256], o[64 * 256];
    const world *w = p->w;
    const float *values = kvmem__shares(&p->r.stage[KVMEM_CODEC_V]) ? w->k : w->v; /* a model with W_V = W_K */
    const int kd = w->G * w->d, qd = w->H * w->d;
    int i;
    for (i = 0; i < n; i++) {
        memcpy(k + i * kd, w->k + row_at(t + i, l, w->L, kd), (size_t)kd * 4);
        memcpy(v + i * kd, values + row_at(t + i, l, w->L, kd), (size_t)kd * 4);
        memcpy(q + i * qd, w->q + row_at(t + i, l, w->L, qd), (size_t)qd * 4);
    }
    KVMEM__TRY(kvmem_cache_append(c, l, n, k, v, NULL));
    if ((c->reads & KVMEM_READS_HIDDEN) || (c->probe_of && c->probe.hidden))
        KVMEM__TRY(kvmem_cache_hidden(c, l, n, q, qd));
    KVMEM__TRY(kvmem_cache_attend(c, l, n, q, o));
    for (i = 0; out && i < n; i++) memcpy(out + row_at(i, l, w->L, qd), o + i * qd, (size_t)qd * 4);
    return KVMEM_OK;
}
/* A prompt that awaits probe tokens gets four, whose rows are the stream's first, and is reduced. */
static kvmem_status probe(play *p) {
    static kvmem_cache on_top;
    kvmem_status st = kvmem_cache_probe(&on_top, &p->c, NULL);
    int l;
    for (l = 0; l < p->w->L && st == KVMEM_OK; l++) {
        st = hear_layer(p, &on_top, 0, l, 4, NULL);
        if (st != KVMEM_OK) p->c.error = on_top.error;
    }
    if (st == KVMEM_OK && (st = kvmem_cache_commit(&on_top, KVMEM_PREFILL)) != KVMEM_OK) p->c.error = on_top.error;
    kvmem_cache_free(&on_top);
    return st == KVMEM_OK ? kvmem_cache_reduce(&p->c) : st;
}
/* The next n tokens as one block; out (n, L, H * d) may be NULL. by_layer: commit each layer when it has attended. */
static kvmem_status hear(play *p, int n, kvmem_phase phase, float *out, int by_layer) {
    const int t0 = (int)p->c.tokens;
    float surprise[64];
    int l;
    if (t0 == 0) KVMEM__TRY(kvmem_cache_mark(&p->c, KVMEM_MARK_FRAME));
    if (t0 == MARKED) KVMEM__TRY(kvmem_cache_mark(&p->c, KVMEM_MARK_QUESTION));
    for (l = 0; l < p->w->L; l++) {
        KVMEM__TRY(hear_layer(p, &p->c, t0, l, n, out));
        if (by_layer) KVMEM__TRY(kvmem_cache_commit_layer(&p->c, l, phase));
    }
    for (l = 0; l < n; l++) surprise[l] = t0 + l ? (float)((t0 + l) % 7) : -1;
    KVMEM__TRY(kvmem_cache_surprise(&p->c, n, surprise));
    if (!by_layer) look(p);
    p->due = kvmem__reduce_due(&p->c, phase);
    p->mean = kvmem__mean_budget(&p->c);
    KVMEM__TRY(kvmem_cache_commit(&p->c, phase));
    return p->c.awaits ? probe(p) : KVMEM_OK;
}
/* Step 0 and 1 are the prompt in two blocks, the others decode a token each. */
static int step_len(int step) { return step == 0 ? MARKED : step == 1 ? PROMPT - MARKED : 1; }
static kvmem_phase step_phase(int step) {
    return step == 0 ? KVMEM_PREFILL : step == 1 ? KVMEM_PROMPT_END : KVMEM_DECODE;
}
static float out_a[24 * 1024], out_b[24 * 1024];
static size_t out_bytes(const world *w, int n) { return (size_t)(n * w->L * w->H * w->d) * sizeof(float); }

static int go(play *p, const char *text, int step, float *out) {
    if (hear(p, step_len(step), step_phase(step), out, 0) == KVMEM_OK) return 1;
    FAIL_AT("%s: step %d: %s", text, step, p->c.error.text);
    return 0;
}
static int same_lanes(play *a, play *b) {
    int l, g;
    look(a);
    look(b);
    for (l = 0; l < a->w->L; l++)
        for (g = 0; g < a->w->G; g++)
            if (a->n[l][g] != b->n[l][g] ||
                memcmp(a->pos[l][g], b->pos[l][g], (size_t)a->n[l][g] * sizeof(int32_t))) return 0;
    return 1;
}
/* The steps [from, to) on both: the same outputs, bit for bit, and the same entries left. */
static int go_alike(play *a, play *b, const char *text, const char *what, int from, int to) {
    int step;
    for (step = from; step < to; step++) {
        if (!go(a, text, step, out_a) || !go(b, text, step, out_b)) return 0;
        if (memcmp(out_a, out_b, out_bytes(a->w, step_len(step))) || !same_lanes(a, b)) {
            FAIL_AT("%s: %s: step %d differs", text, what, step);
            return 0;
        }
    }
    return 1;
}
/* A subject in a world, or 0 if it cannot be there. A preset that takes no count takes a share. */
static int ready_in(play *p, const world *w, const subject *s, double amount, int exact, int threads) {
    kvmem_recipe r;
    kvmem_error e;
    if (!recipe_of(&r, s->text, amount, exact, &e) && !recipe_of(&r, s->text, -.4, exact, &e)) {
        if (s->preset) FAIL_AT("%s: %s", s->text, e.text);
        return 0;
    }
    return begin(p, w, &r, s->text, threads);
}
static int ready(play *p, const subject *s, double amount, int exact, int threads) {
    return ready_in(p, &standard, s, amount, exact, threads);
}

/* Each entry of the four tables has its turn; its partners are drawn, until the four may stand together. */
static void add_combination(int stage, int index) {
    static const char *const when[] = { "prompt", "step", "block", "every(5)" };
    int s, tries;
    for (tries = 0; tries < 40; tries++) {
        const kvmem_entry *e[4];
        kvmem_recipe r;
        kvmem_error err;
        static play p;
        char text[256];
        for (s = 0; s < 4; s++) {
            const kvmem_stage of = (kvmem_stage)(KVMEM_SCORE + s);
            e[s] = kvmem_stage_entry(of, s == stage ? index : (int)(test_unit() * table_size(of)));
        }
        sprintf(text, "score=%s budget=%s select=%s reduce=%s%s sink=2 recent=3 when=%s", e[0]->word, e[1]->word,
                e[2]->word, e[3]->word, (e[3]->reads & KVMEM_TAKES_CODEC) ? "(f32/f32)" : "",
                when[(index + tries) % 4]);
        if (kvmem_recipe_parse(&r, text, &err) != KVMEM_OK) continue;
        r.amount.kind = KVMEM_COUNT; /* "all" evicts nothing */
        r.amount.value = 17;
        make_small(&r);
        if (kvmem_recipe_check(&r, &err) != KVMEM_OK || !begin(&p, &standard, &r, text, 1)) continue;
        stop(&p);
        add(text, 0);
        return;
    }
    if (show) printf("  nothing goes with entry %d of stage %d\n", index, stage);
}
static void add_combinations(void) {
    int s, i;
    for (s = 0; s < 4; s++)
        for (i = 0; i < table_size((kvmem_stage)(KVMEM_SCORE + s)); i++) add_combination(s, i);
}

/* ---- the facts ---- */

static play A, B;

TEST(u1_a_budget_that_covers_the_tokens_changes_no_bit) {
    static const double amounts[3] = { 1000000, -1, TOKENS };
    kvmem_recipe full = kvmem_recipe_default();
    int i, l, g;
    full.page = 16;
    for (i = 0; i < n_subjects; i++) {
        kvmem_recipe r;
        kvmem_error e;
        static float k[2][TOKENS * 32], v[2][TOKENS * 32];
        if (!recipe_of(&r, subjects[i].text, 1000000, 1, &e) || !evicts(&r) || frees_count(&r)) continue;
        if (!ready(&B, &subjects[i], amounts[i % 3], 1, 1)) continue;
        if (!begin(&A, &standard, &full, "full", 1)) return;
        if (go_alike(&A, &B, subjects[i].text, "full", 0, 2 + STEPS))
            for (l = 0; l < standard.L; l++)
                for (g = 0; g < standard.G; g++) {
                    CHECK_OK(kvmem_cache_read(&A.c, l, g, 0, TOKENS, k[0], v[0], NULL));
                    CHECK_OK(kvmem_cache_read(&B.c, l, g, 0, TOKENS, k[1], v[1], NULL));
                    CHECK(!memcmp(k[0], k[1], sizeof k[0][0] * (size_t)(TOKENS * standard.d)));
                    CHECK(!memcmp(v[0], v[1], sizeof v[0][0] * (size_t)(TOKENS * standard.d)));
                }
        stop(&A);
        stop(&B);
    }
}

/* U2: a lane after a commit: rising, seen, there before, and what must stay. */
static int lane_holds(const play *p, int l, int g, const int32_t *before, int n_before, int had_least) {
    const int n = p->n[l][g], seen = (int)p->c.tokens;
    const int32_t *pos = p->pos[l][g];
    int t, j = 0, sink, recent;
    kvmem__protect(&p->r, KVMEM__MIN(had_least, n), &sink, &recent);
    for (t = 0; t < n; t++) {
        if (pos[t] < 0 || pos[t] >= seen || (t && pos[t] <= pos[t - 1])) return 0;
        while (j < n_before && before[j] < pos[t]) j++;
        if (j == n_before || before[j] != pos[t]) return 0;
        if (t < sink && pos[t] != t) return 0;
        if (n - t <= recent && pos[t] != seen - (n - t)) return 0;
    }
    return n > 0;
}
/* U3: after a commit that reduces. mean is the recipe's amount now, over all lanes. */
static int count_holds(const play *p) {
    const kvmem_recipe *r = &p->r;
    const int lanes = p->w->L * p->w->G, uniform = r->stage[KVMEM_BUDGET].entry == kvmem_stage_entry(KVMEM_BUDGET, 0);
    const int exact = uniform && r->stage[KVMEM_SELECT].entry == kvmem_stage_entry(KVMEM_SELECT, 0);
    const int want = KVMEM__MIN(p->mean, (int)p->c.tokens);
    int l, g, sum = 0;
    for (l = 0; l < p->w->L; l++)
        for (g = 0; g < p->w->G; g++) {
            sum += p->n[l][g];
            if (p->n[l][g] < 1 || (uniform && p->n[l][g] > want) || (exact && p->n[l][g] != want)) return 0;
        }
    return sum <= KVMEM__MAX(p->mean, 1) * lanes;
}
/* U2 and U3 over a whole run in world w; counted: 0 where windows of the model remove entries, too. */
static void keeps_what_it_should(const world *w, const subject *s, double amount, int counted) {
    static int32_t before[4][4][TOKENS + 1];
    int step, l, g, fine = 1, n_before[4][4], least[4][4];
    if (!ready_in(&A, w, s, amount, 1, 1)) return;
    /* a profile ends somewhere: below a tenth of the tokens (profiled.h) it says no less than there */
    if ((A.c.reads & KVMEM_READS_PROFILE) && fabs(amount) < 6) counted = 0;
    for (l = 0; l < 4; l++) for (g = 0; g < 4; g++) least[l][g] = TOKENS;
    for (step = 0; evicts(&A.r) && fine && step < 2 + STEPS && go(&A, s->text, step, out_a); step++) {
        size_t x;
        memcpy(before, A.pos, sizeof before);
        memcpy(n_before, A.n, sizeof n_before);
        look(&A);
        for (x = 0; x < out_bytes(w, step_len(step)) / sizeof(float); x++) fine &= out_a[x] - out_a[x] == 0;
        if (!fine) FAIL_AT("%s: budget %g: an output is not finite at step %d", s->text, amount, step);
        if (demotes(&A.r)) continue;
        for (l = 0; l < w->L; l++)
            for (g = 0; g < w->G; g++) {
                if (A.due) least[l][g] = KVMEM__MIN(least[l][g], A.n[l][g]);
                if (!fine || lane_holds(&A, l, g, before[l][g], n_before[l][g], least[l][g])) continue;
                FAIL_AT("%s: budget %g: lane %d %d holds what it must not at step %d", s->text, amount, l, g, step);
                fine = 0;
            }
        if (!counted || !fine || !A.due || frees_count(&A.r) || count_holds(&A)) continue;
        FAIL_AT("%s: budget %g: wrong number of entries at step %d", s->text, amount, step);
        fine = 0;
    }
    stop(&A);
}
TEST(u2_u3_kept_positions_rise_hold_what_is_protected_and_their_number_is_the_recipes) {
    static const double amounts[3] = { 17, -.4, 11 };
    int i, a;
    for (i = 0; i < n_subjects; i++)
        for (a = 0; a < 3; a++) keeps_what_it_should(&standard, &subjects[i], amounts[a], 1);
}

/* The oracle's attention over one lane's positions as the recipe's place stage reads them. */
static double worst_of(const play *p, int token, const float *out) {
    const kvmem_place_entry *pe = (const kvmem_place_entry *)(const void *)p->r.stage[KVMEM_PLACE].entry;
    const world *w = p->w;
    double worst = 0, o[64];
    int l, h, t, c, n, set[TOKENS + 1], place[TOKENS + 1], at = token;
    for (l = 0; l < w->L; l++)
        for (h = 0; h < w->H; h++) {
            const int g = h / (w->H / w->G), win = w->cfg.shape.window ? w->window[l] : 0;
            for (n = t = 0; t < p->n[l][g]; t++) {
                const int pos = (int)p->pos[l][g][t];
                const int where = pe->fn ? (int)pe->fn(p->r.stage[KVMEM_PLACE].par, t, (int32_t)pos) : pos;
                if (pos == token) at = where;
                if (win && token - pos >= win) continue;
                place[n] = where;
                set[n++] = pos;
            }
            oracle(w, token, l, h, set, n, place, at, o);
            for (c = 0; c < w->d; c++) {
                const double e = fabs(o[c] - (double)out[row_at(0, l, w->L, w->H * w->d) + (size_t)(h * w->d + c)]);
                if (!(e <= worst)) worst = e;
            }
        }
    return worst;
}
/* Every decoded token sees exactly the entries that were left, as if the logits of all others were -inf. */
static void attends_to_what_is_left(play *p, const char *text) {
    int step;
    for (step = 0; step < 2 + STEPS && go(p, text, step, out_a); step++) {
        double e;
        if (step < 2) continue;
        e = worst_of(p, (int)p->c.tokens - 1, out_a); /* p->pos: before the commit */
        if (e < 1e-5) continue;
        FAIL_AT("%s: step %d is off by %g", text, step, e);
        return;
    }
}
TEST(u4_attention_is_full_attention_with_the_evicted_masked) {
    int i;
    for (i = 0; i < n_subjects; i++) {
        if (!ready(&A, &subjects[i], i & 1 ? 17 : -.4, 1, 1)) continue;
        if (!(reduce_flags(&A.r) & WRITES))
            attends_to_what_is_left(&A, subjects[i].text);
        stop(&A);
    }
}
TEST(u5_one_thread_keeps_what_several_keep) {
    int i;
    for (i = 0; i < n_subjects; i++) {
        if (!ready(&A, &subjects[i], 17, 0, 1)) continue;
        if (!ready(&B, &subjects[i], 17, 0, 2 + i % 3)) { FAIL_AT("%s", subjects[i].text); return; }
        go_alike(&A, &B, subjects[i].text, "threads", 0, 2 + STEPS);
        stop(&A);
        stop(&B);
    }
}
/* A recipe promises that the blocks of a prompt do not matter if nothing happens while it is read: no reduction,
   and no entry that remembers from commit to commit. */
TEST(u5_any_cut_of_the_prompt_into_blocks_gives_the_same_bits) {
    int i, step, t;
    for (i = 0; i < n_subjects; i++) {
        if (!ready(&A, &subjects[i], 17, 1, 1)) continue;
        if (!evicts(&A.r) || A.r.when == KVMEM_WHEN_BLOCK || kvmem__memory_of(&A.r, KVMEM_SCORE) ||
            kvmem__memory_of(&A.r, KVMEM_SELECT)) { stop(&A); continue; }
        if (!ready(&B, &subjects[i], 17, 1, 1)) return;
        for (step = 0; step < 2; step++) go(&A, subjects[i].text, step, NULL);
        for (t = 0; t < PROMPT; t += step) {
            step = KVMEM__MIN((t < MARKED ? MARKED : PROMPT) - t, 1 + (t * 5 + i) % 9); /* marks lie between blocks */
            CHECK_OK(hear(&B, step, t + step < PROMPT ? KVMEM_PREFILL : KVMEM_PROMPT_END, NULL, 0));
        }
        if (!same_lanes(&A, &B)) FAIL_AT("%s: other blocks, other entries", subjects[i].text);
        else go_alike(&A, &B, subjects[i].text, "blocks", 2, 2 + STEPS);
        stop(&A);
        stop(&B);
    }
}
TEST(layers_committed_one_by_one_are_as_committed_together) {
    int i, step;
    for (i = 0; i < n_subjects; i++) {
        if (!ready(&A, &subjects[i], 17, 1, 1)) continue;
        if (!evicts(&A.r) || (A.c.reads & KVMEM_READS_LAYERS) || !ready(&B, &subjects[i], 17, 1, 1)) {
            stop(&A);
            continue;
        }
        for (step = 0; step < 2 + STEPS; step++) {
            if (!go(&A, subjects[i].text, step, out_a)) break;
            if (hear(&B, step_len(step), step_phase(step), out_b, 1) == KVMEM_OK &&
                !memcmp(out_a, out_b, out_bytes(A.w, step_len(step))) && same_lanes(&A, &B)) continue;
            FAIL_AT("%s: step %d by layers: %s", subjects[i].text, step, B.c.error.text);
            break;
        }
        stop(&A);
        stop(&B);
    }
}
TEST(saved_loaded_and_continued_is_as_never_stopped) {
    int i, step;
    for (i = 0; i < n_subjects; i++) {
        const int at = 1 + i % 7; /* the middle of the prompt, its end, some steps later */
        bytes file = { NULL, 0, 0 };
        if (!ready(&A, &subjects[i], 17, 0, 1)) continue;
        if (!ready(&B, &subjects[i], 17, 0, 1)) return;
        for (step = 0; step < at; step++) go(&A, subjects[i].text, step, NULL);
        CHECK_OK(kvmem_cache_save(&A.c, bytes_write, &file));
        if (kvmem_cache_load(&B.c, file.p, file.n)) FAIL_AT("%s: load: %s", subjects[i].text, B.c.error.text);
        else go_alike(&A, &B, subjects[i].text, "saved and loaded", at, 2 + STEPS);
        free(file.p);
        stop(&A);
        stop(&B);
    }
}
TEST(a_copy_goes_its_own_way_and_leaves_the_original_alone) {
    int i, step;
    static play C;
    for (i = 0; i < n_subjects; i++) {
        const int at = 1 + i % 5;
        if (!ready(&A, &subjects[i], 17, 0, 1)) continue;
        if (!ready(&B, &subjects[i], 17, 0, 1)) return;
        for (step = 0; step < at; step++)
            if (!go(&A, subjects[i].text, step, NULL) || !go(&B, subjects[i].text, step, NULL)) return;
        C = A;
        memset(&C.c, 0, sizeof C.c);
        if (kvmem_cache_copy(&C.c, &A.c)) FAIL_AT("%s: copy: %s", subjects[i].text, C.c.error.text);
        else {
            go(&C, subjects[i].text, at, NULL); /* the copy runs ahead */
            go(&C, subjects[i].text, at + 1, NULL);
            go_alike(&A, &B, subjects[i].text, "copied from", at, 2 + STEPS);
            for (step = at + 2; step < 2 + STEPS; step++) go(&C, subjects[i].text, step, NULL);
            if (!same_lanes(&A, &C)) FAIL_AT("%s: the copy keeps other entries", subjects[i].text);
        }
        kvmem_cache_free(&C.c);
        stop(&A);
        stop(&B);
    }
}
TEST(truncated_tokens_are_gone_and_the_stream_goes_on) {
    int i, step, l, g;
    for (i = 0; i < n_subjects; i++) {
        if (!ready(&A, &subjects[i], 17, 0, 1)) continue;
        for (step = 0; step < 6; step++) go(&A, subjects[i].text, step, NULL);
        if (kvmem_cache_truncate(&A.c, PROMPT + 1)) FAIL_AT("%s: truncate: %s", subjects[i].text, A.c.error.text);
        else {
            look(&A);
            for (l = 0; l < A.w->L; l++)
                for (g = 0; g < A.w->G; g++)
                    for (step = 0; step < A.n[l][g]; step++) CHECK(A.pos[l][g][step] <= PROMPT);
            for (step = 3; step < 2 + STEPS && go(&A, subjects[i].text, step, NULL); step++) {}
            CHECK(A.c.tokens == TOKENS);
        }
        kvmem_cache_clear(&A.c);
        for (step = 0; step < 4 && go(&A, subjects[i].text, step, NULL); step++) {}
        stop(&A);
    }
}
TEST(budgets_of_one_entry_and_above_the_stream_are_kept) {
    static const double amounts[4] = { 1, -.0001, TOKENS + 1, 3 };
    int i, a;
    for (i = 0; i < n_subjects; i++)
        for (a = 0; a < 4; a++) {
            kvmem_recipe r;
            kvmem_error e; /* a count that cannot hold what is protected is refused with a sentence */
            if (recipe_of(&r, subjects[i].text, amounts[a], 1, &e))
                keeps_what_it_should(&standard, &subjects[i], amounts[a], 1);
            else CHECK(e.status == KVMEM_BAD_RECIPE && e.text[0]);
        }
}
TEST(equal_keys_and_rows_of_zeros_are_as_good_as_any) {
    int i, kind;
    size_t x;
    for (kind = 0; kind < 2; kind++) {
        world w;
        if (!world_init(&w, 2, 4, 2, 8, TOKENS, "full")) return;
        w.cfg.shape.rope = kind ? w.rope : NULL; /* without RoPE all logits of a query are equal */
        for (x = 0; x < (size_t)(TOKENS * 2 * 2 * 8); x++) w.k[x] = w.v[x] = kind ? 0.0f : 1.5f;
        for (x = 0; kind && x < (size_t)(TOKENS * 2 * 4 * 8); x++) w.q[x] = 0;
        for (i = 0; i < n_subjects; i++) keeps_what_it_should(&w, &subjects[i], i & 1 ? 17 : -.4, 1);
        world_free(&w);
    }
}
TEST(any_shape_will_do) {
    static const struct { int L, H, G, d, rope, window; } shape[4] = {
        { 1, 3, 3, 6, 1, 0 }, { 2, 4, 1, 4, 1, 0 }, { 4, 2, 1, 5, 0, 0 }, { 3, 4, 2, 8, 1, 16 } };
    int i, s, l;
    for (s = 0; s < 4; s++) {
        world w;
        if (!world_init(&w, shape[s].L, shape[s].H, shape[s].G, shape[s].d, TOKENS, "full")) return;
        if (shape[s].rope) w.cfg.shape.rope = w.rope;
        for (l = 0; l < w.L; l++) w.rope[l].neox = l & 1;
        if (shape[s].window) { w.window[1] = shape[s].window; w.cfg.shape.window = w.window; }
        for (i = 0; i < n_subjects; i++) {
            keeps_what_it_should(&w, &subjects[i], i & 1 ? 17 : -.4, !shape[s].window);
            if (!ready_in(&A, &w, &subjects[i], 17, 1, 1)) continue;
            if (!(reduce_flags(&A.r) & WRITES))
                attends_to_what_is_left(&A, subjects[i].text);
            stop(&A);
        }
        world_free(&w);
    }
}
TEST(reported_bytes_are_the_allocators_and_an_estimate_is_no_less) {
    int i, step;
    for (i = 0; i < n_subjects; i++) {
        kvmem_bytes b, est;
        kvmem_error e;
        if (!ready(&A, &subjects[i], 17, 0, 1)) continue;
        if (kvmem_estimate(&A.cfg, PROMPT, STEPS, &est, &e)) FAIL_AT("%s: estimate: %s", subjects[i].text, e.text);
        if (hear(&A, PROMPT, KVMEM_PROMPT_END, NULL, 0)) FAIL_AT("%s: %s", subjects[i].text, A.c.error.text);
        for (step = 2; step < 2 + STEPS && go(&A, subjects[i].text, step, NULL); step++) {
            kvmem_cache_bytes(&A.c, &b);
            if (b.live.total == A.heap.live && b.peak.total == A.heap.peak) continue;
            FAIL_AT("%s: %d live and %d peak bytes said, %d and %d taken", subjects[i].text, (int)b.live.total,
                    (int)b.peak.total, (int)A.heap.live, (int)A.heap.peak);
            break;
        }
        /* not foretold: a page that grows is there twice for a moment, and an index */
        if (!(A.r.stage[KVMEM_RETRIEVE].entry->reads & KVMEM_KEEPS_INDEX) &&
            est.peak.total + (size_t)A.r.page * (size_t)(2 * A.w->d + A.c.n_stats + 4) * 4 < A.heap.peak)
            FAIL_AT("%s: a peak of %d bytes was foretold, %d were taken", subjects[i].text, (int)est.peak.total,
                    (int)A.heap.peak);
        stop(&A);
    }
}
TEST(a_limit_in_bytes_is_never_passed) {
    int i;
    for (i = 0; i < n_subjects; i++) {
        kvmem_recipe r;
        kvmem_error e;
        kvmem_status st = KVMEM_OK;
        kvmem_bytes est;
        if (!recipe_of(&r, subjects[i].text, 17, 1, &e) || !evicts(&r) || demotes(&r)) continue;
        r.amount.kind = KVMEM_BYTES; /* the smallest limit that the recipe can live with */
        r.amount.value = 20000;
        A.cfg = standard.cfg;
        A.cfg.recipe = &r;
        A.cfg.max_block = 64;
        while ((st = kvmem_estimate(&A.cfg, 0, 0, &est, &e)) == KVMEM_OVER_BUDGET) r.amount.value += 4000;
        if (st != KVMEM_OK || !begin(&A, &standard, &r, subjects[i].text, 1)) continue;
        while (st == KVMEM_OK && A.c.tokens < TOKENS) {
            const int left = (int)(A.c.tokens < PROMPT ? PROMPT - A.c.tokens : 1),
                      n = KVMEM__MIN(left, kvmem_cache_room(&A.c));
            if (n < 1) { st = KVMEM_OVER_BUDGET; break; }
            st = hear(&A, n, A.c.tokens >= PROMPT ? KVMEM_DECODE : n < left ? KVMEM_PREFILL : KVMEM_PROMPT_END,
                      NULL, 0);
        }
        if (st != KVMEM_OK || (double)A.heap.peak > r.amount.value)
            FAIL_AT("%s: %d tokens, %d of %.0f bytes at the most: %s", subjects[i].text, (int)A.c.tokens,
                    (int)A.heap.peak, r.amount.value, A.c.error.text);
        stop(&A);
    }
}
TEST(every_failed_allocation_is_an_error_and_leaks_nothing) {
    int i, k, step;
    for (i = 0; i < n_subjects; i++) {
        size_t calls, first;
        kvmem_status st = KVMEM_OK;
        if (!ready(&A, &subjects[i], 17, 1, 1)) continue;
        first = A.heap.calls;
        for (step = 0; step < 4; step++) go(&A, subjects[i].text, step, NULL);
        calls = A.heap.calls - first;
        stop(&A);
        for (k = 0; k < 5 && calls > 0; k++) {
            if (!ready(&A, &subjects[i], 17, 1, 1)) return;
            A.heap.fail_at = first + 1 + (size_t)(test_unit() * (double)calls);
            for (step = 0, st = KVMEM_OK; step < 4 && st == KVMEM_OK; step++)
                st = hear(&A, step_len(step), step_phase(step), NULL, 0);
            if (st != KVMEM_NO_MEMORY && A.heap.calls >= A.heap.fail_at)
                FAIL_AT("%s: allocation %d failed and the status is %d: %s", subjects[i].text,
                        (int)(A.heap.fail_at - first), (int)st, A.c.error.text);
            stop(&A);
        }
    }
}
int main(int argc, char **argv) {
    int i, n = 1;
    for (i = 1; i < argc; i++) { /* our own options; what is left selects tests */
        if (!strcmp(argv[i], "--show")) show = 1;
        else if (i + 1 < argc && !strcmp(argv[i], "--only")) only = argv[++i];
        else argv[n++] = argv[i];
    }
    test_begin(n, argv, "universal");
    for (i = 0; kvmem_preset_at(i); i++) add(kvmem_preset_at(i)->word, 1);
    if (!world_init(&standard, 3, 4, 2, 16, TOKENS, "full")) return 1;
    standard.cfg.shape.rope = standard.rope;
    standard.rope[1].neox = 1;
    add_combinations();
    for (i = 0; show && i < n_subjects; i++) printf("  %s\n", subjects[i].text);
    RUN(u1_a_budget_that_covers_the_tokens_changes_no_bit);
    RUN(u2_u3_kept_positions_rise_hold_what_is_protected_and_their_number_is_the_recipes);
    RUN(u4_attention_is_full_attention_with_the_evicted_masked);
    RUN(u5_one_thread_keeps_what_several_keep);
    RUN(u5_any_cut_of_the_prompt_into_blocks_gives_the_same_bits);
    RUN(layers_committed_one_by_one_are_as_committed_together);
    RUN(saved_loaded_and_continued_is_as_never_stopped);
    RUN(a_copy_goes_its_own_way_and_leaves_the_original_alone);
    RUN(truncated_tokens_are_gone_and_the_stream_goes_on);
    RUN(budgets_of_one_entry_and_above_the_stream_are_kept);
    RUN(equal_keys_and_rows_of_zeros_are_as_good_as_any);
    RUN(any_shape_will_do);
    RUN(reported_bytes_are_the_allocators_and_an_estimate_is_no_less);
    RUN(a_limit_in_bytes_is_never_passed);
    RUN(every_failed_allocation_is_an_error_and_leaks_nothing);
    world_free(&standard);
    return test_end();
}
