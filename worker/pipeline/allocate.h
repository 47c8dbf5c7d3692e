/* What the files of the allocation pipeline share: the profile as a table of Linears × candidates, its scores, the
 * rules that cross cells out of it, the VRAM budget, and what is solved. Internal to worker/pipeline/allocate*.c, but
 * for the table, which correlation.c reads too; same threads as pipeline_allocation. */
#ifndef HSAQ_WORKER_PIPELINE_ALLOCATE_H
#define HSAQ_WORKER_PIPELINE_ALLOCATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/spec.h"
#include "worker/alloc/alloc.h"
#include "worker/pipeline/sweep_input.h"

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
    double scores[SCORES_OF_ROWS]; /* as measured; error is ‖D‖²/‖W‖²; NAN: the profile was not asked for it */
    double score;                  /* what is minimised, >= 0; of score_apply */
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

/* `profile`: {"job", "result", "rows"}. RC_INVALID naming the row when the profile is not what it should be. */
enum rc profile_table_init(struct profile_table *table, const json_t *profile, struct err *e);
void profile_table_release(struct profile_table *table);

/* The column of a candidate, or −1. */
int table_find_candidate(const struct profile_table *table, const char *id);

struct chosen_score {
    enum score score;
    const char *reason; /* a sentence */
};
/* Fills every cell's score with what the spec asks for: `drift` as measured, `error` the squared relative weight error,
 * `fisher`, `kfac` and `diag` the nats that the profile tells; `noise` and `delta_kl` a sweep's nats, scaled. Without a
 * score in the spec: fisher where all rows have it, else drift. `swept` may be NULL. RC_INVALID at /score or /sweep
 * when an input is missing, with what to do. */
enum rc score_apply(struct profile_table *table, const struct spec_allocation *spec, const struct sweep_input *swept,
                    struct chosen_score *chosen, struct err *e);

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

/* What a budget counts. */
enum cost_kind { COST_BYTES, COST_CODE_BITS };
int64_t cell_cost(const struct profile_table *table, int linear, int candidate, enum cost_kind kind);

/* The table in the solver's terms: item i is the tie of `lead[i]`. */
struct items {
    struct alloc_option *options; /* [linear_count · candidate_count] */
    int *candidate;               /* beside options: which candidate each stands for */
    struct alloc_item *items;     /* [count] */
    int *lead;                    /* [count] the first Linear of each tie */
    int count;
};
enum rc items_init(const struct profile_table *table, enum cost_kind kind, struct items *items, struct err *e);
void items_release(struct items *items);
/* The candidate that an option of item k stands for. */
static inline int items_candidate(const struct items *items, int k, int option) {
    return items->candidate[items->items[k].options - items->options + option];
}
/* Writes the candidate of each Linear: `chosen` [linear_count]. */
void items_assign(const struct profile_table *table, const struct items *items, const int *choice, int *chosen);

struct solution {
    int *choice; /* [items.count] */
    int *chosen; /* [linear_count] candidate of each Linear */
    double objective, gap;
};

struct allocation {
    const struct spec_allocation *spec;
    struct profile_table table;
    const struct sweep_input *swept; /* NULL: the spec names no sweep */
    struct chosen_score score;
    struct vram_terms vram;
    struct items items; /* by the budget's cost */
    int64_t limit;      /* the budget, in that unit */
    struct solution best;
};

static inline enum cost_kind allocation_cost(const struct allocation *a) {
    return a->spec->budget->has_average_bits ? COST_CODE_BITS : COST_BYTES;
}

/* Where the profile was taken around a quantized model: that one's allocation, else NULL. Then sums of its scores
 * predict nothing: corrections are measured for scores around the reference, and a sum does not say how far from it the
 * new model is. */
const char *allocation_around(const struct allocation *a);
/* Of an assignment with this objective, a number or null. */
json_t *allocation_predicted_kl(const struct allocation *a, double objective);

/* By the spec's method, under `limit`. RC_INFEASIBLE with the smallest feasible budget in `*smallest`. */
enum rc allocation_solve(const struct allocation *a, int64_t limit, struct solution *s, int64_t *smallest,
                         struct err *e);
void solution_release(struct solution *s);
int64_t solution_bytes(const struct allocation *a, const int *chosen);
double solution_bits(const struct allocation *a, const int *chosen); /* average code bits */

/* What a user plots and plans with, of the result: the frontier always in bytes, whatever the budget counts; what 1%
 * more or less of the budget would change; the Linears nearest to another candidate. */
enum rc allocation_frontier(const struct allocation *a, json_t **out, struct err *e);
enum rc allocation_sensitivity(const struct allocation *a, json_t **out, struct err *e);
json_t *allocation_edge(const struct allocation *a);

#endif
