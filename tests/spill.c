/* Spilled pages: what attention reads is the same to the last bit, what stays in memory is what was asked for, in every
   order of appending, cutting, copying, saving; and a file that fails or lies is an error that changes nothing. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"

/* A file in memory that can fail. */
typedef struct tape { uint8_t bytes[1 << 20]; size_t end; int fail_write, fail_read, writes, reads; } tape;
static int tape_write(void *user, uint64_t at, const void *data, size_t size) {
    tape *f = (tape *)user;
    f->writes++;
    if (f->fail_write || at + size > sizeof f->bytes) return 1;
    memcpy(f->bytes + at, data, size);
    f->end = KVMEM__MAX(f->end, (size_t)at + size);
    return 0;
}
static int tape_read(void *user, uint64_t at, void *data, size_t size) {
    tape *f = (tape *)user;
    f->reads++;
    if (f->fail_read || at + size > f->end) return 1;
    memcpy(data, f->bytes + at, size);
    return 0;
}
static kvmem_spill on_tape(tape *f, size_t resident) {
    kvmem_spill s;
    memset(f, 0, sizeof *f);
    s.write = tape_write;
    s.read = tape_read;
    s.user = f;
    s.resident = resident;
    return s;
}
/* A retrieve entry that reads one old page a lane, another at every step, and the last 20 entries. */
static kvmem_status wander(const kvmem_view *v, int n, const float *q, const int32_t *pos, unsigned char *const *read) {
    const int at = (int)(pos[0] / 3);
    int g, i, first;
    (void)n; (void)q;
    for (g = 0; g < v->cache->shape.n_kv_heads; g++)
        for (i = 0; i < kvmem_view_pages(v, g); i++) {
            const int rows = kvmem_view_page(v, g, i, &first);
            read[g][i] = first + rows > kvmem_view_count(v, g) - 20 || i == at % kvmem_view_pages(v, g);
        }
    return KVMEM_OK;
}
static const kvmem_retrieve_entry wanderer = { { "wander", "one page after the other", "-", NULL, 0 }, wander,
    NULL, NULL };
static const char *const recipes[] = { "full page=8", "score=h2o page=8 codec=q8_0",
    "full page=8 codec=kivi(bits=4,group=8)",
                                       "full page=8 codec=f16_pre/f16 place=far(at=30)" };
static tape f1;

static void same(const float *a, const float *b, int n, const char *what) {
    if (memcmp(a, b, (size_t)n * sizeof *a)) FAIL_AT("%s: attention differs", what);
}
TEST(attention_over_spilled_pages_is_the_same_to_the_last_bit) {
    int k, wanders;
    for (k = 0; k < 4; k++)
        for (wanders = 0; wanders < 2; wanders++) {
            world w; kvmem_cache a, b; kvmem_bytes now; kvmem_spill s = on_tape(&f1, 6000);
            bytes fa = { 0, 0, 0 }, fb = { 0, 0, 0 };
            float *x, *y, row[16], row2[16];
            int i;
            REQUIRE(world_init(&w, 2, 4, 2, 16, 300, recipes[k]));
            w.cfg.shape.rope = w.rope;
            if (wanders) w.recipe.stage[KVMEM_RETRIEVE].entry = &wanderer.e;
            x = outs(&w, 300); y = outs(&w, 300);
            CHECK_OK(kvmem_cache_init(&a, &w.cfg));
            w.cfg.spill = &s;
            CHECK_OK(kvmem_cache_init(&b, &w.cfg));
            CHECK_OK(feed(&w, &a, 0, 200, 20, KVMEM_PROMPT_END, x));
            CHECK_OK(feed(&w, &b, 0, 200, 20, KVMEM_PROMPT_END, y));
            CHECK_OK(feed(&w, &a, 200, 260, 1, KVMEM_DECODE, x + 200 * 128));
            CHECK_OK(feed(&w, &b, 200, 260, 1, KVMEM_DECODE, y + 200 * 128));
            same(x, y, 260 * 128, recipes[k]);
            kvmem_cache_bytes(&b, &now);
            CHECK(now.spilled > 0 && now.spill_written >= now.spilled && f1.end >= now.spilled && now.spill_read > 0);
            CHECK(now.live.k + now.live.v <= KVMEM__MAX(s.resident, 4 * 2 * 8 * 16 * 8));
                /* or the pages that are not full */
            CHECK_OK(kvmem_cache_truncate(&a, 120));
            CHECK_OK(kvmem_cache_truncate(&b, 120)); /* into the middle of a page that is away */
            CHECK_OK(feed(&w, &a, 120, 230, 7, KVMEM_PROMPT_END, x));
            CHECK_OK(feed(&w, &b, 120, 230, 7, KVMEM_PROMPT_END, y));
            same(x, y, 110 * 128, "after truncation");
            for (i = 0; i < 230; i += 13) {
                CHECK_OK(kvmem_cache_read(&a, 1, 1, i, 1, row, NULL, NULL));
                CHECK_OK(kvmem_cache_read(&b, 1, 1, i, 1, row2, NULL, NULL));
                CHECK(!memcmp(row, row2, sizeof row));
            }
            CHECK_OK(kvmem_cache_save(&a, bytes_write, &fa));
            CHECK_OK(kvmem_cache_save(&b, bytes_write, &fb));
            CHECK(fa.n == fb.n && !memcmp(fa.p, fb.p, fa.n));
            CHECK_OK(kvmem_cache_load(&b, fb.p, fb.n));
            CHECK_OK(feed(&w, &a, 230, 250, 5, KVMEM_PROMPT_END, x));
            CHECK_OK(feed(&w, &b, 230, 250, 5, KVMEM_PROMPT_END, y));
            same(x, y, 20 * 128, "after loading");
            kvmem_cache_free(&a); kvmem_cache_free(&b);
            free(x); free(y); free(fa.p); free(fb.p); world_free(&w);
        }
}
TEST(copies_share_what_is_away) {
    world w; kvmem_cache a, b, full; kvmem_spill s = on_tape(&f1, 2000);
    test_heap heap; kvmem_bytes now;
    float *x, *y, *z;
    memset(&heap, 0, sizeof heap);
    REQUIRE(world_init(&w, 1, 4, 2, 16, 300, "full page=8"));
    w.recipe.stage[KVMEM_RETRIEVE].entry = &wanderer.e;
    x = outs(&w, 60); y = outs(&w, 60); z = outs(&w, 60);
    CHECK_OK(kvmem_cache_init(&full, &w.cfg));
    w.cfg.spill = &s;
    w.cfg.allocator = test_allocator(&heap);
    CHECK_OK(kvmem_cache_init(&a, &w.cfg));
    CHECK_OK(feed(&w, &a, 0, 200, 20, KVMEM_PROMPT_END, NULL));
    CHECK_OK(feed(&w, &full, 0, 200, 20, KVMEM_PROMPT_END, NULL));
    CHECK_OK(kvmem_cache_copy(&b, &a));
    CHECK_OK(feed(&w, &full, 200, 260, 1, KVMEM_DECODE, x));
    CHECK_OK(feed(&w, &a, 200, 260, 1, KVMEM_DECODE, y));
    CHECK_OK(feed(&w, &b, 200, 230, 1, KVMEM_DECODE, z));
    kvmem_cache_free(&a);
    CHECK_OK(feed(&w, &b, 230, 260, 1, KVMEM_DECODE, z + 30 * 64));
    same(x, y, 60 * 64, "the first");
    same(x, z, 60 * 64, "its copy");
    kvmem_cache_bytes(&b, &now);
    CHECK(now.live.total == heap.live && now.spilled > 0);
    kvmem_cache_clear(&b);
    kvmem_cache_bytes(&b, &now);
    CHECK(now.spilled == 0);
    CHECK_OK(feed(&w, &b, 0, 200, 20, KVMEM_PROMPT_END, NULL)); /* places in the file are used again */
    CHECK(f1.end < 200 * 2 * 2 * 64 * 2 + 60 * 512);
    kvmem_cache_free(&b); kvmem_cache_free(&full);
    CHECK(!heap.live && !heap.wrong);
    free(x); free(y); free(z); world_free(&w);
}
TEST(memory_is_flat_and_the_file_grows) {
    world w; kvmem_cache c; kvmem_spill s = on_tape(&f1, 8000); kvmem_bytes b;
    size_t kv[3], file[3];
    int i;
    REQUIRE(world_init(&w, 1, 2, 1, 16, 600, "full page=8"));
    w.recipe.stage[KVMEM_RETRIEVE].entry = &wanderer.e;
    w.cfg.spill = &s;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    for (i = 0; i < 3; i++) {
        CHECK_OK(feed(&w, &c, 200 * i, 200 * (i + 1), 1, KVMEM_DECODE, NULL));
        kvmem_cache_bytes(&c, &b);
        kv[i] = b.live.k + b.live.v;
        file[i] = f1.end;
        CHECK(kv[i] <= 8000);
    }
    CHECK(b.peak.k + b.peak.v <= 8000 + 6 * 8 * 16 * 8); /* one layer's reading on top */
    CHECK(file[1] - file[0] == file[2] - file[1] && file[2] > 2 * file[0]);
    kvmem_cache_free(&c); world_free(&w);
}
TEST(a_file_that_fails_or_lies_is_an_error_and_no_more) {
    world w; kvmem_cache c; kvmem_spill s = on_tape(&f1, 3000);
    REQUIRE(world_init(&w, 1, 2, 1, 16, 300, "full page=8"));
    w.cfg.spill = &s;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 100, 10, KVMEM_PROMPT_END, NULL));
    quiet = 1;
    f1.fail_read = 1;
    CHECK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, NULL) == KVMEM_IO && strstr(c.error.text, "reading a spilled page"));
    f1.fail_read = 0;
    CHECK_OK(kvmem_cache_truncate(&c, 100));
    f1.bytes[20] ^= 1;
    CHECK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, NULL) == KVMEM_BAD_FILE && strstr(c.error.text, "CRC"));
    f1.bytes[20] ^= 1;
    CHECK_OK(kvmem_cache_truncate(&c, 100));
    CHECK_OK(feed(&w, &c, 100, 101, 1, KVMEM_DECODE, NULL));
    f1.fail_write = 1; /* a full disk: pages that the file has not stay in memory */
    CHECK(feed(&w, &c, 101, 180, 10, KVMEM_DECODE, NULL) == KVMEM_IO && strstr(c.error.text, "spilling a page"));
    f1.fail_write = 0;
    CHECK_OK(kvmem_cache_truncate(&c, 101));
    CHECK_OK(feed(&w, &c, 101, 180, 10, KVMEM_DECODE, NULL));
    quiet = 0;
    kvmem_cache_free(&c);
    w.recipe.amount.kind = KVMEM_COUNT;
    w.recipe.amount.value = 50;
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_BAD_RECIPE && strstr(c.error.text, "spill"));
    w.recipe.amount.kind = KVMEM_ALL;
    w.cfg.max_bytes = 1 << 20;
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_BAD_RECIPE);
    w.cfg.max_bytes = 0;
    s.read = NULL;
    CHECK(kvmem_cache_init(&c, &w.cfg) == KVMEM_BAD_ARGUMENT);
    world_free(&w);
}
TEST(failed_allocations_leak_nothing) {
    int at, done = 0;
    for (at = 1; at < 400 && !done; at += 3) {
        world w; kvmem_cache c; kvmem_spill s = on_tape(&f1, 2000); test_heap heap;
        memset(&heap, 0, sizeof heap);
        REQUIRE(world_init(&w, 1, 2, 1, 16, 100, "full page=8"));
        w.cfg.spill = &s;
        w.cfg.allocator = test_allocator(&heap);
        heap.fail_at = (size_t)at;
        quiet = 1;
        if (kvmem_cache_init(&c, &w.cfg) == KVMEM_OK)
            done = feed(&w, &c, 0, 100, 10, KVMEM_PROMPT_END, NULL) == KVMEM_OK;
        quiet = 0;
        kvmem_cache_free(&c);
        CHECK(!heap.live && !heap.wrong);
        world_free(&w);
    }
    CHECK(done);
}
TEST(a_real_file_holds_the_pages) {
    FILE *f = tmpfile();
    world w; kvmem_cache a, b; kvmem_spill s = kvmem_spill_stdio(f, 0);
    float *x, *y;
    if (!f) SKIP("no temporary file here");
    REQUIRE(world_init(&w, 1, 2, 1, 16, 120, "full page=8"));
    x = outs(&w, 120); y = outs(&w, 120);
    CHECK_OK(kvmem_cache_init(&a, &w.cfg));
    w.cfg.spill = &s;
    CHECK_OK(kvmem_cache_init(&b, &w.cfg));
    CHECK_OK(feed(&w, &a, 0, 120, 9, KVMEM_PROMPT_END, x));
    CHECK_OK(feed(&w, &b, 0, 120, 9, KVMEM_PROMPT_END, y));
    same(x, y, 120 * 32, "a file");
    kvmem_cache_free(&a); kvmem_cache_free(&b); free(x); free(y); world_free(&w);
    fclose(f);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "spill");
    RUN(attention_over_spilled_pages_is_the_same_to_the_last_bit);
    RUN(copies_share_what_is_away);
    RUN(memory_is_flat_and_the_file_grows);
    RUN(a_file_that_fails_or_lies_is_an_error_and_no_more);
    RUN(failed_allocations_leak_nothing);
    RUN(a_real_file_holds_the_pages);
    return test_end();
}
