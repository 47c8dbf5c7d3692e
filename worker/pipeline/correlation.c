#include "worker/pipeline/correlation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/pipeline/rank.h"

/* The Linears that both have, at one candidate and for one score. */
struct pairs {
    double *score, *delta_kl; /* [linear_count] */
    int *projection;          /* [linear_count] the first Linear of the same one */
    size_t count;
};

static int projection_of(const struct profile_table *table, int linear) {
    int first = 0;
    while (strcmp(table->linears[first].projection, table->linears[linear].projection) != 0)
        first++;
    return first;
}

static void fill_pairs(const struct profile_table *table, const struct sweep_input *swept, int c, enum score score,
                       struct pairs *pairs) {
    pairs->count = 0;
    for (int i = 0; i < table->linear_count; i++) {
        const struct cell *cell = table_cell(table, i, c);
        double delta_kl = sweep_input_delta_kl(swept, table->linears[i].name);
        if (!cell->measured || isnan(cell->scores[score]) || delta_kl < 0) continue;
        pairs->score[pairs->count] = cell->scores[score];
        pairs->delta_kl[pairs->count] = delta_kl;
        pairs->projection[pairs->count++] = projection_of(table, i);
    }
}

static json_t *rho(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static void add_candidate(const struct profile_table *table, const struct sweep_input *swept, int c,
                          struct pairs *pairs, json_t *list) {
    for (int s = 0; s < SCORES_OF_ROWS; s++) {
        fill_pairs(table, swept, c, (enum score)s, pairs);
        if (pairs->count == 0) continue;
        double all = rank_spearman(pairs->score, pairs->delta_kl, pairs->count);
        double within = rank_spearman_within(pairs->score, pairs->delta_kl, pairs->projection, pairs->count);
        json_array_append_new(list, json_pack("{ss ss so so sI}", "score", allocation_score_names[s], "candidate",
                                              table->ids[c], "spearman", rho(all), "spearman_within_projection",
                                              rho(within), "n", (json_int_t)pairs->count));
    }
}

json_t *correlation_json(const struct profile_table *table, const struct sweep_input *swept) {
    size_t linears = (size_t)table->linear_count;
    struct pairs pairs = {.score = xcalloc(linears, sizeof *pairs.score),
                          .delta_kl = xcalloc(linears, sizeof *pairs.delta_kl),
                          .projection = xcalloc(linears, sizeof *pairs.projection)};
    json_t *list = json_array();
    int base = swept->candidate ? table_find_candidate(table, swept->candidate) : -1;
    for (int c = 0; c < table->candidate_count; c++)
        if (base < 0 ? table->candidates[c].method != METHOD_NONE : c == base)
            add_candidate(table, swept, c, &pairs, list);
    free(pairs.score);
    free(pairs.delta_kl);
    free(pairs.projection);
    return list;
}

static enum rc read_both(struct profile_table *table, const json_t *profile, struct sweep_input *swept,
                         const json_t *sweep, struct err *e) {
    TRY(sweep_input_init(swept, sweep, e));
    enum rc rc = profile_table_init(table, profile, e);
    if (rc == RC_OK) rc = sweep_input_check_model(swept, table->fingerprint, e);
    return rc;
}

enum rc correlation_of(const json_t *profile, const json_t *sweep, json_t **out, struct err *e) {
    struct profile_table table = {0};
    struct sweep_input swept = {0};
    enum rc rc = read_both(&table, profile, &swept, sweep, e);
    if (rc == RC_OK) *out = correlation_json(&table, &swept);
    profile_table_release(&table);
    sweep_input_release(&swept);
    return rc;
}
