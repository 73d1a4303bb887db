/* overhead.c - what choosing costs: the memory layer alone, random rows, one thread.

   First table: a prompt of --prompt tokens in one layer, in blocks of 512. `attend` is the time that the full cache
   takes to append and attend; `with` what the preset takes for the same and for scoring and compaction at the prompt's
   end; `more` the difference as a share of the full cache's time. A model adds its matrix products to both, so the
   share in a whole prefill is lower: `model` adds the products of a layer of width w = H d, 12 w^2 multiply-adds a
   token (four matrices of attention, a feed-forward network of three with 8/3 w neurons), at attention's rate here.
   Second table: a decode step under a fixed budget of --keep entries after 1k, 4k, ... tokens: time and live bytes.
   A preset that reduces only when a prompt ends is told when=every(64), so that its budget holds.

   Build  make build/bench_overhead     Run  build/bench_overhead [--only snapkv,h2o] [--csv] [--json] */
#define KVMEM_NO_DECODER
#include "bench.h"

enum { H = 4, G = 2, D = 64, BLOCK = 512, SHOWN = 64 };
static float *k, *v, *q, *o; /* (BLOCK, G | H, D) */
static float inv_freq[D / 2];
static kvmem_rope rope;
static double unit_state = 1;

static double unit(void) { return kvmem__unit(kvmem__mix((uint64_t)unit_state++)); }
static void fill_rows(void) {
    size_t i;
    k = (float *)malloc(sizeof(float) * BLOCK * G * D);
    v = (float *)malloc(sizeof(float) * BLOCK * G * D);
    q = (float *)malloc(sizeof(float) * BLOCK * H * D);
    o = (float *)malloc(sizeof(float) * BLOCK * H * D);
    if (!k || !v || !q || !o) exit(1);
    for (i = 0; i < (size_t)BLOCK * G * D; i++) { k[i] = (float)(2 * unit() - 1); v[i] = (float)(2 * unit() - 1); }
    for (i = 0; i < (size_t)BLOCK * H * D; i++) q[i] = (float)(4 * unit() - 2);
    for (i = 0; i < D / 2; i++) inv_freq[i] = (float)pow(10000.0, -2.0 * (double)i / D);
    rope.n_rot = D;
    rope.mscale = 1;
    rope.inv_freq = inv_freq;
}
static kvmem_status project(void *user, int layer, int h, int n, const float *x, float *l1, float *l2) {
    int t;
    (void)user; (void)layer; (void)h;
    for (t = 0; t < n; t++) { /* the benchmark is of the cache: W_O is the unit matrix */
        float one = 0, two = 0;
        int i;
        for (i = 0; i < D; i++) { one += fabsf(x[t * D + i]); two += x[t * D + i] * x[t * D + i]; }
        if (l1) l1[t] = one;
        if (l2) l2[t] = sqrtf(two);
    }
    return KVMEM_OK;
}
static int start(kvmem_cache *c, const kvmem_recipe *r) {
    kvmem_config cfg = kvmem_config_default();
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = H;
    cfg.shape.n_kv_heads = G;
    cfg.shape.head_dim = D;
    cfg.shape.rope = &rope;
    cfg.recipe = r;
    cfg.max_block = BLOCK;
    cfg.threads = bench_threads;
    if (kvmem_cache_init(c, &cfg) != KVMEM_OK) return 0;
    kvmem_cache_output(c, project, NULL);
    return 1;
}
/* One block; seconds of all of it, or below 0. Rows come from one block's worth, turned by at. */
static double hear(kvmem_cache *c, int n, int at, kvmem_phase phase) {
    const double t0 = bench_now();
    const size_t from = (size_t)(n < BLOCK ? at % (BLOCK - n) : 0);
    if (kvmem_cache_append(c, 0, n, k + from * G * D, v + from * G * D, NULL)) return -1;
    if ((c->reads & KVMEM_READS_HIDDEN) && kvmem_cache_hidden(c, 0, n, q + from * H * D, H * D)) return -1;
    if (kvmem_cache_attend(c, 0, n, q + from * H * D, o) || kvmem_cache_surprise(c, n, v) ||
        kvmem_cache_commit(c, phase)) return -1;
    return bench_now() - t0;
}
static double prompt(const kvmem_recipe *r, int n, kvmem_bytes *b) {
    kvmem_cache c;
    double sum = 0;
    int at, m;
    if (!start(&c, r)) return -1;
    for (at = 0; at < n && sum >= 0; at += m) {
        double t;
        m = n - at < BLOCK ? n - at : BLOCK;
        t = hear(&c, m, at, at + m < n ? KVMEM_PREFILL : KVMEM_PROMPT_END);
        sum = t < 0 ? -1 : sum + t;
    }
    if (c.awaits) sum = -2; /* it reads the prompt again: a matter of the model, see bench/methods */
    kvmem_cache_bytes(&c, b);
    kvmem_cache_free(&c);
    return sum;
}
static double median_prompt(const kvmem_recipe *r, int n, kvmem_bytes *b) {
    double s[64];
    int i, m = bench_repeat < 1 ? 1 : bench_repeat > 64 ? 64 : bench_repeat;
    for (i = 0; i < m; i++) if ((s[i] = prompt(r, n, b)) < 0) return s[i];
    return bench_stats(s, m).median;
}
static void show_prompt(const kvmem_preset *p, const kvmem_recipe *r, int n, double full) {
    kvmem_bytes b;
    const double s = median_prompt(r, n, &b), width = (double)H * D;
    /* multiply-adds of attention: n^2/2 rows of 2 d for each head; of the products: n 12 w^2 */
    const double products = full * (12 * width * width * n) / ((double)n * n * D * H);
    if (s < 0) bench_row("%s|%d|%.1f|-|-|-|-", p->word, n, 1e3 * full);
    else bench_row("%s|%d|%.1f|%.1f|%.1f|%.1f|%.0f", p->word, n, 1e3 * full, 1e3 * s, 100 * (s - full) / full,
                   100 * (s - full) / (full + products), (double)b.peak.total / 1024);
}
static void show_decode(const kvmem_preset *p, const kvmem_recipe *given, int most) {
    kvmem_recipe r = *given;
    kvmem_cache c;
    int next = 1024, at = 0, i;
    if (r.when == KVMEM_WHEN_PROMPT) { r.when = KVMEM_WHEN_EVERY; r.every = SHOWN; }
    if (!start(&c, &r)) return;
    while (next <= most) {
        double s[SHOWN], one;
        kvmem_bytes b;
        for (; at < next; at += SHOWN) /* read in blocks, as fast as the recipe lets */
            if (hear(&c, SHOWN, at, at ? KVMEM_DECODE : KVMEM_PROMPT_END) < 0 || c.awaits) {
                kvmem_cache_free(&c);
                return;
            }
        for (i = 0; i < SHOWN; i++) if ((s[i] = hear(&c, 1, at + i, KVMEM_DECODE)) < 0) break;
        if (i < SHOWN) break;
        for (one = 0, i = 0; i < SHOWN; i++) one += s[i] / SHOWN; /* the mean: some steps reduce, others do not */
        at += SHOWN;
        kvmem_cache_bytes(&c, &b);
        bench_row("%s|%d|%d|%.1f|%.1f|%.0f|%.0f", p->word, at, kvmem_cache_lane_len(&c, 0, 0), 1e6 * one,
                  1e6 * bench_stats(s, SHOWN).median, (double)b.live.total / 1024, (double)b.peak.total / 1024);
        next = next < most && 4 * next > most ? most : 4 * next;
    }
    kvmem_cache_free(&c);
}
/* The preset under a budget of `keep` entries; 0: it keeps everything, or needs what is not here. */
static int recipe_of(const kvmem_preset *p, int keep, kvmem_recipe *r) {
    kvmem_cache c;
    int ready;
    if (kvmem_recipe_parse(r, p->word, NULL) || r->amount.kind == KVMEM_ALL) return 0;
    r->amount.kind = KVMEM_COUNT;
    r->amount.value = keep;
    if (kvmem_recipe_check(r, NULL)) return 0;
    ready = start(&c, r);
    kvmem_cache_free(&c);
    return ready;
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
int main(int argc, char **argv) {
    const kvmem_recipe all = kvmem_recipe_default();
    kvmem_bytes b;
    int i, n, keep, most;
    double full;
    const char *only;
    kvmem_recipe r;
    bench_begin(argc, argv, "overhead", 0);
    only = bench_option("--only", NULL);
    n = atoi(bench_option("--prompt", "4096"));
    keep = atoi(bench_option("--keep", "512"));
    most = atoi(bench_option("--most", "100000"));
    fill_rows();
    full = median_prompt(&all, n, &b);
    if (!bench_flag("--no-prompt")) {
        bench_header("<preset            |prompt|attend ms|   with ms|more %|model %|peak KiB");
        for (i = 0; kvmem_preset_at(i); i++)
            if (is_chosen(kvmem_preset_at(i)->word, only) && recipe_of(kvmem_preset_at(i), keep, &r))
                show_prompt(kvmem_preset_at(i), &r, n, full);
        if (!bench_json) printf("\n");
    }
    if (bench_flag("--no-decode")) return 0;
    bench_header("<preset            |   seen|entries|mean us|median us|live KiB|peak KiB");
    for (i = 0; kvmem_preset_at(i); i++)
        if (is_chosen(kvmem_preset_at(i)->word, only) && recipe_of(kvmem_preset_at(i), keep, &r))
            show_decode(kvmem_preset_at(i), &r, most);
    free(k);
    free(v);
    free(q);
    free(o);
    return 0;
}
