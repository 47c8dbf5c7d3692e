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

/* `at`: what was rounded to `want`. */
static void compare(double at, double want, double code, struct ref_verdict *verdict) {
    if (code == want) return;
    verdict->codes++;
    double distance = fabs(code - want) == 1 ? fabs(at - floor(at) - 0.5) : INFINITY;
    verdict->farthest = fmax(verdict->farthest, distance);
}

/* The row's weights in the order of the steps; dead columns' count as 0. */
static void take_row(const struct ref_row *row, double *w) {
    for (int64_t k = 0; k < row->cols; k++) {
        int64_t column = row->steps[k];
        w[k] = row->h[column * row->cols + column] == 0 ? 0 : row->w[column];
    }
}

static void check_all_fits(const struct ref_row *row, const double *w, struct ref_verdict *verdict) {
    int64_t size = row->candidate->group > 0 ? row->candidate->group : row->cols;
    for (int64_t g = 0; g * size < row->cols; g++)
        check_fit(row, w, g, verdict);
}

void ref_check_row(const struct ref_row *row, struct ref_verdict *verdict) {
    int64_t cols = row->cols;
    double *w = calloc((size_t)cols, sizeof *w);
    if (w != NULL) take_row(row, w);
    bool before = row->candidate->order == ORDER_STATIC_GROUPS;
    if (before) check_all_fits(row, w, verdict);
    for (int64_t k = 0; w != NULL && k < cols; k++) {
        int64_t g = group_of(row, k);
        if (!before && (k == 0 || g != group_of(row, k - 1))) check_fit(row, w, g, verdict);
        struct ref_grid grid = {row->scale[g * row->stride], row->zero[g * row->stride],
                                (1 << row->candidate->bits) - 1};
        double code = row->codes[row->steps[k]];
        compare(w[k] / grid.scale + grid.zero, ref_code(&grid, w[k]), code, verdict);
        double error = (w[k] - (code - grid.zero) * grid.scale) / row->u[k * cols + k];
        for (int64_t j = k; j < cols; j++)
            w[j] -= error * row->u[k * cols + j];
    }
    free(w);
}

static struct ref_grid grid_at(const struct ref_row *row, int64_t step) {
    int64_t at = group_of(row, step) * row->stride;
    return (struct ref_grid){row->scale[at], row->zero[at], (1 << row->candidate->bits) - 1};
}

static struct ref_row row_at(const struct ref_rows *rows, int64_t step) {
    struct ref_row row = rows->first;
    int64_t n = rows->steps[step];
    row.w += n * row.cols;
    row.codes += n * row.cols;
    row.scale += n * rows->groups;
    row.zero += n * rows->groups;
    return row;
}

/* The weight at step p of the rows and k of the columns, from w [N, K] by steps; left [N]: R of the rows before it. */
static void check_weight(const struct ref_rows *rows, double *w, double *left, int64_t p, int64_t k,
                         struct ref_verdict *verdict) {
    const struct ref_row row = row_at(rows, p);
    const double *u = row.u + k * row.cols;
    struct ref_grid grid = grid_at(&row, k);
    double target = w[p * row.cols + k], code = row.codes[row.steps[k]];
    double w_hat = (code - grid.zero) * grid.scale, moved = w_hat - target;
    for (int64_t q = 0; q < p; q++)
        target += left[q] * rows->u[q * rows->count + p] / rows->u[q * rows->count + q];
    compare(target / grid.scale + grid.zero, ref_code(&grid, target), code, verdict);
    left[p] = w_hat - target;
    for (int64_t j = k + 1; j < row.cols; j++)
        w[p * row.cols + j] += moved * u[j] / u[k];
}

void ref_check_rows(const struct ref_rows *rows, struct ref_verdict *verdict) {
    int64_t cols = rows->first.cols;
    double *w = calloc((size_t)(rows->count * cols), sizeof *w), *left = calloc((size_t)rows->count, sizeof *left);
    for (int64_t p = 0; w != NULL && p < rows->count; p++) {
        struct ref_row row = row_at(rows, p);
        take_row(&row, w + p * cols);
        check_all_fits(&row, w + p * cols, verdict);
    }
    for (int64_t k = 0; w != NULL && left != NULL && k < cols; k++)
        for (int64_t p = 0; p < rows->count; p++)
            check_weight(rows, w, left, p, k, verdict);
    free(w);
    free(left);
}

void ref_damped(const double *h, int64_t cols, double damp, double *out) {
    double mean = 0;
    for (int64_t k = 0; k < cols; k++)
        mean += h[k * cols + k] / (double)cols;
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < cols; j++) {
            bool dead = h[i * cols + i] == 0 || h[j * cols + j] == 0;
            out[i * cols + j] = dead ? 0 : h[i * cols + j] + (i == j ? damp * mean : 0);
        }
}

static double error_at(const struct ref_row *row, int64_t step, double code) {
    struct ref_grid grid = grid_at(row, step);
    return row->w[row->steps[step]] - (code - grid.zero) * grid.scale;
}

/* w − ŵ [K] of columns as they lie; NULL without memory. */
static double *errors_of(const struct ref_row *row, const uint8_t *codes) {
    double *errors = calloc((size_t)row->cols, sizeof *errors);
    for (int64_t k = 0; errors != NULL && k < row->cols; k++)
        errors[row->steps[k]] = error_at(row, k, codes[row->steps[k]]);
    return errors;
}

static double slope_at(const struct ref_row *row, const double *errors, int64_t column) {
    double sum = 0;
    for (int64_t j = 0; j < row->cols; j++)
        sum += errors[j] * row->h[column * row->cols + j];
    return sum;
}

void ref_descend(const struct ref_row *row, uint8_t *codes, struct ref_verdict *verdict) {
    double *errors = errors_of(row, codes);
    for (int64_t k = 0; errors != NULL && k < row->cols; k++) {
        int64_t column = row->steps[k];
        struct ref_grid grid = grid_at(row, k);
        double diagonal = row->h[column * row->cols + column], at = codes[column];
        if (diagonal > 0) at += slope_at(row, errors, column) / (diagonal * grid.scale);
        double want = fmin(fmax(rint(at), 0), grid.top), took = row->codes != NULL ? row->codes[column] : want;
        compare(at, want, took, verdict);
        codes[column] = (uint8_t)took;
        errors[column] = error_at(row, k, took);
    }
    free(errors);
}

double ref_damped_error(const struct ref_row *row, const uint8_t *codes) {
    double *errors = errors_of(row, codes), sum = 0;
    for (int64_t k = 0; errors != NULL && k < row->cols; k++)
        sum += errors[k] * slope_at(row, errors, k);
    free(errors);
    return sum;
}
