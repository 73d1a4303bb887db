/* The GGUF container: values of every type, and bytes that lie. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* no vectors here: compiles faster */
#endif
#include "test.h"
#include "tiny.h"

static void set_i64(tiny_gguf *g, const char *key, uint32_t type, uint64_t v, int bytes) {
    uint8_t t[8];
    kvmem__put64(t, v);
    tiny_key(g, key, type);
    tiny_add(&g->kv, t, (size_t)bytes);
}
static uint64_t bits64(double d) {
    uint64_t u;
    memcpy(&u, &d, 8);
    return u;
}
/* One row of the tensor table, as given. */
static void info(tiny_gguf *g, const char *name, int n_dims, const uint64_t *ne, uint32_t type, uint64_t at) {
    int i;
    tiny_text(&g->infos, name);
    tiny_u32(&g->infos, (uint32_t)n_dims);
    for (i = 0; i < n_dims; i++) tiny_u64(&g->infos, ne[i]);
    tiny_u32(&g->infos, type);
    tiny_u64(&g->infos, at);
    g->n_tensors++;
}
static void pad_data(tiny_gguf *g, size_t n) {
    while (n--) tiny_add(&g->data, "\x55", 1);
}

/* A small file that has one of everything. */
static uint8_t *sample(size_t *size) {
    tiny_gguf g;
    memset(&g, 0, sizeof g);
    tiny_set_text(&g, "general.architecture", "llama");
    set_i64(&g, "u8", 0, 200, 1);
    set_i64(&g, "i8", 1, (uint64_t)-7, 1);
    set_i64(&g, "u16", 2, 60000, 2);
    set_i64(&g, "i16", 3, (uint64_t)-30000, 2);
    tiny_set_u32(&g, "u32", 4000000000u);
    set_i64(&g, "i32", 5, (uint64_t)-2000000000, 4);
    tiny_set_f32(&g, "f32", 1.5f);
    set_i64(&g, "bool", 7, 1, 1);
    set_i64(&g, "u64", 10, 9000000000000000001u, 8);
    set_i64(&g, "u64.big", 10, 0xffffffffffffffffu, 8);
    set_i64(&g, "i64", 11, (uint64_t)-9000000000000000001, 8);
    set_i64(&g, "f64", 12, bits64(-0.125), 8);
    tiny_set_text(&g, "empty", "");
    tiny_set_array(&g, "words", 8, 3);
    tiny_text(&g.kv, "one");
    tiny_text(&g.kv, "");
    tiny_text(&g.kv, "three");
    tiny_set_array(&g, "numbers", 3, 2);
    tiny_add(&g.kv, "\x01\x00\xff\xff", 4);
    tiny_set_array(&g, "nothing", 5, 0);
    tiny_tensor(&g, "a", KVMEM_F32, 8, 3, 1);
    tiny_tensor(&g, "b", KVMEM_Q8_0, 64, 2, 1);
    tiny_tensor(&g, "c", KVMEM_F16, 5, 1, 1);
    return tiny_finish(&g, size);
}

TEST(values_of_every_type_are_read) {
    size_t size, len = 9;
    uint8_t *p = sample(&size);
    kvmem_gguf g;
    int64_t i = 0;
    double d = 0;
    const char *s = NULL;
    const uint8_t *at;
    const kvmem_gguf_kv *kv;
    int version;
    for (version = 2; version <= 3; version++) {
        p[4] = (uint8_t)version;
        REQUIRE_OK(kvmem_gguf_open(&g, p, size, NULL));
        CHECK(g.version == version && g.n_kv == 17 && g.n_tensors == 3);
        CHECK(kvmem_gguf_int(&g, "u8", &i) && i == 200);
        CHECK(kvmem_gguf_int(&g, "i8", &i) && i == -7);
        CHECK(kvmem_gguf_int(&g, "u16", &i) && i == 60000);
        CHECK(kvmem_gguf_int(&g, "i16", &i) && i == -30000);
        CHECK(kvmem_gguf_int(&g, "u32", &i) && i == 4000000000LL);
        CHECK(kvmem_gguf_int(&g, "i32", &i) && i == -2000000000);
        CHECK(kvmem_gguf_int(&g, "u64", &i) && i == 9000000000000000001LL);
        CHECK(kvmem_gguf_int(&g, "i64", &i) && i == -9000000000000000001LL);
        CHECK(kvmem_gguf_int(&g, "bool", &i) && i == 1);
        CHECK(kvmem_gguf_int(&g, "f32", &i) && i == 1);
        i = 77;
        CHECK(!kvmem_gguf_int(&g, "u64.big", &i) && !kvmem_gguf_int(&g, "empty", &i) && i == 77);
        CHECK(!kvmem_gguf_int(&g, "numbers", &i) && !kvmem_gguf_int(&g, "absent", &i) && i == 77);
        CHECK(kvmem_gguf_float(&g, "f32", &d) && d == 1.5);
        CHECK(kvmem_gguf_float(&g, "f64", &d) && d == -0.125);
        CHECK(kvmem_gguf_float(&g, "i16", &d) && d == -30000);
        CHECK(kvmem_gguf_string(&g, "empty", &s, &len) && len == 0);
        CHECK(kvmem_gguf_string(&g, "general.architecture", &s, &len) && len == 5 && !memcmp(s, "llama", 5));
        CHECK(!kvmem_gguf_string(&g, "words", &s, &len) && !kvmem_gguf_string(&g, "u8", &s, &len));
        kv = kvmem_gguf_find(&g, "words");
        REQUIRE(kv && kv->n == 3 && kv->item_type == 8);
        at = kv->data;
        s = kvmem__gguf_next_string(&at, &len);
        CHECK(len == 3 && !memcmp(s, "one", 3));
        s = kvmem__gguf_next_string(&at, &len);
        CHECK(len == 0);
        s = kvmem__gguf_next_string(&at, &len);
        CHECK(len == 5 && !memcmp(s, "three", 5) && at == kv->data + kv->size);
        kv = kvmem_gguf_find(&g, "numbers");
        REQUIRE(kv != NULL);
        CHECK(kvmem__gguf_item_int(kv, 1, &i) && i == -1 && !kvmem__gguf_item_int(kv, 2, &i));
        kv = kvmem_gguf_find(&g, "nothing");
        CHECK(kv && kv->n == 0 && kv->size == 0 && !kvmem__gguf_item_int(kv, 0, &i));
        kvmem_gguf_close(&g);
    }
    free(p);
}

TEST(tensors_point_at_their_bytes) {
    size_t size;
    uint8_t *p = sample(&size);
    kvmem_gguf g;
    const kvmem_tensor *t;
    REQUIRE_OK(kvmem_gguf_open(&g, p, size, NULL));
    t = kvmem_gguf_tensor(&g, "a");
    REQUIRE(t != NULL);
    CHECK(t->ne[0] == 8 && t->ne[1] == 3 && t->ne[2] == 1 && t->n_dims == 2 && t->size == 96);
    CHECK((t->data - p) % 32 == 0);
    t = kvmem_gguf_tensor(&g, "b");
    REQUIRE(t != NULL);
    CHECK(t->type == KVMEM_Q8_0 && t->size == 4 * 34 && t->data == kvmem_gguf_tensor(&g, "a")->data + 96);
    t = kvmem_gguf_tensor(&g, "c");
    REQUIRE(t != NULL);
    CHECK(t->n_dims == 1 && t->size == 10 && t->data + 32 == p + size);
    CHECK(kvmem_gguf_tensor(&g, "d") == NULL && kvmem_gguf_tensor(&g, "") == NULL);
    kvmem_gguf_close(&g);
    kvmem_gguf_close(&g);
    kvmem_gguf_close(NULL);
    free(p);
}

TEST(every_prefix_is_refused) {
    size_t size, n;
    uint8_t *p = sample(&size);
    test_heap heap;
    kvmem_allocator a = test_allocator(&heap);
    memset(&heap, 0, sizeof heap);
    size -= 22; /* the padding behind the last tensor is not needed */
    for (n = 0; n < size; n++) {
        kvmem_gguf g;
        uint8_t *copy = (uint8_t *)malloc(n ? n : 1); /* of exact size, so that a sanitizer sees overreads */
        REQUIRE(copy != NULL);
        memcpy(copy, p, n);
        if (kvmem_gguf_open(&g, copy, n, &a) != KVMEM_BAD_FILE || !g.error.text[0]) {
            FAIL_AT("a file cut at %lu of %lu was taken", (unsigned long)n, (unsigned long)size);
            kvmem_gguf_close(&g);
        }
        free(copy);
    }
    CHECK(heap.live == 0 && heap.wrong == 0 && heap.peak < 100 * size);
    free(p);
}

/* Touches all that an opened file hands out. */
static unsigned touch(const kvmem_gguf *g) {
    unsigned sum = 0;
    size_t j;
    int i;
    for (i = 0; i < g->n_kv; i++) {
        const kvmem_gguf_kv *kv = &g->kv[i];
        for (j = 0; j < kv->size; j++) sum += kv->data[j];
        if (kv->type == KVMEM__GGUF_ARRAY && kv->item_type == KVMEM__GGUF_STRING) {
            const uint8_t *at = kv->data;
            uint64_t k;
            size_t len;
            for (k = 0; k < kv->n; k++) sum += (unsigned char)(kvmem__gguf_next_string(&at, &len) ? len : 0);
            if (at != kv->data + kv->size) FAIL_AT("strings end elsewhere");
        }
    }
    for (i = 0; i < g->n_tensors; i++)
        for (j = 0; j < g->tensor[i].size; j++) sum += g->tensor[i].data[j];
    return sum;
}

TEST(a_changed_byte_is_refused_or_harmless) {
    size_t size, i;
    uint8_t *p = sample(&size);
    test_heap heap;
    kvmem_allocator a = test_allocator(&heap);
    int round, opened = 0, refused = 0;
    unsigned sum = 0;
    memset(&heap, 0, sizeof heap);
    for (round = 0; round < 8; round++)
        for (i = 0; i < size; i++) {
            kvmem_gguf g;
            const uint8_t old = p[i];
            p[i] = (uint8_t)(round == 0 ? 255 : round == 1 ? 0 : round == 2 ? old ^ 128 : (int)(test_unit() * 256));
            if (kvmem_gguf_open(&g, p, size, &a) == KVMEM_OK) {
                sum += touch(&g);
                opened++;
                kvmem_gguf_close(&g);
            } else {
                refused++;
                if (!g.error.text[0] || g.error.status == KVMEM_OK) FAIL_AT("no reason given");
            }
            p[i] = old;
        }
    CHECK(opened > 100 && refused > 100 && sum != 0);
    CHECK(heap.live == 0 && heap.wrong == 0);
    free(p);
}

/* Finishes g and expects it to be refused with this status and these words. */
static void refused(tiny_gguf *g, kvmem_status status, const char *words, int line) {
    size_t size;
    uint8_t *p = tiny_finish(g, &size), *copy = (uint8_t *)malloc(size);
    test_heap heap;
    kvmem_allocator a = test_allocator(&heap);
    kvmem_gguf f;
    kvmem_status got;
    memset(&heap, 0, sizeof heap);
    memcpy(copy, p, size);
    got = kvmem_gguf_open(&f, copy, size, &a);
    if (got != status || !strstr(f.error.text, words))
        FAIL_AT("line %d: status %d '%s' instead of %d '%s'", line, (int)got, f.error.text, (int)status, words);
    if (heap.live || heap.wrong || heap.peak > 16 * size + 4096)
        FAIL_AT("line %d: %lu bytes left, peak %lu", line, (unsigned long)heap.live, (unsigned long)heap.peak);
    kvmem_gguf_close(&f);
    free(copy);
    free(p);
}
#define REFUSED(status, words) refused(&g, status, words, __LINE__)

TEST(hostile_headers_are_refused) {
    static const struct { uint32_t version; uint64_t n_tensors, n_kv; kvmem_status status; const char *words; } c[] = {
        { 1, 0, 0, KVMEM_UNSUPPORTED, "version 1" },
        { 4, 0, 0, KVMEM_UNSUPPORTED, "version 4" },
        { 0, 0, 0, KVMEM_UNSUPPORTED, "version 0" },
        { 0x03000000u, 0, 0, KVMEM_UNSUPPORTED, "big-endian" },
        { 3, 1u << 30, 0, KVMEM_BAD_FILE, "tensors" },
        { 3, 0xffffffffffffffffu, 0, KVMEM_BAD_FILE, "tensors" },
        { 3, 0, 1u << 30, KVMEM_BAD_FILE, "keys" },
        { 3, 0, 0x8000000000000000u, KVMEM_BAD_FILE, "keys" },
        { 3, 0, 1, KVMEM_BAD_FILE, "name of key 0" },
        { 3, 1, 0, KVMEM_BAD_FILE, "name of tensor 0" } };
    size_t i;
    test_heap heap;
    kvmem_allocator a = test_allocator(&heap);
    kvmem_gguf g;
    memset(&heap, 0, sizeof heap);
    for (i = 0; i < sizeof c / sizeof c[0]; i++) {
        uint8_t p[100];
        memset(p, 0, sizeof p);
        memcpy(p, "GGUF", 4);
        kvmem__put32(p + 4, c[i].version);
        kvmem__put64(p + 8, c[i].n_tensors);
        kvmem__put64(p + 16, c[i].n_kv);
        if (kvmem_gguf_open(&g, p, sizeof p, &a) != c[i].status || !strstr(g.error.text, c[i].words))
            FAIL_AT("case %d: %s", (int)i, g.error.text);
        kvmem_gguf_close(&g);
    }
    CHECK(kvmem_gguf_open(&g, "GGML\3\0\0\0", 8, &a) == KVMEM_BAD_FILE);
    CHECK(kvmem_gguf_open(&g, NULL, 0, &a) == KVMEM_BAD_ARGUMENT);
    CHECK(heap.live == 0 && heap.peak < 4096);
}

TEST(hostile_keys_are_refused) {
    tiny_gguf g;
    memset(&g, 0, sizeof g);
    tiny_key(&g, "k", 9); tiny_u32(&g.kv, 8); tiny_u64(&g.kv, 0x2000000000000001u);
    REFUSED(KVMEM_BAD_FILE, "key 'k'");
    tiny_key(&g, "k", 9); tiny_u32(&g.kv, 10); tiny_u64(&g.kv, 0x2000000000000001u); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "key 'k'");
    tiny_key(&g, "k", 9); tiny_u32(&g.kv, 9); tiny_u64(&g.kv, 1); tiny_u32(&g.kv, 4); tiny_u64(&g.kv, 0);
    REFUSED(KVMEM_UNSUPPORTED, "array of arrays");
    tiny_key(&g, "k", 9); tiny_u32(&g.kv, 13); tiny_u64(&g.kv, 0);
    REFUSED(KVMEM_BAD_FILE, "unknown value type");
    tiny_key(&g, "k", 0xffffffffu); tiny_u64(&g.kv, 0);
    REFUSED(KVMEM_BAD_FILE, "unknown value type");
    tiny_key(&g, "k", 8); tiny_u64(&g.kv, 0xfffffffffffffff8u);
    REFUSED(KVMEM_BAD_FILE, "key 'k'");
    set_i64(&g, "k", 7, 2, 1);
    REFUSED(KVMEM_BAD_FILE, "bool");
    tiny_set_u32(&g, "k", 1); tiny_set_u32(&g, "m", 1); tiny_set_u32(&g, "k", 2);
    REFUSED(KVMEM_BAD_FILE, "'k' appears twice");
    tiny_u64(&g.kv, 0x7fffffffffffffffu); g.n_kv = 1; pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "key 0");
    tiny_set_u32(&g, "general.alignment", 0);
    REFUSED(KVMEM_BAD_FILE, "general.alignment");
    tiny_set_u32(&g, "general.alignment", 48);
    REFUSED(KVMEM_BAD_FILE, "general.alignment");
    set_i64(&g, "general.alignment", 10, 32, 8);
    REFUSED(KVMEM_BAD_FILE, "general.alignment");
    tiny_key(&g, "line\nbreak\x01", 13);
    REFUSED(KVMEM_BAD_FILE, "'line?break?'");
}

TEST(hostile_tensors_are_refused) {
    static const uint64_t one[4] = { 8, 1, 1, 1 }, zero[4] = { 0, 1, 1, 1 }, odd[4] = { 33, 2, 1, 1 };
    static const uint64_t wide[4] = { 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff };
    static const uint64_t huge[4] = { 0x8000000000000000u, 2, 1, 1 };
    tiny_gguf g;
    memset(&g, 0, sizeof g);
    info(&g, "t", 1, one, 0, 0);
    REFUSED(KVMEM_BAD_FILE, "past the end");
    info(&g, "t", 1, one, 0, 32); pad_data(&g, 32);
    REFUSED(KVMEM_BAD_FILE, "past the end");
    info(&g, "t", 1, one, 0, 0xffffffffffffffe0u); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "past the end");
    info(&g, "t", 1, one, 0, 8); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "aligned");
    info(&g, "t", 0, one, 0, 0); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "0 dimensions");
    info(&g, "t", 1, one, 0, 0); g.infos.p[9] = 5; pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "5 dimensions");
    info(&g, "t", 2, zero, 0, 0); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "0 values");
    info(&g, "t", 4, wide, 0, 0); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "'t'");
    info(&g, "t", 2, huge, 0, 0); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "'t'");
    info(&g, "t", 2, odd, 8, 0); pad_data(&g, 128);
    REFUSED(KVMEM_BAD_FILE, "multiple of the 32");
    info(&g, "t", 1, one, 16, 0); pad_data(&g, 64);
    REFUSED(KVMEM_UNSUPPORTED, "type 16");
    info(&g, "t", 1, one, 1000, 0); pad_data(&g, 64);
    REFUSED(KVMEM_UNSUPPORTED, "type 1000");
    info(&g, "t", 1, one, 0, 0); info(&g, "t", 1, one, 0, 32); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "appears twice");
    info(&g, "t", 2, one, 0, 0); info(&g, "u", 2, one, 0, 0); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "overlap");
    tiny_set_u32(&g, "general.alignment", 8);
    info(&g, "u", 1, one, 0, 16); info(&g, "t", 1, one, 0, 0); pad_data(&g, 128);
    REFUSED(KVMEM_BAD_FILE, "'t' and 'u' overlap");
    tiny_set_u32(&g, "general.alignment", 0x80000000u);
    info(&g, "t", 1, one, 0, 0); pad_data(&g, 64);
    REFUSED(KVMEM_BAD_FILE, "past the end");
}

TEST(a_file_without_keys_or_tensors_opens) {
    uint8_t p[24];
    kvmem_gguf g;
    memset(p, 0, sizeof p);
    memcpy(p, "GGUF\3", 5);
    REQUIRE_OK(kvmem_gguf_open(&g, p, sizeof p, NULL));
    CHECK(g.n_kv == 0 && g.n_tensors == 0 && kvmem_gguf_find(&g, "x") == NULL);
    kvmem_gguf_close(&g);
}

TEST(failed_allocations_leak_nothing) {
    size_t size, k;
    uint8_t *p = sample(&size);
    for (k = 1; k < 20; k++) {
        test_heap heap;
        kvmem_allocator a = test_allocator(&heap);
        kvmem_gguf g;
        kvmem_status s;
        memset(&heap, 0, sizeof heap);
        heap.fail_at = k;
        s = kvmem_gguf_open(&g, p, size, &a);
        CHECK(s == (heap.calls >= k ? KVMEM_NO_MEMORY : KVMEM_OK));
        kvmem_gguf_close(&g);
        CHECK(heap.live == 0 && heap.wrong == 0);
        if (s == KVMEM_OK) break;
    }
    CHECK(k > 2 && k < 20);
    free(p);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "gguf");
    RUN(values_of_every_type_are_read);
    RUN(tensors_point_at_their_bytes);
    RUN(every_prefix_is_refused);
    RUN(a_changed_byte_is_refused_or_harmless);
    RUN(hostile_headers_are_refused);
    RUN(hostile_keys_are_refused);
    RUN(hostile_tensors_are_refused);
    RUN(a_file_without_keys_or_tensors_opens);
    RUN(failed_allocations_leak_nothing);
    return test_end();
}
