/* Attention in bf16 on the tensor cores: FlashAttention-2 (Dao 2023).
 *
 * One block of threads takes the query rows [row, row + ROWS) of one head of one window through all keys that they see,
 * KEYS at a time, and keeps the running maximum, sum and output of every row in registers: the scores of a tile exist
 * in registers only. While the products with one half of the tile run, the other half is on its way (cp.async). */
#include "kernels/cuda/tiles.cuh"

static const int KEYS = 64;

/* DIM: head_dim, up to the next size there is; TILES: 16-row tiles of each warp. */
template <int DIM, int TILES> struct tiling {
    static const int ROWS = WARPS * TILES * 16;
    static const int STRIDE = DIM + 8; /* in shared memory: eight rows of 16 bytes then lie in eight different banks */
    static const int Q = 0, K = ROWS * STRIDE, V = K + KEYS * STRIDE, END = V + KEYS * STRIDE; /* elements */
    static const size_t BYTES = END * sizeof(bf16);
};

/* What a warp holds of its rows. */
template <int DIM, int TILES> struct rows {
    float out[TILES][DIM / 8][4];
    float max[TILES][2], sum[TILES][2]; /* of rows l / 4 and l / 4 + 8; the sum is this lane's share */
};

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
            store_row<DIM>(r.out[t], half, factor, out, at, pairs);
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
        score_tile<DIM, TILES, KEYS>(s, warp_q, k_tile);
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
        mix_tile<DIM, TILES, KEYS>(r.out, s, v_tile);
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
