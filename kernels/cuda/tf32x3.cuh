/* Products of fp32 on the tensor cores: x = high + low, both TF32, and three products of those (kernels/lab/tf32x3.cu).
 *
 * Fragments are those of mma.m16n8k8: lane l of a warp has of a [16, 8] the rows l / 4 and l / 4 + 8 at the columns l
 * mod 4 and l mod 4 + 4; of b [8, 8] the same rows at the column l / 4; of c [16, 8] the rows l / 4 and l / 4 + 8 at
 * the columns 2·(l mod 4) and the next. Tensor cores do not round sums to nearest: long ones are best cut and added up
 * outside. */
#ifndef HSAQ_KERNELS_CUDA_TF32X3_CUH
#define HSAQ_KERNELS_CUDA_TF32X3_CUH

#include "kernels/cuda/device.cuh"

/* Where the four sums of a thread are in those of a fragment [16, 8]. */
static __device__ inline int fragment_row(int i) {
    return (int)threadIdx.x % WARP / 4 + i / 2 * 8;
}
static __device__ inline int fragment_col(int i) {
    return (int)threadIdx.x % 4 * 2 + i % 2;
}

/* x = high + low, of which the tensor cores read the first 11 bits each. */
struct halves {
    unsigned high, low;
};
static __device__ inline struct halves split(float x) {
    unsigned high = __float_as_uint(x) & 0xffffe000u;
    return {high, __float_as_uint(x - __uint_as_float(high))};
}

/* c [16, 8] += a [16, 8] · b [8, 8] */
static __device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* c [16, 8·N] += a [16, 8] · b [8, 8·N]. A sum's three products lie apart, as each has to wait for the one before. */
template <int N>
static __device__ inline void multiply_exactly(float (&c)[N][4], const float (&a)[4], const float (&b)[N][2]) {
    unsigned high[4], low[4];
    struct halves of_b[N][2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        struct halves h = split(a[i]);
        high[i] = h.high;
        low[i] = h.low;
    }
#pragma unroll
    for (int i = 0; i < 2 * N; i++)
        of_b[i / 2][i % 2] = split(b[i / 2][i % 2]);
#pragma unroll
    for (int n = 0; n < N; n++)
        multiply_add(c[n], low, of_b[n][0].high, of_b[n][1].high);
#pragma unroll
    for (int n = 0; n < N; n++)
        multiply_add(c[n], high, of_b[n][0].low, of_b[n][1].low);
#pragma unroll
    for (int n = 0; n < N; n++)
        multiply_add(c[n], high, of_b[n][0].high, of_b[n][1].high);
}

#endif
