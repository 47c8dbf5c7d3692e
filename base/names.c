#include "base/names.h"

#include <string.h>

void names_add(struct names *n, size_t things, const char *name) {
    const char *separator = n->used == 0 ? "" : n->separator ? n->separator : ", ";
    size_t bytes = strlen(separator) + strlen(name);
    if (n->left_out > 0 || (n->used > 0 && n->used + bytes > n->room)) {
        n->left_out += things;
        return;
    }
    strbuf_puts(n->text, separator);
    strbuf_puts(n->text, name);
    n->used += bytes;
}

void names_end(struct names *n) {
    if (n->left_out > 0) strbuf_printf(n->text, " … and %zu more", n->left_out);
}
