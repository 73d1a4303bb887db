/* The synthetic language: what tools/corpus.h writes is read again here from the text alone, by other
   code, and every answer must be the one that a careful reader would give. */
#define KVMEM_REFERENCE
#include "test.h"
#include "../tools/corpus.h"

typedef struct memory_file { unsigned char *p; size_t n, cap; } memory_file;
static int memory_write(void *user, const void *p, size_t n) {
    memory_file *f = (memory_file *)user;
    if (f->n + n > f->cap) {
        const size_t cap = (f->n + n) * 2;
        unsigned char *q = (unsigned char *)realloc(f->p, cap);
        if (!q) return 1;
        f->p = q;
        f->cap = cap;
    }
    memcpy(f->p + f->n, p, n);
    f->n += n;
    return 0;
}
/* A file of the vocabulary alone, and the library's tokenizer on it. 0 if all went well. */
static int open_vocabulary(memory_file *f, kvmem_tokenizer *tok) {
    gguf_writer w;
    kvmem_gguf g;
    int bad;
    memset(&w, 0, sizeof w);
    memset(f, 0, sizeof *f);
    memset(tok, 0, sizeof *tok);
    strcpy(w.arch, "llama");
    gguf_kv_str(&w, "general.architecture", "llama");
    corpus_write_vocab(&w);
    gguf_head(&w, memory_write, f);
    bad = w.failed;
    gguf_writer_free(&w);
    bad = bad || kvmem_gguf_open(&g, f->p, f->n, NULL);
    if (bad) return 1;
    bad = kvmem_tokenizer_open_gguf(tok, &g, NULL) != KVMEM_OK;
    if (bad) printf("  %s\n", tok->error.text);
    kvmem_gguf_close(&g);
    return bad;
}

/* Parameters that differ widely from seed to seed; every switch is on somewhere. */
static corpus_params some_params(uint64_t seed) {
    const uint64_t r = kvmem__mix(seed * 2 + 1), q = kvmem__mix(r);
    corpus_params p;
    memset(&p, 0, sizeof p);
    p.length = 16 + (int)(r % 1500);
    p.persons = 1 + (int)(r >> 16 & 63);
    p.attrs = 1 + (int)(r >> 24 & 7);
    p.facts = r >> 32 & 1 ? (int)(r >> 33 & 31) : 0;
    p.filler = r >> 38 & 1 ? (int)((r >> 39 & 1023) % 95) : 0;
    p.ask = (int)((r >> 49 & 1023) % 90);
    p.update = (int)(q & 31);
    p.twice = (int)(q >> 5 & 31);
    p.chain = (int)(q >> 10 & 31);
    p.order = (int)(q >> 15 & 31);
    p.copy = (int)(q >> 20 & 31);
    p.distract = q >> 25 & 1 ? (int)(q >> 26 & 31) : 0;
    p.held_out = (int)(q >> 32 & 1);
    p.seed = seed;
    return p;
}

TEST(the_vocabulary_has_768_tokens_and_no_word_twice) {
    int i, j;
    CHECK(corpus_n_vocab() == 768);
    for (i = 258; i < corpus_n_vocab(); i++) {
        REQUIRE(corpus_word(i) != NULL);
        for (j = 258; j < i; j++)
            if (!strcmp(corpus_word(i), corpus_word(j))) FAIL_AT("twice:%s", corpus_word(i));
    }
}
TEST(text_becomes_the_ids_of_the_stream_and_back) {
    memory_file f;
    kvmem_tokenizer tok;
    kvmem_error error;
    corpus_stream s;
    static char text[40000], again[40000];
    static int ids[40000];
    int k, i;
    memset(&s, 0, sizeof s);
    REQUIRE(open_vocabulary(&f, &tok) == 0);
    CHECK(tok.n_vocab == corpus_n_vocab() && tok.bos == CORPUS_BOS && tok.eos == CORPUS_EOT);
    CHECK(kvmem_token_is_eog(&tok, CORPUS_EOT) && !kvmem_token_is_eog(&tok, CORPUS_BOS));
    for (k = 0; k < 200; k++) {
        const corpus_params p = some_params((uint64_t)k);
        size_t len = 0, back, n = 0;
        REQUIRE(corpus_make(&s, &p) == CORPUS_OK && s.n == p.length);
        for (i = 1; i < s.n; i++) len += (size_t)corpus_text(s.ids[i], text + len);
        REQUIRE_OK(kvmem_tokenize(&tok, text, len, KVMEM_ADD_SPECIAL, ids, 40000, &n, &error));
        REQUIRE(n == (size_t)s.n - 1);
        CHECK(!memcmp(ids, s.ids + 1, n * sizeof *ids));
        back = kvmem_detokenize(&tok, s.ids, (size_t)s.n, 0, again, sizeof again);
        CHECK(back == len && !memcmp(text, again, len));
    }
    corpus_free(&s);
    kvmem_tokenizer_close(&tok);
    free(f.p);
}
TEST(a_word_that_is_not_in_the_vocabulary_becomes_bytes_and_the_special_names_are_tokens) {
    memory_file f;
    kvmem_tokenizer tok;
    kvmem_error error;
    const char *text = "<|bos|>Ana: I saw Zyx.\n";
    static const int want[] = { 0, 260, 2 + ':' };
    char out[64];
    int ids[64];
    size_t len, n = 0;
    REQUIRE(open_vocabulary(&f, &tok) == 0);
    REQUIRE_OK(kvmem_tokenize(&tok, text, strlen(text), KVMEM_PARSE_SPECIAL, ids, 64, &n, &error));
    CHECK(n == 10 && !memcmp(ids, want, sizeof want) && ids[5] == 2 + ' ' && ids[8] == 2 + 'x');
    len = kvmem_detokenize(&tok, ids, n, KVMEM_SHOW_SPECIAL, out, sizeof out);
    CHECK(len == strlen(text) && !memcmp(out, text, len));
    kvmem_tokenizer_close(&tok);
    free(f.p);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "corpus");
    RUN(the_vocabulary_has_768_tokens_and_no_word_twice);
    RUN(text_becomes_the_ids_of_the_stream_and_back);
    RUN(a_word_that_is_not_in_the_vocabulary_becomes_bytes_and_the_special_names_are_tokens);
    return test_end();
}
