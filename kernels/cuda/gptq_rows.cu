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
#include "kernels/cuda/tf32x3.cuh"

static const int SIDE = 64;                         /* rows and columns of a tile */
static const int PART = 16, PARTS_OF = SIDE / PART; /* of one of its parts, which one warp rounds */
static const int PAIR = WARP / PART;                /* threads of a row there */
static const int HELD = PART / PAIR;                /* what each has of its sums' terms */
static const int DEPTH = 32;                        /* of a product's panels */
static const int EACH = DEPTH * SIDE / BLOCK;       /* elements of a panel that one thread brings */
/* Lines of shared memory, so that threads of a warp, which are at neighbouring rows on an anti-diagonal, meet in no
 * bank; nor those that read a fragment. */
static const int LINE = SIDE + 2, WIDE = SIDE + 8;
static_assert(SIDE % DEPTH == 0 && PAIR == 2 && BLOCK == 2 * PARTS_OF * WARP,
              "who has which cell is laid out for these");

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
    __align__(16) float w[SIDE][WIDE]; /* corrected by the columns before; then the error */
    float above[SIDE][LINE];  /* what rows above the tile add; then what the weight leaves to those below, as left */
    __half2 grid[SIDE][LINE]; /* scale and zero, which are 16-bit floats; then the code */
    union {
        struct {
            __align__(16) float across[SIDE][WIDE]; /* U_jk at [k][j], j < k, but for `beside`; else 0 */
            __align__(16) float left[SIDE][WIDE];   /* R_q/U_qq of the tile at [k][q] */
        };
        float panels[2][2][DEPTH][WIDE];
    };
    float inverse[SIDE]; /* 1/U_kk */
    float beside[SIDE];  /* U_jk, j = k − 1 in the same part */
    int32_t rows[SIDE];  /* of the steps */
    unsigned begun;
    int ready;
};

/* A thread's part of the rows' factor: within a part of the tile, that of its row p with U_qp for
 * q = 8·(i / 4) + 4·half + i % 4 at i. The row right above comes last and apart, since it is rounded one step before p.
 */
struct member_of_row {
    int part, p, half; /* p from the part's first row on */
    bool there;
    float down[HELD], last, inverse; /* 1/U_pp */
};

/* --- The products --- */

/* One of a product's factors, [depth, SIDE], as one thread brings it. */
struct source {
    const float *at;
    int64_t step;
    bool there;
};
static __device__ inline struct source source_of(const float *from, int64_t stride, int count) {
    int c = (int)threadIdx.x % SIDE, d = (int)threadIdx.x / SIDE;
    return {from + d * stride + c, BLOCK / SIDE * stride, c < count};
}

/* The next panel; columns that are not there are 0. Other blocks wrote what is read: not through the cache of the SM.
 */
static __device__ inline void fetch(float (&held)[EACH], struct source &s) {
#pragma unroll
    for (int i = 0; i < EACH; i++, s.at += s.step)
        held[i] = s.there ? __ldcg(s.at) : 0;
}

static __device__ inline void put(float (&panel)[DEPTH][WIDE], const float (&held)[EACH]) {
#pragma unroll
    for (int i = 0; i < EACH; i++)
        panel[threadIdx.x / SIDE + i * (BLOCK / SIDE)][threadIdx.x % SIDE] = held[i];
}

static const int EIGHTS = 4; /* of columns in a warp's part of the product, which is 16 × 32 */

struct sums {
    float of[EIGHTS][4];
};
static __device__ inline int product_row(int i) {
    return (int)(threadIdx.x / (2 * WARP)) * 16 + fragment_row(i);
}
static __device__ inline int product_col(int eight, int i) {
    return (int)(threadIdx.x / WARP % 2) * 32 + eight * 8 + fragment_col(i);
}

/* Eight of the panels' depth. */
static __device__ inline void multiply_eight(struct sums &sum, const float (&panels)[2][DEPTH][WIDE], int d) {
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    float a[4], b[EIGHTS][2];
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = panels[0][d + lane % 4 + i / 2 * 4][warp / 2 * 16 + lane / 4 + i % 2 * 8];
#pragma unroll
    for (int i = 0; i < 2 * EIGHTS; i++)
        b[i / 2][i % 2] = panels[1][d + lane % 4 + i % 2 * 4][warp % 2 * 32 + i / 2 * 8 + lane / 4];
    multiply_exactly(sum.of, a, b);
}

/* Tensor cores do not round to nearest: no sum of theirs is longer than a panel. */
static __device__ inline void multiply(struct sums &sum, const float (&panels)[2][DEPTH][WIDE]) {
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
    const float *a, *b; /* [depth, rows], [depth, cols]; depth a multiple of DEPTH */
    int64_t a_stride, b_stride, depth;
};

/* sum += AᵀB of the tile. Panels take turns: one barrier each keeps writers off what is still read. */
static __device__ inline void add_product(struct sums &sum, struct shared &s, const struct tile &t,
                                          const struct product &p) {
    struct source of_a = source_of(p.a, p.a_stride, t.rows), of_b = source_of(p.b, p.b_stride, t.cols);
    float a[EACH], b[EACH];
    if (p.depth == 0) return;
    fetch(a, of_a);
    fetch(b, of_b);
    __syncthreads(); /* the panels of the product before are read, and the tile's left */
    for (int at = 0, depth = (int)p.depth; at < depth; at += DEPTH) {
        int turn = at / DEPTH % 2;
        put(s.panels[turn][0], a);
        put(s.panels[turn][1], b);
        __syncthreads();
        if (at + DEPTH < depth) {
            fetch(a, of_a);
            fetch(b, of_b);
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

/* One column of the tile as one thread sees it: every fourth of its rows. */
struct own_column {
    int64_t column, group; /* any, where it is not there */
    bool there, dead;
};

/* EACH rows from `first` on, their reads under way together. */
static __device__ inline void take_rows(const struct two_sided &b, struct shared &s, const struct tile &t,
                                        const struct own_column &c, enum dtype type, int first) {
    float stored[EACH], scale[EACH], zero[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int64_t row = s.rows[min(first + i * (BLOCK / SIDE), t.rows - 1)], parameter = row * b.q.groups + c.group;
        stored[i] = load_stored(b.w.data, type, row * b.w.stride + c.column);
        scale[i] = b.q.scale[parameter];
        zero[i] = b.q.zero[parameter];
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int p = first + i * (BLOCK / SIDE), k = (int)threadIdx.x % SIDE;
        bool there = c.there && p < t.rows, counts = there && !c.dead && isfinite(stored[i]); /* found before */
        s.w[p][k] = counts ? stored[i] : 0;
        s.grid[p][k] = there ? __floats2half2_rn(scale[i], zero[i]) : __floats2half2_rn(1, 0);
    }
}

static __device__ inline void take_weights(const struct two_sided &b, struct shared &s, const struct tile &t) {
    int k = (int)threadIdx.x % SIDE;
    int64_t step = t.col + min(k, t.cols - 1), column = b.order[step];
    struct own_column c = {column, b.group[step], k < t.cols, b.dead[column] != 0};
    for (int p = (int)threadIdx.x / SIDE; p < SIDE; p += EACH * (BLOCK / SIDE))
        if (b.w.type == DTYPE_BF16)
            take_rows(b, s, t, c, DTYPE_BF16, p);
        else if (b.w.type == DTYPE_F16)
            take_rows(b, s, t, c, DTYPE_F16, p);
        else
            take_rows(b, s, t, c, DTYPE_F32, p);
}

static __device__ inline bool is_beside(int j, int k) {
    return j == k - 1 && k % PART > 0;
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
        s.across[k][j] = j < k && !is_beside(j, k) && k < t.cols ? __ldg(across + j * cols + k) : 0;
    }
    int k = (int)threadIdx.x;
    if (k < SIDE) {
        s.inverse[k] = k < t.cols ? 1 / __ldg(across + k * cols + k) : 0;
        s.beside[k] = is_beside(k - 1, k) && k < t.cols ? __ldg(across + (k - 1) * cols + k) : 0;
    }
    __syncthreads();
}

static __device__ inline struct member_of_row take_row(const struct two_sided &b, const struct tile &t) {
    int lane = (int)threadIdx.x % WARP;
    struct member_of_row m = {(int)threadIdx.x / WARP % PARTS_OF, lane / PAIR, lane % PAIR, false, {}, 0, 0};
    m.there = m.part * PART + m.p < t.rows;
    if (!m.there) return m;
    int64_t first = t.row + m.part * PART;
    const float *down = b.down + first * b.q.rows + first + m.p; /* of the part's first row to p */
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int q = i / 4 * 8 + m.half * 4 + i % 4;
        if (q < m.p - 1) m.down[i] = __ldg(down + q * b.q.rows);
    }
    if (m.p > 0) m.last = __ldg(down + (m.p - 1) * b.q.rows);
    m.inverse = 1 / __ldg(down + m.p * b.q.rows);
    return m;
}

/* --- A part of a tile --- */

/* Where it is in the tile. */
struct part {
    int row, col;
};

/* w −= E·U over the tile's columns to the left. One warp. */
static __device__ inline void add_columns_before(struct shared &s, const struct part &at) {
    int lane = (int)threadIdx.x % WARP;
    float sum[2][4] = {};
#pragma unroll 2
    for (int d = 0; d < at.col; d += 8) {
        float a[4], b[2][2];
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = s.w[at.row + lane / 4 + i % 2 * 8][d + lane % 4 + i / 2 * 4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            b[i / 2][i % 2] = s.across[at.col + i / 2 * 8 + lane / 4][d + lane % 4 + i % 2 * 4];
        multiply_exactly(sum, a, b);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        s.w[at.row + fragment_row(i % 4)][at.col + i / 4 * 8 + fragment_col(i % 4)] -= sum[i / 4][i % 4];
}

static const int EIGHTS_ABOVE = (SIDE - PART) / 8;

/* above += Uᵀ·left over the tile's rows above. One warp. */
static __device__ inline void add_rows_before(const struct two_sided &p, struct shared &s, const struct tile &t,
                                              const struct part &at) {
    int lane = (int)threadIdx.x % WARP;
    float sum[2][4] = {};
    const float *down = p.down + (t.row + lane % 4) * p.q.rows + t.row + at.row + lane / 4;
    float a[EIGHTS_ABOVE][4];
#pragma unroll
    for (int i = 0; i < 4 * EIGHTS_ABOVE; i++) {
        int d = i / 4 * 8 + i / 2 % 2 * 4;
        bool there = d < at.row && at.row + lane / 4 + i % 2 * 8 < t.rows;
        a[i / 4][i % 4] = there ? __ldg(down + d * p.q.rows + i % 2 * 8) : 0;
    }
#pragma unroll
    for (int d = 0; d < EIGHTS_ABOVE * 8; d += 8) {
        if (d >= at.row) break;
        float b[2][2];
#pragma unroll
        for (int i = 0; i < 4; i++)
            b[i / 2][i % 2] = s.left[at.col + i / 2 * 8 + lane / 4][d + lane % 4 + i % 2 * 4];
        multiply_exactly(sum, a[d / 8], b);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        s.above[at.row + fragment_row(i % 4)][at.col + i / 4 * 8 + fragment_col(i % 4)] += sum[i / 4][i % 4];
}

/* What a row's next weight needs but for what the step before it brings. */
struct cell {
    float w, above;
    float beside; /* U of the column before */
    float inverse_diagonal, scale, inverse_scale, zero;
};

static __device__ inline float pair_sum(float value) {
    return value + __shfl_xor_sync(0xffffffffu, value, 1);
}

/* All threads of a warp. Terms that are not known yet count 0: of columns in s.across, of rows in `down`. */
static __device__ inline struct cell prepare(const struct shared &s, const struct part &at,
                                             const struct member_of_row &m, int k) {
    k = at.col + min(max(k, 0), PART - 1);
    int p = at.row + m.p;
    float behind = 0, above = 0;
#pragma unroll
    for (int n = 0; n < PART / 8; n++) {
        int i = n * 8 + m.half * 4;
        struct vector<float, 4> across = load_vector<float, 4>(&s.across[k][at.col + i]);
        struct vector<float, 4> error = load_vector<float, 4>(&s.w[p][at.col + i]);
        struct vector<float, 4> left = load_vector<float, 4>(&s.left[k][at.row + i]);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            behind += error.at[j] * across.at[j];
            above += m.down[n * 4 + j] * left.at[j];
        }
    }
    float2 grid = __half22float2(s.grid[p][k]);
    return {s.w[p][k] - pair_sum(behind),
            s.above[p][k] + pair_sum(above),
            s.beside[k],
            s.inverse[k],
            grid.x,
            __fdividef(1, grid.x),
            grid.y};
}

struct rounded {
    float code, error, left;
};

/* `error` is the row's last, `fresh` what the row above left in this column. Nothing branches: all rows of a warp wait
 * for this. What leaves fp32 is not left to others. */
static __device__ inline struct rounded round_cell(const struct member_of_row &m, const struct cell &c, float error,
                                                   float fresh, float top) {
    float w = c.w - error * c.beside, target = c.above + w + fresh * m.last;
    float code = (fminf(fmaxf(fmaf(target, c.inverse_scale, c.zero), 0.0f), top) + MAGIC) - MAGIC,
          steps = code - c.zero;
    float left = fmaf(steps, c.scale, -target) * m.inverse;
    return {code, fmaf(-steps, c.scale, w) * c.inverse_diagonal, fabsf(left) < INFINITY ? left : 0};
}

/* Row p rounds its column step − p; one warp. Both threads of a row know the same. Rows that are not at work yet, or no
 * more, go along: so the next weight's sums hide the wait for this one. */
static __device__ inline void round_part(struct shared &s, const struct part &at, const struct member_of_row &m,
                                         int cols, float top) {
    float error = 0, left = 0;
    int p = at.row + m.p;
    if (!m.there) cols = -1;
    struct cell cell = prepare(s, at, m, 0); /* of row 0; others prepare theirs one step before */
#pragma unroll 2
    for (int step = 0; step < 2 * PART; step++) {
        int k = step - m.p, col = at.col + k;
        float fresh = __shfl_up_sync(0xffffffffu, left, PAIR);
        struct cell next = prepare(s, at, m, k + 1);
        struct rounded r = round_cell(m, cell, error, fresh, top);
        bool now = k >= 0 && k < cols;
        cell = next;
        left = r.left;
        error = now ? r.error : 0;
        __syncwarp();
        if (now && m.half == 0) {
            s.w[p][col] = r.error;
            s.above[p][col] = r.left;
            s.left[col][p] = r.left;
            s.grid[p][col] = __floats2half2_rn(r.code, 0);
        }
        __syncwarp();
    }
}

/* Parts of an anti-diagonal at a time. Half of the warps bring what the rows above add, the others do the rest. */
static __device__ inline void round_tile(const struct two_sided &b, struct shared &s, const struct tile &t,
                                         const struct member_of_row &m) {
    bool rounds = threadIdx.x / WARP < PARTS_OF;
    float top = (float)((1 << b.q.bits) - 1);
    for (int diagonal = 0; diagonal < 2 * PARTS_OF - 1; diagonal++) {
        struct part at = {m.part * PART, (diagonal - m.part) * PART};
        bool there = at.col >= 0 && at.col < t.cols && at.row < t.rows;
        if (there && rounds) add_columns_before(s, at);
        if (there && !rounds) add_rows_before(b, s, t, at);
        __syncthreads();
        if (there && rounds) round_part(s, at, m, min(PART, t.cols - at.col), top);
        __syncthreads();
    }
}

/* --- A tile --- */

/* w −= Eᵀ·U over the columns to the left. */
static __device__ inline void add_columns(const struct two_sided &b, struct shared &s, const struct tile &t) {
    struct sums sum = {};
    __syncthreads(); /* others took the weights */
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
    int k = (int)threadIdx.x % SIDE, p = k; /* neighbours in what is written: columns of codes, rows of errors */
    uint8_t *codes = b.q.codes + (k < t.cols ? b.order[t.col + k] : 0);
    for (int from = (int)threadIdx.x / SIDE; from < SIDE; from += BLOCK / SIDE) {
        if (k < t.cols && from < t.rows) codes[s.rows[from] * b.q.cols] = (uint8_t)__low2float(s.grid[from][k]);
        if (p < t.rows && from < t.cols) b.error[(t.col + from) * b.q.rows + t.row + p] = s.w[p][from];
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
    if ((int)threadIdx.x < t.rows) s.rows[threadIdx.x] = b.row_order[t.row + threadIdx.x];
    __syncthreads();
    struct member_of_row m = take_row(b, t);
    for (unsigned tiles = 1; t.col < b.q.cols; t.col += SIDE, tiles++) {
        t.cols = (int)min((int64_t)SIDE, b.q.cols - t.col);
        take_weights(b, s, t);
        add_columns(b, s, t);
        add_rows(b, s, t);
        take_factor(b, s, t);
        round_tile(b, s, t, m);
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
