/* A growing byte string, always NUL-terminated after the first append. Small or bounded contents only (mem.h). */
#ifndef HSAQ_BASE_STRBUF_H
#define HSAQ_BASE_STRBUF_H

#include <stddef.h>

struct strbuf {
    char *data;
    size_t len, capacity;
};

#define STRBUF_INIT ((struct strbuf){0})

void strbuf_append(struct strbuf *b, const void *bytes, size_t len);
void strbuf_puts(struct strbuf *b, const char *text);
void strbuf_printf(struct strbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_consume(struct strbuf *b, size_t len); /* drops the first len bytes */
void strbuf_clear(struct strbuf *b);               /* len = 0, keeps the memory */
void strbuf_release(struct strbuf *b);
char *strbuf_detach(struct strbuf *b); /* the caller frees the string; b is empty again */

#endif
