#include "kernels/cuda/device.cuh"

/* One team of threads a row: a warp for short rows, as heads are, else a block. A thread takes VECTOR neighbours. */
template <int TEAM, int VECTOR, typename X, typename Y> static __global__ void normalise(struct rmsnorm_args a) {
    int64_t row = (int64_t)blockIdx.x * (BLOCK / TEAM) + threadIdx.x / TEAM;
    int64_t first = threadIdx.x % TEAM * VECTOR;
    const int64_t step = TEAM * VECTOR;
    if (row >= a.x.rows) return; /* whole teams leave; a block is one team or many warps */
    const X *x = (const X *)a.x.data + row * a.x.stride;
    Y *out = (Y *)a.out.data + row * a.out.stride;
    double squares = 0;
    for (int64_t k = first; k < a.x.cols; k += step) {
        struct vector<X, VECTOR> v = load_vector<X, VECTOR>(x + k);
        for (int i = 0; i < VECTOR; i++)
            squares += (double)to_float(v.at[i]) * to_float(v.at[i]);
    }
    squares = TEAM == WARP ? warp_sum(squares) : block_sum(squares);
    float factor = (float)(1.0 / sqrt(squares / (double)a.x.cols + a.eps));
    for (int64_t k = first; k < a.x.cols; k += step) {
        struct vector<X, VECTOR> v = load_vector<X, VECTOR>(x + k);
        struct vector<float, VECTOR> weight = load_vector<float, VECTOR>(a.weight + k);
        struct vector<Y, VECTOR> y;
        for (int i = 0; i < VECTOR; i++)
            y.at[i] = from_float<Y>(to_float(v.at[i]) * factor * weight.at[i]);
        store_vector(out + k, y);
    }
}

template <int VECTOR, typename X, typename Y>
static void launch(struct backend_state *state, const struct rmsnorm_args *a) {
    if (a->x.cols <= 8 * WARP)
        normalise<WARP, VECTOR, X, Y><<<blocks_for(a->x.rows, BLOCK / WARP), BLOCK, 0, state->stream>>>(*a);
    else
        normalise<BLOCK, VECTOR, X, Y><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*a);
}

enum { VECTOR = 4 };

template <typename X, typename Y>
static void launch_aligned(struct backend_state *state, const struct rmsnorm_args *a) {
    const struct mat all[] = {a->x, a->out, {(void *)a->weight, 1, a->x.cols, a->x.cols, DTYPE_F32}};
    bool aligned = rows_aligned(&all[0], 1, VECTOR * sizeof(X)) && rows_aligned(&all[1], 1, VECTOR * sizeof(Y)) &&
                   rows_aligned(&all[2], 1, VECTOR * sizeof(float));
    if (aligned)
        launch<VECTOR, X, Y>(state, a);
    else
        launch<1, X, Y>(state, a);
}

enum rc cuda_rmsnorm(struct backend_state *state, const struct rmsnorm_args *a, struct err *e) {
    TRY(check_rmsnorm(a, e));
    TRY(check_activation(state, &a->out, e));
    if (a->x.type != DTYPE_F32) TRY(check_activation(state, &a->x, e));
    if (a->x.rows == 0 || a->x.cols == 0) return RC_OK;
    if (a->out.type == DTYPE_F32)
        launch_aligned<float, float>(state, a);
    else if (a->x.type == DTYPE_F32)
        launch_aligned<float, __nv_bfloat16>(state, a);
    else
        launch_aligned<__nv_bfloat16, __nv_bfloat16>(state, a);
    LAUNCHED();
    return RC_OK;
}
