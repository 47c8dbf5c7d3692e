#include "kernels/cuda/device.cuh"

/* Columns of XᵀX computed together: the part on and above the diagonal of so many columns is one product. */
static const int64_t TILE = 2048;

/* h[i, col + j] += block[i, j]; block [rows, cols], rows = col + cols. */
static __global__ void add_columns(struct mat h, const float *block, int64_t col, int64_t cols) {
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x, i = n / cols, j = col + n % cols;
    if (i < col + cols) ((double *)h.data)[i * h.stride + j] += block[n];
}

/* A slice of the rows at a time, LANES threads a channel; sums are taken in one order whatever runs when. */
static const int LANES = 4, CHANNELS = BLOCK / LANES, SLICE = 256;

struct channel_sums {
    double sum, sum_abs;
    float max_abs;
};

static __device__ void join(struct channel_sums *s, struct channel_sums other) {
    s->sum += other.sum;
    s->sum_abs += other.sum_abs;
    s->max_abs = fmaxf(s->max_abs, other.max_abs);
}

/* slices[slice, channel]; blocks are [slice, CHANNELS channels]. */
static __global__ void sum_slices(struct mat x, struct channel_sums *slices) {
    __shared__ struct channel_sums lanes[LANES][CHANNELS];
    int lane = threadIdx.x / CHANNELS, j = threadIdx.x % CHANNELS;
    int64_t k = (int64_t)blockIdx.x * CHANNELS + j, first = (int64_t)blockIdx.y * SLICE;
    struct channel_sums own = {};
    for (int64_t t = first + lane; t < first + SLICE && t < x.rows && k < x.cols; t += LANES) {
        float value = load_stored(x.data, x.type, t * x.stride + k);
        join(&own, {value, fabsf(value), fabsf(value)});
    }
    lanes[lane][j] = own;
    __syncthreads();
    if (lane > 0 || k >= x.cols) return;
    for (int i = 1; i < LANES; i++)
        join(&own, lanes[i][j]);
    slices[(int64_t)blockIdx.y * x.cols + k] = own;
}

static __global__ void add_slices(struct gram_args a, const struct channel_sums *slices, unsigned count) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= a.x.cols) return;
    struct channel_sums all = {};
    for (unsigned i = 0; i < count; i++)
        join(&all, slices[i * a.x.cols + k]);
    if (a.sum) a.sum[k] += all.sum;
    if (a.sum_abs) a.sum_abs[k] += all.sum_abs;
    if (a.max_abs) a.max_abs[k] = fmaxf(a.max_abs[k], all.max_abs);
}

static enum rc add_stats(struct backend_state *state, const struct gram_args *a, struct err *e) {
    unsigned slices = blocks_for(a->x.rows, SLICE);
    void *memory;
    TRY(cuda_scratch(state, (size_t)slices * (size_t)a->x.cols * sizeof(struct channel_sums), &memory, e));
    struct channel_sums *sums = (struct channel_sums *)memory;
    sum_slices<<<dim3(blocks_for(a->x.cols, CHANNELS), slices), BLOCK, 0, state->stream>>>(a->x, sums);
    LAUNCHED();
    add_slices<<<blocks_for(a->x.cols, BLOCK), BLOCK, 0, state->stream>>>(*a, sums, slices);
    LAUNCHED();
    return RC_OK;
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
    return add_stats(state, a, e);
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
