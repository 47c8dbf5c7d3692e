/* Twin of kernels/cpu/descend.c. A team of threads has a row, each some of the block's columns in registers, as in
 * gptq.cu: whose column it is moves it and tells the others. Most codes stay, and a step at which none of a warp's rows
 * moves costs nothing more. */
#include <math.h>

#include "kernels/cuda/grid.cuh"
extern "C" {
#include "kernels/columns.h"
}

static const int HELD = STEPS_MAX / TEAM; /* columns of a block that one thread has */

struct descent {
    struct quantized q;
    struct gptq_columns c; /* error: ŵ − w in the order of the steps */
    float *h;              /* [K, K] H′ in the order of the steps; rows and columns of dead ones are 0 */
};

/* In a unit in which fp32 holds it. */
template <typename T> static __global__ void gather(struct mat h, struct descent d, double added, double unit) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / d.q.cols, col = i % d.q.cols;
    if (row >= d.q.cols) return;
    int64_t from_row = d.c.order[row], from_col = d.c.order[col];
    double value = ((const T *)h.data)[from_row * h.stride + from_col] + (row == col ? added : 0);
    d.h[i] = d.c.dead[from_row] || d.c.dead[from_col] ? 0 : (float)(value * unit);
}

/* E = ŵ − w in the order of the steps. */
static __global__ void take_errors(struct mat w, struct descent d) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, n = i / d.q.cols, k = i % d.q.cols;
    if (n >= d.q.rows) return;
    int64_t column = d.c.order[k], p = n * d.q.groups + d.c.group[k];
    double w_hat = ((double)d.q.codes[n * d.q.cols + column] - d.q.zero[p]) * d.q.scale[p];
    d.c.error[i] = (float)(w_hat - load_stored(w.data, w.type, n * w.stride + column));
}

/* One row's weight in the column of one step. */
struct place {
    float scale, inverse; /* 1/(H′_kk · scale); of a dead column 0 */
    float code;
    uint8_t *stored;
};

static __device__ inline struct place place_at(const struct descent &d, int64_t row, int64_t step) {
    float scale = d.q.scale[row * d.q.groups + d.c.group[step]], diagonal = d.h[step * d.q.cols + step];
    uint8_t *stored = d.q.codes + row * d.q.cols + d.c.order[step];
    return {scale, diagonal > 0 ? 1 / (diagonal * scale) : 0, (float)*stored, stored};
}

/* Where the code goes. What is no number moves nothing. */
static __device__ inline float moved(const struct place &p, float slope, float top) {
    float step = -slope * p.inverse;
    return fminf(fmaxf(p.code + (fabsf(step) < INFINITY ? rintf(step) : 0), 0.0f), top);
}

/* Steps from … to. */
struct segment {
    int64_t from, to;
};

/* Rows that there are not go along with the first, for the sake of those in their warp, and store nothing. */
static __global__ void __launch_bounds__(BLOCK) move_columns(struct descent d, struct segment s) {
    int64_t row = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / TEAM, cols = d.q.cols;
    bool there = row < d.q.rows;
    if (!there) row = 0;
    int lane = (int)threadIdx.x % TEAM, width = (int)(s.to - s.from);
    const float *slopes = d.c.slope + row * STEPS_MAX, *h = d.h + s.from * cols + s.from;
    float slope[HELD], top = (float)((1 << d.q.bits) - 1);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        slope[i] = i * TEAM + lane < width ? slopes[i * TEAM + lane] : 0;
    struct place next = place_at(d, row, s.from + (lane < width ? lane : 0));
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        if (i * TEAM >= width) break;
        int own = i * TEAM + lane, after = own + TEAM;
        struct place place = next;
        if ((i + 1) * TEAM < width) next = place_at(d, row, s.from + (after < width ? after : 0));
        float code = place.code;
        for (int t = 0; t < TEAM && i * TEAM + t < width; t++, h += cols) {
            float to = moved(place, slope[i], top), move = (to - place.code) * place.scale;
            if (lane == t) code = to;
            move = __shfl_sync(0xffffffffu, move, t, TEAM);
            if (!__any_sync(0xffffffffu, move != 0)) continue;
            if (lane > t && own < width) slope[i] += move * __ldg(&h[own]);
#pragma unroll
            for (int j = i + 1; j < HELD; j++)
                if (j * TEAM + lane < width) slope[j] += move * __ldg(&h[j * TEAM + lane]);
        }
        if (!there || code == place.code) continue;
        *place.stored = (uint8_t)code;
        d.c.error[row * cols + s.from + own] += (code - place.code) * place.scale;
    }
}

/* R = E · H′ of the block, made anew from E as it is, then its steps. To cuBLAS, which counts columns first, all
 * factors are transposed and change places. */
static enum rc descend_block(struct backend_state *state, const struct descent *d, struct segment s, struct err *e) {
    const float one = 1, zero = 0;
    int cols = (int)d->q.cols;
    CUBLAS_TRY(cublasSgemm(state->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)(s.to - s.from), (int)d->q.rows, cols, &one,
                           d->h + s.from * cols, cols, d->c.error, cols, &zero, d->c.slope, STEPS_MAX));
    move_columns<<<blocks_for(d->q.rows * TEAM, BLOCK), BLOCK, 0, state->stream>>>(*d, s);
    LAUNCHED();
    return RC_OK;
}

static enum rc descend(struct backend_state *state, const struct quantize_args *a, const struct descent *d,
                       struct err *e) {
    int64_t cols = d->q.cols;
    const struct factor *f = a->factor;
    double unit = columns_unit(f->mean), added = f->damp * f->mean;
    if (a->h.type == DTYPE_F64)
        gather<double><<<blocks_for(cols * cols, BLOCK), BLOCK, 0, state->stream>>>(a->h, *d, added, unit);
    else
        gather<float><<<blocks_for(cols * cols, BLOCK), BLOCK, 0, state->stream>>>(a->h, *d, added, unit);
    LAUNCHED();
    take_errors<<<blocks_for(d->q.rows * cols, BLOCK), BLOCK, 0, state->stream>>>(a->w, *d);
    LAUNCHED();
    for (int sweep = 0; sweep < a->candidate.descend; sweep++)
        for (int64_t from = 0; from < cols; from += STEPS_MAX)
            TRY(descend_block(state, d, {from, from + STEPS_MAX < cols ? from + STEPS_MAX : cols}, e));
    return RC_OK;
}

enum rc cuda_descend(struct backend_state *state, const struct quantize_args *a, const struct gptq_columns *c,
                     struct err *e) {
    struct descent d = {*a->out, *c, NULL};
    void *memory;
    TRY(cuda_alloc(state, (size_t)(a->w.cols * a->w.cols) * sizeof(float), &memory, e));
    d.h = (float *)memory;
    enum rc rc = descend(state, a, &d, e);
    cuda_free(state, memory);
    return rc;
}
