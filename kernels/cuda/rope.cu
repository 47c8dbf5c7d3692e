#include "kernels/cuda/device.cuh"

/* One thread a pair of channels. */
static __global__ void rotate(struct rope_args a) {
    int half = a.rotary / 2;
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (n >= a.x.rows * a.heads * half) return;
    int64_t t = n / ((int64_t)a.heads * half);
    int h = (int)(n / half % a.heads), i = (int)(n % half);
    float *head = a.x.data + t * a.x.stride + (int64_t)h * a.head_dim;
    float cosine = a.cos[t * half + i], sine = a.sin[t * half + i];
    float first = head[i], second = head[i + half];
    head[i] = first * cosine - second * sine;
    head[i + half] = second * cosine + first * sine;
}

enum rc cuda_rope(struct backend_state *state, const struct rope_args *a, struct err *e) {
    TRY(check_rope(a, e));
    int64_t pairs = a->x.rows * a->heads * (a->rotary / 2);
    if (pairs == 0) return RC_OK;
    rotate<<<blocks_for(pairs, BLOCK), BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
