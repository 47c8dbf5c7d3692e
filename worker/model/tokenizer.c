#include "worker/model/tokenizer.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/model/folder.h"
#include "worker/model/tok_added.h"
#include "worker/model/tok_pretokenize.h"
#include "worker/model/tok_template.h"

enum { MAX_FILE = 256 << 20 };

struct tokenizer {
    struct tok_bpe *bpe;
    struct tok_normalizers normalizers;
    struct tok_splits splits;
    struct tok_added added;
    struct tok_template template;
    int64_t vocab_size;
};

static enum rc read_document(struct tokenizer *t, const json_t *document, struct err *e) {
    struct tok_place root = {.value = document};
    TRY(tok_want_object(&root, e));
    struct tok_place model = tok_member(&root, "model"), normalizer = tok_member(&root, "normalizer");
    struct tok_place splits = tok_member(&root, "pre_tokenizer"), added = tok_member(&root, "added_tokens");
    struct tok_place template = tok_member(&root, "post_processor");
    TRY(tok_bpe_read(&model, &t->bpe, e));
    TRY(tok_normalizers_read(&t->normalizers, &normalizer, e));
    TRY(tok_splits_read(&t->splits, &splits, e));
    TRY(tok_added_read(&t->added, &added, t->bpe, &t->normalizers, e));
    int32_t model_max = tok_bpe_max_id(t->bpe);
    t->vocab_size = (int64_t)(model_max > t->added.max_id ? model_max : t->added.max_id) + 1;
    return tok_template_read(&t->template, &template, t->vocab_size, e);
}

enum rc tokenizer_parse(const char *json, size_t len, struct tokenizer **out, struct err *e) {
    json_t *document;
    if (json_parse(json, len, &document, e) != RC_OK) return err_context(e, "tokenizer.json");
    struct tokenizer *t = xcalloc(1, sizeof *t);
    enum rc rc = read_document(t, document, e);
    json_decref(document);
    if (rc == RC_OK)
        *out = t;
    else
        tokenizer_free(t);
    return rc;
}

enum rc tokenizer_load(int dir_fd, struct tokenizer **t, struct err *e) {
    char *text;
    size_t len;
    TRY(folder_read(dir_fd, "tokenizer.json", MAX_FILE, &text, &len, e));
    enum rc rc = tokenizer_parse(text, len, t, e);
    free(text);
    return rc;
}

void tokenizer_free(struct tokenizer *t) {
    if (t == NULL) return;
    tok_bpe_free(t->bpe);
    tok_normalizers_release(&t->normalizers);
    tok_splits_release(&t->splits);
    tok_added_release(&t->added);
    tok_template_release(&t->template);
    free(t);
}

/* One text on its way: added tokens → normalizers → normalized added tokens → pre-tokens → BPE. */
struct encoding {
    const struct tokenizer *t;
    struct tok_cutter cutter;
    struct tok_buf normal[2];
    struct tok_bpe_state *bpe;
    struct tok_ids ids;
};

static enum rc encode_pretoken(void *context, struct tok_piece pretoken, struct err *e) {
    struct encoding *x = context;
    return tok_bpe_encode(x->t->bpe, x->bpe, pretoken.text, pretoken.len, &x->ids, e);
}

static enum rc after_normalization(void *context, struct tok_piece piece, int32_t id, struct err *e) {
    struct encoding *x = context;
    return id >= 0 ? tok_ids_add(&x->ids, &id, 1, e) : tok_cut(&x->cutter, piece, e);
}

static enum rc before_normalization(void *context, struct tok_piece piece, int32_t id, struct err *e) {
    struct encoding *x = context;
    if (id >= 0) return tok_ids_add(&x->ids, &id, 1, e);
    TRY(tok_normalize(&x->t->normalizers, x->cutter.scanner, x->normal, &piece, e));
    return tok_added_split(&x->t->added, &x->t->added.normalized, piece, after_normalization, x, e);
}

static enum rc encode(struct encoding *x, const char *text, size_t len, bool special_tokens, struct err *e) {
    const struct tok_template *around = &x->t->template;
    x->cutter.splits = &x->t->splits;
    x->cutter.emit = encode_pretoken;
    x->cutter.context = x;
    TRY(tok_scanner_new(len, &x->cutter.scanner, e));
    TRY(tok_bpe_state_new(&x->bpe, e));
    if (special_tokens) TRY(tok_ids_add(&x->ids, around->before.items, around->before.count, e));
    struct tok_piece whole = {text, len, true};
    TRY(tok_added_split(&x->t->added, &x->t->added.raw, whole, before_normalization, x, e));
    return special_tokens ? tok_ids_add(&x->ids, around->after.items, around->after.count, e) : RC_OK;
}

static void encoding_release(struct encoding *x) {
    tok_scanner_free(x->cutter.scanner);
    tok_bpe_state_free(x->bpe);
    tok_buf_release(&x->normal[0]);
    tok_buf_release(&x->normal[1]);
    for (size_t i = 0; i < TOK_MAX_SPLITS; i++)
        tok_buf_release(&x->cutter.buffers[i]);
}

enum rc tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool special_tokens, int32_t **ids,
                         size_t *count, struct err *e) {
    if (len >= INT32_MAX) return err_set(e, RC_TOO_LARGE, "a text of %zu bytes; below 2 GiB works", len);
    TRY(tok_utf8_check(text, len, e));
    struct encoding x = {.t = t};
    enum rc rc = encode(&x, text, len, special_tokens, e);
    encoding_release(&x);
    if (rc == RC_OK && x.ids.items == NULL) x.ids.items = xcalloc(1, sizeof *x.ids.items);
    if (rc != RC_OK) {
        free(x.ids.items);
        return rc;
    }
    *ids = x.ids.items;
    *count = x.ids.count;
    return RC_OK;
}

int32_t tokenizer_bos(const struct tokenizer *t) {
    return t->template.before.count > 0 ? t->template.before.items[0] : -1;
}

int64_t tokenizer_vocab_size(const struct tokenizer *t) {
    return t->vocab_size;
}
