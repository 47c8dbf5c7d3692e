#include "kernels/cuda/device.cuh"

/* e^(−gate) overflows to Inf for very negative gates, and the quotient is then a clean 0. */
static __global__ void gated(struct silu_mul_args a) {
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (n >= a.gate.rows * a.gate.cols) return;
    int64_t t = n / a.gate.cols, i = n % a.gate.cols;
    float gate = a.gate.data[t * a.gate.stride + i], up = a.up.data[t * a.up.stride + i];
    a.out.data[t * a.out.stride + i] = gate / (1.0f + expf(-gate)) * up;
}

enum rc cuda_silu_mul(struct backend_state *state, const struct silu_mul_args *a, struct err *e) {
    TRY(check_silu_mul(a, e));
    int64_t count = a->gate.rows * a->gate.cols;
    if (count == 0) return RC_OK;
    gated<<<blocks_for(count, BLOCK), BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
