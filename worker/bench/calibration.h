/* Quantizing from calibration as a job of its own, for the clock: what an eval or a quantize job does before it scores
 * or writes. What comes out of a block is dropped. */
#ifndef HSAQ_WORKER_BENCH_CALIBRATION_H
#define HSAQ_WORKER_BENCH_CALIBRATION_H

#include "worker/pipeline/job.h"

/* Of an eval's spec: its uniform candidate for every Linear of a block, from its calibration. {quantized}: how many
 * Linears that were. A pipeline_fn. */
enum rc bench_calibrate(const struct job *job, json_t **result, struct err *e);
/* The same, and then the scales refined: {tokens_per_second} of refining alone, all epochs together. */
enum rc bench_refine(const struct job *job, json_t **result, struct err *e);

#endif
