#include "daemon/store/drift.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "daemon/store/ids.h"

static enum rc put_drift(struct db *db, const struct cache_entry *entry, const char *data, struct err *e) {
    return db_run(db, e,
                  "INSERT OR IGNORE INTO drift (key, model, linear, candidate, data, bytes, created_at) "
                  "VALUES (?, ?, ?, ?, ?, ?, ?)",
                  "tttttii", entry->key, entry->model, json_string_value(json_object_get(entry->data, "name")),
                  json_string_value(json_object_get(entry->data, "candidate")), data, (int64_t)strlen(data),
                  time_now_ms());
}

static enum rc put_fingerprint(struct db *db, const struct cache_entry *entry, const char *data, struct err *e) {
    return db_run(db, e, "INSERT OR IGNORE INTO fingerprint (key, model, data, created_at) VALUES (?, ?, ?, ?)", "ttti",
                  entry->key, entry->model, data, time_now_ms());
}

enum rc cache_put(struct db *db, const struct cache_entry *entry, struct err *e) {
    char *data = json_line(entry->data);
    enum rc rc;

    if (!data) return err_set(e, RC_INVALID, "cache entry %s is no JSON", entry->key);
    rc = entry->cache == CACHE_DRIFT ? put_drift(db, entry, data, e) : put_fingerprint(db, entry, data, e);
    free(data);
    return rc;
}

static enum rc lookup_one(struct db *db, enum cache_name cache, const char *key, json_t *entries, struct err *e) {
    sqlite3_stmt *stmt;
    json_t *data;
    bool row;

    if (cache == CACHE_DRIFT)
        TRY(db_query(db, &stmt, e, "SELECT data FROM drift WHERE key = ?", "t", key));
    else
        TRY(db_query(db, &stmt, e, "SELECT data FROM fingerprint WHERE key = ?", "t", key));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return RC_OK;
    enum rc rc =
        json_parse((const char *)sqlite3_column_text(stmt, 0), (size_t)sqlite3_column_bytes(stmt, 0), &data, e);
    sqlite3_reset(stmt);
    if (rc != RC_OK) return err_context(e, "cache entry %s", key);
    json_object_set_new(entries, key, data);
    return RC_OK;
}

enum rc cache_lookup(struct db *db, enum cache_name cache, const json_t *keys, json_t **entries, struct err *e) {
    json_t *found = json_object(), *key;
    size_t i;

    json_array_foreach(keys, i, key) {
        const char *text = json_string_value(key);
        enum rc rc = text ? lookup_one(db, cache, text, found, e) : err_set(e, RC_INVALID, "a cache key is no string");
        if (rc != RC_OK) {
            json_decref(found);
            return rc;
        }
    }
    *entries = found;
    return RC_OK;
}

enum rc cache_usage(struct db *db, void (*visit)(void *ctx, const struct cache_usage *u), void *ctx, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e,
                 "SELECT coalesce(model, ''), count(*), count(DISTINCT linear), count(DISTINCT candidate), sum(bytes), "
                 "min(created_at), max(created_at) FROM drift GROUP BY model ORDER BY model",
                 ""));
    for (;;) {
        TRY(db_step(db, stmt, &row, e));
        if (!row) return RC_OK;
        visit(ctx, &(struct cache_usage){
                       .model = (const char *)sqlite3_column_text(stmt, 0),
                       .entries = sqlite3_column_int64(stmt, 1),
                       .linears = sqlite3_column_int64(stmt, 2),
                       .candidates = sqlite3_column_int64(stmt, 3),
                       .bytes = sqlite3_column_int64(stmt, 4),
                       .oldest = sqlite3_column_int64(stmt, 5),
                       .newest = sqlite3_column_int64(stmt, 6),
                   });
    }
}

struct delete {
    struct write_op op;
    char *model; /* NULL: all */
    int64_t removed;
    void (*done)(void *ctx, int64_t removed, const struct err *e);
    void *ctx;
};

static enum rc delete_run(struct db *db, struct write_op *op, struct err *e) {
    struct delete *del = (struct delete *)op;

    TRY(db_run(db, e, "DELETE FROM drift WHERE ?1 IS NULL OR model = ?1", "t", del->model));
    del->removed = sqlite3_changes(db->handle);
    return db_run(db, e, "DELETE FROM fingerprint WHERE ?1 IS NULL OR model = ?1", "t", del->model);
}

static void delete_done(struct write_op *op, const struct err *e) {
    struct delete *del = (struct delete *)op;

    del->done(del->ctx, del->removed, e);
    free(del->model);
    free(del);
}

void cache_delete(struct store *s, const char *model, void (*done)(void *ctx, int64_t removed, const struct err *e),
                  void *ctx) {
    struct delete *del = xcalloc(1, sizeof *del);

    *del = (struct delete){.op = {.run = delete_run, .done = delete_done}, .done = done, .ctx = ctx};
    del->model = model ? xstrdup(model) : NULL;
    store_submit(s, &del->op);
}
