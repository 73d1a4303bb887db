/* test.h - the whole test harness. A test states a fact in its name, then shows it:

       TEST(topk_ties_go_to_the_lower_index) { REQUIRE(...); CHECK(...); }
       int main(int argc, char **argv) {
           test_begin(argc, argv, "numerics");
           RUN(topk_ties_go_to_the_lower_index);
           return test_end();
       }

   Run with names (parts of them) to select, --list to list, --seed N to vary seeded inputs.
   The implementation is included here, so that static functions can be tested. */
#ifndef KVMEM_TEST_H
#define KVMEM_TEST_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"

static int test_passed, test_failed, test_skipped, test_bad, test_skip, test_argc;
static char **test_argv;
static unsigned long long test_seed = 1;
static const char *test_section;

#define TEST(name) static void test_##name(void)
#define RUN(name) test_run(#name, test_##name)
#define FAIL_AT(...) (test_bad++, printf("  %s:%d: ", __FILE__, __LINE__), printf(__VA_ARGS__), printf("\n"))
/* CHECK goes on, REQUIRE ends the test, SKIP ends it and says why. */
#define CHECK(x) do { if (!(x)) FAIL_AT("CHECK failed: %s", #x); } while (0)
#define REQUIRE(x) do { if (!(x)) { FAIL_AT("REQUIRE failed: %s", #x); return; } } while (0)
#define SKIP(why) do { printf("  skip: %s\n", why); test_skip = 1; return; } while (0)
#define CHECK_NEAR(a, b, tol) do { const double a_ = (double)(a), b_ = (double)(b), t_ = (double)(tol); \
    if (!(a_ - b_ <= t_ && b_ - a_ <= t_)) \
        FAIL_AT("%s = %.9g, %s = %.9g, differ by more than %g", #a, a_, #b, b_, t_); } while (0)
#define CHECK_OK(call) do { const kvmem_status s_ = (call); \
    if (s_ != KVMEM_OK) FAIL_AT("%s: %s", #call, kvmem_status_string(s_)); } while (0)
#define REQUIRE_OK(call) do { const kvmem_status s_ = (call); \
    if (s_ != KVMEM_OK) { FAIL_AT("%s: %s", #call, kvmem_status_string(s_)); return; } } while (0)

static void test_begin(int argc, char **argv, const char *section) {
    int i;
    test_section = section; test_argc = argc; test_argv = argv;
    for (i = 1; i + 1 < argc; i++) if (!strcmp(argv[i], "--seed")) test_seed = strtoull(argv[i + 1], NULL, 0);
}
static void test_run(const char *name, void (*fn)(void)) {
    int i, named = 0, hit = 0;
    for (i = 1; i < test_argc; i++) {
        if (!strcmp(test_argv[i], "--list")) { printf("%s\n", name); return; }
        if (!strcmp(test_argv[i], "--seed")) { i++; continue; }
        named = 1;
        if (strstr(name, test_argv[i])) hit = 1;
    }
    if (named && !hit) return;
    test_bad = test_skip = 0;
    fn();
    if (test_bad) { test_failed++; printf("FAIL %s\n", name); }
    else if (test_skip) { test_skipped++; printf("skip %s\n", name); }
    else test_passed++;
    fflush(stdout);
}
/* Prints the section's line; no test run is a failure. */
static int test_end(void) {
    if (test_argc > 1 && !strcmp(test_argv[1], "--list")) return 0;
    if (test_passed + test_failed + test_skipped == 0) test_failed = 1;
    printf("%s: %d passed, %d failed, %d skipped\n", test_section, test_passed, test_failed, test_skipped);
    return test_failed != 0;
}

/* Seeded numbers in [0,1) and roughly normal ones. */
static unsigned long long test_state;
static KVMEM__UNUSED double test_unit(void) { return kvmem__unit(kvmem__mix(test_seed * 7919u + test_state++)); }
static KVMEM__UNUSED double test_normal(void) {
    double s = 0; int i;
    for (i = 0; i < 12; i++) s += test_unit();
    return s - 6;
}
/* A whole file, or NULL; *size without the NUL that is added. The caller frees it. */
static KVMEM__UNUSED unsigned char *test_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    unsigned char *p = NULL; long n;
    if (!f) return NULL;
    if (!fseek(f, 0, SEEK_END) && (n = ftell(f)) >= 0 && !fseek(f, 0, SEEK_SET) &&
        (p = (unsigned char *)malloc((size_t)n + 1)) != NULL) {
        *size = fread(p, 1, (size_t)n, f);
        p[*size] = 0;
    }
    fclose(f);
    return p;
}
/* A counting allocator that can be told to fail its k-th call; checks sizes on release. */
typedef struct test_heap { size_t live, peak, calls, fail_at; int wrong; } test_heap;
static KVMEM__UNUSED void *test_heap_alloc(void *user, size_t size) {
    test_heap *h = (test_heap *)user;
    size_t *p;
    if (++h->calls == h->fail_at) return NULL;
    p = (size_t *)malloc(size + 32);
    if (!p) return NULL;
    p[0] = size;
    h->live += size;
    if (h->live > h->peak) h->peak = h->live;
    return (char *)p + 32;
}
static KVMEM__UNUSED void test_heap_release(void *user, void *ptr, size_t size) {
    test_heap *h = (test_heap *)user;
    size_t *p = (size_t *)(void *)((char *)ptr - 32);
    if (p[0] != size) { h->wrong++; printf("  released %lu of %lu bytes\n", (unsigned long)size, (unsigned long)p[0]); }
    h->live -= p[0];
    free(p);
}
static KVMEM__UNUSED kvmem_allocator test_allocator(test_heap *h) {
    kvmem_allocator a;
    a.user = h; a.alloc = test_heap_alloc; a.release = test_heap_release;
    return a;
}
#endif
