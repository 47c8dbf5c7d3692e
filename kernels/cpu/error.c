#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/trace.h"
#include "kernels/cpu/vec.h"

struct row_stats {
    double squares, sum_abs, max_abs, weight_squares;
};

struct workspace {
    float *difference;       /* [TRACE_ROWS, K] */
    struct row_stats *stats; /* [TRACE_ROWS] */
    void *trace;
};

static enum rc workspace_get(struct backend_state *state, const struct error_args *a, struct workspace *ws,
                             struct err *e) {
    size_t difference = (size_t)TRACE_ROWS * (size_t)a->w.cols * sizeof(float);
    size_t stats = TRACE_ROWS * sizeof(struct row_stats);
    void *memory;
    TRY(cpu_scratch(state, difference + stats + trace_bytes(state, a->w.cols), &memory, e));
    char *at = memory; /* every part but the last is a multiple of 64 bytes */
    ws->difference = (float *)at;
    ws->stats = (struct row_stats *)(at + difference);
    ws->trace = at + difference + stats;
    return RC_OK;
}

SIMD static void subtract(const float *restrict a, const float *restrict b, int64_t n, float *restrict out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = a[i] - b[i];
}

static void subtract_chunk(struct backend_state *state, const struct error_args *a, int64_t from, int64_t rows,
                           const struct workspace *ws) {
    (void)state;
    int64_t cols = a->w.cols;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t i = 0; i < rows; i++) {
        const float *w = f32_row(a->w, from + i);
        float *d = ws->difference + i * cols;
        subtract(w, f32_row(a->w_hat, from + i), cols, d);
        if (a->difference.data != NULL) memcpy(f32_row(a->difference, from + i), d, (size_t)cols * sizeof *d);
        ws->stats[i] = (struct row_stats){vec_sum_squares(d, cols), vec_sum_abs(d, cols), vec_max_abs(d, cols),
                                          vec_sum_squares(w, cols)};
    }
}

enum rc cpu_error(struct backend_state *state, const struct error_args *a, struct error_report *report, struct err *e) {
    TRY(check_error(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->w, a->w_hat, a->difference));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h));
    struct workspace ws;
    TRY(workspace_get(state, a, &ws, e));
    struct row_stats total = {0};
    double num = 0, den = 0;
    for (int64_t from = 0; from < a->w.rows; from += TRACE_ROWS) {
        int64_t rows = a->w.rows - from < TRACE_ROWS ? a->w.rows - from : TRACE_ROWS;
        subtract_chunk(state, a, from, rows, &ws);
        for (int64_t i = 0; i < rows; i++) {
            total.squares += ws.stats[i].squares;
            total.sum_abs += ws.stats[i].sum_abs;
            total.max_abs = fmax(total.max_abs, ws.stats[i].max_abs);
            total.weight_squares += ws.stats[i].weight_squares;
        }
        if (a->h.data == NULL) continue;
        struct mat w = {f32_row(a->w, from), rows, a->w.cols, a->w.stride, DTYPE_F32};
        num += trace(state, matf(ws.difference, rows, a->w.cols), a->h, ws.trace);
        if (a->drift_den == NULL) den += trace(state, w, a->h, ws.trace);
    }
    if (a->h.data != NULL && a->drift_den != NULL) den = *a->drift_den;
    double count = (double)a->w.rows * (double)a->w.cols;
    *report = (struct error_report){.drift_num = num,
                                    .drift_den = den,
                                    .frobenius = sqrt(total.squares),
                                    .weight_frobenius = sqrt(total.weight_squares),
                                    .max_abs = total.max_abs,
                                    .mean_abs = count > 0 ? total.sum_abs / count : 0};
    return RC_OK;
}
