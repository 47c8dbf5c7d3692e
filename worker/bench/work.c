#include "worker/bench/work.h"

static double product(int64_t m, int64_t n, int64_t k) {
    return 2 * (double)m * (double)n * (double)k;
}

/* Pairs of a token and a key that it sees, in one window. */
static double seen_pairs(int64_t length, int64_t window) {
    double T = (double)length, w = window > 0 && window < length ? (double)window : T;
    return w * (w + 1) / 2 + (T - w) * w;
}

/* The Linears of the blocks from `first` on over so many tokens; without those that read `but` (INPUT_COUNT: all). */
static double work_linears(const struct model *model, int first, int64_t tokens, enum linear_input but) {
    double sum = 0;
    for (int64_t i = 0; i < model->linear_count; i++) {
        const struct linear *l = &model->linears[i];
        if (l->block >= first && l->input != but) sum += product(tokens, l->rows, l->cols);
    }
    return sum;
}

/* So many products over the pairs of a token and a key that it sees, in the blocks from `first` on. */
static double work_attention(const struct model *model, int first, int64_t count, int64_t length, int products) {
    const struct arch *a = &model->arch;
    double sum = 0;
    for (int block = first; block < a->blocks; block++)
        sum += products * product(count, a->heads, a->head_dim) * seen_pairs(length, a->window[block]);
    return sum;
}

static double forward_from(const struct model *model, int first, int64_t count, int64_t length) {
    enum { SCORES, MIXING, PRODUCTS }; /* q·kᵀ and p·v */
    return work_linears(model, first, count * length, INPUT_COUNT) +
           work_attention(model, first, count, length, PRODUCTS);
}

double work_back(const struct model *model, int64_t count, int64_t length) {
    enum { SCORES, MIXING, DV, DP, DQ, DK, PRODUCTS }; /* the first two anew */
    enum { LABELS, GRADIENT, HEAD_PRODUCTS };
    int64_t tokens = count * length;
    return work_linears(model, 0, tokens, INPUT_DOWN) + work_linears(model, 0, tokens, INPUT_COUNT) +
           work_attention(model, 0, count, length, PRODUCTS) + HEAD_PRODUCTS * work_head(model, count, length);
}

double work_fisher(const struct model *model, int64_t tokens, const struct candidate *candidates, size_t count) {
    double sum = 0;
    for (size_t c = 0; c < count; c++)
        if (candidates[c].method != METHOD_NONE) sum += work_linears(model, 0, tokens, INPUT_COUNT);
    return sum;
}

double work_forward(const struct model *model, int64_t count, int64_t length) {
    return forward_from(model, 0, count, length);
}

double work_sweep(const struct model *model, int64_t count, int64_t length) {
    double sum = work_forward(model, count, length) + work_head(model, count, length);
    for (int64_t i = 0; i < model->linear_count; i++)
        if (model->linears[i].block >= 0)
            sum += forward_from(model, model->linears[i].block, count, length) + work_head(model, count, length);
    return sum;
}

double work_head(const struct model *model, int64_t count, int64_t length) {
    return product(count * (length - 1), model->arch.vocab, model->arch.hidden);
}

/* Σ f(K) of the blocks' distinct inputs. */
static double over_inputs(const struct model *model, double (*f)(double channels)) {
    double sum = 0;
    const struct linear *before = NULL; /* Linears with the same input stand together */
    for (int64_t i = 0; i < model->linear_count; i++) {
        const struct linear *l = &model->linears[i];
        bool shared = before && before->block == l->block && before->input == l->input;
        if (l->block >= 0 && !shared) sum += f((double)l->cols);
        before = l;
    }
    return sum;
}

static double square(double k) {
    return k * k;
}

static double cube(double k) {
    return k * k * k;
}

double work_gram(const struct model *model, int64_t tokens) {
    return 2 * (double)tokens * over_inputs(model, square);
}

/* Σ 2·N·K·K of the block Linears. */
static double products_by_channels(const struct model *model) {
    double sum = 0;
    for (int64_t i = 0; i < model->linear_count; i++) {
        const struct linear *l = &model->linears[i];
        if (l->block >= 0) sum += product(l->rows, l->cols, l->cols);
    }
    return sum;
}

double work_gptq(const struct model *model) {
    return over_inputs(model, cube) * 2 / 3 + products_by_channels(model) / 2;
}

double work_awq(const struct model *model) {
    enum { SCALES = 40 };
    return SCALES * products_by_channels(model);
}

double work_refine(const struct model *model, int64_t count, int64_t length, int epochs) {
    enum { BLOCK_PASSES = 4, HEAD_PASSES = 3 };
    return (1 + epochs * BLOCK_PASSES) * work_forward(model, count, length) +
           epochs * HEAD_PASSES * work_head(model, count, length);
}

static int products_with_h(const struct candidate *c) {
    return c->method == METHOD_NONE ? 0 : c->method == METHOD_HQQ ? 2 : 1;
}

double work_drift(const struct model *model, const struct candidate *candidates, size_t count) {
    int times = 1;
    for (size_t c = 0; c < count; c++)
        times += products_with_h(&candidates[c]);
    return times * products_by_channels(model);
}
