/* AWQ's scales t of an input's channels, folded: the Linears that read the input are quantized from W·diag(t), and 1/t
 * goes into what computes it, so that the model's function stays as it is (Lin et al. 2023).
 *
 * A norm's weights are rounded to the type that they are stored in, and t is what they are divided by then: exact. The
 * rows of v and up may be quantized already: their scales are divided and rounded anew; in 16 bits the rows
 * themselves. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_FOLD_H
#define HSAQ_WORKER_PIPELINE_FOLD_H

#include "worker/pipeline/calibrated.h"
#include "worker/pipeline/input_group.h"

struct fold {
    const struct job *job;
    const struct model *model;
    struct calibrated_block *block; /* what makes the input is in it, as far as it has come */
    enum linear_input input;
};

/* The position of the Linear whose rows make the input; −1: a norm makes it. */
int fold_position(const struct fold *f);
/* Whether the block's candidates leave a way to take scales out again. */
bool fold_possible(const struct fold *f);
/* The nearest t [K] to one that the norm can be divided by: 1 where nothing of a weight would be left. */
enum rc fold_round_scale(const struct st_tensor *norm, double *t, struct err *e);
/* Takes 1/t out of it; a norm's t is rounded. */
enum rc fold_scale(const struct fold *f, const struct input_group *group, const struct awq_scale *s, struct err *e);

#endif
