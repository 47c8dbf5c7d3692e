/* The profile's rows as a table. Rows came from our own profile job, by way of a database: checked all the same. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "worker/pipeline/allocate.h"

#define BYTES_MAX 10000000000000 /* of one Linear */
#define PARAMS_MAX 4000000000000

/* One row, read. */
struct table_row {
    const char *name, *projection, *candidate;
    int64_t block, params, cols, bytes;
    double scores[SCORES_OF_ROWS]; /* NAN: not asked for */
};

static enum rc missing(const char *member, struct err *e) {
    return err_set(e, RC_INVALID, "it has no %s", member);
}

static enum rc read_params(const json_t *data, int64_t *params, struct err *e) {
    *params = 0;
    TRY(json_get_int(data, "params", 1, PARAMS_MAX, params, e));
    return *params ? RC_OK : missing("params", e);
}

/* "shape": [N, K], which a profile of long ago may lack. */
static enum rc read_cols(const json_t *data, struct table_row *row, struct err *e) {
    const json_t *shape = json_object_get(data, "shape");
    row->cols = json_integer_value(json_array_get(shape, 1));
    if (shape && (row->cols < 1 || row->cols > row->params || row->params % row->cols != 0))
        return missing("shape that fits its params", e);
    return RC_OK;
}

static enum rc read_strings(const json_t *data, struct table_row *row, struct err *e) {
    TRY(json_get_string(data, "name", &row->name, e));
    TRY(json_get_string(data, "projection", &row->projection, e));
    TRY(json_get_string(data, "candidate", &row->candidate, e));
    if (!row->name) return missing("name", e);
    if (!row->projection) return missing("projection", e);
    return row->candidate ? RC_OK : missing("candidate", e);
}

/* Every row has an error. */
static const char *const score_members[SCORES_OF_ROWS] = {
    [SCORE_DRIFT] = "drift", [SCORE_ERROR] = "relative_error", [SCORE_FISHER] = "fisher", [SCORE_KFAC] = "kfac",
    [SCORE_DIAG] = "diag",
};

static enum rc read_scores(const json_t *data, struct table_row *row, struct err *e) {
    for (int s = 0; s < SCORES_OF_ROWS; s++) {
        double *score = &row->scores[s];
        *score = NAN;
        TRY(json_get_number(data, score_members[s], score, e));
        bool required = s == SCORE_ERROR;
        if (required ? isfinite(*score) && *score >= 0 : isnan(*score) || (isfinite(*score) && *score >= 0)) continue;
        return err_set(e, RC_INVALID, "it has no %s that is a number >= 0", score_members[s]);
    }
    row->scores[SCORE_ERROR] *= row->scores[SCORE_ERROR];
    return RC_OK;
}

static enum rc read_row(const json_t *data, struct table_row *row, struct err *e) {
    *row = (struct table_row){.block = -1, .bytes = -1};
    if (!json_is_object(data)) return missing("data", e);
    TRY(read_strings(data, row, e));
    TRY(read_params(data, &row->params, e));
    TRY(read_cols(data, row, e));
    TRY(json_get_int(data, "block", -1, 4095, &row->block, e));
    TRY(json_get_int(data, "bytes", 0, BYTES_MAX, &row->bytes, e));
    if (row->bytes < 0) return missing("bytes", e);
    return read_scores(data, row, e);
}

/* The row's candidate as a column, added when it is new. */
static enum rc find_candidate(struct profile_table *table, const char *id, int *column, struct err *e) {
    for (*column = 0; *column < table->candidate_count; (*column)++)
        if (strcmp(table->ids[*column], id) == 0) return RC_OK;
    if (table->candidate_count == CANDIDATES_MAX)
        return err_set(e, RC_INVALID, "more than %d candidates", CANDIDATES_MAX);
    TRY(candidate_from_id(id, &table->candidates[*column], e));
    table->ids[table->candidate_count++] = id;
    return RC_OK;
}

/* The row's Linear, added when it is new; `names` maps names to indices. */
static enum rc find_linear(struct profile_table *table, json_t *names, const struct table_row *row, int *index,
                           struct err *e) {
    const json_t *known = json_object_get(names, row->name);
    *index = known ? (int)json_integer_value(known) : table->linear_count;
    if (known) {
        const struct profiled_linear *linear = &table->linears[*index];
        if (linear->params == row->params && linear->block == row->block) return RC_OK;
        return err_set(e, RC_INVALID, "%s has another shape or block than in an earlier row", row->name);
    }
    if (json_object_set_new(names, row->name, json_integer(*index)) != 0)
        return err_set(e, RC_NO_MEMORY, "no memory for the Linears of a profile");
    table->linears[table->linear_count++] = (struct profiled_linear){
        .name = row->name,
        .projection = row->projection,
        .block = (int)row->block,
        .params = row->params,
        .cols = row->cols,
        .tie = *index,
        .tie_rule = -1,
    };
    table->params += row->params;
    return RC_OK;
}

static bool is_drift_row(const json_t *row) {
    const char *phase = json_string_value(json_object_get(row, "phase"));
    return phase && strcmp(phase, "drift") == 0;
}

/* First pass: which Linears and which candidates there are. */
static enum rc find_axes(struct profile_table *table, const json_t *rows, json_t *names, struct err *e) {
    size_t r;
    const json_t *value;
    json_array_foreach(rows, r, value) {
        struct table_row row;
        int index;
        if (!is_drift_row(value)) continue;
        enum rc rc = read_row(json_object_get(value, "data"), &row, e);
        if (rc == RC_OK) rc = find_candidate(table, row.candidate, &index, e);
        if (rc == RC_OK) rc = find_linear(table, names, &row, &index, e);
        if (rc != RC_OK) return err_context(e, "row %zu of the profile", r);
    }
    if (table->linear_count == 0) return err_set(e, RC_INVALID, "the profile has no drift rows to allocate from");
    return RC_OK;
}

/* Second pass: every row into its cell. */
static enum rc fill_cells(struct profile_table *table, const json_t *rows, const json_t *names, struct err *e) {
    size_t r;
    const json_t *value;
    json_array_foreach(rows, r, value) {
        struct table_row row;
        int column;
        if (!is_drift_row(value)) continue;
        TRY(read_row(json_object_get(value, "data"), &row, e));
        TRY(find_candidate(table, row.candidate, &column, e));
        struct cell *cell = table_cell(table, (int)json_integer_value(json_object_get(names, row.name)), column);
        if (cell->measured)
            return err_set(e, RC_INVALID, "row %zu of the profile measures %s at %s a second time", r, row.name,
                           row.candidate);
        *cell = (struct cell){.measured = true, .allowed = true, .bytes = row.bytes};
        memcpy(cell->scores, row.scores, sizeof row.scores);
    }
    return RC_OK;
}

static enum rc fill_table(struct profile_table *table, const json_t *rows, json_t *names, struct err *e) {
    table->linears = calloc(json_array_size(rows) + 1, sizeof *table->linears);
    if (!table->linears || !names) return err_set(e, RC_NO_MEMORY, "no memory for the Linears of a profile");
    TRY(find_axes(table, rows, names, e));
    table->cells = calloc((size_t)table->linear_count * (size_t)table->candidate_count, sizeof *table->cells);
    if (!table->cells) return err_set(e, RC_NO_MEMORY, "no memory for the rows of a profile");
    return fill_cells(table, rows, names, e);
}

enum rc profile_table_init(struct profile_table *table, const json_t *profile, struct err *e) {
    *table = (struct profile_table){.result = json_object_get(profile, "result")};
    const json_t *rows = json_object_get(profile, "rows"), *model = json_object_get(table->result, "model");
    if (!json_is_array(rows) || !json_is_object(model))
        return err_set(e, RC_INVALID, "the profile came without its rows or without its result's model");
    TRY(json_get_string(model, "name", &table->model, e));
    TRY(json_get_string(model, "fingerprint", &table->fingerprint, e));
    json_t *names = json_object();
    enum rc rc = fill_table(table, rows, names, e);
    json_decref(names);
    if (rc != RC_OK) profile_table_release(table);
    return rc;
}

int table_find_candidate(const struct profile_table *table, const char *id) {
    for (int c = 0; c < table->candidate_count; c++)
        if (strcmp(table->ids[c], id) == 0) return c;
    return -1;
}

void profile_table_release(struct profile_table *table) {
    free(table->linears);
    free(table->cells);
    *table = (struct profile_table){0};
}
