/* The open device: its memory and the limit on it, what it says about itself, and copies to and from it. */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "kernels/formats.h"
#include "tests/ops/harness.h"

/* The sanitizers end a program that asks for too much; here the refusal is what is tested. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
    return "allocator_may_return_null=1";
}

static struct backend_state *opened(int threads, int64_t limit) {
    struct backend_state *s = NULL;
    assert_ok(dev.b->open(&(struct backend_options){.threads = threads, .memory_limit = limit}, &s, &err));
    assert_non_null(s);
    return s;
}

static void senseless_options_are_refused(void **state) {
    (void)state;
    static const struct {
        struct backend_options options;
        enum rc rc;
        const char *part;
    } cases[] = {{{.device = 1}, RC_NOT_FOUND, "cpu:1"},
                 {{.device = -1}, RC_NOT_FOUND, "cpu:-1"},
                 {{.threads = -1}, RC_INVALID, "-1 threads"},
                 {{.threads = 1025}, RC_INVALID, "0…1024"},
                 {{.memory_limit = -1}, RC_INVALID, "-1 bytes"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct backend_state *s = (struct backend_state *)&err;
        assert_refused(dev.b->open(&cases[i].options, &s, &err), cases[i].rc, cases[i].part);
        assert_null(s);
    }
    dev.b->close(NULL);
    dev.b->close(opened(1024, 0));
}

/* "model name : Intel(R) Xeon(R) CPU @ 2.20GHz" → "2.20GHz": the end shows that the whole name was read. */
static bool end_of_processor_name(char word[64]) {
    char line[256] = "";
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (file == NULL) return false;
    while (fgets(line, sizeof line, file) != NULL && strncmp(line, "model name", 10) != 0)
        line[0] = 0;
    fclose(file);
    line[strcspn(line, "\n")] = 0;
    const char *space = strrchr(line, ' ');
    return space != NULL && snprintf(word, 64, "%s", space + 1) > 0;
}

static void hardware_is_described(void **state) {
    (void)state;
    struct backend_state *one = opened(1, 0), *three = opened(3, 0);
    char word[64];
    assert_non_null(strstr(dev.b->hardware(one), ", 1 thread, OpenBLAS for "));
#ifdef _OPENMP
    assert_non_null(strstr(dev.b->hardware(three), ", 3 threads, OpenBLAS for "));
#endif
    if (end_of_processor_name(word)) assert_non_null(strstr(dev.b->hardware(one), word));
    dev.b->close(one);
    dev.b->close(three);
    struct sysinfo machine;
    assert_int_equal(sysinfo(&machine), 0);
    assert_int_equal(dev.b->memory(dev.s), (int64_t)machine.totalram * machine.mem_unit);
}

static void a_device_is_described_before_it_is_opened(void **state) {
    (void)state;
    struct device_description d;
    int count = 0;
    assert_ok(dev.b->count(&count, &err));
    assert_int_equal(count, 1);
    assert_ok(dev.b->describe(0, &d, &err));
    struct backend_state *s = opened(0, 0);
    assert_string_equal(d.hardware, dev.b->hardware(s));
    assert_int_equal(d.memory, dev.b->memory(s));
    dev.b->close(s);
    assert_refused(dev.b->describe(1, &d, &err), RC_NOT_FOUND, "cpu:1");
}

/* A container or taskset gives fewer cores than the machine has. */
static void as_many_threads_as_this_process_may_use(void **state) {
    (void)state;
    cpu_set_t before, first;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&first);
    for (int cpu = 0; CPU_COUNT(&first) == 0; cpu++)
        if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &first);
    assert_int_equal(sched_setaffinity(0, sizeof first, &first), 0);
    struct backend_state *s = opened(0, 0);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_non_null(strstr(dev.b->hardware(s), ", 1 thread, "));
    dev.b->close(s);
#ifdef _OPENMP
    char all[32];
    snprintf(all, sizeof all, ", %d thread", CPU_COUNT(&before));
    s = opened(0, 0);
    assert_non_null(strstr(dev.b->hardware(s), all));
    dev.b->close(s);
#endif
}

static void blocks_are_aligned_and_apart(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 63, 64, 65, 1000, 0};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    unsigned char *blocks[COUNT];
    for (int i = 0; i < COUNT; i++) {
        void *memory = NULL;
        assert_ok(dev.b->alloc(dev.s, sizes[i], &memory, &err));
        assert_true(memory != NULL && (uintptr_t)memory % 64 == 0);
        blocks[i] = memset(memory, i, sizes[i]);
    }
    for (int i = 0; i < COUNT; i++) {
        for (size_t at = 0; at < sizes[i]; at++)
            assert_int_equal(blocks[i][at], i);
        dev.b->free(dev.s, blocks[i]);
    }
    dev.b->free(dev.s, NULL);
}

/* Blocks count in steps of 64 bytes; the peak is the most ever held at once. */
static void the_limit_counts_what_is_held(void **state) {
    (void)state;
    struct backend_state *s = opened(1, 1024);
    void *a, *b, *c = &err;
    assert_ok(dev.b->alloc(s, 900, &a, &err));
    assert_int_equal(dev.b->memory_peak(s), 960);
    assert_refused(dev.b->alloc(s, 65, &c, &err), RC_NO_MEMORY, "needs 65 more bytes, holds 960 of the 1024");
    assert_null(c);
    assert_ok(dev.b->alloc(s, 64, &b, &err));
    assert_int_equal(dev.b->memory_peak(s), 1024);
    assert_refused(dev.b->alloc(s, 1, &c, &err), RC_NO_MEMORY, "holds 1024 of the 1024");
    dev.b->free(s, a);
    assert_ok(dev.b->alloc(s, 400, &a, &err));
    assert_int_equal(dev.b->memory_peak(s), 1024);
    dev.b->free(s, a);
    dev.b->free(s, b);
    assert_refused(dev.b->alloc(s, 1025, &c, &err), RC_NO_MEMORY, "holds 0 of the 1024");
    dev.b->close(s);
    s = opened(1, 1); /* less than one step is a limit too */
    assert_refused(dev.b->alloc(s, 1, &c, &err), RC_NO_MEMORY, "holds 0 of the 1 that");
    dev.b->close(s);
}

static void absurd_sizes_are_refused(void **state) {
    (void)state;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 62, SIZE_MAX / 2, SIZE_MAX / 4 + 1, SIZE_MAX / 8};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *memory = &err;
        assert_refused(dev.b->alloc(dev.s, sizes[i], &memory, &err), RC_NO_MEMORY, "no limit set");
        assert_null(memory);
        assert_int_equal(dev.b->memory_peak(dev.s), 0);
    }
}

static enum rc gram(struct backend_state *s, int64_t cols) {
    float *x = host_zeros(2 * cols);
    struct mat h = matd(host_doubles(cols * cols), cols, cols);
    return dev.b->gram(s, &(struct gram_args){.x = matf(x, 2, cols), .h = h}, &err);
}

static enum rc error(struct backend_state *s, int64_t cols) {
    float *w = host_zeros(2 * cols);
    struct error_report report;
    struct error_args a = {.w = matf(w, 2, cols), .w_hat = matf(w, 2, cols)};
    return dev.b->error(s, &a, &report, &err);
}

/* Operations take their workspace from the same limit, keep it, and enlarge it when a larger one comes. */
static void workspace_counts_and_is_kept(void **state) {
    (void)state;
    struct backend_state *s = opened(1, 0);
    assert_ok(gram(s, 10));
    int64_t small = dev.b->memory_peak(s);
    assert_true(small > 0);
    assert_ok(gram(s, 10));
    assert_int_equal(dev.b->memory_peak(s), small);
    assert_ok(error(s, 500));
    int64_t large = dev.b->memory_peak(s);
    assert_true(large > small);
    assert_ok(error(s, 500));
    assert_ok(gram(s, 10));
    assert_int_equal(dev.b->memory_peak(s), large); /* the small workspace was given back before */
    dev.b->close(s);
    s = opened(1, small + 64);
    void *memory;
    assert_ok(gram(s, 10));
    assert_refused(error(s, 500), RC_NO_MEMORY, "holds 0 of");
    assert_ok(gram(s, 10));
    assert_ok(dev.b->alloc(s, 64, &memory, &err));
    assert_ok(gram(s, 10));
    assert_refused(dev.b->alloc(s, 1, &(void *){NULL}, &err), RC_NO_MEMORY, "needs 1 more");
    dev.b->free(s, memory);
    dev.b->close(s);
}

/* To the bit: a zero's sign and a NaN's payload count. */
static bool same_float(float a, float b) {
    uint32_t bits[2];
    memcpy(&bits[0], &a, sizeof a);
    memcpy(&bits[1], &b, sizeof b);
    return bits[0] == bits[1];
}

/* All 65,536 halves and bfloat16s, again and again until the copy is cut into pieces; from an odd address. */
static void uploads_convert_every_value(void **state) {
    (void)state;
    enum { COUNT = 5 * 65536 + 77 };
    uint8_t *bytes = host_bytes(COUNT * 2 + 1);
    for (int i = 0; i < COUNT; i++) {
        uint16_t half = (uint16_t)i;
        memcpy(bytes + 1 + 2 * i, &half, sizeof half);
    }
    float *f16 = host_zeros(COUNT), *bf16 = host_zeros(COUNT), *f32 = host_zeros(COUNT);
    assert_ok(dev.b->upload(dev.s, bytes + 1, DTYPE_F16, COUNT, f16, &err));
    assert_ok(dev.b->upload(dev.s, bytes + 1, DTYPE_BF16, COUNT, bf16, &err));
    assert_ok(dev.b->upload(dev.s, bf16, DTYPE_F32, COUNT, f32, &err));
    for (int i = 0; i < COUNT; i++) {
        float want = f16_to_f32((uint16_t)i);
        assert_true(isnan(want) ? isnan(f16[i]) : same_float(f16[i], want));
        assert_true(same_float(bf16[i], bf16_to_f32((uint16_t)i)));
    }
    assert_memory_equal(f32, bf16, COUNT * sizeof *f32);
    float *back = host_zeros(COUNT);
    assert_ok(dev.b->download(dev.s, bf16, COUNT * sizeof *back, back, &err));
    assert_memory_equal(back, bf16, COUNT * sizeof *f32);
}

static void copies_of_nothing_and_nonsense(void **state) {
    (void)state;
    float value[2] = {7, 8};
    assert_ok(dev.b->upload(dev.s, NULL, DTYPE_F32, 0, NULL, &err));
    assert_ok(dev.b->download(dev.s, NULL, 0, NULL, &err));
    assert_refused(dev.b->upload(dev.s, value, DTYPE_F64, 1, value, &err), RC_UNSUPPORTED, "F32, F16 or BF16");
    assert_refused(dev.b->upload(dev.s, value, DTYPE_F32, -1, value, &err), RC_INVALID, "-1 values");
    assert_refused(dev.b->upload(dev.s, NULL, DTYPE_F32, 1, value, &err), RC_INVALID, "source");
    assert_refused(dev.b->upload(dev.s, value, DTYPE_F32, 1, NULL, &err), RC_INVALID, "destination");
    assert_refused(dev.b->download(dev.s, value, SIZE_MAX, value + 1, &err), RC_INVALID, "bytes cannot be copied");
    assert_refused(dev.b->download(dev.s, NULL, 1, value, &err), RC_INVALID, "source");
    assert_refused(dev.b->download(dev.s, value, 1, NULL, &err), RC_INVALID, "destination");
    assert_ok(dev.b->download(dev.s, value, sizeof *value, value + 1, &err));
    assert_true(value[1] == 7);
    assert_ok(dev.b->fetch(dev.s, NULL, 0, NULL, &err));
    assert_ok(dev.b->offload(dev.s, NULL, 0, NULL, &err));
    assert_refused(dev.b->fetch(dev.s, value, SIZE_MAX, value + 1, &err), RC_INVALID, "bytes cannot be copied");
    assert_refused(dev.b->fetch(dev.s, NULL, 1, value, &err), RC_INVALID, "source");
    assert_refused(dev.b->offload(dev.s, value, 1, NULL, &err), RC_INVALID, "destination");
    assert_ok(dev.b->clear(dev.s, NULL, 0, &err));
    assert_refused(dev.b->clear(dev.s, NULL, 1, &err), RC_INVALID, "clear");
    assert_ok(dev.b->clear(dev.s, value, sizeof *value, &err));
    assert_true(value[0] == 0 && value[1] == 7);
}

enum { COPY_ROWS = 1024, COPY_COUNT = COPY_ROWS * COPY_ROWS, COPY_SLOTS = 5, COPY_ROUNDS = 4 };

/* What adds one to all of it: a product of ones and eighths. */
static struct gemm_args adding_one(void) {
    enum { K = 8 };
    float *ones = host_zeros(COPY_ROWS * K), *eighths = host_zeros(COPY_ROWS * K);
    for (int i = 0; i < COPY_ROWS * K; i++) {
        ones[i] = 1;
        eighths[i] = 1.0f / K;
    }
    return (struct gemm_args){.x = put_activation(ones, COPY_ROWS, K, 0),
                              .w = put_activation(eighths, COPY_ROWS, K, 0),
                              .alpha = 1,
                              .beta = 1,
                              .out = {NULL, COPY_ROWS, COPY_ROWS, COPY_ROWS, DTYPE_F32}};
}

/* Slots of host memory pass through two of the device's, again and again: as each is worked on, the one before leaves
 * and the next comes. */
static void copies_go_on_beside_the_operations(void **state) {
    (void)state;
    const size_t bytes = COPY_COUNT * sizeof(float);
    float *at[2] = {device_floats(COPY_COUNT), device_floats(COPY_COUNT)}, *slots;
    void *memory;
    assert_ok(dev.b->host_alloc(dev.s, COPY_SLOTS * bytes, &memory, &err));
    slots = memory;
    for (int64_t i = 0; i < (int64_t)COPY_SLOTS * COPY_COUNT; i++)
        slots[i] = (float)(i % 4099);
    struct gemm_args add = adding_one();
    assert_ok(dev.b->fetch(dev.s, slots, bytes, at[0], &err));
    for (int n = 0; n < COPY_ROUNDS * COPY_SLOTS; n++) {
        float *slot = slots + (int64_t)(n % COPY_SLOTS) * COPY_COUNT;
        float *next = slots + (int64_t)((n + 1) % COPY_SLOTS) * COPY_COUNT;
        assert_ok(dev.b->fetched(dev.s, &err));
        assert_ok(dev.b->fetch(dev.s, next, bytes, at[(n + 1) % 2], &err));
        add.out.data = at[n % 2];
        assert_ok(dev.b->gemm(dev.s, &add, &err));
        assert_ok(dev.b->offload(dev.s, at[n % 2], bytes, slot, &err));
    }
    assert_ok(dev.b->fetched(dev.s, &err));
    assert_ok(dev.b->offloaded(dev.s, &err));
    assert_ok(dev.b->clear(dev.s, at[1], bytes, &err)); /* the last slot's: it has left */
    assert_true(get_floats(at[1], 1)[0] == 0);
    int64_t wrong = 0;
    for (int64_t i = 0; i < (int64_t)COPY_SLOTS * COPY_COUNT; i++)
        wrong += slots[i] != (float)(i % 4099 + COPY_ROUNDS);
    assert_int_equal(wrong, 0);
    dev.b->host_free(dev.s, memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(senseless_options_are_refused),
        cmocka_unit_test(hardware_is_described),
        cmocka_unit_test(a_device_is_described_before_it_is_opened),
        cmocka_unit_test(as_many_threads_as_this_process_may_use),
        cmocka_unit_test(blocks_are_aligned_and_apart),
        cmocka_unit_test(the_limit_counts_what_is_held),
        cmocka_unit_test(absurd_sizes_are_refused),
        cmocka_unit_test(workspace_counts_and_is_kept),
        cmocka_unit_test(uploads_convert_every_value),
        cmocka_unit_test(copies_of_nothing_and_nonsense),
    };
    const struct CMUnitTest copies[] = {cmocka_unit_test(copies_go_on_beside_the_operations)};
    int failed = RUN_ON_CPU("device", tests);
    return RUN_ON_BACKENDS("copies", copies) || failed;
}
