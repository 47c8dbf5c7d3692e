#include <math.h>
#include <string.h>

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

/* What ranges are chosen by, in scratch: diag H, or H's diagonal blocks one after another, [group, group] each: strided
 * rows of a large H would all fall on the same lines of the cache. */
struct importance {
    const float *diagonal;
    const double *blocks;
};

static enum rc get_diagonal(struct backend_state *state, struct mat h, struct importance *out, struct err *e) {
    void *memory;
    TRY(cpu_scratch(state, (size_t)h.cols * sizeof(float), &memory, e));
    float *diagonal = memory;
    for (int64_t k = 0; k < h.cols; k++)
        diagonal[k] = (float)f64_row(h, k)[k];
    out->diagonal = diagonal;
    return RC_OK;
}

static enum rc get_blocks(struct backend_state *state, struct mat h, int64_t group, struct importance *out,
                          struct err *e) {
    void *memory;
    TRY(cpu_scratch(state, (size_t)(h.cols * group) * sizeof(double), &memory, e));
    double *blocks = memory;
    for (int64_t k = 0; k < h.cols; k++) {
        int64_t from = k / group * group, length = h.cols - from < group ? h.cols - from : group;
        memcpy(blocks + from * group + k % group * length, f64_row(h, k) + from, (size_t)length * sizeof *blocks);
    }
    out->blocks = blocks;
    return RC_OK;
}

static enum rc get_importance(struct backend_state *state, const struct quantize_args *a, struct importance *out,
                              struct err *e) {
    *out = (struct importance){0};
    if (a->candidate.range == RANGE_WEIGHTED) return get_diagonal(state, a->h, out, e);
    if (a->candidate.range == RANGE_OUTPUT) return get_blocks(state, a->h, a->out->group, out, e);
    return RC_OK;
}

static struct counts quantize_row(const struct quantize_args *a, const struct importance *by, int64_t n) {
    struct quantized *q = a->out;
    struct counts counts = {0};
    for (int64_t g = 0; g < q->groups; g++) {
        int64_t from = g * q->group, length = q->cols - from < q->group ? q->cols - from : q->group;
        struct fit_args fit = {.w = f32_row(a->w, n) + from, .n = length, .candidate = &a->candidate};
        fit.weight = by->diagonal != NULL ? by->diagonal + from : NULL;
        fit.h = by->blocks != NULL ? by->blocks + from * q->group : NULL;
        fit.h_stride = length;
        bool kept_rtn;
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

static enum rc quantize_rows(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    int64_t constant = 0, rtn = 0;
    struct importance by;
    TRY(get_importance(state, a, &by, e));
#pragma omp parallel for num_threads(state->threads) reduction(+ : constant, rtn)
    for (int64_t n = 0; n < a->w.rows; n++) {
        struct counts counts = quantize_row(a, &by, n);
        constant += counts.constant;
        rtn += counts.rtn;
    }
    *a->report = (struct quantize_report){.constant_groups = constant, .rtn_groups = rtn};
    return RC_OK;
}

static enum rc quantize_one(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    TRY(check_quantize(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->w));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h));
    TRY(check_finite(state, &a->w, e));
    if (a->candidate.method == METHOD_FP8) return cpu_fp8(state, a, e);
    return candidate_uses_gptq(&a->candidate) ? cpu_gptq(state, a, e) : quantize_rows(state, a, e);
}

enum rc cpu_quantize(struct backend_state *state, const struct quantize_args *a, int count, struct err *e) {
    for (int i = 0; i < count; i++)
        TRY(quantize_one(state, &a[i], e));
    return RC_OK;
}
