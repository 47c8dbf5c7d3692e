#include <cblas.h>
#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/syrk.h"
#include "kernels/cpu/vec.h"

/* Rows of D kept at a time. */
enum { CHUNK = 1024 };

struct row_stats {
    double squares, sum_abs, max_abs, weight_squares;
};

struct workspace {
    float *difference;       /* [CHUNK, K] */
    double *wide;            /* [CHUNK, K] the rows whose trace is taken */
    double *blocks;          /* [threads, SYRK_TILE, SYRK_TILE] */
    double *partial;         /* [tiles] */
    struct row_stats *stats; /* [CHUNK] */
};

static enum rc workspace_get(struct backend_state *state, const struct error_args *a, struct workspace *ws,
                             struct err *e) {
    size_t difference = (size_t)CHUNK * (size_t)a->w.cols * sizeof(float);
    size_t wide = (size_t)CHUNK * (size_t)a->w.cols * sizeof(double);
    size_t blocks = (size_t)state->threads * SYRK_TILE * SYRK_TILE * sizeof(double);
    size_t stats = CHUNK * sizeof(struct row_stats);
    size_t partial = (size_t)syrk_tile_count(a->w.cols) * sizeof(double);
    void *memory;
    TRY(cpu_scratch(state, difference + wide + blocks + stats + partial, &memory, e));
    char *at = memory; /* every part but the last is a multiple of 64 bytes */
    ws->difference = (float *)at;
    ws->wide = (double *)(at + difference);
    ws->blocks = (double *)(at + difference + wide);
    ws->stats = (struct row_stats *)(at + difference + wide + blocks);
    ws->partial = (double *)(at + difference + wide + blocks + stats);
    return RC_OK;
}

SIMD static void subtract(const float *restrict a, const float *restrict b, int64_t n, float *restrict out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = a[i] - b[i];
}

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

/* tr(X H Xᵀ) = Σ (XᵀX) ∘ H. In fp64 throughout: where an output is small because its terms cancel, fp32 products would
 * leave few digits of it. */
static double trace(struct backend_state *state, struct mat x, struct mat h, const struct workspace *ws) {
    int64_t tiles = syrk_tile_count(x.cols);
#pragma omp parallel for num_threads(state->threads)
    for (int64_t i = 0; i < x.rows; i++)
        widen(f32_row(x, i), x.cols, ws->wide + i * x.cols);
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < tiles; i++) {
        struct syrk_tile t = syrk_tile_at(x.cols, i);
        double *block = ws->blocks + (size_t)omp_get_thread_num() * SYRK_TILE * SYRK_TILE;
        const double *rows = ws->wide + t.row, *cols = ws->wide + t.col;
        cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)t.rows, (int)t.cols, (int)x.rows, 1, rows,
                    (int)x.cols, cols, (int)x.cols, 0, block, SYRK_TILE);
        ws->partial[i] = tile_trace(h, &t, block);
    }
    (void)state;
    double sum = 0;
    for (int64_t i = 0; i < tiles; i++)
        sum += ws->partial[i];
    return sum;
}

static void subtract_chunk(struct backend_state *state, const struct error_args *a, int64_t from, int64_t rows,
                           const struct workspace *ws) {
    (void)state;
    int64_t cols = a->w.cols;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t i = 0; i < rows; i++) {
        const float *w = f32_row(a->w, from + i);
        float *d = ws->difference + i * cols;
        subtract(w, f32_row(a->w_hat, from + i), cols, d);
        if (a->difference.data != NULL) memcpy(f32_row(a->difference, from + i), d, (size_t)cols * sizeof *d);
        ws->stats[i] = (struct row_stats){vec_sum_squares(d, cols), vec_sum_abs(d, cols), vec_max_abs(d, cols),
                                          vec_sum_squares(w, cols)};
    }
}

enum rc cpu_error(struct backend_state *state, const struct error_args *a, struct error_report *report, struct err *e) {
    TRY(check_error(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->w, a->w_hat, a->difference));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h));
    struct workspace ws;
    TRY(workspace_get(state, a, &ws, e));
    struct row_stats total = {0};
    double num = 0, den = 0;
    for (int64_t from = 0; from < a->w.rows; from += CHUNK) {
        int64_t rows = a->w.rows - from < CHUNK ? a->w.rows - from : CHUNK;
        subtract_chunk(state, a, from, rows, &ws);
        for (int64_t i = 0; i < rows; i++) {
            total.squares += ws.stats[i].squares;
            total.sum_abs += ws.stats[i].sum_abs;
            total.max_abs = fmax(total.max_abs, ws.stats[i].max_abs);
            total.weight_squares += ws.stats[i].weight_squares;
        }
        if (a->h.data == NULL) continue;
        struct mat w = {f32_row(a->w, from), rows, a->w.cols, a->w.stride, DTYPE_F32};
        num += trace(state, matf(ws.difference, rows, a->w.cols), a->h, &ws);
        if (a->drift_den == NULL) den += trace(state, w, a->h, &ws);
    }
    if (a->h.data != NULL && a->drift_den != NULL) den = *a->drift_den;
    double count = (double)a->w.rows * (double)a->w.cols;
    *report = (struct error_report){.drift_num = num,
                                    .drift_den = den,
                                    .frobenius = sqrt(total.squares),
                                    .weight_frobenius = sqrt(total.weight_squares),
                                    .max_abs = total.max_abs,
                                    .mean_abs = count > 0 ? total.sum_abs / count : 0};
    return RC_OK;
}
