/* Half-quadratic quantization (Badri & Shaji 2023; algorithms §3): the scale stays, the zero moves.
 *
 * The iteration is the paper's, in fp32, with the scale and every zero rounded to the 16 bits that storage keeps, so
 * that what is compared is what is stored. Where the shrinkage is idle (errors below about 0.15, all LLM weights) each
 * step gives the zero of least squared error for the codes at hand, so the squared error of a group never rises; each
 * group therefore runs until its own zero rests instead of until the mean error of the whole tensor rises, and keeps
 * its best iterate. RTN's grid competes at the end (range.c): no group is worse than RTN's. */
#include <math.h>

#include "kernels/cpu/grid.h"
#include "kernels/cpu/simd.h"

enum { ITERATIONS = 20 };
static const double P = 0.7, BETA = 10, KAPPA = 1.01;
/* Below β^(−1/(2−p)) for every β of the iteration: spares the power. */
static const double SHRINKS_ABOVE = 0.14;
static const double RANGE_MIN = 1e-4, INVERSE_SCALE_MAX = 2e4;

struct step {
    float squares;  /* Σ x², x = w − ŵ */
    float residual; /* Σ q − w/scale: n times the next zero while the shrinkage is idle */
    float max_abs;  /* of x */
};

static inline float nearest_code(float scaled, float zero, float top) {
    float q = rintf(scaled + zero);
    q = q < 0 ? 0 : q;
    return q > top ? top : q;
}

SIMD static struct step run_step(const struct grid *g, const float *w, int64_t n) {
    float scale = g->scale, zero = g->zero, top = (float)g->top, inverse = 1 / scale;
    float squares[LANES] = {0}, residual[LANES] = {0}, max_abs[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t live = n - i < LANES ? n - i : LANES;
        for (int l = 0; l < live; l++) {
            float scaled = w[i + l] * inverse, q = nearest_code(scaled, zero, top);
            float x = w[i + l] - (q - zero) * scale;
            squares[l] += x * x;
            residual[l] += q - scaled;
            max_abs[l] = fabsf(x) > max_abs[l] ? fabsf(x) : max_abs[l];
        }
    }
    struct step s = {.squares = add_lanes_f32(squares), .residual = add_lanes_f32(residual)};
    for (int l = 0; l < LANES; l++)
        s.max_abs = max_abs[l] > s.max_abs ? max_abs[l] : s.max_abs;
    return s;
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

/* The zero moves unrounded, since steps smaller than storage's spacing add up; what is judged and kept is rounded. */
static struct grid iterate(struct grid moving, const float *w, int64_t n, const struct candidate *c) {
    struct grid best = moving;
    float best_squares = INFINITY, judged = NAN; /* the stored zero that was judged last */
    double beta = BETA;
    for (int i = 0; i <= ITERATIONS; i++, beta *= KAPPA) {
        struct grid kept = moving;
        kept.zero = grid_store_zero(moving.zero, c);
        struct step s = run_step(&moving, w, n);
        if (kept.zero != judged) {
            float squares = kept.zero == moving.zero ? s.squares : run_step(&kept, w, n).squares;
            if (squares < best_squares) {
                best_squares = squares;
                best = kept;
            }
            judged = kept.zero;
        }
        double sum = s.residual;
        bool shrinks = s.max_abs > SHRINKS_ABOVE && s.max_abs > pow(beta, -1 / (2 - P)); /* else |x| <= |x|^(p−1)/β */
        if (shrinks) sum += shrunk(&moving, w, n, beta);
        float zero = (float)(sum / (double)n);
        if (zero == moving.zero && !shrinks) break;
        moving.zero = zero;
    }
    return best;
}

struct grid hqq_from(double min, double max, const float *w, int64_t n, const struct candidate *c) {
    return iterate(initial(min, max, c), w, n, c);
}
