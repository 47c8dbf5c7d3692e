/* JSON objects described by tables: one table decodes a document into a C struct, reports every fault with its JSON
 * pointer, and prints itself as JSON Schema, so that validation, code and the API document cannot drift apart.
 *
 * Used by the daemon (to refuse bad specs) and by the worker (to decode the same specs). Pure functions. */
#ifndef HSAQ_BASE_SCHEMA_H
#define HSAQ_BASE_SCHEMA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"

enum field_type {
    FIELD_STRING,  /* const char *; min..max bound its length in bytes (max 0: 255); one of `values` unless NULL */
    FIELD_REGEX,   /* const char *; must compile as PCRE2, like FIELD_STRING otherwise */
    FIELD_INT,     /* int64_t in [min, max] */
    FIELD_NUMBER,  /* double in [min, max] */
    FIELD_BOOL,    /* bool */
    FIELD_BYTES,   /* int64_t; JSON integer or a string for size_parse, in [min, max] */
    FIELD_ENUM,    /* int: index into `values` (NULL-terminated) */
    FIELD_OBJECT,  /* pointer to struct of `schema`, or NULL when absent */
    FIELD_OBJECTS, /* struct list of structs of `schema`; min..max bound their number (max 0: 1024) */
    FIELD_STRINGS, /* struct list of const char *, 1–255 bytes each; min..max bound their number (max 0: 1024) */
    FIELD_CUSTOM,  /* `decode` does it all */
};

/* A decoded array: `count` elements of the element type, contiguous. */
struct list {
    void *items;
    size_t count;
};

/* Collects faults; decoding goes on after one, so that a client sees them all. */
enum { PROBLEMS_MAX = 16 };
struct problems {
    struct problem {
        char pointer[192];
        char detail[256];
    } items[PROBLEMS_MAX];
    size_t count; /* may exceed PROBLEMS_MAX; only that many are kept */
};

struct decode {
    struct arena *arena; /* decoded strings, lists and nested structs live here */
    struct problems *problems;
    char pointer[192]; /* where we are */
};

struct schema;

struct field {
    const char *name;
    enum field_type type;
    size_t offset; /* of the member in the struct */
    bool required;
    double min, max;            /* both 0: unbounded (FIELD_INT, FIELD_NUMBER, FIELD_BYTES: then >= 0 is not implied) */
    const char *const *values;  /* FIELD_ENUM; FIELD_STRING, FIELD_STRINGS: allowed strings, or NULL */
    const char *const *planned; /* with values: names that a later version takes, refused saying so; or NULL */
    const char *planned_is;     /* what those are instead; NULL: "not available in this version" */
    const struct schema *schema;                                         /* FIELD_OBJECT, FIELD_OBJECTS */
    void (*decode)(const json_t *value, void *member, struct decode *d); /* FIELD_CUSTOM */
    json_t *(*describe)(void);                                           /* FIELD_CUSTOM: its JSON Schema */
    size_t presence; /* offset + 1 of a bool set when the member was given; 0: none */
};

struct schema {
    const char *name;
    const struct field *fields; /* ends with a NULL name */
    size_t size;
    void (*defaults)(void *object); /* before decoding; NULL: all zero */
    /* After decoding without faults: what spans members, and defaults that depend on other members. May be NULL. */
    void (*check)(void *object, struct decode *d);
};

/* Records a fault at d->pointer or at a member below it. For FIELD_CUSTOM and checks. */
void problem_here(struct decode *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void problem_at(struct decode *d, const char *member, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Steps into a member or an element, for FIELD_CUSTOM; the result is for decode_leave. */
size_t decode_enter(struct decode *d, const char *member);
size_t decode_enter_index(struct decode *d, size_t index);
void decode_leave(struct decode *d, size_t mark);
/* Faults found so far. */
size_t decode_faults(const struct decode *d);
/* Index of `name` in a NULL-terminated table, or −1. */
int name_index(const char *const *names, const char *name);
/* Records that a name is not among `values`, and lists those. */
void problem_name(struct decode *d, const char *name, const char *const *values, const char *const *planned);

/* Decodes `value` into `object` (schema->size bytes). RC_INVALID when any fault was recorded: the first one is in e.
 * `problems` may be NULL. Unknown members, wrong types and out-of-range numbers are faults; null counts as absent. */
enum rc schema_decode(const struct schema *schema, const json_t *value, void *object, struct arena *arena,
                      struct problems *problems, struct err *e);

/* The same table as JSON Schema (type, properties, required, enum, minimum, maximum, additionalProperties: false).
 * A new reference. */
json_t *schema_describe(const struct schema *schema);

#endif
