#define PCRE2_CODE_UNIT_WIDTH 8
#include "worker/pipeline/match.h"

#include <pcre2.h>
#include <stdlib.h>

#include "base/mem.h"

struct match {
    pcre2_code *code;
    pcre2_match_data *data;
    char *regex;
};

enum rc match_new(const char *regex, struct match **m, struct err *e) {
    int error;
    size_t offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &error, &offset, NULL);
    if (!code) {
        char reason[128];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
        return err_set(e, RC_INVALID, "regular expression \"%s\", character %zu: %s", regex, offset, reason);
    }
    *m = xcalloc(1, sizeof **m);
    **m = (struct match){code, pcre2_match_data_create_from_pattern(code, NULL), xstrdup(regex)};
    return RC_OK;
}

void match_free(struct match *m) {
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_code_free(m->code);
    free(m->regex);
    free(m);
}

enum rc match_test(const struct match *m, const char *text, bool *found, struct err *e) {
    int rc = pcre2_match(m->code, (PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, 0, 0, m->data, NULL);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        char reason[128];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof reason);
        return err_set(e, RC_INVALID, "regular expression \"%s\" on \"%s\": %s; write a simpler one", m->regex, text,
                       reason);
    }
    *found = rc >= 0;
    return RC_OK;
}
