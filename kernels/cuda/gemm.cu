#include "kernels/cuda/device.cuh"

static __global__ void add_bias(struct mat out, const float *bias, float alpha) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < out.rows * out.cols)
        ((float *)out.data)[i / out.cols * out.stride + i % out.cols] += alpha * bias[i % out.cols];
}

/* cuBLAS wants room for one element between the columns of a matrix that has none. */
static int leading(struct mat m) {
    return m.stride > 0 ? (int)m.stride : 1;
}

/* cuBLAS counts columns first: to it our row-major out [T, N] = x · wᵀ is the [N, T] matrix wᵀ' · x. */
static enum rc multiply_f32(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    CUBLAS_TRY(cublasSgemm(state->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)a->out.cols, (int)a->out.rows, (int)a->x.cols,
                           &a->alpha, (const float *)a->w.data, leading(a->w), (const float *)a->x.data, leading(a->x),
                           &a->beta, (float *)a->out.data, (int)a->out.stride));
    if (a->bias == NULL) return RC_OK;
    add_bias<<<blocks_for(a->out.rows * a->out.cols, BLOCK), BLOCK, 0, state->stream>>>(a->out, a->bias, a->alpha);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    TRY(check_gemm(a, e));
    TRY(check_activation(state, &a->x, e));
    if (a->out.rows == 0 || a->out.cols == 0) return RC_OK;
    return a->x.type == DTYPE_F32 ? multiply_f32(state, a, e) : cuda_gemm_bf16(state, a, e);
}

/* To cuBLAS our dx [T, K] = dy · w is the [K, T] matrix w' · dy'. */
static enum rc multiply_back_f32(struct backend_state *state, const struct gemm_back_args *a, struct err *e) {
    CUBLAS_TRY(cublasSgemm(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)a->dx.cols, (int)a->dx.rows, (int)a->dy.cols,
                           &a->alpha, (const float *)a->w.data, leading(a->w), (const float *)a->dy.data,
                           leading(a->dy), &a->beta, (float *)a->dx.data, (int)a->dx.stride));
    return RC_OK;
}

enum rc cuda_gemm_back(struct backend_state *state, const struct gemm_back_args *a, struct err *e) {
    TRY(check_gemm_back(a, e));
    TRY(check_activation(state, &a->dy, e));
    if (a->dx.type != DTYPE_F32) TRY(check_activation(state, &a->dx, e));
    if (a->dx.rows == 0 || a->dx.cols == 0) return RC_OK;
    return a->dy.type == DTYPE_F32 ? multiply_back_f32(state, a, e) : cuda_gemm_back_bf16(state, a, e);
}

static enum rc outer_f64(struct backend_state *state, const struct outer_args *o, struct err *e) {
    const double one = 1, beta = o->beta;
    CUBLAS_TRY(cublasDgemm(state->blas, CUBLAS_OP_N, CUBLAS_OP_T, (int)o->b.cols, (int)o->a.cols, (int)o->a.rows, &one,
                           (const double *)o->b.data, (int)o->b.stride, (const double *)o->a.data, (int)o->a.stride,
                           &beta, (double *)o->out.data, (int)o->out.stride));
    return RC_OK;
}

/* To cuBLAS our a is [M, T], b [N, T], and out the [N, M] matrix b · a'. */
enum rc cuda_outer(struct backend_state *state, const struct outer_args *o, struct err *e) {
    const float one = 1;
    if (o->out.type == DTYPE_F64) return outer_f64(state, o, e);
    cudaDataType_t type = o->a.type == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
    CUBLAS_TRY(cublasGemmEx(state->blas, CUBLAS_OP_N, CUBLAS_OP_T, (int)o->b.cols, (int)o->a.cols, (int)o->a.rows, &one,
                            o->b.data, type, (int)o->b.stride, o->a.data, type, (int)o->a.stride, &o->beta, o->out.data,
                            CUDA_R_32F, (int)o->out.stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    return RC_OK;
}
