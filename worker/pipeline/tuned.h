/* The scales of a quantized model while they are tuned (refine.h): on the device, with what Adam keeps of each and the
 * codes, from which every step's weights are made anew.
 *
 * What is quantized in groups is tuned: not fp8, which is shown as it is, nor lm_head, which is not shown. Codes and
 * zeros stay as they are. Where the device has no room for all codes they lie in the host's memory, and those of the
 * next block come while the one at hand is computed. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_TUNED_H
#define HSAQ_WORKER_PIPELINE_TUNED_H

#include "worker/pipeline/backward.h"
#include "worker/pipeline/packed_store.h"

struct tuned;

#define TUNED_RATE "0.024/2^bits" /* the full one, for people */

/* Whether a Linear of the blocks made by this candidate is. */
bool tuned_by(const struct candidate *c);
/* Device memory that the scales of such a model take at least, beside what a walk does. */
int64_t tuned_bytes(const struct model *model, const struct candidate *recipe);

/* Takes that memory. The store stays where it is meanwhile. */
enum rc tuned_open(const struct job *job, const struct model *model, struct packed_store *store, struct tuned **t,
                   struct err *e);
void tuned_close(struct tuned *t); /* NULL is fine */
/* What the codes take if all lie on the device. */
int64_t tuned_code_bytes(const struct tuned *t);
/* Loads them, there if that leaves `reserve` bytes of its memory. */
enum rc tuned_load(struct tuned *t, int64_t reserve, struct err *e);

/* [linear_count] the Linears that tuned_show always replaces. */
const bool *tuned_shown(const struct tuned *t);
/* What is seen of a block, with the scales as they are by now; `next` will be shown after it (−1: none). */
enum rc tuned_show(struct tuned *t, int block, int next, struct block_weights *seen, struct err *e);
/* Adds to the slopes of a Linear's scales, in case that it is tuned. */
enum rc tuned_add(struct tuned *t, const struct linear_gradient *at, struct err *e);
/* A step down the slopes, which begin anew then; `step` counts from 1, `share` is of the full rate. */
enum rc tuned_step(struct tuned *t, int64_t step, double share, struct err *e);
/* Puts the scales into the store, as it keeps them. */
enum rc tuned_store(struct tuned *t, struct err *e);

#endif
