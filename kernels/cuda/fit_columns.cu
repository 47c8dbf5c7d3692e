#include "kernels/cuda/grid.cuh"

static __global__ void fit(struct fit_columns_args a, struct candidate c) {
    int64_t row = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / TEAM;
    if (row >= a.w.rows) return;
    struct member member = {(int)(threadIdx.x % TEAM), ((1u << TEAM) - 1) << (threadIdx.x % WARP / TEAM * TEAM)};
    int64_t at = row * a.w.stride;
    struct stored g = {member, a.w.cols, a.w.data, a.w.type, at, load_stored(a.w.data, a.w.type, at)};
    struct grid grid = rtn_fit(g, &c);
    if (member.thread != 0) return;
    a.scale[row * a.stride] = grid.scale;
    a.zero[row * a.stride] = grid.zero;
}

enum rc cuda_fit_columns(struct backend_state *state, const struct fit_columns_args *a, struct err *e) {
    fit<<<blocks_for(a->w.rows * TEAM, BLOCK), BLOCK, 0, state->stream>>>(*a, *a->candidate);
    LAUNCHED();
    return RC_OK;
}
