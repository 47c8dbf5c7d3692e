/* Packed weights: every byte where formats.md says, sizes that are the buffers', and nothing lost on the way back. */
#include <math.h>
#include <string.h>

#include "kernels/formats.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

#define FOR_EACH(i, table) for (size_t i = 0; i < sizeof(table) / sizeof *(table); i++)

/* One bit at a time, as the formats are defined. */
static void put_bit(uint8_t *bytes, int64_t bit, unsigned value) {
    bytes[bit / 8] |= (uint8_t)(value << (bit % 8));
}

static int64_t words(int64_t bits) {
    return (bits + 31) / 32;
}

/* Codes along K, least significant bit first; every row begins a word. */
static uint8_t *dense_codes(const struct quantized *q, int64_t *bytes) {
    int64_t row = words(q->cols * q->bits) * 32;
    *bytes = q->rows * row / 8;
    uint8_t *out = host_bytes((size_t)*bytes);
    for (int64_t i = 0; i < q->rows * q->cols; i++)
        for (int b = 0; b < q->bits; b++)
            put_bit(out, i / q->cols * row + i % q->cols * q->bits + b, q->codes[i] >> b & 1);
    return out;
}

/* Integer zeros along N; word w of group g is word w·G + g. */
static uint8_t *dense_zeros(const struct quantized *q, int64_t *bytes) {
    *bytes = words(q->rows * q->bits) * 4 * q->groups;
    uint8_t *out = host_bytes((size_t)*bytes);
    for (int64_t i = 0; i < q->rows * q->groups; i++)
        for (int b = 0; b < q->bits; b++) {
            int64_t bit = i / q->groups * q->bits + b;
            put_bit(out, (bit / 32 * q->groups + i % q->groups) * 32 + bit % 32, (unsigned)q->zero[i] >> b & 1);
        }
    return out;
}

/* The library's: groups are rows; container r holds rows r, r + step, r + 2·step, …, the first in the highest bits. */
static uint8_t *hqq_codes(const struct quantized *q, int64_t *bytes) {
    static const int per_container[] = {[2] = 4, [3] = 10, [4] = 2, [5] = 1, [6] = 1, [8] = 1};
    int codes = per_container[q->bits], container = q->bits == 3 ? 4 : 1;
    int64_t rows = q->rows * q->groups, step = (rows + codes - 1) / codes;
    *bytes = step * q->group * container;
    uint8_t *out = host_bytes((size_t)*bytes);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < q->group; k++) {
            int64_t col = r % q->groups * q->group + k;
            unsigned code =
                col < q->cols ? q->codes[r / q->groups * q->cols + col] : 0; /* a short group is filled up */
            for (int b = 0; b < q->bits; b++)
                put_bit(out, (r % step * q->group + k) * container * 8 + (codes - 1 - r / step) * q->bits + b,
                        code >> b & 1);
        }
    return out;
}

static void same_halves(const uint8_t *packed, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, packed + 2 * i, sizeof half);
        assert_true(f16_to_f32(half) == values[i]);
    }
}

/* A Linear of random codes and parameters that 16 bits hold. */
static struct quantized random_quantized(int64_t rows, int64_t cols, const struct candidate *c) {
    struct quantized q = device_quantized(rows, cols, c);
    for (int64_t i = 0; i < rows * cols; i++)
        q.codes[i] = (uint8_t)below(1 << c->bits);
    for (int64_t i = 0; i < rows * q.groups; i++) {
        q.scale[i] = (float)ref_f16(0.001 + uniform());
        q.zero[i] = c->symmetric              ? (float)(1 << (c->bits - 1))
                    : c->zero == ZERO_INTEGER ? (float)below(1 << c->bits)
                                              : (float)ref_f16(normal());
    }
    return q;
}

/* Copies of exactly the sizes told, so that a sanitizer sees one byte read too many. */
static struct packed exact_copy(const struct packed *p) {
    struct packed copy = *p;
    copy.codes = host_bytes((size_t)p->codes_bytes);
    memcpy(copy.codes, p->codes, (size_t)p->codes_bytes);
    copy.scales = host_bytes((size_t)p->scales_bytes);
    memcpy(copy.scales, p->scales, (size_t)p->scales_bytes);
    if (p->zeros == NULL) return copy;
    copy.zeros = host_bytes((size_t)p->zeros_bytes);
    memcpy(copy.zeros, p->zeros, (size_t)p->zeros_bytes);
    return copy;
}

static void check_bytes(const struct quantized *q, const struct candidate *c, const struct packed *p) {
    int64_t codes_bytes, zeros_bytes = 0, parameters = q->rows * q->groups;
    bool integer = c->zero == ZERO_INTEGER && !c->symmetric;
    const uint8_t *codes = c->layout == LAYOUT_HQQ ? hqq_codes(q, &codes_bytes) : dense_codes(q, &codes_bytes);
    assert_int_equal(p->codes_bytes, codes_bytes);
    assert_memory_equal(p->codes, codes, (size_t)codes_bytes);
    assert_int_equal(p->scales_bytes, 2 * parameters);
    same_halves(p->scales, q->scale, parameters);
    if (c->symmetric) {
        assert_true(p->zeros == NULL);
    } else if (integer) {
        const uint8_t *zeros = dense_zeros(q, &zeros_bytes);
        assert_memory_equal(p->zeros, zeros, (size_t)zeros_bytes);
    } else {
        zeros_bytes = 2 * parameters;
        same_halves(p->zeros, q->zero, parameters);
    }
    assert_int_equal(p->zeros_bytes, zeros_bytes);
    struct packed sizes = packed_sizes(c, q->rows, q->cols);
    assert_int_equal(packed_bytes(&sizes), codes_bytes + 2 * parameters + zeros_bytes);
}

static void check_candidate_at(int64_t rows, int64_t cols, const struct candidate *c) {
    struct quantized q = random_quantized(rows, cols, c), back = device_quantized(rows, cols, c);
    struct packed p;
    assert_ok(pack(&q, c, &p, &err));
    check_bytes(&q, c, &p);
    struct packed copy = exact_copy(&p);
    packed_release(&p);
    assert_ok(unpack(&copy, c, &back, &err));
    assert_memory_equal(back.codes, q.codes, (size_t)(rows * cols));
    assert_memory_equal(back.scale, q.scale, (size_t)(rows * q.groups) * sizeof *q.scale);
    assert_memory_equal(back.zero, q.zero, (size_t)(rows * q.groups) * sizeof *q.zero);
}

static const int bit_widths[] = {2, 3, 4, 5, 6, 8};
static const int groups[] = {16, 64, 0};
static const struct {
    bool symmetric;
    enum zero_type zero;
    enum layout layout;
} kinds[] = {
    {false, ZERO_FLOAT, LAYOUT_DENSE}, {false, ZERO_INTEGER, LAYOUT_DENSE}, {true, ZERO_FLOAT, LAYOUT_DENSE},
    {false, ZERO_FLOAT, LAYOUT_HQQ},   {true, ZERO_FLOAT, LAYOUT_HQQ},
};
/* Whole words and not, groups that divide K and not, fewer groups than a container holds, more. */
static const struct { int64_t rows, cols; } linears[] = {{1, 16}, {3, 70}, {13, 64}, {40, 96}, {21, 129}};

static void every_byte_is_where_the_format_says(void **state) {
    (void)state;
    seed(60);
    FOR_EACH(b, bit_widths) FOR_EACH(g, groups) FOR_EACH(k, kinds) FOR_EACH(l, linears) {
        struct candidate c = {METHOD_RTN, bit_widths[b], groups[g], kinds[k].symmetric, kinds[k].zero, kinds[k].layout};
        check_candidate_at(linears[l].rows, linears[l].cols, &c);
    }
}

/* By hand, from formats.md. */
static void known_words(void **state) {
    (void)state;
    static const struct candidate dense3 = {.method = METHOD_RTN, .bits = 3, .group = 0},
                                  hqq4 = {.method = METHOD_HQQ, .bits = 4, .group = 0, .layout = LAYOUT_HQQ},
                                  hqq3 = {.method = METHOD_HQQ, .bits = 3, .group = 0, .layout = LAYOUT_HQQ};
    struct packed p;
    struct quantized q = random_quantized(1, 16, &dense3);
    for (int k = 0; k < 16; k++)
        q.codes[k] = (uint8_t)(k % 8);
    assert_ok(pack(&q, &dense3, &p, &err));
    static const uint8_t octal[8] = {0x88, 0xc6, 0xfa, 0x88, 0xc6, 0xfa, 0, 0}; /* 076543210, twice, in 48 of 64 bits */
    assert_int_equal(p.codes_bytes, 8);
    assert_memory_equal(p.codes, octal, 8);
    packed_release(&p);

    q = random_quantized(2, 16, &hqq4);
    for (int i = 0; i < 32; i++)
        q.codes[i] = i < 16 ? 0xa : 0x5;
    assert_ok(pack(&q, &hqq4, &p, &err));
    assert_int_equal(p.codes_bytes, 16);
    assert_true(p.codes[0] == 0xa5 && p.codes[15] == 0xa5);
    packed_release(&p);

    q = random_quantized(9, 16, &hqq3); /* ten rows to a word, the last one padding */
    for (int i = 0; i < 9 * 16; i++)
        q.codes[i] = (uint8_t)(i / 16 % 8);
    assert_ok(pack(&q, &hqq3, &p, &err));
    uint32_t word;
    memcpy(&word, p.codes, sizeof word);
    assert_int_equal(p.codes_bytes, 16 * 4);
    assert_true(word == 00123456700u); /* rows 0…7, 0 and the padding, an octal digit each from the highest */
    packed_release(&p);
}

/* The sizes that formats.md quotes: bits per weight at groups of 64. */
static void known_costs(void **state) {
    (void)state;
    static const struct {
        struct candidate c;
        double bits;
    } cases[] = {
        {{METHOD_HQQ, 4, 64, false, ZERO_FLOAT, LAYOUT_HQQ}, 4.5},
        {{METHOD_HQQ, 3, 64, false, ZERO_FLOAT, LAYOUT_HQQ}, 3.7},
        {{METHOD_RTN, 3, 64, false, ZERO_FLOAT, LAYOUT_DENSE}, 3.5},
        {{METHOD_RTN, 3, 64, true, ZERO_FLOAT, LAYOUT_DENSE}, 3.25},
        {{METHOD_NONE, 16, 0, false, ZERO_FLOAT, LAYOUT_DENSE}, 16},
    };
    enum { N = 4096, K = 5120 };
    FOR_EACH(i, cases) {
        struct packed sizes = packed_sizes(&cases[i].c, N, K);
        assert_near(8.0 * (double)packed_bytes(&sizes) / N / K, cases[i].bits, 1e-9);
    }
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    static const struct candidate three = {.method = METHOD_RTN, .bits = 3, .group = 16, .zero = ZERO_INTEGER},
                                  four = {.method = METHOD_RTN, .bits = 4, .group = 16, .zero = ZERO_INTEGER},
                                  five = {.method = METHOD_RTN, .bits = 5, .group = 16, .layout = LAYOUT_HQQ};
    seed(61);
    struct quantized q = random_quantized(4, 32, &three);
    struct packed p;
    assert_refused(pack(&q, &four, &p, &err), RC_INVALID, "not what the candidate makes");
    q.codes[33] = 8;
    assert_refused(pack(&q, &three, &p, &err), RC_INVALID, "row 1, column 1 is 8");
    q.codes[33] = 7;
    static const float zeros[] = {-1, 8, 2.5f, NAN};
    FOR_EACH(i, zeros) {
        q.zero[5] = zeros[i];
        assert_refused(pack(&q, &three, &p, &err), RC_INVALID, "row 2, group 1");
    }
    q.zero[5] = 7;
    assert_ok(pack(&q, &three, &p, &err));
    int64_t *sizes[] = {&p.codes_bytes, &p.scales_bytes, &p.zeros_bytes};
    FOR_EACH(i, sizes) {
        (*sizes[i])--;
        assert_refused(unpack(&p, &three, &q, &err), RC_INVALID, "are needed");
        (*sizes[i])++;
    }
    packed_release(&p);
    q = random_quantized(4, 32, &five); /* a byte has room for what five bits do not */
    assert_ok(pack(&q, &five, &p, &err));
    p.codes[0] = 32;
    assert_refused(unpack(&p, &five, &q, &err), RC_INVALID, "is 32, which 5 bits cannot hold");
    packed_release(&p);
}

static void halves_round_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float value = f16_to_f32((uint16_t)bits), wide = bf16_to_f32((uint16_t)bits);
        if (isnan(value))
            assert_true(isnan(f16_to_f32(f32_to_f16(value))));
        else
            assert_int_equal(f32_to_f16(value), bits);
        if (isnan(wide))
            assert_true(isnan(bf16_to_f32(f32_to_bf16(wide))));
        else
            assert_int_equal(f32_to_bf16(wide), bits);
    }
    seed(62);
    for (int i = 0; i < 200000; i++) {
        float value = (float)(normal() * exp2((double)below(60) - 40));
        assert_true((double)f16_to_f32(f32_to_f16(value)) == ref_f16(value));
    }
    for (uint32_t bits = 0; bits < 0x7bff; bits++) { /* half way between neighbours: to the even one */
        float low = f16_to_f32((uint16_t)bits), high = f16_to_f32((uint16_t)(bits + 1));
        assert_int_equal(f32_to_f16((low + high) / 2), bits + bits % 2);
        assert_int_equal(f32_to_bf16((bf16_to_f32((uint16_t)bits) + bf16_to_f32((uint16_t)(bits + 1))) / 2),
                         bits + bits % 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_is_where_the_format_says),
        cmocka_unit_test(known_words),
        cmocka_unit_test(known_costs),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(halves_round_to_nearest_even),
    };
    return RUN_ON_BACKENDS("formats", tests);
}
