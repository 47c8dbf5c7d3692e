/* One HTTP request, as a handler sees it.
 *
 * Everything here runs on the loop thread. A handler is called once, when the request is whole (for routes with
 * BODY_STREAM: when its head is). It either answers before it returns (response.h, stream.h), or defers:
 *
 *     enum rc job_create(struct request *r, struct err *e)
 *     {
 *         ... TRY(request_decode_body(r, &patch, e)); ...
 *         request_defer(r, &(struct deferral){.cancel = forget, .data = ticket});
 *         return RC_OK;                  // later, on the loop thread: respond_json(r, 202, body)
 *     }
 *
 * A handler that returns anything but RC_OK must not have answered: the error becomes a problem document.
 * A request stays valid until it is answered; after that, and after deferral.cancel, it must not be touched.
 * Strings returned here live as long as the request. */
#ifndef HSAQ_DAEMON_HTTP_REQUEST_H
#define HSAQ_DAEMON_HTTP_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"

struct app;
struct request;

struct app *request_app(const struct request *r);
const char *request_method(const struct request *r); /* "GET" for HEAD too */
const char *request_path(const struct request *r);   /* as sent, without the query: for `instance` and logs */

/* A path parameter ("id" of /v1/jobs/{id}), percent-decoded, never empty, without NUL and valid UTF-8. */
const char *request_param(const struct request *r, const char *name);
/* A request header's value, or NULL; the name is case-insensitive. */
const char *request_header(const struct request *r, const char *name);
/* Whether Accept names the media type ("text/csv") explicitly. A missing Accept names nothing. */
bool request_accepts(const struct request *r, const char *media_type);
/* The seconds of `Prefer: wait=N`, at most 3600; 0 without one. */
int request_prefer_wait(const struct request *r);
/* Whether If-None-Match holds `etag` (quoted, as sent in ETag) or "*". */
bool request_etag_matches(const struct request *r, const char *etag);

/* Memory that lives as long as the request. */
struct arena *request_arena(struct request *r);

/* The parsed body of a BODY_JSON route (borrowed); NULL when BODY_JSON_OPTIONAL came empty. */
json_t *request_json(const struct request *r);
/* Decodes the body by route->body, or the query string by route->query, into `object`. Faults are kept in the request
 * and become errors[] of the problem document when the handler returns the error. Query values are read as the type
 * that the table gives them; a parameter it does not list is a fault with pointer "?name". */
enum rc request_decode_body(struct request *r, void *object, struct err *e);
enum rc request_decode_query(struct request *r, void *object, struct err *e);
/* Where handlers that decode by other means (job specs) leave their faults, to the same effect. */
struct problems *request_problems(struct request *r);

/* Answer later. `timeout` is called after timeout_ms (0: never) and answers the request, or leaves it deferred.
 * `cancel` is called when the server stops first; the server then answers 503 itself. Both on the loop thread.
 * A client that leaves meanwhile is not noticed: the answer is dropped when it comes. */
struct deferral {
    void (*cancel)(struct request *r, void *data);
    void (*timeout)(struct request *r, void *data);
    int timeout_ms;
    void *data;
};
void request_defer(struct request *r, const struct deferral *deferral);

/* Receives the body of a BODY_STREAM route piece by piece. `write` may fail: the rest of the body is then discarded
 * and the error answered. `finish` is called after the last piece and answers or defers, like a handler. `abort` is
 * called instead of `finish` when the body does not become whole (client left, deadline, write failed). */
struct body_sink {
    enum rc (*write)(void *data, const void *bytes, size_t len, struct err *e);
    enum rc (*finish)(struct request *r, void *data, struct err *e);
    void (*abort)(void *data);
};
void request_receive(struct request *r, const struct body_sink *sink, void *data);
/* Content-Length, or -1 when the body is chunked. */
int64_t request_content_length(const struct request *r);

#endif
