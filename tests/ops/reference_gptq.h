/* GPTQ in float64 as the paper derives it: H′ inverted, and a column's row and column taken out of the inverse after it
 * was rounded. No Cholesky factor and no blocks. */
#ifndef HSAQ_TESTS_OPS_REFERENCE_GPTQ_H
#define HSAQ_TESTS_OPS_REFERENCE_GPTQ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"

/* The column of each step, by choosing the largest that is left. */
void ref_order(const double *h, int64_t cols, int group, enum column_order order, int32_t *steps);
/* Row k of u [K, K] is row k of H′⁻¹ when the columns before are taken out of it, over the root of its diagonal: what
 * the Cholesky factor of H′⁻¹ is. False when H′ is not positive definite. */
bool ref_factor(const double *h, int64_t cols, const int32_t *steps, double damp, double *u);

/* One row, quantized by a backend. Its codes and parameters are compared with what the reference would have taken in
 * their place, and taken, so that one near tie does not hide the rest. */
struct ref_row {
    const float *w; /* [K] */
    int64_t cols;
    const struct candidate *candidate;
    const double *h, *u;  /* [K, K] */
    const int32_t *steps; /* [K] */
    const uint8_t *codes; /* [K] */
    const float *scale, *zero;
    int64_t stride; /* from group to group of the parameters */
};
struct ref_verdict {
    int64_t codes, parameters; /* that differ */
    double farthest; /* from a tie, in steps of the grid, of a code that differs; Inf when it is no neighbour */
};
void ref_check_row(const struct ref_row *row, struct ref_verdict *verdict);

/* All rows of a Linear that was quantized two-sided, as kernels/backend.h defines it. */
struct ref_rows {
    struct ref_row first; /* the others' weights and codes lie cols, their parameters `groups` apart */
    int64_t count, groups;
    const double *u;      /* [N, N] of G′ */
    const int32_t *steps; /* [N] */
};
void ref_check_rows(const struct ref_rows *rows, struct ref_verdict *verdict);

/* H′ as the objective of descending has it: without dead columns. */
void ref_damped(const double *h, int64_t cols, double damp, double *out);
/* One sweep of coordinate descent over the row's codes [K], every slope summed anew; row->h is H′. Where row->codes is
 * there, it is what a backend's sweep made of the same codes: compared and taken as above. */
void ref_descend(const struct ref_row *row, uint8_t *codes, struct ref_verdict *verdict);
/* (w − ŵ)·H′·(w − ŵ)ᵀ */
double ref_damped_error(const struct ref_row *row, const uint8_t *codes);

#endif
