/* config.json's quantization_config → how each Linear is stored: the groups of schemes that compressed-tensors writes,
 * and this project's own dialect of them.
 *
 * compressed-tensors: format `pack-quantized`, weights of type int in groups or channels, and `float-quantized` (or
 * `naive-quantized`), 8-bit floats with a scale a row or one; static, without quantized activations; what else there
 * is, is RC_UNSUPPORTED, naming the field. Own ("quant_method": "hsaqd"): the same members, and in `weights` also
 * "zero": "float" and "layout": "hqq". docs/formats.md has both. The file is hostile: RC_INVALID for what makes no
 * sense, with the member's pointer, and matching its patterns takes a bounded time. One thread. */
#ifndef HSAQ_WORKER_MODEL_QUANT_CONFIG_H
#define HSAQ_WORKER_MODEL_QUANT_CONFIG_H

#include <jansson.h>

#include "base/candidate.h"
#include "base/err.h"

struct quant_config;

/* `config`: what config.json holds. *out is NULL when it says nothing of quantization. */
enum rc quant_config_read(const json_t *config, struct quant_config **out, struct err *e);
void quant_config_free(struct quant_config *q);

/* As the package does: `ignore` first, then a target that is the Linear's name, then the first (by its text) whose
 * regular expression matches from the name's start, then "Linear". *out is what the Linear is stored as, of METHOD_RTN
 * whatever made it, or METHOD_FP8; NULL: it is not quantized. */
enum rc quant_config_match(struct quant_config *q, const char *linear, const struct candidate **out, struct err *e);

const char *quant_config_method(const struct quant_config *q); /* one of: */
extern const char quant_method_ct[], quant_method_own[];       /* "compressed-tensors", "hsaqd" */

#endif
