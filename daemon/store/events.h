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
    char type[16]; /* "state", "update", "log", "result" */
    char *data;    /* one line of JSON; owned */
};

void event_release(struct event *event);

struct event_list {
    struct event *items;
    size_t count, capacity;
};
void event_list_release(struct event_list *list);

/* Writer thread. Appends an event of `job` with the next seq, and to `list`. Takes the reference of `data`, an object,
 * and adds "at", the time. */
enum rc event_append(struct db *db, struct event_list *list, const char *job, const char *type, json_t *data,
                     struct err *e);

/* The event after `after` of one job (by seq) or, job NULL, of all (by id). id 0: there is none.
 * The caller releases it. */
enum rc event_after(struct db *db, const char *job, int64_t after, struct event *out, struct err *e);
/* The last id given, 0 before the first. */
enum rc event_last(struct db *db, int64_t *id, struct err *e);

#endif
