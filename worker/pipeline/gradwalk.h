/* A gram walk (gramwalk.h) on the way back: beside each input's H it has the gradients at the outputs of the Linears
 * that read it. So a candidate can be told in nats what it costs,
 *
 *   Fisher score = ½ Σ_t (g_t·Δy_t)² / scored tokens,  Δy_t = x_t·Dᵀ,  D = w − ŵ  (algorithms §11)
 *
 * and H can weigh tokens by what their outputs matter, H_w = Σ_t ‖g_t‖²·x_t·x_tᵀ (algorithms §12). H is in all bits
 * that of the gram walk. A block is gone through twice: for H, of all windows; then, with what the callback made of the
 * weights, for the scores, of the first few. On one device, on its GPU thread; lm_head has no gradients here. */
#ifndef HSAQ_WORKER_PIPELINE_GRADWALK_H
#define HSAQ_WORKER_PIPELINE_GRADWALK_H

#include "worker/pipeline/gramwalk.h"

struct grad_walk {
    /* As there; its callback gets inputs in the order of the way back: blocks from the last one, in a block as ever. */
    struct gram_walk gram;
    bool guided;       /* H_w too */
    size_t candidates; /* how many weights of each wanted Linear are scored */
    int64_t scored;    /* windows: the first so many */
    uint64_t seed;     /* of the labels */
    /* When all of a block's inputs are through: of every effective weight that was filled, in model order. `linear` is
     * an index into model.linears. */
    enum rc (*score)(void *ctx, int64_t linear, size_t candidate, double fisher, struct err *e);
};

enum rc grad_walk_run(const struct grad_walk *g, struct err *e);

#endif
