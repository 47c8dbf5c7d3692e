#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/logits.h"
#include "kernels/cpu/vec.h"

/* One token's way to the place where the cumulative sum of e^(l − max) exceeds `target`. */
struct search {
    double target, sum;
    int32_t label; /* the last with a share of the sum: what u next to 1 gets where the order of sums costs a digit */
    bool found;
};

/* p: e^(l − max) of the vocabulary's entries from `col`. */
static void search_on(struct search *s, const float *p, int64_t col, int64_t n) {
    for (int64_t v = 0; v < n && !s->found; v++) {
        s->sum += p[v];
        if (p[v] > 0) s->label = (int32_t)(col + v);
        s->found = s->sum > s->target;
    }
}

static void sample_tile(const void *args, const struct logits *l, int64_t row, float *scratch) {
    const struct sample_labels_args *a = args;
    struct logits_sum sums[LOGITS_TILE];
    struct search searches[LOGITS_TILE];
    int64_t rows = logits_chunk_at(l, row, 0).rows;
    logits_sums(l, row, scratch, sums);
    for (int64_t t = 0; t < rows; t++)
        searches[t] = (struct search){.target = a->u[row + t] * sums[t].sum};
    for (int64_t col = 0; col < l->head.rows; col += LOGITS_CHUNK) {
        struct logits_chunk c = logits_chunk_at(l, row, col);
        logits_compute(l, &c, scratch);
        for (int64_t t = 0; t < rows; t++) {
            if (searches[t].found) continue;
            vec_exp(scratch + t * LOGITS_CHUNK, c.cols, sums[t].max);
            search_on(&searches[t], scratch + t * LOGITS_CHUNK, c.col, c.cols);
        }
    }
    for (int64_t t = 0; t < rows; t++)
        a->labels[row + t] = searches[t].label;
}

enum rc cpu_sample_labels(struct backend_state *state, const struct sample_labels_args *a, struct err *e) {
    TRY(check_sample_labels(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->head));
    struct logits l = {a->x, a->head, a->bias, a->logit_scale};
    return logits_each_tile(state, &l, &(struct logits_work){sample_tile, a, 1}, e);
}
