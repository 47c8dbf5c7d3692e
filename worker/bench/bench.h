/* `hsaq-worker bench`: how far the jobs are from what the device can do, on any architecture's shapes.
 *
 * A model with generated weights (model/synthetic.h) and random tokens goes through the very pipelines that jobs run.
 * Each phase is timed and held against its floor: the operations that it cannot do without (work.h) at the rate of the
 * model's own matrix products, timed right before and right after it, because a clock wanders. Every job runs once
 * untimed over one window and one block, so that what is loaded and chosen once does not count. GPU thread only. */
#ifndef HSAQ_WORKER_BENCH_BENCH_H
#define HSAQ_WORKER_BENCH_BENCH_H

#include <stdbool.h>
#include <stdio.h>

#include "worker/execute.h"

/* As given on the command line; zeros and NULL: defaults. */
struct bench_options {
    const char *config;     /* a Hugging Face config.json */
    const char *candidates; /* of the profile: ids with commas between; hqq2g64,hqq3g64,hqq4g64 */
    const char *
        phases; /* of gemm,eval,paired,profile,quantize (NULL: these),fisher,gptq,awq,refine,sweep. Floors need gemm. */
    const char *json;     /* file to write as well */
    int windows, length;  /* 16 of 2048 tokens */
    int blocks;           /* so many of the model's blocks; all */
    int64_t memory_limit; /* bytes, as the worker was given; for the report */
    bool synthetic;       /* there is nothing else yet; says so on the command line */
};

enum rc bench_run(const struct worker *worker, const struct bench_options *options, FILE *out, struct err *e);

#endif
