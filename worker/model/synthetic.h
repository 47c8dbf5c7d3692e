/* Weights made up as they are asked for, so that any architecture's shapes can be measured without a model's files.
 *
 * Tensors are BF16 in memory: norm weights 1, everything else near-normal with mean 0 and standard deviation 0.02,
 * which keeps activations finite through any number of blocks. Every block has block 0's tensors, and an untied head
 * the embedding's bytes, so that the memory is that of one block and one embedding. The bytes follow from the seed and
 * the order of the calls alone, not from the number of threads. One thread at a time; making a tensor uses every core.
 */
#ifndef HSAQ_WORKER_MODEL_SYNTHETIC_H
#define HSAQ_WORKER_MODEL_SYNTHETIC_H

#include <stdint.h>

#include "base/err.h"
#include "worker/model/safetensors.h"

struct synthetic;

struct synthetic *synthetic_new(uint64_t seed);
void synthetic_free(struct synthetic *s); /* and every tensor; NULL is fine */

/* A tensor that has been made, for "model.layers.N.…" block 0's; NULL when there is none yet. */
const struct st_tensor *synthetic_find(const struct synthetic *s, const char *name);
/* One that has not been made: shape [dims], 1 or 2 of them. RC_NO_MEMORY. */
enum rc synthetic_make(struct synthetic *s, const char *name, const int64_t *shape, int dims,
                       const struct st_tensor **out, struct err *e);
/* The seed as text. The caller frees. */
char *synthetic_identity(const struct synthetic *s);

#endif
