/* Reading some pages only: what a retrieve entry is given, that attention and its observers skip what it leaves out in
   every path, notes of pages, counts; and ActQKV: its formulas, and a slow copy of it beside the cache. */
#define KVMEM_NO_DECODER /* the memory layer alone; with the fast paths, for tiles skip pages in their own way */
#include "test.h"
#include "world.h"

/* ---- an entry that leaves out pages by a hash of layer, lane and page ---- */

typedef struct picker { int calls, wrong, made, n; unsigned char skip[4][4][64]; } picker;
static int hashed(int layer, int g, int i) {
    return (int)(kvmem__random((uint64_t)test_seed, (uint64_t)layer, (uint64_t)g, (uint64_t)i) % 3);
}
static kvmem_status pick_some(const kvmem_view *v, int n, const float *q, const int32_t *pos,
                              unsigned char *const *read) {
    picker *p = (picker *)v->user;
    int g, i, first, c, known;
    float key[64];
    p->calls++;
    p->wrong += v->stage != KVMEM_RETRIEVE || n != v->cache->block_n || !q || pos[n - 1] != v->cache->block_pos[n - 1];
    for (g = 0; g < v->cache->shape.n_kv_heads; g++) {
        int at = 0;
        for (i = 0; i < kvmem_view_pages(v, g); i++) {
            const int rows = kvmem_view_page(v, g, i, &first), last = first + rows > kvmem_view_count(v, g) - n;
            float *note = kvmem_view_note(v, g, i, &known);
            p->wrong += first != at || rows < 1 || read[g][i] != 1;
            at += rows;
            kvmem_view_keys(v, g, first + rows - 1, 1, key);
            for (c = 0; c < v->cache->shape.head_dim; c++) { /* the note is the page's last key */
                if (!known) note[c] = key[c];
                p->wrong += note[c] != key[c];
            }
            p->made += !known;
            read[g][i] = hashed(v->layer, g, i) != 0;
            p->skip[v->layer][g][i] = !read[g][i] && !last;
        }
        p->wrong += at != kvmem_view_count(v, g);
    }
    return KVMEM_OK;
}
static int note_of_key(const double *par, int H, int G, int d) { (void)par; (void)H; (void)G; return d; }
static const kvmem_retrieve_entry some = { { "some", "pages by a hash", "-", NULL, 0 }, pick_some, NULL, note_of_key };

/* Attention of a block reads exactly the pages that were picked, whatever codec, place and path. */
static double worst_masked(const char *recipe, const char *backend, int T, int block, int threads, picker *p) {
    static int set[MAXT], place[MAXT];
    const int last = T - block;
    world w; kvmem_cache c; float *out;
    double worst = 0, o[256];
    int t, l, g, h, i, n, P;
    if (!world_init(&w, 2, 4, 2, 16, T, recipe)) return 1e9;
    memset(p, 0, sizeof *p);
    w.cfg.shape.rope = w.rope;
    w.cfg.max_block = 64;
    w.cfg.threads = threads;
    w.cfg.backend = backend ? kvmem_backend_cpu(backend) : NULL;
    w.recipe.stage[KVMEM_RETRIEVE].entry = &some.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = p;
    P = w.recipe.page;
    out = outs(&w, block);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, last, 64, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, last, T, block, KVMEM_DECODE, out));
    for (t = last; t < T; t++)
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                const void *where = w.recipe.stage[KVMEM_PLACE].entry;
                const int slots = ((const kvmem_place_entry *)where)->fn != NULL;
                for (i = n = 0; i <= t; i++)
                    if (i >= last || !p->skip[l][g][i / P]) { place[n] = i; set[n++] = i; }
                for (h = 2 * g; h < 2 * g + 2; h++) {
                    oracle(&w, t, l, h, set, n, slots ? place : NULL, t, o);
                    for (i = 0; i < 16; i++) {
                        const double e = fabs(o[i] - (double)out[((t - last) * 2 + l) * 64 + h * 16 + i]);
                        if (!(e <= worst)) worst = e;
                    }
                }
            }
    kvmem_cache_free(&c); free(out); world_free(&w);
    return worst;
}
TEST(attention_skips_unread_pages_in_every_path) {
    static const char *const recipe[] = { "full page=16", "full page=5 place=cache", "full page=16 codec=f16_pre/f32" };
    static picker p;
    int k, plain;
    for (k = 0; k < 3; k++)
        for (plain = 0; plain < 2; plain++) {
            const double tol = k == 2 ? 2e-2 : 3e-5;
            CHECK_NEAR(worst_masked(recipe[k], plain ? "plain" : NULL, 150, 1, 1, &p), 0, tol);  /* one token */
            CHECK_NEAR(worst_masked(recipe[k], plain ? "plain" : NULL, 150, 33, 2, &p), 0, tol); /* tiles */
            CHECK(!p.wrong && p.calls == 2 * 3);
        }
}
TEST(a_long_lane_cut_into_chunks_skips_unread_pages) {
    static int set[2 * KVMEM__CHUNK];
    static picker p;
    const int T = KVMEM__CHUNK + 300;
    world w; kvmem_cache c; float *out;
    double o[256], worst = 0;
    int i, n, h;
    REQUIRE(world_init(&w, 1, 2, 1, 8, T, "full page=64"));
    memset(&p, 0, sizeof p);
    w.recipe.stage[KVMEM_RETRIEVE].entry = &some.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &p;
    w.cfg.threads = 4;
    out = outs(&w, 1);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, T - 1, 64, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, T - 1, T, 1, KVMEM_DECODE, out));
    for (i = n = 0; i < T; i++) if (i == T - 1 || !p.skip[0][0][i / 64]) set[n++] = i;
    CHECK(n < T);
    for (h = 0; h < 2; h++) {
        oracle(&w, T - 1, 0, h, set, n, NULL, T - 1, o);
        for (i = 0; i < 8; i++) worst = KVMEM__MAX(worst, fabs(o[i] - (double)out[h * 8 + i]));
    }
    CHECK_NEAR(worst, 0, 3e-5);
    kvmem_cache_free(&c); free(out); world_free(&w);
}
TEST(what_is_not_read_is_not_observed_and_pages_are_counted) {
    static picker p;
    static float acc[MAXT];
    world w; kvmem_cache c;
    int64_t read, there;
    kvmem_view v;
    double sum = 0;
    int t;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 120, "score=h2o budget=1000 page=8"));
    memset(&p, 0, sizeof p);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 40, 40, KVMEM_PROMPT_END, NULL));
    kvmem_cache_pages(&c, &read, &there);
    CHECK(read == 5 && there == 5); /* everything */
    kvmem_cache_clear(&c);
    kvmem_cache_pages(&c, &read, NULL);
    CHECK(read == 0);
    kvmem_cache_free(&c);
    w.recipe.stage[KVMEM_RETRIEVE].entry = &some.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &p;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 50, KVMEM_PROMPT_END, NULL));
    v = kvmem__view_of(&c, 0, KVMEM_SCORE);
    kvmem_view_acc(&v, 0, acc);
    for (t = 0; t < 100; t++) sum += (double)acc[t];
    CHECK_NEAR(sum, 100, 1e-3); /* rows add up to 1 over what was read */
    kvmem_cache_pages(&c, &read, &there);
    CHECK(there == 7 + 13);
    for (t = 0; t < 6; t++) if (hashed(0, 0, t) == 0) there--; /* pages 0..5 hold no token of the second block */
    CHECK(read == there);
    CHECK_OK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, NULL));
    kvmem_view_acc(&v, 0, acc);
    for (t = 0, sum = 0; t < 101; t++) sum += (double)acc[t];
    CHECK_NEAR(sum, 101, 1e-3);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(notes_last_until_their_page_changes) {
    static picker p;
    world w; kvmem_cache c, copy; bytes f = { 0, 0, 0 };
    int had;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 200, "score=recency budget=1000 sink=9 page=8 when=step"));
    memset(&p, 0, sizeof p);
    w.recipe.stage[KVMEM_RETRIEVE].entry = &some.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &p;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 60, 60, KVMEM_PROMPT_END, NULL)); /* 7 pages and 4 rows */
    CHECK(p.made == 8);
    CHECK_OK(feed(&w, &c, 60, 61, 1, KVMEM_DECODE, NULL));
    CHECK(p.made == 9); /* the last page grew */
    REQUIRE(kvmem_cache_copy(&copy, &c) == KVMEM_OK);
    CHECK_OK(feed(&w, &copy, 61, 62, 1, KVMEM_DECODE, NULL));
    CHECK_OK(feed(&w, &c, 61, 62, 1, KVMEM_DECODE, NULL));
    CHECK(p.made == 11 && !p.wrong); /* full pages are shared, with their notes */
    CHECK_OK(kvmem_cache_truncate(&copy, 52));
    CHECK_OK(feed(&w, &copy, 52, 80, 28, KVMEM_PREFILL, NULL));
    CHECK_OK(feed(&w, &c, 62, 63, 1, KVMEM_DECODE, NULL));
    CHECK(!p.wrong);
    kvmem_cache_free(&copy);
    had = p.made;
    c.recipe.amount.kind = KVMEM_COUNT; /* now entries leave: rows move */
    c.recipe.amount.value = 30;
    CHECK_OK(feed(&w, &c, 63, 90, 1, KVMEM_DECODE, NULL));
    CHECK(p.made > had && !p.wrong);
    CHECK_OK(kvmem_cache_save(&c, bytes_write, &f));
    CHECK_OK(kvmem_cache_load(&c, f.p, f.n));
    CHECK_OK(kvmem_cache_recode(&c, "q8_0", "q4_0"));
    CHECK_OK(feed(&w, &c, 90, 91, 1, KVMEM_DECODE, NULL));
    CHECK(!p.wrong);
    kvmem_cache_free(&c); free(f.p); world_free(&w);
}
static kvmem_status pick_badly(const kvmem_view *v, int n, const float *q, const int32_t *pos,
                               unsigned char *const *read) {
    (void)n; (void)q; (void)pos; (void)read;
    return *(const int *)v->user ? KVMEM_UNSUPPORTED : KVMEM_OK;
}
TEST(an_entry_that_fails_says_so_and_leaks_nothing) {
    static const kvmem_retrieve_entry bad = { { "bad", "fails", "-", NULL, 0 }, pick_badly, NULL, NULL };
    world w; kvmem_cache c; kvmem_bytes b;
    test_heap heap;
    int fail = 0;
    memset(&heap, 0, sizeof heap);
    REQUIRE(world_init(&w, 1, 2, 1, 8, 20, "full"));
    w.cfg.allocator = test_allocator(&heap);
    w.recipe.stage[KVMEM_RETRIEVE].entry = &bad.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &fail;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 10, 10, KVMEM_PROMPT_END, NULL));
    fail = quiet = 1;
    CHECK(feed(&w, &c, 10, 11, 1, KVMEM_DECODE, NULL) == KVMEM_UNSUPPORTED);
    quiet = 0;
    CHECK(strstr(c.error.text, "retrieve=bad failed in layer 0"));
    kvmem_cache_bytes(&c, &b);
    CHECK(b.live.total == heap.live);
    kvmem_cache_free(&c);
    CHECK(!heap.live && !heap.wrong);
    world_free(&w);
}

/* ---- actqkv ---- */

TEST(actqkv_bias_weights_and_probe_are_the_cards) {
    static const float mean[2] = { 0, 0 }, var[2] = { 1, 1 }, x[2][2] = { { 1, 1 }, { 3, 0 } };
    static const float moved[2] = { 5, -2 }, y[2] = { 8, -2 };
    double b[2];
    int i;
    for (i = 0; i < 2; i++) b[i] = kvmem__act_bias(x[i], mean, var, 2, 1) / 2;
    CHECK_NEAR(b[0], .990099, 1e-6);
    CHECK_NEAR(b[1], 4.455446, 1e-6);
    CHECK_NEAR(b[0] / (b[0] + b[1]), .181818, 1e-6);
    CHECK_NEAR((b[0] * 1 + b[1] * 3) / (b[0] + b[1]), 2.636364, 1e-6);
    CHECK_NEAR((b[0] * 1 + b[1] * 0) / (b[0] + b[1]), .181818, 1e-6);
    CHECK_NEAR(kvmem__act_bias(y, moved, var, 2, 1), kvmem__act_bias(x[1], mean, var, 2, 1), 1e-6); /* shifts cancel */
}
TEST(actqkv_tracks_mean_and_variance_as_the_formula_says) {
    float mean = 9, var = 9;
    double m = 0, s = 0, x[6], sum, sq;
    int k, t, n;
    for (k = 0; k < 30; k++) {
        n = k % 3 == 2 ? 1 : 6;
        for (t = 0, sum = sq = 0; t < n; t++) { x[t] = 2 + test_normal(); sum += x[t] / n; }
        for (t = 0; t < n; t++) sq += (x[t] - sum) * (x[t] - sum);
        if (!k) { m = sum; s = sq / (n - 1); }
        else {
            s = (s * (k - 1.0 / n) + sq / n + (sum - m) * (sum - m) / (1 + 1.0 / k)) / (k + 1 - 1.0 / n);
            m = (m * k + sum) / (k + 1);
        }
        kvmem__act_track(&mean, &var, sum, sq, n, k);
        CHECK_NEAR(mean, m, 1e-5);
        CHECK_NEAR(var, s, 1e-5);
    }
    kvmem__act_track(&mean, &var, 3, 0, 1, 0);
    CHECK(mean == 3 && var == 0);
}
TEST(actqkv_entropy_lies_between_0_and_1) {
    static const float equal[5] = { 2, 2, 2, 2, 2 }, one[3] = { 0, 100, 0 };
    float x[20];
    int i, n;
    CHECK_NEAR(kvmem__act_entropy(equal, 5), 1, 1e-6);
    CHECK_NEAR(kvmem__act_entropy(one, 3), 0, 1e-6);
    CHECK(kvmem__act_entropy(one, 1) == 0);
    for (n = 2; n < 20; n++) {
        double h;
        for (i = 0; i < n; i++) x[i] = (float)(3 * test_normal());
        h = kvmem__act_entropy(x, n);
        CHECK(h >= 0 && h <= 1);
    }
}
TEST(actqkv_layers_share_the_pages_of_a_token) {
    double mean[6], left, sum;
    int trial, l, k;
    for (trial = 0; trial < 500; trial++) {
        const int L = 1 + (int)(test_unit() * 6), topk = 1 + (int)(test_unit() * 40), known = trial & 1;
        for (l = 0; l < L; l++) mean[l] = test_unit();
        left = topk * L;
        for (l = 0, sum = 0; l < L; l++) {
            k = kvmem__act_cut(mean, known, l, L, &left, 100000, 0, topk);
            CHECK(k >= 0 && k <= 2 * topk);
            if (!known) CHECK(k == topk);
            sum += k;
        }
        CHECK(sum <= topk * L);
    }
    mean[0] = 3; mean[1] = 1;
    left = 20;
    CHECK(kvmem__act_cut(mean, 1, 0, 2, &left, 1000, 0, 10) == 15 && left == 5); /* more entropy, more pages */
    CHECK(kvmem__act_cut(mean, 1, 1, 2, &left, 1000, 0, 10) == 5 && left == 0);
    left = 5;
    CHECK(kvmem__act_cut(mean, 0, 0, 2, &left, 1000, 0, 10) == 2); /* 2.5: halves go to even */
    CHECK(kvmem__act_cut(mean, 0, 1, 2, &left, 7, 32, 10) == 7);   /* fewer pages than the least: all */
}
static const char small[] = "actqkv retrieve=actqkv(init=4,local=8,topk=2,repr=2,least=1) page=4";
TEST(actqkv_reads_everything_while_there_are_few_pages) {
    static const char *const recipe[2] = {
        "actqkv", "actqkv retrieve=actqkv(init=4,local=8,topk=2,repr=2,least=60) page=4" };
    int k;
    for (k = 0; k < 2; k++) {
        world w; kvmem_cache c; float *a, *b;
        int64_t read, there;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 200, recipe[k]));
        w.cfg.shape.rope = w.rope;
        a = outs(&w, 200); b = outs(&w, 200);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, a));
        CHECK_OK(feed(&w, &c, 150, 200, 1, KVMEM_DECODE, a + 150 * 64));
        kvmem_cache_pages(&c, &read, &there);
        CHECK(read == there && there > 0);
        kvmem_cache_free(&c);
        w.recipe = kvmem_recipe_default();
        w.recipe.page = k ? 4 : 32;
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 150, 50, KVMEM_PROMPT_END, b));
        CHECK_OK(feed(&w, &c, 150, 200, 1, KVMEM_DECODE, b + 150 * 64));
        CHECK(same_out(&w, a, b, 200));
        kvmem_cache_free(&c); free(a); free(b); world_free(&w);
    }
}
/* The method again, in double, for pages of 4, init=4, local=8, topk=2, repr=2, least=1; L = 2, H = 4, G = 2, d = 8. */
enum { TL = 2, TH = 4, TG = 2, TD = 8, TT = 100, TP = TT / 4 };
typedef struct act_sim {
    double acc[TL][TG][TT], mean[TL][32], var[TL][32], sum_h[TL], left;
    int seen[TL], flag[TL][TG][TT], flagged[TL][TP], skip[TL][TP];
} act_sim;
/* Sets skip; returns the smallest gap between two scores. */
static double act_choose(act_sim *s, const world *w, int l, int from, int n) {
    double x[64][32], m[32], sq[32], probe[32], score[TP], avg = 0, all = 0, whole = 0, gap = 1e9;
    int at[TP], t, i, g, h, c, nb = 0, k, page;
    for (i = 0; i < TP; i++) s->skip[l][i] = 0;
    for (t = 0; t < n; t++)
        for (h = 0; h < TH; h++) {
            for (c = 0; c < TD; c++) x[t][h * TD + c] = (double)row_q(w, from + t, l)[h * TD + c];
            turn(&x[t][h * TD], TD, &w->rope[l], 7);
        }
    for (i = 0; i < 32; i++) {
        for (t = 0, m[i] = sq[i] = probe[i] = 0; t < n; t++) m[i] += x[t][i] / n;
        for (t = 0; t < n; t++) sq[i] += (x[t][i] - m[i]) * (x[t][i] - m[i]);
        if (!s->seen[l]) { s->mean[l][i] = m[i]; s->var[l][i] = n > 1 ? sq[i] / (n - 1) : 0; }
        else {
            const double cc = s->seen[l], T = n, off = m[i] - s->mean[l][i];
            s->var[l][i] = (s->var[l][i] * (cc - 1 / T) + sq[i] / T + off * off / (1 + 1 / cc)) / (cc + 1 - 1 / T);
            s->mean[l][i] = (s->mean[l][i] * cc + m[i]) / (cc + 1);
        }
        avg += s->var[l][i] / 32;
    }
    for (t = 0; t < n; t++) {
        double b = 0;
        for (i = 0; i < 32; i++) {
            const double off = x[t][i] - s->mean[l][i];
            b += off * off / (s->var[l][i] + avg / 100) / 32;
        }
        if (n == 1 || !s->seen[l]) b = 1;
        for (i = 0; i < 32; i++) probe[i] += b * x[t][i];
        all += b;
    }
    s->seen[l]++;
    for (i = 0; i < 32; i++) { probe[i] /= all; whole += probe[i] * probe[i]; }
    if (l == 0) s->left = 2 * TL;
    for (page = 1; page < TP && page * 4 + 4 + 8 <= from + 1; page++) { /* remote, and flagged when its block ended */
        double dot = 0, norm = 0;
        if (!s->flagged[l][page]) continue;
        for (g = 0; g < TG; g++) {
            double rep[TD] = { 0 };
            int many = 0;
            for (t = page * 4; t < page * 4 + 4; t++)
                for (c = 0; c < TD && s->flag[l][g][t]; c++) {
                    rep[c] += (double)row_k(w, w->k, t, l)[g * TD + c];
                    many += !c;
                }
            for (c = 0; c < TD; c++) rep[c] /= many;
            for (c = 0; c < TD; c++) norm += 2 * rep[c] * rep[c];
            for (h = 2 * g; h < 2 * g + 2; h++) for (c = 0; c < TD; c++) dot += rep[c] * probe[h * TD + c];
        }
        score[nb] = dot / sqrt(norm * whole);
        at[nb++] = page;
    }
    if (!nb) return gap;
    { /* before 100 blocks every layer gets an even share of what is left */
        double want = s->left / (TL - l);
        k = (int)floor(want + .5 - (fmod(floor(want), 2) < 1 && want - floor(want) == .5 ? 1e-9 : 0));
        k = KVMEM__MAX(KVMEM__MIN(k, KVMEM__MIN(nb, 4)), 1);
        s->left -= k;
    }
    for (i = 0; i < nb; i++) {
        int better = 0, j;
        for (j = 0; j < nb; j++) {
            better += score[j] > score[i] || (score[j] == score[i] && j < i);
            if (j != i) gap = KVMEM__MIN(gap, fabs(score[j] - score[i]));
        }
        s->skip[l][at[i]] = better >= k;
    }
    return gap;
}
/* Attention sums of the block over what it reads, and flags of pages that leave the local window. */
static void act_observe(act_sim *s, const world *w, int l, int from, int n) {
    int t, h, i, c, g, page, k;
    for (t = from; t < from + n; t++)
        for (h = 0; h < TH; h++) {
            double p[TT], q[TD], key[TD], top = -1e9, sum = 0;
            g = h / 2;
            for (c = 0; c < TD; c++) q[c] = (double)row_q(w, t, l)[h * TD + c];
            turn(q, TD, &w->rope[l], t);
            for (i = 0; i <= t; i++) {
                if (i < from && s->skip[l][i / 4]) { p[i] = -1e9; continue; }
                for (c = 0; c < TD; c++) key[c] = (double)row_k(w, w->k, i, l)[g * TD + c];
                turn(key, TD, &w->rope[l], i);
                for (c = 0, p[i] = 0; c < TD; c++) p[i] += q[c] * key[c] / sqrt((double)TD);
                if (p[i] > top) top = p[i];
            }
            for (i = 0; i <= t; i++) sum += p[i] = exp(p[i] - top);
            for (i = 0; i <= t; i++) s->acc[l][g][i] += p[i] / sum / 2;
        }
    for (page = 1; page < TP && page * 4 + 4 + 8 <= from + n + 1; page++)
        for (g = 0; g < TG && !s->flagged[l][page]; g += 1) {
            for (k = 0; k < 4; k++) {
                int better = 0, j;
                for (j = 0; j < 4; j++)
                    better += s->acc[l][g][page * 4 + j] > s->acc[l][g][page * 4 + k] ||
                              (s->acc[l][g][page * 4 + j] == s->acc[l][g][page * 4 + k] && j < k);
                s->flag[l][g][page * 4 + k] = better < 2;
            }
            if (g == TG - 1) s->flagged[l][page] = 1;
        }
}
TEST(actqkv_equals_its_rule_over_a_whole_run) {
    static act_sim s;
    world w; kvmem_cache c; float *out;
    int from, n, l, h, i, t, set[TT], some_skipped = 0;
    double o[256];
    int64_t read, there;
    memset(&s, 0, sizeof s);
    REQUIRE(world_init(&w, TL, TH, TG, TD, TT, small));
    w.cfg.shape.rope = w.rope;
    out = outs(&w, TT);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    for (from = 0; from < TT; from += n) {
        n = from < 60 ? 12 : 1;
        CHECK_OK(feed(&w, &c, from, from + n, n,
                      from < 48 ? KVMEM_PREFILL : from < 60 ? KVMEM_PROMPT_END : KVMEM_DECODE, out));
        for (l = 0; l < TL; l++) {
            double worst = 0;
            if (act_choose(&s, &w, l, from, n) < 1e-6) SKIP("two pages of one score");
            for (t = from; t < from + n; t++)
                for (h = 0; h < TH; h++) {
                    int m = 0;
                    for (i = 0; i <= t; i++) {
                        some_skipped += i < from && s.skip[l][i / 4];
                        if (i >= from || !s.skip[l][i / 4]) set[m++] = i;
                    }
                    oracle(&w, t, l, h, set, m, NULL, t, o);
                    for (i = 0; i < TD; i++) {
                        const double e = fabs(o[i] - (double)out[((t - from) * TL + l) * TH * TD + h * TD + i]);
                        if (!(e <= worst)) worst = e;
                    }
                }
            CHECK_NEAR(worst, 0, 3e-5);
            act_observe(&s, &w, l, from, n);
        }
    }
    CHECK(some_skipped > 0);
    kvmem_cache_pages(&c, &read, &there);
    CHECK(read < there && read > 0);
    kvmem_cache_free(&c); free(out); world_free(&w);
}
TEST(actqkv_saved_copied_and_threaded_goes_on_alike) {
    world w; kvmem_cache a, b, copy; bytes f = { 0, 0, 0 };
    float *x, *y;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 220, small));
    w.cfg.shape.rope = w.rope;
    x = outs(&w, 30); y = outs(&w, 30);
    REQUIRE_OK(kvmem_cache_init(&a, &w.cfg));
    w.cfg.threads = 2;
    REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
    CHECK_OK(feed(&w, &a, 0, 60, 20, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &a, 60, 190, 1, KVMEM_DECODE, NULL)); /* more than 100 entropies */
    CHECK_OK(kvmem_cache_save(&a, bytes_write, &f));
    CHECK_OK(kvmem_cache_load(&b, f.p, f.n));
    REQUIRE_OK(kvmem_cache_copy(&copy, &a));
    CHECK_OK(feed(&w, &a, 190, 220, 1, KVMEM_DECODE, x));
    CHECK_OK(feed(&w, &b, 190, 220, 1, KVMEM_DECODE, y));
    CHECK(same_out(&w, x, y, 30));
    CHECK_OK(feed(&w, &copy, 190, 220, 1, KVMEM_DECODE, y));
    CHECK(same_out(&w, x, y, 30));
    kvmem_cache_free(&copy); kvmem_cache_free(&a); kvmem_cache_free(&b);
    free(f.p); free(x); free(y); world_free(&w);
}
TEST(actqkv_works_with_equal_evictions_and_refuses_lanes_that_differ) {
    world w; kvmem_cache c; kvmem_bytes b;
    int k;
    for (k = 0; k < 3; k++) {
        static const char *const more[3] = {
            "score=recency budget=50 sink=4 when=step", "score=random budget=50 when=step", "budget=200KB" };
        char text[200];
        sprintf(text, "%s %s", small, more[k]);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 400, text));
        w.cfg.shape.rope = w.rope;
        w.cfg.max_block = 32;
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        quiet = k == 1;
        CHECK(feed(&w, &c, 0, 300, 32, KVMEM_PROMPT_END, NULL) == KVMEM_OK);
        CHECK(feed(&w, &c, 300, 400, 1, KVMEM_DECODE, NULL) == (k == 1 ? KVMEM_UNSUPPORTED : KVMEM_OK));
        quiet = 0;
        if (k == 1) CHECK(strstr(c.error.text, "must hold the same entries"));
        kvmem_cache_bytes(&c, &b);
        if (k == 2) CHECK(b.peak.total <= 200000 && kvmem_cache_lane_len(&c, 0, 0) < 400);
        kvmem_cache_free(&c); world_free(&w);
    }
}
/* A block of fillers with one query of another kind: the probe is nearer to that query's page than the mean is. */
TEST(actqkv_probe_leans_to_the_unusual_query) {
    kvmem_cache c; kvmem_config cfg = kvmem_config_default(); kvmem_recipe r; kvmem_view v;
    float q[10 * 4], probe[4], x[4], mean[4] = { 0, 0, 0, 0 };
    double two[8], near[2] = { 0, 0 };
    int t, i, k;
    REQUIRE_OK(kvmem_recipe_parse(&r, small, NULL));
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = 4;
    cfg.recipe = &r;
    REQUIRE_OK(kvmem_cache_init(&c, &cfg));
    v = kvmem__view_of(&c, 0, KVMEM_RETRIEVE);
    for (k = 0; k < 2; k++) {
        for (t = 0; t < 10; t++)
            for (i = 0; i < 4; i++) q[t * 4 + i] = (float)((i == (k && t == 6 ? 3 : 0) ? 1 : 0) + .1 * test_normal());
        kvmem__act_probe(&v, 10, q, probe, x, two);
    }
    for (i = 0; i < 4; i++) for (t = 0; t < 10; t++) mean[i] += q[t * 4 + i] / 10;
    for (i = 0; i < 4; i++) { near[0] += (double)(probe[i] * probe[i]); near[1] += (double)(mean[i] * mean[i]); }
    CHECK((double)probe[3] / sqrt(near[0]) > (double)mean[3] / sqrt(near[1]) + .1);
    kvmem_cache_free(&c);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "retrieve");
    RUN(attention_skips_unread_pages_in_every_path);
    RUN(a_long_lane_cut_into_chunks_skips_unread_pages);
    RUN(what_is_not_read_is_not_observed_and_pages_are_counted);
    RUN(notes_last_until_their_page_changes);
    RUN(an_entry_that_fails_says_so_and_leaks_nothing);
    RUN(actqkv_bias_weights_and_probe_are_the_cards);
    RUN(actqkv_tracks_mean_and_variance_as_the_formula_says);
    RUN(actqkv_entropy_lies_between_0_and_1);
    RUN(actqkv_layers_share_the_pages_of_a_token);
    RUN(actqkv_reads_everything_while_there_are_few_pages);
    RUN(actqkv_equals_its_rule_over_a_whole_run);
    RUN(actqkv_saved_copied_and_threaded_goes_on_alike);
    RUN(actqkv_works_with_equal_evictions_and_refuses_lanes_that_differ);
    RUN(actqkv_probe_leans_to_the_unusual_query);
    return test_end();
}
