#include "kernels/cuda/device.cuh"

/* Output errors exist for all tokens × CHUNK rows of D at a time. */
static const int64_t CHUNK = 2048;

struct buffers {
    double *dots;     /* [T] g·(x·Dᵀ) */
    float *errors;    /* [T, CHUNK] */
    void *difference; /* [CHUNK, K] activation type */
};

struct chunk {
    int64_t row, rows; /* of D */
};

static __global__ void subtract(struct fisher_args a, struct chunk c, void *out, enum dtype type) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, n = c.row + i / a.w.cols, k = i % a.w.cols;
    if (i >= c.rows * a.w.cols) return;
    float w = load_stored(a.w.data, a.w.type, n * a.w.stride + k);
    store_as(out, type, i, w - load_stored(a.w_hat.data, a.w_hat.type, n * a.w_hat.stride + k));
}

/* One block a token; the first chunk begins. */
static __global__ void add_dots(struct fisher_args a, struct chunk c, struct buffers b) {
    int64_t t = blockIdx.x;
    double dot = 0;
    for (int64_t n = threadIdx.x; n < c.rows; n += BLOCK)
        dot += (double)load_stored(a.g.data, a.g.type, t * a.g.stride + c.row + n) * b.errors[t * CHUNK + n];
    dot = block_sum(dot);
    if (threadIdx.x == 0) b.dots[t] = c.row > 0 ? b.dots[t] + dot : dot;
}

/* One block a window. */
static __global__ void finish_window(struct fisher_args a, const double *dots) {
    double sum = 0, squares = 0;
    for (int64_t t = threadIdx.x; t < a.length; t += BLOCK) {
        double dot = dots[blockIdx.x * a.length + t], f = dot * dot;
        sum += f;
        squares += f * f;
    }
    sum = block_sum(sum);
    squares = block_sum(squares);
    if (threadIdx.x != 0) return;
    a.sum[blockIdx.x] = sum;
    a.squares[blockIdx.x] = squares;
}

static enum rc get_buffers(struct backend_state *state, const struct fisher_args *a, struct buffers *b, struct err *e) {
    size_t rows = (size_t)a->x.rows, errors = rows * CHUNK * sizeof *b->errors;
    size_t difference = (size_t)(CHUNK * a->x.cols) * dtype_size(state->activation); /* a multiple of 256 */
    void *memory;
    TRY(cuda_scratch(state, errors + difference + rows * sizeof *b->dots, &memory, e));
    b->errors = (float *)memory;
    b->difference = (char *)memory + errors;
    b->dots = (double *)((char *)memory + errors + difference);
    return RC_OK;
}

static enum rc add_chunk(struct backend_state *state, const struct fisher_args *a, const struct buffers *b,
                         struct chunk c, struct err *e) {
    int64_t cols = a->x.cols;
    subtract<<<blocks_for(c.rows * cols, BLOCK), BLOCK, 0, state->stream>>>(*a, c, b->difference, state->activation);
    LAUNCHED();
    struct gemm_args g = {.x = a->x,
                          .w = {b->difference, c.rows, cols, cols, state->activation},
                          .bias = NULL,
                          .alpha = 1,
                          .beta = 0,
                          .out = {b->errors, a->x.rows, c.rows, CHUNK, DTYPE_F32}};
    TRY(cuda_gemm(state, &g, e));
    add_dots<<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*a, c, *b);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_fisher(struct backend_state *state, const struct fisher_args *a, struct err *e) {
    TRY(check_fisher(a, e));
    TRY(check_activation(state, &a->x, e));
    TRY(check_activation(state, &a->g, e));
    if (a->x.rows == 0) return RC_OK;
    struct buffers b;
    TRY(get_buffers(state, a, &b, e));
    for (int64_t row = 0; row < a->w.rows; row += CHUNK)
        TRY(add_chunk(state, a, &b, {row, a->w.rows - row < CHUNK ? a->w.rows - row : CHUNK}, e));
    finish_window<<<(unsigned)(a->x.rows / a->length), BLOCK, 0, state->stream>>>(*a, b.dots);
    LAUNCHED();
    return RC_OK;
}
