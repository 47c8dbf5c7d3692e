#include "kernels/cuda/logits.cuh"

struct buffers {
    struct logits_sum *sums; /* [T] */
    double *nll;             /* [T] */
    float *logits;           /* [T, LOGITS_CHUNK] */
    void *gradient;          /* [T, LOGITS_CHUNK] activation type, by the logits */
    float *weight;           /* [T] or NULL */
    int32_t *labels;         /* [T] */
};

/* Logits → weight · (softmax − onehot(label)), one block a token; its NLL where the label lies here. */
template <typename T> static __global__ void gradient_rows(struct buffers b, struct logits_chunk c) {
    int64_t t = blockIdx.x, label = b.labels[t] - c.col;
    const float *l = b.logits + t * LOGITS_CHUNK;
    T *gradient = (T *)b.gradient + t * LOGITS_CHUNK;
    struct logits_sum s = b.sums[t];
    float weight = b.weight ? b.weight[t] : 1, factor = (float)(weight / s.sum);
    for (int64_t i = threadIdx.x; i < c.cols; i += BLOCK) {
        float p = expf(l[i] - s.max) * factor;
        if (i == label) b.nll[t] = s.max + log(s.sum) - l[i];
        gradient[i] = from_float<T>(i == label ? p - weight : p);
    }
}

static enum rc give(struct backend_state *state, const void *host, void *device, size_t bytes, struct err *e) {
    CUDA_TRY(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

static enum rc get_buffers(struct backend_state *state, const struct score_back_args *a, struct buffers *b,
                           struct err *e) {
    size_t rows = (size_t)a->x.rows, value = dtype_size(state->activation);
    void *memory;
    TRY(cuda_scratch(state,
                     rows * (LOGITS_CHUNK * (sizeof *b->logits + value) + sizeof *b->sums + sizeof *b->nll +
                             sizeof *b->weight + sizeof *b->labels),
                     &memory, e));
    b->logits = (float *)memory;
    b->gradient = b->logits + rows * LOGITS_CHUNK;
    b->sums = (struct logits_sum *)((char *)b->gradient + rows * LOGITS_CHUNK * value);
    b->nll = (double *)(b->sums + rows);
    b->labels = (int32_t *)(b->nll + rows);
    b->weight = a->weight ? (float *)(b->labels + rows) : NULL;
    TRY(give(state, a->labels, b->labels, rows * sizeof *b->labels, e));
    return a->weight ? give(state, a->weight, b->weight, rows * sizeof *b->weight, e) : RC_OK;
}

static enum rc differentiate(struct backend_state *state, const struct score_back_args *a, const struct buffers *b,
                             struct logits_chunk c, struct err *e) {
    if (state->activation == DTYPE_F32)
        gradient_rows<float><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*b, c);
    else
        gradient_rows<__nv_bfloat16><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*b, c);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_score_back(struct backend_state *state, const struct score_back_args *a, struct err *e) {
    TRY(check_score_back(a, e));
    TRY(check_activation(state, &a->x, e));
    if (a->x.rows == 0) return RC_OK;
    struct logits l = {a->x, a->head, a->bias, a->logit_scale};
    struct buffers b;
    TRY(get_buffers(state, a, &b, e));
    struct logits_gradient g = {b.gradient, a->dx};
    TRY(logits_sums(state, &l, b.logits, b.sums, e));
    for (int64_t col = 0; col < a->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(col, a->head.rows);
        TRY(logits_compute(state, &l, c, b.logits, e));
        TRY(differentiate(state, a, &b, c, e));
        TRY(logits_back(state, &l, &g, c, e));
    }
    return cuda_download(state, b.nll, (size_t)a->x.rows * sizeof *b.nll, a->nll, e);
}
