/* Half-quadratic quantization (Badri & Shaji 2023): the scale stays, the zero moves.
 *
 * The iteration is the paper's, in fp32, with the scale and the zero that is kept rounded to the 16 bits of storage.
 * Where the shrinkage is idle (errors below about 0.15, all LLM weights) each step gives the zero of least squared
 * error for the codes at hand, so the squared error of a group never rises: the last iterate is the best, none is
 * judged, and a step needs the sum of the codes alone. Each group runs until its own zero rests instead of until the
 * mean error of the whole tensor rises. Where the shrinkage acts, or storage rounds the zero to an integer, the error
 * may rise: there every iterate is judged as it would be stored, and the best is kept. RTN's grid competes at the end
 * (range.c): no group is worse than RTN's. */
#include <math.h>

#include "kernels/cpu/grid.h"
#include "kernels/cpu/simd.h"

enum { ITERATIONS = 20 };
static const double P = 0.7, BETA = 10, KAPPA = 1.01;
/* Below β^(−1/(2−p)) for every β of the iteration: spares the power. */
static const float SHRINKS_ABOVE = 0.14f;
static const float LARGE = 100;
static const double RANGE_MIN = 1e-4, INVERSE_SCALE_MAX = 2e4;

/* The group's weights in steps of the grid, w/scale: they stay while the zero moves. */
struct scaled {
    struct range range;
    float sum;
    bool large; /* weights whose own rounding could hide how far x = w − ŵ is from the shrinkage's limit */
};

static inline float nearest_code(float scaled, float zero, float top) {
    float q = rintf(scaled + zero);
    q = q > 0 ? q : 0; /* NaN, as which sums of huge weights may come back, as well */
    return q < top ? q : top;
}

SIMD static float sum_of_scaled(const float *w, int64_t n, float inverse) {
    float sum[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t live = n - i < LANES ? n - i : LANES;
        for (int l = 0; l < live; l++)
            sum[l] += w[i + l] * inverse;
    }
    return add_lanes_f32(sum);
}

static struct scaled scaled_of(const struct grid *g, const float *w, int64_t n) {
    float inverse = 1 / g->scale;
    struct range r = grid_range(w, n);
    return (struct scaled){
        {r.min * inverse, r.max * inverse}, sum_of_scaled(w, n, inverse), fmaxf(-r.min, r.max) > LARGE};
}

/* Σ q */
SIMD static uint32_t sum_of_codes(const struct grid *g, const float *w, int64_t n) {
    float zero = g->zero, top = (float)g->top, inverse = 1 / g->scale;
    uint32_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (uint32_t)(int32_t)nearest_code(w[i] * inverse, zero, top);
    return sum;
}

/* Σ x² */
SIMD static float squares(const struct grid *g, const float *w, int64_t n) {
    float scale = g->scale, zero = g->zero, top = (float)g->top, inverse = 1 / scale, sum[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t live = n - i < LANES ? n - i : LANES;
        for (int l = 0; l < live; l++) {
            float x = w[i + l] - (nearest_code(w[i + l] * inverse, zero, top) - zero) * scale;
            sum[l] += x * x;
        }
    }
    return add_lanes_f32(sum);
}

SIMD static float max_abs(const struct grid *g, const float *w, int64_t n) {
    float scale = g->scale, zero = g->zero, top = (float)g->top, inverse = 1 / scale, max = 0;
    for (int64_t i = 0; i < n; i++) {
        float x = fabsf(w[i] - (nearest_code(w[i] * inverse, zero, top) - zero) * scale);
        max = x > max ? x : max;
    }
    return max;
}

/* Whether some |x| exceeds what the shrinkage takes. A weight within the grid is off by half a step at most, and of
 * those beyond it the extremes by most: as a rule that tells. */
static bool shrinks(const struct grid *g, const struct scaled *s, const float *w, int64_t n, double beta) {
    float below = -(s->range.min + g->zero), above = s->range.max + g->zero - (float)g->top;
    if (!s->large && fmaxf(0.5f, fmaxf(below, above)) * g->scale < SHRINKS_ABOVE) return false;
    float max = max_abs(g, w, n);
    return max > SHRINKS_ABOVE && max > pow(beta, -1 / (2 - P)); /* else |x| <= |x|^(p−1)/β */
}

/* Σ W_e/scale, W_e = sign(x)·relu(|x| − |x|^(p−1)/β): what the shrinkage takes out of the residual. */
static float shrunk(const struct grid *g, const float *w, int64_t n, double beta) {
    float inverse = 1 / g->scale;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float q = nearest_code(w[i] * inverse, g->zero, (float)g->top);
        double x = w[i] - (q - g->zero) * g->scale, magnitude = fabs(x);
        double kept = magnitude > 0 ? magnitude - pow(magnitude, P - 1) / beta : 0;
        if (kept > 0) sum += copysign(kept, x);
    }
    return (float)(sum * inverse);
}

static struct grid initial(double min, double max, const struct candidate *c) {
    struct grid g = {.top = (1 << c->bits) - 1};
    if (c->zero == ZERO_INTEGER) {
        min = fmin(min, 0);
        max = fmax(max, 0);
    }
    double inverse = max - min <= RANGE_MIN ? 1 : fmin(g.top / (max - min), INVERSE_SCALE_MAX);
    g.scale = grid_store_scale(1 / inverse);
    double zero = -min / g.scale;
    g.zero = grid_store_zero(c->bits == 4 ? rint(zero) : zero, c);
    return g;
}

static struct grid as_stored(struct grid g, const struct candidate *c) {
    g.zero = grid_store_zero(g.zero, c);
    return g;
}

struct judged {
    struct grid grid;
    float squares;
};

static void keep_better(struct judged *best, struct grid kept, const float *w, int64_t n) {
    float error = squares(&kept, w, n);
    if (error < best->squares) *best = (struct judged){kept, error};
}

/* The zero moves unrounded, since steps smaller than storage's spacing add up; what is judged and kept is rounded. */
static struct grid iterate(struct grid moving, const float *w, int64_t n, const struct candidate *c) {
    struct judged best = {moving, INFINITY};
    struct scaled scaled = scaled_of(&moving, w, n);
    bool judging = c->zero == ZERO_INTEGER;
    double beta = BETA;
    for (int i = 0; i <= ITERATIONS; i++, beta *= KAPPA) {
        bool shrinking = shrinks(&moving, &scaled, w, n, beta);
        judging |= shrinking;
        if (judging) keep_better(&best, as_stored(moving, c), w, n);
        float residual = (float)sum_of_codes(&moving, w, n) - scaled.sum; /* n times the next zero */
        if (shrinking) residual += shrunk(&moving, w, n, beta);
        float zero = residual / (float)n;
        if (zero == moving.zero && !shrinking) break;
        moving.zero = zero;
    }
    return judging ? best.grid : as_stored(moving, c);
}

struct grid hqq_from(double min, double max, const float *w, int64_t n, const struct candidate *c) {
    return iterate(initial(min, max, c), w, n, c);
}
