#include "daemon/http/router.h"

#include <stdio.h>
#include <string.h>

/* One segment of a pattern: literal text, {name} or {name*}. */
struct segment {
    const char *text; /* of a parameter: its name */
    size_t len;
    enum { SEGMENT_LITERAL, SEGMENT_PARAM, SEGMENT_REST } type;
};

/* Takes the segment after the '/' at *p and moves past it. False at the end. */
static bool next_segment(const char **p, const char *end, const char **text, size_t *len) {
    if (*p >= end || **p != '/') return false;
    const char *start = ++*p;
    while (*p < end && **p != '/')
        (*p)++;
    *text = start;
    *len = (size_t)(*p - start);
    return true;
}

static bool next_pattern_segment(const char **pattern, struct segment *out) {
    const char *text;
    size_t len;
    if (!next_segment(pattern, *pattern + strlen(*pattern), &text, &len)) return false;
    *out = (struct segment){text, len, SEGMENT_LITERAL};
    if (len > 2 && text[0] == '{') {
        bool rest = text[len - 2] == '*';
        *out = (struct segment){text + 1, len - 2 - rest, rest ? SEGMENT_REST : SEGMENT_PARAM};
    }
    return true;
}

static void add_param(struct route_match *m, const struct segment *s, const char *value, size_t len) {
    if (m->param_count == ROUTE_PARAMS_MAX) return;
    m->params[m->param_count].name = s->text;
    m->params[m->param_count].name_len = s->len;
    m->params[m->param_count].value = value;
    m->params[m->param_count++].value_len = len;
}

/* A {name*} ends where what follows it in the pattern ("" or "/tokenize") begins. */
static bool match_rest(const struct segment *s, const char *suffix, const char *path, const char *end,
                       struct route_match *m) {
    size_t suffix_len = strlen(suffix);
    if ((size_t)(end - path) < 2 + suffix_len || *path != '/') return false;
    if (memcmp(end - suffix_len, suffix, suffix_len) != 0) return false;
    add_param(m, s, path + 1, (size_t)(end - path) - 1 - suffix_len);
    return true;
}

static bool match_path(const char *pattern, const char *path, size_t path_len, struct route_match *m) {
    const char *end = path + path_len;
    struct segment s;
    m->param_count = 0;
    while (next_pattern_segment(&pattern, &s)) {
        if (s.type == SEGMENT_REST) return match_rest(&s, pattern, path, end, m);
        const char *text;
        size_t len;
        if (!next_segment(&path, end, &text, &len)) return false;
        if (s.type == SEGMENT_PARAM) {
            if (len == 0) return false;
            add_param(m, &s, text, len);
        } else if (len != s.len || memcmp(text, s.text, len) != 0) {
            return false;
        }
    }
    return path == end;
}

static void allow(struct route_match *m, const char *method) {
    size_t used = strlen(m->allow);
    const char *head = strcmp(method, "GET") == 0 ? ", HEAD" : "", *comma = used > 0 ? ", " : "";
    if (used + strlen(comma) + strlen(method) + strlen(head) >= sizeof m->allow) return;
    snprintf(m->allow + used, sizeof m->allow - used, "%s%s%s", comma, method, head);
}

/* The longest pattern wins where several match, so that …/{name*}/tokenize comes before …/{name*}. */
void router_match(const struct route *const *tables, const char *method, const char *path, size_t path_len,
                  struct route_match *match) {
    *match = (struct route_match){0};
    size_t best = 0;
    unsigned index = 0;
    for (; *tables != NULL; tables++) {
        for (const struct route *route = *tables; route->method != NULL; route++, index++) {
            struct route_match candidate = {0};
            if (!match_path(route->pattern, path, path_len, &candidate)) continue;
            size_t length = strlen(route->pattern);
            if (length < best) continue;
            if (length > best) *match = (struct route_match){0};
            best = length;
            allow(match, route->method);
            if (strcmp(route->method, method) != 0) continue;
            match->route = route;
            match->index = index;
            match->param_count = candidate.param_count;
            memcpy(match->params, candidate.params, sizeof candidate.params);
        }
    }
}

size_t router_count(const struct route *const *tables) {
    size_t count = 0;
    for (; *tables != NULL; tables++) {
        for (const struct route *route = *tables; route->method != NULL; route++)
            count++;
    }
    return count;
}

static json_t *describe_body(const struct route *route) {
    if (route->describe_body != NULL) return route->describe_body();
    return route->body != NULL ? schema_describe(route->body) : json_null();
}

static json_t *describe_route(const struct route *route) {
    static const char *const body_types[] = {"none", "json", "json_optional", "stream"};
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:o}", "method", route->method, "path", route->pattern, "id",
                     route->id, "produces", route->produces != NULL ? route->produces : "application/json", "body_type",
                     body_types[route->body_type], "query",
                     route->query != NULL ? schema_describe(route->query) : json_null(), "body", describe_body(route));
}

json_t *router_describe(const struct route *const *tables) {
    json_t *routes = json_array();
    for (; *tables != NULL; tables++) {
        for (const struct route *route = *tables; route->method != NULL; route++)
            json_array_append_new(routes, describe_route(route));
    }
    return json_pack("{s:o}", "routes", routes);
}
