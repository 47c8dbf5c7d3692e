/* Exact multiple-choice knapsack: dynamic programming on the core around the linear relaxation (Pisinger 1995).
 *
 * Every item starts at its choice in the relaxation. Items are opened one after another, those first that can change
 * cheapest by the relaxation's rate λ; a state is what the opened items sum to, relative to that start. Bounds, all
 * over the change of score against the start:
 *   an option can be part of an improvement only if  floor + r < best,  r = Δscore + λ·Δcost >= 0, floor = −λ·slack;
 *   from a state with room left, the items to come lower the score by at most `up` per unit of room;
 *   from a state over the budget, they must raise it by at least `down` per unit over.
 * States dominated in cost and score go, and so do those whose bound does not beat the best assignment found. If more
 * than `width` are left, the worst bounds go too, and the best of those lost is what remains unproven. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "worker/alloc/pareto.h"

/* A state's history: which option it took last, and where it came from. */
struct node {
    int parent; /* −1: the start */
    int item, option;
};

struct state {
    int64_t cost; /* of the whole assignment */
    double score; /* relative to the start */
    int node;
};

struct states {
    struct state *items; /* [capacity], by cost rising, score falling strictly */
    int count;
};

/* An item with options that may still improve on the best assignment. */
struct open_item {
    int item;
    double nearness; /* smallest |rate − λ| among its options: the order in which items are opened */
    double up, down; /* best rates of the items to come after this one */
};

/* Some 0.5 s and 150 MB at the very most: beyond WORK_LIMIT states or half the nodes the program narrows. */
enum { WIDTH_FULL = 1 << 14, WIDTH_SPENT = 1 << 7, WORK_LIMIT = 1 << 25, NODES_MAX = 1 << 23 };

struct core {
    const struct pareto *pareto;
    const struct relaxation *start;
    struct open_item *open; /* [open_count] */
    int open_count;
    struct states now, next, merged; /* capacity 2 · WIDTH_FULL each */
    double *bounds;                  /* [2 · 2 · WIDTH_FULL]: scratch of narrow */
    struct node *nodes;              /* [node_capacity] */
    int node_count, node_capacity;
    int64_t work;     /* states looked at */
    double best;      /* score of the best assignment, relative to the start */
    int best_node;    /* −1: the one that the core was given */
    double tolerance; /* improvements below this are rounding */
    double lost;      /* the best bound among states that were cut off */
};

static void core_release(struct core *core) {
    free(core->open);
    free(core->now.items);
    free(core->next.items);
    free(core->merged.items);
    free(core->bounds);
    free(core->nodes);
}

/* What option `o` changes against the start, and whether an improvement can contain it. */
struct change {
    int64_t cost;
    double score, rate;
};
static bool useful_change(const struct core *core, int item, int o, struct change *change) {
    const struct pareto_option *from = &core->pareto->options[core->start->choice[item]];
    const struct pareto_option *to = &core->pareto->options[o];
    if (to == from) return false;
    *change = (struct change){to->cost - from->cost, to->score - from->score, 0};
    change->rate = -change->score / (double)change->cost;
    double loss = change->score + core->start->rate * (double)change->cost;
    return core->start->bound - core->start->score + loss < core->best - core->tolerance;
}

static int by_nearness(const void *left, const void *right) {
    const struct open_item *a = left, *b = right;
    if (a->nearness != b->nearness) return a->nearness < b->nearness ? -1 : 1;
    return a->item - b->item;
}

/* The item's own rates go into `up` and `down` for now. */
static bool open_item(const struct core *core, int item, struct open_item *open) {
    const double rate = core->start->rate;
    *open = (struct open_item){.item = item, .nearness = INFINITY, .up = 0, .down = INFINITY};
    for (int o = core->pareto->first[item]; o < core->pareto->first[item + 1]; o++) {
        struct change change;
        if (!useful_change(core, item, o, &change)) continue;
        open->nearness = fmin(open->nearness, fabs(change.rate - rate));
        if (change.cost > 0)
            open->up = fmax(open->up, fmin(change.rate, rate));
        else
            open->down = fmin(open->down, fmax(change.rate, rate));
    }
    return isfinite(open->nearness);
}

static enum rc core_init(struct core *core, struct err *e) {
    const size_t items = (size_t)core->pareto->item_count, capacity = 2 * WIDTH_FULL;
    TRY(alloc_array(&core->open, items, sizeof *core->open, e));
    TRY(alloc_array(&core->now.items, capacity, sizeof *core->now.items, e));
    TRY(alloc_array(&core->next.items, capacity, sizeof *core->next.items, e));
    TRY(alloc_array(&core->merged.items, capacity, sizeof *core->merged.items, e));
    TRY(alloc_array(&core->bounds, 2 * capacity, sizeof *core->bounds, e));
    for (int i = 0; i < core->pareto->item_count; i++)
        core->open_count += open_item(core, i, &core->open[core->open_count]);
    qsort(core->open, (size_t)core->open_count, sizeof *core->open, by_nearness);
    double up = 0, down = INFINITY;
    for (int k = core->open_count; k-- > 0;) {
        struct open_item own = core->open[k];
        core->open[k].up = up;
        core->open[k].down = down;
        up = fmax(up, own.up);
        down = fmin(down, own.down);
    }
    core->now.items[0] = (struct state){core->start->cost, 0, -1};
    core->now.count = 1;
    return RC_OK;
}

/* No completion of a state by the items after `open` scores below this. */
static double state_bound(const struct core *core, const struct open_item *open, int64_t cost, double score) {
    int64_t room = core->pareto->budget - cost;
    return room >= 0 ? score - open->up * (double)room : score - open->down * (double)room;
}

static enum rc add_node(struct core *core, struct node node, int *index, struct err *e) {
    if (core->node_count == core->node_capacity) {
        int capacity = core->node_capacity ? 2 * core->node_capacity : 1024;
        struct node *nodes = realloc(core->nodes, (size_t)capacity * sizeof *nodes);
        if (!nodes) return err_set(e, RC_NO_MEMORY, "no memory for an allocation's %d partial assignments", capacity);
        core->nodes = nodes;
        core->node_capacity = capacity;
    }
    core->nodes[core->node_count] = node;
    *index = core->node_count++;
    return RC_OK;
}

/* Appends a state that is neither dominated nor hopeless to `merged`; its node is made only then. */
static enum rc keep(struct core *core, const struct open_item *open, struct state state, int option, struct err *e) {
    struct states *out = &core->merged;
    if (out->count > 0 && state.score >= out->items[out->count - 1].score) return RC_OK;
    double bound = state_bound(core, open, state.cost, state.score);
    if (bound >= core->best - core->tolerance) return RC_OK;
    if (option >= 0 && core->node_count == NODES_MAX) {
        core->lost = fmin(core->lost, bound);
        return RC_OK;
    }
    if (option >= 0) TRY(add_node(core, (struct node){state.node, open->item, option}, &state.node, e));
    if (state.cost <= core->pareto->budget && state.score < core->best) {
        core->best = state.score;
        core->best_node = state.node;
    }
    out->items[out->count++] = state;
    return RC_OK;
}

/* next := next ∪ (now + change), both sorted by cost. An option of −1 adds nothing: it only prunes `next`. */
static enum rc merge(struct core *core, const struct open_item *open, int option, const struct change *change,
                     struct err *e) {
    const struct states *a = &core->next, *b = &core->now;
    int i = 0, j = 0, end = option < 0 ? 0 : b->count;
    core->merged.count = 0;
    core->work += a->count + end;
    while (i < a->count || j < end) {
        struct state shifted = {0};
        if (j < end)
            shifted =
                (struct state){b->items[j].cost + change->cost, b->items[j].score + change->score, b->items[j].node};
        bool first =
            j == end || (i < a->count && (a->items[i].cost != shifted.cost ? a->items[i].cost < shifted.cost
                                                                           : a->items[i].score <= shifted.score));
        if (first)
            TRY(keep(core, open, a->items[i++], -1, e));
        else {
            TRY(keep(core, open, shifted, option, e));
            j++;
        }
    }
    struct states swap = core->next;
    core->next = core->merged;
    core->merged = swap;
    return RC_OK;
}

/* The k-th smallest (from 0) of values[count], which are reordered: Hoare's quickselect. */
static double kth_smallest(double *values, int count, int k) {
    int low = 0, high = count - 1;
    while (low < high) {
        double pivot = values[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot)
                i++;
            while (values[j] > pivot)
                j--;
            if (i > j) break;
            double swap = values[i];
            values[i++] = values[j];
            values[j--] = swap;
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    return values[k];
}

/* Cuts `next` down to the program's width by bound. */
static void narrow(struct core *core, const struct open_item *open) {
    bool spent = core->work > WORK_LIMIT || core->node_count > NODES_MAX / 2;
    struct states *states = &core->next;
    int width = spent ? WIDTH_SPENT : WIDTH_FULL, kept = 0;
    if (states->count <= width) return;
    double *bounds = core->bounds, *scratch = bounds + states->count;
    for (int s = 0; s < states->count; s++)
        scratch[s] = bounds[s] = state_bound(core, open, states->items[s].cost, states->items[s].score);
    double limit = kth_smallest(scratch, states->count, width);
    int ties = width;
    for (int s = 0; s < states->count; s++)
        ties -= bounds[s] < limit;
    for (int s = 0; s < states->count; s++) {
        if (bounds[s] < limit || (bounds[s] == limit && ties-- > 0))
            states->items[kept++] = states->items[s];
        else
            core->lost = fmin(core->lost, bounds[s]);
    }
    states->count = kept;
}

static enum rc expand(struct core *core, const struct open_item *open, struct err *e) {
    memcpy(core->next.items, core->now.items, (size_t)core->now.count * sizeof *core->now.items);
    core->next.count = core->now.count;
    TRY(merge(core, open, -1, NULL, e));
    for (int o = core->pareto->first[open->item]; o < core->pareto->first[open->item + 1]; o++) {
        struct change change;
        if (!useful_change(core, open->item, o, &change)) continue;
        TRY(merge(core, open, o, &change, e));
        narrow(core, open);
    }
    struct states swap = core->now;
    core->now = core->next;
    core->next = swap;
    return RC_OK;
}

/* Improves `choice`, a feasible assignment, to the best one. */
static enum rc close_gap(struct core *core, int *choice, struct err *e) {
    TRY(core_init(core, e));
    for (int k = 0; k < core->open_count && core->now.count > 0; k++)
        TRY(expand(core, &core->open[k], e));
    if (core->best_node < 0) return RC_OK;
    memcpy(choice, core->start->choice, (size_t)core->pareto->item_count * sizeof *choice);
    for (int n = core->best_node; n >= 0; n = core->nodes[n].parent)
        choice[core->nodes[n].item] = core->nodes[n].option;
    return RC_OK;
}

static enum rc solve(const struct pareto *pareto, const struct relaxation *start, int *choice, struct alloc_result *r,
                     struct err *e) {
    memcpy(choice, start->choice, (size_t)pareto->item_count * sizeof *choice);
    TRY(greedy_fill(pareto, choice, e));
    double incumbent = pareto_score(pareto, choice);
    struct core core = {
        .pareto = pareto,
        .start = start,
        .best = incumbent - start->score,
        .best_node = -1,
        .tolerance = ALLOC_ROUNDING * incumbent,
        .lost = INFINITY,
    };
    enum rc rc = close_gap(&core, choice, e);
    if (rc == RC_OK) {
        pareto_result(pareto, choice, r);
        r->gap = relative_gap(r->objective, start->score + fmin(core.lost, core.best));
    }
    core_release(&core);
    return rc;
}

enum rc alloc_optimal(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e) {
    struct pareto pareto;
    struct relaxation start = {0};
    int *choice = NULL;
    TRY(pareto_init(&pareto, p, e));
    enum rc rc = pareto_feasible(&pareto, p, smallest, e);
    if (rc == RC_OK) rc = relaxation_init(&start, &pareto, e);
    if (rc == RC_OK) rc = alloc_array(&choice, (size_t)pareto.item_count, sizeof *choice, e);
    if (rc == RC_OK) rc = solve(&pareto, &start, choice, r, e);
    free(choice);
    relaxation_release(&start);
    pareto_release(&pareto);
    return rc;
}
