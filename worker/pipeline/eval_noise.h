/* The noise floor of an eval's KL: the reference against itself in the same arithmetic.
 *
 * The beginning of the first window goes through the walk and the score twice over, as both streams with the
 * reference's weights. On a backend that repeats itself to the last bit the two agree and the floor is exactly 0; where
 * reductions run in changing order it is what a KL has to exceed to mean anything. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_EVAL_NOISE_H
#define HSAQ_WORKER_PIPELINE_EVAL_NOISE_H

#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/eval_result.h"
#include "worker/pipeline/job.h"

struct noise_args {
    const struct job *job;
    const struct model *model;
    const struct windows *windows; /* one at least */
    struct mat head;               /* [V, D] device memory */
    const float *head_bias;        /* [V] or NULL */
};

enum rc eval_noise_measure(const struct noise_args *a, struct eval_noise *out, struct err *e);

#endif
