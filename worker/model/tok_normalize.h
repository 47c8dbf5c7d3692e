/* Normalizers. Internal to the tokenizer; loaded once, then used from any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_NORMALIZE_H
#define HSAQ_WORKER_MODEL_TOK_NORMALIZE_H

#include "worker/model/tok_regex.h"

struct tok_normalizer;

struct tok_normalizers {
    struct tok_normalizer *steps;
    size_t count, capacity;
};

/* `p`: the document's "normalizer", possibly absent. Release in any case. */
enum rc tok_normalizers_read(struct tok_normalizers *n, const struct tok_place *p, struct err *e);
void tok_normalizers_release(struct tok_normalizers *n);

/* Makes *piece the normalized text, which lies where it was or in one of the buffers. RC_INVALID when the normalizers
 * blow the text up beyond all that Unicode does. */
enum rc tok_normalize(const struct tok_normalizers *n, struct tok_scanner *scanner, struct tok_buf buffers[2],
                      struct tok_piece *piece, struct err *e);

#endif
