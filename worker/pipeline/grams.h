/* The Gram matrices H = Σ xᵀx [K, K] of one block's distinct inputs (and the head's), in device memory; or those of the
 * gradients at its Linears' outputs, G = Σ gᵀg [N, N], which are numbered by position.
 *
 * One block at a time: memory is the sum over what the block needs, whatever the number of windows. */
#ifndef HSAQ_WORKER_PIPELINE_GRAMS_H
#define HSAQ_WORKER_PIPELINE_GRAMS_H

#include <stdbool.h>

#include "worker/model/model.h"
#include "worker/pipeline/job.h"

enum { GRAMS_MAX = (int)INPUT_COUNT > (int)BLOCK_LINEARS_MAX ? (int)INPUT_COUNT : (int)BLOCK_LINEARS_MAX };

struct grams {
    const struct job *job;
    const struct model *model;
    int count;
    struct mat h[GRAMS_MAX];     /* [K, K]; data NULL: never needed */
    double *sum_abs[GRAMS_MAX];  /* [K] Σ|x|, where stats were asked for */
    double *mean_abs[GRAMS_MAX]; /* [K] host memory, after grams_finish: mean |x| */
    int64_t tokens;              /* of the whole calibration */
    bool active[GRAMS_MAX];      /* accumulated in this block */
    int64_t bytes;
};

struct grams_args {
    const struct job *job;
    const struct model *model; /* whose damaged weight an error names */
    int count;                 /* INPUT_COUNT or BLOCK_LINEARS_MAX */
    int64_t width[GRAMS_MAX];  /* K of input i, 0 when no block needs it */
    int64_t tokens;            /* that all devices together will add */
    bool stats;                /* mean |x| of the channels too */
    int64_t beside;            /* bytes that other grams of the walk hold */
};
int64_t grams_bytes(const struct grams_args *a);
/* RC_NO_MEMORY when they exceed the job's ram_limit (in host memory). */
enum rc grams_open(struct grams *g, const struct grams_args *a, struct err *e);
void grams_release(struct grams *g);

/* Zeroes and activates exactly the inputs wanted, [count]. */
enum rc grams_begin(struct grams *g, const bool *wanted, struct err *e);
/* Nothing when the input is not active. x [T, K]. */
enum rc grams_add(struct grams *g, int input, struct mat x, struct err *e);
/* Of the same inputs on several devices: leaves the sum of all on each, grams[i] on device i. */
enum rc grams_combine(struct grams *grams, int count, struct err *e);
/* After the last grams_add of the block, and after they were combined, before h is read. RC_INVALID says why where a
 * value added was not finite. */
enum rc grams_finish(struct grams *g, struct err *e);

#endif
