#include "kernels/cpu/fp8.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "kernels/formats.h"

enum { SIGN = 0x80, LARGEST = 0x7e, MANTISSA = 3, BIAS = 7 };
enum { F64_MANTISSA = 52, F64_BIAS = 1023 };
#define MIN_NORMAL 0x1p-6
#define SUBNORMALS_PER_UNIT 0x1p9

uint8_t e4m3_encode(double value) {
    double magnitude = fabs(value);
    uint8_t sign = signbit(value) ? SIGN : 0;
    if (magnitude < MIN_NORMAL) return (uint8_t)(sign | (int)rint(magnitude * SUBNORMALS_PER_UNIT));
    if (magnitude >= E4M3_MAX) return sign | LARGEST;
    const int shift = F64_MANTISSA - MANTISSA;
    uint64_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    bits += ((uint64_t)1 << (shift - 1)) - 1 + (bits >> shift & 1);
    return (uint8_t)(sign | ((bits >> shift) - ((F64_BIAS - BIAS) << MANTISSA)));
}

float e4m3_decode(uint8_t code) {
    int exponent = code >> MANTISSA & 15, mantissa = code & 7;
    if ((code & ~SIGN) == 0x7f) return NAN;
    float value =
        exponent == 0 ? ldexpf((float)mantissa, -9) : ldexpf((float)(8 + mantissa), exponent - BIAS - MANTISSA);
    return code & SIGN ? -value : value;
}

float e4m3_scale(float max_abs) {
    if (max_abs == 0) return 1;
    double scale = max_abs / E4M3_MAX;
    uint16_t half = f32_to_bf16((float)scale);
    return bf16_to_f32(bf16_to_f32(half) < scale ? half + 1 : half);
}

enum rc cpu_fp8(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    (void)e;
    const struct quantized *q = a->out;
    bool per_tensor = a->candidate.fp8_scale == FP8_PER_TENSOR;
    float tensor_max = 0;
#pragma omp parallel for num_threads(state->threads) reduction(max : tensor_max)
    for (int64_t n = 0; n < q->rows; n++)
        tensor_max = fmaxf(tensor_max, vec_max_abs(f32_row(a->w, n), q->cols));
#pragma omp parallel for num_threads(state->threads)
    for (int64_t n = 0; n < q->rows; n++) {
        const float *w = f32_row(a->w, n);
        q->zero[n] = 0;
        q->scale[n] = e4m3_scale(per_tensor ? tensor_max : vec_max_abs(w, q->cols));
        for (int64_t k = 0; k < q->cols; k++)
            q->codes[n * q->cols + k] = e4m3_encode(w[k] / (double)q->scale[n]);
    }
    *a->report = (struct quantize_report){0};
    return RC_OK;
}
