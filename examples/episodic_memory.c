/* episodic_memory.c - shows an episodic memory: a talk of any length is kept as episodes, in a file or in RAM, and a
   question brings back only those it needs.
   Build  cc -O2 -I. -o episodic_memory examples/episodic_memory.c -lm                  (add -fopenmp for threads)
   Run    ./episodic_memory                                           in the repository: its own talk, kept in RAM
          ./episodic_memory model.gguf talk.txt "Ben: what is the pet of Leo?" talk.kvm    later - instead of talk.txt
   Each episode is read once, by itself; its keys are stored before RoPE, so that they can stand anywhere. BM25 finds
   the best episodes for a question, they are packed into a small cache, and the model answers from there. Explained
   in kvmem.h, sections api_store and api_recall; `./kvmem memory` is the whole tool. */
#include <stdio.h>
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
enum { LEAST = 32, MOST = 512, TOP = 16, EPISODES = 4096 };
static kvmem_model m;
static kvmem_session s;
static kvmem_store store;
static int ids[MOST];
static int fail(const char *what) {
    fprintf(stderr, "%s: %s%s%s\n", what, m.error.text, s.error.text, store.error.text);
    return 1;
}
static char *read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    char *p = (char *)malloc((size_t)64 << 20); /* a program for large models would map them */
    *size = f && p ? fread(p, 1, (size_t)64 << 20, f) : 0;
    if (f) fclose(f);
    return p;
}
/* The begin token alone is in the cache: every episode and every answer begins behind it. */
static int begin(void) {
    kvmem_session_clear(&s);
    return m.tokenizer.bos >= 0 && kvmem_session_feed(&s, &m.tokenizer.bos, 1, KVMEM_PREFILL, NULL, NULL);
}
/* Whole lines of at least LEAST tokens become an episode. */
static int remember(const char *text, size_t size) {
    size_t at, end, n;
    kvmem_content c;
    memset(&c, 0, sizeof c);
    for (at = end = 0; at < size; at = end) {
        do {
            while (end < size && text[end] != '\n') end++;
            end += end < size;
            if (kvmem_tokenize(&m.tokenizer, text + at, end - at, 0, ids, MOST, &n, &m.error)) return fail("text");
        } while (end < size && n < LEAST);
        c.ids = ids;
        c.n_ids = n > MOST ? MOST : (int)n; /* of a longer line the beginning */
        c.text = text + at, c.text_bytes = end - at;
        if (begin() || kvmem_session_feed(&s, ids, c.n_ids, KVMEM_PREFILL, NULL, NULL) ||
            kvmem_store_add(&store, NULL, &c, &s.cache, s.cache.next_pos - c.n_ids, s.cache.next_pos, NULL))
            return fail("episode");
    }
    return 0;
}
/* Marks the TOP best episodes by BM25: chosen (store.n). */
static int recall(const int *question, int n_question, unsigned char *chosen) {
    static float score[EPISODES];
    kvmem_bag bag; kvmem_episode e;
    int i, n, pass;
    if (store.n > EPISODES || kvmem_bag_init(&bag, 1 << 16, NULL)) return fail("too many episodes, or no memory");
    for (pass = 0; pass < 2; pass++) /* first how rare tokens are, then the scores */
        for (i = 0; i < store.n; i++) {
            if (kvmem_store_at(&store, i, &e) || kvmem_store_ids(&store, e.id, 0, ids, MOST, &n)) return fail("ids");
            if (!pass) kvmem_bag_count(&bag, ids, n, 1);
            else score[i] = (float)kvmem_bag_score(&bag, ids, n, question, n_question);
        }
    for (pass = 0; pass < TOP && pass < store.n; pass++) {
        for (n = 0, i = 1; i < store.n; i++) if (score[i] > score[n]) n = i;
        if (score[n] > 0) chosen[n] = 1;
        score[n] = 0;
    }
    kvmem_bag_free(&bag);
    return 0;
}
static int answer(const char *text) {
    static unsigned char chosen[EPISODES];
    int question[64], i, j, id;
    char out[1024]; size_t n, tokens = 0;
    kvmem_bytes b; kvmem_episode e;
    if (kvmem_tokenize(&m.tokenizer, text, strlen(text), 0, question, 64, &n, &m.error) || n > 64) return fail("text");
    if (recall(question, (int)n, chosen) || begin()) return 1;
    for (i = 0; i < store.n; i++) { /* in the order of telling */
        if (kvmem_store_at(&store, i, &e)) return fail("episode");
        if (chosen[i] && kvmem_store_load(&store, e.id, &s.cache, KVMEM_STORE_PACKED, NULL)) return fail("load");
        if (chosen[i]) printf("from episode %lu, %d tokens\n", (unsigned long)e.id, e.n);
        tokens += (size_t)e.n;
    }
    if (kvmem_session_feed(&s, question, (int)n, KVMEM_PROMPT_END, NULL, NULL)) return fail("question");
    for (i = 0, printf("%s", text); i < 16; i++) {
        for (id = 0, j = 1; j < m.n_vocab; j++) if (s.logits[j] > s.logits[id]) id = j;
        n = kvmem_token_bytes(&m.tokenizer, id, 0, out, sizeof out);
        fwrite(out, 1, n, stdout);
        if (kvmem_token_is_eog(&m.tokenizer, id) || memchr(out, '\n', n)) break;
        if (kvmem_session_feed(&s, &id, 1, KVMEM_DECODE, NULL, NULL)) return fail("answer");
    }
    kvmem_cache_bytes(&s.cache, &b);
    tokens *= 4 * (size_t)(m.n_layers * m.n_kv_heads * m.head_dim);
    printf("working set %lu bytes; all %d episodes would take %lu as float16\n", (unsigned long)b.live.total, store.n,
           (unsigned long)tokens);
    return 0;
}
int main(int argc, char **argv) {
    static const char talk[] = "Ana: the pet of Leo is cat.\nBen: we fried the garlic near the oven.\n"
        "Dan: the city of Mia is Paris.\nEli: I think the soup was salty.\nFay: the car of Zoe is Volvo.\n"
        "Gus: they tasted our sauce again.\nIvy: now the city of Mia is Rome.\nAna: we chopped the garlic.\n";
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_store_options options; size_t size, more = 0;
    char *file = read_file(argc > 1 ? argv[1] : "examples/models/tiny.gguf", &size), *text;
    int bad;
    cfg.max_bytes = 8 << 20; /* the working set never takes more */
    if (kvmem_model_open(&m, file, size, NULL, 0, NULL) || kvmem_session_init(&s, &m, &cfg)) return fail("model");
    options = kvmem_store_options_of(&s.cache);
    if (kvmem_store_open(&store, argc > 4 ? argv[4] : NULL, &options)) return fail("store");
    text = argc > 2 ? read_file(argv[2], &more) : NULL; /* of -: nothing */
    bad = (argc > 2 ? remember(text, more) : remember(talk, sizeof talk - 1)) ||
          answer(argc > 3 ? argv[3] : "Ben: what is the city of Mia?");
    kvmem_store_close(&store);
    kvmem_session_free(&s), kvmem_model_close(&m);
    free(text), free(file);
    return bad;
}
