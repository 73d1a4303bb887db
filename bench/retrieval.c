/* retrieval.c - how good is what a method reads, against how much it reads: the default model's own keys and queries.

   FED tokens of a conversation are read by the model once, exactly, and K, V and Q recorded; each recipe's cache
   takes them as a prompt, then SEEN more as decoded tokens, one by one. Every choice is compared with the exact
   softmax of the same query over all keys:
     read     share of the keys that the heads read, in all layers; and in those that leave something out:
     recall   of the exact best entries, as many as the head reads, how many are read
     @32      the same for the best 32
     mass     share of the softmax that is read;  best: that of the exact best entries, as many
     choose   microseconds a token spent in choosing;  attend: those of append, choice, attention and commit, all layers
     step     choice as a share of a decode step: attend, and what the model takes beside it, measured in the same run
     loads    share of chosen entries that the choice before had not, for methods that count it
     index    bytes of the methods' notes, indexes and state for each byte of keys

   Build  make build/bench_retrieval    Run  build/bench_retrieval [--csv | --json] [--only quest,tidal] [-m MODEL]
                                             [--kv RECIPE] [--path avx2] [--quick] [--cpu-time] */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "bench.h"
#define READS_CLOCK bench_now /* so that --cpu-time is of everything */
#include "../tests/coded.h"
#include "../tests/tool.h"
#define RECORD_FED 4096
#define RECORD_SEEN 16
#include "record.h"
#include "../tools/reads.h"

/* %d: entries, or pages of 16 */
static const struct { const char *word, *text; int page; } methods[] = {
    { "quest", "quest retrieve=quest(budget=%d,dense=0)", 0 },
    { "quest-max", "quest retrieve=quest(budget=%d,dense=0,by=max)", 0 },
    { "arkvale", "arkvale retrieve=arkvale(topk=%d,sinks=1,window=1) page=16", 1 },
    { "tidal", "retrieve=tidal(s0=0,k=%d) page=16", 0 },
    { "specontext", "retrieve=specontext(budget=%d) page=16", 0 },
    { "spec-average", "retrieve=specontext(budget=%d,of=average) page=16", 0 },
    { "flat", "retrieve=nearest(index=flat,first=4,last=16,topk=%d) page=16", 0 },
    { "retr-attn", "retrieve=nearest(index=graph,first=4,last=16,topk=%d) page=16", 0 },
    { "icecache", "icecache retrieve=icecache(budget=%d,dense=0)", 1 },
    { "louiskv", "retrieve=louiskv(tau=2,budget=%d,sink=4,window=16) page=16", 0 } };
static const char *const whole[] = { "retro", "actqkv", "infllm", "em-llm", "hcam", "longmem" }; /* as they are */

typedef struct exactly { float *p; int *order; } exactly; /* of a step, layer and head: weights; entries, best first */
static exactly *truth;
static int n_heads, n_layers;
static struct { double read, recall, at32, mass, best; int64_t all, some; } sum;

static const float *sorted;
static int falling(const void *a, const void *b) {
    const int x = *(const int *)a, y = *(const int *)b;
    return sorted[x] > sorted[y] ? -1 : sorted[x] < sorted[y] ? 1 : x < y ? -1 : 1;
}
/* The exact softmax of every query that will ask. */
static void make_truth(void) {
    const kvmem_shape *s = &recorded.shape;
    const int G = s->n_kv_heads, d = s->head_dim, r = s->n_heads / G;
    const size_t kw = (size_t)(G * d), qw = (size_t)(s->n_heads * d);
    float *k = (float *)grow(NULL, (size_t)recorded.n * kw, sizeof *k);
    float *q = (float *)grow(NULL, (size_t)SEEN * qw, sizeof *q);
    int32_t *pos = (int32_t *)grow(NULL, (size_t)recorded.n, sizeof *pos);
    int l, i, h, t;
    truth = (exactly *)grow(NULL, (size_t)(SEEN * n_layers * n_heads), sizeof *truth);
    for (t = 0; t < recorded.n; t++) pos[t] = t;
    for (l = 0; l < n_layers; l++) {
        memcpy(k, recorded.k + (size_t)l * (size_t)recorded.n * kw, (size_t)recorded.n * kw * sizeof *k);
        memcpy(q, recorded.q + ((size_t)l * (size_t)recorded.n + FED) * qw, (size_t)SEEN * qw * sizeof *q);
        if (s->rope) {
            real->rope(k, k, recorded.n, G, d, &s->rope[l], pos, 1, 1);
            real->rope(q, q, SEEN, s->n_heads, d, &s->rope[l], pos + FED, 1, 1);
        }
        for (i = 0; i < SEEN; i++)
            for (h = 0; h < n_heads; h++) {
                exactly *x = &truth[(i * n_layers + l) * n_heads + h];
                const int n = FED + i + 1;
                float top, all;
                x->p = (float *)grow(NULL, (size_t)n, sizeof *x->p);
                x->order = (int *)grow(NULL, (size_t)n, sizeof *x->order);
                for (t = 0; t < n; t++) {
                    x->p[t] = s->scale * real->dot(q + (size_t)i * qw + (size_t)(h * d),
                                                   k + (size_t)t * kw + (size_t)(h / r * d), d);
                    x->order[t] = t;
                }
                top = real->max(x->p, n);
                all = real->exp_sum(x->p, x->p, top, n);
                real->scale(x->p, 1 / all, n);
                sorted = x->p;
                qsort(x->order, (size_t)n, sizeof *x->order, falling);
            }
    }
    free(k);
    free(q);
    free(pos);
}
/* After a choice of one layer. */
static void rate_choice(reads *w, const kvmem_view *v, const int32_t *pos) {
    const int step = (int)pos[0] - FED, n = FED + step + 1;
    int h, i;
    if (step < 0 || w->n != 1) return;
    for (h = 0; h < n_heads; h++) {
        const exactly *x = &truth[(step * n_layers + v->layer) * n_heads + h];
        const unsigned char *in = w->in + (size_t)h * (size_t)w->cap;
        double mass = 0, best = 0;
        int count = 0, hit = 0, hit32 = 0;
        for (i = 0; i < n; i++) if (in[i]) { count++; mass += (double)x->p[i]; }
        sum.all++;
        sum.read += (double)count / n;
        if (count == n) continue;
        for (i = 0; i < n && (i < count || i < 32); i++) {
            if (i < count) { hit += in[x->order[i]]; best += (double)x->p[x->order[i]]; }
            if (i < 32) hit32 += in[x->order[i]];
        }
        sum.some++;
        sum.recall += count ? (double)hit / count : 0;
        sum.at32 += hit32 / 32.0;
        sum.mass += mass;
        sum.best += best;
    }
}
/* Seconds of a decoded token in the cache, beside the choosing that w counts; below 0: *why. */
static double decode(const kvmem_recipe *r, reads *w, double *index, double *loads, char *why, size_t size) {
    kvmem_config cfg = kvmem_config_default();
    const size_t floats = (size_t)n_layers * 512 * (size_t)(recorded.shape.n_heads * recorded.shape.head_dim);
    float *o = (float *)grow(NULL, floats, sizeof *o);
    kvmem_cache c;
    kvmem_bytes b;
    int64_t chosen, loaded;
    double took = 0;
    int at, bad;
    cfg.shape = recorded.shape;
    cfg.recipe = r;
    cfg.max_block = 512;
    cfg.threads = 1;
    cfg.backend = real;
    bad = kvmem_cache_init(&c, &cfg) != KVMEM_OK;
    for (at = 0; at < FED && !bad; at += 512)
        bad = record_block(&c, at, 512, at + 512 < FED ? KVMEM_PREFILL : KVMEM_PROMPT_END, o);
    for (at = 0; at < SEEN && !bad; at++) {
        double t0;
        if (at == 1 && w) w->seconds = 0; /* the first choice makes notes and indexes: not counted */
        t0 = bench_now();
        bad = record_block(&c, FED + at, 1, KVMEM_DECODE, o);
        if (at) took += (bench_now() - t0) / (SEEN - 1);
    }
    if (bad) snprintf(why, size, "%s", c.error.text);
    kvmem_cache_bytes(&c, &b);
    kvmem_cache_loads(&c, &chosen, &loaded);
    *loads = chosen ? (double)loaded / (double)chosen : -1;
    *index = b.live.k ? (double)(b.live.meta + b.live.stats) / (double)b.live.k : 0;
    kvmem_cache_free(&c);
    free(o);
    return bad ? -1 : took;
}
static void number(char *to, size_t size, const char *f, double x) {
    if (x < 0) snprintf(to, size, "-");
    else snprintf(to, size, f, x);
}
static void show(const char *word, int budget, const char *text, double rest, double plain_index) {
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error e;
    char why[200], size[16], load[16];
    reads w;
    double took, index, loads;
    memset(&e, 0, sizeof e);
    memset(&sum, 0, sizeof sum);
    if (kvmem_recipe_parse(&r, text, &e) != KVMEM_OK || !reads_around(&w, &r, -1, n_heads)) {
        fprintf(stderr, "%s: %s\n", text, *e.text ? e.text : "reads everything");
        return;
    }
    w.each = rate_choice;
    took = decode(&r, &w, &index, &loads, why, sizeof why);
    number(size, sizeof size, "%.0f", budget);
    number(load, sizeof load, "%.2f", loads);
    if (took < 0) fprintf(stderr, "%s: %s\n", text, why);
    else if (sum.all) {
        const double n = sum.some ? (double)sum.some : 1, choose = w.seconds / (SEEN - 1);
        bench_row("%s|%s|%.2f|%.3f|%.3f|%.4f|%.4f|%.1f|%.1f|%.1f|%s|%.3f", word, size, 100 * sum.read / (double)sum.all,
                  sum.some ? sum.recall / n : 1.0, sum.some ? sum.at32 / n : 1.0, sum.some ? sum.mass / n : 1.0,
                  sum.some ? sum.best / n : 1.0, 1e6 * choose, 1e6 * took, 100 * choose / (took + rest), load,
                  index > plain_index ? index - plain_index : 0.0);
    }
    reads_free(&w);
}
static int is_chosen(const char *word, const char *only) { /* one of "a,b,c"; NULL: any */
    const size_t n = strlen(word);
    while (only && *only) {
        const size_t m = strcspn(only, ",");
        if (m == n && !memcmp(only, word, n)) return 1;
        only += m + (only[m] == ',');
    }
    return !only;
}
/* What the model takes for a token beside the cache: a session's step less `full`. */
static double model_seconds(double full) {
    int id = 1, i;
    double t0;
    recorded.s.backend = real;
    recorded.s.cache.backend = real;
    t0 = bench_now();
    for (i = 0; i < SEEN; i++)
        if (kvmem_session_feed(&recorded.s, &id, 1, KVMEM_DECODE, NULL, NULL)) return 0;
    t0 = (bench_now() - t0) / SEEN - full;
    return t0 > 0 ? t0 : 0;
}
int main(int argc, char **argv) {
    static const double share[] = { .01, .02, .04, .08, .16 };
    const kvmem_recipe all = kvmem_recipe_default();
    const char *only, *path, *more;
    char why[200], text[256];
    double full, rest, index, loads;
    int i, k, quick;
    size_t x;
    bench_begin(argc, argv, "retrieval", 0);
    command_name = "retrieval";
    bench_threads = 1;
    only = bench_option("--only", NULL);
    path = bench_option("--path", "");
    more = bench_option("--kv", NULL);
    quick = bench_flag("--quick");
    real = kvmem_backend_cpu(*path ? path : NULL);
    if (!real) return fail("no path %s on this machine", path);
    if (record_open(bench_option("-m", DEFAULT_MODEL), NULL, NULL, real)) return FAILED;
    n_heads = recorded.shape.n_heads;
    n_layers = recorded.shape.n_layers;
    make_truth();
    full = decode(&all, NULL, &index, &loads, why, sizeof why);
    if (full < 0) return fail("%s", why);
    rest = model_seconds(full);
    if (!bench_json && !bench_csv)
        printf("# %d keys in %d layers of %d heads (%d KV heads of %d); all read: attend %.1f us, the model beside it "
               "%.1f us a token\n", FED, n_layers, n_heads, recorded.shape.n_kv_heads, recorded.shape.head_dim,
               1e6 * full, 1e6 * rest);
    bench_header("<method       |budget|read %%|recall|  @32|  mass|  best|choose us|attend us|step %%|loads|index");
    for (i = 0; i < (int)(sizeof methods / sizeof *methods); i++)
        for (k = quick ? 2 : 0; k < (quick ? 3 : 5) && is_chosen(methods[i].word, only); k++) {
            const int budget = (int)(share[k] * FED);
            snprintf(text, sizeof text, methods[i].text, methods[i].page ? budget / 16 : budget);
            show(methods[i].word, budget, text, rest, index);
        }
    for (i = 0; i < (int)(sizeof whole / sizeof *whole); i++)
        if (is_chosen(whole[i], only)) show(whole[i], -1, whole[i], rest, index);
    if (more) show("--kv", -1, more, rest, index);
    for (x = 0; x < (size_t)(SEEN * n_layers * n_heads); x++) { free(truth[x].p); free(truth[x].order); }
    free(truth);
    record_free();
    free(out.text);
    return OK;
}
