/* What a profile tells of its model, for allocation to count bytes with: {name, fingerprint, architecture, windows,
 * unquantized_bytes, tied, head_counted, linears, params}. unquantized_bytes: every tensor that is not a profiled
 * Linear, as stored; with a tied head counted, the embedding stays in it. */
#ifndef HSAQ_WORKER_PIPELINE_PROFILE_H
#define HSAQ_WORKER_PIPELINE_PROFILE_H

#include <jansson.h>
#include <stdbool.h>

#include "base/strbuf.h"
#include "worker/model/fingerprint.h"
#include "worker/model/model.h"

struct profiled_model {
    const struct model *model;
    const struct fingerprints *prints;
    const int64_t *place; /* [count] profiled Linears, indices into model.linears */
    size_t count;
};

/* What gradients at a Linear depend on beside what its input does: the labels' seed and the whole model, by lm_head and
 * all that is upstream of it. Appended for a cache key; `prints` is chained. */
void gradients_key(const struct model *model, const struct fingerprints *prints, int64_t seed, struct strbuf *key);

/* Whether a scale of an input's channels can be taken out of what computes them, as fold.h would in a recipe that
 * quantizes what is profiled and leaves the rest as it is: what is packed already takes none. */
bool profiled_can_fold(const struct profiled_model *p, int block, enum linear_input input);
/* What it says, for the cache key of a row that AWQ has scaled; such rows know how norms are rounded. */
void profiled_fold_key(const struct profiled_model *p, const struct linear *linear, struct strbuf *key);

json_t *profiled_model_json(const struct profiled_model *p);

#endif
