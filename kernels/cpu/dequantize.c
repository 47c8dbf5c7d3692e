#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

SIMD static void decode(const uint8_t *restrict codes, int64_t n, float scale, float zero, float *restrict out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = ((float)codes[i] - zero) * scale;
}

enum rc cpu_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e) {
    (void)state;
    TRY(check_dequantize(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->out));
    const struct quantized *q = a->q;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t n = 0; n < q->rows; n++)
        for (int64_t g = 0; g < q->groups; g++) {
            int64_t from = g * q->group, length = q->cols - from < q->group ? q->cols - from : q->group;
            decode(q->codes + n * q->cols + from, length, q->scale[n * q->groups + g], q->zero[n * q->groups + g],
                   f32_row(a->out, n) + from);
        }
    return RC_OK;
}
