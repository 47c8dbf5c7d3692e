/* Twin of kernels/cpu/scaled_error.c. One read of W gives D in the type of the product that follows; what is left of it
 * is Σ (DᵀD) ∘ H over the upper triangle, so that H itself is never rounded and no D·H is written.
 *
 * bf16 is enough for D, twice as fast as TF32: the noise of rounding D once more, up to 2^−9 of each value, has another
 * sign in each. On average it comes to 1e-4 of the error at 130 rows of 520, and to less the more there are. */
#include <math.h>

#include "kernels/cuda/grid.cuh"

/* Bytes and rows of D kept at a time, and columns of DᵀD computed together. */
static const int64_t WORKSPACE = 128 << 20, ROWS_MAX = 16384, PANEL = 2048;

/* Some rows of one Linear, and where their D goes. */
struct round_args {
    struct mat w;
    struct candidate candidate;
    const float *by_col, *inverse;
    int64_t group;        /* its size */
    int64_t first, count; /* groups of each row */
    bool aligned;         /* whatever a thread has of a full group can be read and written in one go */
    void *out;            /* [N, K] */
};

static __device__ inline void store_difference(double *to, float value) {
    *to = value;
}
static __device__ inline void store_difference(__nv_bfloat16 *to, float value) {
    *to = __float2bfloat16_rn(value);
}

/* A full group: each thread has COUNT neighbours. So sums over a group are in another order than the CPU's, which only
 * tells where two grids are equally good to the last digits. */
template <int COUNT> struct piece : member {
    static const int64_t n = COUNT * TEAM;
    float w[COUNT];
    float first;

    template <typename F> __device__ void each(F f) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            f(i % OWN, w[i]);
    }
};

template <typename F, int COUNT>
static __device__ inline void load_piece(const F *from, bool aligned, float (&to)[COUNT]) {
    const int whole = 16 / sizeof(F), width = COUNT < whole ? COUNT : whole;
    if (aligned) {
#pragma unroll
        for (int i = 0; i < COUNT; i += width) {
            struct vector<F, width> v = load_vector<F, width>(from + i);
#pragma unroll
            for (int j = 0; j < width; j++)
                to[i + j] = to_float(v.at[j]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            to[i] = to_float(from[i]);
    }
}

template <int COUNT>
static __device__ inline void load_weights(const struct round_args &a, int64_t at, float (&to)[COUNT]) {
    if (a.w.type == DTYPE_BF16)
        load_piece((const __nv_bfloat16 *)a.w.data + at, a.aligned, to);
    else if (a.w.type == DTYPE_F16)
        load_piece((const __half *)a.w.data + at, a.aligned, to);
    else
        load_piece((const float *)a.w.data + at, a.aligned, to);
}

template <typename T, int COUNT>
static __device__ inline void store_piece(const float (&values)[COUNT], bool aligned, T *to) {
    const int whole = 16 / sizeof(T), width = COUNT < whole ? COUNT : whole;
#pragma unroll
    for (int i = 0; i < COUNT; i += width) {
        struct vector<T, width> v;
#pragma unroll
        for (int j = 0; j < width; j++)
            store_difference(&v.at[j], values[i + j]);
        if (aligned)
            store_vector(to + i, v);
        else
            for (int j = 0; j < width; j++)
                to[i + j] = v.at[j];
    }
}

template <typename G> static __device__ inline struct grid fit_range(const G &g, const struct candidate *c) {
    struct range r = grid_range(g);
    return r.min == r.max ? grid_constant(r.min, c) : rtn_over(g, r.min, r.max, c);
}

/* `inverse`: of the grid's scale; `back`: by what the column is multiplied afterwards. */
static __device__ inline float difference(const struct grid &grid, float inverse, float w, float scaled, float back) {
    float w_hat = (nearest(grid, inverse, scaled) - grid.zero) * grid.scale;
    return isfinite(scaled) ? w - w_hat * back : NAN;
}

template <typename T, int COUNT>
static __device__ inline void round_full(const struct round_args &a, int64_t row, int64_t from) {
    struct piece<COUNT> g = {
        this_member(), {}, 0
    };
    float own[COUNT], factor[COUNT];
    from += g.thread * COUNT;
    load_weights(a, row * a.w.stride + from, own);
    load_piece(a.by_col + from, a.aligned, factor);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        g.w[i] = own[i] * factor[i];
    g.first = g.w[0];
    struct grid grid = fit_range(g, &a.candidate);
    load_piece(a.inverse + from, a.aligned, factor);
    float inverse = 1 / grid.scale;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        own[i] = difference(grid, inverse, own[i], g.w[i], factor[i]);
    store_piece(own, a.aligned, (T *)a.out + row * a.w.cols + from);
}

/* A group of any size, read from memory each time. */
struct strided : member {
    int64_t n;
    const void *w;
    enum dtype type;
    int64_t from;
    const float *by_col;
    float first;

    __device__ float at(int64_t k) const {
        return load_stored(w, type, from + k) * by_col[k];
    }

    template <typename F> __device__ void each(F f) const {
        for (int64_t k = 0; k < n; k += LANES)
#pragma unroll
            for (int o = 0; o < OWN; o++)
                if (k + thread + o * TEAM < n) f(o, at(k + thread + o * TEAM));
    }
};

template <typename T> static __device__ inline void round_any(const struct round_args &a, int64_t row, int64_t from) {
    int64_t n = a.w.cols - from < a.group ? a.w.cols - from : a.group, at = row * a.w.stride + from;
    struct strided g = {this_member(), n, a.w.data, a.w.type, at, a.by_col + from, 0};
    g.first = g.at(0);
    struct grid grid = fit_range(g, &a.candidate);
    float inverse = 1 / grid.scale;
    T *out = (T *)a.out + row * a.w.cols + from;
    for (int64_t k = g.thread; k < n; k += TEAM) {
        float w = load_stored(a.w.data, a.w.type, at + k);
        store_difference(&out[k], difference(grid, inverse, w, g.at(k), a.inverse[from + k]));
    }
}

/* COUNT · TEAM is the size of every group, or COUNT is 0. */
template <typename T, int COUNT>
static __global__ void __launch_bounds__(BLOCK, COUNT > 8 ? 2 : 4) round_groups(struct round_args a) {
    int64_t index = (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (index >= a.w.rows * a.count) return;
    int64_t row = index / a.count, from = (a.first + index % a.count) * a.group;
    if constexpr (COUNT > 0)
        round_full<T, COUNT>(a, row, from);
    else
        round_any<T>(a, row, from);
}

template <typename T>
static enum rc round_in(struct backend_state *state, const struct round_args *a, int64_t size, struct err *e) {
    if (a->count == 0) return RC_OK;
    unsigned blocks = blocks_for(a->w.rows * a->count, TEAMS);
    switch (size) {
    case 2 * TEAM: round_groups<T, 2><<<blocks, BLOCK, 0, state->stream>>>(*a); break;
    case 4 * TEAM: round_groups<T, 4><<<blocks, BLOCK, 0, state->stream>>>(*a); break;
    case 8 * TEAM: round_groups<T, 8><<<blocks, BLOCK, 0, state->stream>>>(*a); break;
    case 16 * TEAM: round_groups<T, 16><<<blocks, BLOCK, 0, state->stream>>>(*a); break;
    default: round_groups<T, 0><<<blocks, BLOCK, 0, state->stream>>>(*a);
    }
    LAUNCHED();
    return RC_OK;
}

/* D of some rows; a short last group is not for the kernels of full ones. */
template <typename T>
static enum rc round_rows(struct backend_state *state, const struct scaled_error_args *a, struct mat w,
                          const struct candidate *c, void *out, struct err *e) {
    int64_t cols = w.cols, group = c->group > 0 && c->group < cols ? c->group : cols;
    struct mat vectors[] = {w,
                            {(void *)a->by_col, 1, cols, cols, DTYPE_F32},
                            {(void *)a->inverse, 1, cols, cols, DTYPE_F32},
                            {out, w.rows, cols, cols, DTYPE_BF16}};
    bool aligned = rows_aligned(vectors, sizeof vectors / sizeof *vectors, 16);
    struct round_args r = {w, *c, a->by_col, a->inverse, group, 0, cols / group, aligned, out};
    TRY(round_in<T>(state, &r, group, e));
    r.first = r.count;
    r.count = cols % group > 0;
    return round_in<T>(state, &r, 0, e);
}

/* Columns [col, col + cols) of DᵀD on and above the diagonal. */
struct panel {
    const void *sums; /* [col + cols, cols] of H's type */
    int64_t col, cols;
};

static const int PANEL_ROWS = 8; /* that one block adds up */

/* Each block's share of Σ (DᵀD) ∘ H; what lies above the diagonal counts twice. */
template <typename S> static __global__ void add_panel(struct panel p, struct mat h, double *partial) {
    int64_t first = (int64_t)blockIdx.x * PANEL_ROWS, rows = p.col + p.cols;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < p.cols; j += BLOCK) {
        S value[PANEL_ROWS], weight[PANEL_ROWS];
#pragma unroll
        for (int r = 0; r < PANEL_ROWS; r++) {
            int64_t i = first + r;
            bool counts = i < rows && i <= p.col + j;
            value[r] = counts ? ((const S *)p.sums)[i * p.cols + j] : (S)0;
            weight[r] = counts ? ((const S *)h.data)[i * h.stride + p.col + j] : (S)0;
        }
#pragma unroll
        for (int r = 0; r < PANEL_ROWS; r++)
            sum += (first + r < p.col + j ? 2 : 1) * (double)value[r] * (double)weight[r];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* One block, so that the sum keeps its order. */
static __global__ void add_partial(const double *partial, int64_t count, double *out) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += BLOCK)
        sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

/* Scratch, and how far it is filled. */
struct workspace {
    char *difference; /* [chunk, K] */
    void *sums;       /* [K, PANEL] */
    double *partial;
    int64_t chunk, rows; /* rows of D: at most, and there by now */
    int64_t done;        /* of partial */
};

static int64_t panel_blocks(int64_t cols) {
    int64_t blocks = 0;
    for (int64_t col = 0; col < cols; col += PANEL)
        blocks += blocks_for(cols - col < PANEL ? cols : col + PANEL, PANEL_ROWS);
    return blocks;
}

static size_t rounded_up(int64_t bytes) {
    return ((size_t)bytes + 255) / 256 * 256;
}

template <typename T, typename S>
static enum rc get_workspace(struct backend_state *state, const struct scaled_error_args *a, struct workspace *ws,
                             struct err *e) {
    int64_t cols = a->h.cols, rows = 0, most = WORKSPACE / (cols * (int64_t)sizeof(T));
    for (int i = 0; i < a->count; i++)
        rows += a->w[i].rows;
    *ws = {};
    ws->chunk = most < ROWS_MAX ? most : ROWS_MAX;
    ws->chunk = ws->chunk < rows ? ws->chunk : rows;
    ws->chunk = ws->chunk > 64 ? ws->chunk / 64 * 64 : ws->chunk; /* a whole number of the tensor cores' tiles */
    ws->chunk = ws->chunk > 0 ? ws->chunk : 1;
    size_t difference = rounded_up(ws->chunk * cols * (int64_t)sizeof(T));
    size_t sums = rounded_up(cols * (cols < PANEL ? cols : PANEL) * (int64_t)sizeof(S));
    int64_t partial = panel_blocks(cols) * ((rows + ws->chunk - 1) / ws->chunk);
    void *memory;
    TRY(cuda_scratch(state, difference + sums + (size_t)partial * sizeof(double), &memory, e));
    ws->difference = (char *)memory;
    ws->sums = ws->difference + difference;
    ws->partial = (double *)(ws->difference + difference + sums);
    return RC_OK;
}

/* What the rows of D that are there bring. */
template <typename T, typename S>
static enum rc add_chunk(struct backend_state *state, const struct scaled_error_args *a, struct workspace *ws,
                         struct err *e) {
    int64_t cols = a->h.cols;
    struct mat d = {ws->difference, ws->rows, cols, cols, sizeof(T) == sizeof(double) ? DTYPE_F64 : DTYPE_BF16};
    for (int64_t col = 0; ws->rows > 0 && col < cols; col += PANEL) {
        struct panel p = {ws->sums, col, cols - col < PANEL ? cols - col : PANEL};
        struct mat out = {ws->sums, col + p.cols, p.cols, p.cols, a->h.type};
        unsigned blocks = blocks_for(col + p.cols, PANEL_ROWS);
        struct outer_args o = {mat_cols(d, 0, col + p.cols), mat_cols(d, col, p.cols), 0, out};
        TRY(cuda_outer(state, &o, e));
        add_panel<S><<<blocks, BLOCK, 0, state->stream>>>(p, a->h, ws->partial + ws->done);
        LAUNCHED();
        ws->done += blocks;
    }
    ws->rows = 0;
    return RC_OK;
}

template <typename T, typename S>
static enum rc add_linear(struct backend_state *state, const struct scaled_error_args *a, int i, struct workspace *ws,
                          struct err *e) {
    struct mat w = a->w[i];
    for (int64_t from = 0, rows; from < w.rows; from += rows) {
        rows = w.rows - from < ws->chunk - ws->rows ? w.rows - from : ws->chunk - ws->rows;
        char *out = ws->difference + (size_t)(ws->rows * w.cols) * sizeof(T);
        TRY(round_rows<T>(state, a, mat_rows(w, from, rows), &a->candidate[i], out, e));
        ws->rows += rows;
        if (ws->rows == ws->chunk) TRY((add_chunk<T, S>(state, a, ws, e)));
    }
    return RC_OK;
}

/* D in type T, its products and H in type S. */
template <typename T, typename S>
static enum rc measure(struct backend_state *state, const struct scaled_error_args *a, struct err *e) {
    struct workspace ws;
    enum rc rc = get_workspace<T, S>(state, a, &ws, e);
    for (int i = 0; rc == RC_OK && i < a->count; i++)
        rc = add_linear<T, S>(state, a, i, &ws, e);
    if (rc == RC_OK) rc = add_chunk<T, S>(state, a, &ws, e);
    if (rc != RC_OK) return rc;
    add_partial<<<1, BLOCK, 0, state->stream>>>(ws.partial, ws.done, a->sum);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_scaled_error(struct backend_state *state, const struct scaled_error_args *a, struct err *e) {
    TRY(check_scaled_error(a, e));
    if (a->h.type == DTYPE_F64) return measure<double, double>(state, a, e);
    if (a->h.type == DTYPE_F32) return measure<__nv_bfloat16, float>(state, a, e);
    return err_set(e, RC_UNSUPPORTED, "scaled_error: H must be fp32 or fp64");
}
