#include "worker/pipeline/places.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/names.h"

enum { BLOCKS_ROOM = 80 }; /* of one projection */

static bool is_first(const struct place *places, size_t index) {
    for (size_t i = 0; i < index; i++)
        if (!strcmp(places[i].projection, places[index].projection)) return false;
    return true;
}

static void add_range(struct names *ranges, int from, int last) {
    char text[32];
    if (last > from)
        snprintf(text, sizeof text, "%d-%d", from, last);
    else
        snprintf(text, sizeof text, "%d", from);
    names_add(ranges, (size_t)(last - from + 1), text);
}

/* "0-3, 7" */
static size_t list_blocks(const struct place *places, size_t count, const char *projection, struct strbuf *text) {
    struct names ranges = {.text = text, .room = BLOCKS_ROOM};
    int from = -1, last = -1;
    size_t blocks = 0;
    for (size_t i = 0; i < count; i++) {
        int block = places[i].block;
        if (block < 0 || strcmp(places[i].projection, projection) != 0) continue;
        if (from >= 0 && block > last + 1) add_range(&ranges, from, last);
        if (from < 0 || block > last + 1) from = block;
        last = block;
        blocks++;
    }
    if (from >= 0) add_range(&ranges, from, last);
    names_end(&ranges);
    return blocks;
}

void places_text(const struct place *places, size_t count, size_t room, struct strbuf *text) {
    struct names names = {.text = text, .room = room};
    for (size_t i = 0; i < count; i++) {
        if (!is_first(places, i)) continue;
        struct strbuf name = STRBUF_INIT, blocks = STRBUF_INIT;
        size_t n = list_blocks(&places[i], count - i, places[i].projection, &blocks);
        strbuf_puts(&name, places[i].projection);
        if (n > 0) strbuf_printf(&name, " (block%s %s)", n > 1 ? "s" : "", blocks.data);
        names_add(&names, n > 0 ? n : 1, name.data);
        strbuf_release(&name);
        strbuf_release(&blocks);
    }
    names_end(&names);
}
