/* What moves scales: their slopes, over groups of every kind, and Adam's steps, against float64. */
#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"
#include "tests/ops/reference_back.h"

enum { PAD = 3 };

struct slopes {
    float *x, *g, *w_hat, *before;
    int32_t *group_of; /* [K] of every column, for the reference */
    struct scale_back_args a;
    int64_t tokens, rows, cols, groups;
};

/* Columns dealt out to groups in no order, as many to each as its size says. */
static void shuffle(int32_t *group_of, int64_t cols) {
    for (int64_t k = cols - 1; k > 0; k--) {
        int64_t other = below(k + 1);
        int32_t kept = group_of[k];
        group_of[k] = group_of[other];
        group_of[other] = kept;
    }
}

static struct slopes slopes(const struct shape *s, int group, bool scattered) {
    int64_t T = s->tokens, N = s->rows, K = s->cols, G = (K + group - 1) / group;
    struct slopes in = {.x = host_normal(T * K, 1),
                        .g = host_normal(T * N, 1e-3),
                        .w_hat = host_normal(N * K, 0.05),
                        .before = host_normal(N * G, 1e-4),
                        .group_of = host_bytes((size_t)K * sizeof(int32_t)),
                        .tokens = T,
                        .rows = N,
                        .cols = K,
                        .groups = G};
    for (int64_t k = 0; k < K; k++)
        in.group_of[k] = (int32_t)(k / group);
    in.a = (struct scale_back_args){.x = put_activation(in.x, T, K, PAD),
                                    .g = put_activation(in.g, T, N, 2 * PAD + 1),
                                    .w_hat = put_activation(in.w_hat, N, K, 2),
                                    .group = group,
                                    .slope = put(in.before, N * G)};
    if (scattered) {
        shuffle(in.group_of, K);
        in.a.group_of = put_stored(in.group_of, DTYPE_F32, K);
    }
    return in;
}

/* Of the magnitudes behind a slope: sums over tokens in fp32. */
static const double BOUND = 5e-7;

static void slope_case(const struct shape *s, int group, bool scattered) {
    struct slopes in = slopes(s, group, scattered);
    int64_t count = in.rows * in.groups;
    double *want = host_doubles(count), *scale = host_doubles(count);
    for (int64_t i = 0; i < count; i++) {
        want[i] = in.before[i];
        scale[i] = fabsf(in.before[i]);
    }
    struct ref_scale_back r = {in.x, in.g, in.w_hat, in.tokens, in.rows, in.cols, in.groups, in.group_of};
    ref_scale_back(&r, want, scale);
    assert_ok(dev.b->scale_back(dev.s, &in.a, &err));
    assert_close(get_floats(in.a.slope, count), want, scale, count, BOUND);
}

/* Whole rows, groups that divide the columns and groups of which the last is short. */
static void slopes_sum_over_groups(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++)
        for (int scattered = 0; scattered < 2; scattered++) {
            int cols = (int)shapes[i].cols;
            seed(10 + (uint64_t)i);
            slope_case(&shapes[i], cols, scattered);
            slope_case(&shapes[i], cols < 8 ? 1 : 8, scattered);
            slope_case(&shapes[i], cols / 2 + 1, scattered);
            slope_case(&shapes[i], cols < 64 ? cols : 64, scattered);
        }
}

/* More rows than are multiplied at a time, of more columns than make that many few. */
static void slopes_do_not_depend_on_how_rows_are_divided(void **state) {
    (void)state;
    const struct shape wide = {2, 140, 70000}, tall = {2, 5000, 9};
    seed(30);
    slope_case(&wide, 128, false);
    slope_case(&tall, 4, true);
}

/* Of one scale: what the loss Σ g·(x·ŵᵀ), linear in it, gains where it doubles. */
static void a_slope_is_what_the_loss_gains(void **state) {
    (void)state;
    const struct shape s = {6, 3, 10};
    seed(31);
    struct slopes in = slopes(&s, 4, false);
    assert_ok(dev.b->clear(dev.s, in.a.slope, (size_t)(in.rows * in.groups) * sizeof(float), &err));
    assert_ok(dev.b->scale_back(dev.s, &in.a, &err));
    const float *slope = get_floats(in.a.slope, in.rows * in.groups);
    for (int64_t n = 0; n < in.rows; n++)
        for (int64_t j = 0; j < in.groups; j++) {
            double gain = 0;
            for (int64_t t = 0; t < in.tokens; t++)
                for (int64_t k = 4 * j; k < 4 * j + 4 && k < in.cols; k++)
                    gain += (double)in.g[t * in.rows + n] * in.x[t * in.cols + k] * in.w_hat[n * in.cols + k];
            assert_near(slope[n * in.groups + j], gain, 1e-8);
        }
}

static void slopes_have_the_same_bits_again(void **state) {
    (void)state;
    const struct shape s = {130, 300, 257};
    for (int scattered = 0; scattered < 2; scattered++) {
        seed(32);
        struct slopes once = slopes(&s, 32, scattered);
        seed(32);
        struct slopes again = slopes(&s, 32, scattered);
        size_t bytes = (size_t)(once.rows * once.groups) * sizeof(float);
        assert_ok(dev.b->scale_back(dev.s, &once.a, &err));
        assert_ok(dev.b->scale_back(dev.s, &again.a, &err));
        assert_memory_equal(get_floats(once.a.slope, once.rows * once.groups),
                            get_floats(again.a.slope, once.rows * once.groups), bytes);
    }
}

static void no_tokens_leave_slopes_as_they_are(void **state) {
    (void)state;
    const struct shape s = {1, 7, 10};
    seed(33);
    struct slopes in = slopes(&s, 4, false);
    in.a.x.rows = in.a.g.rows = 0;
    assert_ok(dev.b->scale_back(dev.s, &in.a, &err));
    assert_memory_equal(get_floats(in.a.slope, 7 * 3), in.before, 7 * 3 * sizeof(float));
}

/* Values on the device, and the same in float64. */
struct optimizer {
    struct adam_args a;
    int64_t count;
    double *mean, *square, *theta;
    const float *base;
};

static struct optimizer optimizer(int64_t count) {
    struct optimizer o = {.count = count,
                          .mean = host_doubles(count),
                          .square = host_doubles(count),
                          .theta = host_doubles(count),
                          .base = host_normal(count, 0.01)};
    o.a = (struct adam_args){.count = count,
                             .rate = 3e-3f,
                             .beta1 = 0.9f,
                             .beta2 = 0.99f,
                             .epsilon = 1e-8f,
                             .base = put(o.base, count),
                             .slope = device_floats(count),
                             .mean = device_floats(count),
                             .square = device_floats(count),
                             .theta = device_floats(count),
                             .scale = device_floats(count)};
    return o;
}

static void ref_step(struct optimizer *o, const float *slope) {
    double beta1 = o->a.beta1, beta2 = o->a.beta2, step = (double)o->a.step;
    for (int64_t i = 0; i < o->count; i++) {
        o->mean[i] = beta1 * o->mean[i] + (1 - beta1) * slope[i];
        o->square[i] = beta2 * o->square[i] + (1 - beta2) * slope[i] * slope[i];
        double mean = o->mean[i] / (1 - pow(beta1, step)), square = o->square[i] / (1 - pow(beta2, step));
        o->theta[i] -= o->a.rate * mean / (sqrt(square) + o->a.epsilon);
    }
}

/* Slopes of every size, some 0: θ moves by a rate or so a step, and each step is good to a few roundings of that. */
static void take_steps(struct optimizer *o, int steps) {
    int64_t count = o->count;
    for (o->a.step = 1; o->a.step <= steps; o->a.step++) {
        float *slope = host_normal(count, 1);
        for (int64_t i = 0; i < count; i++)
            slope[i] *= i % 5 == 4 ? 0 : (float)pow(10, (double)(i % 9) - 9);
        o->a.slope = put(slope, count);
        assert_ok(dev.b->adam(dev.s, &o->a, &err));
        ref_step(o, slope);
        const float *cleared = get_floats(o->a.slope, count);
        for (int64_t i = 0; i < count; i++)
            assert_true(cleared[i] == 0);
    }
}

static void assert_optimizer(const struct optimizer *o, int steps) {
    double *scale = host_doubles(o->count), *magnitude = host_doubles(o->count);
    for (int64_t i = 0; i < o->count; i++) {
        scale[i] = o->base[i] * exp(o->theta[i]);
        magnitude[i] = fabs(scale[i]) + 1e-30;
    }
    assert_close(get_floats(o->a.theta, o->count), o->theta, NULL, o->count, 1e-6 * (double)o->a.rate * steps);
    assert_close(get_floats(o->a.scale, o->count), scale, magnitude, o->count, 1e-6);
}

static void adam_takes_the_steps_of_its_paper(void **state) {
    (void)state;
    static const int64_t counts[] = {1, 7, 4099, 20000};
    for (int i = 0; i < 4; i++) {
        seed(40 + (uint64_t)i);
        struct optimizer o = optimizer(counts[i]);
        take_steps(&o, 12);
        assert_optimizer(&o, 12);
    }
}

/* The first step is the rate itself, whatever the slope's size; a slope that is 0 moves nothing and is never NaN. */
static void the_first_step_is_the_rate(void **state) {
    (void)state;
    enum { COUNT = 4 };
    static const float slope[COUNT] = {1e-3f, -100, 0, 1e-4f};
    struct optimizer o = optimizer(COUNT);
    o.a.slope = put(slope, COUNT);
    o.a.step = 1;
    assert_ok(dev.b->adam(dev.s, &o.a, &err));
    const float *theta = get_floats(o.a.theta, COUNT), *scale = get_floats(o.a.scale, COUNT);
    assert_near(theta[0], -3e-3, 1e-7);
    assert_near(theta[1], 3e-3, 1e-8);
    assert_true(theta[2] == 0 && scale[2] == o.base[2]);
    assert_near(theta[3], -3e-3, 1e-6);
}

/* After so many steps that β^step is nothing, bias correction is none. */
static void late_steps_are_not_corrected(void **state) {
    (void)state;
    seed(44);
    struct optimizer o = optimizer(100);
    o.a.step = INT64_MAX;
    const float *slope = host_normal(100, 1e-3);
    o.a.slope = put(slope, 100);
    assert_ok(dev.b->adam(dev.s, &o.a, &err));
    ref_step(&o, slope);
    assert_optimizer(&o, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slopes_sum_over_groups),
        cmocka_unit_test(slopes_do_not_depend_on_how_rows_are_divided),
        cmocka_unit_test(a_slope_is_what_the_loss_gains),
        cmocka_unit_test(slopes_have_the_same_bits_again),
        cmocka_unit_test(no_tokens_leave_slopes_as_they_are),
        cmocka_unit_test(adam_takes_the_steps_of_its_paper),
        cmocka_unit_test(the_first_step_is_the_rate),
        cmocka_unit_test(late_steps_are_not_corrected),
    };
    return RUN_ON_BACKENDS("tuning scales", tests);
}
