#include "worker/pipeline/quantized_model.h"

#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/recipe.h"

enum rc quantized_model_make(const struct quantized_model_args *a, struct packed_store **store, struct refined *refined,
                             struct err *e) {
    *refined = (struct refined){0};
    *store = packed_store_new(a->model);
    struct calibration_sink sink = packed_store_sink(*store);
    struct calibrate_args calibration = {.job = a->job,
                                         .model = a->model,
                                         .windows = a->windows,
                                         .recipe = a->recipe,
                                         .sink = &sink,
                                         .notes = a->notes,
                                         .seed = a->seed,
                                         .reserved = recipe_bytes(a->model, a->recipe)};
    struct refine_args refining = {
        .job = a->job, .model = a->model, .windows = a->windows, .recipe = a->recipe, .store = *store, .seed = a->seed};
    TRY(calibrate(&calibration, e));
    return a->refine ? refine_run(&refining, refined, e) : RC_OK;
}
