/* What AWQ's search asks of each scale: against scaling, rounding and scaling back one after the other, and the output
 * error of what that leaves in float64. */
#include <math.h>

#include "kernels/formats.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

enum { LINEARS_MAX = 3 };

/* Linears that read one input. */
struct scene {
    int64_t tokens, cols, rows[LINEARS_MAX];
    float *x;
    struct mat w[LINEARS_MAX]; /* on the device */
    struct candidate candidate[LINEARS_MAX];
    struct scaled_error_args args;
};

/* Inputs with a common direction and a few large channels, as real activations have. */
static float *activations(int64_t tokens, int64_t cols) {
    float *x = host_normal(tokens * cols, 1);
    for (int64_t i = 0; i < tokens * cols; i++)
        x[i] = (i % cols % 97 == 5 ? 30 * x[i] : x[i]) + 0.3f;
    return x;
}

static struct mat put_weights(int64_t rows, int64_t cols, int64_t pad, enum dtype type) {
    float *w = host_bf16(rows * cols, 0.02);
    if (type == DTYPE_F32) return put_matrix(w, rows, cols, pad);
    int64_t stride = cols + pad;
    uint16_t *halves = host_bytes((size_t)(rows * stride) * sizeof *halves);
    for (int64_t i = 0; i < rows * cols; i++)
        halves[i / cols * stride + i % cols] = type == DTYPE_BF16 ? f32_to_bf16(w[i]) : f32_to_f16(w[i]);
    return (struct mat){put_stored(halves, type, rows * stride), rows, cols, stride, type};
}

/* t between about 1/4 and 4. */
static void put_scale(struct scene *s) {
    float *t = host_normal(s->cols, 0.5), *inverse = host_zeros(s->cols);
    for (int64_t k = 0; k < s->cols; k++) {
        t[k] = expf(t[k]);
        inverse[k] = 1 / t[k];
    }
    s->args.by_col = put(t, s->cols);
    s->args.inverse = put(inverse, s->cols);
}

static void finish_scene(struct scene *s, int64_t pad, enum dtype type) {
    s->x = activations(s->tokens, s->cols);
    s->args = (struct scaled_error_args){.w = s->w, .candidate = s->candidate, .sum = device_doubles(1)};
    for (int i = 0; i < LINEARS_MAX && s->rows[i] > 0; i++) {
        s->w[i] = put_weights(s->rows[i], s->cols, pad, type);
        s->args.count++;
    }
    put_scale(s);
    s->args.h = device_gram(s->cols);
    struct gram_args g = {.x = put_activation(s->x, s->tokens, s->cols, 0), .h = s->args.h};
    assert_ok(dev.b->gram(dev.s, &g, &err));
    assert_ok(dev.b->gram_finish(dev.s, s->args.h, &err));
}

static double error_of(const struct scene *s) {
    assert_ok(dev.b->scaled_error(dev.s, &s->args, &err));
    return *get_doubles(s->args.sum, 1);
}

/* W − Q(W·diag t)·diag t⁻¹ by the operations that do one thing. */
static double *difference(const struct scene *s, int i) {
    int64_t rows = s->rows[i], cols = s->cols;
    struct mat as_it_is = put_matrix(host_zeros(rows * cols), rows, cols, 0),
               scaled = put_matrix(host_zeros(rows * cols), rows, cols, 0);
    struct quantized q = device_quantized(rows, cols, &s->candidate[i]);
    struct quantize_report report;
    struct quantize_args quantize = {.w = scaled, .candidate = s->candidate[i], .out = &q, .report = &report};
    assert_ok(dev.b->scale(dev.s, &(struct scale_args){.m = s->w[i], .out = as_it_is}, &err));
    float *w = get_matrix(as_it_is);
    assert_ok(dev.b->scale(dev.s, &(struct scale_args){s->w[i], NULL, s->args.by_col, scaled}, &err));
    assert_ok(dev.b->quantize(dev.s, &quantize, 1, &err));
    assert_ok(dev.b->dequantize(dev.s, &(struct dequantize_args){&q, s->args.inverse, scaled}, &err));
    float *w_hat = get_matrix(scaled);
    double *d = host_doubles(rows * cols);
    for (int64_t n = 0; n < rows * cols; n++)
        d[n] = (double)w[n] - w_hat[n];
    return d;
}

/* `sum`, and in `usual` what the errors would come to if they had nothing to do with the input. Where less is left, as
 * terms cancel, D in bf16 keeps so many digits of that. */
static void reference_error(const struct scene *s, double *sum, double *usual) {
    double inputs = 0, squares = 0;
    *sum = 0;
    for (int64_t i = 0; i < s->tokens * s->cols; i++)
        inputs += (double)s->x[i] * s->x[i] / (double)s->cols;
    for (int i = 0; i < s->args.count; i++) {
        double *d = difference(s, i);
        *sum += ref_output_energy(s->x, d, s->tokens, s->rows[i], s->cols);
        for (int64_t n = 0; n < s->rows[i] * s->cols; n++)
            squares += d[n] * d[n];
    }
    *usual = inputs * squares;
}

/* The noise of D in bf16 has another sign in every row. */
static double bf16_bound(const struct scene *s) {
    double rows = 0;
    for (int i = 0; i < s->args.count; i++)
        rows += (double)s->rows[i];
    return fmax(1e-3, 0.02 / sqrt(rows));
}

static void check_scene(const struct scene *s) {
    double want, usual, got = error_of(s);
    reference_error(s, &want, &usual);
    bool bf16 = dev.b->gram_type == DTYPE_F32;
    assert_near(got, want, bf16 ? bf16_bound(s) * (want + usual) : 1e-5 * want);
    assert_true(error_of(s) == got);
}

/* Groups that threads hold whole, others, a short last one and whole rows; rows at multiples of 16 bytes and not. */
static void it_is_the_error_of_scaling_rounding_and_scaling_back(void **state) {
    (void)state;
    static const struct candidate candidates[] = {
        CANDIDATE(METHOD_RTN, 4, 64, false, ZERO_FLOAT, LAYOUT_DENSE),
        CANDIDATE(METHOD_RTN, 3, 32, true, ZERO_FLOAT, LAYOUT_DENSE),
        CANDIDATE(METHOD_RTN, 2, 16, false, ZERO_FLOAT, LAYOUT_DENSE),
        CANDIDATE(METHOD_RTN, 4, 128, false, ZERO_INTEGER, LAYOUT_DENSE),
        CANDIDATE(METHOD_RTN, 8, 0, false, ZERO_FLOAT, LAYOUT_DENSE),
        CANDIDATE(METHOD_RTN, 3, 48, false, ZERO_INTEGER, LAYOUT_DENSE),
        CANDIDATE(METHOD_RTN, 5, 256, true, ZERO_FLOAT, LAYOUT_DENSE),
    };
    static const struct {
        int64_t tokens, rows, cols, pad;
    } sizes[] = {{40, 24, 64, 0}, {90, 70, 300, 3}, {25, 130, 520, 8}, {1, 5, 17, 0}};
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    FOR_EACH(z, sizes) FOR_EACH(c, candidates) FOR_EACH(t, types) {
        if (types[t] != DTYPE_F32 && !dev.b->weights_as_stored) continue;
        seed(80 + z);
        struct scene s = {.tokens = sizes[z].tokens, .cols = sizes[z].cols, .rows = {sizes[z].rows}};
        s.candidate[0] = candidates[c];
        finish_scene(&s, sizes[z].pad, types[t]);
        check_scene(&s);
    }
}

static struct scene scene_of(int64_t cols, int64_t first, int64_t second, int64_t third) {
    struct scene s = {.tokens = 20, .cols = cols, .rows = {first, second, third}};
    for (int i = 0; i < LINEARS_MAX; i++)
        s.candidate[i] = (struct candidate)CANDIDATE(METHOD_RTN, 3 + i, 32, i == 1, ZERO_FLOAT, LAYOUT_DENSE);
    return s;
}

/* Each on its own grid. */
static void linears_of_one_input_are_summed(void **state) {
    (void)state;
    seed(84);
    struct scene s = scene_of(96, 40, 9, 33);
    finish_scene(&s, 0, DTYPE_F32);
    check_scene(&s);
}

/* Of columns and of rows, as many as are in hand at a time; the second Linear's rows lie in two parts. */
static void parts_are_summed(void **state) {
    (void)state;
    seed(85);
    struct scene wide = scene_of(2048 + 40, 3, 2, 0), tall = scene_of(16, 10000, 2 * 16384 + 70, 100);
    finish_scene(&wide, 0, DTYPE_F32);
    check_scene(&wide);
    finish_scene(&tall, 0, DTYPE_F32);
    check_scene(&tall);
}

static void what_is_no_number_shows(void **state) {
    (void)state;
    enum { N = 4, K = 40 };
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f /* times t */};
    FOR_EACH(b, bad) {
        seed(86);
        struct scene s = scene_of(K, N, 0, 0);
        finish_scene(&s, 0, DTYPE_F32);
        float *w = host_normal(N * K, 0.02), *t = get_floats(s.args.by_col, K);
        int k = 0;
        while (t[k] < 1.5f)
            k++;
        w[2 * K + k] = bad[b];
        s.w[0] = put_matrix(w, N, K, 0);
        assert_false(isfinite(error_of(&s)));
    }
}

static void what_does_not_fit_together_is_refused(void **state) {
    (void)state;
    struct scene s = scene_of(16, 3, 0, 0);
    finish_scene(&s, 0, DTYPE_F32);
    const struct scaled_error_args good = s.args;
    struct scaled_error_args a;
#define REFUSED(rc, part, change)                                                                                      \
    a = good;                                                                                                          \
    change;                                                                                                            \
    assert_refused(dev.b->scaled_error(dev.s, &a, &err), rc, part)
    struct mat narrow = s.w[0];
    struct candidate hqq = candidate_default(METHOD_HQQ, 4, 16), searched = s.candidate[0];
    narrow.cols = 15;
    searched.range = RANGE_MSE;
    REFUSED(RC_INVALID, "no Linear", a.count = 0);
    REFUSED(RC_INVALID, "scaled_error: w: [3, 15] where [3, 16]", a.w = &narrow);
    REFUSED(RC_INVALID, "scaled_error: h", a.h.rows = 15);
    REFUSED(RC_INVALID, "scaled_error: by_col", a.by_col = NULL);
    REFUSED(RC_INVALID, "scaled_error: inverse", a.inverse = NULL);
    REFUSED(RC_INVALID, "scaled_error: sum", a.sum = NULL);
    REFUSED(RC_UNSUPPORTED, "rounds to nearest", a.candidate = &hqq);
    REFUSED(RC_UNSUPPORTED, "rounds to nearest", a.candidate = &searched);
    struct mat stored[] = {s.w[0], s.w[0]};
    stored[1].type = DTYPE_BF16;
    struct candidate both[] = {s.candidate[0], s.candidate[0]};
    if (!dev.b->own_memory) {
        REFUSED(RC_UNSUPPORTED, "computes in type", a.count = 2; a.w = stored; a.candidate = both);
    }
#undef REFUSED
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_the_error_of_scaling_rounding_and_scaling_back),
        cmocka_unit_test(linears_of_one_input_are_summed),
        cmocka_unit_test(parts_are_summed),
        cmocka_unit_test(what_is_no_number_shows),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
    };
    return RUN_ON_BACKENDS("scaled_error", tests);
}
