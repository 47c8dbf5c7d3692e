/* Pre-tokenizers: text → pre-tokens. Internal to the tokenizer; loaded once, then used from any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_PRETOKENIZE_H
#define HSAQ_WORKER_MODEL_TOK_PRETOKENIZE_H

#include "worker/model/tok_regex.h"

enum { TOK_MAX_SPLITS = 64 };

struct tok_split;

struct tok_splits {
    struct tok_split *steps;
    size_t count, capacity;
};

/* `p`: the document's "pre_tokenizer", possibly absent. Release in any case. */
enum rc tok_splits_read(struct tok_splits *s, const struct tok_place *p, struct err *e);
void tok_splits_release(struct tok_splits *s);

/* Cuts a piece and hands each pre-token, in order, to `emit`. A pre-token's text is good until `emit` returns. */
struct tok_cutter {
    const struct tok_splits *splits;
    struct tok_scanner *scanner;
    struct tok_buf buffers[TOK_MAX_SPLITS]; /* one for each step that makes new text */
    enum rc (*emit)(void *context, struct tok_piece pretoken, struct err *e);
    void *context;
};

enum rc tok_cut(struct tok_cutter *c, struct tok_piece piece, struct err *e);

#endif
