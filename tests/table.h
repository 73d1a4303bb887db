/* table.h - a cache whose scores are a table, so that what must stay is known by counting; and draws. For tests of
   the memory layer; include world.h first. */
#ifndef KVMEM_TABLE_H
#define KVMEM_TABLE_H
static float table[4][4][MAXT]; /* (layer, KV head, position) */
static kvmem_status score_table(const kvmem_view *v, int g, float *out) {
    static int32_t pos[MAXT];
    const int n = kvmem_view_count(v, g);
    int t;
    kvmem_view_positions(v, g, pos);
    for (t = 0; t < n; t++) out[t] = table[v->layer][g][pos[t]];
    return KVMEM_OK;
}
static const kvmem_score_entry table_entry = { { "table", "by hand", "-", NULL, 0 }, score_table, NULL };

static world W;
static kvmem_cache C;
static int draw(int n) { return (int)(test_unit() * n); } /* 0..n-1 */

/* A cache with that recipe and a stream of T tokens; by_table: the recipe's score is replaced by the table; rotates:
   keys come before RoPE. */
static int table_start(const char *text, int L, int H, int G, int T, int by_table, int rotates) {
    if (!world_init(&W, L, H, G, 8, T, text)) { FAIL_AT("%s", text); return 0; }
    if (by_table) {
        W.recipe.stage[KVMEM_SCORE].entry = &table_entry.e;
        memset(W.recipe.stage[KVMEM_SCORE].par, 0, sizeof W.recipe.stage[KVMEM_SCORE].par);
    }
    if (rotates) W.cfg.shape.rope = W.rope;
    if (kvmem_cache_init(&C, &W.cfg) != KVMEM_OK) { FAIL_AT("%s: %s", text, C.error.text); return 0; }
    return 1;
}
static void stop(void) {
    kvmem_cache_free(&C);
    world_free(&W);
}
#endif
