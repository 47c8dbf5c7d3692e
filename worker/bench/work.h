/* The floating-point operations that a job cannot do without, counted from a model's shapes: the floors of the bench.
 *
 * A product of [m, k] and [k, n] is 2·m·n·k. Counted are the Linears, attention over the keys that a token sees, the
 * head over the scored tokens, H = XᵀX of each distinct input in full (a triangle would do: a backend that computes one
 * only may beat this floor) and D·H. Norms, rope, softmax, quantizing and loading are not: they are what a ratio above
 * 1 is made of. Pure functions. */
#ifndef HSAQ_WORKER_BENCH_WORK_H
#define HSAQ_WORKER_BENCH_WORK_H

#include "base/candidate.h"
#include "worker/model/model.h"

/* `count` windows of `length` tokens through every block. */
double work_forward(const struct model *model, int64_t count, int64_t length);
/* All of a window's tokens but the first are scored. */
double work_head(const struct model *model, int64_t count, int64_t length);
/* A sweep of every block Linear in one pass: the reference, and for each of them the blocks from its own on, and the
 * head. */
double work_sweep(const struct model *model, int64_t count, int64_t length);
/* Every distinct Linear input of every block, over `tokens` tokens. */
double work_gram(const struct model *model, int64_t tokens);
/* Back through every block, each computed anew as far as it takes: the gradient by every Linear's input, and by q, k
 * and v; before it the head, for labels and for the gradient of their NLL. No weight has a gradient. */
double work_back(const struct model *model, int64_t count, int64_t length);
/* x·Dᵀ of every block Linear and candidate over `tokens` tokens. */
double work_fisher(const struct model *model, int64_t tokens, const struct candidate *candidates, size_t count);
/* GPTQ: each input's H factored and the factor inverted, and the error of every column carried to those after it. */
double work_gptq(const struct model *model);
/* AWQ: every block Linear's output error under each of 40 scales. */
double work_awq(const struct model *model);
/* Refining scales: the reference forward, and for each epoch forward, forward anew, and the gradients by inputs and by
 * weights; the head's logits of both models and the gradient through it. */
double work_refine(const struct model *model, int64_t count, int64_t length, int epochs);
/* Every block Linear's output error: once for its denominator, once a candidate, and once more for HQQ's twin in RTN.
 */
double work_drift(const struct model *model, const struct candidate *candidates, size_t count);

#endif
