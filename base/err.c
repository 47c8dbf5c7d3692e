#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

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
    utf8_repair(e->pointer);
    utf8_repair(e->message);
}

enum rc(err_set)(struct err *e, enum rc rc, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fill(e, "", rc, fmt, ap);
    va_end(ap);
    return rc;
}

enum rc(err_at)(struct err *e, const char *pointer, enum rc rc, const char *fmt, ...) {
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

static void append(struct err *e, const char *text) {
    size_t used = strlen(e->message);
    size_t len = strnlen(text, sizeof e->message - 1 - used);
    memcpy(e->message + used, text, len);
    e->message[used + len] = '\0';
}

enum rc(err_errno)(struct err *e, const char *fmt, ...) {
    int code = errno;
    enum rc rc = rc_from_errno(code);
    if (e == NULL) return rc;
    va_list ap;
    va_start(ap, fmt);
    fill(e, "", rc, fmt, ap);
    va_end(ap);
    append(e, ": ");
    append(e, strerror(code));
    utf8_repair(e->message);
    return rc;
}

enum rc(err_context)(struct err *e, const char *fmt, ...) {
    if (e == NULL) return RC_INTERNAL;
    char inner[sizeof e->message];
    memcpy(inner, e->message, sizeof inner);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    append(e, ": ");
    append(e, inner);
    utf8_repair(e->message);
    return e->rc;
}

enum rc(err_locate)(struct err *e, const char *pointer) {
    if (e == NULL) return RC_INTERNAL;
    if (!e->pointer[0]) snprintf(e->pointer, sizeof e->pointer, "%s", pointer);
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
