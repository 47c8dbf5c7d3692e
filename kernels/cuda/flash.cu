/* Attention in bf16 on the tensor cores: FlashAttention-2 (Dao 2023).
 *
 * One block of threads takes the query rows [row, row + ROWS) of one head of one window through all keys that they see,
 * KEYS at a time, and keeps the running maximum, sum and output of every row in registers: the scores of a tile exist
 * in registers only. While the products with one half of the tile run, the other half is on its way (cp.async).
 *
 * Fragments are those of mma.m16n8k16: lane l of a warp holds the rows l / 4 and l / 4 + 8 of a 16-row tile, and of
 * each 8 columns the pair 2·(l mod 4). */
#include "kernels/cuda/device.cuh"

static const int WARPS = 4, KEYS = 64;
static const int THREADS = WARPS * WARP;
#define LOG2_E 1.4426950408889634f

typedef __nv_bfloat16 bf16;

/* DIM: head_dim, up to the next size there is; TILES: 16-row tiles of each warp. */
template <int DIM, int TILES> struct tiling {
    static const int ROWS = WARPS * TILES * 16;
    static const int STRIDE = DIM + 8; /* in shared memory: eight rows of 16 bytes then lie in eight different banks */
    static const int Q = 0, K = ROWS * STRIDE, V = K + KEYS * STRIDE, END = V + KEYS * STRIDE; /* elements */
    static const size_t BYTES = END * sizeof(bf16);
};

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

/* What a warp holds of its rows. */
template <int DIM, int TILES> struct rows {
    float out[TILES][DIM / 8][4];
    float max[TILES][2], sum[TILES][2]; /* of rows l / 4 and l / 4 + 8; the sum is this lane's share */
};

/* s [16·TILES, KEYS] = q · kᵀ */
template <int DIM, int TILES>
static __device__ inline void score_tile(float s[TILES][KEYS / 8][4], const bf16 *q, const bf16 *k) {
    const int stride = DIM + 8, lane = threadIdx.x % WARP;
    for (int t = 0; t < TILES; t++)
        for (int n = 0; n < KEYS / 8; n++)
            for (int i = 0; i < 4; i++)
                s[t][n][i] = 0;
#pragma unroll
    for (int d = 0; d < DIM; d += 16) {
        unsigned a[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
            load_matrices(a[t], q + (t * 16 + lane % 16) * stride + d + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < KEYS; n += 16) {
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

/* Scores of keys that a row does not see become −∞. row, key: of the tile's first. */
template <int TILES>
static __device__ inline void mask_tile(float s[TILES][KEYS / 8][4], int row, int key, int window) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = row + t * 16 + lane / 4 + i / 2 * 8, c = key + n * 8 + lane % 4 * 2 + i % 2;
                if (c > r || (window > 0 && c <= r - window)) s[t][n][i] = -INFINITY;
            }
}

/* Takes one row's scores in: s becomes e^(scale·s − max), earlier sums and outputs shrink to the new maximum. */
template <int DIM, int TILES>
static __device__ inline void softmax_row(struct rows<DIM, TILES> &r, float s[KEYS / 8][4], int t, int half,
                                          float scale) {
    float max = r.max[t][half];
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        max = fmaxf(max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    max = max_of_quad(max);
    float base = max == -INFINITY ? 0 : max * scale, factor = exp2f(r.max[t][half] * scale - base), sum = 0;
    r.max[t][half] = max;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
            s[n][i] = exp2f(s[n][i] * scale - base);
            sum += s[n][i];
        }
    r.sum[t][half] = r.sum[t][half] * factor + sum;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
        r.out[t][n][2 * half] *= factor;
        r.out[t][n][2 * half + 1] *= factor;
    }
}

/* out += p · v */
template <int DIM, int TILES>
static __device__ inline void mix_tile(struct rows<DIM, TILES> &r, const float p[TILES][KEYS / 8][4], const bf16 *v) {
    const int stride = DIM + 8, lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < KEYS; k += 16) {
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
                multiply_add(r.out[t][d / 8], a[t], b[0], b[1]);
                multiply_add(r.out[t][d / 8 + 1], a[t], b[2], b[3]);
            }
        }
    }
}

/* row: of the warp's first. */
template <int DIM, int TILES>
static __device__ inline void store_rows(const struct rows<DIM, TILES> &r, const struct head &out, int row,
                                         bool pairs) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = row + t * 16 + lane / 4 + half * 8;
            float factor = 1.0f / sum_of_quad(r.sum[t][half]);
            if (at >= out.tokens) continue;
            bf16 *to = (bf16 *)out.data + at * out.stride;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                int col = n * 8 + lane % 4 * 2;
                float low = r.out[t][n][2 * half] * factor, high = r.out[t][n][2 * half + 1] * factor;
                if (pairs && col < out.dim) {
                    *(unsigned *)(to + col) = pack(low, high);
                } else {
                    if (col < out.dim) to[col] = __float2bfloat16_rn(low);
                    if (col + 1 < out.dim) to[col + 1] = __float2bfloat16_rn(high);
                }
            }
        }
}

/* Grid: [row tiles, the longest first; heads; windows]. */
template <int DIM, int TILES, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS) attend(struct attention_args a) {
    typedef struct tiling<DIM, TILES> L;
    extern __shared__ __align__(16) bf16 memory[];
    bf16 *q_tile = memory + L::Q, *k_tile = memory + L::K, *v_tile = memory + L::V;
    int kv_head = blockIdx.y / (a.heads / a.kv_heads), row = (int)(gridDim.x - 1 - blockIdx.x) * L::ROWS;
    int64_t first = (int64_t)blockIdx.z * a.length;
    struct head q = head_of(a.q, first, blockIdx.y, a), k = head_of(a.k, first, kv_head, a),
                v = head_of(a.v, first, kv_head, a), out = head_of(a.out, first, blockIdx.y, a);
    int warp_row = row + (int)(threadIdx.x / WARP) * TILES * 16;
    const bf16 *warp_q = q_tile + (warp_row - row) * L::STRIDE;
    int begin = a.window > 0 && row + 1 > a.window ? (row + 1 - a.window) / KEYS * KEYS : 0;
    int end = row + L::ROWS < (int)a.length ? row + L::ROWS : (int)a.length;
    float scale = a.scale * LOG2_E;
    struct rows<DIM, TILES> r;
    for (int t = 0; t < TILES; t++) {
        for (int half = 0; half < 2; half++) {
            r.max[t][half] = -INFINITY;
            r.sum[t][half] = 0;
        }
        for (int n = 0; n < DIM / 8; n++)
            for (int i = 0; i < 4; i++)
                r.out[t][n][i] = 0;
    }
    load_rows<L::ROWS, DIM, ALIGNED>(q_tile, q, row);
    load_rows<KEYS, DIM, ALIGNED>(k_tile, k, begin);
    commit_copies();
    for (int key = begin; key < end; key += KEYS) {
        float s[TILES][KEYS / 8][4];
        wait_for_copies();
        __syncthreads(); /* k is there, and every warp is done with v */
        load_rows<KEYS, DIM, ALIGNED>(v_tile, v, key);
        commit_copies();
        score_tile<DIM, TILES>(s, warp_q, k_tile);
        if (key + KEYS > warp_row || (a.window > 0 && key + a.window <= warp_row + TILES * 16))
            mask_tile<TILES>(s, warp_row, key, a.window);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                softmax_row(r, s[t], t, half, scale);
        wait_for_copies();
        __syncthreads(); /* v is there, and every warp is done with k */
        if (key + KEYS < end) load_rows<KEYS, DIM, ALIGNED>(k_tile, k, key + KEYS);
        commit_copies();
        mix_tile(r, s, v_tile);
    }
    store_rows(r, out, warp_row, ALIGNED);
}

template <int DIM, int TILES, bool ALIGNED>
static enum rc launch(struct backend_state *state, const struct attention_args *a, struct err *e) {
    typedef struct tiling<DIM, TILES> L;
    dim3 blocks(blocks_for(a->length, L::ROWS), (unsigned)a->heads, (unsigned)(a->q.rows / a->length));
    CUDA_TRY(
        cudaFuncSetAttribute(attend<DIM, TILES, ALIGNED>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)L::BYTES));
    attend<DIM, TILES, ALIGNED><<<blocks, THREADS, L::BYTES, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}

template <bool ALIGNED>
static enum rc launch_for(struct backend_state *state, const struct attention_args *a, struct err *e) {
    if (a->head_dim <= 64) return launch<64, 2, ALIGNED>(state, a, e);
    if (a->head_dim <= 96) return launch<96, 2, ALIGNED>(state, a, e);
    if (a->head_dim <= 128) return launch<128, 2, ALIGNED>(state, a, e);
    return launch<256, 1, ALIGNED>(state, a, e);
}

static struct attention_args part_of(const struct attention_args *a, int64_t first, int64_t rows) {
    struct attention_args part = *a;
    for (struct mat *m : {&part.q, &part.k, &part.v, &part.out})
        *m = mat_rows(*m, first, rows);
    return part;
}

enum rc cuda_flash_attention(struct backend_state *state, const struct attention_args *a, struct err *e) {
    if (a->head_dim > 256)
        return err_set(e, RC_UNSUPPORTED, "attention: heads of %d channels: this backend has up to 256 in bf16",
                       a->head_dim);
    TRY(check_activation(state, &a->k, e));
    TRY(check_activation(state, &a->v, e));
    TRY(check_activation(state, &a->out, e));
    const struct mat all[] = {a->q, a->k, a->v, a->out};
    bool aligned = rows_aligned(all, 4, 16) && a->head_dim % 8 == 0;
    int64_t most = GRID_MAX * a->length;
    for (int64_t first = 0; first < a->q.rows; first += most) {
        struct attention_args part = part_of(a, first, a->q.rows - first < most ? a->q.rows - first : most);
        TRY(aligned ? launch_for<true>(state, &part, e) : launch_for<false>(state, &part, e));
    }
    return RC_OK;
}
