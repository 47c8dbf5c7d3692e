/* What a profile tells of its model, for allocation to count bytes with: {name, fingerprint, architecture, windows,
 * unquantized_bytes, tied, head_counted, linears, params}. unquantized_bytes: every tensor that is not a profiled
 * Linear, as stored; with a tied head counted, the embedding stays in it. */
#ifndef HSAQ_WORKER_PIPELINE_PROFILE_H
#define HSAQ_WORKER_PIPELINE_PROFILE_H

#include <jansson.h>

#include "worker/model/fingerprint.h"
#include "worker/model/model.h"

/* Of cache keys: what computed a row, and in which precision. */
#define PROFILE_BACKEND "cpu/fp32"

struct profiled_model {
    const struct model *model;
    const struct fingerprints *prints;
    const int64_t *place; /* [count] profiled Linears, indices into model.linears */
    size_t count;
};

json_t *profiled_model_json(const struct profiled_model *p);

#endif
