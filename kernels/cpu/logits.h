/* Logits of a few tokens over a part of the vocabulary: what drawing labels and losses' gradients share. */
#ifndef HSAQ_KERNELS_CPU_LOGITS_H
#define HSAQ_KERNELS_CPU_LOGITS_H

#include "base/err.h"
#include "kernels/tensor.h"

/* Logits exist for so many tokens × entries of the vocabulary at a time. */
enum { LOGITS_TILE = 256, LOGITS_CHUNK = 512 };

/* logits = x · headᵀ · scale (+ bias) */
struct logits {
    struct mat x, head; /* [T, D], [V, D] fp32 */
    const float *bias;  /* [V] or NULL */
    float scale;
};

struct logits_chunk {
    int64_t row, rows, col, cols;
};

/* out [rows, LOGITS_CHUNK] */
void logits_compute(const struct logits *l, const struct logits_chunk *c, float *out);

/* The chunk from `col`, of the tokens from `row`. */
struct logits_chunk logits_chunk_at(const struct logits *l, int64_t row, int64_t col);

/* dx += gradient · head · scale over the chunk, gradient [rows, LOGITS_CHUNK] by the logits; the first one begins. */
void logits_back(const struct logits *l, const struct logits_chunk *c, const float *gradient, struct mat dx);

/* Called once for every LOGITS_TILE tokens, in parallel; `scratch`, so many matrices [LOGITS_TILE, LOGITS_CHUNK], is
 * the thread's. */
struct logits_work {
    void (*tile)(const void *args, const struct logits *l, int64_t row, float *scratch);
    const void *args;
    int matrices;
};
struct backend_state;
enum rc logits_each_tile(struct backend_state *state, const struct logits *l, const struct logits_work *work,
                         struct err *e);

/* Σ e^l = e^max · sum, over the whole vocabulary. */
struct logits_sum {
    double sum;
    float max;
};
/* Of the tile of tokens that begins at `row`; `scratch` [LOGITS_TILE, LOGITS_CHUNK]. */
void logits_sums(const struct logits *l, int64_t row, float *scratch, struct logits_sum *out);

#endif
