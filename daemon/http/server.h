/* The HTTP server: libmicrohttpd driven by a libuv loop through its epoll descriptor; everything on the loop thread.
 *
 * What libmicrohttpd leaves to its user, and this module does: total deadlines for head and body beside its inactivity
 * timeout, refusal of ambiguous framing (two Content-Length, Transfer-Encoding beside one), routing on the raw URI,
 * refusal of foreign Host names (DNS rebinding), resuming every suspended connection before the end. */
#ifndef HSAQ_DAEMON_HTTP_SERVER_H
#define HSAQ_DAEMON_HTTP_SERVER_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/strbuf.h"
#include "daemon/http/router.h"

struct server;

struct server_options {
    const char *host; /* "127.0.0.1", "::1" or "localhost" */
    int port;         /* 0: any free one */
    const struct route *const *routes;
    struct app *app;
    int64_t max_json;         /* bytes of a JSON body; 0: 1 MiB */
    int64_t max_upload;       /* bytes of a streamed body; 0: 4 GiB */
    unsigned max_connections; /* 0: 4096, or what RLIMIT_NOFILE allows */
    int head_timeout_ms;      /* a request's head must be complete after this; 0: 15 s */
    int body_timeout_ms;      /* and its body after this, and more the longer it is; 0: 30 s */
    int heartbeat_ms;         /* of silent event streams; 0: 15 s */
    int idle_timeout_ms;      /* of a connection between requests, and of one that stops reading; 0: 60 s */
};

/* Listens and serves as soon as the loop runs. RC_CONFLICT when the address is taken. `host`, `routes` are kept. */
enum rc server_open(struct server **out, uv_loop_t *loop, const struct server_options *options, struct err *e);
int server_port(const struct server *s);

/* Stops listening, cancels deferred requests (503) and wakes every stream, whose fill should now end it. `done` is
 * called on the loop thread when the last connection is gone or grace_ms have passed. */
void server_drain(struct server *s, int grace_ms, void (*done)(void *data), void *data);
/* Ends what is left and closes the uv handles; run the loop once more afterwards so that they go. */
void server_close(struct server *s);

/* For /metrics: hsaqd_http_requests_total{route,status}, open connections and event streams, in Prometheus text. */
void server_metrics(const struct server *s, struct strbuf *out);

#endif
