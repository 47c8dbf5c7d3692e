#include "daemon/http/stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "daemon/http/internal.h"

enum { READ_BLOCK = 1024 }; /* of clients that speak HTTP/1.0; others read into their connection's memory */

struct stream {
    struct server *server;
    struct request *request;
    struct stream_ops ops;
    void *data;
    struct stream *prev, *next;
    struct strbuf rest; /* what was filled and did not fit libmicrohttpd's buffer; usually empty */
    uint64_t last_sent; /* uv_now() */
    bool awake, ended, suspended;
};

static void unsuspend(struct stream *s) {
    if (!s->suspended) return;
    s->suspended = false;
    server_resume(s->server, s->request->mhd);
}

void stream_wake(struct stream *s) {
    s->awake = true;
    unsuspend(s);
}

struct app *stream_app(const struct stream *s) {
    return s->server->options.app;
}

/* Asks the source for more. What it says goes to the server's scratch buffer first, so that an idle stream owns none.
 */
static void refill(struct stream *s, struct strbuf *out) {
    s->awake = false;
    enum stream_state state = s->ops.fill(s, s->data, out);
    if (state == STREAM_MORE) s->awake = true;
    if (state == STREAM_END) s->ended = true;
    uint64_t idle = uv_now(s->server->loop) - s->last_sent;
    if (out->len == 0 && !s->ended && s->ops.heartbeat != NULL && idle >= (uint64_t)s->server->options.heartbeat_ms)
        strbuf_puts(out, s->ops.heartbeat);
}

static size_t take(struct strbuf *from, char *buffer, size_t max) {
    size_t n = from->len < max ? from->len : max;
    if (n > 0) memcpy(buffer, from->data, n);
    return n;
}

/* libmicrohttpd asks for bytes. Returning 0 without suspending would make it ask again at once, for ever. */
static ssize_t on_read(void *cls, uint64_t position, char *buffer, size_t max) {
    struct stream *s = cls;
    (void)position;
    if (s->rest.len > 0) {
        size_t n = take(&s->rest, buffer, max);
        strbuf_consume(&s->rest, n);
        if (s->rest.len == 0) strbuf_release(&s->rest);
        return (ssize_t)n;
    }
    struct strbuf *scratch = &s->server->scratch;
    strbuf_clear(scratch);
    if (!s->ended) refill(s, scratch);
    size_t n = take(scratch, buffer, max);
    if (n < scratch->len) strbuf_append(&s->rest, scratch->data + n, scratch->len - n);
    if (n > 0) {
        s->last_sent = uv_now(s->server->loop);
        return (ssize_t)n;
    }
    if (s->ended) return MHD_CONTENT_READER_END_OF_STREAM;
    if (s->awake) return 0;
    s->suspended = true;
    MHD_suspend_connection(s->request->mhd);
    return 0;
}

struct stream *stream_open(struct request *r, const char *content_type, const struct stream_ops *ops, void *data) {
    struct stream *s = xcalloc(1, sizeof *s);
    *s = (struct stream){.server = r->server, .request = r, .ops = *ops, .data = data, .awake = true};
    s->last_sent = uv_now(r->server->loop);
    s->next = r->server->streams;
    if (s->next != NULL) s->next->prev = s;
    r->server->streams = s;
    r->server->n_streams++;
    r->stream = s;
    respond_header(r, "Content-Type", "%s", content_type);
    respond_with(r, 200, MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, READ_BLOCK, on_read, s, NULL));
    return s;
}

void stream_closed(struct stream *s) {
    if (s->next != NULL) s->next->prev = s->prev;
    *(s->prev != NULL ? &s->prev->next : &s->server->streams) = s->next;
    s->server->n_streams--;
    s->ops.close(s->data);
    strbuf_release(&s->rest);
    free(s);
}

void streams_tick(struct server *server) {
    uint64_t now = uv_now(server->loop), silence = (uint64_t)server->options.heartbeat_ms;
    for (struct stream *s = server->streams; s != NULL; s = s->next) {
        if (s->ops.heartbeat != NULL && now - s->last_sent >= silence) stream_wake(s);
    }
}

void streams_wake_all(struct server *server) {
    for (struct stream *s = server->streams; s != NULL; s = s->next)
        stream_wake(s);
}
