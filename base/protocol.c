#include "base/protocol.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/schema.h"
#include "base/utf8.h"

/* Not schema.h: messages borrow from their JSON instead of copying, carry arbitrary JSON, and are encoded too. */
enum member_type {
    MEMBER_STRING, /* const char *, borrowed from the root */
    MEMBER_BUFFER, /* char [size] */
    MEMBER_COUNT,  /* int64_t, >= 0 */
    MEMBER_REAL,   /* double */
    MEMBER_ANY,    /* json_t *, borrowed from the root */
    MEMBER_OBJECT,
    MEMBER_ARRAY,
    MEMBER_CACHE, /* enum cache_name */
    MEMBER_RC,    /* enum rc */
};

struct member {
    const char *name;
    enum member_type type;
    size_t offset; /* in struct message */
    bool required;
    size_t size; /* MEMBER_BUFFER */
};

static const char *const cache_names[] = {"drift", "fingerprint", NULL};

#define REQUIRED(name, type, field)                                                                                    \
    { name, type, offsetof(struct message, field), true, 0 }
#define OPTIONAL(name, type, field)                                                                                    \
    { name, type, offsetof(struct message, field), false, 0 }
#define BUFFER(name, field)                                                                                            \
    { name, MEMBER_BUFFER, offsetof(struct message, field), false, sizeof((struct message *)0)->field }

static const struct member start_members[] = {
    REQUIRED("job", MEMBER_STRING, start.job),           REQUIRED("attempt", MEMBER_COUNT, start.attempt),
    REQUIRED("spec", MEMBER_OBJECT, start.spec),         OPTIONAL("model", MEMBER_OBJECT, start.model),
    OPTIONAL("dataset", MEMBER_OBJECT, start.dataset),   OPTIONAL("calibration", MEMBER_OBJECT, start.calibration),
    OPTIONAL("artifact", MEMBER_OBJECT, start.artifact), OPTIONAL("inputs", MEMBER_OBJECT, start.inputs),
    OPTIONAL("rows", MEMBER_ARRAY, start.rows),          {0},
};
static const struct member cancel_members[] = {
    REQUIRED("job", MEMBER_STRING, cancel.job),
    {0},
};
static const struct member cached_members[] = {
    REQUIRED("entries", MEMBER_OBJECT, cached.entries),
    {0},
};
static const struct member no_members[] = {{0}};
static const struct member hello_members[] = {
    REQUIRED("version", MEMBER_COUNT, hello.version),        REQUIRED("pid", MEMBER_COUNT, hello.pid),
    REQUIRED("build", MEMBER_STRING, hello.build),           REQUIRED("device", MEMBER_STRING, hello.device),
    REQUIRED("arithmetic", MEMBER_STRING, hello.arithmetic), REQUIRED("hardware", MEMBER_STRING, hello.hardware),
    REQUIRED("memory", MEMBER_COUNT, hello.memory),          {0},
};
static const struct member progress_members[] = {
    REQUIRED("job", MEMBER_STRING, progress.job),
    REQUIRED("phase", MEMBER_STRING, progress.phase),
    REQUIRED("unit", MEMBER_STRING, progress.unit),
    REQUIRED("done", MEMBER_COUNT, progress.done),
    REQUIRED("total", MEMBER_COUNT, progress.total),
    OPTIONAL("rate", MEMBER_REAL, progress.rate),
    OPTIONAL("eta_seconds", MEMBER_REAL, progress.eta_seconds),
    {0},
};
static const struct member row_members[] = {
    REQUIRED("job", MEMBER_STRING, row.job),
    REQUIRED("phase", MEMBER_STRING, row.phase),
    REQUIRED("index", MEMBER_COUNT, row.index),
    REQUIRED("data", MEMBER_ANY, row.data),
    OPTIONAL("cache_key", MEMBER_STRING, row.cache_key),
    {0},
};
static const struct member lookup_members[] = {
    REQUIRED("cache", MEMBER_CACHE, lookup.cache),
    REQUIRED("keys", MEMBER_ARRAY, lookup.keys),
    {0},
};
static const struct member store_members[] = {
    REQUIRED("cache", MEMBER_CACHE, store.cache),
    REQUIRED("key", MEMBER_STRING, store.key),
    OPTIONAL("model", MEMBER_STRING, store.model),
    REQUIRED("data", MEMBER_ANY, store.data),
    {0},
};
static const struct member result_members[] = {
    REQUIRED("job", MEMBER_STRING, result.job),
    REQUIRED("result", MEMBER_OBJECT, result.result),
    {0},
};
static const struct member error_members[] = {
    REQUIRED("job", MEMBER_STRING, error.job),
    REQUIRED("code", MEMBER_RC, error.err.rc),
    BUFFER("pointer", error.err.pointer),
    BUFFER("message", error.err.message),
    {0},
};
static const struct member log_members[] = {
    REQUIRED("level", MEMBER_STRING, log.level),
    REQUIRED("text", MEMBER_STRING, log.text),
    {0},
};

const char *const message_names[] = {
    [MSG_START] = "start",       [MSG_CANCEL] = "cancel",       [MSG_CACHED] = "cached", [MSG_HELLO] = "hello",
    [MSG_SHUTDOWN] = "shutdown", [MSG_HEARTBEAT] = "heartbeat", [MSG_ROW] = "row",       [MSG_PROGRESS] = "progress",
    [MSG_LOOKUP] = "lookup",     [MSG_STORE] = "store",         [MSG_RESULT] = "result", [MSG_ERROR] = "error",
    [MSG_LOG] = "log",           [MSG_LOG + 1] = NULL,
};

static const struct member *const members_of[] = {
    [MSG_START] = start_members, [MSG_CANCEL] = cancel_members,     [MSG_CACHED] = cached_members,
    [MSG_HELLO] = hello_members, [MSG_SHUTDOWN] = no_members,       [MSG_HEARTBEAT] = no_members,
    [MSG_ROW] = row_members,     [MSG_PROGRESS] = progress_members, [MSG_LOOKUP] = lookup_members,
    [MSG_STORE] = store_members, [MSG_RESULT] = result_members,     [MSG_ERROR] = error_members,
    [MSG_LOG] = log_members,
};

/* What JSON a member must be, in words; NULL when it is that. */
static const char *wants(enum member_type type, const json_t *value) {
    switch (type) {
    case MEMBER_STRING:
    case MEMBER_BUFFER: return json_is_string(value) ? NULL : "a string";
    case MEMBER_COUNT: return json_is_integer(value) && json_integer_value(value) >= 0 ? NULL : "an integer, 0 or more";
    case MEMBER_REAL: return json_is_number(value) ? NULL : "a number";
    case MEMBER_ANY: return NULL;
    case MEMBER_OBJECT: return json_is_object(value) ? NULL : "an object";
    case MEMBER_ARRAY: return json_is_array(value) ? NULL : "an array";
    case MEMBER_CACHE:
        return json_is_string(value) && name_index(cache_names, json_string_value(value)) >= 0
                   ? NULL
                   : "\"drift\" or \"fingerprint\"";
    case MEMBER_RC:
        return json_is_string(value) && strcmp(json_string_value(value), rc_name(RC_OK)) != 0 ? NULL
                                                                                              : "the name of an error";
    }
    return NULL;
}

static void load(const struct member *member, json_t *value, struct message *m) {
    void *into = (char *)m + member->offset;
    switch (member->type) {
    case MEMBER_STRING: *(const char **)into = json_string_value(value); break;
    case MEMBER_BUFFER:
        snprintf(into, member->size, "%s", json_string_value(value));
        utf8_repair(into);
        break;
    case MEMBER_COUNT: *(int64_t *)into = json_integer_value(value); break;
    case MEMBER_REAL: *(double *)into = json_number_value(value); break;
    case MEMBER_ANY:
    case MEMBER_OBJECT:
    case MEMBER_ARRAY: *(json_t **)into = value; break;
    case MEMBER_CACHE:
        *(enum cache_name *)into = (enum cache_name)name_index(cache_names, json_string_value(value));
        break;
    case MEMBER_RC: *(enum rc *)into = rc_from_name(json_string_value(value)); break;
    }
}

static enum rc load_members(const struct member *members, struct message *m, struct err *e) {
    for (const struct member *member = members; member->name != NULL; member++) {
        json_t *value = json_object_get(m->root, member->name);
        const char *type = message_names[m->type];
        if (json_is_null(value) && member->type != MEMBER_ANY) value = NULL;
        if (value == NULL && member->required)
            return err_set(e, RC_INVALID, "message '%s' lacks '%s'", type, member->name);
        if (value == NULL) continue;
        const char *wanted = wants(member->type, value);
        if (wanted != NULL)
            return err_set(e, RC_INVALID, "'%s' of message '%s' must be %s", member->name, type, wanted);
        load(member, value, m);
    }
    return RC_OK;
}

static enum rc load_message(struct message *m, struct err *e) {
    const char *type = json_string_value(json_object_get(m->root, "type"));
    int index = type != NULL ? name_index(message_names, type) : -1;
    if (index < 0) return err_set(e, RC_INVALID, "'%.40s' is no message of this protocol", type != NULL ? type : "");
    m->type = (enum message_type)index;
    if (m->type == MSG_PROGRESS) m->progress.eta_seconds = -1;
    return load_members(members_of[index], m, e);
}

enum rc message_decode(const char *line, size_t len, struct message *m, struct err *e) {
    *m = (struct message){0};
    if (len > PROTOCOL_LINE_MAX) return err_set(e, RC_TOO_LARGE, "a message of %zu bytes is too long", len);
    TRY(json_parse(line, len, &m->root, e));
    enum rc rc = load_message(m, e);
    if (rc != RC_OK) message_release(m);
    return rc;
}

void message_release(struct message *m) {
    json_decref(m->root);
    *m = (struct message){0};
}

static json_t *dump_text(const char *text) {
    json_t *value = text != NULL ? json_string(text) : NULL;
    if (value != NULL || text == NULL) return value;
    char *repaired = utf8_repair(xstrdup(text));
    value = json_string(repaired);
    free(repaired);
    return value;
}

static json_t *dump(const struct member *member, const struct message *m) {
    const void *from = (const char *)m + member->offset;
    switch (member->type) {
    case MEMBER_STRING: return dump_text(*(const char *const *)from);
    case MEMBER_BUFFER: return dump_text(from);
    case MEMBER_COUNT: return json_integer(*(const int64_t *)from);
    case MEMBER_REAL: return json_real(*(const double *)from); /* NULL when not finite */
    case MEMBER_ANY:
    case MEMBER_OBJECT:
    case MEMBER_ARRAY: return json_incref(*(json_t *const *)from);
    case MEMBER_CACHE: return json_string(cache_names[*(const enum cache_name *)from]);
    case MEMBER_RC: return json_string(rc_name(*(const enum rc *)from));
    }
    return NULL;
}

char *message_encode(const struct message *m) {
    json_t *root = json_object();
    json_object_set_new(root, "type", json_string(message_names[m->type]));
    for (const struct member *member = members_of[m->type]; member->name != NULL; member++) {
        json_t *value = dump(member, m);
        if (value != NULL) json_object_set_new(root, member->name, value);
    }
    char *line = json_line(root);
    json_decref(root);
    if (line == NULL) return NULL;
    size_t len = strlen(line);
    line = xrealloc(line, len + 2);
    memcpy(line + len, "\n", 2);
    return line;
}
