#include "worker/pipeline/stored.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formats.h"

static const float f16_max = 65504;

enum rc stored_copy(struct stored *s, const struct st_tensor *tensor, struct err *e) {
    if (!tensor || s->values) return RC_OK;
    void *values = malloc((size_t)tensor->bytes);
    if (!values) return err_set(e, RC_NO_MEMORY, "no memory for a copy of %s", tensor->name);
    memcpy(values, tensor->data, (size_t)tensor->bytes);
    *s = (struct stored){values, tensor->type, tensor->count};
    return RC_OK;
}

void stored_release(struct stored *s) {
    free(s->values);
    *s = (struct stored){0};
}

int64_t stored_bytes(const struct stored *s) {
    return s->values ? s->count * (int64_t)dtype_size(s->type) : 0;
}

float stored_get(const struct stored *s, int64_t i) {
    if (s->type == DTYPE_F32) return ((const float *)s->values)[i];
    uint16_t half = ((const uint16_t *)s->values)[i];
    return s->type == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

void stored_set(struct stored *s, int64_t i, float value) {
    if (s->type == DTYPE_F32)
        ((float *)s->values)[i] = value;
    else
        ((uint16_t *)s->values)[i] = s->type == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
}

void stored_scale_columns(struct stored *s, int64_t cols, const float *by_col) {
    for (int64_t i = 0; i < s->count; i++)
        stored_set(s, i, stored_get(s, i) * by_col[i % cols]);
}

void stored_scale_rows(struct stored *s, int64_t cols, int64_t first, int64_t rows, const float *by_row) {
    for (int64_t n = 0; n < rows; n++)
        for (int64_t k = 0; k < cols; k++) {
            int64_t i = (first + n) * cols + k;
            stored_set(s, i, stored_get(s, i) * by_row[n]);
        }
}

float round_to(enum dtype type, float value) {
    if (type == DTYPE_BF16) return bf16_to_f32(f32_to_bf16(value));
    if (type != DTYPE_F16) return value;
    return f16_to_f32(f32_to_f16(fmaxf(fminf(value, f16_max), -f16_max)));
}
