/* The `allocation` job: a profile's rows, rules and a budget → one candidate for every Linear. Takes well under a
 * second at any size a profile can have, so it neither reports progress nor looks for cancellation. */
#include "worker/pipeline/allocate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sizes.h"
#include "worker/alloc/alloc.h"
#include "worker/pipeline/job.h"

enum { FRONTIER_POINTS = 64 };
#define UPGRADE_BASE_BITS 4

static const char *const method_name[] = {"greedy", "upgrade", "optimal"}; /* by enum allocation_method */

/* What a budget counts. */
enum cost_kind { COST_BYTES, COST_CODE_BITS };

/* The allocation's own terms of a problem: item i is the tie of `lead[i]`. */
struct items {
    struct alloc_option *options; /* [linear_count · candidate_count] */
    int *candidate;               /* beside options: which candidate each stands for */
    struct alloc_item *items;     /* [count] */
    int *lead;                    /* [count] the first Linear of each tie */
    int count;
};

struct allocation {
    const struct spec_allocation *spec;
    struct profile_table table;
    struct vram_terms vram;
    int64_t limit; /* the budget, in the unit of its cost kind */
    int *chosen;   /* [linear_count] candidate of each Linear */
    double objective, gap;
    struct frontier_point frontier[FRONTIER_POINTS];
    int frontier_count;
};

static void items_release(struct items *items) {
    free(items->options);
    free(items->candidate);
    free(items->items);
    free(items->lead);
}

/* Adds Linear i's cost and score under candidate c to an option; bits are the candidate's, equal for a whole tie. */
static void add_to_option(const struct profile_table *table, int i, int c, enum cost_kind kind,
                          struct alloc_option *option) {
    const struct cell *cell = table_cell(table, i, c);
    int64_t code_bits = table->linears[i].params * table->candidates[c].bits;
    option->cost += kind == COST_BYTES ? cell->bytes : code_bits;
    option->score += cell->score;
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

static enum rc items_init(const struct profile_table *table, enum cost_kind kind, struct items *items, struct err *e) {
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

static enum cost_kind cost_kind(const struct allocation *a) {
    return a->spec->budget->has_average_bits ? COST_CODE_BITS : COST_BYTES;
}

/* The budget in the unit that costs are counted in. What the user wrote as 3.3 must not lose a bit to rounding. */
static int64_t cost_limit(const struct allocation *a) {
    const struct spec_budget *budget = a->spec->budget;
    if (budget->has_average_bits) return (int64_t)floor(budget->average_bits * (double)a->table.params * (1 + 1e-12));
    return budget->has_vram ? budget->vram - vram_sum(&a->vram) : budget->weights;
}

/* Says the smallest feasible budget in the unit that the user gave. */
static enum rc infeasible(const struct allocation *a, int64_t smallest, struct err *e) {
    const struct spec_budget *budget = a->spec->budget;
    const char *start = a->spec->method == ALLOCATION_UPGRADE ? " (`upgrade` starts at 4 bits)" : "";
    char text[24];
    if (budget->has_average_bits) {
        double bits = ceil((double)smallest / (double)a->table.params * 1e6) / 1e6;
        return err_at(e, "/budget/average_bits", RC_INFEASIBLE,
                      "%g average bits are infeasible: the smallest feasible average_bits is %.10g%s",
                      budget->average_bits, bits, start);
    }
    if (budget->has_weights)
        return err_at(e, "/budget/weights", RC_INFEASIBLE,
                      "%lld bytes are infeasible: the smallest feasible weights is %lld (%s)%s",
                      (long long)budget->weights, (long long)smallest, size_format(smallest, text, sizeof text), start);
    int64_t total = smallest + vram_sum(&a->vram);
    return err_at(e, "/budget/vram", RC_INFEASIBLE,
                  "%lld bytes are infeasible: the smallest feasible vram is %lld (%s), of which weights %lld, "
                  "unquantized %lld, kv_cache %lld, workspace %lld, reserve %lld%s",
                  (long long)budget->vram, (long long)total, size_format(total, text, sizeof text), (long long)smallest,
                  (long long)a->vram.unquantized, (long long)a->vram.kv_cache, (long long)a->vram.workspace,
                  (long long)a->vram.reserve, start);
}

static enum rc run_method(int method, const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest,
                          struct err *e) {
    switch (method) {
    case ALLOCATION_GREEDY: return alloc_greedy(p, r, smallest, e);
    case ALLOCATION_UPGRADE: return alloc_upgrade(p, UPGRADE_BASE_BITS, r, smallest, e);
    default: return alloc_optimal(p, r, smallest, e);
    }
}

/* `choice` [items->count] is scratch. */
static enum rc solve_items(struct allocation *a, const struct items *items, int *choice, struct err *e) {
    struct alloc_problem problem = {items->items, items->count, a->limit};
    struct alloc_result result = {.choice = choice};
    int64_t smallest = 0;
    enum rc rc = run_method(a->spec->method, &problem, &result, &smallest, e);
    if (rc == RC_INFEASIBLE) return infeasible(a, smallest, e);
    TRY(rc);
    a->objective = result.objective;
    a->gap = result.gap;
    for (int k = 0; k < items->count; k++) {
        int64_t option = items->items[k].options - items->options + choice[k];
        for (int i = items->lead[k]; i < a->table.linear_count; i++)
            if (a->table.linears[i].tie == items->lead[k]) a->chosen[i] = items->candidate[option];
    }
    return RC_OK;
}

static enum rc solve(struct allocation *a, struct err *e) {
    struct items items;
    TRY(items_init(&a->table, cost_kind(a), &items, e));
    int *choice = calloc((size_t)items.count + 1, sizeof *choice);
    enum rc rc = choice ? solve_items(a, &items, choice, e) : err_set(e, RC_NO_MEMORY, "no memory for an allocation");
    free(choice);
    items_release(&items);
    return rc;
}

/* Always in bytes, whatever the budget counts. */
static enum rc find_frontier(struct allocation *a, struct err *e) {
    struct items items;
    TRY(items_init(&a->table, COST_BYTES, &items, e));
    struct alloc_problem problem = {items.items, items.count, 0};
    enum rc rc = alloc_frontier(&problem, a->frontier, FRONTIER_POINTS, &a->frontier_count, e);
    items_release(&items);
    return rc;
}

static const struct cell *chosen_cell(const struct allocation *a, int i) {
    return table_cell(&a->table, i, a->chosen[i]);
}

static int64_t total_bytes(const struct allocation *a) {
    int64_t bytes = 0;
    for (int i = 0; i < a->table.linear_count; i++)
        bytes += chosen_cell(a, i)->bytes;
    return bytes;
}

static double average_bits(const struct allocation *a) {
    double bits = 0;
    for (int i = 0; i < a->table.linear_count; i++)
        bits += (double)a->table.linears[i].params * a->table.candidates[a->chosen[i]].bits;
    return bits / (double)a->table.params;
}

static json_t *assignment_json(const struct allocation *a) {
    json_t *list = json_array();
    for (int i = 0; i < a->table.linear_count; i++) {
        const struct cell *cell = chosen_cell(a, i);
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:f}", "name", a->table.linears[i].name, "candidate",
                                              a->table.ids[a->chosen[i]], "bytes", (json_int_t)cell->bytes, "drift",
                                              cell->drift));
    }
    return list;
}

/* Counts Linears by code bits, in rising order of bits; `projection` NULL: all of them. */
static json_t *counts_json(const struct allocation *a, const char *projection) {
    json_t *counts = json_object();
    for (int bits = 1; bits <= 16; bits++) {
        char key[12];
        int count = 0;
        for (int i = 0; i < a->table.linear_count; i++)
            count += a->table.candidates[a->chosen[i]].bits == bits &&
                     (!projection || strcmp(a->table.linears[i].projection, projection) == 0);
        snprintf(key, sizeof key, "%d", bits);
        if (count) json_object_set_new(counts, key, json_integer(count));
    }
    return counts;
}

static json_t *projections_json(const struct allocation *a) {
    json_t *projections = json_object();
    for (int i = 0; i < a->table.linear_count; i++) {
        const char *projection = a->table.linears[i].projection;
        if (!json_object_get(projections, projection))
            json_object_set_new(projections, projection, counts_json(a, projection));
    }
    return projections;
}

static json_t *vram_json(const struct allocation *a, int64_t weights) {
    const struct spec_budget *budget = a->spec->budget;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "weights", (json_int_t)weights, "unquantized",
                     (json_int_t)a->vram.unquantized, "kv_cache", (json_int_t)a->vram.kv_cache, "workspace",
                     (json_int_t)a->vram.workspace, "reserve", (json_int_t)a->vram.reserve, "total",
                     (json_int_t)(weights + vram_sum(&a->vram)), "limit",
                     budget->has_vram ? json_integer(budget->vram) : json_null());
}

static json_t *budget_json(const struct spec_budget *budget) {
    if (budget->has_average_bits) return json_pack("{s:f}", "average_bits", budget->average_bits);
    if (budget->has_weights) return json_pack("{s:I}", "weights", (json_int_t)budget->weights);
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "vram", (json_int_t)budget->vram, "context",
                     (json_int_t)budget->context, "batch", (json_int_t)budget->batch, "kv_bits",
                     (json_int_t)budget->kv_bits, "reserve", (json_int_t)budget->reserve);
}

/* One recipe for every Linear, rules aside: what the assignment has to beat. NULL when the profile does not have it
 * for all of them. */
static json_t *uniform_recipe(const struct allocation *a, int c) {
    int64_t bytes = 0, cost = 0;
    double objective = 0;
    for (int i = 0; i < a->table.linear_count; i++) {
        const struct cell *cell = table_cell(&a->table, i, c);
        struct alloc_option option = {0};
        if (!cell->measured) return NULL;
        add_to_option(&a->table, i, c, cost_kind(a), &option);
        bytes += cell->bytes;
        cost += option.cost;
        objective += cell->score;
    }
    return json_pack("{s:s, s:I, s:f, s:b}", "candidate", a->table.ids[c], "bytes", (json_int_t)bytes, "objective",
                     objective, "feasible", cost <= a->limit);
}

static json_t *uniform_json(const struct allocation *a) {
    json_t *list = json_array();
    for (int c = 0; c < a->table.candidate_count; c++) {
        json_t *recipe = uniform_recipe(a, c);
        if (recipe) json_array_append_new(list, recipe);
    }
    return list;
}

static json_t *frontier_json(const struct allocation *a) {
    json_t *list = json_array();
    for (int k = 0; k < a->frontier_count; k++)
        json_array_append_new(list, json_pack("{s:I, s:f}", "bytes", (json_int_t)a->frontier[k].cost, "objective",
                                              a->frontier[k].objective));
    return list;
}

static enum rc result_json(const struct allocation *a, json_t **result, struct err *e) {
    int64_t bytes = total_bytes(a);
    *result = json_pack(
        "{s:s, s:s?, s:s?, s:s, s:s, s:s, s:o, s:I, s:I, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o, "
        "s:O*}",
        "profile", a->spec->profile, "model", a->table.model, "fingerprint", a->table.fingerprint, "target",
        target_names[a->spec->target], "method", method_name[a->spec->method], "score", score_names[a->spec->score],
        "budget", budget_json(a->spec->budget), "parameters", (json_int_t)a->table.params, "bytes", (json_int_t)bytes,
        "average_bits", average_bits(a), "bits_per_weight", 8 * (double)bytes / (double)a->table.params, "objective",
        a->objective, "gap", a->gap, "counts", counts_json(a, NULL), "projections", projections_json(a), "vram",
        vram_json(a, bytes), "uniform", uniform_json(a), "frontier", frontier_json(a), "assignment", assignment_json(a),
        "calibration", json_object_get(a->table.result, "calibration"));
    return *result ? RC_OK : err_set(e, RC_NO_MEMORY, "no memory for the result of an allocation");
}

/* Everything after the table is there. */
static enum rc allocate(struct allocation *a, json_t **result, struct err *e) {
    TRY(target_apply(&a->table, (enum target)a->spec->target, e));
    TRY(rules_apply(&a->table, &a->spec->rules, e));
    TRY(vram_terms(&a->table, a->spec->budget, &a->vram, e));
    a->limit = cost_limit(a);
    a->chosen = calloc((size_t)a->table.linear_count, sizeof *a->chosen);
    if (!a->chosen) return err_set(e, RC_NO_MEMORY, "no memory for an allocation");
    TRY(solve(a, e));
    TRY(find_frontier(a, e));
    return result_json(a, result, e);
}

enum rc pipeline_allocation(const struct job *job, json_t **result, struct err *e) {
    struct allocation a = {.spec = &job->spec->allocation};
    TRY(profile_table_init(&a.table, json_object_get(job->inputs, "profile"), a.spec->score, e));
    enum rc rc = allocate(&a, result, e);
    free(a.chosen);
    profile_table_release(&a.table);
    return rc;
}
