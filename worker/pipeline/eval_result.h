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
    float *token_kl;                   /* [tokens]; NULL for an eval of the reference alone */
    bool known;
};

struct eval_table {
    struct eval_window *windows; /* [count] */
    int64_t count;
    int64_t dropped_tokens;
    bool quantized;
};

void eval_table_release(struct eval_table *t);

/* Rows: phase "window" {window, tokens, nll_reference[, nll_quantized, kl, top1_agree]}, and phase "_token_kl" {window,
 * kl}, the token KLs as fp32 bits in hexadecimal, so that the percentiles of a resumed job are exact. */
json_t *eval_window_encode(const struct eval_table *t, int64_t window);
json_t *eval_token_kl_encode(const struct eval_table *t, int64_t window);
enum rc eval_window_decode(struct eval_table *t, int64_t window, const json_t *row, const json_t *token_kl,
                           struct err *e);

/* {reference, quantized, delta, windows, kl, top1, tokens}; `quantized` and what follows from it only with one. */
json_t *eval_result_json(const struct eval_table *t);

/* Paired against another eval's rows of the same windows: {ppl, percent, se, ci95, helped, hurt, …} of ours − theirs.
 */
enum rc eval_compare_json(const struct eval_table *t, const json_t *rows, json_t **out, struct err *e);

#endif
