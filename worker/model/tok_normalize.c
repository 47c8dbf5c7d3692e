#include "worker/model/tok_normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "worker/model/tok_unicode.h"

/* What the steps of one file may do: NFKD makes at most 11 bytes of one, SentencePiece's "▁" 3. */
enum { MAX_STEPS = 64, MAX_CONTENT = 256, MAX_GROWTH = 32, MAX_EXTRA = 4096 };

struct tok_normalizer {
    enum rc (*apply)(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                     struct tok_buf *out, struct err *e);
    struct tok_pattern *pattern; /* Replace */
    char *content;               /* Replace, Prepend */
    size_t content_len;
    bool left, right; /* Strip */
    bool compose;     /* NFC, NFKC */
    bool compatible;  /* NFKC, NFKD */
};

static void set_piece(struct tok_piece *piece, const struct tok_buf *out) {
    piece->text = out->data;
    piece->len = out->len;
}

static enum rc apply_unicode(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                             struct tok_buf *out, struct err *e) {
    (void)scanner;
    if (tok_is_ascii(piece->text, piece->len)) return RC_OK;
    TRY(tok_unicode_normalize(piece->text, piece->len, n->compatible, n->compose, out, e));
    set_piece(piece, out);
    return RC_OK;
}

static enum rc apply_lowercase(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                               struct tok_buf *out, struct err *e) {
    (void)n, (void)scanner;
    for (size_t i = 0, size; i < piece->len; i += size) {
        int32_t c = tok_codepoint(piece->text + i, &size);
        TRY(tok_buf_put(out, c == 0x130 ? 'i' : utf8proc_tolower(c), e));
        if (c == 0x130) TRY(tok_buf_put(out, 0x307, e)); /* the one character whose lower case is two */
    }
    set_piece(piece, out);
    return RC_OK;
}

static enum rc apply_strip_accents(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                                   struct tok_buf *out, struct err *e) {
    (void)n, (void)scanner;
    for (size_t i = 0, size; i < piece->len; i += size) {
        int32_t c = tok_codepoint(piece->text + i, &size);
        if (!tok_is_mark(c))
            TRY(tok_buf_append(out, piece->text + i, size, e));
        else if (i == 0)
            piece->at_start = false;
    }
    set_piece(piece, out);
    return RC_OK;
}

static enum rc apply_strip(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                           struct tok_buf *out, struct err *e) {
    (void)scanner, (void)out, (void)e;
    size_t start = 0, end = piece->len, size;
    while (n->left && start < end && tok_is_space(tok_codepoint(piece->text + start, &size)))
        start += size;
    while (n->right && end > start) {
        size_t before = tok_previous(piece->text, end);
        if (!tok_is_space(tok_codepoint(piece->text + before, &size))) break;
        end = before;
    }
    *piece = (struct tok_piece){piece->text + start, end - start, piece->at_start && start == 0};
    return RC_OK;
}

static enum rc apply_prepend(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                             struct tok_buf *out, struct err *e) {
    (void)scanner;
    if (piece->len == 0) return RC_OK;
    TRY(tok_buf_append(out, n->content, n->content_len, e));
    TRY(tok_buf_append(out, piece->text, piece->len, e));
    set_piece(piece, out);
    return RC_OK;
}

static enum rc too_long(size_t before, struct err *e) {
    return err_set(e, RC_INVALID, "the normalizers of tokenizer.json make more than %zu bytes of %zu",
                   MAX_GROWTH * before + MAX_EXTRA, before);
}

static enum rc apply_replace(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                             struct tok_buf *out, struct err *e) {
    struct tok_finder f = {.pattern = n->pattern, .scanner = scanner, .text = piece->text, .len = piece->len};
    size_t kept = 0, start, end, limit = MAX_GROWTH * piece->len + MAX_EXTRA;
    for (bool found;;) {
        TRY(tok_find(&f, &found, &start, &end, e));
        if (!found) break;
        TRY(tok_buf_append(out, piece->text + kept, start - kept, e));
        TRY(tok_buf_append(out, n->content, n->content_len, e));
        if (out->len > limit) return too_long(piece->len, e);
        /* The reference aligns what it puts in with the last character that it takes out. */
        if (start == 0 && end > 0 && (n->content_len == 0 || tok_previous(piece->text, end) > 0))
            piece->at_start = false;
        kept = end;
    }
    if (!f.any) return RC_OK;
    TRY(tok_buf_append(out, piece->text + kept, piece->len - kept, e));
    set_piece(piece, out);
    return RC_OK;
}

static enum rc apply_byte_level(const struct tok_normalizer *n, struct tok_scanner *scanner, struct tok_piece *piece,
                                struct tok_buf *out, struct err *e) {
    (void)n, (void)scanner;
    TRY(tok_byte_level(piece->text, piece->len, out, e));
    set_piece(piece, out);
    return RC_OK;
}

enum rc tok_normalize(const struct tok_normalizers *n, struct tok_scanner *scanner, struct tok_buf buffers[2],
                      struct tok_piece *piece, struct err *e) {
    size_t before = piece->len;
    for (size_t i = 0; i < n->count; i++) {
        struct tok_buf *out = &buffers[i % 2];
        const char *data = out->data;
        /* A step may leave the piece in place: then it still lies in the buffer whose turn it is. */
        if (data != NULL && piece->text >= data && piece->text < data + out->capacity) out = &buffers[(i + 1) % 2];
        out->len = 0;
        TRY(n->steps[i].apply(&n->steps[i], scanner, piece, out, e));
        if (piece->len > MAX_GROWTH * before + MAX_EXTRA) return too_long(before, e);
    }
    return RC_OK;
}

static enum rc read_content(const struct tok_place *p, const char *key, struct tok_normalizer *n, struct err *e) {
    const char *text;
    TRY(tok_string(p, key, &text, &n->content_len, e));
    if (n->content_len > MAX_CONTENT) {
        struct tok_place place = tok_member(p, key);
        return tok_want(&place, "at most 256 bytes long", e);
    }
    n->content = xstrndup(text, n->content_len);
    return RC_OK;
}

static enum rc read_replace(const struct tok_place *p, struct tok_normalizer *n, struct err *e) {
    struct tok_place pattern = tok_member(p, "pattern");
    TRY(read_content(p, "content", n, e));
    return tok_pattern_read(&pattern, &n->pattern, e);
}

static enum rc read_prepend(const struct tok_place *p, struct tok_normalizer *n, struct err *e) {
    return read_content(p, "prepend", n, e);
}

static enum rc read_strip(const struct tok_place *p, struct tok_normalizer *n, struct err *e) {
    TRY(tok_bool(p, "strip_left", &n->left, e));
    return tok_bool(p, "strip_right", &n->right, e);
}

static const struct {
    const char *type;
    enum rc (*read)(const struct tok_place *p, struct tok_normalizer *n, struct err *e);
    struct tok_normalizer step;
} kinds[] = {
    {"NFC", NULL, {.apply = apply_unicode, .compose = true}},
    {"NFD", NULL, {.apply = apply_unicode}},
    {"NFKC", NULL, {.apply = apply_unicode, .compose = true, .compatible = true}},
    {"NFKD", NULL, {.apply = apply_unicode, .compatible = true}},
    {"Lowercase", NULL, {.apply = apply_lowercase}},
    {"StripAccents", NULL, {.apply = apply_strip_accents}},
    {"Strip", read_strip, {.apply = apply_strip, .left = true, .right = true}},
    {"Replace", read_replace, {.apply = apply_replace}},
    {"Prepend", read_prepend, {.apply = apply_prepend}},
    {"ByteLevel", NULL, {.apply = apply_byte_level}},
};

static enum rc read_step(void *context, const char *type, const struct tok_place *p, struct err *e) {
    struct tok_normalizers *n = context;
    if (n->count == MAX_STEPS) return tok_want(p, "one of at most 64 normalizers", e);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].type, type) != 0) continue;
        GROW(n->steps, n->count, n->capacity);
        n->steps[n->count] = kinds[i].step;
        n->count++;
        return kinds[i].read != NULL ? kinds[i].read(p, &n->steps[n->count - 1], e) : RC_OK;
    }
    return err_at(e, p->pointer, RC_UNSUPPORTED, "tokenizer.json: the normalizer '%.60s' is not supported", type);
}

enum rc tok_normalizers_read(struct tok_normalizers *n, const struct tok_place *p, struct err *e) {
    return tok_each_step(p, "normalizers", read_step, n, e);
}

void tok_normalizers_release(struct tok_normalizers *n) {
    for (size_t i = 0; i < n->count; i++) {
        tok_pattern_free(n->steps[i].pattern);
        free(n->steps[i].content);
    }
    free(n->steps);
    *n = (struct tok_normalizers){0};
}
