/* What the solver minimises: which score, and its value in every cell. Scores of the profile's rows are taken as they
 * stand. A sweep measured one candidate, or noise of one size; what it found is scaled to the others, by their drift
 * against that candidate's or, of noise, by their squared relative error: good between widths of one method, between
 * methods as good as drift or error is there. */
#include <math.h>
#include <stdio.h>

#include "worker/pipeline/allocate.h"

static bool lacks(const struct profile_table *table, int linear, int candidate, enum score score) {
    const struct cell *cell = table_cell(table, linear, candidate);
    return cell->measured && isnan(cell->scores[score]);
}

static bool all_have(const struct profile_table *table, enum score score) {
    for (int i = 0; i < table->linear_count; i++)
        for (int c = 0; c < table->candidate_count; c++)
            if (lacks(table, i, c, score)) return false;
    return true;
}

static enum score default_score(const struct profile_table *table, const char **reason) {
    bool fisher = all_have(table, SCORE_FISHER);
    *reason = fisher ? "The allocation names no score, and every row of the profile has fisher, which predicts what a "
                       "choice costs better than drift does."
                     : "The allocation names no score, and not every row of the profile has fisher; drift predicts "
                       "damage only roughly: ask for fisher in the profile's scores.";
    return fisher ? SCORE_FISHER : SCORE_DRIFT;
}

/* Fills `text` with the names of those that every row has: error at least. */
static const char *scores_there(const struct profile_table *table, char *text, size_t size) {
    size_t len = 0;
    for (int s = 0; s < SCORES_OF_ROWS; s++)
        if (all_have(table, (enum score)s) && len < size)
            len += (size_t)snprintf(text + len, size - len, "%s%s", len ? ", " : "", allocation_score_names[s]);
    return text;
}

static enum rc check_scores(const struct profile_table *table, enum score score, struct err *e) {
    char there[64];
    for (int i = 0; i < table->linear_count; i++)
        for (int c = 0; c < table->candidate_count; c++)
            if (lacks(table, i, c, score))
                return err_at(e, "/score", RC_INVALID,
                              "%s: the profile has none for %s at %s; it has %s, and others when its scores ask for "
                              "them",
                              allocation_score_names[score], table->linears[i].name, table->ids[c],
                              scores_there(table, there, sizeof there));
    return RC_OK;
}

/* How a sweep is scaled. */
struct scale {
    const struct sweep_input *swept;
    enum score score, of; /* what it becomes, and what of the profile scales it */
    int base;             /* SCORE_DELTA_KL: the swept candidate's column */
};

static enum rc open_scale(const struct profile_table *table, struct scale *scale, struct err *e) {
    const struct sweep_input *s = scale->swept;
    if (!s) /* the spec's check has said so */
        return err_at(e, "/sweep", RC_INVALID, "is required for score %s", allocation_score_names[scale->score]);
    if (scale->score == SCORE_NOISE)
        return s->noise > 0
                   ? RC_OK
                   : err_at(e, "/score", RC_INVALID,
                            "noise needs a sweep with noise; this one ran %s: ask for score delta_kl, or sweep "
                            "with noise",
                            s->candidate);
    if (!s->candidate)
        return err_at(e, "/score", RC_INVALID,
                      "delta_kl needs a sweep of a candidate; this one added noise: ask for score noise, or sweep a "
                      "candidate");
    scale->base = table_find_candidate(table, s->candidate);
    if (scale->base >= 0) return RC_OK;
    return err_at(e, "/sweep", RC_INVALID,
                  "ran %s, which was not profiled, so that its drift is not known: profile it among the candidates",
                  s->candidate);
}

static enum rc not_swept(const struct profile_table *table, int linear, struct err *e) {
    return err_at(e, "/sweep", RC_INVALID, "has no row for %s, which the profile has: sweep all that is profiled",
                  table->linears[linear].name);
}

static enum rc base_drift(const struct profile_table *table, int linear, int base, double *drift, struct err *e) {
    const struct cell *cell = table_cell(table, linear, base);
    if (!cell->measured)
        return err_at(e, "/sweep", RC_INVALID, "ran %s, which the profile lacks for %s: profile it for all",
                      table->ids[base], table->linears[linear].name);
    *drift = cell->scores[SCORE_DRIFT];
    return RC_OK;
}

/* Of an input that is always zero, say: then so are all scores, whatever the sweep's rounding found. */
static bool nothing_changes(const struct profile_table *table, int linear, enum score of) {
    for (int c = 0; c < table->candidate_count; c++)
        if (table_cell(table, linear, c)->scores[of] > 0) return false;
    return true;
}

/* What a Linear's scores `of` are multiplied by. */
static enum rc linear_factor(const struct profile_table *table, const struct scale *scale, int linear, double *factor,
                             struct err *e) {
    double delta_kl = sweep_input_delta_kl(scale->swept, table->linears[linear].name);
    double base = scale->swept->noise * scale->swept->noise;
    if (delta_kl < 0) return not_swept(table, linear, e);
    if (scale->score == SCORE_DELTA_KL) TRY(base_drift(table, linear, scale->base, &base, e));
    *factor = delta_kl / base;
    if (base > 0 && isfinite(*factor)) return RC_OK;
    *factor = 0;
    if (nothing_changes(table, linear, scale->of)) return RC_OK;
    return err_at(
        e, "/sweep", RC_INVALID,
        "ran %s, which by the profile leaves %s as it is: others cannot be scaled from that; sweep a candidate "
        "of fewer bits",
        table->ids[scale->base], table->linears[linear].name);
}

static enum rc score_from_sweep(struct profile_table *table, struct scale *scale, struct err *e) {
    TRY(open_scale(table, scale, e));
    TRY(check_scores(table, scale->of, e));
    for (int i = 0; i < table->linear_count; i++) {
        double factor;
        TRY(linear_factor(table, scale, i, &factor, e));
        for (int c = 0; c < table->candidate_count; c++)
            table_cell(table, i, c)->score = factor * table_cell(table, i, c)->scores[scale->of];
    }
    return RC_OK;
}

static enum rc score_from_rows(struct profile_table *table, enum score score, struct err *e) {
    TRY(check_scores(table, score, e));
    for (int i = 0; i < table->linear_count; i++)
        for (int c = 0; c < table->candidate_count; c++)
            table_cell(table, i, c)->score = table_cell(table, i, c)->scores[score];
    return RC_OK;
}

enum rc score_apply(struct profile_table *table, const struct spec_allocation *spec, const struct sweep_input *swept,
                    struct chosen_score *chosen, struct err *e) {
    *chosen = (struct chosen_score){.score = (enum score)spec->score, .reason = "The allocation asks for it."};
    if (!spec->has_score) chosen->score = default_score(table, &chosen->reason);
    if (chosen->score < SCORES_OF_ROWS) return score_from_rows(table, chosen->score, e);
    struct scale scale = {
        .swept = swept, .score = chosen->score, .of = chosen->score == SCORE_NOISE ? SCORE_ERROR : SCORE_DRIFT};
    return score_from_sweep(table, &scale, e);
}
