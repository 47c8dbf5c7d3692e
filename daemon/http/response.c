#include "daemon/http/response.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "daemon/http/internal.h"

enum { RETRY_AFTER_SECONDS = 2 };

void respond_header(struct request *r, const char *name, const char *fmt, ...) {
    if (r->n_headers == REQUEST_HEADERS_MAX) return;
    va_list args;
    va_start(args, fmt);
    char *value = NULL;
    if (vasprintf(&value, fmt, args) < 0) abort();
    va_end(args);
    r->headers[r->n_headers].name = name;
    r->headers[r->n_headers++].value = arena_strdup(&r->arena, value);
    free(value);
}

static void resume(struct request *r) {
    r->deferred = false;
    if (!r->suspended) return;
    r->suspended = false;
    server_resume(r->server, r->mhd);
}

void respond_with(struct request *r, int status, struct MHD_Response *answer) {
    if (answer == NULL) abort(); /* libmicrohttpd's only failure here is that memory is gone (base/mem.h) */
    for (size_t i = 0; i < r->n_headers; i++)
        MHD_add_response_header(answer, r->headers[i].name, r->headers[i].value);
    r->answer = answer;
    r->status = (unsigned)status;
    resume(r);
}

enum MHD_Result respond_queue(struct request *r) {
    if (r->close || r->server->draining) MHD_add_response_header(r->answer, "Connection", "close");
    metrics_count(r->server, r);
    enum MHD_Result result = MHD_queue_response(r->mhd, r->status, r->answer);
    MHD_destroy_response(r->answer);
    r->answer = NULL;
    r->phase = PHASE_ANSWERING;
    r->target = NULL; /* libmicrohttpd has copies of all that the answer needs; a stream may last for days */
    r->problems = NULL;
    arena_release(&r->arena);
    return result;
}

void respond_text(struct request *r, int status, const char *content_type, char *text, size_t len) {
    respond_header(r, "Content-Type", "%s", content_type);
    r->status = (unsigned)status;
    exchange_answer_half_closed(r, text, len);
    respond_with(r, status, MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE));
}

void respond_json_text(struct request *r, int status, char *text, size_t len) {
    respond_text(r, status, "application/json", text, len);
}

static void respond_json_as(struct request *r, int status, const char *content_type, json_t *body) {
    char *text = json_line(body);
    json_decref(body);
    if (text == NULL) {
        respond_status(r, 500, "the answer could not be written as JSON");
        return;
    }
    size_t len = strlen(text);
    text = xrealloc(text, len + 2);
    memcpy(text + len, "\n", 2);
    respond_text(r, status, content_type, text, len + 1);
}

void respond_json(struct request *r, int status, json_t *body) {
    respond_json_as(r, status, "application/json", body);
}

void respond_static(struct request *r, const char *content_type, const char *text, size_t len) {
    respond_header(r, "Content-Type", "%s", content_type);
    respond_with(r, 200, MHD_create_response_from_buffer(len, (void *)text, MHD_RESPMEM_PERSISTENT));
}

void respond_file(struct request *r, const char *content_type, int fd, size_t size) {
    respond_header(r, "Content-Type", "%s", content_type);
    respond_header(r, "X-Content-Type-Options", "nosniff");
    respond_with(r, 200, MHD_create_response_from_fd64(size, fd));
}

void respond_empty(struct request *r, int status) {
    respond_with(r, status, MHD_create_response_from_buffer(0, "", MHD_RESPMEM_PERSISTENT));
}

bool respond_not_modified(struct request *r, const char *etag) {
    respond_header(r, "ETag", "%s", etag);
    if (!request_etag_matches(r, etag)) return false;
    respond_empty(r, 304);
    return true;
}

static void respond_problem(struct request *r, int status, const struct err *e) {
    if (status == 503) respond_header(r, "Retry-After", "%d", RETRY_AFTER_SECONDS);
    json_t *problem = problem_json(status, e, r->problems, request_path(r));
    respond_json_as(r, status, "application/problem+json", problem);
}

void respond_error(struct request *r, const struct err *e) {
    respond_problem(r, rc_http_status(e->rc), e);
}

void respond_status(struct request *r, int status, const char *fmt, ...) {
    struct err e = {.rc = RC_OK};
    va_list args;
    va_start(args, fmt);
    vsnprintf(e.message, sizeof e.message, fmt, args);
    va_end(args);
    respond_problem(r, status, &e);
}
