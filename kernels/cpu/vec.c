#include "kernels/cpu/vec.h"

#include <math.h>

#include "kernels/cpu/simd.h"

SIMD float vec_max(const float *x, int64_t n) {
    float lane[LANES];
    for (int l = 0; l < LANES; l++)
        lane[l] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (int l = 0; i < n; i++, l++)
        lane[l] = x[i] > lane[l] ? x[i] : lane[l];
    for (int l = 1; l < LANES; l++)
        lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
    return lane[0];
}

SIMD float vec_max_abs(const float *x, int64_t n) {
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] = fabsf(x[i + l]) > lane[l] ? fabsf(x[i + l]) : lane[l];
    for (int l = 0; i < n; i++, l++)
        lane[l] = fabsf(x[i]) > lane[l] ? fabsf(x[i]) : lane[l];
    for (int l = 1; l < LANES; l++)
        lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
    return lane[0];
}

static double add_lanes(const double *lane) {
    double sum = 0;
    for (int l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

SIMD double vec_sum(const float *x, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += x[i + l];
    for (int l = 0; i < n; i++, l++)
        lane[l] += x[i];
    return add_lanes(lane);
}

SIMD double vec_sum_squares(const float *x, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += (double)x[i + l] * x[i + l];
    for (int l = 0; i < n; i++, l++)
        lane[l] += (double)x[i] * x[i];
    return add_lanes(lane);
}

SIMD double vec_sum_abs(const float *x, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += fabsf(x[i + l]);
    for (int l = 0; i < n; i++, l++)
        lane[l] += fabsf(x[i]);
    return add_lanes(lane);
}

SIMD double vec_dot(const float *x, const float *y, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += (double)x[i + l] * y[i + l];
    for (int l = 0; i < n; i++, l++)
        lane[l] += (double)x[i] * y[i];
    return add_lanes(lane);
}

/* A value times zero is zero, or NaN when it is not finite; and NaN stays. */
SIMD bool vec_finite(const float *x, int64_t n) {
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += x[i + l] * 0.0f;
    for (int l = 0; i < n; i++, l++)
        lane[l] += x[i] * 0.0f;
    float sum = 0;
    for (int l = 0; l < LANES; l++)
        sum += lane[l];
    return sum == 0;
}

SIMD void vec_exp(float *x, int64_t n, float shift) {
    for (int64_t i = 0; i < n; i++)
        x[i] = exp_f32(x[i] - shift);
}

SIMD void vec_scale(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}
