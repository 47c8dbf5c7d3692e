/* Allocation: exact against brute force, honest about its gap, never over budget. */
#include "tests/unit/alloc_instance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The best objective of all assignments within the budget, or infinity. */
static double brute_force(const struct alloc_problem *p, int item, int64_t cost, double score) {
    if (cost > p->budget) return INFINITY;
    if (item == p->item_count) return score;
    double best = INFINITY;
    for (int o = 0; o < p->items[item].option_count; o++) {
        const struct alloc_option *option = &p->items[item].options[o];
        best = fmin(best, brute_force(p, item + 1, cost + option->cost, score + option->score));
    }
    return best;
}

static void optimal_equals_brute_force(void **state) {
    (void)state;
    random_state = 1;
    int infeasible = 0, greedy_worse = 0;
    for (int n = 0; n < 3000; n++) {
        struct instance in;
        int choice[MAX_ITEMS];
        struct alloc_result r = {.choice = choice};
        struct err e = {0};
        int64_t smallest = -1;
        random_instance(&in, n % 3);
        double best = brute_force(&in.problem, 0, 0, 0);
        enum rc rc = alloc_optimal(&in.problem, &r, &smallest, &e);
        if (isinf(best)) {
            assert_int_equal(rc, RC_INFEASIBLE);
            assert_true(smallest > in.problem.budget);
            in.problem.budget = smallest;
            assert_int_equal(alloc_optimal(&in.problem, &r, NULL, &e), RC_OK);
            infeasible++;
            continue;
        }
        assert_int_equal(rc, RC_OK);
        check_consistent(&in.problem, &r);
        assert_true(fabs(r.objective - best) <= 1e-12 * best);
        assert_true(r.gap == 0);
        double optimum = r.objective;
        assert_int_equal(alloc_greedy(&in.problem, &r, NULL, &e), RC_OK);
        check_consistent(&in.problem, &r);
        assert_true(r.objective >= optimum * (1 - 1e-12));
        assert_true(r.objective * (1 - r.gap) <= optimum * (1 + 1e-12));
        greedy_worse += r.objective > optimum * (1 + 1e-9);
    }
    assert_in_range(infeasible, 50, 500);
    assert_in_range(greedy_worse, 50, 3000); /* else the instances are too easy to prove anything */
}

enum { LONG_ITEMS = 40, LONG_OPTIONS = 4, LONG_COST = 60 };

/* The best objective for every budget, by the textbook's program over costs. */
static double best_by_cost(const struct alloc_problem *p) {
    static double best[2][LONG_ITEMS * LONG_COST + 1];
    for (int64_t room = 0; room <= p->budget; room++)
        best[0][room] = 0;
    for (int i = 0; i < p->item_count; i++)
        for (int64_t room = 0; room <= p->budget; room++) {
            double *own = &best[(i + 1) % 2][room];
            *own = INFINITY;
            for (int o = 0; o < p->items[i].option_count; o++) {
                const struct alloc_option *option = &p->items[i].options[o];
                if (option->cost <= room) *own = fmin(*own, best[i % 2][room - option->cost] + option->score);
            }
        }
    return best[p->item_count % 2][p->budget];
}

/* Forty items, scores all but proportional to costs: many options close to the relaxation's rate stay in play. */
static void optimal_equals_the_textbook_on_long_instances(void **state) {
    (void)state;
    random_state = 11;
    for (int n = 0; n < 200; n++) {
        struct alloc_option options[LONG_ITEMS][LONG_OPTIONS];
        struct alloc_item items[LONG_ITEMS];
        struct alloc_problem p = {items, 20 + random_int(LONG_ITEMS - 19), 0};
        int choice[LONG_ITEMS];
        for (int i = 0; i < p.item_count; i++) {
            for (int o = 0; o < LONG_OPTIONS; o++) {
                int cost = random_int(LONG_COST);
                options[i][o] = (struct alloc_option){cost, 2 * (LONG_COST - cost) + random_int(1 + n % 40), 2 + o};
            }
            items[i] = (struct alloc_item){options[i], LONG_OPTIONS};
        }
        struct alloc_result r = {.choice = choice};
        struct err e = {0};
        int64_t least = 0;
        assert_int_equal(alloc_optimal(&(struct alloc_problem){items, p.item_count, -1}, &r, &least, &e),
                         RC_INFEASIBLE);
        p.budget = least + random_int(15 * p.item_count);
        assert_int_equal(alloc_optimal(&p, &r, NULL, &e), RC_OK);
        check_consistent(&p, &r);
        assert_true(r.gap == 0);
        assert_true(r.objective == best_by_cost(&p)); /* sums of small integers are exact */
    }
}

/* Items whose options all lie on one line: every assignment of equal cost ties, and nothing but the sum counts. */
static void subset_sum_with_equal_rates_is_solved(void **state) {
    (void)state;
    struct alloc_option options[40][2];
    struct alloc_item items[40];
    int choice[40];
    for (int i = 0; i < 40; i++) {
        options[i][0] = (struct alloc_option){0, 2 * (7.0 + 2 * i), 2};
        options[i][1] = (struct alloc_option){7 + 2 * i, 7 + 2 * i, 4};
        items[i] = (struct alloc_item){options[i], 2};
    }
    struct alloc_problem p = {items, 40, 1001};
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    assert_int_equal(alloc_optimal(&p, &r, NULL, &e), RC_OK);
    check_consistent(&p, &r);
    assert_true(r.cost == 1001);
    assert_true(r.gap == 0);
}

/* The dearest item is the best by rate and does not fit: greedy must go on with what does. */
static void greedy_goes_on_after_an_upgrade_that_does_not_fit(void **state) {
    (void)state;
    struct alloc_option a[] = {{30, 10, 2}, {130, 0, 8}}, b[] = {{12, 1, 2}, {52, 0.5, 3}, {72, 0.4, 4}};
    struct alloc_item items[] = {{a, 2}, {b, 3}};
    struct alloc_problem p = {items, 2, 42 + 60};
    int choice[2];
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_OK);
    assert_int_equal(choice[0], 0);
    assert_int_equal(choice[1], 2);
    /* the relaxation takes 60 of the 100 bytes at 0.1 a byte: 11 − 6 = 5 against 10.4 */
    assert_true(fabs(r.gap - 5.4 / 10.4) < 1e-15);
}

static void greedy_prefers_the_best_drop_per_byte(void **state) {
    (void)state;
    struct alloc_option a[] = {{10, 1, 2}, {20, 0.2, 4}}, b[] = {{100, 5, 2}, {200, 1, 4}};
    struct alloc_item items[] = {{a, 2}, {b, 2}};
    struct alloc_problem p = {items, 2, 120};
    int choice[2];
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_OK);
    assert_int_equal(choice[0], 1);
    assert_int_equal(choice[1], 0);
    p.budget = 210;
    assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_OK);
    assert_int_equal(choice[0], 1); /* 0.08 a byte comes before 0.04 */
    assert_int_equal(choice[1], 0);
    p.budget = 220;
    assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_OK);
    assert_int_equal(choice[1], 1);
    assert_true(r.gap == 0);
}

/* All costs are 6 plus tens: five of the 15 to spend cannot be used, and no bound may count on them. */
static void a_budget_between_possible_costs_is_no_slack(void **state) {
    (void)state;
    struct alloc_option a[] = {{3, 10, 2}, {13, 0, 4}}, b[] = {{3, 9, 2}, {23, 8, 3}, {13, 0, 4}};
    struct alloc_item items[] = {{a, 2}, {b, 3}};
    struct alloc_problem p = {items, 2, 6 + 15};
    int choice[2];
    struct alloc_result r = {.choice = choice, .gap = -1};
    struct err e = {0};
    assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_OK);
    assert_true(r.cost == 16 && r.objective == 9 && r.gap == 0);
}

/* The method as alloc.h words it, looking at every upgrade of every item each time. */
static void greedy_by_definition(const struct alloc_problem *p, int *choice) {
    int64_t room = p->budget;
    for (int i = 0; i < p->item_count; i++) {
        const struct alloc_option *o = p->items[i].options;
        choice[i] = 0;
        for (int k = 1; k < p->items[i].option_count; k++)
            if (o[k].cost < o[choice[i]].cost || (o[k].cost == o[choice[i]].cost && o[k].score < o[choice[i]].score))
                choice[i] = k;
        room -= o[choice[i]].cost;
    }
    for (;;) {
        int item = -1, to = -1;
        double best = 0;
        for (int i = 0; i < p->item_count; i++)
            for (int k = 0; k < p->items[i].option_count; k++) {
                const struct alloc_option *o = &p->items[i].options[k], *from = &p->items[i].options[choice[i]];
                if (o->cost <= from->cost || o->cost - from->cost > room || o->score >= from->score) continue;
                double rate = (from->score - o->score) / (double)(o->cost - from->cost);
                bool dearer = rate == best && i == item && o->cost > p->items[i].options[to].cost;
                if (rate <= best && !dearer) continue;
                best = rate;
                item = i;
                to = k;
            }
        if (item < 0) return;
        room -= p->items[item].options[to].cost - p->items[item].options[choice[item]].cost;
        choice[item] = to;
    }
}

static void greedy_is_what_its_definition_says(void **state) {
    (void)state;
    random_state = 7;
    for (int n = 0; n < 3000; n++) {
        struct instance in;
        int choice[MAX_ITEMS], want[MAX_ITEMS];
        struct alloc_result r = {.choice = choice};
        struct err e = {0};
        random_instance(&in, n % 3);
        if (alloc_greedy(&in.problem, &r, NULL, &e) == RC_INFEASIBLE) continue;
        greedy_by_definition(&in.problem, want);
        assert_memory_equal(choice, want, (size_t)in.problem.item_count * sizeof *choice);
    }
}

static void upgrade_starts_at_four_bits_and_promotes_the_most_sensitive(void **state) {
    (void)state;
    struct alloc_option options[3][4];
    struct alloc_item items[3];
    const double sensitivity[] = {1, 3, 2};
    for (int i = 0; i < 3; i++) {
        const int bits[] = {3, 4, 8, 16};
        for (int o = 0; o < 4; o++)
            options[i][o] = (struct alloc_option){bits[o], o == 3 ? 0 : sensitivity[i] / (1 << bits[o]), bits[o]};
        items[i] = (struct alloc_item){options[i], 4};
    }
    struct alloc_problem p = {items, 3, 12};
    int choice[3];
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    static const struct {
        int64_t budget;
        int choice[3];
    } cases[] = {
        {12, {1, 1, 1}}, {15, {1, 1, 1}}, {16, {1, 2, 1}}, {23, {1, 2, 2}}, {24, {1, 3, 1}},
        {28, {1, 3, 2}}, {32, {2, 3, 2}}, {36, {1, 3, 3}}, {48, {3, 3, 3}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        p.budget = cases[c].budget;
        r.gap = -1;
        assert_int_equal(alloc_upgrade(&p, 4, &r, NULL, &e), RC_OK);
        check_consistent(&p, &r);
        assert_memory_equal(choice, cases[c].choice, sizeof choice);
        assert_true(r.objective * (1 - r.gap) <= brute_force(&p, 0, 0, 0) * (1 + 1e-12));
    }
    p.budget = 11; /* three bits would fit, but this method starts at four */
    int64_t smallest = 0;
    assert_int_equal(alloc_upgrade(&p, 4, &r, &smallest, &e), RC_INFEASIBLE);
    assert_int_equal(smallest, 12);
}

/* No option of exactly four bits: the nearest, fewer bits first, then the better, then the cheaper one. */
static void upgrade_starts_at_the_nearest_bits(void **state) {
    (void)state;
    struct alloc_option tie[] = {{5, 1, 5}, {3, 2, 3}, {2, 9, 2}};
    struct alloc_option better[] = {{9, 3, 4}, {9, 2, 4}, {8, 3, 4}}, cheaper[] = {{9, 2, 4}, {8, 2, 4}, {9, 2, 4}};
    struct alloc_option above[] = {{2, 3, 2}, {5, 2, 5}, {6, 1, 6}}, equal[] = {{3, 3, 3}, {8, 2, 4}, {8, 2, 4}};
    struct alloc_item items[] = {{tie, 3}, {better, 3}, {cheaper, 3}, {above, 3}, {equal, 3}};
    struct alloc_problem p = {items, 5, 100};
    int choice[5];
    const int expected[] = {1, 1, 1, 1, 1};
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    assert_int_equal(alloc_upgrade(&p, 4, &r, NULL, &e), RC_OK);
    assert_memory_equal(choice, expected, sizeof expected);
    check_consistent(&p, &r);
}

/* A promotion has to help, and among several the best that fits is taken. */
static void upgrade_promotes_only_to_what_helps(void **state) {
    (void)state;
    struct alloc_option worse[] = {{4, 1, 4}, {8, 1, 8}, {16, 2, 16}};
    struct alloc_option several[] = {{4, 5, 4}, {9, 0.5, 8}, {8, 0.4, 8}, {50, 0.1, 8}};
    struct alloc_option first[] = {{6, 0, 8}, {4, 0.2, 4}}, equal[] = {{4, 0.1, 4}, {5, 0.1, 8}};
    struct alloc_item items[] = {{worse, 3}, {several, 4}, {first, 2}, {equal, 2}};
    struct alloc_problem p = {items, 4, 40};
    int choice[4];
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    assert_int_equal(alloc_upgrade(&p, 4, &r, NULL, &e), RC_OK);
    assert_int_equal(choice[0], 0);
    assert_int_equal(choice[1], 2);
    assert_int_equal(choice[2], 0);
    assert_int_equal(choice[3], 0);
}

/* Scores all but proportional to costs leave more states than the program is wide: the gap must then say so, hold
 * against a bound found otherwise, and still beat greedy. */
static void what_is_cut_off_shows_in_the_gap(void **state) {
    (void)state;
    enum { COUNT = 300, OPTIONS = 6 };
    static struct alloc_option options[COUNT][OPTIONS];
    struct alloc_item items[COUNT];
    int choice[COUNT];
    struct alloc_result r = {.choice = choice}, greedy;
    struct err e = {0};
    random_state = 3;
    for (int i = 0; i < COUNT; i++) {
        for (int o = 0; o < OPTIONS; o++) {
            double cost = 1e9 * (o + (double)random_int(1000000) / 1e6);
            options[i][o] = (struct alloc_option){(int64_t)cost, 7e9 - cost + random_int(100), 2 + o};
        }
        items[i] = (struct alloc_item){options[i], OPTIONS};
    }
    struct alloc_problem p = {items, COUNT, 700000000000};
    assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_OK);
    greedy = r;
    assert_int_equal(alloc_optimal(&p, &r, NULL, &e), RC_OK);
    check_consistent(&p, &r);
    assert_true(r.objective < greedy.objective);
    assert_true(r.gap > 0 && r.gap < greedy.gap);
    /* neither bound may lie above the other's assignment */
    assert_true(greedy.objective * (1 - greedy.gap) <= r.objective);
    assert_true(r.objective * (1 - r.gap) >= greedy.objective * (1 - greedy.gap) * (1 - 1e-12));
}

static void infeasible_budget_states_the_smallest_feasible_one(void **state) {
    (void)state;
    struct alloc_option a[] = {{30, 0, 4}, {20, 1, 2}}, b[] = {{7, 1, 2}};
    struct alloc_item items[] = {{a, 2}, {b, 1}};
    struct alloc_problem p = {items, 2, 26};
    int choice[2];
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    int64_t smallest = 0;
    assert_int_equal(alloc_optimal(&p, &r, &smallest, &e), RC_INFEASIBLE);
    assert_int_equal(smallest, 27);
    assert_non_null(strstr(e.message, "27"));
    assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_INFEASIBLE);
    p.budget = 27;
    assert_int_equal(alloc_optimal(&p, &r, &smallest, &e), RC_OK);
    assert_int_equal(choice[0], 1);
}

static void hostile_numbers_are_refused(void **state) {
    (void)state;
    const struct alloc_option bad[] = {
        {1, NAN, 4}, {1, INFINITY, 4}, {1, -1e-300, 4}, {-1, 0, 4}, {INT64_MAX, 0, 4}, {1, 1.7e308, 4},
    };
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        struct alloc_option fine = bad[b].score > 1 ? bad[b] : (struct alloc_option){1, 0, 4};
        struct alloc_item items[] = {{&fine, 1}, {&bad[b], 1}};
        struct alloc_problem p = {items, 2, INT64_MAX};
        int choice[2];
        struct alloc_result r = {.choice = choice};
        struct frontier_point points[4];
        struct frontier f = {.points = points, .max_points = 4};
        struct err e = {0};
        assert_int_equal(alloc_optimal(&p, &r, NULL, &e), RC_INVALID);
        assert_int_equal(alloc_greedy(&p, &r, NULL, &e), RC_INVALID);
        assert_int_equal(alloc_upgrade(&p, 4, &r, NULL, &e), RC_INVALID);
        assert_int_equal(alloc_frontier(&p, &f, &e), RC_INVALID);
    }
    struct alloc_item empty = {NULL, 0};
    struct alloc_problem p = {&empty, 1, 10};
    int choice[1];
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    assert_int_equal(alloc_optimal(&p, &r, NULL, &e), RC_INVALID);
}

static void no_items_cost_nothing(void **state) {
    (void)state;
    struct alloc_problem p = {NULL, 0, 0};
    int choice[1];
    struct alloc_result r = {.choice = choice, .cost = -1, .objective = -1, .gap = -1};
    struct err e = {0};
    assert_int_equal(alloc_optimal(&p, &r, NULL, &e), RC_OK);
    assert_true(r.cost == 0 && r.objective == 0 && r.gap == 0);
}

/* 2,000 Linears of a few shapes at 2, 3, 4, 8 bits: the shape of the real problem. */
static void large_instances_are_proven(void **state) {
    (void)state;
    enum { COUNT = 2000, OPTIONS = 4 };
    static const int bits[OPTIONS] = {2, 3, 4, 8};
    static const int64_t params[] = {4096 * 4096, 4096 * 1024, 4096 * 14336};
    struct alloc_option *options = calloc(COUNT * OPTIONS, sizeof *options);
    struct alloc_item *items = calloc(COUNT, sizeof *items);
    int *choice = calloc(COUNT, sizeof *choice);
    int *again = calloc(COUNT, sizeof *again);
    assert_true(options && items && choice && again);
    random_state = 9;
    int64_t total = 0;
    for (int i = 0; i < COUNT; i++) {
        int64_t n = params[random_int(3)];
        double sensitivity = exp(4.0 * random_int(1000) / 1000);
        for (int o = 0; o < OPTIONS; o++)
            options[i * OPTIONS + o] = (struct alloc_option){
                n * bits[o] / 8 + n / 16, sensitivity * pow(4, -bits[o]) * (1 + random_int(100) / 200.0), bits[o]};
        items[i] = (struct alloc_item){&options[i * OPTIONS], OPTIONS};
        total += n;
    }
    struct alloc_problem p = {items, COUNT, total * 33 / 80 + total / 16 + 12345};
    struct alloc_result r = {.choice = choice}, r2 = {.choice = again};
    struct err e = {0};
    assert_int_equal(alloc_optimal(&p, &r, NULL, &e), RC_OK);
    check_consistent(&p, &r);
    assert_true(r.gap == 0);
    assert_int_equal(alloc_optimal(&p, &r2, NULL, &e), RC_OK);
    assert_memory_equal(choice, again, COUNT * sizeof *choice);
    free(options);
    free(items);
    free(choice);
    free(again);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimal_equals_brute_force),
        cmocka_unit_test(optimal_equals_the_textbook_on_long_instances),
        cmocka_unit_test(subset_sum_with_equal_rates_is_solved),
        cmocka_unit_test(greedy_goes_on_after_an_upgrade_that_does_not_fit),
        cmocka_unit_test(greedy_prefers_the_best_drop_per_byte),
        cmocka_unit_test(a_budget_between_possible_costs_is_no_slack),
        cmocka_unit_test(greedy_is_what_its_definition_says),
        cmocka_unit_test(upgrade_starts_at_four_bits_and_promotes_the_most_sensitive),
        cmocka_unit_test(upgrade_starts_at_the_nearest_bits),
        cmocka_unit_test(upgrade_promotes_only_to_what_helps),
        cmocka_unit_test(what_is_cut_off_shows_in_the_gap),
        cmocka_unit_test(infeasible_budget_states_the_smallest_feasible_one),
        cmocka_unit_test(hostile_numbers_are_refused),
        cmocka_unit_test(no_items_cost_nothing),
        cmocka_unit_test(large_instances_are_proven),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
