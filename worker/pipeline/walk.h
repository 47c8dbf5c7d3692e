/* The walk: every numeric job's one pass over a model, breadth first.
 *
 * All windows go through block b before block b+1; a block's weights are read once and used by every stream; windows
 * are computed one at a time, so that a window's bits never depend on which others are in the job.
 *
 *   walk(model, streams, hooks): embed → for each block: load → for each stream, for each window: forward → hooks at
 * each distinct Linear input and at the block's end → final norm of each window → hooks
 *
 * A stream is a set of windows with its hidden states (fp32 residual) and the weights it sees. Hidden states live in
 * RAM while they fit the job's ram_limit, else in an unlinked file in its scratch folder. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_WALK_H
#define HSAQ_WORKER_PIPELINE_WALK_H

#include <stdint.h>

#include "base/err.h"
#include "kernels/tensor.h"
#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/job.h"

/* Linear weights as fp32 in device memory for one block; entries of Linears not in this block are {0}. */
struct block_weights {
    struct matf linear[7]; /* by position in block_tensors.linears */
};

struct walk_hooks {
    void *ctx;
    /* A block's reference weights are loaded: replace what this stream sees (eval's quantized stream), or nothing. */
    enum rc (*weights)(void *ctx, int stream, int block, struct block_weights *w, struct err *e);
    /* x [T, K] is the input shared by the block's Linears with this `input`. */
    enum rc (*input)(void *ctx, int stream, int block, int64_t window, enum linear_input input, struct matf x,
                     struct err *e);
    /* All windows of all streams went through the block; reference weights still loaded. */
    enum rc (*block_end)(void *ctx, int block, const struct block_weights *w, struct err *e);
    /* One window after the final norm, for every stream at once: x[stream] [T, D]. */
    enum rc (*final)(void *ctx, int64_t window, const struct matf *x, struct err *e);
};

struct walk {
    const struct job *job;
    const struct model *model;
    const struct windows *windows; /* shared by all streams */
    int64_t first, count;          /* which of the windows; hooks see their numbers among all windows */
    int streams;
    int last_block; /* stop after this block (then `final` is not called); −1: the whole model */
    const struct walk_hooks *hooks;
    int64_t reserved; /* bytes of the job's ram_limit that the hooks hold; hidden states get the rest */
    /* Progress is reported in tokens; a token counts in parts, block by block. Earlier walks of the job did
     * `tokens_before` of `tokens_total`. */
    const char *phase;
    int64_t tokens_before, tokens_total;
};

enum rc walk_run(const struct walk *walk, struct err *e);

#endif
