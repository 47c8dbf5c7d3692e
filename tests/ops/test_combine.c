/* The sum of a matrix over devices: as many states as there are cards, and more of them than cards. */
#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"

enum { PARTS_MAX = 5 };

struct parts {
    struct backend_state *states[PARTS_MAX];
    struct mat m[PARTS_MAX];
    double *want, *scale; /* [rows · cols] Σ part, Σ |part| */
    int count;
};

/* Bits as they are: upload converts nothing of fp32. */
static void put_values(struct parts *p, int i, const double *values, int64_t count) {
    enum dtype type = p->m[i].type;
    float *narrow = host_zeros(count);
    for (int64_t k = 0; k < count; k++)
        narrow[k] = (float)values[k];
    const void *bits = type == DTYPE_F64 ? (const void *)values : narrow;
    int64_t words = count * (int64_t)(dtype_size(type) / sizeof(float));
    assert_ok(dev.b->upload(p->states[i], bits, DTYPE_F32, words, p->m[i].data, &err));
    assert_ok(dev.b->keep_pace(p->states[i], &err));
}

static double *get_values(const struct parts *p, int i) {
    int64_t count = p->m[i].rows * p->m[i].cols;
    size_t size = dtype_size(p->m[i].type);
    void *bits = host_bytes((size_t)count * size + 1);
    double *wide = host_doubles(count);
    assert_ok(dev.b->attach(p->states[i], &err));
    assert_ok(dev.b->download(p->states[i], p->m[i].data, (size_t)count * size, bits, &err));
    for (int64_t k = 0; k < count; k++)
        wide[k] = p->m[i].type == DTYPE_F64 ? ((double *)bits)[k] : ((float *)bits)[k];
    return wide;
}

static void fill(struct parts *p) {
    int64_t count = p->m[0].rows * p->m[0].cols;
    p->want = host_doubles(count);
    p->scale = host_doubles(count);
    for (int i = 0; i < p->count; i++) {
        double *values = host_doubles(count);
        for (int64_t k = 0; k < count; k++) {
            values[k] = p->m[i].type == DTYPE_F64 ? normal() : (float)normal();
            p->want[k] += values[k];
            p->scale[k] += fabs(values[k]);
        }
        assert_ok(dev.b->attach(p->states[i], &err));
        put_values(p, i, values, count);
    }
}

/* Over the cards that there are, and as many again as it takes. */
static void open_parts(struct parts *p, int count, int64_t rows, int64_t cols, enum dtype type) {
    int cards;
    assert_ok(dev.b->count(&cards, &err));
    *p = (struct parts){.count = count};
    for (int i = 0; i < count; i++) {
        struct backend_options options = {.device = i % cards, .threads = 2, .shares = count};
        assert_ok(dev.b->open(&options, &p->states[i], &err));
        p->m[i] = (struct mat){NULL, rows, cols, cols, type};
        assert_ok(dev.b->alloc(p->states[i], (size_t)(rows * cols) * dtype_size(type), &p->m[i].data, &err));
    }
}

static void close_parts(struct parts *p) {
    for (int i = p->count - 1; i >= 0; i--) {
        dev.b->free(p->states[i], p->m[i].data);
        dev.b->close(p->states[i]);
    }
    assert_ok(dev.b->attach(dev.s, &err));
}

static void combine(const struct parts *p) {
    struct combine_args a = {.states = p->states, .parts = p->m, .count = p->count};
    assert_ok(dev.b->combine(&a, &err));
}

static void check_sum(struct parts *p) {
    int64_t count = p->m[0].rows * p->m[0].cols;
    double bound = p->count * (p->m[0].type == DTYPE_F64 ? 0x1p-52 : 0x1p-23);
    double *first = get_values(p, 0);
    for (int64_t k = 0; k < count; k++)
        assert_near(first[k], p->want[k], bound * p->scale[k]);
    for (int i = 1; i < p->count; i++)
        assert_memory_equal(get_values(p, i), first, (size_t)count * sizeof *first);
}

/* Twice the same: the sum, then its bits. */
static void sum_case(int count, int64_t rows, int64_t cols, enum dtype type) {
    struct parts p;
    double *bits[2];
    open_parts(&p, count, rows, cols, type);
    for (int i = 0; i < 2; i++) {
        seed(40);
        fill(&p);
        combine(&p);
        check_sum(&p);
        bits[i] = get_values(&p, 0);
    }
    assert_memory_equal(bits[0], bits[1], (size_t)(rows * cols) * sizeof **bits);
    close_parts(&p);
}

static void every_device_gets_the_sum(void **state) {
    (void)state;
    static const int64_t sides[] = {1, 7, 64, 515};
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++)
        for (int count = 1; count <= PARTS_MAX; count++) {
            sum_case(count, sides[i], sides[i], DTYPE_F32);
            sum_case(count, sides[i], sides[i], DTYPE_F64);
        }
}

/* More than the pieces that go from device to device at a time. */
static void a_large_sum(void **state) {
    (void)state;
    sum_case(2, 4100, 4100, DTYPE_F32);
}

/* Of the activation type, as it lies in memory. */
static const void *activation_bits(int64_t count) {
    float *values = host_normal(count, 1);
    if (dev.b->activation == DTYPE_F32) return values;
    uint16_t *halves = host_bytes((size_t)count * sizeof *halves);
    for (int64_t i = 0; i < count; i++)
        memcpy(&halves[i], (const char *)&values[i] + 2, sizeof *halves);
    return halves;
}

/* How what one device made gets to all: the others have zeros, and no bit changes. */
static void zeros_of_the_others_leave_a_part_as_it_is(void **state) {
    (void)state;
    enum { ROWS = 6, COLS = 34 };
    enum dtype type = dev.b->activation;
    size_t bytes = ROWS * COLS * dtype_size(type);
    for (int owner = 0; owner < 3; owner++) {
        struct parts p;
        open_parts(&p, 3, ROWS, COLS, type);
        seed(7);
        const void *values = activation_bits(ROWS * COLS);
        for (int i = 0; i < 3; i++) {
            const void *bits = i == owner ? values : host_bytes(bytes);
            assert_ok(dev.b->attach(p.states[i], &err));
            assert_ok(dev.b->upload(p.states[i], bits, DTYPE_F32, (int64_t)(bytes / sizeof(float)), p.m[i].data, &err));
        }
        combine(&p);
        for (int i = 0; i < 3; i++) {
            void *got = host_bytes(bytes);
            assert_ok(dev.b->attach(p.states[i], &err));
            assert_ok(dev.b->download(p.states[i], p.m[i].data, bytes, got, &err));
            assert_memory_equal(got, values, bytes);
        }
        close_parts(&p);
    }
}

static void parts_must_be_alike(void **state) {
    (void)state;
    struct parts p;
    open_parts(&p, 2, 4, 4, DTYPE_F32);
    struct combine_args a = {.states = p.states, .parts = p.m, .count = 2};
    struct mat good = p.m[1];
    struct backend_state *second = p.states[1];
    p.m[1].rows = 3;
    assert_refused(dev.b->combine(&a, &err), RC_INVALID, "combine: [3, 4] where [4, 4]");
    p.m[1] = good;
    p.m[1].type = DTYPE_F64;
    assert_refused(dev.b->combine(&a, &err), RC_INVALID, "types differ");
    p.m[1] = good;
    p.m[1].data = NULL;
    assert_refused(dev.b->combine(&a, &err), RC_INVALID, "combine: no data");
    p.m[1] = good;
    p.m[1].stride = 5;
    assert_refused(dev.b->combine(&a, &err), RC_UNSUPPORTED, "dense");
    p.m[1] = good;
    p.states[1] = NULL;
    assert_refused(dev.b->combine(&a, &err), RC_INVALID, "device 1 of 2 is missing");
    p.states[1] = second;
    p.m[0].type = p.m[1].type = DTYPE_F16;
    assert_refused(dev.b->combine(&a, &err), RC_UNSUPPORTED, "fp32, fp64 and bf16");
    a.count = 0;
    assert_refused(dev.b->combine(&a, &err), RC_INVALID, "0 devices");
    close_parts(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_device_gets_the_sum),
        cmocka_unit_test(a_large_sum),
        cmocka_unit_test(zeros_of_the_others_leave_a_part_as_it_is),
        cmocka_unit_test(parts_must_be_alike),
    };
    return RUN_ON_BACKENDS("combine", tests);
}
