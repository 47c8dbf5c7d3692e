#include "kernels/cuda/device.cuh"

/* One thread one column; one row of blocks a row. */
template <typename T> static __global__ void scale_floats(struct scale_args a) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= a.m.cols) return;
    float by_col = a.by_col != NULL ? a.by_col[k] : 1;
    for (int64_t n = blockIdx.y; n < a.m.rows; n += gridDim.y) {
        float by_row = a.by_row != NULL ? a.by_row[n] : 1;
        float value = load_stored(a.m.data, a.m.type, n * a.m.stride + k) * by_row * by_col;
        ((T *)a.out.data)[n * a.out.stride + k] = from_float<T>(value);
    }
}

static __global__ void scale_doubles(struct scale_args a) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= a.m.cols) return;
    double by_col = a.by_col != NULL ? a.by_col[k] : 1;
    for (int64_t n = blockIdx.y; n < a.m.rows; n += gridDim.y) {
        double by_row = a.by_row != NULL ? a.by_row[n] : 1;
        ((double *)a.out.data)[n * a.out.stride + k] = ((const double *)a.m.data)[n * a.m.stride + k] * by_row * by_col;
    }
}

enum rc cuda_scale(struct backend_state *state, const struct scale_args *a, struct err *e) {
    TRY(check_scale(a, e));
    if (a->m.rows == 0 || a->m.cols == 0) return RC_OK;
    dim3 blocks(blocks_for(a->m.cols, BLOCK), (unsigned)(a->m.rows < GRID_MAX ? a->m.rows : GRID_MAX));
    if (a->out.type == DTYPE_F64)
        scale_doubles<<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (a->out.type == DTYPE_F32)
        scale_floats<float><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (a->out.type == DTYPE_BF16)
        scale_floats<__nv_bfloat16><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else
        return err_set(e, RC_UNSUPPORTED, "scale: into fp32, bf16 or fp64");
    LAUNCHED();
    return RC_OK;
}
