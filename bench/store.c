/* store.c - the episode store on the default model: what a stored episode saves against reading its text again, what
   each codec costs in bytes and nearness, and what putting two episodes one behind the other costs when keys are turned
   to their new positions and when they are not (as MemOS puts KV items together, arXiv 2507.03724).

   Build  make build/bench_store      Run  build/bench_store [--model F] [--tokens N] [--csv]
   The text is the corpus language of the default model (tools/corpus.h). Files are written to build/. */
#include "bench.h"
#include "../tools/corpus.h"

#define PATH "build/bench_store.kve"
enum { NEXT = 64 };
static kvmem_model model;
static const int *ids;

static void die(const char *what, const char *why) {
    fprintf(stderr, "bench_store: %s: %s\n", what, why);
    exit(1);
}
static void begin(kvmem_session *s) {
    kvmem_session_config c = kvmem_session_config_default();
    c.threads = bench_threads;
    if (kvmem_session_init(s, &model, &c)) die("session", s->error.text);
}
static void feed(kvmem_session *s, const int *x, int n, kvmem_phase phase) {
    if (kvmem_session_feed(s, x, n, phase, NULL, NULL)) die("feed", s->error.text);
}
/* Mean -ln p of NEXT tokens behind what the session holds; the first is fed, not counted. */
static double nll(kvmem_session *s, const int *x) {
    double sum = 0;
    int i, j;
    for (i = 0; i < NEXT; i++) {
        double most, z = 0;
        feed(s, x + i, 1, KVMEM_DECODE);
        for (most = (double)s->logits[0], j = 1; j < model.n_vocab; j++)
            most = (double)s->logits[j] > most ? (double)s->logits[j] : most;
        for (j = 0; j < model.n_vocab; j++) z += exp((double)s->logits[j] - most);
        sum += log(z) + most - (double)s->logits[x[i + 1]];
    }
    return sum / NEXT;
}
static kvmem_store_options options(const kvmem_session *s, const char *codec) {
    kvmem_store_options o = kvmem_store_options_of(&s->cache);
    o.codec_k = o.codec_v = codec;
    return o;
}
static void open_store(kvmem_store *t, const kvmem_store_options *o) {
    if (kvmem_store_open(t, PATH, o)) die(PATH, t->error.text);
}
/* Text against rows: seconds until the first token behind n tokens is known. */
static void first_token(int n) {
    static const char *const codec[4] = { "f32", "f16", "q8_0", "q4_0" };
    kvmem_session s, d;
    kvmem_store t;
    kvmem_episode e;
    double at, text, want;
    int i;
    printf("\n## %d tokens and %d more: read as text, or loaded from a file\n", n, NEXT);
    bench_header("from|KiB|ms to first token|-ln p of what follows");
    begin(&s);
    at = bench_now();
    feed(&s, ids, n, KVMEM_PROMPT_END);
    text = bench_now() - at;
    for (i = 0; i < 4; i++) {
        const kvmem_store_options o = options(&s, codec[i]);
        remove(PATH);
        open_store(&t, &o);
        if (kvmem_store_add(&t, NULL, NULL, &s.cache, 0, n, NULL)) die("add", t.error.text);
        kvmem_store_close(&t);
        begin(&d);
        at = bench_now();
        open_store(&t, &o);
        if (kvmem_store_load(&t, 1, &d.cache, KVMEM_STORE_ORIGINAL, NULL)) die("load", t.error.text);
        at = bench_now() - at;
        if (kvmem_store_get(&t, 1, 0, &e)) die("get", t.error.text);
        want = nll(&d, ids + n);
        bench_row("store, %s|%.0f|%.1f|%.4f", codec[i], (double)e.bytes / 1024, 1000 * at, want);
        kvmem_store_close(&t);
        kvmem_session_free(&d);
    }
    bench_row("text|0|%.1f|%.4f", 1000 * text, nll(&s, ids + n));
    kvmem_session_free(&s);
    remove(PATH);
}
/* The second half is read alone, from position 0 on, then put behind the first: its keys turned by `turn` positions. */
static double behind(const kvmem_session *first, const kvmem_session *second, int n, int turned) {
    const kvmem_shape *shape = &first->cache.shape;
    const int L = shape->n_layers, G = shape->n_kv_heads, d = shape->head_dim;
    const size_t all = (size_t)(L * n * G * d) * sizeof(float);
    kvmem_store_options o = options(first, "f32");
    kvmem_store t;
    kvmem_episode e;
    kvmem_session s;
    float *k = (float *)malloc(all), *v = (float *)malloc(all);
    float *x = (float *)malloc((size_t)(n * d) * sizeof *x), *y = (float *)malloc((size_t)(n * d) * sizeof *y);
    const int32_t back = -n;
    uint64_t id[2];
    double r;
    int l, g, i;
    if (!k || !v || !x || !y) die("memory", "none left");
    if (kvmem_store_open(&t, NULL, &o)) die("store", t.error.text);
    if (kvmem_store_add(&t, NULL, NULL, &first->cache, 0, n, &id[0]) ||
        kvmem_store_add(&t, NULL, NULL, &second->cache, 0, n, &id[1])) die("add", t.error.text);
    /* keys that stay as they were at 0, 1, ...: turned back by as much as load will turn them */
    for (l = 0; l < L && !turned; l++)
        for (g = 0; g < G; g++) {
            if (kvmem_store_rows(&t, id[1], 0, l, g, x, y, NULL, n, NULL)) die("rows", t.error.text);
            for (i = 0; i < n; i++) {
                float *to = k + ((size_t)(l * n + i) * (size_t)G + (size_t)g) * (size_t)d;
                memcpy(to, x + (size_t)i * (size_t)d, (size_t)d * sizeof *to);
                first->cache.backend->rope(to, to, 1, 1, d, &shape->rope[l], &back, 0, 1);
                memcpy(v + (to - k), y + (size_t)i * (size_t)d, (size_t)d * sizeof *to);
            }
        }
    memset(&e, 0, sizeof e);
    e.n = n;
    if (!turned && kvmem_store_add_rows(&t, &e, NULL, k, v, &id[1])) die("add", t.error.text);
    begin(&s);
    for (i = 0; i < 2; i++)
        if (kvmem_store_load(&t, id[i], &s.cache, KVMEM_STORE_PACKED, NULL)) die("load", t.error.text);
    r = nll(&s, ids + 2 * n);
    kvmem_session_free(&s);
    kvmem_store_close(&t);
    free(k); free(v); free(x); free(y);
    return r;
}
static void two_items(int n) {
    kvmem_session a, b, both;
    begin(&a); begin(&b); begin(&both);
    feed(&a, ids, n, KVMEM_PROMPT_END);
    feed(&b, ids + n, n, KVMEM_PROMPT_END);
    feed(&both, ids, 2 * n, KVMEM_PROMPT_END);
    printf("\n## two halves of %d tokens, -ln p of the %d tokens behind them\n", n, NEXT);
    bench_header("how|-ln p");
    bench_row("both read together|%.4f", nll(&both, ids + 2 * n));
    bench_row("read apart, keys turned to their places|%.4f", behind(&a, &b, n, 1));
    bench_row("read apart, keys as they were (MemOS)|%.4f", behind(&a, &b, n, 0));
    kvmem_session_free(&a); kvmem_session_free(&b); kvmem_session_free(&both);
}
/* Many small episodes: seconds of each call. */
static void many(int n) {
    enum { DIM = 64, TOKENS = 64 };
    kvmem_session s;
    kvmem_store t;
    kvmem_store_options o;
    kvmem_store_query q = kvmem_store_query_default();
    kvmem_store_hit hit[8];
    kvmem_vector v;
    kvmem_content c;
    kvmem_store_usage u;
    kvmem_store_check check;
    float x[DIM];
    double at[6];
    int i, j, found;
    begin(&s);
    feed(&s, ids, TOKENS, KVMEM_PROMPT_END);
    o = options(&s, "f16");
    o.no_sync = 1;
    o.ram_bytes = (size_t)8 << 20;
    remove(PATH);
    memset(&v, 0, sizeof v);
    memset(&c, 0, sizeof c);
    v.dim = DIM; v.x = x;
    c.vector = &v; c.n_vectors = 1;
    open_store(&t, &o);
    at[0] = bench_now();
    for (i = 0; i < n; i++) {
        for (j = 0; j < DIM; j++) x[j] = (float)kvmem__unit(kvmem__random(1, (uint64_t)i, (uint64_t)j, 0)) - 0.5f;
        if (kvmem_store_add(&t, NULL, &c, &s.cache, 0, TOKENS, NULL)) die("add", t.error.text);
    }
    kvmem_store_close(&t);
    at[1] = bench_now();
    open_store(&t, &o);
    at[2] = bench_now();
    q.x = x; q.dim = DIM;
    for (i = 0; i < 10; i++) kvmem_store_search(&t, &q, hit, 8, &found);
    at[3] = bench_now();
    for (i = 0; i < 100; i++) {
        kvmem_cache_clear(&s.cache);
        if (kvmem_store_load(&t, 1 + (uint64_t)(i * 37 % n), &s.cache, KVMEM_STORE_PACKED, NULL))
            die("load", t.error.text);
    }
    at[4] = bench_now();
    if (kvmem_store_verify(&t, &check, NULL, NULL)) die("verify", t.error.text);
    at[5] = bench_now();
    kvmem_store_bytes(&t, &u);
    printf("\n## %d episodes of %d tokens, f16, a vector of %d, 8 MiB of RAM\n", n, TOKENS, DIM);
    bench_header("file MiB|RAM MiB|add us|open ms|search us|load us|verify MB/s");
    bench_row("%.1f|%.1f|%.0f|%.1f|%.0f|%.0f|%.0f", (double)u.file / 1048576, (double)u.peak / 1048576,
              1e6 * (at[1] - at[0]) / n, 1e3 * (at[2] - at[1]), 1e5 * (at[3] - at[2]), 1e4 * (at[4] - at[3]),
              1e-6 * (double)check.bytes / (at[5] - at[4]));
    kvmem_store_close(&t);
    kvmem_session_free(&s);
    remove(PATH);
}
int main(int argc, char **argv) {
    static corpus_test test;
    corpus_eval_params p;
    const char *path;
    unsigned char *bytes;
    FILE *f;
    long size;
    int n;
    bench_begin(argc, argv, "store", 0);
    path = bench_option("--model", "examples/models/tiny.gguf");
    n = atoi(bench_option("--tokens", "1000"));
    if (n < 64 || n > 100000) die("--tokens", "64 to 100000");
    f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) || (size = ftell(f)) < 1) die(path, "cannot be read");
    rewind(f);
    bytes = (unsigned char *)malloc((size_t)size);
    if (!bytes || fread(bytes, 1, (size_t)size, f) != (size_t)size) die(path, "cannot be read");
    fclose(f);
    if (kvmem_model_open(&model, bytes, (size_t)size, NULL, 0, NULL)) die(path, model.error.text);
    if (model.n_vocab != corpus_n_vocab()) die(path, "not a model of the corpus language");
    memset(&p, 0, sizeof p);
    p.suite = CORPUS_CONV;
    p.ctx = n + NEXT + 8;
    p.questions = 4;
    p.seed = 1;
    if (corpus_test_make(&test, &p) || test.n < n + NEXT + 2) die("corpus", "no conversation");
    ids = test.ids;
    first_token(n);
    two_items(n / 2);
    many(1000);
    corpus_test_free(&test);
    kvmem_model_close(&model);
    free(bytes);
    return 0;
}
