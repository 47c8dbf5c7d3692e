#include "worker/run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"

static const char run_job_id[] = "run";
enum { SPEC_FILE_MAX = 1 << 20 };

static enum rc print_message(void *ctx, const struct message *m, struct err *e) {
    (void)ctx;
    char *line = message_encode(m);
    if (!line) return err_set(e, RC_INTERNAL, "a message cannot be encoded");
    bool written = fputs(line, stdout) >= 0 && fflush(stdout) == 0;
    free(line);
    return written ? RC_OK : err_errno(e, "cannot write to stdout");
}

static enum rc nothing_cached(void *ctx, enum cache_name cache, json_t *keys, json_t **entries, struct err *e) {
    (void)ctx, (void)cache, (void)keys, (void)e;
    *entries = json_object();
    return RC_OK;
}

/* {"name", "path"} of a model or dataset: beneath `folder` when given. */
static json_t *named_file(const char *name, const char *folder) {
    char *joined = folder ? xasprintf("%s/%s", folder, name) : xstrdup(name);
    char *path = realpath(joined, NULL);
    json_t *out = json_pack("{ss ss}", "name", name, "path", path ? path : joined);
    free(path);
    free(joined);
    return out;
}

/* What is read of an earlier run. */
struct output {
    json_t *rows, *result;
    const char *arithmetic; /* in which its rows must have been made; NULL: any */
    bool made_so;           /* its hello says that they were */
};

static enum rc collect_row(const struct msg_row *row, struct output *out, struct err *e) {
    if (out->arithmetic && !out->made_so)
        return err_set(e, RC_CONFLICT,
                       "its rows were not made in %s, in which this worker computes: choose the device and the "
                       "precision of that run, or begin anew",
                       out->arithmetic);
    json_array_append_new(
        out->rows, json_pack("{ss sI sO}", "phase", row->phase, "index", (json_int_t)row->index, "data", row->data));
    return RC_OK;
}

static enum rc collect_line(const char *line, size_t len, struct output *out, struct err *e) {
    struct message m;
    enum rc rc = RC_OK;
    TRY(message_decode(line, len, &m, e));
    if (m.type == MSG_HELLO) out->made_so = out->arithmetic && !strcmp(m.hello.arithmetic, out->arithmetic);
    if (m.type == MSG_ROW) rc = collect_row(&m.row, out, e);
    if (m.type == MSG_RESULT) json_object_update(out->result, m.result.result);
    message_release(&m);
    return rc;
}

/* Where a run ended that was killed: it is gone on from the line before. */
static bool is_cut_off(const char *line, ssize_t n, const struct output *out) {
    return out->arithmetic && line[n - 1] != '\n';
}

/* Rows and result out of what an earlier run printed. */
static enum rc read_output(const char *path, struct output *out, struct err *e) {
    FILE *file = fopen(path, "r");
    if (!file) return err_errno(e, "cannot open %s", path);
    char *line = NULL;
    size_t capacity = 0;
    enum rc rc = RC_OK;
    for (ssize_t n; rc == RC_OK && (n = getline(&line, &capacity, file)) > 0 && !is_cut_off(line, n, out);)
        rc = collect_line(line, (size_t)n - (line[n - 1] == '\n'), out, e);
    free(line);
    fclose(file);
    return rc == RC_OK ? RC_OK : err_context(e, "%s", path);
}

static enum rc add_input(const char *text, json_t *inputs, struct err *e) {
    const char *equals = strchr(text, '=');
    if (!equals) return err_set(e, RC_INVALID, "--input takes MEMBER=FILE, not \"%s\"", text);
    char *member = xstrndup(text, (size_t)(equals - text));
    struct output out = {.rows = json_array(), .result = json_object()};
    enum rc rc = read_output(equals + 1, &out, e);
    json_object_set_new(inputs, member,
                        json_pack("{ss so so}", "job", equals + 1, "result", out.result, "rows", out.rows));
    free(member);
    return rc;
}

/* What the spec calibrates on, or else the allocation that it names. */
static const char *calibration_dataset(const json_t *document) {
    const json_t *calibration = json_object_get(json_object_get(document, "spec"), "calibration");
    const json_t *allocation = json_object_get(json_object_get(document, "inputs"), "allocation");
    if (!calibration) calibration = json_object_get(json_object_get(allocation, "result"), "calibration");
    return json_string_value(json_object_get(calibration, "dataset"));
}

static bool is_in(const char *folder, const char *name) {
    if (!folder) return false;
    char *path = xasprintf("%s/%s/config.json", folder, name);
    bool there = access(path, R_OK) == 0;
    free(path);
    return there;
}

/* What the spec makes lies in the folder of artifacts; what it reads there too, or where models do. */
static void add_artifact(const struct run_options *o, json_t *document) {
    const json_t *spec = json_object_get(document, "spec");
    const char *made = json_string_value(json_object_get(spec, "name"));
    const char *read = json_string_value(json_object_get(spec, "artifact"));
    if (made) json_object_set_new(document, "artifact", named_file(made, o->artifacts));
    const char *folder = read && is_in(o->artifacts, read) ? o->artifacts : o->models;
    if (read) json_object_set_new(document, "artifact", named_file(read, folder));
}

/* A profile's only dataset is what it calibrates on. */
static void add_files(const struct run_options *o, json_t *document) {
    const json_t *spec = json_object_get(document, "spec");
    const char *model = json_string_value(json_object_get(spec, "model"));
    const char *dataset = json_string_value(json_object_get(spec, "dataset"));
    const char *calibration = calibration_dataset(document), *kind = json_string_value(json_object_get(spec, "kind"));
    bool profile = kind && !strcmp(kind, "profile");
    if (model) json_object_set_new(document, "model", named_file(model, o->models));
    if (calibration)
        json_object_set_new(document, profile ? "dataset" : "calibration", named_file(calibration, o->datasets));
    if (dataset) json_object_set_new(document, "dataset", named_file(dataset, o->datasets));
    add_artifact(o, document);
}

/* The members of a start message, in one object that owns them. */
static enum rc gather(const struct run_options *o, const char *arithmetic, json_t *document, struct err *e) {
    json_t *spec = NULL, *inputs = json_object();
    struct output earlier = {.rows = json_array(), .result = json_object(), .arithmetic = arithmetic};
    json_object_set_new(document, "rows", earlier.rows);
    json_object_set_new(document, "inputs", inputs);
    json_object_set_new(document, "earlier", earlier.result);
    TRY(json_parse_file(o->spec, SPEC_FILE_MAX, &spec, e));
    json_object_set_new(document, "spec", spec);
    if (o->resume) TRY(read_output(o->resume, &earlier, e));
    for (int i = 0; i < o->input_count; i++)
        TRY(add_input(o->inputs[i], inputs, e));
    add_files(o, document);
    return RC_OK;
}

static enum rc execute(const struct worker *worker, const json_t *document, struct err *e) {
    static const atomic_bool never;
    struct job_link link = {.send = print_message, .lookup = nothing_cached};
    struct msg_start start = {.job = run_job_id,
                              .attempt = 1,
                              .spec = json_object_get(document, "spec"),
                              .model = json_object_get(document, "model"),
                              .dataset = json_object_get(document, "dataset"),
                              .calibration = json_object_get(document, "calibration"),
                              .artifact = json_object_get(document, "artifact"),
                              .inputs = json_object_get(document, "inputs"),
                              .rows = json_object_get(document, "rows")};
    struct message end = {.type = MSG_RESULT, .result = {.job = run_job_id}};
    enum rc rc = worker_execute(worker, &start, &link, &never, &end.result.result, e);
    json_t *result = end.result.result;
    if (rc != RC_OK) end = (struct message){.type = MSG_ERROR, .error = {.job = run_job_id, .err = *e}};
    struct err print;
    enum rc printed = print_message(NULL, &end, &print);
    json_decref(result);
    if (rc == RC_OK && printed != RC_OK) *e = print;
    return rc == RC_OK ? printed : rc;
}

enum rc run_by_hand(const struct worker *worker, const struct run_options *options, struct err *e) {
    json_t *document = json_object();
    struct message hello = worker_hello(worker);
    enum rc rc = gather(options, hello.hello.arithmetic, document, e);
    if (rc == RC_OK) rc = print_message(NULL, &hello, e);
    if (rc == RC_OK) rc = execute(worker, document, e);
    json_decref(document);
    return rc;
}
