#include "tests/ops/reference_gptq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/reference.h"

/* The best of the columns in [from, to) that is not taken. */
static int64_t largest(const double *h, int64_t cols, int64_t from, int64_t to, const bool *taken) {
    int64_t best = -1;
    for (int64_t k = from; k < to; k++)
        if (!taken[k] && (best < 0 || h[k * cols + k] > h[best * cols + best])) best = k;
    return best;
}

void ref_order(const double *h, int64_t cols, int group, enum column_order order, int32_t *steps) {
    bool *taken = calloc((size_t)cols, sizeof *taken);
    int64_t size = group > 0 && group < cols ? group : cols;
    for (int64_t k = 0; taken != NULL && k < cols;) {
        int64_t next = order == ORDER_NATURAL ? k : largest(h, cols, 0, cols, taken), from = next, to = next + 1;
        if (order == ORDER_GROUP_AWARE) {
            from = next / size * size;
            to = from + size < cols ? from + size : cols;
        }
        for (; (next = largest(h, cols, from, to, taken)) >= 0; k++) {
            steps[k] = (int32_t)next;
            taken[next] = true;
        }
    }
    free(taken);
}

/* Gauss and Jordan, in place; false at a pivot that is not positive. */
static bool invert(double *m, int64_t n) {
    for (int64_t p = 0; p < n; p++) {
        double pivot = m[p * n + p];
        if (!(pivot > 0)) return false;
        m[p * n + p] = 1;
        for (int64_t j = 0; j < n; j++)
            m[p * n + j] /= pivot;
        for (int64_t i = 0; i < n; i++) {
            double factor = m[i * n + p];
            if (i == p || factor == 0) continue;
            m[i * n + p] = 0;
            for (int64_t j = 0; j < n; j++)
                m[i * n + j] -= factor * m[p * n + j];
        }
    }
    return true;
}

bool ref_factor(const double *h, int64_t cols, const int32_t *steps, double damp, double *u) {
    double *inverse = calloc((size_t)(cols * cols), sizeof *inverse), mean = 0;
    for (int64_t k = 0; k < cols; k++)
        mean += h[k * cols + k] / (double)cols;
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < cols; j++)
            inverse[i * cols + j] = h[steps[i] * cols + steps[j]] + (i == j ? damp * mean : 0);
    for (int64_t k = 0; k < cols; k++)
        if (h[steps[k] * cols + steps[k]] == 0) inverse[k * cols + k] = 1;
    bool definite = invert(inverse, cols);
    memset(u, 0, (size_t)(cols * cols) * sizeof *u);
    for (int64_t k = 0; definite && k < cols; k++) {
        const double *row = inverse + k * cols;
        for (int64_t j = k; j < cols; j++)
            u[k * cols + j] = row[j] / sqrt(row[k]);
        for (int64_t i = k + 1; i < cols; i++)
            for (int64_t j = i; j < cols; j++)
                inverse[i * cols + j] -= u[k * cols + i] * u[k * cols + j];
    }
    free(inverse);
    return definite;
}

static int64_t group_of(const struct ref_row *row, int64_t step) {
    int64_t size = row->candidate->group > 0 ? row->candidate->group : row->cols;
    return (row->candidate->order == ORDER_ACTIVATION ? step : row->steps[step]) / size;
}

/* Compares the parameters of group g, fitted to the weights w, which are in the order of the steps. */
static void check_fit(const struct ref_row *row, const double *w, int64_t g, struct ref_verdict *verdict) {
    float *members = calloc((size_t)row->cols, sizeof *members);
    int64_t n = 0;
    bool constant = true; /* which the codes tell */
    for (int64_t k = 0; members != NULL && k < row->cols; k++)
        if (group_of(row, k) == g) {
            members[n++] = (float)w[k];
            constant = constant && members[n - 1] == members[0];
        }
    if (!constant) {
        struct ref_grid want = ref_rtn(members, n, row->candidate);
        if (want.scale != row->scale[g * row->stride] || want.zero != row->zero[g * row->stride]) verdict->parameters++;
    }
    free(members);
}

static void check_code(double w, const struct ref_grid *grid, double code, struct ref_verdict *verdict) {
    double want = ref_code(grid, w), at = w / grid->scale + grid->zero;
    if (code == want) return;
    verdict->codes++;
    double distance = fabs(code - want) == 1 ? fabs(at - floor(at) - 0.5) : INFINITY;
    verdict->farthest = fmax(verdict->farthest, distance);
}

void ref_check_row(const struct ref_row *row, struct ref_verdict *verdict) {
    int64_t cols = row->cols;
    double *w = calloc((size_t)cols, sizeof *w);
    for (int64_t k = 0; w != NULL && k < cols; k++) {
        int64_t column = row->steps[k];
        w[k] = row->h[column * cols + column] == 0 ? 0 : row->w[column];
    }
    bool before = row->candidate->order == ORDER_STATIC_GROUPS;
    for (int64_t g = 0; before && g <= group_of(row, 0) + cols; g++)
        check_fit(row, w, g, verdict);
    for (int64_t k = 0; w != NULL && k < cols; k++) {
        int64_t g = group_of(row, k);
        if (!before && (k == 0 || g != group_of(row, k - 1))) check_fit(row, w, g, verdict);
        struct ref_grid grid = {row->scale[g * row->stride], row->zero[g * row->stride],
                                (1 << row->candidate->bits) - 1};
        double code = row->codes[row->steps[k]];
        check_code(w[k], &grid, code, verdict);
        double error = (w[k] - (code - grid.zero) * grid.scale) / row->u[k * cols + k];
        for (int64_t j = k; j < cols; j++)
            w[j] -= error * row->u[k * cols + j];
    }
    free(w);
}
