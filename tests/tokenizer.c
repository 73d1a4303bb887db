/* tokenizer.c - vocabularies, pre-tokenizers, special tokens, decoding, chat formats. The vectors are
   ../shared/vectors/tokenizers/X.gguf with X.gguf.inp and X.gguf.out of llama.cpp. */
#include "test.h"

typedef struct file_vocab {
    unsigned char *bytes;
    size_t size;
    kvmem_gguf gguf;
    kvmem_tokenizer t;
} file_vocab;

static int vocab_open(file_vocab *f, const char *name) {
    char path[512];
    memset(f, 0, sizeof *f);
    snprintf(path, sizeof path, "../shared/vectors/tokenizers/ggml-vocab-%s.gguf", name);
    f->bytes = test_file(path, &f->size);
    if (!f->bytes) return 0;
    if (kvmem_gguf_open(&f->gguf, f->bytes, f->size, NULL) != KVMEM_OK) {
        FAIL_AT("%s: %s", path, f->gguf.error.text);
        return 0;
    }
    if (kvmem_tokenizer_open_gguf(&f->t, &f->gguf, NULL) != KVMEM_OK) {
        FAIL_AT("%s: %s", path, f->t.error.text);
        return 0;
    }
    return 1;
}
static void vocab_close(file_vocab *f) {
    kvmem_tokenizer_close(&f->t);
    kvmem_gguf_close(&f->gguf);
    free(f->bytes);
}

static void vectors(const char *name) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[512], *in, *out, *line;
    size_t n;
    int ids[4096], count = 0;
    file_vocab f;
    if (!vocab_open(&f, name)) SKIP("no vectors");
    snprintf(path, sizeof path, "../shared/vectors/tokenizers/ggml-vocab-%s.gguf.inp", name);
    in = (char *)test_file(path, &n);
    snprintf(path, sizeof path, "../shared/vectors/tokenizers/ggml-vocab-%s.gguf.out", name);
    out = (char *)test_file(path, &n);
    REQUIRE(in && out);
    for (line = out; *line && in; count++) {
        char *next = strstr(in, mark), *end;
        const size_t len = next ? (size_t)(next - in) : strlen(in);
        size_t got, i;
        REQUIRE_OK(kvmem_tokenize(&f.t, in, len, 0, ids, 4096, &got, NULL));
        for (i = 0; *line && *line != '\n'; i++) {
            const long want = strtol(line, &end, 10);
            if (end == line) break;
            if (i >= got || ids[i] != want) { FAIL_AT("%s, text %d, token %d", name, count, (int)i); break; }
            for (line = end; *line == ' ';) line++;
        }
        while (*line && *line != '\n') line++;
        if (*line) line++;
        if (i != got) FAIL_AT("%s, text %d: %d tokens, not %d", name, count, (int)got, (int)i);
        in = next ? next + strlen(mark) : NULL;
    }
    CHECK(count > 40);
    free(out);
    vocab_close(&f);
}
TEST(vectors_llama_spm) { vectors("llama-spm"); }
TEST(vectors_phi_3) { vectors("phi-3"); }
TEST(vectors_gpt_2) { vectors("gpt-2"); }
TEST(vectors_deepseek_coder) { vectors("deepseek-coder"); }

int main(int argc, char **argv) {
    test_begin(argc, argv, "tokenizer");
    RUN(vectors_llama_spm);
    RUN(vectors_phi_3);
    RUN(vectors_gpt_2);
    RUN(vectors_deepseek_coder);
    return test_end();
}
