#include "kernels/cuda/device.cuh"

/* One thread a pair of channels; one row of blocks a token. */
template <typename T> static __global__ void rotate(struct rope_args a) {
    int half = a.rotary / 2, n = (int)(blockIdx.x * BLOCK + threadIdx.x);
    if (n >= a.heads * half) return;
    int64_t t = blockIdx.y, angle = t % a.length * half + n % half;
    T *head = (T *)a.x.data + t * a.x.stride + (int64_t)(n / half) * a.head_dim + n % half;
    float cosine = a.cos[angle], sine = a.sin[angle];
    float first = to_float(head[0]), second = to_float(head[half]);
    head[0] = from_float<T>(first * cosine - second * sine);
    head[half] = from_float<T>(second * cosine + first * sine);
}

enum rc cuda_rope(struct backend_state *state, const struct rope_args *a, struct err *e) {
    TRY(check_rope(a, e));
    TRY(check_activation(state, &a->x, e));
    int64_t pairs = a->heads * (a->rotary / 2);
    if (pairs == 0 || a->x.rows == 0) return RC_OK;
    TRY(check_grid(a->x.rows, e));
    dim3 blocks(blocks_for(pairs, BLOCK), (unsigned)a->x.rows);
    if (a->x.type == DTYPE_F32)
        rotate<float><<<blocks, BLOCK, 0, state->stream>>>(*a);
    else
        rotate<__nv_bfloat16><<<blocks, BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
