/* The walk: every numeric job's one pass over a model, breadth first.
 *
 * All windows go through block b before block b+1; a block's weights are read once and used by every stream, while the
 * next block's are on their way where the device can do both. Windows are computed in chunks of a fixed number, padded
 * at the end, and a chunk begins at a multiple of it, so that a window's bits never depend on which others are in the
 * job.
 *
 *   walk(model, streams, hooks): embed → for each block: load → for each stream, for each chunk: forward → hooks at
 * each distinct Linear input and at the block's end → final norm of each chunk → hooks
 *
 * With a `stage` hook a block is computed piece by piece, and what is quantized on the way is seen by what comes after:
 *
 *   for each distinct input: for each chunk: forward to that input → hook; then stage → Linears replaced
 *
 * (blocks that are as they will be may go first, as a whole).
 *
 * Between stages hidden states are kept, and the input that the next stage goes on from where the caller does not
 * change what makes it (inputs_stay) and there is room for it; else a stage computes it anew from the block's input, or
 * from its middle.
 *
 * A stream is a set of windows with its hidden states (fp32 residual, hidden.h) and the weights it sees. Streams may
 * fork: one that begins at a later block is a copy of the first stream as it stands there, and from then on a stream as
 * the others are. In the end each is beside the first.
 *
 * Walks of one job on several devices go on side by side, a thread each; none knows of the others. */
#ifndef HSAQ_WORKER_PIPELINE_WALK_H
#define HSAQ_WORKER_PIPELINE_WALK_H

#include <stdint.h>

#include "base/err.h"
#include "kernels/tensor.h"
#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/block.h"
#include "worker/pipeline/job.h"

/* Where a forward pass stands: windows [window, window + windows) of a stream in a block. */
struct site {
    int stream, block;
    int64_t window, windows;
};

/* A window after the final norm, where streams forked: [length, D] of the first, and of some of the others. */
struct walk_forks {
    struct mat first, x; /* x: of `stream`, */
    int stream, count;   /* the first of so many; 0 where there are none but the first */
    int64_t apart;       /* and they lie so many rows after each other */
};

struct walk_hooks {
    void *ctx;
    /* A block's reference weights are loaded: replace what this stream sees (eval's quantized stream), or nothing. */
    enum rc (*weights)(void *ctx, int stream, int block, struct block_weights *w, struct err *e);
    /* x [T, K] is the input shared by the block's Linears with this `input`, of all the site's windows. */
    enum rc (*input)(void *ctx, const struct site *site, enum linear_input input, struct mat x, struct err *e);
    /* Set, with one stream: the block goes in stages, one for each distinct input. All windows' `input` for it has been
     * called: replace the Linears that read it and what their scale is folded into (the norm before it; the rows of v
     * or up, for the inputs of o and down). What follows in the block sees that. */
    enum rc (*stage)(void *ctx, int block, enum linear_input input, struct block_weights *seen, struct err *e);
    /* With `stage`: whether anything is done with a block's `input`. Where it is not, a stage that only leads there is
     * called without the windows having gone there. NULL: always. */
    bool (*looks)(void *ctx, int block, enum linear_input input);
    /* All windows of all streams went through the block; reference weights still loaded. */
    enum rc (*block_end)(void *ctx, int block, const struct block_weights *w, struct err *e);
    /* One window after the final norm, for every stream at once: x[stream] [length, D]. */
    enum rc (*final)(void *ctx, int64_t window, const struct mat *x, struct err *e);
    /* In its place where streams fork: a few of them at a time, as they may be many. */
    enum rc (*forks)(void *ctx, int64_t window, const struct walk_forks *x, struct err *e);
};

struct walk {
    const struct job *job;
    const struct model *model;
    const struct windows *windows; /* shared by all streams */
    int64_t first, count;          /* which windows; first is walk_aligned; hooks see their numbers among all windows */
    int streams;
    const int *begins; /* [streams], ascending from 0: stream s > 0 forks off the first before block begins[s]; NULL:
                          none does, and all begin with the embedding */
    int whole_blocks;  /* with a `stage` hook: so many of the first blocks go as they are, without it */
    int last_block;    /* stop after this block (then `final` is not called); −1: the whole model */
    const struct walk_hooks *hooks;
    const float *const *final_norms; /* [streams] in device memory, in place of the model's; any, or all, may be NULL */
    const struct mat *head;          /* in device memory, where the hooks hold it: a tied model's embedding; or NULL */
    int64_t reserved;                /* bytes of the job's ram_limit that the hooks hold; hidden states get the rest */
    int64_t device_reserved;         /* bytes of the device's own memory that the hooks have yet to take */
    bool inputs_stay; /* the `stage` hook replaces the Linears that read an input alone, and folds nothing */
    /* Progress is reported in tokens; a token counts in parts, block by block, and where streams fork once for each of
     * those that do. Earlier walks of the job did `tokens_before` of `tokens_total`. */
    const char *phase;
    int64_t tokens_before, tokens_total;
    _Atomic int64_t *tally; /* tokens done by all the walks side by side, which report their sum; NULL: this is alone */
};

/* Windows [first, first + count). */
struct span {
    int64_t first, count;
};
/* Those of `all`, which begins aligned, that are for one of so many walks: whole chunks, but for the last. May be none.
 */
struct span walk_share(const struct job *job, const struct windows *windows, struct span all, int part, int parts);

/* How many windows a chunk holds. */
int64_t walk_chunk(const struct job *job, const struct windows *windows);
/* The last window not after this one with which a walk may begin. */
int64_t walk_aligned(const struct job *job, const struct windows *windows, int64_t window);

/* The tokens of a chunk of so many windows: the padding of a last one repeats its last window. */
void walk_gather_ids(const struct windows *windows, const struct site *site, int64_t chunk, int32_t *ids);

enum rc walk_run(const struct walk *walk, struct err *e);

/* How many streams' hidden states such a walk, but for its `streams`, has room for where they are quick to reach: in
 * the memory of a device that has its own, in the host's as far as the job may take it. At least 1. For a walk that
 * could as well be several: more streams spill. */
int64_t walk_streams_fitting(const struct walk *walk);

#endif
