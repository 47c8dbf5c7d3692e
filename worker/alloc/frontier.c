#include <stdlib.h>
#include <string.h>

#include "worker/alloc/pareto.h"

/* Point k of `kept` among the steps 0…`last`: evenly spread, both ends kept. */
static int thinned(int k, int kept, int last) {
    return kept < 2 ? 0 : (int)((int64_t)k * last / (kept - 1));
}

static void add_point(struct frontier *f, const struct pareto *pareto, const int *choice, int64_t cost) {
    f->points[f->count] = (struct frontier_point){cost, pareto_score(pareto, choice)};
    int *out = f->choices ? f->choices + (int64_t)f->count * pareto->item_count : NULL;
    for (int i = 0; out && i < pareto->item_count; i++)
        out[i] = pareto->options[choice[i]].option;
    f->count++;
}

static enum rc walk_hull(const struct pareto *pareto, struct frontier *f, struct err *e) {
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
    int kept = step_count + 1 < f->max_points ? step_count + 1 : f->max_points;
    for (int s = 0; s <= step_count; s++) {
        if (f->count < kept && thinned(f->count, kept, step_count) == s) add_point(f, pareto, choice, cost);
        if (s == step_count) break;
        int *chosen = &choice[steps[s].item];
        cost += pareto->options[steps[s].to].cost - pareto->options[*chosen].cost;
        *chosen = steps[s].to;
    }
    free(choice);
    free(steps);
    return RC_OK;
}

enum rc alloc_frontier(const struct alloc_problem *p, struct frontier *f, struct err *e) {
    struct pareto pareto;
    f->count = 0;
    if (f->max_points < 2) return err_set(e, RC_INVALID, "a frontier has at least two points, not %d", f->max_points);
    TRY(pareto_init(&pareto, p, e));
    enum rc rc = walk_hull(&pareto, f, e);
    pareto_release(&pareto);
    return rc;
}
