#include <stdlib.h>

#include "kernels/cuda/device.cuh"

/* Bytes of D and of D · H kept at a time. */
static const int64_t WORKSPACE = 256 << 20;
static const int64_t ROWS_MAX = 8192, ROWS_UPPER = 2048;

struct workspace {
    void *rows, *product; /* [chunk, K] of H's type: D or G·(D·H), and D·H */
    double *kfac, *diag;  /* [N] the rows' shares */
    int64_t chunk;
    /* Of G its upper part alone, off-diagonal blocks doubled, where it is the larger factor; else of H: as G and D·H·Dᵀ
     * are symmetric, either will do, but not both. */
    bool upper;
};

struct chunk {
    int64_t from, rows; /* of D */
};

static __device__ inline float difference_at(const struct kfac_args &a, int64_t row, int64_t col) {
    float w = load_stored(a.w.data, a.w.type, row * a.w.stride + col);
    return w - load_stored(a.w_hat.data, a.w_hat.type, row * a.w_hat.stride + col);
}

/* rows [chunk, K] = D */
template <typename T> static __global__ void spread_difference(struct kfac_args a, struct chunk c, T *rows) {
    for (int64_t k = threadIdx.x; k < a.w.cols; k += BLOCK)
        store_wide(&rows[blockIdx.x * a.w.cols + k], difference_at(a, c.from + blockIdx.x, k));
}

/* diag[n] = G_nn · D_n·(D·H)_n, and D·H as the next product takes it. */
template <typename T> static __global__ void end_rows(struct kfac_args a, struct chunk c, struct workspace ws) {
    int64_t n = c.from + blockIdx.x;
    const T *row = (const T *)ws.rows + blockIdx.x * a.w.cols;
    T *product = (T *)ws.product + blockIdx.x * a.w.cols;
    double sum = 0;
    for (int64_t k = threadIdx.x; k < a.w.cols; k += BLOCK) {
        sum += (double)row[k] * product[k];
        if constexpr (sizeof(T) == sizeof(float)) store_wide(&product[k], (float)product[k]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) ws.diag[n] = ((const T *)a.g.data)[n * a.g.stride + n] * sum;
}

/* kfac[n] += D_n · (G·(D·H))_n */
template <typename T>
static __global__ void add_traces(struct kfac_args a, struct chunk c, struct workspace ws, bool first) {
    int64_t n = c.from + blockIdx.x;
    const T *row = (const T *)ws.rows + blockIdx.x * a.w.cols;
    double sum = 0;
    for (int64_t k = threadIdx.x; k < a.w.cols; k += BLOCK)
        sum += (double)row[k] * difference_at(a, n, k);
    sum = block_sum(sum);
    if (threadIdx.x == 0) ws.kfac[n] = first ? sum : ws.kfac[n] + sum;
}

static enum rc get_workspace(struct backend_state *state, const struct kfac_args *a, struct workspace *ws,
                             struct err *e) {
    int64_t rows = WORKSPACE / (2 * a->w.cols * (int64_t)dtype_size(a->h.type));
    ws->upper = a->w.rows > a->w.cols;
    rows = rows < ROWS_MAX ? rows : ROWS_MAX;
    if (ws->upper && rows > ROWS_UPPER) rows = ROWS_UPPER;
    if (rows > 64) rows -= rows % 64; /* keeps blocks of G aligned */
    rows = rows < a->w.rows ? rows : a->w.rows;
    ws->chunk = rows > 0 ? rows : 1;
    size_t matrix = ((size_t)(ws->chunk * a->w.cols) * dtype_size(a->h.type) + 255) / 256 * 256;
    void *memory;
    TRY(cuda_scratch(state, 2 * matrix + 2 * (size_t)a->w.rows * sizeof(double), &memory, e));
    ws->rows = memory;
    ws->product = (char *)memory + matrix;
    ws->kfac = (double *)((char *)memory + 2 * matrix);
    ws->diag = ws->kfac + a->w.rows;
    return RC_OK;
}

static struct chunk chunk_at(const struct kfac_args *a, const struct workspace *ws, int64_t from) {
    return {from, a->w.rows - from < ws->chunk ? a->w.rows - from : ws->chunk};
}

/* What G's columns [s.from, s.from + s.rows) bring to every row, or to those no further down. */
template <typename T>
static enum rc add_columns(struct backend_state *state, const struct kfac_args *a, const struct workspace *ws,
                           struct chunk s, struct err *e) {
    int64_t cols = a->w.cols;
    struct mat product = {ws->product, s.rows, cols, cols, a->h.type};
    for (int64_t from = 0; from < (ws->upper ? s.from + s.rows : a->w.rows); from += ws->chunk) {
        struct chunk c = chunk_at(a, ws, from);
        bool first = s.from == (ws->upper ? from : 0);
        struct mat g = {(T *)a->g.data + from * a->g.stride + s.from, c.rows, s.rows, a->g.stride, a->g.type};
        struct mat out = {ws->rows, c.rows, cols, cols, a->h.type};
        TRY(cuda_wide_product(state, &g, &product, ws->upper && from < s.from ? 2 : 1, 0, &out, e));
        add_traces<T><<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*a, c, *ws, first);
        LAUNCHED();
    }
    return RC_OK;
}

template <typename T>
static enum rc measure(struct backend_state *state, const struct kfac_args *a, const struct workspace *ws,
                       struct err *e) {
    int64_t cols = a->w.cols;
    for (int64_t from = 0; from < a->w.rows; from += ws->chunk) {
        struct chunk s = chunk_at(a, ws, from);
        struct mat rows = {ws->rows, s.rows, cols, cols, a->h.type},
                   product = {ws->product, s.rows, cols, cols, a->h.type};
        spread_difference<T><<<(unsigned)s.rows, BLOCK, 0, state->stream>>>(*a, s, (T *)ws->rows);
        LAUNCHED();
        TRY(ws->upper ? cuda_wide_product(state, &rows, &a->h, 1, 0, &product, e)
                      : cuda_times_gram(state, &rows, &a->h, &product, e));
        end_rows<T><<<(unsigned)s.rows, BLOCK, 0, state->stream>>>(*a, s, *ws);
        LAUNCHED();
        TRY(add_columns<T>(state, a, ws, s, e));
    }
    return RC_OK;
}

static enum rc add_up(struct backend_state *state, const struct workspace *ws, int64_t rows, struct kfac_report *report,
                      struct err *e) {
    double *host = (double *)calloc(2 * (size_t)rows, sizeof *host);
    if (host == NULL) return err_set(e, RC_NO_MEMORY, "no memory for the traces of %lld rows", (long long)rows);
    enum rc rc = cuda_download(state, ws->kfac, 2 * (size_t)rows * sizeof *host, host, e);
    for (int64_t n = 0; rc == RC_OK && n < rows; n++) {
        report->kfac += host[n];
        report->diag += host[rows + n];
    }
    free(host);
    return rc;
}

enum rc cuda_kfac(struct backend_state *state, const struct kfac_args *a, struct kfac_report *report, struct err *e) {
    TRY(check_kfac(a, e));
    if (a->h.type != a->g.type || (a->h.type != DTYPE_F32 && a->h.type != DTYPE_F64))
        return err_set(e, RC_UNSUPPORTED, "kfac: g of type %d beside h of type %d", (int)a->g.type, (int)a->h.type);
    *report = {};
    if (a->w.rows == 0 || a->w.cols == 0) return RC_OK;
    struct workspace ws;
    TRY(get_workspace(state, a, &ws, e));
    TRY(a->h.type == DTYPE_F64 ? measure<double>(state, a, &ws, e) : measure<float>(state, a, &ws, e));
    return add_up(state, &ws, a->w.rows, report, e);
}
