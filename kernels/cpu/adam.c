#include "kernels/adam.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { PIECE = 4096 }; /* values a thread takes at a time, so that they stay in its cache */

SIMD static void average(const struct adam_step *step, float *restrict slope, float *restrict mean,
                         float *restrict square, int64_t n) {
    const struct adam_step s = *step;
    for (int64_t i = 0; i < n; i++) {
        mean[i] = s.keep_mean * mean[i] + s.add_mean * slope[i];
        square[i] = s.keep_square * square[i] + s.add_square * (slope[i] * slope[i]);
        slope[i] = 0;
    }
}

SIMD static void move(const struct adam_step *step, const float *restrict mean, const float *restrict square,
                      float *restrict theta, int64_t n) {
    const struct adam_step s = *step;
    for (int64_t i = 0; i < n; i++)
        theta[i] -= s.rate * mean[i] / (sqrtf(square[i] * s.unbias) + s.epsilon);
}

SIMD static void grow(const float *restrict base, const float *restrict theta, float *restrict scale, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        scale[i] = base[i] * exp_f32(theta[i]);
}

enum rc cpu_adam(struct backend_state *state, const struct adam_args *a, struct err *e) {
    TRY(check_adam(a, e));
    struct adam_step s = adam_step(a);
#pragma omp parallel for num_threads(state->threads)
    for (int64_t i = 0; i < a->count; i += PIECE) {
        int64_t n = a->count - i < PIECE ? a->count - i : PIECE;
        average(&s, a->slope + i, a->mean + i, a->square + i, n);
        move(&s, a->mean + i, a->square + i, a->theta + i, n);
        grow(a->base + i, a->theta + i, a->scale + i, n);
    }
    (void)state;
    return RC_OK;
}
