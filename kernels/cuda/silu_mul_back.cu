#include "kernels/cuda/device.cuh"

template <typename T> struct places {
    const T *gate, *up, *dy;
    T *dgate, *dup;
};

template <typename T>
static __device__ inline struct places<T> places_at(const struct silu_mul_back_args &a, int64_t t, int64_t i) {
    return {(const T *)a.gate.data + t * a.gate.stride + i, (const T *)a.up.data + t *a.up.stride + i,
            (const T *)a.dy.data + t *a.dy.stride + i, (T *)a.dgate.data + t *a.dgate.stride + i,
            (T *)a.dup.data + t *a.dup.stride + i};
}

/* Where e^(−gate) overflows to Inf, σ is a clean 0. dgate may be gate and dup up: all is read first. */
template <typename T, int VECTOR>
static __device__ inline void gate_gradients(const struct places<T> &p) {
    struct vector<T, VECTOR> gate = load_vector<T, VECTOR>(p.gate), up = load_vector<T, VECTOR>(p.up);
    struct vector<T, VECTOR> dy = load_vector<T, VECTOR>(p.dy);
    for (int k = 0; k < VECTOR; k++) {
        float g = to_float(gate.at[k]), u = to_float(up.at[k]), d = to_float(dy.at[k]);
        float sigma = 1.0f / (1.0f + expf(-g));
        gate.at[k] = from_float<T>(d * u * (sigma + sigma * (1.0f - sigma) * g));
        up.at[k] = from_float<T>(d * (g * sigma));
    }
    store_vector(p.dgate, gate);
    store_vector(p.dup, up);
}

/* One thread VECTOR neighbours; one row of blocks a token, as far as a grid goes. */
template <typename T, int VECTOR> static __global__ void gradients(struct silu_mul_back_args a) {
    int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * VECTOR;
    if (i >= a.gate.cols) return;
    for (int64_t t = blockIdx.y; t < a.gate.rows; t += gridDim.y)
        gate_gradients<T, VECTOR>(places_at<T>(a, t, i));
}

template <typename T, int VECTOR> static void launch(struct backend_state *state, const struct silu_mul_back_args *a) {
    int64_t rows = a->gate.rows < GRID_MAX ? a->gate.rows : GRID_MAX;
    dim3 blocks(blocks_for(a->gate.cols, (int64_t)BLOCK * VECTOR), (unsigned)rows);
    gradients<T, VECTOR><<<blocks, BLOCK, 0, state->stream>>>(*a);
}

enum rc cuda_silu_mul_back(struct backend_state *state, const struct silu_mul_back_args *a, struct err *e) {
    TRY(check_silu_mul_back(a, e));
    const struct mat all[] = {a->gate, a->up, a->dy, a->dgate, a->dup};
    for (int i = 0; i < 5; i++)
        TRY(check_activation(state, &all[i], e));
    if (a->gate.rows == 0 || a->gate.cols == 0) return RC_OK;
    if (a->gate.type == DTYPE_F32)
        launch<float, 1>(state, a);
    else if (rows_aligned(all, 5, 16))
        launch<__nv_bfloat16, 8>(state, a);
    else
        launch<__nv_bfloat16, 1>(state, a);
    LAUNCHED();
    return RC_OK;
}
