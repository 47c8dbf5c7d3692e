#include "kernels/cuda/device.cuh"

/* One thread one weight of a row; one row of blocks a row. */
template <typename T> static __global__ void decode(struct quantized q, struct mat out) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= q.cols) return;
    for (int64_t n = blockIdx.y; n < q.rows; n += gridDim.y) {
        int64_t g = n * q.groups + k / q.group;
        ((T *)out.data)[n * out.stride + k] = from_float<T>(((float)q.codes[n * q.cols + k] - q.zero[g]) * q.scale[g]);
    }
}

enum rc cuda_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e) {
    TRY(check_dequantize(a, e));
    dim3 blocks(blocks_for(a->q->cols, BLOCK), grid_rows(a->q->rows));
    if (a->out.type == DTYPE_F32)
        decode<float><<<blocks, BLOCK, 0, state->stream>>>(*a->q, a->out);
    else if (a->out.type == DTYPE_BF16)
        decode<__nv_bfloat16><<<blocks, BLOCK, 0, state->stream>>>(*a->q, a->out);
    else
        return err_set(e, RC_UNSUPPORTED, "dequantize: into fp32 or bf16");
    LAUNCHED();
    return RC_OK;
}
