#include "daemon/store/events.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/mem.h"

void event_release(struct event *event) {
    free(event->data);
    event->data = NULL;
}

void event_list_release(struct event_list *list) {
    for (size_t i = 0; i < list->count; i++)
        event_release(&list->items[i]);
    free(list->items);
    *list = (struct event_list){0};
}

static enum rc insert(struct db *db, struct event *event, struct err *e) {
    TRY(db_query_int(db, &event->seq, e, "SELECT coalesce(max(seq), 0) + 1 FROM event WHERE job = ?", "t", event->job));
    TRY(db_run(db, e, "INSERT INTO event (job, seq, type, data) VALUES (?, ?, ?, ?)", "titt", event->job, event->seq,
               event->type, event->data));
    event->id = sqlite3_last_insert_rowid(db->handle);
    return RC_OK;
}

enum rc event_append(struct db *db, struct event_list *list, const char *job, const char *type, json_t *data,
                     struct err *e) {
    struct event event = {0};
    char at[TIME_SIZE];

    json_object_set_new(data, "at", json_string(time_format(time_now_ms(), at)));
    event.data = json_line(data);
    json_decref(data);
    if (!event.data) return err_set(e, RC_INTERNAL, "an event of job %s is no JSON", job);
    snprintf(event.job, sizeof event.job, "%s", job);
    snprintf(event.type, sizeof event.type, "%s", type);
    enum rc rc = insert(db, &event, e);
    if (rc != RC_OK) {
        event_release(&event);
        return rc;
    }
    GROW(list->items, list->count, list->capacity);
    list->items[list->count++] = event;
    return RC_OK;
}

enum rc event_after(struct db *db, const char *job, int64_t after, struct event *out, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    *out = (struct event){0};
    if (job)
        TRY(db_query(db, &stmt, e,
                     "SELECT id, seq, job, type, data FROM event WHERE job = ? AND seq > ? ORDER BY seq LIMIT 1", "ti",
                     job, after));
    else
        TRY(db_query(db, &stmt, e, "SELECT id, seq, job, type, data FROM event WHERE id > ? ORDER BY id LIMIT 1", "i",
                     after));
    TRY(db_step(db, stmt, &row, e));
    if (!row) return RC_OK;
    out->id = sqlite3_column_int64(stmt, 0);
    out->seq = sqlite3_column_int64(stmt, 1);
    snprintf(out->job, sizeof out->job, "%s", (const char *)sqlite3_column_text(stmt, 2));
    snprintf(out->type, sizeof out->type, "%s", (const char *)sqlite3_column_text(stmt, 3));
    out->data = xstrdup((const char *)sqlite3_column_text(stmt, 4));
    sqlite3_reset(stmt);
    return RC_OK;
}

enum rc event_last(struct db *db, int64_t *id, struct err *e) {
    return db_query_int(db, id, e, "SELECT coalesce(max(id), 0) FROM event", "");
}
