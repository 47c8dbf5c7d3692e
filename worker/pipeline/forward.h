/* One window through one block, with fp32 activations in device memory.
 *
 * Families differ only in data: fused or separate projections (views of one buffer), biases, q/k norm, partial rotary,
 * sliding window, multipliers. Called by the walk alone, on the GPU thread. */
#ifndef HSAQ_WORKER_PIPELINE_FORWARD_H
#define HSAQ_WORKER_PIPELINE_FORWARD_H

#include "worker/pipeline/walk.h"

enum { BLOCK_LINEARS = 7 };

/* A block's small tensors; NULL where the block has none. */
struct block_params {
    float *input_norm, *post_norm;       /* [D] */
    float *q_norm, *k_norm;              /* [head_dim] */
    float *bias[BLOCK_LINEARS];          /* [N] by position */
    int count;                           /* Linears in the block */
    int at[INPUT_COUNT], n[INPUT_COUNT]; /* first position, and how many, of the Linears with this input */
};

struct forward {
    const struct walk *walk;
    int64_t length;            /* T */
    float *memory;             /* everything below */
    struct matf x;             /* [T, D] the residual stream */
    struct matf normed;        /* [T, D] */
    struct matf qkv;           /* [T, (heads + 2·kv_heads)·d]: whole, for a fused projection */
    struct matf q, k, v;       /* [T, heads·d], [T, kv_heads·d] twice: views of qkv's memory */
    struct matf mixed;         /* [T, heads·d] attention's output */
    struct matf gate_up;       /* [T, 2·I]: whole, for a fused projection */
    struct matf gate, up, act; /* [T, I] */
    float *cos, *sin;          /* [T, rotary/2] */
};

/* Where a forward pass stands, for hooks and messages. */
struct site {
    int stream, block;
    int64_t window;
};

enum rc forward_open(struct forward *f, const struct walk *walk, struct err *e);
void forward_release(struct forward *f);

enum rc block_params_load(struct block_params *p, const struct walk *walk, int block, struct err *e);
void block_params_release(struct block_params *p, const struct job *job);

/* f->x is the block's input and becomes its output. */
enum rc forward_block(struct forward *f, const struct block_params *p, const struct block_weights *w,
                      const struct site *site, struct err *e);

#endif
