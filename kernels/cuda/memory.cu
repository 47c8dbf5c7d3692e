#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.cuh"
extern "C" {
#include "base/sizes.h"
}

static const size_t ALIGNMENT = 256;
static const int64_t upload_chunk = 1 << 24; /* values converted at a time */

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

enum rc cuda_scratch(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    if (bytes > state->scratch_bytes) {
        cuda_free(state, state->scratch);
        state->scratch = NULL;
        state->scratch_bytes = 0;
        TRY(cuda_alloc(state, bytes, &state->scratch, e));
        state->scratch_bytes = bytes;
    }
    *memory = state->scratch;
    return RC_OK;
}

enum rc cuda_staging(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    CUDA_TRY(cudaStreamSynchronize(state->stream));
    if (bytes > state->staging_bytes) {
        cudaFreeHost(state->staging);
        state->staging = NULL;
        state->staging_bytes = 0;
        CUDA_TRY(cudaMallocHost(&state->staging, bytes));
        state->staging_bytes = bytes;
    }
    *memory = state->staging;
    return RC_OK;
}

enum rc cuda_clear(struct backend_state *state, void *memory, size_t bytes, struct err *e) {
    TRY(check_clear(memory, bytes, e));
    if (bytes > 0) CUDA_TRY(cudaMemsetAsync(memory, 0, bytes, state->stream));
    return RC_OK;
}

static __global__ void convert(const void *stored, enum dtype type, int64_t count, float *out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) out[i] = load_stored(stored, type, i);
}

static enum rc upload_converted(struct backend_state *state, const void *host, enum dtype type, int64_t count,
                                float *out, struct err *e) {
    size_t size = dtype_size(type);
    void *stored;
    TRY(cuda_scratch(state, (size_t)(count < upload_chunk ? count : upload_chunk) * size, &stored, e));
    for (int64_t at = 0; at < count; at += upload_chunk) {
        int64_t n = count - at < upload_chunk ? count - at : upload_chunk;
        const char *from = (const char *)host + (size_t)at * size;
        CUDA_TRY(cudaMemcpyAsync(stored, from, (size_t)n * size, cudaMemcpyHostToDevice, state->stream));
        convert<<<blocks_for(n, BLOCK), BLOCK, 0, state->stream>>>(stored, type, n, out + at);
        LAUNCHED();
    }
    return RC_OK;
}

enum rc cuda_upload(struct backend_state *state, const void *host, enum dtype type, int64_t count, float *out,
                    struct err *e) {
    TRY(check_upload(host, type, count, out, e));
    if (count == 0) return RC_OK;
    if (type != DTYPE_F32) return upload_converted(state, host, type, count, out, e);
    CUDA_TRY(cudaMemcpyAsync(out, host, (size_t)count * sizeof *out, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

enum rc cuda_download(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e) {
    TRY(check_download(device, bytes, host, e));
    if (bytes > 0) CUDA_TRY(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, state->stream));
    CUDA_TRY(cudaStreamSynchronize(state->stream));
    return RC_OK;
}
