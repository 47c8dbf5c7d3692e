#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

/* Into so many parts are the rows divided, whatever the number of threads: the order of additions is one. */
enum { ROW_PARTS = 16 };

SIMD static void add_shares(const float *w, int64_t n, double max, double *restrict sum) {
    for (int64_t k = 0; k < n; k++)
        sum[k] += (w[k] < 0 ? -w[k] : w[k]) / max;
}

static void add_row(const struct column_share_args *a, int64_t row, double *sum) {
    int64_t group = a->group > 0 ? a->group : a->w.cols;
    for (int64_t from = 0; from < a->w.cols; from += group) {
        const float *w = f32_row(a->w, row) + from;
        int64_t length = a->w.cols - from < group ? a->w.cols - from : group;
        float max = vec_max_abs(w, length);
        if (max > 0) add_shares(w, length, max, sum + from);
    }
}

enum rc cpu_column_share(struct backend_state *state, const struct column_share_args *a, struct err *e) {
    TRY(check_column_share(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->w));
    int64_t rows = a->w.rows, cols = a->w.cols;
    void *memory;
    TRY(cpu_scratch(state, (size_t)(ROW_PARTS * cols) * sizeof(double), &memory, e));
    double *sums = memory; /* [ROW_PARTS, K] */
#pragma omp parallel for num_threads(state->threads)
    for (int64_t part = 0; part < ROW_PARTS; part++) {
        for (int64_t k = 0; k < cols; k++)
            sums[part * cols + k] = 0;
        for (int64_t n = rows * part / ROW_PARTS; n < rows * (part + 1) / ROW_PARTS; n++)
            add_row(a, n, sums + part * cols);
    }
    for (int64_t k = 0; k < cols; k++) {
        double sum = 0;
        for (int part = 0; part < ROW_PARTS; part++)
            sum += sums[part * cols + k];
        a->share[k] = sum / (double)rows;
    }
    return RC_OK;
}
