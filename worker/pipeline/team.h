/* The threads of a job that is split over devices: one a device, the caller's among them.
 *
 * Each works with a copy of the job whose `device` is its own and which says who its team is, so that cancelling,
 * progress and rows need no further care: what goes out is serialised (job.c), and when one thread fails the others
 * find the job cancelled, also where they wait for each other. */
#ifndef HSAQ_WORKER_PIPELINE_TEAM_H
#define HSAQ_WORKER_PIPELINE_TEAM_H

#include <stdbool.h>

#include "base/err.h"
#include "worker/pipeline/job.h"

struct team;

/* How many devices the job is split over; 1: it is not. */
int team_size(const struct job *job);
/* The job as its device `member` has it, attached to the calling thread: for what is done one after the other. Of
 * memory limits each device has its share. */
struct job team_job(const struct job *job, int member);

typedef enum rc (*team_fn)(void *ctx, int member, const struct job *job, struct err *e);
/* Runs `work` once for each device, at the same time; RC_OK, or what failed first. The calling thread, which is member
 * 0, is attached to the first device when it returns. */
enum rc team_run(const struct job *job, team_fn work, void *ctx, struct err *e);

/* Inside `work`: waits until all have come; the last one then does `last` (NULL: nothing) while the others wait.
 * RC_CANCELLED when a member has failed. */
enum rc team_meet(struct team *team, enum rc (*last)(void *ctx, struct err *e), void *ctx, struct err *e);

/* Of a team that may be NULL: whether a member has failed; and what one does at a time. */
bool team_failed(const struct team *team);
void team_lock(struct team *team);
void team_unlock(struct team *team);

#endif
