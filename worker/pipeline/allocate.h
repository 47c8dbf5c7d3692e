/* What the files of the allocation pipeline share: the profile as a table of Linears × candidates, the rules that cross
 * cells out of it, and the VRAM budget. Internal to worker/pipeline/allocate*.c; same threads as pipeline_allocation.
 */
#ifndef HSAQ_WORKER_PIPELINE_ALLOCATE_H
#define HSAQ_WORKER_PIPELINE_ALLOCATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/spec.h"

struct profiled_linear {
    const char *name, *projection;
    int block;      /* −1: lm_head */
    int64_t params; /* N·K */
    int64_t cols;   /* K; 0: the rows do not say */
    int tie;        /* the first Linear of those that must share a candidate; itself when alone */
    int tie_rule;   /* which rule tied it; −1: none, or the target */
};

struct cell {
    bool measured, allowed; /* the profile has a row; no rule forbids it */
    int64_t bytes;
    double drift, score;
};

/* Strings are borrowed from the job's inputs. */
struct profile_table {
    const char *model, *fingerprint;
    const json_t *result;            /* the profile's */
    struct profiled_linear *linears; /* [linear_count] in the order of the rows */
    int linear_count;
    struct candidate candidates[CANDIDATES_MAX];
    const char *ids[CANDIDATES_MAX];
    int candidate_count;
    struct cell *cells; /* [linear_count, candidate_count] */
    int64_t params;     /* of all Linears */
};

static inline struct cell *table_cell(const struct profile_table *table, int linear, int candidate) {
    return &table->cells[(int64_t)linear * table->candidate_count + candidate];
}

/* `profile`: {"job", "result", "rows"}. The score is the one the allocation asks for: `drift` as measured, `error` the
 * squared relative weight error ‖D‖²/‖W‖², `fisher` the nats that the profile tells. RC_INVALID naming the row when the
 * profile is not what it should be. */
enum rc profile_table_init(struct profile_table *table, const json_t *profile, int score, struct err *e);
void profile_table_release(struct profile_table *table);

/* Two Linears, and all that are tied to them, must share a candidate. */
void table_join(struct profile_table *table, int a, int b);

/* Leaves each Linear what the target can carry, and ties what it computes as one. Before the rules: RC_INFEASIBLE at
 * /target names all Linears that are left without a candidate, and why. */
enum rc target_apply(struct profile_table *table, enum target target, struct err *e);

/* Applies struct spec_rule in order. RC_INVALID with the pointer of the rule at fault, naming a Linear. */
enum rc rules_apply(struct profile_table *table, const struct list *rules, struct err *e);

/* Bytes a runtime needs beside the weights of the profiled Linears:
 *   unquantized  every other tensor, as stored
 *   kv_cache     Σ over blocks 2 · kv_heads · head_dim · min(context, window) · batch · kv_bits / 8
 *   workspace    an upper bound on activations, for prompts fed in chunks of at most 2048 tokens of each sequence, in
 *                16 bits: hidden state, its norm and one branch's output (3·hidden) beside the larger of attention
 *                (queries, their output, keys, values) and MLP (gate, up, their product), for one block; the largest
 *                Linear once in 16 bits, for runtimes that unpack it before they multiply; two fp32 rows of logits a
 *                sequence. Attention scores are assumed to be computed in tiles.
 *   reserve      what the user keeps free */
struct vram_terms {
    int64_t unquantized, kv_cache, workspace, reserve;
};
enum rc vram_terms(const struct profile_table *table, const struct spec_budget *budget, struct vram_terms *terms,
                   struct err *e);
int64_t vram_sum(const struct vram_terms *terms); /* saturates */

#endif
