#include "tests/ops/harness.h"
#include "base/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formats.h"

struct device dev;
struct err err;

const struct shape shapes[] = {{1, 1, 1},     {1, 7, 5},     {2, 3, 16},     {3, 17, 31},    {5, 64, 72},
                               {17, 33, 100}, {64, 96, 576}, {130, 70, 257}, {30, 530, 515}, {600, 1100, 40}};
const int shape_count = (int)(sizeof shapes / sizeof *shapes);

/* Everything a test took, so that teardown can give it back. */
enum { HELD_MAX = 4096 };
static struct {
    void *host[HELD_MAX], *device[HELD_MAX];
    struct quantized quantized[HELD_MAX];
    int hosts, devices, quantizeds;
} held;

static int open_device(void **state) {
    (void)state;
    return dev.b->open(&(struct backend_options){.threads = 2}, &dev.s, &err) == RC_OK ? 0 : -1;
}

static int close_device(void **state) {
    (void)state;
    for (int i = 0; i < held.devices; i++)
        dev.b->free(dev.s, held.device[i]);
    for (int i = 0; i < held.quantizeds; i++)
        quantized_release(dev.b, dev.s, &held.quantized[i]);
    for (int i = 0; i < held.hosts; i++)
        free(held.host[i]);
    held.hosts = held.devices = held.quantizeds = 0;
    dev.b->close(dev.s);
    return 0;
}

static int run_group(const char *name, const struct CMUnitTest *tests, size_t count) {
    struct CMUnitTest *all = calloc(count, sizeof *all);
    if (all == NULL) return 1;
    cmocka_set_test_filter(getenv("ONLY"));
    for (size_t i = 0; i < count; i++) {
        all[i] = tests[i];
        all[i].setup_func = open_device;
        all[i].teardown_func = close_device;
    }
    char group[64];
    snprintf(group, sizeof group, "%s on %s", name, dev.b->arithmetic);
    int failed = _cmocka_run_group_tests(group, all, count, NULL, NULL);
    free(all);
    return failed;
}

int run_on_cpu(const char *name, const struct CMUnitTest *tests, size_t count) {
    dev.b = &backend_cpu;
    return run_group(name, tests, count) != 0;
}

static bool gpu_opens(enum dtype activation) {
    if (backend_cuda_load(activation, &dev.b, &err) != RC_OK) return false;
    if (dev.b->open(&(struct backend_options){0}, &dev.s, &err) != RC_OK) return false;
    dev.b->close(dev.s);
    return true;
}

int run_on_backends(const char *name, const struct CMUnitTest *tests, size_t count) {
    int failed = run_on_cpu(name, tests, count);
    static const enum dtype precisions[] = {DTYPE_F32, DTYPE_BF16};
    for (int i = 0; i < 2; i++)
        if (gpu_opens(precisions[i]))
            failed += run_group(name, tests, count) != 0;
        else
            print_message("not run on a GPU: %s\n", err.message);
    return failed != 0;
}

void assert_ok_at(enum rc rc, const char *call, const char *file, int line) {
    if (rc == RC_OK) return;
    print_error("%s: %s: %s\n", call, rc_name(rc), err.message);
    _fail(file, line);
}

void assert_refused_at(enum rc got, enum rc want, const char *part, const char *call, const char *file, int line) {
    if (got == want && strstr(err.message, part) != NULL) return;
    print_error("%s: %s: \"%s\" where %s with \"%s\" was due\n", call, rc_name(got), err.message, rc_name(want), part);
    _fail(file, line);
}

void assert_close_at(const float *got, const double *want, const double *scale, int64_t count, double bound,
                     const char *file, int line) {
    int64_t worst = -1;
    double worst_error = bound;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs(got[i] - want[i]) / (scale != NULL ? scale[i] : 1);
        if (scale != NULL && scale[i] == 0) error = got[i] == want[i] ? 0 : INFINITY;
        if (error <= worst_error) continue;
        worst = i;
        worst_error = error;
        if (isnan(error)) break;
    }
    if (worst < 0) return;
    print_error("at %lld: %.9g where %.17g was due: off by %.3g, bound %.3g\n", (long long)worst, (double)got[worst],
                want[worst], worst_error, bound);
    _fail(file, line);
}

void assert_near_at(double got, double want, double tolerance, const char *file, int line) {
    if (fabs(got - want) <= tolerance) return;
    print_error("%.17g where %.17g ± %.3g was due\n", got, want, tolerance);
    _fail(file, line);
}

static float rounded(float value, enum dtype type) {
    return type == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value)) : value;
}

void assert_matrix_at(struct mat m, const double *want, const double *scale, double bound, const char *file, int line) {
    int64_t count = m.rows * m.cols;
    double *tolerance = host_doubles(count), unit = m.type == DTYPE_BF16 ? 0x1p-8 : 0;
    for (int64_t i = 0; i < count; i++)
        tolerance[i] = bound * (scale != NULL ? scale[i] : 1) + unit * fabs(want[i]);
    assert_close_at(get_matrix(m), want, tolerance, count, 1, file, line);
}

static uint64_t rng_state;

void seed(uint64_t value) {
    rng_state = value;
}

static uint64_t next(void) {
    return splitmix64(&rng_state);
}

double uniform(void) {
    return (double)(next() >> 11) * 0x1p-53;
}

double normal(void) {
    return sqrt(-2 * log(1 - uniform())) * cos(2 * acos(-1) * uniform());
}

int64_t below(int64_t limit) {
    return (int64_t)(uniform() * (double)limit);
}

void *host_bytes(size_t bytes) {
    assert_true(held.hosts < HELD_MAX);
    void *memory = calloc(1, bytes > 0 ? bytes : 1);
    assert_non_null(memory);
    return held.host[held.hosts++] = memory;
}

float *host_zeros(int64_t count) {
    return host_bytes((size_t)count * sizeof(float));
}

double *host_doubles(int64_t count) {
    return host_bytes((size_t)count * sizeof(double));
}

float *host_normal(int64_t count, double deviation) {
    float *values = host_zeros(count);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)(deviation * normal());
    return values;
}

float *host_bf16(int64_t count, double deviation) {
    float *values = host_normal(count, deviation);
    for (int64_t i = 0; i < count; i++)
        values[i] = bf16_to_f32(f32_to_bf16(values[i]));
    return values;
}

static void *device_bytes(size_t bytes) {
    assert_true(held.devices < HELD_MAX);
    void *memory = NULL;
    assert_ok(dev.b->alloc(dev.s, bytes, &memory, &err));
    return held.device[held.devices++] = memory;
}

float *put(const float *host, int64_t count) {
    float *device = device_bytes((size_t)count * sizeof *device);
    assert_ok(dev.b->upload(dev.s, host, DTYPE_F32, count, device, &err));
    return device;
}

struct mat put_matrix(const float *host, int64_t rows, int64_t cols, int64_t pad) {
    int64_t stride = cols + pad;
    float *padded = host_zeros(rows * stride);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < stride; j++)
            padded[i * stride + j] = j < cols ? host[i * cols + j] : PADDING;
    return (struct mat){put(padded, rows * stride), rows, cols, stride, DTYPE_F32};
}

static void *get(const void *device, size_t bytes) {
    void *host = host_bytes(bytes);
    assert_ok(dev.b->download(dev.s, device, bytes, host, &err));
    return host;
}

void *put_stored(const void *host, enum dtype type, int64_t count) {
    void *device = device_bytes((size_t)count * dtype_size(type));
    struct load_item item = {host, type, count, device, type};
    assert_ok(dev.b->load(dev.s, &item, 1, &err));
    assert_ok(dev.b->loaded(dev.s, &err));
    return device;
}

static void *put_bf16(const float *host, int64_t count) {
    uint16_t *halves = host_bytes((size_t)count * sizeof *halves);
    for (int64_t i = 0; i < count; i++)
        halves[i] = f32_to_bf16(host[i]);
    return put_stored(halves, DTYPE_BF16, count);
}

struct mat put_activation(float *host, int64_t rows, int64_t cols, int64_t pad) {
    struct mat m = put_matrix(host, rows, cols, pad);
    m.type = dev.b->activation;
    for (int64_t i = 0; i < rows * cols; i++)
        host[i] = rounded(host[i], m.type);
    if (m.type == DTYPE_BF16) m.data = put_bf16(get_floats(m.data, rows * m.stride), rows * m.stride);
    return m;
}

static void *device_zeros(size_t bytes) {
    void *memory = device_bytes(bytes);
    assert_ok(dev.b->clear(dev.s, memory, bytes, &err));
    return memory;
}

double *device_doubles(int64_t count) {
    return device_zeros((size_t)count * sizeof(double));
}

float *device_floats(int64_t count) {
    return device_zeros((size_t)count * sizeof(float));
}

struct mat device_gram(int64_t channels) {
    enum dtype type = dev.b->gram_type;
    void *data = device_zeros((size_t)(channels * channels) * dtype_size(type));
    return (struct mat){data, channels, channels, channels, type};
}

float *get_floats(const float *device, int64_t count) {
    return get(device, (size_t)count * sizeof *device);
}

double *get_doubles(const double *device, int64_t count) {
    return get(device, (size_t)count * sizeof *device);
}

uint8_t *get_bytes(const uint8_t *device, int64_t count) {
    return get(device, (size_t)count);
}

double *get_gram(struct mat h) {
    assert_ok(dev.b->gram_finish(dev.s, h, &err));
    if (h.type == DTYPE_F64) return get_doubles(h.data, h.rows * h.stride);
    float *narrow = get_floats(h.data, h.rows * h.stride);
    double *wide = host_doubles(h.rows * h.stride);
    for (int64_t i = 0; i < h.rows * h.stride; i++)
        wide[i] = narrow[i];
    return wide;
}

/* All that the matrix's memory holds, as fp32. */
static float *get_padded(struct mat m) {
    int64_t count = m.rows * m.stride;
    if (m.type != DTYPE_BF16) return get_floats(m.data, count);
    const uint16_t *halves = get(m.data, (size_t)count * sizeof *halves);
    float *values = host_zeros(count);
    for (int64_t i = 0; i < count; i++)
        values[i] = bf16_to_f32(halves[i]);
    return values;
}

float *get_matrix(struct mat m) {
    float *padded = get_padded(m), *host = host_zeros(m.rows * m.cols);
    for (int64_t i = 0; i < m.rows; i++)
        for (int64_t j = 0; j < m.stride; j++) {
            if (j < m.cols)
                host[i * m.cols + j] = padded[i * m.stride + j];
            else
                assert_true(padded[i * m.stride + j] == rounded(PADDING, m.type));
        }
    return host;
}

struct quantized device_quantized(int64_t rows, int64_t cols, const struct candidate *c) {
    assert_true(held.quantizeds < HELD_MAX);
    struct quantized q;
    assert_ok(quantized_alloc(dev.b, dev.s, rows, cols, c, &q, &err));
    return held.quantized[held.quantizeds++] = q;
}
