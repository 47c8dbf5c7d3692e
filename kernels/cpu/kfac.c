#include <cblas.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* Rows of D · H kept at a time; the products are computed in square tiles. */
enum { CHUNK = 512, TILE = 256 };

struct workspace {
    double *rows, *product; /* [CHUNK, K] D and D·H */
    double *blocks;         /* [threads, TILE, TILE] */
    double *partial;        /* [tiles of N × K, or CHUNK] */
};

/* A tile of a product: at most TILE × TILE. */
struct tile {
    int64_t row, col, rows, cols;
};

static int64_t tiles_across(int64_t count) {
    return (count + TILE - 1) / TILE;
}

static int64_t tile_count(int64_t rows, int64_t cols) {
    return tiles_across(rows) * tiles_across(cols);
}

static struct tile tile_at(int64_t rows, int64_t cols, int64_t index) {
    struct tile t = {.row = index / tiles_across(cols) * TILE, .col = index % tiles_across(cols) * TILE};
    t.rows = rows - t.row < TILE ? rows - t.row : TILE;
    t.cols = cols - t.col < TILE ? cols - t.col : TILE;
    return t;
}

static enum rc get_workspace(struct backend_state *state, const struct kfac_args *a, struct workspace *ws,
                             struct err *e) {
    size_t matrix = (size_t)CHUNK * (size_t)a->w.cols * sizeof(double);
    size_t blocks = (size_t)state->threads * TILE * TILE * sizeof(double);
    size_t partial = ((size_t)tile_count(a->w.rows, a->w.cols) + CHUNK) * sizeof(double);
    void *memory;
    TRY(cpu_scratch(state, 2 * matrix + blocks + partial, &memory, e));
    char *at = memory; /* every part but the last is a multiple of 64 bytes */
    ws->rows = (double *)at;
    ws->product = (double *)(at + matrix);
    ws->blocks = (double *)(at + 2 * matrix);
    ws->partial = (double *)(at + 2 * matrix + blocks);
    return RC_OK;
}

SIMD static void subtract(const float *restrict a, const float *restrict b, int64_t n, double *restrict out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = a[i] - b[i];
}

SIMD static double dot(const double *restrict a, const double *restrict b, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += a[i + l] * b[i + l];
    for (int l = 0; i < n; i++, l++)
        lane[l] += a[i] * b[i];
    return add_lanes_f64(lane);
}

static void subtract_rows(struct backend_state *state, const struct kfac_args *a, int64_t from, int64_t rows,
                          const struct workspace *ws) {
    (void)state;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t i = 0; i < rows; i++)
        subtract(f32_row(a->w, from + i), f32_row(a->w_hat, from + i), a->w.cols, ws->rows + i * a->w.cols);
}

static void times_gram(struct backend_state *state, const struct kfac_args *a, int64_t rows,
                       const struct workspace *ws) {
    (void)state;
    int64_t cols = a->w.cols;
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < tile_count(rows, cols); i++) {
        struct tile t = tile_at(rows, cols, i);
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)t.rows, (int)t.cols, (int)cols, 1,
                    ws->rows + t.row * cols, (int)cols, f64_row(a->h, 0) + t.col, (int)a->h.stride, 0,
                    ws->product + t.row * cols + t.col, (int)cols);
    }
}

static double add_up(const double *values, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += values[i];
    return sum;
}

/* Σ G_nn · D_n·(D·H)_n of some rows. */
static double diagonal(struct backend_state *state, const struct kfac_args *a, int64_t from, int64_t rows,
                       const struct workspace *ws) {
    (void)state;
    int64_t cols = a->w.cols;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t i = 0; i < rows; i++)
        ws->partial[i] = f64_row(a->g, from + i)[from + i] * dot(ws->rows + i * cols, ws->product + i * cols, cols);
    return add_up(ws->partial, rows);
}

/* Σ D ∘ (G·(D·H)) over one tile, with the columns [from, from + rows) of G. */
static double tile_trace(const struct kfac_args *a, const struct tile *t, int64_t from, int64_t rows,
                         const struct workspace *ws) {
    double *block = ws->blocks + (size_t)omp_get_thread_num() * TILE * TILE, difference[TILE], sum = 0;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)t->rows, (int)t->cols, (int)rows, 1,
                f64_row(a->g, t->row) + from, (int)a->g.stride, ws->product + t->col, (int)a->w.cols, 0, block, TILE);
    for (int64_t i = 0; i < t->rows; i++) {
        subtract(f32_row(a->w, t->row + i) + t->col, f32_row(a->w_hat, t->row + i) + t->col, t->cols, difference);
        sum += dot(difference, block + i * TILE, t->cols);
    }
    return sum;
}

static double trace(struct backend_state *state, const struct kfac_args *a, int64_t from, int64_t rows,
                    const struct workspace *ws) {
    (void)state;
    int64_t tiles = tile_count(a->w.rows, a->w.cols);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < tiles; i++) {
        struct tile t = tile_at(a->w.rows, a->w.cols, i);
        ws->partial[i] = tile_trace(a, &t, from, rows, ws);
    }
    return add_up(ws->partial, tiles);
}

enum rc cpu_kfac(struct backend_state *state, const struct kfac_args *a, struct kfac_report *report, struct err *e) {
    TRY(check_kfac(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->w, a->w_hat));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h, a->g));
    struct workspace ws;
    *report = (struct kfac_report){0};
    if (a->w.cols == 0) return RC_OK;
    TRY(get_workspace(state, a, &ws, e));
    for (int64_t from = 0; from < a->w.rows; from += CHUNK) {
        int64_t rows = a->w.rows - from < CHUNK ? a->w.rows - from : CHUNK;
        subtract_rows(state, a, from, rows, &ws);
        times_gram(state, a, rows, &ws);
        report->diag += diagonal(state, a, from, rows, &ws);
        report->kfac += trace(state, a, from, rows, &ws);
    }
    return RC_OK;
}
