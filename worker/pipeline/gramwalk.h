/* One walk of the reference model over calibration windows that hands over, for every input of a Linear asked for, its
 * Gram matrix H = XᵀX and the weights that read it. It ends after the last block that has one.
 *
 * A job that is split over devices walks a share of the windows on each. At a block's end the parts of H are added up
 * over the devices, and the block's Linears are divided among them; nothing else passes between devices. */
#ifndef HSAQ_WORKER_PIPELINE_GRAMWALK_H
#define HSAQ_WORKER_PIPELINE_GRAMWALK_H

#include <stdbool.h>

#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/input_group.h"
#include "worker/pipeline/job.h"

/* Where a walk that scores (gradwalk.h) wants what a candidate changes of a Linear. */
struct gram_slot {
    struct mat d; /* [N, K] of the activation type, device memory: w − ŵ */
    bool filled;  /* set by who wrote to it */
};

/* Some of the candidates that a walk is for: those from `first` on, up to `end`. */
struct gram_share {
    size_t first, end;
};

struct gram_input {
    int block; /* −1: of lm_head */
    enum linear_input input;
    struct mat h;           /* [K, K]; data NULL: gradwalk.h was not asked for it */
    struct mat h_w;         /* [K, K] tokens weighed by their gradients, of gradwalk.h; data NULL: not asked for */
    const double *mean_abs; /* [K] host memory, mean |x|; NULL unless asked for */
    int count;              /* all the Linears that read it, in model order */
    int64_t index[BLOCK_LINEARS_MAX];           /* into model.linears */
    struct mat w[BLOCK_LINEARS_MAX];            /* [N, K] */
    struct mat g[BLOCK_LINEARS_MAX];            /* [N, N] of gradwalk.h: of the gradients; data NULL: not asked for */
    struct gram_share candidates;               /* which are asked for: all, but for rounds of gradwalk.h */
    struct gram_slot *slots[BLOCK_LINEARS_MAX]; /* [all candidates] of gradwalk.h; else NULL */
    bool mine[BLOCK_LINEARS_MAX];               /* wanted, of the round, and of a job that is split, this device's */
};

struct gram_walk {
    const struct job *job;
    const struct model *model;
    const struct windows *windows;
    const char *phase;       /* of the progress */
    const bool *wanted;      /* [model.linear_count] */
    bool stats;              /* mean |x| too */
    size_t candidates;       /* how many the callback is to measure of each Linear, if that is what it does */
    int64_t reserved;        /* bytes of the job's ram_limit that the caller holds */
    int64_t device_reserved; /* bytes of the device's own memory that the callback takes, where that is much */
    /* Its matrices are valid during the call. Inputs come in model order; of a job that is split, each device calls for
     * those with Linears of its own, at the same time as others: `job` is the device's. */
    enum rc (*input)(void *ctx, const struct job *job, const struct gram_input *input, struct err *e);
    void *ctx;
};

/* For quantizing what the callback got; input_group_release it. */
struct input_group gram_input_group(const struct job *job, const struct model *model, const struct gram_input *in);

/* Nothing wanted: nothing is done. */
enum rc gram_walk_run(const struct gram_walk *g, struct err *e);

#endif
