#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/logits.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

enum { TILE = LOGITS_TILE, CHUNK = LOGITS_CHUNK };

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

SIMD static void subtract(const float *restrict a, const float *restrict b, int64_t n, float *restrict out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = a[i] - b[i];
}

static void logits(const struct score_args *a, const struct mat *x, const struct mat *head,
                   const struct logits_chunk *c, float *out) {
    struct logits l = {*x, *head, a->bias, a->logit_scale};
    logits_compute(&l, c, out);
}

/* Takes in one row of logits and leaves e^(l − max) in it. Returns the factor by which earlier sums shrank. */
static double take(struct running *r, float *l, const struct logits_chunk *c, int32_t label) {
    if (label >= c->col && label < c->col + c->cols) r->label = l[label - c->col];
    float max = vec_max(l, c->cols);
    double factor = 1;
    if (max > r->max) {
        factor = exp((double)r->max - max);
        r->max = max;
        for (r->top = 0; l[r->top] != max;)
            r->top++;
        r->top += c->col;
    }
    vec_exp(l, c->cols, r->max);
    r->sum = r->sum * factor + vec_sum(l, c->cols);
    return factor;
}

static void take_chunk(const struct score_args *a, const struct logits_chunk *c, float *ref, float *quant,
                       struct token *tokens) {
    float difference[CHUNK];
    logits(a, &a->x, &a->head, c, ref);
    if (quant != NULL) logits(a, &a->x_q, a->head_q.data != NULL ? &a->head_q : &a->head, c, quant);
    for (int64_t t = 0; t < c->rows; t++) {
        float *l = ref + t * CHUNK, *l_q = quant != NULL ? quant + t * CHUNK : NULL;
        int32_t label = a->labels[c->row + t];
        if (quant != NULL) subtract(l, l_q, c->cols, difference);
        double factor = take(&tokens[t].ref, l, c, label);
        if (quant == NULL) continue;
        take(&tokens[t].quant, l_q, c, label);
        tokens[t].difference = tokens[t].difference * factor + vec_dot(l, difference, c->cols);
    }
}

static double log_sum(const struct running *r) {
    return r->max + log(r->sum);
}

static void finish(const struct score_args *a, int64_t t, const struct token *k) {
    a->nll[t] = log_sum(&k->ref) - k->ref.label;
    if (a->x_q.data == NULL) return;
    a->nll_q[t] = log_sum(&k->quant) - k->quant.label;
    a->kl[t] = k->difference / k->ref.sum + (log_sum(&k->quant) - log_sum(&k->ref));
    a->top1_agree[t] = k->ref.top == k->quant.top;
}

static void score_tile(const struct score_args *a, int64_t row, float *ref, float *quant) {
    struct token tokens[TILE];
    struct running none = {.max = -INFINITY};
    struct logits_chunk c = {.row = row, .rows = a->x.rows - row < TILE ? a->x.rows - row : TILE};
    for (int64_t t = 0; t < c.rows; t++)
        tokens[t] = (struct token){.ref = none, .quant = none};
    for (c.col = 0; c.col < a->head.rows; c.col += CHUNK) {
        c.cols = a->head.rows - c.col < CHUNK ? a->head.rows - c.col : CHUNK;
        take_chunk(a, &c, ref, quant, tokens);
    }
    for (int64_t t = 0; t < c.rows; t++)
        finish(a, row + t, &tokens[t]);
}

enum rc cpu_score(struct backend_state *state, const struct score_args *a, struct err *e) {
    TRY(check_score(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->x_q, a->head, a->head_q));
    const size_t tile = (size_t)TILE * CHUNK;
    void *memory;
    TRY(cpu_scratch(state, 2 * (size_t)state->threads * tile * sizeof(float), &memory, e));
    float *scratch = memory; /* [threads, 2, TILE, CHUNK] */
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t row = 0; row < a->x.rows; row += TILE) {
        float *ref = scratch + 2 * (size_t)omp_get_thread_num() * tile;
        score_tile(a, row, ref, a->x_q.data != NULL ? ref + tile : NULL);
    }
    return RC_OK;
}
