#include "daemon/http/sse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "daemon/http/response.h"

enum event_format sse_format(const struct request *r) {
    return request_accepts(r, "application/x-ndjson") ? EVENT_NDJSON : EVENT_SSE;
}

enum rc sse_position(const struct request *r, int64_t after, int64_t *position, struct err *e) {
    const char *last = request_header(r, "Last-Event-ID");
    *position = after < 0 ? 0 : after;
    if (last == NULL || *last == '\0') return RC_OK;
    char *end;
    errno = 0;
    long long value = strtoll(last, &end, 10);
    if (errno != 0 || *end != '\0' || value < 0)
        return err_set(e, RC_INVALID, "Last-Event-ID must be the id of an event, a whole number; it is '%.40s'", last);
    *position = value;
    return RC_OK;
}

struct stream *sse_open(struct request *r, enum event_format format,
                        enum stream_state (*fill)(struct stream *s, void *data, struct strbuf *out),
                        void (*close)(void *data), void *data) {
    bool sse = format == EVENT_SSE;
    struct stream_ops ops = {fill, close, sse ? ":\n\n" : "{\"event\":\"heartbeat\"}\n"};
    respond_header(r, "Cache-Control", "no-store");
    return stream_open(r, sse ? "text/event-stream" : "application/x-ndjson", &ops, data);
}

void sse_append(struct strbuf *out, enum event_format format, int64_t id, const char *type, const char *json) {
    if (format == EVENT_NDJSON && id > 0)
        strbuf_printf(out, "{\"id\":%" PRId64 ",\"event\":\"%s\",\"data\":%s}\n", id, type, json);
    else if (format == EVENT_NDJSON)
        strbuf_printf(out, "{\"event\":\"%s\",\"data\":%s}\n", type, json);
    else if (id > 0)
        strbuf_printf(out, "id: %" PRId64 "\nevent: %s\ndata: %s\n\n", id, type, json);
    else
        strbuf_printf(out, "event: %s\ndata: %s\n\n", type, json);
}
