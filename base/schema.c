#define PCRE2_CODE_UNIT_WIDTH 8
#include "base/schema.h"

#include <pcre2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/sizes.h"
#include "base/strbuf.h"
#include "base/utf8.h"

enum { STRING_MAX = 255, LIST_MAX = 1024 };

static void decode_object(const struct schema *schema, const json_t *value, void *object, struct decode *d);

/* --- Faults and places --- */

static void record(struct decode *d, const char *member, const char *fmt, va_list ap) {
    struct problems *p = d->problems;
    if (p->count++ >= PROBLEMS_MAX) return;
    struct problem *problem = &p->items[p->count - 1];
    snprintf(problem->pointer, sizeof problem->pointer, "%s", d->pointer);
    if (member != NULL) json_pointer_push_key(problem->pointer, sizeof problem->pointer, member);
    vsnprintf(problem->detail, sizeof problem->detail, fmt, ap);
    utf8_repair(problem->detail);
}

void problem_here(struct decode *d, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    record(d, NULL, fmt, ap);
    va_end(ap);
}

void problem_at(struct decode *d, const char *member, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    record(d, member, fmt, ap);
    va_end(ap);
}

size_t decode_enter(struct decode *d, const char *member) {
    size_t mark = strlen(d->pointer);
    json_pointer_push_key(d->pointer, sizeof d->pointer, member);
    return mark;
}

size_t decode_enter_index(struct decode *d, size_t index) {
    size_t mark = strlen(d->pointer);
    json_pointer_push_index(d->pointer, sizeof d->pointer, index);
    return mark;
}

void decode_leave(struct decode *d, size_t mark) {
    d->pointer[mark] = '\0';
}

size_t decode_faults(const struct decode *d) {
    return d->problems->count;
}

int name_index(const char *const *names, const char *name) {
    for (int i = 0; names != NULL && names[i] != NULL; i++)
        if (strcmp(names[i], name) == 0) return i;
    return -1;
}

static void append_names(struct strbuf *text, const char *const *names) {
    for (size_t i = 0; names[i] != NULL; i++)
        strbuf_printf(text, "%s%s", i ? ", " : "", names[i]);
}

static void refuse_name(struct decode *d, const char *name, const char *const *values, const char *what) {
    struct strbuf known = STRBUF_INIT;
    append_names(&known, values);
    problem_here(d, "'%.60s' is %s; use one of: %s", name, what, known.data);
    strbuf_release(&known);
}

void problem_name(struct decode *d, const char *name, const char *const *values, const char *const *planned) {
    bool later = name_index(planned, name) >= 0;
    refuse_name(d, name, values, later ? "not available in this version" : "not known here");
}

static void problem_value(struct decode *d, const struct field *f, const char *name) {
    bool elsewhere = f->planned_is != NULL && name_index(f->planned, name) >= 0;
    if (elsewhere)
        refuse_name(d, name, f->values, f->planned_is);
    else
        problem_name(d, name, f->values, f->planned);
}

static void wrong_type(struct decode *d, const char *expected, const json_t *value) {
    problem_here(d, "must be %s, not %s", expected, json_type_name(value));
}

/* --- One decoder a type --- */

static bool check_range(const struct field *f, double value, struct decode *d) {
    if ((f->min == 0 && f->max == 0) || (value >= f->min && value <= f->max)) return true;
    /* Enough for the largest bound, 2^53 − 1, and few enough for 1e-06 to be that. */
    problem_here(d, "must be between %.16g and %.16g", f->min, f->max);
    return false;
}

static const char *decode_text(const json_t *value, double min, double max, struct decode *d) {
    if (!json_is_string(value)) {
        wrong_type(d, "a string", value);
        return NULL;
    }
    size_t len = json_string_length(value), limit = max > 0 ? (size_t)max : STRING_MAX;
    if (len < (size_t)min) {
        problem_here(d, len == 0 ? "must not be empty" : "must have at least %zu bytes", (size_t)min);
        return NULL;
    }
    if (len > limit) {
        problem_here(d, "has %zu bytes; at most %zu are allowed", len, limit);
        return NULL;
    }
    if (strlen(json_string_value(value)) != len) {
        problem_here(d, "must not contain \\u0000");
        return NULL;
    }
    return arena_strdup(d->arena, json_string_value(value));
}

static void decode_string(const struct field *f, const json_t *value, void *member, struct decode *d) {
    const char *text = decode_text(value, f->min, f->max, d);
    if (text != NULL && f->values != NULL && name_index(f->values, text) < 0) problem_value(d, f, text);
    *(const char **)member = text;
}

static void decode_regex(const struct field *f, const json_t *value, void *member, struct decode *d) {
    const char *text = decode_text(value, f->min, f->max, d);
    if (text == NULL) return;
    int code;
    PCRE2_SIZE offset;
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &offset, NULL);
    if (regex == NULL) {
        char reason[120] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
        problem_here(d, "is no regular expression: %s at offset %zu", reason, (size_t)offset);
    }
    pcre2_code_free(regex);
    *(const char **)member = text;
}

static void decode_int(const struct field *f, const json_t *value, void *member, struct decode *d) {
    if (!json_is_integer(value))
        wrong_type(d, "an integer", value);
    else if (check_range(f, (double)json_integer_value(value), d))
        *(int64_t *)member = json_integer_value(value);
}

static void decode_number(const struct field *f, const json_t *value, void *member, struct decode *d) {
    if (!json_is_number(value))
        wrong_type(d, "a number", value);
    else if (check_range(f, json_number_value(value), d))
        *(double *)member = json_number_value(value);
}

static void decode_bool(const struct field *f, const json_t *value, void *member, struct decode *d) {
    (void)f;
    if (!json_is_boolean(value))
        wrong_type(d, "true or false", value);
    else
        *(bool *)member = json_is_true(value);
}

static void decode_bytes(const struct field *f, const json_t *value, void *member, struct decode *d) {
    int64_t bytes = 0;
    struct err e;
    if (json_is_integer(value)) {
        bytes = json_integer_value(value);
    } else if (!json_is_string(value)) {
        wrong_type(d, "a byte size (an integer, or a string such as \"12GiB\")", value);
        return;
    } else if (size_parse(json_string_value(value), &bytes, &e) != RC_OK) {
        problem_here(d, "%s", e.message);
        return;
    }
    if (check_range(f, (double)bytes, d)) *(int64_t *)member = bytes;
}

static void decode_enum(const struct field *f, const json_t *value, void *member, struct decode *d) {
    if (!json_is_string(value)) {
        wrong_type(d, "a string", value);
        return;
    }
    int index = name_index(f->values, json_string_value(value));
    if (index < 0)
        problem_value(d, f, json_string_value(value));
    else
        *(int *)member = index;
}

static void decode_nested(const struct field *f, const json_t *value, void *member, struct decode *d) {
    void *object = arena_alloc(d->arena, f->schema->size);
    decode_object(f->schema, value, object, d);
    *(void **)member = object;
}

/* Room for the elements of an array, or NULL after recording why not. */
static struct list *begin_list(const struct field *f, const json_t *value, void *member, size_t size,
                               struct decode *d) {
    if (!json_is_array(value)) {
        wrong_type(d, "an array", value);
        return NULL;
    }
    size_t count = json_array_size(value), limit = f->max > 0 ? (size_t)f->max : LIST_MAX;
    if (count < (size_t)f->min || count > limit) {
        problem_here(d, "has %zu elements; it must have %zu to %zu", count, (size_t)f->min, limit);
        return NULL;
    }
    struct list *list = member;
    *list = (struct list){.items = arena_alloc(d->arena, count * size), .count = count};
    return list;
}

static void decode_objects(const struct field *f, const json_t *value, void *member, struct decode *d) {
    struct list *list = begin_list(f, value, member, f->schema->size, d);
    for (size_t i = 0; list != NULL && i < list->count; i++) {
        size_t mark = decode_enter_index(d, i);
        decode_object(f->schema, json_array_get(value, i), (char *)list->items + i * f->schema->size, d);
        decode_leave(d, mark);
    }
}

static void decode_strings(const struct field *f, const json_t *value, void *member, struct decode *d) {
    const struct field element = {.min = 1, .values = f->values, .planned = f->planned, .planned_is = f->planned_is};
    struct list *list = begin_list(f, value, member, sizeof(const char *), d);
    for (size_t i = 0; list != NULL && i < list->count; i++) {
        size_t mark = decode_enter_index(d, i);
        decode_string(&element, json_array_get(value, i), (const char **)list->items + i, d);
        decode_leave(d, mark);
    }
}

static void decode_custom(const struct field *f, const json_t *value, void *member, struct decode *d) {
    f->decode(value, member, d);
}

static void (*const decoders[])(const struct field *, const json_t *, void *, struct decode *) = {
    [FIELD_STRING] = decode_string,   [FIELD_REGEX] = decode_regex,   [FIELD_INT] = decode_int,
    [FIELD_NUMBER] = decode_number,   [FIELD_BOOL] = decode_bool,     [FIELD_BYTES] = decode_bytes,
    [FIELD_ENUM] = decode_enum,       [FIELD_OBJECT] = decode_nested, [FIELD_OBJECTS] = decode_objects,
    [FIELD_STRINGS] = decode_strings, [FIELD_CUSTOM] = decode_custom,
};

/* --- Objects --- */

static const struct field *find_field(const struct schema *schema, const char *name) {
    for (const struct field *f = schema->fields; f->name != NULL; f++)
        if (strcmp(f->name, name) == 0) return f;
    return NULL;
}

static void refuse_unknown(const struct schema *schema, const json_t *value, struct decode *d) {
    struct strbuf known = STRBUF_INIT;
    for (const struct field *f = schema->fields; f->name != NULL; f++)
        strbuf_printf(&known, "%s%s", f == schema->fields ? "" : ", ", f->name);
    const char *name;
    json_t *ignored;
    json_object_foreach((json_t *)value, name, ignored) {
        if (find_field(schema, name) == NULL)
            problem_at(d, name, "unknown member; %s takes: %s", schema->name, known.data ? known.data : "none");
    }
    strbuf_release(&known);
}

static void decode_field(const struct field *f, const json_t *object, void *into, struct decode *d) {
    const json_t *value = json_object_get(object, f->name);
    if (value == NULL || json_is_null(value)) {
        if (f->required) problem_at(d, f->name, "is required");
        return;
    }
    size_t mark = decode_enter(d, f->name);
    decoders[f->type](f, value, (char *)into + f->offset, d);
    if (f->presence != 0) *(bool *)((char *)into + f->presence - 1) = true;
    decode_leave(d, mark);
}

static void decode_object(const struct schema *schema, const json_t *value, void *object, struct decode *d) {
    size_t before = decode_faults(d);
    memset(object, 0, schema->size);
    if (schema->defaults != NULL) schema->defaults(object);
    if (!json_is_object(value)) {
        wrong_type(d, "an object", value);
        return;
    }
    for (const struct field *f = schema->fields; f->name != NULL; f++)
        decode_field(f, value, object, d);
    refuse_unknown(schema, value, d);
    if (schema->check != NULL && decode_faults(d) == before) schema->check(object, d);
}

enum rc schema_decode(const struct schema *schema, const json_t *value, void *object, struct arena *arena,
                      struct problems *problems, struct err *e) {
    struct problems own = {0};
    struct decode d = {.arena = arena, .problems = problems != NULL ? problems : &own};
    size_t before = decode_faults(&d);
    decode_object(schema, value, object, &d);
    if (decode_faults(&d) == before) return RC_OK;
    const struct problem *first = &d.problems->items[before < PROBLEMS_MAX ? before : 0];
    return err_at(e, first->pointer, RC_INVALID, "%s", first->detail);
}

/* --- JSON Schema --- */

static json_t *name_array(const char *const *names) {
    json_t *array = json_array();
    for (size_t i = 0; names[i] != NULL; i++)
        json_array_append_new(array, json_string(names[i]));
    return array;
}

static json_t *typed(const char *type) {
    return json_pack("{s:s}", "type", type);
}

static json_t *bound(const char *low, double min, const char *high, double max, json_t *schema) {
    if (min > 0) json_object_set_new(schema, low, json_integer((json_int_t)min));
    json_object_set_new(schema, high, json_integer((json_int_t)max));
    return schema;
}

static json_t *ranged(const struct field *f, json_t *schema) {
    if (f->min == 0 && f->max == 0) return schema;
    bool whole = f->type != FIELD_NUMBER;
    json_object_set_new(schema, "minimum", whole ? json_integer((json_int_t)f->min) : json_real(f->min));
    json_object_set_new(schema, "maximum", whole ? json_integer((json_int_t)f->max) : json_real(f->max));
    return schema;
}

static json_t *describe_string(const struct field *f) {
    if (f->values != NULL) return json_pack("{s:s, s:o}", "type", "string", "enum", name_array(f->values));
    json_t *schema = bound("minLength", f->min, "maxLength", f->max > 0 ? f->max : STRING_MAX, typed("string"));
    if (f->type == FIELD_REGEX) json_object_set_new(schema, "format", json_string("regex"));
    return schema;
}

static json_t *describe_number(const struct field *f) {
    return ranged(f, typed(f->type == FIELD_INT ? "integer" : "number"));
}

static json_t *describe_bool(const struct field *f) {
    (void)f;
    return typed("boolean");
}

static json_t *describe_bytes(const struct field *f) {
    json_t *text = json_pack("{s:s, s:[s]}", "type", "string", "examples", "12GiB");
    return json_pack("{s:[o, o]}", "anyOf", ranged(f, typed("integer")), text);
}

static json_t *describe_object(const struct field *f) {
    return schema_describe(f->schema);
}

static json_t *describe_list(const struct field *f) {
    const struct field element = {.min = 1, .values = f->values};
    json_t *items = f->type == FIELD_OBJECTS ? schema_describe(f->schema) : describe_string(&element);
    json_t *schema = json_pack("{s:s, s:o}", "type", "array", "items", items);
    return bound("minItems", f->min, "maxItems", f->max > 0 ? f->max : LIST_MAX, schema);
}

static json_t *describe_custom(const struct field *f) {
    return f->describe();
}

static json_t *(*const describers[])(const struct field *) = {
    [FIELD_STRING] = describe_string, [FIELD_REGEX] = describe_string,  [FIELD_INT] = describe_number,
    [FIELD_NUMBER] = describe_number, [FIELD_BOOL] = describe_bool,     [FIELD_BYTES] = describe_bytes,
    [FIELD_ENUM] = describe_string,   [FIELD_OBJECT] = describe_object, [FIELD_OBJECTS] = describe_list,
    [FIELD_STRINGS] = describe_list,  [FIELD_CUSTOM] = describe_custom,
};

/* What an absent member means, from the struct that `defaults` fills; NULL when absence itself has a meaning. */
static json_t *default_of(const struct field *f, const void *object) {
    const void *member = (const char *)object + f->offset;
    if (f->required || f->presence != 0) return NULL;
    switch (f->type) {
    case FIELD_BOOL: return json_boolean(*(const bool *)member);
    case FIELD_ENUM: return json_string(f->values[*(const int *)member]);
    case FIELD_NUMBER: return json_real(*(const double *)member);
    case FIELD_INT:
    case FIELD_BYTES: {
        int64_t value = *(const int64_t *)member;
        bool allowed = (f->min == 0 && f->max == 0) || (double)value >= f->min;
        return allowed ? json_integer(value) : NULL; /* out of its range: settled by the schema's check */
    }
    default: return NULL;
    }
}

json_t *schema_describe(const struct schema *schema) {
    json_t *properties = json_object(), *required = json_array();
    void *object = xcalloc(1, schema->size);
    if (schema->defaults != NULL) schema->defaults(object);
    for (const struct field *f = schema->fields; f->name != NULL; f++) {
        json_t *described = describers[f->type](f);
        json_object_set_new(described, "default", default_of(f, object));
        json_object_set_new(properties, f->name, described);
        if (f->required) json_array_append_new(required, json_string(f->name));
    }
    free(object);
    return json_pack("{s:s, s:s, s:o, s:o, s:b}", "title", schema->name, "type", "object", "properties", properties,
                     "required", required, "additionalProperties", 0);
}
