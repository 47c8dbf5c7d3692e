/* What a sweep's Linears do to the output, and what they add up to. Pure but for JSON. */
#ifndef HSAQ_WORKER_PIPELINE_SWEEP_RESULT_H
#define HSAQ_WORKER_PIPELINE_SWEEP_RESULT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"
#include "base/err.h"
#include "worker/model/model.h"

/* Of one Linear, with all others as they are: nats a scored token. Standard errors are over windows, paired with the
 * reference's; NaN of one window. */
struct swept {
    double relative_error; /* ‖ŵ − w‖ / ‖w‖ */
    double delta_kl, delta_kl_se, delta_nll, delta_nll_se;
    int64_t bytes; /* packed; < 0: noise, which nobody stores */
    bool known;
};

struct sweep_table {
    const struct model *model;
    const int64_t *place; /* [count] indices into model.linears, ascending */
    size_t count;
    const struct candidate *candidate; /* NULL: */
    double noise;                      /* this much of it */
    struct swept *rows;                /* [count] */
};

/* {name, block, projection, shape, params, candidate, noise, relative_error, bytes, delta_kl, delta_kl_se, delta_nll,
 * delta_nll_se, improves, category}. NULL where a number is not finite. */
json_t *swept_encode(const struct sweep_table *t, size_t i);
/* The numbers of such an object; RC_INVALID when one is missing. */
enum rc swept_decode(const json_t *data, struct swept *row, struct err *e);

/* Adds {delta_kl_sum, delta_kl_mean, ranked, by_projection, by_block, pattern, thresholds} of a table whose rows are
 * all known. A recommendation is by how many times the mean over all its Linears one's delta_kl is. */
void sweep_result_add(const struct sweep_table *t, json_t *result);

#endif
