/* Bit layouts of packed weights, declared once. Host memory; pure functions; little-endian.
 *
 * LAYOUT_DENSE (compressed-tensors `pack-quantized`): codes int32 [N, ceil(K·b/32)], an LSB-first bitstream along K per
 *   row; integer zeros int32 [ceil(N·b/32), G], packed the same way along N; scales (and float zeros) 16-bit [N, G].
 * LAYOUT_HQQ (the hqq library's bit packing of its W_q): groups = reshape(−1, group), packed by row blocks:
 *   8, 6, 5 bits: u8; 4: u8, halves (top << 4 | bottom); 2: u8, quarters (<< 6, 4, 2, 0); 3: i32, tenths
 *   (<< 27, 24, …, 0, zero-padded); scales and float zeros 16-bit, one a group.
 * Either: where columns have their groups in another order (g_idx), the group of each, int32 [K].
 * METHOD_FP8: codes u8 [N, K], e4m3; scales bf16 [N], or one for all.
 * packed_bytes is what the buffers really take: the allocation's budget counts these. */
#ifndef HSAQ_KERNELS_FORMATS_H
#define HSAQ_KERNELS_FORMATS_H

#include <stdint.h>

#include "base/candidate.h"
#include "base/err.h"
#include "kernels/backend.h"

struct packed {
    enum layout layout;
    int64_t codes_bytes, scales_bytes, zeros_bytes, group_of_bytes;
    uint8_t *codes, *scales, *zeros, *group_of; /* malloc'ed; NULL where there are none: zeros when symmetric */
};

/* Sizes for a [rows, cols] Linear under a candidate, without data; `none` is 2 bytes a weight. */
struct packed packed_sizes(const struct candidate *c, int64_t rows, int64_t cols);
int64_t packed_bytes(const struct packed *p);

enum rc pack(const struct quantized *q, const struct candidate *c, struct packed *out, struct err *e);
/* Into buffers that quantized_alloc made. RC_INVALID when sizes do not fit. */
enum rc unpack(const struct packed *p, const struct candidate *c, struct quantized *out, struct err *e);
void packed_release(struct packed *p);

/* A packed [N, K] Linear as it lies in a file: at any address, of the sizes that packed_sizes gives, but for parameters
 * of another type. */
struct packed_view {
    struct candidate candidate;
    const void *codes, *scales, *zeros; /* zeros NULL when symmetric */
    enum dtype parameters;              /* of scales and float zeros: F16, BF16 or F32 */
    const void *group_of;               /* int32 [K], each in [0, G): the group of each column; NULL: in order */
};
/* out [N, K] = ŵ in host memory: what unpack and a backend's dequantize give, to the last bit; fp32, or rounded to
 * bf16. On all cores. */
enum rc packed_expand(const struct packed_view *v, struct mat out, struct err *e);

uint16_t f32_to_f16(float value); /* round to nearest even; overflow → ±Inf */
float f16_to_f32(uint16_t half);
uint16_t f32_to_bf16(float value);
float bf16_to_f32(uint16_t half);

#endif
