/* Twin of kernels/cpu/factor.c: cuSOLVER factorizes in fp64, whatever H is counted in. */
#include <cusolverDn.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/cuda/device.cuh"
extern "C" {
#include "kernels/columns.h"
}

struct solver {
    cusolverDnHandle_t handle;
    cusolverDnParams_t params;
};

static enum rc solver_failure(cusolverStatus_t status, const char *call, struct err *e) {
    if (status == CUSOLVER_STATUS_ALLOC_FAILED) return cuda_failure(cudaErrorMemoryAllocation, call, e);
    return err_set(e, RC_UNAVAILABLE, "cuSOLVER failed with status %d in %s", (int)status, call);
}

#define SOLVER_TRY(call)                                                                                               \
    do {                                                                                                               \
        cusolverStatus_t solver_try_ = (call);                                                                         \
        if (solver_try_ != CUSOLVER_STATUS_SUCCESS) return solver_failure(solver_try_, #call, e);                      \
    } while (0)

/* With the first factor; others never need it. */
static enum rc open_solver(struct backend_state *state, struct err *e) {
    if (state->solver == NULL) {
        state->solver = (struct solver *)calloc(1, sizeof *state->solver);
        if (state->solver == NULL) return err_set(e, RC_NO_MEMORY, "no memory to open cuSOLVER");
    }
    struct solver *s = state->solver;
    if (s->handle == NULL) {
        SOLVER_TRY(cusolverDnCreate(&s->handle));
        SOLVER_TRY(cusolverDnSetStream(s->handle, state->stream));
    }
    if (s->params == NULL) SOLVER_TRY(cusolverDnCreateParams(&s->params));
    return RC_OK;
}

void cuda_solver_close(struct backend_state *state) {
    if (state->solver == NULL) return;
    if (state->solver->params) cusolverDnDestroyParams(state->solver->params);
    if (state->solver->handle) cusolverDnDestroy(state->solver->handle);
    free(state->solver);
    state->solver = NULL;
}

/* What the device has to say. */
struct findings {
    unsigned long long bad; /* least row of H with a value that is no number; K: none */
    int info;               /* cuSOLVER's: 0 when all went well */
    int strange;            /* whether fp32 cannot hold U */
};

/* L is inverted in leaves of so many rows, each by one block of threads, all at once; what lies between them is
 * products. cuSOLVER's own inversion takes six times as long at 12,800 channels. */
static const int LEAF = 256;

/* Of a triangle that is more than a leaf. */
static int64_t first_half(int64_t rows) {
    return (rows / 2 + LEAF - 1) / LEAF * LEAF;
}

struct workspace {
    int64_t cols;     /* K */
    double *lower;    /* [K, K] H′ flipped, then L, then L⁻¹: the lower triangle, to cuSOLVER the upper; else 0 */
    double *leaves;   /* [K rounded up to leaves, LEAF] */
    double *product;  /* [half, rest] of a triangle, as wide as any needs */
    double *diagonal; /* [K] */
    int32_t *order;   /* [K] */
    uint8_t *dead;    /* [K] */
    struct findings *found;
    void *solver, *solver_host; /* cuSOLVER's own */
    size_t solver_bytes, solver_host_bytes;
};

template <typename T> static __global__ void look_at(struct mat h, struct workspace ws) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / h.cols, col = i % h.cols;
    if (row >= h.rows) return;
    T value = ((const T *)h.data)[row * h.stride + col];
    if (!isfinite(value)) atomicMin(&ws.found->bad, (unsigned long long)row);
    if (row == col) ws.diagonal[row] = value;
}

/* The flipped H′. What lies beside a dead column's diagonal is at most an underflow's remainder. */
template <typename T> static __global__ void gather(struct mat h, double added, struct workspace ws) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / ws.cols, col = i % ws.cols, last = ws.cols - 1;
    if (row > last) return;
    int64_t from_row = ws.order[last - row], from_col = ws.order[last - col];
    double value = ((const T *)h.data)[from_row * h.stride + from_col];
    if (row == col)
        value = ws.dead[from_row] ? 1 : value + added;
    else if (col > row || ws.dead[from_row] || ws.dead[from_col])
        value = 0;
    ws.lower[row * ws.cols + col] = value;
}

/* U = L⁻¹ flipped back. */
static __global__ void store(struct workspace ws, float *upper) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / ws.cols, col = i % ws.cols, last = ws.cols - 1;
    if (row > last) return;
    float value = col < row ? 0 : (float)ws.lower[(last - row) * ws.cols + last - col];
    upper[i] = value;
    if (!isfinite(value) || (row == col && !(value > 0))) ws.found->strange = 1;
}

static size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static enum rc take_solver_memory(struct backend_state *state, struct workspace *ws, struct err *e) {
    const struct solver *s = state->solver;
    SOLVER_TRY(cusolverDnXpotrf_bufferSize(s->handle, s->params, CUBLAS_FILL_MODE_UPPER, ws->cols, CUDA_R_64F,
                                           ws->lower, ws->cols, CUDA_R_64F, &ws->solver_bytes, &ws->solver_host_bytes));
    ws->solver_host = malloc(ws->solver_host_bytes ? ws->solver_host_bytes : 1);
    if (ws->solver_host == NULL) return err_set(e, RC_NO_MEMORY, "no memory on the host for cuSOLVER");
    return cuda_alloc(state, ws->solver_bytes, &ws->solver, e);
}

/* Given back after each factor: a wide input's is gigabytes that the walk has better uses for. */
static enum rc workspace_get(struct backend_state *state, int64_t cols, struct workspace *ws, struct err *e) {
    *ws = {};
    ws->cols = cols;
    size_t square = aligned((size_t)(cols * cols) * sizeof(double)), diagonal = aligned((size_t)cols * sizeof(double));
    size_t order = aligned((size_t)cols * sizeof(int32_t)), dead = aligned((size_t)cols);
    void *memory;
    size_t leaves = (size_t)blocks_for(cols, LEAF) * LEAF * LEAF * sizeof(double);
    int64_t half = cols > LEAF ? first_half(cols) : 0, most = half * (cols - half);
    if (most < half * half / 2) most = half * half / 2; /* the first half's own halves are wider than a short rest */
    size_t product = aligned((size_t)most * sizeof(double));
    TRY(cuda_alloc(state, square + leaves + product + diagonal + order + dead + sizeof(struct findings), &memory, e));
    char *at = (char *)memory;
    ws->lower = (double *)at;
    ws->leaves = (double *)(at + square);
    ws->product = (double *)(at + square + leaves);
    at += leaves + product;
    ws->diagonal = (double *)(at + square);
    ws->order = (int32_t *)(at + square + diagonal);
    ws->dead = (uint8_t *)(at + square + diagonal + order);
    ws->found = (struct findings *)(at + square + diagonal + order + dead);
    return take_solver_memory(state, ws, e);
}

static void workspace_release(struct backend_state *state, struct workspace *ws) {
    free(ws->solver_host);
    cuda_free(state, ws->solver);
    cuda_free(state, ws->lower);
}

/* One thread an element of a [K, K]. */
static unsigned square_blocks(const struct workspace *ws) {
    return blocks_for(ws->cols * ws->cols, BLOCK);
}

/* The order of the columns and the mean of the diagonal; refuses an H that is not finite. */
static enum rc sort(struct backend_state *state, const struct factor_args *a, const struct workspace *ws, double *mean,
                    struct err *e) {
    struct findings found = {(unsigned long long)ws->cols, 0, 0};
    CUDA_TRY(cudaMemcpyAsync(ws->found, &found, sizeof found, cudaMemcpyHostToDevice, state->stream));
    if (a->h.type == DTYPE_F64)
        look_at<double><<<square_blocks(ws), BLOCK, 0, state->stream>>>(a->h, *ws);
    else
        look_at<float><<<square_blocks(ws), BLOCK, 0, state->stream>>>(a->h, *ws);
    LAUNCHED();
    TRY(cuda_download(state, ws->found, sizeof found, &found, e));
    if (found.bad < (unsigned long long)ws->cols)
        return err_set(e, RC_INVALID, "H is not finite at channel %llu: the activations have overflowed", found.bad);
    size_t bytes = (size_t)ws->cols * sizeof(double);
    double *diagonal = (double *)malloc(bytes);
    if (diagonal == NULL) return err_set(e, RC_NO_MEMORY, "no memory for the diagonal of H");
    enum rc rc = cuda_download(state, ws->diagonal, bytes, diagonal, e);
    if (rc == RC_OK) rc = columns_sort(a, diagonal, mean, e);
    free(diagonal);
    TRY(rc);
    CUDA_TRY(cudaMemcpyAsync(ws->order, a->out->order, (size_t)ws->cols * sizeof *ws->order, cudaMemcpyHostToDevice,
                             state->stream));
    CUDA_TRY(cudaMemcpyAsync(ws->dead, a->out->dead, (size_t)ws->cols, cudaMemcpyHostToDevice, state->stream));
    return RC_OK;
}

/* Thread j makes column j of a leaf's L⁻¹ by substitution, into `inverse`, which is [LEAF, LEAF] a leaf. */
static __global__ void __launch_bounds__(LEAF) invert_leaves(struct workspace ws) {
    int64_t at = (int64_t)blockIdx.x * LEAF;
    int rows = ws.cols - at < LEAF ? (int)(ws.cols - at) : LEAF, j = threadIdx.x;
    const double *lower = ws.lower + at * ws.cols + at;
    double *x = ws.leaves + (int64_t)blockIdx.x * LEAF * LEAF;
    if (j >= rows) return;
    for (int i = 0; i < rows; i++) {
        const double *row = lower + i * ws.cols;
        double sum = i == j ? 1 : 0;
        for (int k = j; k < i; k++)
            sum -= row[k] * x[k * LEAF + j];
        x[i * LEAF + j] = i < j ? 0 : sum / row[i];
    }
}

static __global__ void put_leaves(struct workspace ws) {
    int64_t at = (int64_t)blockIdx.x * LEAF;
    int rows = ws.cols - at < LEAF ? (int)(ws.cols - at) : LEAF, j = threadIdx.x;
    const double *x = ws.leaves + (int64_t)blockIdx.x * LEAF * LEAF;
    for (int i = j; j < rows && i < rows; i++)
        ws.lower[(at + i) * ws.cols + at + j] = x[i * LEAF + j];
}

/* To cuBLAS the triangle is the upper one: [A B; 0 C]⁻¹ = [A⁻¹, −A⁻¹ B C⁻¹; 0, C⁻¹]. The leaves are inverted already.
 */
static enum rc join(struct backend_state *state, const struct workspace *ws, int64_t at, int64_t rows, struct err *e) {
    if (rows <= LEAF) return RC_OK;
    const double one = 1, minus_one = -1;
    int64_t half = first_half(rows), rest = rows - half;
    double *a = ws->lower + at * ws->cols + at, *b = a + half * ws->cols, *c = b + half;
    int stride = (int)ws->cols;
    TRY(join(state, ws, at, half, e));
    TRY(join(state, ws, at + half, rest, e));
    CUBLAS_TRY(cublasDtrmm(state->blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT,
                           (int)half, (int)rest, &one, a, stride, b, stride, ws->product, (int)half));
    CUBLAS_TRY(cublasDtrmm(state->blas, CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT,
                           (int)half, (int)rest, &minus_one, c, stride, ws->product, (int)half, b, stride));
    return RC_OK;
}

static enum rc invert(struct backend_state *state, const struct workspace *ws, struct err *e) {
    unsigned leaves = blocks_for(ws->cols, LEAF);
    invert_leaves<<<leaves, LEAF, 0, state->stream>>>(*ws);
    LAUNCHED();
    put_leaves<<<leaves, LEAF, 0, state->stream>>>(*ws);
    LAUNCHED();
    return join(state, ws, 0, ws->cols, e);
}

/* H′ → L → L⁻¹; `definite`: whether H′ is positive definite. */
static enum rc factorize(struct backend_state *state, const struct factor_args *a, double added,
                         const struct workspace *ws, bool *definite, struct err *e) {
    const struct solver *s = state->solver;
    if (a->h.type == DTYPE_F64)
        gather<double><<<square_blocks(ws), BLOCK, 0, state->stream>>>(a->h, added, *ws);
    else
        gather<float><<<square_blocks(ws), BLOCK, 0, state->stream>>>(a->h, added, *ws);
    LAUNCHED();
    int info;
    *definite = false;
    SOLVER_TRY(cusolverDnXpotrf(s->handle, s->params, CUBLAS_FILL_MODE_UPPER, ws->cols, CUDA_R_64F, ws->lower, ws->cols,
                                CUDA_R_64F, ws->solver, ws->solver_bytes, ws->solver_host, ws->solver_host_bytes,
                                &ws->found->info));
    TRY(cuda_download(state, &ws->found->info, sizeof info, &info, e));
    if (info != 0) return RC_OK;
    *definite = true; /* and no diagonal of L is 0: the triangle can be inverted */
    return invert(state, ws, e);
}

static enum rc factor(struct backend_state *state, const struct factor_args *a, const struct workspace *ws,
                      struct err *e) {
    double mean, damp = a->damp;
    bool definite = false;
    TRY(sort(state, a, ws, &mean, e));
    TRY(factorize(state, a, damp * mean, ws, &definite, e));
    while (!definite) {
        if (damp >= 1)
            return err_set(e, RC_INVALID, "H is no sum of squares: not positive definite with all of its mean added");
        damp = fmin(2 * damp, 1.0);
        TRY(factorize(state, a, damp * mean, ws, &definite, e));
    }
    store<<<square_blocks(ws), BLOCK, 0, state->stream>>>(*ws, a->out->upper);
    LAUNCHED();
    int strange;
    TRY(cuda_download(state, &ws->found->strange, sizeof strange, &strange, e));
    if (strange) return err_set(e, RC_INVALID, "H, %g in the mean on its diagonal, is out of fp32's range", mean);
    a->out->damp = damp;
    a->out->mean = mean;
    return RC_OK;
}

enum rc cuda_factor(struct backend_state *state, const struct factor_args *a, struct err *e) {
    TRY(check_factor(a, e));
    if (a->h.type != DTYPE_F64 && a->h.type != DTYPE_F32)
        return err_set(e, RC_UNSUPPORTED, "factor: H of type %d; it is counted in fp32 or fp64", (int)a->h.type);
    TRY(open_solver(state, e));
    struct workspace ws;
    enum rc rc = workspace_get(state, a->h.cols, &ws, e);
    if (rc == RC_OK) rc = factor(state, a, &ws, e);
    workspace_release(state, &ws);
    return rc;
}
