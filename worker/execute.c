#include "worker/execute.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

/* "cuda" or "cuda:N" */
static bool cuda_ordinal(const char *device, int *ordinal) {
    int end = 0;
    *ordinal = 0;
    if (!strcmp(device, "cuda")) return true;
    return sscanf(device, "cuda:%3d%n", ordinal, &end) == 1 && device[end] == 0 && *ordinal >= 0;
}

/* What is to be opened, and how many of it in all. */
struct opening {
    const struct worker_options *options;
    int shares;
};

static enum rc add_device(struct worker *worker, const struct backend_options *open, const char *name, struct err *e) {
    struct backend_state **device = &worker->devices[worker->device_count];
    size_t used = strlen(worker->name);
    TRY(worker->backend->open(open, device, e));
    snprintf(worker->name + used, sizeof worker->name - used, "%s%s", used ? "," : "", name);
    if (worker->device_count++ == 0) worker->device = *device;
    return RC_OK;
}

static enum rc use_backend(struct worker *worker, const struct backend *backend, const char *name, struct err *e) {
    if (worker->backend && worker->backend != backend)
        return err_set(e, RC_UNSUPPORTED, "%s cannot share jobs with %s: name devices of one kind", name, worker->name);
    worker->backend = backend;
    return RC_OK;
}

static enum rc open_cpu(const struct opening *o, struct worker *worker, struct err *e) {
    struct backend_options open = {.threads = o->options->threads, .shares = o->shares};
    TRY(use_backend(worker, &backend_cpu, "cpu", e));
    return add_device(worker, &open, "cpu", e);
}

static enum rc open_cuda(const struct opening *o, int ordinal, struct worker *worker, struct err *e) {
    struct backend_options open = {.device = ordinal, .memory_limit = o->options->vram_limit};
    const struct backend *backend;
    char name[16];
    snprintf(name, sizeof name, "cuda:%d", ordinal);
    TRY(backend_cuda_load(o->options->precise ? DTYPE_F32 : DTYPE_BF16, &backend, e));
    TRY(use_backend(worker, backend, name, e));
    return add_device(worker, &open, name, e);
}

static enum rc open_auto(const struct opening *o, struct worker *worker, struct err *e) {
    enum rc rc = open_cuda(o, 0, worker, e);
    if (rc != RC_NOT_FOUND && rc != RC_UNSUPPORTED) return rc;
    worker->backend = NULL;
    return open_cpu(o, worker, e);
}

static enum rc open_named(const struct opening *o, const char *name, struct worker *worker, struct err *e) {
    int ordinal;
    if (!strcmp(name, "cpu")) return open_cpu(o, worker, e);
    if (cuda_ordinal(name, &ordinal)) return open_cuda(o, ordinal, worker, e);
    if (!strcmp(name, "auto") && o->shares == 1) return open_auto(o, worker, e);
    return err_set(e, RC_UNSUPPORTED, "there is no device \"%s\": say auto, cpu, cuda or cuda:N%s", name,
                   o->shares > 1 ? "; of several, each by its name" : "");
}

static int count_items(const char *list) {
    int count = 1;
    for (; *list; list++)
        count += *list == ',';
    return count;
}

static enum rc open_list(const struct opening *o, char *list, struct worker *worker, struct err *e) {
    if (o->shares > WORKER_DEVICES_MAX)
        return err_set(e, RC_INVALID, "%d devices are named; a worker takes %d", o->shares, WORKER_DEVICES_MAX);
    for (char *name; (name = strsep(&list, ","));)
        TRY(open_named(o, name, worker, e));
    return worker->backend->attach(worker->device, e); /* the last one opened is this thread's otherwise */
}

enum rc worker_open(const struct worker_options *options, struct worker *worker, struct err *e) {
    struct opening o = {options, count_items(options->devices)};
    char *list = xstrdup(options->devices);
    *worker = (struct worker){.ram_limit = options->ram_limit, .scratch = options->scratch};
    enum rc rc = open_list(&o, list, worker, e);
    free(list);
    return rc;
}

void worker_release(struct worker *worker) {
    while (worker->device_count > 0)
        worker->backend->close(worker->devices[--worker->device_count]);
    worker->device = NULL;
}

/* Jobs that are not split have the first device, and the others rest. */
static void split(const struct worker *worker, struct job *job) {
    job->devices = worker->devices;
    job->device_count = worker->device_count;
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
                      .calibration = start->calibration,
                      .artifact = start->artifact,
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
    if (spec_is_split(&spec)) split(worker, &job);
    pipeline_fn pipeline = pipeline_find(job.kind->name);
    if (!pipeline) return err_set(e, RC_UNSUPPORTED, "this worker cannot run jobs of kind \"%s\"", job.kind->name);
    job_state_init(&state, start->rows);
    enum rc rc = pipeline(&job, result, e);
    job_state_release(&state);
    return rc;
}

struct message worker_hello(const struct worker *w) {
    return (struct message){.type = MSG_HELLO,
                            .hello = {.version = PROTOCOL_VERSION,
                                      .pid = getpid(),
                                      .build = HSAQ_VERSION,
                                      .device = w->name,
                                      .arithmetic = w->backend->arithmetic,
                                      .hardware = w->backend->hardware(w->device),
                                      .memory = w->backend->memory(w->device)}};
}

enum rc worker_execute(const struct worker *worker, const struct msg_start *start, const struct job_link *link,
                       const atomic_bool *cancelled, json_t **result, struct err *e) {
    struct arena arena = {0};
    *result = NULL;
    enum rc rc = run_pipeline(worker, start, link, cancelled, &arena, result, e);
    arena_release(&arena);
    return rc;
}
