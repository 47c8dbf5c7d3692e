#include "daemon/api/rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/strbuf.h"
#include "daemon/api/csv.h"
#include "daemon/app.h"
#include "daemon/http/response.h"
#include "daemon/store/jobs.h"
#include "daemon/store/rows.h"
#include "daemon/store/store.h"

enum { LIMIT_DEFAULT = 1000, LIMIT_MAX = 10000, PHASE_MAX = 64 };
enum format { FORMAT_ACCEPT, FORMAT_JSON, FORMAT_CSV, FORMAT_NDJSON };

static const char *const formats[] = {"auto", "json", "csv", "ndjson", NULL};

struct rows_query {
    int format;
    int64_t limit; /* of a JSON page; csv and ndjson come whole */
    const char *cursor;
};
static void rows_defaults(void *object) {
    ((struct rows_query *)object)->limit = LIMIT_DEFAULT;
}
static const struct field rows_query_fields[] = {
    {.name = "format", .type = FIELD_ENUM, .offset = offsetof(struct rows_query, format), .values = formats},
    {.name = "limit", .type = FIELD_INT, .offset = offsetof(struct rows_query, limit), .min = 1, .max = LIMIT_MAX},
    {.name = "cursor", .type = FIELD_STRING, .offset = offsetof(struct rows_query, cursor)},
    {0},
};
const struct schema rows_query_schema = {
    .name = "rows_query", .fields = rows_query_fields, .size = sizeof(struct rows_query), .defaults = rows_defaults};

/* Rows on their way out: JSON items or NDJSON lines (the stored text, so numbers keep every bit), or csv. */
struct table {
    enum format format;
    struct strbuf out;
    struct csv csv;
    int64_t left, count;
    bool more;
    char phase[PHASE_MAX];
    int64_t index;
};

static void append_csv(struct csv *csv, const char *data) {
    struct err ignored;
    json_t *row;

    if (json_parse(data, strlen(data), &row, &ignored) != RC_OK) return;
    csv_add(csv, row);
    json_decref(row);
}

static void append_row(void *ctx, const struct row *row) {
    struct table *t = ctx;

    if (t->left-- == 0) {
        t->more = true;
        return;
    }
    if (t->format == FORMAT_CSV) {
        append_csv(&t->csv, row->data);
    } else {
        if (t->format == FORMAT_JSON && t->count) strbuf_puts(&t->out, ",");
        strbuf_puts(&t->out, row->data);
        if (t->format == FORMAT_NDJSON) strbuf_puts(&t->out, "\n");
    }
    t->count++;
    snprintf(t->phase, sizeof t->phase, "%s", row->phase);
    t->index = row->index;
}

static enum format choose_format(const struct request *r, int asked) {
    if (asked != FORMAT_ACCEPT) return (enum format)asked;
    if (request_accepts(r, "text/csv")) return FORMAT_CSV;
    return request_accepts(r, "application/x-ndjson") ? FORMAT_NDJSON : FORMAT_JSON;
}

/* A cursor is "index.phase" of the last row of the page before, which was a public one. */
static enum rc read_cursor(const char *cursor, struct row_range *range, struct err *e) {
    char *end;

    if (!cursor) return RC_OK;
    range->after_index = strtoll(cursor, &end, 10);
    if (end == cursor || *end != '.' || strcmp(end + 1, ROW_PHASE_PUBLIC) < 0)
        return err_at(e, "?cursor", RC_INVALID, "is not a cursor that was handed out");
    range->after_phase = end + 1;
    return RC_OK;
}

static void respond_table(struct request *r, struct table *t) {
    size_t len;

    if (t->format == FORMAT_JSON && t->more)
        strbuf_printf(&t->out, "],\"next\":\"%lld.%s\"}", (long long)t->index, t->phase);
    else if (t->format == FORMAT_JSON)
        strbuf_puts(&t->out, "],\"next\":null}");
    csv_print(&t->csv, &t->out);
    len = t->out.len;
    if (t->format == FORMAT_JSON)
        respond_json_text(r, 200, strbuf_detach(&t->out), len);
    else
        respond_text(r, 200, t->format == FORMAT_CSV ? "text/csv; charset=utf-8" : "application/x-ndjson",
                     strbuf_detach(&t->out), len);
}

enum rc get_rows(struct request *r, struct err *e) {
    struct db *db = store_reader(request_app(r)->store);
    struct rows_query query;
    struct row_range range = {
        .job = request_param(r, "id"), .after_phase = ROW_PHASE_PUBLIC, .after_index = -1, .limit = -1};
    struct table table = {.left = -1};
    enum job_state state;
    int64_t version;

    TRY(request_decode_query(r, &query, e));
    TRY(job_brief(db, range.job, &state, &version, e));
    table.format = choose_format(r, query.format);
    if (table.format == FORMAT_JSON) {
        TRY(read_cursor(query.cursor, &range, e));
        table.left = query.limit;
        range.limit = query.limit + 1;
        strbuf_puts(&table.out, "{\"items\":[");
    } else {
        strbuf_puts(&table.out, "");
    }
    respond_header(r, "Vary", "Accept");
    enum rc rc = rows_list(db, &range, append_row, &table, e);
    if (rc == RC_OK) respond_table(r, &table);
    strbuf_release(&table.out);
    csv_release(&table.csv);
    return rc;
}
