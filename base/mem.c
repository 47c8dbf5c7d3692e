#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *must(void *pointer) {
    if (pointer != NULL) return pointer;
    fputs("out of memory for a control structure; ending so that the supervisor restarts us\n", stderr);
    abort();
}

void *xcalloc(size_t count, size_t size) {
    return must(calloc(count ? count : 1, size ? size : 1));
}

void *xrealloc(void *old, size_t size) {
    return must(realloc(old, size ? size : 1));
}

char *xstrdup(const char *text) {
    return must(strdup(text));
}

char *xstrndup(const char *text, size_t len) {
    return must(strndup(text, len));
}

char *xasprintf(const char *fmt, ...) {
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int rc = vasprintf(&text, fmt, ap);
    va_end(ap);
    return must(rc < 0 ? NULL : text);
}
