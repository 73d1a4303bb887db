/* What a cache is told of the model beyond rows: hidden states, the output projection, and probe tokens, which look
   at the entries and leave no trace. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "world.h"

/* A user's own score entry that shows what the cache has collected. */
static float told[64], l1_told[64], l2_told[64];
static int n_told;
static kvmem_status spy(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g);
    int t;
    if (v->layer == 1 && g == 1 && n <= 64) {
        n_told = n;
        kvmem_view_hidden(v, g, told);
        KVMEM__TRY(kvmem_view_output(v, 3, l1_told, l2_told));
    }
    for (t = 0; t < n; t++) score[t] = (float)t;
    return KVMEM_OK;
}
static const kvmem_score_entry spy_entry = {
    { "spy", "for tests", "-", NULL, KVMEM_READS_HIDDEN | KVMEM_READS_OUTPUT | KVMEM_READS_LANES }, spy, NULL };

TEST(hidden_norms_follow_their_entries_and_output_norms_are_asked_for_each_head) {
    world w; kvmem_cache c; int t, i;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 60, "score=random budget=30 recent=30 page=4 when=prompt"));
    w.recipe.stage[KVMEM_SCORE].entry = &spy_entry.e;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK_OK(feed(&w, &c, 0, 40, 16, KVMEM_PROMPT_END, NULL));
    CHECK(kvmem_cache_lane_len(&c, 1, 1) == 30);
    CHECK_OK(feed(&w, &c, 40, 50, 1, KVMEM_PROMPT_END, NULL)); /* 10 to 39 have moved to the front */
    CHECK(n_told == 40);
    for (t = 0; t < n_told; t++) {
        const float *q = row_q(&w, 10 + t, 1), *v = row_k(&w, w.v, 10 + t, 1) + 8;
        double a = 0, b = 0, s = 0;
        for (i = 0; i < 32; i++) s += (double)q[i] * (double)q[i];
        for (i = 0; i < 8; i++) { a += fabs((double)v[i]); b += (double)v[i] * (double)v[i]; }
        CHECK_NEAR(told[t], sqrt(s), 1e-5);
        CHECK_NEAR(l1_told[t], 5 * a, 1e-4);
        CHECK_NEAR(l2_told[t], 5 * sqrt(b), 1e-4);
    }
    kvmem_cache_free(&c); world_free(&w);
}
TEST(hidden_states_and_the_output_projection_are_missed_aloud) {
    world w; kvmem_cache c; float x[64], out[64]; int i, l;
    REQUIRE(world_init(&w, 2, 4, 2, 8, 60, "score=random budget=5 when=prompt"));
    memset(x, 0, sizeof x);
    w.recipe.stage[KVMEM_SCORE].entry = &spy_entry.e;
    CHECK_OK(kvmem_cache_init(&c, &w.cfg));
    CHECK(kvmem_cache_hidden(&c, 0, 1, x, 8) == KVMEM_BAD_STATE); /* nothing appended */
    CHECK_OK(kvmem_cache_append(&c, 0, 1, x, x, NULL));
    CHECK(kvmem_cache_attend(&c, 0, 1, x, out) == KVMEM_BAD_STATE && strstr(c.error.text, "kvmem_cache_hidden"));
    CHECK(kvmem_cache_hidden(&c, 0, 2, x, 8) == KVMEM_BAD_STATE);
    CHECK(kvmem_cache_hidden(&c, 0, 1, NULL, 8) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_cache_hidden(&c, 0, 1, x, 0) == KVMEM_BAD_ARGUMENT);
    x[3] = INFINITY;
    CHECK(kvmem_cache_hidden(&c, 0, 1, x, 8) == KVMEM_BAD_VALUE);
    x[3] = 0;
    CHECK_OK(kvmem_cache_hidden(&c, 0, 1, x, 8));
    CHECK_OK(kvmem_cache_attend(&c, 0, 1, x, out));
    CHECK_OK(kvmem_cache_append(&c, 1, 1, x, x, NULL));
    CHECK(kvmem_cache_attend(&c, 1, 1, x, out) == KVMEM_BAD_STATE); /* layer 1 has its own */
    kvmem_cache_clear(&c);
    for (i = 0; i < 10; i++) {
        for (l = 0; l < 2; l++) {
            CHECK_OK(kvmem_cache_append(&c, l, 1, x, x, NULL));
            CHECK_OK(kvmem_cache_hidden(&c, l, 1, x, 8));
            CHECK_OK(kvmem_cache_attend(&c, l, 1, x, out));
        }
        if (i < 9) CHECK_OK(kvmem_cache_commit(&c, KVMEM_PREFILL));
        else CHECK(kvmem_cache_commit(&c, KVMEM_PROMPT_END) == KVMEM_BAD_STATE &&
                   strstr(c.error.text, "kvmem_cache_output"));
    }
    kvmem_cache_free(&c); world_free(&w);
}

/* The model of the examples, or NULL: the tests run elsewhere. */
static unsigned char *tiny_file;
static int tiny_open(kvmem_model *m) {
    size_t size = 0;
    memset(m, 0, sizeof *m);
    tiny_file = test_file("examples/models/tiny.gguf", &size);
    return tiny_file && kvmem_model_open(m, tiny_file, size, NULL, 0, NULL) == KVMEM_OK;
}
static void tiny_close(kvmem_model *m) {
    kvmem_model_close(m);
    free(tiny_file);
}
TEST(a_session_knows_what_its_output_projection_makes_of_a_value) {
    kvmem_model m; kvmem_session s; kvmem_session_config cfg = kvmem_session_config_default();
    if (!tiny_open(&m)) SKIP("no examples/models/tiny.gguf");
    cfg.max_block = 3; /* W_O is decoded three rows at a time */
    CHECK_OK(kvmem_session_init(&s, &m, &cfg));
    {
        const int d = m.head_dim, H = m.n_heads, E = m.n_embd, ids[2] = { 1, 2 };
        float x[2 * 256], l1[2], l2[2], *row = (float *)malloc((size_t)(H * d) * 4);
        int l, h, t, e, i;
        CHECK_OK(kvmem_session_feed(&s, ids, 2, KVMEM_PROMPT_END, NULL, NULL)); /* tells the cache of it */
        REQUIRE(s.cache.output && s.cache.output_user == &s);
        for (i = 0; i < 2 * d; i++) x[i] = (float)test_normal();
        for (l = 0; l < m.n_layers; l += m.n_layers - 1)
            for (h = 0; h < H; h++) {
                double a[2] = { 0, 0 }, b[2] = { 0, 0 };
                CHECK_OK(s.cache.output(&s, l, h, 2, x, l1, l2));
                for (e = 0; e < E; e++) {
                    kvmem__tensor_row(row, &m.layer[l].o, e);
                    for (t = 0; t < 2; t++) {
                        double y = 0;
                        for (i = 0; i < d; i++) y += (double)row[h * d + i] * (double)x[t * d + i];
                        a[t] += fabs(y); b[t] += y * y;
                    }
                }
                for (t = 0; t < 2; t++) {
                    CHECK_NEAR((double)l1[t] / a[t], 1, 1e-5);
                    CHECK_NEAR((double)l2[t] / sqrt(b[t]), 1, 1e-5);
                }
            }
        free(row);
    }
    kvmem_session_free(&s); tiny_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "probe");
    RUN(hidden_norms_follow_their_entries_and_output_norms_are_asked_for_each_head);
    RUN(hidden_states_and_the_output_projection_are_missed_aloud);
    RUN(a_session_knows_what_its_output_projection_makes_of_a_value);
    return test_end();
}
