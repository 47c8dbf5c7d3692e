#include "kernels/cuda/device.cuh"

/* e^(−gate) overflows to Inf for very negative gates, and the quotient is then a clean 0. */
static __device__ inline float silu(float gate) {
    return gate / (1.0f + expf(-gate));
}

template <typename T, int VECTOR>
static __device__ inline void gate_values(const struct silu_mul_args &a, int64_t t, int64_t i) {
    struct vector<T, VECTOR> gate = load_vector<T, VECTOR>((const T *)a.gate.data + t * a.gate.stride + i);
    struct vector<T, VECTOR> up = load_vector<T, VECTOR>((const T *)a.up.data + t * a.up.stride + i);
    for (int k = 0; k < VECTOR; k++)
        up.at[k] = from_float<T>(silu(to_float(gate.at[k])) * to_float(up.at[k]));
    store_vector((T *)a.out.data + t * a.out.stride + i, up);
}

/* One thread VECTOR neighbours; one row of blocks a token. */
template <typename T, int VECTOR> static __global__ void gated(struct silu_mul_args a) {
    int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * VECTOR;
    if (i >= a.gate.cols) return;
    for (int64_t t = blockIdx.y; t < a.gate.rows; t += gridDim.y)
        gate_values<T, VECTOR>(a, t, i);
}

template <typename T, int VECTOR> static void launch(struct backend_state *state, const struct silu_mul_args *a) {
    dim3 blocks(blocks_for(a->gate.cols, (int64_t)BLOCK * VECTOR), grid_rows(a->gate.rows));
    gated<T, VECTOR><<<blocks, BLOCK, 0, state->stream>>>(*a);
}

enum rc cuda_silu_mul(struct backend_state *state, const struct silu_mul_args *a, struct err *e) {
    TRY(check_silu_mul(a, e));
    TRY(check_activation(state, &a->gate, e));
    if (a->gate.rows == 0 || a->gate.cols == 0) return RC_OK;
    const struct mat all[] = {a->gate, a->up, a->out};
    if (a->gate.type == DTYPE_F32)
        launch<float, 1>(state, a);
    else if (rows_aligned(all, 3, 16))
        launch<__nv_bfloat16, 8>(state, a);
    else
        launch<__nv_bfloat16, 1>(state, a);
    LAUNCHED();
    return RC_OK;
}
