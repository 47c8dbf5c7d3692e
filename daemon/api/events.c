/* /v1/jobs/{id}/events and /v1/events: what happens, as it happens (SSE, or NDJSON by Accept). */
#include <stdlib.h>

#include "base/mem.h"
#include "daemon/api/routes.h"
#include "daemon/app.h"
#include "daemon/http/response.h"
#include "daemon/http/sse.h"
#include "daemon/jobs/hub.h"
#include "daemon/store/events.h"
#include "daemon/store/jobs.h"
#include "daemon/store/store.h"

struct events_query {
    int64_t after; /* −1: not given */
};
static void events_defaults(void *object) {
    ((struct events_query *)object)->after = -1;
}
static const struct field events_fields[] = {
    {.name = "after",
     .type = FIELD_INT,
     .offset = offsetof(struct events_query, after),
     .min = 0,
     .max = 9007199254740991.0},
    {0},
};
static const struct schema events_schema = {
    .name = "events_query", .fields = events_fields, .size = sizeof(struct events_query), .defaults = events_defaults};

struct feed {
    struct subscription *subscription;
    struct stream *stream;
    enum event_format format;
};

static void on_wake(void *ctx) {
    stream_wake(((struct feed *)ctx)->stream);
}

/* A database that cannot be read ends the stream; the client comes back with the id it has. */
static enum stream_state fill(struct stream *s, void *data, struct strbuf *out) {
    struct feed *feed = data;
    struct hub_event event;
    enum hub_next next;
    struct err e;

    (void)s;
    while (out->len < STREAM_CHUNK) {
        if (hub_next(feed->subscription, &event, &next, &e) != RC_OK || next == HUB_END) return STREAM_END;
        if (next == HUB_WAIT) return STREAM_IDLE;
        sse_append(out, feed->format, event.id, event.type, event.data);
    }
    return STREAM_MORE;
}

static void on_close(void *data) {
    struct feed *feed = data;

    hub_unsubscribe(feed->subscription);
    free(feed);
}

/* An id that was never given, of data that were replaced meanwhile, would keep its client waiting for as many events:
 * it hears of what comes from now on. */
static enum rc limit_to_last(struct request *r, int64_t *after, struct err *e) {
    int64_t last;

    TRY(event_last(store_reader(request_app(r)->store), &last, e));
    if (*after > last) *after = last;
    return RC_OK;
}

/* `job` NULL: of all jobs. */
static enum rc follow(struct request *r, const char *job, struct err *e) {
    struct events_query query;
    struct feed *feed;
    int64_t after;

    TRY(request_decode_query(r, &query, e));
    TRY(sse_position(r, query.after, &after, e));
    if (!job) TRY(limit_to_last(r, &after, e));
    feed = xcalloc(1, sizeof *feed);
    feed->format = sse_format(r);
    feed->subscription = hub_subscribe(request_app(r)->hub, job, after, on_wake, feed);
    feed->stream = sse_open(r, feed->format, fill, on_close, feed);
    return RC_OK;
}

static enum rc job_events(struct request *r, struct err *e) {
    const char *id = request_param(r, "id");
    enum job_state state;
    int64_t version;

    TRY(job_brief(store_reader(request_app(r)->store), id, &state, &version, e));
    return follow(r, id, e);
}

static enum rc all_events(struct request *r, struct err *e) {
    return follow(r, NULL, e);
}

#define STREAM_TYPES "text/event-stream, application/x-ndjson"

const struct route events_routes[] = {
    {.method = "GET",
     .pattern = "/v1/jobs/{id}/events",
     .id = "followJob",
     .handler = job_events,
     .query = &events_schema,
     .produces = STREAM_TYPES},
    {.method = "GET",
     .pattern = "/v1/events",
     .id = "followAll",
     .handler = all_events,
     .query = &events_schema,
     .produces = STREAM_TYPES},
    {0},
};
