/* Hidden states: what does not fit the limit lives in a file, reads back to the bit, and leaves nothing behind. */
#include "tests/unit/scratch.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>

#include "worker/pipeline/hidden.h"

enum { SLOTS = 5, FLOATS = 1000, SLOT_BYTES = FLOATS * sizeof(float) };
static struct err err;

static int entries(const char *path) {
    int count = -2; /* "." and ".." */
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static void limit_says_how_many_slots_stay_in_memory(void **state) {
    (void)state;
    static const struct {
        int64_t limit, spilled;
    } cases[] = {
        {-1, 0},
        {SLOTS * SLOT_BYTES, 0},
        {SLOTS * SLOT_BYTES - 1, 1},
        {2 * SLOT_BYTES + 3, 3},
        {SLOT_BYTES - 1, SLOTS},
        {0, SLOTS},
    };
    struct scratch s = scratch_open();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hidden *h;
        assert_int_equal(hidden_open(SLOTS, FLOATS, cases[i].limit, s.path, &h, &err), RC_OK);
        assert_int_equal(hidden_spilled(h), cases[i].spilled);
        assert_int_equal(entries(s.path), 0);
        hidden_close(h);
    }
    scratch_close(&s);
}

static float value(int64_t round, int64_t slot, int64_t i) {
    return (float)(round * 1000003 + slot * FLOATS + i) * 1.1f;
}

static void every_slot_reads_back_what_was_put(void **state) {
    (void)state;
    struct scratch s = scratch_open();
    for (int64_t limit = 0; limit <= SLOTS; limit++) {
        struct hidden *h;
        assert_int_equal(hidden_open(SLOTS, FLOATS, limit * SLOT_BYTES, s.path, &h, &err), RC_OK);
        for (int64_t round = 0; round < 3; round++) {
            for (int64_t slot = SLOTS - 1; slot >= 0; slot--) {
                float *out = hidden_buffer(h, slot);
                for (int64_t i = 0; i < FLOATS; i++)
                    out[i] = value(round, slot, i);
                assert_int_equal(hidden_put(h, slot, &err), RC_OK);
            }
            for (int64_t slot = 0; slot < SLOTS; slot++) {
                float *values;
                assert_int_equal(hidden_get(h, slot, &values, &err), RC_OK);
                for (int64_t i = 0; i < FLOATS; i++)
                    assert_true(values[i] == value(round, slot, i));
            }
        }
        hidden_close(h);
    }
    scratch_close(&s);
}

static void what_cannot_be_held_is_said_at_once(void **state) {
    (void)state;
    struct hidden *h = NULL;
    assert_int_equal(hidden_open(SLOTS, FLOATS, 0, "/nowhere/at/all", &h, &err), RC_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nowhere/at/all"));
    assert_int_equal(hidden_open(INT64_MAX / 2, FLOATS, 0, "/tmp", &h, &err), RC_TOO_LARGE);
    assert_int_equal(hidden_open(SLOTS, INT64_MAX / 2, 0, "/tmp", &h, &err), RC_TOO_LARGE);
    /* A file that may not grow stands for a full disk: reserving fails, before any value is computed. */
    struct scratch s = scratch_open();
    struct rlimit before, small = {SLOT_BYTES, RLIM_INFINITY};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum rc rc = hidden_open(SLOTS, FLOATS, SLOT_BYTES, s.path, &h, &err);
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
        cmocka_unit_test(limit_says_how_many_slots_stay_in_memory),
        cmocka_unit_test(every_slot_reads_back_what_was_put),
        cmocka_unit_test(what_cannot_be_held_is_said_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
