/* Round to nearest, fitted to what storage keeps: scale and zero are rounded to 16 bits first, and the
 * zero follows from the rounded scale.
 *
 * Two departures from the plain formula, where 16 bits would spoil it. A group that does not straddle 0 needs a zero
 * outside 0…top: an integer zero cannot be there, so the range is extended to include 0 (as GPTQ's code does); a float
 * zero loses digits there, so both ranges are tried and the one with the smaller squared error stays. Symmetric groups
 * likewise try max|w| at code ±(2^(b−1) − 1) and at −2^(b−1). */
#include <math.h>

#include "kernels/cpu/grid.h"

static struct grid better(struct grid a, struct grid b, const float *w, int64_t n) {
    return grid_error(&b, w, n) < grid_error(&a, w, n) ? b : a;
}

static struct grid symmetric(double max_abs, const float *w, int64_t n, const struct candidate *c) {
    struct grid narrow = grid_between(-max_abs, max_abs, c), wide = narrow;
    wide.scale = grid_store_scale(max_abs / (1 << (c->bits - 1)));
    return better(narrow, wide, w, n);
}

struct grid rtn_over(double min, double max, const float *w, int64_t n, const struct candidate *c) {
    if (c->symmetric) return symmetric(fmax(fabs(min), fabs(max)), w, n, c);
    struct grid plain = grid_between(min, max, c);
    if (min <= 0 && max >= 0) return plain;
    struct grid extended = grid_between(fmin(min, 0), fmax(max, 0), c);
    return c->zero == ZERO_INTEGER ? extended : better(plain, extended, w, n);
}
