#include <cblas.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"

/* gᵀ·x exists for so many rows of the Linear at a time and thread. */
enum { TILE = 128 };

static int64_t groups_of(const struct scale_back_args *a) {
    return (a->x.cols + a->group - 1) / a->group;
}

/* One row n of gᵀ·x; `sums` [G] is overwritten. */
static void add_row(const struct scale_back_args *a, int64_t n, const float *product, double *sums) {
    const float *w = f32_row(a->w_hat, n);
    int64_t groups = groups_of(a);
    for (int64_t j = 0; j < groups; j++)
        sums[j] = 0;
    for (int64_t k = 0; k < a->x.cols; k++)
        sums[a->group_of != NULL ? a->group_of[k] : k / a->group] += (double)product[k] * w[k];
    for (int64_t j = 0; j < groups; j++)
        a->slope[n * groups + j] += (float)sums[j];
}

static void add_tile(const struct scale_back_args *a, int64_t row, double *sums, float *products) {
    int64_t rows = a->w_hat.rows - row < TILE ? a->w_hat.rows - row : TILE;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)rows, (int)a->x.cols, (int)a->x.rows, 1,
                f32_row(a->g, 0) + row, (int)a->g.stride, f32_row(a->x, 0), (int)a->x.stride, 0, products,
                (int)a->x.cols);
    for (int64_t n = 0; n < rows; n++)
        add_row(a, row + n, products + n * a->x.cols, sums);
}

enum rc cpu_scale_back(struct backend_state *state, const struct scale_back_args *a, struct err *e) {
    TRY(check_scale_back(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->g, a->w_hat));
    if (a->x.rows == 0) return RC_OK;
    size_t sums = (size_t)groups_of(a), products = (size_t)TILE * (size_t)a->x.cols, threads = (size_t)state->threads;
    void *memory;
    TRY(cpu_scratch(state, threads * (sums * sizeof(double) + products * sizeof(float)), &memory, e));
    double *all_sums = memory;                                  /* [threads, G] */
    float *all_products = (float *)(all_sums + threads * sums); /* [threads, TILE, K] */
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t row = 0; row < a->w_hat.rows; row += TILE) {
        size_t thread = (size_t)omp_get_thread_num();
        add_tile(a, row, all_sums + thread * sums, all_products + thread * products);
    }
    return RC_OK;
}
