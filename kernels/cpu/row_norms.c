#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

enum rc cpu_row_norms(struct backend_state *state, const struct row_norms_args *a, struct err *e) {
    (void)state;
    TRY(check_row_norms(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->g));
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->g.rows; t++) {
        double norm = vec_sum_squares(f32_row(a->g, t), a->g.cols);
        a->norms[t] = a->add ? a->norms[t] + norm : norm;
        if (a->roots != NULL) a->roots[t] = (float)sqrt(a->norms[t]);
    }
    return RC_OK;
}
