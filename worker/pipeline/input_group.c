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

/* Codes and their parameters. */
static int64_t codes_bytes(int64_t weights) {
    return weights + weights / 2;
}

/* Weights as they are scaled and worked on; or, two-sided, what each leaves to columns and to rows. */
static int64_t rounding_bytes(int64_t weights) {
    return 2 * (int64_t)sizeof(float) * weights;
}

/* What is quantized in one call, each candidate's weights counted. */
static int64_t in_work_bytes(int64_t weights) {
    return codes_bytes(weights) + rounding_bytes(weights);
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Of one call's candidates: what keeps a small model's device busy has its memory reserved, or else what the widest
 * Linear takes; what keeps a large one's busy goes together where there is room left. */
enum { WEIGHTS_RESERVED = 32 << 20, WEIGHTS_TOGETHER = 256 << 20 };

/* Of the Linears that read one input of a block. */
struct input_sizes {
    int block;
    int64_t columns;              /* K² */
    int64_t all_rows, widest_row; /* N² of all of them, and the most */
    int64_t widest;               /* N·K, the most */
};

static int64_t most_of(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static void add_linear(struct input_sizes *s, int64_t rows, int64_t cols) {
    s->columns = most_of(s->columns, cols * cols);
    s->all_rows += rows * rows;
    s->widest_row = most_of(s->widest_row, rows * rows);
    s->widest = most_of(s->widest, rows * cols);
}

/* What is there until the input is done: codes, a Linear's weights as they were rounded, H in fp32, scaled or to
 * descend by, and its factor; on the other side the factors of the rows of all. */
static int64_t held_bytes(const struct input_sizes *s, int64_t in_work, bool two_sided) {
    int64_t held = s->widest + 2 * s->columns + (two_sided ? s->all_rows : 0);
    return codes_bytes(in_work) + (int64_t)sizeof(float) * held;
}

/* What comes and goes beside it, one after the other: two fp64 squares to make a factor of either side, and what is
 * rounded. */
static int64_t passing_bytes(const struct input_sizes *s, int64_t in_work, bool two_sided) {
    int64_t square = two_sided ? most_of(s->columns, s->widest_row) : s->columns;
    return most_of(2 * (int64_t)sizeof(double) * square, rounding_bytes(in_work));
}

static int64_t sizes_bytes(const struct input_sizes *s, int two_sided) {
    int64_t together = two_sided > 1 ? least(two_sided, GROUP_TOGETHER_MAX) : 1;
    int64_t in_work = least(together * s->widest, most_of(s->widest, WEIGHTS_RESERVED));
    return held_bytes(s, in_work, two_sided > 0) + passing_bytes(s, in_work, two_sided > 0);
}

/* Of any one input: its columns and its rows, not the worst of both sides, which are hardly of the same one. But for
 * lm_head: after the walk hidden states are gone. */
int64_t input_group_bytes(const struct model *model, int two_sided) {
    struct input_sizes inputs[INPUT_COUNT] = {{0}};
    int64_t most = 0;
    for (int64_t i = 0; i < model->linear_count; i++) {
        const struct linear *linear = &model->linears[i];
        struct input_sizes *s = &inputs[linear->input];
        if (linear->block < 0) continue;
        if (s->block != linear->block) *s = (struct input_sizes){.block = linear->block};
        add_linear(s, linear->rows, linear->cols);
        most = most_of(most, sizes_bytes(s, two_sided));
    }
    return most;
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

/* What the candidate goes by, made where it is not there. */
static enum rc ready(const struct group_quantize_args *a, struct quantize_args *q, struct err *e) {
    const struct candidate *c = a->candidate;
    struct factored_gram *gram = group_gram(a->group, a->scale, c);
    if (candidate_needs_gram(c)) q->h = gram->h;
    if (candidate_uses_gptq(c)) {
        TRY(ready_factor(a->group->job, gram, c, e));
        q->factor = &gram->factor;
    }
    if (c->two_sided) {
        TRY(ready_rows(a->group, a->index, e));
        q->rows = &a->group->rows[a->index];
    }
    return RC_OK;
}

enum rc input_group_together(struct input_group *g, int index, const struct candidate *c, int *count, struct err *e) {
    struct group_quantize_args a = {.group = g, .index = index, .candidate = c};
    struct quantize_args unread;
    int64_t weights = g->w[index].rows * g->w[index].cols;
    TRY(ready(&a, &unread, e));
    int64_t room = g->job->backend->room(g->job->device) / in_work_bytes(weights);
    int64_t most = least(least(WEIGHTS_TOGETHER / weights, GROUP_TOGETHER_MAX), room);
    *count = most > 1 ? (int)most : 1;
    return RC_OK;
}

static enum rc quantize(const struct group_quantize_args *a, int count, struct mat w, struct err *e) {
    const struct job *job = a->group->job;
    struct quantize_args q[GROUP_TOGETHER_MAX];
    struct quantize_report unread[GROUP_TOGETHER_MAX];
    for (int i = 0; i < count; i++) {
        q[i] = (struct quantize_args){.w = w, .candidate = *a[i].candidate, .out = a[i].out, .report = &unread[i]};
        TRY(ready(&a[i], &q[i], e));
    }
    return job->backend->quantize(job->device, q, count, e);
}

/* The last factor is the only one; and weights are scaled for one candidate. */
static bool go_together(const struct group_quantize_args *a, int count) {
    for (int i = 1; i < count; i++)
        if (a[i].group != a->group || a[i].index != a->index || is_scaled(&a[i]) || is_scaled(a) ||
            !candidates_share_factor(a->candidate, a[i].candidate))
            return false;
    return count <= GROUP_TOGETHER_MAX;
}

enum rc group_quantize(const struct group_quantize_args *a, int count, struct err *e) {
    const struct job *job = a->group->job;
    struct mat w = a->group->w[a->index];
    if (job_cancelled(job)) return err_set(e, RC_CANCELLED, "cancelled");
    if (!go_together(a, count)) return err_set(e, RC_INTERNAL, "candidates that are not to be quantized together");
    if (!is_scaled(a)) return quantize(a, count, w, e);
    float *scaled = NULL;
    TRY(device_floats(job, w.rows * w.cols, &scaled, e));
    struct scale_args s = {.m = w, .by_col = a->scale->by_col, .out = matf(scaled, w.rows, w.cols)};
    enum rc rc = job->backend->scale(job->device, &s, e);
    if (rc == RC_OK) rc = quantize(a, 1, s.out, e);
    job->backend->free(job->device, scaled);
    return rc;
}

enum rc group_dequantize(const struct group_quantize_args *a, struct mat out, struct err *e) {
    struct dequantize_args back = {.q = a->out, .by_col = is_scaled(a) ? a->scale->inverse : NULL, .out = out};
    return a->group->job->backend->dequantize(a->group->job->device, &back, e);
}

enum rc group_quantize_effective(const struct group_quantize_args *a, struct mat out, struct err *e) {
    const struct job *job = a->group->job;
    struct group_quantize_args own = *a;
    struct quantized q;
    TRY(quantized_alloc(job->backend, job->device, out.rows, out.cols, a->candidate, &q, e));
    own.out = &q;
    enum rc rc = group_quantize(&own, 1, e);
    if (rc == RC_OK) rc = group_dequantize(&own, out, e);
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
