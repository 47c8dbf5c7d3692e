/* The life of a job, as a table: which action leads from which state to which.
 *
 *              ┌──────── pause ────────► paused ──┐ cancel, fail
 *              │  ┌───── resume ───────────┘      │
 *              │  ▼                               ▼
 *   submit ──► queued ──start──► running ──► succeeded | failed | cancelled
 *                ▲ ▲               │  │                    │
 *                │ └─ lose, requeue┘  └─ pause ─► paused    │
 *                └───────────────── retry ─────────────────┘
 *
 * lose: the worker was lost; three losses fail the job. requeue: the daemon stopped; it counts as no attempt.
 * fail of a job that waits: a job that it needs failed. Pure functions. */
#ifndef HSAQ_DAEMON_JOBS_STATE_H
#define HSAQ_DAEMON_JOBS_STATE_H

#include <stdbool.h>

#include "base/err.h"

enum job_state { JOB_QUEUED, JOB_RUNNING, JOB_PAUSED, JOB_SUCCEEDED, JOB_FAILED, JOB_CANCELLED };
enum { JOB_STATES = JOB_CANCELLED + 1 };

enum job_action {
    ACTION_START,
    ACTION_SUCCEED,
    ACTION_FAIL,
    ACTION_CANCEL,
    ACTION_PAUSE,
    ACTION_RESUME,
    ACTION_RETRY,
    ACTION_LOSE,
    ACTION_REQUEUE,
};
enum { JOB_ACTIONS = ACTION_REQUEUE + 1 };

enum { JOB_LOSSES_MAX = 3 };

extern const char *const job_state_names[];  /* NULL-terminated, indexed by enum job_state */
extern const char *const job_action_names[]; /* the same for enum job_action */

bool job_state_from_name(const char *name, enum job_state *state);
bool job_ended(enum job_state state);

/* RC_CONFLICT, in words for the client, when the action is not possible in this state. */
enum rc job_state_after(enum job_action action, enum job_state from, enum job_state *to, struct err *e);

#endif
