/* An artifact as an eval's quantized stream: opened beside the reference that it must be made of, and seen block by
 * block. Opened on one thread, then read by any number of them. */
#ifndef HSAQ_WORKER_PIPELINE_EVAL_ARTIFACT_H
#define HSAQ_WORKER_PIPELINE_EVAL_ARTIFACT_H

#include "worker/model/model.h"
#include "worker/pipeline/job.h"

/* The job's artifact. RC_INVALID at /artifact, naming both, unless it is the reference's architecture and vocabulary
 * with other weights, and its provenance.json, where it has one, names the reference's fingerprint. */
enum rc eval_artifact_open(const struct job *job, const struct model *reference, struct model **artifact,
                           struct err *e);

/* lm_head where it is another than the reference's, else without data; the caller frees it, also after a failure. */
enum rc eval_artifact_head(const struct job *job, const struct model *reference, const struct model *artifact,
                           struct mat *head, struct err *e);

#endif
