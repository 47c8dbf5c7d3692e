#include <math.h>

#include "base/random.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu.h"

static const uint64_t stream_step = 0x9e3779b97f4a7c15u; /* splitmix64's, from one number to the next */

static float gaussian(uint64_t key, int64_t i) {
    uint64_t state = key + (uint64_t)i * stream_step, h = splitmix64(&state);
    float u = (float)((h >> 40) + 1) * 0x1p-24f, v = (float)(h >> 16 & 0xffffff) * 0x1p-24f;
    return sqrtf(-2 * logf(u)) * cosf(6.2831853f * v);
}

enum rc cpu_perturb(struct backend_state *state, const struct perturb_args *a, struct err *e) {
    (void)state;
    TRY(check_perturb(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->w, a->out));
    int64_t cols = a->w.cols;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t n = 0; n < a->w.rows; n++) {
        const float *w = f32_row(a->w, n);
        float *out = f32_row(a->out, n);
        for (int64_t k = 0; k < cols; k++)
            out[k] = w[k] + a->deviation * gaussian(a->key, n * cols + k);
    }
    return RC_OK;
}
