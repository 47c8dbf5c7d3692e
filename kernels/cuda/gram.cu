#include "kernels/cuda/device.cuh"

/* Columns of XᵀX computed together in fp32 before they go into the fp64 sum. */
static const int64_t TILE = 1024;

/* h[i, col + j] += block[i, j] for i <= col + j, and its mirror image the same sum: XᵀX is symmetric, a GEMM's result
 * only up to rounding. block [rows, cols], rows = col + cols. */
static __global__ void add_columns(struct matd h, const float *block, int64_t col, int64_t cols) {
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x, i = n / cols, j = col + n % cols;
    if (i > j || i >= col + cols) return;
    double sum = h.data[i * h.stride + j] + block[n];
    h.data[i * h.stride + j] = sum;
    h.data[j * h.stride + i] = sum;
}

/* One thread a channel, so that the sums keep their order. */
static __global__ void add_stats(struct gram_args a) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= a.x.cols) return;
    double sum = 0, sum_abs = 0;
    float max_abs = 0;
    for (int64_t t = 0; t < a.x.rows; t++) {
        float x = a.x.data[t * a.x.stride + k], magnitude = fabsf(x);
        sum += x;
        sum_abs += magnitude;
        max_abs = fmaxf(max_abs, magnitude);
    }
    if (a.sum) a.sum[k] += sum;
    if (a.sum_abs) a.sum_abs[k] += sum_abs;
    if (a.max_abs) a.max_abs[k] = fmaxf(a.max_abs[k], max_abs);
}

/* block [col + cols, cols] = X[:, 0 … col + cols)ᵀ · X[:, col …): the part of these columns on and above the diagonal.
 */
static enum rc multiply(struct backend_state *state, struct matf x, int64_t col, int64_t cols, float *block,
                        struct err *e) {
    const float one = 1, zero = 0;
    CUBLAS_TRY(cublasSgemm(state->blas, CUBLAS_OP_N, CUBLAS_OP_T, (int)cols, (int)(col + cols), (int)x.rows, &one,
                           x.data + col, (int)x.stride, x.data, (int)x.stride, &zero, block, (int)cols));
    return RC_OK;
}

enum rc cuda_gram(struct backend_state *state, const struct gram_args *a, struct err *e) {
    TRY(check_gram(a, e));
    int64_t channels = a->x.cols;
    if (channels == 0 || a->x.rows == 0) return RC_OK;
    void *memory;
    TRY(cuda_scratch(state, (size_t)channels * TILE * sizeof(float), &memory, e));
    float *block = (float *)memory; /* [K, TILE] */
    for (int64_t col = 0; col < channels; col += TILE) {
        int64_t cols = channels - col < TILE ? channels - col : TILE;
        TRY(multiply(state, a->x, col, cols, block, e));
        add_columns<<<blocks_for((col + cols) * cols, BLOCK), BLOCK, 0, state->stream>>>(a->h, block, col, cols);
        LAUNCHED();
    }
    if (a->sum == NULL && a->sum_abs == NULL && a->max_abs == NULL) return RC_OK;
    add_stats<<<blocks_for(channels, BLOCK), BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
