/* A candidate: the complete recipe by which one Linear may be quantized.
 *
 * Its canonical id ("hqq4g64", "rtn3g128-sym", "rtn4g0", "none") names it in every table and cache key: two candidates
 * with the same id are the same recipe, and anything that changes the codes or the bytes is in the id. */
#ifndef HSAQ_BASE_CANDIDATE_H
#define HSAQ_BASE_CANDIDATE_H

#include <jansson.h>
#include <stdbool.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/schema.h"

enum method { METHOD_NONE, METHOD_RTN, METHOD_HQQ };
enum zero_type { ZERO_FLOAT, ZERO_INTEGER };
/* How codes are stored, hence what they cost: a dense LSB-first bitstream per row (compressed-tensors), or the HQQ
 * library's containers (3-bit ten to a word, 5 and 6 bits in bytes). See kernels/formats.h. */
enum layout { LAYOUT_DENSE, LAYOUT_HQQ };

extern const char *const method_names[]; /* NULL-terminated, indexed by enum method */
extern const char *const zero_type_names[];
extern const char *const layout_names[];

struct candidate {
    enum method method;
    int bits;  /* 2, 3, 4, 5, 6 or 8; 16 for METHOD_NONE */
    int group; /* 16–1024, or 0: the whole row; a group that does not divide K leaves a short last group */
    bool symmetric;
    enum zero_type zero; /* of an asymmetric candidate: float (default) or integer */
    enum layout layout;
};

enum { CANDIDATE_ID_SIZE = 48 };

/* Fills `id` with the canonical id and returns it. */
const char *candidate_id(const struct candidate *c, char id[CANDIDATE_ID_SIZE]);
/* The inverse. RC_INVALID for what is no canonical id. */
enum rc candidate_from_id(const char *id, struct candidate *c, struct err *e);

/* Which recipes exist: RC_OK, or RC_INVALID naming the member at fault in e->pointer ("/symmetric"). */
enum rc candidate_check(const struct candidate *c, struct err *e);

/* JSON of a spec: {"method": "hqq", "bits": [2,3,4], "group": 64, …}; a list inside a candidate is a product.
 * Stores the expansion, without duplicates, in the order written, as the struct list of struct candidate at `member`;
 * at most CANDIDATES_MAX. */
enum { CANDIDATES_MAX = 256 };
void candidates_decode(const json_t *array, void *member, struct decode *d); /* for FIELD_CUSTOM */
void candidate_decode(const json_t *object, void *member, struct decode *d); /* one, no lists; struct candidate ** */
json_t *candidates_describe(void);
json_t *candidate_describe(void);

#endif
