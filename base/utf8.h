/* What is shown or sent as JSON must be UTF-8, but file names, model authors' strings and cut-off messages need not be.
 */
#ifndef HSAQ_BASE_UTF8_H
#define HSAQ_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Replaces every byte that belongs to no complete, valid UTF-8 sequence by '?', in place. Returns text. */
char *utf8_repair(char *text);

/* Bytes of the valid sequence at `text` (1–4, at most `len`), or 0: cut off, overlong, a surrogate, beyond U+10FFFF. */
size_t utf8_sequence(const char *text, size_t len);

#endif
