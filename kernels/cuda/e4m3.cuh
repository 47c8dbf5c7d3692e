/* The 8-bit floats of METHOD_FP8: twins of kernels/cpu/fp8.c. */
#ifndef HSAQ_KERNELS_CUDA_E4M3_CUH
#define HSAQ_KERNELS_CUDA_E4M3_CUH

#include "kernels/cuda/device.cuh"

static const int E4M3_SIGN = 0x80, E4M3_LARGEST = 0x7e, E4M3_MANTISSA = 3, E4M3_BIAS = 7;
static const int F64_MANTISSA = 52, F64_BIAS = 1023, F32_MANTISSA = 23, F32_BIAS = 127;
#define E4M3_MAX 448.0
#define E4M3_MIN_NORMAL 0x1p-6

static __device__ inline uint8_t e4m3_encode(double value) {
    double magnitude = fabs(value);
    int sign = signbit(value) ? E4M3_SIGN : 0;
    if (magnitude < E4M3_MIN_NORMAL) return (uint8_t)(sign | (int)rint(magnitude * 0x1p9));
    if (magnitude >= E4M3_MAX) return (uint8_t)(sign | E4M3_LARGEST);
    const int shift = F64_MANTISSA - E4M3_MANTISSA;
    unsigned long long bits = (unsigned long long)__double_as_longlong(magnitude);
    bits += (1ull << (shift - 1)) - 1 + (bits >> shift & 1);
    return (uint8_t)(sign | (int)((bits >> shift) - ((F64_BIAS - E4M3_BIAS) << E4M3_MANTISSA)));
}

static __device__ inline float e4m3_decode(uint8_t code) {
    int magnitude = code & ~E4M3_SIGN, exponent = magnitude >> E4M3_MANTISSA;
    if (magnitude == 0x7f) return NAN;
    int bits = (magnitude + ((F32_BIAS - E4M3_BIAS) << E4M3_MANTISSA)) << (F32_MANTISSA - E4M3_MANTISSA);
    float value = exponent == 0 ? (float)magnitude * 0x1p-9f : __int_as_float(bits);
    return code & E4M3_SIGN ? -value : value;
}

static __device__ inline float e4m3_scale(float max_abs) {
    if (max_abs == 0) return 1;
    double scale = max_abs / E4M3_MAX;
    unsigned short half = __bfloat16_as_ushort(__float2bfloat16_rn((float)scale));
    if (__bfloat162float(__ushort_as_bfloat16(half)) < scale) half++;
    return __bfloat162float(__ushort_as_bfloat16(half));
}

#endif
