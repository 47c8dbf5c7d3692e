/* The quantized model that a profile is taken around: what the allocation of its "around" describes, made on the
 * profile's own calibration windows as an eval would make it.
 *
 * The first round of scores says what each Linear costs if all others stay as they are; in the model that an allocation
 * makes of it they do not. A second round asks the same of that model. It is made anew by every start of a job: to the
 * same bits, so that a job which goes on has the rows that it would have had. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_PROFILE_AROUND_H
#define HSAQ_WORKER_PIPELINE_PROFILE_AROUND_H

#include "worker/model/fingerprint.h"
#include "worker/pipeline/quantized_model.h"

struct profile_around {
    struct candidate *recipe;   /* [linear_count]; NULL: the profile is of the reference */
    struct packed_store *store; /* once made */
    bool refine;
    struct refined refined;
};

/* Before anything is computed. At /around: RC_INVALID where the allocation is of another model; RC_UNSUPPORTED where it
 * quantizes lm_head, or by AWQ, whose scales are folded into what computes the inputs: D is not of those. Released also
 * after a failure. */
enum rc profile_around_open(const struct job *job, const struct model *model, const struct fingerprints *prints,
                            struct profile_around *a, struct err *e);
enum rc profile_around_make(const struct job *job, const struct model *model, const struct windows *windows,
                            struct profile_around *a, struct err *e);
void profile_around_release(struct profile_around *a);

/* {allocation, bytes, refined: {epochs, steps, kl_before, kl_after} or null} */
json_t *profile_around_json(const struct job *job, const struct model *model, const struct profile_around *a);

#endif
