#include "worker/execute.h"

#include <stdio.h>
#include <string.h>

/* "cuda" or "cuda:N" */
static bool cuda_ordinal(const char *device, int *ordinal) {
    int end = 0;
    *ordinal = 0;
    if (!strcmp(device, "cuda")) return true;
    return sscanf(device, "cuda:%3d%n", ordinal, &end) == 1 && device[end] == 0 && *ordinal >= 0;
}

static enum rc open_cpu(const struct worker_options *options, struct worker *worker, struct err *e) {
    struct backend_options open = {.threads = options->threads};
    worker->backend = &backend_cpu;
    snprintf(worker->name, sizeof worker->name, "cpu");
    return worker->backend->open(&open, &worker->device, e);
}

static enum rc open_cuda(const struct worker_options *options, int ordinal, struct worker *worker, struct err *e) {
    struct backend_options open = {.device = ordinal, .memory_limit = options->vram_limit};
    snprintf(worker->name, sizeof worker->name, "cuda:%d", ordinal);
    TRY(backend_cuda_load(options->precise ? DTYPE_F32 : DTYPE_BF16, &worker->backend, e));
    return worker->backend->open(&open, &worker->device, e);
}

enum rc worker_open(const struct worker_options *options, struct worker *worker, struct err *e) {
    int ordinal;
    *worker = (struct worker){.ram_limit = options->ram_limit, .scratch = options->scratch};
    if (!strcmp(options->device, "cpu")) return open_cpu(options, worker, e);
    if (cuda_ordinal(options->device, &ordinal)) return open_cuda(options, ordinal, worker, e);
    if (strcmp(options->device, "auto") != 0)
        return err_set(e, RC_UNSUPPORTED, "there is no device \"%s\": say auto, cpu, cuda or cuda:N", options->device);
    enum rc rc = open_cuda(options, 0, worker, e);
    return rc == RC_NOT_FOUND || rc == RC_UNSUPPORTED ? open_cpu(options, worker, e) : rc;
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
