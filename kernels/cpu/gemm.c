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

/* A part of the product's output. */
struct tile {
    int64_t row, rows, col, cols;
};

static struct tile tile_at(const struct tiling *t, struct mat out, int64_t index) {
    struct tile p = {.row = index % t->row_tiles * t->rows, .col = index / t->row_tiles * t->cols};
    p.rows = out.rows - p.row < t->rows ? out.rows - p.row : t->rows;
    p.cols = out.cols - p.col < t->cols ? out.cols - p.col : t->cols;
    return p;
}

static void multiply(const struct gemm_args *a, const struct tile *p) {
    float *out = f32_row(a->out, p->row) + p->col;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)p->rows, (int)p->cols, (int)a->x.cols, a->alpha,
                f32_row(a->x, p->row), (int)a->x.stride, f32_row(a->w, p->col), (int)a->w.stride, a->beta, out,
                (int)a->out.stride);
    if (a->bias == NULL) return;
    for (int64_t t = 0; t < p->rows; t++)
        add_bias(out + t * a->out.stride, a->bias + p->col, p->cols, a->alpha);
}

enum rc cpu_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    TRY(check_gemm(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->w, a->out));
    if (a->out.rows == 0 || a->out.cols == 0) return RC_OK;
    struct tiling t = choose_tiling(a->out.rows, a->out.cols, state->threads);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < t.row_tiles * t.col_tiles; i++) {
        struct tile p = tile_at(&t, a->out, i);
        if (p.rows > 0 && p.cols > 0) multiply(a, &p);
    }
    return RC_OK;
}

static void multiply_back(const struct gemm_back_args *a, const struct tile *p) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)p->rows, (int)p->cols, (int)a->dy.cols, a->alpha,
                f32_row(a->dy, p->row), (int)a->dy.stride, f32_row(a->w, 0) + p->col, (int)a->w.stride, a->beta,
                f32_row(a->dx, p->row) + p->col, (int)a->dx.stride);
}

enum rc cpu_gemm_back(struct backend_state *state, const struct gemm_back_args *a, struct err *e) {
    TRY(check_gemm_back(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->dy, a->w, a->dx));
    if (a->dx.rows == 0 || a->dx.cols == 0) return RC_OK;
    struct tiling t = choose_tiling(a->dx.rows, a->dx.cols, state->threads);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < t.row_tiles * t.col_tiles; i++) {
        struct tile p = tile_at(&t, a->dx, i);
        if (p.rows > 0 && p.cols > 0) multiply_back(a, &p);
    }
    return RC_OK;
}
