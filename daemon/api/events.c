/* /v1/jobs/{id}/events and /v1/events: what happens to jobs, as it happens, from any event on. */
#include <stdlib.h>

#include "base/mem.h"
#include "daemon/api/routes.h"
#include "daemon/app.h"
#include "daemon/http/sse.h"
#include "daemon/jobs/hub.h"
#include "daemon/store/jobs.h"
#include "daemon/store/store.h"

struct feed {
    struct subscription *subscription;
    struct stream *stream;
    enum event_format format;
};

static void on_wake(void *ctx) {
    struct feed *feed = ctx;
    if (feed->stream != NULL) stream_wake(feed->stream);
}

static void feed_close(void *data) {
    struct feed *feed = data;
    hub_unsubscribe(feed->subscription);
    free(feed);
}

/* A stream whose events cannot be read ends; its client comes back with Last-Event-ID. */
static enum stream_state feed_fill(struct stream *s, void *data, struct strbuf *out) {
    struct feed *feed = data;
    (void)s;
    while (out->len < STREAM_CHUNK) {
        struct hub_event event;
        enum hub_next next;
        struct err e = {0};
        if (hub_next(feed->subscription, &event, &next, &e) != RC_OK || next == HUB_END) return STREAM_END;
        if (next == HUB_WAIT) return STREAM_IDLE;
        sse_append(out, feed->format, event.id, event.type, event.data);
    }
    return STREAM_MORE;
}

struct events_query {
    int64_t after;
};
static void events_defaults(void *object) {
    ((struct events_query *)object)->after = -1;
}
static const struct field events_query_fields[] = {
    {.name = "after",
     .type = FIELD_INT,
     .offset = offsetof(struct events_query, after),
     .min = 0,
     .max = 9007199254740991.0},
    {0},
};
static const struct schema events_query_schema = {.name = "events_query",
                                                  .fields = events_query_fields,
                                                  .size = sizeof(struct events_query),
                                                  .defaults = events_defaults};

static enum rc follow(struct request *r, const char *job, struct err *e) {
    struct events_query query;
    int64_t position;
    TRY(request_decode_query(r, &query, e));
    TRY(sse_position(r, query.after, &position, e));
    struct feed *feed = xcalloc(1, sizeof *feed);
    feed->format = sse_format(r);
    feed->subscription = hub_subscribe(request_app(r)->hub, job, position, on_wake, feed);
    feed->stream = sse_open(r, feed->format, feed_fill, feed_close, feed);
    return RC_OK;
}

static enum rc get_job_events(struct request *r, struct err *e) {
    const char *id = request_param(r, "id");
    enum job_state state;
    int64_t version;
    TRY(job_brief(store_reader(request_app(r)->store), id, &state, &version, e));
    return follow(r, id, e);
}

static enum rc get_events(struct request *r, struct err *e) {
    return follow(r, NULL, e);
}

const struct route events_routes[] = {
    {.method = "GET",
     .pattern = "/v1/jobs/{id}/events",
     .id = "getJobEvents",
     .handler = get_job_events,
     .query = &events_query_schema,
     .produces = "text/event-stream, application/x-ndjson"},
    {.method = "GET",
     .pattern = "/v1/events",
     .id = "getEvents",
     .handler = get_events,
     .query = &events_query_schema,
     .produces = "text/event-stream, application/x-ndjson"},
    {0},
};
