#include "worker/pipeline/forward.h"

#include <stdlib.h>
#include <string.h>

#include "worker/pipeline/carve.h"

static struct mat view(struct mat whole, int64_t col, int64_t cols) {
    char *data = whole.data ? (char *)whole.data + (size_t)col * dtype_size(whole.type) : NULL;
    return (struct mat){data, whole.rows, cols, whole.stride, whole.type};
}

/* A matrix of its own in activation type. With base NULL it only measures. */
static struct mat place(const struct forward *f, struct carve *c, int64_t cols) {
    int64_t rows = f->windows * f->length;
    enum dtype type = f->walk->job->backend->activation;
    return (struct mat){carve(c, (size_t)(rows * cols) * dtype_size(type)), rows, cols, cols, type};
}

/* Parts are views of one matrix, as one product writes them; or (`dense`) one after the other, so that the per-head
 * norm can see T·heads rows, and the whole is {0}. */
static struct mat place_parts(const struct forward *f, struct carve *c, bool dense, struct mat *parts[],
                              const int64_t *widths, int count) {
    int64_t total = 0, col = 0;
    for (int i = 0; i < count; i++)
        total += widths[i];
    struct mat whole = dense ? (struct mat){0} : place(f, c, total);
    for (int i = 0; i < count; col += widths[i++])
        *parts[i] = dense ? place(f, c, widths[i]) : view(whole, col, widths[i]);
    return whole;
}

/* Returns the number of bytes. Called twice: to measure, then to place. */
static size_t lay_out(struct forward *f, const struct arch *a, bool keep, void *base) {
    struct carve c = {.base = base};
    int64_t wide = (int64_t)a->heads * a->head_dim, narrow = (int64_t)a->kv_heads * a->head_dim;
    size_t table = (size_t)(f->length * (a->rotary / 2)) * sizeof(float);
    f->normed = place(f, &c, a->hidden);
    f->mixed = place(f, &c, wide);
    f->act = place(f, &c, a->intermediate);
    f->cos = carve(&c, table);
    f->sin = carve(&c, table);
    f->qkv = place_parts(f, &c, a->qk_norm, (struct mat *[]){&f->q, &f->k, &f->v},
                         (const int64_t[]){wide, narrow, narrow}, 3);
    f->q_raw = keep && a->qk_norm ? place(f, &c, wide) : f->q;
    f->k_raw = keep && a->qk_norm ? place(f, &c, narrow) : f->k;
    f->gate_up = place_parts(f, &c, false, (struct mat *[]){&f->gate, &f->up},
                             (const int64_t[]){a->intermediate, a->intermediate}, 2);
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

size_t forward_measure(struct forward *f, const struct walk *walk, int64_t windows, bool keep) {
    *f = (struct forward){.walk = walk, .length = walk->windows->length, .windows = windows};
    return lay_out(f, &walk->model->arch, keep, NULL);
}

enum rc forward_open(struct forward *f, const struct walk *walk, int64_t windows, bool keep, struct err *e) {
    const struct arch *a = &walk->model->arch;
    const struct job *job = walk->job;
    size_t bytes = forward_measure(f, walk, windows, keep);
    if (a->qk_norm && a->fused_qkv)
        return err_set(e, RC_UNSUPPORTED, "a q/k norm behind a fused qkv_proj is not implemented");
    TRY(job->backend->alloc(job->device, bytes, &f->memory, e));
    lay_out(f, a, keep, f->memory);
    return upload_rope(f, a, e);
}

void forward_release(struct forward *f) {
    const struct job *job = f->walk->job;
    if (f->memory) job->backend->free(job->device, f->memory);
    f->memory = NULL;
}

/* What the steps of one block share. */
struct pass {
    struct forward *f;
    const struct forward_args *a;
    const struct block_params *p;
    const struct block_weights *w;
    const struct site *site;
    const struct job *job;
    const struct arch *arch;
    struct mat mixed, act; /* [T, heads·d], [T, I]: the forward's, or where they are kept */
};

static enum rc norm(const struct pass *s, struct mat x, const float *weight, struct mat out, struct err *e) {
    struct rmsnorm_args a = {.x = x, .weight = weight, .eps = (float)s->arch->norm_eps, .out = out};
    return s->job->backend->rmsnorm(s->job->device, &a, e);
}

static enum rc hook_input(const struct pass *s, enum linear_input input, struct mat x, struct err *e) {
    const struct walk_hooks *hooks = s->f->walk->hooks;
    if (!hooks->input) return RC_OK;
    x.rows = s->site->windows * s->f->length; /* without the padding of a last chunk */
    return hooks->input(hooks->ctx, s->site, input, x, e);
}

/* out = alpha · (x · Wᵀ + bias) + beta · out. Also where a cancel is seen: one product is the longest step. */
static enum rc project(const struct pass *s, const struct gemm_args *a, struct err *e) {
    if (job_cancelled(s->job)) return err_set(e, RC_CANCELLED, "cancelled");
    return s->job->backend->gemm(s->job->device, a, e);
}

/* The weights of n positions as one matrix; {0} where they do not lie one after the other. */
static struct mat joined_weights(const struct pass *s, int at, int n) {
    const struct mat *w = &s->w->linear[at];
    struct mat whole = w[0];
    for (int i = 1; i < n; i++) {
        const char *end = (const char *)whole.data + (size_t)(whole.rows * whole.stride) * dtype_size(whole.type);
        bool follows = w[i].data == end && w[i].cols == whole.cols && w[i].stride == whole.stride &&
                       w[i].type == whole.type && !s->w->bias[at] && !s->w->bias[at + i];
        if (!follows) return (struct mat){0};
        whole.rows += w[i].rows;
    }
    return whole;
}

/* The Linears that read `input`, into their places: in one product where they are stored or lie side by side, else in
 * one each. */
static enum rc project_group(const struct pass *s, enum linear_input input, struct mat x, struct mat whole,
                             const struct mat *parts, struct err *e) {
    int at = s->p->at[input], n = s->p->n[input];
    struct gemm_args a = {.x = x, .w = joined_weights(s, at, n), .bias = s->w->bias[at], .alpha = 1, .out = whole};
    if (whole.data && a.w.data) return project(s, &a, e);
    for (int i = 0; i < n; i++) {
        a.w = s->w->linear[at + i];
        a.bias = s->w->bias[at + i];
        a.out = parts[i];
        TRY(project(s, &a, e));
    }
    return RC_OK;
}

static enum rc add_to_residual(const struct pass *s, enum linear_input input, struct mat x, struct err *e) {
    int at = s->p->at[input];
    struct gemm_args a = {.x = x,
                          .w = s->w->linear[at],
                          .bias = s->w->bias[at],
                          .alpha = (float)s->arch->residual_multiplier,
                          .beta = 1,
                          .out = s->a->x};
    return project(s, &a, e);
}

static enum rc norm_heads(const struct pass *s, struct mat x, const float *weight, struct mat out, struct err *e) {
    if (!weight) return RC_OK;
    int64_t d = s->arch->head_dim, rows = x.rows * x.cols / d;
    struct mat heads = {x.data, rows, d, d, x.type}, normed = {out.data, rows, d, d, out.type}; /* [T·heads, d] */
    return norm(s, heads, weight, normed, e);
}

static enum rc rotate(const struct pass *s, struct mat x, int heads, struct err *e) {
    struct rope_args a = {.x = x,
                          .length = s->f->length,
                          .heads = heads,
                          .head_dim = s->arch->head_dim,
                          .rotary = s->arch->rotary,
                          .cos = s->f->cos,
                          .sin = s->f->sin};
    return s->job->backend->rope(s->job->device, &a, e);
}

/* q and k in one go where they lie side by side. */
static enum rc rotate_both(const struct pass *s, struct err *e) {
    const struct arch *a = s->arch;
    const struct forward *f = s->f;
    if (f->qkv.data) return rotate(s, view(f->qkv, 0, f->q.cols + f->k.cols), a->heads + a->kv_heads, e);
    TRY(rotate(s, f->q, a->heads, e));
    return rotate(s, f->k, a->kv_heads, e);
}

struct attention_args forward_attention(const struct forward *f, int block) {
    const struct arch *arch = &f->walk->model->arch;
    return (struct attention_args){.q = f->q,
                                   .k = f->k,
                                   .v = f->v,
                                   .length = f->length,
                                   .heads = arch->heads,
                                   .kv_heads = arch->kv_heads,
                                   .head_dim = arch->head_dim,
                                   .window = arch->window[block],
                                   .scale = (float)arch->attention_scale,
                                   .out = f->mixed};
}

static enum rc attend(const struct pass *s, struct err *e) {
    struct attention_args a = forward_attention(s->f, s->site->block);
    a.out = s->mixed;
    return s->job->backend->attention(s->job->device, &a, e);
}

/* --- the steps of a block --- */

static enum rc norm_for_attention(const struct pass *s, struct err *e) {
    return norm(s, s->a->x, s->w->input_norm, s->f->normed, e);
}

static enum rc mix_tokens(const struct pass *s, struct err *e) {
    struct forward *f = s->f;
    TRY(project_group(s, INPUT_ATTENTION, f->normed, f->qkv, (struct mat[]){f->q_raw, f->k_raw, f->v}, e));
    TRY(norm_heads(s, f->q_raw, s->p->q_norm, f->q, e));
    TRY(norm_heads(s, f->k_raw, s->p->k_norm, f->k, e));
    TRY(rotate_both(s, e));
    return attend(s, e);
}

static enum rc norm_for_mlp(const struct pass *s, struct err *e) {
    return norm(s, s->a->x, s->w->post_norm, s->f->normed, e);
}

static enum rc activate(const struct pass *s, struct err *e) {
    struct forward *f = s->f;
    TRY(project_group(s, INPUT_MLP, f->normed, f->gate_up, (struct mat[]){f->gate, f->up}, e));
    struct silu_mul_args a = {.gate = f->gate, .up = f->up, .out = s->act};
    return s->job->backend->silu_mul(s->job->device, &a, e);
}

static struct mat placed(struct mat m, void *data) {
    if (data) m.data = data;
    return m;
}

static struct pass pass_of(struct forward *f, const struct forward_args *a) {
    return (struct pass){.f = f,
                         .a = a,
                         .p = a->params,
                         .w = a->weights,
                         .site = a->site,
                         .job = f->walk->job,
                         .arch = &f->walk->model->arch,
                         .mixed = placed(f->mixed, a->kept),
                         .act = placed(f->act, a->kept)};
}

size_t forward_kept(const struct forward *f) {
    int64_t cols = f->mixed.cols > f->act.cols ? f->mixed.cols : f->act.cols;
    return (size_t)(f->act.rows * cols) * dtype_size(f->act.type);
}

enum rc forward_block(struct forward *f, const struct forward_args *a, struct err *e) {
    const struct pass s = pass_of(f, a);
    TRY(norm_for_attention(&s, e));
    TRY(hook_input(&s, INPUT_ATTENTION, f->normed, e));
    TRY(mix_tokens(&s, e));
    TRY(hook_input(&s, INPUT_OUTPUT, s.mixed, e));
    TRY(add_to_residual(&s, INPUT_OUTPUT, s.mixed, e));
    TRY(norm_for_mlp(&s, e));
    TRY(hook_input(&s, INPUT_MLP, f->normed, e));
    TRY(activate(&s, e));
    TRY(hook_input(&s, INPUT_DOWN, s.act, e));
    return add_to_residual(&s, INPUT_DOWN, s.act, e);
}

static enum rc attention_to(const struct pass *s, enum linear_input until, struct err *e) {
    if (!s->a->is_kept) {
        TRY(norm_for_attention(s, e));
        if (until == INPUT_ATTENTION) return hook_input(s, until, s->f->normed, e);
        TRY(mix_tokens(s, e));
    }
    if (until == INPUT_OUTPUT) return hook_input(s, until, s->mixed, e);
    return add_to_residual(s, INPUT_OUTPUT, s->mixed, e);
}

static enum rc mlp_to(const struct pass *s, enum linear_input until, struct err *e) {
    bool is_kept = s->a->is_kept && until == INPUT_HEAD;
    if (!is_kept) {
        TRY(norm_for_mlp(s, e));
        if (until == INPUT_MLP) return hook_input(s, until, s->f->normed, e);
        TRY(activate(s, e));
    }
    if (until == INPUT_DOWN) return hook_input(s, until, s->act, e);
    return add_to_residual(s, INPUT_DOWN, s->act, e);
}

enum rc forward_stage(struct forward *f, const struct forward_args *a, enum linear_input until, struct err *e) {
    const struct pass s = pass_of(f, a);
    if (until <= INPUT_MLP) TRY(attention_to(&s, until, e));
    return until >= INPUT_MLP ? mlp_to(&s, until, e) : RC_OK;
}

bool forward_stage_moves(enum linear_input until) {
    return until == INPUT_MLP || until == INPUT_HEAD;
}
