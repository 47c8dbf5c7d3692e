#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

SIMD static void scale_f32(const float *m, int64_t n, float factor, const float *by_col, float *out) {
    if (by_col == NULL)
        for (int64_t k = 0; k < n; k++)
            out[k] = m[k] * factor;
    else
        for (int64_t k = 0; k < n; k++)
            out[k] = m[k] * factor * by_col[k];
}

SIMD static void scale_f64(const double *m, int64_t n, double factor, const float *by_col, double *out) {
    if (by_col == NULL)
        for (int64_t k = 0; k < n; k++)
            out[k] = m[k] * factor;
    else
        for (int64_t k = 0; k < n; k++)
            out[k] = m[k] * factor * by_col[k];
}

enum rc cpu_scale(struct backend_state *state, const struct scale_args *a, struct err *e) {
    (void)state;
    TRY(check_scale(a, e));
    bool wide = a->m.type == DTYPE_F64;
    if (!wide) TRY(CHECK_TYPE(DTYPE_F32, e, a->m, a->out));
#pragma omp parallel for num_threads(state->threads)
    for (int64_t n = 0; n < a->m.rows; n++) {
        float factor = a->by_row != NULL ? a->by_row[n] : 1;
        if (wide)
            scale_f64(f64_row(a->m, n), a->m.cols, factor, a->by_col, f64_row(a->out, n));
        else
            scale_f32(f32_row(a->m, n), a->m.cols, factor, a->by_col, f32_row(a->out, n));
    }
    return RC_OK;
}
