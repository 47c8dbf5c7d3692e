#include <stdlib.h>

#include "kernels/backend.h"
#include "kernels/check.h"

enum rc quantized_alloc(const struct backend *b, struct backend_state *state, int64_t rows, int64_t cols,
                        const struct candidate *candidate, struct quantized *out, struct err *e) {
    *out = (struct quantized){0};
    TRY(check_candidate(candidate, e));
    if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX)
        return err_set(e, RC_INVALID, "[%lld, %lld] is no Linear", (long long)rows, (long long)cols);
    bool indexed = candidate_uses_gptq(candidate) && candidate->order == ORDER_ACTIVATION;
    int64_t group = candidate->group > 0 && candidate->group < cols ? candidate->group : cols;
    struct quantized q = {.rows = rows, .cols = cols, .groups = (cols + group - 1) / group};
    q.bits = candidate->bits;
    q.group = (int)group;
    q.fp8 = candidate->method == METHOD_FP8;
    void *codes = NULL, *scale = NULL, *zero = NULL, *group_of = NULL;
    size_t parameters = (size_t)(rows * q.groups) * sizeof(float);
    enum rc rc = b->alloc(state, (size_t)(rows * cols), &codes, e);
    if (rc == RC_OK) rc = b->alloc(state, parameters, &scale, e);
    if (rc == RC_OK) rc = b->alloc(state, parameters, &zero, e);
    if (rc == RC_OK && indexed) rc = b->alloc(state, (size_t)cols * sizeof(int32_t), &group_of, e);
    q.codes = codes;
    q.scale = scale;
    q.zero = zero;
    q.group_of = group_of;
    if (rc == RC_OK)
        *out = q;
    else
        quantized_release(b, state, &q);
    return rc;
}

void quantized_release(const struct backend *b, struct backend_state *state, struct quantized *q) {
    b->free(state, q->codes);
    b->free(state, q->scale);
    b->free(state, q->zero);
    b->free(state, q->group_of);
    *q = (struct quantized){0};
}

enum rc factor_alloc(const struct backend *b, struct backend_state *state, int64_t cols, struct factor *out,
                     struct err *e) {
    *out = (struct factor){0};
    if (cols < 1 || cols > INT32_MAX) return err_set(e, RC_INVALID, "%lld channels are no input", (long long)cols);
    struct factor f = {.cols = cols, .order = malloc((size_t)cols * sizeof *f.order), .dead = malloc((size_t)cols)};
    void *upper = NULL;
    enum rc rc = f.order && f.dead
                     ? b->alloc(state, (size_t)(cols * cols) * sizeof *f.upper, &upper, e)
                     : err_set(e, RC_NO_MEMORY, "no memory for the order of %lld columns", (long long)cols);
    f.upper = upper;
    if (rc == RC_OK)
        *out = f;
    else
        factor_release(b, state, &f);
    return rc;
}

void factor_release(const struct backend *b, struct backend_state *state, struct factor *f) {
    b->free(state, f->upper);
    free(f->order);
    free(f->dead);
    *f = (struct factor){0};
}
