/* Fuzz target: stores of episodes. The first byte says how: bit 0: marks and checksums are put right after the change,
   so that what lies behind them is reached; bit 1: under a small RAM limit; bit 2: with the model's shape; the rest is
   the file. It is opened or refused with a reason; what can be read is read, searched, loaded into a cache, saved,
   opened again and imported; and nothing is left allocated. */
#define KVMEM_NO_DECODER
#include "fuzz.h"

enum { D = 8 };
static kvmem_shape the_shape(kvmem_rope *rope, float *inv) {
    kvmem_shape x;
    memset(&x, 0, sizeof x);
    x.n_layers = 2;
    x.n_heads = 2;
    x.n_kv_heads = 1;
    x.head_dim = D;
    inv[0] = 1;
    inv[1] = 0.1f;
    memset(rope, 0, 2 * sizeof *rope);
    rope[0].n_rot = rope[1].n_rot = 4;
    rope[0].mscale = rope[1].mscale = 1;
    rope[0].inv_freq = rope[1].inv_freq = inv;
    x.rope = rope;
    return x;
}
typedef struct kept_bytes { uint8_t *p; size_t n, cap; } kept_bytes;
static int keep(void *user, const void *p, size_t n) {
    kept_bytes *b = (kept_bytes *)user;
    if (n > b->cap - b->n) return 1;
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 0;
}
/* Marks whose sizes fit into the file get the checksums, chains and offsets that they should have. */
static void put_right(uint8_t *p, size_t n) {
    uint32_t chain = 0, seq = 0;
    size_t at = 136;
    if (n < 136) return;
    kvmem__put32(p + 64, kvmem__crc32(0, p, 64));
    while (n - at >= 152) {
        const size_t a = kvmem__le32(p + at + 40), b = kvmem__le32(p + at + 44), c = (size_t)kvmem__le64(p + at + 48);
        if (a > n || b > n || c > n || a + b + c > n - at - 152) return;
        kvmem__put64(p + at + 8, ++seq);
        kvmem__put64(p + at + 16, at);
        kvmem__put32(p + at + 36, 1);
        kvmem__put32(p + at + 56, kvmem__crc32(0, p + at + 76, a));
        kvmem__put32(p + at + 60, kvmem__crc32(0, p + at + 76 + a, b));
        kvmem__put32(p + at + 64, kvmem__crc32(0, p + at + 76 + a + b, c));
        kvmem__put32(p + at + 68, chain);
        chain = kvmem__crc32(0, p + at + 4, 68);
        kvmem__put32(p + at + 72, chain);
        memcpy(p + at, "kver", 4);
        memcpy(p + at + 76 + a + b + c, p + at, 76);
        memcpy(p + at + 76 + a + b + c, "kvef", 4);
        at += 152 + a + b + c;
    }
}
static void read_one(kvmem_store *s, uint64_t id, kvmem_cache *c) {
    kvmem_episode e;
    char text[64];
    int ids[8], n, v, l;
    int32_t first;
    float x[16], k[4 * D], y[4 * D];
    int32_t pos[4];
    fuzz_explained(kvmem_store_get(s, id, 0, &e), &s->error);
    for (v = 0; v < 3; v++) { /* the present version, the first two */
        fuzz_explained(kvmem_store_text(s, id, v, text, sizeof text, NULL), &s->error);
        fuzz_explained(kvmem_store_ids(s, id, v, ids, 8, &n), &s->error);
        fuzz_explained(kvmem_store_vector(s, id, v, NULL, x, 16, &n), &s->error);
        for (l = 0; l < s->n_layers && l < 3; l++)
            if (s->head_dim == D)
                fuzz_explained(kvmem_store_rows(s, id, v, l, 0, k, y, pos, 4, &n), &s->error);
    }
    if (!c) return;
    fuzz_explained(kvmem_store_load(s, id, c, id % 2 ? KVMEM_STORE_PACKED : KVMEM_STORE_ORIGINAL, &first), &s->error);
    FUZZ_MUST(kvmem_cache_lane_len(c, 0, 0) <= c->next_pos);
}
static void use(kvmem_store *s, kvmem_cache *c, kvmem_store *other) {
    static uint8_t room[1 << 18];
    kvmem_store_query q = kvmem_store_query_default();
    kvmem_store_hit hit[4];
    kvmem_store_options o = kvmem_store_options_default();
    kept_bytes out;
    kvmem_episode e;
    kvmem_store again;
    const float at[2] = { 1, 2 };
    uint64_t id;
    int i, n;
    for (i = 0; i < s->n && i < 50; i++) {
        FUZZ_MUST(kvmem_store_at(s, i, &e) == KVMEM_OK);
        read_one(s, e.id, c);
    }
    q.x = at;
    q.dim = 2;
    fuzz_explained(kvmem_store_search(s, &q, hit, 4, &n), &s->error);
    for (i = 1; i < n; i++) FUZZ_MUST(!(hit[i].score > hit[i - 1].score));
    fuzz_explained(kvmem_store_verify(s, NULL, NULL, NULL), &s->error);
    out.p = room;
    out.n = 0;
    out.cap = sizeof room;
    if (kvmem_store_save(s, 1, keep, &out) == KVMEM_OK) { /* what has been saved is whole */
        o.bytes = room;
        o.size = out.n;
        o.allocator = s->a;
        if (kvmem_store_open(&again, NULL, &o) == KVMEM_OK) {
            FUZZ_MUST(again.n <= s->n && !again.torn && !again.lost && !again.damaged && !again.mended);
            kvmem_store_close(&again);
        } else FUZZ_MUST(again.error.status == KVMEM_NO_MEMORY);
    }
    out.n = 0;
    if (s->n && other->backend && kvmem_store_export(s, s->kept[0].meta.id, keep, &out) == KVMEM_OK)
        fuzz_explained(kvmem_store_import(other, room, out.n, &id), &other->error);
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)64 << 20);
    kvmem_rope rope[2];
    float inv[2];
    kvmem_shape shape = the_shape(rope, inv);
    kvmem_store_options o = kvmem_store_options_default();
    kvmem_config cfg = kvmem_config_default();
    kvmem_store s, other;
    kvmem_cache c;
    uint8_t *file;
    if (!size) return 0;
    file = (uint8_t *)malloc(size);
    if (!file) return 0;
    memcpy(file, data + 1, size - 1);
    if (data[0] & 1) put_right(file, size - 1);
    cfg.shape = shape;
    cfg.model_id = 9;
    cfg.allocator = a;
    cfg.threads = 1;
    FUZZ_MUST(kvmem_cache_init(&c, &cfg) == KVMEM_OK);
    o.allocator = a;
    o.model_id = 9;
    o.shape = &shape;
    FUZZ_MUST(kvmem_store_open(&other, NULL, &o) == KVMEM_OK);
    if (!(data[0] & 4)) o.shape = NULL;
    if (data[0] & 2) o.ram_bytes = 4096;
    o.bytes = file;
    o.size = size - 1;
    fuzz_explained(kvmem_store_open(&s, NULL, &o), &s.error);
    if (s.backend) use(&s, &c, &other);
    FUZZ_MUST(!o.ram_bytes || s.peak <= o.ram_bytes);
    kvmem_store_close(&s);
    kvmem_store_close(&other);
    kvmem_cache_free(&c);
    FUZZ_MUST(heap.live == 0);
    free(file);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
/* An episode of what a cache has kept of 6 tokens: lanes with holes. */
static void add_with_holes(kvmem_store *s, const kvmem_shape *shape, const kvmem_allocator *a) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe r;
    kvmem_cache c;
    float k[6 * D], q[6 * 2 * D], out[6 * 2 * D];
    int l, i;
    FUZZ_MUST(kvmem_recipe_parse(&r, "score=random budget=3 sink=1 recent=1 when=prompt", NULL) == KVMEM_OK);
    cfg.shape = *shape;
    cfg.model_id = 9;
    cfg.recipe = &r;
    cfg.allocator = *a;
    FUZZ_MUST(kvmem_cache_init(&c, &cfg) == KVMEM_OK);
    for (l = 0; l < 2; l++) {
        for (i = 0; i < 6 * D; i++) k[i] = (float)(i % 5 + l);
        for (i = 0; i < 6 * 2 * D; i++) q[i] = (float)(i % 3);
        FUZZ_MUST(kvmem_cache_append(&c, l, 6, k, k, NULL) == KVMEM_OK);
        FUZZ_MUST(kvmem_cache_attend(&c, l, 6, q, out) == KVMEM_OK);
    }
    FUZZ_MUST(kvmem_cache_commit(&c, KVMEM_PROMPT_END) == KVMEM_OK);
    FUZZ_MUST(kvmem_store_add(s, NULL, NULL, &c, 0, 6, NULL) == KVMEM_OK);
    kvmem_cache_free(&c);
}
/* Records of the other types behind what has been saved: a change of episode 1, the deletion of 3. */
static void add_changes(kvmem_store *s, kvmem__sink *o) {
    uint8_t a[256], *part[3];
    kvmem__record r;
    memset(&r, 0, sizeof r);
    memset(part, 0, sizeof part);
    s->kept[0].meta.uses = 5;
    r.size[0] = kvmem__meta_put(a, &s->kept[0].meta);
    r.crc[0] = kvmem__crc32(0, a, (size_t)r.size[0]);
    part[0] = a;
    r.type = KVMEM__REC_SET;
    r.id = r.version = 1;
    FUZZ_MUST(kvmem__sink_record(o, &r, part));
    memset(&r, 0, sizeof r);
    r.type = KVMEM__REC_DELETE;
    r.id = 3;
    r.version = 1;
    FUZZ_MUST(kvmem__sink_record(o, &r, part));
}
/* A store with versions, a change, a deletion, a rollback, an episode with holes; coded by the seed's codec. */
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    static const char *const codec[4] = { "f32", "f16", "q8_0", "q4_0" };
    fuzz_heap heap;
    kvmem_rope rope[2];
    float inv[2], x[4 * 2 * D];
    kvmem_shape shape = the_shape(rope, inv);
    kvmem_store_options o = kvmem_store_options_default();
    kvmem_store s;
    kvmem_episode e;
    kvmem_content c;
    kvmem_vector v;
    kept_bytes to;
    kvmem__sink end;
    int j, t;
    if (i >= 16) return 0;
    o.shape = &shape;
    o.model_id = 9;
    o.codec_k = codec[i % 4];
    o.codec_v = codec[i / 4];
    o.allocator = fuzz_allocator(&heap, (size_t)64 << 20);
    FUZZ_MUST(kvmem_store_open(&s, NULL, &o) == KVMEM_OK);
    memset(&e, 0, sizeof e);
    memset(&c, 0, sizeof c);
    memset(&v, 0, sizeof v);
    for (j = 1; j <= 3; j++) {
        for (t = 0; t < 4 * 2 * D; t++) x[t] = (float)(t % 7 + j);
        e.first = 4 * j;
        e.n = 4;
        e.source[0] = (char)('a' + j);
        v.dim = 2;
        v.x = x;
        c.vector = &v;
        c.n_vectors = c.n_ids = 1;
        c.ids = &j;
        c.text = "a text of some words";
        c.text_bytes = 20;
        FUZZ_MUST(kvmem_store_add_rows(&s, &e, &c, x, x, NULL) == KVMEM_OK);
    }
    FUZZ_MUST(kvmem_store_update(&s, 2, NULL, &c, NULL, 0, 0) == KVMEM_OK);
    FUZZ_MUST(kvmem_store_rollback(&s, 2, 1) == KVMEM_OK);
    add_with_holes(&s, &shape, &o.allocator);
    out[0] = (uint8_t)(i % 8);
    to.p = out + 1;
    to.n = 0;
    to.cap = cap - 1;
    FUZZ_MUST(kvmem__store_write(&s, 0, 1, keep, &to, &end) == KVMEM_OK);
    add_changes(&s, &end);
    kvmem_store_close(&s);
    return to.n + 1;
}
#endif
