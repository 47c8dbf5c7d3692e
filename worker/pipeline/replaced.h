/* Device memory for what a stream sees in place of a block's own tensors, taken once, with room for any block. Linears
 * lie side by side, as block.c lays the reference's, so that those of one input are one product. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_REPLACED_H
#define HSAQ_WORKER_PIPELINE_REPLACED_H

#include "worker/pipeline/block.h"
#include "worker/pipeline/stored.h"

struct replaced {
    struct block_weights room; /* of Linears only where they begin */
    void *memory;
    char *staging; /* the same room for Linears in host memory that the device copies from; or NULL */
};

size_t replaced_bytes(const struct job *job, const struct model *model);
enum rc replaced_open(const struct job *job, const struct model *model, struct replaced *r, struct err *e);
/* Gives an open one its staging, where the device's memory is not the host's. */
enum rc replaced_stage(const struct job *job, const struct model *model, struct replaced *r, struct err *e);
void replaced_release(const struct job *job, struct replaced *r);

/* Room for ŵ of the Linear at a position, `of` that shape, in the type that the backend multiplies with. */
struct mat replaced_linear(const struct replaced *r, const struct job *job, int position, struct mat of);

/* Where the host writes what is to be in `out`, one of the room's: staging, or the room itself. */
struct mat replaced_host(const struct replaced *r, struct mat out);

/* Host values take the place of *seen. Of a Linear, [N, K] as it was: */
enum rc replaced_put_linear(const struct replaced *r, const struct job *job, int position, const struct stored *values,
                            struct mat *seen, struct err *e);
/* Of a norm or a bias, whose room is given; nothing where there are no values. */
enum rc replaced_put_vector(const struct job *job, float *room, const struct stored *values, float **seen,
                            struct err *e);

#endif
