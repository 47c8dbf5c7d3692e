#include "worker/bench/calibration.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/calibration_text.h"
#include "worker/pipeline/source.h"

static enum rc drop_block(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e) {
    (void)ctx, (void)job, (void)block, (void)e;
    return RC_OK;
}

static struct candidate *uniform_recipe(const struct model *model, const struct candidate *uniform) {
    struct candidate *recipe = xcalloc((size_t)model->linear_count, sizeof *recipe);
    for (int64_t i = 0; i < model->linear_count; i++)
        recipe[i] = model->linears[i].block >= 0 ? *uniform : candidate_default(METHOD_NONE, 0, 0);
    return recipe;
}

static enum rc calibrate_source(const struct job *job, const struct source *source, json_t *notes, struct err *e) {
    const struct spec_eval *spec = &job->spec->eval;
    struct calibration_sink sink = {.block = drop_block};
    struct windows windows;
    TRY(calibration_read(job, source, spec->calibration, &windows, e));
    struct candidate *recipe = uniform_recipe(source->model, spec->uniform);
    struct calibrate_args a = {
        .job = job, .model = source->model, .windows = &windows, .recipe = recipe, .sink = &sink, .notes = notes};
    enum rc rc = calibrate(&a, e);
    free(recipe);
    windows_release(&windows);
    return rc;
}

enum rc bench_calibrate(const struct job *job, json_t **result, struct err *e) {
    struct source source;
    json_t *notes = json_array();
    enum rc rc = source_open(job, &source, e);
    if (rc == RC_OK) rc = calibrate_source(job, &source, notes, e);
    source_release(&source);
    json_decref(notes);
    *result = rc == RC_OK ? json_object() : NULL;
    return rc;
}
