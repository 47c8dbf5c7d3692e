#include "worker/model/tok_added.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { MAX_CONTENT = 512 }; /* bounds the steps at one place of the text */

struct tok_added_token {
    char *content;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized;
};

struct tok_trie_node {
    uint8_t byte;
    int32_t token;           /* index of the token that ends here, or −1 */
    uint32_t child, sibling; /* 0: none */
};

static uint32_t add_node(struct tok_trie *trie, uint8_t byte, uint32_t sibling) {
    if (trie->count == 0) { /* node 0 means none */
        GROW(trie->nodes, trie->count, trie->capacity);
        trie->nodes[trie->count++] = (struct tok_trie_node){.token = -1};
    }
    GROW(trie->nodes, trie->count, trie->capacity);
    trie->nodes[trie->count] = (struct tok_trie_node){.byte = byte, .token = -1, .sibling = sibling};
    return (uint32_t)trie->count++;
}

static uint32_t find_child(const struct tok_trie *trie, uint32_t node, uint8_t byte) {
    uint32_t child = trie->nodes[node].child;
    while (child != 0 && trie->nodes[child].byte != byte)
        child = trie->nodes[child].sibling;
    return child;
}

static void insert(struct tok_trie *trie, const char *text, size_t len, int32_t token) {
    uint8_t first = (uint8_t)text[0];
    if (trie->roots[first] == 0) trie->roots[first] = add_node(trie, first, 0);
    uint32_t node = trie->roots[first];
    for (size_t i = 1; i < len; i++) {
        uint32_t child = find_child(trie, node, (uint8_t)text[i]);
        if (child == 0) {
            child = add_node(trie, (uint8_t)text[i], trie->nodes[node].child);
            trie->nodes[node].child = child;
        }
        node = child;
    }
    if (trie->nodes[node].token < 0) trie->nodes[node].token = token;
}

/* The longest token at text[start]: its index and end, or −1. */
static int32_t longest(const struct tok_trie *trie, const char *text, size_t len, size_t start, size_t *end) {
    int32_t token = -1;
    uint32_t node = trie->roots[(uint8_t)text[start]];
    for (size_t i = start; node != 0;) {
        i++;
        if (trie->nodes[node].token >= 0) {
            token = trie->nodes[node].token;
            *end = i;
        }
        node = i < len ? find_child(trie, node, (uint8_t)text[i]) : 0;
    }
    return token;
}

static bool stands_alone(struct tok_piece p, size_t start, size_t end) {
    size_t size;
    if (start > 0 && tok_is_word(tok_codepoint(p.text + tok_previous(p.text, start), &size))) return false;
    return end == p.len || !tok_is_word(tok_codepoint(p.text + end, &size));
}

static size_t strip_left(struct tok_piece p, size_t start, size_t least) {
    size_t size;
    while (start > least) {
        size_t before = tok_previous(p.text, start);
        if (!tok_is_space(tok_codepoint(p.text + before, &size))) break;
        start = before;
    }
    return start;
}

static size_t strip_right(struct tok_piece p, size_t end) {
    for (size_t size; end < p.len && tok_is_space(tok_codepoint(p.text + end, &size));)
        end += size;
    return end;
}

static struct tok_piece part(struct tok_piece p, size_t start, size_t end) {
    return (struct tok_piece){p.text + start, end - start, p.at_start && start == 0};
}

enum rc tok_added_split(const struct tok_added *a, const struct tok_trie *trie, struct tok_piece p,
                        tok_added_sink *sink, void *context, struct err *e) {
    size_t done = 0, end = 0;
    for (size_t i = 0; i < p.len; i = end) {
        int32_t index = longest(trie, p.text, p.len, i, &end);
        if (index < 0) {
            end = i + 1;
            continue;
        }
        const struct tok_added_token *token = &a->tokens[index];
        if (token->single_word && !stands_alone(p, i, end)) continue;
        size_t start = token->lstrip && i > done ? strip_left(p, i, done) : i, stop = end;
        /* Inside what an rstrip token took, that token's end is the end of the spaces here too. */
        if (token->rstrip) stop = end < done ? done : strip_right(p, end);
        if (done < start) TRY(sink(context, part(p, done, start), -1, e));
        TRY(sink(context, (struct tok_piece){0}, token->id, e));
        done = stop;
    }
    return done < p.len ? sink(context, part(p, done, p.len), -1, e) : RC_OK;
}

static enum rc read_token(const struct tok_place *p, struct tok_added_token *token, struct err *e) {
    const char *content;
    size_t len;
    struct tok_place id = tok_member(p, "id"), place = tok_member(p, "content");
    TRY(tok_want_object(p, e));
    TRY(tok_string(p, "content", &content, &len, e));
    if (len > MAX_CONTENT) return tok_want(&place, "at most 512 bytes long", e);
    TRY(tok_id(&id, &token->id, e));
    TRY(tok_bool(p, "single_word", &token->single_word, e));
    TRY(tok_bool(p, "lstrip", &token->lstrip, e));
    TRY(tok_bool(p, "rstrip", &token->rstrip, e));
    bool special = false;
    TRY(tok_bool(p, "special", &special, e));
    token->normalized = !special;
    TRY(tok_bool(p, "normalized", &token->normalized, e));
    token->content = xstrdup(content);
    return RC_OK;
}

/* As the reference numbers added tokens, whatever the file declares. */
static int64_t expected_id(const struct tok_added *a, const struct tok_bpe *bpe, const char *content) {
    int32_t known = tok_bpe_lookup(bpe, content, strlen(content));
    if (known >= 0) return known;
    return a->max_id >= tok_bpe_tokens(bpe) ? (int64_t)a->max_id + 1 : tok_bpe_tokens(bpe);
}

static enum rc check_id(const struct tok_added *a, const struct tok_place *p, const struct tok_bpe *bpe,
                        const struct tok_added_token *token, struct err *e) {
    int64_t expected = expected_id(a, bpe, token->content);
    if (token->id == expected) return RC_OK;
    struct tok_place place = tok_member(p, "id");
    return err_at(
        e, place.pointer, RC_INVALID,
        "tokenizer.json: the added token '%.100s' declares id %d, but the vocabulary and the tokens before it "
        "give it %lld; correct the file",
        token->content, token->id, (long long)expected);
}

static enum rc add_pattern(struct tok_added *a, size_t index, const struct tok_normalizers *n, struct err *e) {
    const struct tok_added_token *token = &a->tokens[index];
    struct tok_piece piece = {token->content, strlen(token->content), true};
    struct tok_buf buffers[2] = {0};
    struct tok_scanner *scanner = NULL;
    enum rc rc = RC_OK;
    if (token->normalized && n->count > 0) {
        rc = tok_scanner_new(piece.len, &scanner, e);
        if (rc == RC_OK) rc = tok_normalize(n, scanner, buffers, &piece, e);
    }
    if (rc == RC_OK && piece.len == 0)
        rc = err_set(e, RC_INVALID, "tokenizer.json: the normalizers leave nothing of the added token '%.100s'",
                     token->content);
    if (rc == RC_OK) insert(token->normalized ? &a->normalized : &a->raw, piece.text, piece.len, (int32_t)index);
    tok_buf_release(&buffers[0]);
    tok_buf_release(&buffers[1]);
    tok_scanner_free(scanner);
    return rc;
}

static enum rc add_token(struct tok_added *a, const struct tok_place *p, const struct tok_bpe *bpe, struct err *e) {
    struct tok_added_token token = {.content = ""};
    TRY(read_token(p, &token, e));
    GROW(a->tokens, a->count, a->capacity);
    a->tokens[a->count++] = token;
    if (token.content[0] == '\0') return RC_OK; /* the reference passes over it */
    TRY(check_id(a, p, bpe, &token, e));
    if (token.id > a->max_id) a->max_id = token.id;
    return RC_OK;
}

static int compare_contents(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum rc check_unique(const struct tok_added *a, const struct tok_place *p, struct err *e) {
    const char **contents = xcalloc(a->count, sizeof *contents);
    for (size_t i = 0; i < a->count; i++)
        contents[i] = a->tokens[i].content;
    qsort(contents, a->count, sizeof *contents, compare_contents);
    enum rc rc = RC_OK;
    for (size_t i = 1; i < a->count && rc == RC_OK; i++)
        if (contents[i][0] != '\0' && strcmp(contents[i], contents[i - 1]) == 0)
            rc = err_at(e, p->pointer, RC_INVALID, "tokenizer.json: the added token '%.100s' is there twice",
                        contents[i]);
    free(contents);
    return rc;
}

enum rc tok_added_read(struct tok_added *a, const struct tok_place *p, const struct tok_bpe *bpe,
                       const struct tok_normalizers *n, struct err *e) {
    a->max_id = -1;
    if (p->value == NULL) return RC_OK;
    TRY(tok_want_array(p, e));
    for (size_t i = 0; i < json_array_size(p->value); i++) {
        struct tok_place item = tok_item(p, i);
        TRY(add_token(a, &item, bpe, e));
    }
    TRY(check_unique(a, p, e));
    /* Where two normalize to the same text the reference takes either, by chance; here it is the first. */
    for (size_t i = 0; i < a->count; i++)
        if (a->tokens[i].content[0] != '\0') TRY(add_pattern(a, i, n, e));
    return RC_OK;
}

void tok_added_release(struct tok_added *a) {
    for (size_t i = 0; i < a->count; i++)
        free(a->tokens[i].content);
    free(a->tokens);
    free(a->raw.nodes);
    free(a->normalized.nodes);
    *a = (struct tok_added){0};
}
