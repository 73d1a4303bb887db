/* segment_tool.c - `kvmem segment`: arrays or a model's text in, starts of events and what they are worth out; and the
   surprise that a session tells its cache. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "tool.h"

static void save(const char *name, const float *x, size_t n, size_t heads, size_t d) { /* heads 0: (n, d); d 0: (n) */
    FILE *f = fopen(at(name), "wb");
    size_t dim[3];
    REQUIRE(f != NULL);
    dim[0] = n;
    dim[1] = heads ? heads : d;
    dim[2] = d;
    CHECK(!npy_write(f, x, dim, heads ? 3 : d ? 2 : 1));
    fclose(f);
}
static int run(const char *spec, const char *const *more) {
    const char *a[48] = { "segment" };
    int n = 1;
    a[n++] = spec;
    while (more && *more) a[n++] = *more++;
    return tool(n, a);
}
#define WITH(...) ((const char *const[]){ __VA_ARGS__, NULL })
/* The number behind "key": of the i-th object of the JSON output. */
static double number(const char *key, int i) {
    char quoted[64];
    const char *p = out.text;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    for (; p && i >= 0; i--) p = strstr(p + 1, quoted);
    return p ? strtod(p + strlen(quoted), NULL) : -99;
}
static double lcg(unsigned *s) { *s = *s * 1664525u + 1013904223u; return (double)(*s >> 8) / 16777216.0 - 0.5; }

TEST(surprise_worked_example_from_an_array) {
    const float s[9] = { 99, 1, 2, 3, 2, 2.0f, 2.9f, 2.7f, 5.0f };
    save("s.npy", s, 9, 0, 0);
    CHECK(run("surprise(gamma=1,min=1,max=0,init=0)", WITH("--surprise", at("s.npy"), "--block", "5")) == OK);
    CHECK(!strcmp(out.text, "0 5 7\n"));
    CHECK(run("surprise(gamma=0.5,min=1,max=0,init=0)", WITH("--surprise", at("s.npy"), "--block", "5")) == OK);
    CHECK(!strcmp(out.text, "0 5 6 7\n"));
    CHECK(run("segment=surprise(shift=1,min=1,max=0,init=0)", WITH("--surprise", at("s.npy"), "--block", "5")) == OK);
    CHECK(!strcmp(out.text, "0 6 8\n"));
    CHECK(run("surprise(shift=1,min=3,max=0,init=0)", WITH("--surprise", at("s.npy"), "--block", "5", "--json")) == OK);
    CHECK(strstr(out.text, "\"starts\":[0,6]") != NULL);
}
TEST(tdc_and_kffocus_from_vectors) {
    float x[10] = { 1, 0 };
    const double s[4] = { 0.9, 0.2, 0.8, 0.1 };
    double a = 0;
    int i;
    for (i = 0; i < 4; i++) {
        a += acos(s[i]);
        x[2 * i + 2] = (float)(cos(a) * (i + 1));
        x[2 * i + 3] = (float)(sin(a) * (i + 1));
    }
    save("x.npy", x, 5, 0, 2);
    CHECK(run("tdc(n=2)", WITH("--vectors", at("x.npy"))) == OK && !strncmp(out.text, "0 2 4\n", 6));
    CHECK(run("tdc(n=9)", WITH("--vectors", at("x.npy"))) == OK && !strncmp(out.text, "0 1 2 3 4\n", 10));
    CHECK(run("kffocus(theta=-1,gop=2)", WITH("--vectors", at("x.npy"))) == OK && !strncmp(out.text, "0 2 4\n", 6));
    CHECK(run("kffocus(theta=0.85)", WITH("--vectors", at("x.npy"))) == OK && !strncmp(out.text, "0 2 3 4\n", 8));
}
TEST(turns_are_found_by_their_token_and_are_the_truth) {
    const float t[10] = { 5, 6, 7, 5, 8, 8, 5, 9, 9, 9 };
    save("t.npy", t, 10, 0, 0);
    CHECK(run("turn", WITH("--tokens", at("t.npy"), "--turn-ends", "5")) == OK && !strncmp(out.text, "0 1 4 7\n", 8));
    CHECK(run("turn", WITH("--tokens", at("t.npy"), "--turn-begins", "5")) == OK && !strncmp(out.text, "0 3 6\n", 6));
    CHECK(run("turn(every=2)", WITH("--tokens", at("t.npy"), "--turn-begins", "5", "--json")) == OK);
    CHECK(strstr(out.text, "\"starts\":[0,6]") != NULL);
    CHECK_NEAR(number("precision", 0), 1, 0);
    CHECK_NEAR(number("recall", 0), 0.5, 0);
    CHECK_NEAR(number("f1", 0), 2.0 / 3, 1e-8);
    CHECK(run("turn", WITH("--tokens", at("t.npy"), "--block", "2", "--turn-ends", "5", "--csv")) == OK);
    CHECK(strstr(out.text, "\"turn\",found,1,4,1,1,1,,,\n") != NULL);
    CHECK(run("fixed(size=4)", WITH("--tokens", at("t.npy"), "--turn-begins", "5", "--tolerance", "0",
        "--json")) == OK);
    CHECK_NEAR(number("f1", 0), 0, 0); /* 4 8 against 3 6 */
    CHECK(run("fixed(size=4)", WITH("--tokens", at("t.npy"), "--turn-begins", "5", "--tolerance", "2",
        "--json")) == OK);
    CHECK_NEAR(number("f1", 0), 1, 0);
}
TEST(hits_are_the_largest_matching) {
    const int a[4] = { 3, 4, 9, 20 }, b[4] = { 4, 5, 10, 30 };
    CHECK(segment_hits(a, 4, b, 4, 0) == 1 && segment_hits(a, 4, b, 4, 1) == 3);
    CHECK(segment_hits(a, 0, b, 4, 5) == 0 && segment_hits(a, 4, b, 4, 10) == 4);
}
TEST(a_partition_is_judged_as_by_the_whole_matrix) {
    enum { N = 30, G = 2, D = 3 };
    static float k[N * G * D];
    static double A[N][N];
    const float truth[3] = { 7, 11, 23 };
    const int start[5] = { 0, 8, 16, 24, N };
    double S = 0, in = 0, pairs = 0, q = 0, phi = 0, ratio;
    unsigned seed = 7;
    int i, j, c, e;
    for (i = 0; i < N * G * D; i++) k[i] = (float)(lcg(&seed) + 0.2);
    for (i = 0; i < N; i++)
        for (j = 0; j < N; j++) {
            for (c = 0; c < G * D; c++) A[i][j] += (double)k[i * G * D + c] * (double)k[j * G * D + c];
            S += A[i][j];
        }
    for (e = 0; e < 4; e++) {
        double W = 0, vol = 0;
        for (i = start[e]; i < start[e + 1]; i++)
            for (j = 0; j < N; j++) {
                vol += A[i][j];
                if (j >= start[e] && j < start[e + 1]) { W += A[i][j]; pairs++; }
            }
        in += W;
        phi += (vol - W) / (vol < S - vol ? vol : S - vol) / 4;
        for (i = start[e]; i < start[e + 1]; i++)
            for (j = start[e]; j < start[e + 1]; j++) {
                double di = 0, dj = 0;
                for (c = 0; c < N; c++) { di += A[i][c]; dj += A[j][c]; }
                q += (A[i][j] - di * dj / S) / S;
            }
    }
    ratio = in / pairs / ((S - in) / (N * N - pairs));
    save("k.npy", k, N, G, D);
    save("b.npy", truth, 3, 0, 0);
    CHECK(run("fixed(size=8)", WITH("-k", at("k.npy"), "--kv-heads", "2", "--truth", at("b.npy"), "--json")) == OK);
    CHECK_NEAR(number("ratio", 0), ratio, 1e-6 * fabs(ratio));
    CHECK_NEAR(number("modularity", 0), q, 1e-6);
    CHECK_NEAR(number("conductance", 0), phi, 1e-6);
    CHECK_NEAR(number("f1", 0), 2.0 / 3, 1e-8); /* 8 and 24 hit 7 and 23 */
    CHECK_NEAR(number("events", 2), 4, 0);
}
TEST(refinement_of_arrays_moves_a_start) {
    float k[14];
    const float s[7] = { 0, 1, 1, 1, 1, 1, 9 };
    int i;
    for (i = 0; i < 7; i++) { k[2 * i] = i < 4; k[2 * i + 1] = i >= 4; }
    save("k7.npy", k, 7, 1, 2);
    save("s7.npy", s, 7, 0, 0);
    CHECK(run("surprise(min=1)", WITH("-k", at("k7.npy"), "--surprise", at("s7.npy"))) == OK);
    CHECK(!strncmp(out.text, "0 5\n", 4));
    CHECK(run("surprise(min=1,refine=modularity,from=0)", WITH("-k", at("k7.npy"), "--surprise", at("s7.npy"))) == OK);
    CHECK(!strncmp(out.text, "0 4\n", 4));
}
TEST(what_is_missing_or_wrong_is_said) {
    const float s[3] = { 0, 1, 2 }, b[1] = { 7 };
    save("s3.npy", s, 3, 0, 0);
    save("b7.npy", b, 1, 0, 0);
    CHECK(run("surprise", NULL) == MISUSED);
    CHECK(run("nonsense", WITH("--surprise", at("s3.npy"))) == MISUSED);
    CHECK(run("surprise budget=10", WITH("--surprise", at("s3.npy"))) == MISUSED);
    CHECK(run("fixed", WITH("--surprise", at("s3.npy"))) == MISUSED);
    CHECK(run("tdc", WITH("--surprise", at("s3.npy"))) == MISUSED);
    CHECK(run("surprise(refine=modularity)", WITH("--surprise", at("s3.npy"))) == MISUSED);
    CHECK(run("louis", WITH("--surprise", at("s3.npy"))) == MISUSED);
    CHECK(run("turn", WITH("--surprise", at("s3.npy"))) == MISUSED);
    CHECK(run("surprise", WITH("--tokens", at("s3.npy"))) == MISUSED);
    CHECK(run("surprise", WITH("--surprise", at("none.npy"))) == FAILED);
    CHECK(run("surprise", WITH("--surprise", at("s3.npy"), "--truth", at("b7.npy"))) == FAILED);
    CHECK(run("surprise", WITH("--surprise", at("s3.npy"), "--tokens", at("b7.npy"))) == FAILED);
    CHECK(run("surprise", WITH("--surprise", at("s3.npy"), "--suite", "conv")) == MISUSED);
    CHECK(run("surprise", WITH("--surprise", at("s3.npy"), "-o", at("o.npy"))) == MISUSED);
    CHECK(run("surprise(min=1)", WITH("--surprise", at("s3.npy"), "--turn-ends", "x")) == MISUSED);
}

/* ---- a model */

#define MODEL "examples/models/tiny.gguf"
static float nats[64];
static int told, vocab;
static int row(void *user, int index, const float *l) { /* the surprise of the token after this one, in double */
    const int *id = (const int *)user, V = vocab;
    double sum = 0;
    int i;
    (void)index;
    for (i = 0; i < V; i++) sum += exp((double)l[i] - (double)l[id[told + 1]]);
    nats[++told] = (float)log(sum);
    return 0;
}
TEST(a_session_tells_the_surprise_of_every_prompt_token) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe r;
    kvmem_session s;
    corpus_test test;
    corpus_eval_params p;
    loaded l;
    args a;
    int t, n, i;
    memset(&a, 0, sizeof a);
    memset(&test, 0, sizeof test);
    memset(&p, 0, sizeof p);
    a.model = MODEL;
    p.suite = CORPUS_CONV;
    p.ctx = 128;
    p.seed = 3;
    REQUIRE(load_model(&l, &a, 1) == OK);
    REQUIRE(corpus_test_make(&test, &p) == CORPUS_OK);
    REQUIRE_OK(kvmem_recipe_parse(&r, "segment=surprise(min=1)", NULL));
    cfg.recipe = &r;
    cfg.threads = 1;
    cfg.backend = kvmem_backend_cpu("plain");
    REQUIRE_OK(kvmem_session_init(&s, &l.model, &cfg));
    vocab = l.model.n_vocab;
    { /* rows with a callback, without one, one token; in three blocks */
        const int end[4] = { 20, 45, 46, 60 };
        told = 0;
        nats[0] = -1;
        for (i = 0, t = 0; i < 4; i++, t = n) {
            n = end[i];
            REQUIRE_OK(kvmem_session_feed(&s, test.ids + t, n - t, i < 3 ? KVMEM_PREFILL : KVMEM_PROMPT_END, row,
                                          test.ids));
            for (; t < n; t++) CHECK_NEAR(s.cache.token_value[t - (i ? end[i - 1] : 0)], nats[t], 1e-4);
        }
        CHECK(s.cache.n_events > 3);
        i = s.cache.n_events;
        REQUIRE_OK(kvmem_session_feed(&s, test.ids + 60, 1, KVMEM_DECODE, NULL, NULL)); /* not asked for */
        CHECK(s.cache.token_value[0] < 0);
        kvmem_session_clear(&s);
        REQUIRE_OK(kvmem_session_feed(&s, test.ids, 30, KVMEM_PREFILL, NULL, NULL));
        for (t = 0; t < 30; t++) CHECK_NEAR(s.cache.token_value[t], nats[t], 1e-4);
        REQUIRE_OK(kvmem_session_feed(&s, test.ids + 30, 30, KVMEM_PROMPT_END, NULL, NULL));
        for (t = 0; t < 30; t++) CHECK_NEAR(s.cache.token_value[t], nats[30 + t], 1e-4);
    }
    kvmem_session_free(&s);
    corpus_test_free(&test);
    unload(&l);
}
TEST(a_session_marks_turns_by_their_token) {
    kvmem_session_config cfg = kvmem_session_config_default();
    const int id[12] = { 0, 300, 258, 301, 302, 258, 258, 303, 304, 305, 258, 306 }; /* 258: the end of a line */
    const int ends[6] = { 0, 3, 6, 7, 11, 12 };
    kvmem_recipe r;
    kvmem_session s;
    loaded l;
    args a;
    int behind, i;
    memset(&a, 0, sizeof a);
    a.model = MODEL;
    REQUIRE(load_model(&l, &a, 1) == OK);
    REQUIRE_OK(kvmem_recipe_parse(&r, "segment=turn", NULL));
    cfg.recipe = &r;
    cfg.threads = 1;
    for (behind = 0; behind < 2; behind++) {
        REQUIRE_OK(kvmem_session_init(&s, &l.model, &cfg));
        CHECK(kvmem_session_turn_token(&s, -2, 1) == KVMEM_BAD_ARGUMENT);
        CHECK(kvmem_session_turn_token(&s, l.model.n_vocab, 1) == KVMEM_BAD_ARGUMENT);
        REQUIRE_OK(kvmem_session_turn_token(&s, 258, behind));
        REQUIRE_OK(kvmem_session_feed(&s, id, 6, KVMEM_PREFILL, NULL, NULL));
        REQUIRE_OK(kvmem_session_feed(&s, id + 6, 6, KVMEM_PROMPT_END, NULL, NULL));
        CHECK(s.cache.n_events == 5);
        for (i = 0; i < s.cache.n_events; i++) CHECK(s.cache.event[i] == ends[i] - (behind || !i ? 0 : 1));
        kvmem_session_free(&s);
    }
    unload(&l);
}
TEST(conversations_are_cut_and_judged) {
    file f;
    npy a;
    char why[100];
    CHECK(run("turn", WITH("--suite", "conv", "--ctx", "128", "--json")) == OK);
    CHECK_NEAR(number("f1", 0), 1, 0);
    CHECK(number("modularity", 0) > -1 && number("f1", 2) < 0.9);
    CHECK(run("surprise(min=1)", WITH("--suite", "conv", "--ctx", "128", "-o", at("o.npy"))) == OK);
    CHECK(strstr(out.text, "random") != NULL);
    REQUIRE(!file_open(&f, at("o.npy")));
    CHECK(!npy_parse(&a, f.bytes, f.size, why, sizeof why) && a.count == 128 && npy_at(&a, 0) < 0 && npy_at(&a,
        9) >= 0);
    file_close(&f);
    CHECK(run("surprise", WITH("--suite", "nowhere")) == MISUSED);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "segment_tool");
    tool_begin(argv[0], "segment_tool");
    RUN(surprise_worked_example_from_an_array);
    RUN(tdc_and_kffocus_from_vectors);
    RUN(turns_are_found_by_their_token_and_are_the_truth);
    RUN(hits_are_the_largest_matching);
    RUN(a_partition_is_judged_as_by_the_whole_matrix);
    RUN(refinement_of_arrays_moves_a_start);
    RUN(what_is_missing_or_wrong_is_said);
    RUN(a_session_tells_the_surprise_of_every_prompt_token);
    RUN(a_session_marks_turns_by_their_token);
    RUN(conversations_are_cut_and_judged);
    return test_end();
}
