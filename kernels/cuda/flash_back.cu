/* The gradients of attention in bf16 on the tensor cores, after FlashAttention-2 (Dao 2023): scores and probabilities
 * are recomputed tile by tile from each query's log-sum-exp and exist in registers only.
 *
 * Every sum has one owner, so that repeated runs have the same bits: dq is summed over keys by the block that has the
 * queries, dk and dv over queries and the heads of a group by the block that has the keys. What that recomputes twice
 * takes the place of atomic additions. Both are the same products with the sides changed: a warp holds rows (queries,
 * or keys) and takes columns (keys, or queries) COLS at a time. */
#include "kernels/cuda/tiles.cuh"

/* DIM: head_dim, up to the next size there is; TILES: 16-row tiles of each warp. In shared memory lie two matrices of
 * the block's rows and two of the columns at hand. */
template <int DIM, int TILES> struct tiling {
    static const int ROWS = WARPS * TILES * 16, COLS = 32;
    static const int STRIDE = DIM + 8; /* eight rows of 16 bytes then lie in eight different banks */
    static const int ROWS_1 = 0, ROWS_2 = ROWS * STRIDE, COLS_1 = 2 * ROWS * STRIDE, COLS_2 = COLS_1 + COLS * STRIDE;
    static const size_t BYTES = (COLS_2 + COLS * STRIDE) * sizeof(bf16);
};

/* [windows, heads, length] of each query: log2 Σ 2^(scale·log2 e·s) over the keys it sees, and dout·out. */
struct query_sums {
    float *log_sum, *dot;
};

static __device__ inline int64_t sums_at(const struct attention_args &a, int64_t window, int head) {
    return (window * a.heads + head) * a.length;
}

/* --- what the gradients need of each query --- */

/* A warp for each head of each token. */
static __global__ void query_dots(struct attention_back_args b, struct query_sums sums) {
    const struct attention_args &a = b.forward;
    int64_t i = (int64_t)blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP, t = i / a.heads, head = i % a.heads;
    if (t >= a.q.rows) return;
    const bf16 *out = (const bf16 *)a.out.data + t * a.out.stride + head * a.head_dim;
    const bf16 *dout = (const bf16 *)b.dout.data + t * b.dout.stride + head * a.head_dim;
    double dot = 0;
    for (int d = threadIdx.x % WARP; d < a.head_dim; d += WARP)
        dot += to_float(out[d]) * to_float(dout[d]);
    dot = warp_sum(dot);
    if (threadIdx.x % WARP == 0) sums.dot[sums_at(a, t / a.length, (int)head) + t % a.length] = (float)dot;
}

/* Scores of pairs that do not see each other become −∞. row, col: of the tile's first; QUERY_ROWS: which of them are
 * the queries. */
template <int TILES, int COLS, bool QUERY_ROWS>
static __device__ inline void mask_tile(float s[TILES][COLS / 8][4], int row, int col, const struct attention_args &a) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < COLS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = row + t * 16 + lane / 4 + i / 2 * 8, c = col + n * 8 + lane % 4 * 2 + i % 2;
                int query = QUERY_ROWS ? r : c, key = QUERY_ROWS ? c : r;
                bool seen = key <= query && query < (int)a.length && (a.window == 0 || key > query - a.window);
                if (!seen) s[t][n][i] = -INFINITY;
            }
}

/* Whether any query of [query, query + queries) does not see a key of [key, key + keys), or does not exist. */
static __device__ inline bool cut(const struct attention_args &a, int query, int queries, int key, int keys) {
    return key + keys - 1 > query || query + queries > (int)a.length ||
           (a.window > 0 && key <= query + queries - 1 - a.window);
}

/* The first key that a row of queries from `row` sees, at a multiple of `step`. */
static __device__ inline int first_key(const struct attention_args &a, int row, int step) {
    return a.window > 0 && row + 1 > a.window ? (row + 1 - a.window) / step * step : 0;
}

/* What a lane holds of its rows' sums. */
struct running {
    float max, sum;
};

template <int COLS>
static __device__ inline void take_row(struct running &r, const float s[COLS / 8][4], int half, float scale) {
    float max = r.max;
#pragma unroll
    for (int n = 0; n < COLS / 8; n++)
        max = fmaxf(max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    max = max_of_quad(max);
    float base = max == -INFINITY ? 0 : max * scale, sum = r.sum * exp2f(r.max * scale - base);
#pragma unroll
    for (int n = 0; n < COLS / 8; n++)
        sum += exp2f(s[n][2 * half] * scale - base) + exp2f(s[n][2 * half + 1] * scale - base);
    r = {max, sum};
}

/* Grid: [row tiles, the longest first; heads; windows]. */
template <int DIM, int TILES, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS) query_log_sums(struct attention_args a, float *log_sums) {
    typedef struct tiling<DIM, TILES> L;
    extern __shared__ __align__(16) bf16 memory[];
    bf16 *q_tile = memory + L::ROWS_1, *k_tile = memory + L::COLS_1, *next_tile = memory + L::COLS_2;
    int row = (int)(gridDim.x - 1 - blockIdx.x) * L::ROWS, end = min(row + L::ROWS, (int)a.length);
    int warp_row = row + (int)(threadIdx.x / WARP) * TILES * 16, lane = threadIdx.x % WARP;
    int begin = first_key(a, row, L::COLS);
    int64_t first = (int64_t)blockIdx.z * a.length;
    struct head k = head_of(a.k, first, blockIdx.y / (a.heads / a.kv_heads), a);
    float scale = a.scale * LOG2_E;
    struct running r[TILES][2];
    for (int t = 0; t < TILES; t++)
        r[t][0] = r[t][1] = {-INFINITY, 0};
    load_rows<L::ROWS, DIM, ALIGNED>(q_tile, head_of(a.q, first, blockIdx.y, a), row);
    load_rows<L::COLS, DIM, ALIGNED>(k_tile, k, begin);
    commit_copies();
    for (int key = begin; key < end; key += L::COLS) {
        float s[TILES][L::COLS / 8][4];
        wait_for_copies();
        __syncthreads(); /* k is there, and every warp is done with the one before, where the next goes */
        if (key + L::COLS < end) load_rows<L::COLS, DIM, ALIGNED>(next_tile, k, key + L::COLS);
        commit_copies();
        score_tile<DIM, TILES, L::COLS>(s, q_tile + (warp_row - row) * L::STRIDE, k_tile);
        if (cut(a, warp_row, TILES * 16, key, L::COLS)) mask_tile<TILES, L::COLS, true>(s, warp_row, key, a);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                take_row<L::COLS>(r[t][half], s[t], half, scale);
        bf16 *read = k_tile;
        k_tile = next_tile;
        next_tile = read;
    }
    log_sums += sums_at(a, blockIdx.z, blockIdx.y);
    for (int t = 0; t < TILES; t++)
        for (int half = 0; half < 2; half++) {
            int at = warp_row + t * 16 + lane / 4 + half * 8;
            float sum = sum_of_quad(r[t][half].sum);
            if (at < (int)a.length && lane % 4 == 0) log_sums[at] = r[t][half].max * scale + log2f(sum);
        }
}

/* --- the gradients --- */

template <int DIM, int TILES> static __device__ inline void clear_sums(float sums[TILES][DIM / 8][4]) {
    for (int t = 0; t < TILES; t++)
        for (int n = 0; n < DIM / 8; n++)
            for (int i = 0; i < 4; i++)
                sums[t][n][i] = 0;
}

/* row: of the warp's first. */
template <int DIM, int TILES>
static __device__ inline void store_rows(const float sums[TILES][DIM / 8][4], const struct head &out, int row,
                                         float factor, bool pairs) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = row + t * 16 + threadIdx.x % WARP / 4 + half * 8;
            if (at < out.tokens) store_row<DIM>(sums[t], half, factor, out, at, pairs);
        }
}

/* dq, but for its scale. Grid: [row tiles, the longest first; heads; windows]. While the last product of a tile runs,
 * the next v is on its way. */
template <int DIM, int TILES, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS)
    query_gradients(struct attention_back_args b, struct query_sums sums) {
    typedef struct tiling<DIM, TILES> L;
    extern __shared__ __align__(16) bf16 memory[];
    const struct attention_args &a = b.forward;
    bf16 *q_tile = memory + L::ROWS_1, *g_tile = memory + L::ROWS_2;
    bf16 *k_tile = memory + L::COLS_1, *v_tile = memory + L::COLS_2;
    int row = (int)(gridDim.x - 1 - blockIdx.x) * L::ROWS, end = min(row + L::ROWS, (int)a.length);
    int warp_row = row + (int)(threadIdx.x / WARP) * TILES * 16, begin = first_key(a, row, L::COLS);
    int kv_head = blockIdx.y / (a.heads / a.kv_heads), warp_at = (warp_row - row) * L::STRIDE;
    int64_t first = (int64_t)blockIdx.z * a.length, base = sums_at(a, blockIdx.z, blockIdx.y);
    struct head k = head_of(a.k, first, kv_head, a), v = head_of(a.v, first, kv_head, a);
    float scale = a.scale * LOG2_E, log_sum[TILES][2], dot[TILES][2], dq[TILES][DIM / 8][4];
    load_rows<L::ROWS, DIM, ALIGNED>(q_tile, head_of(a.q, first, blockIdx.y, a), row);
    load_rows<L::ROWS, DIM, ALIGNED>(g_tile, head_of(b.dout, first, blockIdx.y, a), row);
    load_rows<L::COLS, DIM, ALIGNED>(v_tile, v, begin);
    load_rows<L::COLS, DIM, ALIGNED>(k_tile, k, begin);
    commit_copies();
    for (int t = 0; t < TILES; t++)
        for (int half = 0; half < 2; half++) {
            int at = warp_row + t * 16 + threadIdx.x % WARP / 4 + half * 8;
            log_sum[t][half] = at < (int)a.length ? sums.log_sum[base + at] : 0;
            dot[t][half] = at < (int)a.length ? sums.dot[base + at] : 0;
        }
    clear_sums<DIM, TILES>(dq);
    for (int key = begin; key < end; key += L::COLS) {
        float s[TILES][L::COLS / 8][4], dp[TILES][L::COLS / 8][4];
        wait_for_copies();
        __syncthreads(); /* k and v are there */
        score_tile<DIM, TILES, L::COLS>(s, q_tile + warp_at, k_tile);
        score_tile<DIM, TILES, L::COLS>(dp, g_tile + warp_at, v_tile);
        if (cut(a, warp_row, TILES * 16, key, L::COLS)) mask_tile<TILES, L::COLS, true>(s, warp_row, key, a);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int n = 0; n < L::COLS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[t][n][i] = exp2f(s[t][n][i] * scale - log_sum[t][i / 2]) * (dp[t][n][i] - dot[t][i / 2]);
        __syncthreads(); /* every warp is done with v */
        if (key + L::COLS < end) load_rows<L::COLS, DIM, ALIGNED>(v_tile, v, key + L::COLS);
        commit_copies();
        mix_tile<DIM, TILES, L::COLS>(dq, s, k_tile);
        __syncthreads(); /* every warp is done with k */
        if (key + L::COLS < end) load_rows<L::COLS, DIM, ALIGNED>(k_tile, k, key + L::COLS);
        commit_copies();
    }
    store_rows<DIM, TILES>(dq, head_of(b.dq, first, blockIdx.y, a), warp_row, a.scale, ALIGNED);
}

/* s → the probabilities, dp → the gradients of the scores. log_sum, dot: of the first of `queries`. */
template <int TILES, int COLS, bool GRADIENTS>
static __device__ inline void to_probabilities(float s[TILES][COLS / 8][4], float dp[TILES][COLS / 8][4],
                                               const float *log_sum, const float *dot, int queries, float scale) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < COLS / 8; n++)
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            int c = n * 8 + lane % 4 * 2 + odd;
            float base = c < queries ? log_sum[c] : 0, mean = GRADIENTS && c < queries ? dot[c] : 0;
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = odd; i < 4; i += 2) {
                    s[t][n][i] = exp2f(s[t][n][i] * scale - base);
                    if (GRADIENTS) dp[t][n][i] = s[t][n][i] * (dp[t][n][i] - mean);
                }
        }
}

/* The queries that see some keys, head by head of those that share the key head. */
struct walk {
    int begin, end, steps; /* queries of each head; steps of all heads */
};

static __device__ inline struct walk walk_of(const struct attention_args &a, int key, int keys, int cols) {
    int end = a.window > 0 ? min(key + keys - 1 + a.window, (int)a.length) : (int)a.length;
    return {key, end, (end - key + cols - 1) / cols * (a.heads / a.kv_heads)};
}

/* dv, and dk but for its scale; or one of them, where registers do not hold both. Grid: [key tiles, the longest first;
 * key heads; windows]. */
template <int DIM, int TILES, bool ALIGNED, bool DK, bool DV>
static __global__ void __launch_bounds__(THREADS) key_gradients(struct attention_back_args b, struct query_sums sums) {
    typedef struct tiling<DIM, TILES> L;
    extern __shared__ __align__(16) bf16 memory[];
    const struct attention_args &a = b.forward;
    bf16 *k_tile = memory + L::ROWS_1, *v_tile = memory + L::ROWS_2;
    bf16 *q_tile = memory + L::COLS_1, *g_tile = memory + L::COLS_2;
    int key = (int)blockIdx.x * L::ROWS, warp_key = key + (int)(threadIdx.x / WARP) * TILES * 16;
    int head = blockIdx.y * (a.heads / a.kv_heads), warp_at = (warp_key - key) * L::STRIDE, row = key;
    int64_t first = (int64_t)blockIdx.z * a.length;
    struct walk w = walk_of(a, key, L::ROWS, L::COLS);
    float scale = a.scale * LOG2_E, dk[TILES][DIM / 8][4], dv[TILES][DIM / 8][4];
    load_rows<L::ROWS, DIM, ALIGNED>(k_tile, head_of(a.k, first, blockIdx.y, a), key);
    if (DK) load_rows<L::ROWS, DIM, ALIGNED>(v_tile, head_of(a.v, first, blockIdx.y, a), key);
    load_rows<L::COLS, DIM, ALIGNED>(q_tile, head_of(a.q, first, head, a), row);
    load_rows<L::COLS, DIM, ALIGNED>(g_tile, head_of(b.dout, first, head, a), row);
    commit_copies();
    clear_sums<DIM, TILES>(dk);
    clear_sums<DIM, TILES>(dv);
    for (int step = 0; step < w.steps; step++) {
        float s[TILES][L::COLS / 8][4], dp[TILES][L::COLS / 8][4];
        int64_t at = sums_at(a, blockIdx.z, head) + row;
        int queries = (int)a.length - row, next_head = row + L::COLS < w.end ? head : head + 1;
        int next_row = row + L::COLS < w.end ? row + L::COLS : w.begin;
        bool more = step + 1 < w.steps;
        wait_for_copies();
        __syncthreads(); /* q and dout are there */
        score_tile<DIM, TILES, L::COLS>(s, k_tile + warp_at, q_tile);
        if (DK) score_tile<DIM, TILES, L::COLS>(dp, v_tile + warp_at, g_tile);
        if (cut(a, row, L::COLS, warp_key, TILES * 16)) mask_tile<TILES, L::COLS, false>(s, warp_key, row, a);
        to_probabilities<TILES, L::COLS, DK>(s, dp, sums.log_sum + at, sums.dot + at, queries, scale);
        if (DV) mix_tile<DIM, TILES, L::COLS>(dv, s, g_tile);
        __syncthreads(); /* every warp is done with dout */
        if (more) load_rows<L::COLS, DIM, ALIGNED>(g_tile, head_of(b.dout, first, next_head, a), next_row);
        commit_copies();
        if (DK) mix_tile<DIM, TILES, L::COLS>(dk, dp, q_tile);
        __syncthreads(); /* every warp is done with q */
        if (more) load_rows<L::COLS, DIM, ALIGNED>(q_tile, head_of(a.q, first, next_head, a), next_row);
        commit_copies();
        head = next_head;
        row = next_row;
    }
    if (DK) store_rows<DIM, TILES>(dk, head_of(b.dk, first, blockIdx.y, a), warp_key, a.scale, ALIGNED);
    if (DV) store_rows<DIM, TILES>(dv, head_of(b.dv, first, blockIdx.y, a), warp_key, 1, ALIGNED);
}

/* --- launches --- */

template <int DIM, int TILES, bool ALIGNED, bool DK, bool DV>
static enum rc launch_keys(struct backend_state *state, const struct attention_back_args *b, struct query_sums sums,
                           struct err *e) {
    typedef struct tiling<DIM, TILES> L;
    const struct attention_args *a = &b->forward;
    dim3 blocks(blocks_for(a->length, L::ROWS), (unsigned)a->kv_heads, (unsigned)(a->q.rows / a->length));
    CUDA_TRY(cudaFuncSetAttribute(key_gradients<DIM, TILES, ALIGNED, DK, DV>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)L::BYTES));
    key_gradients<DIM, TILES, ALIGNED, DK, DV><<<blocks, THREADS, L::BYTES, state->stream>>>(*b, sums);
    LAUNCHED();
    return RC_OK;
}

template <int DIM, int TILES, bool ALIGNED>
static enum rc launch(struct backend_state *state, const struct attention_back_args *b, struct query_sums sums,
                      struct err *e) {
    typedef struct tiling<DIM, TILES> L;
    const struct attention_args *a = &b->forward;
    dim3 blocks(blocks_for(a->length, L::ROWS), (unsigned)a->heads, (unsigned)(a->q.rows / a->length));
    const cudaFuncAttribute bytes = cudaFuncAttributeMaxDynamicSharedMemorySize;
    CUDA_TRY(cudaFuncSetAttribute(query_log_sums<DIM, TILES, ALIGNED>, bytes, (int)L::BYTES));
    CUDA_TRY(cudaFuncSetAttribute(query_gradients<DIM, TILES, ALIGNED>, bytes, (int)L::BYTES));
    query_dots<<<blocks_for(a->q.rows * a->heads, BLOCK / WARP), BLOCK, 0, state->stream>>>(*b, sums);
    LAUNCHED();
    query_log_sums<DIM, TILES, ALIGNED><<<blocks, THREADS, L::BYTES, state->stream>>>(*a, sums.log_sum);
    LAUNCHED();
    query_gradients<DIM, TILES, ALIGNED><<<blocks, THREADS, L::BYTES, state->stream>>>(*b, sums);
    LAUNCHED();
    const bool at_once = DIM <= 64;
    TRY((launch_keys<DIM, TILES, ALIGNED, at_once, true>(state, b, sums, e)));
    return at_once ? RC_OK : launch_keys<DIM, TILES, ALIGNED, true, false>(state, b, sums, e);
}

template <bool ALIGNED>
static enum rc launch_for(struct backend_state *state, const struct attention_back_args *b, struct query_sums sums,
                          struct err *e) {
    int dim = b->forward.head_dim;
    if (dim <= 64) return launch<64, 2, ALIGNED>(state, b, sums, e);
    if (dim <= 96) return launch<96, 2, ALIGNED>(state, b, sums, e);
    if (dim <= 128) return launch<128, 2, ALIGNED>(state, b, sums, e);
    return launch<256, 1, ALIGNED>(state, b, sums, e);
}

/* Some of the rows, as many as a grid has windows. */
static struct attention_back_args part_of(const struct attention_back_args *b, int64_t first, int64_t rows) {
    struct attention_back_args part = *b;
    struct attention_args *a = &part.forward;
    for (struct mat *m : {&a->q, &a->k, &a->v, &a->out, &part.dout, &part.dq, &part.dk, &part.dv})
        *m = mat_rows(*m, first, rows);
    return part;
}

enum rc cuda_flash_attention_back(struct backend_state *state, const struct attention_back_args *b, struct err *e) {
    const struct attention_args *a = &b->forward;
    if (a->head_dim > 256)
        return err_set(e, RC_UNSUPPORTED, "attention_back: heads of %d channels: this backend has up to 256 in bf16",
                       a->head_dim);
    const struct mat all[] = {a->q, a->k, a->v, b->dout, b->dq, b->dk, b->dv};
    bool aligned = rows_aligned(all, 7, 16) && a->head_dim % 8 == 0;
    int64_t most = GRID_MAX * a->length, rows = a->q.rows < most ? a->q.rows : most;
    void *memory;
    TRY(cuda_scratch(state, 2 * (size_t)(rows * a->heads) * sizeof(float), &memory, e));
    struct query_sums sums = {(float *)memory, (float *)memory + rows * a->heads};
    for (int64_t first = 0; first < a->q.rows; first += most) {
        struct attention_back_args part = part_of(b, first, a->q.rows - first < most ? a->q.rows - first : most);
        TRY(aligned ? launch_for<true>(state, &part, sums, e) : launch_for<false>(state, &part, sums, e));
    }
    return RC_OK;
}
