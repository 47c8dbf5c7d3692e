/* The range choices of RTN and HQQ: against float64, never worse than RTN by what they are judged by, and on the
 * weights that break quantizers. */
#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

static const int bit_widths[] = {2, 3, 4, 5, 6, 8}, few_bits[] = {2, 4, 8}, ends_of_bits[] = {2, 8};
static const int groups[] = {16, 64, 100, 0}, odd_groups[] = {64, 100};
static const enum range_choice searches[] = {RANGE_MSE, RANGE_WEIGHTED, RANGE_OUTPUT};
static const char *const range_names[] = {"minmax", "mse", "weighted", "output", "percentile", "ratio"};
static const enum range_choice all_ranges[] = {RANGE_FULL,   RANGE_MSE,        RANGE_WEIGHTED,
                                               RANGE_OUTPUT, RANGE_PERCENTILE, RANGE_RATIO};
static const struct {
    bool symmetric;
    enum zero_type zero;
} kinds[] = {{false, ZERO_FLOAT}, {false, ZERO_INTEGER}, {true, ZERO_FLOAT}};

enum { N = 5, K = 200, TOKENS = 300 };

/* What H was made of, on the device and as float64. */
struct calibration {
    struct mat h;
    double *values; /* [K, K] */
};

/* Channels of very different size that go together in part, as a language model's do. */
static struct calibration calibrate(uint64_t from) {
    struct calibration c = {.h = device_gram(K)};
    seed(from);
    float *x = host_normal(TOKENS * K, 1), *size = host_normal(K, 0.8), *common = host_normal(TOKENS, 0.5);
    for (int i = 0; i < TOKENS * K; i++)
        x[i] = (x[i] + common[i / K]) * expf(size[i % K]);
    assert_ok(dev.b->gram(dev.s, &(struct gram_args){.x = put_activation(x, TOKENS, K, 0), .h = c.h}, &err));
    c.values = get_gram(c.h);
    return c;
}

static struct candidate candidate_of(enum method method, int bits, int group, size_t kind, enum range_choice range) {
    struct candidate c = CANDIDATE(method, bits, group, kinds[kind].symmetric, kinds[kind].zero, LAYOUT_DENSE);
    c.range = range;
    c.clip = range == RANGE_PERCENTILE || range == RANGE_RATIO ? 9700 : 0;
    return c;
}

/* What one quantization gave, on the host. */
struct outcome {
    struct quantized q; /* its buffers are the device's */
    uint8_t *codes;
    float *scale, *zero;
    struct quantize_report report;
};

static struct outcome quantize(const float *w, const struct candidate *c, const struct calibration *by) {
    struct outcome o = {.q = device_quantized(N, K, c)};
    struct quantize_args a = {.w = put_matrix(w, N, K, 3), .candidate = *c, .out = &o.q, .report = &o.report};
    if (by != NULL) a.h = by->h;
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    o.codes = get_bytes(o.q.codes, N * K);
    o.scale = get_floats(o.q.scale, N * o.q.groups);
    o.zero = get_floats(o.q.zero, N * o.q.groups);
    return o;
}

/* One of its groups, for the reference. */
static struct ref_fit group_of(const struct outcome *o, int64_t index, const float *w, const struct candidate *c,
                               const struct calibration *by) {
    int64_t from = index % o->q.groups * o->q.group, rest = K - from;
    struct ref_fit fit = {.w = w + index / o->q.groups * K + from, .candidate = c, .h_stride = K};
    fit.n = rest < o->q.group ? rest : o->q.group;
    fit.h = by != NULL ? by->values + from * K + from : NULL;
    return fit;
}

static struct ref_grid grid_of(const struct outcome *o, int64_t index) {
    return (struct ref_grid){o->scale[index], o->zero[index], (1 << o->q.bits) - 1};
}

static void check_codes(const struct outcome *o, int64_t index, const struct ref_fit *fit) {
    struct ref_grid g = grid_of(o, index);
    const uint8_t *codes = o->codes + index / o->q.groups * K + index % o->q.groups * o->q.group;
    for (int64_t k = 0; k < fit->n; k++)
        assert_true(codes[k] == ref_code(&g, fit->w[k]));
}

static void check_form(const struct outcome *o, const struct candidate *c) {
    for (int64_t i = 0; i < N * o->q.groups; i++) {
        assert_true(o->scale[i] > 0 && o->scale[i] == ref_f16(o->scale[i]) && o->zero[i] == ref_f16(o->zero[i]));
        if (c->symmetric) assert_true(o->zero[i] == (float)(1 << (c->bits - 1)));
        if (c->zero == ZERO_INTEGER)
            assert_true(o->zero[i] == floorf(o->zero[i]) && o->zero[i] >= 0 && o->zero[i] < (float)(1 << c->bits));
    }
    for (int64_t i = 0; i < N * K; i++)
        assert_true(o->codes[i] < 1 << c->bits);
}

static float *weights(uint64_t from, double offset) {
    seed(from);
    float *w = host_bf16(N * K, 0.02);
    for (int i = 0; i < N * K; i++)
        w[i] = w[i] * (i % 37 == 0 ? 3 : 1) + (float)offset;
    return w;
}

/* The plain search over all ranges gives the same grid; where another is as good but for rounding, one no worse. */
static void searches_find_the_best_of_all_ranges(void **state) {
    (void)state;
    static const double offsets[] = {0, 0.03, -7};
    struct calibration by = calibrate(80);
    double close = dev.b->gram_type == DTYPE_F32 ? 1e-3 : 1e-4; /* eᵀ H e cancels, and an fp32 H is judged in fp32 */
    int64_t ties = 0, count = 0;
    FOR_EACH(r, searches) FOR_EACH(b, bit_widths) FOR_EACH(g, groups) FOR_EACH(k, kinds) FOR_EACH(s, offsets) {
        struct candidate c = candidate_of(METHOD_RTN, bit_widths[b], groups[g], k, searches[r]);
        float *w = weights(81 + b, offsets[s]);
        struct outcome o = quantize(w, &c, &by);
        check_form(&o, &c);
        for (int64_t i = 0; i < N * o.q.groups; i++, count++) {
            struct ref_fit fit = group_of(&o, i, w, &c, &by);
            double margin;
            struct ref_grid want = ref_range_search(&fit, &margin), got = grid_of(&o, i);
            check_codes(&o, i, &fit);
            if (got.scale == want.scale && got.zero == want.zero) continue;
            double excess = ref_criterion(&fit, &got) / ref_criterion(&fit, &want) - 1;
            if (margin >= close || excess > close)
                fail_msg("%s %d bits g%d, group %lld: %.3g worse, the next best %.3g", range_names[searches[r]], c.bits,
                         c.group, (long long)i, excess, margin);
            ties++;
        }
    }
    assert_true(ties * 50 < count);
}

static void given_ranges_are_cut_where_the_reference_cuts(void **state) {
    (void)state;
    static const int clips[] = {1, 5000, 9000, 9950, PARTS};
    static const enum range_choice given[] = {RANGE_PERCENTILE, RANGE_RATIO};
    FOR_EACH(r, given) FOR_EACH(b, bit_widths) FOR_EACH(g, groups) FOR_EACH(k, kinds) FOR_EACH(p, clips) {
        struct candidate c = candidate_of(METHOD_RTN, bit_widths[b], groups[g], k, given[r]);
        c.clip = clips[p];
        float *w = weights(83 + g, 0);
        struct outcome o = quantize(w, &c, NULL);
        check_form(&o, &c);
        for (int64_t i = 0; i < N * o.q.groups; i++) {
            struct ref_fit fit = group_of(&o, i, w, &c, NULL);
            struct ref_grid want = ref_range_given(&fit), got = grid_of(&o, i);
            check_codes(&o, i, &fit);
            if (c.clip == 1) continue; /* scales that are subnormal halves, or no range at all */
            assert_true(got.scale == want.scale && got.zero == want.zero);
        }
    }
}

/* All of the range is the full range, however it is said. */
static void a_share_of_one_cuts_nothing(void **state) {
    (void)state;
    static const double offsets[] = {0, 0.5};
    FOR_EACH(k, kinds) FOR_EACH(s, offsets) for (int method = METHOD_RTN; method <= METHOD_HQQ; method++) {
        if (method == METHOD_HQQ && kinds[k].symmetric) continue;
        float *w = weights(84, offsets[s]);
        struct candidate c = candidate_of((enum method)method, 3, 64, k, RANGE_FULL);
        struct outcome full = quantize(w, &c, NULL);
        for (int range = RANGE_PERCENTILE; range <= RANGE_RATIO; range++) {
            c.range = (enum range_choice)range;
            c.clip = PARTS;
            struct outcome o = quantize(w, &c, NULL);
            assert_memory_equal(o.codes, full.codes, N * K);
            assert_memory_equal(o.scale, full.scale, (size_t)(N * o.q.groups) * sizeof *o.scale);
            assert_int_equal(o.report.rtn_groups, full.report.rtn_groups);
        }
    }
}

static void no_group_is_worse_than_rtn(void **state) {
    (void)state;
    static const double offsets[] = {0, 0.1, -3};
    struct calibration by = calibrate(85);
    for (int method = METHOD_RTN; method <= METHOD_HQQ; method++)
        FOR_EACH(r, searches) FOR_EACH(b, few_bits) FOR_EACH(g, odd_groups) FOR_EACH(k, kinds) FOR_EACH(s, offsets) {
            if (method == METHOD_HQQ && kinds[k].symmetric) continue;
            struct candidate c = candidate_of((enum method)method, few_bits[b], odd_groups[g], k, searches[r]);
            float *w = weights(86 + s, offsets[s]);
            struct outcome o = quantize(w, &c, &by);
            struct candidate plain = c;
            plain.method = METHOD_RTN;
            plain.range = method == METHOD_HQQ ? c.range : RANGE_FULL;
            struct outcome rtn = quantize(w, &plain, &by);
            check_form(&o, &c);
            for (int64_t i = 0; i < N * o.q.groups; i++) {
                struct ref_fit fit = group_of(&o, i, w, &c, &by);
                struct ref_grid got = grid_of(&o, i), other = grid_of(&rtn, i);
                assert_true(ref_criterion(&fit, &got) <= ref_criterion(&fit, &other) * (1 + 1e-5));
            }
        }
}

/* HQQ with its own range competes: a search cannot lose against it either, by the criterion. */
static void hqq_searches_gain_on_hqq(void **state) {
    (void)state;
    struct calibration by = calibrate(87);
    FOR_EACH(r, searches) {
        double plain = 0, searched = 0;
        for (int bits = 2; bits <= 4; bits++) {
            struct candidate c = candidate_of(METHOD_HQQ, bits, 64, 0, searches[r]), full = c;
            full.range = RANGE_FULL;
            float *w = weights(88, 0);
            struct outcome o = quantize(w, &c, &by), other = quantize(w, &full, &by);
            for (int64_t i = 0; i < N * o.q.groups; i++) {
                struct ref_fit fit = group_of(&o, i, w, &c, &by);
                struct ref_grid got = grid_of(&o, i), without = grid_of(&other, i);
                double error = ref_criterion(&fit, &got), before = ref_criterion(&fit, &without);
                assert_true(error <= before * (1 + 1e-5));
                searched += error;
                plain += before;
            }
        }
        assert_true(searched < 0.9 * plain);
    }
}

/* Where it matters: at 3 bits each search takes a good part of its error away. */
static void searches_gain_on_rtn_at_three_bits(void **state) {
    (void)state;
    struct calibration by = calibrate(89);
    FOR_EACH(r, searches) FOR_EACH(k, kinds) {
        struct candidate c = candidate_of(METHOD_RTN, 3, 64, k, searches[r]), full = c;
        full.range = RANGE_FULL;
        float *w = weights(90, 0);
        struct outcome o = quantize(w, &c, &by), rtn = quantize(w, &full, &by);
        double searched = 0, plain = 0;
        for (int64_t i = 0; i < N * o.q.groups; i++) {
            struct ref_fit fit = group_of(&o, i, w, &c, &by);
            struct ref_grid got = grid_of(&o, i), without = grid_of(&rtn, i);
            searched += ref_criterion(&fit, &got);
            plain += ref_criterion(&fit, &without);
        }
        assert_true(searched < 0.9 * plain);
    }
}

/* AWQ's scales are in w and H already: what is left is RTN. */
static void awq_is_rtn_of_the_scaled_weights(void **state) {
    (void)state;
    struct calibration by = calibrate(91);
    float *w = weights(92, 0);
    struct candidate awq = candidate_default(METHOD_AWQ, 4, 64), rtn = candidate_default(METHOD_RTN, 4, 64);
    rtn.zero = awq.zero;
    rtn.range = awq.range;
    struct outcome a = quantize(w, &awq, &by), b = quantize(w, &rtn, &by);
    assert_memory_equal(a.codes, b.codes, N * K);
    assert_memory_equal(a.scale, b.scale, (size_t)(N * a.q.groups) * sizeof *a.scale);
}

#define FOR_EVERY_CANDIDATE(c, widths)                                                                                 \
    for (int method = METHOD_RTN; method <= METHOD_HQQ; method++)                                                      \
        FOR_EACH(r, all_ranges) FOR_EACH(b, widths) FOR_EACH(k, kinds) {                                               \
            if (method == METHOD_HQQ && kinds[k].symmetric) continue;                                                  \
            struct candidate c = candidate_of((enum method)method, (widths)[b], 64, k, all_ranges[r]);
#define END_EVERY }

static void constant_groups_are_exact_by_any_range(void **state) {
    (void)state;
    static const float values[] = {0, 1, -1, 0x1.44p-6f};
    struct calibration by = calibrate(93);
    FOR_EVERY_CANDIDATE(c, bit_widths)
    FOR_EACH(v, values) {
        float *w = host_zeros(N * K);
        for (int i = 0; i < N * K; i++)
            w[i] = values[v];
        struct outcome o = quantize(w, &c, &by);
        check_form(&o, &c);
        for (int i = 0; i < N * K; i++) {
            int64_t g = i / K * o.q.groups + i % K / o.q.group;
            assert_true(((float)o.codes[i] - o.zero[g]) * o.scale[g] == w[i]);
        }
        assert_int_equal(o.report.constant_groups, N * o.q.groups);
    }
    END_EVERY
}

/* Every weight tiny or huge, one alone among zeros, half of them equal: parameters and ŵ stay finite. */
static void hostile_weights_stay_finite_by_any_range(void **state) {
    (void)state;
    static const double magnitudes[] = {1e-42, 1e-7, 1e5, 3e38};
    struct calibration by = calibrate(94);
    FOR_EVERY_CANDIDATE(c, ends_of_bits)
    FOR_EACH(m, magnitudes) for (int form = 0; form < 3; form++) {
        seed(95);
        float *w = host_zeros(N * K);
        for (int i = 0; i < N * K; i++) {
            w[i] = (float)(magnitudes[m] * (2 * uniform() - 1));
            if (form == 1) w[i] = i % 64 == 5 ? (float)magnitudes[m] : 0;
            if (form == 2 && i % 2 == 0) w[i] = (float)magnitudes[m];
        }
        struct outcome o = quantize(w, &c, &by);
        check_form(&o, &c);
        for (int i = 0; i < N * K; i++) {
            int64_t g = i / K * o.q.groups + i % K / o.q.group;
            assert_true(isfinite(((float)o.codes[i] - o.zero[g]) * o.scale[g]));
        }
    }
    END_EVERY
}

/* Inputs that never fire weigh nothing: RTN's grid is as good as any, and stays. */
static void a_dead_h_leaves_rtn(void **state) {
    (void)state;
    struct calibration dead = {.h = device_gram(K)};
    float *w = weights(96, 0);
    for (int range = RANGE_WEIGHTED; range <= RANGE_OUTPUT; range++) {
        struct candidate c = candidate_of(METHOD_RTN, 3, 64, 1, (enum range_choice)range), full = c;
        full.range = RANGE_FULL;
        struct outcome o = quantize(w, &c, &dead), rtn = quantize(w, &full, NULL);
        assert_memory_equal(o.codes, rtn.codes, N * K);
    }
}

static void what_a_range_needs_must_be_there(void **state) {
    (void)state;
    struct candidate c = candidate_of(METHOD_RTN, 4, 64, 0, RANGE_WEIGHTED);
    struct quantized q = device_quantized(N, K, &c);
    struct quantize_report report;
    struct quantize_args a = {.w = put_matrix(weights(97, 0), N, K, 0), .candidate = c, .out = &q, .report = &report};
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "quantize: h: [0, 0] where [200, 200]");
    a.candidate.range = RANGE_OUTPUT;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "quantize: h");
    a.h = device_gram(K);
    a.h.type = DTYPE_BF16;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_UNSUPPORTED, "");
    a.candidate.range = RANGE_RATIO;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "0 of 10000");
    a.candidate.clip = PARTS + 1;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "10001 of 10000");
    a.candidate = candidate_default(METHOD_GPTQ, 4, 64);
    a.candidate.range = RANGE_OUTPUT;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_UNSUPPORTED, "gptq does not round to nearest");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(searches_find_the_best_of_all_ranges),
        cmocka_unit_test(given_ranges_are_cut_where_the_reference_cuts),
        cmocka_unit_test(a_share_of_one_cuts_nothing),
        cmocka_unit_test(no_group_is_worse_than_rtn),
        cmocka_unit_test(hqq_searches_gain_on_hqq),
        cmocka_unit_test(searches_gain_on_rtn_at_three_bits),
        cmocka_unit_test(awq_is_rtn_of_the_scaled_weights),
        cmocka_unit_test(constant_groups_are_exact_by_any_range),
        cmocka_unit_test(hostile_weights_stay_finite_by_any_range),
        cmocka_unit_test(a_dead_h_leaves_rtn),
        cmocka_unit_test(what_a_range_needs_must_be_there),
    };
    return RUN_ON_BACKENDS("range", tests);
}
