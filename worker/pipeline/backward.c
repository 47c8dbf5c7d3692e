#include "worker/pipeline/backward.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/carve.h"

static struct mat view(struct mat whole, int64_t col, int64_t cols) {
    char *data = whole.data ? (char *)whole.data + (size_t)col * dtype_size(whole.type) : NULL;
    return (struct mat){data, whole.rows, cols, whole.stride, whole.type};
}

static struct mat place(struct carve *c, int64_t rows, int64_t cols, enum dtype type) {
    return (struct mat){carve(c, (size_t)(rows * cols) * dtype_size(type)), rows, cols, cols, type};
}

/* Laid out as q, k and v are: in one matrix, or one after the other for the norms of heads. */
static void place_qkv(struct backward *b, struct carve *c) {
    const struct forward *f = b->f;
    int64_t rows = f->q.rows, wide = f->q.cols, narrow = f->k.cols;
    enum dtype type = f->q.type;
    b->dqkv = f->qkv.data ? place(c, rows, wide + 2 * narrow, type) : (struct mat){0};
    b->dq = f->qkv.data ? view(b->dqkv, 0, wide) : place(c, rows, wide, type);
    b->dk = f->qkv.data ? view(b->dqkv, wide, narrow) : place(c, rows, narrow, type);
    b->dv = f->qkv.data ? view(b->dqkv, wide + narrow, narrow) : place(c, rows, narrow, type);
}

static int64_t angles(const struct forward *f) {
    return f->length * (f->walk->model->arch.rotary / 2);
}

/* Returns the number of bytes. Called twice: to measure, then to place. */
static size_t lay_out(struct backward *b, void *base) {
    const struct forward *f = b->f;
    struct carve c = {.base = base};
    bool multiplied = f->walk->model->arch.residual_multiplier != 1;
    b->g = place(&c, f->normed.rows, f->normed.cols, f->normed.type);
    b->dmixed = place(&c, f->mixed.rows, f->mixed.cols, f->mixed.type);
    b->dnormed = place(&c, f->normed.rows, f->normed.cols, DTYPE_F32);
    b->minus_sin = carve(&c, (size_t)angles(f) * sizeof(float));
    b->multiplier = multiplied ? carve(&c, (size_t)f->normed.cols * sizeof(float)) : NULL;
    b->dact = f->act;
    b->dgate_up = f->gate_up;
    place_qkv(b, &c);
    return c.used;
}

static enum rc upload_minus_sin(struct backward *b, struct err *e) {
    const struct job *job = b->f->walk->job;
    int64_t count = angles(b->f);
    float *tables = xcalloc(2 * (size_t)count, sizeof *tables);
    arch_rope_tables(&b->f->walk->model->arch, b->f->length, tables, tables + count);
    for (int64_t i = 0; i < count; i++)
        tables[count + i] = -tables[count + i];
    enum rc rc = job->backend->upload(job->device, tables + count, DTYPE_F32, count, b->minus_sin, e);
    free(tables);
    return rc;
}

static enum rc upload_multiplier(struct backward *b, struct err *e) {
    const struct job *job = b->f->walk->job;
    int64_t count = b->f->normed.cols;
    if (!b->multiplier) return RC_OK;
    float *values = xcalloc((size_t)count, sizeof *values);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)b->f->walk->model->arch.residual_multiplier;
    enum rc rc = job->backend->upload(job->device, values, DTYPE_F32, count, b->multiplier, e);
    free(values);
    return rc;
}

size_t backward_bytes(struct forward *f) {
    struct backward unplaced = {.f = f};
    return lay_out(&unplaced, NULL);
}

enum rc backward_open(struct backward *b, struct forward *f, struct err *e) {
    const struct job *job = f->walk->job;
    *b = (struct backward){.f = f};
    TRY(job->backend->alloc(job->device, lay_out(b, NULL), &b->memory, e));
    lay_out(b, b->memory);
    TRY(upload_minus_sin(b, e));
    return upload_multiplier(b, e);
}

void backward_release(struct backward *b) {
    if (b->memory) b->f->walk->job->backend->free(b->f->walk->job->device, b->memory);
    b->memory = NULL;
}

/* What the steps of one block share. */
struct pass {
    const struct backward *b;
    struct forward *f;
    const struct backward_args *a;
    const struct job *job;
    const struct arch *arch;
};

static enum rc copy(const struct pass *s, struct mat from, const float *by_col, struct mat to, struct err *e) {
    struct scale_args a = {.m = from, .by_col = by_col, .out = to};
    return s->job->backend->scale(s->job->device, &a, e);
}

static enum rc hand_over(const struct pass *s, enum linear_input input, int i, struct mat x, struct mat g,
                         struct err *e) {
    const struct block_params *p = s->a->params;
    int position = p->at[input] + i;
    struct linear_gradient at = {.site = s->a->site,
                                 .input = input,
                                 .position = position,
                                 .first = i == 0,
                                 .last = i == p->n[input] - 1,
                                 .x = x,
                                 .g = g,
                                 .w = s->a->weights->linear[position]};
    return s->a->linear ? s->a->linear(s->a->ctx, &at, e) : RC_OK;
}

/* The gradient by x of the Linears that read it. Where there are several, `g` has one for each. */
static enum rc linears_back(const struct pass *s, enum linear_input input, const struct mat *g, struct mat dx,
                            struct err *e) {
    const struct block_params *p = s->a->params;
    if (job_cancelled(s->job)) return err_set(e, RC_CANCELLED, "cancelled");
    for (int i = 0; i < p->n[input]; i++) {
        struct gemm_back_args a = {
            .dy = g[i], .w = s->a->weights->linear[p->at[input] + i], .alpha = 1, .beta = i > 0, .dx = dx};
        TRY(s->job->backend->gemm_back(s->job->device, &a, e));
    }
    return RC_OK;
}

static enum rc hand_over_all(const struct pass *s, enum linear_input input, struct mat x, const struct mat *g,
                             struct err *e) {
    for (int i = 0; i < s->a->params->n[input]; i++)
        TRY(hand_over(s, input, i, x, g[i], e));
    return RC_OK;
}

/* The gradient at the output of o or down, which goes into the residual stream. */
static enum rc residual_back(const struct pass *s, enum linear_input input, struct mat x, struct err *e) {
    TRY(copy(s, s->a->dx, s->b->multiplier, s->b->g, e));
    return hand_over(s, input, 0, x, s->b->g, e);
}

/* Into the residual stream's gradient. */
static enum rc norm_back(const struct pass *s, struct mat x, const float *weight, struct err *e) {
    struct rmsnorm_back_args a = {
        .x = x, .weight = weight, .eps = (float)s->arch->norm_eps, .dy = s->b->dnormed, .dx = s->a->dx, .add = true};
    return s->job->backend->rmsnorm_back(s->job->device, &a, e);
}

static enum rc mlp_back(const struct pass *s, struct err *e) {
    struct forward *f = s->f;
    const struct mat parts[] = {f->gate, f->up};
    const struct mat *g = s->a->params->n[INPUT_MLP] == 1 ? &s->b->dgate_up : parts;
    TRY(residual_back(s, INPUT_DOWN, f->act, e));
    TRY(linears_back(s, INPUT_DOWN, &s->b->g, s->b->dact, e));
    struct silu_mul_back_args silu = {.gate = f->gate, .up = f->up, .dy = s->b->dact, .dgate = f->gate, .dup = f->up};
    TRY(s->job->backend->silu_mul_back(s->job->device, &silu, e));
    TRY(hand_over_all(s, INPUT_MLP, f->normed, g, e));
    TRY(linears_back(s, INPUT_MLP, g, s->b->dnormed, e));
    return norm_back(s, s->a->middle, s->a->weights->post_norm, e);
}

static enum rc rotate_back(const struct pass *s, struct mat x, int heads, struct err *e) {
    struct rope_args a = {.x = x,
                          .length = s->f->length,
                          .heads = heads,
                          .head_dim = s->arch->head_dim,
                          .rotary = s->arch->rotary,
                          .cos = s->f->cos,
                          .sin = s->b->minus_sin};
    return s->job->backend->rope(s->job->device, &a, e);
}

static enum rc heads_back(const struct pass *s, struct mat raw, const float *weight, struct mat g, struct err *e) {
    if (!weight) return RC_OK;
    int64_t d = s->arch->head_dim, rows = g.rows * g.cols / d;
    struct mat heads = {g.data, rows, d, d, g.type}; /* [T·heads, d] */
    struct rmsnorm_back_args a = {.x = {raw.data, rows, d, d, raw.type},
                                  .weight = weight,
                                  .eps = (float)s->arch->norm_eps,
                                  .dy = heads,
                                  .dx = heads};
    return s->job->backend->rmsnorm_back(s->job->device, &a, e);
}

/* From attention's output to what q, k and v computed. */
static enum rc mixing_back(const struct pass *s, struct err *e) {
    const struct backward *b = s->b;
    struct attention_back_args a = {.forward = forward_attention(s->f, s->a->site->block),
                                    .dout = b->dmixed,
                                    .dq = b->dq,
                                    .dk = b->dk,
                                    .dv = b->dv};
    TRY(s->job->backend->attention_back(s->job->device, &a, e));
    TRY(rotate_back(s, b->dq, s->arch->heads, e));
    TRY(rotate_back(s, b->dk, s->arch->kv_heads, e));
    TRY(heads_back(s, s->f->q_raw, s->a->params->q_norm, b->dq, e));
    return heads_back(s, s->f->k_raw, s->a->params->k_norm, b->dk, e);
}

static enum rc attention_back(const struct pass *s, struct err *e) {
    struct forward *f = s->f;
    const struct mat parts[] = {s->b->dq, s->b->dk, s->b->dv};
    const struct mat *g = s->a->params->n[INPUT_ATTENTION] == 1 ? &s->b->dqkv : parts;
    TRY(residual_back(s, INPUT_OUTPUT, f->mixed, e));
    TRY(linears_back(s, INPUT_OUTPUT, &s->b->g, s->b->dmixed, e));
    TRY(mixing_back(s, e));
    struct rmsnorm_args again = {
        .x = s->a->x, .weight = s->a->weights->input_norm, .eps = (float)s->arch->norm_eps, .out = f->normed};
    TRY(s->job->backend->rmsnorm(s->job->device, &again, e)); /* the MLP's had its place */
    TRY(hand_over_all(s, INPUT_ATTENTION, f->normed, g, e));
    TRY(linears_back(s, INPUT_ATTENTION, g, s->b->dnormed, e));
    return norm_back(s, s->a->x, s->a->weights->input_norm, e);
}

/* As far as the input of down. */
static enum rc compute_anew(const struct pass *s, struct err *e) {
    struct forward_args a = {.x = s->a->middle, .params = s->a->params, .weights = s->a->weights, .site = s->a->site};
    TRY(copy(s, s->a->x, NULL, s->a->middle, e));
    TRY(forward_stage(s->f, &a, INPUT_MLP, e));
    return forward_stage(s->f, &a, INPUT_DOWN, e);
}

enum rc backward_block(struct backward *b, const struct backward_args *a, struct err *e) {
    const struct pass s = {.b = b, .f = b->f, .a = a, .job = b->f->walk->job, .arch = &b->f->walk->model->arch};
    TRY(compute_anew(&s, e));
    TRY(mlp_back(&s, e));
    return attention_back(&s, e);
}
