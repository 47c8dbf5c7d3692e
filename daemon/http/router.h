/* The table of routes: what the server dispatches on, what `hsaqd --describe` prints, and what api/openapi.yaml is
 * compared with.
 *
 * A pattern is a path of segments; {id} takes one segment, {name*} takes one or more (model names contain '/').
 * Matching is done on the raw path, each segment decoded afterwards, so %2F never splits a segment. A GET route answers
 * HEAD too. */
#ifndef HSAQ_DAEMON_HTTP_ROUTER_H
#define HSAQ_DAEMON_HTTP_ROUTER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/schema.h"
#include "daemon/http/request.h"

enum body {
    BODY_NONE,          /* a body is read and ignored, up to the JSON limit */
    BODY_JSON,          /* required; parsed before the handler runs, whatever Content-Type says */
    BODY_JSON_OPTIONAL, /* as above, or empty */
    BODY_STREAM,        /* the handler calls request_receive; up to the upload limit */
};

struct route {
    const char *method;  /* "GET", "POST", "PUT", "PATCH", "DELETE" */
    const char *pattern; /* "/v1/jobs/{id}" */
    const char *id;      /* operationId in api/openapi.yaml, label in metrics: "getJob" */
    enum rc (*handler)(struct request *r, struct err *e);
    enum body body_type;
    const struct schema *body;      /* for request_decode_body; NULL when decoded by other means */
    json_t *(*describe_body)(void); /* JSON Schema where there is no single table (job specs); may be NULL */
    const struct schema *query;     /* FIELD_STRING, FIELD_INT, FIELD_BOOL, FIELD_ENUM only; NULL: no parameters */
    const char *produces; /* media types it can answer with, "text/csv, application/json"; NULL: application/json */
};

/* Tables of routes, one per daemon/api file, each ending with a NULL method; the list ends with NULL. */
extern const struct route *const api_routes[];

enum { ROUTE_PARAMS_MAX = 4 };
struct route_match {
    const struct route *route; /* NULL: no route has this path and method */
    unsigned index;            /* of the route, counted over all tables */
    char allow[64];            /* "GET, HEAD, PUT": methods of the path; "" when no route has the path */
    struct {
        const char *name;
        size_t name_len;
        const char *value; /* still encoded, points into the path */
        size_t value_len;
    } params[ROUTE_PARAMS_MAX];
    size_t param_count;
};

void router_match(const struct route *const *tables, const char *method, const char *path, size_t path_len,
                  struct route_match *match);
size_t router_count(const struct route *const *tables);

/* {routes: [{method, path, id, query: schema|null, body: schema|null, body_type}]}: for --describe. A new reference. */
json_t *router_describe(const struct route *const *tables);

#endif
