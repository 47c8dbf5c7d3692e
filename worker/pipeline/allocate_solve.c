/* The `allocation` job's problem in the solver's terms, and its solution. */
#include <stdlib.h>

#include "worker/pipeline/allocate.h"

#define UPGRADE_BASE_BITS 4

void items_release(struct items *items) {
    free(items->options);
    free(items->candidate);
    free(items->items);
    free(items->lead);
    *items = (struct items){0};
}

int64_t cell_cost(const struct profile_table *table, int linear, int candidate, enum cost_kind kind) {
    if (kind == COST_BYTES) return table_cell(table, linear, candidate)->bytes;
    return table->linears[linear].params * table->candidates[candidate].bits;
}

/* Adds a Linear's cost and score under a candidate to an option; bits are the candidate's, equal for a whole tie. */
static void add_to_option(const struct profile_table *table, int i, int c, enum cost_kind kind,
                          struct alloc_option *option) {
    option->cost += cell_cost(table, i, c, kind);
    option->score += table_cell(table, i, c)->score;
    option->bits = table->candidates[c].bits;
}

static void fill_items(const struct profile_table *table, enum cost_kind kind, struct items *items) {
    int used = 0;
    for (int lead = 0; lead < table->linear_count; lead++) {
        if (table->linears[lead].tie != lead) continue;
        struct alloc_item *item = &items->items[items->count];
        *item = (struct alloc_item){.options = &items->options[used]};
        for (int c = 0; c < table->candidate_count; c++) {
            if (!table_cell(table, lead, c)->allowed) continue;
            for (int i = lead; i < table->linear_count; i++)
                if (table->linears[i].tie == lead) add_to_option(table, i, c, kind, &items->options[used]);
            items->candidate[used++] = c;
            item->option_count++;
        }
        items->lead[items->count++] = lead;
    }
}

enum rc items_init(const struct profile_table *table, enum cost_kind kind, struct items *items, struct err *e) {
    size_t linears = (size_t)table->linear_count, cells = linears * (size_t)table->candidate_count;
    *items = (struct items){
        .options = calloc(cells, sizeof *items->options),
        .candidate = calloc(cells, sizeof *items->candidate),
        .items = calloc(linears, sizeof *items->items),
        .lead = calloc(linears, sizeof *items->lead),
    };
    if (!items->options || !items->candidate || !items->items || !items->lead) {
        items_release(items);
        return err_set(e, RC_NO_MEMORY, "no memory for an allocation over %zu Linears", linears);
    }
    fill_items(table, kind, items);
    return RC_OK;
}

void items_assign(const struct profile_table *table, const struct items *items, const int *choice, int *chosen) {
    for (int k = 0; k < items->count; k++)
        for (int i = items->lead[k]; i < table->linear_count; i++)
            if (table->linears[i].tie == items->lead[k]) chosen[i] = items_candidate(items, k, choice[k]);
}

static enum rc run_method(int method, const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest,
                          struct err *e) {
    switch (method) {
    case ALLOCATION_GREEDY: return alloc_greedy(p, r, smallest, e);
    case ALLOCATION_UPGRADE: return alloc_upgrade(p, UPGRADE_BASE_BITS, r, smallest, e);
    default: return alloc_optimal(p, r, smallest, e);
    }
}

enum rc allocation_solve(const struct allocation *a, int64_t limit, struct solution *s, int64_t *smallest,
                         struct err *e) {
    const struct items *items = &a->items;
    *s = (struct solution){.choice = calloc((size_t)items->count + 1, sizeof *s->choice),
                           .chosen = calloc((size_t)a->table.linear_count, sizeof *s->chosen)};
    struct alloc_problem problem = {items->items, items->count, limit};
    struct alloc_result result = {.choice = s->choice};
    enum rc rc = s->choice && s->chosen ? run_method(a->spec->method, &problem, &result, smallest, e)
                                        : err_set(e, RC_NO_MEMORY, "no memory for an allocation");
    if (rc != RC_OK) {
        solution_release(s);
        return rc;
    }
    s->objective = result.objective;
    s->gap = result.gap;
    items_assign(&a->table, items, s->choice, s->chosen);
    return RC_OK;
}

void solution_release(struct solution *s) {
    free(s->choice);
    free(s->chosen);
    *s = (struct solution){0};
}

int64_t solution_bytes(const struct allocation *a, const int *chosen) {
    int64_t bytes = 0;
    for (int i = 0; i < a->table.linear_count; i++)
        bytes += table_cell(&a->table, i, chosen[i])->bytes;
    return bytes;
}

double solution_bits(const struct allocation *a, const int *chosen) {
    double bits = 0;
    for (int i = 0; i < a->table.linear_count; i++)
        bits += (double)a->table.linears[i].params * a->table.candidates[chosen[i]].bits;
    return bits / (double)a->table.params;
}
