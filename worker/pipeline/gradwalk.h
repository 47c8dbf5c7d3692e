/* A gram walk (gramwalk.h) on the way back: beside each input's H it has the gradients at the outputs of the Linears
 * that read it. So a candidate can be told in nats what it costs,
 *
 *   Fisher score = ½ Σ_t (g_t·Δy_t)² / scored tokens,  Δy_t = x_t·Dᵀ,  D = w − ŵ
 *
 * or, as far as gradients and inputs have nothing to do with each other, from G = Σ_t g_tᵀg_t and H alone (kfac), and H
 * can weigh tokens by what their outputs matter, H_w = Σ_t ‖g_t‖²·x_t·x_tᵀ (GuidedQuant, Kim et al. 2025). H is in all
 * bits that of the gram walk. What the callback made of a block's weights is scored over the first few windows: with
 * their inputs and gradients as they were kept, where the device has memory of its own and room in it, else by going
 * through the block once more. Where what all candidates change of a block has no room, it is asked for in rounds
 * (rounds.h), to the same bits.
 *
 * All this can be taken around a quantized model instead, which a store holds: inputs, labels and gradients are then
 * its, while the weights that the callback gets, and so D, remain the reference's.
 *
 * A job that is split over devices walks a share of the windows on each. At a block's end the parts of H, H_w and G are
 * added up over the devices and the block's Linears are divided among them; what is to be scored then gets to all, as
 * each has scored windows of its own. lm_head has no gradients here. */
#ifndef HSAQ_WORKER_PIPELINE_GRADWALK_H
#define HSAQ_WORKER_PIPELINE_GRADWALK_H

#include "worker/pipeline/gramwalk.h"
#include "worker/pipeline/packed_store.h"

struct grad_walk {
    /* As there; its callback gets inputs in the order of the way back: blocks from the last one, in a block as ever. */
    struct gram_walk gram;
    bool unweighed;      /* H, else it has no data; */
    bool guided;         /* H_w; */
    bool outer;          /* G */
    int64_t scored;      /* the first so many windows score every candidate; 0: none does */
    int64_t differences; /* bytes of a device for what a round changes of its Linears; 0: what all candidates do */
    uint64_t seed;       /* of the labels */
    /* In place of the windows' own, where several walks share a phase; as in struct walk. */
    int64_t tokens_before, tokens_total;
    const struct packed_store *around; /* without scales in norms, and lm_head; NULL: the reference */
    /* When all of a block's inputs are through: of every slot that was filled, in model order, by one device alone,
     * whose `job` it is. `linear` is an index into model.linears. */
    enum rc (*score)(void *ctx, const struct job *job, int64_t linear, size_t candidate, double fisher, struct err *e);
};

enum rc grad_walk_run(const struct grad_walk *g, struct err *e);

/* For `differences`: what every device of the job has room for beside what the walk holds, what it takes of hidden
 * states and weights at least, what its callback takes, and what operations work in; about, so that a walk may fail
 * after all. `most` at most, no more than is of use, but what one candidate of one Linear takes in any case. The
 * calling thread is attached to the first device then. */
int64_t grad_walk_differences(const struct grad_walk *g, int64_t most);
/* The most rounds of a block with so much. */
int64_t grad_walk_rounds(const struct grad_walk *g, int64_t differences);

/* In nats a scored token, what tr(G·D·H·Dᵀ) of a walk over these windows says: half of it over the tokens summed, the
 * Fisher score if a token's gradient told nothing about its input. */
double kfac_score(const struct windows *windows, double trace);

#endif
