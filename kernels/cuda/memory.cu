#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.cuh"
extern "C" {
#include "base/sizes.h"
}

static const size_t ALIGNMENT = 256;

enum rc cuda_failure(cudaError_t error, const char *call, struct err *e) {
    const char *name = cudaGetErrorName(error), *text = cudaGetErrorString(error);
    if (error == cudaErrorMemoryAllocation)
        return err_set(e, RC_NO_MEMORY,
                       "the GPU has no more memory (%s): end other programs on it, use shorter windows, or set "
                       "--vram-limit below what is free",
                       call);
    return err_set(e, RC_UNAVAILABLE, "the GPU failed with %s in %s: %s", name, call, text);
}

enum rc cublas_failure(cublasStatus_t status, const char *call, struct err *e) {
    if (status == CUBLAS_STATUS_ALLOC_FAILED) return cuda_failure(cudaErrorMemoryAllocation, call, e);
    return err_set(e, RC_UNAVAILABLE, "cuBLAS failed with %s in %s", cublasGetStatusName(status), call);
}

static enum rc over_limit(const struct backend_state *state, size_t bytes, struct err *e) {
    char needed[24], held[24], limit[24];
    return err_set(e, RC_NO_MEMORY,
                   "needs %s more, holds %s of the %s that --vram-limit allows: raise it, or use "
                   "shorter windows",
                   size_format((int64_t)bytes, needed, sizeof needed), size_format(state->held, held, sizeof held),
                   size_format(state->limit, limit, sizeof limit));
}

static enum rc remember(struct backend_state *state, void *memory, size_t bytes, struct err *e) {
    if (state->block_count == state->block_room) {
        size_t room = state->block_room ? 2 * state->block_room : 64;
        struct block *blocks = (struct block *)realloc(state->blocks, room * sizeof *blocks);
        if (blocks == NULL) return err_set(e, RC_NO_MEMORY, "no memory to keep account of the GPU's");
        state->blocks = blocks;
        state->block_room = room;
    }
    state->blocks[state->block_count++] = (struct block){memory, bytes};
    return RC_OK;
}

enum rc cuda_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    *memory = NULL;
    if (bytes > (size_t)INT64_MAX / 2) return over_limit(state, bytes, e);
    size_t rounded = bytes ? (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : ALIGNMENT;
    if (state->limit > 0 && (int64_t)rounded > state->limit - state->held) return over_limit(state, bytes, e);
    void *block = NULL;
    CUDA_TRY(cudaMallocAsync(&block, rounded, state->stream));
    enum rc rc = remember(state, block, rounded, e);
    if (rc != RC_OK) {
        cudaFreeAsync(block, state->stream);
        return rc;
    }
    state->held += (int64_t)rounded;
    if (state->held > state->peak) state->peak = state->held;
    *memory = block;
    return RC_OK;
}

void cuda_free(struct backend_state *state, void *memory) {
    if (memory == NULL) return;
    size_t i = state->block_count;
    while (i > 0 && state->blocks[i - 1].memory != memory)
        i--;
    if (i == 0) return;
    state->held -= (int64_t)state->blocks[i - 1].bytes;
    state->blocks[i - 1] = state->blocks[--state->block_count];
    cudaFreeAsync(memory, state->stream);
}

static enum rc grow(struct backend_state *state, struct buffer *b, size_t bytes, struct err *e) {
    if (bytes <= b->bytes) return RC_OK;
    cuda_free(state, b->memory);
    *b = {NULL, 0};
    TRY(cuda_alloc(state, bytes, &b->memory, e));
    b->bytes = bytes;
    return RC_OK;
}

enum rc cuda_scratch(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    TRY(grow(state, &state->scratch, bytes, e));
    *memory = state->scratch.memory;
    return RC_OK;
}

enum rc cuda_staging(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    struct buffer *b = &state->staging;
    CUDA_TRY(cudaStreamSynchronize(state->stream));
    if (bytes > b->bytes) {
        cudaFreeHost(b->memory);
        *b = {NULL, 0};
        CUDA_TRY(cudaMallocHost(&b->memory, bytes));
        b->bytes = bytes;
    }
    *memory = b->memory;
    return RC_OK;
}

/* What the card has free, what the pool keeps of what was given back, and no more than the limit. */
int64_t cuda_room(struct backend_state *state) {
    size_t available = 0, total = 0;
    uint64_t reserved = 0, used = 0;
    cudaMemPool_t pool;
    if (cudaMemGetInfo(&available, &total) != cudaSuccess || cudaDeviceGetDefaultMemPool(&pool, state->device) ||
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved) ||
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used))
        return 0;
    int64_t room = (int64_t)(available + (reserved - used)), allowed = state->limit - state->held;
    return state->limit > 0 && allowed < room ? allowed : room;
}

enum rc cuda_keep_pace(struct backend_state *state, struct err *e) {
    cudaEvent_t event = state->paces[state->pace++ % 2];
    CUDA_TRY(cudaEventSynchronize(event));
    CUDA_TRY(cudaEventRecord(event, state->stream));
    return RC_OK;
}

enum rc cuda_clear(struct backend_state *state, void *memory, size_t bytes, struct err *e) {
    TRY(check_clear(memory, bytes, e));
    if (bytes > 0) CUDA_TRY(cudaMemsetAsync(memory, 0, bytes, state->stream));
    return RC_OK;
}

/* Small things: the walk's weights come by cuda_load. */
enum rc cuda_upload(struct backend_state *state, const void *host, enum dtype type, int64_t count, float *out,
                    struct err *e) {
    TRY(check_upload(host, type, count, out, e));
    if (count == 0) return RC_OK;
    if (type != DTYPE_F32) {
        struct load_item item = {host, type, count, out, DTYPE_F32};
        TRY(cuda_load(state, &item, 1, e));
        return cuda_loaded(state, e);
    }
    CUDA_TRY(cudaMemcpyAsync(out, host, (size_t)count * sizeof *out, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

enum rc cuda_read_value(struct backend_state *state, const struct mat *m, int64_t row, int64_t col, float *value,
                        struct err *e) {
    size_t size = dtype_size(m->type);
    char stored[4] = {};
    TRY(cuda_download(state, (const char *)m->data + (size_t)(row * m->stride + col) * size, size, stored, e));
    if (m->type == DTYPE_F32)
        memcpy(value, stored, sizeof *value);
    else if (m->type == DTYPE_BF16)
        *value = __bfloat162float(*(__nv_bfloat16 *)stored);
    else
        *value = __half2float(*(__half *)stored);
    return RC_OK;
}

static __global__ void narrow(const void *stored, enum dtype type, int64_t count, __nv_bfloat16 *out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) out[i] = __float2bfloat16_rn(load_stored(stored, type, i));
}

enum rc cuda_converted(struct backend_state *state, const struct mat *m, struct mat *out, struct err *e) {
    int64_t count = m->rows * m->cols;
    TRY(grow(state, &state->converted, (size_t)count * sizeof(__nv_bfloat16), e));
    *out = {state->converted.memory, m->rows, m->cols, m->cols, DTYPE_BF16};
    narrow<<<blocks_for(count, BLOCK), BLOCK, 0, state->stream>>>(m->data, m->type, count, (__nv_bfloat16 *)out->data);
    LAUNCHED();
    return RC_OK;
}

static enum rc copy_beside(struct backend_state *state, const void *from, size_t bytes, void *to, cudaEvent_t done,
                           struct err *e) {
    const struct copies *c = &state->copies;
    if (bytes == 0) return RC_OK;
    CUDA_TRY(cudaEventRecord(c->may_begin, state->stream));
    CUDA_TRY(cudaStreamWaitEvent(c->stream, c->may_begin));
    CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, c->stream));
    CUDA_TRY(cudaEventRecord(done, c->stream));
    return RC_OK;
}

enum rc cuda_offload(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e) {
    TRY(check_download(device, bytes, host, e));
    return copy_beside(state, device, bytes, host, state->copies.offloaded, e);
}

enum rc cuda_fetch(struct backend_state *state, const void *host, size_t bytes, void *device, struct err *e) {
    TRY(check_download(host, bytes, device, e));
    return copy_beside(state, host, bytes, device, state->copies.fetched, e);
}

enum rc cuda_offloaded(struct backend_state *state, struct err *e) {
    CUDA_TRY(cudaStreamWaitEvent(state->stream, state->copies.offloaded));
    return RC_OK;
}

enum rc cuda_fetched(struct backend_state *state, struct err *e) {
    CUDA_TRY(cudaStreamWaitEvent(state->stream, state->copies.fetched));
    return RC_OK;
}

enum rc cuda_download(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e) {
    TRY(check_download(device, bytes, host, e));
    if (bytes > 0) CUDA_TRY(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, state->stream));
    CUDA_TRY(cudaStreamSynchronize(state->stream));
    return RC_OK;
}
