/* Rank correlation: how well one score orders what another measures. Pure functions on plain arrays; any thread. */
#ifndef HSAQ_WORKER_PIPELINE_RANK_H
#define HSAQ_WORKER_PIPELINE_RANK_H

#include <stddef.h>

/* Spearman's ρ: Pearson's correlation of ranks, equal values sharing the mean of theirs. Everything is finite. NaN
 * where it is not defined: n < 2, or x or y all equal. */
double rank_spearman(const double *x, const double *y, size_t n);

/* The mean over groups of Spearman's ρ inside each; groups where it is not defined do not count, NaN when none does.
 * group[i] >= 0, any numbers. */
double rank_spearman_within(const double *x, const double *y, const int *group, size_t n);

#endif
