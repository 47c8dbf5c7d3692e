/* A lane: one job at a time, on one worker.
 *
 *     IDLE ──claim: queued → running──► CLAIMING ──start sent──► RUNNING ──result, error, loss──► SETTLING ──► IDLE
 *                                                                   └──cancel, pause, drain──► (stops within 1 s) ┘
 *
 * Everything that ends a job here is one transition, tried again each second while the disk refuses it: what a worker
 * has computed is not thrown away because a disk was full. A job whose rows cannot be stored goes back into the queue
 * and resumes from those that were. Loop thread only; the scheduler owns the lanes. */
#ifndef HSAQ_DAEMON_JOBS_LANE_H
#define HSAQ_DAEMON_JOBS_LANE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/app.h"
#include "daemon/jobs/scheduler.h"
#include "daemon/jobs/state.h"
#include "daemon/jobs/worker.h"
#include "daemon/store/ids.h"

struct settlement;

enum lane_phase { LANE_IDLE, LANE_CLAIMING, LANE_RUNNING, LANE_SETTLING };

/* Called once the job has left the lane. */
struct lane_waiter {
    void (*left)(void *ctx);
    void *ctx;
    struct lane_waiter *next;
};

struct lane {
    struct app *app;
    const char *name;   /* "device" or "cpu", the job table's */
    const char *device; /* "cpu", "cuda:0"; DEVICES_ALL */
    const char *opens;  /* what its worker is to open: the same, or a list */
    char *takes;        /* JSON array: the devices that a job may ask for to run here */
    bool takes_any;     /* and those that ask for none */
    bool gpu;
    bool drains;

    struct worker *worker;
    bool ready;       /* it has said hello, */
    bool leaving;     /* and later was asked to end */
    char *arithmetic; /* of the worker that was ready last */
    char *hardware;
    int64_t memory;
    unsigned generation; /* of the worker: what an earlier one asked is not answered to this one */
    int64_t failures;    /* of workers in a row, without a job ended in between */
    int64_t lost;
    char *last_error;

    enum lane_phase phase;
    char job[ID_SIZE];
    bool stopping;                 /* the job shall leave the lane by `stop` */
    enum job_action stop;          /* ACTION_CANCEL, ACTION_PAUSE, ACTION_REQUEUE */
    int64_t rows_pending;          /* not yet durable */
    json_t *result;                /* came; waits for the rows before it */
    struct settlement *settlement; /* refused by the disk, tried again */
    struct lane_waiter *waiters;

    uv_timer_t kill, retry, idle; /* kill: the worker did not stop; retry: backoff; idle: the worker leaves */
};

struct lane_options {
    const char *name;
    const struct device *device; /* as it is known before its worker says what it is */
    const char *opens;           /* NULL: that device */
    bool splits;                 /* it runs jobs that are split over all devices, */
    bool only_splits;            /* and no others */
};
void lane_init(struct lane *lane, struct app *app, const struct lane_options *options);
void lane_close(struct lane *lane);   /* when idle and without a worker; the loop must run once more */
void lane_release(struct lane *lane); /* after that */

/* How soon the lane could run another job. The scheduler gives jobs to the soonest; a lane whose last worker failed is
 * tried when there is no other. */
enum lane_readiness { LANE_TAKEN, LANE_DOUBTFUL, LANE_WITHOUT_WORKER, LANE_WORKER_STARTS, LANE_READY };
enum { LANE_READINESS = LANE_READY + 1 };
enum lane_readiness lane_readiness(const struct lane *lane);
/* A lane that is ready claims the job; another starts its worker, and the scheduler is asked again when that is ready:
 * by then the job may run elsewhere. */
void lane_offer(struct lane *lane, const char *job);
void lane_rest(struct lane *lane);                              /* there is none for it: its worker leaves some day */
void lane_queue_failed(struct lane *lane, const struct err *e); /* nobody knows whether there is one */
/* Its worker leaves now, if it has one and no job: others need the devices. */
void lane_vacate(struct lane *lane);
/* The lane's job shall leave it; `waiter` is called when it has (by then the job may also have ended otherwise). */
void lane_stop(struct lane *lane, enum job_action how, void (*notify)(void *ctx), void *ctx);
/* No job is taken any more; the running one is queued again; the worker leaves. */
void lane_drain(struct lane *lane);
bool lane_drained(const struct lane *lane); /* no job, no worker */

#endif
