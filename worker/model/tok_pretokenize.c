#include "worker/model/tok_pretokenize.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* Every pre-tokenizer is a sequence of these steps. */
enum step_kind { SPLIT, PREPEND_SPACE, METASPACE, BYTE_LEVEL };
enum behavior { ISOLATED, REMOVED, CONTIGUOUS, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT };
enum scheme { ALWAYS, FIRST, NEVER };

struct tok_split {
    enum step_kind kind;
    struct tok_pattern *pattern; /* SPLIT */
    enum behavior behavior;      /* SPLIT */
    bool invert;                 /* SPLIT */
    char mark[5];                /* METASPACE: what stands for a space */
    enum scheme scheme;          /* METASPACE: where one is put before the text */
};

#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char words[] = "[" WORD "\\x{200c}\\x{200d}]+|[^" WORD "\\x{200c}\\x{200d}\\s]+";
static const char punctuation[] = "[\\p{P}$+<=>\\^`|~]";

static enum rc cut_from(struct tok_cutter *c, size_t step, struct tok_piece piece, struct err *e);

static bool joins(enum behavior behavior, bool previous, bool current) {
    switch (behavior) {
    case CONTIGUOUS: return previous == current;
    case MERGED_WITH_PREVIOUS: return current && !previous;
    case MERGED_WITH_NEXT: return previous && !current;
    default: return false;
    }
}

/* One step at work on one piece: [start, end) waits for what may join it. */
struct splitting {
    struct tok_cutter *cutter;
    size_t step;
    struct tok_piece piece;
    size_t start, end;
    bool open, is_match;
};

static enum rc flush(struct splitting *s, struct err *e) {
    const struct tok_split *split = &s->cutter->splits->steps[s->step];
    if (!s->open || s->start == s->end || (split->behavior == REMOVED && s->is_match)) return RC_OK;
    struct tok_piece part = {s->piece.text + s->start, s->end - s->start, s->piece.at_start && s->start == 0};
    return cut_from(s->cutter, s->step + 1, part, e);
}

static enum rc add(struct splitting *s, size_t start, size_t end, bool is_match, struct err *e) {
    const struct tok_split *split = &s->cutter->splits->steps[s->step];
    is_match = is_match != split->invert;
    if (s->open && joins(split->behavior, s->is_match, is_match)) {
        s->end = end;
    } else {
        TRY(flush(s, e));
        s->start = start;
        s->end = end;
    }
    s->open = true;
    s->is_match = is_match;
    return RC_OK;
}

static enum rc split_piece(struct tok_cutter *c, size_t step, struct tok_piece piece, struct err *e) {
    struct tok_finder f = {c->splits->steps[step].pattern, c->scanner, piece.text, piece.len, 0, 0, false};
    struct splitting s = {.cutter = c, .step = step, .piece = piece};
    size_t done = 0, start, end;
    for (bool found;;) {
        TRY(tok_find(&f, &found, &start, &end, e));
        if (!found) break;
        if (done != start) TRY(add(&s, done, start, false, e));
        TRY(add(&s, start, end, true, e));
        done = end;
    }
    if (done != piece.len) TRY(add(&s, done, piece.len, false, e));
    return flush(&s, e);
}

static enum rc metaspace(const struct tok_split *step, struct tok_piece piece, struct tok_buf *out, struct err *e) {
    size_t mark_len = strlen(step->mark);
    bool marked = piece.text[0] == ' ' || (piece.len >= mark_len && memcmp(piece.text, step->mark, mark_len) == 0);
    bool wanted = step->scheme == ALWAYS || (step->scheme == FIRST && piece.at_start);
    if (wanted && !marked) TRY(tok_buf_append(out, step->mark, mark_len, e));
    for (size_t i = 0; i < piece.len;) {
        const char *space = memchr(piece.text + i, ' ', piece.len - i);
        size_t end = space != NULL ? (size_t)(space - piece.text) : piece.len;
        TRY(tok_buf_append(out, piece.text + i, end - i, e));
        if (space != NULL) TRY(tok_buf_append(out, step->mark, mark_len, e));
        i = end + 1;
    }
    return RC_OK;
}

static enum rc prepend_space(struct tok_piece piece, struct tok_buf *out, struct err *e) {
    if (piece.text[0] != ' ') TRY(tok_buf_append(out, " ", 1, e));
    return tok_buf_append(out, piece.text, piece.len, e);
}

static enum rc cut_from(struct tok_cutter *c, size_t step, struct tok_piece piece, struct err *e) {
    if (step == c->splits->count) return c->emit(c->context, piece, e);
    const struct tok_split *s = &c->splits->steps[step];
    if (s->kind == SPLIT) return split_piece(c, step, piece, e);
    struct tok_buf *out = &c->buffers[step];
    out->len = 0;
    if (s->kind == METASPACE)
        TRY(metaspace(s, piece, out, e));
    else if (s->kind == PREPEND_SPACE)
        TRY(prepend_space(piece, out, e));
    else
        TRY(tok_byte_level(piece.text, piece.len, out, e));
    return cut_from(c, step + 1, (struct tok_piece){out->data, out->len, piece.at_start}, e);
}

enum rc tok_cut(struct tok_cutter *c, struct tok_piece piece, struct err *e) {
    return piece.len > 0 ? cut_from(c, 0, piece, e) : RC_OK;
}

static enum rc add_step(struct tok_splits *s, const struct tok_place *p, struct tok_split step, struct err *e) {
    if (s->count == TOK_MAX_SPLITS) {
        tok_pattern_free(step.pattern);
        return tok_want(p, "one of fewer pre-tokenizers; more steps than 64 are not supported", e);
    }
    GROW(s->steps, s->count, s->capacity);
    s->steps[s->count++] = step;
    return RC_OK;
}

static enum rc add_regex(struct tok_splits *s, const struct tok_place *p, const char *regex, enum behavior behavior,
                         bool invert, struct err *e) {
    struct tok_split step = {.kind = SPLIT, .behavior = behavior, .invert = invert};
    TRY(tok_pattern_regex(regex, &step.pattern, e));
    return add_step(s, p, step, e);
}

static enum rc read_behavior(const struct tok_place *p, enum behavior *behavior, struct err *e) {
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
    const char *name;
    size_t len;
    TRY(tok_string(p, "behavior", &name, &len, e));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        *behavior = (enum behavior)i;
        if (strcmp(names[i], name) == 0) return RC_OK;
    }
    struct tok_place place = tok_member(p, "behavior");
    return tok_want(&place, "Isolated, Removed, Contiguous, MergedWithPrevious or MergedWithNext", e);
}

static enum rc read_split(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    struct tok_split step = {.kind = SPLIT};
    struct tok_place pattern = tok_member(p, "pattern");
    TRY(read_behavior(p, &step.behavior, e));
    TRY(tok_bool(p, "invert", &step.invert, e));
    TRY(tok_pattern_read(&pattern, &step.pattern, e));
    return add_step(s, p, step, e);
}

static enum rc read_byte_level(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    bool prefix = true, use_regex = true;
    TRY(tok_bool(p, "add_prefix_space", &prefix, e));
    TRY(tok_bool(p, "use_regex", &use_regex, e));
    if (prefix) TRY(add_step(s, p, (struct tok_split){.kind = PREPEND_SPACE}, e));
    if (use_regex) TRY(add_regex(s, p, gpt2, ISOLATED, false, e));
    return add_step(s, p, (struct tok_split){.kind = BYTE_LEVEL}, e);
}

static enum rc read_scheme(const struct tok_place *p, enum scheme *scheme, struct err *e) {
    static const char *const names[] = {"always", "first", "never"};
    struct tok_place place = tok_member(p, "prepend_scheme");
    bool prefix = true;
    TRY(tok_bool(p, "add_prefix_space", &prefix, e));
    *scheme = ALWAYS;
    if (place.value != NULL) {
        const char *name = json_string_value(place.value);
        size_t i = 0;
        while (i < 3 && (name == NULL || strcmp(names[i], name) != 0))
            i++;
        if (i == 3) return tok_want(&place, "always, first or never", e);
        *scheme = (enum scheme)i;
    }
    if (!prefix && *scheme != NEVER) return tok_want(&place, "never, as add_prefix_space is false", e);
    return RC_OK;
}

static enum rc one_character(const struct tok_place *p, const char *key, const char **text, size_t *len,
                             struct err *e) {
    TRY(tok_string(p, key, text, len, e));
    size_t size = 0;
    if (*len > 0) tok_codepoint(*text, &size);
    struct tok_place place = tok_member(p, key);
    return *len > 0 && size == *len ? RC_OK : tok_want(&place, "one character", e);
}

static enum rc read_metaspace(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    struct tok_split step = {.kind = METASPACE}, split = {.kind = SPLIT, .behavior = MERGED_WITH_NEXT};
    const char *mark;
    size_t len;
    bool splits = true;
    TRY(one_character(p, "replacement", &mark, &len, e));
    memcpy(step.mark, mark, len);
    TRY(read_scheme(p, &step.scheme, e));
    TRY(tok_bool(p, "split", &splits, e));
    TRY(add_step(s, p, step, e));
    if (!splits) return RC_OK;
    TRY(tok_pattern_literal(mark, len, &split.pattern, e));
    return add_step(s, p, split, e);
}

static enum rc read_digits(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    bool individual = false;
    TRY(tok_bool(p, "individual_digits", &individual, e));
    return add_regex(s, p, "\\p{N}", individual ? ISOLATED : CONTIGUOUS, false, e);
}

static enum rc read_punctuation(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    enum behavior behavior = ISOLATED;
    if (json_object_get(p->value, "behavior") != NULL) TRY(read_behavior(p, &behavior, e));
    return add_regex(s, p, punctuation, behavior, false, e);
}

static enum rc read_whitespace(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    return add_regex(s, p, words, REMOVED, true, e);
}

static enum rc read_whitespace_split(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    return add_regex(s, p, "\\s", REMOVED, false, e);
}

static enum rc read_bert(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    TRY(read_whitespace_split(s, p, e));
    return add_regex(s, p, punctuation, ISOLATED, false, e);
}

static enum rc read_delimiter(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    struct tok_split step = {.kind = SPLIT, .behavior = REMOVED};
    const char *text;
    size_t len;
    TRY(one_character(p, "delimiter", &text, &len, e));
    TRY(tok_pattern_literal(text, len, &step.pattern, e));
    return add_step(s, p, step, e);
}

static const struct {
    const char *type;
    enum rc (*read)(struct tok_splits *s, const struct tok_place *p, struct err *e);
} kinds[] = {
    {"Split", read_split},
    {"ByteLevel", read_byte_level},
    {"Metaspace", read_metaspace},
    {"Digits", read_digits},
    {"Punctuation", read_punctuation},
    {"Whitespace", read_whitespace},
    {"WhitespaceSplit", read_whitespace_split},
    {"BertPreTokenizer", read_bert},
    {"CharDelimiterSplit", read_delimiter},
};

static enum rc read_step(void *context, const char *type, const struct tok_place *p, struct err *e) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].type, type) == 0) return kinds[i].read(context, p, e);
    return err_at(e, p->pointer, RC_UNSUPPORTED, "tokenizer.json: the pre-tokenizer '%.60s' is not supported", type);
}

enum rc tok_splits_read(struct tok_splits *s, const struct tok_place *p, struct err *e) {
    return tok_each_step(p, "pretokenizers", read_step, s, e);
}

void tok_splits_release(struct tok_splits *s) {
    for (size_t i = 0; i < s->count; i++)
        tok_pattern_free(s->steps[i].pattern);
    free(s->steps);
    *s = (struct tok_splits){0};
}
