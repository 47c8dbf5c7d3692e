#include "worker/pipeline/drift.h"

#include <math.h>
#include <string.h>

#include "base/json.h"

static const struct loss_scores no_scores = {-1, -1, -1};

double error_ratio(double num, double den) {
    if (den > 0) return num / den;
    return num > 0 ? 1 : 0;
}

static void forget_drift(struct drift_row *row) {
    row->drift = row->drift_num = row->drift_den = row->rtn_drift = -1;
}

struct drift_row drift_row_measured(const struct error_report *report, bool drift, int64_t bytes) {
    struct drift_row row = {.drift = error_ratio(report->drift_num, report->drift_den),
                            .drift_num = report->drift_num,
                            .drift_den = report->drift_den,
                            .relative_error = error_ratio(report->frobenius, report->weight_frobenius),
                            .max_abs_error = report->max_abs,
                            .scores = no_scores,
                            .bytes = bytes,
                            .known = true};
    if (!drift) forget_drift(&row);
    return row;
}

bool drift_is_guarded(const struct candidate *c) {
    return c->method != METHOD_NONE && c->method != METHOD_RTN && c->method != METHOD_FP8;
}

struct drift_row drift_row_none(const struct linear *linear, bool drift, struct loss_scores scores) {
    struct drift_row row = {.scores = scores, .bytes = 2 * linear->rows * linear->cols, .known = true};
    if (!drift) forget_drift(&row);
    return row;
}

struct drift_row *drift_at(const struct drift_table *t, size_t linear, size_t candidate) {
    return &t->rows[linear * t->candidate_count + candidate];
}

/* A number that is not finite is NULL, which no object takes. */
static json_t *score_json(double score) {
    return score < 0 ? json_null() : json_real(score);
}

json_t *drift_row_encode(const struct drift_table *t, size_t linear, size_t candidate) {
    const struct linear *l = t->linears[linear];
    const struct candidate *c = &t->candidates[candidate];
    const struct drift_row *r = drift_at(t, linear, candidate);
    int64_t params = l->rows * l->cols;
    char id[CANDIDATE_ID_SIZE];
    return json_pack(
        "{ss si ss s[II] sI ss sb so so so sf sf so so so so so so sI sf sb}", "name", l->name, "block", l->block,
        "projection", l->projection, "shape", (json_int_t)l->rows, (json_int_t)l->cols, "params", (json_int_t)params,
        "candidate", candidate_id(c, id), "static", c->sequential, "drift", score_json(r->drift), "drift_num",
        score_json(r->drift_num), "drift_den", score_json(r->drift_den), "relative_error", r->relative_error,
        "max_abs_error", r->max_abs_error, "rtn_drift", drift_is_guarded(c) ? score_json(r->rtn_drift) : json_null(),
        "damp", candidate_uses_gptq(c) ? json_real(r->damp) : json_null(), "awq_gain",
        candidate_uses_awq(c) ? score_json(r->awq_gain) : json_null(), "fisher", score_json(r->scores.fisher), "kfac",
        score_json(r->scores.kfac), "diag", score_json(r->scores.diag), "bytes", (json_int_t)r->bytes,
        "bits_per_weight", 8 * (double)r->bytes / (double)params, "cached", r->cached);
}

static enum rc get_number(const json_t *data, const char *key, bool optional, double *out, struct err *e) {
    *out = optional ? 0 : NAN;
    TRY(json_get_number(data, key, out, e));
    return isnan(*out) ? err_set(e, RC_INVALID, "a stored drift row lacks \"%s\"", key) : RC_OK;
}

/* null: not asked for. */
static enum rc get_score(const json_t *data, const char *key, double *out, struct err *e) {
    *out = -1;
    if (json_is_null(json_object_get(data, key))) return RC_OK;
    return get_number(data, key, false, out, e);
}

enum rc drift_row_decode(const json_t *data, struct drift_row *row, struct err *e) {
    *row = (struct drift_row){.rtn_drift = -1, .awq_gain = -1, .scores = no_scores, .bytes = -1};
    TRY(get_score(data, "drift", &row->drift, e));
    TRY(get_score(data, "drift_num", &row->drift_num, e));
    TRY(get_score(data, "drift_den", &row->drift_den, e));
    TRY(get_number(data, "relative_error", false, &row->relative_error, e));
    TRY(get_number(data, "max_abs_error", false, &row->max_abs_error, e));
    TRY(json_get_number(data, "rtn_drift", &row->rtn_drift, e));
    TRY(get_number(data, "damp", true, &row->damp, e));
    TRY(json_get_number(data, "awq_gain", &row->awq_gain, e));
    TRY(json_get_number(data, "fisher", &row->scores.fisher, e));
    TRY(json_get_number(data, "kfac", &row->scores.kfac, e));
    TRY(json_get_number(data, "diag", &row->scores.diag, e));
    TRY(json_get_int(data, "bytes", 0, INT64_MAX, &row->bytes, e));
    if (row->bytes < 0) return err_set(e, RC_INVALID, "a stored drift row lacks \"bytes\"");
    TRY(json_get_bool(data, "cached", &row->cached, e));
    row->known = true;
    return RC_OK;
}

int drift_next_bits(const struct drift_table *t, size_t candidate) {
    const struct candidate *all = t->candidates, *low = &all[candidate];
    int best = -1;
    for (size_t c = 0; c < t->candidate_count; c++)
        if (candidate_same_but_bits(&all[c], low) && all[c].bits > low->bits &&
            (best < 0 || all[c].bits < all[best].bits))
            best = (int)c;
    return best;
}

bool drift_inverted(const struct drift_table *t, size_t linear, size_t candidate) {
    int above = drift_next_bits(t, candidate);
    if (above < 0) return false;
    const struct drift_row *low = drift_at(t, linear, candidate), *high = drift_at(t, linear, (size_t)above);
    return low->known && high->known && high->drift > low->drift;
}

/* < 0 as soon as one is. */
static double add_score(double sum, double score) {
    return score < 0 || sum < 0 ? -1 : sum + score;
}

static json_t *total_json(const struct drift_table *t, size_t c) {
    double sum = 0, most = 0, params = 0, linears = (double)t->linear_count;
    struct loss_scores scores = {0};
    int64_t bytes = 0;
    char id[CANDIDATE_ID_SIZE];
    for (size_t l = 0; l < t->linear_count; l++) {
        const struct drift_row *r = drift_at(t, l, c);
        sum = add_score(sum, r->drift);
        most = fmax(most, r->drift);
        scores = (struct loss_scores){add_score(scores.fisher, r->scores.fisher),
                                      add_score(scores.kfac, r->scores.kfac), add_score(scores.diag, r->scores.diag)};
        bytes += r->bytes;
        params += (double)(t->linears[l]->rows * t->linears[l]->cols);
    }
    if (sum < 0) most = -1;
    return json_pack("{ss sI sf so so so so so so}", "candidate", candidate_id(&t->candidates[c], id), "bytes",
                     (json_int_t)bytes, "bits_per_weight", 8 * (double)bytes / params, "drift_sum", score_json(sum),
                     "drift_mean", score_json(sum / linears), "drift_max", score_json(most), "fisher_sum",
                     score_json(scores.fisher), "kfac_sum", score_json(scores.kfac), "diag_sum",
                     score_json(scores.diag));
}

json_t *drift_totals(const struct drift_table *t) {
    json_t *totals = json_array();
    for (size_t c = 0; c < t->candidate_count; c++)
        json_array_append_new(totals, total_json(t, c));
    return totals;
}

json_t *drift_guard(const struct drift_table *t) {
    json_t *guard = json_array();
    for (size_t l = 0; l < t->linear_count; l++)
        for (size_t c = 0; c < t->candidate_count; c++) {
            const struct drift_row *r = drift_at(t, l, c);
            if (!drift_is_guarded(&t->candidates[c]) || r->drift <= r->rtn_drift) continue;
            char id[CANDIDATE_ID_SIZE];
            json_array_append_new(guard, json_pack("{ss ss sf sf}", "name", t->linears[l]->name, "candidate",
                                                   candidate_id(&t->candidates[c], id), "drift", r->drift, "rtn_drift",
                                                   r->rtn_drift));
        }
    return guard;
}
