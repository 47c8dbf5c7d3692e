#include "daemon/api/job_json.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "daemon/jobs/hub.h"

static json_t *time_json(int64_t ms) {
    char text[TIME_SIZE];

    return ms ? json_string(time_format(ms, text)) : json_null();
}

/* What the store holds was JSON when it went in. */
static json_t *stored_json(const char *text) {
    json_t *value;
    struct err ignored;

    return text && json_parse(text, strlen(text), &value, &ignored) == RC_OK ? value : json_null();
}

/* What has stopped short of its end has no speed and no ETA. */
static json_t *progress_json(struct app *app, const struct job_record *job) {
    int64_t version;
    json_t *progress = job->state == JOB_RUNNING ? hub_progress_get(app->hub, job->id, &version) : NULL;

    if (progress) return progress;
    progress = stored_json(job->progress);
    if (json_is_object(progress) && job->state != JOB_SUCCEEDED) {
        json_object_set_new(progress, "rate", json_null());
        json_object_set_new(progress, "eta_seconds", json_null());
    }
    return progress;
}

static void add_link(json_t *links, const char *name, const struct job_record *job) {
    bool self = !strcmp(name, "self");

    json_object_set_new(links, name, json_sprintf("/v1/jobs/%s%s%s", job->id, self ? "" : "/", self ? "" : name));
}

static json_t *links_json(const struct job_record *job) {
    json_t *links = json_object();

    add_link(links, "self", job);
    add_link(links, "events", job);
    add_link(links, "explain", job);
    add_link(links, "rows", job);
    if (job->state == JOB_SUCCEEDED) add_link(links, "result", job);
    return links;
}

json_t *job_json(struct app *app, const struct job_record *job) {
    return json_pack("{s:s, s:s, s:s?, s:s, s:o, s:s, s:I, s:s?, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "id", job->id,
                     "kind", job->kind, "label", job->label, "state", job_state_names[job->state], "spec",
                     stored_json(job->spec), "owner", job->owner, "priority", (json_int_t)job->priority, "device",
                     job->ran_on ? job->ran_on : job->device, "attempt", (json_int_t)job->attempt, "created_at",
                     time_json(job->created_at), "started_at", time_json(job->started_at), "finished_at",
                     time_json(job->finished_at), "progress", progress_json(app, job), "error", stored_json(job->error),
                     "links", links_json(job));
}
