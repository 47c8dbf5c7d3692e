/* Twin of kernels/cpu/gptq.c. A team of threads has a row, each some of the block's columns in registers: whose column
 * it is rounds it and tells the others the error. Within a block there is a launch for each group that begins in it, so
 * that its parameters can be fitted when all columns before it are rounded. */
#include <math.h>
#include <stdlib.h>

#include "kernels/cuda/grid.cuh"
extern "C" {
#include "kernels/columns.h"
}

static const int HELD = STEPS_MAX / TEAM; /* columns of a block that one thread has */

struct rounding {
    struct quantized q;
    const float *upper; /* [K, K] */
    float *w;           /* [N, K] in the order of the steps, corrected up to the block at hand */
    float *error;       /* [N, STEPS_MAX] of the block */
    float *weight;      /* [K] for RANGE_WEIGHTED, in the order in which groups are fitted; else NULL */
    int32_t *order;     /* [K] the column of each step */
    int32_t *group;     /* [K] its group */
    uint8_t *dead;      /* [K] by column */
    struct findings *found;
};

/* w in the order of the steps, or as it lies; dead columns 0, and what is no number until it is refused. */
static __global__ void take_columns(struct mat from, struct rounding r, bool ordered) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, n = i / r.q.cols, k = i % r.q.cols;
    if (n >= r.q.rows) return;
    int64_t column = ordered ? r.order[k] : k;
    float value = load_stored(from.data, from.type, n * from.stride + column);
    bool good = isfinite(value);
    if (!good) atomicMin(&r.found->bad, (unsigned long long)(n * r.q.cols + column));
    r.w[i] = !good || r.dead[column] ? 0 : value;
}

static __global__ void describe_groups(struct rounding r) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k < r.q.cols) r.q.group_of[r.order[k]] = r.group[k];
}

/* 1/U_kk², the error that is left when all columns behind k have made up for k's, as a share of the largest; nothing
 * that a dead column does is an error. One block. */
static __global__ void fill_weight(struct rounding r, bool ordered) {
    float most = -INFINITY;
    for (int64_t k = threadIdx.x; k < r.q.cols; k += BLOCK)
        if (!r.dead[r.order[k]]) most = fmaxf(most, -r.upper[k * r.q.cols + k]);
    double least = -block_max(most);
    for (int64_t k = threadIdx.x; k < r.q.cols; k += BLOCK) {
        int64_t column = r.order[k];
        double share = least / r.upper[k * r.q.cols + k];
        r.weight[ordered ? k : column] = r.dead[column] ? 0 : (float)(share * share);
    }
}

/* One warp a row and group: counts the groups whose weights are all equal. Corrections of weights near the end of fp32
 * can overflow; grids are fitted to numbers. */
static __global__ void prepare_groups(struct mat all, int64_t size, unsigned long long *constant) {
    int64_t warp = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / WARP, row = warp % all.rows;
    int64_t from = warp / all.rows * size;
    if (from >= all.cols) return;
    float *w = (float *)all.data + row * all.stride + from, first = isfinite(w[0]) ? w[0] : 0;
    bool equal = true;
    __syncwarp();
    for (int64_t k = threadIdx.x % WARP; k < size && from + k < all.cols; k += WARP) {
        if (!isfinite(w[k])) w[k] = 0;
        equal = equal && w[k] == first;
    }
    equal = __all_sync(0xffffffffu, equal);
    if (equal && threadIdx.x % WARP == 0) atomicAdd(constant, 1ull);
}

/* Steps from … to of the block first … end. */
struct segment {
    int64_t first, from, to, end;
};

/* What rounds the weights of one row in the column of one step. */
struct column {
    struct grid grid;
    float inverse, diagonal;
    uint8_t *code;
};

static __device__ inline struct column column_at(const struct rounding &r, int64_t row, int64_t step) {
    int64_t parameter = row * r.q.groups + r.group[step];
    struct grid grid = {r.q.scale[parameter], r.q.zero[parameter], (1 << r.q.bits) - 1};
    return {grid, 1 / grid.scale, r.upper[step * r.q.cols + step], r.q.codes + row * r.q.cols + r.order[step]};
}

/* Stores the code; the error is (w − ŵ)/U_kk. */
static __device__ inline float round_weight(const struct column &c, float w, bool there) {
    double code = nearest(c.grid, c.inverse, w);
    if (there) *c.code = (uint8_t)code;
    return (float)((w - (code - c.grid.zero) * c.grid.scale) / c.diagonal);
}

/* Rows that there are not go along with the first, for the sake of those in their warp, and store nothing. */
static __global__ void __launch_bounds__(BLOCK) round_steps(struct rounding r, struct segment s) {
    int64_t row = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / TEAM, cols = r.q.cols;
    bool there = row < r.q.rows;
    if (!there) row = 0;
    int lane = (int)threadIdx.x % TEAM, steps = (int)(s.to - s.from), width = (int)(s.end - s.from);
    float *weights = r.w + row * cols + s.from, *errors = r.error + row * STEPS_MAX + (s.from - s.first), w[HELD];
    const float *upper = r.upper + s.from * cols + s.from;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        w[i] = i * TEAM + lane < width ? weights[i * TEAM + lane] : 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        if (i * TEAM >= steps) break;
        int own = i * TEAM + lane;
        struct column column = column_at(r, row, s.from + (own < steps ? own : 0));
        for (int t = 0; t < TEAM && i * TEAM + t < steps; t++, upper += cols) {
            float error = 0;
            if (lane == t) error = round_weight(column, w[i], there);
            if (lane == t && there) errors[own] = error;
            error = __shfl_sync(0xffffffffu, error, t, TEAM);
            if (lane > t && own < width) w[i] -= error * __ldg(&upper[own]);
#pragma unroll
            for (int j = i + 1; j < HELD; j++)
                if (j * TEAM + lane < width) w[j] -= error * __ldg(&upper[j * TEAM + lane]);
        }
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int own = i * TEAM + lane;
        if (there && own >= steps && own < width) weights[own] = w[i];
    }
}

/* Groups that follow each other, and their columns of w. */
struct stretch {
    int64_t group, size; /* the first; columns in each */
    int64_t at, cols;
};

static enum rc fit(struct backend_state *state, const struct quantize_args *a, const struct rounding *r,
                   struct stretch s, struct err *e) {
    struct mat w = {r->w + s.at, r->q.rows, s.cols, r->q.cols, DTYPE_F32};
    struct fit_columns_args f = {w,
                                 s.size,
                                 &a->candidate,
                                 r->weight ? r->weight + s.at : NULL,
                                 r->q.scale + s.group,
                                 r->q.zero + s.group,
                                 r->q.groups};
    int64_t warps = w.rows * ((s.cols + s.size - 1) / s.size);
    prepare_groups<<<blocks_for(warps * WARP, BLOCK), BLOCK, 0, state->stream>>>(w, s.size, &r->found->constant);
    LAUNCHED();
    return cuda_fit_columns(state, &f, e);
}

static enum rc take(struct backend_state *state, const struct quantize_args *a, const struct rounding *r, bool ordered,
                    struct err *e) {
    take_columns<<<blocks_for(r->q.rows * r->q.cols, BLOCK), BLOCK, 0, state->stream>>>(a->w, *r, ordered);
    LAUNCHED();
    return RC_OK;
}

/* Whether groups that are fitted before are runs of steps, not of columns as they lie. */
static bool fitted_by_steps(const struct rounding *r) {
    return r->q.group_of != NULL;
}

/* All groups, before any weight is corrected. */
static enum rc fit_before(struct backend_state *state, const struct quantize_args *a, const struct rounding *r,
                          struct err *e) {
    TRY(take(state, a, r, fitted_by_steps(r), e));
    return fit(state, a, r, {0, r->q.group, 0, r->q.cols}, e);
}

/* One block: its steps, and what they do to the columns behind it. To cuBLAS, which counts columns first, all factors
 * are transposed and change places. */
static enum rc round_block(struct backend_state *state, const struct quantize_args *a, const struct steps *steps,
                           const struct rounding *r, struct segment s, struct err *e) {
    for (s.from = s.first; s.from < s.end; s.from = s.to) {
        int64_t group_end = steps->group_end[s.from], g = steps->group[s.from];
        if (steps_fit_at(steps, s.from)) {
            int64_t n = group_end - s.from;
            TRY(fit(state, a, r, {g, n, s.from, n}, e));
        }
        s.to = steps->fitted_before || group_end > s.end ? s.end : group_end;
        round_steps<<<blocks_for(r->q.rows * TEAM, BLOCK), BLOCK, 0, state->stream>>>(*r, s);
        LAUNCHED();
    }
    const float minus_one = -1, one = 1;
    int cols = (int)r->q.cols, rest = (int)(r->q.cols - s.end);
    if (rest == 0) return RC_OK;
    CUBLAS_TRY(cublasSgemm(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, rest, (int)r->q.rows, (int)(s.end - s.first),
                           &minus_one, r->upper + s.first * cols + s.end, cols, r->error, STEPS_MAX, &one, r->w + s.end,
                           cols));
    return RC_OK;
}

static enum rc round_one_sided(struct backend_state *state, const struct quantize_args *a, const struct steps *steps,
                               const struct rounding *r, struct err *e) {
    TRY(take(state, a, r, true, e));
    for (int64_t first = 0, end; first < r->q.cols; first = end) {
        end = steps_block_end(steps, first);
        TRY(round_block(state, a, steps, r, {first, first, first, end}, e));
    }
    return RC_OK;
}

static enum rc upload(struct backend_state *state, void *to, const void *host, size_t bytes, struct err *e) {
    CUDA_TRY(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

static size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* Memory of its own: fitting has the scratch. */
static enum rc workspace_get(struct backend_state *state, const struct quantize_args *a, struct rounding *r,
                             struct err *e) {
    size_t rows = (size_t)a->w.rows, cols = (size_t)a->w.cols;
    size_t w = aligned(rows * cols * sizeof(float)), error = aligned(rows * STEPS_MAX * sizeof(float));
    size_t each = aligned(cols * sizeof(int32_t));
    void *memory;
    TRY(cuda_alloc(state, w + error + 4 * each + sizeof(struct findings), &memory, e));
    char *at = (char *)memory;
    *r = {};
    r->q = *a->out;
    r->upper = a->factor->upper;
    r->w = (float *)at;
    r->error = (float *)(at + w);
    at += w + error;
    if (a->candidate.range == RANGE_WEIGHTED) r->weight = (float *)at;
    r->order = (int32_t *)(at + each);
    r->group = (int32_t *)(at + 2 * each);
    r->dead = (uint8_t *)(at + 3 * each);
    r->found = (struct findings *)(at + 4 * each);
    return RC_OK;
}

/* One candidate in hand; all zeros: not yet. */
struct work {
    const struct quantize_args *a;
    struct steps steps;
    struct rounding r;
};

static unsigned long long weights_of(const struct work *k) {
    return (unsigned long long)(k->a->w.rows * k->a->w.cols);
}

/* All that comes before the first weight is rounded. */
static enum rc begin(struct backend_state *state, struct work *k, struct err *e) {
    struct rounding *r = &k->r;
    const struct findings none = {weights_of(k), 0, 0};
    TRY(steps_init(k->a, &k->steps, e));
    TRY(workspace_get(state, k->a, r, e));
    TRY(upload(state, r->found, &none, sizeof none, e));
    TRY(upload(state, r->order, k->a->factor->order, (size_t)r->q.cols * sizeof *r->order, e));
    TRY(upload(state, r->group, k->steps.group, (size_t)r->q.cols * sizeof *r->group, e));
    TRY(upload(state, r->dead, k->a->factor->dead, (size_t)r->q.cols, e));
    if (r->weight) {
        fill_weight<<<1, BLOCK, 0, state->stream>>>(*r, !k->steps.fitted_before || fitted_by_steps(r));
        LAUNCHED();
    }
    if (r->q.group_of) {
        describe_groups<<<blocks_for(r->q.cols, BLOCK), BLOCK, 0, state->stream>>>(*r);
        LAUNCHED();
    }
    return k->steps.fitted_before ? fit_before(state, k->a, r, e) : RC_OK;
}

static struct gptq_columns columns_of(const struct rounding *r) {
    return {r->w, r->error, r->order, r->group, r->dead};
}

static enum rc round_both_sides(struct backend_state *state, const struct work *all, int count, struct err *e) {
    struct gptq_rows_args *rows = (struct gptq_rows_args *)calloc((size_t)count, sizeof *rows);
    if (rows == NULL) return err_set(e, RC_NO_MEMORY, "no memory to quantize %d candidates", count);
    for (int i = 0; i < count; i++)
        rows[i] = {all[i].a, columns_of(&all[i].r)};
    enum rc rc = cuda_gptq_rows(state, rows, count, e);
    free(rows);
    return rc;
}

static enum rc finish(struct backend_state *state, const struct work *k, struct err *e) {
    struct findings found;
    TRY(cuda_download(state, k->r.found, sizeof found, &found, e));
    if (found.bad < weights_of(k)) return cuda_refuse_weight(state, &k->a->w, found.bad, e);
    *k->a->report = {(int64_t)found.constant, 0};
    if (k->a->candidate.descend == 0) return RC_OK;
    struct gptq_columns columns = columns_of(&k->r);
    return cuda_descend(state, k->a, &columns, e);
}

static enum rc run(struct backend_state *state, struct work *all, int count, struct err *e) {
    for (int i = 0; i < count; i++)
        TRY(begin(state, &all[i], e));
    if (all[0].a->rows != NULL)
        TRY(round_both_sides(state, all, count, e));
    else
        TRY(round_one_sided(state, all[0].a, &all[0].steps, &all[0].r, e));
    for (int i = 0; i < count; i++)
        TRY(finish(state, &all[i], e));
    return RC_OK;
}

enum rc cuda_gptq(struct backend_state *state, const struct quantize_args *a, int count, struct err *e) {
    struct work *all = (struct work *)calloc((size_t)count, sizeof *all);
    if (all == NULL) return err_set(e, RC_NO_MEMORY, "no memory to quantize %d candidates", count);
    for (int i = 0; i < count; i++)
        all[i].a = &a[i];
    enum rc rc = run(state, all, count, e);
    for (int i = 0; i < count; i++) {
        cuda_free(state, all[i].r.w);
        steps_release(&all[i].steps);
    }
    free(all);
    return rc;
}
