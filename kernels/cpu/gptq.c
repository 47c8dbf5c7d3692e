/* GPTQ (Frantar et al. 2022): columns are rounded one after the other, and those that follow make up for
 * each one's error as far as H lets them.
 *
 * Rows are independent, so each thread takes some of them through all columns. Inside a block of columns LANES rows go
 * side by side; what a block does to the columns behind it is one matrix product. */
#include "kernels/cpu/gptq.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/grid.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

enum { ROWS = 64 }; /* that one thread takes at a time: a multiple of LANES */

/* Some rows on their way through the columns. */
struct rows {
    int64_t first, count;
    float *w;     /* [ROWS, K] in the order of the steps, corrected up to the block at hand; zeros behind the last */
    float *error; /* [STEPS_MAX, ROWS] of the block */
    float *group; /* [K] one group's weights */
    int64_t constant; /* groups */
};

/* LANES of the rows in the block [from, to) of steps. */
struct panel {
    int64_t row, from, to;
    float w[STEPS_MAX][LANES], scale[LANES], zero[LANES];
};

/* Corrections of weights near the end of fp32 can overflow; grids are fitted to numbers. */
static void keep_finite(float *w, int64_t n) {
    if (vec_finite(w, n)) return;
    for (int64_t k = 0; k < n; k++)
        w[k] = isfinite(w[k]) ? w[k] : 0;
}

/* Fits the `n` weights in `group`; returns whether they are all equal. */
static bool fit(const struct rounding *r, float *group, int64_t n, const float *weight, int64_t parameter) {
    struct fit_args a = {.w = group, .n = n, .candidate = &r->a->candidate, .weight = weight};
    bool kept_rtn;
    keep_finite(group, n);
    struct grid grid = grid_fit(&a, &kept_rtn);
    struct range range = grid_range(group, n);
    r->a->out->scale[parameter] = grid.scale;
    r->a->out->zero[parameter] = grid.zero;
    return range.min == range.max;
}

int64_t gptq_fit_row(const struct rounding *r, int64_t row, float *group) {
    const struct quantized *q = r->a->out;
    const struct factor *f = r->a->factor;
    const float *w = f32_row(r->a->w, row);
    int64_t constant = 0;
    for (int64_t g = 0; g < q->groups; g++) {
        int64_t from = g * q->group, n = q->cols - from < q->group ? q->cols - from : q->group;
        for (int64_t k = 0; k < n; k++) {
            int64_t column = q->group_of ? f->order[from + k] : from + k;
            group[k] = f->dead[column] ? 0 : w[column];
        }
        constant += fit(r, group, n, r->weight ? r->weight + from : NULL, parameter_at(r, row, g));
    }
    return constant;
}

/* All groups as they lie, before any weight is corrected. */
static void fit_before(const struct rounding *r, struct rows *rows) {
    for (int64_t i = 0; i < rows->count; i++)
        rows->constant += gptq_fit_row(r, rows->first + i, rows->group);
}

/* The group that begins at `step`, as it is then; what lies behind the block is corrected already. */
static void fit_at(const struct rounding *r, struct rows *rows, const struct panel *p, int64_t step) {
    int64_t end = r->steps.group_end[step], n = end - step, here = end < p->to ? end : p->to;
    for (int64_t l = 0; l < LANES && p->row + l < rows->count; l++) {
        for (int64_t k = step; k < here; k++)
            rows->group[k - step] = p->w[k - p->from][l];
        const float *behind = rows->w + (p->row + l) * r->steps.count + here;
        memcpy(rows->group + (here - step), behind, (size_t)(end - here) * sizeof *behind);
        rows->constant += fit(r, rows->group, n, r->weight ? r->weight + step : NULL,
                              parameter_at(r, rows->first + p->row + l, r->steps.group[step]));
    }
}

/* Rows that there are not have weights of 0, and a grid on which that is no error. */
static void take_grids(const struct rounding *r, const struct rows *rows, struct panel *p, int64_t group) {
    for (int64_t l = 0; l < LANES; l++) {
        bool there = p->row + l < rows->count;
        int64_t at = there ? parameter_at(r, rows->first + p->row + l, group) : 0;
        p->scale[l] = there ? r->a->out->scale[at] : 1;
        p->zero[l] = there ? r->a->out->zero[at] : 0;
    }
}

/* One column of the panel: codes, and error = (w − ŵ)/U_kk. In fp64 so that only true ties are ties. */
SIMD static void round_lanes(const struct panel *p, int64_t step, double top, double diagonal, uint8_t *restrict codes,
                             float *restrict error) {
    const float *w = p->w[step - p->from];
    for (int l = 0; l < LANES; l++) {
        double q = nearest_code((double)w[l] / p->scale[l] + p->zero[l], top);
        codes[l] = (uint8_t)q;
        error[l] = (float)((w[l] - (q - p->zero[l]) * p->scale[l]) / diagonal);
    }
}

/* w_j −= error · U_kj for the block's columns behind k. */
SIMD static void correct_lanes(float (*restrict w)[LANES], int64_t count, const float *restrict upper,
                               const float *restrict error) {
    for (int64_t j = 0; j < count; j++)
        for (int l = 0; l < LANES; l++)
            w[j][l] -= error[l] * upper[j];
}

static void round_panel(const struct rounding *r, struct rows *rows, struct panel *p) {
    const struct quantized *q = r->a->out;
    const struct factor *f = r->a->factor;
    double top = (1 << q->bits) - 1;
    for (int64_t step = p->from; step < p->to; step++) {
        if (steps_fit_at(&r->steps, step)) fit_at(r, rows, p, step);
        if (step == p->from || r->steps.group[step] != r->steps.group[step - 1])
            take_grids(r, rows, p, r->steps.group[step]);
        const float *upper = f->upper + step * f->cols + step;
        float *error = rows->error + (step - p->from) * ROWS + p->row;
        uint8_t codes[LANES];
        round_lanes(p, step, top, upper[0], codes, error);
        correct_lanes(p->w + (step - p->from) + 1, p->to - step - 1, upper + 1, error);
        for (int64_t l = 0; l < LANES && p->row + l < rows->count; l++)
            q->codes[(rows->first + p->row + l) * q->cols + f->order[step]] = codes[l];
    }
}

static void round_block(const struct rounding *r, struct rows *rows, int64_t from, int64_t to) {
    int64_t cols = r->steps.count, rest = cols - to;
    for (int64_t row = 0; row < rows->count; row += LANES) {
        struct panel p = {.row = row, .from = from, .to = to};
        for (int64_t l = 0; l < LANES; l++)
            for (int64_t k = from; k < to; k++)
                p.w[k - from][l] = rows->w[(row + l) * cols + k];
        round_panel(r, rows, &p);
    }
    if (rest == 0) return;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)rows->count, (int)rest, (int)(to - from), -1, rows->error,
                ROWS, r->a->factor->upper + from * cols + to, (int)cols, 1, rows->w + to, (int)cols);
}

static void round_rows(const struct rounding *r, struct rows *rows) {
    int64_t cols = r->steps.count;
    const struct factor *f = r->a->factor;
    for (int64_t i = 0; i < rows->count; i++) {
        const float *w = f32_row(r->a->w, rows->first + i);
        for (int64_t k = 0; k < cols; k++)
            rows->w[i * cols + k] = f->dead[f->order[k]] ? 0 : w[f->order[k]];
    }
    memset(rows->w + rows->count * cols, 0, (size_t)((ROWS - rows->count) * cols) * sizeof *rows->w);
    if (r->steps.fitted_before) fit_before(r, rows);
    for (int64_t from = 0, to; from < cols; from = to) {
        to = steps_block_end(&r->steps, from);
        round_block(r, rows, from, to);
    }
}

/* 1/U_kk², the error that is left when all columns behind k have made up for k's, as a share of the largest; nothing
 * that a dead column does is an error. */
static void fill_weight(const struct rounding *r) {
    const struct factor *f = r->a->factor;
    double least = INFINITY;
    for (int64_t k = 0; k < f->cols; k++)
        if (!f->dead[f->order[k]]) least = fmin(least, f->upper[k * f->cols + k]);
    for (int64_t k = 0; k < f->cols; k++) {
        int64_t column = f->order[k], to = r->steps.fitted_before && !r->a->out->group_of ? column : k;
        double share = least / f->upper[k * f->cols + k];
        r->weight[to] = f->dead[column] ? 0 : (float)(share * share);
    }
}

void gptq_prepare(struct rounding *r, float *weight) {
    r->weight = NULL;
    if (r->a->candidate.range == RANGE_WEIGHTED) {
        r->weight = weight;
        fill_weight(r);
    }
    if (r->a->out->group_of == NULL) return;
    for (int64_t k = 0; k < r->steps.count; k++)
        r->a->out->group_of[r->a->factor->order[k]] = r->steps.group[k];
}

static enum rc one_sided(struct backend_state *state, struct rounding *r, struct err *e) {
    const struct quantize_args *a = r->a;
    int64_t cols = a->w.cols, each = ROWS * cols + ROWS * STEPS_MAX + cols, constant = 0;
    void *memory;
    TRY(cpu_scratch(state, (size_t)(state->threads * each + cols) * sizeof(float), &memory, e));
    float *all = memory;
    gptq_prepare(r, all + state->threads * each);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic) reduction(+ : constant)
    for (int64_t first = 0; first < a->w.rows; first += ROWS) {
        float *at = all + omp_get_thread_num() * each;
        struct rows rows = {.first = first, .count = a->w.rows - first < ROWS ? a->w.rows - first : ROWS, .w = at};
        rows.error = at + ROWS * cols;
        rows.group = rows.error + ROWS * STEPS_MAX;
        round_rows(r, &rows);
        constant += rows.constant;
    }
    *a->report = (struct quantize_report){.constant_groups = constant};
    return RC_OK;
}

enum rc cpu_gptq(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    struct rounding r = {.a = a};
    TRY(steps_init(a, &r.steps, e));
    enum rc rc = a->rows != NULL ? gptq_two_sided(state, &r, e) : one_sided(state, &r, e);
    if (rc == RC_OK && a->candidate.descend > 0) rc = cpu_descend(state, a, &r.steps, e);
    steps_release(&r.steps);
    return rc;
}
