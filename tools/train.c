/* train.c - trains a small llama on the language of corpus.h, by a curriculum, and writes it as
   GGUF.

   The curriculum is a list of stages, one line of text each. A stage makes its own streams; it
   ends when the share of right answers over its last batches reaches `until`, or after `most`
   steps. A share `mix` of the batches comes from earlier stages, so that nothing is forgotten. The
   last stage ends the training with a falling learning rate. The same command and seed give the
   same bits on the same kind of processor, for any number of threads, with or without an
   interruption in between. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* fsync, fileno, isatty, clock_gettime */
#endif
#define KVMEM_TRAIN
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include "corpus.h"
#include "gguf_write.h"
#include <errno.h>
#include <stdio.h>
#include <time.h>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define TRAIN_TERMINAL(f) isatty(fileno(f))
#else
#define TRAIN_TERMINAL(f) 0
#endif

enum { TRAIN_STAGES = 32, TRAIN_WINDOW = 48, TRAIN_LENGTHS = 8 };

typedef struct train_stage {
    const char *text;
    corpus_params p;
    int seqs;             /* sequences of a batch */
    double until, mix, lr, lm; /* lm: weight of tokens that are no answers */
    int least, most;      /* steps */
} train_stage;

typedef struct train_state {
    kvmem_trainer t;
    kvmem_train_config shape;
    train_stage stage[TRAIN_STAGES];
    int n_stages;
    uint64_t seed;
    double lr, floor, decay, clip, beta2;
    int warmup, every;
    const char *out, *type, *checkpoint, *snapshot, *from, *init;
    int resume, quiet, speed, n_ctx;
    corpus_stream stream;
    int *ids, *target;
    float *weight;
    unsigned char *answer;
    /* progress: kept in checkpoints */
    int at_stage, n_window;
    int64_t step, stage_step, tokens;
    int32_t right[TRAIN_WINDOW], asked[TRAIN_WINDOW];
    double loss;
    /* speed of this run */
    double began, ended, run_tokens, run_work;
} train_state;

/* What trains examples/models/tiny.gguf. */
static const char *const train_default[] = {
    "len=64 seqs=32 raw_copy=1 until=0.9 most=400",
    "len=192 seqs=12 persons=12 attrs=4 filler=0 ask=60 until=0.97 most=1000",
    "len=256 seqs=8 persons=32 attrs=8 filler=0 ask=50 update=15 twice=5 until=0.97 most=1500",
    "len=512 seqs=6 filler=30 ask=45 update=15 twice=5 chain=10 order=5 copy=8 "
    "distract=3 most=1000",
    "len=1024 seqs=3 filler=50 ask=45 update=15 twice=5 chain=10 order=5 copy=8 "
    "distract=3 most=900",
    "len=2048 seqs=2 filler=60 ask=40 update=15 twice=5 chain=10 order=5 copy=8 "
    "distract=3 most=160",
    "len=1024 seqs=4 filler=50 ask=50 update=15 twice=5 chain=8 order=3 copy=30 "
    "distract=3 most=250",
    "len=2048 seqs=2 filler=60 ask=45 update=15 twice=5 chain=8 order=3 copy=20 "
    "distract=3 most=300",
    "len=4096 seqs=1 filler=65 ask=45 update=15 twice=5 chain=8 order=3 copy=20 "
    "distract=3 most=160",
    "len=4096 seqs=1 filler=65 ask=45 update=15 twice=5 chain=8 order=3 copy=20 "
    "distract=3 most=260 mix=0.5 lm=0.15",
    NULL
};

static double train_now(void) {
#ifdef _POSIX_C_SOURCE
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}
static int train_fail(const char *what, const char *why) {
    fprintf(stderr, "train: %s: %s\n", what, why);
    return 2;
}

/* --- stages ----------------------------------------------------------------------------------- */

static const char *train_stage_check(const train_stage *s) {
    if (corpus_check(&s->p)) return corpus_check(&s->p);
    if (s->seqs < 1 || s->seqs > 65536) return "seqs: 1 to 65536";
    if (s->most < 1) return "most: 1 step or more";
    if (s->least < 0) return "least: 0 steps or more";
    if (s->mix < 0 || s->mix > 1) return "mix: 0 to 1";
    if (s->lr < 0 || s->lm < 0) return "lr, lm: 0 or more";
    return NULL;
}
static int train_stage_parse(train_stage *s, const char *text) {
    static const struct { const char *name; size_t at; } ints[] = {
        { "len", offsetof(train_stage, p.length) },
        { "persons", offsetof(train_stage, p.persons) },
        { "attrs", offsetof(train_stage, p.attrs) },
        { "facts", offsetof(train_stage, p.facts) },
        { "filler", offsetof(train_stage, p.filler) },
        { "ask", offsetof(train_stage, p.ask) },
        { "update", offsetof(train_stage, p.update) },
        { "twice", offsetof(train_stage, p.twice) },
        { "chain", offsetof(train_stage, p.chain) },
        { "order", offsetof(train_stage, p.order) },
        { "copy", offsetof(train_stage, p.copy) },
        { "distract", offsetof(train_stage, p.distract) },
        { "raw_copy", offsetof(train_stage, p.raw_copy) },
        { "raw_gram", offsetof(train_stage, p.raw_gram) },
        { "seqs", offsetof(train_stage, seqs) },
        { "least", offsetof(train_stage, least) },
        { "most", offsetof(train_stage, most) },
    };
    static const struct { const char *name; size_t at; } reals[] = {
        { "until", offsetof(train_stage, until) }, { "mix", offsetof(train_stage, mix) },
        { "lr", offsetof(train_stage, lr) },       { "lm", offsetof(train_stage, lm) },
    };
    const char *c = text;
    char word[32];
    memset(s, 0, sizeof *s);
    s->text = text;
    s->p.persons = 64;
    s->p.attrs = 8;
    s->seqs = 1;
    s->until = 2;
    s->mix = 0.2;
    s->lr = 1;
    s->lm = 0.1;
    s->most = 1000;
    s->least = TRAIN_WINDOW;
    while (*c) {
        char *end;
        double v;
        size_t n = strcspn(c, "= "), i;
        int found = 0;
        if (!n) { c++; continue; }
        if (n >= sizeof word || c[n] != '=')
            return train_fail(text, "a stage is words like len=128");
        memcpy(word, c, n);
        word[n] = 0;
        v = strtod(c + n + 1, &end);
        if (end == c + n + 1 || (*end && *end != ' ') || !(fabs(v) < 1e9))
            return train_fail(word, "needs a number");
        for (i = 0; i < sizeof ints / sizeof *ints; i++)
            if (!strcmp(word, ints[i].name)) {
                if (floor(v) < v) return train_fail(word, "needs a whole number");
                *(int *)(void *)((char *)s + ints[i].at) = (int)v;
                found = 1;
            }
        for (i = 0; i < sizeof reals / sizeof *reals; i++)
            if (!strcmp(word, reals[i].name)) {
                *(double *)(void *)((char *)s + reals[i].at) = v;
                found = 1;
            }
        if (!found) return train_fail(word, "not a word of a stage, see --help");
        c = end;
    }
    return train_stage_check(s) ? train_fail(text, train_stage_check(s)) : 0;
}

/* --- a batch ---------------------------------------------------------------------------------- */

static int train_batch(train_state *s, const train_stage *g, uint64_t key, int held_out,
                       kvmem_batch *b) {
    const int len = g->p.length - 1;
    int i, j;
    for (i = 0; i < g->seqs; i++) {
        corpus_params p = g->p;
        int code;
        p.held_out = held_out;
        p.seed = kvmem__random(s->seed, key, (uint64_t)i, 77);
        code = corpus_make(&s->stream, &p);
        if (code) return train_fail("corpus", corpus_error(code));
        for (j = 0; j < len; j++) {
            const size_t at = (size_t)i * (size_t)len + (size_t)j;
            s->ids[at] = s->stream.ids[j];
            s->target[at] = s->stream.ids[j + 1];
            s->answer[at] = s->stream.answer[j + 1];
            s->weight[at] = s->answer[at] ? 1.0f : p.raw_copy ? 0.0f : (float)g->lm;
        }
    }
    b->n_seq = g->seqs;
    b->len = len;
    b->ids = s->ids;
    b->target = s->target;
    b->weight = s->weight;
    return 0;
}
static void train_count(const train_state *s, const kvmem_batch *b, int *right, int *asked) {
    int i;
    *right = *asked = 0;
    for (i = 0; i < b->n_seq * b->len; i++) {
        *asked += s->answer[i];
        *right += s->answer[i] && s->t.best[i] == b->target[i];
    }
}

/* --- files ------------------------------------------------------------------------------------ */

static int train_put(void *user, const void *bytes, size_t size) {
    return fwrite(bytes, 1, size, (FILE *)user) != size;
}
/* Opens path.tmp; train_commit renames it: a reader sees the old file or the whole new one. */
static FILE *train_open(const char *path, char *tmp, size_t size) {
    FILE *f;
    if ((size_t)snprintf(tmp, size, "%s.tmp", path) >= size) {
        train_fail(path, "is too long a name");
        return NULL;
    }
    f = fopen(tmp, "wb");
    if (!f) train_fail(tmp, strerror(errno));
    return f;
}
static int train_commit(FILE *f, const char *tmp, const char *path, int bad) {
    bad |= ferror(f) != 0;
    bad |= fflush(f) != 0;
#if defined(__unix__) || defined(__APPLE__)
    bad |= fsync(fileno(f)) != 0;
#endif
    bad |= fclose(f) != 0;
    if (!bad && !rename(tmp, path)) return 0;
    remove(tmp);
    return train_fail(path, "could not be written whole");
}
/* Before hours of training: can this file be written? What is there stays as it is. */
static int train_probe(const char *path) {
    char tmp[1024];
    FILE *f = fopen(path, "rb+");
    if (!f && errno != ENOENT) return train_fail(path, strerror(errno));
    if (f) fclose(f);
    f = train_open(path, tmp, sizeof tmp);
    if (!f) return 2;
    fclose(f);
    remove(tmp);
    return 0;
}
static int train_write_gguf(const train_state *s, const char *path) {
    const kvmem_train_config *c = &s->shape;
    const gguf_type *wanted = gguf_find_type(s->type);
    gguf_writer g;
    char tmp[1024];
    FILE *f = train_open(path, tmp, sizeof tmp);
    unsigned char *row;
    size_t widest = 0;
    int i, bad;
    if (!f) return 2;
    memset(&g, 0, sizeof g);
    strcpy(g.arch, c->qk_norm ? "qwen3" : "llama");
    gguf_kv_llama(&g, s->n_ctx, c->n_embd, c->n_layers, c->n_ff, c->n_heads, c->n_kv_heads,
                  c->head_dim, c->rope_base, (double)c->norm_eps);
    gguf_kv_str(&g, "general.name", "kvmem tiny");
    gguf_kv_u32(&g, "general.file_type", wanted->id == 1 ? 1 : wanted->id == 8 ? 7 : 0);
    gguf_kv_u32(&g, ".vocab_size", c->n_vocab);
    corpus_write_vocab(&g);
    for (i = 0; i < s->t.n_params; i++) {
        const kvmem_weight *p = &s->t.param[i];
        const int matrix = p->rows > 1 && p->cols % wanted->block == 0;
        uint64_t ne[2];
        ne[0] = (uint64_t)p->cols;
        ne[1] = (uint64_t)p->rows;
        gguf_add(&g, matrix ? wanted : gguf_find_type("f32"), p->name, p->rows > 1 ? 2 : 1, ne);
        if ((size_t)p->cols * 4 > widest) widest = (size_t)p->cols * 4;
    }
    gguf_head(&g, train_put, f);
    row = (unsigned char *)malloc(widest);
    for (i = 0; i < s->t.n_params && row && !g.failed; i++) {
        const kvmem_weight *p = &s->t.param[i];
        const gguf_type *type = g.t[i].type;
        const size_t bytes = (size_t)(p->cols / type->block) * (size_t)type->bytes;
        int r;
        for (r = 0; r < p->rows; r++) {
            const float *w = p->w + (size_t)r * (size_t)p->cols;
            if (kvmem_quantize((kvmem_type)type->id, row, w, (size_t)p->cols))
                gguf_fail(&g, "%s cannot be stored as %s", p->name, type->name);
            gguf_put(&g, row, bytes);
        }
        gguf_end(&g, i);
    }
    bad = g.failed || !row;
    if (bad) train_fail(path, g.failed ? g.why : "no memory");
    free(row);
    gguf_writer_free(&g);
    return train_commit(f, tmp, path, bad);
}

/* Checkpoint: a head of fixed size, weights and moments, CRC-32 of all that. The head says by
   `plan`, a fingerprint of the command, which run it belongs to. */
typedef struct train_head {
    char magic[8];
    uint64_t plan, values;
    int64_t updates, step, stage_step, tokens;
    int32_t at_stage, n_window, right[TRAIN_WINDOW], asked[TRAIN_WINDOW];
} train_head;

static uint64_t train_plan(const train_state *s) {
    uint64_t h = 0xcbf29ce484222325u;
    const int shape[] = { s->shape.n_vocab, s->shape.n_embd, s->shape.n_layers, s->shape.n_heads,
                          s->shape.n_kv_heads, s->shape.head_dim, s->shape.n_ff, s->shape.tied,
                          s->shape.qk_norm, s->warmup };
    const double real[] = { s->shape.rope_base, s->lr, s->floor, s->decay, s->clip, s->beta2 };
    int i;
    h = kvmem__fnv(h, shape, sizeof shape);
    h = kvmem__fnv(h, real, sizeof real);
    h = kvmem__fnv(h, &s->seed, sizeof s->seed);
    for (i = 0; i < s->n_stages; i++)
        h = kvmem__fnv(h, s->stage[i].text, strlen(s->stage[i].text) + 1);
    return h;
}
static int train_save(train_state *s) {
    train_head h;
    const kvmem_trainer *t = &s->t;
    const size_t size = t->n_values * sizeof(float);
    unsigned char end[4];
    char tmp[1024];
    uint32_t crc;
    int bad;
    FILE *f = train_open(s->checkpoint, tmp, sizeof tmp);
    if (!f) return 2;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, "KVTRAIN1", 8);
    h.plan = train_plan(s);
    h.values = t->n_values;
    h.updates = t->updates;
    h.step = s->step;
    h.stage_step = s->stage_step;
    h.tokens = s->tokens;
    h.at_stage = s->at_stage;
    h.n_window = s->n_window;
    memcpy(h.right, s->right, sizeof h.right);
    memcpy(h.asked, s->asked, sizeof h.asked);
    crc = kvmem__crc32(0, &h, sizeof h);
    crc = kvmem__crc32(crc, t->w, size);
    crc = kvmem__crc32(crc, t->m, size);
    crc = kvmem__crc32(crc, t->v, size);
    kvmem__put32(end, crc);
    bad = train_put(f, &h, sizeof h) || train_put(f, t->w, size) || train_put(f, t->m, size) ||
          train_put(f, t->v, size) || train_put(f, end, 4);
    return train_commit(f, tmp, s->checkpoint, bad);
}
static int train_load(train_state *s) {
    train_head h;
    kvmem_trainer *t = &s->t;
    const size_t size = t->n_values * sizeof(float);
    unsigned char end[5] = { 0 };
    const char *why = NULL;
    float *all = (float *)malloc(3 * size);
    FILE *f = fopen(s->checkpoint, "rb");
    if (!f || !all) {
        const int code = train_fail(s->checkpoint, !f ? strerror(errno) : "no memory");
        if (f) fclose(f);
        free(all);
        return code;
    }
    if (fread(&h, 1, sizeof h, f) != sizeof h || memcmp(h.magic, "KVTRAIN1", 8))
        why = "is no checkpoint of this program";
    else if (h.values != t->n_values) why = "belongs to another command (shape)";
    else if (fread(all, 1, 3 * size, f) != 3 * size || fread(end, 1, 5, f) != 4)
        why = "is cut or has a tail";
    else if (kvmem__crc32(kvmem__crc32(0, &h, sizeof h), all, 3 * size) != kvmem__le32(end))
        why = "is damaged (checksum)";
    else if (h.plan != train_plan(s))
        why = "belongs to another command (shape, rates, seed or stages)";
    else if (h.at_stage < 0 || h.at_stage > s->n_stages || h.n_window < 0 ||
             h.n_window > TRAIN_WINDOW)
        why = "is damaged";
    fclose(f);
    if (!why) {
        memcpy(t->w, all, size);
        memcpy(t->m, all + t->n_values, size);
        memcpy(t->v, all + 2 * t->n_values, size);
        t->updates = h.updates;
        s->step = h.step;
        s->stage_step = h.stage_step;
        s->tokens = h.tokens;
        s->at_stage = h.at_stage;
        s->n_window = h.n_window;
        memcpy(s->right, h.right, sizeof h.right);
        memcpy(s->asked, h.asked, sizeof h.asked);
    }
    free(all);
    return why ? train_fail(s->checkpoint, why) : 0;
}

/* --- initial weights ------------------------------------------------------------------------- */

/* Random weights had not found the look-up circuit (an induction head, Olsson 2022, arXiv
   2209.11895) after 1.3 million tokens of the first stage (--init random --lr 0.002).
   This start has its rough shape and leaves the rest to training, in the
   spirit of mimetic initialization (Trockman and Kolter 2023, arXiv 2305.09828). The first half of
   the residual stream holds the token: random directions, and a constant in its last 8 coordinates.
   In layer 0 head h looks h + 1 tokens back, by RoPE's fast channels and the constant, and writes a
   projection P of what it sees to a slot of its own in the second half. In layer 1 slow channels,
   which a context's length hardly turns, compare: the first KV head's keys show slots 1 and 3 (two
   and four tokens back) to queries that show slots 0 and 2, since a value's key and the question
   for it are one token apart; the last KV head's keys show slots 0 and 1 to the query's token and
   slot 0. What is found is copied. All of it is noisy, and training changes it. */
static float train_noise(const train_state *s, uint64_t a, size_t i) {
    double sum = -2;
    uint64_t k;
    for (k = 0; k < 4; k++) sum += kvmem__unit(kvmem__random(s->seed + 5, a, i, k));
    return (float)(sum * 1.7320508); /* mean 0, deviation 1 */
}
static float *train_row(train_state *s, int param, int row) {
    return s->t.param[param].w + (size_t)row * (size_t)s->t.param[param].cols;
}
static void train_scale(train_state *s, int param, float by) {
    const size_t n = (size_t)s->t.param[param].rows * (size_t)s->t.param[param].cols;
    size_t i;
    for (i = 0; i < n; i++) s->t.param[param].w[i] *= by;
}
/* Row r of the projection P (slot, tokens): what is compared; of Q (head_dim, tokens): what is
   copied. */
static float train_p(const train_state *s, int slot, int r, int c) {
    return train_noise(s, 1, (size_t)(r * 4096 + c)) / sqrtf((float)slot);
}
static float train_q(const train_state *s, int r, int c) {
    return train_noise(s, 2, (size_t)(r * 4096 + c)) / sqrtf((float)s->shape.head_dim);
}
static int train_twist(int slot, int r) { return (r * 7 + 3) % slot; } /* another order of a slot */
static int train_induction(train_state *s) {
    const kvmem_train_config *c = &s->shape;
    const int E = c->n_embd, tokens = E / 2 - 8, slot = E / 2 / c->n_heads, d = c->head_dim;
    const int rep = c->n_heads / c->n_kv_heads, fast = 10, slow = d - slot; /* slow: [slow, d) */
    const kvmem_train_layer *a = &s->t.layer[0], *b = &s->t.layer[1];
    int h, g, r, j, i;
    if (c->n_layers < 2 || c->n_heads < 4 || c->n_kv_heads < 2 || c->neox || c->qk_norm ||
        E % (2 * c->n_heads) || tokens < 16 || slot > d / 2 || d < 2 * fast + slot || slot % 7 == 0)
        return train_fail("--init induction", "needs 2 layers, 4 heads, 2 KV heads, head_dim of 52 "
                                              "or more, no q/k norm");
    for (i = 0; i < s->t.n_params; i++)
        if (s->t.param[i].decay && i != s->t.embd) train_scale(s, i, 0.3f);
    for (i = 0; i < c->n_vocab; i++) {
        float *e = train_row(s, s->t.embd, i);
        for (j = 0; j < tokens; j++)
            e[j] = train_noise(s, 3, (size_t)(i * 4096 + j)) / sqrtf((float)tokens);
        for (j = 0; j < 8; j++) e[tokens + j] = 0.35355339f;
        for (j = E / 2; j < E; j++) e[j] *= 0.1f;
    }
    for (g = 0; g < c->n_kv_heads; g++) { /* layer 0: keys are constant, values are P */
        for (i = 0; i < fast; i++)
            for (j = 0; j < 8; j++) train_row(s, a->k, g * d + 2 * i)[tokens + j] += 0.25f;
        for (r = 0; r < slot; r++)
            for (j = 0; j < tokens; j++) train_row(s, a->v, g * d + r)[j] = train_p(s, slot, r, j);
    }
    for (h = 0; h < c->n_heads; h++) {
        for (i = 0; i < fast; i++) {
            const double angle = (h + 1) * pow(c->rope_base, -2.0 * i / d);
            for (j = 0; j < 8; j++) {
                train_row(s, a->q, h * d + 2 * i)[tokens + j] += 0.25f * (float)cos(angle);
                train_row(s, a->q, h * d + 2 * i + 1)[tokens + j] -= 0.25f * (float)sin(angle);
            }
        }
        for (r = 0; r < slot; r++) train_row(s, a->o, E / 2 + h * slot + r)[h * d + r] += 0.07f;
    }
    for (r = 0; r < slot; r++) { /* layer 1: compare in the slow channels */
        const int last = c->n_kv_heads - 1, w = train_twist(slot, r);
        train_row(s, b->k, slow + r)[E / 2 + slot + r] += 1.1f;
        train_row(s, b->k, slow + r)[E / 2 + 3 * slot + w] += 1.1f;
        train_row(s, b->k, last * d + slow + r)[E / 2 + r] += 1.1f;
        train_row(s, b->k, last * d + slow + r)[E / 2 + slot + w] += 1.1f;
        for (h = 0; h < c->n_heads; h++) {
            float *q = train_row(s, b->q, h * d + slow + r);
            if (h / rep == 0) {
                q[E / 2 + r] += 1.1f;
                q[E / 2 + 2 * slot + w] += 1.1f;
            } else if (h / rep == last) {
                for (j = 0; j < tokens; j++) q[j] += 0.9f * train_p(s, slot, r, j);
                q[E / 2 + w] += 1.1f;
            }
        }
    }
    for (g = 0; g < c->n_kv_heads; g++)
        for (r = 0; r < d; r++)
            for (j = 0; j < tokens; j++) {
                train_row(s, b->v, g * d + r)[j] += train_q(s, r, j);
                for (h = g * rep; h < (g + 1) * rep; h++)
                    train_row(s, b->o, j)[h * d + r] += 0.1f * train_q(s, r, j);
            }
    return 0;
}

/* --- training --------------------------------------------------------------------------------- */

static double train_recall(const train_state *s) {
    int i, right = 0, asked = 0;
    for (i = 0; i < s->n_window; i++) { right += s->right[i]; asked += s->asked[i]; }
    return asked ? (double)right / asked : 0;
}
/* Multiply-adds of forward and backward pass for a batch: 3 per weight and token, 3 x 2 per pair of
   query and key, and channel; skipped pairs are not counted. */
static double train_work(const train_state *s, const kvmem_batch *b) {
    const kvmem_train_config *c = &s->shape;
    const double n = (double)b->n_seq * b->len, q = (double)c->n_heads * c->head_dim;
    const double k = (double)c->n_kv_heads * c->head_dim;
    const double layer = c->n_embd * (2 * q + 2 * k + 3.0 * c->n_ff) + 2 * q * (b->len + 1) / 2;
    return 3 * n * (c->n_layers * layer + (double)c->n_vocab * c->n_embd);
}
/* Multiply-adds per second of one thread that multiplies matrices that stay in its caches: the peak
   of this machine as far as these kernels reach it. The best of some shapes and tries. */
static double train_peak(const kvmem_backend *b) {
    static const int shape[][3] = { { 64, 128, 64 }, { 64, 256, 256 }, { 256, 256, 464 } };
    const size_t floats = 256 * 256 + 2 * 464 * 256;
    float *w = (float *)malloc(floats * sizeof *w), *x, *out;
    double best = 0;
    size_t i;
    if (!w) return 0;
    x = w + 256 * 256;
    out = x + 464 * 256;
    for (i = 0; i < floats; i++) w[i] = (float)(i % 17) - 8;
    for (i = 0; i < 6; i++) {
        const int *n = shape[i % 3];
        const double work = (double)n[0] * n[1] * n[2], began = train_now();
        kvmem_tensor a;
        double done = 0, took = 0;
        void *scratch;
        memset(&a, 0, sizeof a);
        a.type = KVMEM_F32;
        a.n_dims = 2;
        a.ne[0] = n[1];
        a.ne[1] = n[0];
        a.ne[2] = a.ne[3] = 1;
        a.data = (const uint8_t *)(const void *)w;
        a.size = (size_t)(n[0] * n[1]) * sizeof *w;
        scratch = malloc(b->matmul_scratch(b, &a, n[2], 1) + 1);
        for (; scratch && took < 0.03; took = train_now() - began, done += work)
            b->matmul(b, out, &a, x, n[2], scratch, 1);
        free(scratch);
        if (took > 0 && done / took > best) best = done / took;
    }
    free(w);
    return best;
}
static void train_show_speed(const train_state *s) {
    const kvmem_backend *b = kvmem_backend_cpu(NULL);
    const int threads = kvmem__threads(s->shape.threads);
    const double one = train_peak(b), peak = one * threads;
    const double speed = s->run_work > 0 ? s->run_work / (s->ended - s->began) : 0;
    printf("speed (%s): ", kvmem_backend_name(b));
    if (speed > 0) printf("%.1f GMAC/s in training, %.0f %% of ", speed / 1e9, 100 * speed / peak);
    printf("the peak of %.1f GMAC/s (%.1f a thread x %d)\n", peak / 1e9, one / 1e9, threads);
}
/* A line on standard output, or the progress on a terminal. */
static void train_show(const train_state *s, int line) {
    const double took = train_now() - s->began, speed = s->run_tokens / took;
    FILE *f = line ? stdout : stderr;
    double left = 0;
    int i;
    if (!line && !TRAIN_TERMINAL(stderr)) return;
    for (i = s->at_stage; i < s->n_stages; i++) {
        const train_stage *x = &s->stage[i];
        const int64_t steps = x->most - (i == s->at_stage ? s->stage_step : 0);
        left += (double)steps * x->seqs * x->p.length / speed;
    }
    fprintf(f, "%sstage %d/%d step %lld (%lld)  %.2fM tokens  loss %.4f  recall %.3f  ",
            line ? "" : "\r", s->at_stage + 1, s->n_stages, (long long)s->stage_step,
            (long long)s->step, (double)s->tokens / 1e6, s->loss, train_recall(s));
    fprintf(f, "%.0f tok/s  %.1f GMAC/s  at most %.0f min left%s", speed, s->run_work / took / 1e9,
            left / 60, line ? "\n" : " ");
    fflush(f);
}
/* Gradient of the batch, and AdamW at the rate of this step of stage g. */
static int train_learn(train_state *s, const train_stage *g, const kvmem_batch *b) {
    float lr = (float)s->lr;
    kvmem_adamw a;
    kvmem_trainer_zero(&s->t);
    if (kvmem_trainer_run(&s->t, b, 1, &s->loss)) return train_fail("training", s->t.error.text);
    if (s->step < s->warmup) lr = kvmem_cosine(s->step, s->warmup, s->warmup, lr, lr);
    lr *= (float)g->lr;
    if (s->at_stage == s->n_stages - 1)
        lr = kvmem_cosine(s->stage_step, 0, g->most, lr, (float)s->floor);
    a.lr = lr;
    a.beta1 = 0.9f;
    a.beta2 = (float)s->beta2;
    a.eps = 1e-8f;
    a.weight_decay = (float)s->decay;
    a.clip = (float)s->clip;
    if (kvmem_trainer_update(&s->t, &a, NULL)) return train_fail("training", s->t.error.text);
    return 0;
}
static int train_has_weight(const kvmem_batch *b) {
    int i;
    for (i = 0; i < b->n_seq * b->len; i++) if (b->weight[i] > 0) return 1;
    return 0;
}
/* One step; the batch is a function of seed and step alone. */
static int train_step(train_state *s) {
    const train_stage *g = &s->stage[s->at_stage], *use = g;
    const double u = kvmem__unit(kvmem__random(s->seed, (uint64_t)s->step, 1, 0));
    kvmem_batch b;
    int right, asked;
    if (s->at_stage && u < g->mix)
        use = &s->stage[kvmem__random(s->seed, (uint64_t)s->step, 2, 0) % (uint64_t)s->at_stage];
    if (train_batch(s, use, (uint64_t)s->step, 0, &b)) return 2;
    /* short random copies may repeat nothing: such a batch teaches nothing */
    if ((!use->p.raw_copy || train_has_weight(&b)) && train_learn(s, g, &b)) return 2;
    train_count(s, &b, &right, &asked);
    if (use == g) {
        s->right[s->stage_step % TRAIN_WINDOW] = right;
        s->asked[s->stage_step % TRAIN_WINDOW] = asked;
        if (s->n_window < TRAIN_WINDOW) s->n_window++;
        s->stage_step++;
    }
    s->step++;
    s->tokens += (int64_t)b.n_seq * b.len;
    s->run_tokens += (double)b.n_seq * b.len;
    s->run_work += train_work(s, &b);
    return 0;
}
static int train_stage_ends(const train_state *s) {
    const train_stage *g = &s->stage[s->at_stage];
    if (s->stage_step >= g->most) return 1;
    if (s->at_stage == s->n_stages - 1 || s->stage_step < g->least) return 0;
    return s->n_window == TRAIN_WINDOW && train_recall(s) >= g->until;
}
static int train_all(train_state *s) {
    s->began = train_now();
    while (s->at_stage < s->n_stages) {
        if (train_step(s)) return 2;
        if (s->step % 10 == 0) train_show(s, 0);
        if (s->step % s->every == 0) {
            if (!s->quiet) train_show(s, 1);
            if (s->checkpoint && train_save(s)) return 2;
            if (s->snapshot && train_write_gguf(s, s->snapshot)) return 2;
        }
        if (train_stage_ends(s)) {
            if (!s->quiet) train_show(s, 1);
            s->at_stage++;
            s->stage_step = s->n_window = 0;
            if (s->checkpoint && train_save(s)) return 2;
        }
    }
    return 0;
}

/* --- the command ------------------------------------------------------------------------------ */

static void train_usage(void) {
    int i;
    puts("train: trains a small llama on the language of tools/corpus.h and writes it as GGUF\n\n"
         "usage: train -o MODEL.gguf [options]      train --speed\n\n"
         "  -o FILE            the model\n"
         "  --type T           f32, f16 or q8_0 weights in the file (f16)\n"
         "  --seed N           of weights and streams (1)\n"
         "  --threads N        0: all (0)\n"
         "  --checkpoint FILE  written every --every steps and at the end of a stage; never half\n"
         "  --resume           go on from the checkpoint: the result has the same bits as\n"
         "                     without a break\n"
         "  --snapshot FILE    the model so far as GGUF, as often\n"
         "  --every N          steps between lines, checkpoints and snapshots (100)");
    puts("  --from MODEL       start with the weights of a GGUF model of the same shape\n"
         "  --init I           without --from: induction, a rough look-up circuit in two layers,\n"
         "                     or random (induction)\n"
         "  --quiet            no lines on standard output\n"
         "  --speed            only measure the peak of the matrix product\n\n"
         "shape: --embd 256 --layers 4 --heads 4 --kv-heads 2 --head-dim 64 --ff 512\n"
         "       --rope-base 500000 --untied --qk-norm (a qwen3 model)\n"
         "       --ctx 4096 (what the file says) --recompute (less memory)\n"
         "AdamW: --lr 0.001 --floor 0.00005 --warmup 100 --decay 0.01 --clip 1 --beta2 0.99\n");
    puts("  --stage \"WORDS\"    a stage of the curriculum; may be repeated; replaces the\n"
         "                     built-in list\n"
         "    len seqs         tokens of a stream, streams of a batch\n"
         "    until most least share of right answers that ends the stage; most and least steps\n"
         "    mix lr lm        share of batches from earlier stages (0.2); factor on the learning\n"
         "                     rate; weight of tokens that are no answers (0.1; answers weigh 1)\n"
         "    persons attrs facts filler ask update twice chain order copy distract raw_copy\n"
         "    raw_gram         as in tools/corpus.h\n\n"
         "built-in stages:");
    for (i = 0; train_default[i]; i++) printf("  %s\n", train_default[i]);
}

/* An option has a place for a whole number, a number or a text; a flag sets its number to `set`. */
typedef struct train_option {
    const char *name;
    int *i;
    double *d;
    const char **c;
    int flag, set;
} train_option;

static int train_value(const train_option *o, const char *v) {
    char *end;
    double x;
    if (o->c) { *o->c = v; return 0; }
    x = strtod(v, &end);
    if (*end || end == v || !(fabs(x) < 1e9)) return train_fail(v, "is not a number");
    if (o->i && floor(x) < x) return train_fail(v, "is not a whole number");
    if (o->i) *o->i = (int)x;
    else *o->d = x;
    return 0;
}
static int train_seed(train_state *s, const char *v) {
    char *end;
    errno = 0;
    s->seed = strtoull(v, &end, 10);
    if (*v >= '0' && *v <= '9' && !*end && !errno) return 0;
    return train_fail(v, "is not a seed: 0 to 2^64 - 1");
}
static int train_args(train_state *s, int argc, char **argv) {
    kvmem_train_config *m = &s->shape;
    const train_option options[] = {
        { "-o", NULL, NULL, &s->out, 0, 0 },
        { "--type", NULL, NULL, &s->type, 0, 0 },
        { "--threads", &m->threads, NULL, NULL, 0, 0 },
        { "--checkpoint", NULL, NULL, &s->checkpoint, 0, 0 },
        { "--resume", &s->resume, NULL, NULL, 1, 1 },
        { "--snapshot", NULL, NULL, &s->snapshot, 0, 0 },
        { "--every", &s->every, NULL, NULL, 0, 0 },
        { "--from", NULL, NULL, &s->from, 0, 0 },
        { "--init", NULL, NULL, &s->init, 0, 0 },
        { "--quiet", &s->quiet, NULL, NULL, 1, 1 },
        { "--speed", &s->speed, NULL, NULL, 1, 1 },
        { "--embd", &m->n_embd, NULL, NULL, 0, 0 },
        { "--layers", &m->n_layers, NULL, NULL, 0, 0 },
        { "--heads", &m->n_heads, NULL, NULL, 0, 0 },
        { "--kv-heads", &m->n_kv_heads, NULL, NULL, 0, 0 },
        { "--head-dim", &m->head_dim, NULL, NULL, 0, 0 },
        { "--ff", &m->n_ff, NULL, NULL, 0, 0 },
        { "--rope-base", NULL, &m->rope_base, NULL, 0, 0 },
        { "--untied", &m->tied, NULL, NULL, 1, 0 },
        { "--qk-norm", &m->qk_norm, NULL, NULL, 1, 1 },
        { "--recompute", &m->recompute, NULL, NULL, 1, 1 },
        { "--ctx", &s->n_ctx, NULL, NULL, 0, 0 },
        { "--lr", NULL, &s->lr, NULL, 0, 0 },
        { "--floor", NULL, &s->floor, NULL, 0, 0 },
        { "--warmup", &s->warmup, NULL, NULL, 0, 0 },
        { "--decay", NULL, &s->decay, NULL, 0, 0 },
        { "--clip", NULL, &s->clip, NULL, 0, 0 },
        { "--beta2", NULL, &s->beta2, NULL, 0, 0 },
    };
    const int n = (int)(sizeof options / sizeof *options);
    int i, k;
    for (i = 1; i < argc; i++) {
        const int stage = !strcmp(argv[i], "--stage"), seed = !strcmp(argv[i], "--seed");
        const char *v = argv[i + 1]; /* NULL behind the last */
        for (k = 0; k < n && strcmp(options[k].name, argv[i]); k++) {}
        if (k == n && !stage && !seed) return train_fail(argv[i], "unknown option, see --help");
        if (k < n && options[k].flag) { *options[k].i = options[k].set; continue; }
        if (!v) return train_fail(argv[i], "needs a value");
        i++;
        if (seed && train_seed(s, v)) return 2;
        if (stage && s->n_stages == TRAIN_STAGES) return train_fail("--stage", "too many");
        if (stage && train_stage_parse(&s->stage[s->n_stages++], v)) return 2;
        if (k < n && train_value(&options[k], v)) return 2;
    }
    for (i = 0; !s->n_stages && train_default[i]; i++)
        if (train_stage_parse(&s->stage[i], train_default[i])) return 2;
    if (!s->n_stages) s->n_stages = i;
    return 0;
}
/* What the trainer does not check by itself. */
static int train_check(const train_state *s) {
    const char *path[3];
    int i, j;
    path[0] = s->out;
    path[1] = s->checkpoint;
    path[2] = s->snapshot;
    if (!s->out) return train_fail("-o", "name the model to write; --help tells more");
    if (strcmp(s->type, "f32") && strcmp(s->type, "f16") && strcmp(s->type, "q8_0"))
        return train_fail(s->type, "not a type for --type: f32, f16 or q8_0");
    if (s->resume && !s->checkpoint) return train_fail("--resume", "needs --checkpoint FILE");
    if (s->every < 1) return train_fail("--every", "must be 1 or more");
    if (s->n_ctx < 1) return train_fail("--ctx", "must be 1 or more");
    if (s->warmup < 0) return train_fail("--warmup", "must be 0 or more");
    if (s->lr < 0 || s->floor < 0 || s->decay < 0 || s->clip < 0)
        return train_fail("--lr, --floor, --decay, --clip", "must be 0 or more");
    if (s->beta2 < 0 || s->beta2 >= 1) return train_fail("--beta2", "must be in 0..1, less than 1");
    for (i = 0; i < 3; i++)
        for (j = 0; j < i; j++)
            if (path[i] && path[j] && !strcmp(path[i], path[j]))
                return train_fail(path[i], "is to be two different files");
    for (i = 0; i < 3; i++) if (path[i] && train_probe(path[i])) return 2;
    return 0;
}

/* --from: the whole file, and its weights. */
static unsigned char *train_read(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    unsigned char *p = NULL;
    long n;
    if (f && (fgetc(f) != EOF || !ferror(f)) && /* a folder opens, but cannot be read */
        !fseek(f, 0, SEEK_END) && (n = ftell(f)) >= 0 && !fseek(f, 0, SEEK_SET)) {
        p = (unsigned char *)malloc((size_t)n + 1);
        if (p && fread(p, 1, (size_t)n, f) != (size_t)n) { free(p); p = NULL; }
        *size = (size_t)n;
    }
    if (!p) train_fail(path, errno ? strerror(errno) : "cannot be read");
    if (f) fclose(f);
    return p;
}
static int train_from(train_state *s) {
    kvmem_model m;
    size_t size = 0;
    unsigned char *bytes;
    int code = 0;
    errno = 0;
    bytes = train_read(s->from, &size);
    if (!bytes) return 2;
    if (kvmem_model_open(&m, bytes, size, NULL, 0, NULL)) code = train_fail(s->from, m.error.text);
    else if (kvmem_trainer_load(&s->t, &m)) code = train_fail(s->from, s->t.error.text);
    kvmem_model_close(&m);
    free(bytes);
    return code;
}
static int train_start_weights(train_state *s) {
    const int induction = !strcmp(s->init, "induction");
    if (!induction && strcmp(s->init, "random"))
        return train_fail(s->init, "not a start: induction or random");
    kvmem_trainer_random(&s->t, s->seed);
    if (s->resume) return train_load(s);
    if (s->from) return train_from(s);
    return induction ? train_induction(s) : 0;
}
static int train_start(train_state *s) {
    size_t n = 0;
    int i;
    s->shape.n_vocab = corpus_n_vocab();
    s->shape.neox = s->shape.qk_norm;
    s->shape.max_len = s->shape.max_tokens = 1;
    for (i = 0; i < s->n_stages; i++) {
        const double tokens = (double)s->stage[i].seqs * s->stage[i].p.length;
        if (tokens > 1e7)
            return train_fail(s->stage[i].text, "more than 10 million tokens a batch");
        if ((size_t)tokens > n) n = (size_t)tokens;
        if (s->stage[i].p.length > s->shape.max_len) s->shape.max_len = s->stage[i].p.length;
    }
    s->shape.max_tokens = (int)n;
    if (kvmem_trainer_init(&s->t, &s->shape)) return train_fail("model", s->t.error.text);
    s->ids = (int *)malloc(n * sizeof *s->ids);
    s->target = (int *)malloc(n * sizeof *s->target);
    s->weight = (float *)malloc(n * sizeof *s->weight);
    s->answer = (unsigned char *)malloc(n);
    if (!s->ids || !s->target || !s->weight || !s->answer) return train_fail("batch", "no memory");
    return train_start_weights(s);
}
static void train_free(train_state *s) {
    kvmem_trainer_free(&s->t);
    corpus_free(&s->stream);
    free(s->ids);
    free(s->target);
    free(s->weight);
    free(s->answer);
}
int main(int argc, char **argv) {
    static train_state s;
    int code, i;
    for (i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            train_usage();
            return 0;
        }
    s.shape = kvmem_train_config_default();
    s.shape.rope_base = 500000;
    s.seed = 1;
    s.lr = 1e-3;
    s.floor = 5e-5;
    s.decay = 0.01;
    s.clip = 1;
    s.beta2 = 0.99;
    s.warmup = 100;
    s.every = 100;
    s.n_ctx = 4096;
    s.type = "f16";
    s.init = "induction";
    code = train_args(&s, argc, argv);
    if (!code && s.speed) {
        train_show_speed(&s);
        return 0;
    }
    if (!code) code = train_check(&s);
    if (!code) code = train_start(&s);
    if (!code) code = train_all(&s);
    s.ended = train_now();
    if (!code) code = train_write_gguf(&s, s.out);
    if (!code && !s.quiet) train_show_speed(&s);
    train_free(&s);
    return code;
}
