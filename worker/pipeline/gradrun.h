/* The inside of gradwalk.h: one walk on however many devices, and what a device has of it. gradwalk.c goes the way and
 * has the Gram matrices, gradscore.c has what candidates change and their scores. */
#ifndef HSAQ_WORKER_PIPELINE_GRADRUN_H
#define HSAQ_WORKER_PIPELINE_GRADRUN_H

#include "worker/pipeline/block.h"
#include "worker/pipeline/gradwalk.h"
#include "worker/pipeline/grams.h"
#include "worker/pipeline/kept_inputs.h"
#include "worker/pipeline/replaced.h"
#include "worker/pipeline/reverse.h"
#include "worker/pipeline/rounds.h"
#include "worker/pipeline/team.h"

struct grad_run {
    const struct grad_walk *g;
    const struct model *model;
    int devices, first_block;        /* that has a wanted Linear */
    int64_t width[INPUT_COUNT];      /* the widest K of a wanted Linear with this input */
    int64_t rows[BLOCK_LINEARS_MAX]; /* the widest N of a wanted Linear at this position */
    int64_t chunk, windows;          /* windows of one; that are scored, and those that fill their last chunk */
    struct rounds plan;              /* of candidates that are scored */
    int64_t *rounds;                 /* [blocks] */
    struct grams *h, *h_w, *outer;   /* [devices]; without widths where they are not asked for */
    struct grad_walker *walkers;     /* [devices] */
    double *scores;                  /* [slots, windows] of a round, by whoever has the window */
    bool keeps;                      /* what is scored, instead of another pass */
    _Atomic int64_t steps;
};

/* One device's part of it. */
struct grad_walker {
    struct grad_run *run;
    const struct grad_walk *g;
    const struct job *job; /* on the device */
    int member;
    struct grams *h, *h_w, *outer;
    struct kept_inputs kept;
    struct replaced shown;        /* what the walk sees of a block, where it is around a quantized model */
    int owner[BLOCK_LINEARS_MAX]; /* of the block: which device measures */
    bool inputs[INPUT_COUNT];     /* of the block: that wanted Linears read */
    bool fits;                    /* what would be kept */
    struct round round;           /* of the block: the one at hand */
    int64_t reserve;              /* of the device's room, for operations' workspaces */
    void *memory;                 /* [bytes] on the device: the next six */
    size_t bytes;
    char *differences;       /* of a round's Linears and candidates, [N, K] each, activation type */
    double *norms;           /* [T] Σ‖g‖² of a chunk */
    float *roots;            /* [T] */
    void *weighed;           /* [T, K] of the widest, activation type */
    double *sums;            /* [slots, windows] on the device */
    double *squares;         /* [windows] that no one reads */
    double *scores;          /* as sums, on the host */
    struct gram_slot *slots; /* [BLOCK_LINEARS_MAX, candidates], those of a round */
};

static inline const struct linear *linear_at(const struct grad_run *run, int block, int position, int64_t *index) {
    const struct linear *linear = block_linear(run->model, block, position);
    *index = linear ? linear - run->model->linears : -1;
    return linear;
}

static inline bool is_wanted(const struct grad_run *run, int64_t index) {
    return run->g->gram.wanted[index];
}

static inline int64_t chunk_tokens(const struct grad_run *run) {
    return run->chunk * run->g->gram.windows->length;
}

static inline int64_t grad_slots(const struct grad_run *run) {
    return (int64_t)run->plan.candidates * BLOCK_LINEARS_MAX;
}

static inline bool scores_any(const struct grad_run *run) {
    return run->plan.candidates > 0;
}

/* Chunks go round: the reverse walk's order. Of the scored ones. */
static inline int64_t own_chunks(const struct grad_walker *k) {
    return (k->run->windows / k->run->chunk - k->member + k->run->devices - 1) / k->run->devices;
}

static inline bool is_own(const struct grad_walker *k, int64_t window) {
    return window / k->run->chunk % k->run->devices == k->member;
}

/* All devices have come; then one does `last`. */
static inline enum rc meet(struct grad_walker *k, enum rc (*last)(void *ctx, struct err *e), struct err *e) {
    if (k->run->devices > 1) return team_meet(k->job->team, last, k->run, e);
    return last ? last(k->run, e) : RC_OK;
}

/* --- gradscore.c --- */

/* [candidates] slots of the Linear at this position; those of the round have a matrix. */
struct gram_slot *grad_slots_at(const struct grad_walker *k, int position);
bool grad_in_round(const struct grad_walker *k, int position);
/* For the block's round at hand, empty. */
void grad_place_slots(struct grad_walker *k, int block);
/* What was made gets to all devices: others bring zeros to a sum. */
enum rc grad_clear_others(struct grad_walker *k, struct err *e);
enum rc grad_share_slots(void *ctx, struct err *e); /* a struct grad_run */

/* The second visit of the block, or what was kept of the first, or none. */
enum rc grad_add_score(void *ctx, const struct linear_gradient *at, struct err *e); /* a struct grad_walker */
enum rc grad_score_kept(struct grad_walker *k, int block, struct err *e);
/* The others may go on: what is handed out is written again when all have met after the next round's measuring. */
enum rc grad_hand_scores(struct grad_walker *k, int block, struct err *e);

#endif
