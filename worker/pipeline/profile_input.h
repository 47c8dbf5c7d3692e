/* What a profile does with the Linears of one input when a walk hands them over: each candidate that is asked
 * for is made of each Linear and measured, and its row filled. Called on whatever thread a walk calls back. */
#ifndef HSAQ_WORKER_PIPELINE_PROFILE_INPUT_H
#define HSAQ_WORKER_PIPELINE_PROFILE_INPUT_H

#include "worker/pipeline/drift.h"
#include "worker/pipeline/gramwalk.h"
#include "worker/pipeline/profile.h"

struct profile_work {
    const struct spec_profile *spec;
    const struct windows *windows;
    struct profiled_model profiled;
    struct drift_table *table; /* several devices write, each to rows of its own */
    const size_t *order;       /* the walk's candidates, indices into the table: by profile_order */
    bool together;             /* two-sided candidates of a Linear in one call, as many as have room */
    _Atomic int64_t *computed; /* rows: added to */
    /* Of a row that waits for no score. */
    enum rc (*send)(void *ctx, const struct job *job, size_t linear, size_t candidate, struct err *e);
    void *ctx;
};

/* Fills `order` with the candidates that have a row left to compute, and returns how many: those that share a factor of
 * H one after the other, the two-sided of them last; else as they are listed. */
size_t profile_order(const struct drift_table *t, size_t order[CANDIDATES_MAX]);

/* As of struct gram_walk. Rows that are known already are left. */
enum rc profile_measure(const struct profile_work *work, const struct job *job, const struct gram_input *in,
                        struct err *e);

/* Where one of model.linears, which is profiled, stands in the table. */
size_t profile_place(const struct profiled_model *profiled, int64_t index);

/* Whether the scores asked for take G and H alone. */
bool profile_wants_kfac(const struct spec_profile *spec);

#endif
