/* Statistics of paired evaluations: pure functions on plain arrays.
 *
 * The windows of a text are the independent unit (tokens inside one are not), so standard errors and intervals are
 * taken over windows. Everything here is deterministic: same input, same bits. Any thread. */
#ifndef HSAQ_WORKER_PIPELINE_STATS_H
#define HSAQ_WORKER_PIPELINE_STATS_H

#include <stddef.h>
#include <stdint.h>

/* Sums over the scored tokens of one window, in nats. */
struct window_pair {
    int64_t tokens;
    double nll_a, nll_b;
};

struct interval {
    double low, high;
};

/* How b differs from a, token-weighted over all windows. Intervals and standard errors of perplexity are the
 * bootstrap's; with fewer than two windows they are NaN. */
struct paired_delta {
    double nll;     /* mean per token, b − a */
    double nll_se;  /* standard deviation of the windows' mean differences / sqrt(n) */
    double ppl;     /* exp(mean nll b) − exp(mean nll a) */
    double percent; /* 100 · (ppl b / ppl a − 1) */
    double ppl_se;
    struct interval ppl_ci95, percent_ci95;
    int64_t helped, hurt; /* windows where b's NLL is below, above a's */
};

/* Mean and its standard error over windows of a per-token quantity given as sums per window. */
struct mean_se {
    double mean, se; /* se: sd(window means) / sqrt(n); NaN when n < 2 */
};

enum { BOOTSTRAP_RESAMPLES = 2000, BOOTSTRAP_SEED = 0 };

/* Percentile bootstrap: BOOTSTRAP_RESAMPLES times n windows drawn with replacement (random_below, seeded
 * BOOTSTRAP_SEED); ci95 is the 2.5th and 97.5th percentile of what they give, se their standard deviation. */
struct paired_delta stats_paired(const struct window_pair *windows, size_t n);

/* sums[i] over tokens[i] tokens; mean = Σ sums / Σ tokens. */
struct mean_se stats_mean_se(const double *sums, const int64_t *tokens, size_t n);

/* Linear interpolation between order statistics: the value at rank p·(n − 1), counting from 0 (Hyndman & Fan's type 7,
 * numpy's default). `sorted` ascends; n >= 1; p in [0, 1]. */
double stats_percentile(const double *sorted, size_t n, double p);
void stats_sort(double *values, size_t n);

#endif
