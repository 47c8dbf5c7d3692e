/* The columns of a Linear as GPTQ goes through them: host code that both backends share.
 *
 * A step rounds one column of all rows. Steps are taken in blocks, after each of which the columns that follow are
 * corrected by one matrix product. A group's parameters are fitted at its first step, when all corrections before it
 * are made; so no block runs past a group's first step unless it holds the whole group. */
#ifndef HSAQ_KERNELS_COLUMNS_H
#define HSAQ_KERNELS_COLUMNS_H

#include "kernels/backend.h"

enum { STEPS_MAX = 128 }; /* of a block */

/* Fills a->out's order and dead from diag H [K], which is finite, and returns the diagonal's mean. Equal columns keep
 * their order. RC_NO_MEMORY. */
enum rc columns_sort(const struct factor_args *a, const double *diagonal, double *mean, struct err *e);

/* The power of two that brings H's mean diagonal to 0.5 … 1: what is rounded to fp32 then fits, and has the same digits
 * whatever H's unit. 1 where there is nothing but dead columns. */
double columns_unit(double mean);

struct steps {
    int64_t count; /* K */
    /* The parameters of all groups, from the weights as they are: ORDER_STATIC_GROUPS, or with a factor of the rows. */
    bool fitted_before;
    int32_t *group;     /* [K] of the column of each step */
    int64_t *group_end; /* [K] the step after the last one of its group */
};

/* RC_INVALID when the factor's order is none of the candidate, or that of the rows is none of them. */
enum rc steps_init(const struct quantize_args *a, struct steps *s, struct err *e);
void steps_release(struct steps *s);
/* Where the block that begins at step `from` ends. */
int64_t steps_block_end(const struct steps *s, int64_t from);
/* Whether the parameters of the step's group are fitted at this step. */
bool steps_fit_at(const struct steps *s, int64_t step);

#endif
