/* The quantizers' device code: a team of threads fits the grid of one group.
 *
 * Twin of kernels/cpu/grid.c, rtn.c and hqq.c down to the order of additions: the CPU keeps LANES partial sums side by
 * side, lane l of the elements l, l + LANES, …, and adds them pair by pair; here each thread keeps OWN of the lanes, so
 * that the first pairs meet in its registers. Nothing is contracted (the Makefile compiles quantize.cu,
 * range.cu and scaled_error.cu with -fmad=false). So both backends give the same codes and parameters to the last bit,
 * except where HQQ's shrinkage acts, whose pow is not the same function on both. Every thread of a team holds the same
 * results. */
#ifndef HSAQ_KERNELS_CUDA_GRID_CUH
#define HSAQ_KERNELS_CUDA_GRID_CUH

#include <float.h>

#include "kernels/cuda/device.cuh"

#ifndef TEAM_SIZE /* threads a group: 4, 8 or 16 */
#define TEAM_SIZE 8
#endif
static const int LANES = 16, TEAM = TEAM_SIZE, OWN = LANES / TEAM;
static const int TEAMS = BLOCK / TEAM; /* groups fitted by one block */
#define F16_MAX 65504.0
#define F16_MIN_NORMAL 0x1p-14

struct grid {
    float scale, zero; /* 16-bit floats, both finite, scale > 0 */
    int top;           /* 2^bits − 1 */
};

struct range {
    float min, max;
};

/* A group of weights as one thread of its team sees it: the lanes thread + TEAM·o for o < OWN. `each` calls
 * f(o, w) for every weight w of lane o in turn. A full group of a common size sits in registers, any other is read from
 * memory each time. */
struct member {
    int thread;
    unsigned together; /* threads of this warp that go through all of it side by side: a team, or several */
};

struct stored : member {
    int64_t n;
    const void *w;
    enum dtype type;
    int64_t from; /* of the matrix's elements */
    float first;  /* any weight of the group */

    __device__ const struct stored &apart() const {
        return *this;
    }

    template <typename F> __device__ void each(F f) const {
        for (int64_t k = 0; k < n; k += LANES)
#pragma unroll
            for (int o = 0; o < OWN; o++)
                if (k + thread + o * TEAM < n) f(o, load_stored(w, type, from + k + thread + o * TEAM));
    }
};

template <int PER_LANE> struct held : member {
    static const int64_t n = PER_LANE * LANES; /* elements of the group */
    struct stored memory;                      /* the same group where it came from */
    float w[PER_LANE][OWN];
    float first;

    __device__ const struct stored &apart() const {
        return memory;
    }

    template <typename F> __device__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < PER_LANE; k++)
#pragma unroll
            for (int o = 0; o < OWN; o++)
                f(o, w[k][o]);
    }
};

/* Which part of its team's work this thread does, whatever other teams do. */
static __device__ inline struct member this_member() {
    return {(int)(threadIdx.x % TEAM), ((1u << TEAM) - 1) << (threadIdx.x % WARP / TEAM * TEAM)};
}

/* Where all teams of a warp take the same way: exchanges among threads that are known at compile time cost less. */
static __device__ inline struct member this_member_of_warp() {
    return {(int)(threadIdx.x % TEAM), ~0u};
}

/* What has exchanges in it is done by all or by none. */
static __device__ inline bool any(const member &g, bool is) {
    return __any_sync(g.together, is);
}

/* The PER_LANE · LANES weights from element `at` on, in registers. The type is asked for once, so that all reads are
 * under way together. */
template <int PER_LANE>
static __device__ inline struct held<PER_LANE> hold(struct member member, const void *w, enum dtype type, int64_t at) {
    struct held<PER_LANE> g = {
        member, {member, PER_LANE *LANES, w, type, at, 0}, {}, 0
    };
    auto read = [&](enum dtype of) {
        for (int k = 0; k < PER_LANE; k++)
            for (int o = 0; o < OWN; o++)
                g.w[k][o] = load_stored(w, of, at + k * LANES + member.thread + o * TEAM);
    };
    if (type == DTYPE_BF16)
        read(DTYPE_BF16);
    else if (type == DTYPE_F16)
        read(DTYPE_F16);
    else
        read(DTYPE_F32);
    g.first = g.w[0][0];
    return g;
}

/* A value for each lane, or the sum of all. */
template <typename T>
struct lanes {
    T own[OWN];
};

template <typename T> static __device__ inline T add_threads(const member &g, T sum) {
    for (int offset = TEAM / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(g.together, sum, offset, TEAM);
    return sum;
}

template <typename T> static __device__ inline T add_lanes(const member &g, struct lanes<T> v) {
    for (int width = OWN / 2; width > 0; width /= 2)
        for (int o = 0; o < width; o++)
            v.own[o] += v.own[o + width];
    return add_threads(g, v.own[0]);
}

static __device__ inline float max_lanes(const member &g, float value) {
    for (int offset = TEAM / 2; offset > 0; offset /= 2) {
        float other = __shfl_xor_sync(g.together, value, offset, TEAM);
        value = other > value ? other : value;
    }
    return value;
}

template <typename G> static __device__ inline struct range grid_range(const G &g) {
    struct range r = {g.first, g.first};
    g.each([&](int, float w) {
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

/* Adding 1.5·2²³ rounds to the nearest integer where |x| < 2²²: the low bits of the sum are that integer. */
static const float MAGIC = 0x1.8p23f;

/* Apart, since hardly any weight needs it and the code of a division at each would crowd out the rest. */
static __device__ __noinline__ float code_by_division(float scale, float zero, float w) {
    return (float)rint(w / (double)scale + (double)zero);
}

/* The code of a weight, as in fp64: w / scale + zero to the nearest integer of the grid. fp32 is enough to see which
 * that is unless the quotient comes close to the middle between two. */
static __device__ inline float nearest(const struct grid &grid, float inverse, float w) {
    float quotient = w * inverse, estimate = quotient + grid.zero, code = (estimate + MAGIC) - MAGIC;
    bool sure = fabsf(quotient) < 1024 && fabsf(estimate) < 1024 && fabsf(estimate - code) < 0.5f - 0x1p-11f;
    if (!sure) code = code_by_division(grid.scale, grid.zero, w);
    return fminf(fmaxf(code, 0.0f), (float)grid.top);
}

template <typename G> static __device__ inline double grid_error(const G &g, const struct grid &grid) {
    struct lanes<double> sum = {};
    double scale = grid.scale, zero = grid.zero;
    float inverse = 1 / grid.scale;
    g.each([&](int o, float w) {
        double error = w - (nearest(grid, inverse, w) - zero) * scale;
        sum.own[o] += error * error;
    });
    return add_lanes(g, sum);
}

/* --- RTN: kernels/cpu/rtn.c --- */

/* Whether b's error is below a's. One loop for both: the code of an error is long. */
template <typename G> static __device__ inline bool beats(const G &g, struct grid b, struct grid a) {
    double error_a = 0, error = 0;
#pragma unroll 1
    for (int i = 0; i < 2; i++) {
        error_a = error;
        error = grid_error(g, i == 0 ? a : b);
    }
    return error < error_a;
}

static __device__ inline struct grid over_range(double min, double max, const struct candidate *c) {
    struct grid grid = {0, 0, (1 << c->bits) - 1};
    grid.scale = grid_store_scale((max - min) / grid.top);
    grid.zero = grid_store_zero(-min / grid.scale, c);
    return grid;
}

template <typename G>
static __device__ inline struct grid rtn_symmetric(const G &g, double max_abs, const struct candidate *c) {
    int half = 1 << (c->bits - 1);
    struct grid narrow = {grid_store_scale(max_abs / (half - 1)), (float)half, 2 * half - 1}, wide = narrow;
    wide.scale = grid_store_scale(max_abs / half);
    return beats(g, wide, narrow) ? wide : narrow;
}

template <typename G>
static __device__ inline struct grid rtn_asymmetric(const G &g, double min, double max, const struct candidate *c) {
    struct grid plain = over_range(min, max, c);
    bool spans = min <= 0 && max >= 0;
    if (!any(g, !spans)) return plain;
    struct grid extended = over_range(fmin(min, 0.0), fmax(max, 0.0), c);
    bool better = c->zero == ZERO_INTEGER || beats(g, extended, plain);
    return better && !spans ? extended : plain;
}

template <typename G>
static __device__ inline struct grid rtn_over(const G &g, double min, double max, const struct candidate *c) {
    return c->symmetric ? rtn_symmetric(g, fmax(fabs(min), fabs(max)), c) : rtn_asymmetric(g, min, max, c);
}

/* --- HQQ: kernels/cpu/hqq.c --- */

static const int ITERATIONS = 20;
#define HQQ_P 0.7
#define HQQ_BETA 10.0
#define HQQ_KAPPA 1.01
#define HQQ_SHRINKS_ABOVE 0.14f
#define LARGE 100.0f
#define HQQ_RANGE_MIN 1e-4
#define HQQ_INVERSE_SCALE_MAX 2e4

/* Where |x| >= 2²² clamping hides that rounding fails. fmaxf takes NaN for 0, as the CPU does. */
static __device__ inline float magic_code(float scaled, float zero, float top) {
    return fminf(fmaxf(scaled + zero + MAGIC, MAGIC), MAGIC + top);
}
static __device__ inline float nearest_code(float scaled, float zero, float top) {
    return magic_code(scaled, zero, top) - MAGIC;
}

/* Of the group's weights in steps of the grid, w/scale, which stay while the zero moves. */
struct scaled {
    float sum;
    float idle_from, idle_to; /* zeros at which no x = w − ŵ can exceed what the shrinkage takes; or none */
};

/* A weight within the grid is off by half a step at most, and of those beyond it the extremes by most. Large weights'
 * own rounding could hide how far off they are. */
template <typename G>
static __device__ inline struct scaled scaled_of(const G &g, const struct grid &grid, struct range r) {
    float inverse = 1 / grid.scale, limit = HQQ_SHRINKS_ABOVE * inverse;
    struct lanes<float> sum = {};
    g.each([&](int o, float w) { sum.own[o] += w * inverse; });
    struct scaled s = {add_lanes(g, sum), INFINITY, -INFINITY};
    if (fmaxf(-r.min, r.max) > LARGE || limit <= 0.5f) return s;
    s.idle_from = -r.min * inverse - limit;
    s.idle_to = (float)grid.top - r.max * inverse + limit;
    return s;
}

/* Σ q: whole numbers, so that their order does not matter. */
template <typename G> static __device__ inline unsigned sum_of_codes(const G &g, const struct grid &grid) {
    float zero = grid.zero, top = (float)grid.top, inverse = 1 / grid.scale;
    unsigned sum = 0;
    g.each([&](int, float w) { sum += __float_as_uint(magic_code(w * inverse, zero, top)); });
    return add_threads(g, sum) - (unsigned)g.n * 0x4b400000u; /* MAGIC's bits */
}

/* Σ x² */
template <typename G> static __device__ inline float squares(const G &g, const struct grid &grid) {
    float scale = grid.scale, zero = grid.zero, top = (float)grid.top, inverse = 1 / scale;
    struct lanes<float> sum = {};
    g.each([&](int o, float w) {
        float x = w - (nearest_code(w * inverse, zero, top) - zero) * scale;
        sum.own[o] += x * x;
    });
    return add_lanes(g, sum);
}

/* What only large errors need reads the weights again, so that it costs the rest neither registers nor room. */
static __device__ __noinline__ bool shrinks_by_max(struct stored g, struct grid grid, double beta) {
    float scale = grid.scale, zero = grid.zero, top = (float)grid.top, inverse = 1 / scale, max = 0;
    g.each([&](int, float w) { max = fmaxf(fabsf(w - (nearest_code(w * inverse, zero, top) - zero) * scale), max); });
    max = max_lanes(g, max);
    return max > HQQ_SHRINKS_ABOVE && max > pow(beta, -1 / (2 - HQQ_P));
}

static __device__ inline bool is_idle(const struct scaled &s, float zero) {
    return zero >= s.idle_from && zero <= s.idle_to;
}

/* Σ W_e/scale, W_e = sign(x)·relu(|x| − |x|^(p−1)/β): what the shrinkage takes out of the residual. */
static __device__ __noinline__ float shrunk(struct stored g, struct grid grid, double beta) {
    float inverse = 1 / grid.scale;
    struct lanes<double> sum = {};
    g.each([&](int o, float w) {
        float q = nearest_code(w * inverse, grid.zero, (float)grid.top);
        double x = w - (q - grid.zero) * grid.scale, magnitude = fabs(x);
        double kept = magnitude > 0 ? magnitude - pow(magnitude, HQQ_P - 1) / beta : 0;
        if (kept > 0) sum.own[o] += copysign(kept, x);
    });
    return (float)(add_lanes(g, sum) * inverse);
}

static __device__ inline struct grid initial(double min, double max, const struct candidate *c) {
    struct grid grid = {0, 0, (1 << c->bits) - 1};
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

/* grid_store_zero of a zero in fp32. */
static __device__ inline struct grid as_stored(struct grid grid, const struct candidate *c) {
    const float most = (float)F16_MAX;
    if (c->zero == ZERO_INTEGER)
        grid.zero = fminf(fmaxf(rintf(grid.zero), 0.0f), (float)grid.top);
    else
        grid.zero = __half2float(__float2half_rn(fminf(fmaxf(grid.zero, -most), most)));
    return grid;
}

struct judged {
    struct grid grid;
    float squares;
};

template <typename G> static __device__ inline struct judged judged_as(const G &g, struct grid kept) {
    return {kept, squares(g, kept)};
}

/* The zero moves unrounded, since steps smaller than storage's spacing add up; what is judged and kept is rounded.
 * `r` is the group's range. A team whose zero rests goes along with the others. */
template <typename G>
static __device__ inline struct grid iterate(const G &g, struct grid moving, struct range r,
                                             const struct candidate *c) {
    struct judged best = {moving, INFINITY};
    struct scaled scaled = scaled_of(g, moving, r);
    bool judging = c->zero == ZERO_INTEGER, any_judging = judging, rests = false;
    double beta = HQQ_BETA;
    for (int i = 0; i <= ITERATIONS && any(g, !rests); i++, beta *= HQQ_KAPPA) {
        bool shrinking = false, idle = rests || is_idle(scaled, moving.zero);
        float taken = 0;
        if (any(g, !idle)) {
            shrinking = shrinks_by_max(g.apart(), moving, beta) && !idle;
            judging |= shrinking;
            any_judging = any(g, judging);
            if (any(g, shrinking)) taken = shrunk(g.apart(), moving, beta);
        }
        if (any_judging) {
            struct judged kept = judged_as(g, as_stored(moving, c));
            if (judging && !rests && kept.squares < best.squares) best = kept;
        }
        float residual = (float)sum_of_codes(g, moving) - scaled.sum; /* n times the next zero */
        if (shrinking) residual += taken;
        float zero = residual / (float)g.n;
        rests |= zero == moving.zero && !shrinking;
        if (!rests) moving.zero = zero;
    }
    return judging ? best.grid : as_stored(moving, c);
}

/* The code of a weight as `nearest` has it, unless it is so close to the middle between two that rounding hides which:
 * `off` grows to the distance from it. */
static __device__ inline float likely_code(float estimate, float top, float *off) {
    float code = (estimate + MAGIC) - MAGIC;
    *off = fmaxf(*off, fabsf(estimate - code));
    return fminf(fmaxf(code, 0.0f), top);
}

/* By how much b's error is above a's, in fp32, and how far that may be from the difference of the fp64 errors. Where
 * the scales are the same,
 *
 *   x_b² − x_a² = (x_b − x_a)·(x_b + x_a),  x_b − x_a = scale·((q_a − q_b) − (z_a − z_b)),
 *
 * and the first factor is off by its own rounding alone: two grids that hardly differ are told apart. */
struct comparison {
    float above, doubt;
};

template <typename G>
static __device__ inline struct comparison compare(const G &g, const struct grid &a, const struct grid &b,
                                                   struct range r) {
    float scale = a.scale, inverse = 1 / scale, top = (float)a.top, apart = a.zero - b.zero, zeros = a.zero + b.zero;
    float above = 0, sum = 0, moved = 0, off = 0;
    g.each([&](int, float w) {
        float at = w * inverse, q = likely_code(at + a.zero, top, &off), other = likely_code(at + b.zero, top, &off);
        float move = (q - other) - apart, product = move * ((w + w) - (q + other - zeros) * scale);
        above += product;
        sum += fabsf(product);
        moved += fabsf(move);
    });
    float most_w = fmaxf(-r.min, r.max), most_zero = fmaxf(fabsf(a.zero), fabsf(b.zero)), n = (float)g.n;
    float margin = 0x1p-20f * (most_w * inverse + most_zero);
    above = add_threads(g, above);
    sum = add_threads(g, sum);
    moved = add_threads(g, moved) + n * fabsf(apart);
    off = max_lanes(g, off);
    float doubt = 0x1p-22f * (n + 8) * sum + 0x1p-20f * (most_w + (most_zero + top) * scale) * moved + FLT_MIN * n;
    return {above, a.scale != b.scale || off >= 0.5f - margin ? INFINITY : doubt};
}

/* Whether RTN's grid has the smaller error, by fp32 where that tells. */
template <typename G>
static __device__ inline bool rtn_beats(const G &g, const struct grid &rtn, const struct grid &hqq, struct range r) {
    struct comparison c = compare(g, hqq, rtn, r);
    bool same = rtn.scale == hqq.scale && rtn.zero == hqq.zero, told = same || fabsf(c.above) > c.doubt;
    bool beaten = any(g, !told) && beats(g, rtn, hqq);
    return told ? !same && c.above < 0 : beaten;
}

template <typename G>
static __device__ inline struct grid hqq_fit(const G &g, struct range r, const struct candidate *c, bool *kept_rtn) {
    struct grid best = iterate(g, initial(r.min, r.max, c), r, c), rtn = rtn_asymmetric(g, r.min, r.max, c);
    *kept_rtn = rtn_beats(g, rtn, best, r);
    return *kept_rtn ? rtn : best;
}

/* --- What the kernels that fit have in common --- */

struct findings {
    unsigned long long bad; /* least index n·K + k of a weight that is no number; N·K or more: none */
    unsigned long long constant, rtn;
};

template <typename G> static __device__ inline void encode(const G &g, const struct grid &grid, uint8_t *codes) {
    int64_t lane = g.thread;
    float inverse = 1 / grid.scale;
    g.each([&](int o, float w) {
        codes[lane + o * TEAM] = (uint8_t)__float_as_uint(nearest(grid, inverse, w) + MAGIC);
        if (o == OWN - 1) lane += LANES;
    });
}

static __device__ inline void count_group(const member &g, bool constant, bool kept_rtn, struct findings *found) {
    if (g.thread != 0) return;
    if (constant) atomicAdd(&found->constant, 1ull);
    if (kept_rtn) atomicAdd(&found->rtn, 1ull);
}

/* range.cu: quantizes by any range but the full one; `diagonal` is H's in fp32, for RANGE_WEIGHTED. */
enum rc cuda_search(struct backend_state *state, const struct quantize_args *a, const float *diagonal,
                    struct findings *found, struct err *e);

#endif
