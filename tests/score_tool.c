/* score_tool.c - `kvmem score`: arrays of one layer in, scores or kept rows out. What is written is compared
   with softmax in double precision over the same arrays, and every preset that keeps fewer entries is asked. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"
#include "tool.h"

enum { N = 40, H = 4, G = 2, D = 8, WIDTH = 12 };
static float q[N * H * D], k[N * G * D], v[N * G * D], x[N * WIDTH], wo[WIDTH * H * D];

static void save(const char *name, const float *rows, size_t n, size_t heads, size_t d) { /* heads 0: (n, d) */
    FILE *f = fopen(at(name), "wb");
    size_t dim[3];
    REQUIRE(f != NULL);
    dim[0] = n;
    dim[1] = heads ? heads : d;
    dim[2] = d;
    CHECK(!npy_write(f, rows, dim, heads ? 3 : 2));
    fclose(f);
}
/* What the tool has written: (G, *cols) numbers into to; 0: it is not that. */
static int load(double *to, int *cols, char kind) {
    file f;
    npy a;
    char why[200];
    size_t i;
    int good;
    if (file_open(&f, at("out.npy"))) return 0;
    good = !npy_parse(&a, f.bytes, f.size, why, sizeof why) && a.n_dims == 2 && a.dim[0] == G && a.dim[1] <= N &&
           a.kind == kind && a.item == 4;
    *cols = good ? (int)a.dim[1] : 0;
    for (i = 0; good && i < a.count; i++) to[i] = npy_at(&a, i);
    file_close(&f);
    return good;
}
/* kvmem score --kv RECIPE with all arrays, or bare: without hidden states and weights; and up to six words more. */
static int score_with(const char *recipe, int bare, const char *const *more) {
    const char *a[48] = { "score", "--heads", "4", "--kv-heads", "2", "--dim", "8" };
    int n = 7;
    a[n++] = "--kv";
    a[n++] = recipe;
    a[n++] = "-k";
    a[n++] = at("k.npy");
    a[n++] = "-v";
    a[n++] = at("v.npy");
    a[n++] = "-q";
    a[n++] = at("q.npy");
    a[n++] = "--hidden";
    a[n++] = at("x.npy");
    a[n++] = "--output-weights";
    a[n++] = at("w.npy");
    if (bare) n -= 4;
    a[n++] = "-o";
    a[n++] = at("out.npy");
    while (more && *more) a[n++] = *more++;
    return tool(n, a);
}
static int score(const char *recipe, const char *const *more) { return score_with(recipe, 0, more); }
static int score_bare(const char *recipe, const char *const *more) { return score_with(recipe, 1, more); }
static const char *const kept_only[] = { "--kept", NULL }, *const turned[] = { "--rope", "norm", "--kept", NULL };
static const char *const turned_only[] = { "--rope", "norm", NULL };
static void turn(float *row, int pos, int neox) {
    int i;
    for (i = 0; i < D / 2; i++) {
        const int a = neox ? i : 2 * i, b = neox ? i + D / 2 : 2 * i + 1;
        const double w = pos * pow(500, -2.0 * i / D), c = cos(w), s = sin(w), p = (double)row[a], r = (double)row[b];
        row[a] = (float)(p * c - r * s);
        row[b] = (float)(p * s + r * c);
    }
}
static void fill(void) {
    int i;
    for (i = 0; i < N * H * D; i++) q[i] = (float)(1.5 * test_normal());
    for (i = 0; i < N * G * D; i++) { k[i] = (float)test_normal(); v[i] = (float)test_normal(); }
    for (i = 0; i < N * WIDTH; i++) x[i] = (float)test_normal();
    for (i = 0; i < WIDTH * H * D; i++) wo[i] = (float)test_normal();
    save("q.npy", q, N, H, D);
    save("k.npy", k, N, G, D);
    save("v.npy", v, N, G, D);
    save("x.npy", x, N, 0, WIDTH);
    save("w.npy", wo, WIDTH, 0, H * D);
}
/* p (N): what query i of head h gives each row. */
static void row_of(int h, int i, double *p) {
    double top = -1e300, sum = 0;
    int t, c;
    for (t = 0; t <= i; t++) {
        for (p[t] = 0, c = 0; c < D; c++)
            p[t] += (double)q[(i * H + h) * D + c] * (double)k[(t * G + h / (H / G)) * D + c];
        p[t] /= sqrt((double)D);
        if (p[t] > top) top = p[t];
    }
    for (t = 0; t <= i; t++) sum += p[t] = exp(p[t] - top);
    for (t = 0; t < N; t++) p[t] = t <= i ? p[t] / sum : 0;
}
/* SnapKV's votes: 6 queries, mean over the group, mean over 3 neighbours. */
static void snap(int g, double *s) {
    double p[N], votes[N];
    int h, i, t;
    for (t = 0; t < N; t++) votes[t] = 0;
    for (h = 2 * g; h < 2 * g + 2; h++)
        for (i = N - 6; i < N; i++) {
            row_of(h, i, p);
            for (t = 0; t < N - 6; t++) votes[t] += p[t] / 2;
        }
    for (t = 0; t < N - 6; t++)
        s[t] = ((t ? votes[t - 1] : 0) + votes[t] + (t + 1 < N - 6 ? votes[t + 1] : 0)) / 3;
}
#define SNAP "snapkv budget=12 recent=6 score=snapkv(window=6,kernel=3)"

TEST(scores_are_what_the_formula_says) {
    double got[G * N], want[N], sum[N], p[N];
    int g, t, i, h, cols;
    fill();
    REQUIRE(score(SNAP, NULL) == OK && load(got, &cols, 'f') && cols == N);
    for (g = 0; g < G; g++) {
        snap(g, want);
        for (t = 0; t < N - 6; t++) CHECK_NEAR(got[g * N + t], want[t], 1e-5);
    }
    REQUIRE(score("h2o", NULL) == OK && load(got, &cols, 'f') && cols == N);
    for (g = 0; g < G; g++) {
        for (t = 0; t < N; t++) sum[t] = 0;
        for (h = 2 * g; h < 2 * g + 2; h++)
            for (i = 0; i < N; i++) {
                row_of(h, i, p);
                for (t = 0; t < N; t++) sum[t] += p[t] / 2;
            }
        for (t = 0; t < N; t++) CHECK_NEAR(got[g * N + t], sum[t], 1e-5);
    }
    REQUIRE(score("score=knorm", NULL) == OK && load(got, &cols, 'f'));
    for (t = 0; t < N; t++) {
        double s = 0;
        for (i = 0; i < D; i++) s += (double)k[(t * G + 1) * D + i] * (double)k[(t * G + 1) * D + i];
        CHECK_NEAR(got[N + t], -sqrt(s), 1e-5);
    }
}
TEST(kept_are_the_best_scores_and_the_window) {
    double got[G * N], s[N];
    int g, t, u, cols;
    fill();
    REQUIRE(score(SNAP, kept_only) == OK && load(got, &cols, 'i') && cols == 12);
    for (g = 0; g < G; g++) {
        int n = 0;
        snap(g, s);
        for (t = 0; t < N; t++) {
            int better = 0;
            for (u = 0; u < N - 6 && t < N - 6; u++) better += s[u] > s[t];
            if (t >= N - 6 || better < 6) CHECK(got[g * 12 + n++] == t);
        }
        CHECK(n == 12);
    }
}
TEST(rows_before_and_after_rope_give_the_same_scores) {
    static const char *const before[] = { "--rope", "neox", "--rope-base", "500", "--pre-rope", NULL };
    static const char *const after[] = { "--rope", "neox", "--rope-base", "500", NULL };
    double a[G * N], b[G * N], c[G * N];
    int t, h, cols;
    fill();
    REQUIRE(score(SNAP, before) == OK && load(a, &cols, 'f'));
    for (t = 0; t < N; t++) {
        for (h = 0; h < H; h++) turn(q + (t * H + h) * D, t, 1);
        for (h = 0; h < G; h++) turn(k + (t * G + h) * D, t, 1);
    }
    save("q.npy", q, N, H, D);
    save("k.npy", k, N, G, D);
    REQUIRE(score(SNAP, after) == OK && load(b, &cols, 'f'));
    REQUIRE(score(SNAP, NULL) == OK && load(c, &cols, 'f'));
    for (t = 0; t < G * N; t++) {
        CHECK_NEAR(a[t], b[t], 1e-5);
        CHECK_NEAR(a[t], c[t], 1e-5);
    }
}
TEST(decoded_rows_and_positions_count) {
    static const char *const steps[] = { "--kept", "--prompt-tokens", "30", "--pos", "", NULL };
    const char *more[6];
    float pos[N];
    double got[G * N];
    int t, cols;
    fill();
    for (t = 0; t < N; t++) pos[t] = (float)(3 * t + t % 2);
    save("p.npy", pos, N, 0, 1);
    memcpy(more, steps, sizeof more);
    more[4] = at("p.npy");
    REQUIRE(score("window budget=7", more) == OK && load(got, &cols, 'i') && cols == 7);
    for (t = 0; t < 7; t++) CHECK(got[t] == N - 7 + t && got[7 + t] == N - 7 + t);
    REQUIRE(score("tova budget=9", more) == OK && load(got, &cols, 'i') && cols == 9);
    for (t = 0; t < 9; t++) CHECK(got[t] == got[9 + t]); /* one set for the layer */
    more[1] = NULL;
    REQUIRE(score("full", more) == OK && load(got, &cols, 'i') && cols == N);
    for (t = 0; t < N; t++) CHECK(got[t] == t);
}
TEST(probe_tokens_judge_the_prompt) {
    static const char *const probed[] = { "--probe", "6", NULL };
    double got[G * N], p[N];
    int g, t, h, i, cols;
    fill();
    REQUIRE(score_bare("kvzip budget=50%", probed) == OK && load(got, &cols, 'f') && cols == N - 6);
    for (g = 0; g < G; g++)
        for (t = 0; t < N - 6; t++) {
            double top = 0;
            for (h = 2 * g; h < 2 * g + 2; h++)
                for (i = N - 6; i < N; i++) {
                    row_of(h, i, p);
                    if (p[t] > top) top = p[t];
                }
            CHECK_NEAR(got[g * cols + t], top, 1e-5);
        }
    CHECK(score_bare("kvzip budget=50%", NULL) == MISUSED); /* nobody has looked */
    CHECK(score_bare("h2o", probed) == MISUSED);
}
/* Every preset that keeps fewer entries, at a quarter: rising rows of what was given, or a sentence. */
TEST(every_preset_answers) {
    int i, g, t, cols, asked = 0, answered = 0;
    fill();
    for (i = 0; kvmem_preset_at(i); i++) {
        const kvmem_preset *p = kvmem_preset_at(i);
        double got[G * N];
        kvmem_recipe r;
        kvmem_error e;
        char text[160];
        int status;
        if (kvmem_recipe_parse(&r, p->word, &e) != KVMEM_OK || r.amount.kind == KVMEM_ALL) continue;
        snprintf(text, sizeof text, "%s budget=25%%", p->word);
        asked++;
        status = score(text, turned);
        if (r.stage[KVMEM_SCORE].entry->reads & KVMEM_READS_PROBE) continue; /* above */
        if (status != OK) continue; /* it needs what this command has not: a session, a profile */
        answered++;
        if (!load(got, &cols, 'i')) { FAIL_AT("%s: no table of rows", p->word); continue; }
        for (g = 0; g < G; g++) {
            for (t = 0; t < cols && got[g * cols + t] >= 0; t++)
                if (got[g * cols + t] >= N || (t && got[g * cols + t] <= got[g * cols + t - 1])) break;
            while (t < cols && got[g * cols + t] == -1) t++;
            if (t < cols) FAIL_AT("%s: KV head %d: row %g at place %d", p->word, g, got[g * cols + t], t);
        }
        status = score(text, turned_only);
        if (status != OK || !load(got, &cols, 'f') || cols != N) FAIL_AT("%s: no scores", p->word);
        for (t = 0; t < G * cols; t++) CHECK(got[t] == got[t]);
    }
    CHECK(answered > 5 && 2 * answered > asked);
}
TEST(what_cannot_be_done_is_said) {
    static const char *const rope[] = { "--rope", "left", NULL }, *const base[] = { "--rope-base", "10", NULL };
    static const char *const bare[] = { "--pre-rope", NULL };
    const char *a[16] = { "score", "--kv", "snapkv", "-k", "", "-o", "", "--heads", "4", "--kv-heads", "2" };
    const char *more[3] = { "--pos", "", NULL };
    float p[N];
    FILE *f;
    int t;
    fill();
    a[4] = at("k.npy");
    a[6] = at("out.npy");
    CHECK(tool(11, a) == MISUSED); /* reads queries, and there are none */
    a[2] = "score=knorm";
    CHECK(tool(11, a) == OK); /* reads none */
    a[8] = "3";
    CHECK(tool(11, a) == MISUSED); /* heads and KV heads */
    a[8] = "4";
    a[10] = "4";
    CHECK(tool(11, a) == FAILED); /* the file has two */
    CHECK(score("snapky", NULL) == MISUSED && score(SNAP, rope) == MISUSED);
    CHECK(score(SNAP, base) == MISUSED && score(SNAP, bare) == MISUSED);
    save("q.npy", q, N - 1, H, D);
    CHECK(score(SNAP, NULL) == FAILED); /* one query less than keys */
    save("q.npy", q, N, 0, H * D);
    CHECK(score(SNAP, NULL) == FAILED); /* heads and values in one dimension */
    save("q.npy", q, N, H, D / 2);
    CHECK(score(SNAP, NULL) == FAILED);
    save("q.npy", q, N, H, D);
    for (t = 0; t < N; t++) p[t] = (float)(t / 2);
    save("p.npy", p, N, 0, 1);
    more[1] = at("p.npy");
    CHECK(score(SNAP, more) == FAILED); /* positions stand still */
    more[1] = at("none.npy");
    CHECK(score(SNAP, more) == FAILED);
    k[17] = NAN;
    save("k.npy", k, N, G, D);
    CHECK(score(SNAP, NULL) == FAILED);
    f = fopen(at("k.npy"), "wb");
    REQUIRE(f != NULL);
    fputs("\x93NUMPY\x01", f);
    fclose(f);
    CHECK(score(SNAP, NULL) == FAILED);
}

int main(int argc, char **argv) {
    tool_begin(argv[0], "score_tool");
    test_begin(argc, argv, "score_tool");
    RUN(scores_are_what_the_formula_says);
    RUN(kept_are_the_best_scores_and_the_window);
    RUN(rows_before_and_after_rope_give_the_same_scores);
    RUN(decoded_rows_and_positions_count);
    RUN(probe_tokens_judge_the_prompt);
    RUN(every_preset_answers);
    RUN(what_cannot_be_done_is_said);
    free(out.text);
    return test_end();
}
