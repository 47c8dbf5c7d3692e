/* An inversion: one Linear drifts more at more bits. Its two drifts are recomputed by plain loops over doubles that
 * share nothing with the backend's operation, and RTN's beside them, so that a reader can tell a defect of the metric
 * from one of the quantizer and from weights that are simply so. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_INVERSION_H
#define HSAQ_WORKER_PIPELINE_INVERSION_H

#include <jansson.h>

#include "base/candidate.h"
#include "worker/pipeline/input_group.h"
#include "worker/pipeline/job.h"

struct inversion {
    double drift[2], rtn_drift[2]; /* float64, at fewer and at more bits */
};

struct inversion_args {
    const struct job *job;
    struct input_group *group; /* with H, dense */
    int index;                 /* which of its Linears; dense */
    const struct linear *linear;
    const struct candidate *pair[2]; /* fewer bits, more bits */
};

/* RC_CANCELLED within one row of the Linear. */
enum rc inversion_recompute(const struct inversion_args *a, struct inversion *out, struct err *e);

/* "metric: …": float64 shows none; "input: …": RTN, which has no choice, inverts too; "quantizer: …": it alone does. */
const char *inversion_verdict(const struct inversion *v);

/* {drift_float64, rtn_drift_float64}, both [fewer bits, more bits]. */
json_t *inversion_encode(const struct inversion *v);
enum rc inversion_decode(const json_t *data, struct inversion *v, struct err *e);

#endif
