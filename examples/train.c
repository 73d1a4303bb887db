/* train.c - shows how a transformer learns, from random weights to a head that looks things up. Random
   letters are said twice; only the second time counts in the loss. At first every letter is a guess; once
   a head looks back to the first time, the loss falls to nearly nothing.

   Build  cc -O2 -fopenmp -I. -o learn examples/train.c -lm
   Run    ./learn
   Lines are the loss (nats a letter) and the gradient's norm; the last one says how many repeated letters
   came out right. Explained in kvmem.h, sections api_train and train; tools/train.c is the real trainer. */
#define KVMEM_TRAIN
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"

enum { LETTERS = 26, HALF = 12, LEN = 2 * HALF - 1, SEQS = 64, STEPS = 120 };

/* One batch: ids predict target, weight says which predictions count. */
static void fill(int step, int *ids, int *target, float *weight) {
    int text[2 * HALF], s, i;
    for (s = 0; s < SEQS; s++) {
        for (i = 0; i < 2 * HALF; i++) {
            static unsigned state = 1; /* any generator will do */
            state = state * 1664525u + 1013904223u + (unsigned)step;
            text[i] = i < HALF ? (int)(state >> 16) % LETTERS : text[i - HALF];
        }
        for (i = 0; i < LEN; i++) {
            ids[s * LEN + i] = text[i];
            target[s * LEN + i] = text[i + 1];
            weight[s * LEN + i] = i >= HALF ? 1.0f : 0.0f;
        }
    }
}
int main(void) {
    static int ids[SEQS * LEN], target[SEQS * LEN];
    static float weight[SEQS * LEN];
    kvmem_train_config c = kvmem_train_config_default();
    kvmem_adamw a = { 0.003f, 0.9f, 0.99f, 1e-8f, 0.01f, 1 }; /* rate, betas, eps, decay, clip */
    kvmem_trainer t;
    kvmem_batch b = { SEQS, LEN, ids, target, weight };
    double loss = 0, norm;
    int step, i, right = 0, asked = 0;
    c.n_vocab = LETTERS;
    c.n_embd = 64;
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = 16;
    c.n_ff = 128;
    c.max_len = LEN;
    c.max_tokens = SEQS * LEN;
    if (kvmem_trainer_init(&t, &c)) { fprintf(stderr, "%s\n", t.error.text); return 1; }
    kvmem_trainer_random(&t, 1);
    for (step = 0; step < STEPS; step++) {
        fill(step, ids, target, weight);
        a.lr = kvmem_cosine(step, 10, STEPS, 0.003f, 0.0003f);
        kvmem_trainer_zero(&t);
        if (kvmem_trainer_run(&t, &b, 1, &loss) || kvmem_trainer_update(&t, &a, &norm)) {
            fprintf(stderr, "%s\n", t.error.text);
            return 1;
        }
        if (step % 20 == 0 || step == STEPS - 1) printf("step %3d  loss %.3f  |gradient| %.3f\n", step, loss, norm);
    }
    for (i = 0; i < SEQS * LEN; i++)
        if (t.best[i] >= 0) { asked++; right += t.best[i] == target[i]; }
    printf("%d of %d repeated letters right, %lu weights\n", right, asked, (unsigned long)t.n_values);
    kvmem_trainer_free(&t);
    return 0;
}
