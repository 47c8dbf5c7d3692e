/* The 8-bit floats of METHOD_FP8: OCP e4m3fn, a sign, 4 bits of exponent (bias 7) and 3 of mantissa; no infinities,
 * 0x7f and 0xff are NaN, subnormals are multiples of 2^−9. */
#ifndef HSAQ_KERNELS_CPU_FP8_H
#define HSAQ_KERNELS_CPU_FP8_H

#include <stdint.h>

#define E4M3_MAX 448.0

/* Nearest, ties to even; beyond ±448 the largest. Finite values. */
uint8_t e4m3_encode(double value);
float e4m3_decode(uint8_t code);
/* The least bf16 with which no weight of this magnitude overflows; 1 for 0. A half would be subnormal. */
float e4m3_scale(float max_abs);

#endif
