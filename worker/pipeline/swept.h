/* A sweep job's result and rows, as the allocation and the profile that name it read them: what quantizing each Linear
 * alone, or adding noise to it, costs in KL. Came from our own job by way of a database: checked all the same. Strings
 * are borrowed from the job's inputs. Any thread. */
#ifndef HSAQ_WORKER_PIPELINE_SWEPT_H
#define HSAQ_WORKER_PIPELINE_SWEPT_H

#include <jansson.h>

#include "base/err.h"

struct swept {
    const char *fingerprint; /* of the model's tensors */
    const char *candidate;   /* NULL: noise was added instead */
    double noise;            /* its ‖D‖/‖W‖; 0: a candidate was run */
    json_t *delta_kl;        /* {name: nats a scored token, >= 0} */
};

/* `sweep`: {"job", "result", "rows"}. RC_INVALID at /sweep when it is not what it should be. */
enum rc swept_init(struct swept *s, const json_t *sweep, struct err *e);
void swept_release(struct swept *s);

/* RC_INVALID at /sweep: it was of other weights than these. */
enum rc swept_check_model(const struct swept *s, const char *fingerprint, struct err *e);

/* Of one Linear; < 0: the sweep has none for it. */
double swept_delta_kl(const struct swept *s, const char *name);

#endif
