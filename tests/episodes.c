/* Episodes that are read by what the query needs: spans of a lane and their representatives; InfLLM, EM-LLM with its
   two buffers, HCAM, LongMem. Each method once more in double precision, over the parts and distances it says. */
#define KVMEM_NO_DECODER
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"

/* ---- pure functions ---- */

static int filled(const int *size, int n, int cap) {
    int list[64], m = 0, sum = 0, i;
    for (i = 0; i < n; i++) if (kvmem__fill_add(list, &m, &sum, i, size[i], cap)) break;
    for (i = 0; i < m; i++) CHECK(list[i] == i);
    return sum;
}
TEST(a_budget_is_filled_to_the_nearer_side) {
    static const int a[3] = { 4, 4, 4 }, b[3] = { 4, 4, 3 }, one[1] = { 5 };
    CHECK(filled(a, 3, 10) == 8);
    CHECK(filled(b, 3, 10) == 11);
    CHECK(filled(a, 3, 8) == 8);   /* reached exactly: kept, as 4 is further from 8 */
    CHECK(filled(a, 3, 100) == 12);
    CHECK(filled(one, 1, 0) == 0 && filled(one, 1, -3) == 0);
    CHECK(filled(one, 1, 2) == 0 && filled(one, 1, 3) == 5);
}
TEST(spans_rank_by_falling_score_and_rising_number) {
    int trial, i, j, list[40];
    float score[40];
    for (trial = 0; trial < 300; trial++) {
        const int n = (int)(test_unit() * 40);
        for (i = 0; i < n; i++) { score[i] = (float)(int)(test_unit() * 6); list[i] = n - 1 - i; }
        kvmem__spans_rank(list, n, score);
        for (i = 0; i + 1 < n; i++) {
            const int a = list[i], b = list[i + 1];
            CHECK(score[a] > score[b] || (score[a] == score[b] && a < b));
        }
        for (i = 0; i < n; i++) { for (j = 0; j < n && list[j] != i; j++) {} CHECK(j < n); }
    }
}
/* The contiguity rule once more, on lists that are built plainly. */
static int in_list(const int *x, int n, int y) { int i; for (i = 0; i < n; i++) if (x[i] == y) return 1; return 0; }
static int plain_contiguity(int *buf, int nb, const int *sim, int ns, const int *len, int spans, int cap) {
    int fresh[200], out[400], n = 0, sum = 0, full = 0, i, k, old = 0, m;
    for (i = 0; i < ns && !full; i++)
        for (k = 0; k < 2 && !full; k++) {
            const int x = sim[i] + (k == 0 ? 1 : -1);
            if (x < 0 || x >= spans || in_list(sim, ns, x) || in_list(fresh, n, x)) continue;
            if (sum + len[x] < cap) { fresh[n++] = x; sum += len[x]; }
            else {
                full = 1;
                if (abs(cap - sum) > abs(sum + len[x] - cap)) { fresh[n++] = x; sum += len[x]; }
            }
        }
    if (n == 0) return nb;
    for (i = 0; i < n; i++) out[i] = fresh[n - 1 - i]; /* the first found comes last */
    m = n;
    if (nb > 0 && !full) {
        for (i = 0; i < nb; i++) old += len[buf[i]];
        if (old + sum < cap) {
            for (i = 0; i < n; i++) if (!in_list(buf, nb, out[i])) { buf[nb] = out[i]; nb++; }
            return nb;
        }
        for (i = nb - 1; i >= 0; i--) {
            const int x = buf[i];
            int stop = 0;
            if (in_list(out, m, x) || in_list(sim, ns, x)) continue;
            if (sum + len[x] >= cap) {
                stop = 1;
                if (abs(cap - sum) <= abs(sum + len[x] - cap)) break;
            }
            for (k = m; k > 0; k--) out[k] = out[k - 1];
            out[0] = x;
            m++;
            sum += len[x];
            if (stop) break;
        }
    }
    memcpy(buf, out, (size_t)m * sizeof *buf);
    return m;
}
TEST(em_contiguity_buffer_prefers_the_next_event) {
    static const int len[8] = { 4, 4, 4, 4, 4, 4, 4, 4 };
    int buf[16], now[16], nb, sim[2] = { 3, 6 };
    nb = kvmem__contiguity(buf, 0, 15, sim, 1, len, 8, 8, now);
    CHECK(nb == 2 && buf[0] == 2 && buf[1] == 4); /* 4 before 2, then turned round */
    nb = kvmem__contiguity(buf, 0, 15, sim, 1, len, 8, 4, now);
    CHECK(nb == 1 && buf[0] == 4);                /* forward first: recall by lag is not symmetric */
    nb = kvmem__contiguity(buf, nb, 15, sim + 1, 1, len, 8, 100, now);
    CHECK(nb == 3 && buf[0] == 4 && buf[1] == 5 && buf[2] == 7); /* both fit: appended */
    sim[0] = 0;
    nb = kvmem__contiguity(buf, nb, 15, sim, 1, len, 8, 13, now); /* 1 is new; of 7 5 4 fit two */
    CHECK(nb == 3 && buf[0] == 5 && buf[1] == 7 && buf[2] == 1);
    CHECK(kvmem__contiguity(buf, nb, 15, sim, 0, len, 8, 9, now) == 3); /* nothing similar: as it was */
    sim[0] = 7;
    nb = kvmem__contiguity(buf, 0, 15, sim, 1, len, 8, 100, now);
    CHECK(nb == 1 && buf[0] == 6);                /* no event after the last */
}
TEST(em_contiguity_is_the_plain_rule) {
    int trial, i, len[40], sim[12], a[200], b[200], now[201], na, nb;
    for (trial = 0; trial < 60; trial++) {
        const int spans = 2 + (int)(test_unit() * 38), cap = 1 + (int)(test_unit() * 60);
        int step;
        for (i = 0; i < spans; i++) len[i] = 1 + (int)(test_unit() * 12);
        na = nb = 0;
        for (step = 0; step < 8; step++) {
            const int want = 1 + (int)(test_unit() * 8);
            int ns = 0;
            for (i = 0; i < 30 && ns < want; i++) {
                const int x = (int)(test_unit() * spans);
                if (!in_list(sim, ns, x)) sim[ns++] = x;
            }
            na = kvmem__contiguity(a, na, 200, sim, ns, len, spans, cap, now);
            nb = plain_contiguity(b, nb, sim, ns, len, spans, cap);
            CHECK(na == nb && !memcmp(a, b, (size_t)na * sizeof *a));
        }
    }
}

/* ---- spans ---- */

/* A segment stage that cuts where it is told to. */
typedef struct cuts { int n; int32_t at[200]; } cuts;
static kvmem_status cut_there(const kvmem_view *v, int32_t from, int32_t to) {
    const cuts *x = (const cuts *)v->user;
    int i;
    for (i = 0; i < x->n; i++)
        if (x->at[i] >= from && x->at[i] < to) KVMEM__TRY(kvmem_view_cut(v, x->at[i]));
    return KVMEM_OK;
}
static const kvmem_segment_entry told = { { "told", "where it is told", "-", NULL, 0 }, cut_there, NULL };
static void use_cuts(world *w, cuts *x) {
    w->recipe.stage[KVMEM_SEGMENT].entry = &told.e;
    w->recipe.stage[KVMEM_SEGMENT].user = x;
}
/* The rule of the released code after a block: flags (flag[t]: an event starts at t), n tokens; start, len of spans. */
typedef struct pieces { int n, end, start[200], len[200]; } pieces;
static void plain_pieces(pieces *p, const unsigned char *flag, int n, int init, int local, int least, int most) {
    int size[200], ns = 0, i, t, acc = 0, at, st = p->end > init ? p->end : init, ed = n - local;
    if (ed - st < 1) return;
    for (at = t = st; t < ed; t++)
        if (flag[t] && t > at) { size[ns++] = t - at; at = t; }
    size[ns++] = ed - at;
    for (i = 0; i < ns; i++) {
        acc += size[i];
        while (acc >= most) { p->start[p->n] = st; p->len[p->n++] = most; st += most; acc -= most; }
        if (acc < least) continue;
        if (i < ns - 1) { p->start[p->n] = st; p->len[p->n++] = acc; st += acc; }
        acc = 0;
    }
    p->end = p->n ? p->start[p->n - 1] + p->len[p->n - 1] : 0;
}
TEST(spans_are_cut_as_the_comment_says) {
    static cuts x = { 3, { 3, 9, 20 } };
    static const int start[3] = { 0, 8, 16 }, len[3] = { 8, 8, 4 };
    world w; kvmem_cache c; kvmem_view v; kvmem__spans u;
    int i;
    REQUIRE(world_init(&w, 1, 2, 1, 8, 40, "retrieve=em-llm(init=0,local=5,mem=100,least=4,most=8)"));
    use_cuts(&w, &x);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 30, 30, KVMEM_PREFILL, NULL));
    v = kvmem__view_of(&c, 0, KVMEM_RETRIEVE);
    REQUIRE(kvmem__spans_read(&v, 0, &u) == KVMEM_OK && u.n == 3);
    for (i = 0; i < 3; i++) CHECK(kvmem__span_start(&u, i) == start[i] && kvmem__span_len(&u, i) == len[i]);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(spans_sinks_and_the_rest_are_a_partition_as_in_the_released_code) {
    static unsigned char flag[MAXT];
    static cuts x;
    int trial;
    for (trial = 0; trial < 24; trial++) {
        const int init = trial % 3 * 3, local = 4 + trial % 5, least = 1 + trial % 4, most = least + trial % 7;
        const double rate = trial % 4 == 3 ? 0 : 0.15;
        pieces p;
        world w; kvmem_cache c; kvmem_view v; kvmem__spans u;
        char recipe[160];
        int t, i, n;
        memset(&p, 0, sizeof p);
        sprintf(recipe, "retrieve=em-llm(init=%d,local=%d,mem=30,chunk=8,least=%d,most=%d)", init, local, least, most);
        REQUIRE(world_init(&w, 1, 2, 2, 4, 120, recipe));
        memset(flag, 0, sizeof flag);
        for (t = x.n = 0; t < 120; t++) if (test_unit() < rate) { flag[t] = 1; x.at[x.n++] = t; }
        use_cuts(&w, &x);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        v = kvmem__view_of(&c, 0, KVMEM_RETRIEVE);
        for (t = 0; t < 120; t = n) {
            n = t + 1 + (int)(test_unit() * 12); /* KVMEM__MIN would draw twice */
            if (n > 120) n = 120;
            CHECK_OK(feed(&w, &c, t, n, n - t, KVMEM_DECODE, NULL));
            plain_pieces(&p, flag, n, init, local, least, most);
            REQUIRE(kvmem__spans_read(&v, 1, &u) == KVMEM_OK && u.n == p.n);
            for (i = 0; i < p.n; i++) {
                CHECK(kvmem__span_start(&u, i) == p.start[i] && kvmem__span_len(&u, i) == p.len[i]);
                CHECK(p.start[i] == (i ? p.start[i - 1] + p.len[i - 1] : init)); /* no gap, no overlap */
                CHECK(p.len[i] <= most && p.len[i] >= least);
                if (rate <= 0) CHECK(p.len[i] == most); /* no flags: uniform blocks */
            }
        }
        kvmem_cache_free(&c); world_free(&w);
    }
}
TEST(spans_survive_truncation_saving_and_copies) {
    world w; kvmem_cache c, d, copy; bytes f = { 0, 0, 0 };
    kvmem_view v; kvmem__spans u;
    float *a, *b, *e;
    int i;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 160, "retrieve=infllm(init=3,local=12,block=6,topk=2,repr=2) page=8"));
    w.cfg.shape.rope = w.rope;
    a = outs(&w, 60); b = outs(&w, 60); e = outs(&w, 60);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(kvmem_cache_init(&d, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 20, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_save(&c, bytes_write, &f));
    CHECK_OK(kvmem_cache_load(&d, f.p, f.n));
    CHECK_OK(kvmem_cache_copy(&copy, &c));
    CHECK_OK(feed(&w, &c, 100, 160, 1, KVMEM_DECODE, a));
    CHECK_OK(feed(&w, &d, 100, 160, 1, KVMEM_DECODE, b));
    CHECK_OK(feed(&w, &copy, 100, 160, 1, KVMEM_DECODE, e));
    CHECK(same_out(&w, a, b, 60) && same_out(&w, a, e, 60));
    CHECK_OK(kvmem_cache_truncate(&c, 70)); /* spans ended at 3 + 14 * 6 = 87 and later; 70 cuts one in two */
    v = kvmem__view_of(&c, 0, KVMEM_RETRIEVE);
    REQUIRE(kvmem__spans_read(&v, 0, &u) == KVMEM_OK && u.n == 12);
    CHECK(kvmem__span_start(&u, 11) == 69 && kvmem__span_len(&u, 11) == 1);
    CHECK_OK(feed(&w, &c, 70, 130, 7, KVMEM_DECODE, NULL));
    REQUIRE(kvmem__spans_read(&v, 0, &u) == KVMEM_OK);
    for (i = 0; i < u.n; i++) CHECK(kvmem__span_start(&u, i) == (i ? kvmem__span_start(&u, i - 1) +
                                                                 kvmem__span_len(&u, i - 1) : 3));
    CHECK(kvmem__span_start(&u, u.n - 1) + kvmem__span_len(&u, u.n - 1) == 118);
    kvmem_cache_clear(&c);
    REQUIRE(kvmem__spans_read(&v, 0, &u) == KVMEM_OK && u.n == 0);
    CHECK_OK(feed(&w, &c, 0, 100, 20, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &c, 100, 160, 1, KVMEM_DECODE, b));
    CHECK(same_out(&w, a, b, 60));
    kvmem_cache_free(&c); kvmem_cache_free(&d); kvmem_cache_free(&copy);
    free(f.p); free(a); free(b); free(e); world_free(&w);
}

/* ---- attention over parts, in double ---- */

/* Logit of token t, layer l, head h with the key of token i, read at distance at most `far` (0: any). */
static double logit(const world *w, int t, int l, int h, int i, int far) {
    double q[64], k[64], s = 0;
    const int d = w->d, g = h / (w->H / w->G);
    int c;
    for (c = 0; c < d; c++) {
        q[c] = (double)row_q(w, t, l)[h * d + c];
        k[c] = (double)row_k(w, w->k, i, l)[g * d + c];
    }
    if (w->cfg.shape.rope) turn(q, d, &w->rope[l], far && t - i > far ? far : t - i);
    for (c = 0; c < d; c++) s += q[c] * k[c];
    return s / sqrt((double)d);
}
/* part[i], i <= t: -1 unread, 0 the ordinary part, above: a part with share[part] (share NULL: all in one). out (d);
   p (t + 1) the probabilities of the ordinary case, or NULL. */
static void attend_parts(const world *w, int t, int l, int h, const int *part, int parts, const double *share, int far,
                         double *out, double *p) {
    const int d = w->d, g = h / (w->H / w->G);
    double *s = (double *)malloc((size_t)(t + 1) * sizeof *s), top = -1e300, all = 0, pool = 0, shares = 0;
    int i, c, x;
    for (i = 0; i <= t; i++) {
        s[i] = part[i] < 0 ? -1e300 : logit(w, t, l, h, i, far);
        if (s[i] > top) top = s[i];
    }
    for (i = 0; i <= t; i++) { s[i] = part[i] < 0 ? 0 : exp(s[i] - top); all += s[i]; }
    for (i = 0; i <= t; i++) if (p) p[i] = s[i] / all;
    for (x = 0; share && x < parts; x++)
        if (share[x] >= 0) for (i = 0; i <= t; i++) if (part[i] == x) pool += s[i];
    for (x = 0; share && x < parts; x++) shares += share[x] > 0 ? share[x] : 0;
    for (c = 0; c < d; c++) {
        double sum = 0;
        for (x = 0; x < parts; x++) {
            double m = 0, o = 0;
            for (i = 0; i <= t; i++)
                if (part[i] == x) { m += s[i]; o += s[i] * (double)row_k(w, w->v, i, l)[g * d + c]; }
            if (!share || share[x] < 0) sum += o / all;
            else if (m > 0) sum += o / m * share[x] / shares * pool / all;
        }
        out[c] = sum;
    }
    free(s);
}

/* ---- InfLLM and EM-LLM, once more ---- */

typedef struct sim {
    int init, local, least, most, topk, repr, perhead, em, mem, chunk, far; /* em 0: blocks of `most` */
    double ctg;
    pieces p;
    unsigned char flag[MAXT];
    double acc[2][2][160], rep[2][2][160][8]; /* (L, G, T), (L, G, spans, d) */
    int buf[2][4][200], nb[2][4];
    int part[2][4][160];                      /* (L, H, T) of the newest token */
    double gap;                               /* smallest difference between two scores */
    int most_read;                            /* most tokens of spans that one head has read, beside C */
} sim;
enum { SL = 2, SH = 4, SG = 2, SD = 8, ST = 150 };
static double sim_score(const sim *s, const world *w, int l, int e, int head, int from, int n) {
    double score = 0;
    int h, t, c;
    for (h = 0; h < SH; h++) {
        double u[SD];
        if (head >= 0 && h != head) continue;
        for (c = 0; c < SD; c++) u[c] = 0;
        for (t = from; t < from + n; t++) {
            double x[SD];
            for (c = 0; c < SD; c++) x[c] = (double)row_q(w, t, l)[h * SD + c];
            turn(x, SD, &w->rope[l], s->local - 1);
            for (c = 0; c < SD; c++) u[c] += x[c] / n;
        }
        for (c = 0; c < SD; c++) score += u[c] * s->rep[l][h / 2][e][c];
    }
    return score;
}
/* The spans that head `head` (-1: all heads) reads for the block [from, from + n): list; returns how many. */
static int sim_choose(sim *s, const world *w, int l, int head, int from, int n, int *list) {
    double score[160];
    int order[160], i, j, m = 0, sum = 0, all = 0, k = head < 0 ? 0 : head;
    const int seen = from, total = from + n, gone = seen > s->local ? KVMEM__MIN(s->init, seen - s->local) : 0;
    const int rest = s->p.end > gone ? s->p.end : gone;
    const int older = total - rest - s->local > 0 ? total - rest - s->local : 0;
    const int C = s->init + s->chunk + s->mem - older - gone;
    const int near = s->ctg <= 0 ? 0 : s->ctg < 1 ? (int)(s->ctg * C + 1) : (int)s->ctg, cap = C - near;
    for (i = 0; i < s->p.n; i++) { score[i] = sim_score(s, w, l, i, head, from, n); order[i] = i; all += s->p.len[i]; }
    for (i = 0; i < s->p.n; i++)
        for (j = i + 1; j < s->p.n; j++) {
            s->gap = KVMEM__MIN(s->gap, fabs(score[i] - score[j]));
            if (score[order[j]] > score[order[i]]) { const int x = order[i]; order[i] = order[j]; order[j] = x; }
        }
    if (!s->em) {
        for (; m < s->topk && m < s->p.n; m++) list[m] = order[m];
        return m;
    }
    if (all <= cap) { memcpy(list, order, sizeof order); return s->p.n; }
    for (i = 0; i < s->p.n; i++) {
        const int b = s->p.len[order[i]];
        if (sum + b < cap) { list[m++] = order[i]; sum += b; continue; }
        if (cap - sum > sum + b - cap) { list[m++] = order[i]; sum += b; }
        break;
    }
    if (near > 0) {
        s->nb[l][k] = plain_contiguity(s->buf[l][k], s->nb[l][k], list, m, s->p.len, s->p.n, near);
        for (i = 0; i < s->nb[l][k]; i++) if (!in_list(list, m, s->buf[l][k][i])) list[m++] = s->buf[l][k][i];
    }
    for (i = sum = 0; i < m; i++) sum += s->p.len[list[i]];
    s->most_read = KVMEM__MAX(s->most_read, sum - C);
    return m;
}
/* Representatives of the spans that are new since `had`. */
static void sim_represent(sim *s, const world *w, int had) {
    int e, l, g, i, j, c;
    for (e = had; e < s->p.n; e++)
        for (l = 0; l < SL; l++)
            for (g = 0; g < SG; g++) {
                const int n = s->p.len[e], r = s->repr > 0 && s->repr < n ? s->repr : n;
                const double *acc = s->acc[l][g] + s->p.start[e];
                int used[160];
                memset(used, 0, sizeof used);
                for (c = 0; c < SD; c++) s->rep[l][g][e][c] = 0;
                for (i = 0; i < r; i++) {
                    int best = -1;
                    for (j = 0; j < n; j++)
                        if (!used[j] && (best < 0 || acc[j] > acc[best])) best = j;
                    used[best] = 1;
                    for (c = 0; c < SD; c++)
                        s->rep[l][g][e][c] += (double)row_k(w, w->k, s->p.start[e] + best, l)[g * SD + c] / r;
                }
            }
}
/* One block of n tokens; worst difference of out (n, L, H, d) from the model's. */
static double sim_block(sim *s, const world *w, int from, int n, const float *out) {
    int l, h, t, i, e, list[160], m = 0, had = s->p.n;
    double worst = 0, o[SD], p[160];
    for (l = 0; l < SL; l++)
        for (h = 0; h < SH; h++) {
            int *part = s->part[l][h];
            if (h == 0 || s->perhead) m = s->p.n ? sim_choose(s, w, l, s->perhead ? h : -1, from, n, list) : 0;
            for (i = 0; i < ST; i++) part[i] = i < s->init || i >= s->p.end ? 0 : -1;
            for (e = 0; e < m; e++) for (i = 0; i < s->p.len[list[e]]; i++) part[s->p.start[list[e]] + i] = 0;
            for (t = from; t < from + n; t++) {
                attend_parts(w, t, l, h, part, 1, NULL, s->far, o, p);
                for (i = 0; i < SD; i++)
                    worst = KVMEM__MAX(worst, fabs(o[i] - (double)out[((t - from) * SL + l) * SH * SD + h * SD + i]));
                for (i = 0; i <= t; i++) s->acc[l][h / 2][i] += p[i] / 2;
            }
        }
    plain_pieces(&s->p, s->flag, from + n, s->init, s->local, s->em ? s->least : s->most, s->most);
    sim_represent(s, w, had);
    return worst;
}
static void check_sim(sim *s, const char *recipe) {
    static cuts x;
    static float out[64 * SL * SH * SD];
    world w; kvmem_cache c;
    int t, n;
    double worst = 0, off;
    REQUIRE(world_init(&w, SL, SH, SG, SD, ST, recipe));
    w.cfg.shape.rope = w.rope;
    for (t = x.n = 0; t < ST && s->em; t++) if (test_unit() < 0.15) { s->flag[t] = 1; x.at[x.n++] = t; }
    if (s->em) use_cuts(&w, &x);
    s->gap = 1e9;
    s->most_read = -1000000;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    for (t = 0; t < ST; t += n) {
        n = t < 110 ? KVMEM__MIN(10 + t % 7, 110 - t) : 1;
        CHECK_OK(feed(&w, &c, t, t + n, n, t + n < 110 ? KVMEM_PREFILL : t < 110 ? KVMEM_PROMPT_END : KVMEM_DECODE,
                      out));
        off = sim_block(s, &w, t, n, out);
        worst = KVMEM__MAX(worst, off);
    }
    CHECK(s->p.n > 8);
    CHECK(s->gap > 1e-6);
    CHECK_NEAR(worst, 0, 3e-5);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(infllm_is_the_method_in_double) {
    static sim s;
    int k;
    for (k = 0; k < 4; k++) {
        memset(&s, 0, sizeof s);
        s.init = k == 3 ? 0 : 3; s.local = 16; s.most = 6; s.topk = 1 + k; s.repr = k == 1 ? 6 : 2; s.perhead = k == 2;
        s.far = k == 3 ? 0 : 15;
        check_sim(&s, k == 0 ? "retrieve=infllm(init=3,local=16,block=6,topk=1,repr=2) place=far(at=15)"
                  : k == 1 ? "retrieve=infllm(init=3,local=16,block=6,topk=2,repr=6) place=far(at=15) page=8"
                  : k == 2 ? "retrieve=infllm(init=3,local=16,block=6,topk=3,repr=2,perhead=1) place=far(at=15)"
                           : "retrieve=infllm(init=0,local=16,block=6,topk=4,repr=2)");
    }
}
TEST(em_is_the_method_in_double_and_reads_little_more_than_its_cap) {
    static sim s;
    int k;
    for (k = 0; k < 4; k++) {
        memset(&s, 0, sizeof s);
        s.em = 1; s.init = 3; s.local = 14; s.least = 3; s.most = 9; s.repr = 2; s.mem = 20; s.chunk = 17; s.far = 13;
        s.perhead = k == 2; s.ctg = k == 1 || k == 2 ? 0.3 : k == 3 ? 12 : 0;
        check_sim(&s, k == 0 ? "retrieve=em-llm(init=3,local=14,mem=20,chunk=17,least=3,most=9,repr=2) place=far(at=13)"
                  : k == 1 ? "retrieve=em-llm(init=3,local=14,mem=20,chunk=17,least=3,most=9,repr=2,contiguity=0.3) "
                             "place=far(at=13) page=5"
                  : k == 2 ? "retrieve=em-llm(init=3,local=14,mem=20,chunk=17,least=3,most=9,repr=2,contiguity=0.3,"
                             "perhead=1) place=far(at=13)"
                           : "retrieve=em-llm(init=3,local=14,mem=20,chunk=17,least=3,most=9,repr=2,contiguity=12) "
                             "place=far(at=13)");
        CHECK(s.most_read <= 9); /* working set: at most the cap and one event */
    }
}

/* ---- facts of all four ---- */

/* Outputs of tokens [from, T) are bit for bit those of another recipe. */
static int same_as(const char *recipe, const char *other, int T, int from, int block) {
    world w; kvmem_cache c; float *a, *b;
    int same = 0, k;
    if (!world_init(&w, 2, 4, 2, 8, T, recipe)) return 0;
    w.cfg.shape.rope = w.rope;
    a = outs(&w, T - from); b = outs(&w, T - from);
    for (k = 0; k < 2; k++) {
        kvmem_error e;
        if (k && kvmem_recipe_parse(&w.recipe, other, &e) != KVMEM_OK) { printf("  %s\n", e.text); break; }
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, from, 20, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, from, T, block, KVMEM_DECODE, k ? b : a));
        kvmem_cache_free(&c);
    }
    same = k == 2 && same_out(&w, a, b, T - from);
    free(a); free(b); world_free(&w);
    return same;
}
TEST(streams_within_the_window_are_dense) {
    static const char *const preset[4] = { "infllm", "em-llm", "hcam", "longmem" };
    static const char *const small[4] = {
        "retrieve=infllm(init=4,local=100,block=4,topk=1) place=far(at=99)",
        "retrieve=em-llm(init=4,local=100,mem=1,least=2,most=4) place=far(at=99)",
        "retrieve=hcam(chunk=4,topk=1,local=100)", "retrieve=longmem(local=100)" };
    int k;
    for (k = 0; k < 4; k++) {
        CHECK(same_as(preset[k], "full", 130, 80, 1));
        CHECK(same_as(small[k], "full", 100, 60, 1));
        CHECK(same_as(small[k], "full", 100, 60, 13));
    }
}
TEST(what_fits_is_read_once_and_whole) {
    static const char *const recipe[6] = {
        "retrieve=infllm(init=4,local=10,block=4,topk=100)", "retrieve=em-llm(init=4,local=10,mem=900,least=2,most=4)",
        "retrieve=em-llm(init=4,local=10,mem=900,least=2,most=4,contiguity=0.3) segment=fixed(size=3)",
        "retrieve=infllm(init=4,local=10,block=4,topk=100,perhead=1)", "retrieve=hcam(chunk=4,topk=64,mix=lse)",
        "retrieve=longmem(chunk=1,local=10,k=1000,mix=exact)" };
    int k;
    for (k = 0; k < 6; k++) {
        CHECK(same_as(recipe[k], "full", 130, 80, 1));
        CHECK(same_as(recipe[k], "full", 130, 80, 9));
    }
    CHECK(same_as("retrieve=infllm(init=4,local=10,block=4,topk=100) place=far(at=9)", "full place=far(at=9)", 130, 80,
                  1));
}
/* Two spans whose rows are exchanged: order is lost at the one far distance, so the output is the same. */
TEST(blocks_in_another_order_give_the_same_output) {
    static const char *const recipe[2] = {
        "retrieve=infllm(init=2,local=12,block=6,topk=9,repr=0) place=far(at=11)",
        "retrieve=em-llm(init=2,local=12,mem=60,chunk=10,least=6,most=6,repr=0) place=far(at=11)" };
    int k, x;
    for (k = 0; k < 2; k++) {
        world w; kvmem_cache c; float *a, *b;
        REQUIRE(world_init(&w, 1, 4, 2, 8, 60, recipe[k]));
        w.cfg.shape.rope = w.rope;
        a = outs(&w, 1); b = outs(&w, 1);
        for (x = 0; x < 2; x++) {
            size_t i;
            for (i = 0; x && i < 6 * 16; i++) { /* tokens 8..13 and 26..31 */
                float *p[2], y;
                p[0] = w.k; p[1] = w.v;
                y = p[0][8 * 16 + i]; p[0][8 * 16 + i] = p[0][26 * 16 + i]; p[0][26 * 16 + i] = y;
                y = p[1][8 * 16 + i]; p[1][8 * 16 + i] = p[1][26 * 16 + i]; p[1][26 * 16 + i] = y;
            }
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 0, 59, 59, KVMEM_PROMPT_END, NULL));
            CHECK_OK(feed(&w, &c, 59, 60, 1, KVMEM_DECODE, x ? b : a));
            kvmem_cache_free(&c);
        }
        for (x = 0; x < 32; x++) CHECK_NEAR(a[x], b[x], 1e-5);
        free(a); free(b); world_free(&w);
    }
}
TEST(equal_scores_take_the_lower_span_and_zero_rows_are_fine) {
    static const char *const recipe[5] = {
        "retrieve=infllm(init=0,local=4,block=4,topk=2)", "retrieve=infllm(init=0,local=4,block=4,topk=0)",
        "retrieve=em-llm(init=0,local=4,mem=8,chunk=0,least=2,most=4)", "retrieve=hcam(chunk=4,topk=2,local=4)",
        "retrieve=longmem(chunk=4,k=8,local=4,mix=exact)" };
    static const int groups[3][2] = { { 1, 1 }, { 4, 1 }, { 4, 4 } }; /* H, G */
    int k, s, t, h, i;
    for (k = 0; k < 5; k++)
        for (s = 0; s < 3; s++) {
            world w; kvmem_cache c; float *out;
            int part[40];
            double o[8];
            REQUIRE(world_init(&w, 1, groups[s][0], groups[s][1], 8, 40, recipe[k]));
            memset(w.k, 0, (size_t)(40 * w.G * 8) * 4);
            out = outs(&w, 40);
            CHECK_OK(kvmem_cache_init(&c, &w.cfg));
            CHECK_OK(feed(&w, &c, 0, 1, 1, KVMEM_PROMPT_END, out));
            CHECK_OK(feed(&w, &c, 1, 40, 1, KVMEM_DECODE, out + w.H * 8));
            t = 39;
            for (i = 0; i < 40; i++) part[i] = i < (k == 1 ? 0 : k == 2 ? 4 : 8) || i >= 32 ? 0 : -1;
            for (i = 32; i < 36; i++) part[i] = 0; /* 39 entries before the block: spans end at 32; 4 wait */
            for (h = 0; h < w.H; h++) {
                int x;
                if (k == 3) break; /* shares: below */
                attend_parts(&w, t, 0, h, part, 1, NULL, 0, o, NULL);
                for (x = 0; x < 8; x++) CHECK_NEAR(o[x], out[(t * w.H + h) * 8 + x], 2e-5);
            }
            kvmem_cache_free(&c); free(out); world_free(&w);
        }
}
TEST(lanes_that_differ_are_refused_unless_each_head_ranks) {
    static const char base[] = "score=random budget=40 sink=0 recent=1 when=step ";
    int k;
    for (k = 0; k < 3; k++) {
        char recipe[200];
        world w; kvmem_cache c;
        kvmem_status st;
        sprintf(recipe, "%s%s", base, k == 0 ? "retrieve=infllm(init=0,local=4,block=4,topk=2)" : k == 1
                ? "retrieve=infllm(init=0,local=4,block=4,topk=2,perhead=1)" : "retrieve=longmem(local=4)");
        REQUIRE(world_init(&w, 1, 4, 2, 8, 90, recipe));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 60, 30, KVMEM_PROMPT_END, NULL));
        quiet = 1;
        st = feed(&w, &c, 60, 90, 1, KVMEM_DECODE, NULL);
        quiet = 0;
        CHECK(st == (k ? KVMEM_OK : KVMEM_UNSUPPORTED));
        if (!k) CHECK(strstr(c.error.text, "must hold the same entries"));
        kvmem_cache_free(&c); world_free(&w);
    }
}
TEST(every_failed_allocation_is_an_error_and_leaks_nothing) {
    static const char *const recipe[3] = {
        "retrieve=em-llm(init=2,local=6,mem=12,chunk=4,least=2,most=4,contiguity=0.3)",
        "retrieve=hcam(chunk=4,topk=2,local=4)", "retrieve=longmem(chunk=2,k=4,local=4)" };
    int k;
    for (k = 0; k < 3; k++) {
        size_t fail;
        int ok = 0;
        world w;
        REQUIRE(world_init(&w, 1, 2, 1, 8, 30, recipe[k]));
        quiet = 1;
        for (fail = 1; !ok && fail < 2000; fail += 1 + fail / 40) {
            kvmem_cache c;
            test_heap heap;
            memset(&heap, 0, sizeof heap);
            heap.fail_at = fail;
            w.cfg.allocator = test_allocator(&heap);
            if (kvmem_cache_init(&c, &w.cfg) == KVMEM_OK) {
                kvmem_status st = feed(&w, &c, 0, 24, 12, KVMEM_PROMPT_END, NULL);
                if (st == KVMEM_OK) st = feed(&w, &c, 24, 30, 1, KVMEM_DECODE, NULL);
                CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY);
                ok = st == KVMEM_OK && heap.calls < fail;
            }
            kvmem_cache_free(&c);
            CHECK(!heap.live && !heap.wrong);
        }
        quiet = 0;
        CHECK(ok);
        world_free(&w);
    }
}

/* ---- HCAM ---- */

/* Chunks of 4 in [init, end) of 30 tokens, local 5: parts of head h for token t, n = 1: part[] and shares. */
static int hcam_parts(const world *w, int t, int l, int h, int init, int end, int topk, int *part, double *share) {
    const int r = w->H / w->G, g = h / r, n = (end - init) / 4;
    double score[40], top = -1e300;
    int i, j, c, x, k, used[40];
    memset(used, 0, sizeof used);
    for (i = 0; i <= t; i++) part[i] = i < init || i >= end ? 0 : -1;
    for (j = 0; j < n; j++) {
        score[j] = 0;
        for (c = 0; c < w->d; c++) {
            double q = 0, s = 0;
            for (x = g * r; x < (g + 1) * r; x++) q += (double)row_q(w, t, l)[x * w->d + c] / r;
            for (i = 0; i < 4; i++) s += (double)row_k(w, w->k, init + 4 * j + i, l)[g * w->d + c] / 4;
            score[j] += q * s / sqrt((double)w->d);
        }
    }
    share[0] = -1;
    for (k = 0; k < topk && k < n; k++) {
        int best = -1;
        for (j = 0; j < n; j++) if (!used[j] && (best < 0 || score[j] > score[best])) best = j;
        used[best] = 1;
        if (!k) top = score[best];
        share[1 + k] = exp(score[best] - top);
        for (i = 0; i < 4; i++) part[init + 4 * best + i] = 1 + k;
    }
    return 1 + k;
}
TEST(hcam_mixes_the_chunks_by_their_summaries) {
    static const char *const recipe[4] = {
        "retrieve=hcam(chunk=4,topk=1,local=5)", "retrieve=hcam(chunk=4,topk=3,init=2,local=5)",
        "retrieve=hcam(chunk=4,topk=3,init=2,local=5,mix=lse)",
        "retrieve=hcam(chunk=0,topk=2,local=5) segment=fixed(size=4)" };
    static const int init[4] = { 0, 2, 2, 0 }, topk[4] = { 1, 3, 3, 2 };
    int k, l, h, i, t;
    for (k = 0; k < 4; k++) {
        world w; kvmem_cache c; float *out;
        double o[8], share[8], worst = 0;
        int part[64];
        REQUIRE(world_init(&w, 2, 4, 2, 8, 40, recipe[k]));
        w.cfg.shape.rope = w.rope;
        out = outs(&w, 10);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 30, 30, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 30, 40, 1, KVMEM_DECODE, out));
        for (t = 30; t < 40; t++)
            for (l = 0; l < 2; l++)
                for (h = 0; h < 4; h++) {
                    int end = init[k] + (t - 5 - init[k]) / 4 * 4, parts; /* t tokens were there when it came */
                    if (k == 3 && (t - 5) % 4 == 0) end -= 4;             /* the last event's end is not known yet */
                    parts = hcam_parts(&w, t, l, h, init[k], end, topk[k], part, share);
                    /* k = 1: one part with a share is ordinary attention over it and the rest */
                    if (topk[k] == 1) for (i = 0; i <= t; i++) part[i] = part[i] > 0 ? 0 : part[i];
                    attend_parts(&w, t, l, h, part, parts, topk[k] == 1 ? NULL : share, 0, o, NULL);
                    if (k == 2) {
                        for (i = 0; i <= t; i++) part[i] = part[i] > 0 ? 0 : part[i];
                        attend_parts(&w, t, l, h, part, 1, NULL, 0, o, NULL);
                    }
                    for (i = 0; i < 8; i++)
                        worst = KVMEM__MAX(worst, fabs(o[i] - (double)out[((t - 30) * 2 + l) * 32 + h * 8 + i]));
                }
        CHECK_NEAR(worst, 0, 3e-5);
        kvmem_cache_free(&c); free(out); world_free(&w);
    }
}
TEST(hcam_chunks_that_are_not_opened_change_nothing) {
    world w; kvmem_cache c; float *out[2];
    int k, i, j, part[64], low = 0, n;
    double share[12];
    REQUIRE(world_init(&w, 1, 2, 1, 8, 41, "retrieve=hcam(chunk=4,topk=2,local=5)"));
    hcam_parts(&w, 40, 0, 0, 0, 32, 2, part, share);
    for (j = 0; j < 8; j++) if (part[4 * j] < 0) low = j; /* some chunk that is not opened */
    for (k = 0; k < 2; k++) {
        out[k] = outs(&w, 1);
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 40, 40, KVMEM_PROMPT_END, NULL));
        CHECK_OK(feed(&w, &c, 40, 41, 1, KVMEM_DECODE, out[k]));
        kvmem_cache_free(&c);
        for (n = 0; n < 4; n++) for (i = 0; i < 8; i++) row_k(&w, w.v, 4 * low + n, 0)[i] += 100;
    }
    CHECK(same_out(&w, out[0], out[1], 1));
    free(out[0]); free(out[1]); world_free(&w);
}
TEST(hcam_reads_the_first_prompt_whole) {
    static const char *const recipe[2] = { "retrieve=hcam(chunk=4,topk=1)", "full" };
    world w; kvmem_cache c; float *out[2];
    int k;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 60, recipe[0]));
    for (k = 0; k < 2; k++) {
        out[k] = outs(&w, 60);
        CHECK_OK(kvmem_recipe_parse(&w.recipe, recipe[k], NULL));
        CHECK_OK(kvmem_cache_init(&c, &w.cfg));
        CHECK_OK(feed(&w, &c, 0, 50, 10, KVMEM_PROMPT_END, out[k]));
        CHECK_OK(feed(&w, &c, 50, 60, 10, KVMEM_DECODE, out[k] + 50 * 64));
        kvmem_cache_free(&c);
    }
    CHECK(same_out(&w, out[0], out[1], 50));
    CHECK(!same_out(&w, out[0], out[1], 60));
    free(out[0]); free(out[1]); world_free(&w);
}

/* ---- LongMem ---- */

TEST(longmem_gates_window_and_bank) {
    static const char *const recipe[6] = {
        "retrieve=longmem(chunk=4,k=8,local=5)", "retrieve=longmem(chunk=4,k=8,local=5,gate=0)",
        "retrieve=longmem(chunk=4,k=8,local=5,gate=1)", "retrieve=longmem(chunk=4,k=8,local=5,mix=exact)",
        "retrieve=longmem(chunk=1,k=6,local=5,mix=exact)", "retrieve=longmem(chunk=4,k=8,local=5,bank=12,gate=0.25)" };
    static const double gate[6] = { 0.5, 0, 1, -1, -1, 0.25 };
    int k, l, h, i, j, c, t;
    for (k = 0; k < 6; k++) {
        const int chunk = k == 4 ? 1 : 4, want = k == 4 ? 6 : 2;
        world w; kvmem_cache cc; float *out;
        double worst = 0;
        REQUIRE(world_init(&w, 2, 4, 2, 8, 60, recipe[k]));
        w.cfg.shape.rope = w.rope;
        out = outs(&w, 60);
        CHECK_OK(kvmem_cache_init(&cc, &w.cfg));
        CHECK_OK(feed(&w, &cc, 0, 60, 1, KVMEM_DECODE, out));
        for (t = 0; t < 60; t++)
            for (l = 0; l < 2; l++)
                for (h = 0; h < 4; h++) {
                    const int end = t > 5 ? (t - 5) / chunk * chunk : 0, n = end / chunk;
                    const int first = k == 5 ? KVMEM__MAX(n - 3, 0) : 0;
                    double score[60], share[2], o[8];
                    int part[60], used[60];
                    memset(used, 0, sizeof used);
                    for (i = 0; i <= t; i++) part[i] = i < end ? -1 : 0;
                    for (j = 0; j < n; j++)
                        for (c = 0, score[j] = 0; c < 8; c++)
                            for (i = 0; i < chunk; i++)
                                score[j] += (double)row_q(&w, t, l)[h * 8 + c] *
                                            (double)row_k(&w, w.k, j * chunk + i, l)[h / 2 * 8 + c] / chunk;
                    for (c = 0; c < want && c < n - first; c++) {
                        int best = -1;
                        for (j = first; j < n; j++) if (!used[j] && (best < 0 || score[j] > score[best])) best = j;
                        used[best] = 1;
                        for (i = 0; i < chunk; i++) part[best * chunk + i] = gate[k] < 0 ? 0 : 1;
                    }
                    share[0] = 1 - gate[k];
                    share[1] = gate[k];
                    attend_parts(&w, t, l, h, part, 2, gate[k] < 0 || !n ? NULL : share, 0, o, NULL);
                    for (i = 0; i < 8; i++)
                        worst = KVMEM__MAX(worst, fabs(o[i] - (double)out[(t * 2 + l) * 32 + h * 8 + i]));
                }
        CHECK_NEAR(worst, 0, 3e-5);
        kvmem_cache_free(&cc); free(out); world_free(&w);
    }
}
TEST(longmem_may_be_of_one_layer) {
    world w; kvmem_cache c; float *out;
    double o[8], worst[2] = { 0, 0 };
    int l, h, i, part[60];
    REQUIRE(world_init(&w, 2, 4, 2, 8, 60, "retrieve=longmem(chunk=4,k=8,local=5,layer=1)"));
    out = outs(&w, 1);
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 59, 1, KVMEM_DECODE, NULL));
    CHECK_OK(feed(&w, &c, 59, 60, 1, KVMEM_DECODE, out));
    for (i = 0; i < 60; i++) part[i] = i < 52 ? -1 : 0;
    for (l = 0; l < 2; l++)
        for (h = 0; h < 4; h++) {
            attend_parts(&w, 59, l, h, part, 1, NULL, 0, o, NULL);
            for (i = 0; i < 8; i++) worst[l] = KVMEM__MAX(worst[l], fabs(o[i] - (double)out[l * 32 + h * 8 + i]));
        }
    CHECK_NEAR(worst[0], 0, 3e-5); /* its window alone */
    CHECK(worst[1] > 1e-2);
    kvmem_cache_free(&c); free(out); world_free(&w);
}
TEST(parameters_out_of_range_are_refused_by_name) {
    static const char *const bad[5][2] = {
        { "retrieve=infllm(block=0)", "block" }, { "retrieve=em-llm(contiguity=-1)", "contiguity" },
        { "retrieve=hcam(topk=0)", "topk" }, { "retrieve=longmem(gate=1.5)", "gate" },
        { "infllm retrieve=infllm(blocks=3)", "blocks" } };
    kvmem_recipe r;
    kvmem_error e;
    int k;
    for (k = 0; k < 5; k++)
        CHECK(kvmem_recipe_parse(&r, bad[k][0], &e) != KVMEM_OK && strstr(e.text, bad[k][1]));
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "episodes");
    RUN(a_budget_is_filled_to_the_nearer_side);
    RUN(spans_rank_by_falling_score_and_rising_number);
    RUN(em_contiguity_buffer_prefers_the_next_event);
    RUN(em_contiguity_is_the_plain_rule);
    RUN(spans_are_cut_as_the_comment_says);
    RUN(spans_sinks_and_the_rest_are_a_partition_as_in_the_released_code);
    RUN(spans_survive_truncation_saving_and_copies);
    RUN(infllm_is_the_method_in_double);
    RUN(em_is_the_method_in_double_and_reads_little_more_than_its_cap);
    RUN(streams_within_the_window_are_dense);
    RUN(what_fits_is_read_once_and_whole);
    RUN(blocks_in_another_order_give_the_same_output);
    RUN(equal_scores_take_the_lower_span_and_zero_rows_are_fine);
    RUN(lanes_that_differ_are_refused_unless_each_head_ranks);
    RUN(every_failed_allocation_is_an_error_and_leaks_nothing);
    RUN(hcam_mixes_the_chunks_by_their_summaries);
    RUN(hcam_chunks_that_are_not_opened_change_nothing);
    RUN(hcam_reads_the_first_prompt_whole);
    RUN(longmem_gates_window_and_bank);
    RUN(longmem_may_be_of_one_layer);
    RUN(parameters_out_of_range_are_refused_by_name);
    return test_end();
}
