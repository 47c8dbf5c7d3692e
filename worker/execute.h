/* The worker's device, or devices, and one job on them from start message to result. GPU thread only. */
#ifndef HSAQ_WORKER_EXECUTE_H
#define HSAQ_WORKER_EXECUTE_H

#include "base/protocol.h"
#include "worker/pipeline/job.h"

enum { WORKER_DEVICES_MAX = 64, WORKER_NAME_SIZE = 16 * WORKER_DEVICES_MAX };

struct worker_options {
    /* "cpu", "cuda:0", or "auto": the first GPU where there is one that can be used, else the cpu. Or several of one
     * kind, over which jobs may be split: "cuda:0,cuda:1". "cpu,cpu" halves the cores. */
    const char *devices;
    int threads;        /* of the cpu, in all; 0: all cores */
    int64_t ram_limit;  /* bytes; 0: none */
    int64_t vram_limit; /* bytes; 0: all that the GPU has */
    bool precise;       /* a GPU computes in fp32 like the cpu, not in bf16 */
    const char *scratch;
};

struct worker {
    const struct backend *backend;
    struct backend_state *device; /* the first, on which jobs run that are not split */
    struct backend_state *devices[WORKER_DEVICES_MAX];
    int device_count;
    char name[WORKER_NAME_SIZE]; /* "cpu", "cuda:0", "cuda:0,cuda:1" */
    int64_t ram_limit;
    const char *scratch; /* borrowed from the options */
};

enum rc worker_open(const struct worker_options *options, struct worker *worker, struct err *e);
void worker_release(struct worker *worker);

/* What it says first: who it is, and in what arithmetic it computes. The strings are the worker's. */
struct message worker_hello(const struct worker *worker);

/* Decodes the spec and runs its pipeline. */
enum rc worker_execute(const struct worker *worker, const struct msg_start *start, const struct job_link *link,
                       const atomic_bool *cancelled, json_t **result, struct err *e);

#endif
