/* Fisher scores and token weights against float64. */
#include <math.h>

#include "tests/ops/harness.h"

enum { PAD = 3 };

struct fisher_case {
    int64_t windows, length, rows, cols; /* N, K */
};
static const struct fisher_case cases[] = {
    {1, 1, 1, 1},     {2, 3, 5, 7},      {3, 1, 17, 31},     {1, 65, 64, 72},
    {2, 65, 33, 100}, {1, 130, 513, 40}, {3, 43, 1100, 257}, {1, 64, 512, 16},
};

struct inputs {
    float *x, *g, *d;
    struct fisher_args a;
};

static struct inputs inputs(const struct fisher_case *c) {
    int64_t T = c->windows * c->length;
    struct inputs in = {
        .x = host_normal(T * c->cols, 1), .g = host_normal(T * c->rows, 1), .d = host_normal(c->rows * c->cols, 0.01)};
    in.a = (struct fisher_args){.x = put_activation(in.x, T, c->cols, PAD),
                                .g = put_activation(in.g, T, c->rows, 1),
                                .d = put_activation(in.d, c->rows, c->cols, 2 * PAD),
                                .length = c->length,
                                .sum = device_doubles(c->windows),
                                .squares = device_doubles(c->windows)};
    return in;
}

/* g_t · (x_t·Dᵀ), and the magnitudes behind it. */
static double dot_of(const struct fisher_case *c, const struct inputs *in, int64_t t, double *magnitude) {
    double sum = 0;
    *magnitude = 0;
    for (int64_t n = 0; n < c->rows; n++)
        for (int64_t k = 0; k < c->cols; k++) {
            double product = (double)in->d[n * c->cols + k] * in->x[t * c->cols + k] * in->g[t * c->rows + n];
            sum += product;
            *magnitude += fabs(product);
        }
    return sum;
}

/* A dot is off by `unit` of its magnitudes: f by 2·|dot| times that and its square. */
static void fisher_case(const struct fisher_case *c) {
    struct inputs in = inputs(c);
    assert_ok(dev.b->fisher(dev.s, &in.a, &err));
    const double *sum = get_doubles(in.a.sum, c->windows), *squares = get_doubles(in.a.squares, c->windows);
    double unit = dev.b->activation == DTYPE_BF16 ? 0x1p-8 : 5e-7; /* x·Dᵀ is rounded to bf16 */
    for (int64_t i = 0; i < c->windows; i++) {
        double want = 0, want_squares = 0, tolerance = 0, squares_tolerance = 0;
        for (int64_t t = i * c->length; t < (i + 1) * c->length; t++) {
            double magnitude, dot = dot_of(c, &in, t, &magnitude), off = unit * magnitude;
            double f = dot * dot, f_off = 2 * fabs(dot) * off + off * off;
            want += f;
            want_squares += f * f;
            tolerance += f_off;
            squares_tolerance += 2 * f * f_off + f_off * f_off;
        }
        assert_near(sum[i], want, tolerance);
        assert_near(squares[i], want_squares, squares_tolerance);
    }
}

static void fisher_sums_squared_losses_by_window(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        seed(60 + i);
        fisher_case(&cases[i]);
    }
}

static void weights_that_stay_cost_nothing(void **state) {
    (void)state;
    const struct fisher_case c = {2, 5, 12, 24};
    seed(70);
    struct inputs in = inputs(&c);
    in.a.d = put_activation(host_zeros(c.rows * c.cols), c.rows, c.cols, 0);
    assert_ok(dev.b->fisher(dev.s, &in.a, &err));
    assert_true(get_doubles(in.a.sum, 2)[1] == 0 && get_doubles(in.a.squares, 2)[1] == 0);
}

/* What a window scores does not depend on which others are in the call, but for how a product of another size adds up:
 * in bf16 that may round an output's error to its neighbour. */
static void a_window_scores_the_same_alone(void **state) {
    (void)state;
    const struct fisher_case c = {3, 64, 40, 96};
    double bound = dev.b->activation == DTYPE_BF16 ? 0x1p-8 : 1e-6;
    seed(71);
    struct inputs in = inputs(&c);
    assert_ok(dev.b->fisher(dev.s, &in.a, &err));
    double together = get_doubles(in.a.sum, 3)[2];
    in.a.x = put_activation(in.x + 2 * 64 * 96, 64, 96, PAD);
    in.a.g = put_activation(in.g + 2 * 64 * 40, 64, 40, 1);
    assert_ok(dev.b->fisher(dev.s, &in.a, &err));
    assert_near(get_doubles(in.a.sum, 1)[0], together, bound * together);
}

static void row_norms_sum_squares_and_their_roots(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++) {
        int64_t T = shapes[i].tokens, N = shapes[i].rows;
        seed(80);
        float *g = host_normal(T * N, 1e-3);
        double *want = host_doubles(T);
        struct row_norms_args a = {.g = put_activation(g, T, N, PAD), .norms = device_doubles(T)};
        for (int64_t k = 0; k < T * N; k++)
            want[k / N] += (double)g[k] * g[k];
        assert_ok(dev.b->row_norms(dev.s, &a, &err));
        const double *once = get_doubles(a.norms, T);
        a.add = true;
        a.roots = device_floats(T);
        assert_ok(dev.b->row_norms(dev.s, &a, &err));
        const double *twice = get_doubles(a.norms, T);
        const float *roots = get_floats(a.roots, T);
        for (int64_t t = 0; t < T; t++) {
            assert_near(once[t], want[t], 1e-13 * want[t]);
            assert_near(twice[t], 2 * want[t], 2e-13 * want[t]);
            assert_near(roots[t], sqrt(2 * want[t]), 1e-7 * sqrt(2 * want[t]));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fisher_sums_squared_losses_by_window),
        cmocka_unit_test(weights_that_stay_cost_nothing),
        cmocka_unit_test(a_window_scores_the_same_alone),
        cmocka_unit_test(row_norms_sum_squares_and_their_roots),
    };
    return RUN_ON_BACKENDS("fisher", tests);
}
