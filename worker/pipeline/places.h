/* Linears as people read of them, many at once: "q_proj (blocks 0-3, 7), down_proj (block 2)"; where there is no room
 * for all, as in a refusal, "q_proj (blocks 0-3, 7) … and 12 more" (base/names.h). Pure. */
#ifndef HSAQ_WORKER_PIPELINE_PLACES_H
#define HSAQ_WORKER_PIPELINE_PLACES_H

#include <stddef.h>

#include "base/strbuf.h"

struct place {
    const char *projection;
    int block; /* −1: in none */
};

/* Appends; projections as they come up first, blocks as they come, which is rising. `room`: bytes, as of struct names.
 */
void places_text(const struct place *places, size_t count, size_t room, struct strbuf *text);

#endif
