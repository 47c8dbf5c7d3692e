/* The grid of values that one group can take, ŵ = (q − zero)·scale with q in 0…top, as storage keeps it. */
#ifndef HSAQ_KERNELS_CPU_GRID_H
#define HSAQ_KERNELS_CPU_GRID_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/candidate.h"

#define F16_MAX 65504.0
#define F16_MIN_NORMAL 0x1p-14
#define F16_LEAST 0x1p-24

struct grid {
    float scale, zero; /* 16-bit floats, both finite, scale > 0 */
    int top;           /* 2^bits − 1 */
};

struct range {
    float min, max;
};

struct range grid_range(const float *w, int64_t n);

/* Nearest half, ties to even, of what is no larger than the largest, in form of a float: without branches, so that
 * loops over it vectorize. The first is right for magnitudes from 2^−14 on. */
static inline float round_normal_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline float round_f16(float value) {
    float subnormal = copysignf((value + 0.75f) - 0.75f, value); /* 0.75 has its last bit at 2^−24 */
    return value < F16_MIN_NORMAL && value > -F16_MIN_NORMAL ? subnormal : round_normal_f16(value);
}

/* Nearest 16-bit scale, rounded up where rounding down would cut off the range (subnormals), never 0 or Inf. */
static inline float grid_store_scale(double scale) {
    double normal = round_normal_f16((float)(scale < F16_MAX ? scale : F16_MAX)), units = ceil(scale / F16_LEAST);
    double subnormal = (units > 1 ? units : 1) * F16_LEAST;
    return (float)(scale < F16_MIN_NORMAL ? subnormal : normal);
}

/* Where a candidate's zeros may lie: integer ones in 0…top, since storage gives them no more bits, float ones where
 * halves are finite; a symmetric candidate has but one. */
struct zeros {
    double least, most;
    bool integer;
};
static inline struct zeros zeros_of(const struct candidate *c) {
    double half = 1 << (c->bits - 1);
    if (c->symmetric) return (struct zeros){half, half, false};
    return c->zero == ZERO_INTEGER ? (struct zeros){0, 2 * half - 1, true} : (struct zeros){-F16_MAX, F16_MAX, false};
}

static inline double clamp(double value, double least, double most) {
    value = value > least ? value : least;
    return value < most ? value : most;
}

/* Nearest 16-bit zero, never Inf. */
static inline float grid_store_zero(double zero, const struct candidate *c) {
    struct zeros z = zeros_of(c);
    return round_f16((float)clamp(z.integer ? rint(zero) : zero, z.least, z.most));
}

/* The grid from min to max; from −max to max where symmetric, at codes ±(2^(b−1) − 1). */
static inline struct grid grid_between(double min, double max, const struct candidate *c) {
    int top = (1 << c->bits) - 1;
    float scale = grid_store_scale((max - min) / (c->symmetric ? top - 1 : top));
    return (struct grid){scale, grid_store_zero(-min / scale, c), top};
}

/* The grid that holds `value`: exactly, when a 16-bit scale (and a 16-bit float zero) can say it: every bf16 and fp16
 * value from 2^−24 to 65504, with a float zero every bf16 value from 2^−28 to 2^30. */
struct grid grid_constant(float value, const struct candidate *c);

/* Σ (w − ŵ)² when every w takes its nearest code. */
double grid_error(const struct grid *g, const float *w, int64_t n);
/* q = clamp(round(w/scale + zero)), ties to even, in fp64 so that only true ties are ties. */
void grid_encode(const struct grid *g, const float *w, int64_t n, uint8_t *codes);

/* The quantizers for one group of n weights that are not all equal: RTN over a given range (symmetric: to the larger of
 * |min| and |max|), and HQQ's iteration from one. */
struct grid rtn_over(double min, double max, const float *w, int64_t n, const struct candidate *c);
struct grid hqq_from(double min, double max, const float *w, int64_t n, const struct candidate *c);

/* One group and what its range is chosen by; all finite. */
struct fit_args {
    const float *w; /* [n] */
    int64_t n;
    const struct candidate *candidate; /* its method: HQQ, or RTN's grid for all others */
    const float *weight;               /* [n] for RANGE_WEIGHTED */
    const double *h;                   /* [n, n] for RANGE_OUTPUT, rows h_stride apart */
    int64_t h_stride;
};
/* range.c: the candidate's grid; `kept_rtn`: whether RTN's stood in for HQQ's. */
struct grid grid_fit(const struct fit_args *a, bool *kept_rtn);

#endif
