/* One job as the daemon would have it run, split over the worker's devices where there are several, on a source in
 * memory, with a clock beside it. Nothing is cached and no row goes anywhere. Device thread only. */
#ifndef HSAQ_WORKER_BENCH_TIMED_JOB_H
#define HSAQ_WORKER_BENCH_TIMED_JOB_H

#include "worker/execute.h"
#include "worker/pipeline/source.h"

struct timed_job {
    const struct worker *worker;
    const struct source *source;
    pipeline_fn pipeline;
    const union spec *spec;
    int64_t tokens;   /* of its windows together */
    const char *name; /* for the progress, which is shown on a terminal only */
};

struct job_time {
    double total; /* s, from start to result */
    double walk;  /* s of it in the walk over all windows, as the job itself reports */
    double load;  /* s of that spent waiting for weights; NaN: the job does not say */
};

/* A job without a tokens_per_second in its result counts whole as its walk. */
enum rc timed_job_run(const struct timed_job *j, struct job_time *time, struct err *e);

/* What the backend's operations may be called with outside a pipeline. */
struct job timed_job_bare(const struct worker *worker, const struct source *source);

#endif
