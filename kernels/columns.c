#include "kernels/columns.h"

#include <math.h>
#include <stdlib.h>

/* What a column is sorted by: the group first, then the column in it; each from large to small, then as they lie. */
struct key {
    double of_group, of_column;
    int32_t group, column;
};

static int compare(const void *left, const void *right) {
    const struct key *a = left, *b = right;
    if (a->of_group != b->of_group) return a->of_group > b->of_group ? -1 : 1;
    if (a->group != b->group) return a->group < b->group ? -1 : 1;
    if (a->of_column != b->of_column) return a->of_column > b->of_column ? -1 : 1;
    return a->column < b->column ? -1 : a->column > b->column;
}

static void fill_keys(const struct factor_args *a, const double *diagonal, struct key *keys) {
    int64_t cols = a->h.cols, group = a->group > 0 ? a->group : cols;
    for (int64_t from = 0; from < cols; from += group) {
        int64_t to = cols - from < group ? cols : from + group;
        double max = diagonal[from];
        for (int64_t k = from; k < to; k++)
            max = diagonal[k] > max ? diagonal[k] : max;
        for (int64_t k = from; k < to; k++) {
            keys[k] = (struct key){.column = (int32_t)k};
            if (a->order == ORDER_NATURAL) continue;
            keys[k].of_column = diagonal[k];
            if (a->order != ORDER_GROUP_AWARE) continue;
            keys[k].of_group = max;
            keys[k].group = (int32_t)(from / group);
        }
    }
}

enum rc columns_sort(const struct factor_args *a, const double *diagonal, double *mean, struct err *e) {
    int64_t cols = a->h.cols;
    struct key *keys = malloc((size_t)cols * sizeof *keys);
    if (keys == NULL) return err_set(e, RC_NO_MEMORY, "no memory to sort %lld columns", (long long)cols);
    fill_keys(a, diagonal, keys);
    qsort(keys, (size_t)cols, sizeof *keys, compare);
    double sum = 0;
    for (int64_t k = 0; k < cols; k++) {
        a->out->order[k] = keys[k].column;
        a->out->dead[k] = diagonal[k] == 0;
        sum += diagonal[k];
    }
    *mean = sum / (double)cols;
    free(keys);
    return RC_OK;
}

double columns_unit(double mean) {
    int exponent;
    frexp(mean, &exponent);
    return ldexp(1, -exponent);
}

/* Whether every column is there once. RC_NO_MEMORY. */
static enum rc check_permutation(const int32_t *order, int64_t cols, const char *wrong, struct err *e) {
    uint8_t *seen = calloc((size_t)cols, 1);
    if (seen == NULL) return err_set(e, RC_NO_MEMORY, "no memory for the order of %lld columns", (long long)cols);
    int64_t k = 0;
    while (k < cols && order[k] >= 0 && order[k] < cols && !seen[order[k]])
        seen[order[k++]] = 1;
    free(seen);
    return k == cols ? RC_OK : err_set(e, RC_INVALID, "quantize: %s", wrong);
}

/* Fills the groups; false when one is scattered over the steps and may not be. */
static bool find_groups(const struct quantize_args *a, struct steps *s) {
    int64_t size = a->out->group;
    bool consecutive = a->candidate.order == ORDER_ACTIVATION;
    for (int64_t k = 0; k < s->count; k++)
        s->group[k] = (int32_t)((consecutive ? k : a->factor->order[k]) / size);
    for (int64_t k = s->count, end = k; k-- > 0; end = k > 0 && s->group[k - 1] != s->group[k] ? k : end)
        s->group_end[k] = end;
    if (a->candidate.order == ORDER_STATIC_GROUPS) return true;
    for (int64_t k = 0; k < s->count; k = s->group_end[k]) {
        int64_t from = s->group[k] * size, whole = s->count - from < size ? s->count - from : size;
        if (s->group_end[k] - k != whole) return false;
    }
    return true;
}

static enum rc fill_steps(const struct quantize_args *a, struct steps *s, struct err *e) {
    static const char other[] = "the factor was made for another order or group";
    if (s->group == NULL || s->group_end == NULL)
        return err_set(e, RC_NO_MEMORY, "no memory for the groups of %lld columns", (long long)s->count);
    TRY(check_permutation(a->factor->order, s->count, other, e));
    if (a->rows != NULL)
        TRY(check_permutation(a->rows->order, a->rows->cols, "the order of the rows is not one of them", e));
    return find_groups(a, s) ? RC_OK : err_set(e, RC_INVALID, "quantize: %s", other);
}

enum rc steps_init(const struct quantize_args *a, struct steps *s, struct err *e) {
    int64_t cols = a->w.cols;
    *s = (struct steps){.count = cols, .fitted_before = a->candidate.order == ORDER_STATIC_GROUPS || a->rows != NULL};
    s->group = calloc((size_t)cols, sizeof *s->group);
    s->group_end = calloc((size_t)cols, sizeof *s->group_end);
    enum rc rc = fill_steps(a, s, e);
    if (rc != RC_OK) steps_release(s);
    return rc;
}

void steps_release(struct steps *s) {
    free(s->group);
    free(s->group_end);
    *s = (struct steps){0};
}

int64_t steps_block_end(const struct steps *s, int64_t from) {
    int64_t limit = s->count - from < STEPS_MAX ? s->count : from + STEPS_MAX, end = from;
    if (s->fitted_before) return limit;
    while (end < limit && s->group_end[end] <= limit)
        end = s->group_end[end];
    return end > from ? end : limit;
}

bool steps_fit_at(const struct steps *s, int64_t step) {
    return !s->fitted_before && (step == 0 || s->group[step] != s->group[step - 1]);
}
