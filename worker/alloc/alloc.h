/* Bit allocation: one option per item under a budget. Pure functions: no I/O, no JSON, no tensors.
 *
 * An item is a set of Linears that must share a candidate (one Linear, or a tied group); its options are the candidates
 * left after the rules, with exact bytes and a score (lower is better, additive over items).
 *   greedy   every item at its cheapest option, then again and again the upgrade with the best score drop per byte
 *   upgrade  every item at `base_bits` (4) where it has them; then the most sensitive to 16, else 8, while bits last
 *   optimal  multiple-choice knapsack, exact: Pareto prune → LP relaxation over convex hulls → dynamic programming on
 *            the core, after Pisinger, "A minimal algorithm for the multiple-choice knapsack problem" (EJOR 83, 1995).
 *            The width of the program is bounded, so that time is too; what was cut off gives the gap.
 * Deterministic: ties break by item order, then option order. Optimal means up to the rounding of float64 sums (1e-13
 * of the objective). Any thread. */
#ifndef HSAQ_WORKER_ALLOC_ALLOC_H
#define HSAQ_WORKER_ALLOC_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct alloc_option {
    int64_t cost; /* >= 0; what the budget counts: bytes, or code bits; all items together fit an int64 */
    double score; /* finite, >= 0 */
    double bits;  /* average code bits of the item under this option; `upgrade` steps by it */
};

struct alloc_item {
    const struct alloc_option *options; /* [option_count], any order */
    int option_count;                   /* >= 1 */
};

struct alloc_problem {
    const struct alloc_item *items; /* [item_count] */
    int item_count;
    int64_t budget; /* same unit as cost */
};

struct alloc_result {
    int *choice; /* [item_count] index into the item's options; caller-allocated */
    int64_t cost;
    double objective;
    double gap; /* proven bound on (objective − optimum) / objective; 0: proven optimal */
};

/* All three: RC_INVALID for a problem that breaks the promises above, RC_NO_MEMORY, and RC_INFEASIBLE with the smallest
 * feasible budget in `*smallest` (may be NULL) and in the message. For `upgrade` that is what its start costs. */
enum rc alloc_greedy(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e);
enum rc alloc_upgrade(const struct alloc_problem *p, double base_bits, struct alloc_result *r, int64_t *smallest,
                      struct err *e);
enum rc alloc_optimal(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e);

struct frontier_point {
    int64_t cost;
    double objective;
};

struct frontier {
    struct frontier_point *points; /* [max_points], caller-allocated */
    int *choices;                  /* [max_points, item_count] indices into the items' options, or NULL */
    int max_points;                /* >= 2 */
    int count;
};

/* The budget–score frontier from the cheapest to the best assignment, whatever the budget: the vertices of its lower
 * convex hull, each a feasible assignment, thinned to at most `max_points` with both ends kept. */
enum rc alloc_frontier(const struct alloc_problem *p, struct frontier *frontier, struct err *e);

/* An item's step to another of its options: the score that it gains (or loses, of a step down) per unit of cost. */
struct alloc_edge {
    int item, to;
    double rate; /* >= 0 where the choice is no worse than what costs less */
};

enum { ALLOC_EDGES_MAX = 10 };

/* The items nearest to another choice, each once in either list: those that would gain most per unit of cost, and those
 * that would lose least. */
struct alloc_edges {
    struct alloc_edge up[ALLOC_EDGES_MAX], down[ALLOC_EDGES_MAX];
    int up_count, down_count;
};
void alloc_edges(const struct alloc_problem *p, const int *choice, struct alloc_edges *edges);

#endif
