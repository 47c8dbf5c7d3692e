/* What pre-tokenizers and normalizers search for: a literal, or a pattern as the reference's engine reads it
 * (Oniguruma, Ruby syntax, Unicode), run on PCRE2. Internal to the tokenizer; a pattern may be used from any thread,
 * a scanner from one. */
#ifndef HSAQ_WORKER_MODEL_TOK_REGEX_H
#define HSAQ_WORKER_MODEL_TOK_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "worker/model/tok_json.h"
#include "worker/model/tok_text.h"

struct tok_pattern;
struct tok_scanner;

/* `p`: {"String": …} or {"Regex": …}. A pattern that does not compile is RC_INVALID; one whose meaning differs between
 * the engines in a way we do not translate is RC_UNSUPPORTED; both name it. */
enum rc tok_pattern_read(const struct tok_place *p, struct tok_pattern **pattern, struct err *e);
enum rc tok_pattern_regex(const char *regex, struct tok_pattern **pattern, struct err *e);
enum rc tok_pattern_literal(const char *text, size_t len, struct tok_pattern **pattern, struct err *e);
void tok_pattern_free(struct tok_pattern *pattern);

/* The memory and the processor time that one text of `len` bytes may take to match. */
enum rc tok_scanner_new(size_t len, struct tok_scanner **scanner, struct err *e);
void tok_scanner_free(struct tok_scanner *scanner);

/* Successive matches in one text, as the reference's iterator gives them. Start with the first four set, else zero. */
struct tok_finder {
    const struct tok_pattern *pattern;
    struct tok_scanner *scanner;
    const char *text;
    size_t len;
    size_t from, last_end; /* where to search on; the end of the last match */
    bool any;              /* there was a match */
};

/* `*found` false: no more. RC_INVALID, naming the pattern, when it takes too many steps, memory or time. */
enum rc tok_find(struct tok_finder *f, bool *found, size_t *start, size_t *end, struct err *e);

#endif
