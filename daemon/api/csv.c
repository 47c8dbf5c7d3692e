#include "daemon/api/csv.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"

static void print_text(struct strbuf *out, const char *text) {
    if (!strpbrk(text, ",\"\r\n")) {
        strbuf_puts(out, text);
        return;
    }
    strbuf_puts(out, "\"");
    for (; *text; text++)
        strbuf_append(out, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    strbuf_puts(out, "\"");
}

/* A value that a spreadsheet would take for a formula cannot occur: cells are names of tensors, candidates and numbers.
 */
static void print_cell(struct strbuf *out, const json_t *value) {
    char *text = value && !json_is_string(value) && !json_is_null(value) ? json_line(value) : NULL;

    print_text(out, text ? text : json_is_string(value) ? json_string_value(value) : "");
    free(text);
}

static void add_columns(struct csv *csv, const json_t *row) {
    const char *key;
    json_t *value;

    if (!csv->columns) csv->columns = json_object();
    json_object_foreach((json_t *)row, key, value) if (!json_object_get(csv->columns, key))
        json_object_set_new(csv->columns, key, json_null());
}

void csv_add(struct csv *csv, const json_t *row) {
    const char *key;
    json_t *unused;
    size_t cells = 0;

    add_columns(csv, row);
    strbuf_puts(&csv->text, "");
    json_object_foreach(csv->columns, key, unused) {
        if (cells++) strbuf_puts(&csv->text, ",");
        print_cell(&csv->text, json_object_get(row, key));
    }
    GROW(csv->lines, csv->count, csv->capacity);
    csv->lines[csv->count++] = (struct csv_line){csv->text.len, cells ? cells : 1};
}

void csv_print(const struct csv *csv, struct strbuf *out) {
    size_t columns = json_object_size(csv->columns), from = 0, n = 0;
    const char *key;
    json_t *unused;

    json_object_foreach(csv->columns, key, unused) {
        if (n++) strbuf_puts(out, ",");
        print_text(out, key);
    }
    if (csv->columns) strbuf_puts(out, "\r\n");
    for (size_t i = 0; i < csv->count; from = csv->lines[i++].end) {
        strbuf_append(out, csv->text.data + from, csv->lines[i].end - from);
        for (size_t cell = csv->lines[i].cells; cell < columns; cell++)
            strbuf_puts(out, ",");
        strbuf_puts(out, "\r\n");
    }
}

void csv_release(struct csv *csv) {
    json_decref(csv->columns);
    strbuf_release(&csv->text);
    free(csv->lines);
    *csv = (struct csv){0};
}
