/* Consecutive pieces of one allocation, each on a 256-byte boundary. With base NULL it only measures. */
#ifndef HSAQ_WORKER_PIPELINE_CARVE_H
#define HSAQ_WORKER_PIPELINE_CARVE_H

#include <stddef.h>

struct carve {
    char *base;
    size_t used;
};

static inline void *carve(struct carve *c, size_t bytes) {
    void *piece = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 255) / 256 * 256;
    return piece;
}

#endif
