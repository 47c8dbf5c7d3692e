/* Allocation for small control structures: these end the process with a message when memory is gone, because no
 * caller could do better and both processes recover from a sudden end by design. Sizes that come from input (tensors,
 * bodies, files) do not use these: they are checked and answer RC_NO_MEMORY. Any thread. */
#ifndef HSAQ_BASE_MEM_H
#define HSAQ_BASE_MEM_H

#include <stddef.h>

void *xcalloc(size_t count, size_t size);
void *xrealloc(void *old, size_t size);
char *xstrdup(const char *text);
char *xstrndup(const char *text, size_t len);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Grows an array so that one more element fits: doubles the capacity. */
#define GROW(array, count, capacity)                                                                                   \
    do {                                                                                                               \
        if ((count) == (capacity)) {                                                                                   \
            (capacity) = (capacity) ? 2 * (capacity) : 8;                                                              \
            (array) = xrealloc((array), (size_t)(capacity) * sizeof *(array));                                         \
        }                                                                                                              \
    } while (0)

#endif
