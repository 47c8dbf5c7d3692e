#include "worker/pipeline/replaced.h"

#include "worker/pipeline/carve.h"
#include "worker/pipeline/upload.h"

/* What the widest Linear at a position takes. */
struct widest {
    size_t bytes;
    int64_t rows;
};

/* Bytes of an element, be it ŵ or a weight that is only scaled. */
static size_t element_size(const struct job *job, const struct linear *linear) {
    size_t computed = dtype_size(job->backend->activation), kept = dtype_size(linear_type(job, linear));
    return kept > computed ? kept : computed;
}

static struct widest widest_at(const struct job *job, const struct model *model, int position) {
    struct widest w = {0};
    for (int block = 0; block < model->arch.blocks; block++) {
        const struct linear *linear = block_linear(model, block, position);
        if (!linear) continue;
        size_t bytes = (size_t)(linear->rows * linear->cols) * element_size(job, linear);
        if (bytes > w.bytes) w.bytes = bytes;
        if (linear->rows > w.rows) w.rows = linear->rows;
    }
    return w;
}

static void lay_out_linears(struct replaced *r, const struct job *job, const struct model *model, struct carve *c) {
    for (int position = 0; position < BLOCK_LINEARS_MAX; position++)
        r->room.linear[position].data = carve(c, widest_at(job, model, position).bytes);
}

/* Returns the number of bytes. With memory NULL it only measures. */
static size_t lay_out(struct replaced *r, const struct job *job, const struct model *model) {
    struct carve c = {.base = r->memory};
    lay_out_linears(r, job, model, &c);
    for (int position = 0; position < BLOCK_LINEARS_MAX; position++)
        r->room.bias[position] = carve(&c, (size_t)widest_at(job, model, position).rows * sizeof(float));
    r->room.input_norm = carve(&c, (size_t)model->arch.hidden * sizeof(float));
    r->room.post_norm = carve(&c, (size_t)model->arch.hidden * sizeof(float));
    return c.used;
}

size_t replaced_bytes(const struct job *job, const struct model *model) {
    struct replaced unplaced = {0};
    return lay_out(&unplaced, job, model);
}

enum rc replaced_open(const struct job *job, const struct model *model, struct replaced *r, struct err *e) {
    *r = (struct replaced){0};
    TRY(job->backend->alloc(job->device, replaced_bytes(job, model), &r->memory, e));
    lay_out(r, job, model);
    return RC_OK;
}

enum rc replaced_stage(const struct job *job, const struct model *model, struct replaced *r, struct err *e) {
    struct replaced measured = {0};
    struct carve c = {0};
    void *memory = NULL;
    if (!job->backend->own_memory) return RC_OK;
    lay_out_linears(&measured, job, model, &c);
    TRY(job->backend->host_alloc(job->device, c.used, &memory, e));
    r->staging = memory;
    return RC_OK;
}

void replaced_release(const struct job *job, struct replaced *r) {
    if (r->staging) job->backend->host_free(job->device, r->staging);
    if (r->memory) job->backend->free(job->device, r->memory);
    *r = (struct replaced){0};
}

struct mat replaced_linear(const struct replaced *r, const struct job *job, int position, struct mat of) {
    return (struct mat){r->room.linear[position].data, of.rows, of.cols, of.cols, job->backend->activation};
}

struct mat replaced_host(const struct replaced *r, struct mat out) {
    if (r->staging) out.data = r->staging + ((char *)out.data - (char *)r->memory);
    return out;
}

enum rc replaced_put_linear(const struct replaced *r, const struct job *job, int position, const struct stored *values,
                            struct mat *seen, struct err *e) {
    const struct backend *b = job->backend;
    struct mat out = {r->room.linear[position].data, seen->rows, seen->cols, seen->cols, DTYPE_F32};
    if (b->weights_as_stored) out.type = values->type;
    struct load_item item = {values->values, values->type, values->count, out.data, out.type};
    TRY(b->load(job->device, &item, 1, e));
    TRY(b->loaded(job->device, e));
    *seen = out;
    return RC_OK;
}

enum rc replaced_put_vector(const struct job *job, float *room, const struct stored *values, float **seen,
                            struct err *e) {
    if (!values->values) return RC_OK;
    TRY(job->backend->upload(job->device, values->values, values->type, values->count, room, e));
    *seen = room;
    return RC_OK;
}
