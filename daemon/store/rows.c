#include "daemon/store/rows.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"

enum rc row_insert(struct db *db, const char *job, const char *phase, int64_t index, const json_t *data,
                   struct err *e) {
    char *text = json_line(data);

    if (!text) return err_set(e, RC_INVALID, "row %lld of phase %s is no JSON", (long long)index, phase);
    enum rc rc =
        db_run(db, e, "INSERT INTO row (job, phase, idx, data) VALUES (?, ?, ?, ?)", "ttit", job, phase, index, text);
    free(text);
    if (rc == RC_CONFLICT) return err_context(e, "row %lld of phase %s came twice", (long long)index, phase);
    return rc;
}

enum rc rows_delete(struct db *db, const char *job, struct err *e) {
    return db_run(db, e, "DELETE FROM row WHERE job = ?", "t", job);
}

enum rc rows_list(struct db *db, const struct row_range *range, void (*visit)(void *ctx, const struct row *row),
                  void *ctx, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e,
                 "SELECT phase, idx, data FROM row WHERE job = ?1 AND (phase, idx) > (?2, ?3) ORDER BY phase, idx "
                 "LIMIT ?4",
                 "ttii", range->job, range->after_phase, range->after_index, range->limit));
    for (;;) {
        TRY(db_step(db, stmt, &row, e));
        if (!row) return RC_OK;
        visit(ctx, &(struct row){.phase = (const char *)sqlite3_column_text(stmt, 0),
                                 .index = sqlite3_column_int64(stmt, 1),
                                 .data = (const char *)sqlite3_column_text(stmt, 2)});
    }
}

enum rc rows_count(struct db *db, const char *job, int64_t *count, struct err *e) {
    return db_query_int(db, count, e, "SELECT count(*) FROM row WHERE job = ?", "t", job);
}

struct collected {
    json_t *rows;
    enum rc rc;
    struct err *e;
};

static void collect(void *ctx, const struct row *row) {
    struct collected *c = ctx;
    json_t *data;

    if (c->rc == RC_OK) c->rc = json_parse(row->data, strlen(row->data), &data, c->e);
    if (c->rc != RC_OK) return;
    json_array_append_new(
        c->rows, json_pack("{s:s, s:I, s:o}", "phase", row->phase, "index", (json_int_t)row->index, "data", data));
}

enum rc rows_json(struct db *db, const char *job, json_t **rows, struct err *e) {
    struct collected c = {.rows = json_array(), .e = e};
    struct row_range all = {.job = job, .after_phase = "", .after_index = -1, .limit = -1};
    enum rc rc = rows_list(db, &all, collect, &c, e);

    if (rc == RC_OK) rc = c.rc;
    if (rc == RC_OK)
        *rows = c.rows;
    else
        json_decref(c.rows);
    return rc;
}

enum rc result_get(struct db *db, const char *job, char **json, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e, "SELECT data FROM result WHERE job = ?", "t", job));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return err_set(e, RC_NOT_FOUND, "job %s has no result", job);
    *json = xstrdup((const char *)sqlite3_column_text(stmt, 0));
    sqlite3_reset(stmt);
    return RC_OK;
}
