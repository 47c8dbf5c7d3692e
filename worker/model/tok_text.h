/* Text on its way through the tokenizer: growable buffers whose size comes from input, pieces, code points, and the
 * character classes of the reference implementation. Internal to the tokenizer; any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_TEXT_H
#define HSAQ_WORKER_MODEL_TOK_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* A stretch of text between added tokens, and what becomes of it. `at_start`: its first character stems from the first
 * of the whole text (Metaspace's prepend_scheme "first" asks). */
struct tok_piece {
    const char *text;
    size_t len;
    bool at_start;
};

struct tok_buf {
    char *data;
    size_t len, capacity;
};

enum rc tok_buf_reserve(struct tok_buf *b, size_t extra, struct err *e);
enum rc tok_buf_append(struct tok_buf *b, const void *bytes, size_t len, struct err *e);
enum rc tok_buf_put(struct tok_buf *b, int32_t codepoint, struct err *e);
void tok_buf_release(struct tok_buf *b);

/* RC_INVALID with the byte offset of the first byte that is not UTF-8. */
enum rc tok_utf8_check(const char *text, size_t len, struct err *e);
/* The code point at text[0] of valid UTF-8, its bytes in *size. */
int32_t tok_codepoint(const char *text, size_t *size);
/* The start of the character that ends before `end` (> 0). */
size_t tok_previous(const char *text, size_t end);

bool tok_is_space(int32_t codepoint); /* White_Space */
bool tok_is_word(int32_t codepoint);  /* \w of Unicode: Alphabetic, M, Nd, Pc, Join_Control */
bool tok_is_mark(int32_t codepoint);  /* M */

/* The ByteLevel alphabet: every byte as one printable character. */
enum rc tok_byte_level(const char *text, size_t len, struct tok_buf *out, struct err *e);

#endif
