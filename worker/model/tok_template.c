#include "worker/model/tok_template.h"

#include <stdlib.h>
#include <string.h>

struct reading {
    struct tok_template *template;
    int64_t vocab_size;
};

/* {"SpecialToken": {"id": NAME}}: the ids that the document's special_tokens has for NAME. */
static enum rc special_ids(const struct reading *r, const struct tok_place *p, const struct tok_place *special,
                           struct tok_ids *out, struct err *e) {
    const char *name;
    size_t len;
    TRY(tok_string(special, "id", &name, &len, e));
    struct tok_place table = tok_member(p, "special_tokens"), entry = tok_member(&table, name);
    struct tok_place ids = tok_member(&entry, "ids");
    TRY(tok_want_array(&ids, e));
    for (size_t i = 0; i < json_array_size(ids.value); i++) {
        struct tok_place item = tok_item(&ids, i);
        int32_t id;
        TRY(tok_id(&item, &id, e));
        if (id >= r->vocab_size) return tok_want(&item, "an id of the vocabulary", e);
        TRY(tok_ids_add(out, &id, 1, e));
    }
    return RC_OK;
}

/* Ids before the text's place ("Sequence" A) and after it. */
static enum rc read_single(const struct reading *r, const struct tok_place *p, struct tok_template *made,
                           struct err *e) {
    struct tok_place single = tok_member(p, "single");
    size_t sequences = 0;
    TRY(tok_want_array(&single, e));
    for (size_t i = 0; i < json_array_size(single.value); i++) {
        struct tok_place item = tok_item(&single, i);
        TRY(tok_want_object(&item, e));
        struct tok_place special = tok_member(&item, "SpecialToken"), sequence = tok_member(&item, "Sequence");
        if (special.value != NULL) {
            TRY(special_ids(r, p, &special, sequences == 0 ? &made->before : &made->after, e));
            continue;
        }
        const char *name;
        size_t len;
        TRY(tok_string(&sequence, "id", &name, &len, e));
        if (strcmp(name, "A") != 0) return tok_want(&sequence, "sequence A, the only one of a single text", e);
        sequences++;
    }
    if (sequences == 1) return RC_OK;
    return err_at(e, single.pointer, RC_UNSUPPORTED, "tokenizer.json: a template must hold sequence A exactly once");
}

/* A later template goes around what the ones before it made. */
static enum rc wrap(struct tok_template *inner, struct tok_template *outer, struct err *e) {
    TRY(tok_ids_add(&outer->before, inner->before.items, inner->before.count, e));
    TRY(tok_ids_add(&inner->after, outer->after.items, outer->after.count, e));
    struct tok_ids before = inner->before;
    inner->before = outer->before;
    outer->before = before;
    return RC_OK;
}

static enum rc read_step(void *context, const char *type, const struct tok_place *p, struct err *e) {
    struct reading *r = context;
    if (strcmp(type, "ByteLevel") == 0) return RC_OK; /* moves offsets alone */
    if (strcmp(type, "TemplateProcessing") != 0)
        return err_at(e, p->pointer, RC_UNSUPPORTED, "tokenizer.json: the post-processor '%.60s' is not supported",
                      type);
    struct tok_template made = {0};
    enum rc rc = read_single(r, p, &made, e);
    if (rc == RC_OK) rc = wrap(r->template, &made, e);
    tok_template_release(&made);
    return rc;
}

enum rc tok_template_read(struct tok_template *t, const struct tok_place *p, int64_t vocab_size, struct err *e) {
    struct reading r = {t, vocab_size};
    return tok_each_step(p, "processors", read_step, &r, e);
}

void tok_template_release(struct tok_template *t) {
    free(t->before.items);
    free(t->after.items);
    *t = (struct tok_template){0};
}
