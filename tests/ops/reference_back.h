/* Every backward operation in float64, by the Jacobian of its forward operation written out, and what both are held
 * against: central differences of the forward reference. As in reference.h, `*scale` outputs give the sum of
 * magnitudes behind each result. */
#ifndef HSAQ_TESTS_OPS_REFERENCE_BACK_H
#define HSAQ_TESTS_OPS_REFERENCE_BACK_H

#include <stdint.h>

#include "tests/ops/reference.h"

/* dx [T, K] = alpha · dy · w + beta · before */
struct ref_gemm_back {
    const float *dy, *w, *before;
    int64_t tokens, rows, cols; /* T, N, K */
    double alpha, beta;
};
void ref_gemm_back(const struct ref_gemm_back *g, double *dx, double *scale);

struct ref_rmsnorm_back {
    const float *x, *weight, *dy;
    int64_t rows, cols;
    double eps;
};
void ref_rmsnorm_back(const struct ref_rmsnorm_back *r, double *dx, double *scale);

/* A gradient and its scale. */
struct ref_gradient {
    double *value, *scale;
};
/* One window. */
void ref_attention_back(const struct ref_attention *a, const float *dout, struct ref_gradient dq,
                        struct ref_gradient dk, struct ref_gradient dv);

void ref_silu_mul_back(double gate, double up, double dy, double *dgate, double *dup);

/* One position's logits [V] = x · headᵀ · scale + bias; the gradient of weight · NLL(label) by x. */
struct ref_head {
    const float *x, *head, *bias; /* [D], [V, D], [V] or NULL */
    int64_t hidden, vocab;
    double scale;
};
void ref_logits(const struct ref_head *h, double *logits);
void ref_score_back(const struct ref_head *h, int64_t label, double weight, double *dx, double *scale);

/* Of weight · KL(P_ref ‖ P) by the x of `own`, where the reference's logits are those of `ref`. */
void ref_kl_back(const struct ref_head *own, const struct ref_head *ref, double weight, double *dx, double *scale);

/* slope [N, G] of a Linear's scales: `slope` and `scale` hold what was there before, and its magnitude. */
struct ref_scale_back {
    const float *x, *g, *w_hat;
    int64_t tokens, rows, cols, groups; /* T, N, K, G */
    const int32_t *group_of;            /* [K] */
};
void ref_scale_back(const struct ref_scale_back *r, double *slope, double *scale);

/* By each of x's `count` values, what `loss(ctx)` gains where it moves; loss reads x through ctx. */
void ref_differences(double (*loss)(const void *ctx), const void *ctx, float *x, int64_t count, double *out);

#endif
