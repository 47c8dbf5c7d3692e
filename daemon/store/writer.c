#include "daemon/store/writer.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/mem.h"

struct queue {
    struct write_op *head, **tail;
};

struct writer {
    struct db db; /* writer thread only */
    pthread_t thread;
    pthread_mutex_t lock; /* guards waiting, finished, stopping */
    pthread_cond_t more;
    struct queue waiting, finished;
    bool stopping;
    uv_async_t async;
    publish_fn publish;
    void *ctx;
};

static void queue_init(struct queue *q) {
    q->head = NULL;
    q->tail = &q->head;
}

static void queue_append(struct queue *q, struct write_op *op) {
    op->next = NULL;
    *q->tail = op;
    q->tail = &op->next;
}

/* Moves everything; `from` is empty after. */
static void queue_move(struct queue *to, struct queue *from) {
    if (!from->head) return;
    *to->tail = from->head;
    to->tail = from->tail;
    queue_init(from);
}

/* An error as severe as a full disk can end the whole transaction, not the savepoint alone. */
static bool transaction_ended(struct db *db) {
    return sqlite3_get_autocommit(db->handle) != 0;
}

static enum rc run_one(struct db *db, struct write_op *op, struct err *e) {
    if (!op->run) return RC_OK;
    TRY(db_run(db, e, "SAVEPOINT op", ""));
    if (op->run(db, op, &op->err) == RC_OK) {
        op->err = (struct err){0}; /* it may have met an error that it could live with */
        return db_run(db, e, "RELEASE op", "");
    }
    if (transaction_ended(db)) {
        *e = op->err;
        return e->rc;
    }
    event_list_release(&op->events);
    TRY(db_run(db, e, "ROLLBACK TO op", ""));
    return db_run(db, e, "RELEASE op", "");
}

static enum rc run_batch(struct db *db, struct write_op *head, struct err *e) {
    TRY(db_run(db, e, "BEGIN IMMEDIATE", ""));
    for (struct write_op *op = head; op; op = op->next)
        TRY(run_one(db, op, e));
    return db_run(db, e, "COMMIT", "");
}

static bool all_barriers(const struct write_op *head) {
    for (; head; head = head->next)
        if (head->run) return false;
    return true;
}

/* The error of an operation that failed by itself is kept: it says more than that of the commit. */
static void fail_batch(struct write_op *head, const struct err *e) {
    for (struct write_op *op = head; op; op = op->next) {
        if (op->err.rc == RC_OK) op->err = *e;
        event_list_release(&op->events);
    }
}

static void commit(struct db *db, struct write_op *head) {
    struct err e = {0}, ignored;

    for (struct write_op *op = head; op; op = op->next)
        op->err = (struct err){0};
    if (!all_barriers(head) && run_batch(db, head, &e) != RC_OK) {
        if (!transaction_ended(db)) db_run(db, &ignored, "ROLLBACK", "");
        err_context(&e, "nothing was stored");
        fail_batch(head, &e);
    }
    for (struct write_op *op = head; op; op = op->next)
        if (op->committed && op->err.rc == RC_OK) op->committed(db, op);
}

static void *writer_main(void *arg) {
    struct writer *w = arg;
    struct queue batch;

    queue_init(&batch);
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (!w->waiting.head && !w->stopping)
            pthread_cond_wait(&w->more, &w->lock);
        if (!w->waiting.head) break;
        queue_move(&batch, &w->waiting);
        pthread_mutex_unlock(&w->lock);
        commit(&w->db, batch.head);
        pthread_mutex_lock(&w->lock);
        queue_move(&w->finished, &batch);
        uv_async_send(&w->async);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void finish(struct writer *w, struct write_op *op) {
    struct event_list events = op->events;

    op->events = (struct event_list){0};
    if (op->err.rc == RC_OK)
        for (size_t i = 0; i < events.count; i++)
            w->publish(w->ctx, &events.items[i]);
    event_list_release(&events);
    if (op->done) {
        struct err e = op->err;
        op->done(op, &e);
    }
}

static void on_finished(uv_async_t *async) {
    struct writer *w = async->data;
    struct queue batch;

    queue_init(&batch);
    pthread_mutex_lock(&w->lock);
    queue_move(&batch, &w->finished);
    pthread_mutex_unlock(&w->lock);
    for (struct write_op *op = batch.head, *next; op; op = next) {
        next = op->next;
        finish(w, op);
    }
}

enum rc writer_start(uv_loop_t *loop, const char *path, publish_fn publish, void *ctx, struct writer **out,
                     struct err *e) {
    struct writer *w = xcalloc(1, sizeof *w);

    w->publish = publish;
    w->ctx = ctx;
    w->async.data = w;
    queue_init(&w->waiting);
    queue_init(&w->finished);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    if (db_open(&w->db, path, DB_WRITER, e) != RC_OK) goto failed;
    if (uv_async_init(loop, &w->async, on_finished) != 0) {
        err_set(e, RC_INTERNAL, "cannot make an async handle for the writer");
        goto failed_db;
    }
    if (pthread_create(&w->thread, NULL, writer_main, w) != 0) {
        err_set(e, RC_NO_MEMORY, "cannot start the writer thread");
        uv_close((uv_handle_t *)&w->async, NULL);
        uv_run(loop, UV_RUN_NOWAIT);
        goto failed_db;
    }
    *out = w;
    return RC_OK;
failed_db:
    db_close(&w->db);
failed:
    free(w);
    return e->rc;
}

void writer_submit(struct writer *w, struct write_op *op) {
    pthread_mutex_lock(&w->lock);
    queue_append(&w->waiting, op);
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
}

static void on_closed(uv_handle_t *handle) {
    free(handle->data);
}

void writer_stop(struct writer *w) {
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    on_finished(&w->async);
    db_close(&w->db);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->more);
    uv_close((uv_handle_t *)&w->async, on_closed);
}
