/* What clients may do to jobs. Each answers through its callback, on the loop thread, when the change is durable: a
 * command that was answered is never undone by a crash. */
#ifndef HSAQ_DAEMON_JOBS_COMMANDS_H
#define HSAQ_DAEMON_JOBS_COMMANDS_H

#include <jansson.h>

#include "base/err.h"
#include "base/schema.h"
#include "daemon/app.h"
#include "daemon/jobs/state.h"
#include "daemon/store/jobs.h"

/* `problems` is NULL, or lives until `done` returns. */
typedef void (*command_done)(void *ctx, const char *job, const struct problems *problems, const struct err *e);

struct submission {
    json_t *spec;                /* borrowed */
    const char *idempotency_key; /* or NULL */
    struct problems *problems;   /* gets the faults that are found at once */
};
/* Validates the spec (fields, model) and, in the transaction that stores the job, the dataset and the jobs it names.
 * When the Idempotency-Key has a job already, `existing` is its id and `done` is not called; else "" . */
enum rc command_submit(struct app *app, const struct submission *submission, char existing[ID_SIZE], command_done done,
                       void *ctx, struct err *e);

/* ACTION_CANCEL, PAUSE, RESUME or RETRY. A running job stops within a second; then `done`. */
void command_act(struct app *app, const char *job, enum job_action action, command_done done, void *ctx);

void command_patch(struct app *app, const char *job, const struct job_patch *patch, command_done done, void *ctx);
void command_delete(struct app *app, const char *job, command_done done, void *ctx);

#endif
