#include "kernels/cuda/logits.cuh"

struct buffers {
    struct logits_sum *sums, *sums_ref; /* [T] */
    double *kl;                         /* [T] */
    float *logits, *logits_ref;         /* [T, LOGITS_CHUNK] */
    void *gradient;                     /* [T, LOGITS_CHUNK] activation type, by the logits */
    float *weight;                      /* [T] or NULL */
};

static __device__ inline double log_sum(struct logits_sum s) {
    return s.max + log(s.sum);
}

/* Logits → weight · (P − P_ref), one block a token, and the chunk's part of its KL. With d = log P − log P_ref,
 * P − P_ref = ±max(P, P_ref) · (1 − e^−|d|), which neither cancels where both are near nor overflows where they are
 * not. */
template <typename T> static __global__ void gradient_rows(struct buffers b, struct logits_chunk c) {
    int64_t t = blockIdx.x;
    const float *l = b.logits + t * LOGITS_CHUNK, *ref = b.logits_ref + t * LOGITS_CHUNK;
    T *gradient = (T *)b.gradient + t * LOGITS_CHUNK;
    struct logits_sum s = b.sums[t], s_ref = b.sums_ref[t];
    double apart = log_sum(s) - log_sum(s_ref), kl = 0;
    float weight = b.weight ? b.weight[t] : 1;
    float share = (float)(1 / s.sum), share_ref = (float)(1 / s_ref.sum), shift = (float)apart;
    for (int64_t i = threadIdx.x; i < c.cols; i += BLOCK) {
        float between = l[i] - ref[i], d = between - shift;
        float reference = expf(ref[i] - s_ref.max);
        float gain = d > 0 ? -expf(l[i] - s.max) * share : reference * share_ref;
        gradient[i] = from_float<T>(weight * (gain * expm1f(-fabsf(d))));
        kl -= (double)reference * between;
    }
    kl = block_sum(kl) / s_ref.sum;
    if (threadIdx.x == 0) b.kl[t] = (c.col > 0 ? b.kl[t] : apart) + kl;
}

static enum rc get_buffers(struct backend_state *state, const struct kl_back_args *a, struct buffers *b,
                           struct err *e) {
    size_t rows = (size_t)a->x.rows, chunk = rows * LOGITS_CHUNK, value = dtype_size(state->activation);
    void *memory;
    TRY(cuda_scratch(state,
                     chunk * (2 * sizeof *b->logits + value) +
                         rows * (2 * sizeof *b->sums + sizeof *b->kl + sizeof *b->weight),
                     &memory, e));
    b->logits = (float *)memory;
    b->logits_ref = b->logits + chunk;
    b->gradient = b->logits_ref + chunk;
    b->sums = (struct logits_sum *)((char *)b->gradient + chunk * value);
    b->sums_ref = b->sums + rows;
    b->kl = (double *)(b->sums_ref + rows);
    b->weight = a->weight ? (float *)(b->kl + rows) : NULL;
    if (a->weight == NULL) return RC_OK;
    CUDA_TRY(cudaMemcpyAsync(b->weight, a->weight, rows * sizeof *b->weight, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

static enum rc differentiate(struct backend_state *state, const struct kl_back_args *a, const struct buffers *b,
                             struct logits_chunk c, struct err *e) {
    if (state->activation == DTYPE_F32)
        gradient_rows<float><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*b, c);
    else
        gradient_rows<__nv_bfloat16><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*b, c);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_kl_back(struct backend_state *state, const struct kl_back_args *a, struct err *e) {
    TRY(check_kl_back(a, e));
    TRY(check_activation(state, &a->x, e));
    TRY(check_activation(state, &a->x_ref, e));
    if (a->x.rows == 0) return RC_OK;
    struct logits l = {a->x, a->head, a->bias, a->logit_scale};
    struct logits l_ref = {a->x_ref, a->head_ref.data ? a->head_ref : a->head, a->bias, a->logit_scale};
    struct buffers b;
    TRY(get_buffers(state, a, &b, e));
    struct logits_gradient g = {b.gradient, a->dx};
    TRY(logits_sums(state, &l, b.logits, b.sums, e));
    TRY(logits_sums(state, &l_ref, b.logits, b.sums_ref, e));
    for (int64_t col = 0; col < a->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(col, a->head.rows);
        TRY(logits_compute(state, &l, c, b.logits, e));
        TRY(logits_compute(state, &l_ref, c, b.logits_ref, e));
        TRY(differentiate(state, a, &b, c, e));
        TRY(logits_back(state, &l, &g, c, e));
    }
    return cuda_download(state, b.kl, (size_t)a->x.rows * sizeof *b.kl, a->kl, e);
}
