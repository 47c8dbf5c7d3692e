/* Around an allocation's solution: the frontier, a percent more or less, and who is next. */
#include <stdlib.h>

#include "worker/pipeline/allocate.h"
#include "worker/pipeline/predict.h"

enum { FRONTIER_POINTS = 64, CHANGES_MAX = 32 };

/* --- the frontier --- */

static json_t *points_json(const struct allocation *a, const struct items *items, const struct frontier *f,
                           int *chosen) {
    json_t *list = json_array();
    for (int k = 0; k < f->count; k++) {
        items_assign(&a->table, items, &f->choices[(int64_t)k * items->count], chosen);
        json_array_append_new(list,
                              json_pack("{s:I, s:f, s:f, s:o}", "bytes", (json_int_t)f->points[k].cost, "average_bits",
                                        solution_bits(a, chosen), "objective", f->points[k].objective, "kl",
                                        allocation_predicted_kl(a, f->points[k].objective)));
    }
    return list;
}

static enum rc find_frontier(const struct allocation *a, const struct items *items, json_t **out, struct err *e) {
    struct frontier_point points[FRONTIER_POINTS];
    struct frontier f = {.points = points,
                         .choices = calloc((size_t)items->count * FRONTIER_POINTS, sizeof *f.choices),
                         .max_points = FRONTIER_POINTS};
    int *chosen = calloc((size_t)a->table.linear_count, sizeof *chosen);
    struct alloc_problem problem = {items->items, items->count, 0};
    enum rc rc = f.choices && chosen ? alloc_frontier(&problem, &f, e)
                                     : err_set(e, RC_NO_MEMORY, "no memory for an allocation's frontier");
    if (rc == RC_OK) *out = points_json(a, items, &f, chosen);
    free(f.choices);
    free(chosen);
    return rc;
}

enum rc allocation_frontier(const struct allocation *a, json_t **out, struct err *e) {
    struct items items;
    if (allocation_cost(a) == COST_BYTES) return find_frontier(a, &a->items, out, e);
    TRY(items_init(&a->table, COST_BYTES, &items, e));
    enum rc rc = find_frontier(a, &items, out, e);
    items_release(&items);
    return rc;
}

/* --- a percent more or less --- */

static json_t *changes_json(const struct allocation *a, const int *chosen, int *count) {
    json_t *list = json_array();
    *count = 0;
    for (int i = 0; i < a->table.linear_count; i++) {
        int from = a->best.chosen[i];
        if (chosen[i] == from || ++*count > CHANGES_MAX) continue;
        json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "name", a->table.linears[i].name, "from",
                                              a->table.ids[from], "to", a->table.ids[chosen[i]]));
    }
    return list;
}

/* Null where it is infeasible. */
static enum rc solve_beside(const struct allocation *a, int64_t limit, json_t **out, struct err *e) {
    struct solution s;
    int64_t smallest;
    int changed;
    enum rc rc = allocation_solve(a, limit, &s, &smallest, e);
    if (rc == RC_INFEASIBLE) {
        *out = json_null();
        return RC_OK;
    }
    TRY(rc);
    json_t *changes = changes_json(a, s.chosen, &changed);
    *out = json_pack("{s:I, s:f, s:f, s:o, s:i, s:o}", "bytes", (json_int_t)solution_bytes(a, s.chosen), "average_bits",
                     solution_bits(a, s.chosen), "objective", s.objective, "kl",
                     allocation_predicted_kl(a, s.objective), "changed", changed, "changes", changes);
    solution_release(&s);
    return RC_OK;
}

enum rc allocation_sensitivity(const struct allocation *a, json_t **out, struct err *e) {
    json_t *more = NULL, *less = NULL;
    int64_t percent = a->limit / 100;
    TRY(solve_beside(a, a->limit + percent, &more, e));
    enum rc rc = solve_beside(a, a->limit - percent, &less, e);
    if (rc == RC_OK)
        *out = json_pack("{s:o, s:o}", "more", more, "less", less);
    else
        json_decref(more);
    return rc;
}

/* --- who is next --- */

static json_t *edges_json(const struct allocation *a, const struct alloc_edge *edges, int count) {
    json_t *list = json_array();
    for (int k = 0; k < count; k++) {
        int item = edges[k].item, lead = a->items.lead[item], from = a->best.chosen[lead];
        int to = items_candidate(&a->items, item, edges[k].to), linears = 0;
        int64_t bytes = 0;
        double score = 0;
        for (int i = lead; i < a->table.linear_count; i++) {
            if (a->table.linears[i].tie != lead) continue;
            linears++;
            bytes += table_cell(&a->table, i, to)->bytes - table_cell(&a->table, i, from)->bytes;
            score += table_cell(&a->table, i, to)->score - table_cell(&a->table, i, from)->score;
        }
        json_array_append_new(list,
                              json_pack("{s:s, s:i, s:s, s:s, s:I, s:f, s:f}", "name", a->table.linears[lead].name,
                                        "linears", linears, "from", a->table.ids[from], "to", a->table.ids[to], "bytes",
                                        (json_int_t)bytes, "objective", score, "rate", edges[k].rate));
    }
    return list;
}

json_t *allocation_edge(const struct allocation *a) {
    struct alloc_problem problem = {a->items.items, a->items.count, a->limit};
    struct alloc_edges edges;
    alloc_edges(&problem, a->best.choice, &edges);
    return json_pack("{s:o, s:o}", "up", edges_json(a, edges.up, edges.up_count), "down",
                     edges_json(a, edges.down, edges.down_count));
}
