/* A model as JSON, for people and for the daemon: what `hsaq-worker inspect` prints and GET /v1/models/{name} answers.
 *
 *   {name, family, quantization, architecture: {…}, parameters, bytes,
 *    linears: [{name, block, projection, shape, params, bytes, packed: null or {bits, group, symmetric, zero,
 * layout}}], unquantized_bytes: {embedding, norms, biases, head, total}}
 *
 * Bytes are as stored. `linears` has the blocks' Linears in forward order, then lm_head (block null); unquantized_bytes
 * is what no bit allocation touches: head is 0 when it is the embedding. Any thread. */
#ifndef HSAQ_WORKER_MODEL_DESCRIBE_H
#define HSAQ_WORKER_MODEL_DESCRIBE_H

#include <jansson.h>

#include "worker/model/model.h"

json_t *model_describe(const struct model *model); /* a new reference */

#endif
