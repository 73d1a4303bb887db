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

int main(int argc, char **argv) {
    test_begin(argc, argv, "store");
    RUN(an_episode_comes_back_from_a_file);
    return test_end();
}
