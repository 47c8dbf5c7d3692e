/* The `allocation` job: a profile's rows, rules and a budget → one candidate for every Linear. Takes well under a
 * second at any size a profile can have, so it neither reports progress nor looks for cancellation. */
#include "worker/pipeline/allocate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sizes.h"
#include "worker/pipeline/correlation.h"
#include "worker/pipeline/job.h"
#include "worker/pipeline/predict.h"

static const char *const method_name[] = {"greedy", "upgrade", "optimal"}; /* by enum allocation_method */

/* The budget in the unit that costs are counted in. What the user wrote as 3.3 must not lose a bit to rounding. */
static int64_t cost_limit(const struct allocation *a) {
    const struct spec_budget *budget = a->spec->budget;
    if (budget->has_average_bits) return (int64_t)floor(budget->average_bits * (double)a->table.params * (1 + 1e-12));
    return budget->has_vram ? budget->vram - vram_sum(&a->vram) : budget->weights;
}

/* Says the smallest feasible budget in the unit that the user gave, and what besides the budget makes it so. */
static enum rc infeasible(const struct allocation *a, int64_t smallest, struct err *e) {
    const struct spec_budget *budget = a->spec->budget;
    bool aimed = a->spec->target != TARGET_NONE;
    char text[24], why[128];
    snprintf(why, sizeof why, "%s%s%s", a->spec->method == ALLOCATION_UPGRADE ? " (`upgrade` starts at 4 bits)" : "",
             aimed ? ", with the candidates that can be carried by target " : "",
             aimed ? target_names[a->spec->target] : "");
    if (budget->has_average_bits) {
        double bits = ceil((double)smallest / (double)a->table.params * 1e6) / 1e6;
        return err_at(e, "/budget/average_bits", RC_INFEASIBLE,
                      "%g average bits are infeasible: the smallest feasible average_bits is %.10g%s",
                      budget->average_bits, bits, why);
    }
    if (budget->has_weights)
        return err_at(e, "/budget/weights", RC_INFEASIBLE,
                      "%lld bytes are infeasible: the smallest feasible weights is %lld (%s)%s",
                      (long long)budget->weights, (long long)smallest, size_format(smallest, text, sizeof text), why);
    int64_t total = smallest + vram_sum(&a->vram);
    return err_at(e, "/budget/vram", RC_INFEASIBLE,
                  "%lld bytes are infeasible: the smallest feasible vram is %lld (%s), of which weights %lld, "
                  "unquantized %lld, kv_cache %lld, workspace %lld, reserve %lld%s",
                  (long long)budget->vram, (long long)total, size_format(total, text, sizeof text), (long long)smallest,
                  (long long)a->vram.unquantized, (long long)a->vram.kv_cache, (long long)a->vram.workspace,
                  (long long)a->vram.reserve, why);
}

static enum rc solve(struct allocation *a, struct err *e) {
    int64_t smallest = 0;
    enum rc rc = allocation_solve(a, a->limit, &a->best, &smallest, e);
    return rc == RC_INFEASIBLE ? infeasible(a, smallest, e) : rc;
}

static json_t *assignment_json(const struct allocation *a) {
    json_t *list = json_array();
    for (int i = 0; i < a->table.linear_count; i++) {
        const struct cell *cell = table_cell(&a->table, i, a->best.chosen[i]);
        double drift = cell->scores[SCORE_DRIFT];
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:o}", "name", a->table.linears[i].name, "candidate",
                                              a->table.ids[a->best.chosen[i]], "bytes", (json_int_t)cell->bytes,
                                              "drift", isnan(drift) ? json_null() : json_real(drift)));
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
            count += a->table.candidates[a->best.chosen[i]].bits == bits &&
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
        if (!cell->measured) return NULL;
        bytes += cell->bytes;
        cost += cell_cost(&a->table, i, c, allocation_cost(a));
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

/* Everything that takes solving anew. */
struct outlook {
    json_t *frontier, *sensitivity;
};

static enum rc look_out(const struct allocation *a, struct outlook *outlook, struct err *e) {
    TRY(allocation_frontier(a, &outlook->frontier, e));
    return allocation_sensitivity(a, &outlook->sensitivity, e);
}

const char *allocation_around(const struct allocation *a) {
    return json_string_value(json_object_get(json_object_get(a->table.result, "around"), "allocation"));
}

json_t *allocation_predicted_kl(const struct allocation *a, double objective) {
    return allocation_around(a) ? json_null() : predicted_kl_json(a->score.score, objective);
}

static json_t *prediction(const struct allocation *a) {
    return allocation_around(a) ? json_null() : prediction_json(a->score.score, a->best.objective);
}

static json_t *sweep_json(const struct allocation *a, json_t *result) {
    json_object_set_new(result, "sweep", json_string(a->spec->sweep));
    json_object_set_new(result, "correlation", correlation_json(&a->table, a->swept));
    return result;
}

static json_t *result_json(const struct allocation *a, const struct outlook *outlook) {
    int64_t bytes = solution_bytes(a, a->best.chosen);
    json_t *result = json_pack(
        "{s:s, s:s?, s:s?, s:s, s:s, s:s, s:s, s:o, s:I, s:I, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:O, s:O, "
        "s:o, s:o, s:O*}",
        "profile", a->spec->profile, "model", a->table.model, "fingerprint", a->table.fingerprint, "target",
        target_names[a->spec->target], "method", method_name[a->spec->method], "score",
        allocation_score_names[a->score.score], "score_reason", a->score.reason, "budget", budget_json(a->spec->budget),
        "parameters", (json_int_t)a->table.params, "bytes", (json_int_t)bytes, "average_bits",
        solution_bits(a, a->best.chosen), "bits_per_weight", 8 * (double)bytes / (double)a->table.params, "objective",
        a->best.objective, "gap", a->best.gap, "prediction", prediction(a), "counts", counts_json(a, NULL),
        "projections", projections_json(a), "vram", vram_json(a, bytes), "uniform", uniform_json(a), "frontier",
        outlook->frontier, "sensitivity", outlook->sensitivity, "edge", allocation_edge(a), "assignment",
        assignment_json(a), "calibration", json_object_get(a->table.result, "calibration"));
    if (result && allocation_around(a)) json_object_set_new(result, "around", json_string(allocation_around(a)));
    return result && a->swept ? sweep_json(a, result) : result;
}

/* Everything after the table is there. */
static enum rc allocate(struct allocation *a, json_t **result, struct err *e) {
    TRY(score_apply(&a->table, a->spec, a->swept, &a->score, e));
    TRY(target_apply(&a->table, (enum target)a->spec->target, e));
    TRY(rules_apply(&a->table, &a->spec->rules, e));
    TRY(vram_terms(&a->table, a->spec->budget, &a->vram, e));
    TRY(items_init(&a->table, allocation_cost(a), &a->items, e));
    a->limit = cost_limit(a);
    TRY(solve(a, e));
    struct outlook outlook = {0};
    enum rc rc = look_out(a, &outlook, e);
    if (rc == RC_OK) *result = result_json(a, &outlook);
    json_decref(outlook.frontier);
    json_decref(outlook.sensitivity);
    if (rc != RC_OK || *result) return rc;
    return err_set(e, RC_NO_MEMORY, "no memory for the result of an allocation");
}

static enum rc allocate_profile(struct allocation *a, const json_t *profile, json_t **result, struct err *e) {
    TRY(profile_table_init(&a->table, profile, e));
    enum rc rc = a->swept ? sweep_input_check_model(a->swept, a->table.fingerprint, e) : RC_OK;
    if (rc == RC_OK) rc = allocate(a, result, e);
    solution_release(&a->best);
    items_release(&a->items);
    profile_table_release(&a->table);
    return rc;
}

enum rc pipeline_allocation(const struct job *job, json_t **result, struct err *e) {
    const struct spec_allocation *spec = &job->spec->allocation;
    struct sweep_input swept = {0};
    if (spec->sweep) TRY(sweep_input_init(&swept, json_object_get(job->inputs, "sweep"), e));
    struct allocation a = {.spec = spec, .swept = spec->sweep ? &swept : NULL};
    enum rc rc = allocate_profile(&a, json_object_get(job->inputs, "profile"), result, e);
    sweep_input_release(&swept);
    return rc;
}
