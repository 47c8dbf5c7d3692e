#include "worker/pipeline/fold.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/pipeline/block.h"

/* The rows of a Linear that make an input's channels. */
struct producer {
    int position; /* −1: a norm makes them */
    int64_t first, rows;
};

static int find_projection(const struct calibrated_block *b, const char *whole, const char *fused) {
    for (int i = 0; i < b->count; i++) {
        const char *projection = b->linears[i].linear->projection;
        if (!strcmp(projection, whole) || !strcmp(projection, fused)) return i;
    }
    return -1;
}

/* v and up lie last where they are fused with what is computed beside them. */
static struct producer find_producer(const struct fold *f) {
    const struct arch *a = &f->model->arch;
    struct producer p = {.position = -1};
    if (f->input == INPUT_OUTPUT) {
        p.position = find_projection(f->block, "v_proj", "qkv_proj");
        p.rows = (int64_t)a->kv_heads * a->head_dim;
    } else if (f->input == INPUT_DOWN) {
        p.position = find_projection(f->block, "up_proj", "gate_up_proj");
        p.rows = a->intermediate;
    }
    if (p.position >= 0) p.first = f->block->linears[p.position].linear->rows - p.rows;
    return p;
}

int fold_position(const struct fold *f) {
    return find_producer(f).position;
}

/* A scale for the whole tensor has no rows to be divided; what is packed already is not kept in 16 bits. */
static bool rows_can_be_scaled(const struct calibrated_linear *l) {
    const struct candidate *c = &l->candidate;
    if (c->method == METHOD_NONE) return l->linear->weight != NULL;
    return c->method != METHOD_FP8 || c->fp8_scale == FP8_PER_ROW;
}

bool fold_possible(const struct fold *f) {
    const struct producer p = find_producer(f);
    for (int i = 0; i < f->block->count; i++) {
        const struct calibrated_linear *l = &f->block->linears[i];
        if (l->linear->input == f->input && l->candidate.method == METHOD_NONE && !l->linear->weight) return false;
    }
    return p.position < 0 || rows_can_be_scaled(&f->block->linears[p.position]);
}

/* Where rounding leaves nothing of a weight, it stays as it is. */
static float divided(const struct stored *norm, int64_t k, double t) {
    float weight = stored_get(norm, k), out = round_to(norm->type, (float)(weight / t));
    return out != 0 && isfinite(out) ? out : weight;
}

enum rc fold_round_scale(const struct st_tensor *norm, double *t, struct err *e) {
    struct stored weights = {0};
    TRY(stored_copy(&weights, norm, e));
    for (int64_t k = 0; k < weights.count; k++) {
        double weight = stored_get(&weights, k), out = divided(&weights, k, t[k]);
        t[k] = out == weight ? 1 : weight / out;
    }
    stored_release(&weights);
    return RC_OK;
}

static enum rc fold_into_norm(const struct fold *f, const struct input_group *group, const double *t, struct err *e) {
    struct stored *norm = &f->block->norm[f->input];
    TRY(stored_copy(norm, group->norm, e));
    for (int64_t k = 0; k < norm->count; k++)
        stored_set(norm, k, divided(norm, k, t[k]));
    return RC_OK;
}

/* [N, G] scales, which lie in device memory, rows of them times by_row. */
static enum rc divide_scales(const struct job *job, const struct producer *p, const float *by_row, struct quantized *q,
                             struct err *e) {
    const struct backend *b = job->backend;
    size_t count = (size_t)(q->rows * q->groups);
    float *scales = xcalloc(count, sizeof *scales);
    enum rc rc = b->download(job->device, q->scale, count * sizeof *scales, scales, e);
    for (int64_t n = 0; rc == RC_OK && n < p->rows; n++)
        for (int64_t g = 0; g < q->groups; g++) {
            float *scale = &scales[(p->first + n) * q->groups + g];
            *scale = round_to(q->fp8 ? DTYPE_BF16 : DTYPE_F16, *scale * by_row[n]);
        }
    if (rc == RC_OK) rc = b->upload(job->device, scales, DTYPE_F32, (int64_t)count, q->scale, e);
    free(scales);
    return rc;
}

static enum rc divide_rows(const struct fold *f, const struct producer *p, const float *by_row, struct err *e) {
    struct calibrated_linear *l = &f->block->linears[p->position];
    TRY(stored_copy(&l->bias, l->linear->bias, e));
    if (l->bias.values) stored_scale_rows(&l->bias, 1, p->first, p->rows, by_row);
    if (l->q.codes) return divide_scales(f->job, p, by_row, &l->q, e);
    TRY(stored_copy(&l->weight, l->linear->weight, e));
    stored_scale_rows(&l->weight, l->linear->cols, p->first, p->rows, by_row);
    return RC_OK;
}

/* The channel of the input that row n makes first; those it makes besides are tied to it. */
static int64_t channel_of(const struct channel_ties *t, int64_t n) {
    return t->repeats > 1 ? n / t->width * t->repeats * t->width + n % t->width : n;
}

static enum rc fold_into_rows(const struct fold *f, const struct producer *p, const struct channel_ties *ties,
                              const double *t, struct err *e) {
    float *by_row = xcalloc((size_t)p->rows, sizeof *by_row);
    for (int64_t n = 0; n < p->rows; n++)
        by_row[n] = (float)(1 / t[channel_of(ties, n)]);
    enum rc rc = divide_rows(f, p, by_row, e);
    free(by_row);
    return rc;
}

enum rc fold_scale(const struct fold *f, const struct input_group *group, const struct awq_scale *s, struct err *e) {
    const struct producer p = find_producer(f);
    if (p.position >= 0) return fold_into_rows(f, &p, &group->ties, s->by_channel, e);
    return fold_into_norm(f, group, s->by_channel, e);
}
