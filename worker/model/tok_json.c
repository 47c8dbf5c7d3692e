#include "worker/model/tok_json.h"

#include <string.h>

struct tok_place tok_member(const struct tok_place *p, const char *key) {
    struct tok_place place = *p;
    place.value = json_object_get(p->value, key);
    if (json_is_null(place.value)) place.value = NULL;
    json_pointer_push_key(place.pointer, sizeof place.pointer, key);
    return place;
}

struct tok_place tok_item(const struct tok_place *p, size_t index) {
    struct tok_place place = *p;
    place.value = json_array_get(p->value, index);
    json_pointer_push_index(place.pointer, sizeof place.pointer, index);
    return place;
}

enum rc tok_want(const struct tok_place *p, const char *wanted, struct err *e) {
    return err_at(e, p->pointer, RC_INVALID, "tokenizer.json: %.100s must be %s%s", p->pointer[0] ? p->pointer : "it",
                  wanted, p->value == NULL ? ", but is missing" : "");
}

enum rc tok_want_object(const struct tok_place *p, struct err *e) {
    return json_is_object(p->value) ? RC_OK : tok_want(p, "an object", e);
}

enum rc tok_want_array(const struct tok_place *p, struct err *e) {
    return json_is_array(p->value) ? RC_OK : tok_want(p, "an array", e);
}

enum rc tok_string(const struct tok_place *p, const char *key, const char **text, size_t *len, struct err *e) {
    struct tok_place member = tok_member(p, key);
    if (!json_is_string(member.value)) return tok_want(&member, "a string", e);
    *text = json_string_value(member.value);
    *len = json_string_length(member.value);
    return RC_OK;
}

enum rc tok_bool(const struct tok_place *p, const char *key, bool *out, struct err *e) {
    struct tok_place member = tok_member(p, key);
    if (member.value == NULL) return RC_OK;
    if (!json_is_boolean(member.value)) return tok_want(&member, "true or false", e);
    *out = json_is_true(member.value);
    return RC_OK;
}

enum rc tok_id(const struct tok_place *p, int32_t *id, struct err *e) {
    if (!json_is_integer(p->value)) return tok_want(p, "a token id, an integer", e);
    json_int_t value = json_integer_value(p->value);
    if (value < 0 || value >= INT32_MAX) return tok_want(p, "a token id between 0 and 2147483646", e);
    *id = (int32_t)value;
    return RC_OK;
}

enum rc tok_type(const struct tok_place *p, const char **type, struct err *e) {
    TRY(tok_want_object(p, e));
    struct tok_place member = tok_member(p, "type");
    if (member.value != NULL && !json_is_string(member.value)) return tok_want(&member, "a string", e);
    *type = json_string_value(member.value);
    return RC_OK;
}

enum rc tok_each_step(const struct tok_place *p, const char *list, tok_step *step, void *context, struct err *e) {
    if (p->value == NULL) return RC_OK;
    const char *type = NULL;
    TRY(tok_type(p, &type, e));
    if (type == NULL) return tok_want(p, "an object with a type", e);
    if (strcmp(type, "Sequence") != 0) return step(context, type, p, e);
    struct tok_place items = tok_member(p, list);
    TRY(tok_want_array(&items, e));
    for (size_t i = 0; i < json_array_size(items.value); i++) {
        struct tok_place item = tok_item(&items, i); /* recursion is bounded: the parser bounds nesting */
        TRY(tok_each_step(&item, list, step, context, e));
    }
    return RC_OK;
}
