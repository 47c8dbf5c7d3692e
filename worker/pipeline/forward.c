#include "worker/pipeline/forward.h"

#include <stdlib.h>
#include <string.h>

#include "worker/pipeline/upload.h"

/* Hands out consecutive pieces of one allocation, each on a 64-byte boundary. With base NULL it only measures. */
struct carve {
    float *base;
    int64_t used;
};

static float *carve(struct carve *c, int64_t floats) {
    float *piece = c->base ? c->base + c->used : NULL;
    c->used += (floats + 15) / 16 * 16;
    return piece;
}

static struct matf view(float *data, int64_t rows, int64_t cols, int64_t stride) {
    return (struct matf){data, rows, cols, stride};
}

static void lay_out_qkv(struct forward *f, const struct arch *a, float *qkv) {
    int64_t T = f->length, wide = (int64_t)a->heads * a->head_dim, narrow = (int64_t)a->kv_heads * a->head_dim;
    f->qkv = matf(qkv, T, wide + 2 * narrow);
    if (a->fused_qkv) {
        f->q = view(qkv, T, wide, f->qkv.cols);
        f->k = view(qkv + wide, T, narrow, f->qkv.cols);
        f->v = view(qkv + wide + narrow, T, narrow, f->qkv.cols);
    } else { /* contiguous each, so that the per-head norm can see T·heads rows */
        f->q = matf(qkv, T, wide);
        f->k = matf(qkv + T * wide, T, narrow);
        f->v = matf(qkv + T * (wide + narrow), T, narrow);
    }
}

static void lay_out_gate_up(struct forward *f, const struct arch *a, float *gate_up) {
    int64_t T = f->length, I = a->intermediate;
    f->gate_up = matf(gate_up, T, 2 * I);
    if (a->fused_gate_up) {
        f->gate = view(gate_up, T, I, 2 * I);
        f->up = view(gate_up + I, T, I, 2 * I);
    } else {
        f->gate = matf(gate_up, T, I);
        f->up = matf(gate_up + T * I, T, I);
    }
}

/* Returns the number of floats. Called twice: to measure, then to place. */
static int64_t lay_out(struct forward *f, const struct arch *a, float *base) {
    struct carve c = {base, 0};
    int64_t T = f->length, D = a->hidden, I = a->intermediate, wide = (int64_t)a->heads * a->head_dim,
            narrow = (int64_t)a->kv_heads * a->head_dim, half = a->rotary / 2;
    f->x = matf(carve(&c, T * D), T, D);
    f->normed = matf(carve(&c, T * D), T, D);
    f->mixed = matf(carve(&c, T * wide), T, wide);
    f->act = matf(carve(&c, T * I), T, I);
    f->cos = carve(&c, T * half);
    f->sin = carve(&c, T * half);
    float *qkv = carve(&c, T * (wide + 2 * narrow)), *gate_up = carve(&c, T * 2 * I);
    if (base) {
        lay_out_qkv(f, a, qkv);
        lay_out_gate_up(f, a, gate_up);
    }
    return c.used;
}

static enum rc upload_rope(struct forward *f, const struct arch *a, struct err *e) {
    const struct job *job = f->walk->job;
    int64_t count = f->length * (a->rotary / 2);
    float *tables = malloc(2 * (size_t)count * sizeof *tables);
    if (!tables) return err_set(e, RC_NO_MEMORY, "no memory for rope tables of %lld tokens", (long long)f->length);
    arch_rope_tables(a, f->length, tables, tables + count);
    enum rc rc = job->backend->upload(job->device, tables, DTYPE_F32, count, f->cos, e);
    if (rc == RC_OK) rc = job->backend->upload(job->device, tables + count, DTYPE_F32, count, f->sin, e);
    free(tables);
    return rc;
}

enum rc forward_open(struct forward *f, const struct walk *walk, struct err *e) {
    const struct arch *a = &walk->model->arch;
    *f = (struct forward){.walk = walk, .length = walk->windows->length};
    if (a->qk_norm && a->fused_qkv)
        return err_set(e, RC_UNSUPPORTED, "a q/k norm behind a fused qkv_proj is not implemented");
    TRY(device_floats(walk->job, lay_out(f, a, NULL), &f->memory, e));
    lay_out(f, a, f->memory);
    return upload_rope(f, a, e);
}

void forward_release(struct forward *f) {
    const struct job *job = f->walk->job;
    if (f->memory) job->backend->free(job->device, f->memory);
    f->memory = NULL;
}

enum rc block_params_load(struct block_params *p, const struct walk *walk, int block, struct err *e) {
    const struct model *model = walk->model;
    const struct block_tensors *tensors = &model->blocks[block];
    const struct job *job = walk->job;
    *p = (struct block_params){0};
    TRY(upload_new(job, tensors->input_norm, &p->input_norm, e));
    TRY(upload_new(job, tensors->post_norm, &p->post_norm, e));
    TRY(upload_new(job, tensors->q_norm, &p->q_norm, e));
    TRY(upload_new(job, tensors->k_norm, &p->k_norm, e));
    for (; p->count < BLOCK_LINEARS && tensors->linears[p->count] >= 0; p->count++) {
        const struct linear *linear = &model->linears[tensors->linears[p->count]];
        if (p->n[linear->input]++ == 0) p->at[linear->input] = p->count;
        TRY(upload_new(job, linear->bias, &p->bias[p->count], e));
    }
    return RC_OK;
}

void block_params_release(struct block_params *p, const struct job *job) {
    float *all[] = {p->input_norm, p->post_norm, p->q_norm, p->k_norm};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) job->backend->free(job->device, all[i]);
    for (int i = 0; i < BLOCK_LINEARS; i++)
        if (p->bias[i]) job->backend->free(job->device, p->bias[i]);
    *p = (struct block_params){0};
}

/* What the steps of one block share. */
struct pass {
    struct forward *f;
    const struct block_params *p;
    const struct block_weights *w;
    const struct site *site;
    const struct job *job;
    const struct arch *arch;
};

static enum rc norm(const struct pass *s, struct matf x, const float *weight, struct matf out, struct err *e) {
    struct rmsnorm_args a = {.x = x, .weight = weight, .eps = (float)s->arch->norm_eps, .out = out};
    return s->job->backend->rmsnorm(s->job->device, &a, e);
}

static enum rc hook_input(const struct pass *s, enum linear_input input, struct matf x, struct err *e) {
    const struct walk_hooks *hooks = s->f->walk->hooks;
    if (!hooks->input) return RC_OK;
    return hooks->input(hooks->ctx, s->site->stream, s->site->block, s->site->window, input, x, e);
}

/* out = alpha · (x · Wᵀ + bias) + beta · out. Also where a cancel is seen: one product is the longest step. */
static enum rc project(const struct pass *s, int position, struct matf x, struct matf out, float alpha, float beta,
                       struct err *e) {
    if (job_cancelled(s->job)) return err_set(e, RC_CANCELLED, "cancelled");
    struct gemm_args a = {
        .x = x, .w = s->w->linear[position], .bias = s->p->bias[position], .alpha = alpha, .beta = beta, .out = out};
    return s->job->backend->gemm(s->job->device, &a, e);
}

/* The Linears that read `input`, into their places: one fused product, or one each. */
static enum rc project_group(const struct pass *s, enum linear_input input, struct matf x, struct matf fused,
                             const struct matf *parts, struct err *e) {
    int at = s->p->at[input];
    if (s->p->n[input] == 1) return project(s, at, x, fused, 1, 0, e);
    for (int i = 0; i < s->p->n[input]; i++)
        TRY(project(s, at + i, x, parts[i], 1, 0, e));
    return RC_OK;
}

static enum rc add_to_residual(const struct pass *s, enum linear_input input, struct matf x, struct err *e) {
    return project(s, s->p->at[input], x, s->f->x, (float)s->arch->residual_multiplier, 1, e);
}

static enum rc norm_heads(const struct pass *s, struct matf x, const float *weight, struct err *e) {
    if (!weight) return RC_OK;
    struct matf heads = matf(x.data, x.rows * x.cols / s->arch->head_dim, s->arch->head_dim); /* [T·heads, d] */
    return norm(s, heads, weight, heads, e);
}

static enum rc rotate(const struct pass *s, struct matf x, int heads, struct err *e) {
    struct rope_args a = {.x = x,
                          .heads = heads,
                          .head_dim = s->arch->head_dim,
                          .rotary = s->arch->rotary,
                          .cos = s->f->cos,
                          .sin = s->f->sin};
    return s->job->backend->rope(s->job->device, &a, e);
}

static enum rc attend(const struct pass *s, struct err *e) {
    const struct arch *arch = s->arch;
    struct attention_args a = {.q = s->f->q,
                               .k = s->f->k,
                               .v = s->f->v,
                               .heads = arch->heads,
                               .kv_heads = arch->kv_heads,
                               .head_dim = arch->head_dim,
                               .window = arch->window[s->site->block],
                               .scale = (float)arch->attention_scale,
                               .out = s->f->mixed};
    return s->job->backend->attention(s->job->device, &a, e);
}

static enum rc attention_half(const struct pass *s, struct err *e) {
    struct forward *f = s->f;
    TRY(norm(s, f->x, s->p->input_norm, f->normed, e));
    TRY(hook_input(s, INPUT_ATTENTION, f->normed, e));
    TRY(project_group(s, INPUT_ATTENTION, f->normed, f->qkv, (struct matf[]){f->q, f->k, f->v}, e));
    TRY(norm_heads(s, f->q, s->p->q_norm, e));
    TRY(norm_heads(s, f->k, s->p->k_norm, e));
    TRY(rotate(s, f->q, s->arch->heads, e));
    TRY(rotate(s, f->k, s->arch->kv_heads, e));
    TRY(attend(s, e));
    TRY(hook_input(s, INPUT_OUTPUT, f->mixed, e));
    return add_to_residual(s, INPUT_OUTPUT, f->mixed, e);
}

static enum rc mlp_half(const struct pass *s, struct err *e) {
    struct forward *f = s->f;
    TRY(norm(s, f->x, s->p->post_norm, f->normed, e));
    TRY(hook_input(s, INPUT_MLP, f->normed, e));
    TRY(project_group(s, INPUT_MLP, f->normed, f->gate_up, (struct matf[]){f->gate, f->up}, e));
    struct silu_mul_args a = {.gate = f->gate, .up = f->up, .out = f->act};
    TRY(s->job->backend->silu_mul(s->job->device, &a, e));
    TRY(hook_input(s, INPUT_DOWN, f->act, e));
    return add_to_residual(s, INPUT_DOWN, f->act, e);
}

enum rc forward_block(struct forward *f, const struct block_params *p, const struct block_weights *w,
                      const struct site *site, struct err *e) {
    struct pass s = {.f = f, .p = p, .w = w, .site = site, .job = f->walk->job, .arch = &f->walk->model->arch};
    TRY(attention_half(&s, e));
    return mlp_half(&s, e);
}
