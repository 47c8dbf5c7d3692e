#include "worker/pipeline/job.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "worker/pipeline/team.h"

static const int64_t progress_interval_ns = 100 * 1000 * 1000;

static const struct {
    const char *kind;
    pipeline_fn run;
} pipelines[] = {
    {"profile", pipeline_profile},   {"allocation", pipeline_allocation}, {"eval", pipeline_eval},
    {"quantize", pipeline_quantize}, {"sweep", pipeline_sweep},
};

pipeline_fn pipeline_find(const char *kind) {
    for (size_t i = 0; i < sizeof pipelines / sizeof *pipelines; i++)
        if (!strcmp(pipelines[i].kind, kind)) return pipelines[i].run;
    return NULL;
}

enum { ROW_KEY_SIZE = 64 };

static void row_key(const char *phase, int64_t index, char key[ROW_KEY_SIZE]) {
    snprintf(key, ROW_KEY_SIZE, "%s/%lld", phase, (long long)index);
}

void job_state_init(struct job_state *state, const json_t *rows) {
    *state = (struct job_state){.rows = json_object()};
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row) {
        const char *phase = json_string_value(json_object_get(row, "phase"));
        json_t *data = json_object_get(row, "data");
        if (!phase || !data) continue;
        char key[ROW_KEY_SIZE];
        row_key(phase, json_integer_value(json_object_get(row, "index")), key);
        json_object_set(state->rows, key, data);
    }
}

void job_state_release(struct job_state *state) {
    json_decref(state->rows);
    state->rows = NULL;
}

const json_t *job_row(const struct job *job, const char *phase, int64_t index) {
    if (!job->state) return NULL;
    char key[ROW_KEY_SIZE];
    row_key(phase, index, key);
    return json_object_get(job->state->rows, key);
}

bool job_cancelled(const struct job *job) {
    return (job->cancelled && atomic_load_explicit(job->cancelled, memory_order_relaxed)) || team_failed(job->team);
}

/* Too soon after the last report, or behind it: devices side by side may report in another order than they count. */
static bool superfluous(const struct job_state *state, const struct msg_progress *m, int64_t now) {
    bool too_soon = m->done != m->total && now - state->sent_ns < progress_interval_ns;
    return too_soon || m->done < state->sent_done;
}

/* Fills rate and ETA; false when this report need not go out. */
static bool progress_due(struct job_state *state, struct msg_progress *m) {
    int64_t now = monotonic_ns();
    bool begins = strncmp(state->phase, m->phase, sizeof state->phase - 1) != 0;
    if (begins) {
        snprintf(state->phase, sizeof state->phase, "%s", m->phase);
        state->phase_ns = now;
        state->phase_done = state->sent_done = m->done;
    } else if (superfluous(state, m, now)) {
        return false;
    }
    state->sent_ns = now;
    state->sent_done = m->done;
    double seconds = (double)(now - state->phase_ns) * 1e-9;
    if (m->done > state->phase_done && seconds > 0) {
        m->rate = (double)(m->done - state->phase_done) / seconds;
        m->eta_seconds = (double)(m->total - m->done) / m->rate;
    }
    return true;
}

enum rc emit_progress(const struct job *job, const char *phase, int64_t done, int64_t total, const char *unit,
                      struct err *e) {
    struct message m = {.type = MSG_PROGRESS,
                        .progress = {.job = job->id,
                                     .phase = phase,
                                     .unit = unit,
                                     .done = done,
                                     .total = total,
                                     .eta_seconds = done == total ? 0 : -1}};
    team_lock(job->team);
    bool due = !job->state || progress_due(job->state, &m.progress);
    enum rc rc = due ? job->link->send(job->link->ctx, &m, e) : RC_OK;
    team_unlock(job->team);
    return rc;
}

enum rc emit_row(const struct job *job, const char *phase, int64_t index, const json_t *data, const char *cache_key,
                 struct err *e) {
    struct message m = {
        .type = MSG_ROW,
        .row = {.job = job->id, .phase = phase, .index = index, .data = (json_t *)data, .cache_key = cache_key}};
    team_lock(job->team);
    enum rc rc = job->link->send(job->link->ctx, &m, e);
    team_unlock(job->team);
    return rc;
}
