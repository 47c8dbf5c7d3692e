/* tr(X H Xᵀ) = Σ (XᵀX) ∘ H: shared by error and scaled_error. */
#ifndef HSAQ_KERNELS_CPU_TRACE_H
#define HSAQ_KERNELS_CPU_TRACE_H

#include "kernels/cpu/cpu.h"

enum { TRACE_ROWS = 1024 }; /* at most at a time */

/* Workspace for X of so many columns. */
size_t trace_bytes(const struct backend_state *state, int64_t cols);
/* x [N, K] fp32 of at most TRACE_ROWS rows, h [K, K] fp64; `memory`: trace_bytes, as aligned as scratch. In fp64
 * throughout: where an output is small because its terms cancel, fp32 products would leave few digits of it. */
double trace(struct backend_state *state, struct mat x, struct mat h, void *memory);

#endif
