#include "worker/model/finite.h"

#include <string.h>

/* All bits of the exponent set: NaN or infinite. What remains below it tells which. */
static const uint32_t exponents[] = {[DTYPE_F32] = 0x7f800000, [DTYPE_F16] = 0x7c00, [DTYPE_BF16] = 0x7f80};

static uint32_t bits_at(const struct st_tensor *t, int64_t i) {
    size_t size = dtype_size(t->type);
    uint32_t bits = 0;
    memcpy(&bits, (const char *)t->data + (size_t)i * size, size); /* little-endian, as the file */
    return bits;
}

/* The index of the first value that is not finite, or −1. */
static int64_t first_bad(const struct st_tensor *t) {
    uint32_t exponent = exponents[t->type];
    for (int64_t i = 0; i < t->count; i++)
        if ((bits_at(t, i) & exponent) == exponent) return i;
    return -1;
}

static enum rc check(const struct st_tensor *t, const char *what, struct err *e) {
    int64_t at = t ? first_bad(t) : -1;
    if (at < 0) return RC_OK;
    uint32_t exponent = exponents[t->type], mantissa = (exponent & -exponent) - 1;
    return err_set(e, RC_INVALID, "%s not finite: in %s, element %lld of %s is %s: the file is damaged; fetch it again",
                   what, t->file, (long long)at, t->name, bits_at(t, at) & mantissa ? "NaN" : "infinite");
}

/* Of e4m3: no infinities, two NaN. */
static enum rc check_fp8(const struct st_tensor *t, const char *what, struct err *e) {
    for (int64_t i = 0; i < t->bytes; i++)
        if ((((const uint8_t *)t->data)[i] & 0x7f) == 0x7f)
            return err_set(e, RC_INVALID,
                           "%s not finite: in %s, element %lld of %s is NaN: the file is damaged; fetch it again", what,
                           t->file, (long long)i, t->name);
    return RC_OK;
}

static enum rc check_linear(const struct linear *l, const char *what, struct err *e) {
    const struct packed_linear *p = l->packed;
    TRY(check(l->weight, what, e));
    if (p != NULL) TRY(check(p->scales, what, e));
    if (p != NULL && p->candidate.zero == ZERO_FLOAT) TRY(check(p->zeros, what, e));
    if (p != NULL && p->candidate.method == METHOD_FP8) TRY(check_fp8(p->codes, what, e));
    return check(l->bias, what, e);
}

static enum rc check_block(const struct model *m, const struct block_tensors *b, const char *what, struct err *e) {
    const struct st_tensor *const norms[] = {b->input_norm, b->q_norm, b->k_norm, b->post_norm};
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
        TRY(check(norms[i], what, e));
    for (int i = 0; i < BLOCK_LINEARS_MAX && b->linears[i] >= 0; i++) {
        TRY(check_linear(&m->linears[b->linears[i]], what, e));
    }
    return RC_OK;
}

enum rc model_not_finite(const struct model *model, const char *what, struct err *e) {
    TRY(check(model->embedding, what, e));
    for (int i = 0; i < model->arch.blocks; i++)
        TRY(check_block(model, &model->blocks[i], what, e));
    TRY(check(model->final_norm, what, e));
    TRY(check_linear(&model->linears[model->linear_count - 1], what, e));
    return err_set(e, RC_INVALID, "%s not finite: every weight is, so the activations overflow fp32", what);
}
