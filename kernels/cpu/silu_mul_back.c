#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* Where e^(−gate) overflows to Inf, σ is a clean 0. dgate may be gate and dup up: all is read first. */
SIMD static void silu_back_row(const float *gate, const float *up, const float *dy, int64_t n, float *dgate,
                               float *dup) {
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i], u = up[i], d = dy[i], sigma = 1.0f / (1.0f + exp_f32(-g));
        dgate[i] = d * u * (sigma + sigma * (1.0f - sigma) * g);
        dup[i] = d * (g * sigma);
    }
}

enum rc cpu_silu_mul_back(struct backend_state *state, const struct silu_mul_back_args *a, struct err *e) {
    (void)state;
    TRY(check_silu_mul_back(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->gate, a->up, a->dy, a->dgate, a->dup));
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->gate.rows; t++)
        silu_back_row(f32_row(a->gate, t), f32_row(a->up, t), f32_row(a->dy, t), a->gate.cols, f32_row(a->dgate, t),
                      f32_row(a->dup, t));
    return RC_OK;
}
