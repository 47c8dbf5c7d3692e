#include "worker/bench/timed_job.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"

#define CLEAR_LINE "\r\033[K"

static enum rc show_progress(void *ctx, const struct message *m, struct err *e) {
    (void)e;
    const struct timed_job *j = ctx;
    if (m->type != MSG_PROGRESS || !isatty(STDERR_FILENO)) return RC_OK;
    double share = m->progress.total > 0 ? (double)m->progress.done / (double)m->progress.total : 0;
    fprintf(stderr, CLEAR_LINE "%s: %s %.0f%%", j->name, m->progress.phase, 100 * share);
    return RC_OK;
}

static void hide_progress(void) {
    if (isatty(STDERR_FILENO)) fputs(CLEAR_LINE, stderr);
}

static enum rc nothing_cached(void *ctx, enum cache_name cache, json_t *keys, json_t **entries, struct err *e) {
    (void)ctx, (void)cache, (void)keys, (void)e;
    *entries = json_object();
    return RC_OK;
}

struct job timed_job_bare(const struct worker *worker, const struct source *source) {
    return (struct job){.id = "bench",
                        .source = source,
                        .backend = worker->backend,
                        .device = worker->device,
                        .ram_limit = worker->ram_limit,
                        .scratch = worker->scratch};
}

/* A profile keeps its rate among its rows, an eval at the top. */
static enum rc walk_seconds(const json_t *result, int64_t tokens, struct job_time *time, struct err *e) {
    const json_t *rows = json_object_get(result, "rows");
    double rate = 0;
    time->walk = time->total;
    time->load = NAN;
    TRY(json_get_number(rows ? rows : result, "tokens_per_second", &rate, e));
    TRY(json_get_number(rows ? rows : result, "load_seconds", &time->load, e));
    if (rate > 0) time->walk = (double)tokens / rate;
    return RC_OK;
}

enum rc timed_job_run(const struct timed_job *j, struct job_time *time, struct err *e) {
    struct job_link link = {.send = show_progress, .lookup = nothing_cached, .ctx = (void *)j};
    struct job_state state;
    struct job job = timed_job_bare(j->worker, j->source);
    json_t *result = NULL;
    job.kind = job_kind_find(j->spec->common.kind);
    job.spec = j->spec;
    job.link = &link;
    job.devices = j->worker->devices;
    job.device_count = j->worker->device_count;
    job.state = &state;
    job_state_init(&state, NULL);
    double begin = monotonic_seconds();
    enum rc rc = j->pipeline(&job, &result, e);
    time->total = monotonic_seconds() - begin;
    hide_progress();
    if (rc == RC_OK) rc = walk_seconds(result, j->tokens, time, e);
    json_decref(result);
    job_state_release(&state);
    return rc;
}
