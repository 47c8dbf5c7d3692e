/* U with H′⁻¹ = UᵀU, without inverting H′: flipped end to end, H′ has the Cholesky factor L, and U is L⁻¹ flipped back.
 * Half the work, and none of the digits that an inverse and a second factorization would lose. fp64 throughout. */
#include <cblas.h>
#include <f77blas.h>
#include <math.h>

#include "kernels/check.h"
#include "kernels/columns.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/syrk.h"

enum { TILE = SYRK_TILE };

struct workspace {
    double *lower; /* [K, K] H′ flipped, then L, then L⁻¹: the lower triangle, and zeros in the tiles on the diagonal */
    double *panel;    /* [TILE, K] */
    double *diagonal; /* [K] */
    int64_t cols;     /* K */
};

static enum rc workspace_get(struct backend_state *state, int64_t cols, struct workspace *ws, struct err *e) {
    size_t square = (size_t)(cols * cols), panel = (size_t)(TILE * cols);
    void *memory;
    TRY(cpu_scratch(state, (square + panel + (size_t)cols) * sizeof(double), &memory, e));
    double *at = memory;
    *ws = (struct workspace){at, at + square, at + square + panel, cols};
    return RC_OK;
}

static int64_t tile_size(const struct workspace *ws, int64_t from) {
    return ws->cols - from < TILE ? ws->cols - from : TILE;
}

static double *tile_at(const struct workspace *ws, int64_t row, int64_t col) {
    return ws->lower + row * ws->cols + col;
}

/* A finite value times zero is zero. */
SIMD static double times_zero(const double *x, int64_t n) {
    double lane[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t live = n - i < LANES ? n - i : LANES;
        for (int l = 0; l < live; l++)
            lane[l] += x[i + l] * 0.0;
    }
    return add_lanes_f64(lane);
}

static enum rc check_finite(struct backend_state *state, struct mat h, struct err *e) {
    (void)state;
    int64_t bad = h.rows;
#pragma omp parallel for num_threads(state->threads) reduction(min : bad)
    for (int64_t k = 0; k < h.rows; k++)
        if (k < bad && times_zero(f64_row(h, k), h.cols) != 0) bad = k;
    if (bad == h.rows) return RC_OK;
    return err_set(e, RC_INVALID, "H is not finite at channel %lld: the activations have overflowed", (long long)bad);
}

/* The flipped H′. What lies beside a dead column's diagonal is at most an underflow's remainder. */
static void gather(struct backend_state *state, const struct factor_args *a, double added, const struct workspace *ws) {
    (void)state;
    const int32_t *order = a->out->order;
    const uint8_t *dead = a->out->dead;
    int64_t last = ws->cols - 1;
#pragma omp parallel for num_threads(state->threads) schedule(dynamic, 16)
    for (int64_t i = 0; i <= last; i++) {
        int32_t row = order[last - i];
        const double *h = f64_row(a->h, row);
        double *out = tile_at(ws, i, 0);
        for (int64_t j = 0; j < i; j++) {
            int32_t col = order[last - j];
            out[j] = dead[row] || dead[col] ? 0 : h[col];
        }
        out[i] = dead[row] ? 1 : h[row] + added;
    }
}

/* L's columns from `at` on, and what they take from the tiles to their right. */
static void eliminate(struct backend_state *state, const struct workspace *ws, int64_t at) {
    (void)state;
    int64_t width = tile_size(ws, at), rest = ws->cols - at - width, stride = ws->cols;
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = at + width; i < ws->cols; i += TILE)
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)tile_size(ws, i), (int)width,
                    1, tile_at(ws, at, at), (int)stride, tile_at(ws, i, at), (int)stride);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t n = 0; n < syrk_tile_count(rest); n++) {
        struct syrk_tile t = syrk_tile_at(rest, n); /* of the upper triangle: turned over here */
        int64_t row = at + width + t.col, col = at + width + t.row;
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)t.cols, (int)t.rows, (int)width, -1,
                    tile_at(ws, row, at), (int)stride, tile_at(ws, col, at), (int)stride, 1, tile_at(ws, row, col),
                    (int)stride);
    }
}

/* H′ → L; false when it is not positive definite. To LAPACK, which counts columns first, L is an upper factor. */
static bool cholesky(struct backend_state *state, const struct workspace *ws) {
    int stride = (int)ws->cols;
    for (int64_t at = 0; at < ws->cols; at += TILE) {
        int size = (int)tile_size(ws, at), info = 0;
        BLASFUNC(dpotrf)("U", &size, tile_at(ws, at, at), &stride, &info);
        if (info != 0) return false;
        eliminate(state, ws, at);
    }
    return true;
}

static void clear_above(const struct workspace *ws, int64_t at) {
    int64_t size = tile_size(ws, at);
    for (int64_t i = 0; i < size; i++)
        for (int64_t j = i + 1; j < size; j++)
            *tile_at(ws, at + i, at + j) = 0;
}

/* The rows of L⁻¹ from `at` on, from those above: X_k = −L_kk⁻¹ · Σ_m L_km X_m. */
static bool invert_rows(struct backend_state *state, const struct workspace *ws, int64_t at) {
    (void)state;
    int size = (int)tile_size(ws, at), stride = (int)ws->cols, info = 0;
    clear_above(ws, at);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t j = 0; j < at; j += TILE)
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, size, TILE, (int)(at - j), 1, tile_at(ws, at, j), stride,
                    tile_at(ws, j, j), stride, 0, ws->panel + j, stride);
    BLASFUNC(dtrtri)("U", "N", &size, tile_at(ws, at, at), &stride, &info);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t j = 0; j < at; j += TILE)
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, size, TILE, size, -1, tile_at(ws, at, at), stride,
                    ws->panel + j, stride, 0, tile_at(ws, at, j), stride);
    return info == 0;
}

static bool factorize(struct backend_state *state, const struct factor_args *a, double added,
                      const struct workspace *ws) {
    gather(state, a, added, ws);
    if (!cholesky(state, ws)) return false;
    for (int64_t at = 0; at < ws->cols; at += TILE)
        if (!invert_rows(state, ws, at)) return false;
    return true;
}

/* U = L⁻¹ flipped back; false when fp32 cannot hold it. */
static bool store(struct backend_state *state, const struct workspace *ws, float *upper) {
    (void)state;
    int64_t last = ws->cols - 1;
    float strange = 0;
#pragma omp parallel for num_threads(state->threads) reduction(+ : strange)
    for (int64_t i = 0; i <= last; i++) {
        const double *from = tile_at(ws, last - i, 0);
        float *to = upper + i * ws->cols;
        for (int64_t j = 0; j < i; j++)
            to[j] = 0;
        for (int64_t j = i; j <= last; j++) {
            to[j] = (float)from[last - j];
            strange += to[j] * 0.0f;
        }
        if (!(to[i] > 0)) strange = NAN;
    }
    return strange == 0;
}

enum rc cpu_factor(struct backend_state *state, const struct factor_args *a, struct err *e) {
    TRY(check_factor(a, e));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h));
    TRY(check_finite(state, a->h, e));
    struct workspace ws;
    double mean;
    TRY(workspace_get(state, a->h.cols, &ws, e));
    for (int64_t k = 0; k < ws.cols; k++)
        ws.diagonal[k] = f64_row(a->h, k)[k];
    TRY(columns_sort(a, ws.diagonal, &mean, e));
    double damp = a->damp;
    while (!factorize(state, a, damp * mean, &ws)) {
        if (damp >= 1)
            return err_set(e, RC_INVALID, "H is no sum of squares: not positive definite with all of its mean added");
        damp = fmin(2 * damp, 1);
    }
    if (!store(state, &ws, a->out->upper))
        return err_set(e, RC_INVALID, "H, %g in the mean on its diagonal, is out of fp32's range", mean);
    a->out->damp = damp;
    a->out->mean = mean;
    return RC_OK;
}
