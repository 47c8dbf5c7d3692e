/* Lists of names in messages of bounded length (err.h): as many as there is room for, each whole, then how many more
 * there are. Whoever refuses something for several names at once says them so.
 *
 *     struct names list = {.text = &text, .room = 200};
 *     names_add(&list, 1, name);   for each
 *     names_end(&list);            "a, b, c" or "a, b … and 7 more" */
#ifndef HSAQ_BASE_NAMES_H
#define HSAQ_BASE_NAMES_H

#include <stddef.h>

#include "base/strbuf.h"

enum { NAMES_END_SIZE = 40 }; /* what the end takes at most, with a NUL */

struct names {
    struct strbuf *text;   /* appended to */
    size_t room;           /* bytes, without the end; the first name is told in any case */
    const char *separator; /* NULL: ", " */
    size_t used, left_out; /* zeroed */
};

/* `things`: how many of those that the end counts the name stands for. */
void names_add(struct names *n, size_t things, const char *name);
void names_end(struct names *n);

#endif
