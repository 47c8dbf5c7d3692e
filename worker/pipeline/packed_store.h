/* The quantized model that calibration made, packed in host memory: a sink, and afterwards what a stream sees of it.
 *
 * Filled on one thread; then read by any number of them, each with its device. What it holds of a Linear is what an
 * artifact would, and reads back to the bits that the calibration's own stream saw. */
#ifndef HSAQ_WORKER_PIPELINE_PACKED_STORE_H
#define HSAQ_WORKER_PIPELINE_PACKED_STORE_H

#include "worker/pipeline/calibrated.h"
#include "worker/pipeline/replaced.h"

struct packed_store;

struct packed_store *packed_store_new(const struct model *model);
void packed_store_free(struct packed_store *s); /* NULL is fine */
struct calibration_sink packed_store_sink(struct packed_store *s);
/* The quantized model as an artifact that is made of this one has it: `made` has all its blocks (artifact.h),
 * `recipe` [linear_count] is what it was made by. The store does not refer to it afterwards. */
enum rc packed_store_read(struct packed_store *s, const struct model *made, const struct candidate *recipe,
                          struct err *e);
int64_t packed_store_bytes(const struct packed_store *s);

/* A block's Linears, norms and biases, as far as they are not the model's, are brought to `room`, which has its
 * staging, and take their place in `seen`. */
enum rc packed_store_show(const struct packed_store *s, const struct job *job, int block, const struct replaced *room,
                          struct block_weights *seen, struct err *e);
/* The same, but for what was quantized. */
enum rc packed_store_show_kept(const struct packed_store *s, const struct job *job, int block,
                               const struct replaced *room, struct block_weights *seen, struct err *e);
/* The codes of a block's Linear and what they were made by; NULL where it is not quantized. */
const struct packed *packed_store_codes(const struct packed_store *s, int block, int position, struct candidate *by);
/* Other scales in their place, [N, G], which fp16 holds exactly. Not of fp8. */
void packed_store_rescale(struct packed_store *s, int block, int position, const float *scales);
/* One of its Linears alone, into out [N, K] of the type that the backend multiplies with; RC_INTERNAL where it is held
 * as the model has it. */
enum rc packed_store_linear(const struct packed_store *s, const struct job *job, int block, int position,
                            struct mat out, struct err *e);
/* lm_head, into out [V, D] of the type that the backend multiplies with; RC_INTERNAL when there is none. */
enum rc packed_store_head(const struct packed_store *s, const struct job *job, struct mat out, struct err *e);
/* The norm before lm_head, where a scale was folded into it: host memory of the store, else without values. */
const struct stored *packed_store_final_norm(const struct packed_store *s);

#endif
