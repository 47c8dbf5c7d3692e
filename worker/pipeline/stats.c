#include "worker/pipeline/stats.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/random.h"

static double sample_sd(const double *values, size_t n) {
    double mean = 0, squares = 0;
    for (size_t i = 0; i < n; i++)
        mean += values[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (values[i] - mean) * (values[i] - mean);
    return sqrt(squares / (double)(n - 1));
}

struct mean_se stats_mean_se(const double *sums, const int64_t *tokens, size_t n) {
    double total = 0, count = 0;
    double *means = xcalloc(n + 1, sizeof *means);
    for (size_t i = 0; i < n; i++) {
        total += sums[i];
        count += (double)tokens[i];
        means[i] = sums[i] / (double)tokens[i];
    }
    struct mean_se out = {total / count, n < 2 ? NAN : sample_sd(means, n) / sqrt((double)n)};
    free(means);
    return out;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void stats_sort(double *values, size_t n) {
    qsort(values, n, sizeof *values, compare);
}

double stats_percentile(const double *sorted, size_t n, double p) {
    double rank = p * (double)(n - 1);
    size_t below = (size_t)rank, above = below + 1 < n ? below + 1 : below;
    return sorted[below] + (rank - (double)below) * (sorted[above] - sorted[below]);
}

struct totals {
    double nll_a, nll_b, tokens;
};

static void add_window(struct totals *t, const struct window_pair *w) {
    t->nll_a += w->nll_a;
    t->nll_b += w->nll_b;
    t->tokens += (double)w->tokens;
}

static double ppl_difference(const struct totals *t) {
    return exp(t->nll_b / t->tokens) - exp(t->nll_a / t->tokens);
}

static double ppl_percent(const struct totals *t) {
    return 100 * expm1((t->nll_b - t->nll_a) / t->tokens);
}

static struct interval ci95(double *values, size_t n) {
    stats_sort(values, n);
    return (struct interval){stats_percentile(values, n, 0.025), stats_percentile(values, n, 0.975)};
}

static void bootstrap(const struct window_pair *windows, size_t n, struct paired_delta *out) {
    double *ppl = xcalloc(2 * BOOTSTRAP_RESAMPLES, sizeof *ppl), *percent = ppl + BOOTSTRAP_RESAMPLES;
    uint64_t state = BOOTSTRAP_SEED;
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++) {
        struct totals t = {0};
        for (size_t i = 0; i < n; i++)
            add_window(&t, &windows[random_below(&state, n)]);
        ppl[r] = ppl_difference(&t);
        percent[r] = ppl_percent(&t);
    }
    out->ppl_se = sample_sd(ppl, BOOTSTRAP_RESAMPLES);
    out->ppl_ci95 = ci95(ppl, BOOTSTRAP_RESAMPLES);
    out->percent_ci95 = ci95(percent, BOOTSTRAP_RESAMPLES);
    free(ppl);
}

struct paired_delta stats_paired(const struct window_pair *windows, size_t n) {
    struct paired_delta out = {.nll_se = NAN, .ppl_se = NAN, .ppl_ci95 = {NAN, NAN}, .percent_ci95 = {NAN, NAN}};
    struct totals t = {0};
    double *means = xcalloc(n + 1, sizeof *means);
    for (size_t i = 0; i < n; i++) {
        double difference = windows[i].nll_b - windows[i].nll_a;
        add_window(&t, &windows[i]);
        means[i] = difference / (double)windows[i].tokens;
        out.helped += difference < 0;
        out.hurt += difference > 0;
    }
    out.nll = (t.nll_b - t.nll_a) / t.tokens;
    out.ppl = ppl_difference(&t);
    out.percent = ppl_percent(&t);
    if (n >= 2) {
        out.nll_se = sample_sd(means, n) / sqrt((double)n);
        bootstrap(windows, n, &out);
    }
    free(means);
    return out;
}
