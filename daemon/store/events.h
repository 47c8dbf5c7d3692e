/* Table `event`: what happened to jobs, durable and numbered: `seq` counts within a job, `id` over all of them. */
#ifndef HSAQ_DAEMON_STORE_EVENTS_H
#define HSAQ_DAEMON_STORE_EVENTS_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/store/db.h"
#include "daemon/store/ids.h"

struct event {
    int64_t id, seq;
    char job[ID_SIZE];
    const char *type; /* "state", "update", "log", "result"; a static string or owned by whoever hands it over */
    char *data;       /* one line of JSON */
};

struct event_list {
    struct event *items;
    size_t count, capacity;
};
void event_list_release(struct event_list *list);

/* Writer thread. Appends an event of `job` with the next seq, and to `list`. `type` is a string literal; takes the
 * reference of `data`. */
enum rc event_append(struct db *db, struct event_list *list, const char *job, const char *type, json_t *data,
                     struct err *e);

/* The event after `after` of one job (by seq) or, job NULL, of all (by id). RC_NOT_FOUND when there is none.
 * `type` and `data` of the answer live until the next call on this db. */
enum rc event_after(struct db *db, const char *job, int64_t after, struct event *out, struct err *e);

#endif
