/* Added tokens: found in the text before anything else happens to it. Internal to the tokenizer; loaded once, then used
 * from any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_ADDED_H
#define HSAQ_WORKER_MODEL_TOK_ADDED_H

#include "worker/model/tok_bpe.h"
#include "worker/model/tok_normalize.h"

struct tok_added_token;
struct tok_trie_node;

struct tok_trie {
    struct tok_trie_node *nodes;
    size_t count, capacity;
    uint32_t roots[256]; /* node of each first byte; 0: none */
};

struct tok_added {
    struct tok_added_token *tokens;
    size_t count, capacity;
    int32_t max_id;
    struct tok_trie raw, normalized; /* those sought before and after normalization */
};

/* `p`: the document's "added_tokens", possibly absent. Release in any case. */
enum rc tok_added_read(struct tok_added *a, const struct tok_place *p, const struct tok_bpe *bpe,
                       const struct tok_normalizers *n, struct err *e);
void tok_added_release(struct tok_added *a);

/* Hands on, in order, the stretches between tokens (id −1) and the tokens found (id ≥ 0, no text). */
typedef enum rc tok_added_sink(void *context, struct tok_piece piece, int32_t id, struct err *e);
enum rc tok_added_split(const struct tok_added *a, const struct tok_trie *trie, struct tok_piece piece,
                        tok_added_sink *sink, void *context, struct err *e);

#endif
