#include "worker/bench/work.h"

#include "worker/pipeline/refine.h"

static double product(int64_t m, int64_t n, int64_t k) {
    return 2 * (double)m * (double)n * (double)k;
}

/* Pairs of a token and a key that it sees, in one window. */
static double seen_pairs(int64_t length, int64_t window) {
    double T = (double)length, w = window > 0 && window < length ? (double)window : T;
    return w * (w + 1) / 2 + (T - w) * w;
}

/* Of the blocks from this one on. */
static double forward_from(const struct model *model, int first, int64_t count, int64_t length) {
    const struct arch *a = &model->arch;
    double sum = 0;
    for (int64_t i = 0; i < model->linear_count; i++) {
        const struct linear *l = &model->linears[i];
        if (l->block >= first) sum += product(count * length, l->rows, l->cols);
    }
    for (int block = first; block < a->blocks; block++) /* q·kᵀ and p·v */
        sum += 2 * product(count, a->heads, a->head_dim) * seen_pairs(length, a->window[block]);
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
    enum { SCALES = 40, DENOMINATOR = 1 };
    return (SCALES + DENOMINATOR) * products_by_channels(model);
}

double work_refine(const struct model *model, int64_t count, int64_t length) {
    enum { BLOCK_PASSES = 4, HEAD_PASSES = 3 };
    return (1 + REFINE_EPOCHS * BLOCK_PASSES) * work_forward(model, count, length) +
           REFINE_EPOCHS * HEAD_PASSES * work_head(model, count, length);
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
