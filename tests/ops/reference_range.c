/* The range choices in float64: every range of the grid tried, nothing spared. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/reference.h"

double ref_criterion(const struct ref_fit *a, const struct ref_grid *g) {
    double sum = 0, *error = malloc((size_t)a->n * sizeof *error);
    if (error == NULL) abort();
    for (int64_t i = 0; i < a->n; i++) {
        error[i] = a->w[i] - (ref_code(g, a->w[i]) - g->zero) * g->scale;
        if (a->candidate->range != RANGE_OUTPUT)
            sum += error[i] * error[i] * (a->candidate->range == RANGE_WEIGHTED ? (float)a->h[i * a->h_stride + i] : 1);
    }
    for (int64_t i = 0; a->candidate->range == RANGE_OUTPUT && i < a->n; i++)
        for (int64_t j = 0; j < a->n; j++)
            sum += error[i] * a->h[i * a->h_stride + j] * error[j];
    free(error);
    return sum;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* As numpy.quantile. */
static double quantile(const float *w, int64_t n, bool magnitude, double share) {
    float *sorted = malloc((size_t)n * sizeof *sorted);
    if (sorted == NULL) abort();
    for (int64_t i = 0; i < n; i++)
        sorted[i] = magnitude ? fabsf(w[i]) : w[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    double at = share * (double)(n - 1), below = floor(at + 1e-9);
    int64_t i = (int64_t)below, j = i + 1 < n ? i + 1 : i;
    double value = sorted[i] + fmax(at - below, 0) * ((double)sorted[j] - sorted[i]);
    free(sorted);
    return value;
}

/* A half on the way through fp32; a subnormal one must not cut the range off. */
static double stored_scale(double scale) {
    double half = ref_f16((float)scale);
    return scale < 0x1p-14 && half < scale ? half + 0x1p-24 : half;
}

static struct ref_grid grid_over(double min, double max, const struct candidate *c) {
    double top = (1 << c->bits) - 1, half = 1 << (c->bits - 1);
    if (c->symmetric) return (struct ref_grid){stored_scale(fmax(fabs(min), fabs(max)) / (half - 1)), half, top};
    if (c->zero == ZERO_INTEGER) {
        min = fmin(min, 0);
        max = fmax(max, 0);
    }
    struct ref_grid g = {.scale = stored_scale((max - min) / top), .top = top};
    g.zero = c->zero == ZERO_INTEGER ? nearbyint(-min / g.scale) : ref_f16((float)(-min / g.scale));
    return g;
}

/* The grid over the share p of the range; of a range beside 0 the end near 0 stays. */
static struct ref_grid try_share(const struct ref_fit *a, double min, double max, double p) {
    const struct candidate *c = a->candidate;
    if (c->range == RANGE_OUTPUT) {
        double limit = p * fmax(fabs(min), fabs(max));
        return grid_over(fmin(fmax(min, -limit), limit), fmax(fmin(max, limit), -limit), c);
    }
    bool from_zero = c->symmetric || c->zero == ZERO_INTEGER || (min <= 0 && max >= 0);
    double anchor = from_zero ? 0 : fabs(min) < fabs(max) ? min : max;
    return grid_over(anchor + p * (min - anchor), anchor + p * (max - anchor), c);
}

struct ref_grid ref_range_search(const struct ref_fit *a, double *margin) {
    double min = a->w[0], max = a->w[0];
    for (int64_t i = 1; i < a->n; i++) {
        min = fmin(min, a->w[i]);
        max = fmax(max, a->w[i]);
    }
    bool weighted = a->candidate->range == RANGE_WEIGHTED, output = a->candidate->range == RANGE_OUTPUT;
    struct ref_grid best = ref_rtn(a->w, a->n, a->candidate);
    double least = ref_criterion(a, &best), second = INFINITY;
    for (int i = 0; i < (output ? 10 : 80); i++) {
        double p = output ? (20 - i) / 20.0 : ((weighted ? 110 : 100) - i) / 100.0;
        struct ref_grid g = try_share(a, min, max, p);
        double error = g.scale > 0 ? ref_criterion(a, &g) : INFINITY; /* nothing is left of a range beside 0 */
        if (g.scale == best.scale && g.zero == best.zero) continue;
        second = fmin(second, fmax(error, least));
        if (error >= least) continue;
        least = error;
        best = g;
    }
    *margin = least > 0 ? second / least - 1 : 0;
    return best;
}

struct ref_grid ref_range_given(const struct ref_fit *a) {
    const struct candidate *c = a->candidate;
    double clip = (double)c->clip / PARTS, ends[2];
    if (c->range == RANGE_PERCENTILE) {
        ends[0] = quantile(a->w, a->n, false, (1 - clip) / 2);
        ends[1] = quantile(a->w, a->n, false, 1 - (1 - clip) / 2);
        if (c->symmetric) ends[0] = -(ends[1] = quantile(a->w, a->n, true, clip));
    } else {
        ends[0] = clip * quantile(a->w, a->n, false, 0);
        ends[1] = clip * quantile(a->w, a->n, false, 1);
    }
    struct ref_grid plain = grid_over(ends[0], ends[1], c), other = grid_over(fmin(ends[0], 0), fmax(ends[1], 0), c);
    if (c->symmetric) other.scale = stored_scale(fmax(fabs(ends[0]), fabs(ends[1])) / (1 << (c->bits - 1)));
    return ref_grid_error(&other, a->w, a->n) < ref_grid_error(&plain, a->w, a->n) ? other : plain;
}
