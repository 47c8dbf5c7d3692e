/* Post-processors: the ids around a text. Internal to the tokenizer; loaded once, then used from any thread. */
#ifndef HSAQ_WORKER_MODEL_TOK_TEMPLATE_H
#define HSAQ_WORKER_MODEL_TOK_TEMPLATE_H

#include "worker/model/tok_bpe.h"

struct tok_template {
    struct tok_ids before, after;
};

/* `p`: the document's "post_processor", possibly absent. Ids not below vocab_size are RC_INVALID. Release in any case.
 */
enum rc tok_template_read(struct tok_template *t, const struct tok_place *p, int64_t vocab_size, struct err *e);
void tok_template_release(struct tok_template *t);

#endif
