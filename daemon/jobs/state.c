#include "daemon/jobs/state.h"

#include <stddef.h>
#include <string.h>

const char *const job_state_names[] = {"queued", "running", "paused", "succeeded", "failed", "cancelled", NULL};
const char *const job_action_names[] = {"start",  "succeed", "fail", "cancel",  "pause",
                                        "resume", "retry",   "lose", "requeue", NULL};

static const struct transition {
    enum job_action action;
    enum job_state from, to;
} transitions[] = {
    {ACTION_START, JOB_QUEUED, JOB_RUNNING},     {ACTION_SUCCEED, JOB_RUNNING, JOB_SUCCEEDED},
    {ACTION_FAIL, JOB_QUEUED, JOB_FAILED},       {ACTION_FAIL, JOB_RUNNING, JOB_FAILED},
    {ACTION_FAIL, JOB_PAUSED, JOB_FAILED},       {ACTION_CANCEL, JOB_QUEUED, JOB_CANCELLED},
    {ACTION_CANCEL, JOB_RUNNING, JOB_CANCELLED}, {ACTION_CANCEL, JOB_PAUSED, JOB_CANCELLED},
    {ACTION_PAUSE, JOB_QUEUED, JOB_PAUSED},      {ACTION_PAUSE, JOB_RUNNING, JOB_PAUSED},
    {ACTION_RESUME, JOB_PAUSED, JOB_QUEUED},     {ACTION_RETRY, JOB_FAILED, JOB_QUEUED},
    {ACTION_RETRY, JOB_CANCELLED, JOB_QUEUED},   {ACTION_LOSE, JOB_RUNNING, JOB_QUEUED},
    {ACTION_REQUEUE, JOB_RUNNING, JOB_QUEUED},
};

bool job_state_from_name(const char *name, enum job_state *state) {
    for (int i = 0; job_state_names[i]; i++)
        if (!strcmp(job_state_names[i], name)) {
            *state = (enum job_state)i;
            return true;
        }
    return false;
}

bool job_ended(enum job_state state) {
    return state == JOB_SUCCEEDED || state == JOB_FAILED || state == JOB_CANCELLED;
}

enum rc job_state_after(enum job_action action, enum job_state from, enum job_state *to, struct err *e) {
    for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++)
        if (transitions[i].action == action && transitions[i].from == from) {
            *to = transitions[i].to;
            return RC_OK;
        }
    return err_set(e, RC_CONFLICT, "cannot %s a job that is %s", job_action_names[action], job_state_names[from]);
}
