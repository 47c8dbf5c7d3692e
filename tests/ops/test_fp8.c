/* fp8: the 256 codes by their definition, the nearest of them for every weight, and dequantization of every form. */
#include <math.h>
#include <string.h>

#include "kernels/formats.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

enum { CODES = 256 };

/* OCP 8-bit floating point, E4M3: S EEEE MMM; exponent 0: ±MMM · 2^−9; S1111111 is NaN; else ±1.MMM · 2^(EEEE−7). */
static double value_of(int code) {
    int exponent = code / 8 % 16, mantissa = code % 8;
    if (exponent == 15 && mantissa == 7) return NAN;
    double magnitude = exponent == 0 ? mantissa / 512.0 : (1 + mantissa / 8.0) * pow(2, exponent - 7);
    return code < 128 ? magnitude : -magnitude;
}

/* The nearest of all codes; half-way between two the one with an even mantissa. */
static double nearest_value(double value) {
    double best = 0, distance = INFINITY;
    for (int code = 0; code < CODES; code++) {
        double error = fabs(value - value_of(code));
        if (error < distance || (error == distance && code % 2 == 0)) {
            best = value_of(code);
            distance = error;
        }
    }
    return best;
}

struct outcome {
    struct quantized q;
    uint8_t *codes;
    float *scale, *zero, *w_hat;
    struct quantize_report report;
};

static struct outcome quantize(const float *w, int64_t rows, int64_t cols, enum fp8_scale per) {
    struct candidate c = candidate_default(METHOD_FP8, 8, 0);
    c.fp8_scale = per;
    struct outcome o = {.q = device_quantized(rows, cols, &c)};
    struct quantize_args a = {.w = put_matrix(w, rows, cols, 3), .candidate = c, .out = &o.q, .report = &o.report};
    memset(&o.report, 0xff, sizeof o.report);
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    o.codes = get_bytes(o.q.codes, rows * cols);
    o.scale = get_floats(o.q.scale, rows);
    o.zero = get_floats(o.q.zero, rows);
    struct mat w_hat = put_matrix(w, rows, cols, 2);
    assert_ok(dev.b->dequantize(dev.s, &(struct dequantize_args){.q = &o.q, .out = w_hat}, &err));
    o.w_hat = get_matrix(w_hat);
    assert_true(o.q.fp8 && o.q.groups == 1 && o.report.constant_groups == 0 && o.report.rtn_groups == 0);
    return o;
}

/* The least bf16 with which the largest weight still fits. */
static void check_scale(float scale, double max_abs) {
    assert_true(scale == bf16_to_f32(f32_to_bf16(scale)) && scale > 0);
    if (max_abs == 0) {
        assert_true(scale == 1);
        return;
    }
    assert_true(max_abs <= 448.0 * scale);
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    assert_true(max_abs > 448.0 * bf16_to_f32((uint16_t)((bits >> 16) - 1)));
}

static double max_abs(const float *w, int64_t n) {
    double max = 0;
    for (int64_t i = 0; i < n; i++)
        max = fmax(max, fabs((double)w[i]));
    return max;
}

static void check(const float *w, int64_t rows, int64_t cols, const struct outcome *o, enum fp8_scale per) {
    for (int64_t n = 0; n < rows; n++) {
        check_scale(o->scale[n], per == FP8_PER_ROW ? max_abs(w + n * cols, cols) : max_abs(w, rows * cols));
        assert_true(o->zero[n] == 0);
    }
    for (int64_t i = 0; i < rows * cols; i++) {
        double scale = o->scale[i / cols], want = nearest_value(w[i] / scale);
        assert_true(value_of(o->codes[i]) == want);
        assert_true(o->w_hat[i] == (float)(want * scale));
    }
}

static void every_weight_takes_its_nearest_code(void **state) {
    (void)state;
    static const struct { int64_t rows, cols; } sizes[] = {{1, 1}, {3, 17}, {20, 300}};
    static const double deviations[] = {1e-42, 1e-30, 0.02, 7, 1e37};
    FOR_EACH(s, sizes) FOR_EACH(d, deviations) for (int per = 0; per < 2; per++) {
        int64_t rows = sizes[s].rows, cols = sizes[s].cols;
        seed(100 + s);
        float *w = host_zeros(rows * cols);
        for (int64_t i = 0; i < rows * cols; i++)
            w[i] = (float)(deviations[d] * normal() * (i % 11 == 0 ? 1e-3 : 1));
        struct outcome o = quantize(w, rows, cols, (enum fp8_scale)per);
        check(w, rows, cols, &o, (enum fp8_scale)per);
    }
}

/* Every code, and the middle between every two, at a scale that is a power of two. */
static void every_code_and_every_middle_is_met(void **state) {
    (void)state;
    enum { K = 2 * CODES };
    static const float scales[] = {1, 0x1p-10f, 0x1p20f};
    FOR_EACH(s, scales) {
        float *w = host_zeros(K);
        for (int code = 0; code < CODES; code++) {
            double value = value_of(code), next = value_of(code + 1 < CODES ? code + 1 : code);
            w[code] = isnan(value) ? 0 : (float)value * scales[s];
            w[CODES + code] = isnan(value + next) ? 0 : (float)((value + next) / 2) * scales[s];
        }
        struct outcome o = quantize(w, 1, K, FP8_PER_ROW);
        assert_true(o.scale[0] == scales[s]);
        check(w, 1, K, &o, FP8_PER_ROW);
        for (int code = 0; code < CODES; code++)
            if (!isnan(value_of(code))) assert_int_equal(o.codes[code], code);
    }
}

static void rows_of_zeros_stay_zero(void **state) {
    (void)state;
    enum { N = 3, K = 40 };
    float *w = host_zeros(N * K);
    w[K + 7] = -3;
    for (int per = 0; per < 2; per++) {
        struct outcome o = quantize(w, N, K, (enum fp8_scale)per);
        check(w, N, K, &o, (enum fp8_scale)per);
        assert_true(o.w_hat[0] == 0 && fabsf(o.w_hat[K + 7] + 3) <= 3 * 0x1p-4f);
    }
}

static void a_weight_that_is_no_number_is_named(void **state) {
    (void)state;
    struct candidate c = candidate_default(METHOD_FP8, 8, 0);
    struct quantized q = device_quantized(2, 20, &c);
    struct quantize_report report;
    float *w = host_zeros(40);
    w[27] = NAN;
    struct quantize_args a = {.w = put_matrix(w, 2, 20, 0), .candidate = c, .out = &q, .report = &report};
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "row 1, column 7 is NaN");
}

static void buffers_of_codes_are_not_those_of_floats(void **state) {
    (void)state;
    struct candidate fp8 = candidate_default(METHOD_FP8, 8, 0), rtn = candidate_default(METHOD_RTN, 8, 0);
    struct quantized of_fp8 = device_quantized(2, 20, &fp8), of_rtn = device_quantized(2, 20, &rtn);
    struct quantize_report report;
    struct quantize_args a = {.w = put_matrix(host_zeros(40), 2, 20, 0), .report = &report};
    a.candidate = fp8;
    a.out = &of_rtn;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another candidate");
    a.candidate = rtn;
    a.out = &of_fp8;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another candidate");
}

/* Columns whose groups are said one by one, as GPTQ's order by activation leaves them. */
static void columns_in_another_order_take_their_own_group(void **state) {
    (void)state;
    enum { N = 5, K = 48, GROUP = 16, GROUPS = 3 };
    struct candidate c = candidate_default(METHOD_RTN, 4, GROUP);
    seed(101);
    float *w = host_normal(N * K, 1);
    struct quantized q = device_quantized(N, K, &c), indexed;
    struct quantize_report report;
    struct quantize_args a = {.w = put_matrix(w, N, K, 0), .candidate = c, .out = &q, .report = &report};
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    int32_t group_of[K];
    for (int k = 0; k < K; k++)
        group_of[k] = k * 7 % GROUPS;
    indexed = q;
    indexed.group_of = put_stored(group_of, DTYPE_F32, K); /* 32 bits as they are */
    struct mat out = put_matrix(w, N, K, 1);
    assert_ok(dev.b->dequantize(dev.s, &(struct dequantize_args){.q = &indexed, .out = out}, &err));
    const uint8_t *codes = get_bytes(q.codes, N * K);
    const float *scale = get_floats(q.scale, N * GROUPS), *zero = get_floats(q.zero, N * GROUPS);
    const float *got = get_matrix(out);
    for (int i = 0; i < N * K; i++) {
        int g = i / K * GROUPS + group_of[i % K];
        assert_true(got[i] == ((float)codes[i] - zero[g]) * scale[g]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_takes_its_nearest_code),
        cmocka_unit_test(every_code_and_every_middle_is_met),
        cmocka_unit_test(rows_of_zeros_stay_zero),
        cmocka_unit_test(a_weight_that_is_no_number_is_named),
        cmocka_unit_test(buffers_of_codes_are_not_those_of_floats),
        cmocka_unit_test(columns_in_another_order_take_their_own_group),
    };
    return RUN_ON_BACKENDS("fp8", tests);
}
