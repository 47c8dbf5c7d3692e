/* Around an optimum: the frontier over all budgets, and the steps nearest to being taken. */
#include "tests/unit/alloc_instance.h"

#include <math.h>
#include <string.h>

static void frontier_is_convex_feasible_and_ends_at_both_extremes(void **state) {
    (void)state;
    random_state = 5;
    for (int n = 0; n < 200; n++) {
        struct instance in;
        struct frontier_point points[64];
        int choice[MAX_ITEMS], choices[64 * MAX_ITEMS];
        struct err e = {0};
        struct alloc_result r = {.choice = choice};
        struct frontier f = {.points = points, .choices = choices, .max_points = 64};
        random_instance(&in, n % 3);
        assert_int_equal(alloc_frontier(&in.problem, &f, &e), RC_OK);
        const int count = f.count;
        assert_in_range(count, 1, 64);
        for (int k = 0; k < count; k++) {
            struct alloc_result vertex = {&choices[k * in.problem.item_count], points[k].cost, points[k].objective, 0};
            in.problem.budget = points[k].cost;
            check_consistent(&in.problem, &vertex);
            assert_int_equal(alloc_optimal(&in.problem, &r, NULL, &e), RC_OK);
            assert_true(fabs(r.objective - points[k].objective) <= 1e-12); /* a vertex is an optimum */
            if (k) assert_true(points[k].cost > points[k - 1].cost && points[k].objective < points[k - 1].objective);
        }
        in.problem.budget = points[0].cost - 1;
        assert_int_equal(alloc_optimal(&in.problem, &r, NULL, &e), RC_INFEASIBLE);
        in.problem.budget = INT64_MAX;
        assert_int_equal(alloc_optimal(&in.problem, &r, NULL, &e), RC_OK);
        assert_true(r.objective == points[count - 1].objective);
        struct frontier_point three[3];
        struct frontier thin = {.points = three, .max_points = 3};
        assert_int_equal(alloc_frontier(&in.problem, &thin, &e), RC_OK);
        assert_int_equal(thin.count, count < 3 ? count : 3);
        assert_memory_equal(&three[0], &points[0], sizeof *three);
        assert_memory_equal(&three[thin.count - 1], &points[count - 1], sizeof *three);
    }
}

static void a_frontier_has_at_least_two_points(void **state) {
    (void)state;
    struct alloc_option options[] = {{1, 9, 2}, {2, 5, 3}, {4, 0, 4}};
    struct alloc_item item = {options, 3};
    struct alloc_problem p = {&item, 1, 0};
    struct frontier_point points[2];
    struct frontier f = {.points = points, .max_points = 1, .count = -1};
    struct err e = {0};
    assert_int_equal(alloc_frontier(&p, &f, &e), RC_INVALID);
    assert_int_equal(f.count, 0);
    f.max_points = 2;
    assert_int_equal(alloc_frontier(&p, &f, &e), RC_OK);
    assert_int_equal(f.count, 2);
    assert_true(points[0].cost == 1 && points[0].objective == 9 && points[1].cost == 4 && points[1].objective == 0);
}

/* Against every step there is, on random instances. */
static void edges_are_the_best_steps(void **state) {
    (void)state;
    random_state = 11;
    for (int n = 0; n < 200; n++) {
        struct instance in;
        struct alloc_edges edges;
        int choice[MAX_ITEMS];
        struct alloc_result r = {.choice = choice};
        struct err e = {0};
        random_instance(&in, n % 3);
        const struct alloc_problem *p = &in.problem;
        if (alloc_optimal(p, &r, NULL, &e) != RC_OK) continue;
        alloc_edges(p, choice, &edges);
        double gains[MAX_ITEMS] = {0}, losses[MAX_ITEMS];
        int ups = 0, downs = 0;
        for (int i = 0; i < p->item_count; i++) {
            const struct alloc_option *options = p->items[i].options, *from = &options[choice[i]];
            losses[i] = INFINITY;
            for (int o = 0; o < p->items[i].option_count; o++) {
                double rate = (from->score - options[o].score) / (double)(options[o].cost - from->cost);
                if (options[o].cost > from->cost) gains[i] = fmax(gains[i], rate);
                if (options[o].cost < from->cost) losses[i] = fmin(losses[i], rate);
            }
            ups += gains[i] > 0;
            downs += isfinite(losses[i]);
        }
        assert_int_equal(edges.up_count, ups < ALLOC_EDGES_MAX ? ups : ALLOC_EDGES_MAX);
        assert_int_equal(edges.down_count, downs < ALLOC_EDGES_MAX ? downs : ALLOC_EDGES_MAX);
        for (int k = 0; k < edges.up_count; k++) {
            const struct alloc_edge *edge = &edges.up[k];
            const struct alloc_option *options = p->items[edge->item].options;
            assert_true(edge->rate == gains[edge->item]);
            assert_true(options[edge->to].cost > options[choice[edge->item]].cost);
            int better = 0;
            for (int i = 0; i < p->item_count; i++)
                better += gains[i] > edge->rate;
            assert_true(better <= k && (k == 0 || edges.up[k - 1].rate >= edge->rate));
        }
        for (int k = 0; k < edges.down_count; k++) {
            const struct alloc_edge *edge = &edges.down[k];
            int better = 0;
            for (int i = 0; i < p->item_count; i++)
                better += losses[i] < edge->rate;
            assert_true(edge->rate == losses[edge->item]);
            assert_true(better <= k && (k == 0 || edges.down[k - 1].rate <= edge->rate));
        }
    }
}

/* More items than the lists are long: the best ten, in order, the first of equals first. */
static void edges_keep_the_ten_nearest(void **state) {
    (void)state;
    enum { COUNT = 25 };
    struct alloc_option options[COUNT][3];
    struct alloc_item items[COUNT];
    int choice[COUNT];
    struct alloc_edges edges;
    for (int i = 0; i < COUNT; i++) {
        int pair = (i * 7) % COUNT / 2;
        double slope = 1 + pair; /* pairs of equal ones */
        options[i][0] = (struct alloc_option){10, 4 * slope, 2};
        options[i][1] = (struct alloc_option){20, 2 * slope, 3};
        options[i][2] = (struct alloc_option){30, slope, 4};
        items[i] = (struct alloc_item){options[i], 3};
        choice[i] = 1;
    }
    struct alloc_problem p = {items, COUNT, 1000};
    alloc_edges(&p, choice, &edges);
    assert_int_equal(edges.up_count, ALLOC_EDGES_MAX);
    assert_int_equal(edges.down_count, ALLOC_EDGES_MAX);
    for (int k = 0; k < ALLOC_EDGES_MAX; k++) {
        const struct alloc_edge *up = &edges.up[k], *down = &edges.down[k];
        assert_int_equal(up->to, 2);
        assert_int_equal(down->to, 0);
        int above = (k + 1) / 2, below = k / 2;
        assert_true(up->rate == (13 - above) / 10.0);
        assert_true(down->rate == (1 + below) / 5.0);
        if (k && up->rate == up[-1].rate) assert_true(up->item > up[-1].item);
        if (k && down->rate == down[-1].rate) assert_true(down->item > down[-1].item);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frontier_is_convex_feasible_and_ends_at_both_extremes),
        cmocka_unit_test(a_frontier_has_at_least_two_points),
        cmocka_unit_test(edges_are_the_best_steps),
        cmocka_unit_test(edges_keep_the_ten_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
