/* Answers of unknown length, pulled: the server asks for more when the client has taken what it was given.
 *
 * A stream never buffers more than STREAM_CHUNK plus one item, however slow its client is: a slow client lags behind
 * its source instead of filling memory. While a stream has nothing to say it costs no CPU (its connection is
 * suspended) until stream_wake. Loop thread only.
 *
 *     open ──► fill() ──STREAM_MORE──► fill() again once the bytes are sent
 *                │ └──STREAM_IDLE──► suspended ──stream_wake / every 15 s a heartbeat──► fill()
 *                └──STREAM_END──► the bytes are sent, the answer ends, close()
 *
 * close() is called exactly once, when the answer has ended, the client has left or the server stops; the stream is
 * gone after it. A client that leaves is noticed at the next write, at the latest by the heartbeat. */
#ifndef HSAQ_DAEMON_HTTP_STREAM_H
#define HSAQ_DAEMON_HTTP_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"
#include "daemon/http/request.h"

enum { STREAM_CHUNK = 4096 };

struct stream;

enum stream_state { STREAM_MORE, STREAM_IDLE, STREAM_END };

struct stream_ops {
    /* Appends what there is to `out`; should stop (with STREAM_MORE) once out->len passes STREAM_CHUNK. STREAM_MORE
     * with nothing appended keeps the loop busy. */
    enum stream_state (*fill)(struct stream *s, void *data, struct strbuf *out);
    void (*close)(void *data);
    const char *heartbeat; /* sent after the server's heartbeat_ms of silence; NULL: none (finite streams) */
};

/* Answers 200 with a streamed body and takes over the request. */
struct stream *stream_open(struct request *r, const char *content_type, const struct stream_ops *ops, void *data);
/* There is something to fill (or the server drains): cheap, idempotent. */
void stream_wake(struct stream *s);
struct app *stream_app(const struct stream *s);

#endif
