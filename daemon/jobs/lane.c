#include "daemon/jobs/lane.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/jobs/hub.h"
#include "daemon/jobs/lane_ops.h"
#include "daemon/jobs/start.h"
#include "daemon/store/jobs.h"

enum { CANCEL_MS = 700, RETRY_MS = 1000, BACKOFF_MAX_MS = 30000 };

static const struct worker_events worker_events;

/* ---- the worker ---- */

static void remember_error(struct lane *lane, const char *text) {
    free(lane->last_error);
    lane->last_error = xstrdup(text);
}

static void on_retry(uv_timer_t *timer) {
    struct lane *lane = timer->data;

    scheduler_kick(lane->app->scheduler);
}

static void retry_later(struct lane *lane, uint64_t ms) {
    uv_timer_start(&lane->retry, on_retry, ms, 0);
}

/* 0.5 s, 1 s, 2 s … half a minute. */
static uint64_t backoff(const struct lane *lane) {
    uint64_t ms = 250;

    for (int64_t i = 0; i < lane->failures && ms < BACKOFF_MAX_MS; i++)
        ms *= 2;
    return ms < BACKOFF_MAX_MS ? ms : BACKOFF_MAX_MS;
}

/* Whatever it was to run may run elsewhere meanwhile. */
static void rest_after_failure(struct lane *lane) {
    if (lane->failures && !lane->worker && !lane->drains) retry_later(lane, backoff(lane));
    scheduler_kick(lane->app->scheduler);
}

static void start_worker(struct lane *lane) {
    const struct config *config = &lane->app->config;
    struct worker_options options = {.path = config->worker,
                                     .device = lane->opens,
                                     .ram_limit = config->ram_limit,
                                     .vram_limit = lane->gpu ? config->vram_limit : 0,
                                     .precise = lane->gpu && config->precise,
                                     .scratch = store_folder(lane->app->store),
                                     .events = &worker_events,
                                     .ctx = lane};
    struct err e;

    lane->generation++;
    if (worker_spawn(&lane->app->loop, &options, &lane->worker, &e) == RC_OK) return;
    lane->failures++;
    log_error("%s", e.message);
    remember_error(lane, e.message);
    retry_later(lane, backoff(lane));
}

static void let_worker_leave(struct lane *lane) {
    if (!lane->worker || lane->phase != LANE_IDLE) return;
    lane->ready = false;
    lane->leaving = true;
    worker_shutdown(lane->worker);
}

static void on_idle(uv_timer_t *timer) {
    let_worker_leave(timer->data);
}

/* ---- the end of a job in this lane ---- */

static void left(struct lane *lane) {
    struct lane_waiter *waiters = lane->waiters;

    uv_timer_stop(&lane->kill);
    json_decref(lane->result);
    lane->result = NULL;
    lane->waiters = NULL;
    lane->job[0] = '\0';
    lane->stopping = false;
    lane->phase = LANE_IDLE;
    for (struct lane_waiter *w = waiters, *next; w; w = next) {
        next = w->next;
        w->left(w->ctx);
        free(w);
    }
    rest_after_failure(lane);
}

static void on_settle_retry(uv_timer_t *timer) {
    lane_ops_settle_again(timer->data);
}

static void settle(struct lane *lane, const struct job_change *change) {
    int64_t version;
    json_t *progress = hub_progress_get(lane->app->hub, lane->job, &version);

    lane->phase = LANE_SETTLING;
    uv_timer_stop(&lane->kill);
    lane_ops_settle(lane, change, progress);
    json_decref(progress);
    hub_progress_end(lane->app->hub, lane->job); /* no progress is told after the last event */
}

static void settle_stop(struct lane *lane) {
    settle(lane, &(struct job_change){.job = lane->job, .action = lane->stop});
}

static void settle_failure(struct lane *lane, const struct err *cause) {
    json_t *error = json_pack("{s:s, s:s}", "code", rc_name(cause->rc), "message", cause->message);

    if (cause->pointer[0]) json_object_set_new(error, "pointer", json_string(cause->pointer));
    settle(lane, &(struct job_change){.job = lane->job, .action = ACTION_FAIL, .error = error});
    json_decref(error);
}

/* A transition that the disk refused is tried again. One refused for another reason would be for ever: the job fails
 * by that reason, or, when that is refused too, is no longer this lane's. */
void lane_settled(struct lane *lane, enum job_action action, const struct err *e) {
    bool disk = e->rc == RC_NO_SPACE || e->rc == RC_IO || e->rc == RC_NO_MEMORY;

    if (e->rc != RC_OK) {
        log_error("job %s: %s", lane->job, e->message);
        remember_error(lane, e->message);
    }
    if (disk)
        uv_timer_start(&lane->retry, on_settle_retry, RETRY_MS, 0);
    else if (e->rc != RC_OK && action != ACTION_FAIL)
        settle_failure(lane, e);
    else
        left(lane);
}

static void settle_result_when_durable(struct lane *lane) {
    if (!lane->result || lane->rows_pending || lane->phase != LANE_RUNNING) return;
    lane->failures = 0;
    settle(lane, &(struct job_change){.job = lane->job, .action = ACTION_SUCCEED, .result = lane->result});
}

/* ---- rows ---- */

/* A row that came twice is the worker's fault and fails the job; a disk that refuses it is nobody's. */
static void on_row_failed(struct lane *lane, const struct err *e) {
    log_error("job %s: %s", lane->job, e->message);
    remember_error(lane, e->message);
    if (lane->worker) worker_kill(lane->worker, "its rows could not be stored");
    if (e->rc == RC_CONFLICT || e->rc == RC_INVALID) {
        settle_failure(lane, e);
        return;
    }
    settle(lane, &(struct job_change){.job = lane->job, .action = ACTION_REQUEUE});
}

void lane_row_done(struct lane *lane, const struct err *e) {
    lane->rows_pending--;
    if (lane->phase != LANE_RUNNING) return;
    if (e->rc != RC_OK)
        on_row_failed(lane, e);
    else
        settle_result_when_durable(lane);
}

/* ---- what the worker says ---- */

static void on_error_message(struct lane *lane, const struct msg_error *error) {
    lane->failures = 0;
    if (lane->stopping && (error->err.rc == RC_CANCELLED || lane->stop == ACTION_CANCEL))
        settle_stop(lane);
    else
        settle_failure(lane, &error->err);
}

static void on_job_message(struct lane *lane, const struct message *m) {
    switch (m->type) {
    case MSG_PROGRESS: hub_progress(lane->app->hub, &m->progress); break;
    case MSG_ROW:
        lane->rows_pending++;
        lane_ops_row(lane, m);
        break;
    case MSG_RESULT:
        lane->result = json_incref(m->result.result);
        settle_result_when_durable(lane);
        break;
    case MSG_ERROR: on_error_message(lane, &m->error); break;
    default: break;
    }
}

/* Every message about a job starts with its id (protocol.h), wherever in the union it stands. */
static const char *job_of(const struct message *m) {
    switch (m->type) {
    case MSG_PROGRESS: return m->progress.job;
    case MSG_ROW: return m->row.job;
    case MSG_RESULT: return m->result.job;
    case MSG_ERROR: return m->error.job;
    default: return NULL;
    }
}

static void on_message(void *ctx, const struct message *m) {
    struct lane *lane = ctx;
    const char *job = job_of(m);

    if (m->type == MSG_LOOKUP)
        lane_ops_lookup(lane, &m->lookup);
    else if (m->type == MSG_STORE)
        lane_ops_store(lane, m);
    else if (lane->phase != LANE_RUNNING)
        return;
    else if (m->type == MSG_LOG)
        lane_ops_log(lane, m);
    else if (job && !strcmp(job, lane->job) && !lane->result)
        on_job_message(lane, m);
    else
        worker_kill(lane->worker, "broke the protocol: a message about a job that is not running");
}

static void on_hello(void *ctx, const struct msg_hello *hello) {
    struct lane *lane = ctx;

    lane->ready = true;
    free(lane->arithmetic);
    free(lane->hardware);
    lane->arithmetic = xstrdup(hello->arithmetic);
    lane->hardware = xstrdup(hello->hardware);
    lane->memory = hello->memory;
    log_info("worker ready lane=%s device=%s pid=%lld", lane->name, hello->device, (long long)hello->pid);
    scheduler_kick(lane->app->scheduler);
}

static void settle_loss(struct lane *lane, const struct worker_end *end) {
    char at[TIME_SIZE];
    json_t *loss = json_pack("{s:s, s:s, s:s}", "cause", end->cause, "at", time_format(time_now_ms(), at), "stderr",
                             end->stderr_tail);

    settle(lane, &(struct job_change){.job = lane->job, .action = ACTION_LOSE, .loss = loss});
    json_decref(loss);
}

static void note_loss(struct lane *lane, const struct worker_end *end) {
    lane->lost++;
    lane->failures++;
    log_warn("worker lost lane=%s device=%s cause=\"%s\"", lane->name, lane->device, end->cause);
    remember_error(lane, end->cause);
}

/* The worker is gone: asked to (an idle one, a stopped job), or lost. */
static void on_end(void *ctx, const struct worker_end *end) {
    struct lane *lane = ctx;
    bool asked = lane->leaving && end->exit_status == 0 && !end->signal;

    lane->worker = NULL;
    lane->ready = lane->leaving = false;
    if (!asked && !lane->stopping) note_loss(lane, end);
    if (lane->phase == LANE_RUNNING && lane->result) return; /* its rows are on their way, then it has succeeded */
    if (lane->phase == LANE_RUNNING && lane->stopping)
        settle_stop(lane);
    else if (lane->phase == LANE_RUNNING)
        settle_loss(lane, end);
    else if (lane->phase == LANE_IDLE)
        rest_after_failure(lane);
}

static const struct worker_events worker_events = {on_hello, on_message, on_end};

/* ---- the start of a job ---- */

static enum rc send_start(struct lane *lane, struct err *e) {
    struct message m = {.type = MSG_START};
    struct arena arena = {0};
    struct job_record job;
    enum rc rc = job_get(store_reader(lane->app->store), lane->job, &job, &arena, e);

    if (rc == RC_OK) rc = start_build(lane->app, &job, &m.start, e);
    if (rc == RC_OK) {
        worker_send(lane->worker, &m);
        start_release(&m.start);
    }
    arena_release(&arena);
    return rc;
}

/* The claim is durable (or not). Meanwhile the worker may be gone, or the job told to stop. */
void lane_claimed(struct lane *lane, const struct err *e) {
    struct err error;

    if (e->rc != RC_OK) {
        if (e->rc != RC_CONFLICT && e->rc != RC_NOT_FOUND) lane_queue_failed(lane, e); /* the disk, not the worker */
        left(lane);
        return;
    }
    lane->phase = LANE_RUNNING;
    if (lane->stopping)
        settle_stop(lane);
    else if (!lane->worker || !lane->ready)
        settle_loss(lane, &(struct worker_end){.cause = "it ended before the job started", .stderr_tail = ""});
    else if (send_start(lane, &error) != RC_OK)
        settle_failure(lane, &error);
}

enum lane_readiness lane_readiness(const struct lane *lane) {
    if (lane->phase != LANE_IDLE || lane->drains || lane->leaving) return LANE_TAKEN;
    if (uv_is_active((const uv_handle_t *)&lane->retry)) return LANE_TAKEN;
    if (lane->ready) return LANE_READY;
    if (lane->failures) return LANE_DOUBTFUL;
    return lane->worker ? LANE_WORKER_STARTS : LANE_WITHOUT_WORKER;
}

void lane_offer(struct lane *lane, const char *job) {
    uv_timer_stop(&lane->idle);
    if (!lane->worker) start_worker(lane);
    if (!lane->ready) return;
    lane->phase = LANE_CLAIMING;
    snprintf(lane->job, sizeof lane->job, "%s", job);
    lane_ops_claim(lane);
}

void lane_rest(struct lane *lane) {
    if (lane->ready && !uv_is_active((uv_handle_t *)&lane->idle))
        uv_timer_start(&lane->idle, on_idle, (uint64_t)lane->app->config.worker_idle * 1000, 0);
}

void lane_queue_failed(struct lane *lane, const struct err *e) {
    remember_error(lane, e->message);
    retry_later(lane, RETRY_MS);
}

/* ---- stopping ---- */

static void on_kill(uv_timer_t *timer) {
    struct lane *lane = timer->data;

    if (lane->worker) worker_kill(lane->worker, "did not stop its job in time");
}

static void ask_to_stop(struct lane *lane) {
    if (lane->phase != LANE_RUNNING || !lane->worker) return;
    worker_send(lane->worker, &(struct message){.type = MSG_CANCEL, .cancel = {.job = lane->job}});
    uv_timer_start(&lane->kill, on_kill, CANCEL_MS, 0);
}

void lane_stop(struct lane *lane, enum job_action how, void (*notify)(void *ctx), void *ctx) {
    struct lane_waiter *waiter = xcalloc(1, sizeof *waiter);
    bool first = !lane->stopping;

    *waiter = (struct lane_waiter){.left = notify, .ctx = ctx, .next = lane->waiters};
    lane->waiters = waiter;
    if (first || how == ACTION_CANCEL) lane->stop = how;
    lane->stopping = true;
    if (first) ask_to_stop(lane);
}

/* One that is still starting is asked when it has said hello. */
void lane_vacate(struct lane *lane) {
    if (!lane->ready) return;
    uv_timer_stop(&lane->idle);
    let_worker_leave(lane);
}

void lane_drain(struct lane *lane) {
    lane->drains = true;
    if (lane->phase != LANE_SETTLING) uv_timer_stop(&lane->retry);
    if (lane->phase != LANE_IDLE && !lane->stopping) {
        lane->stop = ACTION_REQUEUE;
        lane->stopping = true;
        ask_to_stop(lane);
    } else {
        let_worker_leave(lane);
    }
}

bool lane_drained(const struct lane *lane) {
    return lane->phase == LANE_IDLE && !lane->worker;
}

/* ---- life ---- */

static char *taken_devices(const struct lane_options *o) {
    if (!o->splits || o->only_splits) return xasprintf("[\"%s\"]", o->device->name);
    return xasprintf("[\"%s\",\"" DEVICES_ALL "\"]", o->device->name);
}

void lane_init(struct lane *lane, struct app *app, const struct lane_options *options) {
    const struct device *device = options->device;

    *lane = (struct lane){.app = app,
                          .name = options->name,
                          .device = device->name,
                          .opens = options->opens ? options->opens : device->name,
                          .takes = taken_devices(options),
                          .takes_any = !options->only_splits,
                          .gpu = strcmp(device->name, "cpu") != 0,
                          .hardware = device->hardware ? xstrdup(device->hardware) : NULL,
                          .memory = device->memory};
    uv_timer_init(&app->loop, &lane->kill);
    uv_timer_init(&app->loop, &lane->retry);
    uv_timer_init(&app->loop, &lane->idle);
    lane->kill.data = lane->retry.data = lane->idle.data = lane;
}

void lane_close(struct lane *lane) {
    uv_close((uv_handle_t *)&lane->kill, NULL);
    uv_close((uv_handle_t *)&lane->retry, NULL);
    uv_close((uv_handle_t *)&lane->idle, NULL);
}

void lane_release(struct lane *lane) {
    free(lane->arithmetic);
    free(lane->hardware);
    free(lane->last_error);
    free(lane->takes);
}
