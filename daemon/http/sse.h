/* Event streams over stream.h: Server-Sent Events, or NDJSON when the client accepts application/x-ndjson.
 *
 * An event on the wire, data being one line of JSON:
 *     id: 17                         {"id":17,"event":"progress","data":{…}}
 *     event: progress
 *     data: {…}
 * A transient event (progress) has id 0: it is sent without one, so that Last-Event-ID stays at the last durable one.
 */
#ifndef HSAQ_DAEMON_HTTP_SSE_H
#define HSAQ_DAEMON_HTTP_SSE_H

#include <stdint.h>

#include "base/strbuf.h"
#include "daemon/http/stream.h"

enum event_format { EVENT_SSE, EVENT_NDJSON };

enum event_format sse_format(const struct request *r);
/* Where the client wants to go on: Last-Event-ID, else `after` (the decoded query parameter; < 0 when not given), else
 * 0: from the beginning. RC_INVALID when Last-Event-ID is no number. */
enum rc sse_position(const struct request *r, int64_t after, int64_t *position, struct err *e);
/* Like stream_open, with the content type, heartbeat and headers (Cache-Control: no-store) of the format. */
struct stream *sse_open(struct request *r, enum event_format format,
                        enum stream_state (*fill)(struct stream *s, void *data, struct strbuf *out),
                        void (*close)(void *data), void *data);
void sse_append(struct strbuf *out, enum event_format format, int64_t id, const char *type, const char *json);

#endif
