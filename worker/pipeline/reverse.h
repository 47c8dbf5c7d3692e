/* The reverse walk: what the loss of calibration windows gains where the output of a Linear moves, for every Linear
 * inside the blocks, breadth first.
 *
 * Forward as walk.h, but the hidden states before every block are kept. After the last one a label is drawn for each
 * position from the model's own distribution (the true Fisher information wants these), and the gradient of the sum of
 * the positions' NLL goes back through the blocks, each computed anew from its stored input: weights are read once
 * forward and once backward, and the memory on the device does not grow with the number of windows.
 *
 *   for each block, the last one first: load → begin → for each chunk: forward, backward → linear at each Linear →
 * end → as often as asked for: for the chunks of the first `again` windows: forward, backward → linear_again; then done
 *
 * A label depends on the seed, the window's number and the position alone, and chunks are those of the walk: neither
 * labels nor gradients depend on how many windows are in the job. Walks of one job on several devices go on side by
 * side, a thread each, with every so many-th chunk: so the first windows are shared out as evenly as all of them.
 *
 * The loss, and what is seen of a block, can be the caller's; and what the walk holds can be opened once, for many runs
 * over small sets of windows. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_REVERSE_H
#define HSAQ_WORKER_PIPELINE_REVERSE_H

#include <stdint.h>

#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/backward.h"
#include "worker/pipeline/job.h"

/* A chunk at the model's end. */
struct reverse_end {
    const struct site *site; /* its windows; rows of others are padding, whose gradient is to be 0 */
    struct mat x;            /* [T, D] after the final norm */
    struct mat dx;           /* [T, D] fp32: the loss's gradient by x */
};

/* Any may be NULL. */
struct reverse_hooks {
    void *ctx;
    /* A block is loaded, on the way forward or back: replace what is seen of it, as in struct walk_hooks. `next` is the
     * one that follows; −1: none. */
    enum rc (*weights)(void *ctx, int block, int next, struct block_weights *w, struct err *e);
    /* `w` of the next ones: the model's own, whatever `weights` shows in their place. */
    /* In place of the labels' NLL: fills at->dx. */
    enum rc (*loss)(void *ctx, const struct reverse_end *at, struct err *e);
    enum rc (*begin)(void *ctx, int block, const struct block_weights *w, struct err *e);
    enum rc (*linear)(void *ctx, const struct linear_gradient *at, struct err *e);
    /* All windows went through the block; its weights are still there. */
    enum rc (*end)(void *ctx, int block, const struct block_weights *w, struct err *e);
    /* With what `end` made of all windows. */
    enum rc (*linear_again)(void *ctx, const struct linear_gradient *at, struct err *e);
    /* The windows went through again. */
    enum rc (*done)(void *ctx, int block, const struct block_weights *w, struct err *e);
};

struct reverse_walk {
    const struct job *job;
    const struct model *model;
    const struct windows *windows;
    const int32_t *labels;   /* [count, length] label of each position; NULL: drawn from the model */
    uint64_t seed;           /* of the draw */
    int64_t again;           /* how many windows linear_again sees, and those that share a chunk with them */
    const int64_t *rounds;   /* [blocks] how often it sees them; NULL: once */
    int part, parts;         /* chunks part, part + parts, …; parts 0: all */
    int first_block;         /* the way back ends with this one */
    int64_t chunk;           /* windows of one; 0: those of the walk */
    const bool *replaced;    /* [linear_count] Linears that `weights` always replaces: they are not loaded; or NULL */
    const float *final_norm; /* [D] device memory, in place of the model's; or NULL */
    const struct reverse_hooks *hooks;
    double *nll;             /* [count] of the window's labels, summed; or NULL */
    int64_t reserved;        /* as in struct walk */
    int64_t device_reserved; /* as in struct walk */
    const char *phase;       /* of the progress, in tokens */
    int64_t tokens_before;   /* of earlier walks of the job, as in struct walk */
    int64_t tokens_total;    /* of all runs; 0: of this one */
    _Atomic int64_t *tally;  /* work done by all the walks side by side; NULL: this is alone */
};

/* How many of the windows' positions have a label: those that predict one of the window's scored ones. */
int64_t reverse_scored(const struct windows *windows);

/* Bytes of a device that such a walk takes, with as few hidden states as it can do with. */
int64_t reverse_bytes(const struct reverse_walk *r);
/* What of so much room is left to operations' workspaces. */
int64_t reverse_reserve(int64_t room);

enum rc reverse_walk_run(const struct reverse_walk *r, struct err *e);

/* The same in pieces: `r`, which stays where it is meanwhile, says of how many windows of which length a run has at
 * most; a run goes over `windows`. */
struct reverse;
enum rc reverse_open(const struct reverse_walk *r, struct reverse **out, struct err *e);
enum rc reverse_run(struct reverse *k, const struct windows *windows, struct err *e);
void reverse_close(struct reverse *k); /* NULL is fine */

#endif
