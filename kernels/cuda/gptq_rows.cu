/* Twin of kernels/cpu/gptq_rows.c: two-sided GPTQ of any number of candidates in one launch.
 *
 * Weights lie in tiles by the steps of both factors. A block has one tile of rows and goes through its columns from
 * left to right, each time behind the block above it. What tiles to the left and above add is a product each, most of
 * which is done before the tile right above is; the weights of a tile go by anti-diagonals, a step of which rounds one
 * weight of each row.
 *
 * Blocks wait for each other. None waits but for blocks that began before it, which its number says: so one at least
 * goes on, however many there is room for. Sums have a fixed order. */
#include "kernels/cuda/grid.cuh"

static const int SIDE = 64;                               /* rows and columns of a tile */
static const int QUAD = BLOCK / SIDE, HELD = SIDE / QUAD; /* threads of a row, and what each has of its sums' terms */
static const int DEPTH = 32;                              /* of a product's panels */
static const int EACH = DEPTH * SIDE / BLOCK;             /* elements of a panel that one thread brings */
/* Lines of shared memory, so that threads of a warp, which are at neighbouring rows on an anti-diagonal, meet in no
 * bank; nor those that read a fragment of a panel. */
static const int LINE = SIDE + 2, WIDE = SIDE + 16, PANEL_LINE = SIDE + 8;
static_assert(QUAD == 4 && HELD == 16 && BLOCK == 256, "who has which cell is laid out for these");

/* One candidate of one Linear. */
struct two_sided {
    struct quantized q;
    struct mat w;
    const float *across, *down;   /* U of the columns [K, K], of the rows [N, N] */
    const int32_t *order, *group; /* [K] */
    const uint8_t *dead;          /* [K] by column */
    int32_t *row_order;           /* [N] the row of each step */
    float *error;                 /* [K, N] (w − ŵ)/U_kk, by steps */
    float *left;                  /* [N, K] R_q/U_qq, by steps */
    unsigned *done;               /* tiles of each block */
};

struct tile {
    int64_t row, col; /* steps */
    int rows, cols;
};

struct shared {
    struct two_sided problem;
    float w[SIDE][LINE];      /* corrected by the columns before; then the error */
    float above[SIDE][LINE];  /* what rows above the tile add; then what the weight leaves to those below, as left */
    __half2 grid[SIDE][LINE]; /* scale and zero, which are 16-bit floats; then the code */
    union {
        struct {
            float across[SIDE][WIDE]; /* U_jk at [k][j], j < k; else 0 */
            float left[SIDE][WIDE];   /* R_q/U_qq of the tile at [k][q] */
        };
        float panels[2][2][DEPTH][PANEL_LINE];
    };
    float inverse[SIDE]; /* 1/U_kk */
    unsigned begun;
    int ready;
};

/* One thread's part of the factor within its tile's rows: that of row p, with U_qp for q = 16i + 4·part + m at 4i + m.
 * The row right above comes last and apart, since it is rounded one step before p. */
struct member_of_row {
    int p, part;
    float down[HELD], last, inverse; /* 1/U_pp */
};

/* --- The products: in TF32 on the tensor cores, as kernels/lab/tf32x3.cu does it, which is as exact as fp32 --- */

/* A panel's rows are `stride` apart; columns from `count` on and rows from `depth` on are 0. Other blocks wrote what is
 * read: not through the cache of the SM. */
static __device__ inline void fetch(float (&held)[EACH], const float *from, int64_t stride, int count, int64_t depth) {
    int c = (int)threadIdx.x % SIDE;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int d = (int)threadIdx.x / SIDE + i * (BLOCK / SIDE);
        held[i] = d < depth && c < count ? __ldcg(from + d * stride + c) : 0;
    }
}

static __device__ inline void put(float (&panel)[DEPTH][PANEL_LINE], const float (&held)[EACH]) {
#pragma unroll
    for (int i = 0; i < EACH; i++)
        panel[threadIdx.x / SIDE + i * (BLOCK / SIDE)][threadIdx.x % SIDE] = held[i];
}

static const int EIGHTS = 4; /* of columns in a warp's part of the product, which is 16 × 32 */

/* A thread's part: rows l / 4 and l / 4 + 8 of its warp's, of each eight columns the pair 2·(l mod 4). */
struct sums {
    float of[EIGHTS][4];
};
static __device__ inline int product_row(int i) {
    return (int)(threadIdx.x / (2 * WARP) * 16 + threadIdx.x % WARP / 4) + i / 2 * 8;
}
static __device__ inline int product_col(int eight, int i) {
    return (int)(threadIdx.x / WARP % 2 * 32 + threadIdx.x % 4 * 2) + eight * 8 + i % 2;
}

/* x = high + low, of which the tensor cores read the first 11 bits each. */
struct halves {
    unsigned high, low;
};
static __device__ inline struct halves split(float x) {
    unsigned high = __float_as_uint(x) & 0xffffe000u;
    return {high, __float_as_uint(x - __uint_as_float(high))};
}

/* c [16, 8] += a [16, 8] · b [8, 8] */
static __device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Eight of the panels' depth. */
static __device__ inline void multiply_eight(struct sums &sum, const float (&panels)[2][DEPTH][PANEL_LINE], int d) {
    int lane = (int)threadIdx.x % WARP, row = product_row(0), col = product_col(0, 0) - lane % 4 * 2 + lane / 4;
    unsigned high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        struct halves a = split(panels[0][d + lane % 4 + i / 2 * 4][row + i % 2 * 8]);
        high[i] = a.high;
        low[i] = a.low;
    }
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        struct halves b0 = split(panels[1][d + lane % 4][col + n * 8]);
        struct halves b1 = split(panels[1][d + lane % 4 + 4][col + n * 8]);
        multiply_add(sum.of[n], low, b0.high, b1.high);
        multiply_add(sum.of[n], high, b0.low, b1.low);
        multiply_add(sum.of[n], high, b0.high, b1.high);
    }
}

/* Tensor cores do not round to nearest: no sum of theirs is longer than a panel. */
static __device__ inline void multiply(struct sums &sum, const float (&panels)[2][DEPTH][PANEL_LINE]) {
    struct sums part = {};
#pragma unroll
    for (int d = 0; d < DEPTH; d += 8)
        multiply_eight(part, panels, d);
#pragma unroll
    for (int n = 0; n < EIGHTS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum.of[n][i] += part.of[n][i];
}

struct product {
    const float *a, *b; /* [depth, rows], [depth, cols] */
    int64_t a_stride, b_stride, depth;
};

/* sum += AᵀB of the tile. Panels take turns: one barrier each keeps writers off what is still read. */
static __device__ inline void add_product(struct sums &sum, struct shared &s, const struct tile &t,
                                          const struct product &p) {
    float a[EACH], b[EACH];
    fetch(a, p.a, p.a_stride, t.rows, p.depth);
    fetch(b, p.b, p.b_stride, t.cols, p.depth);
    __syncthreads(); /* the panels of the product before are read, and the tile's left */
    for (int64_t at = 0; at < p.depth; at += DEPTH) {
        int turn = (int)(at / DEPTH % 2);
        put(s.panels[turn][0], a);
        put(s.panels[turn][1], b);
        __syncthreads();
        int64_t next = at + DEPTH;
        if (next < p.depth) {
            fetch(a, p.a + next * p.a_stride, p.a_stride, t.rows, p.depth - next);
            fetch(b, p.b + next * p.b_stride, p.b_stride, t.cols, p.depth - next);
        }
        multiply(sum, s.panels[turn]);
    }
}

/* --- Waiting --- */

/* How many of the blocks `from` … `to` have at least `tiles` tiles done, from the first on: one or more. All threads of
 * the block see what those wrote. */
static __device__ inline int wait_for(const struct two_sided &b, struct shared &s, int from, int to, unsigned tiles) {
    __syncthreads(); /* s.ready is read */
    if (threadIdx.x < WARP) {
        int block = from + (int)threadIdx.x;
        unsigned not_ready;
        do {
            bool ready = block < to && *(volatile const unsigned *)(b.done + block) >= tiles;
            not_ready = __ballot_sync(0xffffffffu, !ready);
        } while (not_ready & 1);
        __threadfence();
        if (threadIdx.x == 0) s.ready = not_ready == 0 ? WARP : __ffs((int)not_ready) - 1;
    }
    __syncthreads();
    return s.ready;
}

static __device__ inline void publish(const struct two_sided &b, int block, unsigned tiles) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *(volatile unsigned *)(b.done + block) = tiles;
}

/* --- A tile's weights --- */

static __device__ inline void take_weights(const struct two_sided &b, struct shared &s, const struct tile &t) {
    for (int i = (int)threadIdx.x; i < SIDE * SIDE; i += BLOCK) {
        int p = i / SIDE, k = i % SIDE;
        float w = 0;
        __half2 grid = __floats2half2_rn(1, 0);
        if (p < t.rows && k < t.cols) {
            int64_t row = b.row_order[t.row + p], column = b.order[t.col + k];
            int64_t parameter = row * b.q.groups + b.group[t.col + k];
            float stored = load_stored(b.w.data, b.w.type, row * b.w.stride + column);
            w = b.dead[column] || !isfinite(stored) ? 0 : stored; /* what is no number has been found before */
            grid = __floats2half2_rn(b.q.scale[parameter], b.q.zero[parameter]);
        }
        s.w[p][k] = w;
        s.grid[p][k] = grid;
    }
}

/* Threads of a warp read pieces of 8 columns from 4 rows: a compromise of memory and banks. */
static __device__ inline void take_factor(const struct two_sided &b, struct shared &s, const struct tile &t) {
    __syncthreads(); /* the panels are read */
    for (int i = (int)threadIdx.x; i < SIDE * WIDE; i += BLOCK)
        s.left[i / WIDE][i % WIDE] = 0; /* numbers, before they stand in sums with factors of 0 */
    int64_t cols = b.q.cols;
    const float *across = b.across + t.col * cols + t.col;
    for (int i = (int)threadIdx.x; i < SIDE * SIDE; i += BLOCK) {
        int k = i % 8 + i / WARP % 8 * 8, j = i / 8 % 4 + i / BLOCK * 4;
        s.across[k][j] = j < k && k < t.cols ? __ldg(across + j * cols + k) : 0;
    }
    int k = (int)threadIdx.x;
    if (k < SIDE) s.inverse[k] = k < t.cols ? 1 / __ldg(across + k * cols + k) : 0;
    __syncthreads();
}

static __device__ inline struct member_of_row take_row(const struct two_sided &b, const struct tile &t) {
    struct member_of_row m = {(int)threadIdx.x / QUAD, (int)threadIdx.x % QUAD, {}, 0, 0};
    if (m.p >= t.rows) return m;
    const float *down = b.down + t.row * b.q.rows + t.row + m.p; /* of the tile's first row to p */
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int q = i / 4 * 16 + m.part * 4 + i % 4;
        if (q < m.p - 1) m.down[i] = __ldg(down + q * b.q.rows);
    }
    if (m.p > 0) m.last = __ldg(down + (m.p - 1) * b.q.rows);
    m.inverse = 1 / __ldg(down + m.p * b.q.rows);
    return m;
}

/* What a row's next weight needs but for what the step before it brings. */
struct cell {
    float w, above;
    float across; /* U of the column before */
    float inverse_diagonal, inverse_scale;
    struct grid grid;
};

static __device__ inline float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/* All threads of a warp. The sums' terms that are not known yet are 0: of columns in `errors`, of rows in `down`. */
static __device__ inline struct cell prepare(const struct shared &s, const struct member_of_row &m,
                                             const float (&errors)[HELD], int k, int top) {
    k = min(max(k, 0), SIDE - 1);
    float behind = 0, above = 0;
#pragma unroll
    for (int i = 0; i < HELD; i += 4) {
        struct vector<float, 4> across = load_vector<float, 4>(&s.across[k][i * 4 + m.part * 4]);
        struct vector<float, 4> left = load_vector<float, 4>(&s.left[k][i * 4 + m.part * 4]);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            behind += errors[i + j] * across.at[j];
            above += m.down[i + j] * left.at[j];
        }
    }
    float2 grid = __half22float2(s.grid[m.p][k]);
    struct cell c = {s.w[m.p][k] - quad_sum(behind), s.above[m.p][k] + quad_sum(above), s.across[k][max(k - 1, 0)]};
    c.inverse_diagonal = s.inverse[k];
    c.inverse_scale = __fdividef(1, grid.x); /* nearest asks for no more */
    c.grid = {grid.x, grid.y, top};
    return c;
}

struct rounded {
    float code, error, left;
};

/* `error` is the row's last, `fresh` what the row above left in this column. What leaves fp32 is not left to others. */
static __device__ inline struct rounded round_cell(const struct member_of_row &m, const struct cell &c, float error,
                                                   float fresh) {
    float w = c.w - error * c.across, target = c.above + fresh * m.last + w;
    float code = nearest(c.grid, c.inverse_scale, target), steps = code - c.grid.zero;
    float left = fmaf(steps, c.grid.scale, -target) * m.inverse;
    return {code, fmaf(-steps, c.grid.scale, w) * c.inverse_diagonal, fabsf(left) < INFINITY ? left : 0};
}

/* Row p rounds its column step − p. The four threads of a row know the same. Rows that are not at work yet, or no more,
 * go along where others of their warp are: so the next weight's sums hide the wait for this one. */
static __device__ inline void round_tile(struct shared &s, const struct tile &t, const struct member_of_row &m,
                                         int top) {
    float errors[HELD] = {}, error = 0;
    int cols = m.p < t.rows ? t.cols : -1;
    struct cell cell = prepare(s, m, errors, 0, top); /* of row 0; others prepare theirs one step before */
    for (int step = 0; step < t.rows + t.cols - 1; step++, __syncthreads()) {
        int k = step - m.p;
        bool now = k >= 0 && k < cols;
        if (!__any_sync(0xffffffffu, k >= -1 && k < cols)) continue;
        float fresh = s.left[min(max(k, 0), SIDE - 1)][max(m.p - 1, 0)];
        struct cell next = prepare(s, m, errors, k + 1, top);
        struct rounded r = round_cell(m, cell, error, fresh);
        cell = next;
        error = now ? r.error : 0;
        if (now && m.part == 0) {
            s.w[m.p][k] = r.error;
            s.above[m.p][k] = r.left;
            s.left[k][m.p] = r.left;
            s.grid[m.p][k] = __floats2half2_rn(r.code, 0);
        }
        int own = k - m.part * 4;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (own == i / 4 * 16 + i % 4) errors[i] = error;
    }
}

/* --- A tile --- */

/* w −= Eᵀ·U over the columns to the left. */
static __device__ inline void add_columns(const struct two_sided &b, struct shared &s, const struct tile &t) {
    struct sums sum = {};
    add_product(sum, s, t, {b.error + t.row, b.across + t.col, b.q.rows, b.q.cols, t.col});
    for (int n = 0; n < EIGHTS; n++)
        for (int i = 0; i < 4; i++)
            s.w[product_row(i)][product_col(n, i)] -= sum.of[n][i];
}

/* above = Uᵀ·left over the rows above, as they are done. */
static __device__ inline void add_rows(const struct two_sided &b, struct shared &s, const struct tile &t) {
    struct sums sum = {};
    int block = (int)(t.row / SIDE);
    unsigned tiles = (unsigned)(t.col / SIDE) + 1;
    for (int from = 0, ready; from < block; from += ready) {
        ready = wait_for(b, s, from, block, tiles);
        int64_t row = (int64_t)from * SIDE;
        add_product(sum, s, t,
                    {b.down + row * b.q.rows + t.row, b.left + row * b.q.cols + t.col, b.q.rows, b.q.cols,
                     (int64_t)ready * SIDE});
    }
    for (int n = 0; n < EIGHTS; n++)
        for (int i = 0; i < 4; i++)
            s.above[product_row(i)][product_col(n, i)] = sum.of[n][i];
}

static __device__ inline void store_left(const struct two_sided &b, const struct shared &s, const struct tile &t) {
    for (int i = (int)threadIdx.x; i < SIDE * SIDE; i += BLOCK) {
        int p = i / SIDE, k = i % SIDE;
        if (p < t.rows && k < t.cols) b.left[(t.row + p) * b.q.cols + t.col + k] = s.above[p][k];
    }
}

/* What only this block and the host ask for, after others wait no more. */
static __device__ inline void store_rest(const struct two_sided &b, const struct shared &s, const struct tile &t) {
    for (int i = (int)threadIdx.x; i < SIDE * SIDE; i += BLOCK) {
        int k = i / SIDE, p = i % SIDE;
        if (p >= t.rows || k >= t.cols) continue;
        int64_t row = b.row_order[t.row + p], column = b.order[t.col + k];
        b.error[(t.col + k) * b.q.rows + t.row + p] = s.w[p][k];
        b.q.codes[row * b.q.cols + column] = (uint8_t)__low2float(s.grid[p][k]);
    }
}

/* All first rows of tiles begin before any second one does. */
static __global__ void __launch_bounds__(BLOCK, 2)
    round_both(const struct two_sided *all, unsigned count, unsigned *begun) {
    extern __shared__ __align__(16) unsigned char memory[];
    struct shared &s = *(struct shared *)memory;
    if (threadIdx.x == 0) {
        s.begun = atomicAdd(begun, 1u);
        s.problem = all[s.begun % count];
    }
    __syncthreads();
    const struct two_sided &b = s.problem;
    int block = (int)(s.begun / count);
    struct tile t = {(int64_t)block * SIDE, 0, 0, 0};
    if (t.row >= b.q.rows) return;
    t.rows = (int)min((int64_t)SIDE, b.q.rows - t.row);
    struct member_of_row m = take_row(b, t);
    for (unsigned tiles = 1; t.col < b.q.cols; t.col += SIDE, tiles++) {
        t.cols = (int)min((int64_t)SIDE, b.q.cols - t.col);
        take_weights(b, s, t);
        add_columns(b, s, t);
        add_rows(b, s, t);
        take_factor(b, s, t);
        round_tile(s, t, m, (1 << b.q.bits) - 1);
        store_left(b, s, t);
        publish(b, block, tiles);
        store_rest(b, s, t);
        __syncthreads();
    }
}

/* --- Host --- */

/* What all problems have of their own, in one piece of memory. */
struct workspace {
    struct two_sided *problems; /* [count] */
    unsigned *begun, *done;     /* blocks; [count][blocks] tiles of each */
    int32_t *row_order;         /* [count][rows] */
    float *left;                /* one after the other */
    unsigned blocks;            /* of the tallest */
    int64_t rows, weights;      /* of the tallest; of all */
};

static enum rc workspace_get(struct backend_state *state, const struct gptq_rows_args *all, int count,
                             struct workspace *ws, struct err *e) {
    *ws = {};
    for (int i = 0; i < count; i++) {
        const struct mat *w = &all[i].a->w;
        ws->rows = w->rows > ws->rows ? w->rows : ws->rows;
        ws->weights += w->rows * w->cols;
    }
    ws->blocks = blocks_for(ws->rows, SIDE);
    size_t counters = 1 + (size_t)count * ws->blocks, orders = (size_t)count * (size_t)ws->rows;
    void *memory;
    TRY(cuda_alloc(state,
                   (size_t)count * sizeof *ws->problems + (counters + orders + (size_t)ws->weights) * sizeof(float),
                   &memory, e));
    ws->problems = (struct two_sided *)memory;
    ws->begun = (unsigned *)(ws->problems + count);
    ws->done = ws->begun + 1;
    ws->row_order = (int32_t *)(ws->begun + counters);
    ws->left = (float *)(ws->row_order + orders);
    return RC_OK;
}

static struct two_sided problem_of(const struct gptq_rows_args *from, const struct workspace *ws, int i, float *left) {
    struct two_sided b = {};
    b.q = *from->a->out;
    b.w = from->a->w;
    b.across = from->a->factor->upper;
    b.down = from->a->rows->upper;
    b.order = from->c.order;
    b.group = from->c.group;
    b.dead = from->c.dead;
    b.error = from->c.error;
    b.left = left;
    b.row_order = ws->row_order + i * ws->rows;
    b.done = ws->done + (size_t)i * ws->blocks;
    return b;
}

static enum rc describe(struct backend_state *state, const struct gptq_rows_args *all, int count,
                        const struct workspace *ws, struct err *e) {
    float *left = ws->left;
    for (int i = 0; i < count; i++) {
        struct two_sided b = problem_of(&all[i], ws, i, left);
        size_t rows = (size_t)b.q.rows * sizeof *b.row_order;
        CUDA_TRY(cudaMemcpyAsync(b.row_order, all[i].a->rows->order, rows, cudaMemcpyHostToDevice, state->stream));
        CUDA_TRY(cudaMemcpyAsync(ws->problems + i, &b, sizeof b, cudaMemcpyHostToDevice, state->stream));
        left += b.q.rows * b.q.cols;
    }
    size_t counters = 1 + (size_t)count * ws->blocks;
    CUDA_TRY(cudaMemsetAsync(ws->begun, 0, counters * sizeof *ws->begun, state->stream));
    return RC_OK;
}

static enum rc launch(struct backend_state *state, const struct workspace *ws, int count, struct err *e) {
    static_assert(sizeof(struct shared) <= 99 * 1024, "a block has no more on some cards");
    const int bytes = (int)sizeof(struct shared);
    CUDA_TRY(cudaFuncSetAttribute(round_both, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    round_both<<<(unsigned)count * ws->blocks, BLOCK, sizeof(struct shared), state->stream>>>(
        ws->problems, (unsigned)count, ws->begun);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_gptq_rows(struct backend_state *state, const struct gptq_rows_args *all, int count, struct err *e) {
    struct workspace ws;
    TRY(workspace_get(state, all, count, &ws, e));
    enum rc rc = describe(state, all, count, &ws, e);
    if (rc == RC_OK) rc = launch(state, &ws, count, e);
    cuda_free(state, ws.problems);
    return rc;
}
