#include "kernels/cuda/device.cuh"

/* Query rows computed together: enough for an efficient GEMM, few enough that causality saves half of the work. */
static const int64_t TILE = 256;

/* Query rows [row, row + rows) of every head see keys [key, row + rows), all counted from row `first` of the matrices,
 * where the window begins. */
struct strip {
    int64_t first, row, rows, key, keys;
};

static struct strip strip_at(const struct attention_args *a, int64_t first, int64_t row) {
    struct strip s = {first, row, a->length - row < TILE ? a->length - row : TILE, 0, 0};
    s.key = a->window > 0 && row + 1 > a->window ? row + 1 - a->window : 0;
    s.keys = row + s.rows - s.key;
    return s;
}

/* Softmax over the keys each row may see; the others become 0. p [heads, rows, keys]; one block a row of one head. */
static __global__ void masked_softmax(float *p, struct strip s, int window) {
    int64_t i = blockIdx.x % s.rows;
    float *row = p + (int64_t)blockIdx.x * s.keys;
    int64_t end = s.row + i + 1 - s.key; /* keys up to the token itself */
    int64_t begin = window > 0 && end > window ? end - window : 0;
    float max = -INFINITY;
    for (int64_t j = begin + threadIdx.x; j < end; j += BLOCK)
        max = fmaxf(max, row[j]);
    max = block_max(max);
    double sum = 0;
    for (int64_t j = threadIdx.x; j < s.keys; j += BLOCK) {
        row[j] = j >= begin && j < end ? expf(row[j] - max) : 0;
        sum += row[j];
    }
    float factor = (float)(1.0 / block_sum(sum));
    for (int64_t j = threadIdx.x; j < s.keys; j += BLOCK)
        row[j] *= factor;
}

/* The query heads that share one key head are one batch: p = q · kᵀ · scale. */
static enum rc scores(struct backend_state *state, const struct attention_args *a, int kv_head, const struct strip *s,
                      float *p, struct err *e) {
    const float zero = 0;
    int d = a->head_dim, shared = a->heads / a->kv_heads;
    const float *q = (const float *)a->q.data + (s->first + s->row) * a->q.stride + (int64_t)kv_head * shared * d;
    const float *k = (const float *)a->k.data + (s->first + s->key) * a->k.stride + (int64_t)kv_head * d;
    CUBLAS_TRY(cublasSgemmStridedBatched(state->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)s->keys, (int)s->rows, d,
                                         &a->scale, k, (int)a->k.stride, 0, q, (int)a->q.stride, d, &zero, p,
                                         (int)s->keys, s->rows * s->keys, shared));
    return RC_OK;
}

/* out = p · v */
static enum rc mix(struct backend_state *state, const struct attention_args *a, int kv_head, const struct strip *s,
                   const float *p, struct err *e) {
    const float one = 1, zero = 0;
    int d = a->head_dim, shared = a->heads / a->kv_heads;
    const float *v = (const float *)a->v.data + (s->first + s->key) * a->v.stride + (int64_t)kv_head * d;
    float *out = (float *)a->out.data + (s->first + s->row) * a->out.stride + (int64_t)kv_head * shared * d;
    CUBLAS_TRY(cublasSgemmStridedBatched(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, d, (int)s->rows, (int)s->keys, &one, v,
                                         (int)a->v.stride, 0, p, (int)s->keys, s->rows * s->keys, &zero, out,
                                         (int)a->out.stride, d, shared));
    return RC_OK;
}

static enum rc attend(struct backend_state *state, const struct attention_args *a, const struct strip *s, float *p,
                      struct err *e) {
    int64_t shared = a->heads / a->kv_heads;
    for (int h = 0; h < a->kv_heads; h++)
        TRY(scores(state, a, h, s, p + h * shared * s->rows * s->keys, e));
    masked_softmax<<<(unsigned)(a->heads * s->rows), BLOCK, 0, state->stream>>>(p, *s, a->window);
    LAUNCHED();
    for (int h = 0; h < a->kv_heads; h++)
        TRY(mix(state, a, h, s, p + h * shared * s->rows * s->keys, e));
    return RC_OK;
}

static enum rc attend_windows(struct backend_state *state, const struct attention_args *a, struct err *e) {
    void *p; /* [heads, TILE, length] */
    TRY(cuda_scratch(state, (size_t)a->heads * TILE * (size_t)a->length * sizeof(float), &p, e));
    for (int64_t first = 0; first < a->q.rows; first += a->length)
        for (int64_t row = 0; row < a->length; row += TILE) {
            struct strip s = strip_at(a, first, row);
            TRY(attend(state, a, &s, (float *)p, e));
        }
    return RC_OK;
}

enum rc cuda_attention(struct backend_state *state, const struct attention_args *a, struct err *e) {
    TRY(check_attention(a, e));
    TRY(check_activation(state, &a->q, e));
    if (a->q.type != DTYPE_BF16) return attend_windows(state, a, e);
    bool done;
    TRY(cuda_cudnn_attention(state, a, &done, e));
    return done ? RC_OK : cuda_flash_attention(state, a, e);
}

/* Gradients in fp32: strips as in the forward pass, their probabilities recomputed. */
struct back_buffers {
    float *p, *dp; /* [heads, TILE, length] */
};

/* dp = p ∘ (dp − Σ p·dp), one block a row of one head: the softmax's gradient. */
static __global__ void score_gradient(const float *p, float *dp, int64_t keys) {
    const float *row = p + (int64_t)blockIdx.x * keys;
    float *gradient = dp + (int64_t)blockIdx.x * keys;
    double dot = 0;
    for (int64_t j = threadIdx.x; j < keys; j += BLOCK)
        dot += (double)row[j] * gradient[j];
    float mean = (float)block_sum(dot);
    for (int64_t j = threadIdx.x; j < keys; j += BLOCK)
        gradient[j] = row[j] * (gradient[j] - mean);
}

/* A strip's part of a matrix of queries or keys: its first head of those that share a key head. */
static float *query_part(struct mat m, const struct attention_args *a, const struct strip *s, int kv_head) {
    return (float *)m.data + (s->first + s->row) * m.stride + (int64_t)kv_head * (a->heads / a->kv_heads) * a->head_dim;
}
static float *key_part(struct mat m, const struct attention_args *a, const struct strip *s, int kv_head) {
    return (float *)m.data + (s->first + s->key) * m.stride + (int64_t)kv_head * a->head_dim;
}

/* dp = dout · vᵀ for the heads that share a key head, as `scores` makes p of q and k. */
static enum rc probability_gradient(struct backend_state *state, const struct attention_back_args *b, int kv_head,
                                    const struct strip *s, float *dp, struct err *e) {
    struct attention_args a = b->forward;
    a.q = b->dout;
    a.k = b->forward.v;
    a.scale = 1;
    return scores(state, &a, kv_head, s, dp, e);
}

/* dq = scale · ds · k */
static enum rc query_gradient(struct backend_state *state, const struct attention_back_args *b, int kv_head,
                              const struct strip *s, const float *ds, struct err *e) {
    const struct attention_args *a = &b->forward;
    const float zero = 0;
    int d = a->head_dim;
    CUBLAS_TRY(cublasSgemmStridedBatched(state->blas, CUBLAS_OP_N, CUBLAS_OP_N, d, (int)s->rows, (int)s->keys,
                                         &a->scale, key_part(a->k, a, s, kv_head), (int)a->k.stride, 0, ds,
                                         (int)s->keys, s->rows * s->keys, &zero, query_part(b->dq, a, s, kv_head),
                                         (int)b->dq.stride, d, a->heads / a->kv_heads));
    return RC_OK;
}

/* out += scale · pᵀ · x for every key head at once, and for the heads that share them one after the other: the sum
 * keeps its order. */
static enum rc key_gradient(struct backend_state *state, const struct attention_args *a, const struct strip *s,
                            const float *p, struct mat x, float scale, struct mat out, struct err *e) {
    const float one = 1;
    int d = a->head_dim, shared = a->heads / a->kv_heads;
    int64_t tile = s->rows * s->keys;
    for (int i = 0; i < shared; i++)
        CUBLAS_TRY(cublasSgemmStridedBatched(state->blas, CUBLAS_OP_N, CUBLAS_OP_T, d, (int)s->keys, (int)s->rows,
                                             &scale, query_part(x, a, s, 0) + (int64_t)i * d, (int)x.stride,
                                             (int64_t)shared * d, p + i * tile, (int)s->keys, shared * tile, &one,
                                             key_part(out, a, s, 0), (int)out.stride, d, a->kv_heads));
    return RC_OK;
}

static enum rc attend_back(struct backend_state *state, const struct attention_back_args *b, const struct strip *s,
                           struct back_buffers buffers, struct err *e) {
    const struct attention_args *a = &b->forward;
    int64_t group = a->heads / a->kv_heads * s->rows * s->keys;
    unsigned rows = (unsigned)(a->heads * s->rows);
    for (int h = 0; h < a->kv_heads; h++) {
        TRY(scores(state, a, h, s, buffers.p + h * group, e));
        TRY(probability_gradient(state, b, h, s, buffers.dp + h * group, e));
    }
    masked_softmax<<<rows, BLOCK, 0, state->stream>>>(buffers.p, *s, a->window);
    LAUNCHED();
    TRY(key_gradient(state, a, s, buffers.p, b->dout, 1, b->dv, e));
    score_gradient<<<rows, BLOCK, 0, state->stream>>>(buffers.p, buffers.dp, s->keys);
    LAUNCHED();
    for (int h = 0; h < a->kv_heads; h++)
        TRY(query_gradient(state, b, h, s, buffers.dp + h * group, e));
    return key_gradient(state, a, s, buffers.dp, a->q, a->scale, b->dk, e);
}

static enum rc clear_rows(struct backend_state *state, struct mat m, struct err *e) {
    if (m.rows == 0 || m.cols == 0) return RC_OK;
    CUDA_TRY(cudaMemset2DAsync(m.data, (size_t)m.stride * sizeof(float), 0, (size_t)m.cols * sizeof(float),
                               (size_t)m.rows, state->stream));
    return RC_OK;
}

static enum rc attend_windows_back(struct backend_state *state, const struct attention_back_args *b, struct err *e) {
    const struct attention_args *a = &b->forward;
    size_t strip = (size_t)a->heads * TILE * (size_t)a->length;
    void *memory;
    TRY(cuda_scratch(state, 2 * strip * sizeof(float), &memory, e));
    struct back_buffers buffers = {(float *)memory, (float *)memory + strip};
    TRY(clear_rows(state, b->dk, e));
    TRY(clear_rows(state, b->dv, e));
    for (int64_t first = 0; first < a->q.rows; first += a->length)
        for (int64_t row = 0; row < a->length; row += TILE) {
            struct strip s = strip_at(a, first, row);
            TRY(attend_back(state, b, &s, buffers, e));
        }
    return RC_OK;
}

enum rc cuda_attention_back(struct backend_state *state, const struct attention_back_args *b, struct err *e) {
    const struct attention_args *a = &b->forward;
    TRY(check_attention_back(b, e));
    const struct mat all[] = {a->q, a->k, a->v, a->out, b->dout, b->dq, b->dk, b->dv};
    for (int i = 0; i < 8; i++)
        TRY(check_activation(state, &all[i], e));
    return a->q.type == DTYPE_BF16 ? cuda_flash_attention_back(state, b, e) : attend_windows_back(state, b, e);
}
