#include "worker/model/tok_unicode.h"

#include <stdlib.h>
#include <utf8proc.h>

/* utf8proc_decompose() orders combining marks by swapping neighbours, which is quadratic in a run of them, so that part
 * is done here: characters are decomposed one by one, runs of marks sorted by class, then utf8proc composes. */
struct codepoints {
    utf8proc_int32_t *items;
    size_t count, capacity;
};

bool tok_is_ascii(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] >= 0x80) return false;
    return true;
}

static enum rc reserve(struct codepoints *c, size_t extra, struct err *e) {
    if (c->capacity - c->count >= extra) return RC_OK;
    size_t capacity = 2 * c->capacity > c->count + extra ? 2 * c->capacity : c->count + extra;
    utf8proc_int32_t *items = realloc(c->items, capacity * sizeof *items);
    if (items == NULL) return err_set(e, RC_NO_MEMORY, "no memory to normalize %zu characters", capacity);
    c->items = items;
    c->capacity = capacity;
    return RC_OK;
}

static enum rc decompose(const char *text, size_t len, utf8proc_option_t options, struct codepoints *c, struct err *e) {
    enum { LONGEST = 32 }; /* U+FDFA decomposes into 18 */
    for (size_t i = 0, size; i < len; i += size) {
        int32_t codepoint = tok_codepoint(text + i, &size);
        TRY(reserve(c, LONGEST, e));
        int boundary = 0;
        utf8proc_ssize_t made = utf8proc_decompose_char(codepoint, c->items + c->count, LONGEST, options, &boundary);
        if (made < 0 || made > LONGEST)
            return err_set(e, RC_INTERNAL, "cannot decompose U+%04X: %s", codepoint, utf8proc_errmsg(made));
        c->count += (size_t)made;
    }
    return RC_OK;
}

static int combining_class(utf8proc_int32_t codepoint) {
    return codepoint < 0x300 ? 0 : utf8proc_get_property(codepoint)->combining_class;
}

struct mark {
    utf8proc_int32_t codepoint;
    int combining_class;
    size_t order;
};

static int compare_marks(const void *a, const void *b) {
    const struct mark *x = a, *y = b;
    if (x->combining_class != y->combining_class) return x->combining_class - y->combining_class;
    return x->order < y->order ? -1 : 1;
}

static enum rc sort_marks(utf8proc_int32_t *items, size_t count, struct err *e) {
    if (count < 2) return RC_OK;
    struct mark *marks = malloc(count * sizeof *marks);
    if (marks == NULL) return err_set(e, RC_NO_MEMORY, "no memory to order %zu combining marks", count);
    for (size_t i = 0; i < count; i++)
        marks[i] = (struct mark){items[i], combining_class(items[i]), i};
    qsort(marks, count, sizeof *marks, compare_marks);
    for (size_t i = 0; i < count; i++)
        items[i] = marks[i].codepoint;
    free(marks);
    return RC_OK;
}

static enum rc order_marks(struct codepoints *c, struct err *e) {
    for (size_t i = 0; i < c->count;) {
        size_t end = i;
        while (end < c->count && combining_class(c->items[end]) > 0)
            end++;
        TRY(sort_marks(c->items + i, end - i, e));
        i = end + 1;
    }
    return RC_OK;
}

static enum rc normalize(struct codepoints *c, const char *text, size_t len, utf8proc_option_t options,
                         struct tok_buf *out, struct err *e) {
    TRY(decompose(text, len, options, c, e));
    TRY(order_marks(c, e));
    if (options & UTF8PROC_COMPOSE) {
        utf8proc_ssize_t count = utf8proc_normalize_utf32(c->items, (utf8proc_ssize_t)c->count, options);
        if (count < 0) return err_set(e, RC_INTERNAL, "cannot compose: %s", utf8proc_errmsg(count));
        c->count = (size_t)count;
    }
    for (size_t i = 0; i < c->count; i++)
        TRY(tok_buf_put(out, c->items[i], e));
    return RC_OK;
}

enum rc tok_unicode_normalize(const char *text, size_t len, bool compatible, bool compose, struct tok_buf *out,
                              struct err *e) {
    int options =
        UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0);
    struct codepoints c = {0};
    enum rc rc = normalize(&c, text, len, (utf8proc_option_t)options, out, e);
    free(c.items);
    return rc;
}
