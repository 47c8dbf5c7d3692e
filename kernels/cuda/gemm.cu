#include "kernels/cuda/device.cuh"

static __global__ void add_bias(struct matf out, const float *bias, float alpha) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < out.rows * out.cols) out.data[i / out.cols * out.stride + i % out.cols] += alpha * bias[i % out.cols];
}

/* cuBLAS wants room for one element between the columns of a matrix that has none. */
static int leading(struct matf m) {
    return m.stride > 0 ? (int)m.stride : 1;
}

/* cuBLAS counts columns first: to it our row-major out [T, N] = x · wᵀ is the [N, T] matrix wᵀ' · x. */
static enum rc multiply(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    CUBLAS_TRY(cublasSgemm(state->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)a->out.cols, (int)a->out.rows, (int)a->x.cols,
                           &a->alpha, a->w.data, leading(a->w), a->x.data, leading(a->x), &a->beta, a->out.data,
                           (int)a->out.stride));
    return RC_OK;
}

enum rc cuda_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    TRY(check_gemm(a, e));
    int64_t count = a->out.rows * a->out.cols;
    if (count == 0) return RC_OK;
    TRY(multiply(state, a, e));
    if (a->bias == NULL) return RC_OK;
    add_bias<<<blocks_for(count, BLOCK), BLOCK, 0, state->stream>>>(a->out, a->bias, a->alpha);
    LAUNCHED();
    return RC_OK;
}
