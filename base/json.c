#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

/* One open array or object on the way to a position. `key` is the raw token, quotes included. */
struct level {
    bool is_object, expects_key;
    size_t index;
    const char *key;
    size_t key_len;
};

/* Follows JSON text without building it: jansson reports only byte positions, and nests deeper than we want. Anything
 * may be fed to it; where the text is no JSON the levels mean nothing, and the parser says so. */
struct scan {
    const char *text;
    size_t pos;
    int depth;
    struct level levels[JSON_MAX_DEPTH];
};

static void skip_string(struct scan *s, size_t end) {
    size_t start = s->pos++;
    while (s->pos < end && s->text[s->pos] != '"')
        s->pos += s->text[s->pos] == '\\' ? 2 : 1;
    s->pos = s->pos < end ? s->pos + 1 : end;
    struct level *top = s->depth > 0 ? &s->levels[s->depth - 1] : NULL;
    if (top == NULL || !top->expects_key) return;
    top->key = s->text + start;
    top->key_len = s->pos - start;
}

/* Reads up to `end`. False when it nests too deep, with `pos` at the bracket that did it. */
static bool scan_to(struct scan *s, size_t end) {
    while (s->pos < end) {
        char c = s->text[s->pos];
        struct level *top = s->depth > 0 ? &s->levels[s->depth - 1] : NULL;
        if (c == '"') {
            skip_string(s, end);
            continue;
        }
        if (c == '{' || c == '[') {
            if (s->depth == JSON_MAX_DEPTH) return false;
            s->levels[s->depth++] = (struct level){.is_object = c == '{', .expects_key = c == '{'};
        } else if ((c == '}' || c == ']') && top != NULL) {
            s->depth--;
        } else if (c == ':' && top != NULL) {
            top->expects_key = false;
        } else if (c == ',' && top != NULL) {
            top->expects_key = top->is_object;
            top->index++;
        }
        s->pos++;
    }
    return true;
}

static void push_raw_key(char *pointer, size_t capacity, const struct level *level) {
    json_t *key = json_loadb(level->key, level->key_len, JSON_DECODE_ANY, NULL);
    if (json_is_string(key)) json_pointer_push_key(pointer, capacity, json_string_value(key));
    json_decref(key);
}

static void pointer_of_position(const char *text, size_t position, char *pointer, size_t capacity) {
    struct scan s = {.text = text};
    pointer[0] = '\0';
    scan_to(&s, position);
    for (int i = 0; i < s.depth; i++) {
        const struct level *level = &s.levels[i];
        if (!level->is_object)
            json_pointer_push_index(pointer, capacity, level->index);
        else if (level->key != NULL)
            push_raw_key(pointer, capacity, level);
    }
}

static enum rc malformed_at(const char *text, size_t position, const char *what, struct err *e) {
    int line = 1, column = 1;
    for (size_t i = 0; i < position; i++) {
        bool newline = text[i] == '\n';
        line += newline;
        column = newline ? 1 : column + 1;
    }
    return err_set(e, RC_MALFORMED, "not JSON: %s at line %d, column %d", what, line, column);
}

static enum rc explain(const char *text, size_t len, const json_error_t *error, struct err *e) {
    char pointer[sizeof e->pointer];
    size_t position = error->position > 0 ? (size_t)error->position : 0;
    pointer_of_position(text, position < len ? position : len, pointer, sizeof pointer);
    switch (json_error_code(error)) {
    case json_error_duplicate_key:
        return err_at(e, pointer, RC_INVALID, "the key appears twice in one object; keep one of them");
    case json_error_numeric_overflow:
        return err_at(e, pointer, RC_INVALID, "the number is too large: integers must fit 64 bits, others a double");
    case json_error_null_character:
    case json_error_null_byte_in_key: return err_at(e, pointer, RC_INVALID, "strings must not contain \\u0000");
    case json_error_out_of_memory: return err_set(e, RC_NO_MEMORY, "not enough memory to parse %zu bytes of JSON", len);
    default:
        return err_set(e, RC_MALFORMED, "not JSON: %s at line %d, column %d", error->text, error->line, error->column);
    }
}

enum rc json_parse(const char *text, size_t len, json_t **out, struct err *e) {
    struct scan depth = {.text = text};
    if (!scan_to(&depth, len)) return malformed_at(text, depth.pos, "nested too deep", e);
    const char *nul = memchr(text, '\0', len); /* where jansson would stop, content with what came before */
    if (nul != NULL) return malformed_at(text, (size_t)(nul - text), "a NUL byte", e);
    json_error_t error;
    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    return *out != NULL ? RC_OK : explain(text, len, &error, e);
}

static enum rc read_all(int fd, const char *path, size_t size, char *buffer, size_t *got, struct err *e) {
    for (*got = 0; *got < size;) {
        ssize_t n = read(fd, buffer + *got, size - *got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, "cannot read '%s'", path);
        if (n == 0) break;
        *got += (size_t)n;
    }
    return RC_OK;
}

static enum rc parse_open_file(int fd, const char *path, size_t max_bytes, json_t **out, struct err *e) {
    struct stat st;
    if (fstat(fd, &st) < 0) return err_errno(e, "cannot stat '%s'", path);
    if (!S_ISREG(st.st_mode)) return err_set(e, RC_INVALID, "'%s' is not a regular file", path);
    size_t size = (size_t)st.st_size, got = 0;
    if (size > max_bytes)
        return err_set(e, RC_TOO_LARGE, "'%s' has %zu bytes; at most %zu are read", path, size, max_bytes);
    char *text = calloc(size + 1, 1);
    if (text == NULL) return err_set(e, RC_NO_MEMORY, "not enough memory to read '%s' (%zu bytes)", path, size);
    enum rc rc = read_all(fd, path, size, text, &got, e);
    if (rc == RC_OK) {
        rc = json_parse(text, got, out, e);
        if (rc != RC_OK) err_context(e, "'%s'", path);
    }
    free(text);
    return rc;
}

enum rc json_parse_file(const char *path, size_t max_bytes, json_t **out, struct err *e) {
    /* O_NONBLOCK: a FIFO in a file's place must not hold us up. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return err_errno(e, "cannot open '%s'", path);
    enum rc rc = parse_open_file(fd, path, max_bytes, out, e);
    close(fd);
    return rc;
}

/* 3.3, not 3.2999999999999998. `number` has `len` bytes of jansson's 17 digits; `out` may be the same place. What would
 * become an integer, or no shorter, stays. */
static size_t shorten(const char *number, size_t len, char *out) {
    char text[32];
    double value = strtod(number, NULL);
    for (int digits = 15; digits < 17; digits++) {
        int n = snprintf(text, sizeof text, "%.*g", digits, value);
        if ((size_t)n >= len || strpbrk(text, ".e") == NULL || strtod(text, NULL) != value) continue;
        memcpy(out, text, (size_t)n);
        return (size_t)n;
    }
    memmove(out, number, len);
    return len;
}

/* In place: a dump has nothing but strings, numbers, names, punctuation and spaces. */
static void shorten_reals(char *text) {
    char *out = text;
    while (*text != '\0') {
        size_t len = strspn(text, "+-.0123456789eE");
        bool number = *text == '-' || (*text >= '0' && *text <= '9');
        if (number && memchr(text, '.', len) != NULL) {
            out += shorten(text, len, out);
            text += len;
            continue;
        }
        if (!number) len = 1;
        if (*text == '"')
            while (text[len++] != '"')
                if (text[len - 1] == '\\') len++;
        memmove(out, text, len);
        out += len;
        text += len;
    }
    *out = '\0';
}

char *json_line(const json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (text != NULL) shorten_reals(text);
    return text;
}

char *json_pretty(const json_t *value, bool sorted) {
    size_t order = sorted ? JSON_SORT_KEYS : 0;
    char *text = json_dumps(value, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17) | order);
    if (text != NULL) shorten_reals(text);
    return text;
}

/* A pointer that no longer fits ends in this, and grows no more: a cut-off one would name another place. */
static const char cut[] = "/…";

static void push(char *pointer, size_t capacity, const char *token) {
    size_t used = strlen(pointer), mark = sizeof cut - 1;
    if (used >= mark && strcmp(pointer + used - mark, cut) == 0) return;
    bool fits = used + strlen(token) + mark < capacity;
    snprintf(pointer + used, capacity - used, "%s", fits ? token : cut);
}

void json_pointer_push_key(char *pointer, size_t capacity, const char *key) {
    char *token = xcalloc(1, 2 * strlen(key) + 2), *p = token;
    *p++ = '/';
    for (; *key; key++) {
        if (*key == '~' || *key == '/') {
            *p++ = '~';
            *p++ = *key == '~' ? '0' : '1';
        } else {
            *p++ = *key;
        }
    }
    push(pointer, capacity, token);
    free(token);
}

void json_pointer_push_index(char *pointer, size_t capacity, size_t index) {
    char token[24];
    snprintf(token, sizeof token, "/%zu", index);
    push(pointer, capacity, token);
}

const char *json_type_name(const json_t *value) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return value == NULL ? "nothing" : names[json_typeof(value)];
}

static enum rc wrong(const char *key, const char *expected, const json_t *value, struct err *e) {
    char pointer[sizeof e->pointer] = "";
    json_pointer_push_key(pointer, sizeof pointer, key);
    return err_at(e, pointer, RC_INVALID, "'%.100s' must be %s, not %s", key, expected, json_type_name(value));
}

static const json_t *member(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

enum rc json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out, struct err *e) {
    const json_t *value = member(object, key);
    if (value == NULL) return RC_OK;
    if (!json_is_integer(value)) return wrong(key, "an integer", value, e);
    int64_t number = json_integer_value(value);
    if (number < min || number > max) {
        char pointer[sizeof e->pointer] = "";
        json_pointer_push_key(pointer, sizeof pointer, key);
        return err_at(e, pointer, RC_INVALID, "'%.100s' is %lld; it must be between %lld and %lld", key,
                      (long long)number, (long long)min, (long long)max);
    }
    *out = number;
    return RC_OK;
}

enum rc json_get_number(const json_t *object, const char *key, double *out, struct err *e) {
    const json_t *value = member(object, key);
    if (value == NULL) return RC_OK;
    if (!json_is_number(value)) return wrong(key, "a number", value, e);
    *out = json_number_value(value);
    return RC_OK;
}

enum rc json_get_bool(const json_t *object, const char *key, bool *out, struct err *e) {
    const json_t *value = member(object, key);
    if (value == NULL) return RC_OK;
    if (!json_is_boolean(value)) return wrong(key, "true or false", value, e);
    *out = json_is_true(value);
    return RC_OK;
}

enum rc json_get_string(const json_t *object, const char *key, const char **out, struct err *e) {
    const json_t *value = member(object, key);
    if (value == NULL) return RC_OK;
    if (!json_is_string(value)) return wrong(key, "a string", value, e);
    *out = json_string_value(value);
    return RC_OK;
}
