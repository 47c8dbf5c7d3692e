#include "daemon/http/problem.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/strbuf.h"

static const struct {
    int status;
    const char *reason;
} reasons[] = {
    {200, "OK"},
    {201, "Created"},
    {202, "Accepted"},
    {204, "No Content"},
    {304, "Not Modified"},
    {400, "Bad Request"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {406, "Not Acceptable"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {411, "Length Required"},
    {413, "Content Too Large"},
    {415, "Unsupported Media Type"},
    {417, "Expectation Failed"},
    {421, "Misdirected Request"},
    {422, "Unprocessable Content"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {503, "Service Unavailable"},
    {507, "Insufficient Storage"},
};

const char *http_reason(int status) {
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        if (reasons[i].status == status) return reasons[i].reason;
    }
    return "Error";
}

/* Messages may quote hostile input; jansson refuses what is not UTF-8. */
static json_t *text_json(const char *text) {
    json_t *value = json_string(text);
    return value != NULL ? value : json_string("(the message quotes text that is not UTF-8)");
}

static json_t *error_item(const char *pointer, const char *detail) {
    return json_pack("{s:o, s:o}", "pointer", text_json(pointer), "detail", text_json(detail));
}

/* In one line for who reads no further: where, what, and that it was not all. */
static json_t *detail_json(const struct err *e, size_t faults) {
    struct strbuf line = STRBUF_INIT;
    strbuf_printf(&line, "%s%s%s", e->pointer, e->pointer[0] != '\0' ? ": " : "", e->message);
    if (faults > 1) strbuf_printf(&line, " (and %zu more; see errors)", faults - 1);
    json_t *detail = text_json(line.data);
    strbuf_release(&line);
    return detail;
}

json_t *problem_json(int status, const struct err *e, const struct problems *problems, const char *instance) {
    json_t *errors = json_array();
    size_t count = problems == NULL ? 0 : problems->count < PROBLEMS_MAX ? problems->count : PROBLEMS_MAX;
    for (size_t i = 0; i < count; i++)
        json_array_append_new(errors, error_item(problems->items[i].pointer, problems->items[i].detail));
    if (count == 0 && e->pointer[0] != '\0') json_array_append_new(errors, error_item(e->pointer, e->message));

    bool ours = e->rc != RC_OK && rc_http_status(e->rc) == status;
    char *type = ours ? xasprintf("urn:hsaqd:%s", rc_name(e->rc)) : xstrdup("about:blank");
    json_t *problem = json_pack(
        "{s:s, s:s, s:i, s:o, s:o, s:o}", "type", type, "title", ours ? rc_text(e->rc) : http_reason(status), "status",
        status, "detail", detail_json(e, json_array_size(errors)), "instance", text_json(instance), "errors", errors);
    free(type);
    return problem;
}
