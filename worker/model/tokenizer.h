/* tokenizer.json (Hugging Face tokenizers) → token ids, byte-exact with the reference implementation.
 *
 * Implements: added tokens; normalizers NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Replace, Prepend, Strip,
 * ByteLevel, Sequence; pre-tokenizers Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit,
 * CharDelimiterSplit, BertPreTokenizer, Sequence; BPE with merges as strings or pairs, byte_fallback, fuse_unk,
 * ignore_merges, continuing_subword_prefix, end_of_word_suffix; post-processors TemplateProcessing, ByteLevel,
 * Sequence. Anything else that changes ids is RC_UNSUPPORTED, naming it. Ignored, because a measurement needs every
 * token of its text and no other: truncation, padding, the decoder. An added token whose declared id is not the one the
 * reference gives it (its id in the vocabulary, else the next free one) is RC_INVALID.
 * Character classes are those of the linked PCRE2 and utf8proc: a letter of a newer Unicode is not one to them.
 * Time is linear in the text (n log n inside one pre-token); patterns run on PCRE2 with limits on steps, memory and
 * processor time, and one that hits them is an error, not a hang. Threads: load once, then encode from any thread. */
#ifndef HSAQ_WORKER_MODEL_TOKENIZER_H
#define HSAQ_WORKER_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct tokenizer;

enum rc tokenizer_load(int dir_fd, struct tokenizer **t, struct err *e); /* DIR/tokenizer.json */
enum rc tokenizer_parse(const char *json, size_t len, struct tokenizer **t, struct err *e);
void tokenizer_free(struct tokenizer *t);

/* `special_tokens`: let the post-processor add BOS/EOS. `*ids` is malloc'ed. Text must be UTF-8 (RC_INVALID names the
 * byte offset otherwise) and below 2 GiB. */
enum rc tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool special_tokens, int32_t **ids,
                         size_t *count, struct err *e);
/* The id that the post-processor puts before a text, or −1. */
int32_t tokenizer_bos(const struct tokenizer *t);
/* The largest id that encoding can give, plus one. */
int64_t tokenizer_vocab_size(const struct tokenizer *t);

#endif
