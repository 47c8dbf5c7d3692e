#include "daemon/jobs/lane_ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/store/drift.h"
#include "daemon/store/rows.h"
#include "daemon/store/store.h"

/* ---- claim ---- */

struct claim {
    struct write_op op;
    struct lane *lane;
    char job[ID_SIZE], stamp[MODEL_STAMP_SIZE], *arithmetic;
    bool stamped;
};

/* The cpu and the precisions of a GPU do not agree to the last bit: what one has computed, another does not go on with.
 */
static enum rc drop_rows_of_other_arithmetic(struct db *db, const struct claim *claim, struct err *e) {
    return db_run(db, e, "DELETE FROM row WHERE job = ?1 AND (SELECT arithmetic IS NOT ?2 FROM job WHERE id = ?1)",
                  "tt", claim->job, claim->arithmetic);
}

/* Between the choice of the job and now it may have been given another device. */
static enum rc check_pin(struct db *db, const struct claim *claim, struct err *e) {
    int64_t elsewhere;

    TRY(db_query_int(db, &elsewhere, e,
                     "SELECT count(*) FROM job WHERE id = ?1 AND CASE WHEN device IS NULL THEN NOT ?3 ELSE device NOT "
                     "IN (SELECT value FROM json_each(?2)) END",
                     "tti", claim->job, claim->lane->takes, (int64_t)claim->lane->takes_any));
    return elsewhere ? err_set(e, RC_CONFLICT, "job %s asks for another device", claim->job) : RC_OK;
}

static enum rc claim_run(struct db *db, struct write_op *op, struct err *e) {
    struct claim *claim = (struct claim *)op;
    struct job_change change = {
        .job = claim->job, .action = ACTION_START, .device = claim->lane->device, .arithmetic = claim->arithmetic};
    enum job_state state;

    TRY(check_pin(db, claim, e));
    TRY(drop_rows_of_other_arithmetic(db, claim, e));
    if (claim->stamped) {
        change.model_stamp = claim->stamp;
        TRY(db_run(db, e,
                   "DELETE FROM row WHERE job = ?1 AND (SELECT model_stamp IS NOT NULL AND model_stamp <> ?2 FROM job "
                   "WHERE id = ?1)",
                   "tt", claim->job, claim->stamp));
    }
    return job_change(db, &op->events, &change, &state, e);
}

static void claim_done(struct write_op *op, const struct err *e) {
    struct claim *claim = (struct claim *)op;

    lane_claimed(claim->lane, e);
    free(claim->arithmetic);
    free(claim);
}

/* A model that cannot be read any more is found out, with a better message, when the job starts. */
static bool stamp_model(struct lane *lane, char stamp[MODEL_STAMP_SIZE]) {
    struct arena arena = {0};
    struct job_record job;
    struct err e;
    char *path;
    bool ok = job_get(store_reader(lane->app->store), lane->job, &job, &arena, &e) == RC_OK && job.model &&
              model_find(&lane->app->models, job.model, &path, &e) == RC_OK;

    if (ok) {
        ok = model_stamp(path, stamp, &e) == RC_OK;
        free(path);
    }
    arena_release(&arena);
    return ok;
}

void lane_ops_claim(struct lane *lane) {
    struct claim *claim = xcalloc(1, sizeof *claim);

    claim->op = (struct write_op){.run = claim_run, .done = claim_done};
    claim->lane = lane;
    claim->arithmetic = xstrdup(lane->arithmetic);
    memcpy(claim->job, lane->job, sizeof claim->job);
    claim->stamped = stamp_model(lane, claim->stamp);
    store_submit(lane->app->store, &claim->op);
}

/* ---- settle ---- */

struct settlement {
    struct write_op op;
    struct lane *lane;
    struct job_change change;
    char job[ID_SIZE], *progress;
    json_t *error, *loss, *result;
};

static enum rc settle_run(struct db *db, struct write_op *op, struct err *e) {
    struct settlement *s = (struct settlement *)op;
    enum job_state state;

    return job_change(db, &op->events, &s->change, &state, e);
}

static void settlement_free(struct settlement *s) {
    json_decref(s->error);
    json_decref(s->loss);
    json_decref(s->result);
    free(s->progress);
    free(s);
}

static void settle_done(struct write_op *op, const struct err *e) {
    struct settlement *s = (struct settlement *)op;
    enum job_action action = s->change.action;
    struct lane *lane = s->lane;

    if (e->rc == RC_NO_SPACE || e->rc == RC_IO || e->rc == RC_NO_MEMORY) {
        lane->settlement = s;
    } else {
        lane->settlement = NULL;
        settlement_free(s);
    }
    lane_settled(lane, action, e);
}

/* The writer thread reads the documents: it gets copies of its own, as jansson's counts are shared with nobody. */
void lane_ops_settle(struct lane *lane, const struct job_change *change, const json_t *progress) {
    struct settlement *s = xcalloc(1, sizeof *s);

    s->op = (struct write_op){.run = settle_run, .done = settle_done};
    s->lane = lane;
    s->change = *change;
    memcpy(s->job, lane->job, sizeof s->job);
    s->error = change->error ? json_deep_copy(change->error) : NULL;
    s->loss = change->loss ? json_deep_copy(change->loss) : NULL;
    s->result = change->result ? json_deep_copy(change->result) : NULL;
    s->progress = progress ? json_line(progress) : NULL;
    s->change.job = s->job;
    s->change.error = s->error;
    s->change.loss = s->loss;
    s->change.result = s->result;
    s->change.progress = s->progress;
    store_submit(lane->app->store, &s->op);
}

void lane_ops_settle_again(struct lane *lane) {
    struct settlement *s = lane->settlement;

    lane->settlement = NULL;
    store_submit(lane->app->store, &s->op);
}

/* ---- rows, log, cache ---- */

struct line {
    struct write_op op;
    struct lane *lane;
    char job[ID_SIZE];
    struct message m;
};

/* The message outlives its call by a reference to the JSON that its strings point into. The writer thread only reads
 * it, and jansson counts references atomically. */
static struct line *line_new(struct lane *lane, const struct message *m) {
    struct line *line = xcalloc(1, sizeof *line);

    line->lane = lane;
    memcpy(line->job, lane->job, sizeof line->job);
    line->m = *m;
    json_incref(line->m.root);
    return line;
}

static void line_free(struct line *line) {
    message_release(&line->m);
    free(line);
}

/* The cached row carries the model of its job, by which the cache is listed and cleared. */
static enum rc put_row_in_cache(struct db *db, const char *job, const struct msg_row *row, struct err *e) {
    struct arena arena = {0};
    struct job_record record;
    enum rc rc = job_get(db, job, &record, &arena, e);

    if (rc == RC_OK)
        rc = cache_put(db,
                       &(struct cache_entry){
                           .cache = CACHE_DRIFT, .key = row->cache_key, .model = record.model, .data = row->data},
                       e);
    arena_release(&arena);
    return rc;
}

static enum rc row_run(struct db *db, struct write_op *op, struct err *e) {
    struct line *line = (struct line *)op;
    const struct msg_row *row = &line->m.row;

    TRY(row_insert(db, line->job, row->phase, row->index, row->data, e));
    return row->cache_key ? put_row_in_cache(db, line->job, row, e) : RC_OK;
}

static void row_done(struct write_op *op, const struct err *e) {
    struct line *line = (struct line *)op;

    lane_row_done(line->lane, e);
    line_free(line);
}

void lane_ops_row(struct lane *lane, const struct message *m) {
    struct line *line = line_new(lane, m);

    line->op = (struct write_op){.run = row_run, .done = row_done};
    store_submit(lane->app->store, &line->op);
}

static enum rc log_run(struct db *db, struct write_op *op, struct err *e) {
    struct line *line = (struct line *)op;

    return event_append(
        db, &op->events, line->job, "log",
        json_pack("{s:s, s:s, s:s}", "job", line->job, "level", line->m.log.level, "text", line->m.log.text), e);
}

/* Neither a log line nor a cache entry is worth a job. */
static void unimportant_done(struct write_op *op, const struct err *e) {
    if (e->rc != RC_OK) log_warn("%s", e->message);
    line_free((struct line *)op);
}

void lane_ops_log(struct lane *lane, const struct message *m) {
    struct line *line = line_new(lane, m);

    line->op = (struct write_op){.run = log_run, .done = unimportant_done};
    store_submit(lane->app->store, &line->op);
}

static enum rc store_run(struct db *db, struct write_op *op, struct err *e) {
    const struct msg_store *store = &((struct line *)op)->m.store;

    return cache_put(
        db, &(struct cache_entry){.cache = store->cache, .key = store->key, .model = store->model, .data = store->data},
        e);
}

void lane_ops_store(struct lane *lane, const struct message *m) {
    struct line *line = line_new(lane, m);

    line->op = (struct write_op){.run = store_run, .done = unimportant_done};
    store_submit(lane->app->store, &line->op);
}

struct lookup {
    struct write_op op;
    struct lane *lane;
    unsigned generation;
    enum cache_name cache;
    json_t *keys;
};

/* What cannot be read is computed anew: the answer says nothing is there. */
static void lookup_done(struct write_op *op, const struct err *e) {
    struct lookup *lookup = (struct lookup *)op;
    struct lane *lane = lookup->lane;
    struct err error = *e;
    json_t *entries = NULL;

    if (lane->worker && lane->generation == lookup->generation) {
        if (cache_lookup(store_reader(lane->app->store), lookup->cache, lookup->keys, &entries, &error) != RC_OK) {
            log_warn("%s", error.message);
            entries = json_object();
        }
        worker_send(lane->worker, &(struct message){.type = MSG_CACHED, .cached = {.entries = entries}});
        json_decref(entries);
    }
    json_decref(lookup->keys);
    free(lookup);
}

void lane_ops_lookup(struct lane *lane, const struct msg_lookup *m) {
    struct lookup *lookup = xcalloc(1, sizeof *lookup);

    *lookup = (struct lookup){.op = {.done = lookup_done},
                              .lane = lane,
                              .generation = lane->generation,
                              .cache = m->cache,
                              .keys = json_incref(m->keys)};
    store_submit(lane->app->store, &lookup->op);
}
