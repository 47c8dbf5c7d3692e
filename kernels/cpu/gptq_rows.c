/* Two-sided GPTQ (YAQA, Tseng et al. 2025): what rounding a weight leaves is made up for by the columns behind it, as
 * in gptq.c, and by the rows that follow in the same column.
 *
 * Weights lie in tiles by the steps of both factors. A tile waits for those above it and those to its left, whose part
 * in it is one matrix product each; so all tiles of an anti-diagonal go at once. The order of sums is fixed. */
#include <cblas.h>
#include <string.h>

#include "kernels/cpu/gptq.h"
#include "kernels/cpu/simd.h"

enum { TILE_ROWS = 64, TILE_COLS = 128 };

struct two_sided {
    const struct rounding *r;
    int64_t rows, cols; /* N, K */
    float *error;       /* [N, K] (w − ŵ)/U_kk where a weight is rounded, w elsewhere; both by step */
    float *left;        /* [N, K] R_q/U_qq */
};

struct tile {
    int64_t row, col, rows, cols;
    float w[TILE_ROWS][TILE_COLS];     /* corrected by the columns before; then as two_sided.error */
    float above[TILE_ROWS][TILE_COLS]; /* what the rows before add; then as two_sided.left */
};

/* The tile to where it lies. */
static void put_back(const struct two_sided *s, const struct tile *t) {
    for (int64_t p = 0; p < t->rows; p++) {
        int64_t at = (t->row + p) * s->cols + t->col;
        memcpy(s->error + at, t->w[p], (size_t)t->cols * sizeof(float));
        memcpy(s->left + at, t->above[p], (size_t)t->cols * sizeof(float));
    }
}

static void take(const struct two_sided *s, struct tile *t) {
    const float *across = s->r->a->factor->upper, *down = s->r->a->rows->upper;
    for (int64_t p = 0; p < t->rows; p++)
        memcpy(t->w[p], s->error + (t->row + p) * s->cols + t->col, (size_t)t->cols * sizeof(float));
    if (t->col > 0)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)t->rows, (int)t->cols, (int)t->col, -1,
                    s->error + t->row * s->cols, (int)s->cols, across + t->col, (int)s->cols, 1, t->w[0], TILE_COLS);
    memset(t->above, 0, sizeof t->above);
    if (t->row > 0)
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)t->rows, (int)t->cols, (int)t->row, 1, down + t->row,
                    (int)s->rows, s->left + t->col, (int)s->cols, 0, t->above[0], TILE_COLS);
}

/* One row of the tile, from left to right. */
SIMD static void round_row(const struct two_sided *s, struct tile *t, int64_t p) {
    const struct quantize_args *a = s->r->a;
    const int32_t *group = s->r->steps.group + t->col;
    int64_t step = t->row + p, row = a->rows->order[step];
    double top = (1 << a->out->bits) - 1, below = a->rows->upper[step * s->rows + step];
    float *restrict w = t->w[p], *restrict left = t->above[p];
    for (int64_t k = 0; k < t->cols; k++) {
        const float *restrict upper = a->factor->upper + (t->col + k) * s->cols + t->col;
        double scale = a->out->scale[parameter_at(s->r, row, group[k])];
        double zero = a->out->zero[parameter_at(s->r, row, group[k])];
        double target = (double)w[k] + left[k], q = nearest_code(target / scale + zero, top);
        double w_hat = (q - zero) * scale;
        a->out->codes[row * s->cols + a->factor->order[t->col + k]] = (uint8_t)q;
        left[k] = (float)((w_hat - target) / below);
        float error = w[k] = (float)((w[k] - w_hat) / upper[k]);
        for (int64_t j = k + 1; j < t->cols; j++)
            w[j] -= error * upper[j];
    }
}

/* What it left, to the tile's rows after it. */
SIMD static void hand_down(const struct two_sided *s, struct tile *t, int64_t p) {
    const float *upper = s->r->a->rows->upper + (t->row + p) * s->rows + t->row, *restrict left = t->above[p];
    for (int64_t n = p + 1; n < t->rows; n++) {
        float *restrict above = t->above[n];
        for (int64_t k = 0; k < TILE_COLS; k++)
            above[k] += left[k] * upper[n];
    }
}

static void round_tile(const struct two_sided *s, int64_t row, int64_t col) {
    struct tile t = {.row = row, .col = col};
    t.rows = s->rows - row < TILE_ROWS ? s->rows - row : TILE_ROWS;
    t.cols = s->cols - col < TILE_COLS ? s->cols - col : TILE_COLS;
    take(s, &t);
    for (int64_t p = 0; p < t.rows; p++) {
        round_row(s, &t, p);
        hand_down(s, &t, p);
    }
    put_back(s, &t);
}

static void round_all(struct backend_state *state, const struct two_sided *s) {
    (void)state;
    int64_t high = (s->rows + TILE_ROWS - 1) / TILE_ROWS, wide = (s->cols + TILE_COLS - 1) / TILE_COLS;
    for (int64_t d = 0; d < high + wide - 1; d++) {
        int64_t first = d < wide ? 0 : d - wide + 1, end = d < high ? d + 1 : high;
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
        for (int64_t i = first; i < end; i++)
            round_tile(s, i * TILE_ROWS, (d - i) * TILE_COLS);
    }
}

/* A row as it is, by the steps of the columns. */
static void order_row(const struct two_sided *s, int64_t step) {
    const struct quantize_args *a = s->r->a;
    const struct factor *f = a->factor;
    const float *w = f32_row(a->w, a->rows->order[step]);
    for (int64_t k = 0; k < s->cols; k++)
        s->error[step * s->cols + k] = f->dead[f->order[k]] ? 0 : w[f->order[k]];
}

enum rc gptq_two_sided(struct backend_state *state, struct rounding *r, struct err *e) {
    int64_t rows = r->a->w.rows, cols = r->a->w.cols, constant = 0;
    void *memory;
    TRY(cpu_scratch(state, (size_t)(2 * rows * cols + cols + state->threads * cols) * sizeof(float), &memory, e));
    struct two_sided s = {.r = r, .rows = rows, .cols = cols, .error = memory};
    s.left = s.error + rows * cols;
    float *weight = s.left + rows * cols, *groups = weight + cols;
    gptq_prepare(r, weight);
#pragma omp parallel for num_threads(state->threads) reduction(+ : constant)
    for (int64_t step = 0; step < rows; step++) {
        order_row(&s, step);
        constant += gptq_fit_row(r, r->a->rows->order[step], groups + omp_get_thread_num() * cols);
    }
    round_all(state, &s);
    *r->a->report = (struct quantize_report){.constant_groups = constant};
    return RC_OK;
}
