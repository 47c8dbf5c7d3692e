#include "worker/pipeline/calibration_text.h"

#include <string.h>

#include "base/json.h"

static enum rc incomplete(struct err *e) {
    return err_at(e, "/calibration", RC_INVALID,
                  "is required: the allocation's candidates are calibrated, and its result does not say on what its "
                  "profile was");
}

/* From the result of an allocation, which has it from its profile. */
static enum rc read_calibration(const json_t *json, struct spec_calibration *out, struct err *e) {
    const json_t *samples = json_object_get(json, "samples"), *length = json_object_get(json, "length");
    const char *sampling = json_string_value(json_object_get(json, "sampling"));
    *out = (struct spec_calibration){.dataset = json_string_value(json_object_get(json, "dataset")),
                                     .samples = json_integer_value(samples),
                                     .length = json_integer_value(length),
                                     .seed = json_integer_value(json_object_get(json, "seed"))};
    int index = sampling ? name_index(sampling_names, sampling) : -1;
    if (!out->dataset || out->samples < 1 || out->length < 1 || index < 0) return incomplete(e);
    out->sampling = index;
    return RC_OK;
}

enum rc calibration_find(const struct job *job, const struct spec_calibration *given, struct spec_calibration *out,
                         struct err *e) {
    if (given) {
        *out = *given;
        return RC_OK;
    }
    const json_t *result = json_object_get(json_object_get(job->inputs, "allocation"), "result");
    return read_calibration(json_object_get(result, "calibration"), out, e);
}

enum rc calibration_windows(const struct tokens *tokens, const struct spec_calibration *c, struct windows *out,
                            struct err *e) {
    enum rc rc = c->sampling == SAMPLING_RANDOM
                     ? windows_random(tokens, c->length, c->samples, (uint64_t)c->seed, out, e)
                     : windows_first(tokens, c->length, c->samples, out, e);
    return rc == RC_INVALID ? err_locate(e, "/calibration/dataset") : rc;
}

enum rc calibration_read(const struct job *job, const struct source *source, const struct spec_calibration *c,
                         struct windows *out, struct err *e) {
    const char *path = NULL;
    struct tokens tokens = {0};
    if (source->borrowed) return calibration_windows(&source->tokens, c, out, e);
    TRY(json_get_string(job->calibration, "path", &path, e));
    if (!path)
        return err_at(e, "/calibration", RC_INVALID,
                      "is required: whoever started the job knew of no text of the dataset %s that its allocation's "
                      "profile was calibrated on",
                      c->dataset);
    enum rc rc = tokens_read(source->tokenizer, path, source->model->arch.vocab, &tokens, e);
    if (rc == RC_OK) rc = calibration_windows(&tokens, c, out, e);
    tokens_release(&tokens);
    return rc == RC_OK ? RC_OK : err_context(e, "calibration dataset %s", c->dataset);
}

json_t *calibration_json(const struct spec_calibration *c, const struct windows *windows, const json_t *file) {
    const char *sha256 = json_string_value(json_object_get(file, "sha256"));
    char hash[HASH_TEXT_SIZE];
    struct hash128 of = windows_hash(windows);
    return json_pack("{ss ss? sI sI ss sI sI ss}", "dataset", c->dataset, "sha256", sha256, "samples",
                     (json_int_t)windows->count, "length", (json_int_t)windows->length, "sampling",
                     sampling_names[c->sampling], "seed", (json_int_t)c->seed, "tokens",
                     (json_int_t)(windows->count * windows->length), "windows_hash", hash_text(&of, hash));
}
