/* evolve.h - a (1 + lambda) evolution strategy over whole numbers with a fixed sum (EvoPress, arXiv
   2410.14649), for the budgets of layers. Include after kvmem.h's implementation.

   The parent b has n numbers in [lo, hi]. A child is the parent after f moves, f the lesser of two
   draws from 1..3: one number goes down by step, another up. All lambda children are judged on a
   small sample, the best on a larger one, and there the parent joins them: a new parent is at least
   as good on the sample that decided. Equal children and copies of the parent are drawn again. */
#ifndef EVOLVE_H
#define EVOLVE_H

enum { EVOLVE_CHILDREN = 64 };
typedef struct evolve_job {
    int n, *b;                /* (n) the start; the best in the end */
    int step, lo, hi;
    int lambda, survivors;    /* children of a generation, those that the larger sample sees */
    int generations;
    uint64_t seed;
    /* lower is better; stage 0: the small sample, 1: the larger. One generation, one sample. */
    double (*fitness)(void *user, const int *b, int stage, int generation);
    void (*tell)(void *user, int generation, double best); /* after each generation; or NULL */
    void *user;
    double best;              /* the parent's fitness in the last generation */
} evolve_job;

/* One move of a number down and another up; 0: there is none. */
static int evolve_move(const evolve_job *e, int *b, uint64_t *draws) {
    int i, down = 0, up = 0, from = -1, to = -1, k;
    for (i = 0; i < e->n; i++) down += b[i] - e->step >= e->lo;
    if (!down) return 0;
    k = (int)(kvmem__random(e->seed, 1, ++*draws, 0) % (uint64_t)down);
    for (i = 0; i < e->n && from < 0; i++)
        if (b[i] - e->step >= e->lo && k-- == 0) from = i;
    for (i = 0; i < e->n; i++) up += i != from && b[i] + e->step <= e->hi;
    if (!up) return 0;
    k = (int)(kvmem__random(e->seed, 2, ++*draws, 0) % (uint64_t)up);
    for (i = 0; i < e->n && to < 0; i++)
        if (i != from && b[i] + e->step <= e->hi && k-- == 0) to = i;
    b[from] -= e->step;
    b[to] += e->step;
    return 1;
}
/* Children of e->b into child (lambda, n); returns their number. */
static int evolve_children(const evolve_job *e, int *child, uint64_t *draws) {
    const size_t size = (size_t)e->n * sizeof *child;
    int have = 0, tries, i;
    for (tries = 0; have < e->lambda && tries < 50 * e->lambda; tries++) {
        int *c = child + have * e->n, f[2], same;
        for (i = 0; i < 2; i++) f[i] = 1 + (int)(kvmem__random(e->seed, 3, ++*draws, 0) % 3);
        memcpy(c, e->b, size);
        for (i = 0; i < (f[0] < f[1] ? f[0] : f[1]); i++)
            if (!evolve_move(e, c, draws)) break;
        same = !memcmp(c, e->b, size);
        for (i = 0; i < have && !same; i++) same = !memcmp(c, child + i * e->n, size);
        have += !same;
    }
    return have;
}
/* Run; child: room for (lambda + 1) * n numbers. */
static void evolve(evolve_job *e, int *child) {
    uint64_t draws = 0;
    int generation, i, k;
    for (generation = 0; generation < e->generations; generation++) {
        double fit[EVOLVE_CHILDREN], best;
        int taken[EVOLVE_CHILDREN], winner = -1;
        const int have = evolve_children(e, child, &draws);
        for (i = 0; i < have; i++) {
            fit[i] = e->fitness(e->user, child + i * e->n, 0, generation);
            taken[i] = 0;
        }
        best = e->fitness(e->user, e->b, 1, generation); /* ties: the parent stays */
        for (k = 0; k < e->survivors && k < have; k++) {
            int at = -1;
            double f;
            for (i = 0; i < have; i++)
                if (!taken[i] && (at < 0 || fit[i] < fit[at])) at = i;
            taken[at] = 1;
            f = e->fitness(e->user, child + at * e->n, 1, generation);
            if (f < best) {
                best = f;
                winner = at;
            }
        }
        if (winner >= 0) memcpy(e->b, child + winner * e->n, (size_t)e->n * sizeof *child);
        e->best = best;
        if (e->tell) e->tell(e->user, generation, best);
    }
}
#endif
