/* Device code that several kernels share: loading what a checkpoint stores, and sums over a block of threads. */
#ifndef HSAQ_KERNELS_CUDA_DEVICE_CUH
#define HSAQ_KERNELS_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/cuda.h"

static const int WARP = 32, BLOCK = 256; /* threads */

static inline unsigned blocks_for(int64_t count, int64_t per_block) {
    return (unsigned)((count + per_block - 1) / per_block);
}

static __device__ inline float load_stored(const void *values, enum dtype type, int64_t i) {
    if (type == DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)values)[i]);
    if (type == DTYPE_F16) return __half2float(((const __half *)values)[i]);
    return ((const float *)values)[i];
}

/* Every thread of a block of BLOCK gets the sum, taken in a fixed order. */
static __device__ inline double block_sum(double value) {
    __shared__ double partial[BLOCK / WARP];
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value += __shfl_down_sync(0xffffffffu, value, offset);
    __syncthreads(); /* the one before is read */
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = value;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < BLOCK / WARP; w++)
        sum += partial[w];
    return sum;
}

/* The largest value that any thread of the block brings; NaNs are passed over. */
static __device__ inline float block_max(float value) {
    __shared__ float partial[BLOCK / WARP];
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_down_sync(0xffffffffu, value, offset));
    __syncthreads();
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = value;
    __syncthreads();
    float max = partial[0];
    for (int w = 1; w < BLOCK / WARP; w++)
        max = fmaxf(max, partial[w]);
    return max;
}

#endif
