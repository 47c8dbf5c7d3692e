/* A chunk of windows back through one block: the gradient of a loss by the block's input, and on the way by what each
 * Linear computes. Weights have no gradients.
 *
 * The block is computed forward anew from its input (forward.h), which leaves what its operations are taken back with.
 * The residual stream's gradient is fp32, what Linears are handed has the backend's activation type (sums into a norm
 * fp32). Called by the reverse walk alone, on the GPU thread. */
#ifndef HSAQ_WORKER_PIPELINE_BACKWARD_H
#define HSAQ_WORKER_PIPELINE_BACKWARD_H

#include "worker/pipeline/forward.h"

struct backward {
    struct forward *f;         /* opened to keep; T as there */
    void *memory;              /* everything below */
    struct mat g;              /* [T, D] at the output of o and down */
    struct mat dqkv;           /* as f's */
    struct mat dq, dk, dv;     /* [T, heads·d], [T, kv_heads·d] twice */
    struct mat dmixed;         /* [T, heads·d] */
    struct mat dnormed;        /* [T, D] fp32 */
    float *minus_sin;          /* [length, rotary/2] */
    float *multiplier;         /* [D] the residual multiplier, all the same; NULL: 1 */
    struct mat dact, dgate_up; /* f's act and gate_up, which are no longer needed by then */
};

/* That it takes beside `f`, which may be measured only. */
size_t backward_bytes(struct forward *f);
enum rc backward_open(struct backward *b, struct forward *f, struct err *e);
void backward_release(struct backward *b);

/* What a Linear reads and the gradient at what it computes, of all windows of the chunk: where the site has fewer, the
 * rows of the others hold zeros in g, and anything in x. The matrices are valid during the call. */
struct linear_gradient {
    const struct site *site;
    enum linear_input input;
    int position;     /* in block_tensors.linears */
    bool first, last; /* of the Linears with this input, which come one after the other with the same x */
    struct mat x, g;  /* [T, K], [T, N]; rows of g may lie apart */
    struct mat w;     /* [N, K] */
};

struct backward_args {
    struct mat x;      /* [T, D] fp32 the block's input */
    struct mat middle; /* [T, D] fp32 to work in: the residual stream between attention and MLP */
    struct mat dx;     /* [T, D] fp32 the gradient at the block's output, becomes the one at its input */
    const struct block_params *params;
    const struct block_weights *weights;
    const struct site *site;
    enum rc (*linear)(void *ctx, const struct linear_gradient *at, struct err *e); /* down, gate, up, o, q, k, v */
    void *ctx;
};
enum rc backward_block(struct backward *b, const struct backward_args *a, struct err *e);

#endif
