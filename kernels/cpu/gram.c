#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/syrk.h"

SIMD static void add_row(double *restrict h, const float *restrict block, int64_t n) {
    for (int64_t j = 0; j < n; j++)
        h[j] += block[j];
}

/* h[row…, col…] += block */
static void add_tile(struct mat h, const struct syrk_tile *t, const float *block) {
    for (int64_t i = 0; i < t->rows; i++)
        add_row(f64_row(h, t->row + i) + t->col, block + i * SYRK_TILE, t->cols);
}

SIMD static void stats_row(const float *restrict x, int64_t n, double *restrict sum, double *restrict sum_abs,
                           float *restrict max_abs) {
    for (int64_t k = 0; k < n; k++) {
        float magnitude = x[k] < 0 ? -x[k] : x[k];
        sum[k] += x[k];
        sum_abs[k] += magnitude;
        max_abs[k] = magnitude > max_abs[k] ? magnitude : max_abs[k];
    }
}

/* Channels [from, from + n), while the diagonal tile has them in cache. */
static void add_stats(const struct gram_args *a, int64_t from, int64_t n) {
    double sum[SYRK_TILE] = {0}, sum_abs[SYRK_TILE] = {0};
    float max_abs[SYRK_TILE] = {0};
    for (int64_t t = 0; t < a->x.rows; t++)
        stats_row(f32_row(a->x, t) + from, n, sum, sum_abs, max_abs);
    for (int64_t k = 0; k < n; k++) {
        if (a->sum != NULL) a->sum[from + k] += sum[k];
        if (a->sum_abs != NULL) a->sum_abs[from + k] += sum_abs[k];
        if (a->max_abs != NULL && max_abs[k] > a->max_abs[from + k]) a->max_abs[from + k] = max_abs[k];
    }
}

enum rc cpu_gram(struct backend_state *state, const struct gram_args *a, struct err *e) {
    TRY(check_gram(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h));
    const size_t tile_floats = (size_t)SYRK_TILE * SYRK_TILE;
    void *memory;
    TRY(cpu_scratch(state, (size_t)state->threads * tile_floats * sizeof(float), &memory, e));
    float *blocks = memory; /* [threads, SYRK_TILE, SYRK_TILE] */
    bool stats = a->sum != NULL || a->sum_abs != NULL || a->max_abs != NULL;
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < syrk_tile_count(a->x.cols); i++) {
        struct syrk_tile t = syrk_tile_at(a->x.cols, i);
        float *block = blocks + (size_t)omp_get_thread_num() * tile_floats;
        syrk_tile_compute(a->x, &t, block);
        add_tile(a->h, &t, block);
        if (stats && t.row == t.col) add_stats(a, t.row, t.rows);
    }
    return RC_OK;
}

/* Tile by tile, so that the columns read stay in cache. */
enum rc cpu_gram_finish(struct backend_state *state, struct mat h, struct err *e) {
    (void)state;
    TRY(check_gram_finish(h, e));
    TRY(CHECK_TYPE(DTYPE_F64, e, h));
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t n = 0; n < syrk_tile_count(h.rows); n++) {
        struct syrk_tile t = syrk_tile_at(h.rows, n);
        for (int64_t j = t.col; j < t.col + t.cols; j++)
            for (int64_t i = t.row; i < t.row + t.rows && i < j; i++)
                f64_row(h, j)[i] = f64_row(h, i)[j];
    }
    return RC_OK;
}
