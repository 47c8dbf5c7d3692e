#include "worker/model/hash.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

_Static_assert(sizeof(XXH128_canonical_t) == sizeof(struct hash128), "one form of the hash");

struct hash128 hash_bytes(const void *bytes, size_t len) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes, len));
    struct hash128 hash;
    memcpy(hash.bytes, &canonical, sizeof hash.bytes);
    return hash;
}

const char *hash_text(const struct hash128 *hash, char text[HASH_TEXT_SIZE]) {
    for (size_t i = 0; i < sizeof hash->bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", hash->bytes[i]);
    return text;
}

static int hex_digit(char c) {
    static const char digits[] = "0123456789abcdef";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    return at != NULL ? (int)(at - digits) : -1;
}

bool hash_parse(const char *text, struct hash128 *hash) {
    if (strlen(text) != HASH_TEXT_SIZE - 1) return false;
    for (size_t i = 0; i < sizeof hash->bytes; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        hash->bytes[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}
