#include "daemon/http/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/json.h"
#include "base/mem.h"
#include "daemon/http/internal.h"

enum { PREFER_WAIT_MAX = 3600 };

struct app *request_app(const struct request *r) {
    return r->server->options.app;
}

const char *request_method(const struct request *r) {
    return r->method;
}

const char *request_path(const struct request *r) {
    return r->target == NULL ? "" : r->target + r->path_offset;
}

const char *request_param(const struct request *r, const char *name) {
    for (size_t i = 0; i < r->match.param_count; i++) {
        const char *have = r->match.params[i].name;
        size_t len = r->match.params[i].name_len;
        if (strlen(name) == len && memcmp(have, name, len) == 0) return r->params[i];
    }
    return NULL;
}

const char *request_header(const struct request *r, const char *name) {
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

struct arena *request_arena(struct request *r) {
    return &r->arena;
}

json_t *request_json(const struct request *r) {
    return r->json;
}

int64_t request_content_length(const struct request *r) {
    return r->content_length;
}

struct problems *request_problems(struct request *r) {
    if (r->problems == NULL) r->problems = arena_alloc(&r->arena, sizeof *r->problems);
    return r->problems;
}

/* ---- headers with lists ---- */

/* The next element of a comma-separated header, trimmed; false at the end. */
static bool next_element(const char **p, const char **text, size_t *len) {
    const char *s = *p + strspn(*p, " \t,");
    if (*s == '\0') return false;
    size_t n = strcspn(s, ",");
    *p = s + n;
    while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t'))
        n--;
    *text = s;
    *len = n;
    return true;
}

bool request_etag_matches(const struct request *r, const char *etag) {
    const char *header = request_header(r, "If-None-Match"), *text;
    size_t len;
    while (header != NULL && next_element(&header, &text, &len)) {
        if (len == 1 && *text == '*') return true;
        if (len > 2 && text[0] == 'W' && text[1] == '/') text += 2, len -= 2;
        if (len == strlen(etag) && memcmp(text, etag, len) == 0) return true;
    }
    return false;
}

int request_prefer_wait(const struct request *r) {
    const char *header = request_header(r, "Prefer"), *text;
    size_t len;
    while (header != NULL && next_element(&header, &text, &len)) {
        if (len < 6 || strncasecmp(text, "wait=", 5) != 0) continue;
        long seconds = strtol(text + 5, NULL, 10);
        return seconds < 0 ? 0 : seconds > PREFER_WAIT_MAX ? PREFER_WAIT_MAX : (int)seconds;
    }
    return 0;
}

/* "q=0" refuses a media type that would match. */
static bool refused(const char *parameters, size_t len) {
    for (size_t i = 0; i + 2 < len; i++) {
        if (strncasecmp(parameters + i, "q=", 2) == 0) return strtod(parameters + i + 2, NULL) <= 0;
    }
    return false;
}

bool request_accepts(const struct request *r, const char *media_type) {
    const char *header = request_header(r, "Accept"), *text;
    size_t len, want = strlen(media_type);
    while (header != NULL && next_element(&header, &text, &len)) {
        size_t type = 0;
        while (type < len && text[type] != ';' && text[type] != ' ')
            type++;
        if (type == want && strncasecmp(text, media_type, want) == 0) return !refused(text + type, len - type);
    }
    return false;
}

/* ---- decoding ---- */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* jansson makes no string of bytes that are not UTF-8. */
static bool is_utf8(const char *text, size_t len) {
    json_t *probe = json_stringn(text, len);
    json_decref(probe);
    return probe != NULL;
}

enum rc percent_decode(struct request *r, const char *text, size_t len, bool plus, const char **out, struct err *e) {
    char *decoded = arena_alloc(&r->arena, len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        char c = text[i] == '+' && plus ? ' ' : text[i];
        if (c == '%') {
            int h = i + 2 < len ? hex_digit(text[i + 1]) : -1, l = i + 2 < len ? hex_digit(text[i + 2]) : -1;
            if (h < 0 || l < 0) return err_set(e, RC_MALFORMED, "the URL has a '%%' that no two hex digits follow");
            c = (char)(h * 16 + l);
            i += 2;
        }
        if (c == '\0') return err_set(e, RC_MALFORMED, "the URL contains a NUL byte (%%00)");
        decoded[n++] = c;
    }
    if (!is_utf8(decoded, n)) return err_set(e, RC_MALFORMED, "the URL is not UTF-8 once decoded");
    *out = decoded;
    return RC_OK;
}

static const struct field *find_field(const struct schema *schema, const char *name) {
    for (const struct field *f = schema->fields; f->name != NULL; f++) {
        if (strcmp(f->name, name) == 0) return f;
    }
    return NULL;
}

/* Of a whole number beyond int64, the nearest within, so that the field's bound is what refuses it. NULL: it is none.
 */
static json_t *nearest_integer(const char *text) {
    const char *digits = text + (*text == '-');
    if (*digits == '\0' || digits[strspn(digits, "0123456789")] != '\0') return NULL;
    errno = 0;
    long long nearest = strtoll(text, NULL, 10);
    return errno == ERANGE ? json_integer(nearest) : NULL;
}

/* A query value as the JSON that its field expects; what does not read as that stays a string, for schema_decode to
 * refuse. */
static json_t *query_value(const struct field *field, const char *text) {
    if (field->type == FIELD_BOOL) {
        if (strcmp(text, "true") == 0 || strcmp(text, "1") == 0 || *text == '\0') return json_true();
        if (strcmp(text, "false") == 0 || strcmp(text, "0") == 0) return json_false();
    }
    json_t *number = NULL;
    bool numeric = field->type == FIELD_INT || field->type == FIELD_NUMBER;
    if (numeric && json_parse(text, strlen(text), &number, NULL) == RC_OK) return number;
    if (field->type == FIELD_INT) number = nearest_integer(text);
    return number ? number : json_string(text);
}

static void query_problem(struct request *r, const char *name, const char *detail) {
    struct decode d = {&r->arena, request_problems(r), ""};
    snprintf(d.pointer, sizeof d.pointer, "?%s", name);
    problem_here(&d, "%s", detail);
}

/* As schema_decode refuses an unknown member. */
static void refuse_parameter(struct request *r, const char *name) {
    const struct schema *query = r->match.route->query;
    struct strbuf text = STRBUF_INIT;
    strbuf_puts(&text, "unknown parameter; this path takes: ");
    for (const struct field *f = query == NULL ? NULL : query->fields; f != NULL && f->name != NULL; f++)
        strbuf_printf(&text, "%s%s", f == query->fields ? "" : ", ", f->name);
    if (query == NULL) strbuf_puts(&text, "none");
    query_problem(r, name, text.data);
    strbuf_release(&text);
}

static enum rc add_query_pair(struct request *r, const char *pair, size_t len, json_t *object, struct err *e) {
    const char *equals = memchr(pair, '=', len), *name, *value = "";
    size_t name_len = equals == NULL ? len : (size_t)(equals - pair);
    TRY(percent_decode(r, pair, name_len, true, &name, e));
    if (equals != NULL) TRY(percent_decode(r, equals + 1, len - name_len - 1, true, &value, e));
    const struct field *field = r->match.route->query == NULL ? NULL : find_field(r->match.route->query, name);
    if (field == NULL)
        refuse_parameter(r, name);
    else if (json_object_get(object, name) != NULL)
        query_problem(r, name, "given twice");
    else
        json_object_set_new(object, name, query_value(field, value));
    return RC_OK;
}

static enum rc query_object(struct request *r, json_t *object, struct err *e) {
    for (const char *p = r->query; *p != '\0';) {
        size_t len = strcspn(p, "&");
        if (len > 0) TRY(add_query_pair(r, p, len, object, e));
        p += len + (p[len] == '&');
    }
    return RC_OK;
}

static enum rc first_problem(const struct problems *problems, struct err *e) {
    if (problems->count == 0) return RC_OK;
    return err_at(e, problems->items[0].pointer, RC_INVALID, "%s", problems->items[0].detail);
}

enum rc request_decode_query(struct request *r, void *object, struct err *e) {
    struct problems *problems = request_problems(r);
    json_t *query = json_object();
    enum rc rc = query_object(r, query, e);
    size_t before = problems->count;
    if (rc == RC_OK) rc = schema_decode(r->match.route->query, query, object, &r->arena, problems, e);
    json_decref(query);
    for (size_t i = before; i < problems->count && i < PROBLEMS_MAX; i++)
        problems->items[i].pointer[0] = '?';
    return problems->count > 0 ? first_problem(problems, e) : rc;
}

/* Of a route that takes none. */
static enum rc refuse_query(struct request *r, struct err *e) {
    TRY(query_object(r, NULL, e));
    return first_problem(request_problems(r), e);
}

enum rc request_decode_body(struct request *r, void *object, struct err *e) {
    return schema_decode(r->match.route->body, r->json, object, &r->arena, request_problems(r), e);
}

void request_parse_body(struct request *r, struct err *e) {
    enum body type = r->match.route->body_type;
    e->rc = RC_OK;
    if (type != BODY_JSON && type != BODY_JSON_OPTIONAL) return;
    if (r->body.len > 0) {
        json_parse(r->body.data, r->body.len, &r->json, e);
        strbuf_release(&r->body);
    } else if (type == BODY_JSON) {
        err_set(e, RC_MALFORMED, "the body is empty: send a JSON object");
    }
}

/* ---- life ---- */

void request_begin(struct request *r, const char *target) {
    struct server *server = r->server;
    struct MHD_Connection *mhd = r->mhd;
    request_end(r);
    *r = (struct request){.server = server, .mhd = mhd, .phase = PHASE_HEAD, .query = "", .method = ""};
    r->target = arena_strdup(&r->arena, target);
}

static void free_handle(uv_handle_t *handle) {
    free(handle);
}

static void stop_timer(struct request *r) {
    if (r->timer != NULL) uv_close((uv_handle_t *)r->timer, free_handle);
    r->timer = NULL;
}

void request_end(struct request *r) {
    stop_timer(r);
    if (r->sink != NULL) r->sink->abort(r->sink_data);
    r->sink = NULL;
    if (r->stream != NULL) stream_closed(r->stream);
    r->stream = NULL;
    if (r->answer != NULL) MHD_destroy_response(r->answer);
    r->answer = NULL;
    json_decref(r->json);
    r->json = NULL;
    strbuf_release(&r->body);
    arena_release(&r->arena);
    r->target = NULL;
    r->deferred = false;
    r->phase = PHASE_IDLE;
}

/* Its answer may be under way by now, to a client that reads slowly: then the deferral's data is gone. */
static void on_timeout(uv_timer_t *timer) {
    struct request *r = timer->data;
    stop_timer(r);
    if (r->deferred) r->deferral.timeout(r, r->deferral.data);
}

void request_defer(struct request *r, const struct deferral *deferral) {
    r->deferral = *deferral;
    r->deferred = true;
    if (deferral->timeout == NULL || deferral->timeout_ms <= 0) return;
    r->timer = xcalloc(1, sizeof *r->timer);
    r->timer->data = r;
    uv_timer_init(r->server->loop, r->timer);
    uv_timer_start(r->timer, on_timeout, (uint64_t)deferral->timeout_ms, 0);
}

void request_cancel(struct request *r) {
    struct deferral deferral = r->deferral;
    if (deferral.cancel != NULL) deferral.cancel(r, deferral.data);
    respond_status(r, 503, "the service is shutting down; repeat the request in a moment");
}

void request_receive(struct request *r, const struct body_sink *sink, void *data) {
    r->sink = sink;
    r->sink_data = data;
}

static enum rc finish_sink(struct request *r, struct err *e) {
    const struct body_sink *sink = r->sink;
    r->sink = NULL;
    return sink->finish(r, r->sink_data, e);
}

static enum rc start(struct request *r, struct err *e) {
    if (r->match.route->query == NULL && *r->query != '\0') TRY(refuse_query(r, e));
    return r->match.route->handler(r, e);
}

void request_run(struct request *r) {
    struct err e = {0};
    enum rc rc = r->sink != NULL ? finish_sink(r, &e) : start(r, &e);
    if (rc != RC_OK) respond_error(r, &e);
    bool waits = r->deferred || r->sink != NULL || r->stream != NULL || r->answer != NULL;
    if (!waits) respond_status(r, 500, "the handler of %s gave no answer", r->match.route->id);
}
