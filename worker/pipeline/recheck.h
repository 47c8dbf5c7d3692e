/* The inversions of a profile's table, each recomputed (inversion.h): from an earlier attempt, from the drift cache, or
 * in a walk of their own over what is left. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_RECHECK_H
#define HSAQ_WORKER_PIPELINE_RECHECK_H

#include <jansson.h>

#include "worker/model/windows.h"
#include "worker/pipeline/drift.h"
#include "worker/pipeline/packed_store.h"
#include "worker/pipeline/profile.h"

struct recheck_args {
    const struct job *job;
    const struct profiled_model *profiled; /* in the order of the table's Linears */
    const struct windows *windows;
    const struct drift_table *table;   /* complete */
    int64_t seed;                      /* of the calibration */
    const struct packed_store *around; /* as of struct grad_walk; then the cache has nothing to do with it */
};

/* [{name, candidates, drift, drift_float64, rtn_drift_float64, verdict}], pairs by [fewer bits, more bits]. Rows: phase
 * "_inversion", index = Linear · candidates + candidate with fewer bits. No inversion: nothing is done. */
enum rc recheck_inversions(const struct recheck_args *a, json_t **list, struct err *e);

#endif
