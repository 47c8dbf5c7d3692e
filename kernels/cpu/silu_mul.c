#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* e^(−gate) overflows to Inf for very negative gates, and the quotient is then a clean 0. */
SIMD static void silu_row(const float *gate, const float *up, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}

enum rc cpu_silu_mul(struct backend_state *state, const struct silu_mul_args *a, struct err *e) {
    (void)state;
    TRY(check_silu_mul(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->gate, a->up, a->out));
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->gate.rows; t++)
        silu_row(f32_row(a->gate, t), f32_row(a->up, t), a->gate.cols, f32_row(a->out, t));
    return RC_OK;
}
