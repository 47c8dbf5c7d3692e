#include "kernels/cuda/device.cuh"

/* One block a row. */
static __global__ void normalise(struct rmsnorm_args a) {
    const float *x = a.x.data + blockIdx.x * a.x.stride;
    float *out = a.out.data + blockIdx.x * a.out.stride;
    double squares = 0;
    for (int64_t k = threadIdx.x; k < a.x.cols; k += BLOCK)
        squares += (double)x[k] * x[k];
    float factor = (float)(1.0 / sqrt(block_sum(squares) / (double)a.x.cols + a.eps));
    for (int64_t k = threadIdx.x; k < a.x.cols; k += BLOCK)
        out[k] = x[k] * factor * a.weight[k];
}

enum rc cuda_rmsnorm(struct backend_state *state, const struct rmsnorm_args *a, struct err *e) {
    TRY(check_rmsnorm(a, e));
    if (a->x.rows == 0 || a->x.cols == 0) return RC_OK;
    normalise<<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
