/* What every method of alloc.h starts from: the options worth considering, and the linear relaxation over them.
 *
 * Internal to worker/alloc. Options that cost as much or more than a better one are gone; what is left of an item is
 * sorted by cost, its score falling strictly. Indices into `options` stand for choices until pareto_result. */
#ifndef HSAQ_WORKER_ALLOC_PARETO_H
#define HSAQ_WORKER_ALLOC_PARETO_H

#include <stddef.h>

#include "worker/alloc/alloc.h"

struct pareto_option {
    int64_t cost;
    double score;
    int option; /* index into the item's options as given */
};

struct pareto {
    struct pareto_option *options; /* item i's are [first[i], first[i + 1]) */
    int *first;                    /* [item_count + 1] */
    int item_count;
    int64_t least;  /* cost of every item at its cheapest */
    int64_t budget; /* the problem's, down to the next cost that an assignment can have at all */
};

/* RC_INVALID, RC_NO_MEMORY; does not look whether the budget is feasible. */
enum rc pareto_init(struct pareto *pareto, const struct alloc_problem *p, struct err *e);
void pareto_release(struct pareto *pareto);
enum rc pareto_feasible(const struct pareto *pareto, const struct alloc_problem *p, int64_t *smallest, struct err *e);

/* One step along an item's lower convex hull: the best score drop per unit of cost comes first. */
struct hull_step {
    int item, to; /* to: index into pareto.options */
    double rate;  /* score drop per unit of cost, > 0 */
};
/* All items' steps, by rate falling, then item, then cost: taking a prefix of them walks the frontier. */
enum rc pareto_hull(const struct pareto *pareto, struct hull_step **steps, int *count, struct err *e);

/* The linear relaxation: steps are taken until one does not fit; no assignment within the budget scores below `bound`
 * = score − rate · (budget − cost). */
struct relaxation {
    int *choice; /* [item_count] index into pareto.options; the minimiser of score + rate · cost */
    int64_t cost;
    double score;
    double rate; /* of the step that did not fit; 0: all did, and the choice is optimal */
    double bound;
};
enum rc relaxation_init(struct relaxation *relaxation, const struct pareto *pareto, struct err *e);
void relaxation_release(struct relaxation *relaxation);

/* Takes the best upgrade per unit of cost that still fits, again and again. `choice` [item_count]. */
enum rc greedy_fill(const struct pareto *pareto, int *choice, struct err *e);

double pareto_score(const struct pareto *pareto, const int *choice);
/* Writes choice, cost and objective; leaves the gap alone. */
void pareto_result(const struct pareto *pareto, const int *choice, struct alloc_result *r);
/* float64 sums over thousands of scores differ by this much, relatively, with the order of summation. */
#define ALLOC_ROUNDING 1e-13
double relative_gap(double objective, double bound);

/* calloc that answers RC_NO_MEMORY: the number of items comes from outside. */
enum rc alloc_array(void *array, size_t count, size_t size, struct err *e);

#endif
