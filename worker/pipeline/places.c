#include "worker/pipeline/places.h"

#include <stdbool.h>
#include <string.h>

static bool is_first(const struct place *places, size_t index) {
    for (size_t i = 0; i < index; i++)
        if (!strcmp(places[i].projection, places[index].projection)) return false;
    return true;
}

/* "0-3, 7" */
static int list_blocks(const struct place *places, size_t count, const char *projection, struct strbuf *text) {
    int from = -1, last = -1, blocks = 0;
    for (size_t i = 0; i < count; i++) {
        int block = places[i].block;
        if (block < 0 || strcmp(places[i].projection, projection) != 0) continue;
        if (from < 0 || block > last + 1) {
            if (last > from) strbuf_printf(text, "-%d", last);
            strbuf_printf(text, "%s%d", from < 0 ? "" : ", ", block);
            from = block;
        }
        last = block;
        blocks++;
    }
    if (last > from) strbuf_printf(text, "-%d", last);
    return blocks;
}

void places_text(const struct place *places, size_t count, struct strbuf *text) {
    size_t before = text->len;
    for (size_t i = 0; i < count; i++) {
        if (!is_first(places, i)) continue;
        struct strbuf blocks = STRBUF_INIT;
        int n = list_blocks(&places[i], count - i, places[i].projection, &blocks);
        strbuf_printf(text, "%s%s", text->len > before ? ", " : "", places[i].projection);
        if (n > 0) strbuf_printf(text, " (block%s %s)", n > 1 ? "s" : "", blocks.data);
        strbuf_release(&blocks);
    }
}
