/* The writer thread: every change to the database goes through it, in the order submitted, in group commits.
 *
 * The loop thread submits operations. The writer takes all that wait, runs each inside one transaction under a
 * SAVEPOINT of its own (one that fails is undone alone), commits with synchronous=FULL, and hands them back: `done`
 * runs on the loop thread, after the commit is durable, in the order of submission. When the commit fails, every
 * operation of the batch fails with its error. */
#ifndef HSAQ_DAEMON_STORE_WRITER_H
#define HSAQ_DAEMON_STORE_WRITER_H

#include <uv.h>

#include "base/err.h"
#include "daemon/store/db.h"
#include "daemon/store/events.h"

/* Embed it first in a struct of your own. `done` may free that struct. */
struct write_op {
    /* Writer thread. NULL: does nothing, and `done` tells that all that was submitted before is durable. */
    enum rc (*run)(struct db *db, struct write_op *op, struct err *e);
    /* Writer thread, once the batch is durable, before any other is begun: what no rollback would undo. May be NULL. */
    void (*committed)(struct db *db, struct write_op *op);
    /* Loop thread; e->rc RC_OK: durable. May be NULL. */
    void (*done)(struct write_op *op, const struct err *e);
    struct event_list events; /* what `run` appended with event_append; published before `done` when committed */
    struct err err;
    struct write_op *next;
};

typedef void (*publish_fn)(void *ctx, const struct event *event); /* loop thread; in commit order */

struct writer;
enum rc writer_start(uv_loop_t *loop, const char *path, publish_fn publish, void *ctx, struct writer **out,
                     struct err *e);
void writer_submit(struct writer *w, struct write_op *op);
/* Commits what is queued, runs the completions, joins the thread. The uv_async handle closes in the next turns of the
 * loop, which must still run once. */
void writer_stop(struct writer *w);

#endif
