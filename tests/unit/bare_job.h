/* What a pipeline works with, for tests that call its parts: the tiny model and its calibration text on one thread. */
#ifndef HSAQ_TESTS_BARE_JOB_H
#define HSAQ_TESTS_BARE_JOB_H

#include "tests/unit/run_job.h"

#include "worker/pipeline/source.h"

struct bare_job {
    struct run run; /* takes what the job says */
    struct job_link link;
    struct job job;
    struct source source;
    json_t *model, *dataset;
    struct err err;
};

static inline void bare_must(struct bare_job *b, enum rc rc) {
    if (rc != RC_OK) fail_msg("%s", b->err.message);
}

static inline void bare_open(struct bare_job *b) {
    static const struct backend_options options = {.threads = 1};
    *b = (struct bare_job){.link = {run_send, run_lookup, &b->run}};
    run_init(&b->run);
    b->model = json_pack("{ss ss}", "name", "M", "path", FIXTURE "tiny");
    b->dataset = json_pack("{ss ss}", "name", "D", "path", FIXTURE "calibration.txt");
    b->job = (struct job){.id = "test",
                          .model = b->model,
                          .dataset = b->dataset,
                          .backend = &backend_cpu,
                          .scratch = "/tmp",
                          .link = &b->link};
    bare_must(b, backend_cpu.open(&options, &b->job.device, &b->err));
    bare_must(b, source_open(&b->job, &b->source, &b->err));
}

static inline void bare_close(struct bare_job *b) {
    source_release(&b->source);
    backend_cpu.close(b->job.device);
    json_decref(b->model);
    json_decref(b->dataset);
    run_release(&b->run);
}

#endif
