/* Calibration: a model quantized block by block, from the H of what its Linears read.
 *
 * Where a candidate is sequential, that is what the model quantized so far computes: the walk goes in stages, and what
 * reads an input is quantized before anything that follows it is computed. Where none is, it is what the reference
 * computes, in one plain pass. A recipe with both is calibrated sequentially as a whole, and the plan says for how many
 * Linears that is not what they ask: H of two streams side by side would cost a second walk, for candidates that gain
 * from the one that they are used in.
 *
 * Where one is guided, all are calibrated on what the reference computes, on the way back of a walk that has gradients
 * (gradwalk.h): blocks come from the last one. lm_head has none; a candidate of it that looks at H is refused there.
 *
 * What was calibrated before, an artifact half written, is not calibrated again: its blocks are walked as they are, and
 * the first one that is not there sees what it would have seen. A recipe that looks at no H is walked over without
 * windows: block after block of weights alone.
 *
 * On one device, also of a job that is split: every block waits for the one before it. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_CALIBRATE_H
#define HSAQ_WORKER_PIPELINE_CALIBRATE_H

#include "worker/model/windows.h"
#include "worker/pipeline/calibrated.h"

struct calibrate_args {
    const struct job *job;
    const struct model *model;
    const struct windows *windows;  /* NULL where the plan needs none */
    const struct candidate *recipe; /* [model.linear_count]; METHOD_NONE keeps a Linear */
    const struct calibration_sink *sink;
    json_t *notes;            /* an array that gets what the rows say; NULL: no rows, the sink has all */
    int first;                /* the sink has the blocks before it, */
    const struct model *made; /* and this is the model with them as they are there; NULL where `first` is 0 */
    const bool *done;         /* [arch.blocks] of a guided plan, in their place: the sink has these; NULL: none */
    int64_t seed;             /* of a guided plan's labels */
    int64_t reserved;         /* bytes of the job's ram_limit that the sink will hold in the end */
};

/* What a recipe asks for. */
struct calibration_plan {
    bool needed; /* a candidate looks at H */
    bool sequential;
    bool guided;   /* and then not sequential */
    int64_t moved; /* Linears that ask for the reference's H and get the quantized model's, or the other way round */
};
struct calibration_plan calibration_plan(const struct candidate *recipe, int64_t count);

/* Progress is of phase "calibrate", in tokens; without windows of phase "quantize", in blocks. Rows: phase "_linear",
 * index into model.linears, {name, candidate[, damp][, awq]} of every Linear that is not as it was, where `awq` {ratio,
 * duo, gain} is null if its scales cannot be taken out of what computes the input; those of an earlier attempt are not
 * sent again. */
enum rc calibrate(const struct calibrate_args *a, struct err *e);
/* Such a row. */
json_t *calibrated_linear_json(const struct calibrated_linear *l);
/* Those rows, also of an earlier attempt, in order: `notes` is an array. */
void calibration_earlier_notes(const struct job *job, const struct model *model, json_t *notes);

#endif
