/* What one-sided and two-sided GPTQ share: groups that are fitted before anything is corrected, and how a weight is
 * rounded. */
#ifndef HSAQ_KERNELS_CPU_GPTQ_H
#define HSAQ_KERNELS_CPU_GPTQ_H

#include <math.h>

#include "kernels/columns.h"
#include "kernels/cpu/cpu.h"

struct rounding {
    const struct quantize_args *a;
    struct steps steps;
    float *weight; /* [K] for RANGE_WEIGHTED, in the order in which groups are fitted; else NULL */
};

/* Says which column is in which group; `weight` has room for K ranges' weights. */
void gptq_prepare(struct rounding *r, float *weight);
/* Fits all groups of a row to its weights as they are; `group` has room for K. Returns how many are constant. */
int64_t gptq_fit_row(const struct rounding *r, int64_t row, float *group);

static inline int64_t parameter_at(const struct rounding *r, int64_t row, int64_t group) {
    return row * r->a->out->groups + group;
}

/* In fp64 so that only true ties are ties. Corrections near the end of fp32 overflow: NaN is 0 too. */
static inline double nearest_code(double at, double top) {
    double q = rint(at);
    q = q > 0 ? q : 0;
    return q > top ? top : q;
}

/* gptq_rows.c: the two-sided one, from a->rows. */
enum rc gptq_two_sided(struct backend_state *state, struct rounding *r, struct err *e);

#endif
