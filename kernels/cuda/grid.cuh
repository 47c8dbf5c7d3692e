/* The quantizers' device code: a team of LANES threads fits the grid of one group.
 *
 * Twin of kernels/cpu/grid.c, rtn.c and hqq.c down to the order of additions: lane l holds the elements l, l + LANES, …
 * as the CPU's loops do, sums are taken pair by pair, and nothing is contracted (the Makefile compiles quantize.cu
 * with -fmad=false). So both backends give the same codes and parameters to the last bit, except where HQQ's shrinkage
 * acts, whose pow is not the same function on both. Every thread of a team holds the same results. */
#ifndef HSAQ_KERNELS_CUDA_GRID_CUH
#define HSAQ_KERNELS_CUDA_GRID_CUH

#include "kernels/cuda/device.cuh"

static const int LANES = 16;
#define F16_MAX 65504.0
#define F16_MIN_NORMAL 0x1p-14

struct grid {
    float scale, zero; /* 16-bit floats, both finite, scale > 0 */
    int top;           /* 2^bits − 1 */
};

struct range {
    float min, max;
};

/* A group of weights as one lane of its team sees it: the elements lane, lane + LANES, … A full group of a common size
 * sits in registers, any other is read from memory each time. */
struct lane {
    int64_t n; /* elements of the group */
    int index;
    unsigned team; /* the lanes of this warp that work together */
};

template <int PER_LANE> struct held : lane {
    float w[PER_LANE];
    float first; /* the group's element 0 */

    template <typename F> __device__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < PER_LANE; k++)
            f(w[k]);
    }
};

struct stored : lane {
    const void *w;
    enum dtype type;
    int64_t from; /* of the matrix's elements */
    float first;

    template <typename F> __device__ void each(F f) const {
        for (int64_t i = index; i < n; i += LANES)
            f(load_stored(w, type, from + i));
    }
};

template <typename T> static __device__ inline T add_lanes(const lane &g, T value) {
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(g.team, value, offset, LANES);
    return value;
}

static __device__ inline float max_lanes(const lane &g, float value) {
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        float other = __shfl_xor_sync(g.team, value, offset, LANES);
        value = other > value ? other : value;
    }
    return value;
}

template <typename G> static __device__ inline struct range grid_range(const G &g) {
    struct range r = {g.first, g.first};
    g.each([&](float w) {
        r.min = w < r.min ? w : r.min;
        r.max = w > r.max ? w : r.max;
    });
    return {-max_lanes(g, -r.min), max_lanes(g, r.max)};
}

static __device__ inline float grid_store_scale(double scale) {
    if (scale >= F16_MAX) return (float)F16_MAX;
    unsigned short half = __half_as_ushort(__float2half_rn((float)scale));
    if (half == 0 || (scale < F16_MIN_NORMAL && __half2float(__ushort_as_half(half)) < scale)) half++;
    return __half2float(__ushort_as_half(half));
}

static __device__ inline float grid_store_zero(double zero, const struct candidate *c) {
    double top = (double)((1 << c->bits) - 1);
    if (c->zero == ZERO_INTEGER) return (float)fmin(fmax(rint(zero), 0.0), top);
    return __half2float(__float2half_rn((float)fmin(fmax(zero, -F16_MAX), F16_MAX)));
}

static __device__ inline struct grid grid_constant(float value, const struct candidate *c) {
    struct grid g = {1, 0, (1 << c->bits) - 1};
    if (c->symmetric) g.zero = (float)(1 << (c->bits - 1));
    if (value == 0) return g;
    double magnitude = fabs((double)value);
    bool in_range = magnitude >= F16_MIN_NORMAL && magnitude <= F16_MAX;
    if (in_range || c->symmetric || c->zero == ZERO_INTEGER) {
        g.scale = grid_store_scale(magnitude); /* one step from zero */
        if (!c->symmetric) g.zero = value < 0 ? 1 : 0;
    } else { /* a power of two carries the exponent, the zero the digits */
        g.scale = magnitude < 1 ? 0x1p-14f : 0x1p15f;
        g.zero = grid_store_zero(-(double)value / g.scale, c);
    }
    return g;
}

static __device__ inline double nearest(const struct grid &grid, float w) {
    double q = rint(w / (double)grid.scale + (double)grid.zero);
    q = q < 0 ? 0 : q;
    return q > grid.top ? grid.top : q;
}

template <typename G> static __device__ inline double grid_error(const G &g, const struct grid &grid) {
    double sum = 0;
    g.each([&](float w) {
        double error = w - (nearest(grid, w) - (double)grid.zero) * (double)grid.scale;
        sum += error * error;
    });
    return add_lanes(g, sum);
}

/* --- RTN: kernels/cpu/rtn.c --- */

template <typename G> static __device__ inline struct grid better(const G &g, struct grid a, struct grid b) {
    return grid_error(g, b) < grid_error(g, a) ? b : a;
}

static __device__ inline struct grid over_range(double min, double max, const struct candidate *c) {
    struct grid grid = {0, 0, (1 << c->bits) - 1};
    grid.scale = grid_store_scale((max - min) / grid.top);
    grid.zero = grid_store_zero(-min / grid.scale, c);
    return grid;
}

template <typename G>
static __device__ inline struct grid symmetric(const G &g, double max_abs, const struct candidate *c) {
    int half = 1 << (c->bits - 1);
    struct grid narrow = {grid_store_scale(max_abs / (half - 1)), (float)half, 2 * half - 1};
    struct grid wide = narrow;
    wide.scale = grid_store_scale(max_abs / half);
    return better(g, narrow, wide);
}

template <typename G> static __device__ inline struct grid rtn_fit(const G &g, const struct candidate *c) {
    struct range r = grid_range(g);
    if (r.min == r.max) return grid_constant(r.min, c);
    if (c->symmetric) return symmetric(g, fmax(fabs((double)r.min), fabs((double)r.max)), c);
    struct grid plain = over_range(r.min, r.max, c);
    if (r.min <= 0 && r.max >= 0) return plain;
    struct grid extended = over_range(fmin((double)r.min, 0.0), fmax((double)r.max, 0.0), c);
    return c->zero == ZERO_INTEGER ? extended : better(g, plain, extended);
}

/* --- HQQ: kernels/cpu/hqq.c --- */

static const int ITERATIONS = 20;
#define HQQ_P 0.7
#define HQQ_BETA 10.0
#define HQQ_KAPPA 1.01
#define HQQ_SHRINKS_ABOVE 0.14
#define HQQ_RANGE_MIN 1e-4
#define HQQ_INVERSE_SCALE_MAX 2e4

struct step {
    float squares;  /* Σ x², x = w − ŵ */
    float residual; /* Σ q − w/scale: n times the next zero while the shrinkage is idle */
    float max_abs;  /* of x */
};

/* Adding and taking away 1.5·2²³ rounds to the nearest integer where |x| < 2²²; beyond, clamping hides the rest. */
static __device__ inline float nearest_code(float scaled, float zero, float top) {
    const float magic = 0x1.8p23f;
    float q = (scaled + zero + magic) - magic;
    return fminf(fmaxf(q, 0.0f), top);
}

template <typename G> static __device__ inline struct step run_step(const G &g, const struct grid &grid) {
    float scale = grid.scale, zero = grid.zero, top = (float)grid.top, inverse = 1 / scale;
    struct step s = {0, 0, 0};
    g.each([&](float w) {
        float scaled = w * inverse, q = nearest_code(scaled, zero, top);
        float x = w - (q - zero) * scale;
        s.squares += x * x;
        s.residual += q - scaled;
        s.max_abs = fmaxf(fabsf(x), s.max_abs);
    });
    return {add_lanes(g, s.squares), add_lanes(g, s.residual), max_lanes(g, s.max_abs)};
}

/* Σ W_e/scale, W_e = sign(x)·relu(|x| − |x|^(p−1)/β): what the shrinkage takes out of the residual. */
template <typename G> static __device__ inline float shrunk(const G &g, const struct grid &grid, double beta) {
    float inverse = 1 / grid.scale;
    double sum = 0;
    g.each([&](float w) {
        float q = nearest_code(w * inverse, grid.zero, (float)grid.top);
        double x = w - (q - grid.zero) * grid.scale, magnitude = fabs(x);
        double kept = magnitude > 0 ? magnitude - pow(magnitude, HQQ_P - 1) / beta : 0;
        if (kept > 0) sum += copysign(kept, x);
    });
    return (float)(add_lanes(g, sum) * inverse);
}

static __device__ inline struct grid initial(struct range r, const struct candidate *c) {
    struct grid grid = {0, 0, (1 << c->bits) - 1};
    double min = r.min, max = r.max;
    if (c->zero == ZERO_INTEGER) {
        min = fmin(min, 0.0);
        max = fmax(max, 0.0);
    }
    double inverse = max - min <= HQQ_RANGE_MIN ? 1 : fmin(grid.top / (max - min), HQQ_INVERSE_SCALE_MAX);
    grid.scale = grid_store_scale(1 / inverse);
    double zero = -min / grid.scale;
    grid.zero = grid_store_zero(c->bits == 4 ? rint(zero) : zero, c);
    return grid;
}

/* The zero moves unrounded, since steps smaller than storage's spacing add up; what is judged and kept is rounded. */
template <typename G>
static __device__ inline struct grid iterate(const G &g, struct grid moving, const struct candidate *c) {
    struct grid best = moving;
    float best_squares = INFINITY;
    double beta = HQQ_BETA;
    for (int i = 0; i <= ITERATIONS; i++, beta *= HQQ_KAPPA) {
        struct grid kept = moving;
        kept.zero = grid_store_zero(moving.zero, c);
        struct step s = run_step(g, moving), stored = kept.zero == moving.zero ? s : run_step(g, kept);
        if (stored.squares < best_squares) {
            best_squares = stored.squares;
            best = kept;
        }
        double sum = s.residual;
        bool shrinks = s.max_abs > HQQ_SHRINKS_ABOVE && s.max_abs > pow(beta, -1 / (2 - HQQ_P));
        if (shrinks) sum += shrunk(g, moving, beta);
        float zero = (float)(sum / (double)g.n);
        if (zero == moving.zero && !shrinks) break;
        moving.zero = zero;
    }
    return best;
}

template <typename G>
static __device__ inline struct grid hqq_fit(const G &g, const struct candidate *c, bool *kept_rtn) {
    *kept_rtn = false;
    struct range r = grid_range(g);
    if (r.min == r.max) return grid_constant(r.min, c);
    struct grid best = iterate(g, initial(r, c), c), rtn = rtn_fit(g, c);
    *kept_rtn = grid_error(g, rtn) < grid_error(g, best);
    return *kept_rtn ? rtn : best;
}

#endif
