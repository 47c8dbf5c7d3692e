/* Who hears of events: subscriptions to one job or to all, resumable, without gaps or duplicates.
 *
 * Pull, not push: a subscription holds a cursor and nothing else, the hub wakes it, and the reader takes events one at
 * a time at its own speed: first those in the database after the cursor, then new ones. A slow reader thus holds no
 * memory. Progress is not stored: the hub keeps the latest of each running job, and a reader that lags skips some.
 * Loop thread only. */
#ifndef HSAQ_DAEMON_JOBS_HUB_H
#define HSAQ_DAEMON_JOBS_HUB_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/protocol.h"
#include "daemon/store/events.h"
#include "daemon/store/store.h"

struct hub;
struct subscription;

struct hub *hub_new(void);
void hub_free(struct hub *h);                                         /* after the last unsubscribe */
enum rc hub_set_store(struct hub *h, struct store *s, struct err *e); /* before the first subscription */

/* `job` NULL: all. `after`: the seq (of a job) or id (of all) to resume after; 0 from the start. `wake` may be called
 * at any time from the loop, never from within hub_subscribe or hub_next; it should make its owner call hub_next. */
struct subscription *hub_subscribe(struct hub *h, const char *job, int64_t after, void (*wake)(void *ctx), void *ctx);
void hub_unsubscribe(struct subscription *s);

struct hub_event {
    int64_t id;       /* what a client resumes after; 0: not resumable (progress, shutdown) */
    const char *type; /* "state", "update", "log", "result", "progress", "shutdown" */
    const char *data; /* one line of JSON */
};
enum hub_next { HUB_EVENT, HUB_WAIT, HUB_END };
/* The next event (valid until the next call), or nothing for now, or the end: the job is over and its last event was
 * delivered, or the daemon drains and "shutdown" was. RC_OK or what reading the database said. */
enum rc hub_next(struct subscription *s, struct hub_event *out, enum hub_next *next, struct err *e);

void hub_publish(void *hub, const struct event *event); /* the store's publish_fn */
void hub_shutdown(struct hub *h);                       /* every subscription ends after a "shutdown" event */
size_t hub_subscribers(const struct hub *h);

/* Progress of running jobs. */
void hub_progress(struct hub *h, const struct msg_progress *m);
void hub_progress_end(struct hub *h, const char *job);
/* {"phase", "done", "total", "unit", "rate", "eta_seconds"}: a new reference, or NULL. `version` grows with each. */
json_t *hub_progress_get(const struct hub *h, const char *job, int64_t *version);

#endif
