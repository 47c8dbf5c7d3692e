#include "daemon/jobs/commands.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "daemon/jobs/lane.h"
#include "daemon/jobs/leftover.h"
#include "daemon/jobs/scheduler.h"
#include "daemon/store/store.h"

struct command {
    struct write_op op;
    struct app *app;
    char *job; /* whatever a client took for an id */
    enum job_action action;
    struct job_patch patch;
    int64_t priority;
    char *label, *device, *leftover;
    command_done done;
    void *ctx;
};

static struct command *command_new(struct app *app, const char *job, command_done done, void *ctx) {
    struct command *c = xcalloc(1, sizeof *c);

    c->app = app;
    c->done = done;
    c->ctx = ctx;
    c->job = xstrdup(job);
    return c;
}

static void command_end(struct command *c, const struct err *e) {
    struct app *app = c->app;

    c->done(c->ctx, c->job, NULL, e);
    free(c->job);
    free(c->label);
    free(c->device);
    free(c->leftover);
    free(c);
    if (e->rc == RC_OK) scheduler_kick(app->scheduler);
}

static void on_done(struct write_op *op, const struct err *e) {
    command_end((struct command *)op, e);
}

static void submit(struct command *c, enum rc (*run)(struct db *db, struct write_op *op, struct err *e),
                   void (*done)(struct write_op *op, const struct err *e)) {
    c->op = (struct write_op){.run = run, .done = done};
    store_submit(c->app->store, &c->op);
}

/* ---- cancel, pause, resume, retry ---- */

static enum rc act_run(struct db *db, struct write_op *op, struct err *e) {
    struct command *c = (struct command *)op;
    enum job_state state;

    return job_change(db, &op->events, &(struct job_change){.job = c->job, .action = c->action}, &state, e);
}

/* The job has left its lane: by this command, or it ended by itself just before, and then the table of transitions
 * says what becomes of the command. */
static void on_left(void *ctx) {
    struct command *c = ctx;
    enum job_state state, wanted = c->action == ACTION_CANCEL ? JOB_CANCELLED : JOB_PAUSED;
    struct err e = {0};
    int64_t version;

    if (job_brief(store_reader(c->app->store), c->job, &state, &version, &e) == RC_OK && state != wanted)
        submit(c, act_run, on_done);
    else
        command_end(c, &e);
}

void command_act(struct app *app, const char *job, enum job_action action, command_done done, void *ctx) {
    struct command *c = command_new(app, job, done, ctx);
    struct lane *lane = scheduler_lane_of(app->scheduler, c->job);

    c->action = action;
    if (lane && (action == ACTION_CANCEL || action == ACTION_PAUSE))
        lane_stop(lane, action, on_left, c);
    else
        submit(c, act_run, on_done);
}

/* ---- patch, delete ---- */

static enum rc patch_run(struct db *db, struct write_op *op, struct err *e) {
    struct command *c = (struct command *)op;

    return job_patch(db, &op->events, c->job, &c->patch, e);
}

void command_patch(struct app *app, const char *job, const struct job_patch *patch, command_done done, void *ctx) {
    struct command *c = command_new(app, job, done, ctx);

    c->patch = *patch;
    if (patch->priority) {
        c->priority = *patch->priority;
        c->patch.priority = &c->priority;
    }
    if (patch->label) c->patch.label = c->label = xstrdup(patch->label);
    if (patch->device) c->patch.device = c->device = xstrdup(patch->device);
    submit(c, patch_run, on_done);
}

static enum rc delete_run(struct db *db, struct write_op *op, struct err *e) {
    struct command *c = (struct command *)op;

    TRY(leftover_name(db, c->job, &c->leftover, e));
    return job_delete(db, c->job, e);
}

static enum rc clear_run(struct db *db, struct write_op *op, struct err *e) {
    struct command *c = (struct command *)op;

    return leftover_remove(db, c->app->artifacts, c->leftover, e);
}

/* The job is gone in any case. */
static void clear_done(struct write_op *op, const struct err *e) {
    if (e->rc != RC_OK) log_warn("%s", e->message);
    command_end((struct command *)op, &(struct err){0});
}

static void delete_done(struct write_op *op, const struct err *e) {
    struct command *c = (struct command *)op;

    if (e->rc != RC_OK || !c->leftover)
        command_end(c, e);
    else
        submit(c, clear_run, clear_done);
}

void command_delete(struct app *app, const char *job, command_done done, void *ctx) {
    submit(command_new(app, job, done, ctx), delete_run, delete_done);
}
