#include "worker/model/tok_regex.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/mem.h"
#include "worker/model/tok_translate.h"

/* A backtracking engine can be sent through more steps than there are atoms, by a pattern in a model's file. PCRE2's
 * match limit alone does not help: it starts anew at each position, and does not count what a single step scans. So
 * patterns are compiled with a callout before every item, where the clock is read now and then: about three times the
 * time of plain JIT code, and still 0.1 s for a megabyte. */
enum {
    MAX_PATTERN = 64 * 1024,
    CALLOUTS_PER_LOOK = 64,
    JIT_STACK_MAX = 64 << 20,
    HEAP_LIMIT_KIB = 256 << 10,
    MATCH_LIMIT = 10 * 1000 * 1000,
};
static const double seconds_base = 1.0, seconds_per_byte = 5e-6;

struct tok_pattern {
    char *source; /* the pattern as the file has it */
    size_t len;
    pcre2_code *code; /* NULL: `source` is a literal */
};

struct tok_scanner {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    double wall_deadline, cpu_deadline;
    unsigned callouts;
};

static double clock_seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The processor's clock is the honest one, the other is read in a tenth of the time. */
static bool is_late(const struct tok_scanner *s) {
    return clock_seconds(CLOCK_MONOTONIC_COARSE) > s->wall_deadline &&
           clock_seconds(CLOCK_THREAD_CPUTIME_ID) > s->cpu_deadline;
}

static int look_at_clock(pcre2_callout_block *block, void *scanner) {
    (void)block;
    struct tok_scanner *s = scanner;
    return ++s->callouts % CALLOUTS_PER_LOOK == 0 && is_late(s) ? PCRE2_ERROR_CALLOUT : 0;
}

enum rc tok_scanner_new(size_t len, struct tok_scanner **scanner, struct err *e) {
    struct tok_scanner *s = xcalloc(1, sizeof *s);
    s->data = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    s->stack = pcre2_jit_stack_create(32 << 10, JIT_STACK_MAX, NULL); /* NULL where there is no JIT */
    if (s->data == NULL || s->context == NULL) {
        tok_scanner_free(s);
        return err_set(e, RC_NO_MEMORY, "no memory to match patterns");
    }
    double budget = seconds_base + seconds_per_byte * (double)len;
    s->wall_deadline = clock_seconds(CLOCK_MONOTONIC_COARSE) + budget;
    s->cpu_deadline = clock_seconds(CLOCK_THREAD_CPUTIME_ID) + budget;
    pcre2_set_callout(s->context, look_at_clock, s);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
    pcre2_set_match_limit(s->context, MATCH_LIMIT + (uint32_t)(len < UINT32_MAX / 32 ? 16 * len : UINT32_MAX / 2));
    if (s->stack != NULL) pcre2_jit_stack_assign(s->context, NULL, s->stack);
    *scanner = s;
    return RC_OK;
}

void tok_scanner_free(struct tok_scanner *s) {
    if (s == NULL) return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    free(s);
}

static enum rc compile(const char *regex, pcre2_code **code, struct err *e) {
    struct strbuf translated = STRBUF_INIT;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    enum rc rc = context != NULL ? tok_translate(regex, &translated, e)
                                 : err_set(e, RC_NO_MEMORY, "no memory to compile a pattern");
    if (rc == RC_OK) {
        int error;
        PCRE2_SIZE offset;
        uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_AUTO_CALLOUT | PCRE2_NEVER_BACKSLASH_C;
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        *code = pcre2_compile((PCRE2_SPTR)(translated.data ? translated.data : ""), translated.len, options, &error,
                              &offset, context);
        if (*code == NULL) {
            PCRE2_UCHAR why[128] = "";
            pcre2_get_error_message(error, why, sizeof why);
            rc = err_set(e, RC_INVALID, "the pattern '%.200s' does not compile: %s", regex, (char *)why);
        }
    }
    pcre2_compile_context_free(context);
    strbuf_release(&translated);
    return rc;
}

enum rc tok_pattern_regex(const char *regex, struct tok_pattern **pattern, struct err *e) {
    if (strlen(regex) > MAX_PATTERN)
        return err_set(e, RC_UNSUPPORTED, "a pattern of %zu bytes; at most %d are supported", strlen(regex),
                       MAX_PATTERN);
    pcre2_code *code = NULL;
    TRY(compile(regex, &code, e));
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where this fails, matches are interpreted */
    TRY(tok_pattern_literal(regex, strlen(regex), pattern, e));
    (*pattern)->code = code;
    return RC_OK;
}

enum rc tok_pattern_literal(const char *text, size_t len, struct tok_pattern **pattern, struct err *e) {
    if (len == 0) return err_set(e, RC_UNSUPPORTED, "an empty pattern is not supported");
    *pattern = xcalloc(1, sizeof **pattern);
    (*pattern)->source = xstrndup(text, len);
    (*pattern)->len = len;
    return RC_OK;
}

enum rc tok_pattern_read(const struct tok_place *p, struct tok_pattern **pattern, struct err *e) {
    TRY(tok_want_object(p, e));
    bool literal = json_object_get(p->value, "String") != NULL;
    const char *text;
    size_t len;
    TRY(tok_string(p, literal ? "String" : "Regex", &text, &len, e));
    struct err why;
    enum rc rc =
        literal || len == 0 ? tok_pattern_literal(text, len, pattern, &why) : tok_pattern_regex(text, pattern, &why);
    return rc == RC_OK ? RC_OK : err_at(e, p->pointer, rc, "tokenizer.json: %.400s", why.message);
}

void tok_pattern_free(struct tok_pattern *pattern) {
    if (pattern == NULL) return;
    pcre2_code_free(pattern->code);
    free(pattern->source);
    free(pattern);
}

static bool search_literal(struct tok_finder *f, size_t *start, size_t *end) {
    const struct tok_pattern *p = f->pattern;
    const char *hit = memmem(f->text + f->from, f->len - f->from, p->source, p->len);
    if (hit == NULL) return false;
    *start = (size_t)(hit - f->text);
    *end = *start + p->len;
    return true;
}

static enum rc search(struct tok_finder *f, bool *found, size_t *start, size_t *end, struct err *e) {
    if (f->pattern->code == NULL) {
        *found = search_literal(f, start, end);
        return RC_OK;
    }
    struct tok_scanner *s = f->scanner;
    int rc =
        pcre2_match(f->pattern->code, (PCRE2_SPTR)f->text, f->len, f->from, PCRE2_NO_UTF_CHECK, s->data, s->context);
    *found = rc > 0 || rc == 0; /* 0: more groups than we ask for */
    if (*found) {
        *start = pcre2_get_ovector_pointer(s->data)[0];
        *end = pcre2_get_ovector_pointer(s->data)[1];
        return RC_OK;
    }
    if (rc == PCRE2_ERROR_NOMATCH) return RC_OK;
    return err_set(e, RC_INVALID,
                   "the pattern '%.200s' of tokenizer.json takes too many steps, memory or time on this text "
                   "(at byte %zu of %zu)",
                   f->pattern->source, f->from, f->len);
}

/* As the reference's iterator: an empty match right after a match does not count, and the search goes on one character
 * later. */
enum rc tok_find(struct tok_finder *f, bool *found, size_t *start, size_t *end, struct err *e) {
    *found = false;
    while (f->from <= f->len) {
        TRY(search(f, found, start, end, e));
        if (!*found) return RC_OK;
        if (*end < *start) *start = *end; /* \K in a lookahead */
        if (*start != *end || !f->any || f->last_end != *end) {
            f->any = true;
            f->last_end = f->from = *end;
            return RC_OK;
        }
        size_t size = 1;
        if (f->from < f->len) tok_codepoint(f->text + f->from, &size);
        f->from += size;
        *found = false;
    }
    return RC_OK;
}
