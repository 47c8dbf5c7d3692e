/* Answers. Each respond_* answers the request once and ends its life for the caller, at once or after a deferral. Loop
 * thread only. HEAD is taken care of: answer as for GET. */
#ifndef HSAQ_DAEMON_HTTP_RESPONSE_H
#define HSAQ_DAEMON_HTTP_RESPONSE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "daemon/http/request.h"

/* Adds a header to the answer that will follow ("Location", "ETag", "Retry-After", …). */
void respond_header(struct request *r, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

void respond_json(struct request *r, int status, json_t *body); /* takes the reference; one line and a newline */
void respond_json_text(struct request *r, int status, char *text, size_t len); /* the same, encoded; takes the text */
/* Takes `text` (malloc'd). */
void respond_text(struct request *r, int status, const char *content_type, char *text, size_t len);
/* The bytes must outlive the server (embedded files). */
void respond_static(struct request *r, const char *content_type, const char *text, size_t len);
void respond_file(struct request *r, const char *content_type, int fd, size_t size); /* takes the descriptor */
void respond_empty(struct request *r, int status);                                   /* 204 */

/* Sets ETag; when If-None-Match holds it, answers 304 and returns true. */
bool respond_not_modified(struct request *r, const char *etag);

/* What a handler's failure becomes; for errors found after a deferral. */
void respond_error(struct request *r, const struct err *e);

#endif
