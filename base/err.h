/* Errors: every fallible function returns `enum rc` and fills the caller's `struct err`.
 *
 * RC_OK is the only success. A function that fails says what was wrong, where, and what to do about it in
 * `message`; when the fault lies inside a JSON document, `pointer` holds its RFC 6901 pointer.
 * Both are always UTF-8, whatever went into them, so that they can be sent as JSON.
 * Library code never logs, prints or exits: it returns, and callers add context on the way up (err_context).
 * Threads: a struct err belongs to one thread at a time; the functions here touch nothing else. */
#ifndef HSAQ_BASE_ERR_H
#define HSAQ_BASE_ERR_H

/* constant, name for machines, text for people, HTTP status that the service answers when the error reaches a client */
#define RC_TABLE(X)                                                                                                    \
    X(RC_OK, "ok", "ok", 200)                                                                                          \
    X(RC_MALFORMED, "malformed", "malformed input", 400)                                                               \
    X(RC_INVALID, "invalid", "invalid input", 422)                                                                     \
    X(RC_NOT_FOUND, "not_found", "not found", 404)                                                                     \
    X(RC_CONFLICT, "conflict", "conflict", 409)                                                                        \
    X(RC_TOO_LARGE, "too_large", "too large", 413)                                                                     \
    X(RC_UNSUPPORTED, "unsupported", "not supported", 422)                                                             \
    X(RC_INFEASIBLE, "infeasible", "infeasible", 422)                                                                  \
    X(RC_IO, "io", "input/output error", 500)                                                                          \
    X(RC_NO_SPACE, "no_space", "no space left", 507)                                                                   \
    X(RC_NO_MEMORY, "no_memory", "out of memory", 503)                                                                 \
    X(RC_CANCELLED, "cancelled", "cancelled", 409)                                                                     \
    X(RC_UNAVAILABLE, "unavailable", "unavailable", 503)                                                               \
    X(RC_INTERNAL, "internal", "internal error", 500)

enum rc {
#define X(constant, name, text, status) constant,
    RC_TABLE(X)
#undef X
};

struct err {
    enum rc rc;
    char pointer[192]; /* "" when the error is not about a place in a JSON document */
    char message[512];
};

/* All of these return the rc they store, so that `return err_set(...)` reads as one thought. `e` may be NULL. */
enum rc err_set(struct err *e, enum rc rc, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
enum rc err_at(struct err *e, const char *pointer, enum rc rc, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* From errno: ENOSPC/EDQUOT → RC_NO_SPACE, ENOENT → RC_NOT_FOUND, ENOMEM → RC_NO_MEMORY, else RC_IO; appends strerror.
 */
enum rc err_errno(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prefixes "context: " to the message already there and returns its rc. */
enum rc err_context(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Says that the error there is about this place, unless it names one already; returns its rc. */
enum rc err_locate(struct err *e, const char *pointer);

/* The static analyzer sees one file at a time: this tells it that these never return RC_OK, so that what a failed call
 * leaves unset is not missed. */
#ifdef __clang_analyzer__
static inline enum rc err_never_ok_(enum rc returned, enum rc rc) {
    (void)returned;
    return rc;
}
#define err_set(e, rc, ...) err_never_ok_(err_set(e, rc, __VA_ARGS__), rc)
#define err_at(e, pointer, rc, ...) err_never_ok_(err_at(e, pointer, rc, __VA_ARGS__), rc)
#define err_errno(e, ...) err_never_ok_(err_errno(e, __VA_ARGS__), RC_IO)
#define err_context(e, ...) err_never_ok_(err_context(e, __VA_ARGS__), RC_INTERNAL)
#define err_locate(e, pointer) err_never_ok_(err_locate(e, pointer), RC_INTERNAL)
#endif

const char *rc_name(enum rc rc);
enum rc rc_from_name(const char *name); /* RC_INTERNAL for a name it does not know */
const char *rc_text(enum rc rc);
int rc_http_status(enum rc rc);

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        enum rc try_rc_ = (call);                                                                                      \
        if (try_rc_ != RC_OK) return try_rc_;                                                                          \
    } while (0)

#endif
