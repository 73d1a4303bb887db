/* `kvmem cost`: the worked figures of Yi-34B on an A100, what must hold between the formulas, and the command's
   output and errors. Whole numbers of bytes are exact; seconds are those that the formulas give by hand. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "test.h"
#include "tool.h"

static const cost_model yi = { 60, 8, 128, 4096, 34e9, 68e9, 2 };
static const cost_job usual = { 250, 20, 5 };

/* `kvmem cost` with these options. */
static int ask(const char *const *more, int n) {
    const char *all[40] = { "cost" };
    int i;
    for (i = 0; i < n; i++) all[1 + i] = more[i];
    return tool(1 + n, all);
}
static const char *const shape[] = { "--layers", "60", "--kv-heads", "8", "--head-dim", "128", "--hidden", "4096",
                                     "--params", "34e9" };
static int with_shape(const char *const *more, int n) {
    const char *all[40];
    int i;
    for (i = 0; i < 10; i++) all[i] = shape[i];
    for (i = 0; i < n; i++) all[10 + i] = more[i];
    return ask(all, 10 + n);
}
/* The i-th number under that key of the JSON in `out`, from 0 on. */
static double told(const char *key, int i) {
    char name[40];
    const char *p = out.text;
    snprintf(name, sizeof name, "\"%s\":", key);
    for (; (p = strstr(p, name)) != NULL; i--) {
        p += strlen(name);
        if (!i) return strtod(p, NULL);
    }
    return -1;
}

TEST(worked_figures_of_yi_34b_on_an_a100) {
    const cost_machine *x = &cost_machines[0];
    cost_answer a = cost_of(&yi, x, &usual, 4000, cost_kv(&yi, 4000));
    CHECK(!strcmp(x->word, "a100"));
    CHECK(cost_kv(&yi, 50000) == 12.288e9 && cost_kv(&yi, 4000) == 983040000.0);
    CHECK_NEAR(cost_kv(&yi, 50000) / (1 << 30), 11.44, 0.005); /* GiB */
    CHECK_NEAR(a.prefill, 0.897, 5e-4);
    CHECK_NEAR(a.decode, 8.623, 5e-4);
    CHECK(a.users == 12);
    a = cost_of(&yi, x, &usual, 50000, cost_kv(&yi, 50000));
    CHECK_NEAR(a.prefill, 14.835, 5e-3);
    CHECK_NEAR(a.decode, 10.036, 5e-4);
    CHECK_NEAR(a.swap, 1.2288, 1e-9);
    CHECK(a.users == 0 && a.throughput == 0); /* 12.0e9 bytes are left, 12.288e9 are needed */
    a = cost_of(&yi, x, &usual, 50000, 11e9); /* the paper's "11 GB" */
    CHECK(a.users == 1);
    CHECK_NEAR(a.decode, 9.875, 1e-9);
    CHECK_NEAR(a.swap, 1.1, 1e-9);
    CHECK(x->flops / x->bandwidth == 156);
}
TEST(bytes_are_linear_and_decode_grows_by_bytes_over_bandwidth) {
    const cost_machine *x = &cost_machines[0];
    int n;
    double before = (double)INFINITY;
    const cost_answer none = cost_of(&yi, x, &usual, 0, 0);
    CHECK(none.swap == 0 && none.prefill == 0 && none.users > 1e300 && none.batch == 20);
    for (n = 100; n < 60000; n += 311) {
        const double kv = cost_kv(&yi, n);
        const cost_answer a = cost_of(&yi, x, &usual, n, kv);
        CHECK_NEAR(kv / (n * cost_kv(&yi, 1)), 1, 1e-12);
        CHECK_NEAR((a.decode - none.decode) / (250 * kv / x->bandwidth), 1, 1e-9);
        CHECK(a.users <= before && a.users * kv + yi.weight_bytes <= x->memory);
        CHECK((a.users + 1) * kv + yi.weight_bytes > x->memory);
        before = a.users;
    }
}
TEST(compression_multiplies_the_swap_and_leaves_the_prefill) {
    const cost_machine *x = &cost_machines[0];
    double c;
    for (c = 0.05; c < 1; c += 0.05) {
        const double kv = cost_kv(&yi, 4000);
        const cost_answer a = cost_of(&yi, x, &usual, 4000, kv), b = cost_of(&yi, x, &usual, 4000, c * kv);
        CHECK_NEAR(b.swap, c * a.swap, 1e-12);
        CHECK(b.prefill == a.prefill && b.decode < a.decode && b.users >= floor(a.users / c));
        CHECK(b.throughput >= a.throughput);
    }
}
TEST(twice_the_bandwidth_halves_decode_only) {
    const cost_answer a = cost_of(&yi, &cost_machines[0], &usual, 9000, cost_kv(&yi, 9000));
    cost_machine x = cost_machines[0];
    cost_answer b;
    x.bandwidth *= 2;
    b = cost_of(&yi, &x, &usual, 9000, cost_kv(&yi, 9000));
    CHECK(b.decode == a.decode / 2 && b.prefill == a.prefill && b.swap == a.swap && b.users == a.users);
}
TEST(a_round_is_prefill_share_batch_decode_and_swap_when_users_wait) {
    const double kv = 1e9;
    const cost_machine x = { "x", "", 100e12, 1e12, 78.5e9, 10e9 };
    const cost_job all_fit = { 100, 10, 4 }, some_wait = { 100, 11, 4 };
    const cost_answer a = cost_of(&yi, &x, &all_fit, 1000, kv), b = cost_of(&yi, &x, &some_wait, 1000, kv);
    CHECK(a.users == 10 && a.batch == 10 && b.batch == 10);
    CHECK_NEAR(a.round, a.prefill / 4 + 100 * (68e9 + 10e9) / 1e12, 1e-12);
    CHECK_NEAR(b.round, a.round + 0.2, 1e-12); /* now each round swaps a user */
    CHECK_NEAR(a.throughput, 10 / a.round, 1e-12);
}
TEST(weights_larger_than_the_memory_serve_nobody) {
    const cost_answer a = cost_of(&yi, &cost_machines[3], &usual, 100, cost_kv(&yi, 100));
    CHECK(a.users == 0 && a.throughput == 0);
}
TEST(slope_is_the_least_squares_line) {
    const int n[4] = { 100, 200, 400, 500 };
    const double up[4] = { 3, 5, 9, 11 }, bent[3] = { 0, 1, 0 }, one[1] = { 7 };
    CHECK_NEAR(cost_slope(n, up, 4), 0.02, 1e-15);
    CHECK(cost_slope(n, one, 1) == 0);
    CHECK_NEAR(cost_slope(n, bent, 3), -1.0 / 1400, 1e-12);
}
TEST(command_prints_the_figures_and_takes_constants) {
    const char *json[] = { "--json", "--ctx", "4000,50000" };
    const char *change[] = { "--json", "--ctx", "50000", "--memory=90e9", "--bandwidth", "4e12", "--users", "1",
                             "--share", "0.5" };
    REQUIRE(with_shape(json, 3) == OK);
    CHECK(told("kv_bytes", 0) == 983040000.0 && told("kv_bytes", 1) == 12.288e9);
    CHECK_NEAR(told("decode_seconds", 1), 10.036, 1e-6);
    CHECK(told("users", 0) == 12 && told("critical_intensity", 0) == 156);
    REQUIRE(with_shape(change, 10) == OK);
    CHECK(told("users", 0) == 1 && told("users", 1) == 3 && told("kv_bytes", 1) == 6.144e9);
    CHECK_NEAR(told("decode_seconds", 0), 5.018, 1e-6);
    CHECK(told("swap_seconds", 1) == told("swap_seconds", 0) / 2);
}
TEST(recipe_line_has_the_bytes_of_the_estimate) {
    const char *kv[] = { "--json", "--ctx", "4096", "--kv", "full codec=f16" };
    const char *less[] = { "--json", "--ctx", "4096", "--kv", "streamingllm budget=1024 codec=f16" };
    REQUIRE(with_shape(kv, 5) == OK);
    CHECK(told("kv_bytes", 1) >= told("kv_bytes", 0)); /* metadata of pages is counted, too */
    CHECK(told("kept_share", 1) < 1.05);
    REQUIRE(with_shape(less, 5) == OK);
    CHECK(told("kept_share", 1) > 0.25 && told("kept_share", 1) < 0.28);
}
TEST(table_has_a_line_a_context) {
    const char *more[] = { "--ctx", "1k,2k,3k", "--share", "0.25" };
    const char *p;
    int lines = 0;
    REQUIRE(with_shape(more, 4) == OK);
    for (p = out.text; (p = strstr(p, "whole ")) != NULL; p++) lines++;
    CHECK(lines == 3);
    for (p = out.text, lines = 0; (p = strstr(p, "share ")) != NULL; p++) lines++;
    CHECK(lines == 3);
}
TEST(a_model_file_gives_shape_and_weights_and_can_be_measured) {
    const char *asked[] = { "--json", "--measure", "--ctx", "16,48" };
    FILE *f = fopen(DEFAULT_MODEL, "rb");
    if (!f) SKIP("no " DEFAULT_MODEL);
    fclose(f);
    REQUIRE(ask(asked, 4) == OK);
    CHECK(told("layers", 0) == 4 && told("kv_heads", 0) == 2 && told("hidden", 0) == 256);
    CHECK(told("params", 0) == 768 * 256 + 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512));
    CHECK(told("token_bytes", 0) == 4096 && told("read_bandwidth", 0) > 0 && told("predicted_slope", 0) > 0);
    CHECK_NEAR(told("predicted_slope", 0) * told("read_bandwidth", 0), 4096, 1e-2);
}
TEST(misuse_is_named) {
    const char *no_hidden[] = { "--layers", "2", "--kv-heads", "1", "--head-dim", "8", "--params", "1e6" };
    const char *wrong[] = { "--machine", "a10" }, *both[] = { "--kv", "h2o", "--share", "0.5" };
    const char *bad_ctx[] = { "--ctx", "12,x" }, *range[] = { "--share", "2" },
               *falls[] = { "--measure", "--ctx", "40,30" };
    if (!freopen("/dev/null", "w", stderr)) SKIP("no /dev/null");
    CHECK(ask(NULL, 0) == MISUSED && ask(no_hidden, 8) == MISUSED);
    CHECK(with_shape(wrong, 2) == MISUSED && with_shape(both, 4) == MISUSED);
    CHECK(with_shape(bad_ctx, 2) == MISUSED && with_shape(range, 2) == MISUSED);
    CHECK(ask(falls, 3) == MISUSED);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "cost");
    RUN(worked_figures_of_yi_34b_on_an_a100);
    RUN(bytes_are_linear_and_decode_grows_by_bytes_over_bandwidth);
    RUN(compression_multiplies_the_swap_and_leaves_the_prefill);
    RUN(twice_the_bandwidth_halves_decode_only);
    RUN(a_round_is_prefill_share_batch_decode_and_swap_when_users_wait);
    RUN(weights_larger_than_the_memory_serve_nobody);
    RUN(slope_is_the_least_squares_line);
    RUN(command_prints_the_figures_and_takes_constants);
    RUN(recipe_line_has_the_bytes_of_the_estimate);
    RUN(table_has_a_line_a_context);
    RUN(a_model_file_gives_shape_and_weights_and_can_be_measured);
    RUN(misuse_is_named);
    free(out.text);
    return test_end();
}
