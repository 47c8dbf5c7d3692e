#include <cblas.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

/* Query rows computed together: enough for an efficient GEMM, few enough that causality saves half of the work. */
enum { TILE = 128 };

/* Query rows [row, row + rows) and keys [key, key + keys) of one head, all counted from row `first` of the matrices,
 * where the window begins. */
struct strip {
    int64_t first, row, rows, key, keys;
};

/* Some rows and all keys that they see. */
static struct strip strip_at(const struct attention_args *a, int64_t first, int64_t row) {
    struct strip s = {.first = first, .row = row, .rows = a->length - row < TILE ? a->length - row : TILE};
    s.key = a->window > 0 && row + 1 > a->window ? row + 1 - a->window : 0;
    s.keys = row + s.rows - s.key;
    return s;
}

/* Which of the strip's keys its row i sees: up to the token itself, no more than the window. */
struct span {
    int64_t begin, end;
};

static int64_t clamp(int64_t at, int64_t limit) {
    return at < 0 ? 0 : at > limit ? limit : at;
}

static struct span seen_by(const struct attention_args *a, const struct strip *s, int64_t i) {
    int64_t end = s->row + i + 1 - s->key;
    return (struct span){a->window > 0 ? clamp(end - a->window, s->keys) : 0, clamp(end, s->keys)};
}

static void clear_unseen(const struct strip *s, struct span seen, float *row) {
    for (int64_t j = 0; j < seen.begin; j++)
        row[j] = 0;
    for (int64_t j = seen.end; j < s->keys; j++)
        row[j] = 0;
}

/* One query's softmax, p = e^(s − max)·factor, and dout·out, which its gradient needs. */
struct query {
    float max, factor, dot;
};

static struct query softmax(float *seen, int64_t n) {
    struct query q = {.max = vec_max(seen, n)};
    vec_exp(seen, n, q.max);
    q.factor = (float)(1.0 / vec_sum(seen, n));
    vec_scale(seen, n, q.factor);
    return q;
}

/* Softmax over the keys each row may see; the others become 0. p [rows, keys]. */
static void masked_softmax(const struct attention_args *a, const struct strip *s, float *p) {
    for (int64_t i = 0; i < s->rows; i++) {
        struct span seen = seen_by(a, s, i);
        softmax(p + i * s->keys + seen.begin, seen.end - seen.begin);
        clear_unseen(s, seen, p + i * s->keys);
    }
}

/* One head's part of row `row`. */
static float *part(struct mat m, int64_t row, int head, int dim) {
    return f32_row(m, row) + (int64_t)head * dim;
}

/* out [rows, keys] = scale · x · yᵀ: x's rows are the strip's queries, y's its keys. */
static void scores(const struct attention_args *a, const struct strip *s, int head, struct mat x, struct mat y,
                   float scale, float *out) {
    int d = a->head_dim, kv_head = head / (a->heads / a->kv_heads);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)s->rows, (int)s->keys, d, scale,
                part(x, s->first + s->row, head, d), (int)x.stride, part(y, s->first + s->key, kv_head, d),
                (int)y.stride, 0, out, (int)s->keys);
}

/* out = scale · p · y: a row for each of the strip's queries. */
static void mix(const struct attention_args *a, const struct strip *s, int head, const float *p, struct mat y,
                float scale, struct mat out) {
    int d = a->head_dim, kv_head = head / (a->heads / a->kv_heads);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)s->rows, d, (int)s->keys, scale, p, (int)s->keys,
                part(y, s->first + s->key, kv_head, d), (int)y.stride, 0, part(out, s->first + s->row, head, d),
                (int)out.stride);
}

static void attend(const struct attention_args *a, int head, const struct strip *s, float *p) {
    scores(a, s, head, a->q, a->k, a->scale, p);
    masked_softmax(a, s, p);
    mix(a, s, head, p, a->v, 1, a->out);
}

enum rc cpu_attention(struct backend_state *state, const struct attention_args *a, struct err *e) {
    TRY(check_attention(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->q, a->k, a->v, a->out));
    int64_t strips = (a->length + TILE - 1) / TILE, per_window = strips * a->heads;
    size_t per_thread = (size_t)TILE * (size_t)a->length;
    void *memory;
    TRY(cpu_scratch(state, (size_t)state->threads * per_thread * sizeof(float), &memory, e));
    float *scratch = memory; /* [threads, TILE, length] */
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < a->q.rows / a->length * per_window; i++) {
        int64_t row = (strips - 1 - i % per_window / a->heads) * TILE; /* the longest first */
        struct strip s = strip_at(a, i / per_window * a->length, row);
        attend(a, (int)(i % a->heads), &s, scratch + (size_t)omp_get_thread_num() * per_thread);
    }
    return RC_OK;
}

struct back_workspace {
    struct query *queries; /* [T, heads] */
    float *strips;         /* [threads, 2, per_strip] */
    size_t per_strip;
};

static enum rc get_workspace(struct backend_state *state, const struct attention_args *a, struct back_workspace *ws,
                             struct err *e) {
    size_t queries = (size_t)a->q.rows * (size_t)a->heads * sizeof *ws->queries;
    queries = (queries + 63) / 64 * 64;
    ws->per_strip = (size_t)TILE * (size_t)(a->length > TILE ? a->length : TILE);
    void *memory;
    TRY(cpu_scratch(state, queries + 2 * (size_t)state->threads * ws->per_strip * sizeof(float), &memory, e));
    ws->queries = memory;
    ws->strips = (float *)((char *)memory + queries);
    return RC_OK;
}

/* p ∘ (dp − dout·out) into dp. */
SIMD static void score_gradient(const float *restrict p, float dot, int64_t n, float *restrict dp) {
    for (int64_t j = 0; j < n; j++)
        dp[j] = p[j] * (dp[j] - dot);
}

/* dq of one strip; keeps of its queries what the keys' gradients need. */
static void query_gradients(const struct attention_back_args *b, int head, const struct strip *s, float *p, float *dp,
                            struct query *queries) {
    const struct attention_args *a = &b->forward;
    int d = a->head_dim;
    scores(a, s, head, a->q, a->k, a->scale, p);
    scores(a, s, head, b->dout, a->v, 1, dp);
    for (int64_t i = 0; i < s->rows; i++) {
        int64_t t = s->first + s->row + i;
        struct span seen = seen_by(a, s, i);
        float *row = p + i * s->keys;
        struct query q = softmax(row + seen.begin, seen.end - seen.begin);
        q.dot = (float)vec_dot(part(b->dout, t, head, d), part(a->out, t, head, d), d);
        clear_unseen(s, seen, row);
        score_gradient(row, q.dot, s->keys, dp + i * s->keys);
        queries[t * a->heads + head] = q;
    }
    mix(a, s, head, dp, a->k, a->scale, b->dq);
}

/* The probabilities of a strip of which other keys may be elsewhere. */
static void recall_softmax(const struct attention_args *a, int head, const struct strip *s, const struct query *queries,
                           float *p) {
    for (int64_t i = 0; i < s->rows; i++) {
        const struct query *q = &queries[(s->first + s->row + i) * a->heads + head];
        struct span seen = seen_by(a, s, i);
        float *row = p + i * s->keys;
        vec_exp(row + seen.begin, seen.end - seen.begin, q->max);
        vec_scale(row + seen.begin, seen.end - seen.begin, q->factor);
        clear_unseen(s, seen, row);
    }
}

/* out = scale · pᵀ · x + beta · out: a row for each of the strip's keys. */
static void mix_transposed(const struct attention_args *a, const struct strip *s, int head, const float *p,
                           struct mat x, float scale, float beta, struct mat out) {
    int d = a->head_dim, kv_head = head / (a->heads / a->kv_heads);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)s->keys, d, (int)s->rows, scale, p, (int)s->keys,
                part(x, s->first + s->row, head, d), (int)x.stride, beta, part(out, s->first + s->key, kv_head, d),
                (int)out.stride);
}

/* Adds to dk and dv what one strip of queries of one head says of some keys. */
static void add_key_gradients(const struct attention_back_args *b, int head, const struct strip *s,
                              const struct query *queries, float *p, float *dp, float beta) {
    const struct attention_args *a = &b->forward;
    scores(a, s, head, a->q, a->k, a->scale, p);
    recall_softmax(a, head, s, queries, p);
    mix_transposed(a, s, head, p, b->dout, 1, beta, b->dv);
    scores(a, s, head, b->dout, a->v, 1, dp);
    for (int64_t i = 0; i < s->rows; i++)
        score_gradient(p + i * s->keys, queries[(s->first + s->row + i) * a->heads + head].dot, s->keys,
                       dp + i * s->keys);
    mix_transposed(a, s, head, dp, a->q, a->scale, beta, b->dk);
}

/* dk and dv of some keys of one key head: over the heads that share it, and over all queries that see them. */
static void key_gradients(const struct attention_back_args *b, int kv_head, int64_t first, int64_t key,
                          const struct query *queries, float *p, float *dp) {
    const struct attention_args *a = &b->forward;
    int shared = a->heads / a->kv_heads;
    int64_t keys = a->length - key < TILE ? a->length - key : TILE, end = a->length;
    if (a->window > 0 && key + keys - 1 + a->window < end) end = key + keys - 1 + a->window;
    float beta = 0;
    for (int head = kv_head * shared; head < (kv_head + 1) * shared; head++)
        for (int64_t row = key; row < end; row += TILE, beta = 1) {
            struct strip s = {first, row, end - row < TILE ? end - row : TILE, key, keys};
            add_key_gradients(b, head, &s, queries, p, dp, beta);
        }
}

enum rc cpu_attention_back(struct backend_state *state, const struct attention_back_args *b, struct err *e) {
    const struct attention_args *a = &b->forward;
    TRY(check_attention_back(b, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->q, a->k, a->v, a->out, b->dout, b->dq, b->dk, b->dv));
    int64_t strips = (a->length + TILE - 1) / TILE, windows = a->q.rows / a->length;
    struct back_workspace ws;
    TRY(get_workspace(state, a, &ws, e));
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < windows * strips * a->heads; i++) {
        float *p = ws.strips + 2 * (size_t)omp_get_thread_num() * ws.per_strip;
        int64_t row = (strips - 1 - i / a->heads % strips) * TILE; /* the longest first */
        struct strip s = strip_at(a, i / a->heads / strips * a->length, row);
        query_gradients(b, (int)(i % a->heads), &s, p, p + ws.per_strip, ws.queries);
    }
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t i = 0; i < windows * strips * a->kv_heads; i++) {
        float *p = ws.strips + 2 * (size_t)omp_get_thread_num() * ws.per_strip;
        int64_t key = i / a->kv_heads % strips * TILE; /* the longest first */
        key_gradients(b, (int)(i % a->kv_heads), i / a->kv_heads / strips * a->length, key, ws.queries, p,
                      p + ws.per_strip);
    }
    return RC_OK;
}
