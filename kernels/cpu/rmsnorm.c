#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

SIMD static void weigh(const float *x, const float *weight, int64_t n, float factor, float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = x[i] * factor * weight[i];
}

enum rc cpu_rmsnorm(struct backend_state *state, const struct rmsnorm_args *a, struct err *e) {
    (void)state;
    TRY(check_rmsnorm(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->out));
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->x.rows; t++) {
        const float *x = f32_row(a->x, t);
        double mean = vec_sum_squares(x, a->x.cols) / (double)a->x.cols;
        weigh(x, a->weight, a->x.cols, (float)(1.0 / sqrt(mean + a->eps)), f32_row(a->out, t));
    }
    return RC_OK;
}
