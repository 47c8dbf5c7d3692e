/* Every operation in float64, written as the textbook writes it: slow, plain, and independent of the kernels.
 * Matrices are dense [rows, cols], inputs the very floats that the operation gets. `*scale` outputs give the sum of
 * magnitudes behind each result: the yardstick for its rounding error. */
#ifndef HSAQ_TESTS_OPS_REFERENCE_H
#define HSAQ_TESTS_OPS_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"

void ref_rmsnorm(const float *x, const float *weight, int64_t rows, int64_t cols, double eps, double *out);
/* out [T, N] = alpha · (x · wᵀ + bias) + beta · before */
struct ref_gemm {
    const float *x, *w, *bias, *before;
    int64_t tokens, rows, cols;
    double alpha, beta;
};
void ref_gemm(const struct ref_gemm *g, double *out, double *scale);
void ref_rope(const float *x, const float *cosine, const float *sine, int64_t tokens, int heads, int head_dim,
              int rotary, double *out);
struct ref_attention {
    const float *q, *k, *v;
    int64_t tokens;
    int heads, kv_heads, head_dim, window;
    double scale;
};
void ref_attention(const struct ref_attention *a, double *out);
double ref_silu(double gate);

/* One position: log-sum-exp, arg max and KL over logits [V]. */
double ref_log_sum_exp(const double *logits, int64_t vocab);
int64_t ref_arg_max(const double *logits, int64_t vocab);
double ref_kl(const double *logits, const double *logits_q, int64_t vocab);

/* ‖X Dᵀ‖² = Σ_t Σ_n (x_t · d_n)² */
double ref_output_energy(const float *x, const double *d, int64_t tokens, int64_t rows, int64_t cols);

/* Nearest half-precision value, ties to even, by arithmetic alone; ±Inf beyond 65520. */
double ref_f16(double value);

/* A group's grid and the value of weight w on it. */
struct ref_grid {
    double scale, zero, top;
};
double ref_code(const struct ref_grid *g, double w);
double ref_grid_error(const struct ref_grid *g, const float *w, int64_t n);
struct ref_grid ref_rtn(const float *w, int64_t n, const struct candidate *c);

/* One group under a range choice: what its grid is judged by, and the grid of least criterion among all tried, RTN's
 * first. `margin`: by which share another grid is worse at least; near 0 it is a tie. The group straddles 0, or the
 * candidate's range takes in 0. */
struct ref_fit {
    const float *w; /* [n] */
    int64_t n;
    const struct candidate *candidate;
    const double *h; /* the group's block, rows h_stride apart; NULL where the range does not need it */
    int64_t h_stride;
};
double ref_criterion(const struct ref_fit *a, const struct ref_grid *g);
struct ref_grid ref_range_search(const struct ref_fit *a, double *margin);
struct ref_grid ref_range_given(const struct ref_fit *a); /* RANGE_PERCENTILE, RANGE_RATIO */

/* HQQ as its library runs it: one early stop for the whole tensor, the zero one step past the best
 * iterate, nothing rounded to 16 bits. Fills ŵ [N, K]. */
void ref_hqq(const float *w, int64_t rows, int64_t cols, int group, int bits, double *w_hat);

#endif
