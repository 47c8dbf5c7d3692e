#include "worker/alloc/alloc.h"

/* The item's best step from its choice: up to what costs more and scores less, by the most gained per unit; or down to
 * what costs less, by the least lost. False: there is none. */
static bool best_step(const struct alloc_problem *p, int item, int chosen, bool up, struct alloc_edge *best) {
    const struct alloc_option *options = p->items[item].options, *from = &options[chosen];
    bool found = false;
    for (int o = 0; o < p->items[item].option_count; o++) {
        int64_t cost = options[o].cost - from->cost;
        if (up ? cost <= 0 || options[o].score >= from->score : cost >= 0) continue;
        double rate = (from->score - options[o].score) / (double)cost;
        if (found && (up ? rate <= best->rate : rate >= best->rate)) continue;
        *best = (struct alloc_edge){item, o, rate};
        found = true;
    }
    return found;
}

/* Into a list that is kept in order: the first of equal rates stays first. */
static void insert(struct alloc_edge *edges, int *count, const struct alloc_edge *new, bool up) {
    int at = *count;
    while (at > 0 && (up ? new->rate > edges[at - 1].rate : new->rate < edges[at - 1].rate))
        at--;
    if (at == ALLOC_EDGES_MAX) return;
    if (*count < ALLOC_EDGES_MAX) ++*count;
    for (int k = *count - 1; k > at; k--)
        edges[k] = edges[k - 1];
    edges[at] = *new;
}

void alloc_edges(const struct alloc_problem *p, const int *choice, struct alloc_edges *edges) {
    struct alloc_edge edge;
    *edges = (struct alloc_edges){0};
    for (int i = 0; i < p->item_count; i++) {
        if (best_step(p, i, choice[i], true, &edge)) insert(edges->up, &edges->up_count, &edge, true);
        if (best_step(p, i, choice[i], false, &edge)) insert(edges->down, &edges->down_count, &edge, false);
    }
}
