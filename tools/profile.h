/* profile.h - `kvmem profile`: measures what a model's heads and layers are like and writes it as a
   profile (>>profile in kvmem.h), by which budgets are divided.

   There is no second decoder: a session reads the texts, and a select entry that selects nothing, the
   probe, looks at every block through kvmem_view_* before anything could be removed. What it adds up
   stands with each measure below. Texts are the testbed's (corpus.h) for models of its vocabulary,
   else -f FILE. Included by kvmem.c, whose output, options and files it uses. */
#ifndef KVMEM_PROFILE_H
#define KVMEM_PROFILE_H
#include "evolve.h"
#include "sums.h"

enum { PROFILE_TEXTS = 8, PROFILE_STEPS = 64 };
#define PROFILE_SCORE "score=expected(future=512,sinks=4,eps=0.02)" /* preset lukv's */
typedef struct profile_run profile_run;
typedef void (*profile_see)(profile_run *p, const kvmem_view *v, int g);

struct profile_run {
    args own;
    const args *a;
    loaded l;
    const kvmem_model *m;
    int L, H, G, r, d;
    int corpus;                /* the vocabulary is the testbed's */
    ids text;                  /* of -f */
    corpus_test test;
    uint64_t seed;
    double started;
    kvmem_profile out;
    kvmem_profile_row row[16];
    /* the probe */
    kvmem_select_entry entry;
    profile_see see;
    kvmem_status bad;
    float *rows;               /* (r, n) of one query */
    size_t rows_cap;
    int *id, n;                /* the text that is being read */
    /* what the measures add up; see there */
    double *sum[2];
    float *keys, *att;
    int period, blocked, from, steps, window, hears;
    int pick[2];               /* a needle [a, b) */
};

/* ==== >>profile_run : the probe and the texts ================================================== */

static const kvmem_param profile_params[] = {
    { "window", 64, 1, 65536, NULL, 1, "queries that it sees of a block" }, KVMEM__END_PARAMS };
static kvmem_status profile_update(const kvmem_view *v, int g) {
    profile_run *p = (profile_run *)v->user;
    if (p->see) p->see(p, v, g);
    return p->bad;
}
static kvmem_status profile_watch(const kvmem_view *v, int n, const float *q, const int32_t *pos);
static const kvmem_memory profile_memory = { 0, NULL, profile_watch, profile_update, NULL };

static void *profile_zeros(size_t count, size_t item) {
    void *x = grow(NULL, count + 1, item);
    memset(x, 0, (count + 1) * item);
    return x;
}
/* A session with the probe in it, which sees the last `window` queries of a block. */
static int profile_open(profile_run *p, kvmem_session *s, const char *text, int window, int block) {
    kvmem_session_config cfg;
    kvmem_recipe r;
    kvmem_error e;
    int status;
    if (kvmem_recipe_parse(&r, text, &e) != KVMEM_OK) return fail("%s: %s", text, e.text);
    memset(&r.stage[KVMEM_SELECT], 0, sizeof r.stage[KVMEM_SELECT]);
    r.stage[KVMEM_SELECT].entry = &p->entry.e;
    r.stage[KVMEM_SELECT].par[0] = window;
    r.stage[KVMEM_SELECT].user = p;
    if ((status = session_config(p->a, &r, &cfg)) != OK) return status;
    cfg.max_block = block;
    p->bad = KVMEM_OK;
    p->window = window;
    return open_session(s, p->m, &cfg);
}
static int profile_feed(profile_run *p, kvmem_session *s, const int *id, int n, kvmem_phase phase) {
    (void)p;
    return kvmem_session_feed(s, id, n, phase, NULL, NULL) == KVMEM_OK ? OK : fail("%s", s->error.text);
}
/* Probabilities (r, n) that the i-th of the queries of the block gives the lane; NULL: p->bad. */
static const float *profile_row(profile_run *p, const kvmem_view *v, int g, int i) {
    const size_t need = (size_t)p->r * (size_t)kvmem_view_count(v, g);
    if (need > p->rows_cap) {
        p->rows_cap = 2 * need;
        p->rows = (float *)grow(p->rows, p->rows_cap, sizeof *p->rows);
    }
    p->bad = kvmem_view_row(v, g, i, p->rows);
    return p->bad == KVMEM_OK ? p->rows : NULL;
}
/* The queries of the block in flight are the ring's last: the first of them, and their number. */
static int profile_queries(const profile_run *p, const kvmem_view *v, int *n) {
    const int have = kvmem_view_queries(v);
    *n = v->cache->block_n < p->window ? v->cache->block_n : p->window;
    if (*n > have) *n = have;
    return have - *n;
}
static void profile_say(const profile_run *p, const char *what) {
    if (is_terminal(stderr)) fprintf(stderr, "\r%5.1f s  %-50s", now() - p->started, what);
    fflush(stderr);
}
/* Is the vocabulary the testbed's? */
static int profile_is_corpus(const loaded *l) {
    char text[16], own[16];
    int i;
    if (!l->tokenizer) return 0;
    for (i = 0; i < corpus_n_vocab(); i++) {
        const int n = corpus_text(i, text);
        const size_t m = i < l->model.n_vocab ? kvmem_token_bytes(l->tokenizer, i, 0, own, sizeof own) : 99;
        if (m != (size_t)n || memcmp(text, own, m)) return 0;
    }
    return 1;
}
/* Text i of n tokens into p->id. */
static int profile_text(profile_run *p, int i, int n) {
    corpus_eval_params q;
    p->id = (int *)grow(p->id, (size_t)n, sizeof *p->id);
    p->n = n;
    if (!p->corpus) {
        if (p->text.n < n) return fail("%s: %d tokens are too few, %d are needed", p->a->file, p->text.n, n);
        memcpy(p->id, p->text.id + (int)((int64_t)i * (p->text.n - n) / PROFILE_TEXTS), (size_t)n * sizeof *p->id);
        if (p->l.tokenizer && p->l.tokenizer->add_bos) p->id[0] = p->l.tokenizer->bos;
        return OK;
    }
    memset(&q, 0, sizeof q);
    q.suite = CORPUS_PPL;
    q.ctx = n;
    q.seed = p->seed + (uint64_t)i;
    if (corpus_test_make(&p->test, &q)) return fail("the testbed makes no text of %d tokens", n);
    memcpy(p->id, p->test.ids, (size_t)n * sizeof *p->id);
    return OK;
}
/* A token that is a word of its own, by chance. */
static int profile_any(const profile_run *p, uint64_t a, uint64_t b) {
    const kvmem_tokenizer *t = p->l.tokenizer;
    const int first = p->corpus ? CORPUS_BYTES + 256 : 0;
    uint64_t k;
    for (k = 0;; k++) {
        const int id = first + (int)(kvmem__random(p->seed, a, b, k) % (uint64_t)(p->m->n_vocab - first));
        char word[64];
        if (k > 99 || !t) return id;
        if (!kvmem_token_is_special(t, id) && kvmem_token_bytes(t, id, 0, word, sizeof word)) return id;
    }
}
/* A new row of the profile; its values, to be filled. */
static float *profile_add(profile_run *p, const char *name, kvmem_per per, int points) {
    kvmem_profile_row *r = &p->row[p->out.n_rows++];
    float *value;
    r->per = per;
    r->points = points;
    snprintf(r->name, sizeof r->name, "%s", name);
    value = (float *)profile_zeros((size_t)kvmem__profile_count(&p->out, per, points), sizeof *value);
    r->value = value;
    return value;
}
/* The row of KV heads: the highest of each group. */
static void profile_add_groups(profile_run *p, const char *name, const double *head, double scale) {
    float *x = profile_add(p, name, KVMEM_PER_KV_HEAD, 1);
    int i, j;
    for (i = 0; i < p->L * p->G; i++)
        for (j = 0; j < p->r; j++) {
            const float v = (float)(head[i * p->r + j] * scale);
            if (!j || v > x[i]) x[i] = v;
        }
}

/* ==== >>profile_repeat : echo and induction (RazorAttention, arXiv 2407.15891) =================
   Random tokens, the same again and again. The query at u (from the second copy on) may look at earlier
   occurrences of its own token (echo) or at what followed them (induction). A head's score is the mean over
   those queries of the probability that it gives them: 1 for a head that does nothing else. */
static void profile_see_repeat(profile_run *p, const kvmem_view *v, int g) {
    int n, i, j, u;
    const int first = profile_queries(p, v, &n);
    for (i = 0; i < n; i++) {
        const float *row;
        const int all = kvmem_view_count(v, g);
        u = v->cache->block_pos[v->cache->block_n - n + i] - 1; /* behind the begin token */
        if (u < p->period) continue;
        row = profile_row(p, v, g, first + i);
        if (!row) return;
        for (j = 0; j < p->r; j++) {
            const int at = (v->layer * p->G + g) * p->r + j;
            sums_repeat(row + (size_t)j * (size_t)all, u, p->period, &p->sum[0][at], &p->sum[1][at]);
        }
    }
}
static int profile_repeat(profile_run *p) {
    const int copies = 4, n = 1 + copies * p->period, heads = p->L * p->H;
    kvmem_session s;
    int i, status;
    p->id = (int *)grow(p->id, (size_t)n, sizeof *p->id);
    p->id[0] = p->l.tokenizer && p->l.tokenizer->bos >= 0 ? p->l.tokenizer->bos : profile_any(p, 1, 0);
    for (i = 1; i < n; i++) p->id[i] = profile_any(p, 2, (uint64_t)((i - 1) % p->period));
    for (i = 0; i < 2; i++) p->sum[i] = (double *)profile_zeros((size_t)heads, sizeof(double));
    p->see = profile_see_repeat;
    if ((status = profile_open(p, &s, "full", 128, 128)) == OK) {
        status = profile_feed(p, &s, p->id, n, KVMEM_PREFILL);
        kvmem_session_free(&s);
    }
    if (status == OK) {
        profile_add_groups(p, "echo", p->sum[0], 1.0 / ((copies - 1) * p->period));
        profile_add_groups(p, "induction", p->sum[1], 1.0 / ((copies - 1) * p->period));
    }
    return status;
}

/* ==== >>profile_needle : who finds what is copied (arXiv 2404.15574, 2508.02401) ===============
   A needle of m tokens at [a, b) of a context, and a question that makes the model copy it. At each step
   of the answer, x the token that it gives, head h: if its highest entry lies in the needle and is x,
   retrieval += 1 / m; for each entry x of the needle, semantic += its probability on the whole needle. Runs
   count whose answer has more than half of the needle's tokens; scores are means over them. */
static void profile_see_last(profile_run *p, const kvmem_view *v, int g) {
    const int n = kvmem_view_count(v, g);
    const float *row = profile_row(p, v, g, kvmem_view_queries(v) - 1);
    if (row)
        memcpy(p->att + (size_t)(v->layer * p->G + g) * (size_t)p->r * (size_t)p->n, row,
               (size_t)p->r * (size_t)n * sizeof *row);
}
/* One step that gave x with n entries to look at: into one (2, heads). */
static void profile_step(const profile_run *p, int x, int n, double *one) {
    const int heads = p->L * p->H;
    int i;
    for (i = 0; i < heads; i++)
        sums_needle(p->att + (size_t)(i / p->r) * (size_t)(p->r * p->n) + (size_t)(i % p->r) * (size_t)n, n, p->id,
                    p->pick[0], p->pick[1], x, &one[i], &one[heads + i]);
}
/* Ask: the question's tokens behind the context that s holds, answer greedily. Returns 1 if the run counts. */
static int profile_ask(profile_run *p, kvmem_session *s, const int *ask, int n_ask, int steps, double *one,
                       int *counts) {
    const int a = p->pick[0], m = p->pick[1] - a, at = (int)s->cache.tokens;
    int i, j, x = ask[n_ask - 1], found = 0, status = OK;
    unsigned char *used = (unsigned char *)profile_zeros((size_t)m, 1);
    p->n = at + n_ask + steps;
    p->att = (float *)grow(p->att, (size_t)(p->L * p->H) * (size_t)p->n, sizeof *p->att);
    memset(one, 0, 2 * (size_t)(p->L * p->H) * sizeof *one);
    p->see = NULL;
    if (n_ask > 1) status = profile_feed(p, s, ask, n_ask - 1, KVMEM_PREFILL);
    p->see = profile_see_last;
    for (i = 0; i < steps && status == OK; i++) {
        if ((status = profile_feed(p, s, &x, 1, KVMEM_DECODE)) != OK) break;
        x = best_token(s->logits, p->m->n_vocab);
        if (x < 0) status = fail("the logits are not finite");
        else profile_step(p, x, (int)s->cache.tokens, one);
        for (j = 0; j < m; j++)
            if (!used[j] && p->id[a + j] == x) { used[j] = 1; found++; break; }
    }
    free(used);
    *counts = status == OK && 2 * found > m;
    return status;
}
/* All questions about the context in p->id (n tokens): n_q prompts of the testbed, or one of its own. */
static int profile_context(profile_run *p, int n, double *one, double *all, int *runs) {
    const int heads = p->L * p->H, own = p->corpus ? p->test.n_q : 1;
    kvmem_session base, s;
    int i, k, counts = 0, status;
    p->see = NULL;
    if ((status = profile_open(p, &base, "full", 1, 256)) != OK) return status;
    status = profile_feed(p, &base, p->id, n, KVMEM_PREFILL);
    for (i = 0; i < own && status == OK; i++) {
        const corpus_prompt *q = p->corpus ? &p->test.q[i] : NULL;
        const int steps = q ? q->n_answer : p->pick[1] - p->pick[0];
        if (q) {
            p->pick[0] = q->told;
            p->pick[1] = q->told + q->n_answer;
        }
        if (kvmem_session_copy(&s, &base) != KVMEM_OK) status = fail("%s", s.error.text);
        else {
            status = profile_ask(p, &s, q ? q->ids : p->id + n, q ? q->n : 4, steps, one, &counts);
            kvmem_session_free(&s);
        }
        for (k = 0; k < 2 * heads && status == OK && counts; k++) all[k] += one[k];
        *runs += counts;
    }
    kvmem_session_free(&base);
    return status;
}
/* The c-th context: of the testbed, facts at five depths in two lengths, then notes; else random tokens that hold
   a needle, whose first four tokens come again at the end. Returns 0 behind the last. */
static int profile_make_context(profile_run *p, int c, int *n) {
    corpus_eval_params q;
    int i;
    if (c == 14) return 0;
    if (!p->corpus) {
        const int at = 8 + c * (512 - 64) / 13;
        *n = 512;
        p->id = (int *)grow(p->id, 516, sizeof *p->id);
        for (i = 0; i < 512; i++) p->id[i] = profile_any(p, 3 + (uint64_t)c, (uint64_t)i);
        for (i = 0; i < 4; i++) p->id[512 + i] = p->id[at + i];
        p->pick[0] = at + 4;
        p->pick[1] = at + 12;
        return 1;
    }
    memset(&q, 0, sizeof q);
    q.suite = c < 10 ? CORPUS_NEEDLE : CORPUS_COPIES;
    q.ctx = c < 5 || c >= 10 ? 512 : 1024;
    q.depth = c % 5 * 250;
    q.seed = p->seed + (uint64_t)c;
    if (corpus_test_make(&p->test, &q)) return -1;
    *n = p->test.n;
    p->id = (int *)grow(p->id, (size_t)*n, sizeof *p->id);
    memcpy(p->id, p->test.ids, (size_t)*n * sizeof *p->id);
    return 1;
}
static int profile_needle(profile_run *p) {
    const int heads = p->L * p->H;
    double *one = (double *)profile_zeros(2 * (size_t)heads, sizeof *one);
    double *all = (double *)profile_zeros(2 * (size_t)heads, sizeof *all);
    int c, n = 0, runs = 0, status = OK, i, k;
    for (c = 0; status == OK; c++) {
        const int more = profile_make_context(p, c, &n);
        if (more < 0) status = fail("the testbed makes no context of needles");
        if (more < 1) break;
        profile_say(p, "needles");
        status = profile_context(p, n, one, all, &runs);
    }
    if (status == OK && !runs)
        fprintf(stderr, "kvmem profile: no answer had half of its needle: no rows retrieval and semantic\n");
    for (k = 0; k < 2 && status == OK && runs; k++) {
        float *x = profile_add(p, k ? "semantic" : "retrieval", KVMEM_PER_HEAD, 1);
        for (i = 0; i < heads; i++) x[i] = (float)(all[k * heads + i] / runs);
    }
    free(one);
    free(all);
    return status;
}

/* ==== >>profile_keysim : layers whose keys change (EpiCache, arXiv 2509.17396) =================
   The same text twice: attention over all that came before, and over sinks, the second half of the block before
   and the own block, which is what a cache of that many newest entries gives. Cosine of the keys of 100 tokens
   (a block, if it is shorter) as one vector; mean over windows and KV heads. */
static void profile_see_keys(profile_run *p, const kvmem_view *v, int g) {
    const int n = v->cache->block_n, all = kvmem_view_count(v, g), d = p->d, w = p->steps;
    const int from = v->cache->block_pos[0], lane = v->layer * p->G + g;
    float *at = p->keys + ((size_t)lane * (size_t)p->n + (size_t)from) * (size_t)d, *x;
    int t, i;
    if (!p->blocked) {
        kvmem_view_keys(v, g, all - n, n, at);
        return;
    }
    x = (float *)grow(NULL, (size_t)n * (size_t)d, sizeof *x);
    kvmem_view_keys(v, g, all - n, n, x);
    for (t = 0; t < n; t++) {
        double *c = p->sum[0] + 3 * ((size_t)lane * (size_t)(p->n / w + 1) + (size_t)((from + t) / w));
        for (i = 0; i < d; i++) {
            const double a = (double)x[t * d + i], b = (double)at[t * d + i];
            c[0] += a * b;
            c[1] += a * a;
            c[2] += b * b;
        }
    }
    free(x);
}
static int profile_keysim(profile_run *p, int n) {
    const int block = n / 8, lanes = p->L * p->G, windows = n / (block < 100 ? block : 100) + 1;
    char text[120];
    kvmem_session s;
    float *x;
    int status, l, i, pass;
    if ((status = profile_text(p, 0, n)) != OK) return status;
    p->steps = block < 100 ? block : 100;
    p->keys = (float *)grow(p->keys, (size_t)lanes * (size_t)n * (size_t)p->d, sizeof *p->keys);
    free(p->sum[0]);
    p->sum[0] = (double *)profile_zeros(3 * (size_t)lanes * (size_t)windows, sizeof(double));
    p->see = profile_see_keys;
    for (pass = 0; pass < 2 && status == OK; pass++) {
        profile_say(p, "keys under a block mask");
        p->blocked = pass;
        if (pass)
            snprintf(text, sizeof text, "score=recency budget=%d sink=%d when=block", block / 2 + block / 32,
                     block / 32);
        else snprintf(text, sizeof text, "full");
        if ((status = profile_open(p, &s, text, 1, block)) != OK) return status;
        status = profile_feed(p, &s, p->id, n, KVMEM_PREFILL);
        kvmem_session_free(&s);
    }
    if (status != OK) return status;
    x = profile_add(p, "keysim", KVMEM_PER_LAYER, 1);
    for (l = 0; l < p->L; l++) {
        double sum = 0;
        int many = 0;
        for (i = 0; i < p->G * windows; i++) {
            const double *c = p->sum[0] + 3 * ((size_t)(l * p->G) * (size_t)windows + (size_t)i);
            if (!(c[1] > 0) || !(c[2] > 0)) continue;
            sum += c[0] / sqrt(c[1] * c[2]);
            many++;
        }
        x[l] = (float)(many ? sum / many : 1);
    }
    return OK;
}

/* ==== >>profile_error : layers that suffer from a tiny cache (CompressKV, arXiv 2508.02401) ====
   At the end of a prompt the four heads that lead row semantic vote with the last 8 queries; 24 entries and the
   last 8 would stay. At each following token, from the same query and the full cache's entries:
     e = |W_O (o_tiny - o_full)| / (|W_O o_full| + 1e-5),   o_tiny: softmax over what would have stayed
   summed over tokens and texts, then scaled to sum 1 over the layers. */
static void profile_see_votes(profile_run *p, const kvmem_view *v, int g) {
    int n, i, j, t;
    const int first = profile_queries(p, v, &n), all = kvmem_view_count(v, g);
    for (i = n < 8 ? 0 : n - 8; i < n; i++) {
        const float *row = profile_row(p, v, g, first + i);
        for (j = 0; j < p->r && row; j++)
            for (t = 0; t < all && t < p->from; t++)
                p->att[(size_t)((v->layer * p->G + g) * p->r + j) * (size_t)p->from + (size_t)t] += row[j * all + t];
    }
}
static void profile_see_outputs(profile_run *p, const kvmem_view *v, int g) {
    const int n = kvmem_view_count(v, g), d = p->d;
    const unsigned char *stays = (const unsigned char *)(const void *)p->keys + (size_t)v->layer * (size_t)p->from;
    const float *row = profile_row(p, v, g, kvmem_view_queries(v) - 1);
    float *x;
    int j, t, i;
    if (!row) return;
    x = (float *)grow(NULL, (size_t)n * (size_t)d, sizeof *x);
    kvmem_view_values(v, g, 0, n, x);
    for (j = 0; j < p->r; j++) {
        double *o = p->sum[0] + 2 * (size_t)(((v->layer * p->G + g) * p->r + j) * d), kept = 0;
        memset(o, 0, 2 * (size_t)d * sizeof *o);
        for (t = 0; t < n; t++) {
            const double w = (double)row[(size_t)j * (size_t)n + (size_t)t];
            const int in = t >= p->from || stays[t];
            kept += in ? w : 0;
            for (i = 0; i < d; i++) {
                o[i] += w * (double)x[t * d + i];
                if (in) o[d + i] += w * (double)x[t * d + i];
            }
        }
        for (i = 0; i < d; i++) o[d + i] = kept > 0 ? o[d + i] / kept : 0;
    }
    free(x);
}
/* Which of the first p->from entries of each layer would stay: p->keys as bytes. */
static void profile_tiny(profile_run *p, const float *semantic) {
    unsigned char *stays = (unsigned char *)(void *)p->keys;
    const int n = p->from, m = n - 8;
    int *idx = (int *)grow(NULL, 2 * (size_t)(n + p->H), sizeof *idx), l, h, t, voters;
    float *vote = (float *)grow(NULL, 2 * (size_t)n, sizeof *vote);
    for (l = 0; l < p->L; l++) {
        memset(vote, 0, (size_t)n * sizeof *vote);
        voters = p->H;
        for (h = 0; h < p->H; h++) idx[h] = h;
        if (semantic) voters = kvmem__topk(idx, semantic + l * p->H, p->H, 4, idx + p->H);
        for (h = 0; h < voters; h++)
            for (t = 0; t < n; t++) vote[t] += p->att[(size_t)(l * p->H + idx[h]) * (size_t)n + (size_t)t];
        kvmem__pool(vote + n, vote, m, 5, 0);
        memset(stays + (size_t)l * (size_t)n, 0, (size_t)m);
        memset(stays + (size_t)l * (size_t)n + m, 1, 8);
        h = kvmem__topk(idx, vote + n, m, 24, idx + n);
        for (t = 0; t < h; t++) stays[(size_t)l * (size_t)n + (size_t)idx[t]] = 1;
    }
    free(idx);
    free(vote);
}
/* Add one token's errors to p->sum[1] (L). */
static void profile_errors(profile_run *p, kvmem_session *s) {
    const kvmem_backend *b = s->backend;
    const int width = p->H * p->d, e = p->m->n_embd;
    float *x = (float *)grow(NULL, 2 * (size_t)(width + e), sizeof *x), *y = x + 2 * width;
    int l, h, i;
    for (l = 0; l < p->L; l++) {
        const kvmem_tensor *w = &p->m->layer[l].o;
        const size_t scratch = b->matmul_scratch(b, w, 2, 1);
        void *room = grow(NULL, scratch + 1, 1);
        double full = 0, off = 0;
        for (h = 0; h < p->H; h++)
            for (i = 0; i < p->d; i++) {
                const double *o = p->sum[0] + 2 * (size_t)((l * p->H + h) * p->d);
                x[h * p->d + i] = (float)o[i];
                x[width + h * p->d + i] = (float)(o[p->d + i] - o[i]);
            }
        b->matmul(b, y, w, x, 2, room, 1);
        for (i = 0; i < e; i++) {
            full += (double)y[i] * (double)y[i];
            off += (double)y[e + i] * (double)y[e + i];
        }
        p->sum[1][l] += sqrt(off) / (sqrt(full) + 1e-5);
        free(room);
    }
    free(x);
}
static int profile_error(profile_run *p, int n) {
    const kvmem_profile_row *semantic = kvmem_profile_find(&p->out, "semantic");
    const int heads = p->L * p->H, tail = 32;
    kvmem_session s;
    double sum = 0;
    float *x;
    int i, t, l, status = OK;
    p->from = n - tail;
    for (i = 0; i < 2; i++) free(p->sum[i]);
    p->sum[0] = (double *)profile_zeros(2 * (size_t)heads * (size_t)p->d, sizeof(double));
    p->sum[1] = (double *)profile_zeros((size_t)p->L, sizeof(double));
    for (i = 0; i < 4 && status == OK; i++) {
        profile_say(p, "outputs of a tiny cache");
        if ((status = profile_text(p, i, n)) != OK) return status;
        p->att = (float *)grow(p->att, (size_t)heads * (size_t)p->from, sizeof *p->att);
        memset(p->att, 0, (size_t)heads * (size_t)p->from * sizeof *p->att);
        p->keys = (float *)grow(p->keys, (size_t)p->L * (size_t)p->from / 4 + 1, sizeof *p->keys);
        p->see = NULL;
        if ((status = profile_open(p, &s, "full", 8, 256)) != OK) return status;
        status = profile_feed(p, &s, p->id, p->from - 8, KVMEM_PREFILL);
        p->see = profile_see_votes;
        if (status == OK) status = profile_feed(p, &s, p->id + p->from - 8, 8, KVMEM_PREFILL);
        profile_tiny(p, semantic ? semantic->value : NULL);
        p->see = profile_see_outputs;
        for (t = p->from; t < n && status == OK; t++) {
            status = profile_feed(p, &s, p->id + t, 1, KVMEM_DECODE);
            if (status == OK) profile_errors(p, &s);
        }
        kvmem_session_free(&s);
    }
    if (status != OK) return status;
    x = profile_add(p, "error", KVMEM_PER_LAYER, 1);
    for (l = 0; l < p->L; l++) sum += p->sum[1][l];
    for (l = 0; l < p->L; l++) x[l] = (float)(sum > 0 ? p->sum[1][l] / sum : 1.0 / p->L);
    return OK;
}

/* ==== >>profile_duo : duo's gates without training (NVIDIA/kvpress duo_attention_press.py) =====
   The mean query and the mean key of a head, before RoPE, at 500 positions: a = softmax of what the last query sees,
   score = mean over positions of the sum of a up to there. 0.501 for a head that looks everywhere, near 1 for one
   that looks far back, near 0 for one that looks at its neighbours. Mean over the group and over texts. */
static kvmem_status profile_watch(const kvmem_view *v, int n, const float *q, const int32_t *pos) {
    profile_run *p = (profile_run *)v->user;
    const size_t width = (size_t)p->H * (size_t)p->d;
    int t;
    size_t i;
    (void)pos;
    for (t = 0; t < n && p->hears; t++)
        for (i = 0; i < width; i++) p->sum[0][(size_t)v->layer * width + i] += (double)q[(size_t)t * width + i];
    return KVMEM_OK;
}
static void profile_see_mean(profile_run *p, const kvmem_view *v, int g) {
    const int n = v->cache->block_n, all = kvmem_view_count(v, g), d = p->d;
    float *x = (float *)grow(NULL, (size_t)n * (size_t)d, sizeof *x);
    double *k = p->sum[1] + (size_t)(v->layer * p->G + g) * (size_t)d;
    int t, i;
    kvmem_view_keys(v, g, all - n, n, x);
    kvmem__unrope_rows(v->cache, v->layer, x, n, v->cache->block_pos);
    for (t = 0; t < n; t++)
        for (i = 0; i < d; i++) k[i] += (double)x[t * d + i];
    free(x);
}
static double profile_proxy(const profile_run *p, const kvmem_cache *c, int h, int l, double tokens) {
    enum { N = 500 };
    const int d = p->d;
    float *q = (float *)grow(NULL, 2 * (size_t)d, sizeof *q), *k = q + d;
    double s[N], score;
    int32_t at = N - 1;
    int i, t;
    for (i = 0; i < d; i++) q[i] = (float)(p->sum[0][(size_t)((l * p->H + h) * d + i)] / tokens);
    kvmem__rope_rows(c, l, q, 1, &at);
    for (t = 0; t < N; t++) {
        at = t;
        for (i = 0; i < d; i++) k[i] = (float)(p->sum[1][(size_t)((l * p->G + h / p->r) * d + i)] / tokens);
        kvmem__rope_rows(c, l, k, 1, &at);
        for (s[t] = 0, i = 0; i < d; i++) s[t] += (double)q[i] * (double)k[i] * (double)c->shape.scale;
    }
    score = sums_far(s, N);
    free(q);
    return score;
}
static int profile_duo(profile_run *p, int n) {
    const size_t heads = (size_t)(p->L * p->H);
    double *score = (double *)profile_zeros((size_t)(p->L * p->G), sizeof *score);
    kvmem_session s;
    float *x;
    int i, l, h, status = OK;
    for (i = 0; i < PROFILE_TEXTS && status == OK; i++) {
        profile_say(p, "mean queries and keys");
        for (h = 0; h < 2; h++) {
            free(p->sum[h]);
            p->sum[h] = (double *)profile_zeros(heads * (size_t)p->d, sizeof(double));
        }
        p->see = profile_see_mean;
        p->hears = 1;
        if ((status = profile_text(p, i, n)) != OK || (status = profile_open(p, &s, "full", 1, 256)) != OK) break;
        status = profile_feed(p, &s, p->id, n, KVMEM_PREFILL);
        for (l = 0; l < p->L && status == OK; l++)
            for (h = 0; h < p->H; h++)
                score[l * p->G + h / p->r] += profile_proxy(p, &s.cache, h, l, n) / p->r / PROFILE_TEXTS;
        kvmem_session_free(&s);
    }
    p->hears = 0;
    if (status == OK) {
        x = profile_add(p, "duo", KVMEM_PER_KV_HEAD, 1);
        for (i = 0; i < p->L * p->G; i++) x[i] = (float)score[i];
    }
    free(score);
    return status;
}

/* ==== >>profile_lukv : curves of future attention (LU-KV, arXiv 2602.08585) ====================
   A prompt and what follows it. An entry's utility is the probability that what follows gives it, mean over the
   group. In the order of the cheap score (preset lukv's) the utilities of a lane are summed and the sum is made
   concave by its upper hull: slopes that never rise. For each of 99 targets the entries of steepest slope over all
   lanes stay, at least one a lane; a curve is the part of a lane that is pruned, mean over texts. */
static void profile_see_future(profile_run *p, const kvmem_view *v, int g) {
    int n, i, j, t;
    const int first = profile_queries(p, v, &n), all = kvmem_view_count(v, g);
    double *u = p->sum[0] + (size_t)(v->layer * p->G + g) * (size_t)p->from;
    for (i = 0; i < n; i++) {
        const float *row = profile_row(p, v, g, first + i);
        for (j = 0; j < p->r && row; j++)
            for (t = 0; t < all && t < p->from; t++) u[t] += (double)row[(size_t)j * (size_t)all + (size_t)t] / p->r;
    }
}
static int profile_lukv_text(profile_run *p, kvmem_session *s, float *curve) {
    const int lanes = p->L * p->G, n = p->from;
    float *gain = (float *)grow(NULL, (size_t)(lanes + 1) * (size_t)n, sizeof *gain);
    float *score = gain + (size_t)lanes * (size_t)n;
    const float **list = (const float **)grow(NULL, (size_t)lanes, sizeof *list);
    int *work = (int *)grow(NULL, 4 * (size_t)lanes + 2 * (size_t)n + 1, sizeof *work), i, t, status = OK;
    double *sum = (double *)grow(NULL, (size_t)n + 1, sizeof *sum);
    int *from = work, *to = from + lanes, *lo = to + lanes, *count = lo + lanes, *idx = count + lanes;
    for (i = 0; i < lanes && status == OK; i++) { /* the orders stand in gain while the future is read */
        if (kvmem__score_lane(&s->cache, i / p->G, i % p->G, score) != KVMEM_OK)
            status = fail("%s", s->cache.error.text);
        else sums_order(score, n, 4, idx);
        for (t = 0; t < n && status == OK; t++) gain[(size_t)i * (size_t)n + (size_t)t] = (float)idx[t];
        from[i] = 0;
        to[i] = n;
        lo[i] = 1;
        list[i] = gain + (size_t)i * (size_t)n;
    }
    p->see = profile_see_future;
    memset(p->sum[0], 0, (size_t)lanes * (size_t)n * sizeof(double));
    if (status == OK) status = profile_feed(p, s, p->id + n, p->n - n, KVMEM_DECODE);
    for (i = 0; i < lanes && status == OK; i++) {
        float *x = gain + (size_t)i * (size_t)n;
        for (t = 0; t < n; t++) idx[t] = (int)x[t];
        sums_hull(p->sum[0] + (size_t)i * (size_t)n, idx, n, sum, idx + n, x);
    }
    for (t = 1; t < 100 && status == OK; t++) {
        kvmem__global_top(list, from, to, lo, lanes, (int64_t)((1 - t / 100.0) * n * lanes + 0.5), count);
        for (i = 0; i < lanes; i++) curve[(t - 1) * lanes + i] += (1 - (float)count[i] / (float)n) / 4;
    }
    free(gain);
    free(list);
    free(work);
    free(sum);
    return status;
}
static int profile_lukv(profile_run *p, int n) {
    const int lanes = p->L * p->G;
    float *curve = profile_add(p, "lukv", KVMEM_PER_CURVE, 99);
    kvmem_session s;
    int i, status = OK;
    p->from = n * 3 / 4;
    free(p->sum[0]);
    p->sum[0] = (double *)profile_zeros((size_t)lanes * (size_t)p->from, sizeof(double));
    for (i = 0; i < 4 && status == OK; i++) {
        profile_say(p, "future attention");
        p->see = NULL;
        if ((status = profile_text(p, i, n)) != OK) break;
        if ((status = profile_open(p, &s, PROFILE_SCORE, PROFILE_STEPS, PROFILE_STEPS)) != OK) break;
        status = profile_feed(p, &s, p->id, p->from, KVMEM_PREFILL);
        if (status == OK) status = profile_lukv_text(p, &s, curve);
        kvmem_session_free(&s);
    }
    return status;
}

/* ==== >>profile_evo : layer budgets by evolution (EvoPress, arXiv 2410.14649) ==================
   Budgets of layers, their sum fixed, judged by what the model then says: a prompt is read and reduced by preset
   evobudget under them, and the distributions of the tokens that follow are compared with the full cache's,
     fitness = mean KL(full || reduced),   the last position left out.
   The small sample is the end of one text, the larger one of four; every generation draws its own. */
typedef struct profile_evo {
    profile_run *p;
    kvmem_recipe r;
    int n, from, mean;         /* tokens of a text, of its prompt; entries in the mean of the layers */
    kvmem_session base[PROFILE_TEXTS];
    int *id[PROFILE_TEXTS];
    float *full[PROFILE_TEXTS]; /* (n - from - 1, n_vocab) log probabilities of the full cache */
    kvmem_profile trial;
    kvmem_profile_row row;
    float *share;              /* (L) */
    double sum, uniform;
    int many, failed, rows;
    const float *want;
    float *put;
    int generations;
} profile_evo;

static int profile_row_full(void *user, int i, const float *q) {
    profile_evo *e = (profile_evo *)user;
    const int V = e->p->m->n_vocab;
    const double z = row_log_sum(q, V);
    int t;
    for (t = 0; t < V && i < e->rows; t++) e->put[(size_t)i * (size_t)V + (size_t)t] = (float)((double)q[t] - z);
    return 0;
}
static int profile_row_kl(void *user, int i, const float *q) {
    profile_evo *e = (profile_evo *)user;
    const int V = e->p->m->n_vocab;
    const double z = row_log_sum(q, V);
    const float *w = e->want + (size_t)i * (size_t)V;
    int t;
    if (i >= e->rows) return 0;
    for (t = 0; t < V; t++) {
        const double l = (double)w[t];
        if (l > -50) e->sum += exp(l) * (l - ((double)q[t] - z));
    }
    e->many++;
    return 0;
}
/* The end of text i under the trial's budgets: adds to sum and many. */
static void profile_try(profile_evo *e, int i) {
    const int tail = e->n - e->from;
    kvmem_session s;
    if (e->failed) return;
    if (kvmem_session_copy(&s, &e->base[i]) != KVMEM_OK) {
        e->failed = fail("%s", s.error.text);
        return;
    }
    e->want = e->full[i];
    if (kvmem_session_feed(&s, e->id[i] + e->from - 1, 1, KVMEM_PROMPT_END, NULL, NULL) != KVMEM_OK ||
        kvmem_session_feed(&s, e->id[i] + e->from, tail, KVMEM_DECODE, profile_row_kl, e) != KVMEM_OK)
        e->failed = fail("%s", s.error.text);
    kvmem_session_free(&s);
}
static double profile_fitness(void *user, const int *b, int stage, int generation) {
    profile_evo *e = (profile_evo *)user;
    int i;
    for (i = 0; i < e->p->L; i++) e->share[i] = (float)b[i];
    e->sum = e->many = 0;
    for (i = 0; i < (stage ? 4 : 1); i++)
        profile_try(e, (int)((kvmem__random(e->p->seed, 9, (uint64_t)generation, 0) + (uint64_t)i) % PROFILE_TEXTS));
    return e->many ? e->sum / e->many : 0;
}
static void profile_tell(void *user, int generation, double best) {
    profile_evo *e = (profile_evo *)user;
    if (is_terminal(stderr))
        fprintf(stderr, "\r%5.1f s  generation %d of %d: KL %.5f                ", now() - e->p->started,
                generation + 1, e->generations, best);
    fflush(stderr);
}
/* The texts, read up to the last token of their prompts, and what the full cache says of their ends. */
static int profile_evo_texts(profile_evo *e) {
    profile_run *p = e->p;
    const size_t V = (size_t)p->m->n_vocab;
    kvmem_session_config cfg, all;
    int i, status;
    if ((status = session_config(p->a, &e->r, &cfg)) != OK || (status = session_config(p->a, NULL, &all)) != OK)
        return status;
    for (i = 0; i < PROFILE_TEXTS && status == OK; i++) {
        kvmem_session s;
        profile_say(p, "texts of the evolution");
        if ((status = profile_text(p, i, e->n)) != OK || (status = open_session(&s, p->m, &all)) != OK) return status;
        e->id[i] = (int *)grow(NULL, (size_t)e->n, sizeof(int));
        memcpy(e->id[i], p->id, (size_t)e->n * sizeof(int));
        e->full[i] = e->put = (float *)grow(NULL, (size_t)e->rows * V, sizeof(float));
        status = profile_feed(p, &s, e->id[i], e->from, KVMEM_PREFILL);
        if (status == OK &&
            kvmem_session_feed(&s, e->id[i] + e->from, e->n - e->from, KVMEM_DECODE, profile_row_full, e) != KVMEM_OK)
            status = fail("%s", s.error.text);
        kvmem_session_free(&s);
        if (status == OK) status = open_session(&e->base[i], p->m, &cfg);
        if (status == OK) status = profile_feed(p, &e->base[i], e->id[i], e->from - 1, KVMEM_PREFILL);
    }
    return status;
}
static int profile_evo_run(profile_evo *e) {
    profile_run *p = e->p;
    evolve_job j;
    int i, status, *b, *child;
    float *x;
    double first;
    if ((status = profile_evo_texts(e)) != OK) return status;
    memset(&j, 0, sizeof j);
    e->base[0].cache.block_n = 1; /* the mean that the prompt's end will have */
    e->mean = kvmem__mean_budget(&e->base[0].cache);
    e->base[0].cache.block_n = 0;
    if (e->mean >= e->from) return misuse("--evo %s: keeps all of the %d tokens of a prompt", p->a->evo, e->from);
    b = (int *)grow(NULL, (size_t)p->L, sizeof *b);
    child = (int *)grow(NULL, (size_t)(17 * p->L), sizeof *child);
    for (i = 0; i < p->L; i++) b[i] = e->mean;
    j.n = p->L;
    j.b = b;
    j.step = e->mean / 8 > 1 ? e->mean / 8 : 1;
    j.lo = e->mean / 4 > 1 ? e->mean / 4 : 1;
    j.hi = e->from;
    j.lambda = 16;
    j.survivors = 4;
    j.generations = e->generations = (int)p->a->generations;
    j.seed = p->seed;
    j.fitness = profile_fitness;
    j.tell = profile_tell;
    j.user = e;
    first = (profile_fitness(e, b, 1, 0) + profile_fitness(e, b, 1, 1)) / 2;
    evolve(&j, child);
    e->uniform = first;
    if (!e->failed) {
        x = profile_add(p, "evo", KVMEM_PER_LAYER, 1);
        for (i = 0; i < p->L; i++) x[i] = (float)b[i];
        fprintf(stderr, "%sevolution: KL %.5f with equal budgets, %.5f with", is_terminal(stderr) ? "\r" : "", first,
                (profile_fitness(e, b, 1, 0) + profile_fitness(e, b, 1, 1)) / 2);
        for (i = 0; i < p->L; i++) fprintf(stderr, " %d", b[i]);
        fprintf(stderr, "\n");
    }
    free(b);
    free(child);
    return e->failed ? FAILED : OK;
}
static int profile_evo_do(profile_run *p, int n) {
    profile_evo *e = (profile_evo *)profile_zeros(1, sizeof *e);
    char text[200];
    kvmem_error error;
    int i, status = OK;
    e->p = p;
    e->n = n;
    e->from = n - PROFILE_STEPS;
    e->rows = n - e->from - 1;
    snprintf(text, sizeof text, "evobudget budget=%.60s recent=8", p->a->evo);
    if (kvmem_recipe_parse(&e->r, text, &error) != KVMEM_OK) status = misuse("--evo %s: %s", p->a->evo, error.text);
    e->trial = p->out;
    e->trial.row = &e->row;
    e->trial.n_rows = 1;
    e->share = (float *)profile_zeros((size_t)p->L, sizeof *e->share);
    snprintf(e->row.name, sizeof e->row.name, "evo");
    e->row.per = KVMEM_PER_LAYER;
    e->row.points = 1;
    e->row.value = e->share;
    e->r.stage[KVMEM_BUDGET].user = &e->trial;
    if (status == OK) status = profile_evo_run(e);
    for (i = 0; i < PROFILE_TEXTS; i++) {
        kvmem_session_free(&e->base[i]);
        free(e->id[i]);
        free(e->full[i]);
    }
    free(e->share);
    free(e);
    return status;
}

/* ==== >>profile_out : what is written =========================================================== */

/* Five digits are more than a measurement tells. */
static void profile_round(profile_run *p) {
    char text[40];
    double v;
    int i, j;
    for (i = 0; i < p->out.n_rows; i++) {
        float *x = (float *)(uintptr_t)(const void *)p->row[i].value;
        const int n = (int)kvmem__profile_count(&p->out, p->row[i].per, p->row[i].points);
        for (j = 0; j < n; j++) {
            snprintf(text, sizeof text, "%.5g", (double)x[j]);
            if (to_real(text, &v)) x[j] = (float)v;
        }
    }
}
static int profile_write(profile_run *p) {
    size_t n;
    char *text;
    FILE *f;
    int bad = 0;
    profile_round(p);
    n = kvmem_profile_print(&p->out, NULL, 0);
    text = (char *)grow(NULL, n + 1, 1);
    kvmem_profile_print(&p->out, text, n + 1);
    if (!p->a->output) put_bytes(text, n);
    else {
        f = fopen(p->a->output, "wb");
        bad = !f || fwrite(text, 1, n, f) != n;
        if (f && fclose(f)) bad = 1;
    }
    free(text);
    return bad ? fail("%s: cannot write: %s", p->a->output, strerror(errno)) : OK;
}
/* The best heads, and each layer's numbers, for people. */
static void profile_show(const profile_run *p) {
    int i, j;
    put("%d layers, %d heads, %d KV heads of %d; %d rows in %s\n", p->L, p->H, p->G, p->d, p->out.n_rows, p->a->output);
    for (i = 0; i < p->out.n_rows; i++) {
        const kvmem_profile_row *r = &p->row[i];
        const int wide = r->per == KVMEM_PER_HEAD ? p->H : p->G, n = p->L * wide;
        int idx[3], best = 0;
        if (r->per == KVMEM_PER_CURVE) continue;
        put("  %-10s", r->name);
        for (j = 0; j < p->L && r->per == KVMEM_PER_LAYER; j++) put(" %.4g", (double)r->value[j]);
        for (; best < 3 && best < n && r->per != KVMEM_PER_LAYER; best++) { /* the highest that are not taken yet */
            idx[best] = -1;
            for (j = 0; j < n; j++) {
                if ((best > 0 && j == idx[0]) || (best > 1 && j == idx[1])) continue;
                if (idx[best] < 0 || r->value[j] > r->value[idx[best]]) idx[best] = j;
            }
            put("%s layer %d head %d: %.3g", best ? "," : "", idx[best] / wide, idx[best] % wide,
                (double)r->value[idx[best]]);
        }
        put("\n");
    }
}
static int profile_measure(profile_run *p) {
    const int want = p->a->n > 0 ? (int)p->a->n : 512;
    const int n = (p->m->n_ctx_train < want ? p->m->n_ctx_train : want) / 32 * 32;
    int status;
    if (n < 160) return fail("%s: was trained on %d tokens; 160 are needed", p->a->model, p->m->n_ctx_train);
    p->period = n / 4;
    profile_say(p, "repeated tokens");
    if ((status = profile_repeat(p)) != OK || (status = profile_needle(p)) != OK ||
        (status = profile_keysim(p, n)) != OK || (status = profile_error(p, n)) != OK ||
        (status = profile_duo(p, n / 2)) != OK || (status = profile_lukv(p, n)) != OK) return status;
    return p->a->evo ? profile_evo_do(p, n) : OK;
}
static int profile_begin(profile_run *p) {
    file f;
    int status;
    if ((status = load_model(&p->l, p->a, p->a->file != NULL)) != OK) return status;
    p->m = &p->l.model;
    p->L = p->out.n_layers = p->m->n_layers;
    p->H = p->out.n_heads = p->m->n_heads;
    p->G = p->out.n_kv_heads = p->m->n_kv_heads;
    p->d = p->out.head_dim = p->m->head_dim;
    p->r = p->H / p->G;
    p->out.model_id = p->m->id;
    p->out.row = p->row;
    p->corpus = !p->a->file && profile_is_corpus(&p->l);
    if (p->corpus) return OK;
    if (!p->a->file)
        return misuse("%s: its vocabulary is not that of kvmem's language; give a text with -f FILE", p->a->model);
    if (file_open(&f, p->a->file)) return FAILED;
    status = tokenize(p->l.tokenizer, f.bytes ? (const char *)f.bytes : "", f.size, 0, &p->text);
    file_close(&f);
    return status;
}
static int cmd_profile(const args *a) {
    profile_run *p = (profile_run *)profile_zeros(1, sizeof *p);
    int status, i;
    p->own = *a;
    p->a = &p->own;
    default_model(&p->own);
    p->seed = (uint64_t)a->seed;
    p->started = now();
    p->entry.e.word = "probe";
    p->entry.e.what = "looks at attention and selects nothing";
    p->entry.e.cite = "-";
    p->entry.e.params = profile_params;
    p->entry.e.reads = KVMEM_READS_QUERIES;
    p->entry.fn = kvmem__select_topk;
    p->entry.memory = &profile_memory;
    if (!p->own.model) status = misuse("-m MODEL is missing");
    else status = profile_begin(p);
    if (status == OK) status = profile_measure(p);
    if (is_terminal(stderr)) fprintf(stderr, "\r%72s\r", "");
    if (status == OK) status = profile_write(p);
    if (status == OK && a->output) profile_show(p);
    for (i = 0; i < p->out.n_rows; i++) free((float *)(uintptr_t)(const void *)p->row[i].value);
    for (i = 0; i < 2; i++) free(p->sum[i]);
    free(p->keys);
    free(p->att);
    free(p->rows);
    free(p->id);
    free(p->text.id);
    corpus_test_free(&p->test);
    unload(&p->l);
    free(p);
    return status;
}
#endif
