/* The schedule: lanes, what runs in them, and what may be done to a job.
 *
 * A lane runs one job at a time on a worker of its own: one lane per device for numeric kinds, one `cpu` lane for pure
 * arithmetic. The database is the queue (highest priority first, then oldest id, of those whose dependencies have
 * succeeded); the scheduler keeps in memory only what runs. A job runs in whichever lane can first take it, of its
 * device if it asks for one; a worker is started only for a job that no worker there can take.
 *
 * Where there are several devices, jobs that are split over them have a lane of their own, whose worker opens them all.
 * It and the lanes of the single devices take turns: when the first job in line is a split one, no other starts until
 * it has ended, and it starts when those that run have. Loop thread only. */
#ifndef HSAQ_DAEMON_JOBS_SCHEDULER_H
#define HSAQ_DAEMON_JOBS_SCHEDULER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/schema.h"
#include "daemon/app.h"
#include "daemon/store/ids.h"

struct scheduler;

/* Takes running jobs of an earlier daemon back into the queue, then starts what can start. */
enum rc scheduler_new(struct app *app, struct scheduler **out, struct err *e);
/* No job starts any more, running ones stop and are queued again; `drained` when none runs and no worker lives. */
void scheduler_drain(struct scheduler *s, void (*drained)(struct app *app));
void scheduler_free(struct scheduler *s); /* after drained */

/* Something may have become runnable. */
void scheduler_kick(struct scheduler *s);
/* The lane that has this job now, or NULL. */
struct lane;
struct lane *scheduler_lane_of(const struct scheduler *s, const char *job);

/* What a device is doing, for GET /v1/devices and the metrics. */
struct device_status {
    const char *name;       /* "cpu", "cuda:0" */
    const char *lane;       /* "device" or "cpu" (arithmetic) */
    const char *state;      /* "idle", "busy", "down": its last worker was lost, or did not start */
    const char *worker;     /* "none", "starting", "ready", "stopping" */
    const char *hardware;   /* or NULL: not known before a worker ran */
    int64_t memory;         /* bytes; 0: unknown */
    int64_t pid;            /* 0: none */
    const char *job;        /* running, or NULL */
    int64_t workers_lost;   /* since start */
    const char *last_error; /* of the worker, or NULL */
};
size_t scheduler_devices(const struct scheduler *s);
/* A device that a split job has, or its worker, shows those. */
void scheduler_device(const struct scheduler *s, size_t index, struct device_status *out);
/* The lane of split jobs itself; false: there is none. */
bool scheduler_split_lane(const struct scheduler *s, struct device_status *out);

#endif
