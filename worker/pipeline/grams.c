#include "worker/pipeline/grams.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sizes.h"
#include "worker/model/finite.h"

static enum rc clear(const struct job *job, struct mat h, struct err *e) {
    return job->backend->clear(job->device, h.data, (size_t)(h.rows * h.stride) * dtype_size(h.type), e);
}

static enum rc check_limit(const struct job *job, int64_t bytes, struct err *e) {
    if (job->backend->own_memory || job->ram_limit <= 0 || bytes <= job->ram_limit) return RC_OK;
    char needed[24], limit[24];
    bool profile = job->kind && !strcmp(job->kind->name, "profile");
    return err_set(e, RC_NO_MEMORY, "the Gram matrices of one block need %s and --ram-limit is %s%s: raise it%s",
                   size_format(bytes, needed, sizeof needed), size_format(job->ram_limit, limit, sizeof limit),
                   job->team ? " for each device" : "",
                   profile ? ", or profile fewer projections at a time with \"layers\""
                           : ", or quantize the widest Linears without looking at what flows through the model");
}

static enum rc open_stats(struct grams *g, int i, struct err *e) {
    void *memory = NULL;
    size_t bytes = (size_t)g->h[i].cols * sizeof(double);
    TRY(g->job->backend->alloc(g->job->device, bytes, &memory, e));
    g->sum_abs[i] = memory;
    g->mean_abs[i] = xcalloc(1, bytes);
    return RC_OK;
}

static enum rc open_input(struct grams *g, int i, int64_t width, bool stats, struct err *e) {
    enum dtype type = g->job->backend->gram_type;
    void *memory = NULL;
    TRY(g->job->backend->alloc(g->job->device, (size_t)(width * width) * dtype_size(type), &memory, e));
    g->h[i] = (struct mat){memory, width, width, width, type};
    return stats ? open_stats(g, i, e) : RC_OK;
}

int64_t grams_bytes(const struct grams_args *a) {
    int64_t bytes = 0;
    for (int i = 0; i < a->count; i++)
        bytes += a->width[i] * a->width[i] * (int64_t)dtype_size(a->job->backend->gram_type);
    return bytes;
}

enum rc grams_open(struct grams *g, const struct grams_args *a, struct err *e) {
    *g = (struct grams){
        .job = a->job, .model = a->model, .count = a->count, .tokens = a->tokens, .bytes = grams_bytes(a)};
    TRY(check_limit(a->job, g->bytes + a->beside, e));
    for (int i = 0; i < g->count; i++)
        if (a->width[i]) TRY(open_input(g, i, a->width[i], a->stats, e));
    return RC_OK;
}

void grams_release(struct grams *g) {
    for (int i = 0; i < g->count; i++) {
        if (g->h[i].data) g->job->backend->free(g->job->device, g->h[i].data);
        if (g->sum_abs[i]) g->job->backend->free(g->job->device, g->sum_abs[i]);
        free(g->mean_abs[i]);
    }
    *g = (struct grams){.job = g->job};
}

enum rc grams_begin(struct grams *g, const bool *wanted, struct err *e) {
    for (int i = 0; i < g->count; i++) {
        g->active[i] = wanted[i];
        if (!wanted[i]) continue;
        TRY(clear(g->job, g->h[i], e));
        if (g->sum_abs[i]) TRY(clear(g->job, matd(g->sum_abs[i], 1, g->h[i].cols), e));
    }
    return RC_OK;
}

enum rc grams_add(struct grams *g, int input, struct mat x, struct err *e) {
    if (!g->active[input]) return RC_OK;
    struct gram_args a = {.x = x, .h = g->h[input], .sum_abs = g->sum_abs[input]};
    return g->job->backend->gram(g->job->device, &a, e);
}

static enum rc combine_parts(const struct grams *grams, int count, int input, bool stats, struct err *e) {
    const struct job *job = grams[0].job;
    struct mat *parts = xcalloc((size_t)count, sizeof *parts);
    for (int i = 0; i < count; i++)
        parts[i] = stats ? matd(grams[i].sum_abs[input], 1, grams[i].h[input].cols) : grams[i].h[input];
    struct combine_args a = {.states = job->devices, .parts = parts, .count = count};
    enum rc rc = job->backend->combine(&a, e);
    free(parts);
    return rc;
}

enum rc grams_combine(struct grams *grams, int count, struct err *e) {
    for (int i = 0; i < grams[0].count; i++) {
        if (!grams[0].active[i]) continue;
        TRY(combine_parts(grams, count, i, false, e));
        if (grams[0].sum_abs[i]) TRY(combine_parts(grams, count, i, true, e));
    }
    return RC_OK;
}

static enum rc finish_stats(struct grams *g, int i, struct err *e) {
    int64_t channels = g->h[i].cols;
    size_t bytes = (size_t)channels * sizeof(double);
    TRY(g->job->backend->download(g->job->device, g->sum_abs[i], bytes, g->mean_abs[i], e));
    for (int64_t k = 0; k < channels; k++)
        g->mean_abs[i][k] /= (double)g->tokens;
    return RC_OK;
}

static double number_at(const void *values, enum dtype type, int64_t k) {
    return type == DTYPE_F64 ? ((const double *)values)[k] : ((const float *)values)[k];
}

/* A channel with one value that is no number has none in the first row either, as its product even with zero is none:
 * candidates would be chosen by that without a word. */
static enum rc check_finite(const struct grams *g, int i, struct err *e) {
    struct mat h = g->h[i];
    size_t bytes = (size_t)h.cols * dtype_size(h.type);
    void *row = xcalloc(1, bytes);
    double sum = 0;
    enum rc rc = g->job->backend->download(g->job->device, h.data, bytes, row, e);
    for (int64_t k = 0; rc == RC_OK && k < h.cols; k++)
        sum += 0 * number_at(row, h.type, k);
    free(row);
    if (rc != RC_OK || sum == 0) return rc;
    return model_not_finite(g->model, "what flows through its Linears is", e);
}

enum rc grams_finish(struct grams *g, struct err *e) {
    for (int i = 0; i < g->count; i++) {
        if (!g->active[i]) continue;
        TRY(g->job->backend->gram_finish(g->job->device, g->h[i], e));
        TRY(check_finite(g, i, e));
        if (g->sum_abs[i]) TRY(finish_stats(g, i, e));
    }
    return RC_OK;
}
