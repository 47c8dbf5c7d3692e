/* One walk of the reference model over calibration windows that hands over, for every Linear asked for, its weights and
 * the Gram matrix H = XᵀX of its input. It ends after the last block that has one.
 *
 * A job that is split over devices walks a share of the windows on each. At a block's end the parts of H are added up
 * over the devices, and the block's Linears are divided among them; nothing else passes between devices. */
#ifndef HSAQ_WORKER_PIPELINE_GRAMWALK_H
#define HSAQ_WORKER_PIPELINE_GRAMWALK_H

#include <stdbool.h>

#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/job.h"

struct gram_linear {
    int64_t index;   /* into model.linears */
    struct mat w, h; /* [N, K], [K, K] */
};

struct gram_walk {
    const struct job *job;
    const struct model *model;
    const struct windows *windows;
    const char *phase;  /* of the progress */
    const bool *wanted; /* [model.linear_count] */
    /* Its matrices are valid during the call. Linears come in model order; of a job that is split, each device
     * calls for its own, at the same time as others: `job` is the device's. */
    enum rc (*linear)(void *ctx, const struct job *job, const struct gram_linear *linear, struct err *e);
    void *ctx;
};

/* Nothing wanted: nothing is done. */
enum rc gram_walk_run(const struct gram_walk *g, struct err *e);

#endif
