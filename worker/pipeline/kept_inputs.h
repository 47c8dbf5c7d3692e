/* What the Linears of one block read and the gradients at what they compute, of some chunks, in device memory: so that
 * what a block's inputs were needed for a second time does not take a second pass. Written over by the next block.
 * Device thread only. */
#ifndef HSAQ_WORKER_PIPELINE_KEPT_INPUTS_H
#define HSAQ_WORKER_PIPELINE_KEPT_INPUTS_H

#include <stdint.h>

#include "worker/model/model.h"
#include "worker/pipeline/backward.h"
#include "worker/pipeline/job.h"

struct kept_inputs {
    const struct job *job;
    int64_t rows; /* T of a chunk */
    void *memory;
    struct mat x[INPUT_COUNT], g[BLOCK_LINEARS_MAX]; /* [chunks·T, K], [chunks·T, N] of the activation type */
};

struct kept_inputs_args {
    const struct job *job;
    int64_t chunks, rows;
    int64_t in[INPUT_COUNT], out[BLOCK_LINEARS_MAX]; /* the widest K of an input, N of a position; 0: none is kept */
};
size_t kept_inputs_bytes(const struct kept_inputs_args *a);
enum rc kept_inputs_open(struct kept_inputs *k, const struct kept_inputs_args *a, struct err *e);
void kept_inputs_release(struct kept_inputs *k);

/* x with the first Linear that reads it. */
enum rc kept_inputs_add(struct kept_inputs *k, int64_t chunk, const struct linear_gradient *at, struct err *e);
/* Of a Linear [rows, cols] of that block. */
struct mat kept_input(const struct kept_inputs *k, int64_t chunk, const struct linear *linear);
struct mat kept_gradient(const struct kept_inputs *k, int64_t chunk, int position, const struct linear *linear);

#endif
