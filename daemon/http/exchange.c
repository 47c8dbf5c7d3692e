/* The course of one request on its connection: libmicrohttpd's callbacks, in the order in which it calls them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "daemon/http/internal.h"

enum { BODY_MIN_BYTES_PER_MS = 16 };

static struct connection *connection_of(struct MHD_Connection *mhd) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info == NULL ? NULL : info->socket_context;
}

static uint64_t now_in(const struct server *s, int64_t ms) {
    return uv_now(s->loop) + (uint64_t)ms;
}

static void connection_open(struct server *s, struct MHD_Connection *mhd, void **context) {
    struct connection *c = xcalloc(1, sizeof *c);
    c->server = c->request.server = s;
    c->mhd = c->request.mhd = mhd;
    c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    c->deadline = now_in(s, s->options.head_timeout_ms);
    c->next = s->connections;
    if (c->next != NULL) c->next->prev = c;
    s->connections = c;
    s->n_connections++;
    *context = c;
}

static void connection_close(struct server *s, struct connection *c) {
    request_end(&c->request);
    if (c->next != NULL) c->next->prev = c->prev;
    *(c->prev != NULL ? &c->prev->next : &s->connections) = c->next;
    s->n_connections--;
    free(c);
}

void exchange_connection(void *cls, struct MHD_Connection *mhd, void **context,
                         enum MHD_ConnectionNotificationCode code) {
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        connection_open(cls, mhd, context);
    else if (*context != NULL)
        connection_close(cls, *context);
}

/* Called with the raw target before libmicrohttpd decodes it in place. */
void *exchange_begin(void *cls, const char *target, struct MHD_Connection *mhd) {
    struct server *s = cls;
    struct connection *c = connection_of(mhd);
    if (c == NULL) return NULL;
    c->deadline = now_in(s, s->options.head_timeout_ms);
    request_begin(&c->request, target);
    return &c->request;
}

void exchange_completed(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode code) {
    struct server *s = cls;
    (void)code;
    struct connection *c = connection_of(mhd);
    if (c == NULL || *context == NULL) return;
    request_end(&c->request);
    if (exchange_is_half_closed(c)) shutdown(c->fd, SHUT_RD); /* repeats the edge, see sweep_connection */
    c->deadline = now_in(s, (int64_t)s->options.idle_timeout_ms + s->options.head_timeout_ms);
    *context = NULL;
}

/* The head is whole. A refusal is answered at once, or after a small body has been read and ignored, which keeps the
 * connection usable. */
static enum MHD_Result begin_body(struct request *r, const char *method) {
    struct connection *c = connection_of(r->mhd);
    r->head_only = strcmp(method, "HEAD") == 0;
    r->method = arena_strdup(&r->arena, r->head_only ? "GET" : method);
    head_check(r);
    int64_t length = r->content_length < 0 ? REFUSED_BODY_MAX : r->content_length;
    c->deadline = now_in(r->server, r->server->options.body_timeout_ms + length / BODY_MIN_BYTES_PER_MS);
    r->phase = PHASE_BODY;
    if (r->answer == NULL && r->match.route->body_type == BODY_STREAM) request_run(r);
    bool asks = request_header(r, "Expect") != NULL; /* whether to send the body at all: no */
    bool small = !asks && r->content_length >= 0 && r->content_length <= REFUSED_BODY_MAX;
    if (r->answer != NULL && (r->close || !small)) return respond_queue(r);
    return MHD_YES;
}

/* libmicrohttpd takes no answer while a body comes in; so this one goes past it, and then the connection ends. */
static enum MHD_Result refuse_now(struct request *r, int status, const char *detail) {
    exchange_refuse(connection_of(r->mhd), status, detail);
    return MHD_NO;
}

static enum MHD_Result take_body(struct request *r, const char *data, size_t len) {
    r->received += (int64_t)len;
    bool stream = r->match.route != NULL && r->match.route->body_type == BODY_STREAM;
    int64_t limit = stream ? r->server->options.max_upload : r->server->options.max_json;
    if (r->received > limit) return refuse_now(r, 413, "the body is larger than allowed here");
    if (r->content_length < 0) {
        struct connection *c = connection_of(r->mhd);
        c->deadline += len / BODY_MIN_BYTES_PER_MS;
    }
    if (r->answer != NULL || r->err.rc != RC_OK) return MHD_YES;
    if (!stream) {
        strbuf_append(&r->body, data, len);
        return MHD_YES;
    }
    if (r->sink == NULL || r->sink->write(r->sink_data, data, len, &r->err) == RC_OK) return MHD_YES;
    r->sink->abort(r->sink_data);
    r->sink = NULL;
    return MHD_YES;
}

static void handle(struct request *r) {
    connection_of(r->mhd)->deadline = 0;
    r->phase = PHASE_HANDLING;
    if (r->answer != NULL) return;
    struct err e = r->err;
    if (e.rc == RC_OK) request_parse_body(r, &e);
    if (e.rc == RC_OK)
        request_run(r);
    else
        respond_error(r, &e);
}

enum MHD_Result exchange_step(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version, const char *data, size_t *len, void **context) {
    struct request *r = *context;
    (void)cls, (void)mhd, (void)url, (void)version;
    if (r == NULL) return MHD_NO;
    if (r->phase == PHASE_HEAD) return begin_body(r, method);
    if (*len > 0) {
        size_t n = *len;
        *len = 0;
        return take_body(r, data, n);
    }
    if (r->phase == PHASE_BODY) handle(r);
    if (r->answer != NULL) return respond_queue(r);
    r->suspended = true;
    MHD_suspend_connection(mhd);
    return MHD_YES;
}

/* Writes a whole answer to the socket, past libmicrohttpd, which then finds the connection ended. What does not fit the
 * socket's empty send buffer is lost. */
static void send_answer(struct connection *c, int status, const char *headers, const char *body, size_t len) {
    struct strbuf out = STRBUF_INIT;
    strbuf_printf(&out, "HTTP/1.1 %d %s\r\n%sContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
                  http_reason(status), headers, len);
    if (!c->request.head_only) strbuf_append(&out, body, len);
    (void)!send(c->fd, out.data, out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    strbuf_release(&out);
    shutdown(c->fd, SHUT_RDWR);
}

void exchange_refuse(struct connection *c, int status, const char *detail) {
    struct err e = {.rc = RC_OK};
    snprintf(e.message, sizeof e.message, "%s", detail);
    json_t *problem = problem_json(status, &e, NULL, request_path(&c->request));
    char *body = json_line(problem);
    json_decref(problem);
    if (body != NULL) send_answer(c, status, "Content-Type: application/problem+json\r\n", body, strlen(body));
    free(body);
}

bool exchange_is_half_closed(const struct connection *c) {
    char byte;
    return recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* libmicrohttpd reads before it writes when a connection is resumed, and drops the answer when it reads the end of a
 * client that closed its sending side after the request. */
void exchange_answer_half_closed(struct request *r, const char *body, size_t len) {
    struct connection *c = connection_of(r->mhd);
    if (!r->suspended || !exchange_is_half_closed(c)) return;
    struct strbuf headers = STRBUF_INIT;
    for (size_t i = 0; i < r->n_headers; i++)
        strbuf_printf(&headers, "%s: %s\r\n", r->headers[i].name, r->headers[i].value);
    send_answer(c, (int)r->status, headers.data == NULL ? "" : headers.data, body, len);
    strbuf_release(&headers);
}

/* The client has had its time: it is told so, and libmicrohttpd finds the connection ended. */
void exchange_expire(struct connection *c) {
    c->deadline = 0;
    if (c->request.phase == PHASE_HEAD || c->request.phase == PHASE_BODY)
        exchange_refuse(c, 408, "the request did not become whole in time");
    else
        shutdown(c->fd, SHUT_RDWR);
}
