/* The transitions of a job, each with all that follows from it (job_change of jobs.h). */
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/mem.h"
#include "daemon/store/jobs.h"
#include "daemon/store/rows.h"

/* The part of a job that transitions change: read, changed in memory by the action, written back. */
struct life {
    enum job_state state;
    int64_t attempt, started_at; /* started_at 0: not yet */
    json_t *losses;              /* array */
    json_t *error;               /* or NULL */
};

static void life_release(struct life *life) {
    json_decref(life->losses);
    json_decref(life->error);
}

static enum rc life_read(struct db *db, const char *id, struct life *life, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    *life = (struct life){0};
    TRY(db_query(db, &stmt, e, "SELECT state, attempt, started_at, losses FROM job WHERE id = ?", "t", id));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return err_set(e, RC_NOT_FOUND, "there is no job \"%.64s\"", id);
    job_state_from_name((const char *)sqlite3_column_text(stmt, 0), &life->state);
    life->attempt = sqlite3_column_int64(stmt, 1);
    life->started_at = sqlite3_column_int64(stmt, 2);
    enum rc rc =
        json_parse((const char *)sqlite3_column_text(stmt, 3), (size_t)sqlite3_column_bytes(stmt, 3), &life->losses, e);
    sqlite3_reset(stmt);
    return rc;
}

static enum rc life_write(struct db *db, const struct job_change *change, const struct life *life, struct err *e) {
    char *losses = json_line(life->losses), *error = life->error ? json_line(life->error) : NULL;
    enum rc rc = db_run(db, e,
                        "UPDATE job SET state = ?1, attempt = ?2, losses = ?3, error = ?4, started_at = nullif(?5, 0), "
                        "finished_at = nullif(?6, 0), ran_on = coalesce(?7, ran_on), arithmetic = coalesce(?8, "
                        "arithmetic), model_stamp = coalesce(?9, model_stamp), progress = coalesce(?10, progress), "
                        "version = version + 1 WHERE id = ?11",
                        "tittiittttt", job_state_names[life->state], life->attempt, losses, error, life->started_at,
                        job_ended(life->state) ? time_now_ms() : (int64_t)0, change->device, change->arithmetic,
                        change->model_stamp, change->progress, change->job);

    free(losses);
    free(error);
    return rc;
}

/* The worker was lost: another attempt, or the end, naming how each attempt ended. */
static void lose(const struct job_change *change, struct life *life) {
    json_t *loss = json_deep_copy(change->loss);

    json_object_set_new(loss, "attempt", json_integer(life->attempt));
    json_array_append_new(life->losses, loss);
    if (json_array_size(life->losses) < JOB_LOSSES_MAX) return;
    life->state = JOB_FAILED;
    life->error =
        json_pack("{s:s, s:o, s:O}", "code", "worker_lost", "message",
                  json_sprintf("the worker was lost in each of %d attempts", JOB_LOSSES_MAX), "attempts", life->losses);
}

static void act(const struct job_change *change, struct life *life) {
    switch (change->action) {
    case ACTION_START:
        life->attempt = (int64_t)json_array_size(life->losses) + 1;
        if (!life->started_at) life->started_at = time_now_ms();
        break;
    case ACTION_FAIL: life->error = json_deep_copy(change->error); break;
    case ACTION_RETRY:
        json_array_clear(life->losses);
        life->attempt = life->started_at = 0;
        break;
    case ACTION_LOSE: lose(change, life); break;
    default: break;
    }
}

static enum rc put_result(struct db *db, struct event_list *events, const struct job_change *change, struct err *e) {
    char *text = json_line(change->result);

    if (!text) return err_set(e, RC_INVALID, "the result of job %s is no JSON", change->job);
    enum rc rc = db_run(db, e, "INSERT OR REPLACE INTO result (job, data) VALUES (?, ?)", "tt", change->job, text);
    free(text);
    if (rc != RC_OK) return rc;
    return event_append(
        db, events, change->job, "result",
        json_pack("{s:s, s:o}", "job", change->job, "href", json_sprintf("/v1/jobs/%s/result", change->job)), e);
}

static enum rc put_state_event(struct db *db, struct event_list *events, const struct job_change *change,
                               enum job_state previous, const struct life *life, struct err *e) {
    json_t *data = json_pack("{s:s, s:s, s:s, s:I}", "job", change->job, "state", job_state_names[life->state],
                             "previous", job_state_names[previous], "attempt", (json_int_t)life->attempt);

    if (life->error) json_object_set(data, "error", life->error);
    if (change->loss) json_object_set_new(data, "loss", json_deep_copy(change->loss));
    return event_append(db, events, change->job, "state", data, e);
}

static enum rc change_one(struct db *db, struct event_list *events, const struct job_change *change,
                          enum job_state *state, struct err *e) {
    enum job_state previous;
    struct life life;
    enum rc rc;

    TRY(life_read(db, change->job, &life, e));
    previous = life.state;
    rc = job_state_after(change->action, previous, &life.state, e);
    if (rc == RC_OK) {
        act(change, &life);
        *state = life.state;
        rc = life_write(db, change, &life, e);
    }
    if (rc == RC_OK && change->result) rc = put_result(db, events, change, e);
    if (rc == RC_OK) rc = put_state_event(db, events, change, previous, &life, e);
    life_release(&life);
    return rc;
}

/* A retried job waits again for what it needs; a dependency that has ended badly will never let it start. */
static enum rc check_needs(struct db *db, const char *id, struct err *e) {
    char needs[ID_SIZE] = "";
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e,
                 "SELECT d.needs FROM job_dependency d JOIN job n ON n.id = d.needs WHERE d.job = ? AND n.state IN "
                 "('failed', 'cancelled') LIMIT 1",
                 "t", id));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return RC_OK;
    snprintf(needs, sizeof needs, "%s", (const char *)sqlite3_column_text(stmt, 0));
    sqlite3_reset(stmt);
    return err_set(e, RC_CONFLICT, "job %s needs job %s, which did not succeed: retry that one first", id, needs);
}

static const char recount[] =
    "UPDATE job SET blocked = (SELECT count(*) FROM job_dependency d JOIN job n ON n.id = d.needs WHERE d.job = job.id "
    "AND n.state <> 'succeeded') WHERE id IN (SELECT job FROM job_dependency WHERE needs = ?1) OR id = ?1";

/* A job that waits, and which of those it needs has ended badly. */
struct waiting {
    char job[ID_SIZE], needs[ID_SIZE];
    enum job_state how;
};
struct waiting_list {
    struct waiting *items;
    size_t count, capacity;
};

static enum rc append_waiting(struct db *db, const char *needs, enum job_state how, struct waiting_list *list,
                              struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e,
                 "SELECT d.job FROM job_dependency d JOIN job j ON j.id = d.job WHERE d.needs = ? AND j.state IN "
                 "('queued', 'paused')",
                 "t", needs));
    for (;;) {
        TRY(db_step(db, stmt, &row, e));
        if (!row) return RC_OK;
        GROW(list->items, list->count, list->capacity);
        struct waiting *waiting = &list->items[list->count++];
        waiting->how = how;
        snprintf(waiting->job, ID_SIZE, "%s", (const char *)sqlite3_column_text(stmt, 0));
        snprintf(waiting->needs, ID_SIZE, "%s", needs);
    }
}

static enum rc fail_waiting(struct db *db, struct event_list *events, const struct waiting *waiting, struct err *e) {
    const char *ended = waiting->how == JOB_FAILED ? "failed" : "was cancelled";
    json_t *error =
        json_pack("{s:s, s:o, s:s}", "code", "dependency_failed", "message",
                  json_sprintf("job %s, which this job needs, %s", waiting->needs, ended), "job", waiting->needs);
    struct job_change change = {.job = waiting->job, .action = ACTION_FAIL, .error = error};
    enum job_state state;
    enum rc rc = change_one(db, events, &change, &state, e);

    json_decref(error);
    return rc;
}

/* Fails those that wait for `root`, those that wait for them, and so on: a list, not recursion, as chains may be long.
 * A job that is listed twice has failed already the second time. */
static enum rc fail_dependents(struct db *db, struct event_list *events, const char *root, enum job_state how,
                               struct err *e) {
    struct waiting_list list = {0};
    enum rc rc = append_waiting(db, root, how, &list, e);

    for (size_t i = 0; rc == RC_OK && i < list.count; i++) {
        struct waiting waiting = list.items[i];
        enum job_state state;
        int64_t version;
        rc = job_brief(db, waiting.job, &state, &version, e);
        if (rc != RC_OK || job_ended(state)) continue;
        rc = fail_waiting(db, events, &waiting, e);
        if (rc == RC_OK) rc = append_waiting(db, waiting.job, JOB_FAILED, &list, e);
    }
    free(list.items);
    return rc;
}

enum rc job_change(struct db *db, struct event_list *events, const struct job_change *change, enum job_state *state,
                   struct err *e) {
    if (change->action == ACTION_RETRY) TRY(check_needs(db, change->job, e));
    TRY(change_one(db, events, change, state, e));
    if (change->action == ACTION_RETRY || *state == JOB_SUCCEEDED) TRY(db_run(db, e, recount, "t", change->job));
    if (*state == JOB_FAILED || *state == JOB_CANCELLED) return fail_dependents(db, events, change->job, *state, e);
    return RC_OK;
}
