#include "worker/pipeline/rank.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

struct ranked {
    double value;
    size_t at;
};

static int by_value(const void *left, const void *right) {
    const struct ranked *a = left, *b = right;
    return (a->value > b->value) - (a->value < b->value);
}

/* ranks[i] of values[i], from 0; the order in which qsort leaves equal ones does not show. */
static void rank_all(const double *values, size_t n, double *ranks) {
    struct ranked *sorted = xcalloc(n + 1, sizeof *sorted);
    for (size_t i = 0; i < n; i++)
        sorted[i] = (struct ranked){values[i], i};
    qsort(sorted, n, sizeof *sorted, by_value);
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && sorted[end].value == sorted[first].value;)
            end++;
        for (size_t i = first; i < end; i++)
            ranks[sorted[i].at] = (double)(first + end - 1) / 2;
    }
    free(sorted);
}

/* Both have the mean (n − 1)/2. */
static double ranks_correlation(const double *x, const double *y, size_t n) {
    const double mean = ((double)n - 1) / 2;
    double xy = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < n; i++) {
        xy += (x[i] - mean) * (y[i] - mean);
        xx += (x[i] - mean) * (x[i] - mean);
        yy += (y[i] - mean) * (y[i] - mean);
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

double rank_spearman(const double *x, const double *y, size_t n) {
    double *ranks = xcalloc(2 * n + 1, sizeof *ranks);
    rank_all(x, n, ranks);
    rank_all(y, n, ranks + n);
    double rho = ranks_correlation(ranks, ranks + n, n);
    free(ranks);
    return rho;
}

/* Whether i is the first of its group. */
static int is_first(const int *group, size_t i) {
    for (size_t k = 0; k < i; k++)
        if (group[k] == group[i]) return 0;
    return 1;
}

double rank_spearman_within(const double *x, const double *y, const int *group, size_t n) {
    double *own = xcalloc(2 * n + 1, sizeof *own), sum = 0;
    int groups = 0;
    for (size_t i = 0; i < n; i++) {
        size_t count = 0;
        if (!is_first(group, i)) continue;
        for (size_t k = i; k < n; k++) {
            if (group[k] != group[i]) continue;
            own[count] = x[k];
            own[n + count++] = y[k];
        }
        double rho = rank_spearman(own, own + n, count);
        if (isnan(rho)) continue;
        sum += rho;
        groups++;
    }
    free(own);
    return groups ? sum / groups : NAN;
}
