#include "kernels/cuda/device.cuh"

/* Pairs n … n + VECTOR of token t, counted over all heads. */
template <typename T, int VECTOR>
static __device__ inline void rotate_pairs(const struct rope_args &a, int64_t t, int n, int half) {
    int64_t angle = t % a.length * half + n % half;
    T *head = (T *)a.x.data + t * a.x.stride + (int64_t)(n / half) * a.head_dim + n % half;
    struct vector<T, VECTOR> first = load_vector<T, VECTOR>(head), second = load_vector<T, VECTOR>(head + half);
    for (int i = 0; i < VECTOR; i++) {
        float cosine = a.cos[angle + i], sine = a.sin[angle + i];
        float x = to_float(first.at[i]), y = to_float(second.at[i]);
        first.at[i] = from_float<T>(x * cosine - y * sine);
        second.at[i] = from_float<T>(y * cosine + x * sine);
    }
    store_vector(head, first);
    store_vector(head + half, second);
}

/* One thread VECTOR neighbouring pairs of channels; one row of blocks a token. */
template <typename T, int VECTOR> static __global__ void rotate(struct rope_args a) {
    int half = a.rotary / 2, n = (int)(blockIdx.x * BLOCK + threadIdx.x) * VECTOR;
    if (n >= a.heads * half) return;
    for (int64_t t = blockIdx.y; t < a.x.rows; t += gridDim.y)
        rotate_pairs<T, VECTOR>(a, t, n, half);
}

template <typename T, int VECTOR> static void launch(struct backend_state *state, const struct rope_args *a) {
    dim3 blocks(blocks_for((int64_t)a->heads * (a->rotary / 2), (int64_t)BLOCK * VECTOR), grid_rows(a->x.rows));
    rotate<T, VECTOR><<<blocks, BLOCK, 0, state->stream>>>(*a);
}

enum rc cuda_rope(struct backend_state *state, const struct rope_args *a, struct err *e) {
    TRY(check_rope(a, e));
    TRY(check_activation(state, &a->x, e));
    if (a->rotary == 0 || a->x.rows == 0) return RC_OK;
    if (a->x.type == DTYPE_F32)
        launch<float, 1>(state, a);
    else if (rows_aligned(&a->x, 1, 16) && a->head_dim % 8 == 0 && a->rotary % 16 == 0)
        launch<__nv_bfloat16, 8>(state, a);
    else
        launch<__nv_bfloat16, 1>(state, a);
    LAUNCHED();
    return RC_OK;
}
