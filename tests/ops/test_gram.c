/* Gram matrices, channel statistics, and the drift computed from them. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/syrk.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

struct statistics {
    double *sum, *sum_abs;
    float *max_abs;
};

static double *dense_gram(const float *x, int64_t tokens, int64_t cols, double *scale) {
    double *h = host_doubles(cols * cols);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < cols; i++)
            for (int64_t j = 0; j < cols; j++) {
                double product = (double)x[t * cols + i] * x[t * cols + j];
                h[i * cols + j] += product;
                if (scale != NULL) scale[i * cols + j] += fabs(product);
            }
    return h;
}

static struct statistics get_statistics(const struct gram_args *a) {
    int64_t cols = a->x.cols;
    return (struct statistics){get_doubles(a->sum, cols), get_doubles(a->sum_abs, cols), get_floats(a->max_abs, cols)};
}

static void gram_case(int64_t tokens, int64_t cols) {
    float *x = host_normal(tokens * cols, 2);
    struct gram_args a = {put_activation(x, tokens, cols, 5), device_gram(cols), device_doubles(cols),
                          device_doubles(cols), device_floats(cols)};
    double *scale = host_doubles(cols * cols), *want = dense_gram(x, tokens, cols, scale);
    for (int pass = 1; pass <= 2; pass++) { /* the second window adds to the first */
        assert_ok(dev.b->gram(dev.s, &a, &err));
        const double *h = get_gram(a.h);
        struct statistics got = get_statistics(&a);
        for (int64_t i = 0; i < cols; i++)
            for (int64_t j = 0; j < cols; j++) {
                assert_near(h[i * cols + j], pass * want[i * cols + j], 2e-6 * pass * scale[i * cols + j]);
                assert_true(h[i * cols + j] == h[j * cols + i]);
            }
        for (int64_t k = 0; k < cols; k++) {
            double sum = 0, sum_abs = 0, max_abs = 0;
            for (int64_t t = 0; t < tokens; t++) {
                sum += x[t * cols + k];
                sum_abs += fabs((double)x[t * cols + k]);
                max_abs = fmax(max_abs, fabs((double)x[t * cols + k]));
            }
            assert_near(got.sum[k], pass * sum, 1e-12 * pass * sum_abs);
            assert_near(got.sum_abs[k], pass * sum_abs, 1e-12 * pass * sum_abs);
            assert_true(got.max_abs[k] == max_abs);
        }
    }
}

static void gram_accumulates_products_and_statistics(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++) {
        seed(30);
        gram_case(shapes[i].tokens, shapes[i].cols);
    }
}

/* The tiles that products over tokens are computed in lie side by side over the upper triangle. */
static void tiles_cover_the_upper_triangle_once(void **state) {
    (void)state;
    static const int64_t sides[] = {1, SYRK_TILE - 1, SYRK_TILE, SYRK_TILE + 1, 2 * SYRK_TILE, 3 * SYRK_TILE + 5};
    for (size_t s = 0; s < sizeof sides / sizeof *sides; s++) {
        int64_t side = sides[s], covered = 0;
        uint8_t *seen = host_bytes((size_t)(side * side));
        for (int64_t k = 0; k < syrk_tile_count(side); k++) {
            struct syrk_tile t = syrk_tile_at(side, k);
            assert_true(t.rows > 0 && t.rows <= SYRK_TILE && t.cols > 0 && t.cols <= SYRK_TILE && t.row <= t.col);
            assert_true(t.row >= 0 && t.row + t.rows <= side && t.col + t.cols <= side);
            for (int64_t i = t.row; i < t.row + t.rows; i++)
                for (int64_t j = t.col; j < t.col + t.cols; j++) {
                    assert_false(seen[i * side + j]);
                    seen[i * side + j] = 1;
                    covered += j >= i;
                }
        }
        assert_int_equal(covered, side * (side + 1) / 2);
    }
}

static void each_statistic_is_optional(void **state) {
    (void)state;
    enum { T = 3, K = 20 };
    seed(31);
    float *x = host_normal(T * K, 1);
    struct gram_args a = {put_activation(x, T, K, 0), device_gram(K), device_doubles(K), device_doubles(K),
                          device_floats(K)};
    struct gram_args single = {a.x, device_gram(K), device_doubles(K), device_doubles(K), device_floats(K)};
    assert_ok(dev.b->gram(dev.s, &a, &err));
    for (int which = -1; which < 3; which++) {
        struct gram_args b = {a.x, device_gram(K), which == 0 ? single.sum : NULL, which == 1 ? single.sum_abs : NULL,
                              which == 2 ? single.max_abs : NULL};
        assert_ok(dev.b->gram(dev.s, &b, &err));
    }
    struct statistics all = get_statistics(&a), one = get_statistics(&single);
    for (int k = 0; k < K; k++)
        assert_true(one.sum[k] == all.sum[k] && one.sum_abs[k] == all.sum_abs[k] && one.max_abs[k] == all.max_abs[k]);
}

/* Inputs with a strong common direction and a few huge channels, as real activations have. */
static float *activations(int64_t tokens, int64_t cols) {
    float *x = host_normal(tokens * cols, 1);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t k = 0; k < cols; k++) {
            float *v = &x[t * cols + k];
            if (k % 97 == 5) *v *= 60;
            *v += (float)(t == 0 ? 50 : 0.7);
        }
    return x;
}

/* A Linear, one candidate's ŵ and the H of some activations. */
struct linear_case {
    float *x, *w, *w_hat;
    double *d, *w64; /* [N, K] */
    struct error_args args;
    int64_t tokens, rows, cols;
};

static struct linear_case linear_case(int64_t tokens, int64_t rows, int64_t cols, const struct candidate *c) {
    int64_t count = rows * cols;
    struct linear_case l = {.tokens = tokens, .rows = rows, .cols = cols};
    l.x = activations(tokens, cols);
    l.w = host_bf16(count, 0.02);
    struct quantized q = device_quantized(rows, cols, c);
    struct quantize_report report;
    l.args.w = put_matrix(l.w, rows, cols, 3);
    assert_ok(dev.b->quantize(
        dev.s, &(struct quantize_args){.w = l.args.w, .candidate = *c, .out = &q, .report = &report}, 1, &err));
    l.args.w_hat = put_matrix(l.w, rows, cols, 1);
    assert_ok(dev.b->dequantize(dev.s, &(struct dequantize_args){.q = &q, .out = l.args.w_hat}, &err));
    l.w_hat = get_matrix(l.args.w_hat);
    l.args.h = device_gram(cols);
    assert_ok(dev.b->gram(dev.s, &(struct gram_args){.x = put_activation(l.x, tokens, cols, 0), .h = l.args.h}, &err));
    assert_ok(dev.b->gram_finish(dev.s, l.args.h, &err));
    l.d = host_doubles(count);
    l.w64 = host_doubles(count);
    for (int64_t i = 0; i < count; i++) {
        l.w64[i] = l.w[i];
        l.d[i] = (double)l.w[i] - l.w_hat[i];
    }
    return l;
}

static void check_weight_errors(const struct linear_case *l, const struct error_report *r) {
    double squares = 0, weight = 0, sum = 0, max = 0;
    int64_t count = l->rows * l->cols;
    for (int64_t i = 0; i < count; i++) {
        squares += l->d[i] * l->d[i];
        weight += l->w64[i] * l->w64[i];
        sum += fabs(l->d[i]);
        max = fmax(max, fabs(l->d[i]));
    }
    assert_near(r->frobenius, sqrt(squares), 1e-7 * sqrt(squares));
    assert_near(r->weight_frobenius, sqrt(weight), 1e-12 * sqrt(weight));
    assert_near(r->mean_abs, sum / (double)count, 1e-7 * sum / (double)count);
    assert_near(r->max_abs, max, 1e-7 * max);
}

/* D · H in TF32. */
static const double TF32_BOUND = 1e-3;

/* Output energy of errors that are not correlated with the input. Where they are, such that an output is small because
 * its terms cancel, TF32 keeps so many digits of this and not of what is left. */
static double usual_energy(const struct linear_case *l, const struct error_report *r) {
    double inputs = 0;
    for (int64_t i = 0; i < l->tokens * l->cols; i++)
        inputs += (double)l->x[i] * l->x[i];
    return inputs * r->frobenius * r->frobenius / (double)l->cols;
}

/* Drift from H within 1e-5 relative of the output error computed directly in float64. */
static void drift_equals_the_output_error(void **state) {
    (void)state;
    static const struct candidate candidates[] = {
        {.method = METHOD_RTN, .bits = 2, .group = 64}, {.method = METHOD_RTN, .bits = 8, .group = 32},
        {.method = METHOD_HQQ, .bits = 3, .group = 64}, {.method = METHOD_HQQ, .bits = 4, .group = 0},
        {.method = METHOD_HQQ, .bits = 8, .group = 64},
    };
    static const struct shape linears[] = {{40, 24, 64}, {90, 70, 300}, {25, 1100, 96}, {1, 5, 520}};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
        for (size_t c = 0; c < sizeof candidates / sizeof *candidates; c++) {
            seed(32);
            struct linear_case l = linear_case(linears[i].tokens, linears[i].rows, linears[i].cols, &candidates[c]);
            struct error_report r;
            assert_ok(dev.b->error(dev.s, &l.args, &r, &err));
            double num = ref_output_energy(l.x, l.d, l.tokens, l.rows, l.cols);
            double den = ref_output_energy(l.x, l.w64, l.tokens, l.rows, l.cols);
            bool tf32 = dev.b->gram_type == DTYPE_F32;
            double bound = tf32 ? TF32_BOUND : 1e-5, usual = tf32 ? usual_energy(&l, &r) : 0;
            assert_near(r.drift_den, den, bound * den);
            assert_near(r.drift_num / r.drift_den, num / den, bound * (num + usual) / den);
            check_weight_errors(&l, &r);
        }
}

static struct error_report error_on_threads(int threads, const struct linear_case *l, float *x, double *h) {
    struct backend_state *s;
    struct error_report report;
    struct error_args a = l->args;
    struct gram_args g = {.x = matf(x, l->tokens, l->cols), .h = matd(h, l->cols, l->cols)};
    assert_ok(dev.b->open(&(struct backend_options){.threads = threads}, &s, &err));
    assert_ok(dev.b->gram(s, &g, &err));
    assert_ok(dev.b->gram_finish(s, g.h, &err));
    a.h = g.h;
    assert_ok(dev.b->error(s, &a, &report, &err));
    dev.b->close(s);
    return report;
}

/* Several tiles and chunks, each thread with its own workspace. */
static void results_do_not_depend_on_the_number_of_threads(void **state) {
    (void)state;
    enum { K = 3 * SYRK_TILE + 10, N = 1030, T = 20 };
    seed(36);
    struct linear_case l = linear_case(T, N, K, &(struct candidate){.method = METHOD_RTN, .bits = 3, .group = 64});
    double *h_one = host_doubles((int64_t)K * K), *h = host_doubles((int64_t)K * K);
    struct error_report one = error_on_threads(1, &l, l.x, h_one);
    for (int threads = 2; threads <= 5; threads++) {
        memset(h, 0, sizeof(double) * K * K);
        struct error_report many = error_on_threads(threads, &l, l.x, h);
        assert_memory_equal(h, h_one, sizeof(double) * K * K);
        assert_memory_equal(&many, &one, sizeof one);
    }
    double den = ref_output_energy(l.x, l.w64, T, N, K);
    assert_near(one.drift_den, den, 1e-5 * den);
    check_weight_errors(&l, &one);
}

static void a_known_denominator_is_taken_over(void **state) {
    (void)state;
    seed(33);
    struct linear_case l = linear_case(20, 16, 80, &(struct candidate){.method = METHOD_RTN, .bits = 3, .group = 16});
    struct error_report first, second;
    assert_ok(dev.b->error(dev.s, &l.args, &first, &err));
    const double known = 42;
    l.args.drift_den = &known;
    assert_ok(dev.b->error(dev.s, &l.args, &second, &err));
    assert_true(second.drift_den == known && second.drift_num == first.drift_num);
    assert_true(second.weight_frobenius == first.weight_frobenius);
}

/* Rounded to what Linears read and write, in rows that lie apart. */
static void the_difference_is_handed_out(void **state) {
    (void)state;
    seed(37);
    enum { N = 16, K = 80 };
    struct linear_case l = linear_case(20, N, K, &(struct candidate){.method = METHOD_RTN, .bits = 3, .group = 16});
    struct error_report with, without;
    assert_ok(dev.b->error(dev.s, &l.args, &without, &err));
    l.args.difference = put_activation(host_zeros(N * K), N, K, 3);
    assert_ok(dev.b->error(dev.s, &l.args, &with, &err));
    assert_memory_equal(&with, &without, sizeof with);
    double *scale = host_doubles(N * K);
    for (int i = 0; i < N * K; i++)
        scale[i] = fabs(l.d[i]);
    assert_matrix(l.args.difference, l.d, scale, 1e-7);
    l.args.h = (struct mat){0};
    assert_ok(dev.b->error(dev.s, &l.args, &with, &err));
    assert_matrix(l.args.difference, l.d, scale, 1e-7);
}

static void without_h_there_is_no_drift(void **state) {
    (void)state;
    seed(34);
    struct linear_case l = linear_case(20, 16, 80, &(struct candidate){.method = METHOD_RTN, .bits = 3, .group = 16});
    const double known = 42;
    l.args.h = (struct mat){0};
    l.args.drift_den = &known;
    struct error_report r;
    assert_ok(dev.b->error(dev.s, &l.args, &r, &err));
    assert_true(r.drift_num == 0 && r.drift_den == 0);
    check_weight_errors(&l, &r);
}

static void a_perfect_copy_has_no_error(void **state) {
    (void)state;
    seed(35);
    struct linear_case l = linear_case(20, 16, 80, &(struct candidate){.method = METHOD_RTN, .bits = 3, .group = 16});
    l.args.w_hat = l.args.w;
    struct error_report r;
    assert_ok(dev.b->error(dev.s, &l.args, &r, &err));
    assert_true(r.drift_num == 0 && r.drift_den > 0 && r.frobenius == 0 && r.max_abs == 0 && r.mean_abs == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gram_accumulates_products_and_statistics),
        cmocka_unit_test(each_statistic_is_optional),
        cmocka_unit_test(drift_equals_the_output_error),
        cmocka_unit_test(a_known_denominator_is_taken_over),
        cmocka_unit_test(without_h_there_is_no_drift),
        cmocka_unit_test(the_difference_is_handed_out),
        cmocka_unit_test(a_perfect_copy_has_no_error),
    };
    const struct CMUnitTest cpu_tests[] = {
        cmocka_unit_test(tiles_cover_the_upper_triangle_once),
        cmocka_unit_test(results_do_not_depend_on_the_number_of_threads),
    };
    return RUN_ON_CPU("gram's tiles", cpu_tests) | RUN_ON_BACKENDS("gram", tests);
}
