#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

enum rc cpu_embed(struct backend_state *state, const struct embed_args *a, struct err *e) {
    (void)state;
    TRY(check_embed(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->out));
    size_t row_bytes = (size_t)a->out.cols * dtype_size(a->type);
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->out.rows; t++) {
        float *row = f32_row(a->out, t);
        cpu_convert((const char *)a->table + (size_t)a->ids[t] * row_bytes, a->type, a->out.cols, row);
        if (a->multiplier != 1.0f) vec_scale(row, a->out.cols, a->multiplier);
    }
    return RC_OK;
}
