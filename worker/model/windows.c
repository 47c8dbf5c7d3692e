#include "worker/model/windows.h"

#include <stdlib.h>
#include <string.h>

#include "base/random.h"

enum { LENGTH_MIN = 2 }; /* one token has nothing to predict */

/* Room for windows [count, length], after all checks of what was asked for. */
static enum rc windows_alloc(const struct tokens *tokens, int64_t length, int64_t count, struct windows *out,
                             struct err *e) {
    *out = (struct windows){NULL, count, length, 1};
    if (length < LENGTH_MIN)
        return err_set(e, RC_INVALID, "windows of %lld tokens were asked for; a window has at least %d",
                       (long long)length, LENGTH_MIN);
    int64_t available = tokens->count / length;
    if (available == 0)
        return err_set(e, RC_INVALID,
                       "the dataset has %lld tokens, fewer than one window of %lld; use a longer text or "
                       "shorter windows",
                       (long long)tokens->count, (long long)length);
    if (count < 1 || count > available)
        return err_set(
            e, RC_INVALID,
            "the dataset has %lld tokens, that is %lld windows of %lld, but %lld were asked for; use a longer "
            "text, or fewer or shorter windows",
            (long long)tokens->count, (long long)available, (long long)length, (long long)count);
    out->ids = malloc((size_t)(count * length) * sizeof *out->ids);
    if (out->ids == NULL)
        return err_set(e, RC_NO_MEMORY, "no memory for %lld windows of %lld tokens", (long long)count,
                       (long long)length);
    return RC_OK;
}

static void copy_window(const struct tokens *tokens, int64_t from, struct windows *out, int64_t to) {
    memcpy(out->ids + to * out->length, tokens->ids + from * out->length, (size_t)out->length * sizeof *out->ids);
}

enum rc windows_first(const struct tokens *tokens, int64_t length, int64_t samples, struct windows *out,
                      struct err *e) {
    TRY(windows_alloc(tokens, length, samples, out, e));
    for (int64_t i = 0; i < samples; i++)
        copy_window(tokens, i, out, i);
    return RC_OK;
}

enum rc windows_all(const struct tokens *tokens, int64_t length, int64_t limit, struct windows *out, int64_t *dropped,
                    struct err *e) {
    int64_t available = length > 0 ? tokens->count / length : 0;
    *dropped = length > 0 ? tokens->count % length : 0;
    return windows_first(tokens, length, limit > 0 && limit < available ? limit : available, out, e);
}

enum rc windows_llama_cpp(const struct tokens *tokens, int64_t length, int64_t limit, int32_t bos, struct windows *out,
                          int64_t *dropped, struct err *e) {
    enum { SHORTEST = 4 }; /* below that nothing lies beyond the middle */
    if (length < SHORTEST)
        return err_set(e, RC_INVALID, "windows of %lld tokens were asked for; the llama.cpp protocol needs %d",
                       (long long)length, SHORTEST);
    TRY(windows_all(tokens, length, limit, out, dropped, e));
    for (int64_t i = 0; bos >= 0 && i < out->count; i++)
        out->ids[i * length] = bos;
    out->first_label = length / 2 + 1;
    return RC_OK;
}

/* Uniform in [0, bound): values from the incomplete last stretch of 2^64 are drawn again. */
static uint64_t below(uint64_t *state, uint64_t bound) {
    uint64_t excess = -bound % bound, value;
    do
        value = splitmix64(state);
    while (value < excess);
    return value % bound;
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

enum rc windows_random(const struct tokens *tokens, int64_t length, int64_t samples, uint64_t seed, struct windows *out,
                       struct err *e) {
    TRY(windows_alloc(tokens, length, samples, out, e));
    int64_t available = tokens->count / length;
    int64_t *numbers = calloc((size_t)available, sizeof *numbers);
    if (numbers == NULL) {
        windows_release(out);
        return err_set(e, RC_NO_MEMORY, "no memory to draw from %lld windows", (long long)available);
    }
    for (int64_t i = 0; i < available; i++)
        numbers[i] = i;
    for (int64_t i = 0; i < samples; i++) {
        int64_t j = i + (int64_t)below(&seed, (uint64_t)(available - i)), drawn = numbers[j];
        numbers[j] = numbers[i];
        numbers[i] = drawn;
    }
    qsort(numbers, (size_t)samples, sizeof *numbers, ascending);
    for (int64_t i = 0; i < samples; i++)
        copy_window(tokens, numbers[i], out, i);
    free(numbers);
    return RC_OK;
}

struct hash128 windows_hash(const struct windows *windows) {
    struct {
        int64_t length;
        struct hash128 ids;
    } content = {windows->length,
                 hash_bytes(windows->ids, (size_t)(windows->count * windows->length) * sizeof *windows->ids)};
    return hash_bytes(&content, sizeof content);
}

void windows_release(struct windows *windows) {
    free(windows->ids);
    *windows = (struct windows){0};
}
