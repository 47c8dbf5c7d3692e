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
