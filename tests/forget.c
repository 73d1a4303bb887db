/* Who is forgotten: the forgetting curve (memorybank), salience (hema) and its summary, quotas by place and the bandit
   (sat). Worked figures of the papers, what must hold, and each paper's claim on a small stream of facts. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include <math.h>

enum { MANY = 2000 };
static kvmem_item item[MANY];
static unsigned char gone[MANY];
static double scratch[MANY];

/* ---- memorybank */

TEST(retention_is_the_curve_of_the_paper_and_the_switch_gives_the_released_line) {
    kvmem_fade f = kvmem_fade_default();
    CHECK_NEAR(kvmem_retention(&f, 5, 1), 0.367879, 1e-6);
    CHECK_NEAR(kvmem_retention(&f, 5, 2), 0.606531, 1e-6);
    f.bug_compat = 1;
    CHECK_NEAR(kvmem_retention(&f, 5, 1), 0.367879, 1e-6);
    CHECK_NEAR(kvmem_retention(&f, 5, 2), 0.135335, 1e-6);
    CHECK(kvmem_retention(&f, 0, 3) == 1 && kvmem_retention(&f, -1, 3) == 1);
}
TEST(retention_rises_with_strength_and_falls_with_time) {
    const kvmem_fade f = kvmem_fade_default();
    int s, t;
    for (s = 1; s < 20; s++)
        for (t = 1; t < 50; t++) {
            CHECK(kvmem_retention(&f, t, s + 1) > kvmem_retention(&f, t, s));
            CHECK(kvmem_retention(&f, t + 1, s) < kvmem_retention(&f, t, s));
        }
}
TEST(a_recall_strictly_raises_later_retention) {
    const kvmem_fade f = kvmem_fade_default();
    kvmem_item a = kvmem_item_new(1, 0, 0), b = a;
    kvmem_item_recall(&b, 3);
    CHECK(b.strength == 2 && b.used == 3 && b.recalled == 1);
    CHECK(kvmem_retention(&f, 10 - b.used, b.strength) > kvmem_retention(&f, 10 - a.used, a.strength));
}
TEST(a_seeded_sweep_is_deterministic_spares_the_new_and_ignores_order) {
    kvmem_fade f = kvmem_fade_default();
    unsigned char again[MANY], turned[MANY];
    kvmem_item back[MANY];
    int i, n = 500, count;
    for (i = 0; i < n; i++) item[i] = kvmem_item_new((uint64_t)i, i % 10, 0);
    item[7].pinned = 1;
    count = kvmem_forget_fade(&f, item, n, 9, gone);
    CHECK(count > 50 && count < 300);
    CHECK(kvmem_forget_fade(&f, item, n, 9, again) == count && !memcmp(gone, again, (size_t)n));
    for (i = 0; i < n; i++) if (item[i].used >= 9) CHECK(!gone[i]); /* t = 0: kept */
    CHECK(!gone[7]);
    for (i = 0; i < n; i++) back[i] = item[n - 1 - i];
    kvmem_forget_fade(&f, back, n, 9, turned);
    for (i = 0; i < n; i++) CHECK(turned[n - 1 - i] == gone[i]);
    f.seed = 2;
    kvmem_forget_fade(&f, item, n, 9, again);
    CHECK(memcmp(gone, again, (size_t)n) != 0);
    CHECK(kvmem_forget_fade(&f, item, 0, 9, gone) == 0);
}
TEST(a_threshold_forgets_what_is_left_with_less) {
    kvmem_fade f = kvmem_fade_default();
    int i;
    f.theta = 0.5;
    for (i = 0; i < 10; i++) item[i] = kvmem_item_new((uint64_t)i, -i, 0); /* exp(-i / 5) < 0.5 from i = 4 on */
    CHECK(kvmem_forget_fade(&f, item, 10, 0, gone) == 6);
    for (i = 0; i < 10; i++) CHECK(gone[i] == (i >= 4));
    f.theta = 0;
    CHECK(kvmem_forget_fade(&f, item, 10, 1e9, gone) == 0);
}

/* ---- hema */

TEST(salience_has_the_printed_figures) {
    kvmem_salience s = kvmem_salience_default();
    kvmem_item old = kvmem_item_new(1, 0, 0), seen = old;
    s.beta = 0;
    CHECK_NEAR(kvmem_salience_of(&s, &old, 0), 1, 1e-12);
    CHECK_NEAR(kvmem_salience_of(&s, &old, 100), 0.818731, 1e-6);
    CHECK_NEAR(kvmem_salience_of(&s, &old, 1000), 0.135335, 1e-6);
    s.beta = 0.5;
    kvmem_item_recall(&seen, 0);
    CHECK_NEAR(kvmem_salience_of(&s, &seen, 0), 1.5, 1e-12); /* ours: a bonus for what was recalled */
    CHECK_NEAR(kvmem_salience_of(&s, &old, 0), 1.0, 1e-12);
    s.printed = 1;
    CHECK_NEAR(kvmem_salience_of(&s, &seen, 0), 1.0, 1e-12);
    CHECK_NEAR(kvmem_salience_of(&s, &old, 0), 1.5, 1e-12);
    s.printed = 0; /* a recall counts for 100 turns */
    CHECK(kvmem_salience_of(&s, &seen, 100) > kvmem_salience_of(&s, &old, 100));
    CHECK(!(kvmem_salience_of(&s, &seen, 101) > kvmem_salience_of(&s, &old, 101)));
}
TEST(of_equal_use_the_older_go_first_and_the_pinned_never) {
    kvmem_salience s = kvmem_salience_default();
    int i, n = 100;
    s.share = 0.1;
    for (i = 0; i < n; i++) item[i] = kvmem_item_new((uint64_t)i, (i * 37) % n, 0);
    for (i = 0; i < n; i++) item[i].pinned = item[i].born < 5;
    CHECK(kvmem_forget_salience(&s, item, n, 200, gone, scratch) == 9); /* floor of 9.5 */
    for (i = 0; i < n; i++) CHECK(gone[i] == (item[i].born >= 5 && item[i].born < 14));
    s.gamma = 0; /* all w equal: still the older */
    CHECK(kvmem_forget_salience(&s, item, n, 200, gone, scratch) == 9);
    for (i = 0; i < n; i++) CHECK(gone[i] == (item[i].born >= 5 && item[i].born < 14));
}
TEST(half_a_per_cent_goes_rounded_down_and_at_least_one_from_200_on) {
    const kvmem_salience s = kvmem_salience_default();
    int i;
    for (i = 0; i < MANY; i++) item[i] = kvmem_item_new((uint64_t)i, i, 0);
    CHECK(kvmem_forget_salience(&s, item, 0, 0, gone, scratch) == 0);
    CHECK(kvmem_forget_salience(&s, item, 199, 3000, gone, scratch) == 0);
    CHECK(kvmem_forget_salience(&s, item, 200, 3000, gone, scratch) == 1);
    CHECK(kvmem_forget_salience(&s, item, 399, 3000, gone, scratch) == 1);
    CHECK(kvmem_forget_salience(&s, item, MANY, 3000, gone, scratch) == 10);
    CHECK(!kvmem_salience_due(&s, 0) && !kvmem_salience_due(&s, 99) && kvmem_salience_due(&s, 100));
}
/* A summariser that keeps the first token of the turn and then what was there. */
static int summaries;
static kvmem_status first_of(void *user, const int *old, int n_old, const int *turn, int n_turn, int *to, int cap,
                             int *n) {
    int i;
    if (*(int *)user) { *n = cap + 1; return *(int *)user > 1 ? KVMEM_IO : KVMEM_OK; }
    *n = 0;
    if (n_turn) to[(*n)++] = turn[0];
    for (i = 0; i < n_old && *n < cap; i++) to[(*n)++] = old[i];
    summaries++;
    return KVMEM_OK;
}
TEST(the_summary_has_two_levels_and_a_failure_leaves_it) {
    kvmem_summary s, before;
    int bad = 0, i, turn[2] = { 0, 9 };
    kvmem_summary_init(&s, first_of, &bad);
    summaries = 0;
    for (i = 1; i <= 250; i++) {
        turn[0] = i;
        REQUIRE_OK(kvmem_summary_turn(&s, turn, 2));
        CHECK(s.n_now <= KVMEM_SUMMARY && s.n_now == KVMEM__MIN(i % 100, KVMEM_SUMMARY));
        if (i == 100) CHECK(s.n_before == 1 && s.before[0] == 100);
    }
    CHECK(summaries == 252 && s.n_before == 2 && s.before[0] == 200 && s.before[1] == 100 && s.now[0] == 250);
    before = s;
    bad = 1;
    CHECK(kvmem_summary_turn(&s, turn, 2) == KVMEM_BAD_VALUE);
    bad = 2;
    CHECK(kvmem_summary_turn(&s, turn, 2) == KVMEM_IO && !memcmp(&s, &before, sizeof s));
    CHECK(kvmem_summary_turn(&s, NULL, 2) == KVMEM_BAD_ARGUMENT);
}

/* ---- sat */

/* Things of the given places come one by one into a memory of cap; kept: those that are there at the end. */
static int play(kvmem_place_rule rule, const int *places, int n, int cap, int *kept) {
    int place[MANY], count = 0, i, j;
    for (i = 0; i < n; i++) {
        const int go = count == cap ? kvmem_place_victim(rule, place, count, 1) : -1;
        if (go == count && count == cap) continue;
        for (j = go; j >= 0 && j + 1 < count; j++) { kept[j] = kept[j + 1]; place[j] = place[j + 1]; }
        count -= go >= 0;
        kept[count] = i;
        place[count++] = places[i];
    }
    return count;
}
TEST(capacity_three_and_places_a_a_b_b) {
    static const int want[KVMEM_N_PLACE_RULES][3] = { { 1, 2, 3 }, { 0, 1, 2 }, { 0, 1, 3 }, { 1, 2, 3 } };
    static const int places[4] = { 0, 0, 1, 1 };
    int r, kept[4];
    for (r = 0; r < KVMEM_N_PLACE_RULES; r++) {
        CHECK(play((kvmem_place_rule)r, places, 4, 3, kept) == 3);
        CHECK(!memcmp(kept, want[r], sizeof want[r]));
    }
    CHECK(kvmem_place_victim(KVMEM_PLACE_MVFO, places, 0, 1) == -1);
    CHECK(kvmem_place_victim(KVMEM_PLACE_LIFO, places, 3, 0) == 2);
    CHECK(kvmem_place_victim(KVMEM_PLACE_MVFO, places, 4, 0) == 0); /* a tie: the lowest place */
    CHECK(!strcmp(kvmem_place_rule_name(KVMEM_PLACE_MVFO), "mvfo") && !kvmem_place_rule_name(KVMEM_N_PLACE_RULES));
}
TEST(quotas_of_a_full_memory_agree_with_one_victim_after_another) {
    int r, i, j, k;
    for (r = 0; r < KVMEM_N_PLACE_RULES; r++)
        for (k = 0; k < 20; k++) {
            int place[60], index[60], n = 40, left = 40, cap = k * 2;
            for (i = 0; i < n; i++) {
                item[i] = kvmem_item_new((uint64_t)i, i, (int)(test_unit() * test_unit() * 5));
                place[i] = item[i].place;
                index[i] = i;
            }
            CHECK(kvmem_forget_places((kvmem_place_rule)r, item, n, cap, gone) == n - cap);
            while (left > cap) {
                const int go = kvmem_place_victim((kvmem_place_rule)r, place, left, 0);
                REQUIRE(go >= 0 && go < left);
                CHECK(gone[index[go]]);
                for (j = go; j + 1 < left; j++) { place[j] = place[j + 1]; index[j] = index[j + 1]; }
                left--;
            }
        }
    for (i = 0; i < 10; i++) { item[i] = kvmem_item_new(0, i, 0); item[i].pinned = i < 8; }
    CHECK(kvmem_forget_places(KVMEM_PLACE_FIFO, item, 10, 3, gone) == 2 && gone[8] && gone[9]);
}
TEST(the_bandit_picks_the_best_policy_once_each_was_tried) {
    double q[8] = { 0 };
    int tried[8] = { 0 }, t, p;
    static const double reward[2][4] = { { -3, -1, -2, -4 }, { -1, -5, -2, -0.5 } };
    kvmem_bandit b = kvmem_bandit_make(2, 4, q, tried);
    b.eta = 1;
    b.from = b.to = 0;
    for (t = 0; t < 2; t++) {
        for (p = 0; p < 4; p++) kvmem_bandit_reward(&b, t, p, reward[t][p]);
        CHECK(kvmem_bandit_choose(&b, t) == (t ? 3 : 1) && tried[4 * t + 2] == 1);
    }
    b.from = 1; /* all by chance at first, a fifth in the end */
    b.to = 0.2;
    b.over = 100;
    b.steps = 0;
    for (t = p = 0; t < 20; t++) p += kvmem_bandit_choose(&b, 0) != 1;
    CHECK(p > 8);
    b.steps = 1000;
    for (t = p = 0; t < 1000; t++) p += kvmem_bandit_choose(&b, 0) != 1;
    CHECK(p > 90 && p < 220); /* 0.2 * 3/4 */
}

/* ---- what the papers claim, on streams of facts */

enum { SALIENT, PRINTED, FADE, OLDEST, CHANCE };
static double draw(uint64_t a, uint64_t b) { return kvmem__unit(kvmem__random(99, a, b, 0)); }
/* One fact a turn and then one question; every 100 turns the memory is cut to cap. Questions: skew 1, half of them
   about facts as popular as 1 / rank, half about one of the last 60; 0: about any fact told. Returns the share of
   the questions of the second half whose fact is still there. */
static double hits(int way, int skew, int cap, uint64_t run) {
    static int at[MANY]; /* fact -> 1 + index of its item */
    int n = 0, turn, i, right = 0, asked = 0;
    memset(at, 0, sizeof at);
    for (turn = 1; turn < MANY; turn++) {
        int fact = (int)(draw(run, (uint64_t)turn) * turn);
        item[n] = kvmem_item_new((uint64_t)turn, turn, 0);
        at[turn - 1] = ++n;
        if (skew && turn % 2) fact = turn - 1 - (int)(draw(run, (uint64_t)turn) * KVMEM__MIN(turn, 60));
        else if (skew) { /* rank r with chance ~ 1/r; popularity has nothing to do with age */
            const int rank = (int)exp(draw(run, (uint64_t)turn) * log(turn));
            fact = (int)((uint64_t)rank * 7919u % (uint64_t)turn);
            fact -= fact % 20 ? fact % 20 - 3 * (fact % 20 > 3) : 0; /* hot facts come again */
        }
        if (turn > MANY / 2) asked++;
        if (at[fact]) {
            kvmem_item_recall(&item[at[fact] - 1], turn);
            right += turn > MANY / 2;
        }
        if (turn % 100 == 0 && n > cap) {
            kvmem_salience s = kvmem_salience_default();
            int left = 0;
            memset(gone, 0, (size_t)n);
            s.printed = way == PRINTED;
            s.share = (double)(n - cap) / n;
            if (way == SALIENT || way == PRINTED) kvmem_forget_salience(&s, item, n, turn, gone, scratch);
            if (way == OLDEST) kvmem_forget_places(KVMEM_PLACE_FIFO, item, n, cap, gone);
            if (way == FADE || way == CHANCE) { /* those of least retention, or of a random number */
                kvmem_fade f = kvmem_fade_default();
                f.unit = 100;
                for (i = 0; i < n; i++)
                    scratch[i] = way == FADE ? kvmem_retention(&f, turn - item[i].used, item[i].strength)
                                             : draw(run + 7, (uint64_t)(turn * MANY + i));
                for (left = n; left > cap; left--) {
                    int worst = -1;
                    for (i = 0; i < n; i++) if (!gone[i] && (worst < 0 || scratch[i] < scratch[worst])) worst = i;
                    gone[worst] = 1;
                }
            }
            for (i = left = 0; i < n; i++) {
                at[(int)item[i].id - 1] = gone[i] ? 0 : left + 1;
                if (!gone[i]) item[left++] = item[i];
            }
            n = left;
        }
    }
    return (double)right / asked;
}
static double mean_hits(int way, int skew) {
    double sum = 0;
    uint64_t run;
    for (run = 0; run < 4; run++) sum += hits(way, skew, 150, run);
    return sum / 4;
}
TEST(hema_with_the_bonus_for_recalls_beats_first_out_which_beats_chance) {
    const double ours = mean_hits(SALIENT, 1), printed = mean_hits(PRINTED, 1), fifo = mean_hits(OLDEST, 1),
                 chance = mean_hits(CHANCE, 1);
    if (getenv("KVMEM_SHOW")) printf("hema %.3f printed %.3f fifo %.3f chance %.3f\n", ours, printed, fifo, chance);
    CHECK(ours > fifo + 0.02 && fifo > chance + 0.02 && ours > printed + 0.02);
}
TEST(recalls_that_strengthen_help_where_questions_are_skewed_and_only_there) {
    const double skewed = mean_hits(FADE, 1), chance = mean_hits(CHANCE, 1), even = mean_hits(FADE, 0),
                 even_chance = mean_hits(CHANCE, 0);
    if (getenv("KVMEM_SHOW"))
        printf("fade %.3f chance %.3f; even: %.3f %.3f\n", skewed, chance, even, even_chance);
    CHECK(skewed > chance + 0.05);
    CHECK_NEAR(even, even_chance, 0.03);
}
/* 90 % of the stream is about place 0; a task asks for the last 95 things or for those of rare places. */
static double recalled(kvmem_place_rule rule, int rare, uint64_t run) {
    static int place[600], kept[600];
    int i, n, right = 0, all = 0, j;
    for (i = 0; i < 600; i++)
        place[i] = draw(run, (uint64_t)i) < 0.9 ? 0 : 1 + (int)(draw(run, 10000u + (unsigned)i) * 9);
    n = play(rule, place, 600, 100, kept);
    for (i = 0; i < 600; i++) {
        if (rare ? place[i] == 0 : i < 505) continue;
        all++;
        for (j = 0; j < n; j++) right += kept[j] == i;
    }
    return (double)right / all;
}
TEST(rare_places_survive_mvfo_and_the_bandit_finds_which_policy_serves_which_question) {
    double q[8] = { 0 };
    int tried[8] = { 0 }, i;
    kvmem_bandit b = kvmem_bandit_make(2, KVMEM_N_PLACE_RULES, q, tried);
    const double fifo = recalled(KVMEM_PLACE_FIFO, 1, 5), mvfo = recalled(KVMEM_PLACE_MVFO, 1, 5);
    if (getenv("KVMEM_SHOW"))
        printf("rare: fifo %.3f mvfo %.3f; recent: fifo %.3f mvfo %.3f\n", fifo, mvfo,
               recalled(KVMEM_PLACE_FIFO, 0, 5), recalled(KVMEM_PLACE_MVFO, 0, 5));
    CHECK(mvfo > 0.95 && fifo < 0.3);
    b.over = 60;
    b.eta = 0.5;
    for (i = 0; i < 160; i++) {
        const int task = i % 2, p = kvmem_bandit_choose(&b, task);
        kvmem_bandit_reward(&b, task, p, recalled((kvmem_place_rule)p, task, (uint64_t)i % 4));
    }
    b.from = b.to = 0;
    CHECK(kvmem_bandit_choose(&b, 0) == KVMEM_PLACE_FIFO && kvmem_bandit_choose(&b, 1) == KVMEM_PLACE_MVFO);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "forget");
    RUN(retention_is_the_curve_of_the_paper_and_the_switch_gives_the_released_line);
    RUN(retention_rises_with_strength_and_falls_with_time);
    RUN(a_recall_strictly_raises_later_retention);
    RUN(a_seeded_sweep_is_deterministic_spares_the_new_and_ignores_order);
    RUN(a_threshold_forgets_what_is_left_with_less);
    RUN(salience_has_the_printed_figures);
    RUN(of_equal_use_the_older_go_first_and_the_pinned_never);
    RUN(half_a_per_cent_goes_rounded_down_and_at_least_one_from_200_on);
    RUN(the_summary_has_two_levels_and_a_failure_leaves_it);
    RUN(capacity_three_and_places_a_a_b_b);
    RUN(quotas_of_a_full_memory_agree_with_one_victim_after_another);
    RUN(the_bandit_picks_the_best_policy_once_each_was_tried);
    RUN(hema_with_the_bonus_for_recalls_beats_first_out_which_beats_chance);
    RUN(recalls_that_strengthen_help_where_questions_are_skewed_and_only_there);
    RUN(rare_places_survive_mvfo_and_the_bandit_finds_which_policy_serves_which_question);
    return test_end();
}
