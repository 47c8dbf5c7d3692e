/* The tensors of one block in device memory, loaded in one go, so that a device which can loads the next block while it
 * computes this one. Memory is taken once, as wide as the widest block needs. Packed Linears are dequantized on the
 * host, on all cores, when the load begins. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_BLOCK_H
#define HSAQ_WORKER_PIPELINE_BLOCK_H

#include "kernels/tensor.h"
#include "worker/model/model.h"
#include "worker/pipeline/job.h"

/* What a stream may see replaced: Linears by position in block_tensors.linears, where entries beyond the block's are
 * {0}, and what a scale of their inputs is folded into. */
struct block_weights {
    struct mat linear[BLOCK_LINEARS_MAX]; /* [N, K] fp32, or as stored where the backend computes on that */
    float *bias[BLOCK_LINEARS_MAX];       /* [N] by position; NULL: none */
    float *input_norm, *post_norm;        /* [D] */
};

/* What is the same for all streams. */
struct block_params {
    float *q_norm, *k_norm;              /* [head_dim] fp32; NULL where the block has none */
    int count;                           /* Linears in the block */
    int at[INPUT_COUNT], n[INPUT_COUNT]; /* first position, and how many, of the Linears with this input */
};

struct block {
    const struct job *job;
    const struct model *model;
    const bool *replaced; /* as block_open_without got it */
    struct block_weights weights;
    struct block_params params;
    void *memory, *staging; /* staging: packed Linears as values, in the host's memory; NULL where none is needed */
};

/* For the blocks 0 … last of the model. */
enum rc block_open(const struct job *job, const struct model *model, int last, struct block *b, struct err *e);
/* The same, but for what is always replaced: of Linears that are true in `replaced` [model.linear_count] only biases
 * are loaded, and `weights` has their shapes, without data. */
enum rc block_open_without(const struct job *job, const struct model *model, int last, const bool *replaced,
                           struct block *b, struct err *e);
/* Bytes of device memory that it takes. */
size_t block_bytes(const struct job *job, const struct model *model, int last, const bool *replaced);
void block_close(struct block *b); /* waits for what block_load has begun */

/* Begins to load; the backend's `loaded` ends it. */
enum rc block_load(struct block *b, int block, struct err *e);

/* Asks the kernel to read the pages of a block's Linears soon. */
void block_prefetch(const struct model *model, int block);

/* The Linear at a position of a block; NULL: there is none. */
const struct linear *block_linear(const struct model *model, int block, int position);

#endif
