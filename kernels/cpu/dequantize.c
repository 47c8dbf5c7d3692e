#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/fp8.h"
#include "kernels/cpu/simd.h"

SIMD static void decode(const uint8_t *restrict codes, int64_t n, float scale, float zero, float *restrict out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = ((float)codes[i] - zero) * scale;
}

static void decode_groups(const struct quantized *q, int64_t n, float *out) {
    for (int64_t g = 0; g < q->groups; g++) {
        int64_t from = g * q->group, length = q->cols - from < q->group ? q->cols - from : q->group;
        decode(q->codes + n * q->cols + from, length, q->scale[n * q->groups + g], q->zero[n * q->groups + g],
               out + from);
    }
}

static void decode_scattered(const struct quantized *q, int64_t n, float *out) {
    for (int64_t k = 0; k < q->cols; k++) {
        int64_t g = n * q->groups + q->group_of[k];
        out[k] = ((float)q->codes[n * q->cols + k] - q->zero[g]) * q->scale[g];
    }
}

static void decode_fp8(const struct quantized *q, const float *values, int64_t n, float *out) {
    for (int64_t k = 0; k < q->cols; k++)
        out[k] = values[q->codes[n * q->cols + k]] * q->scale[n];
}

static void multiply(float *restrict row, const float *restrict by_col, int64_t n) {
    for (int64_t k = 0; k < n; k++)
        row[k] *= by_col[k];
}

enum rc cpu_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e) {
    (void)state;
    TRY(check_dequantize(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->out));
    const struct quantized *q = a->q;
    float values[256]; /* of the codes of fp8 */
    for (int code = 0; q->fp8 && code < 256; code++)
        values[code] = e4m3_decode((uint8_t)code);
#pragma omp parallel for num_threads(state->threads)
    for (int64_t n = 0; n < q->rows; n++) {
        float *out = f32_row(a->out, n);
        if (q->fp8)
            decode_fp8(q, values, n, out);
        else if (q->group_of != NULL)
            decode_scattered(q, n, out);
        else
            decode_groups(q, n, out);
        if (a->by_col != NULL) multiply(out, a->by_col, q->cols);
    }
    return RC_OK;
}
