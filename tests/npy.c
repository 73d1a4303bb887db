/* npy.c - tools/npy.h: arrays as .npy files. */
#define KVMEM_NO_DECODER
#include "test.h"
#include "../tools/npy.h"

/* A file of this version, header text and data in b; returns its size. */
static size_t file_of(unsigned char *b, int version, const char *head, const void *data, size_t n) {
    const size_t len = strlen(head), at = version == 1 ? 10 : 12;
    memset(b, 0, at);
    memcpy(b, "\x93NUMPY", 6);
    b[6] = (unsigned char)version;
    b[8] = (unsigned char)len;
    b[9] = (unsigned char)(len >> 8);
    memcpy(b + at, head, len);
    if (n) memcpy(b + at + len, data, n);
    return at + len + n;
}
/* A copy of exactly n bytes, so that sanitizers see a read past the end. */
static int parse(npy *a, const unsigned char *b, size_t n, char *why, unsigned char **copy) {
    *copy = (unsigned char *)malloc(n ? n : 1);
    if (n) memcpy(*copy, b, n);
    return npy_parse(a, *copy, n, why, 160);
}

TEST(what_is_written_is_read_back) {
    const float x[6] = { 0, -1.5f, 3e38f, 1e-40f, -0.0f, 2 };
    const size_t dim[2] = { 2, 3 };
    unsigned char b[NPY_HEADER + 64], *copy;
    char why[160];
    FILE *f = tmpfile();
    size_t n;
    npy a;
    int i;
    if (!f) SKIP("no temporary file");
    CHECK(npy_write(f, x, dim, 2) == 0);
    rewind(f);
    n = fread(b, 1, sizeof b, f);
    fclose(f);
    CHECK(n == 128 + 24);
    CHECK(!memcmp(
        b, "\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
        68));
    CHECK(b[127] == '\n');
    REQUIRE(parse(&a, b, n, why, &copy) == 0);
    CHECK(a.n_dims == 2 && a.dim[0] == 2 && a.dim[1] == 3 && a.count == 6 && a.item == 4);
    for (i = 0; i < 6; i++) CHECK(npy_at(&a, (size_t)i) == (double)x[i]);
    free(copy);
}
TEST(one_dimension_has_a_comma) {
    char head[NPY_HEADER];
    const size_t dim = 7;
    CHECK(npy_header(head, &dim, 1) == 128);
    CHECK(strstr(head + 10, "'shape': (7,), }") != NULL);
}
TEST(versions_1_to_3_and_both_byte_orders_are_read) {
    static const unsigned char le[8] = { 0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0 };
    static const unsigned char be[8] = { 0x3f, 0xc0, 0, 0, 0xc0, 0, 0, 0 };
    unsigned char b[256], *copy;
    char why[160];
    int version, big;
    for (version = 1; version <= 3; version++)
        for (big = 0; big < 2; big++) {
            npy a;
            const size_t n = file_of(b, version,
                big ? "{\"shape\":(1,2),\"fortran_order\":False,\"descr\":\">f4\"}"
                    : "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }   \n",
                big ? be : le, 8);
            REQUIRE(parse(&a, b, n, why, &copy) == 0);
            CHECK(a.count == 2 && npy_at(&a, 0) == 1.5 && npy_at(&a, 1) == -2);
            free(copy);
        }
}
TEST(every_number_type_is_read) {
    static const struct { const char *type; unsigned char bytes[8]; int n; double want;
    } t[] = { { "<f2", { 0x00, 0x3e }, 2, 1.5 },
              { "<f2", { 0x01, 0x80 }, 2, -5.9604644775390625e-8 },
              { ">f2", { 0x7c, 0x00 }, 2, (double)INFINITY },
              { "<f8", { 0, 0, 0, 0, 0, 0, 0xf8, 0xbf }, 8, -1.5 },
              { "|i1", { 0x80 }, 1, -128 },
              { "|u1", { 0xff }, 1, 255 },
              { "<i2", { 0xfe, 0xff }, 2, -2 },
              { ">u2", { 1, 2 }, 2, 258 },
              { "<i4", { 0xff, 0xff, 0xff, 0x7f }, 4, 2147483647.0 },
              { "<u4", { 0xff, 0xff, 0xff, 0xff }, 4, 4294967295.0 },
              { "<i8", { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, 8, -1 },
              { ">i8", { 0, 0, 0, 0, 0, 1, 0, 0 }, 8, 65536 } };
    unsigned char b[256], *copy;
    char head[96], why[160];
    size_t i;
    for (i = 0; i < sizeof t / sizeof *t; i++) {
        npy a;
        snprintf(head, sizeof head, "{'descr': '%s', 'fortran_order': False, 'shape': (1,), }",
                 t[i].type);
        REQUIRE(parse(&a, b, file_of(b, 1, head, t[i].bytes, (size_t)t[i].n), why, &copy) == 0);
        CHECK(npy_at(&a, 0) == t[i].want);
        free(copy);
    }
}
TEST(shapes_of_zero_one_and_no_dimension) {
    static const float one = 1;
    unsigned char b[256], *copy;
    char why[160];
    npy a;
    size_t n = file_of(b, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }", &one, 4);
    REQUIRE(parse(&a, b, n, why, &copy) == 0);
    CHECK(a.n_dims == 0 && a.count == 1);
    free(copy);
    n = file_of(b, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 64), }", NULL, 0);
    REQUIRE(parse(&a, b, n, why, &copy) == 0);
    CHECK(a.n_dims == 2 && a.count == 0);
    free(copy);
}
TEST(hostile_headers_are_errors_with_a_reason) {
    static const struct { const char *head, *why;
    } t[] = { { "", "no dictionary" },
              { "[1]", "no dictionary" },
              { "{", "ends early" },
              { "{'descr", "ends early" },
              { "{'descr'", "ends early" },
              { "{'descr':", "no simple type" },
              { "{'descr': [('a', '<f4')], 'shape': (1,)}", "no simple type" },
              { "{'descr': '<f4'", "ends early" },
              { "{'descr': '<f4', ", "ends early" },
              { "{}", "lacks" },
              { "{'descr': '<f4', 'fortran_order': False}", "lacks" },
              { "{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", "type '<c8'" },
              { "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "type '|O'" },
              { "{'descr': '', 'fortran_order': False, 'shape': (1,)}", "type ''" },
              { "{'descr': '<f3', 'fortran_order': False, 'shape': (1,)}", "type '<f3'" },
              { "{'descr': '|f4', 'fortran_order': False, 'shape': (1,)}", "type '|f4'" },
              { "{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}", "ascontiguousarray" },
              { "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "neither" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': 1}", "'shape' is not" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "'shape' is not" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': (1", "'shape' is not" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2 3)}", "'shape' is not" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
                "too large" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
                "too large" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}",
                "too large" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "cut off" },
              { "{'descr': '<f4', 'fortran_order': False, 'shape': ()}", "more than" },
              { "{'descr': '<f4', 'descr': '<f4', 'shape': (1,)}", "there twice" },
              { "{'descr': '<f4', 'magic': 1}", "unknown" } };
    const float x[2] = { 1, 2 };
    unsigned char b[512], *copy;
    char why[160];
    size_t i, n;
    npy a;
    for (i = 0; i < sizeof t / sizeof *t; i++) {
        why[0] = 0;
        CHECK(parse(&a, b, file_of(b, 1, t[i].head, x, 8), why, &copy) == 1);
        if (!strstr(why, t[i].why)) FAIL_AT("'%s' has no '%s'", why, t[i].why);
        free(copy);
    }
    n = file_of(b, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", x, 8);
    b[6] = 4;
    CHECK(parse(&a, b, n, why, &copy) && strstr(why, "version 4.0"));
    free(copy);
    b[6] = 1;
    for (i = 0; i < n; i++) { /* every cut, every changed byte: an answer, no read past the end */
        CHECK(parse(&a, b, i, why, &copy) == 1);
        free(copy);
        b[i] ^= 0x15;
        if (!parse(&a, b, n, why, &copy) && a.count) CHECK(npy_at(&a, a.count - 1) != 0.5);
        free(copy);
        b[i] ^= 0x15;
    }
    CHECK(parse(&a, b, n, why, &copy) == 0);
    free(copy);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "npy");
    RUN(what_is_written_is_read_back);
    RUN(one_dimension_has_a_comma);
    RUN(versions_1_to_3_and_both_byte_orders_are_read);
    RUN(every_number_type_is_read);
    RUN(shapes_of_zero_one_and_no_dimension);
    RUN(hostile_headers_are_errors_with_a_reason);
    return test_end();
}
