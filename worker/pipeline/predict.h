/* From a sum of scores to the KL that the quantized model is predicted to have. Pure, any thread.
 *
 * A score in nats says what quantizing one Linear alone costs a token. What all of them cost together is more than the
 * sum: each errs on inputs that the others have moved. By how much was measured, on real models, by score; the table in
 * predict.c has the numbers and where each is from. Scores that are not nats (drift, error) predict nothing. */
#ifndef HSAQ_WORKER_PIPELINE_PREDICT_H
#define HSAQ_WORKER_PIPELINE_PREDICT_H

#include <jansson.h>
#include <stdbool.h>

#include "base/spec.h"

/* low and high are this far from kl, relatively: a stated margin, not an interval with a known coverage. */
#define PREDICTION_MARGIN 0.25

struct prediction {
    double sum;        /* of the scores: nats a scored token */
    double correction; /* kl / sum */
    double kl, low, high;
    const char *calibrated_on; /* what the correction was measured on */
};

/* False: the score is not in nats, or was not measured with refined scales, and `out` is zeros. sum >= 0. */
bool predict_kl(enum score score, bool refined, double sum, struct prediction *out);

/* {score, sum, correction, kl, low, high, calibrated_on, refined}, or null; refined: the same of a model whose scales
 * are, {correction, kl, low, high, calibrated_on}, or null. */
json_t *prediction_json(enum score score, double sum);
/* The kl alone, of scales as they were rounded, or null. */
json_t *predicted_kl_json(enum score score, double sum);

/* {kl, low, high, measured, ratio} of such an object, or of its `refined`, and the KL that was measured (a number or
 * null); ratio is measured over predicted, null where it is not defined. NULL when `prediction` has none. */
json_t *prediction_beside(const json_t *prediction, bool refined, const json_t *measured);

#endif
