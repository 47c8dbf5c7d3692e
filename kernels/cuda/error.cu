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

/* COUNT neighbours of a matrix of any type. */
template <int COUNT>
static __device__ inline struct vector<float, COUNT> load_floats(const struct mat &m, int64_t row, int64_t col) {
    struct vector<float, COUNT> out;
    int64_t at = row * m.stride + col;
    if (COUNT > 1 && m.type == DTYPE_F32) return load_vector<float, COUNT>((const float *)m.data + at);
    if (COUNT > 1 && m.type == DTYPE_BF16) {
        struct vector<__nv_bfloat16, COUNT> values =
            load_vector<__nv_bfloat16, COUNT>((const __nv_bfloat16 *)m.data + at);
        for (int i = 0; i < COUNT; i++)
            out.at[i] = to_float(values.at[i]);
        return out;
    }
    for (int i = 0; i < COUNT; i++)
        out.at[i] = load_stored(m.data, m.type, at + i);
    return out;
}

template <int COUNT>
static __device__ inline void store_floats(const struct mat &m, int64_t row, int64_t col,
                                           struct vector<float, COUNT> v) {
    int64_t at = row * m.stride + col;
    if (COUNT > 1 && m.type == DTYPE_BF16) {
        struct vector<__nv_bfloat16, COUNT> values;
        for (int i = 0; i < COUNT; i++)
            values.at[i] = from_float<__nv_bfloat16>(v.at[i]);
        store_vector((__nv_bfloat16 *)m.data + at, values);
    } else {
        for (int i = 0; i < COUNT; i++)
            store_as(m.data, m.type, at + i, v.at[i]);
    }
}

/* The statistics of each row's D, and D itself into `rows` (NULL: not needed); COUNT neighbours at a time. */
template <typename T, int COUNT>
static __global__ void compare_rows(struct error_args a, struct chunk c, struct row_stats *stats, T *rows) {
    int64_t n = c.from + blockIdx.x;
    double squares = 0, sum_abs = 0, weight_squares = 0;
    float max_abs = 0;
    for (int64_t k = threadIdx.x * COUNT; k < a.w.cols; k += BLOCK * COUNT) {
        struct vector<float, COUNT> w = load_floats<COUNT>(a.w, n, k), d = load_floats<COUNT>(a.w_hat, n, k);
        for (int i = 0; i < COUNT; i++) {
            d.at[i] = w.at[i] - d.at[i];
            squares += (double)d.at[i] * d.at[i];
            sum_abs += fabsf(d.at[i]);
            max_abs = fmaxf(max_abs, fabsf(d.at[i]));
            weight_squares += (double)w.at[i] * w.at[i];
            if (rows) store_wide(&rows[blockIdx.x * a.w.cols + k + i], d.at[i]);
        }
        if (a.difference.data) store_floats<COUNT>(a.difference, n, k, d);
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

static const int FOUR = 4;

static bool in_fours(const struct mat *m) {
    return m->data == NULL || rows_aligned(m, 1, FOUR * dtype_size(m->type));
}

/* Each row's x · H · xᵀ. */
template <typename T>
static enum rc trace(struct backend_state *state, const struct error_args *a, struct chunk c, bool difference,
                     const struct workspace *ws, struct err *e) {
    int64_t cols = a->w.cols;
    struct mat rows = {ws->rows, c.rows, cols, cols, a->h.type}, product = {ws->product, c.rows, cols, cols, a->h.type};
    TRY(cuda_times_gram(state, &rows, &a->h, &product, e));
    row_traces<T><<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*ws, cols, difference);
    LAUNCHED();
    return RC_OK;
}

template <typename T>
static enum rc measure_typed(struct backend_state *state, const struct error_args *a, struct chunk c,
                             const struct workspace *ws, struct err *e) {
    T *rows = a->h.data ? (T *)ws->rows : NULL;
    if (in_fours(&a->w) && in_fours(&a->w_hat) && in_fours(&a->difference))
        compare_rows<T, FOUR><<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*a, c, ws->stats, rows);
    else
        compare_rows<T, 1><<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*a, c, ws->stats, rows);
    LAUNCHED();
    if (a->h.data != NULL) TRY(trace<T>(state, a, c, true, ws, e));
    if (a->h.data == NULL || a->drift_den != NULL) return RC_OK;
    spread_rows<<<(unsigned)c.rows, BLOCK, 0, state->stream>>>(*a, c, rows);
    LAUNCHED();
    return trace<T>(state, a, c, false, ws, e);
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
    TRY(check_activation(state, &a->difference, e));
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
