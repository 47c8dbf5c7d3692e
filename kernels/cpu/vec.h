/* The few vector primitives that several operations need. Each runs on one thread. */
#ifndef HSAQ_KERNELS_CPU_VEC_H
#define HSAQ_KERNELS_CPU_VEC_H

#include <stdbool.h>
#include <stdint.h>

float vec_max(const float *x, int64_t n);     /* −Inf for n = 0; NaNs are passed over */
float vec_max_abs(const float *x, int64_t n); /* 0 for n = 0; NaNs are passed over */
double vec_sum(const float *x, int64_t n);
double vec_sum_abs(const float *x, int64_t n);
double vec_sum_squares(const float *x, int64_t n);
double vec_dot(const float *x, const float *y, int64_t n);
bool vec_finite(const float *x, int64_t n);
void vec_exp(float *x, int64_t n, float shift); /* x ← e^(x − shift) */
void vec_scale(float *x, int64_t n, float factor);

#endif
