#include <stdlib.h>
#include <string.h>

#include "worker/alloc/pareto.h"

/* Point k of `kept` among the steps 0…`last`: evenly spread, both ends kept. */
static int thinned(int k, int kept, int last) {
    return kept < 2 ? 0 : (int)((int64_t)k * last / (kept - 1));
}

static enum rc walk_hull(const struct pareto *pareto, struct frontier_point *points, int max_points, int *count,
                         struct err *e) {
    struct hull_step *steps;
    int step_count, *choice;
    TRY(pareto_hull(pareto, &steps, &step_count, e));
    enum rc rc = alloc_array(&choice, (size_t)pareto->item_count, sizeof *choice, e);
    if (rc != RC_OK) {
        free(steps);
        return rc;
    }
    memcpy(choice, pareto->first, (size_t)pareto->item_count * sizeof *choice);
    int64_t cost = pareto->least;
    int kept = step_count + 1 < max_points ? step_count + 1 : max_points;
    for (int s = 0; s <= step_count; s++) {
        if (*count < kept && thinned(*count, kept, step_count) == s)
            points[(*count)++] = (struct frontier_point){cost, pareto_score(pareto, choice)};
        if (s == step_count) break;
        int *chosen = &choice[steps[s].item];
        cost += pareto->options[steps[s].to].cost - pareto->options[*chosen].cost;
        *chosen = steps[s].to;
    }
    free(choice);
    free(steps);
    return RC_OK;
}

enum rc alloc_frontier(const struct alloc_problem *p, struct frontier_point *points, int max_points, int *count,
                       struct err *e) {
    struct pareto pareto;
    *count = 0;
    if (max_points < 2) return err_set(e, RC_INVALID, "a frontier has at least two points, not %d", max_points);
    TRY(pareto_init(&pareto, p, e));
    enum rc rc = walk_hull(&pareto, points, max_points, count, e);
    pareto_release(&pareto);
    return rc;
}
