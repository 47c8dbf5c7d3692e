/* jansson with the strictness that hostile input needs, and getters that say where a document is wrong.
 *
 * Reals are written with the fewest digits (15 to 17) that read back as the same double, bit for bit. */
#ifndef HSAQ_BASE_JSON_H
#define HSAQ_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { JSON_MAX_DEPTH = 64 };

/* Parses one complete JSON value. RC_MALFORMED with line and column when it is not JSON (or nests deeper than
 * JSON_MAX_DEPTH, or is not UTF-8); RC_INVALID with a pointer for what is JSON but must not be accepted: a duplicate
 * key, a number that does not fit a double or an int64. `*out` is a new reference. */
enum rc json_parse(const char *text, size_t len, json_t **out, struct err *e);
enum rc json_parse_file(const char *path, size_t max_bytes, json_t **out, struct err *e);

/* One line, keys in insertion order; NULL only for a value jansson cannot dump. The caller frees. */
char *json_line(const json_t *value);
char *json_pretty(const json_t *value, bool sorted); /* the same, indented for people; or by key */

/* Appends "/key" (escaped per RFC 6901) or "/index" to a pointer held in a buffer of `capacity` bytes. */
void json_pointer_push_key(char *pointer, size_t capacity, const char *key);
void json_pointer_push_index(char *pointer, size_t capacity, size_t index);

/* "an array", "a string", …, "nothing" of NULL: for messages that say what was there instead. */
const char *json_type_name(const json_t *value);

/* Members of documents that we or a model's author wrote: absent or null leaves *out as it was and is RC_OK; a wrong
 * type is RC_INVALID with the member's pointer. Integers written as 1e4 or 10000.0 are not integers; a number may be
 * written as an integer. */
enum rc json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out, struct err *e);
enum rc json_get_number(const json_t *object, const char *key, double *out, struct err *e);
enum rc json_get_bool(const json_t *object, const char *key, bool *out, struct err *e);
enum rc json_get_string(const json_t *object, const char *key, const char **out, struct err *e); /* borrowed */

#endif
