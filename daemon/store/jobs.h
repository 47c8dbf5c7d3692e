/* Tables `job`, `job_dependency` and `idempotency`: every change of a job is one function here, run by one write
 * operation, together with its event. */
#ifndef HSAQ_DAEMON_STORE_JOBS_H
#define HSAQ_DAEMON_STORE_JOBS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "daemon/jobs/state.h"
#include "daemon/store/db.h"
#include "daemon/store/events.h"
#include "daemon/store/ids.h"

/* A row of the table; strings are NULL where the column is. */
struct job_record {
    char id[ID_SIZE];
    enum job_state state;
    const char *kind, *label, *spec, *owner, *lane, *device, *ran_on;
    const char *model, *dataset, *dataset_sha256, *model_stamp;
    const char *calibration, *calibration_sha256; /* a second dataset */
    const char *losses, *progress, *error;        /* JSON */
    int64_t priority, blocked, attempt, version;
    int64_t created_at, started_at, finished_at; /* ms; 0: not yet */
};

/* Strings live in the arena. RC_NOT_FOUND names the id. */
enum rc job_get(struct db *db, const char *id, struct job_record *out, struct arena *arena, struct err *e);
/* What a caller who knows the job already asks again and again. */
enum rc job_brief(struct db *db, const char *id, enum job_state *state, int64_t *version, struct err *e);

/* Newest first: ids that sort before `before` (NULL: from the newest), those of the filter that are not NULL. */
struct job_filter {
    const char *state, *kind, *model, *owner, *before;
    int64_t limit;
};
/* The record and its strings are valid during the visit. */
enum rc job_list(struct db *db, const struct job_filter *f, void (*visit)(void *ctx, const struct job_record *job),
                 void *ctx, struct err *e);

/* How many jobs are in each state. */
enum rc job_counts(struct db *db, int64_t counts[JOB_STATES], struct err *e);

/* The id of the next job that a lane can run, none of `taken` (a JSON array of ids): the highest priority, then the
 * oldest. "" when there is none. */
struct job_query {
    const char *lane, *taken;
    const char *devices; /* a JSON array: what the job may ask for */
    bool any;            /* or it asks for none */
};
enum rc job_next(struct db *db, const struct job_query *q, char id[ID_SIZE], struct err *e);
/* How many jobs that could run now would run before it, on any of `devices` (a JSON array of names). */
enum rc job_position(struct db *db, const struct job_record *job, const char *devices, int64_t *ahead, struct err *e);
/* The jobs it needs (by job_dependency), in order of id. */
enum rc job_needs(struct db *db, const char *id,
                  void (*visit)(void *ctx, const char *needs, const char *kind, enum job_state state), void *ctx,
                  struct err *e);
/* The newest id, "" when there is none. */
enum rc job_last_id(struct db *db, char id[ID_SIZE], struct err *e);

/* ---- writer thread from here on ---- */

struct job_insert {
    struct job_record job; /* what submission decides; the rest takes its default */
    const char *const *needs;
    size_t n_needs;
};
enum rc job_insert(struct db *db, struct event_list *events, const struct job_insert *insert, struct err *e);

/* One action on one job, and all that follows from it in the same transaction: its event, the jobs that wait for it
 * (which become runnable, or fail with it, and so on down). */
struct job_change {
    const char *job;
    enum job_action action;
    const char *device;      /* start: where it runs, */
    const char *arithmetic;  /* and in what arithmetic */
    const char *model_stamp; /* start */
    const char *progress;    /* JSON, or NULL to keep what there is */
    const json_t *error;     /* fail: {code, message, …} */
    const json_t *loss;      /* lose: {cause, …} */
    const json_t *result;    /* succeed */
};
/* `*state` gets the state reached: lose ends in queued or failed. */
enum rc job_change(struct db *db, struct event_list *events, const struct job_change *change, enum job_state *state,
                   struct err *e);

/* NULL members stay as they are. */
struct job_patch {
    const int64_t *priority;
    bool set_label, set_device;
    const char *label;
    const char *device; /* NULL: any */
};
/* RC_CONFLICT when the device of a job is to change that does not wait. */
enum rc job_patch(struct db *db, struct event_list *events, const char *id, const struct job_patch *patch,
                  struct err *e);

/* RC_CONFLICT unless it has ended and no job that has not ended needs it. */
enum rc job_delete(struct db *db, const char *id, struct err *e);

/* `*job` is "" when the key is new. RC_INVALID when it was used for another request. */
enum rc idempotency_find(struct db *db, const char *key, const char *hash, char job[ID_SIZE], struct err *e);
enum rc idempotency_put(struct db *db, const char *key, const char *hash, const char *job, struct err *e);

#endif
