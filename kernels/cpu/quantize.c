#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/grid.h"
#include "kernels/cpu/vec.h"

/* The first weight that is no number, in reading order, as RC_INVALID. */
static enum rc check_finite(struct backend_state *state, const struct mat *w, struct err *e) {
    (void)state;
    int64_t bad = w->rows;
#pragma omp parallel for num_threads(state->threads) reduction(min : bad)
    for (int64_t n = 0; n < w->rows; n++)
        if (n < bad && !vec_finite(f32_row(*w, n), w->cols)) bad = n;
    if (bad == w->rows) return RC_OK;
    const float *row = f32_row(*w, bad);
    int64_t k = 0;
    while (isfinite(row[k]))
        k++;
    return err_set(e, RC_INVALID,
                   "the weight at row %lld, column %lld is %s: the checkpoint is damaged; fetch it again",
                   (long long)bad, (long long)k, isnan(row[k]) ? "NaN" : "infinite");
}

struct counts {
    int64_t constant, rtn;
};

/* What the range of the group at columns from … from + n is chosen by. */
static struct fit_args fit_of(const struct quantize_args *a, const float *diagonal, int64_t row, int64_t from,
                              int64_t n) {
    struct fit_args fit = {.w = f32_row(a->w, row) + from, .n = n, .candidate = &a->candidate};
    if (a->candidate.range == RANGE_WEIGHTED) fit.weight = diagonal + from;
    if (a->candidate.range != RANGE_OUTPUT) return fit;
    fit.h = f64_row(a->h, from) + from;
    fit.h_stride = a->h.stride;
    return fit;
}

static struct counts quantize_row(const struct quantize_args *a, const float *diagonal, int64_t n) {
    struct quantized *q = a->out;
    struct counts counts = {0};
    for (int64_t g = 0; g < q->groups; g++) {
        int64_t from = g * q->group, length = q->cols - from < q->group ? q->cols - from : q->group;
        bool kept_rtn;
        struct fit_args fit = fit_of(a, diagonal, n, from, length);
        struct grid grid = grid_fit(&fit, &kept_rtn);
        grid_encode(&grid, fit.w, length, q->codes + n * q->cols + from);
        q->scale[n * q->groups + g] = grid.scale;
        q->zero[n * q->groups + g] = grid.zero;
        struct range r = grid_range(fit.w, length);
        counts.constant += r.min == r.max;
        counts.rtn += kept_rtn;
    }
    return counts;
}

/* diag H in fp32, where the range is chosen by it. */
static enum rc get_diagonal(struct backend_state *state, const struct quantize_args *a, const float **diagonal,
                            struct err *e) {
    void *memory;
    *diagonal = NULL;
    if (a->candidate.range != RANGE_WEIGHTED) return RC_OK;
    TRY(cpu_scratch(state, (size_t)a->w.cols * sizeof **diagonal, &memory, e));
    float *values = memory;
    for (int64_t k = 0; k < a->w.cols; k++)
        values[k] = (float)f64_row(a->h, k)[k];
    *diagonal = values;
    return RC_OK;
}

static enum rc quantize_rows(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    int64_t constant = 0, rtn = 0;
    const float *diagonal;
    TRY(get_diagonal(state, a, &diagonal, e));
#pragma omp parallel for num_threads(state->threads) reduction(+ : constant, rtn)
    for (int64_t n = 0; n < a->w.rows; n++) {
        struct counts counts = quantize_row(a, diagonal, n);
        constant += counts.constant;
        rtn += counts.rtn;
    }
    *a->report = (struct quantize_report){.constant_groups = constant, .rtn_groups = rtn};
    return RC_OK;
}

enum rc cpu_quantize(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    TRY(check_quantize(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->w));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h));
    TRY(check_finite(state, &a->w, e));
    if (candidate_uses_gptq(&a->candidate)) return gptq_quantize(state, a, e);
    return quantize_rows(state, a, e);
}
