/* What a job makes of each Linear: its spec's one candidate, or the assignment of the allocation that it names. The
 * same for every kind that quantizes. Any thread. */
#ifndef HSAQ_WORKER_PIPELINE_RECIPE_H
#define HSAQ_WORKER_PIPELINE_RECIPE_H

#include "base/candidate.h"
#include "base/target.h"
#include "worker/model/model.h"
#include "worker/pipeline/job.h"

/* *recipe is [model->linear_count], METHOD_NONE where a Linear is kept; `uniform` is not for lm_head. `allocation`: the
 * spec's, whose result is in the job's inputs; both NULL: all are kept. The caller frees. */
enum rc recipe_read(const struct job *job, const struct model *model, const struct candidate *uniform,
                    const char *allocation, struct candidate **recipe, struct err *e);

/* The same of the allocation whose result is the job's input `member`, which errors point at. */
enum rc recipe_read_input(const struct job *job, const struct model *model, const char *member,
                          struct candidate **recipe, struct err *e);

/* Bytes of the quantized Linears, packed. */
int64_t recipe_bytes(const struct model *model, const struct candidate *recipe);

/* Whether the target can carry it: RC_UNSUPPORTED names all Linears that it cannot, and what to change. */
enum rc recipe_check_target(const struct model *model, const struct candidate *recipe, enum target target,
                            struct err *e);

#endif
