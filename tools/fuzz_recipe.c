/* Fuzz target: recipe text. Whatever the bytes: parsed or explained, printed text parses back to the
   same recipe, nothing is written past a buffer. */
#define KVMEM_NO_DECODER
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* text only: compiles faster */
#endif
#include "fuzz.h"

static void must_be_equal(const kvmem_recipe *a, const kvmem_recipe *b) {
    int s, p;
    for (s = 0; s < KVMEM_N_STAGES; s++) {
        FUZZ_MUST(a->stage[s].entry == b->stage[s].entry);
        for (p = 0; p < KVMEM_MAX_PARAMS; p++) FUZZ_MUST(a->stage[s].par[p] == b->stage[s].par[p]);
    }
    FUZZ_MUST(a->amount.kind == b->amount.kind && a->amount.value == b->amount.value);
    FUZZ_MUST(a->recent.kind == b->recent.kind && a->recent.value == b->recent.value);
    FUZZ_MUST(a->sink == b->sink && a->when == b->when && a->every == b->every);
    FUZZ_MUST(a->page == b->page && a->seed == b->seed);
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kvmem_recipe r = kvmem_recipe_default(), before = r, again = r;
    kvmem_error err;
    char *text = (char *)malloc(size + 1), out[1024], explained[8192], few[7];
    size_t len;
    kvmem_status s;
    if (!text) return 0;
    if (size) memcpy(text, data, size);
    text[size] = 0;
    memset(&err, 0, sizeof err);
    s = kvmem_recipe_parse(&r, text, &err);
    FUZZ_MUST(s == kvmem_recipe_parse(&again, text, NULL));
    fuzz_explained(s, &err);
    if (s != KVMEM_OK) must_be_equal(&r, &before);
    else {
        FUZZ_MUST(kvmem_recipe_check(&r, &err) == KVMEM_OK);
        len = kvmem_recipe_print(&r, out, sizeof out);
        FUZZ_MUST(len < sizeof out && strlen(out) == len);
        FUZZ_MUST(kvmem_recipe_print(&r, few, sizeof few) == len && memchr(few, 0, sizeof few));
        FUZZ_MUST(kvmem_recipe_print(&r, NULL, 0) == len);
        again = kvmem_recipe_default();
        FUZZ_MUST(kvmem_recipe_parse(&again, out, &err) == KVMEM_OK);
        must_be_equal(&r, &again);
        len = kvmem_recipe_explain(&r, explained, sizeof explained);
        FUZZ_MUST(len < sizeof explained && strlen(explained) == len);
    }
    free(text);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    static const char *const own[] = {
        "snapkv budget=12.5% codec=q8_0", "h2o budget=64 recent=16 sink=4 when=step page=32 seed=7",
        "score=snapkv(window=8,kernel=5,pool=max) budget=uniform(25%) codec.k=q4_0 codec.v=f16",
        "budget=8MiB score=tova", "place=cache window budget=100", "budget=0", "budget=101%", "codec=q9_0",
        "score=random budget=pyramid(64,beta=20) reduce=drop retrieve=all segment=fixed(size=32)" };
    const int n_own = (int)(sizeof own / sizeof *own);
    const kvmem_preset *p = i < n_own ? NULL : kvmem_preset_at(i - n_own);
    const char *text = i < n_own ? own[i] : p ? (i & 1 ? p->text : p->word) : NULL;
    if (!text || strlen(text) > cap) return 0;
    memcpy(out, text, strlen(text));
    return strlen(text);
}
#endif
