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
    struct lane *lanes;    /* one per device, then the one for arithmetic, then that of split jobs, if there is one */
    size_t count, singles; /* of them all, of single devices */
    struct lane *split;    /* NULL: there is one device, whose lane runs them as they are */
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
    struct lane_options all = {
        .name = "device", .device = &devices->all, .opens = devices->list, .splits = true, .only_splits = true};
    bool several = devices->count > 1;

    s->lanes = xcalloc(devices->count + 2, sizeof *s->lanes);
    s->singles = devices->count;
    for (size_t i = 0; i < devices->count; i++)
        lane_init(&s->lanes[s->count++], s->app,
                  &(struct lane_options){.name = "device", .device = &devices->items[i], .splits = !several});
    lane_init(&s->lanes[s->count++], s->app, &(struct lane_options){.name = "cpu", .device = &devices->cpu});
    if (!several) return;
    s->split = &s->lanes[s->count++];
    lane_init(s->split, s->app, &all);
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

static enum rc find_first(struct scheduler *s, struct job_query query, const struct strbuf *taken, char id[ID_SIZE],
                          struct err *e) {
    char *array = xasprintf("%s]", taken->data);

    query.taken = array;
    enum rc rc = job_next(store_reader(s->app->store), &query, id, e);
    free(array);
    return rc;
}

static enum rc find_job(struct scheduler *s, const struct lane *lane, const struct strbuf *taken, char id[ID_SIZE],
                        struct err *e) {
    struct job_query query = {.lane = lane->name, .devices = lane->takes, .any = lane->takes_any};

    return find_first(s, query, taken, id, e);
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

/* ---- turns ---- */

/* Whose the devices are: the split job's, or the single lanes'. */
enum turn { TURN_SINGLE, TURN_SPLIT, TURN_NOBODY };

/* By the first job in line for any device; while there is none, whoever has a worker keeps it. */
static enum rc first_is_split(struct scheduler *s, const struct strbuf *taken, bool *split, struct err *e) {
    struct job_query any = {.lane = s->split->name, .devices = s->app->devices.json, .any = true};
    char first[ID_SIZE], first_split[ID_SIZE];

    TRY(find_first(s, any, taken, first, e));
    TRY(find_job(s, s->split, taken, first_split, e));
    *split = first[0] ? !strcmp(first, first_split) : s->split->worker != NULL;
    return RC_OK;
}

/* A lane whose worker fails to start leaves the devices to the others until it is tried again. */
static enum turn whose_turn(struct scheduler *s, const struct strbuf *taken) {
    struct err e;
    bool split;

    if (!s->split) return TURN_SINGLE;
    if (s->split->job[0]) return TURN_SPLIT;
    if (lane_readiness(s->split) == LANE_TAKEN) return TURN_SINGLE;
    if (first_is_split(s, taken, &split, &e) == RC_OK) return split ? TURN_SPLIT : TURN_SINGLE;
    lane_queue_failed(s->split, &e);
    return TURN_NOBODY;
}

/* Whether the other side has no job and no worker, which would hold memory of the devices; such as have no job are
 * asked to leave. */
static bool devices_are_free(struct scheduler *s, enum turn turn) {
    bool all = true;

    for (size_t i = 0; i < s->count; i++) {
        struct lane *lane = &s->lanes[i];
        bool other = turn == TURN_SPLIT ? i < s->singles : lane == s->split;
        if (!other || lane_drained(lane)) continue;
        lane_vacate(lane);
        all = false;
    }
    return all;
}

static bool may_start(const struct scheduler *s, const struct lane *lane, enum turn turn, bool devices_free) {
    bool numeric = lane == s->split || lane < s->lanes + s->singles;

    return !numeric || (devices_free && turn == (lane == s->split ? TURN_SPLIT : TURN_SINGLE));
}

/* The soonest lanes first, so that a worker is started only for a job that is left over. */
static void find_all_work(struct scheduler *s) {
    struct strbuf taken = jobs_in_lanes(s);
    enum turn turn = whose_turn(s, &taken);
    bool devices_free = turn != TURN_NOBODY && devices_are_free(s, turn);

    for (int readiness = LANE_READY; readiness > LANE_TAKEN; readiness--)
        for (size_t i = 0; i < s->count; i++)
            if (lane_readiness(&s->lanes[i]) == (enum lane_readiness)readiness &&
                may_start(s, &s->lanes[i], turn, devices_free))
                find_work(s, &s->lanes[i], &taken);
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
    return s->count - (s->split != NULL);
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

/* The lane that has a device now: its own, or that of split jobs. */
static const struct lane *holder(const struct scheduler *s, size_t index) {
    bool split = s->split && index < s->singles && (s->split->job[0] || s->split->worker);

    return split ? s->split : &s->lanes[index];
}

static void describe(const struct lane *lane, const struct lane *now, struct device_status *out) {
    *out = (struct device_status){.name = lane->device,
                                  .lane = lane->name,
                                  .state = lane_state(now),
                                  .worker = worker_state(now),
                                  .hardware = lane->hardware,
                                  .memory = lane->memory,
                                  .pid = now->worker ? worker_pid(now->worker) : 0,
                                  .job = now->job[0] ? now->job : NULL,
                                  .workers_lost = lane->lost,
                                  .last_error = now->last_error};
}

void scheduler_device(const struct scheduler *s, size_t index, struct device_status *out) {
    describe(&s->lanes[index], holder(s, index), out);
}

bool scheduler_split_lane(const struct scheduler *s, struct device_status *out) {
    if (s->split) describe(s->split, s->split, out);
    return s->split != NULL;
}
