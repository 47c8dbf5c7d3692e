/* A candidate: the complete recipe by which one Linear may be quantized.
 *
 * Its canonical id ("hqq4g64", "rtn3g128-sym", "gptq4g64-actorder", "none") names it in every table and cache key: two
 * candidates with the same id are the same recipe, and anything that changes the codes or the bytes is in the id. What
 * is its method's default is not. */
#ifndef HSAQ_BASE_CANDIDATE_H
#define HSAQ_BASE_CANDIDATE_H

#include <jansson.h>
#include <stdbool.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/schema.h"

enum method { METHOD_NONE, METHOD_RTN, METHOD_HQQ, METHOD_GPTQ, METHOD_AWQ, METHOD_AWQ_GPTQ, METHOD_FP8, METHODS };
enum zero_type { ZERO_FLOAT, ZERO_INTEGER };
/* How codes are stored, hence what they cost: a dense LSB-first bitstream per row (compressed-tensors), or the HQQ
 * library's containers (3-bit ten to a word, 5 and 6 bits in bytes). See kernels/formats.h. */
enum layout { LAYOUT_DENSE, LAYOUT_HQQ };
/* Which part of a group's range the grid spans: all of it, or what a search over smaller ones finds best. */
enum range_choice {
    RANGE_FULL,       /* min … max */
    RANGE_MSE,        /* least Σ e² */
    RANGE_WEIGHTED,   /* least Σ h e²: h is H's diagonal, for GPTQ 1/U_kk² */
    RANGE_OUTPUT,     /* least eᵀ H e, H of the group's channels */
    RANGE_PERCENTILE, /* the given share of the weights, as many cut off at either end */
    RANGE_RATIO,      /* the given share of min and max */
};
/* The order in which GPTQ rounds columns: groups as a whole and the columns in each by falling diag H; as they lie; all
 * by falling diag H, in groups of that order (stored as g_idx), or in the groups in which they lie. */
enum column_order { ORDER_GROUP_AWARE, ORDER_NATURAL, ORDER_ACTIVATION, ORDER_STATIC_GROUPS };
enum fp8_scale { FP8_PER_ROW, FP8_PER_TENSOR };

extern const char *const method_names[]; /* NULL-terminated, indexed by enum method */
extern const char *const zero_type_names[];
extern const char *const layout_names[];

enum { PARTS = 10000 }; /* clip and damp are counted in these */
enum { DESCEND_MAX = 8 };

struct candidate {
    enum method method;
    int bits;  /* 2, 3, 4, 5, 6 or 8; 8 for METHOD_FP8, 16 for METHOD_NONE */
    int group; /* 16–1024, or 0: the whole row; a group that does not divide K leaves a short last group */
    bool symmetric;
    enum zero_type zero; /* of an asymmetric candidate; ZERO_FLOAT for others */
    enum layout layout;
    enum range_choice range;
    int clip;                /* of RANGE_PERCENTILE and RANGE_RATIO, in 1/PARTS; else 0 */
    enum column_order order; /* of GPTQ */
    int damp;                /* of GPTQ: share of the mean of diag H that is added to it, in 1/PARTS; else 0 */
    int descend;             /* of GPTQ: sweeps of coordinate descent over its codes, 0 to DESCEND_MAX; else 0 */
    bool sequential; /* calibrated on what the model quantized so far computes; else on what the reference does */
    bool guided;     /* tokens weighed in H by what the loss gains at the outputs (GuidedQuant); never sequential */
    bool two_sided;  /* of a guided GPTQ that does not descend: rows make up for each other's errors too */
    enum fp8_scale fp8_scale;
};

enum { CANDIDATE_ID_SIZE = 96 };

/* What a method is when nothing else is said of it. */
struct candidate candidate_default(enum method method, int bits, int group);

/* The recipe that does least damage for its bytes (docs/results.md): guided two-sided GPTQ. */
struct candidate candidate_best(int bits, int group);

/* Fills `id` with the canonical id and returns it. */
const char *candidate_id(const struct candidate *c, char id[CANDIDATE_ID_SIZE]);
/* The inverse. RC_INVALID for what is no canonical id. */
enum rc candidate_from_id(const char *id, struct candidate *c, struct err *e);

/* Which recipes exist: RC_OK, or RC_INVALID naming the member at fault in e->pointer ("/symmetric"). */
enum rc candidate_check(const struct candidate *c, struct err *e);

/* Round to nearest on the same grid: what every other method has to beat. */
struct candidate candidate_rtn(const struct candidate *c);
/* The same recipe at as many bits, whatever those are. */
bool candidate_same_but_bits(const struct candidate *a, const struct candidate *b);

/* Whether GPTQ rounds its codes; whether AWQ scales its columns; whether either, or its range, looks at H. */
static inline bool candidate_uses_gptq(const struct candidate *c) {
    return c->method == METHOD_GPTQ || c->method == METHOD_AWQ_GPTQ;
}
static inline bool candidate_is_two_sided(const struct candidate *c) {
    return c->two_sided;
}
static inline bool candidate_uses_awq(const struct candidate *c) {
    return c->method == METHOD_AWQ || c->method == METHOD_AWQ_GPTQ;
}
static inline bool candidate_needs_gram(const struct candidate *c) {
    return candidate_uses_gptq(c) || candidate_uses_awq(c) || c->range == RANGE_WEIGHTED || c->range == RANGE_OUTPUT;
}
/* H as it is, or what is counted beside it, and not only the one that weighs tokens. */
static inline bool candidate_needs_unweighed_gram(const struct candidate *c) {
    return candidate_needs_gram(c) && (!c->guided || candidate_uses_awq(c));
}

bool candidates_any(const struct candidate *c, size_t count, bool (*is)(const struct candidate *));

/* JSON of a spec: {"method": "hqq", "bits": [2,3,4], "group": 64, …}; a list inside a candidate is a product. Members
 * that are not given have the method's default; without a method they are those of candidate_best; whoever asks for
 * descent or for no guidance then gets one side, and whoever asks for one side gets descent.
 * Stores the expansion, without duplicates, in the order written, as the struct list of struct candidate at `member`;
 * at most CANDIDATES_MAX. */
enum { CANDIDATES_MAX = 256 };
void candidates_decode(const json_t *array, void *member, struct decode *d); /* for FIELD_CUSTOM */
void candidate_decode(const json_t *object, void *member, struct decode *d); /* one, no lists; struct candidate ** */
/* What a profile measures that is not told: the best recipe at every width, in groups of 32, 64 and 128. */
struct list candidates_default(struct arena *arena);
json_t *candidates_describe(void);
json_t *candidate_describe(void);

#endif
