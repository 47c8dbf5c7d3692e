/* Error answers: application/problem+json (RFC 9457)
 * {type, title, status, detail, instance, errors: [{pointer, detail}]}.
 * `type` is "urn:hsaqd:" followed by rc_name for errors of ours, "about:blank" for those of HTTP itself, so that
 * machines need not read prose. */
#ifndef HSAQ_DAEMON_HTTP_PROBLEM_H
#define HSAQ_DAEMON_HTTP_PROBLEM_H

#include <jansson.h>

#include "base/err.h"
#include "base/schema.h"

/* A new reference. `problems` may be NULL or empty: then errors[] holds e's own pointer, if it has one. */
json_t *problem_json(int status, const struct err *e, const struct problems *problems, const char *instance);
const char *http_reason(int status);

#endif
