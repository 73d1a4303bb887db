/* codecs.c - every codec and every preset that codes, in one table: what it takes, what it costs in
   quality, how fast it is.

   bits    bits a value of K and of V on the default model's lanes: codes, heads of pages, what was
           learned and rows kept finer, all of them
   error   sum of squares of x - y over that of x, over all lanes: K and V of the default model
           (corpus text) and of stories260K (tinystories) if ../shared is there
   output  the same for the output of attention: 64 tokens with the model's own queries over 1024
           coded ones, against exact K and V
   KL, top-1   next-token distribution beside the full cache, in nats, and how often the likeliest
           token is the same: `./kvmem eval --suite ppl`
   encode, decode   GB/s of float32 rows, d = 128, one thread
   attention   one token over 16384 coded ones, 16 heads over 4 KV heads of 128: GB/s of coded
   bytes, their share of the read bandwidth measured in the same run, and how many times as fast as
           f16; one thread and two. Caches are emptied between calls.
   A dash: not coded by this recipe, or not measured.

       make bench, or: build/bench_codecs [--csv | --json] [--only WORD] [--quick] [--no-speed]
                                          [--repeat N] [--path avx2] [-m MODEL] */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "bench.h"
#include "../tests/coded.h"
#include "../tests/tool.h"
#include "record.h"

enum { MAX_ROWS = 160, MODELS = 2, DEPTH = 16384, HEADS = 16, KV = 4, DIM = 128 };
#define TINY_STORIES "../shared/data/tinystories_120k.txt"
#define STORIES "../shared/models/stories260K.bin"
#define STORIES_WORDS "../shared/models/tok512.bin"

typedef struct speed { double gbs, times; } speed;
typedef struct row {
    char label[96], text[200];
    kvmem_recipe r;
    int coded[2];                  /* is K, is V coded? */
    double bits[2], error[MODELS][2], output[MODELS]; /* below 0: not measured */
    double kl, top1, encode, decode;
    speed at[2];
    char why[320];
} row;
static row rows[MAX_ROWS];
static int n_rows, quick;

/* ==== >>rows : from the tables ================================================================ */

static int plain_codec(const kvmem_choice *c) {
    return !strcmp(c->entry->word, "f32") || !strcmp(c->entry->word, "f16");
}
static void add_row(const char *label, const char *text) {
    row *w = rows + n_rows;
    int i, k;
    if (n_rows == MAX_ROWS || kvmem_recipe_parse(&w->r, text, NULL) != KVMEM_OK) return;
    snprintf(w->label, sizeof w->label, "%s", label);
    snprintf(w->text, sizeof w->text, "%s", text);
    for (i = 0; i < 2; i++) {
        w->coded[i] = !plain_codec(&w->r.stage[KVMEM_CODEC_K + i]);
        w->bits[i] = -1;
        w->at[i].gbs = w->at[i].times = -1;
        for (k = 0; k < MODELS; k++) w->error[k][i] = w->output[k] = -1;
    }
    w->kl = w->top1 = w->encode = w->decode = -1;
    w->why[0] = 0;
    n_rows++;
}
/* Codecs whose K and V are stored in two ways, or that are for one side alone: how they are paired,
   at 2, 3 and 4 bits (%d). Words that stand here get no rows of their own. */
static const struct { const char *words, *label, *text; } pairs[] = {
    { " kivi ", "kivi", "codec.k=kivi(bits=%d) codec.v=kivi(bits=%d,axis=token) page=32" },
    { " kvquant kvquant_v ", "kvquant", "codec.k=kvquant(bits=%d) codec.v=kvquant_v(bits=%d)" },
    { " q4_0 ", "q4_0", "codec=q4_0" },
    { " q8_0 ", "q8_0", "codec=q8_0" },
    { " polarquant ", "polarquant(bits=2)", "codec=polarquant(first=3,bits=2)" },
    { " polarquant ", "polarquant(bits=3)", "codec=polarquant(first=5,bits=3)" } };
enum { PAIRS = sizeof pairs / sizeof *pairs };

static int is_paired(const char *word) {
    char find[64];
    int i;
    snprintf(find, sizeof find, " %.60s ", word);
    for (i = 0; i < PAIRS; i++) if (strstr(pairs[i].words, find)) return 1;
    return 0;
}
static void add_pairs(int i) {
    char label[96], text[200];
    const int one = !strchr(pairs[i].text, '%');
    int b;
    for (b = 2; b <= (one ? 2 : 4); b++) {
        snprintf(label, sizeof label, one ? "%s" : "%s(bits=%d)", pairs[i].label, b);
        snprintf(text, sizeof text, pairs[i].text, b, b);
        add_row(label, text);
    }
}
static void add_codec(const kvmem_entry *e, const char *params) {
    const unsigned flags = codec_of(e)->flags;
    char spec[96], text[240];
    snprintf(spec, sizeof spec, *params ? "%s(%s)" : "%s%s", e->word, params);
    if (flags & KVMEM_CODEC_KEYS) snprintf(text, sizeof text, "codec.k=%s codec.v=f16", spec);
    else if (flags & KVMEM_CODEC_VALUES)
        snprintf(text, sizeof text, "codec.k=f16 codec.v=%s", spec);
    else snprintf(text, sizeof text, "codec=%s", spec);
    add_row(spec, text);
}
/* f16 first: the others are compared with it. */
static void make_rows(const char *only) {
    const kvmem_entry *e;
    const kvmem_preset *p;
    char params[64];
    int i, b, k;
    add_row("f16", "codec=f16");
    rows[0].coded[0] = rows[0].coded[1] = 1;
    for (i = 0; i < PAIRS; i++) add_pairs(i);
    for (i = 0; (e = kvmem_stage_entry(KVMEM_CODEC_K, i)) != NULL; i++) {
        const kvmem_param *bits = find_param(e, "bits"), *center = find_param(e, "center");
        if (!strcmp(e->word, "f32") || !strcmp(e->word, "f16") || is_paired(e->word)) continue;
        if (codec_of(e)->flags & KVMEM_CODEC_SHARED) continue; /* for models whose V is K */
        if (!bits) add_codec(e, "");
        for (b = 2; bits && b <= 4; b++) {
            snprintf(params, sizeof params, "bits=%d", b);
            add_codec(e, params);
        }
        if (bits && center && !(codec_of(e)->flags & KVMEM_CODEC_VALUES))
            add_codec(e, "bits=2,center=head");
    }
    for (i = 0; (p = kvmem_preset_at(i)) != NULL; i++) {
        kvmem_recipe r;
        if (kvmem_recipe_parse(&r, p->word, NULL) != KVMEM_OK) continue;
        if (codec_of(r.stage[KVMEM_CODEC_V].entry)->flags & KVMEM_CODEC_SHARED) continue;
        if (plain_codec(&r.stage[KVMEM_CODEC_K]) && plain_codec(&r.stage[KVMEM_CODEC_V])) continue;
        snprintf(params, sizeof params, "preset %s", p->word);
        add_row(params, p->word);
    }
    for (i = k = 1; i < n_rows; i++) /* the reference stays */
        if (!*only || strstr(rows[i].label, only)) rows[k++] = rows[i];
    n_rows = k;
}

/* ==== >>quality : rows of real models through the cache ======================================= */

/* Bits a value of the lanes as they are after the prompt. */
static void lane_bits(const kvmem_cache *c, double *bits) {
    size_t sum[2] = { 0, 0 };
    const int lanes = c->shape.n_layers * c->shape.n_kv_heads;
    int g, i;
    for (g = 0; g < c->n_lanes; g++) /* those of demoted rows, too */
        for (i = 0; i < 2; i++) sum[i] += codec_count(c, g, i).total;
    for (i = 0; i < 2; i++)
        bits[i] = 8.0 * (double)sum[i] / ((double)lanes * FED * c->shape.head_dim);
}
static void measure_rows(int model) {
    kvmem_recipe full = kvmem_recipe_default();
    kvmem_cache c;
    exact a, b;
    int i, k;
    const size_t d = (size_t)recorded.shape.head_dim, H = (size_t)recorded.shape.n_heads,
                 L = (size_t)recorded.shape.n_layers, G = (size_t)recorded.shape.n_kv_heads;
    char why[320];
    if (record_run(&full, &c, &a, why, sizeof why) ||
        record_block(&c, FED, SEEN, KVMEM_DECODE, a.o)) {
        fprintf(stderr, "%s\n", c.error.text);
        exit(FAILED);
    }
    kvmem_cache_free(&c);
    for (i = 0; i < n_rows; i++) {
        row *w = rows + i;
        int bad = record_run(&w->r, &c, &b, w->why, sizeof w->why);
        const int whole = !bad && kvmem_cache_lane_len(&c, 0, 0) == FED;
        for (k = 0; k < 2 && whole; k++)
            if (w->coded[k])
                w->error[model][k] =
                    k ? squares(a.v, b.v, L * G * FED * d) : squares(a.k, b.k, L * G * FED * d);
        if (!bad && !model) lane_bits(&c, w->bits);
        if (!bad) bad = record_block(&c, FED, SEEN, KVMEM_DECODE, b.o);
        if (!bad) w->output[model] = squares(a.o, b.o, L * SEEN * H * d);
        else snprintf(w->why, sizeof w->why, "%s", c.error.text);
        kvmem_cache_free(&c);
        exact_free(&b);
    }
    exact_free(&a);
}
/* KL and the likeliest token beside the full cache, by the evaluation's ppl suite. */
static void measure_kl(const args *given) {
    int from, i, n;
    for (from = 0; from < n_rows; from = n) {
        eval e;
        args a = *given;
        char list[256];
        a.kvs.n = 0;
        for (n = from; n < n_rows && a.kvs.n < MAX_LIST; n++) {
            char seen[512], text[512];
            kvmem_recipe_print(&rows[n].r, text, sizeof text);
            for (i = from; i < n; i++) { /* a preset may be what a codec is anyway */
                kvmem_recipe_print(&rows[i].r, seen, sizeof seen);
                if (!strcmp(strchr(seen, ' ') ? strchr(seen, ' ') : "",
                            strchr(text, ' ') ? strchr(text, ' ') : ""))
                    break;
            }
            if (i == n && !rows[n].why[0]) a.kvs.item[a.kvs.n++] = rows[n].text;
        }
        eval_begin(&e, &a);
        if (eval_options(&e, list, sizeof list) || eval_open(&e) || eval_streams(&e, 0))
            exit(FAILED);
        for (i = 0; i < e.r.n_cells; i++) {
            const eval_cell *c = e.r.cell + i;
            int k;
            for (k = from; k < n; k++) {
                if (strcmp(rows[k].text, e.r.method[c->method])) continue;
                if (c->error[0]) {
                    snprintf(rows[k].why, sizeof rows[k].why, "%s", c->error);
                    continue;
                }
                rows[k].kl = mean_of(c->kl, c->n_s);
                rows[k].top1 = mean_of(c->top1, c->n_s);
            }
        }
        eval_close(&e);
    }
}

/* ==== >>speed ================================================================================= */

/* A block of `page` rows, coded and decoded again and again. */
typedef struct coder { coded c; float *x, *y; int n, way; size_t room; } coder;

static void coder_run(void *user) {
    coder *k = (coder *)user;
    kvmem_coded *b = &k->c.b;
    if (k->way) { coded_decode(&k->c, k->y); bench_sink = (double)k->y[0]; return; }
    if (k->c.u.fn.head_bytes) b->head_bytes = k->c.u.fn.head_bytes(b, k->x);
    if (b->head_bytes > k->room) { b->head = (uint8_t *)grow(b->head, k->room = b->head_bytes, 1); }
    k->c.u.fn.encode(b, k->x, 0, k->n);
    bench_sink = b->rows[0];
}
static void fill_rows(float *x, int n, int d) { /* a few channels far from zero, as keys have */
    int i;
    for (i = 0; i < n * d; i++)
        x[i] = (float)(2 * kvmem__unit(kvmem__mix((uint64_t)i)) - 1 + (i % 41 == 3 ? 6 : 0));
}
static void measure_coding(row *w) {
    const int of = w->coded[0] ? 0 : 1, n = w->r.page;
    const size_t bytes = (size_t)n * DIM * sizeof(float);
    const kvmem_choice *choice;
    coder k;
    float *lesson, *scratch;
    memset(&k, 0, sizeof k);
    choice = &w->r.stage[KVMEM_CODEC_K + of];
    kvmem__use_init(&k.c.u, codec_of(choice->entry), choice->par, DIM, real->isa);
    if (k.c.u.table_bytes) {
        k.c.u.table = coded_alloc(k.c.u.table_bytes);
        k.c.u.fn.build(k.c.u.par, DIM, k.c.u.table);
    }
    if (k.c.u.state_floats)
        k.c.state = (float *)coded_alloc((size_t)k.c.u.state_floats * sizeof(float));
    k.c.b = kvmem__coded_of(&k.c.u, k.c.state, NULL, 0, NULL, 0);
    lesson = (float *)grow(NULL, (size_t)KVMEM_LEARN_ROWS * DIM, sizeof *lesson);
    fill_rows(lesson, KVMEM_LEARN_ROWS, DIM);
    k.n = n;
    k.x = lesson;
    k.y = (float *)grow(NULL, bytes, 1);
    coded_learn(&k.c, lesson, KVMEM_LEARN_ROWS);
    coded_encode(&k.c, k.x, n);
    k.room = k.c.b.head_bytes;
    k.c.b.scratch = scratch = coded_scratch(&k.c, n);
    w->encode = (double)bytes / bench_samples(coder_run, &k, 0.02).median;
    k.way = 1;
    w->decode = (double)bytes / bench_samples(coder_run, &k, 0.02).median;
    free(scratch);
    k.c.b.scratch = NULL;
    coded_free(&k.c);
    free(lesson);
    free(k.y);
}

/* A token over DEPTH coded ones. Only attend is timed; the caches are emptied before each call. */
static double attend_seconds(kvmem_cache *c, float *x, float *o) {
    static unsigned char *wipe;
    const size_t size = (size_t)64 << 20;
    double v[64], t;
    int i;
    const int n = bench_repeat < 3 ? 3 : bench_repeat > 64 ? 64 : bench_repeat;
    if (!wipe) {
        wipe = (unsigned char *)grow(NULL, size, 1);
        memset(wipe, 1, size);
    }
    for (i = 0; i < n; i++) {
        if (kvmem_cache_append(c, 0, 1, x, x, NULL)) return -1;
        if (bench_sum_plain(wipe, size) == 1) return -1;
        t = bench_now();
        if (kvmem_cache_attend(c, 0, 1, x, o)) return -1;
        v[i] = bench_now() - t;
        if (kvmem_cache_commit(c, KVMEM_DECODE)) return -1;
    }
    return bench_stats(v, n).median;
}
static void measure_attention(row *w, int fed) {
    static double f16[2];
    kvmem_config cfg = kvmem_config_default();
    static kvmem_backend quiet;
    enum { BLOCK = 512 };
    float *x = (float *)grow(NULL, (size_t)BLOCK * HEADS * DIM, sizeof *x);
    float *o = (float *)grow(NULL, (size_t)BLOCK * HEADS * DIM, sizeof *o);
    float freq[DIM / 2];
    kvmem_rope rope;
    kvmem_cache c;
    int i, at, bad;
    for (i = 0; i < DIM / 2; i++) freq[i] = (float)pow(10000, -2.0 * i / DIM);
    rope.n_rot = DIM;
    rope.neox = 0;
    rope.mscale = 1;
    rope.inv_freq = freq;
    quiet = *real;
    quiet.attend = codec_attend;
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = HEADS;
    cfg.shape.n_kv_heads = KV;
    cfg.shape.head_dim = DIM;
    cfg.shape.rope = &rope;
    cfg.recipe = &w->r;
    cfg.backend = &quiet;
    cfg.threads = 1;
    fill_rows(x, BLOCK * HEADS, DIM);
    bad = kvmem_cache_init(&c, &cfg) != KVMEM_OK;
    for (at = 0; at < fed && !bad; at += BLOCK) {
        fill_rows(x, BLOCK, HEADS * DIM);
        bad = kvmem_cache_append(&c, 0, BLOCK, x, x + at % 977, NULL) ||
              kvmem_cache_attend(&c, 0, BLOCK, x, o) ||
              kvmem_cache_commit(&c, at + BLOCK < fed ? KVMEM_PREFILL : KVMEM_PROMPT_END);
    }
    quiet.attend = real->attend;
    for (i = 0; i < 2 && !bad && kvmem_cache_lane_len(&c, 0, 0) >= fed; i++) {
        double seconds;
        size_t bytes = 0;
        int g;
        for (g = 0; g < c.n_lanes; g++)
            bytes += codec_count(&c, g, 0).total + codec_count(&c, g, 1).total;
        c.threads = i + 1;
        seconds = attend_seconds(&c, x, o);
        if (seconds <= 0) break;
        w->at[i].gbs = (double)bytes / seconds;
        if (w == rows) f16[i] = seconds;
        w->at[i].times = f16[i] / seconds;
    }
    if (bad && !w->why[0]) snprintf(w->why, sizeof w->why, "%s", c.error.text);
    kvmem_cache_free(&c);
    free(x);
    free(o);
}

/* ==== >>table ================================================================================= */

static const char *cell(double v, const char *f) { /* "-" for what was not measured */
    static char text[32][32];
    static int i;
    char *t = text[i = (i + 1) % 32];
    if (v < 0) snprintf(t, 32, "-");
    else snprintf(t, 32, f, v);
    return t;
}
static void show_rows(double one, double two) {
    int i;
    bench_header(
        "<codec                            |bits K|bits V| error K| error V|  output| story K| "
        "story V|"
        "       KL| top-1|enc GB/s|dec GB/s|1t GB/s|of read|x f16|2t GB/s|of read 2|x f16 2");
    for (i = 0; i < n_rows; i++) {
        const row *w = rows + i;
        bench_row("%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s", w->label,
                  cell(w->coded[0] ? w->bits[0] : -1, "%.2f"),
                  cell(w->coded[1] ? w->bits[1] : -1, "%.2f"), cell(w->error[0][0], "%.3g"),
                  cell(w->error[0][1], "%.3g"), cell(w->output[0], "%.3g"),
                  cell(w->error[1][0], "%.3g"), cell(w->error[1][1], "%.3g"), cell(w->kl, "%.3g"),
                  cell(w->top1, "%.3f"), cell(w->encode / 1e9, "%.3f"),
                  cell(w->decode / 1e9, "%.2f"), cell(w->at[0].gbs / 1e9, "%.2f"),
                  cell(one > 0 ? w->at[0].gbs / one : -1, "%.2f"), cell(w->at[0].times, "%.2f"),
                  cell(w->at[1].gbs / 1e9, "%.2f"), cell(two > 0 ? w->at[1].gbs / two : -1, "%.2f"),
                  cell(w->at[1].times, "%.2f"));
    }
    for (i = 0; i < n_rows; i++)
        if (rows[i].why[0]) fprintf(stderr, "%s: %s\n", rows[i].label, rows[i].why);
}

/* ==== >>main ================================================================================== */

static int readable(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}
int main(int argc, char **argv) {
    const char *path, *model;
    double one = 0, two = 0;
    args a;
    int i, speeds;
    bench_begin(argc, argv, "codecs", 0);
    command_name = "codecs";
    path = bench_option("--path", "");
    model = bench_option("-m", DEFAULT_MODEL);
    quick = bench_flag("--quick");
    speeds = !bench_flag("--no-speed");
    real = kvmem_backend_cpu(*path ? path : NULL);
    if (!real) return fail("no path %s on this machine", path);
    make_rows(bench_option("--only", ""));
    memset(&a, 0, sizeof a);
    a.ctx = a.chunk = a.first = -1;
    a.suite = "ppl";
    a.lengths = quick ? "256" : "1k";
    a.budgets = "50%";
    a.seeds = quick ? 1 : 3;
    a.depths = a.seed = 1;
    a.block = 128;
    a.threads = 1;
    a.model = model;
    a.backend = *path ? path : NULL;
    if (record_open(model, NULL, NULL, real)) return FAILED;
    measure_rows(0);
    record_free();
    if (readable(STORIES) && readable(STORIES_WORDS) && readable(TINY_STORIES)) {
        if (record_open(STORIES, STORIES_WORDS, TINY_STORIES, real)) return FAILED;
        measure_rows(1);
        record_free();
    }
    measure_kl(&a);
    if (speeds) {
        bench_threads = 1;
        one = bench_bandwidth();
        bench_threads = 2;
        two = bench_bandwidth();
        if (!bench_json)
            printf("# read bandwidth: %.1f GB/s by one thread, %.1f by two\n", one / 1e9,
                   two / 1e9);
    }
    for (i = 0; i < n_rows && speeds; i++) {
        measure_coding(rows + i);
        measure_attention(rows + i, quick ? 1024 : DEPTH);
    }
    show_rows(one, two);
    free(out.text);
    return OK;
}
