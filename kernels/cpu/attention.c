#include <cblas.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* Query rows computed together: enough for an efficient GEMM, few enough that causality saves half of the work. */
enum { TILE = 128 };

/* Query rows [row, row + rows) of one head see keys [key, row + rows), all counted from row `first` of the matrices,
 * where the window begins. */
struct strip {
    int64_t first, row, rows, key, keys;
};

static struct strip strip_at(const struct attention_args *a, int64_t first, int64_t row) {
    struct strip s = {.first = first, .row = row, .rows = a->length - row < TILE ? a->length - row : TILE};
    s.key = a->window > 0 && row + 1 > a->window ? row + 1 - a->window : 0;
    s.keys = row + s.rows - s.key;
    return s;
}

/* Softmax over the keys each row may see; the others become 0. p [rows, keys]. */
static void masked_softmax(const struct attention_args *a, const struct strip *s, float *p) {
    for (int64_t i = 0; i < s->rows; i++) {
        float *row = p + i * s->keys;
        int64_t end = s->row + i + 1 - s->key; /* keys up to the token itself */
        int64_t begin = a->window > 0 && end > a->window ? end - a->window : 0;
        float *seen = row + begin;
        vec_exp(seen, end - begin, vec_max(seen, end - begin));
        vec_scale(seen, end - begin, (float)(1.0 / vec_sum(seen, end - begin)));
        for (int64_t j = 0; j < begin; j++)
            row[j] = 0;
        for (int64_t j = end; j < s->keys; j++)
            row[j] = 0;
    }
}

static void attend(const struct attention_args *a, int head, const struct strip *s, float *p) {
    int d = a->head_dim, kv_head = head / (a->heads / a->kv_heads);
    const float *q = f32_row(a->q, s->first + s->row) + (int64_t)head * d;
    const float *k = f32_row(a->k, s->first + s->key) + (int64_t)kv_head * d;
    const float *v = f32_row(a->v, s->first + s->key) + (int64_t)kv_head * d;
    float *out = f32_row(a->out, s->first + s->row) + (int64_t)head * d;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)s->rows, (int)s->keys, d, a->scale, q, (int)a->q.stride,
                k, (int)a->k.stride, 0, p, (int)s->keys);
    masked_softmax(a, s, p);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)s->rows, d, (int)s->keys, 1, p, (int)s->keys, v,
                (int)a->v.stride, 0, out, (int)a->out.stride);
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
