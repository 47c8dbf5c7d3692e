/* What is checked when the head of a request is complete, before any of its body is read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/http/internal.h"

/* What the headers say about framing and origin, gathered in one pass. */
struct head {
    const char *host, *content_length, *transfer_encoding, *origin;
    size_t n_host, n_content_length, n_transfer_encoding;
    bool bad_name;
};

static bool is_token(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c <= ' ' || c >= 0x7f || strchr("\"(),/:;<=>?@[\\]{}", c) != NULL) return false;
    }
    return len > 0;
}

static enum MHD_Result gather(void *cls, enum MHD_ValueKind kind, const char *name, const char *value) {
    struct head *h = cls;
    (void)kind;
    if (!is_token(name, strlen(name))) h->bad_name = true;
    if (strcasecmp(name, "Host") == 0) h->host = value, h->n_host++;
    if (strcasecmp(name, "Content-Length") == 0) h->content_length = value, h->n_content_length++;
    if (strcasecmp(name, "Transfer-Encoding") == 0) h->transfer_encoding = value, h->n_transfer_encoding++;
    if (strcasecmp(name, "Origin") == 0) h->origin = value;
    return MHD_YES;
}

/* Framing that two readers could understand differently is how requests are smuggled: refuse and close. */
static const char *framing_fault(const struct head *h) {
    if (h->bad_name) return "a header name contains a character that names cannot have";
    if (h->n_content_length > 1) return "there is more than one Content-Length";
    if (h->n_transfer_encoding > 1) return "there is more than one Transfer-Encoding";
    if (h->n_content_length > 0 && h->n_transfer_encoding > 0)
        return "Content-Length and Transfer-Encoding exclude each other";
    if (h->n_transfer_encoding > 0 && (!h->transfer_encoding || strcasecmp(h->transfer_encoding, "chunked") != 0))
        return "the only Transfer-Encoding understood here is chunked";
    if (h->n_host > 1) return "there is more than one Host";
    return NULL;
}

/* "host", "host:port", "[::1]:port": a name that cannot be anything but this machine. */
static bool is_loopback(const struct server *s, const char *host) {
    size_t len = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/");
    if (len == 9 && strncasecmp(host, "localhost", len) == 0) return true;
    if (len > 10 && strncasecmp(host + len - 10, ".localhost", 10) == 0) return true;
    if (len == 5 && strncmp(host, "[::1]", len) == 0) return true;
    if (strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.") == len) return true;
    return len == strlen(s->options.host) && strncasecmp(host, s->options.host, len) == 0;
}

/* A web page elsewhere must not reach this service through its reader's browser: neither under a name of its own that
 * resolves to 127.0.0.1 (Host), nor by posting a form (Origin). */
static bool check_origin(struct request *r, const struct head *h) {
    if (h->host != NULL && *h->host != '\0' && !is_loopback(r->server, h->host)) {
        respond_status(r, 421, "Host is not a name of this machine's loopback; use localhost or 127.0.0.1");
        return false;
    }
    if (h->origin == NULL) return true;
    const char *name = strstr(h->origin, "://");
    if (name != NULL && is_loopback(r->server, name + 3)) return true;
    respond_status(r, 403, "requests from web pages of other origins are refused");
    return false;
}

/* Splits the target: an absolute-form one ("http://host/path") loses its origin. */
static void split_target(struct request *r) {
    const char *path = r->target;
    if (strncasecmp(path, "http://", 7) == 0) path += 7 + strcspn(path + 7, "/?");
    r->path_offset = (size_t)(path - r->target);
    r->path_len = strcspn(path, "?");
    if (path[r->path_len] == '?') r->query = path + r->path_len + 1;
    r->target[r->path_offset + r->path_len] = '\0';
}

static bool decode_params(struct request *r) {
    struct err e = {0};
    for (size_t i = 0; i < r->match.param_count; i++) {
        const char *value = r->match.params[i].value;
        if (percent_decode(r, value, r->match.params[i].value_len, false, &r->params[i], &e) == RC_OK) continue;
        respond_error(r, &e);
        return false;
    }
    return true;
}

static bool check_route(struct request *r) {
    const char *path = request_path(r);
    router_match(r->server->options.routes, r->method, path, r->path_len, &r->match);
    if (r->match.route != NULL) return decode_params(r);
    if (r->match.allow[0] == '\0') {
        respond_status(r, 404, "there is nothing at this path; GET /openapi.yaml lists what there is");
    } else {
        respond_header(r, "Allow", "%s", r->match.allow);
        respond_status(r, 405, "this path knows %s", r->match.allow);
    }
    return false;
}

/* curl -d says application/x-www-form-urlencoded whatever it sends, so that and text are read as JSON too. */
static bool is_json_like(const char *type) {
    size_t len = strcspn(type, "; \t");
    if (len == 0) return true;
    if (len >= 5 && strncasecmp(type + len - 5, "+json", 5) == 0) return true;
    if (strncasecmp(type, "text/", 5) == 0) return true;
    static const char *const known[] = {"application/json", "application/x-www-form-urlencoded"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (len == strlen(known[i]) && strncasecmp(type, known[i], len) == 0) return true;
    }
    return false;
}

static bool check_content(struct request *r) {
    const char *encoding = request_header(r, "Content-Encoding");
    if (encoding != NULL && *encoding != '\0' && strcasecmp(encoding, "identity") != 0) {
        respond_status(r, 415, "bodies are read as they are: send this one without Content-Encoding");
        return false;
    }
    const char *type = request_header(r, "Content-Type");
    bool json = r->match.route->body_type == BODY_JSON || r->match.route->body_type == BODY_JSON_OPTIONAL;
    if (!json || type == NULL || is_json_like(type)) return true;
    respond_status(r, 415, "the body must be JSON (application/json)");
    return false;
}

/* Whether any of the route's media types is covered by Accept. */
static bool check_accept(struct request *r) {
    const char *accept = request_header(r, "Accept");
    if (accept == NULL || *accept == '\0') return true;
    const char *produces = r->match.route->produces;
    char type[64];
    for (const char *p = produces == NULL ? "application/json" : produces; *p != '\0';) {
        size_t len = strcspn(p, ",");
        snprintf(type, sizeof type, "%.*s", (int)len, p);
        if (request_accepts(r, type)) return true;
        char *subtype = strchr(type, '/') + 1;
        snprintf(subtype, sizeof type - (size_t)(subtype - type), "*");
        if (request_accepts(r, type)) return true;
        p += len;
        p += strspn(p, ", ");
    }
    if (request_accepts(r, "*/*")) return true;
    respond_status(r, 406, "this path answers with %s", produces == NULL ? "application/json" : produces);
    return false;
}

static bool check_length(struct request *r, const struct head *h) {
    enum body type = r->match.route->body_type;
    bool framed = h->n_content_length + h->n_transfer_encoding > 0;
    if (!framed && (type == BODY_JSON || type == BODY_STREAM)) {
        respond_status(r, 411, "a body is needed here: say its Content-Length, or send it chunked");
        return false;
    }
    int64_t limit = type == BODY_STREAM ? r->server->options.max_upload : r->server->options.max_json;
    if (r->content_length <= limit) return true;
    respond_status(r, 413, "the body has %lld bytes, more than the %lld allowed here", (long long)r->content_length,
                   (long long)limit);
    return false;
}

void head_check(struct request *r) {
    struct head h = {0};
    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, gather, &h);
    if (h.content_length != NULL) r->content_length = strtoll(h.content_length, NULL, 10);
    if (h.transfer_encoding != NULL) r->content_length = -1;
    split_target(r);
    const char *fault = framing_fault(&h);
    if (fault != NULL) {
        r->close = true;
        respond_status(r, 400, "%s", fault);
        return;
    }
    (void)(check_origin(r, &h) && check_route(r) && check_length(r, &h) && check_content(r) && check_accept(r));
}
