#include "daemon/store/jobs.h"

#include <stdio.h>
#include <string.h>

/* The order of read_record. A macro, so that each statement stays one literal. */
#define COLUMNS                                                                                                        \
    "id, state, kind, label, spec, owner, lane, device, ran_on, model, dataset, dataset_sha256, model_stamp, losses, " \
    "progress, error, calibration, calibration_sha256, priority, blocked, attempt, version, created_at, started_at, "  \
    "finished_at"

static const char *copy_text(sqlite3_stmt *stmt, int column, struct arena *arena) {
    const char *text = (const char *)sqlite3_column_text(stmt, column);

    return text ? arena_strdup(arena, text) : NULL;
}

static void read_record(sqlite3_stmt *stmt, struct job_record *job, struct arena *arena) {
    const char **texts[] = {&job->kind,     &job->label,          &job->spec,        &job->owner,
                            &job->lane,     &job->device,         &job->ran_on,      &job->model,
                            &job->dataset,  &job->dataset_sha256, &job->model_stamp, &job->losses,
                            &job->progress, &job->error,          &job->calibration, &job->calibration_sha256};
    int64_t *numbers[] = {&job->priority,   &job->blocked,    &job->attempt,    &job->version,
                          &job->created_at, &job->started_at, &job->finished_at};
    int column = 2;

    snprintf(job->id, sizeof job->id, "%s", (const char *)sqlite3_column_text(stmt, 0));
    job_state_from_name((const char *)sqlite3_column_text(stmt, 1), &job->state);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        *texts[i] = copy_text(stmt, column++, arena);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        *numbers[i] = sqlite3_column_int64(stmt, column++);
}

static enum rc no_such_job(const char *id, struct err *e) {
    return err_set(e, RC_NOT_FOUND, "there is no job \"%.64s\"", id);
}

enum rc job_get(struct db *db, const char *id, struct job_record *out, struct arena *arena, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e, "SELECT " COLUMNS " FROM job WHERE id = ?", "t", id));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return no_such_job(id, e);
    read_record(stmt, out, arena);
    sqlite3_reset(stmt);
    return RC_OK;
}

enum rc job_brief(struct db *db, const char *id, enum job_state *state, int64_t *version, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e, "SELECT state, version FROM job WHERE id = ?", "t", id));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return no_such_job(id, e);
    job_state_from_name((const char *)sqlite3_column_text(stmt, 0), state);
    *version = sqlite3_column_int64(stmt, 1);
    sqlite3_reset(stmt);
    return RC_OK;
}

enum rc job_list(struct db *db, const struct job_filter *f, void (*visit)(void *ctx, const struct job_record *job),
                 void *ctx, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e,
                 "SELECT " COLUMNS " FROM job WHERE (?1 IS NULL OR id < ?1) AND (?2 IS NULL OR state = ?2) AND "
                 "(?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR model = ?4) AND (?5 IS NULL OR owner = ?5) "
                 "ORDER BY id DESC LIMIT ?6",
                 "ttttti", f->before, f->state, f->kind, f->model, f->owner, f->limit));
    for (;;) {
        TRY(db_step(db, stmt, &row, e));
        if (!row) return RC_OK;
        struct job_record job;
        struct arena arena = {0};
        read_record(stmt, &job, &arena);
        visit(ctx, &job);
        arena_release(&arena);
    }
}

enum rc job_counts(struct db *db, int64_t counts[JOB_STATES], struct err *e) {
    enum job_state state;
    sqlite3_stmt *stmt;
    bool row;

    memset(counts, 0, JOB_STATES * sizeof *counts);
    TRY(db_query(db, &stmt, e, "SELECT state, count(*) FROM job GROUP BY state", ""));
    for (;;) {
        TRY(db_step(db, stmt, &row, e));
        if (!row) return RC_OK;
        if (job_state_from_name((const char *)sqlite3_column_text(stmt, 0), &state))
            counts[state] = sqlite3_column_int64(stmt, 1);
    }
}

static enum rc query_id(struct db *db, sqlite3_stmt *stmt, char id[ID_SIZE], struct err *e) {
    bool row;

    id[0] = '\0';
    TRY(db_step(db, stmt, &row, e));
    if (!row) return RC_OK;
    snprintf(id, ID_SIZE, "%s", (const char *)sqlite3_column_text(stmt, 0));
    sqlite3_reset(stmt);
    return RC_OK;
}

enum rc job_next(struct db *db, const struct job_query *q, char id[ID_SIZE], struct err *e) {
    sqlite3_stmt *stmt;

    TRY(db_query(db, &stmt, e,
                 "SELECT id FROM job WHERE state = 'queued' AND blocked = 0 AND lane = ? AND CASE WHEN device IS NULL "
                 "THEN ? ELSE device IN (SELECT value FROM json_each(?)) END AND id NOT IN (SELECT value FROM "
                 "json_each(?)) ORDER BY priority DESC, id LIMIT 1",
                 "titt", q->lane, (int64_t)q->any, q->devices, q->taken));
    return query_id(db, stmt, id, e);
}

enum rc job_last_id(struct db *db, char id[ID_SIZE], struct err *e) {
    sqlite3_stmt *stmt;

    TRY(db_query(db, &stmt, e, "SELECT id FROM job ORDER BY id DESC LIMIT 1", ""));
    return query_id(db, stmt, id, e);
}

enum rc job_position(struct db *db, const struct job_record *job, const char *devices, int64_t *ahead, struct err *e) {
    return db_query_int(db, ahead, e,
                        "SELECT count(*) FROM job WHERE state = 'queued' AND blocked = 0 AND lane = ?1 AND "
                        "(priority > ?2 OR (priority = ?2 AND id < ?3)) AND "
                        "(device IS NULL OR device IN (SELECT value FROM json_each(?4)))",
                        "titt", job->lane, job->priority, job->id, devices);
}

enum rc job_needs(struct db *db, const char *id,
                  void (*visit)(void *ctx, const char *needs, const char *kind, enum job_state state), void *ctx,
                  struct err *e) {
    enum job_state state;
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e,
                 "SELECT d.needs, n.kind, n.state FROM job_dependency d JOIN job n ON n.id = d.needs WHERE d.job = ? "
                 "ORDER BY d.needs",
                 "t", id));
    for (;;) {
        TRY(db_step(db, stmt, &row, e));
        if (!row) return RC_OK;
        if (job_state_from_name((const char *)sqlite3_column_text(stmt, 2), &state))
            visit(ctx, (const char *)sqlite3_column_text(stmt, 0), (const char *)sqlite3_column_text(stmt, 1), state);
    }
}

/* How many of its dependencies have not succeeded: always counted anew, never adjusted. */
#define RECOUNT                                                                                                        \
    "blocked = (SELECT count(*) FROM job_dependency d JOIN job n ON n.id = d.needs WHERE d.job = job.id AND "          \
    "n.state <> 'succeeded')"

enum rc job_insert(struct db *db, struct event_list *events, const struct job_insert *insert, struct err *e) {
    const struct job_record *job = &insert->job;

    TRY(db_run(db, e,
               "INSERT INTO job (id, kind, label, state, spec, owner, priority, lane, device, model, dataset, "
               "dataset_sha256, calibration, calibration_sha256, blocked, created_at) VALUES (?, ?, ?, 'queued', ?, ?, "
               "?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
               "tttttittttttti", job->id, job->kind, job->label, job->spec, job->owner, job->priority, job->lane,
               job->device, job->model, job->dataset, job->dataset_sha256, job->calibration, job->calibration_sha256,
               job->created_at));
    for (size_t i = 0; i < insert->n_needs; i++)
        TRY(db_run(db, e, "INSERT OR IGNORE INTO job_dependency (job, needs) VALUES (?, ?)", "tt", job->id,
                   insert->needs[i]));
    if (insert->n_needs) TRY(db_run(db, e, "UPDATE job SET " RECOUNT " WHERE id = ?", "t", job->id));
    return event_append(db, events, job->id, "state",
                        json_pack("{s:s, s:s, s:n, s:i}", "job", job->id, "state", "queued", "previous", "attempt", 0),
                        e);
}

static enum rc job_update(struct db *db, const char *id, const struct job_patch *patch, struct err *e) {
    if (patch->priority)
        TRY(db_run(db, e, "UPDATE job SET priority = ?, version = version + 1 WHERE id = ?", "it", *patch->priority,
                   id));
    if (patch->set_label)
        TRY(db_run(db, e, "UPDATE job SET label = ?, version = version + 1 WHERE id = ?", "tt", patch->label, id));
    if (patch->set_device)
        TRY(db_run(db, e, "UPDATE job SET device = ?, version = version + 1 WHERE id = ?", "tt", patch->device, id));
    return RC_OK;
}

enum rc job_patch(struct db *db, struct event_list *events, const char *id, const struct job_patch *patch,
                  struct err *e) {
    enum job_state state;
    int64_t version;
    json_t *data;

    TRY(job_brief(db, id, &state, &version, e));
    if (patch->set_device && state != JOB_QUEUED && state != JOB_PAUSED)
        return err_set(e, RC_CONFLICT, "job %s is %s: only a job that waits can be given another device", id,
                       job_state_names[state]);
    data = json_pack("{s:s}", "job", id);
    if (patch->priority) json_object_set_new(data, "priority", json_integer(*patch->priority));
    if (patch->set_label) json_object_set_new(data, "label", patch->label ? json_string(patch->label) : json_null());
    if (patch->set_device)
        json_object_set_new(data, "device", patch->device ? json_string(patch->device) : json_null());
    TRY(event_append(db, events, id, "update", data, e));
    return job_update(db, id, patch, e);
}

enum rc job_delete(struct db *db, const char *id, struct err *e) {
    enum job_state state;
    int64_t version, waiting;

    TRY(job_brief(db, id, &state, &version, e));
    if (!job_ended(state))
        return err_set(e, RC_CONFLICT, "job %s is %s: only a job that has ended can be deleted; cancel it first", id,
                       job_state_names[state]);
    TRY(db_query_int(
        db, &waiting, e,
        "SELECT count(*) FROM job_dependency d JOIN job j ON j.id = d.job WHERE d.needs = ? AND j.state IN "
        "('queued', 'running', 'paused')",
        "t", id));
    if (waiting)
        return err_set(e, RC_CONFLICT, "%d job(s) that have not ended need job %s: cancel them first", (int)waiting,
                       id);
    return db_run(db, e, "DELETE FROM job WHERE id = ?", "t", id);
}

enum rc idempotency_find(struct db *db, const char *key, const char *hash, char job[ID_SIZE], struct err *e) {
    sqlite3_stmt *stmt;
    bool row, same;

    job[0] = '\0';
    TRY(db_query(db, &stmt, e, "SELECT job, hash FROM idempotency WHERE key = ?", "t", key));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return RC_OK;
    snprintf(job, ID_SIZE, "%s", (const char *)sqlite3_column_text(stmt, 0));
    same = !strcmp((const char *)sqlite3_column_text(stmt, 1), hash);
    sqlite3_reset(stmt);
    if (same) return RC_OK;
    return err_set(e, RC_INVALID,
                   "this Idempotency-Key was used for another request (job %s): use a new key for a new request", job);
}

enum rc idempotency_put(struct db *db, const char *key, const char *hash, const char *job, struct err *e) {
    return db_run(db, e, "INSERT INTO idempotency (key, hash, job) VALUES (?, ?, ?)", "ttt", key, hash, job);
}
