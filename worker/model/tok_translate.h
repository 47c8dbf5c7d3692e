/* Oniguruma's Ruby syntax → PCRE2's, for what the two read differently. Internal to the tokenizer; any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_TRANSLATE_H
#define HSAQ_WORKER_MODEL_TOK_TRANSLATE_H

#include "base/err.h"
#include "base/strbuf.h"

/* Appends to `out`; RC_UNSUPPORTED, naming pattern and place, for what has no translation. */
enum rc tok_translate(const char *regex, struct strbuf *out, struct err *e);

#endif
