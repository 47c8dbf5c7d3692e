#include "kernels/cuda/logits.cuh"

/* One token's way to the place where the cumulative sum of e^(l − max) exceeds u · Σ. */
struct search {
    double sum;
    int32_t label; /* the last with a share of the sum: what u next to 1 gets where the order of sums costs a digit */
    int32_t found;
};

struct buffers {
    double *u;               /* [T] */
    struct logits_sum *sums; /* [T] */
    struct search *searches; /* [T] */
    int32_t *labels;         /* [T] */
    float *logits;           /* [T, LOGITS_CHUNK] */
};

/* A thread's share of a row, one after the other: the order of the vocabulary. */
struct share {
    int begin, end;
};

static __device__ inline struct share share_of(int64_t cols) {
    int each = (int)((cols + BLOCK - 1) / BLOCK), begin = (int)threadIdx.x * each;
    begin = begin < (int)cols ? begin : (int)cols;
    return {begin, begin + each < (int)cols ? begin + each : (int)cols};
}

/* The first of the share at which `sum`, grown from before it, exceeds the target; else the last with a part in it. */
static __device__ inline int search_share(const float *l, struct share s, float max, double sum, double target) {
    int last = s.begin;
    for (int i = s.begin; i < s.end; i++) {
        float p = expf(l[i] - max);
        if (p > 0) last = i;
        sum += p;
        if (sum > target) return i;
    }
    return last;
}

/* One block a token. before[k]: the sum before thread k's share, added up in the order of the threads. */
static __global__ void search_chunk(struct buffers b, struct logits_chunk c) {
    __shared__ double before[BLOCK + 1];
    __shared__ int last, found;
    int64_t t = blockIdx.x;
    struct search s = {0, 0, 0};
    if (c.col > 0) s = b.searches[t];
    if (s.found) return;
    const float *l = b.logits + t * LOGITS_CHUNK;
    float max = b.sums[t].max;
    double target = b.u[t] * b.sums[t].sum, own = 0;
    struct share share = share_of(c.cols);
    int own_last = -1;
    for (int i = share.begin; i < share.end; i++) {
        float p = expf(l[i] - max);
        if (p > 0) own_last = i;
        own += p;
    }
    if (threadIdx.x == 0) last = found = -1;
    before[threadIdx.x + 1] = own;
    __syncthreads();
    if (own_last >= 0) atomicMax(&last, own_last);
    if (threadIdx.x == 0) {
        before[0] = s.sum;
        for (int k = 0; k < BLOCK; k++)
            before[k + 1] += before[k];
    }
    __syncthreads();
    if (before[threadIdx.x] <= target && before[threadIdx.x + 1] > target)
        found = search_share(l, share, max, before[threadIdx.x], target);
    __syncthreads();
    if (threadIdx.x != 0) return;
    int at = found >= 0 ? found : last;
    b.searches[t] = {before[BLOCK], at >= 0 ? (int32_t)(c.col + at) : s.label, found >= 0};
}

static __global__ void take_labels(struct buffers b, int64_t count) {
    int64_t t = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (t < count) b.labels[t] = b.searches[t].label;
}

static enum rc get_buffers(struct backend_state *state, const struct sample_labels_args *a, struct buffers *b,
                           struct err *e) {
    size_t rows = (size_t)a->x.rows;
    void *memory;
    TRY(cuda_scratch(state,
                     rows * (LOGITS_CHUNK * sizeof *b->logits + sizeof *b->u + sizeof *b->sums + sizeof *b->searches +
                             sizeof *b->labels),
                     &memory, e));
    b->logits = (float *)memory;
    b->u = (double *)(b->logits + rows * LOGITS_CHUNK);
    b->sums = (struct logits_sum *)(b->u + rows);
    b->searches = (struct search *)(b->sums + rows);
    b->labels = (int32_t *)(b->searches + rows);
    CUDA_TRY(cudaMemcpyAsync(b->u, a->u, rows * sizeof *b->u, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

enum rc cuda_sample_labels(struct backend_state *state, const struct sample_labels_args *a, struct err *e) {
    TRY(check_sample_labels(a, e));
    int64_t rows = a->x.rows;
    if (rows == 0) return RC_OK;
    struct logits l = {a->x, a->head, a->bias, a->logit_scale};
    struct buffers b;
    TRY(get_buffers(state, a, &b, e));
    TRY(logits_sums(state, &l, b.logits, b.sums, e));
    for (int64_t col = 0; col < a->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(col, a->head.rows);
        TRY(logits_compute(state, &l, c, b.logits, e));
        search_chunk<<<(unsigned)rows, BLOCK, 0, state->stream>>>(b, c);
        LAUNCHED();
    }
    take_labels<<<blocks_for(rows, BLOCK), BLOCK, 0, state->stream>>>(b, rows);
    LAUNCHED();
    return cuda_download(state, b.labels, (size_t)rows * sizeof *b.labels, a->labels, e);
}
