/* Hidden states: what does not fit the limit lives in a file, reads back to the bit, and leaves nothing behind. */
#include "tests/unit/scratch.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>

#include "tests/unit/late_copies.h"
#include "worker/pipeline/hidden.h"

enum { SLOTS = 5, FLOATS = 1000, SLOT_BYTES = FLOATS * sizeof(float) };
static struct err err;
static struct job job = {.backend = &backend_cpu};

static int open_backend(void **state) {
    (void)state;
    return backend_cpu.open(&(struct backend_options){.threads = 1}, &job.device, &err) == RC_OK ? 0 : -1;
}

static int close_backend(void **state) {
    (void)state;
    backend_cpu.close(job.device);
    return 0;
}

static struct hidden_args limits(int64_t device, int64_t ram) {
    return (struct hidden_args){
        .job = &job, .slots = SLOTS, .slot_floats = FLOATS, .device_limit = device, .ram_limit = ram};
}

static int entries(const char *path) {
    int count = -2; /* "." and ".." */
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static void limits_say_how_many_slots_stay_where(void **state) {
    (void)state;
    static const struct {
        int64_t device, ram;
        struct hidden_places places;
    } cases[] = {
        {0, -1, {0, SLOTS, 0}},
        {0, SLOTS * SLOT_BYTES, {0, SLOTS, 0}},
        {0, SLOTS * SLOT_BYTES - 1, {0, SLOTS - 1, 1}},
        {0, 2 * SLOT_BYTES + 3, {0, 2, 3}},
        {0, SLOT_BYTES - 1, {0, 0, SLOTS}},
        {0, 0, {0, 0, SLOTS}},
        {-1, 0, {SLOTS, 0, 0}},
        {SLOTS * SLOT_BYTES, 0, {SLOTS, 0, 0}},
        {SLOTS * SLOT_BYTES - 1, 0, {SLOTS - 3, 0, 3}}, /* two of four are for those elsewhere to be worked on */
        {3 * SLOT_BYTES, 3 * SLOT_BYTES, {1, 3, 1}},
        {2 * SLOT_BYTES, -1, {0, SLOTS, 0}},
        {SLOT_BYTES, -1, {0, SLOTS, 0}},
    };
    struct scratch s = scratch_open();
    job.scratch = s.path;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hidden *h;
        struct hidden_args a = limits(cases[i].device, cases[i].ram);
        assert_int_equal(hidden_open(&a, &h, &err), RC_OK);
        struct hidden_places got = hidden_places(h), want = cases[i].places;
        assert_int_equal(got.device, want.device);
        assert_int_equal(got.ram, want.ram);
        assert_int_equal(got.file, want.file);
        assert_int_equal(entries(s.path), 0);
        hidden_close(h);
    }
    scratch_close(&s);
}

static float value(int64_t round, int64_t slot, int64_t i) {
    return (float)(round * 1000003 + slot * FLOATS + i) * 1.1f;
}

static void write_slot(struct hidden *h, int64_t slot, int64_t round) {
    float *out = hidden_at(h, slot);
    for (int64_t i = 0; i < FLOATS; i++)
        out[i] = value(round, slot, i);
}

/* In either order: what lies in the memory that slots share must not pass for what was kept. */
static void write_slots(struct hidden *h, int64_t round) {
    for (int64_t n = 0; n < SLOTS; n++) {
        int64_t slot = round % 2 ? n : SLOTS - 1 - n;
        assert_int_equal(hidden_claim(h, slot, &err), RC_OK);
        write_slot(h, slot, round);
        assert_int_equal(hidden_keep(h, slot, &err), RC_OK);
    }
}

static void check_slot(struct hidden *h, int64_t slot, int64_t next, int64_t round) {
    assert_int_equal(hidden_recall(h, slot, next, &err), RC_OK);
    const float *values = hidden_at(h, slot);
    for (int64_t i = 0; i < FLOATS; i++)
        assert_true(values[i] == value(round, slot, i));
}

/* Whatever is expected to come next. */
static void check_slots(struct hidden *h, int64_t round) {
    for (int64_t next = -1; next < SLOTS; next++)
        for (int64_t slot = 0; slot < SLOTS; slot++)
            check_slot(h, slot, next, round);
}

/* As blocks do: all slots in turn, over and over. */
static void walk_slots(struct hidden *h, int64_t round, int64_t rounds) {
    for (int64_t n = 0; n < rounds * SLOTS; n++) {
        int64_t slot = n % SLOTS;
        check_slot(h, slot, (slot + 1) % SLOTS, round + n / SLOTS);
        write_slot(h, slot, round + n / SLOTS + 1);
        assert_int_equal(hidden_keep(h, slot, &err), RC_OK);
    }
}

static void check_values(struct hidden *h, int64_t slot, int64_t round, int64_t of) {
    assert_int_equal(hidden_recall(h, slot, -1, &err), RC_OK);
    const float *values = hidden_at(h, slot);
    for (int64_t i = 0; i < FLOATS; i++)
        assert_true(values[i] == value(round, of, i));
}

/* While the one before is perhaps still on its way: others become the first one, and nothing else does. */
static void copy_slots(struct hidden *h, int64_t round) {
    check_slot(h, 3, 0, round);
    write_slot(h, 3, round + 1);
    assert_int_equal(hidden_keep(h, 3, &err), RC_OK);
    assert_int_equal(hidden_recall(h, 0, -1, &err), RC_OK);
    for (int64_t slot = 1; slot < 3; slot++)
        assert_int_equal(hidden_copy(h, 0, slot, &err), RC_OK);
    for (int64_t slot = 0; slot < 3; slot++)
        check_values(h, slot, round, 0);
    check_values(h, 3, round + 1, 3);
    check_values(h, 4, round, 4);
}

static void use_slots(const struct backend *backend) {
    struct scratch s = scratch_open();
    job.scratch = s.path;
    job.backend = backend;
    for (int64_t n = 0; n < (SLOTS + 1) * (SLOTS + 1); n++) {
        struct hidden *h;
        struct hidden_args a = limits(n / (SLOTS + 1) * SLOT_BYTES, n % (SLOTS + 1) * SLOT_BYTES);
        assert_int_equal(hidden_open(&a, &h, &err), RC_OK);
        for (int64_t round = 0; round < 3; round++) {
            write_slots(h, round);
            check_slots(h, round);
        }
        walk_slots(h, 2, 4);
        copy_slots(h, 6);
        hidden_close(h);
    }
    job.backend = &backend_cpu;
    scratch_close(&s);
}

static void every_slot_reads_back_what_was_kept(void **state) {
    (void)state;
    use_slots(&backend_cpu);
}

static void every_slot_reads_back_however_late_copies_are(void **state) {
    (void)state;
    struct backend backend = with_late_copies(backend_cpu);
    use_slots(&backend);
}

/* When a slot leaves, the next is on its way already: but for one that would come to the same place, or has one of its
 * own on the device. */
static void the_next_slot_comes_beside_the_work(void **state) {
    (void)state;
    static const struct {
        int64_t device, ram;
        int beside;
    } cases[] = {
        {1, SLOTS, 0}, {2, SLOTS, SLOTS - 1}, {3, SLOTS, SLOTS - 2}, {4, SLOTS, SLOTS - 3}, {2, 3, 2}, {2, 0, 0},
    };
    struct backend backend = with_late_copies(backend_cpu);
    struct scratch s = scratch_open();
    job.scratch = s.path;
    job.backend = &backend;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hidden *h;
        struct hidden_args a = limits(cases[i].device * SLOT_BYTES, cases[i].ram * SLOT_BYTES);
        assert_int_equal(hidden_open(&a, &h, &err), RC_OK);
        write_slots(h, 0);
        walk_slots(h, 0, 2);
        late.beside = 0;
        walk_slots(h, 2, 1);
        assert_int_equal(late.beside, cases[i].beside);
        hidden_close(h);
    }
    job.backend = &backend_cpu;
    scratch_close(&s);
}

static void what_cannot_be_held_is_said_at_once(void **state) {
    (void)state;
    struct hidden *h = NULL;
    struct hidden_args a = limits(0, 0), many = a, large = a;
    many.slots = large.slot_floats = INT64_MAX / 2;
    job.scratch = "/nowhere/at/all";
    assert_int_equal(hidden_open(&a, &h, &err), RC_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nowhere/at/all"));
    assert_int_equal(hidden_open(&many, &h, &err), RC_TOO_LARGE);
    assert_int_equal(hidden_open(&large, &h, &err), RC_TOO_LARGE);
    /* A file that may not grow stands for a full disk: reserving fails, before any value is computed. */
    struct scratch s = scratch_open();
    job.scratch = s.path;
    a = limits(0, SLOT_BYTES);
    struct rlimit before, small = {SLOT_BYTES, RLIM_INFINITY};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum rc rc = hidden_open(&a, &h, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_true(rc != RC_OK);
    assert_non_null(strstr(err.message, s.path));
    assert_non_null(strstr(err.message, "15.62 KiB"));
    assert_non_null(strstr(err.message, "--ram-limit"));
    assert_int_equal(entries(s.path), 0);
    assert_null(h);
    scratch_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_say_how_many_slots_stay_where),
        cmocka_unit_test(every_slot_reads_back_what_was_kept),
        cmocka_unit_test(every_slot_reads_back_however_late_copies_are),
        cmocka_unit_test(the_next_slot_comes_beside_the_work),
        cmocka_unit_test(what_cannot_be_held_is_said_at_once),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
