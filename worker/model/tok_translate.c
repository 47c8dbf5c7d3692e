#include "worker/model/tok_translate.h"

#include <stdbool.h>
#include <string.h>

#include "base/mem.h"

/* What differs between Oniguruma's Ruby syntax and PCRE2, item by item:
 *   \s \S   White_Space; PCRE2 counts U+180E too
 *   \w \W   Alphabetic, M, Nd, Pc; PCRE2 knows L, N and _
 *   \h \H   a hexadecimal digit; in PCRE2 horizontal space
 *   (?m)    the dot matches newlines: (?s) of PCRE2 (whose own m is always on: ^ and $ are at lines)
 *   {n}+    a repeated repeat, {n}? an optional one; in PCRE2 possessive and lazy: refused
 *   {,n}    {0,n}
 *   [a[b]] [a&&b]  set operations: refused */
struct translation {
    const char *regex, *at;
    struct strbuf *out;
    bool in_class;
};

static const struct {
    char letter;
    const char *outside, *inside; /* inside NULL: cannot be said in a class */
} escapes[] = {
    {'s', "\\p{White_Space}", "\\p{White_Space}"},
    {'S', "\\P{White_Space}", "\\P{White_Space}"},
    {'w', "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]", "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"},
    {'W', "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]", NULL},
    {'h', "[0-9A-Fa-f]", "0-9A-Fa-f"},
    {'H', "[^0-9A-Fa-f]", NULL},
};

static enum rc refuse(const struct translation *t, const char *what, struct err *e) {
    return err_set(e, RC_UNSUPPORTED, "the pattern '%.200s' uses %s (at byte %zu), which is not supported", t->regex,
                   what, (size_t)(t->at - t->regex));
}

static enum rc escape(struct translation *t, struct err *e) {
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        if (t->at[1] != escapes[i].letter) continue;
        const char *text = t->in_class ? escapes[i].inside : escapes[i].outside;
        if (text == NULL) return refuse(t, "a negated class within a class", e);
        strbuf_puts(t->out, text);
        t->at += 2;
        return RC_OK;
    }
    size_t len = t->at[1] == '\0' ? 1 : 2;
    strbuf_append(t->out, t->at, len);
    t->at += len;
    return RC_OK;
}

static enum rc class_item(struct translation *t, struct err *e) {
    const char *at = t->at;
    if (at[0] == '[' && at[1] == ':') {
        const char *end = strstr(at, ":]");
        if (end == NULL) return refuse(t, "an unfinished POSIX class", e);
        strbuf_append(t->out, at, (size_t)(end + 2 - at));
        t->at = end + 2;
        return RC_OK;
    }
    if (at[0] == '[') return refuse(t, "a class within a class", e);
    if (at[0] == '&' && at[1] == '&') return refuse(t, "an intersection of classes", e);
    t->in_class = at[0] != ']';
    strbuf_append(t->out, t->at++, 1);
    return RC_OK;
}

static void open_class(struct translation *t) {
    const char *start = t->at++;
    if (*t->at == '^') t->at++;
    if (*t->at == ']') t->at++; /* a literal in both */
    strbuf_append(t->out, start, (size_t)(t->at - start));
    t->in_class = true;
}

/* "{2}", "{2,}", "{2,3}", "{,3}": the length, or 0 when the brace is a literal. */
static size_t interval(const char *at) {
    size_t digits = strspn(at + 1, "0123456789"), n = 1 + digits;
    if (at[n] == ',') {
        size_t more = strspn(at + n + 1, "0123456789");
        if (digits + more == 0) return 0;
        n += 1 + more;
    } else if (digits == 0) {
        return 0;
    }
    return at[n] == '}' ? n + 1 : 0;
}

static enum rc brace(struct translation *t, struct err *e) {
    size_t len = interval(t->at);
    bool fixed = len > 0 && memchr(t->at, ',', len) == NULL;
    if (len > 0 && (t->at[len] == '+' || (t->at[len] == '?' && fixed)))
        return refuse(t, "an interval with a second quantifier", e);
    strbuf_puts(t->out, len > 0 && t->at[1] == ',' ? "{0" : "{");
    t->at++;
    return RC_OK;
}

/* "(?imx-imx" with Ruby's m as PCRE2's s. Everything else that may follow "(?" is spelled alike. */
static void group(struct translation *t) {
    strbuf_puts(t->out, "(?");
    t->at += 2;
    size_t len = strspn(t->at, "imx-");
    if (t->at[len] != ')' && t->at[len] != ':') return;
    for (; len > 0; len--, t->at++)
        strbuf_append(t->out, *t->at == 'm' ? "s" : t->at, 1);
}

enum rc tok_translate(const char *regex, struct strbuf *out, struct err *e) {
    struct translation t = {.regex = regex, .at = regex, .out = out};
    while (*t.at != '\0') {
        if (*t.at == '\\') {
            TRY(escape(&t, e));
        } else if (t.in_class) {
            TRY(class_item(&t, e));
        } else if (*t.at == '[') {
            open_class(&t);
        } else if (*t.at == '{') {
            TRY(brace(&t, e));
        } else if (t.at[0] == '(' && t.at[1] == '?') {
            group(&t);
        } else if (t.at[0] == '(' && t.at[1] == '*') {
            return refuse(&t, "a verb", e);
        } else {
            strbuf_append(out, t.at++, 1);
        }
    }
    return RC_OK;
}
