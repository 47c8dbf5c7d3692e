#include <string.h>

#include "kernels/cuda/device.cuh"

/* rows [T, D] as stored → out */
static __global__ void widen_rows(const void *rows, enum dtype type, float multiplier, struct mat out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < out.rows * out.cols)
        ((float *)out.data)[i / out.cols * out.stride + i % out.cols] = load_stored(rows, type, i) * multiplier;
}

/* out[t] = table[ids[t]] · multiplier; one row of blocks a token. */
static __global__ void gather_rows(const void *table, enum dtype type, const int32_t *ids, float multiplier,
                                   struct mat out) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= out.cols) return;
    for (int64_t t = blockIdx.y; t < out.rows; t += gridDim.y)
        ((float *)out.data)[t * out.stride + k] = load_stored(table, type, ids[t] * out.cols + k) * multiplier;
}

static enum rc gather_on_device(struct backend_state *state, const struct embed_args *a, struct err *e) {
    void *staging, *ids;
    size_t bytes = (size_t)a->out.rows * sizeof(int32_t);
    TRY(cuda_staging(state, bytes, &staging, e));
    TRY(cuda_scratch(state, bytes, &ids, e));
    memcpy(staging, a->ids, bytes);
    CUDA_TRY(cudaMemcpyAsync(ids, staging, bytes, cudaMemcpyHostToDevice, state->stream));
    dim3 blocks(blocks_for(a->out.cols, BLOCK), grid_rows(a->out.rows));
    gather_rows<<<blocks, BLOCK, 0, state->stream>>>(a->on_device, a->type, (const int32_t *)ids, a->multiplier,
                                                     a->out);
    LAUNCHED();
    return RC_OK;
}

/* The table stays with the host, which picks the rows: it is as large as a block, and a window needs 2048 of its rows.
 */
enum rc cuda_embed(struct backend_state *state, const struct embed_args *a, struct err *e) {
    TRY(check_embed(a, e));
    int64_t count = a->out.rows * a->out.cols;
    if (count == 0) return RC_OK;
    if (a->on_device) return gather_on_device(state, a, e);
    size_t row_bytes = (size_t)a->out.cols * dtype_size(a->type), bytes = (size_t)a->out.rows * row_bytes;
    void *staging, *rows;
    TRY(cuda_staging(state, bytes, &staging, e));
    TRY(cuda_scratch(state, bytes, &rows, e));
#pragma omp parallel for num_threads(4) /* one thread does not fill the bus */
    for (int64_t t = 0; t < a->out.rows; t++)
        memcpy((char *)staging + (size_t)t * row_bytes, (const char *)a->table + (size_t)a->ids[t] * row_bytes,
               row_bytes);
    CUDA_TRY(cudaMemcpyAsync(rows, staging, bytes, cudaMemcpyHostToDevice, state->stream));
    widen_rows<<<blocks_for(count, BLOCK), BLOCK, 0, state->stream>>>(rows, a->type, a->multiplier, a->out);
    LAUNCHED();
    return RC_OK;
}
