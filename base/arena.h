/* A bump allocator for things that die together (a decoded job spec, a parsed config). Zeroed memory; small contents
 * only (mem.h). Not thread-safe. */
#ifndef HSAQ_BASE_ARENA_H
#define HSAQ_BASE_ARENA_H

#include <stddef.h>

struct arena_block;
struct arena {
    struct arena_block *blocks;
};

void *arena_alloc(struct arena *a, size_t size); /* aligned to 16, zeroed */
char *arena_strdup(struct arena *a, const char *text);
void arena_release(struct arena *a);

#endif
