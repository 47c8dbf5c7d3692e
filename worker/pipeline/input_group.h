/* The Linears of a block that read one input, and how they are quantized together: GPTQ shares one factor of the
 * input's H, AWQ one scale for each of its channels. A two-sided GPTQ has a factor of each Linear's
 * own rows beside that.
 *
 * The same code for every job kind, so that what a profile scored is what an eval runs. Deterministic; GPU thread only.
 */
#ifndef HSAQ_WORKER_PIPELINE_INPUT_GROUP_H
#define HSAQ_WORKER_PIPELINE_INPUT_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"
#include "kernels/backend.h"
#include "worker/model/model.h"
#include "worker/pipeline/job.h"

/* Which channels of an input have to share a scale: where attention's output is scaled through the rows of v, all query
 * heads of a kv head. Channel (head·width + j) shares with ((head / repeats)·repeats·width + j). */
struct channel_ties {
    int64_t width;   /* channels of a head */
    int64_t repeats; /* heads that share; 0 and 1: none does */
};

/* An input's H, and GPTQ's factor of it, made when it is first needed and again when it has to be another one. */
struct factored_gram {
    struct mat h; /* [K, K] finished; data NULL: no candidate looks at it */
    struct factor factor;
    enum column_order order;
    int group, damp; /* what the factor was made for */
};

/* Whether one factor does for both, as long as nothing is scaled: to be quantized one after the other, as only the last
 * factor is kept. */
bool candidates_share_factor(const struct candidate *a, const struct candidate *b);

struct input_group {
    const struct job *job;
    struct factored_gram gram, guided; /* h is the caller's; that of `guided` weighs tokens by their gradients */
    const double *mean_abs;            /* [K] host memory, mean |x| of each channel; NULL: no AWQ */
    const struct mat *w;               /* [count] of [N, K] */
    const struct mat *g; /* [count] of [N, N] Σ gᵀg at their outputs, finished; NULL: no candidate is two-sided */
    struct factor rows[BLOCK_LINEARS_MAX]; /* of those, for all candidates; made when first needed */
    int count;
    bool foldable;                /* a scale of the input's channels can be taken out of what computes them */
    const struct st_tensor *norm; /* which are these weights; NULL: a Linear's rows */
    struct channel_ties ties;
};

/* What an input of a block is tied to, and whether it can be folded. Block −1: lm_head's. */
void input_group_fold(struct input_group *g, const struct model *model, int block, enum linear_input input);
void input_group_release(struct input_group *g);
/* Device memory that quantizing the Linears of any one input takes beside Gram matrices, about at most; of the
 * candidates `two_sided` are two-sided, of which some go in one call. */
int64_t input_group_bytes(const struct model *model, int two_sided);

/* How many two-sided candidates of one of its Linears to quantize in one call, at least one: few Linears keep a device
 * busy alone. No more than there is room for when the factors are there, which all of them share with this one and
 * which are made here. */
enum { GROUP_TOGETHER_MAX = 32 };
enum rc input_group_together(struct input_group *g, int index, const struct candidate *c, int *count, struct err *e);

/* By what AWQ multiplies each column of the group's weights, and divides the input's channels. */
struct awq_scale {
    double *by_channel;          /* [K] host memory */
    float *by_col, *inverse;     /* [K] device memory: the same, and its reciprocal */
    struct factored_gram gram;   /* of the scaled input; h is its own */
    struct factored_gram guided; /* the same; data NULL where no candidate is */
    double ratio;                /* of the search */
    bool duo;
    double gain; /* output error of rounding to nearest with it, over that without */
};

/* What the candidate goes by: H or the guided one, of the scaled input where there is a scale. */
struct factored_gram *group_gram(struct input_group *g, struct awq_scale *scale, const struct candidate *c);

/* The best scale that what makes the input can be divided by, for all Linears of the group, each rounded to nearest on
 * its candidate's grid; candidates[i] that are METHOD_NONE count no error, and a guided one has all judged by the
 * guided H. All {NULL}: the group is not foldable.
 */
enum rc awq_search(const struct input_group *g, const struct candidate *const *candidates, struct awq_scale *out,
                   struct err *e);
void awq_scale_release(const struct job *job, struct awq_scale *s);

struct group_quantize_args {
    struct input_group *group;
    int index; /* which of its Linears */
    const struct candidate *candidate;
    struct awq_scale *scale; /* of columns and of H; or NULL */
    struct quantized *out;   /* by quantized_alloc; of the scaled weights */
};
/* `count` ≤ GROUP_TOGETHER_MAX; where it is more than 1 they are of one Linear, share a factor, and have no scale. */
enum rc group_quantize(const struct group_quantize_args *a, int count, struct err *e);

/* What the reference's input then meets: out [N, K] fp32 = ŵ of a->out with the scale taken out again. */
enum rc group_dequantize(const struct group_quantize_args *a, struct mat out, struct err *e);
/* Both; a->out is not looked at. */
enum rc group_quantize_effective(const struct group_quantize_args *a, struct mat out, struct err *e);

/* The whole way for one Linear: every Linear of the group under this candidate, as far as AWQ looks at them.
 * out [N, K] fp32. */
enum rc group_effective_weights(struct input_group *g, int index, const struct candidate *c, struct mat out,
                                struct err *e);

/* AWQ leaves the range of q and k alone, also where v is stored with them (it would clip the few channels that rope and
 * softmax amplify). */
struct candidate candidate_for(const struct candidate *c, const struct linear *linear);

#endif
