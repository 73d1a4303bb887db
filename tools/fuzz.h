/* fuzz.h - what the fuzz targets share: bytes as a stream of choices, a counting heap, and a replay main.
   Each tools/fuzz_NAME.c defines LLVMFuzzerTestOneInput and FUZZ_SEEDS. With libFuzzer it is a fuzz
   target; with -DKVMEM_FUZZ_MAIN it is a program:
       fuzz_name FILE...                        replay inputs
       fuzz_name --mutate N --seed S [FILE...]  N seeded mutations of the files, or of built-in seeds
       fuzz_name --seeds DIR                    write the built-in seeds as files
   A broken promise prints what it is and aborts. */
#ifndef KVMEM_FUZZ_H
#define KVMEM_FUZZ_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_MUST(x) do { if (!(x)) {                                                               \
    fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #x); abort(); } } while (0)

/* Choices read from the input; zeros past its end. */
typedef struct fuzz_input { const uint8_t *p; size_t n; } fuzz_input;
static KVMEM__UNUSED unsigned fuzz_byte(fuzz_input *in) {
    if (!in->n) return 0;
    in->n--;
    return *in->p++;
}
static KVMEM__UNUSED int fuzz_pick(fuzz_input *in, int n) { return (int)(fuzz_byte(in) % (unsigned)n); }

/* A heap that counts, refuses what is over a cap, and can fail its k-th call. */
typedef struct fuzz_heap { size_t live, peak, cap, calls, fail_at; } fuzz_heap;
static KVMEM__UNUSED void *fuzz_alloc(void *user, size_t size) {
    fuzz_heap *h = (fuzz_heap *)user;
    char *p;
    if (++h->calls == h->fail_at || size > h->cap || h->live > h->cap - size) return NULL;
    p = (char *)malloc(size + 16);
    if (!p) return NULL;
    memcpy(p, &size, sizeof size);
    h->live += size;
    if (h->live > h->peak) h->peak = h->live;
    return p + 16;
}
static KVMEM__UNUSED void fuzz_release(void *user, void *ptr, size_t size) {
    fuzz_heap *h = (fuzz_heap *)user;
    size_t was;
    memcpy(&was, (char *)ptr - 16, sizeof was);
    FUZZ_MUST(was == size);
    h->live -= size;
    free((char *)ptr - 16);
}
static KVMEM__UNUSED kvmem_allocator fuzz_allocator(fuzz_heap *h, size_t cap) {
    kvmem_allocator a;
    memset(h, 0, sizeof *h);
    h->cap = cap;
    a.user = h;
    a.alloc = fuzz_alloc;
    a.release = fuzz_release;
    return a;
}
/* A failed call says why in its error text; text and status belong together. */
static KVMEM__UNUSED void fuzz_explained(kvmem_status s, const kvmem_error *e) {
    if (s != KVMEM_OK) FUZZ_MUST(e->text[0] && e->status == s && memchr(e->text, 0, sizeof e->text));
}

#ifdef KVMEM_FUZZ_MAIN
/* The target's own seeds for runs without files: bytes of seed i in out (cap), 0 past the last. */
static size_t fuzz_seed(int i, uint8_t *out, size_t cap);

static uint64_t fuzz_state;
static uint64_t fuzz_next(void) { return kvmem__mix(fuzz_state++); }
static size_t fuzz_below(size_t n) { return n ? (size_t)(fuzz_next() % n) : 0; }

/* One to four changes: a bit, a byte, an interesting number, a cut, an insertion, a copy within. */
static size_t fuzz_mutate(uint8_t *b, size_t n, size_t cap) {
    static const uint32_t odd[8] = { 0, 1, 0x7f, 0xff, 0x7fffffffu, 0x80000000u, 0xffffffffu, 0x10000u };
    size_t rounds = 1 + fuzz_below(4);
    while (rounds--) {
        /* half of the changes fall into the first bytes, where headers are */
        const size_t at = fuzz_next() & 1 ? fuzz_below(n) : fuzz_below(n < 512 ? n : 512);
        switch (fuzz_below(7)) {
        case 0: if (n) b[at] = (uint8_t)(b[at] ^ 1u << fuzz_below(8)); break;
        case 1: if (n) b[at] = (uint8_t)fuzz_next(); break;
        case 2: if (n >= at + 4) kvmem__put32(b + at, odd[fuzz_below(8)]); break;
        case 3: if (n >= at + 8) kvmem__put64(b + at, (uint64_t)odd[fuzz_below(8)] << fuzz_below(33)); break;
        case 4: n = fuzz_next() & 3 ? n - fuzz_below(n < 16 ? n + 1 : 16) : fuzz_below(n + 1); break;
        case 5:
            if (n < cap) {
                memmove(b + at + 1, b + at, n - at);
                b[at] = (uint8_t)fuzz_next();
                n++;
            }
            break;
        default: {
            const size_t from = fuzz_below(n), len = fuzz_below(KVMEM__MIN(n - from, n - at) + 1);
            if (len) memmove(b + at, b + from, len);
        }
        }
    }
    return n;
}
static uint8_t *fuzz_read(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    uint8_t *p = NULL;
    long n;
    if (f && !fseek(f, 0, SEEK_END) && (n = ftell(f)) >= 0 && !fseek(f, 0, SEEK_SET) &&
        (p = (uint8_t *)malloc((size_t)n + 1)) != NULL)
        *size = fread(p, 1, (size_t)n, f);
    if (f) fclose(f);
    if (!p) { fprintf(stderr, "%s: cannot be read\n", path); exit(2); }
    return p;
}
static void fuzz_write(const char *dir, int i, const uint8_t *p, size_t n) {
    char path[256];
    FILE *f;
    snprintf(path, sizeof path, "%s/seed%02d", dir, i);
    f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f)) { fprintf(stderr, "%s: cannot be written\n", path); exit(2); }
}
/* Runs on a copy of exactly n bytes, so that a read past the end is seen by ASan and valgrind. */
static void fuzz_once(const uint8_t *p, size_t n) {
    uint8_t *q = (uint8_t *)malloc(n ? n : 1);
    if (!q) exit(2);
    memcpy(q, p, n);
    LLVMFuzzerTestOneInput(q, n);
    free(q);
}
int main(int argc, char **argv) {
    enum { ROOM = 4096, SEED_CAP = 1 << 16 };
    const char *dir = NULL;
    long mutations = 0, i;
    int a, runs = 0;
    uint8_t *built = (uint8_t *)malloc(SEED_CAP + ROOM);
    if (!built) return 2;
    fuzz_state = 1;
    for (a = 1; a < argc && !strncmp(argv[a], "--", 2); a += 2) {
        if (a + 1 >= argc) { fprintf(stderr, "usage: %s [--mutate N] [--seed S] [FILE...]\n", argv[0]); return 2; }
        if (!strcmp(argv[a], "--mutate")) mutations = strtol(argv[a + 1], NULL, 0);
        else if (!strcmp(argv[a], "--seeds")) dir = argv[a + 1];
        else if (!strcmp(argv[a], "--seed")) fuzz_state = strtoull(argv[a + 1], NULL, 0) << 32;
        else { fprintf(stderr, "unknown option %s\n", argv[a]); return 2; }
    }
    argv += a;
    argc -= a;
    for (a = 0;; a++) {
        size_t n = 0;
        uint8_t *seed, *b;
        if (argc ? a >= argc : (n = fuzz_seed(a, built, SEED_CAP)) == 0) break;
        seed = argc ? fuzz_read(argv[a], &n) : built;
        if (dir) fuzz_write(dir, a, seed, n);
        fuzz_once(seed, n);
        runs++;
        b = (uint8_t *)malloc(n + ROOM);
        if (!b) return 2;
        for (i = 0; i < mutations; i++) {
            memcpy(b, seed, n);
            fuzz_once(b, fuzz_mutate(b, n, n + ROOM));
            runs++;
        }
        free(b);
        if (argc) free(seed);
    }
    free(built);
    printf("%d inputs\n", runs);
    return runs == 0;
}
#endif
#endif
