/* What a job calibrates on: its windows, and how its result says so. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_CALIBRATION_TEXT_H
#define HSAQ_WORKER_PIPELINE_CALIBRATION_TEXT_H

#include <jansson.h>

#include "base/spec.h"
#include "worker/model/windows.h"
#include "worker/pipeline/source.h"

/* `given`, or where that is NULL what the profile behind the job's allocation was calibrated on. Strings are borrowed
 * from the job. RC_INVALID at /calibration when there is neither. */
enum rc calibration_find(const struct job *job, const struct spec_calibration *given, struct spec_calibration *out,
                         struct err *e);

/* The windows of a text that is tokens already. */
enum rc calibration_windows(const struct tokens *tokens, const struct spec_calibration *c, struct windows *out,
                            struct err *e);
/* The windows of the job's calibration text, which is not its dataset. */
enum rc calibration_read(const struct job *job, const struct source *source, const struct spec_calibration *c,
                         struct windows *out, struct err *e);

/* {dataset, sha256, samples, length, sampling, seed, tokens, windows_hash}; `file`: {"sha256"} of the start message. */
json_t *calibration_json(const struct spec_calibration *c, const struct windows *windows, const json_t *file);

#endif
