#include <math.h>

#include "kernels/cuda/grid.cuh"

static const int TEAMS = BLOCK / LANES; /* groups fitted by one block */

struct findings {
    unsigned long long bad; /* least index n·K + k of a weight that is no number; N·K: none */
    unsigned long long constant, rtn;
};

static __global__ void find_bad(struct matf w, struct findings *f) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < w.rows * w.cols && !isfinite(w.data[i / w.cols * w.stride + i % w.cols]))
        atomicMin(&f->bad, (unsigned long long)i);
}

static __global__ void fit(struct matf w, struct candidate c, struct quantized q, struct findings *f) {
    int64_t index = (int64_t)blockIdx.x * TEAMS + threadIdx.x / LANES;
    if (index >= q.rows * q.groups) return;
    int64_t n = index / q.groups, from = index % q.groups * q.group;
    struct group g = {w.data + n * w.stride + from, q.cols - from < q.group ? q.cols - from : q.group,
                      (int)(threadIdx.x % LANES), 0xffffu << (threadIdx.x % WARP / LANES * LANES)};
    bool kept_rtn = false;
    struct grid grid = c.method == METHOD_HQQ ? hqq_fit(&g, &c, &kept_rtn) : rtn_fit(&g, &c);
    for (int64_t i = g.lane; i < g.n; i += LANES)
        q.codes[n * q.cols + from + i] = (uint8_t)nearest(&grid, g.w[i]);
    struct range r = grid_range(&g);
    if (g.lane != 0) return;
    q.scale[index] = grid.scale;
    q.zero[index] = grid.zero;
    if (r.min == r.max) atomicAdd(&f->constant, 1ull);
    if (kept_rtn) atomicAdd(&f->rtn, 1ull);
}

/* The first weight that is no number, in reading order, as RC_INVALID. */
static enum rc refuse_bad(struct backend_state *state, const struct matf *w, unsigned long long bad, struct err *e) {
    int64_t row = (int64_t)bad / w->cols, col = (int64_t)bad % w->cols;
    float value;
    TRY(cuda_download(state, w->data + row * w->stride + col, sizeof value, &value, e));
    return err_set(e, RC_INVALID,
                   "the weight at row %lld, column %lld is %s: the checkpoint is damaged; fetch it again",
                   (long long)row, (long long)col, isnan(value) ? "NaN" : "infinite");
}

enum rc cuda_quantize(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    TRY(check_quantize(a, e));
    int64_t count = a->w.rows * a->w.cols, groups = a->out->rows * a->out->groups;
    struct findings found = {(unsigned long long)count, 0, 0}, *device;
    void *memory;
    TRY(cuda_scratch(state, sizeof found, &memory, e));
    device = (struct findings *)memory;
    CUDA_TRY(cudaMemcpyAsync(device, &found, sizeof found, cudaMemcpyHostToDevice, state->stream));
    find_bad<<<blocks_for(count, BLOCK), BLOCK, 0, state->stream>>>(a->w, device);
    LAUNCHED();
    fit<<<blocks_for(groups, TEAMS), BLOCK, 0, state->stream>>>(a->w, a->candidate, *a->out, device);
    LAUNCHED();
    TRY(cuda_download(state, device, sizeof found, &found, e));
    if (found.bad < (unsigned long long)count) return refuse_bad(state, &a->w, found.bad, e);
    *a->report = {(int64_t)found.constant, (int64_t)found.rtn};
    return RC_OK;
}
