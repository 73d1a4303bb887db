/* Indexes of keys: the graph of retrieve=nearest (thinning, reachability, exact search, insertion, recall against
   graphs of keys and k-means lists on queries of another distribution), the tree of retrieve=icecache (levels, pages,
   ranking), and both as retrieve entries against brute force in double precision. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#define KVMEM_NO_DECODER
#include "test.h"
#include "world.h"

static kvmem__rowset rows_of(const float *x, int d) {
    kvmem__rowset s;
    memset(&s, 0, sizeof s);
    s.x = x;
    s.d = d;
    s.dot = kvmem__dot_plain;
    return s;
}
static float *normals(int n, int d) {
    float *x = (float *)malloc((size_t)(n * d) * sizeof *x);
    int i;
    for (i = 0; i < n * d; i++) x[i] = (float)test_normal();
    return x;
}
/* A graph built over x (n, d) from t (nt, d); its edges are to be freed. */
static kvmem__graph graph_of(const float *x, int n, int d, const float *t, int nt, int N, int M, int Lq) {
    const kvmem__rowset s = rows_of(x, d);
    float *scratch = (float *)malloc(kvmem__graph_floats(n, N, M, Lq) * sizeof *scratch);
    kvmem__graph gr;
    gr.n = n;
    gr.most = gr.step = 2 * M;
    gr.entry = 0;
    gr.edge = (int32_t *)malloc((size_t)(2 * n * M) * sizeof *gr.edge);
    kvmem__graph_build(&gr, &s, t, nt, (size_t)d, N, M, Lq, scratch);
    free(scratch);
    return gr;
}
/* Rows that the entry leads to; edges checked on the way: no loops, no doubles, nothing out of range. */
static int reached(const kvmem__graph *gr, int *wrong) {
    int *todo = (int *)malloc((size_t)gr->n * sizeof *todo), have = 0, n = 0, i, j, k;
    char *seen = (char *)calloc((size_t)gr->n, 1);
    todo[have++] = gr->entry;
    seen[gr->entry] = 1;
    while (have) {
        const int32_t *e = gr->edge + (size_t)todo[--have] * (size_t)gr->step;
        for (n++, j = 0; j < gr->most && e[j] >= 0; j++)
            if (e[j] < gr->n && !seen[e[j]]) { seen[e[j]] = 1; todo[have++] = e[j]; }
    }
    for (i = 0; i < gr->n; i++)
        for (j = 0; j < gr->most && gr->edge[i * gr->step + j] >= 0; j++) {
            *wrong += gr->edge[i * gr->step + j] >= gr->n || gr->edge[i * gr->step + j] == i;
            for (k = 0; k < j; k++) *wrong += gr->edge[i * gr->step + j] == gr->edge[i * gr->step + k];
        }
    free(todo); free(seen);
    return n;
}

/* ---- the graph ---- */

/* Rows with given products: the Cholesky factor of their matrix. */
static void rows_with(const double *gram, int n, float *x) {
    double l[36];
    int i, j, k;
    for (i = 0; i < n; i++)
        for (j = 0; j < n; j++) {
            double s = gram[i * n + j];
            l[i * n + j] = 0;
            if (j > i) { x[i * n + j] = 0; continue; }
            for (k = 0; k < j; k++) s -= l[i * n + k] * l[j * n + k];
            l[i * n + j] = i == j ? sqrt(s) : s / l[j * n + j];
            x[i * n + j] = (float)l[i * n + j];
        }
}
TEST(graph_thinning_is_the_cards_example) { /* dist = -product: (a,p) 1, (b,p) 2, (c,p) 3, (a,b) 1.5, (a,c) 3.5 */
    static const double gram[16] = { 30, -1, -2, -3, -1, 30, -1.5, -3.5, -2, -1.5, 30, -9, -3, -3.5, -9, 30 };
    float x[16] = { 0 };
    const kvmem__rowset s = rows_of(x, 4);
    kvmem__found c[3];
    int32_t out[3];
    int i, n = 0;
    rows_with(gram, 4, x);
    for (i = 1; i < 4; i++) kvmem__found_add(c, &n, 3, i, kvmem__dot_plain(x, x + 4 * i, 4));
    CHECK(c[0].id == 1 && c[1].id == 2 && c[2].id == 3);
    CHECK(kvmem__graph_thin(&s, 0, c, 3, 2, out) == 2 && out[0] == 1 && out[1] == 3); /* b is thinned out, c stays */
    CHECK(kvmem__graph_thin(&s, 0, c, 3, 3, out) == 3 && out[2] == 2); /* and fills up if there is room */
    CHECK(kvmem__graph_thin(&s, 0, c, 3, 1, out) == 1 && out[0] == 1);
}
TEST(graph_found_are_the_best_in_order) {
    kvmem__found f[5];
    int n = 0, i;
    static const float dot[8] = { 1, 5, 5, -INFINITY, 3, 7, 1, 2 };
    for (i = 0; i < 8; i++) kvmem__found_add(f, &n, 5, 7 - i, dot[i]);
    CHECK(n == 5 && f[0].id == 2 && f[1].id == 5 && f[2].id == 6 && f[3].id == 3 && f[4].id == 0);
}
TEST(graph_every_row_can_be_reached) {
    static const int sizes[] = { 1, 2, 3, 17, 150, 400 };
    int k, kind, wrong = 0;
    for (k = 0; k < 6; k++)
        for (kind = 0; kind < 4; kind++) {
            const int n = sizes[k], d = 8;
            float *x = normals(n, d), *t = normals(n, d);
            kvmem__graph gr;
            int i;
            for (i = 0; i < n * d && kind == 1; i++) x[i] = x[i % d]; /* all rows equal */
            for (i = 0; i < n * d && kind == 2; i++) x[i] = i / d % 3 ? x[i] : 0; /* rows of zeros */
            for (i = 0; i < n * d && kind == 3; i++) t[i] += 3; /* queries that all like the same keys */
            gr = graph_of(x, n, d, t, kind == 3 ? n : n / 2, 12, kind == 2 ? 1 : 6, 10);
            CHECK(reached(&gr, &wrong) == n);
            free(gr.edge); free(x); free(t);
        }
    CHECK(!wrong);
}
TEST(graph_mending_finds_room_where_there_is_none) {
    enum { N = 40, M = 3 };
    int32_t edge[N * M];
    int mark[N], todo[N], i, j, wrong = 0;
    float *x = normals(N, 4);
    const kvmem__rowset s = rows_of(x, 4);
    kvmem__graph gr;
    gr.edge = edge; gr.n = N; gr.most = gr.step = M; gr.entry = 2;
    for (i = 0; i < N; i++) /* cliques of four: all lists are full, nothing leads on */
        for (j = 0; j < M; j++) edge[i * M + j] = i / 4 * 4 + (i % 4 + 1 + j) % 4;
    CHECK(reached(&gr, &wrong) == 4);
    CHECK(kvmem__graph_mend(&gr, &s, mark, todo) > 0);
    CHECK(reached(&gr, &wrong) == N);
    for (i = 0; i < N * M; i++) edge[i] = -1;
    CHECK(kvmem__graph_mend(&gr, &s, mark, todo) == N - 1);
    CHECK(reached(&gr, &wrong) == N && !wrong);
    free(x);
}
/* A search whose queue takes all has met all, best first. */
TEST(graph_search_with_a_long_queue_is_exact) {
    enum { N = 300, D = 12 };
    static kvmem__found f[N], all[N];
    static int mark[N];
    float *x = normals(N, D), *t = normals(N, D), *q = normals(5, D);
    const kvmem__rowset s = rows_of(x, D);
    kvmem__graph gr = graph_of(x, N, D, t, N, 16, 4, 12);
    int k, i, n, scanned;
    for (k = 0; k < 5; k++) {
        for (i = n = 0; i < N; i++) kvmem__found_add(all, &n, N, i, kvmem__dot_plain(q + k * D, x + i * D, D));
        scanned = 0;
        CHECK(kvmem__graph_search(&gr, &s, q + k * D, f, N, mark, k + 1, &scanned) == N && scanned == N);
        for (i = 0; i < N; i++) CHECK(f[i].id == all[i].id);
        scanned = 0;
        CHECK(kvmem__graph_search(&gr, &s, q + k * D, f, 20, mark, 100 + k, &scanned) == 20 && scanned < N);
    }
    free(gr.edge); free(x); free(t); free(q);
}
TEST(graph_a_later_query_with_the_same_pivot_makes_its_list) {
    float x[10] = { 9, 9, 1, 0, .9f, 0, 0, 1, 0, .9f }, t[4] = { 1, .5f, .5f, 1 }; /* row 0 is everyone's pivot */
    kvmem__graph gr = graph_of(x, 5, 2, t, 1, 3, 2, 1);
    kvmem__lists one;
    const kvmem__rowset s = rows_of(x, 2);
    int32_t edge[10];
    int count[5] = { 0, 0, 0, 0, 0 };
    kvmem__found room[16], near[3];
    one.edge = edge; one.count = count; one.step = one.most = one.keep = 2; one.room = room;
    kvmem__graph_query(&one, &s, 5, t, 3, near);
    CHECK(count[0] == 2 && edge[0] == 1 && edge[1] == 2);
    CHECK(count[1] == 1 && edge[2] == 0 && count[2] == 1 && edge[4] == 0); /* edges in return */
    kvmem__graph_query(&one, &s, 5, t + 2, 3, near);
    CHECK(count[0] == 2 && edge[0] == 3 && edge[1] == 4);
    CHECK(count[1] == 1 && count[3] == 1 && edge[6] == 0);
    free(gr.edge);
}
TEST(graph_rows_that_come_later_are_found) {
    enum { N = 260, HALF = 60, D = 8, M = 4 };
    static kvmem__found f[N];
    static int mark[N];
    float *x = normals(N, D), *t = normals(HALF, D);
    const kvmem__rowset s = rows_of(x, D);
    kvmem__graph gr = graph_of(x, HALF, D, t, HALF, 8, M, 16);
    int i, wrong = 0, scanned = 0, stamp = 0;
    gr.edge = (int32_t *)realloc(gr.edge, (size_t)(N * 2 * M) * sizeof *gr.edge);
    while (gr.n < N) {
        const float *row = x + gr.n++ * D;
        kvmem__graph_insert(&gr, &s, row, M, f, 16, mark, ++stamp);
        if (gr.n % 50 == 0) CHECK(reached(&gr, &wrong) == gr.n);
    }
    CHECK(reached(&gr, &wrong) == N && !wrong);
    CHECK(kvmem__graph_search(&gr, &s, t, f, N, mark, ++stamp, &scanned) == N);
    gr.n = 0; /* and from nothing */
    for (i = 0; i < 30; i++) {
        gr.n++;
        kvmem__graph_insert(&gr, &s, x + i * D, M, f, 16, mark, ++stamp);
    }
    CHECK(reached(&gr, &wrong) == 30 && !wrong);
    free(gr.edge); free(x); free(t);
}
/* Keys of many topics and few directions; queries are turned and moved away from them: recall of the best 10 when 5 %
   are looked at. What the paper claims: query-built graph > key-built graph > k-means lists, and with queries that are
   distributed like the keys the difference goes. */
static float recall_at(const float *x, int n, int d, const kvmem__graph *gr, const float *q, int nq, int share) {
    const kvmem__rowset s = rows_of(x, d);
    kvmem__found *f = (kvmem__found *)malloc((size_t)n * sizeof *f), best[10];
    int *mark = (int *)calloc((size_t)n, sizeof *mark), i, j, k, m, hit = 0, stamp = 0, cap, scanned, last = 0;
    for (k = 0; k < nq; k++) {
        for (i = m = 0; i < n; i++) kvmem__found_add(best, &m, 10, i, kvmem__dot_plain(q + k * d, x + i * d, d));
        for (cap = 10; cap <= n; cap += 5) { /* the longest queue that stays within the share */
            scanned = 0;
            m = kvmem__graph_search(gr, &s, q + k * d, f, cap, mark, ++stamp, &scanned);
            if (scanned > share && cap > 10) break;
            for (i = last = 0; i < 10; i++)
                for (j = 0; j < KVMEM__MIN(m, 10); j++) last += f[j].id == best[i].id;
            if (scanned > share) { last = 0; break; }
        }
        hit += last;
    }
    free(f); free(mark);
    return (float)hit / (float)(10 * nq);
}
static float recall_lists(const float *x, int n, int d, const float *q, int nq, int share) {
    const int lists = 40;
    float *c = (float *)malloc((size_t)(lists * d) * sizeof *c), score[40];
    float *work = (float *)malloc((size_t)kvmem__kmeans_floats(lists, n, d) * sizeof *work);
    kvmem__found best[10];
    int *own = (int *)malloc((size_t)n * sizeof *own), i, j, k, m, hit = 0;
    kvmem__kmeans(c, lists, x, n, d, 10, 1, work);
    for (i = 0; i < n; i++)
        for (own[i] = 0, j = 1; j < lists; j++)
            if (kvmem__distance2(x + i * d, c + j * d, d) < kvmem__distance2(x + i * d, c + own[i] * d, d)) own[i] = j;
    for (k = 0; k < nq; k++) {
        int left = share - lists; /* centres are looked at, too */
        for (i = m = 0; i < n; i++) kvmem__found_add(best, &m, 10, i, kvmem__dot_plain(q + k * d, x + i * d, d));
        for (j = 0; j < lists; j++) score[j] = kvmem__dot_plain(q + k * d, c + j * d, d);
        while (left > 0) {
            int at = 0;
            for (j = 1; j < lists; j++) if (score[j] > score[at]) at = j;
            score[at] = -INFINITY;
            for (i = 0; i < n; i++) left -= own[i] == at;
            for (i = 0; i < 10 && left >= 0; i++) hit += own[best[i].id] == at;
        }
    }
    free(c); free(work); free(own);
    return (float)hit / (float)(10 * nq);
}
static void mix(float *to, int n, int d, const float *base, int rank, double shift, double noise) {
    int i, j, c;
    for (i = 0; i < n; i++) {
        float z[16];
        for (j = 0; j < rank; j++) z[j] = (float)test_normal();
        for (c = 0; c < d; c++) {
            to[i * d + c] = (float)(noise * test_normal()) + (float)shift;
            for (j = 0; j < rank; j++) to[i * d + c] += z[j] * base[j * d + c];
        }
    }
}
TEST(graph_of_queries_beats_one_of_keys_beats_lists_where_queries_are_no_keys) {
    enum { N = 1200, D = 16, T = 900, Q = 60, SHARE = N / 10 };
    float *base = normals(8, D), *other = normals(8, D), *x = normals(N, D), *t = normals(T, D), *q = normals(Q, D);
    float of_queries, of_keys, lists;
    kvmem__graph a, b;
    int i;
    for (i = 0; i < 8 * D; i++) other[i] += .5f * base[i];
    mix(x, N, D, base, 6, 0, .5);
    mix(t, T, D, other, 6, 1, .5);
    mix(q, Q, D, other, 6, 1, .5);
    a = graph_of(x, N, D, t, T, 16, 6, 24);
    b = graph_of(x, N, D, x, N, 16, 6, 24);
    of_queries = recall_at(x, N, D, &a, q, Q, SHARE);
    of_keys = recall_at(x, N, D, &b, q, Q, SHARE);
    lists = recall_lists(x, N, D, q, Q, SHARE);
    printf("  recall of 10 at 10 %%: graph of queries %.3f, of keys %.3f, lists %.3f\n", (double)of_queries,
           (double)of_keys, (double)lists);
    CHECK(of_queries > of_keys && of_queries > lists);
    free(a.edge); free(b.edge); free(base); free(other); free(x); free(t); free(q);
}

/* ---- retrieve=nearest ---- */

/* Queries and keys of a stream as they are read, in double; the product of query (t, head h) and key i of layer l. */
static double turned_q[2][MAXT][64], turned_k[2][MAXT][32];
static void turn_all(const world *w) {
    int t, l, h, c;
    for (t = 0; t < w->T; t++)
        for (l = 0; l < w->L; l++) {
            for (c = 0; c < w->H * w->d; c++) turned_q[l][t][c] = (double)row_q(w, t, l)[c];
            for (c = 0; c < w->G * w->d; c++) turned_k[l][t][c] = (double)row_k(w, w->k, t, l)[c];
            for (h = 0; h < w->H; h++) turn(turned_q[l][t] + h * w->d, w->d, &w->rope[l], t);
            for (h = 0; h < w->G; h++) turn(turned_k[l][t] + h * w->d, w->d, &w->rope[l], t);
        }
}
static double product(const world *w, int t, int l, int h, int i) {
    const double *q = turned_q[l][t] + h * w->d, *k = turned_k[l][i] + h / (w->H / w->G) * w->d;
    double s = 0;
    int c;
    for (c = 0; c < w->d; c++) s += q[c] * k[c];
    return s;
}
/* The k of [from, to) with the largest products with one of the queries of tokens [t, t + n): into set. */
static int nearest_of(const world *w, int t, int n, int l, int h, int from, int to, int k, int *set) {
    static double best[MAXT];
    int i, j, m = 0;
    for (i = from; i < to; i++)
        for (best[i] = -1e300, j = 0; j < n; j++) best[i] = KVMEM__MAX(best[i], product(w, t + j, l, h, i));
    while (m < k && m < to - from) {
        int at = from;
        for (i = from; i < to; i++) if (best[i] > best[at]) at = i;
        best[at] = -1e301;
        set[m++] = at;
    }
    return m;
}
enum { NT = 130, NP = 90 };
/* Largest error of decoding in blocks of n against W and the exact topk=6 of Omega; first=4, last=8. */
static double worst_nearest(const char *recipe, int block, int insert, int threads) {
    world w; kvmem_cache c; float *out;
    double worst = 0, o[64];
    int t, l, h, i, m, n, set[MAXT];
    if (!world_init(&w, 2, 4, 2, 16, NT, recipe)) return 1e9;
    w.cfg.shape.rope = w.rope;
    w.cfg.threads = threads;
    out = outs(&w, NT - NP);
    turn_all(&w);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, NP, 30, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, NP, NT, block, KVMEM_DECODE, out));
    for (t = NP; t < NT; t++)
        for (l = 0; l < 2; l++)
            for (h = 0; h < 4; h++) {
                const int b = t - (t - NP) % block, to = (insert ? b : NP) - 8;
                for (i = m = 0; i <= t; i++) if (i < 4 || i >= to) set[m++] = i;
                n = KVMEM__MIN(block, NT - b);
                m += nearest_of(&w, b, n, l, h, 4, to, 6, set + m);
                oracle(&w, t, l, h, set, m, NULL, t, o);
                for (i = 0; i < 16; i++) {
                    const double e = fabs(o[i] - (double)out[((t - NP) * 2 + l) * 64 + h * 16 + i]);
                    if (!(e <= worst)) worst = e;
                }
            }
    kvmem_cache_free(&c); free(out); world_free(&w);
    return worst;
}
#define SMALL(index) "full page=16 retrieve=nearest(index=" index ",first=4,last=8,topk=6,near=8,edges=4,build=8"
TEST(nearest_is_the_static_set_and_the_exact_best_in_one_softmax) {
    CHECK_NEAR(worst_nearest(SMALL("flat") ")", 1, 0, 1), 0, 3e-5);
    CHECK_NEAR(worst_nearest(SMALL("flat") ",insert=1)", 1, 1, 2), 0, 3e-5);
    CHECK_NEAR(worst_nearest(SMALL("flat") ")", 7, 0, 2), 0, 3e-5); /* blocks of several queries */
    CHECK_NEAR(worst_nearest(SMALL("graph") ",queue=1000)", 1, 0, 1), 0, 3e-5);
    CHECK_NEAR(worst_nearest(SMALL("graph") ",queue=1000,insert=1)", 1, 1, 2), 0, 3e-5);
    CHECK_NEAR(worst_nearest(SMALL("graph") ",queue=1000,queries=16)", 5, 0, 1), 0, 3e-5);
    CHECK_NEAR(worst_nearest(SMALL("keygraph") ",queue=1000)", 3, 0, 1), 0, 3e-5);
    CHECK_NEAR(worst_nearest(SMALL("graph") ",queue=12,insert=1)", 1, 1, 1), 0, 2); /* not exact, but near */
}
/* Outputs of the whole stream under a recipe. */
static float *stream(const char *recipe, int T, int prompt, int block, int threads, int64_t *read, int64_t *there) {
    world w; kvmem_cache c; float *out;
    test_state = 77;
    if (!world_init(&w, 3, 4, 2, 8, T, recipe)) return NULL;
    w.cfg.shape.rope = w.rope;
    w.cfg.threads = threads;
    out = outs(&w, T);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, prompt, 50, KVMEM_PROMPT_END, out));
    CHECK_OK(feed(&w, &c, prompt, T, block, KVMEM_DECODE, out + (size_t)prompt * 3 * 32));
    kvmem_cache_pages(&c, read, there);
    kvmem_cache_free(&c); world_free(&w);
    return out;
}
TEST(what_is_read_whole_is_full_to_the_last_bit) {
    static const char *const recipe[] = {
        "retr-attn page=16", "retr-attn retrieve=nearest(index=flat,first=4,last=8,topk=400) page=16",
        "retr-attn retrieve=nearest(index=graph,first=4,last=8,topk=138,near=8) page=16",
        "icecache retrieve=icecache(budget=40) page=16", "icecache retrieve=icecache(dense=3) page=16" };
    int64_t read, there;
    float *full = stream("full page=16", 200, 150, 1, 1, &read, &there), *x;
    int k;
    for (k = 0; k < 5; k++) {
        x = stream(recipe[k], 200, 150, 1, 2, &read, &there);
        REQUIRE(x && full);
        CHECK(!memcmp(x, full, 200 * 3 * 32 * sizeof *x));
        CHECK(read == there);
        free(x);
    }
    free(full);
}
static const char *const choosing[] = {
    SMALL("graph") ",queue=20,insert=1)", SMALL("keygraph") ",queue=20)", SMALL("graph") ",queries=32)",
    "full page=16 retrieve=icecache(size=4,budget=12,sink=1,window=2,beam=4,dense=1)" };
TEST(threads_change_nothing_and_less_is_read) {
    int64_t read, there;
    float *full = stream("full page=16", 160, 130, 1, 1, &read, &there);
    int k;
    for (k = 0; k < 4; k++) {
        float *a = stream(choosing[k], 160, 130, 1, 1, &read, &there), *b;
        CHECK(read > 0 && read < there);
        b = stream(choosing[k], 160, 130, 1, 4, &read, &there);
        REQUIRE(a && b && full);
        CHECK(!memcmp(a, b, 160 * 3 * 32 * sizeof *a));
        CHECK(memcmp(a, full, 160 * 3 * 32 * sizeof *a) != 0);
        free(a); free(b);
    }
    free(full);
}
TEST(copied_loaded_truncated_and_evicted_they_go_on) {
    int k;
    for (k = 0; k < 4; k++) {
        world w; kvmem_cache c, copy, b; bytes f = { 0, 0, 0 };
        kvmem_bytes sum;
        test_heap heap;
        float *x, *y;
        memset(&heap, 0, sizeof heap);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 330, choosing[k]));
        w.cfg.shape.rope = w.rope;
        w.cfg.allocator = test_allocator(&heap);
        x = outs(&w, 40); y = outs(&w, 40);
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 200, 40, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 200, 220, 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &sum);
        CHECK(sum.live.total == heap.live);
        CHECK(c.lane[3].index_size > 0);
        REQUIRE_OK(kvmem_cache_copy(&copy, &c));
        CHECK_OK(feed(&w, &copy, 220, 250, 1, KVMEM_DECODE, x));
        CHECK_OK(feed(&w, &c, 220, 250, 1, KVMEM_DECODE, y));
        CHECK(same_out(&w, x, y, 30)); /* the index was copied */
        CHECK_OK(kvmem_cache_truncate(&copy, 150));
        CHECK_OK(feed(&w, &copy, 150, 170, 1, KVMEM_DECODE, NULL));
        kvmem_cache_free(&copy);
        CHECK_OK(kvmem_cache_save(&c, bytes_write, &f));
        REQUIRE_OK(kvmem_cache_init(&b, &w.cfg));
        CHECK_OK(kvmem_cache_load(&b, f.p, f.n));
        CHECK_OK(feed(&w, &b, 250, 330, 1, KVMEM_DECODE, NULL)); /* made anew */
        CHECK(b.lane[3].index_size > 0);
        kvmem_cache_free(&b); kvmem_cache_free(&c);
        CHECK(!heap.live && !heap.wrong);
        free(f.p); free(x); free(y); world_free(&w);
    }
}
TEST(a_failed_allocation_is_an_error_and_leaks_nothing) {
    int k;
    size_t at;
    for (k = 0; k < 4; k++) {
        kvmem_status st = KVMEM_NO_MEMORY;
        for (at = 1; st != KVMEM_OK && at < 4000; at += 1 + at / 4) {
            world w; kvmem_cache c;
            test_heap heap;
            memset(&heap, 0, sizeof heap);
            REQUIRE(world_init(&w, 2, 4, 2, 8, 90, choosing[k]));
            heap.fail_at = at;
            w.cfg.allocator = test_allocator(&heap);
            quiet = 1;
            st = kvmem_cache_init(&c, &w.cfg);
            if (st == KVMEM_OK) st = feed(&w, &c, 0, 80, 40, KVMEM_PROMPT_END, NULL);
            if (st == KVMEM_OK) st = feed(&w, &c, 80, 90, 1, KVMEM_DECODE, NULL);
            quiet = 0;
            CHECK(st == KVMEM_NO_MEMORY || (st == KVMEM_OK && heap.calls < at));
            kvmem_cache_free(&c);
            CHECK(!heap.live && !heap.wrong);
            world_free(&w);
        }
        CHECK(st == KVMEM_OK);
    }
}
TEST(entries_that_leave_make_the_index_anew) {
    int k;
    for (k = 0; k < 4; k++) {
        world w; kvmem_cache c;
        char text[300];
        sprintf(text, "%s score=random budget=70 when=every(20)", choosing[k]);
        REQUIRE(world_init(&w, 2, 4, 2, 8, 300, text));
        w.cfg.shape.rope = w.rope;
        REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 200, 40, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 200, 300, 1, KVMEM_DECODE, NULL));
        CHECK(kvmem_cache_lane_len(&c, 1, 1) <= 90);
        kvmem_cache_free(&c); world_free(&w);
    }
}
TEST(a_budget_in_bytes_is_refused) {
    int k;
    for (k = 0; k < 4; k++) {
        kvmem_recipe r; kvmem_error e;
        char text[300];
        sprintf(text, "%s budget=1MiB", choosing[k]);
        CHECK(kvmem_recipe_parse(&r, text, &e) == KVMEM_BAD_RECIPE && strstr(e.text, "index grows"));
    }
}
TEST(nearest_samples_every_second_query_when_there_are_many) {
    world w; kvmem_cache c; kvmem_view v;
    void *body;
    kvmem__near *x;
    int i, c2, j;
    REQUIRE(world_init(&w, 1, 4, 2, 8, 120, "full retrieve=nearest(first=0,last=0,topk=6,queries=16)"));
    w.cfg.shape.rope = w.rope;
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 13, KVMEM_PREFILL, NULL));
    v = kvmem__view_of(&c, 0, KVMEM_RETRIEVE);
    x = kvmem__near_at(&v, 1, 0, 0, &body);
    REQUIRE(x && x->seen == 100 && x->stride == 8 && x->samples == 13 && !x->built && x->grow);
    for (i = 0; i < 13; i++)
        for (j = 0; j < 2; j++) {
            double q[8];
            for (c2 = 0; c2 < 8; c2++) q[c2] = (double)row_q(&w, 8 * i, 0)[(2 + j) * 8 + c2];
            turn(q, 8, &w.rope[0], 8 * i);
            for (c2 = 0; c2 < 8; c2++) CHECK_NEAR(((float *)body)[(i * 2 + j) * 8 + c2], q[c2], 1e-5);
        }
    CHECK_OK(feed(&w, &c, 100, 101, 1, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 101, 120, 1, KVMEM_DECODE, NULL));
    x = kvmem__near_at(&v, 1, 0, 0, &body);
    CHECK(x->built && x->n == 101 && x->samples == 13);
    kvmem_cache_free(&c); world_free(&w);
}
/* ---- retrieve=icecache ---- */

typedef struct tree { kvmem__ice t; kvmem__ice_room a; kvmem__rowset s; void *mem; float *work; } tree;
/* A tree over the first n of cap rows x (cap, d), pages of P. */
static tree tree_of(const float *x, int n, int cap, int d, int P) {
    tree r;
    r.mem = calloc(1, kvmem__ice_bytes((size_t)cap, P));
    r.work = (float *)malloc(kvmem__ice_floats((size_t)cap, P, d, 4, cap) * sizeof *r.work);
    r.t = kvmem__ice_open(r.mem, P, cap);
    r.a = kvmem__ice_divide(r.work, (size_t)cap, P, d);
    r.s = rows_of(x, d);
    kvmem__ice_build(&r.t, &r.s, n, &r.a);
    return r;
}
static void tree_free(tree *r) { free(r->mem); free(r->work); }
static double far2(const tree *r, int a, int b) { /* squared distance of k' and k', in double */
    const float *x = r->s.x + a * r->s.d, *y = r->s.x + b * r->s.d;
    double s = 0, p = 0, q = 0;
    int c;
    for (c = 0; c < r->s.d; c++) {
        s += ((double)x[c] - (double)y[c]) * ((double)x[c] - (double)y[c]);
        p += (double)x[c] * (double)x[c];
        q += (double)y[c] * (double)y[c];
    }
    p = sqrt(KVMEM__MAX((double)r->t.h->most - p, 0)) - sqrt(KVMEM__MAX((double)r->t.h->most - q, 0));
    return s + p * p;
}
/* Every entry once on level 0 and on one page, its levels by the counter, a page's members of one parent: wrong ones.
   nearest: and its parent is the nearest there is. */
static int tree_wrong(const tree *r, int nearest) {
    const kvmem__ice *t = &r->t;
    const int n = t->h->n;
    int *level = (int *)calloc((size_t)n, sizeof *level), *todo = (int *)malloc((size_t)t->h->nodes * sizeof *todo);
    int *at = (int *)malloc((size_t)t->h->nodes * sizeof *at), *parent = (int *)calloc((size_t)n, sizeof *parent);
    int have = 0, wrong = 0, x, i, j, k, seen = 0;
    for (x = t->h->root; x >= 0; x = t->node[x].next) { at[have] = t->h->top; todo[have++] = x; }
    while (have) {
        const int l = at[--have], u = todo[have];
        seen++;
        level[t->node[u].token]++;
        for (x = l ? t->node[u].child : -1; x >= 0; x = t->node[x].next) {
            if (l == 1) parent[t->node[x].token] = u;
            for (k = 0; nearest && l == 1 && k < n; k += KVMEM__ICE_FIRST)
                wrong += far2(r, t->node[x].token, k) < far2(r, t->node[x].token, t->node[u].token) - 1e-4;
            at[have] = l - 1;
            todo[have++] = x;
        }
    }
    wrong += seen != t->h->nodes;
    for (i = 0; i < n; i++) wrong += level[i] != 1 + kvmem__ice_level(i);
    for (i = 0; i < n; i++) level[i] = 0;
    for (i = 0; i < t->h->pages; i++) {
        const int32_t *p = kvmem__ice_page(t, i);
        wrong += p[0] < 1 || p[0] > t->P;
        for (j = 1; j <= p[0]; j++) {
            level[t->node[p[j]].token]++;
            wrong += t->node[p[j]].child != i || parent[t->node[p[j]].token] != parent[t->node[p[1]].token];
        }
    }
    for (i = 0; i < n; i++) wrong += level[i] != 1;
    wrong += (size_t)t->h->nodes > kvmem__ice_nodes((size_t)n) ||
             (size_t)t->h->pages > kvmem__ice_pages((size_t)n, t->P);
    free(level); free(todo); free(at); free(parent);
    return wrong;
}
TEST(icecache_augmentation_is_the_cards_example) {
    static const float k[2][2] = { { 3, 4 }, { 1, 0 } }, q[2] = { .6f, .8f };
    static const double last[2] = { 0, 4.898979 }, far[2] = { 16, 24.8 };
    int i;
    for (i = 0; i < 2; i++) {
        const float norm2 = kvmem__dot_plain(k[i], k[i], 2), a = kvmem__ice_aug(25, norm2);
        const double dx = (double)(q[0] - k[i][0]), dy = (double)(q[1] - k[i][1]);
        CHECK_NEAR(a, last[i], 1e-6);
        CHECK_NEAR(dx * dx + dy * dy + (double)(a * a), far[i], 1e-5);
        CHECK_NEAR(25 + 1 - 2 * (double)kvmem__dot_plain(q, k[i], 2), far[i], 1e-5);
    }
    CHECK(kvmem__ice_aug(25, 26) == 0);
}
TEST(icecache_promotes_three_percent_and_a_fifth_of_these) {
    int i, n[5] = { 0, 0, 0, 0, 0 };
    for (i = 0; i < 34 * 125; i++) n[kvmem__ice_level(i)]++;
    CHECK(n[1] + n[2] + n[3] + n[4] == 125 && n[2] + n[3] + n[4] == 24 && n[3] + n[4] == 4 && n[4] == 0);
    CHECK(kvmem__ice_level(0) == 1 && kvmem__ice_level(34) == 1 && kvmem__ice_level(170) == 2);
}
TEST(icecache_every_entry_is_on_one_page) {
    static const int sizes[] = { 1, 2, 16, 35, 171, 700 }, pages[] = { 2, 3, 16 };
    int k, p, kind, i;
    for (k = 0; k < 6; k++)
        for (p = 0; p < 3; p++)
            for (kind = 0; kind < 3; kind++) {
                const int n = sizes[k], cap = n + 200;
                float *x = normals(cap, 6);
                tree r;
                for (i = 0; i < cap * 6 && kind; i++) x[i] = kind == 1 ? x[i % 6] : i / 6 % 4 ? x[i] : 0;
                for (i = 6 * n; i < cap * 6 && kind == 2; i++) x[i] *= 2; /* larger norms come later */
                r = tree_of(x, n, cap, 6, pages[p]);
                CHECK(tree_wrong(&r, kind == 0 && n < 900) == 0); /* fewer than 30 nodes on level 1: all looked at */
                while (r.t.h->n < cap) kvmem__ice_add(&r.t, &r.s, &r.a);
                CHECK(tree_wrong(&r, 0) == 0);
                tree_free(&r); free(x);
            }
}
TEST(icecache_grows_from_one_entry_as_it_is_built) {
    float *x = normals(400, 6);
    tree r = tree_of(x, 1, 400, 6, 8);
    while (r.t.h->n < 400) kvmem__ice_add(&r.t, &r.s, &r.a);
    CHECK(tree_wrong(&r, 0) == 0 && r.t.h->top == 2);
    tree_free(&r); free(x);
}
TEST(icecache_splits_two_kinds_apart) {
    float x[20];
    tree r;
    int i, j, kinds = 0;
    for (i = 0; i < 10; i++) { x[2 * i] = (float)(i % 2 ? 3 : -3) + .1f * (float)i; x[2 * i + 1] = 1; }
    r = tree_of(x, 9, 10, 2, 8);
    CHECK(r.t.h->pages == 2);
    for (i = 0; i < 2; i++)
        for (j = 1; j <= kvmem__ice_page(&r.t, i)[0]; j++)
            kinds += r.t.node[kvmem__ice_page(&r.t, i)[j]].token % 2 != r.t.node[kvmem__ice_page(&r.t, i)[1]].token % 2;
    CHECK(kinds == 0);
    tree_free(&r);
}
TEST(icecache_with_a_wide_beam_ranks_pages_exactly) {
    enum { N = 600, D = 8, P = 8 };
    static kvmem__found ranked[N], exact[N];
    float *x = normals(N, D), *q = normals(2 * 8, D);
    tree r = tree_of(x, N, N, D, P);
    int k, i, j, n, m, hit = 0;
    for (k = 0; k < 8; k++) {
        for (i = n = 0; i < r.t.h->pages; i++) {
            float best = -INFINITY;
            for (j = 1; j <= kvmem__ice_page(&r.t, i)[0]; j++) {
                const float *row = x + r.t.node[kvmem__ice_page(&r.t, i)[j]].token * D;
                best = KVMEM__MAX(best, kvmem__dot_plain(q + 2 * k * D, row, D));
                best = KVMEM__MAX(best, kvmem__dot_plain(q + (2 * k + 1) * D, row, D));
            }
            kvmem__found_add(exact, &n, N, i, best);
        }
        m = kvmem__ice_rank(&r.t, &r.s, q + 2 * k * D, 2, N, N, &r.a, ranked); /* two queries: the better counts */
        CHECK(m == r.t.h->pages);
        for (i = 0; i < m; i++) CHECK(ranked[i].id == exact[i].id);
        r.a.w.scanned = 0;
        m = kvmem__ice_rank(&r.t, &r.s, q + 2 * k * D, 2, 4, 10, &r.a, ranked);
        CHECK(m <= 10 && r.a.w.scanned < N / 2);
        for (i = 0; i < m; i++) for (j = 0; j < 10; j++) hit += ranked[i].id == exact[j].id;
    }
    CHECK(hit > 20);
    tree_free(&r); free(x); free(q);
}
TEST(icecache_heads_take_pages_in_turn) {
    static const kvmem__found ranked[6] = { { 9, 4, 0 }, { 8, 2, 0 }, { 7, 0, 0 },
                                            { 9, 4, 0 }, { 8, 5, 0 }, { 7, 1, 0 } };
    static const int m[2] = { 3, 3 }, few[2] = { 1, 2 };
    int mark[6];
    CHECK(kvmem__ice_in_turn(ranked, m, 2, 3, mark, 6) == 3 && mark[4] && mark[2] && mark[5] && !mark[0] && !mark[1]);
    CHECK(kvmem__ice_in_turn(ranked, few, 2, 3, mark, 6) == 2 && mark[4] && mark[5]);
}
/* Decoding with a beam that sees all: sinks, window, and the pages that brute force ranks, in turn. */
TEST(icecache_equals_its_rule_over_a_whole_run) {
    enum { T = 150, PROMPT = 100, P = 4, WANT = 3 };
    world w; kvmem_cache c; kvmem_view v; float out[128];
    double worst = 0, o[64], best[T];
    int t, g, j, i, k, n, rank, set[T], loose = 0;
    REQUIRE(world_init(&w, 2, 4, 2, 16, T, "icecache retrieve=icecache(size=4,budget=6,sink=1,beam=1000,dense=1)"));
    w.cfg.shape.rope = w.rope;
    turn_all(&w);
    REQUIRE_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, PROMPT, 30, KVMEM_PROMPT_END, NULL));
    for (t = PROMPT; t < T; t++) {
        CHECK_OK(feed(&w, &c, t, t + 1, 1, KVMEM_DECODE, out));
        v = kvmem__view_of(&c, 1, KVMEM_RETRIEVE);
        for (g = 0; g < 2; g++) {
            const kvmem__ice tr = kvmem__ice_of(kvmem_view_index(&v, g, 0, NULL, NULL), P);
            int order[2][T], chosen[T], some = 0, N = tr.h->n;
            CHECK(t - 4 - N >= 8 && t - 4 - N < 16); /* the window: two pages, and up to two that wait */
            memset(chosen, 0, sizeof chosen);
            for (j = 0; j < 2; j++) {
                for (i = 0; i < tr.h->pages; i++)
                    for (best[i] = -1e300, k = 1; k <= kvmem__ice_page(&tr, i)[0]; k++)
                        best[i] = KVMEM__MAX(best[i], product(&w, t, 1, 2 * g + j,
                                                              4 + tr.node[kvmem__ice_page(&tr, i)[k]].token));
                for (rank = 0; rank < WANT; rank++) {
                    for (i = k = 0; i < tr.h->pages; i++) if (best[i] > best[k]) k = i;
                    order[j][rank] = k;
                    best[k] = -1e301;
                }
            }
            for (rank = 0; rank < WANT; rank++)
                for (j = 0; j < 2; j++)
                    if (some < WANT && !chosen[order[j][rank]]) { chosen[order[j][rank]] = 1; some++; }
            for (i = n = 0; i <= t; i++) if (i < 4 || i >= 4 + N) set[n++] = i;
            for (i = 0; i < tr.h->pages; i++)
                for (k = 1; chosen[i] && k <= kvmem__ice_page(&tr, i)[0]; k++)
                    set[n++] = 4 + tr.node[kvmem__ice_page(&tr, i)[k]].token;
            loose += n < t;
            for (j = 2 * g; j < 2 * g + 2; j++) {
                oracle(&w, t, 1, j, set, n, NULL, t, o);
                for (i = 0; i < 16; i++) worst = KVMEM__MAX(worst, fabs(o[i] - (double)out[64 + j * 16 + i]));
            }
        }
    }
    CHECK_NEAR(worst, 0, 3e-5);
    CHECK(loose == 2 * (T - PROMPT));
    kvmem_cache_free(&c); world_free(&w);
}
/* Topics that come back: of the attention of queries on one of them, as many pages of alike keys hold more than as many
   pages of neighbours in time, both chosen by their best entry. */
TEST(icecache_pages_of_alike_keys_hold_more_than_pages_of_neighbours) {
    enum { N = 960, D = 16, P = 16, TOPICS = 40, PAGES = 6 };
    static kvmem__found ranked[PAGES];
    float *topic = normals(TOPICS, D), *x = normals(N, D), q[D];
    double alike = 0, neighbours = 0, p[N];
    tree r;
    int i, j, k, c, n;
    for (i = 0; i < N; i++) {
        const int of = i / 6 * 7 % TOPICS; /* six entries on a topic, then another one */
        for (c = 0; c < D; c++) x[i * D + c] = .4f * x[i * D + c] + 1.5f * topic[of * D + c];
    }
    r = tree_of(x, N, N, D, P);
    CHECK(tree_wrong(&r, 0) == 0);
    for (k = 0; k < TOPICS; k++) {
        double sum = 0;
        float best[N / P];
        int top[PAGES], idx[N / P];
        for (c = 0; c < D; c++) q[c] = topic[k * D + c] + .3f * (float)test_normal();
        for (i = 0; i < N; i++) sum += p[i] = exp((double)kvmem__dot_plain(q, x + i * D, D) / 4);
        for (i = 0; i < N / P; i++)
            for (best[i] = -INFINITY, j = 0; j < P; j++)
                best[i] = KVMEM__MAX(best[i], kvmem__dot_plain(q, x + (i * P + j) * D, D));
        kvmem__topk(top, best, N / P, PAGES, idx);
        for (i = 0; i < PAGES; i++) for (j = 0; j < P; j++) neighbours += p[top[i] * P + j] / sum / TOPICS;
        n = kvmem__ice_rank(&r.t, &r.s, q, 1, 30, PAGES, &r.a, ranked);
        for (i = 0; i < n; i++)
            for (j = 1; j <= kvmem__ice_page(&r.t, ranked[i].id)[0]; j++)
                alike += p[r.t.node[kvmem__ice_page(&r.t, ranked[i].id)[j]].token] / sum / TOPICS;
    }
    printf("  attention in %d pages of at most %d: alike %.3f, neighbours %.3f\n", PAGES, P, alike, neighbours);
    CHECK(alike > neighbours);
    tree_free(&r); free(topic); free(x);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "graph");
    RUN(graph_thinning_is_the_cards_example);
    RUN(graph_found_are_the_best_in_order);
    RUN(graph_every_row_can_be_reached);
    RUN(graph_mending_finds_room_where_there_is_none);
    RUN(graph_search_with_a_long_queue_is_exact);
    RUN(graph_a_later_query_with_the_same_pivot_makes_its_list);
    RUN(graph_rows_that_come_later_are_found);
    RUN(graph_of_queries_beats_one_of_keys_beats_lists_where_queries_are_no_keys);
    RUN(nearest_is_the_static_set_and_the_exact_best_in_one_softmax);
    RUN(nearest_samples_every_second_query_when_there_are_many);
    RUN(icecache_augmentation_is_the_cards_example);
    RUN(icecache_promotes_three_percent_and_a_fifth_of_these);
    RUN(icecache_every_entry_is_on_one_page);
    RUN(icecache_grows_from_one_entry_as_it_is_built);
    RUN(icecache_splits_two_kinds_apart);
    RUN(icecache_with_a_wide_beam_ranks_pages_exactly);
    RUN(icecache_heads_take_pages_in_turn);
    RUN(icecache_equals_its_rule_over_a_whole_run);
    RUN(icecache_pages_of_alike_keys_hold_more_than_pages_of_neighbours);
    RUN(what_is_read_whole_is_full_to_the_last_bit);
    RUN(threads_change_nothing_and_less_is_read);
    RUN(copied_loaded_truncated_and_evicted_they_go_on);
    RUN(a_failed_allocation_is_an_error_and_leaks_nothing);
    RUN(entries_that_leave_make_the_index_anew);
    RUN(a_budget_in_bytes_is_refused);
    return test_end();
}
