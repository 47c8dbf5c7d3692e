/* What the files of daemon/http share and nobody else includes.
 *
 * A connection holds one request at a time, embedded, so that a request costs no allocation of its own:
 *
 *     IDLE ──request line──► HEAD ──head checked──► BODY ──last byte──► HANDLING ──answer queued──► ANSWERING ──► IDLE
 *                              └──refused, body small: read and ignored──┘    (deferred: connection suspended)
 *                              └──refused, body large: answered at once, connection closed                          */
#ifndef HSAQ_DAEMON_HTTP_INTERNAL_H
#define HSAQ_DAEMON_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <uv.h>

#include "base/schema.h"
#include "base/strbuf.h"
#include "daemon/http/problem.h"
#include "daemon/http/request.h"
#include "daemon/http/response.h"
#include "daemon/http/router.h"
#include "daemon/http/server.h"
#include "daemon/http/stream.h"

enum phase { PHASE_IDLE, PHASE_HEAD, PHASE_BODY, PHASE_HANDLING, PHASE_ANSWERING };

enum { REQUEST_HEADERS_MAX = 8, REFUSED_BODY_MAX = 64 * 1024, METRICS_SLOTS = 20 };

struct request {
    struct server *server;
    struct MHD_Connection *mhd;
    enum phase phase;
    bool suspended, head_only;
    bool close; /* the connection must not be used again */

    struct arena arena;
    const char *method; /* as routed: "GET" for HEAD */
    char *target;       /* request target as sent; the path is its first path_len bytes */
    size_t path_offset, path_len;
    const char *query; /* "" when there is none */
    struct route_match match;
    const char *params[ROUTE_PARAMS_MAX]; /* decoded, parallel to match.params */

    struct strbuf body;
    int64_t content_length; /* -1: chunked */
    int64_t received;
    json_t *json;
    const struct body_sink *sink;
    void *sink_data;

    struct err err; /* of the sink; answered once the body is over */
    struct problems *problems;

    struct deferral deferral;
    bool deferred;
    uv_timer_t *timer; /* of the deferral, or NULL */

    struct MHD_Response *answer; /* made, not yet queued */
    unsigned status;
    struct {
        const char *name, *value;
    } headers[REQUEST_HEADERS_MAX];
    size_t n_headers;
    struct stream *stream;
};

struct connection {
    struct server *server;
    struct MHD_Connection *mhd;
    struct connection *prev, *next;
    int fd;
    uint64_t deadline; /* uv_now() by which the head or body must be complete; 0: none */
    struct request request;
};

struct server {
    struct server_options options;
    uv_loop_t *loop;
    struct MHD_Daemon *mhd;
    int port;
    uv_poll_t poll; /* MHD's epoll descriptor */
    uv_prepare_t prepare;
    bool resumed;     /* a connection was resumed since the last MHD_run */
    uv_timer_t timer; /* MHD_get_timeout */
    uv_timer_t sweep; /* our deadlines and heartbeats, once a second */
    int open_handles;
    struct connection *connections;
    size_t n_connections, n_streams, n_routes;
    struct stream *streams;
    struct strbuf scratch; /* what a stream fills before it goes out */
    uint64_t *counts;      /* [n_routes + 1][METRICS_SLOTS] answers, by status */
    bool draining;
    uv_timer_t grace;
    void (*drained)(void *data);
    void *drained_data;
};

/* head.c: fills the route, params, query and content_length, or makes the answer that refuses the request. */
void head_check(struct request *r);

/* exchange.c: the first four are libmicrohttpd's callbacks */
void exchange_connection(void *cls, struct MHD_Connection *mhd, void **context,
                         enum MHD_ConnectionNotificationCode code);
void *exchange_begin(void *cls, const char *target, struct MHD_Connection *mhd);
enum MHD_Result exchange_step(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version, const char *data, size_t *len, void **context);
void exchange_completed(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode code);
/* Past libmicrohttpd, straight to the socket: */
void exchange_refuse(struct connection *c, int status, const char *detail);
void exchange_expire(struct connection *c); /* its deadline has passed */
bool exchange_is_half_closed(const struct connection *c);
void exchange_answer_half_closed(struct request *r, const char *body, size_t len);

/* request.c */
void request_begin(struct request *r, const char *target);
void request_end(struct request *r); /* releases all of it; the connection is idle again */
void request_parse_body(struct request *r, struct err *e);
void request_run(struct request *r);    /* the handler, with what follows from its result */
void request_cancel(struct request *r); /* a deferred one, as the server stops: answers 503 */
/* Decodes percent escapes (and '+', when plus) into the arena. RC_MALFORMED for bad escapes, NUL or invalid UTF-8. */
enum rc percent_decode(struct request *r, const char *text, size_t len, bool plus, const char **out, struct err *e);

/* response.c */
void respond_status(struct request *r, int status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void respond_with(struct request *r, int status, struct MHD_Response *answer); /* takes the reference */
enum MHD_Result respond_queue(struct request *r);                              /* hands r->answer to libmicrohttpd */

/* stream.c */
void stream_closed(struct stream *s); /* the request is over */
void streams_tick(struct server *s);  /* heartbeats */
void streams_wake_all(struct server *s);

/* server.c */
void server_resume(struct server *s, struct MHD_Connection *mhd);

/* metrics.c */
void metrics_count(struct server *s, const struct request *r);

#endif
