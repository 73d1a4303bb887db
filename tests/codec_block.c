/* The coded pieces of GGUF's kinds and their rotated forms: bytes, error figures, guards, fast twins. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#include "test.h"
#include "coded.h"
#include "figures.h"
#include "coded_check.h"

static const char *const words[6] = { "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl" };
static const size_t piece[6] = { 34, 18, 20, 22, 24, 18 };

/* The cards' example row: x_j = (((7 j) mod 32) - 16) / 4. */
static void example(float *x) {
    int j;
    for (j = 0; j < 32; j++) x[j] = (float)((7 * j) % 32 - 16) / 4.0f;
}
static void example_codes(kvmem__rows kind, const int *codes, double scale, double min, double error) {
    uint8_t out[34], code[32];
    float x[32], y[32], s, m;
    int j;
    example(x);
    CHECK(kvmem__encode_piece(kind, out, x, 32));
    kvmem__piece_get(kind, code, &s, &m, out, 32);
    kvmem__decode_piece(kind, y, out, 32);
    for (j = 0; j < 8; j++) CHECK((int)code[j] == codes[j]);
    CHECK_NEAR(s, scale, 1e-7);
    CHECK(m == (float)min);
    CHECK_NEAR(figure_ratio(x, y, 1, 32, FIGURE_REL), error, 1e-6);
}
TEST(q4_1_example_of_the_card) {
    const int codes[8] = { 0, 3, 7, 10, 14, 1, 5, 8 };
    uint8_t out[20];
    float x[32];
    example_codes(KVMEM__ROWS_Q4_1, codes, .5166016, -4, .004020);
    example(x);
    kvmem__encode_piece(KVMEM__ROWS_Q4_1, out, x, 32);
    CHECK(out[4] == 0x80 && out[5] == 0xb3 && out[6] == 0xf7 && out[7] == 0x2a);
}
TEST(q5_0_example_of_the_card_is_exact) {
    const int codes[8] = { 0, 7, 14, 21, 28, 3, 10, 17 };
    example_codes(KVMEM__ROWS_Q5_0, codes, .25, 0, 0);
}
TEST(iq4_nl_example_of_the_card) {
    const int codes[8] = { 0, 3, 7, 11, 14, 1, 4, 9 };
    example_codes(KVMEM__ROWS_IQ4_NL, codes, .0311584, 0, .004527);
}
TEST(zero_pieces_have_scale_0_and_decode_to_zeros) {
    int k, j;
    for (k = 3; k < 9; k++) {
        float x[32], y[32];
        uint8_t out[34];
        memset(x, 0, sizeof x);
        CHECK(kvmem__encode_piece((kvmem__rows)k, out, x, 32));
        kvmem__decode_piece((kvmem__rows)k, y, out, 32);
        CHECK((kvmem__le16(out) & 0x7fff) == 0);
        for (j = 0; j < 32; j++) CHECK(y[j] == 0);
        if (k == KVMEM__ROWS_Q4_0) for (j = 2; j < 18; j++) CHECK(out[j] == 0x88);
    }
}
TEST(iq4_nl_takes_the_upper_of_two_equally_near_levels) {
    float x[4] = { -127, -115.5f, 7, 6.9999f };
    uint8_t out[8], code[4];
    float s, m;
    kvmem__encode_piece(KVMEM__ROWS_IQ4_NL, out, x, 4);
    kvmem__piece_get(KVMEM__ROWS_IQ4_NL, code, &s, &m, out, 4);
    CHECK(code[0] == 0 && code[1] == 1 && code[2] == 9 && code[3] == 8);
}
TEST(short_pieces_keep_their_own_halves_and_fifth_bits) {
    float x[17], y[17];
    uint8_t out[24], code[17];
    int j;
    for (j = 0; j < 17; j++) x[j] = (float)(j % 2 ? j : -j); /* q5_0 at scale 1: code = x + 16 */
    CHECK(kvmem__piece_bytes(KVMEM__ROWS_Q5_0, 17) == 2 + 3 + 9 && kvmem__piece_bytes(KVMEM__ROWS_Q5_1, 1) == 6);
    kvmem__encode_piece(KVMEM__ROWS_Q5_0, out, x, 17);
    kvmem__decode_piece(KVMEM__ROWS_Q5_0, y, out, 17);
    CHECK(!memcmp(x, y, sizeof x));
    for (j = 0; j < 17; j++) code[j] = (uint8_t)(x[j] + 16);
    for (j = 0; j < 17; j++) CHECK((out[2 + j / 8] >> j % 8 & 1) == code[j] >> 4);
    for (j = 0; j < 9; j++) CHECK(out[5 + j] == ((code[j] & 15) | (j < 8 ? code[9 + j] & 15 : 0) << 4));
}
TEST(row_bytes_are_ggufs_and_bits_count_everything) {
    int k;
    for (k = 0; k < 6; k++) {
        float x[128];
        coded c;
        memset(x, 0, sizeof x);
        REQUIRE(coded_make(&c, words[k], NULL, 128, x, 1));
        CHECK(c.b.row_bytes == 4 * piece[k] && coded_bits(&c) == (double)piece[k] * 8 / 32);
        coded_free(&c);
    }
}
/* ggml's own bytes. Its iq4_nl tries 15 scales: that the first of them is ours shows in the first codes. */
TEST(pieces_equal_ggmls_bytes) {
    static float in[4096];
    size_t n, np, i;
    unsigned char *raw = test_file("../shared/vectors/ggml_quants/input.f32", &n);
    int k;
    if (!raw) SKIP("../shared/vectors/ggml_quants is absent");
    REQUIRE(n == sizeof in);
    for (i = 0; i < 4096; i++) in[i] = kvmem__lef32(raw + 4 * i);
    free(raw);
    for (k = 0; k < 6; k++) {
        char path[128];
        unsigned char *packed;
        coded c;
        int bad = 0;
        snprintf(path, sizeof path, "../shared/vectors/ggml_quants/%s.packed", words[k]);
        packed = test_file(path, &np);
        REQUIRE(packed && np == 128 * piece[k] && coded_make(&c, words[k], NULL, 128, in, 32));
        for (i = 0; i < np; i++) bad += c.b.rows[i] != packed[i];
        if (k < 5 && bad) FAIL_AT("%s: %d of %d bytes differ", words[k], bad, (int)np);
        if (k == 5) {
            float y[4096], z[4096];
            for (i = 0; i < 128; i++) kvmem__decode_piece(KVMEM__ROWS_IQ4_NL, y + 32 * i, packed + 18 * i, 32);
            free(packed);
            packed = test_file("../shared/vectors/ggml_quants/iq4_nl.dequant.f32", &np);
            REQUIRE(packed && np == sizeof y);
            for (i = 0; i < 4096; i++) CHECK(y[i] == kvmem__lef32(packed + 4 * i));
            coded_decode(&c, z);
            CHECK(figure_ratio(in, z, 1, 4096, FIGURE_REL) < 1.2 * figure_ratio(in, y, 1, 4096, FIGURE_REL) + 1e-9);
        }
        coded_free(&c);
        free(packed);
    }
}
TEST(errors_are_those_of_the_reference_table) {
    static const double plain[6][2][3] = { /* words[], d = 64 and 128, G O S */
        { { 3e-5, 9e-5, 1.1e-4 }, { 3e-5, 1.2e-4, 1.2e-4 } }, { { .0073, .0221, .0273 }, { .0074, .0311, .0298 } },
        { { .0061, .0191, .0133 }, { .0061, .0123, .0118 } }, { { .0018, .0054, .0072 }, { .0018, .0078, .0078 } },
        { { .0014, .0045, .0031 }, { .0014, .0029, .0028 } }, { { .0062, .0124, .0155 }, { .0062, .0169, .0167 } } };
    static const double turned[6][2][3] = {
        { { 3e-5, 3e-5, 2e-5 }, { 3e-5, 3e-5, 3e-5 } }, { { .0074, .0066, .0056 }, { .0074, .0068, .0060 } },
        { { .0061, .0060, .0050 }, { .0061, .0060, .0053 } }, { { .0018, .0016, .0014 }, { .0018, .0017, .0015 } },
        { { .0014, .0014, .0012 }, { .0014, .0014, .0012 } }, { { .0062, .0058, .0054 }, { .0062, .0059, .0056 } } };
    int k, s, i;
    for (k = 0; k < 6; k++) {
        for (s = 0; s < 2; s++) {
            for (i = 0; i < 3; i++) {
                char text[64];
                const double a = figure_error(words[k], "GOS"[i], 64 << s, 0, FIGURE_REL), want = plain[k][s][i];
                double b; /* 3 % and half the last digit printed; the cells of q8_0 have one digit: a whole one */
                if (!(fabs(a - want) <= .03 * want + (k ? .5e-4 : 1e-5)))
                    FAIL_AT("%s on %c, d=%d: %.6f, the card says %g", words[k], "GOS"[i], 64 << s, a, want);
                snprintf(text, sizeof text, "%s(rot=signs,seed=%%d)", words[k]);
                b = figure_mean(text, "GOS"[i], 64 << s, 0, 16);
                if (!(fabs(b - turned[k][s][i]) <= .03 * turned[k][s][i] + (k ? .5e-4 : 1e-5)))
                    FAIL_AT("%s on %c, d=%d: %.6f, the card says %g", text, "GOS"[i], 64 << s, b, turned[k][s][i]);
            }
        }
    }
}
static const char *const paths[3] = { "neon", "avx2", "avx512" };
static const int dims[9] = { 1, 7, 33, 48, 64, 80, 96, 128, 300 };

TEST(hard_inputs_give_finite_results) {
    static const char *const rots[4] = { "", "(rot=had)", "(rot=signs,seed=5)", "(rot=had,block=64)" };
    int k, r, i;
    for (k = 0; k < 6; k++) {
        for (r = 0; r < 4; r++) {
            char text[64];
            snprintf(text, sizeof text, "%s%s", words[k], rots[r]);
            for (i = 0; i < 9; i++) coded_check_bad(text, dims[i]);
        }
    }
}
TEST(constant_rows_stay_constant) {
    int k, j;
    for (k = 0; k < 6; k++) {
        float x[80], y[80];
        coded c;
        for (j = 0; j < 80; j++) x[j] = 3.5f;
        REQUIRE(coded_make(&c, words[k], NULL, 80, x, 1));
        coded_decode(&c, y);
        for (j = 0; j < 80; j++) CHECK_NEAR(y[j], 3.5, .005);
        coded_free(&c);
    }
}
TEST(fast_encoders_code_hard_rows_as_plain_does) {
    static const float put[8] = { NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-42f, -0.0f, 65519.0f };
    int k, i, p, m, j;
    for (k = 0; k < 6; k++) {
        for (m = 0; m < 24; m++) { /* 1 to 3 kinds of bad value, or rows of nothing else */
            enum { D = 96, N = 4 };
            const int every = m % 3 == 0 ? 1 : 7;
            float x[N * D];
            coded a, b;
            char text[64];
            for (j = 0; j < N * D; j++) {
                x[j] = (float)(test_normal() * (m % 2 ? 1 : 1e-3));
                if (j % every == 0) x[j] = put[(m / 3 + (j % 2 ? m : 0)) % 8];
            }
            for (i = 0; i < 2; i++) {
                snprintf(text, sizeof text, "%s(rot=%s)", words[k], i ? "had" : "none");
                REQUIRE(coded_make(&a, text, NULL, D, x, N));
                for (p = 0; p < 3; p++) {
                    if (!coded_make(&b, text, paths[p], D, x, N)) continue;
                    if (memcmp(a.b.rows, b.b.rows, N * a.b.row_bytes)) FAIL_AT("%s on %s, rows %d", text, paths[p], m);
                    coded_free(&b);
                }
                coded_free(&a);
            }
        }
    }
}
TEST(fast_paths_and_cut_rows_equal_plain) {
    int k, i, p;
    check_fast = 2e-4;
    for (k = 0; k < 6; k++) {
        for (i = 0; i < 9; i++) {
            char text[64];
            snprintf(text, sizeof text, "%s(rot=%s)", words[k], i % 2 ? "had" : "signs");
            coded_check_sums(text, NULL, dims[i], 21);
            for (p = 0; p < 3; p++) if (kvmem_backend_cpu(paths[p])) coded_check_twin(text, paths[p], dims[i], 70);
        }
    }
}

/* --- rotation --- */
TEST(turned_queries_and_keys_have_the_same_products) {
    static const char *const texts[4] = { "q8_0(rot=had)", "q8_0(rot=signs)", "q8_0(rot=had,block=32)", "q8_0" };
    const int size_of[4] = { 64, 96, 128, 80 };
    int i, k, j;
    for (i = 0; i < 4; i++) {
        for (k = 0; k < 4; k++) {
            float q[128], x[128], a[128], b[128];
            double s = 0, t = 0, size = 0;
            coded c;
            for (j = 0; j < 128; j++) { q[j] = (float)test_normal(); x[j] = (float)(test_normal() * (j % 9 ? 1 : 9)); }
            REQUIRE(coded_begin(&c, texts[i], NULL, size_of[k]));
            kvmem__rot_row(&c.b, a, q);
            kvmem__rot_row(&c.b, b, x);
            for (j = 0; j < size_of[k]; j++) {
                s += (double)q[j] * (double)x[j];
                t += (double)a[j] * (double)b[j];
                size += fabs((double)q[j] * (double)x[j]);
            }
            CHECK_NEAR(s, t, 1e-5 * size);
            kvmem__rot_finish(&c.b, a, b);
            for (j = 0; j < size_of[k]; j++) CHECK_NEAR(a[j], x[j], 1e-5);
            coded_free(&c);
        }
    }
}
TEST(hadamard_of_one_channel_is_flat_over_its_block) {
    float e[96], y[96];
    coded c;
    int j;
    memset(e, 0, sizeof e);
    e[0] = 1;
    REQUIRE(coded_begin(&c, "q4_0(rot=had)", NULL, 96));
    kvmem__rot_row(&c.b, y, e);
    for (j = 0; j < 96; j++) CHECK_NEAR(y[j], j < 32 ? 1 / sqrt(32.0) : 0, 1e-7); /* 32 is the power of two in 96 */
    coded_free(&c);
}
static int block_of(const char *text, int d) {
    coded c;
    int b = -1;
    if (coded_begin(&c, text, NULL, d)) b = kvmem__rot_block(&c.b);
    coded_free(&c);
    return b;
}
TEST(blocks_follow_the_rules_of_their_makers) {
    /* llama.cpp: 64 must divide d; keys the largest power of two, values 64 */
    CHECK(block_of("q8_0(rot=had,least=64)", 128) == 128 && block_of("q8_0(rot=had,least=64)", 192) == 64);
    CHECK(block_of("q8_0(rot=had,least=64)", 80) == 0 && block_of("q8_0(rot=had,least=64)", 96) == 0);
    CHECK(block_of("q8_0(rot=had,block=64)", 128) == 64 && block_of("q8_0(rot=had,block=64)", 96) == 0);
    /* ik: d itself if it is a power of two */
    CHECK(block_of("q4_0(rot=had)", 256) == 256 && block_of("q4_0(rot=had)", 32) == 32);
    CHECK(block_of("q4_0(rot=had)", 192) == 64 && block_of("q4_0(rot=had)", 7) == 1 && block_of("q4_0", 64) == 0);
}
TEST(values_of_attn_rot_do_not_mix_across_blocks_of_64) {
    float x[128], y[128];
    coded c;
    int j;
    for (j = 0; j < 128; j++) x[j] = j < 64 ? (float)test_normal() : 0.0f;
    REQUIRE(coded_make(&c, "q4_0(rot=had,block=64)", NULL, 128, x, 1));
    coded_decode(&c, y);
    for (j = 0; j < 128; j++) CHECK(j < 64 || y[j] == 0);
    coded_free(&c);
}
TEST(rotation_costs_no_bits_and_seeds_differ) {
    float x[64];
    coded a, b, c;
    int j;
    for (j = 0; j < 64; j++) x[j] = (float)test_normal();
    REQUIRE(coded_make(&a, "q5_1", NULL, 64, x, 1) && coded_make(&b, "q5_1(rot=signs,seed=2)", NULL, 64, x, 1));
    REQUIRE(coded_make(&c, "q5_1(rot=signs,seed=3)", NULL, 64, x, 1));
    CHECK(coded_bits(&a) == coded_bits(&b));
    CHECK(memcmp(b.b.rows, c.b.rows, b.b.row_bytes) && memcmp(a.b.rows, b.b.rows, b.b.row_bytes));
    coded_free(&a); coded_free(&b); coded_free(&c);
}
/* Attention of one layer over n tokens by this recipe; out (n, 4 heads, d). */
static void attend(const char *recipe, const char *path, int n, int d, float *out) {
    kvmem_config cfg = kvmem_config_default();
    const size_t kv = (size_t)(2 * d), q = (size_t)(4 * d);
    float *x = (float *)malloc((size_t)n * (2 * kv + q) * sizeof *x), *v, *qs;
    kvmem_recipe rec;
    kvmem_cache c;
    int i, t;
    memset(&c, 0, sizeof c);
    REQUIRE(x != NULL);
    figure_rows(x, 'O', 2 * n, d, 5); /* keys with offset outliers */
    v = x + (size_t)n * kv;
    figure_rows(v, 'S', 2 * n, d, 6);
    qs = v + (size_t)n * kv;
    for (i = 0; i < n * 4 * d; i++) qs[i] = (float)figure_normal(7, (unsigned long long)i);
    REQUIRE_OK(kvmem_recipe_parse(&rec, recipe, NULL));
    cfg.shape.n_layers = 1;
    cfg.shape.n_heads = 4;
    cfg.shape.n_kv_heads = 2;
    cfg.shape.head_dim = d;
    cfg.recipe = &rec;
    cfg.backend = kvmem_backend_cpu(path);
    cfg.max_block = n;
    REQUIRE_OK(kvmem_cache_init(&c, &cfg));
    for (t = 0; t < n; t += i) {
        i = t == 0 ? n - 8 : 1;
        REQUIRE_OK(kvmem_cache_append(&c, 0, i, x + (size_t)t * kv, v + (size_t)t * kv, NULL));
        REQUIRE_OK(kvmem_cache_attend(&c, 0, i, qs + (size_t)t * q, out + (size_t)t * q));
        REQUIRE_OK(kvmem_cache_commit(&c, t == 0 ? KVMEM_PROMPT_END : KVMEM_DECODE));
    }
    kvmem_cache_free(&c);
    free(x);
}
TEST(presets_turn_what_they_say_and_lower_the_error_of_attention) {
    enum { N = 90, D = 64 };
    static float exact[N * 4 * D], flat[N * 4 * D], out[N * 4 * D];
    static const char *const presets[4] = { "had", "khad", "vhad", "attn_rot" };
    static const int turns[4][2] = { { 1, 1 }, { 1, 0 }, { 0, 1 }, { 1, 1 } };
    double before;
    int i, p;
    for (p = 0; p < 2; p++) {
        const char *path = p ? NULL : "plain"; /* NULL: this machine's best */
        attend("full", path, N, D, exact);
        attend("full codec=q4_0", path, N, D, flat);
        before = figure_ratio(exact, flat, N, 4 * D, FIGURE_REL);
        for (i = 0; i < 4; i++) {
            kvmem_recipe r;
            double e;
            REQUIRE_OK(kvmem_recipe_parse(&r, presets[i], NULL));
            CHECK((r.stage[KVMEM_CODEC_K].par[KVMEM__ROT] > 0) == turns[i][0]);
            CHECK((r.stage[KVMEM_CODEC_V].par[KVMEM__ROT] > 0) == turns[i][1]);
            attend(presets[i], path, N, D, out);
            e = figure_ratio(exact, out, N, 4 * D, FIGURE_REL);
            if (!(e < (i == 1 || i == 2 ? .95 : .6) * before))
                FAIL_AT("%s: error %g, without rotation %g", presets[i], e, before);
        }
        attend("full codec=q8_0(rot=signs)", path, N, D, out);
        CHECK(figure_ratio(exact, out, N, 4 * D, FIGURE_REL) < 1e-3);
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_block");
    RUN(q4_1_example_of_the_card);
    RUN(q5_0_example_of_the_card_is_exact);
    RUN(iq4_nl_example_of_the_card);
    RUN(zero_pieces_have_scale_0_and_decode_to_zeros);
    RUN(iq4_nl_takes_the_upper_of_two_equally_near_levels);
    RUN(short_pieces_keep_their_own_halves_and_fifth_bits);
    RUN(row_bytes_are_ggufs_and_bits_count_everything);
    RUN(pieces_equal_ggmls_bytes);
    RUN(errors_are_those_of_the_reference_table);
    RUN(hard_inputs_give_finite_results);
    RUN(constant_rows_stay_constant);
    RUN(fast_encoders_code_hard_rows_as_plain_does);
    RUN(fast_paths_and_cut_rows_equal_plain);
    RUN(turned_queries_and_keys_have_the_same_products);
    RUN(hadamard_of_one_channel_is_flat_over_its_block);
    RUN(blocks_follow_the_rules_of_their_makers);
    RUN(values_of_attn_rot_do_not_mix_across_blocks_of_64);
    RUN(rotation_costs_no_bits_and_seeds_differ);
    RUN(presets_turn_what_they_say_and_lower_the_error_of_attention);
    return test_end();
}
