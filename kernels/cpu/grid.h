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

/* The quantizers: the grid for one group of n weights. */
struct grid rtn_fit(const float *w, int64_t n, const struct candidate *c);
struct grid hqq_fit(const float *w, int64_t n, const struct candidate *c, bool *kept_rtn);

/* What the candidate's method and range make of one group. */
struct fit_args {
    const float *w; /* [n] */
    int64_t n;
    const struct candidate *candidate;
    const float *weight; /* [n] for RANGE_WEIGHTED */
    const double *h;     /* [n, n] for RANGE_OUTPUT */
    int64_t h_stride;
};
struct grid grid_fit(const struct fit_args *a, bool *kept_rtn);

#endif
