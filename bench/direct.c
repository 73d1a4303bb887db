/* direct.c - the 20-turn experiment of KV-Direct (arXiv 2603.19664): one growing conversation,
   twenty user turns, each answered greedily with a fixed number of tokens.

   First table: bytes after each turn and the highest so far, for the full cache and for kvdirect.
   Second: the share of answer tokens that equal the full cache's at the same token budget, for
   kvdirect and five eviction methods. "forced": every token is the method's choice after the full
   run's tokens so far. "free": the method's own tokens stay in its conversation.

   Build  make build/bench_direct        Run  build/bench_direct [--model F] [--turns N]
   [--tokens N] [--table memory|match] [--csv]. The text is the corpus language of the default model
   (tools/corpus.h). */
#include "bench.h"
#include "../tools/corpus.h"

enum { MAX_TURNS = 64, USER_TOKENS = 40 };
static int n_turns, n_answer;
static kvmem_model model;
static corpus_test test;

static void die(const char *what, const char *why) {
    fprintf(stderr, "bench_direct: %s: %s\n", what, why);
    exit(1);
}
static int greedy(const kvmem_session *s) {
    int i, best = 0;
    for (i = 1; i < model.n_vocab; i++)
        if (s->logits[i] > s->logits[best]) best = i;
    return best;
}
typedef struct talk {
    int *token;          /* (n_turns, n_answer) the answers */
    size_t *live, *peak; /* (n_turns) */
    double seconds;      /* of the answers */
} talk;
static talk talk_new(void) {
    talk t;
    t.token = (int *)calloc((size_t)(n_turns * n_answer), sizeof *t.token);
    t.live = (size_t *)calloc((size_t)n_turns, sizeof *t.live);
    t.peak = (size_t *)calloc((size_t)n_turns, sizeof *t.peak);
    t.seconds = 0;
    if (!t.token || !t.live || !t.peak) die("memory", "none left");
    return t;
}
static void talk_free(talk *t) {
    free(t->token);
    free(t->live);
    free(t->peak);
}
/* The conversation under a recipe. forced: (n_turns, n_answer) tokens that are fed, or NULL. */
static void play(const char *text, const int *forced, talk *t) {
    kvmem_session_config c = kvmem_session_config_default();
    kvmem_recipe recipe;
    kvmem_error e;
    kvmem_session s;
    kvmem_bytes b;
    int turn, i;
    if (kvmem_recipe_parse(&recipe, text, &e)) die(text, e.text);
    c.recipe = &recipe;
    c.threads = bench_threads;
    if (kvmem_session_init(&s, &model, &c)) die(text, s.error.text);
    for (turn = 0; turn < n_turns; turn++) {
        const corpus_prompt *q = test.q + turn % test.n_q;
        double start;
        if (kvmem_session_feed(&s, test.ids + turn * USER_TOKENS, USER_TOKENS, KVMEM_PREFILL, NULL,
                               NULL) ||
            kvmem_session_feed(&s, q->ids, q->n, KVMEM_PROMPT_END, NULL, NULL))
            die(text, s.error.text);
        start = bench_now();
        for (i = 0; i < n_answer; i++) {
            const int at = turn * n_answer + i, own = t->token[at] = greedy(&s);
            if (kvmem_session_feed(&s, forced ? forced + at : &own, 1, KVMEM_DECODE, NULL, NULL))
                die(text, s.error.text);
        }
        t->seconds += bench_now() - start;
        kvmem_session_end_turn(&s);
        kvmem_session_bytes(&s, &b);
        t->live[turn] = b.live.total;
        t->peak[turn] = b.peak.total;
    }
    kvmem_session_free(&s);
}
static double match(const talk *a, const talk *b) {
    int i, same = 0;
    for (i = 0; i < n_turns * n_answer; i++) same += a->token[i] == b->token[i];
    return 100.0 * same / (n_turns * n_answer);
}
/* The recipe with B for @. */
static const char *with_budget(const char *text, int budget, char *out, size_t size) {
    const char *at = strchr(text, '@');
    snprintf(out, size, "%.*s%d%s", (int)(at - text), text, budget, at + 1);
    return out;
}

static const char *const methods[] = {
    "kvdirect budget=@ codec=f16 reduce=recompute(hold=1)",
    "kvdirect budget=@ codec=f16 reduce=recompute(checkpoint=f32,every=1,hold=1)",
    "h2o budget=@ codec=f16",
    "streamingllm budget=@ codec=f16",
    "snapkv budget=@ codec=f16",
    "tova budget=@ codec=f16",
    "window budget=@ codec=f16"
};
static const char *const names[] = {
    "kvdirect, ids", "kvdirect, every layer", "h2o", "streamingllm", "snapkv", "tova", "window"
};
static void match_table(const talk *full) {
    static const int budgets[] = { 32, 64, 128, 256 };
    char text[160];
    int m, i;
    printf(
        "\n## answer tokens equal to the full cache's, %%, at a budget of so many tokens a layer "
        "and KV head\n");
    bench_header("<method              |budget|forced|  free|KiB live|KiB peak|ms a token");
    for (m = 0; m < 7; m++)
        for (i = 0; i < 4; i++) {
            talk forced = talk_new(), own = talk_new();
            with_budget(methods[m], budgets[i], text, sizeof text);
            play(text, full->token, &forced);
            if (m > 1) play(text, NULL, &own);
            bench_row("%s|%d|%.1f|%.1f|%.0f|%.0f|%.2f", names[m], budgets[i], match(full, &forced),
                      match(full, m > 1 ? &own : &forced), (double)forced.live[n_turns - 1] / 1024,
                      (double)forced.peak[n_turns - 1] / 1024,
                      1000 * forced.seconds / (n_turns * n_answer));
            talk_free(&forced);
            talk_free(&own);
        }
}
static void memory_table(const talk *full) {
    static const char *const kinds[3] = {
        "kvdirect budget=@ codec=f16", "kvdirect budget=@ codec=f16 reduce=recompute(hold=1)",
        "kvdirect budget=@ codec=f16 reduce=recompute(checkpoint=f32,every=1)" };
    talk t[3];
    char text[160];
    int i, turn;
    for (i = 0; i < 3; i++) {
        t[i] = talk_new();
        with_budget(kinds[i], 64, text, sizeof text);
        play(text, full->token, &t[i]);
        if (memcmp(t[i].token, full->token, (size_t)(n_turns * n_answer) * sizeof(int)))
            die(text, "its tokens are not those of the full cache");
    }
    printf("\n## KiB after each turn and at most so far; 64 tokens as rows, the others as ids, the "
           "same made again once a turn, and as residual vectors of every layer\n");
    bench_header("turn|tokens|full|  peak|kvdirect|  peak|once a turn|  peak|every layer|  peak");
    for (turn = 0, i = 0; turn < n_turns; turn++) {
        i += USER_TOKENS + test.q[turn % test.n_q].n + n_answer;
        bench_row("%d|%d|%.0f|%.0f|%.0f|%.0f|%.0f|%.0f|%.0f|%.0f", turn + 1, i,
                  (double)full->live[turn] / 1024, (double)full->peak[turn] / 1024,
                  (double)t[0].live[turn] / 1024, (double)t[0].peak[turn] / 1024,
                  (double)t[1].live[turn] / 1024, (double)t[1].peak[turn] / 1024,
                  (double)t[2].live[turn] / 1024, (double)t[2].peak[turn] / 1024);
    }
    printf("# answers, ms a token: full %.2f, kvdirect %.2f, once a turn %.2f, every layer %.2f\n",
           1000 * full->seconds / (n_turns * n_answer), 1000 * t[0].seconds / (n_turns * n_answer),
           1000 * t[1].seconds / (n_turns * n_answer), 1000 * t[2].seconds / (n_turns * n_answer));
    for (i = 0; i < 3; i++) talk_free(&t[i]);
}
int main(int argc, char **argv) {
    const char *path;
    corpus_eval_params p;
    talk full;
    unsigned char *bytes;
    FILE *f;
    long size;
    bench_begin(argc, argv, "direct", 0);
    path = bench_option("--model", "examples/models/tiny.gguf");
    n_turns = atoi(bench_option("--turns", "20"));
    n_answer = atoi(bench_option("--tokens", "12"));
    if (n_turns < 4 || n_turns > MAX_TURNS) die("--turns", "4 to 64");
    if (n_answer < 1 || n_answer > 64) die("--tokens", "1 to 64");
    f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) || (size = ftell(f)) < 1) die(path, "cannot be read");
    rewind(f);
    bytes = (unsigned char *)malloc((size_t)size);
    if (!bytes || fread(bytes, 1, (size_t)size, f) != (size_t)size) die(path, "cannot be read");
    fclose(f);
    if (kvmem_model_open(&model, bytes, (size_t)size, NULL, 0, NULL)) die(path, model.error.text);
    if (model.n_vocab != corpus_n_vocab()) die(path, "not a model of the corpus language");
    memset(&test, 0, sizeof test);
    memset(&p, 0, sizeof p);
    p.suite = CORPUS_CONV;
    p.ctx = n_turns * USER_TOKENS;
    p.questions = n_turns;
    p.seed = 1;
    if (corpus_test_make(&test, &p)) die("corpus", "no conversation");
    full = talk_new();
    play("full codec=f16", NULL, &full);
    printf("# %s: %d turns of %d tokens and a question, %d tokens answered each\n", path, n_turns,
           USER_TOKENS, n_answer);
    if (strcmp(bench_option("--table", "both"), "match")) memory_table(&full);
    if (strcmp(bench_option("--table", "both"), "memory")) match_table(&full);
    talk_free(&full);
    corpus_test_free(&test);
    kvmem_model_close(&model);
    free(bytes);
    return 0;
}
