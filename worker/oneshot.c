#include "worker/oneshot.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/strbuf.h"
#include "worker/devices.h"
#include "worker/model/describe.h"
#include "worker/model/tokenizer.h"

enum { REQUEST_MAX = 64 << 20 };

static enum rc read_request(FILE *in, json_t **request, struct err *e) {
    struct strbuf text = STRBUF_INIT;
    char chunk[65536];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, in)) > 0 && text.len <= REQUEST_MAX;)
        strbuf_append(&text, chunk, n);
    enum rc rc = ferror(in)               ? err_errno(e, "cannot read the request")
                 : text.len > REQUEST_MAX ? err_set(e, RC_TOO_LARGE, "a request takes at most %d bytes", REQUEST_MAX)
                                          : json_parse(text.data ? text.data : "", text.len, request, e);
    strbuf_release(&text);
    return rc;
}

static json_t *ids_json(const int32_t *ids, size_t count) {
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return json_pack("{so}", "ids", list);
}

static enum rc tokenize(const struct model *model, const json_t *request, json_t **reply, struct err *e) {
    const json_t *text = json_object_get(request, "text");
    bool special_tokens = true;
    TRY(json_get_bool(request, "special_tokens", &special_tokens, e));
    if (!json_is_string(text)) return err_at(e, "/text", RC_INVALID, "text must be a string");
    struct tokenizer *tokenizer;
    int32_t *ids = NULL;
    size_t count = 0;
    TRY(tokenizer_load(model->dir_fd, &tokenizer, e));
    enum rc rc =
        tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), special_tokens, &ids, &count, e);
    if (rc == RC_OK) *reply = ids_json(ids, count);
    free(ids);
    tokenizer_free(tokenizer);
    return rc;
}

static enum rc answer(enum oneshot_command command, const json_t *request, json_t **reply, struct err *e) {
    const json_t *place = json_object_get(request, "model");
    const char *name = NULL, *path = NULL;
    TRY(json_get_string(place, "name", &name, e));
    TRY(json_get_string(place, "path", &path, e));
    if (!name || !path) return err_at(e, "/model", RC_INVALID, "model must be {\"name\", \"path\"}");
    struct model *model;
    TRY(model_open(name, path, &model, e));
    enum rc rc = RC_OK;
    if (command == ONESHOT_INSPECT)
        *reply = model_describe(model);
    else
        rc = tokenize(model, request, reply, e);
    model_close(model);
    return rc;
}

static enum rc read_and_answer(enum oneshot_command command, FILE *in, json_t **reply, struct err *e) {
    json_t *request = NULL;
    enum rc rc = read_request(in, &request, e);
    if (rc == RC_OK) rc = answer(command, request, reply, e);
    json_decref(request);
    return rc;
}

enum rc oneshot(enum oneshot_command command, FILE *in, FILE *out, struct err *e) {
    json_t *reply = NULL;
    struct err fault = {0};
    enum rc rc = RC_OK;
    if (command == ONESHOT_DEVICES)
        reply = devices_describe();
    else
        rc = read_and_answer(command, in, &reply, &fault);
    json_t *envelope = rc == RC_OK ? json_pack("{so}", "ok", reply)
                                   : json_pack("{s{ss ss ss}}", "error", "rc", rc_name(rc), "message", fault.message,
                                               "pointer", fault.pointer);
    char *line = json_line(envelope);
    json_decref(envelope);
    bool written = line && fprintf(out, "%s\n", line) > 0 && fflush(out) == 0;
    free(line);
    return written ? RC_OK : err_errno(e, "cannot write the reply");
}
