/* minimal.c - shows the whole way from a model file to text through a compressed cache.

   Build  cc -O2 -I. -o minimal examples/minimal.c -lm                          (add -fopenmp for threads)
   Run    ./minimal model.gguf "Once upon a time"
          ./minimal stories260K.bin "Once upon a time" tok512.bin           (llama2.c checkpoint)
   Prints the prompt, up to 100 tokens that continue it, and the bytes that the cache took.
   Explained in kvmem.h, sections api_model, api_tokenizer, api_session. The function between the two
   lines below is the sample that README.md and kvmem.h show. */
/* ---- sample ---- */
#include <stdio.h>
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"

static kvmem_model m;
static kvmem_session s;
static kvmem_sampler pick;

// file: GGUF bytes, or a llama2.c model's with its tokenizer.bin as vocab. Returns 0 if all went well.
static int tell(const void *file, size_t size, const void *vocab, size_t vocab_size, const char *text) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe recipe = kvmem_recipe_default();
    int ids[256], i;
    size_t n;
    char out[1024];
    cfg.recipe = &recipe;
    if (kvmem_recipe_parse(&recipe, "snapkv budget=50% codec=q8_0", NULL)
        || kvmem_model_open(&m, file, size, vocab, vocab_size, NULL)
        || kvmem_session_init(&s, &m, &cfg)
        || kvmem_sampler_init(&pick, NULL, m.n_vocab, NULL)
        || kvmem_tokenize(&m.tokenizer, text, strlen(text), KVMEM_ADD_SPECIAL, ids, 256, &n, &m.error)
        || n > 256 || kvmem_session_feed(&s, ids, (int)n, KVMEM_PROMPT_END, NULL, NULL)) return 1;
    for (i = 0; i < 100 && !kvmem_sample(&pick, s.logits, ids); i++) {
        if (kvmem_token_is_eog(&m.tokenizer, ids[0])) break;
        fwrite(out, 1, kvmem_token_bytes(&m.tokenizer, ids[0], 0, out, sizeof out), stdout);
        if (kvmem_session_feed(&s, ids, 1, KVMEM_DECODE, NULL, NULL)) return 1;
    }
    return 0;
}
/* ---- end of sample ---- */

/* The bytes of a file, or NULL. A program for large models would map them instead. */
static void *read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    void *p = NULL;
    long n;
    if (!f) return NULL;
    if (!fseek(f, 0, SEEK_END) && (n = ftell(f)) > 0 && !fseek(f, 0, SEEK_SET) &&
        (p = malloc((size_t)n)) != NULL && fread(p, 1, (size_t)n, f) != (size_t)n) {
        free(p);
        p = NULL;
    }
    *size = p ? (size_t)n : 0;
    fclose(f);
    return p;
}
int main(int argc, char **argv) {
    size_t size = 0, vocab_size = 0;
    void *file = argc > 1 ? read_file(argv[1], &size) : NULL;
    void *vocab = argc > 3 ? read_file(argv[3], &vocab_size) : NULL;
    kvmem_bytes b;
    int bad;
    if (!file || argc < 3 || (argc > 3 && !vocab)) {
        fprintf(stderr, "usage: %s MODEL TEXT [TOKENIZER.bin]\n", argv[0]);
        return 2;
    }
    printf("%s", argv[2]);
    bad = tell(file, size, vocab, vocab_size, argv[2]);
    printf("\n");
    if (bad) fprintf(stderr, "%s\n%s\n", m.error.text, s.error.text);
    else {
        kvmem_cache_bytes(&s.cache, &b);
        printf("%ld tokens: %lu bytes of keys and values; as float16 without a recipe %lu\n", (long)b.tokens,
               (unsigned long)(b.live.k + b.live.v), (unsigned long)b.full);
    }
    kvmem_sampler_free(&pick);
    kvmem_session_free(&s);
    kvmem_model_close(&m);
    free(vocab);
    free(file);
    return bad;
}
