/* Tables `row` (partial results, by which a job resumes) and `result`. */
#ifndef HSAQ_DAEMON_STORE_ROWS_H
#define HSAQ_DAEMON_STORE_ROWS_H

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/store/db.h"

/* Writer thread. RC_CONFLICT when that row is there already: rows are never overwritten. */
enum rc row_insert(struct db *db, const char *job, const char *phase, int64_t index, const json_t *data, struct err *e);
enum rc rows_delete(struct db *db, const char *job, struct err *e);

/* Sorts after every phase that begins with '_' (rows that are not for clients) and before every other. */
#define ROW_PHASE_PUBLIC "_~"

/* Rows after (phase, index), in that order; `after_phase` "" and index -1 from the start. `data` is one line of JSON.
 */
struct row {
    const char *phase, *data;
    int64_t index;
};
struct row_range {
    const char *job, *after_phase;
    int64_t after_index, limit;
};
enum rc rows_list(struct db *db, const struct row_range *range, void (*visit)(void *ctx, const struct row *row),
                  void *ctx, struct err *e);
enum rc rows_count(struct db *db, const char *job, int64_t *count, struct err *e);
/* [{"phase", "index", "data"}] of all rows: a new reference. */
enum rc rows_json(struct db *db, const char *job, json_t **rows, struct err *e);

/* One line of JSON; the caller frees. RC_NOT_FOUND when the job has none. */
enum rc result_get(struct db *db, const char *job, char **json, struct err *e);

#endif
