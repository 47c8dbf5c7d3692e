/* A chunk of windows through one block: the residual stream in fp32, what Linears read and write in the backend's
 * activation type.
 *
 * Families differ only in data: fused or separate projections (views of one buffer), biases, q/k norm, partial rotary,
 * sliding window, multipliers. Called by the walks alone, on the GPU thread. */
#ifndef HSAQ_WORKER_PIPELINE_FORWARD_H
#define HSAQ_WORKER_PIPELINE_FORWARD_H

#include "worker/pipeline/walk.h"

struct forward {
    const struct walk *walk;
    int64_t length, windows;  /* tokens of a window, windows of a chunk; T = windows · length */
    void *memory;             /* everything below */
    struct mat normed;        /* [T, D] */
    struct mat qkv;           /* [T, (heads + 2·kv_heads)·d]: whole, for one product; {0} with a q/k norm */
    struct mat q, k, v;       /* [T, heads·d], [T, kv_heads·d] twice: views of qkv's memory */
    struct mat q_raw, k_raw;  /* before their norm: q and k themselves, or kept beside them for backward.h */
    struct mat mixed;         /* [T, heads·d] attention's output */
    struct mat gate_up;       /* [T, 2·I]: whole, for one product */
    struct mat gate, up, act; /* [T, I] */
    float *cos, *sin;         /* [length, rotary/2] */
};

/* windows: how many a chunk holds. keep: q and k before their norm too. Measured it has no memory, and the bytes that
 * it would take are returned. */
size_t forward_measure(struct forward *f, const struct walk *walk, int64_t windows, bool keep);
enum rc forward_open(struct forward *f, const struct walk *walk, int64_t windows, bool keep, struct err *e);
void forward_release(struct forward *f);

struct forward_args {
    struct mat x; /* [T, D] fp32: the block's input, becomes its output */
    const struct block_params *params;
    const struct block_weights *weights;
    const struct site *site;
    void *kept;   /* of stages: device memory for the inputs of o and down, forward_kept bytes; or NULL */
    bool is_kept; /* the input that this stage goes on from is there already */
};
/* How many bytes a chunk's widest kept input takes. */
size_t forward_kept(const struct forward *f);
enum rc forward_block(struct forward *f, const struct forward_args *a, struct err *e);

/* The same in stages, each as far as the hook for one input, INPUT_HEAD as far as the block's end. x is the block's
 * input, after INPUT_MLP its middle, and its output in the end, in all bits what forward_block makes of it with the
 * weights that the last three stages saw. */
enum rc forward_stage(struct forward *f, const struct forward_args *a, enum linear_input until, struct err *e);
/* Whether the stage leaves something else in x than it found. */
bool forward_stage_moves(enum linear_input until);

/* How a block's attention is called. */
struct attention_args forward_attention(const struct forward *f, int block);

#endif
