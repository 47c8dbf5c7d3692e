/* A sweep job's result and rows, as the allocation and the profile that name it read them: what quantizing each Linear
 * alone, or adding noise to it, costs in KL. Came from our own job by way of a database: checked all the same. Strings
 * are borrowed from the job's inputs. Any thread. */
#ifndef HSAQ_WORKER_PIPELINE_SWEEP_INPUT_H
#define HSAQ_WORKER_PIPELINE_SWEEP_INPUT_H

#include <jansson.h>

#include "base/err.h"

struct sweep_input {
    const char *fingerprint; /* of the model's tensors */
    const char *candidate;   /* NULL: noise was added instead */
    double noise;            /* its ‖D‖/‖W‖; 0: a candidate was run */
    json_t *delta_kl;        /* {name: nats a scored token, >= 0} */
};

/* `sweep`: {"job", "result", "rows"}. RC_INVALID at /sweep when it is not what it should be. */
enum rc sweep_input_init(struct sweep_input *s, const json_t *sweep, struct err *e);
void sweep_input_release(struct sweep_input *s);

/* RC_INVALID at /sweep: it was of other weights than these. */
enum rc sweep_input_check_model(const struct sweep_input *s, const char *fingerprint, struct err *e);

/* Of one Linear; < 0: the sweep has none for it. */
double sweep_input_delta_kl(const struct sweep_input *s, const char *name);

#endif
