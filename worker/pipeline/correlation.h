/* How well a profile's scores order its Linears, against what a sweep measured of each. Pure but for JSON, any thread.
 */
#ifndef HSAQ_WORKER_PIPELINE_CORRELATION_H
#define HSAQ_WORKER_PIPELINE_CORRELATION_H

#include "worker/pipeline/allocate.h"

/* [{score, candidate, spearman, spearman_within_projection, n}]: for every score that the profile has, at the sweep's
 * candidate where that was profiled, else at each; over the n Linears that both have. ρ is null where it is not defined
 * (rank.h). */
json_t *correlation_json(const struct profile_table *table, const struct sweep_input *swept);

/* The same of a profile {"result", "rows"} and the sweep in the job's inputs; RC_INVALID as those who read them say. */
enum rc correlation_of(const json_t *profile, const json_t *sweep, json_t **out, struct err *e);

#endif
