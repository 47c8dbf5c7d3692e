/* The quantized model that a recipe makes of a calibration, in memory: calibrated, then its scales refined where that
 * is asked for. An eval compares it with the reference, a profile can measure around it. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_QUANTIZED_MODEL_H
#define HSAQ_WORKER_PIPELINE_QUANTIZED_MODEL_H

#include "worker/pipeline/refine.h"

struct quantized_model_args {
    const struct job *job;
    const struct model *model;
    const struct windows *windows;  /* of the calibration */
    const struct candidate *recipe; /* [model.linear_count] */
    json_t *notes;                  /* as of struct calibrate_args */
    int64_t seed;                   /* of the calibration */
    bool refine;
};

/* *store is the caller's to free, also after a failure; `refined` is zeros where nothing was. Repeated, the same bits
 * on one kind of device. */
enum rc quantized_model_make(const struct quantized_model_args *a, struct packed_store **store, struct refined *refined,
                             struct err *e);

#endif
