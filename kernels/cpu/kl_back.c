#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/logits.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

/* What one token's softmaxes are computed from. */
struct pair {
    float max, max_ref, share, share_ref; /* P = e^(l − max) · share */
    float apart;                          /* log-sum-exp of the model's logits less that of the reference's */
    float weight;
};

/* Logits → weight · (P − P_ref) in l, e^(l_ref − max_ref) in ref, and l_ref − l in `loss`. With d = log P − log P_ref,
 * P − P_ref = ±max(P, P_ref) · (1 − e^−|d|), which neither cancels where both are near nor overflows where they are
 * not. */
SIMD static void differ(const struct pair *p, float *restrict l, float *restrict ref, float *restrict loss, int64_t n) {
    const struct pair k = *p;
    for (int64_t i = 0; i < n; i++) {
        float between = l[i] - ref[i], d = between - k.apart;
        float own = exp_f32(l[i] - k.max), reference = exp_f32(ref[i] - k.max_ref);
        float gain = d > 0 ? -own * k.share : reference * k.share_ref;
        l[i] = k.weight * (gain * expm1_f32(d > 0 ? -d : d));
        ref[i] = reference;
        loss[i] = -between;
    }
}

static double log_sum(const struct logits_sum *s) {
    return s->max + log(s->sum);
}

struct token {
    struct pair pair;
    double sum_ref, kl;
};

static struct token token_of(const struct kl_back_args *a, int64_t t, const struct logits_sum *own,
                             const struct logits_sum *ref) {
    double apart = log_sum(own) - log_sum(ref);
    return (struct token){.pair = {.max = own->max,
                                   .max_ref = ref->max,
                                   .share = (float)(1 / own->sum),
                                   .share_ref = (float)(1 / ref->sum),
                                   .apart = (float)apart,
                                   .weight = a->weight != NULL ? a->weight[t] : 1},
                          .sum_ref = ref->sum,
                          .kl = apart};
}

/* logits [2, LOGITS_TILE, LOGITS_CHUNK]: the model's, then the reference's. */
static void take_chunk(const struct logits_chunk *c, float *logits, struct token *tokens) {
    float loss[LOGITS_CHUNK];
    for (int64_t t = 0; t < c->rows; t++) {
        float *l = logits + t * LOGITS_CHUNK, *ref = l + (int64_t)LOGITS_TILE * LOGITS_CHUNK;
        differ(&tokens[t].pair, l, ref, loss, c->cols);
        tokens[t].kl += vec_dot(ref, loss, c->cols) / tokens[t].sum_ref;
    }
}

static void kl_tile(const void *args, const struct logits *l, int64_t row, float *scratch) {
    const struct kl_back_args *a = args;
    const struct logits ref = {a->x_ref, a->head_ref.data != NULL ? a->head_ref : a->head, a->bias, a->logit_scale};
    struct logits_sum sums[LOGITS_TILE], sums_ref[LOGITS_TILE];
    struct token tokens[LOGITS_TILE] = {0};
    int64_t rows = logits_chunk_at(l, row, 0).rows;
    logits_sums(l, row, scratch, sums);
    logits_sums(&ref, row, scratch, sums_ref);
    for (int64_t t = 0; t < rows; t++)
        tokens[t] = token_of(a, row + t, &sums[t], &sums_ref[t]);
    for (int64_t col = 0; col < l->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(l, row, col);
        logits_compute(l, &c, scratch);
        logits_compute(&ref, &c, scratch + (int64_t)LOGITS_TILE * LOGITS_CHUNK);
        take_chunk(&c, scratch, tokens);
        logits_back(l, &c, scratch, a->dx);
    }
    for (int64_t t = 0; t < rows; t++)
        a->kl[row + t] = tokens[t].kl;
}

enum rc cpu_kl_back(struct backend_state *state, const struct kl_back_args *a, struct err *e) {
    TRY(check_kl_back(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->x_ref, a->head, a->head_ref));
    struct logits l = {a->x, a->head, a->bias, a->logit_scale};
    return logits_each_tile(state, &l, &(struct logits_work){kl_tile, a, 2}, e);
}
