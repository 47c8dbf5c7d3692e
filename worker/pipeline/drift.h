/* The table a profile fills: one row per Linear and candidate, and what follows from all of it.
 *
 * drift = ‖XDᵀ‖² / ‖XWᵀ‖² (0 = lossless). A row's numbers depend on the Linear, what lies upstream of it, the
 * calibration and the candidate alone, never on which other candidates are in the job. Pure but for JSON. */
#ifndef HSAQ_WORKER_PIPELINE_DRIFT_H
#define HSAQ_WORKER_PIPELINE_DRIFT_H

#include <jansson.h>
#include <stdbool.h>

#include "base/candidate.h"
#include "kernels/backend.h"
#include "worker/model/model.h"

/* What the model loses where the Linear alone is quantized, nats a scored token, to second order (gradwalk.h); < 0: not
 * asked for. */
struct loss_scores {
    double fisher, kfac, diag;
};

struct drift_row {
    double drift, drift_num, drift_den;   /* < 0: not asked for, */
    double relative_error, max_abs_error; /* ‖D‖/‖W‖, max |D| */
    double rtn_drift; /* as RTN's on the same grid, which says where another method is no gain; of RTN itself unused */
    double damp;      /* GPTQ: what its factor took; else 0 */
    double awq_gain;  /* AWQ: output error of rounding to nearest with its scale, over that without; < 0: there is no
                         scale, as it cannot be taken out of what computes the input */
    struct loss_scores scores;
    int64_t bytes; /* packed */
    bool known, cached;
};

struct drift_table {
    const struct linear **linears; /* [linear_count] in model order */
    size_t linear_count;
    const struct candidate *candidates; /* [candidate_count] */
    size_t candidate_count;
    struct drift_row *rows; /* [linear_count, candidate_count] */
};

/* A ratio of two sums of squares; 0/0 is 0 and x/0 is 1, so that a dead input is never NaN in a table. */
double error_ratio(double num, double den);
/* Whether RTN is measured beside it. */
bool drift_is_guarded(const struct candidate *c);
/* From what the backend measured, with drift or without, without scores; `none` rows are exact and cost 2 bytes a
 * weight: of their scores those that are not asked for are < 0, the others 0. */
struct drift_row drift_row_measured(const struct error_report *report, bool drift, int64_t bytes);
struct drift_row drift_row_none(const struct linear *linear, bool drift, struct loss_scores scores);

/* As clients read it and the cache keeps it: {name, block, projection, shape, params, candidate, drift, drift_num,
 * drift_den, relative_error, max_abs_error, rtn_drift, damp, awq_gain, fisher, kfac, diag, static, bytes,
 * bits_per_weight, cached}.
 * static: scored on the reference's inputs, where a job that quantizes runs it on those of the model quantized so far.
 */
json_t *drift_row_encode(const struct drift_table *t, size_t linear, size_t candidate);
/* The measured numbers of such an object; RC_INVALID when one is missing. `cached` as it stands there. */
enum rc drift_row_decode(const json_t *data, struct drift_row *row, struct err *e);

struct drift_row *drift_at(const struct drift_table *t, size_t linear, size_t candidate);
/* The candidate with the next more bits and everything else equal, or −1. */
int drift_next_bits(const struct drift_table *t, size_t candidate);
/* More bits, more drift: the pair (candidate, candidate with the next more bits) of one Linear, both known. */
bool drift_inverted(const struct drift_table *t, size_t linear, size_t candidate);

/* [{candidate, bytes, bits_per_weight, drift_sum, drift_mean, drift_max, fisher_sum, kfac_sum, diag_sum}] in the
 * order of candidates. */
json_t *drift_totals(const struct drift_table *t);
/* [{name, candidate, drift, rtn_drift}]: where a method is worse than RTN. */
json_t *drift_guard(const struct drift_table *t);

#endif
