/* The codec polarquant (Han et al.): tree of polar angles of a rotated row. */
#define KVMEM_NO_DECODER
#define FIGURE_ROWS 512
#include "test.h"
#include "coded.h"
#include "coded_check.h"
#include "figures.h"

/* The row x and its rotation y of the Hadamard card, whose signs are + - + + - + - -. */
static const float card_x[8] = { 1, -2, .5f, 3, -1.5f, .25f, 2, -.75f };
static const float card_y[8] = { 2.47487f, -1.76777f, .88388f, 1.94454f, 2.12132f, -.70711f, -1.23744f, -.88388f };
static const float card_signs[8] = { 1, -1, 1, 1, -1, 1, -1, -1 };
static kvmem__polar polar_of(const coded *c) { return kvmem__polar_of(c->u.par, c->u.d); }
static const float *book_of(const coded *c, int level) {
    const kvmem__polar p = polar_of(c);
    return (const float *)c->u.table + kvmem__polar_book(&p, level);
}

TEST(the_books_are_the_levels_of_the_laws) {
    static const double want[3][4] = { { .3098, .6340, .9368, 1.2610 }, { .4263, .6744, .8964, 1.1445 },
                                       { .5242, .7059, .8649, 1.0466 } };
    coded c;
    int l, i;
    REQUIRE(coded_begin(&c, "polarquant", NULL, 64));
    for (i = 0; i < 16; i++)
        CHECK_NEAR(fmod(atan2(book_of(&c, 0)[48 + i], book_of(&c, 0)[32 + i]) + 2 * KVMEM__PI, 2 * KVMEM__PI),
                   (i + .5) * KVMEM__PI / 8, 1e-6);
    for (l = 1; l < 4; l++)
        for (i = 0; i < 4; i++)
            CHECK_NEAR(atan2(book_of(&c, l)[12 + i], book_of(&c, l)[8 + i]), want[l - 1][i], 6e-5);
    coded_free(&c);
}
TEST(the_card_s_row_goes_up_the_tree_as_printed) {
    static const double angle[7] = { 5.66294, 1.14417, 5.96143, 3.76184, .61228, .59723, .62901 };
    static const double length[7] = { 3.04138, 2.136, 2.23607, 1.52069, 3.71652, 2.70416, 4.59619 };
    float y[8];
    uint8_t code[8];
    coded c;
    int l, j, at = 0;
    REQUIRE(coded_begin(&c, "polarquant(levels=3)", NULL, 8));
    memcpy(y, card_y, sizeof y);
    for (l = 0; l < 3; l++) {
        for (j = 0; j < 4 >> l; j++) {
            const double a = atan2(y[2 * j + 1], y[2 * j]);
            CHECK_NEAR(a < 0 ? a + 2 * KVMEM__PI : a, angle[at + j], 2e-5);
        }
        kvmem__polar_up(y, code, 8 >> l, book_of(&c, l), l ? 4 : 16, l == 0);
        for (j = 0; j < 4 >> l; j++, at++) CHECK_NEAR(y[j], length[at], 2e-5);
    }
    coded_free(&c);
}
static void check_card_row(const char *text, const double *want, double rel) {
    float got[8];
    coded c;
    int i;
    REQUIRE(coded_begin(&c, text, NULL, 8));
    memcpy((float *)c.u.table + c.u.table_bytes / sizeof(float) - 16, card_signs, sizeof card_signs);
    coded_encode(&c, card_x, 1);
    coded_decode(&c, got);
    for (i = 0; want && i < 8; i++) CHECK_NEAR(got[i], want[i], 2e-5);
    CHECK_NEAR(figure_ratio(card_x, got, 1, 8, FIGURE_REL), rel, 2e-6);
    coded_free(&c);
}
TEST(the_card_s_row_decodes_as_printed) {
    static const double want[8] = { 1.13399, -2.00707, .71549, 2.75384, -1.51686, .41567, 2.23742, -.49891 };
    check_card_row("polarquant(levels=3,first=4,bits=2)", want, .012884);
    check_card_row("polarquant(levels=3,first=2,bits=2)", NULL, .096603);
}
TEST(finer_angles_go_to_the_identity) { /* four times less error a bit, down to the halves */
    double last = 1;
    int b;
    for (b = 2; b <= 8; b++) {
        char text[80];
        double e;
        snprintf(text, sizeof text, "polarquant(levels=0,first=%d,bits=%d)", b, b);
        e = figure_error(text, 'G', 64, 0, FIGURE_REL);
        CHECK(e > 0 && e < .3 * last);
        last = e;
    }
    CHECK(last < 8e-5);
}
TEST(bits_a_value_count_all_metadata) {
    static const struct { const char *text; int d; double bits; } want[] = {
        { "polarquant", 64, 3.875 }, { "polarquant", 128, 3.875 },
        { "polarquant(first=3)", 64, 3.375 }, { "polarquant(first=3)", 128, 3.375 },
        { "polarquant(first=5,bits=3)", 128, 4.8125 },
        { "polarquant(levels=0,first=3,bits=3)", 64, 3.203 }, { "polarquant(levels=0,first=3,bits=3)", 128, 3.102 },
        { "polarquant(levels=0,first=2,bits=2)", 128, 2.109 }
    };
    static float x[128];
    size_t i;
    for (i = 0; i < sizeof want / sizeof want[0]; i++) {
        coded c;
        REQUIRE(coded_make(&c, want[i].text, NULL, want[i].d, x, 1));
        CHECK(coded_bits(&c) >= want[i].bits - 1e-3);              /* up to a whole byte a row */
        CHECK(coded_bits(&c) < want[i].bits + 8.0 / want[i].d + 1e-3);
        if (strncmp(want[i].text, "polarquant(levels=0", 19)) CHECK_NEAR(coded_bits(&c), want[i].bits, 1e-9);
        coded_free(&c);
    }
}
/* G, O, S of one line of the card's tables. */
static void check_line(const char *text, int d, double g, double o, double s) {
    FIGURE_MEAN(text, 'G', d, 0, 16, g, .03);
    FIGURE_MEAN(text, 'O', d, 0, 16, o, .03);
    FIGURE_MEAN(text, 'S', d, 0, 16, s, .03);
}
TEST(reference_figures_all_levels) {
    check_line("polarquant(levels=0,first=2,bits=2,seed=%d)", 64, .219, .211, .185);
    check_line("polarquant(levels=0,first=3,bits=3,seed=%d)", 64, .0570, .0469, .0573);
    check_line("polarquant(levels=0,first=4,bits=4,seed=%d)", 64, .0144, .0143, .0144);
    check_line("polarquant(levels=0,first=2,bits=2,seed=%d)", 128, .219, .237, .222);
    check_line("polarquant(levels=0,first=3,bits=3,seed=%d)", 128, .0572, .0602, .0581);
    check_line("polarquant(levels=0,first=4,bits=4,seed=%d)", 128, .0144, .0144, .0150);
}
TEST(reference_figures_four_levels) {
    check_line("polarquant(first=3,bits=2,seed=%d)", 64, .0698, .0590, .0707);
    check_line("polarquant(first=4,bits=2,seed=%d)", 64, .0320, .0305, .0326);
    check_line("polarquant(first=5,bits=3,seed=%d)", 64, .0085, .0082, .0088);
    check_line("polarquant(first=3,bits=2,seed=%d)", 128, .0700, .0704, .0668);
    check_line("polarquant(first=4,bits=2,seed=%d)", 128, .0321, .0293, .0288);
    check_line("polarquant(first=5,bits=3,seed=%d)", 128, .0086, .0077, .0076);
}
TEST(a_learnt_book_beats_the_law_where_rows_are_not_gaussian) {
    const double law = figure_error("polarquant", 'O', 64, 0, FIGURE_REL);
    const double learnt = figure_error("polarquant(book=learnt)", 'O', 64, 0, FIGURE_REL);
    CHECK(learnt < .95 * law);
    CHECK_NEAR(figure_error("polarquant(book=learnt)", 'G', 64, 0, FIGURE_REL), .0320, .001);
}
TEST(a_book_learnt_from_too_few_rows_is_the_law_s) {
    static float x[2 * 16], a[2 * 16], b[2 * 16];
    coded c;
    check_rows(x, 2, 16, 4);
    REQUIRE(coded_make(&c, "polarquant(book=learnt)", NULL, 16, x, 2));
    coded_decode(&c, a);
    coded_free(&c);
    REQUIRE(coded_make(&c, "polarquant", NULL, 16, x, 2));
    coded_decode(&c, b);
    coded_free(&c);
    CHECK(memcmp(a + 16, b + 16, 16 * sizeof(float)) == 0);
}
TEST(with_the_law_s_book_the_state_of_the_lane_s_other_side_is_not_read) {
    static const float other[1] = { NAN };
    static float x[64], a[64], b[64];
    coded c;
    check_rows(x, 1, 64, 4);
    REQUIRE(coded_begin(&c, "polarquant", NULL, 64));
    coded_encode(&c, x, 1);
    coded_decode(&c, a);
    c.b.state = other;
    c.u.fn.encode(&c.b, x, 0, 1);
    coded_decode(&c, b);
    CHECK(memcmp(a, b, sizeof a) == 0);
    coded_free(&c);
}
static const int sizes[] = { 1, 2, 3, 7, 16, 33, 64, 80, 96, 128, 576 };
TEST(scores_and_sums_are_those_of_the_decoded_rows) {
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        coded_check_sums("polarquant", NULL, sizes[i], 19);
        coded_check_sums("polarquant(levels=0,first=3,bits=3)", NULL, sizes[i], 5);
        coded_check_sums("polarquant(levels=2,first=5,bits=1,book=learnt)", NULL, sizes[i], 40);
    }
}
TEST(a_value_without_a_partner_keeps_its_sign_and_size) { /* d=1: a half; d=5: alone at level 1, then a length */
    static const float x[1] = { -2.5f };
    float y[5] = { 3, 4, 0, 2, -1.5f };
    uint8_t code[3];
    coded c;
    REQUIRE(coded_make(&c, "polarquant", NULL, 1, x, 1));
    CHECK(c.b.row_bytes == 2);
    coded_decode(&c, y + 1);
    CHECK(fabs(fabs((double)y[1]) - 2.5) == 0 && y[1] == -2.5f);
    coded_free(&c);
    y[1] = 4;
    REQUIRE(coded_begin(&c, "polarquant(levels=2)", NULL, 5));
    CHECK(polar_of(&c).count[1] == 3 && polar_of(&c).count[2] == 2 && polar_of(&c).upper == 1);
    kvmem__polar_up(y, code, 5, book_of(&c, 0), 16, 1);
    CHECK(y[0] == 5 && y[1] == 2 && y[2] == 1.5f && code[2] == 8);
    kvmem__polar_up(y, code, 3, book_of(&c, 1), 4, 0);
    CHECK(y[1] == 1.5f && code[2] == 8);
    kvmem__polar_down(y, code, 3, book_of(&c, 1), 4, 0);
    CHECK(y[2] == 1.5f);
    kvmem__polar_down(y, code, 5, book_of(&c, 0), 16, 1);
    CHECK(y[4] == -1.5f);
    coded_free(&c);
}
TEST(bad_input_gives_finite_rows_and_zeros_stay) {
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        coded_check_bad("polarquant", sizes[i]);
        coded_check_bad("polarquant(levels=0,book=learnt)", sizes[i]);
    }
}
TEST(fast_twins_give_the_plain_ones_numbers) {
    static const char *const text[] = { "polarquant", "polarquant(book=learnt,seed=5)", "polarquant(first=3)" };
    static const int rows[] = { 1, 5, 16, 31, 64 };
    static const int dims[] = { 16, 64, 80, 128, 192 };
    int d, i, k, found = 0;
    for (k = 0; k < 3; k++)
        for (d = 0; d < 5; d++)
            for (i = 0; i < 5; i++) found += coded_check_twin(text[k], "avx512", dims[d], rows[i]);
    for (i = 0; i < 5 && found; i++) coded_check_sums("polarquant", "avx512", dims[i], 37);
    if (!found) SKIP("no AVX-512 here");
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "codec_polarquant");
    RUN(the_books_are_the_levels_of_the_laws);
    RUN(the_card_s_row_goes_up_the_tree_as_printed);
    RUN(the_card_s_row_decodes_as_printed);
    RUN(finer_angles_go_to_the_identity);
    RUN(bits_a_value_count_all_metadata);
    RUN(reference_figures_all_levels);
    RUN(reference_figures_four_levels);
    RUN(a_learnt_book_beats_the_law_where_rows_are_not_gaussian);
    RUN(a_book_learnt_from_too_few_rows_is_the_law_s);
    RUN(with_the_law_s_book_the_state_of_the_lane_s_other_side_is_not_read);
    RUN(scores_and_sums_are_those_of_the_decoded_rows);
    RUN(a_value_without_a_partner_keeps_its_sign_and_size);
    RUN(fast_twins_give_the_plain_ones_numbers);
    RUN(bad_input_gives_finite_rows_and_zeros_stay);
    return test_end();
}
