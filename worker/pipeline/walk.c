#include "worker/pipeline/walk.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/forward.h"
#include "worker/pipeline/hidden.h"
#include "worker/pipeline/upload.h"

struct walker {
    const struct walk *walk;
    struct forward forward;
    struct hidden *hidden;          /* slot = stream · count + (window − first) */
    struct block_weights reference; /* buffers as wide as the widest block needs */
    struct block_params params;
    struct matf *finals; /* [streams] of [T, D] */
    float *final_norm;   /* [D] */
    int64_t steps, steps_total;
};

static int last_block(const struct walk *w) {
    return w->last_block < 0 ? w->model->arch.blocks - 1 : w->last_block;
}

static bool whole_model(const struct walk *w) {
    return w->last_block < 0;
}

static const struct linear *block_linear(const struct walk *w, int block, int position) {
    int index = position < BLOCK_LINEARS ? w->model->blocks[block].linears[position] : -1;
    return index < 0 ? NULL : &w->model->linears[index];
}

static enum rc allocate_weights(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    for (int position = 0; position < BLOCK_LINEARS; position++) {
        int64_t most = 0;
        for (int block = 0; block <= last_block(w); block++) {
            const struct linear *linear = block_linear(w, block, position);
            if (linear && linear->rows * linear->cols > most) most = linear->rows * linear->cols;
        }
        if (most) TRY(device_floats(w->job, most, &k->reference.linear[position].data, e));
    }
    return RC_OK;
}

static enum rc allocate_finals(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    k->finals = xcalloc((size_t)w->streams, sizeof *k->finals);
    if (!whole_model(w)) return RC_OK;
    TRY(upload_new(w->job, w->model->final_norm, &k->final_norm, e));
    for (int stream = 0; stream < w->streams; stream++) {
        k->finals[stream] = matf(NULL, w->windows->length, w->model->arch.hidden);
        TRY(device_floats(w->job, w->windows->length * w->model->arch.hidden, &k->finals[stream].data, e));
    }
    return RC_OK;
}

static enum rc open_hidden(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    int64_t limit = w->job->ram_limit <= 0 ? -1 : w->reserved < w->job->ram_limit ? w->job->ram_limit - w->reserved : 0;
    return hidden_open(w->streams * w->count, w->windows->length * w->model->arch.hidden, limit, w->job->scratch,
                       &k->hidden, e);
}

static enum rc walker_open(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    k->steps_total = (int64_t)(last_block(w) + 1) * w->streams * w->count;
    TRY(forward_open(&k->forward, w, e));
    TRY(allocate_weights(k, e));
    TRY(allocate_finals(k, e));
    return open_hidden(k, e);
}

static void device_free(const struct job *job, float *memory) {
    if (memory) job->backend->free(job->device, memory);
}

static void walker_release(struct walker *k) {
    const struct job *job = k->walk->job;
    hidden_close(k->hidden);
    for (int stream = 0; k->finals && stream < k->walk->streams; stream++)
        device_free(job, k->finals[stream].data);
    free(k->finals);
    device_free(job, k->final_norm);
    block_params_release(&k->params, job);
    for (int position = 0; position < BLOCK_LINEARS; position++)
        device_free(job, k->reference.linear[position].data);
    forward_release(&k->forward);
}

static int64_t slot(const struct walk *w, int stream, int64_t i) {
    return stream * w->count + i;
}

static enum rc check_cancel(const struct walk *w, struct err *e) {
    return job_cancelled(w->job) ? err_set(e, RC_CANCELLED, "cancelled") : RC_OK;
}

/* forward.x → slot */
static enum rc keep(struct walker *k, int64_t at, struct err *e) {
    const struct job *job = k->walk->job;
    const struct matf *x = &k->forward.x;
    TRY(job->backend->download(job->device, x->data, (size_t)(x->rows * x->cols) * sizeof *x->data,
                               hidden_buffer(k->hidden, at), e));
    return hidden_put(k->hidden, at, e);
}

/* slot → forward.x */
static enum rc recall(struct walker *k, int64_t at, struct err *e) {
    const struct job *job = k->walk->job;
    const struct matf *x = &k->forward.x;
    float *values;
    TRY(hidden_get(k->hidden, at, &values, e));
    return job->backend->upload(job->device, values, DTYPE_F32, x->rows * x->cols, x->data, e);
}

static enum rc embed_windows(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    const struct job *job = w->job;
    for (int64_t i = 0; i < w->count; i++) {
        TRY(check_cancel(w, e));
        struct embed_args a = {.table = w->model->embedding->data,
                               .type = w->model->embedding->type,
                               .vocab = w->model->embedding->shape[0],
                               .ids = w->windows->ids + (w->first + i) * w->windows->length,
                               .multiplier = (float)w->model->arch.embedding_multiplier,
                               .out = k->forward.x};
        TRY(job->backend->embed(job->device, &a, e));
        for (int stream = 0; stream < w->streams; stream++)
            TRY(keep(k, slot(w, stream, i), e));
    }
    return RC_OK;
}

static enum rc load_block(struct walker *k, int block, struct err *e) {
    const struct walk *w = k->walk;
    block_params_release(&k->params, w->job);
    TRY(block_params_load(&k->params, w, block, e));
    for (int position = 0; position < BLOCK_LINEARS; position++) {
        const struct linear *linear = block_linear(w, block, position);
        struct matf *out = &k->reference.linear[position];
        *out = matf(out->data, linear ? linear->rows : 0, linear ? linear->cols : 0);
        if (linear) TRY(upload_into(w->job, linear->weight, out->data, e));
    }
    for (int position = 0; block < last_block(w) && block_linear(w, block + 1, position); position++)
        prefetch_tensor(block_linear(w, block + 1, position)->weight);
    return RC_OK;
}

static enum rc report(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    int64_t tokens = w->count * w->windows->length;
    int64_t done = (int64_t)((double)k->steps / (double)k->steps_total * (double)tokens);
    return emit_progress(w->job, w->phase, w->tokens_before + done, w->tokens_total, "tokens", e);
}

static enum rc walk_stream(struct walker *k, int stream, int block, struct err *e) {
    const struct walk *w = k->walk;
    struct block_weights seen = k->reference;
    if (w->hooks->weights) TRY(w->hooks->weights(w->hooks->ctx, stream, block, &seen, e));
    for (int64_t i = 0; i < w->count; i++) {
        struct site site = {stream, block, w->first + i};
        TRY(recall(k, slot(w, stream, i), e));
        TRY(forward_block(&k->forward, &k->params, &seen, &site, e));
        TRY(keep(k, slot(w, stream, i), e));
        k->steps++;
        TRY(report(k, e));
    }
    return RC_OK;
}

static enum rc walk_block(struct walker *k, int block, struct err *e) {
    const struct walk *w = k->walk;
    TRY(load_block(k, block, e));
    for (int stream = 0; stream < w->streams; stream++)
        TRY(walk_stream(k, stream, block, e));
    return w->hooks->block_end ? w->hooks->block_end(w->hooks->ctx, block, &k->reference, e) : RC_OK;
}

static enum rc finish_window(struct walker *k, int64_t i, struct err *e) {
    const struct walk *w = k->walk;
    for (int stream = 0; stream < w->streams; stream++) {
        TRY(recall(k, slot(w, stream, i), e));
        struct rmsnorm_args a = {.x = k->forward.x,
                                 .weight = k->final_norm,
                                 .eps = (float)w->model->arch.norm_eps,
                                 .out = k->finals[stream]};
        TRY(w->job->backend->rmsnorm(w->job->device, &a, e));
    }
    return w->hooks->final(w->hooks->ctx, w->first + i, k->finals, e);
}

static enum rc walk_all(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    TRY(embed_windows(k, e));
    for (int block = 0; block <= last_block(w); block++)
        TRY(walk_block(k, block, e));
    for (int64_t i = 0; whole_model(w) && w->hooks->final && i < w->count; i++) {
        TRY(check_cancel(w, e));
        TRY(finish_window(k, i, e));
    }
    return RC_OK;
}

enum rc walk_run(const struct walk *walk, struct err *e) {
    struct walker k = {.walk = walk, .forward = {.walk = walk}};
    enum rc rc = walker_open(&k, e);
    if (rc == RC_OK) rc = walk_all(&k, e);
    walker_release(&k);
    return rc;
}
