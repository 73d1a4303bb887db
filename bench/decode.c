/* decode.c - tokens per second of the decoder on GGUF files: prefill of 512 and 4096 tokens,
   decoding at context 0, 4096 and 16384, for several cache recipes, with the share of the
   machine's read bandwidth that the weights and the cache took.

       make bench            writes four files to /tmp, runs this and the other benchmarks
       build/bench_decode [options] FILE.gguf ...
         --kv "full codec=f16;snapkv budget=10%"   recipes, separated by ';'
         --contexts 0,4096,16384   --prefill 512,4096   --seconds S
         --csv   --threads N   --repeat N   --cpu-time

   A deep context is not prefilled (that would take minutes a row): random keys and values are
   appended to the cache layer by layer, which is what the pages hold afterwards either way. Only
   the last block of the prompt also attends, so that recipes which read queries have them and
   their reduction runs. Columns: tokens/s (median, min, max), MB that one token reads (all
   matrices once, the coded cache once), the rate of that in GB/s, and its share of the bandwidth
   measured above the table. */
#include "bench.h"

typedef struct decode_run {
    kvmem_model model;
    kvmem_session s;
    unsigned char *bytes;
    size_t size;
    char name[64];    /* file name without folder and ending */
    double seconds;   /* least time of a row */
} decode_run;

static void decode_die(const char *what, const char *why) {
    fprintf(stderr, "bench_decode: %s: %s\n", what, why);
    exit(1);
}

static void decode_read(decode_run *r, const char *path) {
    FILE *f = fopen(path, "rb");
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const char *dot = strrchr(base, '.');
    long n = -1;
    if (!f) decode_die(path, "cannot be opened");
    if (!fseek(f, 0, SEEK_END)) n = ftell(f);
    rewind(f);
    r->bytes = n > 0 ? (unsigned char *)malloc((size_t)n) : NULL;
    if (!r->bytes || fread(r->bytes, 1, (size_t)n, f) != (size_t)n)
        decode_die(path, "cannot be read");
    fclose(f);
    r->size = (size_t)n;
    snprintf(r->name, sizeof r->name, "%.*s", (int)(dot ? (size_t)(dot - base) : strlen(base)),
             base);
    if (kvmem_model_open(&r->model, r->bytes, r->size, NULL, 0, NULL))
        decode_die(path, r->model.error.text);
}

static void decode_session(decode_run *r, const char *recipe_text, int n_ctx) {
    kvmem_session_config c = kvmem_session_config_default();
    kvmem_recipe recipe;
    kvmem_error e;
    if (kvmem_recipe_parse(&recipe, recipe_text, &e)) decode_die(recipe_text, e.text);
    c.recipe = &recipe;
    c.n_ctx = n_ctx;
    c.threads = bench_threads;
    if (kvmem_session_init(&r->s, &r->model, &c)) decode_die(recipe_text, r->s.error.text);
}

/* n tokens of random keys and values; the last block attends with random queries and ends the
   prompt. */
static void decode_fill(decode_run *r, int n) {
    const kvmem_model *m = &r->model;
    kvmem_cache *c = &r->s.cache;
    const int kv = m->n_kv_heads * m->head_dim, q = m->n_heads * m->head_dim;
    const int block = r->s.max_block;
    const size_t floats = (size_t)block * (size_t)q;
    float *x = (float *)malloc(2 * floats * sizeof(float));
    size_t i;
    int at, l;
    if (!x) decode_die("filling the cache", "no memory");
    for (i = 0; i < floats; i++) { /* four uniforms: roughly normal with deviation 1 */
        const uint64_t u = kvmem__mix(i);
        const uint64_t sum = (u & 0xffff) + (u >> 16 & 0xffff) + (u >> 32 & 0xffff) + (u >> 48);
        x[i] = ((float)sum - 131070.0f) / 37837.2f;
    }
    for (at = 0; at < n;) {
        const int left = n - at, last = left <= 32, k = last ? left : KVMEM__MIN(left - 32, block);
        for (l = 0; l < m->n_layers; l++) {
            /* not the same in all layers */
            const size_t shift = (size_t)((at * 7 + l * 13) % 64) * (size_t)kv / 64;
            if (kvmem_cache_append(c, l, k, x + (k < block ? shift : 0),
                                   x + (k < block / 2 ? 2 * shift : 0), NULL) ||
                (last && kvmem_cache_attend(c, l, k, x, x + floats)))
                decode_die("filling the cache", c->error.text);
        }
        if (kvmem_cache_commit(c, last ? KVMEM_PROMPT_END : KVMEM_PREFILL))
            decode_die("filling the cache", c->error.text);
        at += k;
    }
    free(x);
}

static int decode_token(const decode_run *r, int i) {
    return 3 + (int)(kvmem__mix((uint64_t)i) % (uint64_t)(KVMEM__MIN(r->model.n_vocab, 300) - 3));
}

/* Bytes that one decoded token reads: every matrix once (of an untied embedding only a row) and
   the cache. */
static double decode_bytes(const decode_run *r) {
    kvmem_bytes b;
    kvmem_session_bytes(&r->s, &b);
    return (double)r->model.weight_bytes - (r->model.tied ? 0.0 : (double)r->model.embd.size) +
           (double)b.live.k + (double)b.live.v;
}

static void decode_row(const decode_run *r, const char *kv, const char *what, int n,
                       bench_sample rate, double bytes) {
    if (bytes > 0)
        bench_row("%s|%s|%s|%d|%.2f|%.2f|%.2f|%.1f|%.2f|%.3f", r->name, kv, what, n, rate.median,
                  rate.min, rate.max, bytes / 1e6, bytes * rate.median / 1e9,
                  bench_gbs > 0 ? bytes * rate.median / bench_gbs : 0.0);
    else bench_row("%s|%s|%s|%d|%.2f|%.2f|%.2f|||", r->name, kv, what, n, rate.median, rate.min,
                   rate.max);
}

static void decode_depth(decode_run *r, const char *kv, int n) {
    double v[512], used = 0, bytes;
    int k, count = 0, id;
    decode_session(r, kv, n + 512);
    if (n > 0) decode_fill(r, n);
    bytes = decode_bytes(r);
    for (k = 0; k < 500 && (k < 4 || used < r->seconds); k++) {
        double dt = bench_now();
        id = decode_token(r, k);
        if (kvmem_session_feed(&r->s, &id, 1, KVMEM_DECODE, NULL, NULL))
            decode_die(kv, r->s.error.text);
        dt = bench_now() - dt;
        if (k == 0) continue; /* pages, first touch of scratch */
        used += dt;
        v[count++] = 1 / dt;
    }
    decode_row(r, kv, "decode", n, bench_stats(v, count), bytes);
    kvmem_session_free(&r->s);
}

static void decode_prefill(decode_run *r, const char *kv, int n) {
    double v[64], used = 0;
    int k, i, *ids = (int *)malloc((size_t)n * sizeof *ids);
    if (!ids) decode_die("prefill", "no memory");
    for (i = 0; i < n; i++) ids[i] = decode_token(r, i);
    decode_session(r, kv, n + 16);
    for (k = 0; k < KVMEM__MIN(bench_repeat, 64) && (k == 0 || used < 4 * r->seconds); k++) {
        double dt;
        kvmem_session_clear(&r->s);
        dt = bench_now();
        if (kvmem_session_feed(&r->s, ids, n, KVMEM_PROMPT_END, NULL, NULL))
            decode_die(kv, r->s.error.text);
        dt = bench_now() - dt;
        used += dt;
        v[k] = n / dt;
    }
    decode_row(r, kv, "prefill", n, bench_stats(v, k), 0);
    kvmem_session_free(&r->s);
    free(ids);
}

/* The next number of a comma list, or -1. */
static int decode_next(const char **list) {
    char *end;
    const long v = strtol(*list, &end, 10);
    if (end == *list) return -1;
    *list = end + (*end == ',');
    return (int)v;
}

int main(int argc, char **argv) {
    static const char *const takes_value[] = { "--kv",      "--contexts", "--prefill",
                                               "--seconds", "--threads",  "--repeat" };
    const char *recipes, *list;
    char kv[256];
    int i, n;
    size_t k;
    decode_run *r = (decode_run *)calloc(1, sizeof *r);
    if (!r) return 1;
    bench_begin(argc, argv, "decode", 1);
    r->seconds = atof(bench_option("--seconds", "3"));
    bench_header("<model                  |<kv                        |<what   |context| tok/s|   "
                 "min|   max|MB/token|  GB/s|of read");
    for (i = 1; i < argc; i++) {
        int is_option = argv[i][0] == '-';
        for (k = 0; k < sizeof takes_value / sizeof *takes_value; k++)
            if (!strcmp(argv[i], takes_value[k])) i++;
        if (is_option) continue;
        decode_read(r, argv[i]);
        for (list = bench_option("--prefill", "512,4096"); (n = decode_next(&list)) > 0;)
            decode_prefill(r, "full codec=f16", n);
        recipes = bench_option("--kv", "full codec=f16;full codec=q8_0;full codec=q4_0;"
                                       "snapkv budget=10% codec=f16");
        while (*recipes) {
            const size_t len = strcspn(recipes, ";");
            snprintf(kv, sizeof kv, "%.*s", (int)KVMEM__MIN(len, sizeof kv - 1), recipes);
            recipes += len + (recipes[len] == ';');
            for (list = bench_option("--contexts", "0,4096,16384"); (n = decode_next(&list)) >= 0;)
                decode_depth(r, kv, n);
        }
        kvmem_model_close(&r->model);
        free(r->bytes);
        memset(&r->model, 0, sizeof r->model);
    }
    free(r);
    return 0;
}
