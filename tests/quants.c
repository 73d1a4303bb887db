/* Tensor types against ggml's own bytes and floats, the worked example of the card, bad input. */
#include "test.h"

static const kvmem_type all_types[13] = { KVMEM_F32, KVMEM_F16, KVMEM_BF16, KVMEM_Q8_0, KVMEM_Q4_0,
    KVMEM_Q4_1, KVMEM_Q5_0, KVMEM_Q5_1, KVMEM_Q2_K, KVMEM_Q3_K, KVMEM_Q4_K, KVMEM_Q5_K, KVMEM_Q6_K };

static unsigned char *vector_file(kvmem_type type, const char *end, size_t *size) {
    char path[128];
    sprintf(path, "../shared/vectors/ggml_quants/%s.%s", kvmem_type_name(type), end);
    return test_file(path, size);
}
TEST(types_have_ggml_names_and_block_sizes) {
    static const int block[13] = { 1, 1, 1, 32, 32, 32, 32, 32, 256, 256, 256, 256, 256 };
    static const size_t bytes[13] = { 4, 2, 2, 34, 18, 20, 22, 24, 84, 110, 144, 176, 210 };
    size_t size;
    int i;
    for (i = 0; i < 13; i++) {
        CHECK(kvmem_type_block(all_types[i], &size) == block[i]);
        CHECK(size == bytes[i]);
    }
    CHECK(!strcmp(kvmem_type_name(KVMEM_Q4_K), "q4_K") && !strcmp(kvmem_type_name(KVMEM_BF16), "bf16"));
    CHECK(kvmem_type_name((kvmem_type)4) == NULL && kvmem_type_block((kvmem_type)4, &size) == 0 && size == 0);
    CHECK(kvmem_type_block(KVMEM_Q8_SPLIT, NULL) == 0);
}
TEST(dequantize_equals_ggml_bit_for_bit) {
    static float out[4096];
    int i, j, bad;
    for (i = 1; i < 13; i++) {
        size_t np, nd;
        unsigned char *packed = vector_file(all_types[i], "packed", &np);
        unsigned char *want = vector_file(all_types[i], "dequant.f32", &nd);
        if (!packed || !want) { free(packed); free(want); SKIP("../shared/vectors/ggml_quants is absent"); }
        if (nd == sizeof out && kvmem_dequantize(all_types[i], out, packed, 4096) == KVMEM_OK) {
            for (j = bad = 0; j < 4096; j++) {
                uint32_t u;
                memcpy(&u, &out[j], 4);
                bad += u != kvmem__le32(want + 4 * j);
            }
            if (bad) FAIL_AT("%s: %d of 4096 values differ", kvmem_type_name(all_types[i]), bad);
        } else FAIL_AT("%s", kvmem_type_name(all_types[i]));
        free(packed); free(want);
    }
}
TEST(quantize_equals_ggml_byte_for_byte) {
    static float in[4096];
    static unsigned char out[4096 * 4];
    size_t n, np, j;
    unsigned char *raw = test_file("../shared/vectors/ggml_quants/input.f32", &n);
    int i;
    if (!raw) SKIP("../shared/vectors/ggml_quants is absent");
    REQUIRE(n == sizeof in);
    for (j = 0; j < 4096; j++) in[j] = kvmem__lef32(raw + 4 * j);
    free(raw);
    for (i = 1; i < 8; i++) {
        unsigned char *packed = vector_file(all_types[i], "packed", &np);
        int bad = 0;
        REQUIRE(packed != NULL);
        CHECK_OK(kvmem_quantize(all_types[i], out, in, 4096));
        for (j = 0; j < np; j++) bad += out[j] != packed[j];
        if (bad) FAIL_AT("%s: %d of %d bytes differ", kvmem_type_name(all_types[i]), bad, (int)np);
        free(packed);
    }
}
/* The card's example: x_j = (((7 j) mod 32) - 16) / 4. */
static double card_error(kvmem_type type, unsigned char *out) {
    float x[32], y[32];
    double e = 0, s = 0;
    int j;
    for (j = 0; j < 32; j++) x[j] = (float)((7 * j) % 32 - 16) / 4;
    if (kvmem_quantize(type, out, x, 32) || kvmem_dequantize(type, y, out, 32)) return -1;
    for (j = 0; j < 32; j++) { e += (double)((x[j] - y[j]) * (x[j] - y[j])); s += (double)(x[j] * x[j]); }
    return e / s;
}
TEST(card_example_of_q4_0_has_its_bytes_and_error) {
    unsigned char b[34];
    CHECK_NEAR(card_error(KVMEM_Q4_0, b), .005848, 5e-7);
    CHECK(kvmem__f16_to_f32(kvmem__le16(b)) == 0.5f);
    CHECK(b[2] == 0x80 && b[3] == 0xc4 && b[4] == 0xf7 && b[5] == 0x3b);
}
TEST(card_example_of_q4_1_has_its_bytes_and_error) {
    unsigned char b[34];
    CHECK_NEAR(card_error(KVMEM_Q4_1, b), .004020, 5e-7);
    CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(b)), .5166016, 1e-7);
    CHECK(kvmem__f16_to_f32(kvmem__le16(b + 2)) == -4);
    CHECK(b[4] == 0x80 && b[5] == 0xb3 && b[6] == 0xf7 && b[7] == 0x2a);
}
TEST(card_example_of_q5_0_is_exact) {
    static const int want[8] = { 0, 7, 14, 21, 28, 3, 10, 17 };
    unsigned char b[34], code[32];
    float s[2], m[2];
    int j;
    CHECK(card_error(KVMEM_Q5_0, b) == 0);
    kvmem__unpack(KVMEM_Q5_0, b, NULL, 0, 0, 32, code, s, m);
    for (j = 0; j < 8; j++) CHECK(code[j] == want[j]);
    CHECK(s[0] == 0.25f);
}
TEST(card_example_of_q8_0_has_its_codes) {
    static const int want[8] = { -127, -71, -16, 40, 95, -103, -48, 8 };
    unsigned char b[34];
    int j;
    CHECK_NEAR(card_error(KVMEM_Q8_0, b), .000016, 1e-6);
    CHECK_NEAR(kvmem__f16_to_f32(kvmem__le16(b)), .0314941, 1e-7);
    for (j = 0; j < 8; j++) CHECK((signed char)b[2 + j] == want[j]);
}
TEST(a_block_of_zeros_decodes_to_zeros) {
    int i, j;
    for (i = 3; i < 8; i++) {
        float x[32] = { 0 }, y[32];
        unsigned char b[34];
        CHECK_OK(kvmem_quantize(all_types[i], b, x, 32));
        CHECK_OK(kvmem_dequantize(all_types[i], y, b, 32));
        for (j = 0; j < 32; j++) CHECK(y[j] == 0);
        if (all_types[i] == KVMEM_Q4_0) CHECK(b[0] == 0 && (b[1] & 127) == 0 && b[2] == 0x88);
        for (j = 0; j < 32; j++) x[j] = 1e-42f; /* the scale's reciprocal is infinite */
        CHECK_OK(kvmem_quantize(all_types[i], b, x, 32));
        CHECK_OK(kvmem_dequantize(all_types[i], y, b, 32));
        for (j = 0; j < 32; j++) CHECK(y[j] == 0);
    }
}
TEST(values_that_are_not_finite_or_too_large_are_refused) {
    float x[32] = { 0 };
    unsigned char b[34];
    int i;
    for (i = 3; i < 8; i++) {
        x[5] = NAN;
        CHECK(kvmem_quantize(all_types[i], b, x, 32) == KVMEM_BAD_VALUE);
        x[5] = -INFINITY;
        CHECK(kvmem_quantize(all_types[i], b, x, 32) == KVMEM_BAD_VALUE);
        x[5] = -1e30f;
        CHECK(kvmem_quantize(all_types[i], b, x, 32) == KVMEM_BAD_VALUE);
    }
}
TEST(lengths_must_fill_blocks_and_types_must_be_known) {
    float x[64] = { 0 };
    unsigned char b[300] = { 0 };
    CHECK(kvmem_quantize(KVMEM_Q8_0, b, x, 33) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_dequantize(KVMEM_Q8_0, x, b, 31) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_dequantize(KVMEM_Q6_K, x, b, 32) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_dequantize((kvmem_type)9, x, b, 32) == KVMEM_UNSUPPORTED);
    CHECK(kvmem_dequantize(KVMEM_Q8_SPLIT, x, b, 32) == KVMEM_UNSUPPORTED);
    CHECK(kvmem_quantize(KVMEM_Q4_K, b, x, 0) == KVMEM_UNSUPPORTED);
    CHECK_OK(kvmem_quantize(KVMEM_Q8_0, NULL, NULL, 0));
    CHECK_OK(kvmem_dequantize(KVMEM_Q8_0, NULL, NULL, 0));
}
TEST(tensor_row_finds_rows_of_block_and_split_types) {
    unsigned char data[3 * 34 * 2], split[3 * 24], scales[3 * 3 * 4];
    float x[192], row[64], want[64];
    kvmem_tensor w;
    int i, r;
    for (i = 0; i < 192; i++) x[i] = (float)test_normal();
    memset(&w, 0, sizeof w);
    w.type = KVMEM_Q8_0; w.n_dims = 2; w.ne[0] = 64; w.ne[1] = 3; w.ne[2] = w.ne[3] = 1; w.data = data;
    REQUIRE_OK(kvmem_quantize(KVMEM_Q8_0, data, x, 192));
    for (r = 0; r < 3; r++) {
        kvmem__tensor_row(row, &w, r);
        REQUIRE_OK(kvmem_dequantize(KVMEM_Q8_0, want, data + r * 68, 64));
        CHECK(!memcmp(row, want, sizeof row));
    }
    for (i = 0; i < 72; i++) split[i] = (unsigned char)(i * 37);
    for (i = 0; i < 9; i++) kvmem__putf32(scales + 4 * i, 0.25f * (float)(i + 1));
    w.type = KVMEM_Q8_SPLIT; w.ne[0] = 24; w.data = split; w.scales = scales; w.group = 8;
    for (r = 0; r < 3; r++) {
        kvmem__tensor_row(row, &w, r);
        for (i = 0; i < 24; i++)
            CHECK(row[i] == (float)(signed char)split[r * 24 + i] * 0.25f * (float)(r * 3 + i / 8 + 1));
    }
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "quants");
    RUN(types_have_ggml_names_and_block_sizes);
    RUN(dequantize_equals_ggml_bit_for_bit);
    RUN(quantize_equals_ggml_byte_for_byte);
    RUN(card_example_of_q4_0_has_its_bytes_and_error);
    RUN(card_example_of_q4_1_has_its_bytes_and_error);
    RUN(card_example_of_q5_0_is_exact);
    RUN(card_example_of_q8_0_has_its_codes);
    RUN(a_block_of_zeros_decodes_to_zeros);
    RUN(values_that_are_not_finite_or_too_large_are_refused);
    RUN(lengths_must_fill_blocks_and_types_must_be_known);
    RUN(tensor_row_finds_rows_of_block_and_split_types);
    return test_end();
}
