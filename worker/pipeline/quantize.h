/* One Linear through one candidate and back: the same code for every job kind, so that what a profile scored is what
 * an eval runs. Deterministic; GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_QUANTIZE_H
#define HSAQ_WORKER_PIPELINE_QUANTIZE_H

#include "base/candidate.h"
#include "kernels/backend.h"
#include "kernels/formats.h"
#include "worker/pipeline/job.h"

/* out [N, K] = w [N, K] as it reads back from the candidate's storage. Not for METHOD_NONE, which keeps w as it is.
 * `report` may be NULL. */
enum rc quantize_weights(const struct job *job, struct mat w, const struct candidate *candidate, struct mat out,
                         struct quantize_report *report, struct err *e);

/* What lies on the device as it is stored; packed_release it. */
enum rc quantized_pack(const struct job *job, const struct quantized *q, const struct candidate *c, struct packed *out,
                       struct err *e);

/* Bytes of the packed buffers. */
int64_t candidate_bytes(const struct candidate *candidate, int64_t rows, int64_t cols);

#endif
