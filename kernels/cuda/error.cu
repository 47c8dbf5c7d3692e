#include <math.h>
#include <stdlib.h>

#include "kernels/cuda/device.cuh"

/* Rows of D kept at a time. */
static const int64_t CHUNK = 512;

struct row_stats {
    double squares, sum_abs, max_abs, weight_squares;
    double num, den; /* the row's shares of tr(D H Dᵀ) and tr(W H Wᵀ) */
};

struct workspace {
    double *rows;            /* [CHUNK, K] D or W, widened */
    double *product;         /* [CHUNK, K] rows · H */
    struct row_stats *stats; /* [CHUNK] */
};

struct chunk {
    int64_t from, rows;
};

static __global__ void compare_rows(struct error_args a, struct chunk c, struct row_stats *stats) {
    const float *w = a.w.data + (c.from + blockIdx.x) * a.w.stride;
    const float *w_hat = a.w_hat.data + (c.from + blockIdx.x) * a.w_hat.stride;
    double squares = 0, sum_abs = 0, weight_squares = 0;
    float max_abs = 0;
    for (int64_t k = threadIdx.x; k < a.w.cols; k += BLOCK) {
        float difference = w[k] - w_hat[k], magnitude = fabsf(difference);
        squares += (double)difference * difference;
        sum_abs += magnitude;
        max_abs = fmaxf(max_abs, magnitude);
        weight_squares += (double)w[k] * w[k];
    }
    struct row_stats s = {block_sum(squares), block_sum(sum_abs), block_max(max_abs), block_sum(weight_squares), 0, 0};
    if (threadIdx.x == 0) stats[blockIdx.x] = s;
}

/* rows [CHUNK, K] = W − Ŵ as fp32 has it, or W itself. */
static __global__ void widen(struct error_args a, struct chunk c, bool difference, double *rows) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= c.rows * a.w.cols) return;
    int64_t n = c.from + i / a.w.cols, k = i % a.w.cols;
    float w = a.w.data[n * a.w.stride + k];
    rows[i] = difference ? w - a.w_hat.data[n * a.w_hat.stride + k] : w;
}

static __global__ void row_traces(struct workspace ws, int64_t cols, bool difference) {
    const double *row = ws.rows + blockIdx.x * cols, *product = ws.product + blockIdx.x * cols;
    double sum = 0;
    for (int64_t k = threadIdx.x; k < cols; k += BLOCK)
        sum += row[k] * product[k];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    if (difference)
        ws.stats[blockIdx.x].num = sum;
    else
        ws.stats[blockIdx.x].den = sum;
}

/* Each row's x · H · xᵀ. In fp64 throughout: where an output is small because its terms cancel, fp32 products would
 * leave few digits of it. */
static enum rc trace(struct backend_state *state, const struct error_args *a, struct chunk c, bool difference,
                     const struct workspace *ws, struct err *e) {
    const double one = 1, zero = 0;
    int cols = (int)a->w.cols;
    widen<<<blocks_for(c.rows * cols, BLOCK), BLOCK, 0, state->stream>>>(*a, c, difference, ws->rows);
    LAUNCHED();
    CUBLAS_TRY(cublasDgemm(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, cols, (int)c.rows, cols, &one, a->h.data,
                           (int)a->h.stride, ws->rows, cols, &zero, ws->product, cols));
    row_traces<<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*ws, cols, difference);
    LAUNCHED();
    return RC_OK;
}

static enum rc measure_chunk(struct backend_state *state, const struct error_args *a, struct chunk c,
                             const struct workspace *ws, struct row_stats *host, struct err *e) {
    compare_rows<<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*a, c, ws->stats);
    LAUNCHED();
    if (a->h.data != NULL) TRY(trace(state, a, c, true, ws, e));
    if (a->h.data != NULL && a->drift_den == NULL) TRY(trace(state, a, c, false, ws, e));
    return cuda_download(state, ws->stats, (size_t)c.rows * sizeof *host, host, e);
}

static enum rc get_workspace(struct backend_state *state, const struct error_args *a, struct workspace *ws,
                             struct err *e) {
    size_t matrix = (size_t)CHUNK * (size_t)a->w.cols * sizeof(double);
    void *memory;
    TRY(cuda_scratch(state, 2 * matrix + CHUNK * sizeof *ws->stats, &memory, e));
    ws->rows = (double *)memory;
    ws->product = ws->rows + CHUNK * a->w.cols;
    ws->stats = (struct row_stats *)(ws->product + CHUNK * a->w.cols);
    return RC_OK;
}

static void add_rows(struct row_stats *total, const struct row_stats *rows, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        total->squares += rows[i].squares;
        total->sum_abs += rows[i].sum_abs;
        total->max_abs = fmax(total->max_abs, rows[i].max_abs);
        total->weight_squares += rows[i].weight_squares;
        total->num += rows[i].num;
        total->den += rows[i].den;
    }
}

enum rc cuda_error(struct backend_state *state, const struct error_args *a, struct error_report *report,
                   struct err *e) {
    TRY(check_error(a, e));
    struct workspace ws;
    TRY(get_workspace(state, a, &ws, e));
    struct row_stats total = {}, host[CHUNK];
    for (int64_t from = 0; from < a->w.rows; from += CHUNK) {
        struct chunk c = {from, a->w.rows - from < CHUNK ? a->w.rows - from : CHUNK};
        TRY(measure_chunk(state, a, c, &ws, host, e));
        add_rows(&total, host, c.rows);
    }
    if (a->h.data != NULL && a->drift_den != NULL) total.den = *a->drift_den;
    double count = (double)a->w.rows * (double)a->w.cols;
    *report = {total.num,           total.den,
               sqrt(total.squares), sqrt(total.weight_squares),
               total.max_abs,       count > 0 ? total.sum_abs / count : 0};
    return RC_OK;
}
