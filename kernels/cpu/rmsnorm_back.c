#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

/* Σ weight·dy·x */
SIMD static double weighted_dot(const float *weight, const float *dy, const float *x, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += (double)(weight[i + l] * dy[i + l]) * x[i + l];
    for (int l = 0; i < n; i++, l++)
        lane[l] += (double)(weight[i] * dy[i]) * x[i];
    return add_lanes_f64(lane);
}

/* What the elements of a row share: dx = factor·weight·dy − along·x. */
struct row {
    float factor, along;
};

SIMD static void spread(const struct row *r, const float *x, const float *weight, const float *dy, int64_t n, bool add,
                        float *dx) {
    for (int64_t i = 0; i < n; i++) {
        float value = r->factor * (weight[i] * dy[i]) - r->along * x[i];
        dx[i] = add ? dx[i] + value : value;
    }
}

enum rc cpu_rmsnorm_back(struct backend_state *state, const struct rmsnorm_back_args *a, struct err *e) {
    (void)state;
    TRY(check_rmsnorm_back(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->dy, a->dx));
    int64_t n = a->x.cols;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->x.rows; t++) {
        const float *x = f32_row(a->x, t), *dy = f32_row(a->dy, t);
        double factor = 1.0 / sqrt(vec_sum_squares(x, n) / (double)n + a->eps);
        double along = factor * factor * factor * weighted_dot(a->weight, dy, x, n) / (double)n;
        struct row r = {(float)factor, (float)along};
        spread(&r, x, a->weight, dy, n, a->add, f32_row(a->dx, t));
    }
    return RC_OK;
}
