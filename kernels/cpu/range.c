/* Which part of a group's range its grid spans.
 *
 * The searches try ranges ever smaller and judge each grid as storage keeps it, every weight at its nearest code:
 * RANGE_MSE by Σ e², over the steps of GPTQ's code (quant.py, find_params: 1, 0.99 … 0.21 of min and max);
 * RANGE_WEIGHTED by Σ weight·e², over 1.10 … 0.31: a wider range may put its grid on the weights that count;
 * RANGE_OUTPUT by eᵀHe, over those of AWQ's (auto_clip: 1, 0.95 … 0.55 of max|w|, beyond which both ends are cut). RTN
 * over the full range always competes, and what is no better does not replace it, so no group is worse than RTN by its
 * criterion; of equals the larger range stays. A range that does not contain 0 shrinks towards its end nearest to 0.
 * HQQ iterates from each of the ten ranges 1, 0.95 … 0.55, and RTN of the same choice competes. */
#include <math.h>

#include "kernels/cpu/grid.h"
#include "kernels/cpu/simd.h"

struct span {
    double min, max;
};

/* The tries of a search: first/of, (first − 1)/of, … */
struct steps {
    int first, count, of;
};
static const struct steps fine = {100, 80, 100}, wider = {110, 80, 100}, coarse = {20, 10, 20};
enum { TRIES_MAX = 80 };

/* --- Criteria --- */

/* Of w from its value on the grid, in steps. Adding and taking away 1.5·2²³ would round as well, up to 2²². */
static inline float distance(float scaled, float zero, float top) {
    float at = scaled + zero, q = rintf(at);
    q = q < 0 ? 0 : q;
    q = q > top ? top : q;
    return at - q;
}

/* Σ d², d in steps of the grid: so neither tiny nor huge weights leave what fp32 can hold. */
SIMD static float squares(const struct grid *g, const float *w, int64_t n) {
    float inverse = 1 / g->scale, zero = g->zero, top = (float)g->top, lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float d = distance(w[i + l] * inverse, zero, top);
            lane[l] += d * d;
        }
    for (int l = 0; i < n; i++, l++) {
        float d = distance(w[i] * inverse, zero, top);
        lane[l] += d * d;
    }
    return add_lanes_f32(lane);
}

/* Σ weight·d² */
SIMD static float weighted_squares(const struct grid *g, const float *w, const float *weight, int64_t n) {
    float inverse = 1 / g->scale, zero = g->zero, top = (float)g->top, lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float d = distance(w[i + l] * inverse, zero, top);
            lane[l] += weight[i + l] * (d * d);
        }
    for (int l = 0; i < n; i++, l++) {
        float d = distance(w[i] * inverse, zero, top);
        lane[l] += weight[i] * (d * d);
    }
    return add_lanes_f32(lane);
}

enum { BLOCK = 512, TILE = 4 * LANES };

SIMD static void errors(const struct grid *g, const float *w, int64_t n, double *out) {
    double scale = g->scale, zero = g->zero, top = g->top;
    for (int64_t i = 0; i < n; i++) {
        double q = rint(w[i] / scale + zero);
        q = q < 0 ? 0 : q;
        q = q > top ? top : q;
        out[i] = w[i] - (q - zero) * scale;
    }
}

/* Σ left_i H_ij right_j over the columns j from `j` on while `width` of them are left; their sums stay in registers. */
#define ADD_COLUMNS(width)                                                                                             \
    for (; j + (width) <= cols; j += (width)) {                                                                        \
        double column[width] = {0};                                                                                    \
        for (int64_t i = 0; i < rows; i++)                                                                             \
            for (int t = 0; t < (width); t++)                                                                          \
                column[t] += left[i] * h[i * stride + j + t];                                                          \
        for (int t = 0; t < (width); t++)                                                                              \
            sum += column[t] * right[j + t];                                                                           \
    }
SIMD static double bilinear(const double *left, int64_t rows, const double *h, int64_t stride, const double *right,
                            int64_t cols) {
    double sum = 0;
    int64_t j = 0;
    ADD_COLUMNS(TILE)
    ADD_COLUMNS(2 * LANES)
    ADD_COLUMNS(LANES)
    ADD_COLUMNS(4)
    ADD_COLUMNS(1)
    return sum;
}

/* eᵀHe */
static double output_error(const struct fit_args *a, const struct grid *g) {
    double left[BLOCK], right[BLOCK], sum = 0;
    for (int64_t i = 0; i < a->n; i += BLOCK) {
        int64_t rows = a->n - i < BLOCK ? a->n - i : BLOCK;
        errors(g, a->w + i, rows, left);
        for (int64_t j = 0; j < a->n; j += BLOCK) {
            int64_t cols = a->n - j < BLOCK ? a->n - j : BLOCK;
            if (j != i) errors(g, a->w + j, cols, right);
            sum += bilinear(left, rows, a->h + i * a->h_stride + j, a->h_stride, j == i ? left : right, cols);
        }
    }
    return sum;
}

static double judge(const struct fit_args *a, const struct grid *g) {
    if (a->candidate->range == RANGE_OUTPUT) return output_error(a, g);
    float sum =
        a->candidate->range == RANGE_WEIGHTED ? weighted_squares(g, a->w, a->weight, a->n) : squares(g, a->w, a->n);
    return (double)g->scale * g->scale * sum;
}

/* --- Searches --- */

/* `p` of the range. */
static inline struct span shrunk(struct span s, double p, enum range_choice range) {
    double limit = p * (-s.min > s.max ? -s.min : s.max), fixed = clamp(0, s.min, s.max);
    limit = range == RANGE_OUTPUT ? limit : INFINITY;
    p = range == RANGE_OUTPUT ? 1 : p;
    return (struct span){clamp(fixed + p * (s.min - fixed), -limit, limit),
                         clamp(fixed + p * (s.max - fixed), -limit, limit)};
}

/* The group's extreme weights, and what counts their error. */
struct extremes {
    struct span at, weight;
};

static struct extremes find_extremes(const struct fit_args *a, struct span s) {
    struct extremes found = {s, {1, 1}};
    if (a->candidate->range != RANGE_WEIGHTED) return found;
    for (int64_t i = 0; i < a->n; i++) {
        if (a->w[i] == s.min) found.weight.min = a->weight[i];
        if (a->w[i] == s.max) found.weight.max = a->weight[i];
    }
    return found;
}

/* The grids of a search, and below which no criterion can be: what cutting off the extremes costs alone. As a rule that
 * spares judging the smaller half of the ranges. */
struct tries {
    float scale[TRIES_MAX], zero[TRIES_MAX];
    double floor[TRIES_MAX];
};
static const double ROUNDING = 0.999; /* of sums in fp32 */

/* As grid_between would, in loops without a choice in them, so that they vectorize. */
SIMD static void lay_out(struct span s, struct steps steps, const struct candidate *c, const struct extremes *x,
                         struct tries *out) {
    const struct zeros zeros = zeros_of(c);
    const double top = (1 << c->bits) - 1, width = c->symmetric ? top - 1 : top, fixed = clamp(0, s.min, s.max);
    double min[TRIES_MAX], zero[TRIES_MAX];
    for (int i = 0; i < steps.count; i++) {
        double p = (double)(steps.first - i) / steps.of, max = fixed + p * (s.max - fixed);
        min[i] = fixed + p * (s.min - fixed);
        out->scale[i] = grid_store_scale((max - min[i]) / width);
    }
    for (int i = 0; i < steps.count; i++)
        zero[i] = -min[i] / out->scale[i];
    if (zeros.integer)
        for (int i = 0; i < steps.count; i++)
            zero[i] = rint(zero[i]);
    for (int i = 0; i < steps.count; i++)
        out->zero[i] = round_f16((float)clamp(zero[i], zeros.least, zeros.most));
    for (int i = 0; i < steps.count; i++) {
        double above = x->at.max - (top - out->zero[i]) * out->scale[i];
        double below = -(double)out->zero[i] * out->scale[i] - x->at.min;
        above = above > 0 ? above : 0;
        below = below > 0 ? below : 0;
        out->floor[i] = ROUNDING * (x->weight.max * above * above + x->weight.min * below * below);
    }
}

struct choice {
    struct grid grid;
    double error;
};

static void compete(const struct fit_args *a, struct grid grid, struct choice *best) {
    double error = judge(a, &grid);
    if (error < best->error) *best = (struct choice){grid, error};
}

/* By sums: over fine steps, and what cannot win is spared. */
static void search_finely(const struct fit_args *a, struct span s, const struct extremes *extremes,
                          struct choice *best) {
    struct steps steps = a->candidate->range == RANGE_WEIGHTED ? wider : fine;
    struct tries tries;
    lay_out(s, steps, a->candidate, extremes, &tries);
    for (int i = 0; i < steps.count; i++)
        if (!(tries.floor[i] > best->error))
            compete(a, (struct grid){tries.scale[i], tries.zero[i], best->grid.top}, best);
}

static void search_coarsely(const struct fit_args *a, struct span s, struct choice *best) {
    for (int i = 0; i < coarse.count; i++) {
        struct span part = shrunk(s, (double)(coarse.first - i) / coarse.of, a->candidate->range);
        compete(a, grid_between(part.min, part.max, a->candidate), best);
    }
}

static struct choice rtn_search(const struct fit_args *a, struct span s) {
    const struct candidate *c = a->candidate;
    struct choice best = {.grid = rtn_over(s.min, s.max, a->w, a->n, c)};
    best.error = judge(a, &best.grid);
    struct extremes extremes = find_extremes(a, s);
    if (c->symmetric) s.min = -(s.max = fmax(-s.min, s.max));
    if (c->zero == ZERO_INTEGER) s = (struct span){fmin(s.min, 0), fmax(s.max, 0)};
    if (c->range == RANGE_OUTPUT)
        search_coarsely(a, s, &best);
    else
        search_finely(a, s, &extremes, &best);
    return best;
}

static struct choice hqq_search(const struct fit_args *a, struct span s) {
    const struct candidate *c = a->candidate;
    struct choice best = {.grid = hqq_from(s.min, s.max, a->w, a->n, c)};
    best.error = judge(a, &best.grid);
    for (int i = 1; i < coarse.count; i++) {
        struct span part = shrunk(s, (double)(coarse.first - i) / coarse.of, c->range);
        compete(a, hqq_from(part.min, part.max, a->w, a->n, c), &best);
    }
    return best;
}

static struct grid search(const struct fit_args *a, struct span s, bool *kept_rtn) {
    struct choice rtn = rtn_search(a, s);
    if (a->candidate->method != METHOD_HQQ) return rtn.grid;
    struct choice hqq = hqq_search(a, s);
    *kept_rtn = !(hqq.error <= rtn.error);
    return *kept_rtn ? rtn.grid : hqq.grid;
}

/* --- Given ranges --- */

static struct grid over(const struct fit_args *a, struct span s, bool *kept_rtn) {
    struct grid rtn = rtn_over(s.min, s.max, a->w, a->n, a->candidate);
    if (a->candidate->method != METHOD_HQQ) return rtn;
    struct grid hqq = hqq_from(s.min, s.max, a->w, a->n, a->candidate);
    *kept_rtn = grid_error(&rtn, a->w, a->n) < grid_error(&hqq, a->w, a->n);
    return *kept_rtn ? rtn : hqq;
}

/* The order of floats as one of integers, after bits were cleared and flipped: that of w, −w or |w|. */
struct order {
    uint32_t keep, flip;
};
static const struct order rising = {UINT32_MAX, 0}, falling = {UINT32_MAX, 1u << 31}, by_magnitude = {~(1u << 31), 0};

static inline int32_t key_of(float w, struct order order) {
    uint32_t bits;
    memcpy(&bits, &w, sizeof bits);
    int32_t key = (int32_t)((bits & order.keep) ^ order.flip);
    return key ^ ((key >> 31) & INT32_MAX);
}

static double value_of(int32_t key) {
    float value;
    key ^= (key >> 31) & INT32_MAX;
    memcpy(&value, &key, sizeof value);
    return value;
}

SIMD static int64_t count_up_to(const float *w, int64_t n, struct order order, int32_t limit) {
    int32_t count = 0; /* a row has fewer than 2³¹ weights */
    for (int64_t i = 0; i < n; i++)
        count += key_of(w[i], order) <= limit;
    return count;
}

SIMD static int32_t least_above(const float *w, int64_t n, struct order order, int32_t limit) {
    int32_t least = INT32_MAX;
    for (int64_t i = 0; i < n; i++) {
        int32_t key = key_of(w[i], order);
        least = key > limit && key < least ? key : least;
    }
    return least;
}

/* What lies at position (n − 1)·numerator/denominator of the sorted weights, between two of them on the straight line.
 * Sorting would need memory: the key is found bit by bit instead. */
static double quantile(const float *w, int64_t n, struct order order, int64_t numerator, int64_t denominator) {
    int64_t position = (n - 1) * numerator, index = position / denominator, low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (count_up_to(w, n, order, (int32_t)middle) > index)
            high = middle;
        else
            low = middle + 1;
    }
    double below = value_of((int32_t)low), share = (double)(position % denominator) / (double)denominator;
    if (share == 0 || count_up_to(w, n, order, (int32_t)low) > index + 1) return below;
    double above = value_of(least_above(w, n, order, (int32_t)low));
    return below + share * (above - below);
}

/* The central share of the weights. */
static struct span percentile(const struct fit_args *a) {
    int clip = a->candidate->clip;
    if (a->candidate->symmetric) {
        double m = quantile(a->w, a->n, by_magnitude, clip, PARTS);
        return (struct span){-m, m};
    }
    return (struct span){quantile(a->w, a->n, rising, PARTS - clip, 2 * PARTS),
                         -quantile(a->w, a->n, falling, PARTS - clip, 2 * PARTS)};
}

struct grid grid_fit(const struct fit_args *a, bool *kept_rtn) {
    *kept_rtn = false;
    const struct candidate *c = a->candidate;
    struct range r = grid_range(a->w, a->n);
    if (r.min == r.max) return grid_constant(r.min, c);
    struct span full = {r.min, r.max}, part = full;
    if (c->range == RANGE_MSE || c->range == RANGE_WEIGHTED || c->range == RANGE_OUTPUT)
        return search(a, full, kept_rtn);
    if (c->range == RANGE_PERCENTILE) part = percentile(a);
    double clip = (double)c->clip / PARTS;
    if (c->range == RANGE_RATIO) part = (struct span){clip * full.min, clip * full.max};
    if (!(part.min < part.max)) part = full; /* most weights are equal: a grid needs a width */
    return over(a, part, kept_rtn);
}
