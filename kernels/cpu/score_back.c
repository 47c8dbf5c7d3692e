#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/logits.h"
#include "kernels/cpu/vec.h"

/* Logits of one token → weight · (softmax − onehot(label)); its NLL where the label lies here. */
static void gradient_row(const struct score_back_args *a, int64_t t, const struct logits_sum *s,
                         const struct logits_chunk *c, float *l) {
    float weight = a->weight != NULL ? a->weight[t] : 1;
    int64_t label = a->labels[t] - c->col;
    if (label >= 0 && label < c->cols) a->nll[t] = s->max + log(s->sum) - l[label];
    vec_exp(l, c->cols, s->max);
    vec_scale(l, c->cols, (float)(weight / s->sum));
    if (label >= 0 && label < c->cols) l[label] -= weight;
}

static void score_tile(const void *args, const struct logits *l, int64_t row, float *scratch) {
    const struct score_back_args *a = args;
    struct logits_sum sums[LOGITS_TILE];
    logits_sums(l, row, scratch, sums);
    for (int64_t col = 0; col < l->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(l, row, col);
        logits_compute(l, &c, scratch);
        for (int64_t t = 0; t < c.rows; t++)
            gradient_row(a, row + t, &sums[t], &c, scratch + t * LOGITS_CHUNK);
        logits_back(l, &c, scratch, a->dx);
    }
}

enum rc cpu_score_back(struct backend_state *state, const struct score_back_args *a, struct err *e) {
    TRY(check_score_back(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->head));
    struct logits l = {a->x, a->head, a->bias, a->logit_scale};
    return logits_each_tile(state, &l, &(struct logits_work){score_tile, a, 1}, e);
}
