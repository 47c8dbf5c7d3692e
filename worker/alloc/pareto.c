#include "worker/alloc/pareto.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum rc alloc_array(void *array, size_t count, size_t size, struct err *e) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) return err_set(e, RC_NO_MEMORY, "no memory for an allocation over %zu entries", count);
    memcpy(array, &memory, sizeof memory);
    return RC_OK;
}

/* Costs and scores in range, and neither Σ max cost nor Σ max score overflows. */
static enum rc check_items(const struct alloc_problem *p, struct err *e) {
    int64_t costs = 0;
    double scores = 0;
    for (int i = 0; i < p->item_count; i++) {
        const struct alloc_item *item = &p->items[i];
        if (item->option_count < 1) return err_set(e, RC_INVALID, "item %d has no option to choose from", i);
        int64_t cost = 0;
        double score = 0;
        for (int o = 0; o < item->option_count; o++) {
            const struct alloc_option *option = &item->options[o];
            if (option->cost < 0)
                return err_set(e, RC_INVALID, "item %d option %d: cost %lld is negative", i, o,
                               (long long)option->cost);
            if (!isfinite(option->score) || option->score < 0)
                return err_set(e, RC_INVALID, "item %d option %d: score %g is not a finite number >= 0", i, o,
                               option->score);
            if (option->cost > cost) cost = option->cost;
            if (option->score > score) score = option->score;
        }
        scores += score;
        if (__builtin_add_overflow(costs, cost, &costs) || !isfinite(scores))
            return err_set(e, RC_INVALID, "costs or scores are too large to add up at item %d", i);
    }
    return RC_OK;
}

static int by_cost(const void *left, const void *right) {
    const struct pareto_option *a = left, *b = right;
    if (a->cost != b->cost) return a->cost < b->cost ? -1 : 1;
    if (a->score != b->score) return a->score < b->score ? -1 : 1;
    return a->option - b->option;
}

/* Writes the item's undominated options to `out` and returns how many. */
static int prune_item(const struct alloc_item *item, struct pareto_option *out) {
    for (int o = 0; o < item->option_count; o++)
        out[o] = (struct pareto_option){item->options[o].cost, item->options[o].score, o};
    qsort(out, (size_t)item->option_count, sizeof *out, by_cost);
    int kept = 1;
    for (int o = 1; o < item->option_count; o++)
        if (out[o].score < out[kept - 1].score) out[kept++] = out[o];
    return kept;
}

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Every assignment costs `least` plus a multiple of one common step: a budget between two multiples is slack that no
 * assignment can use, and would only loosen the bound. */
static int64_t reachable_budget(const struct pareto *pareto, int64_t budget) {
    int64_t step = 0;
    for (int i = 0; i < pareto->item_count; i++)
        for (int o = pareto->first[i] + 1; o < pareto->first[i + 1]; o++)
            step = gcd(pareto->options[o].cost - pareto->options[pareto->first[i]].cost, step);
    if (step == 0 || budget < pareto->least) return budget;
    return budget - (budget - pareto->least) % step;
}

enum rc pareto_init(struct pareto *pareto, const struct alloc_problem *p, struct err *e) {
    *pareto = (struct pareto){.item_count = p->item_count};
    TRY(check_items(p, e));
    size_t options = 0;
    for (int i = 0; i < p->item_count; i++)
        options += (size_t)p->items[i].option_count;
    if (options > INT32_MAX) return err_set(e, RC_INVALID, "%zu options are more than can be allocated", options);
    enum rc rc = alloc_array(&pareto->options, options, sizeof *pareto->options, e);
    if (rc == RC_OK) rc = alloc_array(&pareto->first, (size_t)p->item_count + 1, sizeof *pareto->first, e);
    if (rc != RC_OK) {
        pareto_release(pareto);
        return rc;
    }
    for (int i = 0; i < p->item_count; i++) {
        int first = pareto->first[i];
        pareto->first[i + 1] = first + prune_item(&p->items[i], &pareto->options[first]);
        pareto->least += pareto->options[first].cost;
    }
    pareto->budget = reachable_budget(pareto, p->budget);
    return RC_OK;
}

void pareto_release(struct pareto *pareto) {
    free(pareto->options);
    free(pareto->first);
    *pareto = (struct pareto){0};
}

enum rc pareto_feasible(const struct pareto *pareto, const struct alloc_problem *p, int64_t *smallest, struct err *e) {
    if (smallest) *smallest = pareto->least;
    if (p->budget >= pareto->least) return RC_OK;
    return err_set(e, RC_INFEASIBLE, "a budget of %lld is infeasible; the smallest feasible one is %lld",
                   (long long)p->budget, (long long)pareto->least);
}

static double rate_between(const struct pareto_option *from, const struct pareto_option *to) {
    return (from->score - to->score) / (double)(to->cost - from->cost);
}

static int by_rate(const void *left, const void *right) {
    const struct hull_step *a = left, *b = right;
    if (a->rate != b->rate) return a->rate > b->rate ? -1 : 1;
    if (a->item != b->item) return a->item - b->item;
    return a->to - b->to;
}

/* The lower convex hull of one item's options, as a stack of steps: a step that falls steeper than the one before it
 * swallows that one. Returns how many steps were written. */
static int item_hull(const struct pareto *pareto, int item, struct hull_step *steps) {
    int count = 0, first = pareto->first[item];
    for (int o = first + 1; o < pareto->first[item + 1]; o++) {
        const struct pareto_option *to = &pareto->options[o];
        double rate;
        for (;;) {
            int from = count ? steps[count - 1].to : first;
            rate = rate_between(&pareto->options[from], to);
            if (count == 0 || rate <= steps[count - 1].rate) break;
            count--;
        }
        steps[count++] = (struct hull_step){item, o, rate};
    }
    return count;
}

enum rc pareto_hull(const struct pareto *pareto, struct hull_step **steps, int *count, struct err *e) {
    size_t most = (size_t)(pareto->first[pareto->item_count] - pareto->item_count);
    TRY(alloc_array(steps, most, sizeof **steps, e));
    *count = 0;
    for (int i = 0; i < pareto->item_count; i++)
        *count += item_hull(pareto, i, *steps + *count);
    qsort(*steps, (size_t)*count, sizeof **steps, by_rate);
    return RC_OK;
}

enum rc relaxation_init(struct relaxation *relaxation, const struct pareto *pareto, struct err *e) {
    struct hull_step *steps;
    int count;
    *relaxation = (struct relaxation){.cost = pareto->least};
    TRY(pareto_hull(pareto, &steps, &count, e));
    enum rc rc = alloc_array(&relaxation->choice, (size_t)pareto->item_count, sizeof *relaxation->choice, e);
    if (rc == RC_OK) memcpy(relaxation->choice, pareto->first, (size_t)pareto->item_count * sizeof *pareto->first);
    for (int s = 0; rc == RC_OK && s < count; s++) {
        int *choice = &relaxation->choice[steps[s].item];
        int64_t more = pareto->options[steps[s].to].cost - pareto->options[*choice].cost;
        if (more > pareto->budget - relaxation->cost) {
            relaxation->rate = steps[s].rate;
            break;
        }
        relaxation->cost += more;
        *choice = steps[s].to;
    }
    if (rc == RC_OK) relaxation->score = pareto_score(pareto, relaxation->choice);
    relaxation->bound = relaxation->score - relaxation->rate * (double)(pareto->budget - relaxation->cost);
    free(steps);
    return rc;
}

void relaxation_release(struct relaxation *relaxation) {
    free(relaxation->choice);
    *relaxation = (struct relaxation){0};
}

double pareto_score(const struct pareto *pareto, const int *choice) {
    double score = 0;
    for (int i = 0; i < pareto->item_count; i++)
        score += pareto->options[choice[i]].score;
    return score;
}

void pareto_result(const struct pareto *pareto, const int *choice, struct alloc_result *r) {
    r->cost = 0;
    r->objective = pareto_score(pareto, choice);
    for (int i = 0; i < pareto->item_count; i++) {
        r->choice[i] = pareto->options[choice[i]].option;
        r->cost += pareto->options[choice[i]].cost;
    }
}

double relative_gap(double objective, double bound) {
    double gap = objective > 0 ? (objective - bound) / objective : 0;
    if (gap <= ALLOC_ROUNDING) return 0;
    return gap < 1 ? gap : 1;
}
