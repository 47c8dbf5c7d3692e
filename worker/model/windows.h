/* A dataset's text as token windows, for calibration and evaluation.
 *
 * The text is tokenized once and whole, with whatever the tokenizer's post-processor puts before and after a text (BOS:
 * once, at the start of the text). Windows are consecutive, of equal length, without overlap; a last partial one is
 * dropped and its size reported. Pure functions but for tokens_read; any thread. */
#ifndef HSAQ_WORKER_MODEL_WINDOWS_H
#define HSAQ_WORKER_MODEL_WINDOWS_H

#include <stdint.h>

#include "base/err.h"
#include "worker/model/hash.h"
#include "worker/model/tokenizer.h"

struct tokens {
    int32_t *ids; /* [count] malloc'ed */
    int64_t count;
};

/* Token windows, all of the same length. Labels ids[w][first_label … length−1] are scored, each predicted from the
 * position before it. */
struct windows {
    int32_t *ids; /* [count, length] malloc'ed */
    int64_t count, length;
    int64_t first_label;
};

/* RC_INVALID when the text is not UTF-8 (with the offset) or when an id is not below `vocab` (the model's, which may be
 * padded past the tokenizer's). */
enum rc tokens_encode(const struct tokenizer *t, const char *text, size_t len, int64_t vocab, struct tokens *out,
                      struct err *e);
/* The same for a file. */
enum rc tokens_read(const struct tokenizer *t, const char *path, int64_t vocab, struct tokens *out, struct err *e);
void tokens_release(struct tokens *tokens);

/* Protocol "windows": every window from the start, at most `limit` (0: all); all labels but
 * the first are scored. `*dropped`: tokens of the last partial window, whether or not `limit` ended before it. */
enum rc windows_all(const struct tokens *tokens, int64_t length, int64_t limit, struct windows *out, int64_t *dropped,
                    struct err *e);

/* Protocol "llama.cpp": as its perplexity tool does, the first token of every window becomes BOS (`bos` −1: kept), and
 * only labels beyond the middle are scored: length/2 + 1 … length − 1. */
enum rc windows_llama_cpp(const struct tokens *tokens, int64_t length, int64_t limit, int32_t bos, struct windows *out,
                          int64_t *dropped, struct err *e);

/* Calibration: `samples` windows. Sequential: the first ones. Random: distinct windows of the consecutive ones, drawn
 * by a partial Fisher–Yates shuffle of their numbers with splitmix64(seed) and kept in the order of the text, so that a
 * seed means the same everywhere. RC_INVALID when the text has fewer. */
enum rc windows_first(const struct tokens *tokens, int64_t length, int64_t samples, struct windows *out, struct err *e);
enum rc windows_random(const struct tokens *tokens, int64_t length, int64_t samples, uint64_t seed, struct windows *out,
                       struct err *e);

/* Over the ids and the length: equal windows have equal hashes, wherever they came from. */
struct hash128 windows_hash(const struct windows *windows);
void windows_release(struct windows *windows);

#endif
