#include "kernels/cuda/device.cuh"

static __device__ inline float factor(const float *factors, int64_t i) {
    return factors != NULL ? factors[i] : 1;
}

/* One thread one column; one row of blocks a row. */
template <typename T> static __global__ void scale_floats(struct scale_args a) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= a.m.cols) return;
    float by_col = factor(a.by_col, k);
    for (int64_t n = blockIdx.y; n < a.m.rows; n += gridDim.y) {
        float value = load_stored(a.m.data, a.m.type, n * a.m.stride + k) * factor(a.by_row, n) * by_col;
        ((T *)a.out.data)[n * a.out.stride + k] = from_float<T>(value);
    }
}

/* One thread FOUR neighbours, as every copy of a walk's matrices has them. */
static const int FOUR = 4;
template <typename F, typename T> static __global__ void scale_vectors(struct scale_args a) {
    int64_t k = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * FOUR;
    if (k >= a.m.cols) return;
    for (int64_t n = blockIdx.y; n < a.m.rows; n += gridDim.y) {
        struct vector<F, FOUR> from = load_vector<F, FOUR>((const F *)a.m.data + n * a.m.stride + k);
        struct vector<T, FOUR> to;
        for (int i = 0; i < FOUR; i++)
            to.at[i] = from_float<T>(to_float(from.at[i]) * factor(a.by_row, n) * factor(a.by_col, k + i));
        store_vector((T *)a.out.data + n * a.out.stride + k, to);
    }
}

static bool in_fours(const struct mat *m) {
    bool known = m->type == DTYPE_F32 || m->type == DTYPE_BF16;
    return known && rows_aligned(m, 1, FOUR * dtype_size(m->type));
}

template <typename T> static void launch(struct backend_state *state, const struct scale_args *a) {
    bool fours = in_fours(&a->m) && in_fours(&a->out);
    dim3 blocks(blocks_for(a->m.cols, (int64_t)BLOCK * (fours ? FOUR : 1)), grid_rows(a->m.rows));
    if (!fours)
        scale_floats<T><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (a->m.type == DTYPE_F32)
        scale_vectors<float, T><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else
        scale_vectors<__nv_bfloat16, T><<<blocks, BLOCK, 0, state->stream>>>(*a);
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
    dim3 blocks(blocks_for(a->m.cols, BLOCK), grid_rows(a->m.rows));
    if (a->out.type == DTYPE_F64)
        scale_doubles<<<blocks, BLOCK, 0, state->stream>>>(*a);
    else if (a->out.type == DTYPE_F32)
        launch<float>(state, a);
    else if (a->out.type == DTYPE_BF16)
        launch<__nv_bfloat16>(state, a);
    else
        return err_set(e, RC_UNSUPPORTED, "scale: into fp32, bf16 or fp64");
    LAUNCHED();
    return RC_OK;
}
