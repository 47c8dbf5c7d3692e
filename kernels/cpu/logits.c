#include "kernels/cpu/logits.h"

#include <cblas.h>
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

SIMD static void add(float *restrict x, const float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i];
}

void logits_compute(const struct logits *l, const struct logits_chunk *c, float *out) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)c->rows, (int)c->cols, (int)l->x.cols, l->scale,
                f32_row(l->x, c->row), (int)l->x.stride, f32_row(l->head, c->col), (int)l->head.stride, 0, out,
                LOGITS_CHUNK);
    if (l->bias == NULL) return;
    for (int64_t t = 0; t < c->rows; t++)
        add(out + t * LOGITS_CHUNK, l->bias + c->col, c->cols);
}

struct logits_chunk logits_chunk_at(const struct logits *l, int64_t row, int64_t col) {
    struct logits_chunk c = {.row = row, .rows = l->x.rows - row, .col = col, .cols = l->head.rows - col};
    if (c.rows > LOGITS_TILE) c.rows = LOGITS_TILE;
    if (c.cols > LOGITS_CHUNK) c.cols = LOGITS_CHUNK;
    return c;
}

void logits_back(const struct logits *l, const struct logits_chunk *c, const float *gradient, struct mat dx) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)c->rows, (int)dx.cols, (int)c->cols, l->scale, gradient,
                LOGITS_CHUNK, f32_row(l->head, c->col), (int)l->head.stride, c->col > 0, f32_row(dx, c->row),
                (int)dx.stride);
}

/* Takes in one row of logits, which become e^(l − max). */
static void take(struct logits_sum *s, float *l, int64_t n) {
    float max = vec_max(l, n);
    if (max > s->max) {
        s->sum *= exp((double)s->max - max);
        s->max = max;
    }
    vec_exp(l, n, s->max);
    s->sum += vec_sum(l, n);
}

void logits_sums(const struct logits *l, int64_t row, float *scratch, struct logits_sum *out) {
    for (int64_t t = 0; t < LOGITS_TILE && row + t < l->x.rows; t++)
        out[t] = (struct logits_sum){0, -INFINITY};
    for (int64_t col = 0; col < l->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(l, row, col);
        logits_compute(l, &c, scratch);
        for (int64_t t = 0; t < c.rows; t++)
            take(&out[t], scratch + t * LOGITS_CHUNK, c.cols);
    }
}

enum rc logits_each_tile(struct backend_state *state, const struct logits *l, const struct logits_work *work,
                         struct err *e) {
    const size_t floats = (size_t)work->matrices * LOGITS_TILE * LOGITS_CHUNK;
    void *memory;
    TRY(cpu_scratch(state, (size_t)state->threads * floats * sizeof(float), &memory, e));
    float *scratch = memory; /* [threads, matrices, LOGITS_TILE, LOGITS_CHUNK] */
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t row = 0; row < l->x.rows; row += LOGITS_TILE)
        work->tile(work->args, l, row, scratch + (size_t)omp_get_thread_num() * floats);
    return RC_OK;
}
