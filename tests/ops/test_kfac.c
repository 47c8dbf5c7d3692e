/* tr(G·D·H·Dᵀ), with all of G and with its diagonal, against float64. */
#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"

struct kfac_case {
    int64_t tokens, rows, cols; /* T, N, K */
    double common;              /* of x, g and D beside what is random in them: what does not cancel */
};
/* More than a chunk of rows, more than a tile either way, none of their multiples; fewer tokens than channels. */
static const struct kfac_case cases[] = {
    {1, 1, 1, 0},     {5, 3, 7, 0.5},      {9, 17, 33, 0},     {40, 64, 24, 0.5},  {20, 600, 40, 0.3},
    {30, 70, 530, 0}, {12, 530, 300, 0.5}, {6, 4200, 20, 0.3}, {4, 12, 4200, 0.3},
};

struct inputs {
    double *d, *h, *g; /* [N, K], [K, K], [N, N] as the device has them */
    struct kfac_args a;
};

static float *mixed(int64_t count, double size, double common) {
    float *x = host_normal(count, size);
    for (int64_t i = 0; i < count; i++)
        x[i] += (float)(size * common);
    return x;
}

static struct mat gram_of(int64_t tokens, int64_t channels, double size, double common) {
    struct mat h = device_gram(channels);
    struct gram_args a = {.x = put_activation(mixed(tokens * channels, size, common), tokens, channels, 3), .h = h};
    assert_ok(dev.b->gram(dev.s, &a, &err));
    assert_ok(dev.b->gram_finish(dev.s, h, &err));
    return h;
}

static struct inputs inputs(const struct kfac_case *c) {
    int64_t count = c->rows * c->cols;
    float *w = host_normal(count, 0.05), *w_hat = mixed(count, 0.01, c->common);
    struct inputs in = {.d = host_doubles(count)};
    in.a.w = put_activation(w, c->rows, c->cols, 2);
    for (int64_t i = 0; i < count; i++) {
        w_hat[i] += w[i];
        in.d[i] = (double)w[i] - w_hat[i];
    }
    in.a.w_hat = put_matrix(w_hat, c->rows, c->cols, 1);
    in.a.h = gram_of(c->tokens, c->cols, 1, c->common);
    in.a.g = gram_of(c->tokens, c->rows, 1e-3, c->common);
    in.h = get_gram(in.a.h);
    in.g = get_gram(in.a.g);
    return in;
}

/* Row n of D·H, and of |D|·|H|. */
static void times_gram(const struct kfac_case *c, const struct inputs *in, int64_t n, double *product, double *scale) {
    for (int64_t k = 0; k < c->cols; k++) {
        product[k] = scale[k] = 0;
        for (int64_t j = 0; j < c->cols; j++) {
            double term = in->d[n * c->cols + j] * in->h[j * c->cols + k];
            product[k] += term;
            scale[k] += fabs(term);
        }
    }
}

struct wanted {
    double kfac, diag, kfac_scale, diag_scale;
};

static struct wanted wanted(const struct kfac_case *c, const struct inputs *in) {
    struct wanted w = {0};
    double *product = host_doubles(c->cols), *scale = host_doubles(c->cols);
    for (int64_t n = 0; n < c->rows; n++) {
        times_gram(c, in, n, product, scale);
        for (int64_t m = 0; m < c->rows; m++) {
            double sum = 0, magnitude = 0, g = in->g[m * c->rows + n];
            for (int64_t k = 0; k < c->cols; k++) {
                sum += in->d[m * c->cols + k] * product[k];
                magnitude += fabs(in->d[m * c->cols + k]) * scale[k];
            }
            w.kfac += g * sum;
            w.kfac_scale += fabs(g) * magnitude;
            if (m == n) w.diag += g * sum;
            if (m == n) w.diag_scale += fabs(g) * magnitude;
        }
    }
    return w;
}

/* In fp64 the difference is rounded to fp32, twice; by TF32 D and D·H are rounded besides, H and G cut off. */
static double bound(void) {
    return dev.b->gram_type == DTYPE_F64 ? 0x1p-22 : 0x1p-8;
}

static void traces_are_those_of_their_definition(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        seed(90 + i);
        struct inputs in = inputs(&cases[i]);
        struct wanted want = wanted(&cases[i], &in);
        struct kfac_report got;
        assert_ok(dev.b->kfac(dev.s, &in.a, &got, &err));
        assert_near(got.kfac, want.kfac, bound() * want.kfac_scale);
        assert_near(got.diag, want.diag, bound() * want.diag_scale);
    }
}

/* One token: there is nothing to assume, and kfac is (g·D·xᵀ)². */
static void one_token_is_its_fisher_score(void **state) {
    (void)state;
    const struct kfac_case c = {1, 40, 56, 0.5};
    seed(99);
    struct inputs in = inputs(&c);
    float *x = host_normal(c.cols, 1), *g = host_normal(c.rows, 1);
    struct mat device_x = put_activation(x, 1, c.cols, 0), device_g = put_activation(g, 1, c.rows, 0);
    in.a.h = device_gram(c.cols);
    in.a.g = device_gram(c.rows);
    assert_ok(dev.b->gram(dev.s, &(struct gram_args){.x = device_x, .h = in.a.h}, &err));
    assert_ok(dev.b->gram(dev.s, &(struct gram_args){.x = device_g, .h = in.a.g}, &err));
    assert_ok(dev.b->gram_finish(dev.s, in.a.h, &err));
    assert_ok(dev.b->gram_finish(dev.s, in.a.g, &err));
    double dot = 0, magnitude = 0;
    for (int64_t i = 0; i < c.rows * c.cols; i++) {
        dot += g[i / c.cols] * in.d[i] * x[i % c.cols];
        magnitude += fabs(g[i / c.cols] * in.d[i] * x[i % c.cols]);
    }
    struct kfac_report got;
    assert_ok(dev.b->kfac(dev.s, &in.a, &got, &err));
    assert_near(got.kfac, dot * dot, 2 * (bound() + 0x1p-22) * magnitude * magnitude);
}

static void weights_that_stay_cost_nothing(void **state) {
    (void)state;
    const struct kfac_case c = {6, 12, 24, 0.5};
    seed(98);
    struct inputs in = inputs(&c);
    struct kfac_report got = {1, 1};
    in.a.w = in.a.w_hat;
    assert_ok(dev.b->kfac(dev.s, &in.a, &got, &err));
    assert_true(got.kfac == 0 && got.diag == 0);
}

static void results_do_not_depend_on_the_number_of_threads(void **state) {
    (void)state;
    const struct kfac_case c = {12, 1030, 300, 0};
    seed(97);
    struct inputs in = inputs(&c);
    struct kfac_report one, many;
    for (int threads = 1; threads <= 4; threads++) {
        struct backend_state *s;
        assert_ok(dev.b->open(&(struct backend_options){.threads = threads}, &s, &err));
        assert_ok(dev.b->kfac(s, &in.a, threads == 1 ? &one : &many, &err));
        dev.b->close(s);
        if (threads > 1) assert_memory_equal(&many, &one, sizeof one);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(traces_are_those_of_their_definition),
        cmocka_unit_test(one_token_is_its_fisher_score),
        cmocka_unit_test(weights_that_stay_cost_nothing),
    };
    const struct CMUnitTest cpu_tests[] = {cmocka_unit_test(results_do_not_depend_on_the_number_of_threads)};
    return RUN_ON_CPU("kfac's threads", cpu_tests) | RUN_ON_BACKENDS("kfac", tests);
}
