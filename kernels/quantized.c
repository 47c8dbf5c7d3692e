#include "kernels/backend.h"
#include "kernels/check.h"

enum rc quantized_alloc(const struct backend *b, struct backend_state *state, int64_t rows, int64_t cols,
                        const struct candidate *candidate, struct quantized *out, struct err *e) {
    *out = (struct quantized){0};
    TRY(check_candidate(candidate, e));
    if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX)
        return err_set(e, RC_INVALID, "[%lld, %lld] is no Linear", (long long)rows, (long long)cols);
    int64_t group = candidate->group > 0 && candidate->group < cols ? candidate->group : cols;
    struct quantized q = {.rows = rows, .cols = cols, .groups = (cols + group - 1) / group};
    q.bits = candidate->bits;
    q.group = (int)group;
    void *codes = NULL, *scale = NULL, *zero = NULL;
    size_t parameters = (size_t)(rows * q.groups) * sizeof(float);
    enum rc rc = b->alloc(state, (size_t)(rows * cols), &codes, e);
    if (rc == RC_OK) rc = b->alloc(state, parameters, &scale, e);
    if (rc == RC_OK) rc = b->alloc(state, parameters, &zero, e);
    q.codes = codes;
    q.scale = scale;
    q.zero = zero;
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
    *q = (struct quantized){0};
}
