/* Logits over a part of the vocabulary: what scoring, drawing labels and losses' gradients share. */
#ifndef HSAQ_KERNELS_CUDA_LOGITS_CUH
#define HSAQ_KERNELS_CUDA_LOGITS_CUH

#include "kernels/cuda/device.cuh"

/* Logits exist for all tokens of a call × so many entries of the vocabulary at a time. */
static const int64_t LOGITS_CHUNK = 8192;

/* logits = x · headᵀ · scale (+ bias) */
struct logits {
    struct mat x, head; /* [T, D], [V, D] */
    const float *bias;  /* [V] or NULL */
    float scale;
};

struct logits_chunk {
    int64_t col, cols;
};

static inline struct logits_chunk logits_chunk_at(int64_t col, int64_t vocab) {
    return {col, vocab - col < LOGITS_CHUNK ? vocab - col : LOGITS_CHUNK};
}

/* out [T, LOGITS_CHUNK] fp32 */
enum rc logits_compute(struct backend_state *state, const struct logits *l, struct logits_chunk c, float *out,
                       struct err *e);

/* One token's Σ e^l = e^max · sum, over the whole vocabulary. */
struct logits_sum {
    double sum;
    float max;
};
/* sums [T] device memory; `scratch` [T, LOGITS_CHUNK]. */
enum rc logits_sums(struct backend_state *state, const struct logits *l, float *scratch, struct logits_sum *sums,
                    struct err *e);

/* dx += gradient · head · scale over the chunk; the first one begins. */
struct logits_gradient {
    void *by_logits; /* [T, LOGITS_CHUNK] activation type */
    struct mat dx;   /* [T, D] fp32 */
};
enum rc logits_back(struct backend_state *state, const struct logits *l, const struct logits_gradient *g,
                    struct logits_chunk c, struct err *e);

#endif
