/* What a job kind's pipeline gets and may do: the decoded spec, its inputs, and a way to report.
 *
 * Every pipeline function runs on the worker's GPU thread, one job at a time; a job that is split over devices also
 * runs parts of itself on a thread for each of them (team.h). It reports through `emit_*`, asks `job_cancelled` between
 * steps that take longer than some 50 ms, and returns RC_OK with `*result` set (a new reference), RC_CANCELLED, or an
 * error that the client will read. Emitting is ordered and never blocks on the daemon for longer than the socket takes;
 * a lost daemon makes emit return RC_UNAVAILABLE, and the pipeline passes it on. */
#ifndef HSAQ_WORKER_PIPELINE_JOB_H
#define HSAQ_WORKER_PIPELINE_JOB_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/protocol.h"
#include "base/spec.h"
#include "kernels/backend.h"

/* How messages leave the worker; the socket, or a terminal for `hsaq-worker run`. */
struct job_link {
    enum rc (*send)(void *ctx, const struct message *m, struct err *e);
    /* Sends a lookup and waits for its answer: a new reference to {key: data}. */
    enum rc (*lookup)(void *ctx, enum cache_name cache, json_t *keys, json_t **entries, struct err *e);
    void *ctx;
};

/* What emit_progress and job_row remember between calls. */
struct job_state {
    char phase[32];
    int64_t phase_done;        /* `done` when the phase began: resumed work does not count for the rate */
    int64_t sent_done;         /* `done` as told last */
    int64_t phase_ns, sent_ns; /* monotonic clock */
    json_t *rows;              /* "phase/index" → data */
};
void job_state_init(struct job_state *state, const json_t *rows); /* rows of msg_start, or NULL */
void job_state_release(struct job_state *state);

struct source; /* source.h */
struct team;   /* team.h */

struct job {
    const char *id;
    const struct job_kind *kind;
    const union spec *spec;
    const json_t *model, *dataset, *calibration, *artifact, *inputs, *rows; /* of msg_start; may be NULL */
    const struct source *source; /* borrowed, used in place of model and dataset; NULL: these are opened */
    const struct backend *backend;
    struct backend_state *device;
    struct backend_state *const *devices; /* [device_count] of a job that is split; the first is `device` */
    int device_count;                     /* 0 or 1: it is not split */
    struct team *team;                    /* of whose threads one is using this copy of the job; NULL: of none */
    int64_t ram_limit;   /* bytes for hidden states and Grams before they spill to `scratch`; 0: no limit */
    const char *scratch; /* folder for unlinked spill files */
    const struct job_link *link;
    const atomic_bool *cancelled;
    struct job_state *state; /* NULL: progress goes out unthrottled and there are no earlier rows */
};

bool job_cancelled(const struct job *job);
/* Throttled to ten a second, and never back within a phase; rate and ETA are computed here. A new phase or done ==
 * total always goes out. */
enum rc emit_progress(const struct job *job, const char *phase, int64_t done, int64_t total, const char *unit,
                      struct err *e);
/* `data` is borrowed. cache_key NULL: the row is not cached. */
enum rc emit_row(const struct job *job, const char *phase, int64_t index, const json_t *data, const char *cache_key,
                 struct err *e);
/* A row of an earlier attempt, borrowed, or NULL. */
const json_t *job_row(const struct job *job, const char *phase, int64_t index);

/* The table of pipelines, one row per job kind, beside base/spec.h's. */
typedef enum rc (*pipeline_fn)(const struct job *job, json_t **result, struct err *e);
pipeline_fn pipeline_find(const char *kind);

enum rc pipeline_profile(const struct job *job, json_t **result, struct err *e);
enum rc pipeline_allocation(const struct job *job, json_t **result, struct err *e);
enum rc pipeline_eval(const struct job *job, json_t **result, struct err *e);
enum rc pipeline_quantize(const struct job *job, json_t **result, struct err *e);
enum rc pipeline_sweep(const struct job *job, json_t **result, struct err *e);

#endif
