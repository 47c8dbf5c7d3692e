#include "worker/pipeline/sweep_result.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"

static const struct {
    double times_mean;
    const char *recommendation;
} thresholds[] = {{16, "16 bits"}, {8, "fp8"}, {4, "8-bit g64"}, {1, "4-bit g64"}};
enum { THRESHOLDS = sizeof thresholds / sizeof *thresholds };
static const char no_recommendation[] = "default";

/* JSON has no NaN: what cannot be computed is null. */
static json_t *real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static const struct linear *linear_at(const struct sweep_table *t, size_t i) {
    return &t->model->linears[t->place[i]];
}

/* --- rows --- */

/* By place and part. */
static const char *category(const struct sweep_table *t, size_t i) {
    static const char *const names[3][2] = {{"first-block attention", "first-block MLP"},
                                            {"middle attention", "middle MLP"},
                                            {"last-block attention", "last-block MLP"}};
    const struct linear *l = linear_at(t, i);
    int place = l->block == 0 ? 0 : l->block == t->model->arch.blocks - 1 ? 2 : 1;
    return names[place][l->input == INPUT_MLP || l->input == INPUT_DOWN];
}

json_t *swept_encode(const struct sweep_table *t, size_t i) {
    const struct linear *l = linear_at(t, i);
    const struct swept *r = &t->rows[i];
    char id[CANDIDATE_ID_SIZE];
    const char *candidate = t->candidate ? candidate_id(t->candidate, id) : NULL;
    return json_pack("{ss si ss s[II] sI ss? so sf so sf so sf so sb ss}", "name", l->name, "block", l->block,
                     "projection", l->projection, "shape", (json_int_t)l->rows, (json_int_t)l->cols, "params",
                     (json_int_t)(l->rows * l->cols), "candidate", candidate, "noise",
                     candidate ? json_null() : json_real(t->noise), "relative_error", r->relative_error, "bytes",
                     r->bytes < 0 ? json_null() : json_integer(r->bytes), "delta_kl", r->delta_kl, "delta_kl_se",
                     real(r->delta_kl_se), "delta_nll", r->delta_nll, "delta_nll_se", real(r->delta_nll_se), "improves",
                     r->delta_nll < 0, "category", category(t, i));
}

static enum rc get_number(const json_t *data, const char *key, double *out, struct err *e) {
    *out = NAN;
    TRY(json_get_number(data, key, out, e));
    return isnan(*out) ? err_set(e, RC_INVALID, "a stored row of the sweep lacks \"%s\"", key) : RC_OK;
}

enum rc swept_decode(const json_t *data, struct swept *row, struct err *e) {
    *row = (struct swept){.delta_kl_se = NAN, .delta_nll_se = NAN, .bytes = -1};
    TRY(get_number(data, "relative_error", &row->relative_error, e));
    TRY(get_number(data, "delta_kl", &row->delta_kl, e));
    TRY(get_number(data, "delta_nll", &row->delta_nll, e));
    TRY(json_get_number(data, "delta_kl_se", &row->delta_kl_se, e));
    TRY(json_get_number(data, "delta_nll_se", &row->delta_nll_se, e));
    TRY(json_get_int(data, "bytes", 0, INT64_MAX, &row->bytes, e));
    row->known = true;
    return RC_OK;
}

/* --- ranking --- */

static double sum_where(const struct sweep_table *t, bool (*is)(const struct linear *, const void *), const void *what,
                        int64_t *count) {
    double sum = 0;
    *count = 0;
    for (size_t i = 0; i < t->count; i++) {
        if (is && !is(linear_at(t, i), what)) continue;
        sum += t->rows[i].delta_kl;
        (*count)++;
    }
    return sum;
}

static double sum_all(const struct sweep_table *t) {
    int64_t count;
    return sum_where(t, NULL, NULL, &count);
}

static const char *recommendation(double delta_kl, double mean) {
    for (int i = 0; i < THRESHOLDS && mean > 0; i++)
        if (delta_kl >= thresholds[i].times_mean * mean) return thresholds[i].recommendation;
    return no_recommendation;
}

struct rank {
    double delta_kl;
    size_t row;
};

/* The most first; equals in the model's order. */
static int by_rank(const void *a, const void *b) {
    const struct rank *x = a, *y = b;
    if (x->delta_kl != y->delta_kl) return x->delta_kl < y->delta_kl ? 1 : -1;
    return (x->row > y->row) - (x->row < y->row);
}

static json_t *ranked(const struct sweep_table *t, double sum) {
    struct rank *order = xcalloc(t->count, sizeof *order);
    json_t *list = json_array();
    for (size_t i = 0; i < t->count; i++)
        order[i] = (struct rank){t->rows[i].delta_kl, i};
    qsort(order, t->count, sizeof *order, by_rank);
    for (size_t i = 0; i < t->count; i++) {
        const struct swept *r = &t->rows[order[i].row];
        json_array_append_new(list, json_pack("{ss sf so so ss ss}", "name", linear_at(t, order[i].row)->name,
                                              "delta_kl", r->delta_kl, "se", real(r->delta_kl_se), "share",
                                              real(r->delta_kl / sum), "category", category(t, order[i].row),
                                              "recommendation", recommendation(r->delta_kl, sum / (double)t->count)));
    }
    free(order);
    return list;
}

/* --- groups --- */

static bool has_projection(const struct linear *l, const void *projection) {
    return !strcmp(l->projection, projection);
}

static bool has_block(const struct linear *l, const void *block) {
    return l->block == *(const int *)block;
}

static json_t *group_json(const char *member, json_t *value, double sum, int64_t count, double all) {
    return json_pack("{so sI sf sf so}", member, value, "linears", (json_int_t)count, "sum", sum, "mean",
                     sum / (double)count, "share", real(sum / all));
}

static bool seen_before(const struct sweep_table *t, size_t i, bool (*is)(const struct linear *, const void *),
                        const void *what) {
    for (size_t k = 0; k < i; k++)
        if (is(linear_at(t, k), what)) return true;
    return false;
}

static json_t *by_projection(const struct sweep_table *t, double all) {
    json_t *list = json_array();
    for (size_t i = 0; i < t->count; i++) {
        const char *projection = linear_at(t, i)->projection;
        int64_t count;
        if (seen_before(t, i, has_projection, projection)) continue;
        double sum = sum_where(t, has_projection, projection, &count);
        json_array_append_new(list, group_json("projection", json_string(projection), sum, count, all));
    }
    return list;
}

static json_t *by_block(const struct sweep_table *t, double all) {
    json_t *list = json_array();
    for (int block = 0; block < t->model->arch.blocks; block++) {
        int64_t count;
        double sum = sum_where(t, has_block, &block, &count);
        if (count > 0) json_array_append_new(list, group_json("block", json_integer(block), sum, count, all));
    }
    return list;
}

/* Of a block's Linears together; NaN where none was swept. */
static double block_sum(const struct sweep_table *t, int block) {
    int64_t count;
    double sum = sum_where(t, has_block, &block, &count);
    return count > 0 ? sum : NAN;
}

static json_t *pattern(const struct sweep_table *t) {
    int last = t->model->arch.blocks - 1, blocks = 0;
    double middle = 0;
    for (int block = 1; block < last; block++) {
        double sum = block_sum(t, block);
        if (isnan(sum)) continue;
        middle += sum;
        blocks++;
    }
    middle /= blocks; /* of none: NaN */
    double first_sum = block_sum(t, 0), last_sum = last > 0 ? block_sum(t, last) : NAN;
    return json_pack("{so so so s{so so}}", "first_block", real(first_sum), "last_block", real(last_sum), "middle_mean",
                     real(middle), "ratios", "first", real(first_sum / middle), "last", real(last_sum / middle));
}

static json_t *thresholds_json(void) {
    json_t *list = json_array();
    for (int i = 0; i < THRESHOLDS; i++)
        json_array_append_new(list, json_pack("{sf ss}", "times_mean", thresholds[i].times_mean, "recommendation",
                                              thresholds[i].recommendation));
    json_array_append_new(list, json_pack("{sf ss}", "times_mean", 0.0, "recommendation", no_recommendation));
    return list;
}

void sweep_result_add(const struct sweep_table *t, json_t *result) {
    double sum = sum_all(t);
    json_object_set_new(result, "delta_kl_sum", json_real(sum));
    json_object_set_new(result, "delta_kl_mean", json_real(sum / (double)t->count));
    json_object_set_new(result, "ranked", ranked(t, sum));
    json_object_set_new(result, "by_projection", by_projection(t, sum));
    json_object_set_new(result, "by_block", by_block(t, sum));
    json_object_set_new(result, "pattern", pattern(t));
    json_object_set_new(result, "thresholds", thresholds_json());
}
