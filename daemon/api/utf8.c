#include "daemon/api/utf8.h"

#include <string.h>

/* Lead bytes: how many continuation bytes follow, and the bounds of the first of them. */
static bool lead(struct utf8 *u, uint8_t byte) {
    u->low = 0x80;
    u->high = 0xbf;
    if (byte >= 0xc2 && byte <= 0xdf) {
        u->pending = 1;
    } else if (byte >= 0xe0 && byte <= 0xef) {
        u->pending = 2;
        if (byte == 0xe0) u->low = 0xa0;
        if (byte == 0xed) u->high = 0x9f;
    } else if (byte >= 0xf0 && byte <= 0xf4) {
        u->pending = 3;
        if (byte == 0xf0) u->low = 0x90;
        if (byte == 0xf4) u->high = 0x8f;
    }
    return u->pending > 0;
}

static bool next_byte(struct utf8 *u, uint8_t byte) {
    if (u->pending == 0) return byte < 0x80 || lead(u, byte);
    if (byte < u->low || byte > u->high) return false;
    u->pending--;
    u->low = 0x80;
    u->high = 0xbf;
    return true;
}

static size_t ascii_run(const uint8_t *bytes, size_t len) {
    size_t n = 0;
    for (uint64_t word; n + sizeof word <= len; n += sizeof word) {
        memcpy(&word, bytes + n, sizeof word);
        if (word & UINT64_C(0x8080808080808080)) break;
    }
    return n;
}

bool utf8_update(struct utf8 *u, const void *bytes, size_t len) {
    const uint8_t *p = bytes;
    for (size_t i = 0; i < len;) {
        size_t run = u->pending == 0 ? ascii_run(p + i, len - i) : 0;
        if (run == 0 && !next_byte(u, p[i])) return false;
        if (run == 0) run = 1;
        u->position += (int64_t)run;
        i += run;
    }
    return true;
}

bool utf8_ended(const struct utf8 *u) {
    return u->pending == 0;
}
