/* The episode store: what goes in comes out, tiers and limits, versions, search, files that are cut or changed. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#define KVMEM_NO_DECODER
#include "test.h"
#include "world.h"
#include <math.h>

#define PATH "build/test_store.kve"

/* A heap that counts, has a cap that may never be passed, and can fail its k-th call. */
typedef struct heap { size_t live, cap, calls, fail_at; int passed; } heap;
static void *heap_alloc(void *user, size_t size) {
    heap *h = (heap *)user;
    if (++h->calls == h->fail_at) return NULL;
    h->live += size;
    if (h->cap && h->live > h->cap) h->passed = 1;
    return malloc(size);
}
static void heap_release(void *user, void *p, size_t size) {
    ((heap *)user)->live -= size;
    free(p);
}
static kvmem_allocator heap_of(heap *h, size_t cap) {
    kvmem_allocator a;
    memset(h, 0, sizeof *h);
    h->cap = cap;
    a.user = h;
    a.alloc = heap_alloc;
    a.release = heap_release;
    return a;
}

/* A cache that has read T tokens of the world's stream, in blocks of 7. */
static int read_on(kvmem_cache *c, const world *w, int from, int T) {
    static float k[7 * 64], v[7 * 64], q[7 * 128], out[7 * 128];
    int t, l, i;
    for (t = from; t < T; t += 7) {
        const int n = T - t < 7 ? T - t : 7;
        for (l = 0; l < w->L; l++) {
            for (i = 0; i < n; i++) {
                memcpy(k + i * w->G * w->d, row_k(w, w->k, t + i, l), (size_t)(w->G * w->d) * 4);
                memcpy(v + i * w->G * w->d, row_k(w, w->v, t + i, l), (size_t)(w->G * w->d) * 4);
                memcpy(q + i * w->H * w->d, row_q(w, t + i, l), (size_t)(w->H * w->d) * 4);
            }
            if (kvmem_cache_append(c, l, n, k, v, NULL) || kvmem_cache_attend(c, l, n, q, out)) return 0;
        }
        if (kvmem_cache_commit(c, t + n == T ? KVMEM_PROMPT_END : KVMEM_PREFILL)) return 0;
    }
    return 1;
}
static int begin(world *w, kvmem_cache *c, const char *recipe, int rope) {
    if (!world_init(w, 2, 4, 2, 16, 60, recipe)) return 0;
    if (rope) w->cfg.shape.rope = w->rope;
    w->cfg.model_id = 77;
    return kvmem_cache_init(c, &w->cfg) == KVMEM_OK;
}

TEST(an_episode_comes_back_from_a_file) {
    world w; kvmem_cache c, d; kvmem_store s; kvmem_store_options o;
    kvmem_episode e, got; kvmem_content x; kvmem_vector vec;
    kvmem_store_query q = kvmem_store_query_default(); kvmem_store_hit hits[3];
    float at[4] = { 1, 2, 3, 4 }, k1[16 * 20], v1[16 * 20], k2[16 * 20], v2[16 * 20];
    const int ids[5] = { 5, 4, 3, -2, 1 };
    int back[5], n, l, g, i;
    int32_t first;
    char text[32];
    uint64_t id = 0;
    remove(PATH);
    REQUIRE(begin(&w, &c, "full", 1));
    REQUIRE(read_on(&c, &w, 0, 40));
    o = kvmem_store_options_of(&c);
    o.codec_k = o.codec_v = "f32";
    memset(&e, 0, sizeof e); memset(&x, 0, sizeof x); memset(&vec, 0, sizeof vec);
    strcpy(e.source, "book.txt"); e.created = 123; e.origin = KVMEM_FROM_USER; e.strength = 0.5f; e.place = 3;
    strcpy(vec.name, "mean"); vec.dim = 4; vec.x = at;
    x.ids = ids; x.n_ids = 5; x.text = "once upon"; x.text_bytes = 9; x.vector = &vec; x.n_vectors = 1;
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    REQUIRE_OK(kvmem_store_add(&s, &e, &x, &c, 0, 20, &id));
    REQUIRE_OK(kvmem_store_add(&s, &e, NULL, &c, 20, 40, NULL));
    kvmem_store_close(&s);
    o.read_only = 1;
    if (kvmem_store_open(&s, PATH, &o)) { FAIL_AT("%s", s.error.text); return; }
    CHECK(s.n == 2 && id == 1);
    CHECK_OK(kvmem_store_get(&s, 1, 0, &got));
    CHECK(!strcmp(got.source, "book.txt") && got.created == 123 && got.origin == KVMEM_FROM_USER && got.n == 20);
    CHECK(got.first == 0 && got.place == 3 && got.strength == 0.5f && got.version == 1 && got.n_ids == 5);
    CHECK_OK(kvmem_store_text(&s, 1, 0, text, sizeof text, NULL));
    CHECK(!strcmp(text, "once upon"));
    CHECK_OK(kvmem_store_ids(&s, 1, 0, back, 5, &n));
    CHECK(n == 5 && !memcmp(ids, back, sizeof ids));
    q.x = at; q.dim = 4; q.name = "mean";
    CHECK_OK(kvmem_store_search(&s, &q, hits, 3, &n));
    CHECK(n == 1 && hits[0].id == 1); CHECK_NEAR(hits[0].score, 1, 1e-6);
    CHECK_OK(kvmem_cache_init(&d, &w.cfg));
    CHECK_OK(kvmem_store_load(&s, 1, &d, KVMEM_STORE_ORIGINAL, &first));
    CHECK(first == 0);
    CHECK_OK(kvmem_store_load(&s, 2, &d, KVMEM_STORE_ORIGINAL, &first));
    CHECK(first == 20 && d.next_pos == 40 && d.tokens == 40);
    for (l = 0; l < 2; l++)
        for (g = 0; g < 2; g++) {
            CHECK_OK(kvmem_cache_read(&c, l, g, 10, 20, k1, v1, NULL));
            CHECK_OK(kvmem_cache_read(&d, l, g, 10, 20, k2, v2, NULL));
            for (i = 0; i < 320; i++) {
                CHECK_NEAR(k1[i], k2[i], 2e-6);
                if (v1[i] != v2[i]) FAIL_AT("v");
            }
        }
    CHECK(kvmem_store_add(&s, &e, &x, &c, 0, 20, &id) == KVMEM_BAD_STATE);
    CHECK_OK(kvmem_store_verify(&s, NULL, NULL, NULL));
    kvmem_store_close(&s);
    kvmem_cache_free(&c);
    kvmem_cache_free(&d);
    world_free(&w);
}


/* ---- small stores in RAM, and their bytes ---- */

static kvmem_shape small_shape(void) {
    kvmem_shape x;
    memset(&x, 0, sizeof x);
    x.n_layers = 1; x.n_heads = 2; x.n_kv_heads = 1; x.head_dim = 4;
    return x;
}
static kvmem_store_options small(const kvmem_shape *x) {
    kvmem_store_options o = kvmem_store_options_default();
    o.model_id = 5;
    o.shape = x;
    o.codec_k = o.codec_v = "f32";
    o.no_sync = 1; /* tests/store_kill.c flushes */
    return o;
}
/* Episode number i: n tokens from position `first`, a text, a vector of two numbers and rows made of i. */
static uint64_t put(kvmem_store *s, int i, int first, int n) {
    kvmem_episode e; kvmem_content x; kvmem_vector vec;
    float k[64], v[64], at[2];
    char text[32];
    int ids[16], t;
    uint64_t id = 0;
    memset(&e, 0, sizeof e); memset(&x, 0, sizeof x); memset(&vec, 0, sizeof vec);
    for (t = 0; t < 4 * n; t++) { k[t] = (float)(i * 100 + t); v[t] = -k[t]; }
    for (t = 0; t < n; t++) ids[t] = i + t;
    sprintf(text, "text of %d", i);
    sprintf(e.source, "file%d", i);
    at[0] = (float)i; at[1] = 1;
    vec.name[0] = 'm'; vec.dim = 2; vec.x = at;
    e.first = first; e.n = n; e.created = i; e.strength = 1;
    x.ids = ids; x.n_ids = n; x.text = text; x.text_bytes = strlen(text); x.vector = &vec; x.n_vectors = 1;
    if (kvmem_store_add_rows(s, &e, &x, k, v, &id)) return 0;
    return id;
}
/* Is episode id what put(s, i, ...) has made? */
static int is(kvmem_store *s, uint64_t id, int i) {
    kvmem_episode e;
    float k[64], v[64], at[2];
    char text[32], want[32];
    int ids[16], n = 0, t, m = 0, dim = 0;
    if (kvmem_store_get(s, id, 0, &e) || kvmem_store_text(s, id, 0, text, sizeof text, NULL) ||
        kvmem_store_ids(s, id, 0, ids, 16, &m) || kvmem_store_vector(s, id, 0, "m", at, 2, &dim) ||
        kvmem_store_rows(s, id, 0, 0, 0, k, v, NULL, 16, &n)) return 0;
    sprintf(want, "text of %d", i);
    if (strcmp(text, want) || n != e.n || m != n || dim != 2 || at[0] != (float)i || e.created != i) return 0;
    for (t = 0; t < 4 * n; t++)
        if (k[t] != (float)(i * 100 + t) || v[t] != -k[t]) return 0;
    for (t = 0; t < n; t++)
        if (ids[t] != i + t) return 0;
    return 1;
}
static void write_file(const char *path, const unsigned char *p, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f)) { printf("  %s: cannot be written\n", path); exit(2); }
}

TEST(rows_come_back_bit_for_bit_in_f32_and_close_in_others) {
    static const char *const codec[4] = { "f32", "f16", "q8_0", "q4_0" };
    static const double off[4] = { 0, 1e-3, 1e-2, 0.2 };
    int i, t, n;
    for (i = 0; i < 4; i++) {
        kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s; kvmem_episode e;
        float k[3 * 32], v[3 * 32], a[3 * 32], b[3 * 32];
        int32_t pos[3];
        uint64_t id;
        x.head_dim = 32;
        o.codec_k = codec[i]; o.codec_v = codec[3 - i];
        REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
        memset(&e, 0, sizeof e);
        e.n = 3; e.first = 9;
        for (t = 0; t < 96; t++) { k[t] = (float)test_normal(); v[t] = (float)test_normal(); }
        CHECK_OK(kvmem_store_add_rows(&s, &e, NULL, k, v, &id));
        CHECK_OK(kvmem_store_rows(&s, id, 0, 0, 0, a, b, pos, 3, &n));
        CHECK(n == 3 && pos[0] == 9 && pos[2] == 11);
        for (t = 0; t < 96; t++) {
            CHECK_NEAR(a[t], k[t], off[i] * 3);
            CHECK_NEAR(b[t], v[t], off[3 - i] * 3);
        }
        kvmem_store_close(&s);
    }
}
TEST(codecs_of_whole_blocks_are_refused_by_name) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s;
    o.codec_k = "kivi";
    CHECK(kvmem_store_open(&s, NULL, &o) == KVMEM_UNSUPPORTED && strstr(s.error.text, "kivi"));
    o.codec_k = "nonsense";
    CHECK(kvmem_store_open(&s, NULL, &o) != KVMEM_OK && strstr(s.error.text, "nonsense"));
    kvmem_store_close(&s);
}

/* ---- episodes in caches ---- */

/* What the next block of 5 tokens sees of cache c, whose stream is at `at`. */
static int see(kvmem_cache *c, const world *w, int at, float *out) {
    int l;
    static float k[5 * 64], v[5 * 64], q[5 * 128];
    int i;
    for (l = 0; l < w->L; l++) {
        for (i = 0; i < 5; i++) {
            memcpy(k + i * w->G * w->d, row_k(w, w->k, at + i, l), (size_t)(w->G * w->d) * 4);
            memcpy(v + i * w->G * w->d, row_k(w, w->v, at + i, l), (size_t)(w->G * w->d) * 4);
            memcpy(q + i * w->H * w->d, row_q(w, at + i, l), (size_t)(w->H * w->d) * 4);
        }
        if (kvmem_cache_append(c, l, 5, k, v, NULL) ||
            kvmem_cache_attend(c, l, 5, q, out + l * 5 * w->H * w->d)) return 0;
    }
    return kvmem_cache_commit(c, KVMEM_DECODE) == KVMEM_OK;
}
/* A stretch of the world's stream as rows of an episode, keys before RoPE. */
static uint64_t put_rows(kvmem_store *s, const world *w, int from, int n, int first) {
    kvmem_episode e;
    uint64_t id = 0;
    const size_t all = (size_t)(w->L * n * w->G * w->d) * 4;
    float *k = (float *)malloc(all), *v = (float *)malloc(all);
    int l, t;
    for (l = 0; l < w->L; l++)
        for (t = 0; t < n; t++) {
            memcpy(k + (l * n + t) * w->G * w->d, row_k(w, w->k, from + t, l), (size_t)(w->G * w->d) * 4);
            memcpy(v + (l * n + t) * w->G * w->d, row_k(w, w->v, from + t, l), (size_t)(w->G * w->d) * 4);
        }
    memset(&e, 0, sizeof e);
    e.first = first;
    e.n = n;
    CHECK_OK(kvmem_store_add_rows(s, &e, NULL, k, v, &id));
    free(k);
    free(v);
    return id;
}
TEST(an_episode_that_starts_at_0_gives_what_plain_prefill_gives) {
    static const char *const recipe[3] = { "full", "codec=q8_0", "codec=f16 page=8" };
    static float want[2 * 5 * 64], got[2 * 5 * 64];
    int i, j, exact;
    for (i = 0; i < 3; i++)
        for (exact = 0; exact < 2; exact++) {
            world w; kvmem_cache c, d; kvmem_store s; kvmem_store_options o;
            uint64_t id = 0;
            REQUIRE(begin(&w, &c, recipe[i], 1));
            REQUIRE(read_on(&c, &w, 0, 30));
            o = kvmem_store_options_of(&c);
            o.codec_k = o.codec_v = "f32";
            REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
            if (exact) id = put_rows(&s, &w, 0, 30, 0); /* rows of the stream: nothing is lost at all */
            else CHECK_OK(kvmem_store_add(&s, NULL, NULL, &c, 0, 30, &id));
            CHECK_OK(kvmem_cache_init(&d, &w.cfg));
            CHECK_OK(kvmem_store_load(&s, id, &d, KVMEM_STORE_ORIGINAL, NULL));
            CHECK(see(&c, &w, 30, want) && see(&d, &w, 30, got));
            for (j = 0; j < 2 * 5 * 64; j++) {
                if (exact && want[j] != got[j]) { FAIL_AT("%s: output %d differs", recipe[i], j); break; }
                CHECK_NEAR(want[j], got[j], i ? 0.02 : 1e-5);
            }
            kvmem_store_close(&s); kvmem_cache_free(&c); kvmem_cache_free(&d); world_free(&w);
        }
}
TEST(packed_episodes_are_as_if_read_one_behind_the_other) {
    static float want[2 * 5 * 64], got[2 * 5 * 64];
    world w; kvmem_cache c, d; kvmem_store s; kvmem_store_options o;
    uint64_t a, b;
    int32_t first = -1;
    REQUIRE(begin(&w, &c, "full", 1));
    REQUIRE(read_on(&c, &w, 0, 25));
    o = kvmem_store_options_of(&c);
    o.codec_k = o.codec_v = "f32";
    REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
    a = put_rows(&s, &w, 0, 10, 0);
    b = put_rows(&s, &w, 10, 15, 0); /* both begin at position 0 */
    CHECK_OK(kvmem_cache_init(&d, &w.cfg));
    CHECK_OK(kvmem_store_load(&s, a, &d, KVMEM_STORE_PACKED, &first));
    CHECK(first == 0);
    CHECK(kvmem_store_load(&s, b, &d, KVMEM_STORE_ORIGINAL, &first) == KVMEM_BAD_STATE);
    CHECK(strstr(s.error.text, "rising") != NULL);
    CHECK(d.next_pos == 10 && kvmem_cache_lane_len(&d, 0, 0) == 10);
    CHECK_OK(kvmem_store_load(&s, b, &d, KVMEM_STORE_PACKED, &first));
    CHECK(first == 10 && d.next_pos == 25 && d.tokens == 25);
    CHECK(see(&c, &w, 25, want) && see(&d, &w, 25, got));
    CHECK(!memcmp(want, got, sizeof want));
    kvmem_cache_clear(&d); /* at original positions with a gap, then packed behind it */
    a = put_rows(&s, &w, 0, 10, 40);
    CHECK_OK(kvmem_store_load(&s, a, &d, KVMEM_STORE_ORIGINAL, &first));
    CHECK(first == 40 && d.next_pos == 50);
    CHECK_OK(kvmem_store_load(&s, b, &d, KVMEM_STORE_PACKED, &first));
    CHECK(first == 50 && d.next_pos == 65);
    kvmem_store_close(&s); kvmem_cache_free(&c); kvmem_cache_free(&d); world_free(&w);
}
TEST(caches_whose_caller_rotates_are_served_by_the_stores_rope) {
    world w; kvmem_cache c, plain, d; kvmem_store s; kvmem_store_options o; kvmem_config cfg;
    static float k1[30 * 16], k2[30 * 16], v[30 * 16], kk[30 * 32], vv[30 * 32], seen[30 * 64];
    uint64_t id = 0, bound = 0;
    int l, g, t;
    REQUIRE(begin(&w, &c, "full", 1));
    REQUIRE(read_on(&c, &w, 0, 30));
    cfg = w.cfg;
    cfg.shape.rope = NULL;
    CHECK_OK(kvmem_cache_init(&plain, &cfg));
    CHECK_OK(kvmem_cache_init(&d, &cfg));
    for (l = 0; l < 2; l++) { /* the caller has rotated: plain holds the keys that c reads */
        for (g = 0; g < 2; g++) {
            CHECK_OK(kvmem_cache_read(&c, l, g, 0, 30, k1, v, NULL));
            for (t = 0; t < 30; t++) {
                memcpy(kk + (t * 2 + g) * 16, k1 + t * 16, 64);
                memcpy(vv + (t * 2 + g) * 16, v + t * 16, 64);
            }
        }
        CHECK_OK(kvmem_cache_append(&plain, l, 30, kk, vv, NULL));
        CHECK_OK(kvmem_cache_attend(&plain, l, 30, row_q(&w, 0, 0), seen));
    }
    CHECK_OK(kvmem_cache_commit(&plain, KVMEM_PROMPT_END));
    o = kvmem_store_options_of(&c); /* with RoPE */
    o.codec_k = o.codec_v = "f32";
    REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
    CHECK_OK(kvmem_store_add(&s, NULL, NULL, &plain, 0, 30, &id));
    CHECK_OK(kvmem_store_rows(&s, id, 0, 1, 1, k1, NULL, NULL, 30, NULL));
    for (t = 0; t < 30; t++)
        for (g = 0; g < 16; g++) CHECK_NEAR(k1[t * 16 + g], row_k(&w, w.k, t, 1)[16 + g], 1e-5);
    CHECK_OK(kvmem_store_load(&s, id, &d, KVMEM_STORE_PACKED, NULL));
    CHECK_OK(kvmem_cache_read(&d, 1, 0, 0, 30, k2, NULL, NULL));
    CHECK_OK(kvmem_cache_read(&c, 1, 0, 0, 30, k1, NULL, NULL));
    for (t = 0; t < 480; t++) CHECK_NEAR(k1[t], k2[t], 1e-5);
    kvmem_store_close(&s);
    o = kvmem_store_options_of(&plain); /* nobody says how keys turn: they stay where they were */
    REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
    CHECK_OK(kvmem_store_add(&s, NULL, NULL, &plain, 10, 30, &bound));
    kvmem_cache_clear(&d);
    CHECK(kvmem_store_load(&s, bound, &d, KVMEM_STORE_PACKED, NULL) == KVMEM_UNSUPPORTED);
    CHECK(strstr(s.error.text, "10 only") != NULL);
    CHECK_OK(kvmem_store_load(&s, bound, &d, KVMEM_STORE_ORIGINAL, NULL));
    CHECK(kvmem_store_load(&s, bound, &c, KVMEM_STORE_ORIGINAL, NULL) == KVMEM_MISMATCH);
    kvmem_store_close(&s); kvmem_cache_free(&c); kvmem_cache_free(&plain); kvmem_cache_free(&d); world_free(&w);
}
TEST(what_an_evicted_cache_kept_is_stored_and_comes_back) {
    static const char *const recipe[2] = {
        "score=knorm budget=12 sink=2 recent=4 when=prompt",
        "score=knorm budget=12 sink=2 recent=4 when=prompt reduce=demote(q4_0/q4_0)" };
    int i, l, g, t, n;
    for (i = 0; i < 2; i++) {
        world w; kvmem_cache c, d; kvmem_store s; kvmem_store_options o; kvmem_config cfg;
        static float k1[40 * 16], v1[40 * 16], k2[40 * 16], v2[40 * 16];
        int32_t p1[40], p2[40];
        uint64_t id = 0;
        kvmem_recipe full = kvmem_recipe_default();
        REQUIRE(begin(&w, &c, recipe[i], 1));
        REQUIRE(read_on(&c, &w, 0, 40));
        o = kvmem_store_options_of(&c);
        o.codec_k = o.codec_v = "f32";
        REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
        CHECK_OK(kvmem_store_add(&s, NULL, NULL, &c, 0, 40, &id));
        cfg = w.cfg;
        cfg.recipe = &full;
        CHECK_OK(kvmem_cache_init(&d, &cfg));
        CHECK_OK(kvmem_store_load(&s, id, &d, KVMEM_STORE_ORIGINAL, NULL));
        CHECK(d.next_pos == 40 && d.tokens == 40);
        for (l = 0; l < 2; l++)
            for (g = 0; g < 2; g++) {
                n = kvmem_cache_lane_len(&c, l, g);
                REQUIRE(n == kvmem_cache_lane_len(&d, l, g) && n == (i ? 40 : 12));
                CHECK_OK(kvmem_cache_read(&c, l, g, 0, n, k1, v1, p1));
                CHECK_OK(kvmem_cache_read(&d, l, g, 0, n, k2, v2, p2));
                for (t = 0; t < n; t++) { /* demoted entries come first in c; in d all rise */
                    int j, x;
                    for (j = 0; j < n && p2[j] != p1[t]; j++) {}
                    REQUIRE(j < n);
                    for (x = 0; x < 16; x++) {
                        CHECK_NEAR(k1[t * 16 + x], k2[j * 16 + x], 1e-5);
                        CHECK(v1[t * 16 + x] == v2[j * 16 + x]);
                    }
                }
            }
        CHECK(kvmem_store_add(&s, NULL, NULL, &c, 30, 41, &id) == KVMEM_BAD_ARGUMENT);
        CHECK(kvmem_store_add(&s, NULL, NULL, &c, 30, 30, &id) == KVMEM_BAD_ARGUMENT);
        kvmem_store_close(&s); kvmem_cache_free(&c); kvmem_cache_free(&d); world_free(&w);
    }
}
TEST(stores_and_caches_of_other_models_are_refused) {
    world w; kvmem_cache c; kvmem_store s; kvmem_store_options o; kvmem_shape x;
    unsigned char *file;
    size_t n;
    remove(PATH);
    REQUIRE(begin(&w, &c, "full", 1));
    REQUIRE(read_on(&c, &w, 0, 20));
    o = kvmem_store_options_of(&c);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    CHECK_OK(kvmem_store_add(&s, NULL, NULL, &c, 0, 20, NULL));
    c.model_id = 78;
    CHECK(kvmem_store_add(&s, NULL, NULL, &c, 0, 20, NULL) == KVMEM_MISMATCH);
    CHECK(kvmem_store_load(&s, 1, &c, KVMEM_STORE_PACKED, NULL) == KVMEM_MISMATCH);
    kvmem_store_close(&s);
    o.model_id = 1;
    CHECK(kvmem_store_open(&s, PATH, &o) == KVMEM_MISMATCH && strstr(s.error.text, "another model"));
    o.model_id = 77;
    x = c.shape;
    o.shape = &x;
    x.n_layers = 1;
    CHECK(kvmem_store_open(&s, PATH, &o) == KVMEM_MISMATCH && strstr(s.error.text, "layers"));
    x = c.shape;
    x.softcap = 3;
    CHECK(kvmem_store_open(&s, PATH, &o) == KVMEM_MISMATCH && strstr(s.error.text, "RoPE"));
    x = c.shape;
    x.rope = NULL;
    CHECK(kvmem_store_open(&s, PATH, &o) == KVMEM_MISMATCH);
    o.shape = NULL; /* anyone may look */
    o.read_only = 1;
    CHECK_OK(kvmem_store_open(&s, PATH, &o));
    CHECK(s.n == 1 && s.model_id == 77 && s.n_layers == 2);
    kvmem_store_close(&s);
    file = test_file(PATH, &n);
    REQUIRE(file);
    kvmem__put32(file + 8, 9);
    kvmem__put32(file + 64, kvmem__crc32(0, file, 64));
    write_file(PATH, file, n);
    CHECK(kvmem_store_open(&s, PATH, &o) == KVMEM_UNSUPPORTED && strstr(s.error.text, "version 9"));
    write_file(PATH, (const unsigned char *)"hello", 5);
    o.read_only = 0;
    o.shape = &c.shape;
    CHECK(kvmem_store_open(&s, PATH, &o) == KVMEM_BAD_FILE);
    CHECK(kvmem_store_open(&s, "build/no/such/dir/x", &o) == KVMEM_IO);
    free(file);
    kvmem_cache_free(&c); world_free(&w);
}

/* ---- searching and metadata ---- */

TEST(search_ranks_and_never_finds_what_must_not_be_found) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s; kvmem_episode e;
    kvmem_store_query q = kvmem_store_query_default(); kvmem_store_hit h[9];
    float at[2] = { 1, 0 };
    int n = -1, i;
    REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
    q.x = at; q.dim = 2;
    CHECK_OK(kvmem_store_search(&s, &q, h, 3, &n)); /* a question before any fact */
    CHECK(n == 0);
    for (i = 0; i < 5; i++) put(&s, i == 4 ? 3 : i, 0, 2); /* vectors (i, 1); 4 and 5 have the same */
    q.cosine = 0;
    CHECK_OK(kvmem_store_search(&s, &q, h, 9, &n));
    CHECK(n == 5 && h[0].id == 4 && h[1].id == 5 && h[2].id == 3 && h[3].id == 2 && h[4].id == 1);
    CHECK(h[0].score == 3 && h[4].score == 0);
    CHECK_OK(kvmem_store_search(&s, &q, h, 1, &n));
    CHECK(n == 1 && h[0].id == 4); /* ties: the lower id */
    q.cosine = 1;
    CHECK_OK(kvmem_store_search(&s, &q, h, 2, &n));
    CHECK_NEAR(h[0].score, 3 / sqrt(10.0), 1e-6);
    CHECK_OK(kvmem_store_get(&s, 4, 0, &e));
    e.expires = 100;
    CHECK_OK(kvmem_store_set(&s, 4, &e));
    CHECK_OK(kvmem_store_get(&s, 5, 0, &e));
    e.quarantine = 1;
    CHECK_OK(kvmem_store_set(&s, 5, &e));
    CHECK_OK(kvmem_store_get(&s, 3, 0, &e));
    e.access = KVMEM_ACCESS_ARCHIVED;
    CHECK_OK(kvmem_store_set(&s, 3, &e));
    q.now = 99;
    CHECK_OK(kvmem_store_search(&s, &q, h, 9, &n));
    CHECK(n == 3 && h[0].id == 4);
    q.now = 100; /* expired */
    CHECK_OK(kvmem_store_search(&s, &q, h, 9, &n));
    CHECK(n == 2 && h[0].id == 2 && h[1].id == 1);
    CHECK_OK(kvmem_store_delete(&s, 2));
    CHECK_OK(kvmem_store_search(&s, &q, h, 9, &n));
    CHECK(n == 1 && h[0].id == 1);
    q.name = "other";
    CHECK_OK(kvmem_store_search(&s, &q, h, 9, &n));
    CHECK(n == 0);
    q.name = "m"; q.dim = 1;
    CHECK_OK(kvmem_store_search(&s, &q, h, 9, &n));
    CHECK(n == 0);
    q.dim = 2; q.place = 1;
    CHECK_OK(kvmem_store_search(&s, &q, h, 9, &n));
    CHECK(n == 0);
    at[0] = (float)NAN;
    CHECK(kvmem_store_search(&s, &q, h, 9, &n) == KVMEM_BAD_VALUE);
    CHECK(kvmem_store_get(&s, 2, 0, &e) == KVMEM_BAD_ARGUMENT && s.n == 4);
    CHECK(put(&s, 9, 0, 1) == 6); /* ids are not given twice */
    kvmem_store_close(&s);
}
TEST(versions_parents_and_rollback) {
    int where;
    for (where = 0; where < 2; where++) { /* in RAM, in a file */
        kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s; kvmem_episode e, was;
        kvmem_content c; kvmem_store_check check;
        char text[64];
        float k[64];
        uint64_t a, b, m = 0;
        int n = 0;
        const char *path = where ? PATH : NULL;
        remove(PATH);
        REQUIRE_OK(kvmem_store_open(&s, path, &o));
        a = put(&s, 1, 0, 3);
        b = put(&s, 2, 3, 4);
        CHECK_OK(kvmem_store_get(&s, a, 0, &was));
        memset(&e, 0, sizeof e); memset(&c, 0, sizeof c);
        e.n_parents = 2; e.parent[0] = a; e.parent[1] = b;
        CHECK_OK(kvmem_store_add(&s, &e, NULL, NULL, 0, 0, &m)); /* merged from both */
        CHECK_OK(kvmem_store_get(&s, m, 0, &e));
        CHECK(e.n_parents == 2 && is(&s, e.parent[0], 1) && is(&s, e.parent[1], 2));
        c.text = "changed"; c.text_bytes = 7;
        CHECK_OK(kvmem_store_update(&s, a, NULL, &c, NULL, 0, 0));
        CHECK_OK(kvmem_store_get(&s, a, 0, &e));
        CHECK(e.version == 2 && e.n_versions == 2 && e.n == 3 && e.text_bytes == 7 && e.n_vectors == 0);
        CHECK_OK(kvmem_store_text(&s, a, 1, text, sizeof text, NULL)); /* history is reachable */
        CHECK(!strcmp(text, "text of 1"));
        CHECK_OK(kvmem_store_rows(&s, a, 0, 0, 0, k, NULL, NULL, 16, &n)); /* rows were not given: the old ones */
        CHECK(n == 3 && k[0] == 100);
        CHECK(kvmem_store_rollback(&s, a, 3) == KVMEM_BAD_ARGUMENT);
        if (where) { /* and after a restart */
            kvmem_store_close(&s);
            REQUIRE_OK(kvmem_store_open(&s, path, &o));
            CHECK_OK(kvmem_store_text(&s, a, 0, text, sizeof text, NULL));
            CHECK(!strcmp(text, "changed") && s.n == 3);
        }
        CHECK_OK(kvmem_store_touch(&s, &a, 1, 1000));
        CHECK_OK(kvmem_store_rollback(&s, a, 1));
        CHECK(is(&s, a, 1));
        if (where) {
            kvmem_store_close(&s);
            REQUIRE_OK(kvmem_store_open(&s, path, &o));
        }
        CHECK(is(&s, a, 1));
        CHECK_OK(kvmem_store_get(&s, a, 0, &e));
        CHECK(e.version == 1 && e.n_versions == 2 && e.uses == 1 && e.last_used == 1000);
        CHECK(e.text_hash == was.text_hash);
        CHECK_OK(kvmem_store_update(&s, a, NULL, &c, NULL, 0, 0));
        CHECK_OK(kvmem_store_get(&s, a, 0, &e));
        CHECK(e.version == 3);
        e.access = KVMEM_ACCESS_FROZEN;
        CHECK_OK(kvmem_store_set(&s, a, &e));
        CHECK(kvmem_store_update(&s, a, NULL, &c, NULL, 0, 0) == KVMEM_BAD_STATE && strstr(s.error.text, "frozen"));
        CHECK(kvmem_store_delete(&s, a) == KVMEM_BAD_STATE && kvmem_store_rollback(&s, a, 1) == KVMEM_BAD_STATE);
        e.access = 0;
        CHECK_OK(kvmem_store_set(&s, a, &e));
        CHECK_OK(kvmem_store_verify(&s, &check, NULL, NULL));
        CHECK(check.episodes == 3 && check.versions == 5 && check.faults == 0);
        CHECK_OK(kvmem_store_compact(&s, 1));
        CHECK_OK(kvmem_store_get(&s, a, 0, &e));
        CHECK(e.version == 3 && e.n_versions == 3);
        CHECK_OK(kvmem_store_rollback(&s, a, 1));
        CHECK_OK(kvmem_store_compact(&s, 1));
        CHECK_OK(kvmem_store_compact(&s, 0));
        CHECK_OK(kvmem_store_get(&s, a, 0, &e));
        CHECK(e.version == 1 && e.n_versions == 1 && is(&s, a, 1) && is(&s, b, 2));
        CHECK_OK(kvmem_store_delete(&s, b));
        CHECK_OK(kvmem_store_get(&s, m, 0, &e));
        CHECK(e.parent[1] == b && s.n == 2);
        kvmem_store_close(&s);
    }
}
TEST(metadata_is_checked_and_small) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s; kvmem_episode e;
    kvmem_content c; kvmem_vector v[2];
    float num[2] = { 1, 2 };
    uint64_t id = 0;
    REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
    memset(&e, 0, sizeof e); memset(&c, 0, sizeof c); memset(v, 0, sizeof v);
    memset(e.source, 'x', sizeof e.source - 1);
    e.n_parents = KVMEM_MAX_PARENTS;
    CHECK(KVMEM__MARK + kvmem__meta_put(NULL, &e) < 256);
    CHECK_OK(kvmem_store_add(&s, &e, NULL, NULL, 0, 0, &id));
    memset(e.source, 'x', sizeof e.source);
    CHECK(kvmem_store_add(&s, &e, NULL, NULL, 0, 0, &id) == KVMEM_BAD_ARGUMENT);
    e.source[0] = 0; e.strength = (float)NAN;
    CHECK(kvmem_store_add(&s, &e, NULL, NULL, 0, 0, &id) == KVMEM_BAD_ARGUMENT);
    e.strength = 0; e.n_parents = 5;
    CHECK(kvmem_store_set(&s, 1, &e) == KVMEM_BAD_ARGUMENT);
    e.n_parents = 0; e.first = -1;
    CHECK(kvmem_store_add(&s, &e, NULL, NULL, 0, 0, &id) == KVMEM_BAD_ARGUMENT);
    e.first = INT32_MAX - 1; e.n = 2;
    CHECK(kvmem_store_add(&s, &e, NULL, NULL, 0, 0, &id) == KVMEM_BAD_ARGUMENT);
    e.first = 0; e.n = 1;
    CHECK(kvmem_store_add_rows(&s, &e, NULL, num, NULL, &id) == KVMEM_BAD_ARGUMENT);
    v[0].dim = v[1].dim = 2; v[0].x = v[1].x = num;
    c.vector = v; c.n_vectors = 2;
    CHECK(kvmem_store_add(&s, NULL, &c, NULL, 0, 0, &id) == KVMEM_BAD_ARGUMENT); /* the same name twice */
    v[1].name[0] = 'b'; num[1] = (float)INFINITY;
    CHECK(kvmem_store_add(&s, NULL, &c, NULL, 0, 0, &id) == KVMEM_BAD_VALUE);
    c.n_vectors = 0; c.n_ids = 1;
    CHECK(kvmem_store_add(&s, NULL, &c, NULL, 0, 0, &id) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_store_rows(&s, 1, 0, 0, 0, NULL, NULL, NULL, 0, NULL) == KVMEM_BAD_STATE); /* text only */
    CHECK(s.n == 1 && kvmem_store_delete(&s, 2) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_store_at(&s, 1, &e) == KVMEM_BAD_ARGUMENT);
    kvmem_store_close(&s);
    kvmem_store_close(&s);
    kvmem_store_close(NULL);
    CHECK(kvmem_store_add(&s, NULL, NULL, NULL, 0, 0, &id) == KVMEM_BAD_STATE);
}
TEST(saved_loaded_and_saved_again_the_bytes_are_the_same) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s, t;
    bytes a = { NULL, 0, 0 }, b = { NULL, 0, 0 }, one = { NULL, 0, 0 }, two = { NULL, 0, 0 };
    kvmem_content c;
    uint64_t id = 0;
    memset(&c, 0, sizeof c);
    REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
    put(&s, 1, 0, 3); put(&s, 2, 3, 2); put(&s, 3, 5, 1);
    CHECK_OK(kvmem_store_update(&s, 2, NULL, &c, NULL, 0, 0));
    CHECK_OK(kvmem_store_rollback(&s, 2, 1));
    CHECK_OK(kvmem_store_delete(&s, 3));
    CHECK_OK(kvmem_store_save(&s, 1, bytes_write, &a));
    o.bytes = a.p; o.size = a.n;
    REQUIRE_OK(kvmem_store_open(&t, NULL, &o));
    CHECK(t.n == 2 && t.torn == 0 && t.next_id == 4 && is(&t, 1, 1) && is(&t, 2, 2));
    CHECK_OK(kvmem_store_save(&t, 1, bytes_write, &b));
    CHECK(a.n == b.n && !memcmp(a.p, b.p, a.n));
    CHECK(put(&t, 9, 0, 1) == 0 && t.error.status == KVMEM_BAD_STATE); /* bytes are read only */
    CHECK_OK(kvmem_store_export(&t, 2, bytes_write, &one));
    CHECK_OK(kvmem_store_import(&s, one.p, one.n, &id));
    CHECK(id == 4 && is(&s, 4, 2));
    CHECK_OK(kvmem_store_delete(&s, 4));
    CHECK_OK(kvmem_store_import(&s, one.p, one.n, &id));
    CHECK(id == 5 && is(&s, 5, 2));
    CHECK(kvmem_store_import(&s, a.p, a.n, &id) == KVMEM_BAD_FILE); /* two episodes */
    CHECK(kvmem_store_import(&s, NULL, 0, &id) == KVMEM_BAD_FILE);
    one.p[one.n - 100] ^= 1;
    CHECK(kvmem_store_import(&s, one.p, one.n, &id) == KVMEM_BAD_FILE);
    CHECK(kvmem_store_export(&s, 3, bytes_write, &two) == KVMEM_BAD_ARGUMENT);
    kvmem_store_close(&t);
    kvmem_store_close(&s);
    free(a.p); free(b.p); free(one.p); free(two.p);
}


/* ---- limits and failures ---- */

/* A session with everything in it; returns the first failure. Whatever fails, the store goes on. */
static kvmem_status session(kvmem_store *s, const char *path, const kvmem_store_options *o) {
    kvmem_episode e;
    kvmem_content c;
    kvmem_store_hit hit;
    kvmem_store_query q = kvmem_store_query_default();
    float at[2] = { 1, 1 }, k[64];
    kvmem_status st = kvmem_store_open(s, path, o), bad = st;
    bytes one = { NULL, 0, 0 };
    uint64_t id;
    int i, n;
    if (st != KVMEM_OK) return st;
#define STEP(call) do { st = (call); if (bad == KVMEM_OK) bad = st; \
    if (st != KVMEM_OK && (s->error.status != st || !s->error.text[0])) bad = KVMEM_BAD_ARGUMENT; } while (0)
    memset(&c, 0, sizeof c);
    c.text = "new";
    c.text_bytes = 3;
    for (i = 1; i <= 4; i++)
        if (!put(s, i, 4 * i, 4) && bad == KVMEM_OK) bad = s->error.status;
    if (s->n) {
        id = s->kept[0].meta.id;
        STEP(kvmem_store_touch(s, &id, 1, 7));
        STEP(kvmem_store_update(s, id, NULL, &c, NULL, 0, 0));
        STEP(kvmem_store_rollback(s, id, 1));
        STEP(kvmem_store_rows(s, id, 0, 0, 0, k, NULL, NULL, 16, &n));
        STEP(kvmem_store_export(s, id, bytes_write, &one));
        STEP(kvmem_store_import(s, one.p, one.n, &id));
    }
    q.x = at;
    q.dim = 2;
    STEP(kvmem_store_search(s, &q, &hit, 1, &n));
    if (s->n) STEP(kvmem_store_delete(s, s->kept[s->n - 1].meta.id));
    STEP(kvmem_store_compact(s, 1));
    STEP(kvmem_store_verify(s, NULL, NULL, NULL));
    for (i = 0; i < s->n; i++) STEP(kvmem_store_get(s, s->kept[i].meta.id, 0, &e));
#undef STEP
    free(one.p);
    return bad;
}
TEST(every_allocation_may_fail) {
    int where;
    for (where = 0; where < 2; where++) {
        const char *path = where ? PATH : NULL;
        kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s;
        heap h;
        size_t k;
        kvmem_status st = KVMEM_NO_MEMORY;
        for (k = 1; st != KVMEM_OK && k < 500; k++) {
            remove(PATH);
            o.allocator = heap_of(&h, 0);
            h.fail_at = k;
            st = session(&s, path, &o);
            CHECK(st == KVMEM_OK || st == KVMEM_NO_MEMORY || (where && st == KVMEM_IO));
            CHECK(s.total == h.live);
            kvmem_store_close(&s);
            CHECK(h.live == 0);
            if (!where) continue;
            h.fail_at = 0;
            CHECK_OK(kvmem_store_open(&s, path, &o)); /* what was acknowledged is there and whole */
            CHECK_OK(kvmem_store_verify(&s, NULL, NULL, NULL));
            kvmem_store_close(&s);
        }
        CHECK(st == KVMEM_OK && k > 20);
    }
}
TEST(ram_and_file_stay_within_their_limits_at_every_moment) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s; kvmem_store_usage u;
    heap h;
    unsigned seed = 1;
    int i, there, n;
    float k[64];
    remove(PATH);
    o.ram_bytes = 15000;
    o.file_bytes = 40000;
    o.allocator = heap_of(&h, o.ram_bytes);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    for (i = 1; i <= 12; i++) REQUIRE(put(&s, i, 16 * i, 14) == (uint64_t)i);
    for (i = there = 0; i < 12; i++) there += s.kept[i].ver[0].part[2].p != NULL;
    CHECK(there > 0 && there < 12); /* not all K and V fit in RAM */
    for (i = 0; i < 200; i++) {
        seed = seed * 1103515245u + 12345u;
        CHECK(is(&s, 1 + (seed >> 16) % 12, (int)(1 + (seed >> 16) % 12)));
        CHECK(s.total == h.live && h.live <= o.ram_bytes);
    }
    /* the least recently used leaves first */
    for (i = 1; i <= 12; i++) CHECK_OK(kvmem_store_rows(&s, (uint64_t)i, 0, 0, 0, k, NULL, NULL, 16, &n));
    for (i = 1; i < 12; i++) CHECK(!s.kept[i - 1].ver[0].part[2].p || s.kept[i].ver[0].part[2].p);
    CHECK(s.kept[11].ver[0].part[2].p != NULL);
    while (put(&s, 13, 0, 14)) CHECK(h.live <= o.ram_bytes);
    CHECK(s.error.status == KVMEM_OVER_BUDGET && strstr(s.error.text, "limit"));
    kvmem_store_bytes(&s, &u);
    CHECK(u.total == h.live && u.peak <= o.ram_bytes && u.file <= o.file_bytes && u.limit == o.ram_bytes);
    CHECK(u.index + u.text + u.rows + u.scratch == u.total && u.live <= u.file);
    CHECK(is(&s, 3, 3));
    n = s.n;
    CHECK_OK(kvmem_store_delete(&s, 1));
    kvmem_store_close(&s);
    CHECK(h.live == 0 && !h.passed);
    o.file_bytes = 0;
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    CHECK(s.n == n - 1 && s.torn == 0);
    kvmem_store_close(&s);
    CHECK(!h.passed);
    o.ram_bytes = 2000; /* the index alone is larger */
    CHECK(kvmem_store_open(&s, PATH, &o) == KVMEM_OVER_BUDGET);
    /* in RAM nothing can leave: what does not fit is refused, the rest stays */
    o.ram_bytes = 9000;
    o.allocator = heap_of(&h, o.ram_bytes);
    REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
    for (i = 1; put(&s, i, 0, 14); i++) {}
    CHECK(s.error.status == KVMEM_OVER_BUDGET && s.n == i - 1 && i > 2);
    for (n = 1; n < i; n++) CHECK(is(&s, (uint64_t)n, n));
    kvmem_store_close(&s);
    CHECK(h.live == 0 && !h.passed);
}

TEST(a_cache_that_has_no_room_stays_as_it_was) {
    static const char *const recipe[2] = { "full page=8", "codec=kivi page=8" };
    world w; kvmem_cache c, d; kvmem_store s; kvmem_store_options o;
    heap h;
    size_t k;
    int i, j, t;
    for (i = 0; i < 2; i++) {
        static float want[2 * 5 * 64], got[2 * 5 * 64];
        kvmem_status st = KVMEM_NO_MEMORY;
        REQUIRE(begin(&w, &c, recipe[i], 1));
        REQUIRE(read_on(&c, &w, 0, 30));
        o = kvmem_store_options_of(&c);
        REQUIRE_OK(kvmem_store_open(&s, NULL, &o));
        put_rows(&s, &w, 0, 20, 0);
        put_rows(&s, &w, 20, 20, 20);
        kvmem_cache_free(&c);
        for (k = 0; st != KVMEM_OK && k < 60; k++) {
            w.cfg.allocator = heap_of(&h, 0);
            REQUIRE_OK(kvmem_cache_init(&d, &w.cfg));
            CHECK_OK(kvmem_store_load(&s, 1, &d, KVMEM_STORE_PACKED, NULL));
            h.fail_at = h.calls + 1 + k;
            st = kvmem_store_load(&s, 2, &d, KVMEM_STORE_PACKED, NULL);
            h.fail_at = 0;
            if (st != KVMEM_OK) {
                CHECK(st == KVMEM_NO_MEMORY && s.error.text[0]);
                for (j = 0; j < 4; j++) CHECK(kvmem_cache_lane_len(&d, j / 2, j % 2) == 20);
                CHECK(d.next_pos == 20 && d.tokens == 20);
                CHECK_OK(kvmem_store_load(&s, 2, &d, KVMEM_STORE_PACKED, NULL)); /* and now there is */
            }
            CHECK(see(&d, &w, 40, got));
            for (t = 0; k && t < 2 * 5 * 64; t++) CHECK(got[t] == want[t]);
            memcpy(want, got, sizeof want);
            kvmem_cache_free(&d);
            CHECK(h.live == 0);
        }
        CHECK(st == KVMEM_OK && k > 2);
        w.cfg.max_bytes = 60000; /* and under a byte limit: until it is reached, then refused */
        w.cfg.allocator = heap_of(&h, w.cfg.max_bytes);
        if (kvmem_cache_init(&d, &w.cfg) == KVMEM_OK) {
            for (t = 0; t < 100 && kvmem_store_load(&s, 1, &d, KVMEM_STORE_PACKED, NULL) == KVMEM_OK; t++) {}
            CHECK(t < 100 && s.error.status == KVMEM_OVER_BUDGET && d.next_pos == 20 * t);
            CHECK(!h.passed);
            kvmem_cache_free(&d);
        } else FAIL_AT("%s", d.error.text);
        kvmem_store_close(&s); world_free(&w);
    }
}

/* ---- files that are cut, changed, or have a past ---- */

static size_t record_end(kvmem_store *s, int i) { /* where episode i's only record ends */
    const kvmem__ep_version *v = &s->kept[i].ver[0];
    return (size_t)(v->part[0].at - KVMEM__MARK + v->record);
}
TEST(a_file_cut_anywhere_has_all_records_before_the_cut) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s;
    unsigned char *file;
    size_t n, cut, end[4];
    int i, want;
    remove(PATH);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    for (i = 1; i <= 3; i++) put(&s, i, 0, i);
    end[0] = 136;
    for (i = 0; i < 3; i++) end[i + 1] = record_end(&s, i);
    kvmem_store_close(&s);
    file = test_file(PATH, &n);
    REQUIRE(file && n == end[3]);
    for (cut = 0; cut <= n; cut++) {
        unsigned char *copy = (unsigned char *)malloc(cut ? cut : 1); /* so long: ASan sees reads behind it */
        kvmem_store_options b = o;
        memcpy(copy, file, cut);
        b.bytes = copy;
        b.size = cut;
        for (want = 3; want > 0 && end[want] > cut; want--) {}
        if (cut < 68) CHECK(kvmem_store_open(&s, NULL, &b) == KVMEM_BAD_FILE);
        else if (cut >= 136) {
            CHECK_OK(kvmem_store_open(&s, NULL, &b));
            /* the last mark alone may be missing: its copy and the checksums say that the record is whole */
            CHECK(s.n == want && s.torn == cut - end[want] && s.lost == 0);
            for (i = 0; i < s.n; i++) CHECK(is(&s, (uint64_t)i + 1, i + 1));
            kvmem_store_close(&s);
        }
        free(copy);
        if (cut % 41 && cut != 0 && cut != 100 && cut != n) continue; /* and written on, now and then */
        write_file(PATH, file, cut);
        CHECK_OK(kvmem_store_open(&s, PATH, &o));
        CHECK(s.n == want);
        CHECK(put(&s, 7, 0, 2) == (uint64_t)want + 1);
        kvmem_store_close(&s);
        CHECK_OK(kvmem_store_open(&s, PATH, &o));
        CHECK(s.n == want + 1 && is(&s, (uint64_t)want + 1, 7));
        CHECK_OK(kvmem_store_verify(&s, NULL, NULL, NULL));
        kvmem_store_close(&s);
    }
    free(file);
}
static int faults;
static void count_fault(void *user, uint64_t id, const char *fault) { (void)user; (void)id; faults += fault[0] != 0; }
TEST(a_changed_byte_costs_at_most_the_record_it_is_in) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s; kvmem_episode e;
    unsigned char *file;
    size_t n, at, end[4];
    int i, bit;
    remove(PATH);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    for (i = 1; i <= 3; i++) put(&s, i, 0, i);
    end[0] = 136;
    for (i = 0; i < 3; i++) end[i + 1] = record_end(&s, i);
    kvmem_store_close(&s);
    file = test_file(PATH, &n);
    REQUIRE(file && n == end[3]);
    for (at = 0; at < n; at++)
        for (bit = 0; bit < 8; bit += 1 + (int)(at % 3) * 3) {
            kvmem_store_options b = o;
            file[at] = (unsigned char)(file[at] ^ 1u << bit);
            b.bytes = file;
            b.size = n;
            if (kvmem_store_open(&s, NULL, &b) != KVMEM_OK) {
                FAIL_AT("byte %d: %s", (int)at, s.error.text);
                free(file);
                return;
            }
            CHECK(s.n == 3 && s.torn == 0 && s.lost == 0);
            for (i = 0; i < 3; i++) {
                const int in = at >= end[i] && at < end[i + 1];
                const int mark = in && (at < end[i] + KVMEM__MARK || at >= end[i + 1] - KVMEM__MARK);
                const int good = is(&s, (uint64_t)i + 1, i + 1);
                CHECK(good == (!in || mark));
                if (in && !mark) { /* named, and never found */
                    CHECK(s.error.status == KVMEM_BAD_FILE && strstr(s.error.text, "checksum"));
                    CHECK_OK(kvmem_store_at(&s, i, &e));
                    CHECK(e.id == (uint64_t)i + 1 && e.damaged);
                    CHECK(!kvmem_store_findable(&s, &e, 0));
                }
            }
            faults = 0;
            CHECK(kvmem_store_verify(&s, NULL, count_fault, NULL) == KVMEM_BAD_FILE && faults >= 1);
            kvmem_store_close(&s);
            file[at] = (unsigned char)(file[at] ^ 1u << bit);
        }
    /* what can still be read survives a compaction */
    file[end[1] + KVMEM__MARK + 20] ^= 1;
    file[end[2] + 3] ^= 1;
    write_file(PATH, file, n);
    CHECK_OK(kvmem_store_open(&s, PATH, &o));
    CHECK(kvmem_store_verify(&s, NULL, NULL, NULL) == KVMEM_BAD_FILE);
    CHECK_OK(kvmem_store_compact(&s, 0));
    CHECK(s.n == 2 && is(&s, 1, 1) && is(&s, 3, 3) && put(&s, 4, 0, 1) == 4);
    CHECK_OK(kvmem_store_verify(&s, NULL, NULL, NULL));
    kvmem_store_close(&s);
    free(file);
}
/* A record that was whole once, behind a tail that has been overwritten by a shorter one, is not taken for one. */
TEST(stale_bytes_behind_a_torn_tail_are_never_a_record) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x); kvmem_store s;
    unsigned char *file, *now;
    size_t n, end[5], m, cut;
    int i;
    remove(PATH);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    for (i = 1; i <= 4; i++) put(&s, i, 0, 4);
    end[0] = 136;
    for (i = 0; i < 4; i++) end[i + 1] = record_end(&s, i);
    kvmem_store_close(&s);
    file = test_file(PATH, &n);
    REQUIRE(file && n == end[4]);
    for (cut = end[1]; cut < end[2]; cut += 37) {
        write_file(PATH, file, cut); /* record 2 is torn */
        CHECK_OK(kvmem_store_open(&s, PATH, &o));
        CHECK(s.n == 1);
        CHECK(put(&s, 9, 0, cut % 2 ? 4 : 1) == 2); /* as long as the old one, or shorter */
        kvmem_store_close(&s);
        now = test_file(PATH, &m);
        REQUIRE(now && m <= n);
        memcpy(file + n - (n - m), file + m, n - m); /* the disk still has the rest of the old file behind it */
        {
            unsigned char *mix = (unsigned char *)malloc(n);
            memcpy(mix, file, n);
            memcpy(mix, now, m);
            write_file(PATH, mix, n);
            free(mix);
        }
        CHECK_OK(kvmem_store_open(&s, PATH, &o));
        CHECK(s.n == 2 && is(&s, 1, 1) && is(&s, 2, 9) && s.torn == n - s.end);
        CHECK(put(&s, 8, 0, 2) == 3);
        kvmem_store_close(&s);
        CHECK_OK(kvmem_store_open(&s, PATH, &o));
        CHECK(s.n == 3 && is(&s, 3, 8));
        kvmem_store_close(&s);
        free(now);
    }
    free(file);
}
TEST(one_program_writes_and_others_read_what_was_there) {
    kvmem_shape x = small_shape(); kvmem_store_options o = small(&x), ro; kvmem_store s, r, other;
    remove(PATH);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    put(&s, 1, 0, 3);
    ro = o;
    ro.read_only = 1;
    REQUIRE_OK(kvmem_store_open(&r, PATH, &ro));
    CHECK(put(&r, 2, 0, 1) == 0 && r.error.status == KVMEM_BAD_STATE && strstr(r.error.text, "read_only"));
#if KVMEM__UNIX && defined(__linux__)
    CHECK(kvmem_store_open(&other, PATH, &o) == KVMEM_BAD_STATE && strstr(other.error.text, "another program"));
#else
    memset(&other, 0, sizeof other);
#endif
    put(&s, 2, 0, 2);
    CHECK(r.n == 1 && is(&r, 1, 1));
    CHECK_OK(kvmem_store_compact(&s, 0)); /* the reader keeps the file that it has opened */
    CHECK_OK(kvmem_store_delete(&s, 1));
    CHECK(r.n == 1 && is(&r, 1, 1));
    CHECK_OK(kvmem_store_verify(&r, NULL, NULL, NULL));
    kvmem_store_close(&r);
    REQUIRE_OK(kvmem_store_open(&r, PATH, &ro));
    CHECK(r.n == 1 && is(&r, 2, 2));
    kvmem_store_close(&r);
    kvmem_store_close(&s);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o)); /* the lock is gone with its owner */
    kvmem_store_close(&s);
    remove(PATH);
    CHECK(kvmem_store_open(&s, PATH, &ro) == KVMEM_IO && strstr(s.error.text, "no such store"));
    kvmem_store_close(&s);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "store");
    RUN(an_episode_comes_back_from_a_file);
    RUN(rows_come_back_bit_for_bit_in_f32_and_close_in_others);
    RUN(codecs_of_whole_blocks_are_refused_by_name);
    RUN(an_episode_that_starts_at_0_gives_what_plain_prefill_gives);
    RUN(packed_episodes_are_as_if_read_one_behind_the_other);
    RUN(caches_whose_caller_rotates_are_served_by_the_stores_rope);
    RUN(what_an_evicted_cache_kept_is_stored_and_comes_back);
    RUN(stores_and_caches_of_other_models_are_refused);
    RUN(search_ranks_and_never_finds_what_must_not_be_found);
    RUN(versions_parents_and_rollback);
    RUN(metadata_is_checked_and_small);
    RUN(saved_loaded_and_saved_again_the_bytes_are_the_same);
    RUN(every_allocation_may_fail);
    RUN(ram_and_file_stay_within_their_limits_at_every_moment);
    RUN(a_cache_that_has_no_room_stays_as_it_was);
    RUN(a_file_cut_anywhere_has_all_records_before_the_cut);
    RUN(a_changed_byte_costs_at_most_the_record_it_is_in);
    RUN(stale_bytes_behind_a_torn_tail_are_never_a_record);
    RUN(one_program_writes_and_others_read_what_was_there);
    return test_end();
}
