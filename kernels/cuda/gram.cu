#include "kernels/cuda/device.cuh"

/* Columns of XᵀX computed together: the part on and above the diagonal of so many columns is one product. */
static const int64_t TILE = 2048;

/* h[i, col + j] += block[i, j]; block [rows, cols], rows = col + cols. */
static __global__ void add_columns(struct mat h, const float *block, int64_t col, int64_t cols) {
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x, i = n / cols, j = col + n % cols;
    if (i < col + cols) ((double *)h.data)[i * h.stride + j] += block[n];
}

/* One warp's width of channels a block; its warps take the tokens in turn, and what they have is added in their order:
 * one thread a channel would wait for memory once a token. */
static const int STAT_WARPS = 32;
template <typename T> static __global__ void __launch_bounds__(STAT_WARPS *WARP) add_stats(struct gram_args a) {
    __shared__ double sums[STAT_WARPS][WARP], sums_abs[STAT_WARPS][WARP];
    __shared__ float maxima[STAT_WARPS][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64_t k = (int64_t)blockIdx.x * WARP + lane;
    double sum = 0, sum_abs = 0;
    float max_abs = 0;
    const T *x = (const T *)a.x.data + k;
#pragma unroll 8
    for (int64_t t = warp; t < (k < a.x.cols ? a.x.rows : 0); t += STAT_WARPS) {
        float value = to_float(x[t * a.x.stride]), magnitude = fabsf(value);
        sum += value;
        sum_abs += magnitude;
        max_abs = fmaxf(max_abs, magnitude);
    }
    sums[warp][lane] = sum;
    sums_abs[warp][lane] = sum_abs;
    maxima[warp][lane] = max_abs;
    __syncthreads();
    if (warp > 0 || k >= a.x.cols) return;
    for (int w = 1; w < STAT_WARPS; w++) {
        sum += sums[w][lane];
        sum_abs += sums_abs[w][lane];
        max_abs = fmaxf(max_abs, maxima[w][lane]);
    }
    if (a.sum) a.sum[k] += sum;
    if (a.sum_abs) a.sum_abs[k] += sum_abs;
    if (a.max_abs) a.max_abs[k] = fmaxf(a.max_abs[k], max_abs);
}

/* Columns [col, col + cols) of XᵀX on and above the diagonal, into `out`. */
struct panel {
    int64_t col, cols;
    struct mat out; /* [col + cols, cols] fp32 */
    float beta;     /* out += for 1 */
};

static enum rc multiply(struct backend_state *state, const struct gram_args *a, const struct panel *p, struct err *e) {
    struct outer_args o = {mat_cols(a->x, 0, p->col + p->cols), mat_cols(a->x, p->col, p->cols), p->beta, p->out};
    return cuda_outer(state, &o, e);
}

/* bf16: the tensor cores add to H in fp32. */
static enum rc add_panel_f32(struct backend_state *state, const struct gram_args *a, struct panel *p, struct err *e) {
    p->out = mat_cols(mat_rows(a->h, 0, p->col + p->cols), p->col, p->cols);
    p->beta = 1;
    return multiply(state, a, p, e);
}

/* fp32: each call's products go into an fp64 sum. */
static enum rc add_panel_f64(struct backend_state *state, const struct gram_args *a, struct panel *p, struct err *e) {
    int64_t rows = p->col + p->cols;
    void *memory;
    TRY(cuda_scratch(state, (size_t)a->x.cols * TILE * sizeof(float), &memory, e)); /* [K, TILE] */
    p->out = matf((float *)memory, rows, p->cols);
    TRY(multiply(state, a, p, e));
    add_columns<<<blocks_for(rows * p->cols, BLOCK), BLOCK, 0, state->stream>>>(a->h, (const float *)memory, p->col,
                                                                                p->cols);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_gram(struct backend_state *state, const struct gram_args *a, struct err *e) {
    TRY(check_gram(a, e));
    TRY(check_activation(state, &a->x, e));
    int64_t channels = a->x.cols;
    if (channels == 0 || a->x.rows == 0) return RC_OK;
    for (int64_t col = 0; col < channels; col += TILE) {
        struct panel p = {col, channels - col < TILE ? channels - col : TILE, {}, 0};
        TRY(a->h.type == DTYPE_F32 ? add_panel_f32(state, a, &p, e) : add_panel_f64(state, a, &p, e));
    }
    if (a->sum == NULL && a->sum_abs == NULL && a->max_abs == NULL) return RC_OK;
    unsigned blocks = blocks_for(channels, WARP);
    if (a->x.type == DTYPE_F32)
        add_stats<float><<<blocks, STAT_WARPS * WARP, 0, state->stream>>>(*a);
    else
        add_stats<__nv_bfloat16><<<blocks, STAT_WARPS * WARP, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}

/* One block a tile of the lower triangle, by way of shared memory, so that both sides are read and written in rows. */
template <typename T> static __global__ void mirror(struct mat h) {
    const int side = 32, rows = 8; /* threads are [rows, side] */
    if (blockIdx.x > blockIdx.y) return;
    __shared__ T tile[side][side + 1];
    T *values = (T *)h.data;
    int64_t from_row = (int64_t)blockIdx.x * side, from_col = (int64_t)blockIdx.y * side;
    int x = threadIdx.x % side, y = threadIdx.x / side;
    for (int k = y; k < side; k += rows)
        if (from_row + k < h.rows && from_col + x < h.rows)
            tile[k][x] = values[(from_row + k) * h.stride + from_col + x];
    __syncthreads();
    for (int k = y; k < side; k += rows) {
        int64_t i = from_col + k, j = from_row + x; /* of the lower triangle */
        if (i < h.rows && j < h.rows && i > j) values[i * h.stride + j] = tile[x][k];
    }
}

enum rc cuda_gram_finish(struct backend_state *state, struct mat h, struct err *e) {
    TRY(check_gram_finish(h, e));
    if (h.rows == 0) return RC_OK;
    unsigned side = blocks_for(h.rows, 32);
    if (h.type == DTYPE_F32)
        mirror<float><<<dim3(side, side), BLOCK, 0, state->stream>>>(h);
    else
        mirror<double><<<dim3(side, side), BLOCK, 0, state->stream>>>(h);
    LAUNCHED();
    return RC_OK;
}
