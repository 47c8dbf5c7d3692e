#include "daemon/jobs/explain.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
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

/* Whether the lane cannot take the job now; then `reasons` says why. */
static bool add_lane(const struct device_status *lane, const char *job, json_t *reasons) {
    if (lane->job && strcmp(lane->job, job) != 0)
        add(reasons, "busy", lane->job, json_sprintf("device %s runs job %s", lane->name, lane->job));
    else if (!strcmp(lane->worker, "starting"))
        add(reasons, "worker_starting", NULL, json_sprintf("the worker of device %s is starting", lane->name));
    else if (!strcmp(lane->state, "down"))
        add(reasons, "worker_failing", NULL,
            json_sprintf("the worker of device %s is started again soon; it said: %s", lane->name,
                         lane->last_error ? lane->last_error : ""));
    else
        return false;
    return true;
}

static bool is_split(const struct job_record *job) {
    return job->device && !strcmp(job->device, DEVICES_ALL);
}

static bool suits(const struct device_status *lane, const struct job_record *job) {
    return !strcmp(lane->lane, job->lane) && (!job->device || is_split(job) || !strcmp(job->device, lane->name));
}

/* A job that is split needs all devices, and the worker that opens them. */
static void add_every_lane(struct app *app, const struct job_record *job, json_t *reasons) {
    struct device_status lane;

    if (scheduler_split_lane(app->scheduler, &lane) && add_lane(&lane, job->id, reasons)) return;
    for (size_t i = 0; i < scheduler_devices(app->scheduler); i++) {
        scheduler_device(app->scheduler, i, &lane);
        if (suits(&lane, job)) add_lane(&lane, job->id, reasons);
    }
}

/* What holds up one lane does not matter while another could take the job. */
static void add_lanes(struct app *app, const struct job_record *job, json_t *reasons) {
    json_t *held_up = json_array();
    struct device_status lane;
    bool all = true;

    for (size_t i = 0; i < scheduler_devices(app->scheduler); i++) {
        scheduler_device(app->scheduler, i, &lane);
        if (suits(&lane, job)) all = add_lane(&lane, job->id, held_up) && all;
    }
    if (all) json_array_extend(reasons, held_up);
    json_decref(held_up);
}

/* A job that asks for a device is in line with those that may take it before; split jobs take every one. */
static enum rc count_ahead(struct app *app, const struct job_record *job, int64_t *ahead, struct err *e) {
    bool pinned = job->device && !is_split(job);
    char *pin = pinned ? xasprintf("[\"%s\",\"" DEVICES_ALL "\"]", job->device) : NULL;
    enum rc rc = job_position(store_reader(app->store), job, pin ? pin : app->devices.json, ahead, e);

    free(pin);
    return rc;
}

static enum rc add_queue(struct app *app, const struct job_record *job, json_t *out, json_t *reasons, struct err *e) {
    int64_t ahead;

    TRY(count_ahead(app, job, &ahead, e));
    json_object_set_new(out, "position", json_integer(ahead + 1));
    if (ahead)
        add(reasons, "queue", NULL,
            json_sprintf("%lld job(s) of higher priority, or submitted earlier, run before it", (long long)ahead));
    if (is_split(job))
        add_every_lane(app, job, reasons);
    else
        add_lanes(app, job, reasons);
    if (!json_array_size(reasons)) add(reasons, "starting", NULL, json_string("it is about to start"));
    return RC_OK;
}

/* The daemon was started again with fewer devices. */
static void add_missing(struct app *app, const struct job_record *job, json_t *reasons) {
    add(reasons, "device_missing", NULL,
        json_sprintf("it asks for device %s, and there is %s: start hsaqd with that device, give the job another one "
                     "(PATCH its \"device\", \"auto\" for any), or cancel it",
                     job->device, app->devices.names));
}

static enum rc add_reasons(struct app *app, const struct job_record *job, json_t *out, json_t *reasons, struct err *e) {
    if (job->state == JOB_PAUSED) add(reasons, "paused", NULL, json_string("it is paused: resume it"));
    if (job->state != JOB_QUEUED) return RC_OK;
    if (app->draining) add(reasons, "draining", NULL, json_string("the daemon is stopping: it runs after the restart"));
    bool missing = job->device && !is_split(job) && !devices_have(&app->devices, job->device);
    if (missing) add_missing(app, job, reasons);
    if (!missing && !job->blocked) return add_queue(app, job, out, reasons, e);
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
