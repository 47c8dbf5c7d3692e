#include "worker/pipeline/input_group.h"

#include <string.h>

#include "worker/pipeline/upload.h"

/* The share of the mean diagonal of G that is added to it, chosen by KL on text that was not calibrated on. */
static const double rows_damp = 0.5;

static const struct st_tensor *norm_before(const struct model *model, int block, enum linear_input input) {
    if (input == INPUT_HEAD) return model->final_norm;
    if (input == INPUT_ATTENTION) return model->blocks[block].input_norm;
    return input == INPUT_MLP ? model->blocks[block].post_norm : NULL;
}

void input_group_fold(struct input_group *g, const struct model *model, int block, enum linear_input input) {
    const struct arch *a = &model->arch;
    g->foldable = input != INPUT_HEAD || !a->tied;
    g->norm = norm_before(model, block, input);
    g->ties = (struct channel_ties){0};
    if (input == INPUT_OUTPUT) g->ties = (struct channel_ties){a->head_dim, a->heads / a->kv_heads};
}

void input_group_release(struct input_group *g) {
    factor_release(g->job->backend, g->job->device, &g->gram.factor);
    factor_release(g->job->backend, g->job->device, &g->guided.factor);
    for (int i = 0; i < g->count; i++)
        factor_release(g->job->backend, g->job->device, &g->rows[i]);
}

/* The factors of the rows of all the Linears that read one input, what is worked on to make the widest, and what
 * weights leave to the rows after them. */
static int64_t two_sided_bytes(const struct model *model, int64_t weights) {
    int64_t kept[INPUT_COUNT] = {0}, most = 0, square = 0, floats = sizeof(float);
    for (int64_t i = 0; i < model->linear_count; i++) {
        const struct linear *linear = &model->linears[i];
        int64_t rows = linear->rows * linear->rows;
        if (linear->block < 0) continue;
        if (linear->block == 0 && (kept[linear->input] += rows) > most) most = kept[linear->input];
        if (rows > square) square = rows;
    }
    return floats * (most + 4 * square + weights);
}

/* A Linear's codes and their parameters, its weights as they are scaled, rounded and worked on; the scaled H in fp32,
 * its factor, and two fp64 squares to make it; once it is made, H in fp32 again to descend by. */
int64_t input_group_bytes(const struct model *model, bool two_sided) {
    int64_t widest = 0, square = 0, floats = sizeof(float);
    for (int64_t i = 0; i < model->linear_count; i++) {
        const struct linear *linear = &model->linears[i];
        if (linear->block < 0) continue; /* after the walk: hidden states are gone by then */
        if (linear->rows * linear->cols > widest) widest = linear->rows * linear->cols;
        if (linear->cols * linear->cols > square) square = linear->cols * linear->cols;
    }
    int64_t bytes = widest + widest / 2 + 3 * floats * widest + 6 * floats * square;
    return two_sided ? bytes + two_sided_bytes(model, widest) : bytes;
}

struct candidate candidate_for(const struct candidate *c, const struct linear *linear) {
    struct candidate out = *c;
    static const char *const with_q_or_k[] = {"q_proj", "k_proj", "qkv_proj"};
    bool found = false;
    for (size_t i = 0; i < sizeof with_q_or_k / sizeof *with_q_or_k; i++)
        found = found || !strcmp(linear->projection, with_q_or_k[i]);
    if (c->method == METHOD_AWQ && c->range == RANGE_OUTPUT && found) out.range = RANGE_FULL;
    return out;
}

/* What the order of columns depends on beside H. */
static int factor_group(const struct candidate *c) {
    return c->order == ORDER_GROUP_AWARE ? c->group : 0;
}

bool candidates_share_factor(const struct candidate *a, const struct candidate *b) {
    return candidate_uses_gptq(a) && candidate_uses_gptq(b) && a->guided == b->guided && a->order == b->order &&
           factor_group(a) == factor_group(b) && a->damp == b->damp;
}

static bool factor_fits(const struct factored_gram *g, const struct candidate *c) {
    return g->factor.upper && g->order == c->order && g->group == factor_group(c) && g->damp == c->damp;
}

/* Made anew only where it depends on something else than the last one. */
static enum rc ready_factor(const struct job *job, struct factored_gram *g, const struct candidate *c, struct err *e) {
    const struct backend *b = job->backend;
    int group = factor_group(c);
    if (factor_fits(g, c)) return RC_OK;
    if (!g->factor.upper) TRY(factor_alloc(b, job->device, g->h.cols, &g->factor, e));
    struct factor_args a = {
        .h = g->h, .order = c->order, .group = group, .damp = (double)c->damp / PARTS, .out = &g->factor};
    g->damp = 0; /* no candidate's: should this fail, nothing fits */
    TRY(b->factor(job->device, &a, e));
    g->order = c->order;
    g->group = group;
    g->damp = c->damp;
    return RC_OK;
}

/* Where it lies in the group's, for all candidates. */
static enum rc ready_rows(struct input_group *g, int index, struct err *e) {
    const struct backend *b = g->job->backend;
    struct factor made, *kept = &g->rows[index];
    if (kept->upper) return RC_OK;
    if (!g->g || !g->g[index].data)
        return err_set(e, RC_INTERNAL, "a two-sided candidate, and no gradients at the outputs");
    TRY(factor_alloc(b, g->job->device, g->g[index].cols, &made, e));
    struct factor_args a = {.h = g->g[index], .order = ORDER_ACTIVATION, .damp = rows_damp, .out = &made};
    enum rc rc = b->factor(g->job->device, &a, e);
    if (rc == RC_OK)
        *kept = made;
    else
        factor_release(b, g->job->device, &made);
    return rc == RC_OK ? RC_OK : err_context(e, "the gradients at its output");
}

struct factored_gram *group_gram(struct input_group *g, struct awq_scale *scale, const struct candidate *c) {
    if (scale && scale->by_col) return c->guided ? &scale->guided : &scale->gram;
    return c->guided ? &g->guided : &g->gram;
}

static bool is_scaled(const struct group_quantize_args *a) {
    return a->scale && a->scale->by_col;
}

static enum rc quantize(const struct group_quantize_args *a, struct mat w, struct err *e) {
    const struct job *job = a->group->job;
    const struct candidate *c = a->candidate;
    struct factored_gram *gram = group_gram(a->group, a->scale, c);
    struct quantize_report unread;
    struct quantize_args q = {.w = w, .candidate = *c, .out = a->out, .report = &unread};
    if (candidate_needs_gram(c)) q.h = gram->h;
    if (candidate_uses_gptq(c)) {
        TRY(ready_factor(job, gram, c, e));
        q.factor = &gram->factor;
    }
    if (c->two_sided) {
        TRY(ready_rows(a->group, a->index, e));
        q.rows = &a->group->rows[a->index];
    }
    return job->backend->quantize(job->device, &q, 1, e);
}

enum rc group_quantize(const struct group_quantize_args *a, struct err *e) {
    const struct job *job = a->group->job;
    struct mat w = a->group->w[a->index];
    if (job_cancelled(job)) return err_set(e, RC_CANCELLED, "cancelled");
    if (!is_scaled(a)) return quantize(a, w, e);
    float *scaled = NULL;
    TRY(device_floats(job, w.rows * w.cols, &scaled, e));
    struct scale_args s = {.m = w, .by_col = a->scale->by_col, .out = matf(scaled, w.rows, w.cols)};
    enum rc rc = job->backend->scale(job->device, &s, e);
    if (rc == RC_OK) rc = quantize(a, s.out, e);
    job->backend->free(job->device, scaled);
    return rc;
}

enum rc group_quantize_effective(const struct group_quantize_args *a, struct mat out, struct err *e) {
    const struct job *job = a->group->job;
    struct group_quantize_args own = *a;
    struct quantized q;
    TRY(quantized_alloc(job->backend, job->device, out.rows, out.cols, a->candidate, &q, e));
    own.out = &q;
    struct dequantize_args back = {.q = &q, .by_col = is_scaled(a) ? a->scale->inverse : NULL, .out = out};
    enum rc rc = group_quantize(&own, e);
    if (rc == RC_OK) rc = job->backend->dequantize(job->device, &back, e);
    quantized_release(job->backend, job->device, &q);
    return rc;
}

enum rc group_effective_weights(struct input_group *g, int index, const struct candidate *c, struct mat out,
                                struct err *e) {
    const struct candidate *all[BLOCK_LINEARS_MAX];
    struct awq_scale scale = {0};
    for (int i = 0; i < g->count; i++)
        all[i] = c;
    if (candidate_uses_awq(c)) TRY(awq_search(g, all, &scale, e));
    struct group_quantize_args a = {.group = g, .index = index, .candidate = c, .scale = &scale};
    enum rc rc = group_quantize_effective(&a, out, e);
    awq_scale_release(g->job, &scale);
    return rc;
}
