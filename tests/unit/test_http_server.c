/* The HTTP server against a real socket: a loop thread serves a few routes, the tests talk to it byte by byte. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>
#include <uv.h>

#include "base/mem.h"
#include "daemon/http/response.h"
#include "daemon/http/server.h"
#include "daemon/http/sse.h"

struct query {
    int64_t limit;
    bool all;
};
static const struct field query_fields[] = {
    {.name = "limit", .type = FIELD_INT, .offset = offsetof(struct query, limit), .min = 1, .max = 100},
    {.name = "all", .type = FIELD_BOOL, .offset = offsetof(struct query, all)},
    {0},
};
static const struct schema query_schema = {.name = "query", .fields = query_fields, .size = sizeof(struct query)};

static enum rc get_item(struct request *r, struct err *e) {
    struct query query = {.limit = 7};
    TRY(request_decode_query(r, &query, e));
    json_t *body =
        json_pack("{s:s, s:I, s:b}", "id", request_param(r, "id"), "limit", (json_int_t)query.limit, "all", query.all);
    respond_json(r, 200, body);
    return RC_OK;
}

static enum rc get_rest(struct request *r, struct err *e) {
    (void)e;
    if (respond_not_modified(r, "\"v1\"")) return RC_OK;
    respond_json(r, 200, json_pack("{s:s}", "name", request_param(r, "name")));
    return RC_OK;
}

static enum rc post_echo(struct request *r, struct err *e) {
    (void)e;
    respond_json(r, 200, json_incref(request_json(r)));
    return RC_OK;
}

static void answer_late(struct request *r, void *data) {
    respond_json(r, 200, json_pack("{s:s}", "late", (const char *)data));
}

static enum rc get_late(struct request *r, struct err *e) {
    (void)e;
    request_defer(r, &(struct deferral){.timeout = answer_late, .timeout_ms = 30, .data = "yes"});
    return RC_OK;
}

static atomic_int cancelled;
static void count_cancel(struct request *r, void *data) {
    (void)r, (void)data;
    cancelled++;
}

static enum rc get_never(struct request *r, struct err *e) {
    (void)e;
    request_defer(r, &(struct deferral){.cancel = count_cancel});
    return RC_OK;
}

static atomic_int late_timeouts;
static void count_timeout(struct request *r, void *data) {
    (void)r, (void)data;
    late_timeouts++;
}

/* Answered long before its time is over, with more than a socket takes. */
static enum rc get_heavy(struct request *r, struct err *e) {
    size_t len = 32 << 20;
    (void)e;
    request_defer(r, &(struct deferral){.timeout = count_timeout, .timeout_ms = 50});
    respond_text(r, 200, "text/plain", xcalloc(1, len), len);
    return RC_OK;
}

static enum rc get_failure(struct request *r, struct err *e) {
    (void)r;
    return err_at(e, "/a/b", RC_INVALID, "b must not be so");
}

struct upload {
    size_t bytes;
};
static atomic_int uploads_aborted; /* waited for while the loop runs */

static enum rc upload_write(void *data, const void *bytes, size_t len, struct err *e) {
    struct upload *u = data;
    if (memchr(bytes, '!', len) != NULL) return err_set(e, RC_INVALID, "there is a '!'");
    u->bytes += len;
    return RC_OK;
}
static enum rc upload_finish(struct request *r, void *data, struct err *e) {
    struct upload *u = data;
    (void)e;
    respond_json(r, 201, json_pack("{s:I}", "bytes", (json_int_t)u->bytes));
    free(u);
    return RC_OK;
}
static void upload_abort(void *data) {
    uploads_aborted++;
    free(data);
}
static enum rc put_upload(struct request *r, struct err *e) {
    static const struct body_sink sink = {upload_write, upload_finish, upload_abort};
    (void)e;
    request_receive(r, &sink, xcalloc(1, sizeof(struct upload)));
    return RC_OK;
}

/* A stream that says `count` events, then waits for ever, or ends. */
struct source {
    int64_t sent, count;
    bool finite;
};
static atomic_int streams_closed; /* waited for while the loop runs */
static bool stopping;             /* as the application of a real server would know */
static enum stream_state source_fill(struct stream *s, void *data, struct strbuf *out) {
    struct source *source = data;
    (void)s;
    while (source->sent < source->count) {
        sse_append(out, EVENT_SSE, ++source->sent, "tick",
                   "{\"payload\":\"0123456789012345678901234567890123456789\"}");
        if (out->len > STREAM_CHUNK) return STREAM_MORE;
    }
    return source->finite || stopping ? STREAM_END : STREAM_IDLE;
}
static void source_close(void *data) {
    streams_closed++;
    free(data);
}
static enum rc get_stream(struct request *r, struct err *e) {
    (void)e;
    struct source *source = xcalloc(1, sizeof *source);
    const char *id = request_param(r, "id");
    source->count = strcmp(id, "huge") == 0 ? 200000 : strcmp(id, "quiet") == 0 ? 1 : 5000;
    source->finite = strcmp(id, "finite") == 0;
    sse_open(r, EVENT_SSE, source_fill, source_close, source);
    return RC_OK;
}

static const struct route table[] = {
    {.method = "GET", .pattern = "/items/{id}", .id = "getItem", .handler = get_item, .query = &query_schema},
    {.method = "GET", .pattern = "/rest/{name*}", .id = "getRest", .handler = get_rest},
    {.method = "POST", .pattern = "/echo", .id = "echo", .handler = post_echo, .body_type = BODY_JSON},
    {.method = "GET", .pattern = "/late", .id = "late", .handler = get_late},
    {.method = "GET", .pattern = "/never", .id = "never", .handler = get_never},
    {.method = "GET", .pattern = "/heavy", .id = "heavy", .handler = get_heavy},
    {.method = "GET", .pattern = "/failure", .id = "failure", .handler = get_failure},
    {.method = "PUT", .pattern = "/upload", .id = "upload", .handler = put_upload, .body_type = BODY_STREAM},
    {.method = "GET",
     .pattern = "/stream/{id}",
     .id = "stream",
     .handler = get_stream,
     .produces = "text/event-stream"},
    {0},
};
static const struct route *const tables[] = {table, NULL};

static uv_loop_t loop;
static uv_async_t stop;
static uv_thread_t thread;
static struct server *server;
static int port;
static bool drained;

static void on_drained(void *data) {
    (void)data;
    drained = true;
    server_close(server);
    uv_close((uv_handle_t *)&stop, NULL);
}
static void on_stop(uv_async_t *handle) {
    (void)handle;
    stopping = true;
    server_drain(server, 2000, on_drained, NULL);
}
static void run_loop(void *arg) {
    (void)arg;
    uv_run(&loop, UV_RUN_DEFAULT);
}

static int start_with(int idle_timeout_ms) {
    struct err e = {0};
    struct server_options options = {.host = "127.0.0.1",
                                     .routes = tables,
                                     .max_json = 1000,
                                     .max_upload = 1 << 20,
                                     .head_timeout_ms = 1500,
                                     .body_timeout_ms = 500,
                                     .heartbeat_ms = 200,
                                     .idle_timeout_ms = idle_timeout_ms};
    uv_loop_init(&loop);
    uv_async_init(&loop, &stop, on_stop);
    cancelled = 0;
    streams_closed = 0;
    uploads_aborted = 0;
    drained = stopping = false;
    if (server_open(&server, &loop, &options, &e) != RC_OK) return -1;
    port = server_port(server);
    return uv_thread_create(&thread, run_loop, NULL);
}

static int start(void **state) {
    (void)state;
    return start_with(20000);
}

static int start_impatient(void **state) {
    (void)state;
    return start_with(1000);
}

static int finish(void **state) {
    (void)state;
    uv_async_send(&stop);
    uv_thread_join(&thread);
    return drained ? uv_loop_close(&loop) : -1;
}

/* ---- a client ---- */

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval patience = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void say(int fd, const char *text) {
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static char answer[1 << 20];

/* Reads until `until` was seen (or, NULL, until the end) and returns the status of the first answer. */
static int hear(int fd, const char *until) {
    size_t len = 0;
    answer[0] = '\0';
    while (len < sizeof answer - 1) {
        ssize_t n = recv(fd, answer + len, sizeof answer - 1 - len, 0);
        if (n <= 0) break;
        len += (size_t)n;
        answer[len] = '\0';
        if (until != NULL && strstr(answer, until) != NULL) break;
    }
    return len > 12 ? atoi(answer + 9) : 0;
}

static int ask(const char *request) {
    int fd = dial();
    say(fd, request);
    shutdown(fd, SHUT_WR);
    int status = hear(fd, NULL);
    close(fd);
    return status;
}

#define HOST "Host: localhost\r\n"
#define GET(target) "GET " target " HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n"

static void assert_said(const char *text) {
    if (strstr(answer, text) == NULL) fail_msg("'%s' is not in: %s", text, answer);
}

/* ---- tests ---- */

static void test_routes_on_the_raw_path(void **state) {
    (void)state;
    assert_int_equal(ask(GET("/items/a%2Fb?limit=3&all")), 200);
    assert_said("{\"id\":\"a/b\",\"limit\":3,\"all\":true}");
    assert_int_equal(ask(GET("/items/a/b")), 404);
    assert_int_equal(ask(GET("/items/")), 404);
    assert_int_equal(ask(GET("/rest/org/model")), 200);
    assert_said("{\"name\":\"org/model\"}");
    assert_int_equal(ask(GET("/items/a%00b")), 400);
    assert_int_equal(ask(GET("/items/a%zz")), 400);
    assert_int_equal(ask(GET("/items/%ff")), 400);
    assert_int_equal(ask(GET("http://localhost/items/x")), 200);
    assert_int_equal(ask("DELETE /items/x HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n"), 405);
    assert_said("Allow: GET, HEAD\r\n");
}

static void test_query_is_checked_by_its_table(void **state) {
    (void)state;
    assert_int_equal(ask(GET("/items/a?limit=0")), 422);
    assert_said("\"pointer\":\"?limit\"");
    assert_int_equal(ask(GET("/items/a?limt=1")), 422);
    assert_said("\"pointer\":\"?limt\"");
    assert_int_equal(ask(GET("/items/a?limit=1&limit=2")), 422);
    assert_int_equal(ask(GET("/failure")), 422);
    assert_said("\"pointer\":\"/a/b\"");
    assert_said("Content-Type: application/problem+json");
}

static void test_ambiguous_framing_is_refused(void **state) {
    (void)state;
    static const char *const heads[] = {
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Content-Length: +2\r\n",
        "Content-Length : 2\r\n",
        "Host: localhost\r\nContent-Length: 2\r\n",
    };
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        char request[512];
        snprintf(request, sizeof request, "POST /echo HTTP/1.1\r\n" HOST "%s\r\n{}GET /late HTTP/1.1\r\n" HOST "\r\n",
                 heads[i]);
        assert_int_equal(ask(request), 400);
        assert_null(strstr(answer, "late"));
    }
}

static void test_foreign_names_are_refused(void **state) {
    (void)state;
    assert_int_equal(ask("GET /late HTTP/1.1\r\nHost: evil.example:80\r\nConnection: close\r\n\r\n"), 421);
    assert_int_equal(ask("GET /late HTTP/1.1\r\n" HOST "Origin: http://evil.example\r\nConnection: close\r\n\r\n"),
                     403);
    assert_int_equal(ask("GET /late HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n"), 200);
    assert_int_equal(ask("GET /late HTTP/1.1\r\nHost: 127.evil.example\r\nConnection: close\r\n\r\n"), 421);
    assert_int_equal(ask("GET /late HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n"), 200);
}

static void test_a_refusal_keeps_the_connection_usable(void **state) {
    (void)state;
    int fd = dial();
    say(fd, "POST /nowhere HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\n{}");
    assert_int_equal(hear(fd, "]}\n"), 404);
    say(fd, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 9\r\n\r\n{\"a\":\"b\"}");
    assert_int_equal(hear(fd, "}\n"), 200);
    assert_said("{\"a\":\"b\"}");
    say(fd, "HEAD /items/x HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(hear(fd, "\r\n\r\n"), 200);
    assert_null(strstr(answer, "limit"));
    say(fd, "GET /rest/x HTTP/1.1\r\n" HOST "If-None-Match: \"v0\", W/\"v1\"\r\n\r\n");
    assert_int_equal(hear(fd, "\r\n\r\n"), 304);
    assert_said("ETag: \"v1\"");
    close(fd);
}

static void test_bodies_over_the_limit(void **state) {
    (void)state;
    assert_int_equal(ask("POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n"), 413);
    assert_null(strstr(answer, "100 Continue"));
    assert_int_equal(ask("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 99999999999999999999\r\n\r\n"), 413);
    char chunked[2000] = "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3f0\r\n";
    memset(chunked + strlen(chunked), ' ', 0x3f0);
    int fd = dial();
    say(fd, chunked);
    assert_int_equal(hear(fd, "]}\n"), 413);
    close(fd);
    assert_int_equal(ask("POST /echo HTTP/1.1\r\n" HOST "\r\n"), 411);
    assert_int_equal(ask("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n"), 400);
    assert_int_equal(ask("POST /echo HTTP/1.1\r\n" HOST "Content-Type: image/png\r\nContent-Length: 2\r\n\r\n{}"), 415);
    assert_int_equal(ask("GET /late HTTP/1.1\r\n" HOST "Accept: image/png\r\n\r\n"), 406);
}

static void test_deferred_answers_come_later(void **state) {
    (void)state;
    int fd = dial();
    for (int i = 0; i < 3; i++) {
        say(fd, "GET /late HTTP/1.1\r\n" HOST "\r\n");
        assert_int_equal(hear(fd, "}\n"), 200);
        assert_said("{\"late\":\"yes\"}");
    }
    close(fd);
}

/* What the timeout would answer with is no longer there: the answer that is under way took it. */
static void test_no_deferral_times_out_while_its_answer_is_read_slowly(void **state) {
    (void)state;
    int fd = dial();
    say(fd, "GET /heavy HTTP/1.1\r\n" HOST "\r\n");
    usleep(300000);
    assert_int_equal(late_timeouts, 0);
    assert_int_equal(hear(fd, "\r\n\r\n"), 200);
    close(fd);
}

static void test_uploads_come_in_pieces(void **state) {
    (void)state;
    int fd = dial();
    say(fd, "PUT /upload HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 8\r\n\r\n");
    assert_int_equal(hear(fd, "\r\n\r\n"), 100);
    say(fd, "1234");
    say(fd, "5678");
    assert_int_equal(hear(fd, "}\n"), 201);
    assert_said("{\"bytes\":8}");
    say(fd, "PUT /upload HTTP/1.1\r\n" HOST "Content-Length: 8\r\n\r\n12!45678");
    assert_int_equal(hear(fd, "]}\n"), 422);
    say(fd, "PUT /upload HTTP/1.1\r\n" HOST "Content-Length: 8\r\n\r\n12");
    close(fd);
    for (int i = 0; i < 30 && uploads_aborted < 2; i++)
        usleep(100000);
    assert_int_equal(uploads_aborted, 2);
}

static void test_streams_lag_with_their_client_and_end(void **state) {
    (void)state;
    int fd = dial();
    say(fd, "GET /stream/finite HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(hear(fd, "\r\n0\r\n\r\n"), 200);
    assert_said("id: 1\nevent: tick\n");
    assert_said("id: 5000\n");
    say(fd, "GET /stream/endless HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(hear(fd, "id: 5000\n"), 200);
    assert_int_equal(streams_closed, 1);
    close(fd);
}

static void test_a_slow_head_is_cut_off(void **state) {
    (void)state;
    int fd = dial();
    say(fd, "GET /late HTTP/1.1\r\n" HOST);
    for (int i = 0; i < 30; i++) {
        usleep(100000);
        if (send(fd, "a", 1, MSG_NOSIGNAL) < 0) break;
    }
    assert_int_equal(hear(fd, NULL), 408);
    close(fd);
}

static void test_a_slow_body_is_cut_off(void **state) {
    (void)state;
    int fd = dial();
    say(fd, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 100\r\n\r\n[");
    for (int i = 0; i < 30; i++) {
        usleep(100000);
        if (send(fd, " ", 1, MSG_NOSIGNAL) < 0) break;
    }
    assert_int_equal(hear(fd, NULL), 408);
    close(fd);
}

static void wait_until_closed(int streams) {
    for (int i = 0; i < 60 && streams_closed < streams; i++)
        usleep(100000);
    assert_int_equal(streams_closed, streams);
}

static void test_silent_streams_beat_and_notice_who_left(void **state) {
    (void)state;
    int stays = dial(), leaves = dial(), half_closed = dial();
    say(stays, "GET /stream/quiet HTTP/1.1\r\n" HOST "\r\n");
    say(leaves, "GET /stream/quiet HTTP/1.1\r\n" HOST "\r\n");
    say(half_closed, "GET /stream/quiet HTTP/1.1\r\n" HOST "\r\n");
    shutdown(half_closed, SHUT_WR);
    hear(leaves, "tick");
    close(leaves);
    wait_until_closed(1);
    assert_int_equal(hear(stays, "\n:\n\n"), 200);
    assert_int_equal(hear(half_closed, "\n:\n\n"), 200);
    assert_int_equal(streams_closed, 1);
    close(stays);
    close(half_closed);
}

static void test_a_client_that_does_not_read_is_cut_off(void **state) {
    (void)state;
    int fd = dial();
    say(fd, "GET /stream/huge HTTP/1.1\r\n" HOST "\r\n");
    wait_until_closed(1);
    close(fd);
}

static void test_draining_answers_everyone(void **state) {
    int waiting = dial(), stream = dial();
    say(waiting, "GET /never HTTP/1.1\r\n" HOST "\r\n");
    say(stream, "GET /stream/endless HTTP/1.1\r\n" HOST "\r\n");
    hear(stream, "id: 5000\n");
    uv_async_send(&stop);
    assert_int_equal(hear(waiting, NULL), 503);
    assert_said("Retry-After: ");
    assert_int_equal(cancelled, 1);
    uv_thread_join(&thread);
    assert_true(drained);
    assert_int_equal(streams_closed, 1);
    assert_int_equal(uv_loop_close(&loop), 0);
    close(waiting);
    close(stream);
    start(state);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_routes_on_the_raw_path),
        TEST(test_query_is_checked_by_its_table),
        TEST(test_ambiguous_framing_is_refused),
        TEST(test_foreign_names_are_refused),
        TEST(test_a_refusal_keeps_the_connection_usable),
        TEST(test_bodies_over_the_limit),
        TEST(test_deferred_answers_come_later),
        TEST(test_no_deferral_times_out_while_its_answer_is_read_slowly),
        TEST(test_uploads_come_in_pieces),
        TEST(test_streams_lag_with_their_client_and_end),
        TEST(test_a_slow_head_is_cut_off),
        TEST(test_a_slow_body_is_cut_off),
        TEST(test_silent_streams_beat_and_notice_who_left),
        cmocka_unit_test_setup_teardown(test_a_client_that_does_not_read_is_cut_off, start_impatient, finish),
        TEST(test_draining_answers_everyone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
