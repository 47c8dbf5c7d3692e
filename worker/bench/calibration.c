#include "worker/bench/calibration.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/calibration_text.h"
#include "worker/pipeline/refine.h"
#include "worker/pipeline/source.h"

static enum rc count_quantized(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e) {
    (void)job, (void)e;
    for (int i = 0; i < block->count; i++)
        *(int *)ctx += block->linears[i].q.codes != NULL;
    return RC_OK;
}

static struct candidate *uniform_recipe(const struct model *model, const struct candidate *uniform) {
    struct candidate *recipe = xcalloc((size_t)model->linear_count, sizeof *recipe);
    for (int64_t i = 0; i < model->linear_count; i++)
        recipe[i] = model->linears[i].block >= 0 ? *uniform : candidate_default(METHOD_NONE, 0, 0);
    return recipe;
}

static enum rc calibrate_source(const struct job *job, const struct source *source, int *quantized, struct err *e) {
    const struct spec_eval *spec = &job->spec->eval;
    struct calibration_sink sink = {.ctx = quantized, .block = count_quantized};
    struct windows windows;
    TRY(calibration_read(job, source, spec->calibration, &windows, e));
    struct candidate *recipe = uniform_recipe(source->model, spec->uniform);
    struct calibrate_args a = {
        .job = job, .model = source->model, .windows = &windows, .recipe = recipe, .sink = &sink};
    enum rc rc = calibrate(&a, e);
    free(recipe);
    windows_release(&windows);
    return rc;
}

enum rc bench_calibrate(const struct job *job, json_t **result, struct err *e) {
    struct source source;
    int quantized = 0;
    enum rc rc = source_open(job, &source, e);
    if (rc == RC_OK) rc = calibrate_source(job, &source, &quantized, e);
    source_release(&source);
    *result = rc == RC_OK ? json_pack("{si}", "quantized", quantized) : NULL;
    return rc;
}

/* On the windows that it was calibrated on. */
static enum rc refine(const struct calibrate_args *c, struct packed_store *store, json_t **result, struct err *e) {
    struct refined refined;
    struct refine_args a = {
        .job = c->job, .model = c->model, .windows = c->windows, .recipe = c->recipe, .store = store};
    TRY(calibrate(c, e));
    TRY(refine_run(&a, &refined, e));
    double tokens = (double)(c->windows->count * c->windows->length);
    *result = json_pack("{sf}", "tokens_per_second", tokens / refined.seconds);
    return RC_OK;
}

static enum rc refine_source(const struct job *job, const struct source *source, json_t **result, struct err *e) {
    const struct spec_eval *spec = &job->spec->eval;
    struct windows windows;
    TRY(calibration_read(job, source, spec->calibration, &windows, e));
    struct candidate *recipe = uniform_recipe(source->model, spec->uniform);
    struct packed_store *store = packed_store_new(source->model);
    struct calibration_sink sink = packed_store_sink(store);
    struct calibrate_args a = {
        .job = job, .model = source->model, .windows = &windows, .recipe = recipe, .sink = &sink};
    enum rc rc = refine(&a, store, result, e);
    packed_store_free(store);
    free(recipe);
    windows_release(&windows);
    return rc;
}

enum rc bench_refine(const struct job *job, json_t **result, struct err *e) {
    struct source source;
    *result = NULL;
    enum rc rc = source_open(job, &source, e);
    if (rc == RC_OK) rc = refine_source(job, &source, result, e);
    source_release(&source);
    return rc;
}
