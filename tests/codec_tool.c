/* codec_tool.c - `kvmem codec` and `kvmem list` of codecs: arrays through a lane, for every row of
   the codec table. What the tool prints and writes is compared with what the arrays themselves say.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "test.h"
#include "tool.h"

static void save(const char *name, const float *x, int rows, int cols) {
    REQUIRE(array_write(at(name), "<f4", x, rows, cols) == OK);
}
static float *load(const char *name, int rows, int cols) {
    float *x = NULL;
    int n = 0, d = cols;
    if (array_rows("test", at(name), "test", &n, 0, &d, &x) != OK || n != rows || d != cols) {
        free(x);
        return NULL;
    }
    return x;
}
static double told(const char *key) { /* a number of the JSON in `out` */
    char name[40];
    const char *p;
    snprintf(name, sizeof name, "\"%s\":", key);
    p = strstr(out.text, name);
    return p ? strtod(p + strlen(name), NULL) : -1;
}
static void fill(float *x, int n, int d) { /* channels of different offsets, as keys have */
    int i;
    for (i = 0; i < n * d; i++) x[i] = (float)(test_normal() + (i % d == 3 ? 8 : 0));
}
static int run_codec(const char *spec, const char *as, const char *more, const char *value) {
    const char *v[16] = { "codec", "",       "-i", "",       "-o",   "", "-q",
                          "",      "--dots", "",   "--json", "--as", "" };
    v[1] = spec;
    v[3] = at("x.npy");
    v[5] = at("y.npy");
    v[7] = at("q.npy");
    v[9] = at("d.npy");
    v[12] = as;
    v[13] = more;
    v[14] = value;
    return tool(more ? 15 : 13, v);
}
/* Y and D of the last run against each other: D = Q Y^T. -1: a file is not as it should be. */
static double worst_score(const float *q, const float *y, int m, int n, int d) {
    float *s = load("d.npy", m, n);
    double worst = 0;
    int i, t, c;
    if (!s || !y) { free(s); return -1; }
    for (i = 0; i < m; i++)
        for (t = 0; t < n; t++) {
            double sum = 0, a = 0, b = 0, e;
            for (c = 0; c < d; c++) {
                const double x = (double)q[i * d + c], z = (double)y[t * d + c];
                sum += x * z;
                a += x * x;
                b += z * z;
            }
            e = fabs(sum - (double)s[i * n + t]) / (sqrt(a * b) + 1e-30);
            if (!(e <= worst)) worst = e;
        }
    free(s);
    return worst;
}
static void one_codec(const char *spec, const char *as, int n, int d) {
    enum { M = 3 };
    float *x = (float *)malloc(sizeof(float) * (size_t)(n * d)), q[M * 128], *y;
    double e = 0, s = 0, w;
    int i;
    fill(x, n, d);
    fill(q, M, d);
    save("x.npy", x, n, d);
    save("q.npy", q, M, d);
    if (run_codec(spec, as, NULL, NULL) != OK) {
        FAIL_AT("%s as %s, %d rows of %d: refused", spec, as, n, d);
        free(x);
        return;
    }
    y = load("y.npy", n, d);
    for (i = 0; y && i < n * d; i++) {
        const double diff = (double)x[i] - (double)y[i];
        e += diff * diff;
        s += (double)x[i] * (double)x[i];
    }
    w = worst_score(q, y, M, n, d);
    if (!(w >= 0 && w < 2e-5))
        FAIL_AT("%s as %s, %d rows of %d: scores differ by %g", spec, as, n, d, w);
    if (!(fabs(told("relative_error") - e / s) <= 1e-6 * e / s))
        FAIL_AT("%s as %s: error %g is told as %g", spec, as, e / s, told("relative_error"));
    /* far above 1 is no code of these rows; mikv trades channels that three queries leave alone */
    if (!(e / s < 1.5)) FAIL_AT("%s as %s, %d rows of %d: error %g", spec, as, n, d, e / s);
    CHECK_NEAR(told("bits_per_value") / (8 * told("bytes") / (n * d)), 1, 1e-6);
    CHECK(told("bytes") ==
          told("code_bytes") + told("head_bytes") + told("learned_bytes") + told("exact_bytes"));
    free(x);
    free(y);
}

TEST(every_codec_scores_its_own_rows) {
    const kvmem_entry *e;
    char text[64];
    int i, v;
    for (i = 0; (e = kvmem_stage_entry(KVMEM_CODEC_K, i)) != NULL; i++)
        for (v = 0; v < 2; v++) { /* unless it is for the other side, or for a certain partner */
            snprintf(text, sizeof text, "codec.%s=%.40s", v ? "v" : "k", e->word);
            if (matrix_ask(text, 0, 1, NULL) != KVMEM_OK) continue;
            one_codec(e->word, v ? "v" : "k", 150, 64);
            one_codec(e->word, v ? "v" : "k", 70, 33);
            one_codec(e->word, v ? "v" : "k", 1, 80);
        }
}
TEST(f32_gives_every_bit_back_and_f16_half_the_bytes) {
    float x[4 * 8], *y;
    fill(x, 4, 8);
    save("x.npy", x, 4, 8);
    save("q.npy", x, 4, 8);
    REQUIRE(run_codec("f32", "v", NULL, NULL) == OK);
    CHECK(told("bytes") == 128 && told("relative_error") == 0);
    y = load("y.npy", 4, 8);
    REQUIRE(y != NULL);
    CHECK(!memcmp(x, y, sizeof x));
    free(y);
    REQUIRE(run_codec("f16", "k", NULL, NULL) == OK);
    CHECK(told("bytes") == 64 && told("bits_per_value") == 16);
}
TEST(keys_before_rope_are_scored_where_they_stand) {
    enum { N = 20, D = 16 };
    const int32_t pos = 7;
    float x[N * D], p[N], *y;
    float freq[D / 2];
    kvmem_rope rope;
    int i;
    fill(x, N, D);
    for (i = 0; i < N; i++) p[i] = (float)(3 * i + 1);
    for (i = 0; i < D / 2; i++) freq[i] = (float)pow(10000, -2.0 * i / D);
    save("x.npy", x, N, D);
    save("q.npy", x, 2, D);
    save("p.npy", p, 1, N);
    {
        const char *const v[] = {
            "codec",     "f32",       "-i",          at("x.npy"), "-o",
            at("y.npy"), "-q",        at("q.npy"),   "--dots",    at("d.npy"),
            "--pos",     at("p.npy"), "--rope-base", "10000",     "--pre-rope"
        };
        REQUIRE(tool(15, v) == OK);
    }
    y = load("y.npy", N, D);
    REQUIRE(y != NULL);
    for (i = 0; i < N * D; i++) CHECK_NEAR(x[i], y[i], 2e-6);
    rope.n_rot = D;
    rope.neox = 0;
    rope.mscale = 1;
    rope.inv_freq = freq;
    CHECK(p[2] == (float)pos);
    for (i = 0; i < N; i++) {
        const int32_t where = (int32_t)p[i];
        kvmem__rope(y + i * D, x + i * D, 1, 1, D, &rope, &where, 0, 1);
    }
    CHECK(worst_score(x, y, 2, N, D) < 2e-6);
    free(y);
}
TEST(what_cannot_be_done_is_said) {
    float x[6 * 8], p[6] = { 0, 2, 2, 3, 4, 5 };
    fill(x, 6, 8);
    save("x.npy", x, 6, 8);
    save("q.npy", x, 8, 6);
    CHECK(run_codec("f32", "k", NULL, NULL) == FAILED);          /* rows of other size */
    save("q.npy", x, 2, 8);
    save("p.npy", p, 1, 6);
    CHECK(run_codec("f32", "k", "--pos", at("p.npy")) == FAILED); /* do not rise */
    save("p.npy", p, 1, 5);
    CHECK(run_codec("f32", "k", "--pos", at("p.npy")) == FAILED); /* too few */
    CHECK(run_codec("f32", "k", "--pos", at("none.npy")) == FAILED);
    CHECK(run_codec("window budget=2", "k", NULL, NULL) == MISUSED);
    CHECK(run_codec("q4_0(bits=77)", "k", NULL, NULL) == MISUSED);
    x[3] = NAN;
    save("x.npy", x, 6, 8);
    CHECK(run_codec("f32", "k", NULL, NULL) == FAILED);
    CHECK(run_codec("full codec=q4_0", "k", NULL, NULL) == FAILED);
}
TEST(list_explains_every_codec) {
    const kvmem_entry *e;
    int i;
    for (i = 0; (e = kvmem_stage_entry(KVMEM_CODEC_K, i)) != NULL; i++) {
        const char *v[2];
        v[0] = "list";
        v[1] = e->word;
        REQUIRE(tool(2, v) == OK);
        if (!strstr(out.text, "  formula ")) FAIL_AT("%s: no formula", e->word);
        if (!strstr(out.text, "d=128: ")) FAIL_AT("%s: no bits", e->word);
        if (!strstr(out.text, "  paper ")) FAIL_AT("%s: no paper", e->word);
    }
}
TEST(formulas_are_of_codecs_that_exist) {
    size_t i;
    for (i = 0; i < sizeof codec_formulas / sizeof *codec_formulas; i++)
        if (!find_entry((int)KVMEM_CODEC_K, codec_formulas[i].word))
            FAIL_AT("%s", codec_formulas[i].word);
}
TEST(the_matrix_says_what_the_check_says) {
    matrix *m = (matrix *)calloc(1, sizeof *m);
    kvmem_recipe r;
    kvmem_error error;
    CHECK(matrix_cell(m, "codec.k=q4_0 place=cache", 64, 1) == 0);
    CHECK(matrix_cell(m, "codec.k=q4_0 budget=8 recent=9", 64, 1) == 1);
    REQUIRE(kvmem_recipe_parse(&r, "codec.k=q4_0 budget=8 recent=9", &error) != KVMEM_OK);
    CHECK(!strcmp(error.text, m->reason[0]));
    CHECK(matrix_cell(m, "codec.k=q4_0 budget=8 recent=9", 64, 1) == 1);
    free(m);
}

int main(int argc, char **argv) {
    tool_begin(argv[0], "codec_tool");
    test_begin(argc, argv, "codec_tool");
    RUN(every_codec_scores_its_own_rows);
    RUN(f32_gives_every_bit_back_and_f16_half_the_bytes);
    RUN(keys_before_rope_are_scored_where_they_stand);
    RUN(what_cannot_be_done_is_said);
    RUN(list_explains_every_codec);
    RUN(formulas_are_of_codecs_that_exist);
    RUN(the_matrix_says_what_the_check_says);
    free(out.text);
    return test_end();
}
