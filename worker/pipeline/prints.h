/* A model's fingerprints for a job: from the daemon's cache, or by reading the model; then they are kept there. GPU
 * thread only. */
#ifndef HSAQ_WORKER_PIPELINE_PRINTS_H
#define HSAQ_WORKER_PIPELINE_PRINTS_H

#include <jansson.h>

#include "worker/model/fingerprint.h"
#include "worker/pipeline/job.h"

/* The model outlives them; fingerprints_free them, also after a failure. */
enum rc prints_open(const struct job *job, const struct model *model, struct fingerprints **prints, struct err *e);
/* Of all the model's tensors, as a string. */
json_t *prints_json(const struct fingerprints *prints);

#endif
