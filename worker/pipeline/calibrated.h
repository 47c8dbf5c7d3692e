/* What calibration makes of a block, and who takes it: a store that an eval reads from, or an artifact's writer. */
#ifndef HSAQ_WORKER_PIPELINE_CALIBRATED_H
#define HSAQ_WORKER_PIPELINE_CALIBRATED_H

#include <stdbool.h>

#include "kernels/backend.h"
#include "worker/model/model.h"
#include "worker/pipeline/job.h"
#include "worker/pipeline/stored.h"

/* How it went, for people. */
struct calibration_note {
    double damp;  /* GPTQ: what its factor took; 0: none */
    bool awq;     /* a Linear with this input asks for AWQ */
    bool scaled;  /* and its scales could be taken out of what computes the input: */
    double ratio; /* of the search */
    bool duo;
    double gain; /* output error of rounding to nearest with the scales, over that without */
};

struct calibrated_linear {
    const struct linear *linear;
    int64_t index;              /* into model.linears */
    struct candidate candidate; /* the recipe's; METHOD_NONE: kept in 16 bits */
    struct quantized q;         /* device memory; codes NULL: kept */
    struct stored weight;       /* [N, K] of a kept one that a scale went into; else as the model has it */
    struct stored bias;         /* [N] that a scale was taken out of; else as the model has it */
    struct calibration_note note;
};

struct calibrated_block {
    int block; /* −1: lm_head alone, at position 0 */
    int count;
    struct calibrated_linear linears[BLOCK_LINEARS_MAX]; /* by position */
    struct stored norm[INPUT_COUNT]; /* [D] the one that makes this input; where no scale was taken out of it, none */
};

/* Blocks come in order, or from the last one; lm_head last of all and only if it is in the recipe. `block` is valid
 * during the call; what the sink keeps of its host memory it sets to {0} there. On the calibration's thread and device.
 */
struct calibration_sink {
    void *ctx;
    enum rc (*block)(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e);
};

#endif
