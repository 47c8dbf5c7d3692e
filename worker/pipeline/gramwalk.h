/* One walk of the reference model over calibration windows that hands over, for every Linear asked for, its weights and
 * the Gram matrix H = XᵀX of its input. It ends after the last block that has one. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_GRAMWALK_H
#define HSAQ_WORKER_PIPELINE_GRAMWALK_H

#include <stdbool.h>

#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/job.h"

struct gram_walk {
    const struct job *job;
    const struct model *model;
    const struct windows *windows;
    const char *phase;  /* of the progress */
    const bool *wanted; /* [model.linear_count] */
    /* w [N, K] and h [K, K] are valid during the call; Linears come in model order. */
    enum rc (*linear)(void *ctx, int64_t index, struct mat w, struct mat h, struct err *e);
    void *ctx;
};

/* Nothing wanted: nothing is done. */
enum rc gram_walk_run(const struct gram_walk *g, struct err *e);

#endif
