#include "kernels/formats.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/check.h"
#include "kernels/cpu/fp8.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packed words are stored as they lie in memory");

enum { WORD_BITS = 32, WORD_BYTES = 4, PARAMETER_BYTES = 2, HALF_BYTES_PER_WEIGHT = 2, BITS_MAX = 8 };

/* LAYOUT_HQQ: how many codes share a container, and its bytes. */
static const struct {
    int codes, bytes;
} containers[BITS_MAX + 1] = {
    [2] = {4, 1}, [3] = {10, 4}, [4] = {2, 1}, [5] = {1, 1}, [6] = {1, 1}, [7] = {1, 1}, [8] = {1, 1},
};
_Static_assert(4 * 2 <= 8 && 10 * 3 <= WORD_BITS && 2 * 4 <= 8, "codes fit their containers");

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t group_length(const struct candidate *c, int64_t cols) {
    return c->group > 0 && c->group < cols ? c->group : cols;
}

/* Scales that METHOD_FP8 stores. */
static int64_t fp8_scales(const struct candidate *c, int64_t rows) {
    return c->fp8_scale == FP8_PER_TENSOR ? 1 : rows;
}

/* Whether its columns' groups are stored. */
static bool indexed(const struct candidate *c) {
    return candidate_uses_gptq(c) && c->order == ORDER_ACTIVATION;
}

static int64_t dense_row_bytes(int64_t cols, int bits) {
    return ceil_div(cols * bits, WORD_BITS) * WORD_BYTES;
}

static struct packed dense_sizes(const struct candidate *c, int64_t rows, int64_t cols) {
    int64_t groups = ceil_div(cols, group_length(c, cols));
    struct packed p = {.layout = LAYOUT_DENSE, .scales_bytes = rows * groups * PARAMETER_BYTES};
    p.codes_bytes = rows * dense_row_bytes(cols, c->bits);
    if (c->symmetric) return p;
    p.zeros_bytes =
        c->zero == ZERO_INTEGER ? ceil_div(rows * c->bits, WORD_BITS) * WORD_BYTES * groups : p.scales_bytes;
    return p;
}

static struct packed hqq_sizes(const struct candidate *c, int64_t rows, int64_t cols) {
    int64_t group = group_length(c, cols), groups = rows * ceil_div(cols, group);
    struct packed p = {.layout = LAYOUT_HQQ, .scales_bytes = groups * PARAMETER_BYTES};
    p.codes_bytes = ceil_div(groups, containers[c->bits].codes) * group * containers[c->bits].bytes;
    p.zeros_bytes = c->symmetric ? 0 : p.scales_bytes;
    return p;
}

struct packed packed_sizes(const struct candidate *c, int64_t rows, int64_t cols) {
    if (rows < 1 || cols < 1) return (struct packed){.layout = c->layout};
    if (c->method == METHOD_NONE)
        return (struct packed){.layout = c->layout, .codes_bytes = rows * cols * HALF_BYTES_PER_WEIGHT};
    if (c->method == METHOD_FP8)
        return (struct packed){
            .layout = c->layout, .codes_bytes = rows * cols, .scales_bytes = fp8_scales(c, rows) * PARAMETER_BYTES};
    struct packed p = c->layout == LAYOUT_HQQ ? hqq_sizes(c, rows, cols) : dense_sizes(c, rows, cols);
    if (indexed(c)) p.group_of_bytes = cols * WORD_BYTES;
    return p;
}

int64_t packed_bytes(const struct packed *p) {
    return p->codes_bytes + p->scales_bytes + p->zeros_bytes + p->group_of_bytes;
}

/* A code of at most 8 bits at any bit of a little-endian stream touches at most two bytes. */
static void put_code(uint8_t *stream, int64_t bit, unsigned code) {
    unsigned shifted = code << (bit % 8);
    stream[bit / 8] |= (uint8_t)shifted;
    if (shifted > 0xff) stream[bit / 8 + 1] |= (uint8_t)(shifted >> 8);
}

static unsigned get_code(const uint8_t *stream, int64_t bit, int bits) {
    unsigned pair = stream[bit / 8];
    if (bit % 8 + bits > 8) pair |= (unsigned)stream[bit / 8 + 1] << 8;
    return pair >> (bit % 8) & ((1u << bits) - 1);
}

/* Eight codes of a byte each ↔ the 8·b bits that they take in a stream, which are b whole bytes: neighbours are pushed
 * together within 16 bits, then 32, then 64. */
static uint64_t squeeze(uint64_t codes, int b) {
    const uint64_t odd16 = 0xff00ff00ff00ff00u, odd32 = 0xffff0000ffff0000u;
    codes = (codes & ~odd16) | (codes & odd16) >> (8 - b);
    codes = (codes & ~odd32) | (codes & odd32) >> (16 - 2 * b);
    return (codes & 0xffffffffu) | codes >> 32 << 4 * b;
}

static uint64_t spread(uint64_t bits, int b) {
    const uint64_t low32 = (1u << 2 * b) - 1, low16 = (1u << b) - 1;
    bits = (bits & ((1ull << 4 * b) - 1)) | bits >> 4 * b << 32;
    bits = (bits & low32 * 0x100000001u) | (bits & (low32 << 2 * b) * 0x100000001u) << (16 - 2 * b);
    return (bits & low16 * 0x1000100010001u) | (bits & (low16 << b) * 0x1000100010001u) << (8 - b);
}

enum { EIGHT = 8 };

/* Of a row's eights, how many are whole and lie where eight bytes can be read or written at once, though only `bits` of
 * them are theirs: what follows in the row is written later. */
static int64_t wide_eights(int64_t count, int bits) {
    int64_t whole = count / EIGHT, bytes = ceil_div(count * bits, 8);
    int64_t wide = bytes < EIGHT ? 0 : (bytes - EIGHT) / bits + 1;
    return wide < whole ? wide : whole;
}

/* The bytes of a row's stream up to its last code; zeros fill it up to whole words. */
static void pack_row(const uint8_t *codes, int64_t count, int bits, uint8_t *stream) {
    int64_t wide = wide_eights(count, bits);
    uint64_t eight;
    for (int64_t i = 0; i < wide; i++) {
        memcpy(&eight, codes + i * EIGHT, sizeof eight);
        eight = squeeze(eight, bits);
        memcpy(stream + i * bits, &eight, sizeof eight);
    }
    for (int64_t k = wide * EIGHT; k < count; k += EIGHT) {
        int64_t n = count - k < EIGHT ? count - k : EIGHT;
        eight = 0;
        memcpy(&eight, codes + k, (size_t)n);
        eight = squeeze(eight, bits);
        memcpy(stream + k / EIGHT * bits, &eight, (size_t)ceil_div(n * bits, 8));
    }
}

static void unpack_row(const uint8_t *stream, int64_t count, int bits, uint8_t *codes) {
    int64_t wide = wide_eights(count, bits);
    uint64_t eight, mask = bits < 8 ? (1ull << EIGHT * bits) - 1 : UINT64_MAX;
    for (int64_t i = 0; i < wide; i++) {
        memcpy(&eight, stream + i * bits, sizeof eight);
        eight = spread(eight & mask, bits);
        memcpy(codes + i * EIGHT, &eight, sizeof eight);
    }
    for (int64_t k = wide * EIGHT; k < count; k += EIGHT) {
        int64_t n = count - k < EIGHT ? count - k : EIGHT;
        eight = 0;
        memcpy(&eight, stream + k / EIGHT * bits, (size_t)ceil_div(n * bits, 8));
        eight = spread(eight, bits);
        memcpy(codes + k, &eight, (size_t)n);
    }
}

static void pack_dense(const struct quantized *q, uint8_t *codes) {
    int64_t row_bytes = dense_row_bytes(q->cols, q->bits);
#pragma omp parallel for
    for (int64_t n = 0; n < q->rows; n++)
        pack_row(q->codes + n * q->cols, q->cols, q->bits, codes + n * row_bytes);
}

static void unpack_dense(const uint8_t *codes, struct quantized *q) {
    int64_t row_bytes = dense_row_bytes(q->cols, q->bits);
#pragma omp parallel for
    for (int64_t n = 0; n < q->rows; n++)
        unpack_row(codes + n * row_bytes, q->cols, q->bits, q->codes + n * q->cols);
}

/* Integer zeros [N, G] ↔ words [ceil(N·b/32), G]: column g is a bitstream along N whose words lie G apart. */
static void pack_zeros(const struct quantized *q, uint8_t *zeros) {
#pragma omp parallel for
    for (int64_t g = 0; g < q->groups; g++)
        for (int64_t n = 0; n < q->rows; n++)
            for (int b = 0; b < q->bits; b++) {
                int64_t bit = n * q->bits + b;
                uint8_t *word = zeros + (bit / WORD_BITS * q->groups + g) * WORD_BYTES;
                unsigned zero = (unsigned)q->zero[n * q->groups + g];
                word[bit % WORD_BITS / 8] |= (uint8_t)((zero >> b & 1) << (bit % 8));
            }
}

static unsigned zero_at(const uint8_t *zeros, int64_t groups, int bits, int64_t n, int64_t g) {
    unsigned zero = 0;
    for (int b = 0; b < bits; b++) {
        int64_t bit = n * bits + b;
        const uint8_t *word = zeros + (bit / WORD_BITS * groups + g) * WORD_BYTES;
        zero |= (unsigned)(word[bit % WORD_BITS / 8] >> (bit % 8) & 1) << b;
    }
    return zero;
}

static void unpack_zeros(const uint8_t *zeros, struct quantized *q) {
#pragma omp parallel for
    for (int64_t n = 0; n < q->rows; n++)
        for (int64_t g = 0; g < q->groups; g++)
            q->zero[n * q->groups + g] = (float)zero_at(zeros, q->groups, q->bits, n, g);
}

/* Whether every code has but `bits` bits; all are read, so that the compiler takes many at a time. */
static bool codes_fit(const struct quantized *q) {
    unsigned any = 0;
#pragma omp parallel for reduction(| : any)
    for (int64_t i = 0; i < q->rows * q->cols; i++)
        any |= q->codes[i];
    return any >> q->bits == 0;
}

static enum rc check_codes(const struct quantized *q, struct err *e) {
    if (codes_fit(q)) return RC_OK;
    int64_t i = 0;
    while (q->codes[i] >> q->bits == 0)
        i++;
    return err_set(e, RC_INVALID, "the code at row %lld, column %lld is %d, which %d bits cannot hold",
                   (long long)(i / q->cols), (long long)(i % q->cols), q->codes[i], q->bits);
}

/* Where LAYOUT_HQQ keeps code k of row n: the groups are the rows of one matrix, cut into as many blocks of rows as a
 * container holds codes; block 0 lies in the highest bits. A short last group is filled up with zeros. */
struct place {
    int64_t container;
    int shift;
};

static struct place hqq_place(const struct quantized *q, int64_t n, int64_t k) {
    int codes = containers[q->bits].codes;
    int64_t step = ceil_div(q->rows * q->groups, codes), row = n * q->groups + k / q->group;
    return (struct place){.container = row % step * q->group + k % q->group,
                          .shift = (int)(codes - 1 - row / step) * q->bits};
}

/* The codes of row n, and the bits of all together: a container of eight bits may hold more than it should. */
static unsigned unpack_hqq_row(const uint8_t *stream, const struct quantized *q, int64_t n, uint8_t *codes) {
    int bytes = containers[q->bits].bytes, stored_bits = containers[q->bits].codes == 1 ? 8 : q->bits;
    unsigned any = 0;
    for (int64_t from = 0; from < q->cols; from += q->group) {
        struct place p = hqq_place(q, n, from);
        for (int64_t k = from; k < q->cols && k < from + q->group; k++) {
            unsigned code = get_code(stream + (p.container + k - from) * bytes, p.shift, stored_bits);
            codes[k] = (uint8_t)code;
            any |= code;
        }
    }
    return any;
}

static void pack_hqq(const struct quantized *q, uint8_t *codes) {
    int bytes = containers[q->bits].bytes;
    for (int64_t n = 0; n < q->rows; n++)
        for (int64_t k = 0; k < q->cols; k++) {
            struct place p = hqq_place(q, n, k);
            put_code(codes + p.container * bytes, p.shift, q->codes[n * q->cols + k]);
        }
}

static enum rc unpack_hqq(const uint8_t *codes, struct quantized *q, struct err *e) {
#pragma omp parallel for
    for (int64_t n = 0; n < q->rows; n++)
        unpack_hqq_row(codes, q, n, q->codes + n * q->cols);
    return check_codes(q, e);
}

static void put_halves(const float *values, int64_t count, uint16_t (*narrow)(float), uint8_t *out) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = narrow(values[i]);
        memcpy(out + i * PARAMETER_BYTES, &half, sizeof half);
    }
}

static void get_halves(const uint8_t *in, int64_t count, float (*widen)(uint16_t), float *values) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, in + i * PARAMETER_BYTES, sizeof half);
        values[i] = widen(half);
    }
}

static void put_parameters(const float *values, int64_t count, uint8_t *out) {
    put_halves(values, count, f32_to_f16, out);
}

static void get_parameters(const uint8_t *in, int64_t count, float *values) {
    get_halves(in, count, f16_to_f32, values);
}

static bool integer_zeros(const struct candidate *c) {
    return !c->symmetric && c->zero == ZERO_INTEGER && c->layout == LAYOUT_DENSE;
}

/* The quantized Linear is one that this candidate makes. */
static enum rc check_fit(const struct quantized *q, const struct candidate *c, struct err *e) {
    TRY(check_candidate(c, e));
    TRY(check_quantized(q, e));
    if (q->bits != c->bits || q->group != group_length(c, q->cols) || q->fp8 != (c->method == METHOD_FP8) ||
        (q->group_of != NULL) != indexed(c))
        return err_set(e, RC_INVALID, "a Linear of %d bits in groups of %d is not what the candidate makes", q->bits,
                       q->group);
    return RC_OK;
}

static enum rc check_groups(const struct quantized *q, struct err *e) {
    for (int64_t k = 0; q->group_of != NULL && k < q->cols; k++)
        if (q->group_of[k] < 0 || q->group_of[k] >= q->groups)
            return err_set(e, RC_INVALID, "column %lld is in group %d of %lld", (long long)k, (int)q->group_of[k],
                           (long long)q->groups);
    return RC_OK;
}

static enum rc check_values(const struct quantized *q, const struct candidate *c, struct err *e) {
    TRY(check_codes(q, e));
    for (int64_t i = 0; integer_zeros(c) && i < q->rows * q->groups; i++)
        if (!(q->zero[i] >= 0 && q->zero[i] < (float)(1 << q->bits) && q->zero[i] == (float)(int)q->zero[i]))
            return err_set(e, RC_INVALID, "the zero at row %lld, group %lld is %g, no integer of %d bits",
                           (long long)(i / q->groups), (long long)(i % q->groups), (double)q->zero[i], q->bits);
    return check_groups(q, e);
}

static bool complete(const struct packed *p) {
    return p->codes != NULL && p->scales != NULL && (p->zeros != NULL || p->zeros_bytes == 0) &&
           (p->group_of != NULL || p->group_of_bytes == 0);
}

static enum rc buffers(struct packed *p, struct err *e) {
    p->codes = calloc(1, (size_t)p->codes_bytes);
    p->scales = calloc(1, (size_t)p->scales_bytes);
    p->zeros = p->zeros_bytes > 0 ? calloc(1, (size_t)p->zeros_bytes) : NULL;
    p->group_of = p->group_of_bytes > 0 ? calloc(1, (size_t)p->group_of_bytes) : NULL;
    if (complete(p)) return RC_OK;
    long long bytes = packed_bytes(p);
    packed_release(p);
    return err_set(e, RC_NO_MEMORY, "no memory for %lld bytes of packed weights", bytes);
}

enum rc pack(const struct quantized *q, const struct candidate *c, struct packed *out, struct err *e) {
    *out = (struct packed){0};
    TRY(check_fit(q, c, e));
    TRY(check_values(q, c, e));
    *out = packed_sizes(c, q->rows, q->cols);
    TRY(buffers(out, e));
    if (c->method == METHOD_FP8) {
        memcpy(out->codes, q->codes, (size_t)out->codes_bytes);
        put_halves(q->scale, fp8_scales(c, q->rows), f32_to_bf16, out->scales);
        return RC_OK;
    }
    if (out->group_of != NULL) memcpy(out->group_of, q->group_of, (size_t)out->group_of_bytes);
    if (c->layout == LAYOUT_HQQ)
        pack_hqq(q, out->codes);
    else
        pack_dense(q, out->codes);
    put_parameters(q->scale, q->rows * q->groups, out->scales);
    if (integer_zeros(c))
        pack_zeros(q, out->zeros);
    else if (out->zeros != NULL)
        put_parameters(q->zero, q->rows * q->groups, out->zeros);
    return RC_OK;
}

static enum rc check_sizes(const struct packed *p, const struct packed *sizes, struct err *e) {
    bool fits = p->layout == sizes->layout && p->codes_bytes == sizes->codes_bytes &&
                p->scales_bytes == sizes->scales_bytes && p->zeros_bytes == sizes->zeros_bytes &&
                p->group_of_bytes == sizes->group_of_bytes;
    if (fits && complete(p)) return RC_OK;
    return err_set(e, RC_INVALID,
                   "packed buffers of %lld, %lld, %lld and %lld bytes (codes, scales, zeros, groups of columns) where "
                   "%lld, %lld, %lld and %lld are needed",
                   (long long)p->codes_bytes, (long long)p->scales_bytes, (long long)p->zeros_bytes,
                   (long long)p->group_of_bytes, (long long)sizes->codes_bytes, (long long)sizes->scales_bytes,
                   (long long)sizes->zeros_bytes, (long long)sizes->group_of_bytes);
}

static void unpack_fp8(const struct packed *p, struct quantized *out) {
    int64_t scales = p->scales_bytes / PARAMETER_BYTES;
    memcpy(out->codes, p->codes, (size_t)p->codes_bytes);
    get_halves(p->scales, scales, bf16_to_f32, out->scale);
    for (int64_t n = scales; n < out->rows; n++)
        out->scale[n] = out->scale[0];
    memset(out->zero, 0, (size_t)out->rows * sizeof *out->zero);
}

enum rc unpack(const struct packed *p, const struct candidate *c, struct quantized *out, struct err *e) {
    TRY(check_fit(out, c, e));
    struct packed sizes = packed_sizes(c, out->rows, out->cols);
    TRY(check_sizes(p, &sizes, e));
    if (c->method == METHOD_FP8) {
        unpack_fp8(p, out);
        return RC_OK;
    }
    if (c->layout == LAYOUT_HQQ)
        TRY(unpack_hqq(p->codes, out, e));
    else
        unpack_dense(p->codes, out);
    get_parameters(p->scales, out->rows * out->groups, out->scale);
    for (int64_t i = 0; c->symmetric && i < out->rows * out->groups; i++)
        out->zero[i] = (float)(1 << (c->bits - 1));
    if (integer_zeros(c))
        unpack_zeros(p->zeros, out);
    else if (!c->symmetric)
        get_parameters(p->zeros, out->rows * out->groups, out->zero);
    if (out->group_of != NULL) memcpy(out->group_of, p->group_of, (size_t)p->group_of_bytes);
    return check_groups(out, e);
}

/* --- packed → values, without the steps between --- */

static float parameter_at(const void *values, enum dtype type, int64_t i) {
    const char *at = (const char *)values + (size_t)i * dtype_size(type);
    float value;
    uint16_t half;
    memcpy(type == DTYPE_F32 ? (void *)&value : (void *)&half, at, dtype_size(type));
    return type == DTYPE_F32 ? value : type == DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

static float zero_of(const struct packed_view *v, int64_t groups, int64_t n, int64_t g) {
    if (v->candidate.symmetric) return (float)(1 << (v->candidate.bits - 1));
    if (integer_zeros(&v->candidate)) return (float)zero_at(v->zeros, groups, v->candidate.bits, n, g);
    return parameter_at(v->zeros, v->parameters, n * groups + g);
}

static void expand_in_order(const struct packed_view *v, const struct quantized *q, int64_t n, const uint8_t *codes,
                            float *out) {
    for (int64_t g = 0; g < q->groups; g++) {
        float scale = parameter_at(v->scales, v->parameters, n * q->groups + g), zero = zero_of(v, q->groups, n, g);
        int64_t end = (g + 1) * q->group < q->cols ? (g + 1) * q->group : q->cols;
        for (int64_t k = g * q->group; k < end; k++)
            out[k] = ((float)codes[k] - zero) * scale;
    }
}

static void expand_by_index(const struct packed_view *v, const struct quantized *q, int64_t n, const uint8_t *codes,
                            float *out) {
    for (int64_t k = 0; k < q->cols; k++) {
        int32_t g;
        memcpy(&g, (const char *)v->group_of + (size_t)k * sizeof g, sizeof g);
        float scale = parameter_at(v->scales, v->parameters, n * q->groups + g);
        out[k] = ((float)codes[k] - zero_of(v, q->groups, n, g)) * scale;
    }
}

static void expand_fp8(const struct packed_view *v, const struct quantized *q, int64_t n, float *out) {
    const uint8_t *codes = (const uint8_t *)v->codes + n * q->cols;
    float scale = parameter_at(v->scales, v->parameters, v->candidate.fp8_scale == FP8_PER_TENSOR ? 0 : n);
    for (int64_t k = 0; k < q->cols; k++)
        out[k] = e4m3_decode(codes[k]) * scale;
}

/* Row n as fp32; false where a code has more bits than it may. */
static bool expand_row(const struct packed_view *v, const struct quantized *q, int64_t n, uint8_t *codes, float *out) {
    unsigned any = 0;
    if (v->candidate.method == METHOD_FP8) {
        expand_fp8(v, q, n, out);
        return true;
    }
    if (v->candidate.layout == LAYOUT_HQQ)
        any = unpack_hqq_row(v->codes, q, n, codes);
    else
        unpack_row((const uint8_t *)v->codes + n * dense_row_bytes(q->cols, q->bits), q->cols, q->bits, codes);
    if (v->group_of != NULL)
        expand_by_index(v, q, n, codes, out);
    else
        expand_in_order(v, q, n, codes, out);
    return any >> q->bits == 0;
}

static void put_row(const float *values, int64_t count, struct mat out, int64_t n) {
    uint16_t *halves = (uint16_t *)out.data + n * out.stride;
    for (int64_t k = 0; k < count; k++)
        halves[k] = f32_to_bf16(values[k]);
}

/* One thread's part, with memory of its own. Rows go to threads in the order they come. */
static enum rc expand_rows(const struct packed_view *v, const struct quantized *q, struct mat out) {
    enum rc rc = RC_OK;
    float *values = calloc((size_t)q->cols, sizeof *values + 1);
    if (values == NULL) rc = RC_NO_MEMORY;
#pragma omp for
    for (int64_t n = 0; n < q->rows; n++) {
        if (values == NULL) continue;
        float *row = out.type == DTYPE_F32 ? f32_row(out, n) : values;
        if (!expand_row(v, q, n, (uint8_t *)(values + q->cols), row)) rc = RC_INVALID;
        if (out.type != DTYPE_F32) put_row(row, q->cols, out, n);
    }
    free(values);
    return rc;
}

enum rc packed_expand(const struct packed_view *v, struct mat out, struct err *e) {
    TRY(check_candidate(&v->candidate, e));
    if (out.type != DTYPE_F32 && out.type != DTYPE_BF16)
        return err_set(e, RC_UNSUPPORTED, "packed weights become fp32 or bf16");
    int64_t group = group_length(&v->candidate, out.cols);
    struct quantized q = {.rows = out.rows, .cols = out.cols, .groups = ceil_div(out.cols, group)};
    q.bits = v->candidate.bits;
    q.group = (int)group;
    unsigned worst = RC_OK;
#pragma omp parallel reduction(max : worst)
    {
        enum rc rc = expand_rows(v, &q, out);
        worst = rc > worst ? rc : worst;
    }
    if (worst == RC_NO_MEMORY)
        return err_set(e, RC_NO_MEMORY, "no memory for a row of %lld weights", (long long)q.cols);
    return worst == RC_OK ? RC_OK : err_set(e, RC_INVALID, "codes have more than %d bits", q.bits);
}

void packed_release(struct packed *p) {
    free(p->codes);
    free(p->scales);
    free(p->zeros);
    free(p->group_of);
    *p = (struct packed){0};
}

static uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Drops the low `shift` bits, ties to even; a carry runs on into the exponent, as it should. */
static uint32_t round_shift(uint32_t bits, int shift) {
    uint32_t half = 1u << (shift - 1), odd = bits >> shift & 1;
    return (bits + half - 1 + odd) >> shift;
}

enum { F32_MANTISSA = 23, F16_MANTISSA = 10, F16_INFINITY = 0x7c00, F16_QUIET = 0x0200, BIAS_GAP = 127 - 15 };

uint16_t f32_to_f16(float value) {
    uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const int shift = F32_MANTISSA - F16_MANTISSA;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | F16_INFINITY | F16_QUIET | (magnitude >> shift & (F16_QUIET - 1)));
    int exponent = (int)(magnitude >> F32_MANTISSA) - BIAS_GAP;
    if (exponent >= 0x1f) return (uint16_t)(sign | F16_INFINITY);
    if (exponent > 0) return (uint16_t)(sign | round_shift(magnitude - ((uint32_t)BIAS_GAP << F32_MANTISSA), shift));
    if (exponent < -F16_MANTISSA) return sign; /* below half of the smallest subnormal */
    uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    return (uint16_t)(sign | round_shift(mantissa, shift + 1 - exponent));
}

float f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    const int shift = F32_MANTISSA - F16_MANTISSA;
    if (magnitude >= F16_INFINITY) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << shift);
    if (magnitude >= 0x0400)
        return float_from_bits(sign | ((magnitude << shift) + ((uint32_t)BIAS_GAP << F32_MANTISSA)));
    float value = (float)magnitude * 0x1p-24f;
    return sign != 0 ? -value : value;
}

uint16_t f32_to_bf16(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x0040u);
    return (uint16_t)round_shift(bits, 16);
}

float bf16_to_f32(uint16_t half) {
    return float_from_bits((uint32_t)half << 16);
}
