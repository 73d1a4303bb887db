/* Whole models against another implementation: the logits that ik_llama.cpp gives for random
   models of every architecture and feature (tests/golden/peer_logits.h says how they were made).
   The models are made here again by tools/mkgguf.c. */
#include "test.h"
#define MKGGUF_NO_MAIN
#include "../tools/mkgguf.c"
#include "golden/peer_logits.h"

/* Logits have a deviation of about 3. Most cases agree to 1e-4; gemma's 26 and 46 layers to 2e-3
   (float16 values, a tabulated GELU in the peer). */
#define PEER_TOLERANCE 4e-3
#define PEER_CASES ((int)(sizeof peer_case / sizeof *peer_case))
#define PEER_IDS ((int)(sizeof peer_ids / sizeof *peer_ids))
#define PEER_ROWS ((int)(sizeof peer_at / sizeof *peer_at))

typedef struct peer_file { unsigned char *p; size_t n, cap; } peer_file;
static int peer_write(void *user, const void *p, size_t n) {
    peer_file *f = (peer_file *)user;
    if (f->n + n > f->cap) {
        unsigned char *q = (unsigned char *)realloc(f->p, (f->n + n) * 2);
        if (!q) return 1;
        f->p = q;
        f->cap = (f->n + n) * 2;
    }
    memcpy(f->p + f->n, p, n);
    f->n += n;
    return 0;
}
/* Largest difference of the kept logits of one case. */
typedef struct peer_check { int number, n_vocab; double worst; } peer_check;
static int peer_row(void *user, int index, const float *logits) {
    peer_check *c = (peer_check *)user;
    int r, i;
    for (r = 0; r < PEER_ROWS; r++) {
        if (peer_at[r] != index) continue;
        for (i = 0; i < c->n_vocab; i += 8) {
            const float theirs = peer_case[c->number].logit[r * 40 + i / 8];
            const double e = fabs((double)logits[i] - (double)theirs);
            if (!(e <= c->worst)) c->worst = e;
        }
    }
    return 0;
}
static double peer_worst(int number, const char *backend, int block) {
    peer_file f = { NULL, 0, 0 };
    kvmem_model m;
    kvmem_session s;
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe recipe;
    peer_check c;
    memset(&s, 0, sizeof s);
    c.number = number;
    c.worst = -1;
    cfg.n_ctx = 256;
    cfg.max_block = block;
    cfg.backend = kvmem_backend_cpu(backend);
    cfg.recipe = &recipe;
    if (mkgguf(peer_case[number].args, peer_write, &f) ||
        kvmem_recipe_parse(&recipe, "full codec.k=f32 codec.v=f16", NULL))
        FAIL_AT("%s: not made", peer_case[number].args);
    else if (kvmem_model_open(&m, f.p, f.n, NULL, 0, NULL))
        FAIL_AT("%s: %s", peer_case[number].args, m.error.text);
    else {
        c.n_vocab = m.n_vocab;
        if (m.n_vocab != 320 || kvmem_session_init(&s, &m, &cfg) ||
            kvmem_session_feed(&s, peer_ids, PEER_IDS, KVMEM_PROMPT_END, peer_row, &c))
            FAIL_AT("%s: %s", peer_case[number].args, s.error.text);
        kvmem_session_free(&s);
        kvmem_model_close(&m);
    }
    free(f.p);
    return c.worst;
}
static void peer_all(const char *backend, int block, double tolerance) {
    int i;
    for (i = 0; i < PEER_CASES; i++) {
        const double worst = peer_worst(i, backend, block);
        if (!(worst >= 0 && worst <= tolerance))
            FAIL_AT("%s: logits differ by %g", peer_case[i].args, worst);
    }
}
TEST(every_architecture_agrees_with_the_peer_on_the_plain_path) {
    peer_all("plain", 0, PEER_TOLERANCE);
}
TEST(every_architecture_agrees_with_the_peer_on_the_fastest_path) {
    peer_all(NULL, 0, PEER_TOLERANCE);
}
TEST(every_architecture_agrees_with_the_peer_in_blocks_of_five) {
    peer_all(NULL, 5, PEER_TOLERANCE);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "peer");
    RUN(every_architecture_agrees_with_the_peer_on_the_plain_path);
    RUN(every_architecture_agrees_with_the_peer_on_the_fastest_path);
    RUN(every_architecture_agrees_with_the_peer_in_blocks_of_five);
    return test_end();
}
