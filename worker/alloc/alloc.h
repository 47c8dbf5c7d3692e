/* Bit allocation: one option per item under a budget. Pure functions: no I/O, no JSON, no tensors.
 *
 * An item is a set of Linears that must share a candidate (one Linear, or a tied group); its options are the candidates
 * left after the rules, with exact bytes and a score (lower is better, additive over items). algorithms §10.
 *   greedy   every item at its cheapest option, then again and again the upgrade with the best score drop per byte
 *   upgrade  every item at `base_bits` (4) where it has them; then the most sensitive to 16, else 8, while bits last
 *   optimal  multiple-choice knapsack: Pareto prune → Lagrangian bound → branch and bound / dynamic programming;
 *            gap 0 when proven optimal, else the proven bound on (objective − optimum) / optimum
 * Deterministic: ties break by item order, then option order. Any thread. */
#ifndef HSAQ_WORKER_ALLOC_ALLOC_H
#define HSAQ_WORKER_ALLOC_ALLOC_H

#include <stdint.h>

#include "base/err.h"

struct alloc_option {
    int64_t cost; /* what the budget counts: bytes, or code bits */
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
    double gap; /* optimal: 0 when proven; greedy, upgrade: against the Lagrangian bound */
};

struct frontier_point {
    int64_t cost;
    double objective;
};

/* All three: RC_INFEASIBLE with the smallest feasible budget in `*smallest` (may be NULL) and in the message. */
enum rc alloc_greedy(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e);
enum rc alloc_upgrade(const struct alloc_problem *p, double base_bits, struct alloc_result *r, int64_t *smallest,
                      struct err *e);
enum rc alloc_optimal(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e);

/* The budget–score frontier from the cheapest to the dearest assignment: the vertices of its lower convex hull, each a
 * feasible assignment, thinned to at most `max_points`. Returns the number written. */
int alloc_frontier(const struct alloc_problem *p, struct frontier_point *points, int max_points);

#endif
