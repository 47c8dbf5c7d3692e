#include "worker/pipeline/grams.h"

#include <stdlib.h>

#include "base/mem.h"
#include "base/sizes.h"

static enum rc clear(const struct job *job, struct mat h, struct err *e) {
    return job->backend->clear(job->device, h.data, (size_t)(h.rows * h.stride) * dtype_size(h.type), e);
}

static enum rc check_limit(const struct job *job, int64_t bytes, struct err *e) {
    if (job->backend->own_memory || job->ram_limit <= 0 || bytes <= job->ram_limit) return RC_OK;
    char needed[24], limit[24];
    return err_set(e, RC_NO_MEMORY,
                   "the Gram matrices of one block need %s and --ram-limit is %s%s: raise it, or profile fewer "
                   "projections at a time with \"layers\"",
                   size_format(bytes, needed, sizeof needed), size_format(job->ram_limit, limit, sizeof limit),
                   job->team ? " for each device" : "");
}

enum rc grams_open(struct grams *g, const struct job *job, const int64_t width[INPUT_COUNT], struct err *e) {
    *g = (struct grams){.job = job};
    enum dtype type = job->backend->gram_type;
    for (int i = 0; i < INPUT_COUNT; i++)
        g->bytes += width[i] * width[i] * (int64_t)dtype_size(type);
    TRY(check_limit(job, g->bytes, e));
    for (int i = 0; i < INPUT_COUNT; i++) {
        void *memory = NULL;
        if (width[i])
            TRY(job->backend->alloc(job->device, (size_t)(width[i] * width[i]) * dtype_size(type), &memory, e));
        g->h[i] = (struct mat){memory, width[i], width[i], width[i], type};
    }
    return RC_OK;
}

void grams_release(struct grams *g) {
    for (int i = 0; i < INPUT_COUNT; i++)
        if (g->h[i].data) g->job->backend->free(g->job->device, g->h[i].data);
    *g = (struct grams){.job = g->job};
}

enum rc grams_begin(struct grams *g, const bool wanted[INPUT_COUNT], struct err *e) {
    for (int i = 0; i < INPUT_COUNT; i++) {
        g->active[i] = wanted[i];
        if (wanted[i]) TRY(clear(g->job, g->h[i], e));
    }
    return RC_OK;
}

enum rc grams_add(struct grams *g, enum linear_input input, struct mat x, struct err *e) {
    if (!g->active[input]) return RC_OK;
    struct gram_args a = {.x = x, .h = g->h[input]};
    return g->job->backend->gram(g->job->device, &a, e);
}

static enum rc combine_input(const struct grams *grams, int count, int input, struct err *e) {
    const struct job *job = grams[0].job;
    struct mat *parts = xcalloc((size_t)count, sizeof *parts);
    for (int i = 0; i < count; i++)
        parts[i] = grams[i].h[input];
    struct combine_args a = {.states = job->devices, .parts = parts, .count = count};
    enum rc rc = job->backend->combine(&a, e);
    free(parts);
    return rc;
}

enum rc grams_combine(struct grams *grams, int count, struct err *e) {
    for (int i = 0; i < INPUT_COUNT; i++)
        if (grams[0].active[i]) TRY(combine_input(grams, count, i, e));
    return RC_OK;
}

enum rc grams_finish(struct grams *g, struct err *e) {
    for (int i = 0; i < INPUT_COUNT; i++)
        if (g->active[i]) TRY(g->job->backend->gram_finish(g->job->device, g->h[i], e));
    return RC_OK;
}
