#include <math.h>

#include "kernels/cuda/logits.cuh"

static const int64_t CHUNK = LOGITS_CHUNK;

/* Running log-sum-exp of one token's logits: log Σ e^l = max + log(sum). */
struct running {
    double sum;
    float max, label; /* the label's logit */
    int64_t top;      /* first index that holds the maximum */
};

struct token {
    struct running ref, quant;
    double difference; /* Σ e^(l_ref − max)·(l_ref − l_quant) */
};

struct buffers {
    int64_t models;       /* quantized ones */
    struct token *tokens; /* [Q, T] device; [T] for the reference alone */
    int32_t *labels;      /* [T] device */
    float *ref, *quant;   /* [T, CHUNK] device; quant NULL: the reference alone */
    struct token *host;   /* as tokens, pinned */
};

static __global__ void begin(struct token *tokens, int64_t count) {
    int64_t t = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    struct running none = {0, -INFINITY, 0, 0};
    if (t < count) tokens[t] = {none, none, 0};
}

/* First index of the maximum over the block's strided shares. */
static __device__ int64_t block_first_max(const float *l, int64_t n, float max) {
    int64_t first = n;
    for (int64_t i = threadIdx.x; i < n && first == n; i += BLOCK)
        if (l[i] == max) first = i;
    __shared__ unsigned long long least;
    __syncthreads();
    if (threadIdx.x == 0) least = (unsigned long long)n;
    __syncthreads();
    atomicMin(&least, (unsigned long long)first);
    __syncthreads();
    return (int64_t)least;
}

/* Takes in one row of logits. Returns the factor by which earlier sums shrank; all threads hold the same r. */
static __device__ double take(struct running *r, const float *l, struct logits_chunk c, int32_t label) {
    if (label >= c.col && label < c.col + c.cols) r->label = l[label - c.col];
    float max = -INFINITY;
    for (int64_t i = threadIdx.x; i < c.cols; i += BLOCK)
        max = fmaxf(max, l[i]);
    max = block_max(max);
    double factor = 1;
    if (max > r->max) {
        factor = exp((double)r->max - max);
        r->max = max;
        r->top = c.col + block_first_max(l, c.cols, max);
    }
    double sum = 0;
    for (int64_t i = threadIdx.x; i < c.cols; i += BLOCK)
        sum += expf(l[i] - r->max);
    r->sum = r->sum * factor + block_sum(sum);
    return factor;
}

/* Of one quantized model, whose tokens these are. */
static __global__ void take_chunk(struct buffers b, struct token *tokens, struct logits_chunk c) {
    int64_t t = blockIdx.x;
    const float *ref = b.ref + t * CHUNK, *quant = b.quant ? b.quant + t * CHUNK : NULL;
    struct token k = tokens[t];
    double factor = take(&k.ref, ref, c, b.labels[t]);
    if (quant) {
        take(&k.quant, quant, c, b.labels[t]);
        double difference = 0;
        for (int64_t i = threadIdx.x; i < c.cols; i += BLOCK)
            difference += (double)expf(ref[i] - k.ref.max) * (ref[i] - quant[i]);
        k.difference = k.difference * factor + block_sum(difference);
    }
    __syncthreads(); /* every thread has read the token */
    if (threadIdx.x == 0) tokens[t] = k;
}

static enum rc logits(struct backend_state *state, const struct score_args *a, struct mat x, struct mat head,
                      struct logits_chunk c, float *out, struct err *e) {
    struct logits l = {x, head, a->bias, a->logit_scale};
    return logits_compute(state, &l, c, out, e);
}

/* The reference's part is taken anew for each model: little beside the product that it saves. */
static enum rc score_chunk(struct backend_state *state, const struct score_args *a, const struct buffers *b,
                           struct logits_chunk c, struct err *e) {
    TRY(logits(state, a, a->x, a->head, c, b->ref, e));
    int64_t model = 0;
    do {
        struct mat x = mat_rows(a->x_q, model * a->apart, a->x_q.rows);
        if (b->quant) TRY(logits(state, a, x, a->head_q.data ? a->head_q : a->head, c, b->quant, e));
        take_chunk<<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*b, b->tokens + model * a->x.rows, c);
        LAUNCHED();
    } while (++model < b->models);
    return RC_OK;
}

static int64_t token_count(const struct score_args *a, const struct buffers *b) {
    return a->x.rows * (b->models > 0 ? b->models : 1);
}

static enum rc get_buffers(struct backend_state *state, const struct score_args *a, struct buffers *b, struct err *e) {
    b->models = a->x_q.data ? 1 + a->more : 0;
    size_t rows = (size_t)a->x.rows, chunk = rows * CHUNK * sizeof(float), tokens = (size_t)token_count(a, b);
    void *device, *host;
    TRY(cuda_scratch(state, 2 * chunk + tokens * sizeof *b->tokens + rows * sizeof *b->labels, &device, e));
    TRY(cuda_staging(state, tokens * sizeof *b->host, &host, e));
    b->ref = (float *)device;
    b->quant = a->x_q.data ? b->ref + rows * CHUNK : NULL;
    b->tokens = (struct token *)((char *)device + 2 * chunk);
    b->labels = (int32_t *)(b->tokens + tokens);
    b->host = (struct token *)host;
    CUDA_TRY(cudaMemcpyAsync(b->labels, a->labels, rows * sizeof *b->labels, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

static double log_sum(const struct running *r) {
    return r->max + log(r->sum);
}

/* `at`: of one of the quantized models, the first of which tells of the reference. */
static void finish(const struct score_args *a, int64_t at, const struct token *k) {
    if (at < a->x.rows) a->nll[at] = log_sum(&k->ref) - k->ref.label;
    if (a->x_q.data == NULL) return;
    a->nll_q[at] = log_sum(&k->quant) - k->quant.label;
    a->kl[at] = k->difference / k->ref.sum + (log_sum(&k->quant) - log_sum(&k->ref));
    a->top1_agree[at] = k->ref.top == k->quant.top;
}

enum rc cuda_score(struct backend_state *state, const struct score_args *a, struct err *e) {
    TRY(check_score(a, e));
    int64_t rows = a->x.rows, vocab = a->head.rows;
    if (rows == 0) return RC_OK;
    struct buffers b;
    TRY(get_buffers(state, a, &b, e));
    int64_t tokens = token_count(a, &b);
    begin<<<blocks_for(tokens, BLOCK), BLOCK, 0, state->stream>>>(b.tokens, tokens);
    LAUNCHED();
    for (int64_t col = 0; col < vocab; col += CHUNK)
        TRY(score_chunk(state, a, &b, {col, vocab - col < CHUNK ? vocab - col : CHUNK}, e));
    TRY(cuda_download(state, b.tokens, (size_t)tokens * sizeof *b.tokens, b.host, e));
    for (int64_t at = 0; at < tokens; at++)
        finish(a, at, &b.host[at]);
    return RC_OK;
}
