#include <string.h>

#include "kernels/cuda/device.cuh"

/* rows [T, D] as stored → out */
static __global__ void widen_rows(const void *rows, enum dtype type, float multiplier, struct mat out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < out.rows * out.cols)
        ((float *)out.data)[i / out.cols * out.stride + i % out.cols] = load_stored(rows, type, i) * multiplier;
}

/* The table stays with the host, which picks the rows: it is as large as a block, and a window needs 2048 of its rows.
 */
enum rc cuda_embed(struct backend_state *state, const struct embed_args *a, struct err *e) {
    TRY(check_embed(a, e));
    int64_t count = a->out.rows * a->out.cols;
    if (count == 0) return RC_OK;
    size_t row_bytes = (size_t)a->out.cols * dtype_size(a->type), bytes = (size_t)a->out.rows * row_bytes;
    void *staging, *rows;
    TRY(cuda_staging(state, bytes, &staging, e));
    TRY(cuda_scratch(state, bytes, &rows, e));
    for (int64_t t = 0; t < a->out.rows; t++)
        memcpy((char *)staging + (size_t)t * row_bytes, (const char *)a->table + (size_t)a->ids[t] * row_bytes,
               row_bytes);
    CUDA_TRY(cudaMemcpyAsync(rows, staging, bytes, cudaMemcpyHostToDevice, state->stream));
    widen_rows<<<blocks_for(count, BLOCK), BLOCK, 0, state->stream>>>(rows, a->type, a->multiplier, a->out);
    LAUNCHED();
    return RC_OK;
}
