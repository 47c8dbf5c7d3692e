#include "worker/control.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/strbuf.h"

enum { HEARTBEAT_MS = 1000, READ_BYTES = 1 << 16 };

struct control {
    const struct worker *worker;
    int fd;
    pthread_mutex_t write_lock;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct message start; /* the job to run or running */
    bool busy;            /* `start` holds one */
    atomic_bool cancelled;
    int64_t asked, answered; /* lookups sent, answers received: answers come in the order asked */
    int64_t awaited;         /* number of the answer that the GPU thread waits for; 0: none */
    struct message answer;   /* that answer, once `has_answer` */
    bool has_answer;
};

static enum rc write_all(int fd, const char *bytes, size_t len, struct err *e) {
    while (len) {
        ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_set(e, RC_UNAVAILABLE, "the link to the daemon is lost: %s", strerror(errno));
        bytes += n;
        len -= (size_t)n;
    }
    return RC_OK;
}

static enum rc link_send(void *ctx, const struct message *m, struct err *e) {
    struct control *c = ctx;
    char *line = message_encode(m);
    if (!line) return err_set(e, RC_INTERNAL, "a message cannot be encoded");
    pthread_mutex_lock(&c->write_lock);
    enum rc rc = write_all(c->fd, line, strlen(line), e);
    pthread_mutex_unlock(&c->write_lock);
    free(line);
    return rc;
}

static enum rc await_answer(struct control *c, json_t **entries, struct err *e) {
    while (!c->has_answer && !atomic_load(&c->cancelled))
        pthread_cond_wait(&c->changed, &c->lock);
    c->awaited = 0;
    if (!c->has_answer) return err_set(e, RC_CANCELLED, "cancelled");
    *entries = json_incref(c->answer.cached.entries);
    message_release(&c->answer);
    c->has_answer = false;
    return RC_OK;
}

static enum rc link_lookup(void *ctx, enum cache_name cache, json_t *keys, json_t **entries, struct err *e) {
    struct control *c = ctx;
    struct message m = {.type = MSG_LOOKUP, .lookup = {.cache = cache, .keys = keys}};
    pthread_mutex_lock(&c->lock);
    c->awaited = ++c->asked;
    pthread_mutex_unlock(&c->lock);
    TRY(link_send(c, &m, e));
    pthread_mutex_lock(&c->lock);
    enum rc rc = await_answer(c, entries, e);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

/* The control thread's only ways out. The write lock is taken first, so that no line is cut in half. */
static _Noreturn void leave(struct control *c, int status) {
    pthread_mutex_lock(&c->write_lock);
    _exit(status);
}

static _Noreturn void leave_with(struct control *c, const struct err *err) {
    struct message m = {.type = MSG_LOG, .log = {.level = "error", .text = err->message}};
    struct err ignored;
    (void)link_send(c, &m, &ignored);
    leave(c, 1);
}

/* Each handler takes what it keeps out of `m`; the caller releases the rest. */
static enum rc on_start(struct control *c, struct message *m, struct err *e) {
    pthread_mutex_lock(&c->lock);
    enum rc rc = RC_OK;
    if (c->busy) {
        rc = err_set(e, RC_INVALID, "start of job %s while job %s runs", m->start.job, c->start.start.job);
    } else {
        c->start = *m;
        m->root = NULL;
        c->busy = true;
        atomic_store(&c->cancelled, false);
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}

static enum rc on_cancel(struct control *c, struct message *m, struct err *e) {
    (void)e;
    pthread_mutex_lock(&c->lock);
    if (c->busy && !strcmp(c->start.start.job, m->cancel.job)) atomic_store(&c->cancelled, true);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return RC_OK;
}

static enum rc on_cached(struct control *c, struct message *m, struct err *e) {
    pthread_mutex_lock(&c->lock);
    enum rc rc = RC_OK;
    if (c->answered == c->asked) {
        rc = err_set(e, RC_INVALID, "cached answers no lookup");
    } else if (++c->answered == c->awaited) {
        c->answer = *m;
        c->has_answer = true;
        m->root = NULL;
    }
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

static enum rc handle(struct control *c, struct message *m, struct err *e) {
    switch (m->type) {
    case MSG_START: return on_start(c, m, e);
    case MSG_CANCEL: return on_cancel(c, m, e);
    case MSG_CACHED: return on_cached(c, m, e);
    case MSG_SHUTDOWN: leave(c, 0);
    default: return err_set(e, RC_INVALID, "a message that only workers send came from the daemon");
    }
}

static enum rc handle_line(struct control *c, const char *line, size_t len, struct err *e) {
    struct message m;
    TRY(message_decode(line, len, &m, e));
    enum rc rc = handle(c, &m, e);
    message_release(&m);
    return rc;
}

static enum rc handle_lines(struct control *c, struct strbuf *in, size_t fresh, struct err *e) {
    size_t scan = in->len - fresh; /* the bytes before hold no newline: they were looked at when they came */
    size_t begin = 0;
    for (char *end; (end = memchr(in->data + scan, '\n', in->len - scan));) {
        size_t stop = (size_t)(end - in->data);
        TRY(handle_line(c, in->data + begin, stop - begin, e));
        begin = scan = stop + 1;
    }
    strbuf_consume(in, begin);
    if (in->len > PROTOCOL_LINE_MAX) return err_set(e, RC_TOO_LARGE, "a protocol line exceeds its limit");
    return RC_OK;
}

static int64_t now_ms(void) {
    return monotonic_ns() / 1000000;
}

static void beat(struct control *c) {
    static const struct message heartbeat = {.type = MSG_HEARTBEAT};
    if (pthread_mutex_trylock(&c->write_lock)) return;
    char *line = message_encode(&heartbeat);
    struct err ignored; /* a lost link shows as its end when read */
    if (line) (void)write_all(c->fd, line, strlen(line), &ignored);
    free(line);
    pthread_mutex_unlock(&c->write_lock);
}

static void *control_thread(void *arg) {
    struct control *c = arg;
    struct strbuf in = STRBUF_INIT;
    char *chunk = xcalloc(READ_BYTES, 1);
    for (int64_t due = now_ms() + HEARTBEAT_MS;;) {
        int64_t wait = due - now_ms();
        struct pollfd ready = {.fd = c->fd, .events = POLLIN};
        if (wait <= 0) {
            beat(c);
            due = now_ms() + HEARTBEAT_MS;
            continue;
        }
        if (poll(&ready, 1, (int)wait) <= 0) continue;
        ssize_t n = read(c->fd, chunk, READ_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) _exit(0);
        strbuf_append(&in, chunk, (size_t)n);
        struct err e = {0};
        if (handle_lines(c, &in, (size_t)n, &e) != RC_OK) leave_with(c, &e);
    }
    return NULL;
}

static enum rc send_hello(struct control *c, const char *device, struct err *e) {
    struct message m = worker_hello(c->worker);
    m.hello.device = device;
    return link_send(c, &m, e);
}

/* Busy ends before the message goes out, since a new start may answer it. */
static enum rc end_job(struct control *c, const struct message *end, struct err *e) {
    pthread_mutex_lock(&c->lock);
    c->busy = false;
    pthread_mutex_unlock(&c->lock);
    return link_send(c, end, e);
}

/* The device has failed (or the daemon is gone): no job of this process could use it again, and to close it might take
 * for ever. On stderr too: the daemon keeps what a lost worker wrote there. */
static _Noreturn void leave_without_device(struct control *c, const struct err *e) {
    log_error("%s", e->message);
    leave_with(c, e);
}

/* Exactly one result or error ends a job, but for a device that has failed: then the process ends, and the daemon gives
 * the job to another. */
static enum rc run_job(struct control *c, struct err *e) {
    struct job_link link = {.send = link_send, .lookup = link_lookup, .ctx = c};
    struct message start = c->start;
    json_t *result = NULL;
    enum rc rc = worker_execute(c->worker, &start.start, &link, &c->cancelled, &result, e);
    if (rc == RC_OK)
        rc = end_job(c, &(struct message){.type = MSG_RESULT, .result = {.job = start.start.job, .result = result}}, e);
    else if (rc == RC_UNAVAILABLE)
        leave_without_device(c, e);
    else
        rc = end_job(c, &(struct message){.type = MSG_ERROR, .error = {.job = start.start.job, .err = *e}}, e);
    json_decref(result);
    message_release(&start);
    return rc;
}

static enum rc gpu_loop(struct control *c, struct err *e) {
    for (;;) {
        pthread_mutex_lock(&c->lock);
        while (!c->busy)
            pthread_cond_wait(&c->changed, &c->lock);
        pthread_mutex_unlock(&c->lock);
        TRY(run_job(c, e));
    }
}

enum rc control_serve(const struct worker *worker, const char *device, int fd, struct err *e) {
    struct control c = {.worker = worker, .fd = fd};
    pthread_t thread;
    pthread_mutex_init(&c.write_lock, NULL);
    pthread_mutex_init(&c.lock, NULL);
    pthread_cond_init(&c.changed, NULL);
    signal(SIGPIPE, SIG_IGN);
    TRY(send_hello(&c, device, e));
    if (pthread_create(&thread, NULL, control_thread, &c))
        return err_set(e, RC_NO_MEMORY, "cannot start the control thread");
    enum rc rc = gpu_loop(&c, e);
    pthread_cancel(thread);
    pthread_join(thread, NULL);
    return rc;
}
