/* Fuzz target: scripts of cache operations. The first bytes choose shape, recipe and limit, each further
   one an operation on one of three caches. After every operation: reported bytes are the counted ones,
   live and peak stay under the limit, lanes agree with the token count, outputs are finite; at the end
   nothing is left. */
#define KVMEM_NO_DECODER
#include "fuzz.h"

enum { SLOTS = 3, MAX_D = 48, MAX_H = 6, MAX_BLOCK = 24, MAX_L = 3 };
typedef struct family { fuzz_heap heap; int members, shared; } family; /* a cache and the copies made of it */
typedef struct slot { kvmem_cache c; family *f; } slot;
typedef struct saved { uint8_t *p; size_t n, cap; } saved;

static float rows_q[MAX_BLOCK * MAX_H * MAX_D], rows_k[MAX_BLOCK * MAX_H * MAX_D];
static float rows_v[MAX_BLOCK * MAX_H * MAX_D], rows_out[MAX_BLOCK * MAX_H * MAX_D];

static int keep_bytes(void *user, const void *bytes, size_t size) {
    saved *s = (saved *)user;
    uint8_t *q;
    if (s->n + size > s->cap) {
        q = (uint8_t *)realloc(s->p, (s->n + size) * 2);
        if (!q) return 1;
        s->p = q;
        s->cap = (s->n + size) * 2;
    }
    if (size) memcpy(s->p + s->n, bytes, size);
    s->n += size;
    return 0;
}
static void fill(float *x, int n, unsigned seed) {
    int i;
    for (i = 0; i < n; i++) x[i] = (float)(4 * kvmem__unit(kvmem__random(seed, (uint64_t)i, 0, 0)) - 2);
}
/* One word of each kind makes a recipe; many are refused, and must be with a reason. */
static void recipe_text(fuzz_input *in, char *out, size_t size) {
    static const char *const preset[] = { "full", "window", "streamingllm", "h2o", "tova", "snapkv", "pyramidkv",
        "score=random", "score=knorm", "score=h2o place=cache", "kvzip", "kvcompose", "dapq" };
    static const char *const budget[] = { "", " budget=0", " budget=1", " budget=7", " budget=40", " budget=50%",
        " budget=3%", " budget=24KiB", " budget=100KiB", " budget=1MiB" };
    static const char *const codec[] = { "", " codec=f32", " codec=f16", " codec=bf16", " codec=q8_0", " codec=q4_0",
        " codec.k=q8_0 codec.v=q4_0" };
    static const char *const when[] = { "", " when=prompt", " when=step", " when=block", " when=every(3)" };
    static const char *const other[] = { "", " page=1", " page=3", " sink=0", " sink=2 recent=5", " recent=50%",
        " seed=9", " place=cache", " page=16 sink=4" };
#define WORD(list) list[fuzz_pick(in, (int)(sizeof list / sizeof *list))]
    const char *const a = WORD(preset), *const b = WORD(budget), *const c = WORD(codec);
    const char *const d = WORD(when), *const e = WORD(other);
    snprintf(out, size, "%s%s%s%s%s", a, b, c, d, e);
#undef WORD
}
static void check(const slot *s) {
    const kvmem_cache *c = &s->c;
    kvmem_bytes b;
    size_t entries = 0;
    int l, g;
    kvmem_cache_bytes(c, &b);
    FUZZ_MUST(b.live.total == b.live.k + b.live.v + b.live.meta + b.live.stats + b.live.scratch);
    FUZZ_MUST(b.peak.total >= b.live.total && b.tokens == c->tokens);
    if (!s->f->shared) {
        FUZZ_MUST(b.live.total == s->f->heap.live);
        FUZZ_MUST(b.peak.total == s->f->heap.peak);
    }
    if (b.limit) FUZZ_MUST(s->f->heap.peak <= b.limit);
    for (l = 0; l < c->shape.n_layers; l++)
        for (g = 0; g < c->shape.n_kv_heads; g++) {
            const int n = kvmem_cache_lane_len(c, l, g);
            FUZZ_MUST(n >= 0 && n <= c->tokens + c->block_n);
            entries += (size_t)n;
        }
    FUZZ_MUST(entries == b.entries);
    FUZZ_MUST(kvmem_cache_room(c) >= 0 && kvmem_cache_room(c) <= c->max_block);
}
/* Probe tokens on top of a prompt that waits for them, then its reduction. */
static void probe(slot *s, fuzz_input *in) {
    kvmem_cache *c = &s->c, p;
    const int d = c->shape.head_dim, n = 1 + fuzz_pick(in, MAX_BLOCK), to = fuzz_pick(in, 64);
    const int64_t tokens = c->tokens;
    kvmem_probe o;
    kvmem_status status;
    int l;
    o.max = fuzz_pick(in, 2);
    o.hidden = fuzz_pick(in, 2);
    o.sink = fuzz_pick(in, 5);
    o.from = fuzz_pick(in, 64);
    o.to = to;
    status = kvmem_cache_probe(&p, c, &o);
    fuzz_explained(status, &c->error);
    FUZZ_MUST((status == KVMEM_OK) == (p.arena != NULL));
    for (l = 0; l < c->shape.n_layers && status == KVMEM_OK; l++) {
        fill(rows_k, n * c->shape.n_kv_heads * d, 5 + (unsigned)l);
        fill(rows_q, n * c->shape.n_heads * d, 7 + (unsigned)l);
        status = kvmem_cache_append(&p, l, n, rows_k, rows_k, NULL);
        if (status == KVMEM_OK && o.hidden) status = kvmem_cache_hidden(&p, l, n, rows_q, c->shape.n_heads * d);
        if (status == KVMEM_OK) status = kvmem_cache_attend(&p, l, n, rows_q, rows_out);
    }
    if (status == KVMEM_OK) status = kvmem_cache_commit(&p, KVMEM_DECODE);
    if (p.arena) fuzz_explained(status, &p.error);
    kvmem_cache_free(&p);
    FUZZ_MUST(c->tokens == tokens && c->awaits);
    if (fuzz_pick(in, 4)) {
        status = kvmem_cache_reduce(c);
        fuzz_explained(status, &c->error);
        FUZZ_MUST(c->awaits == (status != KVMEM_OK));
    }
}
/* One block through all layers. 0 if it was refused and the block was given up. */
static int block(slot *s, fuzz_input *in) {
    kvmem_cache *c = &s->c;
    const kvmem_shape *h = &c->shape;
    const int d = h->head_dim, room = kvmem_cache_room(c), by_layer = fuzz_pick(in, 4) == 0;
    const kvmem_phase phase = (kvmem_phase)fuzz_pick(in, 3);
    const unsigned seed = fuzz_byte(in);
    int32_t pos[MAX_BLOCK];
    int n = phase == KVMEM_DECODE ? 1 : 1 + fuzz_pick(in, MAX_BLOCK), l, i, gaps = seed % 16 == 3;
    kvmem_status status = KVMEM_OK;
    if (c->awaits && seed % 8) probe(s, in);
    if (n > room && seed % 8) n = room; /* sometimes more than there is room for */
    if (n < 1) n = 1;
    for (i = 0; i < n; i++) pos[i] = c->next_pos + 2 * i + 1;
    for (l = 0; l < h->n_layers && status == KVMEM_OK; l++) {
        fill(rows_k, n * h->n_kv_heads * d, seed * 31 + (unsigned)l);
        fill(rows_v, n * h->n_kv_heads * d, seed * 37 + (unsigned)l);
        fill(rows_q, n * h->n_heads * d, seed * 41 + (unsigned)l);
        status = kvmem_cache_append(c, l, n, rows_k, rows_v, gaps ? pos : NULL);
        if (status == KVMEM_OK) status = kvmem_cache_attend(c, l, n, rows_q, rows_out);
        for (i = 0; status == KVMEM_OK && i < n * h->n_heads * d; i++)
            FUZZ_MUST(rows_out[i] >= -4 && rows_out[i] <= 4); /* a mean of values in [-2, 2], coarsely coded */
        if (status == KVMEM_OK && by_layer) {
            status = kvmem_cache_commit_layer(c, l, phase);
            if (status == KVMEM_UNSUPPORTED) status = KVMEM_OK;
        }
    }
    if (status == KVMEM_OK && (seed % 8 != 5)) status = kvmem_cache_surprise(c, n, rows_q); /* 5: forgotten */
    if (status == KVMEM_OK) status = kvmem_cache_commit(c, phase);
    fuzz_explained(status, &c->error);
    if (status == KVMEM_OK) return 1;
    if (seed & 1) kvmem_cache_clear(c);
    else if (kvmem_cache_truncate(c, c->tokens) != KVMEM_OK) kvmem_cache_clear(c);
    FUZZ_MUST(c->block_n == 0);
    return 0;
}
/* Calls that are wrong must be refused and change nothing. */
static void wrong(slot *s, fuzz_input *in) {
    kvmem_cache *c = &s->c;
    const int64_t tokens = c->tokens;
    const int kind = fuzz_pick(in, 8);
    const float nan = (float)NAN;
    kvmem_status status = KVMEM_OK;
    fill(rows_k, MAX_BLOCK * MAX_H * MAX_D, 1);
    switch (kind) {
    case 0: status = kvmem_cache_append(c, c->shape.n_layers, 1, rows_k, rows_k, NULL); break;
    case 1: status = kvmem_cache_append(c, 0, 0, rows_k, rows_k, NULL); break;
    case 2: status = kvmem_cache_append(c, 0, c->max_block + 1, rows_k, rows_k, NULL); break;
    case 3: status = kvmem_cache_attend(c, 0, 1, rows_k, rows_out); break;
    case 4: status = kvmem_cache_truncate(c, -1); break;
    case 5: status = kvmem_cache_read(c, 0, 0, 0, kvmem_cache_lane_len(c, 0, 0) + 1, rows_k, NULL, NULL); break;
    case 6: status = kvmem_cache_recode(c, "q9", NULL); break;
    default:
        rows_k[0] = nan;
        status = kvmem_cache_append(c, 0, 1, rows_k, rows_v, NULL);
    }
    FUZZ_MUST(status != KVMEM_OK);
    if (kind != 5) fuzz_explained(status, &c->error); /* read takes a const cache */
    FUZZ_MUST(c->tokens == tokens && c->block_n == 0);
}
static void drop(slot *s) {
    if (!s->f) return;
    kvmem_cache_free(&s->c);
    if (--s->f->members == 0) {
        FUZZ_MUST(s->f->heap.live == 0);
        free(s->f);
    }
    s->f = NULL;
}
static int must_read_equal(const kvmem_cache *a, const kvmem_cache *b) {
    int l, g, i, n;
    static float ka[MAX_D], va[MAX_D], kb[MAX_D], vb[MAX_D];
    for (l = 0; l < a->shape.n_layers; l++)
        for (g = 0; g < a->shape.n_kv_heads; g++) {
            n = kvmem_cache_lane_len(a, l, g);
            FUZZ_MUST(n == kvmem_cache_lane_len(b, l, g));
            for (i = 0; i < n; i++) {
                int32_t pa, pb;
                FUZZ_MUST(kvmem_cache_read(a, l, g, i, 1, ka, va, &pa) == KVMEM_OK);
                FUZZ_MUST(kvmem_cache_read(b, l, g, i, 1, kb, vb, &pb) == KVMEM_OK);
                FUZZ_MUST(pa == pb && !memcmp(ka, kb, (size_t)a->shape.head_dim * 4) &&
                          !memcmp(va, vb, (size_t)a->shape.head_dim * 4));
            }
        }
    return 1;
}
/* A fresh cache for an empty slot; 0 if the choice was refused. */
static int start(slot *s, const kvmem_config *base, const slot *like) {
    kvmem_config cfg = *base;
    kvmem_status status;
    s->f = (family *)calloc(1, sizeof *s->f);
    if (!s->f) return 0;
    cfg.allocator = fuzz_allocator(&s->f->heap, (size_t)1 << 26);
    s->f->members = 1;
    if (like) cfg.recipe = &like->c.recipe;
    status = kvmem_cache_init(&s->c, &cfg);
    fuzz_explained(status, &s->c.error);
    if (status != KVMEM_OK) drop(s);
    return status == KVMEM_OK;
}
/* Save one cache and load it into another slot: both hold the same and go on the same, bit for bit. */
static void save_load(slot *from, slot *to, fuzz_input *in, const kvmem_config *base) {
    static float out[MAX_BLOCK * MAX_H * MAX_D];
    fuzz_input same;
    saved b = { NULL, 0, 0 };
    kvmem_cache_info info;
    kvmem_error err;
    kvmem_status status = kvmem_cache_save(&from->c, keep_bytes, &b);
    fuzz_explained(status, &from->c.error);
    if (status == KVMEM_OK) {
        FUZZ_MUST(kvmem_cache_inspect(b.p, b.n, &info, &err) == KVMEM_OK);
        FUZZ_MUST(info.tokens == from->c.tokens && info.file_bytes == b.n);
        drop(to);
        if (start(to, base, from)) {
            status = kvmem_cache_load(&to->c, b.p, b.n);
            fuzz_explained(status, &to->c.error);
            if (status == KVMEM_OK) {
                must_read_equal(&from->c, &to->c);
                same = *in;
                memset(rows_out, 0, sizeof rows_out);
                /* a cache recoded under a byte limit may hold fewer entries than one that began so */
                if (!from->f->shared && from->c.lane_cap == to->c.lane_cap && block(from, in)) {
                    memcpy(out, rows_out, sizeof out);
                    memset(rows_out, 0, sizeof rows_out);
                    FUZZ_MUST(block(to, &same) && !memcmp(out, rows_out, sizeof out));
                    must_read_equal(&from->c, &to->c);
                }
            } else FUZZ_MUST(base->max_bytes || to->c.recipe.amount.kind == KVMEM_BYTES);
        }
    }
    free(b.p);
}
static void copy(slot *from, slot *to) {
    kvmem_status status;
    drop(to);
    from->f->shared = 1;
    status = kvmem_cache_copy(&to->c, &from->c);
    fuzz_explained(status, &to->c.error);
    if (status != KVMEM_OK) { kvmem_cache_free(&to->c); return; }
    to->f = from->f;
    to->f->members++;
    must_read_equal(&from->c, &to->c);
}
static void operate(slot *slots, int at, fuzz_input *in, const kvmem_config *base) {
    static const char *const codecs[] = { "f32", "f16", "bf16", "q8_0", "q4_0", NULL };
    slot *s = &slots[at], *to = &slots[(at + 1 + fuzz_pick(in, SLOTS - 1)) % SLOTS];
    const int op = fuzz_pick(in, 16);
    kvmem_status status;
    if (op == 15) s->f->heap.fail_at = s->f->heap.calls + 1 + (size_t)fuzz_pick(in, 8);
    switch (op) {
    case 8: status = kvmem_cache_truncate(&s->c, s->c.tokens - fuzz_pick(in, 20)); break;
    case 9:
        kvmem_cache_clear(&s->c);
        FUZZ_MUST(s->c.tokens == 0 && kvmem_cache_lane_len(&s->c, 0, 0) == 0);
        break;
    case 10: {
        const char *const k = codecs[fuzz_pick(in, 6)], *const v = codecs[fuzz_pick(in, 6)];
        status = kvmem_cache_recode(&s->c, k, v);
        fuzz_explained(status, &s->c.error);
        break;
    }
    case 11: copy(s, to); break;
    case 12: save_load(s, to, in, base); break;
    case 13: wrong(s, in); break;
    case 14: drop(s); break;
    default: block(s, in);
    }
    if (s->f) s->f->heap.fail_at = 0;
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const int dims[] = { 1, 2, 8, 30, 32, 48 }, limits[] = { 0, 1, 1 << 13, 1 << 16, 1 << 18, 1 << 20 };
    static const float freq[MAX_D / 2] = { 1, 0.5f, 0.25f, 0.125f };
    slot slots[SLOTS];
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe recipe = kvmem_recipe_default();
    kvmem_rope rope[MAX_L];
    kvmem_error err;
    float sinks[MAX_L * MAX_H];
    int window[MAX_L], i, flags, at = 0;
    char text[256];
    fuzz_input in;
    in.p = data;
    in.n = size;
    memset(slots, 0, sizeof slots);
    memset(rope, 0, sizeof rope);
    cfg.shape.n_layers = 1 + fuzz_pick(&in, MAX_L);
    cfg.shape.n_kv_heads = 1 + fuzz_pick(&in, 2);
    cfg.shape.n_heads = cfg.shape.n_kv_heads * (1 + fuzz_pick(&in, MAX_H / 2));
    cfg.shape.head_dim = dims[fuzz_pick(&in, 6)];
    cfg.max_block = MAX_BLOCK;
    cfg.threads = 1;
    flags = (int)fuzz_byte(&in);
    for (i = 0; i < MAX_L; i++) {
        window[i] = i % 2 ? 0 : 9;
        rope[i].n_rot = cfg.shape.head_dim & ~1;
        if (rope[i].n_rot > 8) rope[i].n_rot = 8;
        rope[i].neox = i & 1;
        rope[i].mscale = 1;
        rope[i].inv_freq = freq;
    }
    for (i = 0; i < MAX_L * MAX_H; i++) sinks[i] = (float)(i - 4);
    if (flags & 1) cfg.shape.window = window;
    if (flags & 6) cfg.shape.rope = rope;
    if (flags & 8) cfg.shape.sink_bias = sinks;
    if (flags & 16) cfg.shape.softcap = 3;
    if (flags & 64) cfg.backend = kvmem_backend_cpu("plain");
    cfg.max_bytes = (size_t)limits[fuzz_pick(&in, 6)];
    recipe_text(&in, text, sizeof text);
    if (kvmem_recipe_parse(&recipe, text, &err) != KVMEM_OK) { fuzz_explained(err.status, &err); return 0; }
    cfg.recipe = &recipe;
    if (start(&slots[0], &cfg, NULL)) {
        while (in.n && slots[at].f) {
            operate(slots, at, &in, &cfg);
            for (i = 0; i < SLOTS; i++) if (slots[i].f) check(&slots[i]);
            if (fuzz_pick(&in, 3) == 0) at = (at + 1) % SLOTS;
            for (i = 0; i < SLOTS && !slots[at].f; i++) at = (at + 1) % SLOTS;
        }
    }
    for (i = 0; i < SLOTS; i++) drop(&slots[i]);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    size_t k;
    const size_t n = 400 < cap ? 400 : cap;
    if (i >= 40) return 0;
    for (k = 0; k < n; k++) out[k] = (uint8_t)kvmem__random(11, (uint64_t)i, k, 0);
    return n;
}
#endif
