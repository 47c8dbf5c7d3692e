/* The Gram matrices H = Σ xᵀx [K, K] of one block's distinct inputs (and the head's), in device memory.
 *
 * One block at a time: memory is the sum over the block's needed inputs, whatever the number of windows. */
#ifndef HSAQ_WORKER_PIPELINE_GRAMS_H
#define HSAQ_WORKER_PIPELINE_GRAMS_H

#include <stdbool.h>

#include "worker/model/model.h"
#include "worker/pipeline/job.h"

struct grams {
    const struct job *job;
    struct mat h[INPUT_COUNT];     /* [K, K]; data NULL: never needed */
    double *sum_abs[INPUT_COUNT];  /* [K] Σ|x|, where stats were asked for */
    double *mean_abs[INPUT_COUNT]; /* [K] host memory, after grams_finish: mean |x| */
    int64_t tokens;                /* of the whole calibration */
    bool active[INPUT_COUNT];      /* accumulated in this block */
    int64_t bytes;
};

struct grams_args {
    const struct job *job;
    int64_t width[INPUT_COUNT]; /* K of input i, 0 when no block needs it */
    int64_t tokens;             /* that all devices together will add */
    bool stats;                 /* mean |x| of the channels too */
};
/* RC_NO_MEMORY when they exceed the job's ram_limit (in host memory). */
enum rc grams_open(struct grams *g, const struct grams_args *a, struct err *e);
void grams_release(struct grams *g);

/* Zeroes and activates exactly the inputs wanted. */
enum rc grams_begin(struct grams *g, const bool wanted[INPUT_COUNT], struct err *e);
/* Nothing when the input is not active. x [T, K]. */
enum rc grams_add(struct grams *g, enum linear_input input, struct mat x, struct err *e);
/* Of the same inputs on several devices: leaves the sum of all on each, grams[i] on device i. */
enum rc grams_combine(struct grams *grams, int count, struct err *e);
/* After the last grams_add of the block, and after they were combined, before h is read. */
enum rc grams_finish(struct grams *g, struct err *e);

#endif
