#include <math.h>

#include "kernels/cuda/grid.cuh"

/* COUNT neighbours a thread; a row of blocks goes through rows. */
template <typename T, int COUNT> static __global__ void find_bad(struct mat w, struct findings *f) {
    int64_t k = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * COUNT;
    for (int64_t n = blockIdx.y; n < w.rows && k < w.cols; n += gridDim.y) {
        struct vector<T, COUNT> values = load_vector<T, COUNT>((const T *)w.data + n * w.stride + k);
        for (int i = 0; i < COUNT; i++)
            if (!isfinite(to_float(values.at[i]))) atomicMin(&f->bad, (unsigned long long)(n * w.cols + k + i));
    }
}

template <typename T>
static enum rc find_bad_of(struct backend_state *state, struct mat w, struct findings *f, struct err *e) {
    const int together = 16 / sizeof(T);
    bool aligned = rows_aligned(&w, 1, 16);
    dim3 blocks(blocks_for(w.cols, (int64_t)BLOCK * (aligned ? together : 1)), grid_rows(w.rows));
    if (aligned)
        find_bad<T, together><<<blocks, BLOCK, 0, state->stream>>>(w, f);
    else
        find_bad<T, 1><<<blocks, BLOCK, 0, state->stream>>>(w, f);
    LAUNCHED();
    return RC_OK;
}

static enum rc find_bad_weight(struct backend_state *state, struct mat w, struct findings *f, struct err *e) {
    if (w.type == DTYPE_BF16) return find_bad_of<__nv_bfloat16>(state, w, f, e);
    if (w.type == DTYPE_F16) return find_bad_of<__half>(state, w, f, e);
    return find_bad_of<float>(state, w, f, e);
}

struct fit_args {
    struct mat w;
    struct candidate candidate;
    struct quantized q;
    struct findings *found;
    int64_t first, count; /* groups of each row to fit */
};

/* What one team has in hand: group `index` of all, whose first code is codes[0]; NULL: only beside other teams. */
struct target {
    int64_t index;
    uint8_t *codes;
};

template <bool HQQ, typename G>
static __device__ inline struct grid fit_range(const G &g, struct range r, const struct candidate *c, bool *kept_rtn) {
    struct grid grid;
    if constexpr (HQQ)
        grid = hqq_fit(g, r, c, kept_rtn);
    else
        grid = rtn_over(g, r.min, r.max, c);
    if (r.min != r.max) return grid;
    *kept_rtn = false;
    return grid_constant(r.min, c);
}

template <bool HQQ, typename G>
static __device__ inline void fit_group(const struct fit_args &a, const G &g, struct target t) {
    bool kept_rtn = false, good = true;
    g.each([&](int, float w) { good &= (bool)isfinite(w); });
    if (!good) atomicMin(&a.found->bad, 0ull); /* which one it is, find_bad tells */
    struct range r = grid_range(g);
    struct grid grid = fit_range<HQQ>(g, r, &a.candidate, &kept_rtn);
    if (t.codes == NULL) return;
    encode(g, grid, t.codes);
    if (g.thread == 0) {
        a.q.scale[t.index] = grid.scale;
        a.q.zero[t.index] = grid.zero;
    }
    count_group(g, r.min == r.max, kept_rtn, a.found);
}

/* Few threads, as a block's room is free when the last of its groups is done. */
static const int FIT_BLOCK = 64;

/* Blocks that share a multiprocessor: as many as the registers of a group allow, to hide the latency of its sums. */
static constexpr int blocks_together(int per_lane) {
    return (per_lane * OWN > 8 ? 512 : 832) / FIT_BLOCK;
}

/* PER_LANE · LANES is the size of every group, or PER_LANE is 0: none sits in registers. */
template <bool HQQ, int PER_LANE>
static __global__ void __launch_bounds__(FIT_BLOCK, blocks_together(PER_LANE)) fit(struct fit_args a) {
    const struct quantized &q = a.q;
    int64_t index = (int64_t)blockIdx.x * (FIT_BLOCK / TEAM) + threadIdx.x / TEAM, all = q.rows * a.count;
    bool spare = index >= all; /* goes along with the last one */
    if (spare) index = all - 1;
    int64_t n = index / a.count, group = a.first + index % a.count, from = group * q.group, at = n * a.w.stride + from;
    struct target target = {n * q.groups + group, spare ? NULL : q.codes + n * q.cols + from};
    struct member member = this_member_of_warp();
    if constexpr (PER_LANE > 0) {
        fit_group<HQQ>(a, hold<PER_LANE>(member, a.w.data, a.w.type, at), target);
    } else {
        int64_t length = q.cols - from < q.group ? q.cols - from : q.group;
        float first = load_stored(a.w.data, a.w.type, at);
        fit_group<HQQ>(a, (struct stored){member, length, a.w.data, a.w.type, at, first}, target);
    }
}

/* The groups from `first` on, in kernels for `size` weights, 0: of any number. */
template <bool HQQ>
static enum rc fit_groups(struct backend_state *state, struct fit_args a, int64_t first, int64_t count, int64_t size,
                          struct err *e) {
    if (count == 0) return RC_OK;
    unsigned blocks = blocks_for(a.q.rows * count, FIT_BLOCK / TEAM);
    a.first = first;
    a.count = count;
    switch (size) {
    case 1 * LANES: fit<HQQ, 1><<<blocks, FIT_BLOCK, 0, state->stream>>>(a); break;
    case 2 * LANES: fit<HQQ, 2><<<blocks, FIT_BLOCK, 0, state->stream>>>(a); break;
    case 4 * LANES: fit<HQQ, 4><<<blocks, FIT_BLOCK, 0, state->stream>>>(a); break;
    case 8 * LANES: fit<HQQ, 8><<<blocks, FIT_BLOCK, 0, state->stream>>>(a); break;
    case 16 * LANES: fit<HQQ, 16><<<blocks, FIT_BLOCK, 0, state->stream>>>(a); break;
    default: fit<HQQ, 0><<<blocks, FIT_BLOCK, 0, state->stream>>>(a);
    }
    LAUNCHED();
    return RC_OK;
}

/* A short last group is not for the kernels that hold full ones. */
template <bool HQQ> static enum rc fit_all(struct backend_state *state, const struct fit_args *a, struct err *e) {
    int64_t full = a->q.cols / a->q.group;
    TRY(fit_groups<HQQ>(state, *a, 0, full, a->q.group, e));
    return fit_groups<HQQ>(state, *a, full, a->q.groups - full, 0, e);
}

enum rc cuda_refuse_weight(struct backend_state *state, const struct mat *w, unsigned long long bad, struct err *e) {
    int64_t row = (int64_t)bad / w->cols, col = (int64_t)bad % w->cols;
    float value = NAN;
    TRY(cuda_read_value(state, w, row, col, &value, e));
    return err_set(e, RC_INVALID,
                   "the weight at row %lld, column %lld is %s: the checkpoint is damaged; fetch it again",
                   (long long)row, (long long)col, isnan(value) ? "NaN" : "infinite");
}

static __global__ void take_diagonal(struct mat h, float *out) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x, at = k * h.stride + k;
    if (k < h.cols) out[k] = h.type == DTYPE_F64 ? (float)((const double *)h.data)[at] : ((const float *)h.data)[at];
}

static enum rc quantize_as(struct backend_state *state, const struct quantize_args *a, float *diagonal,
                           struct findings *found, struct err *e) {
    const struct candidate *c = &a->candidate;
    if (c->method == METHOD_FP8 || c->range != RANGE_FULL) TRY(find_bad_weight(state, a->w, found, e));
    if (c->method == METHOD_FP8) return cuda_fp8(state, a, e);
    if (c->range == RANGE_FULL) {
        struct fit_args f = {a->w, *c, *a->out, found, 0, 0};
        return c->method == METHOD_HQQ ? fit_all<true>(state, &f, e) : fit_all<false>(state, &f, e);
    }
    if (c->range == RANGE_WEIGHTED) {
        take_diagonal<<<blocks_for(a->h.cols, BLOCK), BLOCK, 0, state->stream>>>(a->h, diagonal);
        LAUNCHED();
    }
    return cuda_search(state, a, diagonal, found, e);
}

static enum rc check_gram_type(const struct quantize_args *a, struct err *e) {
    if (a->h.data == NULL || a->h.type == DTYPE_F32 || a->h.type == DTYPE_F64) return RC_OK;
    return err_set(e, RC_UNSUPPORTED, "quantize: H must be fp32 or fp64");
}

static enum rc refuse(struct backend_state *state, const struct quantize_args *a, struct findings *device,
                      struct err *e) {
    struct findings found = {~0ull, 0, 0};
    CUDA_TRY(cudaMemcpyAsync(device, &found, sizeof found, cudaMemcpyHostToDevice, state->stream));
    TRY(find_bad_weight(state, a->w, device, e));
    TRY(cuda_download(state, device, sizeof found, &found, e));
    return cuda_refuse_weight(state, &a->w, found.bad, e);
}

static enum rc quantize_one(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    struct findings found = {~0ull, 0, 0}, *device;
    void *memory;
    TRY(cuda_scratch(state, sizeof found + (size_t)a->w.cols * sizeof(float), &memory, e));
    device = (struct findings *)memory;
    CUDA_TRY(cudaMemcpyAsync(device, &found, sizeof found, cudaMemcpyHostToDevice, state->stream));
    TRY(quantize_as(state, a, (float *)(device + 1), device, e));
    TRY(cuda_download(state, device, sizeof found, &found, e));
    if (found.bad != ~0ull) return refuse(state, a, device, e);
    *a->report = {(int64_t)found.constant, (int64_t)found.rtn};
    return RC_OK;
}

/* How many two-sided ones follow each other from the first on; one of another kind is by itself. */
static int side_by_side(const struct quantize_args *a, int count) {
    int n = 0;
    while (n < count && a[n].rows != NULL)
        n++;
    return n > 0 ? n : 1;
}

enum rc cuda_quantize(struct backend_state *state, const struct quantize_args *a, int count, struct err *e) {
    for (int i = 0; i < count; i++) {
        TRY(check_quantize(&a[i], e));
        TRY(check_gram_type(&a[i], e));
    }
    for (int i = 0, n; i < count; i += n) {
        n = side_by_side(a + i, count - i);
        TRY(candidate_uses_gptq(&a[i].candidate) ? cuda_gptq(state, a + i, n, e) : quantize_one(state, &a[i], e));
    }
    return RC_OK;
}
