/* What an eval's windows add up to. Windows are the independent unit (stats.h); KL percentiles are over tokens. */
#ifndef HSAQ_WORKER_PIPELINE_EVAL_RESULT_H
#define HSAQ_WORKER_PIPELINE_EVAL_RESULT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct eval_window {
    int64_t tokens;                    /* scored */
    double nll, nll_q, kl, top1_agree; /* sums, nats */
    double dp2;                        /* Σ (p_quantized − p_reference)² of the true token */
    float *token_kl;                   /* [tokens]; NULL for an eval of the reference alone */
    bool known;
};

/* Σ |KL| of the reference against itself (eval_noise.h), nats. */
struct eval_noise {
    int64_t tokens;
    double kl_abs;
    bool known;
};

struct eval_table {
    struct eval_window *windows; /* [count] */
    int64_t count;
    int64_t dropped_tokens;
    struct eval_noise noise; /* of an eval with a quantized model */
    bool quantized;
};

void eval_table_release(struct eval_table *t);

/* Rows: phase "window" {window, tokens, nll_reference[, nll_quantized, kl, top1_agree, dp2]}; phase "_token_kl"
 * {window, kl}, the token KLs as fp32 bits in hexadecimal, so that the percentiles of a resumed job are exact; and one
 * of phase
 * "_noise" {tokens, kl_abs}. */
json_t *eval_window_encode(const struct eval_table *t, int64_t window);
json_t *eval_token_kl_encode(const struct eval_table *t, int64_t window);
enum rc eval_window_decode(struct eval_table *t, int64_t window, const json_t *row, const json_t *token_kl,
                           struct err *e);
json_t *eval_noise_encode(const struct eval_noise *noise);
enum rc eval_noise_decode(const json_t *row, struct eval_noise *noise, struct err *e);

/* {reference, quantized, delta, windows, kl, top1, rms_dp, tokens}; `quantized` and what follows from it only with
 * one. */
json_t *eval_result_json(const struct eval_table *t);

/* Whether another eval's rows are of the same windows: of each its tokens suffice. */
enum rc eval_compare_check(const struct eval_table *t, const json_t *rows, struct err *e);
/* Paired against another eval's rows of the same windows: {ppl, percent, se, ci95, helped, hurt, …} of ours − theirs.
 */
enum rc eval_compare_json(const struct eval_table *t, const json_t *rows, json_t **out, struct err *e);

#endif
