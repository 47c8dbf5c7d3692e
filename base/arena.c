#include "base/arena.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct arena_block {
    struct arena_block *next;
    size_t used, size;
    _Alignas(16) char data[];
};

enum { BLOCK_SIZE = 4096, ALIGNMENT = 16 };

static struct arena_block *add_block(struct arena *a, size_t size) {
    size_t payload = size > BLOCK_SIZE ? size : BLOCK_SIZE;
    struct arena_block *block = xcalloc(1, sizeof *block + payload);
    block->size = payload;
    block->next = a->blocks;
    a->blocks = block;
    return block;
}

void *arena_alloc(struct arena *a, size_t size) {
    size_t need = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    struct arena_block *block = a->blocks;
    if (block == NULL || block->size - block->used < need) block = add_block(a, need);
    void *memory = block->data + block->used;
    block->used += need;
    return memory;
}

char *arena_strdup(struct arena *a, const char *text) {
    size_t size = strlen(text) + 1;
    return memcpy(arena_alloc(a, size), text, size);
}

void arena_release(struct arena *a) {
    while (a->blocks != NULL) {
        struct arena_block *block = a->blocks;
        a->blocks = block->next;
        free(block);
    }
}
