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
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->x.rows; t++) {
        const float *x = a->x.data + t * a->x.stride;
        double mean = vec_sum_squares(x, a->x.cols) / (double)a->x.cols;
        weigh(x, a->weight, a->x.cols, (float)(1.0 / sqrt(mean + a->eps)), a->out.data + t * a->out.stride);
    }
    return RC_OK;
}
