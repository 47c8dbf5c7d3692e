/* A Linear of a quantized model: where its packed weights lie in the model's files, and what they are worth.
 *
 * Tensors beside each other, as compressed-tensors names them (docs/formats.md): weight_packed, weight_scale,
 * weight_zero_point (asymmetric), weight_shape, weight_g_idx (where columns are out of order); weight_zero in place of
 * weight_zero_point for float zeros. Of fp8: weight, as F8_E4M3, and weight_scale. Everything is checked when the model
 * is opened. Any thread. */
#ifndef HSAQ_WORKER_MODEL_PACKED_H
#define HSAQ_WORKER_MODEL_PACKED_H

#include "base/candidate.h"
#include "base/err.h"
#include "kernels/formats.h"
#include "worker/model/safetensors.h"

struct packed_linear {
    struct candidate candidate; /* METHOD_RTN, whatever made it; or METHOD_FP8 */
    const struct st_tensor *codes, *scales;
    const struct st_tensor *zeros; /* NULL when symmetric */
    const struct st_tensor *order; /* the group of each column; NULL: in order */
};

/* The tensors of the [rows, cols] Linear `name`. RC_INVALID naming file and tensor when one is missing or does not fit.
 * The caller frees *out. */
enum rc packed_linear_find(const struct safetensors *st, const char *name, const struct candidate *c, int64_t rows,
                           int64_t cols, struct packed_linear **out, struct err *e);

struct packed_view packed_linear_view(const struct packed_linear *p);
int64_t packed_linear_bytes(const struct packed_linear *p);

#endif
