/* Device code that several kernels share: values of every stored type, several at a time, and sums over threads. */
#ifndef HSAQ_KERNELS_CUDA_DEVICE_CUH
#define HSAQ_KERNELS_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/cuda.h"

static const int WARP = 32, BLOCK = 256; /* threads */
static const int64_t GRID_MAX = 65535;   /* blocks in a grid's second and third direction */

static inline unsigned blocks_for(int64_t count, int64_t per_block) {
    return (unsigned)((count + per_block - 1) / per_block);
}

static __device__ inline float load_stored(const void *values, enum dtype type, int64_t i) {
    if (type == DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)values)[i]);
    if (type == DTYPE_F16) return __half2float(((const __half *)values)[i]);
    return ((const float *)values)[i];
}

/* fp32 and bf16 alone. */
static __device__ inline void store_as(void *values, enum dtype type, int64_t i, float value) {
    if (type == DTYPE_BF16)
        ((__nv_bfloat16 *)values)[i] = __float2bfloat16_rn(value);
    else
        ((float *)values)[i] = value;
}

/* As a product in H's type takes it. fp32: to the nearest TF32; left to the tensor cores, the surplus digits would be
 * cut off, always downwards. */
static __device__ inline void store_wide(double *to, float value) {
    *to = value;
}
static __device__ inline void store_wide(float *to, float value) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    *to = __uint_as_float(rounded);
}

static __device__ inline float to_float(float value) {
    return value;
}
static __device__ inline float to_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}
static __device__ inline float to_float(__half value) {
    return __half2float(value);
}
template <typename T> static __device__ inline T from_float(float value);
template <> __device__ inline float from_float<float>(float value) {
    return value;
}
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

/* Neighbours that are read and written in one go: their address is a multiple of their size. */
template <typename T, int COUNT> struct alignas(sizeof(T) * COUNT) vector { T at[COUNT]; };
template <typename T, int COUNT> static __device__ inline struct vector<T, COUNT> load_vector(const T *from) {
    return *(const struct vector<T, COUNT> *)from;
} template <typename T, int COUNT> static __device__ inline void store_vector(T *to, struct vector<T, COUNT> v) {
    *(struct vector<T, COUNT> *)to = v;
}

/* Each row of each matrix begins at a multiple of `bytes` and is one long. */
static inline bool rows_aligned(const struct mat *all, int count, size_t bytes) {
    for (int i = 0; i < count; i++) {
        size_t size = dtype_size(all[i].type);
        if ((uintptr_t)all[i].data % bytes || (size_t)all[i].stride * size % bytes ||
            (size_t)all[i].cols * size % bytes)
            return false;
    }
    return true;
}

/* One row of blocks a row of a matrix, as far as a grid goes: kernels step by gridDim.y to the rows beyond. */
static inline unsigned grid_rows(int64_t rows) {
    return (unsigned)(rows < GRID_MAX ? rows : GRID_MAX);
}

/* What a Linear reads or writes has the type of this backend. */
static inline enum rc check_activation(const struct backend_state *state, const struct mat *m, struct err *e) {
    if (m->data == NULL || m->type == state->activation) return RC_OK;
    return err_set(e, RC_UNSUPPORTED, "a matrix of type %d where this backend computes in type %d", (int)m->type,
                   (int)state->activation);
}

/* Every thread of a warp gets the sum. */
static __device__ inline double warp_sum(double value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
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
