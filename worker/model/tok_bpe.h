/* The BPE model: pre-token → ids. Internal to the tokenizer; loaded once, then used from any thread, a state from one.
 */
#ifndef HSAQ_WORKER_MODEL_TOK_BPE_H
#define HSAQ_WORKER_MODEL_TOK_BPE_H

#include "worker/model/tok_json.h"
#include "worker/model/tok_text.h"

struct tok_bpe;
struct tok_bpe_state;

struct tok_ids {
    int32_t *items; /* [count] */
    size_t count, capacity;
};

enum rc tok_ids_add(struct tok_ids *ids, const int32_t *items, size_t count, struct err *e);

/* `p`: the document's "model". */
enum rc tok_bpe_read(const struct tok_place *p, struct tok_bpe **out, struct err *e);
void tok_bpe_free(struct tok_bpe *bpe);
int32_t tok_bpe_lookup(const struct tok_bpe *bpe, const char *token, size_t len); /* −1: not in the vocabulary */
int64_t tok_bpe_tokens(const struct tok_bpe *bpe);                                /* entries of the vocabulary */
int32_t tok_bpe_max_id(const struct tok_bpe *bpe);                                /* −1 when it is empty */

enum rc tok_bpe_state_new(struct tok_bpe_state **state, struct err *e);
void tok_bpe_state_free(struct tok_bpe_state *state);
enum rc tok_bpe_encode(const struct tok_bpe *bpe, struct tok_bpe_state *state, const char *text, size_t len,
                       struct tok_ids *ids, struct err *e);

#endif
