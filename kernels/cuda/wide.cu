#include "kernels/cuda/device.cuh"

/* out [M, N] = alpha · a [M, K] · b [K, N] + beta · out. To cuBLAS, which counts columns first, that is b′ · a′. */
static enum rc multiply_f64(struct backend_state *state, const struct mat *a, const struct mat *b, double alpha,
                            double beta, struct mat *out, struct err *e) {
    CUBLAS_TRY(cublasDgemm(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)b->cols, (int)a->rows, (int)a->cols, &alpha,
                           (const double *)b->data, (int)b->stride, (const double *)a->data, (int)a->stride, &beta,
                           (double *)out->data, (int)out->stride));
    return RC_OK;
}

static enum rc multiply_tf32(struct backend_state *state, const struct mat *a, const struct mat *b, float alpha,
                             float beta, struct mat *out, struct err *e) {
    CUBLAS_TRY(cublasGemmEx(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)b->cols, (int)a->rows, (int)a->cols, &alpha,
                            b->data, CUDA_R_32F, (int)b->stride, a->data, CUDA_R_32F, (int)a->stride, &beta, out->data,
                            CUDA_R_32F, (int)out->stride, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT));
    return RC_OK;
}

enum rc cuda_wide_product(struct backend_state *state, const struct mat *a, const struct mat *b, double alpha,
                          double beta, struct mat *out, struct err *e) {
    if (out->type == DTYPE_F64) return multiply_f64(state, a, b, alpha, beta, out, e);
    return multiply_tf32(state, a, b, (float)alpha, (float)beta, out, e);
}

/* Columns of H taken together: of the part above its diagonal, which counts twice, and of the square on it. */
static const int64_t PANEL = 2048;

struct panel {
    int64_t from, inner, col, cols;
    double alpha, beta;
};

/* out[:, col … col + cols) = alpha · rows[:, from … from + inner) · H[from …, col …) + beta · itself */
static enum rc multiply_panel(struct backend_state *state, const struct mat *rows, const struct mat *h, struct mat *out,
                              struct panel p, struct err *e) {
    struct mat part = {(float *)rows->data + p.from, rows->rows, p.inner, rows->stride, rows->type};
    struct mat square = {(float *)h->data + p.from * h->stride + p.col, p.inner, p.cols, h->stride, h->type};
    struct mat columns = {(float *)out->data + p.col, out->rows, p.cols, out->stride, out->type};
    return cuda_wide_product(state, &part, &square, p.alpha, p.beta, &columns, e);
}

/* With H's upper part alone: x H xᵀ = x (2·above + squares) xᵀ. H's surplus digits are cut off, which takes the same
 * share of tr(D H Dᵀ) and of tr(W H Wᵀ): their ratio does not see it. */
static enum rc times_upper(struct backend_state *state, const struct mat *rows, const struct mat *h, struct mat *out,
                           struct err *e) {
    for (int64_t col = 0; col < h->cols; col += PANEL) {
        int64_t width = h->cols - col < PANEL ? h->cols - col : PANEL;
        TRY(multiply_panel(state, rows, h, out, {col, width, col, width, 1, 0}, e));
        if (col > 0) TRY(multiply_panel(state, rows, h, out, {0, col, col, width, 2, 1}, e));
    }
    return RC_OK;
}

enum rc cuda_times_gram(struct backend_state *state, const struct mat *rows, const struct mat *h, struct mat *out,
                        struct err *e) {
    return h->type == DTYPE_F64 ? cuda_wide_product(state, rows, h, 1, 0, out, e) : times_upper(state, rows, h, out, e);
}
