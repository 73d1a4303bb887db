/* gui_frames.c - shows how the caller's marks reach a method: three screenshots of 8 x 8 patches, told as frames,
   are cut to a third of their entries, once by what the last queries look at and once by GUI-KV as well.

   Build  cc -O2 -I. -o gui_frames examples/gui_frames.c -lm
   Run    ./gui_frames
   A window with a title, a list and a button; between the shots the list's marker moves down and a message comes
   and goes. Each picture is one shot: letters are patches that are kept, dots those that are forgotten. snapkv keeps
   what has votes wherever it is; gui-kv gives up what the last shot shows again and holds what only earlier shots had.
   Explained in kvmem.h, sections api_cache (kvmem_cache_mark, kvmem_cache_hidden) and score_gui. */
#define KVMEM_NO_DECODER
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include <stdio.h>

enum { D = 32, SIDE = 8, PATCHES = SIDE * SIDE, SHOTS = 3, WORDS = 8 };

/* The shots: T title, L list, M its marker, B button, ! a message, space the background. */
static const char *const shot[SHOTS][SIDE] = {
    { "TTTTTTTT", "        ", "MMLLLLLL", "LLLLLLLL", "LLLLLLLL", "LLLLLLLL", "        ", "  BBBB  " },
    { "TTTTTTTT", "        ", "LLLLLLLL", "MMLLLLLL", "LLL!!!!L", "LLL!!!!L", "        ", "  BBBB  " },
    { "TTTTTTTT", "        ", "LLLLLLLL", "LLLLLLLL", "MMLLLLLL", "LLLLLLLL", "        ", "  BBBB  " } };

static float noise(void) { /* uniform in +-1 */
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}
/* The key of a patch or a word: a direction for what it shows, and some noise. */
static void make_key(float *k, char what) {
    int i;
    for (i = 0; i < D; i++) k[i] = .03f * noise();
    k[(unsigned char)what % D] += 1;
}
/* One block: n tokens, the mark they begin with, and how strongly each stands out (the norm of its hidden state). */
static kvmem_status tell(kvmem_cache *c, kvmem_mark_kind kind, const char *what, int n, kvmem_phase phase) {
    float q[PATCHES * D], k[PATCHES * D], out[PATCHES * D], hidden[PATCHES];
    kvmem_status st = kvmem_cache_mark(c, kind);
    int t, i;
    for (t = 0; t < n; t++) {
        make_key(k + t * D, what[t]);
        for (i = 0; i < D; i++) q[t * D + i] = noise();
        q[t * D + '!' % D] += 4; /* the words look for messages, markers and titles, and around */
        q[t * D + 'M' % D] += 3;
        q[t * D + 'T' % D] += 2;
        hidden[t] = what[t] == 'M' || what[t] == 'B' ? 4.0f : what[t] == ' ' ? 0.5f : 1.0f;
    }
    if (!st) st = kvmem_cache_append(c, 0, n, k, k, NULL);
    if (!st) st = kvmem_cache_hidden(c, 0, n, hidden, 1);
    if (!st) st = kvmem_cache_attend(c, 0, n, q, out);
    return st ? st : kvmem_cache_commit(c, phase);
}
static kvmem_status play(kvmem_cache *c) {
    char patch[PATCHES];
    int s, y, x;
    for (s = 0; s < SHOTS; s++) {
        for (y = 0; y < SIDE; y++)
            for (x = 0; x < SIDE; x++) patch[y * SIDE + x] = shot[s][y][x];
        if (tell(c, KVMEM_MARK_FRAME, patch, PATCHES, KVMEM_PREFILL)) return c->error.status;
        if (tell(c, KVMEM_MARK_TEXT, "what now", WORDS, s + 1 < SHOTS ? KVMEM_PREFILL : KVMEM_PROMPT_END))
            return c->error.status;
    }
    return KVMEM_OK;
}
/* The shots side by side, and how many patches of each are left. */
static int draw(const kvmem_cache *c) {
    const int n = kvmem_cache_lane_len(c, 0, 0), span = PATCHES + WORDS;
    char left[SHOTS * (PATCHES + WORDS)] = { 0 };
    int s, y, x, i, count[SHOTS] = { 0 };
    int32_t pos;
    for (i = 0; i < n; i++) {
        if (kvmem_cache_read(c, 0, 0, i, 1, NULL, NULL, &pos)) return 1;
        left[pos] = 1;
        if (pos % span < PATCHES) count[pos / span]++;
    }
    for (y = 0; y < SIDE; y++) {
        for (s = 0; s < SHOTS; s++) {
            printf("   ");
            for (x = 0; x < SIDE; x++) {
                const char what = shot[s][y][x] == ' ' ? '_' : shot[s][y][x];
                putchar(left[s * span + y * SIDE + x] ? what : '.');
            }
        }
        printf("\n");
    }
    printf("   %-11d%-11d%d patches kept\n\n", count[0], count[1], count[2]);
    return 0;
}
int main(void) {
    static const char *const recipes[] = { "snapkv score=snapkv(window=8) budget=33% recent=8", "gui-kv budget=33%" };
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe recipe;
    kvmem_cache cache;
    kvmem_error err;
    int i, bad = 0;
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = D;
    cfg.shape.scale = 1;
    cfg.max_block = PATCHES;
    cfg.recipe = &recipe;
    for (i = 0; i < 2 && !bad; i++) {
        if (kvmem_recipe_parse(&recipe, recipes[i], &err)) { fprintf(stderr, "%s\n", err.text); return 1; }
        printf("%s\n", recipes[i]);
        bad = kvmem_cache_init(&cache, &cfg) || play(&cache) || draw(&cache);
        if (bad) fprintf(stderr, "%s\n", cache.error.text);
        kvmem_cache_free(&cache);
    }
    return bad;
}
