#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static void reserve(struct strbuf *b, size_t extra) {
    size_t need = b->len + extra + 1;
    if (need <= b->capacity) return;
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < need)
        capacity *= 2;
    b->data = xrealloc(b->data, capacity);
    b->capacity = capacity;
}

void strbuf_append(struct strbuf *b, const void *bytes, size_t len) {
    reserve(b, len);
    if (len > 0) memcpy(b->data + b->len, bytes, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void strbuf_puts(struct strbuf *b, const char *text) {
    strbuf_append(b, text, strlen(text));
}

void strbuf_printf(struct strbuf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int len = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (len > 0) {
        reserve(b, (size_t)len);
        vsnprintf(b->data + b->len, (size_t)len + 1, fmt, again);
        b->len += (size_t)len;
    }
    va_end(again);
}

void strbuf_consume(struct strbuf *b, size_t len) {
    if (len >= b->len) {
        strbuf_clear(b);
        return;
    }
    memmove(b->data, b->data + len, b->len - len + 1);
    b->len -= len;
}

void strbuf_clear(struct strbuf *b) {
    b->len = 0;
    if (b->data != NULL) b->data[0] = '\0';
}

void strbuf_release(struct strbuf *b) {
    free(b->data);
    *b = STRBUF_INIT;
}

char *strbuf_detach(struct strbuf *b) {
    char *text = b->data != NULL ? b->data : xstrdup("");
    *b = STRBUF_INIT;
    return text;
}
