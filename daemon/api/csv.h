/* A table of JSON objects as csv (RFC 4180), for rows.c; loop thread.
 *
 * Rows need not be alike: the columns are the keys of all, in the order in which they first appear, and a cell is empty
 * where its row has no such key. So a column keeps its place while rows come after the first. */
#ifndef HSAQ_DAEMON_API_CSV_H
#define HSAQ_DAEMON_API_CSV_H

#include <jansson.h>
#include <stddef.h>

#include "base/strbuf.h"

/* Zeroed: no rows. */
struct csv {
    json_t *columns;    /* an object: its keys are theirs */
    struct strbuf text; /* the rows' lines without their ends, as long as the columns known by then */
    struct csv_line {
        size_t end, cells; /* in `text` */
    } * lines;
    size_t count, capacity;
};

void csv_add(struct csv *csv, const json_t *row);
/* Header and lines; nothing where there are no rows. */
void csv_print(const struct csv *csv, struct strbuf *out);
void csv_release(struct csv *csv);

#endif
