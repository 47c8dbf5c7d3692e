#include "kernels/cuda/device.cuh"

#include "kernels/adam.h" /* after what declares the backend's names as C's */

static __global__ void take_step(struct adam_args a, struct adam_step s) {
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < a.count; i += (int64_t)gridDim.x * BLOCK) {
        float slope = a.slope[i];
        float mean = s.keep_mean * a.mean[i] + s.add_mean * slope;
        float square = s.keep_square * a.square[i] + s.add_square * (slope * slope);
        float theta = a.theta[i] - s.rate * mean / (sqrtf(square * s.unbias) + s.epsilon);
        a.mean[i] = mean;
        a.square[i] = square;
        a.theta[i] = theta;
        a.scale[i] = a.base[i] * expf(theta);
        a.slope[i] = 0;
    }
}

enum rc cuda_adam(struct backend_state *state, const struct adam_args *a, struct err *e) {
    TRY(check_adam(a, e));
    if (a->count == 0) return RC_OK;
    take_step<<<grid_rows((a->count + BLOCK - 1) / BLOCK), BLOCK, 0, state->stream>>>(*a, adam_step(a));
    LAUNCHED();
    return RC_OK;
}
