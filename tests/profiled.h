/* profiled.h - a profile of any shape with every row that a preset may ask for, seeded; for tests that run all
   presets. Include test.h first. */
#ifndef KVMEM_PROFILED_H
#define KVMEM_PROFILED_H
typedef struct profiled {
    kvmem_profile p;
    kvmem_profile_row row[16];
    float *value;
} profiled;

static KVMEM__UNUSED void profiled_make(profiled *f, int L, int H, int G, int d) {
    static const struct { const char *name; kvmem_per per; } rows[] = {
        { "duo", KVMEM_PER_KV_HEAD }, { "rlkv", KVMEM_PER_KV_HEAD }, { "induction", KVMEM_PER_KV_HEAD },
        { "echo", KVMEM_PER_KV_HEAD }, { "retrieval", KVMEM_PER_HEAD }, { "semantic", KVMEM_PER_HEAD },
        { "keysim", KVMEM_PER_LAYER }, { "error", KVMEM_PER_LAYER }, { "evo", KVMEM_PER_LAYER },
        { "lukv", KVMEM_PER_CURVE } };
    const int n = (int)(sizeof rows / sizeof *rows);
    float *x = (float *)malloc((size_t)L * (size_t)(H + G * 9) * (size_t)n * sizeof *x);
    int i, j;
    memset(f, 0, sizeof *f);
    f->value = x;
    f->p.n_layers = L; f->p.n_heads = H; f->p.n_kv_heads = G; f->p.head_dim = d;
    f->p.row = f->row;
    f->p.n_rows = n;
    for (i = 0; i < n; i++) {
        const int points = rows[i].per == KVMEM_PER_CURVE ? 9 : 1;
        const int count = L * (rows[i].per == KVMEM_PER_LAYER ? 1 : rows[i].per == KVMEM_PER_HEAD ? H : G * points);
        strcpy(f->row[i].name, rows[i].name);
        f->row[i].per = rows[i].per;
        f->row[i].points = points;
        f->row[i].value = x;
        for (j = 0; j < count; j++)
            x[j] = points > 1 ? (float)(j / (L * G) + 1) / 10
                              : (float)kvmem__unit(kvmem__random(77, (uint64_t)i, (uint64_t)j, 0));
        x += count;
    }
}
static KVMEM__UNUSED void profiled_free(profiled *f) { free(f->value); }
/* Hand the profile to every stage of a recipe that reads one and names none. Returns their number. */
static KVMEM__UNUSED int profiled_give(kvmem_recipe *r, profiled *f) {
    int s, n = 0;
    for (s = 0; s < KVMEM_N_STAGES; s++)
        if ((r->stage[s].entry->reads & KVMEM_READS_PROFILE) && !*r->stage[s].text && !*r->profile) {
            r->stage[s].user = &f->p;
            n++;
        }
    return n;
}
#endif
