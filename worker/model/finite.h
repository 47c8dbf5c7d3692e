/* Why a forward pass gave no numbers: weights that are none, or numbers beyond fp32.
 *
 * Reads every weight, so it is for the moment after a result turned out not to be finite; Linears that are quantized
 * are checked by the backend beforehand. Any thread. */
#ifndef HSAQ_WORKER_MODEL_FINITE_H
#define HSAQ_WORKER_MODEL_FINITE_H

#include "worker/model/model.h"

/* RC_INVALID: "<what> not finite: " and the first weight, in the order of the forward pass, that is NaN or infinite. */
enum rc model_not_finite(const struct model *model, const char *what, struct err *e);

#endif
