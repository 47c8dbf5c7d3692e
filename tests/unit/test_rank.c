/* Rank correlation, against values worked out by hand. */
#include "tests/unit/cmocka_main.h"

#include <math.h>

#include "worker/pipeline/rank.h"

static void order_alone_counts(void **state) {
    (void)state;
    const double x[] = {1, 2, 3, 4}, rising[] = {-5, 0, 1e-9, 1e9}, falling[] = {4, 3, 2, -1}, mixed[] = {1, 3, 2, 4};
    assert_true(rank_spearman(x, rising, 4) == 1);
    assert_true(rank_spearman(x, falling, 4) == -1);
    assert_true(fabs(rank_spearman(x, mixed, 4) - 0.8) < 1e-15); /* 1 − 6·2/(4·15) */
}

static void ties_share_their_mean_rank(void **state) {
    (void)state;
    const double x[] = {1, 2, 2, 3, 5}, y[] = {2, 1, 4, 4, 4};
    /* ranks 0 1½ 1½ 3 4 and 1 0 3 3 3 */
    assert_true(fabs(rank_spearman(x, y, 5) - 5.5 / sqrt(9.5 * 8)) < 1e-12);
    const double two[] = {7, 7, 9, 9}, other[] = {1, 2, 3, 4};
    assert_true(fabs(rank_spearman(two, other, 4) - 4 / sqrt(4 * 5)) < 1e-12);
}

static void what_is_not_defined_is_nan(void **state) {
    (void)state;
    const double x[] = {1, 2, 3}, flat[] = {4, 4, 4};
    const int group[] = {0, 1, 2};
    assert_true(isnan(rank_spearman(x, flat, 3)) && isnan(rank_spearman(flat, x, 3)));
    assert_true(isnan(rank_spearman(x, x, 1)) && isnan(rank_spearman(x, x, 0)));
    assert_true(isnan(rank_spearman_within(x, x, group, 3)));
}

/* Perfect over all, and the reverse inside either group: what a score can look good by. */
static void groups_are_ranked_by_themselves(void **state) {
    (void)state;
    const double x[] = {10, 1, 11, 2, 12, 3, 99, 0}, y[] = {103, 3, 102, 2, 101, 1, 5, 5};
    const int group[] = {4, 0, 4, 0, 4, 0, 9, 2};
    assert_true(rank_spearman(x, y, 6) > 0.5);
    assert_true(rank_spearman_within(x, y, group, 8) == -1);
    const double half[] = {1, 3, 2, 1, 3, 3}; /* ρ is 1 in one group and 0 in the other */
    assert_true(fabs(rank_spearman_within(x, half, group, 6) - 0.5) < 1e-12);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_alone_counts),
        cmocka_unit_test(ties_share_their_mean_rank),
        cmocka_unit_test(what_is_not_defined_is_nan),
        cmocka_unit_test(groups_are_ranked_by_themselves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
