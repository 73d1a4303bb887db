/* reads.h - what a retrieve entry chooses, seen from outside: an entry around the recipe's own, which asks it and
   notes the choice. Include kvmem.h with its implementation first.

       reads w;
       reads_around(&w, &recipe, layer, H);      before kvmem_cache_init; w must outlive the cache
       ... a block attends ...
       w.asked, w.count, w.in[h * w.cap + t]     1: query head h reads entry t; w.n of the block at the end are its own
       w.each = fn                               layer below 0: asked about every layer, right after its choice
       w.seconds                                 spent in choosing, in all layers
       reads_free(&w); */
#ifndef KVMEM_READS_H
#define KVMEM_READS_H
#include <stdlib.h>
#include <time.h>

typedef struct reads {
    kvmem_retrieve_entry entry;       /* stands in the recipe */
    const kvmem_retrieve_entry *real;
    void *user;
    int layer, H, asked, stands;      /* asked: how often in this layer; stands: summands besides entries */
    int n, count, cap;                /* of the block; entries of the longest lane */
    unsigned char *in;                /* (H, cap) */
    double seconds;
    void (*each)(struct reads *w, const kvmem_view *v, const int32_t *pos);
} reads;

static KVMEM__UNUSED double reads_clock(void) { /* READS_CLOCK: the includer's own */
#ifdef READS_CLOCK
    return READS_CLOCK();
#elif defined(_POSIX_C_SOURCE) && defined(CLOCK_MONOTONIC)
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}
static void reads_note(reads *w, const kvmem_view *v, int n, unsigned char *const *read) {
    const kvmem_picks *p = v->cache->picks;
    const int G = v->cache->shape.n_kv_heads, r = w->H / G;
    int g, h, i, t, first;
    size_t x;
    for (w->count = g = 0; g < G; g++) w->count = kvmem_view_count(v, g) > w->count ? kvmem_view_count(v, g) : w->count;
    if (w->count > w->cap) {
        unsigned char *more = (unsigned char *)realloc(w->in, (size_t)w->H * (size_t)(2 * w->count));
        if (!more) return;
        w->in = more;
        w->cap = 2 * w->count;
    }
    memset(w->in, 0, (size_t)w->H * (size_t)w->cap);
    w->n = n;
    w->asked++;
    w->stands = p && p->on ? (int)p->n_stand : 0;
    for (x = 0; p && p->on && x < p->n_pick; x++)
        memset(w->in + (size_t)p->pick[x].h * (size_t)w->cap + p->pick[x].a, 1, (size_t)(p->pick[x].b - p->pick[x].a));
    for (h = 0; h < w->H; h++) {
        unsigned char *in = w->in + (size_t)h * (size_t)w->cap;
        const int len = kvmem_view_count(v, h / r), pages = kvmem_view_pages(v, h / r);
        for (i = 0; !(p && p->on) && i < pages; i++) {
            const int rows = kvmem_view_page(v, h / r, i, &first);
            const int own = first + rows > len - n; /* pages of the block are read in any case */
            for (t = first; t < first + rows; t++) in[t] = (unsigned char)(own || read[h / r][i]);
        }
        for (t = len - n; t < len; t++) in[t] = 1;
    }
}
static kvmem_status reads_ask(const kvmem_view *v, int n, const float *q, const int32_t *pos,
                              unsigned char *const *read) {
    reads *w = (reads *)v->user;
    kvmem_view own = *v;
    const double t0 = reads_clock();
    kvmem_status st;
    own.user = w->user;
    st = w->real->fn(&own, n, q, pos, read);
    w->seconds += reads_clock() - t0;
    if (st == KVMEM_OK && (w->each || v->layer == w->layer)) reads_note(w, v, n, read);
    if (st == KVMEM_OK && w->each) w->each(w, v, pos);
    return st;
}
/* 0: the recipe's retrieve entry chooses nothing. */
static KVMEM__UNUSED int reads_around(reads *w, kvmem_recipe *r, int layer, int H) {
    kvmem_choice *ch = &r->stage[KVMEM_RETRIEVE];
    memset(w, 0, sizeof *w);
    w->real = (const kvmem_retrieve_entry *)(const void *)ch->entry;
    if (!w->real->fn) return 0;
    w->entry = *w->real;
    w->entry.fn = reads_ask;
    w->user = ch->user;
    w->layer = layer;
    w->H = H;
    ch->entry = &w->entry.e;
    ch->user = w;
    return 1;
}
static KVMEM__UNUSED void reads_free(reads *w) {
    free(w->in);
    w->in = NULL;
    w->cap = 0;
}
/* How good is the choice for one query? p (n) the probability that it gives each entry, all entries together 1 at most;
   in (n) what is read. top: how many of the largest are looked for (ties: the older). */
typedef struct reads_score { double recall, mass, best, share; int read; } reads_score;
static KVMEM__UNUSED reads_score reads_rate(const double *p, const unsigned char *in, int n, int top,
                                            unsigned char *is_top) {
    reads_score s;
    int i, k;
    memset(&s, 0, sizeof s);
    if (top > n) top = n;
    memset(is_top, 0, (size_t)n);
    for (k = 0; k < top; k++) {
        int at = -1;
        for (i = 0; i < n; i++) if (!is_top[i] && (at < 0 || p[i] > p[at])) at = i;
        is_top[at] = 1;
        s.recall += in[at] ? 1.0 / top : 0;
        s.best += p[at];
    }
    for (i = 0; i < n; i++) {
        s.read += in[i] != 0;
        s.mass += in[i] ? p[i] : 0;
    }
    s.share = n ? (double)s.read / n : 0;
    return s;
}
#endif
