/* retrieve_tool.c - `kvmem retrieve`: keys and queries of one layer in, what a retrieve entry reads out, beside the
   exact best. The exact best are worked out here once more; every retrieve entry is asked. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
int kvmem_main(int argc, char **argv);
#define main kvmem_main
#include "../tools/kvmem.c"
#undef main

enum { N = 200, M = 3, H = 4, G = 2, D = 8 };
static float q[N * H * D], k[N * G * D], v[N * G * D];
static char folder[256];

static const char *at(const char *name) {
    static char path[128][320];
    static int i;
    snprintf(path[i = (i + 1) % 128], sizeof *path, "%s%s", folder, name);
    return path[i];
}
static int tool(int argc, const char *const *argv) { /* its stdout stays in `out` */
    const command *c = commands;
    args a;
    int status;
    char *copy[48];
    for (status = 0; status < argc; status++) copy[status] = (char *)(uintptr_t)argv[status];
    while (strcmp(c->name, argv[0])) c++;
    out.len = 0;
    js.depth = 0;
    command_name = c->name;
    status = parse_args(c, &a, argc - 1, copy + 1);
    if (status == OK) status = c->run(&a);
    free(a.word);
    put("%c", 0);
    return status;
}
static void save(const char *name, const float *rows, size_t n, size_t heads) {
    FILE *f = fopen(at(name), "wb");
    size_t dim[3];
    REQUIRE(f != NULL);
    dim[0] = n;
    dim[1] = heads;
    dim[2] = D;
    CHECK(!npy_write(f, rows, dim, 3));
    fclose(f);
}
static void make_files(void) {
    int i;
    const char *t = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/kvmem-retrieve-%ld-", t ? t : "/tmp", (long)getpid());
    for (i = 0; i < N * H * D; i++) q[i] = (float)test_normal();
    for (i = 0; i < N * G * D; i++) { k[i] = (float)test_normal(); v[i] = (float)test_normal(); }
    save("q", q, M, H);
    save("all", q, N, H);
    save("k", k, N, G);
    save("v", v, N, G);
    save("two", k, 2, G);
    save("s", v, N / D, 1); /* N numbers, of any shape */
}
static void drop_files(void) {
    static const char *const name[] = { "q", "all", "k", "v", "two", "s" };
    int i;
    for (i = 0; i < 6; i++) remove(at(name[i]));
}
/* Options that all runs have; ends with NULL. */
static int ask(const char *spec, const char *queries, const char *const *more) {
    const char *argv[40];
    int n = 0;
    argv[n++] = "retrieve"; argv[n++] = spec;
    argv[n++] = "-k"; argv[n++] = at("k");
    argv[n++] = "-q"; argv[n++] = at(queries);
    argv[n++] = "--heads"; argv[n++] = "4"; argv[n++] = "--kv-heads"; argv[n++] = "2";
    while (more && *more) argv[n++] = *more++;
    return tool(n, argv);
}
/* The number behind the n-th "key": of the JSON, or -1. */
static double number(const char *key, int n) {
    const char *p = out.text;
    char text[64];
    snprintf(text, sizeof text, "\"%s\":", key);
    for (; n >= 0; n--) {
        p = strstr(p, text);
        if (!p) return -1;
        p += strlen(text);
    }
    return strtod(p, NULL);
}
static double product(int i, int h, int t) {
    double s = 0;
    int c;
    for (c = 0; c < D; c++) s += (double)q[(i * H + h) * D + c] * (double)k[(t * G + h / (H / G)) * D + c];
    return s;
}
/* The numbers of the n-th list "key":[...], at most most. */
static int list(const char *key, int n, int *to, int most) {
    const char *p = out.text;
    char text[64], *end;
    int got = 0;
    snprintf(text, sizeof text, "\"%s\":", key);
    for (; n >= 0 && p; n--) if ((p = strstr(p, text)) != NULL) p += strlen(text);
    if (!p || !(p = strchr(p, '['))) return -1;
    for (p++; *p != ']' && got < most; p = end + (*end == ',')) {
        to[got++] = (int)strtol(p, &end, 10);
        while (*end == ' ' || *end == '\n') end++;
    }
    return got;
}
TEST(exact_entries_are_the_brute_force_ones) {
    static const char *const more[] = { "--top", "10", "--json", NULL };
    static const char *const spec[] = { "tidal(k=11,s0=0)", "quest(budget=11,dense=0,least=0) page=1" };
    int s, i, h, j, x, to[64], got[256];
    for (s = 0; s < 2; s++) {
        CHECK(ask(spec[s], "q", more) == 0);
        CHECK(number("rows", 0) == N && number("layers", 0) == 4 && number("top", 0) == 10);
        for (i = 0; i < M; i++)
            for (h = 0; h < H; h++) {
                CHECK(list("top", 1 + i * H + h, to, 64) == 10); /* the first "top": is the option */
                CHECK(list("entries", i * H + h, got, 256) == 10);
                for (x = 0; x < 10; x++) {
                    int better = 0;
                    for (j = 0; j < N; j++) better += product(i, h, j) > product(i, h, to[x]);
                    CHECK(better < 10 && (!x || to[x] > to[x - 1]));
                    CHECK(got[x] == to[x]);
                }
            }
        CHECK_NEAR(number("recall", (1 + H) * M), 1, 1e-9); /* the mean */
        CHECK_NEAR(number("mass", (1 + H) * M), number("best", M), 1e-9);
        CHECK_NEAR(number("read", M), 10.0 / N, 1e-9);
    }
}
TEST(reading_everything_covers_everything) {
    static const char *const spec[] = { "quest", "arkvale", "tidal", "quest(budget=1,dense=4)", "specontext" };
    const char *more[4];
    int i;
    more[0] = "-v"; more[1] = at("v"); more[2] = "--json"; more[3] = NULL;
    for (i = 0; i < 5; i++) {
        CHECK(ask(spec[i], "q", more) == 0);
        CHECK_NEAR(number("recall", (1 + H) * M), 1, 1e-9);
        CHECK(number("mass", (1 + H) * M) < 1 && number("mass", (1 + H) * M) > .5); /* the rest: the query's own row */
        CHECK_NEAR(number("read", M), 1, 0);
        CHECK_NEAR(number("error", M), 0, 1e-5);
        if (test_bad) { printf("  %s\n", spec[i]); break; }
    }
}
/* The decoded rows remember: the last choice of tidal with one layer in front is exact, of the row's own keys. */
TEST(rows_can_be_decoded_one_by_one) {
    const char *more[10];
    double sum = 0;
    int i;
    more[0] = "--prompt-tokens"; more[1] = "190"; more[2] = "-v"; more[3] = at("v"); more[4] = "--json";
    more[5] = "--rope"; more[6] = "neox"; more[7] = NULL;
    CHECK(ask("tidal(k=200,s0=0)", "all", more) == 0);
    CHECK_NEAR(number("mass", (1 + H) * 10), 1, 1e-6);
    CHECK_NEAR(number("error", 10), 0, 1e-5);
    CHECK(number("row", 0) == 191 && number("row", 9) == 200 && number("row", 10) < 0);
    CHECK(ask("tidal(k=20,s0=0)", "all", more) == 0);
    CHECK(number("recall", (1 + H) * 10) > .9); /* the row itself is one of the 20, best or not */
    for (i = 0; i < 10; i++) sum += number("error", i) / 10;
    CHECK_NEAR(number("error", 10), sum, 1e-6);
    more[6] = "norm"; more[7] = "--pre-rope"; more[8] = NULL;
    CHECK(ask("specontext(budget=30)", "all", more) == 0);
    CHECK_NEAR(number("read", 0), 31.0 / 191, 1e-6);
    CHECK(number("mass", 0) > .3 && number("error", 0) > 0);
}
TEST(every_retrieve_entry_can_be_asked) {
    const char *more[12];
    int i, k_;
    more[0] = "--prompt-queries"; more[1] = at("all"); more[2] = "-v"; more[3] = at("v"); more[4] = "--rope";
    more[5] = "norm"; more[6] = "--json"; more[7] = "--surprise"; more[8] = at("s"); more[9] = NULL;
    for (i = 0; kvmem_stage_entry(KVMEM_RETRIEVE, i); i++) {
        const char *word = kvmem_stage_entry(KVMEM_RETRIEVE, i)->word;
        char spec[64];
        if (!strcmp(word, "all")) continue;
        for (k_ = 0; k_ < 2; k_++) { /* by itself, and with its preset's terms if there is one */
            snprintf(spec, sizeof spec, "%s%s", k_ ? "" : "retrieve=", word);
            CHECK(ask(spec, "q", more) == 0);
            CHECK(number("mass", (1 + H) * M) > 0 && number("mass", (1 + H) * M) <= 1);
            CHECK(number("recall", (1 + H) * M) >= 0 && number("read", M) <= 1);
            if (test_bad) { printf("  %s\n", spec); return; }
        }
    }
}
TEST(the_terminal_shows_the_first_query) {
    static const char *const more[] = { "--top", "3", NULL }, *const all_[] = { "--top", "3", "--all", NULL };
    CHECK(ask("tidal(k=5,s0=0)", "q", more) == 0);
    CHECK(strstr(out.text, "query 0: recall 1.000") && strstr(out.text, "head 3 reads 4 of 200"));
    CHECK(strstr(out.text, "query 2:") && strstr(out.text, "mean of 3:"));
    CHECK(ask("tidal(k=5,s0=0)", "q", all_) == 0);
    CHECK(strstr(strstr(out.text, "query 2:"), "head 3 reads 4 of 200"));
}
TEST(bad_input_is_refused) {
    const char *more[8];
    CHECK(ask("full", "q", NULL) == MISUSED);
    CHECK(ask("quest(budget=x)", "q", NULL) == MISUSED);
    CHECK(ask("nobody(1)", "q", NULL) == MISUSED);
    CHECK(ask("quest", "nofile", NULL) == FAILED);
    CHECK(ask("quest", "k", NULL) == FAILED); /* two heads, not four */
    more[0] = "--prompt-tokens"; more[1] = "5"; more[2] = NULL;
    CHECK(ask("quest", "q", more) == MISUSED);
    more[1] = "200";
    CHECK(ask("quest", "all", more) == MISUSED);
    more[0] = "-v"; more[1] = at("two");
    CHECK(ask("quest", "q", more) == FAILED);
    more[0] = "--kv-heads"; more[1] = "3";
    CHECK(ask("quest", "q", more) == MISUSED);
    more[0] = "--rope"; more[1] = "yarn";
    CHECK(ask("quest", "q", more) == MISUSED);
    CHECK(ask("quest segment=surprise", "q", NULL) == MISUSED);
    more[0] = "--surprise"; more[1] = at("k");
    CHECK(ask("quest", "q", more) == FAILED);
    CHECK(ask("infllm", "q", NULL) == FAILED); /* places keys elsewhere: needs --rope */
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "retrieve_tool");
    make_files();
    RUN(exact_entries_are_the_brute_force_ones);
    RUN(reading_everything_covers_everything);
    RUN(rows_can_be_decoded_one_by_one);
    RUN(every_retrieve_entry_can_be_asked);
    RUN(the_terminal_shows_the_first_query);
    RUN(bad_input_is_refused);
    drop_files();
    return test_end();
}
