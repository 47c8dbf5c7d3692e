#include "daemon/http/server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "daemon/http/internal.h"

enum {
    CONNECTION_MEMORY = 16 * 1024,
    MAX_CONNECTIONS = 4096,
    OTHER_FDS = 128, /* database, workers, uploads */
    BACKLOG = 1024,
    RUNS_PER_TURN = 16, /* of libmicrohttpd, before other work of the loop gets its turn */
    SWEEP_MS = 1000,
    MAX_JSON = 1 << 20,
    HEAD_TIMEOUT_MS = 15000,
    BODY_TIMEOUT_MS = 30000,
    HEARTBEAT_MS = 15000,
    IDLE_TIMEOUT_MS = 60000,
};
static const int64_t MAX_UPLOAD = INT64_C(4) << 30;

/* ---- the loop ---- */

static void on_timer(uv_timer_t *timer);

/* libmicrohttpd's epoll set is edge-triggered: what it has taken from the set and not finished is announced by
 * MHD_get_timeout alone, so that must be asked after every run. Resumed connections are announced by nothing at all
 * (its wake-up pipe exists only where it has threads of its own): server_resume notes them. */
static void drive(struct server *s) {
    MHD_UNSIGNED_LONG_LONG timeout = 0;
    for (int i = 0; i < RUNS_PER_TURN; i++) {
        s->resumed = false;
        MHD_run(s->mhd);
        bool timed = MHD_get_timeout(s->mhd, &timeout) == MHD_YES;
        if (s->resumed || (timed && timeout == 0)) continue;
        if (timed)
            uv_timer_start(&s->timer, on_timer, timeout, 0);
        else
            uv_timer_stop(&s->timer);
        return;
    }
    uv_timer_start(&s->timer, on_timer, 0, 0);
}

void server_resume(struct server *s, struct MHD_Connection *mhd) {
    MHD_resume_connection(mhd);
    s->resumed = true;
}

static void on_prepare(uv_prepare_t *prepare) {
    struct server *s = prepare->data;
    if (s->resumed) drive(s);
}

static void on_timer(uv_timer_t *timer) {
    drive(timer->data);
}

static void on_ready(uv_poll_t *poll, int status, int events) {
    (void)status, (void)events;
    drive(poll->data);
}

static void drain_finish(struct server *s) {
    if (s->drained == NULL) return;
    void (*done)(void *data) = s->drained;
    s->drained = NULL;
    uv_timer_stop(&s->grace);
    done(s->drained_data);
}

/* The end of a client that closes its sending side together with its last bytes is an edge that libmicrohttpd misses:
 * closing ours repeats it, and hurts no answer under way. */
static void sweep_connection(struct connection *c, uint64_t now) {
    if (c->deadline != 0 && now >= c->deadline)
        exchange_expire(c);
    else if (c->request.phase <= PHASE_BODY && exchange_is_half_closed(c))
        shutdown(c->fd, SHUT_RD);
}

static void on_sweep(uv_timer_t *timer) {
    struct server *s = timer->data;
    uint64_t now = uv_now(s->loop);
    for (struct connection *c = s->connections; c != NULL; c = c->next)
        sweep_connection(c, now);
    streams_tick(s);
    if (s->draining && s->n_connections == 0) drain_finish(s);
}

/* ---- opening ---- */

static enum rc listen_on(struct server *s, int *out, struct err *e) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *address;
    char port[16];
    snprintf(port, sizeof port, "%d", s->options.port);
    int failure = getaddrinfo(s->options.host, port, &hints, &address);
    if (failure != 0)
        return err_set(e, RC_INVALID, "the address %s cannot be listened on: %s", s->options.host,
                       gai_strerror(failure));
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    bool ok = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
              bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0;
    freeaddrinfo(address);
    if (!ok) {
        int cause = errno;
        if (fd >= 0) close(fd);
        return err_set(e, RC_CONFLICT, "cannot listen on %s port %d: %s%s", s->options.host, s->options.port,
                       strerror(cause), cause == EADDRINUSE ? "; give another with --listen" : "");
    }
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } bound = {.v6 = {0}};
    socklen_t size = sizeof bound;
    if (getsockname(fd, &bound.any, &size) < 0) {
        err_errno(e, "cannot tell which port was given");
        close(fd);
        return RC_IO;
    }
    s->port = ntohs(bound.any.sa_family == AF_INET6 ? bound.v6.sin6_port : bound.v4.sin_port);
    *out = fd;
    return RC_OK;
}

/* As many connections as asked for, or as descriptors allow once the soft limit is raised to the hard one. */
static unsigned connection_limit(unsigned wanted) {
    struct rlimit limit;
    if (wanted == 0) wanted = MAX_CONNECTIONS;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
    rlim_t need = wanted + OTHER_FDS;
    if (limit.rlim_cur < need) {
        limit.rlim_cur = limit.rlim_max < need ? limit.rlim_max : need;
        setrlimit(RLIMIT_NOFILE, &limit);
        getrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur >= need) return wanted;
    return limit.rlim_cur > 2 * OTHER_FDS ? (unsigned)limit.rlim_cur - OTHER_FDS : OTHER_FDS;
}

static void set_defaults(struct server_options *o) {
    if (o->max_json == 0) o->max_json = MAX_JSON;
    if (o->max_upload == 0) o->max_upload = MAX_UPLOAD;
    if (o->head_timeout_ms == 0) o->head_timeout_ms = HEAD_TIMEOUT_MS;
    if (o->body_timeout_ms == 0) o->body_timeout_ms = BODY_TIMEOUT_MS;
    if (o->heartbeat_ms == 0) o->heartbeat_ms = HEARTBEAT_MS;
    if (o->idle_timeout_ms == 0) o->idle_timeout_ms = IDLE_TIMEOUT_MS;
    o->max_connections = connection_limit(o->max_connections);
}

/* Targets are decoded by us, segment by segment. */
static size_t keep_escapes(void *cls, struct MHD_Connection *mhd, char *text) {
    (void)cls, (void)mhd;
    return strlen(text);
}

/* What libmicrohttpd has to say is about clients that broke off or broke the rules; they see the answer. */
static void ignore_log(void *cls, const char *fmt, va_list args) {
    (void)cls, (void)fmt, (void)args;
}

static struct MHD_Daemon *start_mhd(struct server *s, int fd) {
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    return MHD_start_daemon(
        flags, 0, NULL, NULL, exchange_step, s, MHD_OPTION_EXTERNAL_LOGGER, ignore_log, NULL, MHD_OPTION_LISTEN_SOCKET,
        (MHD_socket)fd, MHD_OPTION_CONNECTION_LIMIT, s->options.max_connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)(s->options.idle_timeout_ms + 999) / 1000,
        MHD_OPTION_URI_LOG_CALLBACK, exchange_begin, s, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, s,
        MHD_OPTION_NOTIFY_COMPLETED, exchange_completed, s, MHD_OPTION_NOTIFY_CONNECTION, exchange_connection, s,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
}

static void start_handles(struct server *s, int epoll_fd) {
    uv_timer_init(s->loop, &s->timer);
    uv_timer_init(s->loop, &s->sweep);
    uv_timer_init(s->loop, &s->grace);
    uv_prepare_init(s->loop, &s->prepare);
    uv_poll_init(s->loop, &s->poll, epoll_fd);
    s->timer.data = s->sweep.data = s->grace.data = s->prepare.data = s->poll.data = s;
    s->open_handles = 5;
    uv_prepare_start(&s->prepare, on_prepare);
    uv_poll_start(&s->poll, UV_READABLE, on_ready);
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
}

enum rc server_open(struct server **out, uv_loop_t *loop, const struct server_options *options, struct err *e) {
    struct server *s = xcalloc(1, sizeof *s);
    s->options = *options;
    s->loop = loop;
    set_defaults(&s->options);
    int fd = -1;
    enum rc rc = listen_on(s, &fd, e);
    if (rc == RC_OK && (s->mhd = start_mhd(s, fd)) == NULL) {
        close(fd);
        rc = err_set(e, RC_IO, "the HTTP server cannot be started: libmicrohttpd refused its options");
    }
    if (rc != RC_OK) {
        free(s);
        return rc;
    }
    s->n_routes = router_count(s->options.routes);
    s->counts = xcalloc(s->n_routes + 1, METRICS_SLOTS * sizeof *s->counts);
    start_handles(s, MHD_get_daemon_info(s->mhd, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd);
    drive(s); /* puts the listening socket into the epoll set */
    *out = s;
    return RC_OK;
}

int server_port(const struct server *s) {
    return s->port;
}

/* ---- ending ---- */

static void cancel_deferred(struct server *s) {
    for (struct connection *c = s->connections; c != NULL; c = c->next) {
        if (c->request.deferred) request_cancel(&c->request);
    }
}

static void on_grace(uv_timer_t *timer) {
    drain_finish(timer->data);
}

void server_drain(struct server *s, int grace_ms, void (*done)(void *data), void *data) {
    s->draining = true;
    s->drained = done;
    s->drained_data = data;
    MHD_socket listener = MHD_quiesce_daemon(s->mhd);
    if (listener != MHD_INVALID_SOCKET) close(listener);
    cancel_deferred(s);
    streams_wake_all(s);
    for (struct connection *c = s->connections; c != NULL; c = c->next) {
        if (c->request.phase == PHASE_IDLE) shutdown(c->fd, SHUT_RDWR);
    }
    uv_timer_start(&s->grace, on_grace, (uint64_t)grace_ms, 0);
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS / 20, SWEEP_MS / 20);
}

static void on_closed(uv_handle_t *handle) {
    struct server *s = handle->data;
    if (--s->open_handles == 0) free(s);
}

void server_close(struct server *s) {
    if (!s->draining) {
        MHD_socket listener = MHD_quiesce_daemon(s->mhd);
        if (listener != MHD_INVALID_SOCKET) close(listener);
    }
    cancel_deferred(s);
    streams_wake_all(s); /* libmicrohttpd must not be stopped while a connection is suspended */
    uv_poll_stop(&s->poll);
    MHD_stop_daemon(s->mhd);
    strbuf_release(&s->scratch);
    free(s->counts);
    uv_close((uv_handle_t *)&s->poll, on_closed);
    uv_close((uv_handle_t *)&s->prepare, on_closed);
    uv_close((uv_handle_t *)&s->timer, on_closed);
    uv_close((uv_handle_t *)&s->sweep, on_closed);
    uv_close((uv_handle_t *)&s->grace, on_closed);
}
