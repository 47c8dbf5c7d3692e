#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *text;
    int status;
} table[] = {
#define X(constant, name, text, status) {name, text, status},
    RC_TABLE(X)
#undef X
};

static void fill(struct err *e, const char *pointer, enum rc rc, const char *fmt, va_list ap) {
    if (e == NULL) return;
    e->rc = rc;
    snprintf(e->pointer, sizeof e->pointer, "%s", pointer);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
}

enum rc err_set(struct err *e, enum rc rc, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fill(e, "", rc, fmt, ap);
    va_end(ap);
    return rc;
}

enum rc err_at(struct err *e, const char *pointer, enum rc rc, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fill(e, pointer, rc, fmt, ap);
    va_end(ap);
    return rc;
}

static enum rc rc_from_errno(int code) {
    switch (code) {
    case ENOSPC:
    case EDQUOT: return RC_NO_SPACE;
    case ENOENT: return RC_NOT_FOUND;
    case ENOMEM: return RC_NO_MEMORY;
    default: return RC_IO;
    }
}

enum rc err_errno(struct err *e, const char *fmt, ...) {
    int code = errno;
    enum rc rc = rc_from_errno(code);
    va_list ap;
    va_start(ap, fmt);
    fill(e, "", rc, fmt, ap);
    va_end(ap);
    if (e == NULL) return rc;
    size_t used = strlen(e->message);
    snprintf(e->message + used, sizeof e->message - used, ": %s", strerror(code));
    return rc;
}

enum rc err_context(struct err *e, const char *fmt, ...) {
    if (e == NULL) return RC_INTERNAL;
    char inner[sizeof e->message], context[sizeof e->message];
    snprintf(inner, sizeof inner, "%s", e->message);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(context, sizeof context, fmt, ap);
    va_end(ap);
    int used = snprintf(e->message, sizeof e->message, "%s: ", context);
    if (used > 0 && (size_t)used < sizeof e->message)
        snprintf(e->message + used, sizeof e->message - (size_t)used, "%s", inner);
    return e->rc;
}

const char *rc_name(enum rc rc) {
    return table[rc].name;
}

enum rc rc_from_name(const char *name) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].name, name) == 0) return (enum rc)i;
    return RC_INTERNAL;
}

const char *rc_text(enum rc rc) {
    return table[rc].text;
}

int rc_http_status(enum rc rc) {
    return table[rc].status;
}
