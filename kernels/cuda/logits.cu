#include "kernels/cuda/logits.cuh"

#include <math.h>

/* The bias stands beside the scaled product: logits = x · headᵀ · scale + bias. */
static __global__ void add_bias(float *l, int64_t rows, struct logits_chunk c, const float *bias) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < rows * c.cols) l[i / c.cols * LOGITS_CHUNK + i % c.cols] += bias[c.col + i % c.cols];
}

enum rc logits_compute(struct backend_state *state, const struct logits *l, struct logits_chunk c, float *out,
                       struct err *e) {
    struct gemm_args g = {.x = l->x,
                          .w = mat_rows(l->head, c.col, c.cols),
                          .bias = NULL,
                          .alpha = l->scale,
                          .beta = 0,
                          .out = {out, l->x.rows, c.cols, LOGITS_CHUNK, DTYPE_F32}};
    TRY(cuda_gemm(state, &g, e));
    if (l->bias == NULL) return RC_OK;
    add_bias<<<blocks_for(l->x.rows * c.cols, BLOCK), BLOCK, 0, state->stream>>>(out, l->x.rows, c, l->bias);
    LAUNCHED();
    return RC_OK;
}

/* Takes in one row of logits a block; the first chunk begins. */
static __global__ void take_chunk(const float *logits, struct logits_chunk c, struct logits_sum *sums) {
    const float *l = logits + (int64_t)blockIdx.x * LOGITS_CHUNK;
    struct logits_sum s = {0, -INFINITY};
    if (c.col > 0) s = sums[blockIdx.x];
    float max = -INFINITY;
    for (int64_t i = threadIdx.x; i < c.cols; i += BLOCK)
        max = fmaxf(max, l[i]);
    max = block_max(max);
    if (max > s.max) {
        s.sum *= exp((double)s.max - max);
        s.max = max;
    }
    double sum = 0;
    for (int64_t i = threadIdx.x; i < c.cols; i += BLOCK)
        sum += expf(l[i] - s.max);
    s.sum += block_sum(sum);
    __syncthreads(); /* every thread has read the token */
    if (threadIdx.x == 0) sums[blockIdx.x] = s;
}

enum rc logits_sums(struct backend_state *state, const struct logits *l, float *scratch, struct logits_sum *sums,
                    struct err *e) {
    for (int64_t col = 0; col < l->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(col, l->head.rows);
        TRY(logits_compute(state, l, c, scratch, e));
        take_chunk<<<(unsigned)l->x.rows, BLOCK, 0, state->stream>>>(scratch, c, sums);
        LAUNCHED();
    }
    return RC_OK;
}

enum rc logits_back(struct backend_state *state, const struct logits *l, const struct logits_gradient *g,
                    struct logits_chunk c, struct err *e) {
    struct gemm_back_args product = {.dy = {g->by_logits, l->x.rows, c.cols, LOGITS_CHUNK, state->activation},
                                     .w = mat_rows(l->head, c.col, c.cols),
                                     .alpha = l->scale,
                                     .beta = c.col > 0 ? 1.0f : 0.0f,
                                     .dx = g->dx};
    return cuda_gemm_back(state, &product, e);
}
