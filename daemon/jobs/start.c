#include "daemon/jobs/start.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/spec.h"
#include "daemon/store/datasets.h"
#include "daemon/store/rows.h"

void start_release(struct msg_start *start) {
    json_decref(start->spec);
    json_decref(start->model);
    json_decref(start->dataset);
    json_decref(start->calibration);
    json_decref(start->artifact);
    json_decref(start->inputs);
    json_decref(start->rows);
}

static enum rc add_model(struct app *app, const struct job_record *job, struct msg_start *start, struct err *e) {
    char *path;

    if (!job->model) return RC_OK;
    TRY(model_find(&app->models, job->model, &path, e));
    start->model = json_pack("{s:s, s:s}", "name", job->model, "path", path);
    free(path);
    return RC_OK;
}

/* The folder that a quantize job makes, or the model that an eval compares. */
static enum rc add_artifact(struct app *app, const struct job_kind *kind, struct msg_start *start, struct err *e) {
    const char *made = json_string_value(json_object_get(start->spec, "name"));
    const char *read = json_string_value(json_object_get(start->spec, "artifact"));
    char *path;

    if (!strcmp(kind->name, "quantize") && made)
        path = xasprintf("%s/%s", app->artifacts, made);
    else if (read)
        TRY(model_find(&app->models, read, &path, e));
    else
        return RC_OK;
    start->artifact = json_pack("{s:s, s:s}", "name", read ? read : made, "path", path);
    free(path);
    return RC_OK;
}

/* `name` NULL: the job has none. */
static enum rc find_dataset(struct app *app, const char *name, const char *sha256, json_t **out, struct err *e) {
    char *path;
    enum rc rc = RC_OK;

    if (!name) return RC_OK;
    path = dataset_path(store_datasets(app->store), sha256);
    if (access(path, R_OK) != 0)
        rc = err_errno(e, "the text of dataset \"%s\" has gone: put it again", name);
    else
        *out = json_pack("{s:s, s:s, s:s}", "name", name, "sha256", sha256, "path", path);
    free(path);
    return rc;
}

static enum rc read_result(struct db *db, const char *job, json_t **result, struct err *e) {
    char *text;

    TRY(result_get(db, job, &text, e));
    enum rc rc = json_parse(text, strlen(text), result, e);
    free(text);
    return rc;
}

static enum rc add_input(struct db *db, const struct spec_reference *reference, const char *job, json_t *inputs,
                         struct err *e) {
    json_t *input = json_pack("{s:s}", "job", job), *result, *rows;

    json_object_set_new(inputs, reference->member, input);
    if (read_result(db, job, &result, e) != RC_OK)
        return err_context(e, "\"%s\" names a job that has no result any more", reference->member);
    json_object_set_new(input, "result", result);
    if (!reference->rows) return RC_OK;
    TRY(rows_json(db, job, &rows, e));
    json_object_set_new(input, "rows", rows);
    return RC_OK;
}

static enum rc add_inputs(struct app *app, const struct job_record *job, struct msg_start *start, struct err *e) {
    struct db *db = store_reader(app->store);
    const struct job_kind *kind = job_kind_find(job->kind);

    if (!kind) return err_set(e, RC_UNSUPPORTED, "this hsaqd has no job kind \"%s\"", job->kind);
    TRY(add_artifact(app, kind, start, e));
    start->inputs = json_object();
    for (const struct spec_reference *r = kind->references; r->member; r++) {
        const char *id = json_string_value(json_object_get(start->spec, r->member));
        if (id) TRY(add_input(db, r, id, start->inputs, e));
    }
    return RC_OK;
}

static enum rc build(struct app *app, const struct job_record *job, struct msg_start *start, struct err *e) {
    struct db *db = store_reader(app->store);

    TRY(json_parse(job->spec, strlen(job->spec), &start->spec, e));
    TRY(add_model(app, job, start, e));
    TRY(find_dataset(app, job->dataset, job->dataset_sha256, &start->dataset, e));
    TRY(find_dataset(app, job->calibration, job->calibration_sha256, &start->calibration, e));
    TRY(add_inputs(app, job, start, e));
    return rows_json(db, job->id, &start->rows, e);
}

enum rc start_build(struct app *app, const struct job_record *job, struct msg_start *start, struct err *e) {
    *start = (struct msg_start){.job = job->id, .attempt = job->attempt};
    enum rc rc = build(app, job, start, e);
    if (rc != RC_OK) start_release(start);
    return rc;
}
