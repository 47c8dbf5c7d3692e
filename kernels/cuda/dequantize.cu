#include <limits.h>
#include <math.h>

#include "kernels/cuda/e4m3.cuh"

static __device__ inline float value_of(const struct quantized &q, int64_t n, int64_t k) {
    uint8_t code = q.codes[n * q.cols + k];
    if (q.fp8) return e4m3_decode(code) * q.scale[n];
    int64_t g = n * q.groups + (q.group_of != NULL ? q.group_of[k] : k / q.group);
    return ((float)code - q.zero[g]) * q.scale[g];
}

/* One thread one weight of a row; a row of blocks goes through rows. */
template <typename T> static __global__ void decode(struct quantized q, const float *by_col, struct mat out) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= q.cols) return;
    float factor = by_col != NULL ? by_col[k] : 1;
    for (int64_t n = blockIdx.y; n < q.rows; n += gridDim.y)
        ((T *)out.data)[n * out.stride + k] = from_float<T>(value_of(q, n, k) * factor);
}

/* The same, EIGHT neighbours of one group a thread. */
static const int EIGHT = 8;
template <typename T> static __global__ void decode_eights(struct quantized q, const float *by_col, struct mat out) {
    int64_t k = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * EIGHT;
    if (k >= q.cols) return;
    int group = (int)k / q.group;
    for (int64_t n = blockIdx.y; n < q.rows; n += gridDim.y) {
        struct vector<uint8_t, EIGHT> codes = load_vector<uint8_t, EIGHT>(q.codes + n * q.cols + k);
        float zero = q.zero[n * q.groups + group], scale = q.scale[n * q.groups + group];
        struct vector<T, EIGHT> values;
        for (int i = 0; i < EIGHT; i++) {
            float factor = by_col != NULL ? by_col[k + i] : 1;
            values.at[i] = from_float<T>(((float)codes.at[i] - zero) * scale * factor);
        }
        store_vector((T *)out.data + n * out.stride + k, values);
    }
}

static bool in_eights(const struct dequantize_args *a) {
    const struct quantized *q = a->q;
    return !q->fp8 && q->group_of == NULL && q->group % EIGHT == 0 && q->cols % EIGHT == 0 && q->cols <= INT_MAX &&
           (uintptr_t)q->codes % EIGHT == 0 && rows_aligned(&a->out, 1, EIGHT * dtype_size(a->out.type));
}

template <typename T> static void launch(struct backend_state *state, const struct dequantize_args *a) {
    bool eights = in_eights(a);
    dim3 blocks(blocks_for(a->q->cols, (int64_t)BLOCK * (eights ? EIGHT : 1)), grid_rows(a->q->rows));
    if (eights)
        decode_eights<T><<<blocks, BLOCK, 0, state->stream>>>(*a->q, a->by_col, a->out);
    else
        decode<T><<<blocks, BLOCK, 0, state->stream>>>(*a->q, a->by_col, a->out);
}

enum rc cuda_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e) {
    TRY(check_dequantize(a, e));
    if (a->out.type == DTYPE_F32)
        launch<float>(state, a);
    else if (a->out.type == DTYPE_BF16)
        launch<__nv_bfloat16>(state, a);
    else
        return err_set(e, RC_UNSUPPORTED, "dequantize: into fp32 or bf16");
    LAUNCHED();
    return RC_OK;
}
