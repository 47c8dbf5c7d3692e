/* What loading (tok_bpe_load.c) and encoding (tok_bpe.c) share. */
#ifndef HSAQ_WORKER_MODEL_TOK_BPE_INTERNAL_H
#define HSAQ_WORKER_MODEL_TOK_BPE_INTERNAL_H

#include "worker/model/tok_bpe.h"

struct tok_vocab_slot {
    const char *text; /* in `blob`; NULL: a free slot */
    uint32_t len;
    int32_t id;
};

struct tok_merge_slot {
    uint32_t left, right;
    uint32_t rank; /* UINT32_MAX: a free slot */
    int32_t merged;
};

/* Open addressing, at most half full; the seed keeps a file from choosing collisions. */
struct tok_bpe {
    uint64_t seed;
    char *blob;
    struct tok_vocab_slot *vocab;  /* [vocab_mask + 1] */
    struct tok_merge_slot *merges; /* [merge_mask + 1] */
    size_t vocab_mask, merge_mask, tokens;
    int32_t max_id;
    int32_t bytes[256]; /* ids of <0x00> … <0xFF>, −1 where absent */
    int32_t unk;        /* −1: the vocabulary has no unk_token */
    bool has_unk, fuse_unk, byte_fallback, ignore_merges;
    uint8_t *joins;                    /* [TOK_JOIN_BITS / 8] */
    char *unk_token, *prefix, *suffix; /* "" for none */
};

/* Whether some merge may join a token that ends in character `left` to one that starts with `right`; "no" is certain.
 */
enum { TOK_JOIN_BITS = 1 << 20 };
static inline size_t tok_join_bit(int32_t left, int32_t right) {
    return (((uint64_t)(uint32_t)left << 21 | (uint32_t)right) * 0x9e3779b97f4a7c15u) >> 44;
}

const struct tok_merge_slot *tok_merge_find(const struct tok_bpe *bpe, int32_t left, int32_t right);

#endif
