#include <cblas.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* Tiles are as large as leaves every thread some: a tile packs its part of x and w anew. */
enum { TILE_ROWS = 512, TILE_COLS = 1024, TILE_MIN = 64, TILES_PER_THREAD = 2 };

struct tiling {
    int64_t rows, cols; /* of one tile */
    int64_t row_tiles, col_tiles;
};

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static struct tiling choose_tiling(int64_t rows, int64_t cols, int threads) {
    struct tiling t = {.row_tiles = ceil_div(rows, TILE_ROWS), .col_tiles = ceil_div(cols, TILE_COLS)};
    for (;;) {
        t.rows = ceil_div(rows, t.row_tiles);
        t.cols = ceil_div(cols, t.col_tiles);
        bool enough = threads == 1 || t.row_tiles * t.col_tiles >= (int64_t)TILES_PER_THREAD * threads;
        if (enough || (t.rows <= TILE_MIN && t.cols <= TILE_MIN)) return t;
        if (t.cols >= t.rows)
            t.col_tiles *= 2;
        else
            t.row_tiles *= 2;
    }
}

SIMD static void add_bias(float *restrict out, const float *restrict bias, int64_t n, float alpha) {
    for (int64_t i = 0; i < n; i++)
        out[i] += alpha * bias[i];
}

static void tile(const struct gemm_args *a, int64_t row, int64_t rows, int64_t col, int64_t cols) {
    float *out = f32_row(a->out, row) + col;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)cols, (int)a->x.cols, a->alpha,
                f32_row(a->x, row), (int)a->x.stride, f32_row(a->w, col), (int)a->w.stride, a->beta, out,
                (int)a->out.stride);
    if (a->bias == NULL) return;
    for (int64_t t = 0; t < rows; t++)
        add_bias(out + t * a->out.stride, a->bias + col, cols, a->alpha);
}

enum rc cpu_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    TRY(check_gemm(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->w, a->out));
    if (a->out.rows == 0 || a->out.cols == 0) return RC_OK;
    struct tiling t = choose_tiling(a->out.rows, a->out.cols, state->threads);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < t.row_tiles * t.col_tiles; i++) {
        int64_t row = i % t.row_tiles * t.rows, col = i / t.row_tiles * t.cols;
        int64_t rows = a->out.rows - row < t.rows ? a->out.rows - row : t.rows;
        int64_t cols = a->out.cols - col < t.cols ? a->out.cols - col : t.cols;
        if (rows > 0 && cols > 0) tile(a, row, rows, col, cols);
    }
    return RC_OK;
}
