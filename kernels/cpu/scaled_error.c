#include <math.h>

#include "kernels/check.h"
#include "kernels/cpu/grid.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/trace.h"
#include "kernels/cpu/vec.h"

struct workspace {
    float *difference; /* [TRACE_ROWS, K] */
    float *scaled;     /* [threads, K] */
    uint8_t *codes;    /* [threads, K] */
    void *trace;
};

/* Some rows of one of the Linears. */
struct part {
    const struct scaled_error_args *a;
    struct mat w;
    const struct candidate *candidate;
    int64_t group;
};

static enum rc workspace_get(struct backend_state *state, int64_t cols, struct workspace *ws, struct err *e) {
    size_t trace = (trace_bytes(state, cols) + 63) / 64 * 64;
    size_t difference = (size_t)TRACE_ROWS * (size_t)cols * sizeof(float);
    size_t scaled = (size_t)state->threads * (size_t)cols * sizeof(float);
    void *memory;
    TRY(cpu_scratch(state, trace + difference + scaled + (size_t)state->threads * (size_t)cols, &memory, e));
    char *at = memory;
    ws->trace = at;
    ws->difference = (float *)(at + trace);
    ws->scaled = (float *)(at + trace + difference);
    ws->codes = (uint8_t *)(at + trace + difference + scaled);
    return RC_OK;
}

SIMD static void scale_row(const float *restrict w, const float *restrict by_col, int64_t n, float *restrict out) {
    for (int64_t k = 0; k < n; k++)
        out[k] = w[k] * by_col[k];
}

/* out = w − ŵ·inverse, where codes are ŵ's. */
SIMD static void subtract_codes(const float *restrict w, const float *restrict inverse, const uint8_t *restrict codes,
                                const struct grid *grid, int64_t n, float *restrict out) {
    float scale = grid->scale, zero = grid->zero;
    for (int64_t k = 0; k < n; k++)
        out[k] = w[k] - ((float)codes[k] - zero) * scale * inverse[k];
}

/* One row's D; false when its scaled weights are not finite. */
static bool round_row(const struct part *p, int64_t n, float *scaled, uint8_t *codes, float *out) {
    int64_t cols = p->w.cols;
    const float *w = f32_row(p->w, n);
    scale_row(w, p->a->by_col, cols, scaled);
    if (!vec_finite(scaled, cols)) return false;
    for (int64_t from = 0; from < cols; from += p->group) {
        int64_t length = cols - from < p->group ? cols - from : p->group;
        struct fit_args fit = {.w = scaled + from, .n = length, .candidate = p->candidate};
        bool unread;
        struct grid grid = grid_fit(&fit, &unread);
        grid_encode(&grid, fit.w, length, codes);
        subtract_codes(w + from, p->a->inverse + from, codes, &grid, length, out + from);
    }
    return true;
}

static double part_error(struct backend_state *state, const struct part *p, const struct workspace *ws) {
    int64_t cols = p->w.cols;
    bool bad = false;
#pragma omp parallel for num_threads(state->threads) reduction(|| : bad)
    for (int64_t n = 0; n < p->w.rows; n++) {
        int64_t thread = omp_get_thread_num();
        bad = !round_row(p, n, ws->scaled + thread * cols, ws->codes + thread * cols, ws->difference + n * cols) || bad;
    }
    return bad ? NAN : trace(state, matf(ws->difference, p->w.rows, cols), p->a->h, ws->trace);
}

static double linear_error(struct backend_state *state, const struct scaled_error_args *a, int i,
                           const struct workspace *ws) {
    struct mat w = a->w[i];
    int64_t group = a->candidate[i].group;
    struct part p = {a, w, &a->candidate[i], group > 0 && group < w.cols ? group : w.cols};
    double sum = 0;
    for (int64_t from = 0; from < w.rows; from += TRACE_ROWS) {
        p.w = mat_rows(w, from, w.rows - from < TRACE_ROWS ? w.rows - from : TRACE_ROWS);
        sum += part_error(state, &p, ws);
    }
    return sum;
}

enum rc cpu_scaled_error(struct backend_state *state, const struct scaled_error_args *a, struct err *e) {
    TRY(check_scaled_error(a, e));
    TRY(CHECK_TYPE(DTYPE_F64, e, a->h));
    for (int i = 0; i < a->count; i++)
        TRY(CHECK_TYPE(DTYPE_F32, e, a->w[i]));
    struct workspace ws;
    TRY(workspace_get(state, a->h.cols, &ws, e));
    *a->sum = 0;
    for (int i = 0; i < a->count; i++)
        *a->sum += linear_error(state, a, i, &ws);
    return RC_OK;
}
