/* Refining: the scales of all groups of a quantized model tuned together, against what the reference puts out.
 *
 * Calibration makes each Linear as good as it can be by itself; what they lose together shows at the model's end alone.
 * Each group's scale is multiplied by e^θ, codes and zeros stay, and θ goes down the slope of the mean over positions
 * of KL(reference ‖ quantized) on the calibration's windows: Adam over batches of a few windows, in an order that the
 * seed settles. Sources: AutoRound (Cheng et al. 2023), EfficientQAT's end-to-end phase (Chen et al. 2024).
 *
 * The reference's final hidden states of all windows are kept, so that every batch takes one walk forward and back of
 * the quantized model alone. Repeated, it ends in the same bits on one kind of device. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_REFINE_H
#define HSAQ_WORKER_PIPELINE_REFINE_H

#include <jansson.h>

#include "worker/model/windows.h"
#include "worker/pipeline/packed_store.h"

enum { REFINE_EPOCHS = 2 }; /* passes over the windows */

struct refine_args {
    const struct job *job;
    const struct model *model;      /* the reference */
    const struct windows *windows;  /* of the calibration */
    const struct candidate *recipe; /* [model.linear_count] */
    struct packed_store *store;     /* what was calibrated; gets the scales */
    int64_t seed;                   /* of the order of the windows */
};

struct refined {
    int epochs;
    int64_t steps;
    double kl_before, kl_after; /* nats a position, mean over the windows as they came by in the first and last epoch */
    double seconds;
};

/* Whether a job refines: what its spec says, by default where the recipe has a guided candidate; and not if it leaves
 * nothing to refine. */
bool refine_wanted(bool given, bool refine, const struct candidate *recipe, const struct model *model);
/* Whether the device has the memory that it takes at least: else RC_NO_MEMORY, with advice, before hours of
 * calibration. */
enum rc refine_check(const struct job *job, const struct model *model, const struct candidate *recipe, struct err *e);

/* Progress is of phase "reference", then "refine", in tokens. */
enum rc refine_run(const struct refine_args *a, struct refined *out, struct err *e);

/* {epochs, steps, kl_before, kl_after, seconds, default}; `given`: the spec asked for it. */
json_t *refined_json(const struct refined *r, bool given);
/* How it is done, for provenance: {epochs, batch, rate, warm_up}. */
json_t *refine_settings_json(void);
/* The first as a row of phase "_refined", index 0; of an earlier attempt, whose is kept: a new reference, or NULL. */
enum rc refined_send(const struct job *job, const json_t *refined, struct err *e);
json_t *refined_earlier(const struct job *job);

#endif
