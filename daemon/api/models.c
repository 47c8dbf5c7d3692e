/* /v1/models: what lies beneath the --models roots, and what the worker says about it. */
#include "daemon/models.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "daemon/api/routes.h"
#include "daemon/app.h"
#include "daemon/http/response.h"
#include "daemon/jobs/probe.h"

enum { TEXT_MAX = 1 << 20 };

/* A folder may be called anything, a path may not. */
static void append_escaped(struct strbuf *out, const char *name) {
    for (; *name; name++) {
        unsigned char c = (unsigned char)*name;
        strbuf_printf(out, isalnum(c) || strchr("-._~/", c) ? "%c" : "%%%02X", c);
    }
}

static json_t *links(const char *name) {
    struct strbuf self = STRBUF_INIT;
    strbuf_puts(&self, "/v1/models/");
    append_escaped(&self, name);
    json_t *json = json_pack("{s:s}", "self", self.data);
    strbuf_release(&self);
    return json;
}

static void append_model(void *ctx, const char *name, const char *path) {
    (void)path;
    json_t *item = json_pack("{s:s, s:o}", "name", name, "links", links(name));
    if (item != NULL) json_array_append_new(ctx, item);
}

static enum rc list_models(struct request *r, struct err *e) {
    json_t *items = json_array();
    enum rc rc = model_list(&request_app(r)->models, append_model, items, e);
    if (rc != RC_OK) {
        json_decref(items);
        return rc;
    }
    respond_json(r, 200, json_pack("{s:o, s:n}", "items", items, "next"));
    return RC_OK;
}

/* A request that waits for a probe. */
struct question {
    struct request *request;
    struct probe *probe;
    struct app *app;
    char *key; /* under which the answer is kept, or NULL */
};

static void question_free(struct question *q) {
    free(q->key);
    free(q);
}

static void on_cancel(struct request *r, void *data) {
    struct question *q = data;
    (void)r;
    probe_cancel(q->probe);
    question_free(q);
}

static void answer_text(struct request *r, const char *text) {
    respond_json_text(r, 200, xasprintf("%s\n", text), strlen(text) + 1);
}

static void on_answer(void *ctx, const json_t *answer, const struct err *e) {
    struct question *q = ctx;
    char *text = answer == NULL ? NULL : json_line(answer);
    if (text == NULL) {
        respond_error(q->request, e);
    } else {
        if (q->key != NULL) probes_keep(q->app->probes, q->key, text);
        answer_text(q->request, text);
    }
    free(text);
    question_free(q);
}

static enum rc ask(struct request *r, const char *command, json_t *message, char *key, struct err *e) {
    struct question *q = xcalloc(1, sizeof *q);
    *q = (struct question){.request = r, .app = request_app(r), .key = key};
    enum rc rc = probe_start(q->app->probes, command, message, on_answer, q, &q->probe, e);
    if (rc != RC_OK) {
        question_free(q);
        return rc;
    }
    request_defer(r, &(struct deferral){.cancel = on_cancel, .data = q});
    return RC_OK;
}

static enum rc inspect(struct request *r, const char *name, const char *path, struct err *e) {
    char stamp[MODEL_STAMP_SIZE];
    TRY(model_stamp(path, stamp, e));
    char *etag = xasprintf("\"%s\"", stamp);
    bool known = respond_not_modified(r, etag);
    free(etag);
    if (known) return RC_OK;
    char *key = xasprintf("%s %s", stamp, path);
    const char *kept = probes_recall(request_app(r)->probes, key);
    if (kept == NULL)
        return ask(r, "inspect", json_pack("{s:{s:s, s:s}}", "model", "name", name, "path", path), key, e);
    answer_text(r, kept);
    free(key);
    return RC_OK;
}

static enum rc get_model(struct request *r, struct err *e) {
    const char *name = request_param(r, "name");
    char *path;
    TRY(model_find(&request_app(r)->models, name, &path, e));
    enum rc rc = inspect(r, name, path, e);
    free(path);
    return rc;
}

struct tokenize {
    const char *text;
    bool special_tokens;
};
static void tokenize_defaults(void *object) {
    ((struct tokenize *)object)->special_tokens = true;
}
static const struct field tokenize_fields[] = {
    {.name = "text",
     .type = FIELD_STRING,
     .offset = offsetof(struct tokenize, text),
     .required = true,
     .min = 0,
     .max = TEXT_MAX},
    {.name = "special_tokens", .type = FIELD_BOOL, .offset = offsetof(struct tokenize, special_tokens)},
    {0},
};
static const struct schema tokenize_schema = {
    .name = "tokenize", .fields = tokenize_fields, .size = sizeof(struct tokenize), .defaults = tokenize_defaults};

static enum rc tokenize(struct request *r, struct err *e) {
    const char *name = request_param(r, "name");
    struct tokenize body;
    char *path;
    TRY(request_decode_body(r, &body, e));
    TRY(model_find(&request_app(r)->models, name, &path, e));
    json_t *message = json_pack("{s:{s:s, s:s}, s:s, s:b}", "model", "name", name, "path", path, "text", body.text,
                                "special_tokens", body.special_tokens);
    free(path);
    return ask(r, "tokenize", message, NULL, e);
}

const struct route models_routes[] = {
    {.method = "GET", .pattern = "/v1/models", .id = "listModels", .handler = list_models},
    {.method = "GET", .pattern = "/v1/models/{name*}", .id = "getModel", .handler = get_model},
    {.method = "POST",
     .pattern = "/v1/models/{name*}/tokenize",
     .id = "tokenize",
     .handler = tokenize,
     .body_type = BODY_JSON,
     .body = &tokenize_schema},
    {0},
};
