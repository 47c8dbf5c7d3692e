#include "worker/model/packed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* One Linear while its tensors are looked for. */
struct search {
    const struct safetensors *st;
    const char *name;
    const struct candidate *c;
    int64_t rows, cols, groups;
};

static const struct st_tensor *find(const struct search *s, const char *suffix) {
    char *name = xasprintf("%s.%s", s->name, suffix);
    const struct st_tensor *t = safetensors_find(s->st, name);
    free(name);
    return t;
}

static enum rc need(const struct search *s, const char *suffix, const struct st_tensor **out, struct err *e) {
    *out = find(s, suffix);
    if (*out != NULL) return RC_OK;
    return err_set(e, RC_INVALID,
                   "tensor '%s.%s' is missing from the model's files, though config.json (quantization_config) says "
                   "that this Linear is quantized",
                   s->name, suffix);
}

static enum rc check_type(const struct st_tensor *t, const char *type, struct err *e) {
    if (strcmp(t->stored_as, type) == 0) return RC_OK;
    return err_set(e, RC_UNSUPPORTED, "%s: tensor '%s' is stored as %s where %s is read", t->file, t->name,
                   t->stored_as, type);
}

static enum rc check_shape(const struct st_tensor *t, int64_t rows, int64_t cols, struct err *e) {
    int64_t want[2] = {rows, cols};
    if (t->dims == 2 && t->shape[0] == rows && t->shape[1] == cols) return RC_OK;
    char have_text[192], want_text[64];
    return err_set(e, RC_INVALID, "%s: tensor '%s' has shape %s where the Linear's shape and its bits ask for %s",
                   t->file, t->name, shape_text(t->shape, t->dims, have_text, sizeof have_text),
                   shape_text(want, 2, want_text, sizeof want_text));
}

static bool is_float(const struct st_tensor *t) {
    return t->readable && (t->type == DTYPE_F16 || t->type == DTYPE_BF16 || t->type == DTYPE_F32);
}

static enum rc check_parameters(const struct search *s, const struct st_tensor *t, struct err *e) {
    if (!is_float(t))
        return err_set(e, RC_UNSUPPORTED, "%s: tensor '%s' is stored as %s; F16, BF16 and F32 are read", t->file,
                       t->name, t->stored_as);
    if (t->dims == 1 && s->groups == 1 && t->shape[0] == s->rows) return RC_OK;
    return check_shape(t, s->rows, s->groups, e);
}

/* What others call float-quantized: the codes are the weight, with a scale a row or one for all. */
static enum rc find_fp8(const struct search *s, struct packed_linear *p, struct err *e) {
    TRY(need(s, "weight", &p->codes, e));
    TRY(check_type(p->codes, "F8_E4M3", e));
    TRY(check_shape(p->codes, s->rows, s->cols, e));
    TRY(need(s, "weight_scale", &p->scales, e));
    if (s->c->fp8_scale == FP8_PER_ROW) return check_parameters(s, p->scales, e);
    if (!is_float(p->scales)) return check_parameters(s, p->scales, e);
    if (p->scales->count == 1) return RC_OK;
    return err_set(e, RC_INVALID, "%s: tensor '%s' holds %lld scales where config.json says one", p->scales->file,
                   p->scales->name, (long long)p->scales->count);
}

/* Words of 32 bits along K; in the HQQ layout rows of containers. */
static enum rc find_codes(const struct search *s, struct packed_linear *p, struct err *e) {
    int64_t bytes = packed_sizes(s->c, s->rows, s->cols).codes_bytes;
    TRY(need(s, "weight_packed", &p->codes, e));
    if (s->c->layout == LAYOUT_DENSE) {
        TRY(check_type(p->codes, "I32", e));
        return check_shape(p->codes, s->rows, bytes / s->rows / 4, e);
    }
    int64_t group = s->c->group > 0 && s->c->group < s->cols ? s->c->group : s->cols;
    TRY(check_type(p->codes, s->c->bits == 3 ? "I32" : "U8", e));
    return check_shape(p->codes, bytes / group / (s->c->bits == 3 ? 4 : 1), group, e);
}

static enum rc find_zeros(const struct search *s, struct packed_linear *p, struct err *e) {
    if (s->c->symmetric) return RC_OK;
    if (s->c->zero == ZERO_INTEGER) {
        TRY(need(s, "weight_zero_point", &p->zeros, e));
        TRY(check_type(p->zeros, "I32", e));
        return check_shape(p->zeros, packed_sizes(s->c, s->rows, s->cols).zeros_bytes / 4 / s->groups, s->groups, e);
    }
    TRY(need(s, "weight_zero", &p->zeros, e));
    TRY(check_parameters(s, p->zeros, e));
    if (p->zeros->type == p->scales->type) return RC_OK;
    return err_set(e, RC_UNSUPPORTED, "%s: tensor '%s' is stored as %s, its scales as %s", p->zeros->file,
                   p->zeros->name, p->zeros->stored_as, p->scales->stored_as);
}

/* The shape that the weight had, where the file says it. */
static enum rc check_original(const struct search *s, struct err *e) {
    const struct st_tensor *t = find(s, "weight_shape");
    int64_t shape[2];
    if (t == NULL) return RC_OK;
    TRY(check_type(t, "I64", e));
    if (t->count != 2) return err_set(e, RC_INVALID, "%s: tensor '%s' holds no two sizes", t->file, t->name);
    memcpy(shape, t->data, sizeof shape);
    if (shape[0] == s->rows && shape[1] == s->cols) return RC_OK;
    return err_set(e, RC_INVALID, "%s: tensor '%s' says [%lld, %lld], but config.json asks for [%lld, %lld]", t->file,
                   t->name, (long long)shape[0], (long long)shape[1], (long long)s->rows, (long long)s->cols);
}

static int32_t index_at(const struct st_tensor *t, int64_t k) {
    int32_t index;
    memcpy(&index, (const char *)t->data + (size_t)k * sizeof index, sizeof index);
    return index;
}

/* Every column is in a group that there is, and every group is full: others sort the columns by their group and cut the
 * row into groups, which is the same only then. */
static enum rc check_order(const struct search *s, const struct st_tensor *t, struct err *e) {
    int64_t *members = xcalloc((size_t)s->groups, sizeof *members), group = s->c->group, at = 0;
    bool full = true;
    while (at < s->cols && index_at(t, at) >= 0 && index_at(t, at) < s->groups)
        members[index_at(t, at++)]++;
    for (int64_t g = 0; at == s->cols && g < s->groups; g++)
        full = full && members[g] == (g + 1 < s->groups ? group : s->cols - g * group);
    free(members);
    if (at < s->cols)
        return err_set(e, RC_INVALID, "%s: tensor '%s' puts column %lld into group %d of %lld", t->file, t->name,
                       (long long)at, index_at(t, at), (long long)s->groups);
    return full ? RC_OK
                : err_set(e, RC_INVALID, "%s: tensor '%s' does not give every group its columns", t->file, t->name);
}

/* −1 in it: it was never filled in. */
static enum rc find_order(const struct search *s, struct packed_linear *p, struct err *e) {
    const struct st_tensor *t = find(s, "weight_g_idx");
    if (t == NULL || s->groups == 1) return RC_OK;
    TRY(check_type(t, "I32", e));
    if (t->count != s->cols)
        return err_set(e, RC_INVALID, "%s: tensor '%s' has %lld entries for %lld columns", t->file, t->name,
                       (long long)t->count, (long long)s->cols);
    for (int64_t k = 0; k < s->cols; k++)
        if (index_at(t, k) == -1) return RC_OK;
    TRY(check_order(s, t, e));
    p->order = t;
    return RC_OK;
}

static enum rc find_all(const struct search *s, struct packed_linear *p, struct err *e) {
    if (s->c->method == METHOD_FP8) return find_fp8(s, p, e);
    TRY(find_codes(s, p, e));
    TRY(need(s, "weight_scale", &p->scales, e));
    TRY(check_parameters(s, p->scales, e));
    TRY(find_zeros(s, p, e));
    TRY(find_order(s, p, e));
    return check_original(s, e);
}

enum rc packed_linear_find(const struct safetensors *st, const char *name, const struct candidate *c, int64_t rows,
                           int64_t cols, struct packed_linear **out, struct err *e) {
    int64_t group = c->group > 0 && c->group < cols ? c->group : cols;
    struct search s = {st, name, c, rows, cols, (cols + group - 1) / group};
    struct packed_linear *p = xcalloc(1, sizeof *p);
    p->candidate = *c;
    enum rc rc = find_all(&s, p, e);
    if (rc != RC_OK) {
        free(p);
        p = NULL;
    }
    *out = p;
    return rc;
}

struct packed_view packed_linear_view(const struct packed_linear *p) {
    return (struct packed_view){.candidate = p->candidate,
                                .codes = p->codes->data,
                                .scales = p->scales->data,
                                .zeros = p->zeros != NULL ? p->zeros->data : NULL,
                                .parameters = p->scales->type,
                                .group_of = p->order != NULL ? p->order->data : NULL};
}

int64_t packed_linear_bytes(const struct packed_linear *p) {
    return p->codes->bytes + p->scales->bytes + (p->zeros != NULL ? p->zeros->bytes : 0) +
           (p->order != NULL ? p->order->bytes : 0);
}
