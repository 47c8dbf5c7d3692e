/* Byte sizes as people write them: "12GiB" (2^30), "12GB" (10^9), "512MiB", "4096". Fractions ("3.5GiB") are allowed
 * and rounded down to a byte, but not of a byte ("1.5", who writes that means another unit). */
#ifndef HSAQ_BASE_SIZES_H
#define HSAQ_BASE_SIZES_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum rc size_parse(const char *text, int64_t *bytes, struct err *e);
/* "11.3 GiB": for people; buffer of at least 24 bytes. Returns buffer. */
char *size_format(int64_t bytes, char *buffer, size_t capacity);

#endif
