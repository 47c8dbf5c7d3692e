#include "kernels/cuda/device.cuh"

/* One block a token. */
static __global__ void sum_squares(struct row_norms_args a) {
    int64_t t = blockIdx.x;
    double sum = 0;
    for (int64_t n = threadIdx.x; n < a.g.cols; n += BLOCK) {
        double g = load_stored(a.g.data, a.g.type, t * a.g.stride + n);
        sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    if (a.add) sum += a.norms[t];
    a.norms[t] = sum;
    if (a.roots) a.roots[t] = (float)sqrt(sum);
}

enum rc cuda_row_norms(struct backend_state *state, const struct row_norms_args *a, struct err *e) {
    TRY(check_row_norms(a, e));
    TRY(check_activation(state, &a->g, e));
    if (a->g.rows == 0) return RC_OK;
    sum_squares<<<(unsigned)a->g.rows, BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
