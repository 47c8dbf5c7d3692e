#include "kernels/cuda/device.cuh"

/* Output errors exist for all tokens × CHUNK rows of D at a time: in bf16, those of 8192 tokens stay in the cache. */
static const int64_t CHUNK = 2048;

struct buffers {
    double *dots; /* [T] g·(x·Dᵀ) */
    void *errors; /* [T, CHUNK] activation type */
};

struct chunk {
    int64_t row, rows; /* of D */
};

/* Both rows begin where COUNT values can be read at once. */
template <typename T, int COUNT> static __device__ inline double dot_part(const T *g, const T *errors, int64_t count) {
    double sum = 0;
    for (int64_t n = threadIdx.x * COUNT; n < count; n += BLOCK * COUNT) {
        vector<T, COUNT> a = load_vector<T, COUNT>(g + n), b = load_vector<T, COUNT>(errors + n);
        for (int i = 0; i < COUNT; i++)
            sum += (double)to_float(a.at[i]) * to_float(b.at[i]);
    }
    return sum;
}

/* One block a token; the first chunk begins. */
template <typename T, int COUNT>
static __global__ void add_dots(struct fisher_args a, struct chunk c, struct buffers b) {
    int64_t t = blockIdx.x;
    double dot = block_sum(
        dot_part<T, COUNT>((const T *)a.g.data + t * a.g.stride + c.row, (const T *)b.errors + t * CHUNK, c.rows));
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
    size_t rows = (size_t)a->x.rows, errors = rows * CHUNK * dtype_size(state->activation);
    void *memory;
    TRY(cuda_scratch(state, errors + rows * sizeof *b->dots, &memory, e));
    b->errors = memory;
    b->dots = (double *)((char *)memory + errors);
    return RC_OK;
}

template <typename T, int COUNT>
static enum rc launch_dots(struct backend_state *state, const struct fisher_args *a, struct chunk c,
                           const struct buffers *b, struct err *e) {
    bool together = rows_aligned(&a->g, 1, sizeof(T) * COUNT);
    if (together)
        add_dots<T, COUNT><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*a, c, *b);
    else
        add_dots<T, 1><<<(unsigned)a->x.rows, BLOCK, 0, state->stream>>>(*a, c, *b);
    LAUNCHED();
    return RC_OK;
}

static enum rc add_chunk(struct backend_state *state, const struct fisher_args *a, const struct buffers *b,
                         struct chunk c, struct err *e) {
    struct gemm_args g = {.x = a->x,
                          .w = mat_rows(a->d, c.row, c.rows),
                          .bias = NULL,
                          .alpha = 1,
                          .beta = 0,
                          .out = {b->errors, a->x.rows, c.rows, CHUNK, state->activation}};
    TRY(cuda_gemm(state, &g, e));
    return state->activation == DTYPE_BF16 ? launch_dots<__nv_bfloat16, 8>(state, a, c, b, e)
                                           : launch_dots<float, 4>(state, a, c, b, e);
}

enum rc cuda_fisher(struct backend_state *state, const struct fisher_args *a, struct err *e) {
    TRY(check_fisher(a, e));
    TRY(check_activation(state, &a->x, e));
    TRY(check_activation(state, &a->g, e));
    TRY(check_activation(state, &a->d, e));
    if (a->x.rows == 0) return RC_OK;
    struct buffers b;
    TRY(get_buffers(state, a, &b, e));
    for (int64_t row = 0; row < a->d.rows; row += CHUNK)
        TRY(add_chunk(state, a, &b, {row, a->d.rows - row < CHUNK ? a->d.rows - row : CHUNK}, e));
    finish_window<<<(unsigned)(a->x.rows / a->length), BLOCK, 0, state->stream>>>(*a, b.dots);
    LAUNCHED();
    return RC_OK;
}
