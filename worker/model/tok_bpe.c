#include "worker/model/tok_bpe.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "worker/model/tok_bpe_internal.h"

/* Merging keeps symbols in a linked list and candidate merges in a heap ordered by (rank, position), as the reference
 * does: n log n for one pre-token of n characters. */
struct symbol {
    int32_t id;             /* −1: merged into its left neighbour */
    int32_t previous, next; /* −1: none */
};

struct candidate {
    uint64_t order; /* rank << 32 | position */
    int32_t merged;
};

/* Text repeats its words: what a short pre-token gave is kept, one in each place of a table. */
enum { CACHE_SLOTS = 16384, CACHE_TEXT = 23, CACHE_IDS = 6 };
struct cached {
    uint8_t len, count; /* len 0: free */
    char text[CACHE_TEXT];
    int32_t ids[CACHE_IDS];
};

struct tok_bpe_state {
    struct symbol *symbols;
    size_t count, capacity;
    struct candidate *heap;
    size_t heap_count, heap_capacity;
    struct cached *cache; /* [CACHE_SLOTS] */
};

enum rc tok_ids_add(struct tok_ids *ids, const int32_t *items, size_t count, struct err *e) {
    if (ids->capacity - ids->count < count) {
        size_t capacity = 2 * ids->capacity > ids->count + count ? 2 * ids->capacity : ids->count + count + 64;
        int32_t *grown = realloc(ids->items, capacity * sizeof *grown);
        if (grown == NULL) return err_set(e, RC_NO_MEMORY, "no memory for %zu token ids", capacity);
        ids->items = grown;
        ids->capacity = capacity;
    }
    if (count > 0) memcpy(ids->items + ids->count, items, count * sizeof *items);
    ids->count += count;
    return RC_OK;
}

enum rc tok_bpe_state_new(struct tok_bpe_state **state, struct err *e) {
    struct tok_bpe_state *s = xcalloc(1, sizeof *s);
    s->cache = calloc(CACHE_SLOTS, sizeof *s->cache);
    if (s->cache == NULL) {
        free(s);
        return err_set(e, RC_NO_MEMORY, "no memory to tokenize");
    }
    *state = s;
    return RC_OK;
}

void tok_bpe_state_free(struct tok_bpe_state *s) {
    if (s == NULL) return;
    free(s->symbols);
    free(s->heap);
    free(s->cache);
    free(s);
}

static enum rc push(struct tok_bpe_state *s, struct candidate c, struct err *e) {
    if (s->heap_count == s->heap_capacity) {
        size_t capacity = s->heap_capacity ? 2 * s->heap_capacity : 256;
        struct candidate *heap = realloc(s->heap, capacity * sizeof *heap);
        if (heap == NULL) return err_set(e, RC_NO_MEMORY, "no memory for %zu candidate merges", capacity);
        s->heap = heap;
        s->heap_capacity = capacity;
    }
    size_t i = s->heap_count++;
    for (; i > 0 && s->heap[(i - 1) / 2].order > c.order; i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = c;
    return RC_OK;
}

static struct candidate pop(struct tok_bpe_state *s) {
    struct candidate top = s->heap[0], last = s->heap[--s->heap_count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->heap_count; i = child) {
        if (child + 1 < s->heap_count && s->heap[child + 1].order < s->heap[child].order) child++;
        if (last.order <= s->heap[child].order) break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return top;
}

static enum rc consider(const struct tok_bpe *bpe, struct tok_bpe_state *s, int32_t left, struct err *e) {
    if (left < 0 || s->symbols[left].next < 0) return RC_OK;
    const struct symbol *a = &s->symbols[left], *b = &s->symbols[a->next];
    const struct tok_merge_slot *m = tok_merge_find(bpe, a->id, b->id);
    if (m == NULL) return RC_OK;
    return push(s, (struct candidate){(uint64_t)m->rank << 32 | (uint32_t)left, m->merged}, e);
}

static enum rc merge_all(const struct tok_bpe *bpe, struct tok_bpe_state *s, struct err *e) {
    s->heap_count = 0;
    for (size_t i = 0; i + 1 < s->count; i++)
        TRY(consider(bpe, s, (int32_t)i, e));
    while (s->heap_count > 0) {
        struct candidate c = pop(s);
        int32_t at = (int32_t)(uint32_t)c.order;
        struct symbol *a = &s->symbols[at];
        if (a->id < 0 || a->next < 0) continue;
        struct symbol *b = &s->symbols[a->next];
        const struct tok_merge_slot *m = tok_merge_find(bpe, a->id, b->id);
        if (m == NULL || m->merged != c.merged) continue; /* its symbols have changed since */
        a->id = c.merged;
        b->id = -1;
        a->next = b->next;
        if (a->next >= 0) s->symbols[a->next].previous = at;
        TRY(consider(bpe, s, a->previous, e));
        TRY(consider(bpe, s, at, e));
    }
    return RC_OK;
}

static void add_symbol(struct tok_bpe_state *s, int32_t id) {
    int32_t at = (int32_t)s->count++;
    s->symbols[at] = (struct symbol){id, at - 1, -1};
    if (at > 0) s->symbols[at - 1].next = at;
}

static enum rc reserve_symbols(struct tok_bpe_state *s, size_t count, struct err *e) {
    s->count = 0;
    if (count >= INT32_MAX) return err_set(e, RC_TOO_LARGE, "a pre-token of %zu bytes; at most 2 GiB work", count);
    if (count <= s->capacity) return RC_OK;
    struct symbol *symbols = realloc(s->symbols, count * sizeof *symbols);
    if (symbols == NULL) return err_set(e, RC_NO_MEMORY, "no memory for a pre-token of %zu bytes", count);
    s->symbols = symbols;
    s->capacity = count;
    return RC_OK;
}

/* The id of one character, with the prefix and suffix that its position asks for; −1: unknown. */
static enum rc character(const struct tok_bpe *bpe, const char *text, size_t size, bool first, bool last,
                         struct tok_buf *name, struct err *e) {
    name->len = 0;
    if (!first) TRY(tok_buf_append(name, bpe->prefix, strlen(bpe->prefix), e));
    TRY(tok_buf_append(name, text, size, e));
    return last ? tok_buf_append(name, bpe->suffix, strlen(bpe->suffix), e) : RC_OK;
}

static bool fall_back(const struct tok_bpe *bpe, struct tok_bpe_state *s, const char *bytes, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (bpe->bytes[(unsigned char)bytes[i]] < 0) return false;
    for (size_t i = 0; i < len; i++)
        add_symbol(s, bpe->bytes[(unsigned char)bytes[i]]);
    return true;
}

/* The text's characters as symbols. What is unknown waits in `unk`, so that fuse_unk makes one of a run; as in the
 * reference it waits across bytes that fell back. */
static enum rc spell(const struct tok_bpe *bpe, struct tok_bpe_state *s, const char *text, size_t len,
                     struct tok_buf *name, struct err *e) {
    bool unk = false, plain = bpe->prefix[0] == '\0' && bpe->suffix[0] == '\0';
    for (size_t i = 0, size; i < len; i += size) {
        tok_codepoint(text + i, &size);
        const char *token = text + i;
        size_t token_len = size;
        if (!plain) {
            TRY(character(bpe, token, size, i == 0, i + size == len, name, e));
            token = name->data;
            token_len = name->len;
        }
        int32_t id = tok_bpe_lookup(bpe, token, token_len);
        if (id < 0 && bpe->byte_fallback && fall_back(bpe, s, token, token_len)) continue;
        if (id < 0 && !bpe->has_unk) continue;
        if (id < 0 && bpe->unk < 0)
            return err_set(e, RC_INVALID, "the vocabulary of tokenizer.json lacks the unk_token '%.100s'",
                           bpe->unk_token);
        if (unk && (id >= 0 || !bpe->fuse_unk)) add_symbol(s, bpe->unk);
        unk = id < 0;
        if (id >= 0) add_symbol(s, id);
    }
    if (unk) add_symbol(s, bpe->unk);
    return RC_OK;
}

static enum rc encode_word(const struct tok_bpe *bpe, struct tok_bpe_state *s, const char *text, size_t len,
                           struct tok_ids *ids, struct err *e) {
    /* A character with prefix and suffix may fall back to all their bytes. */
    size_t bound = len * (1 + strlen(bpe->prefix)) + strlen(bpe->suffix) + 1;
    TRY(reserve_symbols(s, bound, e));
    struct tok_buf name = {0};
    enum rc rc = spell(bpe, s, text, len, &name, e);
    tok_buf_release(&name);
    if (rc == RC_OK) rc = merge_all(bpe, s, e);
    for (size_t i = 0; i < s->count && rc == RC_OK; i++)
        if (s->symbols[i].id >= 0) rc = tok_ids_add(ids, &s->symbols[i].id, 1, e);
    return rc;
}

static enum rc encode_cached(const struct tok_bpe *bpe, struct tok_bpe_state *s, const char *text, size_t len,
                             struct tok_ids *ids, struct err *e) {
    if (len == 0 || len > CACHE_TEXT) return encode_word(bpe, s, text, len, ids, e);
    struct cached *c = &s->cache[XXH3_64bits(text, len) % CACHE_SLOTS];
    if (c->len == len && memcmp(c->text, text, len) == 0) return tok_ids_add(ids, c->ids, c->count, e);
    size_t before = ids->count;
    TRY(encode_word(bpe, s, text, len, ids, e));
    if (ids->count - before > CACHE_IDS) return RC_OK;
    c->len = (uint8_t)len;
    c->count = (uint8_t)(ids->count - before);
    memcpy(c->text, text, len);
    if (c->count > 0) memcpy(c->ids, ids->items + before, c->count * sizeof *c->ids);
    return RC_OK;
}

/* Whether the text may be cut before text[at]: no merge joins the two characters, and neither is one that falls back or
 * is unknown. */
static bool is_seam(const struct tok_bpe *bpe, const char *text, size_t previous, size_t at) {
    size_t left_size, right_size;
    int32_t left = tok_codepoint(text + previous, &left_size), right = tok_codepoint(text + at, &right_size);
    size_t bit = tok_join_bit(left, right);
    if (bpe->joins[bit / 8] >> bit % 8 & 1) return false;
    return tok_bpe_lookup(bpe, text + previous, left_size) >= 0 && tok_bpe_lookup(bpe, text + at, right_size) >= 0;
}

/* SentencePiece models have no pre-tokenizer: a whole text is one pre-token. Cut at its seams it gives the same ids
 * from small heaps, and words come from the cache. */
static enum rc encode_long(const struct tok_bpe *bpe, struct tok_bpe_state *s, const char *text, size_t len,
                           struct tok_ids *ids, struct err *e) {
    size_t start = 0, previous = 0, size;
    tok_codepoint(text, &size);
    for (size_t at = size; at < len; previous = at, at += size) {
        tok_codepoint(text + at, &size);
        if (!is_seam(bpe, text, previous, at)) continue;
        TRY(encode_cached(bpe, s, text + start, at - start, ids, e));
        start = at;
    }
    return encode_cached(bpe, s, text + start, len - start, ids, e);
}

enum rc tok_bpe_encode(const struct tok_bpe *bpe, struct tok_bpe_state *s, const char *text, size_t len,
                       struct tok_ids *ids, struct err *e) {
    int32_t whole = bpe->ignore_merges ? tok_bpe_lookup(bpe, text, len) : -1;
    if (whole >= 0) return tok_ids_add(ids, &whole, 1, e);
    bool plain = bpe->prefix[0] == '\0' && bpe->suffix[0] == '\0';
    return len > CACHE_TEXT && plain ? encode_long(bpe, s, text, len, ids, e)
                                     : encode_cached(bpe, s, text, len, ids, e);
}
