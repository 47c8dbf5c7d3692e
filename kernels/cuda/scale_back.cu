#include "kernels/cuda/device.cuh"

/* gᵀ·x exists for so many rows of the Linear at a time as have about PRODUCTS columns together. */
static const int64_t PRODUCTS = 1 << 24, ROWS_MIN = 128;

struct part {
    int64_t row, rows;      /* of the Linear */
    int64_t groups;         /* G */
    float *product;         /* [rows, K] */
    const int32_t *members; /* [G, group] as list_members leaves them; NULL: groups are runs of columns */
};

static int64_t rows_at_a_time(int64_t cols) {
    int64_t rows = PRODUCTS / cols / ROWS_MIN * ROWS_MIN;
    return rows > ROWS_MIN ? rows : ROWS_MIN;
}

/* One warp a group: its columns in their order, −1 where it has fewer than others. */
static __global__ void list_members(struct scale_back_args a, int64_t groups, int32_t *members) {
    int64_t j = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / WARP, count = 0;
    int lane = threadIdx.x % WARP;
    if (j >= groups) return;
    for (int64_t from = 0; from < a.x.cols; from += WARP) {
        int64_t k = from + lane;
        bool here = k < a.x.cols && a.group_of[k] == j;
        unsigned lanes = __ballot_sync(0xffffffffu, here);
        int64_t place = count + __popc(lanes & ((1u << lane) - 1));
        if (here && place < a.group) members[j * a.group + place] = (int32_t)k;
        count += __popc(lanes);
    }
    for (int64_t place = count + lane; place < a.group; place += WARP)
        members[j * a.group + place] = -1;
}

/* One warp a slope. */
static __global__ void add_slopes(struct scale_back_args a, struct part p) {
    int64_t slope = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / WARP, n = slope / p.groups, j = slope % p.groups;
    if (n >= p.rows) return;
    const float *product = p.product + n * a.x.cols;
    int64_t w = (p.row + n) * a.w_hat.stride;
    double sum = 0;
    for (int64_t i = threadIdx.x % WARP; i < a.group; i += WARP) {
        int64_t k = p.members ? p.members[j * a.group + i] : j * a.group + i;
        if (k >= 0 && k < a.x.cols) sum += (double)product[k] * load_stored(a.w_hat.data, a.w_hat.type, w + k);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) a.slope[(p.row + n) * p.groups + j] += (float)sum;
}

static enum rc get_workspace(struct backend_state *state, const struct scale_back_args *a, int64_t rows, struct part *p,
                             struct err *e) {
    size_t product = (size_t)(rows * a->x.cols) * sizeof *p->product;
    size_t members = a->group_of ? (size_t)(p->groups * a->group) * sizeof *p->members : 0;
    void *memory;
    TRY(cuda_scratch(state, product + members, &memory, e));
    p->product = (float *)memory;
    if (a->group_of == NULL) return RC_OK;
    int32_t *list = (int32_t *)((char *)memory + product);
    list_members<<<blocks_for(p->groups * WARP, BLOCK), BLOCK, 0, state->stream>>>(*a, p->groups, list);
    LAUNCHED();
    p->members = list;
    return RC_OK;
}

static enum rc add_part(struct backend_state *state, const struct scale_back_args *a, const struct part *p,
                        struct err *e) {
    struct outer_args o = {mat_cols(a->g, p->row, p->rows), a->x, 0, matf(p->product, p->rows, a->x.cols)};
    TRY(cuda_outer(state, &o, e));
    add_slopes<<<blocks_for(p->rows * p->groups * WARP, BLOCK), BLOCK, 0, state->stream>>>(*a, *p);
    LAUNCHED();
    return RC_OK;
}

enum rc cuda_scale_back(struct backend_state *state, const struct scale_back_args *a, struct err *e) {
    TRY(check_scale_back(a, e));
    for (const struct mat *m : {&a->x, &a->g, &a->w_hat})
        TRY(check_activation(state, m, e));
    int64_t all = a->w_hat.rows, rows = rows_at_a_time(a->x.cols);
    if (a->x.rows == 0 || all == 0) return RC_OK;
    if (rows > all) rows = all;
    struct part p = {0, rows, (a->x.cols + a->group - 1) / a->group, NULL, NULL};
    TRY(get_workspace(state, a, rows, &p, e));
    for (; p.row < all; p.row += rows) {
        p.rows = all - p.row < rows ? all - p.row : rows;
        TRY(add_part(state, a, &p, e));
    }
    return RC_OK;
}
