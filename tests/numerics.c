/* Half floats, exp, top-k, random numbers, checksums, the little printf. */
#define KVMEM_NO_DECODER /* the memory layer alone */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* the plain twins: compiles faster */
#endif
#include "test.h"

TEST(f16_round_trips_every_pattern) {
    unsigned h;
    for (h = 0; h < 65536; h++) {
        const float f = kvmem__f16_to_f32((uint16_t)h);
        if (f == f) { if (kvmem__f32_to_f16(f) != h) { FAIL_AT("pattern %04x", h); return; } }
        else CHECK((kvmem__f32_to_f16(f) & 0x7c00) == 0x7c00);
    }
}
TEST(f16_rounds_half_to_even) {
    CHECK(kvmem__f32_to_f16(1.0f + 1.0f / 2048) == 0x3c00); /* tie, even below */
    CHECK(kvmem__f32_to_f16(1.0f + 3.0f / 2048) == 0x3c02); /* tie, even above */
    CHECK(kvmem__f32_to_f16(65520.0f) == 0x7c00);
    CHECK(kvmem__f32_to_f16(65519.0f) == 0x7bff);
}
TEST(expf_is_within_2e7_of_libm) {
    double worst = 0; float x;
    for (x = -87; x < 88; x += 0.013f) {
        const double r = exp((double)x), e = fabs((double)kvmem__expf(x) - r) / r;
        if (e > worst) worst = e;
    }
    CHECK(worst < 4e-7);
    CHECK(kvmem__expf(0) == 1.0f && kvmem__expf(-INFINITY) == 0.0f);
}
TEST(topk_ties_go_to_the_lower_index) {
    const float score[5] = { 1, 3, 3, 3, 2 };
    int idx[5], out[2];
    REQUIRE(kvmem__topk(out, score, 5, 2, idx) == 2);
    CHECK(out[0] == 1 && out[1] == 2);
}
TEST(topk_equals_a_sort) {
    int trial;
    for (trial = 0; trial < 300; trial++) {
        float s[70]; int idx[70], out[70], n = 1 + (int)(test_unit() * 69), k = (int)(test_unit() * (n + 2)), i, j;
        for (i = 0; i < n; i++) s[i] = (float)(int)(test_unit() * 8);
        if (trial % 5 == 0) s[0] = -INFINITY;
        k = kvmem__topk(out, s, n, k, idx);
        for (i = 0; i < n; i++) {
            int better = 0, kept = 0;
            for (j = 0; j < n; j++) better += s[j] > s[i] || (s[j] == s[i] && j < i);
            for (j = 0; j < k; j++) kept += out[j] == i;
            CHECK(kept == (better < k));
        }
        for (j = 1; j < k; j++) CHECK(out[j] > out[j - 1]);
    }
}
TEST(mix_and_crc_have_their_published_values) {
    CHECK(kvmem__mix(0) == 0xe220a8397b1dcdafull);
    CHECK(kvmem__crc32(0, "123456789", 9) == 0xCBF43926u);
}
TEST(format_prints_numbers_and_cuts_text) {
    char b[64], small[6]; kvmem__text t = { b, sizeof b, 0 }, u = { small, sizeof small, 0 };
    kvmem__format(&t, "%d %zu %g %g %g %.*s|%s", -12, (size_t)34, 0.125, 25.0, 1e-7, 3, "abcdef", "x");
    CHECK(!strcmp(b, "-12 34 0.125 25 1e-7 abc|x"));
    kvmem__format(&u, "%s", "too long");
    CHECK(!strcmp(small, "too l") && u.len == 8);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "numerics");
    RUN(f16_round_trips_every_pattern);
    RUN(f16_rounds_half_to_even);
    RUN(expf_is_within_2e7_of_libm);
    RUN(topk_ties_go_to_the_lower_index);
    RUN(topk_equals_a_sort);
    RUN(mix_and_crc_have_their_published_values);
    RUN(format_prints_numbers_and_cuts_text);
    return test_end();
}
