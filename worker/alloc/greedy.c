/* The seeds' method: from the cheapest assignment upwards, always the upgrade with the best score drop per byte. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "worker/alloc/pareto.h"

/* A max-heap of the best upgrade of each item. What it holds only ever gets too dear, so entries are renewed when they
 * come up. */
struct heap {
    struct hull_step *entries; /* [count] */
    int count;
};

static bool better(const struct hull_step *a, const struct hull_step *b) {
    return a->rate != b->rate ? a->rate > b->rate : a->item < b->item;
}

static void sink(struct heap *heap, int at) {
    for (;;) {
        int best = at;
        for (int child = 2 * at + 1; child <= 2 * at + 2 && child < heap->count; child++)
            if (better(&heap->entries[child], &heap->entries[best])) best = child;
        if (best == at) return;
        struct hull_step swap = heap->entries[at];
        heap->entries[at] = heap->entries[best];
        heap->entries[best] = swap;
        at = best;
    }
}

/* The item's best upgrade from `from` among those that fit into `room`; the dearest of equal rates. */
static bool best_upgrade(const struct pareto *pareto, int item, int from, int64_t room, struct hull_step *step) {
    const struct pareto_option *options = pareto->options;
    bool found = false;
    for (int o = from + 1; o < pareto->first[item + 1] && options[o].cost - options[from].cost <= room; o++) {
        double rate = (options[from].score - options[o].score) / (double)(options[o].cost - options[from].cost);
        if (found && rate < step->rate) continue;
        *step = (struct hull_step){item, o, rate};
        found = true;
    }
    return found;
}

enum rc greedy_fill(const struct pareto *pareto, int *choice, struct err *e) {
    const struct pareto_option *options = pareto->options;
    struct heap heap = {0};
    int64_t room = pareto->budget;
    TRY(alloc_array(&heap.entries, (size_t)pareto->item_count, sizeof *heap.entries, e));
    for (int i = 0; i < pareto->item_count; i++)
        room -= options[choice[i]].cost;
    for (int i = 0; i < pareto->item_count; i++)
        heap.count += best_upgrade(pareto, i, choice[i], room, &heap.entries[heap.count]);
    for (int i = heap.count / 2; i-- > 0;)
        sink(&heap, i);
    while (heap.count > 0) {
        struct hull_step *top = &heap.entries[0];
        int64_t more = options[top->to].cost - options[choice[top->item]].cost;
        if (more <= room) {
            choice[top->item] = top->to;
            room -= more;
        }
        if (!best_upgrade(pareto, top->item, choice[top->item], room, top)) *top = heap.entries[--heap.count];
        sink(&heap, 0);
    }
    free(heap.entries);
    return RC_OK;
}

/* The greedy assignment, judged by the relaxation's bound. */
static enum rc solve(const struct pareto *pareto, struct alloc_result *r, struct err *e) {
    struct relaxation relaxation = {0};
    int *choice;
    TRY(alloc_array(&choice, (size_t)pareto->item_count, sizeof *choice, e));
    memcpy(choice, pareto->first, (size_t)pareto->item_count * sizeof *choice);
    enum rc rc = greedy_fill(pareto, choice, e);
    if (rc == RC_OK) rc = relaxation_init(&relaxation, pareto, e);
    if (rc == RC_OK) {
        pareto_result(pareto, choice, r);
        r->gap = relative_gap(r->objective, relaxation.bound);
    }
    relaxation_release(&relaxation);
    free(choice);
    return rc;
}

enum rc alloc_greedy(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e) {
    struct pareto pareto;
    TRY(pareto_init(&pareto, p, e));
    enum rc rc = pareto_feasible(&pareto, p, smallest, e);
    if (rc == RC_OK) rc = solve(&pareto, r, e);
    pareto_release(&pareto);
    return rc;
}
