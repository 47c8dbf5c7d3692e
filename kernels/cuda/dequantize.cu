#include <math.h>

#include "kernels/cuda/e4m3.cuh"

static __device__ inline float value_of(const struct quantized &q, int64_t n, int64_t k) {
    uint8_t code = q.codes[n * q.cols + k];
    if (q.fp8) return e4m3_decode(code) * q.scale[n];
    int64_t g = n * q.groups + (q.group_of != NULL ? q.group_of[k] : k / q.group);
    return ((float)code - q.zero[g]) * q.scale[g];
}

/* One thread one weight of a row; one row of blocks a row. */
template <typename T> static __global__ void decode(struct quantized q, const float *by_col, struct mat out) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= q.cols) return;
    float factor = by_col != NULL ? by_col[k] : 1;
    for (int64_t n = blockIdx.y; n < q.rows; n += gridDim.y)
        ((T *)out.data)[n * out.stride + k] = from_float<T>(value_of(q, n, k) * factor);
}

enum rc cuda_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e) {
    TRY(check_dequantize(a, e));
    dim3 blocks(blocks_for(a->q->cols, BLOCK), grid_rows(a->q->rows));
    if (a->out.type == DTYPE_F32)
        decode<float><<<blocks, BLOCK, 0, state->stream>>>(*a->q, a->by_col, a->out);
    else if (a->out.type == DTYPE_BF16)
        decode<__nv_bfloat16><<<blocks, BLOCK, 0, state->stream>>>(*a->q, a->by_col, a->out);
    else
        return err_set(e, RC_UNSUPPORTED, "dequantize: into fp32 or bf16");
    LAUNCHED();
    return RC_OK;
}
