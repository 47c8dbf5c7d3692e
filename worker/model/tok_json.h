/* Reading tokenizer.json with errors that name the place. Internal to the tokenizer; any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_JSON_H
#define HSAQ_WORKER_MODEL_TOK_JSON_H

#include "base/json.h"

/* A value and its RFC 6901 pointer. `value` is NULL when the document has none there, or null. */
struct tok_place {
    const json_t *value;
    char pointer[sizeof((struct err *)0)->pointer];
};

struct tok_place tok_member(const struct tok_place *p, const char *key);
struct tok_place tok_item(const struct tok_place *p, size_t index);

/* RC_INVALID at the place, saying what must stand there. */
enum rc tok_want(const struct tok_place *p, const char *wanted, struct err *e);
enum rc tok_want_object(const struct tok_place *p, struct err *e);
enum rc tok_want_array(const struct tok_place *p, struct err *e);
/* A string member that must be there; borrowed from the document. */
enum rc tok_string(const struct tok_place *p, const char *key, const char **text, size_t *len, struct err *e);
/* A boolean member; absent: *out stays. */
enum rc tok_bool(const struct tok_place *p, const char *key, bool *out, struct err *e);
/* A token id: an integer in 0 … 2³¹ − 2. */
enum rc tok_id(const struct tok_place *p, int32_t *id, struct err *e);
/* The member "type" of an object; *type is NULL when absent. */
enum rc tok_type(const struct tok_place *p, const char **type, struct err *e);

/* Calls `step` for every leaf of a component that may be Sequences (their list is the member `list`) of components;
 * an absent component has none. */
typedef enum rc tok_step(void *context, const char *type, const struct tok_place *p, struct err *e);
enum rc tok_each_step(const struct tok_place *p, const char *list, tok_step *step, void *context, struct err *e);

#endif
