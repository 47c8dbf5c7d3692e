#include "daemon/jobs/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "daemon/jobs/lane.h"
#include "daemon/store/jobs.h"
#include "daemon/store/store.h"

enum { RETRY_MS = 1000 };

struct scheduler {
    struct app *app;
    struct lane *lanes; /* one per device, then the one for arithmetic */
    size_t count;
    bool recovering, recovered;
    uv_timer_t retry; /* of the recovery that the disk refused */
    void (*drained)(struct app *app);
};

/* ---- recovery ---- */

struct recovery {
    struct write_op op;
    struct scheduler *scheduler;
};

static enum rc next_running(struct db *db, char id[ID_SIZE], struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    id[0] = '\0';
    TRY(db_query(db, &stmt, e, "SELECT id FROM job WHERE state = 'running' LIMIT 1", ""));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return RC_OK;
    memcpy(id, sqlite3_column_text(stmt, 0), ID_SIZE);
    sqlite3_reset(stmt);
    return RC_OK;
}

/* What ran when the daemon ended is queued again; that the daemon ended counts as no attempt of the job. */
static enum rc recover_run(struct db *db, struct write_op *op, struct err *e) {
    char id[ID_SIZE];
    enum job_state state;

    for (;;) {
        TRY(next_running(db, id, e));
        if (!id[0]) return RC_OK;
        TRY(job_change(db, &op->events, &(struct job_change){.job = id, .action = ACTION_REQUEUE}, &state, e));
    }
}

static void on_retry(uv_timer_t *timer) {
    scheduler_kick(timer->data);
}

/* On a disk that is full at the start the daemon still serves reads, and tries again. */
static void recover_done(struct write_op *op, const struct err *e) {
    struct scheduler *s = ((struct recovery *)op)->scheduler;

    s->recovering = false;
    s->recovered = e->rc == RC_OK;
    free(op);
    if (s->recovered)
        scheduler_kick(s);
    else if (!s->app->draining)
        uv_timer_start(&s->retry, on_retry, RETRY_MS, 0);
}

static void recover(struct scheduler *s) {
    struct recovery *recovery = xcalloc(1, sizeof *recovery);

    s->recovering = true;
    recovery->op = (struct write_op){.run = recover_run, .done = recover_done};
    recovery->scheduler = s;
    store_submit(s->app->store, &recovery->op);
}

static void open_lanes(struct scheduler *s, const struct devices *devices) {
    s->lanes = xcalloc(devices->count + 1, sizeof *s->lanes);
    for (size_t i = 0; i < devices->count; i++)
        lane_init(&s->lanes[s->count++], s->app, "device", &devices->items[i]);
    lane_init(&s->lanes[s->count++], s->app, "cpu", &devices->cpu);
}

enum rc scheduler_new(struct app *app, struct scheduler **out, struct err *e) {
    struct scheduler *s = xcalloc(1, sizeof *s);
    char last[ID_SIZE];
    enum rc rc = job_last_id(store_reader(app->store), last, e);

    if (rc != RC_OK) {
        free(s);
        return rc;
    }
    id_continue_after(last);
    s->app = app;
    uv_timer_init(&app->loop, &s->retry);
    s->retry.data = s;
    open_lanes(s, &app->devices);
    recover(s);
    *out = s;
    return RC_OK;
}

/* ---- at work ---- */

static void tell_if_drained(struct scheduler *s) {
    void (*drained)(struct app * app) = s->drained;

    if (!drained) return;
    for (size_t i = 0; i < s->count; i++)
        if (!lane_drained(&s->lanes[i])) return;
    s->drained = NULL;
    drained(s->app);
}

static void add_taken(struct strbuf *taken, const char *job) {
    strbuf_printf(taken, "%s\"%s\"", taken->len > 1 ? "," : "", job);
}

/* What lanes have claimed may still be queued in the database. */
static struct strbuf jobs_in_lanes(const struct scheduler *s) {
    struct strbuf taken = STRBUF_INIT;

    strbuf_puts(&taken, "[");
    for (size_t i = 0; i < s->count; i++)
        if (s->lanes[i].job[0]) add_taken(&taken, s->lanes[i].job);
    return taken;
}

static enum rc find_job(struct scheduler *s, const struct lane *lane, const struct strbuf *taken, char id[ID_SIZE],
                        struct err *e) {
    char *array = xasprintf("%s]", taken->data);
    struct job_query query = {.lane = lane->name, .device = lane->device, .taken = array};
    enum rc rc = job_next(store_reader(s->app->store), &query, id, e);

    free(array);
    return rc;
}

static void find_work(struct scheduler *s, struct lane *lane, struct strbuf *taken) {
    char id[ID_SIZE];
    struct err e;

    if (find_job(s, lane, taken, id, &e) != RC_OK) {
        lane_queue_failed(lane, &e);
    } else if (!id[0]) {
        lane_rest(lane);
    } else {
        add_taken(taken, id);
        lane_offer(lane, id);
    }
}

/* The soonest lanes first, so that a worker is started only for a job that is left over. */
static void find_all_work(struct scheduler *s) {
    struct strbuf taken = jobs_in_lanes(s);

    for (int readiness = LANE_READY; readiness > LANE_TAKEN; readiness--)
        for (size_t i = 0; i < s->count; i++)
            if (lane_readiness(&s->lanes[i]) == (enum lane_readiness)readiness) find_work(s, &s->lanes[i], &taken);
    strbuf_release(&taken);
}

void scheduler_kick(struct scheduler *s) {
    if (s->drained) {
        for (size_t i = 0; i < s->count; i++)
            lane_drain(&s->lanes[i]);
        tell_if_drained(s);
        return;
    }
    if (s->app->draining) return;
    if (!s->recovered && !s->recovering) recover(s);
    if (s->recovered) find_all_work(s);
}

struct lane *scheduler_lane_of(const struct scheduler *s, const char *job) {
    for (size_t i = 0; i < s->count; i++)
        if (!strcmp(s->lanes[i].job, job)) return (struct lane *)&s->lanes[i];
    return NULL;
}

void scheduler_drain(struct scheduler *s, void (*drained)(struct app *app)) {
    s->drained = drained;
    scheduler_kick(s);
}

void scheduler_free(struct scheduler *s) {
    uv_close((uv_handle_t *)&s->retry, NULL);
    for (size_t i = 0; i < s->count; i++)
        lane_close(&s->lanes[i]);
    uv_run(&s->app->loop, UV_RUN_NOWAIT); /* the timers close */
    for (size_t i = 0; i < s->count; i++)
        lane_release(&s->lanes[i]);
    free(s->lanes);
    free(s);
}

/* ---- what it shows ---- */

size_t scheduler_devices(const struct scheduler *s) {
    return s->count;
}

static const char *worker_state(const struct lane *lane) {
    if (!lane->worker) return "none";
    if (lane->ready) return "ready";
    return lane->leaving ? "stopping" : "starting";
}

static const char *lane_state(const struct lane *lane) {
    if (lane->job[0]) return "busy";
    return lane->failures && !lane->ready ? "down" : "idle";
}

void scheduler_device(const struct scheduler *s, size_t index, struct device_status *out) {
    const struct lane *lane = &s->lanes[index];

    *out = (struct device_status){.name = lane->device,
                                  .lane = lane->name,
                                  .state = lane_state(lane),
                                  .worker = worker_state(lane),
                                  .hardware = lane->hardware,
                                  .memory = lane->memory,
                                  .pid = lane->worker ? worker_pid(lane->worker) : 0,
                                  .job = lane->job[0] ? lane->job : NULL,
                                  .workers_lost = lane->lost,
                                  .last_error = lane->last_error};
}
