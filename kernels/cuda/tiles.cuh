/* Tiles of bf16 matrices on the tensor cores: what attention (flash.cu) and its gradients (flash_back.cu) share.
 *
 * Fragments are those of mma.m16n8k16: lane l of a warp holds the rows l / 4 and l / 4 + 8 of a 16-row tile, and of
 * each 8 columns the pair 2·(l mod 4). */
#ifndef HSAQ_KERNELS_CUDA_TILES_CUH
#define HSAQ_KERNELS_CUDA_TILES_CUH

#include "kernels/cuda/device.cuh"

static const int WARPS = 4;
static const int THREADS = WARPS * WARP;
#define LOG2_E 1.4426950408889634f

typedef __nv_bfloat16 bf16;

static __device__ inline unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes; zeros when they are not there. */
static __device__ inline void copy_async(void *to, const void *from, bool there) {
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}
static __device__ inline void commit_copies(void) {
    asm volatile("cp.async.commit_group;");
}
static __device__ inline void wait_for_copies(void) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

static __device__ inline void load_matrices(unsigned r[4], const bf16 *at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(at)));
}
static __device__ inline void load_matrices_transposed(unsigned r[4], const bf16 *at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(at)));
}

/* c [16, 8] += a [16, 16] · b [16, 8] */
static __device__ inline void multiply_add(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ inline unsigned pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(unsigned *)&pair;
}

static __device__ inline float max_of_quad(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
static __device__ inline float sum_of_quad(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/* One head's part of a matrix within a window. */
struct head {
    const bf16 *data; /* of token 0 */
    int64_t stride;
    int tokens, dim;
};

static __device__ inline struct head head_of(const struct mat &m, int64_t first, int head_index,
                                             const struct attention_args &a) {
    const bf16 *data = (const bf16 *)m.data + first * m.stride + (int64_t)head_index * a.head_dim;
    return {data, m.stride, (int)a.length, a.head_dim};
}

/* Tokens [from, from + ROWS) of a head → shared memory [ROWS, STRIDE]; zeros beyond its end and beside its channels.
 * ALIGNED: rows begin at 16 bytes and channels come in eights. */
template <int ROWS, int DIM, bool ALIGNED>
static __device__ inline void load_rows(bf16 *to, const struct head &h, int from) {
    const int stride = DIM + 8;
    if constexpr (ALIGNED) {
        for (int i = threadIdx.x; i < ROWS * (DIM / 8); i += THREADS) {
            int row = i / (DIM / 8), col = i % (DIM / 8) * 8;
            bool there = from + row < h.tokens && col < h.dim;
            copy_async(to + row * stride + col, there ? h.data + (from + row) * h.stride + col : h.data, there);
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * DIM; i += THREADS) {
            int row = i / DIM, col = i % DIM;
            bool there = from + row < h.tokens && col < h.dim;
            to[row * stride + col] = there ? h.data[(from + row) * h.stride + col] : __float2bfloat16_rn(0);
        }
    }
}

/* s [16·TILES, COLS] = q · kᵀ */
template <int DIM, int TILES, int COLS>
static __device__ inline void score_tile(float s[TILES][COLS / 8][4], const bf16 *q, const bf16 *k) {
    const int stride = DIM + 8, lane = threadIdx.x % WARP;
    for (int t = 0; t < TILES; t++)
        for (int n = 0; n < COLS / 8; n++)
            for (int i = 0; i < 4; i++)
                s[t][n][i] = 0;
#pragma unroll
    for (int d = 0; d < DIM; d += 16) {
        unsigned a[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
            load_matrices(a[t], q + (t * 16 + lane % 16) * stride + d + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < COLS; n += 16) {
            unsigned b[4];
            load_matrices(b, k + (n + lane % 8 + lane / 16 * 8) * stride + d + lane / 8 % 2 * 8);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply_add(s[t][n / 8], a[t], b[0], b[1]);
                multiply_add(s[t][n / 8 + 1], a[t], b[2], b[3]);
            }
        }
    }
}

/* out [16·TILES, DIM] += p · v, p [16·TILES, COLS] rounded to bf16 */
template <int DIM, int TILES, int COLS>
static __device__ inline void mix_tile(float out[TILES][DIM / 8][4], const float p[TILES][COLS / 8][4], const bf16 *v) {
    const int stride = DIM + 8, lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < COLS; k += 16) {
        unsigned a[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = &p[t][k / 8 + i / 2][i % 2 * 2];
                a[t][i] = pack(pair[0], pair[1]);
            }
#pragma unroll
        for (int d = 0; d < DIM; d += 16) {
            unsigned b[4];
            load_matrices_transposed(b, v + (k + lane % 16) * stride + d + lane / 16 * 8);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply_add(out[t][d / 8], a[t], b[0], b[1]);
                multiply_add(out[t][d / 8 + 1], a[t], b[2], b[3]);
            }
        }
    }
}

/* This lane's share of row `half` of a 16-row tile, times `factor`, as row `at` of the head. */
template <int DIM>
static __device__ inline void store_row(const float values[DIM / 8][4], int half, float factor, const struct head &out,
                                        int at, bool pairs) {
    bf16 *to = (bf16 *)out.data + at * out.stride;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
        int col = n * 8 + threadIdx.x % WARP % 4 * 2;
        float low = values[n][2 * half] * factor, high = values[n][2 * half + 1] * factor;
        if (pairs && col < out.dim) {
            *(unsigned *)(to + col) = pack(low, high);
        } else {
            if (col < out.dim) to[col] = __float2bfloat16_rn(low);
            if (col + 1 < out.dim) to[col + 1] = __float2bfloat16_rn(high);
        }
    }
}

#endif
