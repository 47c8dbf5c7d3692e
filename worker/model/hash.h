/* XXH3-128 values, in xxHash's canonical (big-endian) form so that they mean the same on every machine. Cache keys are
 * content: not secret, and not proof against someone who builds collisions. Any thread. */
#ifndef HSAQ_WORKER_MODEL_HASH_H
#define HSAQ_WORKER_MODEL_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hash128 {
    uint8_t bytes[16];
};

enum { HASH_TEXT_SIZE = 33 };

struct hash128 hash_bytes(const void *bytes, size_t len);
/* 32 lowercase hex digits; returns `text`. */
const char *hash_text(const struct hash128 *hash, char text[HASH_TEXT_SIZE]);
/* False when `text` is not what hash_text writes. */
bool hash_parse(const char *text, struct hash128 *hash);

#endif
