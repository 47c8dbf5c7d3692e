#include "daemon/jobs/explain.h"

#include <string.h>

#include "daemon/jobs/scheduler.h"
#include "daemon/store/store.h"

static void add(json_t *reasons, const char *code, const char *job, json_t *detail) {
    json_t *reason = json_pack("{s:s, s:o}", "code", code, "detail", detail);

    if (job) json_object_set_new(reason, "job", json_string(job));
    json_array_append_new(reasons, reason);
}

static void add_dependency(void *ctx, const char *needs, const char *kind, enum job_state state) {
    if (state == JOB_SUCCEEDED) return;
    add(ctx, "dependency", needs,
        json_sprintf("waits for job %s (%s), which is %s", needs, kind, job_state_names[state]));
}

static void add_lane(const struct device_status *lane, const char *job, json_t *reasons) {
    if (lane->job && strcmp(lane->job, job) != 0)
        add(reasons, "busy", lane->job, json_sprintf("device %s runs job %s", lane->name, lane->job));
    else if (!strcmp(lane->worker, "starting"))
        add(reasons, "worker_starting", NULL, json_sprintf("the worker of device %s is starting", lane->name));
    else if (lane->last_error && strcmp(lane->worker, "ready") != 0)
        add(reasons, "worker_failing", NULL,
            json_sprintf("the worker of device %s is started again soon; it said: %s", lane->name, lane->last_error));
}

static enum rc add_queue(struct app *app, const struct job_record *job, json_t *out, json_t *reasons, struct err *e) {
    struct device_status lane;
    int64_t ahead;

    TRY(job_position(store_reader(app->store), job, &ahead, e));
    json_object_set_new(out, "position", json_integer(ahead + 1));
    if (ahead)
        add(reasons, "queue", NULL,
            json_sprintf("%lld job(s) of higher priority, or submitted earlier, run before it", (long long)ahead));
    for (size_t i = 0; i < scheduler_devices(app->scheduler); i++) {
        scheduler_device(app->scheduler, i, &lane);
        if (!strcmp(lane.lane, job->lane)) add_lane(&lane, job->id, reasons);
    }
    if (!json_array_size(reasons)) add(reasons, "starting", NULL, json_string("it is about to start"));
    return RC_OK;
}

static enum rc add_reasons(struct app *app, const struct job_record *job, json_t *out, json_t *reasons, struct err *e) {
    if (job->state == JOB_PAUSED) add(reasons, "paused", NULL, json_string("it is paused: resume it"));
    if (job->state != JOB_QUEUED) return RC_OK;
    if (app->draining) add(reasons, "draining", NULL, json_string("the daemon is stopping: it runs after the restart"));
    if (!job->blocked) return add_queue(app, job, out, reasons, e);
    return job_needs(store_reader(app->store), job->id, add_dependency, reasons, e);
}

enum rc explain_job(struct app *app, const struct job_record *job, json_t **out, struct err *e) {
    json_t *reasons = json_array();
    bool waiting = job->state == JOB_QUEUED || job->state == JOB_PAUSED;

    *out = json_pack("{s:s, s:s, s:b, s:n, s:o}", "job", job->id, "state", job_state_names[job->state], "waiting",
                     waiting, "position", "reasons", reasons);
    enum rc rc = add_reasons(app, job, *out, reasons, e);
    if (rc != RC_OK) json_decref(*out);
    return rc;
}
