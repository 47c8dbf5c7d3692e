/* GPTQ: the factor of H and the codes, against float64 (reference_gptq.h) and against NumPy. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "tests/ops/calibration.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference.h"
#include "tests/ops/reference_gptq.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

/* A code may differ from the reference's where that one's weight lies so close to a tie, in steps of the grid: fp32's
 * rounding of U and of the corrections, which the step of a fine grid magnifies. */
static double near_tie(int bits) {
    return 5e-7 * (1 << bits);
}

static void release(struct factor *f) {
    factor_release(dev.b, dev.s, f);
}

static const enum column_order orders[] = {ORDER_GROUP_AWARE, ORDER_NATURAL, ORDER_ACTIVATION, ORDER_STATIC_GROUPS};
static const int groups[] = {16, 64, 100, 0};

/* What a case computes with: H, and its factor by the backend and by the reference. */
struct calibration {
    double *h, *u;
    int32_t *steps;
    struct factor factor;
    enum column_order order;
    int group;
};

static struct calibration calibrate(double *h, int64_t cols, enum column_order order, int group, double damp) {
    struct calibration c = {
        h, host_doubles(cols * cols), host_bytes((size_t)cols * sizeof(int32_t)), device_factor(cols), order, group};
    struct factor_args a = {put_gram(h, cols), order, group, damp, &c.factor};
    assert_ok(dev.b->factor(dev.s, &a, &err));
    ref_order(h, cols, group, order, c.steps);
    assert_true(ref_factor(h, cols, c.steps, c.factor.damp, c.u));
    return c;
}

/* U to fp32's rounding, as seen from the diagonal, which is what errors are divided by. */
static void check_factor_of(const struct calibration *c, int64_t cols) {
    double *scale = host_doubles(cols * cols);
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < cols; j++)
            scale[i * cols + j] = j < i ? 0 : c->u[i * cols + i];
    assert_close(get_floats(c->factor.upper, cols * cols), c->u, scale, cols * cols, 1e-6);
    assert_memory_equal(c->factor.order, c->steps, (size_t)cols * sizeof(int32_t));
    for (int64_t k = 0; k < cols; k++)
        assert_int_equal(c->factor.dead[k], c->h[k * cols + k] == 0);
}

static void the_factor_is_that_of_the_inverse_in_every_order(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 5, 100, 257, 530};
    FOR_EACH(i, sizes) FOR_EACH(o, orders) {
        seed(60 + i);
        double *h = correlated(2 * sizes[i], sizes[i]);
        struct calibration c = calibrate(h, sizes[i], orders[o], 48, 0.01);
        assert_true(c.factor.damp == 0.01);
        check_factor_of(&c, sizes[i]);
        release(&c.factor);
    }
}

/* Fewer tokens than channels: only the damping makes H′ invertible. */
static void the_factor_stands_a_singular_h(void **state) {
    (void)state;
    static const double damps[] = {0.0001, 0.01, 1};
    FOR_EACH(d, damps) {
        seed(66);
        struct calibration c = calibrate(correlated(40, 300), 300, ORDER_GROUP_AWARE, 64, damps[d]);
        check_factor_of(&c, 300);
        release(&c.factor);
    }
}

static void equal_columns_keep_their_order(void **state) {
    (void)state;
    enum { K = 40 };
    double *h = host_doubles(K * K);
    for (int k = 0; k < K; k++)
        h[k * K + k] = k / 4 % 2 == 0 ? 2 : 3; /* every group of 8 has both */
    FOR_EACH(o, orders) {
        struct calibration c = calibrate(h, K, orders[o], 8, 0.01);
        assert_memory_equal(c.factor.order, c.steps, sizeof(int32_t) * K);
        assert_int_equal(c.factor.order[0], orders[o] == ORDER_NATURAL ? 0 : 4);
        release(&c.factor);
    }
}

/* H is counted over any number of tokens, and dead channels have no part in it: another unit of X changes nothing. */
static void codes_do_not_depend_on_the_unit_of_h(void **state) {
    (void)state;
    enum { N = 5, K = 70 };
    uint8_t *codes[2];
    float *w = NULL;
    for (int i = 0; i < 2; i++) {
        seed(67);
        double *h = correlated(2 * K, K);
        kill_channel(h, K, 3);
        for (int k = 0; k < K * K; k++)
            h[k] *= i == 0 ? 1 : 0x1p-40;
        w = host_bf16(N * K, 0.02);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 16};
        struct calibration calibration = calibrate(h, K, c.order, c.group, 0.01);
        struct quantized q = device_quantized(N, K, &c);
        struct quantize_report report;
        struct quantize_args a = {put_matrix(w, N, K, 0), c, {0}, &calibration.factor, NULL, &q, &report};
        assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
        codes[i] = get_bytes(q.codes, N * K);
        release(&calibration.factor);
    }
    assert_memory_equal(codes[0], codes[1], N * K);
}

/* H with an eigenvalue of −0.1 of its mean diagonal: 0.04 is not enough, nor 0.08. */
static void damping_is_raised_until_h_is_positive_definite(void **state) {
    (void)state;
    enum { K = 50 };
    double *h = host_doubles(K * K);
    for (int k = 0; k < K; k++)
        h[k * K + k] = 1;
    h[1] = h[K] = 1.1;
    struct calibration c = calibrate(h, K, ORDER_NATURAL, 0, 0.04);
    assert_true(c.factor.damp == 0.16);
    check_factor_of(&c, K);
    release(&c.factor);
    struct factor f = device_factor(K);
    h[1] = h[K] = 1.9;
    assert_ok(dev.b->factor(dev.s, &(struct factor_args){put_gram(h, K), ORDER_NATURAL, 0, 0.3, &f}, &err));
    assert_true(f.damp == 1); /* not 1.2 */
    h[1] = h[K] = 2.1;
    assert_refused(dev.b->factor(dev.s, &(struct factor_args){put_gram(h, K), ORDER_NATURAL, 0, 0.3, &f}, &err),
                   RC_INVALID, "not positive definite");
    release(&f);
}

static void an_h_that_is_no_number_is_refused(void **state) {
    (void)state;
    enum { K = 40 };
    static const struct {
        int64_t row, col;
        double value;
        const char *part;
    } cases[] = {{0, 0, NAN, "not finite at channel 0"},
                 {17, 3, INFINITY, "not finite at channel 17"},
                 {39, 39, -INFINITY, "not finite at channel 39"}};
    FOR_EACH(i, cases) {
        seed(68);
        double *h = correlated(2 * K, K);
        h[cases[i].row * K + cases[i].col] = cases[i].value;
        struct factor f = device_factor(K);
        struct factor_args a = {put_gram(h, K), ORDER_ACTIVATION, 0, 0.01, &f};
        assert_refused(dev.b->factor(dev.s, &a, &err), RC_INVALID, cases[i].part);
        release(&f);
    }
}

/* One over the root of H does not fit into fp32, or its square not into what H is counted in. */
static void an_h_out_of_range_is_refused(void **state) {
    (void)state;
    if (dev.b->gram_type != DTYPE_F64) return;
    static const double sizes[] = {1e-90, 1e305};
    FOR_EACH(i, sizes) {
        double h[4] = {sizes[i], 0, 0, sizes[i]};
        struct factor f = device_factor(2);
        struct factor_args a = {put_gram(h, 2), ORDER_NATURAL, 0, 0.01, &f};
        assert_refused(dev.b->factor(dev.s, &a, &err), RC_INVALID, "out of fp32's range");
        release(&f);
    }
}

struct outcome {
    struct quantized q; /* its buffers are the device's */
    uint8_t *codes;
    float *scale, *zero;
    int32_t *group_of;
    struct quantize_report report;
};

static struct outcome quantize(const float *w, int64_t rows, int64_t cols, const struct candidate *c,
                               const struct factor *f) {
    struct outcome o = {.q = device_quantized(rows, cols, c)};
    struct quantize_args a = {put_matrix(w, rows, cols, 3), *c, {0}, f, NULL, &o.q, &o.report};
    memset(&o.report, 0xff, sizeof o.report);
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    o.codes = get_bytes(o.q.codes, rows * cols);
    o.scale = get_floats(o.q.scale, rows * o.q.groups);
    o.zero = get_floats(o.q.zero, rows * o.q.groups);
    assert_true((o.q.group_of != NULL) == (candidate_uses_gptq(c) && c->order == ORDER_ACTIVATION));
    if (o.q.group_of != NULL) o.group_of = (int32_t *)(void *)get_floats((const float *)(void *)o.q.group_of, cols);
    return o;
}

/* How often a quantization may differ from the reference, near ties apart: where a parameter lies near the middle of
 * two half-precision numbers. */
static void check_outcome(const struct outcome *o, const float *w, const struct candidate *c,
                          const struct calibration *calibration) {
    const struct quantized *q = &o->q;
    struct ref_verdict verdict = {0};
    for (int64_t n = 0; n < q->rows; n++) {
        struct ref_row row = {.w = w + n * q->cols, .cols = q->cols, .candidate = c, .h = calibration->h};
        row.u = calibration->u;
        row.steps = calibration->steps;
        row.codes = o->codes + n * q->cols;
        row.scale = o->scale + n * q->groups;
        row.zero = o->zero + n * q->groups;
        row.stride = 1;
        ref_check_row(&row, &verdict);
    }
    for (int64_t k = 0; o->group_of != NULL && k < q->cols; k++)
        assert_int_equal(o->group_of[calibration->steps[k]], k / q->group);
    if (verdict.farthest <= near_tie(c->bits) && verdict.parameters <= 1 + q->rows * q->groups / 50) return;
    char id[CANDIDATE_ID_SIZE];
    fail_msg("%s on [%lld, %lld]: %lld codes differ, one of them %g from a tie; %lld of %lld groups do",
             candidate_id(c, id), (long long)q->rows, (long long)q->cols, (long long)verdict.codes, verdict.farthest,
             (long long)verdict.parameters, (long long)(q->rows * q->groups));
}

static const struct {
    bool symmetric;
    enum zero_type zero;
} kinds[] = {{false, ZERO_FLOAT}, {false, ZERO_INTEGER}, {true, ZERO_FLOAT}};

/* Every width and kind of zero on the calibration; of weights whose steps are no subnormal half-precision numbers. */
static void check_candidates(const struct calibration *calibration, int64_t rows, int64_t cols) {
    static const int bit_widths[] = {2, 3, 4, 8};
    float *w = host_bf16(rows * cols, 0.5);
    FOR_EACH(b, bit_widths) FOR_EACH(k, kinds) {
        struct candidate c = {.method = METHOD_GPTQ, .bits = bit_widths[b], .group = calibration->group};
        c.order = calibration->order;
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        struct outcome o = quantize(w, rows, cols, &c, &calibration->factor);
        check_outcome(&o, w, &c, calibration);
    }
}

static void codes_are_the_references(void **state) {
    (void)state;
    enum { N = 9, K = 200 };
    FOR_EACH(o, orders) FOR_EACH(g, groups) {
        seed(70);
        struct calibration c = calibrate(correlated(3 * K, K), K, orders[o], groups[g], 0.01);
        check_candidates(&c, N, K);
        release(&c.factor);
    }
}

/* Blocks cut at the ends of long groups, a group longer than a block, several tiles of rows, single rows and columns.
 */
static void codes_are_the_references_on_odd_shapes(void **state) {
    (void)state;
    static const struct {
        int64_t rows, cols;
        int group;
    } cases[] = {{1, 1, 0}, {1, 129, 16}, {17, 300, 130}, {130, 97, 32}, {2, 420, 100}, {65, 128, 128}, {3, 400, 0}};
    FOR_EACH(i, cases) FOR_EACH(o, orders) {
        seed(71 + i);
        int64_t cols = cases[i].cols;
        struct calibration c = calibrate(correlated(2 * cols, cols), cols, orders[o], cases[i].group, 0.05);
        float *w = host_bf16(cases[i].rows * cols, 0.02);
        struct candidate candidate = {.method = METHOD_AWQ_GPTQ, .bits = 3, .group = cases[i].group};
        candidate.zero = ZERO_INTEGER;
        candidate.order = orders[o];
        struct outcome outcome = quantize(w, cases[i].rows, cols, &candidate, &c.factor);
        check_outcome(&outcome, w, &candidate, &c);
        release(&c.factor);
    }
}

static void codes_are_the_references_on_a_singular_h(void **state) {
    (void)state;
    enum { K = 160 };
    FOR_EACH(o, orders) {
        seed(80);
        struct calibration c = calibrate(correlated(30, K), K, orders[o], 64, 0.01);
        check_candidates(&c, 6, K);
        release(&c.factor);
    }
}

/* What a dead channel is multiplied with is 0: its weights count as 0, and neither move nor bend the others. */
static void dead_channels_have_no_say(void **state) {
    (void)state;
    enum { N = 4, K = 96 };
    FOR_EACH(o, orders) {
        seed(81);
        double *h = correlated(2 * K, K);
        kill_channel(h, K, 0);
        for (int k = 33; k < 64; k++)
            kill_channel(h, K, k);
        struct calibration c = calibrate(h, K, orders[o], 32, 0.01);
        check_factor_of(&c, K);
        check_candidates(&c, N, K);
        release(&c.factor);
    }
}

static double drift_of(const float *w, const struct outcome *o, struct mat h) {
    const struct quantized *q = &o->q;
    float *w_hat = host_zeros(q->rows * q->cols);
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        int64_t k = i % q->cols, g = i / q->cols * q->groups + (o->group_of ? o->group_of[k] : k / q->group);
        w_hat[i] = ((float)o->codes[i] - o->zero[g]) * o->scale[g];
    }
    struct error_report report;
    struct error_args a = {
        .w = put_matrix(w, q->rows, q->cols, 0), .w_hat = put_matrix(w_hat, q->rows, q->cols, 0), .h = h};
    assert_ok(dev.b->error(dev.s, &a, &report, &err));
    return report.drift_num / report.drift_den;
}

/* What it is for: on channels that hang together the output error is a fraction of round-to-nearest's. */
static void the_output_error_is_far_below_rtn(void **state) {
    (void)state;
    enum { N = 24, K = 256 };
    FOR_EACH(o, orders) {
        seed(82);
        double *h = correlated(4 * K, K);
        float *w = host_bf16(N * K, 0.02);
        struct mat device_h = put_gram(h, K);
        struct calibration calibration = calibrate(h, K, orders[o], 64, 0.01);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = orders[o]};
        struct outcome gptq = quantize(w, N, K, &c, &calibration.factor);
        c.method = METHOD_RTN;
        struct outcome rtn = quantize(w, N, K, &c, NULL);
        double share = drift_of(w, &gptq, device_h) / drift_of(w, &rtn, device_h);
        if (!(share < 0.3)) fail_msg("order %d: %g of RTN's drift", (int)orders[o], share);
        release(&calibration.factor);
    }
}

/* The range of RANGE_WEIGHTED is chosen by 1/U_kk². Where nothing hangs together that is H′_kk, and GPTQ is RTN with
 * the same weights; dead channels count for nothing. */
static void ranges_are_weighted_by_what_cannot_be_made_up_for(void **state) {
    (void)state;
    enum { N = 8, K = 200 };
    seed(83);
    double *h = host_doubles(K * K), *damped = host_doubles(K * K), mean = 0;
    float *w = host_bf16(N * K, 0.5);
    for (int k = 0; k < K; k++)
        mean += (h[k * K + k] = k % 8 < 5 ? 0 : exp(2 * normal())) / K;
    for (int k = 0; k < K; k++)
        damped[k * K + k] = k % 8 < 5 ? 0 : h[k * K + k] + 0.01 * mean;
    for (int i = 0; i < N * K; i++)
        w[i] = i % K % 8 < 5 ? 0 : w[i];
    FOR_EACH(o, orders) {
        if (orders[o] == ORDER_ACTIVATION) continue; /* its groups are others */
        struct calibration calibration = calibrate(h, K, orders[o], 64, 0.01);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = orders[o]};
        c.range = RANGE_WEIGHTED;
        struct outcome gptq = quantize(w, N, K, &c, &calibration.factor);
        c.method = METHOD_RTN;
        struct quantized q = device_quantized(N, K, &c);
        struct quantize_report report;
        struct quantize_args a = {put_matrix(w, N, K, 0), c, put_gram(damped, K), NULL, NULL, &q, &report};
        assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
        assert_memory_equal(gptq.scale, get_floats(q.scale, N * q.groups), (size_t)(N * q.groups) * sizeof(float));
        assert_memory_equal(gptq.codes, get_bytes(q.codes, N * K), N * K);
        release(&calibration.factor);
    }
}

/* … and where channels hang together it pays. */
static void weighted_ranges_lower_the_output_error(void **state) {
    (void)state;
    enum { N = 32, K = 192 };
    static const enum range_choice ranges[] = {RANGE_FULL, RANGE_MSE, RANGE_WEIGHTED};
    FOR_EACH(o, orders) {
        seed(85);
        double *h = correlated(3 * K, K), drift[3];
        float *w = host_bf16(N * K, 0.02);
        struct mat device_h = put_gram(h, K);
        struct calibration calibration = calibrate(h, K, orders[o], 64, 0.01);
        FOR_EACH(i, ranges) {
            struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = orders[o]};
            c.range = ranges[i];
            struct outcome outcome = quantize(w, N, K, &c, &calibration.factor);
            drift[i] = drift_of(w, &outcome, device_h);
        }
        if (!(drift[2] < drift[1] && drift[1] < drift[0]))
            fail_msg("order %d: %g, by MSE %g, weighted %g", (int)orders[o], drift[0], drift[1], drift[2]);
        release(&calibration.factor);
    }
}

static void constant_groups_are_counted_as_they_are_fitted(void **state) {
    (void)state;
    enum { N = 290, K = 64 };
    double *h = host_doubles(K * K); /* nothing hangs together: nothing is corrected */
    for (int k = 0; k < K; k++)
        h[k * K + k] = 1 + k;
    float *w = host_bf16(N * K, 0.02);
    for (int n = 5; n < N; n += 20)
        for (int k = 16; k < 32; k++)
            w[n * K + k] = 0.5f;
    FOR_EACH(o, orders) {
        if (orders[o] == ORDER_ACTIVATION) continue; /* its groups are others */
        struct calibration calibration = calibrate(h, K, orders[o], 16, 0.01);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 4, .group = 16, .order = orders[o]};
        struct outcome outcome = quantize(w, N, K, &c, &calibration.factor);
        assert_int_equal(outcome.report.constant_groups, 15);
        assert_int_equal(outcome.report.rtn_groups, 0);
        release(&calibration.factor);
    }
}

/* Weights that corrections drive out of fp32, and ones too small for 16-bit scales: what is stored is numbers. */
static void extreme_weights_stay_finite(void **state) {
    (void)state;
    enum { N = 3, K = 96 };
    static const double magnitudes[] = {1e-44, 1e-38, 1e-9, 1e9, 1e30, 3e38};
    static const enum range_choice ranges[] = {RANGE_FULL, RANGE_MSE, RANGE_WEIGHTED};
    seed(86);
    double *h = correlated(2 * K, K);
    FOR_EACH(o, orders) {
        struct calibration calibration = calibrate(h, K, orders[o], 32, 0.0001);
        FOR_EACH(m, magnitudes) FOR_EACH(r, ranges) FOR_EACH(k, kinds) {
            float *w = host_zeros(N * K);
            for (int i = 0; i < N * K; i++)
                w[i] = (float)(magnitudes[m] * (i < K ? 2 * uniform() - 1 : 1 - 0.1 * uniform()));
            struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 32, .order = orders[o]};
            c.range = ranges[r];
            c.symmetric = kinds[k].symmetric;
            c.zero = kinds[k].zero;
            struct outcome outcome = quantize(w, N, K, &c, &calibration.factor);
            for (int64_t i = 0; i < N * outcome.q.groups; i++)
                assert_true(outcome.scale[i] > 0 && isfinite(outcome.scale[i]) && isfinite(outcome.zero[i]));
            for (int i = 0; i < N * K; i++)
                assert_true(outcome.codes[i] < 8);
        }
        release(&calibration.factor);
    }
}

static void what_does_not_fit_together_is_refused(void **state) {
    (void)state;
    enum { N = 2, K = 64 };
    seed(84);
    double *h = correlated(2 * K, K);
    float *w = host_bf16(N * K, 0.02);
    struct calibration c = calibrate(h, K, ORDER_GROUP_AWARE, 16, 0.01);
    struct candidate candidate = {.method = METHOD_GPTQ, .bits = 4, .group = 16};
    struct quantized q = device_quantized(N, K, &candidate);
    struct quantize_report report;
    struct quantize_args good = {put_matrix(w, N, K, 0), candidate, {0}, &c.factor, NULL, &q, &report}, a = good;
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    a.factor = NULL;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "factor of H has no buffers");
    struct factor other = c.factor;
    other.cols = K - 1;
    a.factor = &other;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "of 63 channels where 64");
    other = c.factor;
    other.order = host_bytes(K * sizeof *other.order);
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another order or group"); /* 0 everywhere */
    for (int k = 0; k < K; k++)
        other.order[k] = (k * 5) % K;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another order or group");
    other.order[0] = K;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another order or group");
    a.candidate.order = ORDER_STATIC_GROUPS;
    other.order[0] = -1;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another order or group");
    other.order[0] = other.order[1];
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another order or group");
    a = good;
    a.candidate.order = ORDER_ACTIVATION;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another candidate");
    w[K + 5] = NAN;
    a = good;
    a.w = put_matrix(w, N, K, 0);
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "row 1, column 5 is NaN");
    release(&c.factor);
}

/* --- tests/golden/gptq.json: tools/make-gptq-goldens --- */

static float *floats_of(const json_t *object, const char *name, int64_t count) {
    const json_t *array = json_object_get(object, name);
    assert_int_equal(json_array_size(array), count);
    float *values = host_zeros(count);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)json_number_value(json_array_get(array, (size_t)i));
    return values;
}

static void check_golden(const json_t *golden) {
    struct candidate c;
    assert_ok(candidate_from_id(json_string_value(json_object_get(golden, "candidate")), &c, &err));
    int64_t rows = json_integer_value(json_object_get(golden, "rows"));
    int64_t cols = json_integer_value(json_object_get(golden, "cols"));
    const float *w = floats_of(golden, "w", rows * cols), *h = floats_of(golden, "h", cols * cols);
    double *wide = host_doubles(cols * cols);
    for (int64_t i = 0; i < cols * cols; i++)
        wide[i] = h[i];
    struct factor f = device_factor(cols);
    struct factor_args a = {put_gram(wide, cols), c.order, c.group, (double)c.damp / PARTS, &f};
    assert_ok(dev.b->factor(dev.s, &a, &err));
    struct quantized q = device_quantized(rows, cols, &c);
    struct quantize_report report;
    assert_ok(dev.b->quantize(
        dev.s, &(struct quantize_args){put_matrix(w, rows, cols, 3), c, a.h, &f, NULL, &q, &report}, 1, &err));
    const float *want = floats_of(golden, "codes", rows * cols);
    const uint8_t *codes = get_bytes(q.codes, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++)
        assert_true(codes[i] == want[i]);
    size_t bytes = (size_t)(rows * q.groups) * sizeof(float);
    assert_memory_equal(get_floats(q.scale, rows * q.groups), floats_of(golden, "scale", rows * q.groups), bytes);
    assert_memory_equal(get_floats(q.zero, rows * q.groups), floats_of(golden, "zero", rows * q.groups), bytes);
    release(&f);
}

static void codes_are_those_of_numpy(void **state) {
    (void)state;
    json_t *goldens = json_load_file("tests/golden/gptq.json", 0, NULL);
    assert_true(json_array_size(goldens) >= 2);
    for (size_t i = 0; i < json_array_size(goldens); i++)
        check_golden(json_array_get(goldens, i));
    json_decref(goldens);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_factor_is_that_of_the_inverse_in_every_order),
        cmocka_unit_test(the_factor_stands_a_singular_h),
        cmocka_unit_test(equal_columns_keep_their_order),
        cmocka_unit_test(codes_do_not_depend_on_the_unit_of_h),
        cmocka_unit_test(damping_is_raised_until_h_is_positive_definite),
        cmocka_unit_test(an_h_that_is_no_number_is_refused),
        cmocka_unit_test(an_h_out_of_range_is_refused),
        cmocka_unit_test(codes_are_the_references),
        cmocka_unit_test(codes_are_the_references_on_odd_shapes),
        cmocka_unit_test(codes_are_the_references_on_a_singular_h),
        cmocka_unit_test(dead_channels_have_no_say),
        cmocka_unit_test(the_output_error_is_far_below_rtn),
        cmocka_unit_test(ranges_are_weighted_by_what_cannot_be_made_up_for),
        cmocka_unit_test(weighted_ranges_lower_the_output_error),
        cmocka_unit_test(constant_groups_are_counted_as_they_are_fitted),
        cmocka_unit_test(extreme_weights_stay_finite),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
        cmocka_unit_test(codes_are_those_of_numpy),
    };
    return RUN_ON_BACKENDS("gptq", tests);
}
