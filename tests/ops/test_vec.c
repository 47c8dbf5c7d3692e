/* The CPU's vector primitives, over every length around their lanes: no element is left out, none counts twice. */
#include "kernels/cpu/vec.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/grid.h"
#include "kernels/cpu/simd.h"
#include "tests/ops/harness.h"

enum { MAX = 3 * LANES + 3, BEYOND = 2 * LANES };

/* x[0…n), and behind it what nobody may read: it would show in every result. */
struct vector {
    float x[MAX + BEYOND];
};

static struct vector filled(int64_t n, float value) {
    struct vector v;
    for (int64_t i = 0; i < MAX + BEYOND; i++)
        v.x[i] = i < n ? value : NAN;
    for (int64_t i = n; i < MAX + BEYOND; i += 2)
        v.x[i] = 1e30f;
    return v;
}

static void the_largest_is_found_wherever_it_stands(void **state) {
    (void)state;
    for (int64_t n = 1; n <= MAX; n++)
        for (int64_t at = 0; at < n; at++) {
            struct vector v = filled(n, -3);
            v.x[at] = -2;
            assert_true(vec_max(v.x, n) == -2);
            assert_true(vec_max_abs(v.x, n) == (n > 1 ? 3 : 2));
            v.x[at] = -5;
            assert_true(vec_max(v.x, n) == (n > 1 ? -3 : -5));
            assert_true(vec_max_abs(v.x, n) == 5);
        }
}

static void the_largest_of_nothing_and_of_nans(void **state) {
    (void)state;
    struct vector v = filled(0, 0);
    assert_true(vec_max(v.x, 0) == -INFINITY);
    assert_true(vec_max_abs(v.x, 0) == 0);
    for (int64_t n = 2; n <= MAX; n++) {
        v = filled(n, NAN);
        v.x[n / 2] = -7;
        assert_true(vec_max(v.x, n) == -7);
        assert_true(vec_max_abs(v.x, n) == 7);
    }
}

static void a_range_is_found_wherever_its_ends_stand(void **state) {
    (void)state;
    for (int64_t n = 1; n <= MAX; n++)
        for (int64_t at = 0; at < n; at++)
            for (int sign = -1; sign <= 1; sign += 2) {
                struct vector v = filled(n, 3);
                v.x[at] = 3 + (float)sign;
                struct range r = grid_range(v.x, n);
                assert_true(r.min == (n == 1 || sign < 0 ? v.x[at] : 3));
                assert_true(r.max == (n == 1 || sign > 0 ? v.x[at] : 3));
            }
}

/* Small integers: every order of additions gives the same sum. */
static void sums_take_every_element_once(void **state) {
    (void)state;
    for (int64_t n = 0; n <= MAX; n++) {
        struct vector v = filled(n, 0), w = filled(n, 0);
        double sum = 0, sum_abs = 0, squares = 0, dot = 0;
        for (int64_t i = 0; i < n; i++) {
            v.x[i] = (float)((i * i + 3) % 11 - 4);
            w.x[i] = (float)(i % 7 + 1);
            sum += v.x[i];
            sum_abs += fabsf(v.x[i]);
            squares += v.x[i] * v.x[i];
            dot += v.x[i] * w.x[i];
        }
        assert_true(vec_sum(v.x, n) == sum);
        assert_true(vec_sum_abs(v.x, n) == sum_abs);
        assert_true(vec_sum_squares(v.x, n) == squares);
        assert_true(vec_dot(v.x, w.x, n) == dot);
    }
}

/* 2^24 + 1 is no float, and the square of 1e30 neither. */
static void sums_are_formed_in_double(void **state) {
    (void)state;
    for (int64_t n = 2 * LANES + 1; n <= MAX; n++) {
        struct vector v = filled(n, 0);
        v.x[0] = v.x[n - 1 - (n - 1) % LANES] = 1e30f;
        assert_true(vec_sum_squares(v.x, n) == 2 * ((double)1e30f * 1e30f));
        assert_true(vec_dot(v.x, v.x, n) == 2 * ((double)1e30f * 1e30f));
        v.x[0] = 16777216;
        v.x[n - 1 - (n - 1) % LANES] = 0;
        v.x[LANES] = 1;
        assert_true(vec_sum(v.x, n) == 16777217);
        assert_true(vec_sum_abs(v.x, n) == 16777217);
    }
}

static void a_value_that_is_no_number_is_seen_wherever_it_stands(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int64_t n = 0; n <= MAX; n++) {
        struct vector v = filled(n, 3e38f);
        for (int64_t i = n; i < MAX + BEYOND; i++)
            v.x[i] = NAN;
        assert_true(vec_finite(v.x, n));
        for (int64_t at = 0; at < n; at++)
            for (int b = 0; b < 3; b++) {
                v.x[at] = bad[b];
                assert_false(vec_finite(v.x, n));
                v.x[at] = -3e38f;
            }
    }
}

static void elementwise_operations_stay_within_the_vector(void **state) {
    (void)state;
    for (int64_t n = 0; n <= MAX; n++) {
        struct vector v = filled(n, 5), before = v;
        vec_scale(v.x, n, 0.5f);
        for (int64_t i = 0; i < n; i++)
            assert_true(v.x[i] == 2.5f);
        vec_exp(v.x, n, 1.5f);
        for (int64_t i = 0; i < n; i++)
            assert_near(v.x[i], exp(1), 5e-7);
        assert_memory_equal(v.x + n, before.x + n, (size_t)(MAX + BEYOND - n) * sizeof *v.x);
    }
}

/* Within 2 ulp of e^x, from results that are subnormal to the largest float. */
static void the_exponential_is_good_to_two_ulp(void **state) {
    (void)state;
    for (int i = 0; i < 14060; i++) {
        float x = (float)(-103.9 + 0.0137 * i);
        double want = exp((double)x), ulp = nextafterf((float)want, INFINITY) - (double)(float)want;
        assert_near(exp_f32(x), want, 2 * ulp);
    }
    assert_true(exp_f32(0) == 1);
    assert_true(exp_f32(-105) == 0 && exp_f32(-1e30f) == 0 && exp_f32(-INFINITY) == 0);
    assert_true(isinf(exp_f32(89)) && isinf(exp_f32(1e30f)) && isinf(exp_f32(INFINITY)));
    assert_true(isnan(exp_f32(NAN)));
}

static void the_exponential_less_one_is_good_to_two_ulp(void **state) {
    (void)state;
    for (int i = 0; i < 200000; i++) {
        float x = -ldexpf(1 + (float)(i % 1000) / 1000, i / 1000 % 40 - 33);
        double want = expm1((double)x), ulp = (double)(float)want - nextafterf((float)want, -INFINITY);
        assert_near(expm1_f32(x), want, 2 * ulp);
    }
    assert_true(expm1_f32(0) == 0 && expm1_f32(-200) == -1 && expm1_f32(-INFINITY) == -1);
    assert_true(isnan(expm1_f32(NAN)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_largest_is_found_wherever_it_stands),
        cmocka_unit_test(the_largest_of_nothing_and_of_nans),
        cmocka_unit_test(a_range_is_found_wherever_its_ends_stand),
        cmocka_unit_test(sums_take_every_element_once),
        cmocka_unit_test(sums_are_formed_in_double),
        cmocka_unit_test(a_value_that_is_no_number_is_seen_wherever_it_stands),
        cmocka_unit_test(elementwise_operations_stay_within_the_vector),
        cmocka_unit_test(the_exponential_is_good_to_two_ulp),
        cmocka_unit_test(the_exponential_less_one_is_good_to_two_ulp),
    };
    return cmocka_run_group_tests_name("vec", tests, NULL, NULL);
}
