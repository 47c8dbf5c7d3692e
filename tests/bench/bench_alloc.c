/* Allocation at scale: time and gap of every method for 10,000 Linears. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/random.h"
#include "worker/alloc/alloc.h"

enum { LINEARS = 10000, OPTIONS = 6 };

static uint64_t random_state = 1;

static uint64_t random_bits(void) {
    return splitmix64(&random_state);
}

static double uniform(void) {
    return (double)(random_bits() >> 11) * 0x1p-53;
}

/* Few shapes, drift falling fourfold a bit with some noise, log-uniform sensitivity: what profiles look like. */
static void fill_model(struct alloc_option *options) {
    static const int bits[OPTIONS] = {2, 3, 4, 5, 6, 8};
    static const int64_t params[] = {4096 * 4096, 4096 * 1024, 4096 * 14336, 4096 * 14336};
    int64_t n = params[random_bits() % 4];
    double sensitivity = exp(6 * uniform());
    for (int o = 0; o < OPTIONS; o++)
        options[o] = (struct alloc_option){n * bits[o] / 8 + n / 16,
                                           sensitivity * pow(4, -bits[o]) * (0.8 + 0.4 * uniform()), bits[o]};
}

/* No structure at all: costs up to 10^9, so that sums hardly ever coincide. */
static void fill_random(struct alloc_option *options) {
    for (int o = 0; o < OPTIONS; o++)
        options[o] = (struct alloc_option){(int64_t)(uniform() * 1e9), uniform(), 2 + o};
}

/* Score and cost nearly proportional: the hard kind. */
static void fill_correlated(struct alloc_option *options) {
    for (int o = 0; o < OPTIONS; o++) {
        double cost = 1e6 * (o + uniform());
        options[o] = (struct alloc_option){(int64_t)cost, 7e6 - cost + 1e4 * uniform(), 2 + o};
    }
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static enum rc upgrade(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e) {
    return alloc_upgrade(p, 4, r, smallest, e);
}

struct method {
    const char *name;
    enum rc (*solve)(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e);
};

static int run(const char *name, const struct method *method, const struct alloc_problem *p, double share,
               int *choice) {
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    double began = now_ms();
    enum rc rc = method->solve(p, &r, NULL, &e);
    double took = now_ms() - began;
    if (rc == RC_OK)
        printf("%-12s %-9s %6.0f%% %9.1f ms  %-10.3g %.9g\n", name, method->name, 100 * share, took, r.gap,
               r.objective);
    else if (rc == RC_INFEASIBLE)
        printf("%-12s %-9s %6.0f%%   infeasible\n", name, method->name, 100 * share);
    else
        fprintf(stderr, "%s %s: %s\n", name, method->name, e.message);
    return rc == RC_OK || rc == RC_INFEASIBLE ? 0 : 1;
}

static const struct {
    const char *name;
    void (*fill)(struct alloc_option *options);
} kinds[] = {{"model", fill_model}, {"random", fill_random}, {"correlated", fill_correlated}};
static const struct method methods[] = {{"greedy", alloc_greedy}, {"upgrade", upgrade}, {"optimal", alloc_optimal}};
static const double shares[] = {0.1, 0.3, 0.5, 0.9}; /* of the way from the cheapest to the dearest */

int main(void) {
    static struct alloc_option options[LINEARS][OPTIONS];
    static struct alloc_item items[LINEARS];
    static int choice[LINEARS];
    int failed = 0;
    printf("%d items of %d options\n%-12s %-9s %7s %12s  %-10s %s\n", LINEARS, OPTIONS, "instance", "method", "budget",
           "time", "gap", "objective");
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct frontier_point ends[2];
        int count;
        struct err e = {0};
        for (int i = 0; i < LINEARS; i++) {
            kinds[k].fill(options[i]);
            items[i] = (struct alloc_item){options[i], OPTIONS};
        }
        struct alloc_problem p = {items, LINEARS, 0};
        if (alloc_frontier(&p, ends, 2, &count, &e) != RC_OK || count != 2) return 1;
        for (size_t s = 0; s < sizeof shares / sizeof *shares; s++) {
            p.budget = ends[0].cost + (int64_t)(shares[s] * (double)(ends[1].cost - ends[0].cost));
            for (size_t m = 0; m < sizeof methods / sizeof *methods; m++)
                failed |= run(kinds[k].name, &methods[m], &p, shares[s], choice);
        }
    }
    return failed;
}
