#include "kernels/cuda/device.cuh"

/* One team of threads a row: a warp for short rows, as heads are, else a block. */
template <int TEAM, typename X, typename Y> static __global__ void normalise(struct rmsnorm_args a) {
    int64_t row = (int64_t)blockIdx.x * (BLOCK / TEAM) + threadIdx.x / TEAM;
    int lane = threadIdx.x % TEAM;
    if (row >= a.x.rows) return; /* whole teams leave; a block is one team or many warps */
    const X *x = (const X *)a.x.data + row * a.x.stride;
    Y *out = (Y *)a.out.data + row * a.out.stride;
    double squares = 0;
    for (int64_t k = lane; k < a.x.cols; k += TEAM) {
        float value = to_float(x[k]);
        squares += (double)value * value;
    }
    squares = TEAM == WARP ? warp_sum(squares) : block_sum(squares);
    float factor = (float)(1.0 / sqrt(squares / (double)a.x.cols + a.eps));
    for (int64_t k = lane; k < a.x.cols; k += TEAM)
        out[k] = from_float<Y>(to_float(x[k]) * factor * a.weight[k]);
}

template <typename X, typename Y> static void launch(struct backend_state *state, const struct rmsnorm_args *a) {
    if (a->x.cols <= 8 * WARP)
        normalise<WARP, X, Y><<<blocks_for(a->x.rows, BLOCK / WARP), BLOCK, 0, state->stream>>>(*a);
    else
        normalise<BLOCK, X, Y><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*a);
}

enum rc cuda_rmsnorm(struct backend_state *state, const struct rmsnorm_args *a, struct err *e) {
    TRY(check_rmsnorm(a, e));
    TRY(check_activation(state, &a->out, e));
    if (a->x.type != DTYPE_F32) TRY(check_activation(state, &a->x, e));
    if (a->x.rows == 0 || a->x.cols == 0) return RC_OK;
    if (a->out.type == DTYPE_F32)
        launch<float, float>(state, a);
    else if (a->x.type == DTYPE_F32)
        launch<float, __nv_bfloat16>(state, a);
    else
        launch<__nv_bfloat16, __nv_bfloat16>(state, a);
    LAUNCHED();
    return RC_OK;
}
