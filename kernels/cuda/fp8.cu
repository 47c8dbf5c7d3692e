/* Twin of kernels/cpu/fp8.c: OCP e4m3fn, the same scales and codes. */
#include "kernels/cuda/e4m3.cuh"

#include <math.h>

/* The largest |w| of each row. */
static __global__ void magnitudes(struct mat w, float *out) {
    float max = 0;
    for (int64_t k = threadIdx.x; k < w.cols; k += BLOCK)
        max = fmaxf(max, fabsf(load_stored(w.data, w.type, blockIdx.x * w.stride + k)));
    max = block_max(max);
    if (threadIdx.x == 0) out[blockIdx.x] = max;
}

/* The largest of all rows, for each of them; one block. */
static __global__ void spread_largest(float *magnitude, int64_t rows) {
    float max = 0;
    for (int64_t n = threadIdx.x; n < rows; n += BLOCK)
        max = fmaxf(max, magnitude[n]);
    max = block_max(max);
    __shared__ float largest;
    if (threadIdx.x == 0) largest = max;
    __syncthreads();
    for (int64_t n = threadIdx.x; n < rows; n += BLOCK)
        magnitude[n] = largest;
}

static __global__ void to_scales(float *magnitude, float *zero, int64_t rows) {
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (n >= rows) return;
    magnitude[n] = e4m3_scale(magnitude[n]);
    zero[n] = 0;
}

static __global__ void encode(struct mat w, struct quantized q) {
    double scale = q.scale[blockIdx.x];
    for (int64_t k = threadIdx.x; k < w.cols; k += BLOCK) {
        float value = load_stored(w.data, w.type, blockIdx.x * w.stride + k);
        q.codes[blockIdx.x * w.cols + k] = e4m3_encode(value / scale);
    }
}

enum rc cuda_fp8(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    struct quantized q = *a->out;
    unsigned rows = (unsigned)q.rows;
    magnitudes<<<rows, BLOCK, 0, state->stream>>>(a->w, q.scale);
    if (a->candidate.fp8_scale == FP8_PER_TENSOR) spread_largest<<<1, BLOCK, 0, state->stream>>>(q.scale, q.rows);
    to_scales<<<blocks_for(q.rows, BLOCK), BLOCK, 0, state->stream>>>(q.scale, q.zero, q.rows);
    encode<<<rows, BLOCK, 0, state->stream>>>(a->w, q);
    LAUNCHED();
    return RC_OK;
}
