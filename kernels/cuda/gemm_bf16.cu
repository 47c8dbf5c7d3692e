/* Products in bf16 on the tensor cores with sums in fp32, by cuBLASLt, which adds bias and residual as it stores. */
#include <stdlib.h>

#include "kernels/cuda/device.cuh"

/* What the choice of an algorithm depends on. */
struct gemm_shape {
    int64_t rows, cols, inner;              /* T, N, K */
    int64_t x_stride, w_stride, out_stride; /* in elements */
    unsigned x_align, w_align, out_align;   /* bytes, up to 16 */
    enum dtype out_type;
    bool bias;
    bool back; /* w is [K, N], as gemm_back reads it: not transposed */
};

struct gemm_plan {
    struct gemm_shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t x, w, out;
    cublasLtMatmulAlgo_t algorithm;
};

struct gemm_plans { /* of the shapes seen: a few dozen in a model */
    struct gemm_plan *all;
    size_t count, room;
};

static unsigned alignment(struct mat m) {
    uintptr_t bits = (uintptr_t)m.data | 16;
    return (unsigned)(bits & -bits);
}

static struct gemm_shape shape_of(const struct gemm_args *a, bool back) {
    struct gemm_shape s = {}; /* all bytes: shapes are compared by them */
    s.rows = a->out.rows;
    s.cols = a->out.cols;
    s.inner = a->x.cols;
    s.x_stride = a->x.stride;
    s.w_stride = a->w.stride;
    s.out_stride = a->out.stride;
    s.x_align = alignment(a->x);
    s.w_align = alignment(a->w);
    s.out_align = alignment(a->out);
    s.out_type = a->out.type;
    s.bias = a->bias != NULL;
    s.back = back;
    return s;
}

static bool same(const struct gemm_shape *a, const struct gemm_shape *b) {
    return a->rows == b->rows && a->cols == b->cols && a->inner == b->inner && a->x_stride == b->x_stride &&
           a->w_stride == b->w_stride && a->out_stride == b->out_stride && a->x_align == b->x_align &&
           a->w_align == b->w_align && a->out_align == b->out_align && a->out_type == b->out_type &&
           a->bias == b->bias && a->back == b->back;
}

static cudaDataType_t data_type(enum dtype type) {
    return type == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static enum rc describe(struct gemm_plan *p, struct err *e) {
    const struct gemm_shape *s = &p->shape;
    const cublasOperation_t transposed = s->back ? CUBLAS_OP_N : CUBLAS_OP_T;
    const int64_t w_rows = s->back ? s->cols : s->inner, w_cols = s->back ? s->inner : s->cols;
    const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
    const cudaDataType_t bias_type = data_type(s->out_type);
    CUBLAS_TRY(cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_TRY(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (s->bias) {
        CUBLAS_TRY(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof bias));
        CUBLAS_TRY(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                                                  sizeof bias_type));
    }
    CUBLAS_TRY(cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, (uint64_t)w_rows, (uint64_t)w_cols, s->w_stride));
    CUBLAS_TRY(cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, (uint64_t)s->inner, (uint64_t)s->rows, s->x_stride));
    CUBLAS_TRY(cublasLtMatrixLayoutCreate(&p->out, data_type(s->out_type), (uint64_t)s->cols, (uint64_t)s->rows,
                                          s->out_stride));
    return RC_OK;
}

/* By cuBLAS's own heuristic and not by a race: the same shapes must give the same bits in every process. */
static enum rc choose_algorithm(struct backend_state *state, struct gemm_plan *p, cublasLtMatmulPreference_t wish,
                                struct err *e) {
    const struct gemm_shape *s = &p->shape;
    const uint32_t w = s->w_align, x = s->x_align, out = s->out_align;
    const uint64_t workspace = cuda_blas_workspace_bytes;
    CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                    sizeof workspace));
    CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &w, sizeof w));
    CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x, sizeof x));
    CUBLAS_TRY(
        cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out, sizeof out));
    CUBLAS_TRY(
        cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out, sizeof out));
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    CUBLAS_TRY(
        cublasLtMatmulAlgoGetHeuristic(state->lt, p->product, p->w, p->x, p->out, p->out, wish, 1, &best, &found));
    if (found == 0)
        return err_set(e, RC_UNSUPPORTED, "cuBLAS has no product of [%lld, %lld] and [%lld, %lld] in bf16",
                       (long long)s->rows, (long long)s->inner, (long long)s->cols, (long long)s->inner);
    p->algorithm = best.algo;
    return RC_OK;
}

static void plan_release(struct gemm_plan *p) {
    if (p->product) cublasLtMatmulDescDestroy(p->product);
    if (p->x) cublasLtMatrixLayoutDestroy(p->x);
    if (p->w) cublasLtMatrixLayoutDestroy(p->w);
    if (p->out) cublasLtMatrixLayoutDestroy(p->out);
}

static enum rc make_plan(struct backend_state *state, struct gemm_plan *p, struct err *e) {
    cublasLtMatmulPreference_t wish;
    CUBLAS_TRY(cublasLtMatmulPreferenceCreate(&wish));
    enum rc rc = describe(p, e);
    if (rc == RC_OK) rc = choose_algorithm(state, p, wish, e);
    cublasLtMatmulPreferenceDestroy(wish);
    if (rc != RC_OK) plan_release(p);
    return rc;
}

static enum rc find_plan(struct backend_state *state, struct gemm_shape shape, struct gemm_plan **out, struct err *e) {
    struct gemm_plans *plans = state->gemm_plans;
    if (plans == NULL) plans = state->gemm_plans = (struct gemm_plans *)calloc(1, sizeof *plans);
    for (size_t i = 0; plans && i < plans->count; i++)
        if (same(&plans->all[i].shape, &shape)) {
            *out = &plans->all[i];
            return RC_OK;
        }
    if (plans && plans->count == plans->room) {
        size_t room = plans->room ? 2 * plans->room : 64;
        struct gemm_plan *all = (struct gemm_plan *)realloc(plans->all, room * sizeof *all);
        if (all == NULL) return err_set(e, RC_NO_MEMORY, "no memory for another product's plan");
        plans->all = all;
        plans->room = room;
    }
    if (plans == NULL) return err_set(e, RC_NO_MEMORY, "no memory for products' plans");
    struct gemm_plan *p = &plans->all[plans->count];
    *p = {};
    p->shape = shape;
    TRY(make_plan(state, p, e));
    plans->count++;
    *out = p;
    return RC_OK;
}

void cuda_gemm_forget(struct backend_state *state) {
    if (state->gemm_plans == NULL) return;
    for (size_t i = 0; i < state->gemm_plans->count; i++)
        plan_release(&state->gemm_plans->all[i]);
    free(state->gemm_plans->all);
    free(state->gemm_plans);
    state->gemm_plans = NULL;
}

template <typename T> static __global__ void scale_bias(const float *bias, float alpha, int64_t count, T *out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) out[i] = from_float<T>(alpha * bias[i]);
}

/* alpha · bias as the epilogue wants it: of the type of what it is added to. */
static enum rc give_bias(struct backend_state *state, const struct gemm_args *a, struct gemm_plan *p, struct err *e) {
    void *scaled;
    TRY(cuda_scratch(state, (size_t)a->out.cols * sizeof(float), &scaled, e));
    unsigned blocks = blocks_for(a->out.cols, BLOCK);
    if (a->out.type == DTYPE_F32)
        scale_bias<<<blocks, BLOCK, 0, state->stream>>>(a->bias, a->alpha, a->out.cols, (float *)scaled);
    else
        scale_bias<<<blocks, BLOCK, 0, state->stream>>>(a->bias, a->alpha, a->out.cols, (__nv_bfloat16 *)scaled);
    LAUNCHED();
    CUBLAS_TRY(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &scaled, sizeof scaled));
    return RC_OK;
}

static enum rc multiply_bf16(struct backend_state *state, const struct gemm_args *a, bool back, struct err *e) {
    struct gemm_plan *p = NULL;
    TRY(find_plan(state, shape_of(a, back), &p, e));
    if (a->bias) TRY(give_bias(state, a, p, e));
    CUBLAS_TRY(cublasLtMatmul(state->lt, p->product, &a->alpha, a->w.data, p->w, a->x.data, p->x, &a->beta, a->out.data,
                              p->out, a->out.data, p->out, &p->algorithm, state->blas_workspace,
                              cuda_blas_workspace_bytes, state->stream));
    return RC_OK;
}

/* Weights stored otherwise become bf16 for this product: exact ones stay with the quantizers. */
static enum rc with_bf16_weights(struct backend_state *state, const struct gemm_args *a, bool back, struct err *e) {
    struct gemm_args b = *a;
    if (a->w.stride != a->w.cols) return err_set(e, RC_UNSUPPORTED, "gemm: weights that are not bf16 must be dense");
    TRY(cuda_converted(state, &a->w, &b.w, e));
    return multiply_bf16(state, &b, back, e);
}

/* A product over nothing is nothing, which cuBLASLt declines to compute. */
static enum rc multiply_nothing(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    if (a->beta != 0 || a->bias) return err_set(e, RC_UNSUPPORTED, "gemm: nothing to multiply");
    CUDA_TRY(cudaMemset2DAsync(a->out.data, (size_t)a->out.stride * dtype_size(a->out.type), 0,
                               (size_t)a->out.cols * dtype_size(a->out.type), (size_t)a->out.rows, state->stream));
    return RC_OK;
}

static enum rc multiply(struct backend_state *state, const struct gemm_args *a, bool back, struct err *e) {
    if (a->x.cols == 0) return multiply_nothing(state, a, e);
    return a->w.type == DTYPE_BF16 ? multiply_bf16(state, a, back, e) : with_bf16_weights(state, a, back, e);
}

enum rc cuda_gemm_bf16(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    return multiply(state, a, false, e);
}

enum rc cuda_gemm_back_bf16(struct backend_state *state, const struct gemm_back_args *a, struct err *e) {
    struct gemm_args product = {.x = a->dy, .w = a->w, .bias = NULL, .alpha = a->alpha, .beta = a->beta, .out = a->dx};
    return multiply(state, &product, true, e);
}
