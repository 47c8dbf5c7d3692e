/* RTN and HQQ: codes and parameters against float64, and the weights that break quantizers. */
#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

/* What one quantization gave, on the host. */
struct outcome {
    struct quantized q; /* its buffers are the device's */
    uint8_t *codes;
    float *scale, *zero, *w_hat;
    struct quantize_report report;
};

static struct outcome quantize(const float *w, int64_t rows, int64_t cols, const struct candidate *c) {
    struct outcome o = {.q = device_quantized(rows, cols, c)};
    struct quantize_args a = {.w = put_matrix(w, rows, cols, 3), .candidate = *c, .out = &o.q, .report = &o.report};
    memset(&o.report, 0xff, sizeof o.report);
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    o.codes = get_bytes(o.q.codes, rows * cols);
    o.scale = get_floats(o.q.scale, rows * o.q.groups);
    o.zero = get_floats(o.q.zero, rows * o.q.groups);
    struct mat w_hat = put_matrix(w, rows, cols, 2);
    assert_ok(dev.b->dequantize(dev.s, &(struct dequantize_args){.q = &o.q, .out = w_hat}, &err));
    o.w_hat = get_matrix(w_hat);
    return o;
}

static double squared_error(const float *w, const float *w_hat, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += ((double)w[i] - w_hat[i]) * ((double)w[i] - w_hat[i]);
    return sum;
}

/* Everything that holds for every quantizer: codes in range, ŵ from them, parameters as 16 bits keep them. */
static void check_form(const struct outcome *o, const struct candidate *c) {
    const struct quantized *q = &o->q;
    for (int64_t i = 0; i < q->rows * q->groups; i++) {
        assert_true(o->scale[i] > 0 && o->scale[i] == ref_f16(o->scale[i]) && o->zero[i] == ref_f16(o->zero[i]));
        if (c->symmetric) assert_true(o->zero[i] == (float)(1 << (c->bits - 1)));
        if (c->zero == ZERO_INTEGER)
            assert_true(o->zero[i] == floorf(o->zero[i]) && o->zero[i] >= 0 && o->zero[i] < (float)(1 << c->bits));
    }
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        int64_t g = i / q->cols * q->groups + i % q->cols / q->group;
        assert_true(o->codes[i] < 1 << c->bits);
        assert_true(o->w_hat[i] == ((float)o->codes[i] - o->zero[g]) * o->scale[g]);
    }
}

static void check_rtn(const float *w, const struct outcome *o, const struct candidate *c) {
    const struct quantized *q = &o->q;
    check_form(o, c);
    for (int64_t n = 0; n < q->rows; n++)
        for (int64_t g = 0; g < q->groups; g++) {
            int64_t from = n * q->cols + g * q->group;
            int64_t length = q->cols - g * q->group < q->group ? q->cols - g * q->group : q->group;
            struct ref_grid want = ref_rtn(w + from, length, c);
            assert_true(o->scale[n * q->groups + g] == want.scale);
            assert_true(o->zero[n * q->groups + g] == want.zero);
            for (int64_t k = 0; k < length; k++)
                assert_true(o->codes[from + k] == ref_code(&want, w[from + k]));
        }
}

static const int bit_widths[] = {2, 3, 4, 5, 6, 8};
static const int groups[] = {16, 64, 100, 0};
static const struct {
    bool symmetric;
    enum zero_type zero;
} kinds[] = {{false, ZERO_FLOAT}, {false, ZERO_INTEGER}, {true, ZERO_FLOAT}};

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

/* Groups that straddle zero, and with an offset groups that do not. */
static void rtn_gives_the_reference_codes(void **state) {
    (void)state;
    enum { N = 7, K = 200 };
    static const double offsets[] = {0, 0.01, 0.3, -0.3, -7};
    FOR_EACH(b, bit_widths) FOR_EACH(g, groups) FOR_EACH(k, kinds) FOR_EACH(s, offsets) {
        struct candidate c = {.method = METHOD_RTN, .bits = bit_widths[b], .group = groups[g]};
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        seed(40 + b);
        float *w = host_bf16(N * K, 0.02);
        for (int i = 0; i < N * K; i++)
            w[i] += (float)offsets[s];
        struct outcome o = quantize(w, N, K, &c);
        check_rtn(w, &o, &c);
        assert_int_equal(o.report.constant_groups, 0);
        assert_int_equal(o.report.rtn_groups, 0);
    }
}

static void buffers_have_the_shape_of_the_candidate(void **state) {
    (void)state;
    static const struct {
        int64_t cols;
        int group, want_group;
        int64_t want_groups;
    } cases[] = {{200, 64, 64, 4}, {192, 64, 64, 3}, {200, 0, 200, 1}, {40, 64, 40, 1}, {64, 64, 64, 1}};
    FOR_EACH(i, cases) {
        struct candidate c = {.method = METHOD_RTN, .bits = 4, .group = cases[i].group};
        struct quantized q = device_quantized(3, cases[i].cols, &c);
        assert_int_equal(q.rows, 3);
        assert_int_equal(q.cols, cases[i].cols);
        assert_int_equal(q.bits, 4);
        assert_int_equal(q.group, cases[i].want_group);
        assert_int_equal(q.groups, cases[i].want_groups);
    }
}

/* Values whose digits 16-bit parameters can hold come back exactly; every candidate, HQQ too. */
static void constant_groups_are_exact(void **state) {
    (void)state;
    static const float values[] = {0, 1, -1, 0x1.44p-6f, -0x1.44p-6f, 0x1.fep-14f, -0x1.02p-14f, 65280, -65280};
    static const float float_zero_only[] = {0x1.86p-20f, -0x1.fep-26f, 0x1.82p20f, -0x1.fep29f};
    enum { N = 2, K = 70 };
    for (int method = METHOD_RTN; method <= METHOD_HQQ; method++)
        FOR_EACH(b, bit_widths) FOR_EACH(k, kinds) for (size_t v = 0; v < 13; v++) {
            bool wide = v >= 9;
            if (wide && (kinds[k].symmetric || kinds[k].zero == ZERO_INTEGER)) continue;
            if (method == METHOD_HQQ && kinds[k].symmetric) continue;
            struct candidate c =
                CANDIDATE((enum method)method, bit_widths[b], 64, kinds[k].symmetric, kinds[k].zero, LAYOUT_DENSE);
            float *w = host_zeros(N * K);
            for (int i = 0; i < N * K; i++)
                w[i] = wide ? float_zero_only[v - 9] : values[v];
            struct outcome o = quantize(w, N, K, &c);
            check_form(&o, &c);
            for (int i = 0; i < N * K; i++)
                assert_true(o.w_hat[i] == w[i]);
            assert_int_equal(o.report.constant_groups, N * 2);
        }
}

/* One constant group among others is counted once and stays exact. */
static void constant_groups_are_counted(void **state) {
    (void)state;
    enum { N = 4, K = 96 };
    seed(41);
    float *w = host_bf16(N * K, 0.02);
    for (int i = 0; i < 32; i++)
        w[2 * K + 32 + i] = 0.5f;
    struct outcome o = quantize(w, N, K, &(struct candidate){.method = METHOD_RTN, .bits = 3, .group = 32});
    assert_int_equal(o.report.constant_groups, 1);
    for (int i = 0; i < 32; i++)
        assert_true(o.w_hat[2 * K + 32 + i] == 0.5f);
}

/* Ranges that 16-bit parameters cannot follow: ŵ is finite, and no further off than the grid makes it. */
static void extreme_weights_stay_finite(void **state) {
    (void)state;
    static const double magnitudes[] = {1e-38, 1e-20, 1e-9, 1e-7, 1e-6, 1e-4, 1, 1e3, 1e6, 1e9, 3e38};
    enum { N = 3, K = 64 };
    for (int method = METHOD_RTN; method <= METHOD_HQQ; method++)
        FOR_EACH(b, bit_widths) FOR_EACH(k, kinds) FOR_EACH(m, magnitudes) {
            if (method == METHOD_HQQ && kinds[k].symmetric) continue;
            struct candidate c =
                CANDIDATE((enum method)method, bit_widths[b], 32, kinds[k].symmetric, kinds[k].zero, LAYOUT_DENSE);
            seed(42);
            float *w = host_zeros(N * K);
            for (int i = 0; i < N * K; i++)
                w[i] = (float)(magnitudes[m] * (2 * uniform() - 1));
            struct outcome o = quantize(w, N, K, &c);
            check_form(&o, &c);
            double unit = 2 * magnitudes[m] / ((1 << c.bits) - 2) + 0x1p-24; /* of the coarser symmetric grid */
            for (int i = 0; i < N * K; i++) {
                assert_true(isfinite(o.w_hat[i]));
                if (magnitudes[m] <= 1e3) assert_true(fabs((double)o.w_hat[i] - w[i]) <= 1.02 * unit);
            }
        }
}

/* Scales below 2^−14 are subnormal in 16 bits: rounding down would cut the range. */
static void tiny_ranges_are_covered(void **state) {
    (void)state;
    float w[16];
    for (int i = 0; i < 16; i++)
        w[i] = (float)(i - 8) * 1.3e-7f;
    struct outcome o = quantize(w, 1, 16, &(struct candidate){.method = METHOD_RTN, .bits = 4, .group = 16});
    assert_true(o.scale[0] == 0x3p-24f);
    for (int i = 0; i < 16; i++)
        assert_near(o.w_hat[i], w[i], 0.51 * o.scale[0]);
}

/* … and where the subnormal scale is exact it stays as it is. */
static void exact_tiny_scales_are_kept(void **state) {
    (void)state;
    float w[16];
    for (int i = 0; i < 16; i++)
        w[i] = (float)(i - 8) * 0x3p-24f;
    struct outcome o = quantize(w, 1, 16, &(struct candidate){.method = METHOD_RTN, .bits = 4, .group = 16});
    assert_true(o.scale[0] == 0x3p-24f);
    assert_memory_equal(o.w_hat, w, sizeof w);
}

static void a_weight_that_is_no_number_is_named(void **state) {
    (void)state;
    enum { N = 40, K = 70 };
    static const struct {
        int row, col;
        float value;
        const char *part;
    } cases[] = {{0, 0, NAN, "row 0, column 0 is NaN"},
                 {39, 69, INFINITY, "row 39, column 69 is infinite"},
                 {17, 33, -INFINITY, "row 17, column 33 is infinite"}};
    for (int method = METHOD_RTN; method <= METHOD_HQQ; method++)
        FOR_EACH(i, cases) {
            struct candidate c = {.method = (enum method)method, .bits = 4, .group = 64};
            seed(43);
            float *w = host_bf16(N * K, 0.02);
            w[cases[i].row * K + cases[i].col] = cases[i].value;
            if (cases[i].row < 39) w[39 * K] = NAN; /* the first one counts */
            struct quantized q = device_quantized(N, K, &c);
            struct quantize_report report;
            struct quantize_args a = {.w = put_matrix(w, N, K, 0), .candidate = c, .out = &q, .report = &report};
            assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, cases[i].part);
        }
}

/* Squared weight error at most the library's algorithm run in float64, over the sizes weights have. 0.25% is left for
 * the groups where the two end in different fixed points: our codes are chosen for the 16-bit scale, its codes not. */
static void hqq_is_at_or_below_the_library(void **state) {
    (void)state;
    enum { N = 24, K = 256 };
    static const double deviations[] = {0.0005, 0.02, 0.2, 1.5};
    FOR_EACH(b, bit_widths) FOR_EACH(d, deviations) {
        struct candidate c = {.method = METHOD_HQQ, .bits = bit_widths[b], .group = 64};
        seed(44 + d);
        float *w = host_bf16(N * K, deviations[d]);
        for (int i = 0; i < N * K; i += 50)
            w[i] *= 4;
        double *library = host_doubles(N * K), library_error = 0;
        ref_hqq(w, N, K, c.group, c.bits, library);
        for (int i = 0; i < N * K; i++)
            library_error += (w[i] - library[i]) * (w[i] - library[i]);
        struct outcome o = quantize(w, N, K, &c);
        check_form(&o, &c);
        assert_true(squared_error(w, o.w_hat, N * K) <= library_error * 1.0025);
    }
}

/* Group by group, with floats and integers as zeros; where RTN stays it is counted. */
static void hqq_is_never_worse_than_rtn(void **state) {
    (void)state;
    enum { N = 16, K = 200 };
    static const double offsets[] = {0, 0.1, -3};
    int64_t kept = 0;
    FOR_EACH(b, bit_widths) FOR_EACH(g, groups) FOR_EACH(s, offsets) for (int zero = 0; zero < 2; zero++) {
        struct candidate c = {.method = METHOD_HQQ, .bits = bit_widths[b], .group = groups[g]};
        c.zero = (enum zero_type)zero;
        seed(48);
        float *w = host_bf16(N * K, 0.02);
        for (int i = 0; i < N * K; i++)
            w[i] += (float)offsets[s];
        struct outcome hqq = quantize(w, N, K, &c);
        c.method = METHOD_RTN;
        struct outcome rtn = quantize(w, N, K, &c);
        check_form(&hqq, &c);
        int64_t same = 0;
        for (int64_t i = 0; i < N * hqq.q.groups; i++) {
            int64_t from = i / hqq.q.groups * K + i % hqq.q.groups * hqq.q.group;
            int64_t rest = K - i % hqq.q.groups * hqq.q.group, n = rest < hqq.q.group ? rest : hqq.q.group;
            double error = squared_error(w + from, hqq.w_hat + from, n);
            double error_rtn = squared_error(w + from, rtn.w_hat + from, n);
            assert_true(error <= error_rtn * (1 + 1e-6));
            same += hqq.scale[i] == rtn.scale[i] && hqq.zero[i] == rtn.zero[i];
        }
        assert_true(hqq.report.rtn_groups <= same);
        kept += hqq.report.rtn_groups;
    }
    assert_true(kept > 0);
}

/* HQQ's scale is 1 below a range of 1e-4 and 1/20000 at least: far too coarse here, and RTN must stand in everywhere.
 */
static void rtn_stands_in_where_the_range_is_too_small_for_hqq(void **state) {
    (void)state;
    enum { N = 5, K = 192 };
    static const struct {
        double range;
        int bits;
    } cases[] = {{5e-5, 2}, {9e-5, 4}, {3e-4, 8}, {1e-3, 8}};
    FOR_EACH(i, cases) {
        seed(51);
        float *w = host_zeros(N * K);
        for (int k = 0; k < N * K; k++)
            w[k] = (float)(cases[i].range * (uniform() - 0.5));
        struct candidate c = {.method = METHOD_HQQ, .bits = cases[i].bits, .group = 64};
        struct outcome hqq = quantize(w, N, K, &c);
        assert_int_equal(hqq.report.rtn_groups, N * 3);
        c.method = METHOD_RTN;
        struct outcome rtn = quantize(w, N, K, &c);
        assert_memory_equal(hqq.w_hat, rtn.w_hat, N * K * sizeof *w);
    }
}

/* An integer zero cannot leave 0…top, so the range takes in 0; from there HQQ ends at RTN's grid or a better one. */
static void hqq_with_integer_zeros_starts_from_a_range_with_zero(void **state) {
    (void)state;
    enum { N = 20, K = 256 };
    static const float offsets[] = {0.1f, -0.1f};
    FOR_EACH(b, bit_widths) FOR_EACH(s, offsets) {
        struct candidate c = {.method = METHOD_HQQ, .bits = bit_widths[b], .group = 64, .zero = ZERO_INTEGER};
        seed(52);
        float *w = host_bf16(N * K, 0.02);
        for (int i = 0; i < N * K; i++)
            w[i] += offsets[s];
        assert_int_equal(quantize(w, N, K, &c).report.rtn_groups, 0);
    }
}

/* The zero of least squared error: at 3 bits HQQ gains clearly on weights like a language model's, also on groups that
 * lie on one side of 0. */
static void hqq_gains_on_rtn_at_three_bits(void **state) {
    (void)state;
    enum { N = 64, K = 512 };
    static const float offsets[] = {0, 0.2f, -0.2f};
    FOR_EACH(s, offsets) {
        seed(49);
        float *w = host_bf16(N * K, 0.02);
        for (int i = 0; i < N * K; i++)
            w[i] += offsets[s];
        struct candidate c = {.method = METHOD_HQQ, .bits = 3, .group = 64};
        struct outcome hqq = quantize(w, N, K, &c);
        c.method = METHOD_RTN;
        struct outcome rtn = quantize(w, N, K, &c);
        assert_true(squared_error(w, hqq.w_hat, N * K) < 0.95 * squared_error(w, rtn.w_hat, N * K));
    }
}

/* Large weights: the shrinkage sets in and still nothing gets worse. */
static void hqq_shrinks_large_errors(void **state) {
    (void)state;
    enum { K = 64 };
    seed(50);
    float *w = host_bf16(K, 3);
    w[7] = 40;
    struct candidate c = {.method = METHOD_HQQ, .bits = 2, .group = 64};
    struct outcome hqq = quantize(w, 1, K, &c);
    c.method = METHOD_RTN;
    struct outcome rtn = quantize(w, 1, K, &c);
    assert_true(squared_error(w, hqq.w_hat, K) <= squared_error(w, rtn.w_hat, K) * (1 + 1e-6));
}

/* AWQ's scale taken out again, as two steps would. */
static void columns_are_multiplied_as_they_come_back(void **state) {
    (void)state;
    enum { N = 3, K = 70 };
    seed(47);
    float *w = host_bf16(N * K, 0.02), *by_col = host_normal(K, 1);
    struct candidate c = {.method = METHOD_RTN, .bits = 4, .group = 32};
    struct outcome o = quantize(w, N, K, &c);
    struct mat out = put_matrix(w, N, K, 2);
    assert_ok(
        dev.b->dequantize(dev.s, &(struct dequantize_args){.q = &o.q, .by_col = put(by_col, K), .out = out}, &err));
    const float *got = get_matrix(out);
    for (int i = 0; i < N * K; i++)
        assert_true(got[i] == o.w_hat[i] * by_col[i % K]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rtn_gives_the_reference_codes),
        cmocka_unit_test(buffers_have_the_shape_of_the_candidate),
        cmocka_unit_test(constant_groups_are_exact),
        cmocka_unit_test(constant_groups_are_counted),
        cmocka_unit_test(extreme_weights_stay_finite),
        cmocka_unit_test(tiny_ranges_are_covered),
        cmocka_unit_test(exact_tiny_scales_are_kept),
        cmocka_unit_test(a_weight_that_is_no_number_is_named),
        cmocka_unit_test(hqq_is_at_or_below_the_library),
        cmocka_unit_test(hqq_is_never_worse_than_rtn),
        cmocka_unit_test(rtn_stands_in_where_the_range_is_too_small_for_hqq),
        cmocka_unit_test(hqq_with_integer_zeros_starts_from_a_range_with_zero),
        cmocka_unit_test(hqq_gains_on_rtn_at_three_bits),
        cmocka_unit_test(hqq_shrinks_large_errors),
        cmocka_unit_test(columns_are_multiplied_as_they_come_back),
    };
    return RUN_ON_BACKENDS("quantize", tests);
}
