/* Everything at 4 bits, then the most sensitive to 16, else 8, while the budget lasts. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "worker/alloc/pareto.h"

/* Nearer to `bits`, else fewer bits, else better, else cheaper. */
static bool nearer(const struct alloc_option *a, const struct alloc_option *b, double bits) {
    double far_a = fabs(a->bits - bits), far_b = fabs(b->bits - bits);
    if (far_a != far_b) return far_a < far_b;
    if (a->bits != b->bits) return a->bits < b->bits;
    if (a->score != b->score) return a->score < b->score;
    return a->cost < b->cost;
}

static int nearest(const struct alloc_item *item, double bits) {
    int best = 0;
    for (int o = 1; o < item->option_count; o++)
        if (nearer(&item->options[o], &item->options[best], bits)) best = o;
    return best;
}

/* The best option of exactly `bits` that lowers the score and whose extra cost fits; −1: none. */
static int promotion(const struct alloc_item *item, int from, double bits, int64_t room) {
    int best = -1;
    for (int o = 0; o < item->option_count; o++) {
        const struct alloc_option *option = &item->options[o];
        double score = item->options[best < 0 ? from : best].score;
        if (option->bits != bits || option->score >= score) continue;
        if (option->cost - item->options[from].cost <= room) best = o;
    }
    return best;
}

struct sensitivity {
    double score; /* at the start */
    int item;
};

static int most_sensitive_first(const void *left, const void *right) {
    const struct sensitivity *a = left, *b = right;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->item - b->item;
}

static void promote(const struct alloc_problem *p, const struct sensitivity *order, struct alloc_result *r) {
    static const double steps[] = {16, 8};
    for (int i = 0; i < p->item_count; i++) {
        const struct alloc_item *item = &p->items[order[i].item];
        int from = r->choice[order[i].item], to = -1;
        for (size_t s = 0; s < sizeof steps / sizeof *steps && to < 0; s++)
            to = promotion(item, from, steps[s], p->budget - r->cost);
        if (to < 0) continue;
        r->cost += item->options[to].cost - item->options[from].cost;
        r->choice[order[i].item] = to;
    }
}

static enum rc solve(const struct alloc_problem *p, double base_bits, struct alloc_result *r, int64_t *smallest,
                     struct err *e) {
    struct sensitivity *order;
    r->cost = 0;
    TRY(alloc_array(&order, (size_t)p->item_count, sizeof *order, e));
    for (int i = 0; i < p->item_count; i++) {
        r->choice[i] = nearest(&p->items[i], base_bits);
        const struct alloc_option *start = &p->items[i].options[r->choice[i]];
        order[i] = (struct sensitivity){start->score, i};
        r->cost += start->cost;
    }
    if (smallest) *smallest = r->cost;
    if (r->cost > p->budget) {
        free(order);
        return err_set(e, RC_INFEASIBLE,
                       "a budget of %lld is infeasible; `upgrade` starts at %g bits, which takes %lld",
                       (long long)p->budget, base_bits, (long long)r->cost);
    }
    qsort(order, (size_t)p->item_count, sizeof *order, most_sensitive_first);
    promote(p, order, r);
    free(order);
    r->objective = 0;
    for (int i = 0; i < p->item_count; i++)
        r->objective += p->items[i].options[r->choice[i]].score;
    return RC_OK;
}

enum rc alloc_upgrade(const struct alloc_problem *p, double base_bits, struct alloc_result *r, int64_t *smallest,
                      struct err *e) {
    struct pareto pareto;
    struct relaxation relaxation = {0};
    TRY(pareto_init(&pareto, p, e));
    enum rc rc = solve(p, base_bits, r, smallest, e);
    if (rc == RC_OK) rc = relaxation_init(&relaxation, &pareto, e);
    if (rc == RC_OK) r->gap = relative_gap(r->objective, relaxation.bound);
    relaxation_release(&relaxation);
    pareto_release(&pareto);
    return rc;
}
