/* Coordinate descent on GPTQ's codes, sweep by sweep, against float64 (reference_gptq.h). A backend's sweeps are seen
 * one by one: with one more of them a candidate begins where the one before it ended. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/ops/calibration.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference_gptq.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

/* A code may differ from the reference's where that one's aim lies so close to a tie, in steps of the grid: fp32's
 * rounding of slopes whose terms cancel. */
static const double near_tie = 3e-5;

static const enum column_order orders[] = {ORDER_GROUP_AWARE, ORDER_NATURAL, ORDER_ACTIVATION, ORDER_STATIC_GROUPS};

static const struct {
    bool symmetric;
    enum zero_type zero;
} kinds[] = {{false, ZERO_FLOAT}, {false, ZERO_INTEGER}, {true, ZERO_FLOAT}};

struct outcome {
    int64_t groups;
    uint8_t *codes;
    float *scale, *zero;
};

/* What a case computes with: H and its factor on the device, and H′ in float64. */
struct calibration {
    struct mat h;
    struct factor factor;
    double *damped;
    int32_t *steps;
    enum column_order order;
    int group;
};

static struct calibration calibrate(double *h, int64_t cols, enum column_order order, int group, double damp) {
    struct calibration c = {put_gram(h, cols),
                            device_factor(cols),
                            host_doubles(cols * cols),
                            host_bytes((size_t)cols * sizeof(int32_t)),
                            order,
                            group};
    struct factor_args a = {c.h, order, group, damp, &c.factor};
    assert_ok(dev.b->factor(dev.s, &a, &err));
    ref_order(h, cols, group, order, c.steps);
    ref_damped(h, cols, c.factor.damp, c.damped);
    return c;
}

static void release(struct calibration *c) {
    factor_release(dev.b, dev.s, &c->factor);
}

static struct outcome quantize(const float *w, int64_t rows, const struct candidate *c, const struct calibration *by) {
    int64_t cols = by->factor.cols;
    struct quantized q = device_quantized(rows, cols, c);
    struct quantize_report report;
    struct quantize_args a = {put_matrix(w, rows, cols, 3), *c, by->h, &by->factor, NULL, &q, &report};
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    struct outcome o = {q.groups, get_bytes(q.codes, rows * cols), get_floats(q.scale, rows * q.groups),
                        get_floats(q.zero, rows * q.groups)};
    if (q.group_of == NULL) return o;
    const int32_t *group_of = (const int32_t *)(const void *)get_floats((const float *)(void *)q.group_of, cols);
    for (int64_t k = 0; k < cols; k++)
        assert_int_equal(group_of[by->steps[k]], k / q.group);
    return o;
}

static struct ref_row row_of(const float *w, int64_t n, const struct candidate *c, const struct calibration *by,
                             const struct outcome *o) {
    int64_t cols = by->factor.cols;
    return (struct ref_row){.w = w + n * cols,
                            .cols = cols,
                            .candidate = c,
                            .h = by->damped,
                            .steps = by->steps,
                            .scale = o->scale + n * o->groups,
                            .zero = o->zero + n * o->groups,
                            .stride = 1};
}

/* Two sweeps are the reference's from where each begins, on the parameters that GPTQ left. */
static void check_sweeps(const float *w, int64_t rows, struct candidate c, const struct calibration *by) {
    int64_t cols = by->factor.cols;
    struct outcome before = quantize(w, rows, &c, by);
    struct ref_verdict verdict = {0};
    for (c.descend = 1; c.descend <= 2; c.descend++) {
        struct outcome after = quantize(w, rows, &c, by);
        assert_memory_equal(after.scale, before.scale, (size_t)(rows * after.groups) * sizeof(float));
        assert_memory_equal(after.zero, before.zero, (size_t)(rows * after.groups) * sizeof(float));
        for (int64_t n = 0; n < rows; n++) {
            struct ref_row row = row_of(w, n, &c, by, &after);
            row.codes = after.codes + n * cols;
            ref_descend(&row, before.codes + n * cols, &verdict);
        }
        before = after;
    }
    if (verdict.farthest <= near_tie) return;
    char id[CANDIDATE_ID_SIZE];
    fail_msg("%s on [%lld, %lld]: %lld codes differ, one of them %g from a tie", candidate_id(&c, id), (long long)rows,
             (long long)cols, (long long)verdict.codes, verdict.farthest);
}

/* Every width and kind of zero on the calibration. */
static void check_candidates(const struct calibration *by, int64_t rows) {
    static const int bit_widths[] = {2, 3, 8};
    float *w = host_bf16(rows * by->factor.cols, 0.5);
    FOR_EACH(b, bit_widths) FOR_EACH(k, kinds) {
        struct candidate c = {.method = METHOD_GPTQ, .bits = bit_widths[b], .group = by->group, .order = by->order};
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        check_sweeps(w, rows, c, by);
    }
}

static void sweeps_are_the_references(void **state) {
    (void)state;
    static const int groups[] = {16, 100, 0};
    enum { N = 2, K = 150 };
    seed(170);
    double *h = correlated(3 * K, K);
    FOR_EACH(o, orders) FOR_EACH(g, groups) {
        struct calibration by = calibrate(h, K, orders[o], groups[g], 0.01);
        check_candidates(&by, N);
        release(&by);
    }
}

/* Blocks that are short, one column or many rows; groups across the ends of blocks. */
static void sweeps_are_the_references_on_odd_shapes(void **state) {
    (void)state;
    static const struct {
        int64_t rows, cols;
        int group;
    } cases[] = {{1, 1, 0}, {1, 129, 16}, {17, 270, 130}, {70, 97, 32}, {33, 128, 128}, {3, 300, 0}};
    seed(171);
    double *h = NULL;
    FOR_EACH(i, cases) FOR_EACH(o, orders) {
        int64_t cols = cases[i].cols;
        if (o == 0) h = correlated(cols, cols);
        struct calibration by = calibrate(h, cols, orders[o], cases[i].group, 0.05);
        struct candidate c = {.method = METHOD_AWQ_GPTQ, .bits = 3, .group = cases[i].group, .order = orders[o]};
        c.zero = ZERO_INTEGER;
        c.range = RANGE_WEIGHTED;
        check_sweeps(host_bf16(cases[i].rows * cols, 0.02), cases[i].rows, c, &by);
        release(&by);
    }
}

static void sweeps_are_the_references_on_a_singular_h(void **state) {
    (void)state;
    enum { K = 160 };
    seed(180);
    double *h = correlated(30, K);
    FOR_EACH(o, orders) {
        struct calibration by = calibrate(h, K, orders[o], 64, 0.01);
        check_candidates(&by, 2);
        release(&by);
    }
}

/* A dead channel's codes are GPTQ's, and have no say in where others move. */
static void dead_channels_stay(void **state) {
    (void)state;
    enum { N = 4, K = 96 };
    bool moved = false;
    FOR_EACH(o, orders) {
        seed(181);
        double *h = correlated(20, K);
        kill_channel(h, K, 0);
        for (int k = 33; k < 64; k++)
            kill_channel(h, K, k);
        struct calibration by = calibrate(h, K, orders[o], 32, 0.01);
        check_candidates(&by, 3);
        float *w = host_bf16(N * K, 0.5);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 32, .order = orders[o]};
        struct outcome before = quantize(w, N, &c, &by);
        c.descend = DESCEND_MAX;
        struct outcome after = quantize(w, N, &c, &by);
        moved = moved || memcmp(before.codes, after.codes, N * K) != 0;
        for (int64_t i = 0; i < N * K; i++)
            if (h[i % K * (K + 1)] == 0) assert_int_equal(after.codes[i], before.codes[i]);
        release(&by);
    }
    assert_true(moved);
}

/* The objective of all rows, and what the reference brings it to by as many sweeps of its own from GPTQ's codes. */
static double error_of(const float *w, int64_t rows, const struct candidate *c, const struct calibration *by,
                       const struct outcome *o) {
    double sum = 0;
    for (int64_t n = 0; n < rows; n++) {
        struct ref_row row = row_of(w, n, c, by, o);
        sum += ref_damped_error(&row, o->codes + n * row.cols);
    }
    return sum;
}

static void sweep_by_reference(const float *w, int64_t rows, const struct candidate *c, const struct calibration *by,
                               struct outcome *o) {
    struct ref_verdict unread = {0};
    for (int64_t n = 0; n < rows; n++) {
        struct ref_row row = row_of(w, n, c, by, o);
        ref_descend(&row, o->codes + n * row.cols, &unread);
    }
}

/* What it is for: no sweep raises the objective, the first ones lower it, and by as much as float64 does. */
static void the_objective_never_rises(void **state) {
    (void)state;
    enum { N = 12, K = 192 };
    double all_first = 0, all_last = 0;
    seed(182);
    double *h = correlated(40, K);
    float *w = host_bf16(N * K, 0.02);
    FOR_EACH(o, orders) FOR_EACH(k, kinds) {
        struct calibration by = calibrate(h, K, orders[o], 64, 0.01);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = orders[o]};
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        struct outcome reference = quantize(w, N, &c, &by);
        const double first = error_of(w, N, &c, &by, &reference);
        double before = first;
        for (c.descend = 1; c.descend <= 4; c.descend++) {
            struct outcome outcome = quantize(w, N, &c, &by);
            double error = error_of(w, N, &c, &by, &outcome);
            sweep_by_reference(w, N, &c, &by, &reference);
            double want = error_of(w, N, &c, &by, &reference);
            if (!(error <= before * (1 + 1e-6)) || !(fabs(error - want) <= 1e-3 * want))
                fail_msg("order %d, sweep %d: %g after %g, the reference %g", (int)orders[o], c.descend, error, before,
                         want);
            before = error;
        }
        all_first += first;
        all_last += before;
        release(&by);
    }
    if (!(all_last < 0.9 * all_first)) fail_msg("%g of GPTQ's error", all_last / all_first);
}

/* H is counted over any number of tokens, in whatever unit; fp32 need not hold it. */
static void codes_do_not_depend_on_the_unit_of_h(void **state) {
    (void)state;
    enum { N = 5, K = 140 };
    const double units[] = {1, 0x1p-40, dev.b->gram_type == DTYPE_F64 ? 0x1p200 : 0x1p60};
    uint8_t *codes[3];
    FOR_EACH(u, units) {
        seed(183);
        double *h = correlated(2 * K, K);
        for (int k = 0; k < K * K; k++)
            h[k] *= units[u];
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 16, .descend = 2};
        struct calibration by = calibrate(h, K, c.order, c.group, 0.01);
        codes[u] = quantize(host_bf16(N * K, 0.02), N, &c, &by).codes;
        release(&by);
    }
    assert_memory_equal(codes[0], codes[1], N * K);
    assert_memory_equal(codes[0], codes[2], N * K);
}

/* Slopes that overflow, and steps of the smallest scale there is. */
static void extreme_weights_keep_codes_on_the_grid(void **state) {
    (void)state;
    enum { N = 3, K = 96 };
    static const double magnitudes[] = {1e-44, 1e-38, 1e-9, 1e9, 1e30, 3e38};
    seed(184);
    struct calibration by = calibrate(correlated(2 * K, K), K, ORDER_GROUP_AWARE, 32, 0.0001);
    FOR_EACH(m, magnitudes) FOR_EACH(k, kinds) {
        float *w = host_zeros(N * K);
        for (int i = 0; i < N * K; i++)
            w[i] = (float)(magnitudes[m] * (2 * uniform() - 1));
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 32, .descend = 2};
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        struct outcome o = quantize(w, N, &c, &by);
        for (int i = 0; i < N * K; i++)
            assert_true(o.codes[i] < 8);
    }
    release(&by);
}

static void what_does_not_fit_together_is_refused(void **state) {
    (void)state;
    enum { N = 2, K = 64 };
    seed(185);
    struct calibration by = calibrate(correlated(2 * K, K), K, ORDER_GROUP_AWARE, 16, 0.01);
    struct candidate c = {.method = METHOD_GPTQ, .bits = 4, .group = 16, .descend = 1};
    struct quantized q = device_quantized(N, K, &c);
    struct quantize_report report;
    struct quantize_args good = {put_matrix(host_bf16(N * K, 0.02), N, K, 0), c, by.h, &by.factor, NULL, &q, &report};
    struct quantize_args a = good;
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    a.h = (struct mat){0};
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "quantize: h: [0, 0] where [64, 64]");
    a = good;
    a.candidate.descend = DESCEND_MAX + 1;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_UNSUPPORTED, "9 sweeps");
    a.candidate.descend = 1;
    a.candidate.method = METHOD_RTN;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_UNSUPPORTED, "only gptq's codes descend");
    release(&by);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sweeps_are_the_references),
        cmocka_unit_test(sweeps_are_the_references_on_odd_shapes),
        cmocka_unit_test(sweeps_are_the_references_on_a_singular_h),
        cmocka_unit_test(dead_channels_stay),
        cmocka_unit_test(the_objective_never_rises),
        cmocka_unit_test(codes_do_not_depend_on_the_unit_of_h),
        cmocka_unit_test(extreme_weights_keep_codes_on_the_grid),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
    };
    return RUN_ON_BACKENDS("descend", tests);
}
