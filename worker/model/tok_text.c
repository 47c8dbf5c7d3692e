#include "worker/model/tok_text.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"

enum rc tok_buf_reserve(struct tok_buf *b, size_t extra, struct err *e) {
    if (b->capacity - b->len >= extra) return RC_OK;
    size_t capacity = 2 * b->capacity > b->len + extra ? 2 * b->capacity : b->len + extra;
    char *data = realloc(b->data, capacity);
    if (data == NULL) return err_set(e, RC_NO_MEMORY, "no memory for %zu bytes of text while tokenizing", capacity);
    b->data = data;
    b->capacity = capacity;
    return RC_OK;
}

enum rc tok_buf_append(struct tok_buf *b, const void *bytes, size_t len, struct err *e) {
    TRY(tok_buf_reserve(b, len, e));
    if (len > 0) memcpy(b->data + b->len, bytes, len);
    b->len += len;
    return RC_OK;
}

enum rc tok_buf_put(struct tok_buf *b, int32_t codepoint, struct err *e) {
    TRY(tok_buf_reserve(b, 4, e));
    b->len += (size_t)utf8proc_encode_char(codepoint, (utf8proc_uint8_t *)b->data + b->len);
    return RC_OK;
}

void tok_buf_release(struct tok_buf *b) {
    free(b->data);
    *b = (struct tok_buf){0};
}

enum rc tok_utf8_check(const char *text, size_t len, struct err *e) {
    for (size_t i = 0; i < len;) {
        size_t size = (unsigned char)text[i] < 0x80 ? 1 : utf8_sequence(text + i, len - i);
        if (size == 0)
            return err_set(e, RC_INVALID, "the text is not UTF-8: byte %zu is 0x%02x; convert it to UTF-8", i,
                           (unsigned char)text[i]);
        i += size;
    }
    return RC_OK;
}

int32_t tok_codepoint(const char *text, size_t *size) {
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *size = 1;
        return s[0];
    }
    *size = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    int32_t codepoint = s[0] & (0xff >> (*size + 1));
    for (size_t i = 1; i < *size; i++)
        codepoint = codepoint << 6 | (s[i] & 0x3f);
    return codepoint;
}

size_t tok_previous(const char *text, size_t end) {
    do
        end--;
    while (end > 0 && ((unsigned char)text[end] & 0xc0) == 0x80);
    return end;
}

bool tok_is_space(int32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool tok_is_mark(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

/* Alphabetic, but of category So: the circled, squared and parenthesized Latin letters. */
static bool is_enclosed_letter(int32_t c) {
    return (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
           (c >= 0x1f170 && c <= 0x1f189);
}

bool tok_is_word(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return c == 0x200c || c == 0x200d || is_enclosed_letter(c);
    }
}

/* GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes become U+0100 and on, in order. */
static int32_t byte_character(unsigned char byte) {
    if (byte <= 0x20) return 0x100 + byte;
    if (byte < 0x7f) return byte;
    if (byte <= 0xa0) return 0x121 + byte - 0x7f;
    return byte == 0xad ? 0x143 : byte;
}

enum rc tok_byte_level(const char *text, size_t len, struct tok_buf *out, struct err *e) {
    TRY(tok_buf_reserve(out, 2 * len, e)); /* no character beyond U+0143 */
    for (size_t i = 0; i < len; i++)
        TRY(tok_buf_put(out, byte_character((unsigned char)text[i]), e));
    return RC_OK;
}
