#include <cblas.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* Output errors exist for TILE tokens × CHUNK rows of D at a time. */
enum { TILE = 64, CHUNK = 512 };

struct workspace {
    double *dots;  /* [T] g·(x·Dᵀ) */
    float *errors; /* [threads, TILE, CHUNK] */
};

static enum rc get_workspace(struct backend_state *state, const struct fisher_args *a, struct workspace *ws,
                             struct err *e) {
    size_t dots = ((size_t)a->x.rows + 7) / 8 * 8 * sizeof(double); /* keeps the rest aligned */
    size_t errors = (size_t)state->threads * TILE * CHUNK * sizeof(float);
    void *memory;
    TRY(cpu_scratch(state, dots + errors, &memory, e));
    ws->dots = memory;
    ws->errors = (float *)((char *)memory + dots);
    return RC_OK;
}

/* The shares that rows [row, row + rows) of D have in the dots of the tokens from `token`. */
static void add_tile(const struct fisher_args *a, int64_t token, int64_t row, int64_t rows,
                     const struct workspace *ws) {
    int64_t tokens = a->x.rows - token < TILE ? a->x.rows - token : TILE;
    float *errors = ws->errors + (size_t)omp_get_thread_num() * TILE * CHUNK;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)tokens, (int)rows, (int)a->x.cols, 1,
                f32_row(a->x, token), (int)a->x.stride, f32_row(a->d, row), (int)a->d.stride, 0, errors, CHUNK);
    for (int64_t t = 0; t < tokens; t++)
        ws->dots[token + t] += vec_dot(f32_row(a->g, token + t) + row, errors + t * CHUNK, rows);
}

static void add_chunk(struct backend_state *state, const struct fisher_args *a, int64_t row,
                      const struct workspace *ws) {
    (void)state;
    int64_t rows = a->d.rows - row < CHUNK ? a->d.rows - row : CHUNK;
#pragma omp parallel for num_threads(state->threads) schedule(dynamic)
    for (int64_t token = 0; token < a->x.rows; token += TILE)
        add_tile(a, token, row, rows, ws);
}

static void finish_window(const struct fisher_args *a, int64_t window, const double *dots) {
    double sum = 0, squares = 0;
    for (int64_t t = window * a->length; t < (window + 1) * a->length; t++) {
        double f = dots[t] * dots[t];
        sum += f;
        squares += f * f;
    }
    a->sum[window] = sum;
    a->squares[window] = squares;
}

enum rc cpu_fisher(struct backend_state *state, const struct fisher_args *a, struct err *e) {
    TRY(check_fisher(a, e));
    TRY(CHECK_TYPE(DTYPE_F32, e, a->x, a->g, a->d));
    struct workspace ws;
    TRY(get_workspace(state, a, &ws, e));
    for (int64_t t = 0; t < a->x.rows; t++)
        ws.dots[t] = 0;
    for (int64_t row = 0; row < a->d.rows; row += CHUNK)
        add_chunk(state, a, row, &ws);
    for (int64_t window = 0; window < a->x.rows / a->length; window++)
        finish_window(a, window, ws.dots);
    return RC_OK;
}
