/* sampling.c - from logits to a token: order of the steps, ties, determinism, and a naive twin. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* no vectors here: compiles faster */
#endif
#include "test.h"

static kvmem_sampler_config plain(float temperature) { /* everything else off */
    kvmem_sampler_config c = kvmem_sampler_config_default();
    c.temperature = temperature;
    c.top_k = 0;
    c.top_p = 1;
    c.min_p = 0;
    c.repeat_penalty = 1;
    return c;
}
static int draw(kvmem_sampler *s, const float *l) {
    int id = -1;
    CHECK_OK(kvmem_sample(s, l, &id));
    return id;
}

TEST(temperature_0_takes_the_highest_and_of_equals_the_lowest_id) {
    static const float l[6] = { 1, 3, -2, 3, 0, 3 };
    kvmem_sampler_config c = kvmem_sampler_config_default();
    kvmem_sampler s;
    int i;
    c.temperature = 0;
    REQUIRE_OK(kvmem_sampler_init(&s, &c, 6, NULL));
    for (i = 0; i < 10; i++) CHECK(draw(&s, l) == 1);
    CHECK(s.draws == 0);
    kvmem_sampler_free(&s);
}
TEST(the_default_is_what_the_comments_say) {
    const kvmem_sampler_config c = kvmem_sampler_config_default();
    CHECK_NEAR(c.temperature, 0.8, 1e-6);
    CHECK_NEAR(c.top_p, 0.95, 1e-6);
    CHECK_NEAR(c.min_p, 0.05, 1e-6);
    CHECK(c.top_k == 40);
    CHECK(c.repeat_penalty == 1 && c.repeat_last == 64 && c.seed == 0);
}
TEST(top_k_of_equals_keeps_the_lowest_ids) {
    static const float l[5] = { 0, 2, 2, 2, 2 };
    kvmem_sampler_config c = plain(1);
    kvmem_sampler s;
    int i, seen[5] = { 0, 0, 0, 0, 0 };
    c.top_k = 2;
    REQUIRE_OK(kvmem_sampler_init(&s, &c, 5, NULL));
    for (i = 0; i < 200; i++) seen[draw(&s, l)]++;
    CHECK(seen[0] == 0 && seen[3] == 0 && seen[4] == 0 && seen[1] > 60 && seen[2] > 60);
    kvmem_sampler_free(&s);
}
TEST(top_p_keeps_the_fewest_whose_sum_reaches_it) {
    float l[4];
    kvmem_sampler_config c = plain(1);
    kvmem_sampler s;
    int i, k, seen[4];
    static const float p[4] = { 0.1f, 0.4f, 0.2f, 0.3f }, top[4] = { 0.3f, 0.45f, 0.75f, 0.95f };
    for (i = 0; i < 4; i++) l[i] = logf(p[i]) + 7;
    for (k = 0; k < 4; k++) { /* kept: {1}, {1,3}, {1,3,2}, all */
        c.top_p = top[k];
        REQUIRE_OK(kvmem_sampler_init(&s, &c, 4, NULL));
        memset(seen, 0, sizeof seen);
        for (i = 0; i < 400; i++) seen[draw(&s, l)]++;
        CHECK(seen[1] > 0 && (seen[3] > 0) == (k >= 1) && (seen[2] > 0) == (k >= 2) && (seen[0] > 0) == (k == 3));
        kvmem_sampler_free(&s);
    }
    c.top_p = 0; /* the best alone */
    REQUIRE_OK(kvmem_sampler_init(&s, &c, 4, NULL));
    for (i = 0; i < 20; i++) CHECK(draw(&s, l) == 1);
    kvmem_sampler_free(&s);
}
TEST(min_p_is_a_share_of_the_highest_probability) {
    static const float p[4] = { 0.05f, 0.5f, 0.15f, 0.3f };
    float l[4];
    kvmem_sampler_config c = plain(1);
    kvmem_sampler s;
    int i, seen[4] = { 0, 0, 0, 0 };
    for (i = 0; i < 4; i++) l[i] = logf(p[i]);
    c.min_p = 0.25f; /* 0.125 and more stay */
    REQUIRE_OK(kvmem_sampler_init(&s, &c, 4, NULL));
    for (i = 0; i < 400; i++) seen[draw(&s, l)]++;
    CHECK(seen[0] == 0 && seen[1] > 0 && seen[2] > 0 && seen[3] > 0);
    kvmem_sampler_free(&s);
}
TEST(frequencies_follow_the_softmax_at_the_temperature) {
    static const float l[4] = { 0, 1, 2, -1 };
    const int n = 20000;
    double e[4], z = 0;
    kvmem_sampler_config c = plain(2);
    kvmem_sampler s;
    int i, seen[4] = { 0, 0, 0, 0 };
    c.seed = 5;
    REQUIRE_OK(kvmem_sampler_init(&s, &c, 4, NULL));
    for (i = 0; i < 4; i++) { e[i] = exp((double)l[i] / 2); z += e[i]; }
    for (i = 0; i < n; i++) seen[draw(&s, l)]++;
    for (i = 0; i < 4; i++) CHECK_NEAR((double)seen[i] / n, e[i] / z, 0.015); /* over 4 sigma */
    kvmem_sampler_free(&s);
}
TEST(equal_seeds_give_equal_sequences_and_others_do_not) {
    float l[100];
    kvmem_sampler_config c = plain(1);
    kvmem_sampler a, b, d;
    int i, same = 0;
    for (i = 0; i < 100; i++) l[i] = (float)test_normal();
    c.seed = 42;
    REQUIRE_OK(kvmem_sampler_init(&a, &c, 100, NULL));
    REQUIRE_OK(kvmem_sampler_init(&b, &c, 100, NULL));
    c.seed = 43;
    REQUIRE_OK(kvmem_sampler_init(&d, &c, 100, NULL));
    for (i = 0; i < 200; i++) {
        const int x = draw(&a, l);
        CHECK(x == draw(&b, l));
        same += x == draw(&d, l);
    }
    CHECK(same < 40);
    kvmem_sampler_free(&a);
    kvmem_sampler_free(&b);
    kvmem_sampler_free(&d);
}
TEST(the_repetition_penalty_counts_a_recent_token_once) {
    static const float l[4] = { 4, 3, -1, -1.5f };
    kvmem_sampler_config c = plain(0);
    kvmem_sampler s;
    c.repeat_penalty = 1.5f;
    c.repeat_last = 3;
    REQUIRE_OK(kvmem_sampler_init(&s, &c, 4, NULL));
    CHECK(draw(&s, l) == 0);
    kvmem_sampler_accept(&s, 0);
    CHECK(draw(&s, l) == 1); /* 4/1.5 < 3 */
    CHECK_NEAR(s.value[0], 4 / 1.5, 1e-6);
    kvmem_sampler_accept(&s, 0);
    kvmem_sampler_accept(&s, 2);
    CHECK(draw(&s, l) == 1);
    CHECK_NEAR(s.value[0], 4 / 1.5, 1e-6); /* twice in the ring, penalized once */
    CHECK_NEAR(s.value[2], -1.5, 1e-6);    /* below zero: times p */
    kvmem_sampler_accept(&s, 2);
    kvmem_sampler_accept(&s, 2); /* now 0 has left the last three */
    CHECK(draw(&s, l) == 0);
    kvmem_sampler_accept(&s, -1); /* no tokens: ignored */
    kvmem_sampler_accept(&s, 4);
    CHECK(s.n_recent == 3);
    kvmem_sampler_free(&s);
}
TEST(minus_infinity_is_never_chosen_and_nan_is_an_error) {
    float l[5] = { 0, -INFINITY, 1, -INFINITY, 0 };
    kvmem_sampler_config c = plain(1);
    kvmem_sampler s;
    int i, id = 77;
    REQUIRE_OK(kvmem_sampler_init(&s, &c, 5, NULL));
    for (i = 0; i < 200; i++) { id = draw(&s, l); CHECK(id != 1 && id != 3); }
    id = 77;
    l[3] = NAN;
    CHECK(kvmem_sample(&s, l, &id) == KVMEM_BAD_VALUE && strstr(s.error.text, "logit 3") && id == 77);
    l[3] = INFINITY;
    CHECK(kvmem_sample(&s, l, &id) == KVMEM_BAD_VALUE);
    for (i = 0; i < 5; i++) l[i] = -INFINITY;
    CHECK(kvmem_sample(&s, l, &id) == KVMEM_BAD_VALUE && s.error.text[0] && id == 77);
    for (i = 0; i < 5; i++) l[i] = -FLT_MAX;
    CHECK_OK(kvmem_sample(&s, l, &id)); /* still usable; the lowest finite logits will do */
    kvmem_sampler_free(&s);
}
TEST(extreme_temperatures_and_logits_work) {
    static const float l[3] = { -FLT_MAX, FLT_MAX, 0 };
    static const float t[4] = { 1e-45f, 1e-30f, 1e30f, FLT_MAX };
    kvmem_sampler s;
    int i;
    for (i = 0; i < 4; i++) {
        const kvmem_sampler_config c = plain(t[i]);
        REQUIRE_OK(kvmem_sampler_init(&s, &c, 3, NULL));
        CHECK(i > 1 || draw(&s, l) == 1);
        draw(&s, l);
        kvmem_sampler_free(&s);
    }
}
TEST(bad_settings_are_refused_by_name) {
    static const char *const word[] = { "temperature",    "temperature",    "top_k",
                                        "top_p",          "top_p",          "min_p",
                                        "repeat_penalty", "repeat_penalty", "repeat_last",
                                        "n_vocab" };
    int i;
    for (i = 0; i < 10; i++) {
        kvmem_sampler_config c = kvmem_sampler_config_default();
        kvmem_sampler s;
        int n = 10;
        switch (i) {
        case 0: c.temperature = -1; break;
        case 1: c.temperature = NAN; break;
        case 2: c.top_k = -1; break;
        case 3: c.top_p = 1.5f; break;
        case 4: c.top_p = NAN; break;
        case 5: c.min_p = -0.1f; break;
        case 6: c.repeat_penalty = 0; break;
        case 7: c.repeat_penalty = INFINITY; break;
        case 8: c.repeat_last = -1; break;
        default: n = 0; break;
        }
        CHECK(kvmem_sampler_init(&s, &c, n, NULL) == KVMEM_BAD_ARGUMENT && strstr(s.error.text, word[i]));
        kvmem_sampler_free(&s);
    }
    kvmem_sampler_free(NULL);
}
TEST(memory_is_taken_at_init_only_and_given_back) {
    test_heap h;
    kvmem_allocator a;
    kvmem_sampler s;
    float l[50];
    int i;
    memset(&h, 0, sizeof h);
    a = test_allocator(&h);
    for (i = 0; i < 50; i++) l[i] = (float)i;
    REQUIRE_OK(kvmem_sampler_init(&s, NULL, 50, &a));
    for (i = 0; i < 100; i++) kvmem_sampler_accept(&s, draw(&s, l));
    CHECK(h.calls == 1);
    kvmem_sampler_free(&s);
    CHECK(h.live == 0 && h.wrong == 0);
    h.calls = 0;
    h.fail_at = 1;
    CHECK(kvmem_sampler_init(&s, NULL, 50, &a) == KVMEM_NO_MEMORY && s.error.text[0]);
    kvmem_sampler_free(&s);
}

/* The twin: sorts everything, keeps by the definitions, draws by the same number. */
static const float *twin_l;
static int twin_order(const void *a, const void *b) {
    const int x = *(const int *)a, y = *(const int *)b;
    return twin_l[x] != twin_l[y] ? (twin_l[x] > twin_l[y] ? -1 : 1) : x - y;
}
static int twin(const kvmem_sampler_config *c, const float *l, int n, uint64_t draws) {
    int *id = (int *)malloc((size_t)n * sizeof(int)), i, keep = n, m, r;
    double total = 0, sum = 0, u;
    for (i = 0; i < n; i++) id[i] = i;
    twin_l = l;
    qsort(id, (size_t)n, sizeof(int), twin_order);
    if (c->top_k > 0 && c->top_k < n) keep = c->top_k;
#define W(i) ((double)kvmem__expf((l[i] - l[id[0]]) / c->temperature))
    r = id[0];
    for (i = 0; i < keep; i++) total += W(id[i]);
    if (c->top_p < 1) {
        for (m = 0; m < keep && (m == 0 || sum < total * (double)c->top_p); m++) sum += W(id[m]);
        keep = m;
    }
    while (keep > 1 && (W(id[keep - 1]) < (double)c->min_p || !(W(id[keep - 1]) > 0))) keep--;
    for (i = 0, sum = 0; i < keep; i++) sum += W(id[i]);
    u = kvmem__unit(kvmem__random(c->seed, draws, 0, 0)) * sum;
    kvmem__sort_ints(id, keep);
    twin_l = l;
    for (i = 0, sum = 0; i < keep; i++) {
        sum += (double)kvmem__expf((l[id[i]] - l[r]) / c->temperature);
        if (u < sum) break;
    }
    r = id[i < keep ? i : keep - 1];
    free(id);
    return r;
#undef W
}
TEST(every_setting_equals_the_sorting_twin) {
    static const int sizes[] = { 1, 2, 7, 100, 255, 256, 257, 3000 };
    int round, i, bad = 0;
    for (round = 0; round < 1500; round++) {
        const int n = sizes[round % 8];
        float l[3000];
        kvmem_sampler_config c = plain(1);
        kvmem_sampler s;
        const double spread = test_unit() < 0.5 ? 0.02 : 3;
        for (i = 0; i < n; i++) {
            l[i] = (float)(test_normal() * spread);
            if (round % 3 == 0) l[i] = (float)(int)(l[i] * 2); /* many ties */
            if (test_unit() < 0.05 && i) l[i] = -INFINITY;
        }
        if (test_unit() < 0.7) c.top_p = (float)test_unit();
        if (test_unit() < 0.5) c.min_p = (float)(test_unit() * 0.3);
        if (test_unit() < 0.5) c.top_k = 1 + (int)(test_unit() * n * 1.2);
        c.temperature = (float)(0.1 + test_unit() * 2);
        c.seed = (uint64_t)round;
        REQUIRE_OK(kvmem_sampler_init(&s, &c, n, NULL));
        for (i = 0; i < 3; i++) bad += draw(&s, l) != twin(&c, l, n, (uint64_t)i);
        kvmem_sampler_free(&s);
    }
    /* sums are taken in another order here, so a draw on the edge may differ once in a long while */
    CHECK(bad <= 1);
}
TEST(top_p_of_a_large_flat_vocabulary_keeps_the_lowest_ids) {
    const int n = 200000;
    float *l = (float *)malloc((size_t)n * sizeof(float));
    kvmem_sampler_config c = plain(1);
    kvmem_sampler s;
    int i, top = 0;
    for (i = 0; i < n; i++) l[i] = 1;
    c.top_p = 0.5f;
    REQUIRE_OK(kvmem_sampler_init(&s, &c, n, NULL));
    for (i = 0; i < 4; i++) { const int id = draw(&s, l); CHECK(id < n / 2); if (id > top) top = id; }
    CHECK(top > 1000);
    kvmem_sampler_free(&s);
    free(l);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "sampling");
    RUN(temperature_0_takes_the_highest_and_of_equals_the_lowest_id);
    RUN(the_default_is_what_the_comments_say);
    RUN(top_k_of_equals_keeps_the_lowest_ids);
    RUN(top_p_keeps_the_fewest_whose_sum_reaches_it);
    RUN(min_p_is_a_share_of_the_highest_probability);
    RUN(frequencies_follow_the_softmax_at_the_temperature);
    RUN(equal_seeds_give_equal_sequences_and_others_do_not);
    RUN(the_repetition_penalty_counts_a_recent_token_once);
    RUN(minus_infinity_is_never_chosen_and_nan_is_an_error);
    RUN(extreme_temperatures_and_logits_work);
    RUN(bad_settings_are_refused_by_name);
    RUN(memory_is_taken_at_init_only_and_given_back);
    RUN(every_setting_equals_the_sorting_twin);
    RUN(top_p_of_a_large_flat_vocabulary_keeps_the_lowest_ids);
    return test_end();
}
