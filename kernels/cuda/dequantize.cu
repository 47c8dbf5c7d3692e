#include "kernels/cuda/device.cuh"

static __global__ void decode(struct quantized q, struct matf out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= q.rows * q.cols) return;
    int64_t n = i / q.cols, k = i % q.cols, g = n * q.groups + k / q.group;
    out.data[n * out.stride + k] = ((float)q.codes[i] - q.zero[g]) * q.scale[g];
}

enum rc cuda_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e) {
    TRY(check_dequantize(a, e));
    decode<<<blocks_for(a->q->rows * a->q->cols, BLOCK), BLOCK, 0, state->stream>>>(*a->q, a->out);
    LAUNCHED();
    return RC_OK;
}
