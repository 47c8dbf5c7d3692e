/* Unicode normalization forms in linear time. Internal to the tokenizer; any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_UNICODE_H
#define HSAQ_WORKER_MODEL_TOK_UNICODE_H

#include "worker/model/tok_text.h"

bool tok_is_ascii(const char *text, size_t len);

/* Appends to `out`: NFD, or NFC (compose), NFKD (compatible), NFKC (both). */
enum rc tok_unicode_normalize(const char *text, size_t len, bool compatible, bool compose, struct tok_buf *out,
                              struct err *e);

#endif
