/* Reading by entries: what kvmem_view_pick, _share and _stand_in ask for is what attention computes, in every path and
   at every place, against a double-precision oracle; indexes live as long as they say. */
#define KVMEM_NO_DECODER /* the memory layer alone; with the fast paths, for far keys have a tile of their own */
#include "test.h"
#include "world.h"

enum { PARTS = 3, MOST = 4 };
typedef struct chooser {
    int mode, far, calls, whole; /* mode 0: one part, 1: parts with shares, 2: stand-ins, 3: everything,
        4: whole pages */
    unsigned char part[4][4][MAXT]; /* layer, head: 1 + the part of an entry, 0: not read */
    double share[4][PARTS];         /* of a head's part, < 0: none */
    float logit[4][4][64][MOST], value[4][4][64][MOST][16];
    const float *row[4][4][64][MOST];
} chooser;
static double chance(int a, int b, int c, int d) {
    return kvmem__unit(kvmem__random((uint64_t)test_seed + (uint64_t)a, (uint64_t)b, (uint64_t)c, (uint64_t)d));
}
static kvmem_status choose(const kvmem_view *v, int n, const float *q, const int32_t *pos, unsigned char *const *read) {
    chooser *p = (chooser *)v->user;
    const int l = v->layer, H = v->cache->shape.n_heads, r = H / v->cache->shape.n_kv_heads;
    int h, t, i, x, c;
    (void)q; (void)pos; (void)read;
    p->calls++;
    for (h = 0; h < H; h++) {
        const int len = kvmem_view_count(v, h / r);
        memset(p->part[l][h], 0, MAXT);
        for (t = len - 1; t >= 0; t--) { /* in any order */
            int part = chance(1, l, h, t / 3) < 0.5 ? 1 + (int)(chance(2, l, h, t / 7) * PARTS) : 0;
            if (p->mode == 0 || p->mode == 2) part = part > 0;
            if (p->mode == 3) part = 1;
            if (p->mode == 4) part = chance(1, l, h / r, t / v->cache->recipe.page) < 0.5;
            if (t >= len - n) part = 1;
            p->part[l][h][t] = (unsigned char)part;
            if (part) KVMEM__TRY(kvmem_view_pick(v, h, part - 1, t, 1));
        }
        for (i = 0; i < PARTS && p->mode == 1; i++) { /* head 0: all parts, 1: the last two, 2: the first, 3: none */
            p->share[h][i] = h == 0 || (h == 1 && i) || (h == 2 && !i) ? 0.25 + i : -1;
            if (p->share[h][i] >= 0) KVMEM__TRY(kvmem_view_share(v, h, i, p->share[h][i]));
        }
        for (i = 0; i < n && p->mode == 2; i++) {
            for (x = 0; x < MOST; x++) {
                p->logit[l][h][i][x] = (float)(4 * chance(3, h, i, x) - 2);
                for (c = 0; c < v->cache->shape.head_dim; c++) p->value[l][h][i][x][c] = (float)chance(4 + c, h, i, x);
                p->row[l][h][i][x] = p->value[l][h][i][x];
            }
            KVMEM__TRY(kvmem_view_stand_in(v, h, i, h == 3 ? 0 : MOST, p->logit[l][h][i], p->row[l][h][i]));
        }
    }
    return KVMEM_OK;
}
static const kvmem_retrieve_entry entry = { { "choose", "by chance", "-", NULL, 0 }, choose, NULL, NULL };

/* Output o (d) of token t: shared parts each by themselves, their joint mass divided; all else one softmax. */
static void expected(const world *w, const chooser *p, int t, int first, int l, int h, double *o) {
    const int d = w->d, g = h / (w->H / w->G);
    double mass[PARTS], part[PARTS][16], all = 0, pool = 0, shares = 0;
    int i, c, x;
    memset(mass, 0, sizeof mass); memset(part, 0, sizeof part);
    for (c = 0; c < d; c++) o[c] = 0;
    for (i = 0; i <= t; i++) {
        double q[64], k[64], z = 0;
        const int y = i >= first ? 0 : (int)p->part[l][h][i] - 1;
        if (y < 0) continue;
        for (c = 0; c < d; c++) { q[c] = (double)row_q(w, t, l)[h * d + c]; k[c] = (double)row_k(w, w->k, i,
            l)[g * d + c]; }
        turn(q, d, &w->rope[l], t);
        turn(k, d, &w->rope[l], p->far && t - i > p->far ? t - p->far : i);
        for (c = 0; c < d; c++) z += q[c] * k[c];
        z = exp(z / sqrt((double)d));
        mass[y] += z;
        for (c = 0; c < d; c++) part[y][c] += z * (double)row_k(w, w->v, i, l)[g * d + c];
    }
    for (x = 0; x < PARTS; x++) {
        const double share = p->mode == 1 ? p->share[h][x] : -1;
        all += mass[x];
        if (share >= 0 && mass[x] > 0) { pool += mass[x]; shares += share; }
        else for (c = 0; c < d; c++) o[c] += part[x][c];
    }
    for (x = 0; x < PARTS; x++)
        for (c = 0; c < d && p->mode == 1; c++)
            if (p->share[h][x] >= 0 && mass[x] > 0) o[c] += pool * p->share[h][x] / shares * part[x][c] / mass[x];
    for (x = 0; x < MOST && p->mode == 2 && h != 3; x++) {
        const double z = exp((double)p->logit[l][h][t - first][x]);
        all += z;
        for (c = 0; c < d; c++) o[c] += z * (double)p->value[l][h][t - first][x][c];
    }
    for (c = 0; c < d; c++) o[c] /= all;
}
static double worst(const char *recipe, const char *backend, int mode, int T, int block, int threads) {
    static chooser p;
    const int last = T - block;
    world w; kvmem_cache c; float *out;
    double most = 0, o[16];
    int t, l, h, i;
    if (!world_init(&w, 2, 4, 2, 16, T, recipe)) return 1e9;
    memset(&p, 0, sizeof p);
    p.mode = mode;
    p.far = (int)kvmem__far(&w.recipe);
    w.cfg.shape.rope = w.rope;
    w.cfg.max_block = 64;
    w.cfg.threads = threads;
    w.cfg.backend = backend ? kvmem_backend_cpu(backend) : NULL;
    w.recipe.stage[KVMEM_RETRIEVE].entry = &entry.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &p;
    out = outs(&w, block);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, last, 50, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, last, T, block, KVMEM_DECODE, out));
    for (t = last; t < T; t++)
        for (l = 0; l < 2; l++)
            for (h = 0; h < 4; h++) {
                expected(&w, &p, t, last, l, h, o);
                for (i = 0; i < 16; i++) {
                    const double e = fabs(o[i] - (double)out[((t - last) * 2 + l) * 64 + h * 16 + i]);
                    if (!(e <= most)) most = e;
                }
            }
    kvmem_cache_free(&c); free(out); world_free(&w);
    return most;
}
static const char *const recipes[] = { "full page=16", "full page=7", "full page=16 place=far(at=20)",
                                       "full page=5 codec=f16_pre/f32 place=far(at=9)",
                                           "full codec=f16_pre/f16 page=16" };
TEST(picked_entries_alone_are_read) {
    int k, plain;
    for (k = 0; k < 5; k++)
        for (plain = 0; plain < 2; plain++) {
            const double tol = k > 2 ? 2e-2 : 3e-5;
            CHECK_NEAR(worst(recipes[k], plain ? "plain" : NULL, 0, 150, 1, 1), 0, tol);
            CHECK_NEAR(worst(recipes[k], plain ? "plain" : NULL, 0, 150, 33, 2), 0, tol);
        }
}
TEST(parts_with_shares_divide_their_joint_mass) {
    int k;
    for (k = 0; k < 3; k++) {
        CHECK_NEAR(worst(recipes[k], NULL, 1, 150, 1, 2), 0, 3e-5);
        CHECK_NEAR(worst(recipes[k], "plain", 1, 150, 20, 1), 0, 3e-5);
    }
}
TEST(summands_stand_in_for_entries) {
    CHECK_NEAR(worst(recipes[0], NULL, 2, 150, 1, 2), 0, 3e-5);
    CHECK_NEAR(worst(recipes[2], "plain", 2, 150, 20, 1), 0, 3e-5);
}
TEST(far_keys_are_read_at_one_distance_in_every_path) { /* everything is read: tiles, and token by token */
    int k, plain, block;
    for (k = 2; k < 4; k++)
        for (plain = 0; plain < 2; plain++)
            for (block = 1; block <= 61; block += 20) {
                CHECK_NEAR(worst(recipes[k], plain ? "plain" : NULL, 3, 190, block, 2), 0, k > 2 ? 2e-2 : 3e-5);
                CHECK_NEAR(worst(recipes[k], plain ? "plain" : NULL, 4, 190, block, 1), 0, k > 2 ? 2e-2 : 3e-5);
            }
}
TEST(all_picked_is_all_read_to_the_last_bit) {
    static chooser p;
    world w; kvmem_cache a, b;
    float *x, *y;
    REQUIRE(world_init(&w, 2, 4, 2, 16, 200, "full page=16"));
    p.mode = 3;
    w.cfg.shape.rope = w.rope;
    x = outs(&w, 200); y = outs(&w, 200);
    CHECK_OK(kvmem_cache_init(&a, &w.cfg));
    w.recipe.stage[KVMEM_RETRIEVE].entry = &entry.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &p;
    CHECK_OK(kvmem_cache_init(&b, &w.cfg));
    CHECK_OK(feed(&w, &a, 0, 190, 50, KVMEM_PROMPT_END, x));
    CHECK_OK(feed(&w, &b, 0, 190, 50, KVMEM_PROMPT_END, y));
    CHECK_OK(feed(&w, &a, 190, 200, 1, KVMEM_DECODE, x + 190 * 128));
    CHECK_OK(feed(&w, &b, 190, 200, 1, KVMEM_DECODE, y + 190 * 128));
    CHECK(!memcmp(x, y, 200 * 128 * sizeof(float)));
    kvmem_cache_free(&a); kvmem_cache_free(&b); free(x); free(y); world_free(&w);
}
TEST(observed_rows_add_up_to_1_over_what_was_read) {
    static chooser p;
    static float acc[MAXT];
    world w; kvmem_cache c; kvmem_view v;
    double sum = 0, hidden = 0;
    int t;
    REQUIRE(world_init(&w, 1, 2, 1, 16, 120, "score=h2o budget=1000 page=8"));
    memset(&p, 0, sizeof p);
    w.recipe.stage[KVMEM_RETRIEVE].entry = &entry.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &p;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 1, KVMEM_PROMPT_END, NULL));
    v = kvmem__view_of(&c, 0, KVMEM_SCORE);
    kvmem_view_acc(&v, 0, acc);
    for (t = 0; t < 100; t++) {
        sum += (double)acc[t];
        if (!p.part[0][0][t] && !p.part[0][1][t] && t < 99) hidden += (double)acc[t];
    }
    CHECK_NEAR(sum, 100, 1e-3);
    CHECK(hidden > 0 && hidden < 60); /* what is hidden now was seen when it came, alone */
    kvmem_cache_free(&c); world_free(&w);
}

/* ---- indexes ---- */
typedef struct indexer { int fresh, calls; size_t bytes; } indexer;
static kvmem_status keep_index(const kvmem_view *v, int n, const float *q, const int32_t *pos,
    unsigned char *const *read) {
    indexer *x = (indexer *)v->user;
    int fresh, i, g, bad = 0;
    size_t size;
    (void)n; (void)q; (void)pos; (void)read;
    for (g = 0; g < v->cache->shape.n_kv_heads; g++) {
        const int len = kvmem_view_count(v, g);
        int *index = (int *)kvmem_view_index(v, g, 0, &size, &fresh);
        const int known = fresh ? 0 : index[0];
        if (fresh && index) bad += index[0] != 0;
        index = (int *)kvmem_view_index(v, g, (size_t)(len + 1) * sizeof(int), &size, NULL);
        if (!index) return v->cache->error.status;
        bad += ((uintptr_t)(void *)index & 15) != 0 || size < (size_t)(len + 1) * sizeof(int);
        for (i = 0; i < known; i++) bad += index[1 + i] != 7 * i;
        for (; i < len; i++) { bad += index[1 + i] != 0; index[1 + i] = 7 * i; }
        index[0] = len;
        x->fresh += fresh;
        x->bytes = size;
    }
    x->calls++;
    return bad ? KVMEM_BAD_VALUE : KVMEM_OK;
}
TEST(an_index_lives_until_entries_leave) {
    static const kvmem_retrieve_entry keeper = { { "keeper", "an index", "-", NULL, 0 }, keep_index, NULL, NULL };
    indexer x = { 0, 0, 0 };
    world w; kvmem_cache c, copy; kvmem_bytes b; bytes f = { 0, 0, 0 };
    test_heap heap;
    memset(&heap, 0, sizeof heap);
    REQUIRE(world_init(&w, 1, 2, 1, 16, 200, "score=recency budget=1000 page=8 when=step"));
    w.cfg.allocator = test_allocator(&heap);
    w.recipe.stage[KVMEM_RETRIEVE].entry = &keeper.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &x;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 10, KVMEM_PROMPT_END, NULL));
    CHECK(x.fresh == 1 && x.calls == 10);
    CHECK_OK(kvmem_cache_copy(&copy, &c));
    CHECK_OK(feed(&w, &copy, 100, 110, 1, KVMEM_DECODE, NULL));
    CHECK(x.fresh == 1); /* the copy has it */
    CHECK_OK(kvmem_cache_truncate(&copy, 105));
    CHECK_OK(feed(&w, &copy, 105, 106, 1, KVMEM_DECODE, NULL));
    CHECK(x.fresh == 2);
    kvmem_cache_free(&copy);
    CHECK_OK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, NULL));
    CHECK(x.fresh == 2);
    CHECK_OK(kvmem_cache_save(&c, bytes_write, &f));
    CHECK_OK(kvmem_cache_load(&c, f.p, f.n));
    CHECK_OK(feed(&w, &c, 101, 102, 1, KVMEM_DECODE, NULL));
    CHECK(x.fresh == 3);
    c.recipe.amount.kind = KVMEM_COUNT;
    c.recipe.amount.value = 50; /* entries leave at every step */
    CHECK_OK(feed(&w, &c, 102, 105, 1, KVMEM_DECODE, NULL));
    CHECK(x.fresh == 5);
    kvmem_cache_bytes(&c, &b);
    CHECK(b.live.total == heap.live && b.live.meta > x.bytes);
    kvmem_cache_clear(&c);
    CHECK_OK(feed(&w, &c, 0, 5, 5, KVMEM_PREFILL, NULL));
    CHECK(x.fresh == 6);
    kvmem_cache_free(&c);
    CHECK(!heap.live && !heap.wrong);
    free(f.p); world_free(&w);
}
static kvmem_status wrongly(const kvmem_view *v, int n, const float *q, const int32_t *pos,
    unsigned char *const *read) {
    const int len = kvmem_view_count(v, 0);
    (void)n; (void)q; (void)pos; (void)read;
    switch (*(const int *)v->user) {
    case 1: return kvmem_view_pick(v, 2, 0, 0, 1);
    case 2: return kvmem_view_pick(v, 0, 0, 0, len + 1);
    case 3: return kvmem_view_pick(v, 0, -1, 0, 1);
    case 4: return kvmem_view_share(v, 0, 0, -1);
    case 5: return kvmem_view_stand_in(v, 0, 99, 1, NULL, NULL);
    case 6: return kvmem_view_pick(v, 0, 0, INT_MAX, 1);
    default: return KVMEM_OK;
    }
}
TEST(wrong_picks_are_refused) {
    static const kvmem_retrieve_entry bad = { { "bad", "picks wrongly", "-", NULL, 0 }, wrongly, NULL, NULL };
    world w; kvmem_cache c; kvmem_view v;
    int how;
    REQUIRE(world_init(&w, 1, 2, 1, 16, 30, "full"));
    w.recipe.stage[KVMEM_RETRIEVE].entry = &bad.e;
    w.recipe.stage[KVMEM_RETRIEVE].user = &how;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    how = 0;
    CHECK_OK(feed(&w, &c, 0, 10, 10, KVMEM_PROMPT_END, NULL));
    quiet = 1;
    for (how = 1; how <= 6; how++) {
        CHECK(feed(&w, &c, 10, 11, 1, KVMEM_DECODE, NULL) != KVMEM_OK && strstr(c.error.text, "kvmem_view_"));
        CHECK_OK(kvmem_cache_truncate(&c, 10));
    }
    quiet = 0;
    v = kvmem__view_of(&c, 0, KVMEM_RETRIEVE);
    CHECK(kvmem_view_pick(&v, 0, 0, 0, 1) == KVMEM_BAD_ARGUMENT); /* not while a layer is asked */
    how = 0;
    CHECK_OK(feed(&w, &c, 10, 12, 1, KVMEM_DECODE, NULL));
    kvmem_cache_free(&c); world_free(&w);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "picks");
    RUN(picked_entries_alone_are_read);
    RUN(parts_with_shares_divide_their_joint_mass);
    RUN(summands_stand_in_for_entries);
    RUN(far_keys_are_read_at_one_distance_in_every_path);
    RUN(all_picked_is_all_read_to_the_last_bit);
    RUN(observed_rows_add_up_to_1_over_what_was_read);
    RUN(an_index_lives_until_entries_leave);
    RUN(wrong_picks_are_refused);
    return test_end();
}
