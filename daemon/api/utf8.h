/* Checks that bytes which come in pieces are UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF).
 * Starts zeroed. */
#ifndef HSAQ_DAEMON_API_UTF8_H
#define HSAQ_DAEMON_API_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct utf8 {
    int64_t position;  /* bytes accepted so far; of the first bad one once a check has failed */
    uint8_t pending;   /* continuation bytes that must follow */
    uint8_t low, high; /* bounds of the next one */
};

bool utf8_update(struct utf8 *u, const void *bytes, size_t len);
bool utf8_ended(const struct utf8 *u); /* not within a character */

#endif
