#include "worker/pipeline/profile_around.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "worker/pipeline/prints.h"
#include "worker/pipeline/recipe.h"

static const char pointer[] = "/around";

/* An allocation is for the weights that its profile measured. */
static enum rc check_fingerprint(const struct job *job, const struct model *model, const struct fingerprints *prints,
                                 struct err *e) {
    const json_t *result = json_object_get(json_object_get(job->inputs, "around"), "result");
    const char *measured = json_string_value(json_object_get(result, "fingerprint"));
    json_t *own = prints_json(prints);
    enum rc rc = RC_OK;
    if (!measured || strcmp(measured, json_string_value(own)) != 0)
        rc = err_at(e, pointer, RC_INVALID,
                    "its profile measured a model with fingerprint %s; %s has %s: name an allocation of this model",
                    measured ? measured : "unknown", model->name, json_string_value(own));
    json_decref(own);
    return rc;
}

static enum rc check_recipe(const struct model *model, const struct candidate *recipe, struct err *e) {
    if (recipe[model->linear_count - 1].method != METHOD_NONE)
        return err_at(e, pointer, RC_UNSUPPORTED,
                      "the allocation quantizes lm_head, around which nothing is measured; name one that keeps it");
    for (int64_t i = 0; i < model->linear_count; i++)
        if (candidate_uses_awq(&recipe[i]))
            return err_at(e, pointer, RC_UNSUPPORTED,
                          "the allocation quantizes %s by AWQ, which scales the inputs that are measured; name one "
                          "without AWQ",
                          model->linears[i].name);
    return RC_OK;
}

enum rc profile_around_open(const struct job *job, const struct model *model, const struct fingerprints *prints,
                            struct profile_around *a, struct err *e) {
    TRY(recipe_read_input(job, model, "around", &a->recipe, e));
    TRY(check_fingerprint(job, model, prints, e));
    TRY(check_recipe(model, a->recipe, e));
    a->refine = refine_wanted(false, false, a->recipe, model);
    return a->refine ? refine_check(job, model, a->recipe, e) : RC_OK;
}

enum rc profile_around_make(const struct job *job, const struct model *model, const struct windows *windows,
                            struct profile_around *a, struct err *e) {
    struct quantized_model_args args = {.job = job,
                                        .model = model,
                                        .windows = windows,
                                        .recipe = a->recipe,
                                        .seed = job->spec->profile.calibration->seed,
                                        .refine = a->refine};
    return quantized_model_make(&args, &a->store, &a->refined, e);
}

void profile_around_release(struct profile_around *a) {
    packed_store_free(a->store);
    free(a->recipe);
}

json_t *profile_around_json(const struct job *job, const struct model *model, const struct profile_around *a) {
    json_t *refined = a->refine ? refined_json(&a->refined, false) : json_null();
    json_object_del(refined, "seconds"); /* of this run */
    json_object_del(refined, "default");
    return json_pack("{ss sI so}", "allocation", job->spec->profile.around, "bytes",
                     (json_int_t)recipe_bytes(model, a->recipe), "refined", refined);
}
