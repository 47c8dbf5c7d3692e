#include "worker/pipeline/block.h"

#include "worker/pipeline/carve.h"
#include "worker/pipeline/upload.h"

enum { ITEMS_MAX = 4 + 2 * BLOCK_LINEARS_MAX };

const struct linear *block_linear(const struct model *model, int block, int position) {
    int index = position < BLOCK_LINEARS_MAX ? model->blocks[block].linears[position] : -1;
    return index < 0 ? NULL : &model->linears[index];
}

void block_prefetch(const struct model *model, int block) {
    const struct linear *linear;
    for (int position = 0; (linear = block_linear(model, block, position)); position++)
        prefetch_linear(linear);
}

/* What goes where when a block is loaded. */
struct plan {
    struct load_item items[ITEMS_MAX];
    size_t count;
    struct carve carve, staging;
};

static void *plan_tensor(struct plan *p, const struct st_tensor *tensor, enum dtype type) {
    if (!tensor) return NULL;
    void *out = carve(&p->carve, (size_t)tensor->count * dtype_size(type));
    p->items[p->count++] = (struct load_item){tensor->data, tensor->type, tensor->count, out, type};
    return out;
}

/* A packed Linear gets its place, and one in the host's memory where the device's is another; block_load fills it. */
static void *plan_packed(struct plan *p, const struct block *b, const struct linear *linear, enum dtype type) {
    int64_t count = linear->rows * linear->cols;
    size_t bytes = (size_t)count * dtype_size(type);
    void *out = carve(&p->carve, bytes);
    if (b->job->backend->own_memory)
        p->items[p->count++] = (struct load_item){carve(&p->staging, bytes), type, count, out, type};
    return out;
}

static bool is_replaced(const struct block *b, const struct linear *linear) {
    return b->replaced && b->replaced[linear - b->model->linears];
}

static void plan_linear(struct plan *p, struct block *b, const struct linear *linear) {
    struct block_params *params = &b->params;
    int position = params->count++;
    if (params->n[linear->input]++ == 0) params->at[linear->input] = position;
    enum dtype type = linear_type(b->job, linear);
    void *data = NULL;
    if (!is_replaced(b, linear))
        data = linear->packed ? plan_packed(p, b, linear, type) : plan_tensor(p, linear->weight, type);
    b->weights.linear[position] = (struct mat){data, linear->rows, linear->cols, linear->cols, type};
    b->weights.bias[position] = plan_tensor(p, linear->bias, DTYPE_F32);
}

static void plan_block(struct plan *p, struct block *b, int block) {
    const struct block_tensors *tensors = &b->model->blocks[block];
    const struct linear *linear;
    b->weights = (struct block_weights){0};
    b->params = (struct block_params){0};
    b->weights.input_norm = plan_tensor(p, tensors->input_norm, DTYPE_F32);
    b->weights.post_norm = plan_tensor(p, tensors->post_norm, DTYPE_F32);
    b->params.q_norm = plan_tensor(p, tensors->q_norm, DTYPE_F32);
    b->params.k_norm = plan_tensor(p, tensors->k_norm, DTYPE_F32);
    for (int position = 0; (linear = block_linear(b->model, block, position)); position++)
        plan_linear(p, b, linear);
}

enum rc block_open(const struct job *job, const struct model *model, int last, struct block *b, struct err *e) {
    return block_open_without(job, model, last, NULL, b, e);
}

/* What the widest block takes, on the device and of staging. */
struct widest {
    size_t memory, staging;
};

static struct widest widest_block(struct block *b, int last) {
    struct widest w = {0};
    for (int block = 0; block <= last; block++) {
        struct plan p = {0};
        plan_block(&p, b, block);
        if (p.carve.used > w.memory) w.memory = p.carve.used;
        if (p.staging.used > w.staging) w.staging = p.staging.used;
    }
    return w;
}

size_t block_bytes(const struct job *job, const struct model *model, int last, const bool *replaced) {
    struct block unplaced = {.job = job, .model = model, .replaced = replaced};
    return widest_block(&unplaced, last).memory;
}

enum rc block_open_without(const struct job *job, const struct model *model, int last, const bool *replaced,
                           struct block *b, struct err *e) {
    *b = (struct block){.job = job, .model = model, .replaced = replaced};
    struct widest w = widest_block(b, last);
    if (w.staging > 0) TRY(job->backend->host_alloc(job->device, w.staging, &b->staging, e));
    return job->backend->alloc(job->device, w.memory, &b->memory, e);
}

/* After a cancel or an error the next block may still be on its way, from a file that is about to be closed. */
void block_close(struct block *b) {
    struct err ignored; /* whoever closes knows of a worse one, or needs the block no more */
    if (!b->job) return;
    const struct backend *backend = b->job->backend;
    if (b->memory) (void)backend->loaded(b->job->device, &ignored);
    if (b->memory) backend->free(b->job->device, b->memory);
    if (b->staging) backend->host_free(b->job->device, b->staging);
    b->memory = b->staging = NULL;
}

/* A packed Linear's values, where the device reads them from or where it computes on them. */
static enum rc expand_linear(const struct block *b, const struct linear *linear, struct mat out,
                             const struct load_item *items, struct err *e) {
    struct packed_view view = packed_linear_view(linear->packed);
    for (size_t i = 0; b->job->backend->own_memory && i < ITEMS_MAX; i++)
        if (items[i].out == out.data) {
            out.data = (void *)items[i].host;
            break;
        }
    if (packed_expand(&view, out, e) == RC_OK) return RC_OK;
    return err_context(e, "%s in %s", linear->name, linear->packed->codes->file);
}

static enum rc expand_block(const struct block *b, int block, const struct plan *p, struct err *e) {
    const struct linear *linear;
    for (int position = 0; (linear = block_linear(b->model, block, position)); position++)
        if (linear->packed && !is_replaced(b, linear))
            TRY(expand_linear(b, linear, b->weights.linear[position], p->items, e));
    return RC_OK;
}

enum rc block_load(struct block *b, int block, struct err *e) {
    struct plan p = {.carve = {.base = b->memory}, .staging = {.base = b->staging}};
    plan_block(&p, b, block);
    enum rc rc = expand_block(b, block, &p, e);
    if (rc == RC_OK) rc = b->job->backend->load(b->job->device, p.items, p.count, e);
    return rc == RC_OK ? RC_OK : err_context(e, "loading block %d of %s", block, b->model->name);
}
