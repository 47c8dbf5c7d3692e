#include <math.h>

#include "kernels/cuda/device.cuh"

static const int ROW_PARTS = 16; /* as on the CPU: the order of additions is the same */

/* The largest |w| of every group, [N, G]; a warp takes one. */
static __global__ void group_maxima(struct mat w, int64_t group, int64_t groups, float *out) {
    int64_t index = (int64_t)blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
    if (index >= w.rows * groups) return;
    int64_t row = index / groups, from = index % groups * group, to = from + group < w.cols ? from + group : w.cols;
    float max = 0;
    for (int64_t k = from + threadIdx.x % WARP; k < to; k += WARP)
        max = fmaxf(max, fabsf(load_stored(w.data, w.type, row * w.stride + k)));
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
    if (threadIdx.x % WARP == 0) out[index] = max;
}

/* [ROW_PARTS, K]: a thread takes one column of one part of the rows. */
static __global__ void add_shares(struct mat w, int64_t group, int64_t groups, const float *maxima, double *sums) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x, part = blockIdx.y;
    if (k >= w.cols) return;
    double sum = 0;
    for (int64_t n = w.rows * part / ROW_PARTS; n < w.rows * (part + 1) / ROW_PARTS; n++) {
        double max = maxima[n * groups + k / group];
        if (max > 0) sum += fabsf(load_stored(w.data, w.type, n * w.stride + k)) / max;
    }
    sums[part * w.cols + k] = sum;
}

static __global__ void finish_shares(const double *sums, int64_t rows, int64_t cols, double *share) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= cols) return;
    double sum = 0;
    for (int part = 0; part < ROW_PARTS; part++)
        sum += sums[part * cols + k];
    share[k] = sum / (double)rows;
}

enum rc cuda_column_share(struct backend_state *state, const struct column_share_args *a, struct err *e) {
    TRY(check_column_share(a, e));
    int64_t rows = a->w.rows, cols = a->w.cols, group = a->group > 0 && a->group < cols ? a->group : cols;
    int64_t groups = (cols + group - 1) / group;
    size_t sums = (size_t)(ROW_PARTS * cols) * sizeof(double), shares = (size_t)cols * sizeof(double);
    void *memory;
    TRY(cuda_scratch(state, sums + shares + (size_t)(rows * groups) * sizeof(float), &memory, e));
    double *sum = (double *)memory, *share = sum + ROW_PARTS * cols;
    float *maxima = (float *)(share + cols);
    group_maxima<<<blocks_for(rows * groups, BLOCK / WARP), BLOCK, 0, state->stream>>>(a->w, group, groups, maxima);
    add_shares<<<dim3(blocks_for(cols, BLOCK), ROW_PARTS), BLOCK, 0, state->stream>>>(a->w, group, groups, maxima, sum);
    finish_shares<<<blocks_for(cols, BLOCK), BLOCK, 0, state->stream>>>(sum, rows, cols, share);
    LAUNCHED();
    return cuda_download(state, share, shares, a->share, e);
}
