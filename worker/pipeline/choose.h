/* Which of a model's Linears a job is about. */
#ifndef HSAQ_WORKER_PIPELINE_CHOOSE_H
#define HSAQ_WORKER_PIPELINE_CHOOSE_H

#include "worker/model/model.h"

/* Those of the blocks, and lm_head where `head`, whose names match (NULL: all), in model order: indices into
 * model.linears, [linear_count] with *count used; the caller frees, also after a failure. RC_INVALID at /layers where
 * none does. */
enum rc choose_linears(const struct model *model, const char *regex, bool head, int64_t **place, size_t *count,
                       struct err *e);

#endif
