/* The statistics of paired evals against values worked out by hand or by numpy. */
#include "tests/unit/cmocka_main.h"

#include <math.h>

#include "base/random.h"
#include "worker/pipeline/stats.h"

static void close_to(double a, double b) {
    if (!(fabs(a - b) <= 1e-12 * fmax(1, fabs(b)))) fail_msg("%.17g is not %.17g", a, b);
}

static void percentile_interpolates_between_order_statistics(void **state) {
    (void)state;
    const double sorted[] = {1, 2, 4, 8};
    close_to(stats_percentile(sorted, 4, 0), 1);
    close_to(stats_percentile(sorted, 4, 0.5), 3);
    close_to(stats_percentile(sorted, 4, 0.9), 6.8);
    close_to(stats_percentile(sorted, 4, 1), 8);
    close_to(stats_percentile(sorted, 1, 0.3), 1);
}

static void sort_ascends(void **state) {
    (void)state;
    double values[] = {3, -1, 2, 2};
    stats_sort(values, 4);
    for (int i = 1; i < 4; i++)
        assert_true(values[i - 1] <= values[i]);
}

static void mean_weighs_tokens_and_its_error_weighs_windows(void **state) {
    (void)state;
    const double sums[] = {10, 60};
    const int64_t tokens[] = {10, 20};
    struct mean_se m = stats_mean_se(sums, tokens, 2);
    close_to(m.mean, 70.0 / 30);
    close_to(m.se, 1); /* window means 1 and 3: sd √2, over √2 */
    assert_true(isnan(stats_mean_se(sums, tokens, 1).se));
}

static void paired_delta_counts_and_weighs(void **state) {
    (void)state;
    const struct window_pair w[] = {{10, 10, 11}, {10, 20, 19}, {10, 30, 33}, {10, 5, 5}};
    struct paired_delta d = stats_paired(w, 4);
    close_to(d.nll, 3.0 / 40);
    close_to(d.ppl, exp(68.0 / 40) - exp(65.0 / 40));
    close_to(d.percent, 100 * expm1(3.0 / 40));
    close_to(d.nll_se, sqrt((pow(.025, 2) + pow(.175, 2) + pow(.225, 2) + pow(.075, 2)) / 3) / 2);
    assert_int_equal(d.helped, 1);
    assert_int_equal(d.hurt, 2);
    assert_true(d.ppl_ci95.low < d.ppl && d.ppl < d.ppl_ci95.high);
    assert_true(d.percent_ci95.low < d.percent && d.percent < d.percent_ci95.high);
}

static void bootstrap_is_seeded(void **state) {
    (void)state;
    const struct window_pair w[] = {{10, 10, 11}, {10, 20, 19}, {10, 30, 33}};
    struct paired_delta a = stats_paired(w, 3), b = stats_paired(w, 3);
    assert_true(a.ppl_se == b.ppl_se && a.ppl_ci95.low == b.ppl_ci95.low && a.ppl_ci95.high == b.ppl_ci95.high);
}

static void bootstrap_error_agrees_with_the_normal_one(void **state) {
    (void)state;
    struct window_pair w[200];
    uint64_t seed = 7;
    for (int i = 0; i < 200; i++) {
        double noise = (double)random_below(&seed, 1000) / 1000 - 0.5;
        w[i] = (struct window_pair){1, 1, 1.1 + noise};
    }
    struct paired_delta d = stats_paired(w, 200);
    double predicted = exp(1 + d.nll) * d.nll_se; /* delta method: d ppl = ppl · d nll */
    assert_true(fabs(d.ppl_se / predicted - 1) < 0.1);
}

static void one_window_has_no_interval(void **state) {
    (void)state;
    const struct window_pair w = {10, 10, 11};
    struct paired_delta d = stats_paired(&w, 1);
    close_to(d.nll, 0.1);
    assert_true(isnan(d.nll_se) && isnan(d.ppl_se) && isnan(d.ppl_ci95.low));
}

static void splitmix_is_the_published_one(void **state) {
    (void)state;
    uint64_t seed = 1234567;
    assert_true(splitmix64(&seed) == 6457827717110365317u);
    assert_true(splitmix64(&seed) == 3203168211198807973u);
    for (int i = 0; i < 1000; i++)
        assert_true(random_below(&seed, 7) < 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentile_interpolates_between_order_statistics),
        cmocka_unit_test(sort_ascends),
        cmocka_unit_test(mean_weighs_tokens_and_its_error_weighs_windows),
        cmocka_unit_test(paired_delta_counts_and_weighs),
        cmocka_unit_test(bootstrap_is_seeded),
        cmocka_unit_test(bootstrap_error_agrees_with_the_normal_one),
        cmocka_unit_test(one_window_has_no_interval),
        cmocka_unit_test(splitmix_is_the_published_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
