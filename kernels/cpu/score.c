#include <math.h>
#include <string.h>

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

/* A quantized model's token against the reference's. */
struct against {
    struct running quant;
    double difference; /* Σ e^(l_ref − max)·(l_ref − l_quant) */
};

/* A thread's. */
struct tile {
    float *ref, *powers, *quant; /* [TILE, CHUNK] logits, e^(l_ref − max) of them */
    double *factors;             /* [TILE] by which the chunk at hand shrank the reference's earlier sums */
    struct running *tokens;      /* [TILE] */
    struct against *models;      /* [Q, TILE] */
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

static void take_reference(const struct score_args *a, const struct logits_chunk *c, const struct tile *m) {
    logits(a, &a->x, &a->head, c, m->ref);
    for (int64_t t = 0; t < c->rows; t++) {
        float *powers = m->powers + t * CHUNK;
        memcpy(powers, m->ref + t * CHUNK, (size_t)c->cols * sizeof *powers);
        m->factors[t] = take(&m->tokens[t], powers, c, a->labels[c->row + t]);
    }
}

static void take_model(const struct score_args *a, const struct logits_chunk *c, int64_t model, const struct tile *m) {
    float difference[CHUNK];
    struct mat x = mat_rows(a->x_q, model * a->apart, a->x_q.rows);
    logits(a, &x, a->head_q.data != NULL ? &a->head_q : &a->head, c, m->quant);
    for (int64_t t = 0; t < c->rows; t++) {
        struct against *k = &m->models[model * TILE + t];
        float *l_q = m->quant + t * CHUNK;
        subtract(m->ref + t * CHUNK, l_q, c->cols, difference);
        take(&k->quant, l_q, c, a->labels[c->row + t]);
        k->difference = k->difference * m->factors[t] + vec_dot(m->powers + t * CHUNK, difference, c->cols);
    }
}

static double log_sum(const struct running *r) {
    return r->max + log(r->sum);
}

static void finish(const struct score_args *a, int64_t at, const struct running *ref, const struct against *k) {
    a->nll_q[at] = log_sum(&k->quant) - k->quant.label;
    a->kl[at] = k->difference / ref->sum + (log_sum(&k->quant) - log_sum(ref));
    a->top1_agree[at] = ref->top == k->quant.top;
}

static int64_t models(const struct score_args *a) {
    return a->x_q.data != NULL ? 1 + a->more : 0;
}

static void score_tile(const struct score_args *a, int64_t row, const struct tile *m) {
    const struct running none = {.max = -INFINITY};
    struct logits_chunk c = {.row = row, .rows = a->x.rows - row < TILE ? a->x.rows - row : TILE};
    for (int64_t t = 0; t < TILE; t++)
        m->tokens[t] = none;
    for (int64_t i = 0; i < models(a) * TILE; i++)
        m->models[i] = (struct against){.quant = none};
    for (c.col = 0; c.col < a->head.rows; c.col += CHUNK) {
        c.cols = a->head.rows - c.col < CHUNK ? a->head.rows - c.col : CHUNK;
        take_reference(a, &c, m);
        for (int64_t q = 0; q < models(a); q++)
            take_model(a, &c, q, m);
    }
    for (int64_t t = 0; t < c.rows; t++) {
        a->nll[row + t] = log_sum(&m->tokens[t]) - m->tokens[t].label;
        for (int64_t q = 0; q < models(a); q++)
            finish(a, q * a->x.rows + row + t, &m->tokens[t], &m->models[q * TILE + t]);
    }
}

static struct tile tile_at(char *memory) {
    const size_t floats = (size_t)TILE * CHUNK;
    struct tile m = {.ref = (float *)memory};
    m.powers = m.ref + floats;
    m.quant = m.powers + floats;
    m.factors = (double *)(m.quant + floats);
    m.tokens = (struct running *)(m.factors + TILE);
    m.models = (struct against *)(m.tokens + TILE);
    return m;
}

static size_t tile_bytes(const struct score_args *a) {
    size_t token = 3 * CHUNK * sizeof(float) + sizeof(double) + sizeof(struct running);
    return TILE * (token + (size_t)models(a) * sizeof(struct against));
}

enum rc cpu_score(struct backend_state *state, const struct score_args *a, struct err *e) {
    TRY(check_score(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->x_q, a->head, a->head_q));
    size_t bytes = tile_bytes(a);
    void *memory;
    TRY(cpu_scratch(state, (size_t)state->threads * bytes, &memory, e));
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t row = 0; row < a->x.rows; row += TILE) {
        struct tile m = tile_at((char *)memory + (size_t)omp_get_thread_num() * bytes);
        score_tile(a, row, &m);
    }
    return RC_OK;
}
