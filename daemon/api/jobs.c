/* /v1/jobs: submit, look at, steer and remove jobs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/spec.h"
#include "daemon/api/job_json.h"
#include "daemon/api/routes.h"
#include "daemon/api/rows.h"
#include "daemon/app.h"
#include "daemon/http/response.h"
#include "daemon/jobs/commands.h"
#include "daemon/jobs/explain.h"
#include "daemon/jobs/hub.h"
#include "daemon/store/jobs.h"
#include "daemon/store/rows.h"
#include "daemon/store/store.h"

enum { LIST_DEFAULT = 50, LIST_MAX = 500, KEY_MAX = 255 };

static struct db *reader(const struct request *r) {
    return store_reader(request_app(r)->store);
}

static enum rc read_job(struct request *r, struct job_record *job, struct err *e) {
    return job_get(reader(r), request_param(r, "id"), job, request_arena(r), e);
}

/* ---- answers that come later ---- */

/* A request that waits for a command, and then perhaps (Prefer: wait) for the end of its job. */
struct ticket {
    struct app *app;
    struct request *request; /* NULL once the server has answered without us */
    char job[ID_SIZE];
    int status; /* of the answer; 204: no body */
    int wait;   /* seconds */
    struct subscription *watch;
};

static void ticket_free(struct ticket *t) {
    if (t->watch) hub_unsubscribe(t->watch);
    free(t);
}

static void respond_job(struct request *r, int status, const char *id) {
    struct app *app = request_app(r);
    struct job_record job;
    struct err e;

    if (job_get(store_reader(app->store), id, &job, request_arena(r), &e) != RC_OK) {
        respond_error(r, &e);
        return;
    }
    if (status == 202) respond_header(r, "Location", "/v1/jobs/%s", job.id);
    respond_json(r, status, job_json(app, &job));
}

static void ticket_answer(struct ticket *t) {
    struct request *r = t->request;

    if (r && t->status == 204)
        respond_empty(r, 204);
    else if (r)
        respond_job(r, t->status, t->job);
    ticket_free(t);
}

static void on_wait_over(struct request *r, void *data) {
    (void)r;
    ticket_answer(data);
}

/* The command itself goes on; its callback then finds no request. A wait ends here. */
static void on_cancel(struct request *r, void *data) {
    struct ticket *t = data;

    (void)r;
    t->request = NULL;
    if (t->watch) ticket_free(t);
}

static void on_watch(void *ctx) {
    struct ticket *t = ctx;
    enum job_state state;
    int64_t version;
    struct err e;

    if (job_brief(store_reader(t->app->store), t->job, &state, &version, &e) != RC_OK || job_ended(state))
        ticket_answer(t);
}

static void wait_for_end(struct ticket *t) {
    enum job_state state;
    int64_t version;
    struct err e;

    if (job_brief(store_reader(t->app->store), t->job, &state, &version, &e) != RC_OK || job_ended(state)) {
        ticket_answer(t);
        return;
    }
    request_defer(
        t->request,
        &(struct deferral){.cancel = on_cancel, .timeout = on_wait_over, .timeout_ms = t->wait * 1000, .data = t});
    t->watch = hub_subscribe(t->app->hub, t->job, INT64_MAX, on_watch, t);
}

static void on_command(void *ctx, const char *job, const struct problems *problems, const struct err *e) {
    struct ticket *t = ctx;

    snprintf(t->job, sizeof t->job, "%s", job);
    if (!t->request) {
        ticket_free(t);
    } else if (e->rc != RC_OK) {
        if (problems) *request_problems(t->request) = *problems;
        respond_error(t->request, e);
        ticket_free(t);
    } else if (t->wait) {
        wait_for_end(t);
    } else {
        ticket_answer(t);
    }
}

static struct ticket *ticket_new(struct request *r, int status) {
    struct ticket *t = xcalloc(1, sizeof *t);

    *t = (struct ticket){.app = request_app(r), .request = r, .status = status};
    request_defer(r, &(struct deferral){.cancel = on_cancel, .data = t});
    return t;
}

/* ---- submit ---- */

static enum rc check_key(const char *key, struct err *e) {
    size_t len = key ? strlen(key) : 1;

    if (len >= 1 && len <= KEY_MAX) return RC_OK;
    return err_set(e, RC_INVALID, "an Idempotency-Key has 1 to %d bytes", KEY_MAX);
}

static enum rc submit_job(struct request *r, struct err *e) {
    struct app *app = request_app(r);
    struct submission submission = {.spec = request_json(r),
                                    .idempotency_key = request_header(r, "Idempotency-Key"),
                                    .problems = request_problems(r)};
    char existing[ID_SIZE] = "";
    struct ticket *t;
    enum rc rc;

    if (app->draining) return err_set(e, RC_UNAVAILABLE, "the daemon is stopping; submit again after the restart");
    TRY(check_key(submission.idempotency_key, e));
    t = xcalloc(1, sizeof *t);
    *t = (struct ticket){.app = app, .request = r, .status = 202, .wait = request_prefer_wait(r)};
    rc = command_submit(app, &submission, existing, on_command, t, e);
    if (rc != RC_OK) {
        free(t);
        return rc;
    }
    if (t->wait) respond_header(r, "Preference-Applied", "wait=%d", t->wait);
    if (!existing[0]) {
        request_defer(r, &(struct deferral){.cancel = on_cancel, .data = t});
        return RC_OK;
    }
    respond_header(r, "Idempotent-Replayed", "true");
    on_command(t, existing, NULL, &(struct err){0});
    return RC_OK;
}

static json_t *describe_submission(void) {
    json_t *kinds = json_array();

    for (const struct job_kind *kind = job_kinds; kind->name; kind++)
        json_array_append_new(kinds, schema_describe(kind->schema));
    return json_pack("{s:o}", "oneOf", kinds);
}

/* ---- steer ---- */

static enum rc act(struct request *r, enum job_action action) {
    command_act(request_app(r), request_param(r, "id"), action, on_command, ticket_new(r, 200));
    return RC_OK;
}

static enum rc cancel_job(struct request *r, struct err *e) {
    (void)e;
    return act(r, ACTION_CANCEL);
}

static enum rc pause_job(struct request *r, struct err *e) {
    (void)e;
    return act(r, ACTION_PAUSE);
}

static enum rc resume_job(struct request *r, struct err *e) {
    (void)e;
    return act(r, ACTION_RESUME);
}

static enum rc retry_job(struct request *r, struct err *e) {
    (void)e;
    return act(r, ACTION_RETRY);
}

static enum rc delete_job(struct request *r, struct err *e) {
    (void)e;
    command_delete(request_app(r), request_param(r, "id"), on_command, ticket_new(r, 204));
    return RC_OK;
}

struct patch {
    int64_t priority;
    const char *label, *device;
    bool has_priority, has_label;
};
static const struct field patch_fields[] = {
    {.name = "priority",
     .type = FIELD_INT,
     .offset = offsetof(struct patch, priority),
     .min = -100,
     .max = 100,
     .presence = offsetof(struct patch, has_priority) + 1},
    {.name = "label",
     .type = FIELD_STRING,
     .offset = offsetof(struct patch, label),
     .max = 200, /* as in a spec */
     .presence = offsetof(struct patch, has_label) + 1},
    {.name = "device", .type = FIELD_STRING, .offset = offsetof(struct patch, device), .min = 1, .max = 32},
    {0},
};
static const struct schema patch_schema = {
    .name = "a change of a job", .fields = patch_fields, .size = sizeof(struct patch)};

static enum rc check_device(struct request *r, const char *device, struct err *e) {
    const struct job_kind *kind;
    struct job_record job;

    TRY(read_job(r, &job, e));
    kind = job_kind_find(job.kind);
    if (!kind) return err_set(e, RC_UNSUPPORTED, "this hsaqd has no job kind \"%s\"", job.kind);
    return devices_check(&request_app(r)->devices, kind->lane, device, e);
}

/* A label that is null takes the label away; the table takes null for absent, so it is looked at here. */
static enum rc patch_job(struct request *r, struct err *e) {
    struct patch body = {0};
    struct job_patch patch;

    TRY(request_decode_body(r, &body, e));
    if (body.device) TRY(check_device(r, body.device, e));
    patch = (struct job_patch){.priority = body.has_priority ? &body.priority : NULL,
                               .set_label = json_object_get(request_json(r), "label") != NULL,
                               .set_device = body.device != NULL,
                               .label = body.label,
                               .device = devices_pin(body.device)};
    if (!patch.priority && !patch.set_label && !patch.set_device)
        return err_set(e, RC_INVALID, "nothing to change: give priority, label or device");
    command_patch(request_app(r), request_param(r, "id"), &patch, on_command, ticket_new(r, 200));
    return RC_OK;
}

/* ---- look ---- */

static enum rc get_job(struct request *r, struct err *e) {
    struct app *app = request_app(r);
    const char *id = request_param(r, "id");
    enum job_state state;
    int64_t version, progress_version;
    char etag[64];

    TRY(job_brief(reader(r), id, &state, &version, e));
    json_decref(hub_progress_get(app->hub, id, &progress_version));
    snprintf(etag, sizeof etag, "\"%lld.%lld\"", (long long)version, (long long)progress_version);
    if (!respond_not_modified(r, etag)) respond_job(r, 200, id);
    return RC_OK;
}

struct list_query {
    int state; /* index into states; 0: any */
    const char *kind, *model, *owner, *cursor;
    int64_t limit;
};
static const char *const states[] = {"any", "queued", "running", "paused", "succeeded", "failed", "cancelled", NULL};
static void list_defaults(void *object) {
    ((struct list_query *)object)->limit = LIST_DEFAULT;
}
static const struct field list_fields[] = {
    {.name = "state", .type = FIELD_ENUM, .offset = offsetof(struct list_query, state), .values = states},
    {.name = "kind", .type = FIELD_STRING, .offset = offsetof(struct list_query, kind)},
    {.name = "model", .type = FIELD_STRING, .offset = offsetof(struct list_query, model)},
    {.name = "owner", .type = FIELD_STRING, .offset = offsetof(struct list_query, owner)},
    {.name = "limit", .type = FIELD_INT, .offset = offsetof(struct list_query, limit), .min = 1, .max = LIST_MAX},
    {.name = "cursor", .type = FIELD_STRING, .offset = offsetof(struct list_query, cursor)},
    {0},
};
static const struct schema list_schema = {
    .name = "job_list", .fields = list_fields, .size = sizeof(struct list_query), .defaults = list_defaults};

struct listing {
    struct app *app;
    json_t *items;
    int64_t limit;
    bool more;
    char last[ID_SIZE];
};

static void append_job(void *ctx, const struct job_record *job) {
    struct listing *list = ctx;

    if (list->limit-- == 0) {
        list->more = true;
        return;
    }
    memcpy(list->last, job->id, sizeof list->last);
    json_array_append_new(list->items, job_json(list->app, job));
}

/* One more than asked for tells whether there is a next page. */
static enum rc list_jobs(struct request *r, struct err *e) {
    struct list_query q;

    TRY(request_decode_query(r, &q, e));
    if (q.cursor && !id_valid(q.cursor)) return err_at(e, "?cursor", RC_INVALID, "is not a cursor that was handed out");
    if (q.kind && !job_kind_find(q.kind)) return err_at(e, "?kind", RC_INVALID, "there is no such kind of job");
    struct job_filter filter = {.state = q.state ? states[q.state] : NULL,
                                .kind = q.kind,
                                .model = q.model,
                                .owner = q.owner,
                                .before = q.cursor,
                                .limit = q.limit + 1};
    struct listing list = {.app = request_app(r), .items = json_array(), .limit = q.limit};
    enum rc rc = job_list(reader(r), &filter, append_job, &list, e);
    if (rc != RC_OK) {
        json_decref(list.items);
        return rc;
    }
    respond_json(r, 200, json_pack("{s:o, s:s?}", "items", list.items, "next", list.more ? list.last : NULL));
    return RC_OK;
}

static enum rc get_result(struct request *r, struct err *e) {
    struct job_record job;
    char *text;

    TRY(read_job(r, &job, e));
    if (job.state != JOB_SUCCEEDED)
        return err_set(e, job_ended(job.state) ? RC_NOT_FOUND : RC_CONFLICT, "job %s is %s and has no result%s", job.id,
                       job_state_names[job.state], job_ended(job.state) ? "" : " yet");
    TRY(result_get(reader(r), job.id, &text, e));
    respond_json_text(r, 200, text, strlen(text));
    return RC_OK;
}

static enum rc explain(struct request *r, struct err *e) {
    struct job_record job;
    json_t *body;

    TRY(read_job(r, &job, e));
    TRY(explain_job(request_app(r), &job, &body, e));
    respond_json(r, 200, body);
    return RC_OK;
}

const struct route jobs_routes[] = {
    {.method = "POST",
     .pattern = "/v1/jobs",
     .id = "submitJob",
     .handler = submit_job,
     .body_type = BODY_JSON,
     .describe_body = describe_submission},
    {.method = "GET", .pattern = "/v1/jobs", .id = "listJobs", .handler = list_jobs, .query = &list_schema},
    {.method = "GET", .pattern = "/v1/jobs/{id}", .id = "getJob", .handler = get_job},
    {.method = "PATCH",
     .pattern = "/v1/jobs/{id}",
     .id = "patchJob",
     .handler = patch_job,
     .body_type = BODY_JSON,
     .body = &patch_schema},
    {.method = "DELETE", .pattern = "/v1/jobs/{id}", .id = "deleteJob", .handler = delete_job},
    {.method = "POST", .pattern = "/v1/jobs/{id}/cancel", .id = "cancelJob", .handler = cancel_job},
    {.method = "POST", .pattern = "/v1/jobs/{id}/pause", .id = "pauseJob", .handler = pause_job},
    {.method = "POST", .pattern = "/v1/jobs/{id}/resume", .id = "resumeJob", .handler = resume_job},
    {.method = "POST", .pattern = "/v1/jobs/{id}/retry", .id = "retryJob", .handler = retry_job},
    {.method = "GET", .pattern = "/v1/jobs/{id}/result", .id = "getJobResult", .handler = get_result},
    {.method = "GET",
     .pattern = "/v1/jobs/{id}/rows",
     .id = "getJobRows",
     .handler = get_rows,
     .query = &rows_query_schema,
     .produces = "application/json, text/csv, application/x-ndjson"},
    {.method = "GET", .pattern = "/v1/jobs/{id}/explain", .id = "explainJob", .handler = explain},
    {0},
};
