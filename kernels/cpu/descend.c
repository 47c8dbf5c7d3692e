/* Coordinate descent on GPTQ's codes (QuantEase, Behdin et al. 2023; CDQuant, Nair & Suggala 2024): column after
 * column, each code moves to where tr(E·H′·Eᵀ), E = ŵ − w, is least as the other columns are. With R = E·H′ that is a
 * move by −R[n,k]/(H′[k,k]·scale), to the nearest integer, for which a tie is no reason.
 *
 * Rows are independent, so each thread takes some of them through all columns. R is made anew for each block of
 * columns, from E as it is then: no error gathers in it over the sweeps, and inside a block only the columns behind a
 * move have to hear of it. */
#include <cblas.h>
#include <math.h>
#include <string.h>

#include "kernels/columns.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { ROWS = 64 }; /* that one thread takes at a time: a multiple of LANES */

struct descent {
    const struct quantize_args *a;
    const struct steps *steps;
    float *h; /* [K, K] H′ in the order of the steps; rows and columns of dead ones are 0 */
};

/* Some rows on their way through the columns. */
struct rows {
    int64_t first, count;
    float *error; /* [ROWS, K] E in the order of the steps; zeros behind the last row */
    float *slope; /* [STEPS_MAX, ROWS] R of the block, as far as its moves are known */
};

/* LANES of the rows in the block [from, to) of steps, at one of its columns. */
struct panel {
    int64_t row, from, to;
    float scale[LANES], code[LANES], move[LANES]; /* the move is ŵ's */
};

/* In a unit in which fp32 holds it. */
static void gather(struct backend_state *state, const struct descent *d) {
    (void)state;
    const struct factor *f = d->a->factor;
    double unit = columns_unit(f->mean), added = f->damp * f->mean;
#pragma omp parallel for num_threads(state->threads) schedule(dynamic, 16)
    for (int64_t i = 0; i < f->cols; i++) {
        int32_t row = f->order[i];
        const double *h = f64_row(d->a->h, row);
        float *out = d->h + i * f->cols;
        for (int64_t j = 0; j < f->cols; j++) {
            int32_t col = f->order[j];
            double value = h[col] + (i == j ? added : 0);
            out[j] = f->dead[row] || f->dead[col] ? 0 : (float)(value * unit);
        }
    }
}

static int64_t parameter_at(const struct descent *d, int64_t row, int64_t step) {
    return row * d->a->out->groups + d->steps->group[step];
}

static void take_errors(const struct descent *d, struct rows *rows) {
    const struct quantized *q = d->a->out;
    const struct factor *f = d->a->factor;
    for (int64_t i = 0; i < rows->count; i++) {
        const float *w = f32_row(d->a->w, rows->first + i);
        const uint8_t *codes = q->codes + (rows->first + i) * q->cols;
        for (int64_t k = 0; k < q->cols; k++) {
            int32_t column = f->order[k];
            int64_t p = parameter_at(d, rows->first + i, k);
            double w_hat = ((double)codes[column] - q->zero[p]) * q->scale[p];
            rows->error[i * q->cols + k] = (float)(w_hat - w[column]);
        }
    }
    memset(rows->error + rows->count * q->cols, 0, (size_t)((ROWS - rows->count) * q->cols) * sizeof *rows->error);
}

/* In fp64 so that only true ties are ties. What is no number moves nothing: a dead column has no slope, and weights
 * near the end of fp32 have one that overflows. */
SIMD static void move_lanes(struct panel *p, double diagonal, double top, const float *restrict slope) {
    for (int l = 0; l < LANES; l++) {
        double step = -slope[l] / (diagonal * p->scale[l]);
        double code = p->code[l] + (fabs(step) < INFINITY ? rint(step) : 0);
        code = code > 0 ? code : 0;
        code = code < top ? code : top;
        p->move[l] = (float)((code - p->code[l]) * p->scale[l]);
        p->code[l] = (float)code;
    }
}

static bool any_moves(const struct panel *p) {
    float sum = 0;
    for (int l = 0; l < LANES; l++)
        sum += fabsf(p->move[l]);
    return sum > 0;
}

/* R[:, j] += move · H′[k, j] for the block's columns behind k. */
SIMD static void correct_lanes(float *restrict slope, int64_t count, const float *restrict h,
                               const float *restrict move) {
    for (int64_t j = 0; j < count; j++)
        for (int l = 0; l < LANES; l++)
            slope[j * ROWS + l] += move[l] * h[j];
}

/* Rows that there are not have errors of 0, which nothing moves. */
static void take_scales(const struct descent *d, const struct rows *rows, struct panel *p, int64_t step) {
    for (int64_t l = 0; l < LANES; l++) {
        bool there = p->row + l < rows->count;
        p->scale[l] = there ? d->a->out->scale[parameter_at(d, rows->first + p->row + l, step)] : 1;
    }
}

/* Whether any of the panel's rows moved. */
static bool move_column(const struct descent *d, struct rows *rows, struct panel *p, int64_t step) {
    const struct quantized *q = d->a->out;
    int64_t cols = q->cols, there = rows->count - p->row < LANES ? rows->count - p->row : LANES;
    uint8_t *codes = q->codes + (rows->first + p->row) * cols + d->a->factor->order[step];
    for (int64_t l = 0; l < LANES; l++)
        p->code[l] = l < there ? codes[l * cols] : 0;
    move_lanes(p, d->h[step * cols + step], (1 << q->bits) - 1, rows->slope + (step - p->from) * ROWS + p->row);
    if (!any_moves(p)) return false;
    for (int64_t l = 0; l < there; l++) {
        codes[l * cols] = (uint8_t)p->code[l];
        rows->error[(p->row + l) * cols + step] += p->move[l];
    }
    return true;
}

static void descend_panel(const struct descent *d, struct rows *rows, struct panel *p) {
    const int32_t *group = d->steps->group;
    for (int64_t step = p->from; step < p->to; step++) {
        if (step == p->from || group[step] != group[step - 1]) take_scales(d, rows, p, step);
        if (!move_column(d, rows, p, step)) continue;
        correct_lanes(rows->slope + (step + 1 - p->from) * ROWS + p->row, p->to - step - 1,
                      d->h + step * d->steps->count + step + 1, p->move);
    }
}

static void descend_block(const struct descent *d, struct rows *rows, int64_t from, int64_t to) {
    int64_t cols = d->steps->count, padded = (rows->count + LANES - 1) / LANES * LANES;
    const float *h = d->h + from * cols; /* H′ is its own mirror image */
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)(to - from), (int)padded, (int)cols, 1, h, (int)cols,
                rows->error, (int)cols, 0, rows->slope, ROWS);
    for (int64_t row = 0; row < rows->count; row += LANES) {
        struct panel p = {.row = row, .from = from, .to = to};
        descend_panel(d, rows, &p);
    }
}

static void descend_rows(const struct descent *d, struct rows *rows) {
    int64_t cols = d->steps->count;
    take_errors(d, rows);
    for (int sweep = 0; sweep < d->a->candidate.descend; sweep++)
        for (int64_t from = 0; from < cols; from += STEPS_MAX)
            descend_block(d, rows, from, from + STEPS_MAX < cols ? from + STEPS_MAX : cols);
}

enum rc cpu_descend(struct backend_state *state, const struct quantize_args *a, const struct steps *steps,
                    struct err *e) {
    struct descent d = {.a = a, .steps = steps};
    int64_t cols = a->w.cols, each = ROWS * cols + ROWS * STEPS_MAX;
    void *memory;
    TRY(cpu_scratch(state, (size_t)(cols * cols + state->threads * each) * sizeof(float), &memory, e));
    float *all = memory;
    d.h = all + state->threads * each;
    gather(state, &d);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t first = 0; first < a->w.rows; first += ROWS) {
        float *at = all + omp_get_thread_num() * each;
        struct rows rows = {.first = first, .count = a->w.rows - first < ROWS ? a->w.rows - first : ROWS, .error = at};
        rows.slope = at + ROWS * cols;
        descend_rows(&d, &rows);
    }
    return RC_OK;
}
