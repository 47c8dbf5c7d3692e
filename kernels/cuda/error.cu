#include <math.h>
#include <stdlib.h>

#include "kernels/cuda/device.cuh"

/* Bytes of D and of D · H kept at a time. */
static const int64_t WORKSPACE = 256 << 20;
static const int64_t ROWS_MAX = 8192;

struct row_stats {
    double squares, sum_abs, max_abs, weight_squares;
    double num, den; /* the row's shares of tr(D H Dᵀ) and tr(W H Wᵀ) */
};

/* Some rows of D or W and their product with H, of H's type. */
struct workspace {
    void *rows, *product;    /* [chunk, K] */
    struct row_stats *stats; /* [chunk] */
    int64_t chunk;
};

struct chunk {
    int64_t from, rows;
};

static __device__ inline float value_at(const struct mat &m, int64_t row, int64_t col) {
    return load_stored(m.data, m.type, row * m.stride + col);
}

static __device__ inline void store_wide(double *to, float value) {
    *to = value;
}
/* To the nearest TF32: left to the tensor cores, the surplus digits would be cut off, always downwards. */
static __device__ inline void store_wide(float *to, float value) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    *to = __uint_as_float(rounded);
}

/* The statistics of each row's D, and D itself into `rows` (NULL: not needed). */
template <typename T>
static __global__ void compare_rows(struct error_args a, struct chunk c, struct row_stats *stats, T *rows) {
    int64_t n = c.from + blockIdx.x;
    double squares = 0, sum_abs = 0, weight_squares = 0;
    float max_abs = 0;
    for (int64_t k = threadIdx.x; k < a.w.cols; k += BLOCK) {
        float w = value_at(a.w, n, k), difference = w - value_at(a.w_hat, n, k), magnitude = fabsf(difference);
        squares += (double)difference * difference;
        sum_abs += magnitude;
        max_abs = fmaxf(max_abs, magnitude);
        weight_squares += (double)w * w;
        if (rows) store_wide(&rows[blockIdx.x * a.w.cols + k], difference);
    }
    struct row_stats s = {block_sum(squares), block_sum(sum_abs), block_max(max_abs), block_sum(weight_squares), 0, 0};
    if (threadIdx.x == 0) stats[blockIdx.x] = s;
}

/* rows [chunk, K] = W */
template <typename T> static __global__ void spread_rows(struct error_args a, struct chunk c, T *rows) {
    int64_t n = c.from + blockIdx.x;
    for (int64_t k = threadIdx.x; k < a.w.cols; k += BLOCK)
        store_wide(&rows[blockIdx.x * a.w.cols + k], value_at(a.w, n, k));
}

template <typename T> static __global__ void row_traces(struct workspace ws, int64_t cols, bool difference) {
    const T *row = (const T *)ws.rows + blockIdx.x * cols, *product = (const T *)ws.product + blockIdx.x * cols;
    double sum = 0;
    for (int64_t k = threadIdx.x; k < cols; k += BLOCK)
        sum += (double)row[k] * product[k];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    if (difference)
        ws.stats[blockIdx.x].num = sum;
    else
        ws.stats[blockIdx.x].den = sum;
}

/* Each row's x · H · xᵀ in fp64: where an output is small because its terms cancel, fp32 products would leave few
 * digits of it. */
static enum rc trace_f64(struct backend_state *state, const struct error_args *a, struct chunk c, bool difference,
                         const struct workspace *ws, struct err *e) {
    const double one = 1, zero = 0;
    int cols = (int)a->w.cols;
    CUBLAS_TRY(cublasDgemm(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, cols, (int)c.rows, cols, &one,
                           (const double *)a->h.data, (int)a->h.stride, (const double *)ws->rows, cols, &zero,
                           (double *)ws->product, cols));
    row_traces<double><<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*ws, cols, difference);
    LAUNCHED();
    return RC_OK;
}

/* Columns of H taken together: of the part above its diagonal, which counts twice, and of the square on it. */
static const int64_t PANEL = 2048;

/* product[:, col … col + cols) = alpha · rows[:, from … from + inner) · H[from …, col …) + beta · itself */
struct panel {
    int64_t from, inner, col, cols;
    float alpha, beta;
};

static enum rc multiply_panel(struct backend_state *state, const struct error_args *a, const struct workspace *ws,
                              int64_t rows, struct panel p, struct err *e) {
    const float *h = (const float *)a->h.data + p.from * a->h.stride + p.col;
    const float *from = (const float *)ws->rows + p.from;
    int cols = (int)a->w.cols;
    CUBLAS_TRY(cublasGemmEx(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)p.cols, (int)rows, (int)p.inner, &p.alpha, h,
                            CUDA_R_32F, (int)a->h.stride, from, CUDA_R_32F, cols, &p.beta, (float *)ws->product + p.col,
                            CUDA_R_32F, cols, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT));
    return RC_OK;
}

/* The same with products in TF32, and with H's upper part alone: x H xᵀ = x (2·above + squares) xᵀ. H's surplus digits
 * are cut off, which takes the same share of tr(D H Dᵀ) and of tr(W H Wᵀ): their ratio does not see it. */
static enum rc trace_tf32(struct backend_state *state, const struct error_args *a, struct chunk c, bool difference,
                          const struct workspace *ws, struct err *e) {
    int64_t cols = a->w.cols;
    for (int64_t col = 0; col < cols; col += PANEL) {
        int64_t width = cols - col < PANEL ? cols - col : PANEL;
        TRY(multiply_panel(state, a, ws, c.rows, {col, width, col, width, 1, 0}, e));
        if (col > 0) TRY(multiply_panel(state, a, ws, c.rows, {0, col, col, width, 2, 1}, e));
    }
    row_traces<float><<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*ws, cols, difference);
    LAUNCHED();
    return RC_OK;
}

static enum rc trace(struct backend_state *state, const struct error_args *a, struct chunk c, bool difference,
                     const struct workspace *ws, struct err *e) {
    return a->h.type == DTYPE_F64 ? trace_f64(state, a, c, difference, ws, e)
                                  : trace_tf32(state, a, c, difference, ws, e);
}

template <typename T>
static enum rc measure_typed(struct backend_state *state, const struct error_args *a, struct chunk c,
                             const struct workspace *ws, struct err *e) {
    T *rows = a->h.data ? (T *)ws->rows : NULL;
    compare_rows<<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*a, c, ws->stats, rows);
    LAUNCHED();
    if (a->h.data != NULL) TRY(trace(state, a, c, true, ws, e));
    if (a->h.data == NULL || a->drift_den != NULL) return RC_OK;
    spread_rows<<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*a, c, rows);
    LAUNCHED();
    return trace(state, a, c, false, ws, e);
}

static enum rc measure_chunk(struct backend_state *state, const struct error_args *a, struct chunk c,
                             const struct workspace *ws, struct row_stats *host, struct err *e) {
    TRY(a->h.type == DTYPE_F64 ? measure_typed<double>(state, a, c, ws, e) : measure_typed<float>(state, a, c, ws, e));
    return cuda_download(state, ws->stats, (size_t)c.rows * sizeof *host, host, e);
}

static int64_t rows_at_once(const struct error_args *a) {
    int64_t row = 2 * a->w.cols * (int64_t)(a->h.data ? dtype_size(a->h.type) : 1);
    int64_t rows = row > 0 ? WORKSPACE / row : ROWS_MAX;
    rows = rows < ROWS_MAX ? rows : ROWS_MAX;
    rows = rows < a->w.rows ? rows : a->w.rows;
    return rows > 0 ? rows : 1;
}

static enum rc get_workspace(struct backend_state *state, const struct error_args *a, struct workspace *ws,
                             struct err *e) {
    ws->chunk = rows_at_once(a);
    size_t matrix = a->h.data ? (size_t)(ws->chunk * a->w.cols) * dtype_size(a->h.type) : 0;
    matrix = (matrix + 255) / 256 * 256;
    void *memory;
    TRY(cuda_scratch(state, 2 * matrix + (size_t)ws->chunk * sizeof *ws->stats, &memory, e));
    ws->rows = memory;
    ws->product = (char *)memory + matrix;
    ws->stats = (struct row_stats *)((char *)memory + 2 * matrix);
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

static enum rc measure_rows(struct backend_state *state, const struct error_args *a, const struct workspace *ws,
                            struct row_stats *total, struct err *e) {
    struct row_stats *host = (struct row_stats *)malloc((size_t)ws->chunk * sizeof *host);
    if (host == NULL) return err_set(e, RC_NO_MEMORY, "no memory for the errors of %lld rows", (long long)ws->chunk);
    enum rc rc = RC_OK;
    for (int64_t from = 0; rc == RC_OK && from < a->w.rows; from += ws->chunk) {
        struct chunk c = {from, a->w.rows - from < ws->chunk ? a->w.rows - from : ws->chunk};
        rc = measure_chunk(state, a, c, ws, host, e);
        if (rc == RC_OK) add_rows(total, host, c.rows);
    }
    free(host);
    return rc;
}

enum rc cuda_error(struct backend_state *state, const struct error_args *a, struct error_report *report,
                   struct err *e) {
    TRY(check_error(a, e));
    struct workspace ws;
    struct row_stats total = {};
    TRY(get_workspace(state, a, &ws, e));
    TRY(measure_rows(state, a, &ws, &total, e));
    if (a->h.data != NULL && a->drift_den != NULL) total.den = *a->drift_den;
    double count = (double)a->w.rows * (double)a->w.cols;
    *report = {total.num,           total.den,
               sqrt(total.squares), sqrt(total.weight_squares),
               total.max_abs,       count > 0 ? total.sum_abs / count : 0};
    return RC_OK;
}
