#include "worker/execute.h"

#include <string.h>

enum rc worker_open(const struct worker_options *options, struct worker *worker, struct err *e) {
    if (strcmp(options->device, "auto") && strcmp(options->device, "cpu"))
        return err_set(e, RC_UNSUPPORTED, "no device \"%s\": this build knows \"cpu\"", options->device);
    *worker = (struct worker){.backend = &backend_cpu, .ram_limit = options->ram_limit, .scratch = options->scratch};
    struct backend_options open = {.threads = options->threads};
    return worker->backend->open(&open, &worker->device, e);
}

void worker_release(struct worker *worker) {
    if (worker->device) worker->backend->close(worker->device);
    worker->device = NULL;
}

static enum rc run_pipeline(const struct worker *worker, const struct msg_start *start, const struct job_link *link,
                            const atomic_bool *cancelled, struct arena *arena, json_t **result, struct err *e) {
    union spec spec;
    struct problems problems = {0};
    struct job_state state;
    struct job job = {.id = start->job,
                      .spec = &spec,
                      .model = start->model,
                      .dataset = start->dataset,
                      .inputs = start->inputs,
                      .rows = start->rows,
                      .backend = worker->backend,
                      .device = worker->device,
                      .ram_limit = worker->ram_limit,
                      .scratch = worker->scratch,
                      .link = link,
                      .cancelled = cancelled,
                      .state = &state};
    TRY(spec_decode(start->spec, &spec, &job.kind, arena, &problems, e));
    pipeline_fn pipeline = pipeline_find(job.kind->name);
    if (!pipeline) return err_set(e, RC_UNSUPPORTED, "this worker cannot run jobs of kind \"%s\"", job.kind->name);
    job_state_init(&state, start->rows);
    enum rc rc = pipeline(&job, result, e);
    job_state_release(&state);
    return rc;
}

enum rc worker_execute(const struct worker *worker, const struct msg_start *start, const struct job_link *link,
                       const atomic_bool *cancelled, json_t **result, struct err *e) {
    struct arena arena = {0};
    *result = NULL;
    enum rc rc = run_pipeline(worker, start, link, cancelled, &arena, result, e);
    arena_release(&arena);
    return rc;
}
