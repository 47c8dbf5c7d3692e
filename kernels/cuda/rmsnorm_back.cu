#include "kernels/cuda/device.cuh"

/* One team of threads a row: a warp for short rows, as heads are, else a block. A row is read twice, the second time
 * from the cache; what a thread writes of dx it alone has read of dy before. */
template <int TEAM> static __global__ void spread(struct rmsnorm_back_args a) {
    int64_t row = (int64_t)blockIdx.x * (BLOCK / TEAM) + threadIdx.x / TEAM;
    if (row >= a.x.rows) return; /* whole teams leave; a block is one team or many warps */
    int64_t x_at = row * a.x.stride, dy_at = row * a.dy.stride, dx_at = row * a.dx.stride;
    double squares = 0, dot = 0;
    for (int64_t k = threadIdx.x % TEAM; k < a.x.cols; k += TEAM) {
        float x = load_stored(a.x.data, a.x.type, x_at + k);
        squares += (double)x * x;
        dot += (double)(a.weight[k] * load_stored(a.dy.data, a.dy.type, dy_at + k)) * x;
    }
    squares = TEAM == WARP ? warp_sum(squares) : block_sum(squares);
    dot = TEAM == WARP ? warp_sum(dot) : block_sum(dot);
    double exact = 1.0 / sqrt(squares / (double)a.x.cols + a.eps);
    float factor = (float)exact, along = (float)(exact * exact * exact * dot / (double)a.x.cols);
    for (int64_t k = threadIdx.x % TEAM; k < a.x.cols; k += TEAM) {
        float dy = load_stored(a.dy.data, a.dy.type, dy_at + k);
        float value = factor * (a.weight[k] * dy) - along * load_stored(a.x.data, a.x.type, x_at + k);
        if (a.add) value += load_stored(a.dx.data, a.dx.type, dx_at + k);
        store_as(a.dx.data, a.dx.type, dx_at + k, value);
    }
}

static enum rc check_types(const struct backend_state *state, const struct rmsnorm_back_args *a, struct err *e) {
    const struct mat all[] = {a->x, a->dy, a->dx};
    for (int i = 0; i < 3; i++)
        if (all[i].type != DTYPE_F32) TRY(check_activation(state, &all[i], e));
    return RC_OK;
}

enum rc cuda_rmsnorm_back(struct backend_state *state, const struct rmsnorm_back_args *a, struct err *e) {
    TRY(check_rmsnorm_back(a, e));
    TRY(check_types(state, a, e));
    if (a->x.rows == 0 || a->x.cols == 0) return RC_OK;
    if (a->x.cols <= 8 * WARP)
        spread<WARP><<<blocks_for(a->x.rows, BLOCK / WARP), BLOCK, 0, state->stream>>>(*a);
    else
        spread<BLOCK><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
