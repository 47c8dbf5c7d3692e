/* Regular expressions over Linear names, as specs write them: searched, not anchored; case matters. */
#ifndef HSAQ_WORKER_PIPELINE_MATCH_H
#define HSAQ_WORKER_PIPELINE_MATCH_H

#include <stdbool.h>

#include "base/err.h"

struct match;

enum rc match_new(const char *regex, struct match **m, struct err *e);
void match_free(struct match *m); /* NULL is fine */
/* RC_INVALID when the expression runs into PCRE2's match limit. */
enum rc match_test(const struct match *m, const char *text, bool *found, struct err *e);

#endif
