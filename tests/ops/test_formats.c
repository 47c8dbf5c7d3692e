/* Packed weights bit for bit as the layouts' owners define them, and 16-bit floats over all their values. */
#include "kernels/formats.h"

#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

static const int bit_widths[] = {2, 3, 4, 5, 6, 8};

enum { WEIGHTS_MAX = 40 * 200, FILLER = 0x5a };

/* A quantized Linear on the host. */
struct linear {
    struct quantized q;
    uint8_t codes[WEIGHTS_MAX];
    float scale[WEIGHTS_MAX], zero[WEIGHTS_MAX];
};

static void linear_shape(struct linear *l, int64_t rows, int64_t cols, const struct candidate *c) {
    int group = c->group > 0 && c->group < cols ? c->group : (int)cols;
    memset(l, FILLER, sizeof *l);
    l->q = (struct quantized){.rows = rows,
                              .cols = cols,
                              .groups = (cols + group - 1) / group,
                              .bits = c->bits,
                              .group = group,
                              .codes = l->codes,
                              .scale = l->scale,
                              .zero = l->zero};
}

/* Random codes, scales that 16 bits hold, and zeros as the candidate stores them. */
static void linear_fill(struct linear *l, const struct candidate *c) {
    for (int64_t i = 0; i < l->q.rows * l->q.cols; i++)
        l->codes[i] = (uint8_t)below(1 << c->bits);
    for (int64_t i = 0; i < l->q.rows * l->q.groups; i++) {
        l->scale[i] = f16_to_f32(f32_to_f16((float)(0.01 + uniform())));
        l->zero[i] = c->zero == ZERO_INTEGER ? (float)below(1 << c->bits) : f16_to_f32(f32_to_f16((float)normal()));
        if (c->symmetric) l->zero[i] = (float)(1 << (c->bits - 1));
    }
}

static unsigned bits_at(const uint8_t *stream, int64_t bit, int bits) {
    unsigned value = 0;
    for (int b = 0; b < bits; b++)
        value |= (unsigned)(stream[(bit + b) / 8] >> ((bit + b) % 8) & 1) << b;
    return value;
}

static uint32_t word_at(const uint8_t *words, int64_t index) {
    uint32_t word;
    memcpy(&word, words + 4 * index, sizeof word);
    return word;
}

static void sizes_are_those_of_the_layouts(void **state) {
    (void)state;
    static const struct {
        struct candidate c;
        int64_t rows, cols, codes, scales, zeros;
    } cases[] = {
        /* dense: rows of whole 32-bit words; float zeros as scales, integer zeros in words along the rows */
        {CANDIDATE(METHOD_RTN, 4, 64, false, ZERO_FLOAT, LAYOUT_DENSE), 8, 128, 8 * 64, 8 * 2 * 2, 8 * 2 * 2},
        {CANDIDATE(METHOD_RTN, 3, 64, false, ZERO_FLOAT, LAYOUT_DENSE), 5, 100, 5 * 40, 5 * 2 * 2, 5 * 2 * 2},
        {CANDIDATE(METHOD_RTN, 4, 64, true, ZERO_FLOAT, LAYOUT_DENSE), 8, 128, 8 * 64, 8 * 2 * 2, 0},
        {CANDIDATE(METHOD_RTN, 4, 64, false, ZERO_INTEGER, LAYOUT_DENSE), 8, 128, 8 * 64, 8 * 2 * 2, 1 * 2 * 4},
        {CANDIDATE(METHOD_RTN, 4, 64, false, ZERO_INTEGER, LAYOUT_DENSE), 9, 128, 9 * 64, 9 * 2 * 2, 2 * 2 * 4},
        {CANDIDATE(METHOD_RTN, 8, 0, false, ZERO_FLOAT, LAYOUT_DENSE), 3, 33, 3 * 36, 3 * 2, 3 * 2},
        {CANDIDATE(METHOD_RTN, 8, 33, false, ZERO_FLOAT, LAYOUT_DENSE), 3, 33, 3 * 36, 3 * 2, 3 * 2},
        {CANDIDATE(METHOD_RTN, 8, 1024, false, ZERO_FLOAT, LAYOUT_DENSE), 3, 33, 3 * 36, 3 * 2, 3 * 2},
        /* hqq: rows × groups of `group` codes, so many to a container */
        {CANDIDATE(METHOD_HQQ, 8, 64, false, ZERO_FLOAT, LAYOUT_HQQ), 8, 128, 16 * 64, 16 * 2, 16 * 2},
        {CANDIDATE(METHOD_HQQ, 6, 64, false, ZERO_FLOAT, LAYOUT_HQQ), 8, 128, 16 * 64, 16 * 2, 16 * 2},
        {CANDIDATE(METHOD_HQQ, 5, 64, false, ZERO_FLOAT, LAYOUT_HQQ), 8, 128, 16 * 64, 16 * 2, 16 * 2},
        {CANDIDATE(METHOD_HQQ, 4, 64, false, ZERO_FLOAT, LAYOUT_HQQ), 8, 128, 8 * 64, 16 * 2, 16 * 2},
        {CANDIDATE(METHOD_HQQ, 2, 64, false, ZERO_FLOAT, LAYOUT_HQQ), 8, 128, 4 * 64, 16 * 2, 16 * 2},
        {CANDIDATE(METHOD_HQQ, 3, 64, false, ZERO_FLOAT, LAYOUT_HQQ), 8, 128, 2 * 64 * 4, 16 * 2, 16 * 2},
        {CANDIDATE(METHOD_HQQ, 3, 64, false, ZERO_FLOAT, LAYOUT_HQQ), 7, 100, 2 * 64 * 4, 14 * 2, 14 * 2},
        {CANDIDATE(METHOD_RTN, 4, 64, true, ZERO_FLOAT, LAYOUT_HQQ), 8, 128, 8 * 64, 16 * 2, 0},
        {{.method = METHOD_NONE, .bits = 16}, 8, 128, 8 * 128 * 2, 0, 0},
        {{.method = METHOD_FP8, .bits = 8}, 8, 33, 8 * 33, 8 * 2, 0},
        {{.method = METHOD_FP8, .bits = 8, .fp8_scale = FP8_PER_TENSOR}, 8, 33, 8 * 33, 2, 0},
        {CANDIDATE(METHOD_RTN, 4, 64, false, ZERO_FLOAT, LAYOUT_DENSE), 1, 1, 4, 2, 2},
        {CANDIDATE(METHOD_RTN, 4, 64, false, ZERO_FLOAT, LAYOUT_DENSE), 0, 128, 0, 0, 0},
        {CANDIDATE(METHOD_RTN, 4, 64, false, ZERO_FLOAT, LAYOUT_DENSE), 8, 0, 0, 0, 0},
    };
    FOR_EACH(i, cases) {
        struct packed p = packed_sizes(&cases[i].c, cases[i].rows, cases[i].cols);
        assert_int_equal(p.layout, cases[i].c.layout);
        assert_int_equal(p.codes_bytes, cases[i].codes);
        assert_int_equal(p.scales_bytes, cases[i].scales);
        assert_int_equal(p.zeros_bytes, cases[i].zeros);
        assert_int_equal(packed_bytes(&p), cases[i].codes + cases[i].scales + cases[i].zeros);
    }
}

/* compressed-tensors: a bitstream along K, lowest bit first, every row from a new word on; zeros likewise along N. */
static void dense_codes_are_a_bitstream_along_each_row(void **state) {
    (void)state;
    enum { N = 37, K = 75 };
    FOR_EACH(b, bit_widths) {
        struct candidate c = CANDIDATE(METHOD_RTN, bit_widths[b], 32, false, ZERO_INTEGER, LAYOUT_DENSE);
        struct linear l;
        struct packed p;
        linear_shape(&l, N, K, &c);
        seed(60);
        linear_fill(&l, &c);
        assert_ok(pack(&l.q, &c, &p, &err));
        int64_t row_bytes = (K * c.bits + 31) / 32 * 4, zero_words = (N * c.bits + 31) / 32;
        assert_int_equal(p.codes_bytes, N * row_bytes);
        for (int n = 0; n < N; n++) {
            for (int k = 0; k < K; k++)
                assert_int_equal(bits_at(p.codes + n * row_bytes, k * c.bits, c.bits), l.codes[n * K + k]);
            for (int64_t bit = K * c.bits; bit < row_bytes * 8; bit++)
                assert_int_equal(bits_at(p.codes + n * row_bytes, bit, 1), 0);
        }
        for (int g = 0; g < l.q.groups; g++)
            for (int64_t bit = 0; bit < zero_words * 32; bit++) {
                unsigned zero = bit / c.bits < N ? (unsigned)l.zero[bit / c.bits * l.q.groups + g] : 0;
                uint32_t word = word_at(p.zeros, bit / 32 * l.q.groups + g);
                assert_int_equal(word >> (bit % 32) & 1, zero >> (bit % c.bits) & 1);
            }
        packed_release(&p);
    }
}

/* The hqq library's BitPack: W_q [rows of groups, group] in 1, 2, 4 or 10 blocks of rows, the first in the top bits. */
static void hqq_codes_lie_in_row_blocks(void **state) {
    (void)state;
    enum { N = 6, K = 40, G = 16, GROUPS = 3, ROWS = N * GROUPS };
    static const struct {
        int bits, blocks, bytes;
    } packings[] = {{8, 1, 1}, {6, 1, 1}, {5, 1, 1}, {4, 2, 1}, {2, 4, 1}, {3, 10, 4}};
    FOR_EACH(i, packings) {
        struct candidate c = CANDIDATE(METHOD_HQQ, packings[i].bits, G, false, ZERO_FLOAT, LAYOUT_HQQ);
        struct linear l;
        struct packed p;
        linear_shape(&l, N, K, &c);
        seed(61);
        linear_fill(&l, &c);
        assert_ok(pack(&l.q, &c, &p, &err));
        int step = (ROWS + packings[i].blocks - 1) / packings[i].blocks;
        assert_int_equal(p.codes_bytes, step * G * packings[i].bytes);
        for (int at = 0; at < step * G; at++) {
            uint32_t want = 0, got = packings[i].bytes == 4 ? word_at(p.codes, at) : p.codes[at];
            for (int block = 0; block < packings[i].blocks; block++) {
                int row = at / G + block * step, k = row % GROUPS * G + at % G;
                uint32_t code = row < ROWS && k < K ? l.codes[row / GROUPS * K + k] : 0;
                want |= code << (packings[i].blocks - 1 - block) * c.bits;
            }
            assert_int_equal(got, want);
        }
        packed_release(&p);
    }
}

static void scales_and_float_zeros_are_halves_in_order(void **state) {
    (void)state;
    enum { N = 3, K = 70 };
    struct candidate c = CANDIDATE(METHOD_RTN, 4, 32, false, ZERO_FLOAT, LAYOUT_DENSE);
    struct linear l;
    struct packed p;
    linear_shape(&l, N, K, &c);
    seed(62);
    linear_fill(&l, &c);
    assert_ok(pack(&l.q, &c, &p, &err));
    for (int i = 0; i < N * 3; i++) {
        uint16_t scale, zero;
        memcpy(&scale, p.scales + 2 * i, 2);
        memcpy(&zero, p.zeros + 2 * i, 2);
        assert_true(f16_to_f32(scale) == l.scale[i] && f16_to_f32(zero) == l.zero[i]);
    }
    packed_release(&p);
    assert_true(p.codes == NULL && p.scales == NULL && p.zeros == NULL && packed_bytes(&p) == 0);
}

static void round_trip(const struct candidate *c, int64_t rows, int64_t cols) {
    struct linear in, out;
    struct packed p;
    linear_shape(&in, rows, cols, c);
    linear_shape(&out, rows, cols, c);
    linear_fill(&in, c);
    assert_ok(pack(&in.q, c, &p, &err));
    assert_ok(unpack(&p, c, &out.q, &err));
    packed_release(&p);
    assert_memory_equal(in.codes, out.codes, sizeof in.codes);
    assert_memory_equal(in.scale, out.scale, sizeof in.scale);
    assert_memory_equal(in.zero, out.zero, sizeof in.zero);
}

static void unpacking_gives_back_what_was_packed(void **state) {
    (void)state;
    static const struct { int64_t rows, cols; } sizes[] = {{1, 1}, {3, 17}, {7, 64}, {40, 200}};
    static const int groups[] = {16, 64, 0};
    static const struct {
        bool symmetric;
        enum zero_type zero;
    } kinds[] = {{false, ZERO_FLOAT}, {false, ZERO_INTEGER}, {true, ZERO_FLOAT}};
    seed(63);
    FOR_EACH(b, bit_widths) FOR_EACH(g, groups) FOR_EACH(k, kinds) FOR_EACH(s, sizes) for (int l = 0; l < 2; l++) {
        struct candidate c = {.method = METHOD_RTN, .bits = bit_widths[b], .group = groups[g]};
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        c.layout = (enum layout)l;
        round_trip(&c, sizes[s].rows, sizes[s].cols);
    }
}

static void check_fp8(enum fp8_scale by) {
    enum { N = 5, K = 33 };
    struct candidate c = candidate_default(METHOD_FP8, 8, 0), rtn = candidate_default(METHOD_RTN, 8, 0);
    c.fp8_scale = by;
    int scales = by == FP8_PER_TENSOR ? 1 : N;
    struct linear in, out;
    struct packed p;
    linear_shape(&in, N, K, &c);
    linear_shape(&out, N, K, &c);
    in.q.fp8 = out.q.fp8 = true;
    seed(67);
    for (int i = 0; i < N * K; i++)
        in.codes[i] = (uint8_t)below(256);
    for (int n = 0; n < N; n++) {
        in.scale[n] = n < scales ? bf16_to_f32(f32_to_bf16((float)(1e-20 * uniform()))) : in.scale[0];
        in.zero[n] = 0;
    }
    assert_ok(pack(&in.q, &c, &p, &err));
    assert_memory_equal(p.codes, in.codes, N * K);
    for (int n = 0; n < scales; n++) {
        uint16_t half;
        memcpy(&half, p.scales + 2 * n, 2);
        assert_true(bf16_to_f32(half) == in.scale[n]);
    }
    assert_true(p.zeros == NULL && p.group_of == NULL && packed_bytes(&p) == N * K + 2 * scales);
    assert_ok(unpack(&p, &c, &out.q, &err));
    assert_memory_equal(in.codes, out.codes, sizeof in.codes);
    assert_memory_equal(in.scale, out.scale, sizeof in.scale);
    assert_memory_equal(in.zero, out.zero, sizeof in.zero);
    packed_release(&p);
    assert_refused(pack(&in.q, &rtn, &p, &err), RC_INVALID, "is not what the candidate makes");
    in.q.fp8 = false;
    assert_refused(pack(&in.q, &c, &p, &err), RC_INVALID, "is not what the candidate makes");
}

static void fp8_is_a_byte_a_weight_and_a_bf16_a_row_or_for_all(void **state) {
    (void)state;
    check_fp8(FP8_PER_ROW);
    check_fp8(FP8_PER_TENSOR);
}

/* Four bytes a column, and no group that is not there comes in from a file. */
static void groups_of_columns_are_packed(void **state) {
    (void)state;
    enum { N = 3, K = 40, GROUPS = 3 };
    struct candidate c = candidate_default(METHOD_GPTQ, 4, 16), natural = c;
    c.order = ORDER_ACTIVATION;
    natural.order = ORDER_NATURAL;
    struct linear in, out;
    struct packed p;
    int32_t group_of[K], back[K];
    linear_shape(&in, N, K, &c);
    linear_shape(&out, N, K, &c);
    seed(68);
    linear_fill(&in, &c);
    for (int k = 0; k < K; k++)
        group_of[k] = (int32_t)below(GROUPS);
    in.q.group_of = group_of;
    out.q.group_of = back;
    assert_ok(pack(&in.q, &c, &p, &err));
    struct packed sizes = packed_sizes(&c, N, K), plain = packed_sizes(&natural, N, K);
    assert_int_equal(packed_bytes(&sizes), packed_bytes(&plain) + 4 * K);
    assert_int_equal(packed_bytes(&sizes), packed_bytes(&p));
    assert_ok(unpack(&p, &c, &out.q, &err));
    assert_memory_equal(back, group_of, sizeof group_of);
    assert_memory_equal(in.codes, out.codes, sizeof in.codes);
    for (int wrong = -1; wrong <= GROUPS; wrong += GROUPS + 1) {
        memcpy(p.group_of + 4 * 17, &wrong, sizeof wrong);
        assert_refused(unpack(&p, &c, &out.q, &err), RC_INVALID, "column 17 is in group");
    }
    p.group_of_bytes -= 4;
    assert_refused(unpack(&p, &c, &out.q, &err), RC_INVALID, "are needed");
    packed_release(&p);
    group_of[17] = GROUPS;
    assert_refused(pack(&in.q, &c, &p, &err), RC_INVALID, "column 17 is in group 3 of 3");
    in.q.group_of = NULL;
    assert_refused(pack(&in.q, &c, &p, &err), RC_INVALID, "is not what the candidate makes");
}

static void what_does_not_fit_is_not_packed(void **state) {
    (void)state;
    enum { N = 4, K = 40 };
    static const float no_zeros[] = {-1, 16, 1.5f, NAN, INFINITY};
    struct candidate c = CANDIDATE(METHOD_RTN, 4, 16, false, ZERO_INTEGER, LAYOUT_DENSE), other = c;
    struct linear l;
    struct packed p;
    linear_shape(&l, N, K, &c);
    seed(64);
    linear_fill(&l, &c);
    l.codes[2 * K + 7] = 16;
    assert_refused(pack(&l.q, &c, &p, &err), RC_INVALID, "row 2, column 7 is 16");
    assert_null(p.codes);
    l.codes[2 * K + 7] = 15;
    FOR_EACH(i, no_zeros) {
        l.zero[3 * 3 + 2] = no_zeros[i];
        assert_refused(pack(&l.q, &c, &p, &err), RC_INVALID, "row 3, group 2");
    }
    l.zero[3 * 3 + 2] = 15;
    other.bits = 5;
    assert_refused(pack(&l.q, &other, &p, &err), RC_INVALID, "4 bits in groups of 16");
    other = c;
    other.group = 32;
    assert_refused(pack(&l.q, &other, &p, &err), RC_INVALID, "4 bits in groups of 16");
    other = (struct candidate){.method = METHOD_NONE};
    assert_refused(pack(&l.q, &other, &p, &err), RC_INVALID, "nothing to quantize");
    l.q.codes = NULL;
    assert_refused(pack(&l.q, &c, &p, &err), RC_INVALID, "no buffers");
}

static void buffers_of_another_size_are_not_unpacked(void **state) {
    (void)state;
    enum { N = 4, K = 40 };
    struct candidate c = CANDIDATE(METHOD_RTN, 4, 16, false, ZERO_FLOAT, LAYOUT_DENSE), other = c;
    struct linear l;
    struct packed p, bad;
    linear_shape(&l, N, K, &c);
    seed(65);
    linear_fill(&l, &c);
    assert_ok(pack(&l.q, &c, &p, &err));
#define REFUSED(change)                                                                                                \
    do {                                                                                                               \
        bad = p;                                                                                                       \
        change;                                                                                                        \
        assert_refused(unpack(&bad, &c, &l.q, &err), RC_INVALID, "are needed");                                        \
    } while (0)
    REFUSED(bad.codes_bytes--);
    REFUSED(bad.scales_bytes++);
    REFUSED(bad.zeros_bytes = 0);
    REFUSED(bad.layout = LAYOUT_HQQ);
    REFUSED(bad.codes = NULL);
    REFUSED(bad.scales = NULL);
    REFUSED(bad.zeros = NULL);
#undef REFUSED
    other.bits = 3;
    assert_refused(unpack(&p, &other, &l.q, &err), RC_INVALID, "4 bits in groups of 16");
    packed_release(&p);
}

/* Bytes come from files: five bits in a container of eight may be a lie. */
static void codes_beyond_their_bits_are_not_unpacked(void **state) {
    (void)state;
    struct candidate c = CANDIDATE(METHOD_HQQ, 5, 16, false, ZERO_FLOAT, LAYOUT_HQQ);
    struct linear l;
    struct packed p;
    linear_shape(&l, 2, 32, &c);
    seed(66);
    linear_fill(&l, &c);
    assert_ok(pack(&l.q, &c, &p, &err));
    p.codes[3 * 16 + 4] = 0x20;
    assert_refused(unpack(&p, &c, &l.q, &err), RC_INVALID, "row 1, column 20 is 32");
    packed_release(&p);
}

/* As they lie in a file: at an odd address. */
static const void *moved(const void *bytes, int64_t len, uint8_t *room) {
    if (bytes == NULL) return NULL;
    memcpy(room + 1, bytes, (size_t)len);
    return room + 1;
}

static void check_expanded(const struct candidate *c, int64_t rows, int64_t cols) {
    static uint8_t codes[4 * WEIGHTS_MAX + 64], scales[2 * WEIGHTS_MAX + 64], zeros[4 * WEIGHTS_MAX + 64];
    static float out[WEIGHTS_MAX];
    static uint16_t rounded[WEIGHTS_MAX];
    struct linear l;
    struct packed p;
    linear_shape(&l, rows, cols, c);
    linear_fill(&l, c);
    assert_ok(pack(&l.q, c, &p, &err));
    struct packed_view v = {.candidate = *c,
                            .codes = moved(p.codes, p.codes_bytes, codes),
                            .scales = moved(p.scales, p.scales_bytes, scales),
                            .zeros = moved(p.zeros, p.zeros_bytes, zeros),
                            .parameters = DTYPE_F16};
    assert_ok(packed_expand(&v, matf(out, rows, cols), &err));
    assert_ok(packed_expand(&v, (struct mat){rounded, rows, cols, cols, DTYPE_BF16}, &err));
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t at = i / cols * l.q.groups + i % cols / l.q.group;
        float want = ((float)l.codes[i] - l.zero[at]) * l.scale[at];
        assert_memory_equal(&out[i], &want, sizeof want);
        assert_int_equal(rounded[i], f32_to_bf16(want));
    }
    packed_release(&p);
}

static void packed_weights_expand_to_what_dequantizing_gives(void **state) {
    (void)state;
    static const struct { int64_t rows, cols; } sizes[] = {{1, 1}, {3, 17}, {7, 64}, {40, 200}};
    static const int groups[] = {16, 64, 0};
    seed(67);
    FOR_EACH(b, bit_widths) FOR_EACH(g, groups) FOR_EACH(s, sizes) for (int kind = 0; kind < 4; kind++) {
        struct candidate c = {.method = METHOD_RTN, .bits = bit_widths[b], .group = groups[g]};
        c.symmetric = kind == 1;
        c.zero = kind == 2 ? ZERO_INTEGER : ZERO_FLOAT;
        c.layout = kind == 3 ? LAYOUT_HQQ : LAYOUT_DENSE;
        check_expanded(&c, sizes[s].rows, sizes[s].cols);
    }
}

/* What others write: parameters of other types, and columns whose groups are not in order. */
static void foreign_parameters_and_orders_are_read(void **state) {
    (void)state;
    enum { N = 5, K = 48, GROUPS = 3 };
    struct candidate c = {.method = METHOD_RTN, .bits = 4, .group = 16, .zero = ZERO_INTEGER};
    struct linear l;
    struct packed p;
    float wide[N * GROUPS], out[N * K];
    uint16_t half[N * GROUPS];
    int32_t order[K];
    linear_shape(&l, N, K, &c);
    seed(68);
    linear_fill(&l, &c);
    assert_ok(pack(&l.q, &c, &p, &err));
    for (int i = 0; i < N * GROUPS; i++) {
        half[i] = f32_to_bf16(l.scale[i]);
        wide[i] = l.scale[i] * 1.0001f;
    }
    for (int k = 0; k < K; k++)
        order[k] = (7 * k + 2) % GROUPS;
    struct packed_view v = {.candidate = c, .codes = p.codes, .scales = wide, .zeros = p.zeros};
    v.parameters = DTYPE_F32;
    v.group_of = order;
    for (int type = 0; type < 2; type++) {
        assert_ok(packed_expand(&v, matf(out, N, K), &err));
        for (int i = 0; i < N * K; i++) {
            int at = i / K * GROUPS + order[i % K];
            float scale = type == 0 ? wide[at] : bf16_to_f32(half[at]);
            assert_true(out[i] == ((float)l.codes[i] - l.zero[at]) * scale);
        }
        v.scales = half;
        v.parameters = DTYPE_BF16;
    }
    packed_release(&p);
}

static void codes_beyond_their_bits_are_not_expanded(void **state) {
    (void)state;
    struct candidate c = {.method = METHOD_HQQ, .bits = 6, .group = 16, .layout = LAYOUT_HQQ};
    struct linear l;
    struct packed p;
    float out[2 * 32];
    linear_shape(&l, 2, 32, &c);
    seed(69);
    linear_fill(&l, &c);
    assert_ok(pack(&l.q, &c, &p, &err));
    p.codes[3 * 16 + 4] = 0x40;
    struct packed_view v = {
        .candidate = c, .codes = p.codes, .scales = p.scales, .zeros = p.zeros, .parameters = DTYPE_F16};
    assert_refused(packed_expand(&v, matf(out, 2, 32), &err), RC_INVALID, "more than 6 bits");
    assert_refused(packed_expand(&v, (struct mat){out, 2, 32, 32, DTYPE_F16}, &err), RC_UNSUPPORTED, "fp32 or bf16");
    packed_release(&p);
}

/* The value of a half by its definition; only for finite ones. */
static double half_value(unsigned half) {
    unsigned exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, (int)exponent - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

static void every_half_has_its_value_and_comes_back(void **state) {
    (void)state;
    for (unsigned half = 0; half < 0x10000; half++) {
        float value = f16_to_f32((uint16_t)half);
        uint16_t back = f32_to_f16(value);
        if ((half & 0x7fff) > 0x7c00) {
            assert_true(isnan(value) && (back & 0x7fff) > 0x7c00 && (back & 0x83ff) == ((half & 0x83ff) | 0x0200));
            continue;
        }
        assert_int_equal(back, half);
        assert_true((signbit(value) != 0) == (half >> 15 != 0));
        if ((half & 0x7fff) == 0x7c00)
            assert_true(isinf(value));
        else
            assert_true(value == half_value(half));
    }
}

/* Between two neighbours: the nearer one, and half-way the even one, for both signs. */
static void halves_round_to_nearest_even(void **state) {
    (void)state;
    for (unsigned half = 0; half < 0x7c00; half++) {
        double next = half == 0x7bff ? 65536 : half_value(half + 1);
        float middle = (float)((half_value(half) + next) / 2);
        assert_int_equal(f32_to_f16(middle), half + (half & 1));
        assert_int_equal(f32_to_f16(nextafterf(middle, 0)), half);
        assert_int_equal(f32_to_f16(nextafterf(middle, INFINITY)), half + 1);
        assert_int_equal(f32_to_f16(-middle), 0x8000 | (half + (half & 1)));
    }
    assert_int_equal(f32_to_f16(1e-30f), 0);
    assert_int_equal(f32_to_f16(-1e-30f), 0x8000);
    assert_int_equal(f32_to_f16(1e30f), 0x7c00);
}

static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (unsigned half = 0; half < 0x10000; half++) {
        float value = bf16_to_f32((uint16_t)half), middle;
        uint32_t bits = half << 16;
        assert_memory_equal(&value, &bits, sizeof bits);
        if ((half & 0x7fff) > 0x7f80) {
            assert_true(isnan(value) && f32_to_bf16(value) == (half | 0x40));
            continue;
        }
        assert_int_equal(f32_to_bf16(value), half);
        if ((half & 0x7fff) == 0x7f80) continue;
        bits += 0x8000; /* half-way */
        memcpy(&middle, &bits, sizeof bits);
        assert_int_equal(f32_to_bf16(middle), half + (half & 1));
        assert_int_equal(f32_to_bf16(nextafterf(middle, 0)), half);
        assert_int_equal(f32_to_bf16(nextafterf(middle, half & 0x8000 ? -INFINITY : INFINITY)), half + 1);
    }
    uint32_t low_nan = 0x7f800001;
    float value;
    memcpy(&value, &low_nan, sizeof value);
    assert_int_equal(f32_to_bf16(value), 0x7fc0); /* dropping its low bits would make it Inf */
    assert_int_equal(f32_to_f16(value), 0x7e00);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_those_of_the_layouts),
        cmocka_unit_test(dense_codes_are_a_bitstream_along_each_row),
        cmocka_unit_test(hqq_codes_lie_in_row_blocks),
        cmocka_unit_test(scales_and_float_zeros_are_halves_in_order),
        cmocka_unit_test(unpacking_gives_back_what_was_packed),
        cmocka_unit_test(fp8_is_a_byte_a_weight_and_a_bf16_a_row_or_for_all),
        cmocka_unit_test(groups_of_columns_are_packed),
        cmocka_unit_test(what_does_not_fit_is_not_packed),
        cmocka_unit_test(buffers_of_another_size_are_not_unpacked),
        cmocka_unit_test(codes_beyond_their_bits_are_not_unpacked),
        cmocka_unit_test(packed_weights_expand_to_what_dequantizing_gives),
        cmocka_unit_test(foreign_parameters_and_orders_are_read),
        cmocka_unit_test(codes_beyond_their_bits_are_not_expanded),
        cmocka_unit_test(every_half_has_its_value_and_comes_back),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
    };
    return cmocka_run_group_tests_name("formats", tests, NULL, NULL);
}
