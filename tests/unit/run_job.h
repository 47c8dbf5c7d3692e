/* Runs a job in this process, as the worker would, and keeps what it says. */
#ifndef HSAQ_TESTS_RUN_JOB_H
#define HSAQ_TESTS_RUN_JOB_H

#include "tests/unit/cmocka_main.h"

#include <stdio.h>
#include <string.h>

#include "worker/execute.h"

#define FIXTURE "tests/fixture/"

struct run {
    json_t *rows;                  /* as msg_start takes them */
    json_t *result;                /* NULL after an error */
    json_t *cache;                 /* {key: data}: what lookups find, and rows leave */
    int64_t progress;              /* messages */
    char phase[32];                /* of the last one, */
    int64_t done, total;           /* and what it says */
    bool went_back;                /* within a phase */
    int64_t stop_after;            /* rows after which the daemon is lost; 0: never */
    const char *stop_phase;        /* or when it is told of progress in this phase, beyond its beginning */
    const struct backend *backend; /* in place of the worker's own; NULL: that one */
    int64_t ram_limit;             /* 0: none */
    const char *scratch;           /* NULL: /tmp */
    const char *devices;           /* NULL: cpu */
    const char *artifact;          /* folder that the job makes or reads; NULL: none */
    atomic_bool cancelled;
    struct err err;
};

static void run_note_progress(struct run *r, const struct msg_progress *p) {
    if (!strcmp(r->phase, p->phase) && p->done < r->done) r->went_back = true;
    snprintf(r->phase, sizeof r->phase, "%s", p->phase);
    r->done = p->done;
    r->total = p->total;
    r->progress++;
}

static enum rc run_send(void *ctx, const struct message *m, struct err *e) {
    struct run *r = ctx;
    if (m->type == MSG_PROGRESS) run_note_progress(r, &m->progress);
    bool lost = m->type == MSG_PROGRESS && r->stop_phase && !strcmp(m->progress.phase, r->stop_phase) && r->done > 0;
    if (lost) return err_set(e, RC_UNAVAILABLE, "lost");
    if (m->type != MSG_ROW) return RC_OK;
    if (r->stop_after && (int64_t)json_array_size(r->rows) == r->stop_after) return err_set(e, RC_UNAVAILABLE, "lost");
    json_array_append_new(r->rows, json_pack("{ss sI sO}", "phase", m->row.phase, "index", (json_int_t)m->row.index,
                                             "data", m->row.data));
    if (m->row.cache_key) json_object_set(r->cache, m->row.cache_key, m->row.data);
    return RC_OK;
}

static enum rc run_lookup(void *ctx, enum cache_name cache, json_t *keys, json_t **entries, struct err *e) {
    (void)e;
    struct run *r = ctx;
    *entries = json_object();
    size_t i;
    json_t *key;
    json_array_foreach(keys, i, key) {
        json_t *data = cache == CACHE_DRIFT ? json_object_get(r->cache, json_string_value(key)) : NULL;
        if (data) json_object_set(*entries, json_string_value(key), data);
    }
    return RC_OK;
}

static void run_init(struct run *r) {
    *r = (struct run){.rows = json_array(), .cache = json_object()};
}

static void run_release(struct run *r) {
    json_decref(r->rows);
    json_decref(r->cache);
    json_decref(r->result);
}

/* `spec`: JSON with ' for ". `earlier`: rows of an earlier attempt, or NULL. */
static inline enum rc run_job(struct run *r, const char *model_path, const char *text_path, const char *spec,
                              json_t *earlier, json_t *inputs) {
    char text[2048];
    snprintf(text, sizeof text, "%s", spec);
    for (char *c = text; *c; c++)
        if (*c == '\'') *c = '"';
    struct worker worker = {0};
    struct worker_options options = {.devices = r->devices ? r->devices : "cpu",
                                     .threads = 1,
                                     .ram_limit = r->ram_limit,
                                     .scratch = r->scratch ? r->scratch : "/tmp"};
    assert_int_equal(worker_open(&options, &worker, &r->err), RC_OK);
    if (r->backend) worker.backend = r->backend;
    struct msg_start start = {
        .job = "test",
        .attempt = 1,
        .spec = json_loads(text, 0, NULL),
        .model = json_pack("{ss ss}", "name", "M", "path", model_path),
        .dataset = json_pack("{ss ss}", "name", "D", "path", text_path),
        .calibration = json_pack("{ss ss ss}", "name", "C", "sha256", "5a", "path", FIXTURE "calibration.txt"),
        .artifact = r->artifact ? json_pack("{ss ss}", "name", "made", "path", r->artifact) : NULL,
        .inputs = inputs,
        .rows = earlier};
    assert_non_null(start.spec);
    struct job_link link = {run_send, run_lookup, r};
    json_decref(r->result);
    enum rc rc = worker_execute(&worker, &start, &link, &r->cancelled, &r->result, &r->err);
    json_decref(start.spec);
    json_decref(start.model);
    json_decref(start.dataset);
    json_decref(start.calibration);
    json_decref(start.artifact);
    worker_release(&worker);
    return rc;
}

static inline void must_run(struct run *r, const char *text_path, const char *spec, json_t *earlier) {
    if (run_job(r, FIXTURE "tiny", text_path, spec, earlier, NULL) != RC_OK) fail_msg("%s", r->err.message);
}

/* The drift row of one Linear and candidate. */
static inline const json_t *row_of(const struct run *r, const char *name, const char *candidate) {
    size_t i;
    json_t *row;
    json_array_foreach(r->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        if (!strcmp(json_string_value(json_object_get(data, "name")), name) &&
            !strcmp(json_string_value(json_object_get(data, "candidate")), candidate))
            return data;
    }
    fail_msg("no row of %s %s", name, candidate);
    return NULL;
}

#endif
