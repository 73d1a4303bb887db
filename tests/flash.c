/* Neurons read when they fire: the window's arithmetic, the table's bijection, the file, predictors. */
#include "test.h"

enum { D = 24, F = 96, STEPS = 60 };
typedef struct layer {
    float up[F * D], down[D * F], bias[F], x[STEPS * D];
    uint8_t file[F * 2 * D * 4];
    kvmem_flash_config cfg;
    int reads;
    size_t bytes;
    int fail_at;
} layer;
static int read_bytes(void *user, size_t offset, void *out, size_t size) {
    layer *y = (layer *)user;
    if (offset > sizeof y->file || size > sizeof y->file - offset) return 1;
    if (++y->reads == y->fail_at) return 1;
    memcpy(out, y->file + offset, size);
    y->bytes += size;
    return 0;
}
/* A layer whose bias keeps most neurons at 0, and inputs that change slowly. */
static void layer_make(layer *y, kvmem_type type, int split) {
    int i, t;
    memset(y, 0, sizeof *y);
    for (i = 0; i < F * D; i++) y->up[i] = (float)(test_normal() / 5);
    for (i = 0; i < F * D; i++) y->down[i] = (float)(test_normal() / 5);
    for (i = 0; i < F; i++) y->bias[i] = -1.5f;
    for (i = 0; i < D; i++) y->x[i] = (float)test_normal();
    for (t = 1; t < STEPS; t++)
        for (i = 0; i < D; i++)
            y->x[t * D + i] = 0.9f * y->x[(t - 1) * D + i] + 0.45f * (float)test_normal();
    y->cfg.n_embd = D;
    y->cfg.n_ff = F;
    y->cfg.type = type;
    y->cfg.split = split;
    y->cfg.bias = y->bias;
    y->cfg.window = 3;
    y->cfg.read = read_bytes;
    y->cfg.user = y;
    CHECK_OK(kvmem_flash_write(&y->cfg, y->up, y->down, y->file));
}
/* The whole layer in double precision, with the weights as the file has them if half is 1. */
static void dense(const layer *y, const float *x, int half, double *out) {
    int i, c;
    for (c = 0; c < D; c++) out[c] = 0;
    for (i = 0; i < F; i++) {
        double v = (double)y->bias[i];
        for (c = 0; c < D; c++) {
            const float w = y->up[i * D + c];
            v += (double)(half ? kvmem__f16_to_f32(kvmem__f32_to_f16(w)) : w) * (double)x[c];
        }
        for (c = 0; c < D && v > 0; c++) {
            const float w = y->down[c * F + i];
            out[c] += v * (double)(half ? kvmem__f16_to_f32(kvmem__f32_to_f16(w)) : w);
        }
    }
}
static int bijection(const kvmem_flash *f) {
    int i, here = 0;
    for (i = 0; i < f->n_rows; i++)
        if (f->row_of[f->pointer[i]] != i) return 0;
    for (i = 0; i < f->config.n_ff; i++) here += f->row_of[i] >= 0;
    return here == f->n_rows && here <= f->config.max_rows;
}

TEST(the_example_of_the_card_loads_two_one_one_and_keeps_three) {
    static const int a[3][2] = { { 0, 1 }, { 1, 2 }, { 2, 5 } };
    static const int loads[3] = { 2, 1, 1 };
    kvmem_flash_config cfg;
    kvmem_flash f;
    int t;
    memset(&cfg, 0, sizeof cfg);
    cfg.n_embd = 4;
    cfg.n_ff = 6;
    cfg.window = 2;
    REQUIRE_OK(kvmem_flash_init(&f, &cfg));
    for (t = 0; t < 3; t++) {
        const int64_t before = f.count.loaded;
        CHECK_OK(kvmem_flash_step(&f, a[t], 2, NULL, NULL));
        CHECK(f.count.loaded - before == loads[t] && bijection(&f));
    }
    CHECK(f.n_rows == 3 && f.row_of[0] < 0 && f.row_of[1] >= 0 && f.row_of[2] >= 0 &&
          f.row_of[5] >= 0);
    CHECK(f.count.bytes_read == 4 * 2 * 4 * 4 && f.count.dropped == 1);
    kvmem_flash_free(&f);
}
TEST(an_oracle_gives_the_dense_layer) {
    static const kvmem_type type[3] = { KVMEM_F32, KVMEM_F16, KVMEM_F32 };
    int i, t, c;
    for (i = 0; i < 3; i++) {
        static layer y;
        kvmem_flash f;
        double want[D], worst = 0;
        float out[D];
        int active[F];
        layer_make(&y, type[i], i == 2);
        REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
        for (t = 0; t < STEPS; t++) {
            const float *x = y.x + t * D;
            /* the file's halves may fire where the exact weights do not: a little more is fetched */
            const int n = kvmem_flash_oracle(y.up, y.bias, F, D, x, i == 1 ? -0.02f : 0, active);
            REQUIRE_OK(kvmem_flash_step(&f, active, n, x, out));
            dense(&y, x, i == 1, want);
            for (c = 0; c < D; c++) worst = KVMEM__MAX(worst, fabs(want[c] - (double)out[c]));
            CHECK(bijection(&f));
        }
        CHECK_NEAR(worst, 0, 2e-5);
        CHECK(f.count.loaded < STEPS * F / 4); /* it is sparse */
        CHECK(f.count.bytes_read == y.bytes && f.count.reads == y.reads);
        CHECK(y.bytes == (size_t)f.count.loaded * 2 * D * (i == 1 ? 2 : 4));
        kvmem_flash_free(&f);
    }
}
TEST(bytes_of_a_token_are_what_fires_and_is_not_there) {
    static layer y;
    kvmem_flash f;
    int t, i, j, active[F], last[F];
    float out[D];
    layer_make(&y, KVMEM_F32, 0);
    y.cfg.window = 4;
    REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
    for (i = 0; i < F; i++) last[i] = -1000;
    for (t = 0; t < STEPS; t++) {
        const uint64_t before = f.count.bytes_read;
        const int n = kvmem_flash_oracle(y.up, y.bias, F, D, y.x + t * D, 0, active);
        int fresh = 0, resident = 0;
        for (j = 0; j < n; j++)
            fresh += last[active[j]] <= t - 1 - 4; /* not in the union before t */
        for (j = 0; j < n; j++) last[active[j]] = t;
        for (i = 0; i < F; i++) resident += last[i] > t - 4;
        REQUIRE_OK(kvmem_flash_step(&f, active, n, y.x + t * D, out));
        CHECK(f.count.bytes_read - before == (uint64_t)fresh * 2 * D * 4 && f.n_rows == resident);
    }
    kvmem_flash_free(&f);
}
TEST(without_a_window_each_neuron_is_read_once) {
    static layer y;
    kvmem_flash f;
    int t, i, active[F], fired[F], all = 0;
    float out[D];
    layer_make(&y, KVMEM_F32, 0);
    y.cfg.window = 0;
    memset(fired, 0, sizeof fired);
    REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
    for (t = 0; t < 2 * STEPS; t++) {
        const float *x = y.x + t % STEPS * D;
        const int n = kvmem_flash_oracle(y.up, y.bias, F, D, x, 0, active);
        for (i = 0; i < n; i++) fired[active[i]] = 1;
        REQUIRE_OK(kvmem_flash_step(&f, active, n, x, out));
    }
    for (i = 0; i < F; i++) all += fired[i];
    CHECK(f.count.loaded == all && f.n_rows == all && f.count.dropped == 0);
    kvmem_flash_free(&f);
}
TEST(all_active_reads_the_full_layer_in_few_reads) {
    static layer y;
    kvmem_flash f;
    int active[F], n;
    float out[D];
    layer_make(&y, KVMEM_F32, 0);
    REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
    n = kvmem_flash_oracle(y.up, y.bias, F, D, y.x, -1e30f, active);
    CHECK(n == F);
    REQUIRE_OK(kvmem_flash_step(&f, active, n, y.x, out));
    CHECK(f.count.bytes_read == sizeof y.file && f.count.reads == 2); /* 96 neighbours, 64 a read */
    kvmem_flash_free(&f);
}
TEST(longer_windows_and_bundles_read_less) {
    static layer y;
    uint64_t bytes[6];
    int64_t reads[2];
    int k, t, active[F], split;
    float out[D];
    for (k = 1; k < 6; k++) {
        kvmem_flash f;
        test_state = 0;
        layer_make(&y, KVMEM_F16, 0);
        y.cfg.window = k;
        REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
        for (t = 0; t < STEPS; t++)
            CHECK_OK(kvmem_flash_step(
                &f, active, kvmem_flash_oracle(y.up, y.bias, F, D, y.x + t * D, 0, active),
                y.x + t * D, out));
        bytes[k] = f.count.bytes_read;
        if (k > 1) CHECK(bytes[k] <= bytes[k - 1]);
        kvmem_flash_free(&f);
    }
    CHECK(bytes[5] < bytes[1]);
    for (split = 0; split < 2; split++) {
        kvmem_flash f;
        test_state = 0;
        layer_make(&y, KVMEM_F16, split);
        REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
        for (t = 0; t < STEPS; t++)
            CHECK_OK(kvmem_flash_step(
                &f, active, kvmem_flash_oracle(y.up, y.bias, F, D, y.x + t * D, 0, active),
                y.x + t * D, out));
        reads[split] = f.count.reads;
        kvmem_flash_free(&f);
    }
    CHECK(reads[1] == 2 * reads[0]); /* without bundles every neuron is read in two places */
}
TEST(a_gap_is_read_through_for_fewer_reads_and_more_bytes) {
    static const int active[5] = { 3, 4, 6, 9, 40 };
    static layer y;
    kvmem_flash a, b;
    float one[D], two[D];
    layer_make(&y, KVMEM_F32, 0);
    REQUIRE_OK(kvmem_flash_init(&a, &y.cfg));
    y.cfg.gap = 2;
    REQUIRE_OK(kvmem_flash_init(&b, &y.cfg));
    CHECK_OK(kvmem_flash_step(&a, active, 5, y.x, one));
    CHECK_OK(kvmem_flash_step(&b, active, 5, y.x, two));
    CHECK(a.count.reads == 4 && a.count.bytes_read == 5 * 2 * D * 4);
    CHECK(b.count.reads == 2 && b.count.bytes_read == (7 + 1) * 2 * D * 4);
    CHECK(b.n_rows == 5 && !memcmp(one, two, sizeof one));
    kvmem_flash_free(&a);
    kvmem_flash_free(&b);
}
TEST(a_full_table_drops_early_and_says_so) {
    static layer y;
    kvmem_flash f;
    int t, i, active[F];
    float out[D];
    layer_make(&y, KVMEM_F32, 0);
    y.cfg.window = 50;
    y.cfg.max_rows = 12;
    REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
    for (t = 0; t < 20; t++) {
        for (i = 0; i < 5; i++) active[i] = (t * 7 + i * 3) % 80;
        for (i = 1; i < 5; i++) { /* rising */
            int j = i, v = active[i];
            for (; j > 0 && active[j - 1] > v; j--) active[j] = active[j - 1];
            active[j] = v;
        }
        REQUIRE_OK(kvmem_flash_step(&f, active, 5, y.x, out));
        CHECK(bijection(&f) && f.n_rows <= 12);
        for (i = 0; i < 5; i++) CHECK(f.row_of[active[i]] >= 0);
    }
    CHECK(f.count.early > 0);
    for (i = 0; i < 13; i++) active[i] = i;
    CHECK(kvmem_flash_step(&f, active, 13, y.x, out) == KVMEM_OVER_BUDGET &&
          strstr(f.error.text, "room for 12"));
    kvmem_flash_free(&f);
}
TEST(a_low_rank_predictor_of_full_rank_is_the_oracle_and_a_smaller_one_finds_most) {
    static layer y;
    static float a[D * D], b[F * D];
    int r, t, active[F], right[F], n, m, i, j;
    double found = 0, all = 0;
    layer_make(&y, KVMEM_F32, 0);
    for (r = D; r >= 12; r -= 12) {
        int wrong = 0;
        kvmem_flash_low_rank(a, b, y.up, F, D, r);
        for (t = 0; t < STEPS; t++) {
            const float *x = y.x + t * D;
            m = kvmem_flash_oracle(y.up, y.bias, F, D, x, 1e-4f, right);
            n = kvmem_flash_predict(a, b, y.bias, F, D, r, x, r == D ? 0 : -0.7f, active);
            REQUIRE(n >= 0);
            for (i = j = 0; i < m; i++) {
                while (j < n && active[j] < right[i]) j++;
                wrong += j == n || active[j] != right[i];
                if (r < D) {
                    all++;
                    found += j < n && active[j] == right[i];
                }
            }
        }
        if (r == D) CHECK(wrong == 0);
    }
    CHECK(found > 0.7 * all);
    CHECK(kvmem_flash_predict(a, b, NULL, F, D, 300, y.x, 0, active) == -1);
}
TEST(seconds_follow_the_formula_and_the_best_window_has_the_fewest) {
    kvmem_flash_counts c;
    kvmem_flash_machine m;
    static layer y;
    int count[STEPS], at = 0, t, best, k;
    static int active[STEPS * F];
    double s, fewest = 1e30;
    memset(&c, 0, sizeof c);
    c.reads = 10;
    c.bytes_read = 4000;
    c.bytes_moved = 600;
    c.products = 1000;
    m.latency = 0.1;
    m.flash = 1000;
    m.threads = 2;
    m.memory = 300;
    m.compute = 500;
    CHECK_NEAR(kvmem_flash_seconds(&c, &m), (1.0 + 4) / 2 + 2 + 2, 1e-12);
    layer_make(&y, KVMEM_F32, 0);
    for (t = 0; t < STEPS; t++) {
        count[t] = kvmem_flash_oracle(y.up, y.bias, F, D, y.x + t * D, 0, active + at);
        at += count[t];
    }
    m.latency = 1e-4;
    m.flash = 1e9;
    m.threads = 1;
    m.memory = 1e10;
    m.compute = 1e8;
    best = kvmem_flash_best_window(&y.cfg, &m, active, count, STEPS, 20, &s);
    CHECK(best > 1 && best < 20);
    for (k = 1; k <= 20; k++) { /* each by itself */
        double one;
        kvmem_flash f;
        kvmem_flash_config cfg = y.cfg;
        cfg.window = k;
        cfg.read = NULL;
        REQUIRE_OK(kvmem_flash_init(&f, &cfg));
        for (t = at = 0; t < STEPS; at += count[t++])
            CHECK_OK(kvmem_flash_step(&f, active + at, count[t], NULL, NULL));
        one = kvmem_flash_seconds(&f.count, &m);
        fewest = KVMEM__MIN(fewest, one);
        if (k == best) CHECK(one == s);
        kvmem_flash_free(&f);
    }
    CHECK(s == fewest);
    y.cfg.max_rows = 1;
    CHECK(kvmem_flash_best_window(&y.cfg, &m, active, count, STEPS, 20, &s) ==
          0); /* nothing fits */
}
TEST(a_real_file_is_read_by_a_callback_and_bad_input_is_refused) {
    static layer y;
    kvmem_flash f;
    kvmem_flash_config cfg;
    static const int falling[2] = { 5, 4 }, beyond[1] = { F };
    float out[D];
    int active[3] = { 1, 2, 7 };
    layer_make(&y, KVMEM_F32, 0);
    cfg = y.cfg;
    cfg.n_ff = 0;
    CHECK(kvmem_flash_init(&f, &cfg) == KVMEM_BAD_ARGUMENT && f.error.text[0]);
    cfg = y.cfg;
    cfg.type = KVMEM_Q4_0;
    CHECK(kvmem_flash_init(&f, &cfg) == KVMEM_UNSUPPORTED);
    cfg = y.cfg;
    cfg.max_rows = F + 1;
    CHECK(kvmem_flash_init(&f, &cfg) == KVMEM_BAD_ARGUMENT);
    REQUIRE_OK(kvmem_flash_init(&f, &y.cfg));
    CHECK(kvmem_flash_step(&f, falling, 2, y.x, out) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_flash_step(&f, beyond, 1, y.x, out) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_flash_step(&f, active, 3, NULL, out) == KVMEM_BAD_ARGUMENT);
    y.fail_at =
        2; /* the second read fails: 1 and 2 are here, 7 is not, and the next try brings it */
    CHECK(kvmem_flash_step(&f, active, 3, y.x, out) == KVMEM_IO && strstr(f.error.text, "7"));
    CHECK(bijection(&f) && f.n_rows == 2);
    CHECK_OK(kvmem_flash_step(&f, active, 3, y.x, out));
    CHECK(f.n_rows == 3);
    kvmem_flash_free(&f);
    kvmem_flash_free(NULL);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "flash");
    RUN(the_example_of_the_card_loads_two_one_one_and_keeps_three);
    RUN(an_oracle_gives_the_dense_layer);
    RUN(bytes_of_a_token_are_what_fires_and_is_not_there);
    RUN(without_a_window_each_neuron_is_read_once);
    RUN(all_active_reads_the_full_layer_in_few_reads);
    RUN(longer_windows_and_bundles_read_less);
    RUN(a_gap_is_read_through_for_fewer_reads_and_more_bytes);
    RUN(a_full_table_drops_early_and_says_so);
    RUN(a_low_rank_predictor_of_full_rank_is_the_oracle_and_a_smaller_one_finds_most);
    RUN(seconds_follow_the_formula_and_the_best_window_has_the_fewest);
    RUN(a_real_file_is_read_by_a_callback_and_bad_input_is_refused);
    return test_end();
}
