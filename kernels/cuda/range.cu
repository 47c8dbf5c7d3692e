/* Twin of kernels/cpu/range.c: which part of a group's range its grid spans. A team fits a group, as in quantize.cu,
 * whose kernels stay free of the searches' registers.
 *
 * Teams of one warp take the same group of neighbouring rows, so that they share what columns have in common: weights,
 * and the block of H. Every try is judged: here that is cheaper than to spare some. */
#include <math.h>

#include "kernels/cuda/grid.cuh"

struct span {
    double min, max;
};

/* The tries of a search: first/of, (first − 1)/of, … */
struct steps {
    int first, count, of;
};

static __device__ inline struct steps steps_of(enum range_choice range) {
    if (range == RANGE_OUTPUT) return {20, 10, 20};
    if (range == RANGE_WEIGHTED) return {110, 80, 100};
    return {100, 80, 100};
}

struct search_args {
    struct mat w;
    struct candidate candidate;
    int64_t group, groups;
    const float *weight; /* [K] for RANGE_WEIGHTED */
    struct mat h;        /* [K, K] for RANGE_OUTPUT */
    float *scale, *zero; /* row r's at [r·stride] */
    int64_t stride;
    uint8_t *codes;         /* [N, K], or NULL: only the grids are wanted */
    struct findings *found; /* or NULL */
};

/* What a team judges by: its group's weights in memory, and what belongs to its columns. */
struct judge_args {
    enum range_choice range;
    int64_t n;
    const void *w;
    enum dtype type;
    int64_t from; /* of the matrix's elements */
    const float *weight;
    struct mat h; /* the block */
};

/* --- Criteria --- */

/* Σ weight·d² in fp32, d in steps of the grid; without weights Σ d². */
template <typename G> static __device__ inline float squares(const G &g, const struct grid &grid, const float *weight) {
    float inverse = 1 / grid.scale, zero = grid.zero, top = (float)grid.top;
    int64_t lane = g.thread;
    struct lanes<float> sum = {};
    g.each([&](int o, float w) {
        float at = w * inverse + zero, q = rintf(at);
        q = q < 0 ? 0 : q;
        q = q > top ? top : q;
        float d = at - q;
        sum.own[o] += weight != NULL ? weight[lane + o * TEAM] * (d * d) : d * d;
        if (o == OWN - 1) lane += LANES;
    });
    return add_lanes(g, sum);
}

static __device__ inline double error_of(const struct judge_args &a, const struct grid &grid, float inverse,
                                         int64_t i) {
    float w = load_stored(a.w, a.type, a.from + i);
    return w - (nearest(grid, inverse, w) - (double)grid.zero) * (double)grid.scale;
}

static const int TILE = 8; /* columns of H that a thread has in hand */

/* eᵀHe, tile by tile of TEAM·TILE columns. */
template <typename T>
static __device__ inline double output_error(const struct member &m, const struct judge_args &a,
                                             const struct grid &grid) {
    const T *h = (const T *)a.h.data;
    float inverse = 1 / grid.scale;
    double sum = 0;
    for (int64_t j = m.thread; j < a.n; j += TEAM * TILE) {
        double column[TILE] = {};
        for (int64_t i = 0; i < a.n; i++) {
            double error = error_of(a, grid, inverse, i);
#pragma unroll
            for (int t = 0; t < TILE; t++)
                if (j + t * TEAM < a.n) column[t] += error * (double)h[i * a.h.stride + j + t * TEAM];
        }
#pragma unroll
        for (int t = 0; t < TILE; t++)
            if (j + t * TEAM < a.n) sum += column[t] * error_of(a, grid, inverse, j + t * TEAM);
    }
    for (int offset = TEAM / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(m.together, sum, offset, TEAM);
    return sum;
}

/* What a kernel is compiled for: RTN's does not hold HQQ's registers, nor one for sums those of the output error. Where
 * groups are few all the teams of a warp take the same one, and share its tries. */
template <bool H, bool O, int SHARING = 1> struct means {
    static const bool hqq = H, output = O;
    static const int sharing = SHARING;
};

/* Which of the teams that share a group. */
template <typename M> static __device__ inline int sharer() {
    return M::sharing > 1 ? threadIdx.x % WARP / TEAM : 0;
}

template <typename M, typename G>
static __device__ inline double judge(const G &g, const struct judge_args &a, const struct grid &grid) {
    if constexpr (M::output)
        if (a.range == RANGE_OUTPUT)
            return a.h.type == DTYPE_F64 ? output_error<double>(g, a, grid) : output_error<float>(g, a, grid);
    return (double)grid.scale * (double)grid.scale * (double)squares(g, grid, a.weight);
}

/* --- Searches --- */

static __device__ inline double clamp(double value, double least, double most) {
    value = value > least ? value : least;
    return value < most ? value : most;
}

/* `p` of the range. */
static __device__ inline struct span shrunk_span(struct span s, double p, enum range_choice range) {
    double limit = p * (-s.min > s.max ? -s.min : s.max), fixed = clamp(0, s.min, s.max);
    limit = range == RANGE_OUTPUT ? limit : INFINITY;
    p = range == RANGE_OUTPUT ? 1 : p;
    return {clamp(fixed + p * (s.min - fixed), -limit, limit), clamp(fixed + p * (s.max - fixed), -limit, limit)};
}

/* The grid from min to max; from −max to max where symmetric. */
static __device__ inline struct grid grid_between(double min, double max, const struct candidate *c) {
    if (!c->symmetric) return over_range(min, max, c);
    int half = 1 << (c->bits - 1);
    return {grid_store_scale(max / (half - 1)), (float)half, 2 * half - 1};
}

struct choice {
    struct grid grid;
    double error;
    int at; /* which try */
};

/* The best of the warp's teams, the first of equals. */
static __device__ inline struct choice best_of_teams(struct choice own) {
    for (int offset = TEAM; offset < WARP; offset *= 2) {
        struct choice other = {{__shfl_xor_sync(~0u, own.grid.scale, offset),
                                __shfl_xor_sync(~0u, own.grid.zero, offset),
                                __shfl_xor_sync(~0u, own.grid.top, offset)},
                               __shfl_xor_sync(~0u, own.error, offset),
                               __shfl_xor_sync(~0u, own.at, offset)};
        if (other.error < own.error || (other.error == own.error && other.at < own.at)) own = other;
    }
    return own;
}

/* RTN over the full range first, as try −1, so that there is one place where grids are judged. */
template <typename M, typename G>
static __device__ inline struct choice rtn_search(const G &g, const struct judge_args &a, struct span s,
                                                  const struct candidate *c) {
    const int first = sharer<M>() - 1;
    struct grid grid = rtn_over(g, s.min, s.max, c);
    struct choice best = {grid, INFINITY, first};
    struct steps steps = steps_of(a.range);
    if (c->symmetric) s.min = -(s.max = fmax(-s.min, s.max));
    if (c->zero == ZERO_INTEGER) s = {fmin(s.min, 0.0), fmax(s.max, 0.0)};
    for (int i = first; i < steps.count; i += M::sharing) {
        struct span part = shrunk_span(s, (double)(steps.first - i) / steps.of, a.range);
        if (i >= 0) grid = grid_between(part.min, part.max, c);
        double error = judge<M>(g, a, grid);
        if (i < 0 || error < best.error) best = {grid, error, i};
    }
    return M::sharing > 1 ? best_of_teams(best) : best;
}

template <typename G>
static __device__ inline struct grid hqq_from(const G &g, struct span s, const struct candidate *c) {
    return iterate(g, initial(s.min, s.max, c), grid_range(g), c);
}

template <typename M, typename G>
static __device__ inline struct choice hqq_search(const G &g, const struct judge_args &a, struct span s,
                                                  const struct candidate *c) {
    const struct steps coarse = steps_of(RANGE_OUTPUT);
    struct choice best = {{}, INFINITY, 0};
    for (int i = 0; i < coarse.count; i++) {
        struct span part = i == 0 ? s : shrunk_span(s, (double)(coarse.first - i) / coarse.of, a.range);
        struct grid grid = hqq_from(g, part, c);
        double error = judge<M>(g, a, grid);
        if (i == 0 || error < best.error) best = {grid, error, i};
    }
    return best;
}

template <typename M, typename G>
static __device__ inline struct grid search_range(const G &g, const struct judge_args &a, struct span s,
                                                  const struct candidate *c, bool *kept_rtn) {
    struct choice rtn = rtn_search<M>(g, a, s, c);
    if constexpr (M::hqq) {
        struct choice hqq = hqq_search<M>(g, a, s, c);
        *kept_rtn = !(hqq.error <= rtn.error);
        return *kept_rtn ? rtn.grid : hqq.grid;
    }
    return rtn.grid;
}

/* --- Given ranges --- */

template <typename M, typename G>
static __device__ inline struct grid over(const G &g, struct span s, const struct candidate *c, bool *kept_rtn) {
    struct grid rtn = rtn_over(g, s.min, s.max, c);
    if constexpr (M::hqq) {
        struct grid hqq = hqq_from(g, s, c);
        *kept_rtn = beats(g, rtn, hqq);
        return *kept_rtn ? rtn : hqq;
    }
    return rtn;
}

/* The order of floats as one of integers, after bits were cleared and flipped: that of w, −w or |w|. */
struct order {
    unsigned keep, flip;
};

static __device__ inline int key_of(float w, struct order order) {
    int key = (int)((__float_as_uint(w) & order.keep) ^ order.flip);
    return key ^ ((key >> 31) & INT32_MAX);
}

static __device__ inline double value_of(int key) {
    return __int_as_float(key ^ ((key >> 31) & INT32_MAX));
}

template <typename G> static __device__ inline int64_t count_up_to(const G &g, struct order order, int limit) {
    int count = 0;
    g.each([&](int, float w) { count += key_of(w, order) <= limit; });
    for (int offset = TEAM / 2; offset > 0; offset /= 2)
        count += __shfl_xor_sync(g.together, count, offset, TEAM);
    return count;
}

template <typename G> static __device__ inline int least_above(const G &g, struct order order, int limit) {
    int least = INT32_MAX;
    g.each([&](int, float w) {
        int key = key_of(w, order);
        least = key > limit && key < least ? key : least;
    });
    for (int offset = TEAM / 2; offset > 0; offset /= 2)
        least = min(least, __shfl_xor_sync(g.together, least, offset, TEAM));
    return least;
}

/* What lies at position (n − 1)·numerator/denominator of the sorted weights, between two of them on the straight line.
 */
template <typename G>
static __device__ inline double quantile(const G &g, struct order order, int64_t numerator, int64_t denominator) {
    int64_t position = (g.n - 1) * numerator, index = position / denominator, low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (count_up_to(g, order, (int)middle) > index)
            high = middle;
        else
            low = middle + 1;
    }
    double below = value_of((int)low), share = (double)(position % denominator) / (double)denominator;
    if (share == 0 || count_up_to(g, order, (int)low) > index + 1) return below;
    double above = value_of(least_above(g, order, (int)low));
    return below + share * (above - below);
}

/* The central share of the weights. */
template <typename G> static __device__ inline struct span percentile(const G &g, const struct candidate *c) {
    const struct order rising = {~0u, 0}, falling = {~0u, 1u << 31}, by_magnitude = {~(1u << 31), 0};
    if (c->symmetric) {
        double m = quantile(g, by_magnitude, c->clip, PARTS);
        return {-m, m};
    }
    return {quantile(g, rising, PARTS - c->clip, 2 * PARTS), -quantile(g, falling, PARTS - c->clip, 2 * PARTS)};
}

template <typename M, typename G>
static __device__ inline struct grid grid_fit(const G &g, const struct judge_args &a, const struct candidate *c,
                                              bool *kept_rtn) {
    *kept_rtn = false;
    struct range r = grid_range(g);
    if (r.min == r.max) return grid_constant(r.min, c);
    struct span full = {r.min, r.max}, part = full;
    if (a.range == RANGE_MSE || a.range == RANGE_WEIGHTED || a.range == RANGE_OUTPUT)
        return search_range<M>(g, a, full, c, kept_rtn);
    if (a.range == RANGE_PERCENTILE) part = percentile(g, c);
    double clip = (double)c->clip / PARTS;
    if (a.range == RANGE_RATIO) part = {clip * full.min, clip * full.max};
    if (!(part.min < part.max)) part = full; /* most weights are equal: a grid needs a width */
    return over<M>(g, part, c, kept_rtn);
}

/* --- Kernels --- */

template <typename M, typename G>
static __device__ inline void search_group(const struct search_args &a, const G &g, const struct judge_args &by,
                                           int64_t row, int64_t group) {
    bool kept_rtn;
    struct grid grid = grid_fit<M>(g, by, &a.candidate, &kept_rtn);
    if (sharer<M>() > 0) return;
    if (a.codes != NULL) encode(g, grid, a.codes + row * a.w.cols + group * a.group);
    if (a.found != NULL) {
        struct range r = grid_range(g);
        count_group(g, r.min == r.max, kept_rtn, a.found);
    }
    if (g.thread != 0) return;
    a.scale[row * a.stride + group] = grid.scale;
    a.zero[row * a.stride + group] = grid.zero;
}

static __device__ inline struct judge_args judge_of(const struct search_args &a, int64_t row, int64_t group) {
    int64_t from = group * a.group, n = a.w.cols - from < a.group ? a.w.cols - from : a.group;
    struct judge_args by = {a.candidate.range, n, a.w.data, a.w.type, row * a.w.stride + from, NULL, a.h};
    if (a.candidate.range == RANGE_WEIGHTED) by.weight = a.weight + from;
    if (a.candidate.range == RANGE_OUTPUT)
        by.h.data = (char *)a.h.data + (from * a.h.stride + from) * (a.h.type == DTYPE_F64 ? 8 : 4);
    return by;
}

/* PER_LANE · LANES is the size of a full group, or PER_LANE is 0: no group sits in registers. */
template <int PER_LANE, typename M> static __global__ void __launch_bounds__(BLOCK) search(struct search_args a) {
    int64_t index = ((int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM) / M::sharing;
    if (index >= a.w.rows * a.groups) return;
    int64_t row = index % a.w.rows, group = index / a.w.rows;
    struct judge_args by = judge_of(a, row, group);
    struct member member = this_member();
    if constexpr (PER_LANE > 0) {
        if (by.n == PER_LANE * LANES) {
            search_group<M>(a, hold<PER_LANE>(member, by.w, by.type, by.from), by, row, group);
            return;
        }
    }
    float first = load_stored(by.w, by.type, by.from);
    search_group<M>(a, (struct stored){member, by.n, by.w, by.type, by.from, first}, by, row, group);
}

template <typename M> static void search_sums(struct backend_state *state, const struct search_args *a) {
    unsigned blocks = blocks_for(a->w.rows * a->groups * M::sharing, TEAMS);
    if (a->group == 2 * LANES)
        search<2, M><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (a->group == 4 * LANES)
        search<4, M><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (a->group == 8 * LANES)
        search<8, M><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else
        search<0, M><<<blocks, BLOCK, 0, state->stream>>>(*a);
}

/* Groups that leave most of a GPU idle, as the columns that GPTQ fits at a time do. */
static const int64_t FEW = 1 << 14;

static enum rc search_all(struct backend_state *state, const struct search_args *a, struct err *e) {
    int64_t groups = a->w.rows * a->groups;
    unsigned blocks = blocks_for(groups, TEAMS);
    bool hqq = a->candidate.method == METHOD_HQQ, output = a->candidate.range == RANGE_OUTPUT;
    if (hqq && a->group == 4 * LANES)
        search<4, means<true, true>><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (hqq)
        search<0, means<true, true>><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (output)
        search<0, means<false, true>><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (groups <= FEW)
        search_sums<struct means<false, false, WARP / TEAM>>(state, a);
    else
        search_sums<struct means<false, false>>(state, a);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_search(struct backend_state *state, const struct quantize_args *a, const float *diagonal,
                    struct findings *found, struct err *e) {
    const struct quantized *q = a->out;
    struct search_args s = {a->w,     a->candidate, q->group,  q->groups, diagonal, a->h,
                            q->scale, q->zero,      q->groups, q->codes,  found};
    return search_all(state, &s, e);
}

enum rc cuda_fit_columns(struct backend_state *state, const struct fit_columns_args *a, struct err *e) {
    if (a->candidate->range == RANGE_OUTPUT || (a->candidate->range == RANGE_WEIGHTED && a->weight == NULL))
        return err_set(e, RC_UNSUPPORTED, "what the range is chosen by is not there");
    int64_t groups = (a->w.cols + a->group - 1) / a->group;
    struct search_args s = {a->w,     *a->candidate, a->group,  groups, a->weight, {},
                            a->scale, a->zero,       a->stride, NULL,   NULL};
    return search_all(state, &s, e);
}
