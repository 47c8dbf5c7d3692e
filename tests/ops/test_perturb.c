/* Gaussian noise on weights: every number against float64, and what makes it noise. */
#include <math.h>

#include "base/random.h"
#include "kernels/formats.h"
#include "tests/ops/harness.h"

static double ref_gaussian(uint64_t key, int64_t i) {
    uint64_t state = key, h = 0;
    for (int64_t step = 0; step <= i; step++)
        h = splitmix64(&state);
    double u = (double)((h >> 40) + 1) * 0x1p-24, v = (double)(h >> 16 & 0xffffff) * 0x1p-24;
    return sqrt(-2 * log(u)) * cos(2 * acos(-1) * v);
}

/* In place and beside, with columns between the rows. */
static void noise_matches_float64(void **state) {
    (void)state;
    static const struct { int64_t rows, cols; } sizes[] = {{1, 1}, {3, 17}, {33, 100}, {7, 300}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t rows = sizes[s].rows, cols = sizes[s].cols;
        seed(90 + s);
        float *w = host_normal(rows * cols, 0.02);
        struct perturb_args a = {.w = put_activation(w, rows, cols, 3), .key = 7 + s, .deviation = 0.005f};
        double *want = host_doubles(rows * cols), *scale = host_doubles(rows * cols);
        for (int64_t i = 0; i < rows * cols; i++) {
            double noise = a.deviation * ref_gaussian(a.key, i);
            want[i] = w[i] + noise;
            scale[i] = fabs((double)w[i]) + 6 * a.deviation; /* the angle is rounded: z strays in absolute terms */
        }
        a.out = put_matrix(host_zeros(rows * cols), rows, cols, 2);
        assert_ok(dev.b->perturb(dev.s, &a, &err));
        assert_matrix(a.out, want, scale, 0x1p-21);
        a.out = a.w;
        assert_ok(dev.b->perturb(dev.s, &a, &err));
        assert_matrix(a.out, want, scale, 0x1p-21);
    }
}

/* Mean 0, deviation 1, a fourth moment of 3, no correlation of neighbours, and other numbers under another key. */
static void noise_is_gaussian_and_independent(void **state) {
    (void)state;
    enum { N = 200, K = 500 };
    struct perturb_args a = {.w = put_activation(host_zeros(N * K), N, K, 0), .deviation = 1};
    a.out = put_matrix(host_zeros(N * K), N, K, 0);
    assert_ok(dev.b->perturb(dev.s, &a, &err));
    float *z = get_matrix(a.out);
    a.key = 1;
    assert_ok(dev.b->perturb(dev.s, &a, &err));
    float *other = get_matrix(a.out);
    double sum = 0, squares = 0, fourth = 0, beside = 0, below_ = 0, across = 0;
    for (int i = 0; i < N * K; i++) {
        double square = (double)z[i] * z[i];
        sum += z[i];
        squares += square;
        fourth += square * square;
        beside += i > 0 ? z[i] * z[i - 1] : 0;
        below_ += i >= K ? z[i] * z[i - K] : 0;
        across += z[i] * other[i];
    }
    const double n = N * K, four_sigma = 4 / sqrt(n);
    assert_near(sum / n, 0, four_sigma);
    assert_near(squares / n, 1, four_sigma * sqrt(2));
    assert_near(fourth / n, 3, four_sigma * sqrt(96));
    assert_near(beside / n, 0, four_sigma);
    assert_near(below_ / n, 0, four_sigma);
    assert_near(across / n, 0, four_sigma);
}

static void what_makes_no_sense_is_refused(void **state) {
    (void)state;
    struct mat m = put_matrix(host_zeros(12), 3, 4, 0);
#define PERTURB(...) dev.b->perturb(dev.s, &(struct perturb_args){__VA_ARGS__}, &err)
    assert_refused(PERTURB(m, 1, 1, mat_rows(m, 0, 2)), RC_INVALID, "perturb: out");
    assert_refused(PERTURB(m, 1, -1, m), RC_INVALID, "deviation");
    assert_refused(PERTURB(m, 1, NAN, m), RC_INVALID, "deviation");
    m.type = DTYPE_I32;
    assert_refused(PERTURB(m, 1, 1, m), RC_UNSUPPORTED, "F32, F16 or BF16");
#undef PERTURB
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(noise_matches_float64),
        cmocka_unit_test(noise_is_gaussian_and_independent),
        cmocka_unit_test(what_makes_no_sense_is_refused),
    };
    return RUN_ON_BACKENDS("perturb", tests);
}
