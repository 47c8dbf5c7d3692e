#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "base/mem.h"
#include "worker/model/tok_bpe_internal.h"

static size_t vocab_slot(const struct tok_bpe *bpe, const char *token, size_t len) {
    size_t i = XXH3_64bits_withSeed(token, len, bpe->seed) & bpe->vocab_mask;
    while (bpe->vocab[i].text != NULL && (bpe->vocab[i].len != len || memcmp(bpe->vocab[i].text, token, len) != 0))
        i = (i + 1) & bpe->vocab_mask;
    return i;
}

static size_t merge_slot(const struct tok_bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = XXH3_64bits_withSeed(&key, sizeof key, bpe->seed) & bpe->merge_mask;
    for (;; i = (i + 1) & bpe->merge_mask) {
        const struct tok_merge_slot *s = &bpe->merges[i];
        if (s->rank == UINT32_MAX || (s->left == (uint32_t)left && s->right == (uint32_t)right)) return i;
    }
}

int32_t tok_bpe_lookup(const struct tok_bpe *bpe, const char *token, size_t len) {
    const struct tok_vocab_slot *s = &bpe->vocab[vocab_slot(bpe, token, len)];
    return s->text != NULL ? s->id : -1;
}

const struct tok_merge_slot *tok_merge_find(const struct tok_bpe *bpe, int32_t left, int32_t right) {
    const struct tok_merge_slot *s = &bpe->merges[merge_slot(bpe, left, right)];
    return s->rank != UINT32_MAX ? s : NULL;
}

int64_t tok_bpe_tokens(const struct tok_bpe *bpe) {
    return (int64_t)bpe->tokens;
}

int32_t tok_bpe_max_id(const struct tok_bpe *bpe) {
    return bpe->max_id;
}

static size_t table_size(size_t count) {
    size_t size = 16;
    while (size < 2 * count)
        size *= 2;
    return size;
}

static enum rc allocate_vocab(struct tok_bpe *bpe, const json_t *vocab, struct err *e) {
    size_t bytes = 1, size = table_size(json_object_size(vocab));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)vocab, key, value) bytes += strlen(key);
    bpe->blob = malloc(bytes);
    bpe->vocab = calloc(size, sizeof *bpe->vocab);
    bpe->vocab_mask = size - 1;
    if (bpe->blob == NULL || bpe->vocab == NULL)
        return err_set(e, RC_NO_MEMORY, "no memory for a vocabulary of %zu tokens", json_object_size(vocab));
    return RC_OK;
}

static enum rc fill_vocab(struct tok_bpe *bpe, const struct tok_place *p, struct err *e) {
    char *end = bpe->blob;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)p->value, key, value) {
        int32_t id;
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= INT32_MAX) {
            struct tok_place place = tok_member(p, key);
            return tok_id(&place, &id, e);
        }
        id = (int32_t)json_integer_value(value);
        size_t len = strlen(key);
        bpe->vocab[vocab_slot(bpe, key, len)] = (struct tok_vocab_slot){memcpy(end, key, len), (uint32_t)len, id};
        end += len;
        bpe->tokens++;
        if (id > bpe->max_id) bpe->max_id = id;
    }
    return RC_OK;
}

static int compare_slots(const void *a, const void *b) {
    int32_t x = (*(const struct tok_vocab_slot *const *)a)->id, y = (*(const struct tok_vocab_slot *const *)b)->id;
    return (x > y) - (x < y);
}

static enum rc check_unique(const struct tok_bpe *bpe, const struct tok_place *p, struct err *e) {
    const struct tok_vocab_slot **sorted = malloc((bpe->tokens + 1) * sizeof(void *));
    if (sorted == NULL) return err_set(e, RC_NO_MEMORY, "no memory to check %zu tokens", bpe->tokens);
    size_t count = 0;
    for (size_t i = 0; i <= bpe->vocab_mask; i++)
        if (bpe->vocab[i].text != NULL) sorted[count++] = &bpe->vocab[i];
    qsort(sorted, count, sizeof *sorted, compare_slots);
    enum rc rc = RC_OK;
    for (size_t i = 1; i < count && rc == RC_OK; i++)
        if (sorted[i]->id == sorted[i - 1]->id)
            rc = err_at(e, p->pointer, RC_INVALID, "tokenizer.json: '%.*s' and '%.*s' of the vocabulary share id %d",
                        (int)(sorted[i - 1]->len < 64 ? sorted[i - 1]->len : 64), sorted[i - 1]->text,
                        (int)(sorted[i]->len < 64 ? sorted[i]->len : 64), sorted[i]->text, sorted[i]->id);
    free(sorted);
    return rc;
}

struct part {
    const char *text;
    size_t len;
};

/* "a b" or ["a", "b"]. */
static bool split_merge(const json_t *item, struct part *a, struct part *b) {
    if (json_is_string(item)) {
        const char *text = json_string_value(item), *space = strchr(text, ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL) return false;
        *a = (struct part){text, (size_t)(space - text)};
        *b = (struct part){space + 1, strlen(space + 1)};
        return true;
    }
    const json_t *left = json_array_get(item, 0), *right = json_array_get(item, 1);
    if (json_array_size(item) != 2 || !json_is_string(left) || !json_is_string(right)) return false;
    *a = (struct part){json_string_value(left), json_string_length(left)};
    *b = (struct part){json_string_value(right), json_string_length(right)};
    return true;
}

static enum rc unknown_token(const struct tok_place *p, size_t index, const char *token, size_t len, struct err *e) {
    struct tok_place place = tok_item(p, index);
    return err_at(e, place.pointer, RC_INVALID, "tokenizer.json: merge %zu needs '%.*s', which the vocabulary lacks",
                  index, (int)(len < 64 ? len : 64), token);
}

static void note_join(struct tok_bpe *bpe, const struct part *a, const struct part *b) {
    if (a->len == 0 || b->len == 0) return;
    size_t size;
    int32_t left = tok_codepoint(a->text + tok_previous(a->text, a->len), &size);
    size_t bit = tok_join_bit(left, tok_codepoint(b->text, &size));
    bpe->joins[bit / 8] |= (uint8_t)(1u << bit % 8);
}

static enum rc add_merge(struct tok_bpe *bpe, const struct tok_place *p, size_t index, struct tok_buf *merged,
                         struct err *e) {
    const json_t *item = json_array_get(p->value, index);
    struct part a, b;
    if (json_is_string(item) && strncmp(json_string_value(item), "#version", 8) == 0) return RC_OK;
    if (!split_merge(item, &a, &b)) {
        struct tok_place place = tok_item(p, index);
        return tok_want(&place, "two tokens, as \"a b\" or [\"a\", \"b\"]", e);
    }
    int32_t left = tok_bpe_lookup(bpe, a.text, a.len), right = tok_bpe_lookup(bpe, b.text, b.len);
    if (left < 0) return unknown_token(p, index, a.text, a.len, e);
    if (right < 0) return unknown_token(p, index, b.text, b.len, e);
    size_t skip = strlen(bpe->prefix);
    if (b.len < skip || memcmp(b.text, bpe->prefix, skip) != 0) return unknown_token(p, index, bpe->prefix, skip, e);
    merged->len = 0;
    TRY(tok_buf_append(merged, a.text, a.len, e));
    TRY(tok_buf_append(merged, b.text + skip, b.len - skip, e));
    int32_t id = tok_bpe_lookup(bpe, merged->len ? merged->data : "", merged->len);
    if (id < 0) return unknown_token(p, index, merged->data, merged->len, e);
    note_join(bpe, &a, &b);
    bpe->merges[merge_slot(bpe, left, right)] =
        (struct tok_merge_slot){(uint32_t)left, (uint32_t)right, (uint32_t)index, id};
    return RC_OK;
}

static enum rc read_merges(struct tok_bpe *bpe, const struct tok_place *p, struct err *e) {
    TRY(tok_want_array(p, e));
    size_t count = json_array_size(p->value), size = table_size(count);
    bpe->merges = malloc(size * sizeof *bpe->merges);
    if (bpe->merges == NULL) return err_set(e, RC_NO_MEMORY, "no memory for %zu merges", count);
    bpe->merge_mask = size - 1;
    bpe->joins = xcalloc(TOK_JOIN_BITS / 8, 1);
    for (size_t i = 0; i < size; i++)
        bpe->merges[i].rank = UINT32_MAX;
    struct tok_buf merged = {0};
    enum rc rc = RC_OK;
    for (size_t i = 0; i < count && rc == RC_OK; i++)
        rc = add_merge(bpe, p, i, &merged, e);
    tok_buf_release(&merged);
    return rc;
}

static enum rc read_text(const struct tok_place *p, const char *key, char **out, struct err *e) {
    const char *text = "";
    size_t len = 0;
    if (tok_member(p, key).value != NULL) TRY(tok_string(p, key, &text, &len, e));
    *out = xstrdup(text);
    return RC_OK;
}

static enum rc read_options(struct tok_bpe *bpe, const struct tok_place *p, struct err *e) {
    struct tok_place dropout = tok_member(p, "dropout");
    if (dropout.value != NULL && json_number_value(dropout.value) != 0.0)
        return err_at(e, dropout.pointer, RC_UNSUPPORTED, "tokenizer.json: dropout makes ids random; remove it");
    TRY(tok_bool(p, "fuse_unk", &bpe->fuse_unk, e));
    TRY(tok_bool(p, "byte_fallback", &bpe->byte_fallback, e));
    TRY(tok_bool(p, "ignore_merges", &bpe->ignore_merges, e));
    bpe->has_unk = tok_member(p, "unk_token").value != NULL;
    TRY(read_text(p, "unk_token", &bpe->unk_token, e));
    TRY(read_text(p, "continuing_subword_prefix", &bpe->prefix, e));
    return read_text(p, "end_of_word_suffix", &bpe->suffix, e);
}

static enum rc read_model(struct tok_bpe *bpe, const struct tok_place *p, struct err *e) {
    const char *type;
    TRY(tok_type(p, &type, e));
    if (type != NULL && strcmp(type, "BPE") != 0)
        return err_at(e, p->pointer, RC_UNSUPPORTED, "tokenizer.json: the model '%.60s' is not supported; only BPE is",
                      type);
    struct tok_place vocab = tok_member(p, "vocab"), merges = tok_member(p, "merges");
    TRY(read_options(bpe, p, e));
    TRY(tok_want_object(&vocab, e));
    TRY(allocate_vocab(bpe, vocab.value, e));
    TRY(fill_vocab(bpe, &vocab, e));
    TRY(check_unique(bpe, &vocab, e));
    bpe->unk = tok_bpe_lookup(bpe, bpe->unk_token, strlen(bpe->unk_token));
    for (int i = 0; i < 256; i++) {
        char name[8];
        bpe->bytes[i] = tok_bpe_lookup(bpe, name, (size_t)snprintf(name, sizeof name, "<0x%02X>", i));
    }
    return read_merges(bpe, &merges, e);
}

enum rc tok_bpe_read(const struct tok_place *p, struct tok_bpe **out, struct err *e) {
    struct tok_bpe *bpe = xcalloc(1, sizeof *bpe);
    bpe->max_id = -1;
    if (getrandom(&bpe->seed, sizeof bpe->seed, GRND_NONBLOCK) < 0) bpe->seed = (uintptr_t)bpe;
    enum rc rc = read_model(bpe, p, e);
    if (rc == RC_OK)
        *out = bpe;
    else
        tok_bpe_free(bpe);
    return rc;
}

void tok_bpe_free(struct tok_bpe *bpe) {
    if (bpe == NULL) return;
    free(bpe->blob);
    free(bpe->vocab);
    free(bpe->merges);
    free(bpe->joins);
    free(bpe->unk_token);
    free(bpe->prefix);
    free(bpe->suffix);
    free(bpe);
}
