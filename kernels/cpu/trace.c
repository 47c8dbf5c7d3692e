#include "kernels/cpu/trace.h"

#include <cblas.h>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/syrk.h"

SIMD static double dot(const double *restrict block, const double *restrict h, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += block[i + l] * h[i + l];
    for (int l = 0; i < n; i++, l++)
        lane[l] += block[i] * h[i];
    for (int l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* Σ over one tile and, off the diagonal, its mirror image; the diagonal tile counts its upper triangle twice and its
 * diagonal once. */
static double tile_trace(struct mat h, const struct syrk_tile *t, const double *block) {
    double sum = 0;
    for (int64_t i = 0; i < t->rows; i++) {
        const double *row = f64_row(h, t->row + i) + t->col;
        if (t->row == t->col) {
            sum += block[i * SYRK_TILE + i] * row[i];
            sum += 2 * dot(block + i * SYRK_TILE + i + 1, row + i + 1, t->cols - i - 1);
        } else {
            sum += 2 * dot(block + i * SYRK_TILE, row, t->cols);
        }
    }
    return sum;
}

SIMD static void widen(const float *restrict in, int64_t n, double *restrict out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = in[i];
}

struct workspace {
    double *wide;    /* [TRACE_ROWS, K] the rows */
    double *blocks;  /* [threads, SYRK_TILE, SYRK_TILE] */
    double *partial; /* [tiles] */
};

size_t trace_bytes(const struct backend_state *state, int64_t cols) {
    size_t wide = (size_t)TRACE_ROWS * (size_t)cols, blocks = (size_t)state->threads * SYRK_TILE * SYRK_TILE;
    return (wide + blocks + (size_t)syrk_tile_count(cols)) * sizeof(double);
}

static struct workspace workspace_in(const struct backend_state *state, int64_t cols, void *memory) {
    struct workspace ws = {.wide = memory};
    ws.blocks = ws.wide + TRACE_ROWS * cols;
    ws.partial = ws.blocks + (int64_t)state->threads * SYRK_TILE * SYRK_TILE;
    return ws;
}

double trace(struct backend_state *state, struct mat x, struct mat h, void *memory) {
    const struct workspace ws = workspace_in(state, x.cols, memory);
    int64_t tiles = syrk_tile_count(x.cols);
#pragma omp parallel for num_threads(state->threads)
    for (int64_t i = 0; i < x.rows; i++)
        widen(f32_row(x, i), x.cols, ws.wide + i * x.cols);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < tiles; i++) {
        struct syrk_tile t = syrk_tile_at(x.cols, i);
        double *block = ws.blocks + (size_t)omp_get_thread_num() * SYRK_TILE * SYRK_TILE;
        const double *rows = ws.wide + t.row, *cols = ws.wide + t.col;
        cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)t.rows, (int)t.cols, (int)x.rows, 1, rows,
                    (int)x.cols, cols, (int)x.cols, 0, block, SYRK_TILE);
        ws.partial[i] = tile_trace(h, &t, block);
    }
    (void)state;
    double sum = 0;
    for (int64_t i = 0; i < tiles; i++)
        sum += ws.partial[i];
    return sum;
}
