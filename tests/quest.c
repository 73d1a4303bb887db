/* quest.c - reading a part while decoding: quest, arkvale, tidal, specontext, and what they share. Each method's choice
   is made again here in double, from the rows of the stream, and the cache's attention must be that over the chosen
   entries; a choice of everything must leave no bit changed. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#define KVMEM_NO_DECODER
#include "test.h"
#include "world.h"

enum { ROPED = 1 };
/* Query head h's query of token t, and the key of token i, as they meet. */
static void met(const world *w, int t, int l, int h, double *q) {
    int c;
    for (c = 0; c < w->d; c++) q[c] = (double)row_q(w, t, l)[h * w->d + c];
    if (w->cfg.shape.rope) turn(q, w->d, &w->rope[l], t);
}
static void met_key(const world *w, int i, int l, int g, double *k) {
    int c;
    for (c = 0; c < w->d; c++) k[c] = (double)row_k(w, w->k, i, l)[g * w->d + c];
    if (w->cfg.shape.rope) turn(k, w->d, &w->rope[l], i);
}
static double product(const world *w, int t, int l, int h, int i) {
    double q[64], k[64], s = 0;
    int c;
    met(w, t, l, h, q);
    met_key(w, i, l, h / (w->H / w->G), k);
    for (c = 0; c < w->d; c++) s += q[c] * k[c];
    return s;
}
/* The k largest of s (n), ties to the lower index, become 1 in `in`. */
static void best(const double *s, int n, int k, unsigned char *in) {
    int i, j;
    for (i = 0; i < n; i++) {
        int before = 0;
        for (j = 0; j < n; j++) before += s[j] > s[i] || (s[j] == s[i] && j < i);
        in[i] = before < k;
    }
}
/* What head h of layer l reads when it decodes token t: in (t + 1). */
typedef void (*chooser)(const world *w, int t, int l, int h, const double *o, unsigned char *in);

/* Largest difference from attention over what `fn` chooses, decoding the tokens from `from` on one by one. */
static double worst_chosen(const char *recipe, int L, int H, int G, int T, int from, chooser fn, const double *o,
                           int roped, int64_t *read, int64_t *there) {
    static int set[MAXT];
    unsigned char in[MAXT];
    world w; kvmem_cache c; float *out;
    double worst = 0, ref[64];
    int t, l, h, i, n;
    if (!world_init(&w, L, H, G, 16, T, recipe)) return 1e9;
    if (roped) w.cfg.shape.rope = w.rope;
    out = outs(&w, T - from);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, from, 64, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, from, T, 1, KVMEM_DECODE, out));
    if (read) kvmem_cache_pages(&c, read, there);
    for (t = from; t < T; t++)
        for (l = 0; l < L; l++)
            for (h = 0; h < H; h++) {
                memset(in, 0, sizeof in);
                fn(&w, t, l, h, o, in);
                in[t] = 1;
                for (i = n = 0; i <= t; i++) if (in[i]) set[n++] = i;
                oracle(&w, t, l, h, set, n, NULL, t, ref);
                for (i = 0; i < 16; i++) {
                    const double e = fabs(ref[i] - (double)out[(((t - from) * L + l) * H + h) * 16 + i]);
                    if (!(e <= worst)) worst = e;
                }
            }
    kvmem_cache_free(&c); free(out); world_free(&w);
    return worst;
}
/* Bit for bit the full cache's attention, all pages read. */
static int reads_all(const char *recipe, int L, int H, int G, int T, int from, int block) {
    world w; kvmem_cache c; float *a, *b;
    int64_t read = 0, there = 1;
    int same, page;
    if (!world_init(&w, L, H, G, 16, T, recipe)) return 0;
    w.cfg.shape.rope = w.rope;
    page = w.recipe.page;
    a = outs(&w, T); b = outs(&w, T);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, from, 50, KVMEM_PROMPT_END, a));
    CHECK_OK(feed(&w, &c, from, T, block, KVMEM_DECODE, a + (size_t)from * (size_t)(L * H * 16)));
    kvmem_cache_pages(&c, &read, &there);
    kvmem_cache_free(&c);
    w.recipe = kvmem_recipe_default();
    w.recipe.page = page;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, from, 50, KVMEM_PROMPT_END, b));
    CHECK_OK(feed(&w, &c, from, T, block, KVMEM_DECODE, b + (size_t)from * (size_t)(L * H * 16)));
    same = same_out(&w, a, b, T) && read == there;
    kvmem_cache_free(&c); free(a); free(b); world_free(&w);
    return same;
}

/* ---- what they share ---- */

static const float card_keys[6] = { 1, -2, 3, 0, 2, 1 }, card_q[2] = { 1, -1 };
static double box_score(const float *q, const float *box, int d) {
    float split[128];
    kvmem__read_split(split, q, d);
    return (double)kvmem_backend_cpu("plain")->dot(split, box, 2 * d);
}
TEST(quest_box_is_the_cards) {
    float box[4], turned[6];
    int i;
    kvmem__read_box(box, card_keys, 3, 2, 0);
    CHECK(box[0] == 3 && box[1] == 1 && box[2] == 1 && box[3] == -2);
    CHECK_NEAR(box_score(card_q, box, 2), 5, 0);
    for (i = 0; i < 6; i++) turned[i] = card_keys[(i + 2) % 6]; /* order inside the page is nothing */
    kvmem__read_box(box, turned, 3, 2, 0);
    CHECK_NEAR(box_score(card_q, box, 2), 5, 0);
    kvmem__read_box(box, card_keys, 1, 2, 0); /* one key: the product itself */
    CHECK_NEAR(box_score(card_q, box, 2), 3, 0);
}
TEST(arkvale_digest_is_the_cards) {
    float box[4];
    kvmem__read_box(box, card_keys, 3, 2, 1);
    CHECK_NEAR(box[0], 2.666667, 1e-6);
    CHECK_NEAR(box[1], .666667, 1e-6);
    CHECK_NEAR(box[2], 1.333333, 1e-6);
    CHECK_NEAR(box[3], -1.666667, 1e-6);
    CHECK_NEAR(box_score(card_q, box, 2), 4.333333, 1e-6);
}
TEST(quest_is_a_bound_and_arkvale_is_none) {
    float k[16 * 16], q[16], box[32], digest[32];
    int trial, t, i, above = 0, tighter = 0;
    for (trial = 0; trial < 400; trial++) {
        const int n = 1 + trial % 16;
        double top = -1e9, u, a;
        for (i = 0; i < n * 16; i++) k[i] = (float)(test_normal() * (trial % 3 ? 1 : 5));
        for (i = 0; i < 16; i++) q[i] = (float)test_normal();
        kvmem__read_box(box, k, n, 16, 0);
        kvmem__read_box(digest, k, n, 16, 1);
        for (t = 0; t < n; t++) {
            double s = 0;
            for (i = 0; i < 16; i++) s += (double)q[i] * (double)k[t * 16 + i];
            if (s > top) top = s;
        }
        u = box_score(q, box, 16);
        a = box_score(q, digest, 16);
        CHECK(u >= top - 1e-4);
        CHECK(a <= u + 1e-4);
        tighter += a < u - 1e-4;
        above += top > a + 1e-4;
    }
    CHECK(tighter > 300 && above < 100);
    for (i = 0; i < 16; i++) k[i] = i == 15 ? 10.0f : 0.0f;
    q[0] = 1;
    kvmem__read_box(digest, k, 16, 1, 1);
    CHECK_NEAR(box_score(q, digest, 1), 10, 1e-6);
    for (i = 0; i < 16; i++) k[i] = i == 15 ? 10.0f : i == 14 ? 0.0f : 5.0f;
    kvmem__read_box(digest, k, 16, 1, 1);
    CHECK_NEAR(box_score(q, digest, 1), 5.625, 1e-6); /* the key has 10 */
}
TEST(groups_join_by_max_and_mean) {
    float s[6] = { 1, 5, 2, 3, 1, 2 };
    kvmem__read_join(s, 2, 3, KVMEM__READ_MAX);
    CHECK(s[0] == 3 && s[1] == 5 && s[2] == 2);
    s[0] = 1; s[1] = 5; s[2] = 2;
    kvmem__read_join(s, 2, 3, KVMEM__READ_MEAN);
    CHECK(s[0] == 2 && s[1] == 3 && s[2] == 2);
    s[0] = 7;
    kvmem__read_join(s, 1, 1, KVMEM__READ_MEAN);
    CHECK(s[0] == 7);
}
TEST(new_entries_are_counted_once) {
    static const int32_t a[4] = { 1, 4, 7, 9 }, b[3] = { 2, 4, 9 };
    CHECK(kvmem__read_new(a, 4, b, 3) == 2);
    CHECK(kvmem__read_new(b, 3, a, 4) == 1);
    CHECK(kvmem__read_new(a, 4, a, 4) == 0);
    CHECK(kvmem__read_new(a, 4, NULL, 0) == 4 && kvmem__read_new(NULL, 0, a, 4) == 0);
}

/* ---- quest ---- */

/* o: page, budget, dense, least, last, by, sinks, recent */
static double quest_bound(const world *w, int t, int l, int h, int a, int b, double *q) {
    double hi[64], lo[64], k[64], u = 0;
    int i, c;
    met(w, t, l, h, q);
    for (i = a; i < b; i++) {
        met_key(w, i, l, h / (w->H / w->G), k);
        for (c = 0; c < w->d; c++) {
            hi[c] = i == a || k[c] > hi[c] ? k[c] : hi[c];
            lo[c] = i == a || k[c] < lo[c] ? k[c] : lo[c];
        }
    }
    for (c = 0; c < w->d; c++) u += KVMEM__MAX(q[c] * hi[c], q[c] * lo[c]);
    return u;
}
static void choose_quest(const world *w, int t, int l, int h, const double *o, unsigned char *in) {
    const int P = (int)o[0], n = t + 1, M = (n + P - 1) / P, r = w->H / w->G, by = (int)o[5];
    const int a = ((int)o[6] + P - 1) / P, recent = (int)o[7];
    double s[MAXT], q[64];
    unsigned char page[MAXT];
    int i, j, b, m = (int)o[1] / P;
    if (l < (int)o[2]) { memset(in, 1, (size_t)n); return; }
    if (m < (int)o[3]) m = (int)o[3];
    for (b = M; b > a && (b == M ? n : b * P) > n - KVMEM__MAX(recent, o[4] > 0 ? 1 : 0); b--) {}
    if (o[4] > 0) m--;
    for (i = a; i < b; i++) {
        s[i] = by == 1 ? -1e9 : 0;
        for (j = by ? h / r * r : h; j < (by ? h / r * r + r : h + 1); j++) {
            const double u = quest_bound(w, t, l, j, i * P, KVMEM__MIN(n, i * P + P), q);
            s[i] = by == 1 ? KVMEM__MAX(s[i], u) : s[i] + u / (by ? r : 1);
        }
    }
    memset(page, 1, sizeof page);
    if (b > a) best(s + a, b - a, m, page + a);
    if (by && M > b) page[M - 1] = 1;
    if (by) page[M - 1] = 1; /* whole pages: that of the query comes along */
    for (i = 0; i < n; i++) in[i] = page[i / P];
}
TEST(quest_reads_the_pages_with_the_largest_bounds) {
    static const struct { const char *recipe; int L, H, G; double o[8]; } x[] = {
        { "quest retrieve=quest(budget=48,dense=1)", 2, 4, 2, { 16, 48, 1, 3, 1, 0, 0, 0 } },
        { "quest retrieve=quest(budget=20,dense=0,least=1) page=4", 1, 4, 2, { 4, 20, 0, 1, 1, 0, 0, 0 } },
        { "quest retrieve=quest(budget=20,dense=0,least=1,last=0) page=4", 1, 4, 4, { 4, 20, 0, 1, 0, 0, 0, 0 } },
        { "quest retrieve=quest(budget=24,dense=0,by=max) page=8", 1, 4, 1, { 8, 24, 0, 3, 1, 1, 0, 0 } },
        { "quest retrieve=quest(budget=24,dense=0,by=mean,last=0) page=8", 1, 4, 2, { 8, 24, 0, 3, 0, 2, 0, 0 } },
        { "quest retrieve=quest(budget=24,dense=0,sinks=9,recent=11) page=8", 1, 2, 1, { 8, 24, 0, 3, 1, 0, 9, 11 } },
        { "quest retrieve=quest(budget=0,dense=0,least=0) page=8", 1, 2, 1, { 8, 0, 0, 0, 1, 0, 0, 0 } },
        { "quest retrieve=quest(budget=12,dense=0,least=0) page=1", 1, 2, 1, { 1, 12, 0, 0, 1, 0, 0, 0 } } };
    int i;
    for (i = 0; i < (int)(sizeof x / sizeof *x); i++) {
        const double e = worst_chosen(x[i].recipe, x[i].L, x[i].H, x[i].G, 150, 120, choose_quest, x[i].o, i & 1, NULL,
                                      NULL);
        CHECK_NEAR(e, 0, 3e-5);
        if (!(e <= 3e-5)) printf("  case %d\n", i);
    }
}
/* Pages of one entry: the m - 1 largest products and the last. o: m */
static void choose_exact(const world *w, int t, int l, int h, const double *o, unsigned char *in) {
    double s[MAXT];
    int i;
    for (i = 0; i < t; i++) s[i] = product(w, t, l, h, i);
    best(s, t, (int)o[0] - 1, in);
}
TEST(quest_with_pages_of_one_is_exact) {
    static const double o[1] = { 12 };
    CHECK_NEAR(worst_chosen("quest retrieve=quest(budget=12,dense=0,least=0) page=1", 1, 4, 2, 100, 80, choose_exact, o,
                            ROPED, NULL, NULL), 0, 3e-5);
}
TEST(budgets_of_everything_change_no_bit) {
    static const char *const recipe[] = {
        "quest", "quest retrieve=quest(budget=160,dense=0) page=16", "quest retrieve=quest(budget=160,dense=0,by=max)",
        "quest retrieve=quest(budget=160,dense=0,last=0,by=mean)", "quest retrieve=quest(budget=1,dense=9)",
        "arkvale", "arkvale retrieve=arkvale(topk=6,budget=2) page=16", "arkvale retrieve=arkvale(topk=0,dense=3)",
        "arkvale retrieve=arkvale(topk=100,read=slots) page=2",
        "tidal", "tidal retrieve=tidal(k=160,s0=0)", "tidal retrieve=tidal(k=160,s0=1,r=2,force_last=0)",
        "tidal retrieve=tidal(k=2,s0=3)", "tidal retrieve=tidal(k=0,s0=0,sinks=100,recent=60)",
        "specontext", "specontext retrieve=specontext(budget=160,layer=1)",
        "specontext retrieve=specontext(budget=160,of=average)",
        "specontext retrieve=specontext(budget=0,sinks=100,recent=60)" };
    int i;
    for (i = 0; i < (int)(sizeof recipe / sizeof *recipe); i++) {
        CHECK(reads_all(recipe[i], 3, 4, 2, 160, 120, 1));
        CHECK(reads_all(recipe[i], 3, 2, 2, 60, 40, 10));
        CHECK(reads_all(recipe[i], 3, 2, 1, 2, 1, 1)); /* one token, two */
        if (test_bad) { printf("  %s\n", recipe[i]); break; }
    }
}
TEST(prompts_read_everything) {
    static const char *const recipe[] = {
        "quest retrieve=quest(budget=8,dense=0)", "arkvale retrieve=arkvale(topk=0)", "tidal retrieve=tidal(k=2,s0=0)",
        "specontext retrieve=specontext(budget=2)", "specontext retrieve=specontext(budget=2,of=average)",
        "specontext retrieve=specontext(budget=2,of=draft)" }; /* nobody asks the draft yet */
    int i;
    for (i = 0; i < (int)(sizeof recipe / sizeof *recipe); i++) CHECK(reads_all(recipe[i], 2, 4, 2, 90, 90, 1));
}

/* ---- arkvale ---- */

/* o: page, topk */
static double ark_score(const world *w, int t, int l, int h, int a, int b) {
    const int r = w->H / w->G;
    double top = -1e9;
    int j, i, c;
    for (j = h / r * r; j < h / r * r + r; j++) {
        double hi[64], lo[64], k[64], q[64], dev[64] = { 0 }, u = 0;
        met(w, t, l, j, q);
        for (i = a; i < b; i++) {
            met_key(w, i, l, h / r, k);
            for (c = 0; c < w->d; c++) {
                hi[c] = i == a || k[c] > hi[c] ? k[c] : hi[c];
                lo[c] = i == a || k[c] < lo[c] ? k[c] : lo[c];
            }
        }
        for (i = a; i < b; i++) {
            met_key(w, i, l, h / r, k);
            for (c = 0; c < w->d; c++) dev[c] += fabs((hi[c] + lo[c]) / 2 - k[c]) / (b - a);
        }
        for (c = 0; c < w->d; c++) {
            const double mid = (hi[c] + lo[c]) / 2;
            u += KVMEM__MAX(q[c] * (mid + dev[c]), q[c] * (mid - dev[c]));
        }
        if (u > top) top = u;
    }
    return top;
}
static void choose_arkvale(const world *w, int t, int l, int h, const double *o, unsigned char *in) {
    const int P = (int)o[0], n = t + 1, M = (n + P - 1) / P;
    double s[MAXT];
    unsigned char page[MAXT];
    int i;
    memset(page, 1, sizeof page);
    for (i = 2; i < M - 2; i++) s[i] = ark_score(w, t, l, h, i * P, i * P + P);
    if (M > 4) best(s + 2, M - 4, (int)o[1], page + 2);
    for (i = 0; i < n; i++) in[i] = page[i / P];
}
TEST(arkvale_reads_sinks_window_and_the_best_pages) {
    static const double o[2][2] = { { 4, 3 }, { 8, 2 } };
    CHECK_NEAR(worst_chosen("arkvale retrieve=arkvale(topk=3,budget=9) page=4", 2, 4, 2, 120, 90, choose_arkvale, o[0],
                            ROPED, NULL, NULL), 0, 3e-5);
    CHECK_NEAR(worst_chosen("arkvale retrieve=arkvale(topk=2,budget=1) page=8", 1, 4, 4, 120, 90, choose_arkvale, o[1],
                            0, NULL, NULL), 0, 3e-5);
}
/* Slots again, by sets. One KV head. */
TEST(arkvale_slots_are_those_of_a_slow_copy) {
    enum { T = 200, FROM = 100, P = 4, TOPK = 3, SLOTS = 10 - 4 };
    world w; kvmem_cache c;
    unsigned char slot[T], chosen[T], was[T];
    int64_t asked, loaded, read, there, want = 0, reads = 0;
    double s[T];
    int t, i, k, made = 0, left = 0;
    REQUIRE(world_init(&w, 1, 2, 1, 16, T, "arkvale retrieve=arkvale(topk=3,budget=10,read=slots) page=4"));
    w.cfg.shape.rope = w.rope;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, FROM, 64, KVMEM_PROMPT_END, NULL));
    kvmem_cache_pages(&c, &reads, NULL);
    CHECK_OK(feed(&w, &c, FROM, T, 1, KVMEM_DECODE, NULL));
    memset(slot, 0, sizeof slot);
    for (t = FROM; t < T; t++) {
        const int M = (t + P) / P, b = M - 2;
        int in = 0;
        for (i = 2; i < b; i++) s[i] = ark_score(&w, t, 0, 0, i * P, i * P + P);
        best(s + 2, b - 2, TOPK, chosen + 2);
        if (!made) best(s + 2, b - 2, SLOTS, slot + 2);
        else for (i = left; i < b; i++) slot[i] = 1;
        made = 1;
        left = b;
        memcpy(was, slot, sizeof was);
        for (i = 2; i < b; i++) { want += chosen[i] && !slot[i]; slot[i] |= chosen[i]; in += slot[i]; }
        for (; in > SLOTS; in--) { /* the worst that was not chosen goes; of equals the newer */
            for (k = -1, i = 2; i < b; i++)
                if (slot[i] && !chosen[i] && (k < 0 || s[i] <= s[k])) k = i;
            slot[k] = 0;
        }
        reads += in + 4;
    }
    kvmem_cache_loads(&c, &asked, &loaded);
    kvmem_cache_pages(&c, &read, &there);
    CHECK(asked == (T - FROM) * TOPK * P);
    CHECK(loaded == want * P && want > 0 && loaded < asked);
    CHECK(read == reads && read < there);
    kvmem_cache_clear(&c);
    kvmem_cache_loads(&c, &asked, NULL);
    CHECK(asked == 0);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(arkvale_recalls_identical_bytes) { /* pages out of every slot are as they were */
    world w; kvmem_cache c, full;
    float a[150 * 16], b[150 * 16];
    REQUIRE(world_init(&w, 1, 2, 1, 16, 150, "arkvale retrieve=arkvale(topk=1,budget=5) page=4"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 64, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 100, 150, 1, KVMEM_DECODE, NULL));
    w.recipe = kvmem_recipe_default();
    CHECK_OK(kvmem_cache_init(&full, &w.cfg));
    CHECK_OK(feed(&w, &full, 0, 150, 64, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, 150, a, NULL, NULL));
    CHECK_OK(kvmem_cache_read(&full, 0, 0, 0, 150, b, NULL, NULL));
    CHECK(!memcmp(a, b, sizeof a));
    CHECK_OK(kvmem_cache_read(&c, 0, 0, 0, 150, NULL, a, NULL));
    CHECK_OK(kvmem_cache_read(&full, 0, 0, 0, 150, NULL, b, NULL));
    CHECK(!memcmp(a, b, sizeof a));
    kvmem_cache_free(&c); kvmem_cache_free(&full); world_free(&w);
}

/* ---- tidal ---- */

/* o: s0, r (or -1), k, force_last, sinks, recent */
static void choose_tidal(const world *w, int t, int l, int h, const double *o, unsigned char *in) {
    const int s0 = (int)o[0], r = (int)o[1], sinks = (int)o[4], recent = (int)o[5], n = t + 1;
    const int to = n - KVMEM__MAX(recent, 1), own = o[3] <= 0 && recent < 1, m = to - sinks + own;
    double s[MAXT];
    int i, from;
    memset(in, 1, (size_t)n);
    if (l <= s0 || l == r) return;
    from = r > s0 && l > r ? r : s0;
    for (i = 0; i < m; i++) s[i] = product(w, t, from, h, sinks + i);
    best(s, m, (int)o[2] - (o[3] > 0), in + sinks);
}
TEST(tidal_reads_what_the_selection_layers_found) {
    static const struct { const char *recipe; int L, H, G; double o[6]; } x[] = {
        { "tidal retrieve=tidal(s0=0,r=2,k=9)", 4, 4, 2, { 0, 2, 9, 1, 0, 0 } },
        { "tidal retrieve=tidal(s0=0,r=0,k=9,force_last=0)", 3, 4, 2, { 0, 0, 9, 0, 0, 0 } },
        { "tidal retrieve=tidal(s0=0,r=9,k=5,sinks=3,recent=8)", 2, 2, 1, { 0, -1, 5, 1, 3, 8 } },
        { "tidal retrieve=tidal(s0=0,k=7)", 4, 2, 2, { 0, 2, 7, 1, 0, 0 } }, /* round(0.4 * 4) */
        { "tidal retrieve=tidal(s0=0,r=0,k=1) page=4", 2, 2, 2, { 0, 0, 1, 1, 0, 0 } },
        { "tidal retrieve=tidal(s0=0,r=0,k=0,force_last=0) page=4", 2, 2, 2, { 0, 0, 0, 0, 0, 0 } } };
    int i;
    for (i = 0; i < (int)(sizeof x / sizeof *x); i++) {
        const double e = worst_chosen(x[i].recipe, x[i].L, x[i].H, x[i].G, 110, 90, choose_tidal, x[i].o, i & 1, NULL,
                                      NULL);
        CHECK_NEAR(e, 0, 3e-5);
        if (!(e <= 3e-5)) printf("  case %d\n", i);
    }
}
TEST(tidal_counts_its_dense_layers) {
    static const struct { const char *recipe; int dense; } x[] = { /* s0 + 1 + [s0 < r < L] */
        { "tidal retrieve=tidal(s0=1,r=2,k=4) page=1", 3 }, { "tidal retrieve=tidal(s0=2,r=2,k=4) page=1", 3 },
        { "tidal retrieve=tidal(s0=0,r=9,k=4) page=1", 1 }, { "tidal retrieve=tidal(s0=0,k=4) page=1", 2 } };
    int i;
    for (i = 0; i < 4; i++) {
        world w; kvmem_cache c;
        int64_t before, read, there;
        REQUIRE(world_init(&w, 4, 1, 1, 8, 61, x[i].recipe));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 60, 60, KVMEM_PROMPT_END, NULL));
        kvmem_cache_pages(&c, &before, NULL);
        CHECK_OK(feed(&w, &c, 60, 61, 1, KVMEM_DECODE, NULL));
        kvmem_cache_pages(&c, &read, &there);
        CHECK(read - before == x[i].dense * 61 + (4 - x[i].dense) * 4);
        kvmem_cache_free(&c); world_free(&w);
    }
}
TEST(tidal_in_equal_layers_is_each_layers_own_choice) {
    static const double o[1] = { 9 };
    world w; kvmem_cache c; float *out;
    int t, h, i, n, set[60];
    unsigned char in[60];
    double ref[16], worst = 0;
    REQUIRE(world_init(&w, 2, 4, 2, 16, 60, "tidal retrieve=tidal(s0=0,r=0,k=9)"));
    w.cfg.shape.rope = w.rope;
    for (t = 0; t < 60; t++) {
        memcpy(row_k(&w, w.k, t, 1), row_k(&w, w.k, t, 0), 2 * 16 * 4);
        memcpy(row_q(&w, t, 1), row_q(&w, t, 0), 4 * 16 * 4);
    }
    out = outs(&w, 20);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 40, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 40, 60, 1, KVMEM_DECODE, out));
    for (t = 40; t < 60; t++)
        for (h = 0; h < 4; h++) {
            choose_exact(&w, t, 1, h, o, in);
            in[t] = 1;
            for (i = n = 0; i <= t; i++) if (in[i]) set[n++] = i;
            oracle(&w, t, 1, h, set, n, NULL, t, ref);
            for (i = 0; i < 16; i++)
                worst = KVMEM__MAX(worst, fabs(ref[i] - (double)out[((t - 40) * 2 + 1) * 64 + h * 16 + i]));
        }
    CHECK_NEAR(worst, 0, 3e-5);
    kvmem_cache_free(&c); free(out); world_free(&w);
}
TEST(tidal_finds_positions_where_other_layers_have_lost_entries) {
    world w; kvmem_cache c;
    int l;
    REQUIRE(world_init(&w, 3, 4, 2, 16, 200, "score=knorm budget=pyramid(60) when=step retrieve=tidal(s0=0,r=0,k=20)"));
    w.cfg.shape.rope = w.rope;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 120, 40, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 120, 200, 1, KVMEM_DECODE, NULL));
    for (l = 0; l < 3; l++) CHECK(kvmem_cache_lane_len(&c, l, 0) > 0);
    CHECK(kvmem_cache_lane_len(&c, 0, 0) != kvmem_cache_lane_len(&c, 2, 0));
    kvmem_cache_free(&c); world_free(&w);
}
TEST(tidal_blocks_can_be_read_densely) {
    CHECK(reads_all("tidal retrieve=tidal(s0=0,k=2,blocks=0)", 3, 4, 2, 150, 100, 10));
}

/* ---- specontext ---- */

static void weights(const world *w, int t, int l, int h, double *p) { /* softmax over 0..t */
    double top = -1e9, sum = 0;
    int i;
    for (i = 0; i <= t; i++) { p[i] = product(w, t, l, h, i) / 4; top = KVMEM__MAX(top, p[i]); }
    for (i = 0; i <= t; i++) sum += p[i] = exp(p[i] - top);
    for (i = 0; i <= t; i++) p[i] /= sum;
}
/* o: budget, layer (-1: average), sinks, recent */
static void spec_pick(const world *w, int t, int g, const double *o, unsigned char *in) {
    const int r = w->H / w->G, of = (int)o[1], sinks = (int)o[2], to = t + 1 - KVMEM__MAX((int)o[3], 1);
    double s[MAXT] = { 0 }, p[MAXT], sum[MAXT];
    int h, i, l;
    for (h = g * r; h < g * r + r; h++) {
        for (i = 0; i <= t; i++) sum[i] = 0;
        for (l = of < 0 ? 0 : of; l < (of < 0 ? w->L : of + 1); l++) {
            weights(w, of < 0 ? t - 1 : t, l, h, p);
            for (i = 0; i <= t - (of < 0); i++) sum[i] += p[i];
        }
        for (i = 0; i <= t; i++) s[i] = KVMEM__MAX(s[i], sum[i]);
    }
    memset(in, 1, (size_t)t + 1);
    best(s + sinks, to - sinks, (int)o[0], in + sinks);
}
static void choose_spec(const world *w, int t, int l, int h, const double *o, unsigned char *in) {
    if (l < o[1] || (o[1] < 0 && t == 90)) memset(in, 1, (size_t)t + 1); /* the average is not there at once */
    else spec_pick(w, t, h / (w->H / w->G), o, in);
}
TEST(specontext_reads_one_choice_in_all_layers) {
    static const struct { const char *recipe; int L, H, G; double o[4]; } x[] = {
        { "specontext retrieve=specontext(budget=11)", 3, 4, 2, { 11, 0, 0, 0 } },
        { "specontext retrieve=specontext(budget=11,layer=1,sinks=2,recent=6)", 3, 4, 1, { 11, 1, 2, 6 } },
        { "specontext retrieve=specontext(budget=9,of=average)", 3, 4, 2, { 9, -1, 0, 0 } },
        { "specontext retrieve=specontext(budget=9,of=average,recent=4)", 1, 2, 2, { 9, -1, 0, 4 } },
        { "specontext retrieve=specontext(budget=0)", 2, 2, 2, { 0, 0, 0, 0 } } };
    int i;
    for (i = 0; i < (int)(sizeof x / sizeof *x); i++) {
        const double e = worst_chosen(x[i].recipe, x[i].L, x[i].H, x[i].G, 110, 90, choose_spec, x[i].o, i & 1, NULL,
                                      NULL);
        CHECK_NEAR(e, 0, 3e-5);
        if (!(e <= 3e-5)) printf("  case %d\n", i);
    }
}
TEST(specontext_loads_what_the_last_choice_had_not) {
    enum { T = 160, FROM = 100, B = 16 };
    static const double o[4] = { B, 0, 0, 0 };
    world w; kvmem_cache c, copy;
    unsigned char now[2][T], last[2][T];
    int64_t chosen, loaded, want = 0, more;
    int t, g, i, slots;
    REQUIRE(world_init(&w, 2, 4, 2, 16, T, "specontext retrieve=specontext(budget=16)"));
    w.cfg.shape.rope = w.rope;
    for (t = 1; t < T; t++) /* queries that change slowly */
        for (i = 0; i < 64; i++) row_q(&w, t, 0)[i] = .9f * row_q(&w, t - 1, 0)[i] + .3f * row_q(&w, t, 0)[i];
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, FROM, 64, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, FROM, T - 1, 1, KVMEM_DECODE, NULL));
    memset(last, 0, sizeof last);
    for (t = FROM; t < T - 1; t++)
        for (g = 0; g < 2; g++) {
            spec_pick(&w, t, g, o, now[g]);
            for (i = slots = 0; i < t; i++) { want += now[g][i] && !last[g][i]; slots += now[g][i]; }
            CHECK(slots == B);
            memcpy(last[g], now[g], (size_t)t);
        }
    kvmem_cache_loads(&c, &chosen, &loaded);
    CHECK(chosen == 2 * B * (T - 1 - FROM));
    CHECK(loaded == want && loaded < chosen);
    CHECK_OK(kvmem_cache_copy(&copy, &c)); /* a copy goes on from the same choice */
    CHECK_OK(feed(&w, &c, T - 1, T, 1, KVMEM_DECODE, NULL));
    CHECK_OK(feed(&w, &copy, T - 1, T, 1, KVMEM_DECODE, NULL));
    kvmem_cache_loads(&c, NULL, &loaded);
    kvmem_cache_loads(&copy, NULL, &more);
    CHECK(loaded == more);
    kvmem_cache_free(&c); kvmem_cache_free(&copy); world_free(&w);
}
TEST(specontext_memory_is_the_cards) {
    static const double want[5] = { 640000, 520192, 400384, 280576, 160768 };
    kvmem_offload o = kvmem_offload_default();
    int i;
    CHECK(o.requests == 1 && o.budget == 2048 && o.value_bytes == 2);
    CHECK_NEAR(o.slack, 1.3, 0);
    o.n_layers = 4; o.n_kv_heads = 2; o.head_dim = 16; o.budget = 64;
    for (i = 0; i < 5; i++) {
        CHECK_NEAR(kvmem_offload_bytes(&o, i, 1000), want[i], 0);
        CHECK_NEAR(kvmem_offload_tokens(&o, i, want[i]), 1000, 0); /* S_i is the way back */
        CHECK(kvmem_offload_tokens(&o, i, want[i] - 1) < 1000);
        CHECK(kvmem_offload_layers(&o, 1000, want[i]) == i);
        if (i) CHECK(kvmem_offload_tokens(&o, i, 640000) > kvmem_offload_tokens(&o, i - 1, 640000));
    }
    CHECK(kvmem_offload_layers(&o, 1000, want[4] - 1) == -1);
    o.weights = 100000;
    CHECK_NEAR(kvmem_offload_bytes(&o, 0, 1000), 770000, 1e-6);
    CHECK_NEAR(kvmem_offload_tokens(&o, 0, 1000), 0, 0);
}
/* A draft that has seen the same tokens with layer 0's rows of the stream as its own: its choice is of=layer's. */
TEST(specontext_takes_what_a_draft_looks_at) {
    static const char *const mine[2] = { "specontext retrieve=specontext(budget=12,of=draft)",
                                         "specontext retrieve=specontext(budget=12,of=layer)" };
    world w, d; kvmem_cache c, draft; float *out[2];
    int k, t;
    REQUIRE(world_init(&d, 1, 2, 1, 16, 120, "score=snapkv(window=4) budget=all"));
    for (k = 0; k < 2; k++) {
        kvmem_error e;
        REQUIRE(world_init(&w, 1, 2, 1, 16, 120, mine[0]));
        memcpy(w.k, d.k, 120 * 16 * 4); memcpy(w.v, d.v, 120 * 16 * 4); memcpy(w.q, d.q, 120 * 32 * 4);
        CHECK_OK(kvmem_recipe_parse(&w.recipe, mine[k], &e));
        w.recipe.stage[KVMEM_RETRIEVE].user = k ? NULL : &draft;
        out[k] = outs(&w, 20);
        CHECK_OK(kvmem_cache_init(&draft, &d.cfg));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&d, &draft, 0, 100, 64, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 0, 100, 64, KVMEM_PROMPT_END, NULL));
        for (t = 100; t < 120; t++) {
            CHECK_OK(feed(&d, &draft, t, t + 1, 1, KVMEM_DECODE, NULL));
            CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, out[k] + (size_t)(t - 100) * 32));
        }
        if (!k) { /* a draft that lags behind, or is none, is refused */
            CHECK_OK(kvmem_cache_truncate(&c, 119));
            CHECK_OK(kvmem_cache_truncate(&draft, 118));
            quiet = 1;
            CHECK(feed(&w, &c, 119, 120, 1, KVMEM_DECODE, NULL) == KVMEM_BAD_STATE);
            CHECK(strstr(c.error.text, "draft has not taken the token at position 119"));
            quiet = 0;
        }
        kvmem_cache_free(&c); kvmem_cache_free(&draft);
        if (!k) {
            w.recipe.stage[KVMEM_RETRIEVE].user = NULL;
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 0, 100, 64, KVMEM_PROMPT_END, NULL));
            quiet = 1;
            CHECK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, NULL) == KVMEM_BAD_STATE);
            CHECK(strstr(c.error.text, "second model"));
            quiet = 0;
            kvmem_cache_free(&c);
        }
        if (k) CHECK(same_out(&w, out[0], out[1], 20));
        world_free(&w);
    }
    free(out[0]); free(out[1]); world_free(&d);
}

/* ---- all of them ---- */

static const char *const all[] = {
    "quest retrieve=quest(budget=24,dense=0) page=8", "quest retrieve=quest(budget=24,dense=0,by=max,last=0) page=8",
    "arkvale retrieve=arkvale(topk=2,budget=7) page=8", "tidal retrieve=tidal(s0=0,k=20)",
    "specontext retrieve=specontext(budget=20)", "specontext retrieve=specontext(budget=20,of=average)" };
enum { ALL = sizeof all / sizeof *all };
TEST(blocks_of_several_queries_choose_too) {
    int i;
    for (i = 0; i < ALL; i++) {
        world w; kvmem_cache c;
        int64_t read, there;
        REQUIRE(world_init(&w, 2, 4, 2, 16, 200, all[i]));
        w.cfg.shape.rope = w.rope;
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 100, 64, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 100, 200, 7, KVMEM_DECODE, NULL));
        kvmem_cache_pages(&c, &read, &there);
        CHECK(read < there || w.recipe.page > 20); /* scattered entries lie in every page */
        kvmem_cache_free(&c); world_free(&w);
    }
}
TEST(sliding_windows_equal_scores_and_zero_rows_do_no_harm) {
    int i, k;
    for (i = 0; i < ALL; i++)
        for (k = 0; k < 3; k++) {
            world w; kvmem_cache c; float *out;
            int x, n;
            REQUIRE(world_init(&w, 2, 4, 2, 16, 130, all[i]));
            w.cfg.shape.rope = k == 1 ? NULL : w.rope;
            w.window[0] = 30;
            if (k == 0) w.cfg.shape.window = w.window;
            for (x = 0; k && x < 130 * 2 * 2 * 16; x++) w.k[x] = k == 1 ? 0 : 1;
            for (x = 0; k == 1 && x < 130 * 2 * 4 * 16; x++) w.q[x] = 0;
            out = outs(&w, 30);
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 0, 100, 64, KVMEM_PROMPT_END, NULL));
            CHECK_OK(feed(&w, &c, 100, 130, 1, KVMEM_DECODE, out));
            for (x = 0, n = 0; x < 30 * 2 * 64; x++) n += !(fabs((double)out[x]) < 100);
            CHECK(n == 0);
            kvmem_cache_free(&c); free(out); world_free(&w);
        }
}
TEST(codecs_evictions_saving_and_threads_go_with_them) {
    static const char *const with[] = { "codec=q8_0", "codec.k=kivi(bits=4,axis=channel,residual=16,flush=1)",
                                        "codec=f16_pre/f32", "score=h2o budget=50 when=step", "place=cache" };
    int i, k;
    for (i = 0; i < ALL; i++)
        for (k = 0; k < 5; k++) {
            char text[256];
            world w; kvmem_cache c, copy; float *a, *b; bytes f = { 0, 0, 0 };
            snprintf(text, sizeof text, "%s %s", all[i], with[k]);
            REQUIRE(world_init(&w, 2, 4, 2, 16, 80, text));
            w.cfg.shape.rope = w.rope;
            a = outs(&w, 10); b = outs(&w, 10);
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 0, 60, 40, KVMEM_PROMPT_END, NULL));
            CHECK_OK(feed(&w, &c, 60, 75, 1, KVMEM_DECODE, NULL));
            CHECK_OK(kvmem_cache_copy(&copy, &c));
            copy.threads = 4;
            CHECK_OK(feed(&w, &c, 75, 80, 1, KVMEM_DECODE, a));
            CHECK_OK(feed(&w, &copy, 75, 80, 1, KVMEM_DECODE, b));
            CHECK(same_out(&w, a, b, 5));
            if (test_bad) printf("  %s\n", text);
            CHECK_OK(kvmem_cache_save(&c, bytes_write, &f));
            CHECK_OK(kvmem_cache_load(&copy, f.p, f.n));
            CHECK_OK(kvmem_cache_truncate(&copy, 78));
            CHECK_OK(feed(&w, &copy, 78, 80, 1, KVMEM_DECODE, NULL));
            kvmem_cache_free(&c); kvmem_cache_free(&copy); free(a); free(b); free(f.p); world_free(&w);
        }
}
TEST(failed_allocations_are_errors_and_leak_nothing) {
    int i;
    for (i = 0; i < ALL; i++) {
        world w;
        size_t fail;
        int done = 0;
        REQUIRE(world_init(&w, 2, 2, 1, 8, 40, all[i]));
        quiet = 1;
        for (fail = 1; !done && fail < 2000; fail += 3) {
            kvmem_cache c;
            kvmem_status st;
            test_heap heap;
            memset(&heap, 0, sizeof heap);
            heap.fail_at = fail;
            w.cfg.allocator = test_allocator(&heap);
            st = kvmem_cache_init(&c, &w.cfg);
            if (st == KVMEM_OK) st = feed(&w, &c, 0, 34, 34, KVMEM_PROMPT_END, NULL);
            if (st == KVMEM_OK) st = feed(&w, &c, 34, 40, 1, KVMEM_DECODE, NULL);
            done = st == KVMEM_OK && heap.calls < fail;
            CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY);
            kvmem_cache_free(&c);
            CHECK(!heap.live && !heap.wrong);
        }
        quiet = 0;
        CHECK(done);
        world_free(&w);
    }
}
TEST(bad_parameters_are_refused) {
    static const char *const bad[] = {
        "retrieve=quest(budget=-1)", "retrieve=quest(by=all)", "retrieve=arkvale(topk=1.5)", "retrieve=tidal(k=-3)",
        "retrieve=tidal(r=-2)", "retrieve=specontext(of=nobody)" };
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error e;
    world w; kvmem_cache c;
    int i;
    for (i = 0; i < 6; i++) CHECK(kvmem_recipe_parse(&r, bad[i], &e) == KVMEM_BAD_RECIPE);
    REQUIRE(world_init(&w, 2, 2, 1, 8, 10, "retrieve=specontext(layer=2)"));
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    quiet = 1;
    CHECK(feed(&w, &c, 0, 10, 10, KVMEM_PROMPT_END, NULL) == KVMEM_UNSUPPORTED);
    quiet = 0;
    CHECK(strstr(c.error.text, "layer=2") && strstr(c.error.text, "2 layers"));
    kvmem_cache_free(&c); world_free(&w);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "quest");
    RUN(quest_box_is_the_cards);
    RUN(arkvale_digest_is_the_cards);
    RUN(quest_is_a_bound_and_arkvale_is_none);
    RUN(groups_join_by_max_and_mean);
    RUN(new_entries_are_counted_once);
    RUN(quest_reads_the_pages_with_the_largest_bounds);
    RUN(quest_with_pages_of_one_is_exact);
    RUN(budgets_of_everything_change_no_bit);
    RUN(prompts_read_everything);
    RUN(arkvale_reads_sinks_window_and_the_best_pages);
    RUN(arkvale_slots_are_those_of_a_slow_copy);
    RUN(arkvale_recalls_identical_bytes);
    RUN(tidal_reads_what_the_selection_layers_found);
    RUN(tidal_counts_its_dense_layers);
    RUN(tidal_in_equal_layers_is_each_layers_own_choice);
    RUN(tidal_finds_positions_where_other_layers_have_lost_entries);
    RUN(tidal_blocks_can_be_read_densely);
    RUN(specontext_reads_one_choice_in_all_layers);
    RUN(specontext_loads_what_the_last_choice_had_not);
    RUN(specontext_memory_is_the_cards);
    RUN(specontext_takes_what_a_draft_looks_at);
    RUN(blocks_of_several_queries_choose_too);
    RUN(sliding_windows_equal_scores_and_zero_rows_do_no_harm);
    RUN(codecs_evictions_saving_and_threads_go_with_them);
    RUN(failed_allocations_are_errors_and_leak_nothing);
    RUN(bad_parameters_are_refused);
    return test_end();
}
