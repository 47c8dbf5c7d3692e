#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

SIMD static void rotate(float *restrict head, const float *restrict cosine, const float *restrict sine, int half) {
    for (int i = 0; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cosine[i] - second * sine[i];
        head[i + half] = second * cosine[i] + first * sine[i];
    }
}

enum rc cpu_rope(struct backend_state *state, const struct rope_args *a, struct err *e) {
    (void)state;
    TRY(check_rope(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x));
    int half = a->rotary / 2;
#pragma omp parallel for num_threads(state->threads)
    for (int64_t t = 0; t < a->x.rows; t++)
        for (int h = 0; h < a->heads; h++)
            rotate(f32_row(a->x, t) + (int64_t)h * a->head_dim, a->cos + t % a->length * half,
                   a->sin + t % a->length * half, half);
    return RC_OK;
}
