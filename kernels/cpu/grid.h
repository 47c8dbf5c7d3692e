/* The grid of values that one group can take, ŵ = (q − zero)·scale with q in 0…top, as storage keeps it. */
#ifndef HSAQ_KERNELS_CPU_GRID_H
#define HSAQ_KERNELS_CPU_GRID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"

struct grid {
    float scale, zero; /* 16-bit floats, both finite, scale > 0 */
    int top;           /* 2^bits − 1 */
};

struct range {
    float min, max;
};

struct range grid_range(const float *w, int64_t n);
/* Nearest 16-bit scale, rounded up where rounding down would cut off the range (subnormals), never 0 or Inf. */
float grid_store_scale(double scale);
/* Nearest 16-bit zero, never Inf; integer zeros also lie in 0…top, since storage gives them no more bits. */
float grid_store_zero(double zero, const struct candidate *c);
/* The grid that holds `value`: exactly, when a 16-bit scale (and a 16-bit float zero) can say it: every bf16 and fp16
 * value from 2^−24 to 65504, with a float zero every bf16 value from 2^−28 to 2^30. */
struct grid grid_constant(float value, const struct candidate *c);

/* Σ (w − ŵ)² when every w takes its nearest code. */
double grid_error(const struct grid *g, const float *w, int64_t n);
/* q = clamp(round(w/scale + zero)), ties to even, in fp64 so that only true ties are ties. */
void grid_encode(const struct grid *g, const float *w, int64_t n, uint8_t *codes);

/* The grid from min to max; symmetric: from −m to m at codes ±(2^(b−1) − 1), m the larger of |min| and |max|. */
struct grid grid_between(double min, double max, const struct candidate *c);

/* The quantizers for one group of n weights that are not all equal: RTN over a given range, and HQQ's iteration from
 * one. */
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
