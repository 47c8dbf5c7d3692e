/* The range searches against their authors' algorithms, run by NumPy in float64 (tools/make-clip-goldens). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/formats.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

static const char golden[] = "tests/golden/clip.txt";
enum { N_MAX = 16, K_MAX = 128, T_MAX = 64 };

struct inputs {
    int64_t rows, cols, tokens;
    float *w, *x;
    struct mat h;
    double *h_values;
};

static double number(FILE *file) {
    double value;
    assert_int_equal(fscanf(file, "%lf", &value), 1);
    return value;
}

static float *read_bf16(FILE *file, int64_t count) {
    float *values = host_zeros(count);
    for (int64_t i = 0; i < count; i++)
        values[i] = bf16_to_f32((uint16_t)number(file));
    return values;
}

static struct inputs read_inputs(FILE *file) {
    struct inputs in = {.rows = (int64_t)number(file)};
    in.cols = (int64_t)number(file);
    in.tokens = (int64_t)number(file);
    assert_true(in.rows <= N_MAX && in.cols <= K_MAX && in.tokens <= T_MAX);
    in.w = read_bf16(file, in.rows * in.cols);
    in.x = read_bf16(file, in.tokens * in.cols);
    in.h = device_gram(in.cols);
    struct mat x = put_activation(in.x, in.tokens, in.cols, 0);
    assert_ok(dev.b->gram(dev.s, &(struct gram_args){.x = x, .h = in.h}, &err));
    in.h_values = get_gram(in.h);
    return in;
}

/* "CRITERION BITS GROUP SYMMETRIC"; false at the end of the file. `clamped`: AWQ to the letter, which is not quite what
 * is computed here. */
static bool read_case(FILE *file, struct candidate *c, bool *clamped) {
    char criterion[16];
    if (fscanf(file, "%15s", criterion) != 1) return false;
    *clamped = strcmp(criterion, "clamped") == 0;
    *c = (struct candidate){.method = METHOD_RTN, .range = RANGE_OUTPUT};
    if (strcmp(criterion, "mse") == 0) c->range = RANGE_MSE;
    c->bits = (int)number(file);
    c->group = (int)number(file);
    c->symmetric = number(file) != 0;
    c->zero = c->symmetric ? ZERO_FLOAT : ZERO_INTEGER;
    return true;
}

/* What has been compared so far. */
struct tally {
    bool clamped;
    int groups, equal;
    double golden, ours; /* Σ output error */
};

/* eᵀHe or Σ e² of these codes. */
static double error_of(const struct ref_fit *fit, enum range_choice range, const struct ref_grid *g,
                       const uint8_t *codes) {
    double sum = 0, error[K_MAX];
    for (int64_t i = 0; i < fit->n; i++)
        error[i] = fit->w[i] - (codes[i] - g->zero) * g->scale;
    for (int64_t i = 0; i < fit->n; i++)
        for (int64_t j = 0; j < fit->n; j++)
            sum += range == RANGE_OUTPUT ? error[i] * fit->h[i * fit->h_stride + j] * error[j]
                                         : (i == j) * error[i] * error[j];
    return sum;
}

/* One group as the file has it, or, where a group's two best choices are as good, or RTN's, which competes here: one
 * that is no worse. */
static void compare_group(FILE *file, const struct ref_fit *fit, struct ref_grid ours, const uint8_t *codes,
                          struct tally *tally) {
    struct ref_grid want = {.top = ours.top};
    uint8_t want_codes[K_MAX];
    want.scale = number(file);
    want.zero = number(file);
    double margin = number(file);
    for (int64_t k = 0; k < fit->n; k++)
        want_codes[k] = (uint8_t)number(file);
    tally->groups++;
    tally->equal +=
        ours.scale == want.scale && ours.zero == want.zero && memcmp(codes, want_codes, (size_t)fit->n) == 0;
    tally->golden += error_of(fit, RANGE_OUTPUT, &want, want_codes);
    tally->ours += error_of(fit, RANGE_OUTPUT, &ours, codes);
    enum range_choice range = fit->candidate->range;
    if (tally->clamped) return;
    assert_true(error_of(fit, range, &ours, codes) <=
                error_of(fit, range, &want, want_codes) * (1 + fmin(margin, 1e-4) + 1e-6));
}

static void compare_case(FILE *file, const struct inputs *in, const struct candidate *c, struct tally *tally) {
    struct quantized q = device_quantized(in->rows, in->cols, c);
    struct quantize_report report;
    struct mat w = put_matrix(in->w, in->rows, in->cols, 0);
    struct quantize_args a = {.w = w, .candidate = *c, .h = in->h, .out = &q, .report = &report};
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    uint8_t *codes = get_bytes(q.codes, in->rows * in->cols);
    float *scale = get_floats(q.scale, in->rows * q.groups), *zero = get_floats(q.zero, in->rows * q.groups);
    for (int64_t i = 0; i < in->rows * q.groups; i++) {
        int64_t from = i % q.groups * q.group, at = i / q.groups * in->cols + from;
        struct ref_fit fit = {in->w + at, q.group, c, in->h_values + from * in->cols + from, in->cols};
        struct ref_grid ours = {scale[i], zero[i], (1 << c->bits) - 1};
        compare_group(file, &fit, ours, codes + at, tally);
    }
}

static void searches_choose_as_their_authors_code(void **state) {
    (void)state;
    FILE *file = fopen(golden, "r");
    assert_non_null(file);
    struct inputs in = read_inputs(file);
    struct candidate c;
    struct tally tally = {0}, clamped = {0};
    int cases = 0;
    for (; read_case(file, &c, &tally.clamped); cases++) {
        tally = (struct tally){.clamped = tally.clamped};
        compare_case(file, &in, &c, &tally);
        if (tally.clamped) {
            clamped.ours += tally.ours;
            clamped.golden += tally.golden;
            continue;
        }
        assert_true(tally.equal >= 0.8 * tally.groups);
        assert_near(tally.ours, tally.golden, 0.01 * tally.golden);
    }
    fclose(file);
    assert_int_equal(cases, 24);
    assert_true(clamped.ours < clamped.golden); /* 8% */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(searches_choose_as_their_authors_code)};
    return RUN_ON_BACKENDS("clip", tests);
}
