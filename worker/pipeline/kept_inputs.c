#include "worker/pipeline/kept_inputs.h"

#include "worker/pipeline/carve.h"

static struct mat place(struct carve *c, const struct kept_inputs_args *a, int64_t cols) {
    enum dtype type = a->job->backend->activation;
    int64_t rows = a->chunks * a->rows;
    if (cols == 0) return (struct mat){0};
    return (struct mat){carve(c, (size_t)(rows * cols) * dtype_size(type)), rows, cols, cols, type};
}

/* Returns the number of bytes. Called twice: to measure, then to place. */
static size_t lay_out(struct kept_inputs *k, const struct kept_inputs_args *a, void *base) {
    struct carve c = {.base = base};
    for (int input = 0; input < INPUT_COUNT; input++)
        k->x[input] = place(&c, a, a->in[input]);
    for (int position = 0; position < BLOCK_LINEARS_MAX; position++)
        k->g[position] = place(&c, a, a->out[position]);
    return c.used;
}

size_t kept_inputs_bytes(const struct kept_inputs_args *a) {
    struct kept_inputs unplaced;
    return lay_out(&unplaced, a, NULL);
}

enum rc kept_inputs_open(struct kept_inputs *k, const struct kept_inputs_args *a, struct err *e) {
    *k = (struct kept_inputs){.job = a->job, .rows = a->rows};
    TRY(a->job->backend->alloc(a->job->device, kept_inputs_bytes(a), &k->memory, e));
    lay_out(k, a, k->memory);
    return RC_OK;
}

void kept_inputs_release(struct kept_inputs *k) {
    if (k->memory) k->job->backend->free(k->job->device, k->memory);
    *k = (struct kept_inputs){0};
}

/* Blocks may differ in width: each has the whole memory of an input, dense. */
static struct mat chunk_of(const struct kept_inputs *k, struct mat all, int64_t chunk, int64_t cols) {
    return mat_rows((struct mat){all.data, all.rows, cols, cols, all.type}, chunk * k->rows, k->rows);
}

static enum rc keep(const struct kept_inputs *k, struct mat all, int64_t chunk, struct mat from, struct err *e) {
    if (!all.data) return RC_OK;
    struct scale_args a = {.m = from, .out = chunk_of(k, all, chunk, from.cols)};
    return k->job->backend->scale(k->job->device, &a, e);
}

enum rc kept_inputs_add(struct kept_inputs *k, int64_t chunk, const struct linear_gradient *at, struct err *e) {
    if (at->first) TRY(keep(k, k->x[at->input], chunk, at->x, e));
    return keep(k, k->g[at->position], chunk, at->g, e);
}

struct mat kept_input(const struct kept_inputs *k, int64_t chunk, const struct linear *linear) {
    return chunk_of(k, k->x[linear->input], chunk, linear->cols);
}

struct mat kept_gradient(const struct kept_inputs *k, int64_t chunk, int position, const struct linear *linear) {
    return chunk_of(k, k->g[position], chunk, linear->rows);
}
